"rlgen.genalign.evaluate: whose parameters a checkpoint has, its data sets against its beginning's, and the page that says so."
import csv
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers import line_of, working_in
from test_genalign_run import TINY, says, texts_file

from rlgen.cli import main
from rlgen.core import settings
from rlgen.genalign import evaluate as working
from rlgen.lookup import run_of
from rlgen.genalign.evaluate import LEFT_OUT, confusion_figure, evaluate, load_asked, params_of
from rlgen.genalign.report import report
from rlgen.genalign.run import stages
from rlgen.genalign.setup import Params
from rlgen.lm import load_lm, save_lm
from rlgen.worlds import genalign as world

GIVEN = TINY | dict(seeds=[0, 1], methods=["untrained", "golden-sft", "per-sample"], save_every=2, max_iterations=2, eval_sets=2, num_samples=3)
SECTIONS = ["## By class", "## The texts", "## Samples"]


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    "A tiny run with its report; this module works beside it."
    folder = tmp_path_factory.mktemp("done")
    with pytest.MonkeyPatch.context() as patch:
        begin = working_in(folder, patch, "genalign")
        run = begin(**GIVEN)
        out = stages(run)
        report(run, out)
        model = lambda row, seed=0: str(run.out_dir / "models" / f"{row}-{seed}")
        yield SimpleNamespace(folder=folder, begin=begin, run=run, out=out, model=model, step=str(run.out_dir / "checkpoints" / "per-sample-0" / "iteration-0002"))
    settings.cache_clear()


@pytest.fixture(scope="module")
def examined(done, tmp_path_factory):
    "The best model of the run, against the run's own test; with the confusion matrices that were drawn."
    place, drawn = tmp_path_factory.mktemp("examined") / "page", {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(working, "confusion_figure", lambda tables, labels: drawn.update(tables) or confusion_figure(tables, labels))
        found = evaluate(done.model("per-sample"), out=str(place))
    return SimpleNamespace(found=found, folder=place, page=(place / "report.md").read_text(), drawn=drawn)


@pytest.fixture
def quick(monkeypatch):
    "Pictures are written, but not painted."
    monkeypatch.setattr(working, "png", lambda figure: b"a picture")


def rows_of_file(path) -> list[dict]:
    with open(path, newline="") as f: return list(csv.DictReader(f))


def table_under(page: str, heading: str) -> list[dict]:
    "The first Markdown table behind a heading."
    lines = next(x for x in page.split(heading + "\n\n", 1)[1].split("\n\n") if x.startswith("|")).splitlines()
    head, _, *rows = ([c.strip() for c in x.strip("|").split("|")] for x in lines)
    assert all(len(r) == len(head) for r in rows)
    return [dict(zip(head, r)) for r in rows]


def mean_of(found, name): return next(r for r in found["table"] if r["metric"] == name)


def golden_file(path: Path, n=20, split="dev", columns=("text", "label"), more=()) -> str: return texts_file(path, [*world.golden(split, n), *more], columns)


# ---------------------------------------------------------------- whose parameters


def test_the_runs_parameters_are_found(done):
    own = {k: v for k, v in vars(done.run.params).items() if k not in LEFT_OUT}
    for checkpoint in (done.model("per-sample"), done.model("golden-sft", 1), done.step, str(Path(done.step).parent), str(done.run.out_dir)):
        p = params_of(checkpoint)
        assert run_of(checkpoint, "genalign")["run_dir"] == done.run.out_dir and {k: v for k, v in vars(p).items() if k not in LEFT_OUT} == own and (p.seeds, p.methods, p.params_name) == ([0], ["untrained"], "default")
    changed = params_of(done.step, dict(num_synthetic=8, temperature=0.5))
    assert changed == replace(params_of(done.step), num_synthetic=8, temperature=0.5)
    assert "did you mean 'num_synthetic'" in line_of(params_of, done.step, dict(num_syntetic=3)) and "must be at least" in line_of(params_of, done.step, dict(num_synthetic=1))


def test_a_model_of_nobodys_run_has_the_usual_ones(done, tmp_path):
    assert params_of("zoo/drafts") == params_of("some/hub-id") == replace(Params(), methods=["untrained"]) and run_of("zoo/drafts", "genalign") == run_of("some/hub-id", "genalign") == {}
    shutil.copytree(done.model("per-sample"), tmp_path / "model")
    (tmp_path / "params.yaml").write_text("run: lapdog\nnum_test: 3\n")
    assert run_of(str(tmp_path / "model"), "genalign") == {} and params_of(str(tmp_path / "model")).num_test == Params().num_test, "another system's run"


# ---------------------------------------------------------------- what is found


def test_it_says_what_the_run_said(done, examined):
    "The same texts, the same classifiers, the same answers: untrained is the baseline."
    rows = rows_of_file(examined.folder / "scores.csv")
    for name, row in (("baseline", "untrained"), ("checkpoint", "per-sample")):
        said = done.out.answers[row, 0]
        assert [(r["item"], float(r["golden_accuracy"]), float(r["golden_loss"])) for r in rows if r["method"] == name] == [(r["item"], r["right"], r["loss"]) for r in said]
        assert mean_of(examined.found, f"golden_accuracy, {name}")["mean"] == pytest.approx(sum(r["right"] for r in said) / 20, abs=1e-4)
        assert mean_of(examined.found, f"golden_loss, {name}")["mean"] == pytest.approx(sum(r["loss"] for r in said) / 20, abs=1e-4)
    texts = rows_of_file(examined.folder / "samples.csv")
    for name, row in (("baseline", "untrained"), ("checkpoint", "per-sample")): assert [(r["text"], r["label"]) for r in texts if r["generator"] == name] == [(t.text, t.label) for t in done.out.texts[row, 0]]
    assert examined.found["more"]["KL, nats a text"] == pytest.approx(done.out.kl["per-sample", 0], abs=1e-4) != 0


def test_the_difference_is_checkpoint_less_baseline(examined):
    metrics = [r["metric"] for r in examined.found["table"]]
    assert metrics == [f"{m}, {who}" for who in ("baseline", "checkpoint") for m in ("golden_accuracy", "golden_loss")] + [f"{m}, checkpoint − baseline" for m in ("golden_accuracy", "golden_loss")]
    for m in ("golden_accuracy", "golden_loss"):
        ahead, (ours, theirs) = mean_of(examined.found, f"{m}, checkpoint − baseline"), (mean_of(examined.found, f"{m}, {who}") for who in ("checkpoint", "baseline"))
        assert ahead["mean"] == pytest.approx(ours["mean"] - theirs["mean"], abs=2e-4) and ahead["low"] <= ahead["mean"] <= ahead["high"] and ahead["n"] == ours["n"] == 20
    assert mean_of(examined.found, "golden_loss, checkpoint − baseline")["mean"] != 0


def test_the_page_has_everything(examined):
    assert examined.page.startswith("# models/per-sample-0 against its beginning\n") and [x for x in examined.page.splitlines() if x.startswith("## ")] == SECTIONS
    assert "20 golden texts judge; 2 data sets of each generator" in examined.page
    pictures = re.findall(r"!\[(\w+)\]\((\w+\.png)\)", examined.page)
    assert [name for name, _ in pictures] == ["map", "confusion", "rounds"]
    assert all((examined.folder / file).stat().st_size > 3000 and (examined.folder / file).read_bytes()[:4] == b"\x89PNG" for _, file in pictures)
    assert {p.name for p in examined.folder.iterdir()} == {"report.md", "samples.csv", "scores.csv", *(f for _, f in pictures)} == {Path(f).name for f in examined.found["files"]}
    assert all(Path(f).is_file() for f in examined.found["files"])
    for r in examined.found["table"]: assert f"| {r['metric']} | {r['mean']:.3f} | {r['low']:.3f} to {r['high']:.3f} |" in examined.page
    shown = table_under(examined.page, "## Samples")
    texts = rows_of_file(examined.folder / "samples.csv")
    assert [(r["label"], r["baseline"], r["checkpoint"]) for r in shown] == [(texts[i]["label"], texts[i]["text"], texts[16 + i]["text"]) for i in range(3)] and len(texts) == 32
    about = {r[""]: r for r in table_under(examined.page, "## The texts")}
    assert set(about["texts"]) == {"", "baseline", "checkpoint"} and about["texts"]["checkpoint"] == "16" and {"labels right", "sd between sets", "macro-F1", "KL (nats)"} <= set(about)
    assert about["KL (nats)"]["baseline"] == ""


def test_classes_and_confusion_fit_together(done, examined):
    "Two data sets: confusion holds the sums, the table the means."
    by_class, labels, test = {r["class"]: r for r in table_under(examined.page, "## By class")}, done.out.problem.labels, done.out.problem.parts(0).test
    assert list(by_class) == list(labels) and list(examined.drawn) == ["baseline", "checkpoint"]
    assert {label: int(r["texts"]) for label, r in by_class.items()} == {label: sum(t.label == label for t in test) for label in labels}
    for name, table in examined.drawn.items():
        assert [sum(row) for row in table] == [2 * int(by_class[label]["texts"]) for label in labels]
        assert sum(table[i][i] for i in range(2)) / 40 == pytest.approx(mean_of(examined.found, f"golden_accuracy, {name}")["mean"], abs=1e-4)
        for i, label in enumerate(labels): assert float(by_class[label][f"recall, {name}"]) == pytest.approx(table[i][i] / sum(table[i]), abs=1e-3)
        row = dict(baseline="untrained", checkpoint="per-sample")[name]
        for label in labels: assert float(by_class[label][f"precision, {name}"]) == pytest.approx(sum(s["classes"][label]["precision"] for s in done.out.sets[row, 0]) / 2, abs=1e-3)
        assert table == [[sum(s["confusion"][i][j] for s in done.out.sets[row, 0]) for j in range(2)] for i in range(2)]
        assert examined.found["more"][f"macro_f1, {name}"] == pytest.approx(sum(s["macro_f1"] for s in done.out.sets[row, 0]) / 2, abs=1e-4)


def test_confusion_is_drawn_as_shares():
    fig = confusion_figure(dict(one=[[3, 1], [0, 0]], two=[[0, 2], [5, 5]]), ["cross", "glad"])
    assert [[t.get_text() for t in ax.texts] for ax in fig.axes] == [["0.75", "0.25", "0.00", "0.00"], ["0.00", "1.00", "0.50", "0.50"]] and [ax.get_title() for ax in fig.axes] == ["one", "two"]
    assert [t.get_text() for t in fig.axes[0].get_yticklabels()] == ["cross", "glad"] == [t.get_text() for t in fig.axes[1].get_xticklabels()] and fig.axes[0].get_xlabel() == "guess"
    assert fig.axes[0].get_ylabel() == "right class"
    assert len(confusion_figure(dict(one=[[1] * 9] * 9), list("abcdefghi")).axes[0].texts) == 81


def test_twice_the_same(done, examined, tmp_path):
    again = evaluate(done.model("per-sample"), out=str(tmp_path / "page"))
    assert again["table"] == examined.found["table"] and again["more"] == examined.found["more"]
    assert {p.name: p.read_bytes() for p in (tmp_path / "page").iterdir()} == {p.name: p.read_bytes() for p in examined.folder.iterdir()}


def test_without_a_name_it_goes_to_the_results(done, quick):
    places = [Path(evaluate(done.step, given=dict(num_synthetic=8, eval_sets=1) | more)["files"][0]).parent for more in ({}, {}, dict(num_dev=9))]
    assert places[0] == places[1] != places[2] and places[0].parent == done.folder / "results" / "runs" / "genalign" and places[0].name.startswith("evaluate-")
    assert (places[0] / "report.md").read_text().startswith("# per-sample-0/iteration-0002 against")


# ---------------------------------------------------------------- which checkpoint


def small(checkpoint, place, **more): return evaluate(checkpoint, out=str(place), **dict(given=dict(num_synthetic=8, eval_sets=1, num_test=10)) | more)


def test_a_step_is_a_checkpoint_too(done, quick, tmp_path, monkeypatch):
    "Its row's rounds are drawn, of its own seed, with a cross at the best one."
    drawn = []
    monkeypatch.setattr(working, "curves_figure", lambda *args: drawn.append(args) or None)
    small(done.step, tmp_path / "a")
    small(done.model("per-sample", 1), tmp_path / "b")
    for (history, best), key in zip(drawn, (("per-sample", 0), ("per-sample", 1))):
        assert list(history) == [key] == list(best) and best[key] == done.out.best[key]
        assert [r["golden_loss"] for r in history[key]] == pytest.approx([r["golden_loss"] for r in done.out.history[key]], abs=1e-6) and len(history[key]) == 3
    assert done.out.history["per-sample", 0] != done.out.history["per-sample", 1]


@pytest.mark.parametrize("which", ["first round", "base model"])
def test_the_beginning_differs_from_itself_in_nothing(done, quick, tmp_path, which):
    found = small(str(Path(done.step).parent / "iteration-0000") if which == "first round" else "zoo/drafts", tmp_path / "page", given=dict(num_synthetic=8, eval_sets=1, num_test=10))
    assert {r["mean"] for r in found["table"] if "−" in r["metric"]} == {0} and found["more"]["KL, nats a text"] == 0
    rows = rows_of_file(tmp_path / "page" / "samples.csv")
    assert [r["text"] for r in rows[:8]] == [r["text"] for r in rows[8:]] and len(rows) == 16


def test_a_row_without_rounds_has_no_picture_of_them(done, quick, tmp_path):
    found = small(done.model("golden-sft"), tmp_path / "page")
    assert not (tmp_path / "page" / "rounds.png").exists() and "rounds.png" not in (tmp_path / "page" / "report.md").read_text() and found["more"]["KL, nats a text"] != 0


def test_a_run_that_was_not_reported_has_no_picture_of_rounds(done, quick, tmp_path, monkeypatch):
    shutil.copytree(done.run.out_dir, tmp_path / "run")
    (tmp_path / "run" / "curves.csv").unlink()
    small(str(tmp_path / "run" / "models" / "per-sample-0"), tmp_path / "page")
    assert "rounds.png" not in (tmp_path / "page" / "report.md").read_text()


def test_a_copy_elsewhere_needs_to_be_told(done, examined, quick, tmp_path):
    lm = load_lm(done.model("per-sample"))
    save_lm(lm, tmp_path / "model")
    given = {k: v for k, v in GIVEN.items() if k not in ("seeds", "methods")}
    found = evaluate(str(tmp_path / "model"), out=str(tmp_path / "page"), given=given)
    assert found["table"] == examined.found["table"] and not (tmp_path / "page" / "rounds.png").exists()


def test_examples_are_shown_where_the_run_showed_them(done, quick, tmp_path, monkeypatch):
    asked, real = [], working.compose
    monkeypatch.setattr(working, "compose", lambda *args: asked.append(args[4]) or real(*args))
    small(done.step, tmp_path / "a")
    small(done.step, tmp_path / "b", given=dict(num_synthetic=8, eval_sets=1, num_test=10, icl_training=True, num_icl=2))
    assert asked == ["untrained", "per-sample", "in-context", "per-sample"]


# ---------------------------------------------------------------- which texts judge


def test_somebodys_file_judges(done, examined, quick, tmp_path):
    "Also one whose columns have other names; what texts really are is then unknown."
    for name, columns in (("a", ("text", "label")), ("b", ("review", "mood"))):
        given = {} if name == "a" else dict(given=dict(text_column="review", label_column="mood"))
        found = evaluate(done.model("per-sample"), golden_file(tmp_path / f"{name}.csv", 14, "dev", columns), out=str(tmp_path / name), **given)
        assert {r["n"] for r in found["table"]} == {14} and "labels right" not in (page := (tmp_path / name / "report.md").read_text()) and "14 golden texts judge" in page
        assert found["more"]["KL, nats a text"] == examined.found["more"]["KL, nats a text"]
        assert (tmp_path / name / "samples.csv").read_bytes() == (examined.folder / "samples.csv").read_bytes(), "who judges changes nothing that is written"
    assert (tmp_path / "a" / "scores.csv").read_bytes() == (tmp_path / "b" / "scores.csv").read_bytes() != (examined.folder / "scores.csv").read_bytes()


def test_the_runs_own_test_from_a_file(done, examined, tmp_path):
    found = evaluate(done.model("per-sample"), golden_file(tmp_path / "test.csv", 20, "test"), out=str(tmp_path / "page"))
    assert found["table"] == examined.found["table"] and (tmp_path / "page" / "confusion.png").read_bytes() == (examined.folder / "confusion.png").read_bytes()


def test_a_part_of_a_folder_judges(done, tmp_path):
    (tmp_path / "data").mkdir()
    for split, n in (("train", 6), ("test", 8), ("later", 10)): golden_file(tmp_path / "data" / f"{split}.csv", n)
    p = params_of(done.step)
    assert [len(load_asked(p, str(tmp_path / "data"), split).parts(0).test) for split in ("", "train", "later")] == [8, 6, 10]
    assert len(load_asked(p, str(tmp_path / "data" / "later.csv")).parts(0).test) == 10
    own, mine = load_asked(p), load_asked(p, str(tmp_path / "data"))
    assert own.parts(0).pool == mine.parts(0).pool and own.labels == mine.labels and own.known and not mine.known and load_asked(p, "world").parts(0) == own.parts(0)
    assert "no split 'valid'" in line_of(load_asked, p, str(tmp_path / "data"), "valid")


def test_one_class_judges_as_well(done, quick, tmp_path):
    found = small(done.step, tmp_path / "page", data=texts_file(tmp_path / "glad.csv", [r for r in world.golden("dev", 12) if r[1] == "glad"], ("text", "label")))
    assert {r["n"] for r in found["table"]} == {6} and {r["class"]: r["texts"] for r in table_under((tmp_path / "page" / "report.md").read_text(), "## By class")} == dict(cross="0", glad="6")


def test_one_text_judges_as_well(done, quick, tmp_path):
    "It has no interval."
    found = small(done.step, tmp_path / "page", data=golden_file(tmp_path / "one.csv", 1))
    assert {r["n"] for r in found["table"]} == {1} and {r["low"] for r in found["table"]} == {None} and "1 golden texts" in (tmp_path / "page" / "report.md").read_text()


def test_somebodys_run_brings_its_texts(done, quick, tmp_path):
    "A run about a file: its labels, its columns, its own test."
    mine = texts_file(tmp_path / "mine.csv", [(text, dict(cross="awful", glad="lovely")[label]) for text, label in world.golden("pool", 60)], ("review", "mood"))
    run = done.begin(**TINY | dict(dataset_path=mine, text_column="review", label_column="mood", base_model="zoo/drafts", methods=["golden-sft"], num_test=12))
    stages(run)
    checkpoint = str(run.out_dir / "models" / "golden-sft-0")
    found = evaluate(checkpoint, out=str(tmp_path / "page"))
    assert {r["n"] for r in found["table"]} == {12} and {r["label"] for r in rows_of_file(tmp_path / "page" / "samples.csv")} == {"awful", "lovely"}
    assert "did you mean 'lovely'" in line_of(evaluate, checkpoint, texts_file(tmp_path / "odd.csv", [("so warm", "lovly")], ("review", "mood")), out=str(tmp_path / "odd"))
    assert "no column 'review'" in line_of(evaluate, checkpoint, golden_file(tmp_path / "world.csv", 6), out=str(tmp_path / "odd"))


def test_the_world_judges_nobody_who_has_other_classes(done, tmp_path):
    "A generator that was taught awful and lovely isn't asked for cross and glad."
    mine = texts_file(tmp_path / "mine.csv", [(text, dict(cross="awful", glad="lovely")[label]) for text, label in world.golden("pool", 30)], ("text", "label"))
    p = params_of("zoo/drafts", dict(dataset_path=mine, base_model="zoo/drafts", num_icl=2))
    assert load_asked(p).labels == ("awful", "lovely") and "world" in line_of(load_asked, p, "world")


# ---------------------------------------------------------------- what goes wrong


@pytest.mark.parametrize("given, words", [
    (dict(data="odd.csv"), "the label 'puzzled' is not one of those trained on"), (dict(data="odd.csv"), "odd.csv:8"), (dict(data="nowhere.csv"), "nowhere.csv"),
    (dict(data="empty.csv"), "holds no rows"), (dict(data="odd.csv", split="test"), "a single file has no split 'test'"),
    (dict(checkpoint="nobody/nothing"), "nobody/nothing"), (dict(checkpoint="nowhere/model"), "nowhere/model"), (dict(checkpoint="zoo/draft"), "no such model"),
    (dict(checkpoint="zoo/tales"), "encoder-decoder"), (dict(given=dict(max_new_tokens=500)), "context"), (dict(given=dict(base_model="zoo/tales")), "encoder-decoder"),
    (dict(given=dict(temprature=1.0)), "did you mean 'temperature'"), (dict(out="taken"), "exists already"), (dict(out="odd.csv"), "exists already")])
def test_one_line_for(done, tmp_path, given, words):
    golden_file(tmp_path / "odd.csv", 6, more=[("an odd , strange lobby", "puzzled")])
    (tmp_path / "empty.csv").write_text("text,label\n")
    (tmp_path / "taken").mkdir()
    given = {k: str(tmp_path / v) if k in ("data", "out") else v for k, v in given.items()}
    assert words in line_of(evaluate, **dict(checkpoint=done.step, out=str(tmp_path / "page"), given=dict(num_synthetic=8, eval_sets=1)) | given)
    assert not (tmp_path / "page").exists() and not list((tmp_path / "taken").iterdir()), "nothing is written"


def test_wild_texts_keep_the_page_in_shape(done, quick, tmp_path, monkeypatch):
    "Bars and line breaks belong to texts; the page has a line for each sample."
    says(monkeypatch, lambda label, i: f"a {'rude' if label == 'cross' else 'warm'} | wild |\nlobby {i}")
    small(done.step, tmp_path / "page")
    shown, rows = table_under((tmp_path / "page" / "report.md").read_text(), "## Samples"), rows_of_file(tmp_path / "page" / "samples.csv")
    assert len(shown) == 3 and [r["label"] for r in shown] == ["cross", "glad", "cross"] and rows[0]["text"] == "a rude | wild |\nlobby 0" and len(rows) == 16


# ---------------------------------------------------------------- the command line


def test_at_the_command_line(done, quick, tmp_path, capsys):
    data = golden_file(tmp_path / "mine.csv", 12)
    assert main(["evaluate", "genalign", "--checkpoint", done.model("per-sample"), "--data", data, "--out", str(tmp_path / "page"), "-p", "num_synthetic", "8", "-p", "eval_sets", "1"]) == 0
    shown = capsys.readouterr().out
    (head, *rows), page = [x for x in shown.splitlines() if x.strip()], (tmp_path / "page" / "report.md").read_text()
    assert head.split() == ["mean", "low", "high", "n"] and [r[:33].strip() for r in rows[:2]] == ["golden_accuracy, baseline", "golden_loss, baseline"] and rows[0].split()[-1] == "12"
    assert "checkpoint − baseline" in shown and "KL, nats a text" in shown and "report.md" in shown
    assert "12 golden texts judge; 1 data sets" in page and json.dumps(page)
    assert main(["evaluate", "genalign", "--checkpoint", done.step, "--data", data, "--out", str(tmp_path / "page")]) == 2 and "exists already" in (said := capsys.readouterr().err)
    assert said.count("\n") == 1
    assert main(["evaluate", "genalign", "--data", data]) == 2 and "expected --checkpoint" in capsys.readouterr().err
    assert main(["evaluate", "genalign", "--checkpoint", done.step, "--documents", "dense"]) == 2 and "doesn't take --documents" in capsys.readouterr().err
