"""As many items at once as memory holds: the number is found, not guessed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, TypeVar

from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

Item = TypeVar("Item")
Result = TypeVar("Result")


class Batching(Protocol):
    """What runs batches: `batch_size` items in one pass at most."""

    name: str
    batch_size: int


def in_batches(
    owner: Batching, items: Sequence[Item], run: Callable[[Sequence[Item]], Iterable[Result]]
) -> list[Result]:
    """Results of `run` on items, `owner.batch_size` at once; halved for good when memory does not suffice.

    MemoryError when memory does not suffice for one.
    """
    done: list[Result] = []
    while len(done) < len(items):
        batch = items[len(done) : len(done) + owner.batch_size]
        try:
            done.extend(run(batch))
            continue
        except RuntimeError as error:
            if not should_reduce_batch_size(error):
                raise
        # Here and not above: an error that is being handled holds on to the tensors of the batch.
        if len(batch) == 1:
            raise MemoryError(f"{owner.name}: not enough memory for a single picture")
        owner.batch_size = len(batch) // 2
        clear_device_cache(garbage_collection=True)
    return done
