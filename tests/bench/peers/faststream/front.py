"""Takes posts and answers once the broker has confirmed."""

from relay import broker, queue

ANSWER = {"type": "http.response.start", "status": 202, "headers": [(b"content-length", b"0")]}


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        return await lifespan(receive, send)
    body = b""
    while True:
        event = await receive()
        body += event.get("body", b"")
        if not event.get("more_body"):
            break
    await broker.publish(body, queue, persist=True, content_type="application/json")
    await send(ANSWER)
    await send({"type": "http.response.body", "body": b""})


async def lifespan(receive, send):
    await receive()
    await broker.connect()
    await broker.declare_queue(queue)
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await broker.stop()
    await send({"type": "lifespan.shutdown.complete"})
