"""rlgen.lapdog.reward: the libraries' numbers, one scale, length, ranks and floors."""

import math
import pickle
import random
from dataclasses import asdict, replace

import numpy as np
import pytest
import sacrebleu
from rouge_score import rouge_scorer

from helpers import line_of
from rlgen.lapdog import reward as R
from rlgen.lapdog.data import Dialogue, load_dialogues
from rlgen.lapdog.reward import FLOOR, METRICS, MODES, Reward, constant_reply, length_factor, rank_scores, reply_scores, score_table, variance_shares
from rlgen.metrics import bleu, distinct_n, interval, length_ratio, rouge, sentence_bleu, summarise, token_f1


def ask(*answers, id="d") -> Dialogue: return Dialogue(id, "persona: i sail. context: Q: hi ?", answers)


def texts(n, alphabet, seed=0, longest=14) -> list[str]:
    "Random texts, the empty one among them."
    rng = random.Random(seed)
    return ["", " "] + ["".join(rng.choice(alphabet) for _ in range(rng.randrange(longest))) for _ in range(n - 2)]


WORDS = [w + " " for w in "the a dog cat i you do n't sits sat . , ? ! 3.5 1,000 U.S. re-read".split()] + ["the  ", "i'm\n", "é "]


# ---------------------------------------------------------------- the five scores


@pytest.mark.parametrize("alphabet", [WORDS, WORDS[:4], list("ab .&-'3,\n"), list("aß灯नम́ \u2028\u200d👍İ.")])
def test_scores_are_those_of_the_metrics_and_the_libraries(alphabet):
    a, b = texts(400, alphabet), texts(400, alphabet, 1)
    plain = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"])
    for x, y in [*zip(a, b), *zip(a[:50], a[:50]), *((t, "") for t in a[:20])]:
        found = reply_scores(x, [y])
        assert list(found) == list(METRICS) and all(0 <= v <= 1 + 1e-12 for v in found.values())
        assert found["f1"] == token_f1(x, y) and abs(found["bleu"] - sacrebleu.sentence_bleu(x, [y]).score / 100) < 1e-12 and abs(100 * found["bleu"] - sentence_bleu(x, y)) < 1e-9
        for k, v in rouge(x, y).items(): assert abs(found[k] - v) < 1e-12, (k, x, y)
        if (x + y).isascii():
            for k, v in plain.score(y, x).items(): assert abs(found[k] - v.fmeasure) < 1e-12, (k, x, y)


def test_long_texts_too():
    x, y = (" ".join(t.split() * 9) for t in texts(3, WORDS, 5, 60)[2:] * 2)
    y = " ".join(sorted(y.split()))
    assert len(x.split()) > 64 and abs(reply_scores(x, [y])["rougeL"] - rouge(x, y)["rougeL"]) < 1e-12 and 0 < rouge(x, y)["rougeL"] < 1


def test_of_several_answers_the_best_counts_for_each_metric_alone():
    rng = random.Random(0)
    for _ in range(100):
        x, *ys = ("".join(rng.choice(WORDS) for _ in range(8)) for _ in range(4))
        each = [reply_scores(x, [y]) for y in ys]
        assert reply_scores(x, ys) == {m: max(e[m] for e in each) for m in METRICS} == reply_scores(x, ys[::-1])
    assert reply_scores("a b c d", ["a b x", "x c d"])["bleu"] * 100 < sentence_bleu("a b c d", ["a b x", "x c d"]), "no piece from each"
    assert reply_scores("yes", "yes") == reply_scores("yes", ("yes",)) and "no answer to compare 'yes'" in line_of(reply_scores, "yes", [])


def test_only_what_is_asked_for_is_computed_and_only_once(monkeypatch):
    asked, real = [], dict(R._ONE)
    for m in METRICS: monkeypatch.setitem(R._ONE, m, lambda r, a, m=m: asked.append(m) or real[m](r, a))
    R._best.cache_clear()
    reward = Reward("f1rougedist")
    assert reward(["so it is", "so it is"], [ask("it is so")] * 2) == pytest.approx([5 / 6] * 2) and asked == ["f1", "rougeL"]
    R._best.cache_clear()


# ---------------------------------------------------------------- length


@pytest.mark.parametrize("reply, answer, s, t, want", [
    ("a b c d", "a b", 1, 1, math.exp(-1)), ("a b", "a b c d", 1, 1, math.exp(-1)), ("a b", "a b c d", 0.5, 1, math.exp(-0.5)), ("", "a b", 1, 1, math.exp(-2)), ("a", "b", 3, 1, 1), ("a b c", "a", 0, 1, 1),
    ("a b c", "a b", 2, 1.5, 1), ("a b", "a b", 1, 1.5, math.exp(-1)), ("a . ! ?", "a", 4, 1, 1), ("!", "?", 4, 1, 1), ("a b", "?", 1, 1, math.exp(-1)), ("", "", 1, 1, 1),
])  # fmt: skip
def test_length_is_punished_twice_where_it_lacks(reply, answer, s, t, want):
    assert length_factor(reply, answer, s, t) == pytest.approx(want, abs=1e-12)
    assert Reward("f1dist", {}, s, t).parts([reply], [ask(answer)])[0]["length_factor"] == pytest.approx(want, abs=1e-12)


# ---------------------------------------------------------------- the reward


REPLIES, TALKS = ["i sail on the sea .", "no .", "what do you do ?", ""], [ask("i sail , on a lake ."), ask("no !", "never , no ."), ask("what do you like to do ?"), ask("i am fine .")]


@pytest.mark.parametrize("mode", MODES)
def test_each_mode_is_the_mean_of_its_metrics(mode):
    of = dict(f1="f1", rouge="rougeL", bleu="bleu")
    found, parts = Reward(mode)(REPLIES, TALKS), Reward(mode).parts(REPLIES, TALKS)
    for r, d, x, p in zip(REPLIES, TALKS, found, parts):
        s = reply_scores(r, d.answers)
        assert x == p["reward"] == pytest.approx(np.mean([s[of[m]] for m in MODES[mode]])) and set(p) == {of[m] for m in MODES[mode]} | {"length_ratio", "length_factor", "reward"}
    assert "".join(m for m in ("f1", "rouge", "bleu") if m in MODES[mode]) + "dist" == mode
    assert Reward(mode, total="sum")(REPLIES, TALKS) == pytest.approx([x * len(MODES[mode]) for x in found])


def test_factors_weigh_and_the_scale_stays():
    s = [reply_scores(r, d.answers) for r, d in zip(REPLIES, TALKS)]
    factors = dict(f1=2, scale_rouge=1, bleu=0)
    assert Reward(metric_scale_factors=factors)(REPLIES, TALKS) == pytest.approx([(2 * x["f1"] + x["rougeL"]) / 3 for x in s])
    assert Reward(metric_scale_factors=factors, total="sum")(REPLIES, TALKS) == pytest.approx([2 * x["f1"] + x["rougeL"] for x in s])
    assert Reward("bleudist", dict(f1=0, rouge=9))(REPLIES, TALKS) == Reward("bleudist")(REPLIES, TALKS)
    assert all(0 <= x <= 1 for x in Reward(metric_scale_factors=dict(bleu=100))(REPLIES, TALKS))
    stern = Reward(generation_length_penalty=1.0)
    assert stern(REPLIES[:1], TALKS[:1]) == pytest.approx(Reward()(REPLIES[:1], TALKS[:1])), "five words against five"
    two = stern.parts(["no no no no"], [ask("no", "no no no")])[0]
    assert two["length_ratio"] == pytest.approx(4 / 3) and two["length_factor"] == pytest.approx(math.exp(-1 / 3)), "the answer whose length suits best"


def test_a_reward_is_a_value():
    r = Reward(metric_scale_factors=dict(f1=2))
    assert Reward(**asdict(r)) == r == pickle.loads(pickle.dumps(r)) != replace(r, total="sum") and r([], []) == [] and r.weights() == dict(f1=0.5, rougeL=0.25, bleu=0.25)


@pytest.mark.parametrize("kw, said", [
    (dict(gold_score_mode="f1rouge"), "gold_score_mode = 'f1rouge', did you mean"), (dict(metric_scale_factors=dict(rogue=1)), "did you mean 'rouge'?"), (dict(metric_scale_factors=dict(f1=-1)), "0 or more"),
    (dict(gold_score_mode="f1dist", metric_scale_factors=dict(f1=0)), "one above 0"), (dict(total="avg"), "total = 'avg', valid: mean, sum"), (dict(generation_length_penalty=-1), "generation_length_penalty = -1"),
    (dict(target_length_ratio=0), "target_length_ratio = 0"),
])  # fmt: skip
def test_what_can_not_be_a_reward_is_refused(kw, said): assert said in line_of(Reward, **kw)


def test_lists_have_to_align():
    assert "4 replies for 3 dialogues" in line_of(Reward(), REPLIES, TALKS[:3]) == line_of(score_table, REPLIES, TALKS[:3])
    assert "no replies" in line_of(score_table, [], []) and "1 rankings for 2" in line_of(rank_scores, [[]], [[], []]) and "no dialogues" in line_of(constant_reply, [])


def test_variance_shares_by_hand():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 500))
    rows = [dict(f1=x, bleu=y, other="no number") for x, y in zip(a, b)]
    cov, w = np.cov(a, b), np.array([1.0, 3.0])
    want = w * (cov @ w) / (w @ cov @ w)
    assert list(variance_shares(rows, dict(f1=1, bleu=3)).values()) == pytest.approx(want.tolist()) and list(want) != [0.1, 0.9]
    assert variance_shares(rows, dict(f1=0, bleu=2)) == dict(f1=0, bleu=1)
    groups = [i // 50 for i in range(500)]
    shifted = [dict(f1=x + 100 * g, bleu=y) for x, y, g in zip(a, b, groups)]
    assert variance_shares(shifted, dict(f1=1, bleu=1))["f1"] > 0.99 and variance_shares(shifted, dict(f1=1, bleu=1), groups) == pytest.approx(variance_shares(rows, dict(f1=1, bleu=1), groups))
    assert variance_shares(rows, dict(f1=1, bleu=1), list(range(500))) == dict(f1=0, bleu=0) == variance_shares([dict(f1=1, bleu=0)] * 3, dict(f1=1, bleu=1)) == variance_shares([], dict(f1=1, bleu=1))


# ---------------------------------------------------------------- tables


def test_the_table_has_items_and_corpus_numbers():
    talks = [replace(d, id=f"d{i}") for i, d in enumerate(TALKS)]
    rows, totals = score_table(REPLIES, talks)
    answers = [list(d.answers) for d in talks]
    assert [r["item"] for r in rows] == ["d0", "d1", "d2", "d3"] and {m: rows[1][m] for m in METRICS} == reply_scores("no .", answers[1])
    assert totals["corpus_bleu"] == bleu(REPLIES, answers) and totals["length_ratio"] == length_ratio(REPLIES, answers) and totals["distinct_2"] == distinct_n(REPLIES, 2)
    assert totals["f1"] == pytest.approx(np.mean([token_f1(r, a) for r, a in zip(REPLIES, answers)])) and (totals["different"], totals["n"]) == (4, 4)
    assert score_table(["no ."] * 4, talks)[1]["different"] == 1 and rows[3]["length_ratio"] == 0 and score_table(["a"], [ask("?")])[0][0]["length_ratio"] is None
    table = summarise([dict(r, method="m", seed=0) for r in rows], [*METRICS, "length_ratio"])
    assert table[0]["mean"] == pytest.approx(interval([r["f1"] for r in rows])["mean"], abs=1e-4)


def test_ranks():
    ranked, gold = [list("abcde"), list("bacde"), list("aecdb"), list("ab"), list("abc")], [["a"], ["a"], ["b", "c"], ["z"], []]
    rows, totals = rank_scores(ranked, gold, (1, 3, 5))
    assert [r["recall_at_1"] for r in rows] == [1, 0, 0, 0, None] and [r["recall_at_3"] for r in rows] == [1, 1, 0.5, 0, None] and [r["mrr"] for r in rows] == [1, 0.5, 1 / 3, 0, None]
    assert totals == dict(recall_at_1=0.25, recall_at_3=0.625, recall_at_5=0.75, mrr=pytest.approx(11 / 24), distinct_at_1=2, distinct_at_3=4, distinct_at_5=5, n_gold=4)
    assert rank_scores([["a", "a", "b"]], [["a", "b"]], (2,))[0][0]["recall_at_2"] == 0.5, "a story that stands twice is found once"
    unknown = rank_scores([["a"], ["b"]], [[], ()])[1]
    assert unknown["mrr"] is None and unknown["distinct_at_1"] == 2 and unknown["n_gold"] == 0 and "ks = (0,)" in line_of(rank_scores, [[]], [[]], ks=(0,))
    rng = random.Random(0)
    many = [rng.sample(range(48), 48) for _ in range(3000)]
    chance = rank_scores([[str(x) for x in r] for r in many], [["7"]] * 3000)[1]
    assert abs(chance["recall_at_1"] - 1 / 48) < 0.01 and abs(chance["recall_at_5"] - 5 / 48) < 0.02


# ---------------------------------------------------------------- floors


def test_the_quick_count_is_f1_where_there_are_no_articles_and_no_apostrophes():
    rng = random.Random(0)
    vocabulary = "i you do like tea dogs . ? what".split()
    some = lambda: " ".join(rng.choice(vocabulary) for _ in range(rng.randrange(1, 9)))
    talks = [ask(*(some() for _ in range(rng.randrange(1, 4)))) for _ in range(40)]
    candidates = [t for t in (some() for _ in range(30)) if set(t) - set(" .?")]
    want = [np.mean([max(token_f1(t, a) if set(a) - set(" .?") else 0 for a in d.answers) for d in talks]) for t in candidates]
    assert np.allclose(R._quick_f1(candidates, talks), want)


def test_the_best_constant_is_found():
    talks = [ask(a) for a in ["no . do you ?", "i sail . do you ?", "yes . do you ?", "what is it ?", "blue"]]
    score = lambda t: np.mean([token_f1(t, list(d.answers)) for d in talks])
    found = constant_reply(talks)
    pieces = sorted({p for d in talks for p in ("do you ?", "no .", "i sail .", "yes .", "what is it ?", "blue")})
    assert score(found) == max(score(t) for t in [*(d.answers[0] for d in talks), *pieces, *(f"{a} {b}" for a in pieces for b in pieces)])
    assert constant_reply([ask("one , two"), ask("")]) in ("one , two", "") and constant_reply(talks) == found and constant_reply([ask("x", "y")]) in ("x", "y")


@pytest.mark.slices
def test_real_replies(slices):
    parts = {name: load_dialogues(slices / "convai2", name)[0] for name in ("train", "valid")}
    said, right = ([d.answers[0] for d in part] for part in (parts["train"][:400], parts["valid"][:400]))
    for x, y in zip(said, right):
        found = reply_scores(x, [y])
        assert abs(100 * found["bleu"] - sacrebleu.sentence_bleu(x, [y]).score) < 1e-9 and all(abs(found[k] - v) < 1e-12 for k, v in rouge(x, y).items())
    parrot = constant_reply(parts["train"])
    f1 = lambda t: score_table([t] * 800, parts["valid"])[1]["f1"]
    assert 0.15 < f1(FLOOR) < f1(parrot) < 0.25 > f1("i am a fish .")
    table = [dict(p, bleu=100 * p["bleu"]) for p in Reward().parts(said * 2, parts["valid"])]
    assert variance_shares(table, dict(f1=1, rougeL=1, bleu=1))["bleu"] > 0.9 > 0.6 > max(variance_shares(table, dict(f1=1, rougeL=1, bleu=0.01)).values())
