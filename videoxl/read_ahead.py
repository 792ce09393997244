"""Iterate in a thread, so that making the next items overlaps with the use of these. Kept free of torch."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterator
from typing import TypeVar

T = TypeVar("T")

_END = object()


def read_ahead(items: Generator[T], number: int) -> Iterator[T]:
    """The items of a generator, at most `number` of them made before they are asked for.

    Worth it where making an item leaves Python's lock alone (decoding, waiting for a pipe). An error of the generator
    is raised here, in its place; closing this iterator closes the generator.
    """
    made: queue.Queue = queue.Queue(maxsize=number)
    stopped = threading.Event()

    def put(item: object) -> None:
        while not stopped.is_set():
            try:
                return made.put(item, timeout=0.1)
            except queue.Full:
                continue

    def work() -> None:
        try:
            for item in items:
                put((item, None))
                if stopped.is_set():
                    return
        except BaseException as error:
            put((_END, error))
        else:
            put((_END, None))
        finally:
            items.close()

    threading.Thread(target=work, daemon=True).start()
    try:
        while True:
            item, error = made.get()
            if error is not None:
                raise error
            if item is _END:
                return
            yield item
    finally:
        stopped.set()
