"""The main job from the outside: commands as a person types them, on smoke parameters."""
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SMALL = dict(num_pairs=64, num_held_out=40, rm_epochs=1, num_test=8, alphas=[0.0, 1.0], num_samples=2, max_new_tokens=16, batch_size=4, best_of_n=3)


def environment(folder: Path, **more) -> dict:
    "An environment whose cache and results lie in `folder`."
    return os.environ | {"RLGEN_CACHE_DIR": str(folder / "cache"), "RLGEN_RESULTS_DIR": str(folder / "results"), "RLGEN_NUM_PROCESSES": "1", "HF_HUB_OFFLINE": "1",
                         "OMP_NUM_THREADS": "1", "RLGEN_DEVICE": "cpu"} | more


def command(*words: str, folder: Path, check: bool = True, **kwargs) -> subprocess.CompletedProcess:
    "Run a command at the repository's root."
    done = subprocess.run([sys.executable, *words], cwd=ROOT, env=environment(folder, **kwargs.pop("env", {})), capture_output=True, text=True, stdin=subprocess.DEVNULL, **kwargs)
    assert not check or done.returncode == 0, done.stderr[-2000:]
    return done


def the_run(folder: Path) -> Path:
    "The one run folder below a results folder."
    (found,) = (folder / "results" / "runs" / "pargs").iterdir()
    return found


def rlgen(verb: str, folder: Path, check: bool = True, env: dict | None = None, **params) -> subprocess.CompletedProcess:
    return command("-m", "rlgen", verb, "pargs", "-y", json.dumps(SMALL | params), folder=folder, check=check, env=env or {})


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    "A folder with one finished run."
    folder = tmp_path_factory.mktemp("undisturbed")
    shown = rlgen("run", folder).stdout
    assert "GREEDY" in shown and "run.ipynb" in shown and "rewards.png" in shown
    return folder


def metrics(folder: Path) -> str:
    return (the_run(folder) / "metrics.json").read_text()


def test_run_leaves_everything(undisturbed):
    there = {p.name for p in the_run(undisturbed).iterdir()}
    assert {"run.ipynb", "params.yaml", "metrics.json", "curves.csv", "scores.csv", "samples.jsonl", "env.json", "rewards.png", "reward_kl.png", "models",
            "generation_args.jsonl", "generation_greedy.jsonl", "generation_bestn.jsonl", "generation_top-k.jsonl"} <= there
    found = json.loads(metrics(undisturbed))
    assert {"run", "params", "seeds", "table", "pairs", "cost"} <= set(found)
    assert all(set(r) == {"method", "metric", "mean", "se", "low", "high", "n", "seeds", "by_seed"} for r in found["table"])
    assert all(set(r) == {"a", "b", "metric", "diff", "low", "high", "p", "by_seed"} for r in found["pairs"])
    assert str(undisturbed) not in metrics(undisturbed)
    notebook = (the_run(undisturbed) / "run.ipynb").read_text()
    assert "papermill" not in json.loads(notebook)["metadata"] and '"stderr"' not in notebook


def test_two_runs_agree_to_the_byte(undisturbed, tmp_path):
    rlgen("run", tmp_path)
    assert metrics(tmp_path) == metrics(undisturbed)
    a, b = (json.loads((the_run(f) / "run.ipynb").read_text())["cells"] for f in (undisturbed, tmp_path))
    for x, y in zip(a, b):
        if x["id"] != "injected-parameters": assert x == y, x["id"]


GUARD = """
import os, socket
def refuse(self, address, plain=socket.socket.connect):
    if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in ("127.0.0.1", "::1", "localhost"):
        open(os.environ["GUARD_LOG"], "a").write(f"{address}\\n")
        raise OSError("no network in this test")
    return plain(self, address)
def no_lookup(host, *a, plain=socket.getaddrinfo, **k):
    if host not in (None, "", "127.0.0.1", "::1", "localhost", "0.0.0.0", socket.gethostname()):
        open(os.environ["GUARD_LOG"], "a").write(f"look-up of {host}\\n")
        raise OSError("no network in this test")
    return plain(host, *a, **k)
socket.socket.connect, socket.getaddrinfo = refuse, no_lookup
"""


def test_no_process_of_a_run_asks_for_the_network(tmp_path):
    (tmp_path / "guard").mkdir()
    (tmp_path / "guard" / "sitecustomize.py").write_text(GUARD)
    watched = {"PYTHONPATH": str(tmp_path / "guard"), "GUARD_LOG": str(tmp_path / "asked"), "HF_HUB_OFFLINE": "0"}
    probe = command("-c", "import socket; socket.create_connection(('192.0.2.1', 80), 1)", folder=tmp_path, check=False, env=watched)
    assert "no network in this test" in probe.stderr and (tmp_path / "asked").read_text()
    (tmp_path / "asked").unlink()
    rlgen("run", tmp_path, env=watched)
    assert not (tmp_path / "asked").exists(), (tmp_path / "asked").read_text()


def test_alpha_zero_is_greedy_and_alpha_moves_no_other_row(undisturbed, tmp_path):
    rlgen("run", tmp_path, alpha=0.0)
    then, now = json.loads(metrics(undisturbed)), json.loads(metrics(tmp_path))
    def rows(m, method): return [{k: v for k, v in r.items() if k != "method"} for r in m["table"] if r["method"] == method]
    for method in ("TOP-K", "GREEDY", "BESTN"): assert rows(then, method) == rows(now, method)
    assert rows(now, "ARGS") == rows(now, "GREEDY")


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.slow)])
def test_killed_and_started_again_ends_the_same(undisturbed, tmp_path, seed):
    words = [sys.executable, "-m", "rlgen", "stages", "pargs", "-y", json.dumps(SMALL)]
    victim = subprocess.Popen(words, cwd=ROOT, env=environment(tmp_path), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("cache/pargs/*.partial")) and time.monotonic() < deadline: time.sleep(0.05)
    time.sleep(random.Random(seed).uniform(0, 3))
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    rlgen("run", tmp_path)
    assert metrics(tmp_path) == metrics(undisturbed)
    assert not list(tmp_path.glob("cache/pargs/*.partial"))


def test_two_processes_write_the_same_texts_and_scores(undisturbed, tmp_path):
    model = next(the_run(undisturbed).glob("models/reward_model-0"))
    for name, words in (("one", []), ("two", ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"])):
        told = command(*words, "-m", "rlgen", "stages", "pargs", "-y", json.dumps(SMALL | dict(reward_model=str(model))), folder=tmp_path / name,
                       env={"ACCELERATE_USE_CPU": "true"})
        assert f"world of {2 if words else 1}" in told.stderr
    def texts(name): return sorted(p.read_text() for p in (tmp_path / name).glob("cache/pargs/texts-*/texts.jsonl"))
    def cost(name): return sorted(json.dumps(json.loads(p.read_text())["cost"]) for p in (tmp_path / name).glob("cache/pargs/texts-*/stage.json"))
    assert texts("one") == texts("two") and len(texts("one")) == 5
    assert cost("one") == cost("two")


def test_papermill_as_in_the_readme(tmp_path, undisturbed):
    given = [w for k, v in SMALL.items() if not isinstance(v, list) for w in ("-p", k, str(v))] + ["-y", "alphas: [0.0, 1.0]", "-p", "alpha", "1.0"]
    literal = command("-m", "papermill", "nbs/run_pargs.ipynb", *given, folder=tmp_path)
    assert json.loads(literal.stdout)["cells"]
    assert metrics(tmp_path) == metrics(undisturbed)
    command("-m", "papermill", "nbs/run_pargs.ipynb", str(tmp_path / "mine.ipynb"), *given, folder=tmp_path)
    assert (tmp_path / "mine.ipynb").is_file()


def test_papermill_with_a_mistyped_name_fails_in_the_check(tmp_path):
    done = command("-m", "papermill", "nbs/run_pargs.ipynb", str(tmp_path / "mine.ipynb"), "-p", "alpah", "1.0", folder=tmp_path, check=False)
    assert done.returncode and "did you mean 'alpha'?" in done.stderr


def pairs_file(folder: Path, *lines: str) -> str:
    path = folder / "pairs.jsonl"
    path.write_text("".join(line + "\n" for line in lines))
    return str(path)


GOOD = json.dumps(dict(prompt="my boss sold the car", chosen="yes .", rejected="no ."))


@pytest.mark.parametrize("params, expected", [
    (dict(alpah=1), "did you mean 'alpha'?"),
    (dict(alpha=-1), "at least 0"),
    (dict(alpha="two"), "expected a number"),
    (dict(methods=["ARGZ"]), "did you mean 'ARGS'?"),
    (dict(seeds=[]), "give at least one"),
    (dict(base_model="./nowhere"), "no such model folder"),
    (dict(base_model="somebody/never-published"), "offline"),
    (dict(data="nowhere.jsonl"), "nowhere.jsonl"),
    (dict(data="nobody/never-published"), "offline"),
    (dict(out_dir="README.md/inside"), "can't write"),
    (dict(max_new_tokens=4000), "max_new_tokens"),
    (dict(max_prompt_tokens=3), "nothing is left"),
])
def test_mistakes_get_one_line(tmp_path, params, expected):
    done = rlgen("run", tmp_path, check=False, **params)
    lines = [x for x in done.stderr.splitlines() if x.startswith("rlgen: ")]
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr[-2000:]
    assert len(lines) == 1 and expected in lines[0], lines


@pytest.mark.parametrize("lines, expected", [
    ([GOOD, "{broken"], "pairs.jsonl:2"),
    ([GOOD, json.dumps(dict(prompt="x", chosen="", rejected="no ."))], "pairs.jsonl:2"),
    ([], "no rows"),
    ([json.dumps(dict(prompt="x", chosen="same .", rejected="same ."))], "nothing"),
    ([GOOD, GOOD], "too few"),
])
def test_bad_files_get_one_line(tmp_path, lines, expected):
    done = rlgen("run", tmp_path, check=False, data=pairs_file(tmp_path, *lines))
    told = [x for x in done.stderr.splitlines() if x.startswith("rlgen: ")]
    assert done.returncode == 2 and len(told) == 1 and expected in told[0], done.stderr[-1500:]


def test_foreign_results_folder_is_refused_and_kept(undisturbed, tmp_path):
    folder = tmp_path / "mine"
    rlgen("stages", tmp_path, out_dir=str(folder), methods=["GREEDY"], alphas=[])
    before = (folder / "params.yaml").read_bytes()
    done = rlgen("run", tmp_path, check=False, out_dir=str(folder), methods=["TOP-K"], alphas=[])
    assert done.returncode == 2 and "holds another run" in done.stderr and (folder / "params.yaml").read_bytes() == before


def test_model_folder_without_tokenizer(tmp_path):
    import shutil
    shutil.copytree(ROOT / "rlgen" / "zoo" / "posts", tmp_path / "bare", ignore=shutil.ignore_patterns("token*"))
    done = rlgen("run", tmp_path, check=False, base_model=str(tmp_path / "bare"))
    assert done.returncode == 2 and "no tokenizer" in done.stderr


@pytest.mark.slices
def test_real_preferences_and_a_real_model(slices, models_dir, tmp_path):
    done = rlgen("run", tmp_path, data=str(slices / "hh_rlhf_helpful" / "pairs.jsonl.gz"), base_model=str(models_dir / "stories260k"), num_pairs=24, num_held_out=8,
                 max_prompt_tokens=96, num_test=4, sft_steps=2, micro_batch=4)
    assert "eval_reward" in done.stdout
    found = json.loads(metrics(tmp_path))
    assert found["data"]["rows"] == 2354 and found["data"]["equal"] == 2 and found["data"]["prompts_shortened"] > 0
    assert {"reward_model", "eval_reward_model"} == set(found["reward_models"])
