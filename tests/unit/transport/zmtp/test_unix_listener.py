"""The unix socket where workers, and agents of the router's own machine, connect."""

from __future__ import annotations

import os
import socket
import stat
from contextlib import closing
from pathlib import Path

import pytest

from prouter.broker.sockets.listeners import listen_for_local_agents
from prouter.config import ConfigError, RouterConfig
from prouter.transport.zmtp.unix_listener import UnixListener


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_only_the_owner_may_connect_unless_a_mode_says_otherwise(tmp_path: Path) -> None:
    for wanted in (0o600, 0o660):
        with closing(UnixListener(tmp_path / "s", mode=wanted)) as listener:
            assert mode(tmp_path / "s") == wanted
            assert listener.endpoint == f"ipc://{tmp_path}/s"


def test_a_socket_that_was_left_is_replaced_and_removed_at_the_end(tmp_path: Path) -> None:
    left = UnixListener(tmp_path / "s")
    with closing(UnixListener(tmp_path / "s")) as listener:
        with closing(socket.socket(socket.AF_UNIX)) as client:
            client.connect(str(tmp_path / "s"))
            (accepted,) = listener.accept()
            accepted.close()
        assert not listener.accept()
        assert not listener.arrived()
    assert not (tmp_path / "s").exists()
    left.close()


def config(tmp_path: Path, **server: object) -> RouterConfig:
    return RouterConfig.model_validate({"state": {"run_dir": str(tmp_path)}, "server": server})


def test_agents_of_the_machine_connect_in_the_run_directory_or_where_the_setting_says(tmp_path: Path) -> None:
    for server, path in (({}, tmp_path / "agents.sock"), ({"socket": str(tmp_path / "other")}, tmp_path / "other")):
        listener = listen_for_local_agents(config(tmp_path, **server), 1000)
        assert listener is not None
        with closing(listener):
            assert mode(path) == 0o600
    assert listen_for_local_agents(config(tmp_path, socket=""), 1000) is None


def test_a_group_may_connect_if_the_setting_names_it(tmp_path: Path) -> None:
    grp = pytest.importorskip("grp")
    group = grp.getgrgid(os.getgid())
    listener = listen_for_local_agents(config(tmp_path, socket_group=group.gr_name), 1000)
    assert listener is not None
    with closing(listener):
        assert mode(tmp_path / "agents.sock") == 0o660
        assert (tmp_path / "agents.sock").stat().st_gid == group.gr_gid


@pytest.mark.parametrize(
    ("server", "message"),
    [
        ({"socket_group": "no-such-group"}, "server.socket_group: there is no group"),
        ({"socket": "/no/such/s"}, "cannot listen"),
    ],
)
def test_what_cannot_be_is_said_with_the_setting_s_name(
    tmp_path: Path, server: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        listen_for_local_agents(config(tmp_path, **server), 1000)
