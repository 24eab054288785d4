"""`dtun reload` and `dtun kick`: what a running dtun is asked to do."""

from pathlib import Path

from dtun.cli.output import say
from dtun.cli.status import sockets
from dtun.errors import ConfigError, UnavailableError
from dtun.service.control import ask
from dtun.text import printable

PATIENCE = 150.0
"""Seconds for a reload, which may wait for hooks."""


def reload(config: Path | None, socket: Path | None, *, dry_run: bool) -> int:
    """Have the dtun at `socket`, or the one that `config` starts, read its configuration again; print what that meant.

    Returns 1 if it goes on with the new configuration, but not all of that works.

    Raises:
        ConfigError: the configuration is not usable; nothing has changed.
        UnavailableError: no dtun runs there, or several do and none is named.
    """
    try:
        path = _sole(sockets(config, socket))
    except ConfigError as error:
        # Its mistake hides who is to be asked, and that one would not take it either.
        raise ConfigError(f"{error}\nreload: nothing was changed") from None
    return _print(ask(path, "reload", timeout=PATIENCE, dry_run=dry_run))


def kick(config: Path | None, socket: Path | None, identity: str) -> int:
    """Have a server end the session of a client.

    Raises:
        UnavailableError: no server runs there, or it has no such client, or that has no session.
    """
    return _print(ask(_sole(sockets(config, socket), name="server.sock"), "kick", id=identity))


def _sole(found: list[Path], name: str = "") -> Path:
    """The one to ask: of several, the one of this name, if there is one."""
    named = [path for path in found if path.name == name]
    if len(found) > 1 and len(named) != 1:
        raise UnavailableError(
            f"several dtun run here; say which one with --socket: {', '.join(map(str, found))}"
        )
    return (named or found)[0]


def _print(answer: dict[str, object]) -> int:
    lines = answer.get("lines")
    for line in lines if isinstance(lines, list) else []:
        say(printable(str(line), None))
    return 1 if answer.get("failed") is True else 0
