"""Setting up a checkout: one line of advice where it cannot work; quick where it can."""

import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tools import bootstrap
from tools.bootstrap import Machine, mbedtls_advice

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize(
    "machine",
    [
        Machine((3, 11), "Linux", "x86_64"),
        Machine((3, 12), "Linux", "x86_64"),
        Machine((3, 11), "Darwin", "arm64"),
    ],
)
def test_where_there_is_a_wheel_there_is_nothing_to_say(machine: Machine) -> None:
    assert mbedtls_advice(machine, {}) is None


@pytest.mark.parametrize(
    ("machine", "problem", "remedy"),
    [
        (Machine((3, 13), "Linux", "x86_64"), "no wheel for Python 3.13", "install CPython 3.12 or 3.11"),
        (Machine((3, 14), "Darwin", "arm64"), "no wheel for Python 3.14", "install CPython 3.12 or 3.11"),
        (Machine((3, 11), "Linux", "aarch64"), "no wheel for Linux on aarch64", "apt-get install gcc"),
        (Machine((3, 12), "Linux", "i686"), "no wheel for Linux on i686", "libmbedtls-dev"),
        (Machine((3, 12), "Darwin", "x86_64"), "no wheel for Darwin on x86_64", "DTUN_COMPILE_MBEDTLS=1"),
        (Machine((3, 9), "Linux", "x86_64"), "needs Python 3.11 or 3.12", "install CPython 3.12 or 3.11"),
    ],
)
def test_where_there_is_no_wheel_one_line_says_what_to_do(
    machine: Machine, problem: str, remedy: str
) -> None:
    advice = mbedtls_advice(machine, {})
    assert advice is not None
    assert problem in advice
    assert remedy in advice
    assert "\n" not in advice


@pytest.mark.parametrize(("processor", "advised"), [("arm64", False), ("x86_64", True)])
def test_a_python_for_both_kinds_of_mac(
    processor: str, advised: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    monkeypatch.setattr(platform, "machine", lambda: processor)
    monkeypatch.setattr(sysconfig, "get_platform", lambda: "macosx-10.13-universal2")
    machine = Machine.this()._replace(python=(3, 12))
    assert machine.architecture == processor
    assert bool(mbedtls_advice(machine, {})) is advised


def test_a_32_bit_python_on_a_64_bit_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(sysconfig, "get_platform", lambda: "linux-i686")
    assert Machine.this().architecture == "i686"


def test_who_wants_to_compile_is_let() -> None:
    compile_it = {"DTUN_COMPILE_MBEDTLS": "1"}
    assert mbedtls_advice(Machine((3, 14), "Linux", "aarch64"), compile_it) is None
    assert mbedtls_advice(Machine((3, 10), "Linux", "x86_64"), compile_it) is not None


def test_only_missing_packages_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = tmp_path / "here"
    command.write_text("#!/bin/sh\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    wanted = [
        bootstrap.SystemPackage("present", "here"),
        bootstrap.SystemPackage("absent", "dtun-no-such-command"),
        bootstrap.SystemPackage("present-files", str(tmp_path)),
        bootstrap.SystemPackage("absent-files", str(tmp_path / "nothing")),
    ]
    assert bootstrap.missing_packages(wanted) == ["absent", "absent-files"]


def test_without_root_one_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(shutil, "which", lambda *_args, **_options: "/usr/bin/apt-get")
    with pytest.raises(SystemExit, match=r"run: sudo apt-get install -y nftables iproute2$"):
        bootstrap.install_system_packages(["nftables", "iproute2"])


def test_a_tunnel_that_cannot_be_had_is_named_and_the_others_are_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # An apt-get that has every package but one, and records its arguments.
    apt = tmp_path / "apt-get"
    apt.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\ncase "$*" in *fastd) exit 100;; esac\n')
    apt.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(os, "geteuid", lambda: 0)

    bootstrap.install_available_packages(["fastd", "openvpn"])

    assert "NOT AVAILABLE here, so not measured: fastd\n" in capsys.readouterr().out
    asked = (tmp_path / "asked").read_text().splitlines()
    assert [line.split()[-1] for line in asked] == ["update", "fastd", "openvpn"]


def checkout(directory: Path) -> None:
    """The files that the stamp depends on."""
    (directory / "requirements").mkdir()
    for name in ("dev.txt", "build.txt", "runtime.txt"):
        (directory / "requirements" / name).write_text("pinned==1\n")
    (directory / "pyproject.toml").write_text("[project]\n")
    (directory / ".venv").mkdir()


def test_set_up_runs_again_only_when_something_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkout(tmp_path)
    monkeypatch.setattr(bootstrap, "ROOT", tmp_path)
    monkeypatch.setattr(bootstrap, "VENV", tmp_path / ".venv")
    assert not bootstrap.is_set_up("test")

    (tmp_path / ".venv" / ".dtun-test").write_text(bootstrap.stamp_for("test"))
    assert bootstrap.is_set_up("test")
    assert bootstrap.is_set_up("demo")  # what the tests need holds all that the demo needs

    (tmp_path / "requirements" / "dev.txt").write_text("pinned==2\n")
    assert not bootstrap.is_set_up("test")


def find_python(path: Path, system: str = "no-such-python") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["/bin/sh", ROOT / "tools" / "find-python"],
        check=False,
        capture_output=True,
        text=True,
        env={"PATH": str(path), "SYSTEM_PYTHON": system},
    )


def put_command(path: Path, script: str) -> None:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def put_python(path: Path, version: tuple[int, int]) -> None:
    """A Python that reports another version."""
    pretend = f"import sys; sys.version_info = (*{version}, 0); exec(sys.argv[1])"
    put_command(path, f'exec {sys.executable} -c "{pretend}" "$2"')


def test_a_python_that_does_not_run_is_passed_over(tmp_path: Path) -> None:
    put_command(tmp_path / "python3.12", "echo no such version >&2; exit 127")
    put_python(tmp_path / "python3.11", (3, 11))
    assert find_python(tmp_path).stdout == "python3.11\n"


def test_the_systems_own_python_comes_first_if_it_will_do(tmp_path: Path) -> None:
    own = tmp_path / "own"
    put_python(tmp_path / "python3.12", (3, 12))
    put_python(own, (3, 11))
    assert find_python(tmp_path, str(own)).stdout == f"{own}\n"
    put_python(own, (3, 13))
    assert find_python(tmp_path, str(own)).stdout == "python3.12\n"


def test_without_any_python_it_says_which_to_install(tmp_path: Path) -> None:
    result = find_python(tmp_path)
    assert result.returncode == 1
    assert "Install CPython 3.11 or 3.12" in result.stderr


@pytest.mark.parametrize("version", [(3, 9), (3, 14)])
def test_an_unsuitable_python_is_only_taken_when_there_is_no_other(
    version: tuple[int, int], tmp_path: Path
) -> None:
    put_python(tmp_path / "python3", version)
    assert find_python(tmp_path).stdout == "python3\n"
    put_python(tmp_path / "python", (3, 12))
    assert find_python(tmp_path).stdout == "python\n"


def test_everything_that_is_pinned_has_hashes() -> None:
    for name in ("dev.txt", "build.txt", "runtime.txt"):
        entries = (ROOT / "requirements" / name).read_text().replace("\\\n", "").splitlines()
        pins = [entry for entry in entries if not entry.startswith("#")]
        assert pins
        assert all("==" in pin and "--hash=sha256:" in pin for pin in pins), name
