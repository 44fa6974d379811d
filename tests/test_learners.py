"Learning bidders: tables against hand computation and `clear`, learners against a plain reference and easy games."
from itertools import product

import numpy as np
import pytest

from daedalus.market.auction import clear
from daedalus.market.bidders import EVERYTHING, NOTHING
from daedalus.market.learners import (
    DISCLOSURES,
    Game,
    Play,
    auction_game,
    bid_grid,
    disclose,
    exp3,
    follow,
    indifferent,
    optimistic,
    profiles,
    q_learning,
    q_update,
    rival_game,
    seeds_of,
    ucb,
)
from daedalus.market.noise import fill_uniforms


def table_game(payoffs):
    "A game of one case without memory from payoffs [n, actions, ..., actions]."
    payoffs = np.asarray(payoffs, float)
    n, actions = payoffs.shape[0], payoffs.shape[1]
    flat = payoffs.reshape(1, n, -1)
    nothing = np.zeros(flat.shape, np.int64)
    return Game(flat, flat.sum(1), nothing, nothing, actions)


DILEMMA = table_game([[[3, 0], [5, 1]], [[3, 5], [0, 1]]])    # action 1 dominates


# Tables

def test_the_grid_is_the_published_one():
    np.testing.assert_allclose(bid_grid(19), np.arange(0.05, 0.951, 0.05))


@pytest.mark.parametrize("kind, price", [("first_price", 0.75), ("second_price", 0.5), ("vcg", 0.5)])
def test_the_higher_bid_wins_and_pays(kind, price):
    game = rival_game(kind, actions=3)       # bids .25, .5, .75
    at = 2 * 3 + 1                           # bidder 0 bids .75, bidder 1 bids .5
    assert game.payoffs[:, :, at].tolist() == [[1 - price, 0]] * 2
    assert game.revenue[:, at].tolist() == [price] * 2
    assert game.units[:, :, at].tolist() == [[1, 0]] * 2


@pytest.mark.parametrize("n", [2, 3])
def test_ties_are_fair_over_the_cases(n):
    game = rival_game("first_price", n=n, actions=4)
    for at, acts in enumerate(profiles(n, 4).T):
        tied = acts == acts.max()
        np.testing.assert_allclose(game.units[:, :, at].mean(0), tied / tied.sum())


def test_a_table_of_private_values_is_what_clear_says():
    rng = np.random.default_rng(5)
    bids, values = rng.random((4, 3, 2)), rng.random((4, 3))
    game = auction_game(bids, values, "second_price", reserve=0.3)
    for case, (at, acts) in product(range(4), enumerate(profiles(3, 2).T)):
        units, payments = clear([bids[case, np.arange(3), acts]], "second_price", reserve=0.3)
        np.testing.assert_allclose(game.payoffs[case, :, at], (units * values[case] - payments)[0])
        assert game.revenue[case, at] == pytest.approx(payments.sum())


def test_two_units_are_worth_their_values():
    bids = np.array([[[[0.9, 0.8]], [[0.6, 0.2]]]])     # one case, two bidders, one action, two units
    game = auction_game(bids, [[[1.0, 0.9], [0.7, 0.3]]], "second_price", n_items=2)
    np.testing.assert_allclose(game.payoffs[0, :, 0], [1.9 - 1.2, 0.0])


def test_bidders_see_what_is_disclosed():
    games = {what: disclose(rival_game("first_price", actions=3), what) for what in DISCLOSURES}
    assert {what: game.states for what, game in games.items()} == {"nothing": 1, "result": 6, "price": 9, "bids": 9}
    result = games["result"].seen[0, 0]
    assert result[1 * 3 + 0] != result[1 * 3 + 2], "winning and losing with the same bid look alike"
    assert result[2 * 3 + 0] == result[2 * 3 + 1], "what the loser bid was seen without being told"


# Learners

def test_q_update_by_hand():
    worth = np.array([[1.0, 2.0]])
    q_update(worth, 0, 0, 0.5, 2.0, 0.1, 0.9)
    np.testing.assert_allclose(worth, [[0.9 * 1 + 0.1 * (0.5 + 0.9 * 2), 2.0]])


def reference(game, seed, rounds, rate, discount, epsilon, decay):
    "Q-learning of two players in plain Python: their estimates and the seller's mean revenue."
    worth, state, paid = optimistic(game, discount), [0, 0], 0.0
    draws = np.empty(8)
    for t in range(rounds):
        fill_uniforms(draws, 5, np.uint64(seed[0]), np.uint64(seed[1]), t, 0, 0)
        chance, case = epsilon * np.exp(-decay * t), int(draws[4] * len(game.payoffs))
        acts = [int(draws[2 * i + 1] * game.actions) if draws[2 * i] < chance else int(worth[i, state[i]].argmax())
                for i in range(2)]
        at = acts[0] * game.actions + acts[1]
        paid += game.revenue[case, at] / rounds
        for i in range(2):
            now = game.seen[case, i, at]
            target = game.payoffs[case, i, at] + discount * worth[i, now].max()
            worth[i, state[i], acts[i]] += rate * (target - worth[i, state[i], acts[i]])
            state[i] = now
    return worth, paid


@pytest.mark.parametrize("what", DISCLOSURES)
def test_compiled_q_learning_is_the_plain_one(what):
    game = disclose(rival_game("first_price", actions=4), what)
    settings = dict(rate=0.2, discount=0.9, epsilon=0.5, decay=0.001)
    play = q_learning(game, [(7, 3)], 600, blocks=1, **settings)
    worth, paid = reference(game, (7, 3), 600, **settings)
    np.testing.assert_allclose(play.memory[0], worth, rtol=1e-12)
    assert play.revenue[0, 0] == pytest.approx(paid)


def test_told_every_payoff_all_estimates_move_alike():
    play = q_learning(DILEMMA, [(0, 0)], 1, rate=1.0, discount=0.0, epsilon=0.0, known=EVERYTHING, blocks=1,
                      initial=np.zeros((2, 1, 2)))
    np.testing.assert_allclose(play.memory[0, :, 0], [[3, 5], [3, 5]])    # both began with action 0


@pytest.mark.parametrize("learn", [
    lambda game, seeds: q_learning(game, seeds, 1000, epsilon=0.3),
    lambda game, seeds: exp3(game, seeds, 1000, 0.1),
    lambda game, seeds: ucb(game, seeds, 1000),
])
def test_a_session_does_not_depend_on_its_batch(learn):
    game = rival_game("first_price", actions=5)
    together, alone = learn(game, seeds_of(4, 3)), learn(game, [(4, 2)])
    for a, b in zip(together, alone):
        np.testing.assert_array_equal(a[2], b[0])


@pytest.mark.parametrize("known", [NOTHING, EVERYTHING])
def test_myopic_q_learners_find_the_dominant_action(known):
    play = q_learning(DILEMMA, seeds_of(1, 3), 20_000, discount=0.0, epsilon=0.5, decay=0.0, known=known, blocks=4)
    assert (play.memory[:, :, 0].argmax(2) == 1).all()
    np.testing.assert_allclose(play.played[:, :, 1], 0.75, atol=0.02)      # half of the time at random


@pytest.mark.parametrize("known", [NOTHING, EVERYTHING])
def test_learners_without_regret_find_the_dominant_action(known):
    play = exp3(DILEMMA, seeds_of(1, 3), 20_000, precision=0.02, tremble=0.02, known=known, blocks=4)
    np.testing.assert_allclose(play.played[:, :, 1], 0.99, atol=0.01)


def test_upper_confidence_bounds_find_the_best_of_three():
    alone = table_game([[0.1, 0.9, 0.5]])            # one player
    play = ucb(alone, seeds_of(1, 3), 20_000, width=1.0, blocks=4)
    assert play.played[:, 0, 1].min() > 0.97
    np.testing.assert_allclose(play.memory[:, 0, 0], [[0.1, 0.9, 0.5]] * 3)


def test_upper_confidence_bounds_move_in_step_and_cooperate_in_the_dilemma():
    play = ucb(DILEMMA, seeds_of(1, 3), 20_000, width=1.0, blocks=4)
    np.testing.assert_allclose(play.payoffs[:, -1], 3)


def test_first_estimates():
    np.testing.assert_allclose(optimistic(DILEMMA, 0.5), 10)
    np.testing.assert_allclose(indifferent(DILEMMA, 0.5)[:, 0], [[3, 6], [3, 6]])


def test_following_forgives_after_one_round_of_tit_for_tat():
    game = disclose(DILEMMA, "bids")     # the profile (a0, a1) is seen as 2 a0 + a1
    worth = np.zeros((1, 2, 4, 2))
    for profile, (a0, a1) in enumerate(profiles(2, 2).T):
        worth[0, 0, profile, a1] = worth[0, 1, profile, a0] = 1     # each repeats what the other did
    play = Play(None, None, None, worth, np.zeros((1, 2), np.int64))
    calm, _ = follow(game, play, 3)
    shaken, after = follow(game, play, 4, forced=np.array([1]))
    assert calm[0].tolist() == [[0, 0]] * 3
    assert shaken[0].tolist() == [[1, 0], [0, 1], [1, 0], [0, 1]]
    assert after.last.tolist() == [[1, 1]]


def test_formats_differ_as_published():
    prices = {kind: q_learning(rival_game(kind), seeds_of(11, 6), 500_000).revenue[:, -1].mean()
              for kind in ("first_price", "second_price")}
    assert prices["first_price"] < 0.4 < 0.8 < prices["second_price"]


# Errors

GAME = rival_game("first_price", actions=3)


@pytest.mark.parametrize("call, message", [
    (lambda: disclose(GAME, "values"), "what is 'values'; allowed: nothing, result, price, bids"),
    (lambda: q_learning(GAME, [(0, 0)], 55), "rounds is 55; allowed: a multiple of blocks"),
    (lambda: q_learning(GAME, [0, 1], 50), "seeds has shape"),
    (lambda: q_learning(GAME, [(0, 0)], 50, known=1), "known is 1; allowed: NOTHING or EVERYTHING"),
    (lambda: q_learning(disclose(GAME, "bids"), [(0, 0)], 50, known=EVERYTHING), "game with memory"),
    (lambda: exp3(disclose(GAME, "bids"), [(0, 0)], 50, 0.1), "game has memory"),
    (lambda: ucb(disclose(GAME, "bids"), [(0, 0)], 50), "game has memory"),
    (lambda: auction_game(np.ones((1, 2, 3)), np.ones((1, 3)), "vcg"), "values has shape"),
])
def test_wrong_use_gets_one_clear_sentence(call, message):
    with pytest.raises(ValueError, match=message): call()
