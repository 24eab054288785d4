"""What dtun needs, from this Python's own packages, as a layer to lay over a root file system.

A container has no network to install from. So the packages of requirements/runtime.txt are copied from the
environment that the tests run in to where Debian's Python looks first, once for each set of versions. dtun itself,
which changes all the time, is copied into each container.
"""

import hashlib
import re
import shutil
import sys
from importlib.metadata import Distribution, distribution
from pathlib import Path

from packaging.requirements import Requirement

from tests.systemd.rootfs import cached

REPOSITORY = Path(__file__).resolve().parents[2]
LOCK = REPOSITORY / "requirements" / "runtime.txt"
DEBIAN_PYTHON = (3, 11)  # of rootfs.SUITE
PACKAGES = Path("usr/local/lib/python{}.{}/dist-packages".format(*DEBIAN_PYTHON))
COMMAND = """#!/usr/bin/python3
import sys

from dtun.cli import main

sys.exit(main())
"""


def python_packages() -> Path:
    """The layer with what dtun needs, made now if it is not there yet."""
    if sys.version_info[:2] != DEBIAN_PYTHON:
        wanted = "{}.{}".format(*DEBIAN_PYTHON)
        raise AssertionError(f"the containers' Python is {wanted}; run: make setup PYTHON=python{wanted}")
    packages = [distribution(name) for name in _locked_names()]
    versions = sorted(f"{package.name}=={package.version}" for package in packages)

    def build(directory: Path) -> None:
        for package in packages:
            _copy(package, directory / PACKAGES)

    return cached(f"python-{hashlib.sha256(repr(versions).encode()).hexdigest()[:12]}", build)


def copy_dtun(root: Path) -> None:
    """Put this tree's dtun below a root directory, and its command."""
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(REPOSITORY / "dtun", root / PACKAGES / "dtun", ignore=ignored, dirs_exist_ok=True)
    command = root / "usr/local/bin/dtun"
    command.write_text(COMMAND)
    command.chmod(0o755)


def _locked_names() -> list[str]:
    pins = re.findall(r"^([^\s#-][^\\\n]*)", LOCK.read_text(), re.MULTILINE)
    wanted = (Requirement(pin.strip()) for pin in pins)
    return [pin.name for pin in wanted if pin.marker is None or pin.marker.evaluate()]


def _copy(package: Distribution, target: Path) -> None:
    for file in package.files or ():
        # What lies outside of site-packages, commands for instance, is not needed.
        if ".." in file.parts or "__pycache__" in file.parts:
            continue
        place = target / file
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(file.locate(), place)
