"""What root does with files in the service's directories, after somebody has taken the service over."""

import os
import socket
from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv4Network
from pathlib import Path

import pytest

from dtun.errors import UnavailableError
from dtun.network.state import Rule, Sysctl
from dtun.owned_files import OwnedDirectory, UntrustedFileError
from dtun.platform.entries import HEADER, SavedSysctl
from dtun.platform.journal import Journal
from dtun.server.leases import Leases

FORWARDING = SavedSysctl(Sysctl("net.ipv4.ip_forward", "1"), "0")
RULE = Rule(4, 7217, 7217, 7217, None)
NOBODY = 65534

Trap = Callable[[Path, Path], None]


def symlink(trap: Path, target: Path) -> None:
    trap.symlink_to(target)


def hard_link(trap: Path, target: Path) -> None:
    trap.hardlink_to(target)


def fifo(trap: Path, target: Path) -> None:
    del target
    os.mkfifo(trap)


def directory(trap: Path, target: Path) -> None:
    del target
    trap.mkdir()


def listening(trap: Path, target: Path) -> None:
    del target
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(trap))


TRAPS = [symlink, hard_link, fifo, directory, listening]


@pytest.fixture
def runtime(tmp_path: Path) -> Path:
    made = tmp_path / "run"
    made.mkdir()
    return made


@pytest.fixture
def precious(tmp_path: Path) -> Path:
    """A file of root's elsewhere."""
    path = tmp_path / "shadow"
    path.write_bytes(HEADER)
    path.chmod(0o600)
    return path


def is_untouched(precious: Path) -> bool:
    return precious.read_bytes() == HEADER and precious.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("trap", TRAPS)
@pytest.mark.parametrize("name", ["server.json", "server.lock"])
def test_a_trap_in_place_of_a_file_is_refused_by_name(
    runtime: Path, precious: Path, name: str, trap: Trap
) -> None:
    trap(runtime / name, precious)
    with pytest.raises(UnavailableError, match=name.replace(".", r"\.") + r" (is|has)|runtime directory"):
        Journal("server", runtime).open()
    assert is_untouched(precious)


@pytest.mark.parametrize("trap", [symlink, hard_link, fifo])
def test_a_trap_in_place_of_a_draft_is_replaced(runtime: Path, precious: Path, trap: Trap) -> None:
    trap(runtime / "server.new", precious)
    journal = Journal("server", runtime)
    journal.open()
    for priority in range(600):  # more obsolete lines than are left in the file
        journal.add([RULE, replace(RULE, priority=priority)])
        journal.remove([replace(RULE, priority=priority)])
    journal.close(keep=True)
    successor = Journal("server", runtime)
    assert successor.open() == {RULE}
    successor.close()
    assert is_untouched(precious)


@pytest.mark.parametrize("trap", TRAPS)
def test_a_trap_that_is_set_while_it_runs(runtime: Path, precious: Path, trap: Trap) -> None:
    journal = Journal("server", runtime)
    journal.open()
    trap(runtime / "server.json", precious)
    with pytest.raises(UnavailableError, match="cannot write"):
        journal.add([RULE])
    assert is_untouched(precious)
    journal.close(keep=True)


@pytest.mark.parametrize("trap", TRAPS)
def test_traps_named_like_the_journals_of_others_are_passed_over(
    runtime: Path, precious: Path, trap: Trap
) -> None:
    trap(runtime / "other.json", precious)
    journal = Journal("server", runtime)
    journal.open()
    assert journal.saved_by_others("net.ipv4.ip_forward") == []
    journal.close()


@pytest.mark.parametrize("trap", TRAPS)
def test_traps_for_the_leases(runtime: Path, precious: Path, trap: Trap) -> None:
    for name in ("leases.json", "leases.new"):
        trap(runtime / name, precious)
    leases = Leases(IPv4Network("10.86.0.0/24"), None, fixed={}, fixed6={}, path=runtime / "leases.json")
    leases.pair("demo", lambda _: True)
    assert is_untouched(precious)


@pytest.mark.parametrize(
    "line",
    [
        '["+", "sysctl", "kernel.core_pattern", "|/tmp/evil", "core"]',
        '["+", "sysctl", "kernel.core_pattern", "1", "0"]',
        '["+", "sysctl", "net.ipv4.ip_forward", "1", "|/tmp/evil"]',
        '["+", "sysctl", "net.ipv4.ip_forward", "1\\n2", "0"]',
        '["+", "sysctl", "net.ipv6.conf.all/../../../kernel.accept_ra", "1", "0"]',
        '["+", "sysctl", "net.ipv6.conf...accept_ra.forwarding", "1", "0"]',
        '["+", "sysctl", "net.ipv4.ip_forward", "1", 0]',
        '["+", "rule", 4, 7217, 7217, "x", null]',
        "[" * 100_000,
    ],
)
def test_a_journal_says_nothing_but_what_dtun_may_have_done(
    runtime: Path, line: str, caplog: pytest.LogCaptureFixture
) -> None:
    (runtime / "server.json").write_bytes(HEADER + line.encode() + b"\n")
    journal = Journal("server", runtime)
    assert journal.open() == frozenset(), "none of it is believed"
    assert "server.json is damaged and was put aside" in caplog.text
    journal.close()


def test_somebody_who_holds_the_lock_holds_up_nobody_for_ever(
    runtime: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    monkeypatch.setattr("dtun.platform.journal.LOCK_TIMEOUT", 0.01)
    journal = Journal("server", runtime)
    journal.open()
    descriptor = os.open(runtime, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with pytest.raises(UnavailableError, match="locked by another process"), journal.exclusive():
        pass
    os.close(descriptor)
    with journal.exclusive():
        pass
    journal.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_what_root_makes_belongs_to_the_owner_of_the_directory(runtime: Path) -> None:
    os.chown(runtime, NOBODY, NOBODY)
    journal = Journal("server", runtime)
    journal.open()
    journal.add([RULE])
    assert {path.stat().st_uid for path in runtime.iterdir()} == {NOBODY}
    OwnedDirectory(runtime).replace("leases.json", b"{}")
    assert (runtime / "leases.json").stat().st_uid == NOBODY
    journal.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
@pytest.mark.parametrize("owner", [0, 1])
def test_files_of_others_in_the_services_directory_are_refused(runtime: Path, owner: int) -> None:
    (runtime / "server.json").write_bytes(HEADER)
    os.chown(runtime, NOBODY, NOBODY)
    os.chown(runtime / "server.json", owner, owner)
    with pytest.raises(UntrustedFileError, match="another user"):
        OwnedDirectory(runtime).read("server.json")


def test_a_directory_that_the_administrator_has_moved_is_found(runtime: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(runtime)
    OwnedDirectory(tmp_path / "link").replace("leases.json", b"{}")
    assert (runtime / "leases.json").read_bytes() == b"{}"


def test_a_file_without_end_is_not_read_into_memory(runtime: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dtun.owned_files.MAX_SIZE", 10)
    (runtime / "server.json").write_bytes(bytes(11))
    with pytest.raises(UntrustedFileError, match="too large"):
        OwnedDirectory(runtime).read("server.json")
