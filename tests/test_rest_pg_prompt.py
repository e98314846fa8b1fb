"rlgen.rest_pg.prompt: what is shown, what fits, and what counts as an answer, with tokenizers of words, pieces and bytes."
import itertools
import random
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import line_of
from tiny_models import make_tokenizer

from rlgen.lm import encode_completion, encode_prompt, word_tokenizer
from rlgen.rest_pg.data import Example
from rlgen.rest_pg.prompt import (
    CLOSE, OPEN, ORDERS, TEMPLATE, Output, check_tags, check_template, choose_all, choose_items, encode_request, encode_requests, form, parse_output, prompt_text,
)

WRITERS = ("gpt2", "llama", "gemma", "t5")
X = "what did your friend eat at the lake today ?"
ITEMS = ["the cat sat on the mat and my neighbour\nlost her keys .", "Wörter, 漢字 and 🙂 too!", "two apples", "- a list\n\n- in a list", "she never answers letters , who does ?"]
CHAT = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }} [end]\n{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"


def family(arch):
    "A tokenizer as encode_* take it; `words` is split at white space."
    t = word_tokenizer([TEMPLATE, X, *ITEMS, f"- {OPEN} {CLOSE}"]) if arch == "words" else make_tokenizer(arch)
    return SimpleNamespace(tokenizer=t, kind="seq2seq" if arch == "t5" else "causal")


@pytest.fixture(scope="module", params=("words", *WRITERS))
def lm(request): return family(request.param)


def size(lm, items, x=X, template=TEMPLATE, chat=False) -> int: return len(encode_prompt(lm, prompt_text(x, items, template), chat))


# ---------------------------------------------------------------- choosing


def test_first_keeps_the_order_and_k_counts():
    e = Example("x", "y", ("b", "a", "c"), "u")
    assert choose_items(e, "first", 2) == ["b", "a"] and choose_items(e, "first", 0) == ["b", "a", "c"] == choose_items(e, "first", 9)


def test_bm25_brings_what_the_request_is_about():
    e = Example("old mill , river ?", "y", ("soup and bread", "bread at the mill", "an old mill near a river", "nothing"), "u")
    assert choose_items(e, k=2) == ["an old mill near a river", "bread at the mill"]
    assert sorted(choose_items(e, k=0)) == sorted(e.P)


def test_dense_asks_the_encoder_once():
    "Vectors that count the letter e; requests and texts of all people in one call, leaks not among them."
    calls = []
    encoder = SimpleNamespace(embed=lambda texts, *args: calls.append(list(texts)) or np.array([[t.count("e")] for t in texts], dtype="float32"))
    people = [Example("be", "y", ("abc", "eee", "Y!", "ebe"), "u"), Example("he", "z", (), "v"), Example("me", "w", ("e", "ee"), "w")]
    assert choose_all(people, "dense", 2, encoder) == [["eee", "ebe"], [], ["ee", "e"]]
    assert len(calls) == 1 and "Y!" not in calls[0]
    assert "encoder" in line_of(choose_all, people, "dense")


@pytest.mark.parametrize("y, leak", [("We slept well there.", "we slept WELL -- there"), ("👍", " 👍\n"), ("这盏灯很亮", "这盏灯很亮。"), ("Straße am Fluss", "STRASSE am Fluss")])
def test_the_target_is_never_shown(y, leak):
    e = Example("slept there", y, (leak, "slept well elsewhere", " ", "\n"), "u")
    for how in ("first", "bm25"): assert choose_items(e, how, 0) == ["slept well elsewhere"]


def test_nothing_to_show():
    assert choose_items(Example("x", "y", (), "u")) == [] == choose_items(Example("x", "y", ("y", ""), "u"))
    assert choose_all([]) == []
    assert "bm25" in line_of(choose_items, Example("x", "y", ("a",), "u"), "bm52")


# ---------------------------------------------------------------- the template


def test_texts_are_put_in_as_they_are():
    hostile = ["{x}", "{profile}", "{0} %s \\1 \\g<1> {{", "$x"]
    assert prompt_text("{profile} {x}", hostile).splitlines() == ["past texts :", *(f"- {h}" for h in hostile), "", "request : {profile} {x}"]


def test_without_past_texts_only_the_request_stays():
    assert prompt_text(" go on \n", []) == "request : go on"
    assert prompt_text("go", [], "Write: {x}\n\nBy this person:\n{profile}\n\nNow write.") == "Write: go\n\nNow write."
    assert prompt_text("go", [], "{profile} then {x}") == "then go", "one block: nothing to take away"
    assert prompt_text("go", ["a"], "{profile}\n \t\n{x}\n\n") == "- a\n\ngo"


@pytest.mark.parametrize("template", ["", "{x}", "{profile}", "{x} {profile} {x}", "{profile}{profile}{x}", "{profile} {y} {x}", "{} {x} {profile}", "{Profile} {x} {profile}"])
def test_a_template_without_its_places_is_refused(template):
    assert "prompt_template" in line_of(check_template, template) and "prompt_template" in line_of(prompt_text, "x", [], template)


def test_a_misspelt_place_gets_its_name(): assert "did you mean 'profile'" in line_of(check_template, "{profil} {x}")


# ---------------------------------------------------------------- the budget


def test_as_many_as_fit(lm):
    "At every budget the most whole texts that fit, best first, found by trying all."
    sizes = [size(lm, ITEMS[:n]) for n in range(len(ITEMS) + 1)]
    assert sizes == sorted(sizes)
    for budget in range(sizes[0], sizes[-1] + 3):
        ids, shown = encode_request(lm, X, ITEMS, budget)
        n = max(n for n, s in enumerate(sizes) if s <= budget)
        assert ids == encode_prompt(lm, prompt_text(X, shown)) and len(ids) <= budget
        if n: assert shown == ITEMS[:n]
        else: assert len(shown) <= 1 and all(ITEMS[0].startswith(s) and s != ITEMS[0] for s in shown)


def test_many_small_texts(lm):
    "Where the pieces' lengths add up to more than the whole, or to less, it is still the most that fit."
    items = [f"{w} {v}" for w in ("the", "cat", "a", "two") for v in ("mat", "apples", "keys", "list")]
    for template in ("{profile}\n\n{x}", "of one person , a long headline : {profile}\n\n{x}"):
        sizes = [size(lm, items[:n], template=template) for n in range(len(items) + 1)]
        for n in range(1, len(items)): assert encode_request(lm, X, items, sizes[n], template)[1] == items[: max(i for i, s in enumerate(sizes) if s <= sizes[n])]


def test_the_request_is_never_cut(lm):
    alone = size(lm, [])
    tail = encode_prompt(lm, f"request : {X}")[-4:]
    for budget in range(alone, alone + 40): assert encode_request(lm, X, ITEMS, budget)[0][-4:] == tail
    told = line_of(encode_request, lm, X, ITEMS, alone - 1)
    assert str(alone) in told and str(alone - 1) in told and X[:20] in told
    assert encode_request(lm, X, [], alone) == (encode_prompt(lm, f"request : {X}"), [])


def test_one_text_that_is_too_long_is_cut_between_words(lm):
    item = " ".join(f"the cat and {w} ran" for w in ("dog", "boss", "film", "soup") * 9)
    room = size(lm, ["the cat and dog ran"])
    for budget in range(room, room + 12):
        ids, (shown,) = encode_request(lm, X, [item, "two apples"], budget)
        assert item.startswith(shown + " ") and len(ids) <= budget
        words = item.split()
        n = len(shown.split())
        assert size(lm, [" ".join(words[: n + 1])]) > budget, "one more word would not have fitted"


@pytest.mark.parametrize("item", ["漢字" * 300, "🙂" * 300, "https://a.b/" + "c" * 900, "e\u0301" * 300, "x" * 30 + " " + "y" * 900])
def test_texts_without_spaces_are_cut_too(item):
    for lm in map(family, ("gpt2", "llama")):
        ids, shown = encode_request(lm, X, [item], size(lm, []) + 60)
        assert len(ids) <= size(lm, []) + 60 and len(shown) == 1 and item.startswith(shown[0]) and len(shown[0]) > 3
        lm.tokenizer.decode(ids).encode()


def test_room_for_the_headline_only(lm):
    ids, shown = encode_request(lm, X, ["wonderful"], size(lm, []) + 1)
    assert shown == [] and len(ids) == size(lm, []), "no headline above nothing"


@pytest.mark.parametrize("arch", ["words", "gpt2", "llama"])
def test_a_chat_template_counts_and_frames(arch):
    lm = family(arch)
    assert "chat template" in line_of(encode_request, lm, X, ITEMS, 999, chat=True)
    lm.tokenizer.chat_template = CHAT
    bare = size(lm, [], chat=True)
    assert bare > size(lm, [])
    ids, shown = encode_request(lm, X, ITEMS, size(lm, ITEMS[:2], chat=True), chat=True)
    assert shown == ITEMS[:2] and ids == encode_prompt(lm, prompt_text(X, shown), chat=True)
    assert encode_request(lm, X, ITEMS, bare, chat=True) == (encode_prompt(lm, f"request : {X}", chat=True), [])
    line_of(encode_request, lm, X, ITEMS, bare - 1, chat=True)


class Counting:
    "A tokenizer that counts the characters it is given."

    def __init__(self, t): self.t, self.chars = t, 0
    def __getattr__(self, name): return getattr(self.t, name)

    def __call__(self, text, **kw):
        self.chars += sum(map(len, [text] if isinstance(text, str) else text))
        return self.t(text, **kw)


@pytest.mark.parametrize("budget", [120, 400, 1000])
def test_budgeting_reads_each_text_twice_at_most(budget):
    rng, words = random.Random(0), "the cat dog ran over hill and after it ate soup".split()
    items = [" ".join(rng.choices(words, k=30)) for _ in range(200)]
    lm = family("gpt2")
    lm.tokenizer = Counting(lm.tokenizer)
    ids, shown = encode_request(lm, X, items, budget)
    total, kept = (sum(map(len, i)) + 80 for i in (items, shown))
    assert shown and len(ids) <= budget and lm.tokenizer.chars < 2.2 * total + 5 * kept
    lm.tokenizer.chars = 0
    encode_request(lm, X, items[:4], 2000)
    assert lm.tokenizer.chars == len(prompt_text(X, items[:4])), "once where everything fits"


def test_counts_add_up(lm):
    long = "the cat ran " * 80
    examples = [Example(X, "y", (), f"u{i}") for i in range(4)]
    offered = [ITEMS, ["", long, "two apples"], [], ["two apples", " "]]
    budget = size(lm, ITEMS[:2])
    prompts, count = encode_requests(lm, examples, offered, budget)
    apart = [encode_request(lm, X, i, budget) for i in offered]
    assert prompts == [ids for ids, _ in apart] and count["longest"] == max(map(len, prompts)) <= budget
    assert count == dict(offered=10, shown=sum(len(s) for _, s in apart), dropped=10 - count["shown"], cut=1, bare=1, longest=count["longest"])
    told = line_of(encode_requests, lm, [*examples, Example("and " * 400, "y", (), "ann")], [[]] * 5, budget)
    assert told.startswith("example 4 (user ann)")


# ---------------------------------------------------------------- the form


@pytest.mark.parametrize("text", [
    "", " ", OPEN, CLOSE, f"{OPEN}{CLOSE}", f"{OPEN} a {CLOSE}", f"{OPEN} a {CLOSE} \n", f"{OPEN} {CLOSE} b", f"{OPEN} a", f"{OPEN} a </reas", f"{OPEN} a b", "a b", f"a {CLOSE} b", f"{CLOSE} a {OPEN} b",
    f"{OPEN} a {OPEN} b {CLOSE} c", f"{OPEN} a {CLOSE} b {CLOSE}", f"{OPEN} a {CLOSE} b {OPEN}", f"{OPEN} a {CLOSE} {OPEN} b {CLOSE} c", f"so : {OPEN} a {CLOSE} b", f"{OPEN}{OPEN} a {CLOSE}{CLOSE} b",
    "<Reasoning> a </Reasoning> b", "< reasoning > a < / reasoning > b", "<reasoning/> b", "＜reasoning＞ a ＜/reasoning＞ b",
])  # fmt: skip
def test_what_is_no_answer(text): assert parse_output(text) is None


@pytest.mark.parametrize("reasoning, text", [
    ("a", "b"), ("likes <b>bold</b> & 2 < 3 > 1", "i <3 you </i> <reason> </thinking>"), ("a\n- b\n", " c\n\nd "), ("好", "🙂"), ("<think>a</think>", "</think>"), ("reasoning", "/reasoning>"), ("a", "x" * 5000),
])  # fmt: skip
def test_what_is_written_is_read(reasoning, text):
    for order in ("before", "after"):
        assert parse_output(form(reasoning, text, order), order) == Output(reasoning.strip(), text.strip())
        assert parse_output(form(reasoning, text, order), {"before": "after", "after": "before"}[order]) is None, "the other order"
        assert parse_output(form(reasoning, text, order), "none") is None
    assert parse_output(form(reasoning, text, "none"), "none") == Output("", text.strip()) and form(reasoning, text, "none") == text.strip()


@pytest.mark.parametrize("reasoning, text", [("a", ""), ("a", " \n"), ("a", f"b {CLOSE}"), ("a", OPEN), ("", "b"), (" ", "b"), (f"a {OPEN}", "b"), (f"a {CLOSE}", "b")])
def test_what_could_not_be_read_is_not_written(reasoning, text):
    for order in ("before", "after"): assert "read back" in line_of(form, reasoning, text, order)
    if text != "b": assert "read back" in line_of(form, reasoning, text, "none")
    else: assert form(reasoning, text, "none") == "b"


def test_no_string_of_pieces_is_read_twice():
    "All strings of up to five pieces: at most one order reads each, and what is read holds no tag."
    pieces = (OPEN, CLOSE, " ", "a")
    for n in range(6):
        for text in map("".join, itertools.product(pieces, repeat=n)):
            found = [(o, r) for o in ORDERS if (r := parse_output(text, o))]
            assert len(found) <= 1
            for o, r in found: assert OPEN not in r.text + r.reasoning and CLOSE not in r.text + r.reasoning and r.text.strip() and (o == "none") == (r.reasoning == "")


def test_orders_are_named():
    assert "'before'" in line_of(parse_output, "a", "befor") and "after" in line_of(form, "a", "b", "afterwards")


# ---------------------------------------------------------------- ids


def decoded(lm, ids) -> str: return lm.tokenizer.decode(ids, skip_special_tokens=True)


def assert_sound(lm, prompt: str, prompt_ids: list):
    "A formed completion behind a prompt: read back from its own ids, and the seam is the joined text's."
    check_tags(lm)
    for order in ORDERS:
        ids = encode_completion(lm, form("the cat", "a dog ran .", order))
        assert parse_output(decoded(lm, ids), order) == Output("" if order == "none" else "the cat", "a dog ran .")
        if lm.kind == "causal": assert prompt_ids + ids[:-1] == encode_prompt(lm, f"{prompt} {form('the cat', 'a dog ran .', order)}")
    whole = encode_completion(lm, form("the cat", "a dog ran ."), eos=False)
    inside = whole[: len(encode_completion(lm, f"{OPEN} the cat", eos=False))]
    assert parse_output(decoded(lm, inside)) is None
    for n in range(len(whole)):
        read = parse_output(decoded(lm, whole[:n]))
        assert read is None or (read.reasoning == "the cat" and "a dog ran .".startswith(read.text.rstrip("\ufffd"))), "cut off anywhere"


def test_completions_behind_prompts(lm):
    if len(lm.tokenizer) < 100: lm = SimpleNamespace(tokenizer=word_tokenizer([TEMPLATE, X, *ITEMS, "- a dog ran .", f"{OPEN} {CLOSE}"]), kind="causal")
    ids, shown = encode_request(lm, X, ITEMS, 400)
    assert_sound(lm, prompt_text(X, shown), ids)


def test_tokenizers_that_lose_the_tags_are_found_out():
    lm = SimpleNamespace(tokenizer=word_tokenizer(["a b", OPEN]), kind="causal")
    assert CLOSE in line_of(check_tags, lm)
    lm = family("gpt2")
    check_tags(lm)
    lm.tokenizer.add_special_tokens(dict(extra_special_tokens=[OPEN, CLOSE]))
    assert OPEN in line_of(check_tags, lm), "special tokens vanish on decoding"
    lm = family("gpt2")
    lm.tokenizer.add_tokens([OPEN, CLOSE])
    check_tags(lm)
    assert parse_output(decoded(lm, encode_completion(lm, form("the cat", "a dog")))) == Output("the cat", "a dog")
    assert "no output could be read" in line_of(check_tags, family("bert")), "it puts spaces into tags"


def real(models_dir, name):
    from transformers import AutoTokenizer, GPT2Tokenizer
    kind = GPT2Tokenizer if name == "gpt2-tokenizer" else AutoTokenizer
    return SimpleNamespace(tokenizer=kind.from_pretrained(str(models_dir / name)), kind="causal")


@pytest.mark.slices
@pytest.mark.parametrize("name", ["gpt2-tokenizer", "stories260k"])
def test_real_tokenizers_and_real_texts(models_dir, slices, name):
    import json
    lm, by = real(models_dir, name), {}
    for line in (slices / "novels" / "passages_by_author.jsonl").read_text().splitlines()[:400]:
        row = json.loads(line)
        by.setdefault(row["author"], []).append(row["text"])
    texts = next(t for t in by.values() if len(t) > 12)
    x = "Write on in this author's manner: " + texts[0][:200]
    sizes = [size(lm, texts[1 : 1 + n], x) for n in range(9)]
    for budget in {sizes[0], sizes[0] + 30, *(s + d for s in sizes[1:] for d in (-1, 0, 1))}:
        ids, shown = encode_request(lm, x, texts[1:9], budget)
        n = max(n for n, s in enumerate(sizes) if s <= budget)
        assert len(ids) <= budget and decoded(lm, ids).endswith(x[-100:])
        assert shown == texts[1 : 1 + n] if n else len(shown) <= 1 and all(texts[1].startswith(s) for s in shown)
    ids, shown = encode_request(lm, X, texts[1:3], 5000)
    assert_sound(lm, prompt_text(X, shown), ids)
