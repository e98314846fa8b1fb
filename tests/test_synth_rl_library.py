"rlgen.synth_rl.library: passages read from every kind of file as a stream, a folder that is killed, damaged and mistaken, and keywords that take turns."
import csv
import gzip
import json
import random
import shutil
import subprocess
import sys
import threading
import tracemalloc
from collections import Counter
from dataclasses import FrozenInstanceError

import datasets
import numpy as np
import pytest

from helpers import line_of
from rlgen import retrieval
from rlgen.core import RlgenError, jsonl
from rlgen.metrics import words
from rlgen.record import locked
from rlgen.retrieval import BM25, load_encoder
from rlgen.synth_rl import library as module
from rlgen.synth_rl.library import WAYS, Found, Library, Passage, build_library, find_passages, fuse, load_library, pieces, read_passages, similarity
from rlgen.worlds.synth_rl import MOVES, library as world_library, stated_sizes

ROWS = [
    dict(id="a", title="Vienna", text="It lies on the Danube, near the Alps."), dict(id="b", title="", text="A carp lives in the pond, and eats bread."),
    dict(id="c", title="寿司", text="寿司が好きだ。灯が見える。"), dict(id="d", title="Quote", text='She said "no, thanks", twice.\nThen she left.'),
]  # fmt: skip
PASSAGES = [Passage(**r) for r in ROWS]


def read(source, **kw) -> list[Passage]: return list(read_passages(source, **kw))


def write(path, rows):
    path.write_text(jsonl(rows))
    return path


def babble(n: int, seed: int, vocabulary: int = 40) -> list[dict]:
    "n rows of 5 to 25 words, all different."
    r = random.Random(seed)
    return [dict(id=f"p{i}", title="", text=" ".join(f"w{int(r.triangular(0, vocabulary, 0))}" for _ in range(r.randint(4, 24))) + f" n{i}") for i in range(n)]


class Toy:
    "An encoder of three numbers a text; it notes what it read."
    width = 3

    def __init__(self, name="toy"): self.name, self.read = name, []

    def embed(self, texts, *_):
        self.read += texts
        return np.array([[sum(w.startswith(c) for w in words(t)) for c in ("w1", "w2", "w3")] for t in texts], np.float32)

    def fingerprint(self): return self.name


def files(folder) -> dict[str, bytes]: return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# ---------------------------------------------------------------- pieces


@pytest.mark.parametrize("seed", range(5))
def test_pieces_lose_nothing_and_keep_the_limit(seed):
    r = random.Random(seed)
    text = " ".join(r.choice(["word", "end.", "no,", "why?", "(so.)", "a"]) for _ in range(r.randint(1, 400)))
    for limit in (1, 2, 7, 50, 399, 400, 1000):
        found = pieces(text, limit)
        assert " ".join(found) == text and max(len(p.split()) for p in found) <= limit
        assert len(found) <= 2 * -(-len(text.split()) // limit), "no crumbs"
    assert pieces(text, 0) == [text]


def test_pieces_end_with_sentences():
    ten = "one two three four five. six seven eight nine ten"
    assert pieces(ten, 7) == ["one two three four five.", "six seven eight nine ten"]
    assert pieces(ten.replace(".", ""), 7) == ["one two three four five", "six seven eight nine ten"], "in halves where there is no sentence"
    assert pieces('he said "go." then he went on', 4) == ['he said "go."', "then he went on"]
    assert pieces("a. b c d e f g h i j", 5) == ["a. b c d e", "f g h i j"], "no crumb, even if it is a sentence"
    assert pieces("a b c d e f g h.", 5) == ["a b c d", "e f g h."] and pieces("", 5) == pieces(" \n", 0) == []


def test_pieces_without_blanks():
    assert pieces("跳是一格。躍是三格。", 6) == ["跳是一格。", "躍是三格。"]
    assert list(map(len, pieces("x" * 100, 1))) == [40, 40, 20] and "".join(pieces("ก" * 300, 3)) == "ก" * 300


# ---------------------------------------------------------------- reading


def write_csv(path, rows):
    with open(path, "w", newline="") as f:
        out = csv.DictWriter(f, list(rows[0]))
        out.writeheader()
        out.writerows(rows)


def test_every_kind_of_source_gives_the_same_passages(tmp_path):
    write(tmp_path / "a.jsonl", ROWS)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(jsonl(ROWS).encode()))
    (tmp_path / "bom.json").write_text("\ufeff" + jsonl(ROWS).replace("\n", "\r\n\r\n"))
    write_csv(tmp_path / "c.csv", ROWS)
    table = datasets.Dataset.from_list(ROWS)
    table.to_parquet(tmp_path / "d.parquet")
    table.save_to_disk(tmp_path / "saved")
    datasets.DatasetDict(wiki=table, other=table.select([0])).save_to_disk(tmp_path / "splits")
    (tmp_path / "many" / "deep").mkdir(parents=True)
    write(tmp_path / "many" / "1.jsonl", ROWS[:1])
    write_csv(tmp_path / "many" / "deep" / "2.csv", ROWS[1:])
    (tmp_path / "many" / "README.md").write_text("no passage")
    for name in ("a.jsonl", "b.jsonl.gz", "bom.json", "c.csv", "d.parquet", "saved", "many"): assert read(tmp_path / name) == PASSAGES, name
    assert read(str(tmp_path / "splits"), split="wiki") == PASSAGES and read(tmp_path / "splits", split="other") == PASSAGES[:1]
    for rows in (ROWS, tuple(ROWS), PASSAGES, iter(ROWS), (p for p in PASSAGES)): assert read(rows) == PASSAGES


def test_plain_text(tmp_path):
    p = tmp_path / "notes.txt"
    p.write_bytes("\ufeffA hop is one.\r\nIt is quick.\r\n \r\n\r\n  A leap is three.  \n".encode())
    assert [x.text for x in read(p)] == ["A hop is one.", "It is quick.", "A leap is three."]
    assert [where.split(":")[-1] for where, _ in module._file_rows(p, "paragraph")] == ["1", "5"], "where a paragraph begins"
    assert [x.text for x in read(p, unit="paragraph")] == ["A hop is one. It is quick.", "A leap is three."]
    assert all(x.title == "" and len(x.id) == 16 for x in read(p))


def test_columns_have_many_names(tmp_path):
    rows = [dict(_id=7, contents="A hop is one.", headline="Hop"), dict(docid="8", body="A leap is three.", title=None), dict(passage="A dash is four.", id=None)]
    found = read(rows)
    assert [(p.id, p.title) for p in found[:2]] == [("7", ""), ("8", "")] and len(found[2].id) == 16
    assert read(rows[:1], fields=dict(title="headline"))[0].title == "Hop" and read([dict(a="one two three", text="x y z")], fields=dict(text="a"))[0].text == "one two three"
    assert "no field 'headlin' (did you mean 'headline'?)" in line_of(read, rows[:1], fields=dict(title="headlin"))
    assert "did you mean 'text'" in line_of(read_passages, rows, fields=dict(txt="a"))


def test_a_stream_reads_no_further_than_asked(tmp_path):
    taken = []
    stream = read_passages(taken.append(i) or r for i, r in enumerate(babble(100, 0)))
    assert taken == [] and [next(stream).id for _ in range(3)] == ["p0", "p1", "p2"] and taken == [0, 1, 2]
    (tmp_path / "a.jsonl").write_text(jsonl(babble(3000, 0)) + "{broken")
    assert next(read_passages(tmp_path / "a.jsonl")).id == "p0"
    assert "a.jsonl:3001: not JSON" in line_of(read, tmp_path / "a.jsonl")


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt", "a.parquet"])
def test_reading_holds_few_passages_in_memory(tmp_path, name):
    rows = [dict(id=str(i), text=f"{i} a " + "x" * 2000) for i in range(4000)]  # 8 MB
    if name == "a.parquet": datasets.Dataset.from_list(rows).to_parquet(tmp_path / name, batch_size=200)
    else: (tmp_path / name).write_text(jsonl(rows) if name == "a.jsonl" else "\n".join(r["text"] for r in rows))
    del rows
    next(read_passages(tmp_path / name))  # imports
    tracemalloc.start()
    assert sum(1 for _ in read_passages(tmp_path / name, max_words=0)) == 4000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4e6


def test_what_is_dropped_is_counted():
    counts = Counter()
    rows = [ROWS[0], dict(id="a2", text=" ".join(ROWS[0]["text"].split(" ")).replace(" ", " \n ")), dict(id="h", text="See also"), dict(id="e", text=""), dict(id="n", text=None),
            dict(id="long", text="one two three four. five six seven eight. nine ten eleven twelve."), ROWS[0]]  # fmt: skip
    assert [p.id for p in read(rows, max_words=8, counts=counts)] == ["a", "long#1", "long#2"]
    assert counts == Counter(rows=7, kept=3, words=20, long=1, short=3, repeated=2)
    assert [(p.id, p.text) for p in read(rows, max_words=8, long="cut")][1] == ("long", "one two three four. five six seven eight.")
    assert [p.id for p in read(rows, max_words=0, min_words=1)] == ["a", "h", "long"]


def test_ids_differ_and_made_ones_belong_to_the_content():
    assert "passages[1]: the id 'a' stood there before, with another text" in line_of(read, [ROWS[0], ROWS[1] | dict(id="a")])
    bare = [{k: v for k, v in r.items() if k != "id"} for r in ROWS]
    ids = [p.id for p in read(bare)]
    assert len(set(ids)) == 4 and [p.id for p in read(bare[::-1])] == ids[::-1] and read([bare[0] | dict(title="Wien")])[0].id != ids[0]


def test_half_a_surrogate_pair_becomes_a_mark(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"id": "x", "text": "half \\ud83d a pair"}\n')
    assert read(tmp_path / "a.jsonl")[0].text == "half ? a pair"
    assert build_library(tmp_path / "a.jsonl", tmp_path / "lib")[0].text == "half ? a pair"


@pytest.mark.parametrize("bad, said", [
    (dict(id="x", txt="one two three"), "no field 'text' (did you mean 'txt'?)"), (dict(text=["a"]), "field 'text' is list; expected text"), (dict(text=7), "field 'text' is int"),
    (dict(text="one two three", title={}), "field 'title' is dict"), (dict(text="one two three", id=True), "field 'id' is bool"), ("text", "str instead of an object"),
])  # fmt: skip
def test_a_bad_row_is_named(tmp_path, bad, said):
    (tmp_path / "a.jsonl").write_text(jsonl(ROWS[:1]) + "\n" + jsonl([bad]))
    assert line_of(read, tmp_path / "a.jsonl").startswith(f"{tmp_path / 'a.jsonl'}:3: ") and said in line_of(read, tmp_path / "a.jsonl")


def test_broken_files_are_named(tmp_path):
    packed = gzip.compress(jsonl(babble(500, 0)).encode())
    (tmp_path / "cut.jsonl.gz").write_bytes(packed[: len(packed) // 2])
    (tmp_path / "not.jsonl.gz").write_bytes(b"plain")
    (tmp_path / "latin.txt").write_bytes("naïve and more".encode("latin-1"))
    (tmp_path / "not.parquet").write_bytes(b"PAR1 no")
    (tmp_path / "cells.csv").write_text("id,text\n1,one two three,four\n")
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "state.json").write_text("{}")
    for name in ("cut.jsonl.gz", "not.jsonl.gz", "latin.txt", "not.parquet"):
        assert (said := line_of(read, tmp_path / name)).startswith(str(tmp_path / name)) and "is it whole, and UTF-8?" in said
    assert "cells.csv:2: more or fewer cells than the header's 2" in line_of(read, tmp_path / "cells.csv")
    assert "can't be read" in line_of(read_passages, tmp_path / "saved")


def test_relative_names_count_from_the_root_first(tmp_path, monkeypatch):
    for name in ("root", "here"): (tmp_path / name).mkdir()
    for name, rows in (("root/a.jsonl", ROWS[:1]), ("here/a.jsonl", ROWS[1:2]), ("here/b.jsonl", ROWS[2:3])): write(tmp_path / name, rows)
    monkeypatch.setenv("RLGEN_ROOT", str(tmp_path / "root"))
    monkeypatch.chdir(tmp_path / "here")
    assert read("a.jsonl") == PASSAGES[:1] and read(" b.jsonl ") == PASSAGES[2:3]
    first = build_library("a.jsonl", "lib")
    assert list(build_library(tmp_path / "root" / "a.jsonl", "lib")) == list(first) == PASSAGES[:1]


def test_what_is_not_there_is_said_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: pytest.fail("asked the hub"))
    (tmp_path / "wiki.jsonl").write_text(jsonl(ROWS))
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.md").write_text("x")
    assert "did you mean 'wiki.jsonl'" in line_of(read_passages, tmp_path / "wikki.jsonl") and "no such file" in line_of(read_passages, "")
    for name in ("empty", "notes.md"): assert "holds nothing that can be read here" in line_of(read_passages, tmp_path / name)
    for kw, said in ((dict(long="piece"), "did you mean 'pieces'"), (dict(unit="lines"), "did you mean 'line'"), (dict(max_words=2), "nothing would be left")):
        assert said in line_of(read_passages, tmp_path / "wiki.jsonl", **kw)


def test_the_hub_is_read_as_a_table_on_disk(monkeypatch):
    seen = []
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: seen.append((a, k)) or datasets.Dataset.from_list(ROWS))
    assert read("wikimedia/wikipedia:20231101.simple@refs/convert/parquet", split="train[:4]") == PASSAGES
    assert seen == [(("wikimedia/wikipedia", "20231101.simple"), dict(split="train[:4]", revision="refs/convert/parquet"))]
    monkeypatch.undo()
    assert "the hub can't be reached" in line_of(read_passages, "wikimedia/wikipedia")


# ---------------------------------------------------------------- on disk


def test_a_library_is_its_passages(tmp_path):
    rows = babble(25, 1)
    made = build_library(rows, tmp_path / "lib", chunk=10)
    for lib in (made, load_library(tmp_path / "lib")):
        assert list(lib) == [Passage(**r) for r in rows] == [lib[i] for i in range(25)] and [lib[i - 25] for i in range(25)] == list(lib) and len(lib) == 25
        assert isinstance(lib.offsets, np.memmap) and lib.about["counts"]["rows"] == 25 and [n for _, n, _ in lib.about["parts"]] == [10, 10, 5]
        with pytest.raises(IndexError): lib[25]
    parts = sorted((tmp_path / "lib").glob("passages-*.jsonl"), key=lambda p: [n for n, _, _ in made.about["parts"]].index(p.name))
    assert [json.loads(x) for p in parts for x in p.read_text().splitlines()] == rows, "any tool can read them"
    assert repr(made) == f"Library(25 passages, {sum(len(r['text'].split()) for r in rows)} words, by words)"
    with pytest.raises(FrozenInstanceError): made[0].text = ""


def test_lines_within_a_text(tmp_path):
    odd = ["one\u2028two\u0085three four", "one\ntwo\rthree\x0bfour five", 'a "b" \\n c', "x\x00y z w"]
    assert [p.text for p in build_library([dict(text=t) for t in odd], tmp_path)] == odd and [p.text for p in load_library(tmp_path)] == odd


def no_reading(monkeypatch): monkeypatch.setattr(module, "read_passages", lambda *a, **k: pytest.fail("read again"))


def no_counting(monkeypatch): monkeypatch.setattr(BM25, "__init__", lambda *a, **k: pytest.fail("counted words again"))


def test_nothing_is_done_twice(tmp_path, monkeypatch):
    source = write(tmp_path / "a.jsonl", babble(30, 2))
    first = build_library(source, tmp_path / "lib")
    shutil.copy(source, tmp_path / "b.jsonl")
    with monkeypatch.context() as m:
        no_reading(m)
        no_counting(m)
        for name in ("a.jsonl", "b.jsonl"): assert list(build_library(tmp_path / name, tmp_path / "lib")) == list(first)
        for change in (dict(max_words=20), dict(chunk=7), dict(fields=dict(title="id")), dict(min_words=5)):
            with pytest.raises(pytest.fail.Exception, match="read again"): build_library(source, tmp_path / "lib", **change)
    with monkeypatch.context() as m:  # an iterator has to be read, but its words are known
        no_counting(m)
        assert list(build_library(iter(babble(30, 2)), tmp_path / "lib")) == list(first)
    write(source, babble(31, 2))
    assert len(build_library(source, tmp_path / "lib")) == 31


def test_an_earlier_library_is_replaced_whole(tmp_path):
    other, rows = babble(40, 3), babble(25, 4)
    build_library(rows, tmp_path / "new", chunk=10)
    build_library(other, tmp_path / "lib", chunk=10)
    build_library(rows, tmp_path / "lib", chunk=10)
    assert files(tmp_path / "lib") == files(tmp_path / "new")


class Killed(BaseException): "What a kill looks like from inside."


def test_killed_at_every_write(tmp_path, monkeypatch):
    "Whenever a new build over an old library ends, the old one is still there; started again, it ends like an undisturbed one and reads at most once more."
    old, new = babble(30, 5), babble(30, 6)
    build_library(old, tmp_path / "old", chunk=10)
    build_library(new, tmp_path / "new", chunk=10)
    asked, real = ["w1 w2", "w3"], module.atomic_write
    before, after = (load_library(tmp_path / name).search(asked, 9) for name in ("old", "new"))
    for at in range(99):
        shutil.copytree(tmp_path / "old", tmp_path / "lib")
        calls = iter(range(99))

        def dying(*a, **k):
            if next(calls) == at: raise Killed  # noqa: B023
            return real(*a, **k)

        with monkeypatch.context() as m:
            for place in (module, retrieval): m.setattr(place, "atomic_write", dying)
            try: build_library(new, tmp_path / "lib", chunk=10); break
            except Killed: pass
        assert load_library(tmp_path / "lib").search(asked, 9) == before, f"write {at}"
        with monkeypatch.context() as m:
            if (tmp_path / "lib" / "passages.json").read_bytes() == (tmp_path / "new" / "passages.json").read_bytes(): no_reading(m)
            assert build_library(new, tmp_path / "lib", chunk=10).search(asked, 9) == after
        assert files(tmp_path / "lib") == files(tmp_path / "new"), f"write {at}"
        shutil.rmtree(tmp_path / "lib")
    assert at == 8, "3 parts, offsets, passages.json, bm25.json twice, library.json"


def test_a_killed_first_build_is_no_library(tmp_path, monkeypatch):
    monkeypatch.setattr(BM25, "save", lambda *a: (_ for _ in ()).throw(Killed))
    with pytest.raises(Killed): build_library(ROWS, tmp_path)
    monkeypatch.undo()
    assert "no finished library there; call build_library" in line_of(load_library, tmp_path)
    no_reading(monkeypatch)
    assert list(build_library(ROWS, tmp_path)) == PASSAGES


@pytest.mark.slow
def test_killed_for_real(tmp_path):
    "A process killed at many moments: each further build ends well, with the same files."
    source, script = write(tmp_path / "a.jsonl", babble(6000, 7, 400)), "import sys; from rlgen.synth_rl.library import build_library; print('go', flush=True); build_library(*sys.argv[1:], chunk=500)"
    build_library(source, tmp_path / "whole", chunk=500)
    for wait in (0.05, 0.2, 0.4, 0.8, 1.3):
        run = subprocess.Popen([sys.executable, "-c", script, str(source), str(tmp_path / "lib")], stdout=subprocess.PIPE)
        run.stdout.readline()
        try: run.wait(wait)
        except subprocess.TimeoutExpired: run.kill()
        run.wait()
    build_library(source, tmp_path / "lib", chunk=500)
    assert files(tmp_path / "lib") == files(tmp_path / "whole")


def test_damage_is_noticed_and_mended(tmp_path):
    whole = build_library(ROWS, tmp_path / "whole", chunk=2, encoder=Toy())
    kept = files(tmp_path / "whole")
    for name in sorted(kept):
        if name.endswith("lock") or name == "passages.json": continue
        for damage in ("lost", "cut"):
            shutil.copytree(tmp_path / "whole", tmp_path / "bad")
            bad = tmp_path / "bad" / name
            if damage == "lost": bad.unlink()
            else: bad.write_bytes(kept[name][: len(kept[name]) // 2])
            if name.startswith("bm25"): (bad.parent / ".bm25.json.abc").write_text("{}")  # a real kill leaves this
            assert "call build_" in line_of(load_library, tmp_path / "bad", Toy()), f"{name} {damage}"
            mended = build_library(ROWS, tmp_path / "bad", chunk=2, encoder=Toy())
            assert list(mended) == PASSAGES and files(tmp_path / "bad") == kept, f"{name} {damage}"
            assert load_library(tmp_path / "bad", Toy()).search(["carp"], 2, "both") == whole.search(["carp"], 2, "both")
            shutil.rmtree(tmp_path / "bad")
    (tmp_path / "whole" / "passages.json").write_text("[")
    assert list(build_library(ROWS, tmp_path / "whole", chunk=2)) == PASSAGES


def test_two_who_want_the_same_library_take_turns(tmp_path):
    rows, done = babble(30, 8), []
    with locked(tmp_path / "lock"):
        worker = threading.Thread(target=lambda: done.append(build_library(rows, tmp_path)))
        worker.start()
        worker.join(0.5)
        assert not done and not list(tmp_path.glob("passages-*"))
    worker.join(30)
    assert len(done[0]) == 30


def test_build_refuses(tmp_path):
    assert "no passage left of 2 rows (2 too short)" in line_of(build_library, [dict(text="a"), dict(text="")], tmp_path / "x")
    assert "no passage left of 0 rows" in line_of(build_library, [], tmp_path / "x") and not (tmp_path / "x" / "library.json").exists()
    for kw, said in ((dict(kind="flatt"), "did you mean 'flat'"), (dict(chunk=0), "chunk = 0"), (dict(long="x"), "valid: cut, pieces")):
        assert said in line_of(build_library, ROWS, tmp_path / "y", **kw)
    (tmp_path / "file").write_text("")
    assert "can't write there" in line_of(build_library, ROWS, tmp_path / "file")


# ---------------------------------------------------------------- searching


@pytest.mark.parametrize("seed", range(3))
def test_search_by_words_is_bm25_of_what_matches(tmp_path, seed):
    rows = babble(60, seed)
    lib, asked = build_library([r | dict(title=f"t{i % 3}") for i, r in enumerate(rows)], tmp_path), ["w1 w5", "t2 w30", "unheard", ""]
    reference = BM25([f"t{i % 3}\n{r['text']}" for i, r in enumerate(rows)]).search(asked, 60)
    for k in (1, 7, 60):
        ids, scores = lib.search(asked, k)
        for got, score, want, wanted in zip(ids, scores, *reference):
            hits = sum(s > 0 for s in wanted)
            assert got == want[: min(k, hits)] and score == wanted[: min(k, hits)] and lib.search(asked, k)[0][2:] == [[], []]


def test_search_by_vectors_and_both(tmp_path):
    rows, toy, asked = babble(60, 9), Toy(), ["w1 w12 w3", "w20 w2", "w33"]
    lib = build_library(rows, tmp_path, encoder=toy)
    vectors = toy.embed([r["text"] for r in rows])
    for query, ids in zip(asked, lib.search(asked, 10, "dense")[0]):
        scores = vectors @ toy.embed([query])[0]
        assert scores[ids].tolist() == sorted(scores, reverse=True)[:10]
    ids, scores = lib.search(asked, 10, "both")
    for i in range(3): assert (ids[i], scores[i]) == fuse([lib.search(asked, 50, way)[0][i] for way in ("bm25", "dense")], 10)
    assert "did you mean 'both'" in line_of(lib.search, asked, 3, "boht") and "at least 1" in line_of(lib.search, asked, 0) and lib.search([], 3) == ([], [])
    assert len(find_passages(lib, ["w1", "w2"], 5, how="both")[0]) == 5


def test_vectors_belong_to_passages_and_encoder(tmp_path):
    rows, toy = babble(40, 10), Toy()
    build_library(rows, tmp_path)
    assert "built without an encoder; call build_library with one" in line_of(load_library, tmp_path, toy)
    assert "opened without an encoder" in line_of(load_library(tmp_path).search, ["w1"], 2, "dense")
    build_library(rows, tmp_path, encoder=toy)
    assert len(toy.read) == 40 and load_library(tmp_path, Toy()).search(["w1"], 3, "dense")[0] and "another encoder" in line_of(load_library, tmp_path, Toy("other"))
    build_library(rows, tmp_path)
    assert load_library(tmp_path, toy) and len(toy.read) == 40, "a build without an encoder leaves the vectors"
    build_library(rows, tmp_path, encoder=toy)
    assert len(toy.read) == 40, "embedded once"
    build_library(rows, tmp_path, encoder=Toy("other"))
    assert load_library(tmp_path, Toy("other")).dense and "another encoder" in line_of(load_library, tmp_path, toy), "another encoder's take their place"
    build_library(rows, tmp_path, encoder=toy)
    retrieval.build_index(["other texts"], toy, folder=tmp_path / "vectors")
    assert "its vectors belong to other passages" in line_of(load_library, tmp_path, toy)
    build_library(rows[:20], tmp_path)
    assert "built without an encoder" in line_of(load_library, tmp_path, toy)


def test_embedding_goes_on_where_it_was_killed(tmp_path):
    class Dying(Toy):
        def embed(self, texts, *_):
            if len(self.read) >= 4096: raise Killed
            return super().embed(texts)

    rows, first, second = babble(5000, 11), Dying(), Toy()
    with pytest.raises(Killed): build_library(rows, tmp_path, encoder=first)
    assert "no finished library" in line_of(load_library, tmp_path)
    lib = build_library(rows, tmp_path, encoder=second)
    assert len(first.read) == 4096 and second.read == [r["text"] for r in rows[4096:]] and len(lib.dense) == 5000


def test_with_a_real_architecture(tmp_path, folders):
    encoder = load_encoder(str(folders("bert", "encoder")))
    lib = build_library(ROWS, tmp_path, encoder=encoder, kind="hnsw")
    assert all(load_library(tmp_path, encoder).search(["carp bread"], 3, how) == lib.search(["carp bread"], 3, how) for how in WAYS)
    assert lib.search([ROWS[1]["text"]], 4, "dense")[0][0] and "by words and vectors" in repr(lib)


def test_fuse_by_hand():
    assert fuse([[7, 3, 5], [4, 3]], 9) == ([3, 7, 4, 5], pytest.approx([2 / 62, 1 / 61, 1 / 61, 1 / 63]))
    assert fuse([[1, 2], []], 1) == ([1], [1 / 61]) and fuse([], 3) == fuse([[], []], 3) == ([], [])


# ---------------------------------------------------------------- finding


def test_keywords_take_turns(tmp_path):
    texts = ["hop hop is one", "hop two hop or so", "hop is a move of many words here", "leap leap is three", "leap and hop are two of many many moves", "rain falls on all"]
    lib = build_library([dict(id=str(i), text=t) for i, t in enumerate(texts)], tmp_path)
    found, report = find_passages(lib, ["hop", "zeppelin", "leap", " HOP  "], 5)
    order = {k: lib.search([k], 9)[0][0] for k in ("hop", "leap")}
    assert order == dict(hop=[1, 0, 2, 4], leap=[3, 4]) or order == dict(hop=[0, 1, 2, 4], leap=[3, 4])
    assert [(f.id, f.keyword, f.rank) for f in found] == [(str(order["hop"][0]), "hop", 1), ("3", "leap", 1), (str(order["hop"][1]), "hop", 2), ("4", "leap", 2), ("2", "hop", 3)]
    assert report == dict(asked=3, found=5, words=sum(len(f.text.split()) for f in found), near_copies=0, too_long=0, by_keyword=dict(hop=3, zeppelin=0, leap=2), unheard=["zeppelin"])
    assert all(isinstance(f, Found) and f.text == texts[int(f.id)] for f in found) and find_passages(lib, iter(["hop", "leap"]), 99)[1]["found"] == 5


def naive(lib: Library, keywords, n, budget, near, depth):
    "What find_passages should return, written with lists alone."
    lists = {k: [i for i in lib.search([k], depth)[0][0]] for k in keywords}
    found, looked, at = [], set(), dict.fromkeys(keywords, 0)
    while len(found) < n:
        before = sum(at.values())
        for k in keywords:
            while at[k] < len(lists[k]) and len(found) < n:
                i, at[k] = lists[k][at[k]], at[k] + 1
                if i in looked: continue
                looked.add(i)
                spent = sum(len(lib[j].text.split()) for j, _, _ in found)
                if budget and spent + len(lib[i].text.split()) > budget: continue
                if any(similarity(lib[i].text, lib[j].text) >= near for j, _, _ in found): continue
                found.append((i, k, at[k]))
                break
        if sum(at.values()) == before: break
    return found


@pytest.mark.parametrize("seed", range(8))
def test_finding_is_what_it_says(tmp_path, seed):
    r = random.Random(seed)
    rows = babble(50, seed, 12)
    rows += [dict(id=f"copy{i}", title="", text=f"{r.choice(rows)['text']} more") for i in range(20)]
    lib, keywords = build_library(rows, tmp_path), [f"w{i} w{i + 3}" for i in range(r.randint(1, 5))]
    for n, budget, near, depth in ((5, 0, 0.5, 70), (12, 90, 0.5, 30), (30, 0, 2.0, 10), (99, 200, 0.9, 70), (3, 30, 0.2, 5)):
        try: found, report = find_passages(lib, keywords, n, budget, near=near, depth=depth)
        except RlgenError: found, report = [], {}
        assert [(f.id, f.keyword, f.rank) for f in found] == [(lib[i].id, k, rank) for i, k, rank in naive(lib, keywords, n, budget, near, depth)]
        assert len({f.id for f in found}) == len(found) <= n and (not budget or sum(len(f.text.split()) for f in found) <= budget)
        if report: assert report["words"] == sum(len(f.text.split()) for f in found) and sum(report["by_keyword"].values()) == len(found)
    assert find_passages(lib, keywords, 9) == find_passages(load_library(tmp_path), keywords, 9), "no chance involved"


def test_copies_and_what_does_not_fit_are_counted(tmp_path):
    text = "a hop is one square and children learn it within a single week"
    lib = build_library([dict(id=i, text=t) for i, t in (("a", text), ("b", text + " so"), ("c", text.replace("week", "day")), ("d", "nobody makes a hop " + "or so " * 20), ("e", "another hop was seen"))], tmp_path)
    found, report = find_passages(lib, ["hop"], 9)
    assert {f.id for f in found} & {"a", "b", "c"} and len(found) == 3 and report["near_copies"] == 2 and report["too_long"] == 0
    found, report = find_passages(lib, ["hop"], 9, budget_words=16, near=1.1)
    assert sum(len(f.text.split()) for f in found) <= 16 and report["too_long"] == 5 - len(found) and report["near_copies"] == 0
    assert len(find_passages(lib, ["hop"], 9, near=1.1)[0]) == 5


def test_only_the_same_runs_are_a_copy_at_1(tmp_path):
    lib = build_library([dict(id="a", text="A hop is one!"), dict(id="b", text="a hop is one"), dict(id="c", text="a hop is one so")], tmp_path)
    found, report = find_passages(lib, ["hop"], 9, near=1.0)
    assert [f.id for f in found] == ["a", "c"] and report["near_copies"] == 1


def test_enough_is_looked_at(tmp_path):
    lib = build_library(babble(300, 12, 3), tmp_path)
    assert len(find_passages(lib, ["w0"], 150, near=2.0)[0]) == 150 and len(find_passages(lib, ["w0"], 150, near=2.0, depth=20)[0]) == 20


def test_find_refuses(tmp_path):
    lib = build_library(ROWS, tmp_path)
    assert "one string" in line_of(find_passages, lib, "carp", 3) and "no keywords" in line_of(find_passages, lib, [" ", ""], 3) and "None is NoneType" in line_of(find_passages, lib, ["carp", None], 3)
    for kw in (dict(n=0), dict(n=1, near=0), dict(n=1, budget_words=-1)): assert "expected at least 1 passage" in line_of(find_passages, lib, ["carp"], **kw)
    for kw in (dict(keywords=["zeppelin", "yacht"]), dict(keywords=["carp"], budget_words=2)): assert "no passage in" in line_of(find_passages, lib, n=3, **kw)


def test_similarity_by_hand():
    assert similarity("a b c d", "a b c e") == 1 / 3 and similarity("A, b C!", "a b c") == 1.0 and similarity("a b", "a b") == 1.0 and similarity("a b", "b a") == 0.0
    assert similarity("", "") == 1.0 and similarity("", "a") == 0.0


def test_the_world_s_facts_are_found_in_turn(tmp_path):
    lib, keywords = build_library(world_library(), tmp_path), ["round track", "pawn", *MOVES]
    found, _ = find_passages(lib, keywords, 16)
    joint = [lib[i].text for i in lib.search([" ".join(keywords)], 16)[0][0]]
    assert len(stated_sizes(" ".join(f.text for f in found))) >= 6 > len(stated_sizes(" ".join(joint)))


# ---------------------------------------------------------------- real passages


@pytest.mark.slices
def test_real_paragraphs(slices, tmp_path):
    source = slices / "passages" / "squad_paragraphs.jsonl"
    lib = build_library(source, tmp_path, max_words=0)
    rows = [json.loads(x) for x in source.read_text().splitlines()]
    assert [p.id for p in lib] == [r["id"] for r in rows] and lib.about["counts"]["repeated"] == 0
    hits = sum(lib[i].id == r["id"] for r in rows for i in lib.search([r["qas"][0]["question"]], 1)[0][0])
    assert hits > 0.6 * len(rows), "the first question of a paragraph leads to it"
    cut = build_library(source, tmp_path)
    assert max(len(p.text.split()) for p in cut) <= 200 and len(cut) > 240 and " ".join(p.text for p in cut if p.id.split("#")[0] == rows[0]["id"]).split() == rows[0]["text"].split()


@pytest.mark.slices
def test_real_sentences(slices, tmp_path):
    lib = build_library(slices / "passages" / "wikipedia_sentences.txt", tmp_path)
    lines = [x.split() for x in (slices / "passages" / "wikipedia_sentences.txt").read_text().splitlines()]
    assert len(lib) == len({" ".join(x) for x in lines if len(x) >= 3}) and lib.about["counts"]["rows"] == len(lines)
    found, report = find_passages(lib, ["railway station", "chess", "volcano", "quarterback"], 20, budget_words=200)
    assert len(found) >= 12 and report["words"] <= 200 and all(set(words(f.keyword)) & set(words(f.text)) for f in found)


@pytest.mark.slices
def test_real_folder(slices, tmp_path):
    lib = build_library(slices / "passages", tmp_path)
    titled = [bool(p.title) for p in lib]
    assert len(lib) > 14_000 and sum(titled) >= 240 and titled[:240] == [True] * 240 and not any(titled[sum(titled) :]), "file by file, by name"
