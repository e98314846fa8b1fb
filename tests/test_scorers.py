"rlgen.pargs.scorers and what is built on them: four ways to one reward, counted tokens, an oracle, enumeration, and Hugging Face's own loop."
import itertools
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_models import make_model, make_tokenizer

from rlgen.core import RlgenError, rank_world
from rlgen.lm import LM, build_lm, encode_completion, encode_prompt, load_lm, pad, save_lm, word_tokenizer
from rlgen.pargs import decoding
from rlgen.pargs.decoding import RuleProcessor, guided, rule_generate
from rlgen.pargs.scorers import LogRatioScorer, RecomputeScorer, ReplicatedScorer, TextScorer, TreeScorer, same_tokens, scorer_for
from rlgen.reward import RewardModel, encode_text, load_reward_model, new_reward_model, score_ids
from rlgen.sampling import Cost, generate, greedy, sampler

HERE = Path(__file__).resolve().parent
TEXTS = ["the cat", "a dog ran over the hill and", "what did you eat today ?", "my neighbour lost her keys", "she", "post : my boss wants me to work on sunday . summary :"]
ARCHS = ("llama", "gpt2", "gemma")


pytestmark = pytest.mark.usefixtures("double")


def many_ends(lm):
    "A quarter of the vocabulary ends a text, so that rows end at different steps."
    mixed = torch.randperm(len(lm.tokenizer), generator=torch.Generator().manual_seed(4)).tolist()
    lm.model.generation_config.eos_token_id = [lm.tokenizer.eos_token_id, *mixed[: len(mixed) // 4]]
    return lm


@pytest.fixture(scope="module")
def pair(folders):
    "pair(arch, guide): a writer and a guide, in 64-bit floats."
    made = {}

    def get(arch, guide=None):
        guide = guide or arch
        if (arch, guide) not in made: made[arch, guide] = many_ends(load_lm(str(folders(arch)))), load_reward_model(str(folders(guide, "reward", seed=1)))
        return made[arch, guide]

    return get


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    "toy(seed): word-level models over the same nine tokens, with opinions; and a guide that grew out of the first."
    tok = word_tokenizer(["my boss sold the car ."])

    def make(seed):
        lm = build_lm(tok, width=16, seed=seed)
        for p in lm.model.parameters(): p.data *= 2
        lm.model.double()
        return lm

    folder = tmp_path_factory.mktemp("toy")
    save_lm(make(3), folder)
    rm = new_reward_model(str(folder), seed=1)
    rm.model.score.weight.data *= 60
    return make, rm


def prompts_of(lm, texts=TEXTS): return [encode_prompt(lm, t) for t in texts]


def three_ways(lm, rm, end, texts=TEXTS, cost=None):
    "Tree, copies and recomputation of the same rewards."
    eos = lm.tokenizer.eos_token_id
    return TreeScorer(rm, eos, end, cost, lm.eos_ids), ReplicatedScorer(rm, eos, end, cost, lm.eos_ids), RecomputeScorer(rm, lm, texts, end, cost=cost)


def script(lm, rows=6, steps=6, k=4, seed=0):
    "What a decoder might ask: candidates, choices and rows that go on; ends of text among the candidates."
    g, out = torch.Generator().manual_seed(seed), []
    ids = torch.tensor([i for i in range(len(lm.tokenizer)) if i not in lm.eos_ids])
    for t in range(steps):
        candidates = torch.stack([ids[torch.randperm(len(ids), generator=g)[:k]] for _ in range(rows)])
        candidates[0, 0], candidates[-1, 1] = lm.tokenizer.eos_token_id, lm.eos_ids[-1]
        choice = torch.randint(2, k, (rows,), generator=g)
        keep = torch.arange(rows)[torch.arange(rows) != t % rows] if t in (1, 2, 4) and rows > 2 else None
        rows -= keep is not None
        out.append((candidates, choice, keep))
    return out


def walk(scorer, prompts, asked, rows=None):
    "All rewards of a script."
    scorer.start(prompts, list(rows or range(len(prompts))))
    out = []
    for candidates, choice, keep in asked:
        out.append(scorer.score(candidates).double())
        scorer.advance(choice)
        if keep is not None: scorer.select(keep)
    return out


def worst(a, b): return max((x - y).abs().max().item() for x, y in zip(a, b, strict=True))


def ids_of(rollouts): return [r.completion_ids for r in rollouts]


# ---------------------------------------------------------------- one reward, three ways


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("end", (False, True))
@pytest.mark.parametrize("bits", (32, 64))
def test_tree_copies_and_recomputation_agree(arch, end, bits, pair):
    "Ragged prompts, rows that leave, ends of text among the candidates."
    lm, rm = pair(arch)
    rm.model.to(torch.float32 if bits == 32 else torch.float64)
    tree, copied, plain = (walk(s, prompts_of(lm), script(lm)) for s in three_ways(lm, rm, end))
    rm.model.double()
    assert plain[0].shape == (6, 4) and plain[-1].shape == (3, 4) and plain[-1].std() > 1e-2
    assert worst(tree, plain) < (1e-5 if bits == 32 else 1e-10) and worst(copied, plain) < (1e-5 if bits == 32 else 1e-10)


@pytest.mark.parametrize("end", (False, True))
def test_the_right_texts_are_judged(end, pair):
    "The guide alone, on ids put together by hand."
    lm, rm = pair("gpt2")
    eos, asked = lm.tokenizer.eos_token_id, script(lm, steps=3)
    (_, first, _), (candidates, choice, keep), (last, _, _) = asked
    got = walk(three_ways(lm, rm, end)[0], prompts_of(lm), asked)
    for i, row in enumerate(keep.tolist()):
        written = [asked[0][0][row, first[row]].item(), candidates[row, choice[row]].item()]
        for j in range(4):
            ids = prompts_of(lm)[row] + [*written, last[i, j].item()]
            ids += [eos] * (end and ids[-1] not in lm.eos_ids)
            assert got[2][i, j].item() == pytest.approx(score_ids(rm, [ids])[0].item(), abs=1e-10)


@pytest.mark.parametrize("way", (0, 1, 2))
@pytest.mark.parametrize("arch", ARCHS)
def test_order_padding_and_company_change_nothing(arch, way, pair):
    lm, rm = pair(arch)
    for end in (False, True):
        scorer, asked = three_ways(lm, rm, end)[way], [(c, w, None) for c, w, _ in script(lm, steps=3)[:1]] * 3
        whole = walk(scorer, prompts_of(lm), asked)
        order = torch.tensor([2, 0, 3, 1])
        turned = walk(scorer, prompts_of(lm), [(c[:, order], order.argsort()[w], None) for c, w, _ in asked])
        assert worst(whole, [x[:, order.argsort()] for x in turned]) < 1e-10, "order of the candidates"
        for i in range(6):
            alone = walk(scorer, prompts_of(lm)[i : i + 1], [(c[i : i + 1], w[i : i + 1], None) for c, w, _ in asked], [i])
            assert worst([x[i : i + 1] for x in whole], alone) < 1e-10, "alone: no padding, no company"
        rows = torch.tensor([5, 1, 4])
        some = walk(scorer, [prompts_of(lm)[i] for i in rows], [(c[rows], w[rows], None) for c, w, _ in asked], rows.tolist())
        assert worst([x[rows] for x in whole], some) < 1e-10, "other company, other order"


@pytest.mark.parametrize("arch", ARCHS)
def test_company_changes_no_text(arch, pair):
    "Guided texts in batches of any size and in any order, by what `scorer_for` chooses."
    lm, rm = pair(arch)
    for end, seeds in ((False, None), (True, list(range(20, 26)))):
        def run(at, size, end=end, seeds=seeds):
            texts = [TEXTS[i] for i in at]
            rule = guided(scorer_for(rm, lm, texts, 40, end), 3.0, k=6, seeds=seeds and [seeds[i] for i in at])
            return {i: r for i, r in zip(at, generate(lm, prompts_of(lm, texts), rule, max_new_tokens=6, batch_size=size))}
        whole = run(range(6), 64)
        for other in (run(range(6), 2), run([4, 2, 0, 5, 3, 1], 4), *(run([i], 1) for i in range(6))):
            for i, r in other.items(): assert r.completion_ids == whole[i].completion_ids and r.info["kl"] == pytest.approx(whole[i].info["kl"], abs=1e-8)


@pytest.mark.parametrize("arch", ("llama", "gpt2"))
def test_end_of_text_is_a_candidate_like_others(arch, pair):
    "GPT-2 pads with end-of-text; scored as a real token all the same, in company of longer prompts."
    lm, rm = pair(arch)
    eos = lm.tokenizer.eos_token_id
    assert arch != "gpt2" or lm.pad_id == eos == rm.pad_id
    candidates = torch.tensor([[eos, 7]] * 6)
    alone = [score_ids(rm, [p + [eos]])[0].item() for p in prompts_of(lm)]
    for end, way in itertools.product((False, True), range(3)):
        scorer = three_ways(lm, rm, end)[way]
        got = walk(scorer, prompts_of(lm), [(candidates, torch.zeros(6, dtype=torch.long), None)])[0]
        assert got[:, 0].tolist() == pytest.approx(alone, abs=1e-10)
        other = score_ids(rm, [p + [7] + [eos] * end for p in prompts_of(lm)])
        assert torch.allclose(got[:, 1], other, atol=1e-10) and abs(got[0, 1] - got[0, 0]) > 1e-4


# ---------------------------------------------------------------- what it costs


@pytest.mark.parametrize("end", (False, True))
@pytest.mark.parametrize("size", (64, 2))
def test_tokens_and_passes_are_counted(end, size, pair):
    "P + k T for each row, 2 k T with ends, one pass a step and one for the prompts; rows end at different steps."
    lm, rm = pair("gpt2")
    prompts, k = prompts_of(lm), 5
    for way, passes in ((0, 1), (1, 1 + end)):
        cost = Cost()
        said = generate(lm, prompts, guided(three_ways(lm, rm, end, cost=cost)[way], 1.0, k, seeds=list(range(6))), max_new_tokens=8, batch_size=size)
        lengths = {i: len(r.completion_ids) for i, r in enumerate(said)}
        assert len(set(lengths.values())) > 2, "ragged"
        assert cost.rm_tokens == sum(len(p) for p in prompts) + k * (1 + end) * sum(lengths.values())
        order = sorted(range(6), key=lambda i: (len(prompts[i]), i))
        batches = [order[i : i + size] for i in range(0, 6, size)]
        assert cost.rm_forwards == sum(1 + passes * max(lengths[i] for i in b) for b in batches) and cost.lm_tokens == 0
    cost = Cost()
    said = generate(lm, prompts, guided(three_ways(lm, rm, end, cost=cost)[2], 1.0, k, seeds=list(range(6))), max_new_tokens=8)
    assert lengths == {i: len(r.completion_ids) for i, r in enumerate(said)} and cost.rm_tokens > 3 * (sum(map(len, prompts)) + k * sum(lengths.values()))


# ---------------------------------------------------------------- the oracle and enumeration


@pytest.fixture
def spied(monkeypatch):
    "Every draw of a guided rule: (seeds, step, candidates, log-probabilities over them)."
    seen, draw = [], decoding.draw

    def listening(seeds, t, candidates, logprobs):
        seen.append((seeds.tolist(), t, candidates, logprobs))
        return draw(seeds, t, candidates, logprobs)

    monkeypatch.setattr(decoding, "draw", listening)
    return seen


def test_the_log_ratio_turns_one_model_into_the_other(toy, spied):
    "r = log π₁ − log π₂ on top of π₂, weight 1, all tokens: π₁ at every step, its greedy texts, its draws."
    make, _ = toy
    one, two = make(3), make(8)
    V, texts = len(one.tokenizer), ["my boss", "the car", "sold", "the boss sold my car ."] * 3
    prompts, seeds = prompts_of(one, texts), list(range(12))
    run = dict(max_new_tokens=6, batch_size=5)
    drawn = generate(two, prompts, guided(LogRatioScorer(one, two), 1.0, V, seeds=seeds), **run)
    plain = generate(one, prompts, sampler(seeds), **run)
    assert ids_of(drawn) == ids_of(plain) != ids_of(generate(two, prompts, sampler(seeds), **run))
    assert len({len(r.completion_ids) for r in drawn}) > 1, "rows left on the way"
    gap, seen = 0.0, 0
    for rows, t, candidates, logprobs in spied:
        for row, c, got in zip(rows, candidates, logprobs):
            with torch.no_grad(): wanted = one.model(torch.tensor([prompts[row] + drawn[row].completion_ids[:t]])).logits[0, -1].log_softmax(-1)
            gap, seen = max(gap, (got - wanted[c]).abs().max().item()), seen + 1
    assert seen == sum(len(r.completion_ids) for r in drawn) and gap < 1e-10
    assert ids_of(generate(two, prompts, guided(LogRatioScorer(one, two), 1.0, V), **run)) == ids_of(generate(one, prompts, greedy, **run)) != ids_of(generate(two, prompts, greedy, **run))


@pytest.mark.parametrize("arch", ("gpt2", "gemma"))
def test_the_oracle_holds_for_other_architectures(arch, folders):
    one, two = (load_lm(str(folders(arch, seed=s))) for s in (5, 6))
    for p in one.model.parameters(): p.data *= 4
    prompts, seeds, V = prompts_of(one), list(range(6)), one.model.config.vocab_size
    got = generate(two, prompts, guided(LogRatioScorer(one, two), 1.0, V, seeds=seeds), max_new_tokens=5)
    assert ids_of(got) == ids_of(generate(one, prompts, sampler(seeds), max_new_tokens=5)) != ids_of(generate(two, prompts, sampler(seeds), max_new_tokens=5))


@pytest.mark.parametrize("way", (0, 1, 2))
@pytest.mark.parametrize("end", (False, True))
def test_steps_multiply_to_the_enumerated_distribution(end, way, toy, monkeypatch):
    "Every string of up to three tokens is forced through the decoder; its probability against brute force, prefix by prefix."
    make, rm = toy
    lm, alpha = make(3), 0.7
    V, eos, prompt = len(lm.tokenizer), lm.tokenizer.eos_token_id, encode_prompt(lm, "my boss")
    strings = [s for n in (1, 2, 3) for s in itertools.product(range(V), repeat=n) if eos not in s[:-1] and (n == 3 or s[-1] == eos)]
    prefixes = sorted({s[:i] for s in strings for i in range(len(s))})
    with torch.no_grad(): base = {p: lm.model(torch.tensor([prompt + list(p)])).logits[0, -1].log_softmax(-1) for p in prefixes}
    asked = [prompt + [*p, c] + [eos] * (end and c != eos) for p in prefixes for c in range(V)]
    rewards = score_ids(rm, asked, 256).view(len(prefixes), V)
    rule = {p: (base[p] + alpha * r).log_softmax(-1) for p, r in zip(prefixes, rewards)}
    total = [0.0] * len(strings)

    def forced(seeds, t, candidates, logprobs):
        "The string's own token; its log-probability is added up."
        at = (candidates == torch.tensor([strings[i][t] for i in seeds.tolist()])[:, None]).int().argmax(-1)
        for i, x in zip(seeds.tolist(), logprobs.gather(1, at[:, None])[:, 0].tolist()): total[i] += x
        return at

    monkeypatch.setattr(decoding, "draw", forced)
    n = len(strings)
    said = generate(lm, [prompt] * n, guided(three_ways(lm, rm, end, ["my boss"] * n)[way], alpha, V, seeds=list(range(n))), max_new_tokens=3, batch_size=n)
    assert [tuple(x) for x in ids_of(said)] == strings
    exact = [sum(rule[s[:i]][s[i]].item() for i in range(len(s))) for s in strings]
    assert max(abs(a - b) for a, b in zip(total, exact)) < 1e-10 and math.fsum(map(math.exp, total)) == pytest.approx(1, abs=1e-9)
    plain = [sum(base[s[:i]][s[i]].item() for i in range(len(s))) for s in strings]
    assert max(abs(math.exp(a) - math.exp(b)) for a, b in zip(total, plain)) > 1e-3, "and the reward matters"


# ---------------------------------------------------------------- texts, other tokenizers, other models


@pytest.mark.parametrize("arch", ("gpt2", "t5"))
def test_any_function_guides(arch, folders):
    "A function of texts with a tokenizer of its own; it gets prompts and completions and nothing else."
    lm, other = load_lm(str(folders(arch))), make_tokenizer("bert")
    seen = []

    def short(prompts, completions):
        seen.extend(zip(prompts, completions))
        return [-float(len(other(c).input_ids)) for c in completions]

    said = generate(lm, prompts_of(lm), guided(TextScorer(short, lm, TEXTS), 2.0, k=6), max_new_tokens=6, batch_size=4)
    assert {p for p, _ in seen} == set(TEXTS)
    written = {(p, r.text(lm.tokenizer)) for p, r in zip(TEXTS, said)}
    assert written <= set(seen), "the texts that won were asked about, with their own prompts"
    plain = generate(lm, prompts_of(lm), greedy, max_new_tokens=6)
    def pieces(rollouts): return sum(len(other(r.text(lm.tokenizer)).input_ids) for r in rollouts)
    assert pieces(said) < pieces(plain)


def test_text_scorer_by_hand(pair):
    lm, _ = pair("llama")
    scorer = TextScorer(lambda prompts, completions: [len(p) * 1000 + len(c) for p, c in zip(prompts, completions)], lm, TEXTS)
    cat, hill, eos = encode_completion(lm, "cat", eos=False)[-1], encode_completion(lm, "hill", eos=False)[-1], lm.tokenizer.eos_token_id
    scorer.start(prompts_of(lm)[3:5], [3, 4])
    def wanted(rows, *words): return [[1000.0 * len(TEXTS[r]) + len(lm.tokenizer.decode([*w, *x], skip_special_tokens=True).strip()) for x in ([cat], [hill], [])] for r, w in zip(rows, words)]
    assert scorer.score(torch.tensor([[cat, hill, eos]] * 2)).tolist() == wanted((3, 4), [], [])
    scorer.advance(torch.tensor([0, 1]))
    scorer.select(torch.tensor([1]))
    assert scorer.score(torch.tensor([[cat, hill, eos]])).tolist() == wanted((4,), [hill])


@pytest.mark.parametrize("end", (False, True))
@pytest.mark.parametrize("arch, guide", (("gpt2", "deberta-v2"), ("gpt2", "roberta"), ("gemma", "bert"), ("llama", "gpt2"), ("t5", "deberta-v2")))
def test_strangers_read_texts(arch, guide, end, pair):
    "Encoders and models with other tokens get the decoded prefix, as `encode_text` puts it."
    lm, rm = pair(arch, guide)
    assert not same_tokens(lm, rm)
    cost = Cost()
    scorer = scorer_for(rm, lm, TEXTS, 40, end, cost)
    assert type(scorer) is RecomputeScorer and cost == Cost(), "looking costs nothing"
    asked, seen = script(lm, steps=2), 0
    got = walk(scorer, prompts_of(lm), asked)[1]
    (before, choice, _), (candidates, _, _) = asked
    for i, j in itertools.product(range(6), range(4)):
        written, last = [before[i, choice[i]].item(), candidates[i, j].item()], candidates[i, j].item()
        text = lm.tokenizer.decode(written, skip_special_tokens=True).strip()
        ids = encode_text(rm, TEXTS[i], text, finished=end or last in lm.eos_ids)
        assert got[i, j].item() == pytest.approx(score_ids(rm, [ids])[0].item(), abs=1e-10)
        seen += len(ids)
    assert cost.rm_tokens > seen and cost.rm_forwards == 2
    if arch == "t5": return
    said = generate(lm, prompts_of(lm), guided(scorer, 1e6, k=5), max_new_tokens=5)
    assert ids_of(said) != ids_of(generate(lm, prompts_of(lm), greedy, max_new_tokens=5))


@pytest.mark.parametrize("arch", ARCHS)
def test_plain_decoders_get_the_tree(arch, pair):
    lm, rm = pair(arch)
    for end in (False, True): assert type(scorer_for(rm, lm, TEXTS, 40, end)) is TreeScorer


LLAMA_LIKE = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=256)
MODELS = {  # family: classifier, config
    "Mistral": ("MistralForSequenceClassification", "MistralConfig", LLAMA_LIKE), "Gemma3": ("Gemma3TextForSequenceClassification", "Gemma3TextConfig", LLAMA_LIKE | dict(head_dim=16)),
    "Phi3": ("Phi3ForSequenceClassification", "Phi3Config", LLAMA_LIKE), "Qwen2": ("Qwen2ForSequenceClassification", "Qwen2Config", LLAMA_LIKE),
    "GPTNeo": ("GPTNeoForSequenceClassification", "GPTNeoConfig", dict(hidden_size=32, num_layers=2, num_heads=2, attention_types=[[["global", "local"], 1]], max_position_embeddings=256)),
    "OPT": ("OPTForSequenceClassification", "OPTConfig", dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, ffn_dim=64, word_embed_proj_dim=32, max_position_embeddings=256)),
    "Bloom": ("BloomForSequenceClassification", "BloomConfig", dict(hidden_size=32, n_layer=2, n_head=2)),
    "Falcon": ("FalconForSequenceClassification", "FalconConfig", dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, alibi=True)),
    "Mpt": ("MptForSequenceClassification", "MptConfig", dict(d_model=32, n_layers=2, n_heads=2, max_seq_len=256)),
}  # fmt: skip


def classifier(family, tokenizer, **more):
    "A reward model of another family with the given tokens."
    import transformers

    cls, config, fields = MODELS[family]
    ids = dict(vocab_size=len(tokenizer), num_labels=1, pad_token_id=tokenizer.eos_token_id, eos_token_id=tokenizer.eos_token_id, bos_token_id=tokenizer.eos_token_id)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = getattr(transformers, cls)(getattr(transformers, config)(**(ids | fields | more)))
    return RewardModel(model.double().eval(), tokenizer)


@pytest.mark.parametrize("family, more, tree", [
    ("Mistral", dict(sliding_window=4), False), ("Mistral", dict(sliding_window=16), False), ("Mistral", dict(sliding_window=None), True),
    ("Gemma3", dict(sliding_window=4), False), ("Gemma3", dict(sliding_window=16), False), ("Phi3", dict(sliding_window=16), False),
    ("GPTNeo", dict(window_size=16), False), ("Qwen2", {}, True), ("OPT", {}, True), ("Bloom", {}, False), ("Falcon", {}, False), ("Mpt", {}, False),
])
def test_whatever_is_chosen_is_right(family, more, tree, pair):
    "Windows that texts outgrow, positions built into the attention: never a tree that is wrong, and always the plain way's rewards."
    lm, _ = pair("gpt2")
    rm, texts = classifier(family, lm.tokenizer, **more), [" ".join(TEXTS), *TEXTS[:3]]
    prompts = prompts_of(lm, texts)
    assert max(map(len, prompts)) > 32
    for end in (False, True):
        scorer = scorer_for(rm, lm, texts, max(map(len, prompts)) + 24, end)
        assert (type(scorer) is TreeScorer) == tree
        asked = script(lm, rows=4, steps=20)
        got, plain = (walk(s, prompts, asked) for s in (scorer, RecomputeScorer(rm, lm, texts, end)))
        assert worst(got, plain) < 1e-6 and plain[-1].std() > 1e-4


def test_long_texts_are_read_anew_and_cut(pair, folders):
    "A guide with fewer positions than the writer; a text that just fits, and one token more."
    lm, _ = pair("llama")
    rm = load_reward_model(str(folders("llama", "reward", max_position_embeddings=24)))
    assert type(scorer_for(rm, lm, TEXTS, 24)) is TreeScorer and type(scorer_for(rm, lm, TEXTS, 24, end=True)) is RecomputeScorer
    scorer = scorer_for(rm, lm, TEXTS, 25)
    assert type(scorer) is RecomputeScorer and scorer.max_tokens == 24
    prompt = prompts_of(lm, [" ".join(TEXTS)])[0]
    candidates = torch.tensor([[7, 8, 9]])
    assert len(prompt) > 24 and prompt[0] == lm.tokenizer.bos_token_id
    got = walk(scorer, [prompt], [(candidates, torch.tensor([0]), None)])[0][0]
    by_hand = score_ids(rm, [[prompt[0], *prompt[-22:], c] for c in (7, 8, 9)])
    assert torch.allclose(got, by_hand, atol=1e-10), "the beginning-of-text mark stays, the rest is cut on the left"
    tight = load_reward_model(str(folders("gpt2", "reward", n_positions=32)))
    gpt2, _ = pair("gpt2")
    texts = [" ".join(TEXTS), "she"]
    assert len(prompts_of(gpt2, texts)[0]) > 32
    said = generate(gpt2, prompts_of(gpt2, texts), guided(scorer_for(tight, gpt2, texts, 60), 5.0, k=4), max_new_tokens=8)
    assert len(said) == 2, "learned positions end; nothing breaks"


def test_a_writer_without_an_end_is_refused_where_one_is_needed(pair):
    lm, rm = pair("llama")
    tok = make_tokenizer("bert")
    tok.eos_token = None
    with pytest.raises(RlgenError, match="no end-of-text") as e: scorer_for(rm, LM(lm.model, tok), TEXTS, 40, end=True)
    assert "\n" not in str(e.value)


def test_choosing_leaves_no_trace(pair):
    lm, rm = pair("gpt2")
    before = [p.clone() for p in rm.model.parameters()]
    scorer = scorer_for(rm, lm, TEXTS, 40)
    scorer.start(prompts_of(lm), list(range(6)))
    assert not any(x.keys.requires_grad for x in scorer.cache.layers), "no graph is kept"
    assert all(torch.equal(a, b) for a, b in zip(before, rm.model.parameters()))


# ---------------------------------------------------------------- through Hugging Face's generate


@pytest.mark.parametrize("arch", ("llama", "gpt2"))
@pytest.mark.parametrize("what", ("best", "ended", "drawn", "sampler", "greedy"))
def test_hugging_face_generates_the_same(arch, what, pair):
    "Ragged prompts padded on the left, rows that end at different steps: the same tokens by our loop, as a processor, and as custom generate."
    lm, rm = pair(arch)
    prompts, seeds, n = prompts_of(lm), list(range(6)), 7
    def rule(): return dict(best=lambda: guided(scorer_for(rm, lm, TEXTS, 40), 4.0, k=6), ended=lambda: guided(scorer_for(rm, lm, TEXTS, 40, end=True), 4.0, k=6),
                            drawn=lambda: guided(scorer_for(rm, lm, TEXTS, 40), 4.0, k=6, seeds=seeds, temperature=0.9), sampler=lambda: sampler(seeds, top_k=8), greedy=lambda: greedy)[what]()
    ours = ids_of(generate(lm, prompts, rule(), max_new_tokens=n))
    ids, mask = pad(prompts, lm.pad_id, left=True)
    feed = dict(input_ids=ids, attention_mask=mask, max_new_tokens=n, do_sample=False, pad_token_id=lm.pad_id)
    processed = lm.model.generate(**feed, logits_processor=[RuleProcessor(rule(), prompts)])
    replaced = lm.model.generate(**feed, custom_generate=rule_generate, rule=rule(), lm=lm)
    assert (len({len(o) for o in ours}) > 1 or what in ("best", "greedy")) and replaced.shape == processed.shape
    for out in (processed, replaced):
        assert torch.equal(out[:, : ids.shape[1]], ids)
        for o, row in zip(ours, out[:, ids.shape[1] :].tolist()): assert row[: len(o)] == o and set(row[len(o) :]) <= {lm.pad_id}


# ---------------------------------------------------------------- two processes


def work_of_one(lm_folder, rm_folder, out):
    "Guided texts and their cost, alone or as one of two; the first process writes them."
    from rlgen.sampling import gather

    lm, rm, asked, cost = many_ends(load_lm(lm_folder)), load_reward_model(rm_folder), Cost(), Cost()
    rules = [guided(scorer_for(rm, lm, TEXTS, 40, end, asked), 3.0, k=5, seeds=seeds) for end, seeds in ((False, None), (True, list(range(6))))]
    said = [generate(lm, prompts_of(lm), rule, max_new_tokens=6, batch_size=2, cost=cost) for rule in rules]
    for counts in gather([vars(asked)]): cost.add(**counts)
    rows = [[r.completion_ids, [round(x, 5) for x in r.logprobs], r.info["finished"]] for x in said for r in x]
    if rank_world()[0] == 0: Path(out).write_text(json.dumps(dict(world=rank_world()[1], rows=rows, cost=vars(cost))))


def test_two_processes_guide_as_one(folders, tmp_path):
    "Batches are shared out; each process asks its own guide."
    paths = str(folders("llama")), str(folders("llama", "reward", seed=1))
    found = []
    for name, launcher in (("one", ()), ("two", ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"))):
        done = subprocess.run([sys.executable, *launcher, str(HERE / "test_scorers.py"), "work_of_one", *paths, str(tmp_path / name)], capture_output=True, text=True,
                              stdin=subprocess.DEVNULL, cwd=HERE, env=os.environ | dict(OMP_NUM_THREADS="1", RLGEN_DTYPE="float64", RLGEN_DEVICE="cpu", ACCELERATE_USE_CPU="true"))
        assert done.returncode == 0, done.stderr[-2000:]
        found.append(json.loads((tmp_path / name).read_text()))
    assert [f.pop("world") for f in found] == [1, 2] and found[0] == found[1]


def test_guides_are_made_on_the_spot(tmp_path):
    "A folder that `save_pretrained` wrote guides after a round trip, with the same rewards."
    lm = load_lm(str(make_model("llama", tmp_path / "lm")))
    rm = load_reward_model(str(make_model("llama", tmp_path / "rm", head="reward", seed=1)))
    save_lm(rm, tmp_path / "copy")
    a, b = (walk(scorer_for(m, lm, TEXTS, 40), prompts_of(lm), script(lm)) for m in (rm, load_reward_model(str(tmp_path / "copy"))))
    assert worst(a, b) == 0


if __name__ == "__main__": getattr(__import__("test_scorers"), sys.argv[1])(*sys.argv[2:])  # under its own name, as the tests know it
