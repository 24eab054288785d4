"""What a person gets who has made a mistake: one line that says what, where and what to do, and an exit code."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from daemon import Daemon, make_key
from snapshots import changes, snapshot
from topology import Host, Topology, wait_for

pytestmark = pytest.mark.netns

SERVER = "198.51.100.1"
UNAVAILABLE, NO_PERMISSION, BAD_CONFIG = 69, 77, 78


def fails(host: Host, directory: Path, document: dict[str, Any], *before: str) -> tuple[int, str]:
    """Start it, and expect it to end by itself: its exit code, and what it said without the notes of success."""
    (role,) = document
    document[role] |= {"runtime_directory": str(directory / "run")}
    if role == "server":
        document[role] |= {"state_directory": str(directory / "state")}
    config = directory / "broken.yaml"
    config.write_text(yaml.safe_dump(document))
    process = host.python("-m", "dtun", role, "-c", str(config), before=before, stderr=subprocess.PIPE)
    _, errors = process.communicate(timeout=30)
    return process.returncode, "\n".join(line for line in errors.splitlines() if " info: " not in line)


@pytest.fixture
def host(net: Topology) -> Host:
    return net.host("host")


@pytest.fixture
def key(tmp_path: Path) -> str:
    return str(make_key(tmp_path))


def a_server(key: str, **settings: Any) -> dict[str, Any]:
    return {"server": {"clients": {"demo": {"key_file": key}}, **settings}}


def a_client(key: str, **settings: Any) -> dict[str, Any]:
    return {"client": {"servers": [SERVER], "id": "demo", "key_file": key, **settings}}


def test_a_port_that_is_taken(host: Host, tmp_path: Path, key: str) -> None:
    holder = (
        "import socket, time; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(('', 443));"
        "print('held', flush=True); time.sleep(60)"
    )
    other = host.python("-c", holder, stdout=subprocess.PIPE)
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n"

    code, said = fails(host, tmp_path, a_server(key))

    assert code == UNAVAILABLE
    assert said == (
        "dtun: listen: UDP port 0.0.0.0:443 is taken by another program; stop that one or choose another port"
    )
    assert "dtun-demo" not in host.ip("link")


def test_an_address_that_this_host_does_not_have(host: Host, tmp_path: Path, key: str) -> None:
    code, said = fails(host, tmp_path, a_server(key, listen=["192.0.2.9"]))

    assert code == UNAVAILABLE
    assert said.startswith("dtun: listen: this host has no address 192.0.2.9;")


@pytest.mark.parametrize("make", [a_server, a_client])
def test_no_right_to_change_the_network(host: Host, tmp_path: Path, key: str, make: Any) -> None:
    without = ("setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin", "--")

    code, said = fails(host, tmp_path, make(key), *without)

    assert code == NO_PERMISSION
    assert "CAP_NET_ADMIN" in said
    assert len(said.splitlines()) == 1


def test_no_tun_driver(host: Host, tmp_path: Path, key: str) -> None:
    hide = 'mount --make-rprivate / && mount -t tmpfs tmpfs /dev/net && exec "$@"'
    code, said = fails(host, tmp_path, a_client(key), "unshare", "--mount", "sh", "-c", hide, "sh")

    assert code == UNAVAILABLE
    assert "/dev/net/tun" in said
    assert len(said.splitlines()) == 1


def test_a_device_name_that_is_taken(host: Host, tmp_path: Path, key: str) -> None:
    host.ip("tuntap add mode tun name dtun0")

    code, said = fails(host, tmp_path, a_client(key))

    assert code == UNAVAILABLE
    assert "dtun0" in said
    assert len(said.splitlines()) == 1


def test_a_second_instance_on_one_host(host: Host, tmp_path: Path, key: str) -> None:
    first = Daemon(host, "client", a_client(key)["client"], tmp_path)
    document = a_client(key)
    document["client"]["runtime_directory"] = first.section["runtime_directory"]
    second = tmp_path / "second.yaml"
    second.write_text(yaml.safe_dump(document))

    process = host.python("-m", "dtun", "client", "-c", str(second), stderr=subprocess.PIPE)
    _, errors = process.communicate(timeout=30)

    assert process.returncode == UNAVAILABLE
    assert len(errors.splitlines()) == 1
    assert first.ask() is not None


def test_a_key_file_that_others_can_read(host: Host, tmp_path: Path, key: str) -> None:
    Path(key).chmod(0o644)

    code, said = fails(host, tmp_path, a_client(key))

    assert code == BAD_CONFIG
    assert f"chmod 600 {key}" in said
    assert Path(key).read_text().strip() not in said


@pytest.mark.parametrize(
    ("line", "settings", "told"),
    [
        ("192.0.2.300/24", {}, "around.txt:2: '192.0.2.300/24' is not a network"),
        (
            "192.0.2.0/24",
            {"routes": ["192.0.2.0/24"]},
            "192.0.2.0/24 is in two lists: it cannot go both through the tunnel and around it",
        ),
        (
            "192.0.2.0/24",
            {"subnets": ["198.51.96.0/19"]},
            "packets to the server would go through the tunnel in a loop",
        ),
    ],
    ids=["a broken line", "in two lists", "a loop"],
)
def test_a_list_that_is_wrong_stops_before_anything_is_changed(
    host: Host, tmp_path: Path, key: str, line: str, settings: dict[str, object], told: str
) -> None:
    networks = tmp_path / "around.txt"
    networks.write_text(f"# ours\n{line}\n203.0.113.0/24\n")
    before = snapshot(host)

    code, said = fails(host, tmp_path, a_client(key, bypass_files=[str(networks)], **settings))

    assert code == BAD_CONFIG
    assert told in said
    assert re.search(r"broken\.yaml:\d+:\d+: |around\.txt:2: ", said), said
    assert changes(before, snapshot(host)) == ""


def test_a_name_that_does_not_resolve_is_said_and_tried_again(host: Host, tmp_path: Path, key: str) -> None:
    client = Daemon(host, "client", a_client(key, servers=["nowhere.invalid"])["client"], tmp_path)

    client.wait_log("no session: nowhere.invalid: cannot resolve the name: ")

    assert client.process.poll() is None
    wait_for(lambda: client.tunnel()["last_error"], "the error in the status")


def test_a_full_pool_is_said_on_both_sides(net: Topology, tmp_path: Path, key: str) -> None:
    left, right = net.host("left"), net.host("right")
    net.cable(left, "eth0", right, "eth0", f"{SERVER}/24", "198.51.100.2/24")
    section = {"clients": {"*": {"key_file": key}}, "pool": "10.86.0.0/30"}
    server = Daemon(left, "server", section, tmp_path)
    first = Daemon(right, "client", a_client(key)["client"], tmp_path)
    first.wait_connected()

    second = Daemon(right, "client", a_client(key, id="second", tun="dtun1")["client"], tmp_path)

    second.wait_log("the server's address pool 10.86.0.0/30 is full")
    server.wait_log("second: refused, the address pool 10.86.0.0/30 is full")
    assert server.tunnel("demo")["state"] == "connected"


def test_sessions_without_a_common_suite_say_so(net: Topology, tmp_path: Path, key: str) -> None:
    left, right = net.host("left"), net.host("right")
    net.cable(left, "eth0", right, "eth0", f"{SERVER}/24", "198.51.100.2/24")
    Daemon(left, "server", a_server(key, suites=["PSK-AES-128-GCM"])["server"], tmp_path)
    client = Daemon(right, "client", a_client(key)["client"], tmp_path)

    client.wait_log("suite")
