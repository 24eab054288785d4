"""The launchd jobs say what they have to, in words that launchd knows."""

import plistlib
from pathlib import Path
from typing import Any

import pytest

from dtun.cli import parse

PACKAGING = Path(__file__).resolve().parents[2] / "packaging" / "launchd"
ROLES = ("server", "client")

# launchd.plist(5), as far as we have use for it.
KNOWN = {
    "Label": str,
    "ProgramArguments": list,
    "Disabled": bool,
    "RunAtLoad": bool,
    "KeepAlive": dict,
    "ThrottleInterval": int,
    "ExitTimeOut": int,
    "ProcessType": str,
    "SoftResourceLimits": dict,
    "Umask": int,
    "StandardOutPath": str,
    "StandardErrorPath": str,
}


def job(role: str) -> dict[str, Any]:
    path = PACKAGING / f"org.dtun.{role}.plist"
    loaded: dict[str, Any] = plistlib.loads(path.read_bytes())
    assert loaded["Label"] == path.stem
    return loaded


@pytest.mark.parametrize("role", ROLES)
def test_every_key_is_known_and_of_its_type(role: str) -> None:
    assert {key: type(value) for key, value in job(role).items()} == KNOWN


@pytest.mark.parametrize("role", ROLES)
def test_it_is_kept_running(role: str) -> None:
    found = job(role)
    assert found["RunAtLoad"] is True
    # NetworkState means nothing any more.
    assert found["KeepAlive"] == {"SuccessfulExit": False}
    assert found["ProcessType"] == "Interactive", "unset means throttled"
    assert found["ThrottleInterval"] >= 10
    # 0 is for ever; and a hook may take its 30 seconds.
    assert found["ExitTimeOut"] > 30
    assert found["Umask"] == 0o077


@pytest.mark.parametrize("role", ROLES)
def test_it_waits_for_somebody_to_enable_it(role: str) -> None:
    # launchd loads all that lies there at each boot, a server without a configuration for one, too.
    assert job(role)["Disabled"] is True


@pytest.mark.parametrize("role", ROLES)
def test_it_runs_dtun_in_the_foreground(role: str) -> None:
    command = job(role)["ProgramArguments"]
    assert command == [
        "/usr/local/bin/dtun", role, "-c", "/etc/dtun.yaml", "--log-file", f"/var/log/dtun-{role}.log"
    ]  # fmt: skip
    # As dtun itself understands it.
    arguments = parse(command[1:])
    assert (arguments.command, str(arguments.config)) == (role, "/etc/dtun.yaml")
    assert str(arguments.log_file) == job(role)["StandardErrorPath"] == job(role)["StandardOutPath"]


def test_the_jobs_differ_in_their_role_alone() -> None:
    assert len({repr(job(role)).replace(role, "ROLE") for role in ROLES}) == 1


def test_each_log_is_rotated() -> None:
    lines = (PACKAGING / "newsyslog.conf").read_text().splitlines()
    entries = [line.split() for line in lines if not line.startswith("#")]
    assert all(len(entry) == 7 for entry in entries)
    assert {entry[0] for entry in entries} == {job(role)["StandardErrorPath"] for role in ROLES}
    # Nobody is signalled, and nothing is packed while dtun writes the last line to it.
    assert {entry[6] for entry in entries} == {"N"}
    assert {entry[2] for entry in entries} == {"640"}
