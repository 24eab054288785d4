"""The cipher suites of dtun: PSK and ECDHE-PSK with an AEAD, in Mbed TLS 2.28 and in `cryptography`.

Sources: RFC 5487 (PSK with GCM), RFC 6655 (PSK with CCM), RFC 7905 (ChaCha20-Poly1305).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Final, Protocol

from cryptography.hazmat.primitives.ciphers.aead import AESCCM, AESGCM, ChaCha20Poly1305

from dtun.protocol.record import HEADER_SIZE


class Aead(Protocol):
    """The common interface of the AEAD classes of `cryptography`."""

    def encrypt(self, nonce: bytes, data: bytes, associated_data: bytes | None, /) -> bytes: ...

    def decrypt(self, nonce: bytes, data: bytes | memoryview, associated_data: bytes | None, /) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Suite:
    """One cipher suite. Lengths in bytes.

    `seal_limit` and `forgery_limit` are numbers of records under one key: those sealed, and those that failed
    authentication (RFC 9147, section 4.5.3). A session must be replaced before it reaches either.
    """

    name: str
    code: int
    key_length: int
    fixed_iv_length: int
    explicit_nonce_length: int
    tag_length: int
    prf_hash: str
    seal_limit: int
    forgery_limit: int
    forward_secrecy: bool
    aead: Callable[[bytes], Aead] = field(repr=False)

    @property
    def label(self) -> str:
        """The short name: ECDHE-PSK-CHACHA20-POLY1305."""
        return (
            self.name.removeprefix("TLS-")
            .replace("-WITH", "")
            .removesuffix("-SHA256")
            .removesuffix("-SHA384")
        )

    @property
    def overhead(self) -> int:
        """Bytes that a record adds to its plaintext."""
        return HEADER_SIZE + self.explicit_nonce_length + self.tag_length


# ChaCha20-Poly1305 has no limit below the end of the sequence numbers; this is far below it.
_CHACHA_SEALS: Final = 2**47
_GCM_SEALS: Final = int(2**24.5)
_CCM_SEALS: Final = 2**23
_FORGERIES: Final = 2**36
# RFC 9147 gives 2^7 for the short tag of CCM-8. Anyone who knows a session's addresses could reach that with 128
# packets and so end the session, and a Go dtun cannot be asked for a new one. At the limit of full CCM the chance that
# one forgery was accepted is 2^-40.5, which is acceptable for the legacy suite.
_CCM_FORGERIES: Final = int(2**23.5)


def _chacha(name: str, code: int, *, forward_secrecy: bool) -> Suite:
    return Suite(
        name,
        code,
        key_length=32,
        fixed_iv_length=12,
        explicit_nonce_length=0,
        tag_length=16,
        prf_hash="sha256",
        seal_limit=_CHACHA_SEALS,
        forgery_limit=_FORGERIES,
        forward_secrecy=forward_secrecy,
        aead=ChaCha20Poly1305,
    )


def _gcm(name: str, code: int, key_length: int, prf_hash: str) -> Suite:
    return Suite(
        name,
        code,
        key_length=key_length,
        fixed_iv_length=4,
        explicit_nonce_length=8,
        tag_length=16,
        prf_hash=prf_hash,
        seal_limit=_GCM_SEALS,
        forgery_limit=_FORGERIES,
        forward_secrecy=False,
        aead=AESGCM,
    )


def _ccm(name: str, code: int, key_length: int, tag_length: int) -> Suite:
    return Suite(
        name,
        code,
        key_length=key_length,
        fixed_iv_length=4,
        explicit_nonce_length=8,
        tag_length=tag_length,
        prf_hash="sha256",
        seal_limit=_CCM_SEALS,
        forgery_limit=_CCM_FORGERIES,
        forward_secrecy=False,
        aead=partial(AESCCM, tag_length=tag_length),
    )


ECDHE_PSK_CHACHA20_POLY1305: Final = _chacha(
    "TLS-ECDHE-PSK-WITH-CHACHA20-POLY1305-SHA256", 0xCCAC, forward_secrecy=True
)
PSK_CHACHA20_POLY1305: Final = _chacha("TLS-PSK-WITH-CHACHA20-POLY1305-SHA256", 0xCCAB, forward_secrecy=False)
PSK_AES_128_GCM: Final = _gcm("TLS-PSK-WITH-AES-128-GCM-SHA256", 0x00A8, 16, "sha256")
PSK_AES_256_GCM: Final = _gcm("TLS-PSK-WITH-AES-256-GCM-SHA384", 0x00A9, 32, "sha384")
PSK_AES_128_CCM: Final = _ccm("TLS-PSK-WITH-AES-128-CCM", 0xC0A4, 16, 16)
PSK_AES_256_CCM: Final = _ccm("TLS-PSK-WITH-AES-256-CCM", 0xC0A5, 32, 16)
PSK_AES_128_CCM_8: Final = _ccm("TLS-PSK-WITH-AES-128-CCM-8", 0xC0A8, 16, 8)
PSK_AES_256_CCM_8: Final = _ccm("TLS-PSK-WITH-AES-256-CCM-8", 0xC0A9, 32, 8)

ALL_SUITES: Final = (
    ECDHE_PSK_CHACHA20_POLY1305,
    PSK_CHACHA20_POLY1305,
    PSK_AES_128_GCM,
    PSK_AES_256_GCM,
    PSK_AES_128_CCM,
    PSK_AES_256_CCM,
    PSK_AES_128_CCM_8,
    PSK_AES_256_CCM_8,
)
DEFAULT_SUITES: Final = (ECDHE_PSK_CHACHA20_POLY1305,)
# The one suite of the original Go dtun.
LEGACY_SUITE: Final = PSK_AES_128_CCM_8

_BY_NAME: Final = {name: suite for suite in ALL_SUITES for name in (suite.name, suite.label)}
_BY_CODE: Final = {suite.code: suite for suite in ALL_SUITES}


def by_name(name: str) -> Suite:
    """The suite with this label or Mbed TLS name.

    Raises:
        KeyError: there is none.
    """
    return _BY_NAME[name]


def by_code(code: int) -> Suite | None:
    """The suite with that IANA code, or None."""
    return _BY_CODE.get(code)
