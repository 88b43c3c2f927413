"""The guide to Slurm, followed word by word on a cluster."""

from __future__ import annotations

from pathlib import Path

from prouter.runners.slurm.options import SlurmOptions
from tests.slurm.cluster import NEEDS_SLURM, running_cluster
from tests.support.blocks import blocks
from tests.support.processes import start_router
from tests.support.reader import Reader

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "slurm.md"


@NEEDS_SLURM
def test_every_step_works(work_dir: Path) -> None:
    with running_cluster() as cluster:
        router = start_router(work_dir / "router", workers=1)
        variables = {name: cluster.environment[name] for name in ("SLURM_CONF",)}
        (work_dir / "reader").mkdir()
        reader = Reader(work_dir / "reader", router.url, router.agents, SHARED=str(cluster.shared), **variables)
        try:
            for step in blocks(GUIDE, "sh", "python"):
                reader.follow(step)
            assert router.get("/jobs").json()["jobs"] == []
        finally:
            reader.leave()
            router.stop()
    for text in ("on n1", "Directory listing\n", "2 processors\n", "exited 2\n"):
        assert text in reader.said


def test_all_settings_are_listed() -> None:
    text = GUIDE.read_text()
    assert {name for name in SlurmOptions.model_fields if f"| `jobs.slurm.{name}` |" not in text} == set()
