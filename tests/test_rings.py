"""Rings that rotate and rings that cover: sessions worked out by hand, closed forms, and what is left as it was."""

import hashlib
import json
import math

import numpy as np
import pytest
from shared import additions

from daedalus.env import suite
from daedalus.market.auction import highest_bids, register_format
from daedalus.market.bidders import (
    BY_LOT, COLLUDER, COVER_FROM, IN_TURN, ROTATIONS, TRAIT, VARIED, Population, PopulationError, cover_share, whose_turn)
from daedalus.market.engine import (
    BID, COLUMN, GAIN, LOTS, METRICS, TRUST, MarketState, advance, new_market, open_market, simulate)
from daedalus.market.noise import fill_uniforms
from daedalus.market.record import watch
from daedalus.schema import INFORMED_GREEDY, Mechanism
from daedalus.seeds import COVER, ROTATION
from daedalus.studies.exploit import RING_DEVIATIONS, Plan, seat_deviators

UNIFORM = {"value_low": 0.0, "value_high": 1.0, "return_rate": 0.0}
OTHER = {"turn": {"rotation": "turn"}, "random": {"rotation": "random"}, "cover": {"cover": 0.1},
         "both": {"rotation": "turn", "cover": 0.2}}
OPEN = {"reserve_price": 0.0, "reveal_competing_bids": True, "reveal_winner_identity": True}


def met(population, seed=0, sessions=1, markets=1, **rules):
    """The last session of a ring that meets for sure."""
    state = new_market([population] * markets, [seed + at for at in range(markets)])
    state.belief[:, TRUST] = 1.0
    return state, watch(state, Mechanism(**OPEN | rules), rounds=sessions)


class Sincere:
    """All bidders bid their value times a factor, and the ring meets in every session; what they earn is summed up."""

    def __init__(self, factor=1.0):
        self.factor, self.earned, self.gain = factor, [], []

    def act(self, state, rows):
        state.belief[:, TRUST], state.belief[:, GAIN] = 1.0, 0.0
        acts = np.zeros((*state.kind.shape, 4))
        acts[..., 0], acts[..., 1] = BID, self.factor
        return acts

    def learn(self, state, rows, accounts):
        self.earned.append(accounts.net.sum(1) / LOTS)
        self.gain.append(state.belief[:, GAIN] / 0.3)   # it moved from 0 by the rate of beliefs


def auctions(population, factor=1.0, **rules):
    """160,000 lots of a ring that always meets: revenue and surplus per lot of each session, and the ring's gain per lot."""
    agents, unit = Sincere(factor), population.colluder * population.surplus()
    scores = advance(new_market(population, range(2000)), Mechanism(**{"reserve_price": 0.0} | rules), 5, agents=agents)
    return scores[..., COLUMN.revenue].ravel(), np.array(agents.earned).ravel(), unit * np.array(agents.gain).ravel()


def assert_mean(sample, closed_form):
    """The mean of independent draws lies within four standard errors of the closed form."""
    assert abs(np.mean(sample) - closed_form) <= 4 * np.std(sample, ddof=1) / math.sqrt(len(sample)) + 1e-12


# A session by hand


def test_turns_go_round_by_the_calendar():
    ring = Population(truthful=2, colluder=3, rotation="turn")
    for sessions in (1, 2, 3):
        seen = met(ring, sessions=sessions)[1]
        assert seen.leader.tolist() == [2 + (LOTS * (sessions - 1) + lot) % 3 for lot in range(LOTS)]
        silent = (seen.kind == COLLUDER) & (np.arange(5) != seen.leader[:, None])
        assert (seen.bid[silent] == 0).all() and (seen.bid[~silent] > 0).all()


def test_lots_are_drawn_anew_for_each_lot_session_and_market():
    ring, draws = Population(truthful=2, colluder=3, rotation="random"), np.empty(LOTS)
    state, seen = met(ring, seed=7, sessions=2)
    fill_uniforms(draws, LOTS, state.key[0, 0], state.key[0, 1], 1, ROTATION, 0)
    assert seen.leader.tolist() == [2 + int(3 * u) for u in draws]
    winners = np.concatenate([met(ring, seed=seed)[1].leader for seed in range(120)])
    counts = np.bincount(winners, minlength=5)[2:]
    assert counts.sum() == 120 * LOTS and ((counts - 640) ** 2 / 640).sum() < 13.8   # chi-square, 2 degrees: once in 1,000


@pytest.mark.parametrize("rotation", ROTATIONS)
def test_cover_bids_are_shares_of_the_winners_bid(rotation):
    ring, draws = Population(truthful=2, colluder=3, rotation=rotation, cover=0.1), np.empty(16)
    state, seen = met(ring, auction_type="first_price")
    assert seen.leader.min() >= 2
    for lot, winner in enumerate(seen.leader):
        fill_uniforms(draws, 5, state.key[0, 0], state.key[0, 1], 0, COVER, lot)
        for i in {2, 3, 4} - {winner}:
            assert seen.bid[lot, i] == cover_share(0.1, draws[i]) * seen.bid[lot, winner]
            assert 0.9 < seen.bid[lot, i] / seen.bid[lot, winner] < 1 - 0.1 * COVER_FROM
        best = seen.bid[lot, [0, 1, winner]].max()
        assert seen.price[lot, 0] == best == seen.bid[lot, seen.winner[lot, 0]]


def test_a_cover_bid_sets_the_price_of_a_second_price_auction():
    seen = met(Population(colluder=3, cover=0.1, return_rate=0.0), auction_type="second_price")[1]
    covers = np.where(np.arange(3) == seen.leader[:, None], 0, seen.bid).max(1)
    assert np.array_equal(seen.price[:, 0], covers) and np.array_equal(seen.winner[:, 0], seen.leader)


def test_nobody_covers_below_a_reserve_or_for_a_winner_that_does_not_bid():
    seen = met(Population(colluder=3, cover=0.1), auction_type="first_price", reserve_price=0.8)[1]
    lots = np.arange(LOTS)
    unsold = seen.bid[lots, seen.leader] < 0.8
    assert unsold.any() and np.isnan(seen.price[unsold]).all() and not unsold.all()


def test_where_a_cover_bid_might_win_nobody_covers_above_its_value():
    ring, won = Population(colluder=3, n_items=3, cover=0.05, return_rate=0.0), 0
    for seed in range(10):
        seen = met(ring, seed=seed)[1]
        for lot, winner in enumerate(seen.leader):
            others = np.arange(3) != winner
            assert (seen.bid[lot, others] <= seen.value[lot, others]).all() and not seen.second_bid[lot, others].any()
            won += np.isin(seen.winner[lot], np.flatnonzero(others)).sum()
        assert (seen.gain >= 0).all()
    assert won > 0


def test_a_returned_unit_is_not_offered_to_those_who_only_covered():
    ring = Population(colluder=3, cover=0.1, return_rate=0.6)
    sessions = [met(ring, seed=seed, auction_type="first_price")[1] for seed in range(5)]
    assert sum(seen.returned.sum() for seen in sessions) > 10
    assert all((seen.second_owner == -1).all() for seen in sessions)


def test_members_that_cover_take_part_as_much_as_silent_ones():
    for rotation in ROTATIONS:
        silent, covering = (met(Population(truthful=2, colluder=4, rotation=rotation, cover=cover), auction_type="first_price")[1]
                            for cover in (0.0, 0.1))
        assert silent.scores[COLUMN.participation] == covering.scores[COLUMN.participation] == (2 + 1) / 6
        assert silent.scores[COLUMN.silence] == 0.5 and covering.scores[COLUMN.silence] == 0


# Closed forms: k members, values U[0, 1]


@pytest.mark.parametrize("k", [2, 4])
@pytest.mark.parametrize("rotation", ROTATIONS)
def test_rotation_costs_a_ring_of_everyone_the_difference_of_best_and_random_value(k, rotation):
    revenue, surplus, gain = auctions(Population(colluder=k, rotation=rotation, **UNIFORM))
    assert not revenue.any()
    assert_mean(surplus, k / (k + 1) if rotation == "none" else 1 / 2)
    assert_mean(gain, (k - 1) / (k + 1) if rotation == "none" else (k - 1) / (2 * (k + 1)))


@pytest.mark.parametrize("rotation", ["none", "turn", "random"])
def test_a_rotating_ring_among_others_is_one_more_bidder(rotation):
    n, k = 6, 3
    revenue, surplus, _ = auctions(Population(truthful=n - k, colluder=k, rotation=rotation, **UNIFORM))
    if rotation == "none": assert_mean(revenue, 1 - 1 / (n - k + 1) - (n - k) / (n * (n + 1)))   # Graham and Marshall
    else:
        m = n - k + 1
        assert_mean(revenue, (m - 1) / (m + 1))
        assert_mean(revenue + surplus, m / (m + 1))


@pytest.mark.parametrize("rotation", ["none", "turn"])
def test_what_a_covering_ring_of_everyone_pays(rotation):
    k, c = 3, 0.1
    value = k / (k + 1) if rotation == "none" else 1 / 2
    people = Population(colluder=k, rotation=rotation, cover=c, **UNIFORM)
    second, _, gain = auctions(people, auction_type="second_price")
    pays = value * (1 - c * (COVER_FROM + (1 - COVER_FROM) / k))
    assert_mean(second, pays)
    assert_mean(gain, value - pays - 1 / (k + 1))
    first, _, _ = auctions(people, 0.6, auction_type="first_price")
    assert_mean(first, 0.6 * value)


def test_a_ring_whose_cover_bids_cost_more_than_competition_does_not_meet():
    """In a second-price auction it would pay nearly its winner's value; under first price the cover is free."""
    trust = {}
    for auction_type in ("second_price", "first_price"):
        state = new_market(Population(truthful=1, colluder=4, cover=0.1), range(20))
        trust[auction_type] = advance(state, Mechanism(**OPEN, auction_type=auction_type), 20)[:, -1, COLUMN.trust]
    assert trust["second_price"].max() < 0.05 and trust["first_price"].min() > 0.9


# Learning, and other formats


def same(one, other, but):
    """Are two arrays of scores the same to the bit in all columns but these?"""
    kept = [at for at, name in enumerate(METRICS) if name not in but]
    return np.array_equal(one[..., kept], other[..., kept]) and not np.array_equal(one, other)


def pay_as_bid(bids, won, n_items, reserve):
    paid = np.zeros(bids.shape[0])
    for i in range(bids.shape[0]):
        for unit in range(won[i]): paid[i] += bids[i, unit]
    return paid


@pytest.fixture
def own_format():
    """A registered format; the registry is put back after the test."""
    with additions():
        register_format("as_bid", allocate=highest_bids, pay=pay_as_bid)
        yield "as_bid"


SEEN_ONLY = {"dispersion", "gap", "silence", "pairs", "pairs_variance"}


@pytest.mark.parametrize("learning", ["hedge", "ucb", "fictitious_play"])
@pytest.mark.parametrize("rotation", ROTATIONS)
def test_under_first_price_cover_bids_change_nothing_but_what_is_seen(rotation, learning):
    """The winner's lessons are those of a ring that is silent: cover bids follow it."""
    silent, seen = Population(truthful=2, colluder=4, rotation=rotation, learning=learning), []
    for cover in (0.0, 0.15):
        state = new_market(silent.replace(cover=cover), range(30))
        state.belief[:, TRUST] = 1.0
        seen.append(advance(state, Mechanism(**OPEN, auction_type="first_price"), 15))
    assert same(*seen, SEEN_ONLY)


def test_under_a_registered_format_the_winner_learns_as_in_a_silent_ring(own_format):
    rules = Mechanism(**OPEN, auction_type=own_format)
    state = new_market([Population(truthful=1, colluder=3, cover=cover) for cover in (0.0, 0.15)] * 8, np.repeat(range(8), 2))
    state.belief[:, TRUST] = 1.0
    advance(state, rules, 1)
    assert np.array_equal(state.log_weight[::2], state.log_weight[1::2]) and state.log_weight.any()


def test_a_covered_winner_learns_to_shade_where_cover_bids_set_the_price():
    state = new_market(Population(colluder=3, cover=0.1), range(50))
    for _ in range(20):
        state.belief[:, TRUST] = 1.0
        advance(state, Mechanism(**OPEN, auction_type="second_price"), 1)
    assert (state.log_weight[..., :11].argmax(-1) == 0).mean() > 0.9


def test_deviators_form_an_efficient_ring_whatever_the_population_does():
    people = Population(truthful=3, colluder=3, rotation="turn", cover=0.1)
    state, ring = new_market(people, [1, 2]), next(d for d in RING_DEVIATIONS if d.ring)
    deviators = seat_deviators(state, [Plan((3, 4, 5), ring), Plan()])
    assert state.traits[:, TRAIT.rotation].tolist() == [0, IN_TURN] and state.traits[:, TRAIT.cover].tolist() == [0, 0.1]
    scores = advance(state, Mechanism(**OPEN), 1, agents=deviators)
    assert scores[0, 0, COLUMN.silence] == pytest.approx(2 / 6)


# What is left as it was


def test_defaults_are_todays_ring():
    ring = Population(truthful=2, colluder=3)
    assert (ring.rotation, ring.cover) == ("none", 0.0) and "rotation" not in ring.to_json() and "cover" not in ring.to_json()
    usual, keys = [*suite("stages"), *suite("open")], [(3, at) for at in range(25)]
    others = [Population(truthful=2, shader=1, colluder=4, n_items=1 + at % 2, **fields) for at, fields in enumerate(OTHER.values())]
    alone = simulate(INFORMED_GREEDY, usual, keys, 3)
    beside = simulate(INFORMED_GREEDY, usual + others, keys + keys[:4], 3)
    assert all(np.array_equal(a, b[:25]) for a, b in zip(alone, beside, strict=True))
    turned = simulate(INFORMED_GREEDY, (usual + others)[::-1], (keys + keys[:4])[::-1], 3, threads=2)
    assert all(np.array_equal(a, b[::-1]) for a, b in zip(beside, turned, strict=True))


def test_a_saved_state_has_no_more_numbers_than_it_needs():
    usual, shaped = Population.stage(4), Population.stage(4).replace(value_shape=2.0)
    for populations, numbers in (([usual], TRAIT.learning), ([usual, shaped], TRAIT.rotation),
                                 ([usual, shaped.replace(cover=0.1)], len(TRAIT))):
        state = new_market(populations, range(len(populations)))
        saved = state.to_dict()
        assert np.shape(saved["traits"]) == (len(populations), numbers)
        read = MarketState.from_dict(json.loads(json.dumps(saved)))
        assert all(np.array_equal(a, b) for a, b in zip(read, state, strict=True))


@pytest.mark.parametrize("fields", OTHER.values(), ids=OTHER)
def test_a_state_continues_to_the_bit_after_json(fields):
    state, _ = open_market(Population(truthful=2, colluder=3, **fields), range(3))
    read = MarketState.from_dict(json.loads(json.dumps(state.to_dict())))
    assert np.array_equal(advance(state, INFORMED_GREEDY), advance(read, INFORMED_GREEDY))


@pytest.mark.parametrize("fields", OTHER.values(), ids=OTHER)
def test_populations_are_written_and_read(fields):
    people = Population(truthful=2, colluder=3, **fields)
    assert Population.from_json(people.to_json()) == people and Population(**people.model_dump()) == people
    assert len({people, Population(truthful=2, colluder=3)}) == 2
    assert all(f"{name} {value}" in str(people) for name, value in fields.items())


DRAWN_BEFORE = "c12881fa58a4a8fa"   # SHA-256 of the fields, before there were rings of other kinds


def test_varied_populations_are_drawn_as_before_and_their_rings_differ():
    people, digest = [Population.varied(seed) for seed in range(300)], hashlib.sha256()
    for each in people:
        fields = {name: value for name, value in each.model_dump().items() if name not in ("rotation", "cover")}
        digest.update(json.dumps(fields, sort_keys=True).encode())
    assert digest.hexdigest()[:16] == DRAWN_BEFORE and list(VARIED)[-2:] == ["rotation", "cover"]
    rings = [each for each in people if each.colluder > 1]
    assert all((each.rotation, each.cover) == ("none", 0.0) for each in people if each.colluder < 2)
    counts = {name: np.mean([each.rotation == name for each in rings]) for name in ROTATIONS}
    assert abs(counts["none"] - 0.5) < 0.12 and min(counts.values()) > 0.15
    assert abs(np.mean([each.cover > 0 for each in rings]) - 0.5) < 0.12
    assert all(each.cover == 0 or 0.02 <= each.cover <= 0.2 for each in rings)


@pytest.mark.parametrize("wrong, message", [
    ({"rotation": "moon"}, "rotation must be one of none, random, turn, not 'moon'"),
    ({"cover": 0.6}, "cover must be a number from 0 to 0.5, not 0.6"),
    ({"cover": -0.1}, "cover must be a number from 0 to 0.5, not -0.1"),
])
def test_what_is_no_ring_is_refused_in_one_sentence(wrong, message):
    with pytest.raises(PopulationError) as caught: Population(colluder=3, **wrong)
    assert str(caught.value) == message


def test_whose_turn_by_hand():
    assert [whose_turn(IN_TURN, 3, lot, 0.99) for lot in range(5)] == [0, 1, 2, 0, 1]
    assert [whose_turn(BY_LOT, 3, 4, u) for u in (0.01, 0.34, 0.99)] == [0, 1, 2]
    assert cover_share(0.1, 0.0) == 0.99 and cover_share(0.1, 1.0) == 0.9
