"""What a training keeps: whole, made by the code that is here, or made again; nobody else's, and nothing lost."""

import json
import os
import shutil
import signal
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from shared import HEARS, PATIENCE, until

pytest.importorskip("torch", reason="needs the train extra")

from daedalus import results
from daedalus.training import train
from daedalus.jobs import code_hash
from daedalus.paths import PACKAGE
from daedalus.results import short_hash
from daedalus.training.train import borrow_phases, phase_folders, profile, run_phases

SMOKE = profile("smoke")
REASON = "was made by other code or other versions of packages: it is made again"
ran = []  # number of each phase that ran


def restored(policy, seed, before):
    "Weights in place of a model."
    folder = before or (Path(policy.base_model) if policy.base_model else None)
    return (folder / "model.safetensors").read_text() if folder else "random", "text"


def saved(model, tokenizer, folder):
    (folder / "model.safetensors").write_text(ran[-1][1])


def phase_in_no_time(model, tokenizer, phase, place):
    "A phase that makes other weights of a model's."
    ran.append((place.number, short_hash(model, phase.to_json(), str(place.phase_seed))))
    (place.folder / "rows.json").write_text("[1, 2]")
    return {"rounds": 1, "seconds": {"update": 0.1}, "history": []}


class Taught:
    "A teacher in no time."

    @classmethod
    def learn(cls, *others):
        ran.append(("teacher", ""))
        return cls()

    def save(self, file):
        file.write_text("a critic")

    @classmethod
    def load(cls, file):
        return file.read_text()


@pytest.fixture(autouse=True)
def in_no_time(monkeypatch):
    "Phases without PyTorch; everything about keeping them is as it is."
    monkeypatch.setattr(train, "RUNNERS", dict.fromkeys(train.RUNNERS, phase_in_no_time))
    monkeypatch.setattr(train, "restore_policy", restored)
    monkeypatch.setattr(train, "save_policy", saved)
    monkeypatch.setattr(train, "try_library", lambda *others: None)
    monkeypatch.setattr(train, "Teacher", Taught)
    ran.clear()


@pytest.fixture
def edited(tmp_path, monkeypatch):
    "A function after which the library's sources are others on disk; what is in memory stays."
    def edit(module):
        sources = tmp_path / "sources"
        shutil.copytree(PACKAGE, sources, ignore=shutil.ignore_patterns("__pycache__", "data"))
        with (sources / module).open("a") as file:
            file.write("\n# a remark\n")
        monkeypatch.setattr(results, "PACKAGE", sources)
        code_hash.cache_clear()

    yield edit
    monkeypatch.undo()
    code_hash.cache_clear()


def trained(work, chosen=SMOKE, seed=3):
    "The numbers of the phases that ran, and the weights after the last."
    ran.clear()
    *_, (folder, _) = run_phases(chosen, work, seed)
    return [number for number, _ in ran], (folder / "model.safetensors").read_text()


def test_finished_phases_are_not_run_again(tmp_path):
    numbers, weights = trained(tmp_path)
    assert numbers == [0, 1, 2] and trained(tmp_path) == ([], weights)


@pytest.mark.parametrize("module", ["market/engine.py", "schema.py", "training/sft.py", "training/policy.py"])
def test_phases_of_other_code_are_set_aside_and_run_again(tmp_path, edited, capsys, module):
    work = tmp_path / "work"
    _, weights = trained(work)
    edited(module)
    assert trained(work) == ([0, 1, 2], weights)
    told = capsys.readouterr().err
    for folder in phase_folders(SMOKE, work):
        aside, = work.glob(f"{folder.name}.*")
        assert f"{folder} {REASON}; what was there is now {aside.name}" in told and (aside / "model.safetensors").exists()
    assert trained(work) == ([], weights) and not capsys.readouterr().err.count("made again")


def test_code_that_training_does_not_stand_on_changes_nothing(tmp_path, edited):
    _, weights = trained(tmp_path / "work")
    edited("studies/screens.py")
    assert trained(tmp_path / "work") == ([], weights)


@pytest.mark.parametrize("package", ["numpy", "numba", "torch", "transformers", "trl", "peft", "tokenizers"])
def test_phases_of_other_versions_of_packages_are_run_again(tmp_path, monkeypatch, package):
    from daedalus import jobs

    _, weights = trained(tmp_path)
    for module in (results, jobs):
        monkeypatch.setattr(module, "version", lambda name: "0" if name == package else metadata.version(name))
    code_hash.cache_clear()
    assert trained(tmp_path) == ([0, 1, 2], weights)
    monkeypatch.undo()
    code_hash.cache_clear()


@pytest.mark.parametrize("file, content, again", [
    ("00-sft/phase.json", b"", [0]), ("01-rft/phase.json", b'{"rounds": 1', [1]), ("02-grpo/phase.json", b"[]", [2]),
    ("00-sft/phase.json", b"\xff", [0]), ("00-sft/model.safetensors", b"", [0]), ("01-rft/rows.json", b"[1,", [1]),
    ("02-grpo/model.safetensors", None, [2]), ("00-sft/phase.json", b"null", [0])])
def test_a_damaged_phase_is_run_again_and_no_other(tmp_path, capsys, file, content, again):
    _, weights = trained(tmp_path)
    path = tmp_path / file
    path.write_bytes(content) if content is not None else path.unlink()
    assert trained(tmp_path) == (again, weights)
    assert f"{path.parent} is damaged: it is made again" in capsys.readouterr().err


def test_other_settings_are_set_aside_with_their_reason(tmp_path, capsys):
    _, weights = trained(tmp_path)
    changed = SMOKE.replace(phases=(*SMOKE.phases[:2], SMOKE.phases[2].replace(adapters=2)))
    assert trained(tmp_path, changed)[0] == [2]
    assert f"{tmp_path / '02-grpo'} was made with other settings: it is made again" in capsys.readouterr().err
    assert trained(tmp_path) == ([2], weights) and len(list(tmp_path.glob("02-grpo.*"))) == 2


def test_another_base_model_of_the_same_name_begins_anew(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(train, "find_model", Path)
    base = tmp_path / "base"
    base.mkdir()
    (base / "model.safetensors").write_text("weights")
    chosen = SMOKE.replace(policy=SMOKE.policy.replace(base_model=str(base)))
    _, weights = trained(tmp_path / "work", chosen)
    (base / "model.safetensors").write_text("others")
    numbers, others = trained(tmp_path / "work", chosen)
    assert numbers == [0, 1, 2] and others != weights and "was made from another model" in capsys.readouterr().err


@pytest.mark.parametrize("damaged, content", [(".npz", b""), (".json", b""), (".json", b"{"), (".npz", None), (".json", None)])
def test_a_damaged_teacher_learns_again(tmp_path, damaged, content):
    assert train._teacher(SMOKE, 3, tmp_path)[0] == train._teacher(SMOKE, 3, tmp_path)[0] == "a critic" and len(ran) == 1
    path, = tmp_path.glob(f"teacher-*{damaged}")
    path.write_bytes(content) if content is not None else path.unlink()
    assert train._teacher(SMOKE, 3, tmp_path)[0] == "a critic" and len(ran) == 2


def test_a_teacher_of_other_code_is_set_aside(tmp_path, edited, capsys):
    work = tmp_path / "work"
    work.mkdir()
    train._teacher(SMOKE, 3, work)
    edited("market/engine.py")
    train._teacher(SMOKE, 3, work)
    assert len(ran) == 2 and len(list(work.glob("teacher-*-3.*.npz"))) == len(list(work.glob("teacher-*-3.*.json"))) == 1
    assert REASON in capsys.readouterr().err


def test_phases_and_teacher_of_other_code_are_not_borrowed(tmp_path, edited):
    trained(tmp_path / "lender")
    train._teacher(SMOKE, 3, tmp_path / "lender")
    assert borrow_phases(SMOKE, 3, tmp_path / "mine", tmp_path / "lender") == 3 and list((tmp_path / "mine").glob("teacher-*"))
    assert trained(tmp_path / "mine")[0] == []
    edited("market/engine.py")
    assert borrow_phases(SMOKE, 3, tmp_path / "other", tmp_path / "lender") == 0 and not list((tmp_path / "other").glob("teacher-*"))


def test_damaged_phases_are_not_borrowed(tmp_path):
    trained(tmp_path / "lender")
    (tmp_path / "lender" / "01-rft" / "phase.json").write_text("")
    assert borrow_phases(SMOKE, 3, tmp_path / "mine", tmp_path / "lender") == 1


@pytest.mark.parametrize("content", [b"", b'{"mean'])
def test_a_damaged_report_is_made_again(tmp_path, content):
    file, made = tmp_path / "report-5.json", []
    for _ in range(2):
        assert train._once(file, lambda: made.append(1) or {"mean": 0.5}) == {"mean": 0.5}
    file.write_bytes(content)
    assert train._once(file, lambda: made.append(1) or {"mean": 0.5}) == {"mean": 0.5} and len(made) == 2


def test_what_a_killed_training_left_half_done_is_removed(tmp_path):
    for name in (".phase-a1b2", ".borrowed-c3"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_text("half")
    trained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "00-sft", "01-rft", "02-grpo"]


def test_two_trainings_do_not_share_a_folder(tmp_path):
    first = run_phases(SMOKE, tmp_path, 3)
    next(first)
    with pytest.raises(ValueError, match="work '.*' is in use by another training: wait for it, or name another folder"):
        next(run_phases(SMOKE, tmp_path, 3))
    first.close()
    assert trained(tmp_path)[0] == [1, 2]


SLOW = """
import sys, time
from daedalus.training import train
train.restore_policy = lambda *others: (None, None)
def slow(model, tokenizer, phase, place):
    (place.folder / "half.bin").write_text("half")
    time.sleep(300)
train.RUNNERS = dict.fromkeys(train.RUNNERS, slow)
train.training_code = lambda function: "0"
list(train.run_phases(train.profile("smoke"), sys.argv[1], 3))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_sigterm_clears_up_as_ctrl_c_does(tmp_path, number):
    process = subprocess.Popen([sys.executable, "-c", SLOW, str(tmp_path)], stderr=subprocess.PIPE, text=True,
                               env=os.environ | {"PYTHONPATH": str(PACKAGE.parent)}, **HEARS)
    until(lambda: list(tmp_path.glob(".phase-*/half.bin")) or process.poll() is not None)
    process.send_signal(number)
    assert "KeyboardInterrupt" in process.communicate(timeout=PATIENCE)[1]
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_the_phases_tell_what_they_were_made_of(tmp_path):
    trained(tmp_path)
    for folder in phase_folders(SMOKE, tmp_path):
        told = json.loads((folder / "phase.json").read_text())
        assert {len(told[name]) for name in ("key", "code", "start")} == {16}
        assert sorted(told["files"]) == ["model.safetensors", "rows.json"]
