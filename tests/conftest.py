"Settings for every test, and fixtures for several files."
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager

import pytest
from hypothesis import settings
from shared import SMOKE_TRAINING

from daedalus.market import engine as market

settings.register_profile("untimed", deadline=None)   # the first call of a compiled function takes seconds
settings.load_profile("untimed")


@contextmanager
def _counted_rounds():
    "A list that gets the rounds of every call of the engine."
    spent, play = [], market.play

    def counted(state, rows, behaviour, scratch, accounts, since, stop, *told):
        spent.append(len(rows) * (stop - since))
        return play(state, rows, behaviour, scratch, accounts, since, stop, *told)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(market, "play", counted)
        yield spent


@pytest.fixture(scope="session")
def counted_rounds():
    "`with counted_rounds() as spent` counts what is simulated within."
    return _counted_rounds


@pytest.fixture(scope="session")
def smoke_training(tmp_path_factory):
    """The folder in which the command SMOKE_TRAINING has run, with what it said in `out.txt`: to be copied, not used.

    It is made once for all processes that test side by side.
    """
    from filelock import FileLock

    shared = tmp_path_factory.getbasetemp()
    shared = shared.parent if "PYTEST_XDIST_WORKER" in os.environ else shared
    folder = shared / "smoke-training"
    with FileLock(shared / "smoke-training.lock"):
        if not (folder / "out.txt").exists():
            shutil.rmtree(folder, ignore_errors=True)   # of a test that was interrupted
            folder.mkdir()
            done = subprocess.run([sys.executable, "-c", "from daedalus.cli import main; main()", *SMOKE_TRAINING], cwd=folder,
                                  env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            (folder / "out.txt").write_text(done.stdout)
    return folder


# Whole files that train, serve, start processes or run notebooks: `pytest -m "not slow"` does not even import them. Those that
# take longest come first, so that processes that share the files end together.
SLOW = tuple(
    f"test_{name}.py" for name in (
        "pipeline", "contributing", "ablations", "grpo_plan", "serve", "cli", "files", "train", "arena", "runtime", "access", "jobs",
        "first_hour", "templates", "policy", "language", "grpo", "export", "adapters", "rft", "sft", "verify", "screens",
        "search", "exploit", "redteam", "critic", "pareto", "paper", "openenv", "harnesses", "endpoint", "iterate", "theory", "words",
        "pretrained"))


def pytest_ignore_collect(collection_path, config):
    return (collection_path.name in SLOW and config.option.markexpr == "not slow") or None


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: SLOW.index(item.path.name) if item.path.name in SLOW else len(SLOW))
    for item in items:
        if item.path.name in SLOW:
            item.add_marker("slow")
