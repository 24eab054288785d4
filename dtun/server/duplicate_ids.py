"""Notices two hosts that share an id by mistake: each login takes the place of the other, again and again. Pure."""

from collections import deque

WINDOW = 300.0
"""Seconds in which returns count: several times the longest back-off of a client."""

RETURNS = 2
"""Returns of an instance that had been replaced (A, B, A, B): no restart and no move of a host looks like that."""


class DuplicateIds:
    """The logins of one identity. An instance is one running client process, which may log in as often as it likes."""

    def __init__(self) -> None:
        self._current: str | None = None
        self._replaced: dict[str, float] = {}
        self._returns: deque[tuple[float, str]] = deque()
        self._endpoint = ""
        self._said = False

    def login(self, instance: str, endpoint: str, now: float) -> bool:
        """Note a login. True when the duplicate has just become evident, and not again before it has calmed down."""
        previous, self._current = self._current, instance
        before, self._endpoint = self._endpoint, endpoint
        if previous is None or previous == instance:
            return False
        if instance in self._replaced:
            self._returns.append((now, before))
        self._replaced[previous] = now
        evident = self.evident(now)
        news = evident and not self._said
        self._said = evident
        return news

    def evident(self, now: float) -> bool:
        """Whether two hosts are replacing each other these minutes."""
        self._replaced = {name: when for name, when in self._replaced.items() if now - when <= WINDOW}
        while self._returns and now - self._returns[0][0] > WINDOW:
            self._returns.popleft()
        return len(self._returns) >= RETURNS

    def describe(self) -> str:
        """Who they are, for a person."""
        endpoints = sorted({self._endpoint, *(endpoint for _, endpoint in self._returns)})
        return "two hosts use this id and keep replacing each other: " + ", ".join(endpoints[:4])
