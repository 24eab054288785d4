"""Messages quoted in docs/troubleshooting.md are dtun's; docs/operations.md names commands and fields that exist."""

import re
from pathlib import Path

import pytest

from dtun.cli import parse
from dtun.session.log import FIELDS

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "operations.md").read_text()
MESSAGES = (ROOT / "docs" / "troubleshooting.md").read_text()
SOURCES = "\n".join(path.read_text() for path in sorted((ROOT / "dtun").rglob("*.py")))
# Messages of systemd.
NOT_OURS = {"Socket service dtun-server.service not loaded, refusing"}


def quoted() -> list[str]:
    """The messages in the first columns of the tables."""
    rows = re.findall(r"^\| (.*?) \|", MESSAGES, re.MULTILINE)
    return [message for row in rows for message in re.findall(r"`([^`]+)`", row) if message not in NOT_OURS]


def test_there_are_messages() -> None:
    assert len(quoted()) > 15


@pytest.mark.parametrize("message", [m for m in quoted() if not m.startswith("/etc/dtun.yaml:")])
def test_a_message_is_in_the_sources(message: str) -> None:
    # Variable parts are "..." on the page and in braces in the sources; a reason follows a colon.
    for part in re.split(r"\.\.\.|: ", message):
        assert part.strip(" ',:") in SOURCES.replace("`", ""), part


@pytest.mark.parametrize(
    "command", sorted(set(re.findall(r"`dtun ((?:status|reload|kick|down)[^`]*)`", PAGE)))
)
def test_a_command_is_one(command: str) -> None:
    assert parse(command.split()).command == command.split(maxsplit=1)[0]


def test_the_fields_are_those_of_the_log() -> None:
    named = set(re.findall(r"\bDTUN_[A-Z]+", PAGE))
    assert named == {f"DTUN_{field.upper()}" for field in FIELDS}
