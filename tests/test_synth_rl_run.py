"The run of Synthetic-Data-RL: parameters that don't fit, stages that are found again, and what every row learned from."
import json
import random
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import here_of, line_of, working_in
from test_chat import Stub

from rlgen.core import read_jsonl, settings
from rlgen.lm import build_lm, load_lm, save_lm, word_tokenizer
from rlgen.record import check_params, read_params
from rlgen.sampling import Cost
from rlgen.synth_rl import models
from rlgen.synth_rl.answers import correct
from rlgen.synth_rl.models import answers_of, choose, imitated, read_pool
from rlgen.synth_rl.report import COSTS, cost_table, curve_rows, curves_figure, levels_table, main_table, pool_rows, pool_table, rates_figure, read_tables, report
from rlgen.synth_rl.run import apart, check, stages
from rlgen.synth_rl.setup import MAIN, METHODS, RL, ROWS, TRAINED, WRITTEN, Params, load_problem, rewards_of, start, teacher_of
from rlgen.synth_rl.tasks import reply_text
from rlgen.synth_rl.train import sft_rows
from rlgen.train import sft
from rlgen.worlds import synth_rl as world

ROOT = Path(__file__).resolve().parent.parent
SMALL = dict(num_train=80, num_val=6, num_test=12, num_initial=20, num_votes=3, adaptation_rounds=1, num_rollouts=6, num_selected=10, num_generations=3, prompts_per_step=4, steps=2, sft_steps=2, sft_batch=4, eval_freq=1, log_every=1, num_samples=2)


here = here_of("synth_rl")


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> str:
    "A model that has learned what replies look like, and little more."
    folder = tmp_path_factory.mktemp("base")
    lm = build_lm(word_tokenizer([" ".join(world.vocabulary())]), width=24, layers=1)
    tasks = world.make_tasks("train", 300, 7, (1, 2))
    from rlgen.lm import encode_completion, encode_prompt
    sft(lm, [(encode_prompt(lm, t.input), encode_completion(lm, t.worked), 1.0) for t in tasks], steps=60, lr=1e-2)
    save_lm(lm, folder / "model")
    return str(folder / "model")


@pytest.fixture(scope="module")
def done(tmp_path_factory, base):
    "A small run of all rows."
    folder = tmp_path_factory.mktemp("done")
    with pytest.MonkeyPatch.context() as patch:
        begin = working_in(folder, patch, "synth_rl")
        run = begin(methods=list(METHODS), base_model_path=base, target_model_path=str(folder / "target"), **SMALL)
        out = stages(run)
        found = report(run, out)
        again = begin(methods=list(METHODS), base_model_path=base, target_model_path=str(folder / "target"), **SMALL)
        before = {p: p.stat().st_mtime_ns for p in (folder / "cache").rglob("stage.json")}
        stages(again)
        after = {p: p.stat().st_mtime_ns for p in (folder / "cache").rglob("stage.json")}
        other = begin(methods=["full"], base_model_path=base, params_name="other", **SMALL | dict(lr=1e-4))
        stages(other)
        later = set((folder / "cache").rglob("stage.json"))
    settings.cache_clear()
    return SimpleNamespace(folder=folder, run=run, out=out, found=found, before=before, after=after, new={p.parent.name.rsplit("-", 1)[0] for p in later - set(after)})


def stage_of(x, item): return next(s for s in x.run.stages if s.item == f"0/{item}")


# parameters

@pytest.mark.parametrize("given, words", [
    (dict(seeds=[]), "seeds"), (dict(seeds=[1, 1]), "seeds"), (dict(seeds=[-1]), "seeds"), (dict(methods=[]), "methods is empty"), (dict(dataset_path="world/spraed"), "the worlds are"),
    (dict(band=[0.8, 0.2]), "band"), (dict(band=[0.5]), "band"), (dict(num_rollouts=4), "num_generations = 8"), (dict(drop_flat=True, selection="never_solved_first"), "drop_flat"),
    (dict(num_demos=0), "few-shot"), (dict(library_how="both"), "library_encoder"), (dict(dataset_path="my.csv"), "library is empty"), (dict(dataset_path="my.csv", num_passages=0), "model is empty")])
def test_values_that_do_not_fit(here, given, words):
    assert words in line_of(here, **given)


def test_unknown_values_name_their_neighbours():
    assert "select-band" in line_of(check_params, Params, dict(methods=["select-bnd"])) and "chance_corrected" in line_of(check_params, Params, dict(selection="chance-corrected"))
    assert "num_votes" in line_of(check_params, Params, dict(num_vote=3))


def test_rows_are_named_after_what_they_do():
    assert set(MAIN) < set(METHODS) and len(METHODS) == 16 and ROWS["full"] == ("adapted", "rl", "paper") and set(TRAINED) - set(RL) == {"sft", "sft-own", "sft-worked"}
    assert not {"base", "few-shot", "gold-same", "gold-all"} & set(WRITTEN)
    assert {m.removeprefix("select-") for m in METHODS if m.startswith("select-")} == {"never_solved_first", "band", "p(1-p)", "chance_corrected"}


def test_published_names_are_kept(here):
    run = here(experiment_name="mine", methods=["base"])
    assert run.params.params_name == "mine" and run.out_dir.name.startswith("mine-")
    for name in ("task_name", "task_instruction", "dataset_path", "domain", "library", "num_passages", "model", "base_model_path", "target_model_path", "num_initial", "num_selected", "num_rollouts", "num_votes", "adaptation_rounds", "num_demos"): assert hasattr(Params(), name)


@pytest.mark.parametrize("preset", sorted((ROOT / "params" / "synth_rl").glob("*.yaml")), ids=lambda p: p.stem)
def test_presets_start(here, preset, monkeypatch):
    monkeypatch.setenv("RLGEN_CHAT_BASE_URL", "http://localhost:1/v1")
    settings.cache_clear()
    p = check_params(Params, read_params([preset], {}))
    assert start(p).params == p and p.params_name == preset.stem


def test_a_part_of_a_run_is_half_a_seed():
    parts = apart(Params(seeds=[3, 4], methods=list(METHODS)))
    assert {(s, m) for part in parts for s in part["seeds"] for m in part["methods"]} == {(s, m) for s in (3, 4) for m in TRAINED} and len(parts) == 4
    assert apart(Params(methods=["base"])) == []


# data

def test_the_world_is_split():
    q = load_problem(Params(num_train=300, num_val=50, num_test=50))
    parts = [{e.input for e in rows} for rows in (q.rows(0), q.val, q.test)]
    assert not parts[0] & parts[1] and not parts[0] & parts[2] and not parts[1] & parts[2]
    assert {e.input for e in q.rows(0)} != {e.input for e in q.rows(1)} and len(q.demos(0)) == 4 and not {e.id for e in q.demos(0)} & {e.id for e in q.human(0)}
    assert all(q.gold(e.input) == e.output and q.level(e.input) == e.input.count(",") + 1 for e in q.test)
    assert rewards_of(Params(), q.task)(["x"] * 2, [f"1 2 . answer {q.test[0].output}", q.test[0].input], output=[q.test[0].output] * 2) == [1.0, 0.0]


def rows_file(path: Path, rows: list[dict]) -> None: path.write_text("".join(json.dumps(r) + "\n" for r in rows))


def test_somebodys_rows(tmp_path):
    for split in ("train", "test"): rows_file(tmp_path / f"{split}.jsonl", [dict(Input=f"{split} {i}", Output=["yes", "no"][i % 2]) for i in range(40)])
    p = check_params(Params, dict(dataset_path=str(tmp_path), task_instruction="Say yes or no.", num_passages=0, num_val=5, num_test=7, num_train=20))
    q = load_problem(p)
    assert q.task.kind == "label" and set(q.task.labels) == {"yes", "no"} and (len(q.val), len(q.test), len(q.rows(0))) == (4, 7, 20) and not {e.id for e in q.val} & {e.id for e in q.rows(0)}
    assert q.gold is None and len(q.human(1)) == 16
    assert "task_instruction" in line_of(load_problem, check_params(Params, dict(dataset_path=str(tmp_path), num_passages=0)))
    sure = load_problem(check_params(Params, dict(dataset_path=str(tmp_path), task_instruction="Say yes or no.", num_passages=0, task_kind="text")))
    assert sure.task.kind == "text"


def test_a_known_name_brings_its_definition(tmp_path):
    for split in ("train", "test"): rows_file(tmp_path / f"{split}.jsonl", [dict(question=f"{split} what is {i} + 1 ?", answer=f"one more #### {i + 1}") for i in range(30)])
    q = load_problem(check_params(Params, dict(dataset_path=str(tmp_path), task_name="gsm8k", num_passages=0)))
    assert q.task.kind == "number" and "step by step" in q.task.instruction and q.test[3].output == "4"
    assert load_problem(check_params(Params, dict(dataset_path=str(tmp_path), task_name="gsm8k", task_instruction="Count.", num_passages=0))).task.instruction == "Count."


@pytest.mark.slices
@pytest.mark.parametrize("name", ["gsm8k", "medqa", "snli"])
def test_real_rows(slices, name):
    files = {p.name.split(".")[0] for p in (slices / name).iterdir()}
    train, test = ("train", "test") if files >= {"train", "test"} else (min(files), min(files))  # one file: for reading alone
    q = load_problem(check_params(Params, dict(dataset_path=str(slices / name), task_name=name, train_split=train, test_split=test, num_passages=0, num_test=30)))
    assert len(q.test) == 30 and all(correct(q.task, f"The answer is {e.output}.", e.output) for e in q.test)


# a run

def test_every_row_is_there(done):
    out = done.out
    assert list(dict.fromkeys(m for m, _ in out.answers)) == list(METHODS) and all(len(rows) == 12 for rows in out.answers.values())
    assert {m for m, _ in out.chosen} == {m for m, _ in out.models} == set(TRAINED)
    assert all(r["correct"] == correct(out.problem.task, r["completion"], r["output"]) for rows in out.answers.values() for r in rows)


def test_rows_learned_from_what_the_table_says(done):
    out, pool = done.out, done.out.pools[0]
    initial, of = {s["id"] for s in pool["samples"] if s["origin"] == "initial"}, {r["id"]: r["pass_rate"] for r in pool["rates"]}
    ids = {m: [r["id"] for r in rows] for (m, _), rows in out.chosen.items()}
    assert ids["sft"] == ids["full"] and set(ids["no-adaptation"]) <= initial and set(ids["random-initial"]) <= initial and not set(ids["full"]) <= initial
    rank = lambda i: of[i] or 1.0
    assert [rank(i) for i in ids["full"]] == sorted(rank(i) for i in of)[:10] and [of[i] for i in ids["select-never_solved_first"]] == sorted(of.values())[:10]
    assert len(ids["gold-same"]) == 10 and len(ids["gold-all"]) == 76 and set(ids["gold-same"]) < set(ids["gold-all"])
    demos = {e.input for e in out.problem.demos(0)}
    assert not demos & {r["input"] for rows in out.chosen.values() for r in rows} and not {e.input for e in out.problem.test} & {s["input"] for s in pool["samples"]}


def test_three_ways_to_imitate(done):
    p, task, rates = done.run.params, done.out.problem.task, stage_of(done, "rates/voted").path
    samples, solved, known = read_pool(stage_of(done, "pool/voted").path, "S_synth"), read_jsonl(rates / "solved.jsonl"), read_jsonl(rates / "rates.jsonl")
    assert [r["id"] for r in solved] == [r["id"] for r in known] and all(bool(s["replies"]) == bool(r["passed"]) and len(set(s["replies"])) == len(s["replies"]) <= r["passed"] for s, r in zip(solved, known))
    chosen = choose(p, done.out.problem, "sft", 0, samples, known)
    (plain, none), (worked, nothing), (own, texts) = (imitated(m, chosen, solved) for m in ("sft", "sft-worked", "sft-own"))
    assert none is nothing is None and [reply_text(task, s) for s in plain] == [f"answer {s.output}" for s in chosen]
    assert all(reply_text(task, s).startswith("first ") and correct(task, reply_text(task, s), s.output) for s in worked)
    assert own and all(correct(task, t, s.output) for s, t in zip(own, texts)) and {s.id for s in own} <= {s.id for s in chosen}
    lm = load_lm(p.base_model_path)
    assert [lm.tokenizer.decode(r[1], skip_special_tokens=True) for r in sft_rows(lm, task, own, texts)[0]] == texts


def test_nothing_of_ones_own_is_one_line(done, tmp_path, monkeypatch):
    pool, rates = (stage_of(done, n).path for n in ("pool/voted", "rates/voted"))
    (tmp_path / "rates.jsonl").write_text((rates / "rates.jsonl").read_text())
    (tmp_path / "solved.jsonl").write_text("".join(json.dumps(r | dict(replies=[])) + "\n" for r in read_jsonl(rates / "solved.jsonl")))
    assert "nothing to imitate" in line_of(models.learn, tmp_path, print, done.run.params, done.out.problem, "sft-own", 0, str(pool), str(tmp_path))


def test_without_votes_labels_are_the_writers(done):
    unvoted = [r for (m, _), rows in done.out.chosen.items() if m == "no-vote" for r in rows]
    assert all(r["output"] == r["single"] and "agreement" not in r for r in unvoted)
    assert all(r["votes"] <= 3 and r["agreement"] > 0.5 for r in done.out.chosen["full", 0])


def test_published_files(done):
    folder = stage_of(done, "pool/voted").path
    parts = {name: {s.id for s in read_pool(folder, name)} for name in ("S_solved", "S_unsolved", "S_harder", "S_easier", "S_synth")}
    first = {s.id for s in read_pool(stage_of(done, "votes/voted").path, "S_initial")}
    assert parts["S_solved"] | parts["S_unsolved"] == first and not parts["S_solved"] & parts["S_unsolved"]
    assert parts["S_synth"] == first | parts["S_harder"] | parts["S_easier"] and not first & parts["S_harder"]
    by = {s.id: s for s in read_pool(folder, "S_synth")}
    for name, was in (("S_harder", "S_solved"), ("S_easier", "S_unsolved")): assert all(by[i].parent in parts[was] for i in parts[name])


def test_solved_is_what_the_base_model_answers(done, base):
    p, task, lm = done.run.params, done.out.problem.task, load_lm(base)
    folder = stage_of(done, "pool/voted").path
    for name, right in (("S_solved", True), ("S_unsolved", False)):
        samples = read_pool(folder, name)
        assert [correct(task, t, s.output) for t, s in zip(answers_of(p, lm, task, samples), samples)] == [right] * len(samples)


def test_a_second_run_does_nothing(done):
    assert done.before == done.after and len(done.before) > 30


def test_another_learning_rate_pays_nobody(done):
    assert done.new == {"train", "answers"}


def test_the_target_is_a_model(done, base):
    assert torch.equal(load_lm(str(done.folder / "target")).model.lm_head.weight, load_lm(str(done.out.models["full", 0])).model.lm_head.weight)
    assert not torch.equal(load_lm(str(done.folder / "target")).model.lm_head.weight, load_lm(base).model.lm_head.weight)


def test_a_taken_target_is_left_alone(here, base, tmp_path):
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "mine.txt").write_text("mine")
    run = here(methods=["full"], base_model_path=base, target_model_path=str(tmp_path / "target"), **SMALL)
    assert "holds something" in line_of(stages, run) and (tmp_path / "target" / "mine.txt").read_text() == "mine"


def test_few_shot_shows_what_fits(done, base):
    p, q, lm = done.run.params, done.out.problem, load_lm(base)
    ids = models._fitting(p, lm, q.task, q.test[0], q.demos(0))
    text = lm.tokenizer.decode(ids)
    assert len(ids) + p.max_completion_length <= lm.context and text.count("where is it ?") in (2, 3, 4, 5) and text.strip().endswith(q.test[0].input)


def test_costs_add_up(done):
    cost = done.out.cost
    assert cost["base", 0]["teacher_requests"] == cost["gold-all", 0]["teacher_requests"] == 0
    assert cost["full", 0]["teacher_requests"] > cost["no-vote", 0]["teacher_requests"] > 20 and cost["full", 0]["teacher_requests"] > cost["random-initial", 0]["teacher_requests"]
    assert cost["full", 0]["completions"] == 2 * 4 * 3 and cost["sft", 0]["completions"] == 2 * 4 and cost["base", 0]["train_steps"] == 0


def test_report_can_be_made_again(done):
    found, again = done.found, read_tables(done.run.out_dir)
    assert json.loads(json.dumps(again["table"])) == json.loads(json.dumps(found["table"])) and {r["b"] for r in found["pairs"]} == set(METHODS) - {"full"}
    metrics = json.loads((done.run.out_dir / "metrics.json").read_text())
    assert metrics["run"] == "synth_rl" and {r["metric"] for r in metrics["table"]} == {"accuracy"} and {r["part"] for r in metrics["pool"]} == {"initial", "adapted"}
    mean = {r["method"]: r["mean"] for r in found["table"]}
    assert mean["base"] == pytest.approx(sum(r["correct"] for r in done.out.answers["base", 0]) / 12, abs=1e-4)


def test_tables_and_pictures(done):
    rows = pool_rows(done.out)
    assert all(r["never"] + r["always"] <= 1 and 0 <= r["flat"] <= 1 for r in rows) and {"single", "voted"} <= set(rows[0]) and rows[1]["samples"] > rows[0]["samples"]
    assert list(main_table(done.found).index) == list(METHODS) and list(cost_table(done.found["cost"]).columns) == list(COSTS.values()) and list(pool_table(rows).index) == ["initial", "adapted"]
    curves = curve_rows(done.run)
    assert {r["method"] for r in curves} == set(TRAINED) and all("zero_variance" in r for r in curves if r["method"] in RL)
    with_flat = cost_table(done.found["cost"], curves)
    assert {m for m in METHODS if with_flat.loc[m, "flat groups"]} == set(RL) and all(0 <= float(with_flat.loc[m, "flat groups"]) <= 1 for m in RL)
    assert len(rates_figure(done.out).axes) == 3 and len(curves_figure(curves).axes) == 3 and set(levels_table(done.out).index) == set(METHODS)
    assert curves_figure([]) is None and rates_figure(SimpleNamespace(pools={}, chosen={})) is None


def test_runs_of_one_seed_agree(done, here, base):
    out = stages(here(methods=["random-initial", "gold-same"], base_model_path=base, **SMALL))
    for m in ("random-initial", "gold-same"): assert [r["completion"] for r in out.answers[m, 0]] == [r["completion"] for r in done.out.answers[m, 0]]


def test_flat_samples_can_be_left_out(done):
    from dataclasses import replace
    p, pool = replace(done.run.params, drop_flat=True, num_selected=100), done.out.pools[0]
    samples = read_pool(stage_of(done, "pool/voted").path, "S_synth")
    of = {r["id"]: r["pass_rate"] for r in pool["rates"]}
    assert {s.id for s in choose(p, done.out.problem, "full", 0, samples, pool["rates"])} == {i for i, r in of.items() if 0 < r < 1}
    never = [r | dict(pass_rate=0.0) for r in pool["rates"]]
    assert "no sample is left" in line_of(choose, p, done.out.problem, "full", 0, samples, never)


def test_the_ablation_has_samples_of_its_own(done, here, base):
    run = here(methods=["random-initial"], base_model_path=base, dataset_path="world/spread", **SMALL)
    out = stages(run)
    level = out.problem.level
    longest = [max(level(s["input"]) for s in pools[0]["samples"] if s["origin"] == "initial") for pools in (done.out.pools, out.pools)]
    assert longest[0] <= 3 < longest[1]
    assert next(s for s in run.stages if s.name == "samples").key != stage_of(done, "samples").key


def test_no_library_no_passages(here, base):
    run = here(methods=["random-initial"], base_model_path=base, num_passages=0, **SMALL)
    stages(run)
    assert not any(s.name == "library" for s in run.stages) and all("passages" not in r for r in read_jsonl(next(s for s in run.stages if s.name == "samples").path / "S_written.jsonl"))


@pytest.mark.parametrize("given, said", [
    (dict(reward_weights=dict(answr=1.0)), "no reward 'answr'"), (dict(reward_weights=dict(answer=0.0)), "all are 0"), (dict(micro_batch=5), "must divide"), (dict(optimizer="adamm"), "optimizer"), (dict(use_vllm=True), "needs a GPU"),
    (dict(autocast="fp16"), "needs a GPU"), (dict(model="zoo/nobody"), "zoo/nobody"), (dict(library_encoder="zoo/nobody"), "zoo/nobody"), (dict(methods=["base"], target_model_path="there"), "add full to methods"), (dict(labels=[True, False]), "in quotes"),
])
def test_what_would_stop_it_later_is_told_first(here, base, given, said):
    "Before the teacher is asked for anything: it costs money."
    run = here(**SMALL | dict(methods=["full"], base_model_path=base) | given)
    assert said in line_of(stages, run) and not run.stages


def test_rows_without_rewards_take_any_reward_parameters(here, base):
    "What acts on no row that is asked for stops nothing; and all human rows may be demonstrations where none is learned from."
    p = here(**SMALL | dict(methods=["base"], base_model_path=base, micro_batch=5, model="zoo/nobody", num_demos=80))
    assert check(p).test


def test_an_encoder_decoder_is_refused(here):
    assert "decoder" in line_of(stages, here(methods=["base"], base_model_path="zoo/tales", num_test=2, num_val=2))


def test_teachers():
    assert teacher_of(Params()).name == "world-easy-0.04" and teacher_of(check_params(Params, dict(dataset_path="world/spread"))).name.startswith("world-spread")
    assert type(teacher_of(check_params(Params, dict(model="zoo/posts")))).__name__ == "Local" and teacher_of(check_params(Params, dict(model="gpt", model_url="http://localhost:1/v1"))).model == "gpt"


def test_cost_is_counted(done, base):
    cost = Cost()
    answers_of(done.run.params, load_lm(base), done.out.problem.task, done.out.problem.test, cost=cost)
    assert cost.lm_tokens == done.out.cost["base", 0]["lm_tokens"]


# a teacher behind an address, and what it does wrong

class Teaching:
    "The world's teacher as a server; `served` are the requests it was paid for."

    def __init__(self, reply=None):
        self.served, self.reply = [], reply or (lambda prompt, rng: world.reply(prompt, rng, 0.04, "easy"))

    def __call__(self, path, asked, raw) -> bytes:
        prompt = asked["messages"][-1]["content"]
        choice = dict(index=0, message=dict(role="assistant", content=self.reply(prompt, random.Random(f"{prompt}{asked['seed']}"))), finish_reason="stop")
        return json.dumps(dict(id="x", object="chat.completion", created=0, model="t", choices=[choice], usage=dict(prompt_tokens=9, completion_tokens=3, total_tokens=12))).encode()

    def paid(self, asked):
        self.served.append((asked["messages"][-1]["content"], asked["seed"]))


def taught(here, base, stub, **more):
    return here(**SMALL | dict(methods=["random-initial", "full"], base_model_path=base, model="t", model_url=stub.url) | more)


def test_a_teacher_that_stops_midway_is_asked_for_the_rest(here, base):
    teacher = Teaching()
    def mood(asked):
        if len(teacher.served) >= limit: return 503, {"retry-after": "3600"}
        teacher.paid(asked)
    with Stub(always=mood, body=teacher) as stub:
        for limit in (10, 50, 110):
            assert "3600 s" in line_of(stages, taught(here, base, stub)) and limit <= len(teacher.served) <= limit + 8
        limit = 10**6
        out = stages(taught(here, base, stub))
        assert set(m for m, _ in out.answers) == {"random-initial", "full"} and out.cost["full", 0]["teacher_requests"] >= len(teacher.served) > 120
        assert len(set(teacher.served)) == len(teacher.served), "nothing is paid twice"
        whole = len(teacher.served)
        stages(taught(here, base, stub, lr=1e-4, selection="band", num_selected=8))
        assert len(teacher.served) == whole, "another selection asks for nothing"


@pytest.mark.parametrize("job, words", (("Write keywords", "keywords: none of 3 replies could be read"), ("Write a new sample", "Once upon a time."), ("Answer the question", "voting: none of 60 replies")))
def test_a_teacher_that_talks_nonsense_is_one_line(here, base, job, words):
    reply = lambda prompt, rng: "Once upon a time." if prompt.rsplit("\n", 1)[-1].startswith(job) else world.reply(prompt, rng, 0.04, "easy")
    with Stub(body=Teaching(reply)) as stub:
        assert words in line_of(stages, taught(here, base, stub)) and len(stub.asked) < 200


def test_a_key_that_is_refused_is_one_line(here, base):
    with Stub(always=401, body=Teaching()) as stub:
        assert "key" in line_of(stages, taught(here, base, stub)) and len(stub.asked) <= 8


def test_the_papers_presets_ask_for_what_was_published():
    "Guo et al. 2025, and the public description's example."
    for name in ("gsm8k_paper", "mednli"):
        p = check_params(Params, read_params([ROOT / "params" / "synth_rl" / f"{name}.yaml"], {}))
        assert (p.num_initial, p.num_selected, p.num_rollouts, p.num_votes, p.adaptation_rounds, p.selection) == (500, 500, 64, 16, 1, "paper")
        assert (p.model, p.temperature, p.lr, p.beta, p.prompts_per_step, p.num_generations, p.steps) == ("gpt-4o", 1.2, 1e-6, 0.01, 64, 16, round(5 * 500 / 64))
        assert (p.sft_lr, p.sft_batch, p.sft_steps) == (2e-5, 64, round(3 * 500 / 64)) and p.base_model_path == dict(gsm8k_paper="Qwen/Qwen2.5-7B", mednli="meta-llama/Llama-3.1-8B-Instruct")[name]


def test_the_benchmarks_notebook(tmp_path):
    "From end to end, tiny, without network."
    import os
    import subprocess
    import sys
    small = dict(num_questions=10, num_rollouts=[4], one_by_one_answers=6, repeats=1, num_passages=[200], num_queries=4, top_k=3, out_dir=str(tmp_path))
    done = subprocess.run([sys.executable, "-m", "papermill", "nbs/run_benchmarks_synth_rl.ipynb", str(tmp_path / "out.ipynb"), "-y", json.dumps(small)], cwd=ROOT, env=os.environ | dict(HF_HUB_OFFLINE="1", RLGEN_DEVICE="cpu", RLGEN_DTYPE="float32"),
                          capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads((tmp_path / "synth_rl.json").read_text())
    assert [(r["way"], r["answers"]) for r in found["rows"]] == [("plain", 40), ("ours", 40)] and found["rows"][0]["times_as_fast"] == 1 and found["rows"][1]["times_as_fast"] > 1
    (library,) = found["library"]
    assert library["passages"] == 200 and library["queries_per_second"] > 1 and 0 < library["found"] <= 3 and 0.05 < library["build_gigabytes"] < 4 and (tmp_path / "synth_rl.png").stat().st_size > 5000
