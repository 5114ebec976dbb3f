"""Posts what is on the queue, with keep-alive, and acks after the 2xx."""

import asyncio
import random

import aiohttp
from faststream import AckPolicy, FastStream
from faststream.rabbit import RabbitMessage
from relay import IN_FLIGHT, SINK, broker, queue

app = FastStream(broker)
session = None


@app.on_startup
async def open_session():
    global session
    session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=IN_FLIGHT))


@app.on_shutdown
async def close_session():
    await session.close()


async def body_as_it_came(message: RabbitMessage):
    return message.body


@broker.subscriber(queue, decoder=body_as_it_came, ack_policy=AckPolicy.NACK_ON_ERROR)
async def deliver(body: bytes):
    wait = 0.25
    while True:
        try:
            async with session.post(SINK, data=body, headers={"content-type": "application/json"}) as answer:
                await answer.read()
                if answer.status < 300:
                    return
        except aiohttp.ClientError:
            pass  # It is tried again, as after any answer but 2xx.
        await asyncio.sleep(wait * random.random())
        wait = min(wait * 2, 30)
