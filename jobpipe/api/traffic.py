"""What this node counts of its requests, for `/metrics`."""

from collections import Counter, defaultdict

import trio
from quart import Response, g, request
from quart_trio import QuartTrio

from jobpipe.engine.tallies import Histogram

SECONDS = (0.005, 0.025, 0.1, 0.5, 2.5, 10, 60)
"""Upper bounds of the buckets of the time until a response begins."""

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
"""What is counted by its name; any other method is `OTHER_METHOD`."""

OTHER_METHOD = "other"
NO_ROUTE = "none"
"""In the place of a route: the request was for none that there is, or was refused before that was looked at."""


class Traffic:
    """Counts by route, never by path: there are as many counts as routes, whatever is asked for."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, str, str]] = Counter()
        """by route, method, and class of the status (`2xx`)"""
        self.seconds: defaultdict[str, Histogram] = defaultdict(lambda: Histogram(SECONDS))
        """by route: from the request's head to the beginning of the response"""

    def note(self, route: str, method: str, status: int, seconds: float | None) -> None:
        """A request is answered. `seconds` is None where the response began before the request had ended."""
        named = method if method in METHODS else OTHER_METHOD
        self.requests[route, named, f"{status // 100}xx"] += 1
        if seconds is not None:
            self.seconds[route].add([seconds])


def count_requests(app: QuartTrio, traffic: Traffic) -> None:
    """Have every request counted that the application answers. To be called before whatever else looks at requests."""

    @app.before_request
    async def begin() -> None:
        g.begun = trio.current_time()

    @app.after_request
    async def end(response: Response) -> Response:
        route = NO_ROUTE if request.url_rule is None else request.url_rule.rule
        traffic.note(route, request.method, response.status_code, trio.current_time() - g.begun)
        return response
