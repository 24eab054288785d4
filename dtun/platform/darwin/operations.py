"""Carries out one change after the other, and says in a person's words why the kernel refuses one."""

from dtun.errors import PermissionDeniedError
from dtun.network.difference import Change
from dtun.network.state import Dns, NetDevice, PointToPoint, Route, Sysctl
from dtun.platform.darwin import errors, lookup, routes, syscalls
from dtun.platform.darwin.constants import (
    AF_ROUTE,
    RTM_ADD,
    RTM_CHANGE,
    RTM_DELETE,
    SO_USELOOPBACK,
    SOCK_RAW,
    SOL_SOCKET,
)
from dtun.platform.darwin.interfaces import Interfaces
from dtun.platform.darwin.resolver import Resolver, ResolverError
from dtun.platform.darwin.settings import Settings

ADVICE = "remove that route, or keep this network out of the tunnel"


class Operations:
    """The sockets that changes are made through."""

    def __init__(self, settings: Settings, resolver: Resolver) -> None:
        self._settings = settings
        self._resolver = resolver
        self._interfaces = Interfaces()
        self._routing = syscalls.open_socket(AF_ROUTE, SOCK_RAW)
        # The answer to a request is what `send` returns; nobody reads here.
        self._routing.setsockopt(SOL_SOCKET, SO_USELOOPBACK, 0)
        self._sequence = 0

    def close(self) -> None:
        self._interfaces.close()
        self._routing.close()

    def check_permission(self) -> None:
        """Raises OSError with EPERM if this process may change nothing."""
        self._interfaces.check_permission()

    def refusal(self, change: Change) -> str | None:
        """Make the change; returns the kernel's reason if it refuses, None when all is as it should be.

        Raises:
            PermissionDeniedError: not root.
            UnavailableError: the journal cannot be written.
        """
        try:
            self._make(change)
        except ResolverError as error:
            return str(error)
        except OSError as error:
            if error.errno == errors.EPERM:
                raise PermissionDeniedError(errors.NOT_PERMITTED) from None
            if change.action == "remove":
                return None if error.errno in errors.GONE else errors.words(error)
            if error.errno == errors.EEXIST and isinstance(change.what, Route):
                return _rival(change.what)
            return _explanation(change, error)
        return None

    def refresh(self, route: Route) -> None:
        """Let the kernel choose the source address of a route anew. Raises OSError."""
        self._ask(RTM_CHANGE, route)

    def _make(self, change: Change) -> None:
        going = change.action == "remove"
        match change.what:
            case NetDevice() as link:
                (self._interfaces.set_down if going else self._interfaces.set_up)(link)
            case PointToPoint() as pair:
                (self._interfaces.remove_address if going else self._interfaces.add_address)(pair)
            case Sysctl() as setting:
                (self._settings.put_back if going else self._settings.put)(setting)
            case Dns() as dns:
                if going:
                    self._resolver.clear()
                else:
                    self._resolver.apply(dns)
            case Route() as route if going:
                self._ask(RTM_DELETE, route)
            case Route() as route:
                self._put(route, change.previous)

    def _put(self, route: Route, previous: object) -> None:
        if not isinstance(previous, Route):
            self._ask(RTM_ADD, route)
        elif route.gateway and previous.gateway:
            self._ask(RTM_CHANGE, route)
        else:
            # A change leaves the flags as they are, and here they differ.
            self._ask(RTM_DELETE, previous)
            self._ask(RTM_ADD, route)

    def _ask(self, kind: int, route: Route) -> None:
        self._sequence += 1
        index = 0
        if route.device:
            try:
                index = syscalls.index_of(route.device)
            except OSError:
                raise OSError(errors.ENXIO, "there is no such device") from None
        self._routing.send(routes.request(kind, route, index, self._sequence))


def _rival(wanted: Route) -> str | None:
    """Who has the destination that we want; None if that is ourselves, as after an apply that was cut short."""
    for found in lookup.table(wanted.destination.version):
        if found.route.destination != wanted.destination or found.scoped:
            continue
        if found.is_ours(wanted):
            return None
        if found.route.kind == "unreachable":
            return f"{wanted.destination} is made unreachable by another route already; {ADVICE}"
        via = f" via {found.route.gateway}" if found.route.gateway else ""
        owner = "another dtun" if found.ours else "another program"
        return (
            f"{wanted.destination} is routed through {found.route.device}{via} already, by {owner}; {ADVICE}"
        )
    return "it exists"


def _explanation(change: Change, error: OSError) -> str:
    match change.what, error.errno:
        case PointToPoint(local=local), errors.EINVAL | errors.ENOBUFS if local.version == 6:
            return "the kernel finds it invalid; IPv6 needs an MTU of 1280 or more"
    return errors.words(error)
