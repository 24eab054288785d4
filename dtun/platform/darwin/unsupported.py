"""Parts of a desired state that macOS does not support, each with a reason and what to do instead. Pure."""

from collections.abc import Iterator
from dataclasses import replace

from dtun.network.difference import Thing, describe
from dtun.network.state import (
    MAIN_TABLE,
    ClampMss,
    DropOutsideTunnel,
    DropUnreachableIPv6,
    Filter,
    Masquerade,
    NetworkState,
)
from dtun.platform.darwin import resolver, sysctl

Refused = list[tuple[Thing, str]]

NO_POLICY = "policy routing is not available on macOS; use `routing: main`"


def split(desired: NetworkState) -> tuple[NetworkState, Refused]:
    """Split into what macOS supports, and what it does not, each with its reason."""
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
        if not sysctl.is_known(setting):
            yield setting, "macOS has no such setting"
    for dns in desired.dns:
        if reason := resolver.refusal(dns):
            yield dns, reason
    for one in desired.filters:
        # These two are for programs that bind to a device: explained in docs/routing.md, not at each start.
        if not isinstance(one, DropUnreachableIPv6 | DropOutsideTunnel):
            yield one, _no_filter(one)


def _no_filter(one: Filter) -> str:
    match one:
        case Masquerade(_, outside):
            rule = f"nat on {outside} from NETWORK to any -> ({outside})"
            return f"dtun does not do NAT on macOS; {_pf(rule, 'nat-anchor')}"
        case ClampMss(_, mtu):
            rule = f"scrub all max-mss {mtu - 40}"
            return f"dtun has no packet filter on macOS; {_pf(rule, 'scrub-anchor')}"
    return "dtun has no packet filter on macOS; only routes keep traffic in the tunnel"


def _pf(rule: str, anchor: str) -> str:
    """Pf wants its rules in order: scrub, nat, filter. It is off until something switches it on."""
    return (
        f"add '{rule}' to /etc/pf.conf, below the line of {anchor}, and run "
        "`pfctl -f /etc/pf.conf; pfctl -E` (docs/macos.md)"
    )
