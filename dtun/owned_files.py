"""Files in the directories of the service (/run/dtun, /var/lib/dtun), which root may use, too: `sudo dtun down`.

A service that was taken over may put anything there: a link to a file of root's, a FIFO that blocks whoever opens it.
So nothing in these directories is followed, waited for or trusted, and only regular files count that belong to the
owner of the directory and have no second name. What root makes there belongs to the directory's owner.
"""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

MAX_SIZE = 64 << 20
"""Bytes that are read of a file at most."""

_NEVER_FOLLOW = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


class UntrustedFileError(OSError):
    """A file is not one that the service has made. `strerror` says why."""

    def __init__(self, reason: str, name: str) -> None:
        super().__init__(errno.EPERM, reason, name)


class OwnedDirectory:
    """One directory. All methods raise OSError; names are those of files in it, without a slash.

    `path` may be a link: it comes from the configuration, and what is above it is not the service's.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def names(self) -> list[str]:
        """The names of everything in it."""
        with self._opened() as directory, os.scandir(directory) as found:
            return [entry.name for entry in found]

    def open(self, name: str, flags: int, mode: int = 0o600) -> int:
        """A descriptor of this file; with O_CREAT in `flags`, it is made if it is missing.

        Raises:
            UntrustedFileError: it is a link, no regular file, another user's, or has a second name.
            OSError: it cannot be opened; FileNotFoundError if it is missing.
        """
        with self._opened() as directory:
            if flags & os.O_CREAT:
                with suppress(FileExistsError):
                    return self._create(directory, name, flags, mode)
            try:
                descriptor = os.open(name, (flags & ~os.O_CREAT) | _NEVER_FOLLOW, dir_fd=directory)
            except OSError as error:
                if error.errno == errno.ELOOP:
                    raise UntrustedFileError("is a symbolic link", name) from None
                if error.errno == errno.ENXIO:
                    raise UntrustedFileError("is not a regular file", name) from None
                raise
            try:
                _check(os.fstat(descriptor), os.fstat(directory).st_uid, name)
            except OSError:
                os.close(descriptor)
                raise
            return descriptor

    def read(self, name: str) -> bytes:
        """The contents of this file.

        Raises:
            UntrustedFileError: see `open`; or it is larger than MAX_SIZE.
            OSError: it cannot be read; FileNotFoundError if it is missing.
        """
        with os.fdopen(self.open(name, os.O_RDONLY), "rb") as file:
            data = file.read(MAX_SIZE + 1)
        if len(data) > MAX_SIZE:
            raise UntrustedFileError("is too large", name)
        return data

    def replace(self, name: str, data: bytes, mode: int = 0o600, *, sync: bool = False) -> None:
        """Write this file so that readers see the old or the new contents; with `sync`, so that a crash does, too.

        Raises:
            OSError: it cannot be written; the old contents are still there.
        """
        draft = Path(name).with_suffix(".new").name
        with self._opened() as directory:
            with suppress(FileNotFoundError):
                os.unlink(draft, dir_fd=directory)  # of a process that was killed
            descriptor = self._create(directory, draft, os.O_WRONLY, mode)
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.write(data)
                    file.flush()
                    if sync:
                        os.fsync(file.fileno())
                os.rename(draft, name, src_dir_fd=directory, dst_dir_fd=directory)
            except OSError:
                with suppress(OSError):
                    os.unlink(draft, dir_fd=directory)
                raise

    def put_aside(self, name: str) -> str:
        """Rename a file that cannot be understood, so that it is in nobody's way. Returns its name then.

        Raises:
            OSError: it cannot be renamed.
        """
        aside = f"{name}.damaged"
        with self._opened() as directory:
            os.rename(name, aside, src_dir_fd=directory, dst_dir_fd=directory)
        return aside

    def remove(self, name: str) -> None:
        """Remove this file, or a link of this name, if there is one."""
        with suppress(FileNotFoundError), self._opened() as directory:
            os.unlink(name, dir_fd=directory)

    @contextmanager
    def _opened(self) -> Iterator[int]:
        directory = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            yield directory
        finally:
            os.close(directory)

    def _create(self, directory: int, name: str, flags: int, mode: int) -> int:
        flags |= os.O_CREAT | os.O_EXCL | _NEVER_FOLLOW
        descriptor = os.open(name, flags, mode, dir_fd=directory)
        try:
            os.fchmod(descriptor, mode)
            owner = os.fstat(directory)
            if os.geteuid() == 0 and owner.st_uid != 0:
                os.fchown(descriptor, owner.st_uid, owner.st_gid)
        except OSError:
            os.close(descriptor)
            raise
        return descriptor


def _check(file: os.stat_result, owner: int, name: str) -> None:
    user = os.geteuid()
    if not stat.S_ISREG(file.st_mode):
        raise UntrustedFileError("is not a regular file", name)
    if file.st_uid != owner and (user == 0 or file.st_uid != user):
        raise UntrustedFileError("belongs to another user than its directory", name)
    if file.st_nlink > 1:
        raise UntrustedFileError("has a second name (a hard link)", name)
