"""`dtun status --watch`: the same again each second."""

import shutil
import sys
import time
from collections.abc import Callable

from dtun.cli.output import say
from dtun.errors import DtunError

INTERVAL = 1.0
"""Seconds between two pictures."""

# ECMA-48: cursor to the top left corner, erase to the end of the line, of the screen.
_HOME, _END_OF_LINE, _END_OF_SCREEN = "\x1b[H", "\x1b[K", "\x1b[J"


def watch(picture: Callable[[], str], pause: Callable[[float], None] = time.sleep) -> int:
    """Show `picture` again and again, until Ctrl-C. That nobody answers now is shown, too: it may come back.

    On a terminal each one takes the place of the one before, without flicker; elsewhere they follow each other.
    """
    terminal = sys.stdout.isatty()
    try:
        while True:
            try:
                text = picture()
            except DtunError as error:
                text = f"dtun: {error}"
            if not say(_placed(text) if terminal else text):
                return 0
            pause(INTERVAL)
    except KeyboardInterrupt:
        if terminal:
            say("")
        return 0


def _placed(text: str) -> str:
    """The text as it replaces what is on the screen; what does not fit there is left out, so that nothing scrolls."""
    size = shutil.get_terminal_size()
    lines = text.splitlines()
    if len(lines) > size.lines - 1:
        lines = [*lines[: size.lines - 2], f"... and {len(lines) - size.lines + 2} more lines"]
    shown = "\n".join(line[: size.columns] + _END_OF_LINE for line in lines)
    return f"{_HOME}{shown}\n{_END_OF_SCREEN}".removesuffix("\n")
