"""What each command does."""

import argparse
import json
import logging
from pathlib import Path

from dtun.cli.output import complain, say
from dtun.cli.parsers import DEFAULT_CONFIG
from dtun.config import Config, ConfigErrors, ServerConfig, keys, load, quickstart
from dtun.errors import ConfigError, PermissionDeniedError, UnavailableError
from dtun.service import log

_SERVER_QUICK_START = ("key_file", "key", "compat", "listen", "pool", "runtime_directory")
_CLIENT_QUICK_START = (
    "host", "id", "key_file", "key", "compat", "peernet", "route", "up", "down", "tun",
)  # fmt: skip


def run(arguments: argparse.Namespace) -> int:
    commands = {
        "server": _server,
        "client": _client,
        "check": _check,
        "genkey": _genkey,
        "status": _status,
        "reload": _reload,
        "kick": _kick,
        "plan": _plan,
        "explain": _explain,
        "down": _down,
        "schema": _schema,
    }
    if "log_format" in arguments:
        log.set_up(arguments.log_level, arguments.log_format, file=arguments.log_file)
    return commands[arguments.command](arguments)


def _server(arguments: argparse.Namespace) -> int:
    if _is_quick_start(arguments, _SERVER_QUICK_START):
        _expect(arguments, "key_file")
        config = quickstart.server(
            key_file=arguments.key_file,
            key=arguments.key,
            listen=arguments.listen,
            pool=arguments.pool,
            compat=arguments.compat,
            runtime_directory=arguments.runtime_directory,
        )
    else:
        config = _loaded(arguments, "server")
    _log_warnings(config)
    from dtun.service.run import run_server  # noqa: PLC0415 - only these two commands need the engine

    return run_server(config)


def _client(arguments: argparse.Namespace) -> int:
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
        )
    else:
        config = _loaded(arguments, "client")
    _log_warnings(config)
    from dtun.service.run import run_client  # noqa: PLC0415 - only these two commands need the engine

    return run_client(config)


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


def _one_file(arguments: argparse.Namespace, option: str, given: Path | None) -> Path | None:
    """The file of a command that takes it with an option or without."""
    if given is not None and arguments.file is not None:
        arguments.fail(f"a file is given twice; leave out either {arguments.file} or {option}")
    return given or arguments.file


def _loaded(arguments: argparse.Namespace, section: str) -> Config:
    path = arguments.config or DEFAULT_CONFIG
    config = load(path)
    if getattr(config, section) is None:
        other = "client" if section == "server" else "server"
        raise ConfigError(
            f"{path}: has a {other} section; run `dtun {other}`, or give the file of the {section}"
        )
    return config


def _log_warnings(config: Config) -> None:
    for warning in config.warnings:
        log.logger.warning("%s", warning)


def _check(arguments: argparse.Namespace) -> int:
    path = _one_file(arguments, "-c", arguments.config) or DEFAULT_CONFIG
    try:
        config = load(path)
    except ConfigErrors as errors:
        _warn(errors.warnings)
        raise
    _warn(config.warnings)
    section = config.section
    if isinstance(section, ServerConfig):
        listen = ", ".join(map(str, section.listen))
        count = len(section.clients)
        entries = "1 client entry" if count == 1 else f"{count} client entries"
        say(f"OK: {config.path}: server on {listen}, pool {section.pool}, {entries}")
    else:
        servers = ", ".join(map(str, section.servers))
        subnets = ", ".join(map(str, section.subnets)) or "none"
        say(f"OK: {config.path}: client {section.id!r} of {servers}, networks behind it: {subnets}")
    return 0


def _warn(warnings: list[str]) -> None:
    for warning in warnings:
        complain(f"warning: {warning}", logging.WARNING)


def _genkey(arguments: argparse.Namespace) -> int:
    path = _one_file(arguments, "-o", arguments.output)
    text = keys.generate(go=arguments.compat == "go")
    if path is None:
        say(text)
        return 0
    try:
        keys.write_file(path, text)
    except FileExistsError:
        raise UnavailableError(
            f"{path} exists already and is left as it is; remove it first, or choose another"
        ) from None
    except PermissionError:
        raise PermissionDeniedError(
            f"{path} cannot be written by this user; run as root, or choose another"
        ) from None
    except FileNotFoundError:
        raise UnavailableError(
            f"{path} cannot be written: its directory does not exist; make that first, or choose another"
        ) from None
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UnavailableError(f"{path} cannot be written: {reason}; choose another") from None
    return 0


def _status(arguments: argparse.Namespace) -> int:
    from dtun.cli.status import picture, show  # noqa: PLC0415

    if arguments.watch:
        from dtun.cli.watch import watch  # noqa: PLC0415

        return watch(
            lambda: picture(arguments.config, arguments.socket, arguments.id, as_json=arguments.json)
        )
    return show(
        arguments.config, arguments.socket, arguments.id, as_json=arguments.json, check=arguments.check
    )


def _any_section(arguments: argparse.Namespace) -> Config:
    config = load(arguments.config or DEFAULT_CONFIG)
    _warn(config.warnings)
    return config


def _plan(arguments: argparse.Namespace) -> int:
    from dtun.cli import plan  # noqa: PLC0415

    return plan.plan(_any_section(arguments))


def _explain(arguments: argparse.Namespace) -> int:
    from dtun.cli import plan  # noqa: PLC0415

    try:
        address = plan.parse_address(arguments.address)
    except ValueError as error:
        arguments.fail(str(error))
    return plan.explain(_any_section(arguments), address)


def _down(arguments: argparse.Namespace) -> int:
    from dtun.cli.down import down  # noqa: PLC0415

    return down(_any_section(arguments))


def _schema(arguments: argparse.Namespace) -> int:
    del arguments
    from dtun.config.schema import schema  # noqa: PLC0415

    say(json.dumps(schema(), indent=2))
    return 0


def _reload(arguments: argparse.Namespace) -> int:
    from dtun.cli import running  # noqa: PLC0415

    return running.reload(arguments.config, arguments.socket, dry_run=arguments.dry_run)


def _kick(arguments: argparse.Namespace) -> int:
    from dtun.cli import running  # noqa: PLC0415

    return running.kick(arguments.config, arguments.socket, arguments.id)
