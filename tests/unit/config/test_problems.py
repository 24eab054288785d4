"""Errors of a bad file: all at once, each with its place and what to do."""

import base64
from collections.abc import Callable
from pathlib import Path

import pytest

from dtun.config import ConfigErrors, load

KEY = base64.b64encode(bytes(range(32))).decode()

Problems = Callable[[str], list[str]]


def server(settings: str = "", client: str = "", more: str = "") -> str:
    """A good server section on two lines, with room for a bad setting (line 2) or client setting (line 3)."""
    key = f"key: {KEY}"
    return f"server:\n  {{{settings + ', ' if settings else ''}clients: {{\n    a: {{{client or key}}}{more}}}}}\n"


def client(settings: str = "", *, without: str = "") -> str:
    """A good client section, one setting a line. `settings` are on line 5."""
    lines = {"servers": "  servers: h", "id": "  id: a", "key": f"  key: {KEY}"}
    lines.pop(without, None)
    return "client:\n" + "\n".join(lines.values()) + f"\n{settings}\n"


def test_everything_that_is_wrong_is_said_at_once(problems: Problems) -> None:
    text = f"""\
        server:
          listen: ["0.0.0.0:443", "[::]:99999"]
          keepalive: 40
          mut: 1400
          clients:
            demo:
              keyfile: /etc/demo.key
              subnets: [10.0.0.1/16]
            home:
              key: {KEY}
              subnets: [10.86.0.0/17, 192.168.0.0/16]
            office:
              key: c2hvcnQ=
              subnets: 192.168.1.0/24
            office:
              key: {KEY}
        """
    assert problems(text) == [
        "dtun.yaml:1:1: server.timeout: 30 s is not longer than keepalive (40 s); three times as long is usual",
        (
            "dtun.yaml:2:27: server.listen[1]: '[::]:99999' has a wrong port; write a number from 1 to 65535, like"
            ' "0.0.0.0:443" or "[::]:443"'
        ),
        "dtun.yaml:4:3: server: unknown key 'mut'; did you mean 'mtu'?",
        "dtun.yaml:7:7: server.clients.demo: unknown key 'keyfile'; did you mean 'key_file'?",
        (
            "dtun.yaml:8:17: server.clients.demo.subnets[0]: '10.0.0.1/16' is an address inside a network; write the"
            " network, 10.0.0.0/16"
        ),
        (
            "dtun.yaml:11:17: server.clients.home.subnets[0]: 10.86.0.0/17 of client 'home' overlaps 10.86.0.0/16"
            " (the default pool); change one of them"
        ),
        (
            "dtun.yaml:13:12: server.clients.office.key: is too short for a key: 5 bytes instead of 32; make a key"
            " with `dtun genkey`"
        ),
        (
            "dtun.yaml:14:16: server.clients.office.subnets: 192.168.1.0/24 of client 'office' overlaps 192.168.0.0/16"
            " of client 'home'; a network can be behind one client only (the other: dtun.yaml:11:31)"
        ),
        "dtun.yaml:15:5: server.clients: 'office' is there twice, first on line 12; remove one of them",
    ]


def test_a_wrong_pool_is_no_reason_to_call_addresses_wrong(problems: Problems) -> None:
    text = server("pol: 10.9.0.0/16", f"key: {KEY}, address: 10.9.0.5")
    assert problems(text) == ["dtun.yaml:2:4: server: unknown key 'pol'; did you mean 'pool'?"]
    text = server("pool: 10.9.0.0/33", f"key: {KEY}, address: 10.9.0.5")
    assert len(problems(text)) == 1


SERVER_VALUES = [
    ("mtu: 1e3", "2:9: server.mtu: must be a whole number"),
    ("mtu: 575", "2:9: server.mtu: must be at least 576"),
    ("mtu: 16381", "2:9: server.mtu: must be at most 16380"),
    ("mtu: 1279, pool6: fd00::/64", ("2:9: server.mtu: must be at least 1280 where there is IPv6;"
     " remove pool6 or raise mtu")),
    ("mtu: [1400]", "2:9: server.mtu: must be a whole number"),
    ("keepalive: often", "2:15: server.keepalive: must be a number of seconds, like 5"),
    ("keepalive: nan", "2:15: server.keepalive: must be a number of seconds, like 5"),
    ("keepalive: 0", "2:15: server.keepalive: must be at least 0.1"),
    ("keepalive: 10, timeout: 10", ("2:28: server.timeout: 10 s is not longer than keepalive (10 s);"
     " three times as long is usual")),
    ("pool: fd00::/64", ("2:10: server.pool: fd00::/64 is an IPv6 network; put it into pool6,"
     " and an IPv4 network into pool")),
    ("pool6: 10.0.0.0/8", ("2:11: server.pool6: 10.0.0.0/8 is an IPv4 network; put it into pool,"
     " and an IPv6 network into pool6")),
    ("pool: 10.0.0.0/31", ("2:10: server.pool: 10.0.0.0/31 is not usable as a pool;"
     " its prefix length must be from 8 to 30")),
    ("pool: 127.0.0.0/8", ("2:10: server.pool: 127.0.0.0/8 cannot be routed:"
     " it is a loopback, link-local or multicast network")),
    ("pool: somewhere", "2:10: server.pool: 'somewhere' is not a network; write it like 10.0.0.0/16 or fd00:1::/64"),
    ("listen: []", "2:12: server.listen: must have at least one item"),
    ("listen: {a: b}", "2:12: server.listen: must be a list"),
    ("listen: [[x]]", ('2:13: server.listen[0]: must be an address to listen on, like "0.0.0.0:443" or "[::]:443",'
     " not a list or a mapping")),
    ("listen: localhost", ("2:12: server.listen: 'localhost' is not an IP address to listen on;"
     ' write "0.0.0.0:443" or "[::]:443"')),
    (
        "listen: '[fe80::1%a b]'",
        ("2:12: server.listen: '[fe80::1%a b]' is not an IP address to listen on;"
        ' write "0.0.0.0:443" or "[::]:443"'),
    ),
    ("listen: '[::'", ("2:12: server.listen: '[::' has an unclosed bracket or no colon after it;"
     ' write "0.0.0.0:443" or "[::]:443"')),
    ("listen: [192.0.2.1, '192.0.2.1:443']", "2:24: server.listen[1]: 192.0.2.1:443 is there twice; remove one"),
    ("suites: [PSK-NULL]", ("2:13: server.suites[0]: 'PSK-NULL' is not a suite of dtun; known suites:"
     " ECDHE-PSK-CHACHA20-POLY1305, PSK-CHACHA20-POLY1305, PSK-AES-128-GCM, PSK-AES-256-GCM,"
     " PSK-AES-128-CCM, PSK-AES-256-CCM")),
    ("suites: PSK-AES128-CCM-8", ("2:12: server.suites: 'PSK-AES128-CCM-8' is for original Go peers only;"
     " set `compat: go` instead of naming it")),
    ("up: notify.sh", ("2:8: server.up: 'notify.sh' is not an absolute path;"
     " hooks run without a shell and without PATH")),
    ("up: []", "2:8: server.up: must be the path of a program, or a list of it and its arguments"),
    ("hook_timeout: 0", "2:18: server.hook_timeout: must be greater than 0"),
    ("state_directory: var", "2:21: server.state_directory: 'var' is not an absolute path; start it with '/'"),
    (f"runtime_directory: /{'r' * 100}", ("2:23: server.runtime_directory: is too long for the control socket in it;"
     " at most 107 bytes with its name")),
    ("rekey: 60", "2:4: server: unknown key 'rekey'; it belongs into the client section"),
    ("subnets: []", "2:4: server: unknown key 'subnets'; it belongs into the client section"),
    ("color: red", ("2:4: server: unknown key 'color'; known are push_routes, push_dns, push_domains, up, down,"
     " hook_timeout, listen, pool, pool6, mtu, suites, keepalive, timeout, state_directory, runtime_directory,"
     " forwarding, masquerade, clients")),
]  # fmt: skip


def test_a_url_is_no_server(problems: Problems) -> None:
    (line,) = problems(client("  servers: https://vpn.example.org:443/", without="servers"))
    assert "'https://vpn.example.org:443/' is a URL; write the name or address alone" in line


@pytest.mark.parametrize(("setting", "said"), SERVER_VALUES, ids=[setting for setting, _ in SERVER_VALUES])
def test_settings_of_the_server(problems: Problems, setting: str, said: str) -> None:
    assert problems(server(setting)) == [f"dtun.yaml:{said}"]


ENTRY = "server.clients.a"
ENTRY_VALUES = [
    ("address: 10.86.0.1", (f"{ENTRY}.address: 10.86.0.1 is the server's own address;"
     " take one from 10.86.0.2 to 10.86.255.254")),
    ("address: 10.86.0.0", (f"{ENTRY}.address: 10.86.0.0 is not free in pool 10.86.0.0/16;"
     " take one from 10.86.0.2 to 10.86.255.254")),
    ("address: 10.86.255.255", (f"{ENTRY}.address: 10.86.255.255 is not free in pool 10.86.0.0/16;"
     " take one from 10.86.0.2 to 10.86.255.254")),
    ("address: 10.87.0.2", (f"{ENTRY}.address: 10.87.0.2 is not free in pool 10.86.0.0/16;"
     " take one from 10.86.0.2 to 10.86.255.254")),
    ("address: fd00::2", f"{ENTRY}.address: 'fd00::2' is not an IPv4 address, like 10.86.0.2"),
    ("address6: fd00::2", f"{ENTRY}.address6: needs an IPv6 pool; set pool6 in the server section"),
    ("address6: fd00::2%x", f"{ENTRY}.address6: 'fd00::2%x' is not an IPv6 address, like fd00:86::2"),
    ("tun: a/b", f"{ENTRY}.tun: 'a/b' is no device name; use letters, digits, '-', '_' and '.', like dtun0"),
    ("tun: sixteen-letters-", f"{ENTRY}.tun: 'sixteen-letters-' is too long for a device name: at most 15 characters"),
    ("subnets: 10.86.1.0/24", (f"{ENTRY}.subnets: 10.86.1.0/24 of client 'a' overlaps 10.86.0.0/16 (the default pool);"
     " change one of them")),
    ("subnets: public", f"{ENTRY}.subnets: 'public' is not a network; write it like 10.0.0.0/16 or fd00:1::/64"),
    ("subnets: ff00::/8", (f"{ENTRY}.subnets: ff00::/8 cannot be routed:"
     " it is a loopback, link-local or multicast network")),
    ("compat: rust", f"{ENTRY}.compat: must be 'go'"),
]  # fmt: skip


@pytest.mark.parametrize(("setting", "said"), ENTRY_VALUES, ids=[setting for setting, _ in ENTRY_VALUES])
def test_settings_of_a_client_of_the_server(problems: Problems, setting: str, said: str) -> None:
    text = server(client=f"key: {KEY}, {setting}")
    column = text.splitlines()[2].index(setting.split(": ")[1]) + 1
    assert problems(text) == [f"dtun.yaml:3:{column}: {said}"]


def test_a_network_in_the_pool_that_the_file_names(problems: Problems) -> None:
    (line,) = problems(server("pool: 10.9.0.0/16", f"key: {KEY}, subnets: 10.9.1.0/24"))
    assert line.endswith(
        "10.9.1.0/24 of client 'a' overlaps the server's pool 10.9.0.0/16; change one of them"
        " (the other: dtun.yaml:2:10)"
    )


def test_what_two_clients_cannot_share(problems: Problems) -> None:
    text = f"""\
        server:
          pool6: fd00::/64
          clients:
            a:
              {{key: {KEY}, address: 10.86.0.2, tun: t, address6: "fd00::2"}}
            b:
              {{key: {KEY}, address: 10.86.0.2, tun: t, address6: "fd00::2"}}
            "*":
              {{key: {KEY}, address: 10.86.0.3}}
        """
    assert problems(text) == [
        (
            "dtun.yaml:7:68: server.clients.b.address: 10.86.0.2 belongs to client 'a' already;"
            " choose another one (the other: dtun.yaml:5:68)"
        ),
        (
            "dtun.yaml:7:84: server.clients.b.tun: t belongs to client 'a' already;"
            " choose another one (the other: dtun.yaml:5:84)"
        ),
        (
            "dtun.yaml:7:97: server.clients.b.address6: fd00::2 belongs to client 'a' already;"
            " choose another one (the other: dtun.yaml:5:97)"
        ),
        (
            'dtun.yaml:9:68: server.clients.*.address: the entry "*" serves many clients, which cannot share this;'
            " give the client an entry"
        ),
    ]


@pytest.mark.parametrize(
    ("first", "second", "overlap"),
    [
        ("10.1.0.0/16", "10.1.0.0/16", True),
        ("10.1.2.0/24", "10.0.0.0/10", True),
        ("172.16.0.0/13", "172.24.0.0/13", False),
        ("fd01::/16", "fd01:1::/32", True),
        ("10.1.0.0/16", "fd01::/16", False),
        ("private", "192.168.0.0/16", False),
        ("[10.1.0.0/16, 10.1.2.0/24]", "10.2.0.0/16", False),
        ("[10.1.0.0/16, 10.3.0.0/16]", "10.1.9.0/24", True),
        ("[10.1.0.0/16, 10.1.3.0/24]", "10.1.9.0/24", True),
    ],
)
def test_a_network_is_behind_one_client(
    problems: Problems, write: Callable[[str], Path], first: str, second: str, overlap: bool
) -> None:
    other = base64.b64encode(bytes(32)).decode()
    text = server(
        client=f"key: {KEY}, subnets: {first}", more=f",\n    b: {{key: {other}, subnets: {second}}}"
    )
    if overlap:
        (line,) = problems(text)
        assert "client 'a'" in line
        assert "client 'b'" in line
        assert "(the other: dtun.yaml:" in line
    else:
        assert load(write(text)).warnings == []


CLIENT_VALUES = [
    ("  rekey: 59", "5:10: client.rekey: must be at least 60 seconds, or 0 for never"),
    ("  rekey: -1", "5:10: client.rekey: must be at least 0"),
    ("  mtu: big", "5:8: client.mtu: must be a whole number"),
    ("  timeout: 30", "5:3: client: unknown key 'timeout'; it belongs into the server section"),
    ("  address: 10.86.0.2", "5:3: client: unknown key 'address'; it belongs into an entry of server.clients"),
    ("  routes: [10.0.0.0/8, 10.0.0.0/8]", "5:24: client.routes[1]: 10.0.0.0/8 is there twice; remove one"),
    ("  routes: 10.1.2.0/24\n  subnets: 10.1.0.0/16", ("5:11: client.routes: 10.1.2.0/24 is inside 10.1.0.0/16,"
     " which is behind this client itself; remove one of them")),
    ("  credential: a", "5:3: client.credential: there is one"),
    ("  compat: go\n  suites: PSK-AES-128-GCM", ("6:11: client.suites: an original dtun has one suite of its own;"
     " remove suites")),
    ("  compat: go\n  subnets: [10.1.0.0/16, 10.2.0.0/16]", ("6:26: client.subnets[1]: an original dtun server"
     " takes one subnet only; leave one")),
    ("  compat: go\n  subnets: [fd00::/16]", ("6:13: client.subnets[0]: an original dtun knows IPv4 only;"
     " remove fd00::/16")),
]  # fmt: skip


@pytest.mark.parametrize(("setting", "said"), CLIENT_VALUES, ids=[setting for setting, _ in CLIENT_VALUES])
def test_settings_of_the_client(problems: Problems, setting: str, said: str) -> None:
    if "compat" in setting:  # its key has another form
        assert f"dtun.yaml:{said}" in problems(client(setting).replace(KEY, "a Go key"))
    elif "credential" in setting:
        assert problems(client(setting)) == [
            "dtun.yaml:4:8: client.key: there is a credential already; keep one of them"
        ]
    else:
        assert problems(client(setting)) == [f"dtun.yaml:{said}"]


@pytest.mark.parametrize(
    "host",
    ["'a b'", "-x", "1.2.3", "'[1.2.3.4'", "a..b", f"{'x' * 64}.de", "''", "a:b", "'1:2:3'", "'fe80::1%a b'"],
)
def test_a_server_that_cannot_be_one(problems: Problems, host: str) -> None:
    (line,) = problems(client(f"  servers: {host}", without="servers"))
    assert line.startswith("dtun.yaml:4:12: client.servers: ")
    assert "write" in line
    assert "[2001:db8::1]:443" in line


@pytest.mark.parametrize(
    ("identity", "said"),
    [
        ("''", "an id must have at least one character, and no space at its ends"),
        ("' a'", "an id must have at least one character, and no space at its ends"),
        ('"a\\nb"', "an id must not have control characters in it"),
        ('"a\\u200eb"', "an id must not have control characters in it"),
        ("ä" * 33, "an id has at most 64 bytes as UTF-8, this one has 66"),
        ("'*'", '"*" stands for any id on a server; give this client an id of its own'),
    ],
)
def test_an_id_that_cannot_be_one(problems: Problems, identity: str, said: str) -> None:
    assert problems(client(f"  id: {identity}", without="id")) == [f"dtun.yaml:4:7: client.id: {said}"]


def test_an_id_of_the_server_that_cannot_be_one(problems: Problems) -> None:
    long = "x" * 65
    text = f"server:\n  clients:\n    ? {long}\n    : {{key: {KEY}}}\n"
    (line,) = problems(text)
    assert line.startswith("dtun.yaml:2:3: server.clients: 'xxx")
    assert line.endswith("an id has at most 64 bytes as UTF-8, this one has 65")


def test_what_is_missing_is_looked_for_where_it_belongs(problems: Problems) -> None:
    assert problems("\nclient: {}\n") == [
        "dtun.yaml:2:1: client.servers: is missing",
        "dtun.yaml:2:1: client.id: is missing",
        "dtun.yaml:2:9: client: has no key; add one of key_file, credential or key",
    ]
    assert problems(client(without="key")) == [
        "dtun.yaml:1:1: client: has no key; add one of key_file, credential or key"
    ]
    assert problems("server:\n  mtu: 1400\n") == ["dtun.yaml:1:1: server.clients: is missing"]
    assert problems("server:\n  clients: {}\n") == [
        'dtun.yaml:2:12: server.clients: has no client; add one by its id, or "*" for any'
    ]
    assert problems("server:\n  clients:\n    a:\n") == [
        "dtun.yaml:3:7: server.clients.a: must be a mapping: lines of `name: value`, indented below it"
    ]
    assert problems("server: here\n") == [
        "dtun.yaml:1:9: server: must be a mapping: lines of `name: value`, indented below it"
    ]


TOPS = [
    ("", "1:1: the file is empty; write a `server:` or a `client:` section"),
    ("# only words\n", "1:1: the file is empty; write a `server:` or a `client:` section"),
    ("- a\n", "1:1: the file must have a `server:` or a `client:` section"),
    ("word", "1:1: the file must have a `server:` or a `client:` section"),
    ("{}", "1:1: the file has no section; write a `server:` or a `client:` section"),
    ("\nsevrer:\n  a: b\n", "2:1: unknown key 'sevrer'; did you mean 'server'?"),
    ("server: {}\nclient: {}\n", "2:9: client: there is a server section already; use a file for each of them"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "said"), TOPS)
def test_the_outermost_level(problems: Problems, text: str, said: str) -> None:
    assert problems(text) == [f"dtun.yaml:{said}"]


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigErrors) as caught:
        load(tmp_path / "no.yaml")
    assert caught.value.lines == [
        f"{tmp_path}/no.yaml: does not exist; write it (see etc/dtun.yaml.example), or give -c FILE"
    ]
    with pytest.raises(ConfigErrors, match="cannot be read: Is a directory"):
        load(tmp_path)


def test_a_wrong_key_source_is_not_also_a_missing_one(problems: Problems) -> None:
    assert problems(client("  key_fiel: x", without="key")) == [
        "dtun.yaml:4:3: client: unknown key 'key_fiel'; did you mean 'key_file'?"
    ]


def test_a_setting_under_a_misspelt_name_is_not_also_missing(problems: Problems) -> None:
    assert problems(client("  server: h", without="servers")) == [
        "dtun.yaml:4:3: client: unknown key 'server'; did you mean 'servers'?"
    ]
    assert problems("server:\n  cleints: {}\n") == [
        "dtun.yaml:2:3: server: unknown key 'cleints'; did you mean 'clients'?"
    ]
    assert problems(client("  color: red", without="servers"))[0] == (
        "dtun.yaml:1:1: client.servers: is missing"
    )


def test_a_client_of_which_all_is_indented_too_little(problems: Problems) -> None:
    said = "is a setting of a client, in the place of a client's id; is this line indented too little?"
    assert problems("server:\n  clients:\n    home:\n    key_file: k\n    subnets: [10.1.0.0/16]\n") == [
        ("dtun.yaml:3:10: server.clients.home: must be a mapping: lines of `name: value`, indented below it"),
        f"dtun.yaml:4:15: server.clients.key_file: {said}",
        f"dtun.yaml:5:14: server.clients.subnets: {said}",
    ]


def test_keys_and_hooks_are_looked_at_beside_other_errors(write: Callable[[str], Path]) -> None:
    with pytest.raises(ConfigErrors) as caught:
        load(
            write("""                server:
                  mtu: big
                  up: /does/not/exist
                  clients:
                    a:
                      key_file: /none/a
                      subnets: 10.0.0.1/8
                    b:
                      key_file: /none/b
                      down: /does/not/exist
                      color: red
                """)
        )
    assert [line.split(":", 3)[3].split("; ")[0].strip() for line in caught.value.lines] == [
        "server.mtu: must be a whole number",
        "server.clients.a.key_file: /none/a does not exist",
        "server.clients.a.subnets: '10.0.0.1/8' is an address inside a network",
        "server.clients.b.key_file: /none/b does not exist",
        "server.clients.b: unknown key 'color'",
    ]
    assert [line.split(": ")[1] for line in caught.value.warnings] == ["server.up", "server.clients.b.down"]


@pytest.mark.parametrize("compat", ["compat: rust", "compatt: go"])
def test_a_key_is_not_called_wrong_while_its_kind_is_unclear(problems: Problems, compat: str) -> None:
    (line,) = problems(server(client=f"key: a Go key, {compat}"))
    assert compat.split(":", maxsplit=1)[0] in line
    (line,) = problems(client(f"  {compat}").replace(KEY, "a Go key"))
    assert compat.split(":", maxsplit=1)[0] in line


def test_an_entry_with_a_misspelt_key_source_has_one_problem(problems: Problems) -> None:
    assert problems(server(client="kye: x")) == [
        "dtun.yaml:3:9: server.clients.a: unknown key 'kye'; did you mean 'key'?"
    ]
    (line,) = problems(server(client="'key_file:/etc/dtun/home.key': "))
    assert "is a space missing after the colon?" in line


def test_each_part_of_a_taken_network_is_named(problems: Problems) -> None:
    text = server(
        client=f"key: {KEY}, subnets: 10.1.0.0/16",
        more=",\n    b: {key: x, subnets: [10.1.0.0/20, 10.1.1.0/24]}",
    )
    overlaps = [line for line in problems(text) if "overlaps" in line]
    assert [line.split(": ")[1] for line in overlaps] == [
        "server.clients.b.subnets[0]",
        "server.clients.b.subnets[1]",
    ]
    assert all("overlaps 10.1.0.0/16 of client 'a'" in line for line in overlaps)
