"""What commands print."""

import os
import sys


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


def complain(text: str) -> None:
    """Lines on standard error, each with the name of the program, as logs and scripts expect."""
    for line in text.splitlines():
        sys.stderr.write(f"dtun: {line}\n")
