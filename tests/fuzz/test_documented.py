"""The API answers as its OpenAPI document says, to every role: a short form of `make fuzz ARGS=documented`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.fuzz.documented import DocumentedApi

SEED = 1
EXAMPLES = 2


@pytest.fixture(scope="module")
def api(short_dir: Path) -> Iterator[DocumentedApi]:
    with ExitStack() as held:
        yield DocumentedApi(short_dir, held)


def test_responses_are_as_documented(api: DocumentedApi) -> None:
    assert len(api.labels) > 40
    for label in api.labels:
        api.try_operation(label, SEED, EXAMPLES)
    for process in (api.router, api.agent):
        assert "Traceback" not in process.log.read_text()
