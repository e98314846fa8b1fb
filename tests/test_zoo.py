"""The shipped models are the ones their recipe made, and can do what they are for."""
import json
from pathlib import Path
from statistics import mean

import pytest

from rlgen.core import path_digest

ROOT = Path(__file__).resolve().parent.parent
ZOO = ROOT / "rlgen" / "zoo"


def quality(folder: str) -> dict:
    "Mean parts of the gold reward on validation posts, greedy and sampled; and how often the first word's fact is the first or the point."
    from rlgen.lm import encode_prompt, load_lm
    from rlgen.sampling import generate, greedy, sampler
    from rlgen.worlds import pargs as world
    lm, posts = load_lm(folder), world.make_posts("valid", 200)
    prompts = [encode_prompt(lm, p.prompt) for p in posts]
    out = {}
    for name, rule in (("greedy", greedy), ("sampled", sampler(list(range(200)), top_k=10))):
        texts = [r.text(lm.tokenizer) for r in generate(lm, prompts, rule, max_new_tokens=32)]
        away = [(p, t.split()[1]) for p, t in zip(posts, texts) if p.point and len(t.split()) > 1]
        out[name] = dict(gold=mean(world.gold_reward(p.prompt, t) for p, t in zip(posts, texts)), unfinished=mean(world.gold_parts(p, t)["unfinished"] for p, t in zip(posts, texts)),
                         first=mean(w == p.facts[0].who for p, w in away), point=mean(w == p.facts[p.point].who for p, w in away))
    return out


def check(found: dict) -> None:
    "The base model writes sentences, leans to the first fact, and its mode is not the answer."
    assert found["greedy"]["unfinished"] == found["sampled"]["unfinished"] == 0
    assert found["greedy"]["first"] > 0.7 and 0.2 < found["sampled"]["point"] < 0.55
    assert found["greedy"]["gold"] < 3.0


def test_hashes():
    noted = json.loads((ZOO / "hashes.json").read_text())
    assert {p.name for p in ZOO.iterdir() if p.is_dir()} == set(noted)
    for name, digest in noted.items(): assert path_digest(ZOO / name) == digest, f"{name}: not the model whose hash is noted"


def test_sizes_and_format():
    for p in ZOO.rglob("*"):
        if p.is_file(): assert p.stat().st_size <= 2 * 2**20 and p.suffix in (".safetensors", ".json"), p


def test_quality(): check(quality("zoo/posts"))


@pytest.mark.slow
def test_recipe_makes_such_a_model(tmp_path):
    import papermill
    papermill.execute_notebook(str(ROOT / "nbs" / "run_zoo.ipynb"), str(tmp_path / "zoo.ipynb"), parameters=dict(out_dir=str(tmp_path)), kernel_name="python3", cwd=str(ROOT), progress_bar=False)
    check(quality(str(tmp_path / "posts")))
