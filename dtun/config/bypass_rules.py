"""The rules about what goes around a client's tunnel, wherever it is listed. They need the lists to be read."""

from collections.abc import Iterator, Mapping

from dtun.config.client import ClientConfig
from dtun.config.errors import Location, Place, Problem
from dtun.config.lists import MAX_SHOWN
from dtun.network.prefixes import PrefixSet
from dtun.network.state import Network

_HERE: Location = ("client",)


def bypass_problems(client: ClientConfig) -> Iterator[Problem]:
    if not client.bypassed:
        return
    places = _places(client)
    bypassed = PrefixSet(client.bypassed)
    for index, route in enumerate(client.routes):
        if route in places:
            message = f"{route} is in two lists: it cannot go both through the tunnel and around it; remove one of them"
            yield Problem((*_HERE, "routes", index), message, related=places[route])
    for index, subnet in enumerate(client.subnets):
        if subnet in bypassed:
            message = f"{subnet} is behind this client, so it cannot go around the tunnel; remove one of them"
            yield Problem((*_HERE, "subnets", index), message, related=_enclosing(places, subnet))


def bypass_warnings(client: ClientConfig) -> Iterator[Problem]:
    if not client.bypassed:
        return
    yield from _twice(client)
    places = _places(client)
    bypassed = PrefixSet(client.bypassed)
    for index, route in enumerate(client.routes):
        if route in bypassed and route not in places:
            message = f"all of {route} goes around the tunnel; remove the route, or what excludes it"
            yield Problem((*_HERE, "routes", index), message, related=_enclosing(places, route))


def _places(client: ClientConfig) -> dict[Network, Place]:
    """Each network, and where it is first."""
    places: dict[Network, Place] = {}
    for network, place in client.around(_HERE):
        places.setdefault(network, place)
    return places


def _enclosing(places: Mapping[Network, Place], network: Network) -> Place | None:
    """Where the narrowest network around `network` is; None if only several together are around it."""
    lengths = range(network.prefixlen, -1, -1)
    wider = (network.supernet(new_prefix=length) for length in lengths)
    return next((places[candidate] for candidate in wider if candidate in places), None)


def _twice(client: ClientConfig) -> Iterator[Problem]:
    first: dict[Network, Place] = {}
    found = 0
    for network, place in client.around(_HERE):
        other = first.setdefault(network, place)
        if other is place:
            continue
        found += 1
        if found <= MAX_SHOWN:
            where = "is twice in this list" if _list_of(other) == _list_of(place) else "is in two lists"
            yield _warning(place, f"{network} {where}; one is enough", other)
    if found > MAX_SHOWN:
        message = f"and {found - MAX_SHOWN} more networks are listed twice"
        yield Problem((*_HERE, "bypass_files" if client.bypass_files else "bypass"), message)


def _warning(place: Place, message: str, related: Place) -> Problem:
    if isinstance(place, str):
        return Problem((*_HERE, "bypass_files"), message, related=related, elsewhere=place)
    return Problem(place, message, related=related)


def _list_of(place: Place) -> Place:
    return place.rpartition(":")[0] if isinstance(place, str) else place[:-1]
