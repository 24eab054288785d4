"""Keys: which are accepted, the errors of others, and that they stay hidden."""

import base64
import grp
import os
import stat
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, strategies as st

from dtun.config import Config, ConfigErrors, Key, keys

Load = Callable[[str], Config]
Problems = Callable[[str], list[str]]

CLIENT = "client: {servers: h, id: a, key_file: demo.key}\n"


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    """A good key, beside the configuration that names it."""
    path = tmp_path / "demo.key"
    path.write_text(keys.generate() + "\n")
    path.chmod(0o600)
    return path


def secret(config: Config) -> bytes:
    assert config.client is not None
    return config.client.psk.secret()


def test_a_new_key_is_taken(loaded: Load, key_file: Path) -> None:
    assert secret(loaded(CLIENT)) == base64.b64decode(key_file.read_text())
    assert len(secret(loaded(CLIENT))) == 32


def test_a_new_key_for_go_fits_it(loaded: Load, key_file: Path) -> None:
    text = keys.generate(go=True)
    key_file.write_text(f"{text}\n")
    config = loaded("client: {servers: h, id: a, key_file: demo.key, compat: go}")
    assert secret(config) == text.encode()
    assert len(text) == 32
    assert config.warnings == []


@given(st.binary(min_size=32, max_size=32), st.text(" \t\r\n", max_size=3))
def test_white_space_around_a_key_is_no_part_of_it(key: bytes, space: str) -> None:
    text = base64.b64encode(key).decode()
    assert keys.decode(f"{space}{text}{space}".encode(), go=False).secret() == key
    assert keys.decode(f"{space}{text[:32]}{space}".encode(), go=True).secret() == text[:32].encode()


@given(st.binary(max_size=100).filter(lambda key: len(key) != 32))
def test_a_key_of_another_length_is_refused(key: bytes) -> None:
    with pytest.raises(ValueError, match=r"is empty|is too (short|long) for a key: \d+ bytes instead of 32"):
        keys.decode(base64.b64encode(key), go=False)


@given(st.binary(max_size=60), st.booleans())
def test_a_key_that_is_refused_is_not_quoted(text: bytes, go: bool) -> None:
    try:
        keys.decode(text, go=go)
        said = ""
    except ValueError as error:
        said = str(error)
    # Words of the advice itself are not quotes.
    assert (
        len(text.strip()) < 4
        or text.strip() in b"`dtun genkey --compat go`"
        or repr(text.strip())[2:-1] not in said
    )


def test_a_file_that_others_can_read_is_refused(problems: Problems, key_file: Path) -> None:
    for mode in (0o640, 0o604, 0o620, 0o602):
        key_file.chmod(mode)
        assert [line.replace(str(key_file.parent), "") for line in problems(CLIENT)] == [
            f"dtun.yaml:1:39: client.key_file: demo.key can be used by others (mode {mode:04o});"
            f" run `chmod 600 {key_file}`".replace(str(key_file.parent), "").replace(
                "/demo.key`", "demo.key`"
            )
        ]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_file_of_another_user_is_refused(problems: Problems, key_file: Path) -> None:
    os.chown(key_file, 12345, 12345)
    (line,) = problems(CLIENT)
    assert "demo.key belongs to another user (uid 12345); run `chown root demo.key`" in line


def test_files_that_are_no_key(problems: Problems, key_file: Path) -> None:
    def said() -> str:
        (line,) = problems(CLIENT)
        return line.removeprefix("dtun.yaml:1:39: client.key_file: ")

    empty = (
        "demo.key is empty; copy the key of the other end, or run `rm demo.key && dtun genkey -o demo.key`"
    )
    for content, answer in [
        ("", empty),
        (" \n", empty),
        ("hello, world", "demo.key is not a base64 key; make a key with `dtun genkey`"),
        ("c2hvcnQ=", "demo.key is too short for a key: 5 bytes instead of 32; make a key with `dtun genkey`"),
        ("ab" * 32, "demo.key is too long for a key: 48 bytes instead of 32; make a key with `dtun genkey`"),
        ("x" * 5000, "demo.key is too big for a key file"),
    ]:
        key_file.write_text(content)
        assert said() == answer
    key_file.unlink()
    assert said() == (
        "demo.key does not exist; correct the path, copy the key from the other end,"
        " or make a new one with `dtun genkey -o demo.key`"
    )
    key_file.mkdir()
    assert said() == "demo.key is not a file; give the path of a key file"
    key_file.rmdir()
    os.mkfifo(key_file, 0o600)
    assert said() == "demo.key is not a file; give the path of a key file"


def test_a_file_that_we_may_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(
        ValueError, match="cannot be read by this user; start dtun as the file's owner or as root"
    ):
        keys.read_file(tmp_path / "key")


def test_the_key_of_a_go_dtun_has_its_own_form(problems: Problems) -> None:
    text = f"client: {{servers: h, id: a, compat: go, key: {'x' * 33}}}"
    assert problems(text) == [
        (
            "dtun.yaml:1:46: client.key: is too long: 33 bytes, and for an original dtun at most 32 are possible;"
            " make a key with `dtun genkey --compat go`"
        )
    ]


def test_a_credential_comes_from_the_service_manager(
    loaded: Load, problems: Problems, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "client: {servers: h, id: a, credential: home}"
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    assert problems(text) == [
        (
            "dtun.yaml:1:41: client.credential: $CREDENTIALS_DIRECTORY is not set;"
            " add LoadCredential= to the unit, or use key_file"
        )
    ]
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert problems(text) == [
        (
            "dtun.yaml:1:41: client.credential: no credential 'home' was passed;"
            " add LoadCredential=home:PATH to the unit"
        )
    ]
    credential = tmp_path / "home"
    credential.write_text(keys.generate())
    credential.chmod(0o440)  # what systemd's look like: the ACL's mask is in the place of the group's bits
    assert len(secret(loaded(text))) == 32
    for name in ("..", "a/b", "''"):
        (line,) = problems(f"client: {{servers: h, id: a, credential: {name}}}")
        assert line.endswith("must be the name of a credential, not a path")


def test_a_key_is_equal_to_its_like_and_hides() -> None:
    one, same, other = Key(b"x" * 32), Key(b"x" * 32), Key(b"y" * 32)
    assert one == same
    assert one != other
    assert hash(one) == hash(same)
    assert f"{one} {one!r} {[one]}" == "Key(hidden) Key(hidden) [Key(hidden)]"


def test_all_bad_keys_are_named_at_once(write: Callable[[str], Path]) -> None:
    from dtun.config import load

    with pytest.raises(ConfigErrors) as caught:
        load(write("server:\n  clients:\n    a: {key: short}\n    b: {key_file: /none}\n"))
    assert len(caught.value.lines) == 2


def test_modes_are_of_the_file_that_is_read(key_file: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(key_file)
    assert keys.read_file(link) == key_file.read_bytes()
    key_file.chmod(0o644)
    assert stat.S_IMODE(key_file.stat().st_mode) == 0o644
    with pytest.raises(ValueError, match="chmod 600"):
        keys.read_file(link)


def test_the_services_own_group_may_read_what_is_roots(
    key_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if key_file.stat().st_uid != 0:
        pytest.skip("the file would have to be root's")
    key_file.chmod(0o640)
    monkeypatch.setattr(grp, "getgrgid", lambda number: SimpleNamespace(gr_name="dtun", gr_gid=number))
    assert keys.read_file(key_file)
    monkeypatch.setattr(grp, "getgrgid", lambda number: SimpleNamespace(gr_name="users", gr_gid=number))
    with pytest.raises(ValueError, match="chmod 600"):
        keys.read_file(key_file)


def test_a_new_key_is_for_the_service_where_its_directory_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if os.geteuid() != 0:
        pytest.skip("the file would have to be root's")
    group = 4217
    os.chown(tmp_path, -1, group)
    tmp_path.chmod(0o2750)
    names = {group: "users"}
    monkeypatch.setattr(grp, "getgrgid", lambda number: SimpleNamespace(gr_name=names.get(number, "")))
    keys.write_file(tmp_path / "users.key", "text")
    assert stat.S_IMODE((tmp_path / "users.key").stat().st_mode) == 0o600

    names[group] = "dtun"
    keys.write_file(tmp_path / "home.key", "text")
    status = (tmp_path / "home.key").stat()
    assert (stat.S_IMODE(status.st_mode), status.st_gid) == (0o640, group)
    assert keys.read_file(tmp_path / "home.key") == b"text\n"


def test_the_service_is_told_how_to_get_at_its_key(monkeypatch: pytest.MonkeyPatch) -> None:
    path = Path("/etc/dtun/home.key")
    monkeypatch.setattr(grp, "getgrgid", lambda _number: SimpleNamespace(gr_name="dtun"))
    assert "`chown root:dtun /etc/dtun/home.key && chmod 640 /etc/dtun/home.key`" in keys.unreadable(path)
    monkeypatch.setattr(grp, "getgrgid", lambda _number: SimpleNamespace(gr_name="root"))
    assert "start dtun as the file's owner or as root" in keys.unreadable(path)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-8"])
def test_a_key_with_a_byte_order_mark_is_taken(encoding: str) -> None:
    text = keys.generate()
    assert keys.decode(f"{text}\r\n".encode(encoding), go=False) == keys.decode(text.encode(), go=False)
