"""The lines that describe the difference between two configurations of a server."""

from pathlib import Path
from typing import Any

import pytest

from dtun.config import ServerConfig
from dtun.server.config_diff import KEEPS, changed_settings, usable
from dtun.session.config_change import Effect
from tests.unit.sites import KEY

OTHER = "ICEiIyQlJicoKSorLC0uLzAxMjM0NTY3ODk6Ozw9Pj8="
CLIENTS: dict[str, Any] = {"demo": {"key": KEY, "subnets": ["10.0.0.0/16"], "address": "10.86.0.9"}}


def config(directory: Path = Path("/nowhere"), **settings: Any) -> ServerConfig:
    made = ServerConfig.model_validate(
        {
            "listen": "192.0.2.1",
            "clients": CLIENTS,
            "state_directory": "/state",
            "runtime_directory": "/run/x",
        }
        | settings
    )
    for name, entry in made.clients.items():
        assert entry.read_key(directory, ("server", "clients", name)) == []
    return made


def lines(old: ServerConfig, new: ServerConfig) -> list[str]:
    return [str(step) for step in changed_settings(old, new)]


def client(**settings: Any) -> ServerConfig:
    return config(clients={"demo": CLIENTS["demo"] | settings})


def test_the_same_is_no_difference() -> None:
    assert lines(config(), config()) == []


@pytest.mark.parametrize(
    ("setting", "value", "line"),
    [
        ("keepalive", 5, "keepalive: 5 instead of 10, for new sessions (at once)"),
        ("timeout", 60, "timeout: 60 instead of 30, for new sessions (at once)"),
        ("mtu", 1300, "mtu: 1300 instead of none, for new sessions (at once)"),
        ("up", "/up", "up: /up instead of none, from the next run on (at once)"),
        ("hook_timeout", 7, "hook_timeout: 7 instead of none, from the next run on (at once)"),
        ("forwarding", True, "forwarding: yes instead of no (at once)"),
        ("masquerade", ["eth0"], "masquerade: eth0 instead of no (at once)"),
        (
            "push_routes",
            ["192.168.0.0/24"],
            "push_routes: 192.168.0.0/24 instead of none, clients are asked for a new session (at once)",
        ),
        (
            "pool",
            "10.86.0.0/24",
            "pool: 10.86.0.0/24 instead of 10.86.0.0/16 (needs a restart, kept as it was)",
        ),
        (
            "state_directory",
            "/new",
            "state_directory: /new instead of /state (needs a restart, kept as it was)",
        ),
    ],
)
def test_a_setting_of_the_server(setting: str, value: Any, line: str) -> None:
    assert lines(config(), config(**{setting: value})) == [line]


@pytest.mark.parametrize(
    ("setting", "value", "line"),
    [
        ("address", "10.86.0.10", "address is 10.86.0.10 instead of 10.86.0.9 (reconnects)"),
        ("tun", "tun7", "tun is tun7 instead of none (reconnects)"),
        ("subnets", ["10.1.0.0/16"], "subnets is 10.1.0.0/16 instead of 10.0.0.0/16 (at once)"),
        ("up", "/up", "up is /up instead of none, from the next run on (at once)"),
        (
            "push_dns",
            ["10.86.0.1"],
            "push_dns is 10.86.0.1 instead of none, clients are asked for a new session (at once)",
        ),
    ],
)
def test_a_setting_of_a_client(setting: str, value: Any, line: str) -> None:
    assert lines(config(), client(**{setting: value})) == [f"client demo: {line}"]


def test_clients_come_and_go() -> None:
    both = config(clients=CLIENTS | {"other": {"key": OTHER}})
    assert lines(config(), both) == ["client other: is new (at once)"]
    assert lines(both, config()) == ["client other: is removed and its session ends (reconnects)"]
    any_id = config(clients={"demo": CLIENTS["demo"], "*": {"key": OTHER}})
    assert lines(config(), any_id) == ["clients without an entry: is new (at once)"]


def test_listening_addresses_come_and_go() -> None:
    assert lines(config(), config(listen=["192.0.2.1", "192.0.2.2:99"])) == [
        "listen: 192.0.2.2:99 is new (at once)"
    ]
    assert lines(config(), config(listen="192.0.2.2"))[1] == (
        "listen: 192.0.2.1:443 is removed; sessions there are renewed (reconnects)"
    )


def effects(old: ServerConfig, new: ServerConfig) -> list[Effect]:
    return [step.effect for step in changed_settings(old, new)]


def test_a_change_of_keys_in_its_steps(tmp_path: Path) -> None:
    path = tmp_path / "next"
    path.touch(0o600)
    path.write_text(OTHER)
    before, after = config(), client(key=OTHER)
    between = config(tmp_path, clients={"demo": CLIENTS["demo"] | {"next_key_file": str(path)}})
    assert lines(before, between) == ["client demo: another key is valid (at once)"]
    assert effects(between, after) == ["reconnect"]
    assert effects(before, after) == ["reconnect", "live"]
    for pair in ((before, after), (before, between), (between, after)):
        assert KEY not in str(lines(*pair))
        assert OTHER not in str(lines(*pair))


def test_another_place_for_the_same_key_is_no_difference(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.touch(0o600)
    path.write_text(KEY)
    moved = {name: value for name, value in CLIENTS["demo"].items() if name != "key"} | {
        "key_file": str(path)
    }
    assert lines(config(), config(tmp_path, clients={"demo": moved})) == []


def test_what_needs_a_restart_is_kept_and_the_rest_is_used() -> None:
    old = config(pool6="fd00::/64")
    new = config(
        pool="10.99.0.0/16",
        pool6=None,
        state_directory="/new",
        runtime_directory="/run/new",
        keepalive=5,
        clients={
            "demo": CLIENTS["demo"] | {"address": "10.99.0.9"},
            "other": {"key": OTHER, "address": "10.99.0.8"},
        },
    )
    used = usable(old, new)
    assert [getattr(used, name) for name in KEEPS] == [getattr(old, name) for name in KEEPS]
    assert used.keepalive == 5
    assert str(used.clients["demo"].address) == "10.86.0.9", "one of the pool that is in use"
    assert used.clients["other"].address is None
    assert used.clients["demo"].psk == new.clients["demo"].psk
    again = changed_settings(used, new)
    assert {step.effect for step in again} == {"restart"}, "what is not done yet is said again"


def test_every_setting_that_there_is_makes_a_line() -> None:
    """A setting that is added later needs a restart until the reload handles it."""
    old = config()
    for name in type(old).model_fields:
        if name not in ("clients", "listen"):
            new = old.model_copy(update={name: object()})
            assert len(changed_settings(old, new)) == 1, name
