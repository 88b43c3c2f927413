"""Whatever bytes a job sends, its client gets one correct response or a 502, and the next response is correct."""

from __future__ import annotations

import pickle
import re
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from random import Random
from typing import Any

import pytest

from tests.fuzz.answers import SERVER, any_answer
from tests.fuzz.strict_http import StrictClient
from tests.support.processes import Agent, Router, start_agent, start_router

COUNT = 150
INTERIM = re.compile(rb"\s*HTTP/1\.1 1\d\d ")
"""Beginning of an interim response, which another response follows."""
MODES: list[dict[str, Any]] = [{}, {"path": "keep"}, {"host": "local"}]


@pytest.fixture(scope="module")
def pair(short_dir: Path) -> Iterator[tuple[Router, Agent]]:
    with ExitStack() as stack:
        router = start_router(short_dir / "answers", control__response_timeout=2.0)
        stack.callback(router.stop)
        agent = start_agent(short_dir / "answers-agent", router)
        stack.callback(agent.stop)
        yield router, agent


@pytest.mark.parametrize("seed", range(3))
def test_any_bytes_become_one_answer(pair: tuple[Router, Agent], seed: int) -> None:
    router, agent = pair
    random = Random(seed)
    answers = [any_answer(random) for _ in range(COUNT)]
    path = router.create(agent.uid)
    router.post(f"{path}/file/answers", data=pickle.dumps(answers))
    router.start(path, [sys.executable, "-c", SERVER], expose={"port": "assign", **MODES[seed]})
    client = StrictClient(router.url)
    seen: Counter[int] = Counter()
    for number, (data, _) in enumerate(answers):
        method = random.choice(["GET", "GET", "GET", "HEAD"])
        try:
            answer = client.request(method, f"{path}/http/{number}")
        except ConnectionError:
            seen[0] += 1  # It was cut before its head had left.
        else:
            seen[answer.status] += 1
            told = dict(answer.fields).get(b"x-prouter-error")
            assert answer.body != b"poison" or INTERIM.match(data), data[:300]
            assert told in (None, b"bad_response", b"job_unreachable", b"job_timeout"), (told, data[:300])
            assert answer.status == 502 or told in (None, b"job_timeout"), data[:300]
        name = f"good{number}"
        good = client.request("GET", f"{path}/http/{name}")
        assert (good.status, good.body) == (200, name.encode()), data[:300]
    client.close()
    assert seen[200] > COUNT / 10
    assert seen[502] > COUNT / 10
    router.post(f"{path}/remove")
    log = router.log.read_text(errors="replace")
    assert "Traceback" not in log
    assert len(re.findall("event=worker_up", log)) == 2
    assert "event=link_down" not in log
