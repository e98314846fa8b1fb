"rlgen.genalign.report: tables from scores alone, data sets side by side, pictures of whatever there is, and what is written."
import json
from pathlib import Path
from statistics import fmean, pstdev

import numpy as np
import pytest
import torch

from rlgen.core import RlgenError, read_jsonl
from rlgen.genalign.classifier import word_means
from rlgen.genalign.data import Item, Parts
from rlgen.genalign.report import (
    COSTS, DESCRIBED, JUDGED, METRICS, NAMES, PANELS, accuracy_bars, axes_of, class_table, cost_rows, cost_table, curves_figure,
    data_rows, data_table, main_table, map_figure, read_tables, report, run_map, samples, score_rows, tables,
)
from rlgen.genalign.run import Outcome
from rlgen.genalign.setup import ALIGNED, METHODS, Params, Problem, rows_of, start
from rlgen.metrics import holds
from rlgen.record import csv_text, rounded
from rlgen.worlds import genalign as world

ROWS = rows_of(METHODS, [20])
LABELS = ("cross", "glad")
GOOD = dict(zip(ROWS, (0.5, 0.4, 0.7, 0.6, 0.5, 0.8, 0.9, 0.7, 1.0)))  # share of right answers; per-sample is the best but for the oracle


def a_problem(n=20) -> Problem:
    part = lambda split: [Item(t, label) for t, label in world.golden(split, n)]
    parts = Parts(part("pool"), part("dev"), part("test"))
    return Problem(lambda seed: parts, lambda seed: parts.pool, LABELS, dict(pool=n, dev=n, test=n), True)


def a_set(accuracy: float, loss: float, seed: int) -> dict:
    "What `judge` and `describe` say of a data set."
    classes = {label: dict(precision=accuracy - 0.1 * i, recall=accuracy + 0.05 * seed, f1=accuracy, support=10) for i, label in enumerate(LABELS)}
    data = {k: 0.1 * i + 0.01 * seed for i, k in enumerate(DESCRIBED)} | dict(n=30 + seed)
    return dict(accuracy=accuracy, loss=loss, macro_f1=accuracy - 0.01, ece=0.1 + seed, n=20, classes=classes, confusion=[[10, 0], [0, 10]], data=data)


def rounds(n=4, up=1) -> list[dict]:
    "A training whose golden loss is least in round 2."
    return [dict.fromkeys(PANELS, 0.1 * i * up) | dict(golden_loss=abs(i - 2) + 0.5, alarm="it is gamed" if i == 3 else "", parts=[]) for i in range(n)]


def an_outcome(seeds=(0, 1), rows=ROWS, n=20) -> Outcome:
    "Every row is right as often as GOOD says; on seed 1 half as often where it is row golden-sft."
    problem = a_problem(n)
    out = Outcome(problem, report=dict(rows=60))
    for s in seeds:
        for row in rows:
            right = round(n * GOOD[row] / (2 if (row, s) == ("golden-sft", 1) else 1))
            out.answers[row, s] = [dict(item=t.id, label=t.label, right=float(i < right), loss=1.0 - GOOD[row] + s / 10) for i, t in enumerate(problem.parts(s).test)]
            out.sets[row, s] = [a_set(a, 0.3, s) for a in ((0.5, 0.7) if s == 0 else (0.6, 0.6))]
            out.cost[row, s] = dict(rounds=4 + s, train_steps=2, texts=128, train_tokens=1600, written=64, lm_tokens=640 + 64 * s, lm_forwards=32)
            if row in METHODS[:7]: out.texts[row, s] = [Item(f"{row} {s} says {i}", LABELS[i % 2]) for i in range(6)]
            if row in ALIGNED: out.history[row, s], out.best[row, s], out.kl[row, s] = rounds(), 2, 0.5 + s
    return out


def a_run(folder, **given): return start(Params(**dict(seeds=[0, 1], num_samples=2, golden_sizes=[20], num_pool=20, num_dev=20, num_test=20, out_dir=str(folder)) | given))


def pair_of(found, a, b): return next((r for r in found["pairs"] if (r["a"], r["b"]) == (a, b)), None)


# ---------------------------------------------------------------- tables


def test_the_table_is_a_function_of_the_scores(tmp_path):
    "From memory and from the file: the same."
    scores = rounded(score_rows(an_outcome()), 6)
    (tmp_path / "scores.csv").write_text(csv_text(scores))
    assert read_tables(tmp_path) == tables(scores) == read_tables(str(tmp_path)) and len(scores) == len(ROWS) * 2 * 20 and list(scores[0]) == ["method", "seed", "item", *METRICS]
    with pytest.raises(RlgenError, match="holds no scores.csv") as e: read_tables(tmp_path / "nowhere")
    assert "\n" not in str(e.value)


def test_names_that_look_like_numbers_stay_names(tmp_path):
    out = an_outcome(seeds=(0,), rows=["untrained", "per-sample"])
    for rows in out.answers.values():
        for i, r in enumerate(rows): r["item"] = f"{i:012d}"
    (tmp_path / "scores.csv").write_text(csv_text(score_rows(out)))
    assert read_tables(tmp_path) == tables(score_rows(out)) and score_rows(out)[3]["item"] == "000000000003"


def test_means_are_those_of_the_answers():
    found = tables(score_rows(an_outcome()))
    mean = {(r["method"], r["metric"]): r for r in found["table"]}
    assert list(dict.fromkeys(m for m, _ in mean)) == ROWS and mean["per-sample", "golden_accuracy"]["mean"] == 0.9 and mean["golden-sft", "golden_accuracy"]["mean"] == 0.525
    assert mean["golden-sft", "golden_accuracy"]["by_seed"] == {"0": 0.7, "1": 0.35}
    assert mean["oracle", "golden_loss"]["mean"] == 0.05 and {r["n"] for r in found["table"]} == {20} and {r["seeds"] for r in found["table"]} == {2}


def test_an_aligned_row_is_compared_with_the_rows_before_it_and_all_others():
    found = tables(score_rows(an_outcome()))
    others = [m for m in ROWS if m not in ALIGNED]
    assert [(r["a"], r["b"]) for r in found["pairs"]] == [("batch-level", b) for b in others] + [("dataset-group", b) for b in ROWS if b in (*others, "batch-level")] + [("per-sample", b) for b in ROWS if b != "per-sample"]
    assert all(r["metric"] == "golden_accuracy" and r["claim"] == holds(r) for r in found["pairs"]) and pair_of(found, "per-sample", "untrained")["diff"] == pytest.approx(0.4)
    assert pair_of(found, "per-sample", "oracle")["diff"] == pytest.approx(-0.1)
    assert pair_of(found, "per-sample", "untrained")["claim"] and pair_of(found, "dataset-group", "batch-level")["diff"] == pytest.approx(0.3) and not pair_of(found, "batch-level", "dataset-group")
    assert tables(score_rows(an_outcome(rows=["untrained", "oracle"])))["pairs"] == [] and tables(score_rows(an_outcome(rows=["batch-level"])))["pairs"] == []


def test_a_difference_that_seeds_disagree_on_is_no_claim():
    out = an_outcome(rows=["untrained", "per-sample"])
    for s, sign in ((0, 1), (1, -1)):
        for r in out.answers["per-sample", s]: r["right"] = 0.5 + sign * (0.4 if s == 0 else 0.1)
        for r in out.answers["untrained", s]: r["right"] = 0.5
    pair = tables(score_rows(out))["pairs"][0]
    assert pair["low"] > 0 and pair["by_seed"] == {"0": 0.4, "1": -0.1} and pair["claim"] is False
    assert main_table(tables(score_rows(out))).loc["untrained", "by seed"] == "+0.400, -0.100"


@pytest.mark.parametrize("first", ALIGNED)
def test_every_difference_is_the_first_rows_less_the_lines(first):
    found = tables(score_rows(an_outcome()))
    mean = {r["method"]: r["mean"] for r in found["table"] if r["metric"] == "golden_accuracy"}
    view = main_table(found, first)
    assert list(view.index) == ROWS and list(view.columns) == ["golden accuracy", f"{first} − row", "by seed", "claim"] and not view.isna().any().any() and (view.loc[first][1:] == "").all()
    for row in set(ROWS) - {first}:
        text, claim = view.loc[row, f"{first} − row"], view.loc[row, "claim"]
        middle, low, high = (float(x) for x in text.replace("[", "").replace("]", "").replace(",", "").split())
        by_seed = [float(x) for x in view.loc[row, "by seed"].split(", ")]
        assert middle == pytest.approx(mean[first] - mean[row], abs=1e-3) and low <= middle <= high and fmean(by_seed) == pytest.approx(middle, abs=1e-3) and len(by_seed) == 2 and text[0] in "+-"
        assert claim == ("yes" if (low > 0 or high < 0) and all(x * middle > 0 for x in by_seed) else "no")
    assert view.loc[first, "golden accuracy"].startswith(f"{mean[first]:.3f} [") and main_table(found).columns[1] == "per-sample − row"


def test_a_turned_difference_is_the_same_but_for_its_sign():
    found = tables(score_rows(an_outcome()))
    ours, theirs = main_table(found, "per-sample").loc["dataset-group"], main_table(found, "dataset-group").loc["per-sample"]
    numbers = lambda text: [float(x) for x in text.replace("[", "").replace("]", "").replace(",", "").split()]
    a, b = numbers(ours.iloc[1]), numbers(theirs.iloc[1])
    assert a[0] == pytest.approx(0.1) and b == [-a[0], -a[2], -a[1]] and [-x for x in numbers(ours["by seed"])] == numbers(theirs["by seed"]) and ours["claim"] == theirs["claim"]


def test_nothing_has_one_sign():
    "Equal rows differ by +0.000, whichever is the first."
    out = an_outcome(rows=["dataset-group", "per-sample"])
    for s in (0, 1): out.answers["dataset-group", s] = out.answers["per-sample", s]
    found = tables(score_rows(out))
    ours, theirs = main_table(found, "per-sample").loc["dataset-group"], main_table(found, "dataset-group").loc["per-sample"]
    assert list(ours)[1:] == ["+0.000 [+0.000, +0.000]", "+0.000, +0.000", "no"] == list(theirs)[1:]


def test_one_text_has_no_interval():
    found = tables(score_rows(an_outcome(n=1, rows=["untrained", "dataset-group", "per-sample"])))
    for first in ("per-sample", "dataset-group"):
        view = main_table(found, first)
        assert list(view["golden accuracy"]) == [f"{r['mean']:.3f}" for r in found["table"] if r["metric"] == "golden_accuracy"] and set(view["claim"]) == {"no", ""}
    assert accuracy_bars(found["table"]).axes[0].patches


def test_a_table_without_aligned_rows():
    view = main_table(tables(score_rows(an_outcome(rows=["untrained", "oracle"]))))
    assert list(view.index) == ["untrained", "oracle"] and set(view["claim"]) == {""} == set(view["by seed"])


# ---------------------------------------------------------------- data sets


def test_data_rows_by_hand():
    out = an_outcome(rows=["untrained", "per-sample"])
    rows = {r["row"]: r for r in data_rows(out)}
    one = rows["per-sample"]
    assert one["spread"] == pytest.approx((pstdev([0.5, 0.7]) + pstdev([0.6, 0.6])) / 2) == pytest.approx(0.05) and one["macro_f1"] == pytest.approx(0.59)
    assert one["ece"] == pytest.approx(0.6) and one["loss"] == pytest.approx(0.3)
    assert one["n"] == 30.5 and one["kl"] == 1.0 and "kl" not in rows["untrained"] and set(one) == {"row", "spread", "kl", *JUDGED, *DESCRIBED}
    assert all(one[k] == pytest.approx(0.1 * i + 0.005) for i, k in enumerate(DESCRIBED) if k != "n")


def test_one_set_has_no_spread():
    out = an_outcome(seeds=(0,), rows=["oracle"])
    out.sets["oracle", 0] = out.sets["oracle", 0][:1]
    assert data_rows(out)[0]["spread"] == 0


def test_what_the_world_cannot_say_is_left_out():
    out, known = an_outcome(rows=["untrained", "oracle"]), ("right", "undecided", "spurious", "topics")
    assert {NAMES[k] for k in known} < set(data_table(data_rows(out)).columns)
    for each in out.sets.values():
        for s in each: s["data"] = {k: v for k, v in s["data"].items() if k not in known}
    view = data_table(data_rows(out))
    assert not {NAMES[k] for k in known} & set(view.columns) and list(view.index) == ["untrained", "oracle"] and NAMES["kl"] not in view and not view.isna().any().any()


def test_data_table_shows_what_there_is():
    view = data_table(data_rows(an_outcome()))
    assert list(view.index) == ROWS and list(view.columns) == list(NAMES.values()) and view.loc["oracle", "KL (nats)"] == "" and view.loc["per-sample", "KL (nats)"] == "1.000"
    assert view.loc["oracle", "sd between sets"] == "0.050" and view.loc["oracle", "texts"] == f"{30.5:,.0f}"


def test_class_table_has_a_line_for_each_class_and_row():
    rows = [*reversed(ROWS)]
    view = class_table(an_outcome(), rows)
    assert [(c, r) for c, r in view.index] == [(c, r) for c in LABELS for r in rows] and list(view.columns) == ["precision", "recall", "f1"]
    assert list(view.loc["cross", "oracle"]) == [0.6, 0.625, 0.6] and list(view.loc["glad", "oracle"]) == [0.5, 0.625, 0.6]
    assert class_table(an_outcome(), []) is None and class_table(an_outcome(rows=["oracle"]), ["untrained"]) is None and len(class_table(an_outcome(rows=["oracle"]), ["untrained", "oracle"])) == 2


# ---------------------------------------------------------------- pictures


def test_bars_tell_rows_apart():
    fig = accuracy_bars(tables(score_rows(an_outcome()))["table"], "dataset-group")
    colours = {t.get_text(): bar.get_facecolor() for t, bar in zip(fig.axes[0].get_yticklabels(), fig.axes[0].patches)}
    assert list(colours) == ROWS and [bar.get_width() for bar in fig.axes[0].patches] == [GOOD[m] if m != "golden-sft" else 0.525 for m in ROWS]
    assert colours["untrained"] == colours["in-context"] and colours["golden-direct-20"] == colours["oracle"] and colours["per-sample"] == colours["batch-level"] == colours["rejection"]
    assert len(set(colours.values())) == 4 and list(colours.values()).count(colours["dataset-group"]) == 1


def test_curves_draw_every_training():
    out = an_outcome(seeds=(3, 1))
    fig = curves_figure(out.history, out.best)
    assert [ax.get_title() for ax in fig.axes] == list(PANELS.values()) and all(len(ax.lines) == 2 * 6 for ax in fig.axes) and [t.get_text() for t in fig.legends[0].texts] == list(ALIGNED)
    loss = fig.axes[list(PANELS).index("golden_loss")].lines
    assert list(loss[0].get_ydata()) == [2.5, 1.5, 0.5, 1.5] and [(list(x.get_xdata()), list(x.get_ydata())) for x in loss[1::2]] == [([2], [0.5])] * 6
    assert len({line.get_color() for line in loss}) == 3 and curves_figure({}, {}) is None
    one = curves_figure({("per-sample", 0): rounds(1)}, {("per-sample", 0): 0})
    assert len(one.axes[0].lines) == 2 and len(one.legends[0].texts) == 1


def straight(way): return np.abs(way.T @ way - np.eye(2)).max() < 1e-9


def cloud(n, classes, wide, seed=0, apart=3.0):
    "Classes apart along the first axes, spread along the last one."
    rng, labels = np.random.default_rng(seed), [f"c{i % classes}" for i in range(n)]
    x = rng.normal(size=(n, wide)) * 0.1
    for i in range(n): x[i, i % classes % wide] += apart
    x[:, -1] += rng.normal(size=n)
    return x, labels


@pytest.mark.parametrize("classes, wide", [(2, 2), (2, 3), (2, 64), (3, 3), (3, 64), (4, 8), (5, 2)])
def test_axes_stand_at_right_angles(classes, wide):
    x, labels = cloud(60, classes, wide)
    centre, way = axes_of(x, labels)
    assert centre == pytest.approx(x.mean(0)) and way.shape == (wide, 2) and straight(way) and (np.abs(way).max(0) == way.max(0)).all(), "the greatest number is positive"
    again = axes_of(torch.tensor(x, dtype=torch.float32), labels)[1]
    assert np.abs(again - way).max() < 1e-3 and np.abs(axes_of(x + 7.0, labels)[1] - way).max() < 1e-6


def test_the_first_axis_leads_from_class_to_class():
    "Also where one class has many more texts."
    x, labels = cloud(60, 2, 16)
    for keep in (range(60), [i for i in range(60) if i % 2 == 0 or i < 8]):
        mine, names = x[list(keep)], [labels[i] for i in keep]
        _, way = axes_of(mine, names)
        between = np.mean([v for v, t in zip(mine, names) if t == "c0"], 0) - np.mean([v for v, t in zip(mine, names) if t == "c1"], 0)
        assert abs(way[:, 0] @ between) == pytest.approx(np.linalg.norm(between)) and abs(way[-1, 1]) > 0.95, "the second one: where texts differ most besides"


def test_three_classes_span_the_map():
    x, labels = cloud(90, 3, 12)
    centre, way = axes_of(x, labels)
    for c in range(3):
        middle = x[[t == f"c{c}" for t in labels]].mean(0) - centre
        assert np.linalg.norm(way @ way.T @ middle - middle) < 1e-9 * np.linalg.norm(middle) + 1e-9
    assert abs(way[-1]).max() < 0.3, "classes, not the greatest spread"


@pytest.mark.parametrize("x, labels", [
    (np.ones((6, 8)), list("ababab")), (np.zeros((6, 2)), list("ababab")), (np.ones((6, 8)), list("abcabc")), (np.ones((1, 4)), ["a"]), (np.eye(2)[[0, 1, 0, 1]], list("abab")),
    (np.eye(9)[[0, 1, 0, 1, 0]], list("ababa")),
    (np.arange(12.0).reshape(6, 2), list("aabbcc")), (np.outer(np.arange(6), np.ones(5)), list("aabbcc")), (np.random.default_rng(0).normal(size=(6, 5)), ["a"] * 6),
    (np.random.default_rng(0).normal(size=(2, 7)), ["a", "b"])],
    ids=["equal", "no words", "equal, three classes", "one text", "equal in a class", "equal in a class, wide", "on a line", "on a line, three classes", "one class", "one each"])
def test_axes_of_almost_nothing(x, labels):
    centre, way = axes_of(x, labels)
    assert way.shape == (x.shape[1], 2) and np.isfinite(way).all() and straight(way) and centre == pytest.approx(x.mean(0))


def test_a_map_of_golden_and_synthetic_texts():
    golden = [Item(t, label) for t, label in world.golden("test", 30)]
    some = [Item(t, label) for label, t in world.drafts(20)]
    fig = map_figure(golden, {"untrained": [*some, Item("", "glad", "x"), Item("", "cross", "y")], "none": [Item("", "glad")], "nothing": [], "one class": [t for t in some if t.label == "glad"]}, word_means)
    at = {ax.get_title(): {line.get_label(): np.column_stack([line.get_xdata(), line.get_ydata()]) for line in ax.lines} for ax in fig.axes}
    assert list(at) == ["golden", "untrained", "none", "nothing", "one class"] and all(list(lines) == ["cross", "glad"] for lines in at.values())
    assert sum(map(len, at["golden"].values())) == 30 and sum(map(len, at["untrained"].values())) == 20 and not sum(map(len, at["none"].values()))
    assert not sum(map(len, at["nothing"].values())) and len(at["one class"]["cross"]) == 0 < len(at["one class"]["glad"])
    centre, way = axes_of(word_means([t.text for t in golden]), [t.label for t in golden])
    glad = [t for t in some if t.label == "glad"]
    for name in ("untrained", "one class"): assert at[name]["glad"] == pytest.approx((word_means([t.text for t in glad]).numpy() - centre) @ way)


def test_golden_classes_lie_apart_on_their_map():
    golden = [Item(t, label) for t, label in world.golden("test", 300)]
    cross, glad = ({line.get_label(): line.get_xdata().mean() for line in map_figure(golden, {}, word_means).axes[0].lines}[k] for k in LABELS)
    middles = [word_means([t.text for t in golden if t.label == k]).mean(0) for k in LABELS]
    assert abs(cross - glad) == pytest.approx(float((middles[0] - middles[1]).norm()))


def test_the_runs_map(tmp_path):
    out = an_outcome()
    titles = lambda *args, **kw: [ax.get_title() for ax in run_map(*args, **kw).axes]
    assert titles(a_run(tmp_path / "a"), out) == ["golden", "untrained", "per-sample"] and titles(a_run(tmp_path / "b", credit="scalar"), out) == ["golden", "untrained", "batch-level"]
    assert titles(a_run(tmp_path / "c"), an_outcome(rows=["golden-sft", "rejection", "dataset-group"])) == ["golden", "golden-sft", "rejection"]
    assert run_map(a_run(tmp_path / "d"), an_outcome(rows=["oracle"])) is None
    few = run_map(a_run(tmp_path / "e", seeds=[1, 0]), out, 3)
    assert [sum(len(line.get_xdata()) for line in ax.lines) for ax in few.axes] == [3, 3, 3]


# ---------------------------------------------------------------- costs, samples, files


def test_the_runs_map_is_the_first_seeds(tmp_path):
    "Also where one row writes, and nobody is compared with it."
    out = an_outcome(rows=["golden-sft", "oracle"])
    points = lambda fig, k: [xy for line in fig.axes[k].lines for xy in zip(line.get_xdata(), line.get_ydata())]
    mine, wanted = run_map(a_run(tmp_path / "a"), out), map_figure(out.problem.parts(0).test, {"golden-sft": out.texts["golden-sft", 0]}, word_means)
    assert points(mine, 0) == points(wanted, 0) and points(mine, 1) == points(wanted, 1)


def test_costs_are_means_over_seeds_and_tokens_are_per_text():
    cost = {c["method"]: c for c in cost_rows(an_outcome())}
    assert list(cost) == ROWS and cost["oracle"]["rounds"] == 4.5 and cost["oracle"]["lm_tokens"] == 10.5 and cost["oracle"]["lm_forwards"] == 0.5 and cost["oracle"]["train_tokens"] == 1600
    view = cost_table(list(cost.values()))
    assert list(view.index) == ROWS and list(view.columns) == list(COSTS.values()) and view.loc["oracle", COSTS["train_tokens"]] == "1,600" and not view.isna().any().any()
    out = an_outcome(seeds=(0,), rows=["oracle"])
    out.cost["oracle", 0] = dict.fromkeys(out.cost["oracle", 0], 0)
    assert set(cost_rows(out)[0].values()) == {"oracle", 0} and set(cost_table(cost_rows(out)).loc["oracle"]) == {"0"}


def test_samples_show_every_row_that_writes():
    out = an_outcome()
    out.texts["rejection", 0] = out.texts["rejection", 0][:1]
    found = samples(out, 3, 0)
    assert [s["number"] for s in found] == [0, 1, 2] and [r["method"] for r in found[0]["rows"]] == list(METHODS[:7])
    assert [r["method"] for r in found[1]["rows"]] == [m for m in METHODS[:7] if m != "rejection"]
    assert found[2]["rows"][0] == dict(method="untrained", label="cross", text="untrained 0 says 2") and samples(an_outcome(rows=["oracle"]), 3, 0) == [] and samples(out, 0, 0) == []


def test_a_run_writes_everything(tmp_path):
    run, out = a_run(tmp_path / "run"), an_outcome()
    found = report(run, out)
    metrics = json.loads((run.out_dir / "metrics.json").read_text())
    assert {k: metrics[k] for k in ("table", "pairs", "cost", "sets", "trained")} == rounded({k: found[k] for k in ("table", "pairs", "cost", "sets", "trained")})
    assert metrics["run"] == "genalign" and metrics["data"] == dict(rows=60) and metrics["seeds"] == [0, 1]
    assert found["trained"] == [dict(row=m, seed=s, rounds=3, best=2, alarms=[3]) for s in (0, 1) for m in ALIGNED] and len(read_jsonl(run.out_dir / "samples.jsonl")) == 2
    again = read_tables(run.out_dir)
    assert again == {k: found[k] for k in ("table", "pairs")} and len((run.out_dir / "scores.csv").read_text().splitlines()) == 1 + len(ROWS) * 40


def test_the_same_run_writes_the_same_bytes(tmp_path):
    read = lambda folder: {p.name: p.read_bytes() for p in Path(folder).iterdir() if p.name not in ("env.json", "params.yaml")}
    first = a_run(tmp_path / "a")
    report(first, an_outcome())
    once = read(first.out_dir)
    report(first, an_outcome())
    other = a_run(tmp_path / "b")
    report(other, an_outcome())
    assert read(first.out_dir) == once == read(other.out_dir) and {"metrics.json", "scores.csv", "samples.jsonl"} == set(once)


def test_rows_of_a_run_without_generators(tmp_path):
    found = report(a_run(tmp_path / "run", methods=["golden-direct", "oracle"]), an_outcome(rows=["golden-direct-20", "oracle"]))
    assert found["pairs"] == [] == found["samples"] == found["trained"] and not (tmp_path / "run" / "samples.jsonl").exists() and len(found["sets"]) == 2
