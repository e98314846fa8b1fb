"rlgen.dpo: TRL's loss against the formula, ids that arrive untouched, no empty answers, kills, LoRA, refusals."
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import rlgen.dpo
from rlgen.core import RlgenError, append_jsonl, rank_world, read_jsonl
from rlgen.dpo import dpo, dpo_loss, fit_pairs
from rlgen.lm import build_lm, completion_logprobs, encode_completion, encode_prompt, load_lm, masked_sum, save_lm, word_tokenizer
from rlgen.train import fit, sft_loss

HERE = Path(__file__).resolve().parent
TALK = [
    ("the cat", "sat on the mat .", "ran over the hill ."), ("what did you eat today ?", "bread , soup and two apples .", "no"), ("she", "writes letters", "lost her keys ."),
    ("a dog ran over the hill", "and the cat ran after it .", "and lost her keys in the garden last night ."), ("tom has 3 apples", "and buys 14 more .", "."),
]  # fmt: skip


def pairs_of(lm): return [(encode_prompt(lm, p), encode_completion(lm, c), encode_completion(lm, r)) for p, c, r in TALK]


def toy(seed=0): return build_lm(word_tokenizer([" ".join(x) for x in TALK]), width=32, context=32, seed=seed)


def weights(model): return torch.cat([p.detach().flatten() for p in model.parameters()])


def totals(lm, rows):
    "Log-probabilities of chosen and rejected answers, two tensors."
    with torch.no_grad(): both = [completion_logprobs(lm, [r[0] for r in rows], [r[i] for r in rows]) for i in (1, 2)]
    return [masked_sum(*x) for x in both]


def trained(lm, rows=None, **options):
    "Train and return the log lines."
    lines = []
    counts = dpo(lm, rows or pairs_of(lm), **(dict(steps=4, batch_size=5, lr=1e-3, log_every=1, log=lambda step, **s: lines.append(dict(step=step, **s))) | options))
    return lines, counts


# ---------------------------------------------------------------- the loss and the rows


def test_the_loss_by_hand():
    "Against plain arithmetic; only differences of moves count, and equal moves give log 2."
    chosen, rejected, ref_chosen, ref_rejected = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 5
    loss, margin = dpo_loss(chosen, rejected, ref_chosen, ref_rejected, beta=0.3)
    for i in range(6):
        m = 0.3 * ((chosen[i] - ref_chosen[i]) - (rejected[i] - ref_rejected[i])).item()
        assert margin[i].item() == pytest.approx(m) and loss[i].item() == pytest.approx(-math.log(1 / (1 + math.exp(-m))))
    moved = dpo_loss(chosen + 7, rejected + 7, ref_chosen, ref_rejected, beta=0.3)[0]
    assert torch.allclose(moved, loss) and torch.allclose(dpo_loss(chosen, rejected, chosen, rejected)[0], torch.full((6,), math.log(2), dtype=torch.float64))


def test_rows_that_fit():
    "Answers stay whole, prompts lose their beginning but for a beginning-of-text mark, and what leaves nothing is counted."
    row = ([0, 5, 6, 7, 8], [9, 1], [9, 9, 1])
    assert fit_pairs([row], 8) == ([row], dict(pairs=1, cut=0, dropped=0))
    assert fit_pairs([row], 6)[0] == [([6, 7, 8], *row[1:])]
    assert fit_pairs([row], 6, bos=0) == ([([0, 7, 8], *row[1:])], dict(pairs=1, cut=1, dropped=0))
    assert fit_pairs([row], 5, bos=0)[0] == [([0, 8], *row[1:])] and fit_pairs([row], 4)[0] == [([8], *row[1:])]
    for limit, bos in ((3, None), (2, None), (4, 0)): assert fit_pairs([row], limit, bos) == ([], dict(pairs=0, cut=0, dropped=1))
    assert fit_pairs([([0], [2, 1], [3, 1]), ([], [1], [1]), ([4], [], [1]), ([4], [1], [])], 8, bos=0)[1] == dict(pairs=1, cut=0, dropped=3)
    for limit in range(1, 12):
        for prompt, *answers in fit_pairs([row], limit, bos=0)[0]: assert prompt and answers == list(row[1:]) and len(prompt) + 3 <= limit


# ---------------------------------------------------------------- what TRL is given, and what it computes


def test_trl_computes_the_formula():
    "Loss, accuracy and margin of every logged step, against log-probabilities of ours; with lr 0 and a reference that has moved, in 64 bits as far as TRL goes."
    lm, beta = toy(), 0.3
    rows, lines = pairs_of(lm), []
    before = totals(lm, rows)

    def log(step, **scalars):  # after the step, the weights are those the next step computes its loss with
        lines.append((scalars, totals(lm, rows)))

    dpo(lm, rows, steps=4, batch_size=5, lr=5e-3, beta=beta, log_every=1, log=log)
    assert lines[0][0]["loss"] == pytest.approx(math.log(2), abs=1e-6) and abs(lines[0][0]["margin"]) < 1e-6
    for (_, now), (told, _) in zip(lines, lines[1:]):
        loss, margin = dpo_loss(*now, *before, beta)
        assert told["loss"] == pytest.approx(loss.mean().item(), abs=1e-5) and told["margin"] == pytest.approx(margin.mean().item(), abs=1e-5)
        assert told["accuracy"] == pytest.approx((margin > 0).float().mean().item())
    assert abs(told["margin"]) > 0.05, "and something did move"


def test_ids_arrive_untouched(monkeypatch):
    "What the trainer's batches hold is prompt + answer, id for id: no join of texts (a word tokenizer would make unknown words), no second end, nothing cut."
    from trl.trainer.dpo_trainer import DataCollatorForPreference

    lm, seen, honest = toy(), [], DataCollatorForPreference.torch_call
    rows = pairs_of(lm)
    assert lm.tokenizer.unk_token_id in lm.tokenizer(TALK[0][0] + TALK[0][1]).input_ids, "joining would break"

    def spy(self, examples):
        batch = honest(self, examples)
        seen.append((batch, self.pad_token_id))
        return batch

    monkeypatch.setattr(DataCollatorForPreference, "torch_call", spy)
    trained(lm, rows, steps=2)
    found = set()
    for batch, pad in seen:
        for ids, mask, answer in zip(*(batch[k].tolist() for k in ("input_ids", "attention_mask", "completion_mask"))):
            n, p = sum(mask), answer.index(1)
            assert all(i == pad for i in ids[n:]) and answer == [0] * p + [1] * (n - p) + [0] * (len(ids) - n)
            found.add((tuple(ids[:p]), tuple(ids[p:n])))
    assert found == {(tuple(r[0]), tuple(a)) for r in rows for a in r[1:]}
    assert all(a.count(lm.tokenizer.eos_token_id) == 1 and a[-1] == lm.tokenizer.eos_token_id for _, a in found)


def test_too_long_is_cut_or_dropped_and_counted(monkeypatch):
    "A prompt that fills max_length loses its beginning; no answer in any batch is empty or shortened."
    from trl.trainer.dpo_trainer import DataCollatorForPreference

    lm, seen, honest = toy(), [], DataCollatorForPreference.torch_call
    monkeypatch.setattr(DataCollatorForPreference, "torch_call", lambda self, examples: seen.extend(examples) or honest(self, examples))
    a, b = pairs_of(lm)[:2]
    rows = [(a[0] * 10, *a[1:]), b, (a[0], a[1] * 9, a[2]), (a[0], [], a[2])]
    _, counts = trained(lm, rows, steps=2, max_length=16)
    assert counts == dict(pairs=2, cut=1, dropped=2)
    answers = {tuple(x[k]) for x in seen for k in ("chosen_ids", "rejected_ids")}
    assert answers == {tuple(x) for r in (a, b) for x in r[1:]} and all(x["prompt_ids"] for x in seen)
    assert max(len(x["prompt_ids"]) + max(len(x["chosen_ids"]), len(x["rejected_ids"])) for x in seen) == 16


def test_micro_batches_change_nothing():
    "Plain gradient steps: Adam would blow the seventh digit of a vanishing gradient up."
    (a, whole), (b, parts) = (stepped(micro_batch=m, log_every=2) for m in (0, 2))
    assert torch.allclose(a, b, atol=1e-6) and [x["step"] for x in whole] == [2, 4]
    for x, y in zip(whole, parts): assert x == pytest.approx(y, abs=1e-5)


def stepped(**options):
    lm = toy()
    rows = pairs_of(lm) + [(p, r, c) for p, c, r in pairs_of(lm)[:1]]
    lines, _ = trained(lm, rows, batch_size=6, optimizer="sgd", lr=1.0, **options)
    assert (weights(lm.model) - weights(toy().model)).abs().max() > 1e-2
    return weights(lm.model), lines


def test_it_learns_a_preference_and_leaves_the_model_as_it_was(capfd):
    "A margin that grows, a text that wins; nothing is printed, and only the weights have changed."
    lm = toy()
    rows, own = pairs_of(lm), {k: str(v) for k, v in lm.model.config.to_dict().items()}
    before, names = totals(lm, rows), set(vars(lm.model))
    lines, counts = trained(lm, rows, steps=30, lr=3e-3, log_every=10)
    chosen, rejected = totals(lm, rows)
    assert counts == dict(pairs=5, cut=0, dropped=0) and [x["step"] for x in lines] == [10, 20, 30] and set(lines[0]) == {"step", "loss", "accuracy", "margin", "grad_norm", "lr"}
    assert lines[-1]["loss"] < 0.3 < lines[0]["loss"] and lines[-1]["accuracy"] == 1.0 and ((chosen - before[0]) > (rejected - before[1])).all()
    assert {k: str(v) for k, v in lm.model.config.to_dict().items()} == own and set(vars(lm.model)) == names
    assert not lm.model.training and all(p.requires_grad for p in lm.model.parameters())
    assert capfd.readouterr().out == ""


def test_after_it_other_trainings_go_on_as_ever():
    "bf16 here leaves no trace in a later training by our own loop."
    def later(first):
        lm, other = toy(), toy(seed=1)
        if first: trained(other, autocast="bf16")
        fit(lm.model, [(p, c, 1.0) for p, c, _ in pairs_of(lm)], sft_loss(lm), steps=4, batch_size=3)
        return weights(lm.model)

    assert torch.equal(later(False), later(True))


def test_same_call_same_bytes():
    def once(**options):
        lm = toy()
        lines = trained(lm, batch_size=2, **options)[0]
        return weights(lm.model), lines

    (a, first), (b, again), (c, _) = once(), once(), once(seed=1)
    assert torch.equal(a, b) and first == again and not torch.equal(a, c)


@pytest.mark.parametrize("options", (dict(optimizer="rmsprop", lr=1e-4), dict(autocast="bf16"), dict(gradient_checkpointing=True)), ids=lambda o: next(iter(o)))
def test_options(options):
    lm = toy()
    before = totals(lm, pairs_of(lm))
    lines, _ = trained(lm, steps=15, **options)
    chosen, rejected = totals(lm, pairs_of(lm))
    assert lines[-1]["loss"] < math.log(2) - 0.01 and (chosen - before[0] - rejected + before[1]).mean() > 0
    assert weights(lm.model).dtype == torch.float32 and not any(getattr(m, "gradient_checkpointing", False) for m in lm.model.modules())


def test_gradient_checkpointing_changes_nothing():
    assert torch.allclose(stepped()[0], stepped(gradient_checkpointing=True)[0], atol=1e-6)


# ---------------------------------------------------------------- LoRA


def test_lora_is_merged(tmp_path):
    "Heads and embeddings stay; the layers of the body have moved by a matrix of rank 2; the saved folder is a plain model."
    lm, base = toy(), toy()
    names = [n for n, _ in lm.model.named_parameters()]
    lines, _ = trained(lm, lora_r=2, lora_alpha=4, lr=1e-2, steps=20, beta=1.0)
    assert lines[0]["loss"] == pytest.approx(math.log(2), abs=1e-6) and lines[-1]["loss"] < 0.5
    assert [n for n, _ in lm.model.named_parameters()] == names and all(p.requires_grad for p in lm.model.parameters())
    for (n, p), q in zip(lm.model.named_parameters(), base.model.parameters()):
        moved = (p - q).detach()
        if "_proj" in n: assert 1 <= torch.linalg.matrix_rank(moved, atol=1e-5) <= 2, n
        else: assert not moved.any(), n
    save_lm(lm, tmp_path)
    again = load_lm(str(tmp_path))
    assert torch.allclose(weights(again.model), weights(lm.model))
    told = dpo_loss(*totals(again, pairs_of(again)), *totals(base, pairs_of(base)), beta=1.0)[0].mean().item()
    assert told == pytest.approx(lines[-1]["loss"], abs=0.05)


def test_gpt2(folders):
    "No padding token, dropout, and layers that are stored transposed."
    for options in ({}, dict(lora_r=2)):
        lm = load_lm(str(folders("gpt2")))
        dropout = [m.p for m in lm.model.modules() if isinstance(m, torch.nn.Dropout)]
        lines, _ = trained(lm, steps=10, lr=5e-3, **options)
        assert lines[-1]["loss"] < lines[0]["loss"] and lines[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
        assert lm.tokenizer.pad_token is None and dropout == [m.p for m in lm.model.modules() if isinstance(m, torch.nn.Dropout)] and dropout[0] > 0


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
                os.truncate(path, path_size(path) // 2)
                die()

        TrainerState.save_to_json = torn
    more = dict(lora_r=2, optimizer="rmsprop") if options else {}
    dpo(lm, pairs_of(lm), steps=9, batch_size=2, lr=3e-3, folder=folder / "training", save_seconds=0, log_every=2, log=log, seed=5, **more)
    return lm.model


def one_of_two(out):
    "Train, alone or as one of two; the first process writes what came out. Ours goes on after TRL's."
    lm, out, lines = toy(), Path(out), []
    (out / "training").mkdir(parents=True, exist_ok=True)
    dpo(lm, pairs_of(lm), steps=4, batch_size=4, micro_batch=2, optimizer="sgd", lr=1.0, folder=out / "training", save_seconds=0, log_every=2, log=lambda step, **s: lines.append(s))
    fit(lm.model, [(p, c, 1.0) for p, c, _ in pairs_of(lm)], sft_loss(lm), steps=2, batch_size=4)
    if rank_world()[0] == 0: torch.save(dict(weights=weights(lm.model), lines=[list(x.values()) for x in lines], world=rank_world()[1]), out / "out.pt")


@pytest.mark.slow
def test_two_processes_do_the_work_of_one(tmp_path):
    one_of_two(tmp_path / "one")
    env = os.environ | dict(OMP_NUM_THREADS="1", OMP_WAIT_POLICY="PASSIVE", ACCELERATE_USE_CPU="true", TOKENIZERS_PARALLELISM="false")
    launch = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", __file__, "two", str(tmp_path / "two"))
    run = subprocess.run(launch, capture_output=True, text=True, timeout=240, env=env, cwd=HERE)
    assert run.returncode == 0, run.stderr[-3000:]
    one, two = (torch.load(tmp_path / d / "out.pt", weights_only=True) for d in ("one", "two"))
    assert (one["world"], two["world"]) == (1, 2) and not list((tmp_path / "two" / "training").iterdir())
    assert torch.allclose(one["weights"], two["weights"], atol=1e-5)
    for a, b in zip(one["lines"], two["lines"], strict=True): assert a == pytest.approx(b, abs=1e-5)


def path_size(path): return Path(path).stat().st_size


@pytest.mark.parametrize(("kill", "options"), (("log", ()), pytest.param("save", (), marks=pytest.mark.slow), pytest.param("log", ("lora",), marks=pytest.mark.slow)))
def test_killed_and_started_again(kill, options, tmp_path):
    "Ends with the same bits and the same curve, whenever it was killed, and leaves no checkpoint."
    calm, killed = tmp_path / "calm", tmp_path / "killed"
    for d in (calm, killed): d.mkdir()
    wanted = killable(calm, "", *options)
    env = os.environ | dict(OMP_NUM_THREADS="1", OMP_WAIT_POLICY="PASSIVE", TOKENIZERS_PARALLELISM="false")
    run = subprocess.run([sys.executable, __file__, str(killed), kill, *options], capture_output=True, text=True, timeout=240, env=env, cwd=HERE)
    assert run.returncode == -signal.SIGKILL, run.stderr[-3000:]
    left = {p.name for p in (killed / "training" / "trl").iterdir()}
    assert "checkpoint-4" in left and ("checkpoint-6" in left) == (kill == "save")
    resumed = []
    honest, rlgen.dpo._last_whole = rlgen.dpo._last_whole, lambda f: resumed.append(honest(f)) or resumed[-1]
    try: again = killable(killed, "", *options)
    finally: rlgen.dpo._last_whole = honest
    assert [Path(r).name for r in resumed] == ["checkpoint-4"]
    assert torch.equal(weights(wanted), weights(again))
    for d in (calm, killed): assert not list((d / "training").iterdir())
    lines = read_jsonl(killed / "curves.jsonl")
    assert list({r["step"]: r for r in lines}.values()) == read_jsonl(calm / "curves.jsonl") and [r["step"] for r in lines] == [2, 4, 6, 6, 8, 9]


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(("options", "words"), [
    (dict(batch_size=4, micro_batch=3), "micro_batch = 3 must divide batch_size = 4"), (dict(beta=0), "beta = 0 must be above 0"), (dict(optimizer="adamw_troch"), "did you mean 'adamw_torch'"),
    (dict(autocast="fp16"), "fp16 needs a GPU"), (dict(autocast="half"), "not bf16, fp16 or empty"), (dict(max_length=2), "5 dropped"),
])  # fmt: skip
def test_refusals_are_one_line(options, words):
    with pytest.raises(RlgenError) as e: trained(toy(), **options)
    assert words in str(e.value) and "\n" not in str(e.value)


def test_no_encoder_decoders(folders):
    with pytest.raises(RlgenError, match="^dpo: an encoder-decoder") as e: trained(load_lm(str(folders("t5"))), rows=[([5], [6, 1], [7, 1])])
    assert "\n" not in str(e.value)


def test_trl_is_imported_late():
    code = "import sys, rlgen.dpo; assert not {'trl', 'datasets', 'peft', 'transformers'} & set(sys.modules), 'heavy'"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


if __name__ == "__main__": one_of_two(sys.argv[2]) if sys.argv[1] == "two" else killable(*sys.argv[1:])
