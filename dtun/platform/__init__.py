"""The operating system's part of dtun, behind one small interface (`dtun.platform.interface`)."""

import asyncio
import sys
from collections.abc import Mapping
from pathlib import Path

from dtun.errors import UnavailableError
from dtun.platform.dry_run import ReadOnlyKernel
from dtun.platform.interface import Kernel


def kernel(instance: str, runtime_directory: Path | None = None) -> Kernel:
    """Return the network configuration of this host, for the dtun process called `instance`.

    `runtime_directory` has the journal, which a killed process leaves to its successor; None is the system's default.

    Raises:
        UnavailableError: dtun does not support this operating system.
    """
    # Late imports, because each system has modules that the other lacks, such as pyroute2.
    if sys.platform == "linux":
        from dtun.platform.linux.kernel import LinuxKernel  # noqa: PLC0415

        return LinuxKernel(instance, runtime_directory)
    elif sys.platform == "darwin":  # noqa: RET505 - two statements would leave mypy one that cannot be reached
        from dtun.platform.darwin.kernel import DarwinKernel  # noqa: PLC0415

        return DarwinKernel(instance, runtime_directory)
    raise _unknown()


def read_only_kernel(running: Mapping[str, str]) -> ReadOnlyKernel:
    """Return the host for reading only. `running`: see `ReadOnlyKernel`.

    Raises:
        UnavailableError: dtun does not support this operating system.
    """
    if sys.platform == "linux":
        from dtun.platform.linux.dry_run import LinuxReadOnlyKernel  # noqa: PLC0415

        return LinuxReadOnlyKernel(running)
    elif sys.platform == "darwin":  # noqa: RET505
        from dtun.platform.darwin.dry_run import DarwinReadOnlyKernel  # noqa: PLC0415

        return DarwinReadOnlyKernel(running)
    raise _unknown()


def event_loop() -> asyncio.AbstractEventLoop:
    """Return a new event loop: asyncio's, or a faster one where the system has it."""
    loop: asyncio.AbstractEventLoop
    if sys.platform == "linux":
        from dtun.platform.linux.eventloop.loop import DirectLoop  # noqa: PLC0415

        loop = DirectLoop()
    else:
        loop = asyncio.new_event_loop()
    return loop


def _unknown() -> UnavailableError:
    return UnavailableError(f"dtun does not run on {sys.platform}: it needs Linux or macOS")
