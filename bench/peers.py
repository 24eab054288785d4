"""The tunnels that are measured: how each is started at both ends.

Every peer gets the same two hosts and the same addresses outside; inside, both ends have theirs from
`SERVER` and `CLIENT`. A peer says how one end is started, `Tunnel` waits until the server is there.
"""

# Runs fixed commands as root:
# ruff: noqa: S603

import base64
import compileall
import json
import os
import shutil
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from demo.lab import DemoError, Lab
from dtun.dtls.suites import DEFAULT_SUITES

ROOT = Path(__file__).resolve().parent.parent
PORT = 5000
COMMAND_TIMEOUT = 60
# The default of WireGuard; it fits into an Ethernet frame with each of these tunnels.
MTU = 1420


class End(NamedTuple):
    """One of the two hosts: its name, its address on the cable, and its address inside the tunnel."""

    name: str
    outside: str
    inside: str


SERVER = End("server", "192.0.2.1", "10.99.0.1")
CLIENT = End("client", "192.0.2.2", "10.99.0.2")
ENDS = (SERVER, CLIENT)
CABLE = "eth0"
# The identity of another client of dtun.
NEWCOMER = "newcomer"


def other(end: End) -> End:
    return CLIENT if end is SERVER else SERVER


class Peer(ABC):
    """A tunnel (or none) between the two hosts. Started again, in a new lab, in each round."""

    # The commands that it needs, and the Debian packages that they come from.
    needs: ClassVar[Mapping[str, str]] = {}
    # Where the server answers.
    target = SERVER.inside
    # Its program, and the command that prints the version; empty if there is none.
    program = ""
    version_command: Sequence[str] = ()

    def __init__(self, name: str, about: str) -> None:
        self.name = name
        self.about = about

    def missing(self) -> list[str]:
        """The Debian packages that would have to be installed first."""
        return sorted({package for command, package in self.needs.items() if not shutil.which(command)})

    def prepare(self, directory: Path) -> None:  # noqa: B027 - few have something to do
        """Prepare, once before the first round; `directory` exists until after the last round."""

    @abstractmethod
    def start(self, lab: Lab, end: End) -> None:
        """Start this end, in a lab whose hosts are joined by a cable."""

    def newcomer(self, count: int) -> Sequence[str]:  # noqa: ARG002 - see Dtun
        """A command for the client's host that logs in another client so often, and prints the times as JSON.

        Empty where there is none.
        """
        return ()

    def start_server(self, lab: Lab) -> None:
        """Start the server's end and wait until it is listening."""
        self.start(lab, SERVER)
        lab.wait(f"the server of {self.name} listens", lambda: self.listens(lab))

    def listens(self, lab: Lab) -> bool:
        return lab.run(SERVER.name, "ss", "-Hlun", f"sport = :{PORT}") != ""


class NoTunnel(Peer):
    """The cable itself."""

    target = SERVER.outside

    def start(self, lab: Lab, end: End) -> None:
        """Nothing to start: the cable is there."""

    def listens(self, lab: Lab) -> bool:
        del lab
        return True


class Forwarder(Peer):
    """forwarder.c."""

    needs: ClassVar = {"gcc": "gcc"}

    def prepare(self, directory: Path) -> None:
        self._program = compile_c("forwarder", directory)

    def start(self, lab: Lab, end: End) -> None:
        lab.run(end.name, "ip", "tuntap", "add", "dev", "tun0", "mode", "tun")
        address(lab, end, "tun0")
        addresses = (end.outside, other(end).outside)
        lab.start(end.name, f"forwarder {end.name}", str(self._program), "tun0", *addresses, str(PORT))

    def listens(self, lab: Lab) -> bool:
        # Its socket is connected, so to `ss` it is not one that listens.
        return lab.run(SERVER.name, "ss", "-Haun", f"sport = :{PORT}") != ""


class OpenVPN(Peer):
    """OpenVPN between two ends (p2p), each knowing the other's certificate by its fingerprint."""

    needs: ClassVar = {"openvpn": "openvpn", "openssl": "openssl"}
    program = "openvpn"
    version_command = ("openvpn", "--version")

    def prepare(self, directory: Path) -> None:
        self._directory = directory
        self._fingerprints = {end: self._make_certificate(end) for end in ENDS}

    def _make_certificate(self, end: End) -> str:
        key, certificate = self._file(end, "key"), self._file(end, "crt")
        curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
        names = ("-subj", f"/CN={end.name}", "-days", "2", "-keyout", key, "-out", certificate)
        output("openssl", "req", "-x509", *curve, *names)
        shown = output("openssl", "x509", "-in", certificate, "-noout", "-fingerprint", "-sha256")
        return shown.partition("=")[2].strip()

    def _file(self, end: End, kind: str) -> str:
        return str(self._directory / f"openvpn-{end.name}.{kind}")

    def start(self, lab: Lab, end: End) -> None:
        there = other(end)
        role = (
            ["--tls-server", "--dh", "none"] if end is SERVER else ["--tls-client", "--remote", there.outside]
        )
        options = [
            *("--dev", "tun0", "--dev-type", "tun", "--proto", "udp4", "--local", end.outside, *role),
            *("--port", str(PORT), "--ifconfig", end.inside, there.inside, "--tun-mtu", str(MTU)),
            *("--key", self._file(end, "key"), "--cert", self._file(end, "crt")),
            *("--peer-fingerprint", self._fingerprints[there], "--data-ciphers", "AES-256-GCM"),
            # With its kernel module it would not be OpenVPN that is measured.
            "--disable-dco",
            # The kernel's own buffer sizes instead of small fixed ones, and no needless waiting for room.
            *("--sndbuf", "0", "--rcvbuf", "0", "--txqueuelen", "1000", "--fast-io"),
        ]
        lab.start(end.name, f"openvpn {end.name}", shutil.which("openvpn") or "openvpn", *options)


class Fastd(Peer):
    """fastd with the method that its manual recommends for speed with authentication."""

    needs: ClassVar = {"fastd": "fastd"}
    program = "fastd"
    version_command = ("fastd", "--version")
    CONFIG = """\
mode tun;
interface "tun0";
method "salsa2012+umac";
mtu {mtu};
bind {end.outside}:{port};
secret "{secret}";
on up "ip address add {end.inside} peer {there.inside} dev tun0 && ip link set tun0 up";
peer "other" {{
    key "{public}";
    {remote}
}}
"""

    def prepare(self, directory: Path) -> None:
        del directory
        printed = [output("fastd", "--generate-key") for _ in ENDS]
        # "Secret: ..." and "Public: ...", a line each.
        self._keys = {
            end: [line.split()[-1] for line in lines.splitlines()]
            for end, lines in zip(ENDS, printed, strict=True)
        }

    def start(self, lab: Lab, end: End) -> None:
        there = other(end)
        config = lab.directory / f"fastd-{end.name}.conf"
        remote = f"remote {there.outside}:{PORT};" if end is CLIENT else ""
        secret, public = self._keys[end][0], self._keys[there][1]
        config.write_text(
            self.CONFIG.format(
                mtu=MTU, port=PORT, end=end, there=there, secret=secret, public=public, remote=remote
            )
        )
        lab.start(end.name, f"fastd {end.name}", "fastd", "--config", str(config))


class WireguardGo(Peer):
    """wireguard-go: the WireGuard that, like dtun, is a program and not a part of the kernel."""

    needs: ClassVar = {"wireguard-go": "wireguard-go", "wg": "wireguard-tools"}
    program = "wireguard-go"
    version_command = ("wireguard-go", "--version")
    SOCKETS = Path("/var/run/wireguard")

    def prepare(self, directory: Path) -> None:
        self._keys: dict[End, tuple[Path, str]] = {}
        for end in ENDS:
            private = output("wg", "genkey")
            file = directory / f"wireguard-{end.name}.key"
            file.touch(0o600)
            file.write_text(private)
            self._keys[end] = (file, output("wg", "pubkey", stdin=private).strip())

    def start(self, lab: Lab, end: End) -> None:
        # Its control sockets are files that all hosts share, so the names have to differ.
        device = f"wg{os.getpid()}{end.name[0]}"
        socket = self.SOCKETS / f"{device}.sock"
        lab.start(end.name, f"wireguard-go {end.name}", "wireguard-go", "-f", device)
        lab.wait(f"{socket} is there", socket.exists)
        there = other(end)
        settings = ["listen-port", str(PORT), "private-key", str(self._keys[end][0])]
        settings += ["peer", self._keys[there][1], "allowed-ips", f"{there.inside}/32"]
        if end is CLIENT:
            settings += ["endpoint", f"{there.outside}:{PORT}"]
        lab.run(end.name, "wg", "set", device, *settings)
        address(lab, end, device)


class Dtun(Peer):
    """dtun itself. `without` names what is turned off (without.py); an empty `suite` is the default one.

    `environment` is that of both ends: as a service has it, not as the benchmark has it.
    """

    program = "dtun"
    version_command = (sys.executable, "-m", "dtun", "--version")

    def __init__(self, name: str, about: str, *, without: str = "", suite: str = "") -> None:
        super().__init__(name, about)
        self._suite = suite
        self.environment = {"PATH": os.defpath}
        self._command: tuple[str, ...] = (str(Path(sys.executable).with_name("dtun")),)
        if without:
            self._command = (sys.executable, str(ROOT / "bench" / "without.py"), without)

    def prepare(self, directory: Path) -> None:
        self._key, self._newcomers_key = directory / "dtun.key", directory / "newcomer.key"
        for key in (self._key, self._newcomers_key):
            key.touch(0o600)
            key.write_text(base64.b64encode(os.urandom(32)).decode() + "\n")
        # As it is after an installation: nothing is compiled at the start of a service.
        compileall.compile_dir(ROOT / "dtun", quiet=1)

    def start(self, lab: Lab, end: End) -> None:
        config = lab.directory / f"dtun-{end.name}.yaml"
        # YAML is a superset of JSON.
        config.write_text(json.dumps({end.name: self.section(lab, end)}))
        variables = [f"{name}={value}" for name, value in self.environment.items()]
        command = ("env", "-i", *variables, *self._command, end.name, "-c", str(config))
        process = lab.start(end.name, f"dtun {end.name}", *command)
        if end is CLIENT:
            self.client = process

    def section(self, lab: Lab, end: End) -> dict[str, Any]:
        common: dict[str, Any] = {"runtime_directory": str(lab.directory / f"run-{end.name}")}
        if self._suite:
            common["suites"] = [self._suite]
        key = {"key_file": str(self._key)}
        if end is CLIENT:
            return {**common, **key, "servers": [f"{SERVER.outside}:{PORT}"], "id": "bench"}
        return {
            **common,
            "listen": [f"{SERVER.outside}:{PORT}"],
            "pool": "10.99.0.0/24",
            "state_directory": str(lab.directory / "state"),
            "clients": {
                "bench": {**key, "address": CLIENT.inside},
                NEWCOMER: {"key_file": str(self._newcomers_key)},
            },
        }

    def newcomer(self, count: int) -> Sequence[str]:
        script = str(ROOT / "bench" / "handshakes.py")
        suites = self._suite or ",".join(suite.label for suite in DEFAULT_SUITES)
        endpoint = (SERVER.outside, str(PORT))
        return (sys.executable, script, *endpoint, NEWCOMER, str(self._newcomers_key), suites, str(count))


PEERS: tuple[Peer, ...] = (
    NoTunnel("none", "no tunnel: the veth cable"),
    Forwarder("forwarder", "one packet at a time, no encryption (forwarder.c)"),
    OpenVPN("openvpn", "OpenVPN, UDP, AES-256-GCM, without its kernel module"),
    Fastd("fastd", "fastd, salsa2012+umac"),
    WireguardGo("wireguard-go", "wireguard-go, ChaCha20-Poly1305"),
    Dtun("dtun", "dtun as it comes: ECDHE-PSK-CHACHA20-POLY1305, all offloads"),
    Dtun("dtun-no-offload", "dtun without the kernel's offloads", without="offload"),
    Dtun("dtun-mbedtls", "dtun with records left on Mbed TLS", without="record-offload"),
    Dtun("dtun-plain", "dtun with neither", without="offload,record-offload"),
    Dtun("dtun-aes-128-gcm", "dtun, PSK-AES-128-GCM", suite="PSK-AES-128-GCM"),
    Dtun("dtun-aes-256-gcm", "dtun, PSK-AES-256-GCM", suite="PSK-AES-256-GCM"),
    Dtun("dtun-aes-128-ccm", "dtun, PSK-AES-128-CCM", suite="PSK-AES-128-CCM"),
    Dtun("dtun-aes-256-ccm", "dtun, PSK-AES-256-CCM", suite="PSK-AES-256-CCM"),
)


def address(lab: Lab, end: End, device: str) -> None:
    """Give a TUN device this end's address and the way to the other's, and bring it up."""
    lab.run(end.name, "ip", "address", "add", end.inside, "peer", other(end).inside, "dev", device)
    lab.run(end.name, "ip", "link", "set", device, "mtu", str(MTU), "up")


def compile_c(name: str, directory: Path) -> Path:
    """Compile bench/NAME.c; the program."""
    program = directory / name
    output("gcc", "-O2", "-Wall", "-Wextra", "-o", str(program), str(ROOT / "bench" / f"{name}.c"))
    return program


def output(*command: str, stdin: str = "") -> str:
    """Run a command to its end, here and not on a host; what it printed.

    Raises:
        DemoError: it failed, or took more than a minute.
    """
    try:
        result = subprocess.run(
            command, check=True, input=stdin, capture_output=True, text=True, timeout=COMMAND_TIMEOUT
        )
    except subprocess.CalledProcessError as error:
        raise DemoError(f"{command[0]} failed: {(error.stderr or error.stdout).strip()}") from error
    except subprocess.TimeoutExpired as error:
        raise DemoError(f"{command[0]}: not done after {COMMAND_TIMEOUT} s") from error
    return result.stdout
