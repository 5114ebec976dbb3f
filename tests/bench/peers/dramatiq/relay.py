"""A relay as one would write it with Dramatiq: one actor on a quorum queue, confirms, retries with backoff. Keeps no order."""

import os

import dramatiq
import urllib3
from dramatiq.brokers.rabbitmq import RabbitmqBroker


class QuorumBroker(RabbitmqBroker):
    """Dramatiq declares classic queues; only the arguments differ. Quorum queues know no priorities."""

    def _build_queue_arguments(self, queue_name):
        return {**super()._build_queue_arguments(queue_name), "x-queue-type": "quorum"}


broker = QuorumBroker(url=os.environ["BENCH_AMQP"], confirm_delivery=True)
dramatiq.set_broker(broker)

pool = urllib3.PoolManager(maxsize=int(os.environ["BENCH_IN_FLIGHT"]), retries=False)
SINK = os.environ["BENCH_SINK"]


@dramatiq.actor(queue_name="relay", max_retries=None, min_backoff=250, max_backoff=30_000)
def deliver(body):
    answer = pool.request("POST", SINK, body=body.encode(), headers={"content-type": "application/json"})
    if answer.status >= 300:
        raise RuntimeError(f"the destination answered {answer.status}")
