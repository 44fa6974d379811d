"""Rivals: exact files, a record that fits them, learning that resumes, and the same player before and after."""

import json
import shutil

import numpy as np
import pytest

from daedalus.designers import rivals
from daedalus.designers.base import DESIGNERS, FixedDesigner, ask, check_designer, play
from daedalus.designers.levers import HELD_FOR, LeverDesigner, components_ahead, lever_designer
from daedalus.env import features, observe, open_episodes, play_step, suite
from daedalus.market.bidders import Population
from daedalus.market.engine import scored_by, simulate
from daedalus.schema import BRIEF_KINDS, DEFAULT_MECHANISM, INFORMED_GREEDY, Brief, Mechanism, Objective, mechanisms_to_array
from daedalus.paths import data_dir, write_arrays
from daedalus.results import short_hash
from daedalus.designers.rivals import (
    BY_OBJECTIVE, OBJECTIVES, RIVALS, Mended, Planner, TreeDesigner, TreeLessons, contextual_by_objective,
    contextual_record, files_hash, futures_of, grow, leaf, learn, learn_contextual, learn_rivals, load_contextual, load_rival, rival,
    rivals_record)
from daedalus.training.train import AsPublished
from daedalus.pipeline.verify import committed_record

COMMITTED = data_dir() / "rivals"


def test_the_record_is_of_the_committed_files():
    record = rivals_record()
    assert list(record["rivals"]) == list(RIVALS) and record["hash"] == files_hash(COMMITTED)
    for name, told in record["rivals"].items():
        assert told == {**RIVALS[name]._asdict(), "hash": short_hash((COMMITTED / f"{name}.npz").read_bytes())}
    assert sorted(file.stem for file in COMMITTED.glob("*.npz")) == sorted([*RIVALS, BY_OBJECTIVE, "plain"])
    assert record["provenance"]["parameters"] == {"seed": 0} and record["packages"]["torch"] and len(record["code"]) == 16


def test_the_contextual_policy_learned_from_as_many_rounds_as_the_committed_designer_to_a_hundredth():
    from daedalus.training.train import shipped_record

    record = shipped_record()
    assert RIVALS["contextual"].rounds == pytest.approx(record["reports"][record["shipped"]]["rounds"], rel=0.01)


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
    write_arrays(tmp_path / "rival.npz", rivals._arrays(json.loads(json.dumps(found))))
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


# Under a brief

BRIEFS = [Brief(at_most={"collusion_penalty": 0.3}), Brief(objective=Objective.from_text("revenue")),
          Brief(fixed={"auction_type": "first_price"}, at_least={"reserve_price": 0.2})]
ASKED = open_episodes([Population.stage(stage) for stage in (2, 3, 4)], [(3, at) for at in range(3)], brief=BRIEFS)


def test_who_reads_no_briefs_is_asked_without_one_and_mended():
    seen = []

    def looks(observation):
        seen.append(observation)
        return INFORMED_GREEDY

    player = Mended(looks)
    answers = player.design_batch(observe(ASKED))
    assert answers == [brief.mended(INFORMED_GREEDY) for brief in BRIEFS] and answers[0] != INFORMED_GREEDY
    assert all(observation.brief is None for observation in seen)
    assert (player.asked, player.obeyed) == (3, 1)
    assert player.on(ASKED) == answers and Mended(INFORMED_GREEDY).on(ASKED) == answers
    plain = open_episodes(Population.stage(4), [(0, 0), (0, 1)])
    assert Mended(rival("contextual")).on(plain) == rival("contextual").on(plain)
    with pytest.raises(ValueError, match="designer must be a function from an Observation to a Mechanism"):
        Mended(3)


def test_a_mended_designer_answers_alike_however_it_is_asked():
    for inner in (rival("bandit"), DESIGNERS["random"]):
        check_designer(Mended(inner))
        assert Mended(inner).design_batch(observe(ASKED)) == Mended(inner).on(ASKED)


# Trees

def test_a_tree_asks_what_leaves_most_to_earn():
    rng = np.random.default_rng(0)
    views = rng.random((80, 3))
    earned = np.stack([views[:, 1] > 0.7, views[:, 1] <= 0.7], 1).astype(float)
    tree = grow(views, earned, 1)
    assert tree[0] == 1 and abs(tree[1] - 0.7) < 0.05 and tree[2:] == (1, 0)
    assert np.mean([earned[at, leaf(tree, view)] for at, view in enumerate(views)]) == 1
    assert grow(views, earned, 0) == int(earned.sum(0).argmax()) == grow(views[:19], earned[:19], 3)   # a side too small


@pytest.fixture(scope="module")
def lessons():
    people = [Population.stage(stage) for stage in range(5)] * 6
    return TreeLessons.held([INFORMED_GREEDY, *map(Mechanism.random, range(12))], people, [(1, at) for at in range(30)])


def test_trees_hold_what_the_first_observation_says_and_know_what_was_earned(lessons):
    held = simulate(lessons.library[2], Population.stage(1), [(1, 6)])
    assert lessons.components[2, 6, ..., 0].mean() == pytest.approx(held.welfare.mean())
    tree = TreeDesigner(lessons, 2)
    check_designer(tree)
    for brief, episode in zip(BRIEFS, range(3)):
        table = play(tree, Population.stage(episode + 2), [(3, episode)], 3, brief=brief)
        assert table["mechanism"].nunique() == 1 and brief.allows(table["mechanism"][0])
    may, grown = tree._grown[BRIEFS[2]]
    assert all(BRIEFS[2].allows(lessons.library[at]) for at in may) or not any(map(BRIEFS[2].allows, lessons.library))
    view, first = features(observe(ASKED)[1]), ask(tree, ASKED)[1]
    may, grown = tree._grown[BRIEFS[1]]
    assert first == lessons.library[may[leaf(grown, view)]]


def test_a_tree_is_grown_for_what_the_brief_wants(lessons):
    revenue = TreeDesigner(lessons, 0).design_batch(observe(ASKED))[1]
    earned = scored_by(BRIEFS[1].objective, lessons.components).mean((1, 2, 3))
    assert revenue == lessons.library[earned.argmax()]


# A policy for each objective

def test_each_objective_has_a_policy_and_the_committed_ones_obey():
    player = contextual_by_objective()
    assert list(player.policies) == list(OBJECTIVES) and set(OBJECTIVES) == {objective for objective, _ in BRIEF_KINDS}
    assert contextual_record()["hash"] == short_hash((COMMITTED / f"{BY_OBJECTIVE}.npz").read_bytes())
    check_designer(player)
    assert all(brief.allows(answer) for brief, answer in zip(BRIEFS, player.on(ASKED)))
    assert player.design_batch(observe(ASKED)) == player.on(ASKED)
    assert BRIEFS[1].mended(player.policies[BRIEFS[1].objective].on(ASKED)[1]) == player.on(ASKED)[1]


def test_policies_that_learned_are_those_that_are_read(tmp_path):
    sold = Objective.from_text("revenue")
    record = learn_contextual(tmp_path, 100_000, 1, objectives=[sold])
    found, = learn("contextual", 100_000, ["signals"], "stages, open and wide", 1, "revenue")
    player = load_contextual(tmp_path / f"{BY_OBJECTIVE}.npz")
    assert [each.to_json() for each in player.policies[sold].library] == found["library"] and record["rounds"] == 100_000
    (tmp_path / "half.npz").write_bytes(b"half")
    with pytest.raises(ValueError, match="holds no policies: learn_contextual learns them again"):
        load_contextual(tmp_path / "half.npz")


# The planner

def test_futures_belong_to_an_episode_and_a_step():
    first, second = futures_of(ASKED, 2)
    assert len({tuple(key) for key in [*first.tolist(), *second.tolist()]}) == 6
    assert np.array_equal(futures_of(ASKED.select([2, 0]), 2), [first[[2, 0]], second[[2, 0]]])
    assert not np.array_equal(futures_of(play_step(ASKED, DEFAULT_MECHANISM), 1)[0], first)


def test_the_planner_plays_nothing_that_promises_less_than_its_designer_and_obeys():
    fast = LeverDesigner(lever_designer().critic, lever_designer().pool, 0)
    planner = Planner(fast, futures=1, looks=1, tried=6, horizon=4)
    chosen = planner.on(ASKED)
    assert all(brief.allows(answer) for brief, answer in zip(BRIEFS, chosen))
    assert planner.on(ASKED.select([1])) == chosen[1:2]
    rows = np.stack([mechanisms_to_array([*pair]) for pair in zip(fast.on(ASKED), chosen)])
    brought = components_ahead(ASKED, rows, futures_of(ASKED, 1)[0], 4, fast, held=HELD_FOR)
    worth = [np.nansum(scored_by(brief.objective, each), -1) for brief, each in zip(BRIEFS, brought)]
    assert all(planned >= own for own, planned in worth) and any(planned > own for own, planned in worth)
