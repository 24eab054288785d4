"""The lock and the list of routes that a killed process leaves to its successor."""

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
TABLES = st.integers(1, 2**32 - 1)
ENTRIES = (
    st.builds(lambda route, table, kind: replace(route, table=table, kind=kind), ROUTES, TABLES, KINDS)
    | st.builds(
        Rule, st.sampled_from([4, 6]), TABLES, TABLES, st.none() | TABLES, st.none() | st.integers(0, 128)
    )
    | st.builds(SavedSysctl, st.builds(Sysctl, st.text(), st.text()), st.none() | st.text())
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
def test_whatever_comes_and_goes_a_crash_loses_nothing(steps: list[tuple[bool, Entry]], torn: int) -> None:
    """Not even in the middle of a line: what that names was not made yet."""
    with TemporaryDirectory() as directory:
        dead = Journal("demo", Path(directory))
        dead.open()
        held: set[Entry] = set()
        for comes, entry in steps:
            if comes:
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
def test_a_crash_while_the_file_is_begun_leaves_nothing_to_complain_of(tmp_path: Path, written: int) -> None:
    """Between making it and its first line, or in the midst of that: nothing was made yet."""
    (tmp_path / "demo.json").write_bytes(HEADER[:written])
    successor = Journal("demo", tmp_path)
    assert successor.open() == frozenset()
    successor.add([PIN])
    successor.close(keep=True)
    third = Journal("demo", tmp_path)
    assert third.open() == {PIN}
    third.close()


def test_ten_thousand_that_come_and_go_do_not_fill_the_directory(tmp_path: Path) -> None:
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


def test_a_journal_of_the_version_before_is_read_and_brought_up_to_date(tmp_path: Path) -> None:
    path = tmp_path / "demo.json"
    pin = {"destination": "203.0.113.5/32", "device": "eth0", "gateway": "192.0.2.1"}
    path.write_text(json.dumps({"routes": [pin | {"source": None, "metric": None}]}, indent=1) + "\n")
    journal = Journal("demo", tmp_path)
    assert journal.open() == {PIN}
    assert path.read_text().startswith('{"version": 2}\n')
    journal.close()


def test_a_journal_of_a_later_version_is_said_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "demo.json"
    path.write_text('{"version": 3}\nwhatever\n')
    journal = Journal("demo", tmp_path)
    with pytest.raises(UnavailableError, match=r"demo\.json was written by a later dtun"):
        journal.open()
    journal.close(keep=True)
    assert path.exists()


def test_others_notes_of_a_setting_are_found_but_not_ours(tmp_path: Path) -> None:
    setting = Sysctl("net.ipv4.ip_forward", "1")
    one, two = Journal("one", tmp_path), Journal("two", tmp_path)
    one.open()
    two.open()
    one.add([SavedSysctl(setting, "0"), SavedSysctl(Sysctl("net.other", "1"), None)])
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
    # The loser leaves the winner's things alone, even when it closes.
    second.close()
    assert (tmp_path / "demo.json").exists()
    first.close(keep=True)
    assert second.open() == {PIN}
    second.close()


def test_instances_of_other_names_do_not_meet(tmp_path: Path) -> None:
    one, two = Journal("one", tmp_path), Journal("two", tmp_path)
    one.open()
    one.add({PIN})
    assert two.open() == frozenset()
    two.close()
    one.close()


def test_a_lock_on_a_file_that_was_removed_meanwhile_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last owner removes the file between our open and our lock; the next process would lock a new one."""
    journal = Journal("demo", tmp_path)
    answers = iter([False, True])
    real = Journal._is_still_the_file
    monkeypatch.setattr(
        Journal, "_is_still_the_file", lambda self, descriptor: next(answers) and real(self, descriptor)
    )
    journal.open()
    assert next(answers, None) is None, "the second lock was not tried"
    journal.close()


def test_no_instance_name_leads_out_of_the_directory(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    journal = Journal("../../etc/passwd", directory)
    journal.open()
    journal.add({PIN})
    assert len(list(directory.iterdir())) == 2
    journal.close()


def test_a_directory_that_cannot_be_is_said(tmp_path: Path) -> None:
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
    ],
)
def test_a_damaged_journal_is_said_and_kept(tmp_path: Path, content: str) -> None:
    path = tmp_path / "demo.json"
    path.write_bytes(content.encode(errors="surrogateescape"))
    journal = Journal("demo", tmp_path)
    with pytest.raises(UnavailableError, match=r"demo\.json is damaged"):
        journal.open()
    journal.close(keep=True)
    assert path.exists()


def test_the_service_manager_says_where() -> None:
    assert runtime_directory({"RUNTIME_DIRECTORY": "/run/one:/run/two"}) == Path("/run/one")
    assert runtime_directory({}) == DEFAULT_DIRECTORY
