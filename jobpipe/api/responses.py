"""Between plain answers and Quart."""

from typing import TypeVar

import msgspec
from quart import Request, Response

from jobpipe.api.answers import Answer
from jobpipe.api.problems import Fault, invalid

Q = TypeVar("Q", bound=msgspec.Struct)


def respond(answer: Answer) -> Response:
    """An answer as Quart's response."""
    headers = dict(answer.headers)
    return Response(answer.body, answer.status, headers, content_type=answer.content_type if answer.body else None)


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
