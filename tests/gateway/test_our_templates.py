"""The templates that come with Quire, each under the name of the calls that it knows."""

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from gateway.flags import CHAT_TEMPLATE
from gateway.model import Model, load_model
from gateway.parsing.formats import CALL_FORMATS
from protos.flag import FlagError
from tests.gateway.test_tools import FAMILIES, HELLO, WEATHER, accepts, parse, pieces_of, whole
from tests.gateway.test_tools import prompt as prompt_of

ROOT = Path(__file__).parents[2]
OWN_CALLS = {name.replace("llama3", "llama3_json"): call for name, call in FAMILIES.items()}


def ours(model_dir: Path, name: str) -> Model:
    path = CHAT_TEMPLATE.checked(name)
    assert path is not None
    return load_model(model_dir, chat_template=Path(path))


def calls_of(*arguments: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "id": f"call0000{index}",
            "type": "function",
            "function": {"name": "get_weather", "arguments": json.dumps(each)},
        }
        for index, each in enumerate(arguments)
    ]


@pytest.mark.parametrize("name", CALL_FORMATS)
def test_a_template_shows_its_format_and_its_calls_are_read_again(
    model_dir: Path, name: str
) -> None:
    model = ours(model_dir, name)
    assert model.call_format is not None
    assert model.call_format.name == name
    written = OWN_CALLS[name]
    message = whole(parse(model, tools=[WEATHER]), model, pieces_of([written]))["message"]
    (call,) = message["tool_calls"]
    assert json.loads(call["function"]["arguments"]) == {"city": "Paris"}
    assert accepts(parse(model, tools=[WEATHER], tool_choice="required"), written)
    result = {"role": "tool", "tool_call_id": call["id"], "content": "sunny"}
    text = prompt_of(model, tools=[WEATHER], messages=[*HELLO, message, result])
    assert "sunny" in text
    assert written.rstrip("}]") in text  # Mistral's calls have their id, too


@pytest.mark.parametrize("name", CALL_FORMATS)
def test_several_calls_of_any_arguments_come_back_as_they_were(model_dir: Path, name: str) -> None:
    """What the template writes of a turn is what the parser reads as that turn."""
    model = ours(model_dir, name)
    several: list[dict[str, Any]] = [
        {"city": 'a "b"', "when": None, "sure": True, "more": [1, {"x": False}]},
        {"n": 2.5},
    ]
    turn = {"role": "assistant", "content": "", "tool_calls": calls_of(*several)}
    before = prompt_of(model, tools=[WEATHER], messages=HELLO)
    after = prompt_of(model, tools=[WEATHER], messages=[*HELLO, turn], add_generation_prompt=False)
    said = re.sub(r"(<\|im_end\|>\n?|<\|eot_id\|>)$", "", after.removeprefix(before))
    message = whole(parse(model, tools=[WEATHER]), model, pieces_of([said]))["message"]
    read = [json.loads(call["function"]["arguments"]) for call in message["tool_calls"]]
    assert read == several


@pytest.mark.parametrize("name", CALL_FORMATS)
def test_each_turn_is_told_once_and_in_order(model_dir: Path, name: str) -> None:
    model = ours(model_dir, name)
    turns = [
        ("system", "be kind"), ("user", "first"), ("assistant", "apple"), ("user", "second"),
        ("assistant", "pear"),
    ]  # fmt: skip
    messages = [{"role": role, "content": text} for role, text in turns]
    for tools in ([], [WEATHER]):
        text = prompt_of(model, tools=tools, messages=messages)
        assert all(text.count(said) == 1 for _, said in turns)
        places = [text.index(said) for role, said in turns if role != "system"]
        assert places == sorted(places)
        assert ("get_weather" in text) == bool(tools)
    broken = calls_of({})
    broken[0]["function"]["arguments"] = "not JSON"
    last = {"role": "assistant", "content": "", "tool_calls": broken}
    assert "not JSON" in prompt_of(model, tools=[WEATHER], messages=[*HELLO, last])
    assert prompt_of(
        model, messages=[*HELLO, {"role": "assistant", "content": "Well,"}],
        continue_final_message=True,
    ).endswith("Well,")  # fmt: skip


def test_they_are_part_of_the_package() -> None:
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    packed = {
        path.name
        for pattern in patterns["package-data"]["gateway"]
        for path in (ROOT / "gateway").glob(pattern)
    }
    assert packed == {f"{name}.jinja" for name in CALL_FORMATS}


def test_a_path_is_a_path_still(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hermes").write_text("{{ messages }}")
    assert CHAT_TEMPLATE.checked("./hermes") == "./hermes"
    assert str(CHAT_TEMPLATE.checked("hermes")).endswith("gateway/templates/hermes.jinja")
    assert all(name in CHAT_TEMPLATE.says for name in CALL_FORMATS)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\n\n{% if %}", "line 3: Expected an expression, got 'end of statement block'"),
        (b"{{ a }", "line 1: unexpected '}'"),
        (b"\xff", "it must be a file in UTF-8: invalid start byte at byte 0"),
    ],
)
def test_what_is_no_template_is_refused_with_its_file_and_line(
    tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "bad.jinja"
    path.write_bytes(content)
    with pytest.raises(FlagError) as refused:
        CHAT_TEMPLATE.checked(str(path))
    assert str(refused.value).startswith(f"--chat-template is '{path}'; it must be ")
    assert message in str(refused.value)


def test_a_name_that_there_is_not_is_told_those_that_there_are() -> None:
    with pytest.raises(FlagError, match=r"No such file or directory; or one of hermes, llama3_j"):
        CHAT_TEMPLATE.checked("chatml")
