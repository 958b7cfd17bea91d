"""`InferenceService` messages to requests, and pieces of output and errors to messages."""

from gateway.wire.embeddings import embed_response, parse_embed
from gateway.wire.errors import error_detail
from gateway.wire.pieces import PieceWriter
from gateway.wire.requests import GenerateCall, parse_generate

__all__ = [
    "GenerateCall",
    "PieceWriter",
    "embed_response",
    "error_detail",
    "parse_embed",
    "parse_generate",
]
