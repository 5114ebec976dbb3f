// Business Rule of ServiceNow: table live_message, when "after", on insert, Advanced.
// Tells Causeway what was written into a support chat. ES5, as global-scope scripts of ServiceNow require.
//
// `causeway servicenow install` puts it there with everything it needs; `causeway servicenow rule` prints it for pasting.
//
// It runs inside of the agent's own transaction. So it waits two seconds at most and never throws; what it could not
// deliver Causeway finds when it reads the chat back, told by `previous` that something is missing. Everything that is
// not ASCII is sent as \uXXXX: then no character set can come between what is signed and what is checked.
//
// REST_MESSAGE and METHOD are the names of the Outbound REST Message and of its HTTP method.
// OWN_USER is the user whose login Causeway has: its own words need not come back.
// CREDENTIAL is how Causeway knows who calls. 'signature': a header over time and body, made with the system property
// KEY_PROPERTY (the Base64 of ingress.servicenow.hmac_secret; make it private). 'token': the HTTP method has a header
// x-causeway-token with ingress.servicenow.token, and this script does nothing about it.
(function executeRule(current) {
  var REST_MESSAGE = 'Causeway';
  var METHOD = 'post';
  var OWN_USER = 'chatbot_interface';
  var CREDENTIAL = 'signature';
  var KEY_PROPERTY = 'causeway.signing_key';
  var TIMEOUT_MS = 2000;

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

  // In ASCII.
  function json(value) {
    return JSON.stringify(value).replace(/[\u007f-\uffff]/g, function (found) {
      return '\\u' + ('0000' + found.charCodeAt(0).toString(16)).slice(-4);
    });
  }

  function signature(sentAt, body) {
    var seconds = Math.floor(sentAt / 1000);
    var key = gs.getProperty(KEY_PROPERTY);
    var mac = new GlideCertificateEncryption().generateMac(key, 'HmacSHA256', seconds + '.' + body);
    return 't=' + seconds + ',v1=' + mac;
  }

  function send() {
    var internal = field('internal');
    if (internal === 'true' || internal === '1' || field('sys_created_by') === OWN_USER) {
      return;
    }
    var type = groupType();
    if (type === 'peer' || type === 'document') {
      return;
    }
    var sentAt = new Date().getTime();
    var body = json({
      group: field('group'),
      group_type: type,
      formatted_message: field('formatted_message'),
      sys_created_by: field('sys_created_by'),
      sys_created_on: field('sys_created_on'),
      last_message: field('last_message'),
      sys_id: field('sys_id'),
      internal: false,
      previous: previousMessage(),
      sent_at: sentAt
    });
    var request = new sn_ws.RESTMessageV2(REST_MESSAGE, METHOD);
    request.setRequestHeader('Content-Type', 'application/json');
    request.setHttpTimeout(TIMEOUT_MS);
    if (CREDENTIAL === 'signature') {
      request.setRequestHeader('x-causeway-signature', signature(sentAt, body));
    }
    request.setRequestBody(body);
    var status = request.execute().getStatusCode();
    if (status < 200 || status > 299) {
      gs.error('Causeway answered ' + status + ' to live_message ' + field('sys_id'));
    }
  }

  try {
    send();
  } catch (error) {
    // Without the error's own words: they may hold the address, and with it a token.
    gs.error('Causeway could not be told of live_message ' + current.sys_id);
  }
})(current);
