"""In CI a skip is a failure, unless nothing that can be installed would prevent it: see tests/conftest.py."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SKIPPED = """
import pytest

@pytest.mark.skip(reason="groff is missing")
def test_marked() -> None: ...

def test_inside() -> None:
    pytest.skip("this host is not set up")

@pytest.fixture
def nothing() -> None:
    pytest.skip("not root")

def test_by_a_fixture(nothing: None) -> None: ...

def test_of_a_newer_kernel() -> None:
    pytest.skip("this kernel is too old")

@pytest.mark.xfail
def test_known_to_fail() -> None:
    raise AssertionError
"""


@pytest.mark.parametrize(
    ("ci", "said"), [("", "4 skipped, 1 xfailed"), ("true", "1 failed, 1 skipped, 1 xfailed, 2 errors")]
)
def test_skips(ci: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text("from tests.conftest import pytest_runtest_makereport")
    (tmp_path / "test_skipped.py").write_text(SKIPPED)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-c", "/dev/null", str(tmp_path)]
    environment = {**os.environ, "CI": ci, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=60)
    assert said in done.stdout
