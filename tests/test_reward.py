"rlgen.reward: where a reward is read, what may not change it, what is cut, and TRL's loss on the same tokens."
import json
import math
import shutil

import pytest
import torch

from helpers import line_of
from rlgen.lm import encode_completion, encode_prompt, pad, save_lm
from rlgen.sampling import Cost
from rlgen.reward import bt_loss, encode_text, load_reward_model, new_reward_model, pair_wins, reward_function, score_ids

DECODERS, ENCODERS = ("gpt2", "llama", "gemma"), ("bert", "deberta-v2", "roberta", "t5")
PROMPTS = ["what did you eat today ?", "post : my boss wants me to work on sunday . summary :", "the cat", "a dog ran over the hill and the cat ran after it ."]
ANSWERS = ["i had bread , soup and two apples .", "no", "sat on the mat .", "the end was great ."]


pytestmark = pytest.mark.usefixtures("double")


@pytest.fixture(scope="module")
def guides(folders):
    "Reward models' folders."
    return lambda arch, head="reward", **config: folders(arch, head, **config)


@pytest.fixture(scope="module")
def rms(guides):
    made = {}

    def get(arch):
        if arch not in made: made[arch] = load_reward_model(str(guides(arch)))
        return made[arch]

    return get


def tensors(*values): return torch.tensor(values, dtype=torch.float64)


# ---------------------------------------------------------------- the loss


def test_bradley_terry():
    for gap in (-30.0, -1.0, 0.0, 0.5, 3.0, 30.0):
        assert bt_loss(tensors(gap), tensors(0.0)).item() == pytest.approx(math.log1p(math.exp(-gap)), rel=1e-9)
    chosen, rejected = torch.randn(2, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(bt_loss(chosen + 100, rejected + 100), bt_loss(chosen, rejected), atol=1e-11, rtol=0)
    assert bt_loss(tensors(-1e4), tensors(1e4)).item() == 2e4 and bt_loss(tensors(1e4), tensors(-1e4)).item() == 0
    together = (-bt_loss(chosen, rejected)).exp() + (-bt_loss(rejected, chosen)).exp()
    torch.testing.assert_close(together, torch.ones_like(together))


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_trls_loss_on_the_same_tokens(guides, tmp_path):
    "RewardTrainer's own loss on its own batch, padding and all (a pad id that no text ends in, as it needs)."
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import RewardConfig, RewardTrainer

    folder = str(guides("llama", pad_token_id=0))
    rm = load_reward_model(folder)
    pairs = [tuple(encode_text(rm, p, a) for a in both) for p, both in zip(PROMPTS, (ANSWERS[:2], ANSWERS[1:3], ANSWERS[2:], ANSWERS[::3]))]
    rows = Dataset.from_list([dict(chosen_ids=a, rejected_ids=b) for a, b in pairs])
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.unk_token
    args = RewardConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, gradient_checkpointing=False, report_to="none", disable_dropout=True, max_length=None)
    trainer = RewardTrainer(model=rm.model, args=args, train_dataset=rows, processing_class=tokenizer)
    batch = trainer.data_collator([dict(r) for r in trainer.train_dataset])
    rm.model.eval()
    with torch.no_grad(): theirs = trainer.compute_loss(rm.model, batch).item()
    scores = score_ids(rm, [s for pair in pairs for s in pair]).view(-1, 2)
    assert theirs == pytest.approx(bt_loss(scores[:, 0], scores[:, 1]).mean().item(), abs=1e-8)


# ---------------------------------------------------------------- where it is read


@pytest.mark.parametrize("arch", DECODERS)
def test_read_at_the_last_token_though_it_pads_too(arch, rms):
    "GPT-2 pads with end-of-text: the end is judged all the same, and padding is not."
    rm = rms(arch)
    seqs = [encode_text(rm, p, a) for p, a in zip(PROMPTS, ANSWERS)]
    assert rm.kind == "causal" and all(s[-1] == rm.tokenizer.eos_token_id for s in seqs)
    if arch == "gpt2": assert rm.pad_id == rm.tokenizer.eos_token_id
    with torch.no_grad():
        for s, ours in zip(seqs, rm(*pad(seqs, rm.pad_id))):
            alone = rm.model.score(rm.model.base_model(input_ids=torch.tensor([s])).last_hidden_state[0, -1])
            assert abs(alone.item() - ours.item()) < 1e-10
    early = score_ids(rm, [s[:-1] for s in seqs])
    assert (early - score_ids(rm, seqs)).abs().min() > 1e-6, "the end counts"


@pytest.mark.parametrize("arch", DECODERS + ENCODERS)
def test_company_changes_nothing(arch, rms):
    rm, cost = rms(arch), Cost()
    seqs = [encode_text(rm, p, a, finished=f) for p in PROMPTS for a in ANSWERS for f in (True, False)]
    whole = score_ids(rm, seqs, cost=cost)
    assert whole.dtype == torch.float64 and whole.shape == (32,) and len(set(whole.round(decimals=9).tolist())) >= 16
    assert cost.rm_tokens == sum(map(len, seqs)) and cost.rm_forwards == 1 and cost.lm_tokens == 0
    for size in (1, 3, 7): torch.testing.assert_close(score_ids(rm, seqs, size), whole, atol=1e-10, rtol=0)
    order = torch.randperm(32, generator=torch.Generator().manual_seed(0)).tolist()
    torch.testing.assert_close(score_ids(rm, [seqs[i] for i in order], 5), whole[order], atol=1e-10, rtol=0)
    assert score_ids(rm, []).shape == (0,)
    ids, mask = pad(seqs, rm.pad_id)
    other, _ = pad(seqs, 7)
    if arch in DECODERS: assert torch.equal(rm(ids, mask), rm(other, mask)), "what fills the holes doesn't matter"


@pytest.mark.parametrize("arch", DECODERS)
def test_decoders_judge_the_joint_of_ids(arch, rms):
    rm = rms(arch)
    assert encode_text(rm, PROMPTS[0], ANSWERS[0]) == encode_prompt(rm, PROMPTS[0]) + encode_completion(rm, ANSWERS[0])
    assert encode_text(rm, PROMPTS[0], ANSWERS[0], finished=False) == encode_text(rm, PROMPTS[0], ANSWERS[0])[:-1]
    assert encode_text(rm, PROMPTS[0], "", finished=False) == encode_prompt(rm, PROMPTS[0])


@pytest.mark.parametrize("arch", ENCODERS)
def test_encoders_judge_a_pair(arch, rms):
    rm = rms(arch)
    assert rm.kind == "encoder" and encode_text(rm, PROMPTS[0], ANSWERS[0]) == rm.tokenizer(PROMPTS[0], ANSWERS[0]).input_ids


# ---------------------------------------------------------------- what is cut


@pytest.mark.parametrize("arch", DECODERS + ENCODERS)
def test_long_texts_lose_their_beginning(arch, rms):
    "The prompt first; the completion stays whole as long as it fits, its end for ever."
    rm = rms(arch)
    whole, t = encode_text(rm, PROMPTS[1], ANSWERS[0]), rm.tokenizer
    said = encode_completion(rm, ANSWERS[0], eos=arch in DECODERS) if rm.kind == "causal" else t(ANSWERS[0], add_special_tokens=False).input_ids
    frame = len(whole) - len(said) - len(t(PROMPTS[1], add_special_tokens=False).input_ids)
    side = t.truncation_side
    for limit in range(len(whole) + 2, frame + 1, -1):
        ids = encode_text(rm, PROMPTS[1], ANSWERS[0], max_tokens=limit)
        assert len(ids) == min(limit, len(whole)) and ids[0] in (whole[0], whole[-limit:][0], t.eos_token_id)
        kept = [i for i in ids if i not in t.all_special_ids or rm.kind == "causal"]
        if limit >= len(said) + frame: assert t.decode(kept, skip_special_tokens=True).endswith(t.decode(said, skip_special_tokens=True).strip())
        if rm.kind == "causal": assert ids[-1] == whole[-1] and ids[ids[0] == t.bos_token_id :] == whole[len(whole) - len(ids) + (ids[0] == t.bos_token_id) :]
        elif len(whole) > limit > len(said) + frame:
            t.truncation_side = "left"
            assert ids == t(PROMPTS[1], ANSWERS[0], truncation="only_first", max_length=limit).input_ids, "the tokenizer's own way, where it has one"
            t.truncation_side = side
        if arch in ("llama", "gemma"): assert ids[0] == t.bos_token_id
        if rm.kind == "encoder": assert sum(i in t.all_special_ids for i in ids) == frame, "the frame stays"
        assert score_ids(rm, [ids]).isfinite().all()
    assert t.truncation_side == side


@pytest.mark.parametrize("arch", ("gpt2", "llama", *ENCODERS[:3]))
def test_the_models_own_limit_holds(arch, rms):
    "A text longer than the model takes is cut, not run into the ground."
    rm = rms(arch)
    ids = encode_text(rm, "the cat sat . " * 100, ANSWERS[0])
    assert len(ids) == 256 and score_ids(rm, [ids]).isfinite().all()
    endless = encode_text(rm, PROMPTS[0], "the cat sat . " * 100)
    assert len(endless) == 256 and score_ids(rm, [endless]).isfinite().all()


# ---------------------------------------------------------------- as a function


@pytest.mark.parametrize("arch", ("gpt2", "deberta-v2"))
def test_trls_signature(arch, rms):
    rm = rms(arch)
    f = reward_function(rm, batch_size=3)
    rewards = f(prompts=PROMPTS, completions=ANSWERS, completion_ids=[[1]] * 4, profile=["x"] * 4, trainer_state=None)
    assert isinstance(rewards, list) and all(type(r) is float for r in rewards)
    assert rewards == pytest.approx(score_ids(rm, [encode_text(rm, p, a) for p, a in zip(PROMPTS, ANSWERS)]).tolist(), abs=1e-10)
    assert f(PROMPTS, ANSWERS) == rewards and f([], []) == []
    short = reward_function(rm, max_tokens=12)(PROMPTS, ANSWERS)
    assert short == pytest.approx(score_ids(rm, [encode_text(rm, p, a, max_tokens=12) for p, a in zip(PROMPTS, ANSWERS)]).tolist(), abs=1e-10)


def test_pair_wins(rms):
    rm = rms("llama")
    a, b = (encode_text(rm, PROMPTS[0], x) for x in ANSWERS[:2])
    wins = pair_wins(rm, [(a, b), (b, a), (a, a)], batch_size=2)
    assert sorted(wins[:2]) == [0.0, 1.0] and wins[2] == 0.5 and pair_wins(rm, []) == []


# ---------------------------------------------------------------- made and loaded


@pytest.mark.parametrize("arch", (*DECODERS, "t5", "bert", "deberta-v2"))
def test_a_new_head_on_an_old_body(arch, guides):
    folder = str(guides(arch, "lm" if arch in (*DECODERS, "t5") else "encoder"))
    state = torch.random.get_rng_state()
    a, again, other = new_reward_model(folder, seed=1), new_reward_model(folder, seed=1), new_reward_model(folder, seed=2)
    assert torch.equal(state, torch.random.get_rng_state())
    seqs = [encode_text(a, p, x) for p, x in zip(PROMPTS, ANSWERS)]
    scores = [score_ids(m, seqs) for m in (a, again, other)]
    assert torch.equal(scores[0], scores[1]) and not torch.allclose(scores[0], scores[2]) and scores[0].std() > 0
    if a.kind == "causal":
        from rlgen.lm import load_lm

        body = load_lm(folder).model.base_model.state_dict()
        assert all(torch.equal(v, body[k]) for k, v in a.model.base_model.state_dict().items()), "the body is the base's"


@pytest.mark.parametrize("arch", (*DECODERS, "bert", "deberta-v2", "roberta"))
def test_saved_and_loaded_again(arch, rms, tmp_path):
    rm = rms(arch)
    save_lm(rm, tmp_path)
    again = load_reward_model(str(tmp_path))
    seqs = [encode_text(rm, p, x) for p, x in zip(PROMPTS, ANSWERS)]
    assert torch.equal(score_ids(again, seqs), score_ids(rm, seqs)) and again.kind == rm.kind


def test_what_is_no_reward_model(guides, tmp_path):
    told = line_of(load_reward_model, str(guides("llama", num_labels=2)))
    assert "2 outputs" in told and "num_labels=1" in told
    assert "no weights for score.weight" in line_of(load_reward_model, str(guides("llama", "lm")))
    shutil.copytree(guides("gpt2", "lm"), tmp_path / "lm")
    config = json.loads((tmp_path / "lm" / "config.json").read_text())
    (tmp_path / "lm" / "config.json").write_text(json.dumps(config | {"id2label": {"0": "x"}, "label2id": {"x": 0}}))
    assert "no weights for score.weight" in line_of(load_reward_model, str(tmp_path / "lm")), "a random head is no reward"
    for name in ("/nowhere", "no-such-model"): assert name in line_of(load_reward_model, name) and name in line_of(new_reward_model, name)
