"""The run notebook's parameters cell, the dataclass and the presets name the same things."""
import ast
import dataclasses
import importlib
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
