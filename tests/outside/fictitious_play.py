"""Fictitious play by a user, compiled: the best line against all bids that it ever had to beat. Run alone: python fictitious_play.py

With n bidders of values U[0, 1] and a first-price auction, the equilibrium is to bid (n - 1) / n of the value; the best
response to truthful bidders is the same line, for the highest of n - 1 truthful bids has the distribution b ** (n - 1).
"""

import numba
import numpy as np

import daedalus as dd
from daedalus.market.engine import advance, new_market

BINS = 200  # of the histogram of the highest rival bids, over 0 to 1
SLOPES = np.arange(0.30, 1.0001, 0.005)


@numba.njit
def best_slope(counts):
    """The slope that would have earned most against the bids in a histogram, over values U[0, 1]."""
    below, total = np.zeros(BINS + 1), 0.0
    for at in range(BINS):
        total += counts[at]
        below[at + 1] = total
    best, most = 0.0, -1.0
    for slope in SLOPES:
        earned = 0.0
        for step in range(50):
            value = (step + 0.5) / 50
            at = min(BINS - 1, int(slope * value * BINS))
            wins = below[at] + (slope * value * BINS - at) * counts[at]
            earned += (1 - slope) * value * wins
        if earned > most:
            best, most = slope, earned
    return best


@numba.njit
def fictitious_play(view):
    """Count the highest rival bid of every lot that was shown, and answer all of them with the best line."""
    if view.round == 0 or np.isnan(view.bids[0, 0]):
        return 0.0, 0.5 + 0.5 * view.draws[0]
    counts = view.memory[:BINS]
    for lot in range(view.bids.shape[0]):
        rival = 0.0
        for seat in range(view.bidders):
            if seat != view.seat:
                rival = max(rival, view.bids[lot, seat])
        counts[min(BINS - 1, int(rival * BINS))] += 1.0
    view.memory[BINS] = best_slope(counts)
    return 0.0, view.memory[BINS]


dd.register_bidder("fictitious_play", fictitious_play, memory=BINS + 1)
RULES = dd.Mechanism(auction_type="first_price", reserve_price=0.0, reveal_competing_bids=True)


def learned(
    people,  # a Population with bidders that play fictitiously
    markets=4,
    sessions=600,
):
    """The slopes to which they come, one for each bidder and market."""
    state = new_market([people] * markets, range(markets))
    advance(state, RULES, sessions)
    return state.memory[:, -people.fictitious_play:, BINS]


def main():
    for n in 3, 5:
        market = dict(value_low=0.0, value_high=1.0, return_rate=0.0)
        for among, people in (("its own kind", dd.Population(fictitious_play=n, **market)),
                              ("truthful bidders", dd.Population(truthful=n - 1, fictitious_play=1, **market))):
            slopes = learned(people)
            print(f"n = {n}, among {among}: slope {slopes.mean():.3f} (from {slopes.min():.3f} to {slopes.max():.3f}), "
                  f"theory {(n - 1) / n:.3f}")


if __name__ == "__main__":
    main()
