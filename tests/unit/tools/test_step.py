"""What a failed step of an installation has printed becomes one sentence."""

import sys
from pathlib import Path

import pytest

from tools import bootstrap, step

PIP = ["/tmp/env/bin/python", "-m", "pip", "download", "-r", "lock.txt"]
UNREACHABLE = """\
WARNING: Retrying (Retry(total=0, connect=None, read=None, redirect=None, status=None)) after connection broken by
'NewConnectionError('<pip._vendor.urllib3.connection.HTTPSConnection object at 0x7f>: Failed to establish a new
connection: [Errno -3] Temporary failure in name resolution')': /simple/cffi/
ERROR: Could not find a version that satisfies the requirement cffi==2.0.0 (from versions: none)
ERROR: No matching distribution found for cffi==2.0.0
"""
REFUSED = """\
ERROR: Could not install packages due to an OSError: HTTPSConnectionPool(host='files.pythonhosted.org', port=443): Max
retries exceeded with url: /x (Caused by NewConnectionError('...: [Errno 111] Connection refused'))
"""
APT = (
    "E: Failed to fetch http://deb.debian.org/debian/dists/x  Temporary failure resolving 'deb.debian.org'\n"
)


@pytest.mark.parametrize(
    ("output", "said"),
    [
        (UNREACHABLE, "the package index cannot be reached (Temporary failure in name resolution)"),
        (REFUSED, "files.pythonhosted.org cannot be reached (Connection refused)"),
        (APT, "deb.debian.org cannot be reached (Temporary failure resolving)"),
        (
            "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE.\n",
            "does a proxy or a mirror",
        ),
        (
            "ERROR: No matching distribution found for cffi==2.0.0\n",
            "the package index has no cffi==2.0.0 for",
        ),
        ("x.c:1: fatal error: Python.h: No such file or directory\n", "the headers of Python"),
        (
            "error: command 'gcc' failed: No such file or directory\n",
            "there is no C compiler; run: apt-get install",
        ),
        ("  some words\n  ERROR: the disk is full\n\n", "has failed: ERROR: the disk is full"),
        ("", "has failed: it said nothing"),
    ],
)
def test_one_sentence(output: str, said: str) -> None:
    sentence = bootstrap.explain(PIP, output)
    assert said in sentence
    assert "\n" not in sentence


def test_a_step_that_fails(tmp_path: Path) -> None:
    program = "import sys; print('ERROR: no luck in', __import__('os').getcwd()); sys.exit(1)"
    with pytest.raises(step.StepError, match=f"has failed: ERROR: no luck in {tmp_path}$"):
        step.run([sys.executable, "-c", program], directory=tmp_path)
    with pytest.raises(step.StepError, match=r"^/no/such/thing is missing; install it"):
        step.run(["/no/such/thing"])
    step.run([sys.executable, "-c", "pass"], environment={"A": "b"})
