"""`dtun status`, `reload`, `kick` and `down`: requests to a running dtun."""

import argparse
import contextlib
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from dtun.cli.arguments import DEFAULT_CONFIG, Commands, add_command, add_config, add_socket, load_config
from dtun.cli.output import say
from dtun.errors import ConfigError, DtunError, PermissionDeniedError, UnavailableError
from dtun.text import printable

if TYPE_CHECKING:
    from dtun.config import Config

RELOAD_TIMEOUT = 150.0
"""Seconds. A reload may wait for hooks."""

STOP_TIMEOUT = 45.0
"""Seconds for a running dtun to stop. It may wait for hooks."""

_INTERVAL = 0.1


def add_status(commands: Commands) -> None:
    command = add_command(
        commands,
        _status,
        "status",
        "show the state of the tunnels",
        "Ask every running dtun of this host for its state, or the one of -c or --socket. A server shows a row\n"
        "for each client, or all about the one that is named. The exit code is 0 whenever they answer, connected\n"
        "or not, unless --check is given.",
    )
    add_config(command)
    add_socket(command)
    command.add_argument("--json", action="store_true", help="one JSON object a running dtun, one a line")
    once = command.add_mutually_exclusive_group()
    once.add_argument(
        "--check",
        action="store_true",
        help="exit with 1 unless every tunnel of every client of this host is connected",
    )
    once.add_argument("--watch", action="store_true", help="show it again each second, until Ctrl-C")
    command.add_argument("id", nargs="?", metavar="ID", help="all about this client")


def _status(arguments: argparse.Namespace) -> int:
    from dtun.cli import status

    def sockets() -> list[Path]:
        return all_sockets(arguments.config, arguments.socket, default=arguments.check)

    name, as_json = arguments.id, arguments.json
    if arguments.watch:
        return status.watch(lambda: status.as_text(sockets(), name, as_json=as_json))
    return status.show(sockets(), name, as_json=as_json, check=arguments.check)


def add_reload(commands: Commands) -> None:
    command = add_command(
        commands,
        _reload,
        "reload",
        "have a running dtun read its configuration again",
        "Have the running dtun read its configuration again and go on with it. Whom the difference does not\n"
        "concern notices nothing. A configuration with a mistake in it changes nothing. SIGHUP does the same.",
    )
    add_config(command)
    add_socket(command)
    command.add_argument(
        "--dry-run", action="store_true", help="only tell what is different and what that would mean"
    )


def _reload(arguments: argparse.Namespace) -> int:
    """Returns 1 if the new configuration is in use, but a part of it does not work."""
    from dtun.service.control import ask

    try:
        path = _only(control_sockets(arguments.config, arguments.socket))
    except ConfigError as error:
        # A wrong configuration does not tell which socket to ask, and the running dtun would refuse it as well.
        raise ConfigError(f"{error}\nreload: nothing was changed") from None
    return _print(ask(path, "reload", timeout=RELOAD_TIMEOUT, dry_run=arguments.dry_run))


def add_kick(commands: Commands) -> None:
    command = add_command(
        commands,
        _kick,
        "kick",
        "end the session of a client",
        "Have the running server end the session of a client. The client may come back, and usually does.",
    )
    add_config(command)
    add_socket(command)
    command.add_argument("id", metavar="ID", help="whose session")


def _kick(arguments: argparse.Namespace) -> int:
    from dtun.service.control import ask

    path = _only(control_sockets(arguments.config, arguments.socket), preferred="server.sock")
    return _print(ask(path, "kick", id=arguments.id))


def add_down(commands: Commands) -> None:
    command = add_command(
        commands,
        _down,
        "down",
        "end a tunnel, and remove all that is left of it",
        "Have the running dtun stop; if none runs, remove what a killed one has left in the kernel, the kill\n"
        "switch included.",
    )
    add_config(command)


def _down(arguments: argparse.Namespace) -> int:
    from dtun.service.control import ask

    config = load_config(arguments)
    path = _running_with(config.path, config.control_socket)
    if not _exists(path):
        return _clean_up(config)
    try:
        ask(path, "stop")
    except UnavailableError:
        # A killed process leaves its socket, too; the lock tells whether dtun runs.
        return _clean_up(config)
    deadline = time.monotonic() + STOP_TIMEOUT
    while _exists(path):
        if time.monotonic() > deadline:
            raise UnavailableError(
                f"dtun has not stopped within {STOP_TIMEOUT:g} s; its log says what it waits for"
            )
        time.sleep(_INTERVAL)
    say("dtun has stopped; nothing is left behind")
    return 0


def _exists(path: Path) -> bool:
    """Whether it is there, or may be: who may not look has to be told so by `ask`."""
    try:
        return path.exists()
    except PermissionError:
        return True


def _clean_up(config: "Config") -> int:
    import asyncio

    from dtun.platform import kernel

    async def open_and_close() -> None:
        """Opening reads the journal of a killed process; closing removes what it lists."""
        instance = "server" if config.client is None else config.client.tun
        host = kernel(instance, config.section.runtime_directory)
        await host.open()
        await host.close()

    asyncio.run(open_and_close())
    say("dtun was not running; nothing of it is left behind")
    return 0


def control_sockets(config: Path | None, socket: Path | None) -> list[Path]:
    """The sockets to ask: `socket`, or that of `config` or of the default configuration, or all that exist.

    Raises:
        ConfigErrors: `config` is wrong.
        PermissionDeniedError: this user may not read `config`, or not look for the sockets.
        UnavailableError: no dtun is running.
    """
    if socket is not None:
        return [socket]
    configured = _configured_socket(config)
    return [configured] if configured is not None else existing_sockets()


def all_sockets(config: Path | None, socket: Path | None, *, default: bool) -> list[Path]:
    """The sockets to ask about every dtun of this host, unless one is given by `socket` or `config`.

    `default`: that of the default configuration is among them even if it does not run while others do.

    Raises:
        As `control_sockets`.
    """
    if socket is not None or config is not None:
        return control_sockets(config, socket)
    configured = _configured_socket(None)
    if configured is None:
        return existing_sockets()
    others = [] if not _may_search(configured.parent) else sorted(configured.parent.glob("*.sock"))
    if default or not others:
        others.append(configured)
    return sorted(set(others))


def existing_sockets() -> list[Path]:
    """The control sockets that exist in the usual directory.

    Raises:
        PermissionDeniedError: this user may not look for them.
        UnavailableError: there is none.
    """
    from dtun.config.common import RUNTIME_DIRECTORY, directory_from
    from dtun.service.control import ASK_PERMISSION

    directory = directory_from("RUNTIME_DIRECTORY", RUNTIME_DIRECTORY)
    if not _may_search(directory):
        raise PermissionDeniedError(
            f"{directory}: this user may not look for a running dtun; {ASK_PERMISSION}"
        )
    found = sorted(directory.glob("*.sock"))
    if not found:
        raise UnavailableError(
            f"no dtun is running: no socket in {directory}; start it, or give --socket PATH"
        )
    return found


def _may_search(directory: Path) -> bool:
    """False if the directory exists, but not for this user: `glob` would find nothing and not say why."""
    try:
        os.listdir(directory)  # noqa: PTH208 - the error is what matters
    except PermissionError:
        return False
    except OSError:
        pass
    return True


def _configured_socket(config: Path | None) -> Path | None:
    """The socket of this configuration, or of the default one; None if that is missing, not readable or wrong now."""
    from dtun.config import ConfigErrors, load

    try:
        file = config or DEFAULT_CONFIG
        return _running_with(file, load(file, read_keys=False).control_socket)
    except ConfigErrors:
        if config is None:
            return None
        if _exists(config) and not os.access(config, os.R_OK):
            raise PermissionDeniedError(
                f"{config}: this user may not read it; ask with sudo, or give the dtun's --socket instead of -c"
            ) from None
        raise


def _running_with(config: Path | None, configured: Path) -> Path:
    """The socket of the dtun that was started with this file, which may name another device or directory by now."""
    from dtun.config.common import RUNTIME_DIRECTORY, directory_from
    from dtun.service.control import ask

    if config is None or _exists(configured):
        return configured
    directories = {configured.parent, directory_from("RUNTIME_DIRECTORY", RUNTIME_DIRECTORY)}
    for path in sorted(path for directory in directories for path in directory.glob("*.sock")):
        with contextlib.suppress(DtunError):
            if ask(path).get("config") == str(config.absolute()):
                return path
    return configured


def _only(found: list[Path], preferred: str = "") -> Path:
    """The only socket of `found`, or the one named `preferred` among several."""
    named = [path for path in found if path.name == preferred]
    if len(found) > 1 and len(named) != 1:
        raise UnavailableError(
            f"several dtun run here; say which one with --socket: {', '.join(map(str, found))}"
        )
    return (named or found)[0]


def _print(answer: Mapping[str, object]) -> int:
    lines = answer.get("lines")
    for line in lines if isinstance(lines, list) else []:
        say(printable(str(line), None))
    return 1 if answer.get("failed") is True else 0
