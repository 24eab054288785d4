"""Logging what somebody outside has caused, which they must not be able to do without end."""

import logging

from dtun.tunnel.limiter import Limiter

log = logging.getLogger("dtun.server")


def remark(limiter: Limiter, level: int, text: str, now: float) -> None:
    """Say it, unless too much was said already; then say later how much was held back."""
    held_back = limiter.allow(now)
    if held_back is not None:
        log.log(level, "%s%s", text, f" (and {held_back} more like this)" if held_back else "")
