"""Detects two hosts that share an id by mistake: each login replaces the other's session, again and again. Pure."""

from collections import deque

WINDOW = 300.0
"""Seconds for which a return counts: several times the longest back-off of a client."""

RETURNS = 2
"""Returns of a replaced instance (A, B, A, B) that are evidence: neither a restart nor a move of a host causes them."""


class DuplicateIds:
    """The logins of one identity. An instance is one running client process, which may log in as often as it likes."""

    def __init__(self) -> None:
        self._current: str | None = None
        self._replaced: dict[str, float] = {}
        self._returns: deque[tuple[float, str]] = deque()
        self._endpoint = ""
        self._reported = False

    def login(self, instance: str, endpoint: str, now: float) -> bool:
        """Note a login. True if it makes the duplicate evident, and not again as long as that lasts."""
        previous, self._current = self._current, instance
        before, self._endpoint = self._endpoint, endpoint
        if previous is None or previous == instance:
            return False
        if instance in self._replaced:
            self._returns.append((now, before))
        self._replaced[previous] = now
        evident = self.evident(now)
        news = evident and not self._reported
        self._reported = evident
        return news

    def evident(self, now: float) -> bool:
        """Whether two hosts have replaced each other within WINDOW."""
        self._replaced = {name: when for name, when in self._replaced.items() if now - when <= WINDOW}
        while self._returns and now - self._returns[0][0] > WINDOW:
            self._returns.popleft()
        return len(self._returns) >= RETURNS

    def describe(self) -> str:
        """The problem with the addresses of the hosts, for a person."""
        endpoints = sorted({self._endpoint, *(endpoint for _, endpoint in self._returns)})
        return "two hosts use this id and keep replacing each other: " + ", ".join(endpoints[:4])
