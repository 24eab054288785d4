"""A configuration from a command line: no file, sensible defaults, the same models and checks."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dtun.config import loader, validation
from dtun.config.errors import ConfigErrors, Problem
from dtun.config.loader import Config
from dtun.config.server import ANY_ID

_OPTIONS = {
    "servers": "--host",
    "id": "--id",
    "key_file": "--key-file",
    "key": "--key",
    "subnets": "--peernet",
    "routes": "--route",
    "up": "--up",
    "down": "--down",
    "tun": "--tun",
    "compat": "--compat",
    "listen": "--listen",
    "masquerade": "--masquerade",
    "forwarding": "--forwarding",
    "pool": "--pool",
    "runtime_directory": "--runtime-directory",
}
_KEY_ON_THE_COMMAND_LINE = (
    "--key: every user of this host can read it in the list of processes; use --key-file"
)


def server(
    *, key_file: str | None = None, key: str | None = None, listen: list[str] | None = None,
    pool: str | None = None, compat: str | None = None, runtime_directory: str | None = None,
    masquerade: bool | None = None,
) -> Config:  # fmt: skip
    """A server for any id that has the key, and for any private network behind such a client.

    Raises:
        ConfigErrors: one line for each problem, with the option that it is about.
    """
    entry = {"key_file": key_file, "key": key, "compat": compat, "subnets": "private"}
    settings: dict[str, object] = {"listen": listen, "pool": pool, "runtime_directory": runtime_directory}
    if masquerade:
        settings["masquerade"] = True
    return _config({"server": {**settings, "clients": {ANY_ID: entry}}})


def client(
    *, hosts: list[str], id: str, key_file: str | None = None, key: str | None = None,  # noqa: A002
    subnets: list[str] | None = None, routes: list[str] | None = None, tun: str | None = None,
    compat: str | None = None, up: str | None = None, down: str | None = None, forwarding: bool | None = None,
) -> Config:  # fmt: skip
    """A client of the servers at `hosts`.

    Raises:
        ConfigErrors: one line for each problem, with the option that it is about.
    """
    settings: dict[str, object] = {
        "servers": hosts,
        "id": id,
        "key_file": key_file,
        "key": key,
        "subnets": subnets,
    }
    settings |= {"routes": routes, "tun": tun, "compat": compat, "up": up, "down": down}
    if forwarding:
        settings["forwarding"] = True
    return _config({"client": settings})


def _config(data: Mapping[str, Any]) -> Config:
    outcome = validation.validate(data)
    sections = outcome.sections
    problems = outcome.problems + outcome.believable(loader.complete(sections, Path.cwd()))
    if problems:
        raise ConfigErrors(_line(problem) for problem in problems)
    warnings = [_line(problem) for problem in loader.warnings(sections)]
    server, client = sections
    keyed = server.clients[ANY_ID] if server else client
    if keyed is not None and keyed.key is not None:
        warnings.append(_KEY_ON_THE_COMMAND_LINE)
    return Config(*sections, path=None, warnings=warnings)


def _line(problem: Problem) -> str:
    option = next((_OPTIONS[part] for part in reversed(problem.location) if part in _OPTIONS), "command line")
    where = f"{option}: {problem.elsewhere}" if problem.elsewhere else option
    return f"{where}: {problem.message}"
