"""A job that cannot be claimed is put out of the way: it fails, and those behind it are claimed."""

from jobpipe.store.base import Batch
from jobpipe.store.verbs.transaction import Transaction


async def sideline(tx: Transaction, batch: Batch, words: str) -> str | None:
    """See `jobpipe.store.base.EngineStore.sideline`."""
    stored = await tx.first_ready(batch.claims[0], batch.now)
    if stored is None:
        return None
    await tx.fail(stored, batch.now, words)
    return stored.job.id
