"""The ensemble of calibrations: drawn by its seed, within what thirty episodes can say, and what the market makes of it."""

import numpy as np
import pytest

import daedalus as dd
from daedalus.results import read_result
from daedalus.studies.calibration import (
    BOX, PUBLISHED_EPISODES, baseline_numbers, baseline_rewards, calibration_record, draw_ensemble, passes, settings, tolerances)
from daedalus.studies.evaluate import published

RECORD = calibration_record()


def test_settings_fill_the_box_and_do_not_depend_on_their_number():
    drawn = settings(512)
    assert settings(100) == drawn[:100] and settings(3, seed=1) != drawn[:3]
    table, (low, high) = np.array(drawn), np.array(list(BOX.values())).T
    assert (table >= low - 1e-5).all() and (table <= high + 1e-5).all()
    assert ((table - low) / (high - low)).mean(0) == pytest.approx(0.5, abs=0.01)
    assert all(ends[0] <= value <= ends[1] for ends, value in zip(BOX.values(), dd.BEHAVIOUR)) and max(BOX["memory"]) == 1


def test_the_committed_settings_are_what_the_seed_gives():
    """The first of the draw, and one from its middle; 88_calibration draws all of them again."""
    drawn = settings(RECORD["drawn"], RECORD["seed"])
    for at in (0, 100):
        kept = RECORD["settings"][at]
        assert dd.Behaviour(**kept["behaviour"]) in drawn
        assert baseline_numbers(dd.ensemble()[at], RECORD["episodes"], RECORD["seed"]) == kept["numbers"]
    first = next(at for at, each in enumerate(drawn) if each == dd.ensemble()[0])
    assert not any(all(passes(baseline_numbers(each, RECORD["episodes"]), RECORD["within"]).values()) for each in drawn[:first])


def test_every_kept_setting_gives_the_published_numbers():
    assert len(dd.ensemble()) == len(set(dd.ensemble())) == len(RECORD["settings"]) == 200
    for kept in RECORD["settings"]:
        for name, number in kept["numbers"].items():
            assert abs(number - published()["numbers"][name]["value"]) <= RECORD["within"][name]
    assert RECORD["acceptance"] == 200 / RECORD["drawn"] and all(200 <= n <= RECORD["drawn"] for n in RECORD["agree"].values())
    assert {name: tuple(ends) for name, ends in RECORD["box"].items()} == BOX


def test_the_tolerance_of_a_mean_is_what_theory_gives():
    within = tolerances(20, studies=4000)
    for name, row in baseline_rewards(dd.BEHAVIOUR, 20).items():
        assert within[f"{name} mean"] == pytest.approx(1.96 * row.std() / PUBLISHED_EPISODES**0.5, rel=0.05)
    assert passes({"random mean": 0.326 + 0.9 * within["random mean"], "random IQR": 0.27 - 1.1 * within["random IQR"]},
                  within) == {"random mean": True, "random IQR": False}


def test_today_is_one_of_them_and_an_absurd_setting_is_none():
    assert all(passes(baseline_numbers(dd.BEHAVIOUR, RECORD["episodes"]), RECORD["within"]).values())
    dear = dd.BEHAVIOUR._replace(entry_cost=0.4)   # everybody enters whatever the rules
    assert not all(passes(baseline_numbers(dear, RECORD["episodes"]), RECORD["within"]).values())


def test_too_few_settings_are_an_error():
    with pytest.raises(RuntimeError, match="of 2 settings give the published numbers, and not 3"):
        draw_ensemble(3, 2, most=2)
    with pytest.raises(ValueError, match="keep must be a whole number of at least 1, not 0"):
        draw_ensemble(0)


def test_the_list_that_is_handed_out_is_a_copy():
    dd.ensemble().clear()
    assert len(dd.ensemble()) == 200


def test_the_shares_are_of_the_settings():
    value = read_result("calibration")
    for row in value["claims"] + value["formats"]:
        assert row["low"] <= row["share"] <= row["high"] and (200 * row["share"]) == pytest.approx(round(200 * row["share"]), abs=2e-3)
    order = {(row["suite"], row["designers"], row["claim"]): row["share"] for row in value["claims"]}
    for suite in ("stages", "open"):
        for how in ("as they ship", "chosen again"):
            part = [order[suite, how, claim] for claim in ("contextual over best fixed", "oracle over contextual")]
            assert order[suite, how, "all three in order"] <= min(part) and order[suite, how, "oracle over best fixed"] >= 0.9
