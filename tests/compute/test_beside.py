"""Work in threads: in order, beside the caller, and no error is lost."""

import threading
import time

import pytest

from pneumothorax.compute import beside

PATIENCE_S = 60


def test_results_come_in_the_order_of_the_items_whichever_is_done_first():
    first_may_end = threading.Event()

    def doubled(item):
        if item == 0:
            assert first_may_end.wait(PATIENCE_S)
        if item == 3:
            first_may_end.set()
        return 2 * item

    assert list(beside.in_order(doubled, range(5), threads=2)) == [0, 2, 4, 6, 8]


def test_items_are_made_by_the_caller_while_others_are_computed_in_threads():
    threads = set()
    second_is_made = threading.Event()

    def made():
        yield threading.get_ident()
        second_is_made.set()  # only if the first is not waited for
        yield threading.get_ident()

    def seen(item):
        assert second_is_made.wait(PATIENCE_S)
        threads.add(threading.get_ident())
        return item

    assert list(beside.in_order(seen, made())) == [threading.get_ident()] * 2
    assert threading.get_ident() not in threads


def test_at_most_two_items_per_thread_wait():
    """The first result takes long once seven items are made: no eighth may be made before it."""
    results, seventh_is_made = [], threading.Event()

    def items():
        for number in range(20):
            assert number - len(results) <= 2 * 3
            if number == 2 * 3:
                seventh_is_made.set()
            yield number

    def compute(item):
        if item == 0:
            assert seventh_is_made.wait(PATIENCE_S)
            time.sleep(0.5)
        return item

    for result in beside.in_order(compute, items(), threads=3):
        results.append(result)
    assert results == list(range(20))


def test_an_error_in_a_thread_is_raised_where_the_results_are_read():
    def compute(item):
        if item == 1:
            raise ValueError("item 1")
        return item

    results = beside.in_order(compute, range(3))
    assert next(results) == 0
    with pytest.raises(ValueError, match="item 1"):
        list(results)


def test_a_queue_does_one_thing_after_the_other_beside_its_caller():
    done, may_end = [], threading.Event()

    def slow(name):
        assert may_end.wait(PATIENCE_S)
        done.append(name)

    with beside.Queue() as queue:
        queue.put(slow, "first")
        assert done == []
        may_end.set()
        queue.put(done.append, "second")
        assert done[0] == "first"
    assert done == ["first", "second"]


@pytest.mark.parametrize("how", ["put", "wait", "leave"])
def test_an_error_in_a_queue_is_raised_once_by_the_next_call_or_on_leaving(how):
    def fail():
        raise OSError("disk full")

    done = []
    with pytest.raises(OSError, match="disk full"), beside.Queue() as queue:
        queue.put(fail)
        if how == "put":
            queue.put(done.append, "not done")
        elif how == "wait":
            queue.wait()
    queue.wait()  # it was raised already
    assert done == []
