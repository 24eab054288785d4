"""YAML text as plain data, with the position of each value.

A small, strict subset of YAML: mappings, lists and scalars in one document. Scalars stay text as written, so that an
id may be `0123` or `on`; the models convert numbers. Anchors and aliases work, within limits; tags and repeated keys
are errors.
"""

import re
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import yaml
from yaml.composer import Composer
from yaml.parser import Parser
from yaml.reader import Reader
from yaml.scanner import Scanner

from dtun.config.errors import Location, Problem, shown_name

MAX_BYTES = 1 << 20
MAX_VALUES = 100_000  # counted after the expansion of aliases
MAX_DEPTH = 16

_EMPTY = frozenset({"", "~", "null", "Null", "NULL"})
# Escapes like "\0" and "\ud800" produce these; no setting needs them.
_FORBIDDEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
_CORE_TAGS = re.compile(r"tag:yaml\.org,2002:(str|int|float|bool|null|seq|map)|[!?]")


class Position(NamedTuple):
    """Both count from 1."""

    line: int
    column: int


@dataclass(slots=True)
class Document:
    """`data` consists of dict, list, str and None. `keys` and `values` have their positions."""

    data: Any = None
    keys: dict[Location, Position] = field(default_factory=dict)
    values: dict[Location, Position] = field(default_factory=dict)
    problems: list[tuple[Position, Problem]] = field(default_factory=list)

    def position(self, location: Location, *, of_key: bool = False) -> Position:
        """The position of `location`, or of the nearest written value that contains it."""
        while location not in self.values and location:
            # A single value written instead of a list has no index. Anything else is missing from the value around it.
            of_key = of_key or isinstance(location[-1], str)
            location = location[:-1]
        key, value = self.keys.get(location), self.values.get(location, Position(1, 1))
        # A block of lines is found by its key, which is on the line above.
        return key if key and (of_key or key.line < value.line) else value


class _TooComplexError(Exception):
    pass


class _Loader(Reader, Scanner, Parser, Composer):
    """PyYAML up to its node tree, with a limit on the depth and without implicit types."""

    def __init__(self, text: str) -> None:
        Reader.__init__(self, text)
        Scanner.__init__(self)
        Parser.__init__(self)
        Composer.__init__(self)
        self._depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise _TooComplexError
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    # Composer calls these. Without implicit types, every node without a tag gets "!".
    def descend_resolver(self, parent: Any, index: Any) -> None: ...

    def ascend_resolver(self) -> None: ...

    def resolve(self, kind: type[yaml.Node], value: Any, implicit: Any) -> str:  # noqa: ARG002
        return "!"


def parse(content: bytes) -> Document:
    """Parse a YAML document. Errors are in `problems` of the result; nothing is raised."""
    if len(content) > MAX_BYTES:
        return _broken(Position(1, 1), f"the file is larger than {MAX_BYTES >> 20} MiB; is it the right one?")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        column = error.start - content.rfind(b"\n", 0, error.start)
        return _broken(Position(line, column), "is not UTF-8 text; save the file as UTF-8")
    return _parse_text(text)


def _parse_text(text: str) -> Document:
    document = Document()
    try:
        node = _Loader(text).get_single_node()
        if node is not None:
            _Builder(document).build(node)
    except yaml.reader.ReaderError as error:
        return _broken(_position_of_offset(text, error.position), "holds a control character; remove it")
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        position = Position(mark.line + 1, mark.column + 1) if mark else Position(1, 1)
        return _broken(position, _explain(error))
    except (ValueError, OverflowError):
        # PyYAML raises these for escapes and version numbers out of range.
        return _broken(Position(1, 1), "is not valid YAML: an escape like \\U names no character")
    except _TooComplexError:
        message = "is nested too deeply, or its aliases repeat too much; write it plainly"
        return _broken(Position(1, 1), message)
    return document


def _broken(position: Position, message: str) -> Document:
    return Document(problems=[(position, Problem((), message))])


def _position_of_offset(text: str, offset: int) -> Position:
    before = text[:offset]
    return Position(before.count("\n") + 1, offset - before.rfind("\n"))


# A part of PyYAML's message -> a hint. PyYAML quotes the text around the error; dtun must not, it may be a key.
_EXPLANATIONS = (
    ("tab", "there is a tab; indent with spaces"),
    ("undefined alias", '"*" starts an alias in YAML; put quotes around what starts with it, like "*"'),
    (
        "expected alphabetic or numeric",
        '"*" and "&" mean something in YAML; put quotes around them, like "*"',
    ),
    (
        "mapping values are not allowed",
        "there is a colon too much, or the line before is not complete or not quoted",
    ),
    ("could not find expected ':'", "a colon and a space are missing after the name"),
    ("expected <block end>", "the indentation does not fit the lines above"),
    ("expected ',' or", "a comma or a closing bracket is missing; quote addresses that have brackets"),
    ("but found another document", "there is a second document; leave one in the file"),
    ("end of stream", "the file ends within a quoted text or a bracket"),
    ("escape", "there is an unknown escape; use single quotes around text with backslashes"),
    ("cannot start any token", "there is a character that has to be in quotes"),
    ("duplicate anchor", "two anchors have the same name"),
)


def _explain(error: yaml.MarkedYAMLError) -> str:
    said = f"{error.problem or ''} {error.context or ''}"
    if "\\t" in said:
        said = "tab"
    hint = next(
        (hint for sign, hint in _EXPLANATIONS if sign in said), "look for a missing quote, colon or space"
    )
    return f"is not valid YAML: {hint}"


class _Builder:
    """Converts nodes to data. Expands aliases, up to MAX_VALUES values in all."""

    def __init__(self, document: Document) -> None:
        self._document = document
        self._values = 0

    def build(self, root: yaml.Node) -> None:
        self._document.data = self._value(root, ())

    def _value(self, node: yaml.Node, location: Location) -> Any:
        self._values += 1
        # An alias inside its own anchor is endless; the depth limit stops it.
        if self._values > MAX_VALUES or len(location) > MAX_DEPTH:
            raise _TooComplexError
        self._document.values[location] = _position(node)
        if not _CORE_TAGS.fullmatch(node.tag):
            self._problem(node, location, "has a YAML tag; remove the word with '!'")
            return None
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, location)
        if isinstance(node, yaml.SequenceNode):
            return [self._value(item, (*location, index)) for index, item in enumerate(node.value)]
        if _FORBIDDEN.search(node.value):
            self._problem(node, location, "has a control character in it; remove it")
            return None
        is_plain = not getattr(node, "style", None)
        return None if is_plain and node.value in _EMPTY else node.value

    def _mapping(self, node: yaml.MappingNode, location: Location) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                self._problem(key, location, "has a list or a mapping as the name of a value; quote it")
                continue
            name = key.value
            here = (*location, name)
            if _FORBIDDEN.search(name):
                self._problem(key, location, "has a control character in a name; remove it")
                continue
            if name in result:
                first = self._document.keys[here]
                message = f"{shown_name(name)} is there twice, first on line {first.line}; remove one of them"
                self._problem(key, location, message)
                continue
            self._document.keys[here] = _position(key)
            result[name] = self._value(value, here)
        return result

    def _problem(self, node: yaml.Node, location: Location, message: str) -> None:
        self._document.problems.append((_position(node), Problem(location, message)))


def _position(node: yaml.Node) -> Position:
    return Position(node.start_mark.line + 1, node.start_mark.column + 1)
