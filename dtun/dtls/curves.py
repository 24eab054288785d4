"""Limits Mbed TLS to the elliptic curves that are cheap for a server: X25519, then P-256. Why: docs/decisions/0009.

Mbed TLS 2.28 prefers the largest curve that both ends have. A key of P-521 takes 3 times as long as one of X25519, one
of brainpoolP512r1 17 times, and a client chooses which it offers. python-mbedtls has no setting for that. But every
configuration refers to the one list that `mbedtls_ecp_grp_id_list` returns, which the library fills in at its first
use, in writable memory (ecp.c: `static mbedtls_ecp_group_id ecp_supported_grp_id[]`, terminated by 0).
"""

import ctypes
from typing import Final

# mbedtls_ecp_group_id (ecp.h); an enum of known values is an int in C.
_X25519: Final = 9
_P_256: Final = 3
_CHEAP: Final = (_X25519, _P_256)
_HIGHEST: Final = 13


def limit_curves(library: str) -> bool:
    """Leave only the cheap curves, for the Mbed TLS 2.28 that this library (a path) is linked to.

    Call it before handshakes are made. False if that is not possible; then nothing is changed.
    """
    try:
        find = ctypes.CDLL(library).mbedtls_ecp_grp_id_list
    except (OSError, AttributeError):
        return False
    find.argtypes = ()
    find.restype = ctypes.POINTER(ctypes.c_int)
    curves = find()
    if not curves:
        return False
    known: list[int] = []
    while len(known) <= _HIGHEST and curves[len(known)]:
        known.append(curves[len(known)])
    is_as_expected = len(set(known)) == len(known) and all(0 < curve <= _HIGHEST for curve in known)
    if not is_as_expected or not set(_CHEAP) <= set(known):
        return False
    for index, curve in enumerate((*_CHEAP, 0)):
        curves[index] = curve
    return True
