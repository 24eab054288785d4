"""The Python packages that dtun needs, as wheels: fetched according to the lock file, unpacked without pip.

python -m tools.wheels DIRECTORY 3.11 3.13

DIRECTORY/3.11/*.whl           for one Python
DIRECTORY/3.13/sources/        sources of python-mbedtls for a Python without a wheel on PyPI
"""

import platform
import re
import shutil
import sys
import tempfile
import venv
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from tools import bootstrap, mbedtls_sources, mbedtls_wheel, step

ROOT = Path(__file__).resolve().parent.parent
OWN_VERSION = "{}.{}".format(*sys.version_info)
LOCK = ROOT / "requirements" / "runtime.txt"
SOURCES = "sources"
ANOTHER_PYTHON = "install CPython 3.12 and run make again (Fedora: dnf install python3.12)"
# The C library of Debian 12 is 2.36. pip does not infer older versions, so all are listed.
GLIBC = ("2_36", "2_34", "2_31", "2_28", "2_27", "2_26", "2_24", "2_17", "2_12", "2_5")


def is_on_pypi(version: str) -> bool:
    """Whether PyPI has a wheel of python-mbedtls for this Python ("3.11") and this machine. Others have one anyway."""
    major, minor = map(int, version.split("."))
    this = bootstrap.Machine.this()._replace(python=(major, minor))
    return bootstrap.mbedtls_advice(this, {}) is None


def problems(version: str) -> list[str]:
    """Reasons why dtun cannot run with this Python, each with what to do about it."""
    if is_on_pypi(version) or mbedtls_sources.release() is not None:
        return []
    missing = f"python-mbedtls has no wheel for Python {version} on {platform.system()} {platform.machine()}"
    if is_on_pypi("3.12"):
        return [f"{missing}; {ANOTHER_PYTHON}"]
    return [missing]


def download(directory: Path, versions: Iterable[str]) -> None:
    """Fetch the locked packages for each of these Pythons on this machine, and verify their hashes.

    Raises:
        OSError: something cannot be fetched, for the reason in the message.
    """
    with tempfile.TemporaryDirectory() as environment:
        # Debian's own Python comes without pip.
        venv.create(environment, with_pip=True)
        pip = [str(Path(environment, "bin", "python")), "-m", "pip", "--disable-pip-version-check", "--quiet"]
        for version in versions:
            lock = Path(environment, "lock.txt")
            entries = LOCK.read_text()
            target = ["--python-version", version, *_platforms()]
            if not is_on_pypi(version):
                mbedtls_sources.fetch(directory / version / SOURCES, pip, target)
                entries = re.sub(r"^python-mbedtls==.*?(?=^\S)", "", entries, flags=re.MULTILINE | re.DOTALL)
            lock.write_text(entries)
            command = [*pip, "download", "--require-hashes", "--only-binary", ":all:", "--no-deps", *target]
            step.run([*command, "--dest", str(directory / version), "-r", str(lock)])


def compiled(directory: Path) -> list[Path]:
    """All wheels for this Python, from what `download` wrote to `directory`. Sources are compiled now.

    Raises:
        FileNotFoundError: there are no wheels for this Python.
        OSError: python-mbedtls cannot be compiled, for the reason in the message.
    """
    place = directory / OWN_VERSION
    if (place / SOURCES).is_dir() and not list(place.glob("python_mbedtls-*.whl")):
        print(
            f"Compiling python-mbedtls for Python {OWN_VERSION}, which takes a minute or two ...", flush=True
        )
        mbedtls_wheel.build(place / SOURCES, place)
    found = sorted(place.glob("*.whl"))
    if not found:
        raise FileNotFoundError(f"there are no wheels for Python {OWN_VERSION} in {place}")
    return found


def _platforms() -> list[str]:
    """Options of pip for wheels of all C libraries that dtun runs with, not only of this one."""
    if platform.system() != "Linux":
        return []
    machine = platform.machine()
    names = [f"manylinux_{version}_{machine}" for version in GLIBC] + [f"manylinux2014_{machine}"]
    return [word for name in names for word in ("--platform", name)]


def unpack(wheels: Iterable[Path], target: Path) -> None:
    """Unpack the modules of these wheels to `target`, without their commands.

    The format: https://packaging.python.org/specifications/binary-distribution-format/
    """
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(target)
        for data in target.glob("*.data"):
            for name in ("purelib", "platlib"):
                if (data / name).is_dir():
                    shutil.copytree(data / name, target, dirs_exist_ok=True)
            shutil.rmtree(data)


def is_pure(wheel: Path) -> bool:
    """Whether it has no compiled code and works with any Python."""
    return wheel.name.endswith("-none-any.whl")


def main(arguments: Sequence[str]) -> None:
    if len(arguments) < 2:
        sys.exit("usage: python -m tools.wheels DIRECTORY 3.11 ...")
    download(Path(arguments[0]), arguments[1:])


if __name__ == "__main__":
    main(sys.argv[1:])
