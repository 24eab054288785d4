"""The version of a package grows with the sources, and names the distribution."""

import os
import shutil
import subprocess
from itertools import pairwise
from pathlib import Path

import pytest

import dtun
from tools import version

DEBIAN = 'PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\nVERSION_ID="12"\nID=debian\n'


def tree(directory: Path) -> Path:
    (directory / "dtun").mkdir(parents=True)
    (directory / "dtun" / "a.py").write_text("")
    os.utime(directory / "dtun" / "a.py", (1_800_000_000, 1_800_000_000))
    return directory


def commit(root: Path, date: int) -> None:
    environment = os.environ | {"GIT_COMMITTER_DATE": f"@{date}", "GIT_AUTHOR_DATE": f"@{date}"}
    who = ("-c", "user.name=a", "-c", "user.email=a@example.org")
    for command in (("init", "-q"), ("add", "-A"), (*who, "commit", "-q", "-m", "x", "--allow-empty")):
        subprocess.run(["git", "-C", str(root), *command], check=True, env=environment)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (DEBIAN, "deb12"),
        ('ID=ubuntu\nVERSION_ID="24.04"\n', "ubuntu24.04"),
        ("ID=debian\n", "deb"),
        ("", "linux"),
    ],
)
def test_it_names_the_distribution(tmp_path: Path, text: str, name: str) -> None:
    (tmp_path / "os-release").write_text(text)
    assert version.distribution(tmp_path / "os-release") == name
    assert version.distribution(tmp_path / "none") == "linux"


def test_the_time_is_that_of_the_last_change(tmp_path: Path) -> None:
    root = tree(tmp_path / "tree")
    assert version.source_time(root, {}) == 1_800_000_000, "no repository"
    commit(root, 1_700_000_000)
    assert version.source_time(root, {}) == 1_700_000_000
    (root / "dtun" / "b.py").write_text("")
    os.utime(root / "dtun" / "b.py", (1_900_000_000, 1_900_000_000))
    assert version.source_time(root, {}) == 1_900_000_000, "not committed yet"
    assert version.source_time(root, {"SOURCE_DATE_EPOCH": "1"}) == 1


def test_a_later_build_is_newer_for_dpkg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("dpkg") is None:
        pytest.skip("dpkg is missing")
    (tmp_path / "12").write_text(DEBIAN)
    (tmp_path / "13").write_text(DEBIAN.replace('"12"', '"13"'))
    found = [dtun.__version__]
    for seconds, system in ((1_700_000_000, "12"), (1_700_000_000, "13"), (1_700_000_001, "12")):
        monkeypatch.setenv("SOURCE_DATE_EPOCH", str(seconds))
        found.append(version.package_version(tmp_path, tmp_path / system))
    assert found[1] == f"{dtun.__version__}+20231114221320~deb12"
    for older, newer in pairwise(found):
        assert subprocess.run(["dpkg", "--compare-versions", older, "lt", newer], check=False).returncode == 0
