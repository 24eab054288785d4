"""Debian in a directory, for containers to boot from: built once with debootstrap, then kept and only read.

A root file system lies in CACHE under a name that says what went into it, so that a change here builds another
one. It comes into being beside its place and is renamed when it is whole; a lock lets one process build while
others wait.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

CACHE = Path(os.environ.get("DTUN_TEST_CACHE", "/var/cache/dtun-tests"))
# Where from, in place of debootstrap's own choice.
MIRROR = os.environ.get("DTUN_TEST_MIRROR")
BUILD_TIMEOUT = 540.0

SUITE = "bookworm"
PACKAGES = (
    "ca-certificates",
    "dbus",
    "iperf3",
    "iproute2",
    "iputils-ping",
    "libnss-systemd",  # names for the users of DynamicUser=
    "libpam-systemd",  # polkitd depends on a logind, and debootstrap knows no virtual packages
    "nftables",
    "polkitd",  # resolved asks it, whether a service that is not root may set name servers
    "procps",  # kill(1), for ExecReload=
    "python3",
    "systemd",
    "systemd-resolved",
    "systemd-sysv",
)
# What would work on its own while a test looks, or reach for the network.
MASKED = (
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "fstrim.timer",
    "systemd-modules-load.service",  # the kernel is the host's
    "systemd-timesyncd.service",
)
# Nobody reads these in a test; and a container makes its own machine id.
UNUSED = ("usr/share/doc", "usr/share/locale", "usr/share/man", "var/cache/apt/archives", "var/lib/apt/lists")


def debian(suite: str = SUITE, extra: tuple[str, ...] = ()) -> Path:
    """The root file system of this suite with PACKAGES and `extra`, built now if it is not there yet.

    Raises:
        OSError: it cannot be built; the message ends with the last lines of debootstrap's own.
    """
    packages = sorted({*PACKAGES, *extra})

    def build(directory: Path) -> None:
        _debootstrap(suite, packages, directory)
        _tidy(directory)

    recipe = repr((suite, packages, MASKED, UNUSED))
    return cached(f"debian-{suite}-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}", build)


def cached(name: str, build: Callable[[Path], None]) -> Path:
    """The directory CACHE/`name`; if it is not there, `build` fills an empty one that takes its place."""
    place = CACHE / name
    if place.exists():
        return place
    CACHE.mkdir(parents=True, exist_ok=True)
    with _locked(CACHE / f".{name}.lock"):
        if not place.exists():  # somebody may have built it while we waited
            new = CACHE / f".{name}.new"
            shutil.rmtree(new, ignore_errors=True)
            new.mkdir(mode=0o755)
            build(new)
            new.rename(place)
    return place


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _debootstrap(suite: str, packages: list[str], directory: Path) -> None:
    # What debootstrap mounts is gone with it, even if it is killed.
    command = ["unshare", "--mount", "--propagation", "private"]
    command += ["debootstrap", "--variant=minbase", f"--include={','.join(packages)}", suite]
    done = subprocess.run(
        [*command, str(directory), *([MIRROR] if MIRROR else [])],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=BUILD_TIMEOUT,
    )
    if done.returncode != 0:
        raise OSError(f"debootstrap failed:\n{done.stdout[-2000:]}")


def _tidy(root: Path) -> None:
    for name in UNUSED:
        shutil.rmtree(root / name, ignore_errors=True)
        (root / name).mkdir(parents=True, exist_ok=True)
    for name in MASKED:
        (root / "etc/systemd/system" / name).symlink_to("/dev/null")
    (root / "etc/machine-id").write_text("")
    # It may be a copy of this host's.
    (root / "etc/resolv.conf").unlink(missing_ok=True)
    (root / "etc/resolv.conf").symlink_to("../run/systemd/resolve/stub-resolv.conf")
