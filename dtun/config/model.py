"""A whole configuration."""

from dataclasses import dataclass, field
from pathlib import Path

from dtun.config.client import ClientConfig
from dtun.config.server import ServerConfig


@dataclass(frozen=True, slots=True)
class Config:
    """Exactly one of `server` and `client` is set. `path` is None after a quick start.

    `warnings` are lines for a person: it works, but should not stay so.
    """

    server: ServerConfig | None
    client: ClientConfig | None
    path: Path | None
    warnings: list[str] = field(default_factory=list)

    @property
    def section(self) -> ServerConfig | ClientConfig:
        section = self.server or self.client
        assert section is not None  # noqa: S101 - the validation has seen to it
        return section

    @property
    def control_socket(self) -> Path:
        return self.section.control_socket
