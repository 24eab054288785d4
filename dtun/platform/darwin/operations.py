"""Makes changes in the kernel one by one, with a readable reason where it refuses one."""

from dtun.errors import PermissionDeniedError
from dtun.network.difference import Change
from dtun.network.state import Dns, NetDevice, PointToPoint, Route, Sysctl
from dtun.platform.darwin import errors, observed, rtmsg, syscalls
from dtun.platform.darwin.constants import (
    AF_ROUTE,
    RTM_ADD,
    RTM_CHANGE,
    RTM_DELETE,
    SO_USELOOPBACK,
    SOCK_RAW,
    SOL_SOCKET,
)
from dtun.platform.darwin.ioctl import InterfaceIoctls
from dtun.platform.darwin.resolver import Resolver, ResolverError
from dtun.platform.darwin.sysctl import Settings

ADVICE = "remove that route, or keep this network out of the tunnel"


class Operations:
    """The sockets that changes are made through."""

    def __init__(self, settings: Settings, resolver: Resolver) -> None:
        self._settings = settings
        self._resolver = resolver
        self._interfaces = InterfaceIoctls()
        self._routing = syscalls.open_socket(AF_ROUTE, SOCK_RAW)
        # Errors are returned by `send`; nothing reads the echoes of our requests here.
        self._routing.setsockopt(SOL_SOCKET, SO_USELOOPBACK, 0)
        self._sequence = 0

    def close(self) -> None:
        self._interfaces.close()
        self._routing.close()

    def check_permission(self) -> None:
        """Raises OSError with EPERM if this process may not change anything."""
        self._interfaces.check_permission()

    def apply(self, change: Change) -> str | None:
        """Make the change. Returns None if the kernel is then as it should be, else the reason of its refusal.

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
                return None if error.errno in errors.GONE else errors.reason(error)
            if error.errno == errors.EEXIST and isinstance(change.what, Route):
                return _route_conflict(change.what)
            return _reason(change, error)
        return None

    def refresh(self, route: Route) -> None:
        """Let the kernel choose the route's source address again. Raises OSError."""
        self._request(RTM_CHANGE, route)

    def _make(self, change: Change) -> None:
        removes = change.action == "remove"
        match change.what:
            case NetDevice() as device:
                (self._interfaces.set_down if removes else self._interfaces.set_up)(device)
            case PointToPoint() as pair if removes:
                self._interfaces.remove_address(pair)
            case PointToPoint() as pair:
                if pair.local.version == 6 and isinstance(change.previous, PointToPoint):
                    # SIOCAIFADDR_IN6 would succeed, and keep the previous peer.
                    self._interfaces.remove_address(change.previous)
                self._interfaces.add_address(pair)
            case Sysctl() as setting:
                (self._settings.restore if removes else self._settings.set)(setting)
            case Dns() as dns:
                if removes:
                    self._resolver.clear()
                else:
                    self._resolver.apply(dns)
            case Route() as route if removes:
                self._request(RTM_DELETE, route)
            case Route() as route:
                self._add_route(route, change.previous)

    def _add_route(self, route: Route, previous: object) -> None:
        if not isinstance(previous, Route):
            self._request(RTM_ADD, route)
        elif route.gateway and previous.gateway:
            self._request(RTM_CHANGE, route)
        else:
            # RTM_CHANGE keeps the flags, and these two routes differ in RTF_GATEWAY.
            self._request(RTM_DELETE, previous)
            self._request(RTM_ADD, route)

    def _request(self, kind: int, route: Route) -> None:
        self._sequence += 1
        index = 0
        if route.device:
            try:
                index = syscalls.index_of(route.device)
            except OSError:
                raise OSError(errors.ENXIO, "there is no such device") from None
        self._routing.send(rtmsg.route_request(kind, route, index, self._sequence))


def _route_conflict(wanted: Route) -> str | None:
    """Describe the route that has the destination; None if it is ours, as after an interrupted apply."""
    for found in observed.routes(wanted.destination.version):
        if found.route.destination != wanted.destination or found.scoped:
            continue
        if found.is_ours(wanted):
            return None
        if found.route.kind == "unreachable":
            return f"{wanted.destination} is unreachable by another program's route already; {ADVICE}"
        via = f" via {found.route.gateway}" if found.route.gateway else ""
        owner = "another dtun" if found.ours else "another program"
        return (
            f"{wanted.destination} is routed through {found.route.device}{via} already, by {owner}; {ADVICE}"
        )
    return "it exists already"


def _reason(change: Change, error: OSError) -> str:
    match change.what, error.errno:
        case PointToPoint(local=local), errors.EINVAL | errors.ENOBUFS if local.version == 6:
            return "the kernel reports an invalid argument; IPv6 needs an MTU of 1280 or more"
    return errors.reason(error)
