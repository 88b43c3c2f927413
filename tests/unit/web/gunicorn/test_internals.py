"""gunicorn's private parts: versions and attributes are checked before anything relies on them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from gunicorn.arbiter import Arbiter

from prouter.web.gunicorn.internals import BEFORE, OLDEST, ArbiterAdapter, UnsupportedGunicorn, check

PROJECT = Path(__file__).parents[4]
PIP = "pip install 'gunicorn[gevent]>=25.1,<28'"


def test_the_installed_gunicorn_has_what_the_router_needs() -> None:
    check()


@pytest.mark.parametrize("version", ["25.1.0", "26.2.0", "27.99"])
def test_versions_within_the_bounds_are_taken(version: str) -> None:
    check(version)


@pytest.mark.parametrize("version", ["19.9.0", "25.0.3", "28.0.0", "28.0rc1", "113"])
def test_versions_out_of_bounds_are_refused_with_what_to_install(version: str) -> None:
    with pytest.raises(UnsupportedGunicorn) as caught:
        check(version)
    assert f"gunicorn {version} is installed" in str(caught.value)
    assert PIP in str(caught.value)


def test_the_package_asks_for_the_versions_that_are_checked() -> None:
    (bounds,) = re.findall(r'"gunicorn\[gevent\]([^"]+)"', (PROJECT / "pyproject.toml").read_text())
    assert bounds == f">={'.'.join(map(str, OLDEST))},<{'.'.join(map(str, BEFORE))}"


def test_a_part_that_is_missing_or_takes_other_arguments_is_named() -> None:
    class NoSpawn(Arbiter):  # type: ignore[misc]
        spawn_worker = None

    class OtherKill(Arbiter):  # type: ignore[misc]
        def kill_worker(self, pid: int) -> None: ...

    with pytest.raises(UnsupportedGunicorn, match=re.escape("has no NoSpawn.spawn_worker(), which the router needs")):
        check("27.0.1", NoSpawn)
    with pytest.raises(UnsupportedGunicorn, match=re.escape("has no OtherKill.kill_worker(pid, sig), which")):
        check("27.0.1", OtherKill)


def test_an_arbiter_without_an_attribute_is_refused() -> None:
    with pytest.raises(UnsupportedGunicorn, match=r"has no Arbiter\.num_workers"):
        ArbiterAdapter(SimpleNamespace(WORKERS={}))


def test_gunicorn_of_another_version_ends_with_status_2_and_a_line_that_helps(tmp_path: Path) -> None:
    """Status 2 is what the supervisor does not retry."""
    program = (
        "import gunicorn, sys; gunicorn.__version__ = '30.1.0'; sys.argv = ['gunicorn', '-c', sys.argv[1]];"
        "from gunicorn.app.wsgiapp import run; run()"
    )
    settings = PROJECT / "prouter" / "web" / "gunicorn" / "conf.py"
    done = subprocess.run(
        [sys.executable, "-c", program, str(settings)],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=tmp_path,
        env={"PATH": "", "PYTHONPATH": str(PROJECT), "PROUTER_STATE__DIR": str(tmp_path)},
    )
    assert done.returncode == 2, done.stderr
    assert "prouter: gunicorn 30.1.0 is installed, but the router replaces parts of gunicorn" in done.stderr
    assert PIP in done.stderr
