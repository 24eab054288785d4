"""What commands print."""

import logging
import os
import sys

from dtun.service.log import goes_to_journal, prefixed


def say(text: str) -> bool:
    """A line on standard output. That its reader has gone (`dtun status | head`) is no failure; False tells it."""
    try:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        # Nor may the interpreter fail over it when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return False
    return True


def complain(text: str, level: int = logging.ERROR) -> None:
    """Lines on standard error, each with the name of the program, as logs and scripts expect.

    In the journal with the priority of `level`. Not by way of its own protocol: what a process says just before it ends
    might not be counted among its unit's.
    """
    if goes_to_journal(sys.stderr):
        sys.stderr.write(prefixed(text, level) + "\n")
        return
    for line in text.splitlines():
        sys.stderr.write(f"dtun: {line}\n")
