"""Plays a flow of the client against a router that is a function, with a clock of its own: no network, no waiting."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

from prouter.client.core.flow import Body, Flow, Give, Lost, Now, Open, Read, Request, Response, Send, Sleep, Work
from prouter.client.core.retries import Context

__all__ = ["Answer", "FlowPlayer", "body_of", "context"]

T = TypeVar("T")


@dataclass(frozen=True)
class Answer:
    """What the router sends: a head, and pieces of a body, the last of which may be a loss."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    pieces: tuple[bytes | Lost, ...] = ()


Server = Callable[[Request], Answer | Lost]


def context(**changes: Any) -> Context:
    """A context whose keys are counted and whose pauses are as long as they may be."""
    keys = (f"key-{number}" for number in range(1000))
    settings = {"random": lambda: 1.0, "new_key": lambda: next(keys), "reached": True, **changes}
    return Context("http://router", **settings)


def body_of(request: Request) -> bytes:
    """Return a request's body, as the driver would send it."""
    if not isinstance(request.body, Body):
        return request.body or b""
    data = b""
    for chunk in request.body.chunks():
        data += chunk
        request.body.on_sent(len(chunk))
    return data


class FlowPlayer:
    """Plays flows.

    Attributes:
        moment: the clock.
        requests: all requests so far.
        pauses: all pauses so far.
        given: all items that flows gave.

    Args:
        enough: ends the flow once it has given so many items.
    """

    def __init__(self, server: Server, *, enough: int | None = None) -> None:
        self._server = server
        self._enough = enough
        self.moment = 0.0
        self.requests: list[Request] = []
        self.pauses: list[float] = []
        self.given: list[Any] = []
        self._pieces: Iterator[bytes | Lost] = iter(())

    def run(self, flow: Flow[T]) -> T | None:
        """Return the flow's result; None if it was ended early."""
        reply: Any = None
        loss: BaseException | None = None
        while True:
            try:
                command = flow.send(reply) if loss is None else flow.throw(loss)
            except StopIteration as stop:
                result: T = stop.value
                return result
            reply, loss = None, None
            if isinstance(command, Give):
                self.given.append(command.item)
                if len(self.given) == self._enough:
                    flow.close()
                    return None
                continue
            try:
                reply = self._carry_out(command)
            except (Lost, OSError) as error:
                loss = error

    def _carry_out(self, command: Any) -> Any:
        if isinstance(command, Sleep):
            self.pauses.append(command.seconds)
            self.moment += command.seconds
        elif isinstance(command, Now):
            return self.moment
        elif isinstance(command, Work):
            return command.call()
        elif isinstance(command, Read):
            piece = next(self._pieces, b"")
            if isinstance(piece, Lost):
                raise piece
            return piece
        elif isinstance(command, (Send, Open)):
            self.requests.append(command.request)
            answer = self._server(command.request)
            if isinstance(answer, Lost):
                raise answer
            if isinstance(command, Open):
                self._pieces = (piece for piece in answer.pieces if piece != b"")
                return Response(answer.status, answer.headers)
            for piece in answer.pieces:
                if isinstance(piece, Lost):
                    raise piece
            return Response(answer.status, answer.headers, b"".join(answer.pieces))  # type: ignore[arg-type]
        return None
