"""rlgen.data: loaders, four formats of comparisons, splits, leaks."""

import csv
import gzip
import json
import os
import random
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from helpers import line_of
from rlgen.core import jsonl
from rlgen.data import (
    Preference, Rows, get_field, join_reply, leak_audit, load_preferences, load_prompts, load_rows,
    preference_rows, rows_digest, split_by_prompt, split_turns,
)

ROWS = [{"text": "one, two"}, {"text": 'a "quoted"\nline'}, {"text": "größer"}]
TALK = "\n\nHuman: Hi!\n\nAssistant: Hello.\n\nHuman: Rain?\n\nAssistant:"
GOOD = {"prompt": "2 + 2 =", "chosen": "4", "rejected": "5"}


def write(path, rows):
    path.write_text(jsonl(rows))
    return path


def in_fresh_python(code, **env):
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=os.environ | env)
    assert run.returncode == 0, run.stderr[-2000:]
    return run.stdout.strip()


# ---------------------------------------------------------------- the fixtures themselves


def test_network_is_blocked_but_loopback_is_not(no_network):
    with pytest.raises(OSError, match="no network"): socket.create_connection(("192.0.2.1", 80), timeout=1)
    assert no_network == [("192.0.2.1", 80)]
    no_network.clear()
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        socket.create_connection(server.getsockname(), timeout=5).close()


def test_importing_is_light():
    heavy = "torch transformers datasets pandas numpy scipy pyarrow"
    assert in_fresh_python(f"import sys, rlgen.data; print([m for m in '{heavy}'.split() if m in sys.modules])") == "[]"


# ---------------------------------------------------------------- rows


def save_all(folder, rows):
    "The same rows in every kind of place."
    from datasets import Dataset, DatasetDict

    write(folder / "a.jsonl", rows)
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(jsonl(rows).encode()))
    with open(folder / "c.csv", "w", newline="") as f:
        w = csv.DictWriter(f, ["text"])
        w.writeheader()
        w.writerows(rows)
    (folder / "d.csv.gz").write_bytes(gzip.compress((folder / "c.csv").read_bytes()))
    Dataset.from_list(rows).to_parquet(folder / "e.parquet")
    Dataset.from_list(rows).save_to_disk(folder / "f")
    DatasetDict(train=Dataset.from_list(rows)).save_to_disk(folder / "g")
    (folder / "h").mkdir()
    write(folder / "h" / "train.jsonl", rows)
    return sorted(p for p in folder.iterdir())


def test_every_place_gives_the_same_rows_and_digest(tmp_path):
    places = save_all(tmp_path, ROWS)
    assert len(places) == 8
    for place in places: assert load_rows(place) == ROWS, place
    assert len({rows_digest(load_rows(p)) for p in places}) == 1


def test_digest_sees_content_and_order():
    assert len({rows_digest(r) for r in (ROWS, ROWS[::-1], ROWS[:2], [*ROWS[:2], {"text": "grosser"}])}) == 4
    a, b = Preference("p", "x", "y"), Preference("p", "y", "x")
    assert rows_digest([a]) == rows_digest([Preference("p", "x", "y")]) != rows_digest([b])


def test_lines_are_an_editors_lines(tmp_path):
    (tmp_path / "a.jsonl").write_text('\n{"text": "x"}\n\n{"text": "y"}\n')
    (tmp_path / "b.csv").write_text('\ufefftext,n\n"two\nlines",1\n\nlast,2\n', encoding="utf-8")
    (tmp_path / "c.txt").write_text("first\n\nthird\n")
    assert load_rows(tmp_path / "a.jsonl").lines == [2, 4]
    assert (rows := load_rows(tmp_path / "b.csv")).lines == [2, 5] and rows[1] == {"text": "last", "n": "2"}
    assert (rows := load_rows(tmp_path / "c.txt")).lines == [1, 3] and rows[1] == {"text": "third"}
    assert rows.where(1) == f"{tmp_path}/c.txt:3"


def test_csv_guesses_no_types(tmp_path):
    (tmp_path / "a.csv").write_text("text,label\nNA,007\n,1e5\n")
    assert load_rows(tmp_path / "a.csv") == [{"text": "NA", "label": "007"}, {"text": "", "label": "1e5"}]


@pytest.mark.parametrize("name, content, said", [
    ("a.csv", "text,label\nx,0\na, b,0\n", "a.csv:3: more or fewer cells"),
    ("a.csv", "text,label\nx\n", "a.csv:2: more or fewer cells"),
    ("a.csv", 'text,label\n"never closed,0\n', "can't be read as .csv"),
    ("a.csv", "text,label\n", "holds no rows"),
    ("a.jsonl", '{"text": "x"}\n{"text": oops}\n', "a.jsonl:2: not JSON"),
    ("a.jsonl", "[1, 2]\n", "a.jsonl:1: list instead of an object"),
    ("a.jsonl", "", "holds no rows"),
    ("a.jsonl.gz", "not gzip", "can't be read as"),
    ("a.parquet", "not parquet", "can't be read as .parquet"),
    ("a.xlsx", "PK", "expected .jsonl, .csv"),
    ("a.txt", "\n\n", "holds no rows"),
])  # fmt: skip
def test_broken_files(tmp_path, name, content, said):
    (tmp_path / name).write_text(content)
    assert said in line_of(load_rows, tmp_path / name)


def test_torn_gzip_and_wrong_encoding(tmp_path):
    whole = gzip.compress(jsonl(ROWS * 500).encode())
    for k, bad in enumerate((whole[: len(whole) // 2], whole[:40] + b"\0" * 20 + whole[60:])):
        (tmp_path / f"{k}.jsonl.gz").write_bytes(bad)
        assert f"{k}.jsonl.gz" in line_of(load_rows, tmp_path / f"{k}.jsonl.gz")
    (tmp_path / "latin.csv").write_bytes("text\ngrößer\n".encode("latin-1"))
    assert "UTF-8" in line_of(load_rows, tmp_path / "latin.csv")


def test_splits(tmp_path):
    from datasets import Dataset, DatasetDict

    DatasetDict(train=Dataset.from_list(ROWS), test=Dataset.from_list(ROWS[:1])).save_to_disk(tmp_path / "saved")
    (tmp_path / "plain").mkdir()
    for name in ("train", "valid"): write(tmp_path / "plain" / f"{name}.jsonl", ROWS)
    assert len(load_rows(tmp_path / "saved", "test")) == 1 and len(load_rows(tmp_path / "plain", "valid")) == 3
    assert load_rows(tmp_path / "saved").where(1) == f"{tmp_path}/saved:train[1]"
    assert "splits there: test, train" in line_of(load_rows, tmp_path / "saved", "valid")
    assert "splits there: train, valid" in line_of(load_rows, tmp_path / "plain", "test")
    assert "no split 'test'" in line_of(load_rows, tmp_path / "plain" / "train.jsonl", "test")
    assert load_rows(tmp_path / "plain" / "valid.jsonl", "valid") == ROWS
    (tmp_path / "plain" / "train.csv").write_text("text\nx\n")
    assert "twice (train.csv, train.jsonl)" in line_of(load_rows, tmp_path / "plain")


def test_folders_that_hold_nothing(tmp_path):
    assert "neither a dataset of save_to_disk" in line_of(load_rows, tmp_path)
    (tmp_path / "state.json").write_text("{}")
    assert "save it again" in line_of(load_rows, tmp_path)


def test_relative_paths(tmp_path, monkeypatch):
    (tmp_path / "root" / "nbs").mkdir(parents=True)
    (tmp_path / "root" / "settings.ini").write_text("[DEFAULT]\nlib_name = rlgen\n")
    write(tmp_path / "root" / "a.jsonl", ROWS)
    write(tmp_path / "root" / "nbs" / "b.jsonl", ROWS)
    monkeypatch.delenv("RLGEN_ROOT", raising=False)
    monkeypatch.chdir(tmp_path / "root" / "nbs")
    assert load_rows("a.jsonl") == load_rows("b.jsonl") == ROWS


def test_missing_paths_never_ask_the_hub(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: pytest.fail("asked the hub"))
    write(tmp_path / "pairs.jsonl", ROWS)
    assert "did you mean 'pairs.jsonl'" in line_of(load_rows, tmp_path / "pears.jsonl")
    for name in ("./saved", "~/nowhere", "data/pairs.jsonl.gz", "test.csv", "a/b/c", "a b"): assert "no such file or folder" in line_of(load_rows, name)
    assert "no data named" in line_of(load_rows, "")


# ---------------------------------------------------------------- the hub


def test_hub_names_reach_load_dataset(monkeypatch):
    import datasets

    seen = []
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: seen.append((a, k)) or datasets.Dataset.from_list(ROWS))
    rows = load_rows("openai/summarize_from_feedback:comparisons@refs/convert/parquet", "validation")
    assert rows == ROWS and rows.where(2) == "openai/summarize_from_feedback:comparisons@refs/convert/parquet:validation[2]"
    load_rows("Anthropic/hh-rlhf", "train[:10]")
    assert seen == [(("openai/summarize_from_feedback", "comparisons"), dict(split="validation", revision="refs/convert/parquet")),
                    (("Anthropic/hh-rlhf", None), dict(split="train[:10]", revision=None))]  # fmt: skip


def test_a_configuration_may_be_a_folder(tmp_path, monkeypatch):
    "The layout of refs/convert/parquet: <configuration>/<split>/0000.parquet, and no card that names configurations."
    import datasets

    for config, split, rows in (("comparisons", "train", ROWS), ("comparisons", "validation", ROWS[:1]), ("axis", "test", ROWS[:2])):
        (tmp_path / "repo" / config / split).mkdir(parents=True)
        datasets.Dataset.from_list(rows).to_parquet(tmp_path / "repo" / config / split / "0000.parquet")
    real, kw = datasets.load_dataset, dict(cache_dir=str(tmp_path / "cache"))
    monkeypatch.setattr(datasets, "load_dataset", lambda name, *a, revision, **k: real(str(tmp_path / "repo"), *a, **k, **kw))
    assert load_rows("a/b:comparisons@refs/convert/parquet") == ROWS and load_rows("a/b:comparisons", "validation") == ROWS[:1]
    assert load_rows("a/b:axis", "test") == ROWS[:2]
    assert "splits there: ['train', 'validation']" in line_of(load_rows, "a/b:comparisons", "test").replace("Splits", "splits")
    assert "BuilderConfig 'other' not found" in line_of(load_rows, "a/b:other")


def test_hub_switched_off_says_so_at_once():
    start = time.monotonic()
    said = line_of(load_rows, "Anthropic/hh-rlhf")
    assert said.startswith("Anthropic/hh-rlhf: no such file or folder here, and the hub can't be reached") and "give a local folder or file instead" in said
    assert time.monotonic() - start < 10


def test_hub_troubles_get_a_remedy(monkeypatch):
    import datasets

    def raising(e):
        def load_dataset(*a, **k): raise e
        return load_dataset

    for e, said in [
        (RuntimeError("Dataset scripts are no longer supported, but found hh.py"), "use the converted copy: a/b:c@refs/convert/parquet"),
        (datasets.exceptions.DatasetNotFoundError("Dataset 'a/b' is a gated dataset on the Hub."), "HF_TOKEN"),
        (datasets.exceptions.DatasetNotFoundError("Dataset 'a/b' doesn't exist on the Hub or cannot be accessed."), "no such file or folder here"),
        (ValueError("Unknown split \"x\". Should be one of ['train', 'test']."), "Splits there: ['train', 'test']"),
        (ValueError("Config name is missing.\nPlease pick one among: ['main', 'socratic']"), "['main', 'socratic']"),
    ]:  # fmt: skip
        monkeypatch.setattr(datasets, "load_dataset", raising(e))
        assert said in line_of(load_rows, "a/b:c")


ASK = """
import time
from rlgen.core import RlgenError
from rlgen.data import load_rows
start = time.monotonic()
try: load_rows("some/set")
except RlgenError as e: print(f"{time.monotonic() - start:.0f} {e}")
"""


class Gate(BaseHTTPRequestHandler):
    "A hub that lets nobody in."

    def do_GET(self):
        self.send_response(403)
        self.send_header("X-Error-Code", "GatedRepo")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, *a): pass


@pytest.fixture
def gated_hub():
    server = HTTPServer(("127.0.0.1", 0), Gate)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_no_network_fails_quickly(tmp_path):
    with socket.socket() as s:  # a port where nobody listens
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    seconds, said = in_fresh_python(ASK, HF_HUB_OFFLINE="0", HF_ENDPOINT=f"http://127.0.0.1:{port}", HF_HOME=str(tmp_path)).split(" ", 1)
    assert int(seconds) < 10 and "the hub can't be reached" in said


def test_gated(gated_hub, tmp_path):
    said = in_fresh_python(ASK, HF_HUB_OFFLINE="0", HF_ENDPOINT=gated_hub, HF_HOME=str(tmp_path))
    assert "gated" in said and "HF_TOKEN" in said


# ---------------------------------------------------------------- fields, turns, replies


@pytest.mark.parametrize("row, said", [
    ({}, "no field 'chosen'"), ({"chosn": "x"}, "did you mean 'chosn'"), ({"chosen": None}, "is NoneType"), ({"chosen": 3}, "is int"),
    ({"chosen": ""}, "is empty"), ({"chosen": " \n"}, "is empty"), ({"chosen": ["x"]}, "is list"), ({"chosen": True}, "is bool"),
])  # fmt: skip
def test_get_field(row, said):
    message = line_of(get_field, Rows([row], "f.jsonl", [8]), 0, "chosen")
    assert message.startswith("f.jsonl:8: ") and said in message and "expected text" in message


def test_nested_and_dotted_fields():
    rows = Rows([{"info": {"post": "a"}, "x.y": "b", "text": "c", "n": 0}])
    assert [get_field(rows, 0, n) for n in ("info.post", "x.y")] == ["a", "b"] and get_field(rows, 0, "n", int) == 0
    assert "no field 'text.more'" in line_of(get_field, rows, 0, "text.more")


def test_turns_join_to_the_prompt():
    assert split_turns(TALK) == ["\n\nHuman: Hi!", "\n\nAssistant: Hello.", "\n\nHuman: Rain?", "\n\nAssistant:"]
    assert split_turns("plain\n\ntext") == ["plain\n\ntext"]
    rng = random.Random(0)
    for _ in range(200):
        text = "".join(rng.choice(["\n\nHuman:", "\n\nAssistant:", "\n", " a", "Human: "]) for _ in range(rng.randrange(1, 12)))
        assert "".join(split_turns(text)) == text


@pytest.mark.parametrize("end", ["Assistant:", "TL;DR:", "A: ", "A:\n"])
@pytest.mark.parametrize("reply", [" yes", "  yes", "\nyes", " yes "])
def test_cut_and_join_give_the_original(end, reply):
    p = load_preferences([{"prompt": end, "chosen": reply, "rejected": " no"}])[0][0]
    assert join_reply(p.prompt, p.chosen) == end + reply


# ---------------------------------------------------------------- comparisons


def test_dialogues():
    cue = "\n\nAssistant:"
    rows = [
        dict(chosen=TALK + " Yes.", rejected=TALK + " No."),
        dict(chosen=TALK + " Yes.", rejected=TALK + " No."),
        dict(chosen=TALK + " Yes.", rejected=TALK + " Yes."),
        dict(chosen=TALK + " Yes.", rejected=TALK + " "),
        dict(chosen=TALK + " Yes.", rejected="\n\nHuman: Snow?\n\nAssistant: No."),
        dict(chosen=TALK + " Yes.\n\nHuman: Oh", rejected=TALK + " No."),
        dict(chosen="\n\nHuman: Hi!" + cue + " Hello.", rejected=TALK + " Hello."),
    ]
    kept, report = load_preferences(rows)
    assert kept == [Preference(TALK, "Yes.", "No.")] and kept[0].turns == tuple(split_turns(TALK))
    assert report == dict(rows=7, kept=1, equal=1, duplicate=1, prompt_mismatch=2, human_last=1, empty_reply=1, not_a_post=0)
    assert "rows[1]: field 'chosen' has no '\\n\\nAssistant:'" in line_of(load_preferences, [rows[0], dict(chosen="Yes.", rejected="No.")])


def test_plain_and_saved_again(tmp_path):
    from datasets import Dataset

    kept, report = load_preferences([GOOD, GOOD | {"prompt": TALK, "id": 7}, GOOD, GOOD | {"chosen": "5"}])
    assert (report["kept"], report["duplicate"], report["equal"]) == (2, 1, 1) and kept[1].id == "7" and len(kept[0].id) == 16
    Dataset.from_list(preference_rows(kept)).save_to_disk(tmp_path / "saved")
    write(tmp_path / "pairs.jsonl", preference_rows(kept))
    for place in ("saved", "pairs.jsonl"): assert load_preferences(tmp_path / place)[0] == kept


def message(role, content): return {"role": role, "content": content}


def test_conversations():
    ask, yes, no = [message("user", "Rain?")], [message("assistant", "Yes.")], [message("assistant", "No.")]
    shapes = [dict(prompt=ask, chosen=yes, rejected=no), dict(chosen=ask + yes, rejected=ask + no), dict(prompt=ask, chosen=ask + yes, rejected=ask + no),
              dict(prompt="Rain?", chosen=yes, rejected=no), dict(prompt="Rain?", chosen=ask + yes, rejected=ask + no)]  # fmt: skip
    expected = Preference("\n\nHuman: Rain?\n\nAssistant:", "Yes.", "No.")
    for s in shapes: assert load_preferences([s])[0] == [expected]
    system = load_preferences([dict(prompt=[message("system", "Be brief."), *ask], chosen=yes, rejected=no)])[0][0]
    assert system.turns == ("\n\nSystem: Be brief.", "\n\nHuman: Rain?", "\n\nAssistant:") and "".join(system.turns) == system.prompt
    other = dict(chosen=[message("user", "Snow?"), *yes], rejected=ask + no)
    assert load_preferences([shapes[0], other])[1]["prompt_mismatch"] == 1
    quoting = load_preferences([dict(prompt=[message("user", "What is '\n\nHuman: x'?")], chosen=yes, rejected=no)])[0]
    assert len(quoting[0].turns) == 2 and load_preferences(preference_rows(quoting))[0] == quoting


@pytest.mark.parametrize("bad", [
    [message("user", "Rain?")], [message("bot", "Yes.")], [message("assistant", "")], [message("assistant", None)], ["Yes."], [], "Yes.",
])  # fmt: skip
def test_bad_conversations(tmp_path, bad):
    good = dict(prompt=[message("user", "Rain?")], chosen=[message("assistant", "Yes.")], rejected=[message("assistant", "No.")])
    p = write(tmp_path / "talks.jsonl", [good, good | {"rejected": bad}])
    assert "talks.jsonl:2: " in line_of(load_preferences, p)


POST = dict(info=dict(id="t3_1", post="I lost {my} key.", title="Locked out", subreddit="tifu"), choice=1,
            summaries=[{"text": " A story.", "note": None}, {"text": " Lost my key.", "note": None}])  # fmt: skip


def test_tldr():
    news = POST | {"info": {"id": "x", "site": "cnn", "post": None, "article": "News."}}
    bare = POST | {"info": {"post": "Just a post."}, "choice": 0}
    kept, report = load_preferences([POST, news, bare])
    assert kept[0].prompt == "SUBREDDIT: r/tifu\nTITLE: Locked out\nPOST: I lost {my} key.\nTL;DR:" and report["not_a_post"] == 1
    assert (kept[0].chosen, kept[0].rejected) == ("Lost my key.", "A story.") and join_reply(kept[0].prompt, kept[0].chosen).endswith("TL;DR: Lost my key.")
    assert kept[1].prompt == "POST: Just a post.\nTL;DR:" and kept[1].chosen == "A story."
    assert "no place for the post" in line_of(load_preferences, [POST], template="{pst} TL;DR:")
    assert load_preferences([POST], template="{post}\n\nTL;DR:")[0][0].prompt == "I lost {my} key.\n\nTL;DR:"


@pytest.mark.parametrize("change, said", [
    ({"choice": 2}, "expected 0 or 1"), ({"choice": -1}, "expected 0 or 1"), ({"choice": "1"}, "'choice' is str"), ({"summaries": [{"text": "x"}]}, "two objects"),
    ({"summaries": [{"text": "x"}, {"text": ""}]}, "two objects"), ({"info": {"post": ""}}, "'info.post' is empty"), ({"info": {"title": "x"}}, "no field 'info.post'"),
])  # fmt: skip
def test_bad_tldr(tmp_path, change, said):
    p = write(tmp_path / "batch3.json", [POST, POST | change])
    message = line_of(load_preferences, p)
    assert "batch3.json:2: " in message and said in message


def test_bad_rows_are_told_with_file_and_line(tmp_path):
    for bad in ({"prompt": "x", "chosen": "y"}, GOOD | {"rejected": ""}, GOOD | {"prompt": 3}, GOOD | {"chosen": None}):
        p = tmp_path / "pairs.jsonl"
        p.write_text(jsonl([GOOD]) + "\n\n" + json.dumps(bad) + "\n")
        assert "pairs.jsonl:4: " in line_of(load_preferences, p)
    said = line_of(load_preferences, [{"question": "x", "answer": "y"}])
    assert "answer, question" in said and "chosen and rejected" in said
    assert "nothing left of 2 rows (2 equal)" in line_of(load_preferences, [GOOD | {"chosen": "5"}] * 2)
    assert "no rows" in line_of(load_preferences, [])


def test_load_prompts(tmp_path):
    assert load_prompts(write(tmp_path / "a.jsonl", [{"id": 1, "prompt": "x", "text": "y"}])) == ["x"]
    assert load_prompts(write(tmp_path / "b.jsonl", [POST]), column="info.post") == ["I lost {my} key."]
    assert "a.jsonl:1: no field 'txt' (did you mean 'text'?)" in line_of(load_prompts, tmp_path / "a.jsonl", column="txt")
    assert "no field 'prompt'" in line_of(load_prompts, tmp_path / "b.jsonl")


# ---------------------------------------------------------------- splits and leaks


def test_split_keeps_prompts_together_and_moves_no_row():
    records = [Preference(f"prompt {i // 3}", f"a{i}", "b") for i in range(3000)]
    shares = {"train": 0.7, "valid": 0.1, "test": 0.1}
    parts = split_by_prompt(records, shares, seed=0)
    sides = {name: {p.prompt for p in part} for name, part in parts.items()}
    assert not (sides["train"] & sides["test"] or sides["train"] & sides["valid"] or sides["valid"] & sides["test"])
    assert abs(len(parts["train"]) / 3000 - 0.7) < 0.05 and sum(map(len, parts.values())) < 3000
    more = split_by_prompt([Preference("new", "a", "b"), *records[::-1]], shares, seed=0)
    for name in shares: assert {p.id for p in parts[name]} <= {p.id for p in more[name]}
    wider = split_by_prompt(records, shares | {"extra": 0.1}, seed=0)
    assert all(wider[name] == parts[name] for name in shares)
    assert split_by_prompt(records, shares, seed=1) != parts


def test_split_takes_texts_dicts_and_keys():
    texts = [f"text {i}" for i in range(100)]
    halves = split_by_prompt(texts, {"a": 0.5, "b": 0.5}, seed=3)
    assert sorted(halves["a"] + halves["b"]) == sorted(texts)
    assert split_by_prompt([{"prompt": t} for t in texts], {"a": 0.5, "b": 0.5}, seed=3)["a"] == [{"prompt": t} for t in halves["a"]]
    by_user = split_by_prompt([(u, i) for u in texts for i in range(2)], {"a": 0.5, "b": 0.5}, seed=3, key=lambda r: r[0])
    assert [u for u, i in by_user["a"] if i == 0] == halves["a"]
    assert sum(len(v) for v in split_by_prompt(texts, {k: 0.1 for k in "abcdefghij"}, seed=0).values()) == 100


@pytest.mark.parametrize("fractions", [{}, {"a": 0.9, "b": 0.2}, {"a": -0.1}, {"a": 1.1}, {"a": float("nan")}, {"a": "0.5"}])
def test_impossible_splits(fractions):
    assert "impossible" in line_of(split_by_prompt, ["x"], fractions, seed=0)


def words(rng, n): return [f"w{rng.randrange(3000)}" for _ in range(n)]


def test_leaks_are_found():
    rng = random.Random(0)
    train = [" ".join(words(rng, 60)) for _ in range(300)]
    half = train[5].split()[:40] + words(rng, 20)
    test = [" ".join(words(rng, 60)) for _ in range(50)]
    test[3], test[7], test[9], test[11] = train[20].upper() + " !", "So: " + train[30], " ".join(half), "short text"
    test[13] = " ".join(train[6].split()[:20] + words(rng, 40))
    audit = leak_audit(train, test)
    assert (audit["train"], audit["test"], audit["exact"], audit["near"], audit["leaked"]) == (300, 50, 1, 2, 0.06)
    assert [(e["test"], e["train"]) for e in audit["examples"]] == [(3, 20), (7, 30), (9, 5)]
    assert audit["examples"][2]["share"] == pytest.approx(33 / 53, abs=1e-4)
    assert leak_audit(train, test, threshold=0.2)["near"] == 3
    assert leak_audit(["short, text"], test)["exact"] == 1
    assert leak_audit([], test)["leaked"] == 0
    assert "3 of 50 test texts" in line_of(leak_audit, train, test, allow=0.0) and leak_audit(train, test, allow=0.06) == audit
    assert "without test texts" in line_of(leak_audit, train, [])


def test_templates_are_no_leak():
    rng, head = random.Random(1), "Summarise the following post in one sentence and leave out all that does not matter to its writer "
    train, test = ([head + " ".join(words(rng, 12)) for _ in range(n)] for n in (200, 100))
    assert leak_audit(train, test)["leaked"] == 0
    assert leak_audit([*train, test[4] + " indeed"], test)["near"] == 1


def test_leak_audit_is_fast():
    rng = random.Random(2)
    train, test = ([" ".join(words(rng, 60)) for _ in range(n)] for n in (10_000, 1_000))
    start = time.monotonic()
    leak_audit(train, test)
    assert time.monotonic() - start < 20  # under a second on an idle core


# ---------------------------------------------------------------- real data


@pytest.mark.slices
def test_real_dialogues(slices):
    source = slices / "hh_rlhf_helpful" / "pairs.jsonl.gz"
    kept, report = load_preferences(source)
    assert report == dict(rows=2354, kept=2339, equal=2, duplicate=0, prompt_mismatch=9, human_last=0, empty_reply=4, not_a_post=0)
    originals = {(r["chosen"], r["rejected"]) for r in load_rows(source)}
    assert all((join_reply(p.prompt, p.chosen), join_reply(p.prompt, p.rejected)) in originals for p in kept)
    assert all("".join(p.turns) == p.prompt and p.turns[-1] == "\n\nAssistant:" for p in kept)
    assert load_preferences(preference_rows(kept))[0] == kept

    def leaked(key):
        parts = split_by_prompt(kept, {"train": 0.8, "test": 0.2}, seed=0, key=key)
        return leak_audit([p.prompt for p in parts["train"]], [p.prompt for p in parts["test"]])["leaked"]

    assert leaked(lambda p: p.turns[0]) < leaked(None) < 0.1  # one talk, cut off at different turns


@pytest.mark.slices
def test_real_tables(slices):
    sizes = {"banking77": (10003, 3080), "movie_sentences": (5000, 2000), "gsm8k": (3000, 500)}
    assert {name: tuple(len(load_rows(slices / name, s)) for s in ("train", "test")) for name in sizes} == sizes
    assert len(load_rows(slices / "convai2", "valid")) == 800
    assert len(load_prompts(slices / "passages" / "wikipedia_sentences.txt")) == 14750
    assert len({r["label"] for r in load_rows(slices / "banking77")}) == 77


@pytest.mark.slices
def test_models_lie_there(models_dir):
    assert (models_dir / "stories260k" / "config.json").is_file()
