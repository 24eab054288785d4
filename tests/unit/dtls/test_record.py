from hypothesis import given, strategies as st

from dtun.protocol.record import (
    APPLICATION_DATA,
    HEADER_SIZE,
    hello_request,
    is_client_hello,
    is_hello_request,
    plaintext_alert,
    sequence_of,
    server_hello_suite,
    split,
)


def record(content_type: int, epoch: int, sequence: int, fragment: bytes) -> bytes:
    return (
        bytes([content_type])
        + b"\xfe\xfd"
        + epoch.to_bytes(2)
        + sequence.to_bytes(6)
        + len(fragment).to_bytes(2)
        + fragment
    )


records = st.builds(
    record,
    st.integers(20, 23),
    st.integers(0, 2**16 - 1),
    st.integers(0, 2**48 - 1),
    st.binary(max_size=40),
)


@given(st.lists(records, max_size=5))
def test_split_takes_apart_what_was_joined(parts: list[bytes]) -> None:
    assert split(b"".join(parts)) == parts


@given(st.lists(records, min_size=1, max_size=3), st.data())
def test_split_cuts_a_truncated_record_and_keeps_those_before_it(
    parts: list[bytes], data: st.DataObject
) -> None:
    missing = data.draw(st.integers(1, len(parts[-1])))
    assert split(b"".join(parts)[:-missing]) == parts[:-1]


@given(st.binary(max_size=100))
def test_any_bytes_can_be_asked_anything(datagram: bytes) -> None:
    whole = b"".join(split(datagram))
    assert datagram.startswith(whole)
    assert sequence_of(datagram) >= -1
    assert server_hello_suite(datagram) is None
    assert not (is_client_hello(datagram) and is_hello_request(datagram))
    plaintext_alert(datagram)


def test_a_record_with_another_version_is_malformed() -> None:
    good = record(APPLICATION_DATA, 1, 5, b"x")
    assert split(good + b"\x17\x03\x03" + good[3:]) == [good]


@given(st.integers(0, 2**48 - 1))
def test_hello_request_is_a_record_of_its_own_kind(sequence: int) -> None:
    hint = hello_request(sequence)
    assert split(hint) == [hint]
    assert is_hello_request(hint)
    assert not is_client_hello(hint)
    assert int.from_bytes(hint[5:11]) == sequence
    assert hint[13:] == bytes(12)  # type 0, length 0, message 0, the whole of nothing


def test_only_a_lone_plaintext_hello_request_is_one() -> None:
    hint = hello_request(7)
    assert not is_hello_request(hint + b"\x00")
    assert not is_hello_request(hint[:-1])
    assert not is_hello_request(hint[:4] + b"\x01" + hint[5:])  # epoch 1


@given(st.integers(0, 2**48 - 1), st.integers(0, 2**16 - 1), st.integers(20, 23))
def test_the_sequence_shows_for_application_data_of_epoch_1(
    sequence: int, epoch: int, content_type: int
) -> None:
    expected = sequence if (epoch, content_type) == (1, APPLICATION_DATA) else -1
    assert sequence_of(record(content_type, epoch, sequence, b"")) == expected
    assert sequence_of(record(APPLICATION_DATA, 1, sequence, b"abc")) == sequence
    assert len(record(APPLICATION_DATA, 1, sequence, b"")) == HEADER_SIZE
