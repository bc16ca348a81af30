"""Jobs that are added to groups which are there already: to open ones, or by a job of the group that runs.

Whoever adds locks the row of the group as a foreign key does, and looks at it in a new statement. Adds do not wait for
one another, nor for who closes the group. Whoever ends it has to have the row alone, and looks for members then: so a
job that was added is seen, or it is not added.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import msgspec

from jobpipe.job import NewJob
from jobpipe.store.base import STORED, Receipt
from jobpipe.store.verbs.blocked import as_json
from jobpipe.store.verbs.transaction import Transaction

# Only of groups that may take a job: whoever is about to end one must not be kept from it by what is refused anyhow.
_SHARE = """
select g.id
from groups g
where g.id in {each ids}
    and g.ended_at is null
    and (
        (g.closed_at is null and g.open_until > :since)
        or g.grp in (
            select m.grp
            from jobs j join members m on m.seq = j.seq
            where j.id in {each parents} and m.ended is null
        )
    )
order by g.grp
{share lock}
"""
_STANDING = """
select g.id, g.grp, g.open_until, g.closed_at, g.ended_at, j.id
from groups g left join jobs j on j.seq = g.callback
where g.id in {each ids}
"""
_RUNNING = """
select j.id, m.grp
from jobs j join members m on m.seq = j.seq
where j.id in {each ids} and m.grp {among grps} and m.ended is null
"""
_JOIN = """
insert into members (grp, created_at, seq)
select joined.grp, j.created_at, j.seq
from {rows joined: id text, grp bigint} join jobs j on j.id = joined.id
where true
returning seq
"""

# The groups for which some jobs wait, or jobs for which these wait.
_BEHIND = """
with recursive behind (seq) as (
    select seq
    from jobs
    where id in {each ids}
    union
    select w.on_seq
    from behind b join waits w on w.seq = b.seq
)
select g.id, g.grp
from behind b join groups g on g.callback = b.seq
where g.ended_at is null
"""
_BLOCKED = """
select j.id
from members m
    join {shown} s on s.seq = m.seq
    join jobs j on j.seq = m.seq
where m.grp {among grps} and m.ended is null and s.status = 'blocked'
"""


class _Standing(NamedTuple):
    """How a group stands that jobs are to be added to."""

    id: str
    grp: int
    open_until: float | None
    closed_at: float | None
    ended_at: float | None
    callback: str | None

    def is_open(self, now: float) -> bool:
        """Whether anybody may add jobs."""
        return (
            self.ended_at is None
            and self.closed_at is None
            and self.open_until is not None
            and now < self.open_until
        )


class Joining:
    """The jobs of one add that are to belong to groups; does nothing where there are none."""

    def __init__(self, tx: Transaction, jobs: Sequence[NewJob], but: str | None = None) -> None:
        """`but`: a group that is made in this transaction, with its jobs."""
        self._tx = tx
        self._jobs = [job for job in jobs if job.options.group not in (None, but)]
        self._all = jobs
        self._locked = frozenset[str]()
        self._found: Mapping[str, _Standing] = {}
        self._running: Collection[tuple[str, int]] = frozenset()
        """jobs that run, each with the group that it belongs to"""
        self._circular = frozenset[str]()

    async def lock(self) -> None:
        """Lock the groups, and see how they stand. Who has them alone waits for no lock; so this is in no deadlock."""
        if not self._jobs:
            return
        ids = {"ids": _as_json(sorted({str(job.options.group) for job in self._jobs}))}
        parents = sorted({job.options.parent for job in self._jobs if job.options.parent is not None})
        since = min(job.created_at for job in self._jobs)
        may_take = {"parents": _as_json(parents), "since": float(since)}
        self._locked = frozenset(name for (name,) in await self._tx.rows(_SHARE, ids | may_take))
        # New statements: they see what those have done that had the groups alone before.
        self._found = {row[0]: _Standing(*row) for row in await self._tx.rows(_STANDING, ids)}
        if parents and self._locked:
            grps = as_json([self._found[name].grp for name in self._locked if name in self._found])
            rows = await self._tx.rows(_RUNNING, {"ids": _as_json(parents), "grps": grps})
            self._running = frozenset((job_id, grp) for job_id, grp in rows)
        self._circular = frozenset([job.id for job in self._jobs if await self._waits_for_itself(job)])

    def judged(self, job: NewJob) -> Receipt:
        """Whether a new job may join its group, if it is to."""
        if job.options.group is None or not self._jobs:
            return STORED
        group = self._found.get(job.options.group)
        if group is None:
            return Receipt("unknown_group", group=job.options.group)
        takes = group.is_open(job.created_at) or self._is_of_member(job, group)
        if group.id not in self._locked or not takes:
            return Receipt("group_closed", group=group.id)
        if job.id in self._circular:
            return Receipt("dependency_cycle", dependencies=[job.id, group.callback or "", job.id])
        return STORED

    def _is_of_member(self, job: NewJob, group: _Standing) -> bool:
        return group.ended_at is None and (job.options.parent, group.grp) in self._running

    async def _waits_for_itself(self, job: NewJob) -> bool:
        """Whether a job would wait for the job that waits for its group, by way of others, and of other groups."""
        own = self._found.get(job.options.group or "")
        ids, seen = set(job.options.depends_on), set[int]()
        while ids and own is not None:
            ids = self._with_new(ids)
            groups = {grp: name for name, grp in await self._tx.rows(_BEHIND, {"ids": _as_json(sorted(ids))})}
            if own.grp in groups:
                return True
            fresh = sorted(groups.keys() - seen)
            seen.update(fresh)
            blocked = await self._tx.rows(_BLOCKED, {"grps": as_json(fresh)}) if fresh else ()
            ids = {one for (one,) in blocked}
            ids |= {one.id for one in self._jobs if one.options.group in {groups[grp] for grp in fresh}}
        return False

    def _with_new(self, ids: Collection[str]) -> set[str]:
        """Also the jobs that those of them depend on which are added here."""
        coming = {job.id: job.options.depends_on for job in self._all}
        found, left = set[str](), list(ids)
        while left:
            one = left.pop()
            if one not in found:
                found.add(one)
                left += coming.get(one, ())
        return found

    async def write(self, new: Collection[NewJob]) -> None:
        """Have those of the jobs that are stored now belong to their groups."""
        names = {job.id: job.options.group for job in new}
        if joined := {
            job_id: self._found[name].grp for job_id, name in names.items() if name in self._found and name
        }:
            await join(self._tx, joined)


async def join(tx: Transaction, joined: Mapping[str, int]) -> None:
    """Have jobs, which are stored in this transaction, belong to groups."""
    rows = [{"id": job_id, "grp": grp} for job_id, grp in joined.items()]
    tx.follow(sorted(seq for (seq,) in await tx.rows(_JOIN, {"joined": _as_json(rows)})))


def _as_json(value: object) -> str:
    return msgspec.json.encode(value).decode()
