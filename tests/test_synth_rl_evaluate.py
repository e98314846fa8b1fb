"rlgen.synth_rl.evaluate: how a checkpoint wants to be asked, its score against a run's own, and the lines for what goes wrong."
import json
from pathlib import Path

import pytest

from helpers import line_of
from rlgen.cli import main
from rlgen.core import jsonl, read_jsonl
from rlgen.lm import load_lm
from rlgen.synth_rl.answers import correct
from rlgen.synth_rl.evaluate import ASKED, evaluate, load_asked, params_of, task_of
from rlgen.synth_rl.models import answers_of, examine
from rlgen.synth_rl.setup import Params, load_problem
from rlgen.worlds.synth_rl import make_tasks


def rows_file(path: Path, rows: list[dict]) -> str:
    path.write_text(jsonl(rows))
    return str(path)


@pytest.fixture
def moods(tmp_path):
    "A run's folder about a file of moods, and the file."
    data = tmp_path / "moods"
    data.mkdir()
    for split in ("train", "test"): rows_file(data / f"{split}.jsonl", [dict(Input=f"{split} text {i}", Output=["glad", "sad", "calm"][i % 3]) for i in range(30)])
    run = tmp_path / "run"
    (run / "models" / "full-0").mkdir(parents=True)
    (run / "params.yaml").write_text(f"run: synth_rl\ndataset_path: {data}\ntask_instruction: Name the mood.\nmax_completion_length: 7\nsteps: 3\n")
    return run / "models" / "full-0", data


def test_scores_are_a_runs_own(tmp_path):
    p = Params(num_test=60)
    problem = load_problem(p)
    examine(tmp_path, print, p, problem, "base", "zoo/moves", 0)
    found = evaluate("zoo/moves", "world", out=str(tmp_path / "said.jsonl"), given=dict(num_test=60))
    assert read_jsonl(tmp_path / "said.jsonl") == read_jsonl(tmp_path / "answers.jsonl")
    right = [r["correct"] for r in read_jsonl(tmp_path / "answers.jsonl")]
    assert found["table"][0]["mean"] == pytest.approx(sum(right) / 60, abs=1e-4) and found["table"][0]["n"] == 60 and 0 < found["more"]["readable"] <= 1
    assert {k for k in found["more"] if k.startswith("accuracy")} == {f"accuracy, level {n}" for n in range(1, 8)} and found["files"] == [str(tmp_path / "said.jsonl")]


def test_the_runs_parameters_are_found(moods):
    checkpoint, data = moods
    p = params_of(str(checkpoint))
    assert (p.dataset_path, p.max_completion_length, p.task_instruction, p.steps) == (str(data), 7, "Name the mood.", Params().steps)
    assert params_of(str(checkpoint), dict(max_completion_length=9)).max_completion_length == 9 and set(ASKED) <= set(vars(Params()))
    assert "did you mean 'steps'" in line_of(params_of, "zoo/moves", dict(stepps=3))


def test_labels_are_those_of_training(moods, tmp_path):
    checkpoint, data = moods
    one_sided = rows_file(tmp_path / "mine.jsonl", [dict(Input=f"mine {i}", Output="sad") for i in range(5)])
    task = task_of(params_of(str(checkpoint)), one_sided, "train")
    assert set(task.labels) == {"glad", "sad", "calm"} and len(load_asked(params_of(str(checkpoint)), one_sided, "train").test) == 5
    assert "furious" in line_of(load_asked, params_of(str(checkpoint)), rows_file(tmp_path / "odd.jsonl", [dict(Input="x", Output="furious")]), "train")


def test_somebodys_own_questions(tmp_path):
    tasks = make_tasks("test", 40, 5, (1, 2))
    mine = rows_file(tmp_path / "mine.jsonl", [dict(place=t.input, square=t.answer) for t in tasks])
    given = dict(task_instruction="Where?", task_kind="number", prompt_template="{input}", fields=dict(input="place", output="square"), max_completion_length=20)
    found = evaluate("zoo/moves", mine, split="train", given=given)
    lm, problem = load_lm("zoo/moves"), load_problem(Params(num_test=2))
    said = answers_of(Params(), lm, problem.task, tasks)
    right = sum(correct(problem.task, s, t.answer) for s, t in zip(said, tasks)) / 40
    assert found["table"][0]["mean"] == pytest.approx(right, abs=1e-4) and right > 0.5


def test_known_tasks_need_no_words(tmp_path):
    mine = rows_file(tmp_path / "mine.jsonl", [dict(question="2 and 3?", answer="It is five. #### 5")])
    assert load_asked(Params(task_name="gsm8k"), mine, "train").task.kind == "number"


@pytest.mark.parametrize("given, word", [(dict(data="no.jsonl", split="train", given=dict(task_instruction="Go.")), "no such file"), (dict(data="mine.jsonl", split="train"), "task_instruction"), (dict(data="world", given=dict(max_completion_length=250)), "context"),
                                          (dict(checkpoint="zoo/tales", data="world"), "encoder-decoder"), (dict(checkpoint="zoo/mooves", data="world"), "no such model"), (dict(data="world", out="mine.jsonl"), "exists already")])
def test_one_line_for(tmp_path, monkeypatch, given, word):
    rows_file(tmp_path / "mine.jsonl", [dict(Input="x", Output="y")])
    given = {k: str(tmp_path / v) if str(v).endswith(".jsonl") else v for k, v in given.items()}
    assert word in line_of(evaluate, **dict(checkpoint="zoo/moves", split="test") | given)


def test_at_the_command_line(tmp_path, capsys):
    assert not main(["evaluate", "synth_rl", "--checkpoint", "zoo/moves", "--data", "world", "-p", "num_test", "20", "--out", str(tmp_path / "said.jsonl")])
    shown = capsys.readouterr().out
    assert "accuracy" in shown and "readable" in shown and "said.jsonl" in shown and len([json.loads(line) for line in (tmp_path / "said.jsonl").read_text().splitlines()]) == 20
