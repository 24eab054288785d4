"""What another configuration changes in a running client. Pure; `Client.reload` applies it.

effect       applied by
live         Tunnel.reload (routes, name servers, hooks), StateMachine.set_rekey, Dialer.reload
reconnect    a new session beside the one in service
restart      nothing: the running client keeps the old value
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from dtun.config import ClientConfig
from dtun.session.config_change import Effect, Step, shown

_EFFECTS: Final[Mapping[str, Effect]] = {
    "servers": "reconnect",
    "id": "reconnect",
    "subnets": "reconnect",
    "mtu": "reconnect",
    "suites": "reconnect",
    "routing": "reconnect",
    "mark": "reconnect",
    "tun": "restart",
    "runtime_directory": "restart",  # locked by this process
    "compat": "restart",
}
"""Settings that are not listed are live."""

_KEY_FIELDS: Final = ("key_file", "credential", "key")


@dataclass(frozen=True, slots=True)
class ClientReload:
    """The configuration from now on, and its differences from the previous one, in the order of the file."""

    config: ClientConfig
    steps: tuple[Step, ...]

    @property
    def reconnects(self) -> bool:
        """Whether the change needs a new session."""
        return any(step.effect == "reconnect" for step in self.steps)


def compare(old: ClientConfig, new: ClientConfig) -> ClientReload:
    """What a running client does when `old` is replaced by `new`."""
    kept = {name: getattr(old, name) for name, effect in _EFFECTS.items() if effect == "restart"}
    return ClientReload(new.model_copy(update=kept), tuple(_steps(old, new)))


def _steps(old: ClientConfig, new: ClientConfig) -> Iterator[Step]:
    for name in type(new).model_fields:
        before, after = getattr(old, name), getattr(new, name)
        if before != after and name not in _KEY_FIELDS:
            yield Step(name, f"{shown(after)} instead of {shown(before)}", _EFFECTS.get(name, "live"))
    if old.psk != new.psk:
        yield Step("key", "is another", "reconnect")
    if old.bypassed != new.bypassed and old.bypass_files == new.bypass_files and new.bypass_files:
        count = len(new.bypassed)
        yield Step("bypass_files", f"other networks in them, {count} stay out of the tunnel now")
