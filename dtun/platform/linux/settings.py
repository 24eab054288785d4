"""Kernel settings that several dtun processes may want at the same time.

The first one notes what the setting was; the next ones find it as they want it, and take the note over from the
first one's journal. Each that stops leaves it alone while another's journal still names it. The last one puts back.
"""

from dtun.network.state import Sysctl
from dtun.platform.entries import SavedSysctl
from dtun.platform.journal import Journal
from dtun.platform.linux import sysctl


class Settings:
    """The settings of one instance."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    def put(self, wanted: Sysctl) -> None:
        """Set it, and remember what it was.

        Raises:
            SysctlError: the kernel does not have it, or does not let us.
            UnavailableError: the journal cannot be written.
        """
        with self._journal.exclusive():
            now = sysctl.read(wanted.name)
            changes = now.split() != wanted.value.split()
            ours = self._notes(wanted.name)
            notes = [*ours, *self._journal.saved_by_others(wanted.name)]
            known = next((held.previous for held in notes if held.previous is not None), None)
            previous = known if known is not None else now if changes else None
            self._journal.add([SavedSysctl(wanted, previous)])
            self._journal.remove([held for held in ours if held != SavedSysctl(wanted, previous)])
            if changes:
                try:
                    sysctl.write(wanted.name, wanted.value)
                except sysctl.SysctlError:
                    self._journal.remove([SavedSysctl(wanted, previous)])
                    raise

    def put_back(self, no_longer: Sysctl) -> None:
        """We want it no more. It stays where another instance wants it, or somebody else has set it since.

        Raises:
            SysctlError: the kernel does not let us.
            UnavailableError: the journal cannot be written.
        """
        with self._journal.exclusive():
            ours = self._notes(no_longer.name)
            previous = next((held.previous for held in ours if held.previous is not None), None)
            last = not self._journal.saved_by_others(no_longer.name)
            if previous is not None and last and is_set(no_longer):
                sysctl.write(no_longer.name, previous)
            self._journal.remove(ours)

    def _notes(self, name: str) -> list[SavedSysctl]:
        return [
            entry
            for entry in self._journal.entries
            if isinstance(entry, SavedSysctl) and entry.sysctl.name == name
        ]


def is_set(setting: Sysctl) -> bool:
    """Whether it is as it should be; not if it has gone with its device."""
    try:
        return sysctl.read(setting.name).split() == setting.value.split()
    except sysctl.SysctlError:
        return False
