"The auction formats: outcomes worked out by hand, properties against brute force, and the random numbers below them."
from itertools import product

import numba
import numpy as np
import pytest
from hypothesis import assume, given, strategies as st

from daedalus.market.auction import clear, insert_bid, insert_of_three, rival_bid
from daedalus.market.noise import fill_uniforms, multiply_wide, philox
from daedalus.schema import AUCTION_TYPES

# Money in 64ths: every sum and difference of a few such amounts is exact, and ties are common.
money = st.integers(0, 64).map(lambda x: x / 64)
pairs = st.tuples(money, money).map(lambda bids: tuple(sorted(bids, reverse=True)))
auctions = st.sampled_from(AUCTION_TYPES)
units_for_sale = st.integers(1, 3)
lots = st.lists(pairs, min_size=1, max_size=4)
one_unit_lots = st.lists(money, min_size=1, max_size=8)
words = st.integers(0, 2**64 - 1)


def clear_lot(bids, auction_type, n_items=1, reserve=0.0):
    "Units and payments of one lot, as lists."
    units, payments = clear([bids], auction_type, n_items, reserve)
    return units[0].tolist(), payments[0].tolist()


def won(bids, units):
    "What a bidder bid for the units it won."
    return sum(bids[:units])


# Outcomes worked out by hand

ONE_UNIT = [0.5, 0.9, 0.7, 0.2]
TWO_UNITS = [(0.9, 0.6), (0.8, 0.3), (0.5, 0.4)]   # in order: .9 A, .8 B, .6 A, .5 C, .4 C, .3 B


@pytest.mark.parametrize("auction_type, n_items, units, payments", [
    ("first_price", 1, [0, 1, 0, 0], [0, .9, 0, 0]),
    ("second_price", 1, [0, 1, 0, 0], [0, .7, 0, 0]),
    ("vcg", 1, [0, 1, 0, 0], [0, .7, 0, 0]),
    ("first_price", 2, [0, 1, 1, 0], [0, .9, .7, 0]),
    ("second_price", 2, [0, 1, 1, 0], [0, .5, .5, 0]),
    ("vcg", 2, [0, 1, 1, 0], [0, .5, .5, 0]),
    ("first_price", 3, [1, 1, 1, 0], [.5, .9, .7, 0]),
    ("second_price", 3, [1, 1, 1, 0], [.2, .2, .2, 0]),
    ("vcg", 3, [1, 1, 1, 0], [.2, .2, .2, 0]),
])
def test_unit_demand(auction_type, n_items, units, payments):
    assert clear_lot(ONE_UNIT, auction_type, n_items) == (units, payments)


@pytest.mark.parametrize("auction_type, n_items, units, payments", [
    ("first_price", 2, [1, 1, 0], [.9, .8, 0]),
    ("second_price", 2, [1, 1, 0], [.6, .6, 0]),    # A's second bid is the highest rejected one: it sets even A's price
    ("vcg", 2, [1, 1, 0], [.5, .6, 0]),             # without A: B and C win .8 + .5, so A displaces .5
    ("first_price", 3, [2, 1, 0], [1.5, .8, 0]),
    ("second_price", 3, [2, 1, 0], [1.0, .5, 0]),
    ("vcg", 3, [2, 1, 0], [.9, .5, 0]),             # A displaces both units of C: .5 + .4
])
def test_two_unit_demand(auction_type, n_items, units, payments):
    found, paid = clear_lot(TWO_UNITS, auction_type, n_items)
    assert found == units and paid == pytest.approx(payments, abs=1e-15)


def test_one_item_and_a_second_bid_that_cannot_win():
    assert clear_lot([(0.9, 0.8), (0.5, 0.0)], "second_price") == ([1, 0], [0.8, 0])
    assert clear_lot([(0.9, 0.8), (0.5, 0.0)], "vcg") == ([1, 0], [0.5, 0])


@pytest.mark.parametrize("auction_type, payments", [
    ("first_price", [1.5, .8, 0]), ("second_price", [1.1, .55, 0]), ("vcg", [1.1, .55, 0])])
def test_the_reserve_is_the_lowest_price_of_each_unit(auction_type, payments):
    units, paid = clear_lot(TWO_UNITS, auction_type, 3, reserve=0.55)
    assert units == [2, 1, 0] and paid == pytest.approx(payments, abs=1e-15)


@pytest.mark.parametrize("auction_type", AUCTION_TYPES)
def test_a_bid_at_the_reserve_is_valid_and_one_below_is_not(auction_type):
    assert clear_lot([0.5, 0.4], auction_type, 2, reserve=0.5) == ([1, 0], [0.5, 0])


@pytest.mark.parametrize("auction_type", AUCTION_TYPES)
@pytest.mark.parametrize("bids, reserve", [([0.0, 0.0], 0.0), ([0.3, 0.4], 0.5), ([], 0.0), ([-1.0], 0.0)])
def test_without_a_valid_bid_nothing_is_sold(auction_type, bids, reserve):
    assert clear_lot(bids, auction_type, 2, reserve) == ([0] * len(bids), [0] * len(bids))


@pytest.mark.parametrize("auction_type, paid", [("first_price", .6), ("second_price", .2), ("vcg", .2)])
def test_fewer_bids_than_units(auction_type, paid):
    assert clear_lot([0.6, 0.1], auction_type, 3, reserve=0.2) == ([1, 0], [paid, 0])


def test_among_equal_bids_the_first_wins():
    assert clear_lot([0.5, 0.5, 0.5], "second_price") == ([1, 0, 0], [0.5, 0, 0])


def test_lots_of_a_batch_are_cleared_one_by_one():
    bids = np.random.default_rng(0).random((20, 5, 2))
    bids.sort(axis=2)
    whole = clear(bids[:, :, ::-1], "vcg", 3, 0.3)
    for lot in range(20):
        alone = clear(bids[lot:lot + 1, :, ::-1], "vcg", 3, 0.3)
        assert (whole.units[lot] == alone.units[0]).all() and (whole.payments[lot] == alone.payments[0]).all()


# Against brute force

def allocations(n, n_items):
    "Every way to hand at most `n_items` units to `n` bidders that want two at most."
    return [split for split in product(range(3), repeat=n) if sum(split) <= n_items]


def best_total(bids, n_items, reserve):
    "The highest total bid, where the seller keeps what is left at `reserve` a unit."
    return max(sum(won(b, k) for b, k in zip(bids, split, strict=True)) + reserve * (n_items - sum(split))
               for split in allocations(len(bids), n_items))


@given(lots, auctions, units_for_sale, money)
def test_the_allocation_has_the_highest_total_bid(bids, auction_type, n_items, reserve):
    units, _ = clear_lot(bids, auction_type, n_items, reserve)
    total = sum(won(b, k) for b, k in zip(bids, units, strict=True)) + reserve * (n_items - sum(units))
    assert sum(units) <= n_items and total == best_total(bids, n_items, reserve)


@given(lots, units_for_sale, money)
def test_a_clarke_payment_is_what_the_others_lose(bids, n_items, reserve):
    units, payments = clear_lot(bids, "vcg", n_items, reserve)
    best = best_total(bids, n_items, reserve)
    for i, bid in enumerate(bids):
        others = bids[:i] + bids[i + 1:]
        assert payments[i] == best_total(others, n_items, reserve) - (best - won(bid, units[i]))


# Properties

@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=10), st.floats(0, 1e6))
def test_vcg_is_second_price_at_one_item(bids, reserve):
    assert clear_lot(bids, "vcg", 1, reserve) == clear_lot(bids, "second_price", 1, reserve)


@given(one_unit_lots, units_for_sale, money)
def test_vcg_is_the_uniform_price_for_unit_demand(bids, n_items, reserve):
    assert clear_lot(bids, "vcg", n_items, reserve) == clear_lot(bids, "second_price", n_items, reserve)


@given(lots, auctions, units_for_sale, money)
def test_winners_pay_from_the_reserve_to_what_they_bid(bids, auction_type, n_items, reserve):
    units, payments = clear_lot(bids, auction_type, n_items, reserve)
    for bid, k, paid in zip(bids, units, payments, strict=True):
        assert reserve * k <= paid <= won(bid, k)


@given(lots, units_for_sale, money)
def test_no_format_charges_more_than_first_price_nor_less_than_vcg(bids, n_items, reserve):
    first, second, vcg = (clear_lot(bids, auction_type, n_items, reserve) for auction_type in AUCTION_TYPES)
    assert first[0] == second[0] == vcg[0]
    assert all(a >= b >= c for a, b, c in zip(first[1], second[1], vcg[1], strict=True))


@given(lots, auctions, units_for_sale, money, money)
def test_a_bid_below_every_price_changes_nothing(bids, auction_type, n_items, reserve, late):
    valid = sorted((b for pair in bids for b in pair if b >= reserve), reverse=True)
    assume(late < reserve or (len(valid) >= 2 * n_items + 1 and late < valid[2 * n_items]))
    units, payments = clear_lot(bids, auction_type, n_items, reserve)
    assert clear_lot([*bids, (late, 0.0)], auction_type, n_items, reserve) == (units + [0], payments + [0])


@given(lots, auctions, units_for_sale, money, st.data())
def test_the_order_of_bidders_does_not_matter_without_ties(bids, auction_type, n_items, reserve, data):
    flat = [b for pair in bids for b in pair if b > 0]
    assume(len(set(flat)) == len(flat))
    order = data.draw(st.permutations(range(len(bids))))
    units, payments = clear_lot(bids, auction_type, n_items, reserve)
    again = clear_lot([bids[i] for i in order], auction_type, n_items, reserve)
    assert again == ([units[i] for i in order], [payments[i] for i in order])


def gain(values, bids, others, auction_type, n_items, reserve):
    "The surplus of a bidder with `values` that bids `bids`."
    units, payments = clear_lot([bids, *others], auction_type, n_items, reserve)
    return won(values, units[0]) - payments[0]


@given(money, money, one_unit_lots, money)
def test_no_misreport_helps_in_second_price(value, lie, others, reserve):
    others = [(bid, 0.0) for bid in others]
    truth = gain((value, 0.0), (value, 0.0), others, "second_price", 1, reserve)
    assert truth >= gain((value, 0.0), (lie, 0.0), others, "second_price", 1, reserve)


@given(pairs, pairs, lots, units_for_sale, money)
def test_no_misreport_helps_in_vcg(values, lie, others, n_items, reserve):
    truth = gain(values, values, others, "vcg", n_items, reserve)
    assert truth >= gain(values, lie, others, "vcg", n_items, reserve)


def test_demand_reduction_helps_at_a_uniform_price_and_not_in_vcg():
    values, others = (0.9, 0.5), [(0.6, 0.0)]
    assert gain(values, (0.9, 0.0), others, "second_price", 2, 0.0) == 0.9
    assert gain(values, values, others, "second_price", 2, 0.0) == pytest.approx(0.4)
    assert gain(values, values, others, "vcg", 2, 0.0) == gain(values, (0.9, 0.0), others, "vcg", 2, 0.0) == 0.9


# The list of highest bids

@given(st.lists(st.floats(0, 1, exclude_min=True), max_size=12), st.integers(1, 5))
def test_the_list_holds_the_highest_bids(bids, size):
    top, who = np.zeros(size), np.full(size, -1)
    for bidder, bid in enumerate(bids): insert_bid(top, who, bid, bidder)
    best = sorted(range(len(bids)), key=lambda i: -bids[i])[:size]   # a stable sort: the earlier of equals first
    assert who.tolist() == best + [-1] * (size - len(best))
    assert top.tolist() == [bids[i] for i in best] + [0.0] * (size - len(best))


@given(st.lists(money, max_size=12))
def test_the_list_without_jumps_is_the_list_of_three(bids):
    top, who, three = np.zeros(3), np.full(3, -1), ((0.0, 0.0, 0.0), (-1, -1, -1))
    for bidder, bid in enumerate(bids):
        insert_bid(top, who, bid, bidder)
        three = insert_of_three(*three, bid, bidder)
    assert three == (tuple(top), tuple(who))


@given(lots, st.integers(0, 3), st.integers(0, 5))
def test_rival_bids_are_those_of_others_in_order(bids, bidder, rank):
    top, who = np.zeros(8), np.full(8, -1)
    for i, pair in enumerate(bids):
        for bid in pair: insert_bid(top, who, bid, i)
    rivals = sorted((b for i, pair in enumerate(bids) if i != bidder for b in pair), reverse=True)
    assert rival_bid(top, who, bidder, rank) == (rivals[rank] if rank < len(rivals) else 0.0)


# Bad input

@pytest.mark.parametrize("arguments, sentence", [
    (dict(auction_type="dutch"), "auction_type is 'dutch'; allowed: first_price, second_price, vcg"),
    (dict(n_items=0), "n_items is 0; allowed: 1 or more"),
    (dict(bids=[0.5, 0.4]), r"bids has shape \(2,\); allowed: \[lots, bidders\]"),
    (dict(bids=np.zeros((2, 3, 3))), r"bids has shape \(2, 3, 3\); allowed: "),
    (dict(bids=[[0.5, np.nan]]), "bids holds NaN or infinity; allowed: finite numbers"),
    (dict(bids=[[0.5, np.inf]]), "bids holds NaN or infinity; allowed: finite numbers"),
])
def test_bad_input_is_refused_in_one_sentence(arguments, sentence):
    with pytest.raises(ValueError, match=f"^{sentence}") as caught:
        clear(**{"bids": [[0.5, 0.4]], "auction_type": "vcg", **arguments})
    assert "\n" not in str(caught.value)


# Random numbers

def numpy_philox(key0, key1, *counter):
    "The block that NumPy's generator draws first after being set to the counter before this one."
    before = (sum(c << 64 * at for at, c in enumerate(counter)) - 1) % 2**256
    limbs = np.array([before >> 64 * at & 2**64 - 1 for at in range(4)], np.uint64)
    return np.random.Philox(key=np.array([key0, key1], np.uint64), counter=limbs).random_raw(4).tolist()


@given(words, words, words, words, words, words)
def test_philox_is_numpys_philox_bit_for_bit(key0, key1, c0, c1, c2, c3):
    assert list(philox(*map(np.uint64, (key0, key1, c0, c1, c2, c3)))) == numpy_philox(key0, key1, c0, c1, c2, c3)


@pytest.mark.parametrize("multiply", [multiply_wide, numba.njit(lambda a, b: multiply_wide(a, b))], ids=["Python", "compiled"])
@given(words, words)
def test_the_wide_product_is_exact(multiply, a, b):
    high, low = multiply(np.uint64(a), np.uint64(b))
    assert int(high) << 64 | int(low) == a * b


def uniforms(count, key0=1, key1=2, when=3, stream=4, index=5):
    "`count` uniforms of one purpose."
    out = np.full(count + 8, np.nan)
    fill_uniforms(out, count, np.uint64(key0), np.uint64(key1), when, stream, index)
    return out[:count]


@given(words, words, st.integers(0, 10**6), st.integers(0, 7), st.integers(0, 15), st.integers(1, 40))
def test_uniforms_are_halves_of_numpys_words(key0, key1, when, stream, index, count):
    blocks = [numpy_philox(key0, key1, block, index, stream, when) for block in range((count + 7) // 8)]
    halves = [half for block in blocks for word in block for half in (word >> 32, word & 2**32 - 1)]
    assert uniforms(count, key0, key1, when, stream, index).tolist() == [(half + 0.5) / 2**32 for half in halves[:count]]


@given(st.integers(1, 40), st.integers(1, 40))
def test_asking_for_more_numbers_does_not_change_the_first_ones(few, more):
    assert (uniforms(few)[:min(few, more)] == uniforms(more)[:min(few, more)]).all()


@pytest.mark.parametrize("what", ["key0", "key1", "when", "stream", "index"])
def test_every_part_of_the_address_matters(what):
    assert not (uniforms(64) == uniforms(64, **{what: 99})).any()


def test_uniforms_are_uniform_and_never_0_or_1():
    draws = np.concatenate([uniforms(1000, index=index) for index in range(200)])
    assert 0 < draws.min() and draws.max() < 1
    counts = np.histogram(draws, 50, (0, 1))[0]
    assert ((counts - 4000) ** 2 / 4000).sum() < 49 + 4 * np.sqrt(2 * 49)   # chi-squared, 4 standard deviations
    assert abs(np.corrcoef(draws[:-1], draws[1:])[0, 1]) < 4 / np.sqrt(len(draws))
