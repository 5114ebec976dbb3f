// Business Rule of ServiceNow: table live_message, when "after", on insert, Advanced. The same script is the Script Action of
// the event causeway.retry. It tells Causeway what was written into a support chat. ES5, as global-scope scripts require.
//
// `causeway servicenow install` creates both with everything they need; `causeway servicenow rule` prints the script for pasting.
//
// The rule runs inside of the agent's own transaction. So it waits two seconds at most and never throws. What Causeway did not
// answer with 2xx is queued as an event, and the event sends it again in the background, for a day. While an earlier message
// of the same chat is queued, a later one is queued behind it, so that the order stays. A message that is sent twice is
// harmless: Causeway knows it by its sys_id. Without the event (a rule that was pasted alone) nothing is repeated; Causeway
// then finds messages of its own chats when it reads the chat back, told by `previous` that something is missing.
//
// Every character outside of letters, digits and a few signs is sent as \uXXXX: then neither a character set nor a substitution
// of ${...} can come between what is signed and what is checked.
//
// REST_MESSAGE and METHOD are the names of the Outbound REST Message and of its HTTP method.
// OWN_USER is the user whose login Causeway has: its own words need not come back.
// CREDENTIAL is how Causeway knows who calls. 'signature': a header over time and body, made with the system property
// KEY_PROPERTY (the Base64 of ingress.servicenow.hmac_secret; make it private). 'token': the HTTP method has a header
// x-causeway-token with ingress.servicenow.token, and this script does nothing about it.
(function executeRule(current, retry) {
  var REST_MESSAGE = 'Causeway';
  var METHOD = 'post';
  var OWN_USER = 'chatbot_interface';
  var CREDENTIAL = 'signature';
  var KEY_PROPERTY = 'causeway.signing_key';
  var RETRY_EVENT = 'causeway.retry';
  var TIMEOUT_MS = 2000;
  // Seconds before each repetition; the last one stays, until the hours are over.
  var RETRY_AFTER_SECONDS = [5, 10, 20, 30, 60];
  var RETRY_FOR_HOURS = 24;

  // A table without the column, or a row without the value: empty. Half of a pair, as a cut text can end with, is no
  // character and would spoil the JSON: it becomes the one that stands for such.
  function field(name) {
    var value = current.getValue(name);
    if (value === null || value === undefined) {
      return '';
    }
    return String(value).replace(/[\ud800-\udbff][\udc00-\udfff]|[\ud800-\udfff]/g, function (found) {
      return found.length === 2 ? found : '\ufffd';
    });
  }

  // Anything that is not clearly false.
  function isInternal() {
    var internal = field('internal');
    return internal !== '' && internal !== '0' && internal !== 'false';
  }

  // What kind of conversation it is, where that can be known. Private chats and the talk about records stand in the same
  // table and are none of Causeway's business.
  function groupType() {
    try {
      var type = current.group.type;
      return type === null || type === undefined ? '' : String(type);
    } catch (error) {
      return '';
    }
  }

  // The last message of the same chat that this rule should have sent; empty for the first one, null when it cannot tell.
  // Times are whole seconds: of two messages of one second nobody knows which came first, and a wrong guess would hide that
  // the other one is missing.
  function previousMessage() {
    try {
      var messages = new GlideRecord('live_message');
      messages.addQuery('group', field('group'));
      messages.addQuery('sys_id', '!=', field('sys_id'));
      messages.addQuery('sys_created_by', '!=', OWN_USER);
      messages.addQuery('internal', false);
      messages.addQuery('sys_created_on', '<=', field('sys_created_on'));
      messages.orderByDesc('sys_created_on');
      messages.setLimit(2);
      messages.query();
      if (!messages.next()) {
        return '';
      }
      var found = String(messages.getValue('sys_id'));
      var second = String(messages.getValue('sys_created_on'));
      var tied = second === field('sys_created_on');
      if (!tied && messages.next()) {
        tied = second === String(messages.getValue('sys_created_on'));
      }
      return tied ? null : found;
    } catch (error) {
      return null;
    }
  }

  // The instance's own name: after a clone the copy has the same chats and the same credentials, but not the same name.
  function instanceName() {
    try {
      return String(gs.getProperty('instance_name') || '');
    } catch (error) {
      return '';
    }
  }

  // A text as JSON: letters, digits and signs that mean nothing to anybody, all else as \uXXXX.
  function quoted(text) {
    return '"' + text.replace(/[^0-9A-Za-z ,.;:!?()_-]/g, function (found) {
      return '\\u' + ('0000' + found.charCodeAt(0).toString(16)).slice(-4);
    }) + '"';
  }

  function json(fields) {
    var parts = [];
    for (var i = 0; i < fields.length; i++) {
      var value = fields[i][1];
      parts.push('"' + fields[i][0] + '":' + (typeof value === 'string' ? quoted(value) : String(value)));
    }
    return '{' + parts.join(',') + '}';
  }

  function signature(sentAt, body) {
    var seconds = Math.floor(sentAt / 1000);
    var key = gs.getProperty(KEY_PROPERTY);
    var mac = new GlideCertificateEncryption().generateMac(key, 'HmacSHA256', seconds + '.' + body);
    return 't=' + seconds + ',v1=' + mac;
  }

  // A method that older releases do not have.
  function ifThere(request, name, argument) {
    try {
      if (argument === undefined) {
        request[name]();
      } else {
        request[name](argument);
      }
    } catch (error) {
      return;
    }
  }

  // Whether Causeway has it.
  function send() {
    var sentAt = new Date().getTime();
    var body = json([
      ['group', field('group')],
      ['group_type', groupType()],
      ['formatted_message', field('formatted_message')],
      ['sys_created_by', field('sys_created_by')],
      ['sys_created_on', field('sys_created_on')],
      ['last_message', field('last_message')],
      ['sys_id', field('sys_id')],
      ['internal', false],
      ['instance', instanceName()],
      ['previous', previousMessage()],
      ['sent_at', sentAt]
    ]);
    var request = new sn_ws.RESTMessageV2(REST_MESSAGE, METHOD);
    ifThere(request, 'disableForcedVariableSubstitution');
    // Credentials must not follow to another host.
    ifThere(request, 'setFollowRedirect', false);
    request.setRequestHeader('Content-Type', 'application/json');
    request.setHttpTimeout(TIMEOUT_MS);
    if (CREDENTIAL === 'signature') {
      request.setRequestHeader('x-causeway-signature', signature(sentAt, body));
    }
    request.setRequestBody(body);
    var status = request.execute().getStatusCode();
    if (status >= 200 && status <= 299) {
      return true;
    }
    gs.error('Causeway answered ' + status + ' to live_message ' + field('sys_id'));
    return false;
  }

  // Without the error's own words: they may hold the address, and with it a token.
  function sent() {
    try {
      return send();
    } catch (error) {
      gs.error('Causeway could not be told of live_message ' + current.sys_id);
      return false;
    }
  }

  // When it was written and how often it was tried: what the event carries as parm2.
  function state() {
    var parts = retry ? String(retry.parm2).split(' ') : [];
    return { since: Number(parts[0]) || new Date().getTime(), tries: Number(parts[1]) || 0 };
  }

  // The other messages of this chat that wait to be sent again, the earliest first. None, when that cannot be known.
  function waiting() {
    var found = [];
    try {
      var events = new GlideRecord('sysevent');
      events.addQuery('name', RETRY_EVENT);
      events.addQuery('parm1', field('group'));
      events.addQuery('state', '!=', 'processed');
      events.addQuery('state', '!=', 'error');
      events.addQuery('state', '!=', 'transferred');
      events.query();
      while (events.next()) {
        var id = String(events.getValue('instance'));
        var since = Number(String(events.getValue('parm2')).split(' ')[0]);
        if (id !== field('sys_id') && since) {
          found.push({ id: id, since: since });
        }
      }
    } catch (error) {
      return [];
    }
    return found.sort(function (one, other) {
      return one.since - other.since;
    });
  }

  function hasEarlier(mine) {
    var others = waiting();
    return others.length > 0 && others[0].since < mine.since;
  }

  // What waited behind this message follows at once: the events of these messages come later and repeat it, which is harmless.
  function sendFollowing() {
    var others = waiting();
    for (var i = 0; i < others.length; i++) {
      var row = new GlideRecord('live_message');
      if (row.get(others[i].id)) {
        current = row;
        if (!sent()) {
          return;
        }
      }
    }
  }

  function queue(mine) {
    try {
      if (new Date().getTime() - mine.since > RETRY_FOR_HOURS * 3600000) {
        gs.error('Causeway was never told of live_message ' + current.sys_id);
        return;
      }
      var wait = RETRY_AFTER_SECONDS[Math.min(mine.tries, RETRY_AFTER_SECONDS.length - 1)];
      var at = new GlideDateTime();
      at.addSeconds(wait);
      gs.eventQueueScheduled(RETRY_EVENT, current, field('group'), mine.since + ' ' + (mine.tries + 1), at);
    } catch (error) {
      gs.error('Causeway is not told again of live_message ' + current.sys_id);
    }
  }

  function run() {
    if (isInternal() || field('sys_created_by') === OWN_USER) {
      return;
    }
    var type = groupType();
    if (type === 'peer' || type === 'document') {
      return;
    }
    var mine = state();
    if (hasEarlier(mine) || !sent()) {
      queue(mine);
    } else if (retry) {
      sendFollowing();
    }
  }

  try {
    run();
  } catch (error) {
    gs.error('Causeway could not be told of live_message ' + current.sys_id);
  }
})(current, typeof event === 'undefined' ? null : event);
