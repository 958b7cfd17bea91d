"""How calls end that do not end well, as their clients are told."""

from gateway.errors import Fault, RequestError
from gateway.output import FinishReason
from router.generation import Generation, Sample
from router.known_cell import unavailable
from router.messages import Finished

_ENDED_BY_SERVER = "the server ended the request before it was complete; try again"


def checked(sample: Sample, finished: Finished) -> Finished:
    """An error, for one that ends well without what was asked for."""
    if sample.wants_vector and finished.reason is FinishReason.STOP and not finished.vector:
        return Finished(FinishReason.ERROR, message="the server lost the prompt's vector")
    if _lacks_scores(sample, finished):
        message = "the server lost the logprobs of the prompt"
        return Finished(FinishReason.ERROR, message=message)
    return finished


def failure(sample: Sample) -> RequestError | None:
    """What its end makes of its call; None: nothing bad."""
    assert sample.finished is not None
    match sample.finished.reason:
        case FinishReason.ERROR:
            message = sample.finished.message or "the server could not finish the request"
            return RequestError(Fault.INTERNAL, message)
        case FinishReason.TIMEOUT:
            return timed_out(sample.generation)
        case FinishReason.ABORT:
            return unavailable(_ENDED_BY_SERVER)
        case _:
            return None


def timed_out(generation: Generation) -> RequestError:
    """Its time is over."""
    if generation.deadline is None:
        return RequestError(Fault.TIMED_OUT, "the request took longer than the server gives it")
    return generation.deadline.passed(has_begun=generation.has_begun)


def too_slow(max_unread_tokens: int) -> RequestError:
    """Its client does not read."""
    return RequestError(
        Fault.SLOW_READER,
        f"more than {max_unread_tokens} tokens wait to be read: the client reads too slowly",
    )


def no_scheduler_survives(num_lost: int) -> RequestError:
    """Of a call with which one scheduler after the other was lost."""
    message = f"{num_lost} schedulers in a row were lost with the request, and none came further"
    return RequestError(Fault.INTERNAL, message)


def _lacks_scores(sample: Sample, finished: Finished) -> bool:
    """Whether it ended well without what was asked for; its first sample has it in time."""
    ended_well = finished.reason in (FinishReason.STOP, FinishReason.LENGTH)
    if sample.scores is None or sample.number > 0:
        return False
    return ended_well and not sample.scores.is_complete
