"""Installing, updating and removing dtun on a fresh Debian: from the tree, and from the package."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.systemd.container import Container
from tests.systemd.package import fetched_wheels, install_package

REPOSITORY = Path(__file__).resolve().parents[2]
# What `make install` and `make uninstall` run, with the Python and in the directory that make would.
INSTALL = ("env", "-C", "/src", "/usr/bin/python3", "-B", "-m", "tools.install")
UNINSTALL = (*INSTALL[:-1], "tools.uninstall")
KEY = "key\n"


@pytest.fixture
def fresh() -> Iterator[Container]:
    """A fresh system with a checkout in /src."""
    with Container("fresh") as container:
        ignored = shutil.ignore_patterns("__pycache__")
        for name in ("dtun", "etc", "packaging", "requirements", "tools"):
            shutil.copytree(REPOSITORY / name, container.root / "src" / name, ignore=ignored)
        shutil.copytree(fetched_wheels(), container.root / "wheels")
        yield container


def of_dtun(container: Container) -> set[str]:
    """Every file of dtun's outside of the checkout."""
    found = container.run("find", "/", "-xdev", "-name", "*dtun*", "-not", "-path", "/src/*").split()
    return set(found) - {"/root/dtun.deb"}


def mode(container: Container, path: str) -> str:
    return container.run("stat", "-c", "%U:%G %a", path).strip()


def start_a_server(container: Container) -> None:
    container.run("dtun", "genkey", "-o", "/etc/dtun/home.key")
    assert mode(container, "/etc/dtun/home.key") == "root:dtun 640"
    container.run("systemctl", "enable", "--now", "dtun-server")
    assert "0 of 1 clients connected" in container.run("systemctl", "status", "dtun-server")


def test_make_install_says_everything_that_is_missing(fresh: Container) -> None:
    before = of_dtun(fresh)
    done = fresh.complete(*INSTALL)
    assert done.returncode != 0
    assert "apt install python3.11-venv" in done.stderr
    done = fresh.complete("setpriv", "--reuid=nobody", *INSTALL)
    assert "sudo make install" in done.stderr
    assert "apt install python3.11-venv" in done.stderr
    assert of_dtun(fresh) == before


def test_make_install_update_and_uninstall(fresh: Container) -> None:
    before = of_dtun(fresh)
    assert "edit /etc/dtun.yaml" in fresh.run(*INSTALL, "--wheels", "/wheels", timeout=60)
    assert mode(fresh, "/etc/dtun.yaml") == "root:dtun 640"
    assert mode(fresh, "/etc/dtun") == "root:dtun 2750"
    start_a_server(fresh)
    pid = fresh.show("dtun-server", "MainPID")
    config = fresh.read("/etc/dtun.yaml") + "# mine\n"
    fresh.write("/etc/dtun.yaml", config, 0o640, "root:dtun")

    # A newer tree: the program and the example are new, the configuration is as it was, the service is the new one.
    fresh.run("sed", "-i", "s/__version__ = .*/__version__ = '9.9.9'/", "/src/dtun/__init__.py")
    fresh.run("sh", "-c", "echo '# newer' >> /src/etc/dtun.yaml.example")
    for _ in range(2):
        fresh.run(*INSTALL, "--wheels", "/wheels", timeout=60)
    assert fresh.run("dtun", "--version") == "dtun 9.9.9\n"
    assert fresh.read("/etc/dtun.yaml") == config
    assert fresh.read("/etc/dtun.yaml.example").endswith("# newer\n")
    assert fresh.show("dtun-server", "MainPID") not in {"0", pid}
    assert fresh.run("ls", "/opt/dtun").split() == ["2", "3", "current"]

    said = fresh.run(*UNINSTALL)
    assert "Left in place: /etc/dtun.yaml, /etc/dtun, /var/lib/dtun" in said
    assert of_dtun(fresh) - before == {"/etc/dtun", "/etc/dtun.yaml", "/var/lib/dtun"}
    assert fresh.read("/etc/dtun.yaml") == config
    assert fresh.read("/etc/dtun/home.key")
    assert fresh.complete("systemctl", "cat", "dtun-server").returncode != 0

    fresh.run(*UNINSTALL, "--purge")
    assert of_dtun(fresh) == before
    assert fresh.complete("id", "dtun").returncode != 0


def test_an_installation_that_fails_leaves_the_one_before_at_work(fresh: Container) -> None:
    fresh.run(*INSTALL, "--wheels", "/wheels", timeout=60)
    start_a_server(fresh)
    pid = fresh.show("dtun-server", "MainPID")
    fresh.run("sh", "-c", "echo 'not Python' >> /src/dtun/cli/__init__.py")
    assert fresh.complete(*INSTALL, "--wheels", "/wheels", timeout=60).returncode != 0
    assert fresh.run("ls", "/opt/dtun").split() == ["1", "current"]
    assert fresh.run("dtun", "--version").startswith("dtun ")
    assert fresh.show("dtun-server", "MainPID") == pid


def test_the_package_is_installed_updated_removed_and_purged(fresh: Container) -> None:
    before = of_dtun(fresh)
    install_package(fresh)
    assert mode(fresh, "/etc/dtun.yaml") == "root:dtun 640"
    assert fresh.show("dtun-server", "ActiveState") == "inactive"
    start_a_server(fresh)
    pid = fresh.show("dtun-server", "MainPID")
    config = fresh.read("/etc/dtun.yaml") + "# mine\n"
    fresh.write("/etc/dtun.yaml", config, 0o640, "root:dtun")

    fresh.run("dpkg", "-i", "/root/dtun.deb", timeout=60)
    assert fresh.read("/etc/dtun.yaml") == config
    assert fresh.show("dtun-server", "MainPID") not in {"0", pid}
    assert fresh.show("dtun-client", "ActiveState") == "inactive"
    assert "dtun is installed as a Debian package" in fresh.complete(*INSTALL, "--wheels", "/wheels").stderr

    fresh.run("systemctl", "stop", "dtun-server")
    fresh.run("systemctl", "enable", "--now", "dtun-server.socket")
    fresh.run("systemctl", "start", "dtun-server")
    fresh.run("dpkg", "-r", "dtun")
    for unit in ("dtun-server.socket", "dtun-server.service"):
        assert fresh.complete("systemctl", "is-active", unit).stdout == "inactive\n"
    left = {name for name in of_dtun(fresh) - before if not name.startswith("/var/lib/dpkg/")}
    assert left == {"/etc/dtun", "/etc/dtun.yaml", "/var/lib/dtun"}
    fresh.run("dpkg", "-P", "dtun")
    assert of_dtun(fresh) == before
    assert fresh.complete("id", "dtun").returncode != 0
