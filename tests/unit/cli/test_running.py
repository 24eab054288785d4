"""`dtun reload`, `dtun kick` and `dtun status --watch`, with a simulated dtun that answers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dtun.cli import main, status
from dtun.errors import UnavailableError
from dtun.service.control import RefusedError

KEY = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
Capture = pytest.CaptureFixture[str]


class Answering:
    """Replaces `ask`."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, dict[str, Any]]] = []
        self.by_name: dict[str, dict[str, Any]] = {}
        self.ends: Path | None = None
        self.answer: dict[str, Any] | Exception = {"lines": ["one", "two\x1b[2J"], "failed": False}

    def __call__(
        self, path: Path, command: str = "status", *, timeout: float = 5, **arguments: Any
    ) -> dict[str, Any]:
        del timeout
        self.asked.append((path.name, command, arguments))
        if command == "stop" and self.ends is not None:
            self.ends.unlink()
        answer = self.by_name.get(path.name, self.answer)
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture
def answering(monkeypatch: pytest.MonkeyPatch) -> Answering:
    made = Answering()
    monkeypatch.setattr("dtun.service.control.ask", made)
    return made


def test_reload_prints_what_it_meant(answering: Answering, capsys: Capture) -> None:
    assert main(["reload", "--socket", "/x/server.sock"]) == 0
    assert capsys.readouterr().out == "one\ntwo?[2J\n"
    assert main(["reload", "--dry-run", "--socket", "/x/server.sock"]) == 0
    assert answering.asked == [
        ("server.sock", "reload", {"dry_run": False}),
        ("server.sock", "reload", {"dry_run": True}),
    ]


def test_reload_tells_by_the_exit_code_that_not_all_of_it_worked(
    answering: Answering, capsys: Capture
) -> None:
    answering.answer = {"lines": ["error: no"], "failed": True}
    assert main(["reload", "--socket", "/x"]) == 1
    answering.answer = RefusedError("dtun.yaml:1:1: is wrong\nreload: nothing was changed", 78)
    assert main(["reload", "--socket", "/x"]) == 78
    assert capsys.readouterr().err == "dtun: dtun.yaml:1:1: is wrong\ndtun: reload: nothing was changed\n"


@pytest.mark.parametrize("command", ["reload", "down"])
def test_a_dtun_is_found_by_its_file_after_its_name_has_changed_there(
    tmp_path: Path, answering: Answering, capsys: Capture, command: str
) -> None:
    """It still runs as dtun0, and listens there."""
    file = tmp_path / "dtun.yaml"
    text = f"client: {{servers: [192.0.2.1], id: a, key: {KEY}, tun: vpn0, runtime_directory: {tmp_path}}}\n"
    file.write_text(text)
    file.chmod(0o600)
    for name in ("another", "dtun0"):
        (tmp_path / f"{name}.sock").touch()
    answering.by_name = {
        "another.sock": {"config": "/etc/dtun.yaml"},
        "dtun0.sock": {"config": str(file), "lines": ["tun: vpn0 instead of dtun0, at the next start"]},
    }
    answering.ends = tmp_path / "dtun0.sock"
    assert main([command, "-c", str(file)]) == 0
    assert answering.asked[-1][:2] == ("dtun0.sock", "stop" if command == "down" else "reload")
    capsys.readouterr()


def test_kick_names_the_client(answering: Answering, capsys: Capture) -> None:
    assert main(["kick", "demo", "--socket", "/x"]) == 0
    assert answering.asked == [("x", "kick", {"id": "demo"})]
    capsys.readouterr()


@pytest.fixture
def several(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A runtime directory of a server and two clients, without a default configuration."""
    monkeypatch.setattr("dtun.cli.running.DEFAULT_CONFIG", tmp_path / "none.yaml")
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path))
    for name in ("dtun0.sock", "dtun1.sock", "server.sock"):
        (tmp_path / name).touch()
    return tmp_path


def test_of_several_the_server_is_asked_to_kick(several: Path, answering: Answering) -> None:
    del several
    assert main(["kick", "demo"]) == 0
    assert answering.asked[0][0] == "server.sock"


def test_of_several_none_is_reloaded_by_guess(several: Path, answering: Answering, capsys: Capture) -> None:
    assert main(["reload"]) == 69
    said = capsys.readouterr().err
    assert "several dtun run here; say which one with --socket: " in said
    assert str(several / "dtun1.sock") in said
    assert answering.asked == []


@pytest.mark.parametrize("code", [0, 256, "69", None])
def test_an_exit_code_of_another_version_is_one_all_the_same(code: object) -> None:
    assert RefusedError("no", code).exit_code == 1


class Pictures:
    """Texts to show one after the other; then Ctrl-C."""

    def __init__(self, *pictures: str | Exception) -> None:
        self._left = list(pictures)
        self.pauses: list[float] = []

    def __call__(self) -> str:
        picture = self._left.pop(0)
        if isinstance(picture, Exception):
            raise picture
        return picture

    def pause(self, seconds: float) -> None:
        self.pauses.append(seconds)
        if not self._left:
            raise KeyboardInterrupt


def test_watch_shows_one_picture_after_the_other_until_interrupted(capsys: Capture) -> None:
    pictures = Pictures("one", UnavailableError("no dtun is running"), "two")
    assert status.watch(pictures, pictures.pause) == 0
    assert capsys.readouterr().out == "one\ndtun: no dtun is running\ntwo\n"
    assert pictures.pauses == [status.WATCH_INTERVAL] * 3


def test_watch_on_a_terminal_stays_on_its_screen(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("LINES", "4")
    monkeypatch.setenv("COLUMNS", "5")
    pictures = Pictures("1234567\nb\nc\nd\ne")
    assert status.watch(pictures, pictures.pause) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("\x1b[H12345\x1b[K\nb\x1b[K\n... a\x1b[K\n\x1b[J")
    assert shown.count("\n") <= 4 + 1


def test_watch_ends_when_its_reader_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "say", lambda _: False)
    pictures = Pictures("one")
    assert status.watch(pictures, pictures.pause) == 0
    assert pictures.pauses == []


def test_status_can_be_watched(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    seen: list[str] = []

    def once(picture: Callable[[], str]) -> int:
        seen.append(picture())
        return 0

    monkeypatch.setattr("dtun.cli.status.watch", once)
    monkeypatch.setattr("dtun.cli.status.ask", lambda _: {"role": "client", "tunnels": []})
    assert main(["status", "--watch", "--json", "--socket", "/x"]) == 0
    assert json.loads(seen[0])["role"] == "client"
    with pytest.raises(SystemExit):
        main(["status", "--watch", "--check"])
    capsys.readouterr()
