"""Items that threads work on: in order, few ahead, and a fault that is told."""

import os
import threading
import time

import pytest

from musiclm.evaluation import threads


def test_results_come_in_order_whoever_is_first():
    def slower_first(item):
        time.sleep(0.002 * (20 - item))
        return item * item

    done = []
    found = list(threads.each(slower_first, range(20), done.append))
    assert found == [item * item for item in range(20)]
    assert done == [1] * 20


def test_all_cores_work_at_once_and_few_items_are_taken_ahead():
    cores, taken = os.cpu_count(), []
    together = threading.Barrier(cores)  # passed only by so many threads at once

    def items():
        for item in range(20 * cores):
            taken.append(item)
            yield item

    def meet(item):
        together.wait(timeout=60)
        return item

    for given, item in enumerate(threads.each(meet, items())):
        assert item == given
        assert len(taken) <= given + 1 + 8 * cores


def test_a_fault_of_one_item_is_told():
    with pytest.raises(ZeroDivisionError):
        list(threads.each(lambda item: 1 / item, [2, 1, 0, 1]))
