"rlgen.policy: every formula against its definition, gradients against exact enumeration, and a loop that kills and company don't disturb."
import itertools
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_models import make_model

from rlgen.core import RlgenError, append_jsonl, rank_world, read_jsonl
from rlgen.lm import build_lm, completion_logprobs, encode_prompt, load_lm, word_tokenizer
from rlgen.policy import ActorCritic, gae, kl_estimate, ppo, ppo_loss, token_rewards, value_loss, whiten
from rlgen.sampling import Rollout, generate, sampler

HERE = Path(__file__).resolve().parent
PROMPTS = ["the cat", "what did you eat today ?", "she", "a dog ran over the hill", "my neighbour lost"]
SAID = [[5, 9, 7, 3], [11], [4, 4, 8, 30, 12, 6], [21, 2], [13, 17, 19]]

pytestmark = pytest.mark.usefixtures("double")


@pytest.fixture(autouse=True)
def in_double():
    "Tensors are 64-bit unless a test says otherwise."
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def noise(*shape, seed=0): return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def ragged(lengths, width=None): return (torch.arange(width or max(lengths)) < torch.tensor(lengths)[:, None]).long()


def weights(model): return torch.cat([p.detach().flatten() for p in model.parameters()])


# ---------------------------------------------------------------- KL


@pytest.mark.parametrize("kind", ("k1", "k3"))
def test_kl_estimates_are_unbiased(kind):
    "Expectation over all tokens, weighted by the model that samples."
    for seed in range(5):
        p, q = noise(7, seed=seed).log_softmax(-1), noise(7, seed=seed + 50).log_softmax(-1)
        exact = torch.nn.functional.kl_div(q, p, log_target=True, reduction="sum")
        torch.testing.assert_close((p.exp() * kl_estimate(p, q, kind)).sum(), exact, atol=1e-12, rtol=0)
        if kind == "k3": assert (kl_estimate(p, q, kind) >= 0).all()
        assert not kl_estimate(p, p, kind).any()
    tiny = kl_estimate(torch.tensor(-1.0), torch.tensor(-1.0 - 1e-9), "k3").item()
    assert tiny == pytest.approx(5e-19, abs=1e-22) or kind == "k1", "no cancellation near 0"


def test_unknown_kl():
    with pytest.raises(RlgenError, match="k1") as e: kl_estimate(torch.zeros(1), torch.zeros(1), "k2")
    assert "\n" not in str(e.value)


# ---------------------------------------------------------------- rewards and advantages


def test_token_rewards():
    mask, lp, ref = ragged([3, 1, 5], 6), noise(3, 6), noise(3, 6, seed=1)
    scores = torch.tensor([2.0, -1.0, 0.5])
    got = token_rewards(scores, lp, ref, mask, 0.3)
    for i, n in enumerate((3, 1, 5)):
        for t in range(6):
            wanted = 0.0 if t >= n else -0.3 * (lp[i, t] - ref[i, t]).item() + (scores[i].item() if t == n - 1 else 0.0)
            assert got[i, t].item() == pytest.approx(wanted, abs=1e-12), (i, t)
    assert token_rewards(scores, lp, ref, mask, 0.0).count_nonzero() == 3


def plain_gae(rewards, values, gamma, lam):
    "One text, by the definition: a double sum of discounted TD errors."
    n = len(rewards)
    delta = [rewards[t] + gamma * (values[t + 1] if t + 1 < n else 0.0) - values[t] for t in range(n)]
    return [sum((gamma * lam) ** (k - t) * delta[k] for k in range(t, n)) for t in range(n)]


@pytest.mark.parametrize("gamma, lam", ((1.0, 0.95), (0.9, 0.5), (1.0, 1.0), (0.99, 0.0), (0.0, 0.7)))
def test_gae_is_its_definition(gamma, lam):
    lengths = [4, 1, 6, 3]
    mask, rewards, values = ragged(lengths, 7), noise(4, 7), noise(4, 7, seed=1)
    rewards[mask == 0], values[mask == 0] = math.nan, math.inf  # whatever stands in padding
    advantages, returns = gae(rewards, values, mask, gamma, lam)
    for i, n in enumerate(lengths):
        wanted = plain_gae(rewards[i, :n].tolist(), values[i, :n].tolist(), gamma, lam)
        assert advantages[i, :n].tolist() == pytest.approx(wanted, abs=1e-12)
        assert returns[i, :n].tolist() == pytest.approx([a + v for a, v in zip(wanted, values[i].tolist())], abs=1e-12)
    assert not advantages[mask == 0].any() and not returns[mask == 0].any()


def test_gae_at_its_ends():
    "lam = 1 is return minus value, lam = 0 the TD error; alone or in company."
    mask, rewards, values = ragged([5, 2]), noise(2, 5) * ragged([5, 2]), noise(2, 5, seed=1) * ragged([5, 2])
    advantages, returns = gae(rewards, values, mask, 1.0, 1.0)
    to_come = torch.stack([rewards[:, t:].sum(-1) for t in range(5)], 1)
    torch.testing.assert_close(returns, to_come * mask, atol=1e-12, rtol=0)
    torch.testing.assert_close(advantages, (to_come - values) * mask, atol=1e-12, rtol=0)
    alone, _ = gae(rewards[1:, :2], values[1:, :2], mask[1:, :2], 1.0, 0.95)
    torch.testing.assert_close(gae(rewards, values, mask, 1.0, 0.95)[0][1:, :2], alone, atol=0, rtol=0)


def test_whiten():
    mask, values = ragged([4, 1, 6], 8), 5 + 3 * noise(3, 8)
    values[mask == 0] = 1e6
    got = whiten(values, mask)
    real = got[mask == 1]
    assert abs(real.mean()) < 1e-12 and real.var(correction=0).item() == pytest.approx(1, abs=1e-8) and not got[mask == 0].any()
    torch.testing.assert_close(whiten(7 * values - 2, mask), got, atol=1e-7, rtol=0)
    assert not whiten(torch.full((2, 3), 4.0), ragged([3, 2])).any() and not whiten(torch.full((1, 1), 4.0), ragged([1])).any()


# ---------------------------------------------------------------- losses


@pytest.mark.parametrize("ratio, advantage, value, slope", (
    (1.0, 2.0, -2.0, -2.0), (1.1, 2.0, -2.2, -2.2), (1.5, 2.0, -2.4, 0.0), (0.5, 2.0, -1.0, -1.0),
    (1.0, -2.0, 2.0, 2.0), (0.9, -2.0, 1.8, 1.8), (0.5, -2.0, 1.6, 0.0), (1.5, -2.0, 3.0, 3.0), (3.0, 0.0, 0.0, 0.0)))  # fmt: skip
def test_clipping_piece_by_piece(ratio, advantage, value, slope):
    "Loss and its slope by the log-probability (ratio times advantage, or nothing), for both signs of the advantage."
    lp = torch.tensor([[math.log(ratio)]]).requires_grad_()
    total, n, stats = ppo_loss(lp, torch.zeros(1, 1), torch.tensor([[advantage]]), torch.ones(1, 1), 0.2)
    total.backward()
    assert total.item() == pytest.approx(value) and lp.grad.item() == pytest.approx(slope) and n == 1
    assert stats["clip_fraction"] == (slope == 0 and advantage != 0) and stats["approx_kl"].item() == pytest.approx(ratio - 1 - math.log(ratio))


@pytest.mark.parametrize("value, ret, loss, slope", (
    (0.1, 1.0, 0.405, -0.9), (0.5, 1.0, 0.32, 0.0), (1.5, 1.0, 0.32, 0.0), (2.0, 1.0, 0.5, 1.0), (-0.5, 1.0, 1.125, -1.5), (-0.1, -1.0, 0.405, 0.9), (-0.6, -1.0, 0.32, 0.0)))  # fmt: skip
def test_value_clipping_piece_by_piece(value, ret, loss, slope):
    "The old value is 0 and the clip 0.2: the greater error of the value and of the value held near 0 counts."
    v = torch.tensor([[value]]).requires_grad_()
    total, n = value_loss(v, torch.zeros(1, 1), torch.tensor([[ret]]), torch.ones(1, 1), 0.2)
    total.backward()
    assert total.item() == pytest.approx(loss) and v.grad.item() == pytest.approx(slope, abs=1e-12) and n == 1
    free, _ = value_loss(v, torch.zeros(1, 1), torch.tensor([[ret]]), torch.ones(1, 1), math.inf)
    assert free.item() == pytest.approx((value - ret) ** 2 / 2)


def test_losses_ignore_padding_and_company():
    mask, new, old, adv = ragged([4, 2, 5]), noise(3, 5), noise(3, 5, seed=1), noise(3, 5, seed=2)
    alone = [(ppo_loss(new[i : i + 1, :n], old[i : i + 1, :n], adv[i : i + 1, :n], mask[i : i + 1, :n]), value_loss(new[i : i + 1, :n], old[i : i + 1, :n], adv[i : i + 1, :n], mask[i : i + 1, :n]))
             for i, n in enumerate((4, 2, 5))]
    new, old, adv = (torch.where(mask == 1, x, torch.tensor(y)) for x, y in ((new, 500.0), (old, -500.0), (adv, 3.0)))
    new.requires_grad_()
    (total, n, stats), (guessed, m) = ppo_loss(new, old, adv, mask), value_loss(new, old, adv, mask)
    assert n == m == 11 and total.item() == pytest.approx(sum(a[0].item() for a, _ in alone)) and guessed.item() == pytest.approx(sum(b[0].item() for _, b in alone))
    for k in ("clip_fraction", "approx_kl"): assert stats[k].item() == pytest.approx(sum(a[2][k].item() for a, _ in alone))
    (total + guessed).backward()
    assert new.grad.isfinite().all() and not new.grad[mask == 0].any()


# ---------------------------------------------------------------- the gradient, by enumeration

V, T, BETA = 4, 3, 0.3


def trajectories():
    "Every text of at most T tokens over V words where word 0 ends it; unfinished ones stop at T."
    return [y for n in range(1, T + 1) for y in itertools.product(range(V), repeat=n) if all(t != 0 for t in y[:-1]) and (y[-1] == 0 or n == T)]


def table_logprobs(table, texts, width=T):
    "(N, T) log-probabilities under a table with a row for every prefix, and (N, T) those rows' numbers."
    rows = torch.zeros(len(texts), width, dtype=torch.long)
    ids = torch.zeros(len(texts), width, dtype=torch.long)
    for i, y in enumerate(texts):
        for t in range(len(y)): rows[i, t], ids[i, t] = sum((a + 1) * (V + 1) ** k for k, a in enumerate(y[:t])), y[t]
    return table.log_softmax(-1)[rows, ids], rows


@pytest.fixture
def tabular():
    "Policy and reference tables, all texts, their mask, their rewards, and the exact gradient of E[R] - β KL."
    texts = trajectories()
    mask, R = ragged([len(y) for y in texts], T), noise(len(texts), seed=5)
    theta, theta0 = noise((V + 1) ** (T - 1), V, seed=6).requires_grad_(), noise((V + 1) ** (T - 1), V, seed=7)
    lp, ref = table_logprobs(theta, texts)[0] * mask, table_logprobs(theta0, texts)[0] * mask
    p = lp.sum(-1).exp()
    assert p.sum().item() == pytest.approx(1, abs=1e-12)
    exact = torch.autograd.grad((p * (R - BETA * (lp - ref).sum(-1))).sum(), theta)[0]
    return theta, theta0, texts, mask, R, exact


def chain_gradient(theta, theta0, texts, mask, R, values, lam):
    "The gradient that rewards, GAE and the loss at ratio 1 give, over all texts weighted by their probability."
    lp, ref = table_logprobs(theta, texts)[0], table_logprobs(theta0, texts)[0]
    advantages, _ = gae(token_rewards(R, lp.detach(), ref, mask, BETA), values, mask, 1.0, lam)
    p = (lp.detach() * mask).sum(-1).exp()[:, None]
    total, _, stats = ppo_loss(lp, lp.detach(), p * advantages, mask)
    assert stats["clip_fraction"] == 0
    return -torch.autograd.grad(total, theta)[0]


def true_values(theta, theta0, texts, mask, R):
    "E of what is still to come, for every prefix."
    lp, rows = table_logprobs(theta, texts)
    ref = table_logprobs(theta0, texts)[0]
    earned, p = token_rewards(R, lp, ref, mask, BETA).detach(), (lp * mask).sum(-1).exp().detach()
    to_come = earned.flip(-1).cumsum(-1).flip(-1)
    out = torch.zeros_like(to_come)
    for r in rows[mask == 1].unique():
        here = (rows == r) & (mask == 1)
        share = p[:, None] * here
        out[here] = (share * to_come).sum() / share.sum()
    return out


def test_gradient_equals_the_enumerated_one(tabular):
    "lam = 1 with any values that look at the past only; any lam with the true values; wrong values with lam < 1 are biased, so the test can fail."
    *parts, exact = tabular
    theta, theta0, texts, mask, R = parts
    assert exact.abs().max() > 0.05
    guess = noise((V + 1) ** (T - 1), seed=8)[table_logprobs(theta, texts)[1]]
    torch.testing.assert_close(chain_gradient(*parts, guess, 1.0), exact, atol=1e-12, rtol=0)
    for lam in (0.0, 0.5, 0.95): torch.testing.assert_close(chain_gradient(*parts, true_values(*parts), lam), exact, atol=1e-12, rtol=0)
    assert (chain_gradient(*parts, guess, 0.5) - exact).abs().max() > 1e-3


def test_ratio_one_is_the_policy_gradient():
    mask, old, adv = ragged([3, 5]), noise(2, 5), noise(2, 5, seed=1)
    for a in (adv, torch.zeros_like(adv)):
        lp = old.clone().requires_grad_()
        ppo_loss(lp, old, a, mask)[0].backward()
        torch.testing.assert_close(lp.grad, -a * mask, atol=1e-12, rtol=0)


# ---------------------------------------------------------------- the model


@pytest.mark.parametrize("arch", ("gpt2", "llama", "gemma", "t5"))
def test_actor_critic(arch, folders):
    "Log-probabilities are completion_logprobs'; a value is the head on the state before its token, whatever comes later or stands beside."
    lm = load_lm(str(folders(arch)))
    prompts = [encode_prompt(lm, p) for p in PROMPTS]
    policy = ActorCritic(lm).eval()
    with torch.no_grad():
        lp, values, mask = policy(prompts, SAID)
        wanted, same = completion_logprobs(lm, prompts, SAID)
        torch.testing.assert_close(lp * mask, wanted * mask, atol=1e-10, rtol=0)
        assert torch.equal(mask, same) and not values.any() and values.shape == lp.shape
        policy.value.weight.copy_(noise(1, policy.value.in_features))
        _, values, _ = policy(prompts, SAID)
        for i, (p, c) in enumerate(zip(prompts, SAID)):
            tolerance = 1e-10 if arch in ("gpt2", "t5") else 1e-5  # the others' norms round to 32 bits
            _, alone, _ = policy([p], [c])
            torch.testing.assert_close(values[i, : len(c)], alone[0], atol=tolerance, rtol=0)
            _, other, _ = policy([p], [c[:-1] + [40]])
            torch.testing.assert_close(other[0], alone[0], atol=tolerance, rtol=0)
            if len(c) > 1:
                _, early, _ = policy([p], [[40] + c[1:]])
                assert abs(early[0, 0] - alone[0, 0]) < tolerance and abs(early[0, 1] - alone[0, 1]) > 1e-3, "a value sees what stands before its token"
    if arch != "t5":
        with torch.no_grad(): hidden = lm.model(input_ids=torch.tensor([prompts[0] + SAID[0]]), output_hidden_states=True).hidden_states[-1][0]
        wanted = policy.value(hidden[len(prompts[0]) - 1 : -1])[:, 0]
        torch.testing.assert_close(values[0, :4], wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("arch", ("gpt2", "t5"))
def test_temperature_is_the_samplers(arch, folders):
    "At another temperature the log-probabilities are those of the distribution that is sampled from."
    lm = load_lm(str(folders(arch)))
    prompts = [encode_prompt(lm, p) for p in PROMPTS]
    with torch.no_grad():
        lp, _, mask = ActorCritic(lm, 0.7)(prompts, SAID)
        everything = torch.stack([completion_logprobs(lm, [prompts[0]], [[t]])[0][0, 0] for t in range(len(lm.tokenizer))])
        assert lp[0, 0].item() == pytest.approx((everything / 0.7).log_softmax(-1)[SAID[0][0]].item(), abs=1e-9)


# ---------------------------------------------------------------- the loop


def wants_short(rollouts): return [-float(len(r.completion_ids)) for r in rollouts]


def started(model_folder, **options):
    "A short training of a model in a folder, and its log."
    lm, ref, lines = load_lm(model_folder), load_lm(model_folder), []
    prompts = [encode_prompt(lm, p) for p in PROMPTS]
    kw = dict(steps=3, batch_size=6, minibatches=2, lr=1e-3, max_new_tokens=6, seed=3, log=lambda step, **s: lines.append(s)) | options
    reward = kw.pop("reward", wants_short)
    return lm, ppo(lm, ref, prompts, reward, **kw), lines


def test_micro_batches_and_company_change_nothing(folders):
    whole, cost, lines = started(str(folders("gpt2")))
    for micro in (1, 2, 4):
        parts, same, again = started(str(folders("gpt2")), micro_batch=micro)
        assert (weights(whole.model) - weights(parts.model)).abs().max() < 1e-8
        assert same["lm_tokens"] >= cost["lm_tokens"] and same["lm_forwards"] > cost["lm_forwards"] and same["texts"] == 18
        for a, b in zip(lines, again, strict=True): assert a == pytest.approx(b, abs=1e-7)


def test_what_a_step_is(folders):
    "One update at ratio 1 from hand-made parts: the same weights as the loop's."
    asked = []

    def reward(rollouts):
        asked.extend(rollouts)
        return [0.1 * sum(r.completion_ids) for r in rollouts]

    options = dict(kl_coef=0.2, gamma=0.9, lam=0.8, value_coef=0.3, missing_end=5.0, lr=1e-2)
    trained, cost, lines = started(str(folders("gpt2")), steps=1, epochs=1, minibatches=1, reward=reward, **options)
    lm = load_lm(str(folders("gpt2")))
    policy = ActorCritic(lm).eval()
    assert len(asked) == 6 and {r.info["item"] for r in asked} == set(range(5)) and all(r.prompt_ids == encode_prompt(lm, PROMPTS[r.info["item"]]) for r in asked)
    lp, values, mask = policy([r.prompt_ids for r in asked], [r.completion_ids for r in asked])
    scores = torch.tensor([r.reward - 5.0 * (not r.info["finished"]) for r in asked])
    assert [r.reward for r in asked] == [0.1 * sum(r.completion_ids) for r in asked]
    advantages, returns = gae(token_rewards(scores, lp.detach(), lp.detach(), mask, 0.2), values.detach(), mask, 0.9, 0.8)
    loss = ppo_loss(lp, lp.detach(), whiten(advantages, mask), mask)[0] + 0.3 * value_loss(values, values.detach(), returns, mask)[0]
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-2, betas=(0.9, 0.98), weight_decay=0.0)
    (loss / mask.sum()).backward()
    torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
    optimizer.step()
    assert (weights(lm.model) - weights(trained.model)).abs().max() < 1e-6
    told = lines[0]
    assert told["reward"] == pytest.approx(sum(r.reward for r in asked) / 6) and told["kl"] == pytest.approx(0, abs=1e-9) and told["length"] == mask.sum() / 6
    assert told["finished"] == sum(r.info["finished"] for r in asked) / 6 and told["entropy"] == pytest.approx(-(lp * mask).sum().item() / mask.sum().item())
    assert told["explained_variance"] == pytest.approx(0, abs=1e-9) and told["clip_fraction"] == 0 and told["lr"] == 1e-2
    read = sum(len(r.prompt_ids) + len(r.completion_ids) for r in asked)
    assert cost["text_tokens"] == read and cost["updates"] == 1 and cost["lm_tokens"] > 3 * read - 6


def even(rollouts): return [sum(t % 2 == 0 for t in r.completion_ids) / len(r.completion_ids) for r in rollouts]


@pytest.mark.parametrize("arch", ("words", "t5"))
def test_it_learns(arch, folders):
    "Even token ids are wanted and become the habit; with a high price on the distance they don't, and the distance stays small."
    tok, means = word_tokenizer([" ".join(PROMPTS)]), {}
    for kl_coef in (0.0, 3.0):
        lm, ref = (build_lm(tok, width=16, seed=1) if arch == "words" else load_lm(str(folders(arch))) for _ in range(2))
        lines, prompts = [], [encode_prompt(lm, p) for p in PROMPTS]
        ppo(lm, ref, prompts, even, steps=24, batch_size=16, minibatches=1, lr=1e-2, kl_coef=kl_coef, max_new_tokens=4, seed=3, log=lambda step, lines=lines, **s: lines.append(s))
        means[kl_coef] = [sum(s[k] for s in lines[i:i + 4]) / 4 for k, i in (("reward", 0), ("reward", 20), ("kl", 20))]
    (first, last, kl), (_, dear, near) = means[0.0], means[3.0]
    assert last > first + 0.15 and last > dear + 0.1 and kl > 2 * near, means


def test_model_stays_in_eval_mode(folders):
    "gpt2 has dropout; the first ratios are 1 and the reference never moves."
    folder = str(folders("gpt2"))
    lm, ref = load_lm(folder), load_lm(folder)
    before, lines = weights(ref.model).clone(), []
    lm.model.train()
    ppo(lm, ref, [encode_prompt(lm, p) for p in PROMPTS], wants_short, steps=2, batch_size=4, minibatches=1, epochs=1, max_new_tokens=4, log=lambda step, **s: lines.append(s))
    assert not lm.model.training and torch.equal(weights(ref.model), before) and all(s["approx_kl"] < 1e-12 for s in lines)


def test_frozen_parameters_stay(folders):
    lm, ref = load_lm(str(folders("llama"))), load_lm(str(folders("llama")))
    for name, p in lm.model.named_parameters(): p.requires_grad = "layers.1" in name
    ppo(lm, ref, [encode_prompt(lm, p) for p in PROMPTS], wants_short, steps=2, batch_size=4, lr=1e-2, max_new_tokens=4)
    moved = {n for (n, p), q in zip(lm.model.named_parameters(), ref.model.parameters()) if not torch.equal(p, q)}
    assert moved and all("layers.1" in n for n in moved)


def test_refusals(folders, tmp_path):
    folder = str(folders("llama"))
    lm, ref = load_lm(folder), load_lm(folder)
    other = load_lm(str(make_model("gpt2", tmp_path)))
    prompts = [encode_prompt(lm, p) for p in PROMPTS]
    for words, lms, more in (
        ("no prompts", (lm, ref), dict(prompts=[])), ("second time", (lm, lm), {}), ("vocabulary", (lm, other), {}), ("batch_size = 6.*minibatches = 4", (lm, ref), dict(minibatches=4)),
        ("steps = 0", (lm, ref), dict(steps=0)), ("minibatches = 0", (lm, ref), dict(minibatches=0)), ("temperature", (lm, ref), dict(temperature=0.0)),
        ("5 numbers for 6", (lm, ref), dict(reward=lambda r: [0.0] * 5)), ("7 numbers for 6", (lm, ref), dict(reward=lambda r: [0.0] * 7)), ("0 numbers", (lm, ref), dict(reward=lambda r: None)),
        ("nan for text 2", (lm, ref), dict(reward=lambda r: [0, 0, math.nan, 0, 0, 0])), ("None for text 0", (lm, ref), dict(reward=lambda r: [None] * 6)), ("context", (lm, ref), dict(max_new_tokens=10**4)),
    ):  # fmt: skip
        kw = dict(prompts=prompts, reward=wants_short, steps=1, batch_size=6, max_new_tokens=4) | more
        with pytest.raises(RlgenError, match=words) as e: ppo(*lms, kw.pop("prompts"), kw.pop("reward"), **kw)
        assert "\n" not in str(e.value), words
    assert torch.equal(weights(lm.model), weights(ref.model)), "nothing was trained"


def test_other_seeds_other_texts(folders):
    seen = {}
    for seed in (0, 0, 1):
        asked = []
        started(str(folders("llama")), steps=2, seed=seed, reward=lambda rollouts, asked=asked: asked.extend(r.completion_ids for r in rollouts) or [0.0] * len(rollouts))
        seen.setdefault(seed, []).append(asked)
    assert seen[0][0] == seen[0][1] != seen[1][0] and len(seen[0][0]) == 12 and seen[0][0][:6] != seen[0][0][6:]


def test_a_toy_in_single_precision():
    "The words of a notebook, 32-bit floats: a rule is learned in seconds."
    torch.set_default_dtype(torch.float32)
    tok = word_tokenizer(["my sister lost the lamp .", "my boss sold the car ."])
    (lm, ref), lines = (build_lm(tok, width=16, seed=1) for _ in range(2)), []
    def share(rollouts: list[Rollout]): return [r.text(tok).split().count("boss") / 4 for r in rollouts]
    ppo(lm, ref, [encode_prompt(lm, "my")], share, steps=30, batch_size=32, lr=1e-2, kl_coef=0.0, max_new_tokens=4, log=lambda step, **s: lines.append(s["reward"]))
    assert lines[0] < 0.3 and lines[-1] > 0.8


# ---------------------------------------------------------------- kills and company


def killable(model_folder, folder, kill=""):
    "A training that kills its own process: while it asks for rewards, between log and checkpoint, or while the checkpoint is written. Answers weights and cost."
    def die(): os.kill(os.getpid(), signal.SIGKILL)
    asked, save, folder = [], torch.save, Path(folder)

    def reward(rollouts):
        asked.append(1)
        if kill == "reward" and len(asked) == 4: die()
        return wants_short(rollouts)

    def log(step, **scalars):
        append_jsonl(folder / "curves.jsonl", [dict(step=step, **scalars)])
        if kill == "log" and step == 3: die()

    def torn(state, path):
        save(state, path)
        if kill == "save" and state["step"] == 3:
            os.truncate(path, path.stat().st_size // 2)
            die()

    torch.save = torn
    try: lm, cost, _ = started(model_folder, steps=5, folder=folder, save_seconds=0, log=log, reward=reward, lr=3e-3)
    finally: torch.save = save
    return weights(lm.model), cost


def in_fresh_python(call, *args, launcher=(), rc=0):
    "Call a function of this file in another process."
    env = os.environ | dict(OMP_NUM_THREADS="1", OMP_WAIT_POLICY="PASSIVE", ACCELERATE_USE_CPU="true", TOKENIZERS_PARALLELISM="false")
    run = subprocess.run([sys.executable, *launcher, __file__, call, *map(str, args)], capture_output=True, text=True, timeout=240, env=env, cwd=HERE)
    assert run.returncode == rc, run.stderr[-3000:]


@pytest.mark.parametrize("kill", ("reward", "log", "save"))
def test_killed_and_started_again(kill, folders, tmp_path):
    "The same bits, the same curve, the same cost, and no checkpoint left. The value head is in it: values are not 0 when the killed run goes on."
    torch.set_default_dtype(torch.float32)  # as in the other process
    calm, killed = tmp_path / "calm", tmp_path / "killed"
    for d in (calm, killed): d.mkdir()
    wanted, cost = killable(str(folders("gpt2")), calm)
    in_fresh_python("killable", str(folders("gpt2")), killed, kill, rc=-signal.SIGKILL)
    state = torch.load(killed / "checkpoint.pt", weights_only=True)
    assert state["step"] == (3 if kill == "reward" else 2) and state["model"]["value.weight"].any()
    torch.manual_seed(99)
    again, same = killable(str(folders("gpt2")), killed)
    assert torch.equal(wanted, again) and same == cost
    assert [p.name for p in killed.iterdir()] == ["curves.jsonl"] == [p.name for p in calm.iterdir()]
    lines = read_jsonl(killed / "curves.jsonl")
    assert list({r["step"]: r for r in lines}.values()) == read_jsonl(calm / "curves.jsonl")


def work_of_one(folder, out):
    "Train alone or as one of two; the first process writes what came out. The reward answers differently on the second process, which may not matter."
    rank, world = rank_world()
    def reward(rollouts): return [s + 100 * rank for s in wants_short(rollouts)]
    lm, cost, lines = started(folder, batch_size=8, micro_batch=3, reward=reward)
    if rank == 0:
        torch.save(weights(lm.model), Path(out) / "weights.pt")
        (Path(out) / "out.json").write_text(json.dumps(dict(world=world, cost=cost, lines=lines)))


def test_two_processes_do_the_work_of_one(folders, tmp_path):
    torch.set_default_dtype(torch.float32)
    one, two = tmp_path / "one", tmp_path / "two"
    for d in (one, two): d.mkdir()
    work_of_one(str(folders("gpt2")), one)
    in_fresh_python("work_of_one", str(folders("gpt2")), two, launcher=("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"))
    a, b = (json.loads((d / "out.json").read_text()) for d in (one, two))
    assert (a["world"], b["world"]) == (1, 2) and a["cost"] == b["cost"]
    for x, y in zip(a["lines"], b["lines"], strict=True): assert x == pytest.approx(y, abs=1e-6)
    torch.testing.assert_close(*(torch.load(d / "weights.pt", weights_only=True) for d in (one, two)), atol=1e-6, rtol=0)


def test_sampling_is_generates(folders):
    "The first batch is what `generate` writes with the seeds that the docstring names."
    from rlgen.core import seed_for
    from rlgen.train import batch_rows

    asked = []
    lm, _, _ = started(str(folders("llama")), steps=1, lr=0.0, reward=lambda rollouts: asked.extend(rollouts) or [0.0] * len(rollouts))
    prompts = [encode_prompt(lm, p) for p in PROMPTS]
    again = generate(lm, [prompts[i] for i in batch_rows(5, 6, 0, 3)], sampler([seed_for(3, "ppo", [0, j]) for j in range(6)]), max_new_tokens=6)
    assert [r.completion_ids for r in again] == [r.completion_ids for r in asked]


if __name__ == "__main__": getattr(__import__("test_policy"), sys.argv[1])(*sys.argv[2:])  # under its own name, as the tests know it
