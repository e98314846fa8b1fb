"""The run notebook's parameters cell, the dataclass and the presets name the same things."""
import ast
import dataclasses
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from rlgen.record import check_params, read_params

ROOT = Path(__file__).resolve().parent.parent
SYSTEMS = sorted(p.stem.removeprefix("run_") for p in (ROOT / "nbs").glob("run_*.ipynb") if (ROOT / "rlgen" / p.stem.removeprefix("run_") / "run.py").is_file())


def parameters_cell(algo: str) -> dict:
    "Names, types and values in the tagged cell."
    nb = json.loads((ROOT / "nbs" / f"run_{algo}.ipynb").read_text())
    (cell,) = [c for c in nb["cells"] if "parameters" in c["metadata"].get("tags", [])]
    return {s.target.id: (ast.unparse(s.annotation), ast.literal_eval(s.value)) for s in ast.parse("".join(cell["source"])).body}


@pytest.mark.parametrize("algo", SYSTEMS)
def test_cell_equals_dataclass(algo):
    cls = importlib.import_module(f"rlgen.{algo}.run").Params
    if importlib.util.find_spec(f"rlgen.{algo}.setup"): assert importlib.import_module(f"rlgen.{algo}.setup").Params is cls
    defaults = cls()
    fields = {f.name: (f.type if isinstance(f.type, str) else f.type.__name__, getattr(defaults, f.name)) for f in dataclasses.fields(cls)}
    assert parameters_cell(algo) == fields
    assert list(parameters_cell(algo)) == list(fields)


@pytest.mark.parametrize("preset", sorted(ROOT.glob("params/*/*.yaml")), ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_presets_are_checked_and_hold_only_differences(preset):
    module = importlib.import_module(f"rlgen.{preset.parent.name}.run")
    given = read_params([preset], {})
    params, defaults = check_params(module.Params, given), module.Params()
    same = [k for k in given if k != "params_name" and getattr(params, k) == getattr(defaults, k)]
    assert not same, f"equal to the default: {same}"


COMMITTED = sorted(p.parent for algo in SYSTEMS for p in ROOT.glob(f"results/{algo}/*/scores.csv"))


@pytest.mark.parametrize("folder", COMMITTED, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_committed_tables_are_what_the_scores_say(folder):
    "Worked out anew from scores.csv; a result older than the code may know fewer pairs."
    from rlgen.core import RlgenError
    from rlgen.record import rounded

    read_tables = importlib.import_module(f"rlgen.{folder.parent.name}.report").read_tables
    found = json.loads((folder / "metrics.json").read_text())
    try: again = rounded(read_tables(folder))
    except (RlgenError, KeyError) as e: pytest.skip(f"scores.csv of another time: {e}")
    for name, keys in (("table", ("method", "metric")), ("pairs", ("a", "b", "metric"))):
        there, now = ({tuple(r[k] for k in keys): r for r in rows} for rows in (found[name], again[name]))
        assert there and set(there) <= set(now)
        for key, row in there.items():
            for k, v in row.items(): assert now[key][k] == pytest.approx(v, abs=tolerance(k)), (key, k)


def tolerance(key: str) -> float:
    "Rounding of the last digit; a quotient of rounded numbers may be off by more."
    return 5e-3 if key.startswith("relative") else 1.1e-4


def test_results_are_readable_and_their_params_still_exist():
    for f in ROOT.glob("results/*/*/metrics.json"):
        if f.parent.parent.name == "runs": continue
        found, module = json.loads(f.read_text()), importlib.import_module(f"rlgen.{f.parent.parent.name}.run")
        assert {"run", "params", "seeds", "table", "pairs", "cost"} <= set(found)
        check_params(module.Params, found["params"])


@pytest.mark.parametrize("algo", SYSTEMS)
def test_the_run_notebook_on_its_smoke_preset(algo, tmp_path):
    import os
    env = os.environ | {"RLGEN_CACHE_DIR": str(tmp_path / "cache"), "RLGEN_RESULTS_DIR": str(tmp_path / "results"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-m", "rlgen", "run", algo, "-f", f"params/{algo}/smoke.yaml"], cwd=ROOT, env=env, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr[-2000:]
    (folder,) = (tmp_path / "results" / "runs" / algo).iterdir()
    nb = json.loads((folder / "run.ipynb").read_text())
    assert not [o for c in nb["cells"] for o in c.get("outputs", []) if o["output_type"] == "error"]
    assert folder.name.startswith("smoke-") and len(list(folder.glob("*.png"))) >= 2


def test_the_papers_presets_ask_for_what_was_published():
    "Weights, candidates, samples, new tokens and models of Rashid et al. 2024; rows exist and begin."
    from rlgen.pargs.setup import GUIDED, METHODS, Params

    for name in ("tldr_paper", "hh_paper"):
        p = check_params(Params, read_params([ROOT / "params" / "pargs" / f"{name}.yaml"], {}))
        assert (p.k, p.best_of_n, p.max_new_tokens, p.num_test, p.num_pairs, p.partial_min_tokens) == (10, 10, 64, 100, 8192, 20)
        assert {m: p.weight(m) for m in ("ARGS", "PARGS-G", "PARGS", "BESTN")} == {"ARGS": 1.0, "PARGS-G": 1.0, "PARGS": 2.0, "BESTN": 0.0}
        assert p.reward_model and p.base_model.count("/") == 1 and set(p.methods) <= set(METHODS)
    assert set(GUIDED) < set(METHODS) and Params().methods == list(METHODS)


def test_rest_pgs_presets_ask_for_what_was_published():
    "Both presets' names and values as methods tell them; without the data, one line says what is missing."
    from rlgen.core import RlgenError
    from rlgen.rest_pg.setup import METHODS, Params, load_problems, start, steps_of

    for name in ("public", "paper"):
        p = check_params(Params, read_params([ROOT / "params" / "rest_pg" / f"{name}.yaml"], {}))
        assert (p.model_name, p.reasoning_model, p.num_iterations, p.exploration_budget, p.max_outputs_per_input) == ("google/gemma-2b", "google/gemma-7b-it", 3, 32, 10)
        assert (p.learning_rate, p.batch_size, p.warmup_steps, p.max_input_length, p.max_output_length, p.retrieval_top_k) == (5e-6, 64, 250, 5120, 1536, 5)
        assert (p.temperature, p.inference_temperature, p.optimizer, p.decay, p.weight_decay, p.num_val, p.m_step_from) == (0.7, 0.1, "adafactor", "linear", 0.01, 1024, "base")
        assert (p.reward, p.reward_threshold, p.num_epochs, p.max_steps) == (("rouge", 0.3, 3, 0) if name == "public" else ("judge", 1.0, 0, 10000))
        assert steps_of(p, 14745) == (691 if name == "public" else 10000) and p.methods == list(METHODS)
        with pytest.raises(RlgenError, match=r"data/longlamp/abstract/train\.jsonl: no such file"): load_problems(p)
    assert callable(start)


def test_the_smoke_run_teaches_enough_to_be_read(tmp_path, monkeypatch):
    "Outputs of its shortest training parse often enough that an E-step keeps some."
    from rlgen.core import settings
    from rlgen.rest_pg.run import stages
    from rlgen.rest_pg.setup import Params, start

    for k in ("CACHE", "RESULTS"): monkeypatch.setenv(f"RLGEN_{k}_DIR", str(tmp_path / k))
    settings.cache_clear()
    out = stages(start(check_params(Params, read_params([ROOT / "params" / "rest_pg" / "smoke.yaml"], {"methods": ["SFT-reasoning", "REST-PG"]}))))
    settings.cache_clear()
    assert sum(r["parsed"] for r in out.texts["world", "SFT-reasoning", 0]) >= 6 and out.iterations[1]["coverage"] > 0.3
