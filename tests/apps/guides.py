"""The guides of docs/guides whose application is not in the tests' environment, followed word by word."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml
from playwright.sync_api import Browser, Page, expect

from tests.apps import checks
from tests.apps.environment import Environment
from tests.apps.job import AppJob
from tests.apps.page import Recipe
from tests.support.blocks import blocks, environment, run_shell
from tests.support.processes import start_agent, start_router

__all__ = ["Guide", "follow", "guides"]

_FOLDER = Path(__file__).parents[2] / "docs" / "guides"
_MARK = "make apps: "


@dataclass(frozen=True)
class Guide:
    """A guide.

    Attributes:
        name: of its page.
        recipe: what has to be installed for it.
        steps: its blocks. The first one ends with the address to open.
    """

    name: str
    recipe: Recipe
    steps: list[str]


def guides() -> Iterator[Guide]:
    """All guides with blocks that are marked ``make apps: KIND PACKAGES``."""
    for page in sorted(_FOLDER.glob("*.md")):
        steps = [block for block in blocks(page, "sh") if block.mark.startswith(_MARK)]
        if steps:
            kind, *packages = steps[0].mark.removeprefix(_MARK).split()
            recipe = Recipe(f"guide {page.stem}", {kind: packages}, {}, ())
            yield Guide(page.stem, recipe, [step.text for step in steps])


def follow(guide: Guide, installed: Environment, browser: Browser) -> None:
    """Do what a guide says, on a router with an agent of its own, and use the page that it opens.

    Raises:
        AssertionError: a step failed, or the page is not as it should be.
    """
    with tempfile.TemporaryDirectory(prefix="guide-") as folder:
        before = os.environ.copy()
        os.environ.update(installed.variables)
        router = start_router(Path(folder) / "r", workers=1)
        try:
            agent = start_agent(Path(folder) / "a", router, **_settings(guide))
            try:
                job = AppJob(router, agent, installed)
                for number, step in enumerate(guide.steps):
                    done = run_shell(step, Path(folder), environment(router.url))
                    assert done.returncode == 0, done.stdout + done.stderr
                    if not number:
                        _use(guide, done.stdout.splitlines()[-1], job, browser)
            finally:
                agent.stop()
        finally:
            router.stop()
            os.environ.clear()
            os.environ.update(before)


def _settings(guide: Guide) -> dict[str, Any]:
    """The agent's configuration that a guide shows."""
    shown = [yaml.safe_load(block.text) for block in blocks(_FOLDER / f"{guide.name}.md", "yaml")]
    return {f"jobs__{key}": value for one in shown for key, value in one.get("jobs", {}).items()}


def _use(guide: Guide, url: str, job: AppJob, browser: Browser) -> None:
    job.attach(urlsplit(url).path.partition("/http/")[0])
    context = browser.new_context(viewport={"width": 1200, "height": 800}, service_workers="block")
    context.set_default_timeout(30_000)
    try:
        page = context.new_page()
        own = {"desktop": _desktop, "jupyterlab": _jupyterlab}
        check = own.get(guide.name) or getattr(checks, guide.name.replace("-", "_"))
        check(page, url, job)
    finally:
        context.close()


def _desktop(page: Page, url: str, job: AppJob) -> None:
    """Type into the xterm at the address that the guide prints."""
    page.goto(url)
    canvas = page.locator("canvas")
    expect(canvas).to_be_visible()
    canvas.click()
    checks.typed(page, job)


def _jupyterlab(page: Page, url: str, job: AppJob) -> None:
    """Wait for the launcher: the guide has not made a notebook yet."""
    page.goto(url)
    page.wait_for_selector(".jp-Launcher, .jp-FileBrowser")
