"rlgen.grpo: advantages by definition, the loss against TRL's own, KL terms and policy gradients against enumeration."
import itertools
import math
from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch

from helpers import line_of
from rlgen.grpo import ADVANTAGES, KL_TERMS, LOSS_TYPES, group_advantages, grpo_loss, kl_term, tied
from rlgen.policy import ppo_loss


@pytest.fixture(autouse=True)
def in_double():
    "Tensors are 64-bit unless a test says otherwise."
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def noise(*shape, seed=0): return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def ragged(lengths, width=None): return (torch.arange(width or max(lengths)) < torch.tensor(lengths)[:, None]).long()


# ---------------------------------------------------------------- advantages


def test_advantages_by_definition():
    r = noise(3, 5)
    loo, mean, std = (group_advantages(r, how)[0] for how in ("leave_one_out", "mean", "group_std"))
    for q, i in itertools.product(range(3), range(5)):
        others = [r[q, j].item() for j in range(5) if j != i]
        mu = r[q].mean().item()
        sd = math.sqrt(sum((x - mu) ** 2 for x in r[q].tolist()) / 4)
        assert loo[q, i].item() == pytest.approx(r[q, i].item() - sum(others) / 4)
        assert mean[q, i].item() == pytest.approx(r[q, i].item() - mu)
        assert std[q, i].item() == pytest.approx((r[q, i].item() - mu) / (sd + 1e-4))
    batch = group_advantages(r, "group_std", "batch")[0]
    torch.testing.assert_close(batch, mean / (r.std() + 1e-4))
    torch.testing.assert_close(group_advantages(r, "mean", "group")[0], std)
    torch.testing.assert_close(group_advantages(r, scale="none")[0], loo)


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64, torch.float16))
def test_tied_groups_are_exactly_zero(dtype):
    "Whatever number it is that is repeated, with every rule and scale; also where equal rewards were added up in another order."
    torch.set_default_dtype(torch.float32)
    values = torch.linspace(-3, 3, 61, dtype=dtype)
    for size, how, scale in itertools.product((2, 3, 6, 7), ADVANTAGES, ("", "none", "group", "batch")):
        a, stats = group_advantages(values.unsqueeze(-1).expand(-1, size), how, scale)
        assert not a.any() and stats == dict(zero_groups=1.0), (size, how, scale)
    if dtype == torch.float64:
        parts = torch.tensor([[0.1 + 0.2 + 0.3, 0.3 + 0.2 + 0.1, 0.6], [0.1 + 0.2 + 0.3, 0.3 + 0.2 + 0.1, 0.6001]], dtype=dtype)
        assert parts[0].unique().numel() > 1 and tied(parts).tolist() == [True, False]
        for how in ADVANTAGES: assert group_advantages(parts, how)[0].abs().amax(-1).gt(0).tolist() == [False, True]


def test_raw_rule_amplifies_rounding():
    "What would happen otherwise: advantages near 1 out of nothing."
    r = torch.full((6,), 0.9, dtype=torch.float32)
    assert ((r - r.mean()) / r.std()).abs().max() > 0.5 and not group_advantages(r, "group_std", eps=0.0)[0].any()


def test_groups_dont_know_each_other():
    r = noise(4, 3, 5)
    whole = {how: group_advantages(r, how)[0] for how in ADVANTAGES}
    for how, a in whole.items():
        torch.testing.assert_close(group_advantages(r[2, 1], how)[0], a[2, 1])
        order = torch.randperm(5, generator=torch.Generator().manual_seed(1))
        torch.testing.assert_close(group_advantages(r[..., order], how)[0], a[..., order])
        torch.testing.assert_close(a.sum(-1), torch.zeros(4, 3), atol=1e-12, rtol=0)
        torch.testing.assert_close(group_advantages(r + 7, how)[0], a, atol=1e-9, rtol=0)
    assert group_advantages(torch.tensor([[1, 0, 0], [1, 1, 1]]))[1] == dict(zero_groups=0.5), "whole numbers are fine"


def test_refused_advantages():
    assert "group size" in line_of(group_advantages, torch.ones(4, 1))
    assert "leave_one_out" in line_of(group_advantages, torch.ones(2, 3), "leave_one")
    assert "batch" in line_of(group_advantages, torch.ones(2, 3), "mean", "bach")
    assert "nan" in line_of(group_advantages, torch.tensor([[1.0, math.nan]]))


# ---------------------------------------------------------------- TRL's own loss on the same tensors


def trl_loss(logprobs, old, ref, advantages, mask, loss_type, beta, kl, clip, clip_high, max_tokens):
    "GRPOTrainer._compute_loss without a trainer: its model answers our log-probabilities."
    from trl.trainer.grpo_trainer import GRPOTrainer

    class Stub:
        loss_type, importance_sampling_level, top_entropy_quantile = "", "token", 1.0
        aux_loss_enabled = use_vllm = _entropy_bonus_enabled = False
        off_policy_mask_threshold, model = None, SimpleNamespace(training=True)
        current_gradient_accumulation_steps = 1
        accelerator = SimpleNamespace(num_processes=1, reduce=lambda x, reduction: x, gather=lambda x: x)
        def _get_per_token_logps_and_entropies(self, *args, **kw): return logprobs, torch.zeros_like(logprobs), None

    stub = Stub()
    stub.loss_type, stub.beta, stub.epsilon_low, stub.max_completion_length = loss_type, beta, clip, max_tokens
    stub.epsilon_high = 1 + clip_high if loss_type == "cispo" else clip_high  # there a cap, here a distance from 1
    stub.args = SimpleNamespace(use_bias_correction_kl=kl == "ratio_k3", delta=None, steps_per_generation=1)
    stub._metrics = dict(train=defaultdict(list))
    ids = torch.zeros_like(mask)
    inputs = dict(prompt_ids=ids[:, :1], prompt_mask=ids[:, :1] + 1, completion_ids=ids, completion_mask=mask, advantages=advantages, old_per_token_logps=old, ref_per_token_logps=ref,
                  num_items_in_batch=mask.sum())
    return GRPOTrainer._compute_loss(stub, None, inputs), stub._metrics["train"]


@pytest.mark.parametrize("beta, kl", ((0.0, "k3"), (0.3, "k3"), (0.3, "ratio_k3")))
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_equals_trl(loss_type, beta, kl):
    "Loss, gradient and what is logged, with ratios on both sides of both clips; on fresh samples, too."
    mask, old = ragged([5, 2, 7, 1, 4, 3], 8), noise(6, 8) - 2
    ref, advantages = old + 0.4 * noise(6, 8, seed=1), torch.tensor([1.2, -0.7, 0.0, 2.0, -1.5, 0.4])
    for moved in (0.3, 0.0):
        new = (old + moved * noise(6, 8, seed=2)).requires_grad_()
        total, n, stats = grpo_loss(new, old, advantages, mask, clip=0.15, clip_high=0.25, ref_logprobs=ref, kl_coef=beta, kl=kl, loss_type=loss_type, max_tokens=11)
        ours = torch.autograd.grad(total / n, new)[0]
        wanted, logged = trl_loss(new, old, ref, advantages, mask, loss_type, beta, kl, 0.15, 0.25, 11)
        torch.testing.assert_close(total / n, wanted, atol=1e-12, rtol=0)
        torch.testing.assert_close(ours, torch.autograd.grad(wanted, new)[0], atol=1e-12, rtol=0)
        assert ours.any() and (stats["clip_fraction"] > 0) == (moved > 0)
        bites = logged["cispo_clip_ratio" if loss_type == "cispo" else "clip_ratio/region_mean"][0]
        if loss_type in ("bnpo", "dapo", "cispo"): assert (stats["clip_fraction"] / n).item() == pytest.approx(bites, abs=1e-7)
        if loss_type in ("bnpo", "dapo", "cispo") and kl == "k3" and beta: assert (stats["kl"] / n).item() == pytest.approx(logged["kl"][0])


# ---------------------------------------------------------------- our own definitions


def test_bnpo_is_ppo_with_one_advantage_a_text():
    mask, old, new, a = ragged([4, 2, 5]), noise(3, 5), noise(3, 5, seed=1), noise(3, seed=2)
    total, n, stats = grpo_loss(new, old, a, mask)
    wanted, m, told = ppo_loss(new, old, a[:, None].expand(3, 5), mask)
    torch.testing.assert_close(total, wanted)
    assert n == m and stats["clip_fraction"] == told["clip_fraction"] and stats["approx_kl"].item() == pytest.approx(told["approx_kl"].item())
    torch.testing.assert_close(grpo_loss(new, old, a[:, None].expand(3, 5), mask)[0], wanted)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_padding_and_parts(loss_type):
    "Whatever stands in padding counts for nothing, and sums over parts of a batch, divided by the sum of their divisors, are the whole batch."
    mask, old, new, ref, a = ragged([4, 2, 5, 1]), noise(4, 5), noise(4, 5, seed=1), noise(4, 5, seed=3), noise(4, seed=2)
    how = dict(kl_coef=0.2, loss_type=loss_type, max_tokens=9)
    clean, n, stats = grpo_loss(new, old, a, mask, ref_logprobs=ref, **how)
    new, old, ref = (torch.where(mask == 1, x, torch.tensor(y)) for x, y in ((new, math.nan), (old, -math.inf), (ref, 700.0)))
    new.requires_grad_()
    total, m, told = grpo_loss(new, old, a, mask, ref_logprobs=ref, **how)
    parts = [grpo_loss(new[i:j], old[i:j], a[i:j], mask[i:j], ref_logprobs=ref[i:j], **how) for i, j in ((0, 1), (1, 4))]
    torch.testing.assert_close(total, clean)
    torch.testing.assert_close(sum(p[0] for p in parts), clean)
    assert m == n == sum(p[1] for p in parts)
    for k in stats: assert told[k].item() == pytest.approx(stats[k].item()) == sum(p[2][k].item() for p in parts)
    total.backward()
    assert new.grad.isfinite().all() and not new.grad[mask == 0].any() and new.grad[mask == 1].all()


def test_normalisers():
    "What one token weighs at ratio 1."
    mask, old = ragged([4, 2, 5]), noise(3, 5)
    for loss_type, weights in dict(bnpo=[1 / 11] * 3, dapo=[1 / 11] * 3, cispo=[1 / 11] * 3, grpo=[1 / 12, 1 / 6, 1 / 15], dr_grpo=[1 / 60] * 3).items():
        new = old.clone().requires_grad_()
        total, n, _ = grpo_loss(new, old, torch.tensor([1.0, -2.0, 3.0]), mask, loss_type=loss_type, max_tokens=20)
        (total / n).backward()
        torch.testing.assert_close(new.grad, -torch.tensor([1.0, -2.0, 3.0])[:, None] * torch.tensor(weights)[:, None] * mask)


def test_first_step():
    "Fresh samples, the reference not left yet: ratio 1, nothing clipped, KL 0, and the KL term has no gradient."
    mask, old, a = ragged([4, 2, 5]), noise(3, 5), noise(3, seed=1)
    for kl, loss_type in itertools.product(KL_TERMS, LOSS_TYPES):
        grads = []
        for beta in (0.0, 5.0):
            new = old.clone().requires_grad_()
            total, _, stats = grpo_loss(new, old, a, mask, ref_logprobs=old, kl_coef=beta, kl=kl, loss_type=loss_type, max_tokens=5)
            assert not any(v.any() for v in stats.values())
            grads.append(torch.autograd.grad(total, new)[0])
        torch.testing.assert_close(*grads, atol=1e-12, rtol=0)


def test_no_clipping():
    "An infinite clip is the plain importance-weighted loss."
    mask, old, a = ragged([3, 3]), noise(2, 3), torch.tensor([1.0, -1.0])
    new = (old + 3 * noise(2, 3, seed=1)).requires_grad_()
    total, _, stats = grpo_loss(new, old, a, mask, clip=math.inf)
    torch.testing.assert_close(total, -((new - old).exp() * a[:, None]).sum())
    assert stats["clip_fraction"] == 0


def test_refused_losses():
    x, mask = noise(2, 3), ragged([3, 3])
    assert "ref_logprobs" in line_of(grpo_loss, x, x, x[:, 0], mask, kl_coef=0.1)
    assert "max_tokens" in line_of(grpo_loss, x, x, x[:, 0], mask, loss_type="dr_grpo")
    assert "dapo" in line_of(grpo_loss, x, x, x[:, 0], mask, loss_type="dappo")
    assert "flatten" in line_of(grpo_loss, x, x, noise(4), mask)
    assert "expected gradient is 0" in line_of(grpo_loss, x, x, x[:, 0], mask, ref_logprobs=x, kl_coef=0.1, kl="k1")
    assert "ratio_k3" in line_of(kl_term, x, x, x, "ratio_k")


# ---------------------------------------------------------------- enumeration


def test_kl_terms_by_enumeration():
    "The expected gradient of k2 and of ratio x k3 is that of the KL; k1's is 0; k3's is that of the other KL. ratio x k3 is right with old samples, too."
    for seed in range(4):
        logits, ref, old = noise(6, seed=seed).requires_grad_(), noise(6, seed=seed + 10).log_softmax(-1), noise(6, seed=seed + 20).log_softmax(-1)
        lp = logits.log_softmax(-1)
        def grad(x, logits=logits): return torch.autograd.grad(x, logits, retain_graph=True)[0]
        right, other = grad((lp.exp() * (lp - ref)).sum()), grad((ref.exp() * (ref - lp)).sum())
        mean = {kind: grad((lp.detach().exp() * kl_term(lp, ref, lp.detach(), kind)).sum()) for kind in KL_TERMS}
        torch.testing.assert_close(mean["k2"], right)
        torch.testing.assert_close(mean["ratio_k3"], right)
        torch.testing.assert_close(mean["k3"], other)
        assert not torch.allclose(mean["k3"], right, atol=1e-2)
        torch.testing.assert_close(grad((lp.detach().exp() * (lp - ref)).sum()), torch.zeros(6), atol=1e-12, rtol=0)  # k1
        torch.testing.assert_close(grad((old.exp() * kl_term(lp, ref, old, "ratio_k3")).sum()), right)


def policy_gradient(how, size, theta, rewards, old=None, **options):
    "Expected gradient of the loss, over all groups of that size: (Q, N)."
    q, n = theta.shape
    groups = torch.tensor(list(itertools.product(range(n), repeat=size)))
    lp = theta.log_softmax(-1)[:, groups].flatten(0, 1)
    then = lp.detach() if old is None else old.log_softmax(-1)[:, groups].flatten(0, 1)
    advantages, _ = group_advantages(rewards[:, groups].flatten(0, 1), how)
    weighted = then.sum(-1, keepdim=True).exp() * advantages
    total, _, _ = grpo_loss(lp.reshape(-1, 1), then.reshape(-1, 1), weighted.flatten(), torch.ones(lp.numel(), 1), **options)
    return -torch.autograd.grad(total, theta)[0] / size


@pytest.mark.parametrize("size", (2, 3, 4))
def test_policy_gradient_by_enumeration(size):
    theta, rewards = noise(2, 4).requires_grad_(), noise(2, 4, seed=1) * torch.tensor([[1.0], [0.03]])
    exact = torch.autograd.grad((theta.softmax(-1) * rewards).sum(), theta)[0]
    torch.testing.assert_close(policy_gradient("leave_one_out", size, theta, rewards), exact)
    torch.testing.assert_close(policy_gradient("mean", size, theta, rewards), exact * (size - 1) / size)
    published = policy_gradient("group_std", size, theta, rewards)
    assert torch.cosine_similarity(published.flatten(), exact.flatten(), 0) < 0.95
    stale = policy_gradient("leave_one_out", size, theta, rewards, old=noise(2, 4, seed=5), clip=math.inf)
    torch.testing.assert_close(stale, exact)  # the ratio makes up for samples from another policy


def test_policy_gradient_by_sampling():
    "Groups of texts of three tokens, drawn from a table: the Monte-Carlo mean lies within its error of the enumerated gradient, coordinate by coordinate."
    table, rewards, size, draws = noise(13, 3, seed=6).requires_grad_(), noise(27, seed=1), 4, 4000
    texts = torch.tensor(list(itertools.product(range(3), repeat=3)))
    before = torch.stack([torch.zeros(27, dtype=torch.long), 1 + texts[:, 0], 4 + 3 * texts[:, 0] + texts[:, 1]], 1)  # 13 states
    lp = table.log_softmax(-1)[before, texts]  # (27, 3)
    chance = lp.sum(-1).exp()
    exact = torch.autograd.grad((chance * rewards).sum(), table, retain_graph=True)[0]
    drawn = torch.multinomial(chance.detach(), draws * size, replacement=True, generator=torch.Generator().manual_seed(0)).view(draws, size)
    one = torch.ones(1)
    scores = torch.stack([-torch.autograd.grad(grpo_loss(lp[i : i + 1], lp[i : i + 1].detach(), one, torch.ones(1, 3))[0], table, retain_graph=True)[0] for i in range(27)])
    estimates = (group_advantages(rewards[drawn])[0][:, :, None, None] * scores[drawn]).mean(1)  # (draws, 13, 3)
    z = (estimates.mean(0) - exact) / (estimates.std(0) / math.sqrt(draws))
    assert z.abs().max() < 4.5 and (z**2).mean() < 2
