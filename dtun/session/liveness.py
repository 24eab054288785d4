"""Keepalive, dead-peer detection and round-trip time of a session with a native peer. Pure."""

RTT_WEIGHT = 0.125
"""Weight of a new sample in the smoothed round-trip time (RFC 6298, section 2)."""


class Liveness:
    """Keepalive and dead-peer detection of one session. All times in seconds on the caller's clock.

    Every `keepalive` seconds a probe goes out, which also keeps the NAT mappings on the path. The peer is dead when no
    authentic record arrived for `timeout` seconds.
    """

    def __init__(self, keepalive: float, timeout: float, now: float) -> None:
        self.keepalive = keepalive
        self.timeout = timeout
        self.rtt: float | None = None
        self._received = -1
        self._received_at = now
        self._probe_at = now
        self._token = 0
        self._asked_at: float | None = None

    def poll(self, received: int, now: float) -> int | None:
        """`received` grows with each authentic record. Returns the token of a probe when one is due."""
        if received != self._received:
            self._received = received
            self._received_at = now
        if now < self._probe_at:
            return None
        self._probe_at = now + self.keepalive
        self._token += 1
        self._asked_at = now
        return self._token

    def echo(self, token: int, now: float) -> None:
        """Take a round-trip time from the echo of the latest probe. Late, repeated and unknown tokens are ignored."""
        if token == self._token and self._asked_at is not None:
            sample = now - self._asked_at
            self.rtt = sample if self.rtt is None else self.rtt + RTT_WEIGHT * (sample - self.rtt)
            self._asked_at = None

    def dead(self, now: float) -> bool:
        return now - self._received_at >= self.timeout

    def next_timer(self) -> float:
        return min(self._probe_at, self._received_at + self.timeout)
