"""Bounds how often something is said, so that nobody can fill a log from outside. Pure."""


class Limiter:
    """Lets `burst` messages through in any window of `per_seconds`, and counts the others.

    Keep one for each kind of message.
    """

    def __init__(self, burst: int, per_seconds: float) -> None:
        self._burst = burst
        self._per_seconds = per_seconds
        self._sent: list[float] = []
        self._suppressed = 0

    def allow(self, now: float) -> int | None:
        """None: keep quiet. A number: say it, and that this many were held back before."""
        self._sent = [at for at in self._sent if now - at < self._per_seconds]
        if len(self._sent) >= self._burst:
            self._suppressed += 1
            return None
        self._sent.append(now)
        suppressed, self._suppressed = self._suppressed, 0
        return suppressed
