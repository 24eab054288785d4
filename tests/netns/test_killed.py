"""Killed at any moment, many times: the next start and a clean stop leave nothing of what any of them made."""

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml
from snapshots import changes, snapshot
from topology import Host, Topology, wait_for
from worlds import World, wait_reached

from dtun.errors import DtunError
from dtun.service.control import ask

KILLS = 34 if "DTUN_FUZZ_SECONDS" in os.environ else 12  # of each of the three
LATER = 1.2  # of the time that a start or a stop took when it was not disturbed


class Victim:
    """A dtun that is started, killed and stopped at will."""

    def __init__(self, host: Host, role: str, section: dict[str, Any], directory: Path) -> None:
        directory.mkdir()
        self.host = host
        self.role = role
        self.kills = dict.fromkeys(("start", "stop"), 0)
        self._runtime = directory / "run"
        self._socket = self._runtime / f"{'server' if role == 'server' else section['tun']}.sock"
        self._log = directory / "log"
        self._pid = 0
        config = directory / "dtun.yaml"
        section = {**section, "runtime_directory": str(self._runtime)}
        config.write_text(yaml.safe_dump({role: section}))
        self._process = host.python(
            "tests/netns/phoenix.py",
            str(self._log),
            role,
            str(config),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._hears() == "ready"

    def snapshot(self) -> set[str]:
        return snapshot(self.host, self._runtime)

    def start(self) -> None:
        self._pid = int(self._asks("start"))

    def wait_serving(self) -> None:
        """Until it has all that it makes: with a client, the session too."""
        wait_for(self._serves, f"the {self.role} to serve", 20, lambda: self.log)

    def stop(self) -> int:
        os.kill(self._pid, signal.SIGTERM)
        return int(self._asks("end"))

    def kill(self, phase: str, after: float) -> None:
        """In the midst of this phase, so many seconds after its beginning."""
        self.start()
        if phase == "stop":
            self.wait_serving()
            os.kill(self._pid, signal.SIGTERM)
        time.sleep(after)
        os.kill(self._pid, signal.SIGKILL)
        # It may have been faster.
        if self._asks("end") == str(-signal.SIGKILL):
            self.kills[phase] += 1

    @property
    def log(self) -> str:
        return self._log.read_text() if self._log.exists() else ""

    def _serves(self) -> bool:
        try:
            status = ask(self._socket)
        except DtunError:
            return False
        return self.role == "server" or status["tunnels"][0]["state"] == "connected"

    def _asks(self, line: str) -> str:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        return self._hears()

    def _hears(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


def timed(action: Callable[[], object]) -> float:
    begun = time.monotonic()
    action()
    return time.monotonic() - begun


def torment(victim: Victim, seed: int) -> str:
    """Kill it at moments that the seed decides, and look now and then what is left after a clean stop."""
    chance = random.Random(seed)
    before = victim.snapshot()
    begun = time.monotonic()
    victim.start()
    lasts = {"start": timed(victim.wait_serving), "stop": timed(victim.stop)}
    first = victim.snapshot()
    assert changes(before, first) == "", f"without any kill\n{victim.log}"
    rounds = 0
    while sum(victim.kills.values()) < KILLS:
        story = []
        # Several in a row: what clears up after a kill may be killed, too.
        for _ in range(chance.randint(1, 3)):
            phase = chance.choice(("start", "stop"))
            after = chance.uniform(0, LATER * lasts[phase])
            story.append(f"{phase} + {after * 1000:.0f} ms")
            victim.kill(phase, after)
        victim.start()
        victim.wait_serving()
        assert victim.stop() == 0, f"after kills at {story}\n{victim.log}"
        left = changes(before, victim.snapshot())
        assert left == "", f"seed {seed}, after kills at {story} there is left:\n{left}\n{victim.log}"
        rounds += 1
    assert "Traceback" not in victim.log, victim.log
    took = time.monotonic() - begun
    times = ", ".join(f"{phase} {duration * 1000:.0f} ms" for phase, duration in lasts.items())
    return f"{victim.kills} in {rounds} rounds, {took:.0f} s ({times})"


def test_nothing_is_left_of_killed_ones(net: Topology, tmp_path: Path) -> None:
    victims: dict[str, Victim] = {}
    for routing in ("main", "policy"):
        (tmp_path / routing).mkdir()
        world = World(net, tmp_path / routing)
        world.server({"subnets": ["10.0.0.0/16"]}, pool6="fd00:86::/64")
        section = world.section(
            tun="dtun0",
            routes="everything",
            bypass=["192.0.2.0/24", "198.51.100.0/24", "2001:db8:90::/48"],
            subnets=["10.0.0.0/16"],
            routing=routing,
            on_disconnect="block",
            forwarding=True,
        )
        victims[routing] = Victim(world.home, "client", section, tmp_path / routing / "victim")
    clients = {
        name: {"key_file": world.key, "subnets": [network]}
        for name, network in (("home", "10.0.0.0/16"), ("office", "10.1.0.0/16"))
    }
    common = {"clients": clients, "state_directory": str(tmp_path / "state"), "listen": ["198.18.1.2"]}
    (tmp_path / "server").mkdir()
    elsewhere = World(net, tmp_path / "server")
    section = {**common, "pool6": "fd00:86::/64", "masquerade": True, "forwarding": True}
    victims["server"] = Victim(elsewhere.home, "server", section, tmp_path / "server" / "victim")

    seed = int(os.environ.get("DTUN_SEED", "7217"))
    with ThreadPoolExecutor(len(victims)) as pool:
        running = {
            name: pool.submit(torment, victim, seed + number)
            for number, (name, victim) in enumerate(victims.items())
        }
    for name, story in running.items():
        print(f"{name}: {story.result()}")
    assert sum(sum(victim.kills.values()) for victim in victims.values()) >= 3 * KILLS
    wait_reached(world.home, "203.0.113.80")
