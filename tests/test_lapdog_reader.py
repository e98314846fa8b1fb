"rlgen.lapdog.reader: ids that are cut in the right order, pairs read once, fused stories against plain forward passes, and scores that are the sampler's."
from collections import Counter

import pytest
import torch
from helpers import line_of
from tiny_models import make_tokenizer

from rlgen.core import RlgenError
from rlgen.lapdog.data import Dialogue, Story
from rlgen.lapdog.reader import PLAIN, PUBLISHED, Encoded, FidState, Templates, begin, build_reader, encode_pairs, pair_ids, prefix_ids, reply_logprobs
from rlgen.lm import LM, build_lm, completion_logprobs, load_lm, log_softmax, word_tokenizer
from rlgen.sampling import Cost, State, generate, greedy, sampler

TALK = Dialogue("d7", "persona: i have a dog . i eat soup . context: Q: the cat ran . R: over the hill ? Q: what did you eat today ?", ("soup .",))
STORIES = [Story("s1", "the hill", "a dog ran over the hill and the cat ran after it ."), Story("s2", "soup", "two apples ."), Story("s3", "", "she writes letters to her friend , who never answers .")]
LISTS = [[0], [0], [2], [0, 1, 2], [3], [0, 1, 2], [1, 1]]

pytestmark = pytest.mark.usefixtures("double")


def bart() -> LM:
    "A BART: positions in a table, start token </s>, its tokenizer a T5's."
    from transformers import BartConfig, BartForConditionalGeneration
    tok = make_tokenizer("t5")
    config = BartConfig(vocab_size=len(tok), d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=64, decoder_ffn_dim=64,
                        max_position_embeddings=200, dropout=0.0, pad_token_id=0, bos_token_id=1, eos_token_id=1, decoder_start_token_id=1, forced_eos_token_id=None, init_std=0.3)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        return LM(BartForConditionalGeneration(config).double().eval(), tok, "seq2seq")


def mt5() -> LM:
    "An mT5: gated, with an output layer of its own."
    from transformers import MT5Config, MT5ForConditionalGeneration
    tok = make_tokenizer("t5")
    config = MT5Config(vocab_size=len(tok), d_model=32, d_kv=16, d_ff=64, num_layers=2, num_decoder_layers=2, num_heads=2, dropout_rate=0.0, pad_token_id=0, eos_token_id=1, decoder_start_token_id=0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return LM(MT5ForConditionalGeneration(config).double().eval(), tok, "seq2seq")


@pytest.fixture(scope="module")
def readers(folders):
    "Each architecture's reader once."
    made, make = {}, {
        "t5": lambda: load_lm(str(folders("t5"))), "flan": lambda: load_lm(str(folders("t5", feed_forward_proj="gated-gelu", tie_word_embeddings=False))), "bart": bart, "mt5": mt5,
        "small": lambda: LM(build_reader(make_tokenizer("t5"), 32, seed=3).model.double(), make_tokenizer("t5"), "seq2seq")}

    def get(name) -> LM:
        if name not in made: made[name] = make[name]()
        return made[name]

    return get


@pytest.fixture(scope="module", params=["t5", "flan", "mt5", "bart", "small"])
def lm(request, readers):
    return readers(request.param)


def pairs_of(lm, **more) -> list[list[int]]: return [pair_ids(lm, TALK, s, **more) for s in [*STORIES, None]]


def write(lm, lists, seed=0, n=8, prefix=(), **more):
    "Replies sampled from the pairs."
    return generate(lm, lists, sampler([seed + i for i in range(len(lists))]), max_new_tokens=n, begin=begin(encode_pairs(lm, pairs_of(lm)), prefix), **more)


# ---------------------------------------------------------------- ids


def test_ids_are_the_text_once_with_one_end_mark(readers):
    lm = readers("t5")
    ids, text = pair_ids(lm, TALK, STORIES[0]), "dialog with R's persona: {} R: <extra_id_0> story title: the hill story: a dog ran over the hill and the cat ran after it ."
    assert ids == lm.tokenizer(text.format(TALK.question)).input_ids and ids.count(1) == 1 and ids[-1] == 1
    assert ids.count(lm.tokenizer.convert_tokens_to_ids("<extra_id_0>")) == 1


@pytest.mark.parametrize("arch", ["roberta", "bert", "gpt2", "t5"])
def test_ids_for_any_tokenizer(arch):
    lm = LM(type("M", (), dict(config=type("C", (), {})()))(), make_tokenizer(arch), "seq2seq")
    ids = pair_ids(lm, TALK, STORIES[1], templates=PLAIN)
    assert ids == lm.tokenizer(f"{TALK.question} R: story title: soup story: two apples .").input_ids


def test_closed_book_is_the_query_alone(readers):
    lm = readers("t5")
    assert pair_ids(lm, TALK) == lm.tokenizer(PUBLISHED.query.format(question=TALK.question)).input_ids


def test_templates_may_name_persona_and_context(readers):
    lm = readers("t5")
    ids = pair_ids(lm, TALK, templates=Templates("{context} | {persona}", prefix=""))
    assert ids == lm.tokenizer("Q: the cat ran . R: over the hill ? Q: what did you eat today ? | i have a dog . i eat soup .").input_ids


def test_the_story_gives_way_first_then_old_turns_never_the_persona():
    tok = word_tokenizer([TALK.question, *(f"{s.title} {s.text}" for s in STORIES), "R: story title: story:"])
    lm, seen = build_reader(tok, 32), []
    whole = pair_ids(lm, TALK, STORIES[0], 200, PLAIN)
    for most in range(len(whole), 0, -1):
        cut = Counter()
        try: ids = pair_ids(lm, TALK, STORIES[0], most, PLAIN, cut)
        except RlgenError as e:
            assert "d7" in str(e) and "max_length" in str(e) and "\n" not in str(e)
            break
        text = tok.decode(ids)
        assert len(ids) <= most and len(whole) - len(ids) == cut["story_tokens"] + {0: 0, 1: 5, 2: 10}[cut["turns"]]
        assert text.startswith("persona: i have a dog . i eat soup . context:") and "Q: what did you eat today ? R:" in text
        assert ("the cat ran ." in text) == (cut["turns"] < 1) and ("over the hill ?" in text) == (cut["turns"] < 2)
        seen.append((cut["turns"], most - len(ids)))
    assert [t for t, _ in seen] == sorted(t for t, _ in seen) and {t for t, _ in seen} == {0, 1, 2} and most > 10
    assert all(left == 0 for turns, left in seen), "what room there is, the story takes"


def test_the_models_own_context_counts(readers):
    lm = readers("bart")
    long = Story("l", "long", "the cat ran . " * 100)
    assert len(pair_ids(lm, TALK, long, max_length=512, templates=PLAIN)) == 200


def test_prefix(readers):
    lm = readers("t5")
    assert lm.tokenizer.convert_ids_to_tokens(prefix_ids(lm)) == ["<extra_id_0>"] and prefix_ids(lm, PLAIN) == []
    world = build_reader(word_tokenizer(["a b"]), 32)
    assert "<extra_id_0>" in line_of(prefix_ids, world) and prefix_ids(world, PLAIN) == []


# ---------------------------------------------------------------- reading


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_states_are_those_of_each_pair_alone(lm, batch_size):
    pairs = [*pairs_of(lm), pairs_of(lm)[1]]
    encoded = encode_pairs(lm, pairs, batch_size)
    assert len(encoded) == 5 and len(encoded.states) == sum(map(len, pairs[:4])) and not encoded.states.requires_grad
    for n, pair in enumerate(pairs):
        states, mask = encoded.fuse([(n,)])
        alone = lm.model.get_encoder()(input_ids=torch.tensor([pair])).last_hidden_state
        assert mask.all() and torch.allclose(states, alone, atol=1e-9)


def test_fuse_lays_real_tokens_side_by_side():
    encoded = Encoded(torch.arange(12.0).view(6, 2), [0, 2, 5], [2, 3, 1])
    states, mask = encoded.fuse([(1, 0), (2,), (2, 2)])
    assert states[0, :, 0].tolist() == [4, 6, 8, 0, 2] and states[2, :2, 0].tolist() == [10, 10] and mask.sum(1).tolist() == [5, 1, 2]


def test_a_decoder_only_model_is_refused():
    lm = build_lm(word_tokenizer(["a b"]), 16, 1)
    assert "encoder-decoder" in line_of(encode_pairs, lm, [[3]])


# ---------------------------------------------------------------- scores


def test_one_story_equals_a_plain_forward(lm):
    pairs, completions = pairs_of(lm), [[5, 6, 7, 1], [8, 1], [9, 9, 9], [4]]
    ours, mask = reply_logprobs(lm, pairs, [[0], [1], [2], [3]], completions)
    plain, same = completion_logprobs(lm, pairs, completions)
    assert torch.equal(mask, same) and torch.allclose(ours[mask.bool()], plain[mask.bool()], atol=1e-9)


def by_hand(lm, pairs, row, completion, prefix=(), temperature=1.0):
    "Log-probabilities by encoding each pair alone and decoding once, without cache or padding."
    from transformers.modeling_outputs import BaseModelOutput
    states = torch.cat([lm.model.get_encoder()(input_ids=torch.tensor([pairs[p]])).last_hidden_state for p in row], 1)
    ids = torch.tensor([[lm.model.config.decoder_start_token_id, *prefix, *completion]])
    logits = lm.model(decoder_input_ids=ids[:, :-1], encoder_outputs=BaseModelOutput(last_hidden_state=states)).logits[:, len(prefix):]
    return (logits / temperature).log_softmax(-1).gather(-1, ids[:, 1 + len(prefix):, None])[0, :, 0]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_fused_stories_equal_concatenated_states(lm, temperature):
    pairs, completions, prefix = pairs_of(lm), [[5, 6, 7], [5, 8, 1], [4], [9, 9, 1], [3, 1], [7], [7, 7, 7]], [11, 12]
    ours, mask = reply_logprobs(lm, pairs, LISTS, completions, prefix, temperature)
    for row, many, completion, out in zip(LISTS, mask.sum(1).tolist(), completions, ours):
        assert many == len(completion) and torch.allclose(out[:many], by_hand(lm, pairs, row, completion, prefix, temperature), atol=1e-9)


def test_gradient_equals_that_of_separate_passes(lm):
    pairs, completions, weights = pairs_of(lm), [[5, 6, 7], [5, 8, 1], [4], [9, 9, 1], [3, 1], [7], [7, 7, 7]], torch.linspace(-1, 1, 7)
    named = [(n, p) for n, p in lm.model.named_parameters() if p.requires_grad]
    ours, mask = reply_logprobs(lm, pairs, LISTS, completions, [11])
    a = torch.autograd.grad((ours * mask * weights[:, None]).sum(), [p for _, p in named], allow_unused=True)
    b = torch.autograd.grad(sum(w * by_hand(lm, pairs, row, c, [11]).sum() for w, row, c in zip(weights, LISTS, completions)), [p for _, p in named], allow_unused=True)
    for (name, _), x, y in zip(named, a, b): assert (x is None) == (y is None) and (x is None or torch.allclose(x, y, atol=1e-6)), name  # T5's norms count in 32 bits
    assert sum(x is not None and x.abs().sum() > 0 for x in a) > 10


@pytest.mark.parametrize("prefix", [(), (11,)])
def test_scores_are_the_samplers(lm, prefix):
    replies = write(lm, LISTS, prefix=prefix)
    ours, mask = reply_logprobs(lm, pairs_of(lm), [r.prompt_ids for r in replies], [r.completion_ids for r in replies], prefix)
    for r, out, real in zip(replies, ours, mask): assert torch.allclose(out[real.bool()], torch.tensor(r.logprobs, dtype=torch.float64), atol=1e-9)


def test_scores_at_the_samplers_temperature(readers):
    "What `sampler(temperature=0.7)` drew from, noted while it draws."
    lm, seen, rule = readers("t5"), {}, sampler(list(range(7)), temperature=0.7)
    def spy(step):
        tokens, kl = rule(step)
        for row, lp, token in zip(step.rows, step.logprobs, tokens): seen.setdefault(row, []).append(log_softmax(lp / 0.7)[token].item())
        return tokens, kl
    replies = generate(lm, LISTS, spy, max_new_tokens=6, begin=begin(encode_pairs(lm, pairs_of(lm))))
    ours, mask = reply_logprobs(lm, pairs_of(lm), LISTS, [r.completion_ids for r in replies], temperature=0.7)
    for row, (out, real) in enumerate(zip(ours, mask)): assert torch.allclose(out[real.bool()], torch.tensor(seen[row], dtype=torch.float64), atol=1e-9)


def test_gradient_checkpointing_changes_nothing(folders):
    lm, args = load_lm(str(folders("t5", dropout_rate=0.0))), ([[0], [0], [0, 2]], [[5, 6], [7, 1], [8]], [11])
    def run():
        logprobs, mask = reply_logprobs(lm, pairs_of(lm), *args)
        lm.model.zero_grad()
        (logprobs * mask).sum().backward()
        return logprobs.detach(), mask, lm.model.get_input_embeddings().weight.grad.clone()
    plain = run()
    lm.model.gradient_checkpointing_enable(dict(use_reentrant=False))
    lm.model.train()
    again = run()
    at = plain[1].bool()
    assert torch.allclose(plain[0][at], again[0][at], atol=1e-9) and torch.allclose(plain[2], again[2], atol=1e-8)


# ---------------------------------------------------------------- writing


def test_replies_dont_depend_on_company(lm):
    together, alone = write(lm, LISTS, n=12), [write(lm, [row], seed=i, n=12)[0] for i, row in enumerate(LISTS)]
    assert [r.completion_ids for r in together] == [r.completion_ids for r in alone]
    assert [r.completion_ids for r in write(lm, LISTS, n=12, batch_size=2)] == [r.completion_ids for r in together]
    for a, b in zip(together, alone): assert a.logprobs == pytest.approx(b.logprobs, abs=1e-9)


def test_one_story_writes_what_the_plain_sampler_writes(lm):
    ours = write(lm, [[0], [2], [1]])
    plain = generate(lm, [pairs_of(lm)[i] for i in (0, 2, 1)], sampler([0, 1, 2]), max_new_tokens=8, begin=State)
    assert [r.completion_ids for r in ours] == [r.completion_ids for r in plain]


def test_order_and_repetition_of_stories_dont_matter(lm):
    replies = [[5, 6, 7, 8]] * 5
    ours, _ = reply_logprobs(lm, pairs_of(lm), [[0, 1, 2], [2, 0, 1], [0, 1, 2, 2, 1, 0], [1], [1, 1]], replies)
    assert torch.allclose(ours[0], ours[1], atol=1e-9) and torch.allclose(ours[0], ours[2], atol=1e-9) and torch.allclose(ours[3], ours[4], atol=1e-9)
    assert not torch.allclose(ours[0], ours[3], atol=1e-3)


def cross_keys(lm):
    "The first decoder layer's projection of what was read into keys."
    decoder = lm.model.get_decoder()
    return decoder.layers[0].encoder_attn.k_proj if hasattr(decoder, "layers") else decoder.block[0].layer[1].EncDecAttention.k


def test_every_pair_is_read_and_projected_once(lm):
    read, projected = [], []
    hooks = [lm.model.get_encoder().register_forward_hook(lambda m, a, k, out: read.append(len(out.last_hidden_state)), with_kwargs=True),
             cross_keys(lm).register_forward_hook(lambda m, given, out: projected.append(len(given[0])))]
    write(lm, [[0], [0], [0], [2], [0, 2]] * 3, n=6)
    assert read == [4] and projected == [3]
    reply_logprobs(lm, [*pairs_of(lm), pairs_of(lm)[0]], [[0], [0], [4], [2]], [[5, 6]] * 4)
    for h in hooks: h.remove()
    assert read == [4, 2] and projected[1:] == [3], "two different pairs, lists [0], [4] and [2]"


def test_cost_counts_a_group_once(readers):
    lm, costs = readers("t5"), []
    for group in (1, 4):
        cost = Cost()
        encoded = encode_pairs(lm, pairs_of(lm), cost=cost)
        replies = generate(lm, [[0], [1]] * group, sampler(list(range(2 * group))), max_new_tokens=5, cost=cost, begin=begin(encoded))
        fed = sum(len(r.completion_ids) - 1 for r in replies)
        costs.append(cost.lm_tokens - fed)
    assert costs == [sum(map(len, pairs_of(lm))) + 2] * 2


def test_rows_that_ended_leave_and_memory_follows(readers):
    lm = readers("t5")
    state = FidState(lm, [[0]] * 4 + [[1]] * 4, Cost(), encode_pairs(lm, pairs_of(lm)), [])
    def held(): return state.cache.cross_attention_cache.layers[0].keys.shape[0], state.mask.shape[0]
    state.select(torch.arange(7))
    assert held() == (8, 8)
    state.advance(torch.full((7,), 5))
    assert state.logits.shape[0] == 7
    state.select(torch.tensor([1, 2, 4, 5, 6]))
    assert held() == (5, 5)
    state.advance(torch.full((5,), 5))
    fresh = FidState(lm, [[0], [1]], Cost(), encode_pairs(lm, pairs_of(lm)), [5, 5])
    assert torch.allclose(state.logits, fresh.logits[[0, 0, 1, 1, 1]], atol=1e-9)


def test_replies_of_different_lengths_leave_one_by_one(readers):
    "An end mark made likely: rows leave at every step, and each is what it is alone."
    lm, lists = readers("t5"), [[i % 4] for i in range(24)]
    def often(seeds):
        rule = sampler(seeds)
        def choose(step):
            step.logprobs[:, 1] = step.logprobs.amax(-1)
            step.logprobs = log_softmax(step.logprobs * 3)
            return rule(step)
        return choose
    start = begin(encode_pairs(lm, pairs_of(lm)))
    together = generate(lm, lists, often(list(range(24))), max_new_tokens=20, begin=start)
    assert len({len(r.completion_ids) for r in together}) > 3
    for i, r in enumerate(together): assert r.completion_ids == generate(lm, [lists[i]], often([i]), max_new_tokens=20, begin=start)[0].completion_ids


def test_the_prefix_is_fed_but_not_written(readers):
    lm = readers("t5")
    prefix = prefix_ids(lm)
    reply = generate(lm, [[0]], greedy, max_new_tokens=3, begin=begin(encode_pairs(lm, pairs_of(lm)), prefix))[0]
    first = by_hand(lm, pairs_of(lm), [0], reply.completion_ids, prefix)
    assert reply.logprobs == pytest.approx(first.tolist(), abs=1e-9)
    assert reply.logprobs[0] != pytest.approx(by_hand(lm, pairs_of(lm), [0], reply.completion_ids)[0].item(), abs=1e-3)


def test_a_model_without_a_cache_of_what_it_read_is_refused(readers):
    from types import SimpleNamespace
    t5 = readers("t5")
    def forget(**kw): return SimpleNamespace(logits=torch.zeros(1, 1, 4), past_key_values=SimpleNamespace())
    forget.config = t5.model.config
    forget.parameters = t5.model.parameters
    assert "cache" in line_of(FidState, LM(forget, t5.tokenizer, "seq2seq"), [[0]], Cost(), encode_pairs(t5, pairs_of(t5)), [])


def test_half_precision(folders):
    lm = load_lm(str(folders("t5")))
    full, _ = reply_logprobs(lm, pairs_of(lm), LISTS[:4], [[5, 6, 7]] * 4)
    lm.model.bfloat16()
    half, _ = reply_logprobs(lm, pairs_of(lm), LISTS[:4], [[5, 6, 7]] * 4)
    assert half.dtype == torch.float32 and half.isfinite().all() and (half - full).abs().max() < 0.35
    assert all(torch.isfinite(torch.tensor(r.logprobs)).all() for r in write(lm, LISTS))


def test_build_reader_is_seeded():
    tok = word_tokenizer(["a b c"])
    def first(seed, **kw): return next(build_reader(tok, 32, seed=seed, **kw).model.parameters())
    before = torch.random.get_rng_state()
    assert torch.equal(first(1), first(1)) and not torch.equal(first(1), first(2)) and torch.equal(before, torch.random.get_rng_state())
    assert build_reader(tok, 32, gated=True).model.config.is_gated_act
