"rlgen.synth_rl.train: TRL's steps against our own loss, ids that arrive untouched, tied groups, references, kills, LoRA, refusals."
import gc
import math
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import rlgen.synth_rl.train as train
from rlgen.core import RlgenError, append_jsonl, rank_world, read_jsonl, seed_for
from rlgen.grpo import LOSS_TYPES, group_advantages, grpo_loss
from rlgen.lm import build_lm, completion_logprobs, encode_completion, encode_prompt, load_lm, save_lm, word_tokenizer
from rlgen.sampling import Step, generate, greedy, sampler
from rlgen.synth_rl.answers import Task
from rlgen.synth_rl.tasks import Example
from rlgen.synth_rl.train import fit_prompts, grpo, grpo_rows, sft_rows
from rlgen.train import batch_rows, fit, rate, sft_loss

HERE = Path(__file__).resolve().parent
ASKED = [("the cat sat on", "the"), ("what did you eat today ?", "bread"), ("she", "writes"), ("a dog ran over the hill and", "the"), ("tom has 3 apples and", "buys")]
WORDS = ["the cat sat on mat . what did you eat today ? bread , soup and two apples she writes letters a dog ran over hill after it tom has 3 buys 14 more"]


@pytest.fixture(autouse=True, scope="module")
def few_to_collect():
    "Each training begins with a garbage collection, which looks through all that TRL has imported."
    from trl import GRPOTrainer  # noqa: F401
    gc.freeze()
    yield
    gc.unfreeze()


def toy(seed=0, **options): return build_lm(word_tokenizer(WORDS), width=32, context=32, seed=seed, **options)


def rows_of(lm): return [(encode_prompt(lm, q), dict(output=a, number=i)) for i, (q, a) in enumerate(ASKED)]


def vowels(prompts, completions, **_): return [float(sum(c.count(v) for v in "aeiou") % 3) for c in completions]


def weights(model): return torch.cat([p.detach().flatten() for p in model.parameters()])


def trained(lm, reward=vowels, rows=None, **options):
    "Train and return the log lines and the counts."
    lines = []
    told = grpo(lm, rows or rows_of(lm), reward, **(dict(steps=2, prompts_per_step=4, num_generations=4, max_completion_length=5, lr=1e-3, log_every=1, log=lambda step, **s: lines.append(dict(step=step, **s))) | options))
    return lines, told


# ---------------------------------------------------------------- rows, rewards, samples


def test_rows_that_fit():
    rows = [([1, 2, 3], dict(a=1)), ([], dict(a=2)), ([1, 2, 3, 4], dict(a=None)), ([9], dict(a="x"))]
    assert fit_prompts(rows, 3) == ([rows[0], rows[3]], dict(rows=2, dropped=2)) and fit_prompts(rows, 4)[1] == dict(rows=3, dropped=1)
    assert fit_prompts([], 5) == ([], dict(rows=0, dropped=0)) and fit_prompts([([1], {})], 1)[1] == dict(rows=1, dropped=0)
    for bad, words in (([*rows, ([1], dict(b=1))], "row 4 has the columns ['b'], row 0 has ['a']"), ([([1], dict(prompts=1))], "a column is called 'prompts'"), ([([1], dict(a=1, completions=1))], "a column is called 'completions'")):
        with pytest.raises(RlgenError) as e: fit_prompts(bad, 5)
        assert words in str(e.value) and "\n" not in str(e.value)


def test_rewards_are_told_columns_and_completions_alone():
    "Each reward sees its question's own columns, prompts as texts, stripped completions, and nothing of TRL's."
    lm, seen = toy(), []

    def first(prompts, completions, output, number):
        seen.extend(zip(prompts, completions, output, number))
        return [float(c.split()[:1] == [o]) for c, o in zip(completions, output)]

    lines, _ = trained(lm, dict(first=first, vowels=vowels), reward_weights=dict(vowels=0.5), steps=5, prompts_per_step=5)
    assert {(p, o, n) for p, _, o, n in seen} == {(q, a, i) for i, (q, a) in enumerate(ASKED)} and len(seen) == 5 * 20
    assert all("<eos>" not in c for _, c, *_ in seen)
    for line, part in zip(lines, (seen[i : i + 20] for i in range(0, 100, 20))):
        both = [sum(f(*zip(*([p, c, o, n] for p, c, o, n in part)))) / 20 for f in (lambda p, c, o, n: first(p, c, o, n), lambda p, c, o, n: vowels(p, c))]
        del seen[100:]
        assert (line["reward_first"], line["reward_vowels"]) == pytest.approx(both) and line["reward"] == pytest.approx(both[0] + both[1] / 2)


def test_completions_are_stripped(monkeypatch):
    "As everywhere else; TRL hands them on as they were decoded."
    lm, seen = toy(), []
    honest = type(lm.tokenizer).batch_decode
    monkeypatch.setattr(type(lm.tokenizer), "batch_decode", lambda *a, **k: [f" {t}\n" for t in honest(*a, **k)])
    trained(lm, lambda p, c, **_: seen.extend(c) or vowels(p, c), steps=1)
    assert seen and all(c == c.strip() for c in seen)


def test_what_is_logged():
    lines, told = trained(toy(), steps=3, num_generations=4, beta=0.1)
    assert [x["step"] for x in lines] == [1, 2, 3] and told == dict(rows=5, dropped=0, completions=48, tokens=told["tokens"])
    assert set(lines[0]) == {"step", "loss", "reward", "zero_variance", "kl", "entropy", "length", "clip_fraction", "grad_norm", "finished", "lr"}
    assert lines[0]["kl"] == pytest.approx(0, abs=1e-6) and lines[2]["kl"] > 1e-6 and [x["lr"] for x in lines] == pytest.approx([1e-3 * rate(s, 3) for s in range(3)])
    assert 1 <= lines[0]["length"] <= 5 and 0 <= lines[0]["finished"] < 1 and 0 < lines[0]["entropy"] < math.log(len(toy().tokenizer))
    plain, again = trained(toy(), dict(only=vowels), steps=2), trained(toy(), steps=2, log_every=10)
    assert "kl" not in plain[0][0] and "reward_only" not in plain[0][0] and [x["step"] for x in again[0]] == [2]
    assert again[0][0]["reward"] == pytest.approx(sum(x["reward"] for x in plain[0]) / 2)


def test_tokens_are_counted(monkeypatch):
    lm, drawn = toy(), []
    monkeypatch.setattr(train, "generate", lambda *a, **k: drawn.extend(out := generate(*a, **k)) or out)
    lines, told = trained(lm, steps=3)
    assert told["tokens"] == sum(len(r.prompt_ids) + len(r.completion_ids) for r in drawn) and told["completions"] == len(drawn) == 48
    assert sum(x["length"] for x in lines) / 3 == pytest.approx(sum(len(r.completion_ids) for r in drawn) / 48)
    assert sum(x["finished"] for x in lines) / 3 == pytest.approx(sum(r.info["finished"] for r in drawn) / 48)


def test_samples_without_a_sort_are_the_samplers():
    logprobs = torch.randn(64, 500, generator=torch.Generator().manual_seed(0)).mul(3).log_softmax(-1)
    for t, temperature in ((0, 1.0), (3, 0.5), (7, 1.7)):
        step = Step(t, list(range(10, 74)), logprobs, [[1]] * 64, [[]] * 64)
        seeds = [seed_for(1, "test", i) for i in range(80)]
        assert train._unsorted(seeds, temperature)(step)[0].tolist() == sampler(seeds, temperature)(step)[0].tolist()


def test_what_cannot_teach_is_left_out():
    "All rows that matter stay, in their order; the rest fills up to equal parts, as many on every process."
    for seed in range(30):
        g = torch.Generator().manual_seed(seed)
        flat, parts = torch.rand(2, 24, generator=g) < seed / 30, [1, 2, 3, 4, 6][seed % 5]
        batch = dict(row=torch.arange(24), wide=torch.arange(48).view(24, 2), n=torch.tensor(7), word="x")
        out, most = train._thinned(batch, flat, parts), int((~flat).sum(1).max())
        rows = out["row"].tolist()
        assert rows == sorted(rows) and {i for i in range(24) if not flat[0, i]} <= set(rows) and len(rows) % parts == 0 and most <= len(rows) < max(1, most) + parts
        assert out["wide"].tolist() == [[2 * i, 2 * i + 1] for i in rows] and out["n"] == 7 and out["word"] == "x"


# ---------------------------------------------------------------- what TRL is given, and what it computes


def by_hand(lm, *, steps, reward=vowels, prompts_per_step=4, num_generations=4, lr=1.0, beta=0.0, epsilon=0.2, loss_type="dapo", scale="group", temperature=1.0, length=5, num_iterations=1, seed=0, max_norm=1.0):
    "The same training by our own functions and plain gradient steps; answers drawn again from their seeds."
    rows, start, told = rows_of(lm), toy(), []
    hot = [m.model.lm_head.register_forward_hook(lambda m, a, out: out / temperature) for m in (lm, start)]
    for step in range(steps):
        if step % num_iterations == 0:
            items = [i for i in batch_rows(len(rows), prompts_per_step, step // num_iterations, seed) for _ in range(num_generations)]
            asked = [rows[i][0] for i in items]
            wrote = [r.completion_ids for r in generate(lm, asked, sampler([seed_for(seed, "rollout", [step, j]) for j in range(len(items))]), length)]
            earned = torch.tensor(reward(None, [lm.tokenizer.decode(w, skip_special_tokens=True) for w in wrote])).view(-1, num_generations)
            advantages = group_advantages(earned, "mean", scale)[0].flatten()
            with torch.no_grad(): old, ref = (completion_logprobs(m, asked, wrote)[0] for m in (lm, start))
        now, mask = completion_logprobs(lm, asked, wrote)
        total, n, sums = grpo_loss(now, old, advantages, mask, clip=epsilon, ref_logprobs=ref, kl_coef=beta, kl="ratio_k3", loss_type=loss_type, max_tokens=length)
        params = list(lm.model.parameters())
        for p, g in zip(params, torch.autograd.grad(total / n, params)): p.grad = g
        norm = torch.nn.utils.clip_grad_norm_(params, max_norm)
        with torch.no_grad():
            for p in params: p -= lr * rate(step, steps) * p.grad
        told.append(dict(loss=(total / n).item(), reward=earned.mean().item(), grad_norm=norm.item(), clip_fraction=(sums["clip_fraction"] / n).item()))
    for h in hot: h.remove()
    return told


SAME = [dict(loss_type=t) for t in LOSS_TYPES] + [
    dict(scale_rewards="none"), dict(scale_rewards="batch"), dict(temperature=1.4), dict(beta=0.2, num_iterations=2, steps=4), dict(num_iterations=3, steps=6, epsilon=0.02, temperature=0.8, loss_type="grpo", beta=0.1),
    dict(num_iterations=2, steps=4, loss_type="cispo", epsilon=0.02)]  # fmt: skip


@pytest.mark.parametrize("options", SAME, ids=lambda o: "-".join(f"{k}-{v}" for k, v in o.items()))
def test_trl_takes_our_steps(options):
    "Weights, loss and gradient of every step, for each way to average, to scale and to reuse answers."
    lm, own = toy(), toy()
    options = dict(steps=2) | options
    lines, _ = trained(lm, optimizer="sgd", lr=1.0, **options)
    told = by_hand(own, **{("scale" if k == "scale_rewards" else k): v for k, v in options.items()})
    assert (weights(lm.model) - weights(toy().model)).abs().max() > 1e-2 and torch.allclose(weights(lm.model), weights(own.model), atol=2e-6)
    every = options.get("num_iterations", 1)
    for i, line in enumerate(lines):
        part = told[i * every : (i + 1) * every]
        assert line["grad_norm"] == pytest.approx(part[-1]["grad_norm"], rel=1e-3) and line["reward"] == pytest.approx(part[0]["reward"])
        assert line["loss"] == pytest.approx(sum(p["loss"] for p in part) / every, abs=2e-5)
        if options.get("loss_type", "") not in ("grpo", "dr_grpo"): assert line["clip_fraction"] == pytest.approx(sum(p["clip_fraction"] for p in part) / every, abs=1e-6)
    if "epsilon" in options: assert max(p["clip_fraction"] for p in told) > 0, "and something was clipped"


def seen_by(lm, **options):
    "The ids that the model is given in the loss, without padding."
    seen = []
    hook = lm.model.register_forward_pre_hook(lambda m, args, kw: seen.append([[i for i, real in zip(*row) if real] for row in zip(kw["input_ids"].tolist(), kw["attention_mask"].tolist())]) if kw.get("fused_lm_head") else None, with_kwargs=True)
    trained(lm, **options)
    hook.remove()
    return seen


def test_ids_arrive_untouched(monkeypatch):
    "Prompts that no text could bring (special ids, unknown words) stand id for id before what was sampled."
    lm, drawn = toy(), []
    rows = [([lm.tokenizer.eos_token_id, lm.tokenizer.unk_token_id, *ids, lm.tokenizer.eos_token_id], columns) for ids, columns in rows_of(lm)]
    assert lm.tokenizer(lm.tokenizer.decode(rows[0][0], skip_special_tokens=True)).input_ids != rows[0][0]
    monkeypatch.setattr(train, "generate", lambda *a, **k: drawn.extend(out := generate(*a, **k)) or out)
    seen = seen_by(lm, rows=rows, steps=2, beta=0.1, lora_r=0)
    assert sorted(ids for batch in seen for ids in batch) == sorted([r.prompt_ids + r.completion_ids for r in drawn]), "two steps, every answer once"
    assert {tuple(r.prompt_ids) for r in drawn} == {tuple(ids) for ids, _ in rows} and len(drawn) == 32


def test_another_engine_gets_our_ids():
    "Where TRL samples by itself it asks for the prompts' ids at one place, and gets them as they are."
    lm = toy()
    rows = [([lm.tokenizer.unk_token_id, *ids], columns) for ids, columns in rows_of(lm)]
    cls = train._row_trainer(rows, 1)
    assert cls._tokenize_prompts(None, [3, 0, 3]) == ([rows[3][0], rows[0][0], rows[3][0]], None, {})


def test_order_of_prompts_is_known(monkeypatch):
    lm, drawn = toy(), []
    monkeypatch.setattr(train, "generate", lambda *a: drawn.append((generate(*a), a[4])) or drawn[-1][0])
    trained(lm, steps=5, num_iterations=2, seed=7, sample_batch=3)
    trained(lm, steps=1)
    rows = rows_of(lm)
    assert [size for _, size in drawn] == [3, 3, 3, 16]
    assert [[r.prompt_ids for r in step] for step, _ in drawn[:3]] == [[rows[i][0] for i in batch_rows(5, 4, step, 7) for _ in range(4)] for step in range(3)]


def test_tied_groups_move_nothing():
    "All rewards 1.2, which TRL's own advantages would make 0.001 of: no weight moves, by an optimiser that makes full steps of anything."
    lm, answers = toy(), (lambda prompts, completions, **_: [1.2] * len(prompts))
    alike = torch.full((8,), 1.2)
    assert ((alike - alike.mean()) / (alike.std() + 1e-4)).abs().min() > 1e-3
    for options in (dict(micro_batch=8), dict(loss_type="grpo"), dict(scale_rewards="batch")):
        lines, _ = trained(lm, answers, num_generations=8, lr=1.0, **options)
        assert torch.equal(weights(lm.model), weights(toy().model)) and [x["zero_variance"] for x in lines] == [1.0, 1.0] and lines[0]["grad_norm"] == 0


def test_what_is_added_up_counts():
    "Two rewards that differ, and whose weighted sum doesn't: tied. And the other way round."
    twice = lambda p, c, **_: [2 * v for v in vowels(p, c)]  # noqa: E731
    for weight, share in ((-0.5, [1.0, 1.0]), (1.0, None)):
        lm = toy()
        lines, _ = trained(lm, dict(same=vowels, twice=twice, flat=lambda p, c, **_: [0.0] * len(p)), reward_weights=dict(twice=weight))
        assert [x["zero_variance"] for x in lines] == share or (share is None and lines[0]["zero_variance"] < 1) and torch.equal(weights(lm.model), weights(toy().model)) == (share is not None)


def test_leaving_out_changes_nothing(monkeypatch):
    "Half of the groups tied: fewer rows go through the model, the step is the same; with a price on the distance all go through."
    half = lambda prompts, completions, number, **_: [v if n % 2 else 1.2 for v, n in zip(vowels(prompts, completions), number)]  # noqa: E731
    def run(**options):
        lm = toy()
        seen = seen_by(lm, reward=half, optimizer="sgd", lr=1.0, num_generations=8, **options)
        return weights(lm.model), [len(batch) for batch in seen]

    (thin, few), (parts, some), priced = run(), run(micro_batch=8), run(beta=0.1)[1]
    monkeypatch.setattr(train, "_thinned", lambda batch, *_: batch)
    (whole, every), other = run(), run(loss_type="bnpo")[1]
    assert every == [32, 32] == other and max(few) < 32 and set(priced) == {32}, "under a reference each row goes through both"
    assert sum(some) >= sum(few) and max(some) < 8 and len(some) == 8
    assert torch.allclose(thin, whole, atol=1e-6) and torch.allclose(parts, whole, atol=1e-6) and (whole - weights(toy().model)).abs().max() > 1e-2


def test_micro_batches_change_nothing():
    a, b = ((toy(), m) for m in (0, 4))
    first, again = (trained(lm, optimizer="sgd", lr=1.0, micro_batch=m, beta=0.1, num_iterations=2, steps=4)[0] for lm, m in (a, b))
    assert torch.allclose(weights(a[0].model), weights(b[0].model), atol=2e-6)
    for x, y in zip(first, again): assert x["grad_norm"] == pytest.approx(y["grad_norm"], rel=1e-3) and x["reward"] == y["reward"]


def test_same_call_same_bytes():
    def once(**options):
        lm = toy()
        return weights(lm.model), trained(lm, steps=3, **options)[0], weights(lm.model)

    (_, first, a), (_, again, b), (_, _, c) = once(), once(), once(seed=1)
    assert torch.equal(a, b) and first == again and not torch.equal(a, c)


# ---------------------------------------------------------------- the model


def settings_of(lm): return [{k: str(v) for k, v in c.to_dict().items()} for c in (lm.model.config, lm.model.generation_config)]


def test_it_learns_and_leaves_the_model_as_it_was(capfd):
    "Rewards rise, greedy answers are right; nothing is printed, and only the weights have changed."
    lm = toy()
    own, names = settings_of(lm), set(vars(lm.model))
    first = lambda prompts, completions, output, **_: [float(c.split()[:1] == [o]) for c, o in zip(completions, output)]  # noqa: E731
    lines, _ = trained(lm, first, steps=40, prompts_per_step=5, num_generations=16, lr=1e-2, log_every=20, max_completion_length=2, beta=1e-3)
    said = [r.text(lm.tokenizer).split()[:1] for r in generate(lm, [ids for ids, _ in rows_of(lm)], greedy, max_new_tokens=2)]
    assert lines[-1]["reward"] > lines[0]["reward"] + 0.2 and sum(s == [a] for s, (_, a) in zip(said, ASKED)) >= 4
    assert settings_of(lm) == own and set(vars(lm.model)) == names and lm.model.config._name_or_path == ""
    assert not lm.model.training and all(p.requires_grad for p in lm.model.parameters())
    assert capfd.readouterr().out == ""


def test_after_it_other_trainings_go_on_as_ever():
    "bf16 here leaves no trace in a later training by our own loop."
    def later(first):
        lm, other = toy(), toy(seed=1)
        if first: trained(other, autocast="bf16")
        fit(lm.model, [(encode_prompt(lm, q), encode_completion(lm, a), 1.0) for q, a in ASKED], sft_loss(lm), steps=3, batch_size=3)
        return weights(lm.model)

    assert torch.equal(later(False), later(True))


@pytest.mark.parametrize("options", (dict(autocast="bf16"), dict(gradient_checkpointing=True), dict(optimizer="adafactor")), ids=lambda o: next(iter(o)))
def test_options(options):
    "They are in force while the model learns, and leave nothing behind."
    lm, plain, seen = toy(), toy(), set()
    layer = lm.model.model.layers[0]
    hook = layer.register_forward_hook(lambda m, a, out: seen.add((m.training and m.gradient_checkpointing, m.mlp.down_proj(m.mlp.up_proj(out)).dtype)))
    lines, same = (trained(m, **o)[0] for m, o in ((lm, options), (plain, {})))
    hook.remove()
    assert any(c for c, _ in seen) == ("gradient_checkpointing" in options) and (torch.bfloat16 in {d for _, d in seen}) == ("autocast" in options)
    assert weights(lm.model).dtype == torch.float32 and not any(getattr(m, "gradient_checkpointing", False) for m in lm.model.modules())
    moved, other = ((weights(m.model) - weights(toy().model)) for m in (lm, plain))
    assert moved.abs().max() > 1e-4 and lines[0]["reward"] == pytest.approx(same[0]["reward"], abs=0.5)
    assert torch.allclose(moved, other, atol=1e-6) == ("gradient_checkpointing" in options)


def test_reference_is_the_model_as_it_came(tmp_path):
    "Not what its folder holds: KL is 0 at the first step, and a high price keeps the weights near."
    lm = toy(seed=3)
    save_lm(lm, tmp_path)
    lm = load_lm(str(tmp_path))
    with torch.no_grad():
        for p in lm.model.parameters(): p += 0.05
    place, start = lm.model.config._name_or_path, weights(lm.model)
    lines, _ = trained(lm, beta=0.1, steps=6, lr=3e-3)
    assert lines[0]["kl"] == pytest.approx(0, abs=1e-6) and lines[-1]["kl"] > 1e-3 and lm.model.config._name_or_path == place and not torch.equal(weights(lm.model), start)
    free, held = ({x["step"]: x for x in trained(toy(), beta=b, steps=15, lr=5e-3)[0]} for b in (1e-6, 2.0))
    assert held[15]["kl"] < free[15]["kl"] / 2


def test_lora_is_merged(tmp_path):
    "Heads and embeddings stay; the layers of the body have moved by a matrix of rank 2; the reference is the model without adapters."
    lm, base = toy(), toy()
    names = [n for n, _ in lm.model.named_parameters()]
    lines, _ = trained(lm, lora_r=2, lora_alpha=4, lr=1e-2, steps=8, beta=0.01)
    assert lines[0]["kl"] == pytest.approx(0, abs=1e-6) and lines[-1]["kl"] > 1e-4
    assert [n for n, _ in lm.model.named_parameters()] == names and all(p.requires_grad for p in lm.model.parameters())
    for (n, p), q in zip(lm.model.named_parameters(), base.model.parameters()):
        moved = (p - q).detach()
        if "_proj" in n: assert 1 <= torch.linalg.matrix_rank(moved, atol=1e-5) <= 2, n
        else: assert not moved.any(), n
    save_lm(lm, tmp_path)
    assert torch.allclose(weights(load_lm(str(tmp_path)).model), weights(lm.model))


def test_gpt2(folders):
    "No padding token, dropout, and layers that are stored transposed."
    for options in ({}, dict(lora_r=2), dict(beta=0.1)):
        lm = load_lm(str(folders("gpt2")))
        dropout, start = [m.p for m in lm.model.modules() if isinstance(m, torch.nn.Dropout)], weights(lm.model)
        lines, _ = trained(lm, lr=5e-3, **options)
        assert lm.tokenizer.pad_token is None and dropout == [m.p for m in lm.model.modules() if isinstance(m, torch.nn.Dropout)] and dropout[0] > 0
        assert math.isfinite(lines[-1]["grad_norm"]) and not torch.equal(weights(lm.model), start)
        dry = load_lm(str(folders("gpt2", attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0)))
        assert trained(dry, lr=5e-3, **options)[0] == lines, "dropout is off"


# ---------------------------------------------------------------- held-out numbers


def test_evaluation_does_not_disturb():
    "Asked where it is due, in evaluation mode, without gradients; the weights don't notice."
    lm, plain, asked = toy(), toy(), []

    def accuracy():
        asked.append((lm.model.training, torch.is_grad_enabled()))
        torch.rand(3)
        return dict(accuracy=float(len(asked)))

    lines, _ = trained(lm, steps=5, log_every=2, evaluate=accuracy, eval_every=3)
    trained(plain, steps=5)
    assert torch.equal(weights(lm.model), weights(plain.model))
    assert {x["step"]: x.get("accuracy") for x in lines} == {2: None, 3: 1.0, 4: None, 5: 2.0} and asked == [(False, False)] * 2
    end, _ = trained(toy(), steps=3, log_every=2, evaluate=lambda: dict(accuracy=1.0))
    assert {x["step"]: x.get("accuracy") for x in end} == {2: None, 3: 1.0}


def test_lines_begin_with_fresh_answers():
    "With several steps on the same answers, log lines and evaluations go to the next multiple."
    calls = []
    lines, told = trained(toy(), lambda p, c, **_: calls.append(len(p)) or vowels(p, c), steps=7, num_iterations=3, log_every=2, evaluate=lambda: dict(accuracy=0.5), eval_every=4)
    assert [x["step"] for x in lines] == [3, 6, 7] and [x.get("accuracy") for x in lines] == [None, 0.5, 0.5] and calls == [16] * 3 and told["completions"] == 48


# ---------------------------------------------------------------- rows of samples

SIDE = Task("side", "Say what comes next.", "text", template="{input}", reply="{output} .")


def test_rows_of_samples():
    "The same prompts for both, the output for the reward, the reply for imitation; too long is counted."
    lm, samples = toy(), [Example(q, a) for q, a in ASKED]
    assert grpo_rows(lm, SIDE, samples) == [(encode_prompt(lm, q), dict(output=a)) for q, a in ASKED]
    rows, counts = sft_rows(lm, SIDE, [*samples, Example("the " * 29, "cat"), Example("the " * 30, "cat"), Example("she", "writes", info=dict(solution="the cat sat"))])
    assert counts == dict(rows=7, dropped=1) and [r[0] for r in rows[:5]] == [ids for ids, _ in grpo_rows(lm, SIDE, samples)]
    said = [lm.tokenizer.decode(r[1][:-1]) for r in rows]
    assert said == [*(f"{a} ." for _, a in ASKED), "cat .", "the cat sat writes ."] and all(r[1][-1] == lm.tokenizer.eos_token_id and r[2] == 1.0 for r in rows)
    assert len(rows[5][0]) + len(rows[5][1]) == 32 == lm.context


def test_rows_of_samples_for_chat(folders):
    "A chat template's prompt ends with its own mark, so the reply begins without a space."
    lm = load_lm(str(folders("gpt2")))
    lm.tokenizer.chat_template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
    (prompt, reply, _), = sft_rows(lm, replace(SIDE, chat=True), [Example("the cat sat on", "the")])[0]
    assert lm.tokenizer.decode(prompt + reply) == "[user]the cat sat on[assistant]the .<|endoftext|>" and grpo_rows(lm, replace(SIDE, chat=True), [Example("the cat sat on", "the")])[0][0] == prompt
    (prompt, reply, _), = sft_rows(lm, SIDE, [Example("the cat sat on", "the")])[0]
    assert lm.tokenizer.decode(prompt + reply) == "the cat sat on the .<|endoftext|>"


# ---------------------------------------------------------------- kills


def killable(folder, kill="", *options):
    "A training that kills its own process: in a log line, or while a checkpoint is being written."
    def die(): os.kill(os.getpid(), signal.SIGKILL)
    lm, folder = toy(), Path(folder)

    def log(step, **scalars):
        append_jsonl(folder / "curves.jsonl", [dict(step=step, **scalars)])
        if kill == "log" and step == 6: die()

    if kill == "save":
        from transformers.trainer_callback import TrainerState
        save = TrainerState.save_to_json

        def torn(self, path):
            save(self, path)
            if self.global_step == 6:
                os.truncate(path, Path(path).stat().st_size // 2)
                die()

        TrainerState.save_to_json = torn
    more = dict(plain={}, twice=dict(num_iterations=2, beta=0.1, micro_batch=8, log_every=1), lora=dict(lora_r=2, beta=0.1, optimizer="rmsprop"))[options[0]]
    told = grpo(lm, rows_of(lm), vowels, **(dict(steps=9, prompts_per_step=4, num_generations=4, max_completion_length=5, lr=3e-3, folder=folder / "training", save_seconds=0, log_every=2, log=log, seed=5, evaluate=lambda: dict(weight=weights(lm.model).sum().item()), eval_every=4) | more))
    return lm.model, told


class Stop(Exception): pass


def test_interrupted_and_started_again(tmp_path):
    "An exception in the middle of answers that are used twice, once more in the same process, another model at hand."
    def run(folder, stop=0):
        lm, lines = toy(), []

        def log(step, **scalars):
            if step == stop: raise Stop
            lines.append((step, scalars))

        try: grpo(lm, rows_of(lm), vowels, steps=8, prompts_per_step=4, num_generations=4, micro_batch=8, max_completion_length=5, lr=3e-3, num_iterations=2, beta=0.1, folder=folder, save_seconds=0, log_every=2, log=log)
        except Stop: assert (folder / "trl" / "checkpoint-4").is_dir()
        return weights(lm.model), lines

    for d in ("calm", "cut"): (tmp_path / d).mkdir()
    wanted, lines = run(tmp_path / "calm")
    _, first = run(tmp_path / "cut", stop=6)
    torch.rand(7)
    again, rest = run(tmp_path / "cut")
    assert torch.equal(wanted, again) and first + rest == lines and [s for s, _ in rest] == [6, 8] and not list((tmp_path / "cut").iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(("kill", "options"), (("log", "twice"), ("log", "plain"), ("save", "plain"), ("log", "lora")))
def test_killed_and_started_again(kill, options, tmp_path):
    "Ends with the same bits, counts and curve, whenever it was killed, and leaves no checkpoint."
    calm, killed = tmp_path / "calm", tmp_path / "killed"
    for d in (calm, killed): (d / "training").mkdir(parents=True)
    wanted, counts = killable(calm, "", options)
    env = os.environ | dict(OMP_NUM_THREADS="1", OMP_WAIT_POLICY="PASSIVE", TOKENIZERS_PARALLELISM="false")
    run = subprocess.run([sys.executable, __file__, str(killed), kill, options], capture_output=True, text=True, timeout=240, env=env, cwd=HERE)
    assert run.returncode == -signal.SIGKILL, run.stderr[-3000:]
    assert "checkpoint-4" in {p.name for p in (killed / "training" / "trl").iterdir()}
    resumed, honest = [], train._last_whole
    train._last_whole = lambda f: resumed.append(honest(f)) or resumed[-1]
    try: again, counted = killable(killed, "", options)
    finally: train._last_whole = honest
    assert [Path(r).name for r in resumed] == ["checkpoint-4"] and counted == counts
    assert torch.equal(weights(wanted), weights(again)) and not torch.equal(weights(wanted), weights(toy().model))
    for d in (calm, killed): assert not list((d / "training").iterdir())
    lines = read_jsonl(killed / "curves.jsonl")
    assert list({r["step"]: r for r in lines}.values()) == read_jsonl(calm / "curves.jsonl") and [r["step"] for r in lines] == [2, 4, 6, 6, 8, 9]


def one_of_two(out):
    "Train, alone or as one of two; the first process writes what came out."
    lm, out, lines = toy(), Path(out), []
    (out / "training").mkdir(parents=True, exist_ok=True)
    half = lambda prompts, completions, number, **_: [v if n % 2 else 1.2 for v, n in zip(vowels(prompts, completions), number)]  # noqa: E731
    for beta in (0.0, 0.1):
        told = grpo(lm, rows_of(lm), half, steps=4, prompts_per_step=4, num_generations=4, micro_batch=8, max_completion_length=5, optimizer="sgd", lr=1.0, beta=beta, folder=out / "training", save_seconds=0, log_every=2,
                    log=lambda step, **s: lines.append(s), evaluate=lambda: dict(length=sum(len(r.completion_ids) for r in generate(lm, [ids for ids, _ in rows_of(lm)], greedy, max_new_tokens=4))))  # fmt: skip
    if rank_world()[0] == 0: torch.save(dict(weights=weights(lm.model), lines=lines, told=told, world=rank_world()[1]), out / "out.pt")


@pytest.mark.slow
def test_two_processes_do_the_work_of_one(tmp_path):
    one_of_two(tmp_path / "one")
    env = os.environ | dict(OMP_NUM_THREADS="1", OMP_WAIT_POLICY="PASSIVE", ACCELERATE_USE_CPU="true", TOKENIZERS_PARALLELISM="false")
    launch = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", __file__, "two", str(tmp_path / "two"))
    run = subprocess.run(launch, capture_output=True, text=True, timeout=240, env=env, cwd=HERE)
    assert run.returncode == 0, run.stderr[-3000:]
    one, two = (torch.load(tmp_path / d / "out.pt", weights_only=True) for d in ("one", "two"))
    assert (one["world"], two["world"]) == (1, 2) and not list((tmp_path / "two" / "training").iterdir()) and one["told"] == two["told"]
    assert torch.allclose(one["weights"], two["weights"], atol=1e-5)
    for a, b in zip(one["lines"], two["lines"], strict=True):
        for k in a: assert a[k] == pytest.approx(b[k], **(dict(rel=0.1) if k in ("kl", "entropy") else dict(abs=1e-4))), f"{k}; kl and entropy are means of parts' means"


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(("options", "words"), [
    (dict(micro_batch=5), "micro_batch = 5 must divide prompts_per_step × num_generations = 16"), (dict(num_generations=1), "num_generations = 1: an answer is compared"), (dict(loss_type="dapoo"), "did you mean 'dapo'"),
    (dict(scale_rewards="groups"), "did you mean 'group'"), (dict(optimizer="adamw_troch"), "did you mean 'adamw_torch'"), (dict(autocast="fp16"), "fp16 needs a GPU"), (dict(autocast="half"), "autocast = 'half'"),
    (dict(use_vllm=True), "use_vllm needs a GPU"), (dict(vllm_mode="colocated"), "did you mean 'colocate'"), (dict(temperature=0), "temperature = 0 must be above 0"), (dict(steps=0), "steps = 0 must be above 0"),
    (dict(epsilon=-0.1), "epsilon = -0.1 must be above 0"), (dict(num_iterations=0), "num_iterations = 0 must"), (dict(max_completion_length=32), "5 dropped"), (dict(beta=-0.1), "beta = -0.1"),
    (dict(reward_weights=dict(rewrad=2.0)), "did you mean 'reward'"), (dict(reward=lambda p, c, **_: [1.0]), "gave 1 numbers for 16"), (dict(reward=lambda p, c, **_: [math.nan] * len(p)), "gave nan for the completion"),
])  # fmt: skip
def test_refusals_are_one_line(options, words):
    with pytest.raises(RlgenError) as e: trained(toy(), **options)
    assert words in str(e.value) and "\n" not in str(e.value) and str(e.value).startswith(("grpo:", "the reward"))


def test_no_encoder_decoders(folders):
    with pytest.raises(RlgenError, match="^grpo: an encoder-decoder") as e: trained(load_lm(str(folders("t5"))), rows=[([5], {})])
    assert "\n" not in str(e.value)


def test_after_an_error_the_model_is_usable():
    "A reward that fails leaves neither patches nor a training mode behind."
    lm = toy()
    names = set(vars(lm.model))
    for options in (dict(), dict(beta=0.1), dict(autocast="bf16")):
        with pytest.raises(ZeroDivisionError): trained(lm, lambda p, c, **_: [1 / 0], **options)
    assert set(vars(lm.model)) == names and not lm.model.training and lm.model.config._name_or_path == ""


def test_trl_is_imported_late():
    code = "import sys, rlgen.synth_rl.train; assert not {'trl', 'datasets', 'peft', 'transformers'} & set(sys.modules), 'heavy'"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


if __name__ == "__main__": one_of_two(sys.argv[2]) if sys.argv[1] == "two" else killable(*sys.argv[1:])
