"rlgen.lm: loading, ids, log-probabilities, noise and batched sampling, on the papers' architectures in 64-bit floats."
import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from helpers import line_of
from tiny_models import ARCHS, make_model, make_tokenizer

from rlgen.lm import (
    LM, build_lm, completion_logprobs, encode_completion, encode_prompt, fit_turns, load_lm, load_pretrained, locate_model, masked_mean, model_key, pad,
    save_lm, token_logprobs, word_tokenizer,
)
from rlgen.sampling import Cost, Step, counter_gumbel, draw, generate, greedy, restrict, rule_kl, sampler

CAUSAL = ("gpt2", "llama", "gemma")
WRITERS = (*CAUSAL, "t5")
TEXTS = [
    "the cat", "a dog ran over the hill and the cat ran after it .", "what did you eat today ?", "my neighbour lost her keys in the garden",
    "she", "post : my boss wants me to work on sunday . summary :", "the film was slow but the end was great .", "two apples", "yes or no :",
]  # fmt: skip


pytestmark = pytest.mark.usefixtures("double")


@pytest.fixture(scope="module")
def lms(folders):
    "Each writer once; a third of the vocabulary ends a text, so that rows end at different steps."
    made = {}

    def get(arch):
        if arch not in made:
            made[arch] = lm = load_lm(str(folders(arch)))
            mixed = torch.randperm(len(lm.tokenizer), generator=torch.Generator().manual_seed(4)).tolist()
            lm.model.generation_config.eos_token_id = [lm.tokenizer.eos_token_id, *mixed[: len(mixed) // 3]]
        return made[arch]

    return get


class Endless(LM):
    "A model whose texts never end."
    eos_ids = ()


def assert_same(a, b, tol=1e-10):
    "The same rollouts: ids exactly, numbers within tol."
    assert [r.completion_ids for r in a] == [r.completion_ids for r in b]
    for x, y in zip(a, b):
        assert x.prompt_ids == y.prompt_ids and x.info["finished"] == y.info["finished"] and x.info["kl"] == pytest.approx(y.info["kl"], abs=1e-8)
        assert x.logprobs == pytest.approx(y.logprobs, abs=tol, rel=0)


# ---------------------------------------------------------------- batches


@pytest.mark.parametrize("arch", WRITERS)
def test_company_changes_nothing(arch, lms):
    "Alone, in ragged batches of any size, in any order: the same tokens and log-probabilities."
    lm, seeds = lms(arch), list(range(40, 40 + len(TEXTS)))
    prompts = [encode_prompt(lm, t) for t in TEXTS]
    assert len(set(map(len, prompts))) > 4
    for rule in (lambda s: greedy, lambda s: sampler(s), lambda s: sampler(s, temperature=0.7, top_k=20, top_p=0.9)):
        whole = generate(lm, prompts, rule(seeds), max_new_tokens=9)
        if rule([0]) is not greedy: assert len({len(r.completion_ids) for r in whole}) > 2, "rows end at different steps"
        for size in (2, 5): assert_same(generate(lm, prompts, rule(seeds), max_new_tokens=9, batch_size=size), whole)
        assert_same([generate(lm, [p], rule([s]), max_new_tokens=9)[0] for p, s in zip(prompts, seeds)], whole)
        order = [4, 0, 8, 2, 7, 1, 6, 3, 5]
        assert_same(generate(lm, [prompts[i] for i in order], rule([seeds[i] for i in order]), max_new_tokens=9, batch_size=4), [whole[i] for i in order])


@pytest.mark.parametrize("arch", WRITERS)
def test_dropping_finished_rows_changes_nothing(arch, lms):
    "Written on as if nothing ever ended, and cut off at the first end: the same rollouts."
    lm, seeds = lms(arch), list(range(len(TEXTS)))
    prompts = [encode_prompt(lm, t) for t in TEXTS]
    dropped = generate(lm, prompts, sampler(seeds), max_new_tokens=12)
    kept = generate(Endless(lm.model, lm.tokenizer, lm.kind), prompts, sampler(seeds), max_new_tokens=12)
    assert any(r.info["finished"] and len(r.completion_ids) < 12 for r in dropped) and all(len(r.completion_ids) == 12 for r in kept)
    for a, b in zip(dropped, kept):
        n = next((i + 1 for i, t in enumerate(b.completion_ids) if t in lm.eos_ids), 12)
        assert a.completion_ids == b.completion_ids[:n] and a.info["finished"] == (a.completion_ids[-1] in lm.eos_ids)
        assert a.logprobs == pytest.approx(b.logprobs[:n], abs=1e-10, rel=0)


@pytest.mark.parametrize("arch", WRITERS)
def test_greedy_is_generates_greedy(arch, lms):
    lm = lms(arch)
    prompts = [encode_prompt(lm, t) for t in TEXTS]
    for ours, p in zip(generate(lm, prompts, greedy, max_new_tokens=10, batch_size=4), prompts):
        ids = torch.tensor([p])
        theirs = lm.model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=10, do_sample=False, pad_token_id=lm.pad_id)
        assert theirs[0, 1 if arch == "t5" else len(p) :].tolist() == ours.completion_ids
        assert ours.info["kl"] == pytest.approx(-sum(ours.logprobs), abs=1e-9)


@pytest.mark.parametrize("arch", WRITERS)
def test_completion_logprobs_are_the_samplers(arch, lms):
    lm = lms(arch)
    prompts = [encode_prompt(lm, t) for t in TEXTS]
    said = generate(lm, prompts, sampler(list(range(len(TEXTS))), temperature=1.3, top_k=30), max_new_tokens=9, batch_size=4)
    with torch.no_grad(): logprobs, mask = completion_logprobs(lm, prompts, [r.completion_ids for r in said])
    assert mask.sum(1).tolist() == [len(r.completion_ids) for r in said] == [sum(r.mask) for r in said]
    for row, m, r in zip(logprobs, mask.bool(), said):
        torch.testing.assert_close(row[m], torch.tensor(r.logprobs, dtype=torch.float64), atol=1e-10, rtol=0)
        with torch.no_grad(): alone, _ = completion_logprobs(lm, [r.prompt_ids], [r.completion_ids])
        torch.testing.assert_close(alone[0], row[m], atol=1e-10, rtol=0)


@pytest.mark.parametrize("arch", WRITERS)
def test_cost_counts_real_tokens(arch, lms):
    lm, cost = lms(arch), Cost()
    prompts = [encode_prompt(lm, t) for t in TEXTS]
    said = generate(lm, prompts, sampler(list(range(len(TEXTS)))), max_new_tokens=6, batch_size=3, cost=cost)
    fed = sum(len(r.completion_ids) - 1 for r in said)  # the last token of a row is never fed
    assert cost.lm_tokens == sum(map(len, prompts)) + fed + (len(prompts) if arch == "t5" else 0)
    assert cost.rm_tokens == cost.rm_forwards == 0 and cost.lm_forwards >= 3
    assert generate(lm, [], greedy) == []
    none = generate(lm, prompts[:2], greedy, max_new_tokens=0)
    assert [(r.completion_ids, r.info["finished"]) for r in none] == [([], False)] * 2


@pytest.mark.parametrize("arch", CAUSAL)
def test_prompts_fit_or_are_refused(arch, lms):
    lm = lms(arch)
    lm = Endless(lm.model, lm.tokenizer)
    word = encode_completion(lm, "cat", eos=False)[-1:]
    assert lm.context == 256 and len(generate(lm, [word * 250], greedy, max_new_tokens=6)[0].completion_ids) == 6
    told = line_of(generate, lm, [word, word * 251], greedy, max_new_tokens=6)
    assert "prompt 1" in told and "251" in told and "256" in told
    assert "empty" in line_of(generate, lm, [word, []], greedy)


def test_encoder_decoders_read_long_prompts(lms):
    lm = lms("t5")
    assert len(generate(Endless(lm.model, lm.tokenizer, "seq2seq"), [encode_prompt(lm, "cat " * 300)], greedy, max_new_tokens=3)[0].completion_ids) == 3


# ---------------------------------------------------------------- noise and rules


def test_counter_gumbel_is_gumbel():
    from scipy import stats

    noise = counter_gumbel(torch.arange(4000), 3, torch.arange(10).expand(4000, 10))
    assert noise.dtype == torch.float64 and noise.isfinite().all()
    assert stats.kstest(noise.flatten().numpy(), "gumbel_r").pvalue > 1e-3
    again = counter_gumbel(torch.arange(4000), 3, torch.arange(10).expand(4000, 10))
    assert torch.equal(noise, again)
    order = torch.randperm(10)
    assert torch.equal(counter_gumbel(torch.arange(4000), 3, order.expand(4000, 10)), noise[:, order])
    rows = torch.randperm(4000)[:7]
    assert torch.equal(counter_gumbel(rows, 3, torch.arange(10).expand(7, 10)), noise[rows])


def test_counter_gumbel_is_independent():
    "Between neighbouring seeds, steps and tokens, and for seeds as far apart as hashes are."
    n, ids = 20_000, torch.arange(3)
    far = torch.randint(0, 2**63 - 1, (n,), generator=torch.Generator().manual_seed(0))
    for seeds in (torch.arange(n), far, torch.arange(n) * 2**40, -torch.arange(n)):
        here = counter_gumbel(seeds, 0, ids.expand(n, 3)).exp().neg().exp()  # uniform again
        others = [here[:, 1], counter_gumbel(seeds, 1, ids[:1].expand(n, 1))[:, 0], counter_gumbel(seeds + 1, 0, ids[:1].expand(n, 1))[:, 0]]
        for other in others:
            r = torch.corrcoef(torch.stack([here[:, 0], other.argsort().argsort().double()]))[0, 1]
            assert abs(r) < 4.5 / n**0.5


def chi_square(picks, probs) -> float:
    "p-value of counts against probabilities."
    from scipy import stats

    return stats.chisquare(torch.bincount(picks, minlength=len(probs)).numpy(), (probs / probs.sum() * len(picks)).numpy()).pvalue


def test_draws_follow_the_rule():
    n, probs = 40_000, torch.tensor([0.4, 0.25, 0.2, 0.1, 0.04, 0.01], dtype=torch.float64)
    rule, ids = probs.log().expand(n, 6), torch.tensor([5, 900, 3, 17, 0, 1]).expand(n, 6)
    first, second = (draw(torch.arange(n), t, ids, rule) for t in (0, 1))
    assert chi_square(first, probs) > 1e-3 and chi_square(second, probs) > 1e-3
    assert chi_square(first * 6 + second, torch.outer(probs, probs).flatten()) > 1e-3, "steps are independent"
    assert chi_square(first[:-1] * 6 + first[1:], torch.outer(probs, probs).flatten()) > 1e-3, "rows are independent"
    flipped = draw(torch.arange(n), 0, ids.flip(1), rule.flip(1))
    assert torch.equal(5 - flipped, first), "the order of the candidates doesn't matter"


def test_sampler_follows_the_restricted_model():
    n, logits = 40_000, torch.randn(12, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 1.5
    step = Step(2, list(range(n)), logits.log_softmax(-1).expand(n, 12), [[0]] * n, [[0, 0]] * n)
    for options in ({}, dict(temperature=0.6), dict(top_k=4), dict(top_p=0.7), dict(temperature=1.7, top_k=9, top_p=0.8)):
        tokens, kl = sampler(list(range(n)), **options)(step)
        candidates, kept = restrict(step.logprobs[:1], **options)
        probs = torch.zeros(12, dtype=torch.float64).index_put((candidates[0],), kept[0].exp())
        assert set(tokens.tolist()) <= set(probs.nonzero().flatten().tolist())
        assert chi_square(torch.searchsorted(probs.nonzero().flatten(), tokens), probs[probs > 0]) > 1e-3
        brute = sum(p * (p.log() - q) for p, q in zip(probs, step.logprobs[0]) if p > 0)
        assert kl[0].item() == pytest.approx(brute.item(), abs=1e-10) and kl.std() < 1e-12


def test_restrict_is_the_librarys_warpers():
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    logits = torch.randn(50, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2
    for temperature in (0.5, 1.0, 2.0):
        for k in (0, 1, 7, 40, 100):
            for p in (0.05, 0.5, 0.95, 1.0):
                theirs = TemperatureLogitsWarper(temperature)(None, logits)
                if k: theirs = TopKLogitsWarper(k)(None, theirs)
                if p < 1: theirs = TopPLogitsWarper(p)(None, theirs)
                candidates, kept = restrict(logits.log_softmax(-1), temperature, k, p)
                ours = torch.full_like(logits, -torch.inf).scatter(1, candidates, kept)
                torch.testing.assert_close(ours, theirs.log_softmax(-1), atol=1e-10, rtol=0)
                assert (kept[:, :-1] >= kept[:, 1:]).all()


def test_degenerate_rules(lms):
    "A nucleus of nothing keeps the best token, with a KL that is a number; a temperature of nothing is refused."
    lm = lms("llama")
    prompts = [encode_prompt(lm, t) for t in TEXTS]
    wanted = generate(lm, prompts, greedy, max_new_tokens=5)
    for rule in (sampler([1] * 9, top_k=1), sampler([1] * 9, top_p=0.0), sampler([1] * 9, top_p=1e-9), sampler([1] * 9, temperature=1e-5)):
        assert_same(generate(lm, prompts, rule, max_new_tokens=5), wanted)
    for t in (0, -1.0): assert "greedy" in line_of(sampler, [1], temperature=t)


def test_rule_kl_is_exact():
    g = torch.Generator().manual_seed(0)
    model = torch.randn(6, 9, generator=g, dtype=torch.float64).log_softmax(-1)
    rule = torch.randn(6, 9, generator=g, dtype=torch.float64).log_softmax(-1)
    rule[:, 5:] = -torch.inf
    rule = rule.log_softmax(-1)
    brute = torch.tensor([sum(r.exp() * (r - m) for r, m in zip(a, b) if r > -torch.inf) for a, b in zip(rule, model)])
    torch.testing.assert_close(rule_kl(rule, model), brute, atol=1e-12, rtol=0)
    assert (rule_kl(model, model) == 0).all() and (rule_kl(rule, model) > 0).all()


def test_padding_and_masks():
    ids, mask = pad([[5], [6, 7, 8], []], 9)
    assert ids.tolist() == [[5, 9, 9], [6, 7, 8], [9, 9, 9]] and mask.tolist() == [[1, 0, 0], [1, 1, 1], [0, 0, 0]]
    left, _ = pad([[5], [6, 7, 8]], 9, left=True)
    assert left.tolist() == [[9, 9, 5], [6, 7, 8]]
    assert masked_mean(torch.tensor([[1.0, 2.0, 99.0], [1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]), mask).tolist() == [1.0, 2.0, 0.0]


def test_half_precision_logits_are_widened():
    logits = torch.randn(2, 5, 300, generator=torch.Generator().manual_seed(0)).bfloat16()
    ids = torch.randint(300, (2, 5))
    ours = token_logprobs(logits, ids)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours.double(), token_logprobs(logits.double(), ids), atol=1e-5, rtol=0)


# ---------------------------------------------------------------- ids


def family(arch):
    "A tokenizer as encode_* take it."
    return SimpleNamespace(tokenizer=make_tokenizer(arch), kind="seq2seq" if arch == "t5" else "causal")


PAIRS = [(a, b) for a in ("the cat", "my boss wants me to work on sunday", "two apples and 14 more", "she") for b in ("sat on the mat", "zebra", "( no )", "x")]


def assert_joint(lm, sound=True):
    "Prompt and completion behave at the seam as in the joined text."
    t = lm.tokenizer
    for prompt, completion in PAIRS:
        p, c = encode_prompt(lm, prompt), encode_completion(lm, completion)
        assert t.decode(p + c, skip_special_tokens=True) == f"{prompt} {completion}"
        assert encode_completion(lm, completion, eos=False) == (c[:-1] if t.eos_token_id is not None else c)
        if t.eos_token_id is not None: assert c[-1] == t.eos_token_id and t.eos_token_id not in c[:-1]
        if lm.kind == "causal": assert p + encode_completion(lm, completion, eos=False) == encode_prompt(lm, f"{prompt} {completion}"), "as the joined text's ids"
    assert encode_completion(lm, "") == [t.eos_token_id] * (t.eos_token_id is not None) and encode_completion(lm, "", eos=False) == []


@pytest.mark.parametrize("arch", ARCHS)
def test_the_seam(arch):
    lm = family(arch)
    assert_joint(lm)
    p, t = encode_prompt(lm, "the cat"), lm.tokenizer
    starts = {"llama": t.bos_token_id, "gemma": t.bos_token_id, "bert": t.cls_token_id, "roberta": t.bos_token_id, "deberta-v2": t.cls_token_id}
    assert p[0] == starts.get(arch, p[0]) and (p[-1] == t.eos_token_id) == (arch == "t5")


def test_word_tokenizer_keeps_the_seam():
    lm = SimpleNamespace(tokenizer=word_tokenizer(["the cat sat on my mat .", "zebra"]), kind="causal")
    joint = encode_prompt(lm, "my cat") + encode_completion(lm, "sat on zebra .")
    assert lm.tokenizer.decode(joint) == "my cat sat on zebra . <eos>"
    without_the = SimpleNamespace(tokenizer=word_tokenizer(["my cat sat"]), kind="causal")
    assert without_the.tokenizer.decode(encode_completion(without_the, "sat")) == "sat <eos>", "the anchor word may be unknown"


@pytest.mark.parametrize("arch", WRITERS)
def test_an_end_mark_in_the_data_is_no_end(arch):
    lm = family(arch)
    eos = lm.tokenizer.eos_token
    c = encode_completion(lm, f"sat on {eos} the mat {eos}")
    assert c[-1] == lm.tokenizer.eos_token_id and lm.tokenizer.eos_token_id not in c[:-1]


def test_chat_wraps_the_prompt():
    lm = family("llama")
    assert "chat: false" in line_of(encode_prompt, lm, "hello", chat=True)
    lm.tokenizer.chat_template = "{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %}{% if add_generation_prompt %} [answer]{% endif %}"
    assert lm.tokenizer.decode(encode_prompt(lm, "the cat", chat=True), skip_special_tokens=True).strip() == "[user] the cat [answer]"


@pytest.mark.parametrize("arch", WRITERS)
def test_turns_are_dropped_from_the_left(arch):
    lm = family(arch)
    turns = ["\n\nHuman: what did you eat today ?", "\n\nAssistant: soup and bread .", "\n\nHuman: and then ?", "\n\nAssistant:"]
    whole = encode_prompt(lm, "".join(turns))
    assert fit_turns(lm, turns, len(whole)) == (whole, 0)
    for budget in range(len(whole) - 1, 0, -1):
        ids, dropped = fit_turns(lm, turns, budget)
        if ids is None: assert dropped == 4 and budget < len(encode_prompt(lm, "Assistant:")); continue
        assert 1 <= dropped < 4 and len(ids) <= budget and ids == encode_prompt(lm, "".join(turns[dropped:]).lstrip())
        fuller = "".join(turns[dropped - 1 :])
        assert len(encode_prompt(lm, fuller.lstrip() if dropped > 1 else fuller)) > budget, "no more is dropped than must be"
    assert fit_turns(lm, [], 10) == (None, 0)


# ---------------------------------------------------------------- loading


def test_saved_and_loaded_again(tmp_path, lms):
    for arch in WRITERS:
        lm = load_lm(str(make_model(arch, tmp_path / f"{arch}0")))
        save_lm(lm, tmp_path / arch)
        again = load_lm(str(tmp_path / arch))
        assert again.kind == lm.kind == ("seq2seq" if arch == "t5" else "causal") and again.device.type == "cpu" and not again.model.training
        assert again.model.dtype == torch.float64 and all(torch.equal(a, b) for a, b in zip(lm.model.parameters(), again.model.parameters()))
        assert again.eos_ids == lm.eos_ids == (lm.tokenizer.eos_token_id,) and again.pad_id in (0, lm.tokenizer.eos_token_id)


def test_build_lm_leaves_the_random_state_alone():
    tok = word_tokenizer(["a b c"])
    state = torch.random.get_rng_state()
    a, b, c = build_lm(tok, width=16), build_lm(tok, width=16), build_lm(tok, width=16, seed=1)
    assert torch.equal(state, torch.random.get_rng_state())
    weights = [torch.cat([p.flatten() for p in lm.model.parameters()]) for lm in (a, b, c)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_names_that_are_no_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    for name in ("/nowhere/at/all", "./nope", "~/nope-nope", "a/b/c", "zoo/nothing", str(tmp_path / "file")):
        assert name in line_of(load_lm, name) and "no such model folder" in line_of(locate_model, name)
    assert "no model named" in line_of(load_lm, "")
    assert "config.json" in line_of(load_lm, "empty")
    for name in ("no-such-model", "somebody/no-such-model"):
        assert name in (told := line_of(load_lm, name)) and "hub" in told and "local folder" in told
    (tmp_path / "somebody" / "model").mkdir(parents=True)
    (tmp_path / "somebody" / "model" / "config.json").write_text("{}")
    assert locate_model("somebody/model") == str(tmp_path / "somebody" / "model"), "a folder here wins over the hub"


def test_a_models_key_is_its_content(tmp_path, folders, monkeypatch):
    "A copy elsewhere has the same key, another weight another; a hub id stands for itself, and nothing is loaded or asked."
    shutil.copytree(folders("gpt2"), tmp_path / "copy")
    shutil.copytree(folders("gpt2"), tmp_path / "changed")
    same = model_key(str(folders("gpt2")))
    monkeypatch.chdir(tmp_path)
    assert model_key(str(tmp_path / "copy")) == model_key("copy") == same != model_key(str(folders("llama")))
    weights = tmp_path / "changed" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    assert model_key("changed") != same
    assert model_key("somebody/some-model") == "somebody/some-model" and model_key("zoo/stories") != model_key("zoo/posts")
    assert "no such model folder" in line_of(model_key, "./nowhere") and "no model named" in line_of(model_key, "")


def test_folders_that_do_not_load(tmp_path, folders):
    good = folders("llama")

    def broken(name, change):
        shutil.copytree(good, tmp_path / name)
        change(tmp_path / name)
        return line_of(load_lm, str(tmp_path / name))

    def config(**values): return lambda d: (d / "config.json").write_text(json.dumps(json.loads((d / "config.json").read_text()) | values))
    def cut(file, n): return lambda d: (d / file).write_bytes((d / file).read_bytes()[:n])
    assert "no tokenizer" in broken("a", lambda d: [p.unlink() for p in d.glob("*token*")])
    assert "config.json" in broken("b", lambda d: (d / "config.json").unlink())
    assert "model.safetensors" in broken("c", lambda d: (d / "model.safetensors").unlink())
    for i, n in enumerate((0, 5, 3000)): assert "doesn't load" in broken(f"d{i}", cut("model.safetensors", n))
    assert "doesn't load" in broken("e", cut("tokenizer.json", 2000))
    assert "doesn't load" in broken("f", cut("config.json", 1))
    assert "foo" in broken("g", config(model_type="foo"))
    assert "sizes" in broken("h", config(hidden_size=64))
    assert "gated model" not in broken("aggregated-401", lambda d: (d / "model.safetensors").unlink()), "a folder's name is no hub's answer"
    for arch in ("llama", "bert"): assert "no weights for" in line_of(load_lm, str(folders(arch, "reward")))


def test_gated_models_say_what_to_do(monkeypatch):
    import transformers

    def refuse(*args, **kw): raise OSError("You are trying to access a gated repo.\nMake sure to have access to it at https://example.org\n401 Client Error.")
    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", refuse)
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", refuse)
    assert "HF_TOKEN" in line_of(load_lm, "google/gemma-2b") and "HF_TOKEN" in line_of(load_pretrained, "google/gemma-2b", "AutoModel")


# ---------------------------------------------------------------- a real model


@pytest.mark.slices
def test_a_real_model_writes_on(models_dir):
    lm = load_lm(str(models_dir / "stories260k"))
    assert lm.eos_ids == (1,) and lm.context == 512
    p, c = encode_prompt(lm, "Once upon a time"), encode_completion(lm, "there was a little girl named Lily.")
    assert p[0] == 1 and 1 not in p[1:] and c[-1] == 1 and 1 not in c[:-1]
    assert_joint(lm)
    said = generate(lm, [p, encode_prompt(lm, "Tom and his")], greedy, max_new_tokens=24)
    assert said[0].text(lm.tokenizer).startswith(", there was a little girl named")
    ids = torch.tensor([p])
    assert lm.model.generate(input_ids=ids, max_new_tokens=24, do_sample=False)[0, len(p) :].tolist() == said[0].completion_ids
    naive = lm.tokenizer("there was a little girl named Lily.").input_ids
    assert naive[0] == 1, "encoded alone it begins with the end of a text"
    comma = encode_prompt(lm, "Once upon a time,")
    with torch.no_grad(): good, bad = (completion_logprobs(lm, [comma], [x])[0].sum().item() for x in (c[:-1], naive))
    assert good > -8 and good > bad + 5
    drawn = generate(lm, [p] * 6, sampler(list(range(6)), top_p=0.9), max_new_tokens=40, batch_size=4)
    assert len({tuple(r.completion_ids) for r in drawn}) == 6 and all(r.info["kl"] > 0 for r in drawn)


@pytest.mark.slices
def test_a_real_tokenizer_keeps_the_seam(models_dir):
    from transformers import GPT2Tokenizer

    tokenizer = GPT2Tokenizer.from_pretrained(str(models_dir / "gpt2-tokenizer"))
    assert_joint(SimpleNamespace(tokenizer=tokenizer, kind="causal"))
