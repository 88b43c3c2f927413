"""tools/release_check.py compares the version with the changelog."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools import release_check


@pytest.fixture
def changelog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty changelog that the check reads in place of the project's."""
    monkeypatch.setattr(release_check, "ROOT", tmp_path)
    return tmp_path / "CHANGELOG.md"


def faults(monkeypatch: pytest.MonkeyPatch, version: str) -> list[str]:
    """Return what the check says against this version."""
    monkeypatch.setattr(release_check, "__version__", version)
    return list(release_check.version_faults())


def test_a_version_with_its_dated_heading_is_ready(changelog: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changelog.write_text("# Changelog\n\n## 1.2.3 (2026-12-01)\n\n## 1.2.2 (2026-11-01)\n")
    assert faults(monkeypatch, "1.2.3") == []


@pytest.mark.parametrize("heading", ["1.2.3 (unreleased)", "1.2.4 (2026-12-01)", "1.2.3"])
def test_another_heading_is_named(changelog: Path, monkeypatch: pytest.MonkeyPatch, heading: str) -> None:
    changelog.write_text(f"# Changelog\n\n## {heading}\n")
    [fault] = faults(monkeypatch, "1.2.3")
    assert f"the first heading is '{heading}'; write '1.2.3 (YYYY-MM-DD)'" in fault


def test_a_development_version_cannot_be_released(changelog: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changelog.write_text("# Changelog\n\n## 1.2.3.dev0 (2026-12-01)\n")
    [fault] = faults(monkeypatch, "1.2.3.dev0")
    assert "write MAJOR.MINOR.PATCH" in fault
