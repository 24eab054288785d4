"""Starts dtun over and over: all is imported once, so that a start takes a tenth of the time, and kills hit work.

python phoenix.py LOG ROLE CONFIG

A line on standard input starts it, in a process of its own, and its pid is printed. Another line asks for its end:
when it has come, the exit code is printed, or minus the signal. Until then, the pid is nobody else's.
"""

import os
import sys
import warnings

import dtun.client.client

# What dtun only imports when it starts; each child would do so again.
import dtun.platform.linux.kernel
import dtun.server.server  # noqa: F401 - for the children
from dtun.cli import main


def born(log: str, arguments: list[str]) -> None:
    """In the child: be dtun."""
    warnings.simplefilter("error")
    null = os.open(os.devnull, os.O_RDWR)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for number, descriptor in enumerate((null, null, file)):
        os.dup2(descriptor, number)
    try:
        code = main(arguments)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    os._exit(code)


def run(log: str, role: str, config: str) -> None:
    print("ready", flush=True)
    while sys.stdin.readline():
        pid = os.fork()
        if pid == 0:
            born(log, [role, "-c", config])
        print(pid, flush=True)
        sys.stdin.readline()
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    run(*sys.argv[1:])
