"""Plain data to models, and pydantic's errors to messages that tell a person what to do."""

import difflib
from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from dtun.config.client import ClientConfig
from dtun.config.client_rules import client_problems
from dtun.config.errors import Location, Problem, shown, shown_name
from dtun.config.server import ClientEntry, ServerConfig
from dtun.config.server_rules import server_problems

Sections = tuple[ServerConfig | None, ClientConfig | None]

_SECTIONS: dict[str, type[BaseModel]] = {"server": ServerConfig, "client": ClientConfig}


@dataclass(frozen=True, slots=True)
class Outcome:
    """All problems, and the section without the settings that are wrong.

    `doubtful`: locations of wrong settings, and of those that a misspelt name was probably meant for.
    """

    sections: Sections
    problems: list[Problem]
    doubtful: frozenset[Location] = frozenset()

    def believable(self, problems: Iterable[Problem]) -> list[Problem]:
        """Those that do not depend on a doubtful setting."""
        return [problem for problem in problems if not any(map(self._is_doubtful, problem.uses))]

    def _is_doubtful(self, used: Location) -> bool:
        return any(place[: len(used)] == used for place in self.doubtful)


def validate(data: Any) -> Outcome:
    problems = _top_level_problems(data)
    if problems:
        return Outcome((None, None), problems)
    name = next(section for section in _SECTIONS if section in data)
    problems = [_unknown((key,), _SECTIONS.keys(), "") for key in data if key not in _SECTIONS]
    errors: list[ErrorDetails] = []
    settings = data[name] if data[name] is not None else {}
    section = _parsed(name, settings, errors)
    places = [(name, *error["loc"]) for error in errors]
    meant = {_meant(place) for place, error in zip(places, errors, strict=True) if _is_unknown(error)}
    problems += [
        _translate(place, error)
        for place, error in zip(places, errors, strict=True)
        # A misspelt setting is reported once, not as missing as well.
        if error["type"] != "missing" or place not in meant
    ]
    # Check the rest nevertheless: rules between settings, and keys.
    rest = section or _parsed(name, _without(settings, errors), [])
    sections = (rest, None) if isinstance(rest, ServerConfig) else (None, rest)
    outcome = Outcome(sections, problems, frozenset(meant.union(places)))
    return replace(outcome, problems=problems + outcome.believable(_rules(rest)))


def _top_level_problems(data: Any) -> list[Problem]:
    if data is None:
        return [Problem((), "the file is empty; write a `server:` or a `client:` section")]
    if not isinstance(data, dict):
        return [Problem((), "the file must have a `server:` or a `client:` section")]
    present = [name for name in _SECTIONS if name in data]
    if len(present) == 2:
        return [Problem(("client",), "there is a server section already; use a file for each of them")]
    if present:
        return []
    unknown = [_unknown((key,), _SECTIONS.keys(), "") for key in data]
    return unknown or [Problem((), "the file has no section; write a `server:` or a `client:` section")]


def _parsed(name: str, data: Any, errors: list[ErrorDetails]) -> ServerConfig | ClientConfig | None:
    # The exception is not chained: it contains the input, with keys.
    try:
        return ServerConfig.model_validate(data) if name == "server" else ClientConfig.model_validate(data)
    except ValidationError as error:
        errors += error.errors(include_url=False, include_context=True, include_input=False)
    return None


def _rules(section: ServerConfig | ClientConfig | None) -> Iterable[Problem]:
    if section is None:
        return ()
    return server_problems(section) if isinstance(section, ServerConfig) else client_problems(section)


# Replaces a wrong setting that is required, while the rest is checked.
_STAND_INS: dict[str, Any] = {"servers": ["server.invalid"], "id": "id", "clients": {}}

# pydantic ends the location of an error in a mapping's key with this.
_KEY_MARK = "[key]"


def _without(data: Any, errors: list[ErrorDetails]) -> Any:
    """`data` without the settings that have an error, and without clients that are not a mapping."""
    if not isinstance(data, dict):
        return data
    result = deepcopy(data)
    clients = result.get("clients")
    for error in errors:
        match error["loc"]:
            case ("clients", identity, *inside) if isinstance(clients, dict):
                entry = clients.get(identity)
                if isinstance(entry, dict) and inside and inside[0] != _KEY_MARK:
                    entry.pop(inside[0], None)
                else:
                    clients.pop(identity, None)
            case (str(setting), *_) if setting in _STAND_INS:
                result[setting] = _STAND_INS[setting]
            case (setting, *_):
                result.pop(setting, None)
            case _:
                pass
    return result


def _is_unknown(error: ErrorDetails) -> bool:
    return error["type"] == "extra_forbidden"


def _meant(location: Location) -> Location:
    """The location of the setting that an unknown name was probably meant for, or its own."""
    model, _ = _model_around(location)
    # `mtu:1400`, without a space, is a name as well.
    near = _nearest(str(location[-1]).partition(":")[0], model.model_fields)
    return (*location[:-1], near or location[-1])


def _translate(location: Location, error: ErrorDetails) -> Problem:
    if _is_unknown(error):
        model, place = _model_around(location)
        return _unknown(location, model.model_fields, place)
    if location[-1] == _KEY_MARK:
        return Problem(location[:-2], f"{shown(str(location[-2]))}: {_say(error)}")
    if error["type"] == "model_type" and len(location) == 3 and location[-1] in ClientEntry.model_fields:
        message = "is a setting of a client, in the place of a client's id; is this line indented too little?"
        return Problem(location, message)
    return Problem(location, _say(error))


def _model_around(location: Location) -> tuple[type[BaseModel], str]:
    if location[:2] == ("server", "clients") and len(location) > 3:
        return ClientEntry, "clients"
    return _SECTIONS[str(location[0])], str(location[0])


def _unknown(location: Location, known: Iterable[str], place: str) -> Problem:
    return Problem(location, _say_unknown(str(location[-1]), list(known), place), about_name=True)


def _say_unknown(name: str, known: list[str], place: str) -> str:
    if name == "<<":
        return "`<<` (merging in YAML) is not supported; write the settings themselves here"
    quoted = shown_name(name)
    if ":" in name:
        return f"{quoted} is not a known key; is a space missing after the colon?"
    for section, model in (("server", ServerConfig), ("client", ClientConfig), ("clients", ClientEntry)):
        if section != place and name in model.model_fields:
            belongs = "an entry of server.clients" if section == "clients" else f"the {section} section"
            return f"unknown key {quoted}; it belongs into {belongs}"
    near = _nearest(name, known)
    if near:
        return f"unknown key {quoted}; did you mean {shown(near)}?"
    return f"unknown key {quoted}; known are {', '.join(known)}"


def _nearest(name: str, known: Iterable[str]) -> str | None:
    return next(iter(difflib.get_close_matches(name, known, 1)), None)


_SAYINGS = {
    "missing": "is missing",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_parsing_size": "must be a whole number, and smaller",
    "int_from_float": "must be a whole number",
    # All settings with fractions are times.
    "float_type": "must be a number of seconds, like 5",
    "float_parsing": "must be a number of seconds, like 5",
    "finite_number": "must be a number of seconds, like 5",
    "greater_than": "must be greater than {gt:g}",
    "greater_than_equal": "must be at least {ge:g}",
    "less_than_equal": "must be at most {le:.15g}",  # 4294967295, not 4.29497e+09
    "too_short": "must have at least one item",
    "too_long": "must have at most {max_length} items",
    "string_type": "must be text",
    "path_type": "must be the path of a file",
    "tuple_type": "must be a list",
    "dict_type": "must be a mapping: lines of `name: value`, indented below it",
    "model_type": "must be a mapping: lines of `name: value`, indented below it",
    "literal_error": "must be {expected}",
    "value_error": "{error}",
}


def _say(error: ErrorDetails) -> str:
    saying = _SAYINGS.get(error["type"])
    return saying.format(**error.get("ctx", {})) if saying else error["msg"]
