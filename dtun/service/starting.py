"""Which configuration a service starts with.

With that of the file; but if a start with it would fail, and the process before this one has left one that worked (at a
restart, or after a crash), then with that. So a mistake in the file costs no session. Why it is not checked before the
restart: docs/decisions/0010-restart-with-a-mistake.md.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dtun.config import Config
from dtun.config.saved import save
from dtun.errors import DtunError
from dtun.handover.fdstore import FdStore
from dtun.service import kept_config, preflight
from dtun.service.systemd import SystemdFdStore

log = logging.getLogger("dtun")


@dataclass(frozen=True, slots=True)
class Start:
    """The configuration to start with. `problem`: why it is not the one of the file; None if it is."""

    config: Config
    fdstore: FdStore
    problem: str | None = None


def choose(path: Path, load: Callable[[], Config], fdstore: FdStore | None = None) -> Start:
    """The file at `path`, as `load` reads it, or what the process before this one has used.

    Raises:
        DtunError: a start with the file would fail, and there is no other configuration.
    """
    fdstore = fdstore or SystemdFdStore()
    kept = kept_config.take(fdstore)
    try:
        config = load()
        # Compared as it was saved: to read a long configuration twice would make each restart longer.
        if kept is not None and kept != save(config):
            for problem in preflight.problems(config.section, fdstore):
                raise problem
    except DtunError as error:
        before = kept_config.restored(kept, path)
        if before is None:
            raise
        for line in str(error).splitlines():
            log.error("%s", line)  # noqa: TRY400 - a line for a person
        log.error("%s is not used; going on with the configuration from before", path)  # noqa: TRY400
        return Start(before, fdstore, str(error))
    return Start(config, fdstore)
