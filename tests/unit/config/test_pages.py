"""The configurations in the README and in docs/ load without changes."""

import re
from pathlib import Path
from textwrap import dedent

import pytest

from dtun.config import keys, load

ROOT = Path(__file__).parents[3]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
INDENTED = re.compile(r"(?:^    .*\n(?:\n(?=    ))?)+", re.MULTILINE)


def configurations() -> list[tuple[str, str]]:
    blocks = [(page.name, dedent(block)) for page in PAGES for block in INDENTED.findall(page.read_text())]
    return [(name, block) for name, block in blocks if re.match(r"(server|client):\n", block)]


def test_there_are_some_to_try() -> None:
    assert len(configurations()) >= 6


@pytest.mark.parametrize(("page", "text"), configurations())
def test_a_configuration_of_a_page_loads(page: str, text: str, tmp_path: Path) -> None:
    for path in set(re.findall(r"/etc/dtun/[\w.-]+", text)):
        file = tmp_path / Path(path).name
        is_key = file.suffix == ".key"
        file.write_text(keys.generate(go="compat: go" in text) if is_key else "198.51.100.0/24\n")
        file.chmod(0o600)
        text = text.replace(path, str(file))
    # The page shows only a part of the section.
    if text.startswith("client:") and "servers:" not in text:
        text += "  servers: [192.0.2.1]\n"
    if text.startswith("client:") and "id:" not in text:
        (tmp_path / "home.key").write_text(keys.generate())
        (tmp_path / "home.key").chmod(0o600)
        text += f"  id: home\n  key_file: {tmp_path}/home.key\n"
    config = tmp_path / "dtun.yaml"
    config.write_text(text)
    config.chmod(0o600)
    assert load(config).warnings == [], page
