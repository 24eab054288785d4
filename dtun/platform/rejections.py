"""What the kernel refuses of one part's desired state: logged once, and shown for as long as it is so."""

import logging
from collections import Counter

from dtun.network.difference import describe
from dtun.platform.desired import Refused

log = logging.getLogger("dtun.server")


class Rejections:
    """What the kernel refuses of `what`, as lines for a person: one for each reason."""

    def __init__(self, what: str) -> None:
        self._what = what
        self.lines: list[str] = []

    def replace(self, refused: Refused) -> None:
        """This is all that is refused now. What was not known yet is logged."""
        known, self.lines = self.lines, _lines(refused)
        for line in self.lines:
            if line not in known:
                log.warning("%s: %s", self._what, line)


def _lines(refused: Refused) -> list[str]:
    kinds = Counter((type(thing), reason) for thing, reason in refused)
    examples = {(type(thing), reason): thing for thing, reason in reversed(refused)}
    return [
        f"{describe(examples[kind])}: {kind[1]}" + (f" (and {count - 1} more)" if count > 1 else "")
        for kind, count in kinds.items()
    ]
