"""dtun as its package installs it, under a real systemd: the life of a service, from the first start to a bad file."""

import json

import pytest

from tests.systemd.container import Container, wait_for
from tests.systemd.pair import CLIENT, Machine, Pair

CONFIGURATION_IS_WRONG = "78"


@pytest.fixture
def pair(installed: Pair) -> Pair:
    """Both at work, whatever the test before did."""
    installed.start()
    return installed


def test_both_are_ready_and_say_how_they_are(pair: Pair) -> None:
    for machine, said in (
        (pair.server, '"1 of 1 clients connected"'),
        (pair.client, '"connected to 192.0.2.1:443'),
    ):
        wait_for(lambda m=machine, s=said: s in m.status(), f"{said} in the status")  # type: ignore[misc]
        assert "Active: active (running)" in machine.status()
        assert machine.container.run("systemctl", "is-enabled", machine.unit) == "enabled\n"


def test_the_journal_has_fields_to_filter_by(pair: Pair) -> None:
    server, client = pair.server.container, pair.client.container
    about = server.journal("dtun-server", "DTUN_CLIENT=home", "DTUN_REASON=connected")
    assert "home: connected from 192.0.2.2:" in about
    assert "listening on" not in about
    pair.client.systemctl("stop")
    wait_for(
        lambda: "home: away" in server.journal("dtun-server", "DTUN_CLIENT=home", "DTUN_REASON=stopped"),
        "the goodbye among the entries with its reason",
    )
    assert "stopped; nothing is left behind" in client.journal("dtun-client", "PRIORITY=6")
    pair.client.configure(CLIENT.replace("home.key", "other.key"))
    pair.client.systemctl("start", check=False)
    assert "/etc/dtun/other.key does not exist" in client.journal("dtun-client", "PRIORITY=3")


def test_it_is_not_root_and_yet_does_all_of_its_work(pair: Pair) -> None:
    container = pair.server.container
    status = container.read(f"/proc/{pair.server.pid}/status")
    user = container.run("id", "-u", "dtun").strip()
    assert f"Uid:\t{user}\t{user}\t{user}\t{user}" in status
    assert container.run("sysctl", "-n", "net.ipv4.ip_forward") == "1\n"
    assert "masquerade" in pair.server.left()["firewall"]
    assert "10.0.0.0/16 dev dtun-home" in pair.server.left()["routes"]


def test_a_group_of_its_own_may_ask_and_read_no_key(pair: Pair) -> None:
    container = pair.server.container
    nobody = ("setpriv", "--reuid=nobody", "--clear-groups")
    member, service, stranger = ((*nobody, f"--regid={group}") for group in ("dtun-admin", "dtun", "nogroup"))
    assert json.loads(container.run(*member, "dtun", "status", "--json"))["role"] == "server"
    for file in ("/etc/dtun/home.key", "/etc/dtun.yaml"):
        assert container.complete(*member, "cat", file).returncode != 0
    for other in (service, stranger):
        refused = container.complete(*other, "dtun", "status")
        assert (refused.returncode, refused.stdout) == (77, "")
        assert "join the group dtun-admin" in refused.stderr
    others = "find /run/dtun ! -type s ! -type d -perm /077"
    assert container.run("sh", "-c", others) == "", "other files there are for the service alone"


def test_it_may_set_name_servers_and_other_users_may_not(pair: Pair) -> None:
    container = pair.client.container
    for arguments in (
        ["dns", "dtun0", "192.0.2.53"],
        ["domain", "dtun0", "~corp.example"],
        ["revert", "dtun0"],
    ):
        as_user = ("setpriv", "--clear-groups", "--regid=nogroup")
        command = ("resolvectl", *arguments)
        refused = container.complete(*as_user, "--reuid=nobody", *command)
        assert refused.returncode != 0
        assert "authentication required" in refused.stderr.lower()
        container.run(*as_user, "--reuid=dtun", *command)


def test_a_reload_keeps_the_process_and_a_bad_file_changes_nothing(pair: Pair) -> None:
    server = pair.server
    pid = server.pid
    server.configure(server.config + "    office: {key_file: /etc/dtun/home.key}\n")
    server.systemctl("reload")
    assert '"1 of 2 clients connected"' in server.status()
    server.configure("server: {clents: {}}\n")
    refused = server.container.complete("systemctl", "reload", server.unit)
    assert refused.returncode != 0
    assert "/etc/dtun.yaml:1:10: server: unknown key 'clents'" in server.journal_tail()
    assert server.pid == pid
    assert pair.talk()


def test_a_stop_leaves_nothing(pair: Pair) -> None:
    for machine in (pair.client, pair.server):
        assert any(machine.left().values())
        machine.systemctl("stop")
        assert not any(machine.left().values()), machine.left()
        assert "Deactivated successfully" in machine.journal_tail()
        assert machine.container.run("systemctl", "is-failed", machine.unit, check=False) == "inactive\n"


@pytest.mark.parametrize(
    ("config", "line"),
    [
        (
            "client: {servers: [192.0.2.1], id: home, key_file: dtun/home.key, colour: red}\n",
            "/etc/dtun.yaml:1:67: client: unknown key 'colour'",
        ),
        (CLIENT.replace("home.key", "other.key"), "/etc/dtun/other.key does not exist"),
        (CLIENT.replace("key_file: /etc/dtun/home.key", "credential: home"), "add LoadCredential="),
    ],
)
def test_what_takes_a_person_is_said_once_and_not_tried_again(pair: Pair, config: str, line: str) -> None:
    client = pair.client
    client.systemctl("stop")
    client.configure(config)
    restarts = client.container.show(client.unit, "NRestarts")
    client.systemctl("start", check=False)
    # Not "activating (auto-restart)".
    assert client.container.show(client.unit, "ActiveState") == "failed"
    assert client.container.show(client.unit, "ExecMainStatus") == CONFIGURATION_IS_WRONG
    assert client.container.show(client.unit, "NRestarts") == restarts
    assert client.status().count(line) == 1, client.status()
    assert "Traceback" not in client.journal_tail()


HOOK = """\
#!/bin/sh
try() { "$@" 2> /dev/null && echo "can: $*" || echo "cannot: $*"; }
try ip route add 198.51.100.0/24 dev "$TUN" table 99
try nft add table inet more
try sysctl -q -w net.ipv4.conf.all.rp_filter=0
try resolvectl domain "$TUN" ~hook.example
try touch /var/lib/dtun/hook
try touch /run/dtun/hook
try cp /dev/null /tmp/hook
try touch /etc/dtun/hook
try touch /etc/hook
try ls /root
try systemctl stop dtun-client
try sysctl -q -w kernel.domainname=hook
"""
HOOKS_CAN = ("ip", "nft", "sysctl -q -w net", "resolvectl", "touch /var/lib/dtun", "touch /run/dtun", "cp")
HOOKS_CANNOT = ("touch /etc/dtun", "touch /etc/hook", "ls /root", "systemctl", "sysctl -q -w kernel")


def test_hooks_can_do_what_the_service_can(pair: Pair) -> None:
    """As docs/operations.md says."""
    client = pair.client
    client.systemctl("stop")
    client.container.write("/etc/dtun/up", HOOK, 0o755)
    client.configure(CLIENT + "  up: /etc/dtun/up\n")
    try:
        client.systemctl("start")
        about = ("DTUN_CLIENT=home", "DTUN_REASON=connected", "LOGGER=dtun.hook")
        wait_for(
            lambda: "kernel.domainname" in client.container.journal(client.unit, *about),
            "the end of the hook",
        )
        said = client.container.journal(client.unit, *about)
        for what in HOOKS_CAN:
            assert f"up hook: can: {what}" in said, what
        for what in HOOKS_CANNOT:
            assert f"up hook: cannot: {what}" in said, what
    finally:
        client.systemctl("stop")
        client.container.run("rm", "-f", "/etc/dtun/up", "/var/lib/dtun/hook", "/run/dtun/hook")
        client.container.run("nft", "delete", "table", "inet", "more", check=False)


SECOND = """\
server:
  listen: 0.0.0.0:443
  pool: 10.99.0.0/24
  clients: {other: {key_file: /etc/dtun/home.key}}
"""


@pytest.mark.parametrize(
    ("directory", "line"),
    [
        (
            "dtun-second",
            "listen: UDP port 0.0.0.0:443 is taken by another program; stop that one or choose another port",
        ),
        ("dtun", "dtun is running already as 'server' (/run/dtun/server.lock is locked); stop it first, or"),
    ],
)
def test_a_second_instance_says_what_is_taken_and_leaves_the_first_alone(
    pair: Pair, directory: str, line: str
) -> None:
    container = pair.server.container
    unit = container.read("/usr/lib/systemd/system/dtun-server.service")
    for old, new in (
        ("Directory=dtun\n", f"Directory={directory}\n"),
        ("/etc/dtun.yaml", "/etc/dtun/second.yaml"),
        ("Restart=on-failure", "Restart=no"),
    ):
        assert old in unit
        unit = unit.replace(old, new)
    container.write("/etc/dtun/second.yaml", SECOND, 0o640, "root:dtun")
    container.write("/etc/systemd/system/dtun-second.service", unit)
    container.run("systemctl", "daemon-reload")
    try:
        before = container.journal("dtun-second", "-p", "err", "_COMM=dtun")
        container.run("systemctl", "start", "dtun-second", check=False)
        (said,) = (
            container.journal("dtun-second", "-p", "err", "_COMM=dtun").removeprefix(before).splitlines()
        )
        assert said.startswith(line)
        assert "has failed: " + line in container.run("systemctl", "status", "dtun-second", check=False)
        assert pair.talk()
    finally:
        container.run("rm", "/etc/systemd/system/dtun-second.service", "/etc/dtun/second.yaml")
        container.run("systemctl", "daemon-reload")


def test_a_run_directory_that_cannot_be_written_is_one_line(pair: Pair) -> None:
    client = pair.client
    client.systemctl("stop")
    client.container.run("rm", "-rf", "/run/dtun")
    client.drop_in("run", "RuntimeDirectory=")
    try:
        client.systemctl("start", check=False)
        assert client.container.show(client.unit, "ActiveState") == "failed"
        line = "cannot write to /run/dtun: permission denied; run dtun as root, or give it a directory of its own"
        assert client.status().count(line) == 1
        assert "Traceback" not in client.journal_tail()
    finally:
        client.drop_in("run", "")


def test_a_client_that_is_kicked_comes_back(pair: Pair) -> None:
    server = pair.server.container
    kicked = server.run("dtun", "kick", "home")
    assert kicked.startswith("the session of client 'home' from 192.0.2.2:")
    wait_for(lambda: "ended by the administrator" in pair.client.journal_tail(), "the client to hear of it")
    wait_for(pair.talk, "the tunnel")
    unknown = server.complete("dtun", "kick", "office")
    assert (unknown.returncode, unknown.stderr.count("\n")) == (69, 1)


def test_down_ends_the_service_and_leaves_nothing(pair: Pair) -> None:
    client = pair.client
    assert client.container.run("dtun", "down") == "dtun has stopped; nothing is left behind\n"
    wait_for(lambda: client.container.show(client.unit, "ActiveState") == "inactive", "the end of the unit")
    assert not any(client.left().values())
    assert client.container.show(client.unit, "NRestarts") == "0"


def test_a_failure_that_may_pass_is_tried_again(pair: Pair) -> None:
    """The counterpart of the one above: were there no restarts at all, that would pass as well."""
    client = pair.client
    client.systemctl("stop")
    client.configure(CLIENT + "  tun: lo\n")
    client.container.run("systemctl", "start", "--no-block", client.unit)
    wait_for(lambda: client.container.show(client.unit, "NRestarts") not in {"", "0"}, "another try")
    client.systemctl("stop")


@pytest.mark.parametrize("how", ["LoadCredential", "LoadCredentialEncrypted"])
def test_a_key_as_a_credential_is_nowhere_else(pair: Pair, how: str) -> None:
    client = pair.client
    container = client.container
    key = container.read("/etc/dtun/home.key")
    source = "/root/home.key"
    container.run("mv", "/etc/dtun/home.key", "/root/home.key")
    container.run("chmod", "600", "/root/home.key")
    try:
        if how == "LoadCredentialEncrypted":
            source = "/etc/dtun/home.cred"
            container.run("systemd-creds", "encrypt", "--name=home", "/root/home.key", source)
            container.run("rm", "/root/home.key")
        client.drop_in("key", f"{how}=home:{source}")
        client.configure(CLIENT.replace("key_file: /etc/dtun/home.key", "credential: home"))
        client.systemctl("restart")
        wait_for(pair.talk, "the tunnel")
        places = _files_with(container, key.strip(), client)
        assert places <= {"/root/home.key", f"/run/credentials/{client.unit}.service/home"}
        assert ("/root/home.key" in places) == (how == "LoadCredential")
        assert key.strip() not in container.journal()
        other = ("setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups")
        path = f"/proc/{client.pid}/root/run/credentials/{client.unit}.service/home"
        assert container.read(path) == key
        assert container.complete(*other, "cat", path).returncode != 0
    finally:
        client.drop_in("key", "")
        container.write("/etc/dtun/home.key", key, 0o640, "root:dtun")
        container.run("rm", "-f", "/root/home.key", "/etc/dtun/home.cred")
        client.systemctl("stop")


def _files_with(container: Container, text: str, machine: Machine) -> set[str]:
    """Where in the file system, and in what a process shows to others, this text stands."""
    process = [f"/proc/{machine.pid}/{name}" for name in ("cmdline", "environ")]
    places = ["/etc", "/root", "/run", "/tmp", "/var", *process]
    # 1: no such place; 2: a file went away while it looked.
    return set(container.run("grep", "-rlsF", text, *places, check=False).split())
