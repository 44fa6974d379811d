"""Verdicts on published values, and the notebook of other people's tables, by other means."""

import json
import math
import re

import numpy as np
import pytest

from daedalus.pipeline.reproduce import notebooks
from daedalus.results import CHECKOUT, read_result
from daedalus.studies.published import MARKS, agreement, kept, mean_interval, together, undone, verdict


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


# Many verdicts together


@pytest.mark.parametrize("turn", range(40))
def test_one_verdict_is_sure_just_where_it_is_passed(turn):
    rng = np.random.default_rng([7, turn])
    low, high = np.sort(rng.normal(0, 1, 2)) if turn % 2 else (rng.normal(), math.inf)
    ours = rng.normal(0, 1)
    left, right = ours - rng.exponential(0.3), ours + rng.exponential(0.3)
    row = {"key": "one", "low": low, "high": None if math.isinf(high) else high, "ours": ours, "from": left, "to": right,
           "verdict": verdict(low, high, left, right)}
    p = together([row])[0]["p"]
    assert (p < 0.05) == (row["verdict"] != "undecided") and 0 <= p <= 1


def test_the_p_value_of_a_verdict_by_hand():
    """The end of the band is two standard errors away, on the side whose half counts."""
    row = {"key": "one", "low": 0.0, "high": 1.0, "ours": 0.2, "from": 0.2 - 1.959964 * 0.1, "to": 0.9, "verdict": "reproduced"}
    assert together([row])[0]["p"] == pytest.approx(0.0455, abs=1e-4)
    assert together([row | {"low": None, "high": 0.1}])[0]["p"] == pytest.approx(2 * 0.1587, abs=1e-4)   # one away, outside
    exact = row | {"low": 0.2, "from": 0.2, "to": 0.2}   # on the end, and without any spread
    assert together([exact])[0]["p"] == 0


def test_a_table_of_findings_that_are_none_has_a_wrong_verdict_as_rarely_as_it_says():
    """Ours is on the end of the band in truth: one verdict of twenty is wrong, in a table of thirty one table of twenty."""
    rng, wrong, alone = np.random.default_rng(11), [], []
    for _ in range(400):
        ours = rng.normal(0, 1, 30)
        rows = together([{"key": str(at), "low": 0.0, "high": None, "ours": x, "from": x - 1.959964, "to": x + 1.959964,
                          "verdict": verdict(0.0, math.inf, x - 1.959964, x + 1.959964)} for at, x in enumerate(ours)])
        passed = [row["key"] for row in rows if row["verdict"] != "undecided"]
        wrong.append(len(passed) > len(undone(rows)))
        alone.append(len(passed) > 0)
    assert np.mean(alone) > 0.6 and np.mean(wrong) < 0.09   # 400 tables: .05 has a standard error of .011


def test_the_committed_tables_say_what_holm_leaves_of_them():
    findings, tables = read_result("findings"), read_result("published_tables")
    for result, rows in ((findings, findings["rows"] + findings["further"]), (tables, tables["rows"])):
        assert together([{name: x for name, x in row.items() if name != "p"} for row in rows]) == rows
        assert result["together"]["verdicts"] == len(rows) > 20 and result["together"]["undone"] == undone(rows)
    asked = [row for row in findings["rows"] if row["source"] != "this project's rule" and not row["key"].startswith("theory")]
    stands = [row for row in asked if row["verdict"] == "reproduced" and row["p"] < 0.05]
    assert findings["together"]["reproduced"] == len(stands) <= findings["reproduced"]


# A tolerance in place of a band


@pytest.mark.parametrize(("ours", "outcome"), [
    ((0.28, 0.26, 0.30), "same"), ((0.28, 0.27, 0.30), "same"), ((0.311, 0.301, 0.323), "near"), ((0.34, 0.33, 0.35), "no"),
    ((0.20, 0.19, 0.21), "no"), ((0.22, 0.21, 0.23), "near")])
def test_a_published_number_outside_of_the_interval_is_near_at_best(ours, outcome):
    assert agreement(0.27, *ours, within=0.06) == outcome


@pytest.mark.parametrize("wrong", [(0.5, 0.1, 0.2, 0.3), (0.5, 0.4, 0.6, -0.1), (math.nan, 0.4, 0.6, 0.1)])
def test_an_estimate_outside_of_its_own_interval_is_refused(wrong):
    with pytest.raises(ValueError, match="ours must lie in its interval"):
        agreement(0.27, *wrong)


def test_the_front_page_says_how_far_each_baseline_agrees():
    words = []
    for row in read_result("baselines")["rows"]:
        word = agreement(row["published"], row["ours"], row["low"], row["high"], row["within"])
        line, = (line for line in (CHECKOUT / "README.md").read_text().splitlines()
                 if line.startswith(f"| {row['designer']}, {row['what']} |"))
        assert line.endswith(f"| {word} |")
        words.append(word)
    assert "no" not in words


# What the card says, and what it does not

SAID_OF_THE_CARD = (r"published (curriculum|stages)|(is|plays) the published hand-made|hand-made mechanism of the published"
                    r"|(properties of|wrong with) the published (training )?reward|published (environment's collusion )?signal of collusion"
                    r"|(is|are) said to (fire|come from)|published, as said|same simulated experience")


def test_nothing_says_of_the_card_what_is_not_in_it():
    texts = {path.stem: "\n".join("".join(cell["source"]) for cell in json.loads(path.read_text())["cells"]) for path in notebooks()}
    texts |= {name: (CHECKOUT / name).read_text() for name in ("README.md", "paper/paper.typ", "data/published.json")}
    for name, text in texts.items():
        assert not re.search(SAID_OF_THE_CARD, text, re.IGNORECASE), name
    assert "does not print" in texts["paper/paper.typ"] and "does not print" in texts["data/published.json"]


# Findings on the engine, and R by other definitions

FINDINGS = read_result("findings")


@pytest.mark.parametrize("row", [*FINDINGS["rows"], *FINDINGS["further"]], ids=lambda row: row["key"])
def test_every_finding_has_its_verdict_from_its_band(row):
    low = -math.inf if row["low"] is None else row["low"]
    high = math.inf if row["high"] is None else row["high"]
    assert row["verdict"] == verdict(low, high, row["from"], row["to"])
    assert (row["why"] == "") == (row["verdict"] == "reproduced")


def test_the_findings_say_what_played_them_and_show_what_was_left_out():
    asked = [row for row in FINDINGS["rows"] if not row["key"].startswith("theory")]
    assert all(row["played_by"] and row["on_engine"] for row in asked)
    engine = {row["key"] for row in FINDINGS["further"] if row["key"].startswith("engine")}
    assert len(engine) >= 10 and sum(row["on_engine"] in MARKS for row in asked) >= 10
    rows = {row["key"]: row for row in (*FINDINGS["rows"], *FINDINGS["further"])}
    assert rows["first price"]["ours"] < 0.3 < 0.5 < rows["modest: first price"]["ours"]



def test_silent_members_only_add_and_the_order_of_mechanisms_stays():
    result = read_result("definitions")
    for row in result["table"]:
        assert row["P with the silent"] >= row["P"] - 1e-12 and row["R with the silent"] >= row["R"] - 1e-12 and row["P with the silent"] <= 1 + 1e-12
        assert abs(row["R of sums"] - row["R"]) < 0.03
    assert len({tuple(order) for order in result["orders"]["stages"].values()}) == 1
    gap = {row["by"]: row["gap"] for row in result["gaps"] if row["suite"] == "open"}
    assert gap["R with the silent"] < gap["R"]
