"What is looked up before work begins, and after it."
import pytest
from helpers import line_of

from rlgen.lookup import look_for, model_config, read_scores, run_of, split_for
from rlgen.record import csv_text


def test_models_are_looked_for_in_order():
    look_for()
    look_for("", "zoo/posts", "", chats=[("", ""), ("a-server's-model", "http://127.0.0.1:1/v1"), ("zoo/moves", "")])
    assert line_of(look_for, "zoo/posts", "zoo/one", "zoo/two") == "zoo/one: no such model folder"
    assert line_of(look_for, "zoo/posts", chats=[("zoo/judge", "")]).startswith("zoo/judge")
    assert model_config("zoo/tales").is_encoder_decoder and not model_config("zoo/posts").is_encoder_decoder


def test_a_folder_that_is_no_model_is_told(tmp_path):
    assert "no config.json" in line_of(look_for, str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    assert "doesn't load as a model" in line_of(look_for, str(tmp_path))


def test_the_nearest_run_counts(tmp_path):
    model = tmp_path / "outer" / "inner" / "models" / "x"
    model.mkdir(parents=True)
    assert run_of(str(model), "pargs") == {}
    (tmp_path / "outer" / "params.yaml").write_text("run: pargs\nalpha: 2\n")
    found = run_of(str(model), "pargs")
    assert (found["alpha"], found["run_dir"], "run" in found) == (2, (tmp_path / "outer").resolve(), False)
    (tmp_path / "outer" / "inner" / "params.yaml").write_text("run: lapdog\nn_context: 3\n")
    assert run_of(str(model), "pargs") == {} and run_of(str(model), "lapdog")["n_context"] == 3


@pytest.mark.parametrize("item", ["plain", "two\nlines", 'a "quoted", cell', "line\u2028separator", ""])
def test_scores_come_back_as_they_were_written(tmp_path, item):
    rows = [dict(method="a", seed=0, item=item or "x", f1=0.25), dict(method="b", seed=1, item=item or "x", f1=1.0)]
    (tmp_path / "scores.csv").write_text(csv_text(rows), newline="")
    assert read_scores(tmp_path, item=str) == rows


def test_scores_that_are_none(tmp_path):
    assert "finished run" in line_of(read_scores, tmp_path)
    (tmp_path / "scores.csv").write_text("method,seed,item,f1\na,0,0,0.5\nb,0,0,half\n")
    assert "row 2" in line_of(read_scores, tmp_path, item=int)


def test_the_split_that_nobody_named(tmp_path, monkeypatch):
    (tmp_path / "mine.csv").write_text("x")
    monkeypatch.chdir(tmp_path)
    assert (split_for("mine.csv", ""), split_for(str(tmp_path), ""), split_for("mine.csv", "valid"), split_for("some/hub-id", "")) == ("train", "test", "valid", "test")
