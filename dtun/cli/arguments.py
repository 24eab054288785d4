"""The command line: what can be given, and the help."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

from dtun import __version__

DEFAULT_CONFIG = Path("/etc/dtun.yaml")

_EXIT_CODES = """\
exit codes:
  0    done; ended as told
  1    an unexpected failure; status --check: a client is not connected
  2    a mistake on the command line
  69   something is missing or taken: /dev/net/tun, a port, a running dtun
       (status), the name of a new key file (genkey)
  77   a right is missing: root or CAP_NET_ADMIN
  78   the configuration or a key is wrong; a restart does not help
  130  interrupted (Ctrl-C) before it was up
"""


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
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    top.add_argument("--version", action="version", version=f"dtun {__version__}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    _server(commands)
    _client(commands)
    _check(commands)
    _genkey(commands)
    _status(commands)
    return top


_Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"  # noqa: SLF001 - it has no public name


def _command(commands: _Commands, name: str, summary: str, description: str) -> argparse.ArgumentParser:
    command = commands.add_parser(
        name,
        help=summary,
        description=description,
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    command.set_defaults(fail=command.error)
    return command


def _config_option(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "-c", "--config", type=Path, metavar="FILE", help=f"the configuration (default: {DEFAULT_CONFIG})"
    )


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


def _key_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--key-file", metavar="FILE", help="the file of the key (make one: dtun genkey -o FILE)"
    )
    group.add_argument(
        "--key", metavar="KEY", help="the key itself; every user of this host can see it there"
    )
    group.add_argument("--compat", choices=["go"], help="the other side is an original Go dtun")


def _server(commands: _Commands) -> None:
    command = _command(
        commands,
        "server",
        "serve clients",
        "Serve clients, as the configuration says. Or, for a quick start without a file, serve any id that\n"
        "has the key, and any private network behind it: dtun server --key-file FILE",
    )
    _config_option(command)
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


def _client(commands: _Commands) -> None:
    command = _command(
        commands,
        "client",
        "connect to a server",
        "Connect to a server and stay connected, as the configuration says. Or, for a quick start without a\n"
        "file: dtun client --host HOST --id ID --key-file FILE --peernet 10.0.0.0/16",
    )
    _config_option(command)
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


def _check(commands: _Commands) -> None:
    command = _command(
        commands, "check", "check the configuration", "Check the configuration and the keys that it names."
    )
    _config_option(command)
    command.add_argument("file", nargs="?", type=Path, metavar="FILE", help="the same as -c FILE")


def _genkey(commands: _Commands) -> None:
    command = _command(
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
        help="a new file, readable by its owner only (default: print the key)",
    )
    command.add_argument("file", nargs="?", type=Path, metavar="FILE", help="the same as -o FILE")
    command.add_argument("--compat", choices=["go"], help="for an original Go dtun: 32 characters of text")


def _status(commands: _Commands) -> None:
    command = _command(
        commands,
        "status",
        "show the state of the tunnels",
        "Ask the running dtun for its state. The exit code is 0 whenever it answers, connected or not, unless\n"
        "--check is given.",
    )
    _config_option(command)
    command.add_argument("--socket", type=Path, metavar="PATH", help="the control socket to ask")
    command.add_argument("--json", action="store_true", help="one JSON object a running dtun, one a line")
    command.add_argument(
        "--check", action="store_true", help="exit with 1 unless every tunnel of a client is connected"
    )
