"""A PARGS run that names a judge: every row against the baseline, written last, and only where asked for."""
import json

import pytest

from rlgen.chat import Oracle
from rlgen.core import RlgenError, settings
from rlgen.judge import framed_texts
from rlgen.pargs import report as module
from rlgen.pargs.report import judged, report
from rlgen.pargs.run import Outcome
from rlgen.pargs.setup import Params, Problem, start
from rlgen.record import check_params


def outcome(n: int = 3, seeds=(0, 1)) -> Outcome:
    "Two rows that differ on all prompts but the last."
    def rows(m, s): return [dict(item=i, prompt=f"p{i}", completion="same" if i == n - 1 else f"{m} {s} {i}", gold_reward=0.0, proxy=0.0, kl=0.0, tokens=1, finished=True) for i in range(n)]
    texts = {(m, Params().weight(m), s): rows(m, s) for m in ("TOP-K", "GREEDY", "ARGS") for s in seeds}
    return Outcome(Problem([], [], None, [], gold=lambda p, t: 0.0), texts, {}, {}, {}, dict(lm=1, rm=1), {})


def judge(asked=None) -> Oracle:
    "Prefers ARGS, then GREEDY."
    def answer(request):
        x = framed_texts(request)
        if asked is not None: asked.append(x)
        one, two = (("ARGS" in x[k]) * 2 + ("GREEDY" in x[k]) for k in ("answer 1", "answer 2"))
        return json.dumps(dict(better=1 if one > two else 2 if two > one else 0))
    return Oracle(answer)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.setenv("RLGEN_CACHE_DIR", str(tmp_path / "cache"))
    settings.cache_clear()
    yield tmp_path
    settings.cache_clear()


def test_every_row_against_the_first_baseline():
    asked, p = [], Params(methods=["TOP-K", "GREEDY", "ARGS"], seeds=[1, 0], num_judged=2)
    rows, verdicts = judged(p, outcome(), judge(asked))
    assert [(r["a"], r["b"], r["wins"], r["losses"], r["ties"]) for r in rows] == [("TOP-K", "GREEDY", 0, 2, 0), ("ARGS", "GREEDY", 2, 0, 0)]
    assert len(asked) == 8 and {x["request"] for x in asked} == {"p0", "p1"} and all(" 1 " in x["answer 1"] for x in asked), "the first prompts, of the first seed"
    assert [(v["method"], v["baseline"], v["seed"], v["item"], v["outcome"]) for v in verdicts] == [("TOP-K", "GREEDY", 1, 0, "b"), ("TOP-K", "GREEDY", 1, 1, "b"), ("ARGS", "GREEDY", 1, 0, "a"), ("ARGS", "GREEDY", 1, 1, "a")]


@pytest.mark.parametrize("methods, base", [(["ARGS", "TOP-K"], "TOP-K"), (["ARGS"], None)])
def test_other_baselines(methods, base):
    rows, _ = judged(Params(methods=methods), outcome(), judge())
    assert [(r["a"], r["b"], r["equal"]) for r in rows] == ([("ARGS", base, 1)] if base else [])


def test_report_asks_only_where_a_judge_is_named(here, monkeypatch):
    named = []
    monkeypatch.setattr(module, "judge_backend", lambda *a: named.append(a) or judge())
    plain, run = (start(Params(methods=["GREEDY", "ARGS"], num_samples=1, out_dir=str(here / d), **more)) for d, more in (("plain", {}), ("judged", dict(judge_model="m", judge_url="http://localhost:1/v1"))))
    assert "judge" not in report(plain, outcome()) and not named and "judge" not in json.loads((plain.out_dir / "metrics.json").read_text())
    found = report(run, outcome())
    assert named == [("m", "http://localhost:1/v1")] and json.loads((run.out_dir / "metrics.json").read_text())["judge"][0]["wins"] == found["judge"][0]["wins"] == 2
    assert len((run.out_dir / "verdicts.jsonl").read_text().splitlines()) == 3 and list((here / "cache" / "chat").iterdir())
    before = {f.name: f.read_bytes() for f in run.out_dir.iterdir() if f.name != "env.json"}
    report(run, outcome())
    assert before == {f.name: f.read_bytes() for f in run.out_dir.iterdir() if f.name != "env.json"}, "a second time from the cache, to the byte"


def test_a_judge_that_does_not_answer_loses_nothing(here):
    run = start(Params(methods=["GREEDY", "ARGS"], num_samples=1, out_dir=str(here / "run"), judge_model="m", judge_url="http://127.0.0.1:9/v1"))
    with pytest.raises(RlgenError, match="127.0.0.1:9"): report(run, outcome())
    assert json.loads((run.out_dir / "metrics.json").read_text())["table"] and (run.out_dir / "generation_args.jsonl").is_file()


@pytest.mark.parametrize("given, word", [(dict(judge_url="http://localhost:1/v1"), "judge_model"), (dict(judge_model="m", judge_url="localhost"), "http://localhost")])
def test_mistakes_are_found_before_anything_is_loaded(given, word, here):
    with pytest.raises(RlgenError, match=word): start(check_params(Params, given | dict(out_dir=str(here / "run"))))
    assert not (here / "run").exists()
