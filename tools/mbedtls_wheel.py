"""Compile a wheel of python-mbedtls, with Mbed TLS in it, from what tools/mbedtls_sources.py has fetched.

    python -m tools.mbedtls_wheel SOURCES OUTPUT      # a minute or two, without network; needs gcc and Python's headers

As in the wheels on PyPI, the shared libraries are beside the modules, which find them by a relative path. Linux only.
"""

import os
import shutil
import sys
import tempfile
import venv
from collections.abc import Sequence
from pathlib import Path

from tools import mbedtls_sources, step

LIBRARIES = "python_mbedtls.libs"
# Modules are in mbedtls/ and in mbedtls/cipher/.
RUN_PATH = ":".join(f"$ORIGIN/{up}/{LIBRARIES}" for up in ("..", "../.."))


def build(sources: Path, output: Path) -> Path:
    """Build the wheel for this Python in `output`; returns its path.

    Raises:
        FileNotFoundError: a file is missing from `sources`.
        OSError: a step of the build failed, for the reason in the message.
    """
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        include, library = _mbed_tls(sources, work / "mbedtls")
        venv.create(work / "venv", with_pip=True)
        python = work / "venv" / "bin" / "python"
        pip: list[str | Path] = [python, "-m", "pip", "--disable-pip-version-check", "--quiet"]
        offline: list[str | Path] = ["--no-index", "--find-links", sources, "--require-hashes"]
        _run(*pip, "install", *offline, "-r", mbedtls_sources.TOOLS)
        (work / "setup.cfg").write_text(f"[build_ext]\nparallel = {os.cpu_count() or 1}\n")
        mbedtls_sources.pinned(work / "pin.txt", "python-mbedtls")
        environment = {
            "DIST_EXTRA_CONFIG": str(work / "setup.cfg"),
            "C_INCLUDE_PATH": str(include),
            "LIBRARY_PATH": str(library),
            "CFLAGS": "-O2 -g0",
            # -s: without symbols, a tenth of the size.
            # Old tags: the path applies to dependencies between the libraries, too.
            "LDFLAGS": f"-s -Wl,--disable-new-dtags,-rpath,{RUN_PATH}",
        }
        options: list[str | Path] = ["--no-deps", "--no-build-isolation", *offline]
        _run(*pip, "wheel", *options, "-w", work, "-r", work / "pin.txt", environment=environment)
        _run(python, "-m", "wheel", "unpack", "-d", work / "unpacked", *work.glob("*.whl"))
        (unpacked,) = (work / "unpacked").iterdir()
        (unpacked / LIBRARIES).mkdir()
        for name in library.glob("lib*.so.*"):
            # The name that modules load is a link.
            if name.is_symlink():
                shutil.copy(name, unpacked / LIBRARIES)
        output.mkdir(parents=True, exist_ok=True)
        _run(python, "-m", "wheel", "pack", "-d", output, unpacked)
    (made,) = output.glob("python_mbedtls-*.whl")
    return made


def _mbed_tls(sources: Path, place: Path) -> tuple[Path, Path]:
    """Unpack Mbed TLS; returns the directories of its headers and its libraries."""
    for package in sources.glob("*.deb"):
        _run("dpkg-deb", "--extract", package, place)
    found = list(place.glob("usr/lib/*/libmbedtls.so"))
    if not found:
        raise FileNotFoundError(f"there is no Mbed TLS in {sources}")
    return place / "usr" / "include", found[0].parent


def _run(*command: str | Path, environment: dict[str, str] | None = None) -> None:
    step.run(command, environment=environment)


def main(arguments: Sequence[str]) -> None:
    if len(arguments) != 2:
        sys.exit("usage: python -m tools.mbedtls_wheel SOURCES OUTPUT")
    print(build(Path(arguments[0]), Path(arguments[1])))


if __name__ == "__main__":
    main(sys.argv[1:])
