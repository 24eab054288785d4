"""What another configuration means for a server that runs: the difference, for a person to read. Pure.

Most of it takes effect at once (`live`), some of it ends the sessions that it concerns, which then come back
(`reconnect`), and some cannot be changed under a running server (`restart`): that is kept as it is.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from dtun.config import ANY_ID, ClientEntry, Key, ServerConfig
from dtun.session.config_change import Step, shown

KEEPS: Final = ("pool", "pool6", "state_directory", "runtime_directory")
"""What a running server keeps: addresses that others have learned, and directories that are locked and in use."""

_NEW_SESSIONS = "for new sessions"
_NEXT_RUN = "from the next run on"
_PUSHED = "clients are asked for a new session"
_SERVER_EFFECTS: Final[Mapping[str, str]] = {
    "suites": _NEW_SESSIONS,
    "mtu": _NEW_SESSIONS,
    "keepalive": _NEW_SESSIONS,
    "timeout": _NEW_SESSIONS,
    "up": _NEXT_RUN,
    "down": _NEXT_RUN,
    "hook_timeout": _NEXT_RUN,
    "forwarding": "",
    "masquerade": "",
    "push_routes": _PUSHED,
    "push_dns": _PUSHED,
    "push_domains": _PUSHED,
}
# Where an entry's key is kept says nothing; whether it is another key does, see `_keys`.
_KEY_FIELDS: Final = frozenset({"key", "key_file", "credential", "next_key_file", "next_credential"})


def changed_settings(old: ServerConfig, new: ServerConfig) -> list[Step]:
    """Everything that is different, in the order of the configuration."""
    return [*_section(old, new), *_listen(old, new), *_clients(old, new)]


def usable(old: ServerConfig, new: ServerConfig) -> ServerConfig:
    """`new` but for what a running server keeps."""
    kept: dict[str, Any] = {name: getattr(old, name) for name in _restarts(old, new)}
    if "pool" in kept or "pool6" in kept:
        # Fixed addresses of another pool are of no use in this one.
        kept["clients"] = {
            name: _settled(old.clients.get(name), entry) for name, entry in new.clients.items()
        }
    return new.model_copy(update=kept)


def keys_of(entry: ClientEntry) -> tuple[Key, ...]:
    """The keys that a client may have, of which there are two while its key is being changed."""
    return (entry.psk,) if entry.next_psk is None else (entry.psk, entry.next_psk)


def _settled(before: ClientEntry | None, entry: ClientEntry) -> ClientEntry:
    addresses = (before.address, before.address6) if before else (None, None)
    return entry.model_copy(update=dict(zip(("address", "address6"), addresses, strict=True)))


def _restarts(old: ServerConfig, new: ServerConfig) -> list[str]:
    return [
        name
        for name in type(new).model_fields
        if name not in _SERVER_EFFECTS
        and name not in ("clients", "listen")
        and getattr(old, name) != getattr(new, name)
    ]


def _section(old: ServerConfig, new: ServerConfig) -> Iterator[Step]:
    for name, what in _SERVER_EFFECTS.items():
        before, after = getattr(old, name), getattr(new, name)
        if before != after:
            yield Step(name, f"{shown(after)} instead of {shown(before)}{what and ', '}{what}")
    for name in _restarts(old, new):
        before, after = getattr(old, name), getattr(new, name)
        yield Step(name, f"{shown(after)} instead of {shown(before)}", "restart")


def _listen(old: ServerConfig, new: ServerConfig) -> Iterator[Step]:
    for endpoint in new.listen:
        if endpoint not in old.listen:
            yield Step("listen", f"{endpoint} is new")
    for endpoint in old.listen:
        if endpoint not in new.listen:
            yield Step("listen", f"{endpoint} is no more; sessions there are to be made anew", "reconnect")


def _clients(old: ServerConfig, new: ServerConfig) -> Iterator[Step]:
    for name, entry in new.clients.items():
        before = old.clients.get(name)
        if before is None:
            yield Step(_where(name), "is new")
        elif before != entry:
            yield from _entry(_where(name), before, entry, addresses=old.pool == new.pool)
    for name in old.clients:
        if name not in new.clients:
            only_now = " has an entry no more" if new.entry(name) else " is removed and its session ends"
            yield Step(_where(name), only_now.strip(), "reconnect")


def _entry(where: str, old: ClientEntry, new: ClientEntry, *, addresses: bool) -> Iterator[Step]:
    yield from _keys(where, keys_of(old), keys_of(new))
    for name in type(new).model_fields:
        before, after = getattr(old, name), getattr(new, name)
        if before == after or name in _KEY_FIELDS:
            continue
        change = f"{name} is {shown(after)} instead of {shown(before)}"
        if name in ("address", "address6") and not addresses:
            yield Step(where, change, "restart")
        elif name in ("address", "address6", "tun", "compat"):
            yield Step(where, change, "reconnect")
        else:
            what = _SERVER_EFFECTS.get(name, "")
            yield Step(where, f"{change}{what and ', '}{what}")


def _keys(where: str, old: tuple[Key, ...], new: tuple[Key, ...]) -> Iterator[Step]:
    if not set(old) <= set(new):
        what = (
            "a key is valid no more; a session made with it is to be renewed, and ends after a minute if not"
        )
        yield Step(where, what, "reconnect")
    if not set(new) <= set(old):
        yield Step(where, "another key is valid" if set(old) <= set(new) else "its new key is valid")


def _where(name: str) -> str:
    return "clients without an entry" if name == ANY_ID else f"client {name}"
