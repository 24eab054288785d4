"""The entries of the journal, which outlive the process, and their format. Pure.

    {"version": 2}
    ["+", "route", "203.0.113.5/32", "eth0", "192.0.2.1", null, null, 254, "unicast"]
    ["+", "rule", 4, 7217, 7217, 7217, null]
    ["+", "sysctl", "net.ipv4.ip_forward", "1", "0"]
    ["+", "table", "dtun-demo"]
    ["-", "rule", 4, 7217, 7217, 7217, null]

"+" is written before something is applied, "-" after it has been removed. An unfinished line at the end, the first line
included, is ignored: the process was killed before it applied what the line names. Version 1 was a single object,
{"routes": [{"destination": ...}]}.
"""

import json
import re
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import ip_address, ip_network
from typing import Any

from dtun.network.state import Route, Rule, Sysctl

VERSION = 2
HEADER = json.dumps({"version": VERSION}).encode() + b"\n"


@dataclass(frozen=True, slots=True)
class SavedSysctl:
    """A kernel setting that we want, and its previous value; None if it had the wanted value already."""

    sysctl: Sysctl
    previous: str | None


@dataclass(frozen=True, slots=True)
class FilterTable:
    """A table of the packet filter, with all its contents."""

    name: str


Entry = Route | Rule | SavedSysctl | FilterTable


_SETTINGS = re.compile(
    r"net\.ipv4\.(ip_forward|conf\.all\.src_valid_mark)|net\.ipv6\.conf\.(all\.forwarding|[^/\s]{1,15}\.accept_ra)"
)
_VALUE = re.compile(r"-?[0-9]{1,9}")


def is_allowed(setting: Sysctl) -> bool:
    """Whether this is one of the settings that dtun changes, and its value a number.

    A list of what is allowed, since the journal may have been written by anybody who took the service over, and root
    restores what is in it.
    """
    return bool(_SETTINGS.fullmatch(setting.name) and _VALUE.fullmatch(setting.value))


class UnknownVersionError(Exception):
    """A later version of dtun has written the journal."""


def encode(entry: Entry) -> bytes:
    """The line after the sign."""
    match entry:
        case Route(destination, device, gateway, source, metric, table, kind):
            # Not json.dumps: there may be thousands of routes.
            via = "null" if gateway is None else f'"{gateway}"'
            src = "null" if source is None else f'"{source}"'
            cost = "null" if metric is None else metric
            return f'"route", "{destination}", {_quoted(device)}, {via}, {src}, {cost}, {table}, "{kind}"]\n'.encode()
        case Rule(version, priority, table, mark, suppressed):
            fields: list[Any] = ["rule", version, priority, table, mark, suppressed]
        case SavedSysctl(Sysctl(name, value), previous):
            fields = ["sysctl", name, value, previous]
        case FilterTable(name):
            fields = ["table", name]
    return json.dumps(fields)[1:].encode() + b"\n"


def decode(data: bytes) -> set[Entry]:
    """The entries of a journal of this version or the one before.

    Raises:
        ValueError, TypeError, KeyError: the journal is damaged.
        UnknownVersionError: a later version of dtun has written it.
    """
    first, end, rest = data.partition(b"\n")
    if not end and HEADER.startswith(first):
        return set()
    try:
        header = json.loads(first)
    except ValueError:
        # Version 1 was indented, over several lines.
        header = json.loads(data)
    if not isinstance(header, dict):
        raise TypeError("no header")
    if "version" not in header:
        return {_old_route(entry) for entry in json.loads(data)["routes"]}
    if header["version"] != VERSION:
        raise UnknownVersionError(header["version"])
    held: set[Entry] = set()
    for line in rest.split(b"\n")[:-1]:
        sign, *fields = json.loads(line)
        entry = _entry(*fields)
        if sign == "+":
            held.add(entry)
        elif sign == "-":
            held.discard(entry)
        else:
            raise ValueError(sign)
    return held


@lru_cache(maxsize=256)
def _quoted(text: str) -> str:
    return json.dumps(text)


def _entry(what: str, *fields: Any) -> Entry:
    match what, fields:
        case "route", (destination, device, gateway, source, metric, table, kind):
            if kind not in ("unicast", "unreachable", "throw"):
                raise ValueError(kind)
            return Route(
                ip_network(destination),
                str(device),
                None if gateway is None else ip_address(gateway),
                None if source is None else ip_address(source),
                None if metric is None else int(metric),
                int(table),
                kind,
            )
        case "rule", (
            4 | 6 as version,
            int(priority),
            int(table),
            int() | None as mark,
            int() | None as suppressed,
        ):
            return Rule(version, priority, table, mark, suppressed)
        case "sysctl", (str(name), str(value), str() | None as previous):
            if not all(is_allowed(Sysctl(name, text)) for text in (value, previous) if text is not None):
                raise ValueError(name)
            return SavedSysctl(Sysctl(name, value), previous)
        case "table", (str(name),):
            return FilterTable(name)
    raise ValueError(what)


def _old_route(entry: dict[str, Any]) -> Route:
    return Route(
        ip_network(entry["destination"]),
        str(entry["device"]),
        ip_address(entry["gateway"]) if entry["gateway"] else None,
        ip_address(entry["source"]) if entry["source"] else None,
        None if entry["metric"] is None else int(entry["metric"]),
    )
