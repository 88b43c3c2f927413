"""Configuration: sources, which one wins, and error texts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from prouter.cli import main
from prouter.config import (
    AgentConfig,
    ConfigError,
    RouterConfig,
    check_exposure,
    keys,
    load_agent,
    load_router,
    sections,
    uses_curve,
)
from prouter.config.agent import AgentClient
from prouter.config.proxy_users import loopback_among


@pytest.fixture
def write(tmp_path: Path):  # type: ignore[no-untyped-def]
    def _write(text: str) -> str:
        file = tmp_path / "router.yaml"
        file.write_text(text)
        return str(file)

    return _write


def refusal(file: str | None = None, sets: tuple[str, ...] = (), environ: dict[str, str] | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        load_router(file, sets, environ or {})
    return str(caught.value)


# -- sources and precedence -------------------------------------------------------------------------------------


def test_defaults_listen_on_loopback_only() -> None:
    router, agent = load_router(None, (), {}), load_agent(None, (), {})
    assert router.control.interface == router.server.interface == agent.server.interface == "127.0.0.1"
    check_exposure(router)
    check_exposure(agent)


def test_set_wins_over_environment_over_file_over_default(write) -> None:  # type: ignore[no-untyped-def]
    file = write("control: {port: 1, workers: 7, hold: 5}")
    config = load_router(file, ("control.port=3",), {"PROUTER_CONTROL__PORT": "2", "PROUTER_CONTROL__WORKERS": "8"})
    assert (config.control.port, config.control.workers, config.control.hold) == (3, 8, 5.0)
    assert config.control.max_head == RouterConfig().control.max_head


def test_file_takes_nested_and_dotted_keys(write) -> None:  # type: ignore[no-untyped-def]
    config = load_router(write("server.port: 5\nserver:\n  accept_tokens: [a, b]\ncontrol:\n"), (), {})
    assert config.server.port == 5
    assert config.server.accept_tokens == ("a", "b")


def test_file_takes_anchors_and_merges(write) -> None:  # type: ignore[no-untyped-def]
    config = load_router(write("control: &c {interface: 127.0.0.2}\nserver: {<<: *c, port: 5}\n"), (), {})
    assert (config.server.interface, config.server.port) == ("127.0.0.2", 5)


def test_set_takes_python_literals_and_other_text() -> None:
    config = load_agent(
        None, ("client.address=['a:1', 'b:2']", "identity.name=my agent", "client.enabled=False", "jobs.max=None"), {}
    )
    assert config.client.address == ("a:1", "b:2")
    assert config.identity.name == "my agent"
    assert config.client.enabled is False
    assert config.jobs.max is None


@pytest.mark.parametrize("token", ["1234", "1e5", "None0", "[x", "'quoted'"])
def test_a_token_that_looks_like_something_else_is_text(token: str) -> None:
    assert load_agent(None, (f"client.token={token}",), {}).client.token == token.strip("'")


def test_set_keeps_what_follows_the_first_equals_sign() -> None:
    assert load_agent(None, ("client.token=a=b=",), {}).client.token == "a=b="


def test_set_takes_a_whole_section() -> None:
    config = load_agent(None, ("jobs={'max': 3, 'limits': {'memory': 5}}", "jobs.limits.memory=6"), {})
    assert (config.jobs.max, config.jobs.limits.memory) == (3, 6)


def test_properties_are_free_and_come_together_from_everywhere(write) -> None:  # type: ignore[no-untyped-def]
    file = write("properties:\n  gpu: 1\n  zone: {row: 2}\nproperties.rack: r7\n")
    config = load_agent(file, ("properties.gpu=2",), {"PROUTER_PROPERTIES__DISK": "ssd"})
    assert config.properties == {"gpu": 2, "zone": {"row": 2}, "rack": "r7", "disk": "ssd"}


def test_other_variables_are_left_alone() -> None:
    ours = {"PROUTER_CONFIG": "x", "PROUTER_JOB_ID": "y", "HOME__DIR": "z", "PATH": "p"}
    assert load_router(None, (), ours) == RouterConfig()


def test_router_and_agent_may_share_an_environment() -> None:
    both = {"PROUTER_JOBS__MAX": "3", "PROUTER_CONTROL__WORKERS": "5", "PROUTER_PROPERTIES__GPU": "1"}
    assert load_router(None, (), both).control.workers == 5
    assert load_agent(None, (), both).jobs.max == 3


def test_a_configuration_never_changes() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_router(None, (), {}).control.port = 1  # type: ignore[misc]


# -- refusals ---------------------------------------------------------------------------------------------------


def test_a_wrong_key_is_refused_with_file_line_and_nearest_key(write) -> None:  # type: ignore[no-untyped-def]
    file = write("# comment\ncontrol:\n  port: 1\n  prot: 2\n")
    assert refusal(file) == f"{file}:4: there is no key 'control.prot'; did you mean control.port?"


def test_a_wrong_key_says_which_variable_or_option_it_came_from() -> None:
    assert refusal(environ={"PROUTER_CONTROL__PROT": "1"}).startswith("PROUTER_CONTROL__PROT: there is no key")
    assert refusal(sets=("control.prot=1",)).startswith("--set: there is no key 'control.prot'")


def test_a_key_without_its_section_is_recognised() -> None:
    assert "did you mean client.polling_delay?" in refusal(sets=("polling_delay=1",))
    assert "control.port or server.port" in refusal(sets=("port=1",))


def test_a_key_of_the_other_kind_is_recognised() -> None:
    assert "one of the agent's keys" in refusal(sets=("jobs.max=1",))
    with pytest.raises(ConfigError, match="one of the router's keys"):
        load_agent(None, ("control.workers=1",), {})


def test_a_key_like_no_other_still_names_the_nearest() -> None:
    assert "the nearest is " in refusal(sets=("zzz=1",))


@pytest.mark.parametrize(
    ("setting", "problem"),
    [
        ("control.port=abc", "a whole number from 0 to 65535 is expected, got 'abc'"),
        ("control.port=70000", "a whole number from 0 to 65535 is expected, got 70000"),
        ("control.port=True", "a whole number from 0 to 65535 is expected, got True"),
        ("control.port=1.5", "a whole number from 0 to 65535 is expected, got 1.5"),
        ("control.workers=0", "a whole number of at least 1 is expected, got 0"),
        ("client.polling_delay=0", "a number above 0 is expected, got 0"),
        ("server.enabled=maybe", "True or False is expected, got 'maybe'"),
        ("control.interface=None", "text is expected, got None"),
        ("control.unix=5.5.5", None),
        ("log.level=loud", "one of debug, info, warning, error, fatal is expected, got 'loud'"),
        ("control.trusted_proxies=['x']", "'x' does not appear to be an IPv4 or IPv6 network"),
        ("control.trusted_proxies=10.0.0.0/8", "a list of texts, such as ['a', 'b'], is expected, got '10.0.0.0/8'"),
        ("control.hold=1e999", "a number of at least 0 is expected, got inf"),
    ],
)
def test_a_wrong_value_is_refused_with_what_is_expected(setting: str, problem: str | None) -> None:
    if problem is None:
        load_router(None, (setting,), {})
        return
    key = setting.partition("=")[0]
    assert refusal(sets=(setting,)) == f"--set: {key}: {problem}"


@pytest.mark.parametrize(
    ("written", "meant"), [("auto", "auto"), ("off", "off"), ("'off'", "off"), ("/sys/fs/cgroup/x", "/sys/fs/cgroup/x")]
)
def test_control_groups_are_automatic_off_or_somewhere(write, written: str, meant: str) -> None:  # type: ignore[no-untyped-def]
    assert load_agent(write(f"jobs: {{cgroup: {written}}}"), (), {}).jobs.cgroup == meant
    with pytest.raises(ConfigError, match="must be 'auto', 'off' or the absolute path of"):
        load_agent(None, (f"jobs.cgroup=not {written}",), {})


def test_a_value_of_the_wrong_type_in_a_file_names_its_line(write) -> None:  # type: ignore[no-untyped-def]
    file = write("log:\n  level: info\nserver:\n  port:\n    - 1\n")
    assert refusal(file) == f"{file}:4: server.port: a whole number from 0 to 65535 is expected, got [1]"


def test_a_number_for_a_text_in_a_file_is_refused(write) -> None:  # type: ignore[no-untyped-def]
    assert "identity.name: text or None is expected, got 5" in refusal(write("identity.name: 5"))


@pytest.mark.parametrize("setting", ["server.accept_tokens=s3cret", "control.tokens=[5, 's3cret']"])
def test_a_secret_is_never_repeated(setting: str) -> None:
    text = refusal(sets=(setting,))
    assert "is expected" in text
    assert "s3cret" not in text


def test_all_that_is_wrong_is_told_at_once(write) -> None:  # type: ignore[no-untyped-def]
    file = write("control.port: x\nlog.level: y\nserver.port: 1\n")
    assert len(refusal(file).splitlines()) == 2
    assert len(refusal(sets=("a.b=1", "c.d=2")).splitlines()) == 2


def test_a_value_that_is_overridden_is_not_blamed(write) -> None:  # type: ignore[no-untyped-def]
    assert load_router(write("control.port: x"), ("control.port=1",), {}).control.port == 1


def test_a_section_is_no_value(write) -> None:  # type: ignore[no-untyped-def]
    file = write("control: 5")
    assert refusal(file).startswith(f"{file}:1: control is a section; set a key in it, such as control.")


def test_a_key_given_twice_is_refused(write) -> None:  # type: ignore[no-untyped-def]
    file = write("control:\n  port: 1\n  port: 2\n")
    assert refusal(file) == f"{file}:3: control.port is here for the second time, after line 2; remove one"


@pytest.mark.parametrize(
    ("text", "line"), [("control: {port: 1\n", 2), ("- 1\n", 1), ("a: b: c\n", 1), ("x: !!python/none y\n", 1)]
)
def test_what_is_not_a_mapping_in_yaml_is_refused_with_its_line(write, text: str, line: int) -> None:  # type: ignore[no-untyped-def]
    file = write(text)
    assert refusal(file).startswith(f"{file}:{line}: ")


def test_a_binary_or_missing_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\0\xff\xfe")
    assert "binary" in refusal(str(tmp_path / "binary"))
    assert "cannot be read" in refusal(str(tmp_path / "missing"))
    assert "cannot be read" in refusal(str(tmp_path))


@pytest.mark.parametrize("setting", ["control.port", "", "=5"])
def test_set_without_key_or_value_is_refused(setting: str) -> None:
    assert refusal(sets=(setting,)).startswith("--set: 'key=value' is expected")


# -- exposure ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("interface", ["0.0.0.0", "::", "192.0.2.1", "example.org"])
def test_other_machines_are_served_only_with_encryption_or_tokens(interface: str) -> None:
    for settings in (("control", ()), ("server", ("server.insecure=True",))):
        key, more = settings
        with pytest.raises(ConfigError, match=f"{key}.interface: {interface}"):
            check_exposure(load_router(None, (f"{key}.interface={interface}", *more), {}))
    tokens = "server.accept_tokens=['eight888']"
    check_exposure(load_router(None, (f"server.interface={interface}", tokens, "server.insecure=True"), {}))
    check_exposure(load_router(None, (f"control.interface={interface}", "control.allow_open=True"), {}))
    encrypted = load_router(None, (f"server.interface={interface}",), {})
    check_exposure(encrypted)
    assert uses_curve(encrypted.server)


def test_links_are_encrypted_beyond_loopback_and_where_it_is_asked_for() -> None:
    def encrypts(*sets: str) -> bool:
        return uses_curve(load_router(None, sets, {}).server)

    assert not encrypts()
    assert not encrypts("server.accept_tokens=['eight888']")
    assert encrypts("server.curve=True")
    assert encrypts("server.accept_keys=/etc/agents")
    assert encrypts("server.interface=192.0.2.1")
    assert not encrypts("server.interface=192.0.2.1", "server.insecure=True")


@pytest.mark.parametrize("other", ["server.curve=True", "server.accept_keys=/etc/agents"])
def test_insecure_contradicts_what_needs_encryption(other: str) -> None:
    for interface in ("127.0.0.1", "0.0.0.0"):
        sets = (f"server.interface={interface}", "server.insecure=True", "server.accept_tokens=['eight888']", other)
        with pytest.raises(ConfigError, match=f"server.insecure: without encryption {other.partition('=')[0]} has no"):
            check_exposure(load_router(None, sets, {}))


def test_keys_of_agents_are_named_by_address() -> None:
    keys = {"gpu-7.example.org:8890": "gpu-7.key"}
    assert load_router(None, (f"client.agent_keys={keys}",), {}).client.agent_keys == keys
    assert "must be 'host:port'" in refusal(sets=("client.agent_keys={'gpu-7': 'gpu-7.key'}",))


def test_a_router_serves_other_machines_once_there_is_an_access_token() -> None:
    reached = load_router(None, ("control.interface=0.0.0.0",), {})
    check_exposure(reached, has_tokens=True)
    with pytest.raises(ConfigError, match="no access token exists") as caught:
        check_exposure(reached)
    assert "  prouter token create --role admin NAME\n  prouter up\n" in str(caught.value)


def test_an_agent_listens_to_other_machines_only_with_tokens() -> None:
    listens = ("server.enabled=True", "server.interface=0.0.0.0")
    with pytest.raises(ConfigError, match=r"server\.interface: .* server\.accept_keys is not set"):
        check_exposure(load_agent(None, listens, {}))
    check_exposure(load_agent(None, (*listens, "server.accept_keys=/etc/routers"), {}))
    with pytest.raises(ConfigError, match=r"control\.interface"):
        check_exposure(load_agent(None, ("control.enabled=True", "control.interface=0.0.0.0"), {}))
    check_exposure(load_agent(None, ("server.interface=0.0.0.0",), {}))


# -- what is shown ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [RouterConfig, AgentConfig])
def test_every_key_and_section_is_explained(model: type[RouterConfig | AgentConfig]) -> None:
    for key, field in keys(model):
        assert field.description, key
        assert field.description.endswith("."), key
    for name, purpose in sections(model):
        assert purpose.endswith("."), name
        assert "\n" not in purpose, name


@pytest.mark.parametrize("options", [["--agent"], []])
def test_config_prints_yaml_that_can_be_read_back(tmp_path: Path, options: list[str]) -> None:
    sets = ["--set", "identity.name=Zoë: 'x' #1", "--set", "log.level=error"]
    sets += (
        ["--set", "properties.a=[1, {'b': None}]"] if options else ["--set", "control.trusted_proxies=['10.0.0.0/8']"]
    )
    shown = CliRunner().invoke(main, ["config", *options, *sets])
    assert shown.exit_code == 0
    file = tmp_path / "shown.yaml"
    file.write_text(shown.output)
    load = load_agent if options else load_router
    assert load(str(file), (), {}) == load(None, tuple(sets[1::2]), {})


def test_config_masks_secrets() -> None:
    shown = CliRunner().invoke(main, ["config", "--set", "server.accept_tokens=['s3cret', 'other']"]).output
    assert yaml.safe_load(shown)["server"]["accept_tokens"] == ["***", "***"]
    assert "***" in CliRunner().invoke(main, ["config", "--agent", "--set", "client.token=s3cret"]).output
    assert "s3cret" not in shown


def test_a_wrong_configuration_ends_the_command_with_one_line_each() -> None:
    ended = CliRunner().invoke(main, ["config", "--set", "control.port=abc", "--set", "log.level=x"])
    assert ended.exit_code == 2
    assert all(line.startswith("prouter: --set: ") for line in ended.stderr.splitlines())
    assert len(ended.stderr.splitlines()) == 2


@pytest.mark.parametrize(("command", "model"), [("up", RouterConfig), ("broker", RouterConfig), ("agent", AgentConfig)])
def test_help_lists_every_key(command: str, model: type[RouterConfig | AgentConfig]) -> None:
    text = " ".join(CliRunner().invoke(main, [command, "--help"]).output.split())
    for key, field in keys(model):
        assert " ".join(f"{key} - {field.description}".split()) in text


# -- tokens and addresses -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("load", [load_router, load_agent])
@pytest.mark.parametrize("tokens", ["['']", "['good-token', '  ']", "['$TOKEN']", "['${TOKEN}']", "{'a': ''}"])
def test_a_token_that_protects_nothing_is_refused(load: Callable[..., Any], tokens: str) -> None:
    with pytest.raises(ConfigError, match=r"server\.accept_tokens: tokens that nobody can guess are expected; one is"):
        load(None, (f"server.accept_tokens={tokens}",), {})


@pytest.mark.parametrize("load", [load_router, load_agent])
@pytest.mark.parametrize("tokens", ["['short']", "{'agent': 'short', 'other': 'long-enough'}"])
def test_other_machines_need_tokens_that_take_a_while_to_guess(load: Callable[..., Any], tokens: str) -> None:
    enabled = "server.enabled=True"
    check_exposure(load(None, (f"server.accept_tokens={tokens}", enabled), {}))
    with pytest.raises(ConfigError, match="has 5 characters; make it 8 or more") as caught:
        check_exposure(load(None, (f"server.accept_tokens={tokens}", enabled, "server.interface=0.0.0.0"), {}))
    assert "short" not in str(caught.value)


def test_each_agent_may_have_a_token_of_its_own(write) -> None:  # type: ignore[no-untyped-def]
    file = write("server:\n  accept_tokens:\n    gpu-1: token-of-gpu-1\n    gpu.2: token-of-gpu-2\n")
    assert load_router(file, (), {}).server.accept_tokens == {"gpu-1": "token-of-gpu-1", "gpu.2": "token-of-gpu-2"}
    shown = CliRunner().invoke(main, ["config", "--config", file]).output
    assert yaml.safe_load(shown)["server"]["accept_tokens"] == {"gpu-1": "***", "gpu.2": "***"}
    assert "token-of" not in shown


def test_an_agents_own_token_that_was_not_filled_in_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"client\.token: .* name of a variable"):
        load_agent(None, ("client.token=$TOKEN",), {})


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("http://host:8889", "must be 'host:port', not a URL; write 'host:8889' without 'http://'"),
        ("tcp://10.0.0.1:8889/", "write '10.0.0.1:8889' without 'tcp://'"),
        ("http://host", "write 'host' without"),
        ("host", "must be 'host:port'"),
        ("host/path:8889", "nothing else before the port"),
        ("user@host:8889", "nothing else before the port"),
        ("ho st:8889", "nothing else before the port"),
        (["host:1", "https://x:2"], "write 'x:2' without 'https://'"),
    ],
)
def test_an_address_that_is_none_is_refused_with_what_to_write(address: object, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_agent(None, (f"client.address={address!r}",), {})
    assert "client.address: " in str(caught.value)
    assert told in str(caught.value)


@pytest.mark.parametrize("address", ["host:1", "[::1]:8889", "::1:8889", "10.0.0.1:65535", "a-b.example.org:1"])
def test_addresses_of_machines_are_taken(address: str) -> None:
    assert load_agent(None, (f"client.address={address!r}",), {}).client.address == address


@pytest.mark.parametrize(
    ("first", "longest", "expected"), [(1.0, None, 8.0), (0.1, None, 0.8), (10.0, None, 8.0), (1.0, 30.0, 30.0)]
)
def test_the_longest_delay_follows_the_first_unless_it_is_set(
    first: float, longest: float | None, expected: float
) -> None:
    client = AgentClient(reconnect_delay=first, reconnect_delay_max=longest)
    assert client.longest_reconnect_delay == pytest.approx(expected)


# -- users of a trusted proxy --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sets", "problem"),
    [
        (["control.user_header=X-Forwarded-User"], "needs control.trusted_proxies"),
        (["control.group_header=X-Forwarded-Groups"], "needs control.user_header"),
        (["control.user_header=Cookie"], "means something else"),
        (["control.user_header=X-PRouter-User"], "means something else"),
        (["control.user_header=X_Forwarded_User"], "is no name for it"),
        (["control.user_header=X-Forwarded-User:"], "is no name for it"),
        (["control.group_header=remote-USER"], "is the same field"),
        (["control.group_roles={'a': 'admin'}"], "needs control.group_header"),
        (["control.group_header=X-Groups", "control.group_roles={'a': 'root'}"], "control.group_roles"),
        (["control.user_role=none"], "no user is let in"),
    ],
)
def test_a_proxys_users_need_a_proxy_that_is_believed(sets: list[str], problem: str) -> None:
    if problem not in ("needs control.trusted_proxies", "needs control.user_header"):
        sets = ["control.trusted_proxies=('unix',)", "control.user_header=Remote-User", *sets]
    with pytest.raises(ConfigError, match=problem):
        load_router(None, tuple(sets), {})


def test_a_router_with_a_proxys_users_serves_other_machines_without_tokens() -> None:
    sets = ["control.interface=0.0.0.0", "control.trusted_proxies=('192.0.2.1/32',)", "server.enabled=False"]
    config = load_router(None, (*sets, "control.user_header=Remote-User"), {})
    check_exposure(config)
    with pytest.raises(ConfigError, match="no access token exists"):
        check_exposure(load_router(None, tuple(sets), {}))


@pytest.mark.parametrize(
    ("trusted", "found"),
    [
        (("unix",), None),
        (("192.0.2.0/24", "unix"), None),
        (("127.0.0.1",), "127.0.0.1"),
        (("unix", "127.0.0.0/8"), "127.0.0.0/8"),
        (("0.0.0.0/0",), "0.0.0.0/0"),
        (("2001:db8::/32", "::1"), "::1"),
    ],
)
def test_networks_with_loopback_are_told(trusted: tuple[str, ...], found: str | None) -> None:
    assert loopback_among(trusted) == found
