"""How a service ends that has failed by itself: not at once, since it is started again at once."""

import pytest

from dtun.errors import ConfigError, DtunError, PermissionDeniedError, UnavailableError
from dtun.service import notify, run


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    found: list[float] = []
    monkeypatch.setattr("time.sleep", found.append)
    return found


async def _failing(error: Exception) -> int:
    raise error


@pytest.mark.parametrize(
    "error", [UnavailableError("UDP port 443 is taken"), DtunError("x"), RuntimeError("a bug")]
)
def test_what_may_pass_is_told_to_the_manager_and_followed_by_a_pause(
    error: Exception, pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []

    def hear(text: str) -> bool:
        told.append(text)
        return True

    monkeypatch.setattr(notify, "status", hear)
    with pytest.raises(type(error)):
        run._to_the_end(_failing(error))
    assert told == [f"has failed: {error}"]
    assert pauses == [run.RESTART_PAUSE]


@pytest.mark.parametrize("error", [ConfigError("x"), PermissionDeniedError("x")])
def test_what_takes_a_person_ends_at_once(
    error: Exception, pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notify, "status", lambda _: True)
    with pytest.raises(type(error)):
        run._to_the_end(_failing(error))
    assert pauses == []


def test_a_person_at_a_terminal_does_not_wait(pauses: list[float]) -> None:
    with pytest.raises(UnavailableError):
        run._to_the_end(_failing(UnavailableError("x")))
    assert pauses == []
