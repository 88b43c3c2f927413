"""Requests as the original's own Python client makes them: asyncio, aiohttp, one session for everything."""

from __future__ import annotations

import asyncio
import io
import json
import sys
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from tests.support.processes import Agent, Router

SERVERS = Path(__file__).parents[1] / "jobs"
BINARY = {"Content-Type": "application/octet-stream"}


class OriginalClient:
    """The requests of the original's client; errors are what `raise_for_status` makes of them."""

    def __init__(self, router: str, session: aiohttp.ClientSession) -> None:
        self._router = router
        self._session = session

    async def get(self, path: str) -> Any:
        async with self._session.get(self._router + path) as answer:
            answer.raise_for_status()
            return await answer.json()

    async def post(self, path: str, body: Any = None) -> Any:
        async with self._session.post(self._router + path, json=body) as answer:
            answer.raise_for_status()
            return await answer.json() if answer.content_type == "application/json" else await answer.read()

    async def upload(self, path: str, data: Any, **query: str) -> None:
        async with self._session.post(self._router + path, data=data, params=query, headers=BINARY) as answer:
            answer.raise_for_status()

    async def download(self, path: str, **query: str) -> bytes:
        async with self._session.get(self._router + path, params=query) as answer:
            answer.raise_for_status()
            return b"".join([piece async for piece in answer.content.iter_chunked(1 << 16)])

    def socket(self, path: str) -> Any:
        return self._session.ws_connect(self._router + path)


async def pieces(data: bytes, size: int) -> AsyncIterator[bytes]:
    for at in range(0, len(data), size):
        yield data[at : at + size]


def packed(files: dict[str, bytes]) -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w:gz") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return target.getvalue()


async def batch(client: OriginalClient, agent: str) -> None:
    """A job that reads uploads and ends."""
    info = await client.post("/jobs/create", {"name": "batch", "agent": {"type": "uid", "uid": agent}})
    job = info["path"]
    script = b"import sys; open('out','wb').write(open('a b/in','rb').read()[::-1]); print('done'); sys.exit(5)"
    await client.upload(f"{job}/file/main.py", script)
    await client.upload(f"{job}/file/a%20b/in", pieces(b"0123456789" * 50_000, 7777))
    await client.upload(f"{job}/file/run.sh", io.BytesIO(b"#!/bin/sh\n"), executable="1")
    await client.upload(f"{job}/archive", packed({"x/y": b"z"}))
    await client.post(f"{job}/start", {"args": [sys.executable, "main.py"], "env": {}, "port_expected_count": 0})
    assert (await client.post(f"{job}/wait"))["state"] == "FINISHED"
    assert (await client.post(f"{job}/info"))["uid"] == info["uid"]
    assert await client.download(f"{job}/file/out") == (b"0123456789" * 50_000)[::-1]
    assert await client.download(f"{job}/file/.pagent.stdout") == b"done\n"
    with tarfile.open(
        fileobj=io.BytesIO(await client.download(f"{job}/archive", include="x/*", compress="1"))
    ) as archive:
        assert [member.name for member in archive if member.isfile()] == ["x/y"]
    await client.download(f"{job}/file/out", remove="1")
    await client.post(f"{job}/remove")
    with pytest.raises(aiohttp.ClientResponseError) as gone:
        await client.get(f"{job}/info")
    assert gone.value.status == 404


async def interactive(client: OriginalClient, agent: str, other: str) -> None:
    """A job that serves WebSockets, bridged with another server by its http:// URL, as aiohttp's users write it."""
    info = await client.post("/jobs/create", {"name": "sockets", "agent": {"type": "uid", "uid": agent}})
    job = info["path"]
    start = {"args": [sys.executable, str(SERVERS / "websocket_server.py")], "env": {}, "expose": {"port": "assign"}}
    assert (await client.post(f"{job}/start", start))["state"] == "RUNNING"
    async with client.socket(f"{job}/http/echo") as socket:
        await socket.send_str("text ✓")
        assert (await socket.receive()).data == "text ✓"
        await socket.send_bytes(b"\0\xff")
        assert (await socket.receive()).data == b"\0\xff"
    for scheme in ("http", "ws"):
        assert await client.post(f"{job}/wsconnect/greet", {"url": f"{scheme}://{other}/there?a=1"}) == b""
    await client.post(f"{job}/remove")


async def live(router: str, agent: str) -> None:
    heard: asyncio.Queue[str] = asyncio.Queue()

    async def there(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        await heard.put((await socket.receive()).data)
        await socket.close()
        return socket

    app = web.Application()
    app.router.add_get("/there", there)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    other = "{}:{}".format(*runner.addresses[0])
    try:
        async with aiohttp.ClientSession() as session:
            client = OriginalClient(router, session)
            assert (await client.get("/info"))["auth"]["uid"]
            assert agent in json.dumps(await client.get("/connections"))
            await asyncio.gather(batch(client, agent), interactive(client, agent, other))
            assert [await asyncio.wait_for(heard.get(), 20) for _ in range(2)] == ["hello ✓", "hello ✓"]
            async with session.post(f"{router}/jobs/create", json={"name": "x", "agent": {"wrong": 1}}) as refused:
                assert (refused.status, "Invalid request" in await refused.text()) == (400, True)
    finally:
        await runner.cleanup()


def test_the_originals_client_works(router: Router, agent: Agent) -> None:
    asyncio.run(live(router.url, agent.uid))
