"""What goes where, on systems that no container here can be."""

import plistlib
from pathlib import Path

import pytest

from tools import install, layout


def test_a_mac_gets_its_own_files_and_nothing_of_systemd() -> None:
    files = layout.darwin()
    assert set(files) == {
        "/Library/LaunchDaemons/org.dtun.client.plist",
        "/Library/LaunchDaemons/org.dtun.server.plist",
        "/etc/dtun.yaml.example",
        "/etc/newsyslog.d/dtun.conf",
        "/usr/local/share/man/man5/dtun.yaml.5",
        "/usr/local/share/man/man8/dtun.8",
        "/usr/local/share/zsh/site-functions/_dtun",
    }
    for role in ("client", "server"):
        job = plistlib.loads(files[f"/Library/LaunchDaemons/org.dtun.{role}.plist"].encode())
        # What the job starts is what `make install` puts there.
        assert job["ProgramArguments"][:2] == [str(install.PREFIX / "current" / "bin" / "dtun"), role]


def test_the_package_and_make_install_lay_down_the_same() -> None:
    def contents(where: layout.Directories) -> list[str]:
        return sorted(layout.linux(where).values())

    assert contents(layout.PACKAGE) == contents(layout.LOCAL)


def test_no_file_of_make_install_is_in_a_package_s_place() -> None:
    assert not set(layout.linux(layout.PACKAGE)) & set(layout.linux(layout.LOCAL))
    assert all(path.startswith(("/etc/", "/usr/local/")) for path in layout.linux(layout.LOCAL))
    assert all(path.startswith("/usr/") for path in layout.linux(layout.PACKAGE))


def test_a_file_is_replaced_whole_and_for_everybody_to_read(tmp_path: Path) -> None:
    path = tmp_path / "file"
    install.write(path, "old")
    path.chmod(0o600)
    with path.open() as reader:
        install.write(path, "new")
        assert reader.read() == "old"
    assert (path.read_text(), path.stat().st_mode & 0o777) == ("new", 0o644)
    assert list(path.parent.iterdir()) == [path]


def test_the_first_configuration_never_takes_another_s_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(install, "CONFIG", tmp_path / "dtun.yaml")
    install._first_config(group=-1, mode=0o600)
    assert install.CONFIG.read_text() == layout.example()
    assert install.CONFIG.stat().st_mode & 0o777 == 0o600
    install.CONFIG.write_text("mine")
    install._first_config(group=-1, mode=0o600)
    assert install.CONFIG.read_text() == "mine"
