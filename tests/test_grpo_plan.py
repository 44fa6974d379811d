"""The study of GRPO at equal cost: its plan, its rounds, and a run of every kind of row with a tiny model."""

import json

import pytest
from typer.testing import CliRunner

torch = pytest.importorskip("torch", reason="needs the train extra")

from daedalus.cli import app
from daedalus.paths import data_dir
from daedalus.schema import INFORMED_GREEDY
from daedalus.training import grpo, train
from daedalus.training.train import GrpoPhase, Place, borrow_levers, profile
from daedalus.training.variants import BASE, AblationPlan, ablation_plan, planned_rounds, read_records, record_key

PLAN = ablation_plan(data_dir() / "grpo.json")
CLAIMS = [BASE, "form only", "entropy bonus", "imitation alone", "after imitation"]


def test_every_row_costs_the_same_simulated_rounds():
    rounds = {name: planned_rounds(chosen) for name, chosen in PLAN.profiles().items()}
    assert 5.5e6 < min(rounds.values()) and max(rounds.values()) <= 1.02 * min(rounds.values()), rounds


def test_the_committed_records_belong_to_the_committed_plan_and_cost_what_it_says():
    profiles, records = PLAN.profiles(), read_records(data_dir() / "grpo" / "records.json")
    made = [(record["variant"], record["seed"]) for record in records]
    assert made and len(set(made)) == len(made) and set(made) <= set(PLAN.runs())
    for record in records:
        chosen = profiles[record["variant"]]
        assert record["key"] == record_key(chosen, record["seed"], PLAN.episodes, PLAN.suites, PLAN.best_of)
        assert record["rounds"] == pytest.approx(planned_rounds(chosen), rel=0.02)
        assert {len(measured["rewards"]) for measured in record["held out"].values()} == {PLAN.episodes}


def test_rows_that_carry_a_claim_have_five_seeds_and_the_others_two():
    seeds = {name: [seed for row, seed in PLAN.runs() if row == name] for name in PLAN.profiles()}
    assert {name: len(own) for name, own in seeds.items()} == {name: 5 if name in CLAIMS else 2 for name in seeds}
    assert 14 <= len(seeds) <= 17 and all(own == list(range(len(own))) for own in seeds.values())


def test_the_rows_are_what_is_asked_of_grpo():
    rows = PLAN.profiles()
    last = {name: chosen.phases[-1] for name, chosen in rows.items()}
    settings = {name: phase.settings for name, phase in last.items() if phase.kind == "grpo"}
    assert {chosen.beta for chosen in settings.values()} == {0.0, 0.1, 0.7}
    assert {chosen.generations for chosen in settings.values()} == {8, 16, 64}
    assert {chosen.populations for chosen in settings.values()} == {"all", "briefs", "curriculum"}
    algorithms = [chosen.algorithm for chosen in settings.values()]
    assert {0.01, 0.0} == {chosen.entropy_coef for chosen in algorithms} and {1.3, 1.0} == {c.temperature for c in algorithms}
    assert {0.28, None} == {chosen.epsilon_high for chosen in algorithms} and last["looks ahead"].plays_on == "policy"
    starts = {name: [phase.kind for phase in chosen.phases if phase.kind != "grpo"] for name, chosen in rows.items()}
    assert {tuple(dict.fromkeys(kinds)) for kinds in starts.values()} == {
        ("sft",), ("sft", "reading"), ("sft", "imitation"), ("sft", "imitation", "trial")}
    assert last["imitation alone"].kind == "imitation" and PLAN.best_of == 8 and "briefs" in PLAN.suites
    for chosen in settings.values():
        assert chosen.batch_size % chosen.generations == 0


def test_who_plays_on_is_a_setting_and_the_usual_choice_names_no_training():
    assert "plays_on" not in GrpoPhase().to_json() and '"plays_on":"policy"' in GrpoPhase(plays_on="policy").to_json()
    with pytest.raises(ValueError, match="plays_on must be one of teacher, nobody, policy, not 'me'"):
        GrpoPhase(plays_on="me")


@pytest.mark.parametrize("who", ["policy", "nobody", "teacher"])
def test_who_plays_on_is_asked(who, tmp_path, monkeypatch):
    asked, smoke = [], profile("smoke")
    phase = smoke.phases[-1].replace(plays_on=who)
    model, tokenizer = train.restore_policy(smoke.policy, 0, None)
    monkeypatch.setattr(train, "reinforce", lambda *given: asked.append(given[-1]) or grpo.GrpoResult([], 0, {}))
    monkeypatch.setattr(train, "_teacher", lambda *given: (type("Taught", (), {"seeing": "the teacher"}), 0.0))
    train.RUNNERS["grpo"](model, tokenizer, phase, Place(smoke, 0, 2, tmp_path, tmp_path))
    then, = asked
    assert then is None if who == "nobody" else then == "the teacher" if who == "teacher" else then.model is model


# Every kind of row, in small

SMALL = {"batch_size": 16, "generations": 4, "futures": 1, "horizon": 2}
FORM = {"kind": "sft", "pairs": 320, "tuning": {"steps": 40, "batch_size": 16, "learning_rate": 0.01}}
SHORT = {"steps": 2, "batch_size": 16}
TINY = {
    "about": "every kind of row with a model too small to learn anything", "seeds": [0, 1], "episodes": 3, "best_of": 2,
    "suites": ["stages", "briefs"],
    "base": {"about": "reading, then GRPO", "policy": {"layers": 1, "width": 32, "heads": 2}, "phases": [
        FORM, {"kind": "reading", "lesson": {"populations": 50}, "tuning": SHORT},
        {"kind": "grpo", "settings": {"steps": 3, **SMALL}}]},
    "variants": [
        {"name": "looks ahead", "factor": "horizon", "seeds": [1], "changes": {"phases": {"grpo": {"plays_on": "policy"}}}},
        {"name": "briefs", "factor": "populations", "seeds": [1], "changes": {"phases": {"grpo": {"settings": {
            "populations": "briefs", "algorithm": {"entropy_coef": 0.01, "temperature": 1.3}}}}}},
        *({"name": name, "factor": "start", "seeds": [1], "changes": {
            "levers": {"turns": 1, "experts": 0, "populations": 50, "steps": 5},
            "phases": [FORM, {"kind": "imitation", "lesson": {"populations": 50}, "tuning": SHORT}, *more]}}
          for name, more in (("imitation alone", []), ("after imitation", [{"kind": "grpo", "settings": {"steps": 1, **SMALL}}]))),
    ],
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder in which the command has trained the tiny plan, with every reply counted as a mechanism."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "tiny.json").write_text(json.dumps(TINY))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(grpo.Reply, "read", classmethod(lambda cls, text, complete=False: cls(text, INFORMED_GREEDY, None)))
        done = CliRunner().invoke(app, ["ablate", "--plan", "tiny.json"])
    assert done.exit_code == 0, done.output
    assert done.stdout.endswith("6 trainings, 2 seeds at most; records: build/tiny.json\n")
    return folder


def test_a_plan_of_ones_own_has_its_folder_and_its_records(trained):
    records = {(record["variant"], record["seed"]): record for record in read_records(trained / "build" / "tiny.json")}
    plan = AblationPlan.from_json(json.dumps(TINY))
    assert list(records) == plan.runs()
    for record in records.values():
        assert list(record["held out"]) == [f"{suite}, {how}" for suite in ("stages", "briefs")
                                            for how in ("signals", "published", "sampled", "best of 2")]
        assert {len(measured["rewards"]) for measured in record["held out"].values()} == {3}
    assert records["imitation alone", 1]["history"] == {} and len(records[BASE, 1]["history"]["composite"]) == 3


def test_the_rounds_of_a_training_are_those_that_its_settings_say(trained):
    plan = AblationPlan.from_json(json.dumps(TINY))
    for record in read_records(trained / "build" / "tiny.json"):
        stops = 0.02 if record["variant"] in ("looks ahead", "after imitation") else 0.0   # how often an episode ends is chance
        assert record["rounds"] == pytest.approx(planned_rounds(plan.profiles()[record["variant"]]), rel=stops, abs=0)


def test_a_teacher_is_learned_once_for_all_rows_of_a_seed(trained):
    records = {(record["variant"], record["seed"]): record for record in read_records(trained / "build" / "tiny.json")}
    assert (trained / "build" / "tiny" / "base-1" / "levers-1-0-50-5-1" / "designer.npz").exists()
    first, second = (records[name, 1]["seconds"]["teacher"] for name in ("imitation alone", "after imitation"))
    assert second < first / 4


def test_a_teacher_is_borrowed_once_and_never_from_other_code(trained, tmp_path, monkeypatch):
    plan, lender = AblationPlan.from_json(json.dumps(TINY)), trained / "build" / "tiny" / "base-1"
    taught = plan.profiles()["imitation alone"]
    assert not borrow_levers(plan.base, 1, tmp_path / "untaught", lender) and not borrow_levers(taught, 0, tmp_path, lender)
    assert borrow_levers(taught, 1, tmp_path / "mine", lender) and not borrow_levers(taught, 1, tmp_path / "mine", lender)
    name = "levers-1-0-50-5-1/designer.npz"
    assert (tmp_path / "mine" / name).read_bytes() == (lender / name).read_bytes()
    monkeypatch.setattr(train, "code_hash", lambda function: "0123456789abcdef")
    assert not borrow_levers(taught, 1, tmp_path / "other code", lender)


@pytest.mark.parametrize("words, sentence", [
    (["--plan", "missing.json"], "--plan 'missing.json' is no file: name one such as data/grpo.json"),
    (["--plan", "half.json"], "half.json")])
def test_a_plan_that_is_none_is_one_sentence(words, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "half.json").write_text("{")
    done = CliRunner().invoke(app, ["ablate", *words])
    assert done.exit_code == 2 and done.stderr.count("\n") == 1 and sentence in done.stderr, done.output
