"""The launchd jobs have the keys they need, and only keys that launchd knows."""

import plistlib
from pathlib import Path
from typing import Any

import pytest

from dtun.cli import parse

PACKAGING = Path(__file__).resolve().parents[2] / "packaging" / "launchd"
ROLES = ("server", "client")

# The keys of launchd.plist(5) that the jobs use.
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
    # NetworkState is no longer implemented.
    assert found["KeepAlive"] == {"SuccessfulExit": False}
    assert found["ProcessType"] == "Interactive", "unset means throttled"
    assert found["ThrottleInterval"] >= 10
    # 0 means no limit, and a hook may take 30 seconds.
    assert found["ExitTimeOut"] > 30
    assert found["Umask"] == 0o077


@pytest.mark.parametrize("role", ROLES)
def test_it_is_disabled_until_an_administrator_enables_it(role: str) -> None:
    # launchd loads all jobs at each boot, including a server without a configuration.
    assert job(role)["Disabled"] is True


@pytest.mark.parametrize("role", ROLES)
def test_it_runs_dtun_in_the_foreground(role: str) -> None:
    command = job(role)["ProgramArguments"]
    assert command == [
        "/opt/dtun/current/bin/dtun", role, "-c", "/etc/dtun.yaml", "--log-file", f"/var/log/dtun-{role}.log"
    ]  # fmt: skip
    # As dtun parses it.
    arguments = parse(command[1:])
    assert (arguments.command, str(arguments.config)) == (role, "/etc/dtun.yaml")
    assert str(arguments.log_file) == job(role)["StandardErrorPath"] == job(role)["StandardOutPath"]


def test_the_jobs_differ_only_in_their_role() -> None:
    assert len({repr(job(role)).replace(role, "ROLE") for role in ROLES}) == 1


def test_each_log_is_rotated() -> None:
    lines = (PACKAGING / "newsyslog.conf").read_text().splitlines()
    entries = [line.split() for line in lines if not line.startswith("#")]
    assert all(len(entry) == 7 for entry in entries)
    assert {entry[0] for entry in entries} == {job(role)["StandardErrorPath"] for role in ROLES}
    # No process is signalled, and no file is compressed while dtun still writes to it.
    assert {entry[6] for entry in entries} == {"N"}
    assert {entry[2] for entry in entries} == {"640"}
