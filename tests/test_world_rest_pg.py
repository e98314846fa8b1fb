"""The world of REST-PG: exact reward, exact posterior, a teacher with a stated error, tables that need two tastes."""
import itertools
import math
import random
import subprocess
import sys
from collections import Counter
from statistics import mean

import pytest

from rlgen.core import RlgenError
from rlgen.worlds import rest_pg as world

ALL = list(itertools.product(*world.TASTES))
TABLES = (world.MEETS, world.FINDS, world.HEARS)


@pytest.fixture(scope="module")
def people():
    return world.make_people("valid", 400, seed=100)


def told(who, what, sound, topic="wedding"): return f"story of {topic} : {who} with {what} and {sound} ."


# ---------------------------------------------------------------- words


def test_importing_it_loads_no_torch():
    done = subprocess.run([sys.executable, "-c", "import sys, rlgen.worlds.rest_pg; print(sorted({'torch', 'transformers', 'numpy'} & set(sys.modules)))"], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr[-500:]


def test_no_word_means_two_things():
    "A taste, a sign, a topic and a word that counts are never the same word; each sign shows one taste; each story word stands in one table."
    families = [{t for ts in world.TASTES for t in ts}, set(world.SHOWS), set(world.TOPICS), set(world.ADJECTIVES), set(world.GOODS), *(set(t.values()) for t in (*TABLES, *world.RHYMES))]
    assert sum(map(len, families)) == len(set().union(*families))
    assert len(world.SHOWS) == 30 and Counter(world.SHOWS.values()) == Counter({(i, t): 2 for i, ts in enumerate(world.TASTES) for t in ts})


def test_tables_are_whole_and_even():
    "25 cells of 6 words; no word is more than a third of a table, and no taste leaves fewer than three words open."
    for table, (down, across) in zip(TABLES, ((0, 1), (1, 2), (0, 2))):
        assert set(table) == set(itertools.product(world.TASTES[down], world.TASTES[across]))
        assert len(set(table.values())) == 6 and max(Counter(table.values()).values()) <= 8
        for side, tastes in enumerate((world.TASTES[down], world.TASTES[across])):
            for t in tastes: assert len({w for pair, w in table.items() if pair[side] == t}) >= 3


def best_by_points(table, rounds=200):
    "The most cells that a perceptron's points for single tastes get (it finds a rule without fault where there is one)."
    words, points, best = sorted(set(table.values())), Counter(), 0
    for _ in range(rounds):
        said = {pair: max(words, key=lambda w: sum(points[t, w] for t in pair)) for pair in table}  # noqa: B023
        best = max(best, sum(said[pair] == w for pair, w in table.items()))
        for pair, w in table.items():
            guess = max(words, key=lambda v: sum(points[t, v] for t in pair))  # noqa: B023
            if guess != w:
                for t in pair: points[t, w], points[t, guess] = points[t, w] + 1, points[t, guess] - 1
    return best / len(table)


def test_tables_do_not_add_up():
    assert all(best_by_points(t) < 0.8 for t in TABLES)
    assert best_by_points({pair: pair[0] for pair in world.MEETS}) == 1.0, "a table that one taste decides is found out"


def test_the_ablation_needs_one_taste_a_word():
    "Changing a taste changes that word in a rhyme, always and alone; in a story it may change two words and never the third."
    for tastes, i in itertools.product(ALL, range(3)):
        for other in world.TASTES[i]:
            if other == tastes[i]: continue
            swapped = (*tastes[:i], other, *tastes[i + 1 :])
            assert [a != b for a, b in zip(world.words_for(tastes, "rhyme"), world.words_for(swapped, "rhyme"))] == [j == i for j in range(3)]
            changed = [a != b for a, b in zip(world.words_for(tastes), world.words_for(swapped))]
            assert not changed[{0: 1, 1: 2, 2: 0}[i]]
    for place, pair in enumerate(((0, 1), (1, 2), (0, 2))):
        for i in pair: assert any(world.words_for(t)[place] != world.words_for((*t[:i], o, *t[i + 1 :]))[place] for t in ALL for o in world.TASTES[i]), "needed"


def test_the_word_list_is_complete_and_holds_nothing_else(people):
    from rlgen.rest_pg.prompt import CLOSE, OPEN

    there, seen = set(world.vocabulary()), set()
    everybody = people + world.make_people("train", 400, 100, "rhyme")
    for p in everybody: seen |= {w for t in (*p.P, p.x, p.y, world.describe(p.tastes), world.guess(p.P, p.x), world.teach(p.P, p.x, p.y)) for w in t.split()}
    for d in world.demonstrations(2000, seed=100): seen |= {w for v in d.values() for t in ([v] if isinstance(v, str) else v) for w in t.split()}
    assert seen == there and world.vocabulary() == sorted(there) and not there & {OPEN, CLOSE}


def test_the_shipped_model_knows_every_word():
    from rlgen.lm import load_lm
    from rlgen.rest_pg.prompt import CLOSE, OPEN, prompt_text

    t, e = load_lm("zoo/stories").tokenizer, world.make_people("train", 1)[0]
    assert t.unk_token_id not in t(" ".join([*world.vocabulary(), OPEN, CLOSE, prompt_text(e.x, e.P)])).input_ids


# ---------------------------------------------------------------- people


def test_sides_share_nobody_and_ask_for_the_same_kind():
    sides = {s: {p.P for seed in range(3) for p in world.make_people(s, 300, seed)} for s in ("train", "valid", "test")}
    assert all(not sides[a] & sides[b] for a, b in itertools.combinations(sides, 2)) and {len(v) for v in sides.values()} == {900}
    ids = [p.user_id for s in ("train", "valid", "test") for seed in (0, 1) for p in world.make_people(s, 50, seed)]
    assert len(set(ids)) == len(ids)


def test_more_people_are_the_same_people_and_more():
    assert world.make_people("test", 30) == world.make_people("test", 60)[:30] != world.make_people("test", 30, 1)


def test_what_a_person_is(people):
    for p in people[:100]:
        assert len(p.P) == world.TEXTS + world.LISTS and sum(t.startswith("list : ") for t in p.P) == world.LISTS
        assert all(sorted(world.SHOWS[w][0] for w in t.split() if w in world.SHOWS) == ([] if t.startswith("list") else [0, 1, 2]) for t in p.P), "one sign of each kind"
        assert p.x == f"write a story of {p.topic}" and p.topic in p.y.split() and not set(p.tastes) & {w for t in (*p.P, p.x, p.y) for w in t.split()}, "tastes are never named"


def test_signs_are_true_as_often_as_stated(people):
    signs = [(world.SHOWS[w], p.tastes) for p in people for t in p.P for w in t.split() if w in world.SHOWS]
    assert mean(tastes[i] == t for (i, t), tastes in signs) == pytest.approx(world.TRUTH, abs=4 * math.sqrt(0.21 / len(signs)))
    wrong = Counter((i, t) for (i, t), tastes in signs if tastes[i] != t)
    assert len(wrong) == 15 and min(wrong.values()) > 0.6 * max(wrong.values()), "errors go everywhere"


def test_unknown_kinds_get_one_line():
    with pytest.raises(RlgenError, match="did you mean 'story'") as e: world.make_people("train", 1, kind="stroy")
    assert "\n" not in str(e.value)


# ---------------------------------------------------------------- the gold reward


def test_gold_by_hand():
    tastes, x = ("calm", "sea", "rain"), "write a story of wedding"
    def gold(text, x=x): return world.gold_reward(tastes, x, text)
    assert world.words_for(tastes) == ("shepherd", "net", "thunder")
    assert gold("story of wedding : shepherd with net and thunder .") == 1
    assert gold("story of wedding : strange shepherd with bright net and thunder .") == 1, "adjectives are free"
    assert gold("thunder net wedding shepherd") == 1, "so is the order"
    assert gold(told("clerk", "net", "thunder")) == gold(told("shepherd", "bell", "thunder")) == gold(told("shepherd", "net", "drums")) == pytest.approx(2 / 3)
    assert gold(told("shepherd clerk", "net", "thunder")) == gold(told("shepherd shepherd", "net", "thunder")) == pytest.approx(2 / 3), "naming two is hedging"
    assert gold(told("shepherd", "net net", "thunder drums")) == pytest.approx(1 / 3) and gold(told("clerk", "bell", "drums")) == 0
    assert gold(told("shepherd", "net", "thunder", topic="market")) == gold("") == gold(None) == gold("wedding") == 0
    rhyme = "write a rhyme of wedding"
    assert gold("rhyme of wedding : lullaby with boat and cloak .", rhyme) == 1 and gold(told("shepherd", "net", "thunder"), rhyme) == 0


def test_gold_of_what_people_write_is_full(people):
    for p in people + world.make_people("test", 200, 100, "rhyme"): assert world.gold_reward(p.tastes, p.x, p.y) == 1.0


def test_gold_by_counting_words(people):
    "Another way to the same number: every family's words in the text, counted."
    rng = random.Random(0)
    bag = [*(w for t in TABLES for w in t.values()), *world.TOPICS, "with", "old"]
    for p in people[:60]:
        text = " ".join([rng.choice([p.topic, "with"]), *rng.choices(bag, k=5)])
        seen, want = Counter(text.split()), 0.0
        for table, pair in zip(TABLES, (p.tastes[:2], p.tastes[1:], p.tastes[::2])):
            right = table[pair]
            want += seen[right] == 1 and sum(seen[w] for w in set(table.values())) == 1
        assert world.gold_reward(p.tastes, p.x, text) == pytest.approx((want / 3) * (seen[p.topic] > 0))


# ---------------------------------------------------------------- the posterior


def likelihood(tastes, P):
    "How probable past texts are for somebody, sign by sign, with the choice between a taste's two signs and the order."
    total = 1.0
    for text in P:
        for i, t in (world.SHOWS[w] for w in text.split() if w in world.SHOWS): total *= (world.TRUTH if t == tastes[i] else (1 - world.TRUTH) / 4) / 2
        total *= 1 / 6 / len(world.TOPICS) if text.startswith(("story", "rhyme")) else 1.0
    return total


def brute(P):
    "The probability of all 125 tastes."
    weights = {t: likelihood(t, P) for t in ALL}
    return {t: w / sum(weights.values()) for t, w in weights.items()}


def test_posterior_is_bayes_over_all_tastes(people):
    for p in people[:25]:
        known = world.posterior(p.P)
        for tastes, chance in brute(p.P).items(): assert math.prod(k[t] for k, t in zip(known, tastes)) == pytest.approx(chance, abs=1e-12)
    for known in world.posterior(("list : bread tea salt .",)): assert list(known.values()) == pytest.approx([0.2] * 5)


def test_posterior_is_calibrated():
    "Of what it gives 60 to 70 % to, 60 to 70 % are right: people are simulated, nothing of its formula is used."
    seen = [(chance, t == own) for p in world.make_people("train", 6000, 101) for k, own in zip(world.posterior(p.P), p.tastes) for t, chance in k.items()]
    edges = (0.0, 0.05, 0.2, 0.4, 0.6, 0.8, 0.95, 1.01)
    for low, high in itertools.pairwise(edges):
        part = [(c, hit) for c, hit in seen if low <= c < high]
        chance, hits = mean(c for c, _ in part), mean(hit for _, hit in part)
        assert hits == pytest.approx(chance, abs=4 * math.sqrt(chance * (1 - chance) / len(part)) + 1e-4), low


def test_posterior_from_simulated_people():
    "Somebody with one text: among simulated people with that very text, tastes come out as the posterior says."
    rng, found = random.Random(3), Counter()
    shape = (2, 0, 1)  # the order of signs, one of six
    for _ in range(150_000):
        tastes = tuple(rng.choice(t) for t in world.TASTES)
        signs = [world.SHOWS[w] for w in world.past_text(tastes, rng).split() if w in world.SHOWS]
        if tuple(i for i, _ in signs) == shape and signs[0][1] == "fog" and signs[1][1] == "bold": found[tastes[2] == "fog", tastes[0] == "bold"] += 1
    n = sum(found.values())
    known = world.posterior(("story of dream : haze shouting pines .",))
    for fog, bold in itertools.product((True, False), repeat=2):
        want = (known[2]["fog"] if fog else 1 - known[2]["fog"]) * (known[0]["bold"] if bold else 1 - known[0]["bold"])
        assert found[fog, bold] / n == pytest.approx(want, abs=4 * math.sqrt(want * (1 - want) / n))


def expected(text, x, chances): return sum(c * world.gold_reward(t, x, text) for t, c in chances.items())


@pytest.mark.parametrize("kind", world.KINDS)
def test_no_text_is_expected_to_be_better_than_the_guess(kind):
    "All 216 stories (125 rhymes), texts that leave a word out, and hedges, under brute-force Bayes."
    families = [sorted(set(t.values())) for t in (TABLES if kind == "story" else world.RHYMES)]
    for p in world.make_people("valid", 6, 102, kind):
        chances = brute(p.P)
        best = expected(world.guess(p.P, p.x), p.x, chances)
        def told(*words, p=p): return "{} of {} : {} with {} and {} .".format(kind, p.topic, *words)
        texts = [told(*words) for words in itertools.product(*families)]
        short = [told(a, b, "") for a, b in itertools.product(*families[:2])] + [told(f"{a} {families[0][0]}", families[1][0], c) for a, c in itertools.product(*families[::2])]
        assert max(expected(t, p.x, chances) for t in texts) == pytest.approx(best, abs=1e-12)
        assert all(expected(t, p.x, chances) <= best + 1e-12 for t in short) and min(expected(t, p.x, chances) for t in texts) < best - 0.05


def test_the_guess_is_as_good_as_it_expects(people):
    want = mean(expected(world.guess(p.P, p.x), p.x, brute(p.P)) for p in people[:120])
    got = mean(world.gold_reward(p.tastes, p.x, world.guess(p.P, p.x)) for p in world.make_people("valid", 2000, 103))
    assert got == pytest.approx(want, abs=0.05) and 0.85 < got < 0.97


# ---------------------------------------------------------------- the teacher


@pytest.mark.parametrize("error", (0.0, 0.3, 1.0))
def test_the_teachers_error_rate(people, error):
    "Measured against its own faultless reading; a wrong taste is any of the others."
    def say(e, seed=0): return [world.read_description(world.teach(p.P, p.x, p.y, e, seed)) for p in people]
    right, said = say(0.0), say(error)
    for i in range(3):
        wrong = [s[i] for s, r in zip(said, right) if s[i] != r[i]]
        assert len(wrong) / 400 == pytest.approx(error, abs=4 * math.sqrt(error * (1 - error) / 400))
        if error: assert set(wrong) == set(world.TASTES[i])
    assert say(error) == said and (say(error, 1) != said) == (error > 0), "the same question, the same answer; another seed, others"
    both = mean((s[0] != r[0]) and (s[1] != r[1]) for s, r in zip(said, right))
    assert both == pytest.approx(error**2, abs=0.07), "errors come independently"


def test_the_teacher_reads_better_than_past_texts_allow(people):
    def right(name): return mean(a == b for p in people for a, b in zip(name(p), p.tastes))
    teacher = right(lambda p: world.read_description(world.teach(p.P, p.x, p.y, 0.0)))
    reader = right(lambda p: [max(k, key=k.get) for k in world.posterior(p.P)])
    assert teacher > reader + 0.02 and teacher > 0.95


def test_the_teacher_finds_the_most_probable_tastes_that_explain_the_text(people):
    for p in people[:40]:
        chances = brute(p.P)
        fitting = [t for t in ALL if world.gold_reward(t, p.x, p.y) == 1.0]
        best = world.read_description(world.teach(p.P, p.x, p.y, 0.0))
        assert best in fitting and chances[best] == pytest.approx(max(chances[t] for t in fitting), rel=1e-9)


# ---------------------------------------------------------------- reasoning, and what a base model reads


def test_reasoning_reads_back():
    assert all(world.read_description(world.describe(t)) == t for t in ALL) and len({world.describe(t) for t in ALL}) == 125
    for bad in ("", "calm", "calm , loves sea", "calm bold , loves sea and rain", "calm , loves sea and rain and snow", "calmly , loves sea and rain"): assert world.read_description(bad) is None
    assert world.read_description("rain and sea , so calm") == ("calm", "sea", "rain")


def test_demonstrations_teach_no_gathering():
    "What was written fits the tastes that are stated; the past texts beside it say nothing about them."
    rows = world.demonstrations(6000, 100)
    reads, writes = [r for r in rows if "read" in r], [r for r in rows if "x" in r]
    assert len(reads) / 6000 == pytest.approx(0.25, abs=0.03) and mean(r["reasoning"] == "" for r in writes) == pytest.approx(0.2, abs=0.03)
    assert all([world.SHOWS[w][1] for w in sorted((w for w in r["read"].split() if w in world.SHOWS), key=lambda w: world.SHOWS[w])] == r["tastes"].split(" , ") for r in reads)
    stated = [(r, world.read_description(r["reasoning"])) for r in writes if r["reasoning"]]
    assert all(world.gold_reward(t, r["x"], r["y"]) == 1.0 for r, t in stated)
    whole = [(world.posterior(tuple(r["P"])), t) for r, t in stated if len(r["P"]) == world.TEXTS]
    assert mean(max(k, key=k.get) == own for known, t in whole for k, own in zip(known, t)) == pytest.approx(0.2, abs=0.02)
    assert {r["x"].split()[2] for r in writes} == set(world.KINDS) and all(not r["P"] for r in world.demonstrations(300, 100, texts=0) if "x" in r)
