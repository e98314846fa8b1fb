"rlgen.genalign.benchmark: both ways draw from the model's distribution, a round's parts add up to it, and both credits are the ones that were asked for."
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from rlgen.core import seed_for
from rlgen.genalign import benchmark, loop
from rlgen.genalign.benchmark import STEPS, by_influence, by_retraining, errors_apart, loop_rounds, one_by_one, together
from rlgen.genalign.credit import influence, leave_one_out
from rlgen.genalign.generator import BETWEEN, items_of, write
from rlgen.genalign.models import ask, fresh
from rlgen.genalign.setup import ALIGNED, Params, load_problem
from rlgen.lm import build_lm, word_tokenizer
from rlgen.worlds import genalign as world

ROOT = Path(__file__).resolve().parent.parent
SMALL = Params(samples_per_iteration=12, num_sets=3, num_pool=20, num_dev=16, num_test=4, max_new_tokens=6, generation_batch_size=5, golden_sizes=[4], oracle_size=8)


@pytest.fixture(scope="module")
def lm():
    "A random model with strong opinions, and more words than transformers' own default lets through."
    made = build_lm(word_tokenizer(world.vocabulary()), width=16, layers=1, seed=3)
    made.model.lm_head.weight.data *= 40
    assert len(made.tokenizer) > 60
    return made


@pytest.fixture(scope="module")
def problem(): return load_problem(SMALL)


@pytest.fixture(scope="module")
def round_of_texts(problem):
    "Labelled texts, dev texts and how a classifier learns from them."
    return problem.parts(1).pool, problem.parts(0).dev, fresh(SMALL, problem, 0)


# writing


def drawn(lm, asked, n, seed):
    "Texts' ids by the definition: the whole softmax after the whole prefix, a token at a time."
    out = []
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        for q in asked:
            ids = list(q.ids)
            while len(ids) < len(q.ids) + n and not (len(ids) > len(q.ids) and ids[-1] in lm.eos_ids): ids.append(torch.multinomial(lm.model(torch.tensor([ids])).logits[0, -1].float().softmax(-1), 1).item())
            out.append(lm.tokenizer.decode(ids[len(q.ids) :], skip_special_tokens=True).strip())
    return out


@pytest.mark.parametrize("icl", (False, True))
def test_one_at_a_time_is_the_models_own_distribution(lm, problem, icl):
    "Nothing is cut off and nothing sharpened: the same random numbers give the same texts as the softmax written out."
    asked = ask(SMALL, lm, problem, 12, 0, icl=icl)
    _, items = one_by_one(lm, asked, 6, 5)
    assert [t.text for t in items] == drawn(lm, asked, 6, 5) and [t.label for t in items] == [q.label for q in asked]
    assert len({t.text for t in items}) > 6 and [t.text for t in one_by_one(lm, asked, 6, 6)[1]] != [t.text for t in items]


def test_a_flat_model_reaches_every_word(problem):
    "Of a hundred words that are about as probable, far more than fifty come first after the same prompt."
    flat = build_lm(word_tokenizer(world.vocabulary()), width=16, layers=1)
    asked = ask(SMALL, flat, problem, 800, 0)[::2]
    for _, items in (one_by_one(flat, asked, 1, 0), together(flat, asked, 1, 64, 0)): assert len({t.text for t in items}) > 80


def test_random_numbers_are_given_back(lm, problem):
    before = torch.random.get_rng_state()
    one_by_one(lm, ask(SMALL, lm, problem, 2, 0), 6, 0)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_together_is_write(lm, problem):
    "Batches change nothing; another seed does."
    asked = ask(SMALL, lm, problem, 12, 0, icl=True)
    wanted = items_of(write(lm, asked, [seed_for(4, "together", i) for i in range(12)], max_new_tokens=6, batch_size=12))
    assert together(lm, asked, 6, 12, 4)[1] == together(lm, asked, 6, 5, 4)[1] == wanted != together(lm, asked, 6, 12, 5)[1]


def test_both_stop_at_a_blank_line(lm, problem, monkeypatch):
    asked = ask(SMALL, lm, problem, 12, 0)
    plain, ours = ([t.text for t in items] for _, items in (one_by_one(lm, asked, 6, 0), together(lm, asked, 6, 12, 0)))
    word = max({w for t in plain for w in t.split()[1:-1]}, key=lambda w: min(sum(f" {w} " in t for t in texts) for texts in (plain, ours)))
    assert all(any(f" {word} " in t for t in texts) for texts in (plain, ours)), "else nothing is cut below"
    kind, decode = type(lm.tokenizer), type(lm.tokenizer).decode
    monkeypatch.setattr(kind, "decode", lambda self, ids, **kw: decode(self, ids, **kw).replace(word, BETWEEN))
    cut = lambda texts: [t.replace(word, BETWEEN).lstrip().split(BETWEEN)[0].strip() for t in texts]
    assert [t.text for t in one_by_one(lm, asked, 6, 0)[1]] == cut(plain) and [t.text for t in together(lm, asked, 6, 12, 0)[1]] == cut(ours)


def test_clocks_are_of_the_writing(lm, problem, monkeypatch):
    "Seconds are those between the first token and the last, whatever they are."
    now = iter(range(100))
    monkeypatch.setattr(benchmark, "time", SimpleNamespace(perf_counter=lambda: next(now)))
    asked = ask(SMALL, lm, problem, 3, 0)
    assert together(lm, asked, 2, 3, 0)[0] == one_by_one(lm, asked, 2, 0)[0] == 1


def test_errors_apart():
    "By hand: means 0.5 and 0.75 of four numbers each, variances 1/3 and 1/4."
    assert errors_apart([0, 0, 1, 1], [0, 1, 1, 1]) == pytest.approx(0.25 / (1 / 12 + 1 / 16) ** 0.5) == errors_apart([0, 1, 1, 1], [0, 0, 1, 1])
    assert errors_apart([0, 1], [1, 2, 3, 4, 5]) == pytest.approx(2.5 / (0.5 / 2 + 2.5 / 5) ** 0.5)
    assert errors_apart([1, 1], [1, 1, 1]) == 0 and errors_apart([1, 1], [2, 2]) == float("inf")
    assert errors_apart([0, 1] * 200, [0, 1, 1, 1] * 100) > 2 * errors_apart([0, 1] * 20, [0, 1, 1, 1] * 10)


# a round


class Clock:
    "A clock that stands still until somebody lets time pass."

    def __init__(self): self.now = 0.0

    def __call__(self) -> float: return self.now

    def spending(self, call, seconds):
        "The same call, after which so much time has passed."
        def spent(*args, **kw):
            out = call(*args, **kw)
            self.now += seconds()
            return out
        return spent


@pytest.mark.parametrize("credit", sorted(ALIGNED.values()))
def test_a_round_by_its_parts(problem, monkeypatch, credit):
    "Neither the round that warms up nor the one that learns nothing is counted, and what no part accounts for is the rest."
    clock, number = Clock(), [-1]
    def heard(k, **told): number[0] = k
    def passing(where, name, seconds): monkeypatch.setattr(where, name, clock.spending(getattr(where, name), seconds))
    monkeypatch.setattr(benchmark, "time", SimpleNamespace(perf_counter=clock))
    monkeypatch.setattr(loop.time, "perf_counter", clock)
    passing(loop, "write", lambda: 1000 if number[0] == 0 else 100 + number[0])
    passing(loop, "judge", lambda: 10)
    passing(loop, "class_distances", lambda: 0.5)
    passing(loop, "influence", lambda: 3)
    passing(loop.Learner, "step", lambda: 50)
    passing(loop, "_keep", lambda: 7)
    passing(benchmark, "ask", lambda: 0.25)
    asked = benchmark.ask
    monkeypatch.setattr(benchmark, "ask", lambda p, lm, problem, n, seed, first, icl: heard(first // n) or asked(p, lm, problem, n, seed, first, icl))
    rows = loop_rounds(SMALL, problem, credit, 2)
    sets = 1 + (SMALL.num_sets if credit == "dataset" else 0)
    assert rows == [pytest.approx(dict(writing=100 + k, classifier=10 * sets, distances=0.5 * sets, credits=3 * (credit == "per_sample"), learning=50, rest=7.25)) for k in (1, 2)]
    assert all(tuple(r) == STEPS for r in rows) and number == [3]


def test_a_loop_leaves_nothing(problem, tmp_path, monkeypatch):
    "Its files are gone, and every start is from the generator as it was."
    monkeypatch.setattr(benchmark.tempfile, "tempdir", str(tmp_path))
    texts, told = [], loop.write
    monkeypatch.setattr(loop, "write", lambda *args, **kw: texts.append(told(*args, **kw)) or texts[-1])
    for _ in range(2): loop_rounds(SMALL, problem, "per_sample", 1, 5)
    first, second = ([[r.completion_ids for r in found] for found in half] for half in (texts[:3], texts[3:]))
    assert first == second and len(texts) == 6 and not any(tmp_path.iterdir())
    loop_rounds(SMALL, problem, "per_sample", 1, 6)
    assert [r.completion_ids for r in texts[6]] != first[0]


# credits


def test_retraining_is_leaving_out(round_of_texts):
    items, dev, train = round_of_texts
    classifier, which, trained = train(items), [7, 0, 12], []
    _, saved = by_retraining(lambda rows: trained.append(list(rows)) or train(rows), classifier, items, dev, which)
    assert torch.equal(saved, leave_one_out(items, dev, train)[which]) and saved.dtype == torch.float64
    assert trained == [[t for t in items if t is not items[i]] for i in which]


def test_the_formula_is_influence(round_of_texts):
    items, dev, train = round_of_texts
    classifier = train(items)
    assert torch.equal(by_influence(classifier, items, dev)[1], influence(classifier, items, dev))
    damped = by_influence(classifier, items, dev, curvature="diagonal", damping=2.0)[1]
    assert torch.equal(damped, influence(classifier, items, dev, "diagonal", 2.0)) and not torch.equal(damped, influence(classifier, items, dev))


# the run notebook


def test_every_benchmark_is_in_the_makefile():
    listed = re.findall(r"\b(run_benchmarks\w*):(\w+)", (ROOT / "Makefile").read_text())
    assert sorted(name for name, _ in listed) == sorted(p.stem for p in (ROOT / "nbs").glob("run_benchmarks*.ipynb")) and len({out for _, out in listed}) == len(listed)


def notebook(tmp_path, **given) -> dict:
    "What the run notebook saves, tiny, without network."
    small = dict(samples_per_iteration=24, max_new_tokens=14, one_by_one_texts=4, repeats=1, loop_rounds_each=1, loop_repeats=1, num_sets=2, num_dev=20, left_out=5, generation_batch_size=16, out_dir=str(tmp_path)) | given
    env = os.environ | dict(HF_HUB_OFFLINE="1", RLGEN_DEVICE="cpu", RLGEN_DTYPE="float32")
    done = subprocess.run([sys.executable, "-m", "papermill", "nbs/run_benchmarks_genalign.ipynb", str(tmp_path / "out.ipynb"), "-y", json.dumps(small)], cwd=ROOT, env=env, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "genalign.png").stat().st_size > 5000
    return json.loads((tmp_path / "genalign.json").read_text())


def test_the_run_notebook(tmp_path):
    found = notebook(tmp_path)
    assert [(r["case"], r["way"], r["texts"]) for r in found["rows"]] == [(case, way, n) for case in ("bare question", "behind 4 examples") for way, n in (("plain", 4), ("ours", 24))]
    assert all(r["times_as_fast"] == 1 for r in found["rows"][::2] + found["credit"][:1]) and all(0 <= r["right"] <= 1 and 5 < r["words"] < 15 for r in found["rows"])
    for r, (case, (done,)) in zip(found["rows"][1::2], found["rounds"].items(), strict=True): assert r["case"] == case and r["times_as_fast"] == pytest.approx(done["plain"]["seconds_each"] / done["ours"]["seconds_each"], rel=0.5)
    assert [r["credit"] for r in found["loop"]] == ["per_sample", "dataset", "scalar"] and all(sum(r[k] for k in STEPS) == pytest.approx(r["round"], rel=1e-3) for r in found["loop"])
    assert [bool(r["credits"]) for r in found["loop"]] == [True, False, False]
    assert [(r["way"], r["texts"]) for r in found["credit"]] == [("plain", 5), ("ours", 24)] and found["credit"][0]["correlation"] > 0.8


@pytest.mark.slow
def test_the_run_notebook_on_somebodys_texts(tmp_path):
    "No world says what is right, and no examples are wanted."
    rows = [dict(text=text, label=label) for text, label in world.golden("pool", 60)]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    found = notebook(tmp_path, dataset_path=str(tmp_path / "mine.jsonl"), num_icl=0, credits=["scalar"])
    assert [r["case"] for r in found["rows"]] == ["bare question"] * 2 and "right" not in found["rows"][0] and [r["credit"] for r in found["loop"]] == ["scalar"]
