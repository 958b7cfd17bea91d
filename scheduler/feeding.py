"""Plans go out: each replica gets as many ahead of its results as its pace asks for, and when."""

from collections.abc import Callable

from scheduler.attachments import Attachment, Attachments
from scheduler.core.scheduler import Scheduler
from scheduler.guard import Guard
from scheduler.metrics import Metrics
from scheduler.pacing import StepWatch
from scheduler.wire import workers

BURST_S = 0.001
"""After the first plan of an idle replica, how long the next waits for the rest of a burst."""


class Feeder:
    """Feeds replicas; and watches, by epoch, that each answers in time."""

    def __init__(
        self,
        core: Scheduler,
        attachments: Attachments,
        metrics: Metrics,
        guard: Guard,
        clock: Callable[[], float],
    ) -> None:
        self._core = core
        self._attachments = attachments
        self._metrics = metrics
        self._guard = guard
        self._clock = clock
        self._watches: dict[int, StepWatch] = {}
        self._is_due = False

    def watch(
        self, attachment: Attachment, fence: Callable[[Attachment], None], step_timeout_s: float
    ) -> None:
        """From now on its plans have deadlines; `fence` is called when one is missed."""
        self._watches[attachment.epoch] = StepWatch(
            lambda: self._guard.run(attachment.overdue_at, step_timeout_s),
            lambda: self._guard.run(fence, attachment),
            clock=self._clock,
            floor_s=step_timeout_s,
        )

    def forget(self, attachment: Attachment) -> None:
        """Its epoch is void."""
        self._watches.pop(attachment.epoch).stop()

    def feed_soon(self) -> None:
        """Feeds every replica once the events that are already here have been taken in."""
        if not self._is_due:
            self._is_due = True
            self._guard.call_soon(self._feed_all)

    def _feed_all(self) -> None:
        self._is_due = False
        for attachment in self._attachments:
            if not attachment.in_flight:
                self._start(attachment)
            else:
                self._send_ahead(attachment)
        self._feed_others()

    def feed(self, attachment: Attachment) -> None:
        """It has answered; others may have something to do by that."""
        attachment.stop_holding()  # that was for the step that is over
        self._send(attachment, 1)
        self._send_ahead(attachment)
        self._feed_others()

    def _feed_others(self) -> None:
        if self._core.take_moved():
            self.feed_soon()

    def _start(self, attachment: Attachment) -> None:
        """Feeds a replica that idles. Requests that come together arrive one by one: its first
        plan goes at once, the ones ahead of it a moment later, with the rest of the burst."""
        self._send(attachment, 1)
        if attachment.in_flight:
            self._hold(attachment, BURST_S)

    def _send_ahead(self, attachment: Attachment) -> None:
        """Plans go ahead of the one that is executing when that is near its end: what comes until
        then is part of them."""
        if attachment.holds_back is not None or not attachment.in_flight:
            return
        wait_s = attachment.ahead_at - self._clock()
        if wait_s > 0:
            self._hold(attachment, wait_s)
        else:
            self._send(attachment, attachment.pace.depth)

    def _hold(self, attachment: Attachment, seconds: float) -> None:
        attachment.holds_back = self._guard.call_later(seconds, lambda: self._release(attachment))

    def _release(self, attachment: Attachment) -> None:
        attachment.holds_back = None
        if self._attachments.get(attachment.replica_id) is attachment:
            self._send_ahead(attachment)

    def _send(self, attachment: Attachment, depth: int) -> None:
        """Sends plans until this many are in flight or nothing is left to compute."""
        while len(attachment.in_flight) < depth:
            now = self._clock()
            plan = self._core.schedule(attachment.replica_id, now)
            if plan is None:
                return
            message = workers.encode_plan(plan, attachment.epoch)
            attachment.send(plan, message, now)
            self._watches[attachment.epoch].arm()
            self._metrics.plan_bytes.observe(len(message))
