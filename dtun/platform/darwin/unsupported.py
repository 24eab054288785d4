"""What dtun can want that macOS does not do: said in one line, with what to do instead. Pure."""

from collections.abc import Iterator
from dataclasses import replace

from dtun.network.difference import Thing, describe
from dtun.network.state import (
    MAIN_TABLE,
    ClampMss,
    DropIPv6OutsideTunnel,
    DropUnreachableIPv6,
    Filter,
    Masquerade,
    NetworkState,
)
from dtun.platform.darwin import resolver, settings

Refused = list[tuple[Thing, str]]

NO_POLICY = "policy routing is not available on macOS; use `routing: main`"


def split(desired: NetworkState) -> tuple[NetworkState, Refused]:
    """What can be done, and what cannot, each with its reason."""
    refused = sorted(_refused(desired), key=lambda one: describe(one[0]))
    gone = {thing for thing, _ in refused}
    possible = replace(
        desired,
        routes=frozenset(route for route in desired.routes if route not in gone),
        rules=frozenset(),
        sysctls=frozenset(setting for setting in desired.sysctls if setting not in gone),
        filters=frozenset(),
        dns=frozenset(dns for dns in desired.dns if dns not in gone),
    )
    return possible, refused


def _refused(desired: NetworkState) -> Iterator[tuple[Thing, str]]:
    for rule in desired.rules:
        yield rule, NO_POLICY
    for route in desired.routes:
        if route.table != MAIN_TABLE or route.kind == "throw":
            yield route, NO_POLICY
    for setting in desired.sysctls:
        if not settings.is_known(setting):
            yield setting, "macOS has no such setting"
    for dns in desired.dns:
        if reason := resolver.refusal(dns):
            yield dns, reason
    for one in desired.filters:
        # What these two are for, programs that insist on a device, docs/routing.md tells: not each start.
        if not isinstance(one, DropUnreachableIPv6 | DropIPv6OutsideTunnel):
            yield one, _no_filter(one)


def _no_filter(one: Filter) -> str:
    match one:
        case Masquerade():
            rule = "nat on INTERFACE from NETWORK to any -> (INTERFACE)"
            return f"dtun does no NAT on macOS; put '{rule}' into /etc/pf.conf"
        case ClampMss(_, mtu):
            return f"dtun filters nothing on macOS; put 'scrub all max-mss {mtu - 40}' into /etc/pf.conf"
    return "dtun filters nothing on macOS; the routes alone keep traffic in the tunnel"
