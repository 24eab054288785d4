"""The command line as data, from the parser of `dtun`, for the manual page and the completions."""

import argparse
from dataclasses import dataclass

from dtun.cli import parser


@dataclass(frozen=True)
class Option:
    """An option, or a positional argument (then `flags` is empty)."""

    flags: tuple[str, ...]
    value: str  # the name of its value; empty if it has none
    choices: tuple[str, ...]
    help: str
    required: bool = False

    @property
    def takes_file(self) -> bool:
        return self.value in {"FILE", "PATH", "PROGRAM", "DIR"}

    @property
    def takes_id(self) -> bool:
        """Whether it names a client of the running server."""
        return not self.flags and self.value == "ID"


@dataclass(frozen=True)
class Command:
    """One of dtun's commands. `description` may have several lines."""

    name: str
    summary: str
    description: str
    options: tuple[Option, ...]

    @property
    def flags(self) -> list[str]:
        return [flag for option in self.options for flag in option.flags]


def commands() -> list[Command]:
    """All commands, in the order of `dtun --help`."""
    found = []
    for group in _actions(parser()):
        if isinstance(group, argparse._SubParsersAction):  # noqa: SLF001 - it has no public name
            summaries = {action.dest: action.help or "" for action in group._choices_actions}  # noqa: SLF001
            for name, command in group.choices.items():
                options = tuple(
                    _option(action) for action in _actions(command) if action.help != argparse.SUPPRESS
                )
                found.append(Command(name, summaries.get(name, ""), command.description or "", options))
    return found


def _actions(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    return parser._actions  # noqa: SLF001 - argparse has no public access to them


def _option(action: argparse.Action) -> Option:
    choices = tuple(map(str, action.choices)) if action.choices is not None else ()
    value = ""
    if action.nargs != 0:
        named = action.metavar if isinstance(action.metavar, str) else action.dest.upper()
        value = "|".join(choices) if choices and action.metavar is None else named
    text = (action.help or "").replace("%%", "%")
    return Option(tuple(action.option_strings), value, choices, text, action.required)
