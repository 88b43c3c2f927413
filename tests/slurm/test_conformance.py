"""The Slurm runner keeps the rules of all runners."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import pytest

from prouter.testing.runner_conformance import Bench, RunnerConformance
from tests.slurm.cluster import NEEDS_SLURM, Cluster, running_cluster

pytestmark = NEEDS_SLURM


class TestSlurmRunner(RunnerConformance):
    runner_type = "prouter.runners.slurm.kind:RUNNER"
    variables = ("SLURM",)
    cluster: ClassVar[Cluster]
    clusters: ClassVar[Any]
    patch: ClassVar[pytest.MonkeyPatch]

    @classmethod
    def setup_class(cls) -> None:
        cls.clusters = running_cluster(cpus=64, DefMemPerCPU="300")
        cls.cluster = cls.clusters.__enter__()
        cls.patch = pytest.MonkeyPatch()
        for name in ("PATH", "SLURM_CONF"):
            cls.patch.setenv(name, cls.cluster.environment[name])
        cls.directory = str(cls.cluster.shared)
        super().setup_class()

    @classmethod
    def teardown_class(cls) -> None:
        super().teardown_class()
        cls.patch.undo()
        cls.clusters.__exit__(None, None, None)

    @contextmanager
    def full(self, bench: Bench) -> Iterator[None]:
        """Take all nodes out of service, so that every start waits."""
        nodes = ",".join(self.cluster.nodes)
        self.cluster.run("scontrol", "update", f"nodename={nodes}", "state=drain", "reason=full")
        yield
        self.cluster.run("scontrol", "update", f"nodename={nodes}", "state=resume")
