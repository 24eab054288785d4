"""A small fuzzer: takes samples of what is right, and makes of them what is wrong in ways that parsers dislike."""

import os
import random
import time
from collections.abc import Callable, Iterator, Sequence

INTERESTING = (0, 1, 2, 3, 4, 7, 8, 15, 16, 20, 21, 22, 23, 31, 32, 63, 64, 127, 128, 254, 255)

SECONDS = float(os.environ.get("DTUN_FUZZ_SECONDS", "1"))
"""For which each target is fuzzed."""

SEED = int(os.environ.get("DTUN_FUZZ_SEED", "1"))
"""The same seed makes the same inputs, in the same order."""


class Fuzzer:
    """Endless inputs from a corpus: `numbers` decides everything."""

    def __init__(self, corpus: Sequence[bytes], seed: int = SEED) -> None:
        self.corpus = list(corpus)
        self.numbers = random.Random(seed)

    def __iter__(self) -> Iterator[bytes]:
        """Inputs until the time is up; every sample itself comes first."""
        deadline = time.monotonic() + SECONDS
        yield from self.corpus
        while time.monotonic() < deadline:
            yield self.one()

    def one(self) -> bytes:
        """One input."""
        choice = self.numbers.choice
        data = bytearray(choice(self.corpus))
        for _ in range(choice((1, 1, 2, 3, 6))):
            choice(FAULTS)(self, data)
        return bytes(data)

    def place(self, data: bytearray) -> int:
        # Headers are in front: half of all changes go there.
        end = len(data) if self.numbers.random() < 0.5 else min(len(data), 32)
        return self.numbers.randrange(end + 1)

    def flip(self, data: bytearray) -> None:
        if data:
            data[self.place(data) - 1] ^= 1 << self.numbers.randrange(8)

    def set(self, data: bytearray) -> None:
        if data:
            data[self.place(data) - 1] = self.numbers.choice(INTERESTING)

    def set_word(self, data: bytearray) -> None:
        at = self.place(data)
        length = self.numbers.choice((len(data), len(data) - at, 0, 1, 0x7FFF, 0xFFFF, 0x4000, 0x4001))
        data[at : at + 2] = (max(length, 0) & 0xFFFF).to_bytes(2)

    def cut(self, data: bytearray) -> None:
        del data[self.place(data) :]

    def remove(self, data: bytearray) -> None:
        at = self.place(data)
        del data[at : at + self.numbers.choice((1, 2, 4, 16))]

    def insert(self, data: bytearray) -> None:
        at = self.place(data)
        data[at:at] = self.numbers.randbytes(self.numbers.choice((1, 2, 8, 40)))

    def repeat(self, data: bytearray) -> None:
        at = self.place(data)
        data[at:at] = data[at : at + self.numbers.choice((1, 4, 13, 64))]

    def splice(self, data: bytearray) -> None:
        other = self.numbers.choice(self.corpus)
        data[self.place(data) :] = other[self.numbers.randrange(len(other) + 1) :]

    def append(self, data: bytearray) -> None:
        data += self.numbers.choice(self.corpus)


FAULTS: tuple[Callable[[Fuzzer, bytearray], None], ...] = (
    Fuzzer.flip,
    Fuzzer.flip,
    Fuzzer.set,
    Fuzzer.set,
    Fuzzer.set_word,
    Fuzzer.cut,
    Fuzzer.remove,
    Fuzzer.insert,
    Fuzzer.repeat,
    Fuzzer.splice,
    Fuzzer.append,
)
