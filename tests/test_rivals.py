"""Rivals: exact files, a record that fits them, learning that resumes, and the same player before and after."""

import json
import shutil

import numpy as np
import pytest

from daedalus.designers import rivals
from daedalus.designers.base import FixedDesigner, play
from daedalus.env import suite
from daedalus.paths import data_dir
from daedalus.results import short_hash
from daedalus.designers.rivals import RIVALS, files_hash, learn, learn_rivals, load_rival, rival, rivals_record
from daedalus.training.train import AsPublished
from daedalus.pipeline.verify import committed_record

COMMITTED = data_dir() / "rivals"


def test_the_record_is_of_the_committed_files():
    record = rivals_record()
    assert list(record["rivals"]) == list(RIVALS) and record["hash"] == files_hash(COMMITTED)
    for name, told in record["rivals"].items():
        assert told == {**RIVALS[name]._asdict(), "hash": short_hash((COMMITTED / f"{name}.npz").read_bytes())}
    assert sorted(file.stem for file in COMMITTED.glob("*.npz")) == sorted(RIVALS)
    assert record["provenance"]["parameters"] == {"seed": 0} and record["packages"]["torch"] and len(record["code"]) == 16


def test_the_contextual_policy_learned_from_as_many_rounds_as_the_committed_designer():
    from daedalus.training.train import SHIPPED

    reports = json.loads((data_dir() / "training" / f"small-{SHIPPED}.json").read_text())["reports"]
    assert RIVALS["contextual"].rounds == list(reports.values())[-1]["rounds"]


def test_no_pickle_and_no_date_is_in_the_files():
    for file in COMMITTED.glob("*.npz"):
        with np.load(file, allow_pickle=False) as kept:
            assert all(kept[name].dtype.kind in "fU" for name in kept.files)


@pytest.mark.parametrize("name", RIVALS)
def test_a_committed_rival_plays_and_needs_no_more_than_it_says(name):
    for people in (suite("stages"), suite("open")):
        who = AsPublished(rival(name)) if RIVALS[name].sees == "published" else rival(name)
        table = play(who, people[:4], [(0, e) for e in range(4)], steps=4)
        assert table["reward"].between(0, 1).all() and len(table) == 16


@pytest.mark.parametrize("how, sees", [("bandit", ["published"]), ("contextual", ["signals"]), ("optimise_fixed", ["nothing"])])
def test_a_rival_from_its_file_is_the_one_that_learned(tmp_path, how, sees, monkeypatch):
    made = []
    monkeypatch.setattr(rivals, "_plain", lambda designer, plain=rivals._plain: made.append(designer) or plain(designer))
    found, = learn(how, 100_000, sees, "open", 1)
    rivals._save(json.loads(json.dumps(found)), tmp_path / "rival.npz")
    kept = load_rival(tmp_path / "rival.npz")
    if how == "optimise_fixed":
        assert isinstance(kept, FixedDesigner) and kept == made[0]
        return
    inputs = np.random.default_rng(0).normal(size=(50, len(kept.names)))
    assert (kept.model(inputs) == made[0].model(inputs)).all()
    assert kept.library == list(made[0].library) and kept.names == tuple(made[0].names)


@pytest.fixture
def small(monkeypatch):
    "All rivals at the smallest number of rounds."
    monkeypatch.setattr(rivals, "RIVALS", {name: each._replace(rounds=100_000) for name, each in RIVALS.items()})


def test_learning_goes_on_where_it_was_interrupted(small, tmp_path, monkeypatch):
    run, lessons = rivals.run_jobs, []

    def interrupted(jobs, *others):
        run(jobs[-3:], *others)
        raise KeyboardInterrupt

    monkeypatch.setattr(rivals, "run_jobs", interrupted)
    with pytest.raises(KeyboardInterrupt):
        learn_rivals(tmp_path / "first", folder=tmp_path / "kept")
    assert not (tmp_path / "first" / "record.json").exists()
    monkeypatch.setattr(rivals, "run_jobs", lambda *others: lessons.append(run(*others)) or lessons[-1])
    record = learn_rivals(tmp_path / "first", folder=tmp_path / "kept")
    assert [each.kept for each in lessons[0]] == [False] * 3 + [True] * 3
    shutil.rmtree(tmp_path / "kept")
    assert record["hash"] == files_hash(tmp_path / "first")
    assert record["rivals"]["contextual-100k"]["hash"] == rivals_record()["rivals"]["contextual-100k"]["hash"]


@pytest.mark.parametrize("content", [b"", b"PK", b"no archive"])
def test_a_file_that_is_no_rival_is_one_sentence(tmp_path, content):
    file = tmp_path / "bandit.npz"
    file.write_bytes(content)
    with pytest.raises(ValueError, match="'.*bandit.npz' holds no rival: `make rivals` learns them again"):
        load_rival(file)
    np.savez(file, library=['{"reserve_price": 0.1}'], names=["progress"], mean=[1.0])
    with pytest.raises(ValueError, match="holds no rival"):
        load_rival(file)


def test_an_unknown_rival_is_one_sentence():
    with pytest.raises(ValueError, match="name must be one of optimised-fixed, bandit, .*, not 'bandits'"):
        rival("bandits")


def test_the_optimised_mechanism_is_the_one_in_the_results():
    assert dict(rival("optimised-fixed").mechanism) == committed_record("designers")["value"]["optimised fixed"]
