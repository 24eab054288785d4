"""The rules between settings of the client: what no single value can tell."""

from collections.abc import Iterator
from ipaddress import IPv6Network, ip_address

from dtun.config.client import ClientConfig
from dtun.config.errors import Location, Problem
from dtun.config.rules import repeated
from dtun.config.server import contains

_LISTS = ("servers", "subnets", "routes", "suites", "bypass_files", "dns", "dns_domains")


def _uses(*settings: str) -> frozenset[Location]:
    return frozenset(("client", setting) for setting in settings)


def client_problems(client: ClientConfig) -> Iterator[Problem]:
    yield from client.key_source_problems(("client",))
    for name in _LISTS:
        yield from repeated(("client", name), getattr(client, name))
    for index, route in enumerate(client.routes):
        for subnet in client.subnets:
            if contains(subnet, route):
                message = (
                    f"{route} is inside {subnet}, which is behind this client itself; remove one of them"
                )
                yield Problem(("client", "routes", index), message, _uses("subnets"))
    yield from _loops(client)
    yield from _routing_problems(client)
    if client.go:
        yield from _go_problems(client)


def _loops(client: ClientConfig) -> Iterator[Problem]:
    """What the server would route through the tunnel to reach itself. Names are looked up later; `dtun plan` tells."""
    for index, server in enumerate(client.servers):
        if not _is_address(server.host):
            continue
        for number, subnet in enumerate(client.subnets):
            if ip_address(server.host) in subnet:
                message = (
                    f"{server.host} is inside {subnet}, which is behind this client: packets to the server would go"
                    " through the tunnel in a loop; make that subnet smaller"
                )
                yield Problem(("client", "servers", index), message, related=("client", "subnets", number))


def _routing_problems(client: ClientConfig) -> Iterator[Problem]:
    if client.routing == "main":
        for name in ("table", "mark", "host_routes_first"):
            if name in client.model_fields_set:
                message = f"is used with `routing: policy` only; set that, or remove {name}"
                yield Problem(("client", name), message, _uses("routing"))
    if client.on_disconnect == "block" and not (client.everything(4) or client.everything(6)):
        message = "block needs a tunnel for all of IPv4 or IPv6; write `routes: everything`, or choose keep or release"
        yield Problem(("client", "on_disconnect"), message, _uses("routes"))
    if client.on_disconnect == "block" and client.host_routes_first:
        message = (
            "lets the host's own routes past `on_disconnect: block`; list their networks in exclude instead"
        )
        yield Problem(("client", "host_routes_first"), message, _uses("on_disconnect"))
    if client.dns_domains and not client.dns and not client.accept_dns:
        message = "have no name server to go with; set dns, or `accept_dns: true`"
        yield Problem(("client", "dns_domains"), message, _uses("dns", "accept_dns"))


def _go_problems(client: ClientConfig) -> Iterator[Problem]:
    if "suites" in client.model_fields_set:
        yield Problem(("client", "suites"), "an original dtun has one suite of its own; remove suites")
    for name in ("accept_routes", "accept_dns"):
        if getattr(client, name) not in {"none", False}:
            yield Problem(("client", name), f"an original dtun server pushes nothing; remove {name}")
    if len(client.subnets) > 1:
        yield Problem(("client", "subnets", 1), "an original dtun server takes one subnet only; leave one")
    for index, network in enumerate(client.subnets):
        if isinstance(network, IPv6Network):
            message = f"an original dtun knows IPv4 only; remove {network}"
            yield Problem(("client", "subnets", index), message)


def client_warnings(client: ClientConfig) -> Iterator[Problem]:
    if client.on_disconnect != "block":
        return
    for index, server in enumerate(client.servers):
        if not _is_address(server.host):
            message = (
                "with `on_disconnect: block`, a name can only be looked up while the network is open;"
                " give the server's address"
            )
            yield Problem(("client", "servers", index), message)


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
