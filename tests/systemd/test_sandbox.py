"""What the units let dtun do, and what not.

Each "not" is seen to work without the walls around it, and each wall is seen to hold on its own.
"""

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.systemd import probe
from tests.systemd.container import Container

PACKAGING = Path(__file__).resolve().parents[2] / "packaging"
UNITS = PACKAGING / "systemd"
NAMES = ["dtun-server.service", "dtun-client.service", "dtun-client@.service"]
NEEDED = {found.__name__ for found in probe.NEEDED}
FORBIDDEN = {found.__name__ for found in probe.FORBIDDEN}
MOST_EXPOSURE = 1.9


@pytest.fixture(scope="module")
def container() -> Iterator[Container]:
    """With everything open that the walls are to close, so that it is not the file modes that refuse."""
    with Container("walls") as made:
        made.write("/etc/sysusers.d/dtun.conf", (PACKAGING / "sysusers" / "dtun.conf").read_text())
        made.run("systemd-sysusers")
        made.write("/opt/probe.py", Path(probe.__file__).read_text())
        made.run("mknod", "-m", "666", "/dev/kmsg", "c", "1", "11")
        made.run("mkdir", "-m", "1777", "/etc/open", "/usr/open", "/results")
        made.write("/home/somebody/file", "")
        yield made


def tried(container: Container, unit: str) -> set[str]:
    """What the probe could do as this unit's service."""
    # The result's place is the one hole in the walls.
    tail = "[Service]\nType=oneshot\nRestart=no\nReadWritePaths=/results\n"
    run = "ExecStart=\nExecStart=/usr/bin/python3 -I /opt/probe.py /results/result\n"
    container.run("rm", "-f", "/results/result")
    container.write("/etc/systemd/system/probe.service", unit)
    container.write("/etc/systemd/system/probe.service.d/probe.conf", tail + run)
    container.run("systemctl", "daemon-reload")
    container.run("systemctl", "start", "probe")
    results: dict[str, bool] = json.loads(container.read("/results/result"))
    assert set(results) == NEEDED | FORBIDDEN
    return {name for name, worked in results.items() if worked}


@pytest.mark.parametrize("name", NAMES)
def test_a_service_can_do_what_it_needs_and_nothing_else(container: Container, name: str) -> None:
    assert tried(container, (UNITS / name).read_text()) == NEEDED


def test_without_the_walls_all_of_it_works(container: Container) -> None:
    assert tried(container, "[Service]\nType=oneshot\n") == NEEDED | FORBIDDEN


@pytest.mark.parametrize(
    ("line", "probes"),
    [
        ("DevicePolicy=closed\nDeviceAllow=/dev/net/tun rw", {"other_device"}),
        (
            "CapabilityBoundingSet=CAP_NET_ADMIN CAP_NET_BIND_SERVICE",
            {"raw_socket", "packet_socket", "mount"},
        ),
        ("MemoryDenyWriteExecute=yes", {"writable_code"}),
        ("ProtectHome=yes", {"read_home"}),
        ("ProtectSystem=strict", {"write_etc", "write_usr"}),
        ("RestrictAddressFamilies=AF_INET AF_INET6 AF_NETLINK AF_UNIX", {"packet_socket"}),
        ("RestrictNamespaces=yes", {"user_namespace", "network_namespace"}),
        ("RestrictSUIDSGID=yes", {"set_user_id_bit"}),
        ("ProtectControlGroups=yes", {"cgroups"}),
        ("ProtectHostname=yes", {"host_name"}),
        (
            "SystemCallFilter=@system-service\nSystemCallFilter=~@privileged @resources",
            {"mount", "host_name"},
        ),
        (
            "SystemCallFilter=~@aio @keyring kcmp process_vm_readv process_vm_writev userfaultfd vmsplice",
            {"io_uring", "fault_handler", "keyring", "other_memory"},
        ),
    ],
)
def test_each_wall_is_one(container: Container, line: str, probes: set[str]) -> None:
    """So that none of them hides that another does not work on this system."""
    for name in NAMES:
        assert line in (UNITS / name).read_text()
    could = tried(container, f"[Service]\nType=oneshot\nSystemCallErrorNumber=EPERM\n{line}\n")
    assert probes.isdisjoint(could)
    assert could >= NEEDED


@pytest.mark.parametrize("name", NAMES)
def test_systemd_finds_little_exposed(name: str, tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is missing")
    unit = tmp_path / name.replace("@.", "@office.")
    shutil.copy(UNITS / name, unit)
    command = ["systemd-analyze", "security", "--offline=yes", "--no-pager", str(unit)]
    said = subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout
    assert float(said.rpartition("exposure level for")[2].split()[1]) <= MOST_EXPOSURE
