"""How much is measured: a GPU's fill, or so little that a CPU shows in seconds that it runs."""

from dataclasses import dataclass, replace

from bench.gpu.shapes import LLAMA_3_1_8B, QWEN2_5_7B, QWEN3_0_6B, TINY, Shape


@dataclass(frozen=True, slots=True)
class Load:
    """Requests that all come at once.

    Attributes:
        count: requests.
        input_len: tokens of each prompt.
        output_len: tokens of each answer.
    """

    count: int
    input_len: int
    output_len: int

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.input_len} in, {self.output_len} out, batch {self.count}"


@dataclass(frozen=True, slots=True)
class Scale:
    """Sizes of everything that is measured.

    Attributes:
        large: the model that most targets are about.
        middle: another family's.
        small: one whose steps are short: launches show.
        copy_bytes: of the copy that measures memory.
        matmul_size: rows, columns and depth of the product that measures arithmetic.
        few_rows: a decode step's, for kernels and steps.
        many_rows: those of full slots.
        kernel_context: tokens of each context that decode attention reads.
        context: tokens of each context of whole decode steps.
        prompt: tokens of the long prompt.
        chunk: the usual token budget of a step.
        num_steps: decode steps that are timed.
        offline: the load of the whole stack.
        peers: loads that peers get too.
        continuous: those of them that continuous batching gets.
    """

    large: Shape
    middle: Shape
    small: Shape
    copy_bytes: int
    matmul_size: int
    few_rows: int
    many_rows: int
    kernel_context: int
    context: int
    prompt: int
    chunk: int
    num_steps: int
    offline: Load
    peers: tuple[Load, ...]
    continuous: tuple[Load, ...]


FULL = Scale(
    large=LLAMA_3_1_8B,
    middle=QWEN2_5_7B,
    small=QWEN3_0_6B,
    copy_bytes=2 << 30,
    matmul_size=8192,
    few_rows=64,
    many_rows=256,
    kernel_context=4096,
    context=1024,
    prompt=8192,
    chunk=2048,
    num_steps=60,
    offline=Load(256, 1000, 1000),
    peers=(Load(1, 256, 128), Load(32, 256, 128), Load(256, 256, 128)),
    continuous=(Load(32, 256, 128), Load(256, 256, 128)),
)
SMALLEST = Scale(
    large=replace(TINY, name="tiny"),
    middle=replace(TINY, name="tiny, again"),
    small=replace(TINY, name="tiny, a third time"),
    copy_bytes=1 << 20,
    matmul_size=64,
    few_rows=2,
    many_rows=3,
    kernel_context=40,
    context=40,
    prompt=64,
    chunk=32,
    num_steps=3,
    offline=Load(3, 20, 5),
    peers=(Load(1, 20, 3), Load(3, 20, 3)),
    continuous=(),  # a minute on a CPU, however little there is to do
)
