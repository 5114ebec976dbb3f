// ServiceNow's objects, as far as the Business Rule uses them, and a small instance around the rule: rows are written, events
// come due. `instance` is what a test sets. Facts that are not known of ServiceNow are members of it.
//   type, name, key          the chat's kind, the instance's name, the signing key
//   now                      the clock, in milliseconds
//   status                   what the other side answers, if `network` is not set
//   history                  the rows of live_message
//   release                  'old': without disableForcedVariableSubstitution and setFollowRedirect
//   substitutes              whether RESTMessageV2 replaces ${...} in the body of a script
//   redirects                the other side answers with a redirect to another host
//   early                    an event is marked as processed before its script runs
//   breaks                   which object throws
var instance = JSON.parse(instanceText);
var sent = [], elsewhere = [], errors = [], events = [], clock = instance.now;
// What happens while a request is on its way.
var during = null;
var RealDate = Date;

function breaks(name) {
  if (instance.breaks === name) { throw new Error('https://relay?token=hush'); }
}
function glideTime(milliseconds) {
  return new RealDate(milliseconds).toISOString().slice(0, 19).replace('T', ' ');
}
function recordOf(written) {
  return {
    getValue: function (name) { return written.hasOwnProperty(name) ? written[name] : null; },
    sys_id: written.sys_id,
    group: { type: instance.type }
  };
}
var Date = function () { this.getTime = function () { return clock; }; };
function GlideDateTime() { this.at = clock; }
GlideDateTime.prototype.addSeconds = function (seconds) { this.at += seconds * 1000; };
var gs = {
  getProperty: function (name) {
    return { 'causeway.signing_key': instance.key, 'instance_name': instance.name }[name] || null;
  },
  error: function (text) {
    breaks('log');
    errors.push(text);
  },
  eventQueueScheduled: function (name, record, parm1, parm2, at) {
    breaks('queue');
    events.push({
      sys_id: 'e' + (gs.queued = (gs.queued || 0) + 1), name: name, instance: record.sys_id, parm1: parm1, parm2: parm2,
      state: 'ready', at: at.at
    });
  }
};
function GlideCertificateEncryption() {}
GlideCertificateEncryption.prototype.generateMac = function (key, algorithm, data) {
  breaks('mac');
  return mac(key, algorithm, data);
};
function GlideRecord(table) {
  breaks('query');
  this.table = table;
  this.rows = { live_message: instance.history, sysevent: events }[table].slice();
}
GlideRecord.prototype.addQuery = function (name, operator, value) {
  if (value === undefined) { value = operator; operator = '='; }
  this.rows = this.rows.filter(function (row) {
    var held = row[name];
    if (operator === '=') { return held === value; }
    return operator === '!=' ? held !== value : held <= value;
  });
};
GlideRecord.prototype.orderByDesc = function (name) {
  this.rows.sort(function (a, b) { return a[name] < b[name] ? 1 : -1; });
};
GlideRecord.prototype.setLimit = function (limit) { this.limit = limit; };
GlideRecord.prototype.query = function () { this.rows = this.rows.slice(0, this.limit); };
GlideRecord.prototype.next = function () {
  this.row = this.rows.shift();
  if (this.row !== undefined) { this.sys_id = this.row.sys_id; this.group = { type: instance.type }; }
  return this.row !== undefined;
};
GlideRecord.prototype.get = function (id) { this.addQuery('sys_id', id); return this.next(); };
GlideRecord.prototype.getValue = function (name) { return this.row.hasOwnProperty(name) ? this.row[name] : null; };
GlideRecord.prototype.setValue = function (name, value) {
  this.changes = this.changes || {};
  this.changes[name] = value;
};
GlideRecord.prototype.update = function () {
  breaks('update');
  for (var name in this.changes) { this.row[name] = this.changes[name]; }
};
var sn_ws = {
  RESTMessageV2: function (message, method) {
    breaks('message');
    var request = { message: message, method: method, headers: {} }, substitutes = instance.substitutes, follows = true;
    this.setRequestHeader = function (name, value) { request.headers[name] = value; };
    this.setHttpTimeout = function (ms) { request.timeout = ms; };
    this.setRequestBody = function (body) { request.body = body; };
    if (instance.release !== 'old') {
      this.disableForcedVariableSubstitution = function () { substitutes = false; };
      this.setFollowRedirect = function (value) { follows = value; };
    }
    this.execute = function () {
      breaks('execute');
      request.substitutes = substitutes;
      request.follows = follows;
      // The body was signed before.
      if (substitutes) { request.body = request.body.replace(/\$\{[^}]*\}/g, ''); }
      var hook = during;
      during = null;
      if (hook) { hook(request); }
      var status = typeof network === 'undefined' ? instance.status : network(JSON.stringify(request));
      var page = 'ok';
      if (instance.redirects) {
        status = follows ? 200 : 302;
        page = '<!DOCTYPE html><title>Log in</title>';
        if (follows) { elsewhere.push(request); }
      }
      request.status = status;
      sent.push(request);
      // An unreachable host is an exception or the status 0.
      if (status === 0 && sent.length % 2 === 0) { throw new Error('Connection refused'); }
      return { getStatusCode: function () { return status; }, getBody: function () { return page; } };
    };
  }
};

var rule = new Function('current', 'event', ruleText);
// The Business Rule runs for a new row of this chat; its text is its id.
function insert(group, id, text) {
  clock += 1000;
  var written = {
    group: group, formatted_message: text || id, sys_created_by: 'beth.anglin', sys_id: id, internal: '0',
    sys_created_on: glideTime(clock)
  };
  instance.history.push(written);
  rule(recordOf(written), undefined);
}
function copyOf(event) { return JSON.parse(JSON.stringify(event)); }
// The Script Action runs for an event, with the event as a node `read` it before.
function fire(due, read) {
  clock = Math.max(clock, due.at);
  read = read || copyOf(due);
  due.state = instance.early ? 'processed' : 'processing';
  var written = instance.history.filter(function (row) { return row.sys_id === due.instance; });
  rule(recordOf(written[0] || {}), read);
  due.state = 'processed';
}
function ready() { return events.filter(function (event) { return event.state === 'ready'; }); }
function isDue(event) { return event.at <= clock; }
function byTime(a, b) { return a.at - b.at; }
function byTimeLast(a, b) { return b.at - a.at; }
// All events that are due, in any order; then the clock goes on to the next one, until no event is left or so much time is over.
function fireUntil(end, order) {
  for (;;) {
    var open = ready();
    if (open.length === 0) { return; }
    var due = open.filter(isDue).sort(order);
    if (due.length > 0) {
      fire(due[0]);
    } else {
      var next = open.sort(byTime)[0].at;
      if (next > end) { clock = end; return; }
      clock = next;
      events = open.concat(events.filter(function (event) { return event.state === 'processing'; }));
    }
  }
}
function fireAll(order) { fireUntil(Infinity, order); }
// The messages that were sent, or that the other side has: each by its id, a repeat once.
function tried() { return sent.map(function (request) { return JSON.parse(request.body).sys_id; }); }
function taken(group) {
  var ids = [];
  sent.forEach(function (request) {
    var body = JSON.parse(request.body);
    var isTaken = request.status >= 200 && request.status <= 299;
    if (isTaken && (!group || body.group === group) && ids.indexOf(body.sys_id) < 0) { ids.push(body.sys_id); }
  });
  return ids;
}
