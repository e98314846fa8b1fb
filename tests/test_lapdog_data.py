"""rlgen.lapdog.data: stories and dialogues read and checked, persons kept apart."""

import csv
import gzip
import json
import random
import subprocess
import sys
from dataclasses import FrozenInstanceError, replace

import pytest

from helpers import line_of
from rlgen.core import jsonl
from rlgen.data import Rows, rows_digest
from rlgen.lapdog.data import (
    Dialogue, Story, as_question, as_rows, check_gold, load_dialogues, load_stories, overlap, split_personas,
)

ASKED = "persona: i like tea. i sail. context:  Q: hello ? R: hi . Q: what now ?"
TALK = dict(question=ASKED, answers=["let us sail ."])
TALE = dict(id="s0", title="The boat", text="A boat lay in the bay.")
SHARES = dict(train=0.8, valid=0.1, test=0.1)


def write(path, rows):
    path.write_text(jsonl(rows))
    return path


def people(n, each=3) -> list[Dialogue]:
    "Dialogues of n persons, the persona's sentences in a new order each time."
    rng = random.Random(0)
    return [Dialogue(f"{i}-{j}", as_question(" ".join(rng.sample([f"i am person {i}.", "i like tea.", "i sail."], 3)), [f"Q: {i} or {j} ?"]), [f"{i} is the number of my boat {j}"])
            for j in range(each) for i in range(n)]


# ---------------------------------------------------------------- records


@pytest.mark.parametrize("module", ["rlgen.lapdog.data", "rlgen.lapdog.reward"])
def test_importing_is_light(module):
    code = f"import sys, {module}; print([m for m in 'torch transformers datasets pandas pyarrow sacrebleu rouge_score faiss'.split() if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert run.stdout.strip() == "[]", run.stderr[-2000:]


@pytest.mark.parametrize("question, persona, turns", [
    (ASKED, "i like tea. i sail.", ("Q: hello ?", "R: hi .", "Q: what now ?")),
    ("persona: a FAQ: b. my Q:uote. context: Q: what context: do you mean ?", "a FAQ: b. my Q:uote.", ("Q: what context: do you mean ?",)),
    ("persona: i sail.", "i sail.", ()), ("persona: i sail. context:", "i sail.", ()), ("context: Q: hi ?", "", ("Q: hi ?",)), ("persona: context: R: hi .\n\nQ: so ?", "", ("R: hi .", "Q: so ?")),
    ("hello ?", "", ("hello ?",)), ("i sail. context: then R: hi .", "i sail.", ("then", "R: hi .")), ("persona: größe 灯. context: Q: 你好 ?", "größe 灯.", ("Q: 你好 ?",)), ("", "", ()),
])  # fmt: skip
def test_a_question_is_cut_at_marks_that_stand_alone(question, persona, turns):
    d = Dialogue("d", question, ["a"])
    assert (d.persona, d.turns) == (persona, turns) and " ".join(d.turns) == " ".join(d.context.split())
    again = Dialogue("d", as_question(d.persona, d.turns), ["a"])
    assert (again.persona, again.turns) == (persona, turns)


def test_a_question_is_spelled_as_published():
    d = Dialogue("d", ASKED, ["a"])
    assert as_question(d.persona, d.turns) == ASKED


def test_records_are_frozen_short_to_look_at_and_complete_themselves():
    d, s = Dialogue("d", ASKED * 50, "one answer"), Story("s", "t" * 90, "word " * 900, "c")
    assert d.answers == ("one answer",) and d.target == "one answer" and Dialogue("d", ASKED, ["a"], target="b").target == "b" and d.gold == ()
    assert len(repr(d)) < 150 and len(repr(s)) < 150 and "\n" not in repr(replace(s, text="a\nb")) and {d, replace(d)} == {d}
    with pytest.raises(FrozenInstanceError): d.id = "e"
    for nothing in ([], (), ""): assert "dialogue 'd' has no answer" in line_of(Dialogue, "d", ASKED, nothing)


def test_records_come_back_from_a_file_and_reading_leaves_no_mark(tmp_path):
    d = [Dialogue("d0", ASKED, ["a\nb", "größe"], "c", ["s0"], "teach me"), Dialogue("d1", ASKED, ["a"])]
    s = [Story("s0", "", "one\u2028two", "c"), Story("s1", "t", "x")]
    before = rows_digest(d)
    assert d[0].persona and d[0].turns and rows_digest(d) == before
    assert load_dialogues(write(tmp_path / "d.jsonl", as_rows(d)))[0] == d and load_stories(write(tmp_path / "s.jsonl", as_rows(s)))[0] == s
    assert as_rows(d)[1] == dict(id="d1", question=ASKED, answers=["a"])


# ---------------------------------------------------------------- reading


def save_all(folder, rows, listed):
    "The same rows as JSONL, packed, CSV with JSON in a cell, Parquet and saved dataset."
    from datasets import Dataset

    text = write(folder / "a.jsonl", rows).read_text()
    with gzip.open(folder / "b.jsonl.gz", "wt") as f: f.write(text)
    with open(folder / "c.csv", "w", newline="") as f:
        w = csv.DictWriter(f, list(rows[0]))
        w.writeheader()
        w.writerows([r | {k: json.dumps(r[k]) for k in listed} for r in rows])
    Dataset.from_list(rows).to_parquet(folder / "d.parquet")
    Dataset.from_list(rows).save_to_disk(folder / "e")
    return sorted(folder.iterdir())


def test_every_place_gives_the_same(tmp_path):
    for name in "dt": (tmp_path / name).mkdir()
    talks = [dict(id=f"d{i}", question=ASKED, answers=["a, b", "größe"][: i + 1], corpus="c", gold=["s0"]) for i in range(2)]
    tales = [dict(id=f"s{i}", title="", text=f"text\n{i}", corpus="c") for i in range(2)]
    for place in save_all(tmp_path / "d", talks, ["answers", "gold"]): assert load_dialogues(place)[0] == [Dialogue(**r) for r in talks], place
    for place in save_all(tmp_path / "t", tales, []): assert load_stories(place)[0] == [Story(**r) for r in tales], place
    assert load_dialogues(talks)[0] == load_dialogues(Rows(talks))[0] == [Dialogue(**r) for r in talks]
    assert load_dialogues([dict(TALK, answers="one answer")])[0][0].answers == ("one answer",)


@pytest.mark.parametrize("change, said", [
    ({"answers": []}, "d.jsonl:3: the list 'answers' is empty; every dialogue needs"), ({"answers": None}, "d.jsonl:3: the list 'answers' is empty"), ({"answers": ""}, "the list 'answers' is empty"),
    ({"answers": "[]"}, "the list 'answers' is empty"), ({"answers": ["a", " "]}, "d.jsonl:3: answers[1] is an empty text"), ({"answers": "  "}, "answers[0] is an empty text"),
    ({"answers": ["a", 3]}, "d.jsonl:3: answers[1] is int"), ({"answers": [None]}, "answers[0] is NoneType"), ({"answers": {"a": 1}}, "d.jsonl:3: field 'answers' is dict"), ({"answers": "[a"}, "no JSON"),
    ({"question": " "}, "d.jsonl:3: field 'question' is empty"), ({"question": 3}, "d.jsonl:3: field 'question' is int"), ({"id": "x"}, "d.jsonl:3: the id 'x' stands at "), ({"gold": "[s0"}, "field 'gold' begins like"),
    ({"corpus": ["c"]}, "d.jsonl:3: field 'corpus' is list"),
])  # fmt: skip
def test_faults_of_a_dialogue_are_told_with_file_and_line(tmp_path, change, said):
    (tmp_path / "d.jsonl").write_text(jsonl([TALK | {"id": "x"}]) + "\n" + jsonl([TALK | {"id": "y"} | change]))
    told = line_of(load_dialogues, tmp_path / "d.jsonl")
    assert said in told and (change != {"id": "x"} or "d.jsonl:1 already" in told)


@pytest.mark.parametrize("change, said", [
    ({"text": ""}, "s.jsonl:3: field 'text' is empty"), ({"text": " \n"}, "s.jsonl:3: field 'text' is empty"), ({"text": None}, "s.jsonl:3: field 'text' is NoneType"), ({"id": "s0"}, "s.jsonl:3: the id 's0' stands at "),
    ({"title": ["t"]}, "s.jsonl:3: field 'title' is list"),
])  # fmt: skip
def test_faults_of_a_story_are_told_with_file_and_line(tmp_path, change, said):
    (tmp_path / "s.jsonl").write_text(jsonl([TALE]) + "\n" + jsonl([TALE | {"id": "s1"} | change]))
    assert said in line_of(load_stories, tmp_path / "s.jsonl")


def test_columns_may_have_other_names_and_wrong_names_are_met_with_the_nearest(tmp_path):
    rows = [dict(name=7, ask=ASKED, reply="a", where="c", help=["s0"], teach="b")]
    names = dict(id="name", question="ask", answers="reply", corpus="where", gold="help", target="teach")
    assert load_dialogues(rows, fields=names)[0] == [Dialogue("7", ASKED, ["a"], "c", ["s0"], "b")]
    assert load_stories([dict(n=1, head=None, body=" x ", c="d")], fields=dict(id="n", title="head", text="body", corpus="c"))[0] == [Story("1", "", "x", "d")]
    for k in names: assert "no field" in line_of(load_dialogues, rows, fields=names | {k: names[k] + "x"}) and f"did you mean '{names[k]}'?" in line_of(load_dialogues, rows, fields=names | {k: names[k] + "x"})
    assert "no field 'question'" in line_of(load_dialogues, [dict(answers=["a"])]) and "no field 'answers' (did you mean 'answer'?)" in line_of(load_dialogues, [dict(question="q", answer=["a"])])
    assert "fields: no 'body' here" in line_of(load_stories, [TALE], fields=dict(body="text")) and "did you mean 'answers'?" in line_of(load_dialogues, [TALK], fields=dict(answer="a"))
    assert "holds no rows" in line_of(load_stories, []) and "no such file" in line_of(load_stories, tmp_path / "nowhere.jsonl")


def test_oddities_are_counted_with_their_places(tmp_path):
    lost = "persona: i sail. context: Q: hi ! Q: alone ?"
    rows = [TALK, TALK | dict(question=lost), TALK, TALK | dict(question="persona: i sail. context: Q: hi !"), TALK | dict(question="hello ?"), TALK | dict(question=lost + " R: yes .")]
    talks, report = load_dialogues(write(tmp_path / "d.jsonl", rows))
    counts = dict(rows=6, kept=5, repeated=1, no_reply=1, no_persona=1, personas=3, per_persona=1.7, with_gold=0)
    assert {k: report[k] for k in counts} == counts and len(report["first"]) == 3 and any("d.jsonl:2: a context" in line for line in report["first"])
    tales, report = load_stories([TALE, TALE | dict(id="s1"), TALE | dict(id="s2", corpus="c"), dict(text="a b"), dict(text="a b"), dict(text="a b", title="t")])
    assert (report["rows"], report["kept"], report["same_text"], report["repeated"], report["corpora"]) == (6, 5, 2, 1, 2) and "rows[1]: a story with this text" in report["first"][0]


def test_ids_made_from_content_stay_when_a_file_grows():
    rows = [TALK | dict(question=f"{ASKED} {i}") for i in range(5)]
    ids = {d.question: d.id for d in load_dialogues(rows)[0]}
    assert len(set(ids.values())) == 5 and {d.question: d.id for d in load_dialogues([dict(question="new", answers=["a"])] + rows[::-1])[0]}.items() > ids.items()
    assert load_dialogues([rows[0] | dict(corpus="c")])[0][0].id != ids[rows[0]["question"]]


# ---------------------------------------------------------------- both, and parts


def test_gold_leads_to_a_story_of_the_same_corpus():
    talks, tales = [Dialogue("d0", ASKED, ["a"], "c", ["s0", "s1"]), Dialogue("d1", ASKED, ["a"], "e")], [Story("s0", "", "x", "c"), Story("s1", "", "x", "c"), Story("s2", "", "x", "e")]
    assert check_gold(talks, tales) == dict(corpora=2, fewest=1, most=2, with_gold=1) and check_gold([], tales)["corpora"] == 0
    assert "dialogue 'd0': the gold story 's1' is not there" in line_of(check_gold, talks, tales[::2])
    assert "'s2' is in corpus 'e', the dialogue in 'c'" in line_of(check_gold, [replace(talks[0], gold=["s0", "s2"])], tales)
    assert "dialogue 'd1': no story in its corpus 'e'" in line_of(check_gold, talks, tales[:2]) and "no story" in line_of(check_gold, [Dialogue("d", "q", "a")], tales)


def test_persons_are_in_one_part_only():
    talks = people(50)
    parts = split_personas(talks, SHARES)
    who = {k: {d.id.split("-")[0] for d in v} for k, v in parts.items()}
    assert [len(v) for v in who.values()] == [40, 5, 5] and len(set.union(*who.values())) == 50 and sum(map(len, parts.values())) == 150
    assert len({d.persona for d in talks}) > 60, "the strings would have told less"
    assert split_personas(talks[::-1], SHARES)["test"] == parts["test"][::-1] and split_personas(talks, SHARES, 1) != parts and [d for d in talks if d in parts["test"]] == parts["test"]
    assert [len(v) for v in split_personas(people(3), SHARES).values()] == [3, 3, 3] and [len(v) for v in split_personas(people(10), dict(a=0.5, b=0, c=0.2)).values()] == [15, 0, 6]
    assert "2 persons for 3 parts" in line_of(split_personas, people(2), SHARES) and "impossible" in line_of(split_personas, talks, dict(a=0.9, b=0.2))
    alone = [Dialogue(str(i), f"hello {i} ?", "a") for i in range(10)]
    assert [len(v) for v in split_personas(alone, SHARES).values()] == [8, 1, 1], "who has no persona is a person of their own"


def test_overlap_sees_persons_questions_and_answers():
    base = [Dialogue("0", "persona: i sail. i like tea. context: Q: how is the water over there ? R: hi .", ["the sea is calm and blue"], target="we go out at noon , gladly")]
    later = [Dialogue("1", "persona: i like tea. I SAIL! context: Q: so ?", ["no"]), Dialogue("2", base[0].question, ["no"]), Dialogue("3", "persona: x. context: Q: so ?", ["no", "The sea is calm, and blue."]),
             Dialogue("4", "persona: y. context: Q: so ?", ["how is the water over there"]), Dialogue("5", "persona: z. context: Q: so ?", ["hi ."]), Dialogue("6", "so", ["no"], target="We go out at noon, gladly!")]
    assert overlap(dict(train=base, valid=[], test=later)) == {"train/valid": dict(personas=0, questions=0, answers=0), "train/test": dict(personas=2, questions=1, answers=3), "valid/test": dict(personas=0, questions=0, answers=0)}
    assert all(v == dict(personas=0, questions=0, answers=0) for v in overlap(split_personas(people(20), SHARES)).values())


# ---------------------------------------------------------------- real data


@pytest.mark.slices
def test_real_dialogues_and_stories(slices):
    parts = {name: load_dialogues(slices / "convai2", name) for name in ("train", "valid")}
    assert [len(v) for v, _ in parts.values()] == [3200, 800] and all(r["no_reply"] == r["no_persona"] == r["repeated"] == 0 for _, r in parts.values())
    talks = [d for v, _ in parts.values() for d in v]
    assert all(as_question(d.persona, d.turns) == d.question and d.persona and d.turns for d in talks)
    tales, report = load_stories(slices / "fairytales" / "story.jsonl")
    assert len(tales) == 2836 and report["same_text"] == 0 and check_gold(talks, tales)["most"] == 2836
    shared = overlap({k: v for k, (v, _) in parts.items()})["train/valid"]
    assert shared["personas"] == 239 and len({d.persona for d in parts["train"][0]} & {d.persona for d in parts["valid"][0]}) == 1, "the same sentences in another order"
    ours = split_personas(talks, SHARES)
    assert all(v["personas"] == 0 for v in overlap(ours).values()) and 300 < len(ours["test"]) < 500


@pytest.mark.slices
def test_a_validation_file_without_replies_is_noticed(slices):
    rows = [dict(question=as_question(d.persona, [t for t in d.turns if t[0] == "Q"]), answers=d.answers, id=d.id) for d in load_dialogues(slices / "convai2", "valid")[0]]
    assert load_dialogues([r | dict(answers=list(r["answers"])) for r in rows])[1]["no_reply"] == 307
