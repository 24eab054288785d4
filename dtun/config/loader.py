"""Reads a configuration: from a path to checked models, or to a list of all problems."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from dtun.config import document, keys, validation
from dtun.config.client import ClientConfig
from dtun.config.client_rules import bypass_problems, bypass_warnings, client_warnings
from dtun.config.common import Hooked
from dtun.config.document import Document, Position
from dtun.config.errors import ConfigErrors, Location, Place, Problem, dotted, shown
from dtun.config.keyed import Keyed
from dtun.config.keys import shared_with, unreadable
from dtun.config.server import ANY_ID, ServerConfig
from dtun.config.validation import Sections

MAX_SOCKET_PATH_BYTES = 107  # sockaddr_un.sun_path less the final NUL


@dataclass(frozen=True, slots=True)
class Config:
    """A whole configuration. Exactly one of `server` and `client` is set. `path` is None after a quick start.

    `warnings` are lines about things that work but should be changed, `content` is the file as it was.
    """

    server: ServerConfig | None
    client: ClientConfig | None
    path: Path | None
    warnings: list[str] = field(default_factory=list)
    content: bytes = field(default=b"", repr=False)

    @property
    def section(self) -> ServerConfig | ClientConfig:
        section = self.server or self.client
        assert section is not None  # noqa: S101 - the validation ensures it
        return section

    @property
    def control_socket(self) -> Path:
        return self.section.control_socket


def load(path: Path, *, read_keys: bool = True, credentials: bool = True) -> Config:
    """Read and check the configuration at `path`, with the files that it names.

    `read_keys=False` does not read keys and lists of networks, for users who may not read these files. Without
    `credentials`, credentials that only the service gets are not missed: a warning says that they were not looked at.

    Raises:
        ConfigErrors: one line for each problem, `FILE:LINE:COLUMN: where: what is wrong; what to do`.
    """
    content, others_can_read = _read(path)
    parsed = document.parse(content)
    if parsed.problems and parsed.data is None:
        raise ConfigErrors(_lines(path, parsed, []))
    outcome = validation.validate(parsed.data)
    sections = outcome.sections
    # In the service itself they are there, or missing.
    credentials = credentials or keys.passes_credentials(os.environ)
    problems = outcome.problems + outcome.believable(
        complete(sections, path.parent, read_keys=read_keys, credentials=credentials)
    )
    found = list(_inline_key_warnings(sections, path)) if others_can_read else []
    if read_keys and not credentials:
        found += [one for where, keyed in _keyed(sections) for one in keyed.unseen_credentials(where)]
    if read_keys:
        found += warnings(sections)
    noticed = [_line(path, parsed, warning) for warning in found]
    if problems or parsed.problems:
        raise ConfigErrors(_lines(path, parsed, problems), noticed)
    return Config(*sections, path=path, warnings=noticed, content=content)


def _read(path: Path) -> tuple[bytes, bool]:
    """The file's content, and whether other users can read it."""
    try:
        with path.open("rb") as file:
            readers = shared_with(os.fstat(file.fileno())) & 0o044
            return file.read(document.MAX_BYTES + 1), bool(readers)
    except FileNotFoundError:
        message = f"{path}: does not exist; write it (see etc/dtun.yaml.example), or give -c FILE"
    except PermissionError:
        message = f"{path}: {unreadable(path)}"
    except OSError as error:
        message = f"{path}: cannot be read: {error.strerror}"
    raise ConfigErrors([message])


def complete(
    sections: Sections, base: Path, *, read_keys: bool = True, credentials: bool = True
) -> Iterator[Problem]:
    """Read the keys and the lists of networks; check what depends on them and on this host."""
    server, client = sections
    section = server or client
    if section is not None and len(os.fsencode(section.control_socket)) > MAX_SOCKET_PATH_BYTES:
        message = (
            f"is too long for the control socket in it; at most {MAX_SOCKET_PATH_BYTES} bytes with its name"
        )
        yield Problem(("server" if server else "client", "runtime_directory"), message)
    if read_keys:
        for location, keyed in _keyed(sections):
            yield from keyed.read_key(base, location, credentials=credentials)
        if client is not None:
            yield from client.read_lists(base, ("client",))
            yield from bypass_problems(client)


def _keyed(sections: Sections) -> Iterator[tuple[Location, Keyed]]:
    server, client = sections
    if server is not None:
        for identity, entry in server.clients.items():
            yield ("server", "clients", identity), entry
    if client is not None:
        yield ("client",), client


def warnings(sections: Sections) -> list[Problem]:
    """Problems that do not prevent a start."""
    server, client = sections
    found = [warning for where, keyed in _keyed(sections) for warning in keyed.key_warnings(where)]
    hooked: list[tuple[Location, Hooked]] = []
    if client is not None:
        found += [*client_warnings(client), *bypass_warnings(client)]
        hooked.append((("client",), client))
    if server is not None:
        hooked.append((("server",), server))
        hooked += [(("server", "clients", identity), entry) for identity, entry in server.clients.items()]
        found += _same_keys(server)
    found += [warning for where, section in hooked for warning in section.hook_warnings(where)]
    return found


def _same_keys(server: ServerConfig) -> Iterator[Problem]:
    owners: dict[bytes, str] = {}
    for identity, entry in server.clients.items():
        for key in entry.known_keys:
            owner = owners.setdefault(key.secret(), identity)
            if owner != identity and ANY_ID not in {owner, identity}:
                message = (
                    f"has the key of client {shown(owner)}, so each can pass for the other; make another one"
                )
                yield Problem(("server", "clients", identity), message)


def _inline_key_warnings(sections: Sections, path: Path) -> Iterator[Problem]:
    for location, keyed in _keyed(sections):
        if keyed.key is not None:
            message = f"others can read the key in this file; run {keys.make_private(path)}, or use key_file"
            yield Problem((*location, "key"), message)


def _lines(path: Path, parsed: Document, problems: list[Problem]) -> list[str]:
    placed = parsed.problems + [(_place(parsed, problem), problem) for problem in problems]
    ordered = sorted(placed, key=lambda item: item[0])
    return list(dict.fromkeys(_format(path, parsed, position, problem) for position, problem in ordered))


def _line(path: Path, parsed: Document, problem: Problem) -> str:
    return _format(path, parsed, _place(parsed, problem), problem)


def _place(parsed: Document, problem: Problem) -> Position:
    return parsed.position(problem.location, of_key=problem.about_name)


def _format(path: Path, parsed: Document, position: Position, problem: Problem) -> str:
    location = problem.location[:-1] if problem.about_name else problem.location
    # A single value may be written instead of a list; it has no index in the file.
    while location and isinstance(location[-1], int) and location not in parsed.values:
        location = location[:-1]
    where = f"{dotted(location)}: " if location else ""
    also = f" (the other: {_shown_place(path, parsed, problem.related)})" if problem.related else ""
    if problem.elsewhere is not None:
        return f"{problem.elsewhere}: {problem.message}{also}"
    return f"{path}:{position.line}:{position.column}: {where}{problem.message}{also}"


def _shown_place(path: Path, parsed: Document, place: Place) -> str:
    if isinstance(place, str):
        return place
    position = parsed.position(place)
    return f"{path}:{position.line}:{position.column}"
