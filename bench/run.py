"""`make bench`: dtun and other tunnels between two network namespaces on this machine, in one table.

Rounds are interleaved, so that other load on the machine affects all peers alike: round 1 of every peer, then round 2,
and so on.
"""

# Talks to a person:
# ruff: noqa: T201

import argparse
import json
import os
import platform
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from bench.measure import Plan, Running, measure
from bench.peers import PEERS, Peer, compile_c, output
from bench.table import ratio_table, results_table
from demo.lab import DemoError, Lab

QUICK = Plan(udp_trial=0.25, udp_steps=4, idle_pings=100)
SECONDS = 2
ROUNDS = 3
# Load average; above this another program is running.
QUIET_LOAD = 0.3


class Results:
    """What was measured so far, and the failures."""

    def __init__(self) -> None:
        self.values: dict[str, dict[str, list[float]]] = {}
        self.skipped: dict[str, str] = {}
        self.failures: list[str] = []

    def add(self, peer: Peer, measured: dict[str, float]) -> None:
        series = self.values.setdefault(peer.name, {})
        for key, value in measured.items():
            series.setdefault(key, []).append(value)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    if reason := cannot_run():
        print(f"bench: {reason}", file=sys.stderr)
        return 2
    plan = replace(QUICK if options.quick else Plan(), tcp=options.seconds)
    results = Results()
    peers = choose(options.only, results)
    if not peers:
        print("bench: nothing is left to measure", file=sys.stderr)
        return 1
    machine = describe_machine(peers)
    print("\n".join(f"{what + ':':14} {value}" for what, value in machine.items()))
    if os.getloadavg()[0] > QUIET_LOAD:
        print(f"\nTHIS MACHINE IS BUSY (load {os.getloadavg()[0]:.2f}): do not trust what follows.")
    try:
        with tempfile.TemporaryDirectory(prefix=f"dtun-bench-{os.getpid()}-") as directory:
            run_rounds(peers, 1 if options.quick else options.rounds, plan, Path(directory), results)
    except DemoError as error:
        results.failures.append(str(error))
    except KeyboardInterrupt:
        # Between two labs; inside one, the lab handles it.
        return 128 + signal.SIGINT
    finally:
        # Also after Ctrl-C.
        show(results)
        if options.json:
            write_json(options.json, machine, plan, results)
    return 1 if results.failures else 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    names = [peer.name for peer in PEERS]
    parser.add_argument(
        "--rounds", type=int, default=ROUNDS, metavar="N", help=f"how often each peer is measured ({ROUNDS})"
    )
    parser.add_argument(
        "--seconds", type=int, default=SECONDS, metavar="S", help=f"of each TCP measurement ({SECONDS})"
    )
    parser.add_argument("--only", metavar="PEER,...", help=f"some of: {', '.join(names)}")
    parser.add_argument("--quick", action="store_true", help="one short round, to see that all works")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every value there as well")
    options = parser.parse_args(arguments)
    options.only = options.only.split(",") if options.only else names
    if unknown := set(options.only) - set(names):
        parser.error(f"no such peer: {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    if options.rounds < 1:
        parser.error("--rounds has to be at least 1")
    if not 1 <= options.seconds <= 30:
        parser.error("--seconds has to be from 1 to 30")
    return options


def cannot_run() -> str | None:
    """What is in the way of any measurement; None if nothing."""
    if platform.system() != "Linux":
        return "needs Linux: its network namespaces and TUN devices"
    if os.geteuid() != 0:
        return "needs root, to make network namespaces; run: sudo make bench"
    if not Path("/dev/net/tun").exists():
        return "needs /dev/net/tun"
    for command in ("ip", "ss", "ping", "iperf3", "gcc"):
        if shutil.which(command) is None:
            return f"needs {command}; `make bench` installs it on Debian"
    return None


def choose(names: Sequence[str], results: Results) -> list[Peer]:
    """The peers of these names that can run here; says loudly which cannot."""
    chosen = []
    for peer in PEERS:
        if peer.name not in names:
            continue
        if missing := peer.missing():
            results.skipped[peer.name] = f"not installed: {' '.join(missing)}"
            print(f"SKIPPED: {peer.name} is not measured, {results.skipped[peer.name]}")
        else:
            chosen.append(peer)
    return chosen


def describe_machine(peers: Sequence[Peer]) -> dict[str, str]:
    cpu = re.search(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text())
    loads = " ".join(f"{load:.2f}" for load in os.getloadavg())
    machine = {
        "date": datetime.now(UTC).isoformat(" ", "minutes"),
        "processor": f"{os.cpu_count()} x {cpu[1] if cpu else platform.machine()}",
        "kernel": f"{platform.system()} {platform.release()}",
        "Python": platform.python_version(),
        "load before": loads,
        "iperf3": version_of(("iperf3", "--version")),
    }
    machine |= {name: metadata.version(name) for name in ("cryptography", "python-mbedtls")}
    for peer in peers:
        if peer.version_command:
            machine[peer.program] = version_of(peer.version_command)
    return machine


def version_of(command: Sequence[str]) -> str:
    """The first thing that looks like a version number in what a command prints."""
    match = re.search(r"\bv?\d+(\.\d+)*\b", output(*command))
    return match[0].removeprefix("v") if match else "unknown"


def run_rounds(peers: Sequence[Peer], rounds: int, plan: Plan, directory: Path, results: Results) -> None:
    """Measure every peer once in each round; a failure is noted, and the others go on."""
    udpload = compile_c("udpload", directory)
    prepared = []
    for peer in peers:
        try:
            peer.prepare(directory)
        except DemoError as error:
            results.failures.append(f"{peer.name}: {error}")
        else:
            prepared.append(peer)
    for number in range(1, rounds + 1):
        for peer in prepared:
            begin = time.monotonic()
            print(f"round {number}/{rounds}  {peer.name:17}", end=" ", flush=True)
            try:
                with Lab() as lab:
                    measured = measure(Running(lab, peer), plan, udpload)
            except DemoError as error:
                told = "\n".join([str(error), *getattr(error, "__notes__", [])])
                results.failures.append(f"{peer.name}, round {number}: {told}")
                print(f"FAILED: {error}")
            else:
                results.add(peer, measured)
                up, down = measured["tcp_up"], measured["tcp_down"]
                print(f"{up:5.2f} up {down:5.2f} down Gbit/s   ({time.monotonic() - begin:.0f} s)")


def show(results: Results) -> None:
    if results.values:
        print("\nMedians; below them the least and the most, where there were several rounds.\n")
        print(results_table(results.values))
    if len(results.values) > 1 and (ratios := ratio_table(results.values, "dtun")):
        print(
            "\ndtun's medians as multiples of the others' (of the CPU, less is better).\n", ratios, sep="\n"
        )
    for name, reason in results.skipped.items():
        print(f"\nSKIPPED: {name}, {reason}")
    for failure in results.failures:
        print(f"\nFAILED: {failure}")


def write_json(path: Path, machine: dict[str, str], plan: Plan, results: Results) -> None:
    everything = {
        "machine": machine,
        "plan": asdict(plan),
        "results": results.values,
        "skipped": results.skipped,
        "failures": results.failures,
    }
    path.write_text(json.dumps(everything, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())
