"""The budget for handshakes: what clients that have proven nothing but their address may make a server work. Pure.

A ClientHello with a valid cookie makes the server generate an ECDHE key, some 0.5 ms with X25519, and the client's
answer costs as much again. An honest client needs one handshake an hour. So handshakes are paid for from token buckets:

    each source    SOURCE_BURST at once, then SOURCE_PER_SECOND
    all together   BURST at once, then PER_SECOND: about a fifth of a processor
    newcomers      the last half of the common bucket is for sources that had at most FEW handshakes in FEW_WITHIN

A hello that finds its bucket empty is dropped before Mbed TLS sees it. An honest client sends it again after 0.3 s, and
then after twice that time. Only hellos with a valid cookie take a token, so nobody can use up the budget of another.
"""

from collections import OrderedDict

from dtun.pacing import RateLimiter

SOURCE_BURST, SOURCE_PER_SECOND = 64.0, 20.0
"""Handshakes of one source: a site whose clients all come back at once, behind one address."""

BURST, PER_SECOND = 200.0, 200.0
"""Handshakes of all sources together."""

NEWCOMERS = BURST / 2
"""Tokens of the common bucket that are kept for newcomers, so that some busy sources cannot keep others out."""

FEW, FEW_WITHIN = 4.0, 40.0
"""A newcomer has had at most so many handshakes, in so many seconds."""


class _Source:
    """What one source may still do."""

    __slots__ = ("_burst", "bucket", "first")

    def __init__(self, share: float) -> None:
        self._burst = SOURCE_BURST * share
        self.bucket = RateLimiter(burst=self._burst, per_seconds=SOURCE_BURST / SOURCE_PER_SECOND)
        self.first = RateLimiter(burst=FEW, per_seconds=FEW_WITHIN)

    def is_full(self, now: float) -> bool:
        return self.bucket.tokens(now) >= self._burst and self.first.tokens(now) >= FEW


class HandshakeBudget:
    """Who may start a handshake now. `share` is the part of the numbers above that this server can afford."""

    def __init__(self, share: float = 1.0) -> None:
        self._share = share
        self._all = RateLimiter(burst=BURST * share, per_seconds=BURST / PER_SECOND)
        # The one that was charged last is at the end. In FEW_WITHIN some 8,000 handshakes can be paid for, so there are
        # no more sources than that.
        self._sources: OrderedDict[str, _Source] = OrderedDict()

    def refusal(self, source: str, now: float) -> str | None:
        """Why this source may not start a handshake now; None if it may."""
        known = self._sources.get(source)
        if known is not None and known.bucket.tokens(now) < 1:
            return "handshake budget of the source"
        is_newcomer = known is None or known.first.tokens(now) >= 1
        if self._all.tokens(now) < (1 if is_newcomer else 1 + NEWCOMERS * self._share):
            return "handshake budget"
        return None

    def charge(self, source: str, now: float) -> None:
        """A handshake of this source has started."""
        known = self._sources.pop(source, None) or _Source(self._share)
        for limiter in (self._all, known.bucket, known.first):
            limiter.allow(now)
        self._sources[source] = known
        self._forget(now)

    def used(self, now: float) -> float:
        """The part of the common bucket that is used up, from 0 to 1."""
        return 1 - self._all.tokens(now) / (BURST * self._share)

    def exhausted(self, now: float) -> int:
        """How many sources have used up their own bucket."""
        self._forget(now)
        return sum(known.bucket.tokens(now) < 1 for known in self._sources.values())

    def _forget(self, now: float) -> None:
        """Forget the sources of which nothing has to be known any more."""
        while self._sources:
            source, known = next(iter(self._sources.items()))
            if not known.is_full(now):
                return
            del self._sources[source]
