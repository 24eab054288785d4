"""`make install`: dtun in /opt/dtun, its command in /usr/local/bin, and its services.

    /opt/dtun/NUMBER/        a virtual environment with this tree's dtun and the packages of requirements/runtime.txt
    /opt/dtun/current        a link to the newest, changed when that is complete
    /opt/dtun/directories    the directories created for files elsewhere, for `make uninstall`
    everything else          tools/layout.py

Running it again updates dtun. The previous environment is kept for processes that still run from it. Configuration and
keys are never overwritten.
"""

import argparse
import contextlib
import grp
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

from tools import bootstrap, launchd, layout, machine, ownership, wheels

ROOT = Path(__file__).resolve().parent.parent
PREFIX = Path("/opt/dtun")
COMMAND = Path("/usr/local/bin/dtun")
CONFIG = Path("/etc/dtun.yaml")
KEYS = Path("/etc/dtun")
DIRECTORIES = PREFIX / "directories"


def install(wheel_directory: Path | None, start: str | None = None) -> None:
    """Install or update, as root. `wheel_directory`: take the packages from there instead of from PyPI.

    `start`: the role whose job to start as well, on macOS.
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
        _restart_launchd(start)
    else:
        _print_next_steps()


def _make_directories(wanted: Path) -> None:
    """Create a directory with its parents, and record each that did not exist."""
    if not wanted.is_dir():
        _make_directories(wanted.parent)
        wanted.mkdir(mode=0o755)
        with DIRECTORIES.open("a") as file:
            file.write(f"{wanted}\n")


def write(path: Path, text: str) -> None:
    """Write a file that all users can read. The file is replaced in one step."""
    new = path.with_name(f".{path.name}.new")
    new.write_text(text)
    new.chmod(0o644)
    os.chown(new, 0, 0)  # on macOS it inherits the group of its directory
    new.replace(path)


def _environment(found: Iterable[Path]) -> Path:
    """Create a new virtual environment with dtun. It is removed if a step fails."""
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
        # The service cannot write here, and so it would compile at each start.
        subprocess.run([place / "bin" / "python", "-m", "compileall", "-q", packages], check=True)
        # Load all compiled code before this environment replaces the previous one.
        modules = "dtun.dtls.mbed, dtun.service.run, dtun.server.server, dtun.client.client"
        subprocess.run([place / "bin" / "python", "-I", "-c", f"import {modules}"], check=True)
        subprocess.run([launcher, "--version"], check=True)
        if shutil.which("restorecon"):
            # SELinux, as on Fedora: systemd may run files labelled as those of a bin directory.
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
    """Point `link` to `target`, in one step if it exists."""
    link.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    new = link.with_name(f".{link.name}.new")
    new.unlink(missing_ok=True)
    new.symlink_to(target)
    new.replace(link)


def _prepare_systemd() -> None:
    """Create user and group, set permissions, load the units; restart running services."""
    machine.attempt("systemd-sysusers", f"{layout.LOCAL.sysusers}/dtun.conf")
    try:
        group = grp.getgrnam("dtun").gr_gid
    except KeyError:
        stop("there is no group dtun; run `systemd-sysusers`, check its output, and install again")
    for name in grp.getgrgid(group).gr_mem:
        # Until 0.2.0 people were members of it, to use `dtun status`.
        print(
            f"warning: {name} is in the group dtun, which may read the keys. For `dtun status` and the like:"
        )
        print(f"  sudo usermod -a -G dtun-admin {name} && sudo gpasswd -d {name} dtun")
    _first_config(group=group, mode=0o640)
    machine.attempt("systemd-tmpfiles", "--create", f"{layout.LOCAL.tmpfiles}/dtun.conf")
    if machine.has_systemd():
        machine.attempt("systemctl", "daemon-reload")
        machine.attempt("systemctl", "try-restart", *machine.services())


def _first_config(*, group: int, mode: int) -> None:
    """Write the example as the configuration, unless one exists. Other users can never read it."""
    with contextlib.suppress(FileExistsError):
        descriptor = os.open(CONFIG, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(layout.example())
            os.fchown(file.fileno(), 0, group)
            os.fchmod(file.fileno(), mode)


def _restart_launchd(start: str | None) -> None:
    """Restart running jobs; start the job of `start`, too."""
    restarted = launchd.restart()
    for warning in ownership.warnings([*ownership.python_files(), PREFIX]):
        print(f"warning: {warning}")
    if start is not None and start not in restarted:
        if reason := launchd.unfit(COMMAND, CONFIG, start):
            stop(f"installed, but {launchd.label(start)} was not started:", *reason.splitlines())
        launchd.start(start)
    if start is None and not restarted:
        print(f"Installed. Next: edit {CONFIG} (all settings: {CONFIG}.example), sudo dtun check, then")
        print("  sudo make install INSTALL='--start client'     # or server")


def _print_next_steps() -> None:
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
