"rlgen.pargs.partial: one forward pass against separate prefixes, what counts, lazily made prefixes, and accuracies by hand."
import math
from types import SimpleNamespace

import pytest
import torch

from helpers import line_of
from rlgen.lm import build_lm, encode_completion, encode_prompt, load_lm, save_lm, word_tokenizer
from rlgen.metrics import wilson
from rlgen.pargs import partial
from rlgen.pargs.partial import PrefixPairs, overall_accuracy, pair_rewards, partial_loss, prefix_accuracy, prefix_rewards, prefix_wins, train_partial
from rlgen.reward import RewardModel, bt_loss, encode_text, load_reward_model, new_reward_model, pair_wins, score_ids

DECODERS, ENCODERS = ("gpt2", "llama", "gemma"), ("bert", "deberta-v2", "roberta")
TEXTS = [  # ragged both ways; a shared beginning; one text the beginning of the other; one word; equal
    ("what did you eat today ?", "i had bread , soup and two apples .", "no"), ("post : my boss wants me to work on sunday . summary :", "no .", "my boss wants me to work ."),
    ("the cat", "sat on the mat .", "sat on the hill and ran ."), ("a dog ran over", "the hill", "the hill and the cat"), ("yes or no :", "yes", "no"), ("she", "writes .", "writes ."),
]  # fmt: skip
FULL = lambda text: not text.endswith("cat")  # noqa: E731  one text isn't finished


pytestmark = pytest.mark.usefixtures("double")


@pytest.fixture(scope="module")
def rms(folders):
    made = {}

    def get(arch):
        if arch not in made: made[arch] = load_reward_model(str(folders(arch, "reward")))
        return made[arch]

    return get


@pytest.fixture(scope="module")
def writer(folders): return load_lm(str(folders("gpt2")))


def rows_of(lm, texts=TEXTS): return [(encode_prompt(lm, p), *(encode_completion(lm, t, eos=FULL(t)) for t in both)) for p, *both in texts]


def by_hand(rm, rows, pad, weights) -> tuple[float, float]:
    "The loss, written down as a loop over separately scored prefixes, and the share in the right order."
    eos, losses = rm.tokenizer.eos_token_id, []
    for prompt, c, r in rows:
        own = []
        for i in range(1, max(len(c), len(r)) + 1):
            a, b = (s[:i] if pad == "freeze" else (s + [eos] * 99)[:i] for s in (c, r))
            if a == b: continue
            x, y = score_ids(rm, [prompt + a, prompt + b], 1)
            own.append((bt_loss(x, y).item(), float(x > y)))
        losses.append(own)
    if weights == "prefix": units = [pair for own in losses for pair in own]
    else: units = [[sum(v) / len(own) for v in zip(*own)] for own in losses if own]
    return tuple(sum(v) / len(units) for v in zip(*units))


def toy(worth: list[float], eos: int = 0) -> RewardModel:
    "A causal model whose reward of a prefix is the sum of what its tokens are worth."
    value = torch.tensor(worth, dtype=torch.float64)
    def body(input_ids, attention_mask): return SimpleNamespace(last_hidden_state=value[input_ids].cumsum(-1)[..., None])
    model = SimpleNamespace(base_model=body, score=lambda h: h, parameters=lambda: iter([value]))
    return RewardModel(model, SimpleNamespace(pad_token_id=eos, eos_token_id=eos))


# ---------------------------------------------------------------- one pass


@pytest.mark.parametrize("weights", ("prefix", "pair"))
@pytest.mark.parametrize("pad", ("freeze", "eos"))
@pytest.mark.parametrize("arch", DECODERS)
def test_one_pass_is_the_separate_prefixes(arch, pad, weights, rms):
    rm = rms(arch)
    total, n, more = partial_loss(rm, pad, weights)(rm.model, rows_of(rm))
    loss, right = by_hand(rm, rows_of(rm), pad, weights)
    assert abs(total.item() / float(n) - loss) < 1e-10
    assert abs(more["accuracy"] / float(n) - right) < 1e-12 and 0 < right < 1
    assert weights == "prefix" or float(n) == 5, "five of the six pairs differ"


def test_the_four_losses_differ(rms):
    rm = rms("llama")
    found = [total.item() / float(n) for total, n, _ in (partial_loss(rm, p, w)(rm.model, rows_of(rm)) for p in ("freeze", "eos") for w in ("prefix", "pair"))]
    assert len({round(v, 7) for v in found}) == 4


@pytest.mark.parametrize("arch,close", [("gpt2", 1e-10), ("llama", 1e-6), ("gemma", 1e-6)])
def test_the_gradient_too(arch, close, folders):
    "The one pass trains as the separate prefixes would (Llama's and Gemma's norms round to 32 bits)."
    rm, apart = (load_reward_model(str(folders(arch, "reward"))) for _ in range(2))
    rows = rows_of(rm)
    total, n, _ = partial_loss(rm)(rm.model, rows)
    (total / n).backward()
    pairs = [(p + c[:i], p + r[:i]) for p, c, r in rows for i in range(1, max(len(c), len(r)) + 1) if c[:i] != r[:i]]
    for a, b in pairs: (bt_loss(*(apart(torch.tensor([s]), torch.ones(1, len(s))) for s in (a, b))) / len(pairs)).sum().backward()
    for (name, p), q in zip(rm.model.named_parameters(), apart.model.parameters()): torch.testing.assert_close(p.grad, q.grad, atol=close, rtol=1e-6, msg=name)


@pytest.mark.parametrize("arch", DECODERS)
def test_rewards_of_all_prefixes(arch, rms):
    "Each against its own forward pass; beyond the end the last is repeated; company and padding change nothing."
    rm = rms(arch)
    rows = rows_of(rm)
    prompts, said = [r[0] for r in rows], [r[1] for r in rows]
    rewards, mask = prefix_rewards(rm, prompts, said)
    assert mask.sum(1).tolist() == list(map(len, said)) and rewards.shape == mask.shape == (6, max(map(len, said))) and rewards.requires_grad
    for p, s, line in zip(prompts, said, rewards.tolist()):
        assert line[: len(s)] == pytest.approx(score_ids(rm, [p + s[: i + 1] for i in range(len(s))]).tolist(), abs=1e-10)
        assert set(line[len(s) :]) <= {line[len(s) - 1]}
        alone, _ = prefix_rewards(rm, [p], [s])
        assert alone[0].tolist() == pytest.approx(line[: len(s)], abs=1e-10)


def test_batches_add_up(rms):
    "The loss of a batch is the sum over its pairs, in any order and company."
    rm = rms("gpt2")
    rows = rows_of(rm)
    for options in (("freeze", "prefix"), ("eos", "pair")):
        loss = partial_loss(rm, *options)
        total, n, more = loss(rm.model, rows[::-1])
        parts = [loss(rm.model, [r]) for r in rows]
        assert total.item() == pytest.approx(sum(t.item() for t, _, _ in parts), abs=1e-10) and float(n) == pytest.approx(sum(float(m) for _, m, _ in parts))
        assert more["accuracy"] == pytest.approx(sum(m["accuracy"] for _, _, m in parts))


def test_the_weights_are_those_of_the_model_it_is_called_with(rms, folders):
    rm, other = rms("gpt2"), load_reward_model(str(folders("gpt2", "reward", seed=1)))
    mine, theirs, lent = (loss(m, rows_of(rm))[0].item() for loss, m in ((partial_loss(rm), rm.model), (partial_loss(other), other.model), (partial_loss(rm), other.model)))
    assert lent == theirs != mine


# ---------------------------------------------------------------- what counts


@pytest.mark.parametrize("pad,c,r,counted", [
    ("freeze", [1, 2, 0], [1, 3, 4, 0], [0, 1, 1, 1]), ("eos", [1, 2, 0], [1, 3, 4, 0], [0, 1, 1, 1]), ("freeze", [1, 2], [1, 2], [0, 0]),
    ("freeze", [1], [1, 2, 0], [0, 1, 1]), ("freeze", [1], [1, 0], [0, 1]), ("eos", [1], [1, 0], [0, 0]), ("freeze", [2], [3], [1]),
    ("freeze", [1, 2, 3, 0], [2, 2, 3, 0], [1, 1, 1, 1]),
])  # fmt: skip
def test_equal_prefixes_dont_count(pad, c, r, counted):
    "Once they differ they differ for good, though later tokens agree; with end-of-text read on, an end is as good as a padded end."
    rm = toy([0.5, 1.0, 2.0, -1.0, 3.0])
    for swapped in ((c, r), (r, c)): assert pair_rewards(rm, [([4], *swapped)], pad)[2][0].tolist() == counted
    beside = pair_rewards(rm, [([4], c, r), ([4, 4], [3] * 6, [2])], pad)[2]
    assert beside.tolist() == [counted + [0] * (6 - len(counted)), [1] * 6], "company only adds columns that don't count"


def test_hand_sized_numbers():
    rm = toy([0.5, 1.0, 2.0, -1.0, 3.0])
    rows = [([1], [2, 0], [3, 4, 4, 0])]
    chosen, rejected, _ = pair_rewards(rm, rows)
    assert chosen.tolist() == [[3, 3.5, 3.5, 3.5]] and rejected.tolist() == [[0, 3, 6, 6.5]]
    assert pair_rewards(rm, rows, "eos")[0].tolist() == [[3, 3.5, 4.0, 4.5]]
    loss = [math.log1p(math.exp(-g)) for g in (3, 0.5, -2.5, -3)]
    total, n, more = partial_loss(rm)(rm.model, rows)
    assert total.item() == pytest.approx(sum(loss)) and n == 4 and more == dict(accuracy=2)
    total, n, more = partial_loss(rm, weights="pair")(rm.model, rows)
    assert total.item() == pytest.approx(sum(loss) / 4) and n == 1 and more == dict(accuracy=0.5)


@pytest.mark.parametrize("weights", ("prefix", "pair"))
def test_degenerate_pairs(weights, folders):
    "Equal texts have no say and do no harm; one-token texts are an ordinary reward loss."
    rm = load_reward_model(str(folders("llama", "reward")))
    equal, one = rows_of(rm)[5], ([1, 5], [7], [9])
    total, n, more = partial_loss(rm, weights=weights)(rm.model, [equal])
    total.backward()
    assert total == 0 and n == 0 and more["accuracy"] == 0 and all(p.grad is None or (p.grad == 0).all() for p in rm.model.parameters())
    before = [p.detach().clone() for p in rm.model.parameters()]
    train_partial(rm, [equal], weights=weights, steps=2, batch_size=1, weight_decay=0.0)
    assert all(torch.equal(a, b) for a, b in zip(before, rm.model.parameters()))
    total, n, _ = partial_loss(rm, weights=weights)(rm.model, [equal, one])
    assert n == 1 and total.item() == pytest.approx(bt_loss(*score_ids(rm, [[1, 5, 7], [1, 5, 9]])).item(), abs=1e-10)


@pytest.mark.parametrize("arch", DECODERS)
def test_the_end_is_a_token(arch, rms):
    "Also where it pads too, as GPT-2's does: an ended text and a bare one are different prefixes with different rewards."
    rm = rms(arch)
    prompt, said = encode_prompt(rm, "the cat"), encode_completion(rm, "sat")
    assert said[-1] == rm.tokenizer.eos_token_id and (arch != "gpt2" or rm.pad_id == said[-1])
    chosen, rejected, counted = pair_rewards(rm, [(prompt, said, said[:-1])])
    assert counted[0].tolist() == [0] * (len(said) - 1) + [1] and abs(chosen[0, -1] - rejected[0, -1]) > 1e-6
    assert abs(chosen[0, -1].item() - score_ids(rm, [prompt + said]).item()) < 1e-10


def test_refusals(rms, writer):
    rm = rms("bert")
    assert "'freeze' or 'eos'" in line_of(partial_loss, rms("gpt2"), pad="left") and "'prefix' or 'pair'" in line_of(partial_loss, rms("gpt2"), weights="token")
    assert "PrefixPairs" in line_of(prefix_rewards, rm, [[1]], [[2]]) and "freeze" in line_of(PrefixPairs, rm, writer, TEXTS, pad="eos")
    assert "sample=1" in line_of(train_partial, rm, PrefixPairs(rm, writer, TEXTS), weights="pair", steps=1)
    assert "no rows" in line_of(train_partial, rms("gpt2"), [], steps=1)
    assert "end-of-text" in line_of(pair_rewards, toy([0.0, 1.0], eos=None), [([1], [1], [1, 1])], "eos")


# ---------------------------------------------------------------- prefixes made when asked for


@pytest.mark.parametrize("pad", ("freeze", "eos"))
@pytest.mark.parametrize("arch", DECODERS)
def test_lazy_prefixes_are_the_one_passes(arch, pad, rms, folders):
    rm = rms(arch)
    lm = load_lm(str(folders(arch)))
    lazy = PrefixPairs(rm, lm, TEXTS, ends=FULL, pad=pad)
    total, n, more = partial_loss(rm, pad)(rm.model, rows_of(lm))
    assert lazy.alike and len(lazy) == int(n)
    scores = score_ids(rm, [s for pair in lazy for s in pair]).view(-1, 2)
    assert abs(bt_loss(*scores.T).mean().item() - total.item() / float(n)) < 1e-10 and (scores[:, 0] > scores[:, 1]).sum() == more["accuracy"]
    eos = [lm.tokenizer.eos_token_id]
    expected = [tuple(p + (s if pad == "freeze" else s + eos * 99)[:i] for s in (c, r)) for p, c, r in rows_of(lm) for i in range(1, max(len(c), len(r)) + 1)]
    assert list(lazy) == [(a, b) for a, b in expected if a != b]


@pytest.mark.parametrize("arch", ENCODERS)
def test_an_encoder_reads_the_writers_prefixes(arch, rms, writer):
    "Cut in the language model's tokens, decoded, read as a pair of segments; the end, which it doesn't read, isn't counted."
    rm, t = rms(arch), writer.tokenizer
    lazy, expected = PrefixPairs(rm, writer, TEXTS), []
    for prompt, *both in TEXTS:
        said = [encode_completion(writer, text, eos=False) for text in both]
        for i in range(1, max(map(len, said)) + 1):
            if said[0][:i] != said[1][:i]: expected.append(tuple(rm.tokenizer(prompt, t.decode(s[:i]).strip()).input_ids for s in said))
    assert rm.kind == "encoder" and not lazy.alike and list(lazy) == expected and len(expected) > 20
    assert lazy[len(lazy) - 1] == lazy[-1] == expected[-1]
    for j in (len(lazy), -len(lazy) - 1):
        with pytest.raises(IndexError): lazy[j]


@pytest.mark.parametrize("pad", ("freeze", "eos"))
def test_a_decoder_with_other_tokens(pad, rms, writer):
    rm, t = rms("llama"), writer.tokenizer
    lazy, eos = PrefixPairs(rm, writer, TEXTS, ends=FULL, pad=pad), [rm.tokenizer.eos_token_id]
    assert not lazy.alike
    for pair, (prompt, *both) in enumerate(TEXTS):
        said = [encode_completion(writer, text, eos=FULL(text)) for text in both]
        for i in lazy.lengths(pair):
            for got, text, s in zip(lazy.at(pair, i), both, said):
                ended = i >= len(s) and FULL(text)
                words = t.decode(s[:i], skip_special_tokens=True).strip()
                assert got == encode_text(rm, prompt, words, finished=ended) + eos * (max(0, i - len(s)) if pad == "eos" else 0)
                if i >= len(s): assert words == text
    assert lazy.at(1, 1, end=True)[1] == encode_text(rm, TEXTS[1][0], "my", finished=True)


def test_nothing_is_made_beforehand(rms, writer, monkeypatch):
    "Two texts are encoded for every pair that is asked for, none before, none is kept."
    made, true = [], partial.encode_text
    def counting(*args, **kw):
        made.append(args[2])
        return true(*args, **kw)
    monkeypatch.setattr(partial, "encode_text", counting)
    lazy = PrefixPairs(rms("deberta-v2"), writer, TEXTS * 50)
    assert len(lazy) > 1000 and not made
    for asked in range(1, 4):
        assert lazy[7] == lazy[7]
        assert len(made) == 4 * asked
    train_partial(load_reward_model(str(rms("deberta-v2").model.name_or_path)), lazy, steps=2, batch_size=3)
    assert len(made) == 12 + 2 * 6


def test_a_sample_of_lengths(rms, writer):
    rm = rms("bert")
    every = PrefixPairs(rm, writer, TEXTS)
    some, again, other = (PrefixPairs(rm, writer, TEXTS, sample=2, seed=s) for s in (1, 1, 2))
    assert list(some) == list(again) != list(other)
    assert len(some) == sum(min(2, len(every.lengths(p))) for p in range(6)) == len(list(some)) and every.lengths(5) == []
    for p in range(6):
        assert set(some.lengths(p)) <= set(every.lengths(p)) and some.lengths(p) == sorted(set(some.lengths(p)))
    assert PrefixPairs(rm, writer, TEXTS[:3], sample=2, seed=1).lengths(2) == some.lengths(2), "a pair's lengths don't depend on the others'"
    drawn = {i for seed in range(40) for i in PrefixPairs(rm, writer, TEXTS[:1], sample=1, seed=seed).lengths(0)}
    assert drawn == set(every.lengths(0)), "each length has its chance"
    assert len({i for p in range(20) for i in PrefixPairs(rm, writer, TEXTS[:1] * 20, sample=1).lengths(p)}) > 1, "nor are they the same for all"
    assert list(PrefixPairs(rm, writer, TEXTS, sample=99)) == list(every) and len(PrefixPairs(rm, writer, TEXTS[5:])) == 0


@pytest.mark.parametrize("arch", (*DECODERS, "bert"))
def test_prefixes_lose_their_beginning(arch, rms, folders, writer):
    "What is too long is cut as `encode_text` cuts."
    rm = rms(arch)
    lm = writer if arch == "bert" else load_lm(str(folders(arch)))
    for limit in (9, 14):
        whole, cut = PrefixPairs(rm, lm, TEXTS[:2]), PrefixPairs(rm, lm, TEXTS[:2], max_tokens=limit)
        assert all(len(s) <= limit for pair in cut for s in pair) and any(len(s) == limit for pair in cut for s in pair)
        assert all(c == w for cs, ws in zip(cut, whole) for c, w in zip(cs, ws) if len(w) <= limit)
        full = [encode_text(rm, p, t, max_tokens=limit) for p, *both in TEXTS[:2] for t in both]
        ends = [s for p in range(2) for s in cut.at(p, cut.spans[p][1])]
        assert ends == full
    if arch == "llama": assert max(len(s) for pair in PrefixPairs(rm, writer, TEXTS, max_tokens=20, pad="eos") for s in pair) == 20, "other tokens, padding read"
    endless = PrefixPairs(rm, lm, [("the cat sat . " * 100, "no", "yes")])
    assert all(len(s) == 256 for s in endless[-1])


# ---------------------------------------------------------------- judging


def test_wins_by_hand():
    "Right, wrong, tie, equal; the shorter side is frozen."
    rm = toy([0.0, 1.0, 2.0, -1.0, 3.0])
    rows = [([1], [1, 2, 0], [1, 1, 1, 3, 0]), ([1], [2], [2]), ([1, 1], [3], [2, 0]), ([1], [1, 0], [1])]
    hand = [[None, 1.0, 0.5, 1.0, 1.0], [None], [0.0, 0.0], [None, 0.5]]
    for size in (1, 2, 3, 64): assert prefix_wins(rm, rows, size) == hand
    assert prefix_wins(rm, [(p, r, c) for p, c, r in rows]) == [[w if w is None else 1 - w for w in line] for line in hand]
    assert prefix_wins(rm, []) == []


def test_wins_with_the_end_put_behind(monkeypatch):
    "End-of-text is worth 10 to this model, so whoever lacks one falls behind: all get one, none a second."
    rm = toy([10.0, 1.0, 2.0, -1.0, 3.0])
    rows = [([1], [2, 0], [1, 4, 4, 0]), ([1], [2, 0], [2])]
    assert prefix_wins(rm, rows) == [[1.0, 1.0, 1.0, 0.0], [None, 1.0]]
    seen, true = [], partial.pair_wins
    def spy(rm, pairs, size):
        seen.extend(pairs)
        return true(rm, pairs, size)
    monkeypatch.setattr(partial, "pair_wins", spy)
    assert prefix_wins(rm, rows, end=True) == [[1.0, 0.0, 0.0, 0.0], [None, None]]
    assert seen == [([1, 2, 0], [1, 1, 0]), ([1, 2, 0], [1, 1, 4, 0]), ([1, 2, 0], [1, 1, 4, 4, 0]), ([1, 2, 0], [1, 1, 4, 4, 0])]


@pytest.mark.parametrize("arch", DECODERS)
def test_wins_of_rows_and_of_lazy_prefixes_agree(arch, rms, folders):
    rm, lm = rms(arch), load_lm(str(folders(arch)))
    lazy = PrefixPairs(rm, lm, TEXTS, ends=FULL)
    rows = rows_of(lm)
    once = prefix_wins(rm, rows, 4)
    assert [len(w) for w in once] == [max(len(c), len(r)) for _, c, r in rows] and once[5] == [None] * len(rows[5][1])
    assert prefix_wins(rm, lazy, 4) == once and prefix_wins(rm, lazy, 64, end=True) == prefix_wins(rm, rows, 2, end=True) != once
    assert [line[-1] for line in once[:5]] == pair_wins(rm, [(p + c, p + r) for p, c, r in rows[:5]]), "the longest prefixes are the texts"


def test_wins_of_an_encoder(rms, writer):
    rm = rms("deberta-v2")
    lazy, some = PrefixPairs(rm, writer, TEXTS), PrefixPairs(rm, writer, TEXTS, sample=2)
    whole, part = prefix_wins(rm, lazy, 6), prefix_wins(rm, some, 6)
    told = iter(pair_wins(rm, list(lazy)))
    for p, line in enumerate(whole):
        assert [i + 1 for i, w in enumerate(line) if w is not None] == lazy.lengths(p)
        assert [w for w in line if w is not None] == [next(told) for _ in lazy.lengths(p)]
        assert part[p] == [w if i + 1 in some.lengths(p) else None for i, w in enumerate(line)]


# ---------------------------------------------------------------- accuracies


WINS = [[[None, 1.0, 0.0], [1.0], [None]], [[None, 0.5, 1.0], [0.0], [None]]]  # two seeds, three pairs


def test_accuracy_by_hand():
    found = prefix_accuracy(WINS)
    assert [(r["length"], r["rate"], r["n"], r["by_seed"]) for r in found] == [(1, 0.5, 1, [1.0, 0.0]), (2, 0.75, 1, [1.0, 0.5]), (3, 0.5, 1, [0.0, 1.0])]
    many = prefix_accuracy([[[None, 1.0]] * 30 + [[None, 0.0]] * 10])
    assert many == [dict(length=2, by_seed=[0.75]) | wilson(30, 40)]
    assert prefix_accuracy([[[1.0]] * 40, [[0.0]] * 40])[0]["n"] == 40, "the same pairs seen twice are no more pairs"
    assert prefix_accuracy([]) == [] == prefix_accuracy([[[None]]])


def test_overall_accuracy_by_hand():
    "Each pair once: (1 + 0)/2 and (0.5 + 1)/2 for the first, 1 and 0 for the second; the third has nothing to say."
    found = overall_accuracy(WINS)
    assert found["by_seed"] == [0.75, 0.375] and found["rate"] == pytest.approx((0.625 + 0.5) / 2) and found["n"] == 2
    long, short = [0.0] * 9, [1.0]
    assert overall_accuracy([[long, short]])["rate"] == 0.5, "a long pair counts no more than a short one"
    spread = overall_accuracy([[[1.0]] * 60 + [[0.0]] * 40])
    assert 0.48 < spread["low"] < 0.53 and 0.67 < spread["high"] < 0.72
    assert overall_accuracy([])["rate"] is None and overall_accuracy([[[None]]])["n"] == 0
    assert "same pairs" in line_of(overall_accuracy, [[[1.0]], [[1.0], [0.0]]]) and "same pairs" in line_of(prefix_accuracy, [[[1.0]], [[1.0], [0.0]]])


# ---------------------------------------------------------------- training


WORDS = "red blue green black white pink grey brown".split()


def colours(lm, n: int, first: int = 0):
    "Pairs in which the preferred text names the colour that was asked for; every other pair is of different lengths, and the first 56 are all different."
    out = []
    for i in range(first, first + n):
        right, wrong = WORDS[i % 8], WORDS[(i + 1 + i // 8 % 7) % 8]
        tail = " car ." if i % 2 else " ."
        out.append((f"say {right} :", f"my {right} car .", f"my {wrong}{tail}"))
    return out


@pytest.fixture(scope="module")
def painter(tmp_path_factory):
    lm = build_lm(word_tokenizer([" ".join(WORDS), "say my car . :"]), width=32)
    save_lm(lm, folder := tmp_path_factory.mktemp("painter"))
    return lm, str(folder)


@pytest.mark.parametrize("pad,weights", [("freeze", "prefix"), ("eos", "pair")])
def test_training_beats_chance_at_every_length(pad, weights, painter):
    lm, folder = painter
    rm, lines = new_reward_model(folder, seed=0), []
    rows, held = ([(encode_prompt(lm, p), encode_completion(lm, c), encode_completion(lm, r)) for p, c, r in colours(lm, n, at)] for n, at in ((40, 0), (16, 40)))
    train_partial(rm, rows, pad, weights, steps=150, batch_size=20, lr=3e-3, log=lambda step, **s: lines.append(s))
    assert lines[0]["loss"] > 0.5 and lines[-1]["loss"] < 0.2 and lines[-1]["accuracy"] > 0.9 and not rm.model.training
    found = prefix_accuracy([prefix_wins(rm, held)])
    assert [r["length"] for r in found] == [2, 3, 4, 5] and all(r["rate"] > 0.7 and r["n"] == 16 for r in found)


def test_both_ways_of_training_are_one(painter):
    "One batch with everything in it: prefixes made one at a time give the steps of the one pass."
    lm, folder = painter
    texts, trained = colours(lm, 6), []
    rows = [(encode_prompt(lm, p), encode_completion(lm, c), encode_completion(lm, r)) for p, c, r in texts]
    for way in ("rows", "lazy"):
        rm = new_reward_model(folder, seed=0)
        data = rows if way == "rows" else PrefixPairs(rm, lm, texts)
        train_partial(rm, data, steps=3, batch_size=len(data), lr=1e-3)
        trained.append(torch.cat([p.detach().flatten() for p in rm.model.parameters()]))
    torch.testing.assert_close(*trained, atol=1e-6, rtol=0)
