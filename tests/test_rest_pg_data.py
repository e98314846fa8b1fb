"""rlgen.rest_pg.data and .preprocess: four layouts, the target kept out of its profile, persons and times kept apart."""

import csv
import json
import random
import subprocess
import sys
from dataclasses import replace

import pytest

from helpers import line_of
from rlgen.core import jsonl
from rlgen.data import Rows, load_rows, rows_digest
from rlgen.metrics import words
from rlgen.rest_pg.data import (
    Example, copied, example_rows, leave_one_out, load_examples, load_profiles, longlamp_fields, overlap, split_time, split_users, thin_profiles,
)
from rlgen.rest_pg.data import _cut, _when, _words
from rlgen.rest_pg.preprocess import preprocess, read_layout, read_parts

Y = "Warm light, and the switch is where my hand looks for it."
GOOD = dict(x="A lamp", y=Y, P=["The chair creaks.", "A kettle with a handle."], user_id="Ann")
SHARES = dict(train=0.8, valid=0.1, test=0.1)


def write(path, rows):
    path.write_text(jsonl(rows))
    return path


def people(names, n=5, times=True) -> dict:
    "Everybody's n texts, all different."
    rng = random.Random(0)
    text = lambda: " ".join(f"w{rng.randrange(500)}" for _ in range(20))
    return {u: [dict(x=f"day {i}", text=text(), **(dict(time=str(i)) if times else {})) for i in range(n)] for u in names}


# ---------------------------------------------------------------- the record, copies


@pytest.mark.parametrize("module", ["rlgen.rest_pg.data", "rlgen.rest_pg.preprocess"])
def test_importing_is_light(module):
    code = f"import sys, {module}; print([m for m in 'torch transformers datasets pandas scipy pyarrow rlgen.rest_pg.run'.split() if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert run.stdout.strip() == "[]", run.stderr[-2000:]


def test_an_example_is_short_to_look_at_and_comes_back_from_a_file(tmp_path):
    e = Example("größer\n灯", Y * 20, ["👍 a", "b\u2028c"] * 20, "Zoë", "2020")
    assert len(repr(e)) < 140 and "40 past texts" in repr(e) and "time" not in example_rows([replace(e, time="")])[0]
    read, report = load_examples(write(tmp_path / "a.jsonl", example_rows([e])))
    assert read == [e] and report["kept"] == report["users"] == 1 and rows_digest(read) == rows_digest([e]) != rows_digest([replace(e, P=("x",))])


def test_words_are_those_of_the_metrics():
    rng = random.Random(1)
    for _ in range(300):
        text = "".join(rng.choice("aB1_-'. \n\t,é灯ß") for _ in range(30))
        for t in (text, text.encode("ascii", "ignore").decode()): assert _words(t) == (tuple(words(t)) or (t.strip(),)), repr(t)


def test_copied_counts_the_targets_runs():
    t = "a b c d e f g h"  # four runs of five
    assert [copied(t, i) for i in (t.upper(), f"so: {t} indeed", "a b c d e f g x h", "x a b c d e", "h g f e d c b a", "")] == [1, 1, 3 / 4, 1 / 4, 0, 0]
    assert copied("a b c d e", t) == 1 and copied("a b", t) == 0, "a short text is only found whole"
    assert copied("a b c", t, n=2) == 1 and copied("👍", "👍 ") == 1 and copied("👍", "👎") == 0
    assert copied("这盏灯很亮而且便宜", "都说这盏灯很亮而且便宜!") == 1 and copied("größer", "GRÖSSER") == 1
    assert copied("Größe ist gut", "GRÖẞE IST GUT") == 1, "case is folded, not only lowered"


# ---------------------------------------------------------------- rows


def save_all(folder, rows):
    "The same rows as JSONL, CSV with JSON in a cell, Parquet and saved dataset."
    from datasets import Dataset

    write(folder / "a.jsonl", rows)
    with open(folder / "b.csv", "w", newline="") as f:
        w = csv.DictWriter(f, list(rows[0]))
        w.writeheader()
        w.writerows([r | {"P": json.dumps(r["P"])} for r in rows])
    Dataset.from_list(rows).to_parquet(folder / "c.parquet")
    Dataset.from_list(rows).save_to_disk(folder / "d")
    return sorted(folder.iterdir())


@pytest.mark.parametrize("item", [lambda t: t, lambda t: {"text": t, "n": 1}, lambda t: {"title": "no", "abstract": t}])
def test_every_place_and_kind_of_item_gives_the_same_examples(tmp_path, item):
    rows = [GOOD | {"P": [item(t) for t in GOOD["P"]]}, GOOD | {"x": "Größe", "P": [item('say "hi",\nagain')]}]
    for place in save_all(tmp_path, rows):
        read, report = load_examples(place)
        assert [e.P for e in read] == [tuple(GOOD["P"]), ('say "hi",\nagain',)] and read[1].x == "Größe" and report["items"] == 3, place


def test_faults_are_dropped_and_counted(tmp_path):
    rows = [GOOD, GOOD, GOOD | {"x": " "}, GOOD | {"x": "b", "y": None}, GOOD | {"x": "c", "P": []}, GOOD | {"x": "d", "P": None}, GOOD | {"x": "e", "P": [Y.upper()]},
            GOOD | {"x": "f", "P": ["A pen.", Y, Y.replace("looks", "likes") + " And so on.", "", Y.replace("Warm", "Cold")]}, GOOD | {"user_id": 7, "time": 3}]
    read, report = load_examples(write(tmp_path / "a.jsonl", rows))
    counts = dict(rows=9, kept=3, users=2, repeated=1, empty_x=1, empty_y=1, empty_profile=3, empty_item=1, target_item=2, near_item=1)
    assert {k: report[k] for k in counts} == counts, report
    assert [e.x for e in read] == ["A lamp", "f", "A lamp"] and read[1].P == ("A pen.", Y.replace("looks", "likes") + " And so on.") and (read[2].user_id, read[2].time) == ("7", "3")
    assert any("a.jsonl:8 (P[1]): the target stands" in line for line in report["first"]) and any("a.jsonl:8 (P[4]): a near copy" in line for line in report["first"])
    assert load_examples(tmp_path / "a.jsonl", near=0.4)[1]["near_item"] == 2


@pytest.mark.parametrize("change, kw, said", [
    ({"P": ["x", Y]}, dict(on_leak="refuse"), "a.jsonl:3 (P[1]): the target stands in its own profile"), ({"P": [Y + " More of it."]}, dict(on_leak="refuse"), "a.jsonl:3 (P[0])"),
    ({"P": []}, dict(on_empty="refuse"), "a.jsonl:3: no past text"), ({"y": ""}, dict(on_empty="refuse"), "a.jsonl:3: there is nothing to write"),
    ({"x": 3}, {}, "a.jsonl:3: field 'x' is int"), ({"P": "a, b"}, {}, "a.jsonl:3: field 'P' is text, but no JSON list"), ({"P": '{"a": 1}'}, {}, "a.jsonl:3: field 'P'"),
    ({"P": {"text": "a"}}, {}, "a.jsonl:3: field 'P' is dict; expected a list"), ({"P": [3]}, {}, "a.jsonl:3 P[0]"), ({"P": [{"txt": "a"}]}, {}, "did you mean 'txt'?"),
    ({"user_id": None}, {}, "a.jsonl:3: field 'user_id' is NoneType"), ({"user_id": " "}, {}, "a.jsonl:3: field 'user_id' is empty"),
    ({}, dict(fields=dict(x="X")), "no field 'X'"), ({}, dict(fields=dict(profile="P")), "fields: no 'profile' here"), ({}, dict(fields=dict(time="year")), "no field 'year'"),
    ({}, dict(on_leak="refuze"), "did you mean 'refuse'?"), ({}, dict(on_empty="no"), "valid: drop, refuse"), ({}, dict(near=0), "near = 0"), ({}, dict(near=1.5), "near = 1.5"),
])  # fmt: skip
def test_mistakes_are_told_with_file_and_line(tmp_path, change, kw, said):
    (tmp_path / "a.jsonl").write_text(jsonl([GOOD]) + "\n" + jsonl([GOOD | {"x": "other"} | change]))
    assert said in line_of(load_examples, tmp_path / "a.jsonl", **kw)


def test_a_misnamed_column_is_met_with_the_nearest_and_nothing_left_is_an_error(tmp_path):
    write(tmp_path / "a.jsonl", [{"titel": "x", "y": "y", "P": ["p"], "user_id": 1}])
    assert "a.jsonl:1: no field 'title' (did you mean 'titel'?)" in line_of(load_examples, tmp_path / "a.jsonl", fields=dict(x="title"))
    assert "no such file" in line_of(load_examples, tmp_path / "b.jsonl") and "holds no rows" in line_of(load_examples, [])
    assert "nothing left of 1 rows (1 empty_profile; first: rows[0]" in line_of(load_examples, [GOOD | {"P": []}])


# ---------------------------------------------------------------- LongLaMP

RECORDS = dict(
    product_review_user=dict(reviewerId="A1", input="Write a review", output=Y, profile=[dict(description="d", overall="5.0", reviewText="It works.", summary="s")]),
    abstract_generation_user=dict(name="Ann", input="Write an abstract", output=Y, profile=[dict(abstract="It works.", id="3", title="t", year=2019)]),
    topic_writing_user=dict(author="u_1", input="Write a post", output=Y, profile=[dict(author="u_1", content="It works.", id="4", summary="s")]),
)


@pytest.mark.parametrize("task", RECORDS)
def test_longlamp_records(task, tmp_path):
    row = RECORDS[task]
    rows = Rows([row, row | dict(input="Again", profile=row["profile"] + [{k: Y if v == "It works." else v for k, v in row["profile"][0].items()}])])
    read, report = load_examples(rows, fields=longlamp_fields(rows))
    assert [e.P for e in read] == [("It works.",)] * 2 and report["target_item"] == 1 and read[0].user_id == next(iter(row.values())) and read[0].y == Y
    assert read_layout(list(rows), "longlamp")[0] == read


def test_longlamp_from_the_hub_keeps_its_parts(monkeypatch):
    import datasets

    asked = []
    def load_dataset(name, config, split, revision):
        asked.append((name, config, split))
        if split not in ("train", "val", "test"): raise ValueError(f"Unknown split \"{split}\". Should be one of ['train', 'val', 'test'].")
        return datasets.Dataset.from_list([RECORDS["abstract_generation_user"] | dict(name=split)])
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    parts, report = read_parts("LongLaMP/LongLaMP:abstract_generation_user", layout="longlamp")
    assert {k: [e.user_id for e in v] for k, v in parts.items()} == dict(train=["train"], valid=["val"], test=["test"]) and set(report) == set(parts)
    assert ("LongLaMP/LongLaMP", "abstract_generation_user", "val") in asked


def test_what_is_no_longlamp_record_says_so():
    for row in (dict(id=1, input="x", profile=[]), dict(name="x", input="x", output="y")): assert "no LongLaMP record" in line_of(longlamp_fields, Rows([row]))


# ---------------------------------------------------------------- leave-one-out


def test_every_text_is_a_target_once_with_the_others():
    profiles = people("AB")
    examples, report = leave_one_out(profiles)
    assert [(e.user_id, e.x, e.y) for e in examples] == [(u, t["x"], t["text"]) for u, ts in profiles.items() for t in ts]
    assert all(set(e.P) | {e.y} == {t["text"] for t in profiles[e.user_id]} and len(e.P) == 4 for e in examples) and report["items"] == 40


def test_duplicates_of_the_target_are_not_in_its_profile_and_lonely_texts_are_no_examples():
    texts = [dict(x=x, text=t) for x, t in (("a", Y), ("b", Y.upper()), ("c", "A chair."), ("A", Y + "!"), ("d", ""))]
    examples, report = leave_one_out(dict(Ann=texts, Ben=texts[:1], Cid=[texts[0], texts[3]], Dan=[]))
    assert [(e.x, e.P) for e in examples] == [("a", ("A chair.",)), ("b", ("A chair.",)), ("c", (Y, Y.upper()))]
    counts = dict(rows=8, kept=3, users=1, repeated=2, one_text=2, empty_item=1, target_item=2, empty_profile=1)
    assert {k: report[k] for k in counts} == counts, report
    assert "Ann[0] (Ann[1]): the target stands" in line_of(leave_one_out, dict(Ann=texts), on_leak="refuse")
    assert "Dan: no past text" in line_of(leave_one_out, dict(Dan=[]), on_empty="refuse")


def test_neighbours_and_the_future_stay_out():
    profiles = people("A", 6)
    texts = [t["text"] for t in profiles["A"]]
    assert [e.P for e in leave_one_out(profiles, gap=2)[0]][:2] == [tuple(texts[3:]), tuple(texts[4:])]
    past, report = leave_one_out(profiles, earlier=True)
    assert [e.P for e in past] == [tuple(texts[:i]) for i in range(1, 6)] and report["empty_profile"] == 1
    undated = people("A", 6)
    undated["A"][2]["time"] = ""
    past, report = leave_one_out(undated, earlier=True)
    assert report["undated"] == 1 and all(texts[2] not in (e.y, *e.P) for e in past)
    assert "6 undated" in line_of(leave_one_out, people("A", 6, times=False), earlier=True) and "gap = -1" in line_of(leave_one_out, profiles, gap=-1)


def test_times_sort_as_numbers_or_as_text():
    assert sorted(["10", "9", "-3.5", ""], key=_when) == ["", "-3.5", "9", "10"] and sorted(["2020-02-01", "2019-12-31"], key=_when)[0] == "2019-12-31"


def test_profiles_by_person_and_by_text_are_the_same(tmp_path):
    want = people("AB", 3)
    by_user = write(tmp_path / "u.jsonl", [dict(user_id=u, profile=[dict(title=t["x"], text=t["text"], time=int(t["time"])) for t in ts]) for u, ts in want.items()])
    by_text = write(tmp_path / "t.jsonl", [dict(who=u, ask=t["x"], text=t["text"], time=t["time"]) for i in range(3) for u, ts in want.items() for t in ts[i : i + 1]])
    a, b = load_profiles(by_user), load_profiles(by_text, fields=dict(user_id="who", x="ask"), row_is="text")
    assert {u: [{k: t[k] for k in ("x", "text", "time")} for t in ts] for u, ts in a.items()} == want and leave_one_out(a)[0] == leave_one_out(b)[0]
    assert a["B"][1]["where"].endswith("u.jsonl:2 profile[1]") and b["B"][1]["where"].endswith("t.jsonl:4")
    plain = load_profiles([dict(user_id="A", profile=["one two three", "four"])], prompt_words=1)["A"]
    assert [(t["x"], t["y"], t["text"]) for t in plain] == [("one", "two three", "one two three"), ("four", "", "four")]
    assert "no field 'title' (valid: text)" in line_of(load_profiles, [dict(user_id="A", profile=["one"])])
    assert "did you mean 'user'?" in line_of(load_profiles, by_user, row_is="users") and "prompt_words = -1" in line_of(load_profiles, by_user, prompt_words=-1)
    empty = write(tmp_path / "e.jsonl", [dict(user_id="A", profile=[]), dict(user_id="B", profile=["a", "b"])])
    assert "e.jsonl:1: no past text" in line_of(leave_one_out, load_profiles(empty, prompt_words=1), on_empty="refuse")


@pytest.mark.parametrize("text, k, x, y", [("one  two\nthree", 2, "one  two", "three"), ("one two", 2, "one two", ""), ("这盏灯很亮", 2, "这盏", "灯很亮"), ("größer, größer!", 1, "größer,", "größer!")])
def test_a_text_is_cut_after_its_first_words(text, k, x, y):
    assert _cut(text, k) == (x, y)


def test_thin_profiles_draws_for_each_example_alone():
    examples, _ = leave_one_out(people("ABC", 12))
    thin = thin_profiles(examples, 4, 0)
    assert all(len(t.P) == 4 and [p for p in e.P if p in t.P] == list(t.P) for e, t in zip(examples, thin))
    assert thin_profiles(examples[5:7], 4, 0) == thin[5:7] and thin_profiles(examples, 4, 1) != thin and thin_profiles(examples, 99) == thin_profiles(examples, 0) == examples
    assert len({t.P for t in thin}) > 30, "not the same for everybody"
    assert "profile_size = -1" in line_of(thin_profiles, examples, -1)


# ---------------------------------------------------------------- parts


def test_persons_are_in_one_part_only():
    examples, _ = leave_one_out(people([f"u{i}" for i in range(50)], 3))
    parts = split_users(examples, SHARES, 0)
    who = {k: {e.user_id for e in v} for k, v in parts.items()}
    assert [len(v) for v in who.values()] == [40, 5, 5] and len(set.union(*who.values())) == 50 and sum(map(len, parts.values())) == 150
    assert split_users(examples[::-1], SHARES, 0)["test"] == parts["test"][::-1] and split_users(examples, SHARES, 1) != parts
    assert all(v == dict(users=0, items=0, targets=0) for v in overlap(parts).values()) and len(overlap(parts)) == 3
    few = [e for e in examples if e.user_id in ("u1", "u2", "u3")]
    assert [len(v) for v in split_users(few, SHARES).values()] == [3, 3, 3]
    assert [len(v) for v in split_users(few, dict(a=0.4, b=0, c=0.3)).values()] == [3, 0, 3]
    assert "2 persons for 3 parts" in line_of(split_users, few[:6], SHARES) and "impossible" in line_of(split_users, few, dict(a=0.9, b=0.2))


def test_the_oldest_are_for_training_and_profiles_know_the_past_only():
    examples, _ = leave_one_out(people("ABC", 11))
    parts = split_time(random.Random(0).sample(examples, len(examples)), SHARES)
    assert [len(v) for v in parts.values()] == [24, 3, 3], "each person's first has nothing before it"
    times = {e.y: int(e.time) for e in examples}
    for part in parts.values(): assert all({times[p] for p in e.P} == set(range(int(e.time))) for e in part)
    for u in "ABC": assert max(int(e.time) for e in parts["train"] if e.user_id == u) < min(int(e.time) for e in parts["valid"] if e.user_id == u) < 10
    assert {e.time for e in parts["test"]} == {"10"} and overlap(parts)["train/test"] == dict(users=3, items=0, targets=0)
    assert split_time(leave_one_out(people("ABC", 11), earlier=True)[0], SHARES)["test"][0] in parts["test"]


def test_time_split_keeps_what_it_knows_nothing_of_and_cuts_first_words_alike():
    a, b, c = (Example("x", t, ["from elsewhere", "one two three", "four five six", "seven eight nine"], "A", str(i)) for i, t in enumerate(("one two three", "five six", "eight nine")))
    cut = [a, replace(b, x="four"), replace(c, x="seven")]
    assert [e.P for part in split_time(cut, dict(a=0.4, b=0.3, c=0.3)).values() for e in part] == [("from elsewhere",), ("from elsewhere", "one two three"), ("from elsewhere", "one two three", "four five six")]
    same = [replace(e, time="5") for e in cut]
    assert all(e.P == ("from elsewhere",) for part in split_time(same, dict(a=0.4, b=0.3, c=0.3)).values() for e in part), "what is of the same time isn't the past"


def test_time_split_says_what_it_misses():
    examples, _ = leave_one_out(people("AB", 4))
    assert "1 of 8 examples have no time" in line_of(split_time, [replace(examples[0], time=""), *examples[1:]], SHARES)
    assert "nothing for valid, test" in line_of(split_time, leave_one_out(people("AB", 3))[0], SHARES)
    assert [len(v) for v in split_time(leave_one_out(people("A", 3) | people("B", 8))[0], SHARES).values()] == [7, 1, 1], "who has written little is for training only"


def test_overlap_sees_persons_items_and_targets():
    train, test = [Example(**GOOD)], [Example("A LAMP", Y + "!", ["z"], "Ben"), Example("q", "The chair creaks", ["z"], "Ann"), Example("r", "new", ["z"], "Cid")]
    assert overlap(dict(train=train, valid=[], test=test)) == {"train/test": dict(users=1, items=1, targets=2)}


# ---------------------------------------------------------------- preprocess


def test_overlapping_passages_do_not_leak():
    "Windows over a running text: no run of the target's words stands in the profile, whatever the step."
    rng = random.Random(3)
    text = [f"w{rng.randrange(3000)}" for _ in range(600)]
    for step in (20, 30, 39):
        rows = [dict(author="A", text=" ".join(text[i : i + 40])) for i in range(0, 560, step)]
        plain, _ = load_both(rows, near=0.8, gap=0)
        safe, report = load_both(rows)
        assert max(copied(e.y, p) for e in plain for p in e.P) > 0 or step == 39
        assert len(safe) == len(rows) and all(copied(e.y, p) == 0 for e in safe for p in e.P), step
    dense, report = load_both([dict(author="A", text=" ".join(text[i : i + 40])) for i in range(0, 560, 7)])
    assert report["near_item"] > 100 and max(copied(e.y, p) for e in dense for p in e.P) < 0.05, "more than the next ones overlap"


def load_both(rows, **kw): return read_layout(rows, "passages", fields=dict(user_id="author"), prompt_words=8, **kw)


def test_preprocess_writes_what_load_examples_reads(tmp_path):
    rows = [dict(user_id=u, profile=[dict(title=t["x"], text=t["text"], time=t["time"]) for t in ts]) for u, ts in people("ABCDEFGHIJ", 6).items()]
    report = preprocess(write(tmp_path / "a.jsonl", rows), tmp_path / "out", layout="profiles", profile_size=3)
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == json.loads(json.dumps(report))
    assert {k: v["examples"] for k, v in report["parts"].items()} == dict(train=48, valid=6, test=6) and report["left_out"] == 0
    for name in ("train", "valid", "test"):
        read, again = load_examples(tmp_path / "out", name)
        assert len(read) == report["parts"][name]["examples"] and all(len(e.P) == 3 for e in read) and not again["first"]
    before = sorted(p.stat().st_mtime_ns for p in tmp_path.rglob("*"))
    assert "exists already" in line_of(preprocess, tmp_path / "a.jsonl", tmp_path / "out", layout="profiles")
    assert before == sorted(p.stat().st_mtime_ns for p in tmp_path.rglob("*"))
    by_time = preprocess(tmp_path / "a.jsonl", tmp_path / "later", layout="profiles", split="time")
    assert by_time["parts"]["test"] == dict(examples=10, users=10, past_texts=5.0) and by_time["read"]["all"]["empty_profile"] == 10
    assert preprocess(tmp_path / "out", tmp_path / "kept")["parts"] == report["parts"], "a folder's parts are kept"
    merged = preprocess(tmp_path / "out" / "train.jsonl", tmp_path / "again", shares=[0.5, 0.25, 0.25])
    assert {k: v["users"] for k, v in merged["parts"].items()} == dict(train=4, valid=2, test=2)


@pytest.mark.parametrize("kw, said", [
    (dict(layout="profile"), "did you mean 'profiles'?"), (dict(split="user"), "did you mean 'users'?"), (dict(shares=(0.5, 0.5)), "expected three"), (dict(prompt_words=3), "profiles and passages"),
    (dict(gap=1), "profiles and passages"), (dict(profile_size=-1), "profile_size = -1"), (dict(split="time"), "no time"), (dict(split="ready"), "no parts of their own"), (dict(fields=dict(z="y")), "fields: no 'z'"),
])  # fmt: skip
def test_preprocess_refuses(tmp_path, kw, said):
    rows = example_rows(leave_one_out(people("ABCD", times=False))[0])
    assert said in line_of(preprocess, rows, tmp_path / "out", **kw) and not any(tmp_path.iterdir())


def test_texts_under_another_name_and_without_requests(tmp_path):
    "What the message says is what works."
    rows = [dict(user_id=f"p{u}", texts=[f"note {u} {k} about a {w} garden" for k, w in enumerate(("green", "small", "wild"))]) for u in range(4)]
    told = line_of(read_layout, rows, "profiles")
    assert "no field 'profile'" in told and "P (the list of texts)" in told
    assert "prompt_words" in line_of(read_layout, rows, "profiles", fields=dict(P="texts"))
    examples, report = read_layout(rows, "profiles", fields=dict(P="texts"), prompt_words=3)
    assert len(examples) == 12 and examples[0].x == "note 0 0" and examples[0].y == "about a green garden" and len(examples[0].P) == 2


def test_a_folder_without_all_parts_says_what_to_do(tmp_path):
    (tmp_path / "in").mkdir()
    write(tmp_path / "in" / "train.jsonl", [GOOD | dict(user_id=u, x=u) for u in "ABC"])
    said = line_of(preprocess, tmp_path / "in", tmp_path / "out")
    assert "splits there: train" in said and "split users" in said and not (tmp_path / "out").exists()
    assert preprocess(tmp_path / "in", tmp_path / "out", split="users")["parts"]["test"]["users"] == 1
    assert "no such file" in line_of(preprocess, tmp_path / "on.jsonl", tmp_path / "new")


# ---------------------------------------------------------------- real data


@pytest.mark.slices
def test_real_passages(slices, tmp_path):
    "Write on in this author's manner: x the first words of a passage, y the rest, P other passages of the author."
    source = slices / "novels" / "passages_by_author.jsonl"
    report = preprocess(source, tmp_path / "out", layout="passages", fields=dict(user_id="author"), prompt_words=12, profile_size=20)
    assert report["read"]["all"]["kept"] == report["read"]["all"]["rows"] == 1650 and sum(p["users"] for p in report["parts"].values()) == 17
    assert all(v == dict(users=0, items=0, targets=0) for v in report["overlap"].values()) and min(p["examples"] for p in report["parts"].values()) >= 50
    texts = {r["text"]: (r["author"], i) for i, r in enumerate(load_rows(source))}
    for e in load_examples(tmp_path / "out", "test")[0]:
        who, i = texts[f"{e.x} {e.y}"]
        places = [texts[p] for p in e.P]
        assert len(e.x.split()) == 12 and len(places) == 20 and all(a == who == e.user_id and abs(j - i) > 1 for a, j in places)
        assert all(copied(e.y, p) < 0.05 for p in e.P)
