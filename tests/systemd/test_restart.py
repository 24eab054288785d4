"""A restart, a crash and a watchdog kill of the services as installed: the session goes on, and all that runs in it.

Meanwhile iperf3 fills the tunnel, a TCP connection checks each line that it carries, and a ping counts what is lost.
"""

import re
from collections.abc import Callable, Iterator

import pytest

from tests.systemd.container import wait_for
from tests.systemd.pair import CLIENT, SERVER, Machine, Pair
from tests.systemd.traffic import PING_INTERVAL, traffic

RESUMED = "resumed the session with"


@pytest.fixture(scope="module")
def impatient(installed: Pair) -> Iterator[Pair]:
    """The units as they are, but for a watchdog with little patience."""
    for machine in (installed.server, installed.client):
        machine.drop_in("patience", "WatchdogSec=1")
        machine.systemctl("stop")
    yield installed
    for machine in (installed.server, installed.client):
        machine.drop_in("patience", "")
        machine.systemctl("stop")


@pytest.fixture
def pair(impatient: Pair) -> Pair:
    """Both at work."""
    impatient.start()
    return impatient


def restart(machine: Machine) -> None:
    machine.systemctl("restart")


def crash(machine: Machine) -> None:
    machine.container.run("systemctl", "kill", "--signal=KILL", machine.unit)


def hang(machine: Machine) -> None:
    """The loop stands still, until the watchdog's patience is over."""
    machine.container.run("systemctl", "kill", "--signal=STOP", machine.unit)


def kernel_state(pair: Pair) -> list[str]:
    """What must not change: the devices by their indexes, the routes through them."""
    return [
        re.sub(r"mtu \d+ ", "", part)
        for side in (pair.server.container, pair.client.container)
        for part in (side.ip("-o link show type tun"), side.ip("route show proto 217"))
    ]


def handshakes(pair: Pair) -> int:
    return pair.server.container.journal("dtun-server").count("connected from")


def resumptions(machine: Machine) -> int:
    return machine.container.journal(machine.unit).count(RESUMED)


@pytest.mark.parametrize("role", ["server", "client"])
@pytest.mark.parametrize("how", [restart, crash, hang])
def test_no_connection_is_lost(pair: Pair, how: Callable[[Machine], None], role: str) -> None:
    """What is lost of other packets is printed."""
    machine = pair.server if role == "server" else pair.client
    before, known, resumed, pid = kernel_state(pair), handshakes(pair), resumptions(machine), machine.pid
    with traffic(pair) as seen:
        how(machine)
        wait_for(lambda: resumptions(machine) > resumed, "the next process to resume it")
    print(f"{how.__name__} of the {role}: {seen}")
    assert machine.pid not in {"0", pid}
    assert handshakes(pair) == known
    assert kernel_state(pair) == before
    if how is hang:
        assert "Watchdog timeout" in machine.journal_tail()
    # On an idle machine this takes less than a second, and one to two for the watchdog.
    assert seen.silence < 3
    assert seen.lost < seen.silence / PING_INTERVAL + 10


def test_another_port_and_back(pair: Pair) -> None:
    """What the service manager still keeps of a session must not hold the port."""
    for listen in ("0.0.0.0:4443", "0.0.0.0:443"):
        pair.server.configure(SERVER.replace("server:", f"server:\n  listen: {listen}"))
        pair.server.systemctl("restart")
        assert f"listening on UDP {listen}" in pair.server.journal_tail()
    wait_for(pair.talk, "the tunnel")


def test_a_client_keeps_its_device_when_its_settings_change(pair: Pair) -> None:
    client = pair.client
    device = client.container.ip("-o link show type tun").partition(":")[0]
    client.configure(CLIENT + "  mtu: 1300\n")
    client.systemctl("restart")
    wait_for(pair.talk, "the tunnel")
    assert client.container.ip("-o link show type tun").partition(":")[0] == device
    assert client.container.show(client.unit, "NRestarts") == "0"


def test_another_device_name_leaves_nothing_of_the_former(pair: Pair) -> None:
    """The reload says that it needs a restart; the restart is a whole stop, or a crash has it cleaned up."""
    client = pair.client
    client.configure(CLIENT + "  tun: vpn0\n")
    client.systemctl("reload")
    assert "tun: vpn0 instead of dtun0" in client.journal_tail()
    client.systemctl("restart")
    wait_for(pair.talk, "the tunnel")
    client.configure(CLIENT)
    crash(client)
    wait_for(pair.talk, "the tunnel")
    assert "vpn0" not in "".join(client.left().values())
    assert client.container.run("ls", "/run/dtun").split() == ["dtun0.json", "dtun0.lock", "dtun0.sock"]


def test_a_restart_loses_no_packet(pair: Pair) -> None:
    """They wait in the device's queue and in the socket, not for long enough to fill them."""
    # It ends with the last answer, however long that waited.
    ping = ("ping", "-q", "-c", "60", "-i", "0.05", "-W", "20", "10.86.0.1")
    said = ""
    # A machine that is busy with other tests may keep systemd from answering in time: then sessions are made anew.
    for _ in range(3):
        wait_for(pair.talk, "the tunnel")
        pinging = pair.client.container.popen(*ping, stdout=-1)
        for machine in (pair.client, pair.server):
            machine.systemctl("restart")
        said = pinging.communicate(timeout=30)[0]
        if " 0% packet loss" in said:
            break
    assert " 0% packet loss" in said, said + pair.client.journal_tail() + pair.server.journal_tail()


def test_a_stop_that_takes_longer_than_the_watchdogs_patience_is_let_finish(pair: Pair) -> None:
    client = pair.client
    client.configure(CLIENT + "  down: [/bin/sh, -c, sleep 3; echo done]\n")
    client.systemctl("reload")
    client.systemctl("stop")
    assert "down hook: done" in client.journal_tail()
    assert client.container.show(client.unit, "Result") == "success"
    assert not any(client.left().values())


def test_a_stop_says_goodbye_and_leaves_nothing(pair: Pair) -> None:
    said = pair.server.container.journal("dtun-server").count("the client closed the session")
    pair.client.systemctl("stop")
    wait_for(
        lambda: pair.server.container.journal("dtun-server").count("the client closed the session") > said,
        "the goodbye",
    )
    pair.server.systemctl("stop")
    for machine in (pair.client, pair.server):
        assert not any(machine.left().values()), machine.left()
        assert machine.container.run("ls", "/run/dtun") == ""
        # Nor does systemd keep anything of it.
        assert machine.container.show(machine.unit, "NFileDescriptorStore") == "0"
