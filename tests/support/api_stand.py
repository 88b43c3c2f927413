"""The HTTP API in the test's own process: a stand-in for the broker, and for the agent's end of real streams.

Streams run over a real pair of muxes (`Loopback`); only what an agent does with them is a dictionary in memory.
"""

from __future__ import annotations

import _socket
import json
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote_from_bytes

import gevent
from gevent import socket as gevent_socket

from prouter.access.gate import AccessGate
from prouter.config import RouterConfig
from prouter.errors import IsDirectory, NoSpace, NotFound, PRouterError
from prouter.fabric.stream import Stream
from prouter.jobs import ENDED, INTERNAL_FIELDS, JobRecord, Reason, State, phase_of
from prouter.transport.stream_io import StreamIO, StreamReset
from prouter.web.admin.app import create_app
from prouter.web.gunicorn.admin import AdminService
from prouter.web.proxy.server import ProxyServer
from prouter.web.routes import JobRoute
from tests.support.loopback import Loopback

__all__ = ["CONNECTION", "JOB", "PATH", "StandInAgent", "StandInRouter", "StandInServer", "job_info"]

CONNECTION = "c" * 32
JOB = "b" * 32
PATH = f"/jobs/{CONNECTION}/{JOB}"
PLATFORM = dict.fromkeys(("system", "node", "release", "version", "machine", "processor"), "x")


def job_info(**changed: Any) -> dict[str, Any]:
    """Return a job's public info, as the broker gives it."""
    wire = JobRecord(JOB, CONNECTION, "a job").to_wire()
    record = {name: value for name, value in wire.items() if name not in INTERNAL_FIELDS}
    state = State(changed.get("state", "NEW"))
    phase = phase_of(state, Reason.EXITED if state in ENDED else None, queued=False, will_start=False)
    return {
        **record,
        "phase": phase.value if phase is not None else None,
        "created_at": "2026-01-02T03:04:05.678Z",
        "sender": {"direction": "CLIENT", "uid": "r", "name": ""},
        "path": PATH,
        "base_url": None,
        "agent": {"uid": "a", "name": "", "platform": PLATFORM, "properties": {"gpu": 1}},
        "position": None,
        "confirmed": True,
        **changed,
    }


class StandInAgent:
    """What is at the other end of streams: files in memory.

    Attributes:
        files: by path; a value None is a directory.
        modes: the ``mode`` and ``executable`` of uploads.
        removed: paths deleted by ``remove``.
        cut_after: break a read off after so many bytes, with this reset code.
        full_after: an upload fails with `NoSpace` after so many bytes.
        log: the bytes of stdout so far; `log_ends` says whether it is complete.
    """

    def __init__(self) -> None:
        self.files: dict[bytes, bytes | None] = {b"": None}
        self.modes: dict[bytes, tuple[int | None, bool]] = {}
        self.removed: list[bytes] = []
        self.resets: list[str] = []
        self.targets: list[dict[str, Any]] = []
        self.cut_after: int | None = None
        self.cut_code = "path_lost"
        self.full_after: int | None = None
        self.log = b""
        self.log_ends = True
        self.log_cut_at: int | None = None
        self.archive = b"an archive"

    def accept(self, stream: Stream, target: dict[str, Any]) -> None:
        """Serve a stream that was opened."""
        self.targets.append(target)
        gevent.spawn(self._serve, StreamIO(stream), target)

    def _serve(self, io: StreamIO, target: dict[str, Any]) -> None:
        serve: Callable[[StreamIO, dict[str, Any]], None] = getattr(
            self, "_" + target["kind"].removesuffix(".if").replace(".", "_")
        )
        try:
            serve(io, target)
        except StreamReset as reset:
            self.resets.append(reset.code)
        except PRouterError as error:
            io.write_preface({"error": error.to_wire()})
            io.close()

    def _content(self, path: bytes) -> bytes:
        if path not in self.files:
            raise NotFound(f"file '{path.decode(errors='replace')}' is not found")
        content = self.files[path]
        if content is None:
            raise IsDirectory(f"'{path.decode(errors='replace')}' is a directory")
        return content

    def _file_read(self, io: StreamIO, target: dict[str, Any]) -> None:
        path, offset = target["path"], target["offset"]
        content = self._content(path)
        data = content[offset:] if target["length"] is None else content[offset : offset + target["length"]]
        etag = f'"{hash(content) & 0xFFFFFFFF:x}"'
        described = {"size": len(content), "mtime_ns": 1_500_000_000_500_000_000, "etag": etag, "mode": 0o644}
        io.write_preface({"ok": True, **described, "offset": offset, "length": len(data)})
        if self.cut_after is not None and len(data) > self.cut_after:
            io.write_all(data[: self.cut_after])
            io.reset(self.cut_code, "the path was lost")
            return
        io.write_all(data)
        io.close()
        if target["remove"]:
            io.wait_closed()
            self.removed.append(path)

    def _file_list(self, io: StreamIO, target: dict[str, Any]) -> None:
        io.write_preface({"ok": True})
        for name in sorted(self.files):
            if name and b"/" not in name:
                entry = {"name": name.decode("utf-8", "surrogateescape"), "href": quote_from_bytes(name, safe="")}
                kind = "dir" if self.files[name] is None else "file"
                entry |= {"type": kind, "size": len(self.files[name] or b""), "mtime": 1.5, "mode": 0o644}  # type: ignore[dict-item]
                io.write_all(json.dumps(entry).encode() + b"\n")
        io.close()

    def _file_write(self, io: StreamIO, target: dict[str, Any]) -> None:
        if target["path"] == b"":
            raise IsDirectory("'' is a directory")
        io.write_preface({"ok": True})
        content = bytearray()
        while data := io.read():
            content += data
            if self.full_after is not None and len(content) > self.full_after:
                raise NoSpace("no space left on the agent's disk")
        self.files[target["path"]] = bytes(content)
        self.modes[target["path"]] = (target["mode"], target["executable"])
        io.write_preface({"ok": True, "size": len(content), "etag": '"new"'})
        io.close()

    def _file_delete(self, io: StreamIO, target: dict[str, Any]) -> None:
        if self.files.pop(target["path"], 0) == 0:
            raise NotFound("file is not found")
        io.write_preface({"ok": True})
        io.close()

    def _file_mkdir(self, io: StreamIO, target: dict[str, Any]) -> None:
        created = target["path"] not in self.files
        self.files[target["path"]] = None
        io.write_preface({"ok": True, "created": created})
        io.close()

    def _archive_read(self, io: StreamIO, target: dict[str, Any]) -> None:
        io.write_preface({"ok": True, "size": len(self.archive) if target["format"] == "tar" else None})
        io.write_all(self.archive)
        io.close()

    def _archive_write(self, io: StreamIO, target: dict[str, Any]) -> None:
        io.write_preface({"ok": True})
        self.archive = b"".join(iter(io.read, b""))
        io.write_preface({"ok": True, "files": 1, "directories": 0, "bytes": len(self.archive)})
        io.close()

    def _log(self, io: StreamIO, target: dict[str, Any]) -> None:
        offset = target["offset"] or 0
        if target["tail"] is not None:
            offset = len(self.log) - sum(len(line) for line in self.log.splitlines(keepends=True)[-target["tail"] :])
        io.write_preface({"ok": True, "offset": offset, "size": len(self.log)})
        while True:
            stop = len(self.log)
            if self.log_cut_at is not None and offset <= self.log_cut_at < stop:
                io.write_all(self.log[offset : self.log_cut_at])
                self.log_cut_at = None
                io.reset(self.cut_code, "the path was lost")
                return
            io.write_all(self.log[offset:stop])
            offset = stop
            if self.log_ends or not target["follow"]:
                break
            gevent.sleep(0.001)
        io.close()


class StandInRouter:
    """A `RouterClient` whose broker is a table of functions.

    Attributes:
        answers: by op; a map, or a function of the arguments.
        calls: every call made, as (op, args).
        record: of the one job there is.
        up: whether its agent is reachable.
    """

    def __init__(self, agent: StandInAgent | None = None, gate: AccessGate | None = None) -> None:
        self.agent = agent or StandInAgent()
        self.loopback = Loopback(self.agent.accept)
        self.config = RouterConfig.model_validate({"control": {"hold": 0.05, "hosts": ["x", "falconframework.org"]}})
        self.answers: dict[str, Any] = {"sync": {}}
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.subscribers: set[Callable[[str, dict[str, Any]], None]] = set()
        self.ready = True
        self.draining = self.router_draining = False
        self.uid = "w" * 32
        self.list_bridges: Any = list
        self.on_bridge_end: Any = None
        self.on_linked: Any = None
        self.end_revoked_bridges: Any = lambda: None
        self.audit: Any = None
        self.limits: Any = None
        self.assertions: Any = None
        self.gate = gate or AccessGate(Path("/nonexistent"))
        self.job_route = JobRoute(CONNECTION, JobRecord(JOB, CONNECTION, "a job", State.RUNNING), up=True)

    def call(self, op: str, args: dict[str, Any], *, timeout: float | None = None) -> dict[str, Any]:
        self.calls.append((op, args))
        answer = self.answers.get(op)
        if callable(answer):
            answer = answer(args)
        if isinstance(answer, Exception):
            raise answer
        assert isinstance(answer, dict), f"no answer to {op} {args}"
        return answer

    def route(self, connection: str, job: str) -> JobRoute:
        if connection != CONNECTION:
            raise NotFound(f"connection '{connection}' is not found")
        if job != JOB:
            raise NotFound(f"job '{job}' is not found", job=job)
        return self.job_route

    def usable_route(
        self, connection: str, job: str, obstacle: Callable[[JobRoute], PRouterError | None], deadline: float = 0.0
    ) -> JobRoute:
        while (found := obstacle(self.route(connection, job))) is not None:
            if found.status != 503 or time.monotonic() >= deadline:
                raise found
            self.job_route.wait_for_change(deadline)
        return self.job_route

    def checked_route(self, connection: str, job: str) -> JobRoute:
        return self.route(connection, job)

    def catch_up(self, timeout: float | None = None) -> None:
        self.call("sync", {})

    def tell_bridges(self) -> None:
        self.call("sync", {})

    def cached_route(self, connection: str, job: str) -> JobRoute | None:
        return None

    def open_stream(self, connection: str, target: dict[str, Any], *, window: int | None = None) -> Stream:
        return self.loopback.open(target)

    def subscribe(self, callback: Callable[[str, dict[str, Any]], None]) -> Callable[[], None]:
        self.subscribers.add(callback)
        return lambda: self.subscribers.discard(callback)

    def emit(self, name: str, body: dict[str, Any]) -> None:
        """Publish an event that the broker would send to every worker."""
        for subscriber in list(self.subscribers):
            subscriber(name, body)

    def stats(self) -> dict[str, int]:
        return {"streams": 0}


class StandInServer:
    """The app behind the worker's own connection handling, on a free loopback port. Use as a context manager."""

    def __init__(self, router: StandInRouter) -> None:
        self.service = AdminService(create_app(router, router.config, router.gate))  # type: ignore[arg-type]
        self.proxy = ProxyServer(router, router.config, self.service.start, gate=router.gate)  # type: ignore[arg-type]
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]

    def __enter__(self) -> StandInServer:
        self._watcher = gevent.get_hub().loop.io(self._listener.fileno(), 1)
        self._watcher.start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        self._watcher.stop()
        self._watcher.close()
        self._listener.close()
        self.proxy.close()

    def _accept(self) -> None:
        fd, address = socket.socket._accept(self._listener)  # type: ignore[attr-defined]
        self.proxy.accept(_socket.socket(fileno=fd), address)

    def connect(self, request: str, body: bytes = b"", *, receive_buffer: int | None = None) -> gevent_socket.socket:
        """Connect a client and send `request`: a head with plain newlines, without the empty line."""
        client = gevent_socket.socket()
        if receive_buffer is not None:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        client.connect(("127.0.0.1", self.port))
        client.sendall((request.replace("\n", "\r\n") + "\r\nHost: x\r\n\r\n").encode("latin-1") + body)
        return client
