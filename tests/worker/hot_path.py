"""Which code runs between two plans, and which calls in it could wait for the device.

A call is known by its name alone: `tolist` is harmless on an array of numpy's and a wait on a
tensor. So every one must be named in `tests.worker.test_no_sync`, with the reason why it may stay.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
WHOLE_FILES = (
    "worker/device_runner.py",
    "worker/device_masks.py",
    "worker/step_outputs.py",
    "worker/decode_steps.py",
    "worker/completion.py",
    "worker/device_tables.py",
    "worker/lane.py",
    "kernels/batch.py",
    "kernels/linear.py",
    "worker/models/decoder.py",
    "worker/models/layers.py",
    "worker/models/vocabulary.py",
    "worker/models/gemma*.py",  # the families with layers of their own
    "kernels/gpu/*.py",
)
# Of these files the rest is what a CPU runs, or a specification.
FUNCTIONS = {
    "kernels/sampling.py": ("token_logprobs",),
    "worker/prompt_scores.py": ("score", "_tiles"),
    "kernels/step_sampling.py": ("count_known_tokens", "packed", "num_words"),
}
# Ask for values, or for a size that values decide.
_ASKING = (
    "item tolist cpu numpy wait synchronize drain is_nonzero equal allclose nonzero argwhere "
    "masked_select unique unique_consecutive bincount"
)
# Make a tensor of the host's values.
_BRINGING = "tensor as_tensor from_numpy"
WAITING_METHODS = frozenset(f"{_ASKING} {_BRINGING}".split())
WAITING_BUILTINS = frozenset(("bool", "float", "int"))

Call = tuple[str, str, str]
"""A file, the function in it, and what is called."""


def waiting_calls() -> set[Call]:
    """Those of the hot path."""
    whole = [path for pattern in WHOLE_FILES for path in sorted(ROOT.glob(pattern))]
    calls = {call for path in whole for call in _of_file(path)}
    for name, functions in FUNCTIONS.items():
        found = set(_of_file(ROOT / name, functions))
        calls |= found
    return calls


def waiting_calls_in(source: str, file: str = "") -> set[Call]:
    """Those of a module's text."""
    return set(_of_body(ast.parse(source), file, ()))


def _of_file(path: Path, functions: tuple[str, ...] | None = None) -> set[Call]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    if functions is not None:
        kept = [node for node in tree.body if getattr(node, "name", None) in functions]
        assert len(kept) == len(functions), f"{path} has not all of {functions}"
        tree.body = kept
    return set(_of_body(tree, path.relative_to(ROOT).as_posix(), ()))


def _of_body(node: ast.AST, file: str, inside: tuple[str, ...]) -> Iterator[Call]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.ClassDef):
            if not _is_kernel(child):
                yield from _of_body(child, file, (*inside, child.name))
            continue
        if isinstance(child, ast.Call) and (called := _called(child.func)) is not None:
            yield file, ".".join(inside), called
        yield from _of_body(child, file, inside)


def _called(function: ast.expr) -> str | None:
    if isinstance(function, ast.Attribute) and function.attr in WAITING_METHODS:
        return function.attr
    if isinstance(function, ast.Name) and function.id in WAITING_BUILTINS:
        return function.id
    return None


def _is_kernel(node: ast.FunctionDef | ast.ClassDef) -> bool:
    """Whether Triton compiles it: it runs on the device."""
    return any("jit" in ast.unparse(decorator) for decorator in node.decorator_list)
