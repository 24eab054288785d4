"""What is sent to a peer's new address before it has answered from there."""

from hypothesis import given, strategies as st

from dtun.protocol.frames import Echo, Probe, decode
from dtun.session.new_address import FACTOR, RECORDS_OF_GO, SMALLEST_RECORD, NewAddress


def token_of(frame: bytes | None) -> int:
    probe = decode(frame or b"")
    assert isinstance(probe, Probe)
    return probe.token


@given(st.integers(0, 2000), st.lists(st.tuples(st.integers(1, 1500), st.booleans()), max_size=60))
def test_at_most_three_times_what_came_is_sent(received: int, sends: list[tuple[int, bool]]) -> None:
    address = NewAddress.after(received, highest=5, native=True, now=0.0)
    came, sent, highest = received, 0, 5
    for size, hears in sends:
        if hears:
            highest += 1_000_000  # a leap is one record, too
            came += SMALLEST_RECORD
            address.heard(highest)
        sent += size * address.may_send(size)
        assert sent <= FACTOR * came


def test_the_echo_of_the_probe_proves_it_and_no_other() -> None:
    address = NewAddress.after(100, highest=5, native=True, now=0.0)
    token = token_of(address.poll(0.0))
    assert not address.answered(Echo(token + 1).encode())
    assert not address.answered(Echo(token).encode() + b"x")
    assert not address.may_send(1400)
    assert address.answered(Echo(token).encode())
    assert address.may_send(1400)
    assert address.poll(100.0) is None


def test_each_move_has_a_token_of_its_own() -> None:
    tokens = {token_of(NewAddress.after(1, highest=5, native=True, now=0.0).poll(0.0)) for _ in range(20)}
    assert len(tokens) == 20


def test_a_lost_probe_is_sent_again_ever_more_slowly() -> None:
    address, now, gaps = NewAddress.after(1, highest=5, native=True, now=0.0), 0.0, []
    for _ in range(6):
        assert address.poll(now) is not None
        gaps.append(address.probe_at - now)
        now = address.probe_at
    assert gaps[0] == 0.3
    assert gaps == sorted(gaps)
    assert gaps[-1] == 2.0


def test_a_go_dtun_proves_it_with_newer_records() -> None:
    address = NewAddress.after(100, highest=5, native=False, now=0.0)
    assert address.poll(0.0) is None
    for number in range(RECORDS_OF_GO):
        assert not address.proven
        address.heard(6 + number)
        address.heard(6 + number)
    assert address.proven
