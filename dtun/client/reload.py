"""What another configuration means for a client that runs: the difference, for a person to read. Pure."""

from collections.abc import Mapping
from typing import Final

from dtun.config import ClientConfig
from dtun.session.config_change import Effect, Step, shown

KEEPS: Final = ("tun", "runtime_directory", "compat")
"""What a running client keeps: its device, the directory that is locked, and the kind of server."""

_EFFECTS: Final[Mapping[str, Effect]] = {
    "servers": "reconnect",
    "id": "reconnect",
    "subnets": "reconnect",
    "mtu": "reconnect",
    "suites": "reconnect",
    "routing": "reconnect",
    "mark": "reconnect",
    **dict.fromkeys(KEEPS, "restart"),
}
_KEY_FIELDS: Final = ("key_file", "credential", "key")


def changed_settings(old: ClientConfig, new: ClientConfig) -> list[Step]:
    """Everything that is different, in the order of the configuration."""
    steps = []
    for name in type(new).model_fields:
        before, after = getattr(old, name), getattr(new, name)
        if before != after and name not in _KEY_FIELDS:
            steps.append(Step(name, f"{shown(after)} instead of {shown(before)}", _EFFECTS.get(name, "live")))
    if old.psk != new.psk:
        steps.append(Step("key", "is another", "reconnect"))
    if old.bypassed != new.bypassed and old.bypass_files == new.bypass_files and new.bypass_files:
        count = len(new.bypassed)
        steps.append(Step("bypass_files", f"other networks in them, {count} stay out of the tunnel now"))
    return steps


def usable(old: ClientConfig, new: ClientConfig) -> ClientConfig:
    """`new` but for what a running client keeps."""
    return new.model_copy(update={name: getattr(old, name) for name in KEEPS})
