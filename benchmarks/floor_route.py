"""The floor of an enqueue: a bare Quart-Trio route on Hypercorn that reads JSON, answers 202 and stores nothing.

`python -m benchmarks.floor_route PORT` serves it until SIGTERM.
"""

import signal
import sys
from typing import Any

import trio
from hypercorn.config import Config
from hypercorn.trio import serve
from quart import request
from quart_trio import QuartTrio

app = QuartTrio(__name__)


@app.post("/enqueue")
async def enqueue() -> tuple[dict[str, Any], int]:
    """Say that a job is queued."""
    job = await request.get_json()
    return {"id": job["id"], "status": "queued"}, 202


async def main(port: str) -> None:
    """Serve until SIGTERM."""
    config = Config()
    config.bind, config.loglevel = [f"127.0.0.1:{port}"], "WARNING"
    with trio.open_signal_receiver(signal.SIGTERM) as signals:

        async def ended() -> None:
            await anext(signals)

        await serve(app, config, shutdown_trigger=ended)


if __name__ == "__main__":
    trio.run(main, sys.argv[1])
