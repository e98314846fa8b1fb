"rlgen.rest_pg.report: tables from scores alone, margins, costs, a judge's holes, what is written, and pictures of whatever there is."
import json
from dataclasses import replace

import pytest

from rlgen.chat import Oracle
from rlgen.core import RlgenError, read_jsonl
from rlgen.judge import framed_texts
from rlgen.metrics import rouge
from rlgen.record import csv_text, rounded
from rlgen.rest_pg import report as module
from rlgen.rest_pg.data import Example
from rlgen.rest_pg.report import (
    PAPER, RIVALS, cost_rows, cost_table, forced_figure, histogram_figure, iteration_figure, iteration_table, joint_table, judged, levels, margin, pairs_table, read_tables, readable, report, results,
    reward_bars, samples, score_rows, side_by_side, tables,
)
from rlgen.rest_pg.run import Outcome
from rlgen.rest_pg.setup import METHODS, Params, Problem, start

LONG = "ein sehr langer <b>Text</b> & mehr\n" * 300 + "w" * 5000
PEOPLE = [Example("write of rain", "a b c d", ("q r s .", LONG), "ann <1>"), Example("write of snow", "e f g h", ("t u v .",), "bob"), Example("write of wind", "i j k l", ("x y z .",), "cy")]
COST = dict(lm_tokens=30, lm_forwards=3, rm_tokens=0, rm_forwards=0, train_steps=10, train_tokens=100, sampled_tokens=0, gold_texts=3, shown=9)


def row(item: int, text: str | None, gold: float | None = None, reasoning: str = "") -> dict:
    found, e = rouge(text or "", PEOPLE[item].y), PEOPLE[item]
    return dict(item=item, user_id=e.user_id, x=e.x, output=f"raw {text}", reasoning=reasoning or None, text=text, tokens=4, reasoning_tokens=len(reasoning.split()), finished=True) | (
        dict(gold_reward=gold) if gold is not None else {}) | dict(rouge1=found["rouge1"], rougeL=found["rougeL"], rouge=(found["rouge1"] + found["rougeL"]) / 2, parsed=float(text is not None))


def an_outcome(names=("one",), seeds=(0, 1), methods=("SFT", "ReST-EM", "REST-PG", "oracle"), gold=True) -> Outcome:
    "Rows whose scores differ by seed, item and method."
    value = lambda m, s, i: round((METHODS.index(m) + s + i) / 16, 3) if gold else None
    texts = {(n, m, s): [row(i, None if m == "SFT" and i == 2 and s == 1 else PEOPLE[i].y if m == "oracle" else f"a b {m} {n}", value(m, s, i), "so and so" if m == "REST-PG" else "") for i in range(3)]
             for n in names for s in seeds for m in methods}
    problems = [Problem(n, lambda seed: PEOPLE, PEOPLE, PEOPLE, gold=(lambda e, t: 0.0) if gold else None) for n in names]
    rounds = [dict(dataset=n, method=m, seed=s, iteration=t, chosen=t == 1 + s, validation_reward=0.5 + t / 10, **(dict(validation_gold=0.1 * t) if gold else {}), **(dict(forced_same=0.5, forced_follows=0.7, follows_own=0.8) if gold else dict(forced_same=0.5)),
                   **(dict(reward=0.4, acceptance=0.2, coverage=0.3, distinct=2.0, kept=1.0, histogram=[0] * 19 + [5]) if t else {})) for n in names for m in ("ReST-EM", "REST-PG") for s in seeds for t in range(3)]
    return Outcome(problems, texts, {k: {} if k[1] == "oracle" else COST for k in texts}, rounds, {n: {} for n in names})


def a_run(folder, **given):
    return start(Params(**dict(seeds=[0, 1], methods=["SFT", "ReST-EM", "REST-PG", "oracle"], num_samples=2, out_dir=str(folder)) | given))


def test_the_table_is_a_function_of_the_scores(tmp_path):
    "From memory and from the file: the same, with several data sets, a judge's holes and all."
    out = an_outcome(("one", "two"))
    for i, rows in enumerate(out.texts.values()):
        for r in rows: r["judge"] = None if (i + r["item"]) % 5 == 0 else 0.3
    scores = score_rows(out)
    (tmp_path / "scores.csv").write_text(csv_text(scores))
    assert read_tables(tmp_path) == tables(scores) and len(scores) == 48
    with pytest.raises(RlgenError, match="holds no scores.csv"): read_tables(tmp_path / "nowhere")


def test_data_sets_are_never_averaged():
    one, both = tables(score_rows(an_outcome())), tables(score_rows(an_outcome(("one", "two"))))
    assert [r["method"] for r in one["table"][::7]] == ["SFT", "ReST-EM", "REST-PG", "oracle"]
    first = [r for r in both["table"] if r["dataset"] == "one"]
    assert [r | dict(method=r["method"].removeprefix("one: ")) for r in first] == one["table"] and all(r["method"].startswith("one: ") for r in first)
    assert {r["n"] for r in both["table"]} == {3} and {(r["a"], r["b"]) for r in both["pairs"]} == {(f"{n}: REST-PG", f"{n}: {b}") for n in ("one", "two") for b in ("SFT", "ReST-EM")}


def test_margins_by_hand():
    "REST-PG's mean over SFT's, minus one; by seed too; what the paper says beside it."
    told = {(r["b"], r["metric"]): r for r in tables(score_rows(an_outcome()))["pairs"]}
    mean = {m: [sum((METHODS.index(m) + s + i) / 16 for i in range(3)) / 3 for s in (0, 1)] for m in ("SFT", "REST-PG")}
    found = told["SFT", "gold_reward"]
    assert found["relative"] == pytest.approx(sum(mean["REST-PG"]) / sum(mean["SFT"]) - 1, abs=2e-3) and found["claim"]
    assert list(found["relative_by_seed"].values()) == pytest.approx([mean["REST-PG"][s] / mean["SFT"][s] - 1 for s in (0, 1)], abs=2e-3)
    assert (found["paper"], told["ReST-EM", "gold_reward"]["paper"]) == (0.145, 0.065) and set(PAPER) < set(RIVALS) < set(METHODS)


def test_no_margin_over_nothing_and_no_claim_from_one_sign():
    pair = dict(a="REST-PG", b="SFT", metric="rouge", diff=0.1, low=0.05, high=0.2, p=0.01, by_seed={"0": 0.3, "1": -0.1})
    rival = dict(method="SFT", metric="rouge", mean=0.0, by_seed={"0": 0.0, "1": 0.5})
    found = margin(pair, [rival])
    assert found["relative"] is None and found["relative_by_seed"] == {"0": None, "1": -0.2} and not found["claim"]
    assert margin(pair | dict(by_seed={"0": 0.1, "1": 0.1}), [rival])["claim"] and "-" in pairs_table([found])["margin"].iloc[0]


def test_costs_are_per_person_and_mean_over_seeds():
    out = an_outcome()
    out.cost["one", "REST-PG", 1] = COST | dict(lm_tokens=90, train_steps=30)
    cost = {c["method"]: c for c in cost_rows(out)}
    assert (cost["SFT"]["lm_tokens"], cost["REST-PG"]["lm_tokens"], cost["REST-PG"]["train_steps"], cost["SFT"]["gold_texts"]) == (10, 20, 20, 3)
    assert cost["REST-PG"]["reasoning_tokens"] == 3 and "lm_tokens" not in cost["oracle"] and cost["oracle"]["tokens"] == 4
    assert set(cost_table(list(cost.values())).loc["oracle"]) == {""}
    assert [c["method"] for c in cost_rows(an_outcome(("a", "b"), methods=("SFT",)))] == ["a: SFT", "b: SFT"]


def test_a_judge_grades_every_text_once_and_its_holes_are_counted():
    seen = []
    def judge(request):
        seen.append(framed_texts(request)["text"] + framed_texts(request)["request"])
        return "no idea" if "REST-PG" in seen[-1] and "snow" in seen[-1] else "C"
    out = judged(Params(seeds=[0, 1]), an_outcome(), Oracle(judge), label="")
    assert len(seen) == len(set(seen)) == 12, "the same text for two seeds is one question"
    graded = {k[1:]: [r["judge"] for r in rows] for k, rows in out.texts.items()}
    assert graded["SFT", 1] == [0.5, 0.5, 0.0] and graded["REST-PG", 0] == [0.5, None, 0.5], "no text is worth 0, an unreadable reply nothing"
    found = results(Params(seeds=[0, 1], num_samples=0), out)
    assert found["unread"] == {"one: REST-PG, seed 0": 1, "one: REST-PG, seed 1": 1}
    means = {r["method"]: (r["mean"], r["n"]) for r in found["table"] if r["metric"] == "judge"}
    assert means["REST-PG"] == (0.5, 2) and means["SFT"] == (pytest.approx(5 / 12, abs=1e-4), 3)
    pair = next(r for r in found["pairs"] if (r["b"], r["metric"]) == ("SFT", "judge"))
    assert pair["diff"] == 0.125, "on the two people both have: 0.5 against 0.5 and (0.5 + 0) / 2"
    assert "judge's grade" in joint_table(found["table"]) and "score" in pairs_table(found["pairs"])


def test_readable_leaves_out_what_one_seed_lacks():
    scores = [dict(method=m, seed=s, item=i, rouge=1.0) | ({} if (m, s, i) == ("a", 1, 0) else dict(judge=0.1)) for m in "ab" for s in (0, 1) for i in (0, 1)]
    assert {(r["method"], r["item"]) for r in readable(scores, "ab") if "judge" in r} == {("a", 1), ("b", 1)}
    assert {(r["method"], r["item"]) for r in readable(scores, "b") if "judge" in r} == {("b", 0), ("b", 1)} and len(readable(scores, "b")) == 4


@pytest.mark.parametrize("names", [("one",), ("one", "two")])
def test_what_is_written(tmp_path, names):
    run, out = a_run(tmp_path / "run"), an_outcome(names)
    found = report(run, out)
    metrics = json.loads((run.out_dir / "metrics.json").read_text())
    assert rounded(read_tables(run.out_dir)) == {k: metrics[k] for k in ("table", "pairs")} == rounded({k: found[k] for k in ("table", "pairs")})
    assert {"run", "params", "seeds", "table", "pairs", "cost", "iterations", "levels", "teacher", "unread", "data"} <= set(metrics) and metrics["run"] == "rest_pg"
    for name in names:
        told = json.loads((run.out_dir / name / "evaluation_results.json").read_text())
        assert set(told["results"]) == set(told["cost"]) == {"SFT", "ReST-EM", "REST-PG", "oracle"} and told["chosen"]["REST-PG"] == {"0": 1, "1": 2}
        assert set(told["results"]["SFT"]) == {"gold_reward", "rouge", "rouge1", "rougeL", "parsed", "tokens", "reasoning_tokens"} and "gold_reward: REST-PG against SFT" in told["margins"]
    rows = read_jsonl(run.out_dir / "generation_rest-pg.jsonl")
    assert len(rows) == 6 * len(names) and {"prediction", "reference", "x", "user_id", "reasoning", "seed", "dataset"} <= set(rows[0]) and rows[0]["reference"] == "a b c d"
    assert read_jsonl(run.out_dir / "generation_sft.jsonl")[5]["prediction"] == ""
    assert len({(r["seed"], r["item"]) for r in rows}) == len(rows), "a judge can pair them"


def test_other_commands_take_the_texts(tmp_path, capsys):
    from rlgen.cli import main
    from rlgen.verdicts import paired_rows

    run = a_run(tmp_path / "run")
    report(run, an_outcome(("one", "two")))
    assert main(["metrics", str(run.out_dir / "generation_sft.jsonl")]) == 0 and '"rougeL"' in capsys.readouterr().out
    assert main(["metrics", str(run.out_dir)]) == 0 and "two: REST-PG" in capsys.readouterr().out
    assert len(paired_rows(run.out_dir / "generation_rest-pg.jsonl", run.out_dir / "generation_sft.jsonl")) == 12


def test_the_judge_is_asked_when_all_else_is_written(tmp_path, monkeypatch):
    run = a_run(tmp_path / "run", judge_model="some-judge")
    monkeypatch.setattr(run, "machine", replace(run.machine, cache_dir=tmp_path / "cache"))
    def fails(request): raise KeyError("gone")
    monkeypatch.setattr(module, "judge_backend", lambda model, url: Oracle(fails))
    with pytest.raises(KeyError): report(run, an_outcome())
    assert "judge" not in (run.out_dir / "scores.csv").read_text().splitlines()[0] and (run.out_dir / "generation_sft.jsonl").is_file()
    monkeypatch.setattr(module, "judge_backend", lambda model, url: Oracle(lambda request: "A"))
    found = report(run, an_outcome())
    assert "judge" in (run.out_dir / "scores.csv").read_text().splitlines()[0] and {r["mean"] for r in found["table"] if r["metric"] == "judge"} >= {1.0}
    assert read_jsonl(run.out_dir / "generation_oracle.jsonl")[0]["judge"] == 1.0
    monkeypatch.setattr(module, "judge_backend", lambda model, url: Oracle(fails))
    assert report(run, an_outcome()) == found, "its replies are kept"


def test_real_data_has_no_gold(tmp_path):
    out = an_outcome(gold=False, methods=("SFT", "REST-PG"))
    found = report(a_run(tmp_path / "run", num_samples=1), out)
    assert out.headline == found["table"][0]["metric"] == "rouge" and {r["metric"] for r in found["pairs"]} == {"rouge"} and "rouge" in found["samples"][0]["rows"][0]
    assert len(iteration_figure(found["iterations"], []).axes) == 1 and len(forced_figure(found["iterations"]).axes[0].get_legend().get_texts()) == 1
    assert reward_bars(found["table"], "rouge").axes[0].get_ylabel() == "mean of ROUGE-1 and ROUGE-L"


def test_samples_show_the_first_people_and_what_went_wrong():
    found = samples(Params(seeds=[1], num_samples=5, retriever="first", retrieval_top_k=1), an_outcome())
    assert [s["user_id"] for s in found] == ["ann <1>", "bob", "cy"] and found[1]["past"] == ["t u v ."] and found[1]["y"] == "e f g h"
    lost = found[2]["rows"][0]
    assert lost["method"] == "SFT" and lost["text"] is None and lost["output"] == "raw None" and "output" not in found[2]["rows"][1]


def test_long_and_wild_texts_fit_the_page():
    out = an_outcome()
    for r in out.texts["one", "REST-PG", 0]: r |= dict(text=LONG, reasoning="<reasoning> </table>" + LONG)
    page = side_by_side(samples(Params(seeds=[0], num_samples=2, retriever="first"), out), "gold_reward").data
    assert "<b>Text" not in page and "</table>ein" not in page and "&lt;b&gt;Text" in page and "ann &lt;1&gt;" in page
    assert len(page) < 12000 and "w" * 700 not in page and page.count("<table") == page.count("</table>") == 2


def test_iterations_are_means_over_seeds():
    out = an_outcome()
    out.iterations[1]["reward"] = 0.9  # ReST-EM, seed 0, iteration 1; seed 1 has 0.4
    view = iteration_table(out.iterations)
    assert view.loc[("ReST-EM", 1), ("E-step", "reward")] == "0.65" and view.loc[("REST-PG", 0), ("E-step", "reward")] == "" and view.loc[("REST-PG", 2), ("", "chosen")] == "1/2"
    assert iteration_table(an_outcome(("a", "b")).iterations).index.names == ["data set", "method", "t"]


def test_levels_come_from_the_curves_of_long_trainings(tmp_path):
    from types import SimpleNamespace

    from rlgen.record import Stage

    for name, lines in (("a", '{"step": 2, "validation": 0.4}\n{"step": 4, "validation": 0.7, "loss": 1}\n{"step": 6, "validation": 0.6}\n'), ("b", '{"step": 2, "loss": 0.4}\n')):
        (tmp_path / name).mkdir()
        (tmp_path / name / "curves.jsonl").write_text(lines)
    done = [Stage("sft", f"novels/3/sft/{m}", "", tmp_path / f, 0, {}) for m, f in (("SFT-long", "a"), ("SFT", "b"))]
    run = SimpleNamespace(params=Params(), stages=done)
    assert levels(run) == [dict(dataset="novels", seed=3, method="SFT-long", validation_reward=0.7)]
    run.params = Params(reward="judge", judge_model="x")  # then the judge has chosen
    assert levels(run)[0]["validation_reward"] == 0.7


def test_pictures_of_one_and_of_several_data_sets():
    for names in (("one",), ("one", "two", "three")):
        out = an_outcome(names)
        told, n = tables(score_rows(out)), len(names)
        assert [len(ax.patches) for ax in reward_bars(told["table"], "gold_reward").axes] == [3] * n, "the oracle is a line"
        curves = iteration_figure(out.iterations, [dict(dataset="one", method="SFT-long", seed=0, validation_reward=0.6)])
        assert len(curves.axes) == 2 * n and len(curves.axes[0].lines) == 7, "two methods, two seeds and their mean, and a level"
        assert len(histogram_figure(out.iterations, 0.5).axes) == 2 * n and len(forced_figure(out.iterations).axes) == n
    assert forced_figure([r for r in out.iterations if r["method"] == "ReST-EM"]) is None


def test_a_run_without_self_training(tmp_path):
    out = replace(an_outcome(methods=("base", "SFT")), iterations=[])
    found = report(a_run(tmp_path / "run", methods=["base", "SFT"]), out)
    assert found["pairs"] == [] and len(pairs_table([])) == 0 and len(iteration_table([])) == 0 and forced_figure([]) is None
