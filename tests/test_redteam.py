"""Learning bidders, scenarios and the red team: rules by hand, the engine's own results, and a planted weakness."""

import hashlib

import numpy as np
import pytest

from daedalus.market.bidders import (
    BEHAVIOUR, EXP3, KINDS, MUTATION, Q_LEARNING, RULE_BEHAVIOUR, SELECTION, UCB, Population, optimistic_action)
from daedalus.designers.base import FixedDesigner, RandomDesigner, informed_greedy
from daedalus.env import draw_training_population, suite
from daedalus.studies.exploit import DEVIATIONS, HONEST, Plan, play_plans
from daedalus.market.engine import simulate
from daedalus.studies.redteam import (
    BEHAVIOUR_RANGES, POPULATION_RANGES, RULES, Learned, Scenario, best_of, distinct, find_worst_cases, inherit, learn,
    library_rewards, menu_of, pick, play_scenarios, practised, red_draw, rewards, scenario_at, select, stressors)
from daedalus.results import read_result
from daedalus.schema import INFORMED_GREEDY, Mechanism

SECOND, FIRST = Mechanism(auction_type="second_price"), Mechanism(auction_type="first_price")
SIX = Population(exploiter=6)


def keys(count, seed=0):
    return np.stack([np.full(count, seed), np.arange(count)], 1)


# Rules of learning, by hand

def test_q_learning_corrects_a_part_of_its_error():
    worth, count = np.array([[1.0, 3.0], [9.0, 9.0]]), np.zeros((2, 2))
    learn(Q_LEARNING, RULE_BEHAVIOUR, worth, count, np.zeros(2), np.zeros(2), 0, 0, 2.0)
    assert worth[0, 0] == pytest.approx(1 + 0.2 * (2 + 0.5 * 3 - 1))
    assert worth[0, 1] == 3 and (worth[1] == 9).all() and count.tolist() == [[1, 0], [0, 0]]


def test_ucb_averages_and_tries_everything_first():
    worth, count = np.zeros((1, 3)), np.zeros((1, 3))
    tried = []
    for payoff in (4.0, 1.0, 1.0):
        action = optimistic_action(worth[0], count[0], 0.5)
        tried.append(action)
        learn(UCB, RULE_BEHAVIOUR, worth, count, np.zeros(3), np.zeros(3), 0, action, payoff)
    assert sorted(tried) == [0, 1, 2]
    assert optimistic_action(worth[0], count[0], 0.5) == tried[0]
    learn(UCB, RULE_BEHAVIOUR, worth, count, np.zeros(3), np.zeros(3), 0, tried[0], 2.0)
    assert worth[0, tried[0]] == 3.0


def test_exp3_weighs_by_the_chance_of_having_seen():
    worth, chances = np.zeros((1, 2)), np.array([0.25, 0.75])
    learn(EXP3, RULE_BEHAVIOUR, worth, np.zeros((1, 2)), chances, np.zeros(2), 0, 0, 1.0)
    assert worth.tolist() == [[pytest.approx(RULE_BEHAVIOUR.precision / (0.25 + RULE_BEHAVIOUR.tremble)), 0.0]]


@pytest.mark.parametrize("rule", [EXP3, UCB, Q_LEARNING])
def test_a_bandit_finds_the_best_arm(rule):
    rng, worth, count, chances = np.random.default_rng(0), np.zeros((1, 5)), np.zeros((1, 5)), np.zeros(5)
    payoffs, played = np.array([0.2, 0.5, 1.5, 0.4, 0.1]), []
    for _ in range(2000):
        action = pick(rule, RULE_BEHAVIOUR, worth[0], count[0], chances, 0, *rng.random(2))
        learn(rule, RULE_BEHAVIOUR, worth, count, chances, np.zeros(5), 0, action, payoffs[action] + rng.normal(0, 0.3))
        played.append(action)
    assert np.mean(np.array(played[-500:]) == 2) > 0.7


def test_selection_is_the_replicator_equation():
    scenario = Scenario("", SIX, rule="evolution")
    learned = Learned.empty(scenario, 1)
    k = len(learned.shares)
    learned.worth[0, :, 0, 0], learned.tries[0, :, 0, 0] = 2.0, 10
    learned.worth[0, :, 0, 1], learned.tries[0, :, 0, 1] = 1.0, 10
    select(learned)
    grown = np.full(k, 1 / k) * np.exp(SELECTION * np.array([2.0, 1.0] + [1.5] * (k - 2)))
    assert learned.shares == pytest.approx((1 - MUTATION) * grown / grown.sum() + MUTATION / k)
    assert not learned.tries.any()


def test_heirs_follow_the_shares():
    learned = Learned.empty(Scenario("", Population(exploiter=60), rule="evolution"), 50)
    learned.shares[:] = 0.0
    learned.shares[[1, 4]] = 0.25, 0.75
    inherit(learned, 0, 0)
    assert set(np.unique(learned.action)) == {1, 4}
    assert np.mean(learned.action == 4) == pytest.approx(0.75, abs=4 * np.sqrt(0.75 * 0.25 / 3000))


# In the market

def test_the_markets_own_bidders_are_those_of_simulate():
    harsh = BEHAVIOUR._replace(power=0.3, entry_cost=0.9)
    scenarios = [Scenario("a", Population.stage(4)), Scenario("b", Population(shader=3, dropout=2, n_items=2), harsh)]
    worst = rewards(FixedDesigner(SECOND), scenarios, 4, seed=5)
    for scenario, row in zip(scenarios, worst):
        assert (row == simulate(SECOND, scenario.population, keys(4, 5), behaviour=scenario.behaviour).reward.mean(1)).all()
    assert (library_rewards([SECOND], scenarios, 4, seed=5)[0] == worst).all()


def test_a_scenario_that_inherited_the_truth_is_one_of_plans():
    """Six exploiters that all play the truth earn the designer what `play_plans` says of six honest deviators."""
    scenario = Scenario("", SIX, rule="evolution")
    first = np.flatnonzero((menu_of(SIX) == (HONEST.act, HONEST.first, HONEST.second, HONEST.shift)).all(1))[0]
    learned = Learned.empty(scenario, 3)
    learned.action[:] = first
    worst = play_scenarios(FixedDesigner(SECOND), [scenario], keys(3).astype(np.uint64), [learned])[0]
    plans = [Plan(tuple(range(6)), HONEST)] * 3
    assert worst == pytest.approx(play_plans(FixedDesigner(SECOND), SIX, keys(3), plans).reward, abs=1e-12)


@pytest.mark.parametrize("rule", RULES[1:])
def test_learners_earn_more_after_practice(rule):
    def earned(practice):
        learned = practised(FixedDesigner(SECOND), [Scenario("", Population(truthful=3, exploiter=3), rule=rule,
                                                        practice=practice)], 4)[0]
        return learned.earned.sum()

    early, late = earned(3), earned(12) - earned(9)
    assert late > early


@pytest.mark.parametrize("rule", RULES)
def test_same_seed_same_bits_in_any_company(rule):
    scenario = Scenario("", SIX, rule=rule, practice=2)
    other = Scenario("", Population(exploiter=2, n_items=2), rule="UCB", practice=1)
    alone, among = rewards(informed_greedy, [scenario], 3, 7), rewards(informed_greedy, [other, scenario], 3, 7)
    assert (alone[0] == among[1]).all()
    assert (alone != rewards(informed_greedy, [scenario], 3, 8)).any()


def test_learners_in_the_engines_own_session_are_the_bits_of_a_session_of_their_own():
    scenarios = stressors(2)
    learned = practised(RandomDesigner(4), scenarios, 2, 3, 4)
    earned = play_scenarios(RandomDesigner(4), scenarios, keys(2).astype(np.uint64), learned, 4)
    known = [part for one in learned for part in (one.worth, one.tries, one.action, one.earned, one.shares.round(12))]
    sha = hashlib.sha256(b"".join(np.ascontiguousarray(array).tobytes() for array in (earned, *known)))
    assert sha.hexdigest()[:16] == "fb84b2bb2ceb407d"


def test_a_plain_function_and_a_batch_designer_are_asked_alike():
    designer = RandomDesigner(3)
    scenarios = stressors(1)[-2:]
    assert (rewards(designer, scenarios, 2) == rewards(lambda observation: designer(observation), scenarios, 2)).all()


def test_stressors_are_nothing_that_training_draws():
    usual = draw_training_population(0)
    market = {name: getattr(usual, name) for name in ("value_low", "value_high", "second_unit", "return_rate")}
    for scenario in stressors():
        people = scenario.population
        strange = any(getattr(people, name) != value for name, value in market.items())
        assert (strange or scenario.rule != "market" or scenario.behaviour != BEHAVIOUR
                or not 4 <= people.bidders <= 12 or people.n_items > 3), scenario.name
    assert len({scenario.name for scenario in stressors()}) == len(stressors())


@pytest.mark.parametrize("scenario, said", [(Scenario("", SIX, rule="SARSA"), "rule must be one of market"),
                                         (Scenario("", Population(truthful=4), rule="UCB"), "exploiter")])
def test_scenarios_that_cannot_be(scenario, said):
    with pytest.raises(ValueError, match=said):
        rewards(informed_greedy, [scenario], 1)


def test_the_menu_has_no_demand_reduction_for_one_unit():
    assert len(menu_of(SIX)) == len(DEVIATIONS) - 2
    assert len(menu_of(Population(exploiter=2, n_items=2))) == len(DEVIATIONS)


# The red team

def test_corners_of_the_cube_are_the_ends_of_the_ranges():
    ranges = POPULATION_RANGES | BEHAVIOUR_RANGES
    low, high = scenario_at(np.zeros(len(ranges)), ranges), scenario_at(np.ones(len(ranges)), ranges)
    assert (low.population.bidders, high.population.bidders) == (4, 16)
    assert (low.population.n_items, high.population.n_items) == (1, 4)
    assert max(high.population.counts) - min(high.population.counts) <= 1
    for name, ends in BEHAVIOUR_RANGES.items():
        assert (getattr(low.behaviour, name), getattr(high.behaviour, name)) == ends
        assert ends[0] <= getattr(BEHAVIOUR, name) <= ends[1]
    assert scenario_at(np.full(len(POPULATION_RANGES), 2.0)).population == high.population
    with pytest.raises(ValueError, match="10 coordinates, not 3"):
        scenario_at(np.zeros(3))


def test_weights_are_shares():
    point = np.full(len(POPULATION_RANGES), 0.5)
    kinds = [list(POPULATION_RANGES).index(kind) for kind in KINDS]
    point[kinds] = 0.9, 0.3, 0, 0, 0
    assert scenario_at(point).population.counts == (7, 3, 0, 0, 0)   # 7.5 and 2.5 of 10: equal remainders, the first gets it


def test_distinct_keeps_the_best_of_each_neighbourhood():
    points = np.full((4, len(POPULATION_RANGES)), 0.5)
    points[1, 0], points[2, :], points[3, :] = 0.51, 0.9, 0.1
    assert distinct(points, np.array([1.0, 2.0, 0.5, 3.0]), 5, POPULATION_RANGES) == [3, 1, 2]
    assert distinct(points, np.array([1.0, 2.0, 0.5, 3.0]), 1, POPULATION_RANGES) == [3]


def test_the_best_of_a_library_is_the_best():
    scenarios = [Scenario("", Population(truthful=6)), Scenario("", Population.stage(4))]
    library = [Mechanism(auction_type="second_price", reserve_price=0.9), SECOND]
    assert best_of(library, scenarios, 4) == [SECOND, SECOND]


def test_a_planted_weakness_is_found():
    """A designer that shuts the market wherever values may be low: the search must go there."""
    weak = FixedDesigner(Mechanism(auction_type="second_price", reserve_price=0.5))
    library = [SECOND, weak.mechanism]
    worst = find_worst_cases(weak, library, count=3, strategies=1, generations=8, episodes=2)
    again = find_worst_cases(weak, library, count=3, strategies=1, generations=8, episodes=2)
    assert [c.population for c in worst.scenarios] == [c.population for c in again.scenarios]
    assert worst.progress.shape == (1, 8, 10)
    assert worst.progress[0, -2:].mean() > worst.progress[0, 0].mean()
    fresh = library_rewards([SECOND], worst.scenarios, 20)[0] - rewards(weak, worst.scenarios, 20)
    anywhere = [scenario_at(p) for p in np.random.default_rng(0).random((20, len(POPULATION_RANGES)))]
    usual = library_rewards([SECOND], anywhere, 20)[0] - rewards(weak, anywhere, 20)
    assert fresh.mean() > usual.mean()


def test_a_designer_that_is_the_whole_library_has_no_regret():
    worst = find_worst_cases(informed_greedy, [INFORMED_GREEDY], count=1, strategies=1, generations=2, episodes=1)
    assert (worst.progress == 0).all()


def test_without_a_library_the_aim_is_a_low_reward():
    worst = find_worst_cases(informed_greedy, [], count=1, strategies=1, generations=2, episodes=1)
    assert (worst.progress <= 0).all()


# Training populations

def test_draws_are_near_the_scenarios_or_usual_and_never_held_out():
    base = Population(truthful=2, exploiter=9, n_items=4, value_low=0.1)
    draw, rng = red_draw([Scenario("", base)], 0.5), np.random.default_rng(0)
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
    worst = draw(one)
    other.random()
    assert worst == draw_training_population(other)


@pytest.mark.parametrize("scenarios, share, said", [([], 0.5, "at least one scenario"),
                                                 ([Scenario("", SIX)], 1.5, "from 0 to 1, not 1.5")])
def test_draws_that_cannot_be(scenarios, share, said):
    with pytest.raises(ValueError, match=said):
        red_draw(scenarios, share)


# What the committed tables are about


def test_intervals_are_about_the_crowds_and_about_others_where_they_were_drawn():
    result = read_result("red_team")
    tables = result["tails"], result["paired"], result["adversarial"]["tails"], result["adversarial"]["gains"]
    for row in (row for table in tables for row in table):
        assert row["low"] <= row.get("R", row.get("difference")) <= row["high"] or row["statistic"] != "mean"
        there = row["low (distribution)"], row["high (distribution)"]
        if row["crowds"] in ("open", "drawn") and row["statistic"] == "mean": assert there[1] - there[0] > row["high"] - row["low"]
        else: assert there == (None, None)


@pytest.mark.parametrize("where", ["paired", "gains"])
def test_verdicts_on_red_teams_follow_holms_p_values(where):
    result = read_result("red_team")
    rows = result["paired"] if where == "paired" else result["adversarial"]["gains"]
    assert len(rows) > 20
    for row in rows:
        words = "not shown to differ" if row["p"] >= 0.05 else "better" if row["difference"] > 0 else "worse"
        assert row["verdict"] == words
        if words != "not shown to differ": assert row["low"] > 0 or row["high"] < 0   # Holm only takes away
