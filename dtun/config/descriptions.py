"""What each setting means, in a sentence or two: for editors (`dtun schema`) and for docs/configuration.md.

In the order in which a person wants to read them. Beside the models, since only those are needed to run.
"""

from collections.abc import Mapping
from typing import Final

_HOOKS: Final = {
    "up": "A program to run, without a shell, when a tunnel comes up: a path, or a list with arguments. "
    "README.md has its variables.",
    "down": "The same for when it goes down.",
    "hook_timeout": "Seconds after which a hook is ended. 30 if nothing is set.",
}
_KEY: Final = {
    "key_file": "The file of the key (`dtun genkey -o FILE`). A path without / in front starts at the directory of "
    "the configuration.",
    "credential": "Or the name of the systemd credential that holds it (LoadCredential=).",
    "key": "Or the base64 text itself, for trying out.",
}
_SUITES: Final = (
    "Cipher suites, the best first. Only ECDHE-PSK-CHACHA20-POLY1305 has forward secrecy. Others: "
    "PSK-CHACHA20-POLY1305, PSK-AES-128-GCM, PSK-AES-256-GCM, PSK-AES-128-CCM, PSK-AES-256-CCM."
)
_MTU: Final = (
    "Bytes of a packet inside the tunnel. Worked out, so that nothing is fragmented outside, if not set."
)

SERVER: Final[Mapping[str, str]] = {
    "listen": "UDP addresses to listen on: ADDRESS, ADDRESS:PORT or [IPV6]:PORT. Without a port: 443.",
    "clients": "The clients, by their ids; `*` is any other id.",
    "pool": "The IPv4 network that clients get their addresses from. The server has the first one.",
    "pool6": "The same for IPv6. Without it there is only IPv4 inside.",
    "mtu": _MTU,
    "suites": _SUITES,
    "keepalive": "Seconds between signs of life. Clients are told.",
    "timeout": "Seconds without any after which the other side is given up. Clients are told.",
    "forwarding": "Whether this host forwards packets between its clients and its other networks.",
    "masquerade": "Whether what clients send into those networks leaves with this host's own address (NAT): true is "
    "by the interfaces of the default routes; or the names of interfaces. Switches forwarding on.",
    "push_routes": "Networks that clients are told to reach through the tunnel: a list, or `everything`.",
    "push_dns": "Name servers that clients are told to ask through the tunnel.",
    "push_domains": "The domains to ask them for. `~corp.example` is for looking up only, `~.` is every name.",
    **_HOOKS,
    "state_directory": "Where leases are kept.",
    "runtime_directory": "Where lock and control socket are.",
}
ENTRY: Final[Mapping[str, str]] = {
    **_KEY,
    "next_key_file": "A second key that is valid, too, while the client changes over to it.",
    "next_credential": "Or the name of the systemd credential that holds it.",
    "subnets": "Networks of which the client may push any part, as they are behind it; `private` is any RFC 1918 or "
    "fc00::/7 network that nobody else has.",
    "address": "Its address in the tunnel, of `pool`. If not set: a free one, which it keeps.",
    "address6": "The same, of `pool6`.",
    "tun": "The name of its device here, at most 15 characters. Made from its id if not set: `dtun-ID`.",
    "push_routes": "Its own; takes the place of the server's, and `[]` of all of them.",
    "push_dns": "Its own; takes the place of the server's.",
    "push_domains": "Its own; takes the place of the server's.",
    "up": "Its own hook; takes the place of the server's.",
    "down": "Its own hook; takes the place of the server's.",
    "hook_timeout": "Its own; takes the place of the server's.",
    "compat": "`go`: it is an original Go dtun, with one weaker suite and IPv4 only.",
}
CLIENT: Final[Mapping[str, str]] = {
    "servers": "Names or addresses of servers, in order of preference, each with a port or not: 443.",
    "id": "Who this client is.",
    **_KEY,
    "subnets": "Networks behind this client, which the server is to route here.",
    "routes": "Networks to reach through the tunnel: a list, or `everything` (0.0.0.0/0 and ::/0).",
    "exclude": "Networks to keep out of the tunnel, although they are inside of those.",
    "bypass": "The same once more, for a long list.",
    "bypass_files": "The same in files, one network a line; # starts a comment. Read at the start and on reload.",
    "on_disconnect": "While there is no session: `keep` the routes, `release` them, or `block` all that would leave "
    "beside the tunnel, also when dtun is killed.",
    "ipv6": "Whether IPv6 may leave beside the tunnel. If not set: it may not, if all of IPv4 goes through a tunnel "
    "without IPv6.",
    "routing": "Where the routes are: in the `main` table, or in one of their own, by a `policy` rule.",
    "host_routes_first": "With `policy`: the host's own routes, but for its default routes, come before the tunnel's.",
    "table": "The number of that table, for `policy`.",
    "mark": "The firewall mark of the tunnel's own packets, for `policy`.",
    "accept_routes": "Which networks that the server pushes go through the tunnel: `none`, `all`, or those inside of "
    "a list.",
    "accept_dns": "Whether the name servers that the server pushes are asked.",
    "dns": "Name servers to ask through the tunnel. They come before what the server pushes.",
    "dns_domains": "The domains to ask them for. `~corp.example` is for looking up only, `~.` is every name.",
    "forwarding": "Whether this host forwards packets between its networks and the tunnel.",
    "tun": "The name of the device, at most 15 characters.",
    "mtu": _MTU,
    "suites": _SUITES,
    "rekey": "Seconds until fresh keys are agreed on, at least 60; 0 is never.",
    **_HOOKS,
    "runtime_directory": "Where lock and control socket are.",
    "compat": "`go`: the server is an original Go dtun.",
}

OF_MODELS: Final[Mapping[str, Mapping[str, str]]] = {
    "ServerConfig": SERVER,
    "ClientEntry": ENTRY,
    "ClientConfig": CLIENT,
}
"""By the names of the models, which are those of the schema's definitions."""
