"""A real Chromium without a window, told what to do by its DevTools protocol.

https://chromedevtools.github.io/devtools-protocol/
"""

import asyncio
import base64
import contextlib
import itertools
import json
import shutil
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

DEADLINE_S = 60

_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--remote-debugging-port=0",
)


class Page:
    """One tab."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)
        self._answers: dict[int, asyncio.Future[dict]] = {}
        self._session: str | None = None
        self._loaded = asyncio.Event()
        self.complaints: list[str] = []  # errors on the console, of scripts, of policies and of resources
        self._reading = asyncio.create_task(self._read())

    async def open(self) -> None:
        target = await self.command("Target.createTarget", url="about:blank")
        attached = await self.command("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            await self.command(f"{domain}.enable")

    async def close(self) -> None:
        self._reading.cancel()
        await asyncio.wait([self._reading])

    async def command(self, method: str, **params):
        number = next(self._numbers)
        self._answers[number] = asyncio.get_running_loop().create_future()
        session = {"sessionId": self._session} if self._session else {}
        await self._socket.send_json({"id": number, "method": method, "params": params, **session})
        async with asyncio.timeout(DEADLINE_S):
            return await self._answers[number]

    async def visit(self, url: str) -> None:
        self._loaded.clear()
        await self.command("Page.navigate", url=url)
        async with asyncio.timeout(DEADLINE_S):
            await self._loaded.wait()

    async def resize(self, width: int, height: int, scale: float = 1) -> None:
        size = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": width < 600}
        await self.command("Emulation.setDeviceMetricsOverride", **size)

    async def scheme(self, name: str) -> None:
        features = [{"name": "prefers-color-scheme", "value": name}]
        await self.command("Emulation.setEmulatedMedia", features=features)

    async def js(self, expression: str):
        """The value of `expression`, which may be a promise."""
        asked = {"expression": expression, "returnByValue": True, "awaitPromise": True}
        answer = await self.command("Runtime.evaluate", **asked)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    async def until(self, expression: str, seconds: float = DEADLINE_S):
        """Waits until `expression` is true, and gives its value. A page that is being loaded has none."""
        try:
            async with asyncio.timeout(seconds):
                while True:
                    with contextlib.suppress(AssertionError):
                        if value := await self.js(expression):
                            return value
                    await asyncio.sleep(0.03)
        except TimeoutError:
            text = await self.js("document.body.innerText")
            pytest.fail(f"never true: {expression}\n{self.complaints}\n{text}")

    async def text(self, selector: str) -> str:
        return await self.js(f"document.querySelector({json.dumps(selector)}).innerText")

    async def type(self, selector: str, text: str) -> None:
        await self.js(f"document.querySelector({json.dumps(selector)}).select()")
        await self.command("Input.insertText", text=text)

    async def click(self, selector: str) -> None:
        await self.js(f"document.querySelector({json.dumps(selector)}).click()")

    async def enter(self) -> None:
        """Presses that key."""
        for kind in ("keyDown", "keyUp"):
            pressed = {"key": "Enter", "code": "Enter", "text": "\r", "windowsVirtualKeyCode": 13}
            await self.command("Input.dispatchKeyEvent", type=kind, **pressed)

    async def screenshot(self) -> bytes:
        shot = await self.command("Page.captureScreenshot", format="png")
        return base64.b64decode(shot["data"])

    async def _read(self) -> None:
        async for message in self._socket:
            event = json.loads(message.data)
            if answer := self._answers.pop(event.get("id", 0), None):
                if "error" in event:
                    answer.set_exception(AssertionError(event["error"]["message"]))
                else:
                    answer.set_result(event["result"])
            else:
                self._hear(event.get("method"), event.get("params", {}))

    def _hear(self, method: str | None, params: dict) -> None:
        if method == "Page.loadEventFired":
            self._loaded.set()
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(params["exceptionDetails"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.complaints.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "assert", "warning"):
            self.complaints.append(json.dumps(params["args"]))


@asynccontextmanager
async def chromium(profile: Path):
    """A tab of a browser of its own, with a new profile."""
    executable = shutil.which("chromium") or shutil.which("chromium-browser")
    if executable is None:  # CI installs it
        pytest.skip("needs a browser: install chromium")
    process = await asyncio.create_subprocess_exec(
        executable,
        *_FLAGS,
        f"--user-data-dir={profile}",
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        address = await _address(profile / "DevToolsActivePort")
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(address, max_msg_size=0) as socket,
        ):
            page = Page(socket)
            await page.open()
            try:
                yield page
            finally:
                await page.close()
    finally:
        process.terminate()
        await process.wait()


async def _address(file: Path) -> str:
    """Where its DevTools are: Chromium writes it as soon as it knows."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            if len(lines := _lines(file)) == 2:
                return f"ws://127.0.0.1:{lines[0]}{lines[1]}"
            await asyncio.sleep(0.03)


def _lines(file: Path) -> list[str]:
    return file.read_text().split() if file.exists() else []
