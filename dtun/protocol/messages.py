"""The control messages of native peers: small JSON objects, each checked by a pydantic model.

    client                                        server
      | -- Hello: subnets behind the client, MTU -> |
      | <- Welcome: addresses, routes, timers ----- |
      | <- Renew: make a new session -------------- |
      | -- Goodbye: the session ends -------------- |   (either way)

Unknown fields are ignored and unknown types are counted, so that either side may be the newer version.
"""

import json
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from socket import AF_INET, AF_INET6, inet_pton
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainValidator,
    TypeAdapter,
    ValidationError,
)

MAX_SUBNETS = 1024
"""Networks that one client may name."""

MAX_REFUSALS = 128
"""Refused networks that a server reports: with their reasons they fit into one control message."""

MAX_ROUTES = 256
"""Networks that a server pushes: with everything else in a Welcome they fit into one control message."""

MAX_DNS_SERVERS = 8
MAX_DNS_DOMAINS = 32

Text = Annotated[str, Field(max_length=256)]
"""Text for the other side's log, which makes it printable before it is written."""

MIN_MTU = 576
"""Bytes that every host accepts (RFC 791, section 3.1)."""

MIN_IPV6_MTU = 1280
"""Bytes that every link with IPv6 carries (RFC 8200, section 5)."""

Mtu = Annotated[int, Field(ge=MIN_MTU, le=65535)]
"""Bytes of the largest packet inside the tunnel."""


def _without_zone(value: IPv6Address) -> IPv6Address:
    """Refuse fe80::1%eth0: a zone names an interface of its own host (RFC 4007, section 11)."""
    if value.scope_id is not None:
        raise ValueError("has a zone")
    return value


def _network(value: object) -> IPv4Network | IPv6Network:
    """A network from its text. Pydantic's own way takes 20 us, so a thousand would hold up every other client."""
    if isinstance(value, IPv4Network | IPv6Network):
        return value
    # Numbers, which `ipaddress` would accept as addresses, even `false`, are not networks here.
    if not isinstance(value, str) or "%" in value:
        raise ValueError("is not a network")
    family = AF_INET6 if ":" in value else AF_INET
    address, _, length = value.partition("/")
    if not (length.isascii() and length.isdecimal()):
        return ip_network(value)  # a netmask, or an address alone
    try:
        packed = inet_pton(family, address)
    except OSError:
        raise ValueError("is not a network") from None
    prefix = int(length)
    return IPv6Network((packed, prefix)) if family == AF_INET6 else IPv4Network((packed, prefix))


AnyNetwork = Annotated[IPv4Network | IPv6Network, PlainValidator(_network)]
AnyIPv6Address = Annotated[IPv6Address, AfterValidator(_without_zone)]

Domain = Annotated[str, Field(max_length=254, pattern=r"^~?[A-Za-z0-9._-]+$")]
"""A search domain (RFC 1123, section 2.1), or with a leading "~" a domain for routing queries only; "~." is all."""


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    version: Literal[1] = 1
    features: Annotated[tuple[Text, ...], Field(max_length=64, fail_fast=True)] = ()


class Hello(_Message):
    """The client's first message. `instance` is random for each process: two of them with one id are two hosts."""

    type: Literal["hello"] = "hello"
    instance: Annotated[str, Field(pattern=r"^[0-9a-f]{0,32}$")] = ""
    subnets: Annotated[tuple[AnyNetwork, ...], Field(max_length=MAX_SUBNETS, fail_fast=True)] = ()
    mtu: Mtu | None = None


class Refusal(BaseModel):
    """A subnet that the server does not route to this client, and the reason."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    subnet: AnyNetwork
    reason: Text


class Welcome(_Message):
    """The server's answer. `address` is the client's, `peer` the server's end of the pair.

    `routes`, `dns` and `domains` are suggestions of the server for routing and DNS; the client decides. `forwards`:
    whether the server's host is a router; None if an older server does not tell.
    """

    type: Literal["welcome"] = "welcome"
    address: IPv4Address
    peer: IPv4Address
    address6: AnyIPv6Address | None = None
    peer6: AnyIPv6Address | None = None
    mtu: Mtu | None = None
    keepalive: Annotated[float, Field(ge=0.1, le=3600)] = 10.0
    timeout: Annotated[float, Field(ge=0.2, le=86400)] = 30.0
    refused: Annotated[tuple[Refusal, ...], Field(max_length=MAX_SUBNETS, fail_fast=True)] = ()
    routes: Annotated[tuple[AnyNetwork, ...], Field(max_length=MAX_ROUTES, fail_fast=True)] = ()
    dns: Annotated[tuple[IPv4Address | AnyIPv6Address, ...], Field(max_length=MAX_DNS_SERVERS)] = ()
    domains: Annotated[tuple[Domain, ...], Field(max_length=MAX_DNS_DOMAINS)] = ()
    forwards: bool | None = None


class Renew(_Message):
    """From the server: make a new session now, because the key is worn out or the configuration has changed."""

    type: Literal["renew"] = "renew"


class Goodbye(_Message):
    """From either side, before close_notify: the session ends for this reason."""

    type: Literal["goodbye"] = "goodbye"
    reason: Literal["stopped", "replaced", "renewed", "refused", "timeout", "other"] = "other"
    text: Text = ""


Message = Hello | Welcome | Renew | Goodbye

_ADAPTER: TypeAdapter[Message] = TypeAdapter(Annotated[Message, Field(discriminator="type")])


def encode(message: Message) -> bytes:
    """The message as JSON, without the fields that have their default."""
    fields = message.model_dump(mode="json", exclude_defaults=True)
    return json.dumps({"type": message.type} | fields, separators=(",", ":"), ensure_ascii=False).encode()


def decode(data: bytes) -> Message | None:
    """The message in `data`; None if it is unknown, of another version or malformed."""
    try:
        return _ADAPTER.validate_json(data)
    except (ValidationError, ValueError, RecursionError):
        return None
