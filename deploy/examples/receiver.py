#!/usr/bin/env python3
"""Receives the events that Causeway posts to handoffs.events_url. Needs Python 3.8 or newer and nothing else.

    EVENTS_TOKEN=... EVENTS_SECRET=whsec_... PORT=8090 python3 receiver.py

Causeway: handoffs.events_url = "http://127.0.0.1:8090/events", handoffs.events_token = the same token,
handoffs.events_secret = the same secret. Without EVENTS_SECRET no signature is checked.
"""

import base64
import hmac
import json
import os
import sys
import time
from collections import OrderedDict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock

TOKEN = os.environ.get("EVENTS_TOKEN", "")
SECRET = os.environ.get("EVENTS_SECRET", "")
TOLERANCE = 300
HOST = os.environ.get("HOST", "127.0.0.1")
PORT = int(os.environ.get("PORT", "8090"))
BODY_MAX = 4 << 20
SEEN_MAX = 10_000

# An event can come twice. This list ends with the process: keep the ids in your database, in the transaction of what an
# event causes.
seen = OrderedDict()
lock = Lock()


def handle(event):
    """Shows one event. If this raises an error, Causeway posts the event again."""
    name, kind = event["conversation_id"], event["type"]
    if kind == "callback.message":
        print(f"{name} {event['from']}: {event['message']}", flush=True)
        for file in event.get("attachments", []):
            print(f"{name} file: {file['name']} {file.get('url', '')}", flush=True)
    elif kind == "callback.event":
        print(f"{name} {event['event']}", flush=True)
    elif kind == "callback.ended":
        print(f"{name} ended: {event['reason']}", flush=True)
    elif kind == "handoff.failed":
        print(f"{name} failed: {event['reason']} {event.get('detail', '')}".rstrip(), flush=True)
    # A newer Causeway may post other types: they are taken and passed over.


def is_signed(headers, body):
    """Whether the body was signed with SECRET within the last five minutes (Standard Webhooks)."""
    at = headers.get("webhook-timestamp", "")
    if not (at.isascii() and at.isdigit()) or abs(time.time() - int(at)) > TOLERANCE:
        return False
    key = base64.b64decode(SECRET[len("whsec_"):] + "==")
    signed = f"{headers.get('webhook-id', '')}.{at}.".encode() + body
    ours = b"v1," + base64.b64encode(hmac.new(key, signed, "sha256").digest())
    # There are two signatures while the secret is being changed.
    return any(hmac.compare_digest(one.encode(), ours) for one in headers.get("webhook-signature", "").split(" "))


class Receiver(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 60

    def do_POST(self):
        given = self.headers.get("Authorization", "")
        if not hmac.compare_digest(given.encode(), f"Bearer {TOKEN}".encode()):
            # Causeway keeps its events and asks again until the token is right.
            return self.answer(401)
        length = self.headers.get("Content-Length", "")
        if not length.isdigit() or int(length) > BODY_MAX:
            return self.answer(413)
        body = self.rfile.read(int(length))
        if SECRET and not is_signed(self.headers, body):
            return self.answer(401)
        try:
            event = json.loads(body)
            identity, conversation, kind = event["id"], event["conversation_id"], event["type"]
        except (ValueError, TypeError, KeyError):
            # Causeway does not repeat what is answered with 400: the event becomes a dead letter.
            return self.answer(400)
        if not all(isinstance(value, str) for value in (identity, conversation, kind)):
            return self.answer(400)
        with lock:
            if identity not in seen:
                try:
                    handle(event)
                except Exception as error:  # the next attempt may succeed
                    print(f"event {identity} failed: {error!r}", file=sys.stderr, flush=True)
                    return self.answer(500)
                seen[identity] = True
                if len(seen) > SEEN_MAX:
                    seen.popitem(last=False)
        return self.answer(204)

    def answer(self, status):
        self.send_response(status)
        if status != 204:
            # The body of a refused request may be unread, so the connection cannot be used again.
            self.close_connection = True
            self.send_header("Connection", "close")
            self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


if __name__ == "__main__":
    if not TOKEN:
        sys.exit("EVENTS_TOKEN is not set: it must be the same as handoffs.events_token")
    with ThreadingHTTPServer((HOST, PORT), Receiver) as server:
        server.daemon_threads = True
        print(f"listening on http://{HOST}:{PORT}", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            pass
