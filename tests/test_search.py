"""Search: scores are paired, climbs are reproducible and pay, yardsticks are where they should be."""

import numpy as np
import pytest

from daedalus.bidders import Population
from daedalus.env import SUITES, suite
from daedalus.market import simulate
from daedalus.schema import DEFAULT_MECHANISM, FIELDS, INFORMED_GREEDY, Mechanism
from daedalus.search import BLOCK, best_fixed, choose, climb, mutate, oracle, score, search_suites


def test_score_is_the_mean_reward_of_an_episode_whatever_else_is_scored():
    people = [Population.stage(1), Population.stage(4)]
    table = score([DEFAULT_MECHANISM, INFORMED_GREEDY], people, 3, seed=5, block=2)
    assert table.shape == (2, 2, 3)
    alone = simulate(INFORMED_GREEDY, people[1], [(5, 2 * BLOCK + 1)]).reward.mean()
    assert table[1, 1, 1] == alone
    assert (score([INFORMED_GREEDY], people[1:], 3, seed=5, block=2)[0, 0] == table[1, 1]).all()


def test_neighbours_are_valid_and_differ_in_one_or_two_levers():
    rng = np.random.default_rng(0)
    changes = set()
    for _ in range(300):
        start = Mechanism.random(rng)
        neighbour = mutate(start, rng)
        differs = [name for name in FIELDS if getattr(start, name) != getattr(neighbour, name)]
        assert len(differs) <= 2
        changes.update(differs)
    assert changes == set(FIELDS)


def test_climbing_pays_and_repeats():
    people = [Population.stage(4)]
    found = climb(people, 80, seed=3)
    assert found == climb(people, 80, seed=3)
    assert found != climb(people, 80, seed=4)
    fresh = score([found[0], INFORMED_GREEDY, DEFAULT_MECHANISM], people, 100, seed=11).mean((1, 2))
    assert fresh[0] > fresh[1:].max() + 0.1


def test_choose_picks_what_is_best_on_fresh_episodes():
    empty = Mechanism(auction_type="first_price", reserve_price=0.9)
    pool = [empty, DEFAULT_MECHANISM, empty.replace(shill_penalty=3.0)]
    assert choose(pool, [Population.stage(0)], 8, 0, 7) == DEFAULT_MECHANISM


def test_search_does_not_depend_on_the_number_of_processes(tmp_path, monkeypatch):
    monkeypatch.setenv("DAEDALUS_RESULTS_DIR", str(tmp_path))
    monkeypatch.setitem(SUITES, "open", lambda: SUITES["stages"]()[:2])
    monkeypatch.setitem(SUITES, "stages", lambda: [Population.stage(0), Population.stage(4)])
    assert search_suites(4, 4, 4, 1, jobs=1) == search_suites(4, 4, 4, 1, jobs=2)
    assert [len(oracle(name)) for name in ("stages", "open")] == [2, 2]


@pytest.mark.parametrize("name, least", [("stages", 0.05), ("open", 0.10)])
def test_no_fixed_mechanism_is_good_everywhere(name, least):
    """Required property c, with the committed yardsticks on episodes that the search never saw."""
    people = suite(name)
    known = np.array([score([m], [p], 60, seed=77).mean() for m, p in zip(oracle(name), people, strict=True)])
    fixed = score([best_fixed(name)], people, 60, seed=77).mean((0, 2))
    assert known.mean() - fixed.mean() >= least
    assert fixed.mean() > score([INFORMED_GREEDY], people, 60, seed=77).mean()


def test_unknown_suite_is_refused():
    with pytest.raises(ValueError, match="suite must be one of stages, open, not 'nowhere'"):
        best_fixed("nowhere")
