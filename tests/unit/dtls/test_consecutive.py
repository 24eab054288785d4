"""Headers, nonces and associated data made by the dozen are those that RFC 6347 and the ciphers' RFCs say."""

from hypothesis import given, strategies as st

from dtun.dtls.consecutive import Consecutive, rows
from dtun.protocol.record import sequence_of

EPOCH_1 = 1 << 48
# Around each end of a block of 256, and of a byte more.
starts = st.one_of(st.integers(0, 2**48 - 1000), st.sampled_from((0, 250, 255, 256, 65_530, 2**32 - 3))).map(
    lambda sequence: EPOCH_1 | sequence
)
counts = st.integers(1, 600)
lengths = st.integers(0, 16384)


@given(starts, counts, lengths, st.binary(min_size=12, max_size=12), st.booleans())
def test_many_are_what_one_after_the_other_would_be(
    start: int, count: int, length: int, iv: bytes, explicit: bool
) -> None:
    added = 24 if explicit else 16
    made = Consecutive(iv, explicit=explicit, added=added)
    numbers = range(start, start + count)

    assert made.headers(start, count, length) == [
        b"\x17\xfe\xfd"
        + number.to_bytes(8)
        + (length + added).to_bytes(2)
        + (number.to_bytes(8) if explicit else b"")
        for number in numbers
    ]
    assert made.nonces(start, count) == [(int.from_bytes(iv) ^ number).to_bytes(12) for number in numbers]
    assert made.associated(start, count, length) == [
        number.to_bytes(8) + b"\x17\xfe\xfd" + length.to_bytes(2) for number in numbers
    ]


def test_rows_come_apart_as_they_were_put_together() -> None:
    headers = Consecutive(bytes(12), explicit=False, added=16).headers(EPOCH_1 | 254, 4, 20)
    buffer = memoryview(b"".join(header + bytes([index]) * 36 for index, header in enumerate(headers)))
    apart = list(rows(13 + 36, 13).iter_unpack(buffer))
    assert [header for header, _ in apart] == headers
    assert [rest for _, rest in apart] == [bytes([index]) * 36 for index in range(4)]
    assert [sequence_of(header) for header in headers] == [254, 255, 256, 257]
