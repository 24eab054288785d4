"""The optional socket unit: systemd listens, and the first datagram starts the server."""

import re
from collections.abc import Iterator

import pytest

from tests.systemd.container import wait_for
from tests.systemd.pair import SERVER, Pair

UNIT = "dtun-server.socket"


@pytest.fixture
def pair(installed: Pair) -> Iterator[Pair]:
    """Nothing runs on the server but the socket unit; the client tries."""
    container = installed.server.container
    installed.client.configure()
    installed.client.systemctl("stop")
    installed.server.systemctl("stop")
    installed.server.configure()
    container.run("systemctl", "reset-failed", "dtun-server.service", UNIT, check=False)
    yield installed
    container.run("systemctl", "stop", UNIT)
    installed.server.systemctl("stop")
    container.run("rm", "-rf", f"/etc/systemd/system/{UNIT}.d")
    container.run("systemctl", "daemon-reload")


def listen(pair: Pair, lines: str = "") -> None:
    """Start the socket unit, with these lines of `systemctl edit`."""
    container = pair.server.container
    if lines:
        container.write(f"/etc/systemd/system/{UNIT}.d/test.conf", f"[Socket]\n{lines}\n")
        container.run("systemctl", "daemon-reload")
    container.run("systemctl", "start", UNIT)


def test_the_first_datagram_starts_the_server_and_its_sessions_share_the_port(pair: Pair) -> None:
    listen(pair)
    server = pair.server
    assert server.pid == "0"
    pair.client.systemctl("start")
    wait_for(pair.talk, "the tunnel")
    sockets = server.container.run("ss", "-Hunap", "sport = :443")
    listening = [line for line in sockets.splitlines() if line.startswith("UNCONN")]
    assert len(listening) == 2
    for line in listening:
        assert '"systemd",pid=1' in line
        assert f'"dtun",pid={server.pid}' in line
    assert re.search(
        rf'^ESTAB .* 192.0.2.1:443 192.0.2.2:\d+ .*"dtun",pid={server.pid}', sockets, re.MULTILINE
    )
    assert "does not name" not in server.journal_tail()


def test_a_restart_goes_on_with_sockets_and_session(pair: Pair) -> None:
    listen(pair)
    server = pair.server
    pair.client.systemctl("start")
    wait_for(pair.talk, "the tunnel")
    pid = server.pid
    server.systemctl("restart")
    assert server.pid != pid
    wait_for(lambda: "resumed the session with 192.0.2.2:" in server.journal_tail(), "the session to go on")
    assert pair.talk()
    lately = server.container.journal("dtun-server", f"_PID={server.pid}")
    assert "connected from" not in lately
    assert "does not name" not in lately


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (
            "ListenStream=0.0.0.0:443",
            "dtun-server.socket passes something else than a UDP socket; it is not used",
        ),
        (
            "ListenDatagram=0.0.0.0:4433",
            "the socket unit listens on 0.0.0.0:4433, which `listen` does not name; it is not used",
        ),
    ],
)
def test_what_is_too_much_is_said_and_the_rest_works(pair: Pair, lines: str, said: str) -> None:
    listen(pair, lines)
    pair.client.systemctl("start")
    wait_for(pair.talk, "the tunnel")
    assert pair.server.journal_tail().count(said) == 1


def test_addresses_that_do_not_go_together_are_one_line(pair: Pair) -> None:
    listen(pair, "ListenDatagram=\nListenDatagram=192.0.2.1:443")
    # Or it would be tried again and again, as it should.
    pair.server.drop_in("once", "Restart=no")
    container = pair.server.container
    before = container.journal("dtun-server", "-p", "err", "_COMM=dtun")
    pair.server.systemctl("start", check=False)
    lines_now = container.journal("dtun-server", "-p", "err", "_COMM=dtun").removeprefix(before).splitlines()
    assert lines_now == [
        "listen: the socket unit listens on 192.0.2.1:443, not on 0.0.0.0:443; make them the same"
    ]
    pair.server.drop_in("once", "")


def test_a_server_that_cannot_start_is_not_tried_with_each_datagram(pair: Pair) -> None:
    pair.server.configure(SERVER.replace("home.key", "other.key"))
    container = pair.server.container
    # Who sends and sends: a client that tries.
    began = container.journal("dtun-server").count("other.key does not exist")
    listen(pair)
    pair.client.systemctl("start")
    wait_for(lambda: container.show(UNIT, "Result") == "trigger-limit-hit", "systemd to give up", 60)
    tries = container.journal("dtun-server").count("other.key does not exist") - began
    assert 1 <= tries <= 5


def test_without_its_service_the_socket_unit_is_refused(pair: Pair) -> None:
    container = pair.server.container
    container.run("ln", "-sf", "/dev/null", "/etc/systemd/system/dtun-server.service")
    container.run("systemctl", "daemon-reload")
    try:
        refused = container.complete("systemctl", "start", UNIT)
        assert refused.returncode != 0
        assert f"{UNIT}: Socket service dtun-server.service not loaded, refusing." in container.journal(UNIT)
    finally:
        container.run("rm", "/etc/systemd/system/dtun-server.service")
        container.run("systemctl", "daemon-reload")
