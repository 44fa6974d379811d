"""The states that training starts from, and what replies earn there."""

import numpy as np
import pytest

from daedalus.designers.base import FixedDesigner, informed_greedy
from daedalus.env import observe, open_episodes, play_step, suite
from daedalus.schema import DEFAULT_MECHANISM, INFORMED_GREEDY, Mechanism
from daedalus.designers.states import draw_populations, outlook, restore, snapshot, visits


@pytest.fixture(scope="module")
def episodes():
    start = open_episodes(draw_populations(6, np.random.default_rng(1)), [(3, e) for e in range(6)])
    return play_step(play_step(start, INFORMED_GREEDY), DEFAULT_MECHANISM)


def random_mechanisms(states, choices, seed=0):
    rng = np.random.default_rng(seed)
    return [[Mechanism.random(rng) for _ in range(choices)] for _ in range(states)]


def test_training_populations_are_disjoint_from_the_open_suite():
    drawn = set(draw_populations(3000, np.random.default_rng(0)))
    assert not drawn & set(suite("open"))
    assert drawn > set(suite("stages"))


def test_outlook_is_what_playing_on_gives(episodes):
    tried = random_mechanisms(6, 3)
    found = outlook(episodes, tried, seed=9, horizon=3, futures=2)
    for state, choice, future in ((0, 0, 0), (4, 2, 1), (5, 1, 0)):
        one = episodes.select([state])
        one = one._replace(market=one.market.reseed([(9, state * 2 + future)]))
        rewards = []
        for _ in range(3):
            one = play_step(one, tried[state][choice])
            rewards.append(one.recent[-1].reward[0])
        assert found["reward"][state, choice, future] == pytest.approx(np.mean(rewards), abs=1e-15)


def test_equal_mechanisms_earn_the_same_and_luck_differs_between_futures(episodes):
    mechanism = Mechanism(auction_type="first_price", reserve_price=0.3)
    scores = outlook(episodes, [[mechanism] * 2] * 6, seed=1, futures=2)["reward"]
    assert (scores[:, 0] == scores[:, 1]).all()
    assert (scores[:, 0, 0] != scores[:, 0, 1]).any()


def test_scoring_changes_nothing_and_repeats(episodes):
    before = snapshot(episodes, 3)
    first, second = (outlook(episodes, random_mechanisms(6, 2), seed=4)["reward"] for _ in range(2))
    assert (first == second).all() and snapshot(episodes, 3) == before


def test_a_snapshot_scores_like_the_state(episodes):
    tried = random_mechanisms(1, 4)
    alone = outlook(episodes.select([5]), tried, seed=2)["reward"]
    assert (outlook(restore(snapshot(episodes, 5)), tried, seed=2)["reward"] == alone).all()


def test_select_takes_rows_in_order(episodes):
    picked = episodes.select([4, 0, 4])
    seen, all_seen = observe(picked), observe(episodes)
    assert seen == [all_seen[4], all_seen[0], all_seen[4]]


def test_visits_show_what_the_designer_sees():
    people = draw_populations(10, np.random.default_rng(2))
    seen = [(len(v.observations), v.observations[0]) for v in visits(informed_greedy, people, 0, published_share=0.3)]
    assert [n for n, _ in seen] == [7] * 10 + [3] * 10
    assert all(o.signals is not None and o.mechanism is not None for _, o in seen[:10])
    assert all(o.signals is None and o.mechanism is None for _, o in seen[10:])
    assert [o.round_number for _, o in seen] == 2 * list(range(10))


def test_visits_without_detours_are_the_designers_own():
    mechanism = Mechanism(auction_type="vcg")
    people = draw_populations(4, np.random.default_rng(3))
    steps = list(visits(FixedDesigner(mechanism), people, 0, published_share=0.0, detour=0.0))
    assert all(o.mechanism == mechanism for v in steps[1:] for o in v.observations)
    often = list(visits(FixedDesigner(mechanism), people, 0, published_share=0.0, detour=0.9))
    assert any(o.mechanism != mechanism for v in often[1:] for o in v.observations)


def test_an_outlook_is_the_same_to_the_bit_on_any_number_of_threads(episodes):
    tried = random_mechanisms(6, 20)
    one, three = (outlook(episodes, tried, seed=9, futures=2, threads=threads) for threads in (1, 3))
    assert all((one[name] == three[name]).all() for name in one)


def test_an_outlook_with_somebody_who_plays_on(episodes):
    class Stubborn:
        "Plays one mechanism, and notes where."
        seen = []

        def on(self, ahead):
            self.seen.append((ahead.round_number, ahead.episode_length))
            return [INFORMED_GREEDY] * len(ahead.mechanisms)

    choices = [[INFORMED_GREEDY, DEFAULT_MECHANISM]] * len(episodes.mechanisms)
    found = outlook(episodes, choices, 3, horizon=3, futures=2, then=Stubborn())
    held = outlook(episodes, choices, 3, horizon=3, futures=2)
    start, length = episodes.round_number, episodes.episode_length
    assert Stubborn.seen == [(start + 1, length), (start + 2, length)]
    for name in found:
        assert np.array_equal(found[name][:, 0], held[name][:, 0])
    assert not np.array_equal(found["reward"][:, 1], held["reward"][:, 1])


def test_nobody_plays_on_beyond_the_end_of_the_episode(episodes):
    last = episodes._replace(episode_length=episodes.round_number + 1)
    choices = [[INFORMED_GREEDY]] * len(episodes.mechanisms)
    step = outlook(last, choices, 3, horizon=1)["reward"]
    assert np.allclose(outlook(last, choices, 3, horizon=4, then=object())["reward"], step / 4)
