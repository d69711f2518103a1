"""A headless Chromium in a node of the lab, controlled over its DevTools protocol."""

import asyncio
import base64
import json
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from featherlb.lab import Node

TIMEOUT = 30
"""Seconds for Chromium to start, and for a condition in a page."""


class Page:
    """One page that is open."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._last = 0

    async def call(self, method: str, **parameters: object) -> dict[str, Any]:
        """A command of https://chromedevtools.github.io/devtools-protocol/ and its result."""
        self._last += 1
        await self._socket.send_json({"id": self._last, "method": method, "params": parameters})
        while True:
            answer = await self._socket.receive_json(timeout=TIMEOUT)
            if answer.get("id") == self._last:
                result: dict[str, Any] = answer["result"]
                return result

    async def run(self, script: str) -> Any:
        """The value of a JavaScript expression in the page."""
        answer = await self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    async def wait_for(self, script: str) -> None:
        """Until the expression is true."""
        async with asyncio.timeout(TIMEOUT):
            while not await self.run(script):
                await asyncio.sleep(0.05)

    async def screenshot(self, path: Path) -> None:
        shot = await self.call("Page.captureScreenshot", format="png")
        path.write_bytes(base64.b64decode(shot["data"]))


@asynccontextmanager
async def open_page(node: Node, url: str, directory: Path) -> AsyncIterator[Page]:
    """Open a page from the node; call it inside (`node.call(asyncio.run, ...)`)."""
    process = node.popen(
        [
            "chromium",
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--window-size=1100,900",
            "--remote-debugging-port=0",
            f"--user-data-dir={directory}/profile",
            url,
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        announced = directory / "profile" / "DevToolsActivePort"
        async with asyncio.timeout(TIMEOUT):
            while not announced.exists() or not announced.read_text().strip():
                await asyncio.sleep(0.05)
        port = announced.read_text().split()[0]
        async with aiohttp.ClientSession() as session:
            async with session.get(f"http://127.0.0.1:{port}/json") as answer:
                targets = json.loads(await answer.text())
            (target,) = [one for one in targets if one["type"] == "page"]
            async with session.ws_connect(
                target["webSocketDebuggerUrl"], max_msg_size=1 << 26
            ) as socket:
                yield Page(socket)
    finally:
        process.terminate()
        process.wait()
