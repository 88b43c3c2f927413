"""Request bodies of the HTTP API as typed models. API and agent validate with them; OpenAPI is generated from them.

The models are strict, as the original's schemas are: they refuse unknown keys, and a number where text is expected. A
model's `model_dump()` is the plain map that crosses the fabric; the agent validates it again when it arrives.
"""

from __future__ import annotations

import hashlib
import json
import re
import signal
import unicodedata
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, ValidationError, model_validator

from prouter.bodies import Body, Duration, finite, null_is
from prouter.errors import InvalidRequest
from prouter.explanations import explain
from prouter.jobs import MAX_NAME, TEMPLATE_NAME
from prouter.selectors import (
    AgentByAddress,
    AgentByProperties,
    AgentBySelect,
    AgentByUid,
    AgentChoice,
    Queue,
    check_queue,
    few_properties,
)

__all__ = [
    "MAX_STRING",
    "AgentByAddress",
    "AgentByProperties",
    "AgentBySelect",
    "AgentByUid",
    "AgentOrAny",
    "Body",
    "BridgeRequest",
    "CreateRequest",
    "Duration",
    "Expose",
    "JobName",
    "Limits",
    "Queue",
    "RunRequest",
    "SignalRequest",
    "StartRequest",
    "StopRequest",
    "TemplateName",
    "Text",
    "digest",
    "signal_number",
    "validated",
]

PresetName = Literal[
    "jupyterlab", "notebook", "voila", "streamlit", "dash", "bokeh", "panel", "gradio", "uvicorn", "marimo", "mlflow",
    "vite", "code-server", "datasette", "tensorboard",
]  # fmt: skip
"""Kinds of servers whose usual variables and arguments the agent knows (docs/jobs.md)."""

UNNAMED = "<unnamed job>"
"""The name of a job whose request leaves it empty; the original's."""
START_TIMEOUT = 30.0
"""Seconds that a start may take unless the request says otherwise; the original's default."""
MAX_GRACE = 3600.0
"""Seconds of grace of a stop, at most."""
MAX_STRING = 128 * 1024 - 1
"""Bytes of one argument or variable, at most: the kernel's MAX_ARG_STRLEN without the NUL (execve(2))."""

_MAX_ARGS = 131_072
_MAX_VARIABLES = 16_384
_MAX_PATH = 4096
"""Bytes of a path, at most: the system's PATH_MAX."""
_MAX_URL = 8192


_DIRECTIONS = frozenset({"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"})
"""Bidirectional classes of explicit formatting characters (Unicode Standard Annex 9, section 2)."""
_REAL_TIME = re.compile(r"SIG(?:RTMIN\+(\d{1,2})|RTMAX-(\d{1,2}))", re.ASCII)


def _no_nul(text: str) -> str:
    if "\0" in text:
        raise ValueError("must not hold a NUL character")
    return text


def _argument(text: str) -> str:
    if len(text) * 4 > MAX_STRING and len(text.encode()) > MAX_STRING:
        raise ValueError(f"must have at most {MAX_STRING} bytes; the system takes no longer ones")
    return _no_nul(text)


def _name(text: str) -> str:
    if not text.isprintable() and any(map(_controls, text)):
        raise ValueError("must not hold control characters, nor those that change the direction of writing")
    return text


def _controls(letter: str) -> bool:
    """Whether a character controls a terminal, ends a line, or changes the direction of what follows."""
    return unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") or unicodedata.bidirectional(letter) in _DIRECTIONS


def _path(text: str) -> str:
    if len(text.encode()) > _MAX_PATH:
        raise ValueError(f"must have at most {_MAX_PATH} bytes")
    return _no_nul(text)


def _named(name: str) -> str:
    return name or UNNAMED


def _variable(name: str) -> str:
    if not name or "=" in name:
        raise ValueError("the name of an environment variable must not be empty or hold '='")
    return _argument(name)


def _variables(env: dict[str, str]) -> dict[str, str]:
    for name, text in env.items():
        if (len(name) + len(text)) * 4 > MAX_STRING and len(name.encode()) + len(text.encode()) >= MAX_STRING:
            raise ValueError(f"{name[:64]}: name and value must have less than {MAX_STRING} bytes together")
    return env


def _readiness(text: str) -> str:
    if text in ("tcp", "http"):
        return text
    if text.startswith("/") and text.isascii() and text.isprintable() and " " not in text:
        return text
    raise ValueError("must be 'tcp', 'http' or a path that starts with '/'")


def signal_number(name: str) -> int:
    """Return the number of a signal: ``SIGTERM``, or a real-time one as ``SIGRTMIN+n`` or ``SIGRTMAX-n``.

    Raises:
        ValueError: there is no such signal.
    """
    known = signal.Signals.__members__.get(name)
    if known is not None:
        return known
    match = _REAL_TIME.fullmatch(name)
    number = (signal.SIGRTMIN + int(match[1]) if match[1] else signal.SIGRTMAX - int(match[2])) if match else -1
    if not signal.SIGRTMIN <= number <= signal.SIGRTMAX:
        raise ValueError("unknown signal; expected is a name such as SIGTERM, TERM or SIGRTMIN+1")
    return number


def _signal_name(text: str) -> str:
    name = text.upper()
    name = name if name.startswith("SIG") else f"SIG{name}"
    signal_number(name)
    return name


JobName = Annotated[str, Field(max_length=MAX_NAME), AfterValidator(_name), AfterValidator(_named)]
TemplateName = Annotated[str, Field(pattern=f"^{TEMPLATE_NAME}$")]
Text = Annotated[str, AfterValidator(_no_nul)]
Argument = Annotated[str, AfterValidator(_argument)]
Path = Annotated[str, AfterValidator(_path)]
Variable = Annotated[str, AfterValidator(_variable)]
Seconds = Annotated[float, AfterValidator(finite)]
Readiness = Annotated[str, Field(max_length=_MAX_PATH), AfterValidator(_readiness)]
SignalName = Annotated[str, AfterValidator(_signal_name)]
_Variables = Annotated[dict[Variable, Argument], Field(max_length=_MAX_VARIABLES), AfterValidator(_variables)]
_ResourceName = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_.:-]{0,63}$")]
_Amount = Annotated[float, Field(ge=0), AfterValidator(finite)]
Resources = Annotated[dict[_ResourceName, _Amount], Field(max_length=64)]
"""Amounts by name; memory is in bytes."""
OptionsOfRunner = Annotated[dict[str, Any], AfterValidator(few_properties)]
Variables = Annotated[_Variables, BeforeValidator(null_is(dict), json_schema_input_type=_Variables | None)]


class CreateRequest(Body):
    """Body of POST /jobs/create."""

    name: JobName = Field(description="Name for people; need not be unique.")
    agent: AgentChoice = Field(description="Which agent gets the job.")
    template: TemplateName | None = Field(default=None, description="Template (jobs.pool) by which the job is started.")
    queue: Queue | None = Field(
        default=None, description="Let the job wait if no agent has space for it; without it the answer is 429 then."
    )

    @model_validator(mode="after")
    def _queue_for_linked_agents(self) -> CreateRequest:
        check_queue(self.agent, self.queue)
        return self


class Expose(Body):
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
    timeout: Duration | None = Field(
        default=None, description=f"Seconds the start may take; {START_TIMEOUT:.0f} by default."
    )
    preset: PresetName | None = Field(
        default=None,
        description="Sets what this kind of server needs to run under a job's path: variables, arguments or a "
        "configuration file. What cannot work with it is refused.",
    )


class Limits(Body):
    """What a job may use; what is not given is limited by the agent's ceilings alone."""

    timeout: Duration | None = Field(default=None, description="Seconds from its start until the job is ended.")
    memory: int | None = Field(default=None, gt=0, description="Bytes of resident memory of all its processes.")
    cpu_seconds: Duration | None = Field(default=None, description="Seconds of CPU time of all its processes.")
    open_files: int | None = Field(default=None, gt=0, description="Open files of each process.")
    processes: int | None = Field(default=None, gt=0, description="Processes at the same time.")
    sandbox_size: int | None = Field(default=None, gt=0, description="Bytes of disk space of the sandbox.")


class StartRequest(Body):
    """Body of POST JOB_PATH/start."""

    args: list[Argument] = Field(
        min_length=1, max_length=_MAX_ARGS, description="Program and arguments.", examples=[["python3", "server.py"]]
    )
    env: Variables = Field(description="Environment variables; they override all others.")
    name: JobName | None = Field(default=None, description="Accepted for compatibility; `create` names a job.")
    cwd: Path | None = Field(default=None, description="Working directory, relative to the sandbox and inside it.")
    port_expected_count: Annotated[int, BeforeValidator(null_is(lambda: 1), json_schema_input_type=int | None)] = Field(
        default=1, ge=0, le=65535, description="How many ports the job reports; unused unless expose.port is 'notify'."
    )
    forward_stdout: Annotated[bool, BeforeValidator(null_is(lambda: False), json_schema_input_type=bool | None)] = (
        Field(
            default=False,
            description="Output goes to the agent's own stdout and stderr instead of files in the sandbox.",
        )
    )
    home: Literal["agent", "sandbox"] | None = Field(
        default=None,
        description="HOME of the job: the agent's, or the sandbox. By default what the agent's jobs.home says.",
    )
    expose: Expose | None = Field(default=None, description="For servers that know nothing of this system.")
    limits: Limits | None = Field(default=None, description="Limits of this job, within the agent's ceilings.")
    resources: Resources | None = Field(
        default=None,
        description="What the agent's runner reserves for the job: `cpus`, `memory` (bytes), `gpus` and what else it "
        "knows. A runner that reserves nothing, such as `local`, refuses it.",
        examples=[{"cpus": 4, "memory": 8e9}],
    )
    slurm: OptionsOfRunner | None = Field(
        default=None, description="Options of this job for agents whose runner is `slurm`; others refuse it."
    )
    runner_options: Annotated[dict[str, OptionsOfRunner], Field(max_length=1)] | None = Field(
        default=None,
        description='The same for any runner, by its name: `{"slurm": {…}}`.',
    )


_ANY = AgentByProperties(type="any")
AgentOrAny = Annotated[AgentChoice, BeforeValidator(null_is(lambda: _ANY), json_schema_input_type=AgentChoice | None)]


class RunRequest(StartRequest):
    """Body of POST /jobs/run: create and start in one call."""

    name: JobName = Field(description="Name for people; need not be unique.")
    agent: AgentOrAny = Field(default=_ANY, description="Which agent gets the job.")
    queue: Queue | None = Field(
        default=None, description="Let the job wait if no agent has space for it; without it the answer is 429 then."
    )
    env: Variables = Field(default_factory=dict, description="Environment variables; they override all others.")

    @model_validator(mode="after")
    def _queue_for_linked_agents(self) -> RunRequest:
        check_queue(self.agent, self.queue)
        return self

    def create(self) -> CreateRequest:
        """Return the part that creates the job."""
        return CreateRequest(name=self.name, agent=self.agent, queue=self.queue)

    def start(self) -> StartRequest:
        """Return the part that starts the job."""
        return StartRequest.model_validate(self.model_dump(exclude={"name", "agent", "queue"}))


class SignalRequest(Body):
    """Body of POST JOB_PATH/signal."""

    signal: SignalName = Field(
        description="Name of the signal, with or without SIG.", examples=["TERM", "SIGUSR1", "SIGRTMIN+3"]
    )


class BridgeRequest(Body):
    """Body of POST JOB_PATH/wsconnect/PATH."""

    url: Text = Field(
        max_length=_MAX_URL,
        description="WebSocket to bridge the job's with: a ws, wss, http or https URL.",
        examples=["ws://host:1/x"],
    )


class StopRequest(Body):
    """Body of POST JOB_PATH/stop."""

    grace: Annotated[Seconds, BeforeValidator(null_is(lambda: 10.0), json_schema_input_type=Seconds | None)] = Field(
        default=10.0, ge=0, le=MAX_GRACE, description="Seconds between SIGTERM and SIGKILL to the whole process tree."
    )


Model = TypeVar("Model", bound=BaseModel)


def validated(model: type[Model], body: object) -> Model:
    """Return a body, decoded from JSON or msgpack, as a model.

    Raises:
        InvalidRequest: the body does not fit; the detail begins with ``Invalid request`` and names the wrong keys.
    """
    try:
        return model.model_validate(body)
    except ValidationError as error:
        raise InvalidRequest(explain(error, model)) from None


def digest(request: BaseModel) -> str:
    """Return a hash of a request's content: the same for bodies that mean the same, however they are written.

    Fields that a later version adds do not change it, as long as they have their defaults.
    """
    said = json.dumps(request.model_dump(mode="json", exclude_defaults=True), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(said.encode()).hexdigest()[:32]
