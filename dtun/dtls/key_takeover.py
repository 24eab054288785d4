"""From Mbed TLS to the offloaded record layer, with proof that both agree.

The layout that export.py reads is private to Mbed TLS. So before a session depends on it, a spare copy of the
session seals a probe that the derived keys must open, and opens one that they sealed. The probes are never sent.
Where anything differs, the session goes back into Mbed TLS and stays there: slow and right.
"""

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from dtun import tuning
from dtun.dtls import export
from dtun.dtls.export import ExportError, SessionKeys
from dtun.dtls.mbed_records import MbedRecords
from dtun.dtls.records import AeadRecords
from dtun.dtls.suites import Suite
from dtun.protocol.record import MAX_SEQUENCE

if TYPE_CHECKING:
    from dtun.dtls.mbed import MbedBuffer
    from dtun.dtls.records import Records

_PROBE: Final = b"dtun: do both record layers agree?"


def settle(buffer: "MbedBuffer", suite: Suite, *, server: bool) -> "tuple[Records, str] | None":
    """The final records of a session, and why they are not offloaded ("" if they are).

    None if it is too early: then `buffer` goes on as it is. Otherwise `buffer` is used up.
    ExportError if Mbed TLS does not even take its own state back; then the session is lost.
    """
    state = buffer.export()
    if state is None:
        return None
    if not tuning.RECORD_OFFLOAD:
        return MbedRecords(buffer.restored(state), suite), "turned off"
    try:
        keys = export.parse(state["connection"], suite)
        _verify(keys, buffer.restored(state), server=server)
    except ExportError as error:
        return MbedRecords(buffer.restored(state), suite), str(error)
    # The probe has used one number. Its nonce is not used again, although nobody saw the probe.
    return AeadRecords(replace(keys, sequence=keys.sequence + 1), server=server), ""


def _verify(keys: SessionKeys, spare: "MbedBuffer", *, server: bool) -> None:
    """Talk to the copy as its peer would, in both directions. ExportError if it does not understand."""
    # The peer's own numbers never come near the end, so this nonce is not used again either.
    peer = AeadRecords(
        replace(keys, sequence=MAX_SEQUENCE, highest=-1, missing=frozenset()), server=not server
    )
    record = spare.write(_PROBE)
    if tuple(peer.open(record)) != (_PROBE,):
        raise ExportError("the derived keys do not open a record of Mbed TLS")
    if peer.highest != keys.sequence:
        raise ExportError("the sequence number in the state is not the next one")
    spare.feed(peer.seal(_PROBE))
    if spare.read() != [_PROBE]:
        raise ExportError("Mbed TLS does not open a record of the derived keys")
