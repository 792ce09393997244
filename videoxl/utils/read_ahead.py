"""Iterate in a thread, so that producing the next items overlaps with using the current ones. Free of torch."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator
from typing import Generic, TypeVar

T = TypeVar("T")

_PATIENCE = 0.1  # seconds between checks whether the other side is gone


class ReadAhead(Generic[T]):
    """The items of a generator, at most `number` of them queued before they are asked for.

    Worth it where producing an item releases the GIL (decoding, waiting for a pipe). An error of the generator is
    raised in place of its next item. `close`, from any thread, ends the iteration, the thread and the generator.
    """

    def __init__(self, items: Generator[T, None, None], number: int):
        self._made: queue.Queue = queue.Queue(maxsize=number)
        self._stopped = threading.Event()
        # The thread must not hold this object, or it would never be collected.
        threading.Thread(target=_work, args=(items, self._made, self._stopped), daemon=True).start()

    def __iter__(self) -> ReadAhead[T]:
        return self

    def __next__(self) -> T:
        while not self._stopped.is_set():
            try:
                kind, item = self._made.get(timeout=_PATIENCE)
            except queue.Empty:
                continue
            if kind == "item":
                return item
            self.close()
            if kind == "error":
                raise item
        raise StopIteration

    def close(self) -> None:
        self._stopped.set()

    def __del__(self):
        if hasattr(self, "_stopped"):
            self.close()


def _work(items: Generator[T, None, None], made: queue.Queue, stopped: threading.Event) -> None:
    def put(kind: str, item: object) -> None:
        while not stopped.is_set():
            try:
                return made.put((kind, item), timeout=_PATIENCE)
            except queue.Full:
                continue

    try:
        for item in items:
            put("item", item)
            if stopped.is_set():
                return
    except BaseException as error:
        put("error", error)
    else:
        put("end", None)
    finally:
        items.close()
