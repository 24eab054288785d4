"""YAML that is broken, hostile or odd: always an error with a place, never another exception."""

import base64
import contextlib
from pathlib import Path

import pytest
from hypothesis import example, given, settings, strategies as st

from dtun.config import ConfigErrors, document, load, validation
from dtun.config.document import Position

SYNTAX = [
    ("server:\n\tlisten: x\n", (2, 1), "tab"),
    ("server:\n  clients:\n    *: {}\n", (3, 6), 'like "*"'),
    ("server:\n  clients:\n    *any: {}\n", (3, 5), 'like "*"'),
    ("server: {listen: [a\n", (2, 1), "bracket"),
    ('server: "open\n', (2, 1), "ends within"),
    ("server:\n  mtu 1400\n  pool: x\n", (3, 7), "colon"),
    ("server:\n  mtu: 1\n pool: x\n", (3, 2), "indentation"),
    ("server: a: b\n", (1, 10), "colon too much"),
    ("server: @x\n", (1, 9), "in quotes"),
    ('server: "\\q"\n', (1, 11), "escape"),
    ('server: "\\U99999999"\n', (1, 1), "escape"),
    ("server: a\x07b\n", (1, 10), "control character"),
    ('server: "a\\x07b"\n', (1, 9), "control character"),
    ('"\\0": b\n', (1, 1), "control character"),
    ("a: 1\n---\nb: 2\n", (2, 1), "second document"),
    ("server: !!python/object:os.system x\n", (1, 9), "tag"),
    ("? [a, b]\n: c\n", (1, 3), "quote it"),
    ("a: 1\nb: 2\na: 3\n", (3, 1), "'a' is there twice, first on line 1"),
    ("a: &x 1\nb: &x 2\nc: *y\n", (2, 4), "same name"),
]


@pytest.mark.parametrize(("text", "position", "hint"), SYNTAX)
def test_a_mistake_is_placed_and_explained(text: str, position: tuple[int, int], hint: str) -> None:
    ((place, problem),) = document.parse(text.encode()).problems
    assert place == position
    assert hint in problem.message


def test_a_file_that_is_no_text() -> None:
    ((place, problem),) = document.parse(b"server:\n  a: \xff\n").problems
    assert (place, problem.message) == (Position(2, 6), "is not UTF-8 text; save the file as UTF-8")


def test_a_byte_order_mark_is_no_part_of_the_first_name() -> None:
    assert document.parse(b"\xef\xbb\xbfserver: x").data == {"server": "x"}


def test_scalars_stay_what_was_written() -> None:
    parsed = document.parse(b"{a: 010, b: on, c: 1:30, d: 2001-01-01, e: '', f: ~, g: , h: 'null', <<: 1}")
    expected = {
        "a": "010",
        "b": "on",
        "c": "1:30",
        "d": "2001-01-01",
        "e": "",
        "f": None,
        "g": None,
        "h": "null",
    }
    assert parsed.data == {**expected, "<<": "1"}


def test_positions_count_from_one_and_know_names_from_values() -> None:
    parsed = document.parse(b"a:\n  b: [x, y]\n")
    assert parsed.position(("a", "b", 1)) == (2, 10)
    assert parsed.position(("a", "b")) == (2, 6)
    assert parsed.position(("a", "b"), of_key=True) == (2, 3)
    assert parsed.position(("a", "missing")) == (1, 1)
    assert parsed.position(("nothing", "like", "that")) == (1, 1)


BOMBS = {
    "aliases": b"a: &a [x,x,x,x,x,x,x,x,x]\n"
    + b"".join(b"%c: &%c [%s]\n" % (98 + i, 98 + i, b",".join([b"*%c" % (97 + i)] * 9)) for i in range(8)),
    "an alias in itself": b"a: &a [*a]\n",
    "depth": b"[" * 100_000,
    "depth of a flow": b"{a: " * 100_000,
    "depth of blocks": b"- " * 10_000,
}


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS.keys())
def test_a_bomb_does_not_go_off(bomb: bytes) -> None:
    ((_, problem),) = document.parse(bomb).problems
    assert problem.message == "is nested too deeply, or its aliases repeat too much; write it plainly"


def test_a_huge_file_is_not_even_parsed() -> None:
    ((_, problem),) = document.parse(b"#" * (document.MAX_BYTES + 1)).problems
    assert "larger than 1 MiB" in problem.message


# Pieces of files, most of them broken: names, values and the special characters of YAML.
PIECES = st.sampled_from(
    [
        "server", "client", "clients", "listen", "pool", "pool6", "mtu", "suites", "keepalive", "timeout", "key",
        "key_file", "credential", "subnets", "servers", "id", "routes", "tun", "rekey", "compat", "up", "address",
        "exclude", "bypass", "bypass_files", "routing", "policy", "table", "mark", "on_disconnect", "block", "ipv6",
        "accept_routes", "all", "accept_dns", "true", "dns", "dns_domains", "~.", "forwarding", "masquerade",
        "push_routes", "push_dns", "push_domains", "next_key_file", "next_credential", "everything", "0x6474",
        "private", "go", "10.0.0.0/8", "fd00::/8", "10.86.0.2", "[::]:443", "a.b:1", "1400", "/x", "a",
        ": ", ":", "\n", "\n  ", "\n    ", "\n- ", "{", "}", "[", "]", ", ", "- ", "? ", "*", "&x ", "*x", "!",
        "!!int ", "'", '"', "\\", "\\ud800", "\\0", "|\n", ">\n", "#", "%YAML 1.1\n", "---\n", "...", "<<: ", "~", "\t",
        "@", "`", "\0",
    ]
)  # fmt: skip
YAMLISH = st.lists(PIECES | st.text(max_size=4), max_size=30).map("".join)
VALUES = st.recursive(
    PIECES | st.none() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(PIECES, inner, max_size=5),
    max_leaves=12,
)


@settings(max_examples=400)
@given(text=YAMLISH)
@example(text="client: {servers: h, id: a, key_file: '\\0'}")
@example(text='client: {servers: h, id: "\\ud800", key: "\\ud800"}')
@example(text="%YAML " + "9" * 5000 + ".1\n---\na")
@example(text="client: {servers: h, id: a, credential: ..}")
def test_whatever_is_in_the_file_there_is_a_configuration_or_an_answer(text: str, tmp_path: Path) -> None:
    path = tmp_path / "dtun.yaml"
    path.write_bytes(text.encode(errors="surrogatepass"))
    with contextlib.suppress(ConfigErrors):
        load(path)


@settings(max_examples=300)
@given(server=st.dictionaries(PIECES, VALUES, max_size=8), section=st.sampled_from(["server", "client"]))
def test_whatever_the_data_is_the_models_give_problems_only(server: dict[str, object], section: str) -> None:
    from dtun.config.validation import validate

    outcome = validate({section: server})
    assert outcome.problems or any(outcome.sections)


SECRETS = st.text("abcdefgXYZ0123456789+/=*&!:{}[],'\"\\#%@`- ", min_size=12, max_size=48)
PLACES = [
    "client:\n  servers: h\n  id: a\n  key: {}\n",
    "client:\n  servers: h\n  id: a\n  key: {}\n  compat: go\n",
    "client:\n  servers: h\n  id: a\n  key:{}\n",
    "client:\n  servers: h\n  key:{}\n  id: a\n",
    "client: {{servers: h, id: a, key: {}}}\n",
    "client: {{servers: h, id: a, key:{}}}\n",
    "client:\n  kye: {}\n",
    "server:\n  clients:\n    a: {{key: {}, mtu: 3}}\n",
    "server:\n  clients:\n    a:\n      key: [{}]\n",
    "server:\n  clients:\n    a:\n      key: '{}'\n      key: '{}'\n",
    'server:\n  clients:\n    a:\n      key: "{}\n      tun: x\n',
    "server:\n  clients:\n    a: key:{}\n",
]


def everything_said_about(path: Path) -> str:
    """The warnings or the errors, with what a traceback would show."""
    try:
        return "\n".join(load(path).warnings)
    except ConfigErrors as error:
        return f"{error} {error.__context__} {error.__cause__}"


@settings(max_examples=400)
@given(secret=SECRETS, place=st.sampled_from(PLACES))
def test_no_message_holds_a_part_of_a_key(secret: str, place: str, tmp_path: Path) -> None:
    path = tmp_path / "dtun.yaml"
    path.write_text(place.format(secret, secret))
    said = everything_said_about(path)
    for start in range(len(secret) - 7):
        part = secret[start : start + 8]
        assert part not in said or not part.strip("0123456789 :.,-")


def test_the_secret_is_not_shown_when_the_space_before_it_is_missing(tmp_path: Path) -> None:
    secret = base64.b64encode(bytes(range(32))).decode()
    path = tmp_path / "dtun.yaml"
    path.write_text(f"client: {{servers: h, id: a, key:{secret}, key:{secret}}}")
    with pytest.raises(ConfigErrors) as caught:
        load(path)
    assert "is a space missing after the colon?" in str(caught.value)
    assert secret not in str(caught.value)


def test_merging_is_refused_in_so_many_words() -> None:
    data = document.parse(b"client:\n  <<: {id: a}\n  servers: 192.0.2.1\n").data
    messages = [problem.message for problem in validation.validate(data).problems]
    assert "`<<` (merging in YAML) is not supported; write the settings themselves here" in messages
