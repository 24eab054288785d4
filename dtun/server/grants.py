"""Which of the subnets that a client asks for the server routes to it. Pure."""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from dtun.network.state import Network
from dtun.protocol.messages import Refusal


@dataclass(frozen=True, slots=True)
class Grant:
    """What a client gets of what it asked for, and what it does not get and why."""

    granted: tuple[Network, ...]
    refused: tuple[Refusal, ...]


def grant(
    requested: Iterable[Network], allows: Callable[[Network], bool], taken: Mapping[Network, str]
) -> Grant:
    """Judge each requested subnet.

    `allows` tells whether the client may ask for it; `taken` maps networks that are somebody else's to
    words for their owner.
    """
    owned = _Owned(taken)
    granted: list[Network] = []
    refused: list[Refusal] = []
    for subnet in dict.fromkeys(requested):
        reason = _objection(subnet, allows, owned)
        if reason is None:
            granted.append(subnet)
        else:
            refused.append(Refusal(subnet=subnet, reason=reason))
    return Grant(tuple(granted), tuple(refused))


class _Owned:
    """Finds who has a network already. Clients may ask for a thousand, where others have thousands: no look at each.

    Two networks overlap only if one is a part of the other.
    """

    def __init__(self, taken: Mapping[Network, str]) -> None:
        self._taken = taken
        self._lengths = sorted({(network.version, network.prefixlen) for network in taken})
        self._sorted = sorted(taken, key=_place)

    def objection(self, subnet: Network) -> str | None:
        """The network that overlaps this one, with its owner."""
        for network in self._near(subnet):
            owner = self._taken.get(network)
            if owner is not None and network.overlaps(subnet):
                return f"it overlaps {network}, which belongs to {owner}"
        return None

    def _near(self, subnet: Network) -> Iterable[Network]:
        """All that can contain this one, and then the first that it can contain."""
        for version, length in self._lengths:
            if version == subnet.version and length <= subnet.prefixlen:
                yield subnet.supernet(new_prefix=length)
        following = bisect_left(self._sorted, _place(subnet), key=_place)
        yield from self._sorted[following : following + 1]


def _place(network: Network) -> tuple[int, int, int]:
    """An order in which a network comes right before its parts."""
    return network.version, int(network.network_address), network.prefixlen


def _objection(subnet: Network, allows: Callable[[Network], bool], owned: _Owned) -> str | None:
    if not allows(subnet):
        return "the server's configuration does not allow it for this client"
    return owned.objection(subnet)
