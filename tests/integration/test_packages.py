"""The wheel and the sdist, built from this checkout and installed into empty virtual environments."""

from __future__ import annotations

import tarfile
import zipfile
from collections.abc import Iterator
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest

from prouter import __version__
from tests.support.installed import Installed, install
from tools.packages import ROOT, build
from tools.release_check import NEEDED

SECONDS = "1700000000"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """Wheel and sdist of this checkout."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOURCE_DATE_EPOCH", SECONDS)
        yield build(ROOT, tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="module")
def wheel(built: tuple[Path, Path]) -> Path:
    return built[0]


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        return Parser().parsestr(archive.read(f"prouter-{__version__}.dist-info/METADATA").decode())


@pytest.fixture(scope="module")
def client(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    return install(wheel, "client", tmp_path_factory.mktemp("client") / "venv")


def test_the_sdist_builds_the_same_wheel_again(
    built: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel, sdist = built
    monkeypatch.setenv("SOURCE_DATE_EPOCH", SECONDS)
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path)
        assert {(entry.mtime, entry.uid, entry.uname) for entry in archive} == {(int(SECONDS), 0, "")}
    again, same = build(tmp_path / f"prouter-{__version__}", tmp_path / "dist")
    assert again.read_bytes() == wheel.read_bytes()
    with tarfile.open(sdist) as first, tarfile.open(same) as second:
        assert first.getnames() == second.getnames()


def test_the_wheel_has_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    tracked = {str(path.relative_to(ROOT)) for path in (ROOT / "prouter").rglob("*.py")}
    static = {str(path.relative_to(ROOT)) for path in (ROOT / "prouter/web/admin/static").iterdir()}
    assert (tracked | static | set(NEEDED)) - names == set()
    assert {name.partition("/")[0] for name in names} == {"prouter", f"prouter-{__version__}.dist-info"}
    assert not [name for name in names if name.endswith(".pyc")]


def test_metadata_names_license_pythons_and_extras(metadata: Message) -> None:
    assert (metadata["Name"], metadata["Version"], metadata["License-Expression"]) == ("prouter", __version__, "MIT")
    assert metadata.get_all("License-File") == ["LICENSE"]
    assert metadata["Requires-Python"] == ">=3.10"
    assert {"client", "server", "demo"} <= set(metadata.get_all("Provides-Extra", []))
    bare = [line for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line]
    assert bare == ["click>=8.1"]
    classifiers = metadata.get_all("Classifier", [])
    assert {"Operating System :: POSIX :: Linux", "Typing :: Typed"} <= set(classifiers)


def test_the_client_installs_no_server(client: Installed) -> None:
    assert {"httpx", "websockets", "click"} <= client.packages()
    assert not {"gevent", "gunicorn", "falcon", "pyzmq", "jupyterlab"} & client.packages()
    code = "import sys, prouter.client; print(prouter.client.Router.__name__, 'gevent' in sys.modules)"
    assert client.run("python", "-c", code).stdout == "Router False\n"


def test_a_command_without_its_extra_says_what_to_install(client: Installed) -> None:
    assert client.run("prouter", "--version").stdout == f"prouter, version {__version__}\n"
    refused = client.run("prouter", "up")
    assert refused.returncode == 1
    assert "pip install 'prouter[server]'" in refused.stderr


def test_the_demonstration_runs_from_the_wheel_alone(wheel: Path, tmp_path: Path) -> None:
    demo = install(wheel, "demo", tmp_path / "venv")
    module = demo.run("python", "-c", "import prouter; print(prouter.__file__)").stdout
    assert module.startswith(str(demo.site))
    result = demo.run("prouter", "demo", "--check", timeout=180)
    assert result.returncode == 0, result.stderr
    assert "6 * 7 =  42" in result.stdout
