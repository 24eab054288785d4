"""A mistake in a file, or in its rights: `dtun check` finds it as the service would, and a restart survives it."""

from collections.abc import Iterator

import pytest

from tests.systemd.container import wait_for
from tests.systemd.pair import CLIENT, SERVER, Machine, Pair


@pytest.fixture
def pair(installed: Pair) -> Iterator[Pair]:
    """Both at work; the rights come back."""
    installed.start()
    yield installed
    for machine in (installed.server, installed.client):
        machine.container.run("chown", "root:dtun", "/etc/dtun/home.key", "/etc/dtun.yaml")
        machine.container.run("chmod", "640", "/etc/dtun/home.key", "/etc/dtun.yaml")


def handshakes(pair: Pair) -> int:
    return pair.server.container.journal("dtun-server").count("connected from")


def check(machine: Machine, *arguments: str) -> tuple[int, str]:
    done = machine.container.complete("dtun", "check", *arguments)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("role", ["server", "client"])
def test_a_restart_with_a_mistake_ends_no_session(pair: Pair, role: str) -> None:
    machine = pair.server if role == "server" else pair.client
    known, pid = handshakes(pair), machine.pid
    machine.configure(machine.config.replace("subnets", "subnet"))
    machine.systemctl("restart")
    assert machine.pid not in {"0", pid}
    assert pair.talk()
    assert handshakes(pair) == known
    assert "/etc/dtun.yaml is not used; going on with the configuration from before" in machine.journal_tail()
    assert "/etc/dtun.yaml is not in use, see `dtun check`" in machine.status()
    assert "unknown key 'subnet'" in machine.container.run("dtun", "status")
    machine.container.run("systemctl", "kill", "--signal=KILL", machine.unit)
    wait_for(lambda: machine.pid not in {"0", pid}, "the next process")
    wait_for(pair.talk, "the tunnel")
    machine.configure()
    machine.systemctl("reload")
    assert "is not in use" not in machine.container.run("dtun", "status") + machine.status()
    assert handshakes(pair) == known


@pytest.mark.parametrize("file", ["/etc/dtun.yaml", "/etc/dtun/home.key"])
def test_what_the_service_cannot_read_is_found_and_survived(pair: Pair, file: str) -> None:
    client = pair.client
    client.container.run("chmod", "600", file)
    code, said = check(client)
    assert code == 78
    assert f"chown root:dtun {file} && chmod 640 {file}" in said
    client.systemctl("restart")
    assert pair.talk()
    client.systemctl("stop")
    assert check(client)[0] == 78
    assert check(client, "--user", "root")[0] == 0, "who is not the service"
    client.container.run("sh", "-c", said.partition("`")[2].partition("`")[0])
    assert check(client)[0] == 0


def test_what_another_program_has_is_found_before_it_is_in_the_way(pair: Pair) -> None:
    server = pair.server
    other = server.container.popen("python3", "-c", TAKE)
    wait_for(lambda: "4444" in server.container.run("ss", "-Hlun"), "the other program")
    server.configure(SERVER.replace("server:", "server:\n  listen: 0.0.0.0:4444"))
    for _ in ("running", "stopped"):
        code, said = check(server)
        assert (code, "UDP port 0.0.0.0:4444 is taken by another program" in said) == (69, True), said
        server.systemctl("stop")
    other.terminate()
    server.configure()
    assert check(server)[0] == 0


TAKE = "import socket, time; s = socket.socket(type=socket.SOCK_DGRAM); s.bind(('', 4444)); time.sleep(60)"


def test_files_that_the_unit_hides_are_found(pair: Pair) -> None:
    client = pair.client
    client.container.run("sh", "-c", "mkdir -p /home/ann && cp -a /etc/dtun/home.key /home/ann/")
    client.configure(CLIENT.replace("/etc/dtun/home.key", "/home/ann/home.key"))
    code, said = check(client)
    assert (code, "/home/ann/home.key is not visible for the service" in said) == (78, True)


def test_a_credential_is_looked_at_only_by_the_service(pair: Pair) -> None:
    client = pair.client
    client.container.run("cp", "/etc/dtun/home.key", "/root/home.key")
    client.drop_in("key", "LoadCredential=home:/root/home.key")
    client.configure(CLIENT.replace("key_file: /etc/dtun/home.key", "credential: home"))
    try:
        client.systemctl("stop")
        code, said = check(client)
        assert (code, "systemd passes credentials to the service only" in said) == (0, True)
        assert client.container.complete("dtun", "plan").returncode == 0
        client.systemctl("start")
        wait_for(pair.talk, "the tunnel")
        assert check(client)[0] == 0
        client.configure(CLIENT.replace("key_file: /etc/dtun/home.key", "credential: away"))
        code, said = check(client)
        assert (code, "no credential 'away' was passed" in said) == (78, True), "the running service knows"
    finally:
        client.drop_in("key", "")
        client.container.run("rm", "-f", "/root/home.key")
        client.systemctl("stop")
