"""Names of settings and their files, with /proc/sys somewhere else, where anything can be wrong with it."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dtun.platform.linux import sysctl
from dtun.platform.linux.sysctl import SysctlError, read, write


@pytest.fixture
def setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], Path]:
    """Makes a setting, by its path below /proc/sys, with a value as the kernel shows it."""
    monkeypatch.setattr(sysctl, "_ROOT", tmp_path)

    def make(path: str, value: str) -> Path:
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(value + "\n")
        return file

    return make


@pytest.fixture
def refusing(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """From now on, whatever is written is refused with this errno."""

    def refuse(number: int) -> None:
        def fail(path: Path, *_: Any) -> int:
            raise OSError(number, os.strerror(number), str(path))

        monkeypatch.setattr(Path, "write_text", fail)

    return refuse


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("net.ipv4.ip_forward", "net/ipv4/ip_forward"),
        ("net.ipv6.conf.all.forwarding", "net/ipv6/conf/all/forwarding"),
        ("net.ipv4.conf.eth0.rp_filter", "net/ipv4/conf/eth0/rp_filter"),
        # A device's name may have dots; sysctl.d(5) writes slashes for them.
        ("net.ipv4.conf.eth0.100.rp_filter", "net/ipv4/conf/eth0.100/rp_filter"),
        ("net.ipv4.conf.eth0/100.rp_filter", "net/ipv4/conf/eth0.100/rp_filter"),
        ("net.ipv6.neigh.a.b.c.gc_stale_time", "net/ipv6/neigh/a.b.c/gc_stale_time"),
        ("net.mpls.conf.eth0/100.input", "net/mpls/conf/eth0.100/input"),
    ],
)
def test_a_setting_is_found_by_its_name(setting: Callable[[str, str], Path], name: str, path: str) -> None:
    file = setting(path, "0")
    assert read(name) == "0"
    write(name, "1")
    assert file.read_text() == "1\n"
    assert read(name) == "1"


def test_what_has_the_value_is_not_written(
    setting: Callable[[str, str], Path], refusing: Callable[[int], None]
) -> None:
    setting("net/ipv4/ip_forward", "1")
    setting("net/ipv4/tcp_rmem", "4096\t131072\t6291456")
    refusing(errno.EROFS)
    write("net.ipv4.ip_forward", "1")
    write("net.ipv4.tcp_rmem", "4096 131072 6291456")
    with pytest.raises(SysctlError):
        write("net.ipv4.ip_forward", "0")


@pytest.mark.parametrize("name", ["", "net..ipv4", "..etc.passwd", "net.ipv4.conf...rp_filter", "net.//.x"])
def test_what_is_no_name_is_no_file_elsewhere(name: str) -> None:
    with pytest.raises(SysctlError, match="is not the name of a setting"):
        read(name)
    with pytest.raises(SysctlError, match="is not the name of a setting"):
        write(name, "1")


@pytest.mark.parametrize(
    ("number", "told"),
    [
        (errno.EROFS, "read-only here"),
        (errno.EACCES, "run dtun as root"),
        (errno.EPERM, "run dtun as root"),
        (errno.EINVAL, "refuses this value"),
        (errno.ENOMEM, "Cannot allocate memory"),
    ],
)
def test_a_refusal_says_what_to_do(
    setting: Callable[[str, str], Path], refusing: Callable[[int], None], number: int, told: str
) -> None:
    setting("net/ipv4/ip_forward", "0")
    refusing(number)
    with pytest.raises(SysctlError, match=rf"^cannot set net\.ipv4\.ip_forward to 1: .*{told}"):
        write("net.ipv4.ip_forward", "1")


def test_a_kernel_without_the_setting_and_a_host_without_ipv6(setting: Callable[[str, str], Path]) -> None:
    setting("net/ipv4/ip_forward", "0")
    with pytest.raises(SysctlError, match=r"^cannot read the setting net\.ipv4\.nothing: there is no such"):
        read("net.ipv4.nothing")
    with pytest.raises(SysctlError, match="this host has no IPv6"):
        write("net.ipv6.conf.all.forwarding", "1")
    setting("net/ipv6/conf/all/forwarding", "0")
    with pytest.raises(SysctlError, match="there is no such setting"):
        write("net.ipv6.conf.eth7.forwarding", "1")
