"""What an agent knows of routers, and which it dials."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from prouter.config import AgentConfig, ConfigError
from prouter.key_pairs import is_key
from prouter.keys.destinations import agent_pair, destinations, load_keys
from prouter.keys.files import make_pair, store_pair
from prouter.keys.join_url import JoinUrl
from prouter.keys.known_routers import KnownRouter, KnownRouters

KEY, NEXT, OTHER = (make_pair().public for _ in range(3))
URL = JoinUrl("far:8889", (KEY,), "pri_secret")


def config(**client: Any) -> AgentConfig:
    return AgentConfig.model_validate({"client": client})


def joined(path: Path) -> KnownRouters:
    known = KnownRouters(path)
    known.join(URL)
    known.accepted(URL.address)
    return known


def test_a_router_that_accepted_is_known_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "routers.json"
    joined(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(KnownRouters(path)) == [KnownRouter("far:8889", (KEY,), "pri_secret", joined=True)]


def test_a_router_that_refused_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "routers.json"
    known = KnownRouters(path)
    known.join(URL)
    assert known.is_joining("far:8889")
    assert [router.address for router in known] == ["far:8889"]
    assert not path.exists()


def test_keys_that_a_router_tells_replace_those_known(tmp_path: Path) -> None:
    path = tmp_path / "routers.json"
    joined(path).accepted("far:8889", [KEY, NEXT])
    known = KnownRouters(path)
    known.accepted("far:8889", [NEXT, "nonsense"])
    router = KnownRouters(path).get("far:8889")
    assert router is not None
    assert (router.keys, router.token) == ((NEXT,), "pri_secret")


def test_a_router_without_encryption_that_was_not_joined_is_not_stored(tmp_path: Path) -> None:
    KnownRouters(tmp_path / "routers.json").accepted("127.0.0.1:8889")
    assert not (tmp_path / "routers.json").exists()


@pytest.mark.parametrize("text", ["", "{}", '{"routers": [{}]}', '{"routers": [{"address": "a:1", "keys": ["x"]}]}'])
def test_a_damaged_file_is_named_with_the_next_step(tmp_path: Path, text: str) -> None:
    path = tmp_path / "routers.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"routers\.json is damaged.*--join"):
        KnownRouters(path)


def test_an_agent_that_joined_dials_that_router_instead_of_the_default(tmp_path: Path) -> None:
    known = KnownRouters(tmp_path / "routers.json")
    assert [router.address for router in destinations(config(), known)] == ["127.0.0.1:8889"]
    known.join(URL)
    assert destinations(config(), known) == [KnownRouter("far:8889", (KEY,), "pri_secret", joined=True)]
    addresses = ("127.0.0.1:1", "far:8889")
    assert [router.address for router in destinations(config(address=addresses), known)] == list(addresses)
    both = destinations(config(address="127.0.0.1:1", token="t0ken-of-config"), known)
    assert [(router.address, router.token) for router in both] == [
        ("127.0.0.1:1", "t0ken-of-config"),
        ("far:8889", "pri_secret"),
    ]


def test_keys_that_were_told_are_tried_before_those_of_the_configuration(tmp_path: Path) -> None:
    known = KnownRouters(tmp_path / "routers.json")
    given = config(address="far:8889", router_key=[KEY, OTHER], token="token")
    assert destinations(given, known) == [KnownRouter("far:8889", (KEY, OTHER), "token")]
    known.accepted("far:8889", [NEXT])
    assert destinations(given, known) == [KnownRouter("far:8889", (NEXT, KEY, OTHER), "token")]


def test_another_machine_is_not_dialled_without_a_key(tmp_path: Path) -> None:
    known = KnownRouters(tmp_path / "routers.json")
    with pytest.raises(ConfigError, match=r"client.address: far:1 .* --join .* client.router_key"):
        destinations(config(address=["127.0.0.1:1", "far:1"]), known)
    assert len(destinations(config(address="far:1", insecure=True), known)) == 1
    assert len(destinations(config(address=["localhost:1", "[::1]:2", "127.0.0.1:3"]), known)) == 3


def test_keys_are_texts_or_files(tmp_path: Path) -> None:
    pair = make_pair()
    store_pair(tmp_path, "router", pair)
    assert load_keys([KEY, str(tmp_path / "router.key")], "client.router_key") == (KEY, pair.public)
    assert load_keys(KEY, "client.router_key") == (KEY,)
    with pytest.raises(ConfigError, match=r"client\.router_key: neither a key in Z85 nor a file"):
        load_keys("nonsense", "client.router_key")


def test_a_path_that_looks_like_a_key_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pair = make_pair()
    name = "k" * 36
    store_pair(Path(), name, pair)
    assert is_key(f"{name}.key")
    assert load_keys(f"{name}.key", "client.router_key") == (pair.public,)


def test_an_agent_makes_its_own_pair_unless_it_has_one(tmp_path: Path) -> None:
    own = agent_pair(config(), tmp_path)
    assert agent_pair(config(), tmp_path) == own
    pair = make_pair()
    store_pair(tmp_path, "mine", pair)
    assert agent_pair(config(key=str(tmp_path / "mine.key_secret")), tmp_path) == pair
