// Business Rule of ServiceNow: table live_message, when "after", on insert, Advanced.
// Sends what was written into a support chat to Causeway. ES5, as global-scope scripts of ServiceNow require.
//
// Unlike the script that is commonly printed for this rule it builds its JSON with JSON.stringify, so that quotes and
// line breaks survive; leaves internal notes out; and waits for at most three seconds, since a Business Rule runs inside of
// the agent's own transaction.
//
// REST_MESSAGE and METHOD are the names of the Outbound REST Message and its HTTP method.
// INTEGRATION_USER is the user whose name and password Causeway has: its own words need not come back.
(function executeRule(current, previous) {
  var REST_MESSAGE = 'Platform - Agent Integrations';
  var METHOD = 'Platform - Agent Integrations';
  var INTEGRATION_USER = 'chatbot_interface';
  var TIMEOUT_MS = 3000;

  if (String(current.internal) === 'true' || String(current.internal) === '1') {
    return;
  }
  if (String(current.sys_created_by) === INTEGRATION_USER) {
    return;
  }
  try {
    var request = new sn_ws.RESTMessageV2(REST_MESSAGE, METHOD);
    request.setRequestHeader('Content-Type', 'application/json');
    request.setHttpTimeout(TIMEOUT_MS);
    request.setRequestBody(JSON.stringify({
      group: String(current.group),
      formatted_message: String(current.formatted_message),
      sys_created_by: String(current.sys_created_by),
      last_message: String(current.last_message),
      sys_id: String(current.sys_id)
    }));
    var response = request.execute();
    var status = response.getStatusCode();
    if (status < 200 || status > 299) {
      gs.error('Causeway answered ' + status + ' to live_message ' + current.sys_id);
    }
  } catch (error) {
    gs.error('Causeway could not be reached for live_message ' + current.sys_id);
  }
})(current, previous);
