"""What a model directory says of embeddings: the files that sentence-transformers writes.

modules.json               the steps after the transformer: pooling, normalisation
1_Pooling/config.json      which pooling
sentence_bert_config.json  the longest sequence it was made for

Without modules.json a decoder pools its last token and an encoder the mean of all, and vectors get
length 1, which is what OpenAI's clients expect.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from worker.models.fields import Fields, UnsupportedModelError
from worker.plans import Pooling

_MODES = {
    "pooling_mode_cls_token": Pooling.CLS,
    "pooling_mode_mean_tokens": Pooling.MEAN,
    "pooling_mode_lasttoken": Pooling.LAST,
}
_NAMES = {"cls": Pooling.CLS, "mean": Pooling.MEAN, "lasttoken": Pooling.LAST}


@dataclass(frozen=True)
class SentencePooling:
    """From a prompt's hidden states to its vector.

    Attributes:
        pooling: which of them.
        normalizes: the vector is divided by its length.
    """

    pooling: Pooling
    normalizes: bool = True


def read_pooling(
    directory: Path, *, is_encoder: bool, asked: Pooling | None = None
) -> SentencePooling:
    """How the model's vectors are made.

    Args:
        directory: the model's.
        is_encoder: attention sees the whole prompt.
        asked: by the operator; stands above what the files say.

    Raises:
        UnsupportedModelError: a module, or a pooling, that is not computed here.
    """
    found = _from_modules(directory) or SentencePooling(
        Pooling.MEAN if is_encoder else Pooling.LAST
    )
    pooling = found.pooling if asked is None else asked
    if pooling is Pooling.CLS and not is_encoder:
        raise UnsupportedModelError(
            "pooling is 'cls'; the first token of a model that generates sees nothing but itself"
        )
    return SentencePooling(pooling, found.normalizes)


def sentence_length(directory: Path) -> int | None:
    """Tokens of the longest sequence it was made for; None where no file says so.

    Raises `UnsupportedModelError` for what is not a number of tokens.
    """
    said = _read_json(directory / "sentence_bert_config.json")
    if not isinstance(said, Mapping) or said.get("max_seq_length") is None:
        return None
    return Fields(said).positive_int("max_seq_length")


def _from_modules(directory: Path) -> SentencePooling | None:
    modules = _read_json(directory / "modules.json")
    if modules is None:
        return None
    pooling, normalizes = None, False
    try:
        for module in modules:
            kind = module["type"].rpartition(".")[2]
            if kind == "Pooling":
                pooling = _pooling_of(directory / module["path"] / "config.json")
            elif kind == "Normalize":
                normalizes = True
            elif kind != "Transformer":
                raise UnsupportedModelError(f"modules.json has {kind}, which is not computed here")
    except (TypeError, KeyError, AttributeError) as error:
        raise UnsupportedModelError(f"modules.json is not a list of modules: {error!r}") from error
    if pooling is None:
        raise UnsupportedModelError("modules.json has no Pooling")
    return SentencePooling(pooling, normalizes)


def _pooling_of(path: Path) -> Pooling:
    config = _read_json(path)
    if not isinstance(config, Mapping):
        raise UnsupportedModelError(f"{path.parent.name}/{path.name} is missing")
    if config.get("include_prompt", True) is False:
        raise UnsupportedModelError("include_prompt is false; prompts are always pooled here")
    named = config.get("pooling_mode")
    modes = [named] if named else [n for n in config if n.startswith("pooling_mode") and config[n]]
    known = {**_MODES, **_NAMES}
    if len(modes) != 1 or modes[0] not in known:
        raise UnsupportedModelError(
            f"pooling is {', '.join(map(str, modes)) or 'nothing'}; "
            f"it must be one of {', '.join(_NAMES)}"
        )
    return known[modes[0]]


def _read_json(path: Path) -> Any:
    """None where there is no such file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UnsupportedModelError(f"{path.name} cannot be read: {error}") from error
