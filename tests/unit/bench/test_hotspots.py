"""What `make profile` reads from its tools."""

from collections import Counter

from bench.hotspots import Spot, import_times, report, spots

STACKS = [
    "<module> (dtun:8);main (dtun/cli/__init__.py:19);seal (dtun/dtls/records.py:170);chacha20 (_rust.abi3.so) 6",
    "<module> (dtun:8);main (dtun/cli/__init__.py:19);seal (dtun/dtls/records.py:170) 2",
    "<module> (dtun:8);main (dtun/cli/__init__.py:19);write (dtun/dataplane/tun.py:9);writev (libc.so.6) 30",
    "run (threading.py:982);_worker (concurrent/futures/thread.py:81);futex (libc.so.6) 999",
    "0x7f1483c4524a (libc.so.6) 2",
]


def test_samples_count_for_the_innermost_line_of_python() -> None:
    assert spots(STACKS) == [
        Spot("write (dtun/dataplane/tun.py:9)", 30, Counter({"writev": 30})),
        Spot("seal (dtun/dtls/records.py:170)", 8, Counter({"chacha20": 6, "Python": 2})),
        Spot("(outside Python)", 2, Counter({"0x7f1483c4524a": 2})),
    ]


def test_the_report_has_shares_of_what_is_not_idle() -> None:
    heading, first, second, _ = report("client", STACKS).splitlines()
    assert heading.startswith("client: 40 samples")
    assert first.split() == ["75.0", "%", "write", "(dtun/dataplane/tun.py:9)", "writev", "75", "%"]
    assert second.endswith("chacha20 15 %, Python 5 %")


def test_imports_are_added_up_by_package_between_lines_of_log() -> None:
    output = """\
import time: self [us] | cumulative | imported package
import time:      1500 |       1500 |   dtun.errors
<6>connected
import time:      2000 |      90000 | dtun
import time:       250 |        250 |     yaml
"""
    assert import_times(output) == {"dtun": 3.5, "yaml": 0.25}
