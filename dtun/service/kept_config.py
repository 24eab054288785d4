"""Keeps the configuration in use for the next process, in sealed memory in the descriptor store.

If the file has a mistake by then, that process goes on with this one, and no session ends.
"""

import fcntl
import logging
import os
from pathlib import Path
from typing import Final

from dtun.config import Config
from dtun.config.saved import restore, save
from dtun.handover.fdstore import CONFIG, FdStore

log = logging.getLogger("dtun")

# linux/fcntl.h: F_SEAL_SEAL, F_SEAL_SHRINK, F_SEAL_GROW, F_SEAL_WRITE
_SEALS: Final = 0x1 | 0x2 | 0x4 | 0x8
_F_ADD_SEALS: Final = 1033


def keep(fdstore: FdStore, config: Config) -> None:
    """Keep this one from now on. Nothing without a store, or after a quick start without a file."""
    if not fdstore.keeps or config.path is None:
        return
    try:
        descriptor = os.memfd_create("dtun-config", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)  # type: ignore[attr-defined,unused-ignore]
    except OSError as error:
        log.warning("the configuration cannot be kept for a restart: %s", error)
        return
    with os.fdopen(descriptor, "wb", buffering=0) as file:
        file.write(save(config))
        fcntl.fcntl(descriptor, _F_ADD_SEALS, _SEALS)
        fdstore.keep(CONFIG, descriptor)


def take(fdstore: FdStore) -> bytes | None:
    """What the process before this one has kept, as `save` made it; None if it has kept nothing."""
    descriptor = fdstore.take(CONFIG)
    if descriptor is None:
        return None
    with os.fdopen(descriptor, "rb") as file:
        file.seek(0)
        return file.read()


def restored(kept: bytes | None, path: Path) -> Config | None:
    """The configuration that was kept; None if there is none, or this version cannot use it."""
    if kept is None:
        return None
    try:
        return restore(kept, path)
    except ValueError as error:
        log.info("the configuration of the process before this one cannot be used: %s", error)
        return None
