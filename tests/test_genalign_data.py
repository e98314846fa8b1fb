"""rlgen.genalign.data: labelled texts read and named, golden texts in three parts, examples for prompts."""

import csv
import gzip
import itertools
import json
import random
import subprocess
import sys
from collections import Counter
from dataclasses import FrozenInstanceError

import numpy as np
import pytest

from helpers import line_of
from rlgen.core import jsonl
from rlgen.data import Rows, leak_audit
from rlgen.genalign.data import (
    DIVERSITY, STRATEGIES, Item, Parts, bare, in_context, length_statistics, load_items, split_items, statistics, tfidf,
)
from rlgen.metrics import words

ROWS = [("a warm room", "glad"), ("the cold soup , and rude", "cross"), ("one line\nand another", "glad"), ("größe 灯", "cross")]
SHARES = dict(pool=0.25, dev=0.5, test=0.25)


def pairs(items): return [(t.text, t.label) for t in items]


def golden(n=60, labels=("cross", "glad"), seed=0) -> list[Item]:
    "Texts of a few words each, no two alike, labels in turn."
    rng = random.Random(seed)
    return [Item(f"{rng.choice('abcdef')} {rng.choice('ghijkl')} number{i}", labels[i % len(labels)]) for i in range(n)]


def write_csv(path, rows, header=("text", "label")):
    with open(path, "w", newline="", encoding="utf-8") as f: csv.writer(f).writerows([header, *rows])
    return path


# ---------------------------------------------------------------- items


def test_importing_is_light():
    code = "import sys, rlgen.genalign.data; print([m for m in 'torch transformers datasets pandas pyarrow sklearn faiss'.split() if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert run.stdout.strip() == "[]", run.stderr[-2000:]


def test_an_item_has_an_id_of_its_content_unless_given():
    a = Item("a warm room", "glad")
    assert a.id == Item("a warm room", "glad").id != Item("a warm room", "cross").id != Item("a cold room", "cross").id and Item("x", "y", "z").id == "z"
    assert "\n" not in repr(Item("a\nb " * 90, "glad")) and len(repr(Item("word " * 90, "glad"))) < 100 and len({a, Item("a warm room", "glad")}) == 1
    with pytest.raises(FrozenInstanceError): a.label = "cross"


def test_bare_texts_are_compared_by_words():
    assert bare("The  ROOM!") == bare("the room .") == "the room" and bare(" :-) ") == ":-)" != bare(":-(") and bare("Größe") == bare("GRÖSSE") and bare("") == ""


# ---------------------------------------------------------------- reading


def _save(kind, d):
    "The same rows, labels as ids where the format can name them; returns a source."
    from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

    data = Dataset.from_dict(dict(text=[t for t, _ in ROWS], label=[label for _, label in ROWS]))
    numbered = data.cast(Features(dict(text=Value("string"), label=ClassLabel(names=["cross", "glad"]))))
    if kind == "csv": return write_csv(d / "train.csv", ROWS)
    if kind == "csv with bom": (d / "a.csv").write_bytes(b"\xef\xbb\xbf" + write_csv(d / "b.csv", ROWS).read_bytes().replace(b"\n", b"\r\n")); return d / "a.csv"  # noqa: E702
    if kind == "csv beside": return write_csv(d / "a.csv", [(t, ("cross", "glad").index(label), label) for t, label in ROWS], ("text", "label", "label_text"))
    if kind == "csv floats beside": return write_csv(d / "a.csv", [(t, float(("cross", "glad").index(label)), label) for t, label in ROWS], ("text", "label", "label_name"))
    if kind == "jsonl.gz": (d / "a.jsonl.gz").write_bytes(gzip.compress(jsonl([dict(text=t, label=label, more=[1]) for t, label in ROWS]).encode())); return d / "a.jsonl.gz"  # noqa: E702
    if kind == "parquet": data.to_parquet(d / "a.parquet"); return d / "a.parquet"  # noqa: E702
    if kind == "parquet ids": numbered.to_parquet(d / "a.parquet"); return d / "a.parquet"  # noqa: E702
    if kind == "folder of parquet ids": numbered.to_parquet(d / "train.parquet"); return d  # noqa: E702
    if kind == "saved ids": numbered.save_to_disk(d / "s"); return d / "s"  # noqa: E702
    if kind == "saved splits of ids": DatasetDict(train=numbered, test=numbered).save_to_disk(d / "s"); return d / "s"  # noqa: E702
    return d


@pytest.mark.parametrize("kind", ["csv", "csv with bom", "csv beside", "csv floats beside", "jsonl.gz", "parquet", "parquet ids", "folder of parquet ids", "saved ids", "saved splits of ids"])
def test_every_format_gives_the_same_named_items(tmp_path, kind):
    items, report = load_items(_save(kind, tmp_path))
    assert [(t.replace("\r\n", "\n"), label) for t, label in pairs(items)] == ROWS and report["kept"] == 4 and report["labels"] == dict(cross=2, glad=2)


def test_the_hub_is_asked_for_the_names_of_ids(monkeypatch, tmp_path):
    import datasets
    feature, seen = datasets.Features(dict(text=datasets.Value("string"), label=datasets.ClassLabel(names=["cross", "glad"]))), []
    data = datasets.Dataset.from_dict(dict(text=["a", "b"], label=[1, 0]), feature)
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: seen.append((a, k)) or data)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert pairs(load_items("some/moods:small@main", "valid")[0]) == [("a", "glad"), ("b", "cross")] and seen[0] == seen[1] == (("some/moods", "small"), dict(split="valid", revision="main"))
    data = datasets.Dataset.from_list([dict(text="a", label="x"), dict(text="b", label="y")])
    assert len(seen) == 2 and len(load_items("some/moods")[0]) == 2 == len(seen) - 1, "names need no second look"


def test_ids_without_names_are_names_themselves(tmp_path):
    assert pairs(load_items(write_csv(tmp_path / "a.csv", [("a", "0"), ("b", " 1 "), ("c", "1.0")]))[0]) == [("a", "0"), ("b", "1"), ("c", "1")]
    assert pairs(load_items([dict(text="a", label=0), dict(text="b", label=1.0)])[0]) == [("a", "0"), ("b", "1")]
    assert pairs(load_items([dict(text="a", label=True), dict(text="b", label=False)])[0]) == [("a", "True"), ("b", "False")]


def test_minus_one_is_no_label_where_ids_have_names(tmp_path):
    rows = [dict(text="a", label=0, label_text="cross"), dict(text="b", label=1, label_text="glad"), dict(text="c", label=-1, label_text=None), dict(text="d", label="glad", label_text=None)]
    items, report = load_items([dict(r) for r in rows])
    assert pairs(items) == [("a", "cross"), ("b", "glad"), ("d", "glad")] and report["no_label"] == 1
    assert load_items([dict(text="a", label=-1), dict(text="b", label=1)])[1]["labels"] == {"-1": 1, "1": 1}, "a score of -1 is a label of its own"


def test_columns_by_name_and_what_is_left_out_is_counted(tmp_path):
    rows = [("a warm room", "glad"), ("", "glad"), ("  ", "cross"), ("no mood", ""), ("fine", "glad"), ("a  warm room ", "glad"), ("fine", "cross"), ("fine", "glad"), ("cold", "cross"), ("\t", "glad"), ("Cold", "cross")]
    items, report = load_items(write_csv(tmp_path / "r.csv", rows, ("review", "mood")), text_column="review", label_column="mood")
    assert pairs(items) == [("a warm room", "glad"), ("cold", "cross"), ("Cold", "cross")]
    assert {k: v for k, v in report.items() if k != "first"} == dict(rows=11, kept=3, no_text=3, no_label=1, repeated=1, conflict=3, labels=dict(cross=2, glad=1))
    assert report["first"][0] == f"{tmp_path}/r.csv:3: no text" and f"{tmp_path}/r.csv:7: this text stood there before" in report["first"] and sum("two labels" in x for x in report["first"]) == 3
    mirrored, again = load_items(write_csv(tmp_path / "m.csv", rows[::-1], ("review", "mood")), text_column="review", label_column="mood")
    assert sorted(map(bare, (t.text for t in mirrored))) == sorted(map(bare, (t.text for t in items))) and again["conflict"] == 3
    many = load_items([dict(text="", label="a")] * 9 + [dict(text="x", label="a"), dict(text="y", label="b")])[1]
    assert many["no_text"] == 9 and len(many["first"]) == 3


def test_rows_without_a_value_are_counted_too():
    nan = float("nan")
    items, report = load_items([dict(text="a", label="x"), dict(text="b", label="y"), dict(text=None, label="x"), dict(text=nan, label="x"), dict(text="c", label=None), dict(text="d", label=nan), dict(label="x"), dict(text="e")])
    assert len(items) == 2 and (report["no_text"], report["no_label"]) == (3, 3)


@pytest.mark.parametrize("rows, kw, said", [
    ([dict(review="a", mood="x")], {}, "no column 'text' (valid: mood, review); the columns are review, mood"),
    ([dict(text="a", labels="x")], {}, "no column 'label' (did you mean 'labels'?)"),
    ([dict(text="a", label="x"), dict(text="b", label="x")], {}, "m.jsonl:1: all texts have the label 'x'; a classifier needs two classes"),
    ([dict(text="a", label="x"), dict(text="b", label="x"), dict(text="b", label="y")], {}, "all texts have the label 'x'"),
    ([dict(text="a", label="glad"), dict(text="b", label="gald")], dict(labels=("cross", "glad")), "m.jsonl:2: the label 'gald' is not one of those trained on; did you mean 'glad'?"),
    ([dict(text="a", label="x"), dict(text="b", label=1)], {}, "m.jsonl:2: the label '1' is a number, 'x' (m.jsonl:1) a name"),
    ([dict(text="a", label="x"), dict(text="b", label="y"), dict(text="c", label="X")], {}, "m.jsonl:3: the label 'X' is spelled 'x' elsewhere"),
    ([dict(text="a", label="x"), dict(text="b", label=["y"])], {}, "m.jsonl:2: 'label' is list"),
    ([dict(text="a", label="x"), dict(text=3, label="y")], {}, "m.jsonl:2: 'text' is int; expected text"),
    ([dict(text="a", label=0, label_text="x"), dict(text="b", label=2)], {}, "m.jsonl:2: the label '2' has no name; valid: 0 (x)"),
    ([dict(text="a", label=0, label_text="x"), dict(text="b", label=0, label_text="y")], {}, "m.jsonl:2: label 0 is called 'y' here and 'x' before"),
    ([dict(text="", label="x"), dict(text="b", label="")], {}, "no row of 2 can be used (1 with no text, 1 with no label)"),
])  # fmt: skip
def test_a_file_that_cannot_be_used_is_refused_in_one_line(rows, kw, said):
    assert said in line_of(load_items, Rows(rows, "m.jsonl", list(range(1, len(rows) + 1))), **kw)


def test_files_that_are_not_there_or_broken(tmp_path):
    assert "no such file" in line_of(load_items, tmp_path / "nowhere.csv")
    (tmp_path / "a.csv").write_text("text,label\na warm room, and quiet,glad\n")
    assert "a.csv:2: more or fewer cells" in line_of(load_items, tmp_path / "a.csv")
    assert "no split 'test'" in line_of(load_items, write_csv(tmp_path / "b.csv", ROWS), "test")
    assert "columns are" in line_of(load_items, []) or "column" in line_of(load_items, [])


def test_fixed_classes_let_a_file_have_fewer(tmp_path):
    assert pairs(load_items([dict(text="a", label="glad")], labels=("cross", "glad"))[0]) == [("a", "glad")]


# ---------------------------------------------------------------- a look


def test_lengths_are_counted_in_words():
    assert length_statistics(["", "a", "a b !", "a b c d e f g"]) == dict(mean=2.5, min=0, p10=0.3, p50=1.5, p90=5.5, max=7) and length_statistics(["x y"])["p90"] == 2
    assert "at least one" in line_of(length_statistics, [])


def test_statistics_by_class():
    found = statistics([Item("a b", "x"), Item("A b.", "x", "2"), Item("a b c", "x"), Item("d", "y")])
    assert {k: v for k, v in found.items() if k != "table"} == dict(n=4, different=3, classes=2, balance=0.3333)
    assert [(r["label"], r["n"], r["share"], r["mean"], r["max"]) for r in found["table"]] == [("x", 3, 0.75, 2.33, 3), ("y", 1, 0.25, 1.0, 1)]
    assert "at least one" in line_of(statistics, []) and json.dumps(found)


# ---------------------------------------------------------------- parts


@pytest.mark.parametrize("seed", range(5))
def test_no_text_is_in_two_parts_and_classes_keep_their_shares(seed):
    items = golden(60) + [Item(t.text.upper() + " !", t.label) for t in golden(60)[::7]]
    parts = split_items(items, SHARES, seed)
    texts = [{bare(t.text) for t in part} for part in parts]
    assert not any(a & b for a, b in itertools.combinations(texts, 2)) and sorted(itertools.chain(*parts), key=items.index) == items
    for name, size in zip(("cross", "glad"), (30, 30)):
        assert [len({bare(t.text) for t in part if t.label == name}) for part in parts] == [round(size * 0.25), round(size * 0.75) - round(size * 0.25), size - round(size * 0.75)]
    assert parts.labels == ("cross", "glad") and leak_audit([t.text for t in parts.dev], [t.text for t in parts.test])["exact"] == 0


def test_a_split_is_a_function_of_the_seed_and_keeps_the_order():
    items = golden()
    base = split_items(items, SHARES, 3)
    assert split_items(items[::-1], SHARES, 3) == Parts(*(p[::-1] for p in base)) and split_items(items, SHARES, 4) != base
    assert all([t for t in items if t in part] == part for part in base)
    assert repr(base) == "Parts(pool 16, dev 28, test 16; cross, glad)"


def test_every_class_is_in_every_part():
    for sizes in itertools.product(range(3, 9), repeat=2):
        items = [Item(f"{name} {i}", name) for name, n in zip("xy", sizes) for i in range(n)]
        for shares in (dict(pool=0.02, dev=0.9, test=0.02), dict(pool=0.1, dev=0.1, test=0.8), dict(pool=0.05, dev=0.05, test=0.05)):
            parts = split_items(items, shares)
            assert all({t.label for t in p} == {"x", "y"} for p in parts) and len(set(itertools.chain(*parts))) == sum(map(len, parts)) <= sum(sizes)
    small = dict(pool=0.1, dev=0.1, test=0.1)
    assert [len(p) for p in split_items(golden(100), small)] == [10, 10, 10], "the rest stays out"
    assert "the label 'glad' has 2 different texts for 3 parts" in line_of(split_items, [Item(str(i), "cross") for i in range(9)] + [Item("a", "glad"), Item("b", "glad"), Item("B!", "glad")], SHARES)


def test_a_given_test_is_left_alone_and_its_texts_leave_the_rest():
    items, test = golden(40), [*golden(40)[:6], Item("other", "glad"), Item("other", "glad")]
    seen = [Item(t.text.title() + ".", t.label) for t in test[:4]]
    parts = split_items(items + seen, dict(pool=0.5, dev=0.5), test=test)
    assert parts.test == test and len(parts.pool) + len(parts.dev) == 34 and not {bare(t.text) for t in parts.pool + parts.dev} & {bare(t.text) for t in test}
    assert "the test has 2 texts with the label 'gladd', training has none; did you mean 'glad'?" in line_of(split_items, items, dict(pool=0.5, dev=0.5), 0, [Item("a", "gladd"), Item("b", "gladd"), Item("c", "glad")])
    assert "none to split" in line_of(split_items, items, dict(pool=0.5, dev=0.5), 0, items) and "none to split" in line_of(split_items, [], SHARES)
    assert split_items(items, dict(pool=0.5, dev=0.5), test=[]).test == []


@pytest.mark.parametrize("shares, said", [
    (dict(pool=0.5, dev=0.5), "expected exactly pool, dev, test"), (dict(pool=0.5, val=0.2, test=0.3), "expected exactly pool, dev, test"), ({}, "shares for nothing"),
    (dict(pool=0.5, dev=0.5, test=0.5), "impossible"), (dict(pool=-0.5, dev=0.5, test=0.5), "impossible"), (dict(pool=0.5, dev=0.5, test=0), "share 0"), (dict(pool="x", dev=0.5, test=0), "impossible"),
])  # fmt: skip
def test_impossible_shares_are_refused(shares, said):
    assert said in line_of(split_items, golden(), shares)


def test_shares_with_a_given_test_have_no_test():
    assert "expected exactly pool, dev (the test is given)" in line_of(split_items, golden(), SHARES, 0, golden(6))


# ---------------------------------------------------------------- examples


def test_tfidf_equals_scikit_learns():
    from sklearn.feature_extraction.text import TfidfVectorizer
    texts = ["A warm, warm room", "the cold soup", "the room", ":-)", "the the the soup"]
    theirs, asked = TfidfVectorizer(analyzer=words), ["cold room", "soup soup warm", "the warm"]
    assert np.allclose(theirs.fit_transform(texts).toarray(), tfidf(texts).toarray()) and tfidf(texts).shape == (5, 6) and tfidf(texts)[3].nnz == 0
    order = [theirs.vocabulary_[w] for w in ("cold", "room", "soup", "the", "warm")]
    assert np.allclose(theirs.transform(asked).toarray()[:, order], tfidf(asked, texts).toarray())
    assert tfidf([]).shape == (0, 0) and tfidf(["", ":-)"]).shape == (2, 0) and tfidf(["so"], []).toarray() == 1


@pytest.mark.parametrize("strategy, scope, diversity", [(s, c, d) for s in STRATEGIES for c in ("same", "all") for d in DIVERSITY])
def test_examples_are_a_function_of_seed_and_request(strategy, scope, diversity):
    pool = golden(40)
    def ask(**kw): return in_context(pool, **dict(label="glad", k=4, strategy=strategy, scope=scope, diversity=diversity, seed=1, request=7) | kw)
    base = ask()
    assert ask() == base and len({bare(t.text) for t in base}) == 4 and all(t in pool for t in base)
    assert {t.label for r in range(20) for t in ask(request=r)} == ({"glad"} if strategy != "balanced" and scope == "same" else {"glad", "cross"})
    assert len({tuple(ask(request=r)) for r in range(20)}) > 10 and len({tuple(ask(seed=s)) for s in range(20)}) > 10 and len({ask(request=r)[0] for r in range(60)}) > 10
    for victim in base:
        for r in (7, *range(10)): assert victim not in ask(request=r, judged=victim.text.upper() + "!") and len(ask(request=r, judged=victim.text)) == 4
    assert any(ask(request=r, scope="all") != ask(request=r, scope="all", label="cross") for r in range(5)) and ask(k=0) == [] and len(ask(k=1)) == 1 and ask(judged="not in the pool") == base


@pytest.mark.parametrize("labels, k", [(2, 4), (2, 5), (3, 4), (3, 2), (5, 1), (4, 8)])
def test_balanced_examples_are_balanced_and_the_asked_label_is_never_behind(labels, k):
    names = [f"class {i}" for i in range(labels)]
    pool = golden(60, names)
    asked = [in_context(pool, "class 1", k, "balanced", request=r) for r in range(40)]
    for items in asked:
        n = Counter(t.label for t in items)
        assert max(n.values()) - min(n[x] for x in names) <= 1 and n["class 1"] == max(n.values()) and len(items) == k
    if k > 1: assert len({next(i for i, t in enumerate(items) if t.label == "class 1") for items in asked}) > 1, "its place tells nothing"
    if 1 < k < labels: assert len({frozenset(t.label for t in items) for items in asked}) > 1, "the others take turns"


def test_a_class_that_runs_out_is_made_up_for_by_the_others():
    pool = [Item(f"x {i}", "x") for i in range(9)] + [Item("y", "y")]
    assert Counter(t.label for t in in_context(pool, "y", 6, "balanced")) == dict(x=5, y=1)


@pytest.mark.parametrize("how", DIVERSITY)
def test_diverse_examples_are_the_greedy_choice(how):
    rng = random.Random(4)
    pool = [Item(" ".join(rng.choices("abcdefghijkl", k=6)), "x") for _ in range(30)]
    v = tfidf([t.text for t in pool]).toarray()
    near = v @ v.T
    for r in range(10):
        chosen = [pool.index(t) for t in in_context(pool, "x", 5, "diverse", request=r, diversity=how)]
        for n in range(1, 5):
            score = [(max if how == "kcenter" else sum)(near[j, i] for i in chosen[:n]) if j not in chosen[:n] else np.inf for j in range(30)]
            assert score[chosen[n]] == pytest.approx(min(score), abs=1e-12)


@pytest.mark.parametrize("how", DIVERSITY)
def test_the_same_bag_of_words_is_no_reason_to_show_a_text_twice(how):
    pool = [Item(t, "x") for t in ("a b c", "c b a", "b a c", "b c a")]
    assert len(set(in_context(pool, "x", 4, "diverse", diversity=how))) == 4


def test_diverse_examples_differ_more_than_random_ones():
    pool = [Item(f"the room was {w} {i}", "x") for i in range(10) for w in ("warm", "warm", "warm", "tidy", "quiet")]
    shown = {s: np.mean([len({w for t in in_context(pool, "x", 3, s, request=r) for w in t.text.split()[3:4]}) for r in range(50)]) for s in ("random", "diverse")}
    assert shown["diverse"] > shown["random"] + 0.5


def test_the_same_words_are_shown_once():
    pool = [Item("a room", "x"), Item("A room!", "x"), Item("a ROOM", "y"), Item("b", "x"), Item("c", "y")]
    assert all(len({bare(t.text) for t in in_context(pool, "x", 3, s, scope="all", request=r)}) == 3 for s in STRATEGIES for r in range(20))
    assert "3 examples are asked for, the pool has 2 different texts of the label 'x'" in line_of(in_context, pool, "x", 3)
    assert "the pool has 2 different texts in all" in line_of(in_context, pool, "x", 3, scope="all", judged="a room.")


@pytest.mark.parametrize("kw, said", [
    (dict(label="gald"), "label 'gald' is not known; did you mean 'glad'?"), (dict(strategy="divers"), "did you mean 'diverse'?"), (dict(diversity="kcentre"), "did you mean 'kcenter'?"),
    (dict(scope="any"), "scope 'any' is not known"), (dict(k=-1), "-1 examples are asked for"), (dict(k=99), "lower num_icl or give a larger pool"),
])  # fmt: skip
def test_requests_nobody_can_meet_are_refused(kw, said):
    assert said in line_of(in_context, golden(), **dict(label="glad") | kw)


# ---------------------------------------------------------------- real data


@pytest.mark.slices
@pytest.mark.parametrize("name, classes, kept", [("movie_sentences", 2, (5000, 2000)), ("banking77", 77, (9999, 3079))])
def test_real_files(slices, name, classes, kept):
    train, report = load_items(slices / name, "train")
    labels = tuple(report["labels"])
    test, tested = load_items(slices / name / "test.csv", labels=labels)
    assert (report["kept"], tested["kept"]) == kept and len(labels) == classes and report["no_text"] == report["no_label"] == report["conflict"] == 0
    parts = split_items(train, dict(pool=0.2, dev=0.8), test=test)
    seen = {bare(t.text) for t in test}
    assert parts.labels == labels and not seen & {bare(t.text) for t in parts.pool + parts.dev} and 0.19 < len(parts.pool) / len(train) < 0.21
    assert statistics(train)["classes"] == classes and statistics(train)["different"] <= len(train)
    asked = [in_context(parts.pool, labels[r % 2], 4, STRATEGIES[r % 3], request=r, judged=parts.dev[r].text) for r in range(12)]
    assert all(len(a) == 4 for a in asked) and pairs(asked[0]) == pairs(in_context(parts.pool, labels[0], 4, "random", judged="x"))


@pytest.mark.slices
def test_real_labels_as_ids(slices, tmp_path):
    train, report = load_items(slices / "banking77" / "train.csv")
    names = list(report["labels"])
    (tmp_path / "ids.jsonl").write_text(jsonl([dict(question=t.text, intent=names.index(t.label), intent_text=t.label) for t in train]))
    assert pairs(load_items(tmp_path / "ids.jsonl", text_column="question", label_column="intent")[0]) == pairs(train)
