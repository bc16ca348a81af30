"""What must have come of the jobs, judged by what clients were answered and what handlers wrote, and nothing else."""

import itertools
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from tests.process.clients import Book
from tests.process.running import PATIENCE, Line, Service

ENDED = {"done", "failed", "cancelled"}


async def all_come_to_an_end(service: Service, book: Book) -> dict[str, Line]:
    """Send once more what was never answered, and wait for every job, as long as some end; returns them all."""
    for job in book.unanswered:
        answer = await service.http.post("/enqueue", json=job)
        assert answer.status_code in (200, 202), answer.text
        book.acknowledged[job["id"]] = None
    left = math.inf
    while unended := [
        job_id for job_id, job in (await service.all_jobs()).items() if job["status"] not in ENDED
    ]:
        assert len(unended) < left, "nothing has ended in all that time"
        left = len(unended)
        for job_id in unended:
            await service.job(job_id, wait=PATIENCE / 2)
    return await service.all_jobs()


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
    assert set(jobs) == set(book.acknowledged)
    by_job = defaultdict(list)
    for line in lines:
        by_job[line["job"]].append(line)
    for job_id, job in jobs.items():
        check_job(book, job, by_job[job_id], deaths)
    uncancelled = [job_id for job_id in jobs if book.roles[job_id] in ("plain", "once")]
    too_many = [job_id for job_id in uncancelled if jobs[job_id]["attempt"] > count_of_starts(by_job[job_id])]
    assert len(too_many) <= uncounted, too_many


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
