r"""A container that boots a real systemd from Debian's root file system, for tests of dtun as a service.

    with Container("server") as server, Container("client") as client:
        cable(server, "eth0", client, "eth0", "192.0.2.1/24", "192.0.2.2/24")
        client.run("ping", "-c1", "192.0.2.1")
        server.write("/etc/systemd/system/x.service", "[Service]\nExecStart=/bin/true\n")
        server.run("systemctl", "start", "x")
        assert "Deactivated" in server.journal("x")

It has namespaces and a cgroup of its own, no way to any network but its cables, and what it writes is in memory.
It dies with `close`, and with the test process at the latest. See boot.sh for how it is set up, rootfs.py for what
is in it. Booting takes about half a second.
"""

import itertools
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from tests.systemd import layer, rootfs

BOOT = Path(__file__).with_name("boot.sh")
BOOT_TIMEOUT = 60.0
COMMAND_TIMEOUT = 30.0

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
NEEDED = ("debootstrap", "ip", "nsenter", "setpriv", "unshare")

_NAME = re.compile(r"dtun-(\d+)-\d+-")
_serial = itertools.count()
T = TypeVar("T")


def missing() -> str | None:
    """What this machine lacks for containers; None if nothing."""
    if os.geteuid() != 0:
        return "not root"
    for name in NEEDED:
        if shutil.which(name) is None:
            return f"{name} is not installed"
    probe = ["unshare", "--mount", "--pid", "--fork", "--net", "--cgroup", "--propagation", "private"]
    mount = "mount -t cgroup2 cgroup2 /mnt && mount -t tmpfs tmpfs /mnt && mknod /mnt/tun c 10 200 && : < /mnt/tun"
    done = subprocess.run(
        [*probe, "sh", "-c", mount], capture_output=True, text=True, check=False, timeout=10
    )
    return None if done.returncode == 0 else f"may not make containers: {done.stderr.strip()}"


def wait_for(condition: Callable[[], T], what: str, timeout: float = 15.0) -> T:
    """Ask until the answer is true, and return it; fail after `timeout` seconds, with the last answer."""
    deadline = time.monotonic() + timeout
    while True:
        answer = condition()
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout:g} s in vain for {what}; last seen: {answer!r}")
        time.sleep(0.05)


class Container:
    """A booted system, on its own until a `cable` joins it to another.

    With `dtun` this tree's package and what it needs are in there as if by pip: `python3 -m dtun`, and `dtun` in
    /usr/local/bin. Without, there is nothing of it: a test installs it in its own way.
    """

    def __init__(self, name: str, *, dtun: bool = False, system: Path | None = None) -> None:
        """Boot. `system`: another root file system than `rootfs.debian()`."""
        self.name = name
        self._cgroup = f"dtun-{os.getpid()}-{next(_serial)}-{name}"
        lower = [*([layer.python_packages()] if dtun else []), system or rootfs.debian()]
        # Whatever happens to the test process, the kernel ends this one, and with its PID 1 all of the container.
        command = ["setpriv", "--pdeathsig", "KILL"]
        command += ["unshare", "--mount", "--pid", "--net", "--uts", "--ipc", "--fork", "--kill-child"]
        command += ["--propagation", "private", "sh", str(BOOT)]
        self._process = subprocess.Popen(
            [*command, ":".join(map(str, lower)), self._cgroup, name],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.processes: list[subprocess.Popen[str]] = []
        try:
            self.leader = wait_for(self._child, f"{name} to have a PID 1")
            wait_for(self._has_booted, f"{name} to boot", BOOT_TIMEOUT)
            self.run("ip", "link", "set", "lo", "up")
            if dtun:
                layer.copy_dtun(self.root)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def root(self) -> Path:
        """Its root directory, seen from here. Beware of links with "/" in front: they lead to this host's files."""
        return Path(f"/proc/{self.leader}/root")

    def complete(
        self, *command: str, text: str | None = None, timeout: float = COMMAND_TIMEOUT
    ) -> subprocess.CompletedProcess[str]:
        """Run a command as root, outside of any service, fed with `text`; how it ended and what it said."""
        return subprocess.run(
            self.inside(command), input=text, capture_output=True, text=True, check=False, timeout=timeout
        )

    def run(
        self, *command: str, text: str | None = None, check: bool = True, timeout: float = COMMAND_TIMEOUT
    ) -> str:
        """The same, and only the output. A failure fails the test, with `check`."""
        done = self.complete(*command, text=text, timeout=timeout)
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
        """Start a command in it. It ends with the container at the latest."""
        process = subprocess.Popen(self.inside(command), text=True, **options)
        self.processes.append(process)
        return process

    def inside(self, command: Sequence[str]) -> list[str]:
        """The command line that runs `command` in it."""
        enter = ["nsenter", "-t", str(self.leader), "-m", "-u", "-i", "-n", "-p", "-C", "-r", "-w", "--"]
        return [*enter, "env", "-i", f"PATH={PATH}", "HOME=/root", "LANG=C.UTF-8", "TERM=dumb", *command]

    def write(self, path: str, text: str, mode: int = 0o644, owner: str = "root:root") -> None:
        """Write a file, and the directories above it."""
        script = 'mkdir -p "$(dirname "$1")" && cat > "$1" && chown "$3" "$1" && chmod "$2" "$1"'
        self.run("sh", "-c", script, "write", path, f"{mode:o}", owner, text=text)

    def read(self, path: str) -> str:
        return self.run("cat", path)

    def journal(self, unit: str | None = None, *options: str) -> str:
        """The messages of the journal since the start: of one unit, or all."""
        selection = ["-u", unit] if unit else []
        return self.run("journalctl", "--no-pager", "-q", "-o", "cat", *selection, *options)

    def show(self, unit: str, name: str) -> str:
        """One property of a unit."""
        return self.run("systemctl", "show", "--value", "-p", name, unit).strip()

    def close(self) -> None:
        """End everything in it. May be called twice."""
        if leader := self._child():
            os.kill(leader, signal.SIGKILL)
        self._process.wait(10)
        if self._process.stdout is not None:
            self._process.stdout.close()
        for process in self.processes:
            process.wait(10)
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    stream.close()
        self.processes.clear()
        _remove_cgroups(self._cgroup)

    def _child(self) -> int | None:
        """The pid, here, of its PID 1."""
        try:
            children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text()
        except OSError:
            children = ""
        return int(children.split()[0]) if children.split() else None

    def _has_booted(self) -> bool:
        if self._process.poll() is not None:
            said = self._process.stdout.read() if self._process.stdout else ""
            raise AssertionError(f"{self.name} did not boot:\n{said}")
        # Before the new root is in place this asks nobody, or the host in vain.
        state = self.run("systemctl", "is-system-running", check=False).strip()
        if state == "degraded":
            raise AssertionError(f"{self.name}: {self.run('systemctl', '--failed')}\n{self.journal()}")
        return state == "running"


def cable(one: Container, one_device: str, other: Container, other_device: str, *addresses: str) -> None:
    """Join two containers by a veth pair that is up; `addresses` (with prefix) alternate between its ends."""
    subprocess.run(
        [
            *("ip", "link", "add", one_device, "netns", str(one.leader), "type", "veth"),
            *("peer", "name", other_device, "netns", str(other.leader)),
        ],
        check=True,
        timeout=COMMAND_TIMEOUT,
    )
    ends = ((one, one_device), (other, other_device))
    for (container, device), address in zip(itertools.cycle(ends), addresses, strict=False):
        nodad = " nodad" if ":" in address else ""
        container.ip(f"address add {address} dev {device}{nodad}")
    for container, device in ends:
        container.ip(f"link set {device} up")
    for container, device in ends:
        wait_for(
            lambda c=container, d=device: "state UP" in c.ip(f"link show dev {d}"),  # type: ignore[misc]
            f"{device} of {container.name} to be up",
        )


def sweep() -> None:
    """Remove what killed test runs left: empty cgroups whose creator is dead."""
    for name in _cgroups("ls /mnt").split():
        creator = _NAME.match(name)
        if creator and not Path(f"/proc/{creator[1]}").exists():
            _remove_cgroups(name)


def _remove_cgroups(name: str) -> None:
    _cgroups('[ ! -d "/mnt/$1" ] || find "/mnt/$1" -depth -type d -exec rmdir {} +', name)


def _cgroups(script: str, *arguments: str) -> str:
    """What a script says that sees the cgroups in /mnt; the host may have mounted them anywhere, or not at all."""
    done = subprocess.run(
        [
            *("unshare", "--mount", "--propagation", "private"),
            *("sh", "-c", f"mount -t cgroup2 cgroup2 /mnt && {{ {script}; }}", "cgroups", *arguments),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=COMMAND_TIMEOUT,
    )
    return done.stdout
