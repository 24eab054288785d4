"""systemd understands every line of our unit files."""

import shutil
import subprocess
from pathlib import Path

import pytest

UNITS = Path(__file__).resolve().parents[2] / "packaging" / "systemd"
NAMES = ["dtun-server.service", "dtun-client.service", "dtun-client@.service"]


def verify(directory: Path, name: str) -> str:
    """What systemd has to complain about in a unit file."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is missing")
    # An instance of the template; and dtun itself need not be installed on this host.
    path = directory / name.replace("@.", "@office.")
    text = (directory / name).read_text().replace("=dtun ", "=/bin/true ").replace("=-dtun ", "=-/bin/true ")
    path.write_text(text)
    command = ["systemd-analyze", "verify", "--man=no", str(path)]
    result = subprocess.run(command, check=False, capture_output=True, text=True, timeout=30)
    # The host's own units are not our business.
    return "".join(line for line in result.stderr.splitlines(keepends=True) if "dtun" in line)


@pytest.mark.parametrize("name", NAMES)
def test_a_unit_file_verifies(name: str, tmp_path: Path) -> None:
    shutil.copy(UNITS / name, tmp_path)
    assert verify(tmp_path, name) == ""


def test_the_socket_unit_verifies(tmp_path: Path) -> None:
    shutil.copy(UNITS / "dtun-server.service", tmp_path)
    assert verify(tmp_path, "dtun-server.service") == ""
    name = "dtun-server.socket"
    text = (UNITS / name).read_text()
    (tmp_path / name).write_text(text)
    assert verify(tmp_path, name) == ""
    (tmp_path / name).write_text(text.replace("BindIPv6Only=", "BindIPv6Onlly="))
    assert "BindIPv6Onlly" in verify(tmp_path, name)


@pytest.mark.parametrize("name", NAMES)
def test_a_mistake_would_be_noticed(name: str, tmp_path: Path) -> None:
    text = (UNITS / name).read_text()
    (tmp_path / name).write_text(text.replace("NoNewPrivileges=", "NoNewPrivilege="))
    assert "NoNewPrivilege" in verify(tmp_path, name)


def test_the_units_confine_dtun_alike() -> None:
    confinements = {(UNITS / name).read_text().partition("RestartSec")[2] for name in NAMES}
    assert len(confinements) == 1
