"""The command line's small verbs, in process."""
import json

import pytest

from rlgen.cli import main


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
])
def test_mistakes_are_one_line(words, expected, capsys):
    assert main(words) == 2
    told = capsys.readouterr().err
    assert expected in told and told.count("\n") == 1


def test_rows_without_a_reference_are_named(tmp_path, capsys):
    (tmp_path / "p.jsonl").write_text('{"prediction": "x"}\n')
    assert main(["metrics", str(tmp_path / "p.jsonl")]) == 2 and "row 1" in capsys.readouterr().err
