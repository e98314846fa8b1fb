"""The world of Synthetic-Data-RL: exact answers, splits that never meet, a library that holds the facts, a teacher that uses only its prompt."""
import random
import re
import subprocess
import sys
from collections import Counter
from itertools import combinations
from statistics import mean

import pytest

from rlgen.core import RlgenError
from rlgen.worlds import synth_rl as world
from rlgen.worlds.synth_rl import JOBS, MOVES, Task

KEYWORDS, PATTERN, NEW, ANSWER, HARDER, EASIER = JOBS
RARE = [m for m in MOVES if m not in world.COMMON]
ONE = Task(4, ("leap", "stride-back", "hop"))
FACTS = {m: f"A {m} is {'one two three four five six seven eight'.split()[n - 1]} square{'s' * (n > 1)}." for m, n in MOVES.items()}


def prompt(job, demos=(), facts=(), **sections):
    "A prompt as the method's prompts are: sections, and the job in the last line."
    shown = dict(task=world.INSTRUCTION, demos="\n\n".join(f"Input: {t.input}\nOutput: {t.answer}" for t in demos), passages="\n".join(FACTS[m] for m in facts)) | sections
    return "".join(f"<{k}>\n{v}\n</{k}>\n\n" for k, v in shown.items() if v) + job + ", in the tags that are asked for."


def ask(job, n=300, error=0.0, first="easy", **material):
    text = prompt(job, **material)
    return [world.reply(text, random.Random(i), error, first) for i in range(n)]


def sample(reply):
    "Question and output of a written sample."
    found = re.fullmatch(r"<input>(.*)</input>\n<output>(\d)</output>", reply)
    return world.read_question(found[1]), found[2]


def names(tasks): return {m.partition("-")[0] for t in tasks for m in t.moves}


# ---------------------------------------------------------------- questions


def test_importing_it_loads_no_torch():
    code = "import sys, rlgen.worlds.synth_rl; print([m for m in ('torch', 'transformers', 'numpy') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


@pytest.mark.parametrize(("start", "moves", "path"), [
    (4, ("leap", "stride-back", "hop"), [7, 1, 2]), (9, ("hop",), [0]), (0, ("hop-back",), [9]), (3, ("glide", "glide", "glide"), [1, 9, 7]),
    (2, ("vault-back", "slide-back", "dash", "skip-back"), [5, 0, 4, 2]),
])  # fmt: skip
def test_paths_by_hand(start, moves, path):
    task = Task(start, moves)
    assert task.path == path and task.answer == str(path[-1]) and task.level == len(moves)
    assert task.worked == " ".join(f"{nth} {square}" for nth, square in zip(world.ORDINALS, path, strict=False)) + f" . answer {path[-1]}"


def test_a_question_reads_as_english_and_is_one_token_a_word():
    assert ONE.input == "the red pawn stands on 4 . first leap , second stride-back , third hop . where is it ?"
    assert all(len(t.input.split()) == 11 + 3 * t.level and "  " not in t.input for t in world.make_tasks("train", 300))


def test_paths_by_walking():
    "Another way to the same squares: one square at a time, in a circle."
    circle = {a: (a + 1) % 10 for a in range(10)}
    back = {b: a for a, b in circle.items()}
    for task in world.make_tasks("train", 200, 3):
        at = task.start
        for move, said in zip(task.moves, task.path, strict=True):
            for _ in range(MOVES[move.partition("-")[0]]): at = (back if move.endswith("back") else circle)[at]
            assert at == said


def test_questions_read_back_exactly():
    for split in world.SPLITS:
        for t in world.make_tasks(split, 300, 1): assert world.read_question(t.input) == t


@pytest.mark.parametrize("text", [
    "", "where is it ?", ONE.input + " ", " " + ONE.input, ONE.input + "\n", ONE.input.upper(), ONE.input.replace("on 4", "on 10"), ONE.input.replace("on 4", "on four"),
    ONE.input.replace(" hop", " , hop"), ONE.input.replace("hop", "jump"), ONE.input.replace("hop", "a hop"), ONE.input.replace("-back", "-back-back"), ONE.input.replace("-back", " back"), ONE.input.replace("4", "٤"),
    ONE.input.replace("first leap , second stride-back , third hop", ""), ONE.input.replace("second", "third"), ONE.input.replace("red", "pink"), ONE.input.replace(".", ""), Task(1, ("hop",) * 8).input, f"{ONE.input} {ONE.input}", ONE.input.replace(" hop", "  hop"), ONE.input.replace("hop", "HOP"),
])  # fmt: skip
def test_anything_else_is_no_question(text): assert world.read_question(text) is None


# ---------------------------------------------------------------- splits


def test_splits_share_no_question_whatever_seed_and_levels():
    drawn = {s: {t.input for seed in range(3) for levels in ((1,), (2, 3), world.LEVELS) for t in world.make_tasks(s, 30, seed, levels)} for s in world.SPLITS}
    assert all(not drawn[a] & drawn[b] for a, b in combinations(world.SPLITS, 2))


def test_every_question_belongs_to_one_split():
    "All 1,280 questions of level 1, asked of every split."
    found = {s: {t.input for t in world.make_tasks(s, n, levels=(1,))} for s, n in (("train", 60), ("valid", 20), ("test", 20))}
    every = {Task(i, (m + b,), pawn).input for i in range(10) for m in MOVES for b in ("", "-back") for pawn in world.PAWNS}
    parts = Counter(world._split_of(x) for x in every)
    assert len(every) == 1280 == sum(parts.values()) and abs(parts["train"] - 640) < 80 and set().union(*found.values()) <= every


def test_a_draw_repeats_nothing_and_begins_with_the_shorter_one():
    tasks = world.make_tasks("valid", 600, 4)
    assert len({t.input for t in tasks}) == 600 and tasks[:50] == world.make_tasks("valid", 50, 4) != world.make_tasks("valid", 50, 5)


def test_draws_are_the_same_in_every_process():
    first = "the yellow pawn stands on 9 . first slide-back . where is it ?"
    assert world.make_tasks("test", 3)[2].input == first


def test_levels_are_equally_probable_until_one_is_used_up():
    counts = Counter(t.level for t in world.make_tasks("train", 1000, 6, (3, 4, 5, 6)))
    assert set(counts) == {3, 4, 5, 6} and all(abs(n - 250) < 60 for n in counts.values())
    few = Counter(t.level for t in world.make_tasks("test", 1500, 6, (1, 2)))
    assert few[1] < 400 and sum(few.values()) == 1500


def test_bad_draws_get_one_line():
    with pytest.raises(RlgenError, match="did you mean 'valid'") as e: world.make_tasks("validation", 3)
    assert "\n" not in str(e.value)
    with pytest.raises(RlgenError, match="ask for fewer") as e: world.make_tasks("test", 2000, levels=(1,))
    assert "\n" not in str(e.value)


def test_the_definition_names_no_move_and_no_size():
    words = set(re.findall(r"[a-z]+", f"{world.INSTRUCTION} {world.INPUT_FORMAT} {world.OUTPUT_FORMAT}".lower()))
    assert not words & set(MOVES) and world.stated_sizes(world.INSTRUCTION) == {}


# ---------------------------------------------------------------- what is right


@pytest.mark.parametrize(("text", "right"), [
    ("7 1 2 . answer 2", 1), ("2", 1), (" answer 2 \n", 1), ("7 1 3 . answer 2", 1), ("9 9 . answer 2", 1), ("7 1 2 . answer 3", 0), ("7 1 2", 0), ("", 0), ("answer", 0), ("12", 0), ("2 .", 0),
    ("7 1 2 . answer 2 .", 0), ("answer 3 answer 2", 0), ("answer 2 2", 0), ("answer -2", 0), ("the answer is 2", 0), ("3", 0),
])  # fmt: skip
def test_only_the_one_answer_at_the_end_counts(text, right): assert world.accuracy(ONE, text) == world.accuracy(ONE.input, text) == right


def test_a_text_that_is_no_question_has_no_right_answer():
    with pytest.raises(RlgenError, match="no question of this world") as e: world.accuracy("how are you ?", "2")
    assert "\n" not in str(e.value)


# ---------------------------------------------------------------- the library


@pytest.fixture(scope="module")
def library(): return world.library()


def test_the_library_states_each_size_rightly_in_several_ways(library):
    for move, n in MOVES.items():
        texts = {p["text"] for p in library if world.stated_sizes(p["text"]) == {move: n}}
        assert len(texts) >= 4, move
    assert all(MOVES[m] == n for p in library for m, n in world.stated_sizes(p["text"]).items())


def test_each_way_of_stating_a_size_is_read_again():
    for statement in world._STATEMENTS:
        for move, n in MOVES.items():
            text = statement.format(move=move, number=world._NUMBERS[n - 1], ordinal=world.ORDINALS[n - 1], squares="square" if n == 1 else "squares")
            assert world.stated_sizes(f"It rained. {text} Nobody minded.") == world.stated_sizes(text.lower()) == {move: n}, text


@pytest.mark.parametrize("text", ["A hop is one.", "A jump is two squares.", "Three squares.", "A vault is fun, and seven squares are wet.", "A glide is nine squares.", "a hop", ""])
def test_other_sentences_state_nothing(text): assert world.stated_sizes(text) == {}


def test_facts_drown_in_talk_that_names_moves_too(library):
    telling = [p for p in library if world.stated_sizes(p["text"])]
    naming = [p for p in library if names_in(p["text"]) and not world.stated_sizes(p["text"])]
    assert len(library) > 400 and len(telling) < 0.1 * len(library) < len(naming) and all(names_in(" ".join(p["text"] for p in naming)) >= {m} for m in MOVES)
    assert len({p["text"] for p in world.library(n_noise=800)}) > len(library) * 1.5


def names_in(text): return {m for m in MOVES if re.search(rf"\b{m}\b", text)}


def test_some_passages_stand_there_twice_or_nearly(library):
    texts = Counter(p["text"] for p in library)
    twice, nearly = [t for t, n in texts.items() if n > 1], [t for t in texts if any(t.startswith(o + " ") for o in texts if o != t)]
    assert len(twice) > 10 and len(nearly) > 10 and len(twice) + len(nearly) < 0.15 * len(library)


def test_library_rows(library):
    assert all(set(p) == {"id", "title", "text"} and p["title"] and len(p["text"].split()) < 70 for p in library)
    assert len({p["id"] for p in library}) == len(library) and world.library() == library != world.library(seed=1)
    telling = [i / len(library) for i, p in enumerate(library) if world.stated_sizes(p["text"])]
    assert 0.3 < mean(telling) < 0.7 and max(telling) > 0.8, "facts lie anywhere"
    assert not any("{" in p["text"] or "<" in p["text"] for p in library) and all(p["text"][0].isupper() for p in library)


# ---------------------------------------------------------------- the teacher


def test_keywords_come_from_definition_and_demos():
    assert ask(KEYWORDS, 1, demos=[ONE]) == ["<keywords>pawn, track, squares, moves, hop, leap, stride</keywords>"]
    assert ask(KEYWORDS, 1, demos=[ONE], task="Say where it stands on the track.") == ["<keywords>track, hop, leap, stride</keywords>"]
    assert ask(KEYWORDS, 1, facts=("glide",), pattern="A vault.") == ask(KEYWORDS, 1) == ["<keywords>pawn, track, squares, moves</keywords>"]


def test_the_pattern_tells_what_the_demos_have_in_common():
    text, = ask(PATTERN, 1, demos=[ONE, Task(1, ("glide",))])
    assert re.fullmatch("<pattern>.+</pattern>", text) and "1 to 3 moves (hop, leap, stride, glide)" in text
    assert "some moves" in ask(PATTERN, 1)[0]


@pytest.mark.parametrize("facts", [(), ("vault",), tuple(MOVES)])
@pytest.mark.parametrize("demos", [(), (Task(3, ("glide", "hop-back")),)])
def test_new_samples_use_what_the_teacher_knows_or_was_shown(facts, demos):
    tasks = [sample(r)[0] for r in ask(NEW, 1500, demos=demos, facts=facts, first="spread")]
    assert names(tasks) == {*world.COMMON, *facts, *(m.partition("-")[0] for t in demos for m in t.moves)}
    assert {m.endswith("back") for t in tasks for m in t.moves} == {True, False} and {t.start for t in tasks} == set(range(10))


@pytest.mark.parametrize(("first", "share"), [("easy", {1: 0.45, 2: 0.45, 3: 0.1}), ("hard", {7: 0.45, 6: 0.45, 5: 0.1}), ("spread", dict.fromkeys(range(1, 8), 1 / 7))])
def test_first_draws_are_as_miscalibrated_as_stated(first, share):
    counts = Counter(sample(r)[0].level for r in ask(NEW, 2000, first=first))
    assert set(counts) == set(share) and all(abs(n / 2000 - share[level]) < 0.04 for level, n in counts.items())


@pytest.mark.parametrize(("job", "steps"), [(HARDER, {1, 2, 3}), (EASIER, {-1, -2})])
def test_rewriting_moves_the_level(job, steps):
    parent = Task(4, ("leap", "stride-back", "hop", "dash"))
    found = [sample(r)[0] for r in ask(job, 600, sample=f"Input: {parent.input}\nOutput: 1")]
    counts = Counter(t.level - parent.level for t in found)
    assert set(counts) == steps and min(counts.values()) > 0.7 * 600 / len(steps)
    for t in found:
        shorter, longer = sorted((t.moves, parent.moves), key=len)
        rest = iter(longer)
        assert all(m in rest for m in shorter), "in order, the shorter one's moves stand in the longer one"


def test_rewriting_at_the_ends_keeps_the_level():
    for job, moves in ((HARDER, ("hop",) * 7), (EASIER, ("dash",))):
        found = {sample(r)[0] for r in ask(job, 100, sample=Task(4, moves).input)}
        assert {t.level for t in found} == {len(moves)} and len(found) > 40
    top = {sample(r)[0].level for r in ask(HARDER, 100, sample=Task(4, ("hop",) * 6).input)}
    assert top == {7} and {sample(r)[0].level for r in ask(EASIER, 100, sample=Task(4, ("hop",) * 2).input)} == {1}


def test_harder_samples_bring_no_move_the_teacher_was_not_shown():
    known = names(sample(r)[0] for r in ask(HARDER, 400, sample=Task(4, ("vault",)).input, facts=("glide",)))
    assert known == {*world.COMMON, "glide", "vault"}


def test_answers_are_right_where_all_is_known_and_nothing_slips():
    for t in world.make_tasks("valid", 60, 2):
        text, = ask(ANSWER, 1, facts=tuple(MOVES), question=t.input)
        assert text == f"{t.worked.rpartition(' answer ')[0]}\n<answer>{t.answer}</answer>"
    for job in (NEW, HARDER, EASIER):
        for r in ask(job, 100, facts=tuple(MOVES), sample=f"Input: {ONE.input}\nOutput: 9", first="spread"): assert sample(r)[1] == sample(r)[0].answer


def squares(move): return -MOVES[move.partition("-")[0]] if move.endswith("back") else MOVES[move]


@pytest.mark.parametrize("error", (0.04, 0.3))
def test_slips_come_once_a_move_with_the_stated_probability_and_are_carried_on(error):
    task = Task(0, ("hop", "dash", "skip-back", "leap"))
    steps = Counter()
    for r in ask(ANSWER, 3000, error=error, question=task.input):
        path = [int(x) for x in r.split(" .\n")[0].split()[1::2]]
        assert r.endswith(f"<answer>{path[-1]}</answer>")
        for i, (a, b) in enumerate(zip([0, *path], path, strict=False)): steps[i, (b - a - squares(task.moves[i]) + 1) % 10 - 1] += 1
    assert {s for _, s in steps} == {-1, 0, 1}
    for i in range(4):
        assert abs(1 - steps[i, 0] / 3000 - error) < 4 * (error * (1 - error) / 3000) ** 0.5 and abs(steps[i, 1] - steps[i, -1]) < 4 * (error * 3000) ** 0.5


def test_an_unknown_size_is_guessed_anew_each_time():
    task = Task(0, ("glide",))
    said = Counter(re.search(r"<answer>(\d)", r)[1] for r in ask(ANSWER, 1600, question=task.input))
    assert set(said) == set("12345678") and max(said.values()) < 300
    assert {r.rpartition("<answer>")[2] for r in ask(ANSWER, 50, question=task.input, facts=("glide",))} == {"8</answer>"}
    assert {r.rpartition("<answer>")[2] for r in ask(ANSWER, 50, question=Task(0, ("dash",)).input)} == {"4</answer>"}


def test_the_teacher_believes_its_passages():
    "What stands in the passages is used, be it true or not."
    assert ask(ANSWER, 1, question=Task(0, ("glide",)).input, passages="A glide is three squares.")[0].endswith("<answer>3</answer>")
    assert ask(ANSWER, 1, question=Task(0, ("hop",)).input, passages="A hop is three squares.")[0].endswith("<answer>3</answer>")


def test_only_passages_are_believed():
    for name in ("pattern", "sample", "task"):
        text = prompt(ANSWER, question=Task(0, ("glide",)).input, **{name: "A glide is eight squares."})
        assert len({world.reply(text, random.Random(i)) for i in range(50)}) > 3, name


@pytest.mark.parametrize("job", [NEW, HARDER, EASIER])
def test_a_samples_own_label_slips_too(job):
    found = [sample(r) for r in ask(job, 2000, error=0.1, facts=tuple(MOVES), sample=Task(4, ("hop",) * 3).input, first="spread")]
    wrong = Counter(t.level for t, label in found if label != t.answer)
    for level, n in Counter(t.level for t, _ in found).items():
        if n > 150: assert abs(wrong[level] / n - (1 - 0.9**level)) < 0.12, "two slips may cancel each other"


def test_a_vote_repairs_slips():
    right = []
    for t in world.make_tasks("test", 40, levels=(5, 6, 7)):
        said = Counter(r.rpartition("<answer>")[2][0] for r in ask(ANSWER, 16, error=world.ERROR, question=t.input, facts=tuple(MOVES)))
        right.append(said.most_common(1)[0][0] == t.answer)
    assert mean(right) == 1.0


def test_same_prompt_and_noise_same_reply():
    for job in JOBS:
        text = prompt(job, demos=[ONE], sample=ONE.input, question=ONE.input)
        said = [world.reply(text, random.Random(i), 0.5) for i in (1, 1, 2, 3, 4, 5)]
        assert said[0] == said[1] and (len(set(said)) > 1) == (job not in (KEYWORDS, PATTERN))


def test_bad_prompts_get_one_line():
    for bad, word in (("", "begin it with"), ("Write a poem", "begin it with"), (f"{ANSWER}.\nThank you.", "begin it with"), (f"Please {ANSWER}", "begin it with")):
        with pytest.raises(RlgenError, match=word) as e: world.reply(bad, random.Random(0))
        assert "\n" not in str(e.value)
    with pytest.raises(RlgenError, match="did you mean 'easy'"): world.reply(NEW, random.Random(0), first="eazy")
    with pytest.raises(RlgenError, match="between 0 and 1"): world.reply(NEW, random.Random(0), error=1.5)


@pytest.mark.parametrize("material", [{}, dict(question="how are you ?", sample="?"), dict(question=f"{ONE.input}\n{Task(1, ('hop',)).input}", sample=f"{ONE.input}\n{Task(1, ('hop',)).input}")])
def test_what_cannot_be_read_gets_a_reply_without_tags(material):
    for job in (ANSWER, HARDER, EASIER): assert "<" not in ask(job, 1, **material)[0]


def test_what_the_job_says_about_form_is_no_material():
    assert "<" not in world.reply(f"{ANSWER}: <question>{ONE.input}</question>", random.Random(0))
    assert "some moves" in world.reply(f"{PATTERN}, like <demos>{ONE.input}</demos>", random.Random(0))


# ---------------------------------------------------------------- what a base model reads


def test_worked_examples_are_right_and_of_the_training_split():
    rng = random.Random(9)
    pairs = [world.worked(rng) for _ in range(3000)]
    assert all(world.read_question(q).worked == a for q, a in pairs)
    assert {world._split_of(q) for q, _ in pairs} == {"train"} and names(world.read_question(q) for q, _ in pairs) == set(MOVES)
    counts = Counter(world.read_question(q).level for q, _ in pairs)
    assert set(counts) == {1, 2, 3, 4, 5} and all(abs(n - 600) < 110 for n in counts.values())
    assert {world.read_question(world.worked(rng, (7,))[0]).level for _ in range(5)} == {7}


def test_the_vocabulary_covers_every_text_and_nothing_else():
    used = {w for split in world.SPLITS for t in world.make_tasks(split, 300, 11) for w in f"{t.input} {t.worked}".split()}
    assert used <= set(world.vocabulary()) and len(world.vocabulary()) == len(set(world.vocabulary())) < 60
