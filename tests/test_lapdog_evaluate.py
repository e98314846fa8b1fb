"rlgen.lapdog.evaluate: what a checkpoint is, how it wants to be asked, which stories it gets, its scores against a run's own, and the lines for what goes wrong."
import json
from dataclasses import asdict

import pytest
import torch

from helpers import line_of
from rlgen.cli import main
from rlgen.core import jsonl, read_jsonl
from rlgen.lapdog.data import as_rows
from rlgen.lapdog.evaluate import DOCUMENTS, evaluate, find_parts, load_asked, params_of, which_documents
from rlgen.lapdog.models import write_texts
from rlgen.lapdog.reader import build_reader
from rlgen.lapdog.report import METRICS
from rlgen.lapdog.retriever import build_encoder
from rlgen.lapdog.run import graded
from rlgen.lapdog.setup import Params, Problem, world_problem
from rlgen.lm import save_lm, word_tokenizer
from rlgen.worlds import lapdog as world

SMALL = dict(num_test=6, corpora=2, generation_max_length=5)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    "A folder with checkpoint/, other/ (an encoder), talks.jsonl and stories.jsonl; replies depend on the story."
    there, tok = tmp_path_factory.mktemp("made"), word_tokenizer([*world.vocabulary(), "dialog with R's <extra_id_0> R: story title: story:"])
    reader = build_reader(tok, width=16, layers=1)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(3)
        for q in reader.model.parameters(): q.add_(0.5 * torch.randn_like(q))
    save_lm(reader, there / "checkpoint" / "reader")
    save_lm(build_encoder(tok, width=16, seed=1), there / "checkpoint" / "retriever")
    save_lm(build_encoder(tok, width=16, seed=2), there / "other")
    problem = world_problem(Params(**SMALL))
    (there / "talks.jsonl").write_text(jsonl(as_rows(problem.test)))
    (there / "stories.jsonl").write_text(jsonl(as_rows(problem.stories["test"])))
    return there


def asked(made, **more):
    return dict(checkpoint=str(made / "checkpoint"), data=str(made / "talks.jsonl"), passages=str(made / "stories.jsonl"), given=SMALL) | more


def means(found) -> dict: return {r["metric"]: r["mean"] for r in found["table"]}


def test_checkpoints_are_folders_or_names(made):
    whole = made / "checkpoint"
    assert find_parts(str(whole)) == (str(whole / "reader"), str(whole / "retriever")) and find_parts(str(whole / "reader")) == (str(whole / "reader"), "")
    assert find_parts(str(whole), str(made / "other"))[1] == str(made / "other") and find_parts("t5-base") == ("t5-base", "")
    assert "holds no reader/" in line_of(find_parts, str(made))


def test_a_checkpoint_is_asked_as_its_run_was(tmp_path):
    step = tmp_path / "run" / "models" / "joint-grpo-0" / "step-50"
    step.mkdir(parents=True)
    (tmp_path / "run" / "params.yaml").write_text("run: lapdog\nn_context: 3\nretriever_temperature: 0.8\nfields: {question: q}\nlr: 7\nof_another_time: 1\n")
    p = params_of(str(step), dict(n_context=2))
    assert (p.n_context, p.retriever_temperature) == (2, 0.8) and p.fields == {} and p.lr == Params().lr
    (step / "params.yaml").write_text("run: pargs\nn_context: 9\n")
    assert params_of(str(step)).n_context == 1, "another system's folder ends the search"
    assert "did you mean 'n_context'" in line_of(params_of, "", dict(n_contxt=1)) and "must be at least 1" in line_of(params_of, "", dict(n_context=0))


@pytest.mark.parametrize("given, expected", [
    (("", "", "s.jsonl"), "say how with --documents"), (("dense", "", "s.jsonl"), "holds no retriever"), (("oracle", "enc", ""), "no stories are given"),
    (("", "enc", ""), "no stories are given"), (("bm52", "", "s"), "did you mean 'bm25'"),
])
def test_what_cannot_be_done_is_one_line(given, expected):
    assert expected in line_of(which_documents, *given)


def test_what_is_there_decides_where_nothing_is_said():
    assert [which_documents(*g) for g in (("", "enc", "s"), ("", "", ""), ("none", "enc", ""), ("bm25", "", "s"))] == ["dense", "none", "none", "bm25"]


@pytest.mark.parametrize("how, method", [("dense", "stage1"), ("bm25", "bm25"), ("random", "random-docs"), ("oracle", "oracle-docs"), ("none", "closed-book")])
def test_scores_are_those_of_a_runs_row(made, tmp_path, how, method):
    "The same replies and the same stories as the stage that writes a row's texts."
    p = Params(**SMALL)
    problem = world_problem(p)
    write_texts(tmp_path, None, p, problem, method, 0, str(made / "checkpoint" / "reader"), str(made / "checkpoint" / "retriever") if how == "dense" else "")
    rows, totals, _ = graded(p, problem, read_jsonl(tmp_path / "texts.jsonl"))
    found = evaluate(str(made / "checkpoint"), "world", documents=how, given=SMALL, out=str(tmp_path / "said.jsonl"))
    written = read_jsonl(tmp_path / "said.jsonl")
    assert [(w["item"], w["prediction"], w["retrieved"], w["reference"]) for w in written] == [(r["item"], r["reply"], r["retrieved"], list(d.answers)) for r, d in zip(rows, problem.test)]
    assert means(found) == {k: pytest.approx(sum(r[k] for r in rows) / 6, abs=1e-4) for k in METRICS if k in rows[0]} and found["more"]["corpus_bleu"] == totals["corpus_bleu"]
    assert ("mrr" in means(found)) == (how != "none") and {"facts", "persona"} <= set(means(found))


def test_a_file_is_scored_like_the_world_it_was_written_from(made):
    "Only the measures that files can't have are gone."
    filed, whole = evaluate(**asked(made)), evaluate(str(made / "checkpoint"), "world", given=SMALL)
    assert means(filed) == {k: v for k, v in means(whole).items() if k not in ("facts", "persona")} and filed["more"] == whole["more"]


def test_another_retriever_finds_other_stories(made, tmp_path):
    for name in ("checkpoint/retriever", "other"): evaluate(**asked(made, retriever=str(made / name), out=str(tmp_path / f"{name[-5:]}.jsonl")))
    own, other = (read_jsonl(tmp_path / f"{n}.jsonl") for n in ("iever", "other"))
    assert [r["retrieved"] for r in own] != [r["retrieved"] for r in other] and len(own[0]["retrieved"]) == 5


def test_the_query_side_alone_was_trained(made, tmp_path):
    "Stories are read by the encoder that training began with, which the run's parameters name."
    side = dict(given=SMALL | dict(retriever_side="query", retriever_model=str(made / "other")))
    for name, more in (("both", {}), ("query", side), ("same", dict(given=side["given"] | dict(retriever_model=str(made / "checkpoint" / "retriever"))))): evaluate(**asked(made, out=str(tmp_path / f"{name}.jsonl")) | more)
    both, query, same = ([r["retrieved"] for r in read_jsonl(tmp_path / f"{n}.jsonl")] for n in ("both", "query", "same"))
    assert both == same != query


def test_columns_may_have_other_names(made, tmp_path):
    rows = [{"q": r["question"], "a": r["answers"], "corpus": r["corpus"]} for r in read_jsonl(made / "talks.jsonl")]
    (tmp_path / "mine.jsonl").write_text(jsonl(rows))
    found = evaluate(**asked(made, data=str(tmp_path / "mine.jsonl"), given=SMALL | dict(fields=dict(question="q", answers="a"))))
    assert "mrr" not in means(found) and means(found)["f1"] == means(evaluate(**asked(made)))["f1"]


def test_wrong_data_is_one_line_before_a_model_is_loaded(made, tmp_path, monkeypatch):
    def never(*given): raise AssertionError("loaded")
    monkeypatch.setattr("rlgen.lapdog.evaluate.load_reader", never)
    empty, odd = tmp_path / "empty.jsonl", tmp_path / "odd.jsonl"
    empty.write_text('{"question": "Q: hello ?", "answers": []}\n')
    odd.write_text('{"question": "Q: hello ?", "answers": ["hi ."], "corpus": "nowhere"}\n')
    assert "empty.jsonl:1" in line_of(evaluate, **asked(made, data=str(empty))) and "no story in its corpus 'nowhere'" in line_of(evaluate, **asked(made, data=str(odd)))
    assert "exists already" in line_of(evaluate, **asked(made, out=str(odd))) and "stories of its own" in line_of(evaluate, **asked(made, data="world"))
    talks = [r | dict(gold=[]) for r in read_jsonl(made / "talks.jsonl")]
    (tmp_path / "blind.jsonl").write_text(jsonl(talks))
    assert "no oracle" in line_of(evaluate, **asked(made, data=str(tmp_path / "blind.jsonl"), documents="oracle"))


def test_a_decoder_is_no_reader(made, tmp_path):
    from rlgen.lm import build_lm

    save_lm(build_lm(word_tokenizer(["a <extra_id_0>"]), width=16, layers=1), tmp_path / "causal")
    assert "encoder-decoder" in line_of(evaluate, str(tmp_path / "causal"), str(made / "talks.jsonl"))


def test_the_command_prints_every_metric(made, tmp_path, capsys):
    words = ["evaluate", "lapdog", "--checkpoint", str(made / "checkpoint"), "--data", str(made / "talks.jsonl"), "--passages", str(made / "stories.jsonl"), "-y", json.dumps(SMALL)]
    assert main([*words, "--out", str(tmp_path / "said.jsonl")]) == 0
    told = capsys.readouterr().out
    assert all(k in told for k in ("f1", "bleu", "rougeL", "rouge1", "rouge2", "length_ratio", "recall_at_1", "recall_at_5", "mrr", "corpus_bleu", "distinct_2", "low", "high")) and "said.jsonl" in told
    assert main(["metrics", str(tmp_path / "said.jsonl")]) == 0 and json.loads(capsys.readouterr().out)["n"] == 6


@pytest.mark.parametrize("words, expected", [
    ("evaluate lapdog", "expected --checkpoint, --data"), ("evaluate pargs --checkpoint a --data b", "has no evaluate yet"), ("evaluate lapdgo --checkpoint a --data b", "did you mean 'lapdog'"),
    ("evaluate lapdog --checkpoint /nowhere/at/all --data world --documents none", "no such model folder"), ("evaluate lapdog --checkpoint tests --data world", "holds no reader/"),
    ("evaluate lapdog --checkpoint zoo/none --data world -p n_contxt 2", "did you mean 'n_context'"),
])
def test_mistakes_at_the_keyboard(words, expected, capsys):
    assert main(words.split()) == 2
    told = capsys.readouterr().err
    assert expected in told and told.count("\n") == 1


def test_every_way_of_a_run_has_a_name_here():
    from rlgen.lapdog.setup import ROWS

    assert {how for _, _, how in ROWS.values()} == set(DOCUMENTS.values()) and set(asdict(Params())) >= {"retriever_side", "n_context"}
    assert isinstance(load_asked("world/mute", "", "train", Params(num_test=2, corpora=1)), Problem)
