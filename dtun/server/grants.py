"""Decides which of the subnets that a client asks for are routed to it. Pure."""

from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from dtun.network.prefixes import covers
from dtun.network.state import Network
from dtun.protocol.messages import Refusal

_NOTHING: Mapping[Network, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Grant:
    """The subnets that a client gets, and those that it does not get, with reasons."""

    granted: tuple[Network, ...]
    refused: tuple[Refusal, ...]


def grant(
    requested: Iterable[Network],
    allows: Callable[[Network], bool],
    taken: Mapping[Network, str],
    routed: Mapping[Network, str] = _NOTHING,
    named: Collection[Network] = (),
) -> Grant:
    """Grant or refuse each requested subnet.

    `allows` tells whether the client may ask for it; `taken` maps networks that belong to others to a description of
    their owner, `routed` those that the host sends elsewhere to a description of the route. A route is no objection if
    the configuration names a network inside it, or the same, for this client (`named`): that is the administrator's
    word. Nor are routes inside a subnet then: the kernel prefers them.
    """
    owned, elsewhere = _Owned(taken), _Owned(routed)
    granted: list[Network] = []
    refused: list[Refusal] = []
    for subnet in dict.fromkeys(requested):
        reason = _objection(subnet, allows, owned) or _routed_elsewhere(subnet, elsewhere, named)
        if reason is None:
            granted.append(subnet)
        else:
            refused.append(Refusal(subnet=subnet, reason=reason))
    return Grant(tuple(granted), tuple(refused))


class _Owned:
    """Finds the owner of a network without a comparison with each: there may be thousands, and a thousand requests.

    Two networks overlap only if one is a part of the other.
    """

    def __init__(self, taken: Mapping[Network, str]) -> None:
        self._taken = taken
        self._lengths = sorted({(network.version, network.prefixlen) for network in taken})
        self._sorted = sorted(taken, key=_place)

    def objection(self, subnet: Network) -> str | None:
        """A reason to refuse this subnet: the network that overlaps it, with its owner."""
        for network, owner in self.overlapping(subnet):
            return f"it overlaps {network}, which belongs to {owner}"
        return None

    def overlapping(self, subnet: Network) -> Iterator[tuple[Network, str]]:
        """All networks around this one, and one of those inside it, each with its owner."""
        for network in self._near(subnet):
            owner = self._taken.get(network)
            if owner is not None and network.overlaps(subnet):
                yield network, owner

    def _near(self, subnet: Network) -> Iterable[Network]:
        """The networks that may contain this one, and then the first one that it may contain."""
        for version, length in self._lengths:
            if version == subnet.version and length <= subnet.prefixlen:
                yield subnet.supernet(new_prefix=length)
        following = bisect_left(self._sorted, _place(subnet), key=_place)
        yield from self._sorted[following : following + 1]


def _place(network: Network) -> tuple[int, int, int]:
    """A sort key that puts a network right before its parts."""
    return network.version, int(network.network_address), network.prefixlen


def _objection(subnet: Network, allows: Callable[[Network], bool], owned: _Owned) -> str | None:
    if not allows(subnet):
        return "the server's configuration does not allow it for this client"
    return owned.objection(subnet)


def _routed_elsewhere(subnet: Network, routed: _Owned, named: Collection[Network]) -> str | None:
    """A reason to refuse a subnet because of the host's routes."""
    around = [network for network in named if covers([network], subnet)]
    for network, description in routed.overlapping(subnet):
        inside = network.prefixlen > subnet.prefixlen
        if not around or not (inside or any(covers([network], one) for one in around)):
            return f"it overlaps {network}, which is routed {description} already"
    return None
