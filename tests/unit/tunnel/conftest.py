"""Lets the tests here import what stands beside them, and the network that the tests of the protocol use."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "protocol")]
