"""rlgen.metrics against the reference libraries, exact enumeration and simulation."""
import itertools
import json
import random
import re
import string
import subprocess
import sys
from collections import Counter

import numpy as np
import pandas as pd
import pytest
import sacrebleu
from rouge_score import rouge_scorer, tokenize
from scipy.stats import binomtest

from rlgen.core import RlgenError
from rlgen.metrics import (
    bleu,
    compare,
    distinct_n,
    holds,
    interval,
    length_ratio,
    paired,
    repetition,
    rouge,
    self_bleu,
    sentence_bleu,
    summarise,
    token_f1,
    wilson,
    words,
)

SUMMARY = {"method", "metric", "mean", "se", "low", "high", "n", "seeds", "by_seed"}
PAIR = {"a", "b", "metric", "diff", "low", "high", "p", "by_seed"}


def ascii_texts(n, seed=0, chars=string.printable):
    rng = random.Random(seed)
    vocab = ["the", "a", "an", "running", "Dogs", "don't", "3.5", "x_y", "mat.", "on", "(the)", "well-known", "U.S.", "generalisation"]
    noise = lambda: "".join(rng.choices(chars, k=rng.randint(1, 4)))
    return [" ".join(rng.choice(vocab) if rng.random() < 0.8 else noise() for _ in range(rng.randint(0, 25))) for _ in range(n)]


def rows(n_seeds=3, n_items=20, seed=0, **gains):
    rng = np.random.default_rng(seed)
    hard = rng.normal(size=n_items)
    return [{"method": m, "seed": s, "item": i, "r": hard[i] + g + 0.1 * rng.normal(), "k": float(i % 2)}
            for m, g in gains.items() for s in range(n_seeds) for i in range(n_items)]


# ---- text

@pytest.mark.parametrize("stem", [False, True])
def test_rouge_equals_rouge_score_on_ascii(stem):
    ours, theirs = ascii_texts(60), rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=stem)
    for pred, ref in itertools.pairwise(ours):
        assert rouge(pred, ref, stem=stem) == pytest.approx({k: v.fmeasure for k, v in theirs.score(ref, pred).items()}, abs=1e-12)


def test_words_equal_rouge_score_on_every_ascii_character():
    text = "ab".join(map(chr, range(128)))
    assert words(text) == tokenize.tokenize(text, None)


@pytest.mark.parametrize("text", ["приятного аппетита", "gänsefüßchen", "नमस्ते दुनिया", "我爱你", "καλημέρα", "한국어 문장", "مرحبا بالعالم"])
def test_identical_texts_score_one_in_every_alphabet(text):
    assert rouge(text, text)["rouge1"] == pytest.approx(1) and token_f1(text, text) == 1
    assert rouge(text, "something else")["rouge1"] == 0


def test_words_ignore_spelling_variants():
    assert words("Cafe\u0301") == words("café") and words("ＡＢＣ１") == ["abc1"] and words("co\u00adoperate") == ["cooperate"]
    assert words("दुनिया") == ["दुनिया"]  # vowel signs are part of the word
    assert words("❤\ufe0f 👍🏽 1\ufe0f\u20e3") == ["1"] and words("") == []


def squad_f1(pred, ref):
    def norm(s):
        s = "".join(c for c in s.lower() if c not in string.punctuation)
        return re.sub(r"\b(a|an|the)\b", " ", s).split()
    p, r = norm(pred), norm(ref)
    same = sum((Counter(p) & Counter(r)).values())
    if not p or not r: return float(p == r)
    return 0.0 if not same else 2 / (len(p) / same + len(r) / same)


def test_token_f1_is_squads_on_ascii():
    texts = ascii_texts(80, seed=1, chars=string.digits + string.ascii_letters + string.punctuation + " ")
    for p, r in itertools.pairwise(texts): assert token_f1(p, r) == pytest.approx(squad_f1(p, r))
    assert token_f1("a b c", ["x", "b c"]) == 1.0 and token_f1("", "") == 1 and token_f1("x", "") == 0


def test_bleu_equals_sacrebleu_also_with_ragged_references():
    preds = ["the cat sat on the mat .", "a dog ran in the park", "nine old books on a shelf"]
    refs = [["the cat sat on a mat .", "a cat there"], ["the dog ran in the park", "dogs ran"], ["nine old books lay on the shelf", "x"]]
    assert bleu(preds, refs) == sacrebleu.corpus_bleu(preds, list(zip(*refs))).score
    ragged = [refs[0], refs[1][0], [refs[2][0]]]
    streams = [[r[0] for r in refs], [refs[0][1], None, None]]
    assert bleu(preds, ragged) == sacrebleu.corpus_bleu(preds, streams).score
    assert sentence_bleu(preds[0], refs[0]) == sacrebleu.sentence_bleu(preds[0], refs[0]).score
    assert bleu(["我爱北京天安门"], ["我爱北京天安门"], tokenize="zh") == pytest.approx(100)
    assert bleu([""], ["something"]) == 0 and sentence_bleu("", "something") == 0


@pytest.mark.parametrize("preds,refs,told", [
    (["a"], ["a", "b"], "1 predictions and 2"), ([], [], "0 predictions"), ("abc", ["a"] * 3, "one string"),
    (["a", "b"], ["a", []], "item 1")])
def test_bleu_refuses_what_does_not_align(preds, refs, told):
    with pytest.raises(RlgenError, match=told): bleu(preds, refs)
    with pytest.raises(RlgenError, match=told): length_ratio(preds, refs)


def test_diversity_by_hand():
    texts = ["a b a b", "a b c"]
    assert distinct_n(texts, 2) == 3 / 5 and distinct_n(texts, 1) == 3 / 7 and distinct_n(["a"], 2) == 0
    assert repetition("a b a b a b", 2) == pytest.approx(3 / 5) and repetition("a b c", 4) == 0
    assert length_ratio(["a b c", "a"], ["a b", ["a b", "a b c d"]]) == 1 and length_ratio(["a"], [""]) is None
    assert self_bleu(["we sail tomorrow at nine"] * 3) == pytest.approx(100) and self_bleu(["a b c d", "e f g h"]) == 0
    texts = ["a b c d", "a b x d", "a b c y"]
    one_out = [sentence_bleu(t, [u for u in texts if u != t]) for t in texts]
    assert self_bleu(texts) == pytest.approx(np.mean(one_out)) and self_bleu(texts, limit=2) < self_bleu(texts)
    with pytest.raises(RlgenError, match="at least two"): self_bleu(["alone"])


# ---- intervals and tests

def test_interval_by_hand_and_at_the_edges():
    assert interval([0, 1]) == dict(mean=0.5, se=0.5, low=0, high=1, n=2)
    assert interval([0.25] * 8) == dict(mean=0.25, se=0, low=0.25, high=0.25, n=8)
    assert interval([]) == dict(mean=None, se=None, low=None, high=None, n=0)
    assert interval([2]) == dict(mean=2.0, se=None, low=None, high=None, n=1)
    x = np.random.default_rng(0).normal(size=700)
    found = interval(x)
    assert found["se"] == pytest.approx(x.std(ddof=1) / 700**0.5) and found == interval(list(x)) != interval(x, seed=1)
    assert found["high"] - found["low"] == pytest.approx(2 * 1.96 * found["se"], rel=0.05)
    json.dumps([found, interval([]), paired([], []), paired([1], [0]), wilson(0, 0)], allow_nan=False)


@pytest.mark.parametrize("bad,told", [
    ([1, float("nan")], "value 1 of 2 is nan"), ([float("inf")], "inf"), (["x"], "not all are numbers"), ([[1, 2]], "shape"),
    ([1, None], "nan")])
def test_interval_refuses_what_is_no_number(bad, told):
    with pytest.raises(RlgenError, match=told): interval(bad)


@pytest.mark.parametrize("draw,truth", [
    (lambda r: r.normal(size=50), 0.0), (lambda r: r.random(50) < 0.4, 0.4), (lambda r: r.exponential(size=100), 1.0)])
def test_interval_covers_as_often_as_it_says(draw, truth):
    rng = np.random.default_rng(0)
    for level in (0.95, 0.8):
        found = [interval(draw(rng), n_boot=400, level=level) for _ in range(3000)]  # standard error of the coverage: 0.004 and 0.007
        assert np.mean([f["low"] <= truth <= f["high"] for f in found]) == pytest.approx(level, abs=0.035)


def test_paired_p_equals_exact_enumeration():
    d = np.random.default_rng(3).normal(0.4, 1, size=10)
    signs = np.array(list(itertools.product([-1, 1], repeat=10)))
    exact = np.mean(np.abs(signs @ d) >= abs(d.sum()) - 1e-12)
    assert paired(d, np.zeros(10), n_perm=40_000)["p"] == pytest.approx(exact, abs=0.01)
    ties = np.array([1, 0, 1, 1, 0, 1, -1, 0.0])  # discrete scores: ties must count as extreme
    exact = np.mean(np.abs(np.array(list(itertools.product([-1, 1], repeat=8))) @ ties) >= abs(ties.sum()))
    assert paired(ties * 0.1 + 0.7, np.full(8, 0.7), n_perm=40_000)["p"] == pytest.approx(exact, abs=0.01)


def test_paired_p_is_uniform_when_nothing_is_different():
    rng = np.random.default_rng(0)
    ps = np.array([paired(*rng.normal(size=(2, 30)), n_boot=10, n_perm=400)["p"] for _ in range(400)])
    assert np.mean(ps <= 0.05) == pytest.approx(0.05, abs=0.03) and np.mean(ps <= 0.5) == pytest.approx(0.5, abs=0.08)


def test_paired_is_narrower_than_unpaired_on_shared_difficulty():
    rng = np.random.default_rng(0)
    hard = rng.normal(size=80)
    a, b = hard + 0.3 + 0.2 * rng.normal(size=80), hard + 0.2 * rng.normal(size=80)
    same, other = paired(a, b), paired(a, rng.permutation(b))
    assert same["diff"] == pytest.approx(other["diff"]) and same["high"] - same["low"] < 0.4 * (other["high"] - other["low"])
    assert same["low"] > 0 and same["p"] < 0.001
    back = paired(b, a)
    assert back["diff"] == -same["diff"] and back["p"] == same["p"]


def test_paired_edges():
    assert paired([1, 1], [1, 1])["p"] == 1 and paired(np.ones(40), np.zeros(40), n_perm=999)["p"] == 1 / 1000
    assert paired([], []) == dict(diff=None, low=None, high=None, p=None, n=0)
    assert paired([2], [1]) == dict(diff=1.0, low=None, high=None, p=1.0, n=1)
    with pytest.raises(RlgenError, match="2 scores against 3"): paired([1, 2], [1, 2, 3])


def test_wilson_equals_scipy():
    for k, n in [(0, 7), (8, 10), (20, 20), (37, 1000)]:
        for level in (0.9, 0.95):
            ci = binomtest(k, n).proportion_ci(level, method="wilson")
            found = wilson(k, n, level)
            assert (found["low"], found["high"], found["rate"]) == pytest.approx((ci.low, ci.high, k / n), abs=1e-9)
    assert wilson(0, 0) == dict(rate=None, low=0, high=1, n=0)
    for k, n in [(3, 2), (-1, 2)]:
        with pytest.raises(RlgenError): wilson(k, n)


# ---- tables

def test_summarise_shape_and_numbers():
    scores = rows(b=0.0, a=1.0)
    table = summarise(scores, ["r", "k"])
    assert [(t["method"], t["metric"]) for t in table] == [("b", "r"), ("b", "k"), ("a", "r"), ("a", "k")]
    assert all(set(t) == SUMMARY and t["n"] == 20 and t["seeds"] == 3 and list(t["by_seed"]) == ["0", "1", "2"] for t in table)
    x = pd.DataFrame(scores).query("method == 'a'").pivot(index="seed", columns="item", values="r")
    mean, sd = x.to_numpy().mean(), x.mean(0).std(ddof=1)
    assert (table[2]["mean"], table[2]["se"]) == pytest.approx((mean, sd / 20**0.5), abs=1e-4)
    assert list(table[2]["by_seed"].values()) == pytest.approx(list(x.mean(1)), abs=1e-4)
    assert all(round(t[k], 4) == t[k] for t in table for k in ("mean", "se", "low", "high"))
    shuffled = sorted(scores, key=lambda r: (r["method"] != "b", hash((r["seed"], -r["item"]))))
    assert summarise(pd.DataFrame(shuffled), ["r", "k"]) == table
    json.dumps(table, allow_nan=False)


def test_summarise_more_seeds_do_not_narrow_the_interval():
    wide = {n: summarise(rows(n_seeds=n, a=0.0), ["r"])[0] for n in (1, 10)}
    ratio = (wide[10]["high"] - wide[10]["low"]) / (wide[1]["high"] - wide[1]["low"])
    assert 0.8 < ratio < 1.2 and wide[1]["seeds"] == 1 and wide[10]["n"] == 20


def test_summarise_leaves_out_a_metric_a_method_does_not_have():
    scores = rows(a=0.0) + [{k: v for k, v in r.items() if k != "k"} for r in rows(b=0.0)]
    for form in (scores, pd.DataFrame(scores)):
        assert [(t["method"], t["metric"]) for t in summarise(form, ["k"])] == [("a", "k")]
        assert compare(form, [("a", "b")], ["k"]) == []


def test_tables_refuse_holes_doubles_and_unknown_names():
    scores = rows(a=0.0, b=0.0)
    with pytest.raises(RlgenError, match="b: no r for item 19 on seed 2"): summarise(scores[:-1], ["r"])
    with pytest.raises(RlgenError, match="two rows"): summarise(scores + scores[:1], ["r"])
    with pytest.raises(RlgenError, match="no metric 'rr'.*did you mean|no metric 'rr'.*valid"): summarise(scores, ["rr"])
    with pytest.raises(RlgenError, match="has no 'seed'"): summarise([{"method": "a", "item": 0, "r": 1.0}], ["r"])
    with pytest.raises(RlgenError, match="a r: value 0"): summarise([scores[0] | {"r": float("inf")}], ["r"])
    with pytest.raises(RlgenError, match="no method 'c'"): compare(scores, [("a", "c")], ["r"])
    assert summarise([], ["r"]) == []
    assert summarise([r | {"item": r["item"] or "first"} for r in scores], ["r"])[0]["n"] == 20  # items may be of any type


def test_compare_shape_numbers_and_mismatch():
    scores = rows(a=0.5, b=0.0, c=-0.5)
    found = compare(scores[::-1], [("a", "b"), ("c", "b")], ["r", "k"])
    assert [(f["a"], f["b"], f["metric"]) for f in found] == [("a", "b", "r"), ("a", "b", "k"), ("c", "b", "r"), ("c", "b", "k")]
    assert all(set(f) == PAIR and set(f["by_seed"]) == {"0", "1", "2"} for f in found)
    means = {t["method"]: t for t in summarise(scores, ["r"])}
    assert found[0]["diff"] == pytest.approx(means["a"]["mean"] - means["b"]["mean"], abs=2e-4)
    assert found[0]["by_seed"]["1"] == pytest.approx(means["a"]["by_seed"]["1"] - means["b"]["by_seed"]["1"], abs=2e-4)
    assert [holds(f) for f in found] == [True, False, True, False] and found[1]["p"] == 1
    with pytest.raises(RlgenError, match="a and b: item 7 is in a only"):
        compare([r for r in scores if (r["method"], r["item"]) != ("b", 7)], [("a", "b")], ["r"])
    with pytest.raises(RlgenError, match="seed 2 is in a only"):
        compare([r for r in scores if (r["method"], r["seed"]) != ("b", 2)], [("a", "b")], ["r"])


@pytest.mark.parametrize("low,high,by_seed,claim", [
    (0.1, 0.3, [0.1, 0.2, 0.3], True), (-0.3, -0.1, [-0.1, -0.2], True),
    (-0.1, 0.3, [0.1, 0.2], False), (0.1, 0.3, [0.5, -0.1], False),
    (0.1, 0.3, [0.5, 0.0], False), (0.0, 0.3, [0.1, 0.2], False), (None, None, [0.1], False)])
def test_holds(low, high, by_seed, claim):
    assert holds({"low": low, "high": high, "by_seed": {str(i): d for i, d in enumerate(by_seed)}}) is claim


def test_import_is_light():
    heavy = ("torch", "pandas", "scipy", "sacrebleu", "rouge_score", "nltk", "matplotlib")
    code = f"import sys, rlgen.metrics; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
