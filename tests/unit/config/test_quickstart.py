"""A start without a file gives the same models, with the same checks."""

from ipaddress import IPv4Network
from pathlib import Path

import pytest

from dtun.config import ANY_ID, ConfigErrors, Endpoint, keys, load, quickstart


@pytest.fixture
def key_file(tmp_path: Path) -> str:
    path = tmp_path / "demo.key"
    path.write_text(keys.generate())
    path.chmod(0o600)
    return str(path)


def test_a_server_takes_any_id_and_any_private_network(key_file: str) -> None:
    config = quickstart.server(key_file=key_file)
    assert config.server is not None
    assert (config.path, config.warnings) == (None, [])
    entry = config.server.entry("whoever")
    assert entry is config.server.clients[ANY_ID]
    assert entry.any_private
    assert len(entry.psk.secret()) == 32
    assert config.server.pool == IPv4Network("10.86.0.0/16")


def test_a_client_is_the_same_as_from_a_file(key_file: str, tmp_path: Path) -> None:
    config = quickstart.client(
        hosts=["a.example:1194", "192.0.2.1"],
        id="demo",
        key_file=key_file,
        subnets=["10.0.0.0/16"],
        routes=["10.9.0.0/16"],
        tun="tun7",
        up="/bin/true",
    )
    path = tmp_path / "dtun.yaml"
    path.write_text(
        f"client: {{servers: ['a.example:1194', 192.0.2.1], id: demo, key_file: {key_file},"
        " subnets: 10.0.0.0/16, routes: 10.9.0.0/16, tun: tun7, up: /bin/true}"
    )
    assert config.client == load(path).client


def test_a_key_on_the_command_line_is_taken_with_a_warning() -> None:
    config = quickstart.server(
        key=keys.generate(), listen=["127.0.0.1:4444"], runtime_directory="/run/second"
    )
    assert config.server is not None
    assert [str(endpoint) for endpoint in config.server.listen] == ["127.0.0.1:4444"]
    assert isinstance(config.server.listen[0], Endpoint)
    assert config.control_socket == Path("/run/second/server.sock")
    assert config.warnings == [
        "--key: every user of this host can read it in the list of processes; use --key-file"
    ]


def test_problems_name_the_options() -> None:
    with pytest.raises(ConfigErrors) as caught:
        quickstart.client(
            hosts=["a b"], id="*", key="x", subnets=["10.0.0.1/8"], routes=["10"], up="x", tun="a b"
        )
    assert sorted(line.split(": ")[0] for line in caught.value.lines) == [
        "--host", "--id", "--key", "--peernet", "--route", "--tun", "--up"
    ]  # fmt: skip
    with pytest.raises(ConfigErrors) as caught:
        quickstart.server(key="x", pool="10.0.0.0/31", listen=["here"], runtime_directory="run")
    assert sorted(line.split(": ")[0] for line in caught.value.lines) == [
        "--key", "--listen", "--pool", "--runtime-directory"
    ]  # fmt: skip
