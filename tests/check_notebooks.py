"""Notebooks and package agree, every lesson cell runs, and stored outputs are what the cells say.

Works on a copy, so that nothing here changes a file: exports it (must equal the package), cleans it (must change no notebook), runs the lesson cells and compares
their text with what is stored. Numbers may differ in the last printed digits (floats differ between machines); cells named demo… (training) and pictures are run, not compared.
"""
import difflib
import filecmp
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+(?:e[-+]?\d+)?|e[-+]?\d+)(?!\w)")


def differing(a: Path, b: Path) -> list[str]:
    "Python files that differ between two packages, or stand in one of them only."
    names = {str(p.relative_to(d)) for d in (a, b) for p in d.rglob("*.py")}
    return sorted(n for n in names if not ((a / n).is_file() and (b / n).is_file() and filecmp.cmp(a / n, b / n, shallow=False)))


def text_of(cell: dict) -> str:
    "A cell's printed and displayed text."
    out = []
    for o in cell.get("outputs", []):
        if o["output_type"] == "stream" and o["name"] == "stdout": out.append("".join(o["text"]))
        if "data" in o and not any(k.startswith("image") for k in o["data"]): out.append("".join(o["data"].get("text/plain", "")))
    return "\n".join(out)


def same(a: str, b: str, tolerance: float = 2e-3) -> bool:
    "Equal text, with numbers equal up to a relative tolerance."
    if NUMBER.sub("#", a) != NUMBER.sub("#", b): return False
    return all(abs(float(x) - float(y)) <= tolerance * max(abs(float(x)), abs(float(y))) + 1e-6 for x, y in zip(NUMBER.findall(a), NUMBER.findall(b)))


def stale_cells(stored: dict, fresh: dict) -> list[str]:
    "Ids of the cells whose stored text isn't what they say now."
    now = {c["id"]: text_of(c) for c in fresh["cells"]}
    return [c["id"] for c in stored["cells"] if c["cell_type"] == "code" and not c["id"].startswith("demo") and not same(text_of(c), now.get(c["id"], ""))]


def tool(name: str, *words: str, cwd: Path) -> int:
    "Run one of nbdev's commands in the copy."
    env = os.environ | {"TQDM_DISABLE": "1", "HF_HUB_OFFLINE": "1", "RLGEN_CACHE_DIR": str(cwd / ".cache")}
    return subprocess.run([str(Path(sys.executable).with_name(name)), *words], cwd=cwd, env=env).returncode


def main() -> int:
    with tempfile.TemporaryDirectory() as d:
        copy = Path(d)
        for name in ("nbs", "rlgen", "params"): shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))
        for name in ("pyproject.toml", "settings.ini", "README.md"): shutil.copy(ROOT / name, copy)
        failed = tool("nbdev-export", cwd=copy)
        found = differing(ROOT / "rlgen", copy / "rlgen")
        failed |= tool("nbdev-clean", cwd=copy)
        names = sorted(p.name for p in (ROOT / "nbs").glob("*.ipynb"))
        dirty = [n for n in names if (ROOT / "nbs" / n).read_bytes() != (copy / "nbs" / n).read_bytes()]
        failed |= tool("nbdev-test", "--skip-file-re", r"^(_|\.|run_)", "--save", "--n-workers", "2", cwd=copy)
        stale = {n: stale_cells(*(json.loads((p / "nbs" / n).read_text()) for p in (ROOT, copy))) for n in names if not n.startswith("run_")}
        for n, ids in stale.items():
            for i in ids:
                a, b = (text_of(next(c for c in json.loads((p / "nbs" / n).read_text())["cells"] if c["id"] == i)) for p in (ROOT, copy))
                print(f"--- {n} {i}", *difflib.unified_diff(a.splitlines(), b.splitlines(), "stored", "now", lineterm="", n=0), sep="\n")
    if found: print(f"nbdev-export changes {', '.join(found)}: run nbdev-export (or nbdev-update, if you edited the .py) and commit")
    if dirty: print(f"nbdev-clean changes {', '.join(dirty)}: run nbdev-clean and commit")
    count = sum(map(len, stale.values()))
    print(f"notebooks: {len(found)} exported files differ, {len(dirty)} unclean, {count} cells with stale outputs, lesson cells {'FAILED' if failed else 'passed'}")
    return bool(found or dirty or count or failed)


if __name__ == "__main__": sys.exit(main())
