"""What the log is told: with fields to filter by, and within bounds where somebody outside has caused it."""

import logging
from collections.abc import Mapping
from typing import Final

from dtun.pacing import RateLimiter

log = logging.getLogger("dtun.server")

FIELDS: Final = ("client", "reason", "peer")
"""What an entry can be about: the id of a client, why a session has ended or failed, the address of the other side."""


def about(
    *, client: str | None = None, reason: str | None = None, peer: str | None = None
) -> Mapping[str, str]:
    """FIELDS for one entry, as logging wants them (`extra=`)."""
    found = {"client": client, "reason": reason, "peer": peer}
    return {name: value for name, value in found.items() if value}


def remark(
    limiter: RateLimiter, level: int, text: str, now: float, extra: Mapping[str, str] | None = None
) -> None:
    """Say it, unless too much was said already; then say later how much was held back."""
    held_back = limiter.allow(now)
    if held_back is not None:
        more = f" (and {held_back} more like this)" if held_back else ""
        log.log(level, "%s%s", text, more, extra=extra)
