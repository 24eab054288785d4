"""The operating system's part of dtun, behind one small interface (`dtun.platform.interface`)."""

import sys
from pathlib import Path

from dtun.errors import UnavailableError
from dtun.platform.interface import Kernel


def kernel(instance: str, runtime_directory: Path | None = None) -> Kernel:
    """The network configuration of the host that this runs on, for the dtun process called `instance`.

    `runtime_directory` keeps what a killed process leaves to its successor; None is the system's usual place.

    Raises:
        UnavailableError: dtun does not know this operating system.
    """
    if sys.platform == "linux":
        # Late, because it imports pyroute2, which only Linux has to have.
        from dtun.platform.linux.kernel import LinuxKernel  # noqa: PLC0415

        return LinuxKernel(instance, runtime_directory)
    raise UnavailableError(f"dtun does not run on {sys.platform}: it needs Linux")
