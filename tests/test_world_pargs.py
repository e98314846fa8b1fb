"""The world of PARGS: exact reward, honest labels, sides that never touch."""
import random
from dataclasses import replace
from statistics import mean

import pytest

from rlgen.core import RlgenError
from rlgen.worlds import pargs as world


@pytest.fixture(scope="module")
def posts():
    return world.make_posts("train", 500)


def test_sides_share_no_post_whatever_the_seed():
    sides = {s: {p.facts for seed in range(3) for p in world.make_posts(s, 300, seed)} for s in ("train", "valid", "test")}
    assert not sides["train"] & sides["valid"] and not sides["train"] & sides["test"] and not sides["valid"] & sides["test"]


def test_more_posts_are_the_same_posts_and_more():
    assert world.make_posts("test", 50) == world.make_posts("test", 80)[:50]


def test_prompts_read_back_exactly(posts):
    assert all(world.parse_post(p.prompt) == p for p in posts)


@pytest.mark.parametrize("text", ["", "a dialogue", "my boss sold the car at work on monday . what should i do about my boss ? tl;dr :"])
def test_other_texts_are_refused_in_one_line(text):
    with pytest.raises(RlgenError) as e: world.parse_post(text)
    assert "\n" not in str(e.value)


def test_gold_by_hand(posts):
    for p in posts[:100]:
        point, other = p.facts[p.point], p.facts[(p.point + 1) % 3]
        def gold(text, p=p): return world.gold_reward(p.prompt, text)
        assert gold(point.clause() + " .") == 5
        assert gold(replace(point, day="").clause() + " .") == 4
        assert gold(replace(point, place=other.place).clause() + " .") == 3  # four slots covered, one contradicted
        assert gold(other.clause() + " .") == 0
        assert gold(point.clause()) == 4  # doesn't end
        assert gold(f"{point.clause()} {world.INVENTED[3]} .") == pytest.approx(5 - 1 - 0.2 * 3)
        assert gold(f"{point.clause()} and {other.clause()} .") == pytest.approx(5 - 0.2 * 10)
        assert gold("") == -1


def test_nothing_beats_the_full_account(posts):
    rng = random.Random(0)
    assert all(world.gold_reward(p.prompt, world.write_summary(p, rng)) <= 5 for p in posts)


def test_labels_follow_bradley_terry_and_noise_flips_them():
    def agreement(**kw):
        rows = world.preferences(2500, 7, **kw)
        big = [(world.gold_reward(r["prompt"], r["chosen"]) - world.gold_reward(r["prompt"], r["rejected"])) for r in rows]
        return mean(g > 0 for g in big if abs(g) >= 3)
    assert agreement(noise=0.0) > 0.94
    assert agreement(noise=0.3) == pytest.approx(agreement(noise=0.0) * 0.7 + (1 - agreement(noise=0.0)) * 0.3, abs=0.04)


def test_cut_pairs_have_equal_length_or_are_whole():
    for r in world.preferences(500, 3, cut=True):
        a, b = r["chosen"].split(), r["rejected"].split()
        assert a != b and (len(a) == len(b) or min((a, b), key=len)[-1] == ".")


def test_writers_are_wrong_more_often_than_right(posts):
    rng = random.Random(1)
    about = [world.write_summary(p, rng).split()[1] for p in posts for _ in range(2)]
    away = [(w, p) for w, p in zip(about, [p for p in posts for _ in range(2)]) if p.point]
    first, point = mean(w == p.facts[0].who for w, p in away), mean(w == p.facts[p.point].who for w, p in away)
    assert first > point + 0.15 > 0.4
