"""Who does something by hand: the client of a request."""

from collections.abc import Mapping
from typing import Any

from quart import request

from jobpipe.acts import By
from jobpipe.api.hosts import plain
from jobpipe.engine.node import Node


def by_client(node: Node, reason: str | None = None) -> By | None:
    """The client of the request under way, which does something now; None: the audit is not written."""
    return by_client_of(node, request.scope, reason)


def by_client_of(node: Node, scope: Mapping[str, Any], reason: str | None = None) -> By | None:
    """The same of a request's scope (ASGI 3)."""
    if not node.settings.keep_audit:
        return None
    client = scope.get("client")
    address = plain(client[0]) if client and client[0] else None
    return By(who=address or "unknown", address=address, node=node.name, at=node.clock.now(), reason=reason)
