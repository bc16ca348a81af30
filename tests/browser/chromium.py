"""Headless Chromium, driven over the DevTools protocol: JSON messages, each ended by a null byte, on two pipes."""

import base64
import fcntl
import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import trio

Message = dict[str, Any]

PATIENCE = 120.0
"""Seconds after which a test gives up on the browser: far more than it ever needs, on any machine."""

CODES = {"Enter": 13, "Escape": 27}
"""Of the keys that the browser itself obeys."""

FLAGS = [
    "--headless",
    "--no-sandbox",  # CI runs as root
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1280,1600",
    "--remote-debugging-pipe",
]

# Chromium reads commands from descriptor 3 and answers on 4; `_pipe` has both ends above 10, so none is overwritten.
ON_PIPES = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.dup2(int(sys.argv[2]), 4)
os.execvp(sys.argv[3], sys.argv[3:])
"""


class Page:
    """A tab. `seen` is everything that the browser told of it: requests, console, errors."""

    def __init__(self, commands: trio.lowlevel.FdStream, answers: trio.lowlevel.FdStream) -> None:
        self.seen: list[Message] = []
        self._commands, self._answers = commands, answers
        self._unread, self._numbers = b"", itertools.count(1)
        self._session: dict[str, str] = {}

    async def open(self) -> None:
        """Make the tab and listen to it."""
        target = await self.call("Target.createTarget", url="about:blank")
        attached = await self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = {"sessionId": attached["sessionId"]}
        for domain in ("Page", "Runtime", "Log", "Network"):
            await self.call(f"{domain}.enable")

    async def call(self, method: str, **params: object) -> Message:
        """Give a command and wait for its result."""
        number = next(self._numbers)
        command = {"id": number, "method": method, "params": params, **self._session}
        await self._commands.send_all(json.dumps(command).encode() + b"\0")
        while True:
            message = await self._read()
            if message.get("id") == number:
                assert "error" not in message, (method, message["error"])
                return dict(message["result"])
            self.seen.append(message)

    async def _read(self) -> Message:
        while b"\0" not in self._unread:
            part = await self._answers.receive_some()
            assert part, "Chromium ended"
            self._unread += part
        message, _, self._unread = self._unread.partition(b"\0")
        return dict(json.loads(message))

    async def goto(self, url: str) -> None:
        """Load a page; what it shows may come later: `until` waits for it."""
        result = await self.call("Page.navigate", url=url)
        assert "errorText" not in result, result

    async def value(self, expression: str) -> Any:
        """What a JavaScript expression, or the promise that it is, comes to."""
        result = await self.call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    async def until(self, condition: str) -> Any:
        """The first value of an expression that counts as true; looks again before each frame."""
        look = f"const look = () => {{ const it = {condition}; it ? resolve(it) : requestAnimationFrame(look); }};"
        with trio.fail_after(PATIENCE):
            return await self.value(f"new Promise(resolve => {{ {look} look(); }})")

    async def look(self, *, width: int = 1440, dark: bool = False, scripts: bool = True) -> None:
        """Be a window of a width, with a theme, in which scripts run or not; for the pages that are loaded next."""
        height = 844 if width < 500 else 1000
        await self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 500,
        )
        theme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self.call("Emulation.setEmulatedMedia", features=[theme])
        await self.call("Emulation.setScriptExecutionDisabled", value=not scripts)

    async def show(self, url: str) -> None:
        """Load a page, and wait until it is there."""
        await self.goto(url)
        await self.arrive("location.href !== 'about:blank'")

    async def arrive(self, condition: str) -> None:
        """Wait until a page is there for which an expression is true; on the way to it there may be none to ask."""
        with trio.fail_after(PATIENCE):
            while True:
                with suppress(AssertionError):
                    if await self.value(f"document.readyState === 'complete' && !!({condition})"):
                        return
                await trio.sleep(0.05)

    async def press(self, keys: str) -> None:
        """Press keys one after another: characters, or the name of one key."""
        for key in [keys] if len(keys) > 1 and keys.isalpha() and keys[0].isupper() else keys:
            text = {"Enter": "\r"}.get(key, key)
            shown = {"text": text} if len(text) == 1 else {}
            code = {"windowsVirtualKeyCode": CODES[key]} if key in CODES else {}
            await self.call("Input.dispatchKeyEvent", type="keyDown", key=key, **shown, **code)
            await self.call("Input.dispatchKeyEvent", type="keyUp", key=key, **code)

    async def shoot(self, file: Path) -> None:
        """Keep a picture of the whole page."""
        await self.call("Page.bringToFront")
        taken = await self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        await trio.Path(file).write_bytes(base64.b64decode(taken["data"]))

    def requests(self) -> list[str]:
        """Every URL that the page asked for."""
        asked = [
            message["params"] for message in self.seen if message["method"] == "Network.requestWillBeSent"
        ]
        return [each["request"]["url"] for each in asked]

    def complaints(self) -> list[Message]:
        """Errors and warnings in the console, and exceptions that nobody caught."""
        return [message for message in self.seen if _complains(message)]


def _complains(message: Message) -> bool:
    params = message["params"]
    match message["method"]:
        case "Runtime.exceptionThrown":
            return True
        case "Runtime.consoleAPICalled":
            return params["type"] in ("error", "warning", "assert")
        case "Log.entryAdded":
            return params["entry"]["level"] in ("error", "warning")
        case _:
            return False


@asynccontextmanager
async def chromium(folder: Path) -> AsyncIterator[Page]:
    """A new Chromium with one empty tab; `folder` is empty and becomes its profile."""
    program = shutil.which("chromium")
    assert program, "there is no chromium on the PATH (Debian: apt-get install chromium)"
    commands, write = _pipe()
    read, answers = _pipe()
    process = await trio.lowlevel.open_process(
        [
            sys.executable,
            "-c",
            ON_PIPES,
            str(commands),
            str(answers),
            program,
            *FLAGS,
            f"--user-data-dir={folder}",
        ],
        pass_fds=(commands, answers),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(commands)
    os.close(answers)
    async with trio.lowlevel.FdStream(write) as sending, trio.lowlevel.FdStream(read) as receiving:
        page = Page(sending, receiving)
        try:
            with trio.fail_after(PATIENCE):
                await page.open()
            yield page
        finally:
            with trio.CancelScope(shield=True):  # `_end` has its own limit of time
                await _end(process)


async def _end(process: trio.Process) -> None:
    """Ask Chromium to end, with all its children; kill it when it does not."""
    process.terminate()
    with trio.move_on_after(10):
        await process.wait()
        return
    process.kill()
    await process.wait()


def _pipe() -> tuple[int, int]:
    """A pipe's two ends, both above 10."""
    low = os.pipe()
    high = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in low]
    for end in low:
        os.close(end)
    return high[0], high[1]
