"""Clients that enqueue, cancel and retry until their service drains or is gone, and note what they are told."""

import json
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from http import HTTPStatus
from typing import Any

import httpx
import trio

from tests.process.book import EVERY, LIMITED, MOST, MOST_OF_KEY, ORDERED, TICK, Book, Whole
from tests.process.running import client

GONE = (httpx.NetworkError, httpx.RemoteProtocolError)
"""What a client meets whose service is killed."""


class Drains(Exception):  # noqa: N818 - an answer, and no fault
    """The service has said that it takes nothing more."""


class Unavailable(Exception):  # noqa: N818 - an answer, and no fault
    """The service has said that it could store nothing just now."""


REFUSALS = {"draining": Drains, "store_unavailable": Unavailable}


async def rule(http: httpx.AsyncClient, book: Book) -> None:
    """Tell a service the limits of a queue, the order of another, and a schedule, unless it knows them."""
    if book.ruled:
        return
    limits = {"max_running": MOST, "per_key": {"max_running": MOST_OF_KEY}}
    schedule = {"every": EVERY, "overlap": "queue", "catch_up": "all", "limit": 1000}
    schedule["job"] = {"kind": "work", "payload": {}, "max_retries": 5}
    rules: Mapping[str, object] = {
        f"/queues/{LIMITED}": limits,
        f"/queues/{ORDERED}": {"per_key": {"ordered": True}},
        f"/schedules/{TICK}": schedule,
    }
    for path, body in rules.items():
        answer = await http.put(path, json=body)
        assert answer.is_success, answer.text
    book.ruled = True


async def rest(http: httpx.AsyncClient, book: Book) -> None:
    """Have the schedule fire no more, and note how it stands."""
    if book.ruled:
        answer = await http.post(f"/schedules/{TICK}/pause")
        assert answer.is_success, answer.text
        book.schedule = answer.json()


def note(book: Book, whole: Whole, answer: httpx.Response) -> None:
    """Note what was answered to a request for several jobs: they are stored, or their group takes no more."""
    if answer.status_code == HTTPStatus.CONFLICT and answer.json()["code"] == "group_closed":
        book.refuse(whole)
        return
    assert answer.status_code in (200, 202), answer.text
    book.whole(whole)


async def close(book: Book, group: str, post: Callable[[str], Awaitable[httpx.Response]]) -> None:
    """Have a group take no more jobs."""
    book.going_to_close(group)
    answer = await post(f"/groups/{group}/close")
    assert answer.status_code == 200, answer.text
    book.closed.add(group)


class Clients:
    """Use a service from several tasks at once until it drains or is gone."""

    def __init__(self, book: Book, url: str, seed: str, *, pause: float = 0.02) -> None:
        """`pause`: for how many seconds each rests at most, between two requests."""
        self._book, self._seed, self._pause = book, seed, pause
        self._http = client(url)
        self._enough = False

    def enough(self) -> None:
        """Ask nothing more; what is under way is waited for."""
        self._enough = True

    async def run(self) -> None:
        """Return when no request is taken any more, or after `enough`."""
        async with self._http, trio.open_nursery() as nursery:
            for verb in (
                self._repeat,
                self._single,
                self._single,
                self._array,
                self._stream,
                self._flow,
                self._in_order,
                self._group,
                self._open_or_close,
                self._join,
                self._cancel,
                self._retry,
            ):
                nursery.start_soon(self._until_gone, verb, random.Random(f"{self._seed} {verb.__name__}"))

    async def _until_gone(self, verb: Callable[[random.Random], Awaitable[None]], rng: random.Random) -> None:
        with suppress(Drains, *GONE):
            while not self._enough:
                with suppress(Unavailable):  # it is sent once more in time
                    await verb(rng)
                await self._http.get("/health")  # for those who found nothing to do
                await trio.sleep(rng.uniform(0, self._pause))

    async def _post(self, path: str, body: object = None) -> httpx.Response:
        answer = await self._http.send(self._request(path, Parts([json.dumps(body).encode()])))
        if answer.status_code == HTTPStatus.SERVICE_UNAVAILABLE:
            _raise_if_refused(answer.json())
        return answer

    def _request(self, path: str, parts: "Parts", content_type: str = "application/json") -> httpx.Request:
        url = self._http.base_url.join(path)
        return httpx.Request(
            "POST",
            url,
            headers={
                "Host": url.netloc.decode(),
                "Content-Type": content_type,
                "Transfer-Encoding": "chunked",
            },
            stream=parts,
            extensions={"timeout": self._http.timeout.as_dict()},
        )

    async def _repeat(self, rng: random.Random) -> None:
        """Send once more what was not answered: stored or not, one job comes of it."""
        for job in self._book.unanswered[:5]:
            answer = await self._post("/enqueue", job)
            assert answer.status_code in (200, 202), answer.text
            self._book.acknowledged[job["id"]] = None

        for whole in list(self._book.wholes.values())[:2]:
            await self._send(whole)

    async def _flow(self, rng: random.Random) -> None:
        await self._send(self._book.flow(rng))

    async def _in_order(self, rng: random.Random) -> None:
        await self._send(self._book.in_order(rng))

    async def _group(self, rng: random.Random) -> None:
        await self._send(self._book.group(rng))

    async def _open_or_close(self, rng: random.Random) -> None:
        """Open a group more, or close one, and come too late for it; some stay open for a while."""
        groups = self._book.to_close()
        if not groups or rng.random() < 2 / (1 + len(groups)):
            await self._send(self._book.open_group(rng))
            return
        group = rng.choice(groups)
        await close(self._book, group, self._post)
        await self._send(self._book.joining(rng, group))

    async def _join(self, rng: random.Random) -> None:
        """Add jobs to one of the latest groups, which may be closed by then."""
        if groups := self._book.opened()[-4:]:
            await self._send(self._book.joining(rng, rng.choice(groups)))

    async def _send(self, whole: Whole) -> None:
        note(self._book, whole, await self._post(whole.path, whole.body))

    async def _single(self, rng: random.Random) -> None:
        job = self._book.new(rng)
        answer = await self._post("/enqueue", job)
        assert answer.status_code in (200, 202), answer.text
        self._book.acknowledged[job["id"]] = None

    async def _array(self, rng: random.Random) -> None:
        jobs = [self._book.new(rng) for _ in range(rng.randint(1, 20))]
        answer = await self._post("/enqueue/bulk", jobs)
        assert answer.status_code == 202, answer.text
        assert sum(answer.json().values()) == len(jobs)
        self._book.acknowledged.update({job["id"]: None for job in jobs})

    async def _stream(self, rng: random.Random) -> None:
        jobs = [self._book.new(rng) for _ in range(rng.randint(1, 20))]
        request = self._request("/enqueue/bulk", Parts(_cut(jobs, rng)), "application/x-ndjson")
        answer, refused = await self._http.send(request, stream=True), []
        try:
            async for line in answer.aiter_lines():
                receipt = json.loads(line)
                if "id" in receipt:
                    self._book.acknowledged[receipt["id"]] = None
                else:
                    refused.append(receipt)
        finally:
            await answer.aclose()
        for problem in refused:
            _raise_if_refused(problem)
            raise AssertionError(problem)

    async def _cancel(self, rng: random.Random) -> None:
        if not (ids := self._book.of("cancel")):
            return
        job_id = rng.choice(ids[-5:])  # older ones have ended by now
        answer = await self._post(f"/jobs/{job_id}/cancel?wait={rng.choice((0, 1))}")
        assert answer.status_code in (200, 202, 409), answer.text
        if answer.status_code == 200:
            assert answer.json()["status"] == "cancelled"
            self._book.cancelled[job_id] = time.monotonic()

    async def _retry(self, rng: random.Random) -> None:
        if not (ids := self._book.of("retry")):
            return
        job_id, asked_at = rng.choice(ids), time.monotonic()
        answer = await self._post(f"/jobs/{job_id}/retry")
        assert answer.status_code in (202, 409), answer.text
        if answer.status_code == 202:
            self._book.retried[job_id] = asked_at


def _raise_if_refused(problem: Mapping[str, Any]) -> None:
    if refusal := REFUSALS.get(problem["code"]):
        raise refusal


def _cut(jobs: Sequence[Mapping[str, Any]], rng: random.Random) -> Iterator[bytes]:
    """Jobs as NDJSON, cut anywhere but where the lines end."""
    rest = b"".join(json.dumps(job).encode() + b"\n" for job in jobs)
    while rest:
        size = rng.randint(1, 1000)
        yield rest[:size]
        rest = rest[size:]


class Parts(httpx.AsyncByteStream):
    """The body of a request, sent part by part. Not a generator: those httpx leaves open when a request breaks off."""

    def __init__(self, parts: Iterable[bytes]) -> None:
        self._parts = iter(parts)

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        await trio.lowlevel.checkpoint()
        for part in self._parts:
            return part
        raise StopAsyncIteration
