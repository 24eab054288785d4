"""The Debian package of this tree, for containers to install: built offline from wheels that are fetched once."""

import hashlib
import os
import shutil
import tempfile
from pathlib import Path

from tests.systemd.container import Container
from tests.systemd.layer import LOCK
from tests.systemd.rootfs import CACHE, cached
from tools import deb, wheels

VERSION = "3.11"  # of the containers' Python


def fetched_wheels() -> Path:
    """A directory as tools/wheels.py makes it, kept for as long as the lock file stays the same."""
    digest = hashlib.sha256(LOCK.read_bytes()).hexdigest()[:12]
    return cached(f"wheels-{digest}", lambda directory: wheels.download(directory, [VERSION]))


def install_package(container: Container) -> None:
    """Install this tree's package as a person would, but without apt, which has no network here."""
    wheel_directory = fetched_wheels()
    with tempfile.TemporaryDirectory(dir=CACHE, prefix=f"deb-{os.getpid()}-") as directory:
        package = deb.build(Path(directory), wheel_directory, [VERSION], compression="none")
        shutil.copy(package, container.root / "root/dtun.deb")
    container.run("dpkg", "-i", "/root/dtun.deb", timeout=60)
