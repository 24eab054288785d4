"""How long it takes to have 10,000 routes in the kernel, and out again: dtun, `ip -batch`, and one `ip` for each route.

    python -m bench.routes [--routes N]

Needs root. Works in a network namespace of its own, which vanishes with it; the host's routes are not touched.
"""

import argparse
import asyncio
import ctypes
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from ipaddress import IPv4Network, ip_address
from pathlib import Path

from dtun.network.state import NetworkState, Route
from dtun.platform import kernel

CLONE_NEWNET = 0x40000000
GATEWAY = ip_address("192.0.2.1")
ROUNDS = 3
SINGLE_COMMANDS = 500

Seconds = tuple[float, float]
"""In, and out again."""


def main() -> None:
    parser = argparse.ArgumentParser(description="routes into the kernel and out of it, in three ways")
    parser.add_argument("--routes", type=int, default=10_000, metavar="N", help="how many (default: 10000)")
    count = parser.parse_args().routes
    enter_namespace()
    networks = [IPv4Network((0x0B000000 + number * 256, 24)) for number in range(count)]
    print(f"{count:,} routes via a gateway in the main table, best of {ROUNDS}:\n")  # noqa: T201
    print(f"{'':34}{'in':>10}{'out':>10}")  # noqa: T201
    show("dtun", best(lambda: asyncio.run(by_dtun(networks))))
    show("ip -batch", best(lambda: by_batch(networks)))
    few = networks[:SINGLE_COMMANDS]
    coming, going = by_single_commands(few)
    scale = len(networks) / len(few)
    show(f"one ip each ({len(few)} run, times {scale:g})", (coming * scale, going * scale))


def enter_namespace() -> None:
    """Leave the host's network for an empty one with one device, which lasts as long as this process."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET) != 0:
        sys.exit(f"cannot make a network namespace: {os.strerror(ctypes.get_errno())}; run this as root")
    ip("link add eth0 type veth peer name eth1")
    ip("address add 192.0.2.2/24 dev eth0")
    for device in ("lo", "eth0", "eth1"):
        ip(f"link set {device} up")


async def by_dtun(networks: list[IPv4Network]) -> Seconds:
    """All of it: the difference, the journal, netlink."""
    wanted = NetworkState(routes=frozenset(Route(network, "eth0", GATEWAY) for network in networks))
    with tempfile.TemporaryDirectory() as directory:
        host = kernel("bench", Path(directory))
        await host.open()
        try:
            started = time.perf_counter()
            await host.apply(wanted)
            half = time.perf_counter()
            installed(len(networks))
            resumed = time.perf_counter()
            await host.apply(NetworkState())
            done = time.perf_counter()
        finally:
            await host.close()
    installed(0)
    return half - started, done - resumed


def by_batch(networks: list[IPv4Network]) -> Seconds:
    """One process for all of them."""

    def run(verb: str) -> float:
        lines = "".join(f"route {verb} {words(network)}\n" for network in networks)
        with tempfile.NamedTemporaryFile("w") as file:
            file.write(lines)
            file.flush()
            started = time.perf_counter()
            ip(f"-batch {file.name}")
            return time.perf_counter() - started

    coming = run("add")
    installed(len(networks))
    return coming, run("del")


def by_single_commands(networks: list[IPv4Network]) -> Seconds:
    """A process for each, as a shell script does it."""

    def run(verb: str) -> float:
        started = time.perf_counter()
        for network in networks:
            ip(f"route {verb} {words(network)}")
        return time.perf_counter() - started

    return run("add"), run("del")


def best(measure: Callable[[], Seconds]) -> Seconds:
    rounds = [measure() for _ in range(ROUNDS)]
    return min(coming for coming, _ in rounds), min(going for _, going in rounds)


def show(name: str, seconds: Seconds) -> None:
    print(f"{name:34}{seconds[0]:8.3f} s{seconds[1]:8.3f} s")  # noqa: T201


def words(network: IPv4Network) -> str:
    return f"{network} via {GATEWAY} dev eth0 proto 217 onlink"


def installed(count: int) -> None:
    """A benchmark of work that was not done would be a fast one."""
    there = ip("route show proto 217").count("\n")
    if there != count:
        sys.exit(f"{there} routes are in the kernel, and not {count}")


def ip(arguments: str) -> str:
    command = ["ip", *arguments.split()]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout  # noqa: S603


if __name__ == "__main__":
    main()
