"""Between plain answers and Quart."""

import http

from quart import Response

from jobpipe.api.answers import Answer


def respond(answer: Answer) -> Response:
    """An answer as Quart's response."""
    response = Response(answer.body, answer.status, dict(answer.headers), content_type=answer.content_type)
    if answer.status == http.HTTPStatus.NO_CONTENT:
        response.headers.pop("Content-Type")
        response.headers.pop("Content-Length")  # a 204 must not have one (RFC 9110, section 8.6)
    return response
