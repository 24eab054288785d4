"""The log: for a terminal, for the journal, and safe with whatever gets into a message."""

import io
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from dtun.service import log


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    handlers, level, propagate = log.logger.handlers[:], log.logger.level, log.logger.propagate
    yield
    log.logger.handlers[:], log.logger.level, log.logger.propagate = handlers, level, propagate


def test_a_line_on_a_terminal_has_the_time() -> None:
    stream = io.StringIO()
    log.set_up("info", stream=stream, environment={"JOURNAL_STREAM": "1:2"})
    log.logger.debug("quiet")
    logging.getLogger("dtun.tunnel").warning("to %s: WARNING: careful", "you")
    time, rest = stream.getvalue()[:19], stream.getvalue()[19:]
    assert time[4] == time[7] == "-"
    assert time[13] == time[16] == ":"
    assert rest == " warning: to you: WARNING: careful\n"


def test_a_line_in_the_journal_has_the_priority(tmp_path: Path) -> None:
    with (tmp_path / "journal").open("w+") as stream:
        status = os.fstat(stream.fileno())
        environment = {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"}
        log.set_up("debug", stream=stream, environment=environment)
        log.logger.debug("a")
        log.logger.info("b")
        log.logger.warning("c")
        log.logger.error("d\ne")
        stream.seek(0)
        assert stream.read().splitlines() == ["<7>a", "<6>b", "<4>c", "<3>d", "<3>e"]


def test_a_redirected_service_is_not_the_journal(tmp_path: Path) -> None:
    with (tmp_path / "file").open("w") as stream:
        assert not log.goes_to_journal(stream, {"JOURNAL_STREAM": "1:2"})
        assert not log.goes_to_journal(stream, {})


def test_a_second_set_up_replaces_the_first() -> None:
    first, second = io.StringIO(), io.StringIO()
    log.set_up("info", stream=first, environment={})
    log.set_up("error", stream=second, environment={})
    log.logger.info("x")
    log.logger.error("y")
    assert first.getvalue() == ""
    assert len(second.getvalue().splitlines()) == 1


def test_escape_sequences_do_not_get_through() -> None:
    stream = io.StringIO()
    log.set_up("info", stream=stream, environment={})
    log.logger.info("id \x1b[31mred\r\n")
    assert stream.getvalue().endswith("info: id ?[31mred?\n\n")
