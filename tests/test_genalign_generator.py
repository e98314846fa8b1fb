"rlgen.genalign.generator: prompts, texts and their noise, adapters, and steps whose expectation is the gradient that enumeration gives."
import copy
import itertools
import math
from collections import Counter

import pytest
import torch
import transformers

from helpers import line_of
from rlgen.core import seed_for, settings
from rlgen.genalign import generator
from rlgen.genalign.data import Item
from rlgen.genalign.generator import ALGORITHMS, Adapters, Learner, Request, adapt, items_of, load_generator, mean_kl, prompt_text, requests, save_generator, tuning_rows, write
from rlgen.grpo import group_advantages
from rlgen.lm import LM, build_lm, completion_logprobs, encode_completion, encode_prompt, load_lm, masked_sum, word_tokenizer
from rlgen.policy import gae, token_rewards
from rlgen.sampling import Rollout, generate, sampler
from rlgen.train import sft
from rlgen.worlds import genalign as world

LABELS, DECODERS = ("cross", "glad"), ("gpt2", "llama", "gemma")
TARGETS = dict(gpt2=("c_attn", "c_proj"), llama=("q_proj", "down_proj"), gemma=("q_proj", "down_proj"))
POOL = [Item(text, label) for text, label in world.golden("pool", 40)]
pytestmark = pytest.mark.usefixtures("double")


@pytest.fixture
def machine(monkeypatch):
    "machine(RLGEN_…=…): other settings, for one test."
    def change(**given):
        for k, v in given.items(): monkeypatch.setenv(k, v)
        settings.cache_clear()
    yield change
    monkeypatch.undo()
    settings.cache_clear()


def weights(module): return torch.cat([p.detach().flatten() for p in module.parameters()])


def seeds(n, name="test"): return [seed_for(0, name, i) for i in range(n)]


def pool(label, number, k=3): return [t for t in POOL if t.label == label][number : number + k]


def louder(lm, **boost):
    "The model, with some tokens' logits raised, and no half characters."
    extra = torch.tensor([-60.0 * piece.startswith("<0x") for piece in lm.tokenizer.convert_ids_to_tokens(range(len(lm.tokenizer)))], dtype=torch.float64)
    for token, much in boost.items(): extra[dict(newline=newline_of(lm), end=lm.tokenizer.eos_token_id)[token]] = much
    lm.model.lm_head.register_forward_hook(lambda module, args, out: out + extra)
    return lm


def newline_of(lm): return next(i for piece, i in lm.tokenizer.get_vocab().items() if piece in ("Ċ", "<0x0A>"))


# ---------------------------------------------------------------- prompts


@pytest.mark.parametrize("template", ["{text}", "label: {label}", "{label} {label} {text}", "{label} {text} {text}", "{text} of {label}", "{label}: {text}.", "{label}: {text} ", "{label}: {text }", ""])
def test_a_template_needs_its_fields(template):
    assert "prompt_template" in (said := line_of(prompt_text, "glad", template=template)) and repr(template) in said and "at its end" in said


def test_prompts_are_the_pages_that_the_generator_has_read():
    lengths = Counter()
    for prompt, _ in world.pages(200, 3):
        *shown, asked = prompt.split(world.BETWEEN)
        examples = [Item(text, head.removeprefix("label: ")) for head, text in (block.split("\ntext: ") for block in shown)]
        lengths[len(shown)] += 1
        assert prompt_text(asked.removeprefix("label: ").removesuffix("\ntext:"), examples) == prompt
    assert set(lengths) == {0, 1, 2, 3, 4} and generator.BETWEEN == world.BETWEEN


def test_the_instruction_stands_in_front():
    one = Item("all well .", "glad")
    assert prompt_text("cross", instruction="Be brief.") == "Be brief.\n\nlabel: cross\ntext:" and prompt_text("cross", [one], instruction="Be brief.") == "Be brief.\n\n" + prompt_text("cross", [one])
    assert prompt_text("cross", [one], "A {label} review: {text}") == "A glad review: all well .\n\nA cross review:" and "  " not in prompt_text("cross", template="{label}   {text}")


def test_braces_survive():
    odd = [Item("{label} of {text} {} {0} {{x}} %s", "{}"), Item("a } b {", "{label}")]
    assert prompt_text("{x}", odd, instruction="{label} {text}") == "{label} {text}\n\nlabel: {}\ntext: {label} of {text} {} {0} {{x}} %s\n\nlabel: {label}\ntext: a } b {\n\nlabel: {x}\ntext:"


# ---------------------------------------------------------------- requests


def test_labels_by_turns():
    lm, asked = load_lm("zoo/drafts"), []
    found = requests(lm, ("a", "b", "c"), 7, lambda label, i: asked.append((label, i)) or (), 20)
    assert [r.label for r in found] == list("abcabca") and asked == list(zip("abcabca", range(7))) and requests(lm, LABELS, 0) == []
    two = requests(lm, LABELS, 4, lambda label, i: pool(label, i), 20)
    assert [r.examples for r in two] == [tuple(pool(r.label, i)) for i, r in enumerate(two)] and all(list(r.ids) == encode_prompt(lm, prompt_text(r.label, r.examples)) for r in two)
    own = requests(lm, LABELS, 2, lambda label, i: pool(label, i), 20, "{label} : {text}", "now")
    assert [list(r.ids) for r in own] == [encode_prompt(lm, prompt_text(r.label, r.examples, "{label} : {text}", "now")) for r in own]


def test_examples_leave_from_the_front():
    lm = build_lm(word_tokenizer([" ".join(world.vocabulary())]), width=8, layers=1, context=60)
    left = Counter()
    for room in (5, 20, 35, 50, 56):
        for r, (label, i) in zip(requests(lm, LABELS, 4, lambda label, i: pool(label, i), room), ((LABELS[i % 2], i) for i in range(4))):
            shown = pool(label, i)
            ends = [shown[k:] for k in range(4)]
            fits = next(end for end in ends if len(encode_prompt(lm, prompt_text(label, end))) + room <= 60)
            assert list(r.examples) == fits and list(r.ids) == encode_prompt(lm, prompt_text(label, fits))
            left[len(fits)] += 1
    assert set(left) == {0, 1, 2, 3}
    assert "'cross' has 3 tokens" in (said := line_of(requests, lm, LABELS, 2, lambda label, i: pool(label, i), 58)) and "58 new" in said and "60" in said and requests(lm, LABELS, 2, max_new_tokens=57)


def test_a_chat_template_has_to_be_there():
    lm = build_lm(word_tokenizer(["user: bot: label: text: glad"]), width=8, layers=1, context=60)
    assert "no chat template" in line_of(requests, lm, ["glad"], 1, chat=True, max_new_tokens=9)
    lm.tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}{% endfor %}{% if add_generation_prompt %} bot:{% endif %}"
    assert lm.tokenizer.decode(requests(lm, ["glad"], 1, chat=True, max_new_tokens=9)[0].ids) == "user: label: glad text: bot:"


# ---------------------------------------------------------------- writing


@pytest.mark.parametrize("arch", DECODERS)
def test_texts_dont_know_of_each_other(arch, folders):
    "The same text for the same seed, in any batch, order and company."
    lm = louder(load_lm(str(folders(arch))), newline=4, end=2)
    asked = requests(lm, LABELS, 10, lambda label, i: pool(label, i, i % 3), 12)
    how = dict(temperature=0.8, top_p=0.9, max_new_tokens=12)
    whole, noise = write(lm, asked, seeds(10), **how), seeds(10)
    def facts(r): return r.prompt_ids, r.completion_ids, r.info["text"], r.info["label"], r.info["finished"]
    def same(a, b): return facts(a) == facts(b) and a.logprobs == pytest.approx(b.logprobs, abs=1e-9)
    for size in (1, 3, 64): assert all(map(same, whole, write(lm, asked, noise, batch_size=size, **how)))
    assert all(map(same, whole[::-1], write(lm, asked[::-1], noise[::-1], batch_size=4, **how))) and same(whole[6], write(lm, [asked[6]], [noise[6]], **how)[0])
    assert len({r.info["text"] for r in whole}) > 5 and len({len(r.prompt_ids) for r in whole}) > 2
    assert not same(whole[6], write(lm, [asked[6]], [noise[5]], **how)[0]) and [(t.text, t.label) for t in items_of(whole)] == [(r.info["text"], q.label) for r, q in zip(whole, asked)]


@pytest.mark.parametrize("arch", DECODERS)
def test_a_blank_line_ends_a_text(arch, folders):
    "Text, tokens and log-probabilities are cut together, and nothing else is."
    lm = louder(load_lm(str(folders(arch))), newline=6, end=2)
    asked = requests(lm, LABELS, 40, max_new_tokens=20)
    raw, cut = generate(lm, [list(q.ids) for q in asked], sampler(seeds(40)), 20), write(lm, asked, seeds(40), max_new_tokens=20)
    def read(ids): return lm.tokenizer.decode(ids, skip_special_tokens=True).lstrip()
    shorter, led = 0, 0
    for a, b in zip(raw, cut):
        n = len(b.completion_ids)
        assert b.completion_ids == a.completion_ids[:n] and b.logprobs == a.logprobs[:n] and len(b.logprobs) == n
        assert b.info["text"] == read(a.completion_ids).split("\n\n")[0].strip() and "\n\n" not in b.info["text"] and "\n\n" not in read(b.completion_ids[:-1])
        assert b.info["finished"] == ("\n\n" in read(b.completion_ids) or b.completion_ids[-1] == lm.tokenizer.eos_token_id)
        shorter += n < len(a.completion_ids)
        led += b.completion_ids[0] == newline_of(lm) and bool(b.info["text"])
        if "\n\n" not in read(a.completion_ids): assert b.completion_ids == a.completion_ids and b.info["finished"] == a.info["finished"]
    assert 5 < shorter < 40 and led, "blank lines in front of a text don't end it"
    now, mask = completion_logprobs(lm, [r.prompt_ids for r in cut], [r.completion_ids for r in cut])
    assert [x for r, m in zip(now.tolist(), mask.bool().tolist()) for x, real in zip(r, m) if real] == pytest.approx([x for r in cut for x in r.logprobs], abs=1e-9)


def test_a_blank_line_inside_a_piece(folders):
    "A piece that is itself a blank line ends the text and is learned."
    lm = load_lm(str(folders("gpt2", vocab_texts=("a b\n\n",) * 5)))
    blank = lm.tokenizer("\n\n").input_ids
    assert len(blank) == 1
    r = Rollout([1], [*lm.tokenizer("a b").input_ids, *blank, *lm.tokenizer("c d").input_ids], [-1.0] * 20, info=dict(finished=False))
    generator._cut(r, lm.tokenizer)
    assert r.info == dict(finished=True, text="a b") and r.completion_ids[-1:] == blank and len(r.logprobs) == len(r.completion_ids) < 20


def test_empty_texts(folders):
    silent = louder(load_lm(str(folders("gpt2"))), end=60)
    asked = requests(silent, LABELS, 3, max_new_tokens=6)
    found = write(silent, asked, seeds(3), max_new_tokens=6)
    assert [r.completion_ids for r in found] == [[silent.tokenizer.eos_token_id]] * 3 and all(r.info["finished"] and len(r.logprobs) == 1 for r in found)
    assert [(t.text, t.label) for t in items_of(found)] == [("", "cross"), ("", "glad"), ("", "cross")]
    blank = write(louder(load_lm(str(folders("gpt2"))), newline=60), asked, seeds(3), max_new_tokens=6)
    assert all(r.info["text"] == "" and len(r.completion_ids) == 6 and not r.info["finished"] for r in blank)


@pytest.mark.parametrize("temperature, top_p", [(1.0, 1.0), (0.6, 1.0), (1.7, 0.85), (1.0, 0.6)])
def test_temperature_and_nucleus(temperature, top_p):
    "Frequencies of 4000 first tokens against the rule written out; log-probabilities are those of temperature 1."
    lm, start = few_words()
    with torch.no_grad(): logits = lm.model(torch.tensor([start])).logits[0, -1]
    probs = (logits / temperature).softmax(-1)
    order, kept, mass = probs.argsort(descending=True).tolist(), [], 0.0
    for i in order:
        if mass < top_p: kept.append(i)
        mass += probs[i].item()
    wanted = torch.zeros(len(probs), dtype=torch.float64)
    wanted[kept] = probs[kept] / probs[kept].sum()
    found = write(lm, [Request("a", tuple(start))] * 4000, seeds(4000), temperature, top_p, 1, 4000)
    count = Counter(r.completion_ids[0] for r in found)
    assert set(count) <= set(kept) and (len(kept) < 5) == (top_p < 1) and all(abs(count[i] / 4000 - wanted[i].item()) < 0.03 for i in range(5))
    assert 0.25 < wanted.max() < 0.9 and found[0].logprobs[0] == pytest.approx(logits.log_softmax(-1)[found[0].completion_ids[0]].item())


# ---------------------------------------------------------------- models and adapters


def test_bits_need_a_gpu(machine, monkeypatch):
    for bits in ("4bit", "8bit"): assert "NVIDIA GPU" in (said := line_of(load_generator, "nowhere/at/all", bits)) and bits in said
    assert "did you mean '4bit'" in line_of(load_generator, "zoo/drafts", "4bits")
    machine(RLGEN_DEVICE="auto")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "NVIDIA GPU" in line_of(load_generator, "zoo/drafts", "8bit")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(generator.importlib.util, "find_spec", lambda name: None)
    assert ".[gpu]" in line_of(load_generator, "zoo/drafts", "8bit")


def test_generators_are_causal(folders):
    assert load_generator("zoo/drafts").kind == "causal" and "encoder-decoder" in line_of(load_generator, str(folders("t5"))) and "zoo/draft" in line_of(load_generator, "zoo/draft")


@pytest.mark.parametrize("arch, typo, meant", [("gpt2", "c_atn", "c_attn"), ("llama", "q_prj", "q_proj"), ("gemma", "dwn_proj", "down_proj")])
def test_layers_that_arent_there(arch, typo, meant, folders):
    lm = load_lm(str(folders(arch)))
    before = weights(lm.model)
    assert f"did you mean {meant!r}" in (said := line_of(adapt, lm, Adapters(r=2, targets=(meant, typo)))) and repr(typo) in said
    assert "lm_head" in line_of(adapt, lm, Adapters(r=2, targets=("lm_head",))), "the head stays as it is"
    assert torch.equal(weights(lm.model), before) and all(p.requires_grad for p in lm.model.parameters())


def test_rank_0_is_the_model_itself(folders, tmp_path):
    lm = load_generator(str(folders("llama")))
    assert adapt(lm, Adapters()) is lm and all(p.requires_grad for p in lm.model.parameters())
    lm.model.model.norm.weight.data += 0.5
    save_generator(lm, tmp_path / "out", str(folders("llama")), Adapters())
    assert torch.equal(weights(load_lm(str(tmp_path / "out")).model), weights(lm.model))


def test_adapters_are_seeded_and_start_at_nothing(folders):
    first = load_lm(str(folders("llama")))
    made = [adapt(load_lm(str(folders("llama"))), Adapters(2, seed=s)) for s in (1, 1, 2)]
    a, b, c = (torch.cat([p.flatten() for p in lm.model.parameters() if p.requires_grad]) for lm in made)
    assert torch.equal(a, b) and not torch.equal(a, c)
    ids = torch.arange(20).view(2, 10)
    for lm in made: torch.testing.assert_close(lm.model(ids).logits, first.model(ids).logits)
    state = torch.random.get_rng_state()
    adapt(load_lm(str(folders("llama"))), Adapters(2))
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("arch", DECODERS)
@pytest.mark.parametrize("targets", ["some", "all"])
def test_adapters_learn_alone_and_become_a_plain_model(arch, targets, folders, tmp_path):
    name, how = str(folders(arch)), Adapters(r=3, alpha=12, dropout=0.1, targets=TARGETS[arch] if targets == "some" else ())
    first, lm = load_lm(name), adapt(load_generator(name), how)
    learner = Learner(lm, lr=5e-2, epochs=2, kl_coef=0.1)
    asked = requests(lm, LABELS, 6, max_new_tokens=8)
    before = {n: p.detach().clone() for n, p in lm.model.named_parameters()}
    for k in range(4):
        told = learner.step(said := write(lm, asked, seeds(6, k), max_new_tokens=8), torch.linspace(-2, 2, 6), k)
    texts = [r.prompt_ids for r in said], [r.completion_ids for r in said]
    base = {n.replace(".base_layer", ""): p for n, p in lm.model.named_parameters() if "lora_" not in n}
    assert learner.frozen is None and base.keys() == dict(first.model.named_parameters()).keys() and all(torch.equal(p, base[n]) for n, p in first.model.named_parameters())
    moved = [not torch.equal(p, before[n]) for n, p in lm.model.named_parameters() if p.requires_grad]
    assert all(moved) and {n.split(".")[-4] for n, p in lm.model.named_parameters() if p.requires_grad} >= set(TARGETS[arch])
    with torch.no_grad():
        ours, (theirs, mask), fresh = learner.policy(*texts)[0], learner.reference(*texts), completion_logprobs(first, *texts)[0]
        torch.testing.assert_close(theirs * mask, fresh * mask, atol=1e-10, rtol=0)
        assert ((ours - theirs) * mask).abs().max() > 0.02 and torch.equal(learner.policy(*texts)[0], ours) and told["kl"] != 0
    assert all(p.requires_grad == ("lora_" in n) for n, p in lm.model.named_parameters())
    ids = torch.tensor([said[0].prompt_ids])
    with torch.no_grad(): wanted = lm.model(ids).logits
    save_generator(lm, tmp_path / "out", name, how)
    plain = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float64).eval()
    assert type(plain) is type(first.model) and plain.state_dict().keys() == first.model.state_dict().keys() and load_lm(str(tmp_path / "out")).tokenizer.get_vocab() == lm.tokenizer.get_vocab()
    with torch.no_grad():
        torch.testing.assert_close(plain(ids).logits, wanted, atol=1e-9, rtol=1e-7)
        assert (first.model(ids).logits - wanted).abs().max() > 0.01 and torch.equal(lm.model(ids).logits, wanted), "saving leaves the learner's model alone"


def test_dropout_is_for_fine_tuning(folders):
    lm = adapt(load_generator(str(folders("llama"))), Adapters(r=4, dropout=0.5))
    for p in lm.model.parameters():
        if p.requires_grad: p.data += 0.1
    told = Learner(lm, lr=1e-3).step(write(lm, requests(lm, LABELS, 4, max_new_tokens=6), seeds(4), max_new_tokens=6), torch.tensor([1.0, -1, 2, -2]))
    assert abs(told["approx_kl"]) < 1e-12 and told["clip_fraction"] == 0
    ids = torch.arange(10).view(1, 10)
    lm.model.train()
    assert not torch.equal(lm.model(ids).logits, lm.model(ids).logits)


def test_adapters_of_narrow_weights_are_wide(folders, tmp_path, machine):
    machine(RLGEN_DTYPE="bfloat16")
    name, how = str(folders("llama")), Adapters(r=4)
    lm = adapt(load_generator(name), how)
    assert {(p.requires_grad, p.dtype) for p in lm.model.parameters()} == {(True, torch.float32), (False, torch.bfloat16)}
    learner, asked = Learner(lm, lr=2e-2), requests(lm, LABELS, 4, max_new_tokens=6)
    for k in range(3): told = learner.step(write(lm, asked, seeds(4, k), max_new_tokens=6), torch.tensor([1.0, -1, 2, -2]), k)
    assert all(math.isfinite(x) for x in told.values()) and told["kl"] != 0
    save_generator(lm, tmp_path / "out", name, how)
    plain, ids = load_lm(str(tmp_path / "out")), torch.arange(10).view(1, 10)
    with torch.no_grad(): assert plain.model.dtype == torch.bfloat16 and (plain.model(ids).logits - lm.model(ids).logits).abs().max() < 0.05 < (load_lm(name).model(ids).logits - lm.model(ids).logits).abs().max()


# ---------------------------------------------------------------- all texts, listed


def few_words():
    "A model of five tokens, all of it in 64 bits, and a prompt."
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=5, n_positions=8, n_embd=16, n_layer=1, n_head=2, initializer_range=0.2, bos_token_id=1, eos_token_id=1))
    lm = LM(model.double().eval(), word_tokenizer(["a b"]))
    return lm, lm.tokenizer("a b").input_ids


def all_texts(end): return [[end], *([i, j] for i in range(5) if i != end for j in range(5))]


TEXTS = all_texts(1)  # of two tokens at most


def exact(model, start, temperature=1.0):
    "Log-probabilities of all texts, from the logits of plain forward passes."
    found = []
    for text in TEXTS:
        logprobs = (model(torch.tensor([start + text])).logits[0, len(start) - 1 : -1] / temperature).log_softmax(-1)
        found.append(logprobs[range(len(text)), text].sum())
    return torch.stack(found)


def shake(lm):
    "Move what is trained away from where it was."
    for p in lm.model.parameters():
        if p.requires_grad: p.data += 0.05 * torch.sin(torch.arange(p.numel(), dtype=p.dtype)).view_as(p)


def trained(lm): return [p for p in lm.model.parameters() if p.requires_grad]


def slopes(lm):
    "The trained weights' gradients, which are then forgotten."
    found = torch.cat([p.grad.flatten() for p in trained(lm)])
    for p in lm.model.parameters(): p.grad = None
    return found


def listed(algorithm, temperature, rank=0, beta=0.3, **options):
    "A shaken learner with a value head of its own mind, its prompt, what texts are worth, their probabilities, the gradient of E[A] - beta KL."
    lm, start = few_words()
    first = copy.deepcopy(lm.model)
    adapt(lm, Adapters(rank, alpha=4))
    learner = Learner(lm, algorithm, kl_coef=beta, temperature=temperature, lam=1.0, clip=math.inf, value_coef=0.0, **options)
    shake(lm)
    torch.nn.init.constant_(learner.policy.value.weight, 0.3)
    worth = torch.linspace(-1, 1, len(TEXTS), dtype=torch.float64)[torch.randperm(len(TEXTS), generator=torch.Generator().manual_seed(3))]
    ours = exact(lm.model, start, temperature)
    with torch.no_grad(): theirs = exact(first, start, temperature)
    (ours.exp() * (worth - beta * (ours - theirs))).sum().backward()
    assert ours.exp().sum().item() == pytest.approx(1) and (ours.exp() * (ours - theirs)).sum() > 1e-3
    return learner, start, worth, ours.detach().exp(), slopes(lm)


def alike(a, b): return torch.allclose(a, b, atol=1e-12, rtol=1e-9) and b.norm() > 0.1


@pytest.mark.parametrize("temperature, rank", [(1.0, 0), (0.7, 0), (1.4, 2), (1.0, 2)])
def test_ppo_follows_the_gradient_on_average(temperature, rank):
    learner, start, worth, probs, wanted = listed("ppo", temperature, rank)
    rows, told = learner.rows([Rollout(start, t) for t in TEXTS], worth)
    for p, row in zip(probs, rows): (-p * learner.loss(learner.policy, [row])[0]).backward()
    assert alike(slopes(learner.lm), wanted) and told["length"] == pytest.approx(41 / 21)
    assert learner.policy.value.weight.grad.abs().max() == 0


@pytest.mark.parametrize("temperature, rank", [(1.0, 0), (0.7, 2)])
def test_reinforce_follows_the_gradient_on_average(temperature, rank):
    "Over all pairs of texts: the baseline, each other's worth, is no bias."
    learner, start, worth, probs, wanted = listed("reinforce", temperature, rank)
    for i, j in itertools.combinations_with_replacement(range(len(TEXTS)), 2):
        rows, _ = learner.rows([Rollout(start, TEXTS[i]), Rollout(start, TEXTS[j])], worth[[i, j]])
        if i != j: (-2 * probs[i] * probs[j] * learner.loss(learner.policy, rows)[0]).backward()  # either may come first
        else: assert not any(row[3].any() for row in rows)
    assert alike(slopes(learner.lm) / 2, wanted)


def test_reinforce_compares():
    learner, start, worth, probs, _ = listed("reinforce", 1.0, beta=0.0)
    pair = [Rollout(start, TEXTS[3]), Rollout(start, TEXTS[8])]
    rows = [learner.rows(pair, worth[[3, 8]] + shift)[0] for shift in (0, 100)]
    for a, b in zip(*rows): torch.testing.assert_close(a[3], b[3])


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("longest", [math.inf, 0.1])
def test_a_step_goes_along_the_gradient(algorithm, longest):
    "Plain gradient descent in place of AdamW: the step of all texts at once, a token, as autograd has it, cut to its greatest length."
    learner, start, worth, _, _ = listed(algorithm, 0.7, beta=0.0, lr=0.5, max_grad_norm=longest)
    torch.nn.init.zeros_(learner.policy.value.weight)
    learner.optimizer = torch.optim.SGD(learner.policy.parameters())
    before = weights(learner.lm.model)
    counts = worth if algorithm == "ppo" else group_advantages(worth)[0]
    (counts * exact(learner.lm.model, start, 0.7)).sum().backward()
    way = slopes(learner.lm) / sum(map(len, TEXTS))
    told = learner.step([Rollout(start, t) for t in TEXTS], worth, factor=0.4)
    torch.testing.assert_close(weights(learner.lm.model), before + 0.4 * 0.5 * way * min(1, longest / way.norm().item()), atol=1e-7, rtol=0)
    assert told["grad_norm"] == pytest.approx(way.norm().item()) and told["clip_fraction"] == 0


# ---------------------------------------------------------------- steps


def made(algorithm="ppo", n=8, **options):
    "A learner of few words and a round that it wrote."
    lm, start = few_words()
    shake(lm)
    return Learner(lm, algorithm, **options), write(lm, [Request("a", tuple(start))] * n, seeds(n), max_new_tokens=4)


def test_unknown_algorithms():
    assert "did you mean 'ppo'" in line_of(Learner, few_words()[0], "ppo2")


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_nothing_earned_moves_nothing(algorithm):
    learner, texts = made(algorithm, kl_coef=0.0)
    before = weights(learner.policy)
    told = learner.step(texts, torch.zeros(8))
    assert torch.equal(weights(learner.policy), before) and told["grad_norm"] == 0


def test_equal_numbers_move_ppo_alone():
    "The published scalar: nobody is better than the others, yet PPO's value head expects nothing at first."
    moved = {}
    for algorithm in ALGORITHMS:
        learner, texts = made(algorithm, kl_coef=0.0)
        before = weights(learner.policy)
        learner.step(texts, torch.full((8,), 0.7))
        moved[algorithm] = (weights(learner.policy) - before).abs().max().item()
    assert moved["reinforce"] == 0 and moved["ppo"] > 1e-4


def test_discount_and_lambda_arrive():
    learner, texts = made(kl_coef=0.3, gamma=0.9, lam=0.5, temperature=0.7, micro_batch=3)
    torch.nn.init.constant_(learner.policy.value.weight, 0.3)
    shake(learner.lm)
    numbers, told = torch.arange(8.0).double() - 3.5, ([r.prompt_ids for r in texts], [r.completion_ids for r in texts])
    with torch.no_grad(): (logprobs, values, mask), (theirs, _) = learner.policy(*told), learner.reference(*told)
    for k, column in zip(range(2, 6), (logprobs, *(both := gae(token_rewards(numbers, logprobs, theirs, mask, 0.3), values, mask, 0.9, 0.5))[:1], values, both[1])):
        torch.testing.assert_close(torch.nn.utils.rnn.pad_sequence([r[k] for r in learner.rows(texts, numbers)[0]], batch_first=True), column * mask)


def test_the_value_head_learns_what_to_expect():
    def expected(rounds=30, way=None, **options):
        learner, texts = made(kl_coef=0.0, lr=2e-2, **options)
        if way: learner.optimizer = way(learner.policy.parameters())
        for _ in range(rounds): learner.step(texts, torch.full((8,), 0.7))
        with torch.no_grad(): _, values, mask = learner.policy([r.prompt_ids for r in texts], [r.completion_ids for r in texts])
        return values[mask.bool()]
    assert (expected(value_coef=1.0) - 0.7).abs().max() < 0.1 and not expected(value_coef=0.0).any()
    once, held, free = (expected(1, torch.optim.SGD, value_coef=1.0, epochs=n, value_clip=clip).mean().item() for n, clip in ((1, 10.0), (5, 1e-9), (5, 10.0)))
    assert held == pytest.approx(once, rel=0.1) and free > 2 * once > 0, "nothing pulls at values that have left the old ones' neighbourhood"


def test_a_group_of_one():
    learner, texts = made("reinforce", 1)
    assert "group of 1" in line_of(learner.step, texts, torch.ones(1))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_rate_of_nothing_changes_nothing(algorithm):
    before, moved = weights(made(algorithm)[0].policy), {}
    for factor in (0.0, 0.25, 1.0):
        learner, texts = made(algorithm)
        learner.step(texts, torch.arange(8.0) - 3.5, factor=factor)
        moved[factor] = weights(learner.policy) - before
    assert not moved[0.0].any() and moved[1.0].abs().max() > 1e-4
    torch.testing.assert_close(moved[0.25], moved[1.0] * 0.25)


@pytest.mark.parametrize("algorithm, options", [("ppo", dict(epochs=2, minibatches=2)), ("ppo", {}), ("reinforce", {})])
@pytest.mark.parametrize("micro", [1, 3, 50])
def test_small_passes_make_the_same_step(algorithm, options, micro):
    found = []
    for size in (0, micro):
        learner, texts = made(algorithm, kl_coef=0.3, micro_batch=size, lr=1e-2, **options)
        for k in range(2): told = learner.step(texts, torch.arange(8.0) ** 2 / 10 - 2, k)
        found.append((weights(learner.policy), told))
    (a, first), (b, second) = found
    torch.testing.assert_close(a, b, atol=1e-8, rtol=0)
    assert first == pytest.approx(second, abs=1e-8) and not torch.equal(a, weights(made(algorithm)[0].policy))


def test_clipping_stops_what_has_moved_enough():
    "After a step the old rows' gradient is that of the tokens that haven't moved in their direction yet."
    learner, texts = made(kl_coef=0.0, clip=1e-6, value_coef=0.0, lr=1e-2)
    numbers = torch.arange(8.0) - 3.5
    rows, _ = learner.rows(texts, numbers)
    learner.step(texts, numbers)
    loss, n, stats = learner.loss(learner.policy, rows)
    loss.backward()
    found = slopes(learner.lm)
    logprobs, _, mask = learner.policy([r.prompt_ids for r in texts], [r.completion_ids for r in texts])
    old, gained = (torch.nn.utils.rnn.pad_sequence([r[k] for r in rows], batch_first=True) for k in (2, 3))
    change = logprobs.detach() - old
    stopped = (change * gained > 0) & (change.abs() > 1e-6) & mask.bool()
    (-(logprobs - old).exp() * gained * mask * ~stopped).sum().backward()
    torch.testing.assert_close(found, slopes(learner.lm), atol=1e-12, rtol=1e-9)
    assert stats["clip_fraction"] == stopped.sum() and 0.5 < stopped.sum() / n < 1
    for epochs, clip, some in ((1, 1e-6, False), (2, 1e-6, True), (2, 10.0, False)):
        learner, texts = made(kl_coef=0.0, clip=clip, epochs=epochs)
        assert (learner.step(texts, numbers)["clip_fraction"] > 0.1) == some


def test_minibatches_are_the_rounds_own():
    def after(number):
        learner, texts = made(minibatches=4, lr=1e-2)
        learner.step(texts, torch.arange(8.0) - 3.5, number)
        return weights(learner.policy)
    assert torch.equal(after(1), after(1)) and not torch.equal(after(1), after(2))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_worth_is_learned_and_distance_has_its_price(algorithm):
    "Twelve rounds of sixty-four texts, seen by the sum over all texts."
    worth, after = torch.tensor([1.0 if 3 in t else 0.0 for t in TEXTS], dtype=torch.float64), {}
    for beta in (0.0, 2.0):
        lm, start = few_words()
        learner, asked = Learner(lm, algorithm, lr=1e-2, kl_coef=beta), [Request("a", tuple(start))] * 64
        with torch.no_grad(): first = exact(lm.model, start)
        for k in range(12):
            said = write(lm, asked, seeds(64, k), max_new_tokens=2, batch_size=64)
            earned = torch.tensor([1.0 if 3 in r.completion_ids else 0.0 for r in said])
            told = learner.step(said, earned - earned.mean(), k)
        with torch.no_grad(): now = exact(lm.model, start)
        after[beta] = (now.exp() @ worth).item() - (first.exp() @ worth).item(), (now.exp() * (now - first)).sum().item()
        assert told["length"] == pytest.approx(sum(len(r.completion_ids) for r in said) / 64) and told["entropy"] == pytest.approx(-sum(sum(r.logprobs) for r in said) / sum(len(r.completion_ids) for r in said))
    (gain, far), (held, near) = after[0.0], after[2.0]
    assert gain > 0.3 and near < far / 3 and held < gain


# ---------------------------------------------------------------- imitating, distance


def test_tuning_rows_are_answers_to_the_very_questions(folders):
    for name in ("zoo/drafts", *(str(folders(arch)) for arch in DECODERS)):
        lm = load_lm(name)
        for asking in ({}, dict(template="{label} : {text}", instruction="say it")):
            rows, asked = tuning_rows(lm, POOL[:6], **asking), {q.label: list(q.ids) for q in requests(lm, LABELS, 2, max_new_tokens=1, **asking)}
            assert [(p, c, w) for p, c, w in rows] == [(asked[t.label], encode_completion(lm, t.text), 1.0) for t in POOL[:6]]
            assert all(c[-1] == lm.tokenizer.eos_token_id for _, c, _ in rows) and [lm.tokenizer.decode(c, skip_special_tokens=True).strip() for _, c, _ in rows] == [t.text for t in POOL[:6]]


def test_tuning_teaches_golden_texts():
    lm = load_lm("zoo/drafts")
    rows = tuning_rows(lm, POOL)
    def surprise():
        with torch.no_grad(): return -masked_sum(*completion_logprobs(lm, [r[0] for r in rows], [r[1] for r in rows])).mean().item()
    before = surprise()
    sft(lm, rows, steps=8, lr=3e-3, batch_size=16)
    assert surprise() < before - 3


def test_golden_texts_that_dont_fit():
    words = word_tokenizer([" ".join(world.vocabulary())])
    size = {t.id: len(words(t.text).input_ids) + 1 + 3 for t in POOL}  # its end, and the prompt
    room = sorted(size.values())[20]
    lm = build_lm(words, width=8, layers=1, context=room)
    rows = tuning_rows(lm, POOL)
    assert [r[1] for r in rows] == [encode_completion(lm, t.text) for t in POOL if size[t.id] <= room] and 20 < len(rows) < len(POOL)
    long = [t for t in POOL if size[t.id] > room]
    assert f"none of {len(long)} golden texts" in line_of(tuning_rows, lm, long)


def test_mean_kl_is_exact_on_average():
    lm, start = few_words()
    first = LM(copy.deepcopy(lm.model), lm.tokenizer)
    shake(lm)
    with torch.no_grad(): ours, theirs = exact(lm.model, start), exact(first.model, start)
    kl = (ours.exp() * (ours - theirs)).sum().item()
    texts = [Rollout(start, t) for t in TEXTS]
    assert sum(p * mean_kl(lm, first, [r]) for p, r in zip(ours.exp().tolist(), texts)) == pytest.approx(kl) and kl > 1e-3
    assert mean_kl(lm, lm, texts) == 0 and mean_kl(lm, first, texts, 4) == pytest.approx(mean_kl(lm, first, texts)) == pytest.approx((ours - theirs).mean().item())
    said = write(lm, [Request("a", tuple(start))] * 4000, seeds(4000), max_new_tokens=2, batch_size=4000)
    spread = math.sqrt((ours.exp() * (ours - theirs - kl) ** 2).sum().item() / 4000)
    assert abs(mean_kl(lm, first, said, 4000) - kl) < 4 * spread
