"""What somebody writes in Python against the generated client; run by the Python that has generated it."""

import datetime as dt
import sys

from client import Client
from client.api.enqueue import enqueue_job, enqueue_jobs
from client.api.jobs import cancel_job, delete_job, get_job, list_jobs
from client.api.queues import pause_queue
from client.models import (
    BackoffRequest,
    BulkReceipt,
    EnqueueRequest,
    JobList,
    JobView,
    ProblemDetails,
    QueueView,
)

with Client(base_url=sys.argv[1]) as client:
    # Only what this job is about: everything else may be left out.
    job = EnqueueRequest(id="py-1", payload={"to": "a@b.c"})
    enqueued = enqueue_job.sync_detailed(client=client, body=job)
    assert enqueued.status_code == 202
    assert isinstance(enqueued.parsed, JobView)
    assert enqueued.parsed.id == "py-1"

    ended = get_job.sync("py-1", client=client, wait=10)
    assert isinstance(ended, JobView)
    assert (ended.status, ended.result) == ("done", {"to": "a@b.c"})

    later = dt.datetime(2099, 1, 1, tzinfo=dt.UTC)
    several = enqueue_jobs.sync(
        client=client,
        body=[
            EnqueueRequest(id="py-2", delay="1m", backoff=BackoffRequest(base=5), tags=["weekly"]),
            EnqueueRequest(id="py-3", run_at=later),
        ],
    )
    assert isinstance(several, BulkReceipt)
    assert (several.enqueued, several.existing) == (2, 0)

    page = list_jobs.sync(client=client, tag="weekly")
    assert isinstance(page, JobList)
    assert ([one.id for one in page.jobs], page.next_cursor) == (["py-2"], None)

    refused = enqueue_job.sync(client=client, body=EnqueueRequest(id="py-1", payload="another"))
    assert isinstance(refused, ProblemDetails)
    assert refused.code == "id_conflict"

    paused = pause_queue.sync("mail", client=client)
    assert isinstance(paused, QueueView)
    assert paused.paused
    cancelled = cancel_job.sync("py-2", client=client)
    assert isinstance(cancelled, JobView)
    assert cancelled.status == "cancelled"
    assert delete_job.sync_detailed("py-2", client=client).status_code == 204

print("works")  # noqa: T201 - what the test waits for
