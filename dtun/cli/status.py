"""The answers of `dtun status`: as tables, as JSON, once or again each second."""

import json
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dtun.cli.output import complain, say
from dtun.errors import DtunError, UnavailableError
from dtun.service.control import ask
from dtun.session.status import DEVICE_DOWN
from dtun.text import duration, printable

Status = Mapping[str, Any]

_COLUMNS = {
    "id": "ID",
    "state": "STATE",
    "device": "DEVICE",
    "peer_address": "ADDRESS",
    "subnets": "SUBNETS",
    "endpoint": "ENDPOINT",
    "mtu": "MTU",
    "rtt_ms": "RTT",
    "since": "FOR",
    "rx_bytes": "RECEIVED",
    "tx_bytes": "SENT",
    "drops": "DROPS",
}
MAX_NAMES = 8
_MANY = 1 << 80

WATCH_INTERVAL = 1.0
"""Seconds."""

# ECMA-48: cursor to the top left corner; erase to the end of the line, of the screen.
_HOME, _END_OF_LINE, _END_OF_SCREEN = "\x1b[H", "\x1b[K", "\x1b[J"

_TUNNEL_LABELS = {"rtt_ms": "rtt", "since": "for"}
_SHOWN_ELSEWHERE = {"refused_subnets", "last_error"}
_PROCESS_LABELS = {
    "half_open": "handshakes under way",
    "handshake_budget": "budget for handshakes",
    "old_key_in_use": "with a former key still",
    "drops": "dropped outside of sessions",
}


def show(sockets: Iterable[Path], name: str | None = None, *, as_json: bool, check: bool = False) -> int:
    """Print the status of each dtun that listens at one of `sockets`.

    `name`: show everything about this client, and nothing else. Returns 0; with `check`, 1 unless every tunnel of a
    client is connected. A client of a server counts if it is named. If one of several does not answer, the others are
    shown, and its exit code is returned.

    Raises:
        UnavailableError: no dtun runs there, or it does not have this client.
    """
    answers, failures = _answers(sockets, name)
    for answer in answers:
        say(_shown(answer, name, as_json=as_json))
    for failure in failures:
        complain(str(failure))
    if failures:
        return failures[0].exit_code
    return 1 if check and not all(_is_connected(answer, name) for answer in answers) else 0


def as_text(sockets: Iterable[Path], name: str | None = None, *, as_json: bool) -> str:
    """What `show` prints."""
    answers, failures = _answers(sockets, name)
    shown = [_shown(answer, name, as_json=as_json) for answer in answers]
    return "\n".join([*shown, *(_failed(failure) for failure in failures)])


def watch(text: Callable[[], str], sleep: Callable[[float], None] = time.sleep) -> int:
    """Print `text` each second until Ctrl-C, or the error that it raises: dtun may be starting again.

    On a terminal, each text replaces the one before; elsewhere they follow each other.
    """
    terminal = sys.stdout.isatty()
    try:
        while True:
            try:
                shown = text()
            except DtunError as error:
                shown = _failed(error)
            if not say(_on_screen(shown) if terminal else shown):
                return 0
            sleep(WATCH_INTERVAL)
    except KeyboardInterrupt:
        if terminal:
            say("")
        return 0


def _on_screen(text: str) -> str:
    """The text with the control sequences that replace the screen by it, cut to the screen so that nothing scrolls."""
    size = shutil.get_terminal_size()
    lines = text.splitlines()
    if len(lines) > size.lines - 1:
        lines = [*lines[: size.lines - 2], f"... and {len(lines) - size.lines + 2} more lines"]
    shown = "\n".join(line[: size.columns] + _END_OF_LINE for line in lines)
    return f"{_HOME}{shown}\n{_END_OF_SCREEN}".removesuffix("\n")


def _failed(error: DtunError) -> str:
    return f"dtun: {printable(str(error), None, keep=chr(10))}"


def _answers(sockets: Iterable[Path], name: str | None) -> tuple[Sequence[Status], Sequence[DtunError]]:
    """The answers, and why others have not answered. If none has, the first reason is raised."""
    answers: list[Status] = []
    failures: list[DtunError] = []
    for path in sockets:
        try:
            answers.append(ask(path))
        except DtunError as error:
            failures.append(error)
    if failures and not answers:
        raise failures[0]
    if name is None:
        return answers, failures
    found = [
        {**answer, "tunnels": theirs}
        for answer in answers
        if (theirs := [tunnel for tunnel in tunnels_of(answer) if tunnel.get("id") == name])
    ]
    if not found:
        raise UnavailableError(f"there is no client '{printable(name)}'; `dtun status` shows all")
    return found, failures


def _shown(answer: Status, name: str | None, *, as_json: bool) -> str:
    if as_json:
        return json.dumps(answer)
    now = datetime.now(UTC)
    if name is None:
        return render(answer, now)
    return "\n".join(printable(line, None) for tunnel in tunnels_of(answer) for line in _pairs(tunnel, now))


def _is_connected(status: Status, name: str | None) -> bool:
    """Clients of a server may be away, unless one is named; but what has no working device is never well."""
    states = [tunnel.get("state") for tunnel in tunnels_of(status)]
    if status.get("role") == "server" and name is None:
        return DEVICE_DOWN not in states
    return bool(states) and all(state == "connected" for state in states)


def tunnels_of(status: Status) -> list[Status]:
    """The tunnels in the answer of a running dtun."""
    tunnels = status.get("tunnels")
    return [tunnel for tunnel in tunnels if isinstance(tunnel, dict)] if isinstance(tunnels, list) else []


def render(status: Status, now: datetime) -> str:
    """A table for a server, lines for a client; then everything else that the status has."""
    tunnels = tunnels_of(status)
    role = status.get("role", "?")
    process, since = status.get("pid", "?"), _since(status.get("since"), now)
    lines = [f"dtun {role} {status.get('version', '?')}, process {process}, running for {since}"]
    if role == "server":
        lines += _server(tunnels, now)
    else:
        for tunnel in tunnels:
            lines += _pairs(tunnel, now)
    rest = {
        k: v for k, v in status.items() if k not in {"role", "version", "pid", "since", "config", "tunnels"}
    }
    lines += [
        f"{_label(key, _PROCESS_LABELS)}: {_counted(key, value, now)}"
        for key, value in rest.items()
        if (value if key in _OF_TIME else _total(value))
    ]
    return "\n".join(printable(line, None) for line in lines)


def _server(tunnels: Sequence[Status], now: datetime) -> list[str]:
    rows = [list(_COLUMNS.values())]
    rows += [[_cell(column, tunnel.get(column), now) for column in _COLUMNS] for tunnel in tunnels]
    if len(rows) == 1:
        return ["no clients"]
    widths = [max(len(row[index]) for row in rows) for index in range(len(_COLUMNS))]
    connected = sum(tunnel.get("state") == "connected" for tunnel in tunnels)
    lines = [f"{connected} of {len(rows) - 1} clients connected"]
    lines += [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    for tunnel in tunnels:
        warnings = tunnel.get("warnings")
        remarks = [_why_away(tunnel, now), *(warnings if isinstance(warnings, list) else [warnings])]
        lines += [f"{tunnel.get('id')}: {remark}" for remark in remarks if remark]
    return lines


def _why_away(tunnel: Status, now: datetime) -> str:
    """The latest failure of a client that is not connected."""
    if tunnel.get("state") == "connected":
        return ""
    return _failure(tunnel.get("last_failure"), now)


def _failure(value: Any, now: datetime) -> str:
    if not isinstance(value, dict) or not value.get("reason"):
        return ""
    return f"{value['reason']} ({_since(value.get('time'), now)} ago)"


def _cell(column: str, value: Any, now: datetime) -> str:
    """The value in a table: a total, or the first of a long list."""
    if column == "drops" and isinstance(value, dict):
        return str(_total(value))
    if column == "subnets" and isinstance(value, list) and len(value) > 2:
        return f"{value[0]} +{len(value) - 1}"
    return _value(column, value, now)


def _counted(key: str, value: Any, now: datetime) -> str:
    """The length of a list that may have a thousand names, and the first names."""
    if key != "old_key_in_use" or not isinstance(value, list):
        return _value(key, value, now)
    more = ", ..." if len(value) > MAX_NAMES else ""
    return f"{len(value)} ({', '.join(map(str, value[:MAX_NAMES]))}{more})"


def _total(value: Any) -> Any:
    """The sum of the counts in a mapping; any other value as it is."""
    if not isinstance(value, dict):
        return value
    return sum(count for count in value.values() if isinstance(count, int))


def _pairs(values: Status, now: datetime) -> list[str]:
    # Before the first session there is no MTU yet.
    present = {
        _label(key, _TUNNEL_LABELS): _value(key, value, now)
        for key, value in _marked(values).items()
        if value not in _NOTHING and key not in _SHOWN_ELSEWHERE and not (key == "mtu" and not value)
    }
    width = max(map(len, present), default=0)
    return [f"  {label.ljust(width)}  {value}" for label, value in present.items()]


def _marked(values: Status) -> Status:
    """The values, with the refused ones among the subnets marked. The reasons are among the warnings."""
    refused, subnets = values.get("refused_subnets"), values.get("subnets")
    if not isinstance(refused, dict) or not isinstance(subnets, list):
        return values
    marks = [f"{subnet} (refused)" for subnet in refused]
    return {**values, "subnets": [*(one for one in subnets if str(one) not in refused), *marks]}


def _label(key: str, labels: Mapping[str, str]) -> str:
    return labels.get(key, key.replace("_", " "))


def _value(key: str, value: Any, now: datetime) -> str:
    if value in _NOTHING:
        return "-"
    if key in _OF_TIME:
        return _OF_TIME[key](value, now) or "-"
    if isinstance(value, dict):
        return ", ".join(f"{name} {count}" for name, count in value.items() if count) or "none"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return _UNITS.get(key, str)(value) if isinstance(value, int | float) else str(value)


def _bytes(count: float) -> str:
    count = _bounded(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def _milliseconds(value: float) -> str:
    return f"{_bounded(value):.1f} ms"


def _bounded(number: float) -> float:
    """The number, or the nearest one that a float can hold: another process may answer anything."""
    return max(-_MANY, min(number, _MANY))


_NOTHING: tuple[object, ...] = (None, "", [], {})
_UNITS: dict[str, Callable[[Any], str]] = {"rx_bytes": _bytes, "tx_bytes": _bytes, "rtt_ms": _milliseconds}


def _since(value: Any, now: datetime) -> str:
    """How long ago an ISO 8601 time was, in its two largest units."""
    at = _time(value)
    return duration((now - at).total_seconds()) if at is not None else "-"


def _until(value: Any, now: datetime) -> str:
    at = _time(value)
    return duration((at - now).total_seconds()) if at is not None else "-"


_OF_TIME: dict[str, Callable[[Any, datetime], str]] = {
    "since": _since,
    "next_rekey": lambda value, now: f"in {_until(value, now)}",
    "last_failure": _failure,
}


def _time(value: Any) -> datetime | None:
    try:
        at = datetime.fromisoformat(str(value))
        return at.astimezone(UTC) if at.tzinfo else at.replace(tzinfo=UTC)
    except (ValueError, OverflowError):  # the latter: at the ends of the calendar
        return None
