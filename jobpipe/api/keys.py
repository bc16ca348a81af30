"""`/queues/NAME/keys`: the keys of a queue, what each of them may do, pause and resume them."""

from typing import Annotated

import msgspec
from quart import Blueprint, Response
from quart_schema import document_querystring, tag_blueprint

from jobpipe.api.acting import by_client
from jobpipe.api.answers import Answer, answer
from jobpipe.api.cursors import cursor_of, place_of
from jobpipe.api.enqueue import check_json, read
from jobpipe.api.faults import faults_of
from jobpipe.api.inputs import query, received
from jobpipe.api.malformed import BOM
from jobpipe.api.problems import Code, invalid
from jobpipe.api.responses import respond
from jobpipe.api.schemas import KeyList, KeyQuery, KeyRequest, KeyView, Means, when
from jobpipe.api.spec import Content, answers, problems, takes
from jobpipe.engine.node import Node
from jobpipe.job import Key, Name
from jobpipe.lanes import KeySettings
from jobpipe.store.base import KeyState

_decode = msgspec.json.Decoder(KeyRequest).decode

QueueOfKeys = Annotated[Name, Means("the queue's name")]
KeyInPath = Annotated[Key, Means("the key")]


def keys_blueprint(node: Node) -> Blueprint:
    """The routes below `/queues/NAME/keys`."""
    routes = Blueprint("keys", __name__)
    tag_blueprint(routes, ["queues"])

    @routes.get("/queues/<name>/keys")
    @document_querystring(KeyQuery)
    @answers(200, "A page of keys.", Content(KeyList))
    @problems(Code.INVALID, Code.STORE_UNAVAILABLE)
    async def list_keys(name: QueueOfKeys) -> Response:
        """List the keys of a queue.

        By name; the jobs without a key come first, under an empty text. A key is listed while it has ready jobs that
        may run, something is set for it, it has stopped, or its rate counts jobs of the past.
        """
        _check(name)
        return respond(await _list(node, name, query(KeyQuery)))

    @routes.get("/queues/<name>/keys/<key>")
    @answers(200, "The key.", Content(KeyView))
    @problems(Code.INVALID, Code.STORE_UNAVAILABLE)
    async def get_key(name: QueueOfKeys, key: KeyInPath) -> Response:
        """Get a key of a queue.

        A key that no job has is `empty`.
        """
        _check(name, key)
        return respond(_shown(await node.store.key(name, key)))

    @routes.put("/queues/<name>/keys/<key>")
    @takes(Content(KeyRequest, examples={"weight": {"weight": 2, "max_running": 5}}))
    @answers(200, "The key with its settings.", Content(KeyView))
    @problems(
        Code.NOT_JSON, Code.CROSS_SITE, Code.UNSUPPORTED_MEDIA_TYPE, Code.INVALID, Code.STORE_UNAVAILABLE
    )
    async def put_key(name: QueueOfKeys, key: KeyInPath) -> Response:
        """Set what holds for a key of a queue.

        All settings are replaced: what is left out is set back. No job need have the key yet.
        """
        _check(name, key)
        content_type, body = await received()
        check_json(content_type)
        request = read(body.removeprefix(BOM), _decode, KeyRequest, KeyRequest)
        settings = KeySettings(weight=request.weight, max_running=request.max_running)
        return respond(_shown(await node.control.put_key(name, key, settings, by=by_client(node))))

    @routes.post("/queues/<name>/keys/<key>/pause")
    @answers(200, "The key, paused.", Content(KeyView))
    @problems(Code.CROSS_SITE, Code.INVALID, Code.STORE_UNAVAILABLE)
    async def pause_key(name: QueueOfKeys, key: KeyInPath) -> Response:
        """Pause a key of a queue.

        None of its jobs are started any more, even across restarts; jobs that run go on. Others of the queue are not
        held up. No job need have the key yet.
        """
        _check(name, key)
        return respond(_shown(await node.control.pause_key(name, key, by=by_client(node))))

    @routes.post("/queues/<name>/keys/<key>/resume")
    @answers(200, "The key, no longer paused or stopped.", Content(KeyView))
    @problems(Code.CROSS_SITE, Code.INVALID, Code.STORE_UNAVAILABLE)
    async def resume_key(name: QueueOfKeys, key: KeyInPath) -> Response:
        """Resume a key of a queue.

        Its jobs are started again, in their turn. One that has stopped at a failed job goes on with the next. Resuming
        a key that is neither paused nor stopped changes nothing.
        """
        _check(name, key)
        return respond(_shown(await node.control.resume_key(name, key, by=by_client(node))))

    return routes


def _check(name: str, key: str | None = None) -> None:
    faults = [*faults_of(name, Name, "?name")]
    if key is not None:
        faults += faults_of(key, Key, "?key")
    if faults:
        raise invalid(faults)


async def _list(node: Node, queue: str, wanted: KeyQuery) -> Answer:
    after = place_of(wanted.cursor, str)
    states = await node.store.keys(queue, wanted.limit + 1, after, wanted.state)
    shown = states[: wanted.limit]
    cursor = cursor_of(shown[-1].key) if len(states) > len(shown) else None
    return answer(KeyList([_view(state) for state in shown], cursor))


def _shown(state: KeyState) -> Answer:
    return answer(_view(state))


def _view(state: KeyState) -> KeyView:
    return KeyView(
        key=state.key,
        state=state.state,
        until=when(state.until),
        stopped_by=state.stopped_by,
        waiting=state.waiting,
        running=state.running,
        weight=state.settings.weight,
        max_running=state.settings.max_running,
    )
