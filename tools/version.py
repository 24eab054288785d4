"""The version of a Debian package: it grows with each build of another tree, and names the distribution.

    0.2.0+20261128171500~deb12      0.2.0, from sources of 28 November 2026, 17:15:00 UTC, built on Debian 12

So apt takes the package of a newer checkout for newer, and that of a newer Debian as well.
"""

import os
import re
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

import dtun

ROOT = Path(__file__).resolve().parent.parent
OS_RELEASE = Path("/etc/os-release")


def package_version(root: Path = ROOT, os_release: Path = OS_RELEASE) -> str:
    """The version of a package that is built here and now from the tree at `root`."""
    date = time.strftime("%Y%m%d%H%M%S", time.gmtime(source_time(root)))
    return f"{dtun.__version__}+{date}~{distribution(os_release)}"


def source_time(root: Path, environment: Mapping[str, str] = os.environ) -> int:
    """When the sources were last changed, in seconds since 1970: $SOURCE_DATE_EPOCH, or the last commit, or a file."""
    if given := environment.get("SOURCE_DATE_EPOCH", "").strip():
        return int(given)
    committed = _git(root, "log", "-1", "--format=%ct")
    if committed is not None and not _git(root, "status", "--porcelain"):
        return int(committed)
    # No repository, or something is not committed.
    files = (path for top in ("dtun", "packaging", "tools") for path in (root / top).rglob("*"))
    changed = [int(path.stat().st_mtime) for path in files if path.is_file() and path.suffix != ".pyc"]
    return max([*changed, int(committed or 0)])


def distribution(os_release: Path) -> str:
    """For example deb12 or ubuntu24.04 (os-release(5))."""
    text = os_release.read_text() if os_release.exists() else ""
    values = dict(re.findall(r"^(ID|VERSION_ID)=\"?([^\"\n]*)", text, re.MULTILINE))
    name = {"debian": "deb"}.get(values.get("ID", ""), values.get("ID", "linux"))
    return re.sub(r"[^a-z0-9.]", "", f"{name}{values.get('VERSION_ID', '')}".lower()) or "linux"


def _git(root: Path, *arguments: str) -> str | None:
    """What git says about the tree; None if it is no repository, or there is no git."""
    # Root may build what belongs to a user.
    command = ["git", "-c", f"safe.directory={root}", "-C", str(root), *arguments]
    try:
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
