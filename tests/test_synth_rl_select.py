"Pass rates and the rules that choose by them."
import itertools
import math
import random

import pytest
import torch

from helpers import line_of
from rlgen.lm import build_lm, encode_prompt, word_tokenizer
from rlgen.synth_rl.select import RULES, flat_chance, histogram, middle_share, pass_counts, priority, rollouts, select
from rlgen.sampling import Cost

KEYS = [f"q{i}" for i in range(60)]
RATES = [random.Random(i).choice([0, 1 / 16, 3 / 16, 8 / 16, 13 / 16, 1]) for i in range(60)]


@pytest.fixture(scope="module")
def lm(): return build_lm(word_tokenizer(["one two three four five six seven"]), width=16, layers=1)


def asked(lm, *texts): return [encode_prompt(lm, t) for t in texts]


def test_answers_depend_on_seed_key_and_number_alone(lm):
    prompts = asked(lm, "one two", "three", "four five six seven")
    full = [[r.completion_ids for r in row] for row in rollouts(lm, prompts, ["a", "b", "c"], 4, max_new_tokens=6, seed=1)]
    few = rollouts(lm, prompts[1:2], ["b"], 2, max_new_tokens=6, seed=1, batch_size=1)
    assert [r.completion_ids for r in few[0]] == full[1][:2]
    assert [[r.completion_ids for r in row] for row in rollouts(lm, prompts, ["a", "b", "c"], 4, max_new_tokens=6, seed=2)] != full
    same = rollouts(lm, [prompts[0]] * 2, ["a", "other"], 4, max_new_tokens=6, seed=1)
    assert [r.completion_ids for r in same[0]] == full[0] != [r.completion_ids for r in same[1]]
    assert len({tuple(x) for x in full[0]}) > 1, "answers to one question differ"


def test_rollouts_follow_the_model(lm):
    n, prompt = 4000, asked(lm, "one two")
    found = rollouts(lm, prompt, ["a"], n, max_new_tokens=1, batch_size=n)[0]
    with torch.no_grad(): p = lm.model(torch.tensor(prompt)).logits[0, -1].softmax(-1)
    shares = torch.bincount(torch.tensor([r.completion_ids[0] for r in found]), minlength=len(p)) / n
    assert (shares - p).abs().max() < 4 * math.sqrt(0.25 / n)


def test_a_question_is_read_once(lm):
    one, many = Cost(), Cost()
    rollouts(lm, asked(lm, "one two three"), ["a"], 1, max_new_tokens=1, cost=one)
    rollouts(lm, asked(lm, "one two three"), ["a"], 8, max_new_tokens=1, cost=many)
    assert many.lm_tokens == one.lm_tokens


def test_rollouts_that_cannot_be(lm):
    assert "num_rollouts = 0" in line_of(rollouts, lm, asked(lm, "one"), ["a"], 0)
    with pytest.raises(ValueError): rollouts(lm, asked(lm, "one"), ["a", "b"], 1)


def test_pass_counts_know_which_question_they_are_about():
    assert pass_counts([["x", "y", "x"], ["x"], []], lambda i, text: text == "xy"[i]) == [2, 0, 0]


@pytest.mark.parametrize("p, total, group", [(0.3, 6, 2), (0.5, 7, 4), (0.05, 8, 8), (1.0, 5, 3)])
def test_flat_chance_is_right_on_average(p, total, group):
    mean = sum(math.comb(total, x) * p**x * (1 - p) ** (total - x) * flat_chance(x, total, group) for x in range(total + 1))
    assert mean == pytest.approx(p**group + (1 - p) ** group)


def test_flat_chance_counts_groups():
    answers = [1, 1, 1, 0, 0]
    groups = list(itertools.combinations(answers, 3))
    assert flat_chance(3, 5, 3) == sum(len(set(g)) == 1 for g in groups) / len(groups)
    assert "a group of 8" in line_of(flat_chance, 2, 4, 8) and "at least 2" in line_of(flat_chance, 2, 4, 1)


def test_histogram_holds_everything_once():
    bars = histogram(RATES)
    assert sum(b["count"] for b in bars) == 60 and sum(b["share"] for b in bars) == pytest.approx(1) and len(bars) == 12
    assert bars[0]["count"] == RATES.count(0) and bars[-1]["count"] == RATES.count(1)
    assert all(sum(1 for r in RATES if 0 < r < 1 and b["low"] <= r < b["high"]) == b["count"] for b in bars[1:-1])
    assert [b["count"] for b in histogram([])] == [0] * 12 and histogram([])[0]["share"] == 0


def test_middle_share_includes_its_edges():
    assert middle_share([0.1, 0.2, 0.8, 0.9], 0.2, 0.8) == 0.5 and middle_share([], 0.2, 0.8) == 0


def test_papers_rule_takes_the_hardest_that_were_solved():
    got = [RATES[i] for i in select(KEYS, RATES, 60)]
    solved = sorted(r for r in RATES if r)
    assert got[: len([r for r in solved if r < 1])] == [r for r in solved if r < 1] and all(r in (0, 1) for r in got[len([r for r in solved if r < 1]) :])
    assert [RATES[i] for i in select(KEYS, RATES, 60, "never_solved_first")] == sorted(RATES)


def test_the_other_rules():
    n = sum(0.2 <= r <= 0.8 for r in RATES)
    assert all(0.2 <= RATES[i] <= 0.8 for i in select(KEYS, RATES, n, "band"))
    assert [RATES[i] * (1 - RATES[i]) for i in select(KEYS, RATES, 60, "p(1-p)")] == sorted((r * (1 - r) for r in RATES), reverse=True)
    lucky = select(KEYS, RATES, 60, "chance_corrected", chance=0.1)
    least = 0.1 + 2 * math.sqrt(0.09 / 16)
    surely = [r for r in RATES if least < r < 1]
    assert sorted(RATES[i] for i in lucky[: len(surely)]) == sorted(surely) and RATES[lucky[0]] == min(surely)
    assert select(KEYS, RATES, 9, "chance_corrected", chance=0.0) == select(KEYS, RATES, 9, "paper")


@pytest.mark.parametrize("rule", RULES)
def test_what_is_level_is_ordered_by_key_and_seed(rule):
    order = select(KEYS, RATES, 60, rule, 3)
    assert sorted(order) == list(range(60))
    mixed = random.Random(0).sample(range(60), 60)
    again = select([KEYS[i] for i in mixed], [RATES[i] for i in mixed], 60, rule, 3)
    assert [mixed[i] for i in again] == order, "the order in which samples come doesn't matter"
    assert select(KEYS, RATES, 60, rule, 4) != order
    assert select(KEYS, RATES, 7, rule, 3) == order[:7] and len(select(KEYS, RATES, 100, rule)) == 60


def test_random_looks_at_no_rate():
    assert select(KEYS, RATES, 20, "random", 5) == select(KEYS, RATES[::-1], 20, "random", 5)


def test_choices_that_cannot_be():
    assert "chance_corrected" in line_of(select, KEYS, RATES, 5, "chance-corrected") and "num_selected = 0" in line_of(select, KEYS, RATES, 0)
    with pytest.raises(ValueError): select(KEYS, RATES[1:], 5)
    assert priority(0.5, "chance_corrected", chance=1.0) == 1.0
