"""What the rules of the server and of the client share."""

from collections import Counter
from collections.abc import Iterable, Iterator

from dtun.config.errors import Location, Problem


def repeated(where: Location, values: Iterable[object]) -> Iterator[Problem]:
    seen: Counter[object] = Counter()
    for index, value in enumerate(values):
        seen[value] += 1
        if seen[value] == 2:
            yield Problem((*where, index), f"{value} is there twice; remove one")
