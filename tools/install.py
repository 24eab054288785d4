"""`make install`: dtun in /opt/dtun, its command in /usr/local/bin, and its services.

    /opt/dtun/NUMBER/        a virtual environment with this tree's dtun and the packages of requirements/runtime.txt
    /opt/dtun/current        a link to the newest, which is changed when that one is whole
    /opt/dtun/directories    those that were made for the files elsewhere, for `make uninstall`
    everything else          tools/layout.py

Running it again is an update. The one before stays in its place, for what still runs from it. Configuration and keys
are never overwritten.
"""

# ruff: noqa: INP001, S603, T201

import argparse
import contextlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NoReturn

from tools import bootstrap, launchd, layout, machine, wheels

ROOT = Path(__file__).resolve().parent.parent
PREFIX = Path("/opt/dtun")
COMMAND = Path("/usr/local/bin/dtun")
CONFIG = Path("/etc/dtun.yaml")
KEYS = Path("/etc/dtun")
DIRECTORIES = PREFIX / "directories"


def install(wheel_directory: Path | None, start: str | None = None) -> None:
    """Install or update, as root. `wheel_directory`: where the packages are, instead of on PyPI.

    `start`: the role whose job is to be started as well, on macOS.
    """
    problems = machine.problems()
    if wheel_directory is None:
        problems += wheels.problems(wheels.OWN_VERSION)
    if problems:
        stop("nothing was installed:", *problems)
    with tempfile.TemporaryDirectory() as directory:
        if wheel_directory is None:
            lacking = machine.missing_packages(compiler=not wheels.is_on_pypi(wheels.OWN_VERSION))
            if lacking:
                bootstrap.install_system_packages(lacking)
            print("Fetching the packages that dtun needs ...", flush=True)
            wheels.download(Path(directory), [wheels.OWN_VERSION])
        found = wheels.compiled(wheel_directory or Path(directory))
        print(f"Installing into {PREFIX} with {sys.executable} ...", flush=True)
        new = _environment(found)
    _point(PREFIX / "current", new)
    _point(COMMAND, PREFIX / "current" / "bin" / "dtun")
    for path, text in layout.here().items():
        _make_directories(Path(path).parent)
        write(Path(path), text)
    darwin = platform.system() == "Darwin"
    if darwin:
        KEYS.mkdir(mode=0o700, exist_ok=True)
        _first_config(group=0, mode=0o600)
    else:
        _prepare_systemd()
    for old in sorted(_numbered(), key=_number)[:-2]:
        shutil.rmtree(old)
    if darwin:
        _settle_launchd(start)
    else:
        _say_how_to_go_on()


def _make_directories(wanted: Path) -> None:
    """Make a directory and those above it, and note each that was not there."""
    if not wanted.is_dir():
        _make_directories(wanted.parent)
        wanted.mkdir(mode=0o755)
        with DIRECTORIES.open("a") as file:
            file.write(f"{wanted}\n")


def write(path: Path, text: str) -> None:
    """Write a file for everybody to read; whoever reads it meanwhile sees the old one or the new one."""
    new = path.with_name(f".{path.name}.new")
    new.write_text(text)
    new.chmod(0o644)
    os.chown(new, 0, 0)  # on macOS it has its directory's group
    new.replace(path)


def _environment(found: Iterable[Path]) -> Path:
    """A new virtual environment with everything in it; one that is not finished is taken away again."""
    number = max([0, *map(_number, _numbered())]) + 1
    place = PREFIX / str(number)
    try:
        venv.create(place, symlinks=True)
        packages = place / "lib" / f"python{wheels.OWN_VERSION}" / "site-packages"
        wheels.unpack(found, packages)
        shutil.copytree(ROOT / "dtun", packages / "dtun", ignore=shutil.ignore_patterns("__pycache__"))
        launcher = place / "bin" / "dtun"
        launcher.write_text(layout.launcher(str(place / "bin" / "python")))
        launcher.chmod(0o755)
        # Its user may not write here, so that it would compile at each start.
        subprocess.run([place / "bin" / "python", "-m", "compileall", "-q", packages], check=True)
        # All that is compiled gets loaded, before this one takes the place of the one before.
        modules = "dtun.dtls.mbed, dtun.service.run, dtun.server.server, dtun.client.client"
        subprocess.run([place / "bin" / "python", "-I", "-c", f"import {modules}"], check=True)
        subprocess.run([launcher, "--version"], check=True)
        if shutil.which("restorecon"):
            # SELinux, as on Fedora: what is in a bin directory may be run by systemd, once it is labelled so.
            machine.attempt("restorecon", "-R", str(PREFIX))
    except BaseException:
        shutil.rmtree(place, ignore_errors=True)
        raise
    return place


def _numbered() -> list[Path]:
    return [path for path in PREFIX.glob("*") if path.name.isdecimal()]


def _number(path: Path) -> int:
    return int(path.name)


def _point(link: Path, target: Path) -> None:
    """Make `link` lead to `target`, in one step if it is there already."""
    link.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    new = link.with_name(f".{link.name}.new")
    new.unlink(missing_ok=True)
    new.symlink_to(target)
    new.replace(link)


def _prepare_systemd() -> None:
    """User and group, rights, units; services that run are started anew."""
    machine.attempt("systemd-sysusers", f"{layout.LOCAL.sysusers}/dtun.conf")
    import grp  # noqa: PLC0415 - after its group has come into being

    try:
        group = grp.getgrnam("dtun").gr_gid
    except KeyError:
        stop("there is no group dtun; run `systemd-sysusers`, see what it says, and install again")
    _first_config(group=group, mode=0o640)
    machine.attempt("systemd-tmpfiles", "--create", f"{layout.LOCAL.tmpfiles}/dtun.conf")
    if machine.has_systemd():
        machine.attempt("systemctl", "daemon-reload")
        machine.attempt("systemctl", "try-restart", *machine.services())


def _first_config(*, group: int, mode: int) -> None:
    """The example as the configuration, unless there is one. Nobody else can read it for a moment either."""
    with contextlib.suppress(FileExistsError):
        descriptor = os.open(CONFIG, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(layout.example())
            os.fchown(file.fileno(), 0, group)
            os.fchmod(file.fileno(), mode)


def _settle_launchd(start: str | None) -> None:
    """Jobs that run are started anew, and `start` is."""
    restarted = launchd.restart()
    for warning in launchd.warnings():
        print(f"warning: {warning}")
    if start is not None and start not in restarted:
        if reason := launchd.unfit(COMMAND, CONFIG, start):
            stop(f"installed, but {launchd.label(start)} was not started:", *reason.splitlines())
        launchd.start(start)
    if start is None and not restarted:
        print(f"Installed. Next: edit {CONFIG} (all settings: {CONFIG}.example), sudo dtun check, then")
        print("  sudo make install INSTALL='--start client'     # or server")


def _say_how_to_go_on() -> None:
    print(f"Installed. Next: edit {CONFIG} (all settings: {CONFIG}.example), `dtun check`, then")
    print("  sudo systemctl enable --now dtun-server        # or dtun-client")


def stop(*lines: str) -> NoReturn:
    sys.exit("\n  ".join(["install: " + lines[0], *lines[1:]]))


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="make install", description="Install dtun on this machine.")
    parser.add_argument("--wheels", type=Path, help="take the packages from here (see tools/wheels.py)")
    if platform.system() == "Darwin":
        parser.add_argument("--start", choices=launchd.ROLES, help="enable this job, and start it")
    parser.set_defaults(start=None)
    given = parser.parse_args(arguments)
    os.umask(0o022)
    try:
        install(given.wheels, given.start)
    except (OSError, subprocess.CalledProcessError, launchd.LaunchdError) as error:
        stop(str(error))


if __name__ == "__main__":
    main(sys.argv[1:])
