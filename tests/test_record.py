"rlgen.record: what a person types, whose folder it is, stages that are done once whatever happens, and files that are the same twice."
import functools
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest

from helpers import line_of
from rlgen.core import RlgenError, settings
from rlgen.record import (
    Run, check_params, csv_text, do_stage, locked, normalise_notebook, notebook_params, param, place_model, read_params, results_table, rounded,
    run_tracker, save_figure, save_results, source_digest,
)

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Toy:
    "Every kind of parameter."
    alpha: float = param(1.0, low=0, high=10)
    k: int = param(10, low=1)
    sample: bool = False
    data: str = "world"
    method: str = param("ARGS", choices=("ARGS", "GREEDY", "BESTN"))
    seeds: list[int] = param([0])
    alphas: list = param([0.0, 1.0], low=0)
    methods: list = param(["ARGS"], choices=("ARGS", "GREEDY", "BESTN"))
    extra: list = param([])
    weights: dict = param({})
    out_dir: str = ""
    params_name: str = "default"


@pytest.fixture(autouse=True)
def machine(monkeypatch, tmp_path):
    "Results and cache in a folder of the test's own."
    monkeypatch.setenv("RLGEN_RESULTS_DIR", str(tmp_path / "results"))
    monkeypatch.setenv("RLGEN_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("RLGEN_DEVICE", "cpu")
    settings.cache_clear()
    yield
    settings.cache_clear()


def in_fresh_python(call, *args, launcher=(), rc=0, wait=True):
    "Call a function of this file in another process."
    env = os.environ | dict(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false")
    run = subprocess.Popen([sys.executable, *launcher, __file__, call, *map(str, args)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env, cwd=HERE)
    return finished(run, rc) if wait else run


def finished(run, rc=0) -> str:
    out, err = run.communicate(timeout=120)
    assert run.returncode == rc, err[-3000:]
    return out.strip()


# ---------------------------------------------------------------- what was typed


@pytest.mark.parametrize("given, wanted", [
    (dict(alpha=2), 2.0), (dict(alpha=0), 0.0), (dict(alpha=10.0), 10.0), (dict(alpha="1e-5"), 1e-5), (dict(alpha="2"), 2.0), (dict(k=1), 1), (dict(sample=True), True),
    (dict(seeds="[1, 2]"), [1, 2]), (dict(seeds=(3, 4)), [3, 4]), (dict(seeds="- 1\n- 2"), [1, 2]), (dict(seeds=[]), []), (dict(methods="[GREEDY, BESTN]"), ["GREEDY", "BESTN"]),
    (dict(alphas=[0, "1e-1", 2]), [0.0, 0.1, 2.0]), (dict(weights="{ARGS: 0.5}"), {"ARGS": 0.5}), (dict(extra=["x", 1]), ["x", 1]), (dict(data=""), ""),
])  # fmt: skip
def test_values_are_taken(given, wanted):
    got = getattr(check_params(Toy, given), *given)
    assert got == wanted and type(got) is type(wanted)
    if isinstance(got, list): assert [type(x) for x in got] == [type(x) for x in wanted]


@pytest.mark.parametrize("given, says", [
    (dict(alpah=1), "did you mean 'alpha'"), (dict(zzz=1), "valid: alpha"), ({"alpha ": 1}, "did you mean 'alpha'"),
    (dict(alpha=True), "a number"), (dict(alpha="two"), "a number"), (dict(alpha=None), "a number"), (dict(alpha=[1]), "a number"), (dict(alpha=10**400), "a number"),
    (dict(alpha=float("nan")), "finite"), (dict(alpha="nan"), "finite"), (dict(alpha=float("inf")), "finite"), (dict(alpha=-0.1), "at least 0"), (dict(alpha=10.1), "at most 10"),
    (dict(k=True), "whole number"), (dict(k=3.0), "whole number"), (dict(k="3"), "whole number"), (dict(k=0), "at least 1"),
    (dict(sample=1), "true or false"), (dict(sample="true"), "true or false"), (dict(data=3), "text"), (dict(data=None), "text"),
    (dict(method="ARG"), "did you mean 'ARGS'"), (dict(method=["ARGS"]), "text"), (dict(methods=["GREDY"]), "did you mean 'GREEDY'"), (dict(methods="GREEDY"), "a list"),
    (dict(methods=[["ARGS"]]), "text"), (dict(seeds=0), "a list"), (dict(seeds="1, 2"), "a list"), (dict(seeds="[1, 2"), "readable"), (dict(seeds="{a: 1}"), "a list"), (dict(seeds=None), "a list"),
    (dict(seeds=["one"]), "seeds[0]"), (dict(seeds=[0, 1.5]), "seeds[1]"), (dict(seeds=[True]), "whole number"), (dict(alphas=["x"]), "a number"), (dict(alphas=[1, -1]), "at least 0"),
    (dict(weights="[1]"), "a dict"), (dict(weights="{a"), "readable"), (dict(weights="a: b: c"), "readable"),
])  # fmt: skip
def test_values_are_refused(given, says):
    told = line_of(check_params, Toy, given)
    assert says in told and (next(iter(given)).strip() in told)


def test_defaults_are_not_shared():
    check_params(Toy, {}).seeds.append(7)
    assert Toy().seeds == [0]
    mine = [1]
    got = check_params(Toy, dict(seeds=mine)).seeds
    assert got == [1]


def test_presets_are_stacked(tmp_path):
    (tmp_path / "mild.yaml").write_text("alpha: 0.5\nseeds: [1]\nk: 3\n")
    (tmp_path / "wild.yaml").write_text("alpha: 5e-1\nk: 4\n")
    (tmp_path / "named.yaml").write_text("params_name: mine\n")
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    mild, wild, named, empty = (tmp_path / f"{n}.yaml" for n in ("mild", "wild", "named", "empty"))
    assert read_params([], {}) == {} and read_params([], dict(k=1)) == dict(k=1)
    assert read_params([mild, wild], dict(seeds=[2])) == dict(params_name="wild", alpha="5e-1", seeds=[2], k=4)
    assert check_params(Toy, read_params([mild, wild], {})) == Toy(alpha=0.5, seeds=[1], k=4, params_name="wild")
    assert read_params([mild, named], {})["params_name"] == "mine" and read_params([empty], {}) == dict(params_name="empty")
    assert read_params([named], dict(params_name="typed"))["params_name"] == "typed"
    bad = dict(list="- 1\n", text="hello\n", broken="a: [1\nb: {\n", tab="a:\n\t- 1\n")
    for name, text in bad.items():
        (tmp_path / f"{name}.yaml").write_text(text)
        assert f"{name}.yaml" in line_of(read_params, [mild, tmp_path / f"{name}.yaml"], {})
    for missing in (tmp_path / "nowhere.yaml", tmp_path): assert "params/" in line_of(read_params, [missing], {})


def test_parameters_of_a_notebook():
    cells = [
        "", "import os\nfrom pathlib import Path", "alpha: float = 1.0  # weight\nk: int = 10  # candidates", "# Parameters\nalpha = 2.5\nseeds = [1, 2]\n",
        "rows: list = [1]\nprint(rows)", "mine = 3", "%matplotlib inline", "x, y = 1, 2", "for i in range(3): pass", "def f(): pass",
    ]  # fmt: skip
    namespace = dict(In=cells, alpha=2.5, k=10, seeds=[1, 2], rows=[1], mine=3, x=1, y=2, i=2, os=os, _dh=[])
    assert notebook_params(namespace) == dict(alpha=2.5, k=10, seeds=[1, 2])
    assert notebook_params({}) == {} and notebook_params(dict(In=["alpha: float = 1.0"])) == {}, "not run, not there"
    assert notebook_params(dict(In=["alpha: float = 1.0"], alpha=3.0)) == dict(alpha=3.0), "as it stands now"
    assert notebook_params(dict(In=["# Parameters\nalpah = 2\n"], alpah=2)) == dict(alpah=2), "a mistyped name is seen"
    assert notebook_params(dict(In=["  # Parameters\nk = -1\n"], k=-1)) == dict(k=-1)


# ---------------------------------------------------------------- whose folder


def test_a_run_has_a_folder_of_its_own(tmp_path):
    a, again, b, c = Run("toy", Toy()), Run("toy", Toy()), Run("toy", Toy(alpha=2.0)), Run("other", Toy())
    assert a.out_dir == again.out_dir and len({x.out_dir for x in (a, b, c)}) == 3
    assert a.out_dir.parent == tmp_path / "results" / "runs" / "toy" and a.out_dir.name.startswith("default-") and len(a.out_dir.name) == 16
    assert a.pick("alpha", "k") == dict(alpha=1.0, k=10) and a.cache == tmp_path / "cache" / "toy"
    import yaml

    there = yaml.safe_load((b.out_dir / "params.yaml").read_text())
    assert there["alpha"] == 2.0 and there["run"] == "toy" and "out_dir" not in there
    text = {k: v for k, v in there.items() if k != "run"}
    assert check_params(Toy, text) == Toy(alpha=2.0), "a run's params.yaml, read back, are its parameters"


def test_foreign_folders_are_refused(tmp_path):
    mine = tmp_path / "mine"
    run = Run("toy", Toy(out_dir=str(mine)))
    assert run.out_dir == mine and Run("toy", Toy(out_dir=str(mine))).out_dir == mine
    told = line_of(Run, "toy", Toy(alpha=2.0, k=3, out_dir=str(mine)))
    assert "alpha, k differ" in told and str(mine) in told
    assert "alpha differs" in line_of(Run, "toy", Toy(alpha=2.0, out_dir=str(mine))) and "run differs" in line_of(Run, "other", Toy(out_dir=str(mine)))
    for name, make in dict(a=lambda d: (d / "thesis.txt").write_text("x"), b=lambda d: (d / "sub").mkdir()).items():
        (tmp_path / name).mkdir()
        make(tmp_path / name)
        assert "no run's" in line_of(Run, "toy", Toy(out_dir=str(tmp_path / name))) and not (tmp_path / name / "params.yaml").exists()
    for name, text in dict(c="- 1\n", d="a: [", e="", f="\x00").items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "params.yaml").write_text(text)
        line_of(Run, "toy", Toy(out_dir=str(tmp_path / name)))
        assert (tmp_path / name / "params.yaml").read_text() == text, "nothing is overwritten"
    for name in ("notebook", "hidden", "empty"): (tmp_path / name).mkdir()
    (tmp_path / "notebook" / "run.ipynb").write_text("{}")
    (tmp_path / "hidden" / ".DS_Store").write_text("")
    for name in ("notebook", "hidden", "empty", "not/yet/there"): assert Run("toy", Toy(out_dir=str(tmp_path / name))).out_dir == tmp_path / name


def test_relative_folders_begin_at_the_root(tmp_path, monkeypatch):
    monkeypatch.setenv("RLGEN_ROOT", str(tmp_path / "root"))
    settings.cache_clear()
    assert Run("toy", Toy(out_dir="some/where")).out_dir == tmp_path / "root" / "some" / "where"


def test_unwritable_places_are_one_line(tmp_path, monkeypatch):
    "Below a regular file nobody can write, root neither."
    (tmp_path / "file").write_text("x")
    for place in ("file", "file/below"): assert "can't write" in line_of(Run, "toy", Toy(out_dir=str(tmp_path / place)))
    monkeypatch.setenv("RLGEN_CACHE_DIR", str(tmp_path / "file" / "cache"))
    settings.cache_clear()
    assert "cache_dir" in line_of(do_stage, Run("toy", Toy()), "square", square, {})
    monkeypatch.setenv("RLGEN_RESULTS_DIR", str(tmp_path / "file" / "results"))
    settings.cache_clear()
    assert "can't write" in line_of(Run, "toy", Toy())


# ---------------------------------------------------------------- stages


def square(folder, log):
    "The work of a stage."
    with open(folder.parent / "done.txt", "a") as f: f.write("x")
    log(1, loss=0.5, lr=1e-3)
    (folder / "answer.txt").write_text("4")
    return dict(multiplications=1)


def times(run): return len((run.cache / "done.txt").read_text()) if (run.cache / "done.txt").exists() else 0


def test_done_once(tmp_path):
    run = Run("toy", Toy())
    first, second = (do_stage(run, "square", square, run.pick("alpha"), item=3) for _ in range(2))
    assert times(run) == 1 and first == second and run.stages == [first, second]
    assert first.path.parent == run.cache and (first.path / "answer.txt").read_text() == "4" and first.cost == dict(multiplications=1) and first.item == 3
    assert first.curves() == [dict(step=1, loss=0.5, lr=1e-3)] and first.seconds >= 0
    other = Run("toy", Toy(k=3, params_name="other"))
    assert do_stage(other, "square", square, other.pick("alpha"), item=3) == first and times(run) == 1, "another run with the same alpha finds it"
    assert do_stage(run, "nothing", lambda folder, log: None, {}).cost == {} and do_stage(run, "nothing", lambda folder, log: None, {}).curves() == []


def test_what_makes_another_stage(monkeypatch):
    run = Run("toy", Toy())
    base = dict(name="square", reads=dict(alpha=1.0), data="abc", item=0)
    key = lambda work=square, **change: do_stage(run, **(base | change), work=work).key  # noqa: E731
    up, down = do_stage(run, "up", square, dict(a=1)), do_stage(run, "up", square, dict(a=2))
    keys = [key(), key(reads=dict(alpha=2.0)), key(reads=dict(alpha=1.0, k=1)), key(data="abd"), key(item=1), key(name="cube"), key(after=[up]), key(after=[down]), key(after=[up, down])]
    for name, value in (("DTYPE", "float64"), ("DEVICE", "cpu:0")):
        monkeypatch.setenv(f"RLGEN_{name}", value)
        settings.cache_clear()
        keys.append(key())
    monkeypatch.setenv("RLGEN_NUM_PROCESSES", "7")
    settings.cache_clear()
    assert len(set(keys)) == len(keys) == times(run) - 2 and key() == keys[-1], "the number of processes is no fact of a result"
    moved = functools.partial(square)
    assert key(moved) == key(), "a partial is its function"


def test_the_source_is_in_the_key(tmp_path, monkeypatch):
    "Of the work's module and of those it imports, as programs: comments and docstrings may change."
    package = tmp_path / "toypkg"
    package.mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    files = {
        "__init__.py": "", "deep.py": "def factor(): return 2\n", "aside.py": "x = 1\n", "late.py": "y = 1\n",
        "work.py": "import os\nfrom toypkg.middle import twice\n\n\ndef work(folder, log): (folder / 'answer.txt').write_text(str(twice(3)))\n",
        "middle.py": "from .deep import factor\n\n\ndef twice(x):\n    from . import late\n    return x * factor()\n",
    }  # fmt: skip

    def now(**changes):
        for name, text in (files | {f"{k}.py": v for k, v in changes.items()}).items(): (package / name).write_text(text)
        for m in [m for m in sys.modules if m.startswith("toypkg")]: del sys.modules[m]
        importlib.invalidate_caches()
        source_digest.cache_clear()
        work = importlib.import_module("toypkg.work").work
        keys = [do_stage(run, "twice", w, {}).key for w in (work, functools.partial(work))]
        assert keys[0] == keys[1]
        return keys[0]

    run = Run("toy", Toy())
    base = now()
    assert now() == base and now(aside="x = 2\n") == base
    assert now(deep='"A docstring."\n\n\n# a comment\ndef factor():\n    "Another."\n    return 2\n') == now(deep="def factor():\n    return 2\n\n")
    changed = [now(deep="def factor(): return 3\n"), now(middle=files["middle.py"].replace("x *", "2 * x *")), now(work=files["work.py"] + "z = 1\n"), now(late="y = 2\n")]
    assert len({base, *changed}) == 5
    source_digest.cache_clear()


def slow_square(folder, log):
    time.sleep(0.5)
    return square(folder, log)


def ask(alpha="1.0"):
    "In another process: a run and its stage."
    run = Run("toy", Toy())
    print(do_stage(run, "slow", slow_square, dict(alpha=alpha)).cost)


def test_two_processes_ask_at_once():
    runs = [in_fresh_python("ask", wait=False) for _ in range(3)]
    assert [finished(r) for r in runs] == ["{'multiplications': 1}"] * 3
    run = Run("toy", Toy())
    assert times(run) == 1 and [p.suffix for p in run.cache.iterdir() if p.is_dir()] == [""]


def dies(folder, log):
    "A stage's work that ends in the middle, by a kill; the second time it goes on."
    if not (folder / "half.txt").exists():
        log(1, loss=2.0)
        log(2, loss=1.0)
        with open(folder / "curves.jsonl", "a") as f: f.write('{"step": 3, "lo')
        (folder / "half.txt").write_text("half")
        os.kill(os.getpid(), signal.SIGKILL)
    log(2, loss=1.5)
    log(3, loss=0.5)
    return square(folder, log)


def ask_and_die(): do_stage(Run("toy", Toy()), "dies", dies, {})


def test_killed_in_a_stage():
    in_fresh_python("ask_and_die", rc=-signal.SIGKILL)
    run = Run("toy", Toy())
    left = [p for p in run.cache.iterdir() if p.is_dir()]
    assert [p.suffix for p in left] == [".partial"] and times(run) == 0
    out = in_fresh_python("ask_and_die")
    assert out == ""
    stage = do_stage(run, "dies", dies, {})
    assert times(run) == 1 and (stage.path / "answer.txt").read_text() == "4" and (stage.path / "half.txt").exists(), "it went on with what was there"
    assert [p for p in run.cache.iterdir() if p.is_dir()] == [stage.path]
    assert sorted(stage.curves(), key=lambda r: r["step"]) == [dict(step=1, loss=0.5, lr=1e-3), dict(step=2, loss=1.5), dict(step=3, loss=0.5)]


def test_an_error_in_a_stage_is_told_and_nothing_kept():
    run = Run("toy", Toy())
    def fails(folder, log): raise ValueError("no")
    with pytest.raises(ValueError, match="no"): do_stage(run, "fails", fails, {})
    assert do_stage(run, "fails", square, {}).cost == dict(multiplications=1), "the lock is free again"
    half = do_stage(run, "half", square, {})
    (half.path / "stage.json").unlink()
    assert do_stage(run, "half", square, {}).path == half.path and times(run) == 3, "a folder without its stage.json is done again"


def test_a_lock_ends_with_its_process(tmp_path):
    code = f"import sys; sys.path.insert(0, {str(HERE)!r}); import test_record, time\nfrom pathlib import Path\nwith test_record.locked(Path({str(tmp_path / 'a.lock')!r})): print('held', flush=True); time.sleep(60)"
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    waiter = subprocess.Popen([sys.executable, "-c", code.replace("time.sleep(60)", "pass")], stdout=subprocess.PIPE, text=True)
    with pytest.raises(subprocess.TimeoutExpired): waiter.wait(1.5)
    holder.kill()
    assert waiter.communicate(timeout=20)[0] == "held\n" and holder.wait() == -signal.SIGKILL
    with locked(tmp_path / "a.lock"): pass


def save_model(folder, log):
    "Each of two processes takes part; the first writes."
    from rlgen.core import rank_world

    log(1, loss=0.25)
    if rank_world()[0] == 0:
        (folder / "model").mkdir(exist_ok=True)
        (folder / "model" / "config.json").write_text("{}")
        time.sleep(0.3)
    return square(folder, log) if rank_world()[0] == 0 else dict(multiplications=99)


def as_two(out):
    "One of two processes: a stage, its model shown, and what both see."
    from rlgen.sampling import gather

    run = Run("toy", Toy())
    stage = do_stage(run, "model", save_model, {})
    place = place_model(run, stage, "mine")
    seen = [(place / "config.json").read_text(), do_stage(run, "model", save_model, {}) == stage, stage.cost]
    both = gather([seen])
    if os.environ["RANK"] == "0": Path(out).write_text(json.dumps(both))


def test_two_processes_share_a_stage(tmp_path):
    in_fresh_python("as_two", tmp_path / "out.json", launcher=("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"))
    assert json.loads((tmp_path / "out.json").read_text()) == [["{}", True, dict(multiplications=1)]] * 2
    run = Run("toy", Toy())
    assert times(run) == 1
    stage = do_stage(run, "model", save_model, {})
    assert len((stage.path / "curves.jsonl").read_text().splitlines()) == 2 and times(run) == 1


def lonely():
    "Two are started, but nobody connected them: the line is all that is printed."
    from accelerate import PartialState

    PartialState(cpu=True)
    os.environ["WORLD_SIZE"] = "2"
    try: do_stage(Run("toy", Toy()), "model", save_model, {})
    except RlgenError as e: print(e)


def test_processes_that_do_not_know_of_each_other_are_refused():
    told = in_fresh_python("lonely")
    assert "2 processes were started" in told and "torchrun" in told and "\n" not in told


def test_models_are_shown(tmp_path):
    run = Run("toy", Toy())
    stage, other = (do_stage(run, "model", save_model, dict(alpha=a)) for a in (1, 2))
    (other.path / "model" / "more.txt").write_text("x")
    place = place_model(run, stage, "rm-0")
    assert place == run.out_dir / "models" / "rm-0" and sorted(p.name for p in place.iterdir()) == ["config.json", "stage.txt"]
    inode = (place / "config.json").stat().st_ino
    assert inode == (stage.path / "model" / "config.json").stat().st_ino and place_model(run, stage, "rm-0") == place
    assert sorted(p.name for p in place_model(run, other, "rm-0").iterdir()) == ["config.json", "more.txt", "stage.txt"], "another stage replaces it"
    (place / "stage.txt").unlink()  # as a kill in the middle leaves it
    (place / "junk").write_text("x")
    assert sorted(p.name for p in place_model(run, stage, "rm-0").iterdir()) == ["config.json", "stage.txt"]


def test_models_of_several_data_sets_lie_apart():
    "The same name under two folders is two models; neither replaces the other, nor what lies under models/."
    run = Run("toy", Toy())
    stage, other = do_stage(run, "model", save_model, {}), do_stage(run, "model", save_model, dict(more=1))
    here, there, usual = place_model(run, stage, "m-0", under="mails"), place_model(run, other, "m-0", under="reviews"), place_model(run, stage, "m-0")
    assert [p.relative_to(run.out_dir).as_posix() for p in (here, there, usual)] == ["mails/m-0", "reviews/m-0", "models/m-0"]
    assert [(p / "stage.txt").read_text() for p in (here, there, usual)] == [stage.key, other.key, stage.key] and stage.key != other.key
    assert all((p / "config.json").is_file() for p in (here, there, usual))


def test_curves_go_to_a_tracker_when_one_is_named(monkeypatch):
    run = Run("toy", Toy())
    assert run_tracker(run)("stage", 1, dict(loss=1.0)) is None
    sent = []
    monkeypatch.setattr("rlgen.record._accelerator", lambda *a: SimpleNamespace(log=lambda values, step: sent.append((a, step, values))))
    run.params = SimpleNamespace(**vars(run.params), tracker="tensorboard", tracker_project="", tracker_run_name="x")
    do_stage(run, "square", square, {})
    assert sent == [(("tensorboard", "rlgen-toy", "x", str(run.out_dir / "tracker")), 1, {"square/loss": 0.5, "square/lr": 1e-3})]


# ---------------------------------------------------------------- what is kept


def results(run):
    do_stage(run, "square", square, {}, item=1)
    return save_results(
        run, table=[dict(method="ARGS", metric="gold_reward", mean=1 / 3, by_seed=[0.1234567, -0.00000001])], pairs=[dict(a="ARGS", b="GREEDY", diff=2 / 3)], cost=[dict(method="ARGS", lm_tokens=7)],
        scores=[dict(method="ARGS", item=0, score=1 / 3), dict(method="GREEDY", item=0, score=2.0, text='a "q", b')], samples=[dict(text="größer\nline")], counts=dict(dropped=3),
    )  # fmt: skip


def test_results_are_the_same_twice(tmp_path):
    run = Run("toy", Toy(out_dir=str(tmp_path / "out")))
    results(run)
    kept = {p.name: p.read_bytes() for p in run.out_dir.iterdir() if p.is_file()}
    again = Run("toy", Toy(out_dir=str(tmp_path / "out")))
    path = results(again)
    now = {p.name: p.read_bytes() for p in run.out_dir.iterdir() if p.is_file()}
    assert sorted(kept) == sorted(now) == ["curves.csv", "env.json", "metrics.json", "params.yaml", "samples.jsonl", "scores.csv"]
    assert all(kept[n] == now[n] for n in kept if n != "env.json")
    metrics, text = json.loads(path.read_text()), path.read_text()
    assert set(metrics) == {"run", "params", "seeds", "table", "pairs", "cost", "counts"} and metrics["table"][0] == dict(method="ARGS", metric="gold_reward", mean=0.3333, by_seed=[0.1235, 0.0])
    assert metrics["params"]["alpha"] == 1.0 and "out_dir" not in metrics["params"] and metrics["seeds"] == [0]
    assert str(tmp_path) not in text and str(settings().root) not in text and "-0.0" not in text and "seconds" not in text
    assert list(metrics) == sorted(metrics) and text.endswith("}\n")
    assert (run.out_dir / "scores.csv").read_text() == 'method,item,score,text\nARGS,0,0.333333,\nGREEDY,0,2.0,"a ""q"", b"\n'
    assert (run.out_dir / "curves.csv").read_text() == "stage,item,step,loss,lr\nsquare,1,1,0.5,0.001\n"
    assert json.loads((run.out_dir / "samples.jsonl").read_text()) == dict(text="größer\nline")
    env = json.loads((run.out_dir / "env.json").read_text())
    assert env["seconds"].keys() == {"square/1"} and env["versions"]["torch"] and env["device"] == "cpu"
    elsewhere = Run("toy", Toy(out_dir=str(tmp_path / "elsewhere")))
    assert results(elsewhere).read_bytes() == path.read_bytes(), "another folder, the same metrics"


def test_numbers_are_rounded():
    assert rounded({1: (1 / 3, [2 / 3, "x", None, True, 7])}) == {"1": [0.3333, [0.6667, "x", None, True, 7]]}
    assert str(rounded(-0.00001)) == "0.0" and csv_text([]) == "\n"


def test_figures_are_the_same_twice(tmp_path):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    run, bytes_ = Run("toy", Toy()), []
    for _ in range(2):
        fig, ax = plt.subplots(figsize=(1, 1))
        ax.plot([1, 2])
        bytes_.append(save_figure(run, "line", fig).read_bytes())
        plt.close(fig)
    assert bytes_[0] == bytes_[1] and (run.out_dir / "line.png").is_file()


def test_a_table_for_reading():
    rows = [dict(method=m, metric=k, mean=1.234, low=1.0, high=2.0) for m in ("B", "A") for k in ("gold", "f1") if (m, k) != ("A", "f1")]
    table = results_table(rows, ["f1", "gold"], dict(tokens=dict(A="7")))
    assert list(table.columns) == ["f1", "gold", "tokens"] and list(table.index) == ["B", "A"]
    assert table.loc["B", "f1"] == "1.23 [1.00, 2.00]" and table.loc["A", "f1"] == "" and table.loc["A", "tokens"] == "7"


def executed(path, when, where):
    "A notebook as papermill leaves it."
    bar = dict(output_type="display_data", data={"application/vnd.jupyter.widget-view+json": dict(model_id=when), "text/plain": ["0%"]}, metadata={})
    cell = lambda i, tags=(), out=(): dict(cell_type="code", id=f"{i}", metadata=dict(tags=list(tags), papermill=dict(duration=when)), source=["x"], execution_count=1, outputs=list(out))  # noqa: E731
    cells = [
        cell("a", ["parameters"]), cell(f"{when}", ["injected-parameters"]), cell("b", [], [dict(output_type="stream", name="stderr", text=[when]), bar, dict(output_type="stream", name="stdout", text=["7\n"])]),
        dict(cell_type="markdown", id="c", metadata=dict(papermill={}, tags=[]), source=["größer"]),
    ]  # fmt: skip
    meta = dict(papermill=dict(start_time=when, output_path=str(where)), kernelspec=dict(name="python3"), language_info=dict(version=when), widgets=dict(state=when))
    path.write_text(json.dumps(dict(cells=cells, metadata=meta, nbformat=4, nbformat_minor=5)))
    return path


def test_executed_notebooks_are_the_same_twice(tmp_path):
    a, b = (normalise_notebook(executed(tmp_path / f"{n}.ipynb", n, tmp_path / n)).read_text() for n in ("monday", "friday"))
    assert a == b and "größer" in a
    assert normalise_notebook(tmp_path / "monday.ipynb").read_text() == a, "twice is once"
    nb = json.loads(a)
    assert nb["metadata"] == dict(kernelspec=dict(name="python3")) and [c["id"] for c in nb["cells"]] == ["a", "injected-parameters", "b", "c"]
    assert [c["metadata"] for c in nb["cells"]] == [dict(tags=["parameters"]), dict(tags=["injected-parameters"]), {}, {}]
    assert nb["cells"][2]["outputs"] == [dict(output_type="stream", name="stdout", text=["7\n"])]


def test_importing_is_light():
    code = "import sys, rlgen.record; print([m for m in ('torch', 'transformers', 'yaml', 'pandas', 'matplotlib', 'accelerate') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


if __name__ == "__main__": getattr(__import__("test_record"), sys.argv[1])(*sys.argv[2:])  # under its own name, as the tests know it
