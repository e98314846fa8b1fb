"The style script can find each fault it counts, and the repository breaks none of the hard rules."
import json
import subprocess
import sys
from pathlib import Path

import pytest
import style

ADD = '''#| export
def add(
    a: int,  # first
    b: int = 0,  # second
) -> int:  # their sum
    "The sum of two numbers."
    return a + b'''
LESSON = "assert add(1, 2) == 3\nadd(1, 2)"
OTHER = "#| export\ndef twice(\n    a: int,  # a number\n) -> int:  # its double\n    \"Twice a number.\"\n    return add(a, a)"
PROSE = "Adding comes first, because everything else in this little notebook is built on it and on nothing more than it."


def cell(id: str, source: str, **more) -> dict:
    kind = "markdown" if id.endswith("-md") else "code"
    return dict(cell_type=kind, id=id, source=source.splitlines(keepends=True), metadata={}) | (dict(outputs=[]) if kind == "code" else {}) | more


def good() -> list[dict]:
    "A small notebook without a fault."
    return [
        cell("default-exp", "#| default_exp sums"), cell("title-md", "# Sums\n\n> Adding and doubling."), cell("why-md", PROSE),
        cell("imports", "#| export\nimport json\nfrom math import pi"), cell("h-add-md", "## Adding"), cell("add-md", PROSE),
        cell("add", ADD), cell("add-lesson", LESSON), cell("twice-md", PROSE), cell("twice", OTHER), cell("twice-lesson", "assert twice(2) == 4\ntwice(2), pi"),
    ]  # fmt: skip


def row(cells, path: str = "05_sums.ipynb", elsewhere=("twice",)) -> dict:
    parsed = style.read_cells(dict(cells=cells))
    return style.measure(Path(path), parsed, style.unused_exports({Path(path): parsed}, set(elsewhere)).get(Path(path), ()))


def put(id: str, source: str, new_id: str | None = None, **more) -> list[dict]:
    "The good notebook with one cell's source (and id) changed."
    return [cell(id if new_id is None else new_id, source, **more) if c["id"] == id else c for c in good()]


def test_good_notebook_has_no_fault():
    found = row(good())
    assert not any(found["_names"].values()) and not found["_hard"]
    assert (found["cells"], found["lines"], found["defs"], found["run"], found["_lengths"]) == (11, 13, 2, 2, [6, 5])
    assert found["words"] == 3 * len(PROSE.split()) + 3, "three paragraphs and the title's sentence, no headings"
    printed = style.shares(found)
    assert (printed["prose"], printed["show"], printed["assert"], printed["med"], printed["p90"], printed["max"]) == (1, 1, 1, 5, 6, 6)


_LONG = "#| export\ndef add(\n    a: int,  # first\n    b: int = 0,  # second\n) -> int:\n    \"Long.\"\n" + "    a += 1\n" * 55 + "    return a + b"


@pytest.mark.parametrize(("key", "cells"), [
    ("pub2", put("add", ADD + "\n\n\n" + OTHER.removeprefix("#| export\n").replace("twice", "thrice"))),
    ("prose", put("add-md", "## Only a heading")), ("prose", put("add-md", "```\nnot prose but code\n```")),
    ("show", put("add-lesson", "assert add(1, 2) == 3")), ("show", put("add-lesson", "assert 1\n2")), ("show", put("add-lesson", "print(add(1, 2))")),
    ("show", put("add-lesson", "add(1, 2);")), ("show", put("add-lesson", "#| export\nx = 1")), ("assert", put("add-lesson", "add(1, 2)")),
    ("max", put("add", _LONG)), ("id", put("add", ADD, "3fa9c1d2")), ("id", put("add", ADD, "")), ("id", put("add", ADD, "imports")),
    ("id", put("add", ADD, "2f1c0a6e-7c39-4f0e-8d4e-0a1b2c3d4e5f")), ("head", put("add-md", "## Adding\n" + PROSE)), ("head", put("add-md", "## Adding\n### More")),
    ("head", put("title-md", "# Sums\n\nNo quote.")), ("head", put("h-add-md", "## Adding\n\n> a quote")), ("imp", put("imports", "#| export\nimport json\nx = 1")),
    ("imp", put("add", ADD.replace("#| export", "#| export\nimport os"))), ("star", put("imports", "#| export\nfrom math import *")),
    ("star", put("add-lesson", "from math import *\nadd(1, 2)")), ("print", put("add-lesson", "assert 1\nprint(f\"sum {add(1, 2)}\")\nadd(1, 2)")),
    ("todo", put("add", ADD + "  # " + "TO" + "DO")), ("todo", put("add-md", "FIX" + "ME: words")), ("doc", put("add", ADD.replace('    "The sum of two numbers."\n', ""))),
    ("doc", put("add", ADD.replace("  # first", ""))), ("doc", put("add", ADD + "\n\n\nclass Sum:\n    \"A sum.\"\n    def value(self):\n        x = 1\n        return x")),
    ("unused", put("twice", OTHER.replace("add(a, a)", "2 * a"))), ("err", put("add-lesson", LESSON, outputs=[dict(output_type="error", ename="E", evalue="", traceback=[])])),
    ("10k", put("add-lesson", LESSON, outputs=[dict(output_type="display_data", data={"image/png": "x" * 11000}, metadata={})])),
])  # fmt: skip
def test_each_fault_is_found(key, cells):
    found = row(cells)
    assert found["_names"][key]
    assert (key in found["_hard"]) == (key in style.HARD)


def test_unused_needs_a_use_beyond_its_own_lesson():
    assert row(good(), elsewhere=())["_names"]["unused"] == ["twice"]
    assert row([*good(), cell("later", "#| export\nx = 1"), cell("later-lesson", "twice(3)")], elsewhere=())["_names"]["unused"] == []
    assert row([*good(), cell("second-lesson", "twice(3)")], elsewhere=())["_names"]["unused"] == ["twice"]


def test_default_exp_is_demanded_of_all_but_run_notebooks():
    cells = put("default-exp", "x = 1")
    assert "default_exp" in row(cells)["_hard"] and "default_exp" not in row(cells, "run_sums.ipynb")["_hard"]


def test_longest_run_of_code():
    cells = [*good(), *(cell(f"more-{'abcdef'[i]}", "1") for i in range(6)), cell("h-more-md", "## A heading is no prose"), cell("last", "1")]
    assert row(cells)["run"] == 9


def test_patched_methods_and_magics_are_read():
    cells = [*good(), cell("patch", "#| export\n@patch\ndef show(self: Sum,\n    n: int,  # times\n):\n    \"Show.\"\n    return n"), cell("magic", "%matplotlib inline\nSum().show(1)")]
    assert row(cells)["defs"] == 3 and "show" not in row(cells)["_names"]["show"] and "show" not in row(cells)["_names"]["doc"]


def test_table_marks_what_is_beyond_its_number():
    rows = {"05_sums.ipynb": row(good()), "06_bad.ipynb": row(put("add-lesson", "print(f\"{add(1, 2)}\")"), "06_bad.ipynb"), "run_x.ipynb": row([cell("title-md", "# Run")], "run_x.ipynb")}
    lines = [x.split() for x in style.table(rows).splitlines()]
    assert [x[0] for x in lines] == ["notebook", "05_sums.ipynb", "06_bad.ipynb", "run_x.ipynb", "total"]
    assert {len(x) for x in lines} == {len(style.COLUMNS) + 1}
    at = {k: i for i, k in enumerate(lines[0])}
    assert lines[1][at["show"]] == "100%" and lines[2][at["show"]] == "50%!" and lines[3][at["show"]] == "-" and lines[4][at["show"]] == "75%!"
    assert not any("!" in x for x in lines[1]) and lines[2][at["print"]] == "1!"


def test_exit_status(tmp_path):
    "Zero for a soft fault, one for a hard one, named under the table."
    (tmp_path / "nbs").mkdir()
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "style.py").write_text(Path(style.__file__).read_text())
    for cells, status in ((put("add-md", "## Only a heading"), 0), (put("imports", "#| export\nfrom math import *"), 1)):
        (tmp_path / "nbs" / "05_sums.ipynb").write_text(json.dumps(dict(cells=cells)))
        done = subprocess.run([sys.executable, tmp_path / "tests" / "style.py", "--details"], capture_output=True, text=True)
        assert done.returncode == status, done.stderr
        assert ("05_sums.ipynb: star: imports" in done.stdout) == bool(status)
        assert "05_sums.ipynb" in done.stdout and "total" in done.stdout


def test_the_repository_keeps_the_hard_rules():
    rows = style.measure_all()
    assert rows, "no notebooks found"
    assert style.breaches(rows) == []
