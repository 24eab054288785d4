"""Which of the subnets that a client asks for the server routes to it. Pure."""

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
    granted: list[Network] = []
    refused: list[Refusal] = []
    for subnet in dict.fromkeys(requested):
        reason = _objection(subnet, allows, taken)
        if reason is None:
            granted.append(subnet)
        else:
            refused.append(Refusal(subnet=subnet, reason=reason))
    return Grant(tuple(granted), tuple(refused))


def _objection(
    subnet: Network, allows: Callable[[Network], bool], taken: Mapping[Network, str]
) -> str | None:
    if not allows(subnet):
        return "the server's configuration does not allow it for this client"
    for network, owner in taken.items():
        if network.version == subnet.version and network.overlaps(subnet):
            return f"it overlaps {network}, which belongs to {owner}"
    return None
