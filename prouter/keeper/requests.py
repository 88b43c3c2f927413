"""Requests of the agent, while the keeper carries them out."""

from __future__ import annotations

from typing import Any

from prouter.keeper.agent_link import AgentLink
from prouter.keeper.job import Job

__all__ = ["Refused", "Request", "Start"]


class Refused(Exception):
    """An operation that cannot be carried out.

    Args:
        code: tells the agent's runner which error it is.
        text: says it to a person.
    """

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


class Request:
    """One request, to be answered now or later. The answer is dropped if the agent has disconnected by then."""

    def __init__(self, link: AgentLink, number: int) -> None:
        self._link = link
        self._agent = link.agent
        self._number = number

    def answer(self, result: Any) -> None:
        """Say that the operation is done, and its result."""
        self._reply({"id": self._number, "result": result})

    def refuse(self, code: str, text: str) -> None:
        """Say why the operation cannot be done."""
        self._reply({"id": self._number, "error": {"code": code, "text": text}})

    def _reply(self, message: dict[str, Any]) -> None:
        if self._link.agent is self._agent:
            self._link.send(message)


class Start:
    """A job's start that is under way.

    Attributes:
        request: of the agent, answered once the command runs or could not be executed.
        held: whether the keeper held the job before; then it holds it again if the start fails.
        pipe: the descriptor on which the forked child tells whether it could execute the command.
        failure: why the command could not be executed, once that is known.
    """

    def __init__(self, job: Job, request: Request, *, held: bool, pipe: int) -> None:
        self.job = job
        self.request = request
        self.held = held
        self.pipe = pipe
        self.failure: str | None = None
