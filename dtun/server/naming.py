"""Device names that say whose they are. Pure."""

import hashlib
import re
from collections.abc import Container

MAX_NAME = 15
"""Bytes of a device name (IFNAMSIZ less the final NUL)."""

PREFIX = "dtun-"


def device_name(identity: str, taken: Container[str] = ()) -> str:
    """`dtun-demo` for "demo"; one that is too long or has odd characters is shortened and gets a hash of the whole."""
    plain = PREFIX + identity
    if re.fullmatch(r"[A-Za-z0-9_-]+", identity) and len(plain) <= MAX_NAME and plain not in taken:
        return plain
    readable = re.sub(r"[^A-Za-z0-9_-]", "", identity)
    digest = hashlib.sha256(identity.encode()).hexdigest()
    for length in range(4, MAX_NAME - len(PREFIX)):
        room = MAX_NAME - len(PREFIX) - length - 1
        name = f"{PREFIX}{readable[: max(room, 0)]}-{digest[:length]}"
        if name not in taken and len(name) <= MAX_NAME:
            return name
    raise ValueError(f"no device name is left for id {identity!r}")
