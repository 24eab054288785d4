"""What a server tells its clients to send and to ask through the tunnel."""

from dataclasses import dataclass
from typing import Annotated, TypeVar

from pydantic import Field

from dtun.config.common import Section
from dtun.config.values import NetworkValue, OneOrMore
from dtun.config.words import AddressValue, Domain, OrEverything
from dtun.network.state import Address, Network

# What fits into a Welcome, see dtun.protocol.messages.
MAX_ROUTES = 256
MAX_DNS = 8
MAX_DOMAINS = 32

PUSHES = ("push_routes", "push_dns", "push_domains")

_Item = TypeVar("_Item")


@dataclass(frozen=True, slots=True)
class Pushed:
    """For one client. It takes of that what its own configuration allows."""

    routes: tuple[Network, ...] = ()
    dns: tuple[Address, ...] = ()
    domains: tuple[str, ...] = ()


class Pushing(Section):
    """The server section, or an entry of it. None is what was not given; an empty list pushes nothing."""

    push_routes: Annotated[tuple[NetworkValue, ...], Field(max_length=MAX_ROUTES), OrEverything] | None = None
    push_dns: Annotated[tuple[AddressValue, ...], Field(max_length=MAX_DNS), OneOrMore] | None = None
    push_domains: Annotated[tuple[Domain, ...], Field(max_length=MAX_DOMAINS), OneOrMore] | None = None


def choose_pushed(entry: Pushing, server: Pushing) -> Pushed:
    """Of each kind what the entry says, else what the server says."""
    return Pushed(
        _first(entry.push_routes, server.push_routes),
        _first(entry.push_dns, server.push_dns),
        _first(entry.push_domains, server.push_domains),
    )


def _first(own: tuple[_Item, ...] | None, general: tuple[_Item, ...] | None) -> tuple[_Item, ...]:
    return own if own is not None else general or ()
