"""`systemctl reload` under traffic: clients come and go, keys change, and nobody else loses a packet."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.systemd.container import wait_for
from tests.systemd.pair import CLIENT, SERVER, Pair
from tests.systemd.traffic import traffic

OFFICE = """\
client: {servers: [192.0.2.1], id: office, key_file: /etc/dtun/office.key, tun: dtun-office}
"""
ENTRY = "    office: {key_file: /etc/dtun/office.key}\n"


@pytest.fixture
def pair(installed: Pair) -> Iterator[Pair]:
    """Both at work; and the client's machine is ready to be the client "office" as well, by the template unit."""
    server, client = installed.server.container, installed.client.container
    for name in ("office", "next"):
        server.run("dtun", "genkey", "-o", f"/etc/dtun/{name}.key")
        key = server.read(f"/etc/dtun/{name}.key")
        for container in (server, client):
            container.write(f"/etc/dtun/{name}.key", key, 0o640, "root:dtun")
    client.write("/etc/dtun/office.yaml", OFFICE, 0o640, "root:dtun")
    installed.start()
    yield installed
    client.run("systemctl", "stop", "dtun-client@office")
    installed.client.systemctl("stop")
    installed.server.systemctl("stop")
    for container in (server, client):
        container.run("rm", "-f", "/etc/dtun/office.key", "/etc/dtun/next.key", "/etc/dtun/office.yaml")


def status(pair: Pair) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(pair.server.container.run("dtun", "status", "--json"))
    return answer


def states(pair: Pair) -> dict[str, str]:
    return {tunnel["id"]: tunnel["state"] for tunnel in status(pair)["tunnels"]}


def test_clients_come_and_go_and_the_others_lose_nothing(pair: Pair) -> None:
    server, office = pair.server, pair.client.container
    with traffic(pair) as seen:
        server.configure(SERVER + ENTRY)
        server.systemctl("reload")
        office.run("systemctl", "start", "dtun-client@office")
        wait_for(lambda: states(pair) == {"home": "connected", "office": "connected"}, "the new client")
        server.configure(SERVER)
        server.systemctl("reload")
        # It is told, so it does not take until a timeout.
        wait_for(
            lambda: "configuration does not have this id any more" in office.journal("dtun-client@office"),
            "the end",
            3,
        )
        assert states(pair) == {"home": "connected"}
        assert "dtun-office" not in server.container.ip("-o link show type tun")
    print(seen)
    assert seen.lost == 0
    assert server.container.journal("dtun-server", "DTUN_CLIENT=office", "DTUN_REASON=refused") != ""


def test_a_key_is_changed_while_the_client_works(pair: Pair) -> None:
    server, client = pair.server, pair.client
    both = SERVER.replace("home.key,", "home.key, next_key_file: /etc/dtun/next.key,")
    with traffic(pair) as seen:
        server.configure(both)
        server.systemctl("reload")
        assert status(pair)["old_key_in_use"] == ["home"]
        assert "with a former key still: 1 (home)" in server.container.run("dtun", "status")
        client.configure(CLIENT.replace("home.key", "next.key"))
        client.systemctl("reload")
        wait_for(lambda: status(pair)["old_key_in_use"] == [], "the session with the new key")
        server.configure(SERVER.replace("home.key", "next.key"))
        server.systemctl("reload")
        assert states(pair) == {"home": "connected"}
    print(seen)
    assert seen.lost == 0


def test_what_a_reload_would_mean_is_told_before(pair: Pair) -> None:
    server = pair.server
    server.configure(SERVER.replace("server:\n", "server:\n  keepalive: 5\n  pool: 10.87.0.0/16\n") + ENTRY)
    dry = server.container.run("dtun", "reload", "--dry-run").splitlines()
    assert dry == [
        "keepalive: 5 instead of 10, for new sessions (at once)",
        "pool: 10.87.0.0/16 instead of 10.86.0.0/16 (needs a restart, kept as it was)",
        "client office: is new (at once)",
    ]
    assert states(pair) == {"home": "connected"}
    server.configure("server:\n  clients: {}\n")
    refused = server.container.complete("dtun", "reload", "--dry-run")
    assert refused.returncode == 78
    assert "has no client" in refused.stderr
