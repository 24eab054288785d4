"""What commands print."""

import logging
import os
import sys
from collections.abc import Iterable

from dtun.service.log import goes_to_journal, prefixed
from dtun.text import printable


def say(text: str) -> bool:
    """Print a line on standard output. Returns False if its reader is gone (`dtun status | head`)."""
    try:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        # Otherwise the interpreter fails when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return False
    return True


def complain(text: str, level: int = logging.ERROR) -> None:
    """Print lines on standard error, each after the name of the program, as logs and scripts expect.

    What could control a terminal is replaced: parts of an error may come from elsewhere.

    In the journal they have the priority of `level`. The journal's native protocol is not used here: journald may not
    attribute the last message of an exiting process to its unit.
    """
    text = printable(text, None, keep="\n")
    if goes_to_journal(sys.stderr):
        sys.stderr.write(prefixed(text, level) + "\n")
        return
    for line in text.splitlines():
        sys.stderr.write(f"dtun: {line}\n")


def warn(warnings: Iterable[str]) -> None:
    for warning in warnings:
        complain(f"warning: {warning}", logging.WARNING)
