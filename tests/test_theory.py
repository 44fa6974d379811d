"""Closed forms of auction theory that `clear` and the market engine must meet within four standard errors."""

import math

import numpy as np
import pytest
from scipy.integrate import quad

from daedalus.market.auction import clear, second_price_revenue
from daedalus.market.bidders import Population, competitive_surplus
from daedalus.market.engine import HIDDEN, LOTS, SCORED, simulate
from daedalus.results import read_result
from daedalus.schema import Mechanism

AUCTIONS = 1_000_000
UNIFORM = {"value_low": 0.0, "value_high": 1.0, "return_rate": 0.0}
SETTINGS = [(2, 0.5), (5, 0.3), (8, 0.0), (8, 0.7)]


def uniforms(*shape):
    return np.random.default_rng(20).random((AUCTIONS, *shape))


def assert_mean(sample, closed_form):
    """The mean of independent draws lies within four standard errors of the closed form."""
    error = np.std(sample, ddof=1) / math.sqrt(len(sample))
    assert abs(np.mean(sample) - closed_form) <= 4 * error


def assert_ratio(part, whole, closed_form):
    """The same for a ratio of two means, by the delta method."""
    share = part.mean() / whole.mean()
    assert_mean(share + (part - share * whole) / whole.mean(), closed_form)


def engine(population, steps=10, late=None, **rules):
    """Scores of enough markets for `AUCTIONS` auctions in their last `late` steps."""
    markets = math.ceil(AUCTIONS / (LOTS * SCORED * (late or steps)))
    return simulate(Mechanism(**rules), population, range(markets), steps)


# One item


@pytest.mark.parametrize("n, r", SETTINGS)
def test_second_price(n, r):
    values = uniforms(n)
    sold = clear(values, "second_price", reserve=r)
    assert_mean(sold.payments.sum(1), second_price_revenue(n, r))
    assert_ratio((sold.units * values).sum(1), values.max(1), 1 - r ** (n + 1))
    assert_mean(sold.units.sum(1), 1 - r**n)


@pytest.mark.parametrize("n, r", SETTINGS)
def test_the_engine_sells_at_second_price(n, r):
    out = engine(Population(truthful=n, **UNIFORM), auction_type="second_price", reserve_price=r)
    assert_mean(out.revenue.ravel(), second_price_revenue(n, r))
    assert_mean(out.welfare.ravel(), 1 - r**n)


@pytest.mark.parametrize("n, r", SETTINGS)
def test_first_price_equilibrium_earns_the_same(n, r):
    values = uniforms(n)
    bids = values * (n - 1) / n + r**n / (n * values ** (n - 1))
    sold = clear(np.where(values < r, 0.0, bids), "first_price", reserve=r)
    assert_mean(sold.payments.sum(1), second_price_revenue(n, r))


def test_no_bid_beats_the_first_price_equilibrium():
    n, r, rivals = 3, 0.4, uniforms(2)
    rival_bids = np.where(rivals < r, 0.0, rivals * 2 / 3 + r**3 / (3 * rivals**2))
    value = 0.8
    best = value * 2 / 3 + r**3 / (3 * value**2)

    def payoff(bid):
        bids = np.column_stack([np.full(AUCTIONS, bid), rival_bids])
        return (value - bid) * clear(bids, "first_price", reserve=r).units[:, 0].mean()

    assert payoff(best) == pytest.approx((value**n - r**n) / n, abs=1e-3)
    assert all(payoff(best) > payoff(best + step) for step in (-0.1, -0.05, 0.05, 0.1))


def test_a_bidders_surplus_is_the_unit_of_fines():
    values = uniforms(8)
    sold = clear(values, "second_price")
    assert competitive_surplus(0.0, 1.0, 8) == 1 / 72
    assert_mean((sold.units * values - sold.payments).mean(1), 1 / 72)


@pytest.mark.parametrize("reserve", [0.0, 0.4])
def test_vcg_is_second_price_with_one_item(reserve):
    bids = uniforms(6)
    by_clarke, by_second = clear(bids, "vcg", reserve=reserve), clear(bids, "second_price", reserve=reserve)
    assert np.array_equal(by_clarke.payments, by_second.payments)
    assert np.array_equal(by_clarke.units, by_second.units)


@pytest.mark.parametrize("stage", range(5))
def test_vcg_is_second_price_in_the_engine(stage):
    played = [
        simulate(Mechanism(auction_type=kind, reserve_price=0.3), Population.stage(stage), range(10))
        for kind in ("vcg", "second_price")
    ]
    assert all(np.array_equal(a, b) for a, b in zip(*played, strict=True))


# The best reserve


@pytest.mark.parametrize("n", [2, 5, 8])
def test_the_best_reserve_is_one_half(n):
    values = uniforms(n)
    at = {r: clear(values, "second_price", reserve=r).payments.sum(1) for r in (0.0, 0.4, 0.5, 0.6)}
    assert_mean(at[0.5] - at[0.0], 2.0**-n / (n + 1))
    for r in (0.0, 0.4, 0.6):
        assert_mean(at[0.5] - at[r], second_price_revenue(n, 0.5) - second_price_revenue(n, r))
        assert at[0.5].mean() > at[r].mean()


@pytest.mark.parametrize("low", [0.3, 0.6])
def test_the_best_reserve_of_other_values(low):
    best, n = max(low, 0.5), 2
    values = low + (1 - low) * uniforms(n)

    def closed_form(r):
        t = (r - low) / (1 - low)
        return low * (1 - t**n) + (1 - low) * second_price_revenue(n, t)

    at = {r: clear(values, "second_price", reserve=r).payments.sum(1) for r in (best, best + 0.1)}
    for r, sample in at.items():
        assert_mean(sample, closed_form(r))
    assert at[best].mean() > at[best + 0.1].mean()


# Several items


@pytest.mark.parametrize("n, m", [(5, 2), (8, 3)])
def test_uniform_price_with_unit_demand(n, m):
    closed_form = m * (n - m) / (n + 1)
    assert_mean(clear(uniforms(n), "second_price", n_items=m).payments.sum(1), closed_form)
    population = Population(truthful=n, n_items=m, second_unit=0.0, **UNIFORM)
    out = engine(population, auction_type="second_price", reserve_price=0.0)
    assert_mean(out.revenue.ravel(), closed_form)


def test_two_bidders_two_items():
    values = -np.sort(-uniforms(2, 2), axis=2)
    clarke, uniform = (clear(values, kind, n_items=2) for kind in ("vcg", "second_price"))
    assert_mean(clarke.payments.sum(1), 0.6)
    assert_mean(uniform.payments.sum(1), 0.8)
    losing = np.sort(values.reshape(-1, 4), axis=1)[:, :2].sum(1)
    np.testing.assert_allclose(clarke.payments.sum(1), losing, rtol=1e-12)


def test_demand_reduction():
    values = -np.sort(-uniforms(2, 2), axis=2)
    reduced = clear(values * [1, 0], "second_price", n_items=2)
    assert (reduced.payments == 0).all()
    assert (reduced.units == 1).all()
    best = np.sort(values.reshape(-1, 4), axis=1)[:, 2:].sum(1)
    assert_ratio(values[:, :, 0].sum(1), best, 20 / 21)


@pytest.mark.parametrize("bid", [0.1, 0.5, 0.9])
def test_demand_reduction_is_an_equilibrium(bid):
    bids = -np.sort(-uniforms(2, 2), axis=2) * [1, 0]
    bids[:, 0] = 1.0, bid
    tried = clear(bids, "second_price", n_items=2)
    gain = (tried.units[:, 0] == 2) - tried.payments[:, 0]
    assert_mean(gain, bid**2 - bid - bid**3 / 3)
    assert gain.mean() < 0


def test_learners_reduce_demand_unless_prices_are_clarke():
    pair = Population(shader=2, n_items=2, second_unit=0.5, **UNIFORM)
    late = {}
    for kind in ("second_price", "vcg"):
        out = engine(pair, 40, 20, auction_type=kind, reserve_price=0.0, reveal_competing_bids=True)
        late[kind] = out.hidden[:, -20:, HIDDEN.index("shading")].mean()
    assert late["second_price"] < 0.6
    assert late["vcg"] > 0.98


# Rings


def stand_down(values, k):
    """Bids when only the best of the first `k` bidders bids among them."""
    bids = values.copy()
    bids[:, :k] *= values[:, :k] == values[:, :k].max(1, keepdims=True)
    return bids


@pytest.mark.parametrize("k, rounded", [(2, 0.7738), (4, 0.7444)])
def test_efficient_ring(k, rounded):
    n = 8
    closed_form = 1 - 1 / (n - k + 1) - (n - k) / (n * (n + 1))
    assert round(closed_form, 4) == rounded
    assert_mean(clear(stand_down(uniforms(n), k), "second_price").payments.sum(1), closed_form)


@pytest.mark.parametrize("n", [2, 8])
def test_ring_of_everyone(n):
    r = (n + 1) ** (-1 / n)
    bids = stand_down(uniforms(n), n)
    at = {x: clear(bids, "second_price", reserve=x).payments.sum(1) for x in (r - 0.1, r, r + 0.1)}
    assert_mean(at[r], n * r / (n + 1))
    assert at[r].mean() > max(at[r - 0.1].mean(), at[r + 0.1].mean())
    rules = Mechanism(auction_type="second_price", reserve_price=r, reveal_reserve=True, reveal_competing_bids=True)
    out = engine(Population(colluder=n, **UNIFORM), 40, 20, **dict(rules))
    assert_mean(out.revenue[:, -20:].ravel(), n * r / (n + 1))


# Unequal bidders: U[0, 1] against U[0, 2]


def unequal_bids(values):
    """Equilibrium bids of the weak bidder (column 0) and the strong one (column 1)."""
    return values / (1 + np.sqrt(1 + np.array([-0.75, 0.75]) * values**2))


def test_unequal_bidders():
    values = uniforms(2) * [1, 2]
    first_price = 2 / 3 - (math.atanh(1 / math.sqrt(3)) - math.pi / 6) / 0.75**1.5
    assert first_price == pytest.approx(0.459005, abs=1e-6)
    assert_mean(clear(unequal_bids(values), "first_price").payments.sum(1), first_price)
    assert_mean(clear(values, "second_price").payments.sum(1), 5 / 12)


@pytest.mark.parametrize("who, value", [(0, 0.6), (0, 1.0), (1, 0.8), (1, 2.0)])
def test_unequal_bids_are_best_responses(who, value):
    bids = unequal_bids(uniforms(2) * [1, 2])
    equilibrium = unequal_bids(np.array([[min(value, 1), value]]))[0, who]

    def payoff(bid):
        tried = bids.copy()
        tried[:, who] = bid
        return (value - bid) * clear(tried, "first_price").units[:, who].mean()

    assert all(payoff(equilibrium) > payoff(equilibrium * factor) for factor in (0.8, 0.9, 1.1, 1.2))


# Bidders who learn


@pytest.mark.parametrize("n", [3, 5, 8])
def test_no_regret_bidders_find_the_equilibrium(n):
    learners, played = Population(shader=n, **UNIFORM), {}
    for kind in ("first_price", "second_price"):
        out = engine(learners, 80, 40, auction_type=kind, reserve_price=0.0, reveal_competing_bids=True)
        played[kind] = out.hidden[:, -40:, HIDDEN.index("shading")].mean()
    assert played["first_price"] == pytest.approx((n - 1) / n, abs=0.03)
    assert 0.99 <= played["second_price"] <= 1


# The committed table, and some of its closed forms by other means


THEORY = read_result("theory")
CLOSED = dict(zip(THEORY["comparisons"]["claim"], THEORY["comparisons"]["closed_form"]))


def test_the_table_is_large_and_none_of_it_is_far_from_theory():
    rows, forms = THEORY["comparisons"], THEORY["forms"]
    assert len(rows["claim"]) == len(set(rows["claim"])) == sum(forms["settings"]) >= 75
    assert len(forms["form"]) == len(set(forms["form"])) == len(set(rows["form"])) >= 35
    assert max(map(abs, rows["z"])) == THEORY["largest_z"] <= 4
    assert 0.8 < np.std(rows["z"]) < 1.2 and abs(np.mean(rows["z"])) < 0.3   # as draws of a standard normal


def test_learners_come_to_the_factors_of_interdependent_values():
    of = THEORY["learned_k"]
    for kind, n, eta, theory, played in zip(*(of[name] for name in ("format", "bidders", "eta", "theory", "played"))):
        k = 1 - eta / 2 + eta * n / (4 * (n - 1))
        assert theory == pytest.approx(k if kind == "second_price" else k * (n - 1) / n)
        assert played == pytest.approx(theory, abs=0.05)


def test_the_curse_is_what_winners_are_disappointed_by():
    """What naive bidders expect to get when they win, less what they get, from the moments of uniform order statistics."""
    curse = THEORY["winners_curse"]
    at = {key: (theory, earned) for *key, theory, earned in zip(*(curse[name] for name in ("bids", "bidders", "eta", "theory", "earned")))
          for key in [tuple(key)]}
    for (how, n, eta), (theory, earned) in at.items():
        assert earned == pytest.approx(theory, abs=0.002)
        highest = n / (n + 1)                              # the mean of the rivals' signals is uniform below the highest
        disappointment = eta / 2 * (1 / 2 - highest / 2)
        if how == "naive":
            assert at["equilibrium", n, eta][0] - theory == pytest.approx(disappointment)


@pytest.mark.parametrize("t", [1.5, 3])
def test_strong_bidders_by_quadrature(t):
    kappa, top = 1 - t**-2, t / (t + 1)

    def lower(b):
        """The chance that the strong bidder bids below b."""
        return 2 * b / (1 - kappa * b**2) / t

    def weak_bid(v):
        return v / (1 + math.sqrt(1 - kappa * v**2))

    revenue = top - quad(lambda b: 2 * b / (1 + kappa * b**2) * lower(b), 0, top)[0]
    assert CLOSED[f"first price, t = {t:g}: revenue"] == pytest.approx(revenue)
    weak = quad(lambda v: lower(weak_bid(v)), 0, 1)[0]
    assert CLOSED[f"first price, t = {t:g}: share that the weak win"] == pytest.approx(weak)


@pytest.mark.parametrize("n, m, r", [(5, 2, 0.5), (8, 3, 0.7)])
def test_units_with_a_reserve_by_sorting(n, m, r):
    ranked = -np.sort(-uniforms(n)[:200_000], axis=1)
    price = np.maximum(r, ranked[:, m])
    assert_mean(price * (ranked[:, :m] >= r).sum(1), CLOSED[f"uniform price, n = {n}, M = {m}, r = {r}: revenue"])


def test_entry_from_a_threshold_by_quadrature():
    n, cost = 8, 0.05
    least = cost ** (1 / n)
    second = quad(lambda x: x * n * (n - 1) * x ** (n - 2) * (1 - x), least, 1)[0]   # two or more have entered
    assert CLOSED[f"entry from {least:.3f}, n = {n}, c = {cost}: revenue"] == pytest.approx(second)
