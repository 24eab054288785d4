"""Which source addresses a client may use: its own and those of its granted subnets (BCP 38, reverse path)."""

from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Network, ip_network

from dtun.dataplane.device import Counters

CACHE_SIZE = 4096
"""Remembered results at most: a peer that tries many addresses must not fill the memory."""

LINK_ONLY = "source only valid on a link"
"""Why a packet is ignored and not counted as a drop."""

_Prefix = tuple[int, int, int]
"""Length of an address in bytes, mask, network."""


class SourceFilter:
    """Accepts packets by their source address, usually with one look-up."""

    __slots__ = ("_accepted", "_drops", "_ignored", "_objections", "_prefixes")

    def __init__(self, counters: Counters, allowed: Iterable[IPv4Network | IPv6Network] = ()) -> None:
        self._drops = counters.drops
        self._ignored = counters.ignored
        self._accepted: set[bytes] = set()
        self._objections: dict[bytes, str] = {}
        self._prefixes: list[_Prefix] = []
        self.allow(allowed)

    def allow(self, allowed: Iterable[IPv4Network | IPv6Network]) -> None:
        """From now on accept packets from these networks only."""
        self._prefixes = [_prefix(network) for network in allowed]
        self._accepted.clear()
        self._objections.clear()

    def accepts(self, frame: bytes, start: int) -> bool:
        """Whether the packet at `start` may come from this peer; if not, the drop is counted by its reason.

        IPv4 (RFC 791)    45 . . . | . . . . | . . . . | source 4 | destination 4
        IPv6 (RFC 8200)   6. . . . | . . . . | source 16          | destination 16
        """
        length = len(frame) - start
        if length >= 20 and frame[start] >> 4 == 4:
            source = frame[start + 12 : start + 16]
        elif length >= 40 and frame[start] >> 4 == 6:
            source = frame[start + 8 : start + 24]
        else:
            self._drops["not an IP packet"] += 1
            return False
        if source in self._accepted:
            return True
        objection = self._objections.get(source)
        if objection is None:
            objection = self._judge(source)
        if objection:
            (self._ignored if objection == LINK_ONLY else self._drops)[objection] += 1
        return not objection

    @property
    def remembered(self) -> int:
        """How many addresses have a remembered result."""
        return len(self._accepted) + len(self._objections)

    def _judge(self, source: bytes) -> str:
        """Why a packet with this source is not accepted; "" if it is."""
        number, size = int.from_bytes(source), len(source)
        if any(size == length and number & mask == prefix for length, mask, prefix in self._prefixes):
            objection = ""
        elif any(size == length and number & mask == prefix for length, mask, prefix in _LINK_ONLY):
            objection = LINK_ONLY
        else:
            objection = "source not allowed"
        if self.remembered >= CACHE_SIZE:
            self._objections.clear()
            self._accepted.clear()
        if objection:
            self._objections[source] = objection
        else:
            self._accepted.add(source)
        return objection


def _prefix(network: IPv4Network | IPv6Network) -> _Prefix:
    return network.max_prefixlen // 8, int(network.netmask), int(network.network_address)


# Every kernel sends these to neighbours on each device (RFC 3376, RFC 3810): not an attack, but not to be forwarded.
_LINK_ONLY = [_prefix(ip_network(text)) for text in ("0.0.0.0/32", "::/128", "fe80::/10")]


def is_link_only(frame: bytes) -> bool:
    """Whether this frame is an IP packet whose source is valid on a link only."""
    version = frame[0] >> 4 if frame else 0
    if version == 4 and len(frame) >= 20:
        source = frame[12:16]
    elif version == 6 and len(frame) >= 40:
        source = frame[8:24]
    else:
        return False
    number, size = int.from_bytes(source), len(source)
    return any(size == length and number & mask == prefix for length, mask, prefix in _LINK_ONLY)
