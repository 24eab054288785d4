"""Handshakes use cheap curves only, whatever a client offers."""

import subprocess
import sys
from pathlib import Path

import pytest

from dtun.dtls import curves, mbed
from tests.unit.dtls.wire import PATH, Wire

# ServerKeyExchange (RFC 8422, section 5.4; RFC 5489, section 2): hint length 2, 3 for a named curve, curve 2.
X25519, P_256 = 29, 23

HANDSHAKE = """
import sys
from mbedtls import _tls, tls
if sys.argv[1] != "all":
    import ctypes
    ids = ctypes.CDLL(_tls.__file__).mbedtls_ecp_grp_id_list
    ids.restype = ctypes.POINTER(ctypes.c_int)
    for index, curve in enumerate([*map(int, sys.argv[1].split()), 0]):
        ids()[index] = curve
config = tls.DTLSConfiguration(pre_shared_key=("demo", bytes(32)), validate_certificates=False,
    ciphers=("TLS-ECDHE-PSK-WITH-CHACHA20-POLY1305-SHA256",))
client = tls.ClientContext(config).wrap_buffers(None)
client.setmtu(1200)
while True:
    out = bytes(client.peek_outgoing(1 << 15))
    client.consume_outgoing(len(out))
    if out:
        print(out.hex(), flush=True)
    try:
        client.do_handshake()
    except tls.WantWriteError:
        continue
    except tls.WantReadError:
        out = bytes(client.peek_outgoing(1 << 15))
        client.consume_outgoing(len(out))
        if out:
            print(out.hex(), flush=True)
        line = sys.stdin.readline()
        if not line:
            break
        client.receive_from_network(bytes.fromhex(line))
"""
"""A client of Mbed TLS with other curves, in a process of its own: the list is the process's."""


def flight_for(offered: str, wire: Wire) -> tuple[bytes, dict[str, int]]:
    """What a server answers to a hello with a cookie that offers these curves, and its drops."""
    listener = wire.listener
    with subprocess.Popen(
        [sys.executable, "-c", HANDSHAKE, offered], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as client:
        assert client.stdin is not None
        assert client.stdout is not None
        listener.receive(bytes.fromhex(client.stdout.readline()), PATH, 0.0)
        ((cookie, _),) = listener.take_outgoing()
        client.stdin.write(cookie.hex() + "\n")
        client.stdin.flush()
        listener.receive(bytes.fromhex(client.stdout.readline()), PATH, 0.0)
    return b"".join(datagram for datagram, _ in listener.take_outgoing()), dict(listener.drops)


# Mbed TLS reads eleven of the curves that are offered: of "all", which dtun 0.1.0 offers, X25519 is the twelfth.
@pytest.mark.parametrize(("offered", "curve"), [("all", P_256), ("5 3", P_256), ("8 9", X25519)])
def test_the_server_takes_the_cheap_one(offered: str, curve: int, wire: Wire) -> None:
    answer, _ = flight_for(offered, wire)
    assert b"\x00\x00\x03" + curve.to_bytes(2) in answer


@pytest.mark.parametrize("offered", ["8", "5 4"])
def test_a_client_without_a_cheap_one_is_refused_before_any_key_is_made(offered: str, wire: Wire) -> None:
    answer, drops = flight_for(offered, wire)
    assert drops == {"refused": 1}
    assert answer == b""


def test_another_library_is_left_alone(tmp_path: Path) -> None:
    assert mbed.CHEAP_CURVES
    assert not curves.limit_curves(str(tmp_path / "missing.so"))
    assert not curves.limit_curves("libc.so.6")
