"""The command line: what can be given, and the help."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from dtun import __version__
from dtun.cli.parsers import EXIT_CODES, Commands, add_command, add_config
from dtun.cli.planning_arguments import add_planning
from dtun.cli.running_arguments import add_running


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command and its options. `fail(message)` of the result shows the usage of that command and exits with 2.

    Raises:
        SystemExit: there is a mistake in `argv`, or it asks for help, and that has been said.
    """
    arguments, rest = _parser().parse_known_args(argv)
    options = [word for word in rest if word.startswith("-")]
    if options:
        # Their values are left out: one may be a key.
        names = (word.partition("=")[0] if word.startswith("--") else word[:2] for word in options)
        arguments.fail(f"unknown option {', '.join(names)}")
    if rest:
        arguments.fail("there is an argument too many")
    return arguments


def _parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="dtun",
        description="An encrypted IP tunnel over UDP: DTLS 1.2 with pre-shared keys, one YAML file.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    top.add_argument("--version", action="version", version=f"dtun {__version__}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    _server(commands)
    _client(commands)
    _check(commands)
    _genkey(commands)
    add_running(commands)
    add_planning(commands)
    return top


def _log_options(command: argparse.ArgumentParser) -> None:
    levels = ("debug", "info", "warning", "error")
    command.add_argument(
        "--log-level", choices=levels, default="info", help="how much to log (default: info)"
    )
    command.add_argument(
        "-v",
        "--verbose",
        dest="log_level",
        action="store_const",
        const="debug",
        help="same as --log-level debug",
    )
    command.add_argument(
        "--log-file",
        type=Path,
        metavar="FILE",
        help="log to this file, which may be renamed to rotate it (default: standard error)",
    )
    command.add_argument(
        "--log-format",
        choices=("auto", "text", "json"),
        default="auto",
        help="lines of text or of JSON (default: text; under systemd, entries of the journal with fields)",
    )


def _key_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--key-file", metavar="FILE", help="the file of the key (make one: dtun genkey -o FILE)"
    )
    group.add_argument(
        "--key", metavar="KEY", help="the key itself; every user of this host can see it there"
    )
    group.add_argument("--compat", choices=["go"], help="the other side is an original Go dtun")


def _server(commands: Commands) -> None:
    command = add_command(
        commands,
        "server",
        "serve clients",
        "Serve clients, as the configuration says. Or, for a quick start without a file, serve any id that\n"
        "has the key, and any private network behind it: dtun server --key-file FILE",
    )
    add_config(command)
    _log_options(command)
    quick = command.add_argument_group("quick start, instead of -c")
    _key_options(quick)
    quick.add_argument(
        "--listen",
        action="append",
        metavar="ADDR",
        help="an address to listen on, or ADDR:PORT; may be repeated (default: all addresses, port 443)",
    )
    quick.add_argument(
        "--pool", metavar="NET", help="the network to give addresses from (default: 10.86.0.0/16)"
    )
    quick.add_argument(
        "--runtime-directory",
        metavar="DIR",
        help="where lock and control socket are; another one for a second server (default: /run/dtun)",
    )


def _client(commands: Commands) -> None:
    command = add_command(
        commands,
        "client",
        "connect to a server",
        "Connect to a server and stay connected, as the configuration says. Or, for a quick start without a\n"
        "file: dtun client --host HOST --id ID --key-file FILE --peernet 10.0.0.0/16",
    )
    add_config(command)
    _log_options(command)
    quick = command.add_argument_group("quick start, instead of -c")
    quick.add_argument(
        "--host",
        action="append",
        metavar="HOST",
        help="the server's name or address, or HOST:PORT (default port: 443); may be repeated, the best first",
    )
    quick.add_argument("--id", metavar="ID", help="who this client is")
    _key_options(quick)
    quick.add_argument(
        "--peernet", action="append", metavar="NET", help="a network behind this client; may be repeated"
    )
    quick.add_argument(
        "--route",
        action="append",
        metavar="NET",
        help="a network to reach through the tunnel; may be repeated",
    )
    quick.add_argument("--up", metavar="PROGRAM", help="run when the tunnel is up")
    quick.add_argument("--down", metavar="PROGRAM", help="run when the tunnel goes down")
    quick.add_argument("--tun", metavar="NAME", help="the name of the TUN device (default: dtun0)")


def _check(commands: Commands) -> None:
    command = add_command(
        commands, "check", "check the configuration", "Check the configuration and the keys that it names."
    )
    add_config(command)
    command.add_argument("file", nargs="?", type=Path, metavar="FILE", help="the same as -c FILE")


def _genkey(commands: Commands) -> None:
    command = add_command(
        commands,
        "genkey",
        "make a key",
        "Make a key of 32 random bytes, as base64. Both ends need the same one.",
    )
    command.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="FILE",
        help="a new file for its owner only, in /etc/dtun for the service too (default: print the key)",
    )
    command.add_argument("file", nargs="?", type=Path, metavar="FILE", help="the same as -o FILE")
    command.add_argument("--compat", choices=["go"], help="for an original Go dtun: 32 characters of text")
