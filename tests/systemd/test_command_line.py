"""Completions and manual pages have every command and option; completion works in bash."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tools import completions, manual
from tools.commandline import commands

COMMANDS = commands()


@pytest.mark.parametrize("page", [completions.bash, completions.zsh, completions.fish, manual.dtun_8])
def test_each_command_and_option_is_there(page: Callable[[], str]) -> None:
    text = page().replace("\\-", "-")
    assert {"server", "client", "check", "genkey", "status"} <= {command.name for command in COMMANDS}
    for command in COMMANDS:
        assert command.name in text
        for flag in command.flags:
            shown = (
                flag
                if page is not completions.fish
                else f"-l {flag[2:]}"
                if flag[1] == "-"
                else f"-s {flag[1]}"
            )
            assert shown in text, f"{flag} of {command.name}"


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["dtun", "st"], {"status"}),
        (["dtun", "server", "--log-"], {"--log-level", "--log-file", "--log-format"}),
        (["dtun", "client", "--log-level", ""], {"debug", "info", "warning", "error"}),
        (["dtun", "client", "--log-level", "w"], {"warning"}),
        (["dtun", "check", "-c", "a"], {"a.yaml"}),
        (["dtun", "check", "a"], {"a.yaml"}),
        (["dtun", "kick", ""], {"home", "office"}),
        (["dtun", "status", "ho"], {"home"}),
        (["dtun", "status", "--w"], {"--watch"}),
        (["dtun", "explain", ""], set()),
    ],
)
def test_bash_completes(words: list[str], offered: set[str], tmp_path: Path) -> None:
    """The ids are those of the running dtun; one of them wants to be run by the shell."""
    ids = '{"id": "home"}, {"id": "$(touch expanded)"}, {"id": "office"}'
    (tmp_path / "dtun").write_text(completions.bash())
    (tmp_path / "a.yaml").touch()
    # compopt fails outside of a real completion.
    script = (
        f"dtun() {{ echo '{ids}'; }}; "
        'compopt() { :; }; . ./dtun; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _dtun; echo "${COMPREPLY[@]}"'
    )
    command = ["bash", "-c", script, "bash", *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=10)
    assert (set(done.stdout.split()), done.stderr) == (offered, "")
    assert not (tmp_path / "expanded").exists()


def test_the_manual_page_tells_what_may_be_left_out() -> None:
    usage = manual.dtun_8().replace("\\fI", "").replace("\\fR", "")
    assert "PATH] ID\n" in usage, "kick needs an id"
    assert "[ID]" in usage, "status does not"
    assert "FILE] ADDRESS\n" in usage


@pytest.mark.parametrize("page", [manual.dtun_8, manual.dtun_yaml_5])
def test_the_manual_pages_are_good_troff(page: Callable[[], str]) -> None:
    if shutil.which("groff") is None:
        pytest.skip("groff is missing")
    command = ["groff", "-man", "-Tutf8", "-ww", "-z"]
    done = subprocess.run(command, input=page(), capture_output=True, text=True, check=True, timeout=30)
    assert done.stderr == ""


def test_the_example_survives_the_manual_page() -> None:
    if shutil.which("groff") is None:
        pytest.skip("groff is missing")
    command = ["groff", "-man", "-Tascii", "-P-c", "-rLL=200n"]
    done = subprocess.run(
        command, input=manual.dtun_yaml_5(), capture_output=True, text=True, check=True, timeout=30
    )
    shown = {line.strip() for line in done.stdout.splitlines()}
    assert {line.strip() for line in manual.EXAMPLE.read_text().splitlines()} <= shown
