"""Random-weight models of the papers' architectures, made on the spot: what a test loads where a person would load a download.

    folder = make_model("gpt2", tmp_path / "lm")                            # AutoModelForCausalLM
    folder = make_model("deberta-v2", tmp_path / "rm")                      # AutoModelForSequenceClassification, one score
    folder = make_model("bert", tmp_path / "enc", head="encoder")           # AutoModel (Contriever is a BERT)
    folder = make_model("t5", tmp_path / "fid", feed_forward_proj="gated-gelu", tie_word_embeddings=False)  # T5 v1.1, Flan-T5
    folder = make_model("llama", tmp_path / "lm", vocab_texts=my_texts, seed=3, num_hidden_layers=1, dtype="bfloat16")

A folder is what `save_pretrained` writes (config.json, model.safetensors, the tokenizer's files; under 1 MB), so every loader that takes a hub id
takes it. Nothing is downloaded. The tokenizers are the families' own classes with vocabularies of a few hundred pieces, and keep the families' habits,
because those are what breaks code written against one of them:

    arch        tokenizer              special ids                                      adds by itself    unknown words
    gpt2        byte-level BPE         bos = eos = <|endoftext|> (last id), no pad       nothing          bytes
    llama       metaspace BPE          <unk> 0  <s> 1  </s> 2, no pad                    <s> …            bytes
    gemma       metaspace BPE          <pad> 0  <eos> 1  <bos> 2  <unk> 3                <bos> …          bytes
    t5          metaspace Unigram      <pad> 0  </s> 1  <unk> 2, sentinels at the end    … </s>           <unk>
    bert        WordPiece, lower case  [PAD] 0  [UNK] 1  [CLS] 2  [SEP] 3  [MASK] 4      [CLS] … [SEP]    [UNK]
    roberta     byte-level BPE         <s> 0  <pad> 1  </s> 2  <unk> 3, <mask> last      <s> … </s>       bytes
    deberta-v2  metaspace Unigram      [PAD] 0  [CLS] 1  [SEP] 2  [UNK] 3, [MASK] last   [CLS] … [SEP]    [UNK]

GPT-2 and Llama have no pad token, as published; give `pad_token_id=…` where a test wants one in the config. BERT's decoder glues punctuation to the
word before it ("mat." for "mat ."); BERT's, T5's and DeBERTa's tokenizers lose newlines, as published. `vocab_size=…` may be larger than the tokenizer (T5's and DeBERTa's real ones are).
"""
import json
import re
from collections import Counter
from pathlib import Path

CONTEXT = 256  # tokens a model takes; RoBERTa's position table has two rows more, which it keeps for padding
LETTERS = "".join(map(chr, range(33, 127)))  # in every vocabulary, so that no plain English text is unknown
VOCAB = 600  # pieces learned at most; with special tokens and T5's sentinels below 1,000
TEXTS = [
    "the cat sat on the mat .", "a dog ran over the hill and the cat ran after it .", "my neighbour lost her keys in the garden last night .",
    "what did you eat today ? i had bread , soup and two apples .", "she writes letters to her friend , who never answers .",
    "post : my boss wants me to work on sunday . summary : should i say no ?", "question : tom has 3 apples and buys 14 more . how many ?",
    "answer : 17 . yes or no : is the review good ? the film was slow but the end was great .",
    "Here are some Big Words and 0 1 2 3 4 5 6 7 8 9 numbers ; they go up ( and down ) !",
]  # fmt: skip
_CLASSES = {  # architecture: config class, tokenizer class, config values
    "gpt2": ("GPT2Config", "GPT2Tokenizer", dict(n_embd=32, n_layer=2, n_head=2, n_positions=CONTEXT)),
    "llama": ("LlamaConfig", "LlamaTokenizer", dict(num_key_value_heads=1, head_dim=16)),
    "gemma": ("GemmaConfig", "GemmaTokenizer", dict(num_key_value_heads=1, head_dim=16)),
    "t5": ("T5Config", "T5Tokenizer", dict(d_model=32, d_kv=16, d_ff=64, num_layers=2, num_decoder_layers=2, num_heads=2)),
    "bert": ("BertConfig", "BertTokenizer", {}),
    "roberta": ("RobertaConfig", "RobertaTokenizer", dict(max_position_embeddings=CONTEXT + 2, type_vocab_size=1, layer_norm_eps=1e-5)),
    "deberta-v2": ("DebertaV2Config", "DebertaV2Tokenizer", dict(  # DeBERTa-v3's switches, fewer buckets
        relative_attention=True, position_buckets=32, norm_rel_ebd="layer_norm", share_att_key=True, pos_att_type=["p2c", "c2p"],
        position_biased_input=False, pooler_hidden_size=32)),
}  # fmt: skip
_COMMON = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, max_position_embeddings=CONTEXT)
ARCHS = tuple(_CLASSES)
GENERATIVE = {"gpt2": "AutoModelForCausalLM", "llama": "AutoModelForCausalLM", "gemma": "AutoModelForCausalLM", "t5": "AutoModelForSeq2SeqLM"}


def _bpe(texts, size: int, split, letters) -> tuple[list[str], list[tuple[str, str]]]:
    "Byte-pair pieces in the order of their ids, and the merges; `split` cuts texts into words, `letters` are always there."
    from tokenizers import Tokenizer, models, trainers

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = split
    raw.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=size, initial_alphabet=letters, show_progress=False))
    ids, merges = raw.get_vocab(), json.loads(raw.to_str())["model"]["merges"]
    return sorted(ids, key=ids.get), [tuple(m) for m in merges]


def _by_count(words) -> list[str]:
    "Words, the most frequent first, then by the alphabet."
    return [w for w, _ in sorted(Counter(words).items(), key=lambda x: (-x[1], x[0]))]


def _wordpiece(texts) -> list[str]:
    "WordPiece pieces: every character as a start and as a continuation, then the most frequent words whole."
    whole = _by_count(w for t in texts for w in re.findall(r"\w+|[^\w\s]", t.lower()))
    chars = sorted({c for w in whole for c in w} | set(LETTERS.lower()))
    return [*chars, *("##" + c for c in chars), *(w for w in whole if len(w) > 1)][:VOCAB]


def _unigram(texts, special: list[str]) -> list[tuple[str, float]]:
    "Unigram pieces with scores: single characters (scored low), then the most frequent words with the mark of a word's start."
    whole = _by_count(w for t in texts for w in t.split())
    chars = sorted({c for w in whole for c in w} | set(LETTERS) | {"▁"})
    scores = {p: 0.0 for p in special} | {c: -20.0 for c in chars} | {"▁" + w: -3.0 - i / 100 for i, w in enumerate(whole)}
    return list(scores.items())[:VOCAB]


def make_tokenizer(
    arch: str,  # one of ARCHS
    vocab_texts=None,  # texts the pieces are learned from, default TEXTS; special tokens are always there
):  # the family's own tokenizer class, with a context of CONTEXT tokens
    "A small tokenizer of the architecture's kind; the same texts give the same tokenizer."
    import transformers
    from tokenizers import pre_tokenizers as pre

    cls, texts = getattr(transformers, _CLASSES[arch][1]), list(vocab_texts or TEXTS)
    def ids(*pieces): return {p: i for i, p in enumerate(dict.fromkeys(pieces))}
    more = dict(model_max_length=CONTEXT)
    if arch in ("gpt2", "roberta"):
        pieces, merges = _bpe(texts, VOCAB, pre.ByteLevel(add_prefix_space=False), pre.ByteLevel.alphabet())
        if arch == "gpt2": return cls(vocab=ids(*pieces, "<|endoftext|>"), merges=merges, **more)
        return cls(vocab=ids("<s>", "<pad>", "</s>", "<unk>", *pieces, "<mask>"), merges=merges, **more)
    if arch in ("llama", "gemma"):
        pieces, merges = _bpe(texts, VOCAB - 256, pre.Metaspace(prepend_scheme="always" if arch == "llama" else "never"), list(LETTERS))
        special = ["<unk>", "<s>", "</s>"] if arch == "llama" else ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
        return cls(vocab=ids(*special, *(f"<0x{i:02X}>" for i in range(256)), *pieces), merges=merges, add_bos_token=True, **more)
    if arch == "bert": return cls(vocab=ids("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *_wordpiece(texts)), **more)
    if arch == "deberta-v2": return cls(vocab=_unigram(texts, ["[PAD]", "[CLS]", "[SEP]", "[UNK]"]), **more)
    sentinels = [(f"<extra_id_{i}>", 0.0) for i in reversed(range(100))]
    return cls(vocab=[*_unigram(texts, ["<pad>", "</s>", "<unk>"]), *sentinels], **more)


def _own_output_layer(model) -> None:
    "T5 v1.1 and Flan-T5 are published with an output layer of their own; a T5Config ties it whatever it is told, so it is put in by hand."
    import torch

    model.lm_head.weight = torch.nn.Parameter(torch.randn(model.shared.weight.shape, dtype=model.dtype))
    model.config.tie_word_embeddings = False


def make_model(
    arch: str,  # gpt2, llama, gemma, t5, bert, roberta or deberta-v2
    folder: Path | str,  # made, and filled as by save_pretrained
    head: str = "lm",  # "lm": the family's generative head (BERT-likes have none: a reward head); "reward": one score; "encoder": no head
    vocab_texts=None,  # texts for the tokenizer's pieces, default TEXTS
    seed: int = 0,  # same seed, same bytes
    **config_overrides,  # fields of the config class, e.g. num_hidden_layers=1, pad_token_id=0, dtype="bfloat16"
) -> Path:  # the folder; raises ValueError for an unknown architecture or head
    "Save a tokenizer and a model with random weights; torch's own random state is left as it was."
    import torch
    import transformers

    if arch not in ARCHS or head not in ("lm", "reward", "encoder"): raise ValueError(f"{arch!r} with head {head!r}: expected one of {ARCHS} with lm, reward or encoder")
    tok = make_tokenizer(arch, vocab_texts)
    names = dict(bos_token_id=tok.bos_token_id, eos_token_id=tok.eos_token_id, pad_token_id=tok.pad_token_id)
    if arch == "t5": names |= dict(decoder_start_token_id=tok.pad_token_id)
    if arch in ("bert", "deberta-v2"): names = dict(pad_token_id=tok.pad_token_id)
    auto = {"lm": GENERATIVE.get(arch), "encoder": "AutoModel"}.get(head) or "AutoModelForSequenceClassification"
    shape = _CLASSES[arch][2] if arch in ("gpt2", "t5") else _COMMON | _CLASSES[arch][2]
    if auto == "AutoModelForSequenceClassification": shape = shape | dict(num_labels=1)
    config = getattr(transformers, _CLASSES[arch][0])(**(dict(vocab_size=len(tok)) | names | shape | config_overrides))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = getattr(transformers, auto).from_config(config)
        if arch == "t5" and head == "lm" and config_overrides.get("tie_word_embeddings") is False: _own_output_layer(model)
    model.save_pretrained(folder)
    tok.save_pretrained(folder)
    return Path(folder)
