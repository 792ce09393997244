"""Reading ahead: the same items in order, a bounded number of them early, errors in their place, the end for both."""

from __future__ import annotations

import threading
import time

import pytest

from videoxl.utils.read_ahead import ReadAhead


def numbers(stop, made, closed=None, error=None):
    try:
        for number in range(stop):
            made.append(number)
            yield number
        if error is not None:
            raise error
    finally:
        if closed is not None:
            closed.append(True)


def wait_until(condition):
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_items_come_in_order_and_a_bounded_number_of_them_early():
    made = []
    items = ReadAhead(numbers(50, made), 3)
    assert next(items) == 0
    wait_until(lambda: len(made) == 5)  # one given, three in the queue, one that waits for room
    time.sleep(0.3)
    assert len(made) == 5
    assert list(items) == list(range(1, 50))


def test_an_error_is_raised_after_the_items_before_it():
    items = ReadAhead(numbers(2, [], error=ValueError("broken")), 4)
    assert [next(items), next(items)] == [0, 1]
    with pytest.raises(ValueError, match="broken"):
        next(items)


def test_closing_from_elsewhere_ends_who_waits_for_an_item():
    started = threading.Event()

    def slow():
        started.set()
        time.sleep(1)
        yield 0

    items = ReadAhead(slow(), 2)
    started.wait()
    threading.Timer(0.2, items.close).start()
    assert list(items) == []


def test_one_that_is_forgotten_closes_the_generator():
    closed = []
    items = ReadAhead(numbers(1000, [], closed), 2)
    assert next(items) == 0
    del items
    wait_until(lambda: closed)


def test_closing_early_closes_the_generator():
    made, closed = [], []
    items = ReadAhead(numbers(1000, made, closed), 2)
    assert next(items) == 0
    items.close()
    wait_until(lambda: closed)
    assert len(made) < 10
