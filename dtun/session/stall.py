"""Finds a stalled data plane: the event loop runs, packets wait, and none is carried. The watchdog then ends dtun."""

import select
from collections.abc import Collection
from dataclasses import dataclass

from dtun.dataplane.device import Counters
from dtun.platform.interface import Tun
from dtun.session.link import Link

PATIENCE = 3.0
"""Seconds without progress. Longer than the pump's pause after a read error, and than any turn of the event loop."""


@dataclass(frozen=True, slots=True)
class DataPlane:
    """One tunnel's descriptors; one number of `progress` grows with whatever is read from either."""

    device: int
    socket: int
    progress: tuple[int, ...]


def plane(tun: Tun, link: Link, counters: Counters) -> DataPlane:
    """The data plane of the tunnel that this session serves."""
    drops = counters.drops, counters.ignored, link.drops, link.session.association.records.drops
    progress = (
        counters.tx_packets,
        counters.rx_packets,
        link.control_received,
        *(counter.total() for counter in drops),
    )
    return DataPlane(tun.fileno(), link.fileno(), progress)


class StallDetector:
    """Notices that packets wait although they could be carried. Call `stalled` every few seconds."""

    def __init__(self) -> None:
        self._waiting: dict[DataPlane, float] = {}  # since when; progress makes another key

    def stalled(self, planes: Collection[DataPlane], now: float) -> bool:
        """Whether one of them had packets to carry for PATIENCE seconds and carried none."""
        self._waiting = {plane: self._waiting.get(plane, now) for plane in _waiting(planes)}
        return any(now - since >= PATIENCE for since in self._waiting.values())


def _waiting(planes: Collection[DataPlane]) -> list[DataPlane]:
    """Those with something to read. Not a device whose socket has no room: it waits for the network."""
    poll = select.poll()
    for each in planes:
        poll.register(each.device, select.POLLIN)
        poll.register(each.socket, select.POLLIN | select.POLLOUT)
    ready = dict(poll.poll(0))
    return [
        each
        for each in planes
        if ready.get(each.socket, 0) & select.POLLIN
        or (ready.get(each.device, 0) & select.POLLIN and ready.get(each.socket, 0) & select.POLLOUT)
    ]
