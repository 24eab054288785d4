"""Configuration files on disk, and loading them."""

from collections.abc import Callable
from pathlib import Path
from textwrap import dedent

import pytest

from dtun.config import Config, ConfigErrors, load

Write = Callable[[str], Path]
Load = Callable[[str], Config]
Problems = Callable[[str], list[str]]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a private dtun.yaml."""

    def write(text: str) -> Path:
        path = tmp_path / "dtun.yaml"
        path.write_text(dedent(text))
        path.chmod(0o600)
        return path

    return write


@pytest.fixture
def loaded(write: Write) -> Load:
    return lambda text: load(write(text))


@pytest.fixture
def problems(write: Write, tmp_path: Path) -> Problems:
    """The error lines for a bad file, without its path."""

    def problems(text: str) -> list[str]:
        with pytest.raises(ConfigErrors) as caught:
            load(write(text))
        assert str(caught.value).splitlines() == caught.value.lines
        return [line.replace(f"{tmp_path}/", "") for line in caught.value.lines]

    return problems
