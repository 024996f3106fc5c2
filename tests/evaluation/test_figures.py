"""Tables: that what takes long is told while it goes on."""

import collections

import numpy as np

from musiclm.evaluation import adherence, bootstrap, figures


class Drummer:
    """Hears drums in everything."""

    classes_ = np.array(["drums", "no drums"])

    def predict(self, descriptions_ND):
        return np.full(len(descriptions_ND), "drums")


def test_shares_of_right_answers_have_wilsons_intervals():
    silent = [{"drums": np.zeros(2)}] * 64
    truths = [{"drums": "no drums"}] * 64
    judge = adherence.Judge({"drums": Drummer()})
    shares, _ = figures.adherence_tables(judge, {"generated": silent}, truths, "a drummer")
    assert shares.record()["figures"]["generated"]["drums"] == vars(bootstrap.wilson(0, 64))


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


def test_clips_are_ranked_from_the_nearest_to_the_farthest():
    rng = np.random.default_rng(0)
    away_N = rng.permutation(12)
    clips_NWD = rng.normal(size=(12, 30, 3)) + 3.0 * away_N[:, None, None]
    prompts = [f"{away} away" for away in away_N]
    reference_MWD = rng.normal(size=(50, 30, 3))
    table = figures.ranking_table(reference_MWD, {"generated": clips_NWD}, prompts, "noise")
    places = (0, 1, 2, 3, 4, 7, 8, 9, 10, 11)
    assert table.rows == tuple((str(place + 1), f"{place} away") for place in places)
    few = figures.ranking_table(reference_MWD, {"generated": clips_NWD[:3]}, prompts[:3], "noise")
    assert [place for place, _ in few.rows] == ["1", "2", "3"]
