"""The audit log of what commands change: tokens and invitations of a router."""

from __future__ import annotations

import os
import pwd
from typing import Any

import click

from prouter.config import RouterConfig
from prouter.web.audit import AuditLog

__all__ = ["write_audit"]


def write_audit(config: RouterConfig, operation: str, status: int, **about: Any) -> None:
    """Append a line to the router's audit log, if it has one. If that fails, say so: the change is made already.

    Args:
        operation: what the command did.
        status: what the response to a request that does the same has.
        about: what was changed.
    """
    if config.audit.file is None and config.audit.syslog is None:
        return
    trouble = AuditLog(config.audit).write_command(operation, user=_user(), status=status, about=about)
    if trouble:
        click.echo(f"prouter: the audit log has no line about this: {trouble}", err=True)


def _user() -> str:
    """The system's name of who runs this process, or the number if there is none."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())
