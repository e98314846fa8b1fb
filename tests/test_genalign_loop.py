"rlgen.genalign.loop: credit by hand and by leaving out, rounds that are judged by earlier ones, runs that are killed, the best round's weights."
import csv
import json
import math
from dataclasses import replace
from random import Random
from statistics import fmean, stdev

import pytest
import torch
from scipy.stats import spearmanr

from helpers import line_of
from rlgen.core import read_jsonl, seed_for
from rlgen.genalign.classifier import Classifier, mean_loss, train_words, word_means
from rlgen.genalign.credit import CREDITS, distance_credit, influence, leave_one_out, to_advantages
from rlgen.genalign.data import Item
from rlgen.genalign.distances import class_distances
from rlgen.genalign.generator import Adapters, Learner, adapt, requests, write
from rlgen.genalign.loop import PARTS, Scoring, align, converged, measure_set, score_round, text_credits
from rlgen.genalign.reward import Normaliser
from rlgen.lm import load_lm
from rlgen.sampling import Cost
from rlgen.worlds import genalign as world

LABELS = ("cross", "glad")
GOLDEN = [Item(text, label) for text, label in world.golden("dev", 60)]
WRITING = dict(max_new_tokens=20, batch_size=64)
ZERO = dict(w_inter=0.0, w_intra=0.0)


def learn(items): return train_words(items, LABELS)


def judged(credit="per_sample", **options): return Scoring(learn, word_means, credit, **options)


def drafts(n, seed=0):
    "What the world's generator has read, labels by turns."
    rows = world.drafts(8 * n, seed)
    by = {label: [Item(text, label) for stated, text in rows if stated == label] for label in LABELS}
    return [by[LABELS[i % 2]][i // 2] for i in range(n)]


def numbers(rows, key): return [r[key] for r in rows]


# ---------------------------------------------------------------- convergence


@pytest.mark.parametrize("losses, patience, min_delta, over", [
    ([], 1, 0.01, False), ([0.7], 1, 0.01, False), ([0.7, 0.7], 1, 0.01, True), ([0.7, 0.6], 1, 0.01, False), ([0.7, 0.6, 0.595], 1, 0.01, True), ([0.7, 0.6, 0.595], 2, 0.01, False),
    ([0.7, 0.6, 0.595, 0.592], 2, 0.01, True), ([0.7, 0.6, 0.595, 0.589], 2, 0.01, False), ([0.7, 0.8, 0.9, 0.69, 0.1], 3, 0.01, False), ([0.7, 0.8, 0.9, 0.695], 3, 0.01, True),
    ([0.7, 0.71, 0.6, 0.61, 0.62], 3, 0.0, False), ([0.7, 0.7, 0.7], 2, 0.0, True), ([0.7] * 50, 0, 0.01, False), ([0.7, 0.6, 0.5], 1, 0.2, True), ([math.inf, 5.0, 4.0], 1, 0.01, False)])
def test_converged(losses, patience, min_delta, over):
    assert converged(losses, patience, min_delta) is over


def test_small_gains_dont_add_up_unseen():
    "Better means than the last round that was better; a slow fall counts when it has fallen enough."
    slow = [0.7 - 0.004 * i for i in range(12)]
    assert converged(slow, 2) and not converged(slow, 3)


# ---------------------------------------------------------------- what a text is worth


def test_credits_are_the_weighted_parts():
    items = drafts(16)
    labels, vectors, classifier = [t.label for t in items], word_means([t.text for t in items]), learn(items)
    inter, intra = distance_credit(vectors, labels, "euclidean")
    golden = influence(classifier, items, GOLDEN, "diagonal", 0.3)
    how = judged(w_inter=2.0, w_intra=0.5, w_golden=3.0, reward_clip=1.5, distance="euclidean", curvature="diagonal", damping=0.3)
    credits, rows = text_credits(how, classifier, items, GOLDEN, vectors)
    a, b, c = (to_advantages(x, labels, 1.5) for x in (inter, intra, golden))
    torch.testing.assert_close(credits, 2 * a - 0.5 * b + 3 * c)
    assert max(x.abs().max() for x in (a, b, c)) == 1.5 and tuple(rows[0]) == PARTS
    for key, x in (("inter", inter), ("intra", intra), ("influence", golden)): assert numbers(rows, key) == pytest.approx(x.tolist())


def test_each_weight_alone():
    "A text far from its own class is worth little for w_intra and much the other way round; a mislabelled one for w_golden."
    items = drafts(20)
    labels, vectors, classifier = [t.label for t in items], word_means([t.text for t in items]), learn(items)
    def credits(inter, intra, golden): return text_credits(judged(w_inter=inter, w_intra=intra, w_golden=golden), classifier, items, GOLDEN, vectors)
    rows = credits(1, 1, 1)[1]
    for weights, key, sign in (((1, 0, 0), "inter", 1), ((0, 1, 0), "intra", -1), ((0, 0, 1), "influence", 1)):
        alone = credits(*weights)[0]
        for label in LABELS:
            mine = [i for i in range(20) if labels[i] == label]
            assert spearmanr([alone[i] for i in mine], [sign * rows[i][key] for i in mine])[0] == pytest.approx(1)
    far = max(range(20), key=lambda i: sum((vectors[i] - vectors[j]).norm() for j in range(20) if labels[j] == labels[i]))
    assert credits(0, 1, 0)[0][far] < 0 and rows[far]["intra"] > 0
    right = [world.label_of(t.text) for t in items]
    golden = credits(0, 0, 1)[0]
    assert fmean(golden[i] for i in range(20) if right[i] not in (labels[i], None)) < 0 < fmean(golden[i] for i in range(20) if right[i] == labels[i])


def test_no_weight_no_part():
    items = drafts(8)
    vectors, classifier = word_means([t.text for t in items]), learn(items)
    def parts(**weights): return [set(r) for r in text_credits(judged(**weights), classifier, items, GOLDEN, vectors)[1]]
    assert parts(**ZERO) == [{"influence"}] * 8 and parts(w_golden=0.0) == [{"inter", "intra"}] * 8 and parts() == [set(PARTS)] * 8
    bare = replace(classifier, l2=0.0)
    assert "damping" in line_of(text_credits, judged(), bare, items, GOLDEN, vectors) and text_credits(judged(w_golden=0.0), bare, items, GOLDEN, vectors)[0].isfinite().all()


# ---------------------------------------------------------------- a round


def test_what_is_measured():
    items = drafts(12)
    classifier, told = measure_set(how := judged(), items, GOLDEN)
    far = class_distances(word_means([t.text for t in items]), [t.label for t in items])
    assert told["golden_loss"] == mean_loss(learn(items), GOLDEN) and told["golden_accuracy"] == fmean(LABELS[k] == t.label for k, t in zip(classifier.logits([t.text for t in GOLDEN]).argmax(-1).tolist(), GOLDEN))
    assert {k: told[k] for k in ("inter", "intra", "silhouette", "quality")} == {k: far[k] for k in ("inter", "intra", "silhouette", "quality")} and set(how.watch) == {"classifier", "distances"}
    twice = measure_set(how, items, GOLDEN, 2 * torch.eye(12))[1]
    assert twice["intra"] == 1 and twice["golden_loss"] == told["golden_loss"]
    assert measure_set(judged(distance="euclidean"), items, GOLDEN)[1]["intra"] == class_distances(word_means([t.text for t in items]), [t.label for t in items], "euclidean")["intra"]


def reward(told, weights=(1.0, 1.0, 1.0)): return weights[0] * told["inter"] - weights[1] * told["intra"] - weights[2] * told["golden_loss"]


@pytest.mark.parametrize("credit", CREDITS)
def test_what_all_kinds_of_credit_share(credit):
    items = drafts(12)
    s = score_round(judged(credit, num_sets=2, guard_weight=0.0), items, GOLDEN, normaliser := Normaliser("none"))
    whole = measure_set(judged(), items, GOLDEN)[1]
    assert {k: s.told[k] for k in whole} == whole and s.told["empty"] == 0 and s.told["distinct"] == 1 and s.told["warning"] == ""
    assert numbers(s.rows, "text") == numbers(map(vars, items), "text") and numbers(s.rows, "label") == [t.label for t in items]
    assert numbers(s.rows, "credit") == s.credits.tolist() and numbers(s.rows, "advantage") == s.advantages.tolist() and len(s.advantages) == len(s.credits) == 12
    assert normaliser.seen == s.parts and all(set(p) == {"inter", "intra", "golden_loss"} for p in s.parts) and len(s.parts) == (2 if credit == "dataset" else 1)
    assert s.told["reward"] == pytest.approx(fmean(map(reward, s.parts))) and ("influence" in s.rows[0]) == (credit == "per_sample")


def test_scalar_credit_is_the_rounds_reward():
    items = drafts(12)
    s = score_round(judged("scalar", w_inter=2.0, w_intra=0.3, w_golden=0.7), items, GOLDEN, Normaliser("none"))
    assert s.credits.tolist() == s.advantages.tolist() == [s.told["reward"]] * 12 and s.told["reward"] == pytest.approx(reward(s.told, (2.0, 0.3, 0.7)))
    clipped = score_round(judged("scalar", reward_clip=0.1), items, GOLDEN, Normaliser("none"))
    assert set(clipped.credits.tolist()) == {-0.1} == {clipped.told["reward"]}


def test_dataset_credit_compares_sets():
    "Fourteen texts in three sets, each against the mean of the other two."
    items = drafts(14)
    s = score_round(judged("dataset", num_sets=3), items, GOLDEN, Normaliser("none"))
    sets = [items[:5], items[5:10], items[10:]]
    earned = [reward(measure_set(judged(), each, GOLDEN)[1]) for each in sets]
    apart = [r - fmean(earned[:k] + earned[k + 1 :]) for k, r in enumerate(earned)]
    each = torch.tensor([apart[k] for k, texts in enumerate(sets) for _ in texts], dtype=torch.float64)
    torch.testing.assert_close(s.credits, (each - each.mean()) / each.std(correction=0))
    torch.testing.assert_close(s.advantages, s.credits)
    assert len({round(x, 9) for x in s.credits.tolist()}) == 3 and s.told["reward"] == pytest.approx(fmean(earned))


def test_per_sample_credit_is_leaving_out():
    "Every text left out in turn, and the classifier trained again."
    items = drafts(40, 1)
    s = score_round(judged(**ZERO), items, GOLDEN, Normaliser())
    saved = leave_one_out(items, GOLDEN, learn)
    assert spearmanr(saved, numbers(s.rows, "influence"))[0] > 0.9
    for label in LABELS:
        mine = [i for i, t in enumerate(items) if t.label == label]
        assert spearmanr(saved[mine], s.credits[mine])[0] > 0.9 and abs(s.advantages[mine].sum()) < 1e-9 and spearmanr(saved[mine], s.advantages[mine])[0] > 0.9
    assert saved.min() < 0 < saved.max() and s.credits[saved.argmin()] < 0 < s.credits[saved.argmax()]


def test_empty_texts_are_the_worst_and_teach_nobody():
    items, seen = drafts(12), []
    gone = [2, 5, 11]
    with_gaps = [Item("", t.label) if i in gone else t for i, t in enumerate(items)]
    for credit in CREDITS:
        def watching(texts): return seen.append(list(texts)) or learn(texts)
        s = score_round(Scoring(watching, word_means, credit, num_sets=2), with_gaps, GOLDEN, Normaliser("none"))
        assert all(t.text for texts in seen for t in texts) and seen[0] == [t for i, t in enumerate(items) if i not in gone] and s.told["empty"] == 0.25
        if credit == "dataset": assert seen[-2] + seen[-1] == seen[0] and abs(len(seen[-2]) - len(seen[-1])) <= 1
        real = [i for i in range(12) if i not in gone]
        assert len(s.rows) == len(s.advantages) == 12 and (s.credits[gone] == s.credits.min()).all() and s.credits[gone].unique().numel() == 1
        assert s.advantages[gone].max() <= s.advantages[real].min() if credit != "per_sample" else all(s.advantages[i] < min(s.advantages[j] for j in real if items[j].label == items[i].label) for i in gone)
        assert [("influence" in r) for r in s.rows] == [credit == "per_sample" and i not in gone for i in range(12)]
        seen.clear()
    alone = score_round(judged(guard_weight=0.0), [t for i, t in enumerate(items) if i not in gone], GOLDEN, Normaliser("none"))
    gaps = score_round(judged(guard_weight=0.0), with_gaps, GOLDEN, Normaliser("none"))
    torch.testing.assert_close(gaps.credits[real], alone.credits)
    assert all(abs(sum(a for a, t in zip(gaps.advantages.tolist(), items) if t.label == label)) < 1e-9 for label in LABELS)


@pytest.mark.parametrize("credit", CREDITS)
def test_copies_pay(credit):
    items = drafts(12)
    items[4:10:2] = [items[2]] * 3
    free, paid = (score_round(judged(credit, num_sets=2, guard_weight=w), items, GOLDEN, Normaliser("none")) for w in (0.0, 2.0))
    assert numbers(paid.rows, "penalty") == [1.5 if i in (2, 4, 6, 8) else 0.0 for i in range(12)] and not any(numbers(free.rows, "penalty"))
    torch.testing.assert_close(paid.advantages - free.advantages, torch.tensor([-1.0 if i in (2, 4, 6, 8) else 0.5 for i in range(12)], dtype=torch.float64))
    assert torch.equal(paid.credits, free.credits) and paid.told["distinct"] == 9 / 12


def test_the_guards_numbers_arrive():
    items = [Item(f"a b c {w}", label) for w, label in zip("vwxyz", "ab" * 3)]
    def of(**options): return score_round(Scoring(lambda texts: train_words(texts, ("a", "b")), word_means, "scalar", **options), items, [Item("v", "a"), Item("w", "b")], Normaliser("none"))
    assert of().told["distinct"] == 1 and of(guard_near=0.6).told["distinct"] == pytest.approx(0.2) and "20%" in of(guard_near=0.6).told["warning"] and of(guard_near=0.6, guard_floor=0.1).told["warning"] == ""


def test_rounds_that_cant_be_judged():
    items, normaliser = drafts(6), Normaliser()
    only = [t for t in items if t.label == "glad"]
    for credit in CREDITS:
        assert "no text with the label 'cross'" in line_of(score_round, judged(credit, num_sets=2), only, GOLDEN, normaliser)
        assert "no text with the label 'cross'" in line_of(score_round, judged(credit, num_sets=2), [*only, Item("", "cross")], GOLDEN, normaliser), "an empty text is no text"
        assert "no labelled texts" in line_of(score_round, judged(credit, num_sets=2), [Item("", t.label) for t in items], GOLDEN, normaliser)
    assert "num_sets = 7" in (said := line_of(score_round, judged("dataset", num_sets=7), items, GOLDEN, normaliser)) and "6 texts" in said and "samples_per_iteration" in said
    assert "did you mean 'per_sample'" in line_of(score_round, judged("per-sample"), items, GOLDEN, normaliser)
    assert normaliser.seen == [] and "w_inter" in line_of(score_round, judged(w_golden=0.0, **ZERO), items, GOLDEN, normaliser)


@pytest.mark.parametrize("credit", CREDITS)
def test_a_round_is_scaled_by_earlier_ones(credit):
    "Deviations of all earlier data sets, and of none of the present ones."
    normaliser, seen, how = Normaliser(), [], judged(credit, num_sets=2)
    for k in range(4):
        s = score_round(how, drafts(12, k), GOLDEN, normaliser)
        scale = {name: (fmean(numbers(seen, name)), stdev(numbers(seen, name))) for name in s.parts[0]} if len(seen) > 1 else dict.fromkeys(s.parts[0], (0.0, math.inf))
        earned = [max(-5.0, min(5.0, reward({name: (x - scale[name][0]) / scale[name][1] for name, x in part.items()}))) for part in s.parts]
        assert s.told["reward"] == pytest.approx(fmean(earned)) and normaliser.seen == seen + s.parts
        if credit == "scalar": assert s.credits.tolist() == pytest.approx(earned * 12)
        if credit == "dataset": assert (s.credits[0] > s.credits[11]) == (earned[0] > earned[1]) and s.credits.any() == (k > 0)
        seen += s.parts
    assert s.told["reward"] != 0


# ---------------------------------------------------------------- rounds


class Killed(Exception): pass


def begin(r=0, algorithm="ppo", seed=0):
    "A fresh learner on the world's generator, as a process has it that has just started."
    return Learner(adapt(load_lm("zoo/drafts"), Adapters(r)), algorithm, lr=5e-3, epochs=2, minibatches=2, seed=seed)


def rounds_of(learner, folder, how=None, n=12, seed=0, kill=(), asked=None, **options):
    "A short run; it is killed in a place and round."
    def dying(place, number):
        if kill == (place, number): raise Killed
    def ask(k):
        if asked is not None: asked.append(k)
        dying("ask", k)
        return requests(learner.lm, LABELS, n, max_new_tokens=20)
    given = dict(rounds=6, patience=0, save_every=1, log=lambda k, **s: dying("log", k), save=lambda k: dying("save", k)) | WRITING
    folder.mkdir(exist_ok=True)
    return align(learner, how or judged(**ZERO), GOLDEN, Normaliser(), ask, lambda k: [seed_for(seed, "round", [k, i]) for i in range(n)], folder, **given | options)


def state(learner): return {n: t.clone() for n, t in learner.policy.state_dict().items()}


def equal(a, b): return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


def left(folder): return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.suffix in (".jsonl", ".csv")}


KINDS = {"all weights": dict(), "adapters": dict(r=4), "reinforce": dict(algorithm="reinforce")}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    "whole(kind): what an uninterrupted run leaves and tells, each kind run once."
    made = {}
    def get(kind):
        if kind not in made:
            learner, folder = begin(**KINDS[kind]), tmp_path_factory.mktemp("whole")
            made[kind] = rounds_of(learner, folder), state(learner), left(folder)
        return made[kind]
    return get


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_a_killed_run_goes_on(kind, seed, whole, tmp_path):
    "Killed twice in seeded places; history, texts, the best round and its weights are those of a run in one piece."
    told, weights, files = whole(kind)
    losses, rng, start = numbers(map(json.loads, files["history.jsonl"].decode().splitlines()), "golden_loss"), Random(seed_for(seed, "kill", kind)), 0
    for number in sorted(rng.sample(range(7), 2)):
        place, seconds, asked = rng.choice(("log", "save", "ask")), rng.choice((0.0, 1e9)), []
        with pytest.raises(Killed): rounds_of(begin(**KINDS[kind]), tmp_path, kill=(place, number), asked=asked, save_seconds=seconds)
        assert asked == list(range(start, number + 1))
        start = max((k + 1 for k in range(start, number) if not seconds or losses[k] == min(losses[: k + 1])), default=start)
    assert rounds_of(learner := begin(**KINDS[kind]), tmp_path, asked=(asked := [])) == told and asked == list(range(start, 7))
    assert left(tmp_path) == files and equal(state(learner), weights)


def test_a_finished_run_changes_nothing(whole, tmp_path):
    for _ in range(2): found = rounds_of(learner := begin(), tmp_path), state(learner), left(tmp_path)
    told, weights, files = whole("all weights")
    assert found[0] == told and found[2] == files and equal(found[1], weights)


def test_noise_and_learner_make_the_run(whole, tmp_path):
    rounds_of(begin(), tmp_path, seed=1)
    assert len({read["history.jsonl"] for read in (left(tmp_path), *(whole(kind)[2] for kind in KINDS))}) == 4


def test_what_a_run_leaves(tmp_path):
    logged, how = [], judged()
    learner, cost = begin(), Cost()
    told = rounds_of(learner, tmp_path, how, log=lambda k, **s: logged.append((k, s)), cost=cost)
    history = read_jsonl(tmp_path / "history.jsonl")
    assert [k for k, _ in logged] == list(range(7)) == list(range(len(history))) and told["rounds"] == 6 and told["best"] == min(range(7), key=numbers(history, "golden_loss").__getitem__) and not told["stopped"]
    kept = ("reward", "inter", "intra", "golden_loss", "golden_accuracy", "silhouette", "quality", "distinct", "distinct_2", "empty")
    for (_, s), row in zip(logged, history): assert all(s[k] == row[k] for k in kept) and s["alarm"] == bool(row["alarm"])
    assert [("kl" in s and "entropy" in s and "grad_norm" in s) for _, s in logged] == [True] * 6 + [False] and all(isinstance(x, float) for _, s in logged for x in s.values())
    assert sorted(p.name for p in (tmp_path / "rounds").iterdir()) == [f"iteration-{k:04d}.{end}" for k in range(7) for end in ("csv", "jsonl")]
    for k in range(7):
        rows = read_jsonl(tmp_path / "rounds" / f"iteration-{k:04d}.jsonl")
        with open(tmp_path / "rounds" / f"iteration-{k:04d}.csv", newline="") as f: cells = list(csv.DictReader(f))
        assert [{c: v if c in ("text", "label") else float(v) for c, v in r.items() if v} for r in cells] == [{c: v for c, v in r.items() if v != ""} for r in rows]
        assert numbers(rows, "label") == ["cross", "glad"] * 6 and {"text", "label", "credit", "advantage", "penalty", *PARTS} == set(rows[0])
        assert history[k]["golden_loss"] == mean_loss(learn([Item(r["text"], r["label"]) for r in rows if r["text"]]), GOLDEN)
    assert set(how.watch) == {"writing", "classifier", "distances", "credits", "learning"} and cost.lm_tokens > 7 * 12 * 5 and cost.lm_forwards > 7


def test_no_rounds_are_one_without_a_step(tmp_path):
    learner = begin()
    before = state(learner)
    assert rounds_of(learner, tmp_path, rounds=0) == dict(rounds=0, best=0, stopped=False, alarms=[]) and equal(state(learner), before) and len(read_jsonl(tmp_path / "history.jsonl")) == 1


def test_words_of_writing_arrive(tmp_path):
    rounds_of(begin(), tmp_path, judged("scalar", **ZERO), rounds=0, temperature=1e-3)
    cold, = read_jsonl(tmp_path / "history.jsonl")
    assert cold["distinct"] == 2 / 12 and "repeats itself" in cold["warning"]


def test_a_class_that_nobody_writes(tmp_path):
    learner = begin()
    said = line_of(align, learner, judged(), GOLDEN, Normaliser(), lambda k: requests(learner.lm, ["glad"], 8, max_new_tokens=20), lambda k: range(8), tmp_path, **WRITING)
    assert "no text with the label 'cross'" in said


# ---------------------------------------------------------------- rounds of which the losses are given


def scripted(*rounds):
    "Rounds (golden loss of a right answer, share of right answers), whatever was written; the scalar is the golden loss."
    calls = iter(rounds)
    def train(items):
        loss, share = next(calls)
        gap, right = -math.log(math.expm1(loss)), round(share * len(GOLDEN))
        side = {t.text: (1.0 if (t.label == "glad") == (i < right) else -1.0) for i, t in enumerate(GOLDEN)}
        return Classifier(LABELS, lambda texts: torch.tensor([[side[t]] for t in texts], dtype=torch.float64), word_means, torch.tensor([[-gap / 2], [gap / 2]], dtype=torch.float64), None)
    return Scoring(train, word_means, "scalar", **ZERO)


def run_script(folder, losses, **options):
    "Its end, its history and the models that wrote."
    learner, writers = begin(), {}
    def keep(k):
        rows = read_jsonl(folder / "rounds" / f"iteration-{k:04d}.jsonl")
        assert texts_of(learner, k) == numbers(rows, "text"), "the model that wrote the round"
        writers[k] = state(learner)
    how = scripted(*(x if isinstance(x, tuple) else (x, 1.0) for x in losses))
    n = len(losses) - 1
    told = align(learner, how, GOLDEN, Normaliser("none"), lambda k: asked_of(learner), lambda k: noise_of(k), folder, **dict(rounds=n, patience=0, save_every=1, save=keep) | WRITING | options)
    return told, read_jsonl(folder / "history.jsonl"), writers, learner


def asked_of(learner): return requests(learner.lm, LABELS, 8, max_new_tokens=20)


def noise_of(k): return [seed_for(0, "script", [k, i]) for i in range(8)]


def texts_of(learner, k): return [r.info["text"] for r in write(learner.lm, asked_of(learner), noise_of(k), **WRITING)]


def test_the_end_is_the_best_rounds_model(tmp_path):
    told, history, writers, learner = run_script(tmp_path, [0.7, 0.6, 0.3, 0.5, 0.4, 0.6])
    assert told == dict(rounds=5, best=2, stopped=False, alarms=[]) and numbers(history, "golden_loss") == pytest.approx([0.7, 0.6, 0.3, 0.5, 0.4, 0.6])
    assert equal(state(learner), writers[2]) and not any(equal(writers[k], writers[2]) for k in (0, 1, 3, 4, 5))
    assert texts_of(learner, 2) == numbers(read_jsonl(tmp_path / "rounds" / "iteration-0002.jsonl"), "text") and texts_of(learner, 3) != numbers(read_jsonl(tmp_path / "rounds" / "iteration-0003.jsonl"), "text")


@pytest.mark.parametrize("losses, patience, min_delta, last, best, stopped", [
    ([0.7, 0.6, 0.595, 0.594, 0.1], 2, 0.01, 3, 3, True), ([0.7, 0.6, 0.595, 0.594, 0.1], 3, 0.01, 4, 4, False), ([0.7, 0.6, 0.595, 0.594, 0.1], 0, 0.01, 4, 4, False),
    ([0.7, 0.6, 0.5, 0.4, 0.3], 1, 0.2, 1, 1, True), ([0.5, 0.6, 0.7, 0.2], 2, 0.01, 2, 0, True), ([0.5, 0.6, 0.7], 2, 0.01, 2, 0, False)])
def test_patience(losses, patience, min_delta, last, best, stopped, tmp_path):
    logged = []
    told, history, writers, learner = run_script(tmp_path, losses, patience=patience, min_delta=min_delta, log=lambda k, **s: logged.append("kl" in s))
    assert told == dict(rounds=last, best=best, stopped=stopped, alarms=[]) and len(history) == last + 1 and sorted(writers) == list(range(last + 1))
    assert equal(state(learner), writers[best]) and logged == [True] * last + [False], "the last round is judged, and not learned from"


@pytest.mark.parametrize("every, wanted", [(0, []), (1, [0, 1, 2, 3, 4]), (2, [0, 2, 4]), (3, [0, 3]), (9, [0])])
def test_rounds_that_are_saved(every, wanted, tmp_path):
    assert sorted(run_script(tmp_path, [0.5] * 5, save_every=every)[2]) == wanted


def test_the_alarm_is_in_the_history(tmp_path):
    "Fewer right answers, but surer of them: the reward rises while the accuracy falls."
    sure = lambda gap: math.log1p(math.exp(-gap))
    told, history, _, _ = run_script(tmp_path, [(sure(8), 0.9), (sure(3), 0.85), (sure(1.5), 0.8), (sure(4), 1.0), (sure(4), 1.0)], alarm_rounds=3)
    assert told["alarms"] == [2] and [bool(r["alarm"]) for r in history] == [False, False, True, False, False] and "gamed" in history[2]["alarm"]
    assert numbers(history, "golden_accuracy") == pytest.approx([0.9, 0.85, 0.8, 1.0, 1.0]) and numbers(history, "reward") == [-x for x in numbers(history, "golden_loss")]


def test_the_rate_rises_and_falls(tmp_path, monkeypatch):
    factors = []
    monkeypatch.setattr(Learner, "step", lambda self, rollouts, advantages, number, factor: factors.append((number, len(rollouts), round(factor, 6))) or {})
    run_script(tmp_path, [0.5] * 9, warmup=0.5)
    assert factors[:4] == [(0, 8, 0.25), (1, 8, 0.5), (2, 8, 0.75), (3, 8, 1.0)] and [f for _, _, f in factors[3:]] == sorted((f for _, _, f in factors[3:]), reverse=True) and 0.1 < factors[7][2] < 0.3 and len(factors) == 8


# ---------------------------------------------------------------- does it learn?


@pytest.mark.parametrize("seed", range(3))
def test_credit_for_each_text_lowers_the_golden_loss(seed, tmp_path):
    "Sixty-four texts, six steps: the mean of the last three rounds against the untrained generator's."
    learner = Learner(load_lm("zoo/drafts"), lr=5e-3)
    rounds_of(learner, tmp_path, n=64, seed=seed)
    loss = numbers(read_jsonl(tmp_path / "history.jsonl"), "golden_loss")
    assert fmean(loss[-3:]) < loss[0] - 0.2 and min(loss) < 0.6


def test_distances_alone_are_followed_too(tmp_path):
    learner = Learner(load_lm("zoo/drafts"), lr=5e-3)
    rounds_of(learner, tmp_path, judged(w_golden=0.0), n=64)
    rows = read_jsonl(tmp_path / "history.jsonl")
    far, wide = (fmean(numbers(rows[-3:], key)) - rows[0][key] for key in ("inter", "intra"))
    assert far > 0.03 and wide < -0.1
