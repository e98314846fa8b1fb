"The repository's own files agree with each other: settings, pins, paths, sizes, keys, the commands that README names."
import configparser
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BIG = 2 * 2**20

# ---------------------------------------------------------------- reading


def project(root: Path = ROOT) -> dict: return tomllib.loads((root / "pyproject.toml").read_text())


def requirement(text: str) -> tuple[str, str]:
    "A requirement's name, normalised, and the versions it asks for: 'faiss_cpu[x]>=1 ; marker' is ('faiss-cpu', '>=1')."
    name, versions = re.match(r"\s*([\w.-]+)\s*(?:\[[^]]*\])?\s*([^;#]*)", text).groups()
    return re.sub(r"[-_.]+", "-", name).lower(), versions.strip()


def tracked(root: Path = ROOT) -> list[Path]:
    "Every file git holds or would take: tracked, or new and not ignored."
    if not shutil.which("git") or not (root / ".git").exists(): pytest.skip("not a git clone")
    done = subprocess.run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=root, capture_output=True, check=True)
    return [p for name in done.stdout.decode().split("\0") if name and (p := root / name).is_file()]


# ---------------------------------------------------------------- rules: each from content to a list of faults


def settings_faults(ini: str, toml: dict) -> list[str]:
    "nbdev's classic keys in settings.ini [DEFAULT] that differ from pyproject.toml, which nbdev reads."
    cp, nbdev, about = configparser.ConfigParser(), toml["tool"]["nbdev"], toml["project"]
    cp.read_string(ini)
    expected = {k: nbdev[k] for k in ("lib_name", "lib_path", "nbs_path", "branch")}
    expected |= dict(version=about["version"], min_python=about["requires-python"].removeprefix(">="), license=about["license"].lower())
    keys = dict(cp["DEFAULT"])
    faults = [f"{k} = {keys.get(k)}, pyproject says {v}" for k, v in expected.items() if keys.get(k) != v]
    return faults + [f"{k}: pyproject does not know it" for k in keys if k not in expected]


def pin_faults(constraints: str, toml: dict) -> list[str]:
    "Dependencies that constraints.txt does not pin with ==, or pins to a version that pyproject refuses."
    from packaging.specifiers import SpecifierSet

    lines = [requirement(x) for x in constraints.splitlines() if x.strip() and not x.strip().startswith(("#", "-"))]
    pins = {name: versions.removeprefix("==") for name, versions in lines if re.fullmatch(r"==[\w.+!]+", versions)}
    faults = [f"{name}{versions}: not pinned with ==" for name, versions in lines if name not in pins]
    about = toml["project"]
    for name, versions in map(requirement, [*about["dependencies"], *(d for more in about["optional-dependencies"].values() for d in more)]):
        if name not in pins: faults.append(f"{name}: no pin")
        elif not SpecifierSet(versions).contains(pins[name], prereleases=True): faults.append(f"{name}=={pins[name]}: pyproject asks for {versions}")
    return faults


# built from parts, so that this file does not hold what it looks for
_FOLDERS = [r"work", r"root", r"home/\w[\w.-]*", r"Users/\w[\w.-]*", r"tmp/(?:s|bash_jobs[^/]*|tmp\w+|pytest-[^/]+|ipykernel_\d+)"]
MACHINE_PATH = re.compile(r"(?<![\w.~/$})-])/(?:" + "|".join(_FOLDERS) + r")(?=[/\s\"'`,;:)\]}<\\]|$)|\b[A-Z]:\\{1,2}Users\\")


def machine_paths(text: str) -> list[str]:
    "Absolute paths of somebody's machine; notebooks are JSON, so an escaped line break counts as one."
    return [m[0] for m in MACHINE_PATH.finditer(re.sub(r"\\n|\\t|file://", "\n", text))]


def text_of(path: Path) -> str | None:
    "A text file's content; None for pictures and weights."
    data = path.read_bytes()
    if b"\0" in data: return None
    try: return data.decode()
    except UnicodeDecodeError: return None


def key_values(env: str) -> list[str]:
    "Names of keys, tokens and passwords that are given a value."
    lines = [re.match(r"\s*#?\s*(?:export\s+)?(\w*(?:KEY|TOKEN|SECRET|PASSWORD))\s*=\s*(.*)", x, re.I) for x in env.splitlines()]
    return [m[1] for m in lines if m and m[2].split("#")[0].strip().strip("\"'")]


_SECRET = re.compile(r"\b(?:" + "|".join(["hf" + r"_[A-Za-z]{30,}", "sk" + r"-[\w-]{32,}", "gh" + r"[pous]_\w{36,}", "AKIA" + r"[A-Z0-9]{16}"]) + r")\b")


def make_targets(makefile: str) -> set[str]:
    "Targets with a rule."
    heads = re.findall(r"^([\w.%/ -]+?)\s*::?(?!=)", makefile, re.M)
    return {t for h in heads for t in h.split() if not t.startswith(".")}


def make_calls(readme: str) -> set[str]:
    "Targets that README's code, in blocks or in a line, gives to make."
    code = re.findall(r"^(?:```|~~~)[^\n]*\n(.*?)^(?:```|~~~)", readme, re.M | re.S)
    inline = re.findall(r"`([^`\n]+)`", re.sub(r"^(```|~~~).*?^\1", "", readme, flags=re.M | re.S))
    found = set()
    for line in [x for block in code for x in block.replace("\\\n", " ").splitlines()] + inline:
        for call in re.split(r"&&|\|\||[;|&]", line.split(" #")[0]):
            parts = call.strip().removeprefix("$ ").split()
            while parts and re.fullmatch(r"\w+=\S*", parts[0]): parts = parts[1:]  # OMP_NUM_THREADS=1 make …
            if parts[:1] == ["make"]: found |= {p for p in parts[1:] if not p.startswith("-") and "=" not in p and not p.startswith(("<", "…", ">"))}
    return found


# ---------------------------------------------------------------- the repository


def test_settings_agree_with_pyproject():
    assert settings_faults((ROOT / "settings.ini").read_text(), project()) == []


def test_the_package_says_its_version():
    found = re.search(r'__version__ = "([^"]+)"', (ROOT / "rlgen" / "__init__.py").read_text())
    assert found and found[1] == project()["project"]["version"], "nbdev keeps the version in rlgen/__init__.py: set it there too"


def test_every_dependency_is_pinned():
    path = ROOT / "constraints.txt"
    if not path.is_file(): pytest.skip("no constraints.txt yet")
    assert pin_faults(path.read_text(), project()) == []


def test_no_machine_paths():
    texts = {p: t for p in tracked() if (t := text_of(p)) is not None}
    assert {str(p.relative_to(ROOT)): found[:3] for p, t in texts.items() if (found := machine_paths(t))} == {}


def test_no_file_is_big():
    "A run's scores, a line for each prompt, weight and seed, may be twice as large as anything else."
    assert {str(p.relative_to(ROOT)): p.stat().st_size for p in tracked() if p.stat().st_size > BIG * (1 + (p.name == "scores.csv"))} == {}


def test_no_keys():
    assert key_values((ROOT / ".env.example").read_text()) == []
    texts = {p: t for p in tracked() if (t := text_of(p)) is not None}
    assert [str(p.relative_to(ROOT)) for p, t in texts.items() if _SECRET.search(t)] == []
    assert not [p for p in tracked() if p.name == ".env"]


def test_readme_names_targets_that_exist():
    readme, makefile = ROOT / "README.md", ROOT / "Makefile"
    if not makefile.is_file() or not readme.is_file() or not readme.read_text().strip(): pytest.skip("no Makefile or README yet")
    calls = make_calls(readme.read_text())
    assert calls, "README shows no make command"
    assert calls <= make_targets(makefile.read_text())


# ---------------------------------------------------------------- each rule, broken on purpose

TOML = dict(
    project=dict(version="1.2", license="MIT", dependencies=["torch>=2.9,<3", "PyYAML>=6"], **{"requires-python": ">=3.11", "optional-dependencies": dict(cpu=["faiss_cpu>=1.11"], serve=["torch[x]>=2"])}),
    tool=dict(nbdev=dict(lib_name="a", lib_path="a", nbs_path="nbs", branch="main")),
)
INI = "[DEFAULT]\nlib_name = a\nlib_path = a\nnbs_path = nbs\nbranch = main\nversion = 1.2\nmin_python = 3.11\nlicense = mit\n[machine]\nx = 1\n"
PINS = "# pins\ntorch==2.13.0\npyyaml==6.0.3\nfaiss-cpu==1.15.1  # cpu\n"


def test_settings_rule_can_fail():
    assert settings_faults(INI, TOML) == []
    for key in ("lib_name = a", "lib_path = a", "nbs_path = nbs", "version = 1.2", "min_python = 3.11", "license = mit", "branch = main"):
        assert len(settings_faults(INI.replace(key, key + "x"), TOML)) == len(settings_faults(INI.replace(key + "\n", ""), TOML)) == 1
    assert settings_faults(INI.replace("[machine]", "tests_path = t\n[machine]"), TOML) == ["tests_path: pyproject does not know it"]


@pytest.mark.parametrize(("old", "new"), [("torch==2.13.0\n", ""), ("torch==2.13.0", "torch>=2.13"), ("torch==2.13.0", "torch==3.1"), ("pyyaml==6.0.3", "pyyaml==5.4"), ("faiss-cpu==", "faiss-gpu==")])
def test_pin_rule_can_fail(old, new):
    assert pin_faults(PINS, TOML) == []
    assert pin_faults(PINS.replace(old, new), TOML)


@pytest.mark.parametrize("path", ["work/main/x", "root/.cache", "home/anna/x", "Users/anna/x", "tmp/tmpab12/x", "tmp/ipykernel_12/3.py", "tmp/s/build"])
def test_machine_path_rule_can_fail(path):
    for before, after in (("", ""), ('"', '"'), ("see `", "`"), ('["one\\n', '\\n"]'), ("a=", " b"), ("(", ")"), ("file://", ""), ("<td>", "</td>"), ("\\u001b[0m ", "")):
        assert machine_paths(before + "/" + path + after), (before, path)


def test_machine_path_rule_lets_pass():
    fine = "https://x.org/WORK/a/home/anna https://x.org/root ./WORK/a results/WORK/a ~/WORK/a $HOME/WORK/x /tmp/x /usr/bin homework/ROOT/ a/ROOT/b $(HOME)/WORK/ /workshop /rooted".replace("WORK", "wo" + "rk").replace("ROOT", "ro" + "ot")
    assert machine_paths(fine) == []
    assert machine_paths("C:" + "\\" + "Users" + "\\anna")


def test_key_rule_can_fail():
    assert key_values("A_KEY=\nHF_TOKEN=\nB=1\n# MY_TOKEN=\nC_KEY=  # put it here\nD_KEY=\"\"\n") == []
    assert key_values("A_KEY=1\nexport HF_TOKEN=abc\n# MY_TOKEN=x\nDB_PASSWORD='p'\n") == ["A_KEY", "HF_TOKEN", "MY_TOKEN", "DB_PASSWORD"]
    assert _SECRET.search("token = hf" + "_" + "a" * 34) and not _SECRET.search("hf_hub_download sk-learn")


def test_make_rule_can_fail():
    makefile = ".PHONY: a b\nX := 1\nY ?= a:b\nrun: setup\n\techo a: b\ntest test-full: setup\n\t@pytest\n$(V)/x:\n\ttrue\n"
    assert make_targets(makefile) == {"run", "test", "test-full"}
    readme = "Text make soup.\n```sh\nmake setup && make run ALGO=pargs  # make it\nOMP=1 make -j2 test \\\n  lint\n$ make docs\n```\nOr `make test-full`, `make results ALGO=<algo>`, `remake this`.\n"
    assert make_calls(readme) == {"setup", "run", "test", "lint", "docs", "test-full", "results"}


def test_tracked_sees_new_files_and_not_ignored_ones(tmp_path):
    if not shutil.which("git"): pytest.skip("no git")
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    for name, text in ((".gitignore", "b\n"), ("a", "1"), ("b", "2"), ("c", "3")): (tmp_path / name).write_text(text)
    subprocess.run(["git", "add", "a"], cwd=tmp_path, check=True)
    assert {p.name for p in tracked(tmp_path)} == {".gitignore", "a", "c"}
    (tmp_path / "a").write_bytes(b"\x89PNG\0")
    assert text_of(tmp_path / "a") is None and text_of(tmp_path / "c") == "3"
