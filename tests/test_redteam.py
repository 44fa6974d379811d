"""Learning bidders, crowds and the red team: rules by hand, the engine's own results, and a planted weakness."""

import hashlib

import numpy as np
import pytest

from daedalus.market.bidders import BEHAVIOUR, KINDS, Population
from daedalus.designers.base import FixedDesigner, RandomDesigner, informed_greedy
from daedalus.env import draw_training_population, suite
from daedalus.studies.exploit import DEVIATIONS, HONEST, Plan, play_plans
from daedalus.market.engine import simulate
from daedalus.studies.redteam import (
    BEHAVIOUR_RANGES, EXP3, HABITS, MUTATION, POPULATION_RANGES, Q_LEARNING, RULES, SELECTION, UCB, Crowd, Minds,
    best_of, crowd_at, distinct, hunt, inherit, learn, library_rewards, meet, menu_of, optimistic_action, pick, practised,
    red_draw, rewards, select, stressors)
from daedalus.schema import INFORMED_GREEDY, Mechanism

SECOND, FIRST = Mechanism(auction_type="second_price"), Mechanism(auction_type="first_price")
SIX = Population(exploiter=6)


def keys(count, seed=0):
    return np.stack([np.full(count, seed), np.arange(count)], 1)


# Rules of learning, by hand

def test_q_learning_corrects_a_part_of_its_error():
    worth, count = np.array([[1.0, 3.0], [9.0, 9.0]]), np.zeros((2, 2))
    learn(Q_LEARNING, HABITS, worth, count, np.zeros(2), np.zeros(2), 0, 0, 2.0)
    assert worth[0, 0] == pytest.approx(1 + 0.2 * (2 + 0.5 * 3 - 1))
    assert worth[0, 1] == 3 and (worth[1] == 9).all() and count.tolist() == [[1, 0], [0, 0]]


def test_ucb_averages_and_tries_everything_first():
    worth, count = np.zeros((1, 3)), np.zeros((1, 3))
    tried = []
    for payoff in (4.0, 1.0, 1.0):
        action = optimistic_action(worth[0], count[0], 0.5)
        tried.append(action)
        learn(UCB, HABITS, worth, count, np.zeros(3), np.zeros(3), 0, action, payoff)
    assert sorted(tried) == [0, 1, 2]
    assert optimistic_action(worth[0], count[0], 0.5) == tried[0]
    learn(UCB, HABITS, worth, count, np.zeros(3), np.zeros(3), 0, tried[0], 2.0)
    assert worth[0, tried[0]] == 3.0


def test_exp3_weighs_by_the_chance_of_having_seen():
    worth, chances = np.zeros((1, 2)), np.array([0.25, 0.75])
    learn(EXP3, HABITS, worth, np.zeros((1, 2)), chances, np.zeros(2), 0, 0, 1.0)
    assert worth.tolist() == [[pytest.approx(HABITS.precision / (0.25 + HABITS.tremble)), 0.0]]


@pytest.mark.parametrize("rule", [EXP3, UCB, Q_LEARNING])
def test_a_bandit_finds_the_best_arm(rule):
    rng, worth, count, chances = np.random.default_rng(0), np.zeros((1, 5)), np.zeros((1, 5)), np.zeros(5)
    payoffs, played = np.array([0.2, 0.5, 1.5, 0.4, 0.1]), []
    for _ in range(2000):
        action = pick(rule, HABITS, worth[0], count[0], chances, 0, *rng.random(2))
        learn(rule, HABITS, worth, count, chances, np.zeros(5), 0, action, payoffs[action] + rng.normal(0, 0.3))
        played.append(action)
    assert np.mean(np.array(played[-500:]) == 2) > 0.7


def test_selection_is_the_replicator_equation():
    crowd = Crowd("", SIX, rule="evolution")
    minds = Minds.empty(crowd, 1)
    k = len(minds.shares)
    minds.worth[0, :, 0, 0], minds.tries[0, :, 0, 0] = 2.0, 10
    minds.worth[0, :, 0, 1], minds.tries[0, :, 0, 1] = 1.0, 10
    select(minds)
    grown = np.full(k, 1 / k) * np.exp(SELECTION * np.array([2.0, 1.0] + [1.5] * (k - 2)))
    assert minds.shares == pytest.approx((1 - MUTATION) * grown / grown.sum() + MUTATION / k)
    assert not minds.tries.any()


def test_heirs_follow_the_shares():
    minds = Minds.empty(Crowd("", Population(exploiter=60), rule="evolution"), 50)
    minds.shares[:] = 0.0
    minds.shares[[1, 4]] = 0.25, 0.75
    inherit(minds, 0, 0)
    assert set(np.unique(minds.action)) == {1, 4}
    assert np.mean(minds.action == 4) == pytest.approx(0.75, abs=4 * np.sqrt(0.75 * 0.25 / 3000))


# In the market

def test_the_markets_own_bidders_are_those_of_simulate():
    harsh = BEHAVIOUR._replace(power=0.3, entry_cost=0.9)
    crowds = [Crowd("a", Population.stage(4)), Crowd("b", Population(shader=3, dropout=2, n_items=2), harsh)]
    found = rewards(FixedDesigner(SECOND), crowds, 4, seed=5)
    for crowd, row in zip(crowds, found):
        assert (row == simulate(SECOND, crowd.population, keys(4, 5), behaviour=crowd.behaviour).reward.mean(1)).all()
    assert (library_rewards([SECOND], crowds, 4, seed=5)[0] == found).all()


def test_a_crowd_that_inherited_the_truth_is_one_of_plans():
    """Six exploiters that all play the truth earn the designer what `play_plans` says of six honest deviators."""
    crowd = Crowd("", SIX, rule="evolution")
    first = np.flatnonzero((menu_of(SIX) == (HONEST.act, HONEST.first, HONEST.second, HONEST.shift)).all(1))[0]
    minds = Minds.empty(crowd, 3)
    minds.action[:] = first
    found = meet(FixedDesigner(SECOND), [crowd], keys(3).astype(np.uint64), [minds])[0]
    plans = [Plan(tuple(range(6)), HONEST)] * 3
    assert found == pytest.approx(play_plans(FixedDesigner(SECOND), SIX, keys(3), plans).reward, abs=1e-12)


@pytest.mark.parametrize("rule", RULES[1:])
def test_learners_earn_more_after_practice(rule):
    def earned(practice):
        minds = practised(FixedDesigner(SECOND), [Crowd("", Population(truthful=3, exploiter=3), rule=rule,
                                                        practice=practice)], 4)[0]
        return minds.earned.sum()

    early, late = earned(3), earned(12) - earned(9)
    assert late > early


@pytest.mark.parametrize("rule", RULES)
def test_same_seed_same_bits_in_any_company(rule):
    crowd = Crowd("", SIX, rule=rule, practice=2)
    other = Crowd("", Population(exploiter=2, n_items=2), rule="UCB", practice=1)
    alone, among = rewards(informed_greedy, [crowd], 3, 7), rewards(informed_greedy, [other, crowd], 3, 7)
    assert (alone[0] == among[1]).all()
    assert (alone != rewards(informed_greedy, [crowd], 3, 8)).any()


def test_learners_in_the_engines_own_session_are_the_bits_of_a_session_of_their_own():
    crowds = stressors(2)
    minds = practised(RandomDesigner(4), crowds, 2, 3, 4)
    earned = meet(RandomDesigner(4), crowds, keys(2).astype(np.uint64), minds, 4)
    known = [part for mind in minds for part in (mind.worth, mind.tries, mind.action, mind.earned, mind.shares)]
    sha = hashlib.sha256(b"".join(np.ascontiguousarray(array).tobytes() for array in (earned, *known)))
    assert sha.hexdigest()[:16] == "66305ddb0302bf5b"


def test_a_plain_function_and_a_batch_designer_are_asked_alike():
    designer = RandomDesigner(3)
    crowds = stressors(1)[-2:]
    assert (rewards(designer, crowds, 2) == rewards(lambda observation: designer(observation), crowds, 2)).all()


def test_stressors_are_nothing_that_training_draws():
    usual = draw_training_population(0)
    market = {name: getattr(usual, name) for name in ("value_low", "value_high", "second_unit", "return_rate")}
    for crowd in stressors():
        people = crowd.population
        strange = any(getattr(people, name) != value for name, value in market.items())
        assert (strange or crowd.rule != "market" or crowd.behaviour != BEHAVIOUR
                or not 4 <= people.bidders <= 12 or people.n_items > 3), crowd.name
    assert len({crowd.name for crowd in stressors()}) == len(stressors())


@pytest.mark.parametrize("crowd, said", [(Crowd("", SIX, rule="SARSA"), "rule must be one of market"),
                                         (Crowd("", Population(truthful=4), rule="UCB"), "exploiter")])
def test_crowds_that_cannot_be(crowd, said):
    with pytest.raises(ValueError, match=said):
        rewards(informed_greedy, [crowd], 1)


def test_the_menu_has_no_demand_reduction_for_one_unit():
    assert len(menu_of(SIX)) == len(DEVIATIONS) - 2
    assert len(menu_of(Population(exploiter=2, n_items=2))) == len(DEVIATIONS)


# The red team

def test_corners_of_the_cube_are_the_ends_of_the_ranges():
    ranges = POPULATION_RANGES | BEHAVIOUR_RANGES
    low, high = crowd_at(np.zeros(len(ranges)), ranges), crowd_at(np.ones(len(ranges)), ranges)
    assert (low.population.bidders, high.population.bidders) == (4, 16)
    assert (low.population.n_items, high.population.n_items) == (1, 4)
    assert max(high.population.counts) - min(high.population.counts) <= 1
    for name, ends in BEHAVIOUR_RANGES.items():
        assert (getattr(low.behaviour, name), getattr(high.behaviour, name)) == ends
        assert ends[0] <= getattr(BEHAVIOUR, name) <= ends[1]
    assert crowd_at(np.full(len(POPULATION_RANGES), 2.0)).population == high.population
    with pytest.raises(ValueError, match="10 coordinates, not 3"):
        crowd_at(np.zeros(3))


def test_weights_are_shares():
    point = np.full(len(POPULATION_RANGES), 0.5)
    kinds = [list(POPULATION_RANGES).index(kind) for kind in KINDS]
    point[kinds] = 0.9, 0.3, 0, 0, 0
    assert crowd_at(point).population.counts == (7, 3, 0, 0, 0)   # 7.5 and 2.5 of 10: equal remainders, the first gets it


def test_distinct_keeps_the_best_of_each_neighbourhood():
    points = np.full((4, len(POPULATION_RANGES)), 0.5)
    points[1, 0], points[2, :], points[3, :] = 0.51, 0.9, 0.1
    assert distinct(points, np.array([1.0, 2.0, 0.5, 3.0]), 5, POPULATION_RANGES) == [3, 1, 2]
    assert distinct(points, np.array([1.0, 2.0, 0.5, 3.0]), 1, POPULATION_RANGES) == [3]


def test_the_best_of_a_library_is_the_best():
    crowds = [Crowd("", Population(truthful=6)), Crowd("", Population.stage(4))]
    library = [Mechanism(auction_type="second_price", reserve_price=0.9), SECOND]
    assert best_of(library, crowds, 4) == [SECOND, SECOND]


def test_a_planted_weakness_is_found():
    """A designer that shuts the market wherever values may be low: the hunt must go there."""
    weak = FixedDesigner(Mechanism(auction_type="second_price", reserve_price=0.5))
    library = [SECOND, weak.mechanism]
    found = hunt(weak, library, count=3, strategies=1, generations=8, episodes=2)
    again = hunt(weak, library, count=3, strategies=1, generations=8, episodes=2)
    assert [c.population for c in found.crowds] == [c.population for c in again.crowds]
    assert found.progress.shape == (1, 8, 10)
    assert found.progress[0, -2:].mean() > found.progress[0, 0].mean()
    fresh = library_rewards([SECOND], found.crowds, 20)[0] - rewards(weak, found.crowds, 20)
    anywhere = [crowd_at(p) for p in np.random.default_rng(0).random((20, len(POPULATION_RANGES)))]
    usual = library_rewards([SECOND], anywhere, 20)[0] - rewards(weak, anywhere, 20)
    assert fresh.mean() > usual.mean()


def test_a_designer_that_is_the_whole_library_has_no_regret():
    found = hunt(informed_greedy, [INFORMED_GREEDY], count=1, strategies=1, generations=2, episodes=1)
    assert (found.progress == 0).all()


def test_without_a_library_the_aim_is_a_low_reward():
    found = hunt(informed_greedy, [], count=1, strategies=1, generations=2, episodes=1)
    assert (found.progress <= 0).all()


# Training populations

def test_draws_are_near_the_crowds_or_usual_and_never_held_out():
    base = Population(truthful=2, exploiter=9, n_items=4, value_low=0.1)
    draw, rng = red_draw([Crowd("", base)], 0.5), np.random.default_rng(0)
    drawn = [draw(rng) for _ in range(400)]
    near = [p for p in drawn if p.n_items == 4]
    assert len(near) / 400 == pytest.approx(0.5, abs=0.1)
    for population in near:
        assert population.bidders == base.bidders
        assert sum(abs(a - b) for a, b in zip(population.counts, base.counts)) in (0, 2)
        assert abs(population.value_low - 0.1) <= 0.3
    assert len(set(near)) > len(near) / 2
    assert not set(drawn) & {p for name in ("open", "stages") for p in suite(name)}


def test_without_a_share_the_draw_is_the_usual_one():
    draw, one, other = red_draw(stressors()[:1], 0.0), np.random.default_rng(4), np.random.default_rng(4)
    found = draw(one)
    other.random()
    assert found == draw_training_population(other)


@pytest.mark.parametrize("crowds, share, said", [([], 0.5, "at least one crowd"),
                                                 ([Crowd("", SIX)], 1.5, "from 0 to 1, not 1.5")])
def test_draws_that_cannot_be(crowds, share, said):
    with pytest.raises(ValueError, match=said):
        red_draw(crowds, share)
