"""Build and run the Go peer from a test."""

import re
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

HERE = Path(__file__).resolve().parent
PION = Path("/usr/share/gocode/src/github.com/pion/dtls/v2")


def build() -> Path:
    """The peer's executable, built if need be (3 s). Skips the test where Go or pion's DTLS is missing."""
    if shutil.which("go") is None or not PION.exists():
        pytest.skip("the Go peer needs golang-go and golang-github-pion-dtls.v2-dev")
    result = subprocess.run([HERE / "build"], check=False, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, f"the Go peer does not build:\n{result.stderr}"
    return Path(result.stdout.strip())


class GoPeer:
    """A Go peer in a network namespace (None: in the test's own), ended when the `with` block is left."""

    def __init__(self, namespace: str | None, role: str, log: Path, *, options: Sequence[str]) -> None:
        inside = ["ip", "netns", "exec", namespace] if namespace else []
        self._log = log
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                [*inside, str(build()), "-role", role, *options], stdout=file, stderr=subprocess.STDOUT
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def kill(self) -> None:
        """End it as a lost power supply would: without a word to the other side."""
        self.process.kill()
        self.process.wait(10)

    def events(self, name: str) -> list[Mapping[str, str]]:
        """The variables of every event of that name so far (UP, DOWN, LISTENING, REFUSED, TIMEOUT)."""
        lines = re.findall(rf"^{name}( .*)?$", self._log.read_text(), re.MULTILINE)
        return [
            {key: value.strip('"') for key, value in re.findall(r'(\w+)=("(?:\\.|[^"\\])*"|\S*)', line)}
            for line in lines
        ]

    def wait_for(self, name: str, *, count: int = 1, seconds: float = 15) -> Mapping[str, str]:
        """Wait until there have been `count` events of that name; the last of these."""
        deadline = time.monotonic() + seconds
        while len(found := self.events(name)) < count:
            ended = self.process.poll() is not None
            late = time.monotonic() > deadline
            if late or (ended and len(self.events(name)) < count):
                pytest.fail(f"no {name} from the Go peer; it said:\n{self._log.read_text()}")
            time.sleep(0.02)
        return found[count - 1]
