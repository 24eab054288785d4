"""Does the data plane move? A loop that turns and yet carries nothing is of no use: the watchdog is to end it."""

import select
from collections.abc import Collection
from dataclasses import dataclass

from dtun.dataplane.counters import Counters
from dtun.platform.interface import Tun
from dtun.session.link import Link

PATIENCE = 3.0
"""Seconds. Longer than a device that cannot be read is left alone, and than any turn of the loop."""


@dataclass(frozen=True, slots=True)
class DataPlane:
    """One tunnel at work: its two descriptors, and numbers of which one grows with whatever is read from either."""

    device: int
    socket: int
    progress: tuple[int, ...]


def plane(tun: Tun, link: Link, counters: Counters) -> DataPlane:
    """The data plane of a tunnel that this session serves."""
    drops = counters.drops, link.drops, link.session.association.records.drops
    progress = (counters.tx_packets, counters.rx_packets, link.turns, *(found.total() for found in drops))
    return DataPlane(tun.fileno(), link.fileno(), progress)


class StallDetector:
    """Notices that packets wait although they could go: look now and then."""

    def __init__(self) -> None:
        self._still: dict[DataPlane, float] = {}

    def lasts(self, planes: Collection[DataPlane], now: float) -> bool:
        """Whether one of them has had work and done none for PATIENCE seconds."""
        waiting = _waiting(planes)
        self._still = {one: self._still.get(one, now) for one in waiting}
        return any(now - since >= PATIENCE for since in self._still.values())


def _waiting(planes: Collection[DataPlane]) -> list[DataPlane]:
    """Those that have something to read. A device that waits for room in its socket has not: that is the network's."""
    poll = select.poll()
    for one in planes:
        poll.register(one.device, select.POLLIN)
        poll.register(one.socket, select.POLLIN | select.POLLOUT)
    ready = dict(poll.poll(0))
    return [
        one
        for one in planes
        if ready.get(one.socket, 0) & select.POLLIN
        or (ready.get(one.device, 0) & select.POLLIN and ready.get(one.socket, 0) & select.POLLOUT)
    ]
