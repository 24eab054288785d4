"""Processor time and memory of processes, from /proc."""

import contextlib
import os
import re
from collections.abc import Iterable
from pathlib import Path

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
KIBIBYTES_PER_MEBIBYTE = 1024


def processes_in(namespace: str) -> set[int]:
    """The processes in a network namespace, which is given as in /proc: `net:[NUMBER]`."""
    pids = set()
    for link in Path("/proc").glob("[0-9]*/ns/net"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if str(link.readlink()) == namespace:
                pids.add(int(link.parts[2]))
    return pids


def cpu_seconds(pids: Iterable[int]) -> float:
    """Seconds of processor time used so far, in user mode and in the kernel, without processes that have ended."""
    total = 0
    for pid in pids:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            # The name, in parentheses, may hold spaces. utime and stime are fields 14 and 15 of proc(5).
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += int(fields[11]) + int(fields[12])
    return total / TICKS_PER_SECOND


def peak_memory(pids: Iterable[int]) -> float:
    """The sum of the peak resident memory of each, in MiB, without processes that have ended."""
    total = 0
    for pid in pids:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            match = re.search(r"^VmHWM:\s*(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
            total += int(match[1]) if match else 0
    return total / KIBIBYTES_PER_MEBIBYTE
