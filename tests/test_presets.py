"Every published preset from end to end: as it stands but for sizes (params/<system>/tiny.yaml), on stand-ins for what it would download."
import importlib
import json
import math
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers import line_of
import stand_ins
import torch
from test_chat import Stub

from rlgen import cli
from rlgen.core import read_jsonl, settings
from rlgen.lm import load_lm
from rlgen.record import check_params, read_params
from rlgen.retrieval import load_encoder
from rlgen.reward import load_reward_model, same_tokens

ROOT = Path(__file__).resolve().parent.parent
PRESETS = ("pargs/tldr_paper", "pargs/hh_paper", "rest_pg/public", "rest_pg/paper", "lapdog/grpo_public", "lapdog/paper", "synth_rl/mednli", "synth_rl/gsm8k_paper", "genalign/paper")
NOWHERE = "http://127.0.0.1:1/v1"


def files(name: str) -> list[Path]:
    "A preset, and the sizes behind it."
    return [ROOT / "params" / f"{name}.yaml", ROOT / "params" / name.split("/")[0] / "tiny.yaml"]


# ---------------------------------------------------------------- what is there in the place of downloads


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    "shelf.model(name, seed), shelf.records(name): folders, each made once; shelf.writer(), grader(), talker(name), solver(name, task): models that have learned their form."
    folder = tmp_path_factory.mktemp("shelf")
    model = cache(lambda name, seed=0: stand_ins.model(name, folder / f"{name}-{seed}", seed))
    return SimpleNamespace(
        model=model, records=cache(lambda name: stand_ins.records(name, folder / name)), writer=cache(lambda: stand_ins.writer(stand_ins.model("gemma-2b", folder / "writer"))),
        grader=cache(lambda: stand_ins.grader(stand_ins.model("gemma-7b-it", folder / "grader"))), talker=cache(lambda name: stand_ins.talker(stand_ins.model(name, folder / f"talker-{name}"))),
        solver=cache(lambda name, task: stand_ins.solver(stand_ins.model(name, folder / f"solver-{name}"), task)))


def hub_ids(name: str, shelf) -> dict:
    "What stands in a preset as a hub id, as a folder."
    if name == "pargs/tldr_paper":
        rm = shelf.model("deberta-v3-rm")
        return dict(data=shelf.records("comparisons"), test_data=shelf.records("tldr"), base_model=shelf.model("gpt2"), reward_model=rm, eval_reward_model=rm, ppo_model=shelf.model("gpt2", 1))
    if name == "pargs/hh_paper": return dict(data=shelf.records("dialogues"), base_model=shelf.model("llama"), reward_model=(rm := shelf.model("llama-rm")), eval_reward_model=rm)
    if name.startswith("rest_pg"): return dict(model_name=shelf.writer(), reasoning_model=(it := shelf.grader()), retrieval_model=shelf.model("contriever")) | (dict(judge_model=it) if name == "rest_pg/paper" else {})
    if name.startswith("lapdog"): return dict(reader_model_type=shelf.talker("t5-v1.1" if name == "lapdog/paper" else "t5"), retriever_model=shelf.model("contriever"))
    if name == "synth_rl/mednli": return dict(base_model_path=shelf.solver("llama-instruct", "mednli"))
    if name == "synth_rl/gsm8k_paper": return dict(base_model_path=shelf.solver("qwen2", "gsm8k"), dataset_path=shelf.records("gsm8k"))
    return dict(dataset_path=shelf.records("sst2"), base_model=shelf.model("llama-instruct"), classifier_model=shelf.model("roberta"))


def furnish(name: str, folder: Path, shelf) -> None:
    "Put the files under data/ that a preset names itself, by the commands in its comments where there are some."
    (folder / "data").mkdir()
    if name.startswith("rest_pg"):
        for task in ("abstract", "review", "topic"):
            assert cli.main(["preprocess", "rest_pg", "--input", f"{shelf.records('longlamp')}/{task}", "--layout", "longlamp", "--split", "ready", "--output", f"data/longlamp/{task}"]) == 0
    for system, names in dict(lapdog=("convai2", "fairytales"), synth_rl=("mednli", "passages")).items():
        for data in names if name.startswith(system) else (): (folder / "data" / data).symlink_to(shelf.records(data))


@pytest.fixture
def here(tmp_path, monkeypatch):
    "A working folder outside any clone, on the CPU: here(preset, **params) gives a run that was started."
    for k in [k for k in os.environ if k.startswith("RLGEN_") or k == "OPENAI_API_KEY" or "proxy" in k.lower()]: monkeypatch.delenv(k)
    for k, v in dict(DEVICE="cpu", DTYPE="float32", NUM_PROCESSES="1").items(): monkeypatch.setenv(f"RLGEN_{k}", v)
    monkeypatch.chdir(tmp_path)
    settings.cache_clear()

    def begin(name: str, **given):
        module = importlib.import_module(f"rlgen.{name.split('/')[0]}.run")
        return module.start(check_params(module.Params, read_params(files(name), given)))
    yield begin
    monkeypatch.undo()
    settings.cache_clear()


def stages(run): return importlib.import_module(f"rlgen.{run.algo}.run").stages(run)


def done(here, shelf, name: str, **more):
    "A preset's run from end to end, with what must be true of every one."
    given = hub_ids(name, shelf) | more
    furnish(name, Path.cwd(), shelf)
    run = here(name, **given)
    out = stages(run)
    found = importlib.import_module(f"rlgen.{run.algo}.report").report(run, out)
    own, sizes = (read_params([f], {}) for f in files(name))
    changed = {k for k, v in own.items() if getattr(run.params, k) != v}
    assert changed <= set(sizes) | set(given), "everything else is the preset's"
    told = json.loads((run.out_dir / "metrics.json").read_text())
    rows = [m for m in importlib.import_module(f"rlgen.{run.algo}.setup").METHODS if m in run.params.methods] + ["custom"] * ("custom" in run.params.methods)
    golden = [f"golden-direct-{n}" for n in run.params.golden_sizes] if run.algo == "genalign" else []
    rows = [m for row in rows for m in (golden if row == "golden-direct" else [row]) if m != "oracle" or run.algo == "genalign"]
    if run.algo == "rest_pg": rows = [f"{q.name}: {m}" for q in out.problems for m in rows]
    assert list(dict.fromkeys(r["method"] for r in told["table"])) == rows and all(r["n"] > 0 for r in told["table"]) and not list(not_finite(told))
    plain_models(run)
    return SimpleNamespace(run=run, out=out, found=found, told=told, stage=lambda item: next(s for s in run.stages if str(s.item).endswith(item)))


def not_finite(value, place: str = ""):
    "Where a JSON value holds infinity or no number."
    if isinstance(value, float) and not math.isfinite(value): yield place
    for k, v in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else (): yield from not_finite(v, f"{place}/{k}")


def plain_models(run) -> None:
    "What a run leaves are folders that transformers opens by itself, every weight in its place."
    import transformers

    folders = sorted({p.parent for p in run.out_dir.rglob("config.json")})
    assert folders and not [p for p in run.out_dir.rglob("*") if "adapter" in p.name]
    for folder in folders:
        (architecture,) = json.loads((folder / "config.json").read_text())["architectures"]
        net, report = getattr(transformers, architecture).from_pretrained(folder, output_loading_info=True)
        assert not [k for k in report["missing_keys"] if not k.startswith("pooler.")] and not report["unexpected_keys"] and all(p.isfinite().all() for p in net.parameters()), folder
        assert transformers.AutoTokenizer.from_pretrained(folder)("a lamp").input_ids


def weights(folder) -> dict: return load_lm(str(folder)).model.state_dict()


def same(a: dict, b: dict) -> bool: return all(torch.equal(a[n], b[n]) for n in b)


def steps_of_low_rank(before: dict, after: dict, r: int) -> set[str]:
    "Names of the matrices that have changed; each by a matrix of rank r at most, and nothing else."
    moved = {n: after[n] - w for n, w in before.items() if not torch.equal(after[n], w)}
    assert moved and all(d.dim() == 2 and torch.linalg.matrix_rank(d.double(), atol=1e-7 * min(d.shape)).item() <= r for d in moved.values()), {n: tuple(d.shape) for n, d in moved.items()}
    assert any(min(d.shape) > r for d in moved.values()), "for some of them that says something"
    return set(moved)


# ---------------------------------------------------------------- tiny.yaml


SIZES = dict(
    pargs="num_test num_held_out num_pairs max_new_tokens rm_batch_size dpo_batch_size micro_batch batch_size eval_every num_samples",
    rest_pg="num_train num_val num_test num_iterations exploration_budget max_steps warmup_steps batch_size max_output_length reasoning_max_tokens num_samples",
    lapdog="num_train num_val num_test generation_max_length sft_steps sft_batch sft_warmup_steps feedback_steps total_steps warmup_steps per_gpu_batch_size accumulation_steps eval_freq save_freq log_every num_samples",
    synth_rl="num_initial num_votes num_rollouts num_selected steps prompts_per_step num_generations micro_batch max_completion_length sft_steps sft_batch num_val num_test eval_freq log_every num_samples",
    genalign="num_pool num_dev num_test golden_sizes oracle_size max_new_tokens samples_per_iteration max_iterations num_synthetic synthetic_size eval_sets save_every num_samples",
)


@pytest.mark.parametrize("algo", SIZES)
def test_tiny_cuts_sizes_alone(algo):
    "Whole numbers, no larger than what a preset or the defaults have; nothing that makes a preset what it is."
    module = importlib.import_module(f"rlgen.{algo}.run")
    tiny = read_params([ROOT / "params" / algo / "tiny.yaml"], {})
    assert set(tiny) == {*SIZES[algo].split(), "params_name"}
    for name in PRESETS:
        if not name.startswith(algo): continue
        preset = check_params(module.Params, read_params(files(name)[:1], {}))
        for k, v in tiny.items():
            was = getattr(preset, k)
            if k != "params_name": assert max(v) < max(was) if isinstance(v, list) else isinstance(v, int) and (v <= was or was == 0), (name, k)


# ---------------------------------------------------------------- PARGS


def test_summaries(here, shelf):
    "GPT-2 guided by DeBERTa: two tokenizers, every row; DPO moved through LoRA; an overlong post is counted, not cut."
    x = done(here, shelf, "pargs/tldr_paper")
    lm, rm = load_lm(x.run.params.base_model), load_reward_model(x.run.params.reward_model)
    assert rm.kind == "encoder" and rm.tokenizer.get_vocab() != lm.tokenizer.get_vocab() and not same_tokens(lm, rm)
    assert steps_of_low_rank(lm.model.state_dict(), weights(x.run.out_dir / "models" / "dpo-0"), x.run.params.lora_r) == {f"transformer.h.{i}.{n}.weight" for i in (0, 1) for n in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")}
    partial = load_reward_model(str(x.run.out_dir / "models" / "partial_reward_model-0"))
    assert partial.kind == "encoder" and not same(rm.model.state_dict(), partial.model.state_dict()) and x.out.headline == "eval_reward"
    assert (x.told["data"]["equal"], x.told["data"]["duplicate"], x.told["data"]["prompts_lost"]) == (1, 1, 1) and len(x.out.texts["PARGS", 2.0, 0]) == 2 == len(x.out.texts["PPO", 0.0, 0])
    said = {m: [r["ids"] for r in x.out.texts[m, x.run.params.weight(m), 0]] for m in ("GREEDY", "ARGS", "TOP-K", "BESTN")}
    assert len({str(ids) for ids in said.values()}) == 4, "the guide is heard"
    cost = {c["method"]: c["rm_tokens"] for c in x.told["cost"]}
    assert cost["GREEDY"] == cost["DPO"] == cost["PPO"] == 0 < min(cost[m] for m in ("BESTN", "ARGS", "ARGS-EOS", "ARGS-SAMPLE", "PARGS-G", "PARGS"))


@pytest.mark.slow
def test_helpful_and_harmless_dialogues(here, shelf):
    "Llama guided by Llama, on the same tokens; four rows that compare nothing."
    x = done(here, shelf, "pargs/hh_paper")
    lm, rm = load_lm(x.run.params.base_model), load_reward_model(x.run.params.reward_model)
    assert rm.kind == "causal" and same_tokens(lm, rm)
    moved = steps_of_low_rank(lm.model.state_dict(), weights(x.run.out_dir / "models" / "dpo-0"), x.run.params.lora_r)
    assert {n.split(".")[-2] for n in moved} == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert len(x.out.texts["PARGS", 2.0, 0]) == 3 and (x.told["data"]["prompt_mismatch"], x.told["data"]["human_last"], x.told["data"]["equal"]) == (2, 1, 1) and x.told["data"]["prompts_lost"] == 0
    assert {r["prompt"].startswith("\n\nHuman:") and r["prompt"].endswith("\n\nAssistant:") for r in x.out.texts["PARGS", 2.0, 0]} == {True}


# ---------------------------------------------------------------- REST-PG


def persons(x) -> None:
    "What both presets make of LongLaMP's three tasks."
    assert [q.name for q in x.out.problems] == ["abstract", "review", "topic"] == sorted(x.out.report)
    for name in x.out.report:
        report = json.loads(Path(f"data/longlamp/{name}/report.json").read_text())["read"]
        assert all(report[k]["target_item"] == 1 == report[k]["empty_item"] and report[k]["kept"] > 5 for k in ("train", "valid", "test"))
        e = x.stage(f"{name}/{x.run.params.seeds[0]}/e_step/REST-PG-1")
        kept = [a for a in read_jsonl(e.path / "attempts.jsonl") if a["kept"]]
        assert kept and all(a["reasoning"] and a["text"] and a["finished"] and a["reward"] >= x.run.params.reward_threshold for a in kept) and e.cost["samples"] == 36
    assert {(n, m) for n, m, _ in x.out.models} == {(n, m) for n in x.out.report for m in ("no-profile", "SFT", "SFT-long", "SFT-reasoning", "reasoning-after", "ReST-EM", "REST-PG")}


def test_persons_public(here, shelf):
    "A teacher of another size, run here in its chat template, and ROUGE."
    x = done(here, shelf, "rest_pg/public")
    persons(x)
    assert load_lm(x.run.params.reasoning_model).tokenizer.chat_template and not load_lm(x.run.params.model_name).tokenizer.chat_template
    assert x.run.params.seeds == [42] == x.told["seeds"] and all(s.cost["kept"] >= 1 for s in x.run.stages if s.name == "reasoning")


@pytest.mark.slow
def test_persons_paper(here, shelf):
    "The teacher is the judge, too: the most probable criterion is the reward, and only the best counts."
    x = done(here, shelf, "rest_pg/paper")
    persons(x)
    rewards = {a["reward"] for a in read_jsonl(x.stage("review/0/e_step/REST-PG-1").path / "attempts.jsonl")}
    assert rewards == {0.0, 1.0} and {r["metric"] for r in x.told["table"]} >= {"judge", "rouge", "parsed"} and not x.told["unread"]


def test_a_teacher_that_has_learned_nothing_is_one_line(here, shelf):
    "A random model's replies: none can be used, nothing is trained."
    furnish("rest_pg/public", Path.cwd(), shelf)
    run = here("rest_pg/public", **hub_ids("rest_pg/public", shelf) | dict(reasoning_model=shelf.model("gemma-7b-it"), methods=["REST-PG"]))
    assert "reasoning: none of 6 replies of the teacher could be used" in line_of(stages, run) and not run.stages


@pytest.mark.slow
def test_a_teacher_behind_an_endpoint(here, shelf):
    "The same by its name on a server."
    with Stub(body=stand_ins.Teacher(lambda prompt, rng: f"<reasoning>{stand_ins.LIKES}</reasoning>")) as stub:
        x = done(here, shelf, "rest_pg/public", reasoning_model="google/gemma-7b-it", reasoning_url=stub.url)
        assert stub.body.models == {"google/gemma-7b-it"} and len(stub.asked) == 18 and {s.cost["kept"] for s in x.run.stages if s.name == "reasoning"} == {6}


# ---------------------------------------------------------------- LAPDOG


def test_personas_grpo_public(here, shelf):
    "T5 and its retriever learn together from what stage 1 left."
    x = done(here, shelf, "lapdog/grpo_public")
    models, p = x.run.out_dir / "models", x.run.params
    before, stage1, custom = (weights(f) for f in (p.reader_model_type, models / "stage1-0" / "reader", models / "custom-0" / "reader"))
    assert not same(before, stage1) and not same(stage1, custom) and not (models / "stage1-0" / "retriever").exists()
    assert [r["step"] for r in x.stage("joint/custom").curves()] == [1, 2, 3] and (models / "custom-0" / "step-2" / "reader" / "config.json").is_file() and (models / "custom-0" / "step-2" / "retriever" / "config.json").is_file()
    assert x.stage("joint/custom").cost["replies"] == 3 * p.batch * p.grpo_group_size * p.grpo_retriever_group_size and x.told["data"]["train_data"]["repeated"] == 1
    assert all(r["reward"] > 0 for r in x.stage("joint/custom").curves()) and len({r["reply"] for r in x.out.texts["constant-published", 0]}) == 1 and x.told["data"]["overlap"]["val/test"]["personas"] == 0


@pytest.mark.slow
def test_personas_paper(here, shelf):
    "T5 of version 1.1 reads six candidates at once and goes on learning while its retriever learns from the metrics."
    x = done(here, shelf, "lapdog/paper")
    models, p = x.run.out_dir / "models", x.run.params
    reader = load_lm(str(models / "metric-kl-0" / "reader")).model
    assert reader.config.is_gated_act and not reader.config.scale_decoder_outputs and not torch.equal(reader.lm_head.weight, reader.shared.weight) and p.n_context == 6
    found, first = (load_encoder(f).model.state_dict() for f in (str(models / "metric-kl-0" / "retriever"), p.retriever_model))
    assert not same(first, found) and not same(weights(models / "closed-book-0" / "reader"), reader.state_dict())
    assert x.stage("feedback/metric-kl").cost["judged"] == 3 * p.batch * 6 and all(len(r["retrieved"]) == 6 for r in x.out.texts["bm25", 0])


# ---------------------------------------------------------------- Synthetic-Data-RL


def taught(here, shelf, name: str):
    "A run with a teacher behind an address; only the preset's teacher was asked."
    with Stub(body=stand_ins.Teacher()) as stub:
        x = done(here, shelf, name, model_url=stub.url)
        assert stub.body.models == {x.run.params.model} == {"gpt-4o"} and len(stub.asked) == x.told["cost"][[c["method"] for c in x.told["cost"]].index("full")]["teacher_requests"]
    pool = x.out.pools[0]
    assert pool["written"]["kept"] >= 6 and {s["origin"] for s in pool["samples"]} > {"initial"} and all(r["rollouts"] == 4 for r in pool["rates"]) and any(0 < r["pass_rate"] < 1 for r in pool["rates"])
    assert any(r["zero_variance"] < 1 for s in x.run.stages if s.name == "train" for r in s.curves() if "zero_variance" in r), "there was something to learn from"
    assert {m for m, _ in x.out.models} == set(x.run.params.methods) - {"base", "few-shot"} and not same(weights(x.run.params.base_model_path), weights(x.out.models["sft", 0]))
    return x


def test_word_problems(here, shelf):
    "Qwen, no chat template, numbers behind ####."
    x = taught(here, shelf, "synth_rl/gsm8k_paper")
    q = x.out.problem
    assert q.task.kind == "number" and q.test[0].output == "1200" and not q.task.chat and "<<" not in str([e.info for e in q.human(0)]) and load_lm(x.run.params.base_model_path).model.config.model_type == "qwen2"


@pytest.mark.slow
def test_clinical_notes(here, shelf):
    "Llama in its chat template, three labels."
    x = taught(here, shelf, "synth_rl/mednli")
    q, lm = x.out.problem, load_lm(x.run.params.base_model_path)
    assert q.task.kind == "label" and set(q.task.labels) == {"entailment", "neutral", "contradiction"} and q.task.chat and lm.tokenizer.chat_template and len(lm.eos_ids) == 2
    assert q.test[0].input.startswith("Premise: The patient") and "Hypothesis: " in q.test[0].input


# ---------------------------------------------------------------- GenAlign


def test_film_reviews(here, shelf):
    "Llama in its chat template through LoRA, judged by RoBERTa. Four bits need a GPU: quantization is the one value beside sizes that is changed here."
    x = done(here, shelf, "genalign/paper", quantization="none")
    assert x.out.problem.labels == ("negative", "positive") and x.out.problem.report["read"]["repeated"] == 1 and x.out.problem.report["read"]["no_label"] == 0
    base = weights(x.run.params.base_model)
    for method in ("batch-level", "per-sample"):
        last = weights(x.run.out_dir / "checkpoints" / f"{method}-0" / "iteration-0002")
        assert {n.split(".")[-2] for n in steps_of_low_rank(base, last, x.run.params.lora_r)} == set(x.run.params.lora_targets)
        assert len(read_jsonl(x.run.out_dir / "rounds" / f"{method}-0" / "iteration-0001.jsonl")) == 8 and len(x.out.history[method, 0]) == 3
    assert len({r["mean"] for r in x.told["table"] if r["metric"] == "golden_loss"}) > 3, "classifiers differ"
    assert (x.run.out_dir / "synthetic.csv").read_text().startswith("text,label")


def test_four_bits_without_a_gpu_are_one_line(here, shelf):
    assert "needs an NVIDIA GPU" in line_of(stages, here("genalign/paper", **hub_ids("genalign/paper", shelf)))


# ---------------------------------------------------------------- what isn't there


FIRST = dict(pargs="base_model", rest_pg="model_name", lapdog="reader_model_type", synth_rl="base_model_path", genalign="base_model")  # the model that is trained
OTHERS = {"pargs/tldr_paper": ("reward_model", "partial_reward_init", "partial_reward_model", "eval_reward_model", "dpo_model", "ppo_model", "judge_model"), "pargs/hh_paper": ("reward_model", "eval_reward_model"), "rest_pg/public": ("reasoning_model", "retrieval_model"),
          "rest_pg/paper": ("reasoning_model", "judge_model", "retrieval_model"), "lapdog/grpo_public": ("retriever_model",), "lapdog/paper": ("retriever_model",), "genalign/paper": ("classifier_model",)}  # those it needs besides
UNTAUGHT = dict(rest_pg=("gemma-2b", dict(retrieval_model="contriever", reasoning_model="gemma-7b-it", judge_model="gemma-7b-it")), lapdog=("t5", dict(retriever_model="contriever")), synth_rl=("llama-instruct", {}))  # stand-ins that have learned nothing


def data_only(name: str, shelf) -> dict:
    "Data as folders, models as the preset names them, and an endpoint where one is asked for."
    if name.startswith("pargs"): return dict(data=shelf.records("comparisons"), test_data=shelf.records("tldr")) if "tldr" in name else dict(data=shelf.records("dialogues"))
    if name.startswith("genalign"): return dict(dataset_path=shelf.records("sst2"), quantization="none")
    return (dict(model_url=NOWHERE) if name.startswith("synth_rl") else {}) | (dict(dataset_path=shelf.records("gsm8k")) if "gsm8k" in name else {})


def untaught(name: str, shelf) -> dict:
    "All that a preset names as folders, none of whose models has learned anything."
    algo = name.split("/")[0]
    if algo not in UNTAUGHT: return hub_ids(name, shelf) | data_only(name, shelf)
    (first, more), given = UNTAUGHT[algo], data_only(name, shelf)
    return given | {FIRST[algo]: shelf.model(first)} | {k: shelf.model(v) for k, v in more.items() if k in OTHERS.get(name, ())}


def refusing(monkeypatch, *names: str) -> None:
    "The hub gives these models to nobody, in its own words."
    import transformers

    def guarded(plain):
        def load(place, *args, **kw):
            if place in names: raise OSError("You are trying to access a gated repo.\nMake sure to have access to it at https://example.org\n401 Client Error.")
            return plain(place, *args, **kw)
        return load
    for auto in ("AutoConfig", "AutoTokenizer"): monkeypatch.setattr(getattr(transformers, auto), "from_pretrained", guarded(getattr(transformers, auto).from_pretrained))


@pytest.mark.parametrize("name", PRESETS)
def test_a_gated_model_is_one_line(here, shelf, monkeypatch, name):
    "The preset's own model, as the hub refuses it: what to do about it, before anything is done."
    furnish(name, Path.cwd(), shelf)
    run = here(name, **data_only(name, shelf))
    model = getattr(run.params, FIRST[run.algo])
    refusing(monkeypatch, model)
    said = line_of(stages, run)
    assert said.startswith(f"{model}: a gated model") and "HF_TOKEN" in said and not run.stages


@pytest.mark.parametrize("name", PRESETS)
def test_a_missing_folder_is_one_line(here, shelf, name):
    furnish(name, Path.cwd(), shelf)
    run = here(name, **untaught(name, shelf) | {FIRST[name.split("/")[0]]: f"{Path.cwd()}/nowhere"})
    assert line_of(stages, run).endswith("nowhere: no such model folder") and not run.stages


@pytest.mark.parametrize("name, which", [(name, k) for name, ks in OTHERS.items() for k in ks])
def test_every_other_model_is_looked_for_first(here, shelf, monkeypatch, name, which):
    "A folder that isn't there and a gated model, in the place of each of them: told before anything is trained or written."
    furnish(name, Path.cwd(), shelf)
    refusing(monkeypatch, "some/gated-model")
    for value, said in ((f"{Path.cwd()}/nowhere", "nowhere: no such model folder"), ("some/gated-model", "HF_TOKEN")):
        run = here(name, **untaught(name, shelf) | {which: value}, params_name=value[-5:])
        assert said in line_of(stages, run) and not run.stages, f"{value}: told after {len(run.stages)} pieces of work"


@pytest.mark.parametrize("name", PRESETS)
def test_a_missing_file_is_one_line(here, shelf, name):
    "Nothing lies where the data should: its name, before anything is done."
    given = data_only(name, shelf)
    for k in ("data", "dataset_path"):
        if k in given: given[k] = "data/nowhere.jsonl"
    run = here(name, **given)
    said = line_of(stages, run)
    assert "no such file" in said and said.startswith("data/") and not run.stages


@pytest.mark.parametrize("name", ("synth_rl/mednli", "synth_rl/gsm8k_paper"))
def test_a_teacher_that_is_not_there_is_one_line(here, shelf, name):
    "An address at which nobody answers."
    furnish(name, Path.cwd(), shelf)
    said = line_of(stages, here(name, **untaught(name, shelf)))
    assert "127.0.0.1:1" in said or "connection" in said


# ---------------------------------------------------------------- as a person types it


@pytest.mark.slow
@pytest.mark.parametrize("name", ("pargs/tldr_paper", "rest_pg/public", "lapdog/grpo_public", "synth_rl/gsm8k_paper", "genalign/paper"))
def test_the_command_and_its_notebook(shelf, tmp_path, monkeypatch, name):
    "rlgen run with both files and a -p for everything that lies elsewhere."
    monkeypatch.chdir(tmp_path)
    furnish(name, tmp_path, shelf)
    data = tmp_path / "data"
    more = dict(lapdog=dict(train_data=f"{data}/convai2/train.jsonl", eval_data=f"{data}/convai2/valid.jsonl", passages=f"{data}/fairytales/story.jsonl"), genalign=dict(quantization="none"), synth_rl=dict(library=f"{data}/passages"),
                rest_pg=dict(datasets=json.dumps({task: [f"{data}/longlamp/{task}/{part}.jsonl" for part in ("train", "valid", "test")] for task in ("abstract", "review", "topic")})))
    with Stub(body=stand_ins.Teacher()) as stub:
        given = hub_ids(name, shelf) | more.get(name.split("/")[0], {}) | (dict(model_url=stub.url) if name.startswith("synth_rl") else {})
        as_typed(name, [w for f in files(name) for w in ("-f", str(f.relative_to(ROOT)))] + [w for k, v in given.items() for w in ("-p", k, v)], tmp_path)


def as_typed(name: str, words: list[str], tmp_path: Path) -> None:
    "The command, its notebook and its table."
    env = os.environ | dict(RLGEN_CACHE_DIR=str(tmp_path / "cache"), RLGEN_RESULTS_DIR=str(tmp_path / "results"), RLGEN_NUM_PROCESSES="1", RLGEN_DEVICE="cpu", HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1")
    ended = subprocess.run([sys.executable, "-m", "rlgen", "run", name.split("/")[0], *words], cwd=ROOT, env=env, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert ended.returncode == 0, ended.stderr[-2000:]
    (folder,) = (tmp_path / "results" / "runs" / name.split("/")[0]).iterdir()
    nb = json.loads((folder / "run.ipynb").read_text())
    assert folder.name.startswith("tiny-") and not [o for c in nb["cells"] for o in c.get("outputs", []) if o["output_type"] == "error"] and len(list(folder.glob("*.png"))) >= 2
    assert all(r["method"] in ended.stdout for r in json.loads((folder / "metrics.json").read_text())["table"])
