"""What PostgreSQL's errors mean: each is raised as one of jobpipe's, with what to do."""

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg

from jobpipe.errors import StoreError, StoreUnavailable
from jobpipe.store.postgres.address import Address


class CommitUnknown(StoreUnavailable):
    """The connection was lost while the commit was under way: it may have been carried out, or not."""


class Locked(StoreUnavailable):
    """Another session holds a lock that this would have to wait for. Nothing was written."""


ENTRYS_OWN = (
    psycopg.DataError,
    psycopg.IntegrityError,
    psycopg.errors.ProgramLimitExceeded,
    psycopg.errors.StatementTooComplex,
    psycopg.errors.RaiseException,
)
"""Errors of what is written or of a row that is met, not of the database: they are raised as they are.

Classes 22, 23 and 54 of SQLSTATE, and what somebody's own trigger raises.
"""


@contextmanager
def mapped(address: Address) -> Iterator[None]:
    """Raise PostgreSQL's errors as jobpipe's, each with what to do. No message shows a password.

    An error that is the fault of what is written, or of a row, is raised as it is.
    """
    try:
        yield
    except ENTRYS_OWN:
        raise
    except (
        psycopg.errors.InvalidSchemaName,
        psycopg.errors.UndefinedTable,
        psycopg.errors.UndefinedColumn,
    ) as error:
        raise StoreError(
            f"schema {address.schema} of {address.shown} does not have the tables of this version ({words_of(error)}): "
            "run `jobpipe migrate`"
        ) from error
    except (psycopg.errors.DuplicatePreparedStatement, psycopg.errors.InvalidSqlStatementName) as error:
        raise StoreError(
            f"{address.shown} swaps connections between transactions and loses prepared statements "
            f"({words_of(error)}): add prepare=off to STORE"
        ) from error
    except psycopg.errors.LockNotAvailable as error:
        raise Locked(
            f"{address.shown} cannot be used now: another session holds a lock on it ({words_of(error)})"
        ) from error
    except psycopg.errors.InsufficientPrivilege as error:
        raise StoreError(
            f"{address.shown}: the user of STORE may not do this ({words_of(error)}): see docs/scaling.md"
        ) from error
    except (psycopg.OperationalError, psycopg.InterfaceError, psycopg.InternalError) as error:
        # InternalError: a server that became a replica takes no writes any more.
        raise StoreUnavailable(f"{address.shown} cannot be used now ({words_of(error)})") from error
    except psycopg.Error as error:
        raise StoreError(
            f"{address.shown} refused a statement ({type(error).__name__}: {words_of(error)})"
        ) from error


def words_of(error: psycopg.Error) -> str:
    """An error in one line."""
    return " ".join((error.diag.message_primary or str(error) or type(error).__name__).split())
