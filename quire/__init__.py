"""What people import and type: `LLM`, `Client`, `SamplingParams`, and the `quire` command.

Names are resolved on first use, so that `import quire` (and `quire --help`) loads nothing heavy.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from quire.client import AsyncClient, Client, Tls
    from quire.errors import QuireError
    from quire.llm import LLM
    from quire.outputs import (
        Chunk,
        CompletionOutput,
        Logprob,
        RequestOutput,
        ToolCall,
        ToolCallDelta,
    )
    from quire.prompts import Chat
    from quire.sampling import SamplingParams, StructuredOutputsParams
    from quire.version import __version__

__all__ = [
    "LLM",
    "AsyncClient",
    "Chat",
    "Chunk",
    "Client",
    "CompletionOutput",
    "Logprob",
    "QuireError",
    "RequestOutput",
    "SamplingParams",
    "StructuredOutputsParams",
    "Tls",
    "ToolCall",
    "ToolCallDelta",
    "__version__",
]

_HOME = {
    "__version__": "quire.version",
    "LLM": "quire.llm",
    "AsyncClient": "quire.client",
    "Chat": "quire.prompts",
    "Chunk": "quire.outputs",
    "Client": "quire.client",
    "CompletionOutput": "quire.outputs",
    "Logprob": "quire.outputs",
    "QuireError": "quire.errors",
    "RequestOutput": "quire.outputs",
    "SamplingParams": "quire.sampling",
    "StructuredOutputsParams": "quire.sampling",
    "Tls": "quire.client",
    "ToolCall": "quire.outputs",
    "ToolCallDelta": "quire.outputs",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'quire' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
