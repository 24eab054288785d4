"""What runs through the tunnel of a pair while something happens to it, and what becomes of that."""

import json
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from tests.systemd.container import wait_for
from tests.systemd.pair import Pair

STEADY_TCP = Path(__file__).parents[1] / "netns" / "steady_tcp.py"
SERVER = "10.86.0.1"
PING_INTERVAL = 0.02
LOAD_SECONDS = 3
# Enough to find many packets on their way at any moment; and the rest of the machine has something to do as well.
LOAD_RATE = "200M"


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
    for container in (server, client):
        container.write("/opt/steady_tcp.py", STEADY_TCP.read_text())
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
    client.write("/run/pings", "")
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
    answers = re.findall(r"^\[([\d.]+)\] \d+ bytes .* icmp_seq=(\d+) ", pings, re.MULTILINE)
    seen.silence = max(later - earlier for earlier, later in pairwise(float(time) for time, _ in answers))
    # Of those after the last answer nobody knows.
    seen.sent = max(int(number) for _, number in answers)
    seen.lost = seen.sent - len({number for _, number in answers})
