"""What must have come of the jobs, judged by what clients were answered and what handlers wrote, and nothing else."""

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from tests.process.book import EVERY, LIMITED, MOST, MOST_OF_KEY, TICK, Book
from tests.process.clients import close, note, rest
from tests.process.running import PATIENCE, Line, Service

ENDED = {"done", "failed", "cancelled"}


async def all_come_to_an_end(service: Service, book: Book) -> dict[str, Line]:
    """Send once more what was never answered, and wait for every job, as long as some end; returns them all.

    Groups that are open are closed before.
    """
    await rest(service.http, book)
    for job in book.unanswered:
        answer = await service.http.post("/enqueue", json=job)
        assert answer.status_code in (200, 202), answer.text
        book.acknowledged[job["id"]] = None
    for whole in list(book.wholes.values()):
        note(book, whole, await service.http.post(whole.path, json=whole.body))
    for group in book.to_close():
        await close(book, group, service.http.post)
    left = math.inf
    while unended := [
        job_id for job_id, job in (await service.all_jobs()).items() if job["status"] not in ENDED
    ]:
        assert len(unended) < left, [await service.job(job_id) for job_id in unended[:20]]
        left = len(unended)
        for job_id in unended:
            await service.job(job_id, wait=PATIENCE / 2)
    jobs = await service.all_jobs()
    for job_id in jobs:
        if job_id.startswith(f"{TICK}@"):
            book.stored("plain", {"id": job_id})
    return jobs


Deaths = Mapping[int, float]
"""When processes were seen dead, by pid, in the time of `time.monotonic`."""


def check(
    book: Book,
    jobs: Mapping[str, Line],
    lines: Sequence[Line],
    *,
    uncounted: int = 0,
    deaths: Deaths | None = None,
) -> None:
    """Every acknowledged job is there and has ended as its last run says, and no two runs of one overlap.

    Attempts that are counted were runs, where nobody cancels or retries. So many jobs (`uncounted`) may have one more:
    a kill can fall between the stored start of an attempt and the first line of its handler. Where processes ran side
    by side, `deaths` says which of them were killed; else each is dead when the next one begins.
    """
    assert {job_id: job["status"] for job_id, job in jobs.items() if job["status"] not in ENDED} == {}
    assert_nobody_joined_a_closed_group(book, jobs)
    assert set(jobs) == set(book.acknowledged)
    by_job = defaultdict[str, list[Line]](list)
    for line in lines:
        by_job[line["job"]].append(line)
    for job_id, job in jobs.items():
        check_job(book, job, by_job[job_id], deaths)
    check_rules(book, jobs, lines, by_job, deaths)
    uncancelled = [job_id for job_id in jobs if book.roles[job_id] in ("plain", "once")]
    too_many = [job_id for job_id in uncancelled if jobs[job_id]["attempt"] > count_of_starts(by_job[job_id])]
    assert len(too_many) <= uncounted, too_many


def check_rules(
    book: Book,
    jobs: Mapping[str, Line],
    lines: Sequence[Line],
    by_job: Mapping[str, Sequence[Line]],
    deaths: Deaths | None,
) -> None:
    """Limits and orders held, what waits for others ran behind them, and each group and each firing was heeded once."""
    pids = [line["pid"] for line in lines]
    killed = set(pids[:-1]) - set(pids[-1:]) if deaths is None else set(deaths)
    for job_id, (others, needs) in book.behind.items():
        if needs == "done" and any(jobs[one]["status"] != "done" for one in others):
            assert (jobs[job_id]["status"], by_job[job_id]) == ("cancelled", []), jobs[job_id]
        else:
            assert jobs[job_id]["status"] in ("done", "failed"), jobs[job_id]
            if by_job[job_id] or not died_unheard(jobs[job_id]):
                assert_behind(by_job[job_id], [by_job[one] for one in others])
    for job_id, members in book.callbacks.items():
        assert jobs[job_id]["status"] == "done", f"{job_id} was never called: {jobs[job_id]}"
        assert_behind(by_job[job_id], [by_job[one] for one in members])
        assert_not_doubled(by_job[job_id], killed)
    for group, job_id in book.groups.items():
        assert_called_back_after_the_close(book, group, by_job[job_id])
    if book.ruled:
        assert_within_limits(book, lines, deaths)
        for key, order in book.orders.items():
            assert_in_order(key, order, lines, deaths)
        firings = [job_id for job_id in jobs if job_id.startswith(f"{TICK}@")]
        assert_none_lost(firings, book.schedule)
        for job_id in firings:
            assert jobs[job_id]["status"] == "done", jobs[job_id]
            assert_not_doubled(by_job[job_id], killed)


def died_unheard(job: Line) -> bool:
    """Whether a job has failed with its node, which may have died between its stored start and its first line."""
    return bool(job["status"] == "failed" and job["error"]["type"] == "NodeDied")


def assert_within_limits(book: Book, lines: Sequence[Line], deaths: Deaths | None) -> None:
    """At no time did more jobs of the limited queue run, nor more of one of its keys, than may."""
    running: dict[str, Line] = {}
    for line in lines:
        queue, _ = book.where(line["job"])
        if queue != LIMITED:
            continue
        running.pop(line["job"], None)
        if line["event"] == "start":
            running = {job: one for job, one in running.items() if not is_dead(one["pid"], line, deaths)}
            running[line["job"]] = line
            keys = Counter(book.where(job)[1] for job in running)
            assert len(running) <= MOST, running
            assert max(keys.values()) <= MOST_OF_KEY, running


def assert_in_order(key: str, order: Sequence[str], lines: Iterable[Line], deaths: Deaths | None) -> None:
    """Of an ordered key one job ran at a time, in the order of arrival, each with all its runs before the next began.

    So after a retry, which may have to wait, the same job runs again. After a kill -9 too: whatever had not been stored
    of the run that was broken off, even if its handler had written its end, that job runs again before the next one
    begins; or never, where it has failed with its node or was to be cancelled, and then the next one begins when the
    process is dead. A job that was cancelled while it waited has no runs, and is passed over.
    """
    place = {job_id: number for number, job_id in enumerate(order)}
    for before, line in itertools.pairwise(line for line in lines if line["job"] in place):
        last, job_id = before["job"], line["job"]
        if job_id == last:
            continue
        assert place[last] < place[job_id], (
            f"key {key}: {job_id} ran after {last}, which is behind it: {line}"
        )
        over = before["event"] != "start" or is_dead(before["pid"], line, deaths)
        assert over, f"key {key}: {job_id} began while {last} ran: {before}, {line}"


def assert_behind(written: Sequence[Line], others: Iterable[Sequence[Line]]) -> None:
    """A job ran, and began after all runs of the others had ended for good."""
    assert written, "it never ran"
    for before in others:
        early = [line for line in before if line["at"] > written[0]["at"]]
        assert early == [], (
            f"{written[0]['job']} began before {early[0]['job']} had ended: {written}, {before}"
        )


def assert_not_doubled(written: Sequence[Line], killed: Collection[int]) -> None:
    """A job ran again only where its run was broken off, or its process was killed before it could say so."""
    runs = [line for line in written if line["event"] == "start"]
    ends = {line["claim"]: line["event"] for line in written if line["event"] != "start"}
    for run in runs[:-1]:
        broken_off = ends.get(run["claim"], "cancelled") == "cancelled" or run["pid"] in killed
        assert broken_off, f"{run['job']} ran again although it had ended: {written}"


def assert_nobody_joined_a_closed_group(book: Book, jobs: Collection[str]) -> None:
    """No job that was sent after the answer to a close is there, nor one that was answered to come too late.

    Nothing was refused before anybody asked that the group be closed. A request that is under way at the same time as
    the close may come before it or after it; what was answered says which.
    """
    for job_id in book.late:
        assert job_id not in jobs, f"{job_id} joined {book.sent[job_id]['group']}, which was closed before"
    for job_id, at in book.refused.items():
        group = book.sent[job_id]["group"]
        assert job_id not in jobs, f"{job_id} joined {group}, though it was answered that it could not"
        assert at > book.closing.get(group, math.inf), f"{job_id} was refused while {group} was open"


def assert_called_back_after_the_close(book: Book, group: str, written: Sequence[Line]) -> None:
    """The job that waits for an open group began after somebody had asked that it be closed, and knows all its members.

    That it runs once, behind all of them, is promised of each group. After a kill -9 it may run again, as each job.
    """
    then, members = book.groups[group], len(book.callbacks[book.groups[group]])
    for line in written:
        assert line["at"] > book.closing[group], f"{then} began before {group} was closed: {line}"
        told = line.get("members", members)
        assert told == members, f"{then} was told of {told} jobs of {group}, which has {members}"


def assert_none_lost(firings: Iterable[str], schedule: Mapping[str, Any]) -> None:
    """Each firing made a job, from the first one after the schedule was put to the last one."""
    times = sorted(_seconds(job_id.partition("@")[2]) for job_id in firings)
    first = math.floor(_seconds(schedule["created_at"])) + EVERY
    assert times == [first + number * EVERY for number in range(len(times))], times
    assert schedule["missed"] == 0
    assert (schedule["last_at"] is None) == (not times)
    if times:
        assert _seconds(schedule["last_at"]) == times[-1]


def _seconds(time: str) -> float:
    return datetime.fromisoformat(time).timestamp()


def assert_held_within_limits(jobs: Iterable[Mapping[str, Any]]) -> None:
    """Of the jobs in a database not more are held than may, in the limited queue and of each of its keys."""
    keys = Counter(job["key"] for job in jobs if job["held"] and job["queue"] == LIMITED)
    assert keys.total() <= MOST, keys
    assert max(keys.values(), default=0) <= MOST_OF_KEY, keys


def check_job(book: Book, job: Line, written: Sequence[Line], deaths: Deaths | None = None) -> None:
    """Judge one job by the lines of its runs."""
    assert_no_overlap(written, deaths)
    assert_the_last_run_stands(job, written)
    job_id = job["id"]
    if book.roles[job_id] == "once":
        assert_not_repeated(job, written)
    if (at := book.cancelled.get(job_id)) is not None:
        assert job["status"] == "cancelled", job
        assert [line for line in written if line["at"] > at] == []
    if (at := book.retried.get(job_id)) is not None:
        assert [line for line in written if line["event"] == "start" and line["at"] > at], job


def assert_one_process_at_a_time(lines: Sequence[Line]) -> None:
    """What one has written stands before all that the next one has written."""
    pids = [pid for pid, _ in itertools.groupby(line["pid"] for line in lines)]
    assert len(pids) == len(set(pids))


def count_of_starts(written: Iterable[Line]) -> int:
    """How often a job's handler began."""
    return [line["event"] for line in written].count("start")


def assert_no_overlap(written: Sequence[Line], deaths: Deaths | None = None) -> None:
    """A run begins after the one before has ended, by itself or with its process, and with a higher claim number."""
    running = None
    claim = 0
    for line in written:
        if line["event"] == "start":
            assert running is None or is_dead(running["pid"], line, deaths), written
            assert line["claim"] > claim, written
            running, claim = line, line["claim"]
        else:
            assert running is not None, written
            assert running["claim"] == line["claim"], written
            running = None


def is_dead(pid: int, line: Line, deaths: Deaths | None) -> bool:
    """Whether a process was dead when this line was written."""
    if deaths is None:
        return pid != int(line["pid"])
    return pid in deaths and deaths[pid] < line["at"]


def assert_the_last_run_stands(job: Line, written: Sequence[Line]) -> None:
    """A job that is done has the result of its last run; one that failed did so in that, or with its node."""
    if job["status"] == "done":
        assert written, job
        assert (written[-1]["event"], written[-1]["claim"]) == ("done", job["result"]), (job, written)
    if job["status"] == "failed" and job["error"]["type"] != "NodeDied":
        assert written[-1]["event"] == "failed", (job, written)


def assert_not_repeated(job: Line, written: Sequence[Line]) -> None:
    """A run that the end of its process left open is the last one, and the job has failed."""
    for line, following in itertools.pairwise(written):
        assert line["event"] != "start" or following["event"] != "start", written
    if written and written[-1]["event"] == "start":
        assert (job["status"], job["error"]["type"]) == ("failed", "NodeDied"), written


def open_runs(lines: Iterable[Line]) -> set[str]:
    """The jobs of these lines whose last run was begun and not ended."""
    last = {line["job"]: line["event"] for line in lines}
    return {job_id for job_id, event in last.items() if event == "start"}
