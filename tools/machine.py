"""Checks of the machine for `make install`."""

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path


def problems() -> list[str]:
    """Reasons why dtun cannot be installed, each with what to do about it."""
    found = []
    if os.geteuid() != 0:
        found.append("root is needed; run: sudo make install")
    if sys.prefix != sys.base_prefix:
        found.append("this Python is one of a virtual environment; run: make install PYTHON=/usr/bin/python3")
    if platform.system() == "Linux":
        if Path(sys.base_prefix).is_relative_to("/home") or Path(sys.base_prefix).is_relative_to("/root"):
            found.append(
                f"the services may not read {sys.base_prefix}; run: make install PYTHON=/usr/bin/python3"
            )
        if shutil.which("systemctl") is None:
            found.append("there is no systemd; without it, see docs/install.md for how to start dtun by hand")
        if _is_package():
            found.append("dtun is installed as a Debian package; first: apt remove dtun")
    elif platform.system() != "Darwin":
        found.append(f"dtun runs on Linux and macOS, not on {platform.system()}")
    return found


def missing_packages(*, compiler: bool) -> list[str]:
    """Debian packages that the installer needs and that are missing. `compiler`: with those for compiling."""
    version = "{}.{}".format(*sys.version_info)
    missing = []
    if importlib.util.find_spec("ensurepip") is None:
        missing.append(f"python{version}-venv")
    if compiler:
        headers = Path(sysconfig.get_path("include"))
        found = {
            "gcc": shutil.which("gcc"),
            "libc6-dev": Path("/usr/include/stdio.h").exists(),
            f"python{version}-dev": (headers / "Python.h").exists(),
        }
        missing += [name for name, there in found.items() if not there]
    return missing


def has_systemd() -> bool:
    """Whether systemd is running (sd_booted(3)), not only installed, as in a chroot."""
    return Path("/run/systemd/system").is_dir()


def services() -> list[str]:
    """The units of dtun's services on this machine, with all loaded instances of the template."""
    command = ["systemctl", "list-units", "--all", "--plain", "--no-legend", "dtun-client@*.service"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    instances = [line.split()[0] for line in done.stdout.splitlines() if line.strip()]
    return ["dtun-server.service", "dtun-client.service", *instances]


def attempt(*command: str) -> None:
    """Run a command. If it fails, its output is shown and the installation continues."""
    subprocess.run(command, check=False, stdin=subprocess.DEVNULL)


def _is_package() -> bool:
    if shutil.which("dpkg-query") is None:
        return False
    command = ["dpkg-query", "--show", "--showformat=${db:Status-Status}", "dtun"]
    return subprocess.run(command, check=False, capture_output=True, text=True).stdout == "installed"
