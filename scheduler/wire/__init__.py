"""Bytes to the scheduler's own types and back: the seam where protobuf stops.

Peers are not trusted. A message that cannot be understood is `Malformed` and costs its sender the
stream; a request that is understood and cannot be served is `Refused` with the field, the limit and
the value, and costs nothing else. What a function here returns has been checked.
"""
