"rlgen.retrieval: BM25 against its formula, vectors against one text at a time, FAISS against brute force, and an index folder that is killed, damaged and mistaken."
import json
import math
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter

import bm25s
import faiss
import numpy as np
import pytest
import torch

from helpers import line_of
from rlgen import retrieval
from rlgen.lm import save_lm
from rlgen.metrics import words
from rlgen.retrieval import BM25, Encoder, Index, assemble, build_index, load_encoder, load_index, rank_items, rank_profiles

TEXTS = [
    "the cat sat on the mat .", "a dog ran over the hill and the cat ran after it .", "my neighbour lost her keys in the garden last night .", "two apples",
    "what did you eat today ? i had bread , soup and two apples .", "she writes letters to her friend , who never answers .", "the cat sat on the mat .", "no",
]  # fmt: skip
QUERIES = ["the cat ran", "apples and soup", "who lost the keys ?"]

pytestmark = pytest.mark.usefixtures("double")


def babble(n: int, seed: int, vocabulary: int = 30) -> list[str]:
    "n texts of up to 12 words, some without any, some twice."
    r = random.Random(seed)
    return [" ".join(f"w{int(r.triangular(0, vocabulary, 0))}" for _ in range(r.randint(0, 12))) for _ in range(n)]


def formula(query: str, texts: list[str]) -> list[float]:
    "BM25 as it is written in books (Lucene's variant)."
    lists = [words(t) for t in texts]
    mean, scores = sum(map(len, lists)) / len(lists), []
    for ws in lists:
        count, total = Counter(ws), 0.0
        for w in words(query):
            n = sum(w in other for other in lists)
            if count[w]: total += math.log(1 + (len(lists) - n + 0.5) / (n + 0.5)) * count[w] / (count[w] + 1.5 * (1 - 0.75 + 0.75 * len(ws) / mean))
        scores.append(total)
    return scores


@pytest.fixture(scope="module")
def encoders(folders):
    "Each architecture's encoder once."
    made = {}

    def get(arch="bert", **options) -> Encoder:
        key = (arch, *sorted(options.items()))
        if key not in made: made[key] = load_encoder(str(folders(arch, "encoder" if arch not in ("gpt2", "llama") else "lm")), **options)
        return made[key]

    return get


class Counting(Encoder):
    "An encoder that notes what it is asked to embed."

    def embed(self, texts, *args):
        self.__dict__.setdefault("read", []).extend(texts)
        return super().embed(texts, *args)


def counting(encoder: Encoder) -> Counting: return Counting(encoder.model, encoder.tokenizer, pooling=encoder.pooling)


def brute(encoder: Encoder, queries, texts, k: int) -> list[list[int]]:
    "The nearest texts by all inner products."
    return np.argsort(-(encoder.embed(queries) @ encoder.embed(texts).T), axis=1, kind="stable")[:, :k].tolist()


# ---------------------------------------------------------------- words


@pytest.mark.parametrize("seed", range(4))
def test_bm25_is_the_formula(seed):
    "Scores of every text, repeated and unknown words in the query included; and the library's own search gives the same ones."
    texts, library = babble(40, seed), bm25s.BM25()
    library.index([words(t) for t in texts], show_progress=False)
    for query in [*babble(6, seed + 100), "w0 w0 w1 unheard", "unheard"]:
        ids, scores = (x[0] for x in BM25(texts).search([query], 40))
        wanted = formula(query, texts)
        assert scores == pytest.approx([wanted[i] for i in ids], abs=1e-5) and sorted(ids) == list(range(40))
        if words(query): assert library.retrieve([words(query)], k=40, show_progress=False).scores[0] == pytest.approx(scores, abs=1e-6)


def test_bm25_on_a_toy_by_hand():
    "Three texts of two words: idf ln(1 + 2.5/1.5) for a word in one of them, ln(1 + 1.5/2.5) in two; K = 1.5."
    ids, scores = BM25(["red car", "red boat", "old house"]).search(["red boat"], 3)
    assert ids == [[1, 0, 2]] and scores[0] == pytest.approx([(math.log(1 + 2.5 / 1.5) + math.log(1.6)) / 2.5, math.log(1.6) / 2.5, 0], abs=1e-6)


def test_best_is_a_stable_sort():
    r = np.random.default_rng(0)
    for _ in range(300):
        scores = r.integers(0, 4, size=r.integers(1, 12)).astype(np.float32)
        for k in range(1, 14): assert retrieval._best(scores, k) == np.argsort(-scores, kind="stable")[:k].tolist()


def test_bm25_ties_and_few_texts():
    search = BM25(TEXTS).search
    assert search(["cat mat"], 2)[0] == [[0, 6]], "equal texts in their order"
    assert search(["", "?!", "xylophone"], 3) == ([[0, 1, 2]] * 3, [[0.0] * 3] * 3), "no known word: the first ones"
    assert [len(x[0]) for x in search(["cat"], 99)] == [8, 8] and search([], 3) == ([], [])
    assert BM25(["", "!"]).search(["a"], 5)[0] == [[0, 1]], "texts without words"


def test_bm25_reads_every_alphabet():
    texts = ["寿司が好きだ", "Ο γιατρός", "नमस्ते दुनिया", "ÉTÉ", "привет, мир", "half \ud83d a pair"]
    assert [i[0] for i in BM25(texts).search(["司", "ΓΙΑΤΡΌΣ", "दुनिया", "été", "МИР", "pair"], 1)[0]] == list(range(6))


def test_bm25_streams():
    "An iterator is enough, and it is read once."
    assert BM25(iter(TEXTS)).search(QUERIES, 8) == BM25(TEXTS).search(QUERIES, 8)


def test_bm25_refuses():
    assert "no texts" in line_of(BM25, []) and "one string" in line_of(BM25, "abc") and line_of(BM25, ["a", None]).startswith("texts[1] is NoneType")
    for k in (0, -1, 1.5, True, None): assert "at least 1" in line_of(BM25(["a"]).search, ["a"], k)
    assert "one string" in line_of(BM25(["a"]).search, "a", 1)


def test_bm25_on_disk(tmp_path):
    BM25(TEXTS).save(tmp_path / "a")
    assert BM25.load(tmp_path / "a", iter(TEXTS)).search(QUERIES, 8) == BM25(TEXTS).search(QUERIES, 8)
    assert "other texts" in line_of(BM25.load, tmp_path / "a", TEXTS[::-1]) and "no whole word index" in line_of(BM25.load, tmp_path / "b")
    again = {p.name: p.read_bytes() for p in (tmp_path / "a").iterdir()}
    BM25(TEXTS).save(tmp_path / "b")
    assert {p.name: p.read_bytes() for p in (tmp_path / "b").iterdir()} == again, "the same bytes each time"


def test_bm25_half_written(tmp_path, monkeypatch):
    "Killed while an older index was being replaced; a file lost; a file cut."
    BM25(TEXTS[:3]).save(tmp_path / "a")
    with monkeypatch.context() as m:
        m.setattr(bm25s.BM25, "save", lambda *a, **kw: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt): BM25(TEXTS).save(tmp_path / "a")
    assert "no whole word index" in line_of(BM25.load, tmp_path / "a")
    BM25(TEXTS).save(tmp_path / "b")
    for p in sorted((tmp_path / "b").iterdir()):
        for damage in ("lost", "cut"):
            shutil.copytree(tmp_path / "b", tmp_path / f"{p.name}-{damage}")
            bad = tmp_path / f"{p.name}-{damage}" / p.name
            if damage == "lost": bad.unlink()
            else: bad.write_bytes(p.read_bytes()[: p.stat().st_size // 2])
            assert "no whole word index" in line_of(BM25.load, bad.parent)


# ---------------------------------------------------------------- vectors


@pytest.mark.parametrize("arch", ("bert", "roberta", "deberta-v2", "t5", "gpt2", "llama"))
@pytest.mark.parametrize("pooling", ("mean", "cls"))
def test_company_changes_no_vector(arch, pooling, encoders):
    "Batches of any size and order give what each text gives alone, computed straight from the model; equal texts have equal vectors."
    enc, texts = encoders(arch, pooling=pooling), [*TEXTS, "", "寿司 ok", "half \ud83d a pair"]
    whole, order = enc.embed(texts), [3, 0, 9, 5, 8, 2, 7, 1, 6, 4, 10]
    assert whole.dtype == np.float32 and whole.shape == (11, enc.width) and (whole[0] == whole[6]).all() and np.isfinite(whole).all()
    for size in (1, 3): np.testing.assert_allclose(enc.embed([texts[i] for i in order], batch_size=size), whole[order], atol=1e-6)
    for text, vector in zip(texts[:8], whole):
        net = enc.model.get_encoder() if arch == "t5" else enc.model
        with torch.no_grad(): states = net(input_ids=torch.tensor([enc.tokenizer(text).input_ids])).last_hidden_state[0]
        np.testing.assert_allclose((states[0] if pooling == "cls" else states.mean(0)).numpy(), vector, atol=1e-6)
    assert enc.embed([]).shape == (0, enc.width) and all(enc.ids(["", "\n"])) and np.abs(enc.embed([""])).sum() > 0


def test_normalize_and_limit(encoders):
    assert np.linalg.norm(encoders(normalize=True).embed(TEXTS), axis=1) == pytest.approx(np.ones(8), abs=1e-6)
    short, long = encoders(max_length=6), encoders(max_length=10_000)
    assert max(map(len, short.ids(TEXTS))) == 6 == short.limit and long.limit == 256, "the model's context"
    assert np.isfinite(long.embed(["cat " * 999])).all() and np.isfinite(encoders("roberta", max_length=10_000).embed(["cat " * 999])).all()
    assert (short.embed(["the cat sat on one"]) == short.embed(["the cat sat on two"])).all()


def test_embedding_while_training(encoders):
    "No dropout, no gradient, and the mode is given back; `vectors` has gradients."
    enc = encoders()
    still = enc.embed(TEXTS)
    enc.model.train()
    try: assert (enc.embed(TEXTS) == still).all() and enc.model.training
    finally: enc.model.eval()
    enc.vectors(enc.ids(TEXTS)).sum().backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in enc.model.parameters())
    enc.model.zero_grad()


def test_fingerprint_knows_what_counts(folders, encoders):
    "The same after use and after another loading; another one for other weights and each decision."
    path, first = str(folders("bert", "encoder")), encoders().fingerprint()
    encoders().embed(TEXTS)
    assert encoders().fingerprint() == first == load_encoder(path).fingerprint()
    others = [load_encoder(path, **o).fingerprint() for o in (dict(pooling="cls"), dict(normalize=True), dict(max_length=9))]
    trained = load_encoder(path)
    with torch.no_grad(): next(trained.model.parameters())[5, 5] += 1e-6
    assert len({first, *others, trained.fingerprint(), encoders("roberta").fingerprint()}) == 6


def test_load_encoder_refuses(folders, tmp_path):
    from safetensors.torch import load_file, save_file

    assert "valid: cls, mean" in line_of(load_encoder, str(folders("bert", "encoder")), pooling="max") and "no such" in line_of(load_encoder, str(tmp_path / "none"))
    shutil.copytree(folders("bert", "encoder"), tmp_path / "holed")
    weights = load_file(tmp_path / "holed/model.safetensors")
    without = {k: v for k, v in weights.items() if not k.startswith("pooler")}
    assert len(without) < len(weights)
    save_file(without, tmp_path / "holed/model.safetensors", metadata={"format": "pt"})
    assert load_encoder(str(tmp_path / "holed")).fingerprint() == load_encoder(str(folders("bert", "encoder"))).fingerprint(), "a pooler isn't missed"
    save_file({k: v for k, v in without.items() if "layer.1" not in k}, tmp_path / "holed/model.safetensors", metadata={"format": "pt"})
    assert "no weights for" in line_of(load_encoder, str(tmp_path / "holed"))


def test_reprs_are_short(encoders):
    assert len(repr(encoders())) < 60 and len(repr(build_index(TEXTS, encoders()))) < 60


# ---------------------------------------------------------------- search among vectors


def test_flat_is_brute_force():
    r = np.random.default_rng(0)
    x, q = r.normal(size=(1000, 12)).astype(np.float32), r.normal(size=(30, 12)).astype(np.float32)
    ids, scores = Index(assemble([x[:300], x[300:301], x[301:]])).search(q, 20)
    exact = q.astype(float) @ x.T.astype(float)
    assert ids == np.argsort(-exact, 1)[:, :20].tolist()
    np.testing.assert_allclose(scores, -np.sort(-exact, 1)[:, :20], atol=1e-5)


@pytest.mark.parametrize("kind", ("ivf", "hnsw"))
def test_approximate_kinds(kind):
    "What is found has its true score; with full breadth everything is found; vectors in groups are found at once; two builds are one."
    r = np.random.default_rng(1)
    x = (r.normal(size=(40, 1, 16)) * 4 + r.normal(size=(40, 50, 16))).reshape(-1, 16).astype(np.float32)
    ids, scores = Index(assemble([x[:700], x[700:]], kind)).search(x[::40], 10)
    exact = np.argsort(-(x[::40] @ x.T), 1)[:, :10]
    assert np.mean([len(set(a) & set(b)) / 10 for a, b in zip(ids, exact.tolist())]) > 0.9
    for q, row, at in zip(x[::40], ids, scores): assert at == pytest.approx((x[row] @ q).tolist(), rel=1e-4) and at == sorted(at, reverse=True)
    wide = Index(assemble([x], kind, breadth=2000)).search(x[:20], 5)[0]
    assert np.mean([len(set(a) & set(b)) / 5 for a, b in zip(wide, np.argsort(-(x[:20] @ x.T), 1)[:, :5].tolist())]) > 0.98
    assert Index(assemble([x[:700], x[700:]], kind)).search(x[::40], 10) == (ids, scores)


def test_what_ivf_does_not_reach_is_left_out():
    "One list of several holds fewer vectors than are asked for."
    x = np.random.default_rng(2).normal(size=(400, 8)).astype(np.float32)
    found = Index(assemble([x], "ivf", breadth=1)).search(x[:9], 400)
    assert all(0 < len(i) == len(s) < 400 and min(i) >= 0 for i, s in zip(*found))


@pytest.mark.parametrize("kind", retrieval.KINDS)
@pytest.mark.parametrize("n", (1, 2, 60))
def test_tiny_indexes(kind, n):
    "k larger than the corpus, and fewer vectors than centres would like: fewer ids, never −1."
    x = np.random.default_rng(n).normal(size=(n, 4)).astype(np.float32)
    ids, scores = Index(assemble([x], kind)).search(x[:1], 99)
    assert 1 <= len(ids[0]) == len(scores[0]) == len(set(ids[0])) <= n and min(ids[0]) >= 0
    if kind == "flat": assert len(ids[0]) == n


def test_index_takes_texts_and_vectors(encoders):
    enc = encoders()
    index = build_index(TEXTS, enc)
    wanted = index.search(QUERIES, 8)
    assert wanted[0] == brute(enc, QUERIES, TEXTS, 8) and len(index) == 8
    for q in (enc.embed(QUERIES), torch.tensor(enc.embed(QUERIES), requires_grad=True), enc.embed(QUERIES).astype(float)): assert index.search(q, 8)[0] == wanted[0]
    assert index.search([], 3) == ([], []) and len(index.search([""], 3)[0][0]) == 3
    near = index.search(["the cat sat on the mat ."], 8)[0][0]
    assert near.index(0) + 1 == near.index(6), "equal texts are neighbours, in their order"


def test_index_refuses(encoders):
    index = build_index(TEXTS, encoders())
    assert "expected (queries, 32)" in line_of(index.search, np.zeros((1, 5)), 3) and "expected (queries, 32)" in line_of(index.search, np.zeros(32), 3)
    assert "NaN" in line_of(index.search, np.full((1, 32), np.nan), 3) and "one string" in line_of(index.search, "cat", 3)
    for k in (0, -1, True, "3"): assert "at least 1" in line_of(index.search, ["cat"], k)
    assert "has no encoder" in line_of(Index(index.faiss).search, ["cat"], 3)


def test_gpu_only_where_there_is_one(monkeypatch):
    "FAISS built for GPUs moves flat and ivf there if a card is found and the settings' device is one; never hnsw."
    moved = []
    def to_gpu(resources, at, index): moved.append(at); return index  # noqa: E702
    monkeypatch.setattr(faiss, "StandardGpuResources", object, raising=False)
    monkeypatch.setattr(faiss, "index_cpu_to_gpu", to_gpu, raising=False)
    x = [np.eye(4, dtype=np.float32)]
    for cards, device, wanted in ((0, "cuda:1", []), (1, "cpu", []), (1, "cuda:1", [1, 1])):
        monkeypatch.setattr(faiss, "get_num_gpus", lambda cards=cards: cards)
        monkeypatch.setattr(retrieval, "compute_device", lambda device=device: torch.device(device))
        moved.clear()
        for kind in retrieval.KINDS: assert retrieval._structure(None, x, kind, 0).ntotal == 4
        assert moved == wanted


# ---------------------------------------------------------------- an index on disk


@pytest.mark.parametrize("kind", retrieval.KINDS)
def test_chunks_and_disk_change_nothing(kind, encoders, tmp_path):
    texts = babble(70, 3)
    wanted = build_index(texts, encoders(), kind).search(QUERIES, 9)[0]
    for chunk in (1000, 33): assert build_index(iter(texts), encoders(), kind, tmp_path / str(chunk), chunk=chunk).search(QUERIES, 9)[0] == wanted
    opened = load_index(tmp_path / "33", encoders(), iter(texts))
    assert opened.search(QUERIES, 9)[0] == wanted == load_index(tmp_path / "33").search(encoders().embed(QUERIES), 9)[0]
    assert len(list((tmp_path / "33").glob("part-*"))) == 3 and len(list((tmp_path / "33").glob("*.faiss"))) == (kind != "flat")


def test_only_what_changed_is_embedded(encoders, tmp_path):
    "The same, a changed chunk, more at the end, another kind, another breadth: and nothing old stays behind, nor is anything foreign touched."
    texts = [f"text {i} of the cat" for i in range(25)]
    foreign = [tmp_path / n for n in ("part-of-mine.npy", "my.faiss", "part-1.npy")]
    for p in foreign: p.write_text("mine")

    def embedded(texts, *args, **more):
        enc = counting(encoders())
        index = build_index(texts, enc, *args, folder=tmp_path, chunk=10, **more)
        found = list(enc.__dict__.get("read", []))
        assert index.search(QUERIES, 30) == load_index(tmp_path, encoders(), texts).search(QUERIES, 30)
        return found

    assert embedded(texts) == texts and embedded(texts) == []
    texts[13] = "the hill"
    assert embedded(texts) == texts[10:20] and embedded([*texts, "one more"]) == [*texts[20:], "one more"]
    assert embedded(texts, "hnsw") == texts[20:] and embedded(texts, "ivf") == [] and embedded(texts, "ivf", breadth=3) == [] and embedded(texts[::-1][5:][::-1]) == []
    assert len(list(tmp_path.glob("part-*"))) == 2 + 2 and len(list(tmp_path.glob("*.faiss"))) == 1 and all(p.read_text() == "mine" for p in foreign)


def test_interrupted_build_goes_on(encoders, tmp_path):
    texts, enc = [f"text {i} of the cat" for i in range(50)], counting(encoders())

    def until(n):
        yield from texts[:n]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt): build_index(until(37), enc, folder=tmp_path, chunk=10)
    assert enc.read == texts[:30] and "no finished index" in line_of(load_index, tmp_path, enc)
    leftover = tmp_path / f".{next(tmp_path.glob('part-*')).name}.ab12cd"
    leftover.write_bytes(b"half")
    build_index(texts, enc, folder=tmp_path, chunk=10)
    assert enc.read == texts and not leftover.exists()
    with pytest.raises(KeyboardInterrupt): build_index(until(20), enc, "ivf", tmp_path, chunk=7)
    assert load_index(tmp_path, encoders(), texts).search(QUERIES, 5)[0] == brute(encoders(), QUERIES, texts, 5), "the old index until the new one is whole"


def test_two_builders_take_turns(encoders, tmp_path):
    "Whoever comes second finds everything embedded."
    texts, enc = [f"text {i} of the cat" for i in range(60)], counting(encoders())
    work = [threading.Thread(target=build_index, args=(texts, enc), kwargs=dict(folder=tmp_path, chunk=6)) for _ in range(2)]
    for w in work: w.start()
    for w in work: w.join()
    assert enc.read == texts


_KILLED = """
import sys, time
from rlgen.retrieval import *
class Slow(Encoder):
    def embed(self, texts, *args):
        time.sleep(0.2)
        return super().embed(texts, *args)
e = load_encoder(sys.argv[1])
build_index((f"text {i} of the cat" for i in range(400)), Slow(e.model, e.tokenizer), folder=sys.argv[2], chunk=8)
"""


def test_killed_build_goes_on(folders, encoders, tmp_path):
    "kill -9 in its middle; the next call embeds the rest only, and the result is the undisturbed one."
    where = tmp_path / "index"
    run = subprocess.Popen([sys.executable, "-c", _KILLED, str(folders("bert", "encoder")), str(where)])
    start = time.time()
    while len(list(where.glob("part-*"))) < 3 and run.poll() is None and time.time() < start + 120: time.sleep(0.05)
    run.send_signal(signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL and not (where / "index.json").exists()
    done, enc = len(list(where.glob("part-*"))), counting(encoders())
    texts = [f"text {i} of the cat" for i in range(400)]
    assert build_index(texts, enc, folder=where, chunk=8).search(QUERIES, 20)[0] == brute(encoders(), QUERIES, texts, 20)
    assert 3 <= done < 50 and len(enc.read) - len(QUERIES) == 400 - 8 * done


def test_another_encoder_or_other_texts(encoders, tmp_path):
    build_index(TEXTS, encoders(), folder=tmp_path, chunk=3)
    for other in (encoders(pooling="cls"), encoders(normalize=True), encoders("roberta")): assert "made by another encoder" in line_of(load_index, tmp_path, other)
    for texts in (TEXTS[::-1], TEXTS[:-1], [*TEXTS, "a"], []): assert "made of other texts" in line_of(load_index, tmp_path, encoders(), texts)
    other = counting(encoders(pooling="cls"))
    build_index(TEXTS, other, folder=tmp_path, chunk=3)
    assert other.read == TEXTS and len(list(tmp_path.glob("part-*"))) == 3 and load_index(tmp_path, other)


@pytest.mark.parametrize("damage", ("part cut", "part empty", "part lost", "part of another width", "json cut", "json of another kind", "structure cut"))
def test_damaged_folder(damage, encoders, tmp_path):
    "One line, or mended without a word where all is there to mend it; building again always mends."
    build_index(TEXTS, encoders(), "ivf", tmp_path, chunk=3)
    what = next(tmp_path.glob({"part": "part-*", "json": "index.json", "stru": "*.faiss"}[damage[:4]]))
    if damage == "part lost": what.unlink()
    elif damage == "part of another width": np.save(what, np.zeros((3, 5), np.float32))
    elif damage == "json of another kind": what.write_text("[]")
    else: what.write_bytes(b"" if "empty" in damage else what.read_bytes()[:-40])
    if damage == "structure cut": load_index(tmp_path, encoders())
    else: assert ("no finished index" if "json" in damage else "missing or damaged") in line_of(load_index, tmp_path, encoders())
    build_index(TEXTS, encoders(), "ivf", tmp_path, chunk=3)
    assert load_index(tmp_path, encoders(), TEXTS).search(QUERIES, 8) == build_index(TEXTS, encoders(), "ivf").search(QUERIES, 8)


def test_build_refuses(encoders, tmp_path):
    enc = encoders()
    assert "no texts" in line_of(build_index, [], enc) and "no texts" in line_of(build_index, iter([]), enc, folder=tmp_path / "a")
    assert "did you mean 'flat'" in line_of(build_index, TEXTS, enc, "flt") and "one string" in line_of(build_index, "abc", enc) and "texts[2]" in line_of(build_index, ["a", "b", 3], enc)
    assert "at least 1" in line_of(build_index, TEXTS, enc, chunk=0) and "can't write" in line_of(build_index, TEXTS, enc, folder="/proc/none")
    broken = load_encoder(enc.model.name_or_path)
    with torch.no_grad(): next(broken.model.parameters()).fill_(float("nan"))
    assert "NaN" in line_of(build_index, TEXTS, broken, folder=tmp_path / "b") and "no finished index" in line_of(load_index, tmp_path / "b")


def test_no_faiss_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    assert "pip install" in line_of(assemble, [np.eye(2, dtype=np.float32)])


# ---------------------------------------------------------------- profiles


def test_ranking_a_profile(encoders):
    "Each rule is the search that it names, whether profiles come alone or together."
    profiles = [TEXTS, TEXTS[2:5], [], ["", ""], babble(50, 5)]
    queries, enc = [*QUERIES, "cat", "w1 w2"], encoders()
    for how in retrieval.RULES:
        for k in (0, 1, 2, 99):
            ranked = rank_profiles(queries, profiles, how, k, enc)
            assert ranked == [rank_items(q, p, how, k, enc) for q, p in zip(queries, profiles)] and [len(r) for r in ranked] == [min(k or 99, len(p)) for p in profiles]
            assert all(r[: k or 99] == whole[: k or 99] for r, whole in zip(ranked, rank_profiles(queries, profiles, how, 0, enc)))
    for q, p in zip(queries, profiles):
        if not p: continue
        assert rank_items(q, p) == BM25(p).search([q], 99)[0][0] and rank_items(q, p, "first", 2) == [0, 1]
        wanted = formula(q, p)
        assert [wanted[i] for i in rank_items(q, p)] == pytest.approx(sorted(wanted, reverse=True), abs=1e-6)
        scores = enc.embed(p) @ enc.embed([q])[0]
        assert scores[rank_items(q, p, "dense", encoder=enc)] == pytest.approx(sorted(scores, reverse=True), abs=1e-5)
    assert rank_items("cat", ["a dog", "the cat", "a dog"], "dense", encoder=enc) in ([1, 0, 2], [0, 2, 1]), "equal items are level"


def test_profiles_are_embedded_together(encoders):
    enc = counting(encoders())
    rank_profiles(["a", "b"], [TEXTS, TEXTS], "dense", 2, enc)
    assert len(enc.read) == 18 and rank_profiles([], [], "dense", encoder=enc) == []


def test_ranking_refuses(encoders):
    assert "did you mean 'bm25'" in line_of(rank_items, "a", ["b"], "bm52") and "needs an encoder" in line_of(rank_items, "a", ["b"], "dense")
    assert "at least 0" in line_of(rank_items, "a", ["b"], k=-1) and "2 requests and 1 profiles" in line_of(rank_profiles, ["a", "b"], [["c"]])
    assert "one string" in line_of(rank_items, "a", "bcd") and "one string" in line_of(rank_items, "a", "bcd", "dense", encoder=encoders())
    assert "one string" in line_of(rank_items, "a", "bcd", "first"), "letters are no texts"


def test_profiles_are_quick():
    "A thousand profiles of 20 texts by words: a second or two here, 20 allowed."
    profiles, start = [babble(20, i, 300) for i in range(1000)], time.time()
    rank_profiles(["w1 w5 w40"] * 1000, profiles, k=5)
    assert time.time() - start < 20


# ---------------------------------------------------------------- real texts


@pytest.mark.slices
def test_real_questions_find_their_passages(slices):
    rows = [json.loads(line) for line in (slices / "passages/squad_paragraphs.jsonl").read_text().splitlines()]
    asked = [(i, q if isinstance(q, str) else q["question"]) for i, r in enumerate(rows) for q in r["qas"][:2]]
    found = BM25(r["text"] for r in rows).search([q for _, q in asked], 5)[0]
    assert np.mean([i in ids for (i, _), ids in zip(asked, found)]) > 0.9


@pytest.mark.parametrize("arch", ("bert", "t5"))
def test_saved_like_any_model(arch, encoders, tmp_path):
    save_lm(encoders(arch), tmp_path)
    assert load_encoder(str(tmp_path)).fingerprint() == encoders(arch).fingerprint()
