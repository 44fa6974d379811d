"""The command line as a stranger meets it: help, mistakes, dry runs, a small training, and inference."""

import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import version

import pytest
from shared import HEARS, PATIENCE, SMOKE_TRAINING
from typer.testing import CliRunner

import daedalus as dd
from daedalus.cli import app
from daedalus.training.export import HubJob
from daedalus.training.policy import memory_needed
from daedalus.training.train import profile
from daedalus.paths import data_dir

COMMAND = [sys.executable, "-c", "from daedalus.cli import main; main()"]
DESIGNER = data_dir() / "designer"


def run(*words, cwd=None, code=0, **environment):
    """The command in a process of its own, without a hub and on one thread; its exit code is checked."""
    alone = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "HF_TOKEN": "", "HF_TOKEN_PATH": "none"}
    done = subprocess.run([*COMMAND, *map(str, words)], capture_output=True, text=True, cwd=cwd,
                          env=os.environ | alone | environment)
    assert done.returncode == code, done.stderr
    return done


def refused(folder, *words, code=2, **environment):
    """The one sentence of a command that failed, and nothing else."""
    before = sorted(folder.rglob("*"))
    done = run(*words, cwd=folder, code=code, **environment)
    sentence, = done.stderr.strip().splitlines()
    assert sentence.startswith("daedalus: ") and done.stdout == ""
    assert sorted(folder.rglob("*")) == before
    return sentence.removeprefix("daedalus: ")


@pytest.mark.parametrize(("command", "says"), [
    ("inference", ["--n-episodes", "--baseline", "--repo-id", "--output", "inference_results.json", "between 0 and 1"]),
    ("train", ["--profile", "--dry-run", "--hub-job", "default: 400", "default: l4x1", "WORK/designer"]),
    ("ablate", ["--plan", "--work", "--record", "build/ablations.json"]),
    ("search", ["--budget", "default: 800"]),
    ("reproduce", ["--profile", "--keep-outputs", "default: smoke"]),
])
def test_help_names_options_units_and_defaults(command, says):
    out = " ".join(run(command, "--help").stdout.split())
    assert [text for text in says if text not in out] == []


@pytest.mark.parametrize(("words", "sentence"), [
    (["--profile", "huge"], "profile must be one of small, "),
    (["--seed", "-1"], "--seed must be 0 or more, not -1"),
    (["--episodes", "0"], "--episodes must be 1 or more, not 0"),
    (["--base-model", "no/such/model"], "model 'no/such/model' is"),
    (["--profile", "smoke", "--work", "file"], "--work 'file' is a file: name a folder"),
    (["--profile", "smoke", "--output", "file"], "--output 'file' is a file: name a folder"),
    (["--profile", "smoke", "--record", "missing/record.json"], "output 'missing/record.json' cannot be written"),
    (["--profile", "smoke", "--push", "name"], "--push must be OWNER/NAME, not 'name'"),
    (["--profile", "smoke", "--push", "owner/name"], "--push needs a Hugging Face token"),
    (["--hub-job", "--timeout", "soon"], "timeout"),
    (["--hub-job", "--push", "owner/name"], f"--image 'daedalus-train:{dd.__version__}' is on this machine only"),
    (["--hub-job", "--image", "owner/image:1"], "--hub-job needs --push OWNER/NAME"),
])
def test_a_training_that_cannot_end_well_does_not_begin(words, sentence, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    for name, value in {"HF_HUB_OFFLINE": "1", "HF_TOKEN": "", "HF_TOKEN_PATH": "none"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    done = CliRunner().invoke(app, ["train", *words])
    assert done.exit_code == 2, done.output
    assert done.stderr.startswith(f"daedalus: {sentence}") and done.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_model_that_cannot_be_downloaded_is_one_sentence(tmp_path):
    sentence = refused(tmp_path, "train", "--profile", "card")
    assert sentence.startswith("model 'Qwen/Qwen2.5-1.5B-Instruct' is no folder here and cannot be downloaded")


def test_too_little_memory_is_one_sentence_with_both_numbers(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch = pytest.importorskip("torch")
    monkeypatch.setattr("daedalus.training.policy.memory_free", lambda: 2**29)
    monkeypatch.setattr("daedalus.training.policy.frozen_dtype", lambda: torch.float32)
    done = CliRunner().invoke(app, ["train", "--profile", "card"])
    assert done.exit_code == 2 and list(tmp_path.iterdir()) == []
    assert done.stderr.startswith("daedalus: the training needs at least 1.8 GiB of memory, and 512 MiB are free: ")


def test_the_published_recipe_has_the_published_parameters(tmp_path):
    out = run("train", "--profile", "card", "--dry-run", cwd=tmp_path).stdout
    assert "parameters: 1,562,179,072 in all, 18,464,768 trained (1.18 %)" in out
    assert "1. SFT on 2,400 pairs: 300 steps" in out and "2. GRPO: 50 steps of 8 replies, 4 to a prompt" in out
    needed = memory_needed(profile("card").policy) / 2**30
    assert f"memory: {needed:.1f} GiB" in out and list(tmp_path.iterdir()) == []
    assert f"{needed:.1f}" in ("1.3", "1.8")   # what is not in 4 bits takes 16, or 32 where the processor has nothing less


def test_a_dry_run_of_another_base_counts_that_base():
    import torch
    from safetensors.torch import load_file

    out = CliRunner().invoke(app, ["train", "--profile", "smoke", "--base-model", str(DESIGNER), "--dry-run"]).stdout
    total = sum(map(torch.numel, load_file(DESIGNER / "model.safetensors").values()))
    assert f"parameters: {total:,} in all, {total:,} trained (100.00 %)" in out


def test_a_job_is_the_same_command_elsewhere():
    line = run("train", "--profile", "card", "--hub-job", "--dry-run").stdout.strip()
    assert line == ("hf jobs run --flavor l4x1 --timeout 2h --secrets HF_TOKEN "
                    f"daedalus-train:{dd.__version__} "
                    "daedalus train --profile card --seed 0 --episodes 400")
    options = ["--seed", "3", "--push", "owner/name", "--image", "owner/image:1", "--flavor", "a10g-small"]
    line = run("train", "--profile", "card-long", "--hub-job", "--dry-run", *options, "--timeout", "90m").stdout.strip()
    assert line == ("hf jobs run --flavor a10g-small --timeout 90m --secrets HF_TOKEN owner/image:1 "
                    "daedalus train --profile card-long --seed 3 --episodes 400 --push owner/name")


def test_a_job_is_submitted_as_it_is_described(monkeypatch):
    submitted = []
    monkeypatch.setattr(HubJob, "submit", lambda job: submitted.append(job) or "job 7")
    words = "train --profile card --hub-job --image owner/image:1 --push owner/name".split()
    line = CliRunner().invoke(app, [*words, "--dry-run"]).stdout.strip()
    assert submitted == []
    assert CliRunner().invoke(app, words).stdout == "job 7\n"
    assert submitted[0].describe() == line


@pytest.fixture(scope="module")
def training(tmp_path_factory, smoke_training):
    """A finished training of the smallest profile, and what the command said."""
    folder = shutil.copytree(smoke_training, tmp_path_factory.mktemp("training") / "copy")
    return folder, (folder / "out.txt").read_text()


def test_a_training_leaves_a_designer_and_its_record(training):
    folder, out = training
    record = json.loads((folder / "record.json").read_text())
    assert record == json.loads((folder / "work" / "record.json").read_text())
    assert record["seed"] == 3 and list(record["reports"]) == ["SFT", "SFT+RFT", "SFT+RFT+GRPO"]
    assert [line.split()[0] for line in out.splitlines()[1:]] == ["SFT", "SFT+RFT", "SFT+RFT+GRPO", "trained"]
    assert isinstance(dd.Mechanism.from_text(one_shot(folder, "--repo-id", "designer")), dd.Mechanism)


def test_the_same_command_goes_on_where_it_stopped(training):
    folder, out = training
    phases = {path: path.stat().st_mtime_ns for path in folder.glob("work/*/phase.json")}
    assert run(*SMOKE_TRAINING, cwd=folder).stdout == out
    assert {path: path.stat().st_mtime_ns for path in folder.glob("work/*/phase.json")} == phases and len(phases) == 3


def test_an_upload_that_fails_says_where_the_designer_is(training, monkeypatch):
    folder, _ = training
    monkeypatch.chdir(folder)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "token")
    uploads = []
    monkeypatch.setattr("daedalus.training.export.push", lambda *asked: uploads.append(asked))
    assert CliRunner().invoke(app, [*SMOKE_TRAINING, "--push", "owner/name"]).exit_code == 0
    assert [(str(path), name) for path, name in uploads] == [("designer", "owner/name")]

    def offline(*asked):
        raise ConnectionError("no route to the hub")

    monkeypatch.setattr("daedalus.training.export.push", offline)
    done = CliRunner().invoke(app, [*SMOKE_TRAINING, "--push", "owner/name"])
    assert done.exit_code == 1
    assert "daedalus: designer could not be uploaded (no route to the hub): the same command tries again" in done.stderr


def test_an_interrupted_training_says_how_to_go_on(tmp_path, monkeypatch):
    def interrupted(*asked, **options):
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("daedalus.training.train.train", interrupted)
    done = CliRunner().invoke(app, ["train", "--profile", "smoke"])
    assert done.exit_code == 130 and "run the same command again to resume" in done.stderr


# Inference


def one_shot(folder, *options):
    """The reply that `daedalus inference` shows."""
    out = run("inference", *options, cwd=folder).stdout
    assert out.startswith("round_number: 0 / 10\nrecent_outcomes: [{welfare:")
    return out.split("Respond with the JSON only.\n")[1].splitlines()[0]


def test_one_shot_shows_the_prompt_and_the_reply_of_the_shipped_designer(tmp_path):
    reply = one_shot(tmp_path)
    found = json.loads((tmp_path / "inference_results.json").read_text())
    assert found["reply"] == reply and found["mechanism"] == dict(dd.Mechanism.from_text(reply))
    assert (found["designer"], found["replies"], found["invalid replies"]) == ("data/designer", 1, 0)
    assert found["versions"]["numpy"] == version("numpy")


def copy_of_the_designer(folder):
    return shutil.copytree(DESIGNER, folder / "copy")


@pytest.mark.parametrize(("spoil", "says"), [
    (lambda folder: (folder / "adapter_config.json").write_text("{}"), "holds adapter_config.json, left over"),
    (lambda folder: (folder / "model.safetensors").unlink(), "lacks weights: model.safetensors is missing"),
    (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
], ids=["adapter", "weights", "config"])
def test_a_folder_that_cannot_be_loaded_is_one_sentence(spoil, says, tmp_path):
    spoil(copy_of_the_designer(tmp_path))
    assert says in refused(tmp_path, "inference", "--repo-id", "copy")


def test_a_model_on_an_unreachable_hub_is_one_sentence(tmp_path):
    assert "is no folder here and cannot be downloaded" in refused(tmp_path, "inference", "--repo-id", "some/model")


def test_without_the_training_libraries_one_sentence_says_how_to_get_them(tmp_path):
    """A package of the `train` extra that cannot be found, as where the extra is not installed."""
    absent = "class Absent:\n    def find_spec(self, name, path=None, target=None):\n"
    absent += "        if name in ('torch', 'transformers', 'huggingface_hub'):\n"
    absent += "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
    (tmp_path / "sitecustomize.py").write_text(f"import sys\n{absent}sys.meta_path.insert(0, Absent())\n")
    for command in ("inference", "train"):
        sentence = refused(tmp_path, command, code=1, PYTHONPATH=str(tmp_path), PYTHONDONTWRITEBYTECODE="1")
        assert sentence.startswith("this needs ") and sentence.endswith(" brings it") and "pip install -e '.[" in sentence


WAITING = """
import os, queue, signal, threading, time
from daedalus.cli import Ended, signals_as_interrupts
def end():
    time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGTERM)
with signals_as_interrupts():
    threading.Thread(target=end, daemon=True).start()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})   # so that another thread is told, and the main one waits on
    try:
        queue.Queue().get()
    except Ended as ended:
        print("ended by", *ended.args)
"""


def test_a_signal_reaches_a_main_thread_that_waits_for_others():
    run = subprocess.Popen([sys.executable, "-c", WAITING], text=True, stdout=subprocess.PIPE, **HEARS)
    try:
        told, _ = run.communicate(timeout=PATIENCE)
    finally:
        run.kill()
    assert told == "ended by 15\n" and run.returncode == 0
