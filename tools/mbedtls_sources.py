"""Fetches what tools/mbedtls_wheel.py compiles a wheel of python-mbedtls from, where PyPI has none.

    *.tar.gz    python-mbedtls by requirements/runtime.txt
    *.whl       the packages that compile it, by requirements/compile.txt
    *.deb       Mbed TLS 2.28: python-mbedtls needs it, and distributions have moved on to version 3

The last are from the newest release of this distribution that has them. apt fetches them from the system's own
archives and verifies them with the distribution's keys. It uses directories of its own: the system's list of sources
does not change, and nothing is installed.
"""

import platform
import re
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from tools import step

REQUIREMENTS = Path(__file__).resolve().parent.parent / "requirements"
TOOLS = REQUIREMENTS / "compile.txt"
_RUNTIME = REQUIREMENTS / "runtime.txt"


class Release(NamedTuple):
    """A release of a distribution. `component`: the part of its archive that has Mbed TLS."""

    name: str
    component: str
    keyring: str


# By ID= of os-release(5).
LAST_RELEASES = {
    "debian": Release("bookworm", "main", "/usr/share/keyrings/debian-archive-keyring.gpg"),
    "ubuntu": Release("noble", "universe", "/usr/share/keyrings/ubuntu-archive-keyring.gpg"),
}


def release() -> Release | None:
    """The release of this distribution that has Mbed TLS 2.28; None for other distributions."""
    try:
        system = platform.freedesktop_os_release()
    except OSError:
        return None
    return LAST_RELEASES.get(system.get("ID", ""))


def fetch(directory: Path, pip: Sequence[str], target: Sequence[str]) -> None:
    """Fetch all of it. `pip`: the pip command of a virtual environment that may change; `target`: pip's options for the
    Python that compiles.

    Raises:
        OSError: this distribution does not have Mbed TLS 2.28, apt has no archive of it, or a download has failed.
    """
    directory.mkdir(parents=True, exist_ok=True)
    download = [*pip, "download", "--no-deps", "--require-hashes", "--dest", str(directory)]
    _run(*download, "--only-binary", ":all:", *target, "-r", str(TOOLS))
    # pip runs the build backend of the source, which needs these.
    _run(*pip, "install", "--require-hashes", "-r", str(TOOLS))
    with tempfile.TemporaryDirectory() as place:
        pin = Path(place, "pin.txt")
        pinned(pin, "python-mbedtls")
        _run(*download, "--no-binary", ":all:", "--no-build-isolation", "-r", str(pin))
        _mbed_tls(directory, Path(place))


def pinned(place: Path, *names: str) -> None:
    """Write the entries of these packages in the lock file, with their hashes, to `place`."""
    entries = re.findall(r"^[^\s#].*(?:\n\s+.*)*", _RUNTIME.read_text(), re.MULTILINE)
    place.write_text("\n".join(entry for entry in entries if entry.partition("==")[0] in names) + "\n")


def _mbed_tls(directory: Path, place: Path) -> None:
    wanted = release()
    if wanted is None:
        raise OSError("Mbed TLS 2.28 can be had from Debian or Ubuntu only")
    sources = place / "sources.list"
    sources.write_text("".join(_lines(wanted)))
    for name in ("lists/partial", "cache/archives/partial", "none"):
        (place / name).mkdir(parents=True)
    (place / "status").touch()  # as if nothing were installed
    settings = {
        "Dir::Etc::SourceList": sources,
        "Dir::Etc::SourceParts": place / "none",
        "Dir::State::Lists": place / "lists",
        "Dir::State::Status": place / "status",
        "Dir::Cache": place / "cache",
        "APT::Sandbox::User": "root",
    }
    options = [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]
    _run("apt-get", *options, "-qq", "--error-on=any", "update")
    depends = _output("apt-cache", *options, "depends", "--important", "libmbedtls-dev")
    libraries = re.findall(r"Depends: (\S+)", depends)
    _run("apt-get", *options, "-qq", "download", "libmbedtls-dev", *libraries, directory=directory)


def _lines(wanted: Release) -> Iterable[str]:
    """Lines for sources.list(5): the archives of this system, but with the wanted release."""
    now = platform.freedesktop_os_release().get("VERSION_CODENAME", "")
    question = ("apt-get", "indextargets", "--format", "$(REPO_URI) $(CODENAME)", "Created-By: Packages")
    known = _output(*question)
    if f" {now}\n" not in known:
        _run("apt-get", "-qq", "update")
        known = _output(*question)
    found = set(re.findall(rf"^(\S+) {now}(|-security)$", known, re.MULTILINE)) if now else set()
    if not any(suffix == "" for _, suffix in found):
        raise OSError("apt has no archive of this system's release; see sources.list(5)")
    for archive, suffix in sorted(found):
        yield f"deb [signed-by={wanted.keyring}] {archive} {wanted.name}{suffix} {wanted.component}\n"


def _run(*command: str, directory: Path | None = None) -> None:
    step.run(command, directory=directory)


def _output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
