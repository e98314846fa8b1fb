"The stand-in models behave like the families they stand in for: loading, padding, special tokens, the same bytes for the same seed."
import os
import string
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_models import ARCHS, GENERATIVE, make_model, make_tokenizer

TEXT = "the cat sat on the mat ."
PLAIN = string.digits + string.ascii_letters + string.punctuation
SPECIAL = {  # arch: pad, bos, eos as tokens; what a lone text is wrapped in
    "gpt2": (None, "<|endoftext|>", "<|endoftext|>", [], []),
    "llama": (None, "<s>", "</s>", ["<s>"], []),
    "gemma": ("<pad>", "<bos>", "<eos>", ["<bos>"], []),
    "t5": ("<pad>", None, "</s>", [], ["</s>"]),
    "bert": ("[PAD]", None, None, ["[CLS]"], ["[SEP]"]),
    "roberta": ("<pad>", "<s>", "</s>", ["<s>"], ["</s>"]),
    "deberta-v2": ("[PAD]", "[CLS]", "[SEP]", ["[CLS]"], ["[SEP]"]),
}
IDS = {  # token ids that published checkpoints of the family have too
    "llama": {"<unk>": 0, "<s>": 1, "</s>": 2}, "gemma": {"<pad>": 0, "<eos>": 1, "<bos>": 2, "<unk>": 3}, "t5": {"<pad>": 0, "</s>": 1, "<unk>": 2},
    "bert": {"[PAD]": 0}, "roberta": {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3}, "deberta-v2": {"[PAD]": 0, "[CLS]": 1, "[SEP]": 2, "[UNK]": 3}, "gpt2": {},
}  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    "Each model once: folders(arch, head)."
    made = {}

    def get(arch: str, head: str = "lm") -> Path:
        if (arch, head) not in made: made[arch, head] = make_model(arch, tmp_path_factory.mktemp(f"{arch}-{head}"), head=head)
        return made[arch, head]

    return get


def load(folder: Path, auto: str):
    import transformers

    model, report = getattr(transformers, auto).from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    return transformers.AutoTokenizer.from_pretrained(folder), model.eval()


@pytest.mark.parametrize("arch", ARCHS)
def test_tokenizer(arch, folders):
    from transformers import AutoConfig, AutoTokenizer

    folder = folders(arch)
    tok, config = AutoTokenizer.from_pretrained(folder), AutoConfig.from_pretrained(folder)
    pad, bos, eos, before, after = SPECIAL[arch]
    assert (tok.pad_token, tok.bos_token, tok.eos_token) == (pad, bos, eos)
    assert tok.convert_tokens_to_ids(list(IDS[arch])) == list(IDS[arch].values())
    ids = tok(TEXT)["input_ids"]
    pieces = tok.convert_ids_to_tokens(ids)
    assert pieces[: len(before)] == before and pieces[len(pieces) - len(after) :] == after
    assert len(ids) == 7 + len(before) + len(after), "every word of the sentence is one piece"
    again = tok.decode(ids, skip_special_tokens=True)
    assert again == (TEXT.replace(" .", ".") if arch == "bert" else TEXT) and tok(again)["input_ids"] == ids
    assert tok.unk_token_id not in tok(f"{TEXT} {' '.join(PLAIN)} {PLAIN}", add_special_tokens=False)["input_ids"], "plain ASCII is known"
    assert (tok.unk_token_id in tok("日本")["input_ids"]) == (arch in ("t5", "bert", "deberta-v2")), "the others fall back to bytes"
    assert len(tok) == config.vocab_size < 1000 and tok.model_max_length == 256
    if arch in ("bert", "deberta-v2"): bos = eos = None  # their configs name only the pad token
    for name, token in (("pad", pad), ("bos", bos), ("eos", eos)):
        assert getattr(config, f"{name}_token_id", None) == (token and tok.convert_tokens_to_ids(token)), name
    assert sum(p.stat().st_size for p in folder.iterdir()) < 1e6 and (folder / "model.safetensors").is_file()


@pytest.mark.parametrize("head", ["lm", "reward", "encoder"])
@pytest.mark.parametrize("arch", ARCHS)
def test_padding_does_not_change_a_row(arch, head, folders):
    "A short text gives the same numbers alone, padded on the right and, where the family allows it, padded on the left."
    import torch

    auto = {"lm": GENERATIVE.get(arch), "encoder": "AutoModel"}.get(head) or "AutoModelForSequenceClassification"
    tok, model = load(folders(arch, head), auto)
    if tok.pad_token_id is None: tok.pad_token, model.config.pad_token_id = tok.unk_token, tok.unk_token_id
    if arch == "t5" and head == "encoder": model = model.get_encoder()

    @torch.no_grad()
    def first_row(texts, side):
        batch = tok(texts, padding=True, padding_side=side, return_tensors="pt")
        real = batch["attention_mask"].bool()
        if arch in ("gpt2", "llama", "gemma"): batch["position_ids"] = (real.cumsum(1) - 1).clamp(min=0)
        if arch == "t5" and head == "lm": batch["decoder_input_ids"] = torch.tensor([[0, 5, 6]] * len(texts))
        out = model(**batch)
        row = (out.logits if "logits" in out else out.last_hidden_state)[0]
        return row[real[0]] if row.shape[:1] == real.shape[1:] else row

    alone, both = first_row(["the cat sat ."], "right"), ["the cat sat .", f"{TEXT} {TEXT}"]
    assert alone.shape[-1] == (1 if auto.endswith("Classification") else model.config.vocab_size if head == "lm" else 32)
    torch.testing.assert_close(first_row(both, "right"), alone, atol=1e-5, rtol=1e-4)
    left = first_row(both, "left")
    # BERT counts positions from the left edge; RoBERTa, DeBERTa and T5 take their score from a fixed end of the text
    if arch == "bert" or (arch in ("roberta", "deberta-v2", "t5") and alone.shape == (1,)): assert left.isfinite().all()
    else: torch.testing.assert_close(left, alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("arch", ARCHS)
def test_takes_its_whole_context(arch, folders):
    "256 tokens, the special ones among them, fit; longer texts are cut to that."
    tok, model = load(folders(arch, "encoder"), "AutoModel")
    batch = tok([TEXT * 60], truncation=True, return_tensors="pt")
    assert batch["input_ids"].shape == (1, 256)
    if arch == "t5": model = model.get_encoder()
    assert model(**batch).last_hidden_state.isfinite().all()


@pytest.mark.parametrize("arch", GENERATIVE)
def test_generates_and_stops_at_eos(arch, folders):
    import torch

    tok, model = load(folders(arch), GENERATIVE[arch])
    batch = tok([TEXT], return_tensors="pt")
    out = model.generate(**batch, max_new_tokens=5, do_sample=False, pad_token_id=0)
    assert 0 < out.shape[1] - (0 if arch == "t5" else batch["input_ids"].shape[1]) <= 6
    assert model.generation_config.eos_token_id == tok.eos_token_id
    forced = torch.full((1, model.config.vocab_size), -1e9)
    forced[:, tok.eos_token_id] = 0
    out = model.generate(**batch, max_new_tokens=5, do_sample=False, pad_token_id=0, logits_processor=[lambda ids, scores: forced])
    assert out[0, -1] == tok.eos_token_id and out.shape[1] == (2 if arch == "t5" else batch["input_ids"].shape[1] + 1)


def test_overrides_reach_the_folder(tmp_path):
    import torch

    folder = make_model("t5", tmp_path / "t5", feed_forward_proj="gated-gelu", tie_word_embeddings=False, num_layers=1, dtype="bfloat16", vocab_size=512)
    tok, model = load(folder, "AutoModelForSeq2SeqLM")
    assert model.dtype == torch.bfloat16 and len(model.encoder.block) == 1 and model.config.vocab_size == 512 > len(tok)
    assert not torch.equal(model.lm_head.weight, model.shared.weight) and model.config.is_gated_act and not model.config.scale_decoder_outputs
    tok, model = load(make_model("t5", tmp_path / "tied"), "AutoModelForSeq2SeqLM")
    assert torch.equal(model.lm_head.weight, model.shared.weight) and model.config.scale_decoder_outputs
    tok, model = load(make_model("llama", tmp_path / "llama", head="reward", pad_token_id=0), "AutoModelForSequenceClassification")
    assert model.config.pad_token_id == 0 and model.config.num_labels == 1


def test_vocabulary_follows_the_texts():
    texts = ["zebra zebra quilt quilt"] * 3
    for arch in ARCHS:
        known, plain = make_tokenizer(arch, texts), make_tokenizer(arch)
        pieces = [len(t(" zebra quilt", add_special_tokens=False)["input_ids"]) for t in (known, plain)]
        assert pieces[0] <= 3 < pieces[1], (arch, pieces)


def test_unknown_names_are_refused(tmp_path):
    for arch, head in (("gpt3", "lm"), ("gpt2", "score")):
        with pytest.raises(ValueError, match="expected one of"): make_model(arch, tmp_path, head=head)
    assert not list(tmp_path.iterdir())


_AGAIN = """
import sys; sys.path.insert(0, sys.argv[1])
from tiny_models import ARCHS, make_model
for seed in (0, 1):
    for arch in ARCHS: make_model(arch, f"{sys.argv[2]}/{seed}/{arch}", seed=seed)
"""


def test_same_seed_same_bytes(folders, tmp_path):
    "In another process, with another hash seed: the same weights, the same tokenizer. Another seed: other weights, the same tokenizer."
    import torch

    env = os.environ | {"PYTHONHASHSEED": "7", "TOKENIZERS_PARALLELISM": "false"}
    subprocess.run([sys.executable, "-c", _AGAIN, str(Path(__file__).parent), str(tmp_path)], check=True, env=env, capture_output=True)
    before = torch.random.get_rng_state()
    for arch in ARCHS:
        for name in ("model.safetensors", "tokenizer.json", "config.json"):
            here, same, other = ((f / name).read_bytes() for f in (folders(arch), tmp_path / "0" / arch, tmp_path / "1" / arch))
            assert here == same, (arch, name)
            assert (here != other) == (name == "model.safetensors"), (arch, name)
    make_model("gpt2", tmp_path / "rng")
    assert torch.equal(before, torch.random.get_rng_state())
