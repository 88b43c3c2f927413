"""``prouter completion``: what a shell runs to complete commands, options, jobs and agents."""

from __future__ import annotations

import shutil

import click
from click.shell_completion import get_completion_class

__all__ = ["command"]

_SHELLS = ("bash", "zsh", "fish")


@click.command("completion")
@click.argument("shell", type=click.Choice(_SHELLS))
@click.pass_context
def command(context: click.Context, shell: str) -> None:
    """Print what makes a shell complete commands, options, and names of jobs, agents and contexts.

    Put the line for your shell into ~/.bashrc or ~/.zshrc; fish reads ~/.config/fish/completions/prouter.fish.

    \b
    Examples:
      eval "$(prouter completion bash)"
      eval "$(prouter completion zsh)"
      prouter completion fish > ~/.config/fish/completions/prouter.fish
    """
    found = get_completion_class(shell)
    assert found is not None
    completion = found(context.find_root().command, {}, "prouter", "_PROUTER_COMPLETE")
    if shell == "bash" and not shutil.which("bash"):
        click.echo(completion.source_template % completion.source_vars())  # what asks bash for its version is not here
        return
    click.echo(completion.source())
