"""What the Debian package is made of fits together. `make deb CHECK=1` installs it (tools/check_debian)."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from prouter.cli.catalogue import COMMANDS
from prouter.config import load_agent, load_router
from tools.debian_package import DEBIAN, SCRIPTS, debian_version
from tools.manual_pages import pages

ROOT = Path(__file__).parents[3]
UNITS = ROOT / "deploy" / "systemd"


def test_the_shipped_configuration_is_valid_and_listens_on_loopback_only() -> None:
    router = load_router(str(DEBIAN / "router.yaml"), [], {})
    assert (router.control.interface, router.server.interface) == ("127.0.0.1", "127.0.0.1")
    assert load_agent(str(DEBIAN / "agent.yaml"), [], {}).jobs.keep_for == 60


def test_units_start_programs_of_the_package_as_its_users() -> None:
    users = set(re.findall(r"^u (\S+)", (DEBIAN / "sysusers.conf").read_text(), re.MULTILINE))
    states = dict(re.findall(r"^d (\S+) +0700 +(\S+)", (DEBIAN / "tmpfiles.conf").read_text(), re.MULTILINE))
    for path in UNITS.iterdir():
        unit = dict(re.findall(r"^(\w+)=(.*)$", path.read_text(), re.MULTILINE))
        assert unit["ExecStart"].startswith(("/opt/prouter/bin/prouter ", "/opt/prouter/bin/gunicorn ")), path
        assert unit["User"] in users
        assert states[f"/var/lib/{unit['StateDirectory']}"] == unit["User"]


@pytest.mark.parametrize("script", SCRIPTS)
def test_maintainer_scripts_are_sound_and_name_every_unit(script: str) -> None:
    path = DEBIAN / script
    assert subprocess.run(["sh", "-n", path], check=False).returncode == 0
    assert path.read_text().startswith("#!/bin/sh\nset -e\n")
    assert set(re.findall(r"prouter[\w-]*\.service", path.read_text())) == {unit.name for unit in UNITS.iterdir()}


@pytest.mark.parametrize(
    ("version", "expected"), [("0.1.0", "0.1.0"), ("1.2.3.dev0", "1.2.3~dev0"), ("1.0.0rc2", "1.0.0~rc2")]
)
def test_versions_sort_as_debian_sorts_them(version: str, expected: str) -> None:
    assert debian_version(version) == expected


def test_configuration_files_are_those_that_dpkg_keeps() -> None:
    kept = (DEBIAN / "conffiles").read_text().split()
    assert kept == [f"/etc/prouter/{path.name}" for path in sorted(DEBIAN.glob("*.yaml"))]
    assert all(
        (UNITS / name).read_text().count("/etc/prouter/") for name in ("prouter.service", "prouter-agent.service")
    )


def test_every_command_has_a_manual_page_that_troff_can_read() -> None:
    written = pages(1_700_000_000)
    assert set(written) == {"prouter.1", *(f"prouter-{name}.1" for name in COMMANDS)}
    for name, page in written.items():
        assert page.startswith(".TH PROUTER"), name
        assert ".SH NAME\n" in page
        assert " 2023-11-14 " in page
        requests = {line.split()[0] for line in page.splitlines() if line.startswith((".", "'"))}
        assert requests <= {".TH", ".nh", ".ad", ".SH", ".SS", ".PP", ".TP", ".nf", ".fi"}, name
    assert "\\fB\\-\\-workers INTEGER" in written["prouter-up.1"]
    assert "control.workers" in written["prouter-up.1"]
