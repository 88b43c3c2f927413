"""``prouter demo``: JupyterLab as a job on an agent, in the browser, until Ctrl-C."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib import resources
from pathlib import Path
from types import FrameType
from typing import NoReturn

import click
from rich.console import Console

from prouter.demo.kernel import run_cell
from prouter.demo.lab import Lab
from prouter.demo.stand import DemoFailed, Stand

__all__ = ["command"]

_NOTEBOOK = "welcome.ipynb"
_LONGEST_DIRECTORY = 50
_QUIET = {
    ".jupyter/settings/@jupyterlab/apputils-extension/notification.jupyterlab-settings": {
        "checkForUpdates": False,
        "doNotDisturbMode": True,
        "fetchNews": "false",
    }
}
"""JupyterLab's settings by file: no questions, and no requests to other hosts."""


class _Ended(BaseException):
    """A signal asked for the end."""


@click.command("demo")
@click.option("--check", is_flag=True, help="Fetch the page, run a cell over WebSocket, print its output and exit.")
def command(check: bool) -> None:
    """Run JupyterLab as a job on an agent, and print the address to open in a browser.

    Starts a router with two workers and an agent on free ports of this machine. Ctrl-C ends everything and leaves
    nothing behind.

    \b
    Examples:
      prouter demo
      prouter demo --check
    """
    if importlib.util.find_spec("jupyterlab") is None:
        raise click.ClickException("JupyterLab is not installed; install prouter[demo]: pip install 'prouter[demo]'")
    console = Console(highlight=False)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, _end)
    try:
        _run(console, check)
    except DemoFailed as error:
        raise click.ClickException(error.detail) from error
    except _Ended:
        if check:
            raise SystemExit(1) from None
    console.print("Ended: no process and no sandbox left.")


def _run(console: Console, check: bool) -> None:
    with ExitStack() as cleanup:
        directory = cleanup.enter_context(tempfile.TemporaryDirectory(prefix="prouter-demo-", dir=_temporary()))
        with _step(console, "router with two workers, and an agent"):
            stand = cleanup.enter_context(Stand(Path(directory)))
        with _step(console, "job created, notebook uploaded"):
            lab = Lab(stand.url, stand.agent)
            cleanup.callback(lab.remove)
            notebook = resources.files("prouter.demo").joinpath(_NOTEBOOK).read_bytes()
            lab.upload(_NOTEBOOK, notebook)
            for name, settings in _QUIET.items():
                lab.upload(name, json.dumps(settings).encode())
        with _step(console, "JupyterLab started as that job"):
            lab.start()
        if check:
            _check(console, lab)
        else:
            _show(console, lab)
            stand.watch()


def _temporary() -> str:
    """Return the directory for temporary files; its path must leave room for that of a unix socket (unix(7))."""
    usual = tempfile.gettempdir()
    return usual if len(os.fsencode(usual)) <= _LONGEST_DIRECTORY else "/tmp"  # noqa: S108 (made by tempfile)


def _check(console: Console, lab: Lab) -> None:
    """Do what a browser would do.

    Raises:
        DemoFailed: something did not work.
    """
    with _step(console, "page opened"):
        page = lab.get("lab")
        if b"<title>JupyterLab</title>" not in page:
            raise DemoFailed(f"/lab is not JupyterLab's page: {page[:200]!r}")
    with _step(console, "notebook read, its first cell run in a kernel over WebSocket"):
        notebook = json.loads(lab.get(f"api/contents/{_NOTEBOOK}"))["content"]
        code = next(cell["source"] for cell in notebook["cells"] if cell["cell_type"] == "code")
        printed = run_cell(lab, code)
        if "6 * 7 =  42" not in printed:
            raise DemoFailed(f"the cell did not print what it should: {printed!r}")
    console.print(f"\n{printed.rstrip()}\n", markup=False)


def _show(console: Console, lab: Lab) -> None:
    link = lab.link(f"lab/tree/{_NOTEBOOK}")
    console.print("\nJupyterLab runs as a job behind the router. Open:\n")
    console.print(f"    [link={link}]{link}[/link]\n", soft_wrap=True)
    console.print("Ctrl-C ends it.")


@contextmanager
def _step(console: Console, title: str) -> Iterator[None]:
    """Show what is going on, and then that it is done."""
    with console.status(f"{title} …"):
        yield
    console.print(f"[green]✓[/green] {title}")


def _end(number: int, _frame: FrameType | None) -> NoReturn:
    for repeated in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(repeated, signal.SIG_IGN)  # Cleaning up takes seconds; a second Ctrl-C must not cut it short.
    raise _Ended(number)
