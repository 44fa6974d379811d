"Collusion screens: hand-computed values, invariances, missing and tied bids, and the loaders of the real data."
import functools
import http.server
import math
import threading

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from daedalus.studies import screens
from daedalus.paths import data_folders
from daedalus.results import read_result
from daedalus.studies.screens import (
    LAGS, SCREENS, SUSPICIOUS, auc, auc_interval, dependence, difference, kurtosis, margin_variation, margins, missing_bids,
    read_tenders, relative_distance, rotation, screen_tenders, skewness, spread, suppression, tsuchiura, uniform_distance,
    variation)
from daedalus.studies.stats import counts

HERE = any((folder / screens.TSUCHIURA).is_file() for folder in data_folders())
needs_data = pytest.mark.skipif(not HERE, reason=f"no data folder holds {screens.TSUCHIURA}: set DAEDALUS_DATA_DIR")
SIDES = ("lowest", "highest")


# one tender

def test_variation_and_spread_by_hand():
    assert variation([90, 100, 110]) == pytest.approx(10 / 100)
    assert variation([90, 110]) == pytest.approx(math.sqrt(200) / 100)
    assert spread([90, 100, 110]) == pytest.approx(20 / 90)
    assert spread([90, 100, 110], "highest") == pytest.approx(20 / 110)


def test_skewness_by_hand():
    # 0, 0, 3: mean 1, s = sqrt(3), sum of cubes (-1 - 1 + 8) / 3 sqrt(3), factor 3 / (2 * 1)
    assert skewness([10, 10, 13]) == pytest.approx(1.5 * 6 / (3 * math.sqrt(3)))
    assert skewness([10, 13, 13]) == pytest.approx(-1.5 * 6 / (3 * math.sqrt(3)))
    assert skewness([10, 13, 13], "highest") == pytest.approx(1.5 * 6 / (3 * math.sqrt(3)))


def test_a_ring_that_protects_its_winner_has_negative_skewness_on_either_side():
    assert skewness([90, 99, 100, 101]) < 0
    assert skewness([110, 101, 100, 99], "highest") < 0


def test_kurtosis_by_hand():
    # -1, -1, 1, 1: s^2 = 4/3, sum of fourth powers 4 * 9/16 = 9/4; 4*5/(3*2*1) * 9/4 - 3*9/(2*1) = -6
    assert kurtosis([9, 9, 11, 11]) == pytest.approx(-6)
    # 0, 0, 0, 4: mean 1, s^2 = 4, sum of fourth powers (3 + 81) / 16; 20/6 * 84/16 - 27/2 = 4
    assert kurtosis([10, 10, 10, 14], "highest") == pytest.approx(4)


def test_gap_screens_by_hand():
    assert relative_distance([90, 98, 100]) == pytest.approx(8 / math.sqrt(2))
    assert relative_distance([110, 102, 100], "highest") == pytest.approx(8 / math.sqrt(2))
    assert difference([80, 90, 100]) == pytest.approx(0.125)
    assert difference([80, 90, 100], "highest") == pytest.approx(0.1)


def test_uniform_distance_by_hand():
    assert uniform_distance([90, 95, 100]) == pytest.approx(0.5)
    assert uniform_distance([90, 91, 100]) == pytest.approx(0.9)
    assert uniform_distance([0.001, 1 / 3, 2 / 3, 1.001]) == pytest.approx(1 / 3, abs=0.01)


@pytest.mark.parametrize("name, needed", {
    "variation": 2, "spread": 2, "kurtosis": 4, "skewness": 3, "relative distance": 3, "difference": 2,
    "uniform distance": 3}.items())
@pytest.mark.parametrize("side", SIDES)
def test_too_few_bids_give_nan(name, needed, side):
    bids = [90.0, 94.0, 99.0, 101.0]
    for count in range(5):
        short = bids[:count] + [np.nan] * (4 - count)
        assert np.isnan(SCREENS[name](short, side)) == (count < needed)


def test_ties():
    assert variation([5, 5, 5]) == spread([5, 5, 5]) == difference([5, 5, 5]) == difference([5, 5, 9]) == 0
    for screen in (skewness, kurtosis, relative_distance, uniform_distance):
        assert np.isnan(screen([5, 5, 5, 5]))
    assert np.isnan(relative_distance([4, 5, 5]))
    assert relative_distance([5, 5, 6]) == 0


@pytest.mark.parametrize("screen", SCREENS.values())
@pytest.mark.parametrize("bad", [0.0, -3.0, np.inf, -np.inf])
def test_impossible_bids_are_refused(screen, bad):
    with pytest.raises(ValueError, match=f"bids must be positive amounts.*not {bad}"):
        screen([90, bad, 95])


@pytest.mark.parametrize("screen", SCREENS.values())
def test_the_winning_side_must_be_named(screen):
    with pytest.raises(ValueError, match="winner must be 'lowest'.*not 'most'"):
        screen([90, 95], "most")


amounts = st.lists(st.integers(1, 1000), min_size=4, max_size=12).map(lambda cents: [cent / 8 for cent in cents])


@given(amounts, st.sampled_from([0.25, 4.0, 1024.0]), st.randoms(), st.sampled_from(SIDES))
def test_screens_do_not_see_currency_or_order_or_absence(bids, factor, random, side):
    shuffled = [factor * bid for bid in bids] + [np.nan]
    random.shuffle(shuffled)
    for name, screen in SCREENS.items():
        np.testing.assert_allclose(screen(shuffled, side), screen(bids, side), rtol=1e-9, atol=1e-9, err_msg=name)


@given(amounts, st.sampled_from(SIDES))
def test_ranges(bids, side):
    assert variation(bids, side) >= 0 and spread(bids, side) >= difference(bids, side) >= 0
    if min(bids) < max(bids):
        assert 0 <= uniform_distance(bids, side) <= 1


@given(amounts)
def test_a_sale_is_a_mirrored_tender(bids):
    mirrored = [200 - bid for bid in bids]
    for screen in (skewness, kurtosis, relative_distance, uniform_distance):
        np.testing.assert_allclose(screen(mirrored, "highest"), screen(bids, "lowest"), rtol=1e-6, atol=1e-9)


# many tenders

def test_table():
    table = screen_tenders([90, 100, 110, 7, np.nan], ["a", "a", "a", "b", "b"])
    assert table.index.tolist() == ["a", "b"] and table["bids"].tolist() == [3, 1]
    assert table.loc["a", "variation"] == pytest.approx(0.1)
    assert table.loc["b", list(SCREENS)].isna().all()
    assert set(SUSPICIOUS) == set(SCREENS)


def test_tenders_that_look_alike_tie_whatever_their_prices():
    """Even bids are not skewed; the last digits of 0.1 and 1/3 must not rank one such tender above another."""
    bids = np.concatenate([level * np.array([1.0, 1.1, 1.2]) for level in (0.1, 1 / 3, 7.0, 1234.5, 8.9e7)])
    table = screen_tenders(bids, np.repeat(np.arange(5), 3))
    assert (table["skewness"] == 0).all() and table["relative distance"].nunique() == 1
    assert any(skewness(tender) != 0 for tender in bids.reshape(5, 3))


def test_table_refuses_lists_that_do_not_fit():
    with pytest.raises(ValueError, match="one length"):
        screen_tenders([1, 2, 3], [1, 1])


# margins and missing bids

def test_margins_by_hand():
    bids, tender = [90, 100, 95], [1, 1, 1]
    np.testing.assert_allclose(margins(bids, tender, scale=[100, 100, 100]), [-0.05, 0.10, 0.05])
    np.testing.assert_allclose(margins(bids, tender), [-5 / 95, 10 / 90, 5 / 90])
    np.testing.assert_allclose(margins(bids, tender, "highest", [100] * 3), [0.10, -0.05, 0.05])


def test_margins_of_ties_lone_and_missing_bids():
    found = margins([80, 80, 70, np.nan, 60, np.nan], [1, 1, 2, 2, 3, 4], scale=np.full(6, 100))
    np.testing.assert_array_equal(found, [0, 0, np.nan, np.nan, np.nan, np.nan])
    np.testing.assert_allclose(margins([80, 80, 90], [1, 1, 1], scale=np.full(3, 100)), [0, 0, 0.1])
    assert margins([], []).size == 0


tender_rows = st.lists(st.tuples(st.integers(1, 50), st.integers(0, 4)), min_size=1, max_size=30)


@given(tender_rows, st.sampled_from(SIDES), st.randoms())
def test_margins_against_a_slow_definition(rows, side, random):
    random.shuffle(rows)
    bids, tender = np.array(rows, float).T
    sign, found = (1 if side == "lowest" else -1), margins(bids, tender, side)
    for at, (bid, own) in enumerate(zip(bids, tender)):
        rivals = [bids[j] for j in range(len(bids)) if j != at and tender[j] == own]
        if not rivals:
            assert np.isnan(found[at])
            continue
        best = min(rivals) if side == "lowest" else max(rivals)
        assert found[at] == pytest.approx(sign * (bid - best) / best)


def test_missing_bids_by_hand():
    margin = [0.0, 0.0005, -0.001, 0.005, -0.01, 0.011, np.nan]
    assert missing_bids(margin) == pytest.approx(3 / 5)
    assert missing_bids([m for m in margin if m != 0]) == pytest.approx(2 / 4)
    assert missing_bids([0.0, 0.04, 0.2], close=0.1, very_close=0.01) == pytest.approx(1 / 2)
    assert np.isnan(missing_bids([0.5, np.nan]))


def test_a_flat_density_gives_a_tenth():
    assert missing_bids(np.random.default_rng(0).uniform(-0.05, 0.05, 200_000)) == pytest.approx(0.1, abs=0.005)


@pytest.mark.parametrize("very_close", [0, -0.1, 0.02])
def test_missing_bids_refuses_an_impossible_window(very_close):
    with pytest.raises(ValueError, match="very_close must lie between 0 and close"):
        missing_bids([0.0], close=0.01, very_close=very_close)


# suppression

def test_two_that_take_turns():
    # a_1 = a_2 = 2 of 4 lots: covariance 0 - 1, variance 1 * 1 / 3
    turns = np.array([[1, 0], [0, 1], [1, 0], [0, 1]], bool)
    assert suppression(turns) == pytest.approx(-math.sqrt(3))
    assert suppression(turns[:, [0, 0]]) == pytest.approx(math.sqrt(3))
    assert suppression(np.stack([turns, turns])) == pytest.approx(-2 / math.sqrt(2 / 3))


def test_constant_bidders_say_nothing():
    assert np.isnan(suppression(np.ones((16, 5), bool)))
    turns = np.array([[1, 0], [0, 1], [1, 0], [0, 1]], bool)
    assert suppression(np.hstack([turns, np.ones((4, 3), bool)])) == pytest.approx(suppression(turns))


def test_suppression_has_mean_0_and_variance_1_over_all_permutations():
    from itertools import permutations

    column = np.array([1, 1, 0, 0, 0], bool)
    lots = [np.array(order) for order in set(permutations(column))]
    found = np.array([suppression(np.stack([column, other, third], 1)) for other in lots for third in lots])
    assert found.mean() == pytest.approx(0, abs=1e-12) and (found ** 2).mean() == pytest.approx(1)


@given(st.integers(0, 2 ** 32 - 1))
def test_suppression_does_not_see_who_is_who_or_which_lot_came_first(seed):
    rng = np.random.default_rng(seed)
    present = rng.random((3, 8, 4)) < 0.6
    mixed = present[rng.permutation(3)][:, rng.permutation(8)][:, :, rng.permutation(4)]
    np.testing.assert_allclose(suppression(mixed), suppression(present), atol=1e-9)


@pytest.mark.parametrize("bad", [np.ones((4, 2)), np.ones(4, bool), np.ones((1, 2), bool)])
def test_suppression_refuses_what_is_no_session(bad):
    with pytest.raises(ValueError, match="present must be true or false"):
        suppression(bad)


# rotation

@pytest.mark.parametrize("winner, lag", [([0, 0, 1, 1, 2, -1, 0], 2), ([0, 1, 0, 1, 1, 2, 2], 3), ([1, 1, 1, 0, 0, 0], 2)])
def test_winners_that_come_round_have_mean_0_over_all_orders_of_the_lots(winner, lag):
    from itertools import permutations

    winner = np.array(winner)
    sold, found = np.flatnonzero(winner >= 0), []
    for order in permutations(winner[sold]):
        other = winner.copy()
        other[sold] = order
        found.append(sum(a == b >= 0 for a, b in zip(other, other[lag:])))
    excess, variance = screens._joins(winner, lag)
    assert excess == pytest.approx(sum(a == b >= 0 for a, b in zip(winner, winner[lag:])) - np.mean(found))
    assert variance == pytest.approx(np.var(found))


def test_three_that_take_turns_by_hand():
    # Lags 3 and 6 match all 13 and all 10 pairs of 16 lots; wins 6, 5, 5: two lots have one winner with chance
    # (30 + 20 + 20) / 240, so that 13 pairs have 3.79 on average
    turns = np.arange(16) % 3
    assert screens._joins(turns, 3)[0] == pytest.approx(13 - 13 * 70 / 240)
    assert screens._joins(turns, 2)[0] == pytest.approx(-14 * 70 / 240)
    assert rotation(turns) > 4 and rotation(np.tile(turns, (5, 1))) > rotation(turns)


def test_rotation_does_not_see_who_is_who_and_is_blind_where_nothing_can_be_said():
    rng = np.random.default_rng(0)
    winner = rng.integers(-1, 5, (3, 16))
    renamed = np.where(winner < 0, -7, np.append(rng.permutation(9)[:5], -7)[winner])
    assert rotation(renamed) == pytest.approx(rotation(winner)) == pytest.approx(rotation(winner[::-1, ::-1]))
    for nothing in (np.zeros(16, int), np.full((2, 16), -1), np.array([0, 1]), np.arange(16)):
        assert not rotation(nothing) > -0.5


@pytest.mark.parametrize("even", [0.5, 4.0])
def test_honest_winners_are_flagged_once_in_twenty(even):
    rng = np.random.default_rng(1)
    series = [rng.choice(n, (5, 16), p=rng.dirichlet(np.full(n, even))) for n in (4, 8, 12) for _ in range(300)]
    assert 0.02 < np.mean([rotation(winner) > 1.645 for winner in series]) < 0.07


# dependence

def test_a_pair_that_moves_together_by_hand():
    # r = 1 over 5 lots: z = sqrt(4); the other pairs of 3 bidders have r = 0, so the largest of 3 is put back
    steps = np.arange(5.0)
    other = np.array([1.0, 2.0, 3.0, 2.0, 1.0])
    bids = np.stack([1 + steps, 2 + 3 * steps, other], 1)
    expected = stats.norm.isf(1 - stats.norm.cdf(2) ** 3)
    assert dependence(bids) == pytest.approx(expected)
    assert dependence(bids[:, :2]) == pytest.approx(2)
    assert dependence(np.stack([bids[:, :2]] * 3)) == pytest.approx(2 * math.sqrt(3))
    assert dependence(np.stack([1 + steps, 9 - steps], 1)) == pytest.approx(-2)


def test_bidders_that_hardly_meet_or_never_move_say_nothing():
    bids = np.random.default_rng(0).random((16, 3))
    for nothing in (np.full((16, 3), np.nan), np.ones((16, 3)), np.where(np.arange(16)[:, None] < 3, bids, np.nan)):
        assert np.isnan(dependence(nothing))
    alone = np.where([[True, False, False]] * 16, bids, np.nan)
    assert np.isnan(dependence(alone))


@given(st.integers(0, 2 ** 32 - 1), st.sampled_from([0.25, 4.0, 1024.0]))
def test_dependence_does_not_see_currency_or_which_lot_came_first(seed, factor):
    rng = np.random.default_rng(seed)
    bids = np.where(rng.random((3, 12, 4)) < 0.7, rng.random((3, 12, 4)) + 0.01, np.nan)
    mixed = factor * bids[rng.permutation(3)][:, rng.permutation(12)][:, :, rng.permutation(4)]
    np.testing.assert_allclose(dependence(mixed), dependence(bids), atol=1e-7)


@pytest.mark.parametrize("reserve", [0.0, 0.6])
def test_independent_bids_are_flagged_once_in_twenty_and_cover_bids_always(reserve):
    rng, flags = np.random.default_rng(2), []
    for _ in range(300):
        bids = rng.random((5, 16, 6))
        covering = bids.copy()
        covering[:, :, :2] = bids[:, :, 2:3] * rng.uniform(0.9, 0.99, (5, 16, 2))
        flags.append([dependence(np.where(own >= reserve, own, np.nan)) > 1.645 for own in (bids, covering)])
    honest, ring = np.mean(flags, 0)
    assert honest < 0.08 and ring > 0.95


@pytest.mark.parametrize("screen, bad, message", [
    (rotation, np.ones(16), "winner must be whole numbers with axes"), (rotation, np.ones((2, 3, 4), int), "winner must be whole"),
    (dependence, np.ones(16), "bids must have axes"), (dependence, -np.ones((4, 2)), "bids must be positive")])
def test_series_that_are_none_are_refused(screen, bad, message):
    with pytest.raises(ValueError, match=message):
        screen(bad)


def test_margin_variation_by_hand():
    # leads of .1 and .3: mean .2, standard deviation .1 sqrt 2; a lone bid has no lead
    lots = np.array([[100.0, 110.0, 300.0], [100.0, 130.0, np.nan], [50.0, np.nan, np.nan]])
    assert margin_variation(lots) == pytest.approx(math.sqrt(0.02) / 0.2)
    assert margin_variation(np.array([[10.0, 9.0], [100.0, 90.0]]), "highest") == pytest.approx(0)
    assert np.isnan(margin_variation(lots[1:])) and np.isnan(margin_variation(np.ones((3, 2))))


def test_margin_variation_of_uniform_bids():
    """The lead over the best, 1 less the largest of n - 1 uniform bids, has the coefficient sqrt((n - 1) / (n + 1))."""
    bids = np.random.default_rng(0).random((20_000, 8))
    assert margin_variation(bids, "highest") == pytest.approx(math.sqrt(7 / 9), abs=0.02) and len(LAGS) == 7


# area under the curve

def test_auc_by_hand():
    assert auc([1, 2, 3, 4], [False, False, True, True]) == 1
    assert auc([1, 1, 1], [True, False, True]) == 0.5
    assert auc([3, 1, 2, 2, np.nan], [True, False, True, False, True]) == pytest.approx(3.5 / 4)
    assert np.isnan(auc([1, 2], [True, True])) and np.isnan(auc([np.nan], [True]))


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans(), st.integers(0, 3)), min_size=2, max_size=20))
def test_weights_are_repetitions(rows):
    score, guilty, weight = (np.array(column) for column in zip(*rows))
    repeated = auc(np.repeat(score, weight), np.repeat(guilty, weight).astype(bool))
    np.testing.assert_allclose(auc(score, guilty, weight), repeated, atol=1e-12)


def test_auc_interval_covers():
    "Nominally .95; with 300 draws and 500 repetitions three standard errors of the share are .03."
    rng, guilty, inside = np.random.default_rng(0), np.repeat([True, False], 60), []
    truth = 0.76025   # P(N(1, 1) > N(0, 1)) = Phi(1 / sqrt 2)
    drawn = counts(120, 300)
    for _ in range(500):
        score = np.concatenate([rng.normal(1, 1, 60), rng.normal(0, 1, 60)])
        point, low, high = auc_interval(score, guilty, drawn)
        assert low <= point <= high
        inside.append(low <= truth <= high)
    assert 0.91 <= np.mean(inside) <= 0.98


# the tenders

GOOD = ("year,quarter,pid,bidder_id,bid,reserveprice,norm_bid,minpriceauction,is_cartel,auction_cartelized,extra\r\n"
        "2007,2,15,214,90,100,0.9,0,1,0,x\r\n2007,2,15,52,,100,,0,0,0,y\r\n")


def written(tmp_path, text):
    path = tmp_path / screens.TSUCHIURA
    path.write_bytes(text.encode())
    return path


def test_a_small_file(tmp_path):
    table = read_tenders(written(tmp_path, GOOD))
    assert tuple(table.columns) == screens.COLUMNS and len(table) == 2
    assert table["bid"][0] == 90 and np.isnan(table["bid"][1])


@pytest.mark.parametrize("old, new, message", [
    ("bidder_id,", "firm,", "has no column 'bidder_id'"),
    (",90,100,", ",ninety,100,", "row 1: bid must be a number, not 'ninety'"),
    (",90,100,", ",-90,100,", "row 1: bid must be a number, not '-90'"),
    (",90,100,", ",inf,100,", "row 1: bid must be a number, not 'inf'"),
    (",52,,100,", ",52,,,", "row 2: reserveprice must be a number, not ''"),
    ("0.9,0,1,0", "0.9,0,2,0", "row 1: is_cartel must be 0 or 1, not '2'"),
    (",52,,100,", ",52,,110,", "tender 15 must have one reserveprice, not 2"),
])
def test_bad_files_are_refused_in_one_sentence(tmp_path, old, new, message):
    assert old in GOOD
    with pytest.raises(ValueError, match=message):
        read_tenders(written(tmp_path, GOOD.replace(old, new)))


def test_an_empty_file(tmp_path):
    with pytest.raises(ValueError, match="is not a csv file of tenders"):
        read_tenders(written(tmp_path, ""))


def test_another_file_under_the_same_name(tmp_path, monkeypatch):
    written(tmp_path, GOOD)
    monkeypatch.setenv("DAEDALUS_DATA_DIR", str(tmp_path))
    with pytest.raises(ValueError, match="does not hold the Tsuchiura tenders: its checksum is"):
        tsuchiura()


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    "A machine without the data, and an empty cache."
    pooch = pytest.importorskip("pooch", reason="pooch, of the data extra, is not installed")
    monkeypatch.setattr(screens, "data_folders", list)
    monkeypatch.setattr(pooch, "os_cache", lambda name: tmp_path / name)
    return tmp_path


def test_neither_file_nor_network(nowhere, monkeypatch):
    monkeypatch.setattr(screens, "TSUCHIURA_URL", "http://127.0.0.1:9/tenders.csv")
    with pytest.raises(FileNotFoundError, match="they cannot be fetched .*DAEDALUS_DATA_DIR"):
        tsuchiura()


def test_neither_file_nor_pooch(monkeypatch):
    monkeypatch.setattr(screens, "data_folders", list)
    monkeypatch.setattr(screens, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="pooch is not installed.*DAEDALUS_DATA_DIR"):
        tsuchiura()
    with pytest.raises(FileNotFoundError, match="dmba, which is not installed"):
        screens.ebay()


@pytest.fixture
def served(tmp_path, monkeypatch):
    "A folder that a web server on this machine serves."
    folder = tmp_path / "web"
    folder.mkdir()
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    monkeypatch.setattr(http.server.SimpleHTTPRequestHandler, "log_message", lambda *_: None)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(screens, "TSUCHIURA_URL", f"http://127.0.0.1:{server.server_port}/{screens.TSUCHIURA}")
    yield folder
    server.shutdown()
    server.server_close()


@needs_data
def test_fetched_with_more_columns_in_another_order(nowhere, served):
    path = next(folder / screens.TSUCHIURA for folder in data_folders() if (folder / screens.TSUCHIURA).is_file())
    text = pd.read_csv(path, dtype=str, keep_default_na=False)
    text.iloc[:, ::-1].assign(bidder="a, b").to_csv(served / screens.TSUCHIURA, index=False)
    table = tsuchiura()
    assert len(table) == 6013
    (served / screens.TSUCHIURA).unlink()
    pd.testing.assert_frame_equal(tsuchiura(), table)   # from the cache


def test_fetched_but_not_the_tenders(nowhere, served):
    (served / screens.TSUCHIURA).write_text(GOOD)
    with pytest.raises(ValueError, match="does not hold the Tsuchiura tenders"):
        tsuchiura()


@needs_data
def test_the_tenders():
    table = tsuchiura()
    assert len(table) == 6013 and table["pid"].nunique() == 1565
    assert (table["year"].min(), table["year"].max()) == (2007, 2015)
    assert table["bid"].isna().sum() == 41
    np.testing.assert_allclose(table["norm_bid"], table["bid"] / table["reserveprice"], atol=1e-7)


@needs_data
def test_the_first_look_at_missing_bids():
    table = tsuchiura()
    margin = margins(table["bid"], table["pid"], scale=table["reserveprice"])
    free = table["minpriceauction"] == 0
    assert missing_bids(margin[free & (table["auction_cartelized"] == 1)]) == pytest.approx(2 / 462)
    assert missing_bids(margin[free & (table["auction_cartelized"] == 0)]) == pytest.approx(9 / 193)


@needs_data
def test_low_variation_is_near_chance():
    table = tsuchiura()
    found = screen_tenders(table["bid"], table["pid"])
    cartel = table.groupby("pid")["auction_cartelized"].first() == 1
    assert auc(-found["variation"], cartel) == pytest.approx(0.554, abs=0.001)


def test_the_sales():
    pytest.importorskip("dmba", reason="dmba, of the data extra, is not installed")
    sales = screens.ebay()
    assert len(sales) == 1972 and sales["competitive"].sum() == 1066
    assert (sales["open_price"] <= sales["close_price"]).all()


# the engine's rings

def test_the_ring_is_seen_and_its_honest_twin_is_not():
    from daedalus.market.bidders import Population
    from daedalus.market.engine import open_market
    from daedalus.schema import DEFAULT_MECHANISM
    from daedalus.market.record import watch

    open_rules = DEFAULT_MECHANISM.replace(reveal_competing_bids=True, reserve_price=0.0)
    shaders = {"colluder": 0, "shader": 4}
    for population, fires in ((Population(truthful=3, colluder=4), True), (Population(truthful=3, **shaders), False)):
        state, _ = open_market([population], [3])
        session = watch(state, open_rules, rounds=5)
        assert (session.leader[0] >= 0) == fires
        assert (suppression(session.bid > 0) < -1.645) == fires


@pytest.mark.parametrize("rotates", ["none", "turn", "random"])
@pytest.mark.parametrize("cover", [0.0, 0.1])
def test_which_screen_sees_which_ring(rotates, cover):
    """Four members and nobody else: each screen sees the conduct that it is for, and that alone."""
    from daedalus.market.bidders import BEHAVIOUR, Population
    from daedalus.market.engine import TRUST, open_market
    from daedalus.market.record import watch
    from daedalus.schema import DEFAULT_MECHANISM

    rules = DEFAULT_MECHANISM.replace(auction_type="first_price", reserve_price=0.0)
    state, _ = open_market([Population(colluder=4, rotation=rotates, cover=cover)], [(0, 1)])
    state.belief[:, TRUST] = 1.0
    seen = [watch(state, rules, rounds=r + 1, behaviour=BEHAVIOUR._replace(rate=0.0)) for r in range(5)]
    bids, winner = np.array([session.bid for session in seen]), np.array([session.winner[:, 0] for session in seen])
    assert (winner >= 0).all() and ((bids > 0).sum(-1) == (4 if cover else 1)).all()
    if rotates == "turn":   # lot after lot, and session after session of 16
        np.testing.assert_array_equal((winner - winner[0, 0]) % 4, np.arange(80).reshape(5, 16) % 4)
    assert (rotation(winner) > 1.645) == (rotates == "turn")
    silent, together = suppression(bids > 0), dependence(np.where(bids > 0, bids, np.nan))
    assert (np.isnan(silent) and together > 1.645) if cover else (silent < -1.645 and np.isnan(together))


def test_what_the_experiment_says_of_rings_that_rotate_and_cover():
    value = read_result("screens")["conduct"]
    flagged = pd.DataFrame(value["flagged"]).T
    silent, covering = ["suppression", "turn", "by lot"], ["cover", "turn, cover", "by lot, cover"]
    assert list(flagged) == ["no ring", *silent, *covering]
    assert {*SCREENS, "suppression", "rotation", "dependence", "margin variation", "missing bids"} <= set(flagged.index)
    assert all(0 <= low <= share <= high <= 1 for share, low, high in flagged.to_numpy().ravel())
    assert all(low <= 0.05 for _, low, _ in value["no ring, all"].values())
    assert {name for name, (_, low, _) in flagged["no ring"].items() if low > 0.05} == {"skewness", "gap"}
    share = flagged.map(lambda estimate: estimate[0])
    for name, seen, unseen in ("suppression", silent, covering), ("dependence", covering, silent):
        assert (share.loc[name, seen] > 0.5).all() and (share.loc[name, unseen] < 0.05).all()
    others = share.drop(index=["suppression", "dependence"])
    assert (others < 0.2).all(axis=None) and others.loc["margin variation"].max() < 0.1
    assert value["turns, by outsiders"]["0"]["rotation"][0] == 1 and value["turns, by outsiders"]["4"]["rotation"][0] < 0.1
    for group, row in value["real"].items():   # accused by the threshold, and not by their own bids shuffled
        assert (row["dependence"] > 1.645) == group.endswith("regulars only")
        assert row["rotation"] < 0 and min(row["rotation, p"], row["dependence, p"]) > 0.05
