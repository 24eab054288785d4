"""`make profile`: where dtun's time goes, at both ends under a TCP load in each direction, and while it starts.

py-spy samples the running processes from outside, including C functions called by Python; system calls appear as the
functions of the C library that make them.
"""

# Talks to a person, and runs fixed commands:
# ruff: noqa: T201, S603

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from bench.measure import Running, iperf, start_iperf
from bench.peers import ENDS, Dtun, End
from bench.run import cannot_run
from demo.lab import DemoError, Lab

SECONDS = 5
SAMPLES_PER_SECOND = 250
LINES = 15
# Seconds of load before the first sample and after the last one.
MARGIN = 1
# `name (path.py:line)`, and anything else is a C function.
_PYTHON = re.compile(r"(?P<function>.+) \((?P<path>\S+\.py):(?P<line>\d+)\)")
_IMPORT = re.compile(r"import time:\s+(\d+) \|\s+\d+ \|\s+(\S+)")
# An idle thread of a pool.
_IDLE = "_worker (concurrent/futures/thread.py"


class Spot(NamedTuple):
    """A line of Python, the number of samples with it as the innermost one, and the C functions called by it."""

    where: str
    samples: int
    below: Counter[str]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="make profile", description=__doc__)
    parser.add_argument(
        "--seconds", type=int, default=SECONDS, metavar="S", help=f"of samples, each way ({SECONDS})"
    )
    parser.add_argument(
        "--without", default="", metavar="WORDS", help="what to turn off: see bench/without.py"
    )
    parser.add_argument("--suite", default="", metavar="NAME", help="another cipher suite than the default")
    options = parser.parse_args(arguments)
    if not 1 <= options.seconds <= 60:
        parser.error("--seconds has to be from 1 to 60")
    spy = shutil.which("py-spy", path=str(Path(sys.executable).parent)) or shutil.which("py-spy")
    if reason := cannot_run() or (None if spy else "needs py-spy, from the packages for developers"):
        print(f"profile: {reason}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="dtun-bench-") as directory:
        tunnel = Dtun("dtun", "", without=options.without, suite=options.suite)
        tunnel.prepare(Path(directory))
        try:
            profile_load(tunnel, str(spy), options.seconds, Path(directory))
            profile_start(tunnel)
        except DemoError as error:
            print("\n".join([f"profile: {error}", *getattr(error, "__notes__", [])]), file=sys.stderr)
            return 1
    return 0


def profile_load(tunnel: Dtun, spy: str, seconds: int, directory: Path) -> None:
    with Lab() as lab:
        running = Running(lab, tunnel)
        start_iperf(lab)
        for title, flags in (("client to server", ()), ("server to client", ("--reverse",))):
            with ThreadPoolExecutor() as pool:
                load = pool.submit(iperf, running, seconds + 2 * MARGIN, *flags)
                stacks = sample(running, spy, seconds, directory)
                rate = load.result()["sum_received"]["bits_per_second"] / 1e9
            print(f"\n=== One TCP stream, {title}: {rate:.2f} Gbit/s while being watched")
            for end, lines in stacks.items():
                print(f"\n{report(end.name, lines)}")


def sample(running: Running, spy: str, seconds: int, directory: Path) -> dict[End, list[str]]:
    """Sample both ends at the same time; the stacks as py-spy writes them, `FRAME;FRAME;... COUNT` a line.

    Raises:
        DemoError: py-spy failed.
    """
    how = ("--duration", str(seconds), "--rate", str(SAMPLES_PER_SECOND), "--format", "raw", "--native")
    files = {end: directory / f"{end.name}.stacks" for end in ENDS}
    watchers = [
        subprocess.Popen(
            [spy, "record", *how, "--output", str(file), "--pid", str(running.pids[end][0])],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for end, file in files.items()
    ]
    try:
        for watcher in watchers:
            told, _ = watcher.communicate(timeout=seconds + 30)
            if watcher.returncode != 0:
                raise DemoError(f"py-spy failed:\n{told}")
    finally:
        for watcher in watchers:
            watcher.kill()
            watcher.wait()
    return {end: file.read_text().splitlines() for end, file in files.items()}


def spots(lines: Iterable[str]) -> list[Spot]:
    """The innermost lines of Python in py-spy's raw output, the busiest first, without idle threads of pools."""
    below: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for line in lines:
        stack, _, count = line.rpartition(" ")
        if _IDLE in stack:
            continue
        frames = stack.split(";")
        inner = max((i for i, frame in enumerate(frames) if _PYTHON.fullmatch(frame)), default=-1)
        where = frames[inner] if inner >= 0 else "(outside Python)"
        function = frames[-1].partition(" (")[0] if inner < len(frames) - 1 else "Python"
        below[where][function] += int(count)
    found = [Spot(where, functions.total(), functions) for where, functions in below.items()]
    return sorted(found, key=lambda spot: -spot.samples)


def report(name: str, lines: Iterable[str]) -> str:
    """The busiest lines of one end, with their share of all samples."""
    found = spots(lines)
    total = sum(spot.samples for spot in found)
    told = [f"{name}: {total} samples; the share of each line of Python, and what ran below it"]
    for spot in found[:LINES]:
        parts = ", ".join(
            f"{function[:40]} {100 * count / total:.0f} %" for function, count in spot.below.most_common(3)
        )
        told.append(f"{100 * spot.samples / total:6.1f} %  {spot.where:<60}  {parts}")
    return "\n".join(told)


def profile_start(tunnel: Dtun) -> None:
    """The time of a client's imports until the first ping, by package."""
    tunnel.environment["PYTHONPROFILEIMPORTTIME"] = "1"
    with Lab() as lab:
        running = Running(lab, tunnel)
        milliseconds = running.start["first_ping"]
        packages = import_times(tunnel.client.output())
    print(f"\n=== Start of the client, with imports timed: {milliseconds:.0f} ms to the first ping")
    print("ms of imports, by package:")
    for package, taken in sorted(packages.items(), key=lambda item: -item[1])[:LINES]:
        print(f"{taken:8.1f}  {package}")


def import_times(output: str) -> dict[str, float]:
    """Milliseconds that each top-level package's modules took to import, from the lines of `-X importtime`."""
    times: defaultdict[str, float] = defaultdict(float)
    for microseconds, module in _IMPORT.findall(output):
        times[module.partition(".")[0]] += int(microseconds) / 1000
    return times


if __name__ == "__main__":
    sys.exit(main())
