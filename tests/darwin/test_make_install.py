"""`make install` and `make uninstall` on a simulated Mac: a directory, and a launchctl that records its calls."""

import os
import plistlib
import re
import subprocess
import sys
import zipfile
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tools import launchd, ownership

HERE = Path(__file__).parent
LOCK = HERE.parents[1] / "requirements" / "runtime.txt"

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root may install")


class Mac:
    """Directories like a Mac's below `root`, with a launchctl first in PATH."""

    def __init__(self, directory: Path, wheels: Path) -> None:
        self.root, self.state, tools = (directory / name for name in ("root", "launchd", "bin"))
        for path in (self.root, self.state, tools):
            path.mkdir()
        for name in ("etc", "var/log", "var/run", "var/db"):
            (self.root / name).mkdir(parents=True)
        launchctl = tools / "launchctl"
        launchctl.write_text(f'#!/bin/sh\nexec {sys.executable} {HERE / "fake_launchctl.py"} "$@"\n')
        launchctl.chmod(0o755)
        self.wheels = wheels
        self.environment = {
            "PATH": f"{tools}:{os.environ['PATH']}",
            "FAKE_LAUNCHD": str(self.state),
            "PYTHONDONTWRITEBYTECODE": "1",
        }

    def make(self, command: str, *options: str) -> subprocess.CompletedProcess[str]:
        """Run it with the system's own Python, as `make` does."""
        python = Path(sys.base_prefix) / "bin" / "python{}.{}".format(*sys.version_info)
        return subprocess.run(
            [python, HERE / "make_install.py", self.root, command, *options],
            env=self.environment, capture_output=True, text=True, check=False, timeout=100,
        )  # fmt: skip

    def install(self, *options: str) -> str:
        done = self.make("install", "--wheels", str(self.wheels), *options)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def uninstall(self, *options: str) -> str:
        done = self.make("uninstall", *options)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def calls(self) -> list[str]:
        """The changing calls of launchctl since the last call of this method."""
        path = self.state / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return [line.replace(str(self.root), "") for line in lines if not line.startswith("print ")]

    def loaded(self) -> list[str]:
        return sorted(path.name for path in self.state.glob("loaded/*"))

    def files(self) -> dict[str, tuple[int, int, int]]:
        """Owner, group and mode of each file outside of /opt/dtun."""
        return {
            f"/{path.relative_to(self.root)}": (
                (status := path.lstat()).st_uid,
                status.st_gid,
                status.st_mode & 0o777,
            )
            for path in self.root.rglob("*")
            if path.is_file() and not path.is_relative_to(self.root / "opt")
        }

    def configure_a_client(self) -> None:
        key = self.root / "etc/dtun/mac.key"
        if not key.exists():
            subprocess.run([self.root / "usr/local/bin/dtun", "genkey", "-o", key], check=True, timeout=60)
        section = f"{{servers: [192.0.2.1], id: mac, key_file: {key}}}"
        (self.root / "etc/dtun.yaml").write_text(f"client: {section}\n")


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This environment's packages as one wheel: an archive of the contents of site-packages."""
    directory = tmp_path_factory.mktemp("wheels")
    version = directory / "{}.{}".format(*sys.version_info)
    version.mkdir()
    pins = re.findall(r"^([^\s#-][^\\\n]*)", LOCK.read_text(), re.MULTILINE)
    wanted = [Requirement(pin.strip()) for pin in pins]
    with zipfile.ZipFile(version / "all-0-py3-none-any.whl", "w") as archive:
        for package in wanted:
            if package.marker is None or package.marker.evaluate():
                for file in distribution(package.name).files or ():
                    if ".." not in file.parts and "__pycache__" not in file.parts:
                        archive.write(str(file.locate()), str(file))
    return directory


@pytest.fixture
def mac(tmp_path: Path, wheels: Path) -> Mac:
    return Mac(tmp_path, wheels)


def test_from_nothing_to_a_running_job_and_back(mac: Mac) -> None:
    before = mac.files()
    said = mac.install()
    assert "sudo make install INSTALL='--start client'" in said
    plain = (0, 0, 0o644)
    assert mac.files() == {
        "/Library/LaunchDaemons/org.dtun.client.plist": plain,
        "/Library/LaunchDaemons/org.dtun.server.plist": plain,
        "/etc/newsyslog.d/dtun.conf": plain,
        "/etc/dtun.yaml.example": plain,
        "/etc/dtun.yaml": (0, 0, 0o600),
        "/usr/local/bin/dtun": (0, 0, 0o777),  # a link
        "/usr/local/share/man/man5/dtun.yaml.5": plain,
        "/usr/local/share/man/man8/dtun.8": plain,
        "/usr/local/share/zsh/site-functions/_dtun": plain,
    }
    assert (mac.root / "etc/dtun").stat().st_mode & 0o777 == 0o700
    assert mac.calls() == [], "nothing starts without a configuration"

    # The job is started only with a valid configuration for its role.
    mac.configure_a_client()
    assert mac.files()["/etc/dtun/mac.key"] == (0, 0, 0o600)
    done = mac.make("install", "--wheels", str(mac.wheels), "--start", "server")
    assert done.returncode != 0
    assert "is for a client, not for a server" in done.stderr
    assert mac.calls() == []
    mac.install("--start", "client")
    bootstrap = "bootstrap system /Library/LaunchDaemons/org.dtun.client.plist"
    assert mac.calls() == ["enable system/org.dtun.client", bootstrap]
    assert mac.loaded() == ["org.dtun.client"]

    # An update restarts it with the new version, and keeps configuration and keys.
    key = (mac.root / "etc/dtun/mac.key").read_bytes()
    job = mac.root / "Library/LaunchDaemons/org.dtun.client.plist"
    job.write_text(job.read_text().replace("<integer>45</integer>", "<integer>46</integer>"))
    mac.install()
    assert mac.calls() == ["bootout system/org.dtun.client", bootstrap]
    assert plistlib.loads((mac.state / "loaded/org.dtun.client").read_bytes())["ExitTimeOut"] == 45
    assert (mac.root / "etc/dtun/mac.key").read_bytes() == key
    assert len(list((mac.root / "opt/dtun").glob("[0-9]*"))) == 2, "this one and the one before"

    # Uninstalling keeps configuration, keys and logs.
    (mac.root / "var/log/dtun-client.log.0").touch()
    said = mac.uninstall()
    assert mac.calls() == [
        "disable system/org.dtun.server", "bootout system/org.dtun.client", "disable system/org.dtun.client"
    ]  # fmt: skip
    assert mac.loaded() == []
    assert set(mac.files()) == {"/etc/dtun.yaml", "/etc/dtun/mac.key", "/var/log/dtun-client.log.0"}
    assert not (mac.root / "opt/dtun").exists()
    assert all(
        f"{mac.root}/{name}" in said for name in ("etc/dtun.yaml", "etc/dtun", "var/log/dtun-client.log.0")
    )
    mac.uninstall("--purge")
    assert mac.files() == before


def test_a_job_that_does_not_end_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        calls.append(command[1])
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(launchd, "PATIENCE", 0.1)
    monkeypatch.setattr(launchd, "INTERVAL", 0.01)
    with pytest.raises(
        launchd.LaunchdError, match=r"org\.dtun\.server does not end; see /var/log/dtun-server\.log"
    ):
        launchd.remove()
    assert "disable" not in calls


def test_a_python_of_another_user_is_reported(tmp_path: Path) -> None:
    theirs = tmp_path / "python"
    theirs.touch()
    os.chown(theirs, 1, 1)
    (tmp_path / "link").symlink_to(theirs)
    assert ownership.warnings([Path("/bin/sh")]) == []
    (warning,) = ownership.warnings([tmp_path / "link"])
    assert warning.startswith(f"{theirs} belongs to {theirs.owner()}, and so does")


def test_a_link_in_the_directory_of_another_user_is_reported(tmp_path: Path) -> None:
    theirs = tmp_path / "bin"
    theirs.mkdir()
    os.chown(theirs, 1, 1)
    (theirs / "python3.12").symlink_to(framework(tmp_path)[0])
    (tmp_path / "python").symlink_to("bin/python3.12")
    (warning,) = ownership.warnings([tmp_path / "python"])
    assert warning.startswith(f"{theirs} belongs to {theirs.owner()}, and so does")


def framework(directory: Path, mode: int = 0o755) -> list[Path]:
    """A Python as the installer of python.org places it: interpreter, shared library and standard library."""
    version = directory / "Python.framework/Versions/3.12"
    found = [version / "bin/python3.12", version / "Python", version / "lib/python3.12"]
    (found[2] / "site-packages").mkdir(parents=True)
    (version / "bin").mkdir()
    for file in (*found[:2], found[2] / "os.py"):
        file.touch(mode=0o644)
    for path in (directory / "Python.framework").rglob("*"):
        path.chmod(path.stat().st_mode & ~0o022 | mode & 0o022)
    (directory / "Python.framework").chmod(mode)
    return found


def test_a_python_that_a_group_can_change_is_reported(tmp_path: Path) -> None:
    (warning,) = ownership.warnings(framework(tmp_path, 0o775))
    top = tmp_path / "Python.framework"
    assert warning.startswith(f"{top} can be changed by the group root, and with it")
    assert warning.endswith(f"sudo chmod -R go-w {top}")


@pytest.mark.parametrize(
    "which", ["bin/python3.12", "bin", "Python", "lib/python3.12", "lib/python3.12/os.py", ""]
)
def test_each_part_of_a_python_matters(tmp_path: Path, which: str) -> None:
    found = framework(tmp_path)
    assert ownership.warnings(found) == []
    changeable = tmp_path / "Python.framework/Versions/3.12" / which
    changeable.chmod(0o777)
    (warning,) = ownership.warnings(found)
    assert warning.startswith(f"{changeable} can be changed by everybody")


def test_other_packages_of_that_python_do_not_matter(tmp_path: Path) -> None:
    found = framework(tmp_path)
    (found[2] / "site-packages").chmod(0o777)
    assert ownership.warnings(found) == []


def test_the_parts_of_this_python() -> None:
    found = ownership.python_files()
    assert {Path(sys.executable), Path(os.__file__).parent} <= set(found)
