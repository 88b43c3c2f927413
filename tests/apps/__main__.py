"""Try the recipes of docs/apps.md in a real browser: ``python -m tests.apps [NAME…]``.

Each application runs as a job, is opened below the job's path and under a host name of its own, as its line promises,
and is used: a button pressed, a cell run, a command typed. Failures are printed, with a screenshot of each. The guides
that need an application are followed in the same way: ``python -m tests.apps guide_streamlit``.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser
from playwright.sync_api import Error as BrowserError

from tests.apps import checks
from tests.apps.browser import chromium
from tests.apps.environment import Environment
from tests.apps.guides import Guide, follow, guides
from tests.apps.job import AppJob
from tests.apps.page import Recipe, recipes
from tests.support.processes import Agent, Router, start_agent, start_router

_FOLDER = Path(__file__).parents[2] / "build" / "apps"
_DOMAIN = "jobs.localhost"


def main() -> int:
    """Return the exit status: 0 if every recipe works."""
    parser = argparse.ArgumentParser(prog="tests.apps", description=__doc__)
    parser.add_argument("names", nargs="*", help="applications; all without")
    parser.add_argument("--mode", choices=("path", "host"), help="only below the path, or only under the host name")
    arguments = parser.parse_args()
    names = arguments.names
    chosen = [recipe for recipe in recipes() if not names or recipe.slug in names]
    followed = [guide for guide in guides() if not names or guide.recipe.slug in names]
    if unknown := set(names) - {recipe.slug for recipe in (*chosen, *(guide.recipe for guide in followed))}:
        parser.error(f"no line of docs/apps.md for {', '.join(sorted(unknown))}")
    environment = Environment(_FOLDER)
    environment.install([*chosen, *(guide.recipe for guide in followed)])
    failed = 0
    with _router() as (router, agent), chromium() as browser:
        for recipe in chosen:
            modes = [mode for mode in recipe.modes if arguments.mode in (None, mode)]
            failed += _try(recipe, modes, AppJob(router, agent, environment), browser)
        failed += sum(_follow(guide, environment, browser) for guide in followed)
    print(f"{len(chosen) + len(followed) - failed} passed, {failed} failed")
    return int(failed > 0)


@contextmanager
def _router() -> Iterator[tuple[Router, Agent]]:
    """Start a router whose jobs have host names, and an agent."""
    with tempfile.TemporaryDirectory(prefix="apps-") as folder:
        router = start_router(Path(folder) / "r", control__job_domain=_DOMAIN)
        try:
            agent = start_agent(Path(folder) / "a", router)
            try:
                yield router, agent
            finally:
                agent.stop()
        finally:
            router.stop()


def _try(recipe: Recipe, modes: Sequence[str], job: AppJob, browser: Browser) -> bool:
    """Try one recipe; return whether it failed."""
    began = time.monotonic()
    try:
        job.start(recipe)
        for mode in modes:
            _use(recipe, job, browser, mode)
    except (BrowserError, AssertionError, OSError) as error:
        print(f"FAIL {recipe.name}: {error}\n{job.log_end()}", flush=True)
        return True
    finally:
        job.remove()
    print(f"ok   {recipe.name}: {', '.join(modes)} ({time.monotonic() - began:.1f} s)", flush=True)
    return False


def _follow(guide: Guide, environment: Environment, browser: Browser) -> bool:
    """Follow one guide; return whether it failed."""
    try:
        follow(guide, environment, browser)
    except (BrowserError, AssertionError, OSError) as error:
        print(f"FAIL guide {guide.name}: {error}", flush=True)
        return True
    print(f"ok   guide {guide.name}", flush=True)
    return False


def _use(recipe: Recipe, job: AppJob, browser: Browser, mode: str) -> None:
    """Open the application and use it. Raises AssertionError or a browser's error, with the page's error messages."""
    context = browser.new_context(viewport={"width": 1200, "height": 800}, service_workers="block")
    context.set_default_timeout(30_000)
    page = context.new_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: said.append(str(error)))
    try:
        getattr(checks, recipe.slug)(page, job.root(mode, _DOMAIN), job)
    except (BrowserError, AssertionError) as error:
        shot = _FOLDER / f"{recipe.slug}-{mode}.png"
        page.screenshot(path=shot)
        raise AssertionError(f"{mode}: {error}\npage {page.url}, see {shot}\n" + "\n".join(said[-10:])) from error
    finally:
        context.close()


if __name__ == "__main__":
    sys.exit(main())
