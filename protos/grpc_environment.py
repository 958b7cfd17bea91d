"""What gRPC reads of its process's environment, once, when it is loaded: it is to be said before.

gRPC's event engine has threads of its own to wait for sockets, and hands what arrives to the thread
that waits for completions, which hands it to the event loop. With the engine off the second waits
for sockets itself: a message costs two thirds of the processor's time, and wakes half as many
threads, each of which interrupts a forward pass where processors are few. Whoever sets the variable
decides; a gRPC that knows no such choice ignores it.
"""

import os

EXPERIMENTS = "GRPC_EXPERIMENTS"
WITHOUT_ENGINE = "-event_engine_client,-event_engine_listener"


def prepare() -> None:
    """For the gRPC that this process is about to load."""
    os.environ.setdefault(EXPERIMENTS, WITHOUT_ENGINE)
