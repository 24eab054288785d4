"""`dtun status`, `reload`, `kick` and `down`: requests to a running dtun."""

import argparse
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from dtun.cli.arguments import DEFAULT_CONFIG, Commands, add_command, add_config, add_socket, load_config
from dtun.cli.output import say
from dtun.errors import ConfigError, UnavailableError
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
        "Ask the running dtun for its state: a server shows a row a client, or all about the one that is named.\n"
        "The exit code is 0 whenever it answers, connected or not, unless --check is given.",
    )
    add_config(command)
    add_socket(command)
    command.add_argument("--json", action="store_true", help="one JSON object a running dtun, one a line")
    once = command.add_mutually_exclusive_group()
    once.add_argument(
        "--check", action="store_true", help="exit with 1 unless every tunnel of a client is connected"
    )
    once.add_argument("--watch", action="store_true", help="show it again each second, until Ctrl-C")
    command.add_argument("id", nargs="?", metavar="ID", help="all about this client")


def _status(arguments: argparse.Namespace) -> int:
    from dtun.cli import status

    def sockets() -> list[Path]:
        return control_sockets(arguments.config, arguments.socket)

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
    if not config.control_socket.exists():
        return _clean_up(config)
    try:
        ask(config.control_socket, "stop")
    except UnavailableError:
        # A killed process leaves its socket, too; the lock tells whether dtun runs.
        return _clean_up(config)
    deadline = time.monotonic() + STOP_TIMEOUT
    while config.control_socket.exists():
        if time.monotonic() > deadline:
            raise UnavailableError(
                f"dtun has not stopped within {STOP_TIMEOUT:g} s; its log says what it waits for"
            )
        time.sleep(_INTERVAL)
    say("dtun has stopped; nothing is left behind")
    return 0


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
        UnavailableError: no dtun is running.
    """
    from dtun.config import ConfigErrors, load
    from dtun.config.common import RUNTIME_DIRECTORY, directory_from

    if socket is not None:
        return [socket]
    try:
        return [load(config or DEFAULT_CONFIG, read_keys=False).control_socket]
    except ConfigErrors:
        if config is not None:
            raise
    # The default configuration is missing, not readable for this user or wrong at the moment: ask all that run.
    directory = directory_from("RUNTIME_DIRECTORY", RUNTIME_DIRECTORY)
    found = sorted(directory.glob("*.sock"))
    if not found:
        raise UnavailableError(
            f"no dtun is running: no socket in {directory}; start it, or give --socket PATH"
        )
    return found


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
