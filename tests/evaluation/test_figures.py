"""Tables: that what takes long is told while it goes on."""

import collections

import numpy as np

from musiclm.evaluation import figures


def test_the_clips_of_each_abx_are_counted_to_the_last():
    rng = np.random.default_rng(0)
    truths = [{"tempo": ("slow", "fast")[i % 2], "drums": ("no", "yes")[i < 4]} for i in range(12)]
    totals, done = {}, collections.Counter()

    def counter(question, total):
        totals[question] = total
        return lambda more: done.update({question: more})

    arguments = rng.integers(0, 8, (12, 5)), rng.normal(size=(8, 3)), truths, ["tempo", "drums"]
    table = figures.semantic_table(*arguments, "a model", clips_per_class=5, counter=counter)
    assert totals == dict(done) == {"tempo": 10, "drums": 9}
    assert table == figures.semantic_table(*arguments, "a model", clips_per_class=5)
