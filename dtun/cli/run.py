"""`dtun server`, `dtun client` and `dtun check`."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from dtun.cli.arguments import DEFAULT_CONFIG, Commands, add_command, add_config, one_file
from dtun.errors import ConfigError
from dtun.service import log

if TYPE_CHECKING:
    from dtun.config import Config
    from dtun.service.starting import Start

_SERVER_QUICK_START = ("key_file", "key", "compat", "listen", "pool", "masquerade", "runtime_directory")
_CLIENT_QUICK_START = (
    "host", "id", "key_file", "key", "compat", "peernet", "route", "up", "down", "tun", "forwarding",
)  # fmt: skip


def add_server(commands: Commands) -> None:
    command = add_command(
        commands,
        _server,
        "server",
        "serve clients",
        "Serve clients, as the configuration says. Or, for a quick start without a file, serve any id that\n"
        "has the key, and any private network behind it: dtun server --key-file FILE",
    )
    add_config(command)
    _add_log(command)
    quick = command.add_argument_group("quick start, instead of -c")
    _add_key(quick)
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
        "--masquerade",
        action="store_true",
        default=None,
        help="forward what clients send to other networks, with this host's address",
    )
    quick.add_argument(
        "--runtime-directory",
        metavar="DIR",
        help="where lock and control socket are; another one for a second server (default: /run/dtun)",
    )


def _server(arguments: argparse.Namespace) -> int:
    from dtun.config import quickstart
    from dtun.service.run import run_server
    from dtun.service.starting import Start
    from dtun.service.systemd import SystemdFdStore

    _set_up_log(arguments)
    if _is_quick_start(arguments, _SERVER_QUICK_START):
        _expect(arguments, "key_file")
        config = quickstart.server(
            key_file=arguments.key_file,
            key=arguments.key,
            listen=arguments.listen,
            pool=arguments.pool,
            compat=arguments.compat,
            runtime_directory=arguments.runtime_directory,
            masquerade=arguments.masquerade,
        )
    else:
        return run_server(_choose(arguments, "server"))
    _log_warnings(config)
    return run_server(Start(config, SystemdFdStore()))


def add_client(commands: Commands) -> None:
    command = add_command(
        commands,
        _client,
        "client",
        "connect to a server",
        "Connect to a server and stay connected, as the configuration says. Or, for a quick start without a\n"
        "file: dtun client --host HOST --id ID --key-file FILE --peernet 10.0.0.0/16 --forwarding",
    )
    add_config(command)
    _add_log(command)
    quick = command.add_argument_group("quick start, instead of -c")
    quick.add_argument(
        "--host",
        action="append",
        metavar="HOST",
        help="the server's name or address, or HOST:PORT (default port: 443); may be repeated, the best first",
    )
    quick.add_argument("--id", metavar="ID", help="who this client is")
    _add_key(quick)
    quick.add_argument(
        "--peernet", action="append", metavar="NET", help="a network behind this client; may be repeated"
    )
    quick.add_argument(
        "--route",
        action="append",
        metavar="NET",
        help="a network to reach through the tunnel; may be repeated",
    )
    quick.add_argument(
        "--forwarding",
        action="store_true",
        default=None,
        help="forward between the tunnel and the networks behind this client",
    )
    quick.add_argument("--up", metavar="PROGRAM", help="run when the tunnel is up")
    quick.add_argument("--down", metavar="PROGRAM", help="run when the tunnel goes down")
    quick.add_argument("--tun", metavar="NAME", help="the name of the TUN device (default: dtun0)")


def _client(arguments: argparse.Namespace) -> int:
    from dtun.config import quickstart
    from dtun.service.run import run_client
    from dtun.service.starting import Start
    from dtun.service.systemd import SystemdFdStore

    _set_up_log(arguments)
    if _is_quick_start(arguments, _CLIENT_QUICK_START):
        _expect(arguments, "host", "id", "key_file")
        config = quickstart.client(
            hosts=arguments.host,
            id=arguments.id,
            key_file=arguments.key_file,
            key=arguments.key,
            subnets=arguments.peernet,
            routes=arguments.route,
            tun=arguments.tun,
            compat=arguments.compat,
            up=arguments.up,
            down=arguments.down,
            forwarding=arguments.forwarding,
        )
    else:
        return run_client(_choose(arguments, "client"))
    _log_warnings(config)
    return run_client(Start(config, SystemdFdStore()))


def add_check(commands: Commands) -> None:
    command = add_command(
        commands,
        _check,
        "check",
        "check the configuration",
        "Check the configuration and the files that it names: whether a start or a reload would succeed. The\n"
        "service's own files (/etc/dtun.yaml, /etc/dtun/*.yaml) are read with the rights of its user, dtun.",
    )
    add_config(command)
    command.add_argument(
        "--user", metavar="USER", help="read the files with the rights of this user, such as root"
    )
    command.add_argument("file", nargs="?", type=Path, metavar="FILE", help="the same as -c FILE")


def _check(arguments: argparse.Namespace) -> int:
    from dtun.cli.check import check

    path = one_file(arguments, "-c", arguments.config) or DEFAULT_CONFIG
    return check(path, arguments.user)


def _add_log(command: argparse.ArgumentParser) -> None:
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


def _set_up_log(arguments: argparse.Namespace) -> None:
    log.set_up(arguments.log_level, arguments.log_format, file=arguments.log_file)


def _log_warnings(config: "Config") -> None:
    for warning in config.warnings:
        log.logger.warning("%s", warning)


def _add_key(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--key-file", metavar="FILE", help="the file of the key (make one: dtun genkey -o FILE)"
    )
    group.add_argument(
        "--key", metavar="KEY", help="the key itself; every user of this host can see it there"
    )
    group.add_argument("--compat", choices=["go"], help="the other side is an original Go dtun")


def _is_quick_start(arguments: argparse.Namespace, options: tuple[str, ...]) -> bool:
    given = [option for option in options if getattr(arguments, option) is not None]
    if given and arguments.config is not None:
        option = _option(given[0])
        arguments.fail(f"{option} belongs to the quick start without a file; leave out either it or -c")
    return bool(given)


def _expect(arguments: argparse.Namespace, *options: str) -> None:
    missing = [option for option in options if getattr(arguments, option) is None]
    if arguments.key is not None and "key_file" in missing:
        missing.remove("key_file")
    if missing:
        hint = "; `dtun genkey -o FILE` makes a key, for both ends" if "key_file" in missing else ""
        arguments.fail(f"the quick start also needs {', '.join(map(_option, missing))}{hint}")


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _choose(arguments: argparse.Namespace, section: str) -> "Start":
    from dtun.service.starting import choose

    path = arguments.config or DEFAULT_CONFIG
    start = choose(path, lambda: _load_section(path, section))
    _log_warnings(start.config)
    return start


def _load_section(path: Path, section: str) -> "Config":
    from dtun.config import load

    config = load(path)
    if getattr(config, section) is None:
        other = "client" if section == "server" else "server"
        raise ConfigError(
            f"{path}: has a {other} section; run `dtun {other}`, or give the file of the {section}"
        )
    return config
