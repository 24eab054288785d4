"""The kernel's settings below /proc/sys, by the names that sysctl(8) gives them.

Settings below net are those of the network namespace of the thread that asks (proc_sys_net(5)).
"""

import errno
import os
import re
from pathlib import Path
from typing import Final

from dtun.errors import UnavailableError

_ROOT: Final = Path("/proc/sys")

# A setting of one device: the device's name, which may have dots (eth0.100), is all that is in between.
_OF_DEVICE: Final = re.compile(r"(net\.ipv[46]\.(?:conf|neigh))\.(.+)\.([^.]+)")
_IPV6: Final = "net.ipv6."


class SysctlError(UnavailableError):
    """A setting that this kernel does not have, or does not let us change."""


def read(name: str) -> str:
    """The value of `name`, without the line's end.

    Raises:
        SysctlError: there is no such setting, or it cannot be read.
    """
    try:
        return _path(name).read_text().strip()
    except OSError as error:
        raise SysctlError(f"cannot read the setting {name}: {_reason(name, error)}") from None


def write(name: str, value: str) -> None:
    """Set `name` to `value`; nothing is written if that is its value. So a container where all of /proc/sys is
    read-only will do, if whoever started it has set what is needed.

    Raises:
        SysctlError: there is no such setting, or the kernel does not take the value from us.
    """
    if read(name).split() == value.split():
        return
    try:
        _path(name).write_text(value + "\n")
    except OSError as error:
        raise SysctlError(f"cannot set {name} to {value}: {_reason(name, error)}") from None


def _path(name: str) -> Path:
    """Where a setting is. With slashes that stand for dots in it, as sysctl.d(5) has it, or dots only."""
    if match := _OF_DEVICE.fullmatch(name):
        group, device, key = match.groups()
        parts = [*group.split("."), device.replace("/", "."), key]
    else:
        parts = [part.replace("/", ".") for part in name.split(".")]
    if any(part in ("", ".", "..") for part in parts):
        raise SysctlError(f"{name!r} is no name of a setting: net.ipv4.ip_forward would be one")
    return _ROOT.joinpath(*parts)


def _reason(name: str, error: OSError) -> str:
    match error.errno:
        case errno.ENOENT if name.startswith(_IPV6) and not (_ROOT / "net/ipv6").exists():
            return "this host has no IPv6"
        case errno.ENOENT:
            return "there is no such setting (a device that is gone, or a kernel without it)"
        case errno.EROFS:
            return f"{_ROOT} is read-only here (a container?); set it where the container is started"
        case errno.EACCES | errno.EPERM:
            return f"not permitted; run dtun as root, or set it for good in /etc/sysctl.d: {name} = ..."
        case errno.EINVAL:
            return "the kernel does not take this value"
    return os.strerror(error.errno or errno.EIO)
