"""The code for nodes: complete, of the standard library alone, and started by a script that no name can break."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from prouter.runners.slurm.shipping import batch_script, install

_IMPORTS = """
import sys
sys.path.append(sys.argv[1])
before = set(sys.modules)
import prouter.runners.slurm.node.program, prouter.runners.slurm.node.serving, prouter.keeper.server
new = {name.partition(".")[0] for name in set(sys.modules) - before}
print(sorted(new - set(sys.stdlib_module_names)))
"""


def test_the_copy_needs_nothing_but_the_standard_library(tmp_path: Path) -> None:
    code = install(tmp_path)
    command = [sys.executable, "-I", "-S", "-c", _IMPORTS, str(code)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "['prouter']"


def test_it_is_copied_once(tmp_path: Path) -> None:
    assert install(tmp_path) == install(tmp_path)
    assert len(list(tmp_path.iterdir())) == 1


def test_script_with_odd_names(tmp_path: Path) -> None:
    code = tmp_path / "it's $HOME `x`"
    main = code / "prouter/runners/slurm/node/__main__.py"
    main.parent.mkdir(parents=True)
    main.write_text("import sys; print(sys.argv[1])")
    for python in (None, "/no/such python"):
        script = batch_script(code, Path('/a "job"'), python)
        done = subprocess.run(["sh"], input=script, capture_output=True, text=True, check=True)
        assert done.stdout == '/a "job"\n'
