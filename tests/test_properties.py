"Comparative statics: the market answers in the direction that auction theory gives, and nothing earns something for nothing."
import numpy as np
import pytest

from daedalus.market.bidders import BEHAVIOUR, Population
from daedalus.market.engine import GAIN, HIDDEN, SIGNALS, open_market, simulate, step
from daedalus.schema import DEFAULT_MECHANISM, INFORMED_GREEDY, Mechanism

EPISODES = [(5, e) for e in range(60)]
RING = Population(truthful=4, colluder=4)


def play(population, behaviour=BEHAVIOUR, **rules):
    "Sixty episodes of a population under one mechanism; the same luck in every call."
    return simulate(Mechanism(**rules), population, EPISODES, behaviour=behaviour)


def trust(outcomes):
    "Mean trust of the ring in each episode."
    return outcomes.hidden[..., HIDDEN.index("trust")].mean(1)


def surely_below(one, other):
    "Is the mean paired difference of two samples negative by three standard errors?"
    difference = one - other
    return difference.mean() < -3 * difference.std(ddof=1) / np.sqrt(len(difference))


# Nothing for nothing

@pytest.mark.parametrize("population, behaviour, rules, missing", [
    (Population(truthful=6, value_high=0.8), BEHAVIOUR, dict(reserve_price=0.9), "welfare"),
    (Population(truthful=6), BEHAVIOUR, dict(auction_type="first_price"), "fairness"),
    (Population(dropout=6), BEHAVIOUR._replace(entry_cost=20.0), {}, "participation"),
])
def test_without_trade_surplus_or_participation_there_is_no_reward(population, behaviour, rules, missing):
    out = play(population, behaviour, **rules)
    assert getattr(out, missing).max() == 0 == out.reward.max()


def test_no_step_scores_above_its_weakest_factor():
    rng = np.random.default_rng(0)
    people = [Population.random(rng) for _ in range(300)]
    out = simulate([Mechanism.random(rng) for _ in people], people, range(300), steps=2)
    assert (out.reward <= np.min([out.welfare, out.fairness, out.participation, out.stability], axis=0) + 1e-12).all()


# Rings

def test_what_is_hidden_keeps_a_ring_apart():
    levels = [{}, dict(reveal_clearing_price=True), dict(reveal_bid_distribution=True), dict(reveal_competing_bids=True)]
    seen = [trust(play(RING, reserve_price=0.0, **{"reveal_clearing_price": False, **level})) for level in levels]
    assert all(surely_below(less, more) for less, more in zip(seen, seen[1:]))
    named = trust(play(RING, reserve_price=0.0, reveal_clearing_price=False, reveal_winner_identity=True))
    assert surely_below(seen[0], named)


def test_a_moderate_reserve_protects_and_too_high_a_reserve_empties_the_market():
    heavy = Population(truthful=1, colluder=5, value_high=0.9)
    none, some, all_of_it = (play(heavy, reserve_price=r, reveal_winner_identity=True) for r in (0.0, 0.5, 0.9))
    assert surely_below(trust(some), trust(none))
    assert surely_below(none.reward.mean(1), some.reward.mean(1)) and surely_below(none.revenue.mean(1), some.revenue.mean(1))
    assert all_of_it.reward.max() == 0


def test_a_secret_reserve_weakens_a_ring_and_keeps_newcomers_away():
    guests = Population(truthful=4, dropout=4)
    rules = dict(reserve_price=0.4, reveal_bid_distribution=True)
    assert surely_below(trust(play(RING, **rules)), trust(play(RING, reveal_reserve=True, **rules)))
    hidden, shown = (play(guests, reveal_reserve=public, **rules).participation.mean(1) for public in (False, True))
    assert surely_below(hidden, shown)


def test_larger_rings_gain_more_and_as_much_as_the_closed_form_says():
    n, rules = 8, Mechanism(reserve_price=0.0, reveal_competing_bids=True)
    gains = []
    for k in range(3, n + 1):
        state, _ = open_market(Population(truthful=n - k, colluder=k, value_low=0.0, return_rate=0.0), EPISODES)
        remembered = []
        for _ in range(8):
            step(state, rules)
            remembered.append(state.belief[:, GAIN].copy())
        gains.append(np.mean(remembered[2:]))
        fall = (n - 1) / (n + 1) - (1 - 1 / (n - k + 1) - (n - k) / (n * (n + 1)))
        assert gains[-1] == pytest.approx(n * (n + 1) * fall / k, rel=0.12)
    assert (np.diff(gains) > 0).all()


# Fines

def test_suspicion_fines_the_honest_and_proof_does_not():
    honest = Population(truthful=8)
    mild, harsh = (play(honest, coalition_policy="penalize_suspected", collusion_penalty=x) for x in (0.0, 3.0))
    assert surely_below(harsh.reward.mean(1), mild.reward.mean(1)) and surely_below(harsh.fairness.mean(1), mild.fairness.mean(1))
    free, fined = (play(honest, coalition_policy="penalize_confirmed", collusion_penalty=x, reveal_winner_identity=True) for x in (0.0, 3.0))
    assert np.array_equal(free.reward, fined.reward)


def test_proof_needs_evidence_and_deters():
    rules = dict(coalition_policy="penalize_confirmed", reveal_bid_distribution=True)
    blind = [play(RING, collusion_penalty=x, **rules).reward for x in (0.0, 3.0)]
    assert np.array_equal(*blind)
    seeing = [trust(play(RING, collusion_penalty=x, reveal_winner_identity=True, **rules)) for x in (0.0, 3.0)]
    assert surely_below(seeing[1], seeing[0])


def test_a_heavy_withdrawal_fine_stops_flipping():
    flippers = Population(truthful=4, exploiter=4)
    returns = [play(flippers, withdrawal_penalty=x).signals[..., SIGNALS.index("returns")].mean(1) for x in (0.0, 3.0)]
    assert surely_below(returns[1], returns[0])


# VCG

@pytest.mark.parametrize("base", [DEFAULT_MECHANISM, INFORMED_GREEDY])
def test_vcg_is_second_price_at_one_item_and_not_at_two(base):
    def both(items):
        crowd = Population(truthful=1, shader=2, dropout=1, colluder=2, exploiter=2, n_items=items)
        return [simulate(base.replace(auction_type=kind), crowd, EPISODES).reward for kind in ("second_price", "vcg")]

    assert np.array_equal(*both(1)) and not np.array_equal(*both(2))
