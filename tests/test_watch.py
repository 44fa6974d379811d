"The record of a session: it adds up to what the engine says, and what it says of a lot can be checked by hand."
import hashlib

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from daedalus.market.bidders import COLLUDER, DROPOUT, FLIP, SHILL, TRUTHFUL, Population
from daedalus.market.engine import LOTS, METRICS, ROUNDS, WARM_UP, advance, new_market, open_market
from daedalus.schema import DEFAULT_MECHANISM, Mechanism
from daedalus.market.record import bidder_names, lots_table, watch

seeds = st.integers(0, 2**32)


def same(one, other):
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


@settings(max_examples=150)
@given(seeds.map(Mechanism.random), seeds.map(Mechanism.random), seeds.map(Population.random), seeds, st.integers(0, 4))
def test_the_record_adds_up_to_the_engines_session(before, mechanism, population, seed, steps):
    state, _ = open_market([population], seed)
    for _ in range(steps):
        advance(state, before)
    kept = state.copy()
    seen = watch(state, mechanism)
    assert same(state, kept)
    engine = dict(zip(METRICS, advance(state, mechanism, ROUNDS)[0, -1]))
    assert np.array_equal(seen.scores, list(engine.values()))

    sold, kept_units = ~np.isnan(seen.price), ~np.isnan(seen.price) & ~seen.returned
    valid = (seen.bid > 0) & (seen.bid >= mechanism.reserve_price)
    from_record = {
        "welfare": min(1.0, np.minimum(1, seen.worth.sum(1) / seen.best).mean()),
        "revenue": (seen.price[kept_units].sum() + np.nansum(seen.second_price)) / LOTS,
        "price": seen.price[sold].sum() / max(1, sold.sum()),
        "unsold": 1 - sold.mean(),
        "returns": seen.returned.sum() / max(1, sold.sum()),
        "silence": 1 - valid.mean(),
    }
    for name, number in from_record.items():
        assert number == pytest.approx(engine[name], abs=1e-12), name


@settings(max_examples=60)
@given(seeds.map(Mechanism.random), seeds.map(Population.random), seeds)
def test_what_the_record_says_fits_together(mechanism, population, seed):
    state, _ = open_market([population], seed)
    seen = watch(state, mechanism)
    won, sold = seen.winner >= 0, ~np.isnan(seen.price)
    assert (seen.price[sold] >= mechanism.reserve_price).all()
    assert (won | ~sold).all() and (sold | ~seen.returned).all() and (seen.returned | (seen.second_owner < 0)).all()
    assert (np.isnan(seen.second_price) == (seen.second_owner < 0)).all()
    assert (seen.arm[seen.winner[won & ~sold]] == SHILL).all()
    assert (seen.bid[:, ~seen.present] == 0).all()
    assert (seen.present | (seen.kind == DROPOUT)).all()
    assert (seen.fined[~seen.present] == 0).all()
    for lot in np.flatnonzero(seen.leader >= 0):
        ring = seen.kind == COLLUDER
        assert seen.value[lot, seen.leader[lot]] == seen.value[lot, ring].max()
        assert np.count_nonzero(seen.bid[lot, ring]) == 1
    assert population.value_low <= seen.value.min() and seen.value.max() <= population.value_high


def test_truthful_bidders_in_a_second_price_auction_by_hand():
    population = Population(truthful=5, return_rate=0.0)
    state, _ = open_market([population], 3)
    seen = watch(state, DEFAULT_MECHANISM.replace(reserve_price=0.0))
    ranked = np.sort(seen.value, axis=1)
    assert np.array_equal(seen.bid, seen.value)
    assert np.array_equal(seen.winner[:, 0], seen.value.argmax(1))
    assert np.allclose(seen.price[:, 0], ranked[:, -2]) and np.allclose(seen.worth[:, 0], ranked[:, -1])
    surplus = np.zeros(5)
    np.add.at(surplus, seen.value.argmax(1), ranked[:, -1] - ranked[:, -2])
    assert np.allclose(seen.gain, surplus)
    assert not seen.returned.any() and not seen.fined.any() and (seen.leader == -1).all()


def test_a_reserve_that_nobody_covers_sells_nothing():
    state, _ = open_market([Population(truthful=3, value_high=0.5)], 0)
    table = lots_table(watch(state, DEFAULT_MECHANISM.replace(reserve_price=0.9)))
    assert set(table["fate"]) == {"no sale"} and table["price"].isna().all() and table["winner"].isna().all()


def test_every_unit_that_turns_out_worthless_comes_back():
    state, _ = open_market([Population(truthful=4, return_rate=1.0)], 0)
    seen = watch(state, DEFAULT_MECHANISM.replace(reserve_price=0.0))
    order = np.argsort(seen.value, axis=1)
    assert seen.returned.all()
    assert np.array_equal(seen.second_owner[:, 0], order[:, -2])
    assert np.allclose(seen.second_price[:, 0], 0.9 * np.take_along_axis(seen.value, order[:, -2:-1], 1)[:, 0])
    assert lots_table(seen)["fate"].str.startswith("returned, resold to truthful").all()


def test_each_market_of_a_batch_is_watched_as_if_alone():
    populations = [Population.stage(4), Population(truthful=3, n_items=3), Population(colluder=5)]
    state, _ = open_market(populations, 7)
    for at, population in enumerate(populations):
        alone, _ = open_market([population], 7)
        for together, by_itself in zip(watch(state, DEFAULT_MECHANISM, at), watch(alone, DEFAULT_MECHANISM)):
            assert np.array_equal(together, by_itself, equal_nan=np.asarray(together).dtype.kind == "f")


def test_the_last_of_any_number_of_sessions_can_be_watched():
    state = new_market([Population.stage(3)], 5)
    seen = watch(state, DEFAULT_MECHANISM, rounds=WARM_UP)
    assert np.array_equal(seen.scores, advance(state, DEFAULT_MECHANISM, WARM_UP)[0, -1])


def test_exploiters_flip_where_handing_back_is_free():
    state, _ = open_market([Population.stage(4)], 0)
    seen = watch(state, DEFAULT_MECHANISM)
    flippers = seen.arm == FLIP
    assert flippers.any() and (seen.bid[:, flippers] >= 1).all()


def test_a_table_has_a_row_for_each_unit():
    state, _ = open_market([Population(truthful=3, shader=2, n_items=2)], 0)
    seen = watch(state, DEFAULT_MECHANISM)
    table = lots_table(seen)
    assert table.shape == (2 * LOTS, 8)
    assert table["price"].to_numpy() == pytest.approx(seen.price.ravel(), nan_ok=True)
    assert table.loc[0, "winner"] == bidder_names(seen.kind)[seen.winner[0, 0]]


def test_bidders_are_numbered_within_their_type():
    assert bidder_names(np.array([TRUTHFUL, TRUTHFUL, COLLUDER])) == ["truthful 1", "truthful 2", "colluder 1"]


@pytest.mark.parametrize("mechanism, at, rounds, complaint", [
    ("first_price", 0, 5, "mechanism must be a Mechanism, not 'first_price'"),
    (DEFAULT_MECHANISM, 1, 5, "at must be one of the batch's 1 markets"),
    (DEFAULT_MECHANISM, -1, 5, "at must be one of the batch's 1 markets"),
    (DEFAULT_MECHANISM, 0, 0, "rounds must be a whole number of at least 1, not 0"),
])
def test_what_cannot_be_watched_is_refused(mechanism, at, rounds, complaint):
    state, _ = open_market([Population.stage(0)], 0)
    with pytest.raises(ValueError, match=complaint):
        watch(state, mechanism, at, rounds)


def test_a_record_is_the_same_bits_as_when_it_was_kept_beside_the_engine():
    fields = []
    for at in range(12):
        rng = np.random.default_rng(at)
        state, _ = open_market([Population.random(rng), Population.random(rng)], at)
        advance(state, Mechanism.random(rng))
        seen = watch(state, Mechanism.random(rng), at % 2, 1 + at % 5)
        fields += seen._replace(scores=seen.scores[:-1])   # the best value that the lots could reach came later
    sha = hashlib.sha256(b"".join(np.ascontiguousarray(field).tobytes() for field in fields))
    assert sha.hexdigest()[:16] == "141eb1192ce66997"
