"""`make bench` measures what it promises, and leaves nothing behind, interrupted or not."""

import json
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from topology import wait_for

from bench.table import METRICS

ROOT = Path(__file__).resolve().parents[2]
# As `--quick`, only quicker: this is to see that it works, not how fast the machine is.
HASTY = """
import sys
from bench import run
run.QUICK = run.Plan(udp_trial=0.05, udp_steps=0, idle_pings=20)
sys.exit(run.main(["--quick", "--seconds", "1", *sys.argv[1:]]))
"""

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(
        not all(map(shutil.which, ("gcc", "iperf3"))),
        reason="needs gcc and iperf3: see `make bench`",
    ),
    pytest.mark.skipif(
        not Path(sys.executable).with_name("dtun").exists(),
        reason="dtun is not installed beside this Python: run the tests with `make test`",
    ),
]


def bench(*arguments: str, output: Path) -> subprocess.Popen[bytes]:
    with output.open("wb") as file:
        command = [sys.executable, "-u", "-c", HASTY, *arguments]
        return subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT)


def left_behind(pid: int) -> list[str]:
    """Namespaces (with the processes in them) and files of the benchmark that had this process id."""
    result = subprocess.run(["ip", "netns", "list"], check=True, capture_output=True, text=True, timeout=10)
    files = [path.name for path in Path(tempfile.gettempdir()).iterdir()]
    return [name for name in [*result.stdout.split(), *files] if re.match(rf"dtun-\w+-{pid}-", name)]


def test_the_cable_the_forwarder_and_dtun_are_measured_and_compared(tmp_path: Path) -> None:
    told, report = tmp_path / "output", tmp_path / "report.json"
    process = bench("--only", "none,forwarder,dtun", "--json", str(report), output=told)
    try:
        assert process.wait(90) == 0, told.read_text()
    finally:
        process.kill()
    results = json.loads(report.read_text())["results"]
    assert set(results) == {"none", "forwarder", "dtun"}
    measured = {key: values[0] for key, values in results["dtun"].items()}
    # A rate is zero if the one trial that there is was an overload.
    assert {metric.key for metric in METRICS if measured[metric.key] > 0} >= {
        metric.key for metric in METRICS if not metric.key.startswith("udp_")
    }
    assert measured["first_ping_sent"] < measured["first_ping"] < 10_000
    assert measured["idle_p50"] <= measured["idle_p99"]
    # A cable is not made of processes.
    assert not {"cpu", "first_ping", "memory_client"} & set(results["none"])
    assert not {"login_idle", "login_loaded"} & set(results["forwarder"])
    assert results["none"]["tcp_up"] > results["dtun"]["tcp_up"]
    assert re.search(r"^dtun +\d+\.\d\d ", told.read_text(), re.MULTILINE)
    assert left_behind(process.pid) == []


def test_ctrl_c_takes_everything_down_and_shows_what_is_known(tmp_path: Path) -> None:
    told = tmp_path / "output"
    process = bench("--only", "none", output=told)
    try:
        # Its files, those of its lab, and the two hosts.
        wait_for(lambda: len(left_behind(process.pid)) == 4, "the benchmark to make its hosts")
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 128 + signal.SIGINT
    finally:
        process.kill()
    assert left_behind(process.pid) == []
    assert "Traceback" not in told.read_text()


def test_an_unknown_peer_is_refused_and_the_known_ones_are_named(tmp_path: Path) -> None:
    told = tmp_path / "output"
    assert bench("--only", "none,carrier-pigeon", output=told).wait(20) == 2
    assert "no such peer: carrier-pigeon; there are none, forwarder, openvpn" in told.read_text()


def test_a_peer_that_is_not_installed_is_skipped_loudly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Everything that can be found, but fastd.
    for command in ("gcc", "ip", "iperf3", "ping", "ss"):
        (tmp_path / command).symlink_to(str(shutil.which(command)))
    monkeypatch.setenv("PATH", str(tmp_path))
    told = tmp_path / "output"
    assert bench("--only", "fastd", output=told).wait(20) == 1
    assert "SKIPPED: fastd is not measured, not installed: fastd" in told.read_text()
    assert "nothing is left to measure" in told.read_text()
