"""Settings of a server for its clients: pushed routes and DNS, masquerading, and a second key."""

import base64
from collections.abc import Callable
from ipaddress import IPv4Address, ip_network
from pathlib import Path

import pytest

from dtun.config import Config, Key, Pushed, ServerConfig, keys, load

KEY = base64.b64encode(bytes(range(32))).decode()
NEXT = base64.b64encode(bytes(range(1, 33))).decode()

Load = Callable[[str], Config]
Problems = Callable[[str], list[str]]


def server(config: Config) -> ServerConfig:
    assert config.server is not None
    return config.server


def text(settings: str = "", entry: str = "") -> str:
    """A good server; `settings` are on line 2, those of its client on line 3 from column 28."""
    more = f", {entry}" if entry else ""
    return f"server:\n  {{{settings}{', ' if settings else ''}clients: {{\n    a: {{key: {KEY}{more}}}}}}}\n"


@pytest.fixture
def next_key(tmp_path: Path) -> Path:
    path = tmp_path / "next.key"
    path.write_text(f"{NEXT}\n")
    path.chmod(0o600)
    return path


def test_a_server_offers_nothing_by_itself(loaded: Load) -> None:
    it = server(loaded(text()))
    assert it.pushed(it.clients["a"]) == Pushed((), (), ())
    assert (it.forwarding, it.masquerade, it.forwards) == (False, False, False)
    assert it.clients["a"].next_psk is None


def test_what_an_entry_says_takes_the_place_of_what_the_server_says(loaded: Load) -> None:
    it = server(
        loaded(f"""
        server:
          push_routes: [10.0.0.0/8, "fd00::/8"]
          push_dns: 10.9.0.1
          push_domains: [corp.example, "~."]
          clients:
            plain: {{key: {KEY}}}
            other: {{key: {NEXT}, push_routes: everything, push_domains: []}}
            go: {{key: short but long enough, compat: go}}
        """)
    )
    dns = (IPv4Address("10.9.0.1"),)
    assert it.pushed(it.clients["plain"]) == Pushed(
        (ip_network("10.0.0.0/8"), ip_network("fd00::/8")), dns, ("corp.example", "~.")
    )
    assert it.pushed(it.clients["other"]) == Pushed((ip_network("0.0.0.0/0"), ip_network("::/0")), dns, ())
    assert it.pushed(it.clients["go"]) == Pushed()


@pytest.mark.parametrize(
    ("settings", "masquerade", "forwards"),
    [
        ("forwarding: true", False, True),
        ("masquerade: true", True, True),
        ("masquerade: eth0", ("eth0",), True),
        ("masquerade: [eth0, wlan0]", ("eth0", "wlan0"), True),
        ("masquerade: No", False, False),
        ("masquerade: false, forwarding: false", False, False),
    ],
)
def test_masquerading_needs_forwarding_and_brings_it(
    loaded: Load, settings: str, masquerade: object, forwards: bool
) -> None:
    it = server(loaded(text(settings)))
    assert (it.masquerade, it.forwards) == (masquerade, forwards)
    assert it.model_dump(mode="json")["masquerade"] == (
        list(masquerade) if isinstance(masquerade, tuple) else masquerade
    )


WRONG = [
    ("masquerade: true, forwarding: false", 34, ("server.forwarding: masquerading needs forwarding;"
     " remove `forwarding: false`")),
    ("masquerade: [eth0, eth0]", 23, "server.masquerade[1]: eth0 is there twice; remove one"),
    ("masquerade: []", 16, "server.masquerade: must have at least one item"),
    ("masquerade: a/b", 16, ("server.masquerade: 'a/b' is no device name; use letters, digits, '-', '_' and '.',"
     " like dtun0")),
    ("masquerade: {a: b}", 16, "server.masquerade: must be a list"),
    ("forwarding: maybe", 16, "server.forwarding: must be true or false"),
    ("push_routes: [10.0.0.0/8, 10.0.0.0/8]", 30, "server.push_routes[1]: 10.0.0.0/8 is there twice; remove one"),
    ("push_routes: 10.0.0.1/8", 17, ("server.push_routes: '10.0.0.1/8' is an address inside a network;"
     " write the network, 10.0.0.0/8")),
    ("push_dns: [10.9.0.1, 10.9.0.1]", 25, "server.push_dns[1]: 10.9.0.1 is there twice; remove one"),
    ("push_domains: 'a b'", 18, ("server.push_domains: 'a b' is not a domain; write it like corp.example.org,"
     ' "~corp.example.org" (to look up there only) or "~." (every name)')),
]  # fmt: skip


@pytest.mark.parametrize(("settings", "column", "said"), WRONG, ids=[settings for settings, *_ in WRONG])
def test_settings_that_are_wrong(problems: Problems, settings: str, column: int, said: str) -> None:
    assert problems(text(settings)) == [f"dtun.yaml:2:{column}: {said}"]


@pytest.mark.parametrize(
    ("name", "values", "most"),
    [
        ("push_routes", [f"10.{number // 256}.{number % 256}.0/24" for number in range(257)], 256),
        ("push_dns", [f"10.9.0.{number}" for number in range(1, 10)], 8),
        ("push_domains", [f"d{number}.example" for number in range(33)], 32),
    ],
)
def test_there_is_a_limit_to_what_a_client_can_be_told(
    loaded: Load, problems: Problems, name: str, values: list[str], most: int
) -> None:
    (line,) = problems(text(f"{name}: [{', '.join(values)}]"))
    assert line.endswith(f"server.{name}: must have at most {most} items")
    assert loaded(text(f"{name}: [{', '.join(values[:most])}]")).server is not None


def test_an_original_dtun_takes_nothing(problems: Problems) -> None:
    said = "an original dtun takes nothing that is pushed; remove"
    entry = "compat: go, push_routes: 10.0.0.0/8, push_dns: 10.9.0.1, push_domains: []"
    lines = problems(text(entry=entry).replace(KEY, "a-Go-key-of-some-length"))
    assert [line.split(": ", 1)[1] for line in lines] == [
        f"server.clients.a.push_routes: {said} push_routes",
        f"server.clients.a.push_dns: {said} push_dns",
    ]


def test_a_second_key_is_read_beside_the_first(loaded: Load, next_key: Path) -> None:
    entry = server(loaded(text(entry=f"next_key_file: {next_key.name}"))).clients["a"]
    assert entry.psk == Key(bytes(range(32)))
    assert entry.next_psk == Key(bytes(range(1, 33)))
    assert NEXT not in f"{entry!r} {entry.model_dump_json()} {vars(entry)}"


def test_a_second_key_comes_from_the_service_manager_too(
    loaded: Load, next_key: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(next_key.parent))
    entry = server(loaded(text(entry="next_credential: next.key"))).clients["a"]
    assert entry.next_psk == Key(bytes(range(1, 33)))


def test_a_look_without_the_keys_does_not_pass_for_one_without_a_second_key(
    write: Callable[[str], Path],
) -> None:
    entry = server(load(write(text(entry="next_key_file: /does/not/exist")), read_keys=False)).clients["a"]
    with pytest.raises(RuntimeError, match="without its keys"):
        assert entry.next_psk


def test_second_keys_that_cannot_be_one(problems: Problems, next_key: Path) -> None:
    def said(entry: str) -> str:
        (line,) = problems(text(entry=entry))
        return line.split(": server.clients.a.", 1)[1]

    assert said("next_key_file: no.key").startswith("next_key_file: no.key does not exist; ")
    next_key.write_text("short")
    assert said("next_key_file: next.key") == (
        "next_key_file: next.key is not a base64 key; make a key with `dtun genkey`"
    )
    next_key.write_text(KEY)
    assert said("next_key_file: next.key") == (
        "next_key_file: is the same key as the first; make a key with `dtun genkey`"
    )
    next_key.chmod(0o644)
    assert "can be used by others (mode 0644)" in said("next_key_file: next.key")
    assert said("next_key_file: next.key, next_credential: x") == (
        "next_credential: there is a next_key_file already; keep one of them"
    )
    assert said("next_credential: a/b") == "next_credential: must be the name of a credential, not a path"


def test_an_original_dtun_cannot_change_over(problems: Problems, next_key: Path) -> None:
    entry = f"compat: go, next_key_file: {next_key.name}"
    (line,) = problems(text(entry=entry).replace(KEY, "a-Go-key-of-some-length"))
    assert line.endswith(
        "server.clients.a.next_key_file: an original dtun cannot change over; remove next_key_file,"
        " and change the key on both sides"
    )


def test_the_next_key_of_one_client_is_not_the_key_of_another(loaded: Load, next_key: Path) -> None:
    other = f"}}, b: {{key: {NEXT}"
    (line,) = loaded(text(entry=f"next_key_file: {next_key.name}{other}")).warnings
    assert "server.clients.b: has the key of client 'a'" in line
    another = other.replace(NEXT, keys.generate())
    assert loaded(text(entry=f"next_key_file: {next_key.name}{another}")).warnings == []
