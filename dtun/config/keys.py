"""Pre-shared keys: where they come from, what they must be like, and that they never show themselves.

A native key is base64 text of exactly 32 bytes; the PSK is those 32 bytes. The key of an original Go dtun is
any text of 1 to 32 bytes; the PSK is the text as it is. 32 is the most that Mbed TLS takes for a PSK.
Around both, white space is trimmed: the newline at the end of a file belongs to neither.
"""

import base64
import binascii
import grp
import hmac
import os
import secrets
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

KEY_BYTES = 32
WEAK_KEY_BYTES = 16
_MAX_FILE_BYTES = 4096

GROUP = "dtun"
"""The group of the service's user, which is not root."""

MAKE_A_KEY = "make a key with `dtun genkey`"
MAKE_A_GO_KEY = "make a key with `dtun genkey --compat go`"


class Key:
    """Secret bytes. They are not in repr(), str() or a pickle; only `secret()` gives them away."""

    __slots__ = ("_secret",)

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def secret(self) -> bytes:
        return self._secret

    def __repr__(self) -> str:
        return "Key(hidden)"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Key) and hmac.compare_digest(self._secret, other._secret)

    def __hash__(self) -> int:
        return hash(self._secret)

    def __copy__(self) -> "Key":
        return self

    def __deepcopy__(self, memo: dict[int, object]) -> "Key":
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError("a key cannot be pickled")


def generate(*, go: bool = False) -> str:
    """A new random key as text: 32 bytes, or for a Go dtun 32 characters that hold 24 bytes."""
    return base64.b64encode(secrets.token_bytes(24 if go else KEY_BYTES)).decode("ascii")


def decode(text: bytes, *, go: bool) -> Key:
    """The key that `text` stands for.

    Raises:
        ValueError: `text` is no such key; the message says what it is instead, and does not hold any of it.
    """
    trimmed = text.strip()
    if not trimmed:
        raise ValueError(f"is empty; {MAKE_A_GO_KEY if go else MAKE_A_KEY}")
    if go:
        if len(trimmed) > KEY_BYTES:
            raise ValueError(
                f"is too long: {len(trimmed)} bytes, and for an original dtun at most {KEY_BYTES} are possible;"
                f" {MAKE_A_GO_KEY}"
            )
        return Key(trimmed)
    try:
        secret = base64.b64decode(trimmed, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError(f"is not a base64 key; {MAKE_A_KEY}") from None
    if len(secret) != KEY_BYTES:
        comparison = "short" if len(secret) < KEY_BYTES else "long"
        raise ValueError(
            f"is too {comparison} for a key: {len(secret)} bytes instead of {KEY_BYTES}; {MAKE_A_KEY}"
        )
    return Key(secret)


def read_file(path: Path, *, private: bool = True) -> bytes:
    """The text of a key file. `private`: nobody but its owner, us or root, may be able to read it.

    Raises:
        ValueError: the file is not there, not readable, or not private.
    """
    try:
        # Non-blocking: a FIFO in this place must not hang the start.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise ValueError(_cannot_read(path, error)) from None
    try:
        return _read_checked(descriptor, path, private=private)
    except OSError as error:
        raise ValueError(_cannot_read(path, error)) from None
    finally:
        os.close(descriptor)


def write_file(path: Path, text: str) -> None:
    """Make a new key file. Where new files belong to the service's group, as in the /etc/dtun that an installation
    makes (its set-group-ID bit is on), that group may read it; otherwise its owner alone.

    Raises:
        OSError: it cannot be written, or is there already.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        status = os.fstat(descriptor)
        if status.st_uid == 0 and _group_name(status.st_gid) == GROUP:
            os.fchmod(descriptor, 0o640)
        file.write(text + "\n")


def unreadable(path: Path) -> str:
    """What to do about a file that this process has no right to read."""
    if _group_name(os.getegid()) == GROUP:
        return (
            f"cannot be read by the service, which is not root; keep it in /etc/dtun, and run"
            f" `chown root:{GROUP} {path} && chmod 640 {path}`"
        )
    return "cannot be read by this user; start dtun as the file's owner or as root"


def _cannot_read(path: Path, error: OSError) -> str:
    if isinstance(error, PermissionError):
        return f"{path} {unreadable(path)}"
    if isinstance(error, FileNotFoundError):
        return (
            f"{path} does not exist; correct the path, copy the key from the other end,"
            f" or make a new one with `dtun genkey -o {path}`"
        )
    return f"{path} cannot be read: {error.strerror}"


def _read_checked(descriptor: int, path: Path, *, private: bool) -> bytes:
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"{path} is not a file; give the path of a key file")
    if private and shared_with(status):
        mode = stat.S_IMODE(status.st_mode)
        raise ValueError(f"{path} can be used by others (mode {mode:04o}); run `chmod 600 {path}`")
    if private and status.st_uid not in {0, os.geteuid()}:
        raise ValueError(f"{path} belongs to another user (uid {status.st_uid}); run `chown root {path}`")
    content = os.read(descriptor, _MAX_FILE_BYTES + 1)
    if not content.strip():
        raise ValueError(f"{path} is empty; {MAKE_A_KEY} into it")
    if len(content) > _MAX_FILE_BYTES:
        raise ValueError(f"{path} is too big for a key file")
    return content


def shared_with(status: os.stat_result) -> int:
    """The bits of a file's mode that let others use it. The service's own group is meant to read what is root's."""
    bits = stat.S_IMODE(status.st_mode) & 0o077
    if bits == 0o040 and status.st_uid == 0 and _group_name(status.st_gid) == GROUP:
        return 0
    return bits


def _group_name(number: int) -> str:
    try:
        return grp.getgrgid(number).gr_name
    except KeyError:
        return ""


def read_credential(name: str, environment: Mapping[str, str]) -> bytes:
    """The text of a credential that the service manager passed (systemd's LoadCredential=).

    Its directory is private to the service, and ACLs there make the mode bits look shared.

    Raises:
        ValueError: there is no such credential.
    """
    directory = environment.get("CREDENTIALS_DIRECTORY")
    if not directory:
        raise ValueError(
            "$CREDENTIALS_DIRECTORY is not set; add LoadCredential= to the unit, or use key_file"
        )
    path = Path(directory, name)
    # Not path.exists(): that raises where the directory is closed to us.
    if not os.path.lexists(path):
        raise ValueError(f"no credential {name!r} was passed; add LoadCredential={name}:PATH to the unit")
    return read_file(path, private=False)
