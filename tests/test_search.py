"""Search: scores are paired, climbs repeat and pay, yardsticks stand where they should, rivals keep their budgets."""

import inspect
import json

import numpy as np
import pytest

from daedalus import cli
from daedalus.market.bidders import Population
from daedalus.designers.base import DESIGNERS, PUBLISHED_READINGS, READINGS, FixedDesigner, play
from daedalus.env import SUITES, draw_training_population, observe, open_episodes, suite
from daedalus.market.engine import simulate
from daedalus.results import write_result
from daedalus.schema import DEFAULT_MECHANISM, FIELDS, INFORMED_GREEDY, Mechanism, Objective
from daedalus.seeds import BLOCK
from daedalus.designers.search import (
    LEAST_ROUNDS, LIBRARY, Search, ThompsonSampler, bandit, best_fixed, choose, choose_each, climb, contextual, everyone,
    find_library, kept_search, mutate, optimise_fixed, oracle, part_again, rest_of_spell, score, search_record, search_suites)
from daedalus.pipeline.verify import committed_record

RIVALS = {"contextual": contextual, "bandit": bandit, "optimised": optimise_fixed}
BUDGET = 150_000


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


@pytest.fixture
def few(monkeypatch):
    "Suites of two populations, both the same."
    monkeypatch.setitem(SUITES, "open", lambda: [Population.stage(4), Population.stage(0)])
    monkeypatch.setitem(SUITES, "stages", lambda: [Population.stage(0), Population.stage(4)])


def test_a_mechanism_of_several_groups_is_played_once(counted_rounds):
    people, pool = [Population.stage(4)], [Mechanism.random(np.random.default_rng(at)) for at in range(8)]
    with counted_rounds() as apart:
        alone = [choose(group, people, 8, 0, 7) for group in (pool, pool[:4], pool[4:])]
    with counted_rounds() as together:
        assert choose_each([pool, pool[:4], pool[4:]], people, 8, 0, 7) == alone
    assert sum(together) < 0.75 * sum(apart)


def test_search_does_not_depend_on_the_number_of_processes(few, tmp_path, monkeypatch):
    monkeypatch.setenv("DAEDALUS_RESULTS_DIR", str(tmp_path))
    found = search_suites(4, 4, 4, 1, jobs=1)
    assert found._replace(seconds={}) == search_suites(4, 4, 4, 1, jobs=2)._replace(seconds={})
    write_result("search", found.suites, {"seed": 1})
    assert [len(oracle(name)) for name in ("stages", "open")] == [2, 2]
    assert oracle("stages") == oracle("open")[::-1]   # found for the population, whatever its place in a suite


# The search that is kept


def test_the_kept_search_is_what_everybody_reads():
    record, result = kept_search(), committed_record("search")
    assert record["value"] == result["value"]
    assert record["provenance"]["parameters"] == result["provenance"]["parameters"]
    assert best_fixed("open") == Mechanism(**record["value"]["open"]["best_fixed"])
    assert record["packages"]["torch"] and len(record["code"]) == 16 and sum(record["seconds"].values()) > 10


def test_the_parts_of_the_kept_search_are_those_of_its_content():
    record = kept_search()
    elites = [[json.loads(text) for text in elite] for elite in record["elites"]]
    again = search_record(Search(record["value"], elites, record["provenance"]["parameters"], record["seconds"]))
    assert again["parts"] == record["parts"] and again["elites"] == record["elites"]
    assert len(set(record["parts"])) == len(everyone()) == 25
    offered = {text for elite in record["elites"] for text in elite} | {DEFAULT_MECHANISM.to_json(), INFORMED_GREEDY.to_json()}
    assert {mechanism.to_json() for name in SUITES for mechanism in oracle(name)} <= offered


def test_the_command_makes_the_kept_search_when_it_is_told_nothing():
    """Of `search_suites` the command gives budget and seed."""
    defaults = {name: each.default for name, each in inspect.signature(search_suites).parameters.items()}
    asked = {name: each.default for name, each in inspect.signature(cli.search).parameters.items()}
    params = kept_search()["provenance"]["parameters"]
    assert {name: defaults[name] for name in params} == params
    assert (asked["budget"], asked["seed"]) == (params["budget"], params["seed"])


def test_a_part_is_found_again_and_depends_on_what_it_is_found_with(few):
    record = json.loads(json.dumps(search_record(search_suites(4, 4, 4, 1))))
    assert [part_again(record, at) for at in range(2)] == record["parts"]
    record["provenance"]["parameters"]["seed"] = 2
    assert part_again(record, 0) != record["parts"][0]


@pytest.mark.parametrize("name, least", [("stages", 0.05), ("open", 0.10)])
def test_no_fixed_mechanism_is_good_everywhere(name, least):
    """Required property c, with the committed yardsticks on episodes that the search never saw."""
    people = suite(name)
    known = np.array([score([m], [p], 60, seed=77).mean() for m, p in zip(oracle(name), people, strict=True)])
    fixed = score([best_fixed(name)], people, 60, seed=77).mean((0, 2))
    assert known.mean() - fixed.mean() >= least
    assert fixed.mean() > score([INFORMED_GREEDY], people, 60, seed=77).mean()


def test_unknown_suite_is_refused():
    with pytest.raises(ValueError, match="suite must be one of stages, open, families, briefs, sealed, not 'nowhere'"):
        best_fixed("nowhere")


# Rivals without language

@pytest.fixture(scope="module")
def trained(counted_rounds):
    "Each rival at a small budget, the rounds that it simulated, and the populations that it met."
    found, spent, met = {}, {}, {}
    for name, train in RIVALS.items():
        people = []

        def drawn(rng, people=people):
            people.append(draw_training_population(rng))
            return people[-1]

        with counted_rounds() as rounds:
            found[name] = train(BUDGET, seed=3, draw=drawn)
        spent[name], met[name] = sum(rounds), people
    return found, spent, met


@pytest.mark.parametrize("name", RIVALS)
def test_a_rival_keeps_its_budget_and_uses_it(name, trained):
    assert 0.85 * BUDGET < trained[1][name] <= BUDGET


@pytest.mark.parametrize("name", RIVALS)
def test_a_rival_never_meets_a_held_out_population(name, trained):
    assert trained[2][name] and not set(trained[2][name]) & set(suite("open"))


@pytest.mark.parametrize("name", RIVALS)
def test_a_rival_is_a_function_of_its_seed(name, trained):
    def answers(rival):
        return rival if isinstance(rival, Mechanism) else rival.design_batch(seen)

    seen = observe(open_episodes(suite("open"), 0))
    assert answers(RIVALS[name](BUDGET, seed=3)) == answers(trained[0][name])
    assert answers(RIVALS[name](BUDGET, seed=4)) != answers(trained[0][name])


@pytest.mark.parametrize("name", RIVALS)
def test_a_rival_beats_chance_and_the_hand_made_mechanism(name, trained):
    rng, rival = np.random.default_rng(8), trained[0][name]
    people, keys = [draw_training_population(rng) for _ in range(200)], [(9, at) for at in range(200)]

    def earned(designer):
        return play(designer, people, keys)["reward"].to_numpy().reshape(200, 10).mean(1)

    reward = earned(FixedDesigner(rival) if isinstance(rival, Mechanism) else rival)
    for other in ("random", "greedy"):
        gain = reward - earned(DESIGNERS[other])
        assert gain.mean() - 2 * gain.std() / np.sqrt(200) > 0.03


@pytest.mark.parametrize("name", RIVALS)
def test_a_rival_learns_what_is_wanted(name, trained):
    wanted = Objective(welfare=0, fairness=0, participation=0, stability=0, revenue=1)
    rng, rivals = np.random.default_rng(8), (trained[0][name], RIVALS[name](BUDGET, seed=3, objective=wanted))
    people, keys = [draw_training_population(rng) for _ in range(100)], [(9, at) for at in range(100)]
    gain = np.subtract(*(play(rival, people, keys, objective=wanted)["reward"].to_numpy().reshape(100, 10).mean(1) for rival in rivals[::-1]))
    assert gain.mean() - 2 * gain.std() / 10 > 0.01


@pytest.mark.parametrize("name", ["contextual", "bandit"])
def test_rivals_that_read_play_more_than_one_mechanism(name, trained):
    designer, seen = trained[0][name], observe(open_episodes(suite("open") * 5, [(6, at) for at in range(100)]))
    assert designer.names == READINGS and len(set(designer.library)) == LIBRARY
    assert len(set(designer.design_batch(seen))) > 1


def test_a_rival_of_the_published_observation_needs_nothing_else():
    designer = bandit(LEAST_ROUNDS, seed=1, names=PUBLISHED_READINGS)
    seen = observe(open_episodes(suite("open"), 0))
    assert designer.design_batch([observation.published() for observation in seen]) == designer.design_batch(seen)


def test_a_rival_is_trained_on_the_populations_it_is_given():
    library = find_library(40_000, draw=lambda rng: Population.stage(4))
    alone = score([DEFAULT_MECHANISM, library[0]], [Population.stage(4)], 60, seed=5).mean((1, 2))
    assert alone[1] > alone[0] + 0.1


@pytest.mark.parametrize("train", RIVALS.values())
@pytest.mark.parametrize("rounds", [0, LEAST_ROUNDS - 1, 1e6, True, "many"])
def test_a_budget_that_is_none_is_refused(train, rounds):
    with pytest.raises(ValueError, match=f"rounds must be a whole number of at least 100,000, not {rounds!r}"):
        train(rounds)


def test_a_spell_is_averaged_from_each_step_to_its_end():
    rewards = np.array([[0.2, 1.0], [0.4, 0.0], [0.9, 0.5], [0.7, 0.1]])
    ends = np.array([[False, True], [True, False], [False, False], [False, True]])
    expected = [[0.3, 1.0], [0.4, 0.2], [0.8, 0.3], [0.7, 0.1]]
    assert rest_of_spell(rewards, ends) == pytest.approx(np.array(expected))


def test_learning_piece_by_piece_is_regression_on_everything():
    rng = np.random.default_rng(0)
    sampler, features, rewards = ThompsonSampler(1, 5), rng.normal(size=(300, 5)), rng.normal(size=300)
    for rows in np.split(np.arange(300), [1, 50, 52]):
        sampler.update(features[rows], np.zeros(len(rows), int), rewards[rows])
    precision = np.eye(5) + features.T @ features
    assert sampler.covariance[0] == pytest.approx(np.linalg.inv(precision), abs=1e-12)
    assert sampler.mean[0] == pytest.approx(np.linalg.solve(precision, features.T @ rewards), abs=1e-12)


def test_the_sampler_is_the_closed_form_and_finds_the_better_arm():
    sampler = ThompsonSampler(2, 1, spread=0.5)
    sampler.update(np.ones((3, 1)), np.array([0, 0, 0]), np.array([0.0, 1.0, 1.0]))
    assert sampler.mean.ravel() == pytest.approx([0.5, 0.0])
    assert sampler.covariance.ravel() == pytest.approx([0.25, 1.0])
    rng = np.random.default_rng(0)
    for _ in range(200):
        arm = sampler.choose(np.ones((1, 1)), rng)
        sampler.update(np.ones((1, 1)), arm, np.where(arm == 1, 0.9, 0.2))
    assert (sampler.choose(np.ones((100, 1)), rng) == 1).mean() > 0.9
    share = ThompsonSampler(2, 1).choose(np.ones((4000, 1)), rng).mean()
    assert abs(share - 0.5) < 4 * np.sqrt(0.25 / 4000)
