"""The measurements of one tunnel in one round, on a lab's two hosts."""

import json
import math
import re
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from bench.peers import CABLE, CLIENT, ENDS, ROOT, SERVER, End, Peer
from bench.processes import cpu_seconds, peak_memory, processes_in
from bench.table import percentile
from demo.lab import DemoError, Lab, Process

START_TIMEOUT = 30
UDP_PORT = 5202
# A tunnel carries a rate if less than this share of the datagrams is lost.
LOSS_LIMIT = 0.01
# The search ends when the lowest rate that is too high is at most this factor above the highest that is not.
PRECISION = 1.03
# Seconds without a new datagram, after which all have arrived or are lost.
DRAIN = 0.1

# Sends at a rate (0: as fast as possible) for a while; returns datagrams per second sent and received.
Trial = Callable[[float], tuple[float, float]]


@dataclass(frozen=True)
class Plan:
    """How long to measure. Times in seconds; iperf3 takes whole seconds only."""

    tcp: int = 2
    udp_trial: float = 0.5
    udp_steps: int = 6
    idle_pings: int = 200
    logins: int = 20
    # With a shorter interval ping does not sleep but spins, and takes a processor from the tunnel.
    interval: float = 0.02


class Running:
    """A tunnel that is up, in its own lab, with its processes at each end."""

    def __init__(self, lab: Lab, peer: Peer) -> None:
        """Start both ends and wait for the first ping through the tunnel.

        Raises:
            DemoError: an end did not start, or no ping was answered.
        """
        self.lab = lab
        self.peer = peer
        self.start: dict[str, float] = {}
        self._join_hosts()
        watcher = self._watch()
        others = {end: self._pids(end) for end in ENDS}
        peer.start_server(lab)
        begin = time.monotonic()
        peer.start(lab, CLIENT)
        what = f"a ping is answered through {peer.name}"
        lab.wait(what, lambda: "answer" in watcher.output(), START_TIMEOUT + 5)
        seen = json.loads(watcher.output().splitlines()[-1])
        if seen["answer"] is None:
            raise DemoError(f"no ping was answered through {peer.name}")
        # The processes of the tunnel are those that were not there before.
        self.pids = {end: sorted(self._pids(end) - others[end]) for end in ENDS}
        if any(self.pids.values()):
            self.start["first_ping"] = (seen["answer"] - begin) * 1000
        if any(self.pids.values()) and seen["datagram"] is not None:
            self.start["first_ping_sent"] = (seen["answer"] - seen["datagram"]) * 1000

    def cpu(self) -> float:
        """Seconds of processor time of both ends so far."""
        return cpu_seconds(pid for pids in self.pids.values() for pid in pids)

    def _join_hosts(self) -> None:
        for end in ENDS:
            self.lab.host(end.name)
        client, server = ((end.name, CABLE, f"{end.outside}/24") for end in (CLIENT, SERVER))
        self.lab.cable(client, server)

    def _watch(self) -> Process:
        command = (sys.executable, str(ROOT / "bench" / "first_ping.py"))
        arguments = (CABLE, self.peer.target, str(START_TIMEOUT))
        watcher = self.lab.start(CLIENT.name, "the watcher for the first ping", *command, *arguments)
        self.lab.wait("the watcher for the first ping is ready", lambda: "ready" in watcher.output())
        return watcher

    def _pids(self, end: End) -> set[int]:
        return processes_in(self.lab.run(end.name, "readlink", "/proc/self/ns/net").strip())


def measure(running: Running, plan: Plan, udpload: Path) -> dict[str, float]:
    """Measure a tunnel that is up; returns values by the keys of `bench.table.METRICS`, and a few more.

    Raises:
        DemoError: a tool failed, or nothing came through.
    """
    lab, target = running.lab, running.peer.target
    values = dict(running.start)
    idle = ping(lab, target, plan.idle_pings, plan.interval)
    values |= {"idle_p50": percentile(idle, 50), "idle_p99": percentile(idle, 99)}

    values |= _measure_logins(running, plan, "idle")
    start_iperf(lab)
    values |= _measure_tcp(running, plan)
    with ThreadPoolExecutor() as pool:
        stream = pool.submit(iperf, running, plan.tcp)
        values |= _measure_logins(running, plan, "loaded")
        stream.result()
    values |= _measure_udp(running, plan, udpload)
    for end, pids in running.pids.items():
        if pids:
            values[f"memory_{end.name}"] = peak_memory(pids)
    return values


def _measure_tcp(running: Running, plan: Plan) -> dict[str, float]:
    """One stream each way, with pings beside it, and four streams to the server."""
    values: dict[str, float] = {}
    loaded: list[float] = []
    carried = 0.0
    used = 0.0
    for key, options in (("tcp_up", []), ("tcp_down", ["--reverse"])):
        with ThreadPoolExecutor() as pool:
            count = int(plan.tcp / plan.interval)
            pings = pool.submit(ping, running.lab, running.peer.target, count, plan.interval)
            before = running.cpu()
            result = iperf(running, plan.tcp, *options)
            used += running.cpu() - before
            loaded += pings.result()
        carried += result["sum_received"]["bytes"]
        values[key] = result["sum_received"]["bits_per_second"] / 1e9
        values[f"{key}_retransmits"] = result["sum_sent"]["retransmits"]
    values |= {"loaded_p50": percentile(loaded, 50), "loaded_p99": percentile(loaded, 99)}
    if used:
        values["cpu"] = used / (carried / 1e9)
    four = iperf(running, plan.tcp, "--parallel", "4")
    values["tcp_four"] = four["sum_received"]["bits_per_second"] / 1e9
    return values


def _measure_logins(running: Running, plan: Plan, when: str) -> dict[str, float]:
    """How long it takes another client to log in, in ms, where the peer has a way to find out."""
    command = running.peer.newcomer(plan.logins)
    if not command:
        return {}
    times: list[float] = json.loads(running.lab.run(CLIENT.name, *command))
    return {f"login_{when}": percentile(times, 50)}


def _measure_udp(running: Running, plan: Plan, udpload: Path) -> dict[str, float]:
    """The most datagrams per second from client to server, in thousands, by their size."""
    lab = running.lab
    receiver = lab.start(SERVER.name, "udpload receiver", str(udpload), "receive", str(UDP_PORT))
    lab.wait("udpload listens", lambda: lab.run(SERVER.name, "ss", "-Haun", f"sport = :{UDP_PORT}") != "")

    def trial(size: int, rate: float) -> tuple[float, float]:
        before = _total(receiver)
        to = (running.peer.target, str(UDP_PORT), str(size))
        sent, seconds = lab.run(
            CLIENT.name, str(udpload), "send", *to, f"{rate:.0f}", f"{plan.udp_trial:g}"
        ).split()
        return int(sent) / float(seconds), (_final_total(receiver) - before) / float(seconds)

    return {f"udp_{size}": highest_rate(partial(trial, size), plan.udp_steps) / 1000 for size in (1200, 64)}


def _total(receiver: Process) -> int:
    lines = receiver.output().splitlines()
    return int(lines[-1]) if lines else 0


def _final_total(receiver: Process) -> int:
    """What has arrived once nothing new does."""
    total = _total(receiver)
    while True:
        time.sleep(DRAIN)
        previous, total = total, _total(receiver)
        if total == previous:
            return total


def highest_rate(trial: Trial, steps: int) -> float:
    """The highest rate of arrival that was seen with less than `LOSS_LIMIT` lost, in datagrams per second.

    An overload comes first: what gets through then is a good guess, what is offered is too much. Between these
    the rate is searched in at most `steps` trials. 0 if there was loss in every one.
    """
    too_much, guess = trial(0)
    if guess > too_much * (1 - LOSS_LIMIT):
        return guess
    best, low = 0.0, 0.0
    rate = guess
    for _ in range(steps):
        sent, arrived = trial(rate)
        if arrived > sent * (1 - LOSS_LIMIT):
            low = rate
            best = max(best, arrived)
        else:
            too_much = rate
        if too_much < low * PRECISION:
            break
        # Rates of which the larger may be many times the smaller: halve the ratio, not the difference.
        rate = math.sqrt(low * too_much) if low else too_much / 2
    return best


def ping(lab: Lab, target: str, count: int, interval: float) -> list[float]:
    """Round-trip times of `count` pings from the client, one each `interval` seconds, in ms; lost ones are left out.

    Raises:
        DemoError: none was answered.
    """
    options = ("-n", "-c", str(count), "-i", f"{interval:g}", "-W", "1")
    printed = lab.run(CLIENT.name, "ping", *options, target)
    times = [float(text) for text in re.findall(r"time=([\d.]+) ms", printed)]
    if not times:
        raise DemoError(f"unexpected output of ping:\n{printed}")
    return times


def start_iperf(lab: Lab) -> None:
    """Start the server that `iperf` talks to."""
    lab.start(SERVER.name, "iperf3 server", "iperf3", "--server")
    lab.wait("iperf3 listens", lambda: lab.run(SERVER.name, "ss", "-Hltn", "sport = :5201") != "")


def iperf(running: Running, seconds: int, *options: str) -> dict[str, Any]:
    """Run iperf3 from the client against the server; the sums at the end of its report.

    Raises:
        DemoError: it failed.
    """
    command = ("iperf3", "--client", running.peer.target, "--time", str(seconds), "--json", *options)
    end: dict[str, Any] = json.loads(running.lab.run(CLIENT.name, *command))["end"]
    return end
