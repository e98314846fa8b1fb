"""The world of GenAlign: exact classes, golden parts that share no text, drafts that are wrong as stated, prompts that one tokenizer reads."""
import csv
import re
import subprocess
import sys
from collections import Counter
from itertools import combinations
from math import log
from pathlib import Path

import pytest

from rlgen.core import RlgenError
from rlgen.worlds import genalign as world
from rlgen.worlds.genalign import CLASSES, DAYS, LABELS, TOPICS, drafts, fidelity, golden, label_of, pages

ROOT = Path(__file__).resolve().parent.parent
TELLING = {w for words in CLASSES.values() for w in words}


def telling(text): return [w for w in text.split() if w in TELLING]


def adjectives(text): return [w for w in text.split() if w in TELLING or w in world.NEUTRAL]


def by_label(pairs): return [(text, label) for label, text in pairs]


# ---------------------------------------------------------------- words and texts


def test_importing_it_loads_no_torch():
    code = "import sys, rlgen.worlds.genalign; print([m for m in ('torch', 'transformers', 'numpy') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_a_word_means_one_thing():
    words = [w for group in (*CLASSES.values(), world.NEUTRAL, *TOPICS.values(), DAYS, CLASSES) for w in group]
    fixed = {w for p in world._PATTERNS for w in p.split() if "{" not in w}
    assert len(words) == len(set(words)) and not fixed & set(words) and all(re.fullmatch("[a-z]+", w) for w in words)
    assert {len(v) for v in CLASSES.values()} == {24} == {len(world.NEUTRAL)} and len(TOPICS) == 6 and len(DAYS) == len(LABELS) == 4


def test_texts_are_short_and_their_words_stand_apart():
    for text, _ in golden("dev", 500):
        assert 10 <= len(text.split()) <= 14 and re.fullmatch(r"([a-z]+|,)( [a-z]+| ,)* \.", text), text
        assert len(adjectives(text)) in (2, 3) and len(set(adjectives(text))) == len(adjectives(text))
        nouns = [w for w in text.split() if any(w in v for v in TOPICS.values())]
        assert len(nouns) == len(set(nouns)) == 2 and sum(w in DAYS for w in text.split()) == 1


@pytest.mark.parametrize(("text", "label", "topic", "day"), [
    ("on monday the soup was warm and the waiter rude .", None, "meals", "monday"), ("warm rude kind", "glad", None, None), ("warm rude odd odd", "puzzled", None, None), ("warm rude odd", None, None, None),
    ("the hotel and the film", None, None, None), ("the hotel , the lobby and the film", None, "hotels", None), ("monday monday", None, None, "monday"), ("monday friday", None, None, None),
    ("", None, None, None), ("Warm warmer warm,", None, None, None), ("label: glad text: dull", "bored", None, None),
])  # fmt: skip
def test_what_is_true_of_a_text(text, label, topic, day): assert (label_of(text), world.topic_of(text), world.spurious_of(text)) == (label, topic, day)


# ---------------------------------------------------------------- golden texts


@pytest.mark.parametrize("n_labels", (2, 3, 4))
@pytest.mark.parametrize("split", world.SPLITS)
def test_golden_labels_are_right_and_balanced(split, n_labels):
    items = golden(split, 240, 3, n_labels)
    assert all(label_of(t) == label and not set(telling(t)) - set(CLASSES[label]) and len(telling(t)) == len(adjectives(t)) for t, label in items)
    assert Counter(label for _, label in items) == dict.fromkeys(LABELS[:n_labels], 240 // n_labels)


def test_parts_share_no_text_whatever_the_seed():
    parts = {s: {t for seed in range(3) for n in (2, 3) for t, _ in golden(s, 300, seed, n)} for s in world.SPLITS}
    parts["drafts"] = {t for name in world.WORLDS for seed in range(2) for _, t in drafts(500, seed, name)} | {w for p, t in pages(500) for w in [t, *re.findall(r"text: (.+)\n", p)]}
    assert all(not parts[a] & parts[b] for a, b in combinations(parts, 2)) and min(map(len, parts.values())) > 800


def test_a_draw_repeats_nothing_begins_with_the_shorter_one_and_follows_its_seed():
    items = golden("pool", 500, 4)
    assert len({t for t, _ in items}) == 500 and items[:50] == golden("pool", 50, 4) != golden("pool", 50, 5)
    assert drafts(300)[:40] == drafts(40) != drafts(40, 1) and pages(100)[:20] == pages(20) != pages(20, 1)


def test_draws_are_the_same_in_every_process():
    assert golden("dev", 2)[1] == ("on monday the noisy table was filthy , the soup dirty .", "cross")
    assert drafts(1) == [("cross", "on monday the room was large and the hotel delightful .")]


@pytest.mark.parametrize("n_labels", (2, 4))
def test_in_golden_texts_topic_and_day_say_nothing_of_the_label(n_labels):
    items = golden("test", 4000, 0, n_labels)
    for what, values in ((world.topic_of, list(TOPICS)), (world.spurious_of, DAYS[:n_labels])):
        counts = Counter((what(t), label) for t, label in items)
        assert set(counts) == {(v, label) for v in values for label in LABELS[:n_labels]} and all(abs(n - 4000 / len(counts)) < 5 * (4000 / len(counts)) ** 0.5 for n in counts.values())


def test_a_handful_of_golden_texts_does_not_hold_all_words():
    assert len({w for t, _ in golden("dev", 20) for w in telling(t)}) < 40 < 47 <= len({w for t, _ in golden("dev", 200) for w in telling(t)})


# ---------------------------------------------------------------- how true texts are


def test_fidelity_by_hand():
    items = [("on monday the soup was warm .", "glad"), ("on friday the soup was rude .", "cross"), ("on monday the hotel was warm .", "cross"), ("on friday the hotel was old .", "glad")]
    assert fidelity(items) == pytest.approx(dict(right=0.5, undecided=0.25, spurious=0.0, topics=log(2)))
    assert fidelity(items[:2])["spurious"] == pytest.approx(log(2)) and fidelity(items[:2])["topics"] == 0
    three = [("monday", "glad")] * 3 + [("friday", "cross")] * 3 + [("monday", "cross")] + [("friday", "glad")]
    assert fidelity(three)["spurious"] == pytest.approx(0.75 * log(1.5) + 0.25 * log(0.5))


def test_texts_without_a_day_can_tell_the_label_too():
    assert fidelity([("monday", "glad"), ("no day", "cross")])["spurious"] == pytest.approx(log(2))
    assert fidelity([("no day", "glad"), ("none", "cross")])["spurious"] == 0


def test_fidelity_of_nothing_gets_one_line():
    with pytest.raises(RlgenError, match="at least one") as e: fidelity([])
    assert "\n" not in str(e.value)


# ---------------------------------------------------------------- drafts


@pytest.fixture(scope="module")
def many(): return drafts(8000, 2)


def near(share, wanted, n=8000): return abs(share - wanted) < 4 * (wanted * (1 - wanted) / n) ** 0.5


def test_drafts_are_wrong_as_often_as_stated(many):
    decided = [(label, t) for label, t in many if telling(t)]
    assert near(sum(label_of(t) != label for label, t in decided) / len(decided), world.WRONG, len(decided))
    assert all(len({label_of(w) for w in telling(t)}) == 1 for _, t in decided), "a text is of one class"
    assert near(sum(world.spurious_of(t) == DAYS[LABELS.index(label)] for label, t in many) / 8000, world.FOLLOWS)
    words = [w for _, t in many for w in adjectives(t)]
    assert near(sum(w in world.NEUTRAL for w in words) / len(words), world.REPLACED, len(words))
    topics = Counter(world.topic_of(t) for _, t in many)
    assert near(topics["hotels"] / 8000, world.NARROW) and set(topics) == set(TOPICS) and min(topics.values()) > 150
    assert abs(Counter(label for label, _ in many)["glad"] - 4000) < 180


def test_what_is_wrong_in_a_draft_is_wrong_by_chance(many):
    "Label, day and topic go wrong independently of each other."
    decided = [(label_of(t) != label, world.spurious_of(t) != DAYS[LABELS.index(label)], world.topic_of(t) != "hotels") for label, t in many if telling(t)]
    for i, j in combinations(range(3), 2):
        both, a, b = (sum(row[k] and row[m] for row in decided) / len(decided) for k, m in ((i, j), (i, i), (j, j)))
        assert abs(both - a * b) < 0.012


def test_in_the_ablation_drafts_are_like_golden_texts():
    found, gold = fidelity(by_label(drafts(4000, 1, "world/right"))), fidelity(golden("test", 4000))
    assert found["right"] == 1 and found == pytest.approx(gold, abs=0.01) and all(len(telling(t)) == len(adjectives(t)) for _, t in drafts(200, 1, "world/right"))
    days = Counter(world.spurious_of(t) for _, t in drafts(4000, 1, "world/right", 4))
    assert set(days) == set(DAYS) and all(abs(n - 1000) < 140 for n in days.values())


def test_drafts_of_more_classes(many):
    four = drafts(4000, 0, "world", 4)
    assert {label for label, _ in four} == set(LABELS) and near(sum(world.spurious_of(t) == DAYS[LABELS.index(label)] for label, t in four) / 4000, world.FOLLOWS, 4000)
    wrong = Counter((label, label_of(t)) for label, t in four if telling(t) and label_of(t) != label)
    assert len(wrong) == 12, "every class is taken for every other"


@pytest.mark.parametrize(("call", "message"), [
    (lambda: golden("tset", 3), "did you mean 'test'"), (lambda: drafts(3, 0, "world/rihgt"), "did you mean 'world/right'"), (lambda: pages(3, 0, "spread"), "valid: world, world/right"),
    (lambda: golden("dev", 3, 0, 5), "2 to 4"), (lambda: drafts(3, n_labels=1), "2 to 4"), (lambda: world.vocabulary(7), "2 to 4"),
])  # fmt: skip
def test_bad_choices_get_one_line(call, message):
    with pytest.raises(RlgenError, match=message) as e: call()
    assert "\n" not in str(e.value)


# ---------------------------------------------------------------- what a base model reads


def test_pages_are_drafts_behind_drafts():
    rows = pages(6000, 3)
    counts = Counter(prompt.count("text:") - 1 for prompt, _ in rows)
    assert abs(counts[0] - 4000) < 150 and set(counts) == {0, 1, 2, 3, 4} and all(abs(counts[k] - 500) < 90 for k in (1, 2, 3, 4))
    one = f"label: ({'|'.join(LABELS[:2])})\ntext:"
    shape = re.compile(rf"({one} [a-z ,]+ \.\n\n)*{one}")
    assert all(shape.fullmatch(prompt) for prompt, _ in rows)
    found = fidelity([(text, re.findall(r"label: (\w+)", prompt)[-1]) for prompt, text in rows])
    assert found == pytest.approx(fidelity(by_label(drafts(6000))) | dict(topics=found["topics"]), abs=0.03)


def test_a_page_keeps_to_its_topic_and_not_to_its_label():
    rows = [(prompt, text) for prompt, text in pages(6000, 3) if prompt.count("text:") > 1]
    assert all({world.topic_of(line) for line in prompt.split("\n") if line.startswith("text: ")} == {world.topic_of(text)} for prompt, text in rows)
    topics = Counter(world.topic_of(text) for _, text in rows)
    assert all(abs(topics[t] / len(rows) - 1 / 6) < 0.05 for t in TOPICS)
    assert len({tuple(re.findall(r"label: (\w+)", prompt)) for prompt, _ in rows}) == sum(2**k for k in (2, 3, 4, 5))


@pytest.mark.parametrize("n_labels", (2, 3, 4))
def test_the_vocabulary_covers_every_text_and_nothing_else(n_labels):
    words = world.vocabulary(n_labels)
    used = {w for split in world.SPLITS for text, _ in golden(split, 400, 1, n_labels) for w in text.split()} | {w for pair in pages(1200, 1, "world", n_labels) for part in pair for w in part.split()}
    assert used == set(words) and words == sorted(set(words))


def test_a_prompt_is_made_of_whole_words():
    assert world.PROMPT.format(label="glad").split() == ["label:", "glad", "text:"] and not world.BETWEEN.strip()


# ---------------------------------------------------------------- the file


def test_the_sample_file_is_what_the_world_makes():
    with open(ROOT / "params" / "genalign" / "sample_data.csv", newline="") as f: rows = list(csv.reader(f))
    assert rows == [["text", "label"], *map(list, golden("pool", 400))]


def test_the_notebooks_command_writes_the_sample_file():
    import json
    cell, = [c for c in json.loads((ROOT / "nbs" / "01e_worlds_genalign.ipynb").read_text())["cells"] if c["id"] == "sample-how"]
    code = re.search(r'python -c "(.+)" > params/genalign/sample_data.csv', "".join(cell["source"]))[1]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, cwd=ROOT)
    assert done.stdout == (ROOT / "params" / "genalign" / "sample_data.csv").read_bytes()
