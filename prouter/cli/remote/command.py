"""Click commands that use a router: they have its options, and their errors are one line."""

from __future__ import annotations

from typing import Any

import click

from prouter.cli.remote.failures import failures_end_the_command
from prouter.cli.remote.options import router_options
from prouter.cli.remote.output import output_option

__all__ = ["LocalGroup", "OutputCommand", "RemoteCommand", "RemoteGroup"]


class LocalCommand(click.Command):
    """A command whose errors are one line, and which prints in the form that ``-o`` names."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.params.append(output_option())

    def invoke(self, ctx: click.Context) -> Any:
        with failures_end_the_command():
            return super().invoke(ctx)


class OutputCommand(LocalCommand):
    """A command that uses a router and has ``-o``."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.params.extend(router_options())


class RemoteCommand(click.Command):
    """A command that uses a router, and passes bytes or a page on instead of printing results."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.params.extend(router_options())

    def invoke(self, ctx: click.Context) -> Any:
        with failures_end_the_command():
            return super().invoke(ctx)


class RemoteGroup(click.Group):
    """A group of such commands."""

    command_class = OutputCommand


class LocalGroup(click.Group):
    """A group of commands that use no router."""

    command_class = LocalCommand
