"""Log lines about clients and their sessions: with fields to filter by, and a rate limit where peers cause them."""

import logging
import time
from collections.abc import Callable, MutableMapping
from typing import Any, Final

from dtun.pacing import RateLimiter

FIELDS: Final = ("client", "reason", "peer")
"""A client's id, why a session ended or failed, the other side's address. The journal shows them as DTUN_CLIENT etc."""


class SessionLog(logging.LoggerAdapter[logging.Logger]):
    """A logger whose methods also take the FIELDS as keywords; None or "" leaves a field out.

        log = SessionLog(logging.getLogger("dtun.server"), client="home")
        log.info("connected from %s", endpoint, reason="connected", peer=endpoint)

    `name` begins each line. Of the lines that `limiter` does not allow, the next allowed one gives the number; debug
    lines are not limited. `clock` gives seconds, for `limiter`.
    """

    def __init__(
        self,
        logger: logging.Logger,
        *,
        name: str | None = None,
        limiter: RateLimiter | None = None,
        clock: Callable[[], float] = time.monotonic,
        client: str | None = None,
        reason: str | None = None,
    ) -> None:
        super().__init__(logger, {"client": client, "reason": reason})
        self._name = name
        self._limiter = limiter
        self._clock = clock

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        """As `logging.Logger.log`; `debug`, `info` etc. come here."""
        if not self.isEnabledFor(level):
            return
        if self._name is not None:
            msg, args = f"%s: {msg}", (self._name, *args)
        if self._limiter is not None and level > logging.DEBUG:
            suppressed = self._limiter.allow(self._clock())
            if suppressed is None:
                return
            if suppressed:
                msg, args = f"{msg} (and %d more like this)", (*args, suppressed)
        super().log(level, msg, *args, **kwargs)

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        """Move the fields to `extra`, where the handlers look for them (dtun.service.log)."""
        fields = {**(self.extra or {}), **{name: kwargs.pop(name) for name in FIELDS if name in kwargs}}
        kwargs["extra"] = {name: value for name, value in fields.items() if value}
        return msg, kwargs
