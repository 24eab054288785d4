"""Decides which of the subnets that a client asks for are routed to it. Pure."""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from dtun.network.state import Network
from dtun.protocol.messages import Refusal


@dataclass(frozen=True, slots=True)
class Grant:
    """The subnets that a client gets, and those that it does not get, with reasons."""

    granted: tuple[Network, ...]
    refused: tuple[Refusal, ...]


def grant(
    requested: Iterable[Network], allows: Callable[[Network], bool], taken: Mapping[Network, str]
) -> Grant:
    """Grant or refuse each requested subnet.

    `allows` tells whether the client may ask for it; `taken` maps networks that belong to others to a description of
    their owner.
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
    """Finds the owner of a network without a comparison with each: there may be thousands, and a thousand requests.

    Two networks overlap only if one is a part of the other.
    """

    def __init__(self, taken: Mapping[Network, str]) -> None:
        self._taken = taken
        self._lengths = sorted({(network.version, network.prefixlen) for network in taken})
        self._sorted = sorted(taken, key=_place)

    def objection(self, subnet: Network) -> str | None:
        """A reason to refuse this subnet: the network that overlaps it, with its owner."""
        for network in self._near(subnet):
            owner = self._taken.get(network)
            if owner is not None and network.overlaps(subnet):
                return f"it overlaps {network}, which belongs to {owner}"
        return None

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
