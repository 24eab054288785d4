"""Pre-shared keys: generating, reading and checking them. Keys never appear in logs or errors.

A native key is base64 text of exactly 32 bytes; the PSK is those 32 bytes. The key of an original Go dtun is any text
of 1 to 32 bytes; the PSK is that text. 32 bytes is Mbed TLS's limit for a PSK. White space around a key is removed, as
the newline at the end of a file is not part of it.
"""

import base64
import binascii
import codecs
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
"""The group of the user that the service runs as."""

MAKE_A_KEY = "make a key with `dtun genkey`"
MAKE_A_GO_KEY = "make a key with `dtun genkey --compat go`"


class Key:
    """Secret bytes. Only `secret()` returns them; repr() and str() hide them, and pickling fails."""

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
    """A new random key as base64 text: of 32 bytes, or for a Go dtun of 24, which are 32 characters."""
    return base64.b64encode(secrets.token_bytes(24 if go else KEY_BYTES)).decode("ascii")


def decode(text: bytes, *, go: bool) -> Key:
    """The key in `text`.

    Raises:
        ValueError: `text` is not a key. The message says why and does not contain any of the text.
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
        secret = base64.b64decode(_without_mark(trimmed), validate=True)
    except (binascii.Error, ValueError):
        raise ValueError(f"is not a base64 key; {MAKE_A_KEY}") from None
    if len(secret) != KEY_BYTES:
        comparison = "short" if len(secret) < KEY_BYTES else "long"
        raise ValueError(
            f"is too {comparison} for a key: {len(secret)} bytes instead of {KEY_BYTES}; {MAKE_A_KEY}"
        )
    return Key(secret)


def _without_mark(text: bytes) -> bytes:
    """Base64 text as some editors and shells save it: with a byte order mark, or in UTF-16."""
    if text.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return text.decode("utf-16", errors="replace").encode().strip()
    return text.removeprefix(codecs.BOM_UTF8).strip()


def read_file(path: Path, *, private: bool = True) -> bytes:
    """The text of a key file. `private`: only its owner, who is this user or root, may have access.

    Raises:
        ValueError: the file does not exist, is not readable, or is not private.
    """
    try:
        # Non-blocking: opening a FIFO must not block the start.
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
    """Create a key file that only its owner can read; and the service's group, if the directory gives new files to it.

    The latter is the case in /etc/dtun, which the installation creates with the set-group-ID bit.

    Raises:
        OSError: the file cannot be written, or exists already.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        status = os.fstat(descriptor)
        if status.st_uid == 0 and _group_name(status.st_gid) == GROUP:
            os.fchmod(descriptor, 0o640)
        file.write(text + "\n")


def make_private(path: Path) -> str:
    """The command that leaves a file to its owner, and to the service if one is installed."""
    try:
        grp.getgrnam(GROUP)
    except KeyError:
        return f"`chmod 600 {path}`"
    return f"`chown root:{GROUP} {path} && chmod 640 {path}`"


def _give_to_root(path: Path) -> str:
    return f"`chown root {path}`" if "640" not in make_private(path) else make_private(path)


def unreadable(path: Path) -> str:
    """What to do about a file that this process may not read."""
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
        raise ValueError(f"{path} can be used by others (mode {mode:04o}); run {make_private(path)}")
    if private and status.st_uid not in {0, os.geteuid()}:
        raise ValueError(f"{path} belongs to another user (uid {status.st_uid}); run {_give_to_root(path)}")
    content = os.read(descriptor, _MAX_FILE_BYTES + 1)
    if not content.strip():
        raise ValueError(
            f"{path} is empty; copy the key of the other end, or run `rm {path} && dtun genkey -o {path}`"
        )
    if len(content) > _MAX_FILE_BYTES:
        raise ValueError(f"{path} is too big for a key file")
    return content


def shared_with(status: os.stat_result) -> int:
    """The mode bits that give other users access. The service's group may read files of root."""
    bits = stat.S_IMODE(status.st_mode) & 0o077
    if bits == 0o040 and status.st_uid == 0 and _group_name(status.st_gid) == GROUP:
        return 0
    return bits


def _group_name(number: int) -> str:
    try:
        return grp.getgrgid(number).gr_name
    except KeyError:
        return ""


def passes_credentials(environment: Mapping[str, str]) -> bool:
    """Whether the service manager has passed credentials to this process."""
    return bool(environment.get("CREDENTIALS_DIRECTORY"))


def read_credential(name: str, environment: Mapping[str, str]) -> bytes:
    """The text of a credential that the service manager passed (systemd's LoadCredential=).

    The mode bits are not checked: the directory is private to the service, and its ACLs show up as group permissions.

    Raises:
        ValueError: there is no such credential.
    """
    directory = environment.get("CREDENTIALS_DIRECTORY")
    if not directory:
        raise ValueError(
            "$CREDENTIALS_DIRECTORY is not set; add LoadCredential= to the unit, or use key_file"
        )
    path = Path(directory, name)
    # Not path.exists(): that raises if the directory is not accessible.
    if not os.path.lexists(path):
        raise ValueError(f"no credential {name!r} was passed; add LoadCredential={name}:PATH to the unit")
    return read_file(path, private=False)
