"""The command line as a person uses it: what it prints, what it starts, and its exit codes."""

import base64
import json
import logging
import os
import re
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dtun import __version__
from dtun.cli import EXIT_INTERRUPTED, main
from dtun.config import Config, keys
from dtun.errors import DtunError, UnavailableError
from dtun.service import run
from dtun.service.starting import Start


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "demo.key"
    path.write_text(keys.generate())
    path.chmod(0o600)
    return path


def test_a_key_goes_to_standard_output_for_a_dash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["genkey", "-o", "-"]) == 0
    assert len(base64.b64decode(capsys.readouterr().out)) == keys.KEY_BYTES
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def server_file(tmp_path: Path, key_file: Path) -> Path:
    path = tmp_path / "server.yaml"
    path.write_text(f"server: {{listen: '127.0.0.1:4444', clients: {{demo: {{key_file: {key_file}}}}}}}")
    return path


@pytest.fixture
def client_file(tmp_path: Path, key_file: Path) -> Path:
    path = tmp_path / "client.yaml"
    path.write_text(
        f"client: {{servers: vpn.example.org, id: demo, key_file: {key_file}, subnets: 10.0.0.0/16}}"
    )
    return path


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, Config]]]:
    """The roles and configurations that would have been started. Restores the log afterwards."""
    started: list[tuple[str, Config]] = []

    def starter(role: str) -> Callable[[Start], int]:
        def run_it(start: Start) -> int:
            started.append((role, start.config))
            return 0

        return run_it

    for role in ("server", "client"):
        monkeypatch.setattr(run, f"run_{role}", starter(role))
    logger = logging.getLogger("dtun")
    handlers, level, propagate = logger.handlers[:], logger.level, logger.propagate
    yield started
    logger.handlers[:], logger.level, logger.propagate = handlers, level, propagate


Started = list[tuple[str, Config]]
Capture = pytest.CaptureFixture[str]


def test_a_server_and_a_client_start_from_their_files(
    started: Started, server_file: Path, client_file: Path
) -> None:
    assert main(["server", "-c", str(server_file)]) == 0
    assert main(["client", "--config", str(client_file), "-v"]) == 0
    (server, its_config), (client, the_other) = started
    assert (server, its_config.path, client, the_other.path) == ("server", server_file, "client", client_file)
    assert logging.getLogger("dtun").level == logging.DEBUG


def test_the_quick_start_of_a_server(started: Started, key_file: Path) -> None:
    listen = ["--listen", "127.0.0.1", "--listen", "[::1]:4443"]
    options = [*listen, "--pool", "10.9.0.0/24", "--runtime-directory", "/run/second"]
    assert main(["server", "--key-file", str(key_file), *options]) == 0
    ((_, config),) = started
    assert config.server is not None
    assert list(map(str, config.server.listen)) == ["127.0.0.1:443", "[::1]:4443"]
    assert str(config.server.pool) == "10.9.0.0/24"
    assert config.control_socket == Path("/run/second/server.sock")


def test_the_quick_start_of_a_client(started: Started, key_file: Path) -> None:
    command = f"client --host h --host i:1194 --id demo --key-file {key_file} --peernet 10.0.0.0/16 --route 10.9.0.0/16"
    assert main([*command.split(), "--up", "/bin/true", "--down", "/bin/true", "--tun", "tun7"]) == 0
    ((_, config),) = started
    assert config.client is not None
    assert list(map(str, config.client.servers)) == ["h:443", "i:1194"]
    assert (config.client.id, config.client.tun, config.client.go) == ("demo", "tun7", False)
    assert (config.client.up, config.client.down) == (("/bin/true",), ("/bin/true",))
    assert list(map(str, config.client.subnets + config.client.routes)) == ["10.0.0.0/16", "10.9.0.0/16"]


def test_the_quick_start_with_a_go_dtun(started: Started, capsys: Capture) -> None:
    assert main(["client", "--host", "h", "--id", "demo", "--key", "secret", "--compat", "go"]) == 0
    ((_, config),) = started
    assert config.client is not None
    assert (config.client.go, config.client.psk.secret()) == (True, b"secret")
    said = capsys.readouterr().err
    assert "warning: --key: every user of this host can read it" in said
    assert "a key of 6 bytes can be guessed" in said
    assert "secret" not in said


USAGE = [
    ("client --key-file k", "the quick start also needs --host, --id"),
    ("client --host h --key k", "the quick start also needs --id"),
    (
        "client --host h --id a",
        "the quick start also needs --key-file; `dtun genkey -o FILE` makes a key, for both ends",
    ),
    (
        "server --pool 10.0.0.0/8",
        "the quick start also needs --key-file; `dtun genkey -o FILE` makes a key, for both ends",
    ),
    ("client -c x --host h", "--host belongs to the quick start without a file; leave out either it or -c"),
    (
        "server -c x --key-file k",
        "--key-file belongs to the quick start without a file; leave out either it or -c",
    ),
    ("server -c x --key k", "--key belongs to the quick start without a file; leave out either it or -c"),
    ("check -c x y", "a file is given twice; leave out either y or -c"),
    ("genkey x -o y", "a file is given twice; leave out either x or -o"),
    ("check x y", "there is an argument too many"),
    ("server x", "there is an argument too many"),
    ("server --prot 1", "unknown option --prot"),
    ("client --id a --kye=SECRET --passwd SECRET -sSECRET", "unknown option --kye, --passwd, -s"),
    ("status --all", "unknown option --all"),
]


@pytest.mark.parametrize(("command", "said"), USAGE)
def test_a_mistake_is_told_below_the_usage_of_the_command(
    started: Started, capsys: Capture, command: str, said: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(command.split())
    assert caught.value.code == 2
    error = capsys.readouterr().err
    name = command.split(maxsplit=1)[0]
    assert error.startswith(f"usage: dtun {name} ")
    assert error.splitlines()[-1] == f"dtun {name}: error: {said}"
    assert "SECRET" not in error
    assert started == []


@pytest.mark.parametrize("command", ["", "serve", "client --log-level loud", "server --comp go"])
def test_a_mistake_on_the_command_line(command: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as caught:
        main(command.split())
    assert caught.value.code == 2
    assert "usage: dtun" in capsys.readouterr().err


def test_the_file_of_the_other_side(
    started: Started, server_file: Path, client_file: Path, capsys: Capture
) -> None:
    assert main(["server", "-c", str(client_file)]) == 78
    assert main(["client", "-c", str(server_file)]) == 78
    assert capsys.readouterr().err.splitlines() == [
        f"dtun: {client_file}: has a client section; run `dtun client`, or give the file of the server",
        f"dtun: {server_file}: has a server section; run `dtun server`, or give the file of the client",
    ]
    assert started == []


def test_what_stops_a_service_is_one_line_and_a_code(
    monkeypatch: pytest.MonkeyPatch, started: Started, server_file: Path, capsys: Capture
) -> None:
    def taken(_: Start) -> int:
        raise UnavailableError("127.0.0.1:4444 is taken")

    monkeypatch.setattr(run, "run_server", taken)
    assert main(["server", "-c", str(server_file)]) == 69
    assert capsys.readouterr().err == "dtun: 127.0.0.1:4444 is taken\n"

    def interrupted(_: Start) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "run_server", interrupted)
    assert main(["server", "-c", str(server_file)]) == 130
    assert started == []


def test_a_log_for_programs_tells_why_it_has_not_started(
    started: Started, server_file: Path, capsys: Capture
) -> None:
    server_file.write_text(server_file.read_text().replace("{listen", "{colour: red, listen"))
    assert main(["server", "-c", str(server_file), "--log-format", "json"]) == 78
    (line,) = capsys.readouterr().err.splitlines()
    entry = json.loads(line)
    assert entry["level"] == "error"
    assert entry["message"].startswith(f"{server_file}:1:10: server: unknown key 'colour'")
    assert started == []


def test_the_journal_gets_it_as_an_error(
    server_file: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    server_file.write_text(server_file.read_text().replace("{listen", "{colour: red, listen"))
    with open(2, "w", closefd=False) as stderr:
        status = os.fstat(2)
        monkeypatch.setattr("sys.stderr", stderr)
        monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
        assert main(["check", str(server_file)]) == 78
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"<3>{server_file}:1:10: server: unknown key 'colour'")


def test_check_says_what_it_found(server_file: Path, client_file: Path, capsys: Capture) -> None:
    assert main(["check", "-c", str(server_file)]) == 0
    assert main(["check", str(client_file)]) == 0
    printed = capsys.readouterr()
    assert printed.out.splitlines() == [
        f"OK: {server_file}: server on 127.0.0.1:4444, pool 10.86.0.0/16, 1 client entry",
        f"OK: {client_file}: client 'demo' of vpn.example.org:443, networks behind it: 10.0.0.0/16",
    ]
    assert printed.err == ""


def test_check_shows_warnings(client_file: Path, capsys: Capture) -> None:
    client_file.write_text(client_file.read_text().replace("id:", "up: /does/not/exist, id:"))
    assert main(["check", "-c", str(client_file)]) == 0
    assert "dtun: warning: " in capsys.readouterr().err


def test_check_lists_all_problems(tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(
        "client:\n  server: h\n  id: demo\n  mtu: 1\n  key_file: /none/key\n  up: /does/not/exist\n"
    )
    assert main(["check", "-c", str(path)]) == 78
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.splitlines() == [
        (
            f"dtun: warning: {path}:6:7: client.up: '/does/not/exist' is missing or not executable;"
            " look at its path, or `chmod +x` it"
        ),
        f"dtun: {path}:2:3: client: unknown key 'server'; did you mean 'servers'?",
        f"dtun: {path}:4:8: client.mtu: must be at least 576",
        (
            f"dtun: {path}:5:13: client.key_file: /none/key does not exist; correct the path,"
            " copy the key from the other end, or make a new one with `dtun genkey -o /none/key`"
        ),
    ]


def test_genkey_prints_a_key(capsys: Capture) -> None:
    assert main(["genkey"]) == 0
    first = capsys.readouterr().out
    assert len(base64.b64decode(first.removesuffix("\n"), validate=True)) == 32
    assert main(["genkey"]) == 0
    assert capsys.readouterr().out != first
    assert main(["genkey", "--compat", "go"]) == 0
    assert len(capsys.readouterr().out) == 33


def test_genkey_writes_a_private_file_and_never_over_another(tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "demo.key"
    assert main(["genkey", "-o", str(path)]) == 0
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    text = path.read_text()
    keys.decode(text.encode(), go=False)
    assert main(["genkey", "-o", str(path)]) == 69
    assert main(["genkey", "-o", str(tmp_path / "no" / "demo.key")]) == 69
    assert main(["genkey", str(path / "demo.key")]) == 69
    assert path.read_text() == text
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.splitlines() == [
        f"dtun: {path} exists already and is left as it is; remove it first, or choose another",
        (
            f"dtun: {tmp_path}/no/demo.key cannot be written: its directory does not exist;"
            " make that first, or choose another"
        ),
        f"dtun: {path}/demo.key cannot be written: not a directory; choose another",
    ]


@pytest.mark.parametrize("options", [["FILE"], ["FILE", "--compat", "go"], ["--compat", "go", "FILE"]])
def test_genkey_takes_its_file_without_an_option_too(
    tmp_path: Path, capsys: Capture, options: list[str]
) -> None:
    path = tmp_path / "demo.key"
    assert main(["genkey", *(str(path) if word == "FILE" else word for word in options)]) == 0
    keys.decode(path.read_bytes(), go="--compat" in options)
    assert capsys.readouterr().out == ""


def test_help_is_fast_because_it_loads_nothing_heavy(capsys: Capture) -> None:
    program = (
        "import sys\n"
        "from dtun.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as exit: assert exit.code == 0\n"
        "print(*(name for name in ('pydantic', 'yaml', 'mbedtls', 'pyroute2', 'asyncio') if name in sys.modules))"
    )
    output = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout
    assert "exit codes:" in output
    for code in (0, 1, 2, DtunError.exit_code, EXIT_INTERRUPTED):
        assert re.search(rf"^  {code} ", output, re.MULTILINE)
    for error in DtunError.__subclasses__():
        assert re.search(rf"^  {error.exit_code} ", output, re.MULTILINE), error
    assert output.splitlines()[-1] == ""
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"dtun {__version__}\n"


def test_a_reader_that_goes_away_is_no_failure() -> None:
    genkey = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys; sys.stdin.read(); from dtun.cli import main; sys.exit(main(['genkey']))",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert genkey.stdout is not None
    genkey.stdout.close()
    genkey.stdout = None
    _, said = genkey.communicate(timeout=30)
    assert (genkey.returncode, said) == (0, b"")
