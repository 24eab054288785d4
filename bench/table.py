"""Result tables: medians with their spread, and dtun compared with the others."""

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from statistics import median
from typing import NamedTuple

# The measured values of a peer by metric, one for each successful round.
Values = Mapping[str, Sequence[float]]

GAP = "  "
MIN_WIDTH = 9


class Metric(NamedTuple):
    """One column of the table."""

    key: str
    group: str
    title: str
    digits: int = 0


METRICS = (
    Metric("tcp_up", "TCP, Gbit/s", "up", 2),
    Metric("tcp_down", "TCP, Gbit/s", "down", 2),
    Metric("tcp_four", "TCP, Gbit/s", "4 streams", 2),
    Metric("udp_1200", "UDP, 1,000/s", "1,200 B", 1),
    Metric("udp_64", "UDP, 1,000/s", "64 B", 1),
    Metric("cpu", "CPU", "s per GB", 2),
    Metric("idle_p50", "ms, idle", "p50", 2),
    Metric("idle_p99", "ms, idle", "p99", 2),
    Metric("loaded_p50", "ms, under load", "p50", 2),
    Metric("loaded_p99", "ms, under load", "p99", 2),
    Metric("first_ping", "first ping, ms", "from start", 0),
    Metric("first_ping_sent", "first ping, ms", "from send", 0),
    Metric("login_idle", "login, ms", "idle", 1),
    Metric("login_loaded", "login, ms", "under load", 1),
    Metric("memory_client", "memory, MiB", "client", 1),
    Metric("memory_server", "memory, MiB", "server", 1),
)
# The metrics that are compared as ratios.
COMPARED = tuple(
    metric for metric in METRICS if metric.key.startswith(("tcp_", "udp_")) or metric.key == "cpu"
)


def percentile(values: Iterable[float], percent: float) -> float:
    """The nearest-rank percentile: the least value that `percent` of the values do not exceed.

    Raises:
        ValueError: there are no values.
    """
    ordered = sorted(values)
    if not ordered:
        raise ValueError("there is no percentile of nothing")
    return ordered[max(math.ceil(len(ordered) * percent / 100), 1) - 1]


def results_table(results: Mapping[str, Values]) -> str:
    """A line of medians for each peer, and below it the spread if there was more than one round."""
    rows: list[list[str]] = []
    for peer, values in results.items():
        rows.append([peer, *(_median(values, metric) for metric in METRICS)])
        if any(len(series) > 1 for series in values.values()):
            rows.append(["", *(_spread(values, metric) for metric in METRICS)])
    return _layout(METRICS, rows)


def ratio_table(results: Mapping[str, Values], subject: str) -> str:
    """The medians of `subject` as multiples of every other peer's; empty if it was not measured."""
    own = results.get(subject)
    if own is None:
        return ""
    rows = [
        [peer, *(_ratio(own, values, metric) for metric in COMPARED)]
        for peer, values in results.items()
        if peer != subject
    ]
    return _layout(COMPARED, rows)


def _median(values: Values, metric: Metric) -> str:
    series = values.get(metric.key)
    return f"{median(series):,.{metric.digits}f}" if series else "-"


def _spread(values: Values, metric: Metric) -> str:
    series = values.get(metric.key, ())
    if len(series) < 2:
        return ""
    return f"{min(series):.{metric.digits}f}-{max(series):.{metric.digits}f}"


def _ratio(own: Values, other: Values, metric: Metric) -> str:
    one, two = own.get(metric.key), other.get(metric.key)
    if not one or not two or median(two) == 0:
        return "-"
    return f"{median(one) / median(two):.2f}"


def _layout(metrics: Sequence[Metric], rows: Sequence[Sequence[str]]) -> str:
    """Right-aligned columns under two lines of headings: the group over its columns, then each title."""
    titles = ["", *(metric.title for metric in metrics)]
    widths = [max(len(row[column]) for row in [titles, *rows]) for column in range(len(titles))]
    widths = [widths[0], *(max(width, MIN_WIDTH) for width in widths[1:])]
    groups = [" " * widths[0]]
    column = 1
    for group, members in groupby(metric.group for metric in metrics):
        span = widths[column : column + len(list(members))]
        groups.append(group.center(sum(span) + len(GAP) * (len(span) - 1)))
        column += len(span)
    lines = [GAP.join(groups)]
    for row in [titles, *rows]:
        cells = [text.rjust(width) for text, width in zip(row[1:], widths[1:], strict=True)]
        lines.append(GAP.join([row[0].ljust(widths[0]), *cells]))
    return "\n".join(line.rstrip() for line in lines)
