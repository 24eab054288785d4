"""The lock and the journal of an instance."""

import fcntl
import json
from dataclasses import replace
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, strategies as st

from dtun.errors import UnavailableError
from dtun.network.state import Route, Rule, Sysctl
from dtun.platform.entries import HEADER, Entry, FilterTable, SavedSysctl, encode
from dtun.platform.journal import DEFAULT_DIRECTORY, Journal, runtime_directory

PIN = Route(ip_network("203.0.113.5/32"), "eth0", ip_address("192.0.2.1"))
NETWORKS = st.builds(
    IPv4Network, st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 32)), strict=st.just(False)
) | st.builds(IPv6Network, st.tuples(st.integers(0, 2**128 - 1), st.integers(0, 128)), strict=st.just(False))
ROUTES = st.builds(
    Route,
    NETWORKS,
    st.text(min_size=1, max_size=15),
    st.none() | st.ip_addresses(),
    st.none() | st.ip_addresses(),
    st.none() | st.integers(0, 2**32 - 1),
)

KINDS = st.sampled_from(["unicast", "unreachable", "throw"])
SETTINGS = st.sampled_from(
    ["net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding", "net.ipv6.conf.eth0.100.accept_ra"]
)
VALUES = st.sampled_from(["0", "1", "2", "-1"])
TABLES = st.integers(1, 2**32 - 1)
ENTRIES = (
    st.builds(lambda route, table, kind: replace(route, table=table, kind=kind), ROUTES, TABLES, KINDS)
    | st.builds(
        Rule, st.sampled_from([4, 6]), TABLES, TABLES, st.none() | TABLES, st.none() | st.integers(0, 128)
    )
    | st.builds(SavedSysctl, st.builds(Sysctl, SETTINGS, VALUES), st.none() | VALUES)
    | st.builds(FilterTable, st.text())
)


@given(st.frozensets(ENTRIES, max_size=5))
def test_the_successor_finds_exactly_what_was_written(routes: frozenset[Entry]) -> None:
    with TemporaryDirectory() as directory:
        dead = Journal("demo", Path(directory))
        assert dead.open() == frozenset()
        dead.add(routes)
        dead.close(keep=True)
        successor = Journal("demo", Path(directory))
        assert successor.open() == routes
        successor.close()
        assert list(Path(directory).iterdir()) == []


@given(st.lists(st.tuples(st.booleans(), ENTRIES), max_size=20), st.integers(0, 50))
def test_a_crash_loses_no_entry(steps: list[tuple[bool, Entry]], torn: int) -> None:
    """Not even in the middle of a line: what it names was not applied yet."""
    with TemporaryDirectory() as directory:
        dead = Journal("demo", Path(directory))
        dead.open()
        held: set[Entry] = set()
        for added, entry in steps:
            if added:
                dead.add([entry])
                held.add(entry)
            else:
                dead.remove([entry])
                held.discard(entry)
        file = Path(directory) / "demo.json"
        if held:
            with file.open("ab") as end:
                end.write((b'["+", ' + encode(PIN))[: -1 - torn])
        dead.close(keep=True)
        successor = Journal("demo", Path(directory))
        assert successor.open() == held
        assert successor.entries == held
        successor.close()


@pytest.mark.parametrize("written", range(len(HEADER)))
def test_a_crash_before_the_end_of_the_header_leaves_an_empty_journal(tmp_path: Path, written: int) -> None:
    """After creating the file, or within its first line: nothing was applied yet."""
    (tmp_path / "demo.json").write_bytes(HEADER[:written])
    successor = Journal("demo", tmp_path)
    assert successor.open() == frozenset()
    successor.add([PIN])
    successor.close(keep=True)
    third = Journal("demo", tmp_path)
    assert third.open() == {PIN}
    third.close()


def test_obsolete_lines_are_removed(tmp_path: Path) -> None:
    journal = Journal("demo", tmp_path)
    journal.open()
    journal.add([PIN])
    others = [replace(PIN, metric=metric) for metric in range(1, 10_001)]
    for first in range(0, len(others), 100):
        journal.add(others[first : first + 100])
        journal.remove(others[first : first + 100])
    assert (tmp_path / "demo.json").read_bytes().count(b"\n") < 3000
    journal.close(keep=True)
    assert Journal("demo", tmp_path).open() == {PIN}


def test_a_journal_of_the_previous_version_is_converted(tmp_path: Path) -> None:
    path = tmp_path / "demo.json"
    pin = {"destination": "203.0.113.5/32", "device": "eth0", "gateway": "192.0.2.1"}
    path.write_text(json.dumps({"routes": [pin | {"source": None, "metric": None}]}, indent=1) + "\n")
    journal = Journal("demo", tmp_path)
    assert journal.open() == {PIN}
    assert path.read_text().startswith('{"version": 2}\n')
    journal.close()


def test_a_journal_of_a_later_version_is_reported_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "demo.json"
    path.write_text('{"version": 3}\nwhatever\n')
    journal = Journal("demo", tmp_path)
    with pytest.raises(UnavailableError, match=r"demo\.json was written by a later version of dtun"):
        journal.open()
    journal.close(keep=True)
    assert path.exists()


def test_entries_of_other_instances_for_a_setting(tmp_path: Path) -> None:
    setting = Sysctl("net.ipv4.ip_forward", "1")
    one, two = Journal("one", tmp_path), Journal("two", tmp_path)
    one.open()
    two.open()
    one.add([SavedSysctl(setting, "0"), SavedSysctl(Sysctl("net.ipv6.conf.all.forwarding", "1"), None)])
    (tmp_path / "broken.json").write_text("{")
    assert one.saved_by_others(setting.name) == []
    assert two.saved_by_others(setting.name) == [SavedSysctl(setting, "0")]
    one.close()
    two.close()


def test_an_instance_runs_once(tmp_path: Path) -> None:
    first, second = Journal("demo", tmp_path), Journal("demo", tmp_path)
    first.open()
    first.add({PIN})
    with pytest.raises(UnavailableError, match="running already as 'demo'") as caught:
        second.open()
    assert str(caught.value).endswith(
        "; stop it first, or give this one another runtime_directory (server) or tun (client)"
    )
    # The second one does not touch the files of the first, even when it closes.
    second.close()
    assert (tmp_path / "demo.json").exists()
    first.close(keep=True)
    assert second.open() == {PIN}
    second.close()


def test_instances_with_other_names_are_independent(tmp_path: Path) -> None:
    one, two = Journal("one", tmp_path), Journal("two", tmp_path)
    one.open()
    one.add({PIN})
    assert two.open() == frozenset()
    two.close()
    one.close()


def test_a_lock_on_a_deleted_file_is_retried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last owner deletes the file between our open and our lock; the next process would lock a new one."""
    lock = tmp_path / "demo.lock"
    real = fcntl.flock
    deleted: list[int] = []

    def flock(descriptor: int, operation: int) -> None:
        if not deleted:
            lock.unlink()
            deleted.append(descriptor)
        real(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    journal = Journal("demo", tmp_path)
    journal.open()
    assert deleted
    with pytest.raises(UnavailableError, match="running already"):
        Journal("demo", tmp_path).open()
    journal.close()


def test_an_instance_name_cannot_leave_the_directory(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    journal = Journal("../../etc/passwd", directory)
    journal.open()
    journal.add({PIN})
    assert len(list(directory.iterdir())) == 2
    journal.close()


def test_an_unusable_directory_is_reported(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(
        UnavailableError, match=r"cannot use the runtime directory .*/file/run: not a directory"
    ):
        Journal("demo", file / "run").open()


@pytest.mark.parametrize(
    "content",
    [
        "{]",
        "[]",
        '{"version": 2}\n["*", "table", "x"]\n',
        '{"version": 2}\n["+", "chair", "x"]\n',
        '{"routes": [{}]}',
        '{"routes": [{"destination": "x"}]}',
        "\udc80",
        pytest.param("[" * 100_000, id="deep"),
        pytest.param('{"version": 2}\n' + "[" * 100_000 + "\n", id="deep line"),
    ],
)
def test_a_damaged_journal_is_put_aside(
    tmp_path: Path, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "demo.json"
    path.write_bytes(content.encode(errors="surrogateescape"))
    journal = Journal("demo", tmp_path)
    assert journal.open() == frozenset()
    assert f"{path} is damaged and was put aside as demo.json.damaged" in caplog.text
    journal.close()
    assert [file.name for file in tmp_path.iterdir()] == ["demo.json.damaged"]


def test_the_service_manager_sets_the_directory() -> None:
    assert runtime_directory({"RUNTIME_DIRECTORY": "/run/one:/run/two"}) == Path("/run/one")
    assert runtime_directory({}) == DEFAULT_DIRECTORY
