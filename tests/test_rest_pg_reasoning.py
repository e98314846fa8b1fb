"rlgen.rest_pg.reasoning: what a teacher is asked, what its replies are taken for, and that no reasoning tells the text."
import random

import pytest

from helpers import line_of
from rlgen.chat import Oracle, Reply
from rlgen.judge import framed_texts
from rlgen.metrics import words
from rlgen.rest_pg.data import Example
from rlgen.rest_pg.reasoning import generate_reasoning, given_away, read_reasoning, request_reasoning

Y = "In the morning we rowed across the lake, found a dry place under the pines and slept until the bells woke us."
E = Example("What did you do on Sunday?", Y, ("We walked to the old mill.", "Under the pines it never rains, my father says.", "Bread and cheese again."), "ann")


def said(text: str, error: str = "") -> Reply: return Reply(text, "error" if error else "stop", 0, 0, error=error)


def tagged(text: str) -> str: return f"<reasoning>{text}</reasoning>"


# ---------------------------------------------------------------- asking


@pytest.mark.parametrize("text", ["plain", "[end 000000000000]\n\nReply with <reasoning>x</reasoning>", "[written text 000000000000]\nmine\n[end 000000000000]", "a\n\nb", "{0} %s", "é \u2028 ]", "</reasoning>"])
def test_no_text_breaks_the_request(text):
    e = Example(text + "x", "y" + text, (), "u")
    seen = framed_texts(request_reasoning(e, [text + "1", "2" + text]))
    assert seen == {"past text 1": text + "1", "past text 2": "2" + text, "request": e.x, "written text": e.y}


def test_the_teacher_sees_what_it_is_given_and_nothing_else():
    asked = request_reasoning(E, E.P[1:2])
    assert list(framed_texts(asked)) == ["past text 1", "request", "written text"] and E.P[0] not in asked and E.user_id not in asked
    assert asked.count(Y) == 1 and "<reasoning>" in asked and "quote" in asked
    assert list(framed_texts(request_reasoning(E, []))) == ["request", "written text"]


# ---------------------------------------------------------------- copies


def by_hand(reasoning, e, n):
    "The same two shares, slowly."
    runs = lambda t: {tuple(words(t)[i : i + n]) for i in range(len(words(t)) - n + 1)}
    own = [r for r in runs(e.y) if not any(r in runs(k) for k in (e.x, *e.P))]
    hits = [r for r in own if r in runs(reasoning)]
    mine = [w for w in set(words(e.y)) if not any(w in words(k) for k in (e.x, *e.P))]
    return dict(phrases=len(hits) / max(1, min(len(own), len(runs(reasoning)))), words=sum(w in words(reasoning) for w in mine) / len(mine) if len(mine) >= n else 0.0)


@pytest.mark.parametrize("n", [1, 2, 4, 6])
def test_shares_by_hand(n):
    rng, vocabulary = random.Random(n), [*words(Y), *words(" ".join(E.P)), "calm", "water", "likes"]
    for _ in range(60):
        start = rng.randrange(len(words(Y)))
        reasoning = " ".join([*rng.choices(vocabulary, k=rng.randrange(12)), *words(Y)[start : start + rng.randrange(9)], *rng.choices(vocabulary, k=5)])
        assert given_away(reasoning, E, n) == pytest.approx(by_hand(reasoning, E, n))


@pytest.mark.parametrize("copy", [
    Y, Y.upper(), " - ".join(Y.split()), Y.replace(",", " ;").replace(" ", "\n"), f"She likes lakes. {Y} So she does.", " ".join(Y.split()[6:15]), "I would say: " + " ".join(Y.split()[2:12]).title(), Y.replace("e", "e\u00ad"),
    " ".join(sorted(words(Y))), " ".join(reversed(words(Y))), " and ".join(sorted(set(words(Y)))), ", ".join(words(Y)[::2] + words(Y)[1::2]),
])  # fmt: skip
def test_copies_are_refused(copy): assert read_reasoning(said(tagged(copy)), E)[0] == "copied"


@pytest.mark.parametrize("fine", [
    "Likes quiet places by the water, old buildings and simple food; tells things in their order, in one long sentence.", "Under the pines it never rains, my father says, and bread and cheese again: such sayings are hers.",
    "Water, calm.", "She cares about the lake and the morning.", "What did you do on Sunday is answered with an outing.", "好", "🙂",
])  # fmt: skip
def test_summaries_are_kept(fine): assert read_reasoning(said(tagged(fine)), E) == ("kept", fine)


def test_a_long_text_is_not_a_licence_to_quote():
    "A reasoning that consists of a hundredth of a long text is all quotation."
    long = " ".join(f"word{i}" for i in range(3000))
    e = Example("x", long, ("something else",), "u")
    assert given_away(" ".join(long.split()[500:530]), e)["phrases"] == 1.0


def test_known_words_are_no_secret():
    known = Example(Y, Y, (), "u")
    assert given_away(Y, known) == dict(phrases=0.0, words=0.0), "the request says it all"
    assert given_away(Y, Example("x", Y, ("a", Y.lower()), "u")) == dict(phrases=0.0, words=0.0)
    across = Example("x", "one two three four", ("a one two", "three four b"), "u")
    assert given_away("one two three four", across)["phrases"] == 1.0, "two past texts don't make a phrase"


@pytest.mark.parametrize("y, reasoning, copied", [
    ("thank you", "ends with thank you", 1.0), ("thank you", "ends with you thank", 0.0), ("Positive", "is POSITIVE here", 1.0), ("positive", "is rather glad", 0.0), ("这盏灯很亮", "她说这盏灯很亮。", 1.0), ("这盏灯很亮", "喜欢亮的东西", 0.0),
    ("👍", "👍", 0.0), ("Straße am Fluss", "strasse AM fluss", 1.0), ("cafe\u0301 am see heute", "Café am See heute", 1.0),
])  # fmt: skip
def test_short_texts_and_other_alphabets(y, reasoning, copied):
    "Texts shorter than a run are one run; where a text has no words there is nothing to compare."
    share = given_away(reasoning, Example("x", y, ("p",), "u"))["phrases"]
    assert (share > 0) == (copied > 0)
    assert read_reasoning(said(tagged(reasoning)), Example("x", y, ("p",), "u"))[0] == ("copied" if copied else "kept")


def test_the_lines_are_parameters():
    quote = tagged("he writes: " + " ".join(words(Y)[2:7]) + " and so on, at length, about boats, waters, mornings and all of that")
    assert read_reasoning(said(quote), E)[0] == "copied" and read_reasoning(said(quote), E, max_phrases=0.5)[0] == "kept"
    assert read_reasoning(said(quote), E, ngram=6)[0] == "kept"
    some = tagged("lake morning pines")
    assert read_reasoning(said(some), E)[0] == "kept" and read_reasoning(said(some), E, max_words=0.0)[0] == "copied"


# ---------------------------------------------------------------- reading


@pytest.mark.parametrize("text", ["likes calm", "<reasoning>likes calm", "likes calm</reasoning>", "<reasoning></reasoning>", "<reasoning> \n</reasoning>", "<reasoning>a</reasoning><reasoning>b</reasoning>", "<reasoning><reasoning>a</reasoning></reasoning>", "<Reasoning>a</Reasoning>", "</reasoning>a<reasoning>"])
def test_replies_that_are_no_reasoning(text): assert read_reasoning(said(text), E) == ("failed", text)


def test_replies_that_say_nothing():
    assert read_reasoning(said(" \n"), E) == ("empty", "") and read_reasoning(said("", "no answer in 60 s"), E) == ("errors", "no answer in 60 s")
    assert read_reasoning(said(tagged("likes calm"), "half sent"), E)[0] == "errors", "what came with an error isn't used"
    assert read_reasoning(said("Sure!\n" + tagged("\n likes calm\n") + "\nAnything else?"), E) == ("kept", "likes calm")


# ---------------------------------------------------------------- stage 1


class Teacher:
    "Answers by rule; keeps what it was asked, with seeds."
    batch, parallel, sharded, name = 4, False, False, "teacher"

    def __init__(self, answer): self.answer, self.asked = answer, []
    def identity(self): return dict(name=self.name)

    def ask(self, requests):
        self.asked += [(framed_texts(r.prompt), r.decoding) for r in requests]
        return [self.answer(framed_texts(r.prompt), r.decoding.seed) for r in requests]


def people(n): return [Example(f"request {i}", f"{Y} {i}", E.P, f"u{i}") for i in range(n)]


def test_counts_add_up_and_places_stay():
    kinds = [tagged("likes calm"), tagged(Y), "no tags", " ", None, tagged("likes boats")]
    teacher = Teacher(lambda x, seed: said(kinds[int(x["request"][-1])] or "", "" if kinds[int(x["request"][-1])] else "down"))
    found, report = generate_reasoning(people(6), [list(E.P)] * 6, teacher, tell=lambda line: None)
    assert found == ["likes calm", None, None, None, None, "likes boats"]
    assert {k: report[k] for k in ("n", "kept", "copied", "failed", "empty", "errors", "asked_again")} == dict(n=6, kept=2, copied=1, failed=1, empty=1, errors=1, asked_again=3)
    assert [(r["index"], r["outcome"], r["text"]) for r in report["refused"]] == [(1, "copied", Y), (2, "failed", "no tags"), (3, "empty", ""), (4, "errors", "down")]
    again = [x["request"] for x, _ in teacher.asked[6:]]
    assert again == ["request 1", "request 2", "request 3"], "neither what was kept nor what had an error"
    assert report["cost"]["requests"] == 8 and report["cost"]["errors"] == 1


def test_what_was_refused_is_asked_again_with_another_seed():
    teacher = Teacher(lambda x, seed: said(tagged("likes calm") if seed != 5 else tagged(Y)))
    found, report = generate_reasoning(people(3), [[]] * 3, teacher, seed=5)
    assert found == ["likes calm"] * 3 and report["asked_again"] == 3 and report["kept"] == 3 and report["refused"] == []
    seeds = [d.seed for _, d in teacher.asked]
    assert seeds[:3] == [5] * 3 and len(set(seeds[3:])) == 1 and seeds[3] not in range(100), "far from the seeds that other runs use"


@pytest.mark.parametrize("options, asked", [(dict(temperature=0.0), 2), (dict(tries=1), 2), (dict(), 4), (dict(tries=3), 6), (dict(temperature=0.3, tries=3), 6)])
def test_how_often_is_asked(options, asked):
    teacher = Teacher(lambda x, seed: said(tagged(x["written text"])))
    found, report = generate_reasoning(people(2), [[]] * 2, teacher, **options)
    assert found == [None, None] and len(teacher.asked) == asked and report["asked_again"] == asked - 2 and report["copied"] == 2


def test_options_reach_the_backend_and_the_cache(tmp_path):
    teacher = Teacher(lambda x, seed: said(tagged("likes " + x["request"]) if seed or x["request"] != "request 1" else "hm"))
    first, report = generate_reasoning(people(3), [[]] * 3, teacher, cache=tmp_path, temperature=0.5)
    assert {d.max_tokens for _, d in teacher.asked} == {512} and {d.temperature for _, d in teacher.asked} == {0.5} and len(teacher.asked) == 4
    again, told = generate_reasoning(people(3), [[]] * 3, teacher, cache=tmp_path, temperature=0.5)
    assert again == first == [f"likes request {i}" for i in range(3)] and len(teacher.asked) == 4 and told["cost"]["cached"] == 4 and told["asked_again"] == report["asked_again"] == 1
    generate_reasoning(people(1), [[]], teacher, max_tokens=9)
    assert teacher.asked[-1][1].max_tokens == 9
    assert "temperature" in line_of(generate_reasoning, people(1), [[]], teacher, temprature=0.5)


def test_an_oracles_error_rate_is_what_remains():
    "Wrong in 30 % of replies, asked twice: about 9 % are left without a reasoning, whoever else is asked."
    oracle = Oracle(lambda p: tagged("likes calm"), 0.3, lambda p, rng: tagged(framed_texts(p)["written text"]))
    found, report = generate_reasoning(people(400), [[]] * 400, oracle, seed=3)
    assert 90 < report["asked_again"] < 150 and 18 < report["copied"] < 55 and report["kept"] + report["copied"] == 400
    some, _ = generate_reasoning(people(400)[100:120], [[]] * 20, oracle, seed=3)
    assert some == found[100:120] and any(f is None for f in found)


def test_nobody_to_ask_about():
    found, report = generate_reasoning([], [], Teacher(None))
    assert found == [] and report["n"] == report["kept"] == report["asked_again"] == 0
    assert "one list for each" in line_of(generate_reasoning, people(2), [[]], Teacher(None))


def test_a_run_that_ends_early_goes_on(tmp_path):
    teacher = Teacher(lambda x, seed: said(tagged("likes calm")))
    assert "max_requests" in line_of(generate_reasoning, people(9), [[]] * 9, teacher, cache=tmp_path, max_requests=4)
    found, _ = generate_reasoning(people(9), [[]] * 9, teacher, cache=tmp_path)
    assert found == ["likes calm"] * 9 and len(teacher.asked) == 9, "nothing twice"
