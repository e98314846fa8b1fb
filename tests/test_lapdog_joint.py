"rlgen.lapdog.joint: both policy gradients against enumeration, the first step, equal rewards, frozen parts, kills, parts of a batch."
import copy
import itertools
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from helpers import line_of
from rlgen.grpo import group_advantages
from rlgen.lapdog import joint
from rlgen.lapdog.data import Dialogue, Story
from rlgen.lapdog.documents import set_logprob
from rlgen.lapdog.joint import Group, Learner, Optimizers, Recipe, answer, draw_logprobs, draw_stories, experience, joint_grpo, reader_loss, retriever_loss
from rlgen.lapdog.reader import PLAIN, Templates, build_reader, encode_pairs, pair_ids, reply_logprobs
from rlgen.lapdog.reader import begin as begin_replies
from rlgen.lapdog.retriever import Library, Retriever, build_encoder, document_logits
from rlgen.lapdog.reward import Reward
from rlgen.lm import LM, word_tokenizer
from rlgen.sampling import Cost, Rollout, generate, greedy
from rlgen.train import prepare_model

pytestmark = pytest.mark.usefixtures("double")
N = 5
STORIES = [Story(f"s{i}", "", w, "shelf") for i, w in enumerate("a b c d e".split())]
TALK = Dialogue("d0", "persona: p context: Q: q", ("a b",), "shelf", ("s0",))
TALKS = [TALK, *(Dialogue(f"d{i}", f"persona: {w} context: Q: {v}", (f"{v} {w}",), "shelf", (f"s{i}",)) for i, (w, v) in enumerate(("pq", "qp", "pp", "qq", "ap", "bq"), 1))]
TOK = word_tokenizer(["persona: context: Q: p q a b c d e"])
WORDS = Templates("{question}", " {text}", "")
KW = dict(templates=WORDS, max_new_tokens=2, max_length=64)
SMALL = dict(documents=2, replies=2, **KW)


def reader_of(seed=0):
    reader = build_reader(TOK, 8, 1, seed=seed)
    with torch.no_grad():
        for p in reader.model.parameters(): p.mul_(1.5)
    reader.model.double()
    return reader


def retriever_of(seed=0, **options):
    encoder = build_encoder(TOK, 8, seed=seed, gain=1.0)
    encoder.model.double()
    return Retriever(encoder, query="all", temperature=1.0, **options)


def read(retriever, stories=STORIES) -> Library:
    "A library in 64 bits, so that fresh and kept vectors are equal to the bit."
    library = Library(stories)
    library.refresh(retriever)
    with torch.no_grad(): library.vectors = retriever.passages.vectors(retriever.passages.ids(library.texts))
    return library


def weights(model): return torch.cat([p.detach().flatten() for p in model.parameters()])


def worth(reply: str) -> float: return (sum(ord(c) * (i + 3) ** 2 for i, c in enumerate(reply)) % 17) / 17


class Table:
    "A reward that is a table of replies, whatever was asked."

    def __init__(self, of=worth): self.of = of

    def parts(self, replies, dialogues): return [dict(reward=self.of(r)) for r in replies]


def flat(total, model): return torch.cat([torch.zeros(p.numel()) if g is None else g.flatten() for p, g in zip(model.parameters(), torch.autograd.grad(total, list(model.parameters()), allow_unused=True))])


def train(reader, retriever, dialogues=TALKS, recipe=None, library=None, reward=None, **options):
    "A short joint training."
    kw = dict(steps=3, batch_size=4, lr=1e-2, retriever_lr=1e-2, refresh_above=math.inf) | options
    return joint_grpo(reader, retriever, library or Library(STORIES), dialogues, reward or Table(), recipe or Recipe(**SMALL), **kw)


# ---------------------------------------------------------------- enumeration


def all_replies(n=2) -> list[list[int]]:
    "Every completion of at most n tokens: up to the end mark, or n of them."
    vocabulary, end = range(len(TOK)), TOK.eos_token_id
    return [list(y) for m in range(1, n + 1) for y in itertools.product(vocabulary, repeat=m) if end not in y[:-1] and (y[-1] == end or m == n)]


def chances_of(reader, lists, temperature=1.0, n=2) -> torch.Tensor:
    "Log-probabilities (lists, replies) of every reply to TALK from every list of stories, with gradient."
    pairs, every = [pair_ids(reader, TALK, s, templates=WORDS) for s in STORIES], all_replies(n)
    logprobs, mask = reply_logprobs(reader, pairs, [list(row) for row in lists for _ in every], every * len(lists), temperature=temperature)
    return (logprobs * mask).sum(-1).view(len(lists), len(every))


def rewards_of(n=2): return torch.tensor([worth(Rollout([], y).text(TOK)) for y in all_replies(n)], dtype=torch.float64)


def group_of(columns, completions, rewards, old, reader) -> Group:
    "A group of TALK with given stories (k, n), completions k x g and rewards (k, g)."
    columns = torch.tensor(columns)
    pairs = [pair_ids(reader, TALK, STORIES[i], templates=WORDS) for i in columns.flatten().tolist()]
    return Group(TALK, columns, columns, old, pairs, [Rollout([], y) for y in completions], rewards)


def test_replies_are_all_there():
    lp = chances_of(reader_of(), [[i] for i in range(N)])
    assert torch.allclose(lp.exp().sum(-1), torch.ones(N, dtype=torch.float64)) and lp.exp().max() < 0.5
    spread = (lp.exp() * rewards_of()).sum(-1)
    assert spread.max() - spread.min() > 0.02, "stories must differ, or there is nothing for the retriever to learn"


@pytest.mark.parametrize("how", ["leave_one_out", "mean", "reinforce", "group_std"])
def test_the_generators_gradient_is_the_enumerated_one(how):
    "All pairs of one-word replies from one story, each with its chance; the published rule has another gradient."
    reader = reader_of()
    lp, R, every = chances_of(reader, [[2]], n=1)[0], rewards_of(1), all_replies(1)
    exact = flat((lp.exp() * R).sum(), reader.model)
    duos = torch.tensor(list(itertools.product(range(len(every)), repeat=2)))
    chance, rewards = lp.detach()[duos].sum(-1, keepdim=True).exp(), R[duos]
    advantages = rewards if how == "reinforce" else group_advantages(rewards, how)[0]
    groups = [group_of([[2]], [every[i] for i in duo], None, None, reader) for duo in duos.tolist()]
    for g, r in zip(groups, rewards): g.rewards = r.unsqueeze(0)
    recipe = Recipe(documents=1, replies=2, train_retriever=False, advantage=how, kl_coef=0.0, loss_type="dr_grpo", **KW)
    total, n, _ = reader_loss(reader, recipe)(reader.model, [(g, a, None, None) for g, a in zip(groups, (chance * advantages).unsqueeze(1))])
    found = -flat(total, reader.model) / 2
    assert n == 2 * len(duos) * 2, "texts times the longest there may be"
    if how == "group_std": assert (found - exact * (found @ exact) / (exact @ exact)).norm() > 1e-3 * exact.norm()
    else: assert torch.allclose(found, exact * (0.5 if how == "mean" else 1.0), atol=1e-9)


@pytest.mark.parametrize("how", ["unordered", "iid", "reinforce", "group_std"])
@pytest.mark.parametrize("side", ["both", "query"])
def test_the_retrievers_gradient_is_the_enumerated_one(how, side):
    "All sets of 3 of 5 stories (or all tuples), each with its chance, through the loss that is trained by; the published rule has another."
    reader, retriever = reader_of(), retriever_of(side=side)
    library, r = read(retriever), torch.tensor([0.9, 0.1, 0.4, 0.35, 0.0], dtype=torch.float64)
    everything = torch.arange(N).unsqueeze(0) if side == "both" else None
    lp = document_logits(retriever, library, [TALK], sampled=everything)[0][0].log_softmax(-1)
    exact = flat((lp.exp() * r).sum(), retriever.encoder.model)
    sets = torch.tensor(list(itertools.combinations(range(N), 3) if how == "unordered" else itertools.product(range(N), repeat=3)))
    chance = (set_logprob(lp.detach()[sets]) if how == "unordered" else lp.detach()[sets].sum(-1)).exp()
    assert chance.sum().item() == pytest.approx(1)
    shown = r[sets] if how == "group_std" else r[sets] * chance.unsqueeze(-1)  # all but the deviation are linear in rewards
    recipe = Recipe(documents=3, estimator=how, entropy_coef=0.0, train_reader=False, **KW)
    rows = [group_of(s.unsqueeze(-1).tolist(), [], w.unsqueeze(-1), lp.detach()[s], reader) for s, w in zip(sets, shown)]
    loss = retriever_loss(retriever, library, recipe)
    if how == "group_std": found = sum(-c * flat(loss(None, [row])[0], retriever.encoder.model) for c, row in zip(chance, rows))
    else: found = -flat(loss(None, rows)[0], retriever.encoder.model)
    if how == "group_std": assert (found - exact * (found @ exact) / (exact @ exact)).norm() > 1e-2 * exact.norm()
    elif how == "reinforce" and side == "both": assert torch.cosine_similarity(found, exact, 0) > 0.5  # its advantages don't sum to 0: stories that weren't drawn count too
    else: assert torch.allclose(found, exact, atol=1e-9), "stories that weren't drawn need not be read anew"


@pytest.mark.parametrize("side", ["query", "both"])
def test_the_gradient_of_lists_is_the_enumerated_one(side):
    "All pairs of lists of two stories: exact for the query side; where stories are trained too, those that weren't drawn count as constants in what is left over after the first."
    reader, retriever = reader_of(), retriever_of(side=side)
    library, lists = read(retriever), torch.tensor(list(itertools.permutations(range(N), 2)))
    everything = torch.arange(N).unsqueeze(0) if side == "both" else None
    logits = document_logits(retriever, library, [TALK], sampled=everything)[0]
    lp, r = draw_logprobs(logits, lists.unsqueeze(0))[0], torch.rand(len(lists), generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    exact = flat((lp.exp() * r).sum(), retriever.encoder.model)
    duos = torch.tensor(list(itertools.product(range(len(lists)), repeat=2)))
    chance = lp.detach()[duos].sum(-1).exp()
    rows = [group_of(lists[d].tolist(), [], w.unsqueeze(-1), lp.detach()[d], reader) for d, w in zip(duos, r[duos] * chance.unsqueeze(-1))]
    total, _, _ = retriever_loss(retriever, library, Recipe(stories=2, entropy_coef=0.0, **SMALL))(None, rows)
    found = -flat(total, retriever.encoder.model)
    if side == "query": assert chance.sum().item() == pytest.approx(1) and torch.allclose(found, exact, atol=1e-9)
    else: assert 0.9 < torch.cosine_similarity(found, exact, 0) < 0.9999


def test_the_entropys_gradient():
    "The bonus alone, where every story was drawn."
    reader, retriever = reader_of(), retriever_of()
    library, k = read(retriever), torch.arange(N)
    lp = document_logits(retriever, library, [TALK], sampled=k.unsqueeze(0))[0][0].log_softmax(-1)
    exact = flat(-(lp.exp() * lp).sum(), retriever.encoder.model)
    row = group_of([[i] for i in range(N)], [], torch.full((N, 1), 0.3), lp.detach(), reader)
    total, n, told = retriever_loss(retriever, library, Recipe(documents=N, entropy_coef=0.7, **KW))(None, [row])
    assert torch.allclose(-flat(total, retriever.encoder.model), 0.7 * exact, atol=1e-9) and n == 1 and told["zero_groups"] == 1


@pytest.mark.parametrize("options", [dict(), dict(estimator="iid"), dict(stories=2)], ids=["sets", "independent", "lists"])
def test_sampled_gradients_are_the_enumerated_ones(options):
    "From the draw of stories to both losses: many dialogues at once, within Monte-Carlo error."
    reader, retriever = reader_of(), retriever_of(side="query" if "stories" in options else "both")
    library, recipe = read(retriever), Recipe(kl_coef=0.0, entropy_coef=0.0, loss_type="dr_grpo", **options, **SMALL)
    lists = [[i] for i in range(N)] if recipe.stories == 1 else [list(p) for p in itertools.permutations(range(N), 2)]
    logits = document_logits(retriever, library, [TALK], sampled=torch.arange(N).unsqueeze(0))[0]  # anew where that side is trained
    log_draw = draw_logprobs(logits, torch.tensor(lists).unsqueeze(0))[0]
    lp, R = chances_of(reader, lists), rewards_of()
    of_lists = (lp.exp() * R).sum(-1)
    seen = log_draw.detach().exp()  # how often a list is read, on average over a dialogue's draws
    if recipe.stories == 1 and recipe.estimator == "unordered":
        sets = torch.tensor(list(itertools.combinations(range(N), 2)))
        seen = torch.zeros(N, dtype=torch.float64).index_add(0, sets.flatten(), set_logprob(seen.log()[sets]).exp().repeat_interleave(2)) / 2
    exact = torch.cat([flat((log_draw.exp() * of_lists.detach()).sum(), retriever.encoder.model), flat((seen * of_lists).sum() / recipe.max_new_tokens, reader.model)])
    parts, cut = [], weights(retriever.encoder.model).numel()
    for seed in range(12):
        groups, _ = experience(reader, retriever, library, [TALK] * 300, Table(), recipe, seed)
        advantages, _ = group_advantages(torch.stack([x.rewards for x in groups]).double())
        loss, n, _ = reader_loss(reader, recipe)(None, [(x, a, None, None) for x, a in zip(groups, advantages)])
        other, m, _ = retriever_loss(retriever, library, recipe)(None, groups)
        parts.append(torch.cat([-flat(other, retriever.encoder.model) / m, -flat(loss, reader.model) / n]))
    parts = torch.stack(parts)
    for at in (slice(0, cut), slice(cut, None)):
        error, noise = (parts.mean(0) - exact)[at].norm(), (parts.var(0)[at].sum() / len(parts)).sqrt()
        assert error < 2.5 * noise and noise < 0.25 * exact[at].norm(), (error, noise, exact[at].norm())


def test_a_stale_library_is_paid_for():
    "Stories drawn from old vectors: the ratio of now to then makes the expected gradient that of now, with rewards that add up."
    reader, retriever = reader_of(), retriever_of()
    library, r = read(retriever), torch.tensor([0.9, 0.1, 0.4, 0.35, 0.0], dtype=torch.float64)
    drawn_from = document_logits(retriever, library, [TALK])[0][0].detach().log_softmax(-1)
    with torch.no_grad():
        for p in retriever.encoder.model.parameters(): p.add_(0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(3), dtype=p.dtype))
    library = read(retriever)  # stories as they are now: only the draws are old
    lp = document_logits(retriever, library, [TALK], sampled=torch.arange(N).unsqueeze(0))[0][0].log_softmax(-1)
    assert (lp - drawn_from).abs().max() > 0.02
    exact = flat((lp.exp() * r).sum(), retriever.encoder.model)
    duos = torch.tensor(list(itertools.product(range(N), repeat=2)))
    chance = drawn_from[duos].sum(-1).exp()
    rows = [group_of(s.unsqueeze(-1).tolist(), [], w.unsqueeze(-1), drawn_from[s], reader) for s, w in zip(duos, r[duos] * chance.unsqueeze(-1))]
    total, _, told = retriever_loss(retriever, library, Recipe(estimator="iid", entropy_coef=0.0, clip=math.inf, **SMALL))(None, rows)
    assert torch.cosine_similarity(-flat(total, retriever.encoder.model), exact, 0) > 0.999 and told["approx_kl"] > 0


# ---------------------------------------------------------------- the first step


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("stories", [1, 2])
def test_recomputed_log_probabilities_are_the_samplers(temperature, stories):
    "The sampler tells those at temperature 1, whatever it draws at; the loss takes those at the temperature of the draw."
    reader, retriever, recipe = reader_of(), retriever_of(), Recipe(temperature=temperature, stories=stories, **SMALL)
    groups, _ = experience(reader, retriever, read(retriever), TALKS, Table(), recipe, seed=1)
    rollouts = [r for x in groups for r in x.rollouts]
    for micro in (1, 3, 7):
        again = [row for part in joint._measured(reader, groups, replace(recipe, temperature=1.0), micro) for row in part]
        for row, r in zip(again, rollouts, strict=True): assert row[: len(r.logprobs)].tolist() == pytest.approx(r.logprobs, abs=1e-9) and not row[len(r.logprobs) :].any() or len(row) > len(r.logprobs)
    used = [row for part in joint._measured(reader, groups, recipe, 7) for row in part]
    one = [x for x in groups if x.dialogue is TALK][0]
    first = (chances_of(reader, one.columns.tolist(), n=1).detach() / temperature).log_softmax(-1)
    for i, (row, r) in enumerate(zip(used, one.rollouts)): assert row[0].item() == pytest.approx(first[i // 2, r.completion_ids[0]].item(), abs=1e-9)


def test_draws_are_at_the_temperature():
    "First words drawn at 0.5 are as frequent as the sharpened distribution says."
    reader, retriever = reader_of(), retriever_of()
    groups, _ = experience(reader, retriever, read(retriever), [TALK] * 1500, Table(), Recipe(temperature=0.5, documents=2, replies=2, templates=WORDS, max_new_tokens=1), seed=3)
    first = (chances_of(reader, [[i] for i in range(N)], n=1).detach() / 0.5).softmax(-1)
    want, seen = torch.zeros(len(TOK), dtype=torch.float64), torch.zeros(len(TOK), dtype=torch.float64)
    for x in groups:
        for j, r in enumerate(x.rollouts):
            want += first[x.columns[j // 2, 0]]
            seen[r.completion_ids[0]] += 1
    assert (seen - want).abs().sum() / want.sum() < 0.03


@pytest.mark.parametrize("options", [dict(), dict(temperature=0.7), dict(stories=2), dict(loss_type="grpo", kl="ratio_k3"), dict(epochs=2)], ids=str)
def test_nothing_has_moved_at_the_first_step(options):
    "KL 0 to the reader it began as, ratio 1, nothing clipped; to another model the distance shows."
    def first(reference):
        lines = []
        train(reader_of(), retriever_of(), recipe=Recipe(kl_coef=0.1, **options, **SMALL), reference=reference, steps=1, lr=1e-9, retriever_lr=1e-9, log=lambda step, **s: lines.append(s))
        return lines[0]
    told = first(reader_of())
    assert all(abs(told[k]) < 1e-9 for k in ("reader_kl", "reader_approx_kl", "reader_clip_fraction", "retriever_approx_kl", "retriever_clip_fraction"))
    assert abs(told["staleness"]) < 1e-6 and told["reader_grad_norm"] > 1e-3 < told["retriever_grad_norm"]
    assert first(reader_of(seed=5))["reader_kl"] > 0.01 and "reader_kl" not in first(None)


def test_ratios_move_within_a_step():
    "With several passes over a batch the second sees another model."
    lines = []
    train(reader_of(), retriever_of(), recipe=Recipe(epochs=3, clip=1e-4, **SMALL), steps=1, log=lambda step, **s: lines.append(s))
    assert lines[0]["reader_approx_kl"] > 1e-6 < lines[0]["retriever_approx_kl"] and lines[0]["reader_clip_fraction"] > 0.2 < lines[0]["retriever_clip_fraction"]


# ---------------------------------------------------------------- equal rewards


def test_equal_rewards_move_nothing():
    "Weights stay to the bit, and all groups are counted; with rewards that differ they don't."
    for of in (lambda reply: 0.1, worth):
        reader, retriever, lines = reader_of(), retriever_of(), []
        before = weights(reader.model), weights(retriever.encoder.model)
        train(reader, retriever, reward=Table(of), recipe=Recipe(kl_coef=0.0, entropy_coef=0.0, **SMALL), reference=reader_of(), log=lambda step, lines=lines, **s: lines.append(s))
        same = of is not worth
        assert torch.equal(weights(reader.model), before[0]) == torch.equal(weights(retriever.encoder.model), before[1]) == same
        assert (lines[-1]["reader_zero_groups"] == lines[-1]["retriever_zero_groups"] == 1) == same and (lines[-1]["reader_grad_norm"] == lines[-1]["retriever_grad_norm"] == 0) == same


def test_a_reader_that_always_says_the_same_still_teaches_the_retriever():
    "Replies of a story equal, stories different: exactly 0 for the reader, and not for the retriever; and the other way round."
    reader, retriever = reader_of(), retriever_of()
    library, recipe = read(retriever), Recipe(entropy_coef=0.0, kl_coef=0.0, **SMALL)
    groups, _ = experience(reader, retriever, library, TALKS[:3], Table(), recipe, seed=0)
    for rewards, reader_moves, retriever_moves in (([[0.3, 0.3], [0.9, 0.9]], False, True), ([[0.1, 0.5], [0.5, 0.1]], True, False)):
        for x in groups: x.rewards = torch.tensor(rewards)
        advantages, told = group_advantages(torch.stack([x.rewards for x in groups]))
        moved = flat(reader_loss(reader, recipe)(None, [(x, a, None, None) for x, a in zip(groups, advantages)])[0], reader.model)
        total, n, stats = retriever_loss(retriever, library, recipe)(None, groups)
        pulled = flat(total, retriever.encoder.model)
        assert bool(moved.any()) == reader_moves == (told["zero_groups"] == 0) and bool(pulled.any()) == retriever_moves == (stats["zero_groups"] == 0)


# ---------------------------------------------------------------- what is frozen


@pytest.mark.parametrize("options", [dict(train_reader=False), dict(train_retriever=False)], ids=["retriever-alone", "reader-alone"])
def test_a_frozen_part_stays_as_it_is(options):
    "To the bit, and can be trained afterwards."
    reader, retriever = reader_of(), retriever_of()
    before = weights(reader.model), weights(retriever.encoder.model)
    train(reader, retriever, recipe=Recipe(**options, **SMALL))
    assert torch.equal(weights(reader.model), before[0]) == ("train_reader" in options) and torch.equal(weights(retriever.encoder.model), before[1]) == ("train_retriever" in options)
    assert all(p.requires_grad for m in (reader.model, retriever.encoder.model) for p in m.parameters())


def test_stories_of_a_query_side_are_read_once(monkeypatch):
    retriever, library = retriever_of(side="query"), Library(STORIES)
    read_by, start, reads = retriever.passages, weights(retriever.passages.model), []
    embed = type(read_by).embed
    monkeypatch.setattr(type(read_by), "embed", lambda self, *args: reads.append(self) or embed(self, *args))
    done = train(reader_of(), retriever, library=library, refresh_every=1, refresh_above=0.0)
    assert reads == [read_by] and done["refreshes"] == 0 and torch.equal(weights(read_by.model), start) and not torch.equal(weights(retriever.encoder.model), start)


def test_what_was_frozen_beside_adapters_stays_so():
    "LoRA in the reader, word vectors frozen in the retriever: the rest learns, and they are frozen afterwards too."
    reader, retriever = reader_of(), retriever_of()
    prepare_model(reader.model, lora_r=2)
    retriever.encoder.model.embeddings.word_embeddings.weight.requires_grad_(False)
    both = [(n, p, p.detach().clone(), p.requires_grad) for m in (reader.model, retriever.encoder.model) for n, p in m.named_parameters()]
    train(reader, retriever, recipe=Recipe(kl_coef=0.1, **SMALL), reference=reader_of(), steps=3)
    for name, p, start, was in both: assert p.requires_grad == was and (was or torch.equal(p, start)), name
    assert [w for n, _, _, w in both if n.startswith("decoder")] == ["lora_" in n for n, *_ in both if n.startswith("decoder")]
    for part in ("lora_B", "attention.self.query.weight"): assert any(not torch.equal(p, start) for n, p, start, _ in both if part in n), part


# ---------------------------------------------------------------- the trainer


def test_the_retriever_may_wait():
    "As it was, to the bit, until its turn; its rate warms up from there; a turn that never comes is refused."
    lines, seen, retriever = [], [], retriever_of()
    start = weights(retriever.encoder.model)
    train(reader_of(), retriever, steps=5, retriever_delay=3, log_every=1, evaluate=lambda step: seen.append(torch.equal(weights(retriever.encoder.model), start)) or {}, eval_every=1, log=lambda step, **s: lines.append(s))
    assert seen == [True] * 3 + [False] * 2 and ["retriever_loss" in x for x in lines] == ["staleness" in x for x in lines] == [False] * 3 + [True] * 2
    assert [x["retriever_lr"] > 0 for x in lines] == [False] * 3 + [True] * 2 and all(x["lr"] > 0 for x in lines) and lines[3]["retriever_lr"] == pytest.approx(1e-2)
    assert "retriever_delay = 5" in line_of(train, reader_of(), retriever_of(), steps=5, retriever_delay=5)


def killed_at(folder, die, recipe, side="both", dialogues=TALKS, **options):
    "Weights, lines and totals of a training that dies once behind step `die` (0: never) and is begun again by a new process."
    folder.mkdir(exist_ok=True)
    reader, retriever, lines = reader_of(), retriever_of(side=side), {}

    def log(step, **scalars):
        lines[step] = scalars
        if step == die: raise KeyboardInterrupt
    kw = dict(steps=8, reference=reader_of(), refresh_every=3, folder=folder, save_seconds=0, log_every=2, log=log, seed=5) | options
    try: done = train(reader, retriever, dialogues, recipe, **kw)
    except KeyboardInterrupt:
        assert torch.load(folder / "checkpoint.pt", weights_only=True)["step"] == die - 2
        return killed_at(folder, 0, recipe, side, dialogues, **options)
    return weights(reader.model), weights(retriever.encoder.model), lines, done


@pytest.mark.parametrize("die", [4, 6])
def test_after_a_kill_while_the_retriever_waits(tmp_path, die):
    "Killed before its turn (after one line of waiting), and killed after it began."
    calm, killed = killed_at(tmp_path / "calm", 0, Recipe(**SMALL), retriever_delay=5), killed_at(tmp_path / "killed", die, Recipe(**SMALL), retriever_delay=5)
    assert all(torch.equal(a, b) for a, b in zip(calm[:2], killed[:2])) and killed[2][8] == calm[2][8] and calm[3] == killed[3]


@pytest.mark.parametrize("options", [dict(), dict(side="query"), dict(train_retriever=False), dict(train_reader=False), dict(stories=2, epochs=2)], ids=str)
def test_after_a_kill(tmp_path, options):
    "Same weights to the bit, same lines, though the library was older than the weights; refreshes and costs are counted on."
    side = dict(side=options.pop("side", "both"))
    recipe = Recipe(**options, **SMALL)
    calm, killed = killed_at(tmp_path / "calm", 0, recipe, **side), killed_at(tmp_path / "killed", 6, recipe, **side)
    assert all(torch.equal(a, b) for a, b in zip(calm[:2], killed[:2])) and all(killed[2][s] == calm[2][s] for s in (6, 8))
    assert calm[3] == killed[3] and calm[3]["refreshes"] == (2 if side["side"] == "both" and recipe.train_retriever else 0) and calm[3]["lm_tokens"] > 0
    assert not list(tmp_path.glob("*/checkpoint*")), "nobody needs it any more"


def test_stories_are_read_again_when_stale():
    def run(**options):
        lines = []
        train(reader_of(), retriever_of(), steps=6, log_every=1, log=lambda step, **s: lines.append(s), **options)
        return [x["staleness"] for x in lines], [x["refreshes"] for x in lines]
    stale, count = run(refresh_every=2)
    assert count == [0, 1, 1, 2, 2, 3]
    stale, count = run()
    assert count == [0] * 6 and stale[-1] > stale[0] >= 0
    level = sorted(stale)[2]
    stale, count = run(refresh_above=level)
    assert [b - a for a, b in zip([0, *count], count)] == [int(s > level) for s in stale] and 0 < count[-1] < 6


@pytest.mark.parametrize("options", [dict(), dict(estimator="iid", loss_type="grpo"), dict(stories=2, epochs=2, loss_type="dr_grpo")], ids=str)
def test_parts_of_a_batch_give_the_same_update(options):
    def after(micro):
        reader, retriever = reader_of(), retriever_of()
        train(reader, retriever, recipe=Recipe(**options, **SMALL), reference=reader_of(seed=1), micro_batch=micro, steps=2, batch_size=6)
        return weights(reader.model), weights(retriever.encoder.model)
    whole = after(0)
    for micro in (1, 4):
        for a, b in zip(whole, after(micro)): assert torch.allclose(a, b, atol=1e-8)


def test_draws_dont_depend_on_company():
    logits = torch.randn(6, N, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for recipe in (Recipe(**SMALL), Recipe(estimator="iid", **SMALL), Recipe(stories=3, **SMALL)):
        together = draw_stories(logits, recipe, [3, 1, 4, 1, 5, 9])
        assert together.shape == (6, 2, recipe.stories) and all(len(set(row)) == recipe.stories for rows in together.tolist() for row in rows)
        for i, seed in enumerate((3, 1, 4, 1, 5, 9)): assert torch.equal(draw_stories(logits[i : i + 1], recipe, [seed])[0], together[i])
        assert draw_logprobs(logits, together).shape == (6, 2)
    sets = draw_stories(logits, Recipe(**SMALL), list(range(6)))[..., 0]
    assert all(a != b for a, b in sets.tolist()), "without replacement"


def test_each_pair_is_read_once_and_told_apart():
    "k * G replies cost k readings; groups hold what belongs to them."
    reader, retriever, cost = reader_of(), retriever_of(), Cost()
    library = read(retriever, [*STORIES, *(replace(s, id=f"x{s.id}", corpus="other") for s in STORIES)])
    mixed = [replace(d, corpus=("shelf", "other")[i % 2]) for i, d in enumerate(TALKS)]
    groups, told = experience(reader, retriever, library, mixed, Table(), Recipe(documents=3, replies=4, stories=2, **KW), seed=2, cost=cost)
    longest = sum(len(p) for x in groups for p in x.pairs) + sum(len(r.completion_ids) + 1 for x in groups for r in x.rollouts)
    assert 0 < cost.lm_tokens <= longest and told["reward"] == pytest.approx(sum(x.rewards.sum().item() for x in groups) / (7 * 12), abs=1e-6)
    for x in groups:
        assert x.columns.shape == x.stories.shape == (3, 2) and x.rewards.shape == (3, 4) and len(x.rollouts) == 12 and len(x.pairs) == 6
        assert x.pairs == [pair_ids(reader, x.dialogue, library.stories[i], templates=WORDS) for i in x.stories.flatten().tolist()]
        assert {library.stories[i].corpus for i in x.stories.flatten().tolist()} == {x.dialogue.corpus}
        assert torch.equal(library.column[x.stories], x.columns) and x.rewards.flatten().tolist() == pytest.approx([worth(r.text(TOK)) for r in x.rollouts])


def test_it_learns():
    "Replies that begin with b pay, and soon all do."
    lines = []
    train(reader_of(), retriever_of(), recipe=Recipe(documents=2, replies=4, **KW), reward=Table(lambda r: float(r.startswith("b"))), reference=reader_of(), steps=16, lr=2e-2, log_every=4, log=lambda step, **s: lines.append(s))
    assert lines[0]["reward"] < 0.5 and lines[-1]["reward"] > 0.8 and lines[-1]["reader_kl"] > 0.1


def test_the_price_pulls_towards_the_reference():
    "With rewards that say nothing the writer becomes more like the reference, and without a price it stays as it is."
    for kl_coef in (1.0, 0.0):
        lines = []
        train(reader_of(), retriever_of(), recipe=Recipe(kl_coef=kl_coef, **SMALL), reward=Table(lambda r: 0.5), reference=reader_of(seed=1), steps=16, lr=2e-2, log_every=4, log=lambda step, lines=lines, **s: lines.append(s))
        assert (lines[-1]["reader_kl"] < 0.5 * lines[0]["reader_kl"]) == (kl_coef > 0) and (lines[-1]["reader_grad_norm"] > 0) == (kl_coef > 0)


@pytest.mark.parametrize("options", [dict(advantage="reinforce", estimator="reinforce"), dict(advantage="group_std", estimator="group_std"), dict(stories=2), dict(stories=2, estimator="reinforce")], ids=str)
def test_every_recipe_runs(options):
    lines, seen = [], []
    done = train(reader_of(), retriever_of(), recipe=Recipe(**options, **SMALL), reference=reader_of(), reward=Reward(), evaluate=lambda step: seen.append(step) or dict(held=1.0), eval_every=2, log=lambda step, **s: lines.append((step, s)))
    assert [s for s, _ in lines] == seen == [2, 3] and all(math.isfinite(v) for _, s in lines for v in s.values()) and lines[0][1]["held"] == 1 and done["replies"] == 3 * 4 * 4
    assert {"reward", "f1", "bleu", "rougeL", "length_ratio", "entropy", "reader_loss", "retriever_loss", "lr", "retriever_lr", "staleness", "refreshes"} <= set(lines[0][1])


def test_learner_and_optimizers_keep_their_state():
    reader, retriever = reader_of(), retriever_of()
    learner = Learner(reader, retriever, train_reader=False)
    each = [torch.optim.AdamW(retriever.encoder.model.parameters()), torch.optim.SGD(retriever.encoder.model.parameters(), lr=0.1, momentum=0.9)]
    weights(retriever.encoder.model)
    sum((p**2).sum() for p in retriever.encoder.model.parameters()).backward()
    for o in each: o.step()
    learner.spent.add(lm_tokens=5)
    learner.remember()
    other = Learner(reader_of(1), retriever_of(1), train_reader=False)
    again = Optimizers(torch.optim.AdamW(other.retriever.parameters()), torch.optim.SGD(other.retriever.parameters(), lr=0.1, momentum=0.9))
    other.load_state_dict(learner.state_dict())
    again.load_state_dict(Optimizers(*each).state_dict())
    assert other.refreshes == 1 and other.spent.lm_tokens == 5 and torch.equal(weights(other.retriever), weights(learner.retriever)) and torch.equal(other.indexed_0, learner.indexed_0)
    assert again.each[0].state and again.state_dict().keys() == {"0", "1"} and not any(p.requires_grad for p in other.reader.parameters())
    with torch.no_grad(): next(retriever.encoder.model.parameters()).add_(1)
    then = []
    learner.again(lambda: then.append(weights(retriever.encoder.model)))
    assert torch.equal(then[0], weights(other.retriever)) and not torch.equal(then[0], weights(retriever.encoder.model))
    learner.release()
    assert all(p.requires_grad for p in reader.model.parameters())


# ---------------------------------------------------------------- replies, lines


def test_answers_are_the_greedy_replies():
    "Closed book, one story, two; in whatever batches; whatever stands beside them."
    reader, told, cost = reader_of(), [[], STORIES[:1], STORIES[1:3], STORIES[:1]], Cost()
    asked = [*TALKS[:3], TALKS[1]]
    said = answer(reader, asked, told, 3, templates=PLAIN, cost=cost)
    for i in range(4):
        pairs = [pair_ids(reader, asked[i], s, templates=PLAIN) for s in told[i] or [None]]
        want = generate(reader, [list(range(len(pairs)))], greedy, 3, begin=begin_replies(encode_pairs(reader, pairs)))[0]
        assert said[i] == want.text(TOK)
    assert answer(reader, asked, told, 3, templates=PLAIN, batch_size=1) == said and cost.lm_tokens > 0
    with pytest.raises(ValueError): answer(reader, asked, told[:2], 3, templates=PLAIN)


def test_lines_for_what_a_person_can_mend():
    assert "grpo_group_size = 1" in line_of(Recipe, replies=1) and "grpo_retriever_group_size = 1" in line_of(Recipe, documents=1)
    assert Recipe(replies=1, train_reader=False).replies == 1 == Recipe(documents=1, train_retriever=False).documents == Recipe(documents=1, replies=1, advantage="reinforce", estimator="reinforce").replies
    assert "neither" in line_of(Recipe, train_reader=False, train_retriever=False)
    assert "leave_one_out" in line_of(Recipe, advantage="leave_one")
    reader, retriever = reader_of(), retriever_of()
    assert "no dialogues" in line_of(train, reader, retriever, [])
    assert "always be 0" in line_of(train, reader, retriever, reference=LM(reader.model, TOK, "seq2seq"))
    assert "elsewhere" in line_of(train, reader_of(), retriever_of(), [replace(TALK, corpus="elsewhere")])
    assert "5" in line_of(train, reader_of(), retriever_of(), recipe=Recipe(documents=6, replies=2, **KW))
    assert "unorderd" in line_of(train, reader_of(), retriever_of(), recipe=Recipe(estimator="unorderd", **SMALL))
    assert "k1" in line_of(train, reader_of(), retriever_of(), reference=reader_of(), recipe=Recipe(kl="k1", **SMALL))
    assert "seq2seq" not in line_of(encode_pairs, SimpleNamespace(kind="causal", model=reader.model), [[1]])
    assert copy.copy(Recipe()) == Recipe()
