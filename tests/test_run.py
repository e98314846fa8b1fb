"""The main job from the outside: commands as a person types them, on smoke parameters."""
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import helpers
from helpers import here_of
from tiny_models import make_model

from rlgen.pargs.run import check
from rlgen.pargs.setup import GUIDED, METHODS

ROOT = Path(__file__).resolve().parent.parent
SMALL = dict(num_pairs=64, num_held_out=40, rm_epochs=1, partial_epochs=1, ppo_steps=2, ppo_batch_size=16, num_test=8, alphas=[0.0, 1.0], num_samples=2, max_new_tokens=16,
             batch_size=4, best_of_n=3)
SMALL_REST = dict(num_train=80, num_val=12, num_test=12, num_iterations=1, exploration_budget=4, reward_threshold=0.4, batch_size=16, max_steps=25, warmup_steps=2, num_samples=2)


def environment(folder: Path, **more) -> dict:
    "An environment whose cache and results lie in `folder`."
    return os.environ | helpers.environment(folder, HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1") | more


def command(*words: str, folder: Path, check: bool = True, **kwargs) -> subprocess.CompletedProcess:
    "Run a command at the repository's root."
    done = subprocess.run([sys.executable, *words], cwd=ROOT, env=environment(folder, **kwargs.pop("env", {})), capture_output=True, text=True, stdin=subprocess.DEVNULL, **kwargs)
    assert not check or done.returncode == 0, done.stderr[-2000:]
    return done


def the_run(folder: Path, algo: str = "pargs") -> Path:
    "The one run folder below a results folder."
    (found,) = (folder / "results" / "runs" / algo).iterdir()
    return found


def rlgen(verb: str, folder: Path, check: bool = True, env: dict | None = None, algo: str = "pargs", **params) -> subprocess.CompletedProcess:
    small = SMALL if algo == "pargs" else SMALL_REST
    return command("-m", "rlgen", verb, algo, "-y", json.dumps(small | params), folder=folder, check=check, env=env or {})


here = here_of("pargs")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    "A folder with one finished run."
    folder = tmp_path_factory.mktemp("undisturbed")
    shown = rlgen("run", folder).stdout
    assert "GREEDY" in shown and "run.ipynb" in shown and "rewards.png" in shown
    return folder


def metrics(folder: Path, algo: str = "pargs") -> str:
    return (the_run(folder, algo) / "metrics.json").read_text()


def test_run_leaves_everything(undisturbed):
    there = {p.name for p in the_run(undisturbed).iterdir()}
    assert {"run.ipynb", "params.yaml", "metrics.json", "curves.csv", "scores.csv", "samples.jsonl", "env.json", "rewards.png", "reward_kl.png", "models",
            "prefix_accuracy.png", *(f"generation_{m.lower()}.jsonl" for m in METHODS)} <= there
    assert {p.name for p in (the_run(undisturbed) / "models").iterdir()} == {"reward_model-0", "partial_reward_model-0", "dpo-0", "ppo-0"}
    found = json.loads(metrics(undisturbed))
    assert {"run", "params", "seeds", "table", "pairs", "cost", "prefixes", "reward_models", "diversity", "data", "training"} <= set(found)
    assert list(dict.fromkeys(r["method"] for r in found["table"])) == list(METHODS) == [c["method"] for c in found["cost"]]
    assert set(found["training"]) == {"reward_model", "partial_reward_model", "dpo", "ppo"} and set(found["reward_models"]) == {"reward_model", "partial_reward_model"}
    rm_tokens = {c["method"]: c["rm_tokens"] for c in found["cost"]}
    assert rm_tokens["ARGS-EOS"] > rm_tokens["ARGS"] > rm_tokens["GREEDY"] == rm_tokens["TOP-K"] == rm_tokens["DPO"] == rm_tokens["PPO"] == 0 and rm_tokens["BESTN"] > 0
    assert all(set(r) == {"method", "metric", "mean", "se", "low", "high", "n", "seeds", "by_seed"} for r in found["table"])
    assert all(set(r) == {"a", "b", "metric", "diff", "low", "high", "p", "by_seed"} for r in found["pairs"])
    assert str(undisturbed) not in metrics(undisturbed)
    notebook = (the_run(undisturbed) / "run.ipynb").read_text()
    assert "papermill" not in json.loads(notebook)["metadata"] and '"stderr"' not in notebook


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


def test_two_runs_agree_to_the_byte_and_ask_for_no_network(undisturbed, tmp_path):
    "A second run without a cache, every process of it watched."
    (tmp_path / "guard").mkdir()
    (tmp_path / "guard" / "sitecustomize.py").write_text(GUARD)
    watched = {"PYTHONPATH": str(tmp_path / "guard"), "GUARD_LOG": str(tmp_path / "asked"), "HF_HUB_OFFLINE": "0"}
    probe = command("-c", "import socket; socket.create_connection(('192.0.2.1', 80), 1)", folder=tmp_path, check=False, env=watched)
    assert "no network in this test" in probe.stderr and (tmp_path / "asked").read_text()
    (tmp_path / "asked").unlink()
    rlgen("run", tmp_path, env=watched)
    assert not (tmp_path / "asked").exists(), (tmp_path / "asked").read_text()
    assert metrics(tmp_path) == metrics(undisturbed) and texts_of(the_run(tmp_path)) == texts_of(the_run(undisturbed))
    a, b = (json.loads((the_run(f) / "run.ipynb").read_text())["cells"] for f in (undisturbed, tmp_path))
    for x, y in zip(a, b, strict=True):
        if x["id"] != "injected-parameters": assert x == y, x["id"]


def test_the_table_is_a_function_of_the_scores(undisturbed):
    "Worked out anew from scores.csv: the same table and pairs, to the last digit; and the command prints it."
    from rlgen.pargs.report import read_tables
    from rlgen.record import rounded

    found, again = json.loads(metrics(undisturbed)), rounded(read_tables(the_run(undisturbed)))
    assert again["table"] == found["table"] and again["pairs"] == found["pairs"]
    assert {(r["a"], r["b"]) for r in found["pairs"]} >= {("ARGS", "GREEDY"), ("PARGS", "TOP-K"), ("PARGS-G", "ARGS"), ("PARGS-G", "ARGS-EOS"), ("PARGS", "ARGS-SAMPLE")}
    assert sum(r["b"].startswith("ARGS at its best (w = ") for r in found["pairs"]) == 1
    shown = command("-m", "rlgen", "metrics", str(the_run(undisturbed)), folder=undisturbed).stdout
    told = next(r for r in found["table"] if r["method"] == "PARGS-G" and r["metric"] == "gold_reward")
    assert f"{told['mean']:.2f}" in next(line for line in shown.splitlines() if line.startswith("PARGS-G "))


def texts_of(run: Path) -> dict:
    "Bytes of each row's texts."
    return {p.stem.removeprefix("generation_").upper(): p.read_bytes() for p in run.glob("generation_*.jsonl")}


def test_alpha_moves_guided_rows_and_no_other(here, undisturbed, tmp_path):
    "The trained models are found again; rows at the new weight are written, the others stay to the byte."
    from rlgen.pargs.report import report
    from rlgen.pargs.run import stages

    shutil.copytree(undisturbed / "cache", tmp_path / "cache")
    run = here(**SMALL | dict(alpha=30.0, alphas=[]))
    report(run, stages(run))
    then, now = texts_of(the_run(undisturbed)), texts_of(run.out_dir)
    assert {m for m in METHODS if then[m] != now[m]} == set(GUIDED) and set(then) == set(now) == set(METHODS)


def test_alpha_zero_is_greedy_or_sampling(here, undisturbed):
    "Every row is written anew, without a cache."
    from rlgen.pargs.run import stages

    models = {name: str(the_run(undisturbed) / "models" / f"{name}-0") for name in ("reward_model", "partial_reward_model")}
    out = stages(here(**SMALL | models | dict(alpha=0.0, alphas=[], methods=[m for m in METHODS if m not in ("DPO", "PPO")])))
    rows = {m: [{k: v for k, v in r.items() if k != "kl"} for r in said] for (m, _, _), said in out.texts.items()}
    for m in ("TOP-K", "GREEDY", "BESTN"): assert [r["completion"] for r in rows[m]] == [json.loads(x)["completion"] for x in texts_of(the_run(undisturbed))[m].splitlines()]
    for m in ("ARGS", "ARGS-EOS", "PARGS-G"): assert rows[m] == rows["GREEDY"] != rows["TOP-K"]
    for m in ("ARGS-SAMPLE", "PARGS"): assert rows[m] == rows["TOP-K"]
    assert {out.cost[m, 0.0, 0]["rm_tokens"] for m in GUIDED} == {0}, "nobody is asked"


def test_a_plain_row_trains_no_more_than_it_needs(here, undisturbed, tmp_path):
    from rlgen.pargs.run import stages

    shutil.copytree(undisturbed / "cache", tmp_path / "cache")
    run = here(**SMALL | dict(methods=["GREEDY"], alphas=[]))
    stages(run)
    assert [s.name for s in run.stages] == ["reward_model", "texts"]
    assert {p.name for p in (tmp_path / "cache" / "pargs").iterdir()} == {p.name for p in (undisturbed / "cache" / "pargs").iterdir()}, "all of it was there already"
    run = here(**SMALL | dict(methods=["DPO"], alphas=[], num_samples=1))
    assert [s.name for s in (stages(run), run)[1].stages] == ["dpo", "reward_model", "texts"]


def test_named_models_are_used_as_they_are(here, undisturbed):
    "The undisturbed run's own models, by name: nothing is trained, and every row's texts are the same."
    from rlgen.pargs.run import stages

    models = {p.name.removesuffix("-0"): str(p) for p in (the_run(undisturbed) / "models").iterdir()}
    run = here(**SMALL | dict(methods=["ARGS", "PARGS-G", "PARGS", "DPO", "PPO"], alphas=[], reward_model=models["reward_model"], partial_reward_model=models["partial_reward_model"],
                              dpo_model=models["dpo"], ppo_model=models["ppo"]))
    out = stages(run)
    assert {s.name for s in run.stages} == {"prefix_wins", "texts"}
    for (method, _, _), rows in out.texts.items():
        then = [json.loads(x) for x in texts_of(the_run(undisturbed))[method].decode().splitlines()]
        assert [r["completion"] for r in rows] == [r["completion"] for r in then], method
    assert len({json.dumps([r["ids"] for r in rows]) for rows in out.texts.values()}) == 5
    swapped = here(**SMALL | dict(methods=["DPO"], alphas=[], reward_model=models["reward_model"], dpo_model=models["ppo"], params_name="swapped"))
    assert [r["ids"] for r in stages(swapped).texts["DPO", 0.0, 0]] == [r["ids"] for r in out.texts["PPO", 0.0, 0]]


def test_a_policy_with_other_tokens_is_refused(here, undisturbed, tmp_path):
    from rlgen.core import RlgenError
    from rlgen.pargs.run import stages

    stranger = str(make_model("gpt2", tmp_path / "stranger"))
    model = str(the_run(undisturbed) / "models" / "reward_model-0")
    with pytest.raises(RlgenError, match="other tokens than the base model zoo/posts") as e: stages(here(**SMALL | dict(methods=["PPO"], alphas=[], reward_model=model, ppo_model=stranger)))
    assert "\n" not in str(e.value)


def talks(n: int) -> list[str]:
    "Comparisons of dialogues, each of its own conversation."
    things = ("cat", "dog", "garden", "soup", "letters", "film", "apples", "boss")
    rows = [(things[i % 8], things[(i // 8) % 8], i) for i in range(n)]
    return [json.dumps(dict(prompt=f"\n\nHuman: {i} what did the {a} do to the {b} ?\n\nAssistant:", chosen=f" the {a} ran after the {b} .", rejected=f" no . the {b} {i % 10} sat")) for a, b, i in rows]


@pytest.mark.parametrize("guide", ("deberta-v2", "gpt2"))
def test_an_encoder_guides_a_decoder_on_a_file(here, tmp_path, guide):
    "As in the paper: DeBERTa guides GPT-2, its partial form is trained on prefixes of texts; and another GPT-2 for comparison."
    from rlgen.pargs.report import read_tables, report
    from rlgen.pargs.run import stages
    from rlgen.record import rounded
    from rlgen.reward import load_reward_model

    base, rm = make_model("gpt2", tmp_path / "base"), make_model(guide, tmp_path / "rm", head="reward", seed=1)
    run = here(data=pairs_file(tmp_path, *talks(150)), base_model=str(base), reward_model=str(rm), methods=["GREEDY", "ARGS", "PARGS-G"], alphas=[], num_pairs=12, num_held_out=4, num_test=4,
               max_new_tokens=5, k=4, rm_epochs=1, partial_epochs=0.3, prefixes_per_pair=3, rm_batch_size=4, num_samples=1, alpha=2.0)
    out = stages(run)
    assert out.headline == "eval_reward" and set(out.texts) == {("GREEDY", 0.0, 0), ("ARGS", 2.0, 0), ("PARGS-G", 2.0, 0)}
    assert [s.name for s in run.stages if s.name not in ("texts", "grades")] == ["partial_reward_model", "prefix_wins", "eval_reward_model"]
    made = next(s for s in run.stages if s.name == "partial_reward_model")
    trained = load_reward_model(str(run.out_dir / "models" / "partial_reward_model-0"))
    assert trained.kind == ("encoder" if guide == "deberta-v2" else "causal") and made.cost["partial_rows"] == (36 if guide == "deberta-v2" else 12)
    before = load_reward_model(str(rm))
    assert any((a != b).any() for a, b in zip(before.model.parameters(), trained.model.parameters()))
    found = report(run, out)
    assert rounded(read_tables(run.out_dir)["table"]) == json.loads((run.out_dir / "metrics.json").read_text())["table"] == rounded(found["table"])
    cost = {c["method"]: c for c in found["cost"]}
    assert cost["GREEDY"]["rm_tokens"] == 0 < cost["ARGS"]["rm_tokens"] and (cost["ARGS"]["rm_tokens"] > 150) == (guide == "deberta-v2"), "an encoder remembers nothing"
    assert found["prefixes"]["full"]["overall"]["n"] == 4 and ("full, end appended" in found["prefixes"]) == (guide == "gpt2"), "an encoder reads no end"


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


def finished(folder: Path) -> dict:
    "What a run's stages left, file by file, in its cache."
    return {(p.parent.name, p.name): p.read_bytes() for p in folder.glob("cache/pargs/*/*") if p.name in ("texts.jsonl", "held_out.json", "wins.json")} | {
        (p.parent.parent.name, p.name): p.read_bytes() for p in folder.glob("cache/pargs/*/model/model.safetensors")}


@pytest.mark.slow
@pytest.mark.parametrize("wait", (0.0, 0.2))
@pytest.mark.parametrize("stage", ("partial_reward_model", "dpo", "ppo"))
def test_killed_in_a_training_and_started_again_ends_the_same(undisturbed, tmp_path, stage, wait):
    "What came before is found again; the stage and all that builds on it is done anew, to the bit."
    shutil.copytree(undisturbed / "cache", tmp_path / "cache")
    for p in tmp_path.glob(f"cache/pargs/{stage}-*"): shutil.rmtree(p) if p.is_dir() else p.unlink()
    for p in tmp_path.glob("cache/pargs/texts-*"): shutil.rmtree(p) if p.is_dir() else p.unlink()
    for p in tmp_path.glob("cache/pargs/prefix_wins-*"): shutil.rmtree(p) if p.is_dir() else p.unlink()
    words = [sys.executable, "-m", "rlgen", "stages", "pargs", "-y", json.dumps(SMALL)]
    victim = subprocess.Popen(words, cwd=ROOT, env=environment(tmp_path), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob(f"cache/pargs/{stage}-*.partial")) and time.monotonic() < deadline: time.sleep(0.02)
    time.sleep(wait)
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    assert list(tmp_path.glob(f"cache/pargs/{stage}-*.partial")) and finished(tmp_path) != finished(undisturbed), "it died at work"
    rlgen("stages", tmp_path)
    assert finished(tmp_path) == finished(undisturbed) and not list(tmp_path.glob("cache/pargs/*.partial"))


def test_two_processes_write_the_same_texts_and_scores(undisturbed, tmp_path):
    models = {name: str(the_run(undisturbed) / "models" / f"{name}-0") for name in ("reward_model", "partial_reward_model")}
    given = SMALL | models | dict(methods=["TOP-K", "BESTN", "ARGS", "PARGS"])
    for name, words in (("one", []), ("two", ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"])):
        told = command(*words, "-m", "rlgen", "stages", "pargs", "-y", json.dumps(given), folder=tmp_path / name,
                       env={"ACCELERATE_USE_CPU": "true"})
        assert f"world of {2 if words else 1}" in told.stderr
    def texts(name): return sorted(p.read_text() for p in (tmp_path / name).glob("cache/pargs/texts-*/texts.jsonl"))
    def cost(name): return sorted(json.dumps(json.loads(p.read_text())["cost"]) for p in (tmp_path / name).glob("cache/pargs/texts-*/stage.json"))
    assert texts("one") == texts("two") and len(texts("one")) == 6
    assert cost("one") == cost("two")


def test_papermill_as_in_the_readme(tmp_path, undisturbed):
    shutil.copytree(undisturbed / "cache", tmp_path / "cache")
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


def refused(capsys, algo: str = "pargs", **params) -> str:
    "The one line that `rlgen run` answers to parameters it can't work with."
    from rlgen.cli import main

    assert main(["run", algo, "-y", json.dumps((SMALL if algo == "pargs" else SMALL_REST) | params)]) == 2
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("rlgen: ")]
    return line


def test_a_mistake_ends_a_command_with_one_line(tmp_path):
    done = rlgen("run", tmp_path, check=False, alpah=1)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "did you mean 'alpha'?" in done.stderr


GOOD = json.dumps(dict(prompt="my boss sold the car", chosen="yes .", rejected="no ."))


@pytest.mark.parametrize("params, expected", [
    (dict(alpah=1), "did you mean 'alpha'?"),
    (dict(alpha=-1), "at least 0"),
    (dict(alpha="two"), "expected a number"),
    (dict(methods=["ARGZ"]), "did you mean 'ARGS'?"),
    (dict(seeds=[]), "give at least one"),
    (dict(alpha_by_method={"DPO": 2.0}), "no guided method"),
    (dict(data="worldly.jsonl"), "worldly.jsonl"),
    (dict(data="world/open"), "the worlds are"),
    (dict(partial_reward_model="./nowhere"), "no such model folder"),
    (dict(base_model="./nowhere"), "no such model folder"),
    (dict(base_model="somebody/never-published"), "offline"),
    (dict(data="nowhere.jsonl"), "nowhere.jsonl"),
    (dict(data="nobody/never-published"), "offline"),
    (dict(out_dir="README.md/inside"), "can't write"),
    (dict(max_new_tokens=4000), "max_new_tokens"),
    (dict(max_prompt_tokens=3), "nothing is left"),
])
def test_mistakes_get_one_line(here, capsys, params, expected):
    assert expected in refused(capsys, **params)


@pytest.mark.parametrize("lines, expected", [
    ([GOOD, "{broken"], "pairs.jsonl:2"),
    ([GOOD, json.dumps(dict(prompt="x", chosen="", rejected="no ."))], "pairs.jsonl:2"),
    ([], "no rows"),
    ([json.dumps(dict(prompt="x", chosen="same .", rejected="same ."))], "nothing"),
    ([GOOD, GOOD], "too few"),
])
def test_bad_files_get_one_line(here, capsys, tmp_path, lines, expected):
    assert expected in refused(capsys, data=pairs_file(tmp_path, *lines))


def test_foreign_results_folder_is_refused_and_kept(here, capsys, tmp_path):
    folder = tmp_path / "mine"
    here(**SMALL | dict(out_dir=str(folder), methods=["GREEDY"]))
    before = (folder / "params.yaml").read_bytes()
    assert "holds another run" in refused(capsys, out_dir=str(folder), methods=["TOP-K"]) and (folder / "params.yaml").read_bytes() == before


def test_model_folder_without_tokenizer(here, capsys, tmp_path):
    shutil.copytree(ROOT / "rlgen" / "zoo" / "posts", tmp_path / "bare", ignore=shutil.ignore_patterns("token*"))
    assert "no tokenizer" in refused(capsys, base_model=str(tmp_path / "bare"))


METHODS_REAL = ["GREEDY", "BESTN", "ARGS", "PARGS", "DPO", "PPO"]


@pytest.mark.slices
def test_real_preferences_and_a_real_model(slices, models_dir, tmp_path):
    done = rlgen("run", tmp_path, data=str(slices / "hh_rlhf_helpful" / "pairs.jsonl.gz"), base_model=str(models_dir / "stories260k"), num_pairs=24, num_held_out=8,
                 max_prompt_tokens=96, max_length=128, num_test=4, sft_steps=2, micro_batch=4, methods=METHODS_REAL, alphas=[])
    assert "eval_reward" in done.stdout
    found = json.loads(metrics(tmp_path))
    assert found["data"]["rows"] == 2354 and found["data"]["equal"] == 2 and found["data"]["prompts_shortened"] > 0
    assert {"reward_model", "partial_reward_model", "eval_reward_model"} == set(found["reward_models"]) and {"sft", "dpo", "ppo"} <= set(found["training"])


# ---------------------------------------------------------------- REST-PG


@pytest.fixture(scope="module")
def rest_pg(tmp_path_factory) -> Path:
    "A folder with one finished run of REST-PG, all rows."
    folder = tmp_path_factory.mktemp("rest_pg")
    shown = rlgen("run", folder, algo="rest_pg").stdout
    assert "shuffled-profile" in shown and "run.ipynb" in shown and "forced_reasoning.png" in shown
    return folder


def test_rest_pg_leaves_everything(rest_pg):
    from rlgen.rest_pg.setup import METHODS as rows

    run = the_run(rest_pg, "rest_pg")
    assert {"run.ipynb", "params.yaml", "metrics.json", "curves.csv", "scores.csv", "samples.jsonl", "env.json", "rewards.png", "iterations.png", "reward_histograms.png", "forced_reasoning.png",
            "world", *(f"generation_{m.lower()}.jsonl" for m in rows)} <= {p.name for p in run.iterdir()}
    trained = ("no-profile", "SFT", "SFT-long", "SFT-reasoning", "reasoning-after", "ReST-EM", "REST-PG")
    assert {p.name for p in (run / "world").iterdir()} == {"evaluation_results.json", *(f"{m}-0" for m in trained)}
    found = json.loads(metrics(rest_pg, "rest_pg"))
    assert list(dict.fromkeys(r["method"] for r in found["table"])) == list(rows) == [c["method"] for c in found["cost"]]
    assert {"method", "metric", "mean", "se", "low", "high", "n", "seeds", "by_seed"} <= set(found["table"][0])
    cost = {c["method"]: c for c in found["cost"]}
    assert cost["SFT-long"]["train_steps"] == cost["reasoning-after"]["train_steps"] == cost["REST-PG"]["train_steps"] == cost["ReST-EM"]["train_steps"] == 2 * cost["SFT"]["train_steps"]
    assert len({c["gold_texts"] for m, c in cost.items() if m in trained}) == 1 and cost["base"]["gold_texts"] == 0 < cost["REST-PG"]["sampled_tokens"]
    assert [r["iteration"] for r in found["iterations"] if r["method"] == "REST-PG"] == [0, 1] and sum(found["iterations"][1]["histogram"]) == 320
    assert {r["method"] for r in found["levels"]} == {"SFT-long", "reasoning-after"}
    assert str(rest_pg) not in metrics(rest_pg, "rest_pg") and '"stderr"' not in (run / "run.ipynb").read_text()


def test_rest_pg_agrees_to_the_byte_and_asks_for_no_network(rest_pg, tmp_path):
    "A second run without a cache, every process of it watched."
    (tmp_path / "guard").mkdir()
    (tmp_path / "guard" / "sitecustomize.py").write_text(GUARD)
    rlgen("run", tmp_path, algo="rest_pg", env={"PYTHONPATH": str(tmp_path / "guard"), "GUARD_LOG": str(tmp_path / "asked"), "HF_HUB_OFFLINE": "0"})
    assert not (tmp_path / "asked").exists(), (tmp_path / "asked").read_text()
    here, there = the_run(tmp_path, "rest_pg"), the_run(rest_pg, "rest_pg")
    for name in ("metrics.json", "scores.csv", "samples.jsonl", "world/evaluation_results.json", *(p.name for p in there.glob("generation_*.jsonl"))): assert (here / name).read_bytes() == (there / name).read_bytes(), name
    a, b = (json.loads((f / "run.ipynb").read_text())["cells"] for f in (here, there))
    for x, y in zip(a, b, strict=True):
        if x["id"] != "injected-parameters": assert x == y, x["id"]


def test_rest_pgs_table_is_a_function_of_the_scores(rest_pg):
    from rlgen.record import rounded
    from rlgen.rest_pg.report import read_tables

    found, again = json.loads(metrics(rest_pg, "rest_pg")), rounded(read_tables(the_run(rest_pg, "rest_pg")))
    assert again["table"] == found["table"] and again["pairs"] == found["pairs"] and len(found["pairs"]) == 6
    shown = command("-m", "rlgen", "metrics", str(the_run(rest_pg, "rest_pg")), folder=rest_pg).stdout
    told = next(r for r in found["table"] if r["method"] == "REST-PG" and r["metric"] == "gold_reward")
    assert f"{told['mean']:.2f}" in next(line for line in shown.splitlines() if line.startswith("REST-PG "))


@pytest.mark.parametrize("wait", [0.0, pytest.param(0.5, marks=pytest.mark.slow), pytest.param(1.5, marks=pytest.mark.slow)])
def test_killed_in_an_e_step_it_samples_nothing_twice(rest_pg, tmp_path, wait):
    "What had reached the disk stays as it was; the rest is sampled; all that builds on it is the same."
    shutil.copytree(rest_pg / "cache", tmp_path / "cache")
    for name in ("e_step", "m_step", "texts"):
        for p in tmp_path.glob(f"cache/rest_pg/{name}-*"): shutil.rmtree(p) if p.is_dir() else p.unlink()
    words = [sys.executable, "-m", "rlgen", "stages", "rest_pg", "-y", json.dumps(SMALL_REST)]
    victim = subprocess.Popen(words, cwd=ROOT, env=environment(tmp_path), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline, sampled = time.monotonic() + 120, []
    while not sampled and time.monotonic() < deadline:
        time.sleep(0.01)
        sampled = list(tmp_path.glob("cache/rest_pg/e_step-*.partial/sampled.jsonl"))
    time.sleep(wait)
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    early = {p.parent.name.removesuffix(".partial"): p.read_bytes() for p in tmp_path.glob("cache/rest_pg/e_step-*/sampled.jsonl")}
    assert early and (wait or list(tmp_path.glob("cache/rest_pg/e_step-*.partial"))), "it died at work"
    rlgen("run", tmp_path, algo="rest_pg")
    for name, text in early.items(): assert (tmp_path / "cache" / "rest_pg" / name / "sampled.jsonl").read_bytes().startswith(text[: text.rfind(b"\n") + 1])
    for p in tmp_path.glob("cache/rest_pg/e_step-*/sampled.jsonl"):
        rows = [json.loads(x) for x in p.read_text().splitlines()]
        assert len(rows) == len({(r["item"], r["sample"]) for r in rows}) == 320
        assert (p.parent / "attempts.jsonl").read_bytes() == (rest_pg / "cache" / "rest_pg" / p.parent.name / "attempts.jsonl").read_bytes()
    assert metrics(tmp_path, "rest_pg") == metrics(rest_pg, "rest_pg") and not list(tmp_path.glob("cache/rest_pg/*.partial"))


def test_a_row_of_rest_pg_trains_no_more_than_it_needs(here, rest_pg, tmp_path):
    from rlgen.record import check_params
    from rlgen.rest_pg.run import stages
    from rlgen.rest_pg.setup import Params, start

    shutil.copytree(rest_pg / "cache", tmp_path / "cache")
    there = {p.name for p in (tmp_path / "cache" / "rest_pg").iterdir()}
    for methods, done in ((["base"], ["texts"]), (["SFT"], ["sft", "texts"]), (["SFT-reasoning"], ["reasoning", "sft", "texts"])):
        run = start(check_params(Params, SMALL_REST | dict(methods=methods)))
        stages(run)
        assert [s.name for s in run.stages] == done
    assert {p.name for p in (tmp_path / "cache" / "rest_pg").iterdir()} == there, "all of it was there already"


def test_rest_pg_on_two_files(here, tmp_path):
    "Two data sets in one run: models and summaries apart, one table."
    from rlgen.record import check_params
    from rlgen.rest_pg.report import joint_table, report
    from rlgen.rest_pg.run import stages
    from rlgen.rest_pg.setup import Params, start
    from rlgen.worlds.rest_pg import make_people

    sets = {}
    for kind in ("story", "rhyme"):
        (tmp_path / kind).mkdir()
        sets[kind] = [str(tmp_path / kind / f"{part}.jsonl") for part in ("train", "valid", "test")]
        for path, part, n in zip(sets[kind], ("train", "valid", "test"), (40, 8, 8)):
            Path(path).write_text("".join(json.dumps(dict(x=q.x, y=q.y, P=q.P, user_id=q.user_id)) + "\n" for q in make_people(part, n, kind=kind)))
    run = start(check_params(Params, SMALL_REST | dict(datasets=sets, methods=["base", "SFT", "ReST-EM"], reward_threshold=0.2)))
    out = stages(run)
    found = report(run, out)
    assert out.headline == "rouge" and {r["method"] for r in found["table"]} == {f"{k}: {m}" for k in sets for m in ("base", "SFT", "ReST-EM")}
    for name in sets: assert {p.name for p in (run.out_dir / name).iterdir()} == {"evaluation_results.json", "SFT-0", "ReST-EM-0"} and (run.out_dir / name / "ReST-EM-0" / "config.json").is_file()
    assert joint_table(found["table"]).index.names == ["data set", "method"] and len(joint_table(found["table"])) == 6
    assert out.texts["story", "SFT", 0] != out.texts["rhyme", "SFT", 0] and set(out.report) == set(sets) and out.report["story"]["overlap"]


@pytest.mark.parametrize("params, expected", [
    (dict(num_iteration=1), "did you mean 'num_iterations'?"),
    (dict(methods=["REST-GP"]), "did you mean 'REST-PG'?"),
    (dict(data="world/open"), "the worlds are"),
    (dict(data="nowhere.jsonl", methods=["SFT"]), "nowhere.jsonl"),
    (dict(data="nowhere.jsonl"), "no reasoning_model"),
    (dict(model_name="./nowhere"), "no such model folder"),
    (dict(reward="judge"), "give judge_model"),
    (dict(warmup_steps=300), "it would end before it began"),
    (dict(max_output_length=4000), "max_output_length"),
    (dict(max_input_length=3, methods=["base"]), "max_input_length"),
    (dict(max_output_length=4, exploration_budget=1, methods=["ReST-EM"]), "lower reward_threshold"),
])
def test_rest_pgs_mistakes_get_one_line(here, capsys, params, expected):
    assert expected in refused(capsys, "rest_pg", **params)


# ---------------------------------------------------------------- told before anything is trained


@pytest.mark.parametrize("given, said", [
    (dict(ppo_batch_size=30, ppo_minibatches=4), "can't be cut into ppo_minibatches = 4"), (dict(dpo_optimizer="adamm"), "dpo_optimizer = 'adamm'"), (dict(micro_batch=5), "must divide dpo_batch_size = 32"), (dict(dpo_beta=0), "dpo_beta"),
    (dict(base_model="zoo/tales"), "an encoder-decoder"), (dict(eval_reward_model="zoo/nobody", data="pairs.jsonl"), "zoo/nobody"), (dict(reward_model="zoo/nobody"), "zoo/nobody"), (dict(judge_model="zoo/nobody"), "zoo/nobody"),
])
def test_what_would_stop_it_later_is_told_first(here, tmp_path, given, said):
    if "data" in given:
        given = given | dict(data=str(tmp_path / "pairs.jsonl"))
        Path(given["data"]).write_text("".join(json.dumps(dict(prompt=f"post {i} tl;dr :", chosen="my boss sold the car .", rejected="no .")) + "\n" for i in range(120)))
    assert said in helpers.line_of(lambda: check(here(**SMALL | given))), "`check` trains nothing"


def test_what_acts_on_no_row_stops_nothing(here):
    run = here(**SMALL | dict(methods=["GREEDY", "ARGS"], ppo_batch_size=30, ppo_minibatches=4, dpo_optimizer="adamm", micro_batch=5, dpo_model="zoo/nobody", partial_reward_model="zoo/nobody"))
    assert len(check(run).test) == SMALL["num_test"]


@pytest.mark.parametrize("given, said", [(dict(partial_weights="pair"), "partial_weights"), (dict(partial_pad="eos"), "partial_pad")])
def test_how_an_encoder_learns_from_prefixes_is_told_first(here, tmp_path, given, said):
    rm = make_model("deberta-v2", tmp_path / "rm", head="reward", vocab_texts=["my boss sold the car"])
    assert said in helpers.line_of(check, here(**SMALL | dict(reward_model=str(rm)) | given))
    assert check(here(**SMALL | dict(reward_model=str(rm), methods=["ARGS"], params_name="other") | given)).test
