"""The designer without a menu: its critic, what it may play, and how it is learned."""

import json
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")

from daedalus.designers import levers
from daedalus.designers.base import READINGS, _levers, check_designer, play, readings_table
from daedalus.designers.critic import LeverCritic, LeverExamples
from daedalus.designers.levers import (
    GROUP, LeverDesigner, components_ahead, draw_behaviour, draw_brief, draw_wide, drawn_rows, learn_levers, lever_designer,
    lever_record, lever_table, lesson, load_levers, mended_rows, neighbours, pool_of)
from daedalus.designers.states import outlook
from daedalus.env import observe, open_episodes, suite
from daedalus.market.bidders import BEHAVIOUR, HELD_OUT_RULES, Population
from daedalus.market.engine import COMPONENTS, SCORED
from daedalus.paths import data_dir, write_arrays
from daedalus.results import short_hash
from daedalus.schema import FIELDS, LEVERS, Brief, Mechanism, Objective

WELFARE, REVENUE = COMPONENTS.index("welfare"), COMPONENTS.index("revenue")


def untrained(seed=0, width=8):
    """A critic with weights at random."""
    rng, levers_read = np.random.default_rng(seed), lever_table(drawn_rows(1, np.random.default_rng(0))).shape[1]
    sizes = (len(READINGS) + 1 + 2 * len(COMPONENTS), width, width, 65), (levers_read, width, width, 64)
    state, lever = (tuple(rng.normal(size=shape) for a, b in zip(each, each[1:]) for shape in ((2, a, b), (2, 1, b)))
                    for each in sizes)
    return LeverCritic(np.zeros(len(READINGS)), np.ones(len(READINGS)), state, lever)


def opposed(count=600, seed=0):
    """Examples in which a lever is good for welfare and bad for revenue, the more so the higher the only reading."""
    rng = np.random.default_rng(seed)
    x, table = rng.random((count, 1)), rng.random((count, 4, 2))
    brought = np.full((count, 4, 2, len(COMPONENTS)), 0.5)
    brought[..., WELFARE] = 0.2 + 0.6 * (table[..., 0] * x)[..., None]
    brought[..., REVENUE] = 0.8 - 0.6 * (table[..., 0] * x)[..., None]
    return LeverExamples(x, np.repeat(np.eye(5)[[WELFARE, REVENUE]], count // 2, 0), table, brought, 2)


def test_rows_are_mended_and_read_as_mechanisms_are():
    rng = np.random.default_rng(3)
    rows = drawn_rows(40, rng)
    mechanisms = [Mechanism.from_array(row) for row in rows]
    assert np.allclose(lever_table(rows), [list(_levers(mechanism).values()) for mechanism in mechanisms])
    for _ in range(30):
        brief = draw_brief(rng)
        assert [Mechanism.from_array(row) for row in mended_rows(brief, rows)] == [brief.mended(each) for each in mechanisms]


def test_neighbours_differ_in_one_lever_and_are_mechanisms():
    rows = drawn_rows(5, np.random.default_rng(0))
    near = neighbours(rows)
    assert ((near != rows[:, None]).sum(2) <= 1).all()
    changed = {FIELDS[at] for at in np.argwhere(near != rows[:, None])[:, 2]}
    assert changed == set(LEVERS) and all(Mechanism.from_array(row) for row in near.reshape(-1, len(FIELDS)))


def test_one_critic_ranks_by_what_is_asked_and_predicts_products_of_powers():
    wanted = np.eye(5)[[WELFARE, REVENUE]]
    both = np.zeros((1, 5))
    both[0, [WELFARE, REVENUE]] = 1
    critic = LeverCritic.fit([opposed()], np.concatenate([wanted, both]), 400)
    little, much = np.array([[0.1, 0.5], [0.9, 0.5]])
    scores = critic.states(np.full((2, 1), 0.9), wanted) @ critic.mechanisms(np.stack([little, much])).T
    assert scores[0, 1] > scores[0, 0] + 0.2 and scores[1, 0] > scores[1, 1] + 0.2
    product = critic.states(np.full((1, 1), 0.9), both) @ critic.mechanisms(np.stack([little, much])).T
    truth = [(0.2 + 0.54 * lever) * (0.8 - 0.54 * lever) for lever in (0.1, 0.9)]
    assert np.allclose(product[0], truth, atol=0.04)


def test_a_round_without_trade_scores_nothing_under_any_objective():
    part = opposed()
    part.components[:, 2, :, WELFARE] = 0     # the third of four mechanisms brings no trade
    part.levers[:, 2] = [0.5, 1.5]
    critic = LeverCritic.fit([part], np.eye(5), 300)
    fairness = np.eye(5)[[COMPONENTS.index("fairness")]]
    scores = critic.states(np.full((1, 1), 0.5), fairness) @ critic.mechanisms(np.array([[0.5, 1.5], [0.5, 0.5]])).T
    assert abs(scores[0, 0]) < 0.12 and scores[0, 1] > 0.4


def test_same_examples_same_bits_on_any_number_of_threads():
    before, flat = torch.get_num_threads(), lambda critic: np.concatenate([each.ravel() for each in critic.state + critic.lever])
    first = LeverCritic.fit([opposed(60)], np.eye(5), 20, seed=3)
    try:
        torch.set_num_threads(2)
        second = LeverCritic.fit([opposed(60)], np.eye(5), 20, seed=3)
    finally:
        torch.set_num_threads(before)
    assert np.array_equal(flat(first), flat(second))
    assert not np.array_equal(flat(first), flat(LeverCritic.fit([opposed(60)], np.eye(5), 20, seed=4)))
    assert np.array_equal(flat(LeverCritic.fit([opposed(60)], np.eye(5), 20, 3, first)),
                          flat(LeverCritic.fit([opposed(60)], np.eye(5), 20, 3, second)))


def test_it_plays_only_what_the_brief_allows_and_keeps_the_contract_of_designers():
    designer, rng = LeverDesigner(untrained(), drawn_rows(60, np.random.default_rng(1))), np.random.default_rng(2)
    briefs = [draw_brief(rng) for _ in range(40)]
    episodes = open_episodes([Population.stage(at % 5) for at in range(40)], 0, brief=briefs)
    answers = designer.on(episodes)
    assert all(brief.allows(answer) for brief, answer in zip(briefs, answers)) and len(set(answers)) > 10
    assert answers == designer.design_batch(observe(episodes)) == [designer(observation) for observation in observe(episodes)]
    check_designer(designer, workers=2)


def test_it_reads_the_objective():
    designer, revenue = lever_designer(), Objective(welfare=0, fairness=0, participation=0, stability=0, revenue=1)
    people, keys = [suite("stages")[at % 5] for at in range(20)], [(0, at) for at in range(20)]
    published, paid = (play(designer, people, keys, objective=wanted) for wanted in (Objective(), revenue))
    assert (published["mechanism"] != paid["mechanism"]).mean() > 0.5
    assert paid["revenue"].mean() > published["revenue"].mean() + 0.02
    assert published["reward"].mean() > paid[["welfare", "fairness", "participation", "stability"]].prod(axis=1).mean() + 0.1


def test_the_second_critic_answers_where_nothing_but_the_published_objective_is_asked(tmp_path):
    pool, rng = drawn_rows(60, np.random.default_rng(1)), np.random.default_rng(3)
    general, expert = (LeverDesigner(untrained(seed), pool) for seed in (0, 1))
    both = LeverDesigner(general.critic, pool, published=expert.critic)
    write_arrays(tmp_path / "designer.npz", levers._designer_arrays(both))
    briefs = [Brief(), Brief(objective=Objective(revenue=1)), Brief(at_most={"reserve_price": 0.1}), *map(draw_brief, [rng] * 9)]
    episodes = open_episodes([Population.stage(at % 5) for at in range(12)], 0, brief=briefs)
    for designer in (both, load_levers(tmp_path / "designer.npz")):
        for brief, answer, one, other in zip(briefs, designer.on(episodes), general.on(episodes), expert.on(episodes)):
            assert answer == (other if brief == Brief() else one)
    assert both.on(episodes._replace(briefs=())) == expert.on(episodes._replace(briefs=()))


def test_sweeps_never_lower_what_is_predicted():
    critic, pool = untrained(), drawn_rows(30, np.random.default_rng(1))
    episodes = open_episodes(suite("stages"), 0)
    states = critic.states(readings_table(episodes), np.ones((5, 5)) * [1, 1, 1, 1, 0])
    values = []
    for sweeps in (0, 1, 4):
        rows = np.stack([each.to_array() for each in LeverDesigner(critic, pool, sweeps).on(episodes)])
        values.append((states * critic.mechanisms(lever_table(rows))).sum(1))
    assert (np.diff(values, axis=0) > -1e-9).all() and (values[2] > values[0]).any()


def test_components_are_those_of_the_same_future():
    episodes = open_episodes(suite("stages"), 0)
    rows = drawn_rows(10, np.random.default_rng(0)).reshape(5, 2, -1)
    keys = np.stack([np.full(5, 9, np.uint64), np.arange(5, dtype=np.uint64)], 1)
    brought = components_ahead(episodes, rows, keys, 3)
    known = outlook(episodes, [[Mechanism.from_array(row) for row in some] for some in rows], 9, 3)
    assert np.allclose(brought[..., WELFARE].mean(2), known["welfare"][..., 0])
    assert np.allclose(brought[..., :4].prod(3).mean(2), known["reward"][..., 0])


def test_pupils_are_taught_the_most_usual_of_what_promises_nearly_the_most():
    pool = drawn_rows(60, np.random.default_rng(1))
    designer = LeverDesigner(untrained(), pool, sweeps=0)
    episodes = open_episodes(suite("open"), 0)
    states = designer.critic.states(readings_table(episodes), np.array([[1.0, 1, 1, 1, 0]] * len(suite("open"))))
    values = states @ designer.critic.mechanisms(lever_table(pool)).T
    for margin in (0.0, float(np.ptp(values) / 4), np.inf):
        chosen = replace(designer, margin=margin).on(episodes)
        first = [next(at for at, value in enumerate(row) if value >= row.max() - margin) for row in values]
        assert chosen == [Mechanism.from_array(pool[at]) for at in first]
        assert margin or first == values.argmax(1).tolist()
    brief = Brief(at_least={"reserve_price": 0.3})
    asked = open_episodes(suite("open"), 0, brief=brief)
    assert {m.reserve_price for m in replace(designer, margin=np.inf).on(asked)} == {max(0.3, pool[0, 1])}


def test_nothing_is_looked_at_behind_the_end_of_an_episode():
    designer = LeverDesigner(untrained(), drawn_rows(30, np.random.default_rng(1)))
    episodes = open_episodes([Population.stage(2)] * 2, 0, 2)
    keys = np.stack([np.full(2, 9, np.uint64), np.arange(2, dtype=np.uint64)], 1)
    brought = components_ahead(episodes, drawn_rows(6, np.random.default_rng(0)).reshape(2, 3, -1), keys, 4, designer)
    assert np.isfinite(brought[:, :, :2 * SCORED]).all() and np.isnan(brought[:, :, 2 * SCORED:]).all()


def test_a_designer_plays_on_after_as_many_steps_as_are_held():
    designer = LeverDesigner(untrained(), drawn_rows(30, np.random.default_rng(1)))
    episodes = open_episodes([Population.stage(2)] * 2, 0)
    rows = drawn_rows(6, np.random.default_rng(0)).reshape(2, 3, -1)
    keys = np.stack([np.full(2, 9, np.uint64), np.arange(2, dtype=np.uint64)], 1)
    throughout = components_ahead(episodes, rows, keys, 3)
    for held in (1, 2):
        brought = components_ahead(episodes, rows, keys, 3, designer, held=held)
        same = (brought == throughout).all((0, 1, 3))
        assert same[:held * SCORED].all() and not same[held * SCORED:].all()


def test_what_it_learns_from_is_none_of_what_it_is_judged_on():
    rng = np.random.default_rng(0)
    people = [draw_wide(rng) for _ in range(400)]
    assert not {each.learning for each in people} & set(HELD_OUT_RULES) and len({each.learning for each in people}) == 5
    assert not set(people) & set(suite("open")) and {each.practice for each in people} == {0, 50, 200}
    drawn = [draw_behaviour(rng) for _ in range(200)]
    assert 60 < sum(each == BEHAVIOUR for each in drawn) < 140
    ratios = np.array([each for each in drawn if each != BEHAVIOUR]) / np.array(BEHAVIOUR)
    assert (ratios > 0.49).all() and (ratios < 1.51).all() and (ratios.std(0) > 0.1).all()


def test_learning_goes_on_where_it_was_interrupted(tmp_path, monkeypatch):
    for name, small in {"JUDGED": 4, "GROUP": 10, "RANDOM": 40}.items(): monkeypatch.setattr(levers, name, small)
    whole = learn_levers(tmp_path / "whole", tmp_path / "a", 4, 1, 10, 20, seed=1)
    part = learn_levers(tmp_path / "part", tmp_path / "b", 1, 0, 10, 20, seed=1)
    assert part["curve"][0]["default"] == whole["curve"][0]["default"] and part["hash"] != whole["hash"]
    called = []
    taught = levers.lesson
    monkeypatch.setattr(levers, "lesson", lambda *rest: called.append(rest[3]) or taught(*rest))
    assert learn_levers(tmp_path / "part", tmp_path / "b", 4, 1, 10, 20, seed=1)["hash"] == whole["hash"]
    assert called == [1, 2, 3, 4]
    (tmp_path / "b" / "turn-02.npz").write_bytes(b"half a file")
    assert learn_levers(tmp_path / "part", tmp_path / "b", 4, 1, 10, 20, seed=1)["hash"] == whole["hash"]
    assert called == [1, 2, 3, 4, 2]


def test_examples_look_ahead_with_the_designer_that_plays(tmp_path):
    designer = LeverDesigner(untrained(), drawn_rows(30, np.random.default_rng(1)))
    examples, own = lesson(designer, GROUP, 0, 2, True)
    assert not examples.throughout and len(own) == len(examples.inputs) == 10 * GROUP
    assert np.array_equal(examples.levers[:, 0], lever_table(own))
    last = examples.inputs[:, READINGS.index("progress")] == 0.9
    assert last.sum() == GROUP and np.isnan(examples.components[last][:, :, SCORED:]).all()
    assert (pool_of(own, 0)[0] == own).all(1).any()


@pytest.mark.parametrize("content", [b"", b"nothing", None])
def test_a_file_that_holds_no_designer_is_said_in_one_sentence(tmp_path, content):
    if content is not None: (tmp_path / "designer.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"holds no designer of these levers: `make teacher` learns it again"):
        load_levers(tmp_path / "designer.npz")


def test_the_committed_designer_is_the_one_of_its_record_and_obeys():
    record, file = lever_record(), data_dir() / "teacher" / "designer.npz"
    assert short_hash(file.read_bytes()) == record["hash"] and file.stat().st_size < 3_500_000
    assert [turn["rounds"] > 0 for turn in record["curve"]] and record["packages"]["torch"]
    rng, designer = np.random.default_rng(0), lever_designer()
    briefs = [draw_brief(rng) for _ in range(60)]
    answers = designer.on(open_episodes([draw_wide(rng) for _ in briefs], 0, brief=briefs))
    assert all(brief.allows(answer) for brief, answer in zip(briefs, answers)) and len(set(answers)) > 30


def test_what_is_reported_of_it():
    value = json.loads((data_dir() / "results" / "teacher.json").read_text(encoding="utf-8"))["value"]
    assert value["obeyed"] == 1 and value["plays"]["mechanisms"][1] > 100
    assert all(value["means"][name]["without a menu"] > value["means"][name]["best fixed"] for name in ("stages", "open"))
    assert len(set(value["by brief"]["brief"])) == 10
