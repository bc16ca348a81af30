"""`GET /metrics`: what it says of a scene of which everything is known, in both formats, within its bounds."""

import json
from collections import Counter

import msgspec
import pytest
import trio
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_openmetrics
from prometheus_client.parser import text_string_to_metric_families as read_text
from trio.testing import wait_all_tasks_blocked

from jobpipe.api import metrics
from jobpipe.api.exposition import CONTENT_TYPES, chosen, written
from jobpipe.api.families import PIECE, SETTLED, families
from jobpipe.api.problems import Code
from jobpipe.api.standing import LIVE, PATIENCE, Standing, standing
from jobpipe.api.traffic import METHODS, Traffic
from jobpipe.engine.tallies import NOBODY
from jobpipe.job import ENDED, Outcome, Status
from tests.api.client import Breakable, open_door


async def told(door):
    """Every sample of the node, by its name and the values of its labels, but for those of the process."""
    pieces = families(door.node, door.app._traffic, await standing(door.node))
    return {
        (one.name.removeprefix("jobpipe_"), *one.labels.values()): one.value
        for piece in pieces
        for one in piece.samples
    }


def named(samples, name):
    """What there is of a metric, without zeros."""
    return {tuple(labels): value for (one, *labels), value in samples.items() if one == name and value}


async def settled_down(door):
    """Return when everything that the node has to write is written."""
    await door.node.ledger.flushed()


async def test_every_counter_of_a_known_scene(autojump_clock):
    async with open_door() as door:
        for number in range(3):
            await door.enqueue(id=f"d{number}", kind="play", queue="mail")
        await door.enqueue(id="f", kind="play", payload="fail", queue="pdf")
        await door.enqueue(id="d0", kind="play", queue="mail")  # is there already
        await door.enqueue(id="later", kind="demo", delay=1000)
        await door.enqueue(id="d0", kind="play", queue="mail", payload="another")
        await door.post("/enqueue", json={}, headers={"host": "elsewhere"})
        await door.post(
            "/enqueue/bulk",
            content=b'{"id":"l1"}\n{"id":"l2","depends_on":["no"]}\nx\n',
            headers={"content-type": "application/x-ndjson"},
        )
        for job_id in ("d0", "d1", "d2", "f", "l1"):
            await door.ended(job_id)
        await door.enqueue(id="c", kind="play", payload="hold, then clean up", queue="mail")
        await door.stage.begun.wait()
        await door.enqueue(id="waits", kind="play", payload="hold", queue="held")
        await door.post("/queues/shut/pause")
        await door.enqueue(id="p", kind="echo", queue="shut")
        await door.post("/jobs/later/cancel")
        await trio.sleep(30)
        await door.post("/jobs/c/cancel")
        await trio.sleep(7)
        seen = await told(door)
        door.stage.cleaned.set()
        door.stage.release.set()
        await door.ended("c")
        await door.ended("waits")
        await settled_down(door)
        last = await told(door)

        assert named(seen, "workers") == {("busy",): 1, ("stuck",): 1}
        assert seen["cancels_ignored",] == 1
        assert named(seen, "jobs") == {
            ("mail", "cancelling"): 1,
            ("held", "running"): 1,
            ("shut", "queued"): 1,
        }
        assert named(seen, "queue_paused") == {("shut",): 1}
        assert 37 <= seen["queue_oldest_seconds", "shut"] < 60
        assert named(last, "jobs_enqueued_total") == {
            ("play", "mail"): 4,
            ("play", "pdf"): 1,
            ("demo", "default"): 1,
            ("echo", "default"): 1,
            ("play", "held"): 1,
            ("echo", "shut"): 1,
        }
        assert named(last, "attempts_total") == {
            ("play", "done"): 4,
            ("play", "fail"): 1,
            ("play", "cancelled"): 1,
            ("echo", "done"): 1,
        }
        assert named(last, "jobs_ended_total") == {
            ("play", "done"): 4,
            ("play", "failed"): 1,
            ("play", "cancelled"): 1,
            ("echo", "done"): 1,
        }
        assert named(last, "wait_seconds_count") == {("mail",): 4, ("pdf",): 1, ("default",): 1, ("held",): 1}
        assert named(last, "run_seconds_count") == {("play",): 6, ("echo",): 1}
        assert 74 <= last["run_seconds_sum", "play"] < 90  # 37 s each, of the two that were held
        assert (last["cancel_seconds_count",], 7 <= last["cancel_seconds_sum",] < 8) == (1, True)
        assert named(last, "refused_total") == {("id_conflict",): 1, ("unknown_dependency",): 1}
        assert last["http_requests_total", "/enqueue", "POST", "2xx"] == 9
        assert named(last, "http_requests_total")["/enqueue", "POST", "4xx"] == 2  # a conflict, a wrong host
        assert last["http_requests_total", "/jobs/<job_id>/cancel", "POST", "2xx"] == 2
        assert last["http_request_seconds_count", "/enqueue"] == 11
        assert last["commit_seconds_count",] == door.node.ledger.commits
        assert named(last, "batch_jobs_sum") == {("adds",): 11, ("outcomes",): 7, ("claims",): 7}
        await _agrees(door, last)


async def _agrees(door, samples):
    """What has ended by the counters has ended in the store, but for the one that was cancelled while it waited."""
    store = Counter[Status]()
    for queue in await door.store.queues():
        store.update(queue.counts)
    counted = {
        status: sum(value for (_, one), value in named(samples, "jobs_ended_total").items() if one == status)
        for status in SETTLED
    }

    assert {status: store[status] for status in SETTLED} == {
        **counted,
        Status.CANCELLED: counted[Status.CANCELLED] + 1,
    }
    assert {status: store[status] for status in LIVE if store[status]} == {Status.QUEUED: 1}
    assert not {*LIVE} & ENDED


async def test_schedules_groups_and_handlers_are_counted_too(autojump_clock):
    async with open_door() as door:
        answers = [
            await door.put("/schedules/s", json={"every": 60, "job": {"kind": "play", "queue": "timed"}}),
            await door.post("/groups", json={"jobs": [{"kind": "play"}, {"kind": "play"}], "then": {}}),
            await door.post("/enqueue/bulk", json=[{"id": "b"}, {"id": "a", "depends_on": ["b"]}]),
        ]
        assert [answer.status_code // 100 for answer in answers] == [2, 2, 2], [one.text for one in answers]
        await trio.sleep(130)
        await settled_down(door)
        seen = await told(door)

        assert named(seen, "schedule_firings_total") == {("fired",): seen["schedule_late_seconds_count",]}
        assert named(seen, "jobs_enqueued_total") == {
            ("play", "timed"): seen["schedule_firings_total", "fired"],
            ("play", "default"): 2,
            ("echo", "default"): 3,
        }
        assert seen["schedule_firings_total", "fired"] >= 2


@pytest.mark.parametrize("fault", ["refuses", "hangs"])
async def test_what_a_store_that_is_away_would_have_to_say_is_left_out(autojump_clock, fault):
    store = Breakable()
    async with open_door(store) as door:
        await door.enqueue(id="a", kind="play", payload="hold")
        setattr(store, fault, True)
        begun = trio.current_time()
        seen = await told(door)
        setattr(store, fault, False)
        again = await told(door)

        assert (seen["store_up",], again["store_up",]) == (0, 1)
        assert trio.current_time() - begun <= PATIENCE
        assert {name for name, *_ in again} - {name for name, *_ in seen} == {
            "jobs",
            "queue_oldest_seconds",
            "queue_paused",
        }


async def test_both_formats_say_the_same(door):
    await door.enqueue(kind="play")
    plain = await door.get("/metrics")
    opened = await door.get("/metrics", headers={"accept": "application/openmetrics-text; version=1.0.0"})

    assert plain.headers["content-type"] == CONTENT_TYPES["text"]
    assert opened.headers["content-type"] == CONTENT_TYPES["openmetrics"]
    assert opened.text.endswith("\n# EOF\n")
    assert opened.text.count("# EOF") == 1
    texts = [*read_text(plain.text)]
    opens = [*read_openmetrics(opened.text)]
    assert len({one.name for one in texts}) == len(texts)
    assert [one.name.removesuffix("_info") for one in texts] == [one.name for one in opens]
    assert not any(sample.name.endswith("_created") for one in opens for sample in one.samples)
    assert {"process_cpu_seconds", "python_gc_collections", "jobpipe_attempts"} <= {one.name for one in opens}


@pytest.mark.parametrize(
    ("accepts", "form"),
    [
        ([], "text"),
        ([("*/*", 1)], "text"),
        ([("application/openmetrics-text;version=1.0.0", 0.5), ("text/plain", 0.3)], "openmetrics"),
        ([("text/plain;version=0.0.4", 0.5), ("application/openmetrics-text", 0.3)], "text"),
        ([("application/openmetrics-text", 0), ("x", 1)], "text"),
        ([("application/openmetrics-text;version=nonsense;", 1)], "openmetrics"),
    ],
)
def test_a_client_gets_what_it_likes_best_whatever_it_says(accepts, form):
    assert chosen(accepts) == form


async def test_all_who_ask_at_once_and_within_a_second_share_one_text(door, monkeypatch, mock_clock):
    asked = []

    async def counted(node):
        asked.append(trio.current_time())
        await trio.sleep(0.2)
        return await standing(node)

    monkeypatch.setattr(metrics, "standing", counted)
    texts, got = metrics.Texts(door.node, Traffic()), []

    async def ask():
        got.append(await texts.get("text"))

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(ask)
        await wait_all_tasks_blocked()
        mock_clock.jump(0.2)
    await ask()
    assert (len(got), len(set(got)), len(asked)) == (21, 1, 1)

    async with trio.open_nursery() as nursery:
        mock_clock.jump(metrics.FRESH)
        nursery.start_soon(ask)
        await wait_all_tasks_blocked()
        mock_clock.jump(0.2)
    assert (len(got), len(asked)) == (22, 2)


def fill(node, traffic, app, kinds=200, queues=200):
    """All that a node can come to count, with more names than it tells apart."""
    tallies = node.tallies
    for number in range(max(kinds, queues)):
        kind, queue = f"kind-{number % kinds}", f"queue-{number % queues}"
        for outcome in Outcome:
            for status in SETTLED:
                tallies.work[kind].ends[outcome, status] += 1
        tallies.waits[queue].add([1.0])
        tallies.blocked[kind].value += 1
        for other in range(queues):
            tallies.enqueued[kind, f"queue-{other}"].value += 1
    tallies.blocked[NOBODY].value += 1
    tallies.rescued.update((True, False))
    tallies.refused.update(code.value for code in Code)
    for rule in app.url_map.iter_rules():
        for method in rule.methods & METHODS:
            for code in (200, 404, 503) if method in ("GET", "POST") else (200,):
                traffic.note(rule.rule, method, code, 0.1)
    labels = sorted({tallies.queues.of(f"queue-{number}") for number in range(queues)})
    return Standing(
        jobs={(queue, status): 1 for queue in labels for status in LIVE},
        oldest=dict.fromkeys(labels, 1.0),
        paused=dict.fromkeys(labels, True),
        unserved={tallies.kinds.of(f"kind-{number}"): 1 for number in range(kinds)},
    )


async def test_however_many_kinds_and_queues_there_are_the_series_are_few_and_come_in_slices(door):
    traffic = Traffic()
    pieces = [*families(door.node, traffic, fill(door.node, traffic, door.app._app))]
    sizes = [len(piece.samples) for piece in pieces]

    assert sum(sizes) <= 5000
    assert max(sizes) <= PIECE
    assert (
        len([*read_text((await written(pieces, "text")).decode())]) == len({one.name for one in pieces}) + 9
    )


async def test_other_tasks_run_while_a_large_text_is_written(door):
    traffic = Traffic()
    pieces = [*families(door.node, traffic, fill(door.node, traffic, door.app._app))]
    turns = 0

    async def count():
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(count)
        await written(pieces, "openmetrics")
        nursery.cancel_scope.cancel()

    assert turns >= len(pieces)


async def test_queues_without_a_label_of_their_own_are_told_together(door):
    for number in range(70):
        await door.node.admission.enqueue(
            [door.node.admission.new_job(b"null", kind="play", queue=f"q{number}", delay=1000)]
        )
    await door.post("/queues/q69/pause")
    seen = await told(door)
    counted = named(seen, "jobs")

    assert (len(counted), counted["other", "scheduled"], sum(counted.values())) == (65, 6, 70)
    assert len([key for key in seen if key[0] == "queue_paused"]) == 64


async def test_no_label_comes_from_what_a_client_made_up(door):
    await door.request("BREW", "/enqueue")
    await door.get("/nothing/like/it")
    text = (await door.get("/metrics")).text

    assert 'method="other",route="none"' in text
    assert 'method="GET",route="none",status="4xx"} 1.0' in text
    assert "BREW" not in text
    assert "/nothing" not in text
    assert json.dumps(msgspec.to_builtins(door.node.name)) not in text
