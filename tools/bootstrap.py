"""Set up a checkout: system packages, .venv, locked Python packages, dtun itself (editable).

`bootstrap.py test` installs everything that the tests and linters use, `bootstrap.py demo` what the demo uses,
`bootstrap.py bench` also the tunnels that dtun is compared with, if they are available.
`bootstrap.py install` only checks that Python is new enough for tools/install.py.
A stamp in .venv records what was installed, so that the next run has nothing to do.

Standard library only, and no syntax newer than Python 3.7, so that an unsuitable Python gets as far as the message
about it.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import time
import venv
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, NoReturn

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
REQUIREMENTS = {"test": ["dev.txt"], "demo": ["build.txt", "runtime.txt"]}

_UNREACHABLE = (
    "Temporary failure in name resolution", "Name or service not known", "nodename nor servname provided",
    "Temporary failure resolving", "Could not resolve", "Network is unreachable", "No route to host",
    "Connection refused", "timed out", "Could not connect", "Cannot connect to proxy", "Tunnel connection failed",
    "CERTIFICATE_VERIFY_FAILED",
)  # fmt: skip
_HOST = r"host='([^']+)'|resolving '([^']+)'|resolve '([^']+)'|connect to (\S+?):|https?://([^/\s:]+)"
_NO_COMPILER = (
    r"(unable to execute '\S+'|command '\S*(?:gcc|cc|clang)\S*' failed: No such file|gcc: not found)"
)

# Set to compile python-mbedtls from source; see `mbedtls_advice`.
COMPILE_VARIABLE = "DTUN_COMPILE_MBEDTLS"


class SystemPackage(NamedTuple):
    """A Debian package, and a probe that finds it or its equivalent on another system."""

    name: str
    probe: str  # a command, or an absolute path


DEMO_PACKAGES = [
    SystemPackage("iproute2", "ip"),
    SystemPackage("iputils-ping", "ping"),
    SystemPackage("nftables", "nft"),
]
TEST_PACKAGES = [
    *DEMO_PACKAGES,
    SystemPackage("debootstrap", "debootstrap"),
    SystemPackage("dbus", "dbus-daemon"),
    SystemPackage("debian-archive-keyring", "/usr/share/keyrings/debian-archive-keyring.gpg"),
    SystemPackage("ethtool", "ethtool"),
    SystemPackage("gcc", "gcc"),
    SystemPackage("golang-go", "go"),
    SystemPackage("golang-github-pion-dtls.v2-dev", "/usr/share/gocode/src/github.com/pion/dtls/v2"),
    SystemPackage("groff-base", "groff"),
    SystemPackage("iperf3", "iperf3"),
    SystemPackage("libc6-dev", "/usr/include/stdio.h"),
    SystemPackage("openssl", "openssl"),
    SystemPackage("procps", "ps"),
    SystemPackage("systemd", "systemd-analyze"),
    SystemPackage("tcpdump", "tcpdump"),
]
BENCH_PACKAGES = [
    *DEMO_PACKAGES,
    SystemPackage("gcc", "gcc"),
    SystemPackage("iperf3", "iperf3"),
    SystemPackage("libc6-dev", "/usr/include/stdio.h"),
]
# The benchmark skips those that are not available.
BENCH_PEERS = [
    SystemPackage("fastd", "fastd"),
    SystemPackage("openssl", "openssl"),
    SystemPackage("openvpn", "openvpn"),
    SystemPackage("wireguard-go", "wireguard-go"),
    SystemPackage("wireguard-tools", "wg"),
]
SYSTEM_PACKAGES = {"test": TEST_PACKAGES, "bench": BENCH_PACKAGES, "demo": DEMO_PACKAGES}


class Machine(NamedTuple):
    """The properties that decide whether python-mbedtls has a wheel."""

    python: tuple[int, int]
    system: str  # as platform.system() has it
    architecture: str  # as platform.machine() has it

    @classmethod
    def this(cls) -> Machine:
        system = platform.system()
        # The architecture of the interpreter: a 32-bit Python may run on a 64-bit kernel.
        architecture = sysconfig.get_platform().rsplit("-", 1)[-1]
        if system == "Darwin":
            # The Python of python.org is for both kinds of Mac, "universal2".
            architecture = platform.machine()
        return cls(sys.version_info[:2], system, architecture)


def mbedtls_advice(machine: Machine, environment: Mapping[str, str]) -> str | None:
    """The advice for a machine where pip would compile python-mbedtls, as one line; None elsewhere."""
    version = "{}.{}".format(*machine.python)
    another = "install CPython 3.12 or 3.11 and run make again (with PYTHON=... if it is not on the PATH)"
    if machine.python < (3, 11):
        return f"dtun needs Python 3.11 or 3.12 and this is {version}: {another}"
    if environment.get(COMPILE_VARIABLE):
        return None
    by_hand = (
        "install a C compiler and the Mbed TLS 2.28 headers (Debian 12: apt-get install gcc python3-dev "
        f"libmbedtls-dev) and set {COMPILE_VARIABLE}=1"
    )
    if machine.python > (3, 12):
        return f"python-mbedtls has no wheel for Python {version}: {another}; or {by_hand}."
    if (machine.system, machine.architecture) not in {("Linux", "x86_64"), ("Darwin", "arm64")}:
        return f"python-mbedtls has no wheel for {machine.system} on {machine.architecture}: {by_hand}."
    return None


def missing_packages(wanted: Sequence[SystemPackage]) -> list[str]:
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])

    def present(probe: str) -> bool:
        return Path(probe).exists() if probe.startswith("/") else shutil.which(probe, path=path) is not None

    missing = [package.name for package in wanted if not present(package.probe)]
    if not has_this_python(VENV) and importlib.util.find_spec("ensurepip") is None:
        # Debian has ensurepip in a package of its own.
        missing.append("python{}.{}-venv".format(*sys.version_info))
    return missing


def install_system_packages(missing: Sequence[str]) -> None:
    apt = shutil.which("apt-get")
    if apt is None:
        stop(f"please install what Debian calls: {' '.join(missing)}")
    if os.geteuid() != 0:
        stop(f"system packages are missing; run: sudo apt-get install -y {' '.join(missing)}")
    say(f"Installing system packages: {' '.join(missing)}")
    run(apt_command(apt, "update"))
    run(apt_command(apt, "install", *missing))


def install_available_packages(missing: Sequence[str]) -> None:
    """Install the packages one by one; print which are not available."""
    apt = shutil.which("apt-get")
    if apt is None or os.geteuid() != 0:
        say(f"NOT INSTALLED, so not measured: what Debian calls {' '.join(missing)}")
        return
    attempt(apt_command(apt, "update"))
    for name in missing:
        say(f"Installing {name}")
        if attempt(apt_command(apt, "install", name)).returncode != 0:
            say(f"NOT AVAILABLE here, so not measured: {name}")


def apt_command(apt: str, what: str, *names: str) -> list[str]:
    # Wait for another apt, which may be running after a boot.
    options = ["-qq", "-y", "--no-install-recommends", "-o", "DPkg::Lock::Timeout=300"]
    return [apt, *options, what, *names]


def run(command: Sequence[str]) -> None:
    """Run without input. Exit with its output if it fails."""
    result = attempt(command)
    if result.returncode != 0:
        rest = "" if _known_reason(result.stdout) else f"\nAll that it said:\n{result.stdout}"
        stop(explain(command, result.stdout) + rest)


def explain(command: Sequence[str], output: str) -> str:
    """One sentence about a failed command, by its output: what, where, what to do."""
    known = _known_reason(output)
    if known is not None:
        return known
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"(ERROR|E|error|fatal error):", line)]
    said = (errors or lines or ["it said nothing"])[-1]
    return f"{shlex.join(command[:4])} ... has failed: {said}"


def _known_reason(output: str) -> str | None:
    reason = next((text for text in _UNREACHABLE if text in output), None)
    if reason is not None:
        found = re.search(_HOST, output)
        host = next((part for part in found.groups() if part), "") if found else ""
        return (
            f"cannot fetch packages: {host or 'the package index'} cannot be reached ({reason});"
            " check this machine's network, DNS and proxy ($https_proxy), and run it again"
        )
    if "DO NOT MATCH THE HASHES" in output:
        return (
            "a package is not the one that requirements/ names, so nothing was installed;"
            " does a proxy or a mirror change packages?"
        )
    missing = re.search(r"No matching distribution found for (\S+)", output)
    if missing:
        return f"the package index has no {missing[1]} for this Python and machine; does a mirror lack it?"
    version = "{}.{}".format(*sys.version_info)
    if "Python.h: No such file" in output:
        return f"the headers of Python {version} are missing; run: apt-get install python{version}-dev"
    if re.search(_NO_COMPILER, output):
        return f"there is no C compiler; run: apt-get install gcc libc6-dev python{version}-dev"
    return None


def attempt(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run without input. A failure is not an error."""
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    return subprocess.run(
        command,
        check=False,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
    )


def stamp_for(profile: str) -> str:
    """A digest of everything that .venv depends on. The set-up runs again if it changes."""
    digest = hashlib.sha256(repr((sys.version_info[:3], str(ROOT))).encode())
    for name in [f"requirements/{file}" for file in REQUIREMENTS[profile]] + ["pyproject.toml"]:
        digest.update((ROOT / name).read_bytes())
    return digest.hexdigest()


def is_set_up(profile: str) -> bool:
    # The environment of the tests includes that of the demo.
    for candidate in dict.fromkeys((profile, "test")):
        stamp = VENV / f".dtun-{candidate}"
        if stamp.is_file() and stamp.read_text() == stamp_for(candidate):
            return True
    return False


def has_this_python(venv_directory: Path) -> bool:
    config = venv_directory / "pyvenv.cfg"
    return config.is_file() and {
        f"version = {platform.python_version()}",
        f"home = {Path(sys.executable).parent}",
    } <= set(config.read_text().splitlines())


def set_up_venv(profile: str) -> None:
    begin = time.monotonic()
    say(f"Setting up .venv with Python {platform.python_version()} ...")
    # Rebuild an environment of another Python; update one of this Python.
    same_python = has_this_python(VENV)
    for stamp in VENV.glob(".dtun-*"):
        stamp.unlink()
    venv.create(VENV, with_pip=True, clear=not same_python, symlinks=True)

    pip = [str(VENV / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "--no-input", "--quiet"]
    files = [
        argument for name in REQUIREMENTS[profile] for argument in ("-r", str(ROOT / "requirements" / name))
    ]
    binary = [] if os.environ.get(COMPILE_VARIABLE) else ["--only-binary", "python-mbedtls"]
    run([*pip, "install", "--require-hashes", *binary, *files])
    # setuptools is a locked package, so the build fetches nothing unpinned.
    run([*pip, "install", "--no-deps", "--no-build-isolation", "--editable", str(ROOT)])
    (VENV / f".dtun-{profile}").write_text(stamp_for(profile))
    say(f"Set up in {time.monotonic() - begin:.0f} s.")


def say(message: str) -> None:
    print(message, flush=True)


def stop(message: str) -> NoReturn:
    sys.exit(f"set-up: {message}")


def main(arguments: Sequence[str]) -> None:
    if len(arguments) != 1 or arguments[0] not in {*SYSTEM_PACKAGES, "install"}:
        stop("usage: bootstrap.py test|bench|demo|install")
    profile = arguments[0]
    # The installer compiles python-mbedtls where it can; tools/install.py checks that.
    compile_it = {COMPILE_VARIABLE: "1"} if profile == "install" else os.environ
    advice = mbedtls_advice(Machine.this(), compile_it)
    if advice is not None:
        stop(advice)
    if profile == "install":
        return
    if platform.system() == "Linux":
        missing = missing_packages(SYSTEM_PACKAGES[profile])
        if missing:
            install_system_packages(missing)
        absent = missing_packages(BENCH_PEERS) if profile == "bench" else []
        if absent:
            install_available_packages(absent)
    # The benchmark runs in the environment of the tests, which has the profiler.
    environment = "demo" if profile == "demo" else "test"
    if not is_set_up(environment):
        set_up_venv(environment)


if __name__ == "__main__":
    main(sys.argv[1:])
