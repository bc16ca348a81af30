"""`POST /enqueue/bulk`: an array is stored whole or not at all; a stream is stored and answered line by line."""

import json

import pytest
import trio
import trio.testing

from jobpipe.api.bulk import AHEAD, GROUP, MOST, SLICE, Splitter, bulk_stream
from jobpipe.api.spool import SPOOL, Files, Spool
from jobpipe.errors import StoreUnavailable
from tests.api.client import Breakable, open_door

NDJSON = {"Content-Type": "application/x-ndjson"}


async def send_array(door, *jobs):
    return await door.post("/enqueue/bulk", json=list(jobs))


async def send_lines(door, *lines, ending=b"\n"):
    body = b"".join(line + ending for line in lines)
    answer = await door.post("/enqueue/bulk", content=body, headers=NDJSON)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/x-ndjson")
    return [json.loads(line) for line in answer.content.splitlines()]


def line(**job):
    return json.dumps(job).encode()


def head(*headers):
    start = (b"POST /enqueue/bulk HTTP/1.1", b"Host: test", b"Content-Type: application/x-ndjson")
    return b"\r\n".join((*start, *headers, b"", b""))


def unchunked(response):
    """The body of a response in HTTP's chunked coding."""
    left, body = response.partition(b"\r\n\r\n")[2], []
    while left:
        size, _, left = left.partition(b"\r\n")
        body.append(left[: int(size, 16)])
        left = left[int(size, 16) + 2 :]
    return b"".join(body)


# An array


async def test_an_array_is_stored_and_counted(either_door):
    answer = await send_array(either_door, {"id": "a"}, {"id": "b", "payload": 2}, {})

    assert (answer.status_code, answer.json()) == (
        202,
        {"enqueued": 3, "existing": 0, "replaced": 0, "rejected": 0},
    )
    assert (await either_door.get("/jobs/b")).json()["payload"] == 2
    assert await either_door.stored() == 3


async def test_the_same_array_again_makes_no_job_more(either_door):
    await send_array(either_door, {"id": "a"}, {"id": "b"})

    answer = await send_array(either_door, {"id": "a"}, {"id": "b"}, {"id": "c"})

    assert (answer.status_code, answer.json()) == (
        202,
        {"enqueued": 1, "existing": 2, "replaced": 0, "rejected": 0},
    )


async def test_a_job_that_stands_twice_in_an_array_is_one_job(either_door):
    answer = await send_array(either_door, {"id": "a"}, {"id": "a"})

    assert answer.json() == {"enqueued": 1, "existing": 1, "replaced": 0, "rejected": 0}
    assert await either_door.stored() == 1


async def test_an_empty_array_is_no_fault(door):
    answer = await send_array(door)

    assert (answer.status_code, answer.json()) == (
        202,
        {"enqueued": 0, "existing": 0, "replaced": 0, "rejected": 0},
    )


async def test_a_fault_in_one_job_of_an_array_means_that_none_is_stored(either_door):
    jobs = [
        {},
        {},
        {},
        {"max_retries": -1},
        {"tags": ["a", 5]},
        7,
        {"kind": "none"},
        {"backoff": {"cap": -1}},
    ]

    answer = await send_array(either_door, *jobs)

    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    places = [fault["pointer"] for fault in answer.json()["faults"]]
    assert places == ["/3/max_retries", "/4/tags/1", "/5", "/6/kind", "/7/backoff/cap"]
    assert await either_door.stored() == 0


async def test_conflicts_of_an_array_are_listed_and_nothing_is_stored(either_door):
    await send_array(either_door, {"id": "a", "payload": 1}, {"id": "b"}, {"id": "c", "payload": 1})

    answer = await send_array(
        either_door, {"id": "a", "payload": 2}, {"id": "b"}, {"id": "c", "payload": 2}, {"id": "new"}
    )

    assert (answer.status_code, answer.json()["code"], answer.json()["ids"]) == (
        409,
        "id_conflict",
        ["a", "c"],
    )
    assert (await either_door.get("/jobs/new")).status_code == 404


async def test_an_array_with_two_contents_for_one_id_is_refused(either_door):
    answer = await send_array(either_door, {"id": "a", "payload": 1}, {"id": "b"}, {"id": "a", "payload": 2})

    assert (answer.status_code, answer.json()["ids"]) == (409, ["a"])
    assert await either_door.stored() == 0


async def test_an_expired_job_of_an_array_is_known_again_or_refused(door, autojump_clock):
    job = {"id": "a", "expires_at": "2023-11-14T22:14:20Z"}
    await send_array(door, job)
    await trio.sleep(120)

    again = await send_array(door, {}, job)
    other = await send_array(door, {}, job | {"payload": "other"})
    late = await send_array(door, {}, job | {"id": "b"})

    assert (again.status_code, again.json()) == (
        202,
        {"enqueued": 1, "existing": 1, "replaced": 0, "rejected": 0},
    )
    assert (other.status_code, other.json()["ids"]) == (409, ["a"])
    assert (late.status_code, late.json()["faults"][0]["pointer"]) == (422, "/1/expires_at")
    assert await door.stored() == 2


async def test_late_jobs_of_an_array_are_listed_among_the_faults_of_others_in_order(door):
    late = {"expires_at": "2000-01-01T00:00:00Z"}
    answer = await send_array(door, {"priority": "x"}, late, {}, {"max_retries": -1}, late)

    assert answer.status_code == 422
    assert [fault["pointer"] for fault in answer.json()["faults"]] == [
        "/0/priority",
        "/1/expires_at",
        "/3/max_retries",
        "/4/expires_at",
    ]
    assert await door.stored() == 0


@pytest.mark.parametrize("body", [b"", b"[", b"[{}", b"[{},]", b"[nope]", b'[{"id":"\xff"}]', b"[{} {}]"])
async def test_an_array_that_is_not_json_is_refused_with_400(door, body):
    answer = await door.post("/enqueue/bulk", content=body, headers={"Content-Type": "application/json"})

    assert (answer.status_code, answer.json()["code"]) == (400, "not_json")


@pytest.mark.parametrize("body", [b"{}", b"null", b'"a"', b"1", b"[" * 100_000 + b"]" * 100_000])
async def test_what_is_no_array_of_jobs_is_refused_with_422(door, body):
    answer = await door.post("/enqueue/bulk", content=body)

    assert (answer.status_code, answer.json()["faults"][0]["pointer"]) == (422, "")


async def test_an_array_of_too_many_jobs_is_refused(door):
    answer = await door.post("/enqueue/bulk", content=b"[" + b"{}," * MOST + b"{}]")

    assert answer.status_code == 422
    assert str(MOST) in answer.json()["detail"]
    assert await door.stored() == 0


async def test_thousands_of_faults_of_an_array_do_not_make_a_huge_answer(door):
    answer = await send_array(door, *[{"max_retries": "many"}] * 5000)

    assert answer.status_code == 422
    assert len(answer.json()["faults"]) == 100
    assert "only the first 100 faults are listed" in answer.json()["detail"]


async def test_an_array_that_is_too_large_is_refused(door):
    answer = await door.post("/enqueue/bulk", content=b'["%b"]' % (b"x" * door.node.settings.max_body))

    assert (answer.status_code, answer.json()["code"]) == (413, "too_large")


async def test_an_array_that_does_not_fit_into_the_queue_is_refused_whole():
    async with open_door(max_backlog=3) as door:
        answer = await send_array(door, {}, {}, {}, {})

        assert (answer.status_code, answer.json()["code"]) == (503, "queue_full")
        assert answer.headers["retry-after"] == "1"
        assert await door.stored() == 0


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-ndjson+xml", "text/csv"])
async def test_another_media_type_is_refused_with_415(door, content_type):
    answer = await door.post("/enqueue/bulk", content=b"[]", headers={"Content-Type": content_type})

    assert (answer.status_code, answer.json()["code"]) == (415, "unsupported_media_type")
    assert "application/x-ndjson" in answer.json()["detail"]


# A stream


async def test_each_line_is_answered_in_order(either_door):
    await either_door.enqueue(id="taken", payload=1)
    await either_door.enqueue(id="old", payload=1, delay=9)

    told = await send_lines(
        either_door,
        line(id="a"),
        line(id="b", delay=5),
        b"{broken",
        line(id="taken", payload=2),
        line(id="old", payload=1, delay=9),
        line(max_retry=1),
        line(id="a"),
        line(id="c"),
    )

    assert told[0] == {"id": "a", "status": "queued"}
    assert told[1] == {"id": "b", "status": "scheduled"}
    assert (told[2]["code"], told[2]["status"], told[2]["line"]) == ("not_json", 400, 3)
    assert (told[3]["code"], told[3]["status"], told[3]["line"]) == ("id_conflict", 409, 4)
    assert told[4] == {"id": "old", "status": "scheduled"}
    assert (told[5]["code"], told[5]["line"], told[5]["faults"][0]["pointer"]) == ("invalid", 6, "/max_retry")
    assert (told[6]["id"], told[7]) == ("a", {"id": "c", "status": "queued"})
    assert await either_door.stored() == 5


@pytest.mark.parametrize(
    "media_type", ["application/ndjson", "application/jsonl; charset=utf-8", "Application/X-NDJSON"]
)
async def test_a_stream_is_taken_under_its_names(door, media_type):
    answer = await door.post("/enqueue/bulk", content=b"{}\n", headers={"Content-Type": media_type})

    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/x-ndjson"


async def test_line_ends_of_either_kind_and_the_last_one_without(door):
    unix = await send_lines(door, line(id="a"), line(id="b"))
    windows = await send_lines(door, line(id="c"), line(id="d"), ending=b"\r\n")
    answer = await door.post("/enqueue/bulk", content=b'{"id":"e"}\n{"id":"f"}', headers=NDJSON)

    assert [told["id"] for told in unix + windows] == ["a", "b", "c", "d"]
    assert [json.loads(told)["id"] for told in answer.content.splitlines()] == ["e", "f"]


async def test_empty_lines_are_counted_and_not_answered(door):
    told = await send_lines(door, b"", b"nope", b"\r", b"  ", line(id="a"), b"nope", b"")

    assert [one.get("line", one.get("id")) for one in told] == [2, "a", 6]


async def test_an_empty_stream_is_answered_with_nothing(door):
    assert await send_lines(door) == []


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 1000])
async def test_lines_may_be_cut_anywhere(door, parts, size):
    body = "\n".join(json.dumps({"id": f"é{number}"}, ensure_ascii=False) for number in range(5)).encode()

    answer = await door.call(
        "/enqueue/bulk",
        parts(*(body[start : start + size] for start in range(0, len(body), size))),
        headers=NDJSON,
    )

    assert [told["id"] for told in answer.lines] == [f"é{number}" for number in range(5)]


async def test_a_line_that_is_too_long_is_refused_and_the_next_one_taken():
    async with open_door(max_body=100) as door:
        fits = b'{"payload":"%b"}' % (b"x" * 86)
        told = await send_lines(door, fits, fits + b" ", b"x" * 5000, line(id="a"), ending=b"\r\n")

        assert [one.get("code") for one in told] == [None, "too_large", "too_large", None]
        assert [one.get("line") for one in told] == [None, 2, 3, None]
        assert await door.stored() == 2


async def test_a_line_without_an_end_is_not_kept_beyond_the_limit(door):
    splitter = Splitter(100)

    for _ in range(1000):
        splitter.feed(b"x" * 100)
    ((number, kept),) = splitter.end()

    assert (number, len(kept)) == (1, 105)


async def test_lines_that_find_no_room_are_refused_each_by_itself():
    async with open_door(max_backlog=5) as door:
        await door.post("/queues/default/pause")
        told = await send_lines(door, *(line(id=f"j{number}") for number in range(8)))

        assert [one["status"] for one in told] == ["queued"] * 5 + [503] * 3
        assert [one.get("line") for one in told[5:]] == [6, 7, 8]
        assert await door.stored() == 5


async def test_a_node_that_drains_refuses_the_lines_that_come_after(door, parts):
    await door.enqueue(id="held", kind="play", payload="hold")
    await trio.testing.wait_all_tasks_blocked()
    first = parts(line(id="a") + b"\n", line(id="b") + b"\n")

    async def receive():
        message = await first()
        if b'"b"' in message.get("body", b""):
            door.node.drain()
        return message

    answer = await door.call("/enqueue/bulk", receive, headers=NDJSON)

    assert answer.lines[0] == {"id": "a", "status": "queued"}
    assert (answer.lines[1]["code"], answer.lines[1]["line"]) == ("draining", 2)


async def test_a_late_line_is_answered_by_itself_whatever_becomes_of_the_others(monkeypatch):
    """A node that drains still says that it is late; a store that cannot be read still stores the other lines."""
    late = line(id="late", expires_at="2000-01-01T00:00:00Z")
    async with open_door() as door:
        told = await send_lines(door, line(id="a"), late, line(id="b"))

        async def unreadable(_job_id):
            await trio.lowlevel.checkpoint()
            raise StoreUnavailable("the disk is broken")

        with monkeypatch.context() as broken:
            broken.setattr(door.store, "get", unreadable)
            told += await send_lines(door, line(id="c"), late, line(id="d"))
        door.node.drain()
        told += await send_lines(door, line(id="e"), late)

        assert [one.get("code") for one in told] == [
            *(None, "invalid", None),
            *(None, "store_unavailable", None),
            *("draining", "invalid"),
        ]
        assert [one["line"] for one in told if "line" in one] == [2, 2, 1, 2]


async def test_a_store_that_refuses_is_told_for_each_line(autojump_clock):
    store = Breakable()
    async with open_door(store) as door:
        store.refuses = True
        told = await send_lines(door, line(id="a"), b"nope", line(id="b"))
        store.refuses = False

        assert [one["code"] for one in told] == ["store_unavailable", "not_json", "store_unavailable"]
        assert await door.stored() == 0


async def test_a_client_that_hangs_up_in_the_middle_leaves_whole_lines_only(either_door, parts):
    answer = await either_door.call(
        "/enqueue/bulk",
        parts(b'{"id":"a"}\n{"id":"b"}\n{"id":', b'"c"}', whole=False),
        headers=NDJSON,
    )

    assert answer.status == 200
    assert await either_door.stored() == 2
    assert (await either_door.get("/jobs/c")).status_code == 404


async def test_a_client_that_hangs_up_on_a_socket_leaves_whole_lines_only(door):
    async with door.connected() as stream:
        await stream.send_all(head(b"Content-Length: 1000") + b'{"id":"a"}\n{"id":"b"}\n{"id":"c"}')
        answered = b""
        while b'"b"' not in answered:
            answered += await stream.receive_some()

    assert await door.stored() == 2


async def test_a_stream_is_answered_while_it_comes_in(door):
    async with door.connected() as stream:
        await stream.send_all(head(b"Transfer-Encoding: chunked"))
        received = b""
        for number in range(3):
            job = b'{"id":"job-%d"}\n' % number
            await stream.send_all(b"%x\r\n%b\r\n" % (len(job), job))
            while b"job-%d" % number not in received:
                received += await stream.receive_some()
        await stream.send_all(b"0\r\n\r\n")
        while b"0\r\n\r\n" not in received:
            received += await stream.receive_some()

    assert received.count(b'"status":"queued"') == 3


@pytest.mark.slow
async def test_a_stream_of_any_length_is_held_in_part_only(door):
    """At no time more lines are read and not answered than two parts of the stream hold."""
    lines, each = 100_000, 1000
    await door.post("/queues/default/pause")
    answered, read, ahead = 0, 0, 0

    async def receive():
        nonlocal read, ahead
        await trio.lowlevel.checkpoint()
        if read == lines:
            return {"type": "http.request", "body": b"", "more_body": False}
        ahead = max(ahead, read - answered)
        read += each
        return {"type": "http.request", "body": b'{"id":"same"}\n' * each, "more_body": True}

    async def send(message):
        nonlocal answered
        answered += message.get("body", b"").count(b"\n")
        message["body"] = b""  # the caller keeps what was sent
        await trio.lowlevel.checkpoint()

    await door.call("/enqueue/bulk", receive, headers=NDJSON, send=send)

    assert answered == lines
    assert ahead <= 2 * each
    assert await door.stored() == 1


@pytest.mark.slow
async def test_a_client_that_sends_all_before_it_reads_is_served(door):
    """More than sockets hold goes in before anything is taken out, and every answer is there then."""
    lines = 40_000
    job = b"{}" + b" " * 200 + b"!\n"  # refused, so that the answers are long too
    async with door.connected() as stream:
        await stream.send_all(head(b"Content-Length: %d" % (len(job) * lines), b"Connection: close"))
        await stream.send_all(job * lines)
        received = b"".join([part async for part in stream])

    assert unchunked(received).count(b"not_json") == lines


async def test_answers_that_nobody_reads_go_to_a_file_and_come_out_again_in_order():
    spool, sent = Spool(Files()), []
    pieces = [b"%07d\n" % number * 1000 for number in range(3 * SPOOL // 8000)]
    for piece in pieces:
        await spool.write(piece)
    spool.end()

    async def send(message):
        sent.append(message.get("body", b""))
        await trio.lowlevel.checkpoint()

    held = spool.size
    await spool.pour(send)

    spool.close()
    assert held > 2 * SPOOL
    assert b"".join(sent) == b"".join(pieces)
    assert spool.size == 0


async def test_answers_that_are_read_at_once_leave_nothing_behind():
    spool, sizes = Spool(Files()), []

    async def send(message):
        await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(spool.pour, send)
        for _ in range(100):
            await spool.write(b"x" * SPOOL)
            await trio.testing.wait_all_tasks_blocked()
            sizes.append(spool.size)
        spool.end()

    spool.close()
    assert set(sizes) == {0}


async def test_lines_share_commits(door):
    """Those that are read while others are stored go together."""
    await door.post("/queues/default/pause")
    commits = door.node.ledger.commits

    await send_lines(door, *[b"{}"] * GROUP)

    assert commits < door.node.ledger.commits <= commits + GROUP // SLICE


@pytest.mark.parametrize(
    ("part", "most"),
    [(b"{}\n" * 100, 2 * GROUP // 100 + 1), (line(payload="x" * 100_000) + b"\n", 2 * AHEAD // 100_000 + 1)],
    ids=["many lines", "long lines"],
)
async def test_a_stream_is_not_read_far_ahead_of_the_store(autojump_clock, part, most):
    """However long it is, it takes up little memory while the store is slow."""
    parts, store = 0, Breakable()

    async def chunk():
        nonlocal parts
        await trio.lowlevel.checkpoint()
        parts += 1
        return part if parts <= 3 * most else None

    async def write(answers):
        await trio.lowlevel.checkpoint()

    async with open_door(store) as door:
        store.hangs_writing = True
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bulk_stream, door.node, chunk, write)
            await trio.sleep(60)
            read_ahead = parts
            store.hangs_writing = False

    assert 1 < read_ahead <= most
    assert parts == 3 * most + 1


# The same through Quart


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({}, b'[{"id":"a"},{"id":"b"}]'),
        ({}, b'[{"id":"a"},{"max_retry":1}]'),
        ({}, b"{}"),
        ({}, b"["),
        ({"Content-Type": "text/plain"}, b"[]"),
        (NDJSON, b'{"id":"a"}\n\nnope\r\n{"id":"a","payload":1}\n{"id":"b"}'),
        (NDJSON, b""),
    ],
)
async def test_quarts_own_route_gives_the_same_answers(parts, headers, body):
    answers = []
    for through_front in (True, False):
        async with open_door() as door:
            app = door.app if through_front else door.app._app
            answers.append(await door.call("/enqueue/bulk", parts(body), headers=headers, app=app))

    front, quart = answers
    assert (front.status, front.body) == (quart.status, quart.body)
    assert front.headers["content-type"] == quart.headers["content-type"]
