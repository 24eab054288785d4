"""The `client:` section."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from dtun.config.common import RUNTIME_DIRECTORY, Hook, Hooked, Keyed, choose_hook, directory_from
from dtun.config.routed import Routed
from dtun.config.values import (
    DEFAULT_SUITES,
    Directory,
    Id,
    Mtu,
    NetworkValue,
    OneOrMore,
    Seconds,
    ServerNameValue,
    SuiteName,
    TunName,
)

MIN_REKEY = 60


def _never_or_slow(seconds: float) -> float:
    if seconds != 0 and seconds < MIN_REKEY:
        raise ValueError(f"must be at least {MIN_REKEY} seconds, or 0 for never")
    return seconds


def _own_id(value: Any) -> Any:
    if value == "*":
        raise ValueError('"*" stands for any id on a server; give this client an id of its own')
    return value


class ClientConfig(Keyed, Hooked, Routed):
    """The `client:` section. `rekey` in seconds (0: never), `mtu` in bytes (None: worked out).

    `servers` are in order of preference. `subnets` are the networks behind this client.
    """

    servers: Annotated[tuple[ServerNameValue, ...], OneOrMore, Field(min_length=1)]
    id: Annotated[Id, BeforeValidator(_own_id)]
    subnets: Annotated[tuple[NetworkValue, ...], OneOrMore, Field(max_length=1024)] = ()
    tun: TunName = "dtun0"
    mtu: Mtu | None = None
    suites: Annotated[tuple[SuiteName, ...], OneOrMore, Field(min_length=1)] = DEFAULT_SUITES
    rekey: Annotated[Seconds, Field(ge=0, le=604800), AfterValidator(_never_or_slow)] = 3600.0
    runtime_directory: Directory = Field(
        default_factory=lambda: directory_from("RUNTIME_DIRECTORY", RUNTIME_DIRECTORY)
    )

    @property
    def control_socket(self) -> Path:
        return self.runtime_directory / f"{self.tun}.sock"

    def hook(self, name: Literal["up", "down"]) -> Hook | None:
        return choose_hook(name, self)
