"""`/openapi.json` and `/docs`: the spec, and a page for it that needs nothing from the internet."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from quart import Blueprint, Response, redirect, render_template, send_from_directory, url_for
from quart.typing import ResponseReturnValue
from quart_schema import document_querystring, hide, tag_blueprint

from jobpipe.api.spec import Content, answers, problems
from jobpipe.version import VERSION

STATIC_MAX_AGE = 86_400
"""Seconds that a browser may keep a static file. Pages ask for it by version, so a newer jobpipe is seen at once."""

STATIC = Path(__file__).parent / "static"

HEADERS = {
    # Everything comes from this node, and nothing runs that is not a file of it. The style sheet's pictures are inline.
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none'; "
    "form-action 'self'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


class AssetQuery(msgspec.Struct, frozen=True):
    """Which version of a static file is asked for, so that a browser keeps no older one."""

    v: str = VERSION


def docs_blueprint(spec: Callable[[], dict[str, Any]], *, base: str, home: str) -> Blueprint:
    """The routes of the spec, its page and the page's static files, and the way from `/` to `home`.

    `spec` is asked once, when all routes are known. `base` is the path under which a proxy publishes the service.
    """
    routes = Blueprint("docs", __name__, template_folder="templates")
    tag_blueprint(routes, ["service"])

    @functools.cache
    def encoded() -> bytes:
        return msgspec.json.format(msgspec.json.encode(spec()), indent=2) + b"\n"

    @routes.get("/")
    @hide
    async def start() -> ResponseReturnValue:
        return redirect(f"{base}{home}")

    @routes.get("/openapi.json")
    @answers(200, "The spec, OpenAPI 3.1.", Content(dict[str, Any]))
    @problems()
    async def openapi() -> Response:
        """Get this spec.

        OpenAPI 3.1, made from the running service; it always describes exactly this version.
        """
        return Response(encoded(), content_type="application/json", headers={"Cache-Control": "no-cache"})

    @routes.get("/docs")
    @answers(200, "The page.", Content(str, "text/html"))
    @problems()
    async def docs() -> Response:
        """Get the documentation page.

        This spec as a page on which every request can be tried. The page loads nothing from the internet.
        """
        page = await render_template(
            "docs.html", version=VERSION, asset=lambda name: base + _asset(name), spec=f"{base}/openapi.json"
        )
        return Response(page, content_type="text/html; charset=utf-8", headers={"Cache-Control": "no-cache"})

    @routes.get("/static/<path:filename>", endpoint="static")
    @document_querystring(AssetQuery)
    @hide
    async def asset(filename: str) -> Response:
        return await send_from_directory(STATIC, filename)

    @routes.after_request
    async def secure(response: Response) -> Response:
        response.headers.update(HEADERS)
        return response

    return routes


def _asset(filename: str) -> str:
    return url_for("docs.static", filename=filename, v=VERSION)
