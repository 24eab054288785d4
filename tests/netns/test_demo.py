"""`make demo` shows what it promises, and leaves nothing behind, interrupted or not."""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "-u", "-m", "demo.demo"]

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.skipif(not Path("/dev/net/tun").exists(), reason="needs /dev/net/tun"),
    pytest.mark.skipif(
        not Path(sys.executable).with_name("dtun").exists(),
        reason="dtun is not installed beside this Python: run the tests with `make test`",
    ),
]


def left_behind(pid: int) -> list[str]:
    """Namespaces (with the processes in them) and files of the demo that had this process id."""
    result = subprocess.run(["ip", "netns", "list"], check=True, capture_output=True, text=True, timeout=10)
    files = [path.name for path in Path(tempfile.gettempdir()).iterdir()]
    return [name for name in [*result.stdout.split(), *files] if name.startswith(f"dtun-demo-{pid}-")]


def wait_for(path: Path, text: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 40
    while text not in path.read_text():
        assert process.poll() is None, f"the demo ended early:\n{path.read_text()}"
        assert time.monotonic() < deadline, f"no {text!r} in:\n{path.read_text()}"
        time.sleep(0.02)


def test_the_demo_verifies_every_fact_and_takes_everything_down(tmp_path: Path) -> None:
    output = tmp_path / "output"
    with output.open("wb") as file:
        process = subprocess.Popen(COMMAND, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT)
    try:
        status = process.wait(60)
    finally:
        process.terminate()
    told = output.read_text()
    assert status == 0, told
    assert re.search(r"ok  67,108,864 bytes in .* Mbit/s", told)
    assert "ok  the SHA-256 is the same" in told
    assert "ok  www received packets from 203.0.113.1 only" in told
    assert "ok  pc2 received packets from 10.0.0.2 only" in told
    assert "15 facts checked" in told
    assert "\033" not in told  # colours are for terminals
    assert left_behind(process.pid) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demo_takes_everything_down(number: signal.Signals, tmp_path: Path) -> None:
    output = tmp_path / "output"
    with output.open("wb") as file:
        process = subprocess.Popen(COMMAND, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT)
    try:
        wait_for(output, "Round-trip time", process)
        assert left_behind(process.pid) != []
        process.send_signal(number)
        assert process.wait(40) == 128 + number
    finally:
        process.kill()
    assert left_behind(process.pid) == []
    assert "everything has been taken down" in output.read_text()
