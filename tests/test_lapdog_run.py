"""A LAPDOG run: what it can be told, the data it is given, its pieces of work and its stages, and that killing it changes nothing."""
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import environment, here_of, line_of, working_in
from tiny_models import make_model

from rlgen.core import read_jsonl, settings
from rlgen.lapdog import models as working
from rlgen.lapdog import run as running
from rlgen.lapdog.feedback import fine_tune
from rlgen.lapdog.models import find_stories, imitate, keeper, learn_jointly, library_of, load_retriever, look, teach, write_replies
from rlgen.lapdog.reader import build_reader
from rlgen.lapdog.retriever import build_encoder
from rlgen.lapdog.reward import FLOOR, constant_reply, reply_scores
from rlgen.lapdog.run import apart, beginning, check, rows_of, stages
from rlgen.lapdog.setup import CONSTANT, FEEDBACK, MAIN, METHODS, RL, ROWS, Params, checkpoint_parts, in_order, load_problem, recipe_of, reward_of, start, teaching_of, world_problem
from rlgen.lm import load_lm, save_lm, word_tokenizer
from rlgen.record import check_params, read_params
from rlgen.train import batch_rows
from rlgen.worlds import lapdog as world

ROOT = Path(__file__).resolve().parent.parent
EVERY = [m for m in METHODS if m != "constant-published"]  # all that the world has
SMALL = dict(corpora=2, num_train=60, num_val=8, num_test=10, sft_steps=6, sft_lr=1e-3, sft_warmup_steps=1, total_steps=4, retriever_delay=1, feedback_steps=4, warmup_steps=1, per_gpu_batch_size=4, eval_freq=2, save_freq=2, log_every=1,
             candidates=6, grpo_group_size=2, grpo_retriever_group_size=4, n_context=1)


here = here_of("lapdog")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    "Folders of a small reader that can speak and a small encoder with random weights, as parameters."
    folder = tmp_path_factory.mktemp("tiny")
    words = word_tokenizer([*world.vocabulary(), "dialog with R's persona: R: <extra_id_0> story title: story:"])
    reader, problem = build_reader(words, width=32, gated=True), world_problem(Params(corpora=2, num_train=400))
    told, dialogues = {s.id: s for s in problem.stories["train"]}, [replace(d, target=d.answers[0]) for d in problem.train(9)]
    fine_tune(reader, dialogues, [[told[d.gold[0]]] for d in dialogues], steps=60, lr=1e-2, warmup=0.1)
    save_lm(reader, folder / "reader")
    save_lm(build_encoder(words), folder / "encoder")
    return dict(reader_model_type=str(folder / "reader"), retriever_model=str(folder / "encoder"))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, tiny):
    "A small run of all rows, in a folder of its own."
    folder = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        run = working_in(folder, patch, "lapdog")(methods=[*EVERY, "custom"], use_grpo=True, grpo_train_retriever=True, **SMALL, **tiny)
        out = stages(run)
    settings.cache_clear()
    return SimpleNamespace(folder=folder, run=run, out=out)


def said(out, method, seed=0): return [r["reply"] for r in out.texts[method, seed]]


def stage_of(x, item): return next(s for s in x.run.stages if s.item == f"0/{item}")


def weights(folder) -> dict:
    from safetensors.torch import load_file
    return load_file(Path(folder) / "model.safetensors")


def same(a, b) -> bool:
    "Whether two saved models have equal weights."
    a, b = weights(a), weights(b)
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def quiet(step, **scalars): pass


def written(path: Path, rows) -> str:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return str(path)


def talk_rows(n=60, seed=100, **more): return [dict(question=t.question, answers=[t.answer]) | more for t in world.make_talks("train", n, seed)]


def tale_rows(corpus="train-0", **more): return [dict(id=t.id, title=t.title, text=t.text) | more for t in world.tales(corpus)]


@pytest.fixture
def mine(tmp_path, tiny):
    "Parameters of somebody's data: one file of dialogues, one of stories, one corpus."
    return dict(data=written(tmp_path / "mine.jsonl", talk_rows()), passages=written(tmp_path / "stories.jsonl", tale_rows())) | tiny


# ---------------------------------------------------------------- what a run can be told


@pytest.mark.parametrize("given, says", [
    (dict(metods=["stage1"]), "did you mean 'methods'?"), (dict(methods=["joint"]), "unknown value 'joint'"), (dict(methods=[]), "methods is empty"), (dict(seeds=[]), "give at least one"), (dict(seeds=[1, 1]), "each once"),
    (dict(seeds=[-1]), "at least 0"), (dict(num_train=0), "at least 1"), (dict(n_context=0), "at least 1"), (dict(candidates=1), "at least 2"), (dict(candidate_replace=1.5), "at most 1"), (dict(temperature=0), "at least"),
    (dict(retriever_query="personas"), "did you mean 'persona'?"), (dict(retriever_query="draft"), "no stage writes those"), (dict(retriever_side="queries"), "did you mean 'query'?"), (dict(index="ivff"), "did you mean 'ivf'?"),
    (dict(grpo_group_size=1), "grpo_group_size = 1"), (dict(grpo_retriever_group_size=1), "grpo_retriever_group_size = 1"), (dict(grpo_retriever_group_size=9), "at most 8"), (dict(grpo_advantage="std"), "grpo_advantage"),
    (dict(kl="k1"), "kl"), (dict(grpo_loss_type="bnp"), "did you mean 'bnpo'?"), (dict(document_estimator="ordered"), "document_estimator"), (dict(gold_score_mode="f1rouge"), "gold_score_mode"),
    (dict(metric_scale_factors=dict(bleu=-1)), "metric_scale_factors"), (dict(metric_scale_factors=dict(meteor=1)), "meteor"), (dict(target_length_ratio=0), "at least"),
    (dict(warmup_steps=30, total_steps=30), "ends after total_steps = 30"), (dict(warmup_steps=31, total_steps=30), "lower the first"), (dict(sft_warmup_steps=20, sft_steps=20), "ends after sft_steps = 20"), (dict(methods=["metric-kl"], feedback_steps=15, warmup_steps=15), "ends after feedback_steps = 15"),
    (dict(use_grpo=True), "add custom to methods"), (dict(grpo_train_retriever=True), "add custom to methods"), (dict(methods=["custom"]), "neither reader nor retriever"),
    (dict(methods=["custom"], use_grpo=True, reader_rl_learning=True), "set one of them"), (dict(data="world/mut"), "the worlds are"), (dict(data="mine.jsonl"), "passages is empty"), (dict(passages="s.jsonl"), "stories of its own"),
    (dict(train_data="a"), "only train_data given"), (dict(eval_data="a", test_data="b"), "only eval_data, test_data given"), (dict(train_data="a", eval_data="b"), "passages is empty"),
    (dict(train_data="a", eval_data="b", data="c", passages="s"), "give one of them"), (dict(methods=["constant-published"]), "take constant-reply"), (dict(model_path="nowhere/at/all"), "no such folder"), (dict(model_path="rlgen"), "holds no reader/"),
    (dict(query_template="{questions} R:"), "query_template"), (dict(query_template="R:"), "names none of {question}, {persona}, {context}"), (dict(story_template="{title} {"), "story_template"), (dict(out_dir="README.md/inside"), "can't write"),
])  # fmt: skip
def test_each_bad_value_gets_its_line(here, given, says):
    assert says in line_of(here, **given)


def test_good_values_are_taken(here):
    real = dict(passages="s.jsonl")
    for n, given in enumerate(({}, dict(data="world/mute"), dict(data="d.jsonl", **real), dict(train_data="a", eval_data="b", **real), dict(train_data="a", eval_data="b", test_data="c", **real), dict(methods=["custom"], use_grpo=True),
                  dict(methods=["custom"], grpo_train_retriever=True), dict(methods=["stage1"], warmup_steps=10**6, grpo_group_size=1), dict(methods=["constant-reply"], sft_warmup_steps=99), dict(methods=["custom"], reader_rl_learning=True, grpo_group_size=1),
                  dict(methods=["retriever-grpo"], grpo_group_size=1), dict(methods=["generator-grpo"], grpo_retriever_group_size=1), dict(document_estimator="iid", grpo_retriever_group_size=20), dict(n_context=3, grpo_retriever_group_size=20))):
        assert here(**given, params_name=f"p{n}").params == check_params(Params, given | dict(params_name=f"p{n}"))


def test_rows_differ_in_what_is_trained_and_how():
    "Everything else of a step is the same in all rows of stage 2."
    p = Params(methods=["custom"], use_grpo=True, grpo_train_retriever=True, grpo_advantage="leave_one_out", document_estimator="unordered")
    recipes = {m: recipe_of(p, m) for m in RL}
    assert recipes["custom"] == recipes["joint-grpo"] and recipes["joint-grpo"].advantage == "leave_one_out" and recipes["joint-grpo"].estimator == "unordered"
    what = {m: (r.train_reader, r.train_retriever, r.advantage, r.estimator) for m, r in recipes.items()}
    assert what["generator-grpo"][:2] == (True, False) and what["retriever-grpo"][:2] == (False, True) and what["reinforce"] == (True, True, "reinforce", "reinforce") and what["joint-grpo-std"] == (True, True, "group_std", "group_std")
    base = recipes["joint-grpo"]
    for r in recipes.values(): assert replace(r, train_reader=True, train_retriever=True, advantage=base.advantage, estimator=base.estimator) == base
    old = recipe_of(replace(p, use_grpo=False, reader_rl_learning=True, grpo_train_retriever=False), "custom")
    assert (old.advantage, old.train_reader, old.train_retriever) == ("reinforce", True, False)
    p = replace(p, metric_temperature=0.7, perplexity_temperature=0.2)
    assert teaching_of(p, "metric-kl")["gold_temperature"] == 0.7 and teaching_of(p, "perplexity-distillation")["gold_temperature"] == 0.2
    assert teaching_of(p, "metric-kl")["reward"].total == "sum" != reward_of(p).total


def test_parts_are_all_of_it_and_nothing_twice():
    "All but the rows that can't stand alone; what acts on the row custom goes with it."
    alone = ("constant-reply", "constant-published", "oracle-docs")
    for methods in (list(METHODS), list(MAIN), ["stage1"], ["joint-grpo", "custom"], ["joint-grpo", "constant-published"]):
        parts = apart(Params(seeds=[3, 5], methods=methods))
        assert Counter((s, m) for p in parts for s in p["seeds"] for m in p["methods"]) == Counter((s, m) for s in (3, 5) for m in methods if m not in alone)
        assert all(p["methods"] and len(p["seeds"]) == 1 for p in parts)
        for p in parts: assert p["methods"] == [m for m in methods if m in p["methods"]], "in the table's order"
    assert apart(Params(methods=["oracle-docs"])) == []


def test_every_part_can_be_started(here):
    "Of a shipped preset whose switches act on one row alone."
    given = {k: v for k, v in read_params([ROOT / "params" / "lapdog" / "grpo_public.yaml"], {}).items() if k in ("methods", "use_grpo", "grpo_train_retriever", "reader_rl_learning", "document_estimator", "grpo_advantage")}
    whole = check_params(Params, given)
    assert whole.use_grpo and len(parts := apart(whole)) > 1
    for n, part in enumerate(parts):
        p = here(**given | part | dict(params_name=f"part-{n}")).params
        assert "custom" not in p.methods or recipe_of(p, "custom") == recipe_of(whole, "custom")


def test_halves_take_as_long():
    a, b = (sum(running._LONG.get(m, 0.1) for m in part["methods"]) for part in apart(Params(methods=list(METHODS))))
    assert max(a, b) < 1.2 * min(a, b)


def test_rows_taken_in_order():
    rows, steps, batch = list(range(7)), 5, 4
    laid = in_order(rows, steps, batch, seed=3)
    met = [laid[i] for step in range(steps) for i in batch_rows(len(laid), batch, step, 3)]
    assert met == [i % 7 for i in range(20)] and laid != met


@pytest.mark.parametrize("name", ["default", "smoke", "mute", "grpo_public", "paper"])
def test_presets_begin(here, name):
    p = check_params(Params, read_params([ROOT / "params" / "lapdog" / f"{name}.yaml"], {}))
    assert start(p).params == p and p.params_name == name
    if name == "smoke": assert p.methods == EVERY
    if name == "default": assert p.methods == list(MAIN) and set(MAIN) < set(METHODS)


def test_published_presets_ask_for_what_was_published():
    "Both recipes as methods tell them."
    def preset(name): return check_params(Params, read_params([ROOT / "params" / "lapdog" / f"{name}.yaml"], {}))
    p = preset("grpo_public")
    assert (p.reader_model_type, p.sft_lr, p.sft_batch, p.sft_steps) == ("google-t5/t5-base", 5e-5, 64, 12000)
    assert (p.per_gpu_batch_size, p.accumulation_steps, p.total_steps, p.grpo_group_size, p.grpo_retriever_group_size, p.grpo_kl_coeff, p.lr, p.warmup_steps, p.generation_length_penalty) == (2, 2, 12000, 4, 4, 0.01, 1e-5, 500, 1.0)
    assert (p.use_grpo, p.grpo_train_retriever, p.grpo_advantage, p.grpo_clip_epsilon, p.gold_score_mode, p.target_length_ratio, p.reward_total) == (True, True, "group_std", 0.2, "f1rougebleudist", 1.0, "sum")
    assert recipe_of(p, "custom") == recipe_of(p, "joint-grpo-std")
    q = preset("paper")
    assert (q.sft_lr, q.sft_batch, q.sft_steps, q.closed_book, q.candidates, q.candidate_replace, q.metric_temperature, q.retriever_temperature, q.retriever_query, q.refresh_index) == (5e-4, 64, 12000, True, 6, 0.5, 0.85, 0.8, "persona", 1200)
    assert q.feedback_train_reader and q.batch == 64 and set(CONSTANT) < set(q.methods) and set(CONSTANT) < set(p.methods), "floors belong in every table"
    for preset in (p, q): assert "story.jsonl" in line_of(load_problem, replace(preset, passages="nowhere/story.jsonl"))


def test_the_notebooks_table_says_what_the_parameters_say():
    "Its numbers are the defaults, the published preset's and the paper's."
    cells = {c["id"]: "".join(c["source"]) for c in json.loads((ROOT / "nbs" / "46_lapdog_setup.ipynb").read_text())["cells"]}
    presets = [Params(), *(check_params(Params, read_params([ROOT / "params" / "lapdog" / f"{n}.yaml"], {})) for n in ("grpo_public", "paper"))]
    def number(text): return float(text.replace(",", "")) if text[:1].isdigit() else None
    seen, rows = 0, [line.strip("| ").split(" | ") for line in cells["params-how"].splitlines() if line.startswith("| `")]
    for names, *columns in rows:
        for p, cell in zip(presets, columns):
            for name, value in zip(names.split(", "), cell.split(", ")):
                if number(value) is None: continue
                assert getattr(p, name.strip("`")) == number(value), (name, p.params_name)
                seen += 1
    assert len(rows) >= 9 and seen > 30


# ---------------------------------------------------------------- data


def test_the_worlds_parts():
    p = Params(num_train=30, num_val=20, num_test=10, corpora=3)
    q, mute = world_problem(p), world_problem(replace(p, data="world/mute"))
    assert (q.name, mute.name, len(q.train(0)), len(q.val), len(q.test)) == ("world", "world-mute", 30, 20, 10)
    assert q.train(0) != q.train(1) and q.train(0) == q.train(0) and q.test == world_problem(replace(p, num_train=5)).test
    shelves = {k: {s.corpus for s in stories} for k, stories in q.stories.items()}
    assert all(len(v) == 3 for v in shelves.values()) and not (shelves["train"] & shelves["val"] | shelves["train"] & shelves["test"] | shelves["val"] & shelves["test"])
    for side, dialogues in dict(train=q.train(1), val=q.val, test=q.test).items():
        texts = {s.id: s.text for s in q.stories[side]}
        for d in dialogues:
            assert q.facts(d, d.answers[0]) == q.persona(d, d.answers[0]) == 1.0 and q.facts(d, "well .") == 0.0
            assert all(w in texts[d.gold[0]].split() for w in world.read_reply(d.answers[0])[1:])
    assert sum(d.target != d.answers[0] for d in q.train(0)) > 15, "the logs evade"
    known = {s.id: s.text.split() for s in mute.stories["test"]}
    assert any(w not in known[d.gold[0]] for d in mute.test for w in world.read_reply(d.answers[0])[1:])


def test_one_file_is_parted_by_persona(mine):
    q = load_problem(Params(**mine))
    parts = dict(train=q.train(0), val=q.val, test=q.test)
    people = {k: {" ".join(sorted(d.persona.split(" . "))) for d in v} for k, v in parts.items()}
    assert sum(map(len, parts.values())) == 60 and not people["train"] & people["test"] and all(o["personas"] == 0 for o in q.report["overlap"].values())
    assert q.name == "mine" and q.facts is None and not q.has_gold and q.stories["train"] is q.stories["test"] and q.train(0) is q.train(5)
    assert load_problem(Params(**mine)).test == q.test, "the same for every run"
    few = load_problem(Params(**mine, num_train=9, num_test=2))
    assert (len(few.train(0)), len(few.test)) == (9, 2) and set(few.test) <= set(q.test)


def test_ready_parts(mine, tmp_path):
    files = {k: written(tmp_path / f"{k}.jsonl", talk_rows(n, s)) for k, n, s in (("train", 30, 1), ("eval", 20, 2), ("test", 8, 3))}
    two = dict(train_data=files["train"], eval_data=files["eval"], passages=mine["passages"])
    q = load_problem(Params(**two))
    assert q.name == "train" and len(q.train(0)) == 30 and len(q.val) + len(q.test) == 20 and q.report["overlap"]["val/test"]["personas"] == 0
    assert {d.question for d in [*q.val, *q.test]} == {r["question"] for r in talk_rows(20, 2)}
    three = load_problem(Params(**two, test_data=files["test"]))
    assert (len(three.val), len(three.test)) == (20, 8) and {"train_data", "eval_data", "test_data"} <= set(three.report)


@pytest.mark.parametrize("what, rows, says", [
    ("passages", [dict(id="a", title="t", text=" ")], "stories.jsonl:1: field 'text' is empty"), ("passages", [*tale_rows(), tale_rows()[0]], "the id 'train-0-painting-wedding' stands at"),
    ("data", [*talk_rows(3), dict(question="persona: x . context: Q: y ?", answers=[])], "mine.jsonl:4: the list 'answers' is empty"), ("data", [dict(question="Q: y ?", answers=["a", ""])], "answers[1] is an empty text"),
    ("data", [*talk_rows(30), *talk_rows(30, 5, corpus="attic")], "no story in its corpus 'attic'"), ("data", [dict(question=r["question"], answers=r["answers"], gold=["nobody"]) for r in talk_rows()], "the gold story 'nobody' is not there"),
    ("data", talk_rows(1), "1 persons for 3 parts"), ("data", [r | dict(id="x") for r in talk_rows(2)], "the id 'x' stands at"),
])  # fmt: skip
def test_wrong_files_have_their_line(here, mine, tmp_path, monkeypatch, what, rows, says):
    "And nothing was loaded before."
    for name in ("load_lm", "load_retriever"): monkeypatch.setattr(running, name, lambda *a, **k: pytest.fail("a model was loaded"))
    bad = mine | {what: written(tmp_path / f"{'stories' if what == 'passages' else 'mine'}.jsonl", rows)}
    assert says in line_of(stages, here(**bad))


def test_what_models_and_data_say_before_anything_is_trained(here, mine, tiny, tmp_path, folders, monkeypatch):
    monkeypatch.setattr(running, "do_stage", lambda *a, **k: pytest.fail("a stage was begun"))
    n = iter(range(99))
    def told(**given): return line_of(stages, here(**(tiny | dict(params_name=f"t{next(n)}", corpora=2, num_train=20, candidates=6, grpo_retriever_group_size=4) | given)))
    gpt, t5 = folders("gpt2"), folders("t5")
    assert "has no encoder" in told(reader_model_type=str(gpt)) and "no such model folder" in told(reader_model_type="zoo/nobody") and "no such model folder" in told(retriever_model="zoo/nobody")
    assert "give templates with another prefix" in told(reader_model_type=str(t5), reply_prefix="zzqqj😀")
    assert "persona and last turn take" in told(text_maxlength=12)
    few = written(tmp_path / "few.jsonl", tale_rows()[:3])
    real = mine | dict(passages=few)
    assert "grpo_retriever_group_size = 4: the smallest corpus has 3 stories" in told(**real) and "candidates = 6: the smallest corpus" in told(**real, methods=["metric-kl"]) and "n_context = 4" in told(**real, methods=["stage1"], n_context=4)
    assert "no row is left" in told(**mine, methods=["oracle-docs"])
    rows = rows_of(Params(**mine, methods=list(METHODS)), load_problem(Params(**mine)))
    assert rows == [m for m in METHODS if m != "oracle-docs"]


# ---------------------------------------------------------------- pieces of work


@pytest.fixture(scope="module")
def bench(tiny):
    "Parameters, problem, models and the validation library."
    p = check_params(Params, SMALL | tiny)
    problem = world_problem(p)
    return SimpleNamespace(p=p, problem=problem, reader=load_lm(p.reader_model_type), retriever=load_retriever(p, p.retriever_model), library=library_of(p, problem.stories["val"]))


def test_stories_are_found_in_five_ways(bench):
    b, val = bench, bench.problem.val
    found = {how: find_stories(b.p, how, b.library, val, b.retriever, seed=3) for how in ("retriever", "bm25", "random", "gold", "none")}
    for how, rows in found.items():
        assert [len(r) for r in rows] == [dict(gold=1, none=0).get(how, 5)] * len(val)
        for d, row in zip(val, rows): assert all(b.library.stories[i].corpus == d.corpus for i in row)
    assert [[b.library.stories[i].id for i in row] for row in found["gold"]] == [list(d.gold) for d in val]
    assert found["random"] == find_stories(b.p, "random", b.library, val, seed=3) != find_stories(b.p, "random", b.library, val, seed=4)
    encoder = b.retriever.encoder
    asked, vectors = encoder.embed([d.question for d in val]), encoder.embed(b.library.texts)
    for d, q, row in zip(val, asked, found["retriever"]):
        shelf = b.library.corpus(d).tolist()
        assert row[0] == max(shelf, key=lambda i: float(q @ vectors[i]))
    assert len(find_stories(replace(b.p, n_context=7), "bm25", b.library, val)[0]) == 7


def test_embedding_takes_as_many_as_it_is_told(bench, monkeypatch):
    "Also where a training reads the stories, which knows nothing of the parameter."
    seen = []
    library, embed = library_of(replace(bench.p, per_gpu_embedder_batch_size=13), bench.problem.stories["val"]), type(bench.retriever.encoder).embed
    monkeypatch.setattr(type(bench.retriever.encoder), "embed", lambda self, texts, batch_size=64, label="": seen.append(batch_size) or embed(self, texts, batch_size, label))
    library.refresh(bench.retriever)
    assert seen == [13]


def test_the_query_side_alone(bench, tmp_path, tiny):
    p = replace(bench.p, retriever_side="query")
    r = load_retriever(p, p.retriever_model)
    assert r.passages is not r.encoder and not any(q.requires_grad for q in r.passages.model.parameters())
    save_lm(build_encoder(r.encoder.tokenizer, width=16), tmp_path / "narrow")
    assert "16 wide" in line_of(load_retriever, p, str(tmp_path / "narrow"), p.retriever_model)
    folder = tmp_path / "stage"
    folder.mkdir()
    learn_jointly(folder, quiet, p, bench.problem, "retriever-grpo", 0, p.reader_model_type, p.retriever_model)
    trained = load_retriever(p, str(folder / "model" / "retriever"), p.retriever_model)
    assert not same(folder / "model" / "retriever", p.retriever_model) and torch.equal(trained.passages.model.embeddings.word_embeddings.weight, r.passages.model.embeddings.word_embeddings.weight)


def test_a_keeper_keeps_the_best(bench, tmp_path):
    def run(name, scores, steps=8, choose=True, **given):
        p, folder = replace(bench.p, **given), tmp_path / name
        evaluate, every = keeper(folder, p, steps, dict(reader=bench.reader), iter([dict(validation_f1=f) for f in scores]).__next__, choose)
        looked = [s for s in range(1, steps + 1) if (s == steps or every and s % every == 0) and evaluate(s)]
        return json.loads((folder / "model" / "best.json").read_text())["step"], looked, {f.name for f in (folder / "model").iterdir()} - {"reader", "best.json"}
    assert run("a", [0.1, 0.5, 0.5, 0.2], eval_freq=2, save_freq=0) == (4, [2, 4, 6, 8], set()), "the first of equals"
    assert run("b", [0.1, 0.5, 0.2], eval_freq=3, save_freq=4) == (6, [3, 6, 8], {"step-4", "step-8"})
    assert run("c", [0.1, 0.5, 0.2], choose=False, eval_freq=3, save_freq=0)[0] == 8, "the last"
    assert run("d", [0.3], eval_freq=0, save_freq=3) == (8, [8], {"step-3", "step-6"}) and run("e", [0.0], eval_freq=0, save_freq=0) == (8, [8], set())


def test_a_look_counts_what_it_says(bench):
    b = bench
    found = find_stories(b.p, "retriever", b.library, b.problem.val, b.retriever)
    replies = write_replies(b.p, b.reader, b.library, b.problem.val, found)
    seen = look(b.p, b.problem, b.library, b.reader, b.retriever)
    assert seen["validation_f1"] == pytest.approx(sum(reply_scores(r, d.answers)["f1"] for r, d in zip(replies, b.problem.val)) / len(replies))
    assert seen["validation_recall_at_1"] == sum(b.library.stories[f[0]].id in d.gold for f, d in zip(found, b.problem.val)) / len(found)
    few, answered = replace(b.p, eval_size=3), []
    with pytest.MonkeyPatch.context() as m:
        m.setattr(working, "write_replies", lambda p, reader, library, dialogues, *a: answered.append(len(dialogues)) or [""] * len(dialogues))
        look(few, b.problem, b.library, b.reader, b.retriever)
    assert answered == [3]


def test_published_stage_two_trains_both(bench, tmp_path):
    "feedback_train_reader: the reader changes beside the retriever, and the best of both is kept."
    for name, on in (("both", True), ("one", False)):
        (tmp_path / name).mkdir()
        teach(tmp_path / name, quiet, replace(bench.p, feedback_train_reader=on, feedback_reader_lr=1e-2), bench.problem, "metric-kl" if on else "perplexity-distillation", 0, bench.p.reader_model_type, bench.p.retriever_model)
        assert same(tmp_path / name / "model" / "reader", bench.p.reader_model_type) != on and (on or not same(tmp_path / name / "model" / "retriever", bench.p.retriever_model))


@pytest.mark.parametrize("given", [dict(n_context=2, index="hnsw", shuffle=False), dict(document_estimator="iid", grpo_loss_type="dr_grpo", kl="ratio_k3", grpo_epochs=2, refresh_index=1), dict(accumulation_steps=2, per_gpu_batch_size=3, grpo_kl_coeff=0.0, grpo_advantage="mean", generation_length_penalty=1.0)], ids=["lists", "iid", "parts"])  # fmt: skip
def test_joint_learning_in_other_ways(bench, tmp_path, given):
    lines = []
    counts = learn_jointly(tmp_path, lambda step, **told: lines.append(told), replace(bench.p, **given), bench.problem, "joint-grpo", 0, bench.p.reader_model_type, bench.p.retriever_model)
    p = replace(bench.p, **given)
    assert (counts["steps"], counts["dialogues"], counts["replies"]) == (4, 4 * p.batch, 4 * p.batch * 8) and all(math.isfinite(v) for told in lines for v in told.values())
    if p.refresh_index: assert [told["refreshes"] for told in lines] == [0, 1, 2, 3], "the retriever begins to learn in the second step"


def test_imitation_without_shuffling(bench, tmp_path, monkeypatch):
    "The reader meets the dialogues in their order."
    met, tune = [], working.fine_tune
    monkeypatch.setattr(working, "fine_tune", lambda reader, dialogues, stories, **o: met.append([dialogues[i].id for s in range(o["steps"]) for i in batch_rows(len(dialogues), o["batch_size"], s, o["seed"])]) or tune(reader, dialogues, stories, **o))
    p = replace(bench.p, shuffle=False, sft_steps=2, sft_warmup_steps=1, sft_batch=7)
    imitate(tmp_path, quiet, p, bench.problem, 0, True, p.retriever_model)
    assert met[0] == [d.id for d in bench.problem.train(0)][:14]


# ---------------------------------------------------------------- a run of all rows


def test_all_rows_are_there(undisturbed):
    out, test = undisturbed.out, undisturbed.out.problem.test
    assert list(out.texts) == [(m, 0) for m in (*EVERY, "custom")] == list(out.cost) == list(out.totals) == list(out.shares) and out.headline == "f1"
    for (method, _), rows in out.texts.items():
        how = ROWS[method][2] if method in ROWS else "none"
        for r, d in zip(rows, test, strict=True):
            assert (r["item"], r["question"], r["corpus"], r["answers"]) == (d.id, d.question, d.corpus, list(d.answers)) and len(r["retrieved"]) == dict(none=0, gold=1).get(how, 5)
            assert {k: r[k] for k in ("f1", "bleu", "rouge1", "rouge2", "rougeL")} == reply_scores(r["reply"], d.answers)
            assert r["facts"] == out.problem.facts(d, r["reply"]) and r["persona"] == out.problem.persona(d, r["reply"])
            assert ("recall_at_1" in r) == (how != "none") and (how == "none" or r["recall_at_1"] == float(r["retrieved"][0] in d.gold))
        assert {"corpus_bleu", "distinct_1", "distinct_2", "length_ratio"} <= set(out.totals[method, 0]) and ("distinct_at_1" in out.totals[method, 0]) == (how != "none")
    assert all(r["recall_at_1"] == 1.0 for r in out.texts["oracle-docs", 0])
    assert len({json.dumps(said(out, m)) for m in EVERY}) >= len(EVERY) - 3, "rows differ"
    assert set(said(out, "constant-reply")) == {constant_reply(out.problem.train(0))}


def test_rows_read_with_what_the_table_says(undisturbed):
    "Each row's replies again, from the models in the run's folder."
    x, p = undisturbed, undisturbed.run.params
    library, test = library_of(p, x.out.problem.stories["test"]), x.out.problem.test
    for method, (_, _, how) in ROWS.items():
        place = x.out.models.get((method, 0), x.out.models["stage1", 0])
        reader = load_lm(p.reader_model_type if method == "base" else str(place / "reader"))
        own = place / "retriever"
        found = find_stories(p, how, library, test, load_retriever(p, str(own) if own.is_dir() else p.retriever_model), 0)
        assert write_replies(p, reader, library, test, found) == said(x.out, method), method
        assert [r["retrieved"] for r in x.out.texts[method, 0]] == [[library.stories[i].id for i in row] for row in found], method


def test_what_each_row_has_trained(undisturbed):
    x, p = undisturbed, undisturbed.run.params
    stage1 = x.out.models["stage1", 0] / "reader"
    assert set(x.out.models) == {(m, 0) for m in ("closed-book", "stage1", *FEEDBACK, *RL)} and not same(stage1, p.reader_model_type) and not same(stage1, x.out.models["closed-book", 0] / "reader")
    for method in (*FEEDBACK, *RL):
        place, (trained, retrieves, _) = x.out.models[method, 0], ROWS[method]
        assert same(place / "reader", stage1) == (trained == "stage1"), method
        assert (place / "retriever").is_dir() == (retrieves != "none") and (retrieves == "none" or not same(place / "retriever", p.retriever_model)), method
    assert Counter(s.name for s in x.run.stages) == dict(sft=2, feedback=2, joint=6, texts=len(EVERY) + 1), "a model that several rows need is trained once"
    assert same(x.out.models["custom", 0] / "reader", x.out.models["joint-grpo", 0] / "reader") and said(x.out, "custom") == said(x.out, "joint-grpo")


def test_the_reference_is_the_stage_1_reader(undisturbed):
    "At the first step nothing has moved: the KL is 0."
    for method in ("joint-grpo", "generator-grpo", "reinforce", "joint-grpo-std"):
        lines = stage_of(undisturbed, f"joint/{method}").curves()
        assert abs(lines[0]["reader_kl"]) < 1e-6 < lines[-1]["reader_kl"], method


def test_best_and_steps_on_the_way(undisturbed):
    x, p = undisturbed, undisturbed.run.params
    for method in RL:
        place, looks = x.out.models[method, 0], [r for r in stage_of(x, f"joint/{method}").curves() if "validation_f1" in r]
        best = json.loads((place / "best.json").read_text())
        assert [r["step"] for r in looks] == [2, 4] and {f.name for f in place.glob("step-*")} == {"step-2", "step-4"}
        chosen = max(looks, key=lambda r: (r["validation_f1"], -r["step"]))["step"] if recipe_of(p, method).train_reader else 4
        assert best["step"] == chosen and best["steps"] == 4 and best["validation_f1"] == pytest.approx(next(r for r in looks if r["step"] == chosen)["validation_f1"], abs=1e-6)
        reader, retriever = checkpoint_parts(str(place / f"step-{chosen}"))
        assert same(reader, place / "reader") and bool(retriever) == recipe_of(p, method).train_retriever and (not retriever or same(retriever, place / "retriever"))
        assert load_lm(reader).kind == "seq2seq"


def test_costs_are_counted(undisturbed):
    cost = {m: c for (m, _), c in undisturbed.out.cost.items()}
    steps = {m: c["train_steps"] for m, c in cost.items()}
    assert steps["base"] == steps["constant-reply"] == 0 and steps["closed-book"] == steps["stage1"] == steps["bm25"] == steps["oracle-docs"] == 6 and steps["metric-kl"] == steps["joint-grpo"] == steps["retriever-grpo"] == 10
    assert cost["joint-grpo"]["replies"] == 4 * 4 * 4 * 2 and cost["joint-grpo"]["dialogues"] == 6 * 32 + 4 * 4 and cost["metric-kl"]["judged"] == 4 * 4 * 6 and cost["stage1"]["lm_tokens"] > cost["closed-book"]["lm_tokens"] > 0
    assert undisturbed.out.report["sft stage1"] == dict(rows=60, cut_turns=0, cut_story_tokens=0)


def test_shares_of_the_rewards_variance(undisturbed):
    for (method, _), shares in undisturbed.out.shares.items():
        assert set(shares) == {"f1", "rougeL", "bleu"} and (sum(shares.values()) == pytest.approx(1) or not any(shares.values())), method


def test_other_rows_change_nothing(undisturbed, tmp_path, monkeypatch):
    "joint-grpo alone, in an empty cache and with the seeds in another order, writes the same; what isn't asked for isn't done."
    begin = working_in(tmp_path, monkeypatch, "lapdog")
    own = {k: getattr(undisturbed.run.params, k) for k in (*SMALL, "reader_model_type", "retriever_model")}
    run = begin(methods=["joint-grpo"], seeds=[1, 0], **own)
    out = stages(run)
    settings.cache_clear()
    assert said(out, "joint-grpo") == said(undisturbed.out, "joint-grpo") and said(out, "joint-grpo", 1) != said(out, "joint-grpo")
    assert [s.item for s in run.stages] == [f"{seed}/{name}" for seed in (1, 0) for name in ("sft/stage1", "joint/joint-grpo", "texts/joint-grpo")]


def test_parameters_that_a_stage_does_not_read(undisturbed, tmp_path, monkeypatch):
    "A change that doesn't concern a stage finds it; one that does, doesn't."
    shutil.copytree(undisturbed.folder / "cache", tmp_path / "cache")
    begin, n = working_in(tmp_path, monkeypatch, "lapdog"), iter(range(9))
    own = {k: getattr(undisturbed.run.params, k) for k in (*SMALL, "reader_model_type", "retriever_model")}
    keys = {s.item: s.key for s in undisturbed.run.stages}
    def found(methods, **given):
        run = begin(methods=methods, params_name=f"n{next(n)}", **own | given)
        stages(run)
        return {s.item.removeprefix("0/"): s.key == keys[s.item] for s in run.stages}
    assert all(found(["stage1", "metric-kl"], total_steps=5, lr=0.1, retriever_lr=0.1, entropy_coef=0.5, grpo_group_size=3, num_samples=1).values())
    assert found(["stage1", "generator-grpo"], total_steps=3, retriever_delay=1) == {"sft/stage1": True, "texts/stage1": True, "joint/generator-grpo": False, "texts/generator-grpo": False}
    assert found(["stage1", "metric-kl"], metric_temperature=0.5) == {"sft/stage1": True, "texts/stage1": True, "feedback/metric-kl": False, "texts/metric-kl": False}
    assert found(["bm25"], num_test=9) == {"sft/stage1": True, "texts/bm25": False}
    settings.cache_clear()


# ---------------------------------------------------------------- stage 2 from a folder


def test_stage_2_from_somebodys_stage_1(undisturbed, tmp_path, monkeypatch):
    "No imitation is done; the reader of the folder is where it starts and its KL reference; without a retriever in it the parameters' is taken."
    begin = working_in(tmp_path, monkeypatch, "lapdog")
    own = {k: getattr(undisturbed.run.params, k) for k in (*SMALL, "reader_model_type", "retriever_model")}
    given = str(undisturbed.out.models["stage1", 0])
    assert beginning(Params(model_path=given)) == (str(Path(given).resolve() / "reader"), "zoo/tales-encoder")
    run = begin(methods=["stage1", "joint-grpo"], model_path=given, **own)
    out = stages(run)
    assert [s.item for s in run.stages] == ["0/texts/stage1", "0/joint/joint-grpo", "0/texts/joint-grpo"]
    assert said(out, "stage1") == said(undisturbed.out, "stage1") and said(out, "joint-grpo") == said(undisturbed.out, "joint-grpo") and abs(run.stages[1].curves()[0]["reader_kl"]) < 1e-6
    trained = str(undisturbed.out.models["metric-kl", 0])
    other = begin(methods=["stage1", "generator-grpo"], model_path=trained, params_name="with-a-retriever", **own)
    found = stages(other)
    assert [r["retrieved"] for r in found.texts["stage1", 0]] == [r["retrieved"] for r in undisturbed.out.texts["metric-kl", 0]] == [r["retrieved"] for r in found.texts["generator-grpo", 0]]
    settings.cache_clear()


def test_stage_1_without_stories(undisturbed, tmp_path, monkeypatch):
    "closed_book: the rows of stage 2 begin with the closed-book reader."
    shutil.copytree(undisturbed.folder / "cache", tmp_path / "cache")
    begin = working_in(tmp_path, monkeypatch, "lapdog")
    own = {k: getattr(undisturbed.run.params, k) for k in (*SMALL, "reader_model_type", "retriever_model")}
    run = begin(methods=["closed-book", "stage1", "random-docs"], closed_book=True, **own)
    out = stages(run)
    settings.cache_clear()
    assert [s.item for s in run.stages if s.name == "sft"] == ["0/sft/closed-book"] and said(out, "closed-book") == said(undisturbed.out, "closed-book")
    assert same(out.models["stage1", 0] / "reader", undisturbed.out.models["closed-book", 0] / "reader")


# ---------------------------------------------------------------- killed and run again


class Killed(Exception): pass


def dying(lines: list, at: int):
    "A log that dies when a step has been logged, once."
    def log(step, **told):
        lines.append(dict(step=step) | told)
        if step == at and not any(r.get("died") for r in lines):
            lines.append(dict(step=step, died=True))
            raise Killed
    return log


@pytest.mark.parametrize("kind", ["joint", "feedback", "imitation"])
def test_trainings_go_on_where_they_were(bench, tmp_path, monkeypatch, kind):
    "Killed after step 3 of 6, which a checkpoint of step 2 precedes; what was there stays, and the end is the same to the bit."
    p = replace(bench.p, total_steps=6, feedback_steps=6, sft_steps=6, sft_warmup_steps=1, eval_freq=1, save_freq=2)
    for name in ("joint_grpo", "train_retriever", "fine_tune"): monkeypatch.setattr(working, name, partial(getattr(working, name), save_seconds=0.0))
    reader, encoder = p.reader_model_type, p.retriever_model
    work = dict(joint=lambda f, log: learn_jointly(f, log, p, bench.problem, "joint-grpo", 0, reader, encoder), feedback=lambda f, log: teach(f, log, p, bench.problem, "metric-kl", 0, reader, encoder),
                imitation=lambda f, log: imitate(f, log, p, bench.problem, 0, False, encoder))[kind]
    calm, killed, lines, again = tmp_path / "calm", tmp_path / "killed", [], []
    for f in (calm, killed): f.mkdir()
    counts = work(calm, lambda step, **told: lines.append(dict(step=step) | told))
    with pytest.raises(Killed): work(killed, dying([], 3))
    assert (killed / "checkpoint.pt").is_file() and (kind == "imitation" or checkpoint_parts(str(killed / "model" / "step-2"))[0])
    early = {f: f.stat().st_mtime_ns for f in killed.glob("model/step-2/*/model.safetensors")}
    assert work(killed, lambda step, **told: again.append(dict(step=step) | told)) == counts
    assert [r["step"] for r in again] == [3, 4, 5, 6] and len(lines) == 6
    assert lines[2:] == again
    files = lambda f: {str(x.relative_to(f)) for x in f.rglob("*") if x.is_file()}
    assert files(calm) == files(killed) and all(same(x, killed / x.relative_to(calm)) for x in calm.glob("model/**/") if (x / "model.safetensors").is_file())
    assert all(f.stat().st_mtime_ns == t for f, t in early.items()), "a step's folder is never written twice"
    if kind != "imitation": assert json.loads((calm / "model" / "best.json").read_text()) == json.loads((killed / "model" / "best.json").read_text())


def rlgen_stages(folder: Path, params: dict) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-m", "rlgen", "stages", "lapdog", "-y", json.dumps(params)], cwd=ROOT, env=os.environ | environment(folder) | {"TQDM_DISABLE": "1"}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def test_killed_in_joint_learning_and_run_again(undisturbed, tmp_path):
    "The command is killed when the first step's folder appears; the same command ends with the same replies."
    params = {k: getattr(undisturbed.run.params, k) for k in (*SMALL, "reader_model_type", "retriever_model")} | dict(methods=["stage1", "joint-grpo"])
    victim, deadline, cache = rlgen_stages(tmp_path, params), time.monotonic() + 120, tmp_path / "cache" / "lapdog"
    while not list(cache.glob("joint-*.partial/model/step-2")) and victim.poll() is None and time.monotonic() < deadline: time.sleep(0.005)
    victim.send_signal(signal.SIGKILL)
    victim.communicate()
    (left,) = cache.glob("joint-*.partial")
    assert checkpoint_parts(str(left / "model" / "step-2")) and load_lm(str(left / "model" / "step-2" / "reader"))
    again = rlgen_stages(tmp_path, params)
    told = again.communicate()[1]
    assert again.returncode == 0, told[-2000:]
    texts = read_jsonl(cache / f"texts-{stage_of(undisturbed, 'texts/joint-grpo').key}" / "texts.jsonl")
    assert [r["reply"] for r in texts] == said(undisturbed.out, "joint-grpo") and not list(cache.glob("*.partial"))


# ---------------------------------------------------------------- the command line, and real data


def test_results_has_all_rows_and_preprocess_says_no(here, monkeypatch, capsys, tmp_path):
    from rlgen import cli
    asked = []
    def pretend(algo, given):
        asked.append(check_params(Params, given))
        (tmp_path / "results" / "lapdog" / "default").mkdir(parents=True, exist_ok=True)
        (tmp_path / "results" / "lapdog" / "default" / "metrics.json").write_text(json.dumps(dict(table=[])))
        return tmp_path
    monkeypatch.setattr(cli, "run_algo", pretend)
    monkeypatch.setattr(cli, "_readme_block", lambda *a: None)
    monkeypatch.setattr(cli, "make_summary", lambda: None)
    cli.make_results("lapdog", {})
    cli.make_results("lapdog", dict(methods=["stage1"]))
    assert asked[0].methods == list(METHODS) and asked[0].seeds == [0, 1, 2] and asked[1].methods == ["stage1"] and Params().methods == list(MAIN)
    assert cli.main(["preprocess", "lapdog", "somewhere"]) == 2
    assert capsys.readouterr().err.strip() == "rlgen: lapdog: has no preprocess yet"


def test_somebodys_data_end_to_end(here, mine):
    "One corpus, no gold: no oracle, no recall, the published constant is there."
    run = here(**mine, methods=list(METHODS), **{k: v for k, v in SMALL.items() if k not in ("corpora", "num_train")} | dict(total_steps=2, feedback_steps=2, retriever_delay=1))
    out = stages(run)
    assert [m for m, _ in out.texts] == [m for m in METHODS if m != "oracle-docs"] and set(said(out, "constant-published")) == {FLOOR}
    assert all("recall_at_1" not in r and "facts" not in r for rows in out.texts.values() for r in rows) and out.totals["bm25", 0]["distinct_at_1"] >= 1 and "recall_at_1" not in out.totals["bm25", 0]
    assert all("validation_recall_at_1" not in r for s in run.stages for r in s.curves())


@pytest.mark.slices
def test_convai2_with_fairy_tales(here, slices, tmp_path):
    "The real files, with a tiny T5 and a tiny BERT of the papers' architectures."
    texts = [json.loads(line)["question"] for line in open(slices / "convai2" / "train.jsonl")][:300]
    reader, encoder = make_model("t5", tmp_path / "t5", vocab_texts=texts), make_model("bert", tmp_path / "bert", head="encoder", vocab_texts=texts)
    story = written(tmp_path / "some.jsonl", [json.loads(line) for line in open(slices / "fairytales" / "story.jsonl")][:300])
    run = here(train_data=str(slices / "convai2" / "train.jsonl"), eval_data=str(slices / "convai2" / "valid.jsonl"), passages=story, reader_model_type=str(reader), retriever_model=str(encoder), num_train=40, num_val=8, num_test=8,
               text_maxlength=512, retriever_query="persona", retriever_temperature=0.8, sft_steps=2, sft_warmup_steps=1, sft_batch=4, feedback_steps=2, total_steps=2, retriever_delay=1, warmup_steps=1, per_gpu_batch_size=2, eval_freq=1,
               methods=["constant-reply", "constant-published", "stage1", "bm25", "metric-kl", "joint-grpo"])
    out = stages(run)
    assert len(out.texts) == 6 and all(len(r) == 8 for r in out.texts.values()) and out.report["overlap"]["val/test"]["personas"] == 0
    assert sum(r["f1"] for r in out.texts["constant-published", 0]) > 0


def test_a_reader_that_is_no_reader_is_told_first(here, tiny, tmp_path):
    "Also where it was given by model_path; and reader_model_type needn't be there where no row reads with it."
    (tmp_path / "given").mkdir()
    shutil.copytree(ROOT / "rlgen" / "zoo" / "posts", tmp_path / "given" / "reader")
    run = here(methods=["base", "stage1"], model_path=str(tmp_path / "given"), **SMALL, **tiny)
    assert "model_path" in (said := line_of(stages, run)) and "has no encoder" in said and not run.stages
    shutil.rmtree(tmp_path / "given" / "reader")
    shutil.copytree(tiny["reader_model_type"], tmp_path / "given" / "reader")
    assert check(here(methods=["stage1"], model_path=str(tmp_path / "given"), params_name="other", **SMALL | tiny | dict(reader_model_type="no/such-model"))).test
