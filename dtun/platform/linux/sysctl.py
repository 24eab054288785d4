"""Kernel settings in /proc/sys, by the names of sysctl(8).

Settings in net are those of the calling thread's network namespace (proc_sys_net(5)).
"""

import errno
import os
import re
from pathlib import Path
from typing import Final

from dtun.errors import UnavailableError
from dtun.network.state import Sysctl
from dtun.platform.entries import SavedSysctl, is_allowed
from dtun.platform.journal import Journal

_ROOT: Final = Path("/proc/sys")

# A setting of one device, whose name may contain dots (eth0.100).
_OF_DEVICE: Final = re.compile(r"(net\.ipv[46]\.(?:conf|neigh))\.(.+)\.([^.]+)")
_IPV6: Final = "net.ipv6."


class SysctlError(UnavailableError):
    """The kernel does not have a setting, or refuses to change it."""


def read(name: str) -> str:
    """Return the value of `name`, without the newline.

    Raises:
        SysctlError: the setting does not exist, or cannot be read.
    """
    try:
        return _path(name).read_text().strip()
    except OSError as error:
        raise SysctlError(f"cannot read the setting {name}: {_reason(name, error)}") from None


def write(name: str, value: str) -> None:
    """Set `name` to `value`, unless that is its value.

    So a container with a read-only /proc/sys works if the settings were made where it is started.

    Raises:
        SysctlError: the setting does not exist, or the kernel refuses the value.
    """
    if read(name).split() == value.split():
        return
    try:
        _path(name).write_text(value + "\n")
    except OSError as error:
        raise SysctlError(f"cannot set {name} to {value}: {_reason(name, error)}") from None


def is_set(setting: Sysctl) -> bool:
    """Whether a setting has its value; False if it does not exist, such as that of a removed device."""
    try:
        return read(setting.name).split() == setting.value.split()
    except SysctlError:
        return False


class Settings:
    """The settings of one instance, which other instances may want at the same time.

    The first instance records the previous value in its journal, and the others copy that record. An instance that
    stops leaves a setting alone while another journal still names it. The last one restores the previous value.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    def set(self, wanted: Sysctl) -> None:
        """Set it, and record its previous value.

        Raises:
            SysctlError: the setting does not exist, or the kernel refuses the value.
            UnavailableError: the journal cannot be written.
        """
        if not is_allowed(wanted):
            raise SysctlError(f"{wanted.name} = {wanted.value}: not one of the settings that dtun changes")
        with self._journal.exclusive():
            now = read(wanted.name)
            changes = now.split() != wanted.value.split()
            ours = self._recorded(wanted.name)
            records = [*ours, *self._journal.saved_by_others(wanted.name)]
            known = next((record.previous for record in records if record.previous is not None), None)
            previous = known if known is not None else now if changes else None
            self._journal.add([SavedSysctl(wanted, previous)])
            self._journal.remove([record for record in ours if record != SavedSysctl(wanted, previous)])
            if changes:
                try:
                    write(wanted.name, wanted.value)
                except SysctlError:
                    self._journal.remove([SavedSysctl(wanted, previous)])
                    raise

    def restore(self, unwanted: Sysctl) -> None:
        """Restore the previous value, unless another instance wants ours or another program changed it.

        Raises:
            SysctlError: the kernel refuses the value.
            UnavailableError: the journal cannot be written.
        """
        with self._journal.exclusive():
            ours = self._recorded(unwanted.name)
            previous = next((record.previous for record in ours if record.previous is not None), None)
            last = not self._journal.saved_by_others(unwanted.name)
            if previous is not None and last and is_set(unwanted):
                write(unwanted.name, previous)
            self._journal.remove(ours)

    def _recorded(self, name: str) -> list[SavedSysctl]:
        return [
            entry
            for entry in self._journal.entries
            if isinstance(entry, SavedSysctl) and entry.sysctl.name == name
        ]


def _path(name: str) -> Path:
    """Return the file of a setting. As in sysctl.d(5), a slash in `name` stands for a dot in the file's name."""
    if match := _OF_DEVICE.fullmatch(name):
        group, device, key = match.groups()
        parts = [*group.split("."), device.replace("/", "."), key]
    else:
        parts = [part.replace("/", ".") for part in name.split(".")]
    if any(part in ("", ".", "..") for part in parts):
        raise SysctlError(f"{name!r} is not the name of a setting; an example is net.ipv4.ip_forward")
    return _ROOT.joinpath(*parts)


def _reason(name: str, error: OSError) -> str:
    match error.errno:
        case errno.ENOENT if name.startswith(_IPV6) and not (_ROOT / "net/ipv6").exists():
            return "this host has no IPv6"
        case errno.ENOENT:
            return "there is no such setting (the device is gone, or the kernel does not have it)"
        case errno.EROFS:
            return f"{_ROOT} is read-only here (a container?); set it where the container is started"
        case errno.EACCES | errno.EPERM:
            return f"not permitted; run dtun as root, or set it permanently in /etc/sysctl.d: {name} = ..."
        case errno.EINVAL:
            return "the kernel refuses this value"
    return os.strerror(error.errno or errno.EIO)
