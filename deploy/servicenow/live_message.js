// The callback of Causeway: sends each message of a support chat to Causeway. The script stands in two records of ServiceNow:
//
// 1. the Business Rule on the table live_message: when "after", on insert, Advanced;
// 2. the Script Action of the event RETRY_EVENT (registered for the table live_message), which sends again.
//
// `causeway servicenow install` creates both with everything they need; `causeway servicenow rule` prints the script for
// pasting. ES5, as global-scope scripts require.
//
// The Business Rule runs in the agent's own transaction. So the call takes two seconds at most, and no error leaves the script.
// A callback that Causeway did not answer with 2xx is queued as an event. The Script Action sends it again in the background,
// for a day. While a message of a chat waits, each later message of that chat is queued behind it without a call, so that
// the order stays. The Script Action sends the oldest message first and stops at the first failure. A repeat carries the same
// sys_id, and Causeway suppresses it. If the event and its Script Action are missing, no message is sent again; Causeway then
// finds the missing messages of its own chats when it reads the chat back, since `previous` shows that one is missing.
//
// Every character outside of letters, digits and a few signs is written as \uXXXX. So neither a character set nor a
// substitution of ${...} can change the body between the signature and its check.
//
// REST_MESSAGE and METHOD are the names of the Outbound REST Message and of its HTTP method.
// OWN_USER is the user whose login Causeway has: its own messages need not come back.
// CREDENTIAL is how Causeway knows the caller. 'signature': a header over time and body, made with the system property
// KEY_PROPERTY (the Base64 of ingress.servicenow.hmac_secret; make it private). 'token': the HTTP method has a header
// x-causeway-token with ingress.servicenow.token, and this script adds no credential.
// RETRY_EVENT is the event's name. A second rule in the same instance needs another name for each of its records.
(function executeRule(current, event) {
  var REST_MESSAGE = 'Causeway';
  var METHOD = 'post';
  var OWN_USER = 'chatbot_interface';
  var CREDENTIAL = 'signature';
  var KEY_PROPERTY = 'causeway.signing_key';
  var RETRY_EVENT = 'causeway.retry';
  var TIMEOUT_MS = 2000;
  // Seconds before each retry; the last number stays until the hours are over.
  var RETRY_AFTER_SECONDS = [5, 10, 20, 30, 60];
  var RETRY_FOR_HOURS = 24;
  // An event that is later than this hangs (its node was stopped, for example): another event sends its message.
  var OVERDUE_MS = 300000;
  // What a retry event has in parm2 once its message needs no retry any more.
  var DELIVERED = 'delivered';

  function now() {
    return new Date().getTime();
  }

  function logError(text) {
    try {
      gs.error(text);
    } catch (error) {
      return;
    }
  }

  // A value of a row. A column or a value that is missing is the empty text. Half of a surrogate pair, as a cut text can end
  // with, would spoil the JSON: it becomes the replacement character.
  function field(row, name) {
    var value = row.getValue(name);
    if (value === null || value === undefined) {
      return '';
    }
    return String(value).replace(/[\ud800-\udbff][\udc00-\udfff]|[\ud800-\udfff]/g, function (found) {
      return found.length === 2 ? found : '\ufffd';
    });
  }

  // Anything that is not clearly false.
  function isInternal(row) {
    var internal = field(row, 'internal');
    return internal !== '' && internal !== '0' && internal !== 'false';
  }

  // The kind of the conversation, or the empty text if it cannot be read.
  function groupType(row) {
    try {
      var type = row.group.type;
      return type === null || type === undefined ? '' : String(type);
    } catch (error) {
      return '';
    }
  }

  // Private chats and comments on records stand in the same table and are not support chats.
  function isRelayed(row) {
    var type = groupType(row);
    return !isInternal(row) && field(row, 'sys_created_by') !== OWN_USER && type !== 'peer' && type !== 'document';
  }

  // The last message of the same chat that this rule should have sent; empty for the first one, null if the rule cannot tell.
  // Times are whole seconds: the order of two messages of one second is not known, and a wrong answer would hide that one of
  // them is missing.
  function previousMessage(row) {
    try {
      var messages = new GlideRecord('live_message');
      messages.addQuery('group', field(row, 'group'));
      messages.addQuery('sys_id', '!=', field(row, 'sys_id'));
      messages.addQuery('sys_created_by', '!=', OWN_USER);
      messages.addQuery('internal', false);
      messages.addQuery('sys_created_on', '<=', field(row, 'sys_created_on'));
      messages.orderByDesc('sys_created_on');
      messages.setLimit(2);
      messages.query();
      if (!messages.next()) {
        return '';
      }
      var found = String(messages.getValue('sys_id'));
      var second = String(messages.getValue('sys_created_on'));
      var tied = second === field(row, 'sys_created_on');
      if (!tied && messages.next()) {
        tied = second === String(messages.getValue('sys_created_on'));
      }
      return tied ? null : found;
    } catch (error) {
      return null;
    }
  }

  // The instance's own name: a clone has the same chats and the same credentials, but another name.
  function instanceName() {
    try {
      return String(gs.getProperty('instance_name') || '');
    } catch (error) {
      return '';
    }
  }

  // A text as JSON, in characters that no substitution and no character set can change.
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

  // Calls a method that older releases do not have.
  function callIfPresent(request, name, argument) {
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

  // A login page or a maintenance page of another server can be answered with 200; Causeway never answers with a page.
  function isPage(response) {
    try {
      return /^\s*</.test(String(response.getBody() || ''));
    } catch (error) {
      return false;
    }
  }

  // Sends one message. Returns the empty text if Causeway has it, else the reason.
  function post(row) {
    var sentAt = now();
    var body = json([
      ['group', field(row, 'group')],
      ['group_type', groupType(row)],
      ['formatted_message', field(row, 'formatted_message')],
      ['sys_created_by', field(row, 'sys_created_by')],
      ['sys_created_on', field(row, 'sys_created_on')],
      ['last_message', field(row, 'last_message')],
      ['sys_id', field(row, 'sys_id')],
      ['internal', false],
      ['instance', instanceName()],
      ['previous', previousMessage(row)],
      ['sent_at', sentAt]
    ]);
    var request = new sn_ws.RESTMessageV2(REST_MESSAGE, METHOD);
    callIfPresent(request, 'disableForcedVariableSubstitution');
    // Credentials and messages must not follow to another host.
    callIfPresent(request, 'setFollowRedirect', false);
    request.setRequestHeader('Content-Type', 'application/json');
    request.setHttpTimeout(TIMEOUT_MS);
    if (CREDENTIAL === 'signature') {
      request.setRequestHeader('x-causeway-signature', signature(sentAt, body));
    }
    request.setRequestBody(body);
    var response = request.execute();
    var status = response.getStatusCode();
    if (status < 200 || status > 299) {
      return 'was answered ' + status;
    }
    return isPage(response) ? 'was answered ' + status + ' with a page that is not of Causeway' : '';
  }

  // The same without an error. The error's own words stay out: they may hold the address, and with it a token.
  function tryPost(row) {
    try {
      return post(row);
    } catch (error) {
      return 'could not be sent';
    }
  }

  // The retry events of this query that still have something to do.
  function openEvents(column, value) {
    var events = new GlideRecord('sysevent');
    events.addQuery('name', RETRY_EVENT);
    events.addQuery(column, value);
    events.addQuery('state', '!=', 'processed');
    events.addQuery('state', '!=', 'error');
    events.addQuery('state', '!=', 'transferred');
    events.query();
    return events;
  }

  // What a retry event says of its message: `id`; `since`, when the message was first queued, which is its place in the
  // order; `tries`; `due`, when the event is due. Null if the event's message needs no retry.
  function retryState(id, parm2) {
    var parts = String(parm2).split(' ');
    var since = Number(parts[0]);
    return since ? { id: String(id), since: since, tries: Number(parts[1]) || 0, due: Number(parts[2]) || since } : null;
  }

  function isTooOld(message) {
    return now() - message.since > RETRY_FOR_HOURS * 3600000;
  }

  // The messages of a chat that wait for a retry, the oldest first, each once. Empty if that cannot be read.
  function waitingMessages(group) {
    var waiting = [];
    try {
      var events = openEvents('parm1', group);
      var known = {};
      while (events.next()) {
        var message = retryState(events.getValue('instance'), events.getValue('parm2'));
        if (message && !isTooOld(message)) {
          if (known[message.id]) {
            known[message.id].due = Math.max(known[message.id].due, message.due);
          } else {
            known[message.id] = message;
            waiting.push(message);
          }
        }
      }
    } catch (error) {
      return [];
    }
    return waiting.sort(function (one, other) {
      return one.since - other.since;
    });
  }

  function queueRetry(row, group, message) {
    try {
      var wait = RETRY_AFTER_SECONDS[Math.min(message.tries, RETRY_AFTER_SECONDS.length - 1)];
      var at = new GlideDateTime();
      at.addSeconds(wait);
      var state = message.since + ' ' + (message.tries + 1) + ' ' + (now() + wait * 1000);
      gs.eventQueueScheduled(RETRY_EVENT, row, group, state, at);
    } catch (error) {
      logError('Causeway: no retry could be queued for live_message ' + message.id);
    }
  }

  // Ends all retries of a message. An event that is being processed already finds the mark in parm2.
  function endRetries(id) {
    try {
      var events = openEvents('instance', id);
      while (events.next()) {
        events.setValue('state', 'processed');
        events.setValue('parm2', DELIVERED);
        events.update();
      }
    } catch (error) {
      // The next retry is a repeat, which Causeway suppresses.
      return;
    }
  }

  // The Business Rule: one call, or the end of the chat's line.
  function sendInserted(row) {
    var message = { id: field(row, 'sys_id'), since: now(), tries: 0 };
    var group = field(row, 'group');
    var waiting = waitingMessages(group);
    if (waiting.length > 0) {
      // Also if the clock of another node is ahead.
      message.since = Math.max(message.since, waiting[waiting.length - 1].since + 1);
      queueRetry(row, group, message);
      return;
    }
    var failure = tryPost(row);
    if (failure !== '') {
      queueRetry(row, group, message);
      logError('Causeway: live_message ' + message.id + ' ' + failure + '; it will be sent again');
    }
  }

  function liveMessage(id) {
    var row = new GlideRecord('live_message');
    return row.get(id) ? row : null;
  }

  // False also if the row cannot be read now.
  function isRemoved(id) {
    try {
      return liveMessage(id) === null;
    } catch (error) {
      return false;
    }
  }

  // Whether another event delivered this event's message in the meantime.
  function isDelivered() {
    try {
      var own = new GlideRecord('sysevent');
      return own.get(String(event.sys_id)) && String(own.getValue('parm2')) === DELIVERED;
    } catch (error) {
      return false;
    }
  }

  // The chat's waiting messages with this one among them, the oldest first.
  function lineOf(message, group) {
    var line = waitingMessages(group);
    for (var i = 0; i < line.length; i++) {
      if (line[i].id === message.id) {
        return line;
      }
    }
    line.push(message);
    return line.sort(function (one, other) {
      return one.since - other.since;
    });
  }

  // The Script Action: sends the chat's waiting messages, the oldest first, until one fails.
  function sendWaiting() {
    var message = retryState(event.instance, event.parm2);
    if (!message || isDelivered()) {
      return;
    }
    if (isTooOld(message)) {
      logError('Causeway: live_message ' + message.id + ' was never taken; no more retries');
      return;
    }
    // A row that was removed needs no retry.
    if (isRemoved(message.id)) {
      return;
    }
    var group = String(event.parm1);
    // Before the calls, so that also a node that is stopped in the middle loses nothing.
    queueRetry(current, group, message);
    var line = lineOf(message, group);
    // The oldest message's own event makes the calls, unless that event hangs.
    if (line[0].id !== message.id && now() - line[0].due < OVERDUE_MS) {
      return;
    }
    for (var i = 0; i < line.length; i++) {
      var row = liveMessage(line[i].id);
      if (row && tryPost(row) !== '') {
        return;
      }
      endRetries(line[i].id);
    }
  }

  try {
    // Another event may be in scope if a script that answers it writes into the chat.
    if (event && String(event.name) === RETRY_EVENT) {
      sendWaiting();
    } else if (isRelayed(current)) {
      sendInserted(current);
    }
  } catch (error) {
    logError('Causeway: the callback of a live_message failed');
  }
})(current, typeof event === 'undefined' ? null : event);
