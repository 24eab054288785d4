"""Darwin's routes have no metric: a destination has one route. Where two are wanted, the better gets longer prefixes.

    wanted                                          in the kernel
    0.0.0.0/1      through utun4                    0.0.0.0/2      through utun4
                                                    64.0.0.0/2     through utun4
    0.0.0.0/1      unreachable, far worse           0.0.0.0/1      unreachable

So the kill switch is in place all the time: when the process is killed, what went through its device goes with it, and
what is left is the wider route, that refuses. Pure.
"""

from collections.abc import Iterable, Mapping

from dtun.network.state import Network, Route


def flatten(routes: Iterable[Route]) -> Mapping[Route, Route]:
    """The routes to install, without metrics, each with the wanted one that it is for.

    Of several with the same destination, the best and the worst are there: what counts, and what is left in the end.
    """
    rivals: dict[Network, list[Route]] = {}
    for route in routes:
        rivals.setdefault(route.destination, []).append(route)
    flat: dict[Network, Route] = {}
    origins: dict[Route, Route] = {}
    halved: list[tuple[Network, Route]] = []
    for destination, several in rivals.items():
        best, worst = min(several, key=_rank), max(several, key=_rank)
        if best is worst or destination.prefixlen == destination.max_prefixlen:
            _install(flat, origins, destination, best)
        else:
            _install(flat, origins, destination, worst)
            halved.append((destination, best))
    # What somebody wants for a half itself goes first.
    for destination, best in halved:
        for half in destination.subnets():
            if half not in flat:
                _install(flat, origins, half, best)
    return origins


def _install(
    flat: dict[Network, Route], origins: dict[Route, Route], destination: Network, wanted: Route
) -> None:
    route = Route(destination, wanted.device, wanted.gateway, kind=wanted.kind)
    flat[destination] = route
    origins[route] = wanted


def _rank(route: Route) -> tuple[object, ...]:
    """Smaller is better; the rest only makes the order certain."""
    return route.metric or 0, route.kind != "unicast", route.device, str(route.gateway), str(route.source)
