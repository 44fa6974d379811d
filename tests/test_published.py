"""Verdicts on published values, and the notebook of other people's tables, by other means."""

import json
import math

import numpy as np
import pytest

from daedalus.results import read_result
from daedalus.studies.published import MARKS, kept, mean_interval, verdict


@pytest.mark.parametrize(("ours", "outcome"), [
    ((0.2, 0.4), "reproduced"), ((0.25, 0.3), "reproduced"), ((0.1, 0.19), "not reproduced"),
    ((0.41, 0.5), "not reproduced"), ((0.1, 0.3), "undecided"), ((0.3, 0.5), "undecided"), ((0.1, 0.5), "undecided")])
def test_a_verdict_needs_the_whole_interval(ours, outcome):
    assert verdict(0.2, 0.4, *ours) == outcome


@pytest.mark.parametrize(("ours", "outcome"), [((0.01, 9), "reproduced"), ((-9, -0.01), "not reproduced"), ((-1, 1), "undecided")])
def test_a_direction_is_a_band_without_an_end(ours, outcome):
    assert verdict(0, math.inf, *ours) == outcome


@pytest.mark.parametrize("ends", [(0.4, 0.2, 0, 1), (0, 1, 0.4, 0.2), (math.nan, 1, 0, 1)])
def test_an_interval_that_runs_backwards_is_refused(ends):
    with pytest.raises(ValueError, match="from low to high"):
        verdict(*ends)


def test_the_interval_of_a_mean_covers_it_as_often_as_it_says():
    rng = np.random.default_rng(3)
    inside = sum(low <= 0.5 <= high for low, high in (mean_interval(rng.random(600), turn) for turn in range(120)))
    assert 104 <= inside <= 120   # 95 % of 120 is 114; 104 has a chance below 1 in 1,000


def test_a_calculation_without_spread_has_no_width():
    assert mean_interval(np.full(10_000, 0.3)) == (0.3, 0.3)


def test_what_a_result_keeps_is_json():
    assert json.loads(json.dumps([kept(x) for x in (1 / 3, math.inf, math.nan, "a", 2)])) == [0.333333333333, None, None, "a", 2]


ROWS = read_result("published_tables")["rows"]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["key"])
def test_every_row_of_the_tables_has_its_verdict_from_its_band(row):
    low = -math.inf if row["low"] is None else row["low"]
    high = math.inf if row["high"] is None else row["high"]
    assert row["verdict"] == verdict(low, high, row["from"], row["to"]) and row["verdict"] in MARKS
    assert low <= row["published"] <= high and (row["why"] == "") == (row["verdict"] == "reproduced")


def test_the_optimum_of_the_regular_settings_by_quadrature():
    """Myerson's optimum from the distribution of the highest virtual value, integrated, not drawn."""
    from scipy.integrate import quad

    ours = {row["key"]: row["ours"] for row in ROWS}
    uniform = quad(lambda x: 1 - ((x + 1) / 2) ** 3, 0, 1)[0]   # virtual value 2v - 1
    exponential = quad(lambda x: 1 - (1 - math.exp(-(x + 3) / 3)) ** 3, 0, math.inf)[0]   # v - 3
    unlike = quad(lambda x: 1 - math.prod(min(1, (x + i) / (2 * i)) for i in range(1, 6)), 0, 5, points=(1, 2, 3, 4))[0]   # 2v - i
    assert ours["U optimum"] == pytest.approx(uniform, abs=0.003)
    assert ours["E optimum"] == pytest.approx(exponential, abs=0.012)
    assert ours["U5 optimum"] == pytest.approx(unlike, abs=0.006)
