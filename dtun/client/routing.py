"""Makes the input of `plan_client` from the client's configuration and the server's Welcome. Pure."""

from collections.abc import Iterable

from dtun.config import ClientConfig
from dtun.network.plan import Policy, Routing, TunnelSettings
from dtun.network.prefixes import PrefixSet
from dtun.network.state import Address, Dns, Network
from dtun.protocol.messages import Welcome


def routing_of(config: ClientConfig, device: str, pushed: Iterable[Network] = ()) -> Routing:
    """What goes into the tunnel: the configured routes, and the pushed ones that the configuration accepts."""
    accepted = (network for network in pushed if _accepts(config, network))
    return Routing(
        device,
        tuple(dict.fromkeys((*config.routes, *accepted))),
        _bypassed(config),
        _policy_of(config) if config.routing == "policy" else None,
        block=config.on_disconnect == "block",
        ipv6=None if config.ipv6 == "off" else config.ipv6,
        forwarding=config.forwarding,
        behind=config.subnets,
    )


def _bypassed(config: ClientConfig) -> tuple[Network, ...]:
    """Without what is behind this client: a route around the tunnel would take it away from here."""
    if not config.subnets:
        return config.bypassed
    behind = PrefixSet(config.subnets)
    return tuple(network for network in config.bypassed if network not in behind)


def _policy_of(config: ClientConfig) -> Policy:
    return Policy(config.table, config.mark, config.host_routes_first, config.answer_directly)


def settings_of(config: ClientConfig, device: str, welcome: Welcome, mtu: int) -> TunnelSettings:
    """What a session brings: MTU (bytes), addresses, and name servers if there are any."""
    pairs: list[tuple[Address, Address]] = [(welcome.address, welcome.peer)]
    if welcome.address6 is not None and welcome.peer6 is not None and config.ipv6 != "off":
        pairs.append((welcome.address6, welcome.peer6))
    return TunnelSettings(mtu, tuple(pairs), dns_of(config, device, welcome))


def dns_of(config: ClientConfig, device: str, welcome: Welcome | None) -> Dns | None:
    """The configured name servers, else the pushed ones if they are accepted; the same for domains."""
    pushed = welcome if welcome is not None and config.accept_dns else None
    servers = config.dns or (pushed.dns if pushed else ())
    domains = config.dns_domains or (pushed.domains if pushed else ())
    return Dns(device, tuple(servers), tuple(domains)) if servers else None


def _accepts(config: ClientConfig, network: Network) -> bool:
    """Whether a pushed route is accepted; one to a network behind this client never is."""
    if any(network.version == own.version and network.overlaps(own) for own in config.subnets):
        return False
    if config.accept_routes == "all":
        return True
    return config.accept_routes != "none" and any(
        allowed.version == network.version and network.subnet_of(allowed)  # type: ignore[arg-type]
        for allowed in config.accept_routes
    )
