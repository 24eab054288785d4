"""Key takeover: the keys of a session leave Mbed TLS, and its records go on in our record layer.

The keys are read from the state that Mbed TLS 2.28 serialises (`mbedtls_ssl_context_save`):

      0  version of Mbed TLS 3 | session flags 2 | connection flags 3 | length of the session 4
     12  session: start time 8 | suite 2 | compression 1 | session id length 1 | session id 32 |
         master secret 48 | the rest: for certificates and extensions
    then randoms 64, in the order of the key expansion: server, client
         failed MACs 4 | replay window, highest 8 | replay window, bitmap 8 (bit n: highest - n was received)
         no packing 1 | epoch and sequence of the next record out 8 | MTU 2 | ALPN length 1, name

All numbers are big-endian. The flags are the compile-time options of Mbed TLS that add fields:

    session     1 start time | 2 certificates | 4 tickets of clients | 8 maximum fragment length | 16 truncated HMAC |
                32 encrypt-then-MAC | 64 tickets | 128 keeps the peer's certificate (not set before 2.28.8)
    connection  1 connection IDs, after the randoms | 2 failed MACs | 4 replay window | 8 ALPN

The layout is private to Mbed TLS. So every constant in it is checked, and before a session depends on the keys, a spare
copy of the session seals a probe that they must open, and opens a probe that they sealed. The probes are never sent. If
anything differs, the session is restored into Mbed TLS and stays there: slow but correct.
"""

import hmac
import struct
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from dtun.dtls.mbed_records import MbedRecords
from dtun.dtls.records import AeadRecords, SessionKeys
from dtun.dtls.status import ExportError
from dtun.dtls.suites import Suite
from dtun.protocol.record import MAX_SEQUENCE

if TYPE_CHECKING:
    from dtun.dtls.mbed import MbedBuffer
    from dtun.dtls.records import Records

_PROBE: Final = b"dtun: do both record layers agree?"

# Versions 2.28.0 to 2.28.10, the last one, have the same layout if their flags are the same.
_VERSION: Final = b"\x02\x1c"
# The fields of these come after everything that is read of the session; its length tells where they end.
_ANY_SESSION_FLAGS: Final = 0x00FE
_SESSION_FLAGS: Final = 0x0001
_CONNECTION_FLAGS: Final = b"\x00\x00\x0e"
_HEADER: Final = struct.Struct("!2sBH3sI")
_SESSION: Final = struct.Struct("!QHBB32s48s")
_TRANSFORM: Final = struct.Struct("!64sIQQB2sHIHB")
_BITMAP_SIZE: Final = 64
_NO_COMPRESSION: Final = 0
_EPOCH_1: Final = b"\x00\x01"


def take_over_keys(buffer: "MbedBuffer", suite: Suite, *, server: bool) -> "tuple[Records, str] | None":
    """The final records of a session, and why they stay in Mbed TLS ("" if they do not).

    None if it is too early: `buffer` can still be used. Otherwise it cannot.

    Raises:
        ExportError: Mbed TLS refuses even its own state; the session is lost.
    """
    state = buffer.export()
    if state is None:
        return None
    try:
        keys = read_keys(state["connection"], suite)
        _verify(keys, buffer.restored(state), server=server)
    except ExportError as error:
        return MbedRecords(buffer.restored(state), suite), str(error)
    # The probe used one sequence number. It is not used again, although the probe was never sent.
    return AeadRecords(replace(keys, sequence=keys.sequence + 1), server=server), ""


def _verify(keys: SessionKeys, spare: "MbedBuffer", *, server: bool) -> None:
    """Exchange a probe with the copy in both directions, as its peer would.

    Raises:
        ExportError: the keys and Mbed TLS do not agree.
    """
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


def read_keys(state: bytes, suite: Suite) -> SessionKeys:
    """Derive the keys from a serialised context.

    Raises:
        ExportError: it is not laid out as expected.
    """
    try:
        return _read_keys(state, suite)
    except struct.error:
        raise ExportError("the state is shorter than its layout") from None


def _read_keys(state: bytes, suite: Suite) -> SessionKeys:
    version, _patch, session_flags, connection_flags, session_length = _HEADER.unpack_from(state)
    if version != _VERSION:
        raise ExportError(f"Mbed TLS {version[0]}.{version[1]} where 2.28 is known")
    if session_flags & ~_ANY_SESSION_FLAGS != _SESSION_FLAGS or connection_flags != _CONNECTION_FLAGS:
        raise ExportError(f"Mbed TLS is configured as {session_flags:04x} {connection_flags.hex()}")
    if session_length < _SESSION.size:
        raise ExportError(f"a session of {session_length} bytes")
    _, code, compression, _, _, master_secret = _SESSION.unpack_from(state, _HEADER.size)
    if code != suite.code or compression != _NO_COMPRESSION:
        raise ExportError(f"cipher suite {code:#06x} with compression {compression}")
    transform = _HEADER.size + session_length
    randoms, _, top, bitmap, _, epoch, high, low, _, alpn_length = _TRANSFORM.unpack_from(state, transform)
    if epoch != _EPOCH_1:
        raise ExportError(f"epoch {int.from_bytes(epoch)}")
    if len(state) != transform + _TRANSFORM.size + alpn_length:
        raise ExportError(f"{len(state)} bytes of state")
    return _expand(suite, master_secret, randoms, sequence=high << 32 | low, window=(top, bitmap))


def _expand(
    suite: Suite, master_secret: bytes, randoms: bytes, *, sequence: int, window: tuple[int, int]
) -> SessionKeys:
    """Derive and split the key block (RFC 5246, section 6.3); an AEAD has no MAC keys."""
    key, iv = suite.key_length, suite.fixed_iv_length
    block = prf(suite.prf_hash, master_secret, b"key expansion" + randoms, 2 * (key + iv))
    top, bitmap = window
    return SessionKeys(
        suite=suite,
        client=(block[:key], block[2 * key : 2 * key + iv]),
        server=(block[key : 2 * key], block[2 * key + iv :]),
        sequence=sequence,
        highest=top if bitmap & 1 else -1,
        missing=frozenset(
            top - age for age in range(1, _BITMAP_SIZE) if top >= age and not bitmap >> age & 1
        ),
    )


def prf(name: str, secret: bytes, seed: bytes, length: int) -> bytes:
    """P_hash of TLS 1.2 (RFC 5246, section 5)."""
    output = b""
    chain = seed
    while len(output) < length:
        chain = hmac.digest(secret, chain, name)
        output += hmac.digest(secret, chain + seed, name)
    return output[:length]
