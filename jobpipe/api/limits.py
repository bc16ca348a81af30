"""How long clients may take, and how many there may be."""

import msgspec


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """The limits of a server, in seconds where nothing else is said. `docs/http-api.md` states them."""

    connections: int
    """how many there may be at once"""
    head: float = 15.0
    """for the head of a request, from its first byte"""
    stalled: float = 30.0
    """without a byte more of a body, or a byte taken of an answer"""
    keep_alive: float = 75.0
    """without a request"""
    rest: float = 0.2
    """without a request, after which a connection may be closed to make room for another client"""
    youth: float = 1.0
    """after which a request that is still coming in may be refused to make room for another client"""
    linger: float = 2.0
    """after a refusal, for the client to stop sending"""
    grace: float = 3.0
    """at the end of the service, for requests under way to be answered"""
