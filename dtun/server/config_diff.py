"""What another configuration changes in a running server, as lines for a person. Pure.

Most changes take effect at once (`live`), some end the sessions that they concern, whose clients reconnect
(`reconnect`), and some are impossible in a running server (`restart`): these settings are kept as they are.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from dtun.config import ANY_ID, ClientEntry, Key, ServerConfig
from dtun.session.config_change import Step, shown

KEEPS: Final = ("pool", "pool6", "state_directory", "runtime_directory")
"""What a running server keeps: addresses that other hosts have learned, and directories that it has locked."""

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
# Where an entry's key is stored does not matter; whether it is another key does, see `_keys`.
_KEY_FIELDS: Final = frozenset({"key", "key_file", "credential", "next_key_file", "next_credential"})


def changed_settings(old: ServerConfig, new: ServerConfig) -> list[Step]:
    """Everything that is different, in the order of the configuration."""
    return [*_section(old, new), *_listen(old, new), *_clients(old, new)]


def usable(old: ServerConfig, new: ServerConfig) -> ServerConfig:
    """`new`, except for what a running server keeps."""
    kept: dict[str, Any] = {name: getattr(old, name) for name in _restarts(old, new)}
    if "pool" in kept or "pool6" in kept:
        # Fixed addresses of another pool are not in this one.
        kept["clients"] = {
            name: _with_addresses_of(old.clients.get(name), entry) for name, entry in new.clients.items()
        }
    return new.model_copy(update=kept)


def keys_of(entry: ClientEntry) -> tuple[Key, ...]:
    """The keys that a client may use: two while its key is being changed."""
    return (entry.psk,) if entry.next_psk is None else (entry.psk, entry.next_psk)


def _with_addresses_of(before: ClientEntry | None, entry: ClientEntry) -> ClientEntry:
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
            yield Step("listen", f"{endpoint} is removed; sessions there are renewed", "reconnect")


def _clients(old: ServerConfig, new: ServerConfig) -> Iterator[Step]:
    for name, entry in new.clients.items():
        before = old.clients.get(name)
        if before is None:
            yield Step(_where(name), "is new")
        elif before != entry:
            yield from _entry(_where(name), before, entry, addresses=old.pool == new.pool)
    for name in old.clients:
        if name not in new.clients:
            what = (
                "has no entry of its own any more" if new.entry(name) else "is removed and its session ends"
            )
            yield Step(_where(name), what, "reconnect")


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
        what = "a key is not valid any more; a session made with it ends in a minute unless it is renewed"
        yield Step(where, what, "reconnect")
    if not set(new) <= set(old):
        yield Step(where, "another key is valid" if set(old) <= set(new) else "its new key is valid")


def _where(name: str) -> str:
    return "clients without an entry" if name == ANY_ID else f"client {name}"
