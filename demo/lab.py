"""Hosts made of network namespaces, cables between them, processes inside them; all gone at the end."""

# Runs fixed commands as root:
# ruff: noqa: S603

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, NoReturn, Self

PREFIX = "dtun-demo"
ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class DemoError(Exception):
    """The demo cannot go on, or something that it shows is not so."""


class Process:
    """A program that runs on a host until it is stopped; its output goes to a file."""

    def __init__(self, what: str, command: Sequence[str], log: Path) -> None:
        self.what = what
        self._log = log
        with log.open("wb") as file:
            # In a session of its own: Ctrl-C is for the demo alone, which then ends things in order.
            self._popen = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def output(self) -> str:
        return self._log.read_text(errors="replace")

    def ended(self) -> int | None:
        """The exit status, None while it runs; negative if a signal ended it."""
        return self._popen.poll()

    def stop(self, seconds: float = 10) -> int:
        """Ask it to end, insist after `seconds`; the exit status."""
        if self._popen.poll() is None:
            self._popen.terminate()
        try:
            return self._popen.wait(seconds)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            return self._popen.wait()


class Lab:
    """Everything that the demo makes. Leaving the `with` block removes it, however that comes about."""

    def __init__(self) -> None:
        self._hosts: list[str] = []
        self._processes: list[Process] = []
        self.directory = Path()

    def __enter__(self) -> Self:
        for number in ENDING_SIGNALS:
            signal.signal(number, _end)
        _remove_leftovers()
        self.directory = Path(tempfile.mkdtemp(prefix=f"{PREFIX}-{os.getpid()}-"))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # A second Ctrl-C would leave half of it behind.
        for number in ENDING_SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        for process in reversed(self._processes):
            process.stop()
        if isinstance(error, DemoError):
            for process in self._processes:
                error.add_note(f"--- {process.what} said:\n{process.output().rstrip() or '(nothing)'}")
        for host in self._hosts:
            _remove_namespace(_namespace(host))
        shutil.rmtree(self.directory, ignore_errors=True)

    def host(self, name: str, *, forwards: bool = False) -> None:
        """A host with nothing but loopback; a router if it forwards."""
        self._hosts.append(name)
        _run(["ip", "netns", "add", _namespace(name)])
        self.run(name, "ip", "link", "set", "lo", "up")
        if forwards:
            self.run(name, "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")

    def cable(self, first: tuple[str, str, str], second: tuple[str, str, str]) -> None:
        """Join two hosts. Each end is a host, its interface's name, and the address with prefix length."""
        (host, device, _), (other_host, other_device, _) = first, second
        far_end = ["peer", "name", other_device, "netns", _namespace(other_host)]
        self.run(host, "ip", "link", "add", device, "type", "veth", *far_end)
        for at, interface, address in (first, second):
            self.run(at, "ip", "address", "add", address, "dev", interface)
            self.run(at, "ip", "link", "set", interface, "up")

    def run(self, host: str, *command: str, stdin: str = "") -> str:
        """Run a command to its end on a host; what it printed.

        Raises:
            DemoError: it failed, or took more than a minute.
        """
        return _run(["ip", "netns", "exec", _namespace(host), *command], stdin=stdin)

    def run_json(self, host: str, *command: str) -> Any:
        return json.loads(self.run(host, *command) or "null")

    def start(self, host: str, what: str, *command: str) -> Process:
        """Run a program on a host until the lab is left."""
        log = self.directory / f"{what.replace(' ', '-')}.log"
        process = Process(what, ["ip", "netns", "exec", _namespace(host), *command], log)
        self._processes.append(process)
        return process

    def wait(self, what: str, condition: Callable[[], bool], seconds: float = 20) -> float:
        """Wait for a condition; how long that took, in seconds.

        Raises:
            DemoError: it did not come true, or a process that the lab started has ended meanwhile.
        """
        begin = time.monotonic()
        while not condition():
            for process in self._processes:
                if process.ended() is not None:
                    raise DemoError(f"{process.what} ended with status {process.ended()}")
            if time.monotonic() - begin > seconds:
                raise DemoError(f"waited {seconds:.0f} s in vain until {what}")
            time.sleep(0.02)
        return time.monotonic() - begin


def _end(number: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)


def _namespace(host: str) -> str:
    return f"{PREFIX}-{os.getpid()}-{host}"


def _run(command: Sequence[str], *, stdin: str = "") -> str:
    try:
        result = subprocess.run(
            command,
            check=False,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
            start_new_session=True,
        )
    except subprocess.TimeoutExpired as error:
        raise DemoError(f"{' '.join(command)}: not done after a minute") from error
    if result.returncode != 0:
        raise DemoError(f"{' '.join(command)}: {(result.stderr or result.stdout).strip()}")
    return result.stdout


def _remove_namespace(name: str) -> None:
    """Remove a namespace of this demo's making, and end whatever still runs in it."""
    with contextlib.suppress(DemoError):
        for pid in _run(["ip", "netns", "pids", name]).split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        _run(["ip", "netns", "delete", name])


def _remove_leftovers() -> None:
    """Remove what a demo that was killed with SIGKILL left behind: the names tell its process id."""

    def is_left_over(name: str) -> bool:
        match = re.match(rf"{PREFIX}-(\d+)-", name)
        return match is not None and not Path("/proc", match[1]).exists()

    for line in _run(["ip", "netns", "list"]).splitlines():
        name = line.split()[0]
        if is_left_over(name):
            _remove_namespace(name)
    for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}-*"):
        if is_left_over(path.name) and path.lstat().st_uid == os.geteuid():
            shutil.rmtree(path, ignore_errors=True)
