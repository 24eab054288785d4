"""`dtun status`: a table of clients, the lines of one tunnel, JSON, and the sockets that it asks."""

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from dtun.cli import main
from dtun.cli.status import render, watch
from dtun.service.control import Answer, ControlServer, Request

Serve = Callable[[Path, dict[str, object]], None]
Capture = pytest.CaptureFixture[str]


NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
TUNNEL: dict[str, Any] = {
    "id": "home",
    "state": "connected",
    "device": "dtun-home",
    "address": "10.86.0.1",
    "peer_address": "10.86.0.2",
    "endpoint": "192.0.2.7:40000",
    "suite": "ECDHE-PSK-CHACHA20-POLY1305",
    "offloaded": True,
    "mtu": 1420,
    "rtt_ms": 12.345,
    "since": "2026-01-02T01:03:05+00:00",
    "rx_bytes": 1536,
    "rx_packets": 10,
    "tx_bytes": 5 << 30,
    "tx_packets": 20,
    "drops": {"replayed": 3, "malformed": 0},
    "subnets": ["10.0.0.0/16", "fd00::/48"],
    "last_error": None,
    "warnings": [],
}
PROCESS = {"version": "0.1.0", "since": "2025-12-31T00:00:00+00:00", "pid": 42}
SERVER = {
    **PROCESS,
    "role": "server",
    "tunnels": [
        TUNNEL,
        {
            "id": "a",
            "state": "away",
            "last_failure": {"time": "2026-01-02T03:01:05+00:00", "reason": "no answer"},
            "warnings": ["used by two hosts"],
        },
    ],
    "drops": {"unknown id": 7},
    "half_open": 0,
    "warnings": [],
}


def test_a_server_shows_a_row_a_client() -> None:
    assert render(SERVER, NOW).splitlines() == [
        "dtun server 0.1.0, process 42, running for 2 d 3 h",
        "1 of 2 clients connected",
        (
            "ID    STATE      DEVICE     ADDRESS    SUBNETS                 ENDPOINT         MTU   RTT      FOR      "
            "  RECEIVED  SENT     DROPS"
        ),
        (
            "home  connected  dtun-home  10.86.0.2  10.0.0.0/16, fd00::/48  192.0.2.7:40000  1420  12.3 ms  2 h 1 min"
            "  1.5 KiB   5.0 GiB  3"
        ),
        (
            "a     away       -          -          -                       -                -     -        -        "
            "  -         -        -"
        ),
        "a: no answer (3 min 0 s ago)",
        "a: used by two hosts",
        "dropped outside of sessions: unknown id 7",
    ]
    assert "no clients" in render({**SERVER, "tunnels": []}, NOW)


def test_values_of_the_whole_server_are_shown_when_there_are_any() -> None:
    quiet = render({**SERVER, "drops": {"unknown id": 0}}, NOW)
    assert "dropped outside" not in quiet
    assert "handshakes" not in quiet
    assert render({**SERVER, "half_open": 2}, NOW).endswith("\nhandshakes under way: 2")


def test_a_long_list_of_subnets_is_shortened_in_the_table() -> None:
    many = {**TUNNEL, "subnets": [f"10.{number}.0.0/16" for number in range(9)]}
    table = render({**SERVER, "tunnels": [many]}, NOW)
    assert "  10.0.0.0/16 +8  " in table
    assert "10.1.0.0/16" not in table


def test_of_many_with_a_former_key_some_are_named_and_all_counted() -> None:
    few = render({**SERVER, "old_key_in_use": ["home", "a"]}, NOW)
    assert few.endswith("\nwith a former key still: 2 (home, a)")
    many = render({**SERVER, "old_key_in_use": [f"c{number}" for number in range(900)]}, NOW)
    assert many.endswith("\nwith a former key still: 900 (c0, c1, c2, c3, c4, c5, c6, c7, ...)")


def test_a_thousand_clients_are_a_table_in_no_time(
    serve: Serve, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [
        {**TUNNEL, "id": f"client-{number}", "state": "away" if number % 4 == 0 else "connected"}
        for number in range(1000)
    ]
    serve(tmp_path / "it.sock", {**SERVER, "tunnels": rows})
    began = time.process_time()
    assert main(["status", "--socket", str(tmp_path / "it.sock")]) == 0
    assert time.process_time() - began < 0.5
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "750 of 1000 clients connected"
    table = lines[2:1003]
    assert table[0].startswith("ID          STATE      ")
    assert [line.split()[0] for line in table[1:]] == [row["id"] for row in rows]
    assert len({len(line) for line in table[1:]}) == 1, "all columns are aligned"
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("LINES", "24")

    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    assert watch(lambda: "\n".join(lines), interrupt) == 0
    shown = capsys.readouterr().out.splitlines()
    assert "750 of 1000 clients connected" in shown[1]
    assert "... and 982 more lines" in shown[22]
    assert shown[23:] == ["\x1b[J", ""]


def test_all_about_one_client_of_a_server(serve: Serve, tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "it.sock"
    soon = (datetime.now(UTC) + timedelta(minutes=50)).isoformat()
    serve(
        path, {**SERVER, "tunnels": [{**TUNNEL, "offloads": ["segments"], "next_rekey": soon}, {"id": "a"}]}
    )
    command = ["status", "--socket", str(path)]
    assert main([*command, "home"]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "suite ECDHE-PSK-CHACHA20-POLY1305" in lines
    assert "rx packets 10" in lines
    assert "offloads segments" in lines
    assert "next rekey in 49 min 59 s" in lines
    assert not any(line.startswith("id a") for line in lines)
    assert main([*command, "home", "--json"]) == 0
    assert [tunnel["id"] for tunnel in json.loads(capsys.readouterr().out)["tunnels"]] == ["home"]
    assert main([*command, "home", "--check"]) == 0
    assert main([*command, "a", "--check"]) == 1
    capsys.readouterr()
    assert main([*command, "no\x1b"]) == 69
    assert capsys.readouterr().err == "dtun: there is no client 'no?'; `dtun status` shows all\n"


def test_a_client_shows_a_line_a_value() -> None:
    status = {**PROCESS, "role": "client", "tunnels": [TUNNEL], "warnings": []}
    lines = render(status, NOW).splitlines()
    assert lines[0] == "dtun client 0.1.0, process 42, running for 2 d 3 h"
    assert lines[1:6] == [
        "  id            home",
        "  state         connected",
        "  device        dtun-home",
        "  address       10.86.0.1",
        "  peer address  10.86.0.2",
    ]
    assert "  rtt           12.3 ms" in lines
    assert "  mtu           1420" in lines
    assert "  offloaded     yes" in lines
    assert "  drops         replayed 3" in lines
    assert "  subnets       10.0.0.0/16, fd00::/48" in lines
    assert not any("last error" in line for line in lines)
    connecting = {**status, "tunnels": [{**TUNNEL, "mtu": 0}]}
    assert "mtu" not in render(connecting, NOW)


def test_a_client_shows_what_failed_last_and_what_was_refused() -> None:
    tunnel = {
        **TUNNEL,
        "last_failure": {"time": "2026-01-02T01:04:05+00:00", "reason": "no answer in time"},
        "refused_subnets": {"10.0.0.0/16": "it overlaps 10.0.0.0/8, which belongs to client x"},
    }
    lines = render({**PROCESS, "role": "client", "tunnels": [tunnel]}, NOW).splitlines()
    assert "  last failure  no answer in time (2 h 0 min ago)" in lines
    assert "  subnets       fd00::/48, 10.0.0.0/16 (refused)" in lines
    assert "  for           2 h 1 min" in lines


def test_what_came_from_the_network_cannot_steer_the_terminal() -> None:
    shown = render({**SERVER, "tunnels": [{"id": "\x1b[2J\nx"}]}, NOW)
    assert "\x1b" not in shown
    assert "?[2J?x" in shown


@pytest.mark.parametrize(
    "value",
    [10**4000, -(10**4000), float("nan"), float("-inf"), "0001-01-01T00:00:00+23:59", {"\x1b": 1}, [[]]],
    ids=["large", "negative", "nan", "inf", "first day", "escape", "list"],
)
def test_an_answer_without_sense_can_be_shown(value: object) -> None:
    tunnel = dict.fromkeys(TUNNEL, value)
    for status in ({**SERVER, "tunnels": [tunnel]}, dict.fromkeys(SERVER, value)):
        assert "\x1b" not in render({**status, "role": "server"}, NOW)
        assert "\x1b" not in render({**status, "role": "client"}, NOW)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=150)
@given(
    st.fixed_dictionaries({}, optional=dict.fromkeys([*TUNNEL, *SERVER, "new"], JSON)),
    st.sampled_from(["server", "client"]),
)
def test_whatever_another_version_answers_can_be_shown(values: dict[str, Any], role: str) -> None:
    assert render({**values, "role": role, "tunnels": [values]}, NOW)


@pytest.fixture
def serve() -> Iterator[Callable[[Path, dict[str, object]], None]]:
    """Simulated dtuns that answer at a path, on a loop of their own, since the command blocks."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    with contextlib.ExitStack() as cleanup:

        def stop_loop() -> None:
            loop.call_soon_threadsafe(loop.stop)
            thread.join(10)
            loop.close()

        cleanup.callback(stop_loop)

        def serve(path: Path, answer: dict[str, object]) -> None:
            async def status(request: Request) -> Answer:
                del request
                return answer

            server = ControlServer(path, {"status": status})
            asyncio.run_coroutine_threadsafe(server.start(), loop).result(10)
            cleanup.callback(lambda: asyncio.run_coroutine_threadsafe(server.stop(), loop).result(10))

        yield serve


def test_status_asks_the_socket_that_it_is_given(serve: Serve, tmp_path: Path, capsys: Capture) -> None:
    serve(tmp_path / "it.sock", SERVER)
    assert main(["status", "--socket", str(tmp_path / "it.sock")]) == 0
    assert capsys.readouterr().out.startswith("dtun server 0.1.0, process 42, running for ")
    assert main(["status", "--json", "--socket", str(tmp_path / "it.sock")]) == 0
    assert json.loads(capsys.readouterr().out) == SERVER


def test_status_finds_the_socket_of_a_configuration_without_reading_its_keys(
    serve: Serve, tmp_path: Path, capsys: Capture
) -> None:
    path = tmp_path / "dtun.yaml"
    path.write_text(f"client: {{servers: h, id: a, key_file: /none, tun: t7, runtime_directory: {tmp_path}}}")
    serve(tmp_path / "t7.sock", {"role": "client", "tunnels": []})
    assert main(["status", "-c", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["role"] == "client"
    path.write_text("{")
    assert main(["status", "-c", str(path)]) == 78


def test_status_without_a_configuration_asks_all_that_run(
    serve: Serve, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dtun.cli.running.DEFAULT_CONFIG", tmp_path / "none.yaml")
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path))
    assert main(["status"]) == 69
    assert capsys.readouterr().err == (
        f"dtun: no dtun is running: no socket in {tmp_path}; start it, or give --socket PATH\n"
    )
    serve(tmp_path / "server.sock", SERVER)
    serve(tmp_path / "dtun0.sock", {"role": "client"})
    assert main(["status", "--json"]) == 0
    assert [json.loads(line)["role"] for line in capsys.readouterr().out.splitlines()] == ["client", "server"]


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The runtime directory of a host whose default configuration is that of a client."""
    default = tmp_path / "dtun.yaml"
    default.write_text(f"client: {{servers: h, id: a, key_file: /none, runtime_directory: {tmp_path}}}")
    monkeypatch.setattr("dtun.cli.running.DEFAULT_CONFIG", default)
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path))
    return tmp_path


def test_all_that_run_are_asked_beside_that_of_the_default_configuration(
    serve: Serve, host: Path, capsys: Capture
) -> None:
    serve(host / "dtun0.sock", {"role": "client", "tunnels": [{"id": "a", "state": "connected"}]})
    serve(host / "lab.sock", {"role": "client", "tunnels": [{"id": "b", "state": "connecting"}]})
    assert main(["status", "--json"]) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [answer["tunnels"][0]["id"] for answer in answers] == ["a", "b"]
    assert main(["status", "--check"]) == 1
    assert main(["status", "--check", "-c", str(host / "dtun.yaml")]) == 0
    capsys.readouterr()


def test_the_default_configuration_has_to_run_if_a_check_is_asked_for(
    serve: Serve, host: Path, capsys: Capture
) -> None:
    serve(host / "lab.sock", {"role": "client", "tunnels": [{"id": "b", "state": "connected"}]})
    assert main(["status"]) == 0
    assert capsys.readouterr().err == ""
    assert main(["status", "--check"]) == 69
    told = capsys.readouterr()
    assert "connected" in told.out
    assert f"nothing listens at {host}/dtun0.sock" in told.err


def test_one_that_does_not_answer_does_not_hide_the_others(serve: Serve, host: Path, capsys: Capture) -> None:
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(host / "dtun0.sock"))
    serve(host / "lab.sock", {"role": "client", "tunnels": [{"id": "b", "state": "connected"}]})
    assert main(["status"]) == 69
    told = capsys.readouterr()
    assert "  id     b" in told.out
    assert "nothing listens" in told.err


def ordinary_user(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run dtun as a user without rights."""
    if os.geteuid() != 0:
        pytest.skip("only root can run a command as another user")
    # The modules are imported before: they may be in a directory that the user cannot read.
    program = (
        "import os, sys, dtun.cli, dtun.cli.status, dtun.config; os.setgroups([]); os.setgid(65534);"
        " os.setuid(65534); sys.exit(dtun.cli.main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


@pytest.mark.parametrize("mode", [0o750, 0o755])
def test_an_ordinary_user_is_told_what_to_do(mode: int) -> None:
    with tempfile.TemporaryDirectory() as name, socket.socket(socket.AF_UNIX) as listening:
        path = Path(name) / "server.sock"
        listening.bind(str(path))
        listening.listen()
        path.chmod(0o660)
        Path(name).chmod(mode)
        config = Path(name) / "dtun.yaml"
        config.touch(0o600)
        os.environ["RUNTIME_DIRECTORY"] = name
        try:
            asked = [ordinary_user("status"), ordinary_user("status", "--socket", str(path))]
            by_file = ordinary_user("status", "-c", str(config))
        finally:
            del os.environ["RUNTIME_DIRECTORY"]
    for one in asked:
        assert (one.returncode, one.stdout) == (77, "")
        assert "ask with sudo, or join the group dtun-admin" in one.stderr
        assert "no dtun is running" not in one.stderr
    assert by_file.returncode in {77, 78}
    assert "cannot be read" in by_file.stderr or "may not read it; ask with sudo" in by_file.stderr


def test_check_tells_by_the_exit_code_whether_a_client_is_connected(
    serve: Serve, tmp_path: Path, capsys: Capture
) -> None:
    path = tmp_path / "it.sock"
    answer: dict[str, object] = {}
    serve(path, answer)
    command = ["status", "--socket", str(path)]
    for role, states, code in [
        ("client", ["connected"], 0),
        ("client", ["connecting"], 1),
        ("client", ["connected", "connecting"], 1),
        ("client", [], 1),
        ("server", ["away"], 0),
        ("server", [], 0),
        ("server", ["connected", "device down"], 1),
        ("client", ["device down"], 1),
    ]:
        answer |= {"role": role, "tunnels": [{"state": state} for state in states]}
        assert main(command) == 0
        plain = capsys.readouterr().out
        assert main([*command, "--check"]) == code, (role, states)
        assert capsys.readouterr().out == plain


def test_no_dtun_is_running(tmp_path: Path, capsys: Capture) -> None:
    assert main(["status", "--socket", str(tmp_path / "no.sock")]) == 69
    assert capsys.readouterr().err == (
        f"dtun: no dtun is running (nothing listens at {tmp_path}/no.sock); start it, or set --socket\n"
    )
