"""Tokens of a KV block, where the operator says nothing."""

BLOCK_SIZE = 16
