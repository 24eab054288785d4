"""Many clients in one process, all starting at once, each with its own device: python many_clients.py DIRECTORY COUNT.

DIRECTORY holds the configs 0.yaml, 1.yaml and so on. Prints "connected SECONDS" when all of them are; stops on SIGTERM.
"""

import asyncio
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from dtun.client.client import Client
from dtun.config import load
from dtun.config.common import Hook
from dtun.platform import kernel as platform_kernel


async def main(directory: Path, count: int) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    kernels, clients, runs = [], [], []
    for number in range(count):
        config = load(directory / f"{number}.yaml").client
        assert config is not None
        kernel = platform_kernel(config.tun, directory)
        await kernel.open()
        client = Client(config, kernel, no_hook, loop)
        await client.start()
        kernels.append(kernel)
        clients.append(client)
    began = time.monotonic()
    runs = [loop.create_task(client.run()) for client in clients]
    while not all(is_connected(client) for client in clients):  # noqa: ASYNC110 - seen from outside
        await asyncio.sleep(0.02)
    print(f"connected {time.monotonic() - began:.2f}", flush=True)
    await stop.wait()
    for run in runs:
        run.cancel()
    await asyncio.gather(*runs, return_exceptions=True)
    for client, kernel in zip(clients, kernels, strict=True):
        await client.stop()
        await kernel.close()


def is_connected(client: Client) -> bool:
    tunnels = client.status()["tunnels"]
    assert isinstance(tunnels, list)
    return all(tunnel["state"] == "connected" for tunnel in tunnels)


async def no_hook(hook: Hook, variables: Mapping[str, str], what: str) -> bool:
    raise AssertionError(f"nobody configured {what}: {hook} {variables}")


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2])))
