"""A format of a user's own in which losers pay too: everybody pays what it bids, and the highest bid wins.

With n bidders whose values are uniform on [0, 1] the equilibrium bid is v^n (n - 1) / n, and the revenue is
(n - 1) / (n + 1). Run this file to see both.
"""

import numpy as np
from scipy.stats import qmc

import daedalus as dd
from daedalus.market.auction import clear, highest_bids
from daedalus.market.bidders import EVERYTHING
from daedalus.market.learners import auction_game, exp3, seeds_of


def pay(bids, won, n_items, reserve):
    """What each bidder pays, winner or not: all that it bids."""
    return bids.sum(axis=1)


dd.register_format("all_pay", allocate=highest_bids, pay=pay)


def bid(values, n):
    """The equilibrium bid."""
    return values**n * (n - 1) / n


def revenue(n, auctions=1_000_000):
    """Mean revenue at the equilibrium bids, and its standard error."""
    values = np.random.default_rng(n).random((auctions, n))
    earned = clear(bid(values, n), "all_pay").payments.sum(1)
    return earned.mean(), earned.std() / np.sqrt(auctions)


def learned(n, actions=(0, 0, 21, 11), cases=2**11, rounds=20_000):
    """The mean of k where bidders learn by Hedge which k v^n to bid, in the last tenth of their rounds."""
    factors, values = np.linspace(0.1, 1.1, actions[n]), qmc.Sobol(n, seed=0).random(cases)   # values spread evenly
    game = auction_game(values[..., None] ** n * factors, values, "all_pay")
    return (exp3(game, seeds_of(0, 4), rounds, precision=2.0, known=EVERYTHING, blocks=10).played @ factors).mean()


def regret(n, auctions=20_000):
    """The most that a bidder of any value could gain by any other bid, all others bidding the equilibrium."""
    rivals = bid(np.random.default_rng(20 + n).random((auctions, n - 1)), n)
    values, gains = np.linspace(0.05, 1, 20), []
    for own in np.linspace(0.001, 1, 100):
        won = clear(np.column_stack([np.full(auctions, own), rivals]), "all_pay").units[:, 0].mean()
        gains.append(values * won - own)
    return (np.max(gains, axis=0) - values * values ** (n - 1) + bid(values, n)).max()


if __name__ == "__main__":
    for n in (2, 3, 5, 8):
        mean, error = revenue(n)
        print(f"n = {n}: revenue {mean:.5f}, theory {(n - 1) / (n + 1):.5f}, z = {(mean - (n - 1) / (n + 1)) / error:+.2f}; "
              f"most to gain by another bid {regret(n):.4f}")
    for n in (2, 3):
        print(f"n = {n}: k {(n - 1) / n:.3f}, learned {learned(n):.3f}")
