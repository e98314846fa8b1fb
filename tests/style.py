"""What can be counted of the house style, notebook by notebook: `python tests/style.py [--details] [notebook …]`.

    cells  cells                                    id     cells without a readable id (missing, random, twice)
    lines  exported lines that are not blank        head   heading cells with something else in them (an H1 may carry its > sentence)
    words  words of prose per exported line     3   imp    exported import cells that hold something else                        H
    defs   exported public definitions              star   star imports                                                          H
    pub2   exported cells with more than one        print  print(f"…") sentences
    prose  … with prose in the cell beside    70 %  todo   TODO, FIXME                                                           H
    show   … with a lesson right under it that      doc    public functions and methods without docstring or docments
           uses it and ends in a value        85 %  unused public names nobody uses beyond their own lesson
    assert lessons with an assert             50 %  err    stored error outputs                                                  H
    run    code cells in a row without prose     6  10k    outputs above 10 KB                                                1
    med p90 max   lines of a function, signature and docstring counted               10, 25, 60 (H)

The numbers are the ones to reach; a value beyond its number is marked with !. H marks hard rules (a missing default_exp is one too): the exit status
is 1 when one is broken, and each breach is named below the table. The others are there to be looked at: `--details` names what was counted.
Prose is markdown outside headings and code blocks. A lesson is the next code cell after a definition, if it is not exported.
"""
import ast
import io
import json
import re
import sys
import tokenize
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BIG, LONG = 10 * 1024, 60
COLUMNS = "cells lines words defs pub2 prose show assert run med p90 max id head imp star print todo doc unused err 10k".split()
AT_LEAST = dict(words=3, prose=0.7, show=0.85, **{"assert": 0.5})
AT_MOST = dict(pub2=0, run=6, med=10, p90=25, max=LONG, id=0, head=0, imp=0, star=0, print=0, todo=0, doc=0, unused=0, err=0) | {"10k": 1}
HARD = ("default_exp", "star", "max", "todo", "err", "imp")
Def = ast.FunctionDef | ast.AsyncFunctionDef


# ---------------------------------------------------------------- cells


@dataclass
class Cell:
    "One cell with what all measures ask of it."
    i: int
    kind: str  # code, markdown or raw
    id: str
    source: str
    outputs: list = field(default_factory=list)
    directives: tuple = ()
    tree: ast.Module | None = None

    @property
    def exported(self) -> bool: return self.kind == "code" and any(d.split()[0] in ("export", "exports", "exporti") for d in self.directives if d.split())

    @property
    def code(self) -> bool: return self.kind == "code"

    @property
    def prose(self) -> str: return prose(self.source) if self.kind == "markdown" else ""


def read_cells(nb: dict) -> list[Cell]:
    "The notebook's cells; code that does not parse (cell magics) has an empty tree."
    cells = []
    for i, c in enumerate(nb["cells"]):
        source = "".join(c["source"])
        cell = Cell(i, c["cell_type"], c.get("id", ""), source, c.get("outputs", []))
        if cell.code:
            cell.directives = tuple(re.findall(r"^\s*#\|\s*(.*?)\s*$", source, re.M))
            try: cell.tree = ast.parse(re.sub(r"^(\s*)[%!].*$", r"\1pass", source, flags=re.M))
            except SyntaxError: cell.tree = ast.parse("")
        cells.append(cell)
    return cells


def _no_fences(text: str) -> str: return re.sub(r"^(```|~~~).*?^\1\s*$", "", text, flags=re.M | re.S)


def prose(text: str) -> str: return re.sub(r"^\s*#{1,6}\s.*$", "", _no_fences(text), flags=re.M).strip()


def words(text: str) -> int: return len(re.findall(r"[A-Za-z][\w'’]*", text))


def exported_lines(cells) -> int:
    lines = [x for c in cells if c.exported for x in c.source.splitlines()]
    return sum(bool(x.strip()) and not x.lstrip().startswith("#|") for x in lines)


# ---------------------------------------------------------------- definitions and their lessons


def _patched(node) -> bool: return any("patch" in ast.unparse(d) for d in getattr(node, "decorator_list", []))


def definitions(cells) -> list[tuple[Cell, ast.AST]]:
    "Exported public functions and classes, methods added by @patch among them."
    nodes = [(c, n) for c in cells if c.exported for n in c.tree.body]
    return [(c, n) for c, n in nodes if isinstance(n, Def | ast.ClassDef) and not n.name.startswith("_")]


def crowded(cells) -> list[str]:
    "Ids of exported cells that define more than one public thing."
    return [f"{cells[i].id}" for i, n in Counter(c.i for c, _ in definitions(cells)).items() if n > 1]


def without_prose(cells) -> list[str]:
    "Public definitions with no prose in the cell before or after theirs."
    beside = lambda c: any(0 <= j < len(cells) and cells[j].prose for j in (c.i - 1, c.i + 1))  # noqa: E731
    return [n.name for c, n in definitions(cells) if not beside(c)]


def lesson_of(cells, cell: Cell) -> Cell | None:
    "The next code cell, if it is not an exported one."
    after = next((c for c in cells[cell.i + 1 :] if c.code), None)
    return after if after and not after.exported else None


def shows_value(cell: Cell) -> bool:
    "The last line is an expression that the notebook displays: no print, no semicolon."
    last = cell.tree.body[-1] if cell.tree.body else None
    if not isinstance(last, ast.Expr) or cell.source.rstrip().endswith(";"): return False
    return not (isinstance(last.value, ast.Call) and ast.unparse(last.value.func) == "print")


def identifiers(node) -> set[str]:
    "Every name that a piece of code mentions as code."
    found = set()
    for n in ast.walk(node):
        if isinstance(n, ast.Name): found.add(n.id)
        elif isinstance(n, ast.Attribute): found.add(n.attr)
        elif isinstance(n, ast.alias): found.add(n.name.split(".")[-1])
    return found


def without_lesson(cells) -> list[str]:
    "Public definitions without a lesson right under them that uses them and ends in a value."
    lessons = [(n.name, lesson_of(cells, c)) for c, n in definitions(cells)]
    return [name for name, at in lessons if not (at and shows_value(at) and name in identifiers(at.tree))]


def lessons(cells) -> list[Cell]:
    "All lesson cells, each once."
    found = {at.i: at for c, _ in definitions(cells) if (at := lesson_of(cells, c))}
    return list(found.values())


def asserts(cell: Cell) -> bool:
    calls = {ast.unparse(n.func).split(".")[-1] for n in ast.walk(cell.tree) if isinstance(n, ast.Call)}
    return any(isinstance(n, ast.Assert) for n in ast.walk(cell.tree)) or any(c.startswith(("test_", "assert_")) for c in calls)


def longest_run(cells) -> int:
    "Most code cells in a row with no prose between them."
    longest = now = 0
    for c in cells:
        now = now + 1 if c.code else 0 if c.prose else now
        longest = max(longest, now)
    return longest


def functions(cells) -> list[tuple[str, int]]:
    "(name, lines) of every exported function and method, private ones too, inner ones not."
    found = []
    for top in (n for c in cells if c.exported for n in c.tree.body):
        inside = [top] if isinstance(top, Def) else [m for m in getattr(top, "body", []) if isinstance(top, ast.ClassDef) and isinstance(m, Def)]
        found += [(f.name, f.end_lineno - f.lineno + 1) for f in inside]
    return found


def quantile(values, q: float) -> float:
    "The smallest value with at least a share q of all values at or below it; 0 of nothing."
    values = sorted(values)
    return values[max(0, -(-int(q * 1000) * len(values) // 1000) - 1)] if values else 0


def undocumented(cells) -> list[str]:
    "Public functions (and public classes' public methods) without docstring, or functions with a parameter that has no comment on its line."
    found = []
    for cell, node in definitions(cells):
        methods = [m for m in node.body if isinstance(m, Def) and not m.name.startswith("_")] if isinstance(node, ast.ClassDef) else []
        found += [f"{node.name}.{m.name}" for m in methods if not ast.get_docstring(m) and not _is_short(m)]
        if not ast.get_docstring(node): found.append(node.name); continue  # noqa: E702
        if not isinstance(node, Def): continue
        tokens = tokenize.generate_tokens(io.StringIO(cell.source).readline)
        noted = {t.start[0] for t in tokens if t.type == tokenize.COMMENT}
        args = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs][1 if _patched(node) else 0 :]
        if any(not {a.lineno, a.end_lineno} & noted for a in args) and not _is_short(node): found.append(node.name)
    return found


def _is_short(node) -> bool: return node.lineno == node.body[0].lineno  # def f(x): return x + 1


# ---------------------------------------------------------------- cells that break a rule


def unreadable_ids(cells) -> list[str]:
    "Cells whose id is missing, random or used twice."
    random = re.compile(r"(?=.*\d)[0-9a-f]{8,32}|[0-9a-f]{8}-[0-9a-f]{4}-.*")
    twice = {k for k, n in Counter(c.id for c in cells).items() if n > 1}
    return [f"cell {c.i} {c.id!r}" for c in cells if not re.search("[A-Za-z]{2}", c.id) or random.fullmatch(c.id) or c.id in twice]


def crowded_headings(cells) -> list[str]:
    "Heading cells that hold something else; an H1 may have its one sentence, quoted, under it."
    found = []
    for c in cells:
        if c.kind != "markdown": continue
        heads = [x for x in _no_fences(c.source).splitlines() if re.match(r"#{1,6}\s", x)]
        rest = [x for x in c.source.splitlines() if x.strip() and x not in heads]
        if heads and heads[0].startswith("# "): rest = [x for x in rest if not x.startswith(">")]
        if heads and (rest or len(heads) > 1): found.append(c.id)
    return found


def mixed_imports(cells) -> list[str]:
    "Exported cells in which an import stands with other code."
    def only_imports(n) -> bool:
        if isinstance(n, ast.If): return all(map(only_imports, [*n.body, *n.orelse]))  # if TYPE_CHECKING:
        return isinstance(n, ast.Import | ast.ImportFrom)
    return [c.id for c in cells if c.exported and any(map(only_imports, c.tree.body)) and not all(map(only_imports, c.tree.body))]


def stars(cells) -> list[str]:
    return [c.id for c in cells if c.code and any(isinstance(n, ast.ImportFrom) and n.names[0].name == "*" for n in ast.walk(c.tree))]


def printed_sentences(cells) -> list[str]:
    calls = [(c, n) for c in cells if c.code for n in ast.walk(c.tree) if isinstance(n, ast.Call) and ast.unparse(n.func) == "print"]
    return [c.id for c, n in calls if n.args and isinstance(n.args[0], ast.JoinedStr)]


def todos(cells) -> list[str]: return [c.id for c in cells if re.search(r"\b(TODO|FIXME)\b", c.source)]


def stored_errors(cells) -> list[str]: return [c.id for c in cells if any(o.get("output_type") == "error" for o in c.outputs)]


def big_outputs(cells) -> list[str]:
    return [c.id for c in cells for o in c.outputs if len(json.dumps(o.get("data") or o.get("text") or "")) > BIG]


# ---------------------------------------------------------------- the repository


def is_run(path: Path) -> bool: return path.name.startswith("run_")


def missing_default_exp(path: Path, cells) -> bool:
    "Every notebook but the run notebooks says in its first cell which module it exports."
    return not is_run(path) and not (cells and any(re.fullmatch(r"default_exp\s+\S+", d) for d in cells[0].directives))


def unused_exports(notebooks: dict[Path, list[Cell]], elsewhere: set[str]) -> dict[Path, list[str]]:
    "Public names that nothing uses but their own definition and the lesson cells up to the next exported cell; `elsewhere`: names used outside notebooks."
    uses = []  # (notebook, cell number, defined name, names used) of every top-level statement
    for path, cells in notebooks.items():
        for c in cells:
            for n in c.tree.body if c.code else []: uses.append((path, c.i, getattr(n, "name", None), identifiers(n)))
    found = {}
    for path, cells in notebooks.items():
        for c, n in definitions(cells):
            end = next((d.i for d in cells[c.i + 1 :] if d.exported), len(cells))
            own = lambda p, i, name: p == path and (c.i < i < end or (i == c.i and name == n.name))  # noqa: E731, B023
            if n.name not in elsewhere and not any(n.name in used and not own(p, i, name) for p, i, name, used in uses): found.setdefault(path, []).append(n.name)
    return found


def used_outside(root: Path) -> set[str]:
    "Names used by tests, by hand-written modules and by the entry points in pyproject.toml."
    files = [*root.glob("tests/**/*.py"), *(p for p in root.glob("rlgen/**/*.py") if "AUTOGENERATED" not in p.read_text()[:2000])]
    names = set().union(*(identifiers(ast.parse(p.read_text())) for p in files if p.name != "_modidx.py"))
    toml = root / "pyproject.toml"
    return names | set(re.findall(r'=\s*"[\w.]+:(\w+)"', toml.read_text() if toml.is_file() else ""))


def measure(path: Path, cells, unused=()) -> dict:
    "One notebook's row, with names for what was counted under `_names`, and the hard breaches under `_hard`."
    defs, fns, own = definitions(cells), functions(cells), lessons(cells)
    names = dict(
        pub2=crowded(cells), prose=without_prose(cells), show=without_lesson(cells), id=unreadable_ids(cells), head=crowded_headings(cells), imp=mixed_imports(cells),
        star=stars(cells), print=printed_sentences(cells), todo=todos(cells), doc=undocumented(cells), unused=list(unused), err=stored_errors(cells),
    ) | {"assert": [c.id for c in own if not asserts(c)], "10k": big_outputs(cells), "max": [f"{f} ({n} lines)" for f, n in fns if n > LONG]}  # fmt: skip
    row = dict(cells=len(cells), lines=exported_lines(cells), words=sum(words(c.prose) for c in cells), defs=len(defs), run=longest_run(cells), _lengths=[n for _, n in fns], _lessons=len(own))
    row |= {k: len(v) for k, v in names.items() if k not in ("prose", "show", "assert", "max")}
    row |= dict(_noprose=len(names["prose"]), _noshow=len(names["show"]), _noassert=len(names["assert"]))
    hard = {k: v for k, v in names.items() if k in HARD and v} | ({"default_exp": ["missing in the first cell"]} if missing_default_exp(path, cells) else {})
    return row | dict(_names=names, _hard=hard)


def shares(row: dict) -> dict:
    "The row as it is printed: counts made into shares, lengths into quantiles; None where there is nothing to share."
    part = lambda missing, of: (of - missing) / of if of else None  # noqa: E731
    out = row | dict(words=row["words"] / row["lines"] if row["lines"] else None, prose=part(row["_noprose"], row["defs"]), show=part(row["_noshow"], row["defs"]))
    out |= {"assert": part(row["_noassert"], row["_lessons"])}
    med, p90, longest = (quantile(row["_lengths"], q) for q in (0.5, 0.9, 1.0))
    return out | (dict(med=med, p90=p90, max=longest) if row["_lengths"] else dict(med=None, p90=None, max=None))


def total(rows: list[dict]) -> dict:
    "All notebooks as one: counts added, the longest run kept."
    out = {k: sum(r[k] for r in rows) for k in rows[0] if not k.startswith("_") or k in ("_noprose", "_noshow", "_noassert", "_lessons")} if rows else {}
    return out | dict(run=max((r["run"] for r in rows), default=0), _lengths=[n for r in rows for n in r["_lengths"]])


def shown(key: str, value, is_total: bool = False) -> str:
    "A value as text, with ! where it is beyond its number."
    if value is None: return "-"
    text = f"{value:.0%}" if key in ("prose", "show", "assert") else f"{value:.1f}" if key == "words" else str(value)
    beyond = value < AT_LEAST.get(key, value) or value > AT_MOST.get(key, value)
    return text + "!" * (beyond and not (is_total and key == "10k"))


def table(rows: dict[str, dict]) -> str:
    "The aligned table, a line per notebook and their total."
    body = [[name, *(shown(k, shares(r).get(k)) for k in COLUMNS)] for name, r in rows.items()]
    if rows: body.append(["total", *(shown(k, shares(total(list(rows.values()))).get(k), is_total=True) for k in COLUMNS)])
    body = [["notebook", *COLUMNS], *body]
    wide = [max(len(line[i]) for line in body) for i in range(len(body[0]))]
    return "\n".join(" ".join(x.ljust(w) if i == 0 else x.rjust(w) for i, (x, w) in enumerate(zip(line, wide))).rstrip() for line in body)


def measure_all(root: Path = ROOT) -> dict[str, dict]:
    "Rows of all notebooks under nbs/, by file name."
    notebooks = {p: read_cells(json.loads(p.read_text())) for p in sorted((root / "nbs").glob("*.ipynb"))}
    unused = unused_exports(notebooks, used_outside(root))
    return {p.name: measure(p, cells, unused.get(p, ())) for p, cells in notebooks.items()}


def breaches(rows: dict[str, dict]) -> list[str]:
    "A line per broken hard rule: notebook, rule, where."
    return [f"{name}: {rule}: {', '.join(where)}" for name, r in rows.items() for rule, where in r["_hard"].items()]


def main(args: list[str]) -> int:
    rows, wanted = measure_all(), [a for a in args if not a.startswith("-")]
    rows = {k: v for k, v in rows.items() if not wanted or any(Path(w).stem in k for w in wanted)}
    print(table(rows))
    if "--details" in args:
        for name, r in rows.items():
            for key, found in r["_names"].items():
                if found: print(f"{name} {key}: {', '.join(found)}")
    if hard := breaches(rows): print("\nbroken:", *hard, sep="\n")
    return bool(hard)


if __name__ == "__main__": sys.exit(main(sys.argv[1:]))
