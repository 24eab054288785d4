"""Lists of networks in files of their own: contents, errors and speed."""

import os
import random
import time
from collections.abc import Callable
from ipaddress import IPv4Network, ip_network
from pathlib import Path

import pytest

from dtun.config import ClientConfig, Config, keys, lists, load

KEY = keys.generate()
CLIENT = f"client:\n  servers: 192.0.2.1\n  id: a\n  key: {KEY}\n"

Load = Callable[[str], Config]
Problems = Callable[[str], list[str]]


def client(config: Config) -> ClientConfig:
    assert config.client is not None
    return config.client


def warnings(config: Config) -> list[str]:
    """Without the path of the file."""
    assert config.path is not None
    return [line.replace(f"{config.path.parent}/", "") for line in config.warnings]


def test_a_list_has_a_network_a_line_and_comments(loaded: Load, tmp_path: Path) -> None:
    (tmp_path / "around.txt").write_bytes(
        b"\xef\xbb\xbf# from the registry, \xe4 of old\r\n\r\n10.0.0.0/9\t# one half\r\n"
        b"10.128.0.0/9\n  192.0.2.7\n2001:db8::1\n\x0c\n   # nothing\nfd00::/8"
    )
    it = client(loaded(f"{CLIENT}  bypass_files: around.txt\n"))
    assert it.bypassed == tuple(
        map(ip_network, ("10.0.0.0/8", "192.0.2.7/32", "2001:db8::1/128", "fd00::/8"))
    )


def test_all_lists_come_together(loaded: Load, tmp_path: Path) -> None:
    (tmp_path / "one").write_text("10.0.0.0/8\n")
    (tmp_path / "two").write_text("10.1.0.0/16\n172.16.0.0/13\n")
    it = client(
        loaded(
            f"{CLIENT}  exclude: 192.0.2.0/25\n  bypass: [192.0.2.128/25, 172.24.0.0/13]\n"
            f"  bypass_files: [one, {tmp_path}/two]\n"
        )
    )
    assert it.bypassed == tuple(map(ip_network, ("10.0.0.0/8", "172.16.0.0/12", "192.0.2.0/24")))
    assert it.exclude == (IPv4Network("192.0.2.0/25"),)


def test_without_files_nothing_has_to_be_read_first() -> None:
    it = ClientConfig.model_validate({"servers": "h", "id": "a", "key": KEY, "exclude": "10.0.0.0/8"})
    assert it.bypassed == (IPv4Network("10.0.0.0/8"),)


def test_a_look_without_the_lists(write: Callable[[str], Path]) -> None:
    it = client(load(write(f"{CLIENT}  bypass_files: /does/not/exist\n"), read_keys=False))
    with pytest.raises(RuntimeError, match="without its lists"):
        assert it.bypassed


def test_broken_lines_are_named_together(problems: Problems, tmp_path: Path) -> None:
    (tmp_path / "around.txt").write_text(
        "# a list,\x0cand a page\n10.0.0.1/8\nten\n10.0.0.0/8, 11.0.0.0/8\n192.0.2.0/24\n127.0.0.0/8\nfd00::%eth0/64\n"
    )
    assert problems(f"{CLIENT}  bypass_files: around.txt\n  rekey: 1\n") == [
        "around.txt:2: '10.0.0.1/8' is an address inside a network; write the network, 10.0.0.0/8",
        "around.txt:3: 'ten' is not a network; write it like 10.0.0.0/16 or fd00:1::/64",
        "around.txt:4: '10.0.0.0/8, 11.0.0.0/8' is not a network; write it like 10.0.0.0/16 or fd00:1::/64",
        "around.txt:7: 'fd00::%eth0/64' names an interface; write the network alone",
        "dtun.yaml:6:10: client.rekey: must be at least 60 seconds, or 0 for never",
    ]


def test_what_never_gets_into_a_tunnel_is_left_out_with_one_warning(loaded: Load, tmp_path: Path) -> None:
    """Lists of networks that are not the internet's have them all."""
    (tmp_path / "around.txt").write_text(
        "10.0.0.0/8\n127.0.0.0/8\n169.254.0.0/16\n224.0.0.0/4\n::1\nfe80::/10\nff00::/8\n"
    )
    config = loaded(f"{CLIENT}  exclude: [169.254.0.0/16, 192.0.2.0/24]\n  bypass_files: around.txt\n")
    assert client(config).bypassed == (IPv4Network("10.0.0.0/8"), IPv4Network("192.0.2.0/24"))
    (warning,) = warnings(config)
    where = "dtun.yaml:5:13: client.exclude[0]"
    assert (
        warning == f"{where}: 169.254.0.0/16 never gets into a tunnel, so it is left out (and 6 more like it)"
    )


def test_an_empty_list_is_worth_a_warning(loaded: Load, tmp_path: Path) -> None:
    (tmp_path / "around.txt").write_text("# downloaded\n\n")
    assert warnings(loaded(f"{CLIENT}  bypass_files: around.txt\n")) == [
        "around.txt: has no network in it, so nothing goes around the tunnel for its sake; was it downloaded?"
    ]


def test_a_list_in_utf_16(loaded: Load, tmp_path: Path) -> None:
    (tmp_path / "around.txt").write_bytes("10.0.0.0/8\r\n".encode("utf-16"))
    assert client(loaded(f"{CLIENT}  bypass_files: around.txt\n")).bypassed == (IPv4Network("10.0.0.0/8"),)


def test_of_the_wrong_file_only_the_beginning_is_shown(problems: Problems, tmp_path: Path) -> None:
    (tmp_path / "wrong").write_bytes(b"\xff\x00\x1b[31m\n" * 35)
    said = problems(f"{CLIENT}  bypass_files: wrong\n")
    assert len(said) == 11
    assert said[-1] == "wrong: and 25 more; is it a list of networks, one a line?"
    assert all(line.isprintable() for line in said)


def test_files_that_cannot_be_read(problems: Problems, tmp_path: Path) -> None:
    (tmp_path / "directory").mkdir()
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "huge").write_bytes(b"")
    os.truncate(tmp_path / "huge", lists.MAX_BYTES + 1)
    assert problems(f"{CLIENT}  bypass_files: [none, directory, fifo, huge]\n") == [
        ("dtun.yaml:5:18: client.bypass_files[0]: none does not exist; correct the path, or write the list"),
        "dtun.yaml:5:24: client.bypass_files[1]: directory cannot be read: Is a directory",
        (
            "dtun.yaml:5:35: client.bypass_files[2]: fifo is not a file;"
            " give the path of a list of networks, one a line"
        ),
        "dtun.yaml:5:41: client.bypass_files[3]: huge is larger than 16 MiB; is it a list of networks?",
    ]


def test_a_list_that_we_may_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(ValueError, match="cannot be read by this user; start dtun as the file's owner"):
        lists.read(tmp_path / "list")


def test_what_is_in_two_lists_is_a_warning_with_both_places(loaded: Load, tmp_path: Path) -> None:
    (tmp_path / "one").write_text("10.0.0.0/8\n192.0.2.0/24\n\n192.0.2.0/24\n")
    (tmp_path / "two").write_text("10.0.0.0/8\n10.1.0.0/16\n")
    config = loaded(
        f"{CLIENT}  exclude: 10.0.0.0/8\n  bypass: [203.0.113.0/24, 203.0.113.0/24]\n"
        "  bypass_files: [one, two]\n"
    )
    assert warnings(config) == [
        (
            "dtun.yaml:6:28: client.bypass[1]: 203.0.113.0/24 is twice in this list; one is enough"
            " (the other: dtun.yaml:6:12)"
        ),
        "one:1: 10.0.0.0/8 is in two lists; one is enough (the other: dtun.yaml:5:12)",
        "one:4: 192.0.2.0/24 is twice in this list; one is enough (the other: one:2)",
        "two:1: 10.0.0.0/8 is in two lists; one is enough (the other: dtun.yaml:5:12)",
    ]


def test_a_list_that_was_doubled_fills_no_log(loaded: Load, tmp_path: Path) -> None:
    text = "".join(f"10.{number}.0.0/16\n" for number in range(200))
    (tmp_path / "one").write_text(text)
    (tmp_path / "two").write_text(text)
    said = warnings(loaded(f"{CLIENT}  bypass_files: [one, two]\n"))
    assert len(said) == 11
    assert said[9:] == [
        "two:10: 10.9.0.0/16 is in two lists; one is enough (the other: one:10)",
        "dtun.yaml:5:17: client.bypass_files: and 190 more networks are listed twice",
    ]


def test_ten_thousand_lines_load_quickly(write: Callable[[str], Path], tmp_path: Path) -> None:
    chance = random.Random(7217)
    numbers = {chance.randrange(1 << 24, 127 << 24) >> 8 << 8 for _ in range(10_000)}
    lines = [f"{IPv4Network((number, 24))}  # an example\n" for number in numbers]
    (tmp_path / "many.txt").write_text("".join(lines))
    path = write(f"{CLIENT}  routes: everything\n  bypass_files: many.txt\n")
    # CPU time, as the machine may be busy. 0.1 s is usual; the test is about orders of magnitude.
    start = time.process_time()
    it = client(load(path))
    assert time.process_time() - start < 2
    assert sum(network.num_addresses for network in it.bypassed) == 256 * len(numbers)


def test_ranges(tmp_path: Path) -> None:
    (tmp_path / "list").write_text(
        "192.0.2.16-192.0.2.35  # a provider\n2001:db8::1 - 2001:db8::2\n192.0.2.9-192.0.2.1\n"
        "192.0.2.1-2001:db8::1\n192.0.2.1-9\n192.0.2.1 192.0.2.9\n"
    )
    found = lists.read(tmp_path / "list")
    assert [str(network) for network in found.networks] == [
        "192.0.2.16/28",
        "192.0.2.32/30",
        "2001:db8::1/128",
        "2001:db8::2/128",
    ]
    assert found.lines == (1, 1, 2, 2)
    assert [line for line, _ in found.faults] == [3, 4, 5, 6]
    assert found.faults[0][1].endswith(
        "is not a range; write it like 192.0.2.16-192.0.2.35, the lower address first"
    )
