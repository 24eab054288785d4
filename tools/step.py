"""Runs the steps of an installation quietly: what a failed one has printed becomes one sentence."""

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from tools.bootstrap import explain


class StepError(OSError):
    """A step has failed; the message is for people."""


def run(
    command: Sequence[str | Path],
    *,
    environment: Mapping[str, str] | None = None,
    directory: Path | None = None,
) -> None:
    """Run a command without input and output.

    Raises:
        StepError: it has failed, or does not exist.
    """
    try:
        subprocess.run(
            command,
            check=True,
            cwd=directory,
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
        )
    except FileNotFoundError:
        raise StepError(f"{command[0]} is missing; install it and run make again") from None
    except subprocess.CalledProcessError as error:
        raise StepError(explain([str(word) for word in command], error.stdout or "")) from None
