"""Takes posts and answers once the broker has confirmed."""

from relay import deliver


def app(environ, start_response):
    body = environ["wsgi.input"].read()
    deliver.delay(body.decode())
    start_response("202 Accepted", [("content-length", "0")])
    return [b""]
