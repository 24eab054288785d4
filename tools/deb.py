"""Build dist/dtun_VERSION_ARCH.deb (see tools/version.py), which needs no network to be installed. Run by `make deb`.

    /usr/bin/dtun                 imports from the directories for its Python
    /usr/lib/dtun/common/         dtun, and packages without compiled code
    /usr/lib/dtun/python3.11/     compiled packages, for each Python: all of PYTHONS if this Python is one of them, as
                                  on Debian 12 and Ubuntu 24.04; else this Python only, as on Debian 13
    units, manual pages ...       tools/layout.py

The packages come from PyPI by requirements/runtime.txt, or from a directory of wheels (`--wheels`, see
tools/wheels.py). Of Debian's tools, only dpkg-deb is used.
"""

import argparse
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tools import bootstrap, layout, machine, wheels
from tools.version import package_version

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ROOT / "packaging" / "deb"
PYTHONS = ("3.11", "3.12")  # Debian 12; Ubuntu 24.04
LIBC = "2.36"  # of Debian 12; see GLIBC in tools/wheels.py
LIBRARY = "/usr/lib/dtun"
LAUNCHER = layout.launcher("/usr/bin/python3", f"{LIBRARY}/common", f"{LIBRARY}/python{{version}}")


def build(
    output: Path, wheel_directory: Path, versions: Sequence[str] = PYTHONS, *, compression: str = "xz"
) -> Path:
    """Build the package in `output`; returns its path. `wheel_directory` has a directory for each version.

    Raises:
        FileNotFoundError: the wheels for one of the versions, or dpkg-deb, are missing.
    """
    architecture = _output("dpkg", "--print-architecture")
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory, "root")
        root.mkdir(mode=0o755)
        _library(root / LIBRARY[1:], wheel_directory, versions)
        for path, text in layout.linux(layout.PACKAGE).items():
            _write(root / path[1:], text)
        _write(root / "usr/bin/dtun", LAUNCHER, 0o755)
        _write(root / "usr/share/doc/dtun/copyright", (ROOT / "LICENSE").read_text())
        version = package_version()
        _control(root, version, architecture, versions)
        output.mkdir(parents=True, exist_ok=True)
        package = output / f"dtun_{version}_{architecture}.deb"
        command = ["dpkg-deb", "--root-owner-group", f"-Z{compression}", "--build", str(root), str(package)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return package


def _library(library: Path, wheel_directory: Path, versions: Sequence[str]) -> None:
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "dtun", library / "common" / "dtun", ignore=ignored)
    for version in versions:
        found = sorted((wheel_directory / version).glob("*.whl"))
        if not found:
            raise FileNotFoundError(f"no wheels in {wheel_directory / version}")
        wheels.unpack(filter(wheels.is_pure, found), library / "common")
        compiled = [wheel for wheel in found if not wheels.is_pure(wheel)]
        wheels.unpack(compiled, library / f"python{version}")


def _control(root: Path, version: str, architecture: str, versions: Sequence[str]) -> None:
    control = root / "DEBIAN"
    size = sum(path.stat().st_size for path in root.rglob("*") if path.is_file()) // 1024
    major, _, minor = versions[-1].partition(".")
    values = {
        "VERSION": version,
        "ARCHITECTURE": architecture,
        "SIZE": str(size),
        "LIBC": LIBC if set(versions) <= set(PYTHONS) else platform.libc_ver()[1],
        "OLDEST": versions[0],
        "BEYOND": f"{major}.{int(minor) + 1}",
        "PYTHONS": " and ".join(versions),
    }
    text = (SCRIPTS / "control").read_text()
    for name, value in values.items():
        text = text.replace(f"@{name}@", value)
    _write(control / "control", text)
    for name in ("postinst", "prerm", "postrm"):
        _write(control / name, (SCRIPTS / name).read_text(), 0o755)


def _write(path: Path, text: str, mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)


def _output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def main() -> None:
    own = wheels.OWN_VERSION
    compiler = not wheels.is_on_pypi(own)
    versions = PYTHONS if own in PYTHONS and not compiler else (own,)
    parser = argparse.ArgumentParser(prog="make deb", description="Build a Debian package of this tree.")
    parser.add_argument("--wheels", type=Path, help="take the packages from here, not from PyPI")
    parser.add_argument("--output", type=Path, default=ROOT / "dist")
    arguments = parser.parse_args()
    if shutil.which("dpkg-deb") is None:
        sys.exit("deb: dpkg-deb is missing; run it on Debian or Ubuntu")
    if arguments.wheels is None and (
        problems := [p for version in versions for p in wheels.problems(version)]
    ):
        sys.exit("\n  ".join(["deb: nothing was built:", *problems]))
    with tempfile.TemporaryDirectory() as directory:
        try:
            if arguments.wheels is None:
                lacking = machine.missing_packages(compiler=compiler)
                if lacking:
                    bootstrap.install_system_packages(lacking)
                print(
                    f"Fetching the packages that dtun needs, for Python {' and '.join(versions)} ...",
                    flush=True,
                )
                wheels.download(Path(directory), versions)
            if compiler:
                wheels.compiled(arguments.wheels or Path(directory))
            package = build(arguments.output, arguments.wheels or Path(directory), versions)
        except (OSError, subprocess.CalledProcessError) as error:
            sys.exit(f"deb: {error}")
    print(f"{package}\nInstall it with: sudo apt install {package}")


if __name__ == "__main__":
    main()
