"""Training in two processes, as `accelerate launch` starts them: the same designer as in one, one log, rewards counted once."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")
pytest.importorskip("trl", reason="needs the train extra")

from safetensors.torch import load_file
from shared import PATIENCE

from daedalus.training import policy
from daedalus.training.grpo import GrpoSettings, trl_config
from daedalus.training.policy import first_process, made_once, processes, share_of

PROFILE = {"about": "two processes", "policy": {"layers": 1, "width": 32, "heads": 2}, "phases": [
    {"kind": "sft", "pairs": 640, "tuning": {"steps": 60, "batch_size": 32, "learning_rate": 0.01}},
    {"kind": "grpo", "settings": {"steps": 2, "batch_size": 16, "accumulation": 2, "generations": 8, "horizon": 2, "futures": 1}}]}
SCRIPT = f"""
from daedalus.training import train
train.profiles = lambda: {{"two": {PROFILE!r}}}
from daedalus.cli import main
main()
"""
REPLY = 2 * 1 * 5   # rounds that a reply is scored on: steps, futures, and rounds of a step
CLOSE = 2e-5   # what adding up in another order may change in a weight that is of the size of one


def trained(folder: Path, count: int) -> subprocess.CompletedProcess:
    """The training in so many processes."""
    script = folder.parent / "script.py"
    script.write_text(SCRIPT)
    alone = [sys.executable, script]
    together = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(count),
                "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0", script]
    done = subprocess.run([*(together if count > 1 else alone), "train", "--profile", "two", "--work", folder, "--episodes", "2",
                           "--record", folder.parent / f"{folder.name}.json"], capture_output=True, text=True,
                          env=os.environ | {"ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}, timeout=3 * PATIENCE)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """The folders of the training in one process and in two, and what two said."""
    place = tmp_path_factory.mktemp("accelerate")
    trained(place / "one", 1)
    return place / "one", place / "two", trained(place / "two", 2)


def told(folder: Path) -> list[dict]:
    """What the phases of a training told."""
    return json.loads((folder / "record.json").read_text(encoding="utf-8"))["phases"]


@pytest.mark.slow
def test_two_processes_train_the_same_designer_as_one_up_to_the_order_of_sums(both):
    one, two, _ = both
    (sft, grpo), (others, grpos) = told(one), told(two)
    assert len(sft["history"]) == len(others["history"]) == 60 and len(grpo["history"]) == len(grpos["history"]) == 2
    for row, other in zip(sft["history"], others["history"]):
        assert other == pytest.approx(row, abs=1e-3)
    weights, near = (load_file(folder / "00-sft" / "model.safetensors") for folder in (one, two))
    assert max((weights[name] - near[name]).abs().max().item() for name in weights) < CLOSE
    row, other = grpo["history"][0], grpos["history"][0]   # afterwards, a last bit may have changed a word
    assert row["invalid"] < 1 and row["grad_norm"] > 0.01   # something was rewarded, and learned from
    assert other == pytest.approx(row | {"entropy": other["entropy"]}, abs=1e-3)
    assert other["entropy"] == pytest.approx(row["entropy"], abs=0.02)   # of which the devices' means are averaged


@pytest.mark.slow
def test_two_processes_count_rewards_once_and_speak_and_write_once(both):
    one, two, done = both
    assert told(one)[1]["rounds"] > 0 and abs(told(two)[1]["rounds"] - told(one)[1]["rounds"]) <= 2 * REPLY
    assert done.stdout.count("trained designer:") == 1
    assert sorted(path.name for path in two.iterdir()) == sorted(path.name for path in one.iterdir())
    assert json.loads(two.with_suffix(".json").read_text(encoding="utf-8"))["phases"] == told(two)


@pytest.mark.slow
def test_two_processes_go_on_where_two_or_one_stopped(both):
    one, two, _ = both
    copy = two.with_name("copy")
    shutil.copytree(one, copy)
    shutil.rmtree(copy / "01-grpo")
    (copy / ".phase-of-a-killed-run").mkdir()
    before = (copy / "00-sft" / "model.safetensors").stat().st_mtime_ns
    trained(copy, 2)
    assert (copy / "00-sft" / "model.safetensors").stat().st_mtime_ns == before   # not run again
    first, again = (told(folder)[1]["history"][0] for folder in (one, copy))
    assert again == pytest.approx(first | {"entropy": again["entropy"]}, abs=1e-3)
    assert not [path for path in copy.iterdir() if path.name.startswith(".phase")]


def test_a_process_alone_is_the_first_and_makes_what_is_made():
    assert (processes(), first_process(), made_once(lambda: 7), share_of(32)) == (1, True, 7, 32)


def test_a_batch_that_cannot_be_shared_is_one_sentence(monkeypatch):
    monkeypatch.setattr(policy, "processes", lambda: 3)
    assert share_of(33) == 11
    with pytest.raises(ValueError, match="batch_size must be a multiple of 3, for 3 processes, not 32"):
        share_of(32)
    with pytest.raises(ValueError, match="batch_size must be a multiple of 12, for 3 processes and groups of 4, not 32"):
        share_of(32, 4)


def test_who_writes_the_replies_is_an_option_that_old_profiles_do_not_name(tmp_path):
    assert '"generation"' not in GrpoSettings().to_json() and GrpoSettings().generation == "own"
    assert not trl_config(GrpoSettings(generation="trl"), 24, str(tmp_path), 0).use_vllm
    with pytest.raises(ValueError, match="generation must be .*own.*trl.*vllm"):
        GrpoSettings(generation="mine")


def test_vllm_is_asked_for_only_where_it_is(tmp_path):
    from daedalus.designers.language import small_model, small_tokenizer
    from daedalus.training.grpo import reinforce

    if torch.cuda.is_available():
        pytest.skip("there is a graphics card")
    tokenizer = small_tokenizer()
    with pytest.raises(ValueError, match="generation must be own or trl, not 'vllm'"):
        reinforce(small_model(tokenizer, 1, 32, 2), tokenizer, GrpoSettings(generation="vllm"), 0, str(tmp_path))
