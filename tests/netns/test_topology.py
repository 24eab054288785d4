"""The harness itself: what it makes is gone after the test, also when the maker was killed."""

import asyncio
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from topology import NAMESPACES, Topology, sweep, wait_for

MAKER = """
import os, sys, time
sys.path.insert(0, sys.argv[1])
from topology import Topology
host = Topology().host("orphan")
sleeper = host.popen("sleep", "600")
print(host.namespace, sleeper.pid, flush=True)
time.sleep(600)
"""


def test_hosts_joined_by_a_cable_reach_each_other(net: Topology) -> None:
    one, two = net.host("one"), net.host("two")
    net.cable(one, "eth0", two, "eth0", "192.0.2.1/24", "192.0.2.2/24", "2001:db8::1/64", "2001:db8::2/64")
    one.run("ping", "-c1", "-W5", "192.0.2.2")
    two.run("ping", "-c1", "-W5", "2001:db8::1")


def test_a_router_forwards(net: Topology) -> None:
    left, router, right = net.host("left"), net.host("router", forwards=True), net.host("right")
    net.cable(left, "eth0", router, "eth0", "192.0.2.2/24", "192.0.2.1/24")
    net.cable(right, "eth0", router, "eth1", "198.51.100.2/24", "198.51.100.1/24")
    left.ip("route add default via 192.0.2.1")
    right.ip("route add default via 198.51.100.1")
    left.run("ping", "-c1", "-W5", "198.51.100.2")


def test_a_failing_command_fails_the_test_with_its_output(net: Topology) -> None:
    with pytest.raises(AssertionError, match='Device "eth9" does not exist'):
        net.host("one").ip("link show eth9")


def test_a_story_is_played_on_its_host_and_its_errors_are_the_tests(net: Topology) -> None:
    host = net.host("one")
    host.ip("link add cable type veth peer name elbac")

    async def devices() -> set[str]:
        await asyncio.sleep(0)
        return {name for _, name in socket.if_nameindex()}

    async def failing() -> None:
        raise LookupError("told")

    assert host.play(devices) == {"lo", "cable", "elbac"}
    with pytest.raises(LookupError, match="told"):
        host.play(failing)


def test_nothing_is_left_after_a_test() -> None:
    with Topology() as net:
        host = net.host("one")
        sleeper = host.popen("sleep", "600")
        detached = host.run("sh", "-c", "setsid sleep 600 >/dev/null 2>&1 & echo $!").strip()
        assert (NAMESPACES / host.namespace).exists()
    assert not (NAMESPACES / host.namespace).exists()
    assert sleeper.returncode is not None
    wait_for(lambda: not is_alive(int(detached)), "the end of the detached process")


def test_what_a_killed_run_left_is_swept_and_what_is_in_use_is_not(net: Topology) -> None:
    living = net.host("living")
    maker = subprocess.Popen(
        [sys.executable, "-c", MAKER, str(Path(__file__).parent)], stdout=subprocess.PIPE, text=True
    )
    with maker:
        assert maker.stdout is not None
        namespace, sleeper = maker.stdout.readline().split()
        wait_for(lambda: sleeper in processes(namespace), "the process to enter its namespace")
        maker.kill()
    assert (NAMESPACES / namespace).exists()
    sweep()
    assert not (NAMESPACES / namespace).exists()
    assert (NAMESPACES / living.namespace).exists()
    wait_for(lambda: not is_alive(int(sleeper)), "the end of the orphan")


def test_waiting_in_vain_says_for_what() -> None:
    log: list[str] = []
    with pytest.raises(AssertionError, match="in vain for rain; last seen: None\nwhat was logged until then"):
        wait_for(lambda: log.append("what was logged until then"), "rain", timeout=0.05, log=lambda: log[-1])


def processes(namespace: str) -> list[str]:
    inside = subprocess.run(["ip", "netns", "pids", namespace], capture_output=True, text=True, check=True)
    return inside.stdout.split()


def is_alive(pid: int) -> bool:
    """Whether the process runs; a zombie does not."""
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False


def test_no_two_hosts_share_a_namespace(net: Topology) -> None:
    hosts = [net.host("same") for _ in range(3)]
    assert len({host.namespace for host in hosts}) == 3
    assert all(f"dtun-{os.getpid()}-" in host.namespace for host in hosts)
