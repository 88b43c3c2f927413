"""Build the Debian package ``dist/prouter_VERSION_ARCHITECTURE.deb``, on the Debian release that it is for.

    python -m tools.debian_package [PYTHON]

PYTHON is Debian's own interpreter, by default /usr/bin/python3. The package holds a virtual environment of it, with the
versions of ``requirements.lock``; docs/decisions/packages.md tells why. ``DEBFULLNAME`` and ``DEBEMAIL`` name
the maintainer.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path

from prouter import __version__
from tools.manual_pages import pages
from tools.packages import ROOT, build, source_date

DEBIAN = ROOT / "deploy" / "debian"
HOME = Path("usr/lib/prouter")
"""The virtual environment, below the root folder."""
SCRIPTS = ("postinst", "prerm", "postrm")
PROGRAMS = {"prouter", "gunicorn"}
"""What stays in the virtual environment's ``bin``, besides the interpreter."""


def main() -> int:
    """Build the package and print its path."""
    python = Path(sys.argv[1] if len(sys.argv) > 1 else "/usr/bin/python3")
    try:
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder) / "root"
            seconds = source_date(ROOT)
            _environment(root, python)
            _files(root, seconds)
            _control(root, python)
            print(_pack(root, seconds))
    except subprocess.CalledProcessError as error:
        print(f"{' '.join(map(str, error.cmd))}: {error.stderr or error.stdout}", file=sys.stderr)
        return 1
    return 0


def debian_version(version: str) -> str:
    """Return a version of Python's as Debian sorts it: pre-releases come before the release."""
    return re.sub(r"\.?(a|b|rc|dev)(\d+)$", r"~\1\2", version)


def _environment(root: Path, python: Path) -> None:
    """Make the virtual environment as it will be once it is installed."""
    home = root / HOME
    _run(python, "-m", "venv", "--without-pip", "--symlinks", home)
    with tempfile.TemporaryDirectory() as folder:
        wheel, _ = build(ROOT, Path(folder))
        pip = (sys.executable, "-m", "pip", "--quiet", "--python", home / "bin" / "python")
        lock = ("-c", ROOT / "requirements.lock")
        _run(*pip, "install", "--no-compile", "--only-binary", ":all:", *lock, f"{wheel}[client,server]")
    for program in (home / "bin").iterdir():
        if program.name in PROGRAMS:
            program.write_text(re.sub(r"\A#!.*", f"#!/{HOME}/bin/python", program.read_text()))
        elif not program.name.startswith("python"):
            program.unlink()
    link = home / "bin" / "python3"
    interpreter = os.path.relpath(link.resolve(), f"/{HOME}/bin")
    link.unlink()
    link.symlink_to(interpreter)
    (home / "bin" / "python").unlink()
    (home / "bin" / "python").symlink_to("python3")
    configuration = home / "pyvenv.cfg"
    configuration.write_text(re.sub(r"^(command|executable) = .*\n", "", configuration.read_text(), flags=re.MULTILINE))
    shutil.rmtree(home / "include", ignore_errors=True)
    (home / "lib64").unlink(missing_ok=True)
    for tests in home.glob("lib/python3*/site-packages/*/tests"):
        shutil.rmtree(tests)
    for origin in home.glob("lib/python3*/site-packages/*.dist-info/direct_url.json"):
        record = origin.with_name("RECORD")
        record.write_text(re.sub(r"^.*/direct_url\.json,.*\n", "", record.read_text(), flags=re.MULTILINE))
        origin.unlink()


def _files(root: Path, seconds: int) -> None:
    """Add everything around the virtual environment."""
    _link(root / "usr/bin/prouter", f"../lib/{HOME.name}/bin/prouter")
    for unit in (ROOT / "deploy" / "systemd").iterdir():
        _write(root / "lib/systemd/system" / unit.name, unit.read_text().replace("/opt/prouter", f"/{HOME}"))
    _write(root / "usr/lib/sysusers.d/prouter.conf", (DEBIAN / "sysusers.conf").read_text())
    _write(root / "usr/lib/tmpfiles.d/prouter.conf", (DEBIAN / "tmpfiles.conf").read_text())
    for name in ("router.yaml", "agent.yaml"):
        _write(root / "etc/prouter" / name, (DEBIAN / name).read_text(), 0o640)
    for name, page in pages(seconds).items():
        _write(root / "usr/share/man/man1" / f"{name}.gz", _gzip(page))
    documents = root / "usr/share/doc/prouter"
    _write(documents / "copyright", (DEBIAN / "copyright").read_text())
    _write(documents / "changelog.gz", _gzip(_changelog(seconds)))
    _write(documents / "NEWS.gz", _gzip((ROOT / "CHANGELOG.md").read_text()))
    shutil.copytree(ROOT / "deploy" / "nginx", documents / "examples" / "nginx")
    _write(root / "usr/share/lintian/overrides/prouter", (DEBIAN / "lintian-overrides").read_text())


def _changelog(seconds: int) -> str:
    return (
        f"prouter ({debian_version(__version__)}) unstable; urgency=medium\n\n"
        f"  * pRouter {__version__}; NEWS.gz tells what it brings.\n\n"
        f" -- {_maintainer()}  {formatdate(seconds)}\n"
    )


def _maintainer() -> str:
    """Return who builds the package, as Debian's tools are told."""
    return f"{os.environ.get('DEBFULLNAME', 'pRouter')} <{os.environ.get('DEBEMAIL', 'prouter@localhost')}>"


def _control(root: Path, python: Path) -> None:
    """Write dpkg's own files."""
    minor = int(_run(python, "-c", "import sys; print(sys.version_info.minor)"))
    size = sum(path.lstat().st_size for path in _all_files(root)) // 1024
    values = {
        "VERSION": debian_version(__version__),
        "ARCHITECTURE": _run("dpkg", "--print-architecture"),
        "MAINTAINER": _maintainer(),
        "SIZE": str(size),
        "PYTHON": f"3.{minor}",
        "NEXT_PYTHON": f"3.{minor + 1}",
    }
    sums = [
        f"{hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()}  {path.relative_to(root)}\n"
        for path in sorted(_all_files(root))
        if not path.is_symlink() and path.parts[len(root.parts)] != "etc"
    ]
    _write(root / "DEBIAN/md5sums", "".join(sums))
    _write(root / "DEBIAN/conffiles", (DEBIAN / "conffiles").read_text())
    for name in ("control", *SCRIPTS):
        text = re.sub(r"@([A-Z_]+)@", lambda match: values[match[1]], (DEBIAN / name).read_text())
        _write(root / "DEBIAN" / name, text, 0o755 if name in SCRIPTS else 0o644)


def _pack(root: Path, seconds: int) -> Path:
    for path in (root, *root.rglob("*")):
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o755)
        elif not path.is_symlink() and root / HOME in path.parents:
            path.chmod(0o755 if path.parent.name == "bin" else 0o644)
    target = ROOT / "dist"
    target.mkdir(exist_ok=True)
    for older in target.glob("prouter_*.deb"):
        older.unlink()
    environment = {**os.environ, "SOURCE_DATE_EPOCH": str(seconds), "TZ": "UTC"}
    said = _run("dpkg-deb", "--root-owner-group", "-Zxz", "--build", root, target, environment=environment)
    built = re.search(r"'(\S+\.deb)'", said)
    assert built is not None, said
    return Path(built[1])


def _all_files(root: Path) -> Iterator[Path]:
    return (path for path in root.rglob("*") if path.is_symlink() or path.is_file())


def _write(path: Path, content: str | bytes, mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    path.chmod(mode)


def _link(path: Path, target: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)


def _gzip(text: str) -> bytes:
    return gzip.compress(text.encode(), 9, mtime=0)


def _run(*command: str | Path, environment: dict[str, str] | None = None) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return done.stdout.strip()


if __name__ == "__main__":
    raise SystemExit(main())
