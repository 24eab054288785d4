"""A tunnel's state as plain values for the control socket, without secrets."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final

from dtun.dataplane.device import Counters
from dtun.platform.interface import Tun
from dtun.session.link import Link

DEVICE_DOWN: Final = "device down"
"""The state of a tunnel whose device is gone or down, with a session or without: no packet can pass."""


def timestamp(offset: float = 0) -> str:
    """The time `offset` seconds from now (ISO 8601, UTC, in whole seconds)."""
    return (datetime.now(UTC) + timedelta(seconds=offset)).isoformat(timespec="seconds")


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a tunnel did not carry, in words, and when (ISO 8601)."""

    reason: str
    time: str = field(default_factory=timestamp)


def failure_status(failure: Failure | None) -> Mapping[str, str] | None:
    """The status's `last_failure`. It stays when the tunnel is up again."""
    return {"time": failure.time, "reason": failure.reason} if failure is not None else None


def offloads_in_use(tun: Tun | None, features: Iterable[str] | None) -> list[str]:
    """The device's offloads that are used with a peer of these features."""
    return sorted(tun.offloads.intersection(features)) if tun is not None and features is not None else []


def link_status(link: Link | None, counters: Counters) -> Mapping[str, object]:
    """The part of a tunnel's status that comes from its session and its data plane."""
    drops = Counter(counters.drops)
    session: dict[str, object] = {
        "endpoint": None,
        "suite": None,
        "offloaded": None,
        "path_mtu": None,
        "rtt_ms": None,
    }
    if link is not None:
        association = link.session.association
        drops.update(link.drops)
        drops.update(association.records.drops)
        liveness = link.session.dialect.liveness if link.session.dialect else None
        session = {
            "endpoint": link.endpoint,
            "suite": association.suite.label if association.suite else None,
            "offloaded": association.records.offloaded,
            "path_mtu": link.path_mtu,
            "rtt_ms": round(liveness.rtt * 1000, 2) if liveness and liveness.rtt is not None else None,
        }
        if association.fallback_reason:
            session["fallback_reason"] = association.fallback_reason
    return {
        **session,
        "rx_bytes": counters.rx_bytes,
        "rx_packets": counters.rx_packets,
        "tx_bytes": counters.tx_bytes,
        "tx_packets": counters.tx_packets,
        "drops": dict(drops),
        "ignored": {reason: count for reason, count in counters.ignored.items() if count},
    }
