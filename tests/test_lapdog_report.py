"rlgen.lapdog.report: tables from scores alone, measures that not every row has, what is written, and pictures of whatever there is."
import json
from types import SimpleNamespace

import pytest

from rlgen.cli import main
from rlgen.core import RlgenError, read_jsonl
from rlgen.lapdog.data import Dialogue, Story
from rlgen.lapdog.report import (
    COMPARED, FIRST, METRICS, NAMES, PANELS, RIVALS, corpus_rows, cost_rows, cost_table, curve_rows, curves_figure, f1_bars, heat_figure, main_table, more_table, pairs_table, prediction_rows, read_tables, report, samples,
    score_rows, share_rows, share_table, side_by_side, spread_figure, tables,
)
from rlgen.lapdog.reward import rank_scores, score_table
from rlgen.lapdog.run import Outcome
from rlgen.lapdog.setup import METHODS, ROWS, Params, Problem, start
from rlgen.record import Stage, csv_text, results_table, rounded
from rlgen.worlds.lapdog import HOBBIES, OCCASIONS

LONG = "a very long <b>text</b> & more\n" * 300 + "w" * 5000
ROWS_HERE = ("constant-reply", "closed-book", "stage1", "joint-grpo", "oracle-docs")


def a_problem(world=True) -> Problem:
    "Four dialogues; of the world or of somebody who knows no gold stories."
    about = [(h, o) for h in list(HOBBIES)[:2] for o in list(OCCASIONS)[:2]]
    stories = [Story(f"test-0-{h}-{o}" if world else f"s{i}", f"title {i}", LONG if i == 3 else f"words of {h} {o}", "test-0") for i, (h, o) in enumerate(about)]
    talks = [Dialogue(f"d{i}", f"persona: i own {i} things . context: Q: what of {i} ?", (f"rex and i met a duke number {i} .", "yes ."), "test-0", (stories[i].id,) if world else ()) for i in range(4)]
    return Problem("hand", lambda seed: talks, talks, talks, dict(train=stories, val=stories, test=stories), facts=(lambda d, t: 0.0) if world else None)


def an_outcome(seeds=(0, 1), methods=ROWS_HERE, world=True) -> Outcome:
    "Replies that get better along the rows; joint-grpo reads the right story, stage1 its neighbour."
    problem = a_problem(world)
    texts, totals = {}, {}
    for m in methods:
        for s in seeds:
            said = ["i do ." if m == "constant-reply" else d.answers[0] if m in (FIRST, "oracle-docs") and i >= s else f"rex and i {m} {i}" for i, d in enumerate(problem.test)]
            found = [] if m in ("constant-reply", "closed-book") else [[problem.stories["test"][(i + j + (m == "stage1")) % 4].id for j in range(4)] for i in range(4)]
            rows, corpus = score_table(said, problem.test)
            ranks, spread = rank_scores(found, [d.gold for d in problem.test]) if found else ([{}] * 4, {})
            more = [dict(reply=t, retrieved=f, tokens=len(t.split()), question=d.question, **(dict(facts=1 / 3, persona=1.0) if world else {})) for t, f, d in zip(said, found or [[]] * 4, problem.test)]
            texts[m, s], totals[m, s] = [a | b | c for a, b, c in zip(rows, ranks, more)], corpus | spread
    cost = {k: {} if k[0] == "constant-reply" else dict(lm_tokens=100, lm_forwards=2, train_steps=10 + k[1]) | (dict(replies=640) if k[0] == FIRST else {}) for k in texts}
    shares = {k: dict(f1=0.25, rougeL=0.25 + k[1] / 4, bleu=0.5 - k[1] / 4) for k in texts if k[0] == FIRST}
    return Outcome(problem, texts, totals, cost, {"rows": 4}, {}, shares)


def a_run(folder, **given):
    return start(Params(**dict(seeds=[0, 1], methods=list(ROWS_HERE), num_samples=2, out_dir=str(folder)) | given))


def test_names_are_those_of_the_rows():
    assert {FIRST, *RIVALS} <= set(METHODS) and FIRST in ROWS and set(NAMES) == set(METRICS)
    assert METRICS[:4] == COMPARED == ("f1", "bleu", "rougeL", "recall_at_1")


def test_the_table_is_a_function_of_the_scores(tmp_path):
    "From memory and from the file: the same, holes of measures and all."
    scores = score_rows(an_outcome())
    (tmp_path / "scores.csv").write_text(csv_text(scores))
    assert read_tables(tmp_path) == tables(scores) and len(scores) == 40
    with pytest.raises(RlgenError, match="holds no scores.csv"): read_tables(tmp_path / "nowhere")


def test_the_first_four_columns_are_the_headline_and_its_companions():
    "Also where the first row, a constant, has no recall: README shows the first four."
    table = tables(score_rows(an_outcome()))["table"]
    assert list(dict.fromkeys(r["metric"] for r in table))[:4] == list(COMPARED)
    assert list(results_table(table, list(COMPARED)).index) == list(ROWS_HERE)


def test_rows_are_compared_by_what_both_have():
    found = {(r["b"], r["metric"]): r for r in tables(score_rows(an_outcome()))["pairs"]}
    assert set(found) == {(b, m) for b in ("stage1", "closed-book", "constant-reply") for m in COMPARED[:3]} | {("stage1", "recall_at_1")}
    assert found["stage1", "recall_at_1"]["diff"] == 1.0 and found["stage1", "recall_at_1"]["claim"]
    assert tables(score_rows(an_outcome(methods=("stage1", "oracle-docs"))))["pairs"] == []


def test_a_difference_that_seeds_disagree_on_is_no_claim():
    out = an_outcome(methods=("stage1", FIRST))
    for s, sign in ((0, 1), (1, -1)):
        for r, q in zip(out.texts["stage1", s], out.texts[FIRST, s]): r["f1"], q["f1"] = 0.5, 0.5 + sign * (0.4 if s == 0 else 0.1)
    pair = tables(score_rows(out))["pairs"][0]
    assert pair["low"] > 0 and pair["by_seed"] == {"0": 0.4, "1": -0.1} and not pair["claim"]


def test_a_run_writes_everything(tmp_path):
    run, out = a_run(tmp_path / "run"), an_outcome()
    found = report(run, out)
    metrics = json.loads((run.out_dir / "metrics.json").read_text())
    assert {k: metrics[k] for k in ("table", "pairs", "corpus", "shares", "cost")} == rounded({k: found[k] for k in ("table", "pairs", "corpus", "shares", "cost")})
    assert metrics["run"] == "lapdog" and metrics["data"] == {"rows": 4} and len(read_jsonl(run.out_dir / "samples.jsonl")) == 2
    rows = read_jsonl(run.out_dir / "predictions_joint-grpo.jsonl")
    assert len(rows) == 8 and {"seed", "item", "query", "retrieved", "prediction", "reference", "f1", "recall_at_1"} <= set(rows[0]) and rows[0]["reference"][1] == "yes ."
    assert {p.name for p in run.out_dir.glob("predictions_*")} == {f"predictions_{m}.jsonl" for m in ROWS_HERE}


def test_write_results_off_writes_no_replies(tmp_path):
    report(run := a_run(tmp_path / "run", write_results=False), an_outcome())
    assert not list(run.out_dir.glob("predictions_*")) and (run.out_dir / "scores.csv").is_file()


def test_other_commands_take_what_is_written(tmp_path, capsys):
    from rlgen.verdicts import paired_rows

    report(run := a_run(tmp_path / "run"), an_outcome())
    assert main(["metrics", str(run.out_dir / "predictions_joint-grpo.jsonl")]) == 0
    told = json.loads(capsys.readouterr().out)
    assert {"f1", "rouge1", "rouge2", "rougeL", "bleu", "length_ratio"} <= set(told) and told["n"] == 8 and 0.8 < told["f1"]["mean"] < 1
    assert main(["metrics", str(run.out_dir)]) == 0 and "recall_at_1" in capsys.readouterr().out
    assert len(paired_rows(run.out_dir / "predictions_joint-grpo.jsonl", run.out_dir / "predictions_stage1.jsonl")) == 8


def test_committed_results_keep_no_replies():
    from inspect import getsource

    from rlgen.cli import make_results
    assert 'glob("predictions_*.jsonl")' in getsource(make_results)


def test_costs_are_means_over_seeds_and_writing_is_per_dialogue(tmp_path):
    out = an_outcome()
    for s in (0, 1):
        (tmp_path / f"{s}").mkdir()
        (tmp_path / f"{s}" / "best.json").write_text(json.dumps(dict(step=50 * (s + 1), steps=100)))
        out.models[FIRST, s] = out.models["stage1", s] = tmp_path / f"{s}"
    (tmp_path / "0" / "best.json").rename(tmp_path / "0" / "kept.json")  # nothing was chosen on seed 0
    lines = [dict(method=FIRST, seed=s, step=t, refreshes=t * (s + 1)) for s in (0, 1) for t in (1, 2)] + [dict(method=FIRST, seed=1, step=3, reward=0.5)]
    cost = {c["method"]: c for c in cost_rows(out, lines)}
    assert cost[FIRST]["train_steps"] == 10.5 and cost[FIRST]["lm_tokens"] == 25 and cost[FIRST]["replies"] == 640 and cost[FIRST]["refreshes"] == 3 and cost[FIRST]["kept"] == [100]
    assert not {"replies", "refreshes"} & set(cost["stage1"]) and set(cost["constant-reply"]) == {"method", "tokens"}
    view = cost_table(list(cost.values()))
    assert view.loc[FIRST, "passes a thousand"] == "500" and view.loc[FIRST, "kept"] == "100" and "candidates judged" not in view and not view.isna().any().any()


def test_corpus_numbers_are_means_over_seeds():
    out = an_outcome()
    out.totals[FIRST, 0]["corpus_bleu"], out.totals[FIRST, 1]["corpus_bleu"] = 10.0, 30.0
    corpus = {c["method"]: c for c in corpus_rows(out)}
    assert corpus[FIRST]["corpus_bleu"] == 20 and corpus["constant-reply"]["different"] == 1 and "distinct_at_1" not in corpus["closed-book"] and corpus[FIRST]["distinct_at_1"] == 4
    assert share_rows(out) == [dict(method=FIRST, f1=0.25, rougeL=0.375, bleu=0.375)]
    out.shares[FIRST, 1] = dict(f1=0.0, rougeL=0.0, bleu=0.0)
    assert share_rows(out) == [dict(method=FIRST, f1=0.25, rougeL=0.25, bleu=0.5)], "a seed on which nothing varies says nothing"


def test_tables_have_a_line_for_each_row():
    out = an_outcome()
    found = tables(score_rows(out))
    for view in (main_table(found["table"]), more_table(found["table"], corpus_rows(out)), cost_table(cost_rows(out, []))):
        assert list(view.index) == list(ROWS_HERE) and not view.isna().any().any()
    assert main_table(found["table"]).loc["closed-book", "recall@1"] == "" and more_table(found["table"], corpus_rows(out)).loc[FIRST, "facts"] == "0.333"
    assert share_table(share_rows(out)).loc[FIRST, "F1"] == "25 %" and pairs_table(found["pairs"]).loc[("joint-grpo − stage1", "recall@1"), "claim"] == "yes"


def test_samples_show_what_was_read():
    found = samples(an_outcome(), 9, 1)
    assert len(found) == 4 and found[0]["gold"]["text"] == "title 0 : words of painting wedding"
    rows = {r["method"]: r for r in found[0]["rows"]}
    assert rows["constant-reply"]["story"] is None and rows["stage1"]["story"]["id"] != found[0]["gold"]["id"] == rows[FIRST]["story"]["id"]
    assert rows[FIRST]["reply"] == f"rex and i {FIRST} 0" and rows["oracle-docs"]["f1"] < 1, "seed 1 gets the first one wrong"


def test_long_and_wild_texts_fit_the_page():
    out = an_outcome()
    for r in out.texts[FIRST, 0]: r["reply"] = "</table>" + LONG
    page = side_by_side(samples(out, 4, 0), "f1").data
    assert "<b>text" not in page and "</table>a" not in page and "&lt;/table&gt;" in page and "w" * 500 not in page
    assert page.count("<table") == page.count("</table>") == 4 and "closed-book" not in page
    assert "closed-book" in side_by_side(samples(an_outcome(methods=("closed-book",)), 1, 0), "f1").data, "without before and after: all rows"


def test_curves_know_row_and_seed(tmp_path):
    (tmp_path / "curves.jsonl").write_text('{"step": 10, "reward": 0.1, "entropy": 0.0}\n{"step": 20, "reward": 0.3}\n')
    stages = [Stage(name, item, "", tmp_path, 0.0, {}) for name, item in (("joint", "3/joint/joint-grpo"), ("feedback", "4/feedback/metric-kl"), ("sft", "3/sft/stage1"))]
    rows = curve_rows(SimpleNamespace(stages=stages))
    assert [(r["method"], r["seed"], r["step"]) for r in rows] == [("joint-grpo", 3, 10), ("joint-grpo", 3, 20), ("metric-kl", 4, 10), ("metric-kl", 4, 20)]


def test_curves_draw_what_was_logged():
    keys = [k for k in PANELS if k != "perplexity"]
    rows = [dict(method=m, seed=s, step=t, entropy=1.0) | dict.fromkeys(keys, 0.1 * t) for m in (FIRST, "generator-grpo", "custom") for s in (0, 1) for t in (1, 2, 3)]
    picture = curves_figure(rows)
    assert [ax.get_title() for ax in picture.axes] == list(dict(PANELS.values()).values())
    assert len(picture.axes[0].lines) == 9 and len(picture.axes[5].lines) == 18, "two seeds and their mean; replies and stories share a panel"
    assert picture.axes[3].lines[-1].get_ydata()[0] == pytest.approx(2.71828, abs=1e-4), "perplexity, not entropy"
    few = curves_figure([dict(method="metric-kl", seed=0, step=5, staleness=0.1)])
    assert [ax.get_title() for ax in few.axes] == ["staleness (nats)"] and curves_figure([]) is None


def test_bars_tell_floors_from_rivals():
    fig = f1_bars(tables(score_rows(an_outcome()))["table"])
    colours = {t.get_text(): bar.get_facecolor() for t, bar in zip(fig.axes[0].get_yticklabels(), fig.axes[0].patches)}
    assert list(colours) == list(ROWS_HERE[:-1]) and len(set(colours.values())) == 3, "the oracle is a line"
    assert colours["constant-reply"] == colours["closed-book"] != colours["stage1"]


def test_heat_is_recall_by_hobby_and_occasion():
    fig = heat_figure(an_outcome())
    before, after = ([[float(t.get_text()) for t in ax.texts]] for ax in fig.axes)
    assert before == [[0.0] * 4] and after == [[1.0] * 4]
    assert heat_figure(an_outcome(world=False)) is None


def test_real_data_has_neither_gold_nor_facts(tmp_path):
    out = an_outcome(world=False)
    found = report(a_run(tmp_path / "run"), out)
    assert {r["metric"] for r in found["table"]} == {"f1", "bleu", "rougeL", "rouge1", "rouge2", "length_ratio"} and {r["metric"] for r in found["pairs"]} == set(COMPARED[:3])
    assert found["samples"][0]["gold"] is None and "right" in side_by_side(found["samples"], "f1").data
    assert [line.get_label() for line in spread_figure(out).axes[0].lines] == [FIRST, "stage1"] and list(main_table(found["table"]).columns) == ["F1", "BLEU", "ROUGE-L"]


def test_seeds_that_collapse_apart_are_collapsed():
    out = an_outcome()
    for s in (0, 1):
        for r in out.texts["stage1", s]: r["retrieved"] = [f"always-{s}"]
    lines = {line.get_label(): list(line.get_ydata()) for line in spread_figure(out).axes[0].lines}
    assert lines == {FIRST: [25.0] * 4, "stage1": [100.0]}


def test_a_run_of_constants_alone(tmp_path):
    out = an_outcome(methods=("constant-reply",))
    found = report(a_run(tmp_path / "run", methods=["constant-reply"]), out)
    assert found["pairs"] == [] and found["shares"] == [] and pairs_table([]).empty and share_table([]).empty
    assert heat_figure(out) is None and spread_figure(out) is None and len(f1_bars(found["table"]).axes[0].patches) == 1


def test_predictions_need_as_many_dialogues():
    out = an_outcome()
    with pytest.raises(ValueError): prediction_rows(out.texts[FIRST, 0][:2], out.problem.test)
