"""What outlives a process, and the lines of the journal that say so. Pure.

    {"version": 2}
    ["+", "route", "203.0.113.5/32", "eth0", "192.0.2.1", null, null, 254, "unicast"]
    ["+", "rule", 4, 7217, 7217, 7217, null]
    ["+", "sysctl", "net.ipv4.ip_forward", "1", "0"]
    ["+", "table", "dtun-demo"]
    ["-", "rule", 4, 7217, 7217, 7217, null]

"+" is written before the thing is made, "-" after it has been removed. A line that a killed process did not finish is
of no account, the first one included: what it names had not been made. Version 1 was one object,
{"routes": [{"destination": ...}]}.
"""

import json
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import ip_address, ip_network
from typing import Any

from dtun.network.state import Route, Rule, Sysctl

VERSION = 2
HEADER = json.dumps({"version": VERSION}).encode() + b"\n"


@dataclass(frozen=True, slots=True)
class SavedSysctl:
    """A kernel setting that we want, and what comes back in the end; `previous` None: it was so already."""

    sysctl: Sysctl
    previous: str | None


@dataclass(frozen=True, slots=True)
class FilterTable:
    """A table of the packet filter, with all that is in it."""

    name: str


Entry = Route | Rule | SavedSysctl | FilterTable


class UnknownVersionError(Exception):
    """A later dtun has written it."""


def encode(entry: Entry) -> bytes:
    """The line, as far as it does not depend on the sign."""
    match entry:
        case Route(destination, device, gateway, source, metric, table, kind):
            # Of these there may be thousands, for which a serializer takes too long.
            hop = "null" if gateway is None else f'"{gateway}"'
            own = "null" if source is None else f'"{source}"'
            cost = "null" if metric is None else metric
            return f'"route", "{destination}", {_quoted(device)}, {hop}, {own}, {cost}, {table}, "{kind}"]\n'.encode()
        case Rule(version, priority, table, mark, suppressed):
            fields: list[Any] = ["rule", version, priority, table, mark, suppressed]
        case SavedSysctl(Sysctl(name, value), previous):
            fields = ["sysctl", name, value, previous]
        case FilterTable(name):
            fields = ["table", name]
    return json.dumps(fields)[1:].encode() + b"\n"


def decode(data: bytes) -> set[Entry]:
    """What a journal says, of this version or the one before.

    Raises:
        ValueError, TypeError, KeyError: it is damaged.
        UnknownVersionError: it is of a later version.
    """
    first, end, rest = data.partition(b"\n")
    if not end and HEADER.startswith(first):
        return set()
    try:
        header = json.loads(first)
    except ValueError:
        # Version 1 was laid out for people, over several lines.
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
        case "rule", (4 | 6 as version, int(priority), int(table), mark, suppressed):
            return Rule(version, priority, table, mark, suppressed)
        case "sysctl", (str(name), str(value), previous):
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
