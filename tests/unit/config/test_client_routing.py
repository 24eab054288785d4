"""Settings for what goes through the tunnel and what bypasses it: correct ones, and errors for wrong ones."""

import base64
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address, ip_network
from pathlib import Path

import pytest

from dtun.client.routing import routing_of
from dtun.config import ClientConfig, Config, ConfigErrors, load

KEY = base64.b64encode(bytes(range(32))).decode()

Load = Callable[[str], Config]
Problems = Callable[[str], list[str]]


def text(settings: str, *, servers: str = "192.0.2.1", key: str = KEY) -> str:
    """A good client section, one setting a line. `settings` are on line 5."""
    return f"client:\n  servers: {servers}\n  id: a\n  key: {key}\n{settings}\n"


@pytest.fixture
def client(loaded: Load) -> Callable[[str], ClientConfig]:
    def client(settings: str) -> ClientConfig:
        config = loaded(text(settings))
        assert config.client is not None
        assert config.warnings == []
        return config.client

    return client


Client = Callable[[str], ClientConfig]


def test_what_is_not_said_changes_nothing_on_the_host(client: Client) -> None:
    it = client("")
    assert (it.routes, it.exclude, it.bypass, it.bypass_files, it.bypassed) == ((), (), (), (), ())
    assert (it.routing, it.table, it.mark) == ("main", 7217, 0x6474)
    assert (it.on_disconnect, it.ipv6, it.forwarding) == ("keep", None, False)
    assert (it.accept_routes, it.accept_dns, it.dns, it.dns_domains) == ("none", False, (), ())
    assert not it.everything(4)
    assert not it.everything(6)


def test_a_client_with_everything(client: Client) -> None:
    it = client("""\
  routes: everything
  exclude: 192.0.2.0/24
  bypass: [10.0.0.0/9, 10.128.0.0/9]
  routing: policy
  table: 100
  mark: 0xFF
  on_disconnect: block
  ipv6: allow
  accept_routes: [10.0.0.0/8, "fd00::/8"]
  accept_dns: yes
  dns: [10.9.0.1, "fd00::1"]
  dns_domains: [Corp.Example., ~in-house, "~."]
  forwarding: on
""")
    assert it.routes == (ip_network("0.0.0.0/0"), ip_network("::/0"))
    assert it.bypassed == (ip_network("10.0.0.0/8"), ip_network("192.0.2.0/24"))
    assert (it.routing, it.table, it.mark) == ("policy", 100, 255)
    assert (it.on_disconnect, it.ipv6, it.forwarding) == ("block", "allow", True)
    assert it.accept_routes == (ip_network("10.0.0.0/8"), ip_network("fd00::/8"))
    assert (it.accept_dns, it.dns) == (True, (IPv4Address("10.9.0.1"), IPv6Address("fd00::1")))
    assert it.dns_domains == ("corp.example", "~in-house", "~.")
    assert '"accept_routes":["10.0.0.0/8","fd00::/8"]' in it.model_dump_json()


@pytest.mark.parametrize(
    ("routes", "versions"),
    [
        ("everything", (4, 6)),
        ("[everything]", (4, 6)),
        ('[0.0.0.0/0, "::/0"]', (4, 6)),
        ("0.0.0.0/0", (4,)),
        ("[128.0.0.0/1, 0.0.0.0/1]", (4,)),
        ('"::/0"', (6,)),
        ("[0.0.0.0/1, 128.0.0.0/2]", ()),
    ],
)
def test_everything_is_a_word_or_the_networks_that_make_it_up(
    client: Client, routes: str, versions: tuple[int, ...]
) -> None:
    it = client(f"  routes: {routes}")
    assert tuple(version for version in (4, 6) if it.everything(version)) == versions


@pytest.mark.parametrize("word", ["none", "all"])
def test_what_a_server_pushes_is_taken_or_not(client: Client, word: str) -> None:
    it = client(f"  accept_routes: {word}")
    assert it.accept_routes == word
    assert f'"accept_routes":"{word}"' in it.model_dump_json()
    assert client("  accept_routes: 10.0.0.0/8").accept_routes == (ip_network("10.0.0.0/8"),)
    assert client("  accept_routes: []").accept_routes == ()


@pytest.mark.parametrize("routes", ["everything", "0.0.0.0/0", '"::/0"'])
def test_a_kill_switch_is_for_either_version(client: Client, routes: str) -> None:
    assert client(f"  on_disconnect: block\n  routes: {routes}").on_disconnect == "block"


WRONG = [
    ("  routes: everthing", ("5:11: client.routes: 'everthing' is not a network;"
     " write it like 10.0.0.0/16 or fd00:1::/64")),
    ("  routes: [everything, 10.0.0.0/8]", ("5:12: client.routes[0]: 'everything' is not a network;"
     " write it like 10.0.0.0/16 or fd00:1::/64")),
    ("  exclude: 10.0.0.1/8", ("5:12: client.exclude: '10.0.0.1/8' is an address inside a network;"
     " write the network, 10.0.0.0/8")),
    ("  bypass: [fd00::%e/64]", "5:12: client.bypass[0]: 'fd00::%e/64' names an interface; write the network alone"),
    ("  routing: both", "5:12: client.routing: must be 'main' or 'policy'"),
    ("  table: 100", "5:10: client.table: is used with `routing: policy` only; set that, or remove table"),
    ("  mark: 100", "5:9: client.mark: is used with `routing: policy` only; set that, or remove mark"),
    ("  routing: policy\n  table: 254", ("6:10: client.table: tables 253 to 255 belong to the host;"
     " choose another number")),
    ("  routing: policy\n  table: 0", "6:10: client.table: must be at least 1"),
    ("  routing: policy\n  table: 2147483648", "6:10: client.table: must be at most 2147483647"),
    ("  routing: policy\n  mark: 0", "6:9: client.mark: must be at least 1"),
    ("  routing: policy\n  mark: 0x100000000", "6:9: client.mark: must be at most 4294967295"),
    ("  routing: policy\n  mark: 0xZZ", "6:9: client.mark: must be a whole number"),
    ("  host_routes_first: yes", ("5:22: client.host_routes_first: is used with `routing: policy` only; set that,"
     " or remove host_routes_first")),
    ("  answer_directly: yes", ("5:20: client.answer_directly: is used with `routing: policy` only; set that,"
     " or remove answer_directly")),
    ("  routing: policy\n  answer_directly: yes\n  routes: everything\n  on_disconnect: block",
     ("6:20: client.answer_directly: lets answers past `on_disconnect: block`; choose keep or release,"
      " or remove answer_directly")),
    ("  routing: policy\n  host_routes_first: yes\n  routes: everything\n  on_disconnect: block",
     ("6:22: client.host_routes_first: lets the host's own routes past `on_disconnect: block`;"
     " list their networks in exclude instead")),
    ("  on_disconnect: panic", "5:18: client.on_disconnect: must be 'keep', 'release' or 'block'"),
    ("  on_disconnect: block\n  routes: [0.0.0.0/1]", ("5:18: client.on_disconnect: block needs a tunnel for all of"
     " IPv4 or IPv6; write `routes: everything`, or choose keep or release")),
    ("  ipv6: no", "5:9: client.ipv6: must be 'block', 'allow' or 'off'"),
    ("  accept_routes: some", "5:18: client.accept_routes: must be none, all, or a list of the networks to accept"),
    ("  accept_routes: [10.0.0.0/8, all]", ("5:31: client.accept_routes[1]: 'all' is not a network;"
     " write it like 10.0.0.0/16 or fd00:1::/64")),
    ("  accept_dns: 1", "5:15: client.accept_dns: must be true or false"),
    ("  forwarding: [yes]", "5:15: client.forwarding: must be true or false"),
    ("  dns: dns.example", "5:8: client.dns: 'dns.example' is not an IP address, like 10.86.0.1 or fd00:86::1"),
    ("  dns: ['fe80::1%eth0']", ("5:9: client.dns[0]: 'fe80::1%eth0' is not an IP address,"
     " like 10.86.0.1 or fd00:86::1")),
    ("  dns: [[x]]", "5:9: client.dns[0]: must be an IP address, like 10.86.0.1 or fd00:86::1"),
    ("  dns: [10.9.0.1, 10.9.0.1]", "5:19: client.dns[1]: 10.9.0.1 is there twice; remove one"),
    ("  dns: 10.9.0.1\n  dns_domains: [a.b, A.b.]", "6:22: client.dns_domains[1]: a.b is there twice; remove one"),
    ("  dns_domains: corp.example", ("5:16: client.dns_domains: have no name server to go with; set dns,"
     " or `accept_dns: true`")),
]  # fmt: skip


@pytest.mark.parametrize(("settings", "said"), WRONG, ids=[settings for settings, _ in WRONG])
def test_settings_that_are_wrong(problems: Problems, settings: str, said: str) -> None:
    assert problems(text(settings)) == [f"dtun.yaml:{said}"]


@pytest.mark.parametrize(
    "domain",
    ["''", "'~'", "'.'", "a..b", "-a.b", "a-.b", "a_b", "bücher.example", "'*.a'", "x" * 64, "a." * 128],
)
def test_domains_that_are_none(problems: Problems, domain: str) -> None:
    (line,) = problems(text(f"  dns: 10.9.0.1\n  dns_domains: [{domain}]"))
    assert line.startswith("dtun.yaml:6:17: client.dns_domains[0]: '")
    assert (
        'is not a domain; write it like corp.example.org, "~corp.example.org" (to look up there only)' in line
    )


def test_a_wrong_setting_is_no_reason_to_doubt_those_that_go_with_it(problems: Problems) -> None:
    assert len(problems(text("  routes: everthing\n  on_disconnect: block"))) == 1
    assert len(problems(text("  routing: polic\n  table: 100"))) == 1
    assert len(problems(text("  dns: here\n  dns_domains: corp.example"))) == 1


def test_a_network_goes_through_the_tunnel_or_around_it(problems: Problems, tmp_path: Path) -> None:
    (tmp_path / "around.txt").write_text("# some\n172.16.0.0/12\n")
    said = problems(
        text(
            "  routes: [10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16]\n"
            "  exclude: 10.0.0.0/8\n  bypass_files: around.txt"
        )
    )
    both = "is in two lists: it cannot go both through the tunnel and around it; remove one of them"
    assert said == [
        f"dtun.yaml:5:12: client.routes[0]: 10.0.0.0/8 {both} (the other: dtun.yaml:6:12)",
        f"dtun.yaml:5:24: client.routes[1]: 172.16.0.0/12 {both} (the other: around.txt:2)",
    ]


def test_a_contradiction_is_said_once(write: Callable[[str], Path]) -> None:
    with pytest.raises(ConfigErrors) as caught:
        load(write(text("  routes: 10.0.0.0/8\n  bypass: 10.0.0.0/8")))
    assert (len(caught.value.lines), caught.value.warnings) == (1, [])


def test_what_is_behind_the_client_stays_there_whatever_lists_say(
    write: Callable[[str], Path], tmp_path: Path
) -> None:
    (tmp_path / "around.txt").write_text("10.0.0.0/8\n10.1.2.128/25\n")
    config = load(
        write(
            text(
                "  subnets: [10.1.2.0/24, 172.16.0.0/12, 192.168.0.0/16]\n"
                "  bypass: [172.16.0.0/13, 172.24.0.0/13]\n  bypass_files: around.txt"
            )
        )
    )
    without_effect = "is behind this client: to list it as a network around the tunnel has no effect"
    assert [warning.partition("subnets")[2] for warning in config.warnings if "subnets" in warning] == [
        f"[0]: 10.1.2.0/24 {without_effect} (the other: {tmp_path}/around.txt:1)",
        f"[1]: 172.16.0.0/12 {without_effect}",
    ]
    assert config.client is not None
    assert routing_of(config.client, "dtun0").bypassed == (ip_network("10.0.0.0/8"),)


def test_the_server_cannot_be_behind_its_client(problems: Problems) -> None:
    own = "key_file: /dev/null\n  id: home\n"
    said = problems(
        f"client:\n  servers: [vpn.example, 10.1.2.3, 'fd00:10::1']\n  {own}"
        "  subnets: [192.168.0.0/16, 10.1.0.0/16, 'fd00:10::/48']\n"
    )
    loop = (
        "which is behind this client: packets to the server would go through the tunnel in a loop;"
        " make that subnet smaller"
    )
    assert [line for line in said if "loop" in line] == [
        f"dtun.yaml:2:26: client.servers[1]: 10.1.2.3 is inside 10.1.0.0/16, {loop} (the other: dtun.yaml:5:29)",
        f"dtun.yaml:2:36: client.servers[2]: fd00:10::1 is inside fd00:10::/48, {loop} (the other: dtun.yaml:5:42)",
    ]


def test_a_file_is_named_once(problems: Problems, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("10.0.0.0/8\n")
    assert problems(text("  bypass_files: [a, a]")) == [
        "dtun.yaml:5:21: client.bypass_files[1]: a is there twice; remove one"
    ]


def test_a_route_that_is_wholly_bypassed_is_a_warning(loaded: Load) -> None:
    config = loaded(text("  routes: [10.1.0.0/16, 10.0.0.0/7]\n  bypass: 10.0.0.0/8"))
    assert [line.split("dtun.yaml:", 1)[1].split(" (")[0] for line in config.warnings] == [
        "5:12: client.routes[0]: all of 10.1.0.0/16 goes around the tunnel; remove the route, or what excludes it"
    ]


def test_a_kill_switch_and_the_name_of_a_server_are_a_warning(loaded: Load) -> None:
    settings = "  routes: everything\n  on_disconnect: block"
    config = loaded(text(settings, servers='[vpn.example.org, 192.0.2.1, "[2001:db8::1]:443"]'))
    (line,) = config.warnings
    assert line.endswith(
        "dtun.yaml:2:13: client.servers[0]: with `on_disconnect: block`, a name can only be looked up while the"
        " network is open; give the server's address"
    )
    assert loaded(text("  routes: everything", servers="vpn.example.org")).warnings == []


def test_an_original_dtun_pushes_nothing(problems: Problems, loaded: Load) -> None:
    settings = "  compat: go\n  accept_routes: all\n  accept_dns: true\n  dns_domains: a.b"
    assert problems(text(settings, key="a-Go-key-of-some-length")) == [
        "dtun.yaml:6:18: client.accept_routes: an original dtun server pushes nothing; remove accept_routes",
        "dtun.yaml:7:15: client.accept_dns: an original dtun server pushes nothing; remove accept_dns",
    ]
    good = "  compat: go\n  routes: everything\n  accept_routes: none\n  accept_dns: no"
    assert loaded(text(good, key="a-Go-key-of-some-length")).client is not None
