"""Which source addresses a client may use: its own and those of its granted subnets (BCP 38, reverse path)."""

from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Network

from dtun.dataplane.counters import Counters

CACHE_SIZE = 4096
"""Verdicts that are remembered; a peer that tries many addresses must not fill the memory."""


class SourceFilter:
    """Judges packets by their source address. One dictionary look-up in the ordinary case."""

    def __init__(self, counters: Counters, allowed: Iterable[IPv4Network | IPv6Network] = ()) -> None:
        self._drops = counters.drops
        self._verdicts: dict[bytes, bool] = {}
        self._prefixes: list[tuple[int, int, int]] = []
        self.allow(allowed)

    def allow(self, allowed: Iterable[IPv4Network | IPv6Network]) -> None:
        """From now on let packets from these networks pass, and no others."""
        self._prefixes = [
            (network.max_prefixlen // 8, int(network.netmask), int(network.network_address))
            for network in allowed
        ]
        self._verdicts.clear()

    def accepts(self, packet: bytes) -> bool:
        """Whether the packet may come from this peer; if not, the reason is counted.

        IPv4 (RFC 791)    45 . . . | . . . . | . . . . | source 4 | destination 4
        IPv6 (RFC 8200)   6. . . . | . . . . | source 16          | destination 16
        """
        version = packet[0] >> 4
        if version == 4 and len(packet) >= 20:
            source = packet[12:16]
        elif version == 6 and len(packet) >= 40:
            source = packet[8:24]
        else:
            self._drops["not an IP packet"] += 1
            return False
        verdict = self._verdicts.get(source)
        if verdict is None:
            verdict = self._judge(source)
        if not verdict:
            self._drops["source not allowed"] += 1
        return verdict

    def _judge(self, source: bytes) -> bool:
        number, size = int.from_bytes(source), len(source)
        verdict = any(size == length and number & mask == prefix for length, mask, prefix in self._prefixes)
        if len(self._verdicts) >= CACHE_SIZE:
            self._verdicts.clear()
        self._verdicts[source] = verdict
        return verdict
