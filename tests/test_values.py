"""What bidders' values are: uniform or of another shape, private or interdependent, of one range or of two, beside closed forms."""

import hashlib
import json
import math
import os
import re
import subprocess
import sys

import numpy as np
import pytest

from daedalus import _runtime
from daedalus.env import suite
from daedalus.market import engine as market
from daedalus.market.bidders import (
    BEHAVIOUR, COLLUDER, HELD_OUT_RULES, LEARNING_RULES, ROTATIONS, SHILL, TRAIT, TRAITS, VARIED, Population, PopulationError,
    competitive_surplus, is_strong, read_rules)
from daedalus.market.engine import BID, COLUMN, HIDDEN, LOTS, METRICS, MarketState, advance, new_market, open_market, simulate
from daedalus.schema import DEFAULT_MECHANISM, INFORMED_GREEDY, Mechanism

UNIFORM = {"value_low": 0.0, "value_high": 1.0, "return_rate": 0.0}
STRONG = {**UNIFORM, "value_high": 0.5, "strength": 2.0}   # U[0, .5] against U[0, 1]
OTHER = Population(truthful=3, shader=2, n_items=2, value_low=0.1, value_high=0.9, second_unit=0.4, return_rate=0.05)
KINDS_OF_VALUES = {"shape": {"value_shape": 2.0}, "interdependent": {"interdependence": 0.7},
                   "strong": {"strong": 2, "strength": 1.5, "value_high": 0.7},
                   "all": {"value_shape": 0.6, "interdependence": 0.4, "strong": 3, "strength": 1.2, "value_high": 0.8}}


class Line:
    """All bidders bid a share of what they take their values to be; what they earn is summed up."""

    def __init__(self, slopes):
        self.slopes, self.earned = slopes, 0.0

    def act(self, state, rows):
        acts = np.zeros((*state.kind.shape, 4))
        acts[..., 0], acts[..., 1] = BID, self.slopes
        return acts

    def learn(self, state, rows, accounts):
        self.earned = self.earned + accounts.net.mean(0)


def auctions(population, slopes=None, **rules):
    """A million auctions: scores [sessions, METRICS], and what each bidder earns in one of them where it bids a line.

    Nobody hands back a unit that turns out to be worth less than its price: the closed forms know no returns.
    """
    markets, rounds = 6250, 10
    state, agents = new_market(population, range(markets)), None if slopes is None else Line(slopes)
    scores = advance(state, Mechanism(**{"reserve_price": 0.0, "withdrawal_penalty": 3.0} | rules), rounds, agents=agents)
    return scores.reshape(-1, len(METRICS)), agents and agents.earned / (rounds * LOTS)


def assert_mean(sample, closed_form):
    """The mean of independent draws lies within four standard errors of the closed form."""
    assert abs(np.mean(sample) - closed_form) <= 4 * np.std(sample, ddof=1) / math.sqrt(len(sample))


# The numbers that a market reads


def test_the_market_reads_the_numbers_of_a_population_by_name():
    traits = new_market([OTHER, Population.stage(4)], 0).traits
    for row, population in zip(traits, (OTHER, Population.stage(4)), strict=True):
        expected = {name: getattr(population, name) for name in TRAITS} | {
            "learning": LEARNING_RULES.index(population.learning), "rotation": ROTATIONS.index(population.rotation)}
        assert {name: row[at] for name, at in TRAIT._asdict().items()} == expected


def test_nothing_reads_a_trait_by_its_place():
    """An index with a number in it names a row, and the trait by TRAIT."""
    found = [index for path in _runtime.PACKAGE.rglob("*.py") for index in re.findall(r"traits(\[[^\]]*\d[^\]]*\])", path.read_text())]
    assert found and all("TRAIT." in index for index in found)


# What is left as it was


def test_a_population_of_before_is_written_as_before():
    written = ["truthful", "shader", "dropout", "colluder", "exploiter", "n_items", "value_low", "value_high", "second_unit", "return_rate"]
    for population in [*suite("stages"), *suite("open"), OTHER]:
        assert list(population.model_dump()) == written and list(json.loads(population.to_json())) == written
        assert Population.from_json(population.to_json()) == population
    shaped = OTHER.replace(value_shape=2.0)
    assert list(shaped.model_dump()) == [*written, "value_shape"] and Population(**shaped.model_dump()) == shaped
    assert str(OTHER) == "3 truthful, 2 shader; 2 units" and str(shaped) == "3 truthful, 2 shader; 2 units; value_shape 2"


def digest(value):
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


def test_populations_and_their_schema_are_what_they_were_in_one_class():
    """Fields and their order, schema, texts, numbers and draws, of before the declaration was divided."""
    rng = np.random.default_rng(3)
    people = [*map(Population.stage, range(5)), *(draw(rng) for draw in (Population.random, Population.varied) for _ in range(100))]
    forms = [[repr(one), str(one), one.key_text(), one.traits().tolist(), one.kinds().tolist()] for one in people]
    assert (digest(Population.model_json_schema()), digest(forms)) == ("609d472523bec716", "7cfddb8ea43ea5e6")


def test_a_state_of_before_is_written_and_read_as_before():
    state, _ = open_market([OTHER, Population.stage(4)], range(2))
    written = state.to_dict()
    assert np.shape(written["traits"]) == (2, TRAIT.learning)
    read = MarketState.from_dict(json.loads(json.dumps(written)))
    assert all(np.array_equal(a, b) and a.dtype == b.dtype for a, b in zip(read, state, strict=True))


@pytest.mark.parametrize("fields", KINDS_OF_VALUES.values(), ids=KINDS_OF_VALUES)
def test_a_state_with_other_values_continues_to_the_bit_after_json(fields):
    state, _ = open_market([Population.stage(4), Population.stage(4).replace(**fields)], range(2))
    read = MarketState.from_dict(json.loads(json.dumps(state.to_dict())))
    one, other = advance(state, INFORMED_GREEDY), advance(read, INFORMED_GREEDY)
    assert np.array_equal(one, other) and np.ptp(one, 0).any()


def test_a_market_of_before_plays_the_same_beside_others():
    """The code for batches with other values gives usual markets the bits that they have among themselves."""
    usual, keys = [*suite("stages"), *suite("open")], [(3, at) for at in range(25)]
    others = [Population.varied(at) for at in range(25)]
    alone = simulate(INFORMED_GREEDY, usual, keys, 3)
    beside = simulate(INFORMED_GREEDY, usual + others, keys * 2, 3)
    assert all(np.array_equal(a, b[:25]) for a, b in zip(alone, beside, strict=True))
    turned = simulate(INFORMED_GREEDY, (usual + others)[::-1], (keys * 2)[::-1], 3, threads=2)
    assert all(np.array_equal(a, b[::-1]) for a, b in zip(beside, turned, strict=True))


# Other shapes: F(v) = v ** a


@pytest.mark.parametrize("n, a", [(3, 0.5), (3, 2.0), (6, 0.5), (6, 3.0)])
def test_first_and_second_price_of_another_shape(n, a):
    people, shade = Population(truthful=n, value_shape=a, **UNIFORM), a * (n - 1) / (a * (n - 1) + 1)
    best = a * n / (a * n + 1)
    second, _ = auctions(people, auction_type="second_price")
    first, earned = auctions(people, shade, auction_type="first_price")
    assert_mean(second[:, COLUMN.revenue], shade * best)
    assert_mean(first[:, COLUMN.revenue], shade * best)
    assert_mean(first[:, COLUMN.best], best)
    assert earned.mean() == pytest.approx((1 - shade) * best / n, rel=0.01)


@pytest.mark.parametrize("a", [0.5, 2.0])
def test_no_share_of_the_value_beats_the_equilibrium_of_another_shape(a):
    n, people = 3, Population(truthful=3, value_shape=a, **UNIFORM)
    shade = a * (n - 1) / (a * (n - 1) + 1)
    earned = {slope: auctions(people, [slope, shade, shade], auction_type="first_price")[1][0]
              for slope in (shade - 0.1, shade, shade + 0.1)}
    assert max(earned, key=earned.get) == shade


@pytest.mark.parametrize("a", [0.5, 2.0])
def test_the_best_reserve_of_another_shape(a):
    n, best = 3, (1 + a) ** (-1 / a)
    people = Population(truthful=n, value_shape=a, **UNIFORM)

    def closed_form(r):
        one, two = (1 - r ** (a * (n - 1) + 1)) / (a * (n - 1) + 1), (1 - r ** (a * n + 1)) / (a * n + 1)
        return n * r ** (a * (n - 1) + 1) * (1 - r**a) + n * (n - 1) * a * (one - two)

    at = {r: auctions(people, auction_type="second_price", reserve_price=r)[0][:, COLUMN.revenue] for r in (best - 0.15, best, best + 0.15)}
    for r, sample in at.items():
        assert_mean(sample, closed_form(r))
        assert r == best or (closed_form(best) > closed_form(r) and at[best].mean() > sample.mean())


# Interdependent values


def k_of(n, eta):
    return 1 - eta / 2 + eta * n / (4 * (n - 1))


SIX = {(3, 0.0): 0.5, (3, 0.5): 0.46875, (3, 1.0): 0.4375, (6, 0.0): 0.7143, (6, 0.5): 0.6429, (6, 1.0): 0.5714}


@pytest.mark.parametrize("n, eta", SIX)
def test_the_six_revenues_of_interdependent_values(n, eta):
    k, people = k_of(n, eta), Population(shader=n, interdependence=eta, **UNIFORM)
    revenue, rent = k * (n - 1) / (n + 1), (1 - eta / 2) / (n * (n + 1))
    assert revenue == pytest.approx(SIX[n, eta], abs=5e-5)
    for kind, slope in (("second_price", k), ("first_price", k * (n - 1) / n)):
        scores, earned = auctions(people, slope, auction_type=kind)
        assert_mean(scores[:, COLUMN.revenue], revenue)
        assert_mean(scores[:, COLUMN.best], (1 - eta / 4) * n / (n + 1))   # the highest signal has the highest value
        assert earned.mean() == pytest.approx(rent, rel=0.01)
        tried = {s: auctions(people, [s] + [slope] * (n - 1), auction_type=kind)[1][0] for s in (slope - 0.1, slope, slope + 0.1)}
        assert max(tried, key=tried.get) == slope


@pytest.mark.parametrize("n, eta", [(3, 0.5), (3, 1.0), (6, 0.8)])
def test_the_winners_curse_of_naive_bidders(n, eta):
    """Truthful bidders bid what they expect by their own signal, and earn less than in equilibrium; at face value, they lose."""
    naive, face = Population(truthful=n, interdependence=eta, **UNIFORM), Population(shader=n, interdependence=eta, **UNIFORM)
    scores, earned = auctions(naive, 1.0, auction_type="second_price")
    assert_mean(scores[:, COLUMN.revenue], (1 - eta / 2) * (n - 1) / (n + 1) + eta / 4)
    assert n * earned.mean() == pytest.approx((1 - 0.75 * eta) / (n + 1), rel=0.03)
    scores, earned = auctions(face, 1.0, auction_type="second_price")
    assert scores[:, COLUMN.revenue].mean() == pytest.approx((n - 1) / (n + 1), abs=2e-3)
    assert n * earned.mean() == pytest.approx((1 - eta * n / 4) / (n + 1), abs=2e-3)
    assert (earned.mean() < 0) == (n * eta > 4)


@pytest.mark.parametrize("n, eta", SIX)
def test_learners_find_k(n, eta):
    learners, played = Population(shader=n, interdependence=eta, **UNIFORM), {}
    for kind in ("second_price", "first_price"):
        rules = Mechanism(auction_type=kind, reserve_price=0.0, reveal_competing_bids=True)
        played[kind] = simulate(rules, learners, range(200), 60).hidden[:, -40:, HIDDEN.index("shading")].mean()
    assert played["second_price"] == pytest.approx(k_of(n, eta), abs=0.05)
    assert played["first_price"] == pytest.approx(k_of(n, eta) * (n - 1) / n, abs=0.05)


# Strong bidders


def test_a_weak_bidder_against_a_strong_one():
    """U[0, 1] against U[0, 2], in half the unit: the second price brings 5/12, and the higher value wins."""
    scores, _ = auctions(Population(truthful=2, strong=1, **STRONG), auction_type="second_price")
    assert_mean(2 * scores[:, COLUMN.revenue], 5 / 12)
    assert_mean(2 * scores[:, COLUMN.best], 13 / 12)
    assert (scores[:, COLUMN.welfare] == 1).all()


def test_the_first_price_equilibrium_of_a_weak_and_a_strong_bidder_as_the_market_draws_them():
    state = new_market(Population(truthful=2, strong=1, **STRONG), 11)
    value = np.array(list(drawn(state, 4000))) * 2
    assert value[:, 0].max() <= 1 < value[:, 1].max() <= 2
    bids = value / (1 + np.sqrt(1 + np.array([-0.75, 0.75]) * value**2))
    revenue = 2 / 3 - (math.atanh(1 / math.sqrt(3)) - math.pi / 6) / 0.75**1.5
    assert_mean(bids.max(1), revenue)


@pytest.mark.parametrize("n", [1, 2, 5, 8])
def test_strong_bidders_are_spread_evenly_over_the_seats(n):
    for strong in range(n + 1):
        seats = np.array([is_strong(i, n, strong) for i in range(n)])
        assert seats.sum() == strong and (strong == 0 or seats[-1])
        assert all(abs(seats[:i].sum() - i * strong / n) < 1 for i in range(n + 1))


# The unit of fines


@pytest.mark.parametrize("fields", [
    {"value_shape": 2.0}, {"value_shape": 0.5}, {"strong": 2, "strength": 2.0, "value_high": 0.5}, {"strong": 5, "strength": 1.25, "value_high": 0.8},
    {"value_shape": 1.7, "strong": 1, "strength": 3.0, "value_high": 0.3}])
def test_the_unit_of_fines_is_what_a_bidder_earns_in_a_competitive_lot(fields):
    people = Population(truthful=5, **UNIFORM | fields)
    scores, _ = auctions(people, auction_type="second_price")
    assert_mean((scores[:, COLUMN.best] - scores[:, COLUMN.revenue]) / 5, people.surplus())
    state = new_market(people, 0)
    assert market.read_market(state.key[0], 0, state.kind[0], state.traits[0], read_rules(DEFAULT_MECHANISM.to_array())).stake \
        == pytest.approx(LOTS * people.surplus(), rel=1e-12)


def test_the_unit_of_fines_is_the_same_number_in_a_usual_market():
    for n in range(1, 13):
        assert competitive_surplus(0.3, 1.0, n) == (1.0 - 0.3) / (n * (n + 1.0)) == Population(truthful=n).surplus()
        assert competitive_surplus(0.3, 1.0, n, 1.0, 0.0, n, 1.0) == competitive_surplus(0.3, 1.0, n)
    assert Population(truthful=1, interdependence=1.0).surplus() == Population(truthful=1).surplus()


# A lot


def drawn(state, sessions):
    """The values of the lots of so many sessions, one lot after the other."""
    rules, floor = read_rules(DEFAULT_MECHANISM.to_array()), market.make_floor(state, market.open_accounts(state, 1))
    for now in range(sessions):
        of = market.read_market(state.key[0], now, floor.kind, state.traits[0], rules)
        of = of._replace(key0=state.key[0, 0], key1=state.key[0, 1])
        market.enter(of, rules, BEHAVIOUR, floor)
        for lot in range(LOTS):
            market.draw_bids(of, rules, lot, False, floor)
            yield floor.value[:of.n].copy()


def at_work(people, rules=DEFAULT_MECHANISM):
    state = new_market(people, 5)
    rules, floor = read_rules(rules.to_array()), market.make_floor(state, market.open_accounts(state, 1))
    of = market.read_market(state.key[0], 0, floor.kind, state.traits[0], rules)._replace(key0=state.key[0, 0], key1=state.key[0, 1])
    market.enter(of, rules, BEHAVIOUR, floor)
    market.choose(of, rules, BEHAVIOUR, floor)
    return of, rules, floor


@pytest.mark.parametrize("fields", KINDS_OF_VALUES.values(), ids=KINDS_OF_VALUES)
def test_values_stay_in_their_range_and_add_up(fields):
    people = Population(shader=4, truthful=2, **fields)
    of, rules, floor = at_work(people)
    for lot in range(LOTS):
        market.draw_bids(of, rules, lot, False, floor)
        value, estimate = floor.value[:6], floor.estimate[:6]
        assert (value >= of.low).all() and (value <= of.high).all() and (estimate <= of.high).all()
        if people.interdependence == 0: assert np.array_equal(value, estimate)
    assert of.high == pytest.approx(people.value_low + people.strength * (people.value_high - people.value_low))


def test_an_interdependent_value_is_made_of_all_signals():
    people = Population(shader=4, interdependence=0.6, value_low=0.2)
    of, rules, floor = at_work(people)
    market.draw_bids(of, rules, 0, False, floor)
    signal = floor.estimate[:4]
    others = (signal.sum() - signal) / 3
    assert floor.value[:4] == pytest.approx(0.7 * signal + 0.3 * others)
    naive, _, room = at_work(people.replace(shader=0, truthful=4))
    market.draw_bids(naive, rules, 0, False, room)
    assert room.estimate[:4] == pytest.approx(0.7 * signal + 0.3 * 0.6)   # what the others' signals are on average
    assert np.array_equal(room.bid[:4], room.estimate[:4]) and np.array_equal(room.value[:4], floor.value[:4])


@pytest.mark.parametrize("fields", KINDS_OF_VALUES.values(), ids=KINDS_OF_VALUES)
def test_a_shills_false_bid_is_uniform_whatever_the_values(fields):
    of, rules, floor = at_work(Population(exploiter=4, **fields))
    start, stop = 0.5, 0.6
    slope, found = (stop - start) / (of.high - of.low), []
    floor.arm[:], floor.slope[:], floor.start[:] = SHILL, slope, start - of.low * slope
    for now in range(200):
        of = of._replace(now=now)
        for lot in range(LOTS):
            market.draw_bids(of, rules, lot, False, floor)
            found.extend(floor.bid[:4])
    assert start <= min(found) and max(found) <= stop
    assert_mean(np.array(found), (start + stop) / 2)
    assert np.std(found) == pytest.approx((stop - start) / math.sqrt(12), rel=0.02)


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_the_ring_sends_the_member_with_the_highest_value(eta):
    of, rules, floor = at_work(Population(truthful=2, colluder=4, interdependence=eta))
    ring = np.flatnonzero(floor.kind == COLLUDER)
    for lot in range(LOTS):
        leader, second = market.draw_bids(of, rules, lot, True, floor)
        best = ring[np.argsort(-floor.value[ring])]
        assert (leader, second) == tuple(best[:2])


CODE = """
import json
import daedalus as dd
from daedalus.market.bidders import Population
people = [Population.varied(at) for at in range(5)]
print(json.dumps([a.tolist() for a in dd.simulate(dd.INFORMED_GREEDY, people, range(5), 1)]))
"""


def test_compiled_code_agrees_with_the_interpreter_on_other_values():
    def outcomes(disabled):
        run = subprocess.run([sys.executable, "-c", CODE], env={**os.environ, "NUMBA_DISABLE_JIT": disabled}, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        return json.loads(run.stdout)

    for a, b in zip(outcomes("0"), outcomes("1"), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-9)


# Draws, and what is refused


def test_varied_populations_are_of_all_kinds():
    people = [Population.varied(seed) for seed in range(400)]
    assert [Population.varied(seed) for seed in range(400)] == people and len(set(people)) == 400
    assert {p.bidders for p in people} == set(range(3, 17)) and {p.n_items for p in people} == {1, 2, 3, 4}
    for name, usual, least in (("value_shape", 1.0, 0.55), ("interdependence", 0.0, 0.4), ("strong", 0, 0.4)):
        assert least < np.mean([getattr(p, name) != usual for p in people]) < least + 0.2
    assert all(p.value_low + p.strength * (p.value_high - p.value_low) <= 1 for p in people)
    assert {p.learning for p in people} == set(LEARNING_RULES) - set(HELD_OUT_RULES)
    assert all((p.strength > 1) == (p.strong > 0) for p in people) and set(VARIED) <= set(Population.model_fields)
    out = simulate(DEFAULT_MECHANISM, people, range(400), 2)
    assert all(np.isfinite(field).all() for field in out) and (out.welfare <= 1).all() and (out.reward > 0).mean() > 0.8


def test_random_populations_are_drawn_as_before():
    assert [str(Population.random(seed)) for seed in range(3)] == [
        str(Population(**{kind: getattr(p, kind) for kind in ("truthful", "shader", "dropout", "colluder", "exploiter", "n_items")}))
        for p in map(Population.random, range(3))]
    assert all(Population.random(seed).surplus() == competitive_surplus(0.3, 1.0, Population.random(seed).bidders) for seed in range(50))


@pytest.mark.parametrize("fields, complaint", [
    ({"value_shape": 0.0}, "value_shape must be a number from 0.1 to 10, not 0.0"),
    ({"value_shape": "2"}, "value_shape must be a number from 0.1 to 10, not '2'"),
    ({"interdependence": 1.1}, "interdependence must be a number from 0 to 1, not 1.1"),
    ({"strong": 4}, "strong must be at most the 3 bidders, not 4"),
    ({"strong": True}, "strong must be a whole number from 0 to 64, not True"),
    ({"strength": 0.5}, "strength must be a number from 1 to 10, not 0.5"),
    ({"strong": 1, "strength": 2.0}, r"strength must be at most 1 where values go from 0.3 to 1.0, so that none is above 1, not 2.0"),
])
def test_values_that_are_none_are_refused(fields, complaint):
    with pytest.raises(PopulationError, match=f"{complaint}$"):
        Population(**{"truthful": 3} | fields)
