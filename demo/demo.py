"""The main job of dtun, shown between network namespaces on this machine. Run it with `make demo`."""

# Talks to a person:
# ruff: noqa: T201

import hashlib
import os
import platform
import re
import shutil
import sys
import time
from pathlib import Path

from demo.lab import DemoError, Lab, Process

DIAGRAM = """
  pc ----------- router ============================ pc2 ------------- www
  10.0.0.2/16    10.0.0.1     the internet    203.0.113.1     203.0.113.80
                 198.51.100.2               198.51.100.1
                 dtun client                dtun server
                                            the one NAT
"""
PC, PC2_INSIDE, PC2_OUTSIDE, WWW = "10.0.0.2", "203.0.113.1", "198.51.100.1", "203.0.113.80"
HOME, BEYOND = "10.0.0.0/16", "203.0.113.0/24"
# The number with which dtun marks the routes that it installs, so that it never touches another's.
ROUTE_PROTOCOL = "217"
MEBIBYTE = 1 << 20
FILE_SIZE = 64 * MEBIBYTE

SERVER_YAML = """\
server:
  listen: ["{address}:443"]
  clients:
    router:
      key_file: {directory}/key
      subnets: [{home}]
  state_directory: {directory}/server
  runtime_directory: {directory}/server
"""
CLIENT_YAML = """\
client:
  servers: ["{address}:443"]
  id: router
  key_file: {directory}/key
  subnets: [{home}]
  routes: [{beyond}]
  tun: dtun0
  runtime_directory: {directory}/client
"""
NAT = """\
table ip nat {
    chain postrouting {
        type nat hook postrouting priority srcnat
        oifname "www" masquerade
    }
}
"""
# Collects the source address of every packet that comes in by a device, before any NAT.
SOURCES = """\
table ip demo {{
    set sources {{
        type ipv4_addr
        size 1024
        flags dynamic
    }}
    chain prerouting {{
        type filter hook prerouting priority raw
        iifname "{device}" add @sources {{ ip saddr }}
    }}
}}
"""


class Story:
    """What the demo tells, and the facts that it has checked."""

    def __init__(self) -> None:
        self.facts = 0
        self._colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ

    def _paint(self, code: str, text: str) -> str:
        return f"\033[{code}m{text}\033[0m" if self._colour else text

    def heading(self, text: str) -> None:
        print(f"\n{self._paint('1', text)}", flush=True)

    def show(self, text: str) -> None:
        for line in text.rstrip().splitlines():
            print(self._paint("2", f"      {line}"), flush=True)

    def fact(self, text: str, *, holds: bool) -> None:
        """Tell a fact, if it is one.

        Raises:
            DemoError: it is not.
        """
        if not holds:
            raise DemoError(f"this should hold and does not: {text}")
        self.facts += 1
        print(f"  {self._paint('32', 'ok')}  {text}", flush=True)


def main() -> int:
    if refusal := cannot_run():
        print(f"demo: {refusal}", file=sys.stderr)
        return 1
    begin = time.monotonic()
    story = Story()
    try:
        with Lab() as lab:
            tell(story, lab, dtun=str(Path(sys.executable).with_name("dtun")))
            story.heading("Taking everything down ...")
    except DemoError as error:
        print("\ndemo:", "\n".join([str(error), *getattr(error, "__notes__", [])]), file=sys.stderr)
        return 1
    except SystemExit:
        print("\ndemo: interrupted; everything has been taken down", file=sys.stderr)
        raise
    print(f"\n{story.facts} facts checked, all as they should be, in {time.monotonic() - begin:.0f} s.")
    return 0


def cannot_run() -> str | None:
    """What stands in the way, and what to do about it."""
    if platform.system() != "Linux":
        return "it is built from Linux network namespaces and runs on Linux only"
    if os.geteuid() != 0:
        return "making network namespaces takes root; run: sudo make demo"
    if not Path("/dev/net/tun").exists():
        return (
            "/dev/net/tun is missing; run: modprobe tun (in a container: start it with --device /dev/net/tun)"
        )
    if not Path(sys.executable).with_name("dtun").exists():
        return "dtun is not installed next to this Python; run: make demo"
    if missing := [tool for tool in ("ip", "nft", "ping") if shutil.which(tool) is None]:
        return f"missing: {', '.join(missing)}; run: make demo"
    return None


def tell(story: Story, lab: Lab, dtun: str) -> None:
    story.heading("dtun: the hosts behind a router reach a web server through an encrypted tunnel")
    print(DIAGRAM.rstrip(), flush=True)
    build(lab)
    digest, www = serve_file(lab)
    story.heading("Before: no way from pc to www")
    story.fact("router has no route to www", holds=not has_route(lab, "router", WWW))
    story.fact("www has no route to pc", holds=not has_route(lab, "www", PC))

    server, client = start_tunnel(story, lab, dtun)
    show_routes(story, lab)
    # From here on, note who sends what www and pc2 receive.
    tunnel_device = lab.run_json("pc2", "ip", "-j", "route", "show", HOME)[0]["dev"]
    lab.run("pc2", "nft", "-f", "-", stdin=SOURCES.format(device=tunnel_device))
    lab.run("www", "nft", "-f", "-", stdin=SOURCES.format(device="pc2"))
    show_ping(story, lab)
    show_download(story, lab, digest)
    show_addresses(story, lab, www, tunnel_device)
    show_stop(story, lab, server, client)


def build(lab: Lab) -> None:
    lab.host("pc")
    lab.host("router", forwards=True)
    lab.host("pc2", forwards=True)
    lab.host("www")
    lab.cable(("pc", "lan", f"{PC}/16"), ("router", "lan", "10.0.0.1/16"))
    lab.cable(("router", "internet", "198.51.100.2/24"), ("pc2", "internet", f"{PC2_OUTSIDE}/24"))
    lab.cable(("pc2", "www", f"{PC2_INSIDE}/24"), ("www", "pc2", f"{WWW}/24"))
    lab.run("pc", "ip", "route", "add", "default", "via", "10.0.0.1")
    lab.run("pc2", "nft", "-f", "-", stdin=NAT)


def serve_file(lab: Lab) -> tuple[str, Process]:
    """Have www serve a random file; its SHA-256, and the web server."""
    directory = lab.directory / "www"
    directory.mkdir()
    digest = hashlib.sha256()
    with (directory / "file").open("wb") as file:
        for _ in range(FILE_SIZE // MEBIBYTE):
            chunk = os.urandom(MEBIBYTE)
            digest.update(chunk)
            file.write(chunk)
    options = ["--bind", WWW, "--directory", str(directory)]
    www = lab.start("www", "the web server", sys.executable, "-u", "-m", "http.server", "80", *options)
    lab.wait("the web server listens", lambda: "Serving HTTP" in www.output())
    return digest.hexdigest(), www


def start_tunnel(story: Story, lab: Lab, dtun: str) -> tuple[Process, Process]:
    story.heading("Starting dtun: a fresh key, one YAML file at each end")
    lab.run("pc2", dtun, "genkey", "-o", str(lab.directory / "key"))
    values = {"address": PC2_OUTSIDE, "home": HOME, "beyond": BEYOND, "directory": lab.directory}

    def start(host: str, role: str, template: str) -> Process:
        (lab.directory / role).mkdir()
        config = lab.directory / f"{role}.yaml"
        config.write_text(template.format_map(values))
        story.show(f"{host}# dtun {role} -c {config}\n" + config.read_text())
        return lab.start(host, f"dtun {role}", dtun, role, "-c", str(config))

    server = start("pc2", "server", SERVER_YAML)
    lab.wait("the server listens", lambda: lab.run("pc2", "ss", "-Hlun", "sport = :443") != "")
    client = start("router", "client", CLIENT_YAML)

    def is_up() -> bool:
        return has_route(lab, "router", WWW) and has_route(lab, "pc2", PC)

    seconds = lab.wait("both ends have installed their routes", is_up)
    story.fact(f"the tunnel is up, {seconds:.2f} s after the start of the client", holds=True)
    return server, client


def show_routes(story: Story, lab: Lab) -> None:
    story.heading(f"Routes that dtun installed (protocol {ROUTE_PROTOCOL})")
    for host, destination, meaning in (
        ("router", BEYOND, "sends www's network into the tunnel"),
        ("pc2", HOME, "sends pc's network into the tunnel"),
    ):
        routes = lab.run(host, "ip", "route", "show", "proto", ROUTE_PROTOCOL)
        story.show(f"{host}# ip route show proto {ROUTE_PROTOCOL}\n{routes}")
        devices = re.findall(rf"^{re.escape(destination)} .*\bdev (\S+)", routes, re.MULTILINE)
        story.fact(f"{host} {meaning} ({destination})", holds=len(devices) == 1)


def show_ping(story: Story, lab: Lab) -> None:
    story.heading("Round-trip time, from pc to www through the tunnel")
    output = lab.run("pc", "ping", "-c", "10", "-i", "0.1", "-W", "2", WWW)
    summary = re.search(r"(\d+)% packet loss[\s\S]*= ([\d.]+)/([\d.]+)/([\d.]+)/", output)
    if summary is None:
        raise DemoError(f"ping said something unexpected:\n{output}")
    loss, least, mean, most = summary.groups()
    story.fact(f"10 pings answered: {least} / {mean} / {most} ms (least / mean / most)", holds=loss == "0")


def show_download(story: Story, lab: Lab, digest: str) -> None:
    story.heading(f"pc downloads {FILE_SIZE // MEBIBYTE} MiB of random bytes from www through the tunnel")
    script = Path(__file__).with_name("download.py")
    got = lab.run_json("pc", sys.executable, str(script), f"http://{WWW}/file")
    rate = got["bytes"] * 8 / got["seconds"] / 1e6
    story.fact(
        f"{got['bytes']:,} bytes in {got['seconds']:.2f} s: {rate:,.0f} Mbit/s",
        holds=got["bytes"] == FILE_SIZE,
    )
    story.show(f"served    {digest}\nreceived  {got['sha256']}")
    story.fact("the SHA-256 is the same", holds=got["sha256"] == digest)


def show_addresses(story: Story, lab: Lab, www: Process, tunnel_device: str) -> None:
    story.heading("One NAT, on pc2: who saw whom")
    log = [line for line in www.output().splitlines() if '"GET ' in line]
    story.show("www's log:\n" + "\n".join(log))
    clients = {line.split()[0] for line in log}
    story.fact(f"www's log names pc2 ({PC2_INSIDE}) as the client", holds=clients == {PC2_INSIDE})
    at_www, at_pc2 = sources(lab, "www"), sources(lab, "pc2")
    story.fact(f"www received packets from {', '.join(at_www)} only", holds=at_www == [PC2_INSIDE])
    story.fact(
        f"pc2 received packets from {', '.join(at_pc2)} only, on {tunnel_device}: pc's own address",
        holds=at_pc2 == [PC],
    )


def show_stop(story: Story, lab: Lab, server: Process, client: Process) -> None:
    story.heading("Stopping dtun at both ends")
    for host, process in (("router", client), ("pc2", server)):
        status = process.stop()
        story.fact(f"{process.what} ended with status {status}", holds=status == 0)
        routes = lab.run(host, "ip", "route", "show", "proto", ROUTE_PROTOCOL)
        devices = [
            link["ifname"]
            for link in lab.run_json(host, "ip", "-j", "-d", "link", "show", "type", "tun") or []
        ]
        story.fact(f"{host} has no route and no device of dtun left", holds=not routes and not any(devices))


def has_route(lab: Lab, host: str, address: str) -> bool:
    # `ip route get` fails where there is none, and where the device is still down.
    try:
        lab.run(host, "ip", "route", "get", address)
    except DemoError:
        return False
    return True


def sources(lab: Lab, host: str) -> list[str]:
    """The source addresses that were noted on a host."""
    listing = lab.run_json(host, "nft", "-j", "list", "set", "ip", "demo", "sources")["nftables"]
    return [address for item in listing if "set" in item for address in item["set"].get("elem", [])]


if __name__ == "__main__":
    sys.exit(main())
