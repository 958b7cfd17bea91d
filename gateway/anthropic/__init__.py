"""Anthropic's dialect: request bodies in, responses, stream events and errors out."""
