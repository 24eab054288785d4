"""Switches that turn off what makes dtun fast, so that the benchmark can say what each is worth.

DTUN_TUNE holds words, separated by commas: `no-offload` (one packet for each read and write of TUN and UDP),
`no-record-offload` (records stay in Mbed TLS). Nothing but the benchmark and its tests sets it.
"""

import os

_OFF = frozenset(os.environ.get("DTUN_TUNE", "").split(","))

KERNEL_OFFLOADS = "no-offload" not in _OFF
RECORD_OFFLOAD = "no-record-offload" not in _OFF
