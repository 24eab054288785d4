"""The command line of what is asked of a dtun that runs: status, reload, kick."""

from dtun.cli.parsers import Commands, add_command, add_config, add_socket


def add_running(commands: Commands) -> None:
    _status(commands)
    _reload(commands)
    _kick(commands)


def _status(commands: Commands) -> None:
    command = add_command(
        commands,
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


def _reload(commands: Commands) -> None:
    command = add_command(
        commands,
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


def _kick(commands: Commands) -> None:
    command = add_command(
        commands,
        "kick",
        "end the session of a client",
        "Have the running server end the session of a client. The client may come back, and usually does.",
    )
    add_config(command)
    add_socket(command)
    command.add_argument("id", metavar="ID", help="whose session")
