"""`dtun check`: whether a start, or a reload, would succeed.

The file is read with the rights of those who will read it: of the service's user if it is a file of the service. If a
dtun runs with this file, it is asked as well, since only it sees the file as the service does: in its sandbox, with its
credentials and its own ports.
"""

import os
import pwd
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Final

from dtun.cli.output import say, warn
from dtun.config import ClientConfig, Config, ConfigErrors, ServerConfig, load
from dtun.config.keys import GROUP
from dtun.errors import DtunError, PermissionDeniedError, UnavailableError
from dtun.service import preflight
from dtun.service.control import RefusedError, ask
from dtun.service.reload import NOT_CHANGED

SERVICE_USER: Final = GROUP
"""The user in the units, whose group has the same name."""

SERVICE_DIRECTORY: Final = Path("/etc/dtun")
SERVICE_FILE: Final = Path("/etc/dtun.yaml")

HIDDEN: Final = ("/home", "/root", "/run/user", "/tmp", "/var/tmp")  # noqa: S108 - nothing is written there
"""What the units hide from the service: ProtectHome= and PrivateTmp=."""

DRY_RUN_TIMEOUT: Final = 30.0
"""Seconds for a running dtun to read the file."""


def check(path: Path, user: str | None) -> int:
    """Print what is wrong, or OK. `user`: with whose rights; None is the service's for its own files, else one's own.

    Raises:
        DtunError: a start would fail, for this reason.
    """
    who = user or _service_user(path)
    try:
        with _acting_as(who) if who else nullcontext():
            config = load(path, credentials=False)
    except ConfigErrors as errors:
        warn(errors.warnings)
        raise
    warn(config.warnings)
    if who == SERVICE_USER:
        _check_hidden(config)
    if not _checked_by_running(config) and who is not None:
        for problem in preflight.problems(config.section):
            raise problem
    say(f"OK: {config.path}: {_summary(config.section)}")
    return 0


def _service_user(path: Path) -> str | None:
    """The user that the service has, if this is one of its files and this process may become that user."""
    is_its_file = path.absolute() == SERVICE_FILE or path.absolute().parent == SERVICE_DIRECTORY
    if os.geteuid() != 0 or not is_its_file:
        return None
    try:
        pwd.getpwnam(SERVICE_USER)
    except KeyError:
        return None
    return SERVICE_USER


@contextmanager
def _acting_as(name: str) -> Iterator[None]:
    """Have the rights of this user for a while.

    Raises:
        UnavailableError: there is no such user.
        PermissionDeniedError: only root may.
    """
    try:
        user = pwd.getpwnam(name)
    except KeyError:
        raise UnavailableError(f"there is no user {name}") from None
    before = os.geteuid(), os.getegid(), os.getgroups()
    try:
        os.setgroups(os.getgrouplist(name, user.pw_gid))
        os.setegid(user.pw_gid)
        os.seteuid(user.pw_uid)
    except PermissionError:
        raise PermissionDeniedError(f"only root can check with the rights of {name}; use sudo") from None
    try:
        yield
    finally:
        os.seteuid(before[0])
        os.setegid(before[1])
        os.setgroups(before[2])


def _check_hidden(config: Config) -> None:
    """Refuse files in places that the service does not see."""
    hidden = [
        f"{file} is not visible for the service, from which its unit hides {place}; keep it in {SERVICE_DIRECTORY}"
        for file in dict.fromkeys(_files(config))
        for place in HIDDEN
        if file.is_relative_to(place)
    ]
    if hidden:
        raise ConfigErrors(hidden)


def _files(config: Config) -> Iterator[Path]:
    assert config.path is not None  # noqa: S101 - it was read from a file
    base = config.path.parent
    sections = [config.client] if config.client is not None else []
    entries = list(config.server.clients.values()) if config.server is not None else []
    for keyed in (*sections, *entries):
        for name in ("key_file", "next_key_file"):
            file = getattr(keyed, name, None)
            if file is not None:
                yield base / file
    for hooked in (config.section, *entries):
        for command in (hooked.up, hooked.down):
            if command is not None:
                yield Path(command[0])
    if config.client is not None:
        yield from (base / file for file in config.client.bypass_files)


def _checked_by_running(config: Config) -> bool:
    """Have the dtun that runs with this file check it, if there is one.

    Raises:
        RefusedError: it would refuse to reload.
    """
    assert config.path is not None  # noqa: S101 - it was read from a file
    try:
        if ask(config.control_socket).get("config") != str(config.path.absolute()):
            return False
        ask(config.control_socket, "reload", timeout=DRY_RUN_TIMEOUT, dry_run=True)
    except RefusedError as error:
        text = str(error).removesuffix(NOT_CHANGED)
        raise RefusedError(f"{text}\nso says the running service", error.exit_code) from None
    except DtunError:
        return False  # none runs, or this user may not ask
    return True


def _summary(section: ServerConfig | ClientConfig) -> str:
    if isinstance(section, ServerConfig):
        listen = ", ".join(map(str, section.listen))
        count = len(section.clients)
        entries = "1 client entry" if count == 1 else f"{count} client entries"
        return f"server on {listen}, pool {section.pool}, {entries}"
    servers = ", ".join(map(str, section.servers))
    subnets = ", ".join(map(str, section.subnets)) or "none"
    return f"client {section.id!r} of {servers}, networks behind it: {subnets}"
