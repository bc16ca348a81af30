"""A job that cannot be claimed is put out of the way: it fails, and those behind it are claimed."""

from jobpipe.store.verbs.transaction import Transaction


async def sideline(tx: Transaction, kinds: frozenset[str], now: float, words: str) -> str | None:
    """See `jobpipe.store.base.EngineStore.sideline`."""
    stored = await tx.first_ready(kinds, now)
    if stored is None:
        return None
    await tx.fail(stored, now, words)
    return stored.job.id
