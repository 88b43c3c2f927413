"""The container recipe names files that exist, this version, and ports of the configuration; nothing runs as root."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from prouter import __version__
from prouter.config import RouterConfig
from tests.support.containerfile import Stage, read_stages

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "deploy" / "container"
STAGES = read_stages(FOLDER / "Containerfile")
COMPOSE: dict[str, Any] = yaml.safe_load((FOLDER / "compose.yaml").read_text())
IMAGES = ("router", "agent")


def chain(name: str) -> list[Stage]:
    """Return a stage and those that it begins with, the first one first."""
    stage = STAGES[name]
    return [*(chain(stage.base) if stage.base in STAGES else []), stage]


def last(image: str, instruction: str) -> str:
    return [text for stage in chain(image) for text in stage.all(instruction)][-1]


def test_copied_files_exist_and_are_sent_to_the_engine() -> None:
    sources = {source for stage in STAGES.values() for source in stage.copied()}
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert sources
    assert [name for name in sources if not (ROOT / name).exists()] == []
    assert "*" in ignored
    assert {line[1:] for line in ignored if line.startswith("!")} == sources


def test_copies_between_stages_name_earlier_stages() -> None:
    names = list(STAGES)
    for name, stage in STAGES.items():
        origins = [match[1] for text in stage.all("COPY") if (match := re.match(r"--from=(\S+)", text))]
        assert set(origins) <= set(names[: names.index(name)])


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_runs_prouter_under_an_init_and_not_as_root(image: str) -> None:
    user, _, group = last(image, "USER").partition(":")
    assert int(user) > 0
    assert int(group) > 0
    assert json.loads(last(image, "ENTRYPOINT")) == ["/usr/bin/tini", "--", "/opt/prouter/bin/prouter"]
    assert last(image, "STOPSIGNAL") == "SIGTERM"
    assert STAGES["build"] not in chain(image), "tools for building are in the image"


def test_ports_and_the_health_check_are_those_of_the_configuration() -> None:
    config = RouterConfig()
    router = STAGES["router"]
    assert router.all("EXPOSE") == [f"{config.control.port} {config.server.port}"]
    assert f"http://127.0.0.1:{config.control.port}/healthz" in last("router", "HEALTHCHECK")
    assert COMPOSE["services"]["router"]["ports"] == [
        f"127.0.0.1:{config.control.port}:{config.control.port}",
        f"{config.server.port}:{config.server.port}",
    ]


def test_python_packages_are_those_of_the_lock() -> None:
    installations = [text for stage in STAGES.values() for text in stage.all("RUN") if "pip install" in text]
    assert len(installations) == 1
    assert "-c requirements.lock" in installations[0]


def test_services_use_images_of_this_version() -> None:
    for name, service in COMPOSE["services"].items():
        target = service["build"]["target"]
        assert service["image"] == f"prouter-{target}:{__version__}", name
        assert target in STAGES
        assert (FOLDER / service["build"]["context"]).resolve() == ROOT
        assert (ROOT / service["build"]["dockerfile"]).exists()


def test_services_are_confined_and_write_to_volumes_only() -> None:
    for service in COMPOSE["services"].values():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert {volume.partition(":")[0] for volume in service["volumes"]} <= set(COMPOSE["volumes"])
    assert not [volume for volume in COMPOSE["services"]["agent"]["volumes"] if volume.startswith("router:")]
