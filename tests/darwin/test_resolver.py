"""Name servers for some domains, by files in /etc/resolver."""

from ipaddress import ip_address
from pathlib import Path

import pytest

from dtun.network.state import Dns
from dtun.platform.darwin.resolver import Resolver, ResolverError

SERVERS = (ip_address("10.86.0.1"), ip_address("fd00:86::1"))


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "resolver"


def dns(*domains: str) -> Dns:
    return Dns("utun4", SERVERS, domains)


def test_a_file_for_each_domain(directory: Path) -> None:
    resolver = Resolver("dtun0", directory)
    resolver.apply(dns("~corp.example", "Lab.Example"))
    expected = "# dtun dtun0: goes when the tunnel does\nnameserver 10.86.0.1\nnameserver fd00:86::1\n"
    assert {path.name: path.read_text() for path in directory.iterdir()} == {
        "corp.example": expected,
        "lab.example": expected,
    }
    assert (directory / "corp.example").stat().st_mode & 0o777 == 0o644
    assert list(directory.parent.iterdir()) == [directory], "no drafts"
    resolver.apply(dns("~corp.example"))
    assert [path.name for path in directory.iterdir()] == ["corp.example"]
    resolver.clear()
    assert list(directory.iterdir()) == []


def test_an_unchanged_file_is_not_rewritten(directory: Path) -> None:
    resolver = Resolver("dtun0", directory)
    resolver.apply(dns("corp.example"))
    before = (directory / "corp.example").stat().st_ino
    resolver.apply(dns("corp.example"))
    assert (directory / "corp.example").stat().st_ino == before


def test_files_of_other_programs_are_kept(directory: Path) -> None:
    directory.mkdir()
    (directory / "corp.example").write_text("nameserver 192.0.2.1\n")
    (directory / "binary").write_bytes(b"\xff\xfe")
    (directory / "folder").mkdir()
    other = Resolver("dtun1", directory)
    other.apply(dns("lab.example"))
    resolver = Resolver("dtun0", directory)
    with pytest.raises(
        ResolverError, match=r"corp\.example is not a file of dtun; remove it, or remove corp\.example from"
    ):
        resolver.apply(dns("corp.example"))
    resolver.clear()
    assert sorted(path.name for path in directory.iterdir()) == [
        "binary",
        "corp.example",
        "folder",
        "lab.example",
    ]
    assert (directory / "corp.example").read_text() == "nameserver 192.0.2.1\n"


@pytest.mark.parametrize("domains", [(), ("~.",), ("corp.example", "~.")])
def test_every_name_is_refused(directory: Path, domains: tuple[str, ...]) -> None:
    with pytest.raises(ResolverError, match="only for listed domains"):
        Resolver("dtun0", directory).apply(dns(*domains))
    assert not directory.exists()


def test_an_unusable_directory_is_reported(directory: Path) -> None:
    directory.parent.joinpath("resolver").write_text("a file")
    with pytest.raises(ResolverError, match=r"cannot write to .*resolver: "):
        Resolver("dtun0", directory).apply(dns("corp.example"))


def test_nothing_to_clear(directory: Path) -> None:
    Resolver("dtun0", directory).clear()
    assert not directory.exists()
