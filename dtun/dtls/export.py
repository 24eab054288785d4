"""The keys of a session, read from the state that Mbed TLS 2.28 serialises (`mbedtls_ssl_context_save`).

      0  version of Mbed TLS 3 | session flags 2 | connection flags 3 | length of the session 4
     12  session: start time 8 | suite 2 | compression 1 | session id length 1 | session id 32 |
         master secret 48 | the rest: what certificates and extensions need
    then randoms 64, in the order of the key expansion: server, client
         failed MACs 4 | replay window, highest 8 | replay window, bitmap 8 (bit n: highest - n has come)
         no packing 1 | epoch and sequence of the next record out 8 | MTU 2 | ALPN length 1, name

All numbers are big-endian. The flags say with which options Mbed TLS was compiled, as far as they add fields:

    session     1 start time | 2 certificates | 4 tickets of clients | 8 maximum fragment length | 16 truncated HMAC |
                32 encrypt-then-MAC | 64 tickets | 128 keeps the peer's certificate (not told before 2.28.8)
    connection  1 connection IDs, after the randoms | 2 failed MACs | 4 replay window | 8 ALPN

The layout is private to Mbed TLS, so every constant of it is checked here, and settle.py checks the result
against Mbed TLS itself before a record depends on it.
"""

import hmac
import struct
from dataclasses import dataclass, field
from typing import Final

from dtun.dtls.suites import Suite

# Versions 2.28.0 to 2.28.10, the last one, write the same layout where their flags are the same.
_VERSION: Final = b"\x02\x1c"
# The fields of these come after all that is read of the session, and its length says where they end.
_ANY_SESSION_FLAGS: Final = 0x00FE
_SESSION_FLAGS: Final = 0x0001
_CONNECTION_FLAGS: Final = b"\x00\x00\x0e"
_HEADER: Final = struct.Struct("!2sBH3sI")
_SESSION: Final = struct.Struct("!QHBB32s48s")
_TRANSFORM: Final = struct.Struct("!64sIQQB2sHIHB")
_BITMAP_SIZE: Final = 64
_NO_COMPRESSION: Final = 0
_EPOCH_1: Final = b"\x00\x01"


class ExportError(Exception):
    """The state is not laid out as expected. Holds no secret."""


@dataclass(frozen=True, slots=True)
class SessionKeys:
    """What the record layer of one session needs. (key, IV) of the client's and the server's direction.

    `sequence` is that of the next record to send; `highest` and `missing` are the replay window: the highest
    number received (-1: none) and those below it that may still come.
    """

    suite: Suite
    client: tuple[bytes, bytes] = field(repr=False)
    server: tuple[bytes, bytes] = field(repr=False)
    sequence: int
    highest: int
    missing: frozenset[int]


def parse(state: bytes, suite: Suite) -> SessionKeys:
    """Derive the keys from a serialised context; ExportError if anything in it is not as known."""
    try:
        return _parse(state, suite)
    except struct.error:
        raise ExportError("the state is shorter than its layout") from None


def _parse(state: bytes, suite: Suite) -> SessionKeys:
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
    """Cut the key block (RFC 5246, section 6.3); an AEAD needs no MAC keys."""
    key, iv = suite.key_length, suite.fixed_iv_length
    block = _prf(suite.prf_hash, master_secret, b"key expansion" + randoms, 2 * (key + iv))
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


def _prf(name: str, secret: bytes, seed: bytes, length: int) -> bytes:
    """P_hash of TLS 1.2 (RFC 5246, section 5)."""
    output = b""
    chain = seed
    while len(output) < length:
        chain = hmac.digest(secret, chain, name)
        output += hmac.digest(secret, chain + seed, name)
    return output[:length]
