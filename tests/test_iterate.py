"""Policy iteration: what it spends, whose states it learns from, and that it helps where looking ahead pays."""

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the train extra")

from daedalus.designers import base as designers
from daedalus.designers.critic import Critic
from daedalus.designers.base import PUBLISHED_READINGS, READINGS, ContextualDesigner, explore
from daedalus.env import draw_training_population
from daedalus.designers.iterate import ITERATIONS, LOOK_AHEAD, TRIED, improve, improvement_populations
from daedalus.market.engine import ROUNDS
from daedalus.schema import DEFAULT_MECHANISM, INFORMED_GREEDY, Mechanism

LIBRARY = [INFORMED_GREEDY, DEFAULT_MECHANISM, Mechanism.random(5)]


@pytest.fixture(scope="module")
def first():
    """A designer that has learned what holding a mechanism earns."""
    rng = np.random.default_rng(0)
    inputs, rewards = explore(LIBRARY, [draw_training_population(rng) for _ in range(20)], 1, rng, horizon=2)
    return ContextualDesigner(LIBRARY, Critic.fit(inputs, rewards), READINGS)


def test_it_spends_no_more_rounds_than_it_is_given(first, monkeypatch):
    spent, opened, play_step, open_episodes = [], [], designers.play_step, designers.open_episodes
    monkeypatch.setattr(designers, "play_step", lambda e, m: (spent.append(ROUNDS * len(e.mechanisms)), play_step(e, m))[1])
    monkeypatch.setattr(designers, "open_episodes", lambda *a, **more: (opened.append(len(a[0])), open_episodes(*a, **more))[1])
    improve(first, 60_000, 4)
    count = improvement_populations(60_000, len(LIBRARY))
    assert opened == [count] * ITERATIONS
    assert 55_000 < sum(spent) + 3 * sum(opened) <= 60_000


def test_the_same_seed_gives_the_same_bits_and_another_one_others(first):
    one, same, other = (improve(first, 20_000, seed) for seed in (1, 1, 2))
    assert np.array_equal(one.model.out, same.model.out) and not np.array_equal(one.model.out, other.model.out)
    assert one.library is first.library and one.names == first.names


def test_states_and_continuations_are_those_of_the_designer_that_is_improved(first, monkeypatch):
    from daedalus.designers import iterate

    asked, explored = [], iterate.explore
    monkeypatch.setattr(iterate, "explore", lambda *a, **k: (asked.append(k), explored(*a, **k))[1])
    improve(first, 20_000)
    assert [k["guide"] is k["then"] and k["horizon"] == LOOK_AHEAD for k in asked] == [True] * ITERATIONS
    assert asked[0]["then"] is first and len({id(k["then"]) for k in asked}) == ITERATIONS


def test_a_large_library_is_tried_in_part(first, monkeypatch):
    from daedalus.designers import iterate

    library = [*LIBRARY, *(Mechanism.random(seed) for seed in range(10, 19))]
    rng = np.random.default_rng(0)
    inputs, rewards = explore(library, [draw_training_population(rng) for _ in range(10)], 1, rng, horizon=1)
    found, explored = [], iterate.explore
    monkeypatch.setattr(iterate, "explore", lambda *a, **k: found.append(explored(*a, **k)) or found[-1])
    better = improve(ContextualDesigner(library, Critic.fit(inputs, rewards), READINGS), 30_000)
    assert all(((~np.isnan(values)).sum(1) == TRIED).all() for _, values in found)
    assert len({at for _, values in found for at in np.flatnonzero((~np.isnan(values)).any(0))}) == len(library)
    assert better.model.out.shape[-1] == len(library) and np.isfinite(better.model.out).all()


def test_it_reads_no_more_than_before(first):
    rng = np.random.default_rng(3)
    inputs, rewards = explore(LIBRARY, [draw_training_population(rng) for _ in range(5)], 1, rng, horizon=1)
    columns = [READINGS.index(name) for name in PUBLISHED_READINGS]
    blind = improve(ContextualDesigner(LIBRARY, Critic.fit(inputs[:, columns], rewards), PUBLISHED_READINGS), 20_000)
    assert blind.model.into.shape[1] == len(PUBLISHED_READINGS)


def test_too_few_rounds_are_refused(first):
    with pytest.raises(ValueError, match="two populations"):
        improve(first, 1_000)
