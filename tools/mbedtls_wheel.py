"""A wheel of python-mbedtls for a Python or a machine that PyPI has none for, with Mbed TLS in it.

    python -m tools.mbedtls_wheel DIRECTORY        # two minutes; needs gcc, make and the headers of Python

It is made like the wheels on PyPI: the same Mbed TLS (2.28.8; python-mbedtls wants 2.28, and distributions have gone on
to 3), as shared libraries beside the modules, which find them by a path relative to themselves. Linux only.
"""

# ruff: noqa: INP001, S603, T201

import hashlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import urllib.request
import venv
from collections.abc import Sequence
from pathlib import Path

LOCK = Path(__file__).resolve().parent.parent / "requirements" / "runtime.txt"
# As released, from an archive that keeps its files in their places.
MBEDTLS = "http://archive.ubuntu.com/ubuntu/pool/universe/m/mbedtls/mbedtls_2.28.8.orig.tar.gz"
MBEDTLS_SHA256 = "edfe26dbc923a1d94aa53153d25b74f5dd51e89bfd222a6945eadec031fc9eb2"
# Pinned like the rest; python-mbedtls itself only says what is too old.
TOOLS = ("Cython==3.3.1", "setuptools==84.2.1", "wheel==0.48.0")
LIBRARIES = "python_mbedtls.libs"
# Modules are in mbedtls/ and in mbedtls/cipher/.
RUN_PATH = ":".join(f"$ORIGIN/{up}/{LIBRARIES}" for up in ("..", "../.."))


def problems() -> list[str]:
    """What this machine lacks for it, each with what to do about it."""
    missing = [name for name in ("gcc", "make") if shutil.which(name) is None]
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        missing.append("python3-dev")
    if not missing:
        return []
    version = "{}.{}".format(*sys.version_info)
    compiled = (
        f"python-mbedtls has no wheel for Python {version} on {sysconfig.get_platform()}, so it is compiled;"
    )
    advice = f"on Debian and Ubuntu: apt install {' '.join(missing)} (Fedora: python3-devel for python3-dev)"
    return [f"{compiled} {advice}"]


def build(output: Path) -> Path:
    """Make the wheel for the Python that runs this; its path in `output`.

    Raises:
        OSError: the source cannot be fetched, or is not what it was.
        subprocess.CalledProcessError: a step of the build failed; it has said why.
    """
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        library = _mbed_tls(work)
        venv.create(work / "venv", with_pip=True)
        python = work / "venv" / "bin" / "python"
        pip: list[str | Path] = [python, "-m", "pip", "--disable-pip-version-check", "--quiet"]
        _run(*pip, "install", *TOOLS)
        _pinned(work / "pin.txt", "python-mbedtls")
        environment = {
            "C_INCLUDE_PATH": str(library.parent / "include"),
            "LIBRARY_PATH": str(library),
            # -s: without symbols, a tenth of the size.
            # Old tags: the path counts for what the libraries need of each other, too.
            "LDFLAGS": f"-s -Wl,--disable-new-dtags,-rpath,{RUN_PATH}",
        }
        wheel = [
            *pip,
            "wheel",
            "--no-deps",
            "--no-build-isolation",
            "--no-binary",
            ":all:",
            "--require-hashes",
        ]
        _run(*wheel, "-w", work, "-r", work / "pin.txt", environment=environment)
        _run(python, "-m", "wheel", "unpack", "-d", work / "unpacked", *work.glob("*.whl"))
        (unpacked,) = (work / "unpacked").iterdir()
        (unpacked / LIBRARIES).mkdir()
        for shared in library.glob("lib*.so.*"):
            shutil.copy(shared, unpacked / LIBRARIES)
        output.mkdir(parents=True, exist_ok=True)
        _run(python, "-m", "wheel", "pack", "-d", output, unpacked)
        (made,) = output.glob("python_mbedtls-*.whl")
        # Seen to load, before anybody relies on it.
        _pinned(work / "needs.txt", "certifi", "typing-extensions")
        _run(*pip, "install", "--require-hashes", "-r", work / "needs.txt")
        _run(*pip, "install", "--no-deps", made)
        shutil.rmtree(library)
        _run(python, "-I", "-c", "import mbedtls.tls")
    return made


def _mbed_tls(work: Path) -> Path:
    """Fetch and compile Mbed TLS; the directory with its shared libraries."""
    with urllib.request.urlopen(MBEDTLS, timeout=60) as answer:
        content = answer.read()
    if hashlib.sha256(content).hexdigest() != MBEDTLS_SHA256:
        raise OSError(f"{MBEDTLS} is not what it was; its SHA-256 has changed")
    archive = work / "mbedtls.tar.gz"
    archive.write_bytes(content)
    with tarfile.open(archive) as file:
        file.extractall(work / "source")  # noqa: S202 - the hash says what is in it
    (source,) = (work / "source").iterdir()
    jobs = f"-j{os.cpu_count() or 1}"
    _run("make", jobs, "-s", "-C", source / "library", "SHARED=1", "CFLAGS=-O2 -fPIC", "LDFLAGS=-s")
    return source / "library"


def _pinned(place: Path, *names: str) -> None:
    """The entries of these packages in the lock file, with their hashes, as a file of its own."""
    entries = re.findall(r"^[^\s#].*(?:\n\s+.*)*", LOCK.read_text(), re.MULTILINE)
    place.write_text("\n".join(entry for entry in entries if entry.partition("==")[0] in names) + "\n")


def _run(*command: str | Path, environment: dict[str, str] | None = None) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env={**os.environ, **(environment or {})})


def main(arguments: Sequence[str]) -> None:
    if len(arguments) != 1:
        sys.exit("usage: python -m tools.mbedtls_wheel DIRECTORY")
    if lacking := problems():
        sys.exit("\n".join(lacking))
    print(build(Path(arguments[0])))


if __name__ == "__main__":
    main(sys.argv[1:])
