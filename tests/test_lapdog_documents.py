"rlgen.lapdog.documents: drawing, set probabilities, and every estimator's mean against the enumerated gradient."
import itertools
import math
from fractions import Fraction

import pytest
import torch

from helpers import line_of
from rlgen.lapdog.documents import ESTIMATORS, document_loss, entropy, gumbel_top_k, list_logprob, perplexity, sample_iid, set_advantages, set_logprob, set_ratios

LISTS = "ordered"


@pytest.fixture(autouse=True)
def in_double():
    "Tensors are 64-bit unless a test says otherwise."
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def noise(*shape, seed=0): return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def chance(p, order):
    "Of drawing these, one after the other, without replacement."
    out, left = type(p[0])(1), type(p[0])(1)
    for i in order: out, left = out * p[i] / left, left - p[i]
    return out


def set_chance(p, chosen): return sum(chance(p, order) for order in itertools.permutations(chosen))


def without(p, gone): return [type(p[0])(0) if i in gone else x / (1 - sum(p[j] for j in gone)) for i, x in enumerate(p)]


# ---------------------------------------------------------------- drawing


def test_gumbel_top_k_draws_one_after_the_other():
    "Every ordered pair and triple comes up as often as it should; chi-squared below four deviations."
    logits = torch.tensor([1.0, -math.inf, 0.0, 0.5, -1.0])
    p, draws = logits.softmax(-1).tolist(), 30_000
    ids = gumbel_top_k(logits.expand(draws, 5), 3, list(range(draws)))
    assert not (ids == 1).any() and all(len(set(row)) == 3 for row in ids.tolist())
    for n in (2, 3):
        orders = list(itertools.permutations((0, 2, 3, 4), n))
        seen = [(ids[:, :n] == torch.tensor(o)).all(1).sum().item() for o in orders]
        chi2 = sum((s - draws * chance(p, o)) ** 2 / (draws * chance(p, o)) for s, o in zip(seen, orders))
        assert sum(seen) == draws and chi2 < len(orders) + 4 * math.sqrt(2 * len(orders))


def test_iid_draws():
    logits, draws = torch.tensor([1.0, -math.inf, 0.0, 0.5]), 30_000
    ids = sample_iid(logits.expand(draws, 4), 3, list(range(draws)))
    p = logits.softmax(-1)
    for i in range(3): assert (torch.bincount(ids[:, i], minlength=4) / draws - p).abs().max() < 0.012
    pairs = torch.bincount(ids[:, 0] * 4 + ids[:, 2], minlength=16).view(4, 4) / draws
    assert (pairs - p[:, None] * p).abs().max() < 0.012, "draws are independent"


def test_draws_dont_know_of_company():
    "Alone, in a batch, in another order, in 32 or 64 bits, padded with documents that aren't there."
    logits, seeds = noise(5, 9), [3, 1, 4, 1, 5]
    for draw in (gumbel_top_k, sample_iid):
        ids = draw(logits, 4, seeds)
        for i in range(5): assert draw(logits[i : i + 1], 4, seeds[i : i + 1])[0].tolist() == ids[i].tolist()
        assert draw(torch.cat([logits, torch.full((5, 3), -math.inf)], 1), 4, seeds).tolist() == ids.tolist()
        assert draw(logits.float(), 4, seeds).tolist() == ids.tolist() and draw(logits + 100, 4, seeds).tolist() == ids.tolist()
        assert draw(logits, 4, [9, 9, 9, 9, 9]).tolist() != ids.tolist()
    assert gumbel_top_k(logits, 1, seeds).tolist() == sample_iid(logits, 1, seeds).tolist()


def test_refused_draws():
    short = torch.tensor([[0.0, 1.0, 2.0, 3.0], [0.0, 1.0, -math.inf, -math.inf]])
    assert "row 1 has 2" in line_of(gumbel_top_k, short, 3, [1, 2])
    assert "1 seeds for 2" in line_of(gumbel_top_k, short, 2, [1])
    assert gumbel_top_k(short, 2, [1, 2])[1].sort().values.tolist() == [0, 1]


# ---------------------------------------------------------------- sets


@pytest.mark.parametrize("k", (1, 2, 3, 5))
def test_set_probabilities_by_all_orders(k):
    p = noise(6, seed=k).softmax(-1)
    sets = torch.tensor(list(itertools.combinations(range(6), k)))
    got = set_logprob(p[sets].log()).exp()
    torch.testing.assert_close(got, torch.tensor([set_chance(p.tolist(), s.tolist()) for s in sets]))
    assert got.sum().item() == pytest.approx(1)


def test_ratios_by_their_definition():
    "Every document is taken out of the corpus by hand."
    p, k = noise(7, seed=2).softmax(-1).tolist(), 4
    for s in [(0, 1, 2, 3), (6, 2, 5, 1)]:
        log_r, log_rr = set_ratios(torch.tensor(p)[list(s)].log())
        for i, a in enumerate(s):
            rest, world = [x for x in s if x != a], without(p, [a])
            assert log_r[i].exp().item() == pytest.approx(set_chance(world, rest) / set_chance(p, s))
            for j, b in enumerate(s):
                wanted = 1 if a == b else set_chance(without(p, [a, b]), [x for x in rest if x != b]) / set_chance(world, rest)
                assert log_rr[i, j].exp().item() == pytest.approx(wanted)
    assert len(s) == k


def test_batches_of_sets():
    "Any leading dimensions; the order of a set's documents doesn't matter but for the order of what comes out."
    lp = noise(2, 3, 10, seed=4).log_softmax(-1)[..., :5]
    r, order = noise(2, 3, 5, seed=5), torch.tensor([3, 0, 4, 1, 2])
    w, a = set_advantages(lp, r)
    alone = set_advantages(lp[1, 2], r[1, 2])
    torch.testing.assert_close((w[1, 2], a[1, 2]), alone)
    torch.testing.assert_close(set_advantages(lp[..., order], r[..., order]), (w[..., order], a[..., order]))
    torch.testing.assert_close(set_logprob(lp[..., order]), set_logprob(lp))
    torch.testing.assert_close(w.sum(-1), torch.ones(2, 3))
    torch.testing.assert_close((w * a).sum(-1), torch.zeros(2, 3), atol=1e-12, rtol=0)


@pytest.mark.parametrize("tail", (1e-3, 1e-9, 1e-15, 1e-30, 1e-200))
def test_probabilities_near_one(tail):
    "One document holds all but a sliver. Against exact fractions while the mass outside the set can be told from its log-probabilities; finite and adding up to 1 beyond."
    small = [Fraction(tail) * Fraction(x) for x in ("0.5", "0.3", "0.15", "0.05")]
    p = [1 - sum(small), *small]
    lp = torch.tensor([math.log1p(-float(sum(small))), *(math.log(x) for x in small)])
    for chosen in ((0, 1, 2), (0, 1, 2, 3), (1, 2, 3), (0, 1, 2, 3, 4)):
        w, a = set_advantages(lp[list(chosen)], torch.tensor([1.0, 0.0, 0.5, 0.2, 0.7])[: len(chosen)])
        assert w.isfinite().all() and a.isfinite().all() and w.sum().item() == pytest.approx(1) and (w >= 0).all()
        exact = [float(p[s] * set_chance(without(p, [s]), [x for x in chosen if x != s]) / set_chance(p, chosen)) for s in chosen]
        assert w.tolist() == pytest.approx(exact, rel=1e-6, abs=0), (chosen, tail)


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
@pytest.mark.parametrize("peak", (0.0, 8.0, 20.0, 90.0, 1e4))
def test_single_precision(peak, dtype):
    "From even to certain: no NaN in value or gradient, and weights near those in 64 bits where these can be trusted."
    logits = noise(6, 12, seed=1)
    logits[:, 0] += peak
    ids = torch.tensor([[0, 1, 2, 3], [1, 2, 3, 4], [5, 0, 6, 7], [8, 9, 10, 11], [0, 11, 5, 6], [2, 3, 4, 0]])
    x = logits.to(dtype).requires_grad_()
    lp = x.log_softmax(-1).gather(-1, ids)
    rewards = noise(6, 4, seed=2).to(dtype)
    total, n, stats = document_loss(lp, lp.detach(), rewards)
    total.backward()
    assert x.grad.isfinite().all() and total.isfinite() and n == 6 and stats["zero_groups"] == 0
    w, _ = set_advantages(lp.detach(), rewards)
    torch.testing.assert_close(w.sum(-1), torch.ones(6), atol=1e-6, rtol=0)
    if dtype == torch.float32 and peak <= 8:
        wide, _ = set_advantages(logits.log_softmax(-1).gather(-1, ids), rewards)
        torch.testing.assert_close(w, wide, atol=2e-3, rtol=0)


def test_refused_sets():
    lp, r = noise(2, 20).log_softmax(-1), noise(2, 20)
    assert "1 to 8" in line_of(set_logprob, lp[:, :9]) and "grpo_retriever_group_size" in line_of(document_loss, lp[:, :9], lp[:, :9], r[:, :9])
    assert "at least 2" in line_of(document_loss, lp[:, :1], lp[:, :1], r[:, :1])
    for how in ("iid", "group_std", LISTS): assert "at least 2" in line_of(document_loss, lp[:, :1], lp[:, :1], r[:, :1], how)
    assert "unordered" in line_of(document_loss, lp[:, :4], lp[:, :4], r[:, :4], "unorderd")
    assert "one reward for each" in line_of(document_loss, lp[:, :4], lp[:, :4], r[:, :3])
    assert "finite" in line_of(document_loss, lp[:, :4], lp[:, :4] - math.inf, r[:, :4])
    assert "not logits" in line_of(set_logprob, torch.tensor([[0.0, 1.0]]))
    for how in ESTIMATORS: assert "nan" in line_of(document_loss, lp[:, :4], lp[:, :4], torch.full((2, 4), math.nan), how)


# ---------------------------------------------------------------- lists


def test_lists():
    logits = noise(2, 5).requires_grad_()
    lists = torch.tensor(list(itertools.permutations(range(5), 3)))
    lp = list_logprob(logits, lists.expand(2, -1, -1))
    for b in range(2):
        p = logits[b].detach().softmax(-1).tolist()
        torch.testing.assert_close(lp[b].detach().exp(), torch.tensor([chance(p, o) for o in lists.tolist()]))
    torch.testing.assert_close(list_logprob(logits, lists[[7, 20]]), torch.stack([lp[0, 7], lp[1, 20]]))
    assert torch.autograd.gradcheck(lambda x: list_logprob(x, lists[[7, 20]]), logits)
    padded = torch.cat([logits, torch.full((2, 2), -math.inf)], 1)
    torch.testing.assert_close(list_logprob(padded, lists[[7, 20]]), list_logprob(logits, lists[[7, 20]]))
    whole = list_logprob(logits, torch.tensor([[4, 2, 0, 1, 3]] * 2))
    assert torch.autograd.grad(whole.sum(), logits)[0].isfinite().all()
    assert list_logprob(logits, torch.tensor([[1, 1], [0, 2]])).isfinite().tolist() == [False, True]


# ---------------------------------------------------------------- gradients by enumeration


def draws_of(how, n, k):
    "All that can be drawn, with a function from probabilities to each one's chance."
    if how == "unordered": return (ids := torch.tensor(list(itertools.combinations(range(n), k)))), lambda p: torch.tensor([set_chance(p.tolist(), s) for s in ids.tolist()])
    return (ids := torch.tensor(list(itertools.product(range(n), repeat=k)))), lambda p: p[ids].prod(-1)


def mean_gradient(how, k, theta, rewards, old=None, **options):
    "Expected gradient of the loss, over all draws from the old distribution."
    ids, of = draws_of(how, len(theta), k)
    then = (theta if old is None else old).detach().log_softmax(-1)
    lp = theta.log_softmax(-1)[ids]
    weights = of(then.exp())
    losses = [w * document_loss(lp[i : i + 1], then[ids[i : i + 1]], rewards[ids[i : i + 1]], how, **options)[0] for i, w in enumerate(weights)]
    return -torch.autograd.grad(sum(losses), theta)[0]


@pytest.mark.parametrize("how, n, k", (("unordered", 6, 2), ("unordered", 6, 3), ("unordered", 6, 5), ("unordered", 5, 5), ("iid", 5, 2), ("iid", 5, 3)))
def test_estimators_are_unbiased(how, n, k):
    "On fresh draws, and with the ratio on draws from another distribution."
    for seed in range(2):
        theta, rewards, old = (2 * noise(n, seed=seed)).requires_grad_(), noise(n, seed=seed + 10) + 3, noise(n, seed=seed + 20)
        exact = torch.autograd.grad((theta.softmax(-1) * rewards).sum(), theta)[0]
        torch.testing.assert_close(mean_gradient(how, k, theta, rewards), exact, atol=1e-10, rtol=0)
        torch.testing.assert_close(mean_gradient(how, k, theta, rewards, old, clip=math.inf), exact, atol=1e-10, rtol=0)


def test_mean_and_deviation():
    "The mean's gradient is short by (k - 1)/k; the published rule's points elsewhere where rewards are mostly noise."
    theta, rewards = noise(6).requires_grad_(), torch.tensor([1.0, 0.01, 0.02, 0.0, 0.03, 0.015])
    with torch.no_grad(): theta[0] -= 3
    exact = torch.autograd.grad((theta.softmax(-1) * rewards).sum(), theta)[0]
    torch.testing.assert_close(mean_gradient("mean", 3, theta, rewards), exact * 2 / 3)
    assert torch.cosine_similarity(mean_gradient("group_std", 3, theta, rewards), exact, 0) < 0.8


def test_lists_are_unbiased():
    "Two lists of two documents each; a list's reward is no sum over its documents."
    theta = noise(4).requires_grad_()
    lists = torch.tensor(list(itertools.permutations(range(4), 2)))
    rewards, lp = noise(12, seed=3), list_logprob(theta.expand(1, 4), lists.unsqueeze(0))[0]
    exact = torch.autograd.grad((lp.exp() * rewards).sum(), theta, retain_graph=True)[0]
    duos = torch.tensor(list(itertools.product(range(12), repeat=2)))
    total = sum(lp.detach().exp()[d].prod() * document_loss(lp[d][None], lp[d][None], rewards[d][None], LISTS)[0] for d in duos)
    torch.testing.assert_close(-torch.autograd.grad(total, theta)[0], exact)


def test_sets_are_less_noisy():
    "Drawn, not enumerated: means lie within their errors of the exact gradient, and the set has less variance than independent draws and than no baseline."
    n, k, draws = 20, 4, 20_000
    theta, rewards = noise(n, seed=1), noise(n, seed=2)
    p = theta.softmax(-1)
    exact, spread = p * (rewards - (p * rewards).sum()), {}
    for how, draw in (("unordered", gumbel_top_k), ("iid", sample_iid)):
        x = theta.repeat(draws, 1).requires_grad_()
        ids = draw(x, k, list(range(draws)))
        lp = x.log_softmax(-1).gather(-1, ids)
        each = -torch.autograd.grad(document_loss(lp, lp, rewards[ids], how)[0], x)[0]
        z = (each.mean(0) - exact) / (each.std(0) / math.sqrt(draws))
        assert z.abs().max() < 4.5 and (z**2).mean() < 2.2, how
        spread[how] = each.var(0).sum().item()
    assert spread["unordered"] < 0.85 * spread["iid"]


# ---------------------------------------------------------------- the loss


@pytest.mark.parametrize("how", ESTIMATORS)
def test_equal_rewards_are_exactly_zero(how):
    "Loss and gradient, in 32 bits too, and counted; the other rows are as they were alone."
    for dtype in (torch.float32, torch.float64):
        x = noise(3, 9, seed=1).to(dtype).requires_grad_()
        lp = x.log_softmax(-1)[:, :4]
        rewards = torch.tensor([[0.1] * 4, [0.3, 0.1, 0.2, 0.0], [0.1 + 0.2 + 0.3, 0.3 + 0.2 + 0.1, 0.6, 0.6]], dtype=torch.float64).to(dtype)
        total, n, stats = document_loss(lp, lp.detach(), rewards, how)
        slope = torch.autograd.grad(total, lp, retain_graph=True)[0]
        assert not slope[0].any() and not slope[2].any() and slope[1].any() and n == 3 and stats["zero_groups"] == 2
        alone = document_loss(lp[1:2], lp[1:2].detach(), rewards[1:2], how)[0]
        torch.testing.assert_close(total, alone)


@pytest.mark.parametrize("how", ESTIMATORS)
def test_clipping_and_stats(how):
    "Fresh draws: nothing clipped, no distance. Moved: per-document clipped surrogate by hand. Parts add up to the whole."
    old, rewards = noise(4, 9, seed=1).log_softmax(-1)[:, :4], noise(4, 4, seed=2)
    lp = old.clone().requires_grad_()
    total, _, stats = document_loss(lp, old, rewards, how)
    fresh = -torch.autograd.grad(total, lp)[0]
    assert stats["clip_fraction"] == 0 and stats["approx_kl"] == 0
    new = (old + 0.3 * noise(4, 4, seed=3)).requires_grad_()
    total, n, stats = document_loss(new, old, rewards, how, clip=0.2)
    ratio = (new - old).exp()
    torch.testing.assert_close(total, -torch.minimum(fresh * ratio, fresh * ratio.clamp(0.8, 1.2)).sum())
    bites = (fresh * ratio > fresh * ratio.clamp(0.8, 1.2)).double().mean(-1).sum()
    assert stats["clip_fraction"].item() == pytest.approx(bites.item()) and bites > 0 and stats["approx_kl"] > 0
    parts = [document_loss(new[i:j], old[i:j], rewards[i:j], how) for i, j in ((0, 1), (1, 4))]
    assert n == sum(x[1] for x in parts) and total.item() == pytest.approx(sum(x[0].item() for x in parts))
    for name in stats: assert stats[name].item() == pytest.approx(sum(x[2][name].item() for x in parts))
    torch.testing.assert_close(document_loss(new, old, rewards, how, clip=math.inf)[0], -(fresh * ratio).sum())


def test_no_gradient_through_the_past():
    old = noise(2, 9).log_softmax(-1)[:, :3].requires_grad_()
    new, rewards = old.detach().clone().requires_grad_(), noise(2, 3, seed=1).requires_grad_()
    document_loss(new, old, rewards)[0].backward()
    assert new.grad.any() and old.grad is None and rewards.grad is None


def test_shift_and_scale_of_rewards():
    lp, r = noise(2, 9).log_softmax(-1)[:, :4].requires_grad_(), noise(2, 4, seed=1)
    def slope(r, how): return torch.autograd.grad(document_loss(lp, lp.detach(), r, how)[0], lp)[0]
    for how in ("unordered", "iid"):
        torch.testing.assert_close(slope(r + 5, how), slope(r, how), atol=1e-12, rtol=0)
        torch.testing.assert_close(slope(3 * r, how), 3 * slope(r, how))


# ---------------------------------------------------------------- entropy


def test_entropy():
    logits = noise(3, 6)
    logits[1, 2:] = -math.inf
    logits[2, 1:] = -math.inf
    logits.requires_grad_()
    h = entropy(logits)
    for i, n in enumerate((6, 2, 1)): assert h[i].item() == pytest.approx(torch.distributions.Categorical(logits=logits[i, :n]).entropy().item(), abs=1e-12)
    slope = torch.autograd.grad(h.sum(), logits)[0]
    assert slope.isfinite().all() and not slope[1, 2:].any() and not slope[2].any() and slope[0].all()
    assert torch.autograd.gradcheck(entropy, noise(2, 4).requires_grad_())
    assert perplexity(torch.zeros(48)).item() == pytest.approx(48) and perplexity(logits[2]).item() == pytest.approx(1)
    assert entropy(torch.zeros(5, dtype=torch.bfloat16)).dtype == torch.float32
