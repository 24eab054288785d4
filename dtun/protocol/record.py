"""The DTLS 1.2 record header (RFC 6347, section 4.1), and the readable parts of plaintext handshake records.

     0      1        3        5              11       13
    +------+--------+--------+--------------+--------+----------------------+
    | type | version| epoch  | sequence     | length | fragment             |
    | 1    | 2      | 2      | 6            | 2      | `length` bytes       |
    +------+--------+--------+--------------+--------+----------------------+

A handshake record of epoch 0 carries messages in plaintext (RFC 6347, section 4.2.2):

     13         14       17            19                23                25
    +----------+--------+-------------+-----------------+-----------------+------+
    | msg type | length | message seq | fragment offset | fragment length | body |
    | 1        | 3      | 2           | 3               | 3               |      |
    +----------+--------+-------------+-----------------+-----------------+------+

Both ClientHello and ServerHello begin with version 2, random 32, session id 1 + n; in a ServerHello the chosen cipher
suite 2 follows, in a ClientHello the cookie 1 + n.
"""

import struct
from typing import Final

CHANGE_CIPHER_SPEC: Final = 20
ALERT: Final = 21
HANDSHAKE: Final = 22
APPLICATION_DATA: Final = 23

HEADER_SIZE: Final = 13
# The largest plaintext of one record (RFC 5246, section 6.2.1).
MAX_PLAINTEXT: Final = 16384
MAX_SEQUENCE: Final = 2**48 - 1
RANDOM_SIZE: Final = 32

HELLO_REQUEST: Final = 0
CLIENT_HELLO: Final = 1
SERVER_HELLO: Final = 2

_HEADER: Final = struct.Struct("!BHHHIH")  # type, version, epoch, sequence (high 16, low 32), length
_HANDSHAKE_HEADER_SIZE: Final = 12
_HELLO_BODY: Final = HEADER_SIZE + _HANDSHAKE_HEADER_SIZE
_RANDOM: Final = _HELLO_BODY + 2
_SESSION_ID: Final = _RANDOM + RANDOM_SIZE
_DTLS_1_2: Final = 0xFEFD
_DTLS_MAJOR: Final = 0xFE
# OpenSSL sends its first ClientHello as DTLS 1.0, so both are valid before a version is agreed.
_VERSIONS: Final = (b"\xfe\xff", b"\xfe\xfd")
_PLAINTEXT_EPOCH: Final = b"\x00\x00"
_APPLICATION_EPOCH_1: Final = b"\x17\xfe\xfd\x00\x01"


def split(datagram: bytes) -> list[bytes]:
    """The whole records of a datagram, in order.

    Stops at the first malformed byte (RFC 6347, section 4.1.2.7: silently dropped). If something was left out, the
    sum of the lengths is less than the length of the datagram.
    """
    records = []
    start = 0
    while len(datagram) - start >= HEADER_SIZE:
        content_type, version, _, _, _, length = _HEADER.unpack_from(datagram, start)
        end = start + HEADER_SIZE + length
        if (
            end > len(datagram)
            or version >> 8 != _DTLS_MAJOR
            or not CHANGE_CIPHER_SPEC <= content_type <= APPLICATION_DATA
        ):
            break
        records.append(datagram[start:end])
        start = end
    return records


def sequence_of(datagram: bytes) -> int:
    """The sequence number of the first record if that is application data of epoch 1, else -1.

    It is not authenticated: use it only to choose which keys to try.
    """
    if len(datagram) < HEADER_SIZE or datagram[:5] != _APPLICATION_EPOCH_1:
        return -1
    return int.from_bytes(datagram[5:11])


def is_client_hello(datagram: bytes) -> bool:
    """Whether a datagram starts with a whole, unfragmented, plaintext ClientHello that has a random."""
    return _is_handshake(datagram, CLIENT_HELLO) and len(datagram) > _SESSION_ID


def client_random(datagram: bytes) -> bytes:
    """The 32 bytes that identify one handshake of a client; only if `is_client_hello`."""
    return datagram[_RANDOM:_SESSION_ID]


def has_cookie(hello: bytes) -> bool:
    """Whether a ClientHello brings a cookie, valid or not: it is behind the session id. Only if `is_client_hello`."""
    cookie = _SESSION_ID + 1 + hello[_SESSION_ID]
    return hello[cookie : cookie + 1] not in (b"", b"\x00")


def server_hello_suite(record: bytes) -> int | None:
    """The IANA code of the cipher suite that a plaintext ServerHello chose; None for any other record."""
    if not _is_handshake(record, SERVER_HELLO) or len(record) <= _SESSION_ID:
        return None
    suite = _SESSION_ID + 1 + record[_SESSION_ID]
    if len(record) < suite + 2:
        return None
    return int.from_bytes(record[suite : suite + 2])


def plaintext_alert(record: bytes) -> tuple[int, int] | None:
    """Level and description (RFC 5246, section 7.2) of an alert of epoch 0; None for any other record.

    It is not authenticated.
    """
    if len(record) != HEADER_SIZE + 2 or record[0] != ALERT or record[3:5] != _PLAINTEXT_EPOCH:
        return None
    return record[13], record[14]


def hello_request(sequence: int) -> bytes:
    """A plaintext HelloRequest (RFC 5246, section 7.4.1.1), which asks the peer for a new handshake. Keeps no state.

    `sequence` is that of the record, 48 bits. The message is not authenticated, so it is only a hint for the peer.
    """
    body = bytes([HELLO_REQUEST]) + bytes(_HANDSHAKE_HEADER_SIZE - 1)
    header = _HEADER.pack(HANDSHAKE, _DTLS_1_2, 0, sequence >> 32, sequence & 0xFFFFFFFF, len(body))
    return header + body


def is_hello_request(datagram: bytes) -> bool:
    """Whether a datagram is a plaintext HelloRequest and nothing else."""
    return len(datagram) == _HELLO_BODY and _is_handshake(datagram, HELLO_REQUEST)


def _is_handshake(datagram: bytes, message_type: int) -> bool:
    """Whether the first record is whole, of epoch 0, and starts with a whole message of that type."""
    if (
        len(datagram) < _HELLO_BODY
        or datagram[0] != HANDSHAKE
        or datagram[1:3] not in _VERSIONS
        or datagram[3:5] != _PLAINTEXT_EPOCH
        or datagram[HEADER_SIZE] != message_type
    ):
        return False
    record_length = int.from_bytes(datagram[11:13])
    message_length = datagram[14:17]
    return (
        HEADER_SIZE + record_length <= len(datagram)
        and datagram[19:22] == b"\x00\x00\x00"
        and datagram[22:25] == message_length
        and _HANDSHAKE_HEADER_SIZE + int.from_bytes(message_length) <= record_length
    )
