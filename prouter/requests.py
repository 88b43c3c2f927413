"""Request bodies of the HTTP API as typed models: the API and the agent validate with them, OpenAPI is made from them.

The models are strict, as the original's schemas are: no key beyond those listed, no number where a text is asked for. A
model's `model_dump()` is the plain map that crosses the fabric; the agent validates it again on arrival.
"""

from __future__ import annotations

import math
import signal
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from prouter.addresses import split_address
from prouter.errors import InvalidRequest

__all__ = [
    "AgentByAddress",
    "AgentByProperties",
    "AgentBySelect",
    "AgentByUid",
    "BridgeRequest",
    "CreateRequest",
    "Expose",
    "Limits",
    "RunRequest",
    "SignalRequest",
    "StartRequest",
    "StopRequest",
    "explain",
    "validated",
]

PresetName = Literal["jupyterlab", "streamlit", "dash", "gradio", "bokeh", "uvicorn"]
"""Kinds of servers whose usual variables the agent knows (see docs/jobs.md)."""

START_TIMEOUT = 30.0
"""Seconds a start may take unless the request says otherwise; the original's figure."""
MAX_GRACE = 3600.0
"""Longest grace of a stop, in seconds."""


def _no_nul(text: str) -> str:
    if "\0" in text:
        raise ValueError("must not hold a NUL character")
    return text


def _variable(name: str) -> str:
    if not name or "=" in name:
        raise ValueError("the name of an environment variable must not be empty or hold '='")
    return _no_nul(name)


def _finite(number: float) -> float:
    if not math.isfinite(number):
        raise ValueError("must be a finite number")
    return number


def _address(text: str) -> str:
    split_address(text)
    return text


def _readiness(text: str) -> str:
    if text in ("tcp", "http"):
        return text
    if text.startswith("/") and text.isascii() and text.isprintable() and " " not in text:
        return text
    raise ValueError("must be 'tcp', 'http' or a path that starts with '/'")


def _signal_name(text: str) -> str:
    name = text.upper()
    name = name if name.startswith("SIG") else f"SIG{name}"
    if name not in signal.Signals.__members__:
        raise ValueError(f"unknown signal '{text}'")
    return name


Text = Annotated[str, AfterValidator(_no_nul)]
Variable = Annotated[str, AfterValidator(_variable)]
Seconds = Annotated[float, AfterValidator(_finite)]
Address = Annotated[str, AfterValidator(_address)]
Readiness = Annotated[str, AfterValidator(_readiness)]
SignalName = Annotated[str, AfterValidator(_signal_name)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class AgentByUid(_Body):
    """The connected agent with this uid."""

    type: Literal["uid"]
    uid: str = Field(description="Uid of a connected agent.")


class AgentByAddress(_Body):
    """The agent that listens at this address; the router dials it, unless it is linked already."""

    type: Literal["address"]
    address: Address = Field(description="Where the agent listens, 'host:port'.", examples=["10.0.0.7:5000"])
    token: str = Field(description="Token the agent accepts.")


class AgentBySelect(_Body):
    """The least loaded of the agents with these uids that has a free slot."""

    type: Literal["select"]
    uids: list[str] = Field(min_length=1, description="Uids to choose from.")


class AgentByProperties(_Body):
    """The least loaded agent that has these properties and a free slot."""

    type: Literal["any"]
    properties: dict[str, Any] = Field(
        default_factory=dict, description="Every one of these must equal the agent's property of that name."
    )


AgentChoice = Annotated[AgentByUid | AgentByAddress | AgentBySelect | AgentByProperties, Field(discriminator="type")]


class CreateRequest(_Body):
    """Body of POST /jobs/create."""

    name: str = Field(description="Name for people; need not be unique.")
    agent: AgentChoice = Field(description="Which agent gets the job.")


class Expose(_Body):
    """How an unmodified HTTP server is found, waited for and put under the job's path.

    A preset gives the defaults of `port`, `path`, `ready` and `timeout`; without one they are those named below.
    """

    port: Literal["notify", "assign", "detect", "unix"] | None = Field(
        default=None,
        description="How the port becomes known: 'notify' (default): the job reports it; 'assign': the agent picks a "
        "free one; 'detect': the agent watches where the job's processes listen; 'unix': a unix socket, no port. In "
        "every mode only a port on which the job's own processes listen counts.",
    )
    path: Literal["strip", "keep", "auto"] | None = Field(
        default=None,
        description="Whether the job sees paths without ('strip', default) or with ('keep') its public prefix; "
        "'auto' asks the job once it answers.",
    )
    host: Literal["public", "local"] | None = Field(
        default=None,
        description="Which host the job sees itself asked for: 'public' (default): the one in the client's request; "
        "'local': its own address on its machine, in Host, Origin and Referer, for servers that accept no other.",
    )
    ready: Readiness | None = Field(
        default=None,
        description="When the job counts as started: 'tcp': it accepts a connection (default, but with 'notify' its "
        "report is enough); 'http': any HTTP answer (default with 'detect'); '/path': 2xx, 3xx, 401 or 403 for this "
        "path below the job's root.",
    )
    timeout: Seconds | None = Field(
        default=None, gt=0, description=f"Seconds the start may take; {START_TIMEOUT:.0f} by default."
    )
    preset: PresetName | None = Field(default=None, description="Sets the usual variables of this kind of server.")


class Limits(_Body):
    """What a job may use; what is not given is limited by the agent's ceilings alone."""

    timeout: Seconds | None = Field(default=None, gt=0, description="Seconds from its start until the job is ended.")
    memory: int | None = Field(default=None, gt=0, description="Bytes of resident memory of all its processes.")
    cpu_seconds: Seconds | None = Field(default=None, gt=0, description="Seconds of CPU time of all its processes.")
    open_files: int | None = Field(default=None, gt=0, description="Open files of each process.")
    processes: int | None = Field(default=None, gt=0, description="Processes at the same time.")
    sandbox_size: int | None = Field(default=None, gt=0, description="Bytes of disk space of the sandbox.")


class StartRequest(_Body):
    """Body of POST JOB_PATH/start."""

    args: list[Text] = Field(min_length=1, description="Program and arguments.", examples=[["python3", "server.py"]])
    env: dict[Variable, Text] = Field(description="Environment variables; they override all others.")
    name: str | None = Field(default=None, description="Accepted for compatibility; a job is named when it is created.")
    cwd: Text | None = Field(default=None, description="Working directory, relative to the sandbox and inside it.")
    port_expected_count: int = Field(
        default=1, ge=0, le=65535, description="How many ports the job reports; unused unless expose.port is 'notify'."
    )
    forward_stdout: bool = Field(
        default=False, description="Output goes to the agent's own stdout and stderr instead of files in the sandbox."
    )
    home: Literal["agent", "sandbox"] | None = Field(
        default=None,
        description="HOME of the job: the agent's, or the sandbox. By default what the agent's jobs.home says.",
    )
    expose: Expose | None = Field(default=None, description="For servers that know nothing of this system.")
    limits: Limits | None = Field(default=None, description="Limits of this job, within the agent's ceilings.")


class RunRequest(StartRequest):
    """Body of POST /jobs/run: create and start in one call."""

    name: str = Field(description="Name for people; need not be unique.")
    agent: AgentChoice = Field(default=AgentByProperties(type="any"), description="Which agent gets the job.")
    env: dict[Variable, Text] = Field(
        default_factory=dict, description="Environment variables; they override all others."
    )

    def create(self) -> CreateRequest:
        """The part that creates the job."""
        return CreateRequest(name=self.name, agent=self.agent)

    def start(self) -> StartRequest:
        """The part that starts it."""
        return StartRequest.model_validate(self.model_dump(exclude={"name", "agent"}))


class SignalRequest(_Body):
    """Body of POST JOB_PATH/signal."""

    signal: SignalName = Field(description="Name of the signal, with or without SIG.", examples=["TERM", "SIGUSR1"])


class BridgeRequest(_Body):
    """Body of POST JOB_PATH/wsconnect/PATH."""

    url: Text = Field(
        pattern=r"^wss?://", description="WebSocket to bridge the job's with.", examples=["ws://host:1/x"]
    )


class StopRequest(_Body):
    """Body of POST JOB_PATH/stop."""

    grace: Seconds = Field(
        default=10.0, ge=0, le=MAX_GRACE, description="Seconds between SIGTERM and SIGKILL to the whole process tree."
    )


Model = TypeVar("Model", bound=BaseModel)


def validated(model: type[Model], body: object) -> Model:
    """The body, parsed from JSON or msgpack, as a model.

    Raises:
        InvalidRequest: it does not fit; the detail starts with ``Invalid request`` and names every wrong key.
    """
    try:
        return model.model_validate(body)
    except ValidationError as error:
        raise InvalidRequest(explain(error)) from None


def explain(error: ValidationError) -> str:
    """What is wrong with a body, in one line: ``Invalid request: env.PORT: Input should be a valid string``."""
    parts = []
    for item in error.errors(include_url=False, include_context=False, include_input=False):
        where = ".".join(str(step) if str(step).isprintable() else repr(step) for step in item["loc"])
        parts.append(f"{where}: {item['msg']}" if where else item["msg"])
    return "Invalid request: " + "; ".join(parts)
