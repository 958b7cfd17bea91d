"""Keys have names, come from three places, and are shown nowhere."""

import base64
import json
from pathlib import Path

import pytest

from gateway.errors import RequestError
from gateway.keys import ApiKeys, read_keys
from protos.flag import FlagError
from quire.door import TcpDoor

KEYS = ApiKeys({"alice": ("sk-a",), "bob": ("sk-b", "sk-old")})


def test_keys_come_from_flags_files_and_the_environment(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("# staff\nalice  sk-a\n\n\tbob sk-b\n")
    environment = {"QUIRE_API_KEY": "sk-ignored", "QUIRE_API_KEYS": '{"carol": "sk~c,!with{all}"}'}
    assert read_keys(["one", "two"], str(path), environment) == {
        "default": ("one",),
        "default-2": ("two",),
        "alice": ("sk-a",),
        "bob": ("sk-b",),
        "carol": ("sk~c,!with{all}",),
    }
    assert read_keys(None, None, {"QUIRE_API_KEY": "sk"}) == {"default": ("sk",)}
    assert read_keys(None, None, {"QUIRE_API_KEY": "", "QUIRE_API_KEYS": ""}) == {}


def test_a_name_may_have_several_keys(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("alice sk-new\nbob sk-b\nalice sk-old\n")
    environment = {"QUIRE_API_KEYS": '{"bob": ["sk-b2", "sk-b3"]}'}
    assert read_keys((), str(path), environment) == {
        "alice": ("sk-new", "sk-old"),
        "bob": ("sk-b", "sk-b2", "sk-b3"),
    }


def test_a_router_finds_each_key_once(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("alice sk-a\nbob sk-b\n")
    said = {"QUIRE_API_KEYS": '{"alice": "sk-a2", "carol": "sk-c"}'}
    keys = read_keys((), str(path), said)
    door = TcpDoor("127.0.0.1", 0, 0, keys, str(path))
    assert read_keys(None, str(path), dict(door.environment)) == keys


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "it holds no key"),
        ("# alice sk-secret", "it holds no key"),
        ("alice", "line 1 has 1 word; it must have a name and a key"),
        ("a sk-1\nalice sk-secret more", "line 2 has 3 words"),
        ("a{b sk-secret", "the name 'a{b' of a key must be 1 to 64 letters, digits or any of"),
        (f"{'a' * 65} sk-secret", "of a key must be 1 to 64"),
        ("a sk-secret\na sk-secret", "line 2: the key a is there already"),
        ("a sk-secret\nb sk-secret", "line 2: the key b is another one's, too"),
        (f"a sk-secret{'x' * 1024}", "the key a has 1033 characters; it must have 1 to 1024"),
        ("".join(f"n{i} sk-secret{i}\n" for i in range(1001)), "there are more than 1000 keys"),
    ],
)
def test_a_file_that_cannot_be_is_refused_and_shows_no_key(
    tmp_path: Path, text: str, message: str
) -> None:
    path = tmp_path / "keys"
    path.write_text(text)
    with pytest.raises(FlagError) as error:
        read_keys(None, str(path), {})
    assert message in str(error.value)
    assert "sk-secret" not in str(error.value)


@pytest.mark.parametrize(
    "text",
    ["sk-secret", "[]", '{"a": 1}', '{"a": []}', '{"a": ["sk-secret", 1]}', '{"a": "sk-secret"'],
)
def test_a_variable_that_is_no_object_of_keys_is_refused(text: str) -> None:
    with pytest.raises(FlagError, match=r"^QUIRE_API_KEYS must be a JSON object, like") as error:
        read_keys(None, None, {"QUIRE_API_KEYS": text})
    assert "sk-secret" not in str(error.value)


@pytest.mark.parametrize(
    "key", [" sk-secret", "sk-secret\n", "sk secret", "sk-schlüssel", "sk\x7f"]
)
def test_a_key_that_no_client_can_send_is_refused(key: str) -> None:
    for given, variables in (([key], {}), (None, {"QUIRE_API_KEYS": json.dumps({"default": key})})):
        with pytest.raises(
            FlagError, match="the key default holds a space or what is not"
        ) as error:
            read_keys(given, None, variables)
        assert key not in str(error.value)


def test_a_variable_may_end_in_the_end_of_a_line() -> None:
    assert read_keys(None, None, {"QUIRE_API_KEY": " sk-secret\n"}) == {"default": ("sk-secret",)}
    assert read_keys(None, None, {"QUIRE_API_KEYS": '{"a": "sk"}\n'}) == {"a": ("sk",)}
    with pytest.raises(FlagError, match="QUIRE_API_KEY holds nothing but white space"):
        read_keys(None, None, {"QUIRE_API_KEY": "\n"})


def test_a_request_is_its_keys() -> None:
    assert KEYS.check("Bearer sk-a") == "alice"
    assert KEYS.check("bearer  sk-b ") == "bob"
    assert KEYS.check(None, "sk-b") == "bob"
    assert KEYS.check(None, "sk-old") == "bob"
    assert ApiKeys({}).check(None) is None


@pytest.mark.parametrize(
    ("authorization", "x_api_key"),
    [
        (None, None),
        ("", ""),
        ("Bearer", None),
        ("Bearer sk-", None),
        ("Bearer sk-aa", None),
        ("sk-a", None),
        ("Basic sk-a", None),
        ("Bearer wrong", "sk-a"),
        ("Bearer \udcff", None),
        (None, "alice"),
    ],
)
def test_who_has_none_is_refused(authorization: str | None, x_api_key: str | None) -> None:
    with pytest.raises(RequestError, match="the API key is missing or wrong"):
        KEYS.check(authorization, x_api_key)


def test_a_password_is_a_key_too() -> None:
    def basic(text: str) -> str:
        return f"Basic {base64.b64encode(text.encode()).decode()}"

    assert KEYS.name_of_password(basic("anyone:sk-b")) == "bob"
    for said in (basic("sk-b"), basic("bob:sk-"), "Basic !", "Bearer sk-b", None):
        assert KEYS.name_of_password(said) is None
