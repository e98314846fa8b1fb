"""A REST-PG run: what it can be told, the data it is given, its stages, and that killing it changes nothing."""
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import environment, here_of, line_of, working_in
from tiny_models import LETTERS, make_model, make_tokenizer

from rlgen.core import read_jsonl, settings
from rlgen.lm import load_lm
from rlgen.metrics import rouge
from rlgen.record import check_params
from rlgen.rest_pg import models as working
from rlgen.rest_pg import run as running
from rlgen.rest_pg.data import Example
from rlgen.rest_pg.prompt import CLOSE, OPEN, parse_output
from rlgen.rest_pg.models import FORMS, gold_rows, run_m_step, train_sft, validate
from rlgen.rest_pg.run import apart, stages
from rlgen.rest_pg.setup import METHODS, REASONING, Params, Prompts, check_warmup, items_for, load_problems, steps_of, teacher, world_problem
from rlgen.worlds import rest_pg as world

ROOT = Path(__file__).resolve().parent.parent
SMALL = dict(num_train=64, num_val=12, num_test=10, num_iterations=1, exploration_budget=4, reward_threshold=0.3, max_steps=40, warmup_steps=2, num_epochs=0.0, batch_size=8, learning_rate=6e-3)


here = here_of("rest_pg")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    "A small run of all rows, in a folder of its own."
    folder = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        run = working_in(folder, patch, "rest_pg")(**SMALL)
        out = stages(run)
    settings.cache_clear()
    return SimpleNamespace(folder=folder, run=run, out=out)


def said(out, method, name="world", seed=0): return [r["output"] for r in out.texts[name, method, seed]]


def stage_of(x, item): return next(s for s in x.run.stages if s.item == f"world/0/{item}")


def write_rows(path: Path, people, **more) -> str:
    path.write_text("".join(json.dumps(dict(x=p.x, y=p.y, P=list(p.P), user_id=p.user_id) | {k: v(p) for k, v in more.items()}) + "\n" for p in people))
    return str(path)


def three_files(folder: Path, seed=100, sizes=(40, 12, 10)) -> list[str]:
    return [write_rows(folder / f"{s}-{seed}.jsonl", world.make_people(s, n, seed)) for s, n in zip(("train", "valid", "test"), sizes)]


# ---------------------------------------------------------------- what a run can be told


@pytest.mark.parametrize("given, says", [
    (dict(metods=["SFT"]), "did you mean 'methods'?"), (dict(methods=["RESTPG"]), "did you mean 'REST-PG'?"), (dict(methods=[]), "methods is empty"),
    (dict(seeds=[]), "give at least one"), (dict(seeds=[1, 1]), "each once"), (dict(seeds=[-1]), "at least 0"), (dict(seeds=[2**31]), "at least 0"), (dict(seeds=["a"]), "seeds[0]"),
    (dict(num_train=0), "at least 1"), (dict(teacher_error=1.1), "at most 1"), (dict(reward_threshold=-0.1), "at least 0"), (dict(top_p=0), "at least"), (dict(top_p=1.5), "at most 1"),
    (dict(temperature=0), "at least"), (dict(inference_temperature=-1), "at least 0"), (dict(exploration_budget=0), "at least 1"), (dict(max_outputs_per_input=0), "at least 1"),
    (dict(num_iterations=0), "at least 1"), (dict(retrieval_top_k=-1), "at least 0"), (dict(lora_r=-1), "at least 0"), (dict(m_step_from="first"), "m_step_from"),
    (dict(retriever="tfidf"), "retriever"), (dict(optimizer="adam"), "did you mean"), (dict(decay="linaer"), "did you mean 'linear'?"), (dict(autocast="half"), "autocast"),
    (dict(split_by="users"), "did you mean 'user'?"), (dict(on_leak="keep"), "on_leak"), (dict(reward="rogue"), "did you mean 'rouge'?"),
    (dict(num_epochs=0, max_steps=0), "both 0"), (dict(retriever="dense"), "retrieval_model"), (dict(reward="judge"), "judge_model"),
    (dict(data="world/rhymes"), "the worlds are"), (dict(data="mine.jsonl"), "no reasoning_model"), (dict(train_path="a", val_path="b", test_path="c"), "no reasoning_model"),
    (dict(train_path="a.jsonl"), "only train_path given"), (dict(val_path="a", test_path="b"), "only val_path, test_path given"),
    (dict(data="d.jsonl", train_path="a", val_path="b", test_path="c"), "give one of them"),
    (dict(datasets={"a": ["x", "y"]}), "three paths"), (dict(datasets={"a": "x"}), "three paths"), (dict(datasets={"a": ["x", "y", ""]}), "three paths"), (dict(datasets={"a": ["x", "y", 3]}), "three paths"),
    (dict(datasets={"a/b": ["x", "y", "z"]}), "a folder's name"), (dict(datasets={"..": ["x", "y", "z"]}), "a folder's name"), (dict(datasets={"models": ["x", "y", "z"]}), "a folder's name"),
    (dict(datasets={"a": ["x", "y", "z"]}, data="d.jsonl"), "datasets"), (dict(datasets={"a": ["x", "y", "z"]}, train_path="a", val_path="b", test_path="c"), "datasets"),
    (dict(datasets={"a": ["x", "y", "z"]}, dataset_name="b"), "datasets"), (dict(datasets={"a": ["x", "y", "z"]}), "no reasoning_model"),
    (dict(judge_url="http://localhost:1/v1"), "judge_model"), (dict(reasoning_url="http://localhost:1/v1"), "reasoning_model"),
    (dict(prompt_template="{profile}"), "{x} once"), (dict(prompt_template="{profile} {x} {y}"), "{y}"), (dict(prompt_template="{x} {x} {profile}"), "{x} once"),
    (dict(dataset_name="../elsewhere"), "dataset_name"), (dict(dataset_name="a/b"), "dataset_name"), (dict(out_dir="README.md/inside"), "can't write"),
    (dict(data="d.jsonl", methods=["oracle"]), "oracle"),
])  # fmt: skip
def test_each_bad_value_gets_its_line(here, given, says):
    assert says in line_of(here, **given)


def test_good_values_are_taken(here):
    real = dict(reasoning_model="some/teacher")
    for n, given in enumerate(({}, dict(data="world/rhyme"), dict(data="d.jsonl", methods=["SFT", "ReST-EM", "base"]), dict(data="d.jsonl", **real), dict(datasets={"a_1-b": ["x", "y", "z"], "c": ["x", "y", "z"]}, **real),
                  dict(train_path="a", val_path="b", test_path="c", dataset_name="mails", **real), dict(reward="judge", judge_model="j"), dict(num_epochs=0), dict(max_steps=0), dict(inference_temperature=0))):
        assert here(**given, params_name=f"p{n}").params == check_params(Params, given | dict(params_name=f"p{n}"))


def test_steps_of():
    def steps(rows, **given): return steps_of(Params(**dict(warmup_steps=0, batch_size=32, num_epochs=0.0, max_steps=0) | given), rows)
    assert steps(500, max_steps=70) == steps(5, max_steps=70) == 70
    assert steps(320, num_epochs=3.0) == 30 and steps(330, num_epochs=3.0) == 31 and steps(1, num_epochs=0.5) == 1
    assert steps(320, num_epochs=3.0, max_steps=20) == 20 and steps(320, num_epochs=3.0, max_steps=90) == 30
    for warmup, fine in ((29, True), (30, False), (31, False)):
        p = Params(num_epochs=3.0, max_steps=0, warmup_steps=warmup)
        assert steps_of(p, 320) == 30, "a training on few rows is short, and not refused"
        if fine: check_warmup(p, 320)
        else: assert "a training on 320 rows has 30 steps" in line_of(check_warmup, p, 320)


def test_parts_are_all_of_it_and_nothing_twice():
    for methods in (list(METHODS), ["SFT"], ["REST-PG", "oracle"], ["reasoning-after"]):
        parts = apart(Params(seeds=[3, 5], methods=methods))
        assert Counter((s, m) for p in parts for s in p["seeds"] for m in p["methods"]) == Counter((s, m) for s in (3, 5) for m in methods)
        assert all(p["methods"] and len(p["seeds"]) == 1 for p in parts)


# ---------------------------------------------------------------- data


def test_the_worlds_people():
    p = Params(num_train=30, num_val=20, num_test=10)
    q, rhyme = world_problem(p), world_problem(replace(p, data="world/rhyme"))
    assert (q.name, rhyme.name, world_problem(replace(p, dataset_name="mine")).name) == ("world", "world-rhyme", "mine")
    assert (len(q.train(0)), len(q.val), len(q.test)) == (30, 20, 10) and q.train(0) != q.train(1) and q.train(0) == q.train(0)
    assert rhyme.test[0].x.startswith("write a rhyme") and q.test == world_problem(replace(p, num_train=5)).test
    for e in [*q.train(1), *q.val, *q.test]: assert q.gold(e, e.y) == 1.0 and q.gold(e, None) == 0.0
    e = q.test[0]
    assert q.follows(e, "calm , loves sea and rain", f"story of {e.x.split()[-1]} : shepherd with net and thunder .") == 1.0 and q.follows(e, "hm", e.y) is None


def test_three_files(tmp_path):
    paths = three_files(tmp_path)
    p = Params(train_path=paths[0], val_path=paths[1], test_path=paths[2], num_train=30)
    (q,) = load_problems(p)
    assert (q.name, len(q.train(0)), len(q.val), len(q.test)) == ("train-100", 30, 12, 10) and q.gold is q.oracle is q.follows is None
    assert q.train(0) == q.train(1) and q.train(0)[0].y in {o.y for o in world.make_people("train", 100, 100)}
    assert [q.report[k][n] for k in ("train", "valid", "test") for n in ("used", "rows")] == [30, 40, 12, 12, 10, 10]
    assert set(q.report["overlap"]) == {"train/valid", "train/test", "valid/test"} and all(v["users"] == 0 for v in q.report["overlap"].values())
    same = load_problems(replace(p, test_path=paths[0], dataset_name="twice"))[0]
    assert same.name == "twice" and same.report["overlap"]["train/test"]["users"] == 30 == same.report["overlap"]["train/test"]["items"]
    (tmp_path / "empty.jsonl").write_text("")
    assert "empty.jsonl" in line_of(load_problems, replace(p, val_path=str(tmp_path / "empty.jsonl")))


def many_each(persons=10, texts=6):
    "People with several requests each, one after another, as real data has them."
    return [world.Person(f"u{i}", p.tastes, p.topic, p.P, p.x, p.y) for i in range(persons) for p in world.make_people("train", texts, 200 + i)]


def test_one_file_is_parted_by_user(tmp_path):
    path = write_rows(tmp_path / "my.people.jsonl", many_each())
    p = Params(data=path, reasoning_model="t")
    (q,) = load_problems(p)
    sides = [q.train(0), q.val, q.test]
    users = [{e.user_id for e in side} for side in sides]
    assert q.name == "my" and list(map(len, users)) == [8, 1, 1] and not users[0] & users[1] | users[0] & users[2] | users[1] & users[2] and sum(map(len, sides)) == 60
    assert q.report["train"]["rows"] == 60 and all(v["users"] == v["items"] == 0 for v in q.report["overlap"].values())
    assert load_problems(p)[0].test == q.test, "the same people for every seed and every run"
    assert "2 persons for 3 parts" in line_of(load_problems, replace(p, data=write_rows(tmp_path / "two.jsonl", many_each(2))))


def test_one_file_is_parted_by_time(tmp_path):
    people = many_each(5, 10)
    when = {id(p): f"{2001 + i % 10}" for i, p in enumerate(people)}
    path = write_rows(tmp_path / "dated.jsonl", people, time=lambda p: when[id(p)])
    (q,) = load_problems(Params(data=path, split_by="time", reasoning_model="t"))
    newest = {u: max(e.time for e in q.train(0) if e.user_id == u) for u in {e.user_id for e in q.train(0)}}
    assert len(newest) == 5 == q.report["overlap"]["train/test"]["users"] and all(e.time > newest[e.user_id] for e in [*q.val, *q.test])
    assert len(q.val) == len(q.test) == 5 and min(e.time for e in q.test) > max(e.time for e in q.val)
    assert "have no time" in line_of(load_problems, Params(data=write_rows(tmp_path / "undated.jsonl", people), split_by="time"))


def test_columns_under_other_names_and_leaks(tmp_path):
    rows = [dict(question=p.x, y=p.y, P=[*p.P, p.y] if i == 3 else list(p.P), user_id=p.user_id) for i, p in enumerate(world.make_people("train", 30))]
    (tmp_path / "r.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    p = Params(data=str(tmp_path / "r.jsonl"), fields=dict(x="question"), reasoning_model="t")
    (q,) = load_problems(p)
    assert q.report["train"]["target_item"] == 1 and all(e.y not in e.P for side in (q.train(0), q.val, q.test) for e in side)
    assert "r.jsonl:4" in line_of(load_problems, replace(p, on_leak="refuse"))
    assert "x" in line_of(load_problems, replace(p, fields={}))


# ---------------------------------------------------------------- prompts, teacher, rows


def test_four_ways_of_a_prompt():
    p, problem, lm = Params(num_test=30), world_problem(Params(num_test=30)), load_lm("zoo/stories")
    prompts = Prompts(p, lm, problem.test)
    text = {way: [lm.tokenizer.decode(ids) for ids in prompts(way)[0]] for way in ("own", "first", "none", "shuffled")}
    for i, e in enumerate(problem.test):
        other = problem.test[(i + 1) % 30]
        assert all(t[i].endswith(f"request : {e.x}") for t in text.values()) and text["none"][i] == f"request : {e.x}"
        assert all((f"- {item}" in text["own"][i]) == ("list" not in item) for item in e.P), "retrieval finds what matters"
        assert all(f"- {item}" in text["first"][i] for item in e.P[:6])
        assert all((f"- {item}" in text["shuffled"][i]) for item in other.P if "list" not in item) and not any(f"- {item}" in text["shuffled"][i] for item in e.P if "list" not in item)
    assert prompts("own") is prompts("own") and prompts("none")[1]["bare"] == 30
    assert "max_output_length" in line_of(Prompts(replace(p, max_output_length=192), lm, problem.test))
    assert "raise max_input_length" in line_of(Prompts(replace(p, max_input_length=4), lm, problem.test))
    assert max(map(len, Prompts(replace(p, max_input_length=40), lm, problem.test)()[0])) <= 40


def test_a_shuffled_profile_is_another_users():
    "Where a person's requests stand one after another, as they do in real data, the next request's profile is no other person's."
    mine = {u: tuple(f"{u} wrote of {w} ." for w in "rain snow bread tea".split()) for u in ("ann", "bob", "cid")}
    examples = [Example(f"write {i}", f"text {i} of {u} .", P, u) for u, P in mine.items() for i in range(4)]
    for e, items in zip(examples, items_for(Params(retrieval_top_k=2), examples, "shuffled"), strict=True): assert items and not set(items) & set(e.P), e


def test_the_oracle_teaches_through_the_prompt():
    p, problem = Params(num_train=40), world_problem(Params(num_train=40))
    people = problem.train(0)
    from rlgen.rest_pg.reasoning import generate_reasoning
    def say(seed=0, **given): return generate_reasoning(people, items_for(p, people), teacher(replace(p, **given), seed), seed=seed, label="")[0]
    assert say() == [world.teach(items, e.x, e.y, 0.3) for items, e in zip(items_for(p, people), people)] == say() != say(1)
    assert sum(world.describe(w.tastes) == r for w, r in zip(world.make_people("train", 40, 0), say(teacher_error=0.0))) > 36


def test_gold_rows_leave_out_and_cut():
    lm, e = load_lm("zoo/stories"), world_problem(Params(num_test=4)).test
    prompts = [[5], [6], [7], [8]]
    spoiled = [e[0], replace(e[1], y=f"story {OPEN} of"), e[2], e[3]]
    rows, count = gold_rows(Params(max_output_length=14), lm, prompts, spoiled, ["calm", "calm", None, "calm , loves sea and rain"], "before")
    assert count == dict(rows=2, left_out=2, cut=1) and [r[0] for r in rows] == [[5], [8]] and all(len(r[1]) <= 14 and r[2] == 1.0 for r in rows)
    assert parse_output(lm.tokenizer.decode(rows[0][1], skip_special_tokens=True)).text == e[0].y and rows[0][1][-1] == lm.tokenizer.eos_token_id != rows[1][1][-1]
    rows, count = gold_rows(Params(), lm, prompts, e, [None] * 4, "none")
    assert count == dict(rows=4, left_out=0, cut=0) and [lm.tokenizer.decode(r[1], skip_special_tokens=True) for r in rows] == [x.y for x in e]


# ---------------------------------------------------------------- a run of all rows


def test_all_rows_are_there(undisturbed):
    out, test = undisturbed.out, undisturbed.out.problems[0].test
    assert list(out.texts) == [("world", m, 0) for m in METHODS] == list(out.cost) and out.headline == "gold_reward"
    for (_, method, _), rows in out.texts.items():
        order = FORMS.get(method, ("none",))[0]
        for r, e in zip(rows, test, strict=True):
            read, scores = parse_output(r["output"], order), rouge(r["text"] or "", e.y)
            assert (r["text"], r["reasoning"]) == ((read.text, read.reasoning) if read else (None, None)) and r["parsed"] == float(read is not None), method
            assert (r["user_id"], r["x"]) == (e.user_id, e.x) and r["rouge"] == pytest.approx((scores["rouge1"] + scores["rougeL"]) / 2)
            assert r["gold_reward"] == out.problems[0].gold(e, r["text"])
    assert all("<" not in t for m in ("base", "no-profile", "retrieval-only", "SFT", "SFT-long", "ReST-EM", "oracle") for t in said(out, m))
    assert sum(OPEN in t and CLOSE in t for m in ("SFT-reasoning", "REST-PG", "shuffled-profile", "reasoning-after") for t in said(out, m)) > 30, "it has learned the form"
    assert said(out, "oracle") == [world.guess(e.P, e.x) for e in test]
    assert len({json.dumps(said(out, m)) for m in METHODS}) == len(METHODS), "no row is another one"


def test_the_rows_that_train_as_long_do(undisturbed):
    "Equal steps and equal gold texts; what self-training sampled is counted."
    cost = {m: c for (_, m, _), c in undisturbed.out.cost.items()}
    assert {m: cost[m]["train_steps"] for m in METHODS if m != "oracle"} == {
        "base": 0, "retrieval-only": 0, "no-profile": 40, "SFT": 40, "SFT-reasoning": 40, "SFT-long": 80, "reasoning-after": 80, "ReST-EM": 80, "REST-PG": 80, "shuffled-profile": 80}
    assert {cost[m]["gold_texts"] for m in METHODS if m not in ("oracle", "base", "retrieval-only")} == {64}
    assert {m for m in METHODS if cost[m].get("sampled_tokens")} == {"REST-PG", "shuffled-profile", "ReST-EM"}
    attempts = read_jsonl(stage_of(undisturbed, "e_step/REST-PG-1").path / "attempts.jsonl")
    assert cost["REST-PG"]["sampled_tokens"] == sum(len(a["ids"]) for a in attempts)
    assert cost["base"]["lm_tokens"] > 0 and cost["REST-PG"]["offered"] == 60 == cost["REST-PG"]["shown"] and cost["no-profile"]["bare"] == 10


def test_iterations_tell_what_happened(undisturbed):
    x, problem = undisturbed, undisturbed.out.problems[0]
    assert [(r["method"], r["iteration"]) for r in x.out.iterations] == [(m, t) for m in ("ReST-EM", "REST-PG") for t in (0, 1)]
    assert all(r["chosen"] == (r["iteration"] == 1) for r in x.out.iterations), "there is one to choose"
    for r in x.out.iterations:
        assert {"validation_reward", "validation_parsed", "validation_reasoning_tokens", "validation_gold"} <= set(r)
        assert ("forced" in r) == (r["method"] == "REST-PG")
    told, people = x.out.iterations[-1], problem.train(0)
    attempts = read_jsonl(stage_of(x, "e_step/REST-PG-1").path / "attempts.jsonl")
    kept = [a for a in attempts if a["kept"]]
    assert len(attempts) == 64 * 4 and told["samples"] == 256 and told["items"] == 64 and sum(told["histogram"]) == 256
    assert told["kept_gold"] == pytest.approx(sum(problem.gold(people[a["item"]], a["text"]) for a in kept) / len(kept))
    for a in attempts:
        read = parse_output(a["output"])
        scores = rouge(read.text, people[a["item"]].y) if read else dict(rouge1=0, rougeL=0)
        assert a["reward"] == pytest.approx((scores["rouge1"] + scores["rougeL"]) / 2), "of the text alone"
    assert stage_of(x, "m_step/REST-PG-1").cost["rows"] == len(kept) > 64
    found = read_jsonl(next(s for s in x.run.stages if s.item.startswith("world/0/validation/REST-PG-1")).path / "validation.jsonl")
    assert told["validation_reward"] == pytest.approx(sum(r["reward"] for r in found) / 12) and told["validation_gold"] == pytest.approx(sum(problem.gold(e, r["text"]) for e, r in zip(problem.val, found)) / 12)


def test_reasoning_tokens_are_counted_alike(undisturbed):
    "In the E-step and at validation: a reasoning of six words, and its tags or not, but the same both times."
    told = undisturbed.out.iterations[-1]
    x = undisturbed
    sampled = next(a for a in read_jsonl(stage_of(x, "e_step/REST-PG-1").path / "attempts.jsonl") if a["reasoning"] and len(a["reasoning"].split()) == 6)
    tested = next(r for r in x.out.texts["world", "REST-PG", 0] if r["reasoning"] and len(r["reasoning"].split()) == 6)
    assert sampled["reasoning_tokens"] == tested["reasoning_tokens"] and told["validation_reasoning_tokens"] > 0


def test_models_lie_where_a_person_looks_for_them(undisturbed):
    x = undisturbed
    assert {m for _, m, _ in x.out.models} == {"no-profile", "SFT", "SFT-long", "SFT-reasoning", "reasoning-after", "ReST-EM", "REST-PG"}
    for (name, method, seed), place in x.out.models.items(): assert place == x.run.out_dir / name / f"{method}-{seed}" and (place / "model.safetensors").is_file()
    e, p = x.out.problems[0].test, x.run.params
    lm = load_lm(str(x.out.models["world", "REST-PG", 0]))
    again = working.write_outputs(p, lm, Prompts(p, lm, e)()[0], "before", 0)
    assert [r["output"] for r in again] == said(x.out, "REST-PG"), "its texts come from the placed model"
    twins = working.write_outputs(p, lm, Prompts(p, lm, e)("shuffled")[0], "before", 0)
    assert [r["output"] for r in twins] == said(x.out, "shuffled-profile"), "the same model, another profile"


def test_long_rows_keep_their_best(undisturbed):
    "The kept weights are those of the best validation point, the first of equals."
    x = undisturbed
    s, p, problem = stage_of(x, "sft/SFT-long"), x.run.params, x.out.problems[0]
    points = [r for r in s.curves() if "validation" in r]
    assert [r["step"] for r in points] == [40, 80]
    lm = load_lm(str(s.path / "model"))
    texts = [r["text"] for r in working.write_outputs(p, lm, Prompts(p, lm, problem.val)()[0], "none", 0)]
    assert sum(working.rouge_rewards(problem.val, texts)) / 12 == pytest.approx(max(r["validation"] for r in points), abs=1e-5)


def test_again_nothing_is_done(undisturbed, monkeypatch):
    "Every stage is found; neither training nor sampling is called."
    def never(*a, **k): raise AssertionError("this was done before")
    for name in ("sft", "e_step", "generate", "generate_reasoning"): monkeypatch.setattr(working, name, never)
    again = stages(working_in(undisturbed.folder, monkeypatch, "rest_pg")(**SMALL))
    monkeypatch.undo()
    settings.cache_clear()
    assert again.texts == undisturbed.out.texts and again.iterations == undisturbed.out.iterations and again.cost == undisturbed.out.cost


def test_fewer_rows_are_the_same_rows(undisturbed, here):
    "In a cache of their own, in another order."
    run = here(**SMALL | dict(methods=["shuffled-profile", "no-profile", "base"]))
    out = stages(run)
    assert set(out.texts) == {("world", m, 0) for m in ("shuffled-profile", "no-profile", "base")}
    for key, rows in out.texts.items(): assert rows == undisturbed.out.texts[key], key
    assert Counter(s.name for s in run.stages) == dict(texts=3, sft=2, reasoning=1, e_step=1, m_step=1, validation=2), "and nothing that they don't need"
    assert out.iterations == [r for r in undisturbed.out.iterations if r["method"] == "REST-PG"]


def test_other_seeds_are_other_people(here):
    out = stages(here(**SMALL | dict(seeds=[4, 5], methods=["no-profile"], max_steps=3)))
    assert said(out, "no-profile", seed=4) != said(out, "no-profile", seed=5) and out.texts["world", "no-profile", 4][0]["x"] == out.texts["world", "no-profile", 5][0]["x"]


# ---------------------------------------------------------------- options of the M-step and of training


def rows_learned(undisturbed, monkeypatch, tmp_path, **given):
    "What an M-step hands to the training, and from which weights it starts; nothing is trained."
    seen = {}
    def note(lm, rows, **options): seen.update(rows=rows, options=options, weights={n: t.clone() for n, t in lm.model.state_dict().items()})
    monkeypatch.setattr(working, "sft", note)
    e, first = stage_of(undisturbed, "e_step/REST-PG-1"), stage_of(undisturbed, "sft/SFT-reasoning")
    p = replace(undisturbed.run.params, **given)
    run_m_step(tmp_path, print, p, undisturbed.out.problems[0], "REST-PG", str(first.path / "model") if p.m_step_from == "last" else p.model_name, e.path / "attempts.jsonl", 0, 1)
    return seen


def test_weights_are_rewards_or_ones(undisturbed, monkeypatch, tmp_path):
    kept = [a for a in read_jsonl(stage_of(undisturbed, "e_step/REST-PG-1").path / "attempts.jsonl") if a["kept"]]
    weighted, plain = (rows_learned(undisturbed, monkeypatch, tmp_path, weight_by_reward=w)["rows"] for w in (True, False))
    assert [r[2] for r in weighted] == [a["reward"] for a in kept] and len({r[2] for r in weighted}) > 2 and {r[2] for r in plain} == {1.0}
    assert [r[:2] for r in weighted] == [r[:2] for r in plain] and [r[1] for r in plain] == [a["ids"] for a in kept]


def test_options_reach_the_training(undisturbed, monkeypatch, tmp_path):
    seen = rows_learned(undisturbed, monkeypatch, tmp_path, optimizer="adafactor", decay="linear", weight_decay=0.5, micro_batch=3, learning_rate=7e-4, warmup_steps=4)["options"]
    assert {k: seen[k] for k in ("optimizer", "decay", "weight_decay", "micro_batch", "lr", "batch_size", "steps")} == dict(optimizer="adafactor", decay="linear", weight_decay=0.5, micro_batch=3, lr=7e-4, batch_size=8, steps=40)
    assert round(seen["warmup"] * seen["steps"]) == 4


def test_an_m_step_starts_from_base_or_from_the_last(undisturbed, here, monkeypatch):
    "The whole run, its last training looked into: a cache with all but that."
    def beginnings(**given):
        run = here(**SMALL | dict(methods=["REST-PG"], **given))
        begun, real = [], running.run_m_step
        monkeypatch.setattr(running, "run_m_step", lambda *a, begin, **k: begun.append(begin) or real(*a, begin=begin, **k))
        monkeypatch.setattr(running.run_m_step, "__module__", real.__module__)
        out = stages(run)
        monkeypatch.setattr(running, "run_m_step", real)
        return begun, out, run

    shutil.copytree(undisturbed.folder / "cache", Path(os.environ["RLGEN_CACHE_DIR"]))
    begun, out, _ = beginnings(num_iterations=1)
    assert not begun and out.texts["world", "REST-PG", 0] == undisturbed.out.texts["world", "REST-PG", 0]
    begun, out, run = beginnings(num_iterations=1, m_step_from="last")
    assert begun == [str(next(s for s in run.stages if s.item.endswith("SFT-reasoning") and s.name == "sft").path / "model")] and out.texts["world", "REST-PG", 0] != undisturbed.out.texts["world", "REST-PG", 0]


@pytest.mark.parametrize("given", (dict(optimizer="adafactor"), dict(decay="linear"), dict(lora_r=2), dict(micro_batch=3), dict(gradient_checkpointing=True), dict(weight_decay=0.5), dict(lora_r=2, gradient_checkpointing=True)), ids=str)
def test_every_way_of_training_ends_in_a_model(given, tmp_path):
    "And in another one than the usual way, but for what only saves memory."
    problem, weights = world_problem(Params(**SMALL)), {}
    for name, more in (("plain", {}), ("other", given)):
        (tmp_path / name).mkdir()
        cost = train_sft(tmp_path / name, lambda *a, **k: None, Params(**SMALL | dict(max_steps=4, warmup_steps=1) | more), problem, "SFT", [None] * 64, 0)
        assert cost["steps"] == 4 and cost["rows"] == 64 and cost["train_tokens"] > 0
        assert not list((tmp_path / name).rglob("*adapter*")) and not list((tmp_path / name).glob("checkpoint*"))
        weights[name] = dict(load_lm(str(tmp_path / name / "model")).model.named_parameters())
    gap = max((weights["plain"][n] - weights["other"][n]).abs().max().item() for n in weights["plain"])
    if set(given) <= {"micro_batch", "gradient_checkpointing"}: assert gap < 1e-4
    else: assert gap > 1e-4
    base = dict(load_lm("zoo/stories").model.named_parameters())
    ranks = [torch.linalg.matrix_rank((weights["other"][n] - t).detach(), atol=1e-6).item() for n, t in base.items() if t.dim() == 2]
    assert max(ranks) <= given["lora_r"] if "lora_r" in given else max(ranks) > 2


def test_the_best_point_is_kept_also_after_a_kill(tmp_path, monkeypatch):
    "The first of equals; killed behind the second point and run again, the same weights."
    problem, p, real = world_problem(Params(**SMALL)), Params(**SMALL | dict(warmup_steps=1)), working.sft
    monkeypatch.setattr(working, "sft", lambda *a, **k: real(*a, **k, save_seconds=0))
    def trained(folder, values, die=0):
        lm, seen, values = load_lm("zoo/stories"), [], iter(values)
        rows, _ = gold_rows(p, lm, Prompts(p, lm, problem.train(0))()[0], problem.train(0), [None] * 64, "none")

        def score(lm):
            seen.append({n: t.clone() for n, t in lm.model.named_parameters()})
            return next(values)

        def log(step, **scalars):
            if step == die: raise KeyboardInterrupt

        folder.mkdir(exist_ok=True)
        working.fine_tune(folder, log, p, lm, rows, 12, 0, "x", score, 4)
        return seen, dict(load_lm(str(folder / "model")).model.named_parameters())

    def same(a, b): return all(torch.equal(a[n], b[n]) for n in b)
    seen, kept = trained(tmp_path / "calm", [0.3, 0.7, 0.5, 0.7])
    assert [same(kept, x) for x in seen] == [False, True, False, False] and len(seen) == 4
    assert same(trained(tmp_path / "zero", [0.0] * 4)[1], seen[0]), "a point that is worth nothing is one, too"
    with pytest.raises(KeyboardInterrupt): trained(tmp_path / "killed", [0.3, 0.7], die=6)
    again, after = trained(tmp_path / "killed", [0.7, 0.5, 0.7])
    assert len(again) == 3 and same(after, kept), "it goes on from the first point's checkpoint"


def test_a_judge_accepts_weights_and_chooses(here, monkeypatch):
    "Its grade is the reward everywhere; what it has said is kept, so that a stage done again asks nothing."
    from rlgen.backends import Oracle
    from rlgen.judge import framed_texts

    asked, problem = [], world_problem(Params(**SMALL))
    def grade(prompt):
        asked.append(prompt)
        return "A" if "old" in framed_texts(prompt)["text"].split() else "E"

    monkeypatch.setattr(working, "judge_backend", lambda model, url: Oracle(grade, name="old"))
    given = SMALL | dict(methods=["ReST-EM"], reward="judge", judge_model="old", judge_url="http://127.0.0.1:9/v1", reward_threshold=0.9, max_steps=5)
    run = here(**given)
    out = stages(run)
    e, m = (next(s for s in run.stages if s.name == name) for name in ("e_step", "m_step"))
    attempts = read_jsonl(e.path / "attempts.jsonl")
    assert all(a["reward"] == (1.0 if "old" in a["text"].split() else 0.1) for a in attempts if a["text"])
    assert all(a["reward"] == 1.0 for a in attempts if a["kept"]) and m.cost["rows"] == sum(a["kept"] for a in attempts) > 0
    found = read_jsonl(next(s for s in run.stages if s.name == "validation").path / "validation.jsonl")
    assert all(r["reward"] == (1.0 if "old" in r["text"].split() else 0.1) for r in found if r["text"]) and len(problem.val) == len(found)
    n = len(asked)
    shutil.rmtree(e.path)
    for s in run.stages:
        if s.name == "validation": shutil.rmtree(s.path)
    assert stages(here(**given)).texts == out.texts and len(asked) == n > 0


# ---------------------------------------------------------------- several data sets, other models


def test_data_sets_are_kept_apart(here, tmp_path):
    "Three, of which two are the same files: a table's worth of texts each, models in folders of their own."
    one, two = three_files(tmp_path, 100), three_files(tmp_path, 101)
    run = here(**SMALL | dict(datasets={"mails": one, "reviews": two, "mails-again": one}, methods=["base", "SFT", "oracle"], max_steps=4))
    out = stages(run)
    assert list(out.texts) == [(n, m, 0) for n in ("mails", "reviews", "mails-again") for m in ("base", "SFT")] and out.headline == "rouge", "only the world has an oracle"
    assert set(out.report) == {"mails", "reviews", "mails-again"} and out.report["mails"]["train"]["used"] == 40 and "prompts" in out.report["mails"]
    for name in out.report:
        assert [p.name for p in (run.out_dir / name).iterdir()] == ["SFT-0"] and (run.out_dir / name / "SFT-0" / "config.json").is_file()
        assert "gold_reward" not in out.texts[name, "SFT", 0][0] and len(out.texts[name, "SFT", 0]) == 10
    def texts(m, n): return [r["output"] for r in out.texts[n, m, 0]]
    assert texts("base", "mails") == texts("base", "mails-again") != texts("base", "reviews") and texts("SFT", "mails") == texts("SFT", "mails-again")
    alone = stages(here(**SMALL | dict(train_path=one[0], val_path=one[1], test_path=one[2], dataset_name="mails", methods=["SFT"], max_steps=4)))
    assert alone.texts["mails", "SFT", 0] == out.texts["mails", "SFT", 0]


def test_a_data_sets_name_may_be_a_number(here, tmp_path):
    run = here(**SMALL | dict(datasets={2024: three_files(tmp_path)}, methods=["SFT"], max_steps=3))
    assert [k[0] for k in stages(run).texts] == ["2024"] and (run.out_dir / "2024" / "SFT-0").is_dir()


def test_moving_a_row_to_another_part_is_noticed(here, tmp_path):
    "The last person to learn from becomes the first to choose on: the same people in the same order, but another training."
    a = three_files(tmp_path)
    given = SMALL | dict(methods=["SFT"], max_steps=3, dataset_name="d")
    def done(paths):
        run = here(**given | dict(train_path=paths[0], val_path=paths[1], test_path=paths[2], params_name=Path(paths[0]).stem))
        stages(run)
        return next(s.key for s in run.stages if s.name == "sft")

    (tmp_path / "b").mkdir()
    b = [str(tmp_path / "b" / f"{k}.jsonl") for k in ("t", "v")] + [a[2]]
    train, val = (Path(x).read_text().splitlines(keepends=True) for x in a[:2])
    Path(b[0]).write_text("".join(train[:-1]))
    Path(b[1]).write_text("".join([train[-1], *val]))
    assert done(a) != done(b)


def plain_teacher(monkeypatch):
    "A teacher for real texts that says the same three words about everybody."
    from rlgen.backends import Oracle
    monkeypatch.setattr(working, "teacher", lambda p, seed: Oracle(lambda prompt: f"{OPEN}calm and slow{CLOSE}", name=f"plain-{seed}"))


TINY = dict(reasoning_url="http://127.0.0.1:9/v1", num_train=4, num_val=2, num_test=2, num_iterations=1, exploration_budget=3, reward_threshold=0.05, num_epochs=0.0, warmup_steps=2, batch_size=4, temperature=0.3, log_every=50)
ROWS = ["base", "no-profile", "SFT-reasoning", "REST-PG", "shuffled-profile"]


def few_files(folder):
    "Two for learning and choosing hold the same people, so that a model that has learned them by heart can be seen to write."
    people = world.make_people("train", 4, 7)
    return [write_rows(folder / f"{k}.jsonl", people[:n]) for k, n in (("train", 4), ("val", 2), ("test", 2))]


@pytest.mark.parametrize("arch, steps, lr", (("t5", 110, 2e-2), ("gpt2", 60, 1e-2), pytest.param("llama", 60, 1e-2, marks=pytest.mark.slow)))
def test_other_architectures_go_through(here, tmp_path, monkeypatch, arch, steps, lr):
    "An encoder-decoder, and decoders with the papers' tokenizers: every stage; forced reasoning is a decoder's alone."
    words = [" ".join([w] * 3) for w in world.vocabulary()] + [f"{OPEN} calm and slow {CLOSE} past texts : request"] * 3
    plain_teacher(monkeypatch)
    given = dict(resid_pdrop=0, embd_pdrop=0, attn_pdrop=0) if arch == "gpt2" else dict(dropout_rate=0.0, num_layers=1, num_decoder_layers=1) if arch == "t5" else {}
    folder, paths = make_model(arch, tmp_path / arch, vocab_texts=words, **given), few_files(tmp_path)
    run = here(**TINY | dict(model_name=str(folder), train_path=paths[0], val_path=paths[1], test_path=paths[2], dataset_name="d", reasoning_model="t", methods=ROWS, max_steps=steps, learning_rate=lr,
                             max_input_length=170, max_output_length=40 if arch == "t5" else 70, retrieval_top_k=2))
    out = stages(run)
    assert [k[1] for k in out.texts] == ROWS and all(r["parsed"] for r in out.texts["d", "REST-PG", 0]), said(out, "REST-PG", "d")
    assert all(r["reasoning"] == "calm and slow" for r in out.texts["d", "REST-PG", 0]) and max(r["rouge"] for r in out.texts["d", "REST-PG", 0]) > 0.5
    assert ("forced" in out.iterations[-1]) == (arch != "t5") and load_lm(str(out.models["d", "REST-PG", 0])).kind == ("seq2seq" if arch == "t5" else "causal")


def test_a_tokenizer_without_the_tags_letters(here, tmp_path):
    "T5 as published has no '<': one line before anything is trained; rows without reasoning go on."
    from transformers import T5Tokenizer

    folder = make_model("t5", tmp_path / "t5")
    whole = make_tokenizer("t5")
    vocab = [(w, -1.0 if len(w) > 1 else -20.0) for w in sorted(whole.get_vocab(), key=whole.get_vocab().get) if w not in ("<", ">") and not w.startswith("<extra")]
    assert "<" in LETTERS and len(vocab) < len(whole)
    T5Tokenizer(vocab=[*vocab, *((f"<extra_id_{i}>", 0.0) for i in reversed(range(102)))], extra_ids=0, model_max_length=256).save_pretrained(folder)
    given = SMALL | dict(model_name=str(folder), max_steps=3)
    run = here(**given | dict(methods=["REST-PG"]))
    assert "add both tags to its vocabulary" in line_of(stages, run) and not run.stages
    assert all(line_of(stages, here(**given | dict(methods=[m], params_name=m))) for m in REASONING if m != "SFT-long")
    assert list(stages(here(**given | dict(methods=["SFT", "base"]))).texts) == [("world", "base", 0), ("world", "SFT", 0)]


def test_dense_retrieval_and_one_person(here, tmp_path):
    "An encoder chooses other past texts than BM25; with a single person to test and to choose on nothing falls over, and nobody else's reasoning is there."
    folder = str(make_model("bert", tmp_path / "encoder", head="encoder"))
    given = SMALL | dict(num_test=1, num_val=1, max_steps=4, methods=["retrieval-only", "shuffled-profile", "ReST-EM"], reward_threshold=0.01, retrieval_top_k=3)
    usual, dense = (stages(here(**given | more)) for more in ({"methods": ["retrieval-only"]}, dict(retriever="dense", retrieval_model=folder, methods=["retrieval-only"])))
    people = usual.problems[0].test
    shown = [items_for(check_params(Params, given | more), people) for more in ({}, dict(retriever="dense", retrieval_model=folder))]
    assert list(usual.texts) == list(dense.texts) and shown[0] != shown[1] and all(len(x) == 3 for side in shown for x in side)
    alone = stages(here(**given | dict(methods=["ReST-EM"], params_name="alone")))
    assert len(alone.texts["world", "ReST-EM", 0]) == 1
    assert "no chat template" in line_of(stages, here(**given | dict(chat=True)))


def test_a_warm_up_that_is_too_long_is_told_first(here):
    "Before the teacher is asked and anything is trained."
    run = here(**SMALL | dict(methods=["REST-PG"], max_steps=40, warmup_steps=40))
    assert "warmup_steps = 40" in line_of(stages, run) and not run.stages


def test_nothing_kept_gets_one_line(here):
    assert "none of 256 outputs was kept" in line_of(stages, here(**SMALL | dict(methods=["ReST-EM"], max_steps=3, reward_threshold=1.0, temperature=0.01, top_p=0.01, exploration_budget=4)))


def test_forced_reasoning_is_another_users(monkeypatch, tmp_path):
    "Also where a person's requests stand one after another."
    seen = []
    lm = load_lm("zoo/stories")
    problem = world_problem(Params(num_val=8))
    problem.gold = problem.follows = None
    problem.val = [replace(e, user_id=f"u{i // 4}") for i, e in enumerate(problem.val)]
    rows = [dict(output=f"{OPEN} r{i} {CLOSE} t", reasoning=f"r{i}", text="t", tokens=4, reasoning_tokens=1, finished=True) for i in range(8)]
    monkeypatch.setattr(working, "load_lm", lambda name: lm)
    monkeypatch.setattr(working, "write_outputs", lambda p, lm, prompts, order, *a: rows[: len(prompts)])
    monkeypatch.setattr(working, "force", lambda ids, lm, reasoning: seen.append((tuple(ids), reasoning)) or ids)
    validate(tmp_path, print, Params(), problem, "REST-PG", "zoo/stories", 0)
    whose = {tuple(ids): e.user_id for ids, e in zip(Prompts(Params(), lm, problem.val)()[0], problem.val)}
    assert seen and all(whose[ids] != problem.val[int(reasoning[1:])].user_id for ids, reasoning in seen)


@pytest.mark.slices
def test_real_texts_and_a_small_decoder(here, slices, tmp_path, monkeypatch):
    "Novelists' passages: write on from a first sentence, in this author's manner; newlines, quotes and dashes in a byte-level tokenizer."
    by_author = {}
    for r in read_jsonl(slices / "novels" / "passages_by_author.jsonl"): by_author.setdefault(r["author"], []).append(r["text"])
    authors = [a for a, texts in by_author.items() if len(texts) >= 5][:10]
    rows = []
    for a in authors:
        for text in by_author[a][:2]:
            start_, rest = " ".join(text.split()[:6]), " ".join(text.split()[6:18])
            rows.append(dict(x=f"Write on: {start_}", y=rest, P=[t[:300] for t in by_author[a][2:5]], user_id=a))
    (tmp_path / "novels.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    plain_teacher(monkeypatch)
    folder = make_model("gpt2", tmp_path / "gpt2", vocab_texts=[t for a in authors for t in by_author[a][:5]] + [f"{OPEN} calm and slow {CLOSE}"] * 50, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0)
    run = here(**TINY | dict(model_name=str(folder), data=str(tmp_path / "novels.jsonl"), reasoning_model="t", methods=["SFT", "REST-PG"], max_steps=80, learning_rate=1e-2,
                             max_input_length=160, max_output_length=90, retrieval_top_k=2, num_train=6, reward_threshold=0.01, inference_temperature=0.0, exploration_budget=6))
    out = stages(run)
    users = [{e.user_id for e in side} for side in (out.problems[0].train(0), out.problems[0].val, out.problems[0].test)]
    assert len(out.texts) == 2 and out.headline == "rouge" and not users[0] & users[2] and out.report["novels"]["train"]["rows"] == len(rows) == 20
    assert out.report["novels"]["prompts"]["longest"] <= 160 and out.report["novels"]["prompts"]["cut"] + out.report["novels"]["prompts"]["dropped"] > 0, "long texts are budgeted"
    attempts = read_jsonl(next(s for s in run.stages if s.item == "novels/0/e_step/REST-PG-1").path / "attempts.jsonl")
    kept = [a for a in attempts if a["kept"]]
    assert kept and all(a["reward"] >= 0.01 and a["reasoning"] and a["text"] for a in kept)
    tokenizer = load_lm(str(folder)).tokenizer
    assert all(parse_output(tokenizer.decode(a["ids"], skip_special_tokens=True)).text == a["text"] for a in kept)


# ---------------------------------------------------------------- kills


def e_steps(folder: Path) -> dict:
    "E-steps in a cache, by what they are for: finished ones by their item."
    return {json.loads(p.read_text())["item"].removeprefix("world/0/e_step/"): p.parent for p in (folder / "cache" / "rest_pg").glob("e_step-*/stage.json")}


def forget(folder: Path, names: tuple[str, ...]) -> None:
    "Remove finished stages of some items from a cache."
    for p in (folder / "cache" / "rest_pg").glob("*/stage.json"):
        if any(n in json.loads(p.read_text())["item"] for n in names): shutil.rmtree(p.parent)


def rlgen_stages(folder: Path, **kwargs) -> subprocess.Popen:
    env = os.environ | environment(folder) | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-m", "rlgen", "stages", "rest_pg", "-y", json.dumps(SMALL | dict(methods=["REST-PG"]))]
    return subprocess.Popen(words, cwd=ROOT, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, **kwargs)


def killed_in_the_e_step(folder: Path) -> bytes:
    "Start a run, kill it while it samples; what it had written."
    victim, deadline = rlgen_stages(folder), time.monotonic() + 240
    def grown(): return [p for p in (folder / "cache" / "rest_pg").glob("e_step-*.partial/sampled.jsonl") if p.stat().st_size]
    while not grown() and victim.poll() is None and time.monotonic() < deadline: time.sleep(0.005)
    victim.send_signal(signal.SIGKILL)
    victim.communicate()
    (path,) = grown()
    return path.read_bytes()


def same_after_the_kill(folder: Path, undisturbed, written: bytes) -> None:
    "Run again: what was there is kept byte for byte, nothing is sampled twice, and all that follows is as if nobody had been killed."
    again = rlgen_stages(folder)
    told = again.communicate()[1]
    assert again.returncode == 0, told[-2000:]
    there, calm = e_steps(folder)["REST-PG-1"], e_steps(undisturbed.folder)["REST-PG-1"]
    whole = written[: written.rindex(b"\n") + 1]
    sampled = read_jsonl(there / "sampled.jsonl")
    assert (there / "sampled.jsonl").read_bytes().startswith(whole) and 0 < whole.count(b"\n") < len(sampled) == 64 * 4
    assert len({(r["item"], r["sample"]) for r in sampled}) == len(sampled), "nothing twice"
    for name in ("sampled.jsonl", "attempts.jsonl", "report.json"): assert (there / name).read_bytes() == (calm / name).read_bytes(), name
    texts = next((folder / "cache" / "rest_pg").glob(f"texts-{stage_of(undisturbed, 'texts/REST-PG').key}/texts.jsonl"))
    assert texts.read_bytes() == (stage_of(undisturbed, "texts/REST-PG").path / "texts.jsonl").read_bytes()
    assert not list((folder / "cache" / "rest_pg").glob("*.partial"))


def test_killed_in_an_e_step_and_run_again(undisturbed, tmp_path):
    "What came before the E-step is there; the command is killed while sampled.jsonl grows."
    shutil.copytree(undisturbed.folder / "cache", tmp_path / "cache")
    forget(tmp_path, ("e_step/REST-PG", "m_step/REST-PG", "validation/REST-PG", "texts/"))
    written = killed_in_the_e_step(tmp_path)
    same_after_the_kill(tmp_path, undisturbed, written)


@pytest.mark.slow
def test_killed_twice_from_nothing(undisturbed, tmp_path):
    "An empty cache; the second run goes on with the E-step and is killed in it again, on a torn line."
    written = killed_in_the_e_step(tmp_path)
    (path,) = (tmp_path / "cache" / "rest_pg").glob("e_step-*.partial/sampled.jsonl")
    with open(path, "ab") as f: f.write(b'{"item": 63, "sam')
    victim, deadline, size = rlgen_stages(tmp_path), time.monotonic() + 240, path.stat().st_size
    while path.exists() and path.stat().st_size <= size and victim.poll() is None and time.monotonic() < deadline: time.sleep(0.005)
    victim.send_signal(signal.SIGKILL)
    victim.communicate()
    same_after_the_kill(tmp_path, undisturbed, written)


@pytest.mark.parametrize("source, name", [("my/reviews.jsonl", "reviews"), ("LongLaMP/LongLaMP:abstract@refs/convert/parquet", "LongLaMP-abstract"), ("a/b c.csv", "b-c"), ("some/models.jsonl", "models-data"), ("parts", "parts-data"), ("/", "data"), ("größe.jsonl", "größe")])
def test_a_data_set_is_called_after_its_source(source, name):
    "Whatever it is: a folder's name, and none that a run's folder needs for itself."
    from rlgen.rest_pg.setup import _check_name, _folder_name
    assert _folder_name(source) == name
    _check_name("dataset_name", name)
