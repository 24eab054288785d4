"""dtun's jobs under launchd: what `make install` and `make uninstall` do about them on macOS (launchctl(1)).

An installed job is disabled by its property list until an administrator enables it. Otherwise both jobs would start at
the next boot, one of them without a configuration.
"""

import subprocess
import time
from pathlib import Path

ROLES = ("server", "client")
DAEMONS = Path("/Library/LaunchDaemons")
LOGS = Path("/var/log")

PATIENCE = 60.0
"""Seconds for a job to end: longer than its ExitTimeOut."""

INTERVAL = 0.2


class LaunchdError(Exception):
    """launchd refused a request, or a job did not end. The message is for the user."""


def label(role: str) -> str:
    return f"org.dtun.{role}"


def plist(role: str) -> Path:
    return DAEMONS / f"{label(role)}.plist"


def start(role: str) -> None:
    """Start the job now and at each boot.

    Raises:
        LaunchdError: it cannot be loaded.
    """
    _launchctl("enable", f"system/{label(role)}")
    _launchctl("bootstrap", "system", str(plist(role)))


def restart() -> list[str]:
    """Restart the loaded jobs, with the property lists as they are now; returns their roles.

    Raises:
        LaunchdError: a job does not end, or cannot be loaded again.
    """
    found = [role for role in ROLES if _is_loaded(role)]
    for role in found:
        _end(role)
        _launchctl("bootstrap", "system", str(plist(role)))
    return found


def remove() -> None:
    """End and disable the jobs, so that a later installation does not start them.

    Raises:
        LaunchdError: a job does not end.
    """
    for role in ROLES:
        if _is_loaded(role):
            _end(role)
        _launchctl("disable", f"system/{label(role)}")


def logs() -> list[Path]:
    """The logs, with those that newsyslog has rotated."""
    return [path for role in ROLES for path in sorted(LOGS.glob(f"dtun-{role}.log*"))]


def unfit(command: Path, config: Path, role: str) -> str | None:
    """Why this job would fail, and launchd would restart it every ten seconds; None if it would not."""
    done = subprocess.run([command, "check", "-c", config], check=False, capture_output=True, text=True)
    if done.returncode != 0:
        return done.stderr.strip()
    if f": {role} " not in done.stdout:
        other = next(one for one in ROLES if one != role)
        return f"{config} is for a {other}, not for a {role}"
    return None


def _end(role: str) -> None:
    # `bootout` may return before the job has ended.
    subprocess.run(["launchctl", "bootout", f"system/{label(role)}"], check=False, capture_output=True)
    deadline = time.monotonic() + PATIENCE
    while _is_loaded(role):
        if time.monotonic() > deadline:
            raise LaunchdError(f"{label(role)} does not end; see {LOGS}/dtun-{role}.log, and run this again")
        time.sleep(INTERVAL)


def _is_loaded(role: str) -> bool:
    command = ["launchctl", "print", f"system/{label(role)}"]
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


def _launchctl(*arguments: str) -> None:
    command = ["launchctl", *arguments]
    print(f"  {' '.join(command)}", flush=True)
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip() or f"exit code {done.returncode}"
        raise LaunchdError(f"{' '.join(command)}: {said}")
