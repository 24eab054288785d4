"""A configuration in use is saved for a next process, whatever becomes of its files."""

from pathlib import Path

import pytest

from dtun.config import Config, keys, load
from dtun.config.saved import restore, save

SERVER = """\
server:
  pool: 10.99.0.0/24
  clients:
    home: {key_file: home.key, next_key_file: next.key, subnets: [10.0.0.0/16]}
    old: {key: original, compat: go}
"""
CLIENT = (
    "client: {servers: vpn.example, id: a, key_file: home.key, routes: everything, bypass_files: [list]}\n"
)


def loaded(directory: Path, text: str) -> Config:
    for name in ("home", "next"):
        keys.write_file(directory / f"{name}.key", keys.generate())
    (directory / "list").write_text("192.0.2.0/24\n2001:db8::/32\n")
    path = directory / "dtun.yaml"
    path.write_text(text)
    path.chmod(0o600)
    config = load(path)
    for file in directory.iterdir():
        file.unlink()
    return config


@pytest.mark.parametrize("text", [SERVER, CLIENT])
def test_it_comes_back_as_it_was_without_its_files(tmp_path: Path, text: str) -> None:
    config = loaded(tmp_path, text)
    back = restore(save(config), tmp_path / "dtun.yaml")
    assert back.section.model_dump() == config.section.model_dump()
    if config.server is not None and back.server is not None:
        assert back.server.clients == config.server.clients, "with their keys"
        assert back.server.clients["home"].next_psk == config.server.clients["home"].next_psk
    if config.client is not None and back.client is not None:
        assert back.client.psk == config.client.psk
        assert back.client.bypassed == config.client.bypassed
    assert restore(save(back), tmp_path / "dtun.yaml").section.model_dump() == config.section.model_dump()


def test_of_another_version_it_is_refused_without_telling_a_secret(tmp_path: Path) -> None:
    saved = save(loaded(tmp_path, SERVER))
    for wrong in (b"", b"{}", saved[:-1], saved.replace(b'"keys":[', b'"keys":[[],')):
        with pytest.raises(ValueError, match=r"^(it is of another version of dtun|its keys are missing)$"):
            restore(wrong, tmp_path)
    config = loaded(tmp_path, SERVER)
    assert "key" not in repr(config).partition("content")[2], "nor does it show the file"
