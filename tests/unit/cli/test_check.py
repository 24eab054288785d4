"""`dtun check` looks at files as those will who read them."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from dtun.cli import check
from dtun.cli.arguments import DEFAULT_CONFIG
from dtun.config import keys
from dtun.errors import ConfigError, UnavailableError

NOBODY = "nobody"


@pytest.fixture
def file() -> Iterator[Path]:
    """A client's configuration that all may read, with a key that only its owner may."""
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        keys.write_file(Path(directory, "home.key"), keys.generate())
        path = Path(directory, "dtun.yaml")
        path.write_text("client: {servers: vpn.example, id: a, key_file: home.key}\n")
        yield path


def as_root() -> None:
    if os.geteuid() != 0:
        pytest.skip("only root may become another user")


def test_with_the_rights_of_another_user(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    as_root()
    before = os.geteuid(), os.getegid(), os.getgroups()
    assert check.check(file, None) == 0
    assert check.check(file, "root") == 0
    with pytest.raises(ConfigError, match=r"home\.key cannot be read by this user"):
        check.check(file, NOBODY)
    assert (os.geteuid(), os.getegid(), os.getgroups()) == before
    assert capsys.readouterr().out.count("OK: ") == 2
    with pytest.raises(UnavailableError, match="there is no user nobody-knows"):
        check.check(file, "nobody-knows")


def test_a_file_of_the_service_is_read_as_the_service(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    as_root()
    monkeypatch.setattr(check, "SERVICE_USER", NOBODY)
    monkeypatch.setattr(check, "SERVICE_FILE", file)
    monkeypatch.setattr(check, "HIDDEN", ())
    with pytest.raises(ConfigError, match=r"home\.key cannot be read by this user"):
        check.check(file, None)
    file.with_name("home.key").chmod(0o600)
    os.chown(file.with_name("home.key"), 65534, 0)
    assert check.check(file, None) == 0
    monkeypatch.setattr(check, "HIDDEN", (str(file.parent),))
    with pytest.raises(ConfigError, match=r"home\.key is not visible for the service"):
        check.check(file, None)
    os.chown(file.with_name("home.key"), 0, 0)
    monkeypatch.setattr(check, "SERVICE_USER", "nobody-knows")
    assert check.check(file, None) == 0, "there is no service here"


def test_a_device_that_is_in_the_way_of_the_service(file: Path) -> None:
    as_root()
    file.write_text(file.read_text().replace("id: a", "id: a, tun: lo"))
    assert check.check(file, None) == 0, "it may be for another machine"
    with pytest.raises(UnavailableError, match="a device of the name lo exists"):
        check.check(file, "root")


def test_a_credential_is_not_missed(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file.write_text("client: {servers: vpn.example, id: a, credential: home}\n")
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    assert check.check(file, None) == 0
    assert (
        "client.credential: was not looked at: systemd passes credentials to the service"
        in capsys.readouterr().err
    )
    keys.write_file(file.with_name("e"), keys.generate())
    file.write_text(
        "server: {clients: {a: {key_file: home.key, next_credential: b}, c: {credential: d, next_key_file: e}}}\n"
    )
    assert check.check(file, None) == 0
    assert capsys.readouterr().err.count("was not looked at") == 2
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(file.parent))
    with pytest.raises(ConfigError, match="no credential 'd' was passed"):
        check.check(file, None)


def test_the_services_files_are_those_in_the_units() -> None:
    units = Path(__file__).parents[3] / "packaging" / "systemd"
    text = "".join(unit.read_text() for unit in units.glob("*.service"))
    assert f"-c {check.SERVICE_FILE}\n" in text
    assert f"-c {check.SERVICE_DIRECTORY}/%i.yaml\n" in text
    assert f"User={check.SERVICE_USER}\n" in text
    assert DEFAULT_CONFIG == check.SERVICE_FILE
