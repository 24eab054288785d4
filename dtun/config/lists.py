"""Lists of networks in files of their own: a network or a range (a-b) a line, `#` starts a comment."""

import codecs
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address, summarize_address_range
from pathlib import Path

from dtun.config.errors import Location, Problem, shown
from dtun.config.keys import unreadable
from dtun.config.values import parse_network_outside
from dtun.network.state import Network

MAX_BYTES = 16 << 20
MAX_SHOWN = 10
"""Reported errors of one file: a wrong file should not give a thousand lines."""


@dataclass(frozen=True, slots=True)
class NetworkList:
    """The networks of a file, and the line of each, from 1. `faults` are wrong lines, with the error of each."""

    path: Path
    networks: tuple[Network, ...]
    lines: tuple[int, ...]
    faults: tuple[tuple[int, str], ...] = ()

    def problems(self, location: Location) -> Iterator[Problem]:
        """The faults, as problems of the setting at `location`, which names the file."""
        for line, message in self.faults[:MAX_SHOWN]:
            yield Problem(location, message, elsewhere=f"{self.path}:{line}")
        more = len(self.faults) - MAX_SHOWN
        if more > 0:
            message = f"and {more} more; is it a list of networks, one a line?"
            yield Problem(location, message, elsewhere=str(self.path))


def read(path: Path) -> NetworkList:
    """Read the list at `path`.

    Raises:
        ValueError: the file does not exist or cannot be read. Wrong lines do not raise; they are in `faults`.
    """
    # Not splitlines(): editors count line feeds only.
    content = _content(path)
    utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    text = content.decode("utf-16" if utf16 else "utf-8-sig", errors="replace")
    networks: list[Network] = []
    lines: list[int] = []
    faults: list[tuple[int, str]] = []
    for number, line in enumerate(text.split("\n"), 1):
        written = line.partition("#")[0].strip()
        if not written:
            continue
        try:
            found = _range(written) if "-" in written else [parse_network_outside(written)]
        except ValueError as error:
            faults.append((number, str(error)))
        else:
            networks += found
            lines += [number] * len(found)
    return NetworkList(path, tuple(networks), tuple(lines), tuple(faults))


def _range(text: str) -> list[Network]:
    """The networks of a range, such as 192.0.2.16-192.0.2.35."""
    try:
        first, last = (ip_address(part.strip()) for part in text.split("-"))
        return list(summarize_address_range(first, last))
    except (TypeError, ValueError):
        raise ValueError(
            f"{shown(text)} is not a range; write it like 192.0.2.16-192.0.2.35, the lower address first"
        ) from None


def _content(path: Path) -> bytes:
    try:
        # Non-blocking: opening a FIFO must not block the start.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise ValueError(f"{path} is not a file; give the path of a list of networks, one a line")
            content = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist; correct the path, or write the list") from None
    except PermissionError:
        message = f"{path} {unreadable(path)}"
        raise ValueError(message) from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    if len(content) > MAX_BYTES:
        raise ValueError(f"{path} is larger than {MAX_BYTES >> 20} MiB; is it a list of networks?")
    return content
