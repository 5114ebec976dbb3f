"""Posts what is on the queue, with keep-alive, and acks after the 2xx.

With BENCH_POSTGRES it also looks up the chat of each message and notes each delivered message, with SQLAlchemy.
"""

import asyncio
import os
import random
import uuid
from contextlib import suppress

import aiohttp
from faststream import AckPolicy, FastStream
from faststream.rabbit import RabbitMessage
from relay import IN_FLIGHT, SINK, broker, queue
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine

app = FastStream(broker)
session = None
engine = None
TABLES = (
    "CREATE TABLE IF NOT EXISTS chat (id text PRIMARY KEY, state text NOT NULL)",
    "CREATE TABLE IF NOT EXISTS delivered (id uuid PRIMARY KEY, at timestamptz NOT NULL DEFAULT now())",
)
CHAT = "5f1c4ac4c0a8010e01d3e7a1a5b0c111"


@app.on_startup
async def open_session():
    global session, engine
    if url := os.environ["BENCH_POSTGRES"]:
        engine = create_async_engine(url.replace("postgres://", "postgresql+asyncpg://"), pool_size=8)
        for table in TABLES:
            # The other process may make the same table at the same time.
            with suppress(DBAPIError):
                async with engine.begin() as connection:
                    await connection.execute(text(table))
    session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=IN_FLIGHT))


@app.on_shutdown
async def close_session():
    await session.close()
    if engine:
        await engine.dispose()


async def look_up():
    if engine:
        async with engine.connect() as connection:
            await connection.execute(text("SELECT state FROM chat WHERE id = :id"), {"id": CHAT})


async def note():
    if engine:
        async with engine.begin() as connection:
            await connection.execute(text("INSERT INTO delivered (id) VALUES (:id)"), {"id": uuid.uuid4()})


async def body_as_it_came(message: RabbitMessage):
    return message.body


@broker.subscriber(queue, decoder=body_as_it_came, ack_policy=AckPolicy.NACK_ON_ERROR)
async def deliver(body: bytes):
    await look_up()
    wait = 0.25
    while True:
        try:
            async with session.post(SINK, data=body, headers={"content-type": "application/json"}) as answer:
                await answer.read()
                if answer.status < 300:
                    return await note()
        except aiohttp.ClientError:
            pass  # It is tried again, as after any answer but 2xx.
        await asyncio.sleep(wait * random.random())
        wait = min(wait * 2, 30)
