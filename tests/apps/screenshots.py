"""Make the documentation's pictures in a headless Chromium: ``python -m tests.apps.screenshots``."""

from __future__ import annotations

import base64
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from tests.support.chromium import Tab, browser
from tests.support.processes import Router, start_agent, start_router

_PICTURE = Path(__file__).parents[2] / "docs" / "dashboard.png"
_WIDTH, _HEIGHT = 1100, 800
_LARGEST = 200_000
"""Bytes that the picture may have: it is part of the repository."""
_TRAINING = "for e in range(1, 41): print(f'epoch {e:2d}  loss {2.3 / e ** 0.7:.4f}  accuracy {1 - 0.9 / e:.3f}')"
_JOBS = (
    ("train-resnet", "gpu-2", ["python3", "-c", f"import time\n{_TRAINING}\ntime.sleep(600)"], False),
    ("mesh-wing", "cpu-1", ["sh", "-c", "echo 214312 cells; exec sleep 600"], False),
    ("report", "cpu-1", ["sh", "-c", "echo done"], False),
    ("convert", "cpu-1", ["sh", "-c", "echo 'no such file: wing.step' >&2; exit 2"], False),
    ("notebook", "gpu-1", ["python3", "-m", "http.server", "{port}", "--bind", "127.0.0.1"], True),
)
"""Name, agent and command of each job, and whether it has a server."""


def main() -> int:
    """Write the picture; return the exit status."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="shot-")))
        router = start_router(folder / "r", workers=1)
        stack.callback(router.stop)
        for name in ("gpu-1", "gpu-2", "cpu-1"):
            agent = start_agent(folder / name, router, identity__uid=name, identity__name=name)
            stack.callback(agent.stop)
        _start_jobs(router)
        tab = stack.enter_context(browser(folder / "chromium")).profile().open(router.url + "/")
        tab.size(_WIDTH, _HEIGHT)
        _settle(tab)
        picture = base64.b64decode(tab.picture())
    if len(picture) > _LARGEST:
        print(f"the picture has {len(picture)} bytes, more than {_LARGEST}", file=sys.stderr)
        return 1
    _PICTURE.write_bytes(picture)
    print(f"{_PICTURE}: {len(picture)} bytes")
    return 0


def _start_jobs(router: Router) -> None:
    for name, agent, args, serves in _JOBS:
        options = {"expose": {"port": "assign"}} if serves else {"port_expected_count": 0}
        router.start(router.create(agent, name), args, **options)


def _settle(tab: Tab) -> None:
    """Show the training job's log, once the page shows all jobs."""
    tab.wait("document.getElementById('live')?.textContent === 'live'")
    for name, *_ in _JOBS:
        tab.wait(f"document.body.innerText.includes({name!r})")
    tab.wait("[...document.querySelectorAll('#jobs td')].filter((one) => one.innerText === 'FINISHED').length === 2")
    tab.run(
        "[...[...document.querySelectorAll('#jobs tr')].find((row) => row.innerText.includes('train-resnet'))"
        ".querySelectorAll('button')].find((one) => one.textContent === 'Log').click()"
    )
    tab.wait("document.body.innerText.includes('epoch 40')")
    tab.run("document.activeElement.blur(), window.scrollTo({top: 0, behavior: 'instant'})")
    tab.wait("window.scrollY === 0")


if __name__ == "__main__":
    sys.exit(main())
