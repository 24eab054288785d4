"""The log: for a terminal, for the journal, for programs, and safe with whatever gets into a message."""

import io
import json
import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from struct import unpack_from

import pytest

from dtun.errors import UnavailableError
from dtun.pacing import RateLimiter
from dtun.service import log
from dtun.session.log import SessionLog


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    handlers, level, propagate = log.logger.handlers[:], log.logger.level, log.logger.propagate
    yield
    for handler in log.logger.handlers:
        if handler not in handlers:
            handler.close()
    log.logger.handlers[:], log.logger.level, log.logger.propagate = handlers, level, propagate


def test_a_line_on_a_terminal_has_the_time() -> None:
    stream = io.StringIO()
    log.set_up("info", stream=stream, environment={"JOURNAL_STREAM": "1:2"})
    log.logger.debug("quiet")
    logging.getLogger("dtun.session").warning("to %s: WARNING: careful", "you")
    time, rest = stream.getvalue()[:19], stream.getvalue()[19:]
    assert time[4] == time[7] == "-"
    assert time[13] == time[16] == ":"
    assert rest == " warning: to you: WARNING: careful\n"


class Daemon:
    """The journal, as far as a service notices: where its standard error goes, and where it takes entries."""

    def __init__(self, directory: Path) -> None:
        self.address = directory / "socket"
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(self.address))
        self.socket.settimeout(5)
        self.stream = (directory / "stream").open("w+")
        status = os.fstat(self.stream.fileno())
        self.environment = {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"}

    def lines(self) -> list[str]:
        self.stream.seek(0)
        return self.stream.read().splitlines()

    def entry(self) -> dict[str, str]:
        """The next entry, read as the protocol says."""
        data, fields = self.socket.recv(1 << 20), {}
        while data:
            name, _, data = data.partition(b"\n")
            if b"=" in name:
                name, _, value = name.partition(b"=")
            else:
                (length,) = unpack_from("<Q", data)
                value, end, data = data[8 : 8 + length], data[8 + length : 9 + length], data[9 + length :]
                assert end == b"\n"
            fields[name.decode()] = value.decode()
        return fields


@pytest.fixture
def daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Daemon]:
    made = Daemon(tmp_path)
    monkeypatch.setattr(log, "JOURNAL_SOCKET", str(made.address))
    yield made
    made.socket.close()
    made.stream.close()


def test_an_entry_of_the_journal_has_priority_and_fields(daemon: Daemon) -> None:
    log.set_up("debug", stream=daemon.stream, environment=daemon.environment)
    home = SessionLog(logging.getLogger("dtun.server"), name="home", client="home")
    home.warning("away", reason="timeout", peer="192.0.2.2:5000")
    assert daemon.entry() == {
        "MESSAGE": "home: away",
        "PRIORITY": "4",
        "SYSLOG_IDENTIFIER": "dtun",
        "LOGGER": "dtun.server",
        "DTUN_CLIENT": "home",
        "DTUN_REASON": "timeout",
        "DTUN_PEER": "192.0.2.2:5000",
    }
    for level, priority in (("debug", "7"), ("info", "6"), ("error", "3")):
        getattr(SessionLog(log.logger, client=None), level)("x", peer="")
        entry = daemon.entry()
        assert entry["PRIORITY"] == priority
        assert not {"DTUN_CLIENT", "DTUN_PEER"} & entry.keys()
    assert daemon.lines() == []


def test_suppressed_lines_are_counted_and_debug_lines_are_not_limited(daemon: Daemon) -> None:
    log.set_up("debug", stream=daemon.stream, environment=daemon.environment)
    times = iter((0.0, 1.0, 11.0))
    limiter = RateLimiter(burst=1, per_seconds=10)
    limited = SessionLog(log.logger, name="100%", client="home", limiter=limiter, clock=lambda: next(times))
    for what in ("one", "two", "three"):
        limited.info("is %s", what)
        limited.debug("detail", client="other")
    found = [daemon.entry() for _ in range(5)]
    assert [(entry["MESSAGE"], entry["DTUN_CLIENT"]) for entry in found] == [
        ("100%: is one", "home"),
        ("100%: detail", "other"),
        ("100%: detail", "other"),
        ("100%: is three (and 1 more like this)", "home"),
        ("100%: detail", "other"),
    ]


def test_several_lines_are_one_entry_and_cannot_fake_a_field(daemon: Daemon) -> None:
    log.set_up("info", stream=daemon.stream, environment=daemon.environment)
    SessionLog(log.logger, client="b\nMESSAGE=c").info("a\nPRIORITY=0\n\x1b", reason="d=e")
    entry = daemon.entry()
    assert (entry["MESSAGE"], entry["PRIORITY"]) == ("a\nPRIORITY=0\n?", "6")
    assert (entry["DTUN_CLIENT"], entry["DTUN_REASON"]) == ("b\nMESSAGE=c", "d=e")


def test_a_journal_that_takes_no_entries_gets_lines_with_the_priority(daemon: Daemon) -> None:
    log.set_up("debug", stream=daemon.stream, environment=daemon.environment)
    daemon.address.unlink()
    log.logger.debug("a")
    log.logger.info("b")
    log.logger.warning("c")
    log.logger.error("d\ne")
    assert daemon.lines() == ["<7>a", "<6>b", "<4>c", "<3>d", "<3>e"]


def test_a_journal_that_does_not_read_holds_up_nobody_for_long(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log, "JOURNAL_TIMEOUT", 0.01)
    log.set_up("info", stream=daemon.stream, environment=daemon.environment)
    began = time.monotonic()
    while not daemon.lines():
        log.logger.info("x" * 10_000)
        assert time.monotonic() - began < 10
    assert daemon.lines()[0].startswith("<6>x")


def test_a_program_gets_an_object_a_line() -> None:
    stream = io.StringIO()
    log.set_up("info", "json", stream=stream, environment={})
    home = SessionLog(logging.getLogger("dtun.server"), client="home", reason="timeout")
    home.info('"a"\n%s', "\x1b")
    try:
        int("a bug")
    except ValueError:
        log.logger.exception("internal error")
    first, second = map(json.loads, stream.getvalue().splitlines())
    assert abs(datetime.fromisoformat(first.pop("time")).timestamp() - time.time()) < 60
    assert first == {
        "level": "info",
        "logger": "dtun.server",
        "message": '"a"\n\x1b',
        "client": "home",
        "reason": "timeout",
    }
    assert "ValueError: invalid literal" in second["message"]


def test_a_file_takes_either_format(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log.set_up("info", "json", file=path)
    log.logger.info("a")
    log.set_up("info", file=path)
    log.logger.info("b")
    first, second = path.read_text().splitlines()
    assert json.loads(first)["message"] == "a"
    assert second.endswith(" info: b")


def test_under_systemd_another_format_may_be_asked_for(daemon: Daemon) -> None:
    log.set_up("info", "text", stream=daemon.stream, environment=daemon.environment)
    log.logger.info("a")
    log.set_up("info", "json", stream=daemon.stream, environment=daemon.environment)
    log.logger.info("b")
    first, second = daemon.lines()
    assert first.endswith(" info: a")
    assert json.loads(second)["message"] == "b"


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
