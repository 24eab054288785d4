"""Values that may be a word instead of a list or number, domains, and numbers of the kernel."""

import re
from collections.abc import Callable
from ipaddress import ip_address
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    GetPydanticSchema,
    PlainSerializer,
    PlainValidator,
    WrapValidator,
)

from dtun.config.errors import shown
from dtun.config.values import NetworkValue, TunName
from dtun.network.state import Address, Network

EVERYTHING = ("0.0.0.0/0", "::/0")

_SWITCH = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}  # YAML 1.1
_LABEL = re.compile(r"(?!-)[a-z0-9-]{1,63}(?<!-)")  # RFC 1123, section 2.1
_HOSTS_TABLES = range(253, 256)  # RT_TABLE_DEFAULT, MAIN and LOCAL in linux/rtnetlink.h


def parse_flag(value: object) -> bool:
    if isinstance(value, bool):
        return value
    flag = _SWITCH.get(value.lower()) if isinstance(value, str) else None
    if flag is None:
        raise ValueError("must be true or false")
    return flag


def parse_address(value: object) -> Address:
    """An IPv4 or IPv6 address. Without an interface name, as it is used on other hosts as well."""
    wanted = "an IP address, like 10.86.0.1 or fd00:86::1"
    if not isinstance(value, str):
        raise ValueError(f"must be {wanted}")  # noqa: TRY004 - pydantic's way
    try:
        address = ip_address(value)
    except ValueError:
        address = None
    if address is None or "%" in value:
        raise ValueError(f"{shown(value)} is not {wanted}")
    return address


def parse_domain(value: object) -> str:
    """A domain in lower case, without its final dot; with a leading "~" if it is for routing queries only."""
    examples = 'corp.example.org, "~corp.example.org" (to look up there only) or "~." (every name)'
    if not isinstance(value, str):
        raise ValueError(f"must be a domain, like {examples}")  # noqa: TRY004 - pydantic's way
    if value == "~.":
        return value
    name = value.removeprefix("~").removesuffix(".").lower()
    if len(name) > 253 or not all(_LABEL.fullmatch(label) for label in name.split(".")):
        raise ValueError(f"{shown(value)} is not a domain; write it like {examples}")
    return f"~{name}" if value.startswith("~") else name


def _number(value: object) -> object:
    is_hexadecimal = isinstance(value, str) and re.fullmatch(r"0[xX][0-9a-fA-F]{1,16}", value)
    return int(str(value), 16) if is_hexadecimal else value


def _not_the_hosts(table: int) -> int:
    if table in _HOSTS_TABLES:
        raise ValueError("tables 253 to 255 belong to the host; choose another number")
    return table


def _or_everything(value: object) -> object:
    if value in ("everything", ["everything"]):
        return list(EVERYTHING)
    return [value] if isinstance(value, str) else value


def _none_all_or_networks(value: Any, parse: Callable[[Any], Any]) -> Any:
    if value in ("none", "all"):
        return value
    if isinstance(value, str) and not re.search("[.:/]", value):
        raise ValueError("must be none, all, or a list of the networks to accept")
    return parse([value] if isinstance(value, str) else value)


def _flag_or_names(value: Any, parse: Callable[[Any], Any]) -> Any:
    if isinstance(value, bool):
        return value
    if isinstance(value, str):
        return _SWITCH[value.lower()] if value.lower() in _SWITCH else parse([value])
    names = parse(value)
    if not names:
        raise ValueError("must have at least one item")
    return names


def _validated_as(kind: Any) -> GetPydanticSchema:
    # Otherwise pydantic tries each type of a union, and reports errors for all.
    return GetPydanticSchema(lambda _source, handler: handler(kind))


_AS_IT_IS = PlainSerializer(lambda value: value)

Flag = Annotated[bool, PlainValidator(parse_flag, json_schema_input_type=bool)]
AddressValue = Annotated[Address, PlainValidator(parse_address, json_schema_input_type=str)]
Domain = Annotated[str, PlainValidator(parse_domain, json_schema_input_type=str)]
_Number = BeforeValidator(_number, json_schema_input_type=int | str)
Table = Annotated[int, Field(ge=1, le=2**31 - 1), AfterValidator(_not_the_hosts), _Number]
Mark = Annotated[int, Field(ge=1, le=2**32 - 1), _Number]

OrEverything = BeforeValidator(_or_everything, json_schema_input_type=str | list[str])
"""A list of networks, one network, or the word `everything`."""

Acceptance = Annotated[
    Literal["none", "all"] | tuple[Network, ...],
    _validated_as(tuple[NetworkValue, ...]),
    WrapValidator(_none_all_or_networks, json_schema_input_type=str | list[str]),
    _AS_IT_IS,
]

Masquerading = Annotated[
    bool | tuple[str, ...],
    _validated_as(tuple[TunName, ...]),
    WrapValidator(_flag_or_names, json_schema_input_type=bool | str | list[str]),
    _AS_IT_IS,
]
