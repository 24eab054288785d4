"""`make uninstall`: stops dtun and takes away what `make install` laid down. Configuration, keys and leases stay.

With INSTALL=--purge they go as well, and the user dtun.
"""

# ruff: noqa: INP001, T201

import os
import platform
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from tools import install, layout, machine

KEPT = (install.CONFIG, Path("/etc/dtun"), Path("/var/lib/dtun"))


def main(arguments: Sequence[str]) -> None:
    if os.geteuid() != 0:
        sys.exit("uninstall: root is needed; run: sudo make uninstall")
    if unknown := set(arguments) - {"--purge"}:
        sys.exit(f"uninstall: unknown: {' '.join(unknown)}; there is only --purge")
    _stop()
    for path in layout.here():
        Path(path).unlink(missing_ok=True)
    install.COMMAND.unlink(missing_ok=True)
    for directory in (install.PREFIX, Path("/run/dtun")):
        shutil.rmtree(directory, ignore_errors=True)
    if machine.has_systemd():
        machine.attempt("systemctl", "daemon-reload")
    if arguments:
        _purge()
        print("dtun is gone, with its configuration, keys and leases.")
        return
    left = ", ".join(str(path) for path in KEPT if path.exists())
    print(f"dtun is gone. Left in place: {left or 'nothing'}.")
    if left:
        print("To remove these too, keys and all: make uninstall INSTALL=--purge")


def _stop() -> None:
    if platform.system() == "Darwin":
        for role in ("client", "server"):
            machine.attempt("launchctl", "bootout", f"system/org.dtun.{role}")
    elif machine.has_systemd():
        machine.attempt("systemctl", "disable", "--now", *machine.services())


def _purge() -> None:
    for path in KEPT:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    if shutil.which("userdel"):
        machine.attempt("userdel", "dtun")


if __name__ == "__main__":
    main(sys.argv[1:])
