"""A relay as one would write it with Celery: one task, late acks, quorum queue, retries with backoff. Keeps no order."""

import os

import urllib3
from celery import Celery

app = Celery("relay", broker=os.environ["BENCH_AMQP"].replace("amqp://", "pyamqp://"))
app.conf.update(
    task_default_queue="relay",
    task_default_exchange_type="topic",
    task_default_queue_type="quorum",
    worker_detect_quorum_queues=True,
    broker_transport_options={"confirm_publish": True},
    broker_pool_limit=64,
    task_default_delivery_mode="persistent",
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    task_ignore_result=True,
    worker_prefetch_multiplier=2,
    worker_enable_remote_control=False,
)

pool = urllib3.PoolManager(maxsize=int(os.environ["BENCH_IN_FLIGHT"]), retries=False)
SINK = os.environ["BENCH_SINK"]


@app.task(autoretry_for=(Exception,), retry_backoff=True, retry_backoff_max=30, max_retries=None)
def deliver(body):
    answer = pool.request("POST", SINK, body=body.encode(), headers={"content-type": "application/json"})
    if answer.status >= 300:
        raise RuntimeError(f"the destination answered {answer.status}")
