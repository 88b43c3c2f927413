"""The templates of an agent, by which jobs are started whose requests name one (``jobs.pool``)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prouter.agent.expose.exposure import resolve
from prouter.agent.jobs.starts.spec import effective_limits
from prouter.agent.jobs.state.job import Job
from prouter.errors import Conflict, InvalidRequest, NotFound
from prouter.requests import Limits, StartRequest, validated
from prouter.resources import Amounts, lacking
from prouter.template_requests import Template, TemplateStart, start_model

__all__ = ["Templates"]


class Templates:
    """Templates by name.

    Args:
        known: as configured.
        ceilings: the highest limits of any job.
        resources: what jobs may take together.

    Raises:
        InvalidRequest: no job could ever be started by one of them; the detail names it.
    """

    def __init__(self, known: Mapping[str, Template], ceilings: Limits, resources: Amounts) -> None:
        self._known = dict(known)
        self._ceilings = ceilings
        self._total = resources
        for name in self._known:
            self._check(name)

    @property
    def sizes(self) -> dict[str, int]:
        """How many jobs of each are kept ready."""
        return {name: template.size for name, template in self._known.items()}

    def resources(self, name: str) -> Amounts:
        """What a job of a template takes; nothing if there is no such template."""
        return self._known[name].resources if name in self._known else {}

    def request(self, name: str, timeout: float | None = None) -> StartRequest:
        """The request that starts a job by a template.

        Args:
            timeout: seconds that this job may run; None for what the template says.

        Raises:
            NotFound: there is no such template.
        """
        template = self._known.get(name)
        if template is None:
            there = f"its templates: {', '.join(self._known)}" if self._known else "it has none"
            raise NotFound(f"the agent has no template '{name}' (jobs.pool); {there}", code="no_template")
        return template.start(timeout)

    def wanted(self, said: StartRequest | TemplateStart) -> StartRequest:
        """The start that a request asks for.

        Raises:
            NotFound: it names a template that there is not.
        """
        return self.request(said.template, said.timeout) if isinstance(said, TemplateStart) else said

    def said(self, job: Job, said: Mapping[str, Any]) -> StartRequest | TemplateStart:
        """The request to start a job.

        Raises:
            InvalidRequest: it is malformed.
            Conflict: the job is of a template that the request does not name.
        """
        request = validated(start_model(said), said)
        named = request.template if isinstance(request, TemplateStart) else None
        own = job.record.template
        if own is not None and named != own:
            raise Conflict(
                f"job '{job.uid}' was created by the template '{own}': start it with {{\"template\": \"{own}\"}}",
                job=job.uid,
                state=job.record.state.value,
            )
        return request

    def _check(self, name: str) -> None:
        try:
            request = self.request(name)
            resolve(request)
            effective_limits(request.limits, self._ceilings)
            short = lacking(self.resources(name), self._total, {})
            if short:
                text = f"resources: {short[0]}: the agent has {self._total.get(short[0], 0):.15g} (jobs.resources)"
                raise InvalidRequest(text)
        except InvalidRequest as error:
            raise InvalidRequest(f"jobs.pool: {name}: {error.detail.removeprefix('Invalid request: ')}") from None
