"""The scalar values of a configuration: their syntax, and messages about errors in it."""

import re
import unicodedata
from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar

from pydantic import BeforeValidator, Field, PlainSerializer, PlainValidator

from dtun.config.errors import shown
from dtun.network.state import Address, Network

DEFAULT_PORT = 443
MAX_ID_BYTES = 64
MAX_TUN_NAME_BYTES = 15  # IFNAMSIZ less the final NUL

# Names of RFC 4279, 5487, 6655 and 7905 without TLS_, WITH_ and the hash -> names of Mbed TLS.
SUITES = {
    "ECDHE-PSK-CHACHA20-POLY1305": "TLS-ECDHE-PSK-WITH-CHACHA20-POLY1305-SHA256",
    "PSK-CHACHA20-POLY1305": "TLS-PSK-WITH-CHACHA20-POLY1305-SHA256",
    "PSK-AES-128-GCM": "TLS-PSK-WITH-AES-128-GCM-SHA256",
    "PSK-AES-256-GCM": "TLS-PSK-WITH-AES-256-GCM-SHA384",
    "PSK-AES-128-CCM": "TLS-PSK-WITH-AES-128-CCM",
    "PSK-AES-256-CCM": "TLS-PSK-WITH-AES-256-CCM",
}
DEFAULT_SUITES = (SUITES["ECDHE-PSK-CHACHA20-POLY1305"],)

_HOST_LABEL = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)")

Parsed = TypeVar("Parsed")


class UnroutableError(ValueError):
    """A network for which routes have no effect."""

    def __init__(self, message: str, network: Network) -> None:
        super().__init__(message)
        self.network = network


class Endpoint(NamedTuple):
    """An address and UDP port to listen on."""

    address: Address
    port: int

    def __str__(self) -> str:
        return _with_port(str(self.address), self.port)


class ServerName(NamedTuple):
    """A server's name or address (without brackets), and its UDP port."""

    host: str
    port: int

    def __str__(self) -> str:
        return _with_port(self.host, self.port)


def _ip_address(text: str) -> Address:
    address = ip_address(text)
    # A zone, as in fe80::1%eth0, is an interface name.
    if (
        isinstance(address, IPv6Address)
        and address.scope_id
        and not re.fullmatch(r"[\w.-]+", address.scope_id)
    ):
        raise ValueError("no interface name")
    return address


def _with_port(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _text(value: object, wanted: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"must be {wanted}, not a list or a mapping")  # noqa: TRY004 - pydantic's way
    return value


def _split_port(text: str, example: str) -> tuple[str, int]:
    """`HOST`, `HOST:PORT`, `V6` and `[V6]:PORT`; the port defaults to 443."""
    if "://" in text:
        raise ValueError(f"{shown(text)} is a URL; write the name or address alone, like {example}")
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise ValueError(f"{shown(text)} has an unclosed bracket or no colon after it; write {example}")
        port = rest[1:] if rest else str(DEFAULT_PORT)
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
    else:
        host, port = text, str(DEFAULT_PORT)
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and 1 <= int(port) <= 65535):
        raise ValueError(f"{shown(text)} has a wrong port; write a number from 1 to 65535, like {example}")
    return host, int(port)


def parse_endpoint(value: object) -> Endpoint:
    example = '"0.0.0.0:443" or "[::]:443"'
    text = _text(value, f"an address to listen on, like {example}")
    host, port = _split_port(text, example)
    try:
        return Endpoint(_ip_address(host), port)
    except ValueError:
        raise ValueError(f"{shown(text)} is not an IP address to listen on; write {example}") from None


def parse_server_name(value: object) -> ServerName:
    example = '"vpn.example.org", "192.0.2.1:443" or "[2001:db8::1]:443"'
    text = _text(value, f"a name or an address, like {example}")
    host, port = _split_port(text, example)
    try:
        return ServerName(str(_ip_address(host)), port)
    except ValueError:
        pass
    try:
        name = host if host.isascii() else host.encode("idna").decode("ascii")
    except UnicodeError:
        name = ""
    labels = name.removesuffix(".").split(".")
    looks_like_address = ":" in name or all(label.isdigit() for label in labels)
    if len(name) > 253 or looks_like_address or not all(_HOST_LABEL.fullmatch(label) for label in labels):
        raise ValueError(f"{shown(text)} is neither a host name nor an IP address; write {example}")
    return ServerName(name, port)


def parse_network(value: object) -> Network:
    if isinstance(value, IPv4Network | IPv6Network):
        return value
    text = _text(value, "a network, like 10.0.0.0/16 or fd00:1::/64")
    try:
        network = ip_network(text)
    except ValueError:
        raise ValueError(_no_network(text)) from None
    if "%" in text:
        raise ValueError(f"{shown(text)} names an interface; write the network alone")
    if not is_routable(network):
        raise UnroutableError(
            f"{network} cannot be routed: it is a loopback, link-local or multicast network", network
        )
    return network


def parse_network_outside(value: object) -> Network:
    """Like `parse_network`, for a network to keep out of the tunnel: one that cannot be routed never gets into it."""
    try:
        return parse_network(value)
    except UnroutableError as error:
        return error.network


def is_routable(network: Network) -> bool:
    """Whether a route to this network has an effect."""
    return not network.prefixlen or not (network.is_loopback or network.is_multicast or network.is_link_local)


def _no_network(text: str) -> str:
    try:
        network = ip_network(text, strict=False)
    except ValueError:
        return f"{shown(text)} is not a network; write it like 10.0.0.0/16 or fd00:1::/64"
    return f"{shown(text)} is an address inside a network; write the network, {network}"


def parse_id(value: object) -> str:
    text = _text(value, "text")
    if not text or text != text.strip():
        raise ValueError("an id must have at least one character, and no space at its ends")
    if any(unicodedata.category(character).startswith("C") for character in text):
        raise ValueError("an id must not have control characters in it")
    if len(text.encode()) > MAX_ID_BYTES:
        raise ValueError(
            f"an id has at most {MAX_ID_BYTES} bytes as UTF-8, this one has {len(text.encode())}"
        )
    return text


def is_id(text: str) -> bool:
    """Whether an id from the network is valid in a configuration."""
    try:
        parse_id(text)
    except ValueError:
        return False
    return True


def parse_tun_name(value: object) -> str:
    text = _text(value, "a device name, like dtun0")
    unusual = any(not 0x21 <= ord(character) <= 0x7E or character in "/:%" for character in text)
    if not text or unusual or text in {".", ".."}:
        raise ValueError(
            f"{shown(text)} is no device name; use letters, digits, '-', '_' and '.', like dtun0"
        )
    if len(text) > MAX_TUN_NAME_BYTES:
        raise ValueError(
            f"{shown(text)} is too long for a device name: at most {MAX_TUN_NAME_BYTES} characters"
        )
    return text


def parse_suite(value: object) -> str:
    """Mbed TLS's name of a suite, from its name in IANA's registry, OpenSSL, Mbed TLS or SUITES."""
    text = _text(value, "the name of a cipher suite")
    name = text.strip().upper().replace("_", "-").removeprefix("TLS-").replace("-WITH-", "-")
    name = name.removesuffix("-SHA256").removesuffix("-SHA384")
    name = name.replace("AES128", "AES-128").replace("AES256", "AES-256")
    if name == "PSK-AES-128-CCM-8":
        raise ValueError(
            f"{shown(text)} is for original Go peers only; set `compat: go` instead of naming it"
        )
    if name not in SUITES:
        raise ValueError(f"{shown(text)} is not a suite of dtun; known suites: {', '.join(SUITES)}")
    return SUITES[name]


def parse_directory(value: object) -> Path:
    path = value if isinstance(value, Path) else Path(_text(value, "the path of a directory"))
    if not path.is_absolute() or "\0" in str(path):
        raise ValueError(f"{shown(str(path))} is not an absolute path; start it with '/'")
    return path


def parse_file(value: object) -> Path:
    return value if isinstance(value, Path) else Path(_text(value, "the path of a file"))


def parse_hook(value: object) -> tuple[str, ...]:
    words: list[Any] = list(value) if isinstance(value, list | tuple) else [value]
    if not words or not all(isinstance(word, str) and "\0" not in word for word in words):
        raise ValueError("must be the path of a program, or a list of it and its arguments")
    if not words[0].startswith("/"):
        raise ValueError(
            f"{shown(words[0])} is not an absolute path; hooks run without a shell and without PATH"
        )
    return tuple(words)


def parse_pool(value: object) -> IPv4Network:
    network = parse_network(value)
    if not isinstance(network, IPv4Network):
        raise ValueError(f"{network} is an IPv6 network; put it into pool6, and an IPv4 network into pool")  # noqa: TRY004
    if not 8 <= network.prefixlen <= 30:
        raise ValueError(f"{network} is not usable as a pool; its prefix length must be from 8 to 30")
    return network


def parse_pool6(value: object) -> IPv6Network:
    network = parse_network(value)
    if not isinstance(network, IPv6Network):
        raise ValueError(f"{network} is an IPv4 network; put it into pool, and an IPv6 network into pool6")  # noqa: TRY004
    if not 32 <= network.prefixlen <= 126:
        raise ValueError(f"{network} is not usable as a pool; its prefix length must be from 32 to 126")
    return network


def parse_address4(value: object) -> IPv4Address:
    return _address(value, IPv4Address, "an IPv4 address, like 10.86.0.2")


def parse_address6(value: object) -> IPv6Address:
    return _address(value, IPv6Address, "an IPv6 address, like fd00:86::2")


_AddressType = TypeVar("_AddressType", IPv4Address, IPv6Address)


def _address(value: object, kind: type[_AddressType], wanted: str) -> _AddressType:
    if isinstance(value, kind):
        return value
    text = _text(value, wanted)
    try:
        address = kind(text)
    except ValueError:
        address = None
    if address is None or "%" in text:
        raise ValueError(f"{shown(text)} is not {wanted}")
    return address


def _one_or_more(value: object) -> object:
    return [value] if isinstance(value, str) else value


def _as_text(parse: Callable[[object], Parsed]) -> PlainValidator:
    # Text in YAML, and so in the JSON Schema, whatever type it is here.
    return PlainValidator(parse, json_schema_input_type=str)


OneOrMore = BeforeValidator(_one_or_more, json_schema_input_type=str | list[str])

Seconds = Annotated[float, Field(allow_inf_nan=False)]
_Mtu = Annotated[int, Field(ge=576, le=16380)]  # a record holds 16,384 bytes (RFC 5246, section 6.2.1)
OptionalMtu = Annotated[
    _Mtu | None,
    Field(
        description="Bytes of a packet inside the tunnel. Worked out, so that nothing is fragmented outside, if not "
        "set."
    ),
]
Id = Annotated[str, _as_text(parse_id)]
TunName = Annotated[str, _as_text(parse_tun_name)]
Suites = Annotated[
    tuple[Annotated[str, _as_text(parse_suite)], ...],
    OneOrMore,
    Field(
        min_length=1,
        description="Cipher suites, the best first. Only ECDHE-PSK-CHACHA20-POLY1305 has forward secrecy. Others: "
        "PSK-CHACHA20-POLY1305, PSK-AES-128-GCM, PSK-AES-256-GCM, PSK-AES-128-CCM, PSK-AES-256-CCM.",
    ),
]
NetworkValue = Annotated[IPv4Network | IPv6Network, _as_text(parse_network)]
NetworkOutside = Annotated[IPv4Network | IPv6Network, _as_text(parse_network_outside)]
Pool = Annotated[IPv4Network, _as_text(parse_pool)]
Pool6 = Annotated[IPv6Network, _as_text(parse_pool6)]
Address4 = Annotated[IPv4Address, _as_text(parse_address4)]
Address6 = Annotated[IPv6Address, _as_text(parse_address6)]
EndpointValue = Annotated[Endpoint, _as_text(parse_endpoint), PlainSerializer(str, return_type=str)]
ServerNameValue = Annotated[ServerName, _as_text(parse_server_name), PlainSerializer(str, return_type=str)]
FilePath = Annotated[Path, _as_text(parse_file)]
Directory = Annotated[Path, _as_text(parse_directory)]
HookCommand = Annotated[tuple[str, ...], PlainValidator(parse_hook, json_schema_input_type=Any)]
