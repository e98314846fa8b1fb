"""The command line's small verbs, in process."""
import json

from pathlib import Path

import pytest

from rlgen.cli import main
from rlgen.data import load_preferences, load_rows

SMALL = json.dumps(dict(num_pairs=6, num_held_out=3, num_test=2))


def scored(tmp_path, capsys, *rows) -> dict:
    path = tmp_path / "pred.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    assert main(["metrics", str(path)]) == 0
    return json.loads(capsys.readouterr().out)


def test_metrics_of_one_row_have_no_interval_and_no_crash(tmp_path, capsys):
    found = scored(tmp_path, capsys, dict(prediction="my boss sold the car", reference="my boss sold the lamp"))
    assert found["rouge1"] == dict(mean=0.8, low=None, high=None) and found["n"] == 1


def test_metrics_take_completions_and_several_references(tmp_path, capsys):
    found = scored(tmp_path, capsys, dict(completion="yes", reference=["no", "yes"]), dict(completion="a b", reference="a b"))
    assert found["f1"]["mean"] == 1.0


@pytest.mark.parametrize("words, expected", [
    (["metrics", "nowhere.jsonl"], "no such file"),
    (["run", "parg"], "did you mean 'pargs'?"),
    (["run", "lapdog"], "not in this version"),
    (["run", "pargs", "-f", "params/pargs/none.yaml"], "no such parameter file"),
    (["run", "pargs", "-y", "[1, 2]"], "expected YAML like"),
    (["results", "pargs", "-p", "alpah", "1"], "did you mean 'alpha'?"),
    (["preprocess", "pargs", "out", "-p", "alpah", "1"], "did you mean 'alpha'?"),
    (["preprocess", "lapdog", "out"], "not in this version"),
    (["preprocess", "pargs", "out", "-p", "data", "nowhere.jsonl"], "nowhere.jsonl"),
    (["preprocess", "pargs", "out", "-p", "data", "worldly.jsonl"], "worldly.jsonl"),
    (["preprocess", "pargs", "out", "-y", "seeds: []"], "seeds is empty"),
    (["preprocess", "pargs", "tests"], "exists already"),
    (["metrics", "tests"], "holds no metrics.json"),
])
def test_mistakes_are_one_line(words, expected, capsys, monkeypatch):
    monkeypatch.chdir(Path(__file__).resolve().parent.parent)
    assert main(words) == 2
    told = capsys.readouterr().err
    assert expected in told and told.count("\n") == 1


def test_rows_without_a_reference_are_named(tmp_path, capsys):
    (tmp_path / "p.jsonl").write_text('{"prediction": "x"}\n')
    assert main(["metrics", str(tmp_path / "p.jsonl")]) == 2 and "row 1" in capsys.readouterr().err


def test_metrics_of_a_folder_that_is_no_finished_run(tmp_path, capsys):
    for text in ("[]", "{}", "{broken", '{"run": "pargs"}', '{"run": "parg"}'):
        (tmp_path / "metrics.json").write_text(text)
        assert main(["metrics", str(tmp_path)]) == 2
        assert capsys.readouterr().err.count("\n") == 1, text


def written(tmp_path, capsys, *words) -> dict:
    "What `rlgen preprocess` says it wrote."
    assert main(["preprocess", "pargs", str(tmp_path / "out"), *words]) == 0
    return json.loads(capsys.readouterr().out)


def test_preprocess_writes_pairs_that_a_run_can_read(tmp_path, capsys):
    from rlgen.pargs.setup import Params, load_problem

    assert written(tmp_path, capsys, "-y", SMALL) == dict(train=6, test=3)
    problem = load_problem(Params(num_pairs=6, num_held_out=3, num_test=2))
    for split, rows in (("train", problem.guide(0)), ("test", problem.held_out)):
        assert [(r.prompt, r.chosen, r.rejected) for r in load_preferences(str(tmp_path / "out"), split)[0]] == [(r.prompt, r.chosen, r.rejected) for r in rows]
    before = sorted(p.stat().st_mtime_ns for p in tmp_path.rglob("*"))
    assert main(["preprocess", "pargs", str(tmp_path / "out"), "-y", SMALL]) == 2
    told = capsys.readouterr().err
    assert "exists already" in told and told.count("\n") == 1 and before == sorted(p.stat().st_mtime_ns for p in tmp_path.rglob("*"))


def test_preprocess_writes_prefixes(tmp_path, capsys):
    said = written(tmp_path, capsys, "--partial", "-p", "num_pairs", "6", "-p", "num_held_out", "3", "-p", "num_test", "2")
    read, report = load_preferences(str(tmp_path / "out"), "train")
    assert said["train"] > 30 and len(read) == report["kept"] <= said["train"]
    rows = load_rows(str(tmp_path / "out"), "train")
    for r in (rows[i] for i in range(len(rows))):
        assert r["chosen"] and r["rejected"] and r["chosen"] != r["rejected"]
        assert max(len(r["chosen"].split()), len(r["rejected"].split())) in (r["length"], r["length"] - 1), "equal lengths; end-of-text has no text"


@pytest.mark.parametrize("arch", ("gpt2", "llama"))
def test_prefixes_of_dialogues_keep_their_turns(arch, tmp_path, capsys):
    "Pieces smaller than words, some of them only a space; the data set is one that a run can name."
    from tiny_models import make_model

    base = make_model(arch, tmp_path / "base")
    talk = [dict(prompt=f"\n\nHuman: question {i} ?\n\nAssistant: what ?\n\nHuman: {i} apples\n\nAssistant:", chosen=f" Zoë ran {i} times .", rejected=f" no .  quite {i}") for i in range(120)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(r) + "\n" for r in talk))
    said = written(tmp_path, capsys, "--partial", "-p", "data", str(tmp_path / "pairs.jsonl"), "-p", "base_model", str(base), "-y", SMALL)
    assert set(said) == {"train", "grade", "test"}
    read, _ = load_preferences(str(tmp_path / "out"), "train")
    assert read and all(len(r.turns) == len(next(iter(load_preferences(talk)[0])).turns) for r in read)
    assert {r.prompt for r in read} <= {r["prompt"] for r in talk}
