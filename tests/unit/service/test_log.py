"""The log: for a terminal, for the journal, and safe with whatever gets into a message."""

import io
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dtun.errors import UnavailableError
from dtun.service import log


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    handlers, level, propagate = log.logger.handlers[:], log.logger.level, log.logger.propagate
    yield
    for handler in log.logger.handlers:
        handler.close()
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


def test_a_file_that_is_rotated(tmp_path: Path) -> None:
    path = tmp_path / "dtun.log"
    log.set_up("info", file=path, environment={})
    log.logger.info("one")
    path.rename(tmp_path / "dtun.log.0")
    log.logger.info("two")
    # As newsyslog(8) does it: a new file is in the place of the old one at once.
    path.rename(tmp_path / "dtun.log.1")
    path.touch(mode=0o640)
    log.logger.info("three")
    texts = [(tmp_path / name).read_text() for name in ("dtun.log.0", "dtun.log.1", "dtun.log")]
    assert [text[19:] for text in texts] == [" info: one\n", " info: two\n", " info: three\n"]
    assert path.stat().st_mode & 0o777 == 0o640


LAUNCHED = """
import logging, os, sys
from pathlib import Path
from dtun.errors import UnavailableError
from dtun.service import log

path = Path(sys.argv[1])
log.set_up("info", file=path)
log.logger.info("one")
path.rename(sys.argv[1] + ".0")
log.logger.info("two")
raise ValueError("the end")
"""


def test_a_traceback_follows_the_log(tmp_path: Path) -> None:
    path = tmp_path / "dtun.log"
    with path.open("a") as output:
        # launchd opens one file for all three.
        done = subprocess.run(
            [sys.executable, "-c", LAUNCHED, str(path)], stdout=output, stderr=output, check=False, timeout=60
        )
    assert done.returncode == 1
    assert (tmp_path / "dtun.log.0").read_text()[19:] == " info: one\n"
    first, *_, last = path.read_text().splitlines()
    assert (first[19:], last) == (" info: two", "ValueError: the end")


def test_a_terminal_stays_one(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LAUNCHED, str(tmp_path / "dtun.log")],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.stderr.endswith("ValueError: the end\n")
    assert len((tmp_path / "dtun.log").read_text().splitlines()) == 1


def test_a_file_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match=r"cannot write the log .*/no/dtun\.log: no such file"):
        log.set_up("info", file=tmp_path / "no" / "dtun.log")
