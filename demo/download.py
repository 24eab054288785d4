"""Download a URL and print its size, its SHA-256 and the seconds that it took, as JSON."""

# Prints to the demo:
# ruff: noqa: T201

import hashlib
import json
import sys
import time
import urllib.request

begin = time.monotonic()
digest = hashlib.sha256()
size = 0
# No proxy: the environment's would not be reachable from here.
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
with opener.open(sys.argv[1], timeout=20) as response:
    while chunk := response.read(1 << 20):
        digest.update(chunk)
        size += len(chunk)
print(json.dumps({"bytes": size, "sha256": digest.hexdigest(), "seconds": time.monotonic() - begin}))
