"rlgen.pargs.benchmark: the slow way writes the same tokens, the bound does the work it says, and the clock is fair."
import ast
import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_models import make_model

from rlgen.core import RlgenError
from rlgen.lm import encode_prompt, load_lm
from rlgen.pargs import benchmark
from rlgen.pargs.benchmark import Params, bound, hf_generate, interleaved, load_pair, long_prompts, measure, naive_guided, save_benchmark, speed_ratios, ways
from rlgen.pargs.decoding import guided
from rlgen.pargs.scorers import TreeScorer
from rlgen.record import check_params
from rlgen.reward import load_reward_model
from rlgen.sampling import Cost, generate

ROOT = Path(__file__).resolve().parent.parent
TEXTS = ["the cat", "a dog ran over the hill and", "what did you eat today ?", "my neighbour lost her keys"]
SMALL = Params(models=["random"], width=16, layers=1, heads=2, prompt_tokens=12, new_tokens=5, batch_sizes=[1, 3], k=4, best_of_n=2, max_rows=4, naive_prompts=2, repeats=2, seconds=0.0)

pytestmark = pytest.mark.usefixtures("double")


@pytest.fixture(scope="module", params=["gpt2", "llama", "gemma"])
def pair(request, tmp_path_factory):
    "A writer and a guide with strong opinions."
    lm = load_lm(str(make_model(request.param, tmp_path_factory.mktemp("lm"))))
    rm = load_reward_model(str(make_model(request.param, tmp_path_factory.mktemp("rm"), head="reward", seed=1)))
    rm.model.score.weight.data *= 20
    return lm, rm


@pytest.fixture(scope="module")
def small():
    "The benchmark's own random pair."
    from rlgen.core import settings
    settings.cache_clear()
    return load_pair("random", SMALL)


def watch(model):
    "Every forward pass of a model from now on, as (rows, tokens a row)."
    seen = []
    model.register_forward_pre_hook(lambda module, args, kwargs: seen.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True)
    return seen


@pytest.mark.parametrize("alpha", [0.0, 1.0, 4.0])
def test_naive_writes_our_tokens(pair, alpha):
    "To the limit, and where a token in the middle of the second text ends texts."
    lm, rm = pair
    lm.model.generation_config.eos_token_id = None
    prompts = [encode_prompt(lm, t) for t in TEXTS]
    def both(): return [naive_guided(lm, rm, p, alpha, 6, 12) for p in prompts], [r.completion_ids for r in generate(lm, prompts, guided(TreeScorer(rm, lm.tokenizer.eos_token_id), alpha, k=6), 12)]
    naive, ours = both()
    assert naive == ours
    lm.model.generation_config.eos_token_id = [lm.tokenizer.eos_token_id, naive[1][min(3, len(naive[1]) - 1)]]
    naive, ours = both()
    assert naive == ours and len(ours[1]) <= 4


def test_naive_depends_on_the_reward(pair):
    lm, rm = pair
    texts = {a: [naive_guided(lm, rm, encode_prompt(lm, t), a, 6, 8) for t in TEXTS] for a in (0.0, 4.0)}
    assert texts[0.0] != texts[4.0]


def test_naive_reads_what_it_says(small):
    lm, rm = small
    prompt, cost = long_prompts(lm, SMALL)[0], Cost()
    lm_seen, rm_seen = watch(lm.model), watch(rm.model.base_model)
    naive_guided(lm, rm, prompt, 1.0, 4, 5, cost)
    assert lm_seen == [(1, 12 + t) for t in range(5)] and rm_seen == [(1, 13 + t) for t in range(5) for _ in range(4)]
    assert (cost.lm_tokens, cost.lm_forwards, cost.rm_tokens, cost.rm_forwards) == (5 * 12 + 10, 5, 4 * (12 * 5 + 15), 20)


def test_bound_reads_what_it_says(small):
    "B prompts once, then one token a row and k candidates a row at every step; the same as the tree."
    lm, rm = small
    prompts, tree = long_prompts(lm, SMALL), Cost()
    lm_seen, rm_seen = watch(lm.model), watch(rm.model.base_model)
    cost = bound(lm, rm, prompts, 4, 5)
    assert lm_seen == [(3, 12)] + [(3, 1)] * 4 and rm_seen == [(3, 12)] + [(3, 4)] * 5
    lm_seen.clear(), rm_seen.clear()
    generate(lm, prompts, guided(TreeScorer(rm, 1, cost=tree), 1.0, k=4), 5, cost=tree)
    assert lm_seen == [(3, 12)] + [(3, 1)] * 4 and rm_seen == [(3, 12)] + [(3, 4)] * 5 and tree == cost
    assert cost.rm_tokens == 3 * (12 + 4 * 5)


def test_bound_keeps_one_column_a_step(small, monkeypatch):
    import transformers
    lm, rm = small
    kept = []
    class Kept(transformers.DynamicCache):
        def __init__(self, *args, **kwargs): super().__init__(*args, **kwargs); kept.append(self)
    monkeypatch.setattr(transformers, "DynamicCache", Kept)
    bound(lm, rm, long_prompts(lm, SMALL), 4, 5)
    assert kept[-1].get_seq_length() == 12 + 5


def test_texts_of_the_library_do_not_end(pair):
    lm, _ = pair
    before = lm.model.generation_config.eos_token_id
    seen = watch(lm.model)
    cost = hf_generate(lm, [encode_prompt(lm, t) for t in TEXTS], 30)
    assert len(seen) == cost.lm_forwards == 30 and lm.model.generation_config.eos_token_id == before


def test_our_texts_do_not_end(small):
    lm, rm = small
    lm.model.lm_head.weight.data[lm.tokenizer.eos_token_id] *= 50
    prompts = long_prompts(lm, SMALL)
    assert [len(r.completion_ids) for r in generate(lm, prompts, guided(TreeScorer(rm, 1), 1.0, k=4), 5)] == [5, 5, 5]
    assert len(naive_guided(lm, rm, prompts[0], 1.0, 4, 5)) == 5


def test_every_way_does_its_work(small):
    took = {n: w() for n, w in ways(*small, long_prompts(small[0], SMALL)[:2], SMALL).items()}
    assert list(took) == ["guided", "bound", "sampling", "sampling, HF", "best of N"]
    assert took["guided"] == took["bound"] and took["sampling"] == took["sampling, HF"]
    assert took["best of N"].rm_tokens == 2 * 2 * (12 + 5) and took["best of N"].lm_tokens == took["sampling"].lm_tokens + 2 * 4  # prompts are read once
    assert "best of N" not in ways(*small, long_prompts(small[0], SMALL), SMALL)  # 6 rows, 4 allowed


def test_measured_rows(small):
    told = []
    rows = measure("random", *small, SMALL, log=lambda **row: told.append(row))
    assert [r["batch"] for r in told] == [1, 3]
    assert {(r["way"], r["batch"]): r["tokens"] for r in rows if r["way"] in ("guided", "public way")} == {("guided", 1): 5, ("guided", 3): 15, ("public way", 1): 10}
    assert [(r["way"], len(r["seconds"])) for r in rows[:5]] == [("guided", 2), ("bound", 2), ("sampling", 1), ("sampling, HF", 1), ("best of N", 1)]
    assert rows[-1]["same_tokens"] == 1.0 and rows[-1]["cost"]["rm_tokens"] == 2 * 4 * (12 * 5 + 15)
    assert {(r["batch"], r["ratio"], r["rounds"]) for r in speed_ratios(rows)} == {(b, n, 2) for b in (1, 3) for n in ("over the bound", "over the public way")}


def test_different_tokens_are_noticed(small, monkeypatch):
    monkeypatch.setattr(benchmark, "naive_guided", lambda *args: [0, 0, 0, 0, 0])
    assert measure("random", *small, SMALL)[-1]["same_tokens"] < 1


def test_rounds_take_turns():
    turns = []
    clock, out = interleaved({n: lambda n=n: turns.append(n) or n for n in "abc"}, repeats=4)
    assert "".join(turns) == "abccbaabccba" and out == dict(a="a", b="b", c="c") and {len(c) for c in clock.values()} == {4}
    import time
    clock, _ = interleaved(dict(a=lambda: time.sleep(0.01)), repeats=1, seconds=0.1)
    assert 3 <= len(clock["a"]) <= 10 and min(clock["a"]) >= 0.01


def test_a_ratio_is_formed_within_a_round():
    "A machine that is ten times slower in the second round changes no ratio."
    def row(way, batch, seconds): return dict(model="m", way=way, batch=batch, tokens=10 * batch, seconds=seconds)
    found = speed_ratios([row("guided", 8, [1.2, 12.0, 1.2]), row("bound", 8, [1.0, 10.0, 1.0]), row("public way", 1, [30.0])])
    assert found[0] == dict(model="m", batch=8, ratio="over the bound", median=1.2, low=1.2, high=1.2, rounds=3)
    assert found[1]["median"] == pytest.approx(3.0 * 80 / 1.2) and found[1]["low"] == pytest.approx(3.0 * 80 / 12)


def test_models_that_do_not_fit_are_refused(tmp_path):
    lm, other = make_model("gpt2", tmp_path / "lm"), make_model("llama", tmp_path / "rm", head="reward")
    deberta = make_model("deberta-v2", tmp_path / "d", head="reward")
    for rm in (other, deberta):
        with pytest.raises(RlgenError, match="share a tokenizer"): load_pair(str(lm), Params(reward_models={str(lm): str(rm)}))
    with pytest.raises(RlgenError, match="new_tokens = 999"): long_prompts(load_lm(str(lm)), Params(new_tokens=999))
    with pytest.raises(RlgenError, match="batch_sizes"): check_params(Params, dict(batch_sizes=[0]))


def test_saved(small, tmp_path):
    rows = measure("random", *small, SMALL)
    path = save_benchmark(dataclasses.replace(SMALL, out_dir=str(tmp_path / "b")), rows, benchmark.machine_facts(small[0].device), benchmark.speed_figure(rows), note=1)
    found = json.loads(path.read_text())
    assert {"run", "params", "env", "ratios", "rows", "note"} == set(found) and str(tmp_path) not in path.read_text()
    assert {"torch", "device", "threads", "cores", "load"} <= set(found["env"]) and found["env"]["dtype"] == "float64"
    assert path.name == "cpu.json" and path.with_suffix(".png").stat().st_size > 5000


def test_needs_nothing_a_gpu_machine_lacks():
    "Decoding is measured where there is neither trl nor datasets, faiss or papermill."
    code = "import sys, rlgen.pargs.benchmark; sys.exit(' '.join(m for m in ('trl', 'datasets', 'faiss', 'papermill', 'accelerate', 'peft', 'matplotlib', 'pandas') if m in sys.modules) or 0)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_notebooks_parameters_are_the_dataclass():
    nb = json.loads((ROOT / "nbs" / "run_benchmarks.ipynb").read_text())
    (cell,) = [c for c in nb["cells"] if "parameters" in c["metadata"].get("tags", [])]
    typed = [(s.target.id, ast.unparse(s.annotation), ast.literal_eval(s.value)) for s in ast.parse("".join(cell["source"])).body]
    assert typed == [(f.name, f.type if isinstance(f.type, str) else f.type.__name__, getattr(Params(), f.name)) for f in dataclasses.fields(Params)]


def test_the_run_notebook(tmp_path):
    "From end to end on a small model, without network."
    small = {k: v for k, v in dataclasses.asdict(SMALL).items() if k not in ("models", "out_dir", "params_name")}
    typed = ["-y", json.dumps(small | dict(models=["random", "zoo/posts"], out_dir=str(tmp_path)))]
    import os
    env = os.environ | dict(HF_HUB_OFFLINE="1", RLGEN_DEVICE="cpu", RLGEN_DTYPE="float32")
    done = subprocess.run([sys.executable, "-m", "papermill", "nbs/run_benchmarks.ipynb", str(tmp_path / "out.ipynb"), *typed], cwd=ROOT, env=env, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads((tmp_path / "cpu.json").read_text())
    assert {r["model"] for r in found["ratios"]} == {"random", "zoo/posts"} and found["params"]["k"] == 4


def test_the_e_steps_notebook(tmp_path):
    "As many outputs each way, and shares of an E-step that add up."
    import os
    small = dict(num_prompts=2, exploration_budget=2, batch_sizes=[1, 4], repeats=1, profile_prompts=4, out_dir=str(tmp_path))
    env = os.environ | dict(HF_HUB_OFFLINE="1", RLGEN_DEVICE="cpu", RLGEN_DTYPE="float32")
    done = subprocess.run([sys.executable, "-m", "papermill", "nbs/run_benchmarks_rest_pg.ipynb", str(tmp_path / "out.ipynb"), "-y", json.dumps(small)], cwd=ROOT, env=env, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads((tmp_path / "rest_pg.json").read_text())
    assert [r["way"] for r in found["rows"]] == ["one generate each", "E-step, 1 at a time", "E-step, 4 at a time"] and found["rows"][0]["times_as_fast"] == 1.0
    assert set(found["shares"]) == {"sampling", "rouge", "choosing"} and abs(sum(found["shares"].values()) - 1) < 1e-3
