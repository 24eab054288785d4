"""Darwin's routes have no metric: there is one route for a destination. Of two, the better gets longer prefixes. Pure.

    wanted                                          in the kernel
    0.0.0.0/1      through utun4                    0.0.0.0/2      through utun4
                                                    64.0.0.0/2     through utun4
    0.0.0.0/1      unreachable, worst metric        0.0.0.0/1      unreachable

So the kill switch is always in place: when the process is killed, the kernel removes the routes through its device,
and the wider unreachable route applies.
"""

from collections.abc import Iterable, Mapping

from dtun.network.state import Network, Route


def without_metrics(routes: Iterable[Route]) -> Mapping[Route, Route]:
    """The routes to install, without metrics, each with the wanted route that it stands for.

    Of several with one destination, the best and the worst are installed.
    """
    by_destination: dict[Network, list[Route]] = {}
    for route in routes:
        by_destination.setdefault(route.destination, []).append(route)
    installed: dict[Network, Route] = {}
    origins: dict[Route, Route] = {}
    halved: list[tuple[Network, Route]] = []
    for destination, several in by_destination.items():
        best, worst = min(several, key=_rank), max(several, key=_rank)
        if best is worst or destination.prefixlen == destination.max_prefixlen:
            _install(installed, origins, destination, best)
        else:
            _install(installed, origins, destination, worst)
            halved.append((destination, best))
    # A route that is wanted for a half itself has precedence.
    for destination, best in halved:
        for half in destination.subnets():
            if half not in installed:
                _install(installed, origins, half, best)
    return origins


def _install(
    installed: dict[Network, Route], origins: dict[Route, Route], destination: Network, wanted: Route
) -> None:
    route = Route(destination, wanted.device, wanted.gateway, kind=wanted.kind)
    installed[destination] = route
    origins[route] = wanted


def _rank(route: Route) -> tuple[object, ...]:
    """Smaller is better; the fields after the metric only make the order deterministic."""
    return route.metric or 0, route.kind != "unicast", route.device, str(route.gateway), str(route.source)
