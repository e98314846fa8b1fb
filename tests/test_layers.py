"""Who may import whom, who may write files, what may never be called, and what a run notebook may hold: the code is read (AST), not run.

The order of modules is the order of the notebooks' number prefixes. Each rule is a function from source text to a list of faults, so that the
last tests can show every rule a piece of code that breaks it.
"""
import ast
import json
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SYSTEMS = ("pargs", "rest_pg", "lapdog", "synth_rl", "genalign")
LIGHT = ("rlgen", "rlgen.core", "rlgen.worlds", "rlgen.metrics", "rlgen.data")  # and everything below rlgen.worlds
HEAVY = ("torch", "transformers")
BY_HAND = ("__init__", "__main__", "_modidx")  # modules without a notebook

# (module, call): why this one may write where it is, though it is not rlgen.core
WRITES_ALLOWED: dict[tuple[str, str], str] = {
    ("rlgen.record", "open"): "a lock's file: only its existence counts",
    ("rlgen.record", "shutil.copytree"): "a stage's finished model shown under the run's folder",
    ("rlgen.record", "os.link"): "the same, without a second copy",
    ("rlgen.record", "shutil.copy2"): "the same, on a disk without hard links",
    ("rlgen.pargs.preprocess", "save_to_disk"): "a datasets folder that a person asked for, renamed when whole",
    ("rlgen.train", "torch.save"): "a checkpoint in the folder that a stage handed over, renamed when whole",
}

# ---------------------------------------------------------------- reading the repository


def notebook_modules(nbs: Path = ROOT / "nbs") -> dict[str, str]:
    "Module name (rlgen.core) to number prefix (00), from each notebook's first cell."
    found = {}
    for path in sorted(nbs.glob("*.ipynb")):
        if path.name.startswith("run_"): continue
        first = "".join(json.loads(path.read_text())["cells"][0]["source"])
        if m := re.search(r"^#\|\s*default_exp\s+(\S+)", first, re.M): found[f"rlgen.{m[1]}"] = path.name.split("_")[0]
    return found


def module_name(path: Path, root: Path = ROOT) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def sources(root: Path = ROOT) -> dict[str, str]:
    "Module name to source text, of everything in the package."
    return {module_name(p, root): p.read_text() for p in sorted((root / "rlgen").rglob("*.py"))}


def system_of(module: str) -> str | None:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in SYSTEMS else None


# ---------------------------------------------------------------- imports


def _text(node) -> tuple[str, bool] | None:
    "A string's text and whether that is all of it: an f-string is known up to its first hole."
    if isinstance(node, ast.Constant) and isinstance(node.value, str): return node.value, True
    if isinstance(node, ast.JoinedStr):
        first = node.values[0] if node.values else None
        return (first.value if isinstance(first, ast.Constant) else ""), False
    return None


def imported(source: str, module: str, modules, is_package: bool = False) -> set[str]:
    "The rlgen modules a module imports, at its top or inside functions, by statement or by name; '?' for a name nobody can read off the code."
    here = module.split(".") if is_package else module.split(".")[:-1]
    names, prefixes = set(), set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import): names |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join([*here[: len(here) - node.level + 1], *([node.module] if node.module else [])]) if node.level else node.module
            deeper = {f"{base}.{a.name}" for a in node.names}
            names |= {d if d in modules else base for d in deeper}
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__") and node.args:
            text, whole = _text(node.args[0]) or ("", False)
            if text.startswith("."): text = ".".join(here) + text
            if whole: names.add(text)
            elif text.startswith("rlgen."): prefixes.add(text)
            else: names.add("rlgen.?")
    found = {n for n in names if n == "rlgen" or n.startswith("rlgen.")} | {m for m in modules for p in prefixes if m.startswith(p) and "__" not in m}
    return found - {module}


def import_faults(module: str, source: str, order: dict[str, str], modules, is_package: bool = False) -> list[str]:
    "Imports that go upwards, across systems, or from the core into a system."
    faults, mine, system = [], order.get(module, "zz"), system_of(module)
    lowest = min((n for m, n in order.items() if system_of(m)), default="20")
    for other in sorted(imported(source, module, modules, is_package)):
        if other == "rlgen": continue  # the package itself holds only its version
        if other not in modules: faults.append(f"{module} imports {other}, which does not exist")
        elif other in order and order[other] >= mine: faults.append(f"{module} ({mine}) imports {other} ({order[other]}): only lower numbers")
        elif module != "rlgen.__main__" and other not in order and other.split(".")[-1] == "__main__": faults.append(f"{module} imports {other}")
        if system and system_of(other) not in (None, system): faults.append(f"{module} imports {other}: another system")
        if not system and mine < lowest and system_of(other): faults.append(f"{module} imports {other}: the core knows no system")
    return faults


# ---------------------------------------------------------------- writing and dangerous reading

_WRITE_MODE = re.compile(r"[rwaxbt+]*[wax+][rwaxbt+]*")
_OPENERS = ("open", "io.open", "codecs.open", "gzip.open", "bz2.open", "lzma.open", "os.fdopen", "zipfile.ZipFile", "tarfile.open", "gzip.GzipFile")
_WRITERS = {  # full name: where the path or stream stands among the positional arguments
    "json.dump": 1, "pickle.dump": 1, "yaml.dump": 1, "yaml.safe_dump": 1, "yaml.dump_all": 1, "yaml.safe_dump_all": 1, "joblib.dump": 1, "torch.save": 1,
    "numpy.save": 0, "numpy.savez": 0, "numpy.savez_compressed": 0, "numpy.savetxt": 0, "safetensors.torch.save_file": 1, "safetensors.torch.save_model": 1,
    "safetensors.numpy.save_file": 1, "faiss.write_index": 1, "nbformat.write": 1, "shutil.copy": 1, "shutil.copy2": 1, "shutil.copyfile": 1,
    "shutil.copytree": 1, "shutil.move": 1, "os.rename": 1, "os.replace": 1, "os.write": 0, "os.open": 0, "os.symlink": 1, "os.link": 1,
    "matplotlib.pyplot.savefig": 0, "matplotlib.pyplot.imsave": 0, "tempfile.mkstemp": 0,
}  # fmt: skip
_METHODS = {  # method of anything: how many positional arguments are no path yet
    "write_text": 0, "write_bytes": 0, "savefig": 0, "tofile": 0, "to_csv": 0, "to_json": 0, "to_parquet": 0, "to_pickle": 0, "to_excel": 0, "to_feather": 0,
    "to_markdown": 0, "to_html": 0, "to_latex": 0, "symlink_to": 0, "hardlink_to": 0, "touch": -1, "save_to_disk": 0, "save_model": -1, "save_state": -1,
}  # fmt: skip
_FREE = ("save_pretrained",)  # a library's own save into a folder that a stage handed over
_PATH_WORDS = ("path", "path_or_buf", "fname", "file", "fp", "stream", "f", "buf", "output_dir", "excel_writer", "dataset_path")


def _aliases(tree) -> dict[str, str]:
    "Local name to full name, of everything imported anywhere in the module: np -> numpy, dump -> json.dump."
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import): found |= {a.asname: a.name for a in node.names if a.asname} | {a.name.split(".")[0]: a.name.split(".")[0] for a in node.names if not a.asname}
        elif isinstance(node, ast.ImportFrom) and not node.level: found |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
    return found


def _calls(tree):
    "(call, full name or None, method name or None) of every call."
    names = _aliases(tree)
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call): continue
        parts, f = [], node.func
        while isinstance(f, ast.Attribute): parts, f = [f.attr, *parts], f.value
        full = ".".join([names.get(f.id, f.id), *parts]) if isinstance(f, ast.Name) else None
        yield node, full, node.func.attr if isinstance(node.func, ast.Attribute) else None


def _in_memory(tree) -> set[str]:
    "Names that hold a BytesIO or StringIO: writing there is not writing a file."
    found, made = set(), lambda v: isinstance(v, ast.Call) and ast.unparse(v.func).split(".")[-1] in ("BytesIO", "StringIO")
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            for t in node.targets:
                pairs = zip(t.elts, node.value.elts) if isinstance(t, ast.Tuple) and isinstance(node.value, ast.Tuple) else [(t, node.value)]
                found |= {a.id for a, v in pairs if isinstance(a, ast.Name) and made(v)}
        elif isinstance(node, ast.NamedExpr) and made(node.value): found |= {node.target.id, ast.unparse(node)}
        elif isinstance(node, ast.withitem) and made(node.context_expr) and isinstance(node.optional_vars, ast.Name): found.add(node.optional_vars.id)
    return found | {"BytesIO()", "StringIO()", "io.BytesIO()", "io.StringIO()", "sys.stdout", "sys.stderr"}


def _opens_for_writing(call: ast.Call, full: str | None, method: str | None) -> bool:
    if full in _OPENERS: modes = [*call.args[1:2], *(k.value for k in call.keywords if k.arg == "mode")]
    elif method == "open": modes = [*call.args[:1], *(k.value for k in call.keywords if k.arg == "mode")]  # Path.open(mode)
    else: return False
    if method == "open" and full not in _OPENERS: return any(isinstance(m, ast.Constant) and isinstance(m.value, str) and _WRITE_MODE.fullmatch(m.value) for m in modes)
    return any(not isinstance(m, ast.Constant) or _WRITE_MODE.fullmatch(str(m.value)) for m in modes)  # a mode nobody can read off counts


def writes(source: str) -> list[tuple[str, int]]:
    "(call, line) of everything that writes a file."
    tree, found = ast.parse(source), []
    memory = _in_memory(tree)
    for call, full, method in _calls(tree):
        if method in _FREE: continue
        if _opens_for_writing(call, full, method): found.append(("open", call.lineno)); continue  # noqa: E702
        key = full if full in _WRITERS else method if method in _METHODS else None
        if key is None: continue
        at = _WRITERS[key] if key in _WRITERS else _METHODS[key]
        target = call.args[at : at + 1] if at >= 0 else [call.func]
        target = target or [k.value for k in call.keywords if k.arg in _PATH_WORDS]
        if not target and key not in ("tempfile.mkstemp",): continue  # to_csv() and yaml.dump(x) give text back
        if target and (ast.unparse(target[0]) in memory or ast.unparse(target[0]) == "None"): continue
        found.append((key, call.lineno))
    return found


_NEVER = {
    "pickle.load": "runs code from the file", "pickle.loads": "runs code from the bytes", "pickle.Unpickler": "runs code from the file",
    "dill.load": "runs code from the file", "cloudpickle.load": "runs code from the file", "joblib.load": "runs code from the file",
    "marshal.load": "runs code from the file", "shelve.open": "runs code from the file", "pandas.read_pickle": "runs code from the file",
    "yaml.load": "use yaml.safe_load", "yaml.unsafe_load": "use yaml.safe_load", "yaml.full_load": "use yaml.safe_load",
    "eval": "runs code", "exec": "runs code", "os.system": "runs a shell",
}  # fmt: skip


def _is(node, value) -> bool: return isinstance(node, ast.Constant) and node.value is value


def dangers(source: str) -> list[str]:
    "Reading that can run foreign code: pickles, torch.load without weights_only=True, trust_remote_code, eval."
    tree, found = ast.parse(source), []
    for call, full, _ in _calls(tree):
        words = {k.arg: k.value for k in call.keywords}
        if full in _NEVER: found.append(f"line {call.lineno}: {full}: {_NEVER[full]}")
        if full == "torch.load" and not _is(words.get("weights_only"), True): found.append(f"line {call.lineno}: torch.load without weights_only=True")
        if "weights_only" in words and not _is(words["weights_only"], True): found.append(f"line {call.lineno}: weights_only other than True")
        if "allow_pickle" in words and not _is(words["allow_pickle"], False): found.append(f"line {call.lineno}: allow_pickle")
        if "shell" in words and not _is(words["shell"], False): found.append(f"line {call.lineno}: shell=True")
        if "trust_remote_code" in words and not _is(words["trust_remote_code"], False): found.append(f"line {call.lineno}: trust_remote_code")
    for node in ast.walk(tree):
        if isinstance(node, ast.Dict):
            bad = [v for k, v in zip(node.keys, node.values) if k is not None and _text(k) == ("trust_remote_code", True) and not _is(v, False)]
            found += [f"line {v.lineno}: trust_remote_code" for v in bad]
    return found


# ---------------------------------------------------------------- run notebooks

_PARAMETER = re.compile(r"(?P<name>[a-z]\w*): (?P<type>[a-z]+(\[[a-z]+(, [a-z]+)*\])?) = (?P<value>[^=]*?)  # (?P<words>[^=]*\S)")


def run_notebook_faults(nb: dict) -> list[str]:
    "What a run notebook may not be: untagged, long, a place for functions, with parameters papermill would misread."
    faults, cells = [], nb["cells"]
    tagged = [c for c in cells if "parameters" in c["metadata"].get("tags", [])]
    if len(tagged) != 1: faults.append(f"{len(tagged)} cells tagged `parameters` instead of 1")
    if len(cells) > 25: faults.append(f"{len(cells)} cells, at most 25")
    for c in cells:
        if c["cell_type"] != "code": continue
        source = "".join(c["source"])
        if re.search(r"^\s*#\|\s*(export|exporti|exports|default_exp)\b", source, re.M): faults.append(f"cell {c.get('id')}: exports")
        plain = re.sub(r"^\s*[%!].*$", "", source, flags=re.M)
        try: tree = ast.parse(plain)
        except SyntaxError as e: faults.append(f"cell {c.get('id')}: {e.msg}"); continue  # noqa: E702
        if any(isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) for n in ast.walk(tree)):
            faults.append(f"cell {c.get('id')}: defines a function or class")
    for line in "".join(tagged[0]["source"]).splitlines() if tagged else []:
        if not line.strip() or re.fullmatch(r"#[^=]*", line): continue
        m = _PARAMETER.fullmatch(line)
        if not m: faults.append(f"parameter line is not `name: type = literal  # words`: {line!r}"); continue  # noqa: E702
        try: ast.literal_eval(m["value"])
        except (ValueError, SyntaxError): faults.append(f"parameter value is no literal: {line!r}")
    return faults


# ---------------------------------------------------------------- the repository

MODULES = sources()
ORDER = notebook_modules()
RUNS = sorted((ROOT / "nbs").glob("run_*.ipynb"))


def _package(module: str) -> bool: return (ROOT / Path(*module.split(".")) / "__init__.py").is_file()


def test_notebooks_and_modules_belong_together():
    "Every module comes from a notebook and every notebook from the package; no two notebooks share a number."
    assert len(set(ORDER.values())) == len(ORDER), f"a number twice: {sorted(ORDER.values())}"
    assert not {m for m, n in ORDER.items() if not re.fullmatch(r"\d\d[a-z]?", n)}, "a notebook's name begins with its number"
    assert not set(ORDER) - set(MODULES), "exported by no one: run nbdev-export"
    orphans = {m for m in MODULES if m not in ORDER and not _package(m) and m.split(".")[-1] not in BY_HAND}
    assert not orphans, f"no notebook exports {sorted(orphans)}"
    assert not {m for m in MODULES if _package(m) and m not in ORDER and len(MODULES[m].strip().splitlines()) > 3}, "an __init__ with code in it"


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_downwards(module):
    assert import_faults(module, MODULES[module], ORDER, MODULES, _package(module)) == []


@pytest.mark.parametrize("module", [m for m in MODULES if m != "rlgen.core"])
def test_only_core_writes(module):
    found = [f"line {line}: {call}" for call, line in writes(MODULES[module]) if (module, call) not in WRITES_ALLOWED]
    assert found == [], "write through rlgen.core.atomic_write or append_jsonl, figures as bytes"


def test_allowances_are_used_and_explained():
    for (module, call), why in WRITES_ALLOWED.items():
        assert len(why.split()) >= 4, f"{module} {call}: say why"
        if module in MODULES: assert call in {c for c, _ in writes(MODULES[module])}, f"{module} does not use {call}: take it off the list"


@pytest.mark.parametrize("module", MODULES)
def test_nothing_read_runs_foreign_code(module):
    assert dangers(MODULES[module]) == []


def light_modules() -> list[str]:
    below = [m for m in MODULES if m.startswith("rlgen.worlds.")]
    return [m for m in (*LIGHT, *below) if m in MODULES]


_PROBE = """
import importlib, sys
for name in sys.argv[2:]:
    importlib.import_module(name)
    loaded = [h for h in sys.argv[1].split(",") if h in sys.modules]
    if loaded: sys.exit(f"importing {name} loads {', '.join(loaded)}")
"""


def heavy_imports(names: list[str], path: Path = ROOT) -> str:
    "Import the modules one after the other in a fresh interpreter: the complaint about the first that loads torch or transformers, or nothing."
    done = subprocess.run([sys.executable, "-c", _PROBE, ",".join(HEAVY), *names], cwd=path, capture_output=True, text=True)
    return done.stderr.strip()


def test_light_modules_stay_light():
    assert heavy_imports(light_modules()) == ""


def papermill_disagrees(path: Path) -> list[tuple[str, str, str]]:
    "Parameters whose name, value or help papermill reads otherwise than a person does."
    from papermill.inspection import inspect_notebook

    tagged = next(c for c in json.loads(path.read_text())["cells"] if "parameters" in c["metadata"].get("tags", []))
    lines = [m for m in map(_PARAMETER.fullmatch, "".join(tagged["source"]).splitlines()) if m]
    seen = {(k, v["default"], v["help"]) for k, v in inspect_notebook(str(path)).items()}
    return sorted(seen ^ {(m["name"], m["value"], m["words"]) for m in lines})


@pytest.mark.parametrize("path", RUNS, ids=lambda p: p.stem)
def test_run_notebook(path):
    assert run_notebook_faults(json.loads(path.read_text())) == []
    assert papermill_disagrees(path) == []


# ---------------------------------------------------------------- each rule, broken on purpose

_ORDER = {"rlgen.core": "00", "rlgen.worlds.pargs": "01a", "rlgen.lm": "05", "rlgen.pargs.a": "20", "rlgen.pargs.b": "21", "rlgen.lapdog.a": "40", "rlgen.cli": "90"}
_ALL = [*_ORDER, "rlgen", "rlgen.__main__"]


@pytest.mark.parametrize(("module", "source", "word"), [
    ("rlgen.core", "from rlgen.lm import x", "lower"), ("rlgen.core", "import rlgen.lm", "lower"), ("rlgen.core", "from .lm import x", "lower"),
    ("rlgen.core", "def f():\n    from . import lm", "lower"), ("rlgen.core", "from rlgen import lm", "lower"),
    ("rlgen.lm", "import importlib\ndef f(a): return importlib.import_module(f'rlgen.pargs.{a}')", "lower"),
    ("rlgen.lm", "from importlib import import_module\nimport_module('rlgen.pargs.a')", "lower"),
    ("rlgen.lm", "import importlib\ndef f(a): return importlib.import_module(a)", "does not exist"),
    ("rlgen.pargs.a", "from .b import x", "lower"), ("rlgen.pargs.a", "from rlgen.nowhere import x", "does not exist"),
    ("rlgen.lapdog.a", "from ..pargs.a import x", "another system"), ("rlgen.lm", "from rlgen.pargs.a import x", "the core knows no system"),
    ("rlgen.lm", "from rlgen.__main__ import x", "__main__"),
])  # fmt: skip
def test_import_rule_can_fail(module, source, word):
    faults = import_faults(module, source, _ORDER, _ALL)
    assert faults and any(word in f for f in faults)


@pytest.mark.parametrize(("module", "source"), [
    ("rlgen.lm", "from rlgen.core import x\nimport torch\nfrom .worlds.pargs import y"), ("rlgen.pargs.b", "from .a import x\nfrom ..lm import y\nfrom ..worlds import pargs"),
    ("rlgen.cli", "import importlib\ndef f(a): return importlib.import_module(f'rlgen.pargs.{a}')"), ("rlgen.__main__", "from rlgen.cli import main"),
    ("rlgen.lm", "import importlib\ndef f(a): return importlib.import_module(f'rlgen.worlds.{a}')"),
])  # fmt: skip
def test_import_rule_lets_pass(module, source):
    assert import_faults(module, source, _ORDER, _ALL) == []


@pytest.mark.parametrize("line", [
    "open(p, 'w')", "open(p, mode='ab')", "open(p, 'r+')", "open(p, mode)", "p.open('w')", "p.open(mode='x')", "gzip.open(p, 'wt')", "os.fdopen(fd, 'wb')",
    "p.write_text('a')", "Path(p).write_bytes(b'')", "json.dump(x, f)", "dump(x, f)", "np.save(p, x)", "np.savez(p, a=x)", "df.to_csv(p)", "df.to_csv(path_or_buf=p)",
    "df.to_parquet(p)", "torch.save(x, p)", "fig.savefig(p)", "plt.savefig(p)", "save_file(x, p)", "faiss.write_index(i, p)", "shutil.copytree(a, b)",
    "os.replace(a, b)", "p.touch()", "yaml.safe_dump(x, f)", "trainer.save_model(p)", "zipfile.ZipFile(p, 'w')",
])  # fmt: skip
def test_write_rule_can_fail(line):
    head = """
        import gzip, io, json, os, shutil, zipfile
        from json import dump
        from pathlib import Path
        def f(p, x, mode, fd, df, fig, trainer, a, b, i):
            import faiss, numpy as np, torch, yaml
            import matplotlib.pyplot as plt
            from safetensors.torch import save_file
            """
    assert writes(textwrap.dedent(head) + "    " + line)


@pytest.mark.parametrize("line", [
    "open(p)", "open(p, 'rb')", "p.open()", "gzip.open(p, 'rt')", "p.read_text()", "json.dumps(x)", "df.to_csv()", "df.to_csv(None)", "yaml.safe_dump(x)",
    "model.save_pretrained(p)", "b = io.BytesIO(); fig.savefig(b)", "with io.BytesIO() as b: fig.savefig(b)", "np.save(b := io.BytesIO(), x)", "s = x.replace('a', 'w')",
    "zipfile.ZipFile(p)", "atomic_write(p, x)", "append_jsonl(p, x)", "webbrowser.open(p)",
])  # fmt: skip
def test_write_rule_lets_pass(line):
    assert writes("import gzip, io, json, zipfile, yaml\nimport numpy as np\n" + line) == []


@pytest.mark.parametrize("line", [
    "pickle.load(f)", "from pickle import loads as l; l(b)", "torch.load(p)", "torch.load(p, weights_only=False)", "T.load(p, weights_only=flag)", "np.load(p, allow_pickle=True)",
    "AutoModel.from_pretrained(p, trust_remote_code=True)", "AutoModel.from_pretrained(p, trust_remote_code=flag)", "kw = {'trust_remote_code': True}", "dict(trust_remote_code=True)",
    "yaml.load(f)", "pd.read_pickle(p)", "eval(text)", "joblib.load(p)", "subprocess.run(x, shell=True)",
])  # fmt: skip
def test_danger_rule_can_fail(line):
    assert dangers("import pickle, torch, yaml, joblib, subprocess\nimport torch as T, numpy as np, pandas as pd\n" + line)


def test_danger_rule_lets_pass():
    assert dangers("import torch, yaml\nmodel.eval()\ntorch.load(p, weights_only=True)\nyaml.safe_load(f)\nx.from_pretrained(p, trust_remote_code=False)\nre.compile('x')") == []


def test_light_rule_can_fail(tmp_path):
    (tmp_path / "torch.py").write_text("")
    (tmp_path / "quiet.py").write_text("import json")
    (tmp_path / "loud.py").write_text("import torch")
    assert heavy_imports(["quiet"], tmp_path) == ""
    assert heavy_imports(["quiet", "loud"], tmp_path) == "importing loud loads torch"


def _run_nb(*sources: str, tags=(1,)) -> dict:
    cells = [dict(cell_type="code", id=f"c{i}", source=s, metadata={"tags": ["parameters"]} if i in tags else {}) for i, s in enumerate(sources)]
    return dict(cells=cells)


_GOOD = "seeds: list[int] = [0]  # one table row is a mean over these\nalpha: float = 1.0  # weight of the reward\n# model\nbase: str = \"\"  # empty for the shipped one"


@pytest.mark.parametrize(("nb", "word"), [
    (_run_nb("1", _GOOD, tags=()), "tagged"), (_run_nb("1", _GOOD, _GOOD, tags=(1, 2)), "tagged"), (_run_nb("1", _GOOD, *["1"] * 24), "at most 25"),
    (_run_nb("def f(): pass", _GOOD), "defines"), (_run_nb("x = (", _GOOD), "never closed"), (_run_nb("if 1:\n    class A: pass", _GOOD), "defines"), (_run_nb("#| export\na = 1", _GOOD), "exports"),
    *[(_run_nb("1", line), "parameter") for line in (
        "a: int = 1 # one space", "a = 1  # no type", "a: int | None = None  # union", "a: int = 1", "a: int = 1  # so a=1", "a: str = \"b=c\"  # equals sign",
        "a: int = f(1)  # a call", "a: int = 1; b: int = 2  # two", "  a: int = 1  # indented", "a: list = [\n", "# b = 2", "import os")],
])  # fmt: skip
def test_run_rule_can_fail(nb, word):
    assert any(word in f for f in run_notebook_faults(nb)), run_notebook_faults(nb)


def test_run_rule_lets_pass():
    assert run_notebook_faults(_run_nb("%matplotlib inline\nlambda x: x", _GOOD)) == []


def test_papermill_reads_the_good_cell_alike(tmp_path):
    nb = _run_nb("1", _GOOD) | dict(nbformat=4, nbformat_minor=5, metadata={"kernelspec": {"name": "python3", "display_name": "python3", "language": "python"}})
    for c in nb["cells"]: c |= dict(execution_count=None, outputs=[])
    (tmp_path / "run_x.ipynb").write_text(json.dumps(nb))
    assert papermill_disagrees(tmp_path / "run_x.ipynb") == []
    nb["cells"][1]["source"] += "\nsteps = 3"
    (tmp_path / "run_x.ipynb").write_text(json.dumps(nb))
    assert papermill_disagrees(tmp_path / "run_x.ipynb") == [("steps", "3", "")]
