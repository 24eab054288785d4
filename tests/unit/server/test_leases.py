"""Who gets which address, and keeps it."""

import json
import logging
import os
import stat
from collections.abc import Collection
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from dtun.server.leases import Leases, PoolFullError

POOL = IPv4Network("10.86.0.0/16")
POOL6 = IPv6Network("fd00:86::/64")


def make(
    pool: IPv4Network = POOL,
    pool6: IPv6Network | None = None,
    *,
    fixed: dict[str, str] | None = None,
    fixed6: dict[str, str] | None = None,
    path: Path | None = None,
) -> Leases:
    return Leases(
        pool,
        pool6,
        fixed={name: IPv4Address(text) for name, text in (fixed or {}).items()},
        fixed6={name: IPv6Address(text) for name, text in (fixed6 or {}).items()},
        path=path,
    )


def give(leases: Leases, name: str, in_use: Collection[str] = ()) -> str:
    return str(leases.pair(name, lambda other: other in in_use).peer)


def none_in_use(_: str) -> bool:
    return False


def test_addresses_are_given_in_order_behind_the_servers_and_kept() -> None:
    leases = make()
    assert [give(leases, name) for name in ("a", "b", "a", "c")] == [
        "10.86.0.2",
        "10.86.0.3",
        "10.86.0.2",
        "10.86.0.4",
    ]
    assert str(leases.pair("a", none_in_use).local) == "10.86.0.1"


def test_a_lease_outlives_the_server(tmp_path: Path) -> None:
    path = tmp_path / "state" / "leases.json"
    first = make(path=path)
    before = [give(first, name) for name in ("a", "b")]
    second = make(path=path)
    assert [give(second, name) for name in ("c", "b", "a")] == ["10.86.0.4", *reversed(before)]
    assert [file.name for file in path.parent.iterdir()] == ["leases.json"]


def test_the_file_of_leases_is_private(tmp_path: Path) -> None:
    path = tmp_path / "lib" / "state" / "leases.json"
    old_mask = os.umask(0o022)
    try:
        path.parent.parent.mkdir()
        give(make(path=path), "a")
        assert [stat.S_IMODE(made.stat().st_mode) for made in (path, path.parent)] == [0o600, 0o700]
        path.with_suffix(".new").touch(0o644)  # as a crash may have left it
        give(make(path=path), "b")
    finally:
        os.umask(old_mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_fixed_address_is_not_leased(tmp_path: Path) -> None:
    path = tmp_path / "leases.json"
    leases = make(fixed={"f": "10.86.0.2"}, path=path)
    assert [give(leases, name) for name in ("a", "f")] == ["10.86.0.3", "10.86.0.2"]
    assert list(json.loads(path.read_text())["leases"]) == ["a"]


def test_an_address_that_was_leased_and_is_fixed_now_belongs_to_the_fixed_one(tmp_path: Path) -> None:
    path = tmp_path / "leases.json"
    assert give(make(path=path), "a") == "10.86.0.2"
    leases = make(path=path, fixed={"f": "10.86.0.2"})
    assert give(leases, "f") == "10.86.0.2"
    assert give(leases, "a") == "10.86.0.3"


@pytest.mark.parametrize(("prefix", "clients"), [("10.0.0.0/29", 5), ("10.0.0.0/30", 1), ("10.0.0.0/31", 0)])
def test_a_small_pool_serves_as_many_as_it_has_host_addresses(prefix: str, clients: int) -> None:
    leases = make(IPv4Network(prefix))
    names = [str(number) for number in range(clients)]
    given_out = {give(leases, name, names) for name in names}
    assert given_out == {f"10.0.0.{number + 2}" for number in range(clients)}
    with pytest.raises(PoolFullError):
        give(leases, "one more", names)


def test_a_full_pool_takes_the_lease_that_was_unused_for_longest() -> None:
    leases = make(IPv4Network("10.0.0.0/29"))
    for name in "abcde":
        give(leases, name)
    leases.used("a")  # was connected for long, and has just left
    assert give(leases, "new", in_use={"b"}) == "10.0.0.4", "that of c: b is here, a was here till now"
    assert give(leases, "b", in_use={"b"}) == "10.0.0.3"
    with pytest.raises(PoolFullError):
        give(leases, "c", in_use={"a", "b", "d", "e", "new"})
    assert give(leases, "c", in_use={"b", "d", "new"}) == "10.0.0.6", "that of e"


def test_an_address_that_was_given_up_is_found_again_from_the_front() -> None:
    leases = make(IPv4Network("10.0.0.0/29"))
    for name in "abcde":
        give(leases, name)
    leases.forget("b")
    assert give(leases, "f") == "10.0.0.3"


def test_the_ipv6_address_is_as_far_into_its_pool() -> None:
    leases = make(pool6=POOL6, fixed={"f": "10.86.1.0"}, fixed6={"g": "fd00:86::aaaa"})
    pairs = {name: leases.pair(name, none_in_use) for name in "afg"}
    assert {name: str(pair.peer6) for name, pair in pairs.items()} == {
        "a": "fd00:86::2",
        "f": "fd00:86::100",
        "g": "fd00:86::aaaa",
    }
    assert {str(pair.local6) for pair in pairs.values()} == {"fd00:86::1"}


def test_no_lease_has_an_ipv6_address_that_is_fixed_for_another(tmp_path: Path) -> None:
    path = tmp_path / "leases.json"
    assert give(make(pool6=POOL6, path=path), "a") == "10.86.0.2"
    leases = make(pool6=POOL6, fixed6={"g": "fd00:86::2"}, path=path)
    assert give(leases, "a") == "10.86.0.3"
    assert str(leases.pair("g", none_in_use).peer6) == "fd00:86::2"


def test_a_small_ipv6_pool_leaves_some_without() -> None:
    leases = make(pool6=IPv6Network("fd00::/126"))
    assert [leases.pair(name, none_in_use).peer6 for name in "abc"] == [
        IPv6Address("fd00::2"),
        IPv6Address("fd00::3"),
        None,
    ]


def test_leases_of_another_pool_are_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "leases.json"
    addresses = [
        "10.86.0.0",
        "10.86.0.1",
        "10.86.0.255",
        "10.87.0.2",
        "10.85.255.255",
        "10.86.0.9",
        "10.86.0.9",
    ]
    path.write_text(json.dumps({"leases": dict(zip("abcdefg", addresses, strict=True))}))
    leases = make(IPv4Network("10.86.0.0/24"), path=path)
    assert {name: pair.peer for name in "abcdefg" if (pair := leases.current(name))} == {
        "f": IPv4Address("10.86.0.9")
    }


@given(
    st.one_of(
        st.binary(max_size=40),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(st.sampled_from(["leases", "a", "10.86.0.2"]), inner, max_size=3)
            ),
        ).map(lambda value: json.dumps(value).encode()),
    )
)
@settings(max_examples=60)
def test_a_file_with_any_content_does_not_stop_the_server(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.json"
    path.write_bytes(content)
    leases = make(path=path)
    assert leases.pair("a", none_in_use).peer in POOL
    assert make(path=path).pair("a", none_in_use) == leases.pair("a", none_in_use)


@pytest.mark.parametrize(
    "content", ['{"leases": {"a": ', "[]", '{"leases": 7}', "[" * 100_000], ids=["cut", "list", "odd", "deep"]
)
def test_a_damaged_file_is_named_and_put_aside(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: str
) -> None:
    path = tmp_path / "leases.json"
    path.write_text(content)
    make(path=path)
    text = (
        f"{path}: cannot read the leases, starting with none; the file was put aside as leases.json.damaged"
    )
    assert caplog.messages[0].startswith(text)
    assert (tmp_path / "leases.json.damaged").read_text() == content


def test_a_file_that_cannot_be_written_is_named_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    blocked = tmp_path / "a file where a directory should be"
    blocked.write_text("")
    leases = make(path=blocked / "leases.json")
    caplog.clear()
    assert [give(leases, name) for name in "ab"] == ["10.86.0.2", "10.86.0.3"]
    assert len(caplog.records) == 1
    assert caplog.records[0].levelno == logging.WARNING


def test_a_crash_while_writing_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "leases.json"
    leases = make(path=path)
    give(leases, "a")
    before = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    give(leases, "b")
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["leases.json"]


@given(
    st.lists(
        st.tuples(st.sampled_from("abcdefgh"), st.sets(st.sampled_from("abcdefgh"), max_size=2)), max_size=30
    )
)
def test_no_two_have_the_same_address_whoever_comes_and_goes(steps: list[tuple[str, set[str]]]) -> None:
    leases = make(IPv4Network("10.0.0.0/29"), POOL6, fixed={"a": "10.0.0.3"}, fixed6={"b": "fd00:86::4"})
    for name, in_use in steps:
        pair = leases.pair(name, lambda other, in_use=in_use: other in in_use)  # type: ignore[misc]
        pairs = {other: found for other in "abcdefgh" if (found := leases.current(other))}
        held = [IPv4Address("10.0.0.1"), *(found.peer for found in pairs.values())]
        assert len(set(held)) == len(held)
        assert pairs[name] == pair
