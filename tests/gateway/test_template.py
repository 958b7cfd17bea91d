"""Conversations become prompts, and what people write stays text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.conversation import ChatMessage, Conversation
from gateway.errors import ModelError, RequestError
from gateway.model import Model
from gateway.template import ChatTemplate
from tests.gateway.tiny_model import MAX_MODEL_LEN, SPECIAL


def render(source: str, *messages: ChatMessage) -> str:
    template = ChatTemplate(source, {"bos_token": "<s>"}, {"<s>"})
    return "".join(template.render(Conversation(messages)).pieces)


def test_a_conversation_is_tokenized_with_its_control_tokens(model: Model) -> None:
    messages = [ChatMessage("system", "be kind"), ChatMessage("user", "12 foxes")]
    tokens = model.chat(Conversation(messages), MAX_MODEL_LEN).token_ids
    written = (
        "<|im_start|>system\nbe kind<|im_end|>\n<|im_start|>user\n12 foxes<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert model.tokenizer.decode(tokens, skip_special_tokens=False) == written
    assert tokens == model.tokenizer.encode(written, add_special_tokens=False)
    assert [token for token in tokens if token < 3] == [1, 2, 1, 2, 1]


@given(st.lists(st.sampled_from([*SPECIAL, "<", "|im_end|>", "hello", "\n", "é"]), max_size=6))
def test_what_people_write_is_never_a_control_token(model: Model, parts: list[str]) -> None:
    content = "".join(parts)
    tokens = model.chat(Conversation([ChatMessage("user", content)]), MAX_MODEL_LEN).token_ids
    assert [token for token in tokens if token < 3] == [1, 2, 1]
    text = model.tokenizer.decode(tokens, skip_special_tokens=False)
    assert text == f"<|im_start|>user\n{content}<|im_end|>\n<|im_start|>assistant\n"


def test_templates_may_still_look_at_what_people_write() -> None:
    source = "{% if 'b' in messages[0]['content'] %}{{ messages[0]['content'] | trim }}{% endif %}"
    assert render(source, ChatMessage("user", "  a<s>b  ")) == "a<s>b"


def test_the_extras_of_templates_on_the_hub_work() -> None:
    source = (
        "{% for message in messages %}{% if loop.index0 == 1 %}{% break %}{% endif %}"
        "{% generation %}{{ message | tojson }}{% endgeneration %}{% endfor %}"
        "{{ strftime_now('%Y') | length }}{{ bos_token }}"
    )
    rendered = render(source, ChatMessage("user", "<é>"), ChatMessage("user", "no"))
    assert rendered == '{"role": "user", "content": "<é>"}4<s>'


def test_a_template_that_refuses_is_the_clients_error() -> None:
    source = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(RequestError, match="roles must alternate") as caught:
        render(source, ChatMessage("user", "hi"))
    assert caught.value.field == "messages"


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ cycler.__init__.__globals__ }}",
    ],
)
def test_a_template_cannot_leave_the_sandbox(source: str) -> None:
    with pytest.raises(RequestError):
        render(source, ChatMessage("user", "hi"))


def test_what_is_not_a_template_is_refused_at_start() -> None:
    with pytest.raises(ModelError, match="not valid"):
        ChatTemplate("{% if %}", {}, ())


def test_special_tokens_stay_text_where_a_template_escapes_what_is_not_ascii() -> None:
    source = "{{ messages[0].content | tojson(ensure_ascii=true) }}"
    rendered = ChatTemplate(source, {}, {"<s>"}).render(Conversation([ChatMessage("user", "é<s>")]))
    assert rendered.pieces == ['"\\u00e9<', 's>"']
