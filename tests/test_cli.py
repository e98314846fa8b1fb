"""The command line's small verbs, in process."""
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import environment, line_of

from rlgen.cli import main
from rlgen.core import RlgenError, atomic_write, settings
from rlgen.data import load_preferences, load_rows
from rlgen.pargs.setup import Params

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
    assert found["f1"]["mean"] == found["rouge1"]["mean"] == found["length_ratio"] == 1.0, "of several the best one counts"


@pytest.mark.parametrize("words, expected", [
    (["metrics", "nowhere.jsonl"], "no such file"),
    (["run", "parg"], "did you mean 'pargs'?"),
    (["run", "genalign", "-p", "credit", "per_smaple"], "per_sample"),
    (["run", "pargs", "-f", "params/pargs/none.yaml"], "no such parameter file"),
    (["run", "pargs", "-y", "[1, 2]"], "expected YAML like"),
    (["results", "pargs", "-p", "alpah", "1"], "did you mean 'alpha'?"),
    (["results", "pargs", "-p", "params_name", ".."], "becomes a folder's name"),
    (["results", "pargs", "-p", "params_name", "/tmp/elsewhere"], "becomes a folder's name"),
    (["results", "pargs", "-p", "params_name", ""], "params_name"),
    (["run", "pargs", "-p", "params_name", "../x"], "becomes a folder's name"),
    (["preprocess", "pargs", "out", "-p", "alpah", "1"], "did you mean 'alpha'?"),
    (["preprocess", "genalign", "out"], "has no preprocess"),
    (["preprocess", "lapdog", "out"], "has no preprocess"),
    (["preprocess", "pargs", "out", "-p", "data", "nowhere.jsonl"], "nowhere.jsonl"),
    (["preprocess", "pargs", "out", "-p", "data", "worldly.jsonl"], "worldly.jsonl"),
    (["preprocess", "pargs", "out", "-y", "seeds: []"], "seeds is empty"),
    (["preprocess", "pargs", "tests"], "exists already"),
    (["preprocess", "parg", "out"], "did you mean 'pargs'?"),
    (["preprocess", "pargs"], "expected OUT"),
    (["preprocess", "pargs", "out", "--output", "other"], "expected OUT, each once"),
    (["preprocess", "pargs", "out", "--layout", "rows", "--seed", "1"], "doesn't take --layout, --seed"),
    (["preprocess", "pargs", "out", "--input", "a.jsonl"], "doesn't take --input"),
    (["preprocess", "rest_pg", "out"], "expected --input FILE --output FOLDER"),
    (["preprocess", "rest_pg", "--input", "a.jsonl"], "expected --input FILE --output FOLDER"),
    (["preprocess", "rest_pg", "--input", "a.jsonl", "--output", "out", "-p", "x", "1", "--partial"], "doesn't take --partial, -p"),
    (["preprocess", "rest_pg", "--input", "nowhere.jsonl", "--output", "out"], "no such file"),
    (["preprocess", "rest_pg", "--input", "a.jsonl", "--output", "tests"], "exists already"),
    (["preprocess", "rest_pg", "--input", "a.jsonl", "--output", "out", "--fields", "title"], "expected NAME=COLUMN"),
    (["preprocess", "rest_pg", "--input", "a.jsonl", "--output", "out", "--fields", "x="], "expected NAME=COLUMN"),
    (["preprocess", "rest_pg", "--input", "a.jsonl", "--output", "out", "--profile-size", "-1"], "profile_size = -1"),
    (["metrics", "tests"], "holds no metrics.json"),
])
def test_mistakes_are_one_line(words, expected, capsys, monkeypatch):
    monkeypatch.chdir(Path(__file__).resolve().parent.parent)
    assert main(words) == 2
    told = capsys.readouterr().err
    assert expected in told and told.count("\n") == 1


def test_references_that_are_no_texts_are_named(tmp_path, capsys):
    for odd in (["yes", 3], 3, []):
        (tmp_path / "p.jsonl").write_text(json.dumps(dict(prediction="x", reference=odd)) + "\n")
        assert main(["metrics", str(tmp_path / "p.jsonl")]) == 2 and "row 1 needs" in capsys.readouterr().err


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


def test_preprocess_finds_its_folder_behind_options(tmp_path, capsys):
    assert main(["preprocess", "pargs", "-y", SMALL, str(tmp_path / "out")]) == 0 and json.loads(capsys.readouterr().out) == dict(train=6, test=3)
    with pytest.raises(SystemExit): main(["preprocess", "pargs", "-y", SMALL, str(tmp_path / "a"), "b"])
    with pytest.raises(SystemExit): main(["preprocess", "pargs", "out", "--lay"])


def diary(path, times=True) -> Path:
    "Ten people's five days, a row each."
    rows = [dict(who=f"person {u}", title=f"Day {i}", text=f"{u} saw {i} lamps; größer {u * 7 + i} 灯.") | (dict(year=i) if times else {}) for u in range(10) for i in range(5)]
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), encoding="utf-8")
    return path


def test_preprocess_makes_examples_of_a_file(tmp_path, capsys):
    from rlgen.rest_pg.data import load_examples

    words = ["preprocess", "rest_pg", "--input", str(diary(tmp_path / "diary.jsonl")), "--layout", "passages", "--gap", "0", "--profile-size", "3"]
    assert main([*words, "--output", str(tmp_path / "out"), "--fields", "user_id=who", "--shares", "0.6", "0.2", "0.2"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == json.loads((tmp_path / "out" / "report.json").read_text()) and told["overlap"]["train/test"] == dict(users=0, items=0, targets=0)
    parts = {name: load_examples(tmp_path / "out", name)[0] for name in ("train", "valid", "test")}
    assert {k: len(v) for k, v in parts.items()} == dict(train=30, valid=10, test=10) and all(len(e.P) == 3 and "größer" in e.y and e.y not in e.P for v in parts.values() for e in v)
    assert main([*words, str(tmp_path / "later"), "--split", "time", "--fields", "user_id=who", "time=year"]) == 0
    assert json.loads(capsys.readouterr().out)["parts"]["test"] == dict(examples=10, users=10, past_texts=3.0)


@pytest.mark.parametrize("options, expected", [
    (["--fields", "user_id=whom"], "diary.jsonl:1: no field 'whom' (did you mean 'who'?)"),
    (["--fields", "user=who"], "fields: no 'user' here, did you mean 'user_id'?"),
    (["--fields", "user_id=who", "--split", "time"], "50 undated"),
    (["--fields", "user_id=who", "--on-leak", "stop"], "on_leak = 'stop'"),
    (["--fields", "user_id=who", "--prompt-words", "50"], "empty_y"),
    (["--fields", "user_id=who", "--layout", "passage"], "did you mean 'passages'?"),
])
def test_mistakes_with_a_file_are_one_line_and_leave_nothing(options, expected, tmp_path, capsys):
    words = ["preprocess", "rest_pg", "--input", str(diary(tmp_path / "diary.jsonl", times=False)), "--output", str(tmp_path / "out"), "--layout", "passages"]
    assert main([*words, *options]) == 2
    told = capsys.readouterr().err
    assert expected in told and told.count("\n") == 1 and [p.name for p in tmp_path.iterdir()] == ["diary.jsonl"]


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


@pytest.mark.parametrize("ending", (RlgenError("stopped"), KeyboardInterrupt()))
def test_former_results_survive_a_run_that_fails(ending, tmp_path, monkeypatch, capsys):
    "They come back, and what was begun stays beside them; a run that was killed before leaves no trace in the next."
    from rlgen import cli
    folder = tmp_path / "results" / "pargs" / "default"
    monkeypatch.setenv("RLGEN_RESULTS_DIR", str(tmp_path / "results"))
    settings.cache_clear()

    def run(algo, given):
        assert not folder.exists(), "the new run begins with an empty folder"
        atomic_write(folder / "run.ipynb", "half")
        if ending_now: raise ending_now
        atomic_write(folder / "metrics.json", json.dumps(dict(table=[])))
    monkeypatch.setattr(cli, "run_algo", run)
    for name in ("_readme_block", "make_summary"): monkeypatch.setattr(cli, name, lambda *a: None)
    atomic_write(folder / "metrics.json", "former")
    ending_now = ending
    with pytest.raises(type(ending)): cli.make_results("pargs", {})
    assert sorted(p.name for p in folder.parent.iterdir()) == ["default", "default.failed"] and (folder / "metrics.json").read_text() == "former" and (folder.parent / "default.failed" / "run.ipynb").is_file()
    assert "default.failed" in capsys.readouterr().err
    folder.rename(folder.parent / ".default.before")  # as a kill leaves it
    atomic_write(folder / "curves.csv", "begun")
    ending_now = None
    cli.make_results("pargs", {})
    assert [p.name for p in folder.parent.iterdir()] == ["default"] and sorted(p.name for p in folder.iterdir()) == ["metrics.json", "run.ipynb"]
    settings.cache_clear()


@pytest.mark.parametrize("code, said", (("raise SystemExit(3)", "exit code 3"), ("import os; os.kill(os.getpid(), 9)", "killed by signal 9")))
def test_a_part_that_fails_ends_the_others(code, said, tmp_path, monkeypatch):
    "At once, though an older one still works; and nobody is left behind."
    from rlgen import cli
    started, real = [], subprocess.Popen

    def popen(words, **kw):
        started.append(real([sys.executable, "-c", "import time; time.sleep(60)" if not started else code]))
        return started[-1]
    monkeypatch.setattr(cli.subprocess, "Popen", popen)
    begun = time.monotonic()
    assert said in line_of(cli._apart, "pargs", Params(), [dict(seeds=[s]) for s in range(3)], 2, tmp_path / "parts")
    assert len(started) == 2 and all(p.returncode is not None for p in started) and time.monotonic() - begun < 30


def test_a_mistake_in_the_data_is_told_once(tmp_path, monkeypatch, capsys):
    "Where a run's parts are processes of their own, none is started for data that can't be read."
    from rlgen import cli
    for k, v in environment(tmp_path, RLGEN_NUM_PROCESSES="2").items(): monkeypatch.setenv(k, v)
    settings.cache_clear()
    monkeypatch.setattr(cli.subprocess, "Popen", lambda *a, **k: pytest.fail("a process was started"))
    for algo, key in dict(pargs="data", rest_pg="train_path", lapdog="data", synth_rl="dataset_path", genalign="dataset_path").items():
        given = {key: f"{tmp_path}/nowhere.jsonl"} | dict(rest_pg=dict(val_path="b", test_path="c", reasoning_model="zoo/tales"), synth_rl=dict(task_instruction="Go.", model="zoo/moves", num_passages=0), lapdog=dict(passages=f"{tmp_path}/no.jsonl"), genalign=dict(base_model="zoo/drafts")).get(algo, {})
        assert main(["stages", algo, "-y", json.dumps(given)]) == 2
        lines = [line for line in capsys.readouterr().err.splitlines() if "no such file" in line]
        assert len(lines) == 1 and str(tmp_path) in lines[0], algo
    settings.cache_clear()
