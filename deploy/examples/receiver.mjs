// Receives the events that Causeway posts to handoffs.events_url. Needs Node.js 18 or newer and nothing else.
//
//     EVENTS_TOKEN=... EVENTS_SECRET=whsec_... PORT=8090 node receiver.mjs
//
// Causeway: handoffs.events_url = "http://127.0.0.1:8090/events", handoffs.events_token = the same token,
// handoffs.events_secret = the same secret. Without EVENTS_SECRET no signature is checked.

import { createHash, createHmac, timingSafeEqual } from "node:crypto";
import { createServer } from "node:http";

const TOKEN = process.env.EVENTS_TOKEN ?? "";
const SECRET = process.env.EVENTS_SECRET ?? "";
const TOLERANCE = 300;
const HOST = process.env.HOST ?? "127.0.0.1";
const PORT = Number(process.env.PORT ?? "8090");
const BODY_MAX = 4 << 20;
const SEEN_MAX = 10_000;

// An event can come twice. This set ends with the process: keep the ids in your database, in the transaction of what an
// event causes.
const seen = new Set();

// Shows one event. If this throws, Causeway posts the event again.
function handle(event) {
  const name = event.conversation_id;
  switch (event.type) {
    case "callback.message":
      console.log(`${name} ${event.from}: ${event.message}`);
      for (const file of event.attachments ?? []) console.log(`${name} file: ${file.name} ${file.url ?? ""}`);
      break;
    case "callback.event":
      console.log(`${name} ${event.event}`);
      break;
    case "callback.ended":
      console.log(`${name} ended: ${event.reason}`);
      break;
    case "handoff.failed":
      console.log(`${name} failed: ${event.reason} ${event.detail ?? ""}`.trimEnd());
      break;
    default: // A newer Causeway may post other types: they are taken and passed over.
  }
}

// Digests have the same length, so the comparison takes the same time whatever differs.
const digest = (text) => createHash("sha256").update(text).digest();
const isSame = (given, ours) => timingSafeEqual(digest(given), digest(ours));

// Whether the body was signed with SECRET within the last five minutes (Standard Webhooks).
function isSigned(headers, body) {
  const at = headers["webhook-timestamp"] ?? "";
  if (!/^\d+$/.test(at) || Math.abs(Date.now() / 1000 - Number(at)) > TOLERANCE) return false;
  const hmac = createHmac("sha256", Buffer.from(SECRET.slice("whsec_".length), "base64"));
  const ours = `v1,${hmac.update(`${headers["webhook-id"] ?? ""}.${at}.`).update(body).digest("base64")}`;
  // There are two signatures while the secret is being changed.
  return (headers["webhook-signature"] ?? "").split(" ").some((given) => isSame(given, ours));
}

async function read(request) {
  const parts = [];
  let size = 0;
  for await (const part of request) {
    size += part.length;
    if (size > BODY_MAX) return undefined;
    parts.push(part);
  }
  return Buffer.concat(parts);
}

function parse(body) {
  try {
    const event = JSON.parse(body.toString("utf8"));
    const names = [event.id, event.conversation_id, event.type];
    return names.every((name) => typeof name === "string") ? event : undefined;
  } catch {
    return undefined;
  }
}

async function answer(request) {
  if (request.method !== "POST") return 405;
  // Causeway keeps its events and asks again until the token is right.
  if (!isSame(request.headers.authorization ?? "", `Bearer ${TOKEN}`)) return 401;
  const body = await read(request);
  if (body === undefined) return 413;
  if (SECRET !== "" && !isSigned(request.headers, body)) return 401;
  const event = parse(body);
  // Causeway does not repeat what is answered with 400: the event becomes a dead letter.
  if (event === undefined) return 400;
  if (seen.has(event.id)) return 204;
  handle(event);
  seen.add(event.id);
  if (seen.size > SEEN_MAX) seen.delete(seen.values().next().value);
  return 204;
}

if (TOKEN === "") {
  console.error("EVENTS_TOKEN is not set: it must be the same as handoffs.events_token");
  process.exit(1);
}

const server = createServer(async (request, response) => {
  let status = 500;
  try {
    status = await answer(request);
  } catch (error) {
    console.error(`an event failed: ${error}`); // the next attempt may succeed
  }
  // The body of a refused request may be unread, so the connection cannot be used again.
  if (status !== 204) response.setHeader("connection", "close");
  response.writeHead(status).end();
});
server.listen(PORT, HOST, () => console.log(`listening on http://${HOST}:${PORT}`));
