"""The name servers that this host asks, from resolv.conf(5)."""

from collections.abc import Iterable
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from dtun.network.state import Address

FILES: Final = (
    Path("/etc/resolv.conf"),
    Path("/run/systemd/resolve/resolv.conf"),
    Path("/run/NetworkManager/no-stub-resolv.conf"),
)
"""The others have the servers behind systemd-resolved, or NetworkManager's resolver: the first names only that."""


def name_servers(files: Iterable[Path] = FILES) -> list[Address]:
    """All name servers in these files, without those on the host itself. Files that cannot be read have none."""
    found: dict[Address, None] = {}
    for file in files:
        try:
            text = file.read_text(errors="replace")
        except OSError:
            continue
        found |= dict.fromkeys(parse(text))
    return list(found)


def parse(text: str) -> list[Address]:
    """The name servers in a resolv.conf, without loopback addresses. Pure."""
    found: list[Address] = []
    for line in text.splitlines():
        match line.split():
            case ["nameserver", written, *_]:
                try:
                    address = ip_address(written.partition("%")[0])
                except ValueError:
                    continue
                if not address.is_loopback and not address.is_unspecified:
                    found.append(address)
            case _:
                pass
    return found
