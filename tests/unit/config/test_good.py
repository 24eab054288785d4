"""Correct files and the models that they give."""

import copy
import pickle
from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from pathlib import Path

import pytest

from dtun.config import ClientConfig, Config, Endpoint, Hook, ServerConfig, ServerName, load
from dtun.dtls import suites

KEY = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="
SECRET = b"0123456789abcdef0123456789abcdef"

Load = Callable[[str], Config]


def server(config: Config) -> ServerConfig:
    assert config.server is not None
    assert config.client is None
    return config.server


def client(config: Config) -> ClientConfig:
    assert config.client is not None
    assert config.server is None
    return config.client


def test_a_server_needs_nothing_but_a_client_with_a_key(
    loaded: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("STATE_DIRECTORY", raising=False)
    monkeypatch.delenv("RUNTIME_DIRECTORY", raising=False)
    config = loaded(f"server: {{clients: {{demo: {{key: {KEY}}}}}}}")
    it = server(config)
    assert config.warnings == []
    assert it.listen == (Endpoint(IPv4Address("0.0.0.0"), 443), Endpoint(IPv6Address("::"), 443))
    assert (it.pool, it.address) == (IPv4Network("10.86.0.0/16"), IPv4Address("10.86.0.1"))
    assert (it.pool6, it.address6, it.mtu) == (None, None, None)
    assert it.suites == ("TLS-ECDHE-PSK-WITH-CHACHA20-POLY1305-SHA256",)
    assert (it.keepalive, it.timeout) == (10, 30)
    assert it.state_directory == Path("/var/lib/dtun")
    assert config.control_socket == Path("/run/dtun/server.sock")
    demo = it.clients["demo"]
    assert demo.psk.secret() == SECRET
    assert (demo.subnets, demo.address, demo.tun, demo.go) == ((), None, None, False)
    assert it.hook("up", demo) is None


def test_a_client_needs_a_server_an_id_and_a_key(loaded: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNTIME_DIRECTORY", "/run/here:/run/there")
    config = loaded(f"client: {{servers: vpn.example.org, id: demo, key: {KEY}}}")
    it = client(config)
    assert it.servers == (ServerName("vpn.example.org", 443),)
    assert (it.id, it.psk.secret(), it.subnets, it.routes) == ("demo", SECRET, (), ())
    assert (it.tun, it.mtu, it.rekey) == ("dtun0", None, 3600)
    assert config.control_socket == Path("/run/here/dtun0.sock")


def test_a_server_with_everything(loaded: Load) -> None:
    it = server(
        loaded(f"""
        server:
          listen: ["192.0.2.1", "[2001:db8::1]:4443", "2001:db8::2"]
          pool: 10.9.0.0/24
          pool6: fd00:9::/64
          mtu: 1300
          suites: [psk-aes-256-gcm, TLS_ECDHE_PSK_WITH_CHACHA20_POLY1305_SHA256]
          keepalive: 2.5
          timeout: 8
          up: /bin/true
          hook_timeout: 5
          clients:
            home:
              key: {KEY}
              address: 10.9.0.7
              address6: fd00:9::7
              subnets: [10.1.0.0/16, "fd00:1::/48"]
              tun: to-home
              up: [/bin/echo, it, is up]
            "*":
              key: short but long enough to be
              compat: go
              subnets: private
        """)
    )
    assert [str(endpoint) for endpoint in it.listen] == [
        "192.0.2.1:443",
        "[2001:db8::1]:4443",
        "[2001:db8::2]:443",
    ]
    assert it.address6 == IPv6Address("fd00:9::1")
    assert it.suites == ("TLS-PSK-WITH-AES-256-GCM-SHA384", "TLS-ECDHE-PSK-WITH-CHACHA20-POLY1305-SHA256")
    home, anybody = it.clients["home"], it.clients["*"]
    assert home.address6 == IPv6Address("fd00:9::7")
    assert home.subnets == (IPv4Network("10.1.0.0/16"), IPv6Network("fd00:1::/48"))
    assert it.hook("up", home) == Hook(("/bin/echo", "it", "is up"), 5)
    assert it.hook("up", anybody) == Hook(("/bin/true",), 5)
    assert it.hook("down", home) is None
    assert anybody.psk.secret() == b"short but long enough to be"
    assert (it.entry("home"), it.entry("whoever")) == (home, anybody)


@pytest.mark.parametrize("identity", ["*", "", " a", "a\x1b[2J", "\ud800", "x" * 65])
def test_an_entry_for_any_id_is_not_for_what_is_no_id(loaded: Load, identity: str) -> None:
    it = server(loaded(f"server: {{clients: {{'*': {{key: {KEY}}}}}}}"))
    assert it.entry("demo") is it.clients["*"]
    assert it.entry(identity) is None


def test_an_id_is_what_was_written_even_if_yaml_has_another_idea(loaded: Load) -> None:
    it = server(
        loaded(f"server: {{clients: {{0123: {{key: {KEY}}}, on: {{key: {KEY}}}, 1:30: {{key: {KEY}}}}}}}")
    )
    assert list(it.clients) == ["0123", "on", "1:30"]
    assert client(loaded(f"client: {{servers: h, id: 007, key: {KEY}}}")).id == "007"


def test_a_setting_without_a_value_is_absent(loaded: Load) -> None:
    it = server(
        loaded(f"server:\n  mtu:\n  pool: ~\n  listen: null\n  clients: {{demo: {{key: {KEY}, tun: }}}}")
    )
    assert (it.mtu, it.pool, len(it.listen)) == (None, IPv4Network("10.86.0.0/16"), 2)


def test_anchors_spare_repetition(loaded: Load) -> None:
    it = client(loaded(f"client: {{servers: h, id: a, key: {KEY}, up: &hook [/bin/true, x], down: *hook}}"))
    assert it.up == it.down == ("/bin/true", "x")


@pytest.mark.parametrize(
    ("subnets", "network", "granted"),
    [
        ("[10.1.0.0/16]", "10.1.2.0/24", True),
        ("[10.1.0.0/16]", "10.1.0.0/16", True),
        ("[10.1.0.0/16]", "10.0.0.0/8", False),
        ("10.1.0.0/16", "fd00::/64", False),
        ("[]", "10.1.0.0/16", False),
        ("private", "172.31.0.0/16", True),
        ("private", "172.32.0.0/16", False),
        ("private", "fd12::/48", True),
        ("private", "0.0.0.0/0", False),
        ("private", "2001:db8::/32", False),
    ],
)
def test_a_client_may_push_what_it_was_granted(
    loaded: Load, subnets: str, network: str, granted: bool
) -> None:
    entry = server(loaded(f"server: {{clients: {{demo: {{key: {KEY}, subnets: {subnets}}}}}}}")).clients[
        "demo"
    ]
    assert entry.grants(ip_network(network)) is granted


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("vpn.example.org", "vpn.example.org", 443),
        ("vpn.example.org:1194", "vpn.example.org", 1194),
        ("192.0.2.1", "192.0.2.1", 443),
        ("[2001:db8::1]:4443", "2001:db8::1", 4443),
        ("[2001:db8::1]", "2001:db8::1", 443),
        ("2001:db8::1", "2001:db8::1", 443),
        ("[fe80::1%eth0]:443", "fe80::1%eth0", 443),
        ("bücher.example", "xn--bcher-kva.example", 443),
        ("under_score.example.", "under_score.example.", 443),
    ],
)
def test_how_a_server_is_named(loaded: Load, text: str, host: str, port: int) -> None:
    assert client(loaded(f'client: {{servers: ["{text}"], id: a, key: {KEY}}}')).servers == ((host, port),)


@pytest.mark.parametrize("suite", [suite for suite in suites.ALL_SUITES if "CCM-8" not in suite.name])
def test_each_suite_of_the_dtls_layer_can_be_chosen_by_its_long_and_short_names(
    loaded: Load, suite: suites.Suite
) -> None:
    short = (
        suite.name.removeprefix("TLS-").replace("-WITH", "").removesuffix("-SHA256").removesuffix("-SHA384")
    )
    for name in (suite.name, suite.name.replace("-", "_"), short, short.lower()):
        chosen = client(loaded(f"client: {{servers: h, id: a, key: {KEY}, suites: {name}}}")).suites
        assert [suites.by_name(name) for name in chosen] == [suite]


def test_a_look_without_the_keys(write: Callable[[str], Path]) -> None:

    config = load(write("client: {servers: h, id: a, key_file: /does/not/exist}"), read_keys=False)
    assert config.control_socket.name == "dtun0.sock"
    with pytest.raises(RuntimeError, match="without its keys"):
        client(config).psk.secret()


def test_keys_do_not_show_in_what_a_model_tells_about_itself(loaded: Load) -> None:
    config = loaded(f"client: {{servers: h, id: a, key: {KEY}}}")
    it = client(config)
    told = f"{config!r} {it} {it.model_dump()} {it.model_dump_json()} {it.psk} {it.psk!r} {vars(it)}"
    assert KEY not in told
    assert SECRET.decode() not in told
    for thing in (it, it.psk, config):
        with pytest.raises(TypeError, match="cannot be pickled"):
            pickle.dumps(thing)
    assert copy.deepcopy(it).psk == it.psk


def test_the_models_describe_themselves_as_json_schema() -> None:
    assert ServerConfig.model_json_schema()["additionalProperties"] is False
    assert set(ClientConfig.model_json_schema()["required"]) == {"servers", "id"}


def test_what_should_not_stay_so_is_a_warning(write: Callable[[str], Path], tmp_path: Path) -> None:

    path = write(f"""
        server:
          up: /does/not/exist
          clients:
            a: {{key: {KEY}}}
            b: {{key: {KEY}}}
            go: {{key: short, compat: go}}
        """)
    path.chmod(0o644)
    readable = "others can read the key in this file; run `chmod 600 dtun.yaml`, or use key_file"
    assert [line.replace(f"{tmp_path}/", "") for line in load(path).warnings] == [
        f"dtun.yaml:5:14: server.clients.a.key: {readable}",
        f"dtun.yaml:6:14: server.clients.b.key: {readable}",
        (
            "dtun.yaml:7:15: server.clients.go.key: others can read the key in this file;"
            " run `chmod 600 dtun.yaml`, or use key_file"
        ),
        "dtun.yaml:7:9: server.clients.go: a key of 5 bytes can be guessed; use 32 (`dtun genkey --compat go`)",
        (
            "dtun.yaml:6:8: server.clients.b: has the key of client 'a', so each can pass for the other;"
            " make another one"
        ),
        (
            "dtun.yaml:3:7: server.up: '/does/not/exist' is missing or not executable;"
            " look at its path, or `chmod +x` it"
        ),
    ]
