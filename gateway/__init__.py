"""The door as a library, without a socket: OpenAI's dialect ⇄ requests, text ⇄ tokens."""
