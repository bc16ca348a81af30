"""Between plain answers and Quart."""

import http
from typing import TypeVar

import msgspec
from quart import Request, Response

from jobpipe.api.answers import Answer
from jobpipe.api.problems import Fault, invalid

Q = TypeVar("Q", bound=msgspec.Struct)


def respond(answer: Answer) -> Response:
    """An answer as Quart's response."""
    response = Response(answer.body, answer.status, dict(answer.headers), content_type=answer.content_type)
    if answer.status == http.HTTPStatus.NO_CONTENT:
        response.headers.pop("Content-Type")
        response.headers.pop("Content-Length")  # a 204 must not have one (RFC 9110, section 8.6)
    return response


def query(request: Request, model: type[Q]) -> Q:
    """The query string as a struct; raises `Problem` with every fault of it."""
    faults: list[Fault] = []
    fields = {field.name: field for field in msgspec.structs.fields(model)}
    values = {}
    for name, texts in request.args.lists():
        if name not in fields:
            faults.append(Fault(f"?{name}", f"unknown parameter; known are {', '.join(fields)}"))
            continue
        try:
            values[name] = msgspec.convert(texts[-1], fields[name].type, strict=False)
        except msgspec.ValidationError as error:
            faults.append(Fault(f"?{name}", str(error)))
    if faults:
        raise invalid(faults)
    return model(**values)
