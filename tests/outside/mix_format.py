"""A format of a user's own: a winner pays w x its own bid + (1 - w) x the highest losing bid.

With n bidders whose values are uniform on [0, 1] the equilibrium bid is v (n - 1) / (n - 1 + w), and the revenue is
(n - 1) / (n + 1) whatever w is. Run this file to see both.
"""

import numpy as np
from scipy.stats import qmc

import daedalus as dd
from daedalus.market.auction import clear, highest_bids
from daedalus.market.bidders import EVERYTHING
from daedalus.market.learners import auction_game, exp3, seeds_of

OWN = 0.5  # w: the weight of a winner's own bid


def pay(bids, won, n_items, reserve):
    """What each bidder pays for the units that it has won."""
    paid, losing = np.zeros(len(won)), reserve
    for i in range(len(won)):
        for unit in range(won[i], bids.shape[1]):
            losing = max(losing, bids[i, unit])
    for i in range(len(won)):
        for unit in range(won[i]):
            paid[i] += OWN * bids[i, unit] + (1 - OWN) * losing
    return paid


dd.register_format("mix", allocate=highest_bids, pay=pay)


def factor(n):
    """The equilibrium bid over the value."""
    return (n - 1) / (n - 1 + OWN)


def revenue(n, auctions=1_000_000):
    """Mean revenue at the equilibrium bids, and its standard error."""
    values = np.random.default_rng(n).random((auctions, n))
    earned = clear(factor(n) * values, "mix").payments.sum(1)
    return earned.mean(), earned.std() / np.sqrt(auctions)


def learned(n, actions=(0, 0, 21, 11), cases=2**11, rounds=20_000):
    """The mean factor of bidders that learn it by Hedge, in the last tenth of their rounds."""
    factors, values = np.linspace(0.5, 1, actions[n]), qmc.Sobol(n, seed=0).random(cases)   # values spread evenly
    game = auction_game(values[..., None] * factors, values, "mix")
    return (exp3(game, seeds_of(0, 4), rounds, precision=2.0, known=EVERYTHING, blocks=10).played @ factors).mean()


def market(n, episodes=40):
    """The mean shading of the market's own learners after ten steps: all that bid are revealed to them."""
    crowd = dd.Population(shader=n, value_low=0.0, value_high=1.0, return_rate=0.0)
    rules = dd.Mechanism(auction_type="mix", reserve_price=0.0, reveal_bid_distribution=True)
    return dd.simulate(rules, crowd, [(0, episode) for episode in range(episodes)], steps=30).hidden[:, -10:, 0].mean()


if __name__ == "__main__":
    for n in (2, 3, 5, 8):
        mean, error = revenue(n)
        print(f"n = {n}: revenue {mean:.5f}, theory {(n - 1) / (n + 1):.5f}, z = {(mean - (n - 1) / (n + 1)) / error:+.2f}; "
              f"factor {factor(n):.3f}, in the market {market(n):.3f}")
    for n in (2, 3):
        print(f"n = {n}: factor {factor(n):.3f}, learned {learned(n):.3f}")
