"rlgen.train: order of rows, the loop against a plain one, kills at bad moments, and two processes doing the work of one."
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
from rlgen.lm import build_lm, encode_completion, encode_prompt, load_lm, save_lm, word_tokenizer
from rlgen.sampling import generate, greedy, sampler
from rlgen.reward import bt_loss, load_reward_model, new_reward_model, pair_wins, score_ids
from rlgen.train import batch_rows, fit, merged, prepare_model, rate, reward_loss, sft, sft_loss, train_reward

HERE = Path(__file__).resolve().parent
TALK = [
    ("the cat", "sat on the mat ."), ("what did you eat today ?", "i had bread , soup and two apples ."), ("she", "writes letters"),
    ("a dog ran over the hill", "and the cat ran after it ."), ("my neighbour lost", "her keys in the garden last night ."), ("yes or no :", "no"), ("tom has 3 apples", "and buys 14 more ."),
]  # fmt: skip
WEIGHTS = (1.0, 0.5, 2.0, 1.0, 0.0, 1.0, 3.0)


pytestmark = pytest.mark.usefixtures("double")


def rows_of(lm): return [(encode_prompt(lm, p), encode_completion(lm, c), w) for (p, c), w in zip(TALK, WEIGHTS)]


def pairs_of(lm): return [(encode_prompt(lm, p) + encode_completion(lm, c), encode_prompt(lm, p) + encode_completion(lm, d)) for (p, c), (_, d) in zip(TALK, TALK[1:])]


def weights(model): return torch.cat([p.detach().flatten() for p in model.parameters()])


def distance(a, b): return (weights(a) - weights(b)).abs().max().item()


# ---------------------------------------------------------------- order and rate


def test_every_epoch_is_a_permutation():
    for n, size in ((1, 1), (5, 2), (7, 7), (10, 3), (3, 8), (100, 32)):
        seen = sum((batch_rows(n, size, s, seed=3) for s in range(3 * n)), [])
        assert all(len(batch_rows(n, size, s, 3)) == size for s in range(5))
        for e in range(len(seen) // n): assert sorted(seen[e * n : e * n + n]) == list(range(n)), (n, size, e)
    assert batch_rows(50, 10, 4, 0) == batch_rows(50, 10, 4, 0) != batch_rows(50, 10, 4, 1), "asked for at any time, of its seed alone"
    epochs = [tuple(batch_rows(20, 20, s, 0)) for s in range(6)]
    assert len(set(epochs)) == 6


def test_rate_rises_and_falls():
    for steps in (1, 2, 10, 100, 1000):
        for warmup in (0.0, 0.05, 0.5):
            r, top = [rate(s, steps, warmup) for s in range(steps)], max(1, round(warmup * steps))
            assert all(0 < x <= 1 for x in r) and r[top - 1] == 1 and r[:top] == sorted(r[:top])
            assert r[top:] == sorted(r[top:], reverse=True) and min(r[top:], default=1) >= 0.1


def test_a_line_falls_to_nothing_behind_the_last_step():
    "Equal steps down from the peak; the step after the last would have 0."
    for steps, warmup in ((1, 0.0), (2, 0.5), (10, 0.0), (10, 0.3), (100, 0.05), (7, 1.0)):
        r, top = [rate(s, steps, warmup, "linear") for s in range(steps)], max(1, round(warmup * steps))
        assert r[:top] == [(s + 1) / top for s in range(top)] == [rate(s, steps, warmup) for s in range(top)]
        falls = [a - b for a, b in zip(r[top:], [*r[top + 1 :], 0.0])]
        assert r[top : top + 1] in ([1.0], []) and falls == pytest.approx([1 / max(1, steps - top)] * (steps - top)), "one line, to 0"
        assert all(0 < x <= 1 for x in r)


# ---------------------------------------------------------------- the loop


def plain_loop(lm, rows, steps, batch_size, lr, kind=None, decay="cosine"):
    "The same training, written down as one would for a single machine."
    model = lm.model.train()
    optimizer = kind(model.parameters(), lr=lr, weight_decay=0.02) if kind else torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.01)
    for step in range(steps):
        batch = [rows[i] for i in batch_rows(len(rows), batch_size, step, 0)]
        total, divisor = 0.0, 0.0
        for prompt, completion, weight in batch:
            logprobs = model(torch.tensor([prompt + completion])).logits[0].log_softmax(-1)
            total = total - weight * sum(logprobs[len(prompt) - 1 + i, t] for i, t in enumerate(completion))
            divisor += weight * len(completion)
        optimizer.zero_grad()
        (total / divisor).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for g in optimizer.param_groups: g["lr"] = lr * rate(step, steps, decay=decay)
        optimizer.step()


@pytest.mark.filterwarnings("error")
def test_fit_is_the_plain_loop(tmp_path):
    "GPT-2 without dropout: Llama's norms round to 32 bits, whatever the model's dtype."
    folder = str(make_model("gpt2", tmp_path, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0))
    lm, plain, lines = load_lm(folder), load_lm(folder), []
    sft(lm, rows_of(lm), steps=6, batch_size=3, lr=3e-3, log=lambda step, **s: lines.append((step, s)), log_every=4)
    plain_loop(plain, rows_of(plain), 6, 3, 3e-3)
    assert distance(lm.model, plain.model) < 1e-9
    assert [s for s, _ in lines] == [4, 6] and all(set(s) == {"loss", "lr", "grad_norm"} and all(map(math.isfinite, s.values())) for _, s in lines)
    assert not lm.model.training and lines[-1][1]["lr"] == pytest.approx(3e-3 * rate(5, 6))


def test_adafactor_and_a_line_are_the_plain_loop_with_them(tmp_path):
    folder = str(make_model("gpt2", tmp_path, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0))
    def trained(**options):
        lm, lines = load_lm(folder), []
        sft(lm, rows_of(lm), steps=6, batch_size=3, lr=3e-3, weight_decay=0.02, log=lambda step, **s: lines.append(s["lr"]), log_every=1, **options)
        return lm.model, lines

    plain = load_lm(folder)
    plain_loop(plain, rows_of(plain), 6, 3, 3e-3, torch.optim.Adafactor, "linear")
    model, lines = trained(optimizer="adafactor", decay="linear")
    assert distance(model, plain.model) < 1e-9
    assert lines == pytest.approx([3e-3 * rate(s, 6, decay="linear") for s in range(6)]) != pytest.approx([3e-3 * rate(s, 6) for s in range(6)])
    for other in (dict(optimizer="adafactor"), dict(decay="linear"), {}): assert distance(trained(**other)[0], model) > 1e-5


def test_adafactor_after_a_kill(folders, tmp_path):
    "What it keeps of rows and columns is in the checkpoint: the same bits."
    def trained(folder, die=False):
        lm = load_lm(str(folders("gpt2")))

        def log(step, **_):
            if die and step == 6: raise KeyboardInterrupt

        try: sft(lm, rows_of(lm), steps=8, batch_size=3, lr=1e-2, folder=folder, save_seconds=0, log_every=2, log=log, optimizer="adafactor", decay="linear")
        except KeyboardInterrupt:
            assert (folder / "checkpoint.pt").is_file()
            return trained(folder)
        return lm.model

    for d in ("calm", "killed"): (tmp_path / d).mkdir()
    assert distance(trained(tmp_path / "calm"), trained(tmp_path / "killed", die=True)) == 0


def test_adafactor_keeps_less(folders):
    "Rows and columns instead of a number for every weight."
    from rlgen.train import _optimizer

    def kept(name):
        lm = load_lm(str(folders("llama")))
        optimizer = _optimizer(name, list(lm.model.parameters()), 1e-2, 0.0)
        sft_loss(lm)(lm.model, rows_of(lm))[0].backward()
        optimizer.step()
        return sum(t.numel() for state in optimizer.state.values() for t in state.values() if torch.is_tensor(t))

    assert kept("adafactor") < 0.2 * kept("adamw")


def test_an_unknown_optimizer_gets_one_line(folders):
    lm = load_lm(str(folders("llama")))
    with pytest.raises(RlgenError, match="optimizer = 'adam': choose adamw or adafactor") as e: sft(lm, rows_of(lm), steps=1, optimizer="adam")
    assert "\n" not in str(e.value)


def test_micro_batches_change_nothing(folders):
    def trained(micro):
        lm, lines = load_lm(str(folders("llama"))), []
        sft(lm, rows_of(lm), steps=4, batch_size=5, micro_batch=micro, lr=3e-3, log_every=1, log=lambda step, **s: lines.append(s))
        return lm.model, [x["loss"] for x in lines]

    whole, losses = trained(0)
    for micro in (1, 2, 3, 99):
        parts, again = trained(micro)
        assert distance(whole, parts) < 1e-9 and again == pytest.approx(losses, abs=1e-10), micro


def test_weight_zero_is_absence(folders):
    def trained(rows, size):
        lm = load_lm(str(folders("llama")))
        sft(lm, rows, steps=4, batch_size=size, lr=3e-3)
        return lm.model

    a, b = rows_of(load_lm(str(folders("llama"))))[:2]
    alone = trained([(*a[:2], 1.0)], 1)
    assert distance(alone, trained([(*a[:2], 1.0), (*b[:2], 0.0)], 2)) < 1e-9
    assert distance(alone, trained([(*a[:2], 1.0), (*b[:2], 1.0)], 2)) > 1e-4
    twice = trained([(*a[:2], 2.0), (*b[:2], 1.0)], 2)
    assert distance(twice, trained([(*a[:2], 1.0), (*a[:2], 1.0), (*b[:2], 1.0)], 3)) < 1e-9, "weight 2 is twice the row"
    assert weights(trained([(*a[:2], 0.0)], 1)).isfinite().all()


def test_frozen_parameters_stay(folders, tmp_path):
    lm, before = load_lm(str(folders("llama"))), load_lm(str(folders("llama")))
    for name, p in lm.model.named_parameters(): p.requires_grad = "layers.1" in name
    sft(lm, rows_of(lm), steps=3, batch_size=3, lr=1e-2, folder=tmp_path, save_seconds=0, log_every=1)
    moved = {n for (n, p), q in zip(lm.model.named_parameters(), before.model.parameters()) if not torch.equal(p, q)}
    assert moved and all("layers.1" in n for n in moved) and not list(tmp_path.iterdir())


@pytest.mark.parametrize("arch", ("t5", "gpt2"))
def test_it_learns(arch, folders):
    lm, lines = load_lm(str(folders(arch))), []
    rows = [(p, c, 1.0) for p, c, _ in rows_of(lm)[:3]]
    sft(lm, rows, steps=60, batch_size=3, lr=1e-2, log=lambda step, **s: lines.append(s["loss"]))
    assert lines[-1] < lines[0] / 3 and not lm.model.training
    said = generate(lm, [r[0] for r in rows], greedy, max_new_tokens=16)
    assert [r.completion_ids for r in said] == [r[1] for r in rows]
    with torch.no_grad(): total, units = sft_loss(lm)(lm.model, rows)
    assert units.item() == sum(len(r[1]) for r in rows) and total.item() == pytest.approx(-sum(sum(r.logprobs) for r in said), abs=1e-8)


@pytest.mark.parametrize("arch", ("llama", "deberta-v2"))
def test_reward_models_learn(arch, folders):
    rm, lines = load_reward_model(str(folders(arch, "reward"))), []
    pairs = pairs_of(load_lm(str(folders("llama")))) if arch == "llama" else [tuple(rm.tokenizer(*TALK[i]).input_ids for i in x) for x in ((0, 1), (2, 3), (4, 5))]
    total, n, sums = reward_loss(rm)(rm.model, pairs)
    scores = score_ids(rm, [s for x in pairs for s in x]).view(-1, 2)
    assert n == len(pairs) and sums["accuracy"] == sum(pair_wins(rm, pairs))
    assert total.item() == pytest.approx(bt_loss(scores[:, 0], scores[:, 1]).sum().item(), abs=1e-9)
    train_reward(rm, pairs, steps=60, batch_size=3, lr=3e-3, log=lambda step, **s: lines.append(s))
    assert pair_wins(rm, pairs) == [1.0] * len(pairs) and lines[-1]["loss"] < lines[0]["loss"] and lines[-1]["accuracy"] == 1.0


def test_dropout_differs_from_step_to_step(folders):
    def losses():
        lm, lines = load_lm(str(folders("gpt2"))), []
        sft(lm, rows_of(lm)[:1], steps=4, batch_size=1, lr=0.0, log_every=1, log=lambda step, **s: lines.append(s["loss"]))
        return lines

    assert len(set(losses())) == 4 and losses() == losses()


def test_nothing_to_train_on(folders):
    with pytest.raises(RlgenError, match="^sft: no rows") as e: sft(load_lm(str(folders("llama"))), [], steps=1)
    assert "\n" not in str(e.value)


# ---------------------------------------------------------------- what big models need


def toy(): return build_lm(word_tokenizer([" ".join(x) for x in TALK]), width=32, context=32)


def test_bf16_runs_and_learns(folders):
    "The body computes in 16 bits, weights and losses stay in 32; the first loss is near the exact one and not equal to it; reward models likewise."
    def curve(autocast):
        lm, lines, kinds = toy(), [], set()
        lm.model.lm_head.register_forward_hook(lambda module, given, out: kinds.add(out.dtype))
        loss = sft_loss(lm)
        def typed(model, rows):
            total, n = loss(model, rows)
            assert total.dtype == torch.float32
            return total, n
        fit(lm.model, rows_of(lm)[:3], typed, steps=40, batch_size=3, lr=1e-2, autocast=autocast, log_every=1, log=lambda step, **s: lines.append(s["loss"]))
        assert kinds == {torch.bfloat16 if autocast else torch.float32} and weights(lm.model).dtype == torch.float32
        return lines

    exact, half = curve(""), curve("bf16")
    assert 0 < abs(exact[0] - half[0]) < 0.02 and half[-1] < half[0] / 3
    rm, lines = load_reward_model(str(folders("llama", "reward"))), []
    rm.model.float()
    train_reward(rm, pairs_of(load_lm(str(folders("llama")))), steps=30, batch_size=3, lr=3e-3, autocast="bf16", log=lambda step, **s: lines.append(s["loss"]))
    assert lines[-1] < lines[0]


@pytest.mark.parametrize(("autocast", "words"), (("fp16", "fp16 needs a GPU"), ("half", "'half' is not bf16, fp16 or empty")))
def test_autocast_refusals(autocast, words, folders):
    with pytest.raises(RlgenError, match=words) as e: sft(toy(), [([3], [4], 1.0)], steps=1, autocast=autocast)
    assert "\n" not in str(e.value)


def test_evaluate_speaks_at_its_steps_and_changes_nothing(folders):
    "gpt2 has dropout: evaluation is in evaluation mode, without gradients, and training goes on as if nobody had asked, though the function draws random numbers."
    def trained(**options):
        lm, lines = load_lm(str(folders("gpt2"))), []

        def evaluate():
            assert not lm.model.training and not torch.is_grad_enabled()
            torch.rand(3)
            total, n = sft_loss(lm)(lm.model, rows_of(lm)[:2])
            return dict(held_out=(total / n).item())

        if "eval_every" in options: options["evaluate"] = evaluate
        sft(lm, rows_of(lm), steps=10, batch_size=3, lr=3e-3, log_every=4, log=lambda step, **s: lines.append((step, s)), **options)
        return lm.model, lines, evaluate

    plain, lines, _ = trained()
    assert [s for s, _ in lines] == [4, 8, 10] and not any("held_out" in x for _, x in lines)
    for every, steps, asked in ((3, [3, 4, 6, 8, 9, 10], [3, 6, 9, 10]), (4, [4, 8, 10], [4, 8, 10]), (0, [4, 8, 10], [10])):
        model, lines, evaluate = trained(eval_every=every)
        assert [s for s, _ in lines] == steps and [s for s, x in lines if "held_out" in x] == asked
        assert distance(plain, model) == 0 and not model.training
        with torch.no_grad(): assert lines[-1][1]["held_out"] == evaluate()["held_out"], "of the weights after the step"


def test_evaluate_after_a_kill(folders, tmp_path):
    "The same lines, held-out numbers among them, whether interrupted or not."
    def trained(folder, die=0):
        lm, lines = load_lm(str(folders("gpt2"))), {}

        def log(step, **scalars):
            lines[step] = scalars
            if step == die: raise KeyboardInterrupt

        def evaluate(): return dict(held_out=float(sft_loss(lm)(lm.model, rows_of(lm)[:2])[0]))
        options = dict(steps=10, batch_size=3, lr=3e-3, log_every=4, log=log, evaluate=evaluate, eval_every=3, folder=folder, save_seconds=0)
        try: sft(lm, rows_of(lm), **options)
        except KeyboardInterrupt: return lines | trained(folder)
        return lines

    for d in ("calm", "killed"): (tmp_path / d).mkdir()
    assert trained(tmp_path / "calm") == trained(tmp_path / "killed", die=8)


@pytest.mark.parametrize(("arch", "head"), (("llama", "lm"), ("gpt2", "lm"), ("t5", "lm"), ("llama", "reward"), ("deberta-v2", "reward")))
def test_lora_trains_adapters_and_heads_only(arch, head, folders, tmp_path):
    "What was there stays, but for a reward model's head; merged and wrapped say the same, and the saved folder loads as ever, without a trace of the adapters."
    load = load_lm if head == "lm" else load_reward_model
    name = str(folders(arch, head, **(dict(resid_pdrop=0, embd_pdrop=0, attn_pdrop=0) if arch == "gpt2" else {})))
    m, base = load(name), load(name)
    names = list(m.model.state_dict())
    def told(x):
        if head == "lm": return sft_loss(x)(x.model, rows_of(x))[0]
        return score_ids(x, [list(range(5, 5 + n)) for n in (3, 6, 9)])

    assert prepare_model(m.model, lora_r=3, lora_alpha=6) is m.model
    free = {n for n, p in m.model.named_parameters() if p.requires_grad}
    heads = {n for n in free if "lora_" not in n}
    assert torch.allclose(told(m), told(base), atol=1e-12) and any("lora_A" in n for n in free)
    assert heads == ({n for n in names if not n.startswith(base.model.base_model_prefix + ".") and "lora" not in n} if head == "reward" else set())
    options = dict(steps=8, batch_size=3, lr=1e-2, folder=tmp_path, save_seconds=0, log_every=4)
    if head == "lm": sft(m, rows_of(m), **options)
    else: train_reward(m, [([5, 6, 7], [8, 9, 5, 6]), ([9, 9, 5], [5, 5])], **options)
    wrapped = told(m)
    plain = merged(m.model)
    assert plain is m.model and list(plain.state_dict()) == names and all(p.requires_grad for p in plain.parameters())
    assert torch.allclose(told(m), wrapped, atol=1e-9) and not torch.allclose(wrapped, told(base), atol=1e-4)
    for (n, p), q in zip(plain.named_parameters(), base.model.parameters()):
        if (p - q).abs().max() > 0: assert n in heads or 1 <= torch.linalg.matrix_rank((p - q).detach(), atol=1e-9) <= 3, n
    save_lm(m, tmp_path / "saved")
    assert not list((tmp_path / "saved").glob("*adapter*")) and torch.allclose(told(load(str(tmp_path / "saved"))), wrapped, atol=1e-9)


def test_lora_checkpoints_hold_only_what_is_trained(folders, tmp_path):
    "And a killed training ends where a calm one does, to the bit."
    def trained(folder, die=False):
        lm, kept = load_lm(str(folders("llama"))), []
        prepare_model(lm.model, lora_r=2, seed=4)

        def log(step, **_):
            if (folder / "checkpoint.pt").is_file(): kept.append(torch.load(folder / "checkpoint.pt", weights_only=True)["model"])
            if die and step == 6: raise KeyboardInterrupt

        try: sft(lm, rows_of(lm), steps=8, batch_size=3, lr=1e-2, folder=folder, save_seconds=0, log_every=2, log=log)
        except KeyboardInterrupt: return trained(folder)
        assert kept and all(kept[0]) and all("lora_" in n for n in kept[0])
        return merged(lm.model)

    for d in ("calm", "killed"): (tmp_path / d).mkdir()
    assert distance(trained(tmp_path / "calm"), trained(tmp_path / "killed", die=True)) == 0


@pytest.mark.parametrize("lora", (0, 2))
@pytest.mark.parametrize(("arch", "head"), (("llama", "lm"), ("gpt2", "lm"), ("llama", "reward")))
def test_gradient_checkpointing_gives_the_same_gradients(arch, head, lora, folders):
    "With dropout too (gpt2): the second forward pass draws what the first one drew; and the first one did keep less."
    def gradients(checkpointing):
        m = (load_lm if head == "lm" else load_reward_model)(str(folders(arch, head)))
        prepare_model(m.model, gradient_checkpointing=checkpointing, lora_r=lora).train()
        passes = []
        next(x for n, x in m.model.named_modules() if n.endswith(".mlp")).register_forward_pre_hook(lambda *_: passes.append(1))
        torch.manual_seed(0)
        loss = sft_loss(m)(m.model, rows_of(m))[0] if head == "lm" else reward_loss(m)(m.model, [([5, 6, 7], [8, 9, 5, 6])])[0]
        loss.backward()
        found = {n: p.grad for n, p in m.model.named_parameters() if p.grad is not None}
        merged(m.model)
        assert not any(getattr(x, "gradient_checkpointing", False) for x in m.model.modules())
        return found, len(passes)

    (kept, once), (again, twice) = gradients(False), gradients(True)
    assert (once, twice) == (1, 2) and set(kept) == set(again) and any(g.abs().max() > 1e-6 for g in kept.values())
    for n in kept: torch.testing.assert_close(kept[n], again[n], atol=1e-6, rtol=0)


# ---------------------------------------------------------------- kills


def killable(model_folder, folder, kill=""):
    "A training with dropout, which kills its own process at a bad moment: in the loss, between log and checkpoint, or while the checkpoint is written."
    def die(): os.kill(os.getpid(), signal.SIGKILL)
    lm, calls, folder = load_lm(model_folder), [], Path(folder)
    honest, save, tokens = sft_loss(lm), torch.save, rows_of(lm)

    def loss(model, rows):
        calls.append(1)
        if kill == "loss" and len(calls) == 8: die()
        return honest(model, rows)

    def log(step, **scalars):
        append_jsonl(folder / "curves.jsonl", [dict(step=step, **scalars)])
        if kill == "log" and step == 6: die()

    def torn(state, path):
        save(state, path)
        if kill == "save" and state["step"] == 6:
            os.truncate(path, path.stat().st_size // 2)
            die()

    torch.save = torn
    try: fit(lm.model, tokens, loss, steps=9, batch_size=3, lr=3e-3, folder=folder, save_seconds=0, log_every=2, log=log, seed=5)
    finally: torch.save = save
    return lm.model


def in_fresh_python(call, *args, launcher=(), rc=0):
    "Call a function of this file in another process."
    env = os.environ | dict(OMP_NUM_THREADS="1", OMP_WAIT_POLICY="PASSIVE", ACCELERATE_USE_CPU="true", TOKENIZERS_PARALLELISM="false")
    run = subprocess.run([sys.executable, *launcher, __file__, call, *map(str, args)], capture_output=True, text=True, timeout=240, env=env, cwd=HERE)
    assert run.returncode == rc, run.stderr[-3000:]
    return run


@pytest.mark.parametrize("kill", ("loss", "log", "save"))
def test_killed_and_started_again(kill, folders, tmp_path):
    "gpt2 has dropout. The killed and resumed training ends with the same bits and the same curve, and leaves no checkpoint."
    calm, killed = tmp_path / "calm", tmp_path / "killed"
    for d in (calm, killed): d.mkdir()
    wanted = killable(str(folders("gpt2")), calm)
    in_fresh_python("killable", str(folders("gpt2")), killed, kill, rc=-signal.SIGKILL)
    left = {p.name for p in killed.iterdir()}
    assert "checkpoint.pt" in left and ("checkpoint.new" in left) == (kill == "save")
    assert torch.load(killed / "checkpoint.pt", weights_only=True)["step"] == (6 if kill == "loss" else 4)
    torch.manual_seed(99)
    again = killable(str(folders("gpt2")), killed)
    assert distance(wanted, again) == 0
    assert [p.name for p in killed.iterdir()] == ["curves.jsonl"] == [p.name for p in calm.iterdir()]
    lines = read_jsonl(killed / "curves.jsonl")
    assert list({r["step"]: r for r in lines}.values()) == read_jsonl(calm / "curves.jsonl")
    assert [r["step"] for r in lines] == ([2, 4, 6, 8, 9] if kill == "loss" else [2, 4, 6, 6, 8, 9])


def test_a_kill_after_the_last_checkpoint(folders, tmp_path):
    "The checkpoint of the last step is taken up, nothing is trained any more, and it goes."
    wanted = killable(str(folders("gpt2")), tmp_path)
    lm = load_lm(str(folders("gpt2")))
    state = dict(model=wanted.state_dict(), optimizer=torch.optim.AdamW(lm.model.parameters()).state_dict(), step=9)
    torch.save(state, tmp_path / "checkpoint.pt")
    assert distance(killable(str(folders("gpt2")), tmp_path), wanted) == 0 and not (tmp_path / "checkpoint.pt").exists()


# ---------------------------------------------------------------- two processes


def work_of_one(lm_folder, rm_folder, out, kill=-1):
    "Train and sample, alone or as one of two; the first process writes what came out."
    rank, world = rank_world()
    lm, rm, out = load_lm(lm_folder), load_reward_model(rm_folder), Path(out)
    prompts = [encode_prompt(lm, p) for p, _ in TALK]
    said = [generate(lm, prompts, rule, max_new_tokens=8, batch_size=2) for rule in (greedy, sampler(list(range(7)), top_k=30))]

    def dies(model, rows, calls=[]):  # noqa: B006
        calls.append(len(rows))
        seen[0] = sum(calls)
        if rank == 1 and len(calls) == int(kill): os.kill(os.getpid(), signal.SIGKILL)
        return sft_loss(lm)(model, rows)

    folder, seen = out / "training", [0]
    if rank == 0: folder.mkdir(parents=True, exist_ok=True)
    lines = []
    fit(lm.model, rows_of(lm), dies, steps=8, batch_size=5, micro_batch=3, lr=3e-3, folder=folder if folder.exists() else None, save_seconds=0, log_every=1,
        log=lambda step, **s: lines.append([step, s["loss"], s["grad_norm"]]))
    train_reward(rm, pairs_of(lm), steps=6, batch_size=4, micro_batch=1, lr=3e-3)
    if world > 1:
        from accelerate import PartialState

        assert world == PartialState().num_processes == 2
        assert all(r is not None for r in said[0]), "every process has all rollouts"
    if rank == 0:
        torch.save(dict(lm=weights(lm.model), rm=weights(rm.model)), out / "weights.pt")
        rollouts = [[r.completion_ids, r.logprobs, r.info] for x in said for r in x]
        (out / "out.json").write_text(json.dumps(dict(world=world, rows=seen[0], lines=lines, rollouts=rollouts)))


def test_two_processes_do_the_work_of_one(folders, tmp_path):
    "A batch of 5 in parts of 3, so that shares are unequal; parts of 1, so that one process has none."
    paths = str(folders("llama")), str(folders("llama", "reward"))
    (tmp_path / "two").mkdir()
    work_of_one(*paths, tmp_path)
    in_fresh_python("work_of_one", *paths, tmp_path / "two", launcher=("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"))
    one, two = (json.loads((d / "out.json").read_text()) for d in (tmp_path, tmp_path / "two"))
    assert (one["world"], two["world"]) == (1, 2) and (one["rows"], two["rows"]) == (8 * 5, 8 * 3), "each computes its share"
    assert one["rollouts"] == two["rollouts"]
    for a, b in zip(one["lines"], two["lines"], strict=True): assert a == pytest.approx(b, abs=1e-6)
    one, two = (torch.load(d / "weights.pt", weights_only=True) for d in (tmp_path, tmp_path / "two"))
    for k in ("lm", "rm"): torch.testing.assert_close(one[k], two[k], atol=1e-6, rtol=0)


@pytest.mark.slow
def test_two_processes_killed_and_started_again(folders, tmp_path):
    "One of two is killed in its sixth step; both start again and end where an undisturbed pair ends, to the bit."
    paths, pair = (str(folders("llama")), str(folders("llama", "reward"))), ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    for d in ("calm", "killed"): (tmp_path / d / "training").mkdir(parents=True)
    in_fresh_python("work_of_one", *paths, tmp_path / "calm", launcher=pair)
    in_fresh_python("work_of_one", *paths, tmp_path / "killed", 11, launcher=pair, rc=1)
    assert torch.load(tmp_path / "killed" / "training" / "checkpoint.pt", weights_only=True)["step"] == 5
    in_fresh_python("work_of_one", *paths, tmp_path / "killed", launcher=pair)
    calm, killed = (torch.load(tmp_path / d / "weights.pt", weights_only=True) for d in ("calm", "killed"))
    assert all(torch.equal(calm[k], killed[k]) for k in calm) and not list((tmp_path / "killed" / "training").iterdir())


def test_a_toy_from_the_notebooks_trains_the_same_twice():
    "Two equal trainings in one process: nothing is left over between them."
    tok = word_tokenizer([" ".join(x) for x in TALK])
    a, b = build_lm(tok, width=16), build_lm(tok, width=16)
    for lm in (a, b): sft(lm, rows_of(lm), steps=5, batch_size=4)
    assert distance(a.model, b.model) == 0
    assert new_reward_model and weights(a.model).dtype == torch.float32


if __name__ == "__main__": getattr(__import__("test_train"), sys.argv[1])(*sys.argv[2:])  # under its own name, as the tests know it
