"""A relay as one would write it with FastStream: a quorum queue over aio-pika, confirms, acks on success. Keeps no order."""

import os

from faststream.rabbit import Channel, QueueType, RabbitBroker, RabbitQueue

PROCESSES = 2
IN_FLIGHT = int(os.environ["BENCH_IN_FLIGHT"]) // PROCESSES
SINK = os.environ["BENCH_SINK"]

broker = RabbitBroker(
    os.environ["BENCH_AMQP"],
    default_channel=Channel(prefetch_count=IN_FLIGHT, publisher_confirms=True),
    logger=None,
)
queue = RabbitQueue("relay", queue_type=QueueType.QUORUM, durable=True)
