"Real data, as people publish it, through `rlgen run` and its notebook: small models without knowledge, so numbers mean nothing; that every row of a table is there does."
import csv
import json
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from helpers import ROOT, environment
from tiny_models import make_model

from rlgen.core import read_jsonl

pytestmark = [pytest.mark.slices, pytest.mark.slow]
TASKS = dict(gsm8k=("train.jsonl", "test.jsonl"), medqa=("questions.jsonl",), snli=("pairs.jsonl",))


def typed(folder: Path, algo: str, **params) -> tuple[Path, dict]:
    "The command's run folder, and what its metrics.json holds; the notebook has to have come through."
    words = [w for k, v in params.items() for w in ("-p", k, v if isinstance(v, str) else json.dumps(v))]
    env = os.environ | environment(folder, HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1")
    ended = subprocess.run([sys.executable, "-m", "rlgen", "run", algo, *words], cwd=ROOT, env=env, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert ended.returncode == 0, ended.stderr[-2000:]
    (place,) = (folder / "results" / "runs" / algo).iterdir()
    cells = json.loads((place / "run.ipynb").read_text())["cells"]
    assert not [o for c in cells for o in c.get("outputs", []) if o["output_type"] == "error"] and list(place.glob("*.png"))
    found = json.loads((place / "metrics.json").read_text())
    assert all(r["method"] in ended.stdout for r in found["table"])
    return place, found


def rows_of(found: dict) -> list[str]: return list(dict.fromkeys(r["method"].split(": ")[-1] for r in found["table"]))


def test_novels(slices, tmp_path):
    "Passages of authors, cut by the command that README names; BM25 looks among an author's other passages."
    rows = read_jsonl(slices / "novels" / "passages_by_author.jsonl")
    some = {a for a, _ in Counter(r["author"] for r in rows).most_common(12)}
    (tmp_path / "books.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows if r["author"] in some))
    from rlgen import cli
    assert cli.main(["preprocess", "rest_pg", "--input", str(tmp_path / "books.jsonl"), "--output", str(tmp_path / "data"), "--layout", "passages", "--fields", "user_id=author", "--prompt-words", "12"]) == 0
    model = make_model("gpt2", tmp_path / "gpt2", vocab_texts=[r["text"] for r in rows[:200]])
    parts = {f"{k}_path": str(tmp_path / "data" / f"{name}.jsonl") for k, name in dict(train="train", val="valid", test="test").items()}
    methods = ["base", "no-profile", "retrieval-only", "SFT"]
    _, found = typed(tmp_path, "rest_pg", model_name=str(model), methods=methods, num_train=8, num_val=3, num_test=3, max_steps=3, num_epochs=0.0, warmup_steps=1, batch_size=4, max_input_length=200, max_output_length=40, **parts)
    assert rows_of(found) == methods and {r["metric"] for r in found["table"]} >= {"rouge1", "rougeL"}


def test_convai2(slices, tmp_path):
    "Dialogues with personas, and a shelf of fairy tales."
    texts = [r["question"] for r in read_jsonl(slices / "convai2" / "train.jsonl")[:300]]
    (tmp_path / "stories.jsonl").write_text("".join(json.dumps(r) + "\n" for r in read_jsonl(slices / "fairytales" / "story.jsonl")[:200]))
    methods = ["constant-reply", "constant-published", "stage1", "bm25", "joint-grpo"]
    _, found = typed(tmp_path, "lapdog", train_data=str(slices / "convai2" / "train.jsonl"), eval_data=str(slices / "convai2" / "valid.jsonl"), passages=str(tmp_path / "stories.jsonl"), methods=methods,
                     reader_model_type=str(make_model("t5", tmp_path / "t5", vocab_texts=texts)), retriever_model=str(make_model("bert", tmp_path / "bert", head="encoder", vocab_texts=texts)), num_train=24, num_val=4, num_test=6,
                     text_maxlength=512, generation_max_length=8, sft_steps=2, sft_warmup_steps=1, sft_batch=4, total_steps=2, retriever_delay=1, warmup_steps=1, per_gpu_batch_size=2, eval_freq=1)
    assert rows_of(found) == methods and next(r["mean"] for r in found["table"] if (r["method"], r["metric"]) == ("constant-published", "f1")) > 0


@pytest.mark.parametrize("name", TASKS)
def test_questions(slices, tmp_path, name):
    "Numbers, choices and labels, in the records' own columns; without a teacher the rows that learn from people's samples."
    data, files = tmp_path / "task", TASKS[name]
    data.mkdir()
    lines = {f: (slices / name / f).read_text().splitlines() for f in files}
    for part, some in dict(train=lines[files[0]][:60], test=lines[files[-1]][-20:]).items(): (data / f"{part}.jsonl").write_text("\n".join(some) + "\n")
    model = make_model("llama", tmp_path / "llama", vocab_texts=lines[files[0]][:100], max_position_embeddings=1024)
    methods = ["base", "few-shot", "gold-same", "gold-all"]
    _, found = typed(tmp_path, "synth_rl", dataset_path=str(data), task_name=name, base_model_path=str(model), methods=methods, num_passages=0, num_selected=8, num_val=4, num_test=8, steps=2, prompts_per_step=2, num_generations=2,
                     num_rollouts=2, max_completion_length=12, eval_freq=1, num_demos=2)
    assert rows_of(found) == methods and {r["n"] for r in found["table"]} == {8}


@pytest.mark.parametrize("name, classes", [("banking77", 4), ("movie_sentences", 2)])
def test_labelled_texts(slices, tmp_path, name, classes):
    "Of the 77 intentions the four most frequent, which leaves classes large enough for a round."
    data, kept = tmp_path / "data", None
    data.mkdir()
    for part in ("train", "test"):
        with open(slices / name / f"{part}.csv", newline="", encoding="utf-8") as f: rows = list(csv.DictReader(f))
        kept = kept or [c for c, _ in Counter(r["label"] for r in rows).most_common(classes)]
        rows = random.Random(0).sample([r for r in rows if r["label"] in kept], 120)
        if part == "train": texts = [r["text"] for r in rows]
        with open(data / f"{part}.csv", "w", newline="", encoding="utf-8") as f:
            out = csv.DictWriter(f, list(rows[0]))
            out.writeheader()
            out.writerows(rows)
    methods = ["untrained", "golden-sft", "per-sample", "golden-direct", "oracle"]
    place, found = typed(tmp_path, "genalign", dataset_path=str(data), test_split="test", base_model=str(make_model("llama", tmp_path / "llama", vocab_texts=texts)), methods=methods, fractions=dict(pool=0.5, dev=0.5),
                         num_pool=60, num_dev=40, num_test=40, golden_sizes=[20, 40], oracle_size=40, max_new_tokens=8, samples_per_iteration=8, max_iterations=2, num_synthetic=12, synthetic_size=8, eval_sets=1, sft_steps=2)
    assert rows_of(found) == ["untrained", "golden-sft", "per-sample", "golden-direct-20", "golden-direct-40", "oracle"]
    assert len(list(csv.DictReader(open(place / "synthetic.csv", newline="", encoding="utf-8")))) == 8
