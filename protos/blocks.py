"""Tokens of a KV block, where the operator says nothing."""

BLOCK_SIZE = 16
OPENVINO_BLOCK_SIZE = 32
"""The only size that OpenVINO's attention takes."""
