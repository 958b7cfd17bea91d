"""A cable that delays, loses and swallows packets, between two network devices of the kernel.

What `tc netem` does, for kernels without it: both ends are TUN devices, and a thread carries the
packets from one to the other. TCP meets the real thing: it has to send again what is lost, and what
it was told is gone is gone.
"""

import contextlib
import fcntl
import heapq
import itertools
import os
import random
import select
import struct
import threading
import time
from collections.abc import Iterator

_DEVICE = "/dev/net/tun"
_TUNSETIFF = 0x400454CA
_IFF_TUN, _IFF_NO_PI = 0x0001, 0x1000
_MAX_PACKET_BYTES = 1 << 16


class Wire:
    """Packets go both ways; a test changes what becomes of them as it goes."""

    def __init__(self, ends: tuple[int, int]) -> None:
        """`ends` are file descriptors of the devices."""
        self.delay_s = 0.0
        """One way."""
        self.loss = 0.0
        """Share of the packets, in each direction."""
        self.is_cut = False
        self.num_carried = self.num_lost = 0
        self._others = dict(zip(ends, reversed(ends), strict=True))
        self._dice = random.Random(0)
        self._on_the_way: list[tuple[float, int, int, bytes]] = []
        """A heap: when it arrives, its number, where, and the packet."""
        self._numbers = itertools.count()

    def heal(self) -> None:
        """As good as it gets."""
        self.delay_s, self.loss, self.is_cut = 0.0, 0.0, False

    def carry(self, closing: int) -> None:
        """Until the other side of this pipe is closed."""
        while True:
            wait_s = None
            if self._on_the_way:
                wait_s = max(0.0, self._on_the_way[0][0] - time.monotonic())
            readable, _, _ = select.select([*self._others, closing], [], [], wait_s)
            if closing in readable:
                return
            for end in readable:
                self._take(os.read(end, _MAX_PACKET_BYTES), self._others[end])
            self._deliver()

    def _take(self, packet: bytes, end: int) -> None:
        if self.is_cut or self._dice.random() < self.loss:
            self.num_lost += 1
            return
        entry = (time.monotonic() + self.delay_s, next(self._numbers), end, packet)
        heapq.heappush(self._on_the_way, entry)

    def _deliver(self) -> None:
        now = time.monotonic()
        while self._on_the_way and self._on_the_way[0][0] <= now:
            _, _, end, packet = heapq.heappop(self._on_the_way)
            self.num_carried += 1
            with contextlib.suppress(OSError):  # a device that is down takes nothing
                os.write(end, packet)


@contextlib.contextmanager
def wire(one: str, other: str) -> Iterator[Wire]:
    """Makes both devices, which exist as long as this lasts. Raises OSError where it may not."""
    with contextlib.ExitStack() as stack:
        ends = []
        for name in (one, other):
            ends.append(os.open(_DEVICE, os.O_RDWR))
            stack.callback(os.close, ends[-1])
            asked = struct.pack("16sH22x", name.encode(), _IFF_TUN | _IFF_NO_PI)
            fcntl.ioctl(ends[-1], _TUNSETIFF, asked)
        made = Wire((ends[0], ends[1]))
        closing, close = os.pipe()
        stack.callback(os.close, closing)
        thread = threading.Thread(target=made.carry, args=(closing,), name="wire")
        thread.start()
        try:
            yield made
        finally:
            os.close(close)
            thread.join()
