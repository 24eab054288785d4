"""Settings of the kernel, by the names that dtun has for them, which are Linux's. What was before comes back."""

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
    """Whether there is such a setting here."""
    return setting.name in NAMES and setting.value.isdecimal()


def is_set(setting: Sysctl) -> bool:
    """Whether it is as it should be. Raises OSError."""
    return str(syscalls.sysctl_number(NAMES[setting.name])) == setting.value


class Settings:
    """The settings of one instance. Others may want the same: the last one to go puts back what was before the first.

    Methods raise OSError with the kernel's errno, and UnavailableError if the journal cannot be written.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    def put(self, wanted: Sysctl) -> None:
        """Set it, and remember what it was."""
        with self._journal.exclusive():
            now = str(syscalls.sysctl_number(NAMES[wanted.name]))
            notes = [*self._notes(wanted), *self._journal.saved_by_others(wanted.name)]
            changed = None if now == wanted.value else now
            previous = next((held.previous for held in notes if held.previous is not None), changed)
            ours = self._notes(wanted)
            self._journal.add([SavedSysctl(wanted, previous)])
            self._journal.remove([held for held in ours if held != SavedSysctl(wanted, previous)])
            if changed is not None:
                syscalls.sysctl_number(NAMES[wanted.name], int(wanted.value))

    def put_back(self, no_longer: Sysctl) -> None:
        """Unless another instance wants it still, or somebody else has set it since."""
        with self._journal.exclusive():
            ours = self._notes(no_longer)
            previous = next((held.previous for held in ours if held.previous is not None), None)
            wanted_elsewhere = self._journal.saved_by_others(no_longer.name)
            if previous is not None and not wanted_elsewhere and is_set(no_longer):
                syscalls.sysctl_number(NAMES[no_longer.name], int(previous))
            self._journal.remove(ours)

    def _notes(self, setting: Sysctl) -> list[SavedSysctl]:
        return [
            entry
            for entry in self._journal.entries
            if isinstance(entry, SavedSysctl) and entry.sysctl.name == setting.name
        ]
