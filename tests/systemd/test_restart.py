"""A restart, a crash and a watchdog kill of the services as installed: the session goes on, and all that runs in it.

Meanwhile iperf3 fills the tunnel, a TCP connection checks each line that it carries, and a ping counts what is lost.
"""

import json
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest

from tests.systemd.container import wait_for
from tests.systemd.pair import Machine, Pair

STEADY_TCP = Path(__file__).parents[1] / "netns" / "steady_tcp.py"
GOES_ON = "after the restart"
SERVER = "10.86.0.1"
PING_INTERVAL = 0.02
LOAD_SECONDS = 4
# Enough to find many packets on their way at any moment; and the rest of the machine has something to do as well.
LOAD_RATE = "200M"


@pytest.fixture(scope="module")
def impatient(installed: Pair) -> Iterator[Pair]:
    """The units as they are, but for a watchdog with little patience."""
    for machine in (installed.server, installed.client):
        machine.drop_in("patience", "WatchdogSec=1")
        machine.systemctl("stop")
        machine.container.write("/opt/steady_tcp.py", STEADY_TCP.read_text())
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


def goings_on(machine: Machine) -> int:
    return machine.container.journal(machine.unit).count(GOES_ON)


@dataclass
class Traffic:
    """What has become of it."""

    sent: int = 0
    lost: int = 0
    silence: float = 0.0
    megabits: float = 0.0
    retransmits: int = 0
    lines: str = ""

    def __str__(self) -> str:
        return (
            f"{self.lost} of {self.sent} pings lost, longest silence {self.silence:.2f} s; iperf3: "
            f"{self.megabits:.0f} Mbit/s, {self.retransmits} retransmitted; steady TCP: {self.lines}"
        )


@contextmanager
def traffic(pair: Pair) -> Iterator[Traffic]:
    """Through the tunnel, as long as this lasts and at least LOAD_SECONDS; fails if a connection is lost."""
    server, client = pair.server.container, pair.client.container
    listening = server.popen("iperf3", "-s", "--one-off", stdout=subprocess.DEVNULL)
    serving = server.popen("python3", "/opt/steady_tcp.py", "serve", SERVER, "7000", stdout=-1)
    for port in ("5201", "7000"):
        wait_for(lambda p=port: p in server.run("ss", "-Hltn", f"sport = :{p}"), f"somebody at port {port}")  # type: ignore[misc]
    talking = client.popen("python3", "/opt/steady_tcp.py", "talk", SERVER, "7000", stdin=-1, stdout=-1)
    assert talking.stdout is not None
    assert talking.stdout.readline() == "ready\n"
    load = ["iperf3", "-c", SERVER, "-t", str(LOAD_SECONDS), "-b", LOAD_RATE, "--json"]
    loading = client.popen(*load, stdout=-1)
    ping = f"echo $$ > /run/ping.pid; exec ping -D -n -i {PING_INTERVAL} -w 60 {SERVER} > /run/pings"
    pinging = client.popen("sh", "-c", ping)
    wait_for(lambda: "icmp_seq=3 " in client.read("/run/pings"), "the first answers")
    seen = Traffic()
    yield seen
    result = json.loads(loading.communicate(timeout=30)[0])
    client.run("kill", "-INT", client.read("/run/ping.pid").strip())
    pinging.wait(10)
    pings = client.read("/run/pings")
    seen.lines = talking.communicate("\n", timeout=30)[0].strip()
    assert talking.returncode == 0, seen.lines
    assert loading.returncode == 0, result
    for process in (serving, listening):
        process.wait(10)
    seen.megabits = result["end"]["sum_received"]["bits_per_second"] / 1e6
    seen.retransmits = result["end"]["sum_sent"]["retransmits"]
    times = [float(text) for text in re.findall(r"^\[([\d.]+)\] \d+ bytes", pings, re.MULTILINE)]
    seen.silence = max(later - earlier for earlier, later in pairwise(times))
    found = re.search(r"(\d+) packets transmitted, (\d+) received", pings)
    assert found is not None
    seen.sent, seen.lost = int(found[1]), int(found[1]) - int(found[2])


@pytest.mark.parametrize("role", ["server", "client"])
@pytest.mark.parametrize("how", [restart, crash, hang])
def test_no_connection_is_lost(pair: Pair, how: Callable[[Machine], None], role: str) -> None:
    """What is lost of other packets is printed."""
    machine = pair.server if role == "server" else pair.client
    before, known, went_on, pid = kernel_state(pair), handshakes(pair), goings_on(machine), machine.pid
    with traffic(pair) as seen:
        how(machine)
        wait_for(lambda: goings_on(machine) > went_on, "the next process to go on")
    print(f"{how.__name__} of the {role}: {seen}")
    assert machine.pid not in {"0", pid}
    assert handshakes(pair) == known
    assert kernel_state(pair) == before
    if how is hang:
        assert "Watchdog timeout" in machine.journal_tail()
    # The watchdog alone takes one to two seconds of it. On an idle machine the others take under one.
    assert seen.silence < (6 if how is hang else 3)
    assert seen.lost < seen.silence / PING_INTERVAL + 10


def test_a_stop_says_goodbye_and_leaves_nothing(pair: Pair) -> None:
    said = pair.server.container.journal("dtun-server").count("it said goodbye")
    pair.client.systemctl("stop")
    wait_for(
        lambda: pair.server.container.journal("dtun-server").count("it said goodbye") > said, "the goodbye"
    )
    pair.server.systemctl("stop")
    for machine in (pair.client, pair.server):
        assert not any(machine.left().values()), machine.left()
        assert machine.container.run("ls", "/run/dtun") == ""
        # Nor does systemd keep anything of it.
        assert machine.container.show(machine.unit, "NFileDescriptorStore") == "0"
