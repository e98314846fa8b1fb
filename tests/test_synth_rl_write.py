"rlgen.synth_rl.write: what becomes a sample, which label it gets, how it is rewritten, and that every reply is accounted for."
import json
import math
import random
import re
from collections import Counter
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest

from helpers import line_of
from rlgen.chat import Oracle, Reply, Stopped, complete
from rlgen.core import jsonl, read_jsonl
from rlgen.synth_rl.prompts import read_pairs, read_prompt
from rlgen.synth_rl.tasks import Example, infer_task, load_task_data
from rlgen.synth_rl.write import OUTCOMES, Intake, Sample, Seen, adapt, as_rows, bearing, find_keywords, find_pattern, read_samples, rewrite, verify, write_initial
from rlgen.worlds import synth_rl as world

TASK = infer_task("sums", "Add the numbers.", ["3", "12", "7", "40"])
DEMOS = [Example("1 + 2", "3"), Example("5 + 7", "12"), Example("30 + 10", "40")]
PASSAGES = [SimpleNamespace(id=f"p{i}", title="", text=f"Fact f{i}.") for i in range(5)]


def said(text, error="", finish="stop") -> Reply: return Reply(text, "error" if error else finish, 1, 1, error=error)


def made(text, output) -> str: return f"<input>{text}</input>\n<output>{output}</output>"


def right(text) -> str: return str(sum(int(x) for x in re.findall(r"\d+", text)))


class Ask:
    "A teacher by rule that remembers what it was asked."

    def __init__(self, rule): self.rule, self.calls = rule, []

    def __call__(self, prompts, **options):
        self.calls.append((list(prompts), options))
        found = [self.rule(p, random.Random(json.dumps([p, i, options.get("seed")]))) for i, p in enumerate(prompts)]
        return [x if isinstance(x, Reply) else said(x) for x in found]

    @property
    def prompts(self): return [p for ps, _ in self.calls for p in ps]


def adder(prompt, rng, slip=0.0):
    "Writes sums, makes them longer or shorter, and answers them."
    seen, err = read_prompt(prompt), rng.random() < slip
    if "question" in seen: return f"I add. <answer>{int(right(seen['question'])) + err}</answer>"
    old = re.findall(r"\d+", read_pairs(seen["sample"])[0][0]) if "sample" in seen else []
    new = [str(rng.randrange(1000)) for _ in range(2)] if not old else [*old, str(rng.randrange(100))] if "harder" in seen["job"] else old[1:] or ["1"]
    return made(" + ".join(new), int(right(" ".join(new))) + err)


def sample(text, output="", **kw) -> Sample: return Sample(f"id-{text}", text, output or right(text), single=output or right(text), **kw)


# ---------------------------------------------------------------- rows


def test_samples_survive_a_file(tmp_path):
    many = [sample("1 + 1"), Sample("b", "x\ny \u2028 é", "7", "harder", "a", 2, ("p0", "p1"), "8", 0.75, 4, "1, 2, 7", 0.0), sample("2 + 2", agreement=0.0, rate=1.0)]
    (tmp_path / "s.jsonl").write_text(jsonl(as_rows(many)))
    assert read_samples(read_jsonl(tmp_path / "s.jsonl")) == many
    assert as_rows(many[:1]) == [dict(id="id-1 + 1", input="1 + 1", output="2", origin="initial", single="2")]


def test_foreign_rows():
    assert read_samples([dict(id="a", input="x", output="3", score=0.5, pass_rate=1)]) == [Sample("a", "x", "3")]
    assert line_of(read_samples, [dict(id="a", input="x", output="3"), dict(id="b", input="x")]).startswith("sample 1: no text under 'output'")
    assert "'id'" in line_of(read_samples, [dict(id=3, input="x", output="3")])


# ---------------------------------------------------------------- copies


def runs(text, n):
    found = re.findall(r"\w+|[^\w\s]", text.lower())
    return Counter(tuple(found[i : i + n]) for i in range(max(1, len(found) - n + 1)))


@pytest.mark.parametrize("near, n", [(0.3, 1), (0.5, 2), (0.7, 3), (0.9, 3), (1.0, 2), (0.05, 2)])
def test_near_texts_by_hand(near, n):
    "Against a comparison with every text that was let in, over texts that differ by a few words."
    rng, seen, kept, texts, said = random.Random(n), Seen(near=near, ngram=n), [], set(), []
    draw = lambda k: rng.choices("abcdefghijklmnopqrstuvw+-", [1 / i for i in range(1, 26)], k=k)
    base = [draw(rng.randrange(1, 90)) for _ in range(12)]
    for _ in range(160):
        words = list(rng.choice(base))
        for _ in range(rng.randrange(4)): words[rng.randrange(len(words))] = draw(1)[0]
        text = " ".join(words)
        alike = max(((runs(text, n) & k).total() / (runs(text, n) | k).total() for k in kept), default=0)
        expected = "same" if text in texts else "near" if alike >= near - 1e-12 else ""
        assert seen.look(text) == expected == seen.add(text)
        texts.add(text)
        if not expected: kept.append(runs(text, n))
        said.append(expected)
    assert {"same", ""} <= set(said) and (near == 1.0 or said.count("near") > 5)


@pytest.mark.parametrize("one, two", [("What is it ?", "what  is\nIT ?"), ("Ａ １", "a 1"), ("Straße", "STRASSE"), ("x", " x ")])
def test_the_same_in_other_letters(one, two): assert Seen([one]).look(two) == "same"


@pytest.mark.parametrize("one, two", [("3 + 2", "3 - 2"), ("3 + 2", "3 / 2"), ("-3", "3"), ("a ?", "a !"), ("1.5", "15"), ("2 3", "23")])
def test_signs_make_a_difference(one, two): assert Seen([one]).look(two) == ""


def test_a_text_and_its_half():
    "The tightest case: of ten words the five that are common are the five most frequent."
    half = "a b c d e"
    assert Seen([half], near=0.5, ngram=1).look("v w x y z " + half) == "near" and Seen([half], near=0.5, ngram=1).look("u v w x y z " + half) == ""


def test_what_was_rare_becomes_frequent():
    "The index is made anew as words become frequent; else the first text, noted under d, e and f, would be looked for under g, h and i."
    seen = Seen(["a b c d e f g h i j", *(f"d e f s{i} t{i} u{i} v{i} w{i}" for i in range(20))], near=0.5, ngram=1)
    assert len(seen.runs) == 21 and seen.look("d e f g h i j x y z") == "near"


def test_repetitions_count():
    steps = lambda n: "go " + " , ".join(["a hop"] * n) + " ."
    assert Seen([steps(3)]).look(steps(4)) == "" and Seen([steps(30)]).look(steps(31)) == "near"


def test_only_the_same_above_one():
    long = " ".join(map(str, range(500)))
    assert Seen([long]).look(long + " more") == "near" and Seen([long], near=1.1).look(long + " more") == "" and Seen([long], near=1.1).look(long) == "same"
    assert "near = 0" in line_of(Seen, [], 0) and "ngram = 0" in line_of(Seen, [], 0.5, 0)


# ---------------------------------------------------------------- the gate


def test_every_reply_has_one_outcome():
    gate = Intake(TASK, ["1 + 2"], [Example("90 + 9", "99")], max_words=9)
    replies = [said(made("4 + 5", 9)), said(made("1 + 2", 3)), said(made("4  + 5", 9)), said(made("90 + 9", 99)), said(made("1 + " * 9 + "1", 10)), said("no"), said(" "), said("", "500"), said("<input>7 + 7</in", finish="length"), said(made("8 + 8", "many"))]
    out = gate.take(replies, [dict(origin="harder", parent=str(i)) for i in range(10)])
    report = gate.report()
    assert {k: report[k] for k in OUTCOMES} == dict(errors=1, empty=1, unreadable=3, long=1, same=2, near=0, test=1, kept=1) and report["asked"] == 10 and report["cut"] == 1
    assert out[1:] == [None] * 9 and (out[0].input, out[0].output, out[0].single, out[0].parent, out[0].origin) == ("4 + 5", "9", "9", "0", "harder")
    assert len(report["examples"]) == 3 and report["examples"][0] == "no" and report["cost"]["requests"] == 9
    again = gate.take([said(made("4 + 5", 9)), said(made("90 + 9", 99))], [{}] * 2)
    assert again == [None, None] and gate.report()["same"] == 4, "the gate remembers what it let in and what it didn't"


def test_ids_belong_to_the_question():
    one, two = (Intake(TASK).take([said(made(t, 9))], [{}])[0].id for t in ("4 + 5", "4 +  5"))
    assert one == two != Intake(TASK).take([said(made("4 + 6", 9))], [{}])[0].id


# ---------------------------------------------------------------- writing


def test_exactly_as_many_as_wanted():
    ask = Ask(adder)
    samples, report = write_initial(TASK, 30, ask, demos=DEMOS, passages=PASSAGES, pattern="two numbers", domain="small ones", temperature=0.7)
    assert len(samples) == 30 == len({s.id for s in samples}) and report["short"] == 0 and report["waves"] == 1 == len(ask.calls)
    assert all(s.output == right(s.input) == s.single and s.origin == "initial" and s.round == 0 and s.votes == 0 and s.agreement is None for s in samples)
    assert all(o["temperature"] == 0.7 and 0 <= o["seed"] < 2**31 for _, o in ask.calls)
    seen = read_prompt(ask.prompts[0])
    assert len(read_pairs(seen["demos"])) == 2 and seen["passages"].count("Fact") == 3 and seen["pattern"] == "two numbers" and "small ones" in seen["task"]
    assert all(tuple(re.findall(r"\d", read_prompt(p)["passages"])) == tuple(i[1:] for i in s.passages) for p, s in zip(ask.prompts, samples))
    assert len(set(ask.prompts)) > 25, "each request has its own material"


def test_waves_follow_the_yield():
    "About one reply in two is a sample: the second wave is as large as that makes necessary, and each has its own seed."
    ask = Ask(lambda p, rng: adder(p, rng) if rng.random() < 0.5 else "Sorry.")
    samples, report = write_initial(TASK, 40, ask, demos=DEMOS)
    sizes, seeds = [len(p) for p, _ in ask.calls], [o["seed"] for _, o in ask.calls]
    first = write_initial(TASK, 40, Ask(ask.rule), demos=DEMOS, attempts=1)[1]["kept"]
    assert len(samples) == 40 and sizes[:2] == [40, math.ceil((40 - first) * 40 / first)] and len(set(seeds)) == len(seeds) == report["waves"] > 1
    assert sum(report[k] for k in OUTCOMES) == report["asked"] == sum(sizes) and report["kept"] == 40 + report["spare"]
    again, other = (write_initial(TASK, 40, Ask(ask.rule), demos=DEMOS, seed=s)[0] for s in (0, 1))
    assert again == samples != other


def test_no_more_requests_than_allowed():
    ask = Ask(lambda p, rng: made(f"1 + {rng.randrange(3)}", 1))
    samples, report = write_initial(TASK, 20, ask, attempts=2.5)
    assert len(ask.prompts) == 50 == report["asked"] and len(samples) == 3 and report["short"] == 17 and report["same"] == 47
    for bad in (dict(n=0), dict(n=5, attempts=0.5)): assert "at least 1" in line_of(write_initial, TASK, ask=ask, **bad)


def test_demos_and_the_test_set_are_never_written():
    test = [Example(f"{i} + {j}", str(i + j)) for i in range(0, 10, 2) for j in range(10)]
    ask = Ask(lambda p, rng: made(f"{(i := rng.randrange(10))} + {(j := rng.randrange(10))}", i + j))
    samples, report = write_initial(TASK, 48, ask, demos=DEMOS, test=test, attempts=30)
    assert {s.input for s in samples} == {f"{i} + {j}" for i in range(1, 10, 2) for j in range(10)} - {d.input for d in DEMOS} and report["test"] > 0 and report["same"] > 0
    assert not any(f"Input: {e.input}\n" in p for p in ask.prompts for e in test), "nobody writes from the test set"


def test_a_teacher_without_noise_still_varies():
    "At temperature 0 a reply depends on the request alone; dealing makes the requests differ."
    teacher = Oracle(lambda p: adder(p, random.Random(p)))
    samples, report = write_initial(TASK, 20, partial(complete, backend=teacher), demos=DEMOS, passages=PASSAGES, temperature=0.0)
    assert len(samples) == 20
    alone, told = write_initial(TASK, 20, partial(complete, backend=teacher), temperature=0.0)
    assert len(alone) == 1 and told["same"] == 79, "without material all requests are one"


@pytest.mark.parametrize("rule, words", [
    (lambda p, rng: "I'd rather not.", "I'd rather not"), (lambda p, rng: said("", "connection refused"), "connection refused"), (lambda p, rng: said("<input>1", finish="length"), "30 cut off"), (lambda p, rng: " ", "an empty text"),
])  # fmt: skip
def test_nonsense_ends_after_one_wave(rule, words):
    ask = Ask(rule)
    assert words in (told := line_of(write_initial, TASK, 30, ask)) and "none of 30" in told and len(ask.calls) == 1


def test_bad_luck_with_a_few_is_no_nonsense():
    ask = Ask(lambda p, rng: adder(p, rng) if len(ask.calls) > 1 else "Sorry.")
    assert len(write_initial(TASK, 2, ask)[0]) == 2
    assert "none of 8" in line_of(write_initial, TASK, 2, Ask(lambda p, rng: "Sorry."))


def test_failed_requests_are_passed_over():
    samples, report = write_initial(TASK, 20, Ask(lambda p, rng: said("", "timeout") if rng.random() < 0.4 else adder(p, rng)))
    assert len(samples) == 20 and report["errors"] > 2 and report["cost"]["errors"] == report["errors"] and report["unreadable"] == 0


def test_nothing_is_paid_twice(tmp_path):
    "A run stopped by its budget goes on where it was; a finished one costs nothing; a longer one pays for the rest."
    teacher = Oracle(None, 1.0, lambda p, rng: adder(p, rng))
    ask = partial(complete, backend=teacher, cache=tmp_path)
    with pytest.raises(Stopped) as e: write_initial(TASK, 30, partial(ask, max_requests=12), demos=DEMOS, passages=PASSAGES)
    assert sum(not r.error for r in e.value.replies) == 12
    whole, report = write_initial(TASK, 30, ask, demos=DEMOS, passages=PASSAGES)
    assert report["cost"]["requests"] == report["asked"] - 12 and report["cost"]["cached"] == 12
    again, free = write_initial(TASK, 30, ask, demos=DEMOS, passages=PASSAGES)
    assert again == whole and free["cost"]["requests"] == 0
    _, more = write_initial(TASK, 50, ask, demos=DEMOS, passages=PASSAGES)
    assert more["cost"]["cached"] >= 30


def test_keywords_and_pattern():
    ask = Ask(lambda p, rng: ("Hm." if len(ask.calls) < 2 else "<keywords>sum, addend</keywords>") if "keywords" in p else "<pattern>two numbers</pattern>")
    found, report = find_keywords(TASK, ask, DEMOS, "for children", n=1)
    assert found == ["sum"] and report["asked"] == 2 and ask.calls[0][1]["seed"] != ask.calls[1][1]["seed"] and "for children" in ask.prompts[0]
    assert find_pattern(TASK, ask, DEMOS)[0] == "two numbers" and find_pattern(TASK, ask, [])[1]["asked"] == 0
    assert "none of 2 replies" in line_of(find_keywords, TASK, Ask(lambda p, rng: "No."), tries=2) and "timeout" in line_of(find_pattern, TASK, Ask(lambda p, rng: said("", "timeout")), DEMOS)


# ---------------------------------------------------------------- passages that bear on a question


def test_own_passages_then_rare_words():
    said = ["the red fox and the owl", "the red hen", "the red cow", "the red owl", "the red"]
    shelf = [SimpleNamespace(id=str(i), title="", text=t) for i, t in enumerate(said)]
    find = lambda text, own=(), k=9: [p.id for p in bearing(shelf, k)(sample(text, "1", passages=own))]
    assert find("The fox, and the OWL !") == ["0", "3"] and find("a red owl") == ["0", "3"] and find("the red") == [], "what stands everywhere counts nothing"
    assert find("the owl", ("4", "1")) == ["4", "1", "0", "3"] and find("the owl", ("3",)) == ["3", "0"] and find("the owl", ("4", "1", "gone"), 2) == ["4", "1"]
    assert find("cow") == ["2"] and bearing([], 3)(sample("cow", "1")) == [] and find("owl", k=0) == []
    by_title = [SimpleNamespace(id="a", title="Zebra", text="stripes"), SimpleNamespace(id="b", title="Ant", text="legs")]
    assert [p.id for p in bearing(by_title, 2)(sample("a zebra ?", "1"))] == ["a"]


# ---------------------------------------------------------------- votes


def ballots(**answers):
    "Answers by question, in their order."
    left = {k.replace("_", " "): iter(v) for k, v in answers.items()}
    return Ask(lambda p, rng: next(left[read_prompt(p)["question"]]))


def test_votes_by_hand():
    samples = [sample("q 1", "9", passages=("p1",)), sample("q 2", "2"), sample("q 3", "5"), sample("q 4", "4"), sample("q 5", "6")]
    ask = ballots(
        q_1=["hm", "no. <answer>9</answer>", "so <answer>1</answer>", "The answer is 1"], q_2=["<answer>2</answer>"] * 4,
        q_3=["<answer>3</answer>", "<answer>5</answer>", "<answer>5</answer>", "<answer>3</answer>"], q_4=["?", said("", "timeout"), " ", "<answer>x</answer>"], q_5=["<answer>6</answer>", "<answer>7</answer>", "<answer>8</answer>", "<answer>6</answer>"])  # fmt: skip
    gold = dict(zip((s.input for s in samples), ["1", "2", "3", "4", None])).get
    kept, report = verify(TASK, samples, ask, num_votes=4, min_agreement=0.6, passages=PASSAGES, gold=gold)
    assert kept == [replace(samples[0], output="1", agreement=0.6667, votes=3, reasoning="so"), replace(samples[1], agreement=1.0, votes=4)]
    counts = {k: v for k, v in report.items() if k not in ("cost", "truth")}
    assert counts == dict(n=5, kept=2, tied=1, weak=1, unanswered=1, answers=15, unreadable=4, errors=1, agreement=round((0.6667 + 1) / 2, 4), changed=0.5)
    assert report["truth"] == dict(known=4, unknown=1, single=0.5, voted=1.0, single_of_kept=0.5) and report["cost"]["requests"] == 19
    assert "Fact f1." in ask.prompts[0] and "f2" not in ask.prompts[0] and "Fact" not in ask.prompts[4] and len(ask.calls) == 1


def test_the_writers_label_is_not_shown():
    ask = Ask(adder)
    verify(TASK, [sample("1 + 1", "77777")], ask, num_votes=3)
    assert len(ask.prompts) == 3 and not any("77777" in p for p in ask.prompts)


def test_one_vote_is_the_writers():
    samples, ask = [sample("1 + 1", "7"), sample("2 + 2")], Ask(adder)
    kept, report = verify(TASK, samples, ask, num_votes=1, gold=right, min_agreement=0.9, temperature=0.0)
    assert kept == samples and not ask.calls and report["truth"] == dict(known=2, unknown=0, single=0.5, voted=0.5, single_of_kept=0.5) and report["agreement"] is None
    assert report["kept"] == report["n"] == 2


def test_votes_that_make_no_sense():
    assert "temperature 0" in line_of(verify, TASK, [sample("1 + 1")], Ask(adder), num_votes=4, temperature=0.0) and "num_votes = 0" in line_of(verify, TASK, [], Ask(adder), num_votes=0)
    assert "none of 16 replies" in line_of(verify, TASK, [sample("1 + 1")], Ask(lambda p, rng: "Hm."))
    assert verify(TASK, [], Ask(adder)) == ([], dict(n=0, kept=0, tied=0, weak=0, unanswered=0, answers=0, unreadable=0, errors=0, agreement=None, changed=None, cost=dict(requests=0, cached=0, errors=0, prompt_tokens=0, completion_tokens=0)))
    kept, report = verify(TASK, [sample("1 + 1")], Ask(lambda p, rng: "Hm."), num_votes=3)
    assert kept == [] and report["unanswered"] == 1, "a single unlucky sample stops nothing"


def test_texts_keep_the_writers_spelling():
    "Votes are compared in canonical form; a label that only looks otherwise isn't a changed one."
    task = infer_task("capitals", "Name the capital.", kind="text")
    ask = Ask(lambda p, rng: "<answer>the nile</answer>")
    kept, report = verify(task, [sample("river ?", "The Nile."), sample("stream ?", "The Rhine")], ask, num_votes=3, gold=lambda text: "the Nile")
    assert [s.output for s in kept] == ["The Nile.", "the nile"] and report["changed"] == 0.5 and report["truth"] == dict(known=2, unknown=0, single=0.5, voted=1.0, single_of_kept=0.5)


def test_a_vote_repairs_slips():
    "As often as arithmetic says: 15 answers, each wrong one time in four in the same way."
    samples = [sample(f"{i} + {i}") for i in range(300)]
    single, voted = (verify(TASK, samples, Ask(partial(adder, slip=0.25)), num_votes=n, gold=right)[1]["truth"] for n in (3, 15))
    exact = [sum(math.comb(n, k) * 0.25**k * 0.75 ** (n - k) for k in range(n // 2 + 1)) for n in (3, 15)]
    assert [single["voted"], voted["voted"]] == pytest.approx(exact, abs=0.05) and exact[1] > 0.98


# ---------------------------------------------------------------- rewriting


def test_harder_where_solved_easier_where_not():
    old = [sample("11 + 22 + 33", passages=("p2",), round=1), sample("44 + 55 + 66"), sample("7 + 8 + 9")]
    ask = Ask(adder)
    new, report = rewrite(TASK, old, [True, False, 1.0], ask, passages=PASSAGES, pattern="sums", round=2, temperature=0.3)
    assert [(s.origin, s.parent, s.round, len(re.findall(r"\d+", s.input))) for s in new] == [("harder", old[0].id, 2, 4), ("easier", old[1].id, 2, 2), ("harder", old[2].id, 2, 4)]
    assert new[0].passages == ("p2",) and "Fact f2" in ask.prompts[0] and "Fact" not in ask.prompts[1] and all(read_prompt(p)["pattern"] == "sums" for p in ask.prompts)
    assert [report[k] for k in ("asked", "solved", "harder", "easier", "short", "kept")] == [3, 2, 2, 1, 0, 3] and ask.calls[0][1]["temperature"] == 0.3
    assert "2 samples, but 1" in line_of(rewrite, TASK, old[:2], [True], ask)


def test_what_is_not_new_is_asked_for_again():
    "Parent, another sample, the test set, nonsense: each is refused once, then a new one comes."
    old, other, test = [sample(f"{i} + {i}") for i in range(11, 16)], [sample("50 + 50")], [Example("60 + 60", "120")]
    first = {old[0].input: made(old[0].input, 22), old[1].input: made("50 + 50", 100), old[2].input: made("60 + 60", 120), old[3].input: "Sorry."}
    ask = Ask(lambda p, rng: first.get(read_pairs(read_prompt(p)["sample"])[0][0], adder(p, rng)) if len(ask.calls) == 1 else adder(p, rng))
    new, report = rewrite(TASK, old, [True] * 5, ask, against=other, test=test)
    assert [s.parent for s in new] == [s.id for s in old] and [len(p) for p, _ in ask.calls] == [5, 4] and ask.calls[0][1]["seed"] != ask.calls[1][1]["seed"]
    assert [report[k] for k in ("same", "test", "unreadable", "kept", "short")] == [2, 1, 1, 5, 0]
    few, told = rewrite(TASK, old, [True] * 5, Ask(lambda p, rng: first.get(read_pairs(read_prompt(p)["sample"])[0][0], adder(p, rng))), against=other, test=test)
    assert [s.parent for s in few] == [old[4].id] and told["short"] == 4 and told["asked"] == 9


def test_two_parents_dont_get_the_same_child():
    new, report = rewrite(TASK, [sample("3 + 1 + 2"), sample("4 + 1 + 2")], [False, False], Ask(adder))
    assert len(new) == 1 and report["same"] == 2


def test_rewriting_nonsense():
    many = [sample(f"{i} + {i}") for i in range(12)]
    assert "rewriting samples: none of 12" in line_of(rewrite, TASK, many, [True] * 12, Ask(lambda p, rng: "No."))
    assert rewrite(TASK, many[:2], [True] * 2, Ask(lambda p, rng: "No."))[0] == [] and rewrite(TASK, [], [], Ask(adder))[0] == []


# ---------------------------------------------------------------- rounds


def count(s): return len(re.findall(r"\d+", s.input))


def test_one_round_is_the_papers():
    first, tried = [sample(f"{100 + i} + {200 + i}" + (" + 3 + 4" if i % 2 else "")) for i in range(20)], []
    def solve(samples): return tried.append(list(samples)) or [float(count(s) <= 3) for s in samples]
    pool, history = adapt(TASK, first, solve, Ask(adder), num_votes=3, gold=right)
    assert tried == [first] and [replace(s, rate=None) for s in pool[:20]] == first and [s.rate for s in pool[:20]] == [1.0, 0.0] * 10
    assert [s.origin for s in pool[20:]] == ["harder", "easier"] * 10 and [s.parent for s in pool[20:]] == [s.id for s in first] and all(s.votes == 3 and s.rate is None for s in pool[20:])
    (row,) = history
    assert (row["round"], row["tried"], row["solved"], row["rate"], row["pool"], row["enough"]) == (1, 20, 0.5, 0.5, 20, False) and row["written"]["kept"] == 20 and row["voted"]["truth"]["voted"] == 1.0


def test_rounds_follow_the_model():
    first, tried = [sample(f"{100 + i} + {200 + i}") for i in range(30)], []
    def solve(samples): return tried.extend(s.id for s in samples) or [max(0.0, 1.2 - 0.2 * count(s)) for s in samples]
    pool, history = adapt(TASK, first, solve, Ask(adder), rounds=4, num_votes=1, passages=PASSAGES)
    assert len(tried) == len(set(tried)) and [h["round"] for h in history] == [1, 2, 3, 4] and len({s.id for s in pool}) == len(pool) == len({s.input for s in pool})
    known, by_round = {s.id: s for s in pool}, {r: [count(s) for s in pool if s.round == r] for r in range(5)}
    assert [set(by_round[r]) for r in range(5)] == [{2}, {3}, {4}, {3}, {4}]
    for s in pool:
        if s.parent: assert known[s.parent].round == s.round - 1 and (s.origin == "harder") == (known[s.parent].rate >= 0.5)
    assert {s.id for s in pool if s.rate is not None} == set(tried) and all(s.rate is None for s in pool if s.round == 4)


def test_enough_ends_it_before_anything_is_asked():
    ask, heard = Ask(adder), []
    def enough(rates): return heard.append(list(rates)) or len(rates) > 10
    pool, history = adapt(TASK, [sample(f"{i} + {i}") for i in range(10, 20)], lambda s: [1.0] * len(s), ask, rounds=5, enough=enough, num_votes=1)
    assert [len(h) for h in heard] == [10, 20] and [h["enough"] for h in history] == [False, True] and len(ask.calls) == 1 and "written" not in history[1] and len(pool) == 20


def test_rates_from_which_a_sample_is_solved():
    first = [sample(f"{i} + {i} + {i}") for i in (11, 12, 13)]
    origins = {x: [s.origin for s in adapt(TASK, first, lambda s: [0.2, 0.5, 0.8], Ask(adder), num_votes=1, solved_from=x)[0][3:]] for x in (0.1, 0.5, 0.8, 0.9)}
    assert origins == {0.1: ["harder"] * 3, 0.5: ["easier", "harder", "harder"], 0.8: ["easier", "easier", "harder"], 0.9: ["easier"] * 3}


def test_rounds_that_bring_nothing_end():
    ask = Ask(lambda p, rng: made("1 + 1", 2))
    pool, history = adapt(TASK, [sample("1 + 1"), sample("2 + 2")], lambda s: [1.0] * len(s), ask, rounds=5)
    assert len(history) == 1 and len(pool) == 2
    pool, history = adapt(TASK, [sample("1 + 1")], lambda s: [1.0] * len(s), Ask(adder), rounds=0)
    assert history == [] and pool == [sample("1 + 1")]
    assert "1 rates for 2 samples" in line_of(adapt, TASK, [sample("1 + 1"), sample("2 + 2")], lambda s: [1.0], ask)


def test_what_was_there_never_comes_back():
    "A demonstration, a test question and a sample of two rounds ago are each offered first, and refused."
    offers, first = iter(["3 + 3", "1 + 1", "60 + 60"] * 2), [sample("1 + 1"), sample("2 + 2"), sample("4 + 4")]
    ask = Ask(lambda p, rng: adder(p, rng) if "question" in read_prompt(p) or ask.prompts.count(p) > 1 else made(t := next(offers), right(t)))
    pool, history = adapt(TASK, first, lambda s: [1.0] * len(s), ask, rounds=2, num_votes=3, against=[Example("3 + 3", "6")], rewriting=dict(test=[Example("60 + 60", "120")]))
    assert [(h["written"]["same"], h["written"]["test"], h["written"]["kept"]) for h in history] == [(2, 1, 3), (2, 1, 3)] and [count(s) for s in pool] == [2] * 3 + [3] * 3 + [4] * 3


def test_passages_go_along():
    ask = Ask(adder)
    pool, _ = adapt(TASK, [sample("1 + 1", passages=("p1",)), sample("2 + 2")], lambda s: [1.0] * len(s), ask, num_votes=2, passages=PASSAGES)
    assert [s.passages for s in pool] == [("p1",), ()] * 2 and ["Fact f1" in p for p in ask.prompts] == [True, False, True, True, False, False]
    two, few = [sample("1 + 1", passages=("p1", "p3")), sample("2 + 2", passages=("p3", "p1"))], Ask(adder)
    adapt(TASK, two, lambda s: [1.0] * len(s), few, num_votes=2, passages=[*PASSAGES, SimpleNamespace(id="q", title="", text="1 2 f9")], passages_each=1)
    assert [re.findall("f[0-9]", p) for p in few.prompts] == [["f1"], ["f3"]] + [["f1"]] * 2 + [["f3"]] * 2


def test_options_reach_the_teacher():
    ask = Ask(adder)
    adapt(TASK, [sample("1 + 1"), sample("2 + 2")], lambda s: [1.0] * len(s), ask, num_votes=4, temperature=0.9, max_tokens=7, vote_options=dict(temperature=0.5), rewriting=dict(pattern="sums"))
    assert [(o["temperature"], o["max_tokens"], len(p)) for p, o in ask.calls] == [(0.9, 7, 2), (0.5, 7, 8)] and "sums" in ask.prompts[0]


# ---------------------------------------------------------------- the world


def test_the_world_end_to_end(tmp_path):
    "A teacher that begins too easily is led to where a solver of three moves hesitates, and votes repair its slips."
    teacher = Oracle(None, 1.0, lambda p, rng: world.reply(p, rng, error=0.1), name="world")
    ask = partial(complete, backend=teacher, cache=tmp_path)
    task = infer_task("track", world.INSTRUCTION, [t.answer for t in world.make_tasks("train", 50)])
    demos = [Example(t.input, t.answer) for t in world.make_tasks("train", 3, levels=(2, 3))]
    passages = [SimpleNamespace(**p) for p in world.library() if world.stated_sizes(p["text"])][:12]
    test = [Example(t.input, t.answer) for t in world.make_tasks("test", 200)]
    gold = lambda text: (t := world.read_question(text)) and t.answer
    level = lambda s: world.read_question(s.input).level
    go = lambda: write_initial(task, 60, ask, demos=demos, passages=passages, test=test, near=1.1)
    first, report = go()
    assert len(first) == 60 and max(map(level, first)) <= 3 and report["unreadable"] == 0
    voted, told = verify(task, first, ask, num_votes=9, passages=passages, gold=gold)
    assert told["truth"]["voted"] > told["truth"]["single"]
    solve = lambda samples: [min(1.0, max(0.0, 1.4 - 0.25 * level(s))) for s in samples]
    pool, history = adapt(task, voted, solve, ask, rounds=3, num_votes=9, passages=passages, gold=gold, rewriting=dict(test=test, near=1.1))
    share = lambda rows: sum(2 <= level(s) <= 5 for s in rows) / len(rows)
    assert share([s for s in pool if s.round == 3]) > 0.7 and {level(s) for s in pool} >= {1, 2, 3, 4, 5}
    assert not {s.input for s in pool} & {e.input for e in test}
    assert go()[1]["cost"]["requests"] == 0 and go()[0] == first


@pytest.mark.slices
def test_real_questions_are_no_copies_of_each_other(slices):
    "A thousand word problems are all new, and each is known again with a word changed, in other letters, or as it is."
    rows, _ = load_task_data(slices / "gsm8k" / "train.jsonl")
    texts = [e.input for e in rows[:1000]]
    seen = Seen()
    assert sum(seen.add(t) == "" for t in texts) >= 995
    long = [t for t in texts if len(t.split()) > 70]
    changed = [" ".join(["Surely", *t.split()[1:]]) for t in long]
    assert len(long) > 50 and {seen.look(t.upper()) for t in texts} <= {"same"} and {seen.look(t) for t in changed} == {"near"}
