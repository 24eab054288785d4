"""Plain data to models, and what pydantic says into what a person can act on."""

import difflib
from collections.abc import Iterable, Iterator
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from dtun.config.client import ClientConfig
from dtun.config.errors import Location, Problem, shown, shown_name
from dtun.config.rules import client_problems, server_problems
from dtun.config.server import ClientEntry, ServerConfig

Sections = tuple[ServerConfig | None, ClientConfig | None]

_SECTIONS: dict[str, type[BaseModel]] = {"server": ServerConfig, "client": ClientConfig}


def validate(data: Any) -> tuple[Sections, list[Problem]]:
    """All that is wrong, and the section that is there, without what is wrong in it."""
    problems = _top_level_problems(data)
    if problems:
        return (None, None), problems
    name = next(section for section in _SECTIONS if section in data)
    problems = [_unknown((key,), _SECTIONS.keys(), "") for key in data if key not in _SECTIONS]
    section, found = _section(name, data[name] if data[name] is not None else {})
    problems += found
    if isinstance(section, ServerConfig):
        return (section, None), problems
    return (None, section), problems


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


def _section(name: str, data: Any) -> tuple[ServerConfig | ClientConfig | None, list[Problem]]:
    errors: list[ErrorDetails] = []
    section = _parsed(name, data, errors)
    problems = [_translate((name, *error["loc"]), error) for error in errors]
    # The rules between settings are worth checking even so, on what is left when the broken part is cut out.
    rest = section or _parsed(name, _without(data, errors), [])
    broken = {part for error in errors for part in _settings_in_doubt(name, error)}
    if rest is not None:
        problems += [problem for problem in _rules(rest) if not problem.uses & broken]
    return rest, problems


def _parsed(name: str, data: Any, errors: list[ErrorDetails]) -> ServerConfig | ClientConfig | None:
    # The exception is not passed on: it holds what was written, keys too.
    try:
        return ServerConfig.model_validate(data) if name == "server" else ClientConfig.model_validate(data)
    except ValidationError as error:
        errors += error.errors(include_url=False, include_context=True, include_input=False)
    return None


def _rules(section: ServerConfig | ClientConfig) -> Iterator[Problem]:
    return server_problems(section) if isinstance(section, ServerConfig) else client_problems(section)


# What stands in for a setting that must be there, while the rest is checked.
_STAND_INS: dict[str, Any] = {"servers": ["server.invalid"], "id": "id", "clients": {}}


def _without(data: Any, errors: list[ErrorDetails]) -> Any:
    """`data` less every setting of the section, and every client's entry, that has an error in it."""
    if not isinstance(data, dict):
        return data
    result = dict(data)
    if isinstance(result.get("clients"), dict):
        result["clients"] = dict(result["clients"])
    for error in errors:
        match error["loc"]:
            case ("clients", identity, *_) if isinstance(result.get("clients"), dict):
                result["clients"].pop(identity, None)
            case (str(setting), *_) if setting in _STAND_INS:
                result[setting] = _STAND_INS[setting]
            case (setting, *_):
                result.pop(setting, None)
            case _:
                pass
    return result


def _settings_in_doubt(section: str, error: ErrorDetails) -> list[str]:
    setting = str(error["loc"][0]) if error["loc"] else ""
    if error["type"] == "extra_forbidden":
        return difflib.get_close_matches(setting, _SECTIONS[section].model_fields, 1)
    return [setting]


def _translate(location: Location, error: ErrorDetails) -> Problem:
    if error["type"] == "extra_forbidden":
        model, place = _model_around(location)
        return _unknown(location, model.model_fields, place)
    # pydantic marks errors in the keys of a mapping like this.
    if location[-1] == "[key]":
        return Problem(location[:-2], f"{shown(str(location[-2]))}: {_say(error)}")
    return Problem(location, _say(error))


def _model_around(location: Location) -> tuple[type[BaseModel], str]:
    if location[:2] == ("server", "clients") and len(location) > 3:
        return ClientEntry, "clients"
    return _SECTIONS[str(location[0])], str(location[0])


def _unknown(location: Location, known: Iterable[str], place: str) -> Problem:
    return Problem(location, _say_unknown(str(location[-1]), list(known), place), about_name=True)


def _say_unknown(name: str, known: list[str], place: str) -> str:
    quoted = shown_name(name)
    if ":" in name:
        return f"{quoted} is not a known key; is a space missing after the colon?"
    for section, model in (("server", ServerConfig), ("client", ClientConfig), ("clients", ClientEntry)):
        if section != place and name in model.model_fields:
            belongs = "an entry of server.clients" if section == "clients" else f"the {section} section"
            return f"unknown key {quoted}; it belongs into {belongs}"
    near = difflib.get_close_matches(name, known, 1)
    if near:
        return f"unknown key {quoted}; did you mean {shown(near[0])}?"
    return f"unknown key {quoted}; known are {', '.join(known)}"


_SAYINGS = {
    "missing": "is missing",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_parsing_size": "must be a whole number, and smaller",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "finite_number": "must be a number",
    "greater_than": "must be greater than {gt:g}",
    "greater_than_equal": "must be at least {ge:g}",
    "less_than_equal": "must be at most {le:g}",
    "too_short": "must have at least one item",
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
