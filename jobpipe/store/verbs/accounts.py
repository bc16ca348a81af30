"""Nodes as they are shown, and the accounts of their stops: what became of the attempts that ran."""

from collections import defaultdict
from collections.abc import Iterable, Sequence

import msgspec
import structlog
from msgspec.structs import replace

from jobpipe.store.base import ACCOUNTED, ACCOUNTS, STEP, Account, NodePlace, NodeState, Unfinished
from jobpipe.store.rows import Row
from jobpipe.store.verbs.transaction import Transaction
from jobpipe.transitions import Stored, begun

LAST = 1 << 61
"""A number beyond that of any node."""

_COLUMNS = """
    n.node, n.name, n.lease_until, n.draining, n.joined_at, n.lease, n.workers, n.version, {array n.kinds},
    {array n.queues}, {held by n},
    (select account from accounts a where a.node = n.name order by began desc limit 1)
"""
_PART = f"""
select {_COLUMNS}
from nodes n
where n.lease_until is {{which}} null and n.node < :number
order by n.node desc
limit :limit
"""
_LEASED = _PART.replace("{which}", "not")
_GONE = _PART.replace("{which} ", "")
_ONE = f"select {_COLUMNS} from nodes n where n.name = :name"
_DRAINING = "update nodes set draining = true where name = :name"
_LOST = """
select name, lost_at, joined_at
from nodes
where lost_at is not null
order by node
limit :limit
{skip locked}
"""
_ACCOUNTED_FOR = "update nodes set lost_at = null where name in {each names}"
_LIST = """
select account
from accounts
where node = :node
order by began desc
limit :limit
"""
_LATEST = """
select account
from accounts
where node = :node
order by began desc
limit 1
{lock}
"""
_PUT = """
insert into accounts (node, began, ended_at, account)
values (:node, :began, :ended_at, :account)
on conflict (node, began) do update set
    ended_at = excluded.ended_at,
    account = excluded.account
"""
_KEEP_FEW = """
delete from accounts
where node = :node and began < (
    select min(began)
    from (
        select began
        from accounts
        where node = :node
        order by began desc
        limit :limit
    ) as kept
)
"""
_FORGET = """
delete from accounts
where ended_at in (
    select ended_at
    from accounts
    where ended_at < :until
    order by ended_at
    limit :limit
)
"""

_encode = msgspec.json.Encoder().encode
_account = msgspec.json.Decoder(Account).decode
_names = msgspec.json.Decoder(list[str]).decode

log = structlog.get_logger("jobpipe")


async def states(tx: Transaction, limit: int, after: NodePlace | None) -> Sequence[NodeState]:
    """See `jobpipe.store.base.ReadStore.nodes`."""
    rows = list[Row]()
    if after is None or after.leased:
        rows += await tx.rows(_LEASED, {"number": LAST if after is None else after.number, "limit": limit})
    if len(rows) < limit:
        number = after.number if after is not None and not after.leased else LAST
        rows += await tx.rows(_GONE, {"number": number, "limit": limit - len(rows)})
    return [_state_from(row) for row in rows]


async def state(tx: Transaction, name: str) -> NodeState | None:
    """See `jobpipe.store.base.ReadStore.node`."""
    rows = await tx.rows(_ONE, {"name": name})
    return _state_from(rows[0]) if rows else None


async def draining(tx: Transaction, name: str) -> None:
    """See `jobpipe.store.base.EngineStore.note_draining`."""
    tx.run(_DRAINING, {"name": name})


async def listed(tx: Transaction, node: str) -> Sequence[Account]:
    """See `jobpipe.store.base.ReadStore.accounts`."""
    rows = await tx.rows(_LIST, {"node": node, "limit": ACCOUNTS})
    return [account for (text,) in rows if (account := _read(text)) is not None]


async def put(tx: Transaction, account: Account) -> None:
    """See `jobpipe.store.base.EngineStore.note_account`."""
    cut = replace(account, attempts=account.attempts[:ACCOUNTED])
    values = {"node": account.node, "began": float(account.began), "ended_at": float(account.ended_at)}
    tx.run(_PUT, {**values, "account": _encode(cut).decode()})
    tx.run(_KEEP_FEW, {"node": account.node, "limit": ACCOUNTS})


async def forget(tx: Transaction, until: float) -> None:
    """Delete accounts of stops that ended before, `STEP` of them."""
    tx.run(_FORGET, {"until": float(until), "limit": STEP})


def broken(before: Stored, after: Stored) -> Unfinished | None:
    """The attempt that ended with its node, of a job before and after it was taken back; None: it had not begun."""
    if not begun(before):
        return None
    return Unfinished(
        job=before.job.id,
        kind=before.job.asked.kind,
        attempt=before.job.state.attempt,
        end="abandoned",
        status=after.job.status.value,
    )


async def of_dead(tx: Transaction, held: Iterable[tuple[str | None, Unfinished | None]], now: float) -> None:
    """Keep what became of the attempts of nodes that died, given for each job that was taken back its node and attempt.

    Also of those that held no job. Where it cannot be written, it is lost, and the jobs are rescued all the same.
    """
    try:
        async with tx.savepoint():
            await _of_dead(tx, held, now)
    except Exception as error:
        if not tx.blames(error):
            raise
        log.exception("what became of the attempts of a dead node cannot be kept")


async def _of_dead(tx: Transaction, held: Iterable[tuple[str | None, Unfinished | None]], now: float) -> None:
    lost = await tx.rows(_LOST, {"limit": STEP})
    if lost:
        tx.run(_ACCOUNTED_FOR, {"names": _encode([name for name, _, _ in lost]).decode()})
    jobs = defaultdict[str, list[Unfinished | None]](list)
    for node, attempt in held:
        if node is not None:
            jobs[node].append(attempt)
    began = {name: _last_sign(lost_at, joined_at, now) for name, lost_at, joined_at in lost}
    for name in sorted(began.keys() | jobs.keys()):
        new = _death(name, began.get(name, now), jobs[name], now)
        known = None if name in began else await _latest_death(tx, name)
        await put(tx, new if known is None else _joined(known, new))


def _last_sign(lost_at: object, joined_at: object, now: float) -> float:
    """When a dead node was last known to live; where its row is damaged, `now`."""
    sound = isinstance(lost_at, float) and 0 <= lost_at <= now
    at = lost_at if sound and isinstance(lost_at, float) else now
    return max(at, min(joined_at, now)) if isinstance(joined_at, float) else at


async def _latest_death(tx: Transaction, node: str) -> Account | None:
    """The account of a node that is known to be dead, some of whose jobs could not be taken back at once."""
    rows = await tx.rows(_LATEST, {"node": node})
    account = _read(rows[0][0]) if rows else None
    return account if account is not None and account.how == "died" else None


def _death(node: str, began: float, jobs: Sequence[Unfinished | None], now: float) -> Account:
    ran = [one for one in jobs if one is not None]
    return Account(
        node=node,
        how="died",
        began=began,
        ended_at=now,
        active=len(ran),
        finished=0,
        handed_back=0,
        abandoned=len(ran),
        unbegun=len(jobs) - len(ran),
        attempts=ran[:ACCOUNTED],
    )


def _joined(one: Account, other: Account) -> Account:
    """Two parts of one account."""
    counts = {
        name: getattr(one, name) + getattr(other, name)
        for name in ("active", "finished", "handed_back", "abandoned", "unbegun")
    }
    return replace(one, ended_at=other.ended_at, attempts=[*one.attempts, *other.attempts], **counts)


def _state_from(row: Row) -> NodeState:
    number, name, lease_until, drains, joined_at, lease, workers, version, kinds, queues, holds, account = row
    return NodeState(
        place=NodePlace(lease_until is not None, number),
        name=str(name),
        lease_until=lease_until,
        draining=drains == 1,
        joined_at=joined_at,
        lease=lease,
        workers=workers,
        version=version,
        kinds=_texts(kinds) or (),
        queues=_texts(queues),
        holds=holds,
        last_stop=_read(account),
    )


def _texts(text: object) -> Sequence[str] | None:
    """A JSON array of texts, sorted; None: there is none, or it cannot be read."""
    try:
        return sorted(_names(str(text)))
    except msgspec.MsgspecError:
        return None


def _read(text: object) -> Account | None:
    try:
        return _account(str(text))
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
