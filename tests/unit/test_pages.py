"""What the pages say of the repository is true: files exist, links work on a package index, releases are in order."""

import re
from pathlib import Path

import pytest

import dtun

ROOT = Path(__file__).parents[2]
PAGES = ("ARCHITECTURE.md", "CONTRIBUTING.md", "README.md", "SECURITY.md", "CHANGELOG.md")

# `server/login.py`, `tests/unit/test_layers.py`, `docs/install.md`, `platform/linux/nftables/`
FILE = re.compile(r"`((?:[\w@.-]+/)+(?:[\w@.-]+\.(?:py|md|yaml|example|toml|sh))?)`")
CLASS = re.compile(r"`([A-Z][a-z]+(?:[A-Z][a-z]+)*)`")


def files_named_by(page: str) -> list[str]:
    return FILE.findall((ROOT / page).read_text())


@pytest.mark.parametrize("page", PAGES)
def test_every_file_that_a_page_names_exists(page: str) -> None:
    there = {name: (ROOT / name).exists() or (ROOT / "dtun" / name).exists() for name in files_named_by(page)}
    assert all(there.values()), [name for name, exists in there.items() if not exists]


def test_the_map_of_the_code_names_files() -> None:
    assert len(files_named_by("ARCHITECTURE.md")) > 40, "or the pattern finds nothing any more"


def test_every_class_that_the_architecture_names_exists() -> None:
    source = "\n".join(path.read_text() for path in (ROOT / "dtun").rglob("*.py"))
    classes = set(re.findall(r"^class (\w+)", source, re.MULTILINE))
    named = set(CLASS.findall((ROOT / "ARCHITECTURE.md").read_text()))
    assert {"Identity", "Session", "Pump"} <= named
    assert named <= classes, sorted(named - classes)


def test_the_readme_has_no_link_that_needs_the_repository() -> None:
    """A package index shows it, where only absolute links work."""
    targets = re.findall(r"\]\(([^)]+)\)", (ROOT / "README.md").read_text())
    assert [target for target in targets if not target.startswith("https://")] == []


def test_the_newest_release_in_the_changelog_is_this_version() -> None:
    changes = (ROOT / "CHANGELOG.md").read_text()
    releases = re.findall(r"^## \[(\d+\.\d+\.\d+)\] - \d{4}-\d{2}-\d{2}$", changes, re.MULTILINE)
    assert releases[0] == dtun.__version__
    assert releases == sorted(
        releases, key=lambda text: [int(part) for part in text.split(".")], reverse=True
    )
