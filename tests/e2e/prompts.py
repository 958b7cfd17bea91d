"""Thirty-two prompts of mixed length: chat and raw, digits, unicode, one over 2,000 tokens."""

from pathlib import Path

from tokenizers import Tokenizer

from tests.e2e.reference import Prompt

_CHAT = [
    "What is the capital of France?",
    "Name three rivers in Europe and the countries they cross.",
    "What is 17 * 23? Show the steps.",
    "Write a haiku about autumn.",
    "Übersetze ins Englische: Der Fluß ist breiter als gewöhnlich.",
    "日本の首都はどこですか。",
    "Give me a JSON object with the keys name and age.",
    "Summarise: " + "The river rose slowly and the town prepared its boats. " * 12,
    "Is 9007199254740993 prime? Think it through.",
    "Explain paged attention to a child. 🙂🚀",
    "List the numbers from 1 to 15.",
    "Что такое планировщик?",
    "Write a Python function that reverses a list.",
    "Who are you?",
    "Repeat after me: α β γ δ ε ζ η θ",
    "Compare tea and coffee in two sentences.",
]
_RAW = [
    "The",
    "Once upon a time",
    "3.14159265358979323846",
    "def fibonacci(n):\n    ",
    "1, 2, 3, 4, 5, 6, 7,",
    "In 1969, 2 people walked on the Moon; in 1972, the last 2 did. In 2024",
    "naïve café — “quoted” … 漢字 한국어 עברית",
    "SELECT name, age FROM people WHERE",
    "\n\n\n   \t  indented",
    "A B C D E F G H I J K L M N O P Q R S T U V W X Y",
    "Water boils at 100 degrees and freezes at 0. " * 8,
    "The quick brown fox jumps over the lazy dog. " * 24,
    "for (int i = 0; i < 10; ++i) {",
    "👩‍👩‍👧‍👦 👍🏽 family",
    "Dear Sir or Madam,\n\nI am writing to",
]
_LONG = " ".join(
    f"Item {i}: the price of part {i * 37 % 101} is {i * 7919 % 1000} coins." for i in range(110)
)
SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"


def chat_text(question: str) -> str:
    """The model's chat template, written out: the oracle must not share code with the server."""
    return (
        f"<|im_start|>system\n{SYSTEM}<|im_end|>\n"
        f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
    )


def load_prompts(model_dir: Path) -> list[Prompt]:
    """The prompts as token ids; chat answers end at the end token, raw ones run on."""
    tokenizer = Tokenizer.from_file(str(model_dir / "tokenizer.json"))
    chat = [(chat_text(question), False) for question in _CHAT]
    raw = [(text, True) for text in _RAW]
    # The long one is first: in a small pool all others grow beside it and lose their blocks.
    texts = [(_LONG, True), *chat, *raw]
    prompts = [Prompt(tuple(tokenizer.encode(text).ids), ignore) for text, ignore in texts]
    assert len(prompts) == 32
    assert max(len(p.token_ids) for p in prompts) > 2000
    return prompts


SMALL_VOCABULARY = range(3, 400)
"""What a prompt of the small model may have: all but its special tokens."""


def respelled(prompt: Prompt) -> Prompt:
    """Token for token in the small model's vocabulary: what two prompts shared they still share."""
    ids = (SMALL_VOCABULARY[token % len(SMALL_VOCABULARY)] for token in prompt.token_ids)
    return Prompt(tuple(ids), prompt.ignore_eos)
