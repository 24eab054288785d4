"""What the log says about a client's sessions."""

import pytest

from dtun.client.log import FIRST_REMINDER, ClientLog
from dtun.config import ClientConfig

CONFIG = ClientConfig.model_validate({"servers": "192.0.2.1", "id": "demo", "runtime_directory": "/run/dtun"})


def test_a_failure_is_logged_once_and_a_new_reason_at_once(caplog: pytest.LogCaptureFixture) -> None:
    log = ClientLog(CONFIG)
    for reason in ("no answer", "no answer", "no route", "no route", "no answer"):
        log.failed(reason, 0, 0)
    assert caplog.messages == ["no session: no answer", "no session: no route", "no session: no answer"]
    assert {getattr(record, "client", None) for record in caplog.records} == {"demo"}


def test_there_is_a_reminder_now_and_then(caplog: pytest.LogCaptureFixture) -> None:
    log = ClientLog(CONFIG)
    for second in range(0, 800, 15):
        log.failed("no answer", second, 1000 + second)
    assert caplog.messages == [
        "no session: no answer",
        "no session for 1 min 0 s: no answer",
        "no session for 6 min 0 s: no answer",
        "no session for 11 min 0 s: no answer",
    ]


def test_with_a_session_in_service_it_is_the_new_one_that_failed(caplog: pytest.LogCaptureFixture) -> None:
    log = ClientLog(CONFIG)
    log.failed("no answer", None, 0)
    log.failed("no answer", None, FIRST_REMINDER)
    assert caplog.messages == ["no new session: no answer", "still no new session: no answer"]
