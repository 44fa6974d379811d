"""The training pipeline: profiles, resuming after a kill, and what it leaves behind."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")

from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from daedalus.market.bidders import Population
from daedalus.env import SUITES
from daedalus.training.grpo import GrpoSettings
from daedalus.designers.language import LanguageDesigner
from daedalus.paths import data_dir
from daedalus.schema import Mechanism
from daedalus.training.train import (
    RECIPE, SHIPPED, AsPublished, history_table, phase_folders, profile, profiles, report_rows, run_phases, stage_name, train,
    train_further, validation)


@pytest.mark.parametrize("name", profiles())
def test_every_profile_is_valid_and_begins_with_the_shape(name):
    assert profile(name).phases[0].kind == "sft"


def test_the_card_profile_has_the_published_hyperparameters():
    chosen = profile("card")
    grpo = chosen.phases[-1].settings
    assert (chosen.policy.base_model, chosen.policy.lora_rank, chosen.policy.quantisation) == (
        "Qwen/Qwen2.5-1.5B-Instruct", 16, "nf4")
    assert (grpo.generations, grpo.steps, grpo.batch_size, grpo.accumulation, grpo.learning_rate) == (4, 50, 4, 2, 5e-6)
    assert chosen.phases[0].tuning.steps == 300 and grpo.weights == (1, 1, 1, 1)


def test_an_unknown_profile_is_one_sentence():
    with pytest.raises(ValueError, match="profile must be one of small, .*, not 'smal'"):
        profile("smal")


def test_stage_names_and_progress():
    chosen = profile("small")
    names = [stage_name(chosen, number) for number in range(len(chosen.phases))]
    assert [name for name in names if name] == ["SFT", "SFT+RFT", "SFT+RFT+GRPO"] and names[-1] == "SFT+RFT+GRPO"
    grpo = [p for phase, p in zip(chosen.phases, chosen.progress) if phase.kind == "grpo"]
    assert grpo[0] == 0 and grpo == sorted(grpo) and grpo[-1] < 1


KILLED = """
import functools, os, signal, sys
from daedalus.training import train

@functools.wraps(train.RUNNERS["rft"])   # the phase before it stands on the code that is here
def killed(model, tokenizer, phase, place):
    (place.folder / "half.bin").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)

train.RUNNERS["rft"] = killed
list(train.run_phases(train.profile("smoke"), sys.argv[1], 3))
"""


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, smoke_training):
    """The folder of a training's phases, with the designer that it handed over in `designer`, and its record."""
    folder = shutil.copytree(smoke_training, tmp_path_factory.mktemp("uninterrupted") / "copy")
    os.rename(folder / "designer", folder / "work" / "designer")
    return folder / "work", json.loads((folder / "record.json").read_text())


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def test_a_killed_training_goes_on_to_the_same_bits(uninterrupted, tmp_path):
    done, record = uninterrupted
    process = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], env=os.environ | {"OMP_NUM_THREADS": "1"},
                             capture_output=True, text=True)
    assert process.returncode == -signal.SIGKILL, process.stderr
    assert [path.name for path in tmp_path.glob("0*")] == ["00-sft"] and len(list(tmp_path.glob(".phase-*/half.bin"))) == 1
    again = train("smoke", 3, tmp_path, episodes=5)
    assert weights(tmp_path / "designer") == weights(done / "designer")
    assert again["reports"] == record["reports"]
    assert [p["history"] for p in again["phases"]] == [p["history"] for p in record["phases"]]


def test_a_changed_profile_keeps_the_phases_before_the_change(uninterrupted, tmp_path):
    work, record = shutil.copytree(uninterrupted[0], tmp_path / "work"), uninterrupted[1]
    chosen = profile("smoke")
    changed = chosen.replace(phases=(*chosen.phases[:2], chosen.phases[2].replace(
        settings=chosen.phases[2].settings.replace(steps=1))))
    told = [told for _, told in run_phases(changed, work, 3)]
    assert told[:2] == record["phases"][:2] and len(told[2]["history"]) == 1
    kept, = Path(work).glob("02-grpo.*")
    assert json.loads((kept / "phase.json").read_text()) == record["phases"][2]


def test_what_a_training_leaves_behind(uninterrupted):
    work, record = uninterrupted
    designer = work / "designer"
    AutoModelForCausalLM.from_pretrained(designer)
    assert not list(designer.glob("adapter*")) and "SFT+RFT+GRPO" in (designer / "README.md").read_text()
    table = history_table(record["phases"])
    assert len(table) == sum(len(p["history"]) for p in record["phases"]) and table["step"].is_monotonic_increasing
    assert (designer / "training_history.csv").read_text().count("\n") == len(table) + 1
    history = json.loads((designer / "training_history.json").read_text())
    assert [kind for kind, _ in history] == ["sft", "rft", "grpo"]
    assert sum(len(rows) for _, rows in history) == len(table)
    rows = report_rows(record["reports"])
    assert [row["stage"] for row in rows] == ["SFT", "SFT+RFT", "SFT+RFT+GRPO"]
    assert rows[0]["rounds"] == 0 and rows[1]["rounds"] > 100_000
    assert list(record["validation"]) == list(record["reports"])
    assert all(0 <= told["mean"] <= 1 and told["error"] > 0 for told in record["validation"].values())


def test_the_stage_that_validates_best_is_handed_over(uninterrupted):
    work, record = uninterrupted
    best = max(record["validation"], key=lambda stage: record["validation"][stage]["mean"])
    phase = ["SFT", "SFT+RFT", "SFT+RFT+GRPO"].index(best)   # the profile has one phase of each kind
    assert record["shipped"] == best
    handed, kept = (load_file(folder / "model.safetensors") for folder in (
        work / "designer", phase_folders(profile("smoke"), work)[phase]))
    assert all(torch.equal(handed[name], kept[name]) for name in handed)


def test_the_teacher_has_its_place_in_the_record(uninterrupted):
    _, record = uninterrupted
    told, chosen = record["teacher"], profile("smoke")
    assert told["rounds"] == chosen.teacher_rounds + 2 * chosen.ahead_rounds
    assert record["reports"]["SFT+RFT"]["rounds"] > told["rounds"] and 0 < told["validation"]["mean"] < 1
    assert {len(told[f"{name}, {seen}"]["rewards"]) for name in SUITES for seen in ("signals", "published")} == {5}


def test_the_shipped_designer_is_of_the_training_that_validated_best():
    records = [json.loads(file.read_text(encoding="utf-8")) for file in (data_dir() / "training").glob(f"{RECIPE}-[0-9]*.json")]
    assert records and len({json.dumps(record["provenance"]["parameters"]["profile"]) for record in records}) == 1
    shipped = max(records, key=lambda record: record["validation"][record["shipped"]]["mean"])
    assert f"{RECIPE}-{shipped['seed']}" == SHIPPED
    told = json.loads((data_dir() / "designer" / "training_history.json").read_text())
    assert told == [[phase["kind"], phase["history"]] for phase in shipped["phases"]]


def test_validation_is_paired_between_designers_and_meets_no_held_out_population(monkeypatch):
    from daedalus.training import train as module
    from daedalus.designers.base import FixedDesigner
    from daedalus.env import suite
    from daedalus.schema import DEFAULT_MECHANISM, INFORMED_GREEDY

    met, play = [], module.play
    monkeypatch.setattr(module, "play", lambda player, people, keys: (met.append((people, keys)), play(player, people, keys))[1])
    default, greedy = (validation(FixedDesigner(m), 40) for m in (DEFAULT_MECHANISM, INFORMED_GREEDY))
    assert met[0] == met[1] and not set(met[0][0]) & set(suite("open"))
    table = play(FixedDesigner(DEFAULT_MECHANISM), *met[0]).groupby("index")["reward"].mean()
    assert default == {"mean": table.mean(), "error": table.sem()} and default != greedy


def test_training_further_repeats_to_the_bit_and_leaves_the_saved_designer_as_it_was():
    settings = GrpoSettings(steps=1, batch_size=32, generations=8, warm_up=0, averaging=0.0, published_share=0.0)
    saved, threads = weights(data_dir() / "designer"), torch.get_num_threads()

    def flat(designer):
        return torch.cat([p.detach().flatten() for p in designer.model.parameters()])

    (first, told), (again, told_again) = (train_further(settings, 3) for _ in range(2))
    other, _ = train_further(settings, 3, lambda rng: Population(exploiter=16, n_items=4))
    assert torch.equal(flat(first), flat(again)) and told.history == told_again.history and len(told.history) == 1
    assert not torch.equal(flat(first), flat(LanguageDesigner.load())) and not torch.equal(flat(first), flat(other))
    assert not first.model.training and first.constrained
    assert weights(data_dir() / "designer") == saved and torch.get_num_threads() == threads


def test_as_published_hides_what_is_not_published():
    class Sees:
        def design_batch(self, observations):
            assert all(o.signals is None and o.mechanism is None for o in observations)
            return [Mechanism()] * len(observations)

    from daedalus.market.bidders import Population
    from daedalus.env import DaedalusEnv

    assert AsPublished(Sees())(DaedalusEnv(Population.stage(2)).reset()) == Mechanism()
