"""What a published preset asks for and a test can't download, made on the spot: records in the hub's own layouts, models of the same architectures.

    records("gsm8k", folder)      # the files as the hub (or PhysioNet) has them, columns and quirks included, a few dozen rows of texts made here
    model("gemma-7b-it", folder)  # a random-weight model with its family's own tokenizer and, for -it and -instruct, its chat template
    writer(folder)                # a Gemma that has learned to write in REST-PG's two forms: a random one would never be rewarded
    talker(folder)                # a T5 that answers in ConvAI2's manner: a random one writes nothing, so that all rewards are equal
    solver(folder, "gsm8k")       # a decoder that knows how answers are stated, and sometimes guesses right: a random one would never be rewarded
    grader(folder)                # an instruction-tuned Gemma that explains a person in a sentence, and gives every text the best mark
    teach(prompt, rng)            # what a teacher behind an endpoint replies to each of Synthetic-Data-RL's requests

Texts come from a small grammar, so that the same call gives the same bytes. A folder is what `rlgen` takes in the place of a hub id.
"""
import gzip
import json
import random
import re
from itertools import count
from pathlib import Path

from tiny_models import make_model

WHO = "sister brother boss neighbour roommate teacher cousin friend".split()
THING = "bicycle guitar ladder kettle camera lamp tent drill".split()
PLACE = "lake station market office garden school harbour farm".split()
DAY = "Monday Tuesday Wednesday Thursday Friday Saturday".split()
LOOK = "old heavy quiet bright cheap red small warm".split()
NAMES = "Ann Bob Cleo Dan Eva Finn Gus Hana".split()


def _pick(rng: random.Random) -> dict:
    "One word of each kind."
    return dict(who=rng.choice(WHO), thing=rng.choice(THING), place=rng.choice(PLACE), day=rng.choice(DAY), look=rng.choice(LOOK), name=rng.choice(NAMES))


def _draws(what: str, n: int):
    "n times the words for a record, and the random numbers behind them."
    for i in range(n):
        rng = random.Random(f"{what} {i}")
        yield i, rng, _pick(rng)


# ---------------------------------------------------------------- files


def _jsonl(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows).encode()
    path.write_bytes(gzip.compress(text, mtime=0) if path.suffix == ".gz" else text)


def _parquet(path: Path, rows: list[dict], features=None) -> None:
    "As the hub's own conversion: with the features in the schema."
    import datasets

    path.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_list(rows, features=features).to_parquet(str(path))


# ---------------------------------------------------------------- posts and dialogues


_POST = "My {who} left my {look} {thing} at the {place} on {day}, in the rain.\n\nI asked about it twice, and {name} says I am too strict. Am I?"


def comparisons(folder: Path) -> None:
    "openai/summarize_from_feedback, comparisons: a post compared twice, a blank before every summary, a row twice, and one whose summaries are equal."
    rows = []
    for i, rng, w in _draws("post", 40):
        info = dict(id=f"t3_{i:05x}", post=_POST.format(**w) + f" (edit {i})", title=f"{w['who'].title()} broke my {w['thing']}", subreddit=rng.choice(["relationships", "AskReddit"]), site=None, article=None)
        good = f" My {w['who']} left my {w['thing']} in the rain at the {w['place']}, {w['name']} says I am too strict when I ask."
        bad = f" {w['who']} {w['thing']}, am I strict? It was in the rain on {w['day']}, I asked and asked about it, twice, and am I?"
        for worse in (bad, f" It rained at the {w['place']} on {w['day']} and something of mine is broken now.")[: 1 + i % 2]:
            choice = rng.randrange(2)
            summaries = [dict(text=t, policy=p, note=None) for t, p in ((worse, "sup1"), (good, "ref"))]
            rows.append(dict(info=info, summaries=summaries if choice else summaries[::-1], choice=choice, worker=f"w{i % 5}", batch="batch3", split="train", extra=dict(confidence=None if i % 3 else 7)))
    rows += [rows[0], rows[1] | dict(summaries=[rows[1]["summaries"][0]] * 2)]
    _parquet(folder / "train.parquet", rows)


def tldr(folder: Path) -> None:
    "CarperAI/openai_summarize_tldr: prompts that end in TL;DR:, with the label; one post is longer than small models' contexts."
    for split, n in dict(train=20, valid=8, test=8).items():
        rows = [dict(prompt=f"SUBREDDIT: r/AskReddit\nTITLE: {w['thing'].title()}\nPOST: {_POST.format(**w)}\nTL;DR:", label=f" {w['name']} is strict about a {w['thing']}.") for _, _, w in _draws(f"tldr {split}", n)]
        rows[1]["prompt"] = rows[1]["prompt"].replace("\nTL;DR:", " And so on." * 200 + "\nTL;DR:")
        _parquet(folder / f"{split}.parquet", rows)


def dialogues(folder: Path) -> None:
    "Anthropic/hh-rlhf: gzipped lines; two rows differ before the last reply, one ends with the human, one compares a text with itself."
    rows = []
    for i, rng, w in _draws("talk", 80):
        said = f"\n\nHuman: How do I mend a {w['look']} {w['thing']}, number {i}?\n\nAssistant:"
        if rng.random() < 0.4: said += f" Is it for your {w['who']}?\n\nHuman: Yes, {w['name']} needs it on {w['day']}.\n\nAssistant:"
        good = f" Take the {w['thing']} apart, dry every part in the sun, and put it together again before {w['day']}. Ask at the {w['place']} if a part is missing."
        rows.append(dict(chosen=said + good, rejected=said + f" I don't know anything about that, sorry. Perhaps your {w['who']} knows somebody at the {w['place']} who has done this sort of thing before."))
    for i in (3, 7): rows[i]["rejected"] = rows[i]["rejected"].replace("How do I", "Why should I")
    rows[11]["chosen"] += "\n\nHuman: Thanks!"
    rows[13]["rejected"] = rows[13]["chosen"]
    _jsonl(folder / "train.jsonl.gz", rows)
    _jsonl(folder / "test.jsonl.gz", rows[:4])


# ---------------------------------------------------------------- persons and their texts


_TASKS = dict(  # task: who wrote it, the profile's field of the text, its other fields, the request, the text
    review=("reviewerId", "reviewText", dict(overall="4.0", description="A thing for the house."), "Generate the review text written by a reviewer who has given an overall rating of 4 for a {thing}. summary of the review: {look}",
            "I bought this {look} {thing} for my {who}, and it works well."),
    abstract=("name", "abstract", dict(year=2019), "Generate an abstract for the title \"On a {look} {thing}\" using the following items: 1. {thing} 2. {place}",
              "We study a {look} {thing}, and it works well for a {who}."),
    topic=("author", "content", {}, "Generate the content for a reddit post {thing} at the {place}", "My {who} bought a {look} {thing}, and it works well for us."),
)


def person_rows(task: str, split: str, n: int) -> list[dict]:
    "n requests of one LongLaMP task with the texts and the profiles of their writers."
    who, field, more, ask, text = _TASKS[task]
    rows = []
    for i, rng, w in _draws(f"{task} {split}", n):
        past = [dict(more, **{field: text.format(**_pick(rng)), "summary" if task != "abstract" else "title": rng.choice(LOOK), "id": f"{i}-{j}"}) for j in range(3 + i % 3)]
        rows.append({who: f"{split}-{i // 2}", "input": ask.format(**w), "output": text.format(**w), "profile": past})
    return rows


def longlamp(folder: Path) -> None:
    "LongLaMP's public tasks, one folder each, parts train, val and test; one target stands in its own profile, and one past text is empty."
    for task, (_, field, *_) in _TASKS.items():
        for split, n in dict(train=20, val=6, test=6).items():
            rows = person_rows(task, split, n)
            rows[0]["profile"][0][field], rows[1]["profile"][1][field] = rows[0]["output"], ""
            _parquet(folder / task / f"{split}.parquet", rows)


# ---------------------------------------------------------------- personas and stories


def persona_rows(split: str, n: int) -> list[dict]:
    "Dialogues in ConvAI2's manner: lower case, blanks around signs, the other one's turns after Q:, one's own after R:; two for each persona."
    rows = []
    for i, _, w in _draws(f"talk {split}", n):
        own = random.Random(f"{split} {i // 2}")
        persona = f"i own a {own.choice(THING)} . i work at the {own.choice(PLACE)} . my {own.choice(WHO)} is {own.choice(LOOK)} . i was born on a {own.choice(DAY).lower()} , {i // 2} years ago ."
        turns = [f"Q: hi , what did you do on {w['day'].lower()} ?", f"R: i sold my {w['thing']} , and you ?", f"Q: i went to the {w['place']} with my {w['who']} ."][: 1 if i % 2 else 3]
        rows.append(dict(question=f"persona: {persona} context:  {' '.join(turns)}", answers=[f"i like the {w['place']} , do you have a {w['thing']} ?"]))
    return rows


def convai2(folder: Path) -> None:
    "ConvAI2 as LAPDOG's authors keep it; a row stands twice."
    for split, n in dict(train=40, valid=16).items(): _jsonl(folder / f"{split}.jsonl", (rows := persona_rows(split, n)) + rows[2:3])


def fairytales(folder: Path) -> None:
    "Stories with title and text, in which words are quoted and lines break."
    rows = [dict(id=f"{w['thing']}-{i}", title=f"The {w['look']} {w['thing']}", text=f"\"It is so {w['look']},\" said the {w['thing']}.\nA {w['who']} found it at the {w['place']} and took it home on {w['day']}, to {w['name']}.") for i, _, w in _draws("tale", 30)]
    _jsonl(folder / "story.jsonl", rows)


# ---------------------------------------------------------------- tasks


def sum_question(rng: random.Random) -> tuple[str, str]:
    "A word problem of two steps, and the answer as GSM8K writes it."
    w, a, b, c = _pick(rng), rng.randint(1, 3), rng.randint(1, 3), rng.randint(1, 3)
    asked = f"{w['name']} has {a} tickets for the {w['place']} and buys {b} more on {w['day']}. Then a {w['who']} brings {c} tickets. How many tickets are there now?"
    return asked, f"{w['name']} has {a} + {b} = <<{a}+{b}={a + b}>>{a + b} tickets on {w['day']}.\nThere are {a + b} + {c} = <<{a + b}+{c}={a + b + c}>>{a + b + c} tickets now.\n#### {a + b + c}"


def gsm8k(folder: Path) -> None:
    "openai/gsm8k, main: question and answer, with the sums in << >> and #### before the last number; one of them has a comma."
    for split, n in dict(train=40, test=8).items():
        rows = [dict(zip(("question", "answer"), sum_question(rng))) for _, rng, _ in _draws(f"gsm8k {split}", n)]
        rows[0] = dict(question="A farm sells 600 lamps on Monday and as many on Friday. How many lamps are that?", answer="It sells 600 x 2 = <<600*2=1200>>1200 lamps.\n#### 1,200")
        _parquet(folder / f"{split}.parquet", rows)


_SIDES = dict(entailment="The patient has had pain on {day}.", contradiction="The patient has never had any pain.", neutral="The patient owns a {thing}.")


def clinical_pair(rng: random.Random) -> tuple[str, str, str]:
    "A premise, a hypothesis and its label."
    w, label = _pick(rng), rng.choice(list(_SIDES))
    return f"The patient, a {rng.randint(30, 90)} yo {rng.choice(['man', 'woman'])}, had severe pain since {w['day']} and was brought in from the {w['place']} by a {w['who']}.", _SIDES[label].format(**w), label


def mednli(folder: Path) -> None:
    "MedNLI's files: sentence1, sentence2 and gold_label beside ids and parses; names are blotted out as in the clinic's notes."
    for split, n in dict(train=40, test=9).items():
        rows = []
        for i, rng, w in _draws(f"mednli {split}", n):
            one, two, label = clinical_pair(rng)
            rows.append(dict(sentence1=f"{one} [**Known lastname {1000 + i}**]", pairID=f"{split}-{i}", sentence1_parse=f"(ROOT (S {w['day']}))", sentence1_binary_parse=f"( {w['day']} )", sentence2=two, sentence2_parse="(ROOT)", sentence2_binary_parse="( )", gold_label=label))
        _jsonl(folder / f"{split}.jsonl", rows)


def passages(folder: Path) -> None:
    "A library: title and text."
    _jsonl(folder / "train.jsonl", [dict(title=w["thing"].title(), text=f"A {w['look']} {w['thing']} is sold at the {w['place']}. People buy tickets and lamps there on {w['day']}, or see a doctor about their pain.") for _, _, w in _draws("passage", 30)])


def sst2(folder: Path) -> None:
    "stanfordnlp/sst2: idx, sentence (lower case, a blank at its end), label with its names in the features; the test's labels are -1, a sentence stands twice."
    import datasets

    said = dict(positive="a {look} and moving film about a {thing} , set at the {place} ", negative="a {look} mess of a film that never finds its {thing} at the {place} ")
    features = datasets.Features(dict(idx=datasets.Value("int32"), sentence=datasets.Value("string"), label=datasets.ClassLabel(names=["negative", "positive"])))
    for split, n in dict(train=80, validation=10, test=6).items():
        rows = [dict(idx=i, sentence=said["positive" if i % 2 else "negative"].format(**w) + ("" if split == "train" and i == 40 else f"{'again' * (i % 3 == 0)} {i} "), label=-1 if split == "test" else i % 2) for i, _, w in _draws(f"sst2 {split}", n)]
        _parquet(folder / f"{split}.parquet", rows + rows[:1], features)


RECORDS = dict(comparisons=comparisons, tldr=tldr, dialogues=dialogues, longlamp=longlamp, convai2=convai2, fairytales=fairytales, gsm8k=gsm8k, mednli=mednli, passages=passages, sst2=sst2)


def records(
    name: str,  # one of RECORDS
    folder: Path | str,  # made
) -> str:  # the folder
    "Write a data set's files."
    RECORDS[name](Path(folder))
    return str(folder)


# ---------------------------------------------------------------- models


def _words() -> list[str]:
    "Texts from which all tokenizers learn their pieces: the grammar's words, and the tags of both forms."
    plain = [_POST.format(**w) for _, _, w in _draws("word", 40)] + [row["output"] for task in _TASKS for row in person_rows(task, "word", 20)]
    return [*plain, *(sum_question(rng)[0] for _, rng, _ in _draws("sum", 20)), *(f"{r['question']} {r['answers'][0]}" for r in persona_rows("word", 20)), *_questions(["review"], 1)[0][:2], *["<reasoning> likes plain words . </reasoning>"] * 20, *["Output: The answer is entailment. The answer is contradiction. The answer is neutral. Answer: The answer is 5."] * 5]


_TURNS = {  # family: marks, the template of its instruction-tuned models
    "gemma": (["<start_of_turn>", "<end_of_turn>"], "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n{{ m['content'] | trim }}<end_of_turn>\n{% endfor %}"
                                                     "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"),
    "llama": (["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"], "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
                                                                          "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"),
}  # fmt: skip


def _instructed(folder: Path, family: str) -> Path:
    "Give a saved model its family's chat template, the marks as tokens of their own, and the mark that ends a turn as another end."
    from transformers import AutoModelForCausalLM, AutoTokenizer

    (marks, template), tok, model = _TURNS[family], AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    tok.add_special_tokens(dict(additional_special_tokens=marks))
    tok.chat_template = template
    model.resize_token_embeddings(len(tok), mean_resizing=False)
    model.generation_config.eos_token_id = [tok.eos_token_id, tok.convert_tokens_to_ids(marks[-1])]
    model.save_pretrained(folder)
    tok.save_pretrained(folder)
    return folder


def _qwen2(folder: Path, seed: int) -> Path:
    "Qwen2.5 as it is published: byte-level pieces, one token that ends and pads, none that begins."
    import torch
    from tiny_models import make_tokenizer
    from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

    raw = json.loads(make_tokenizer("gpt2", _words()).backend_tokenizer.to_str())["model"]
    tok = Qwen2Tokenizer(vocab=raw["vocab"], merges=[tuple(m) for m in raw["merges"]], model_max_length=1024)
    config = Qwen2Config(vocab_size=len(tok), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=1024, tie_word_embeddings=False,
                         bos_token_id=tok.eos_token_id, eos_token_id=tok.eos_token_id)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        Qwen2ForCausalLM(config).save_pretrained(folder)
    tok.save_pretrained(folder)
    return folder


LONG = dict(max_position_embeddings=2048)  # rotary positions, so room costs nothing
LOUD = dict(initializer_range=0.3)  # else a random reward model or classifier says the same of everything
MODELS = {  # name: architecture, and what make_model is told
    "gpt2": ("gpt2", {}), "deberta-v3-rm": ("deberta-v2", dict(head="reward") | LOUD), "llama": ("llama", LONG), "llama-rm": ("llama", dict(head="reward") | LOUD | LONG), "llama-instruct": ("llama", LONG), "gemma-2b": ("gemma", LONG),
    "gemma-7b-it": ("gemma", LONG), "contriever": ("bert", dict(head="encoder", max_position_embeddings=512)), "t5": ("t5", {}), "t5-v1.1": ("t5", dict(feed_forward_proj="gated-gelu", tie_word_embeddings=False)),
    "roberta": ("roberta", dict(head="encoder") | LOUD),
}  # fmt: skip


def model(
    name: str,  # one of MODELS, or qwen2
    folder: Path | str,  # made
    seed: int = 0,  # of the weights
) -> str:  # the folder
    "A random-weight model as somebody has published it."
    if name == "qwen2": return str(_qwen2(Path(folder), seed))
    arch, told = MODELS[name]
    made = make_model(arch, folder, vocab_texts=_words(), seed=seed, **told)
    return str(_instructed(made, arch) if name.endswith(("-it", "-instruct")) else made)


# ---------------------------------------------------------------- models that have learned what a reply looks like


LIKES = "likes plain words ."


def _learn(folder: str, rows: list, steps: int, batch_size: int) -> str:
    "Fine-tune a folder's model on (prompt ids, text), and put it back."
    from rlgen.lm import encode_completion, load_lm, save_lm
    from rlgen.train import sft

    lm = load_lm(folder)
    sft(lm, [(ids, encode_completion(lm, text), 1.0) for ids, text in rows], steps=steps, lr=1e-2, batch_size=batch_size, weight_decay=0.0, seed=0)
    save_lm(lm, folder)
    return folder


def writer(
    folder: Path | str,  # of a model that `model` has made
    steps: int = 130,
) -> str:  # the folder
    "Let a model learn both of REST-PG's forms from other persons' requests, so that a sample has one or the other."
    from rlgen.lm import encode_prompt, load_lm
    from rlgen.rest_pg.prompt import form, prompt_text

    lm, rows = load_lm(str(folder)), []
    for task, (_, field, *_) in _TASKS.items():
        for row in person_rows(task, "other", 16):
            ids = encode_prompt(lm, prompt_text(row["input"], [p[field] for p in row["profile"]]))
            rows += [(ids, form(LIKES, row["output"], order)) for order in ("before", "none")]
    return _learn(str(folder), rows, steps, 4)


def talker(
    folder: Path | str,  # of an encoder-decoder that `model` has made
    steps: int = 60,
) -> str:  # the folder
    "Let a model learn how people reply to each other."
    from rlgen.lapdog.data import load_dialogues
    from rlgen.lapdog.feedback import fine_tune
    from rlgen.lm import load_lm, save_lm

    lm, (talks, _) = load_lm(str(folder)), load_dialogues(persona_rows("other", 32))
    fine_tune(lm, talks, [[] for _ in talks], steps=steps, lr=1e-2, batch_size=4, seed=0)
    save_lm(lm, folder)
    return str(folder)


def solver(
    folder: Path | str,  # of a decoder that `model` has made
    task: str,  # gsm8k or mednli
    steps: int = 120,
) -> str:  # the folder
    "Let a model learn how the answers to a task are stated."
    from dataclasses import replace

    from rlgen.lm import load_lm
    from rlgen.synth_rl.tasks import SHIPPED, Example, prompt_ids, reply_text

    lm, rows = load_lm(str(folder)), []
    known = replace(SHIPPED[task], chat=bool(lm.tokenizer.chat_template))
    for _, rng, _ in _draws(f"{task} other", 48):
        asked, output = _new_sample(task == "gsm8k", rng)
        rows.append((prompt_ids(lm, known, asked), reply_text(known, Example(asked, output))))
    return _learn(str(folder), rows, steps, 2)


def _questions(tasks, n: int) -> list[tuple[str, str]]:
    "What REST-PG asks a large model about a person, and about a text."
    from rlgen.judge import LADDER, _point_request, ladder
    from rlgen.rest_pg.data import Example
    from rlgen.rest_pg.reasoning import request_reasoning

    out = []
    for task in tasks:
        for row in person_rows(task, "other", n):
            past = [p[_TASKS[task][1]] for p in row["profile"]]
            out.append((request_reasoning(Example(row["input"], row["output"], past, "u"), past), _point_request(row["input"], past[0], ladder(LADDER), row["output"])))
    return out


def grader(
    folder: Path | str,  # of an instruction-tuned model that `model` has made
    steps: int = 80,
) -> str:  # the folder
    "Let a model learn to answer both of REST-PG's questions: who is this person, and how good is this text."
    from rlgen.lm import encode_prompt, load_lm

    lm, said = load_lm(str(folder)), (f"<reasoning>{LIKES}</reasoning>", "A")
    rows = [(encode_prompt(lm, q, chat=True), a) for both in _questions(_TASKS, 16) for q, a in zip(both, said)]
    return _learn(str(folder), rows, steps, 2)


# ---------------------------------------------------------------- a teacher behind an endpoint


def _new_sample(numbers: bool, rng: random.Random) -> tuple[str, str]:
    "Input and output of a sample as the task writes them."
    if numbers:
        asked, answer = sum_question(rng)
        return asked, answer.rpartition("#### ")[2]
    one, two, label = clinical_pair(rng)
    return f"Premise: {one}\nHypothesis: {two}", label


def _solved(question: str) -> str:
    "The answer to one of the questions above."
    if "Hypothesis:" not in question: return str(sum(map(int, re.findall(r"\d+", question))))
    return next(label for label, word in dict(contradiction="never", neutral="owns", entailment="").items() if word in question.split("Hypothesis:")[1])


def teach(
    prompt: str,  # as `rlgen.synth_rl.prompts` makes it
    rng: random.Random,  # of this reply
) -> str:
    "A reply in the form that was asked for; one vote in five is wrong."
    from rlgen.synth_rl.prompts import read_prompt

    told = read_prompt(prompt)
    numbers, job = "arithmetic" in told["task"], told["job"]
    if job.startswith("Write keywords"): return "<keywords>tickets, lamp, doctor, market</keywords>"
    if job.startswith("Describe the pattern"): return "<pattern>Two sentences about somebody at a place, with small numbers.</pattern>"
    asked, output = _new_sample(numbers, rng)
    if job.startswith("Answer the question"): return f"Step by step. <answer>{_solved(told['question']) if rng.random() < 0.8 else output}</answer>"
    return f"<input>{asked}</input><output>{output}</output>"


class Teacher:
    "A stub server's body: OpenAI's answer around `teach`; counts what it was asked."

    def __init__(self, reply=teach): self.reply, self.asked, self.models = reply, count(), set()

    def __call__(self, path: str, asked: dict, raw: bytes) -> bytes:
        prompt = asked["messages"][-1]["content"]
        self.models.add(asked["model"])
        choice = dict(index=0, message=dict(role="assistant", content=self.reply(prompt, random.Random(f"{prompt}{asked['seed']}"))), finish_reason="stop")
        return json.dumps(dict(id=f"x{next(self.asked)}", object="chat.completion", created=0, model=asked["model"], choices=[choice], usage=dict(prompt_tokens=9, completion_tokens=3, total_tokens=12))).encode()
