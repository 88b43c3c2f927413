"""Execution of a notebook cell in a Jupyter kernel over its WebSocket, as the notebook page does it.

Messages are those of the Jupyter messaging protocol 5 (jupyter-client's docs, "Messaging in Jupyter"), as JSON texts.
"""

from __future__ import annotations

import json
import time
import uuid
from typing import Any

from websockets.exceptions import WebSocketException
from websockets.sync.client import ClientConnection, connect

from prouter.demo.lab import Lab
from prouter.demo.stand import DemoFailed

__all__ = ["run_cell"]

_ANSWER_WITHIN = 60.0


def run_cell(lab: Lab, code: str) -> str:
    """Start a kernel and run `code` in it; return what the code printed.

    Raises:
        DemoFailed: the kernel cannot be reached, or the code failed.
    """
    kernel = lab.post("api/kernels", {"name": "python3"})
    url = lab.link(f"api/kernels/{kernel['id']}/channels").replace("http", "ws", 1)
    try:
        with connect(url, proxy=None, max_size=None) as socket:
            return _execute(socket, code)
    except (OSError, WebSocketException) as error:
        raise DemoFailed(f"the kernel's WebSocket failed: {error}") from error


def _execute(socket: ClientConnection, code: str) -> str:
    request = _message("execute_request", {"code": code, "silent": False, "allow_stdin": False})
    socket.send(json.dumps(request))
    printed, deadline = "", time.monotonic() + _ANSWER_WITHIN
    replied = idle = False
    while not (replied and idle):
        message = json.loads(socket.recv(timeout=max(0.0, deadline - time.monotonic())))
        if message["parent_header"].get("msg_id") != request["header"]["msg_id"]:
            continue
        kind, content = message["msg_type"], message["content"]
        if kind == "stream":
            printed += content["text"]
        elif kind == "error":
            raise DemoFailed(f"the cell failed: {content['ename']}: {content['evalue']}")
        replied = replied or kind == "execute_reply"
        idle = idle or (kind == "status" and content["execution_state"] == "idle")
    return printed


def _message(kind: str, content: dict[str, Any]) -> dict[str, Any]:
    header = {
        "msg_id": uuid.uuid4().hex,
        "msg_type": kind,
        "session": uuid.uuid4().hex,
        "username": "",
        "version": "5.3",
    }
    return {"channel": "shell", "header": header, "parent_header": {}, "metadata": {}, "content": content}
