"""Installing, updating and removing dtun on a fresh Debian 12 and 13: from the tree, and from the package."""

import json
import shutil
from collections.abc import Iterator

import pytest

import dtun
from tests.systemd.container import Container
from tests.systemd.package import PYTHONS, copy_checkout, fetched_wheels, install_package, system
from tests.systemd.pair import installed_pair

# What `make install` and `make uninstall` run, with the Python and in the directory that make would.
INSTALL = ("env", "-C", "/src", "/usr/bin/python3", "-B", "-m", "tools.install")
UNINSTALL = (*INSTALL[:-1], "tools.uninstall")
FROM_WHEELS = (*INSTALL, "--wheels", "/wheels")
# Written by systemd and dpkg in passing, or a list of what is there.
IN_PASSING = (
    "/etc/.pwd.lock",
    "/var/cache/",
    "/var/lib/apt/",
    "/var/lib/dpkg/",
    "/var/lib/systemd/",
    "/var/log/",
    "/var/tmp/",
)


@pytest.fixture(params=list(PYTHONS))
def suite(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def fresh(suite: str) -> Iterator[Container]:
    """A fresh system with a checkout in /src."""
    with fresh_system(suite) as container:
        yield container


def fresh_system(suite: str) -> Container:
    wheels = fetched_wheels(suite)
    container = Container(suite, system=system(suite))
    copy_checkout(container)
    shutil.copytree(wheels, container.root / "wheels")
    return container


def everything(container: Container) -> set[str]:
    """Every file and directory, but for what comes and goes on its own."""
    found = container.run("find", "/etc", "/opt", "/root", "/usr", "/var", "-xdev").splitlines()
    # adduser and its like keep the file before, as passwd-.
    return {path for path in found if not path.startswith(IN_PASSING) and not path.endswith("-")}


def mode(container: Container, path: str) -> str:
    return container.run("stat", "-c", "%U:%G %a", path).strip()


def start_a_server(container: Container) -> None:
    """All that the manual says is to be done after an installation, with the example as the configuration."""
    container.run("dtun", "genkey", "-o", "/etc/dtun/home.key")
    assert mode(container, "/etc/dtun/home.key") == "root:dtun 640"
    container.run("systemctl", "enable", "--now", "dtun-server")
    assert "0 of 1 clients connected" in container.run("systemctl", "status", "dtun-server")


def test_make_install_says_everything_that_is_missing() -> None:
    with fresh_system("bookworm") as fresh:
        # There is no network here to get it from, and nothing to wait for in vain.
        fresh.write("/etc/apt/sources.list", "")
        before = everything(fresh)
        as_nobody = fresh.complete("setpriv", "--reuid=nobody", *INSTALL)
        assert "nothing was installed:\n  root is needed; run: sudo make install\n" in as_nobody.stderr
        as_root = fresh.complete(*INSTALL)
        assert "Installing system packages: python3.11-venv\n" in as_root.stdout
        assert "has failed: E: Package 'python3.11-venv' has no installation candidate\n" in as_root.stderr
        assert "Traceback" not in as_nobody.stderr + as_root.stderr
        assert everything(fresh) == before


def test_make_install_update_and_uninstall(fresh: Container) -> None:
    before = everything(fresh)
    assert "edit /etc/dtun.yaml" in fresh.run(*FROM_WHEELS, timeout=60)
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
        fresh.run(*FROM_WHEELS, timeout=60)
    assert fresh.run("dtun", "--version") == "dtun 9.9.9\n"
    assert fresh.read("/etc/dtun.yaml") == config
    assert fresh.read("/etc/dtun.yaml.example").endswith("# newer\n")
    assert fresh.show("dtun-server", "MainPID") not in {"0", pid}
    assert fresh.run("ls", "/opt/dtun").split() == ["2", "3", "current", "directories"]

    said = fresh.run(*UNINSTALL)
    assert "Left in place: /etc/dtun.yaml, /etc/dtun, /var/lib/dtun" in said
    kept = {"/etc/dtun", "/etc/dtun/home.key", "/etc/dtun.yaml", "/var/lib/dtun"}
    assert {path for path in everything(fresh) - before if "leases" not in path} == kept
    assert fresh.read("/etc/dtun.yaml") == config
    assert fresh.complete("systemctl", "cat", "dtun-server").returncode != 0

    fresh.run(*UNINSTALL, "--purge")
    assert everything(fresh) == before
    assert fresh.complete("id", "dtun").returncode != 0
    for group in ("dtun", "dtun-admin"):
        assert fresh.complete("getent", "group", group).returncode != 0


def test_an_installation_that_fails_leaves_the_one_before_at_work(fresh: Container) -> None:
    fresh.run(*FROM_WHEELS, timeout=60)
    start_a_server(fresh)
    pid = fresh.show("dtun-server", "MainPID")
    before = everything(fresh)
    fresh.run("sh", "-c", "echo 'not Python' >> /src/dtun/cli/__init__.py")
    assert fresh.complete(*FROM_WHEELS, timeout=60).returncode != 0
    assert everything(fresh) == before
    assert fresh.run("dtun", "--version") == f"dtun {dtun.__version__}\n"
    assert fresh.show("dtun-server", "MainPID") == pid


def test_what_is_put_into_etc_dtun_is_the_services_to_read(fresh: Container) -> None:
    fresh.run(*FROM_WHEELS, timeout=60)
    # What `scp -p` does with a key of the other end, and an editor with a new file.
    fresh.write("/root/office.key", "text\n", 0o640)
    fresh.run("cp", "--preserve=mode", "/root/office.key", "/etc/dtun/office.key")
    fresh.run("sh", "-c", "umask 077; echo text > /etc/dtun/office.yaml")
    assert mode(fresh, "/etc/dtun/office.key") == "root:dtun 640"
    # The one that is for its owner alone, as at the next start of the system.
    fresh.run("systemd-tmpfiles", "--create", "dtun.conf")
    assert mode(fresh, "/etc/dtun/office.yaml") == "root:dtun 640"
    stranger = ("setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", "cat")
    assert fresh.complete(*stranger, "/etc/dtun/office.key").returncode != 0


def test_after_an_upgrade_of_the_systems_python_it_says_what_to_do(fresh: Container, suite: str) -> None:
    fresh.run(*FROM_WHEELS, timeout=60)
    library = "/opt/dtun/1/lib/python"
    fresh.run("mv", library + PYTHONS[suite], library + "3.10")
    done = fresh.complete("dtun", "--version")
    assert done.returncode == 69
    assert "it was not installed for this Python" in done.stderr
    assert "Traceback" not in done.stderr
    fresh.run(*FROM_WHEELS, timeout=60)
    assert fresh.run("dtun", "--version") == f"dtun {dtun.__version__}\n"


def test_the_package_is_installed_updated_removed_and_purged(
    fresh: Container, suite: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = everything(fresh)
    install_package(fresh, suite)
    assert mode(fresh, "/etc/dtun.yaml") == "root:dtun 640"
    assert mode(fresh, "/etc/dtun") == "root:dtun 2750"
    assert fresh.show("dtun-server", "ActiveState") == "inactive"
    start_a_server(fresh)
    pid = fresh.show("dtun-server", "MainPID")
    config = fresh.read("/etc/dtun.yaml") + "# mine\n"
    fresh.write("/etc/dtun.yaml", config, 0o640, "root:dtun")

    monkeypatch.setattr(dtun, "__version__", "9.9.9")
    install_package(fresh, suite)
    assert fresh.run("dpkg-query", "--show", "dtun").startswith("dtun\t9.9.9+")
    assert fresh.read("/etc/dtun.yaml") == config
    assert fresh.show("dtun-server", "MainPID") not in {"0", pid}
    assert fresh.show("dtun-client", "ActiveState") == "inactive"
    assert "dtun is installed as a Debian package" in fresh.complete(*FROM_WHEELS).stderr

    fresh.run("systemctl", "stop", "dtun-server")
    fresh.run("systemctl", "enable", "--now", "dtun-server.socket")
    fresh.run("systemctl", "start", "dtun-server")
    fresh.run("dpkg", "-r", "dtun")
    for unit in ("dtun-server.socket", "dtun-server.service"):
        assert fresh.complete("systemctl", "is-active", unit).stdout == "inactive\n"
    kept = {"/etc/dtun", "/etc/dtun/home.key", "/etc/dtun.yaml", "/var/lib/dtun", "/root/dtun.deb"}
    assert {path for path in everything(fresh) - before if "leases" not in path} == kept
    fresh.run("dpkg", "-P", "dtun")
    assert everything(fresh) - before == {"/root/dtun.deb"}
    assert fresh.complete("id", "dtun").returncode != 0
    assert fresh.complete("getent", "group", "dtun-admin").returncode != 0


@pytest.mark.parametrize(("server", "client"), [("trixie", "bookworm"), ("bookworm", "trixie")])
def test_debian_12_and_13_talk(server: str, client: str) -> None:
    """With python-mbedtls from PyPI at one end and compiled at the other; records leave Mbed TLS at both."""
    with installed_pair(server, client) as pair:
        for machine in (pair.server, pair.client):
            (tunnel,) = json.loads(machine.container.run("dtun", "status", "--json"))["tunnels"]
            assert tunnel["offloaded"] is True
            assert tunnel["suite"] == "ECDHE-PSK-CHACHA20-POLY1305"
