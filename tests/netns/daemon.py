"""dtun itself on the hosts of a topology: generated YAML and keys, its log in a file, its status by its own command."""

import base64
import itertools
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from topology import Host, wait_for

from dtun.errors import DtunError
from dtun.service.control import ask

START_TIMEOUT = 20.0

_serial = itertools.count()


def make_key(directory: Path, name: str = "key") -> Path:
    """A new key file, as `dtun genkey -o` makes it."""
    path = directory / name
    path.touch(0o600)
    path.write_text(base64.b64encode(os.urandom(32)).decode() + "\n")
    return path


class Daemon:
    """One `dtun server` or `dtun client` on a host, started now. `section` is that part of the YAML file.

    `command`: what is run instead of `python -m dtun`.
    """

    def __init__(
        self,
        host: Host,
        role: str,
        section: Mapping[str, Any],
        directory: Path,
        *,
        command: Sequence[str] = ("-m", "dtun"),
    ) -> None:
        self._command = command
        self.host = host
        self.role = role
        self.directory = directory / f"{role}-{next(_serial)}"
        self.directory.mkdir()
        self.config = self.directory / "dtun.yaml"
        self.log_path = self.directory / "log"
        self.section = {"runtime_directory": str(self.directory / "run"), **section}
        if role == "server":
            self.section.setdefault("state_directory", str(self.directory / "state"))
        self.process = self.start()

    def start(self, *, wait: bool = True) -> subprocess.Popen[str]:
        """Start it (again) with `section` as it is now."""
        self.config.write_text(yaml.safe_dump({self.role: self.section}))
        with self.log_path.open("a") as log:
            self.process = self.host.python(*self._command, self.role, "-c", str(self.config), stderr=log)
        if wait:
            wait_for(
                lambda: self.ask() or self._died(), f"{self.role} to start", START_TIMEOUT, lambda: self.log
            )
        return self.process

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    def ask(self) -> dict[str, Any] | None:
        """Its status; None if it does not answer."""
        name = "server" if self.role == "server" else self.section.get("tun", "dtun0")
        try:
            return ask(Path(self.section["runtime_directory"]) / f"{name}.sock")
        except DtunError:
            return None

    def tunnel(self, identity: str | None = None) -> dict[str, Any]:
        """The status of one tunnel: of this id, or the only one."""
        status = self.ask()
        assert status is not None, f"{self.role} does not answer:\n{self.log}"
        rows = [row for row in status["tunnels"] if identity in (None, row["id"])]
        assert len(rows) == 1, f"not one tunnel for {identity}: {status}"
        row: dict[str, Any] = rows[0]
        return row

    def wait_connected(self, identity: str | None = None, timeout: float = START_TIMEOUT) -> dict[str, Any]:
        """Wait until the tunnel has a session; its status."""
        wait_for(
            lambda: self.tunnel(identity)["state"] == "connected",
            f"{self.role} to be connected",
            timeout,
            lambda: self.log,
        )
        return self.tunnel(identity)

    def wait_log(self, text: str, timeout: float = START_TIMEOUT) -> None:
        """Wait until the log holds this."""
        wait_for(
            lambda: text in self.log, f"{text!r} in the log of the {self.role}", timeout, lambda: self.log
        )

    def stop(self) -> int:
        """End it as a service manager does; its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(10)

    def kill(self) -> None:
        """End it without any chance to clean up."""
        self.process.kill()
        self.process.wait(10)

    def _died(self) -> bool:
        if self.process.poll() is not None:
            raise AssertionError(f"{self.role} ended with {self.process.returncode}:\n{self.log}")
        return False


def can_ping(host: Host, address: str, *more: str, count: int = 1) -> bool:
    """Whether `address` answers from this host, every one of `count` times; `more` are options of ping(8)."""
    options = ["-c", str(count), "-i", "0.05", "-W", "1", *more]
    done = subprocess.run(
        host.inside(["ping", "-q", *options, address]), capture_output=True, check=False, timeout=20
    )
    return done.returncode == 0 and b" 0% packet loss" in done.stdout


def network_of(host: Host) -> set[str]:
    """Everything that a tunnel could leave behind in this host's kernel, as lines to compare."""
    links = {line.split()[1] for line in host.ip("-o link").splitlines()}
    views = ("-o address", "route show table all", "-6 route show table all", "rule", "-6 rule")
    lines = "\n".join(host.ip(view) for view in views).splitlines()
    # Link-local addresses come when the kernel is done with looking for duplicates.
    return links | {line for line in lines if "fe80:" not in line and "ff00:" not in line}
