"""Checks of a server that concern more than one setting."""

from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from dtun.config.errors import Location, Problem, repeated, shown
from dtun.config.server import ANY_ID, PUSHES, ClientEntry, Pushing, ServerConfig, contains
from dtun.network.state import Network


def _of_server(*settings: str) -> frozenset[Location]:
    return frozenset(("server", setting) for setting in settings)


def server_problems(server: ServerConfig) -> Iterator[Problem]:
    if server.timeout <= server.keepalive:
        message = (
            f"{server.timeout:g} s is not longer than keepalive ({server.keepalive:g} s);"
            " three times as long is usual"
        )
        yield Problem(("server", "timeout"), message, _of_server("timeout", "keepalive"))
    if server.pool6 and server.mtu is not None and server.mtu < 1280:
        message = "must be at least 1280 where there is IPv6; remove pool6 or raise mtu"
        yield Problem(("server", "mtu"), message, _of_server("mtu", "pool6"))
    if not server.clients:
        message = 'has no client; add one by its id, or "*" for any'
        yield Problem(("server", "clients"), message, _of_server("clients"))
    yield from repeated(("server", "listen"), server.listen)
    yield from repeated(("server", "suites"), server.suites)
    if server.masquerade and not server.forwarding and "forwarding" in server.model_fields_set:
        message = "masquerading needs forwarding; remove `forwarding: false`"
        yield Problem(("server", "forwarding"), message, _of_server("masquerade"))
    if isinstance(server.masquerade, tuple):
        yield from repeated(("server", "masquerade"), server.masquerade)
    yield from _push_problems(("server",), server)
    for identity, entry in server.clients.items():
        yield from _entry_problems(identity, entry, server)
    yield from _shared_values(server)
    yield from _overlaps(server)


def _entry_problems(identity: str, entry: ClientEntry, server: ServerConfig) -> Iterator[Problem]:
    here: Location = ("server", "clients", identity)
    yield from entry.key_source_problems(here)
    yield from repeated((*here, "subnets"), entry.subnets)
    yield from _push_problems(here, entry)
    if identity == ANY_ID:
        for name in ("address", "address6", "tun"):
            if getattr(entry, name) is not None:
                message = (
                    'the entry "*" serves many clients, which cannot share this; give the client an entry'
                )
                yield Problem((*here, name), message)
    else:
        yield from _address_problems(here, entry, server)
    if entry.go:
        yield from _go_problems(here, entry)


def _address_problems(here: Location, entry: ClientEntry, server: ServerConfig) -> Iterator[Problem]:
    if entry.address is not None:
        yield from _outside((*here, "address"), entry.address, server.pool, "pool")
    if entry.address6 is not None and server.pool6 is None:
        message = "needs an IPv6 pool; set pool6 in the server section"
        yield Problem((*here, "address6"), message, _of_server("pool6"))
    elif entry.address6 is not None and server.pool6 is not None:
        yield from _outside((*here, "address6"), entry.address6, server.pool6, "pool6")


def _outside(
    where: Location, address: IPv4Address | IPv6Address, pool: IPv4Network | IPv6Network, name: str
) -> Iterator[Problem]:
    uses = _of_server(name)
    first, last = pool[2], pool[-2] if isinstance(pool, IPv4Network) else pool[-1]
    if address == pool[1]:
        yield Problem(where, f"{address} is the server's own address; take one from {first} to {last}", uses)
    elif address not in pool or not int(first) <= int(address) <= int(last):
        yield Problem(where, f"{address} is not free in {name} {pool}; take one from {first} to {last}", uses)


def _push_problems(here: Location, section: Pushing) -> Iterator[Problem]:
    for name in PUSHES:
        yield from repeated((*here, name), getattr(section, name) or ())


def _go_problems(here: Location, entry: ClientEntry) -> Iterator[Problem]:
    for name in PUSHES:
        if getattr(entry, name):
            yield Problem((*here, name), f"an original dtun takes nothing that is pushed; remove {name}")
    if entry.address6 is not None:
        yield Problem((*here, "address6"), "an original dtun knows IPv4 only; remove address6")
    for index, network in enumerate(entry.subnets):
        if isinstance(network, IPv6Network) and not entry.any_private:
            yield Problem((*here, "subnets", index), f"an original dtun knows IPv4 only; remove {network}")


def _shared_values(server: ServerConfig) -> Iterator[Problem]:
    """Addresses and device names that two entries claim."""
    owners: dict[tuple[str, object], str] = {}
    for identity, entry in server.clients.items():
        for name in ("address", "address6", "tun"):
            value = getattr(entry, name)
            if value is None:
                continue
            owner = owners.setdefault((name, value), identity)
            if owner != identity:
                message = f"{value} belongs to client {shown(owner)} already; choose another one"
                related = ("server", "clients", owner, name)
                yield Problem(("server", "clients", identity, name), message, related=related)


@dataclass(frozen=True, slots=True)
class _Claim:
    network: Network
    owner: str
    where: Location


def _overlaps(server: ServerConfig) -> Iterator[Problem]:
    """Networks that two owners claim. "private" claims none: the server grants what is free, when a client connects."""
    claims = [
        _Claim(network, identity, ("server", "clients", identity, "subnets", index))
        for identity, entry in server.clients.items()
        if not entry.any_private
        for index, network in enumerate(entry.subnets)
    ]
    for pool, name in ((server.pool, "pool"), (server.pool6, "pool6")):
        for claim in claims:
            if pool is not None and _overlap(claim.network, pool):
                written = name in server.model_fields_set
                whose = f"the server's {name} {pool}" if written else f"{pool} (the default {name})"
                message = (
                    f"{claim.network} of client {shown(claim.owner)} overlaps {whose}; change one of them"
                )
                related = ("server", name) if written else None
                yield Problem(claim.where, message, _of_server(name), related)
    # Sorted like this, a network follows those that contain it, so a stack of these is enough.
    outer: list[_Claim] = []
    for claim in sorted(claims, key=lambda c: (c.network.version, int(c.network[0]), c.network.prefixlen)):
        while outer and not contains(outer[-1].network, claim.network):
            outer.pop()
        other = next((enclosing for enclosing in reversed(outer) if enclosing.owner != claim.owner), None)
        if other is not None:
            message = (
                f"{claim.network} of client {shown(claim.owner)} overlaps {other.network} of client"
                f" {shown(other.owner)}; a network can be behind one client only"
            )
            yield Problem(claim.where, message, related=other.where)
        outer.append(claim)


def _overlap(one: Network, other: Network) -> bool:
    return one.version == other.version and (contains(one, other) or contains(other, one))
