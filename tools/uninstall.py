"""`make uninstall`: stops dtun and removes what `make install` installed. Configuration, keys and leases stay.

INSTALL=--purge removes them as well, and the user dtun and the group dtun-admin.
"""

import contextlib
import os
import platform
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from tools import install, launchd, layout, machine

# Leases, and files that are needed only while dtun runs, on Linux and on macOS.
STATE: tuple[Path, ...] = (Path("/var/lib/dtun"), Path("/var/db/dtun"))
RUNTIME: tuple[Path, ...] = (Path("/run/dtun"), Path("/var/run/dtun"))


def main(arguments: Sequence[str]) -> None:
    if os.geteuid() != 0:
        sys.exit("uninstall: root is needed; run: sudo make uninstall")
    if unknown := set(arguments) - {"--purge"}:
        sys.exit(f"uninstall: unknown: {' '.join(unknown)}; there is only --purge")
    _stop()
    for path in layout.here():
        Path(path).unlink(missing_ok=True)
    install.COMMAND.unlink(missing_ok=True)
    _remove_directories()
    for directory in (install.PREFIX, *RUNTIME):
        shutil.rmtree(directory, ignore_errors=True)
    if machine.has_systemd():
        machine.attempt("systemctl", "daemon-reload")
    if arguments:
        _purge()
        print("dtun was removed, with its configuration, keys and leases.")
        return
    left = ", ".join(str(path) for path in _kept() if path.exists())
    print(f"dtun was removed. Left in place: {left or 'nothing'}.")
    if left:
        print("To remove these too, keys and all: make uninstall INSTALL=--purge")


def _kept() -> list[Path]:
    """Paths that only --purge removes."""
    logs = launchd.logs() if platform.system() == "Darwin" else []
    return [install.CONFIG, install.KEYS, *STATE, *logs]


def _stop() -> None:
    if platform.system() == "Darwin":
        try:
            launchd.remove()
        except launchd.LaunchdError as error:
            sys.exit(f"uninstall: nothing was removed: {error}")
    elif machine.has_systemd():
        machine.attempt("systemctl", "disable", "--now", "dtun-server.socket", *machine.services())


def _remove_directories() -> None:
    """Remove the directories that the installation created, if they are empty now."""
    if install.DIRECTORIES.exists():
        for line in reversed(install.DIRECTORIES.read_text().splitlines()):
            with contextlib.suppress(OSError):
                Path(line).rmdir()


def _purge() -> None:
    for path in _kept():
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    if shutil.which("userdel"):
        machine.attempt("userdel", "dtun")
        machine.attempt("groupdel", "dtun-admin")


if __name__ == "__main__":
    main(sys.argv[1:])
