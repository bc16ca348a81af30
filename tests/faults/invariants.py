"""What holds in every store at every moment, asked in SQL of a file that no process has open."""

from pathlib import Path

import apsw

EACH_EMPTY = {
    "the counts are those of the rows": (
        "select queue, state, sum(jobs), sum(size) from ("
        "select queue, state, jobs, size from counts union all "
        "select queue, iif(held = 1, 'held', status), -1, -size from jobs) "
        "group by queue, state having sum(jobs) <> 0 or sum(size) <> 0"
    ),
    "a held job has a node that is known": (
        "select id from jobs where held = 1 and (node is null or node not in (select node from nodes))"
    ),
    "a held job waits for a worker, runs, or is being cancelled": (
        "select id, status from jobs where held = 1 and status not in ('queued', 'running', 'cancelling')"
    ),
    "what runs or is being cancelled is held": (
        "select id, status from jobs where held = 0 and status in ('running', 'cancelling')"
    ),
    "a job has an end when it has ended, and only then": (
        "select id, status, finished_at from jobs "
        "where (finished_at is not null) <> (status in ('done', 'failed', 'cancelled', 'expired'))"
    ),
    "no job has more attempts than claims": "select id, attempt, claim from jobs where attempt > claim and claim > 0",
    "an attempt belongs to a job and was claimed": (
        "select attempts.seq from attempts left join jobs using (seq) "
        "where jobs.seq is null or attempts.claim > jobs.claim"
    ),
    "a job that ended ended after it was made": "select id from jobs where finished_at < created_at - 90000",
    "what is shown as running was begun": "select id from jobs where status = 'running' and started_at is null",
    "the totals are the sums of the counts": (
        "select state, sum(jobs), sum(size) from ("
        "select state, jobs, size from counts union all select state, -jobs, -size from totals) "
        "group by state having sum(jobs) <> 0 or sum(size) <> 0"
    ),
    "each job's queue is known": "select id from jobs where queue not in (select queue from counts)",
    "no job that waits has a result": (
        "select id from jobs where status in ('queued', 'scheduled') and result is not null"
    ),
}


def broken_invariants(path: Path) -> list[str]:
    """What does not hold, with an example each."""
    connection = apsw.Connection(str(path))
    try:
        found = connection.execute("pragma integrity_check").get
        broken = [] if found == "ok" else [f"integrity: {found}"]
        for promise, query in EACH_EMPTY.items():
            if (row := connection.execute(query).fetchone()) is not None:
                broken.append(f"{promise}: {row}")
        return broken
    finally:
        connection.close()
