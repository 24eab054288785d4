"""What went through a tunnel, and what was dropped and why."""

import errno
from collections import Counter
from dataclasses import dataclass, field


@dataclass(slots=True)
class Counters:
    """Packets and bytes inside the tunnel. `rx` came from the peer, `tx` went to it.

    A super-packet counts as the packets that it stands for, and with its headers once.
    """

    rx_packets: int = 0
    rx_bytes: int = 0
    tx_packets: int = 0
    tx_bytes: int = 0
    drops: Counter[str] = field(default_factory=Counter)

    def dropped(self, doing: str, error: OSError) -> None:
        """Count a drop by what was tried and the name of the error: "udp send: ENOBUFS"."""
        self.drops[f"{doing}: {errno.errorcode.get(error.errno or 0, 'error')}"] += 1
