"""Is the package what the notebooks export? Exports into a copy and compares, so that a difference is shown and nothing is changed."""
import filecmp
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def differing(a: Path, b: Path) -> list[str]:
    "Python files that differ between two packages, or stand in one of them only."
    names = {str(p.relative_to(d)) for d in (a, b) for p in d.rglob("*.py")}
    return sorted(n for n in names if not ((a / n).is_file() and (b / n).is_file() and filecmp.cmp(a / n, b / n, shallow=False)))


def main() -> int:
    with tempfile.TemporaryDirectory() as d:
        for name in ("nbs", "rlgen"): shutil.copytree(ROOT / name, Path(d) / name, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints", "zoo"))
        for name in ("pyproject.toml", "settings.ini", "README.md"):
            if (ROOT / name).is_file(): shutil.copy(ROOT / name, d)
        subprocess.run([str(Path(sys.executable).with_name("nbdev-export"))], cwd=d, check=True)
        found = differing(ROOT / "rlgen", Path(d) / "rlgen")
        subprocess.run([str(Path(sys.executable).with_name("nbdev-clean"))], cwd=d, check=True)
        dirty = [p.name for p in sorted((ROOT / "nbs").glob("*.ipynb")) if p.read_bytes() != (Path(d) / "nbs" / p.name).read_bytes()]
    if found: print(f"nbdev-export changes {', '.join(found)}: run nbdev-export (or nbdev-update, if you edited the .py) and commit")
    if dirty: print(f"nbdev-clean changes {', '.join(dirty)}: run nbdev-clean and commit")
    print(f"export: {len(found)} files differ, {len(dirty)} notebooks unclean")
    return bool(found or dirty)


if __name__ == "__main__": sys.exit(main())
