"rlgen.genalign.reward: scales that never look at the present, the sum, the price of copies, the alarm."
import json
import math
import statistics

import pytest

from helpers import line_of
from rlgen.genalign.reward import NORMALIZE, Normaliser, alarm, combine, diversity_guard


def one(scale, x): return scale([dict(loss=x)])[0]["loss"]


# ---------------------------------------------------------------- scales


def test_zscore_by_what_came_before():
    values, scale = [0.9, 0.7, 0.6, 0.65, 0.2], Normaliser()
    got = [one(scale, x) for x in values]
    assert got[:2] == [0.0, 0.0]
    for i in range(2, 5): assert got[i] == pytest.approx((values[i] - statistics.mean(values[:i])) / statistics.stdev(values[:i]))


def test_the_present_value_is_not_in_its_own_statistics():
    "Ten times as far away is ten times the score; the scores of one round don't depend on each other."
    def after(*values):
        scale = Normaliser()
        for x in (1.0, 2.0, 3.0): one(scale, x)
        return [v["loss"] for v in scale([dict(loss=x) for x in values])]
    assert after(5.0, 32.0) == [3.0, 30.0] == [*after(5.0), *after(32.0)] == after(32.0, 5.0)[::-1]


def test_the_round_is_remembered_afterwards():
    scale = Normaliser()
    assert [v["loss"] for v in scale([dict(loss=1.0), dict(loss=3.0)])] == [0, 0], "two values of the same round are no past"
    assert one(scale, 4.0) == pytest.approx(2 / math.sqrt(2))
    assert one(scale, 4.0) == pytest.approx((4 - 8 / 3) / statistics.stdev([1, 3, 4]))


def test_a_fixed_scale():
    scale, running = Normaliser(fix_after=3), Normaliser()
    for x in (1.0, 2.0, 3.0): assert one(scale, x) == one(running, x)
    assert [one(scale, x) for x in (9.0, 9.0, 0.0)] == [7.0, 7.0, -2.0]
    one(running, 9.0)
    assert one(running, 9.0) < 3
    assert "fix_after = 1" in line_of(Normaliser, "zscore", 1) and "fix_after" in line_of(Normaliser, "zscore", -1)


def test_no_spread():
    scale = Normaliser()
    for _ in range(3): assert one(scale, 0.1 + 0.2) == 0
    assert one(scale, 0.3) == 0.0 and one(scale, 5.0) == 0.0, "rounding is no spread"
    assert one(scale, 5.0) != 0


def test_minmax_is_the_published_rule():
    "First 0, then 0 or 1; the present value is in its own extremes; a hundred rounds are remembered."
    scale, values = Normaliser("minmax"), [0.9, 0.7, 0.8, 1.3, 0.7]
    assert [one(scale, x) for x in values] == [0, 0, pytest.approx(0.5), 1, 0]
    scale = Normaliser("minmax")
    one(scale, 100.0)
    for i in range(99): one(scale, i / 100)
    assert one(scale, 0.49) == pytest.approx(0.5), "the first round is forgotten"
    scale = Normaliser("minmax")
    one(scale, 100.0)
    for i in range(98): one(scale, i / 100)
    assert one(scale, 0.49) == pytest.approx(0.0049), "but not too early"


def test_none_changes_nothing():
    scale = Normaliser("none")
    assert [one(scale, x) for x in (3.0, -1.0, 3.0)] == [3.0, -1.0, 3.0]


@pytest.mark.parametrize("how", NORMALIZE)
def test_interrupted_is_uninterrupted(how):
    rounds = [[dict(inter=math.sin(i + j), golden_loss=1 / (i + j + 1)) for j in range(2)] for i in range(8)]
    calm, broken = Normaliser(how, 5), Normaliser(how, 5)
    want = [calm(r) for r in rounds]
    got = []
    for r in rounds:
        broken = Normaliser.restore(broken.state())
        got.append(broken(r))
    assert got == want and json.loads(broken.state())["how"] == how and broken.fix_after == 5


def test_scales_refuse():
    scale = Normaliser()
    for bad in (math.nan, math.inf): assert "loss" in line_of(one, scale, bad) and not scale.seen, "nothing is remembered of a refused round"
    one(scale, 1.0)
    assert "'inter'" in line_of(scale, [dict(loss=1.0, inter=2.0)]) and "'loss'" in line_of(scale, [{}])
    assert "did you mean 'zscore'" in line_of(Normaliser, "zscores")
    for bad in ("", "[]", "{}", "null", '{"how": "zscore", "fix_after": 0, "seen": 3}', '{"how": "zscore", "fix_after": 0, "seen": [{"a": "x"}]}'): assert "no state" in line_of(Normaliser.restore, bad)


# ---------------------------------------------------------------- the sum


def test_combine():
    z = dict(inter=1.0, intra=0.25, golden_loss=-0.5)
    assert combine(z) == 1.25 and combine(z, 2.0, 4.0, 1.0) == 1.5 and combine(z, 0, 0, 1) == 0.5 and combine(z, 0, 1, 0) == -0.25
    assert combine(dict(inter=99.0), w_intra=0, w_golden=0) == 5 and combine(dict(golden_loss=99.0), 0, 0, 1) == -5 and combine(z, reward_clip=0.1) == 0.1
    assert combine(dict(inter=0.0, intra=math.nan, golden_loss=0.5), 0, 0, 2.0) == -1, "what has no weight is not looked at"


def test_combine_refuses():
    z = dict(inter=1.0, intra=0.25, golden_loss=-0.5)
    assert "0 or more" in line_of(combine, z, -1.0) and "above 0" in line_of(combine, z, 0, 0, 0) and "reward_clip" in line_of(combine, z, reward_clip=0)
    assert "'golden_loss'" in line_of(combine, dict(inter=1.0, intra=1.0))


# ---------------------------------------------------------------- copies


def test_every_copy_pays():
    texts = ["A warm room.", "a warm room", "a cold room", "a warm room!", "b"]
    penalties, report = diversity_guard(texts, weight=3.0)
    assert penalties == pytest.approx([2, 2, 0, 2, 0]) and report["distinct"] == pytest.approx(3 / 5) and report["most"] == 3 and not report["warning"]
    assert diversity_guard(texts, floor=0.7)[1]["warning"].startswith("only 60% of 5")
    assert diversity_guard(["x"])[0] == [0.0] and diversity_guard(["", ""])[0] == [0.5, 0.5]


def test_near_copies():
    texts = ["a warm room on monday", "a warm room on friday", "monday on room warm a", "a cold soup"]
    assert diversity_guard(texts)[0] == [0, 0, 0, 0], "the order counts"
    assert diversity_guard(texts, near=0.99)[0] == [0.5, 0, 0.5, 0] and diversity_guard(texts, near=4 / 6)[0] == pytest.approx([2 / 3] * 3 + [0])
    assert diversity_guard(["", "", "a"], near=0.5)[0] == [0.5, 0.5, 0.0]


def test_guard_refuses():
    assert "no texts" in line_of(diversity_guard, [])
    for near in (0, 1.1, -1): assert "near" in line_of(diversity_guard, ["a"], near=near)


# ---------------------------------------------------------------- the alarm


def history(rewards, accuracies): return [dict(reward=r, golden_accuracy=a) for r, a in zip(rewards, accuracies)]


def test_alarm():
    up, down, flat = [0, 1, 2, 3, 4, 5], [0.9, 0.88, 0.86, 0.84, 0.82, 0.8], [0.8] * 6
    said = alarm(history(up, down))
    assert said and "\n" not in said and "0.880 to 0.800" in said
    for quiet in (history(up, up), history(up, flat), history(down, down), history(flat, down), history(up, down)[:4], []): assert alarm(quiet) is None
    assert alarm(history(up, down)[:4], rounds=4) and alarm(history(up, down), drop=0.2) is None
    assert alarm(history([9, *up], [0.1, *down])), "only the last rounds count"
    assert alarm(history(up, [0.9, 0.8, 0.85, 0.8, 0.78, 0.8])), "one better round in between changes nothing"
    assert "rounds = 2" in line_of(alarm, history(up, down), rounds=2)


def test_alarm_measures_the_drop_over_the_window():
    "Falling by .004 a round for five rounds is .016."
    falls = history(range(5), [0.9 - 0.004 * i for i in range(5)])
    assert alarm(falls, drop=0.015) and alarm(falls, drop=0.017) is None
