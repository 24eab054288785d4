"""Kernel settings that several dtun processes may want. Their names are Linux's; `NAMES` has those of Darwin."""

from typing import Final

from dtun.network.state import Sysctl
from dtun.platform.darwin import syscalls
from dtun.platform.entries import SavedSysctl
from dtun.platform.journal import Journal

NAMES: Final = {
    "net.ipv4.ip_forward": "net.inet.ip.forwarding",
    "net.ipv6.conf.all.forwarding": "net.inet6.ip6.forwarding",
}


def is_known(setting: Sysctl) -> bool:
    """Whether Darwin has this setting."""
    return setting.name in NAMES and setting.value.isdecimal()


def is_set(setting: Sysctl) -> bool:
    """Whether it has the wanted value. Raises OSError."""
    return str(syscalls.sysctl_number(NAMES[setting.name])) == setting.value


class Settings:
    """The settings of one instance, with their previous values in its journal.

    The last instance that wants a setting restores the value from before the first one.
    Methods raise OSError with the kernel's errno, and UnavailableError if the journal cannot be written.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    def set(self, wanted: Sysctl) -> None:
        """Set it, and save its previous value."""
        with self._journal.exclusive():
            now = str(syscalls.sysctl_number(NAMES[wanted.name]))
            ours = self._saved(wanted)
            saved = [*ours, *self._journal.saved_by_others(wanted.name)]
            changed = None if now == wanted.value else now
            previous = next((entry.previous for entry in saved if entry.previous is not None), changed)
            self._journal.add([SavedSysctl(wanted, previous)])
            self._journal.remove([entry for entry in ours if entry != SavedSysctl(wanted, previous)])
            if changed is not None:
                syscalls.sysctl_number(NAMES[wanted.name], int(wanted.value))

    def restore(self, unwanted: Sysctl) -> None:
        """Restore the previous value, unless another instance wants this one or another program has changed it."""
        with self._journal.exclusive():
            ours = self._saved(unwanted)
            previous = next((entry.previous for entry in ours if entry.previous is not None), None)
            if previous is not None and not self._journal.saved_by_others(unwanted.name) and is_set(unwanted):
                syscalls.sysctl_number(NAMES[unwanted.name], int(previous))
            self._journal.remove(ours)

    def _saved(self, setting: Sysctl) -> list[SavedSysctl]:
        return [
            entry
            for entry in self._journal.entries
            if isinstance(entry, SavedSysctl) and entry.sysctl.name == setting.name
        ]
