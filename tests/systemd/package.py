"""The Debian package of this tree, for containers to install: built offline from wheels that are fetched once.

Debian 12, "bookworm"    Python 3.11, all wheels are on PyPI
Debian 13, "trixie"      Python 3.13, python-mbedtls is compiled, in a container of that system
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.systemd import rootfs
from tests.systemd.container import Container
from tests.systemd.layer import LOCK, python_packages
from tests.systemd.rootfs import CACHE, SUITE, cached
from tools import deb

REPOSITORY = Path(__file__).resolve().parents[2]
PYTHONS = {"bookworm": "3.11", "trixie": "3.13"}
# What `make install` asks apt for on Debian 13, where it has a network.
COMPILER = ("gcc", "libc6-dev", "python3-dev", "python3-venv")
COMPILING = 540.0


def system(suite: str = SUITE) -> Path:
    """The root file system to install on."""
    return rootfs.debian(suite, COMPILER if suite == "trixie" else ())


def prepare() -> None:
    """Build everything that containers start from, as far as it is not there yet."""
    for suite in PYTHONS:
        system(suite)
        fetched_wheels(suite)
    python_packages()


def fetched_wheels(suite: str = SUITE) -> Path:
    """A directory as tools/wheels.py makes it, kept for as long as what it is made from stays the same."""
    made_from = [LOCK, *(REPOSITORY / "tools").glob("mbedtls_*.py"), REPOSITORY / "requirements/compile.txt"]
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in sorted(made_from))).hexdigest()[:12]
    version = PYTHONS[suite]

    def build(directory: Path) -> None:
        command = [sys.executable, "-m", "tools.wheels", str(directory), version]
        subprocess.run(command, cwd=REPOSITORY, check=True, timeout=COMPILING)
        if (directory / version / "sources").exists():
            _compile(directory, suite)

    return cached(f"wheels-{version}-{digest}", build)


def install_package(container: Container, suite: str = SUITE) -> None:
    """Install this tree's package as a person would, but without apt, which has no network here."""
    wheel_directory = fetched_wheels(suite)
    with tempfile.TemporaryDirectory(dir=CACHE, prefix=f"deb-{os.getpid()}-") as directory:
        package = deb.build(Path(directory), wheel_directory, [PYTHONS[suite]], compression="none")
        shutil.copy(package, container.root / "root/dtun.deb")
    container.run("dpkg", "-i", "/root/dtun.deb", timeout=60)


def copy_checkout(container: Container) -> None:
    """What a person has after a `git clone`, in /src."""
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("dtun", "etc", "packaging", "requirements", "tools"):
        shutil.copytree(REPOSITORY / name, container.root / "src" / name, ignore=ignored)


def _compile(directory: Path, suite: str) -> None:
    """Make the wheel that is missing, as `make install` does it on such a system."""
    version = PYTHONS[suite]
    with Container("compiler", system=system(suite)) as container:
        copy_checkout(container)
        sources = directory / version / "sources"
        shutil.copytree(sources, container.root / "sources")
        compiling = ("env", "-C", "/src", "/usr/bin/python3", "-B", "-m", "tools.mbedtls_wheel")
        container.run(*compiling, "/sources", "/made", timeout=COMPILING)
        for wheel in (container.root / "made").iterdir():
            shutil.copy(wheel, directory / version)
    shutil.rmtree(sources)


if __name__ == "__main__":
    prepare()
