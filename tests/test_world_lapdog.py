"""The world of LAPDOG: facts that stand in one story only, words that must be matched, splits that share nothing."""
import subprocess
import sys
from statistics import mean

import pytest

from rlgen.core import RlgenError
from rlgen.worlds import lapdog as world

MEANING = {w: (kind, name, i // 2) for kind, table in (("hobby", world.HOBBIES), ("occasion", world.OCCASIONS)) for name, words in table.items() for i, w in enumerate(words.split())}
SPLITS = ("train", "valid", "test")


def persona(question): return question.split("context:")[0]


def meanings(text, side): return {MEANING[w][:2] for w in text.split() if w in MEANING and MEANING[w][2] == side}


# ---------------------------------------------------------------- stories


def test_importing_it_loads_no_torch():
    code = "import sys, rlgen.worlds.lapdog; print([m for m in ('torch', 'transformers', 'numpy') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_every_content_word_means_one_thing():
    words = [w for table in (world.HOBBIES, world.OCCASIONS) for v in table.values() for w in v.split()]
    facts = [*world.PEOPLE, *world.PLACES, *world.THINGS, *world.NAMES]
    assert len(words) == len(set(words)) == 4 * 14 and not set(words) & {*facts, *world.LIKES} and len(facts) == len(set(facts))


def test_a_shelf_holds_one_story_for_each_hobby_and_occasion():
    shelf = world.tales("train-3")
    assert sorted((t.hobby, t.occasion) for t in shelf) == sorted((h, o) for h in world.HOBBIES for o in world.OCCASIONS)
    assert len({t.id for t in shelf}) == 48 and world.tales("train-3") == shelf


@pytest.mark.parametrize("tale", world.tales("valid-5")[::7])
def test_a_story_says_its_facts_once_and_what_it_is_about_in_story_words(tale):
    text = f"{tale.title} {tale.text}"
    assert all(text.split().count(f) == 1 for f in tale.facts)
    assert meanings(text, 1) == {("hobby", tale.hobby), ("occasion", tale.occasion)} and not meanings(text, 0)


def test_who_goes_with_the_hobby_where_with_the_occasion():
    by = {}
    for t in world.tales("train-1"):
        by.setdefault(t.hobby, set()).add(t.facts[0])
        by.setdefault(t.occasion, set()).add(t.facts[1])
    assert all(len(v) == 1 for v in by.values())


def test_facts_are_drawn_anew_for_every_shelf():
    a, b = (world.tales(f"train-{i}") for i in (0, 1))
    assert mean(x.facts[i] == y.facts[i] for x, y in zip(a, b) for i in range(3)) < 0.3


# ---------------------------------------------------------------- talks


def test_question_words_never_occur_in_stories_but_point_to_the_gold_one():
    told = {w for t in world.tales("train-0") for w in f"{t.title} {t.text}".split()}
    for t in world.make_talks("train", 60, 3):
        gold = next(x for x in world.tales(t.corpus) if x.id == t.gold)
        assert meanings(t.question, 0) == {("hobby", gold.hobby), ("occasion", gold.occasion)} and not meanings(t.question, 1)
        assert not told & {w for w in t.question.split() if w in MEANING}
        assert t.facts == gold.facts and t.answer == world.reply_text(t.name, gold.facts)


def test_splits_share_neither_shelves_nor_personas():
    talks = {s: world.make_talks(s, 400, 5) for s in SPLITS}
    for a, b in (("train", "valid"), ("train", "test"), ("valid", "test")):
        assert not {t.corpus for t in talks[a]} & {t.corpus for t in talks[b]}
        assert not {" ".join(sorted(persona(t.question).split())) for t in talks[a]} & {" ".join(sorted(persona(t.question).split())) for t in talks[b]}


def test_logs_evade_and_hold_no_fact():
    facts = {*world.PEOPLE, *world.PLACES, *world.THINGS}
    for t in world.make_talks("train", 100, 7): assert not facts & set(t.said.split()) and t.said != t.answer


def test_talks_depend_on_split_seed_and_number_alone():
    assert world.make_talks("train", 5, 1) == world.make_talks("train", 9, 1)[:5] != world.make_talks("train", 5, 2)


def test_in_the_ablation_the_story_says_nothing_of_the_answer():
    talks = world.make_talks("test", 600, 0, "mute")
    tales = {t.id: t for c in {t.corpus for t in talks} for t in world.tales(c)}
    right = mean(world.fact_accuracy(t, world.reply_text(t.name, tales[t.gold].facts)) for t in talks)
    assert abs(right - 1 / 16) < 0.03, right


def test_an_unknown_kind_gets_one_line():
    with pytest.raises(RlgenError, match="did you mean 'mute'"): world.make_talks("train", 1, kind="mut")


# ---------------------------------------------------------------- what is right


def test_gold_counts_facts_and_the_name():
    t = world.make_talks("train", 1)[0]
    who, where, what = t.facts
    other = next(w for w in world.PEOPLE if w != who)
    assert world.fact_accuracy(t, t.answer) == 1.0 and world.persona_consistent(t, t.answer)
    assert world.fact_accuracy(t, world.reply_text(t.name, (other, where, what))) == pytest.approx(2 / 3)
    assert world.fact_accuracy(t, f"{t.name} saw a {who} and a {other} in the {where} with a {what} .") == pytest.approx(2 / 3), "naming two is hedging"
    assert world.fact_accuracy(t, "") == 0.0 and not world.persona_consistent(t, "ask me later .")


def test_a_retriever_is_pretrained_without_seeing_talk_and_story_together():
    for asked, told in zip(*world.same_topic(3)):
        assert len({frozenset(meanings(x, 0)) for x in asked}) == 1 and not any(meanings(x, 1) for x in asked)
        assert len({frozenset(meanings(x, 1)) for x in told}) == 1 and not any(meanings(x, 0) for x in told)


def test_the_base_reader_sees_stories_by_chance():
    demos = [(q, t) for q, t, _ in world.demonstrations(600, 9) if t]
    assert mean(("hobby", t.hobby) in meanings(q, 0) for q, t in demos) < 0.2


def test_the_vocabulary_covers_every_text():
    known = set(world.vocabulary())
    for split in SPLITS:
        for t in world.make_talks(split, 200, 11): assert {w for x in (t.question, t.answer, t.said) for w in x.split()} <= known
