// A script node of a dialog task in XO. It builds the handoff request that the service node behind it posts to Causeway:
//
//   request     POST https://causeway.example.com/v1/handoffs
//   headers     Authorization: Bearer <ingress.handoffs.token>, Content-Type: application/json,
//               Idempotency-Key: {{context.causewayKey}}
//   body        {{context.causewayRequest}}
//
// A script node makes no call itself. The names below are those that XO's context has for its web channel.
var session = context.session || {};
var user = session.UserContext || {};
var botSession = session.BotUserSession || {};
var last = ((botSession.lastMessage || {}).messagePayload || {}).message || {};
var name = [user.firstName, user.lastName].filter(Boolean).join(' ');

// One conversation for each session of the user with the bot. Another handoff in the same session needs another id.
var id = botSession.conversationSessionId || user._id;
if (!id) {
  throw new Error('the context names neither a session nor a user');
}
var conversation = 'xo-' + id;

// JSON.stringify leaves out what is undefined, and escapes what a user typed.
context.causewayRequest = JSON.stringify({
  type: 'start',
  conversation_id: conversation,
  message: last.body || 'A user asks for an agent.',
  user: { id: user._id, name: name || undefined, email: user.emailId || undefined, language: botSession.currentLanguage },
  metadata: { source: 'dialog task' }
});
// The same key on every try: if the service node repeats its call, no second chat opens.
context.causewayKey = conversation + ':start';
