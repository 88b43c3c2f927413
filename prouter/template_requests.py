"""Templates of jobs, which agents offer by name (``jobs.pool``), and the requests that name one.

A template says once how a kind of job is started. A request that names it says nothing of that: a job that is kept
ready was started before anybody asked for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field, field_validator, model_validator

from prouter.bodies import Body, Duration
from prouter.requests import AgentOrAny, CreateRequest, JobName, RunRequest, StartRequest, TemplateName
from prouter.resources import check_amounts
from prouter.selectors import AgentByProperties, Queue, check_queue

__all__ = ["Template", "TemplateLimits", "TemplateRun", "TemplateStart", "run_model", "start_model"]

_MOST_READY = 100
"""Jobs of one template that an agent keeps ready, at most."""


class Template(StartRequest):
    """How jobs of one kind are started, and how many of them an agent keeps ready."""

    env: dict[str, str] = Field(default_factory=dict)
    size: int = Field(1, ge=0, le=_MOST_READY, description="Jobs to keep ready; 0 for none.")
    resources: dict[str, float] = Field(
        default_factory=dict, description="What a job of this kind takes of the agent's jobs.resources."
    )

    @field_validator("resources")
    @classmethod
    def _are_amounts(cls, value: dict[str, float]) -> dict[str, float]:
        check_amounts(value)
        return value

    def start(self, timeout: float | None = None) -> StartRequest:
        """Return the request that starts a job of this kind.

        Args:
            timeout: seconds that this job may run; None for what the template says.
        """
        said = self.model_dump(exclude={"size", "resources", "name"}, exclude_none=True)
        if timeout is not None:
            said["limits"] = {**said.get("limits", {}), "timeout": timeout}
        return StartRequest.model_validate(said)


class TemplateLimits(Body):
    """Limits of a job that is started from a template; the template has the others."""

    timeout: Duration | None = Field(default=None, description="Seconds until the job is ended.")


class TemplateStart(Body):
    """Body of POST JOB_PATH/start for a job of a template."""

    template: TemplateName = Field(description="Name of a template that the job's agent has (jobs.pool).")
    name: JobName | None = Field(default=None, description="Accepted for compatibility; `create` names a job.")
    limits: TemplateLimits | None = Field(default=None, description="Limits of this job.")

    @model_validator(mode="before")
    @classmethod
    def _said_by_the_template(cls, body: Any) -> Any:
        if isinstance(body, Mapping):
            for key in StartRequest.model_fields:
                if key not in cls.model_fields and body.get(key) is not None:
                    raise ValueError(f"{key}: the template says this already; leave out either {key} or template")
        return body

    @property
    def timeout(self) -> float | None:
        """Seconds that the job may run, if the request says."""
        return self.limits.timeout if self.limits is not None else None


class TemplateRun(TemplateStart):
    """Body of POST /jobs/run for a job of a template."""

    name: JobName = Field(description="Name for people; need not be unique.")
    agent: AgentOrAny = Field(default=AgentByProperties(type="any"), description="Which agent gets the job.")
    queue: Queue | None = Field(
        default=None, description="Let the job wait if no agent has space for it; without it the answer is 429 then."
    )

    @model_validator(mode="after")
    def _queue_for_linked_agents(self) -> TemplateRun:
        check_queue(self.agent, self.queue)
        return self

    def create(self) -> CreateRequest:
        """Return the part that creates the job."""
        return CreateRequest(name=self.name, agent=self.agent, queue=self.queue, template=self.template)

    def start(self) -> TemplateStart:
        """Return the part that starts the job."""
        return TemplateStart(template=self.template, limits=self.limits)


def _names_template(body: object) -> bool:
    return isinstance(body, Mapping) and body.get("template") is not None


def start_model(body: object) -> type[StartRequest | TemplateStart]:
    """Return the model for the body of a start."""
    return TemplateStart if _names_template(body) else StartRequest


def run_model(body: object) -> type[RunRequest | TemplateRun]:
    """Return the model for the body of a run."""
    return TemplateRun if _names_template(body) else RunRequest
