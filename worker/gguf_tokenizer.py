"""The tokenizer inside a GGUF file, rebuilt as tokenizer.json and tokenizer_config.json.

GGUF stores a byte-level BPE as vocabulary and merges, and names the rule that cuts text before
merging.
A name that is not known here is refused: a wrong cut gives wrong tokens in silence.
"""

from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors

from worker.gguf_model import ConvertError, GGUFModel

_CONTROL, _USER_DEFINED = 3, 4
_LLAMA3_CUT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3_NAMES = ("llama-bpe", "llama3", "llama-v3")
_KNOWN_CUTS = ("gpt-2", "smollm", *_LLAMA3_NAMES)


def build_tokenizer(model: GGUFModel) -> Tokenizer:
    """The tokenizer, with its special tokens and, where the model wants one, its leading bos.

    Raises:
        ConvertError: another kind than byte-level BPE, or an unknown cutting rule.
    """
    kind = model.require("tokenizer.ggml.model")
    if kind != "gpt2":
        raise ConvertError(
            f"{model.path}: tokenizer kind {kind!r}; only byte-level BPE ('gpt2') is converted"
        )
    cut = model.get("tokenizer.ggml.pre", "(none)")
    if cut not in _KNOWN_CUTS:
        known = ", ".join(_KNOWN_CUTS)
        raise ConvertError(f"{model.path}: tokenizer.ggml.pre is {cut!r}; known: {known}")
    tokens = model.texts("tokenizer.ggml.tokens")
    vocab = {token: index for index, token in enumerate(tokens)}
    if len(vocab) != len(tokens):
        raise ConvertError(
            f"{model.path}: tokenizer.ggml.tokens has {len(tokens) - len(vocab)} twice"
        )
    merges = []
    for pair in model.texts("tokenizer.ggml.merges"):
        first, _, second = pair.partition(" ")
        if not {first, second, first + second} <= vocab.keys():
            raise ConvertError(
                f"{model.path}: tokenizer.ggml.merges has {pair[:80]!r}, which are no tokens"
            )
        merges.append((first, second))
    bpe = models.BPE(vocab=vocab, merges=merges, ignore_merges=cut in _LLAMA3_NAMES)
    tokenizer = Tokenizer(bpe)
    tokenizer.pre_tokenizer = _pre_tokenizer(cut)
    tokenizer.decoder = decoders.ByteLevel()
    types = model.get("tokenizer.ggml.token_type", [])
    if not isinstance(types, list):
        raise ConvertError(f"{model.path}: tokenizer.ggml.token_type must be a list")
    for token, token_type in zip(tokens, types, strict=False):
        if token_type == _CONTROL:
            tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False)])
        elif token_type == _USER_DEFINED:
            tokenizer.add_tokens([AddedToken(token, normalized=False)])
    if _adds_bos(model, cut):
        bos = model.token_id("bos")
        if bos is None:
            raise ConvertError(f"{model.path}: no tokenizer.ggml.bos_token_id in its metadata")
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{tokens[bos]} $A", special_tokens=[(tokens[bos], bos)]
        )
    return tokenizer


def tokenizer_config(model: GGUFModel) -> dict[str, Any]:
    """What tokenizer_config.json will say: named tokens and the chat template."""
    tokens = model.texts("tokenizer.ggml.tokens")
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": model.require("llama.context_length"),
        "clean_up_tokenization_spaces": False,
        "add_bos_token": _adds_bos(model, model.get("tokenizer.ggml.pre", "")),
    }
    for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        token_id = model.token_id(key)
        if token_id is not None:
            config[f"{name}_token"] = tokens[token_id]
    template = model.get("tokenizer.chat_template")
    if template is not None and not isinstance(template, str):
        raise ConvertError(f"{model.path}: tokenizer.chat_template must be a text")
    if template is not None:
        config["chat_template"] = template
    return config


def _pre_tokenizer(cut: str) -> pre_tokenizers.PreTokenizer:
    if cut == "gpt-2":
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    if cut == "smollm":
        digits = pre_tokenizers.Digits(individual_digits=True)
        return pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    split = pre_tokenizers.Split(Regex(_LLAMA3_CUT), behavior="isolated")
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([split, bytes_only])


def _adds_bos(model: GGUFModel, cut: str) -> bool:
    """Whether text starts with bos; Llama 3 files may leave it unsaid and mean yes."""
    return bool(model.get("tokenizer.ggml.add_bos_token", cut in _LLAMA3_NAMES))
