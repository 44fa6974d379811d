"""Fronts: the filter and the volume by hand, methods keep their budgets and repeat, what is found is no luck."""

import itertools

import numpy as np
import pytest
from hypothesis import given, strategies as st

from daedalus.market.bidders import Population
from daedalus.market.engine import simulate
from daedalus.studies.pareto import (
    AMOUNTS, CHOICES, METHODS, OBJECTIVES, Trials, along, best_found, combinations, find_front, front_found,
    hypervolume, measure, nondominated)
from daedalus.schema import DEFAULT_MECHANISM, FIELDS, INFORMED_GREEDY, LEVERS, Mechanism
from daedalus.designers.search import EPISODE_ROUNDS
from daedalus.seeds import BLOCK

STAGE = [Population.stage(4)]
TOLD = {name: False for name in CHOICES if name.startswith("reveal")}
points = st.lists(st.tuples(*[st.integers(0, 4)] * 3), min_size=1, max_size=12)


# Fronts

def test_the_front_of_points_on_paper():
    table = [[3, 1], [2, 2], [1, 3], [2, 1], [1, 1], [2, 2], [0, 3]]
    assert nondominated(table).tolist() == [True, True, True, False, False, True, False]
    assert nondominated(np.empty((0, 3))).tolist() == [] and nondominated([[0, 0, 0]]).tolist() == [True]


@given(points)
def test_a_point_is_off_the_front_exactly_if_another_dominates_it(table):
    def beats(a, b): return all(x >= y for x, y in zip(a, b)) and a != b

    assert nondominated(table).tolist() == [not any(beats(other, one) for other in table) for one in table]


@pytest.mark.parametrize("table, volume", [
    ([[0.5]], 0.5), ([[0.2], [0.7]], 0.7), ([[1, 1, 1]], 1), ([[0.5, 0.4, 0.3]], 0.06), ([[0, 1, 1]], 0),
    ([[0.8, 0.5], [0.4, 1.0]], 0.6), ([[1, 0.5, 0.5], [0.5, 1, 0.5], [0.5, 0.5, 1]], 0.5)])
def test_volumes_on_paper(table, volume):
    assert hypervolume(table) == pytest.approx(volume, abs=1e-12)


@given(points)
def test_the_volume_counts_the_cells_below_the_points(table):
    cells = sum(any(all(c < p for c, p in zip(cell, point)) for point in table)
                for cell in itertools.product(range(4), repeat=3))
    assert hypervolume(table) == pytest.approx(cells)


def test_no_points_have_no_volume():
    assert hypervolume(np.empty((0, 3))) == 0


def test_the_best_along_rays_are_the_front():
    angles = np.linspace(0.1, 1.4, 9)
    curve = np.stack([np.cos(angles), np.sin(angles)], 1) ** 3   # not convex: no weighted mean finds its middle
    assert [along(curve, point).argmax() for point in curve] == list(range(9))
    assert (along(curve[:, :1], np.ones(1)) == curve[:, 0]).all()


# Measuring

def test_measures_are_means_of_the_market_whatever_else_is_measured():
    people = [Population.stage(1), Population.stage(4)]
    table = measure([DEFAULT_MECHANISM, INFORMED_GREEDY], people, 3, seed=5, block=7)
    keys = [(5, 7 * BLOCK + at) for at in range(3)]
    alone = [simulate(INFORMED_GREEDY, person, keys) for person in people]
    for at, name in enumerate(OBJECTIVES):
        assert table[1, at] == pytest.approx(np.mean([getattr(outcomes, name) for outcomes in alone]), abs=1e-14)
    assert (measure([INFORMED_GREEDY], people, 3, 5, 7)[0] == table[1]).all()


def test_an_objective_that_is_none_is_refused():
    with pytest.raises(ValueError, match="objectives must be of welfare, .*, revenue, not 'beauty'"):
        measure([DEFAULT_MECHANISM], STAGE, 1, objectives=("beauty",))


# Methods

@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("objectives", [("reward",), OBJECTIVES])
def test_a_method_keeps_its_budget_holds_what_is_held_and_repeats(name, objectives):
    def run(seed):
        tried = Trials(STAGE, 1, 0, objectives, TOLD)
        METHODS[name](tried, 70, seed)
        return tried

    tried, again = run(3), run(3)
    np.random.seed(1)
    state = np.random.get_state()[1].tolist()
    third = run(3)
    assert np.random.get_state()[1].tolist() == state   # threads may share it: methods must not
    assert tried.mechanisms == again.mechanisms == third.mechanisms != run(4).mechanisms
    assert len(tried.mechanisms) == len(tried.values) == 70
    assert all(getattr(m, lever) is False for m in tried.mechanisms for lever in TOLD)
    assert (tried.values == measure(tried.mechanisms, STAGE, 1, 0, 500_001, objectives)).all()


def test_cma_moves_amounts_only_and_gets_better():
    tried = Trials(STAGE, 2, 0, ("reward",))
    METHODS["CMA-ES"](tried, 192, 0)
    late = tried.mechanisms[96:]
    assert len({tuple(getattr(m, name) for name in CHOICES) for m in late}) <= 4
    assert len({tuple(getattr(m, name) for name in AMOUNTS) for m in late}) > 40
    assert tried.values[96:].mean() > tried.values[:96].mean() + 0.05


def test_every_combination_is_there_once():
    known = {tuple(each.items()) for each in combinations()}
    assert len(known) == 3 * 2 ** 5 * 4 and set(AMOUNTS) | set(CHOICES) == set(FIELDS)
    assert len(combinations({"auction_type": "vcg"})) == 128
    assert len(combinations({name: LEVERS[name].settings[0] for name in CHOICES})) == 1


@pytest.mark.parametrize("method", ["CMA-ES", "climb"])
def test_a_budget_of_rounds_is_kept(method, counted_rounds):
    rounds = 150 * 2 * EPISODE_ROUNDS
    with counted_rounds() as spent:
        best_found(method, STAGE, rounds, 2, 0)
    assert 0.8 * rounds < sum(spent) <= rounds


def test_what_is_found_is_better_on_fresh_luck():
    found = Mechanism(**best_found("TPE", STAGE, 200 * 3 * EPISODE_ROUNDS, 3, 1))
    rewards = measure([found, INFORMED_GREEDY, DEFAULT_MECHANISM], STAGE, 100, 9, objectives=("reward",))[:, 0]
    assert rewards[0] > rewards[1:].max() + 0.1


def test_wrong_input_is_told_in_a_sentence():
    with pytest.raises(ValueError, match="method must be one of random, NSGA-II, TPE, CMA-ES, not 'magic'"):
        front_found("magic", STAGE, 4, 1)
    with pytest.raises(ValueError, match="rounds must be at least 10,600 for 2 episodes of 1 populations, not 500"):
        best_found("TPE", STAGE, 500, 2)


# The front

def test_the_front_is_a_front_on_the_luck_that_it_reports_and_the_same_everywhere(tmp_path):
    held = TOLD | {"auction_type": "second_price"}
    alone = find_front(STAGE, 6, 1, 8, 2, held)
    assert find_front(STAGE, 6, 1, 8, 2, held, workers=2, folder=str(tmp_path)).equals(alone)
    values = alone[list(OBJECTIVES)].to_numpy()
    mechanisms = [Mechanism(**{name: row[name] for name in FIELDS}) for row in alone.to_dict("records")]
    assert nondominated(values).all() and (measure(mechanisms, STAGE, 8, 2, 500_002) == values).all()
    assert all(getattr(m, name) == value for m in mechanisms for name, value in held.items())
    (next(tmp_path.iterdir())).unlink()
    assert find_front(STAGE, 6, 1, 8, 2, held, folder=str(tmp_path)).equals(alone)
