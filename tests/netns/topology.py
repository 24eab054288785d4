"""Hosts made of network namespaces, joined by veth cables, for tests that need a real kernel.

    net = Topology()                     # its namespaces are called dtun-PID-N-NAME
    a, b = net.host("a"), net.host("b")
    net.cable(a, "eth0", b, "eth0", "192.0.2.1/24", "192.0.2.2/24")
    b.run("ping", "-c1", "192.0.2.1")
    net.close()

The creator's pid is part of each name, so that parallel test runs do not meet, and what a killed run left
behind can be told from what is in use (`sweep`).
"""

import asyncio
import ctypes
import gc
import itertools
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

NAMESPACES = Path("/run/netns")
REPOSITORY = Path(__file__).resolve().parents[2]
COMMAND_TIMEOUT = 30.0
STOP_TIMEOUT = 5.0

CLONE_NEWNET = 0x40000000

_libc = ctypes.CDLL(None, use_errno=True)
_NAME = re.compile(r"dtun-(\d+)-\d+-")
_serial = itertools.count()
T = TypeVar("T")


def missing() -> str | None:
    """What this machine lacks for namespaces with TUN devices; None if nothing."""
    if os.geteuid() != 0:
        return "not root"
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        return "no /dev/net/tun"
    try:
        probe = subprocess.run(
            ["unshare", "--net", "ip", "link"], capture_output=True, check=False, timeout=10
        )
    except FileNotFoundError as error:
        return f"{error.filename} is not installed"
    return None if probe.returncode == 0 else "may not make network namespaces"


def sweep() -> None:
    """Remove what killed test runs left: namespaces whose creator is dead, with the processes in them."""
    for path in NAMESPACES.glob("dtun-*"):
        creator = _NAME.match(path.name)
        if creator and not Path(f"/proc/{creator[1]}").exists():
            _remove(path.name)


def wait_for(condition: Callable[[], T], what: str, timeout: float = 10.0, log: Callable[[], str] = str) -> T:
    """Ask until the answer is true, and return it; fail after `timeout` seconds, with the last answer and the log."""
    deadline = time.monotonic() + timeout
    while True:
        answer = condition()
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout:g} s in vain for {what}; last seen: {answer!r}\n{log()}")
        time.sleep(0.02)


@dataclass
class Host:
    """A network namespace with its loopback up."""

    name: str
    namespace: str
    processes: list[subprocess.Popen[str]] = field(default_factory=list)
    sockets: list[socket.socket] = field(default_factory=list)

    def run(
        self, *command: str, text: str | None = None, check: bool = True, timeout: float = COMMAND_TIMEOUT
    ) -> str:
        """Run a command on this host, fed with `text`; its output. A failure fails the test, with `check`."""
        done = subprocess.run(
            self.inside(command),
            input=text,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
            cwd=REPOSITORY,
        )
        if check and done.returncode != 0:
            output = done.stdout + done.stderr
            raise AssertionError(
                f"{' '.join(command)} on {self.name} ended with {done.returncode}:\n{output}"
            )
        return done.stdout

    def ip(self, arguments: str) -> str:
        """`ip ARGUMENTS`, separated by spaces."""
        return self.run("ip", *arguments.split())

    def popen(self, *command: str, **options: Any) -> subprocess.Popen[str]:
        """Start a command on this host. It ends with the test at the latest."""
        process = subprocess.Popen(self.inside(command), text=True, cwd=REPOSITORY, **options)
        self.processes.append(process)
        return process

    def python(self, *arguments: str, before: Sequence[str] = (), **options: Any) -> subprocess.Popen[str]:
        """Start this Python, warnings as errors, with this tree's dtun; `before` is a command that starts it."""
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
        return self.popen(*before, sys.executable, "-W", "error", *arguments, env=environment, **options)

    def play(self, story: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run an asynchronous function on this host: in a thread, the one thing that can change namespaces."""
        results: list[T] = []
        errors: list[BaseException] = []

        def enter_and_play() -> None:
            try:
                _enter(NAMESPACES / self.namespace)
                results.append(asyncio.run(story()))
            except BaseException as error:  # noqa: BLE001 - raised again in the test's own thread
                errors.append(error)

        thread = threading.Thread(target=enter_and_play)
        thread.start()
        thread.join()
        if errors:
            raise errors[0]
        # What was not closed is found here, in the test that left it, not in the next.
        gc.collect()
        return results[0]

    def open_socket(self, family: int, kind: int, protocol: int = 0) -> socket.socket:
        """A socket of this host, to be used from anywhere. It is closed with the test at the latest."""
        made: list[socket.socket] = []

        def enter_and_make() -> None:
            _enter(NAMESPACES / self.namespace)
            made.append(socket.socket(family, kind, protocol))

        thread = threading.Thread(target=enter_and_make)
        thread.start()
        thread.join()
        self.sockets += made
        return made[0]

    def inside(self, command: Sequence[str]) -> list[str]:
        """The command line that runs `command` here. `ip` executes it in place: the pid is its own."""
        return ["ip", "netns", "exec", self.namespace, *command]

    def stop(self) -> None:
        """End what still runs."""
        for process in self.processes:
            if process.poll() is None:
                process.terminate()
        for process in self.processes:
            try:
                process.wait(STOP_TIMEOUT)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    stream.close()
        self.processes.clear()
        for sock in self.sockets:
            sock.close()
        self.sockets.clear()


class Topology:
    """The hosts of one test."""

    def __init__(self) -> None:
        self.hosts: list[Host] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def host(self, name: str, *, forwards: bool = False) -> Host:
        """A new host; with `forwards` it is a router for IPv4 and IPv6."""
        host = Host(name, f"dtun-{os.getpid()}-{next(_serial)}-{name}")
        subprocess.run(["ip", "netns", "add", host.namespace], check=True, timeout=COMMAND_TIMEOUT)
        self.hosts.append(host)
        host.ip("link set lo up")
        if forwards:
            host.run("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
        return host

    def cable(self, one: Host, one_device: str, other: Host, other_device: str, *addresses: str) -> None:
        """Join two devices by a veth pair that is up; `addresses` (with prefix) alternate between ends."""
        one.ip(f"link add {one_device} type veth peer name {other_device} netns {other.namespace}")
        ends = ((one, one_device), (other, other_device))
        for (host, device), address in zip(itertools.cycle(ends), addresses, strict=False):
            nodad = " nodad" if ":" in address else ""
            host.ip(f"address add {address} dev {device}{nodad}")
        for host, device in ends:
            host.ip(f"link set {device} up")
        for host, device in ends:
            # The kernel notices a plugged cable in its own time.
            wait_for(partial(_is_up, host, device), f"{device} of {host.name} to be up")

    def close(self) -> None:
        """End all processes, then remove all namespaces: in this order, so that everybody can say goodbye."""
        for host in reversed(self.hosts):
            host.stop()
        for host in self.hosts:
            _remove(host.namespace)
        self.hosts.clear()


def _is_up(host: Host, device: str) -> bool:
    return "state UP" in host.ip(f"link show dev {device}")


def _enter(path: Path) -> None:
    """Move the calling thread into a network namespace."""
    with path.open() as namespace:
        if _libc.setns(namespace.fileno(), CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), f"cannot enter {path}")


def _remove(namespace: str) -> None:
    inside = subprocess.run(
        ["ip", "netns", "pids", namespace],
        capture_output=True,
        text=True,
        check=False,
        timeout=COMMAND_TIMEOUT,
    )
    for pid in inside.stdout.split():
        try:
            os.kill(int(pid), 9)
        except ProcessLookupError:
            continue
    subprocess.run(
        ["ip", "netns", "delete", namespace], capture_output=True, check=False, timeout=COMMAND_TIMEOUT
    )
