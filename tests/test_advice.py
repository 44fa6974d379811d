"""Advice in money: prices of a law, the stated uncertainty, who is chosen and what would change it, and the page."""

import os
import re
import subprocess
import sys
from decimal import Decimal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import daedalus as dd
from daedalus.cli import app
from daedalus.designers.base import FixedDesigner
from daedalus.market.bidders import BEHAVIOUR
from daedalus.market.engine import COMPONENTS
from daedalus.market.money import Trade
from daedalus.schema import Brief, Mechanism, Objective
from daedalus.seeds import block_keys
from daedalus.studies import advice as studied
from daedalus.studies.advice import (
    Advice, Candidates, Draw, Enquiry, Estimate, Played, advice_page, advice_text, alike, brief_of, brief_text, by_suspicion,
    change, conditions, draw_bidders, kept, play_draws, recommend, rules_text, settings_drawn, spread, unit_price, usual_formats, verdict,
    weighed)

TENDER = Trade(low=80, high=120, procurement=True)
YEN = Trade(low=4_000_000, high=9_500_000, currency="JPY", procurement=True)
DINAR = Trade(low=12.5, high=40, currency="BHD")
FIRST = 'auction_type is "first_price"'
COMMAND = [sys.executable, "-c", "from daedalus.cli import main; main()"]


def market(**fields):
    return Enquiry(**{"trade": TENDER, "bidders": 6} | fields)


# Prices of a law


@pytest.mark.parametrize("trade, text, at_least, at_most, fixed", [
    (TENDER, "ceiling price is at most 110 USD", {"reserve_price": 0.25}, {}, {}),
    (TENDER, "ceiling price is at least 110 USD", {}, {"reserve_price": 0.25}, {}),
    (TENDER, "ceiling price is 100 USD", {}, {}, {"reserve_price": 0.5}),
    (DINAR, "reserve price is at least 15 BHD", {"reserve_price": 0.375}, {}, {}),
    (DINAR, "reserve price is at most 20.000 BHD", {}, {"reserve_price": 0.5}, {}),
    (YEN, "ceiling price is at most 6,750,000 JPY", {"reserve_price": 0.5}, {}, {}),
])
def test_a_price_in_a_law_is_a_value_of_the_lever(trade, text, at_least, at_most, fixed):
    brief = brief_of(trade, f"maximise revenue; {text}")
    assert (brief.at_least, brief.at_most, brief.fixed) == (at_least, at_most, fixed)
    assert brief_of(trade, brief_text(trade, brief)) == brief


def test_a_brief_may_leave_the_objective_out_and_have_other_clauses():
    brief = brief_of(TENDER, f"{FIRST}; ceiling price is at most 110 USD")
    assert brief == Brief(fixed={"auction_type": "first_price"}, at_least={"reserve_price": 0.25})
    assert brief_text(TENDER, brief).endswith(f"{FIRST}; ceiling price is at most 110.00 USD")
    words = Brief(words="reserve_price is 0.2")
    assert brief_text(TENDER, words) == words.text()    # what people wrote stays as they wrote it


@pytest.mark.parametrize("trade, text, says", [
    (TENDER, "ceiling price is at most 70 USD", "the ceiling price must be from 84.00 to 120.00 USD, not 70 USD"),
    (DINAR, "reserve price is 36.001 BHD", "the reserve price must be from 0.000 to 36.000 BHD, not 36.001 BHD"),
    (TENDER, "reserve price is at most 110 USD", "a price in the brief must be a ceiling price in USD"),
    (TENDER, "ceiling price is at most 110 EUR", "a price in the brief must be a ceiling price in USD"),
    (TENDER, "sell it well", "a brief is a text such as"),
])
def test_a_wrong_law_gets_one_sentence(trade, text, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        brief_of(trade, text)


# What an owner says


@pytest.mark.parametrize("wrong, says", [
    ({"bidders": 1}, "bidders must be a whole number from 2 to 64, not 1"),
    ({"units": 9}, "units must be a whole number from 1 to 8, not 9"),
    ({"suspect": 1.5}, "suspect must be a number from 0 to 1, not 1.5"),
    ({"ring": 1}, "ring must be a whole number from 2 to 64, not 1"),
    ({"ring": 7}, "ring must be a whole number from 2 to the number of bidders, 6, not 7"),
    ({"buyers": 6}, "'buyers' is not a field; the fields are trade, bidders"),
])
def test_a_wrong_enquiry_gets_one_sentence(wrong, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        market(**wrong)


@pytest.mark.parametrize("sizes, says", [({"draws": 15}, "draws must be a whole number of at least 16, not 15"),
                                         ({"tried": 19}, "tried must be a whole number of at least 20, not 19")])
def test_too_small_a_study_is_refused_before_it_is_begun(sizes, says):
    with pytest.raises(ValueError, match=says):
        recommend(market(), {}, **sizes)


@pytest.mark.parametrize("name", ["today", "first price, no ceiling", "search 1", studied.SEARCH])
def test_a_designer_has_a_name_of_its_own(name):
    with pytest.raises(ValueError, match=f"designers must have names that no other rules have, not '{name}'"):
        recommend(market(), {name: FixedDesigner(Mechanism())}, 16, 20)


# The stated uncertainty


@settings(max_examples=40, deadline=None)
@given(bidders=st.integers(2, 64), ring=st.none() | st.integers(2, 64), units=st.integers(1, 8), seed=st.integers(0, 99))
def test_a_ring_is_made_of_bidders_who_come_anyway(bidders, ring, units, seed):
    if ring and ring > bidders: return
    for pair, setting in draw_bidders(market(bidders=bidders, ring=ring, units=units), 9, seed, 1):
        without, ringed = pair
        assert without.bidders == ringed.bidders == bidders and without.colluder == 0
        assert ringed.colluder == ring if ring else 2 <= ringed.colluder <= max(2, bidders // 2)
        assert all(getattr(ringed, kind) <= getattr(without, kind) for kind in studied.OTHERS)
        assert (without.learning, without.practice, without.value_shape) == (ringed.learning, ringed.practice, ringed.value_shape)
        assert without.n_items == units and 0 <= setting < len(settings_drawn())


def test_rules_of_learning_and_settings_are_crossed():
    drawn = draw_bidders(market(), 64, 0, 1)
    assert len({(draw.pair[0].learning, draw.setting) for draw in drawn}) == 64
    assert settings_drawn()[0] == BEHAVIOUR and len(set(settings_drawn())) == 8
    assert draw_bidders(market(), 64, 0, 1) == drawn and draw_bidders(market(), 64, 0, 2) != drawn


def test_costs_that_lie_low_are_values_that_lie_high():
    """A supplier's cost is high less its value: with shape 3 values lie high, and costs low."""
    shaped = dd.Population(truthful=6, value_low=0.0, value_shape=3.0)
    drawn = [Draw((shaped, shaped), 0)] * 2
    assert "costs lie mostly low" in conditions(market(), drawn)
    assert "values lie mostly high" in conditions(market(trade=Trade(low=0, high=1)), drawn)


@pytest.mark.parametrize("suspect, ringed", [(0.0, 0), (0.25, 4), (0.3, 4), (0.5, 8), (1.0, 16)])
def test_the_search_meets_a_ring_as_often_as_it_is_suspected(suspect, ringed):
    people = spread(draw_bidders(market(), 16, 0, 0), suspect)
    assert sum(population.colluder > 0 for population in people) == ringed


# Money


def test_what_a_unit_costs_and_brings_by_hand():
    """A buyer who saves 20 of 40 on one of two units pays 100 and 120 for them; a seller who gets 30 for two gets 15 each."""
    assert unit_price(market(units=2), np.array([0.5])) == 110.0
    assert unit_price(market(trade=DINAR, units=2), np.array([0.75])) == 15.0
    assert unit_price(market(), np.array([0.0, 1.0])).tolist() == [120.0, 80.0]


@pytest.mark.parametrize("trade, limit, digits", [(YEN, "ceiling price", 0), (DINAR, "reserve price", 3), (TENDER, "ceiling price", 2)])
def test_rules_are_told_to_the_smallest_unit_of_the_currency(trade, limit, digits):
    rules = Mechanism(reserve_price=0.5, collusion_penalty=1.0, withdrawal_penalty=0.3, shill_penalty=0.7)
    shown = rules_text(market(trade=trade), rules)
    for what, amount in shown.items():
        if what == limit or what.startswith("fine"):
            number, currency = amount.replace(",", "").split()
            assert currency == trade.currency and Decimal(number).as_tuple().exponent == -digits
    assert len(shown) == len(dict(rules))    # each lever once
    assert shown[limit].startswith({"JPY": "6,750,000 ", "BHD": "20.000 ", "USD": "100.00 "}[trade.currency])


def test_the_textbook_limit_is_myersons():
    usual = usual_formats(market())
    assert usual["first price, textbook ceiling"].reserve_price == 0.5    # values from 0 to 1: 1 / 2
    assert usual_formats(market(trade=Trade(low=90, high=120)))["second price, textbook reserve"].reserve_price == 0.75
    assert "VCG, no ceiling" in usual_formats(market(units=2)) and "VCG, no ceiling" not in usual


# Rules on draws


def test_what_is_played_is_what_the_engine_plays():
    drawn = draw_bidders(market(), 16, 3, 1)
    rules, objective = [Mechanism(), dd.INFORMED_GREEDY], Objective(revenue=1)
    played, alone = play_draws(rules, drawn, 3, 7, steps=2), play_draws(rules[1:], drawn, 3, 7, steps=2)
    assert np.array_equal(played.revenue[1:], alone.revenue) and np.array_equal(played.rounds[1:], alone.rounds)
    for at, behaviour in ((2, BEHAVIOUR), (11, settings_drawn()[1])):    # eight draws for each setting
        out = dd.simulate(rules[1], list(drawn[at].pair), block_keys(16, 3, 7)[[at, at]], 2, behaviour, objective)
        assert np.allclose(played.scores(objective)[1, at], out.reward.mean(1), rtol=0, atol=1e-12)
        assert np.array_equal(played.revenue[1, at], out.revenue.mean(1))


def synthetic(*scores):
    """What rules brought that earn these scores in the first component and revenue, in every draw: [rules, draws, 2]."""
    table = np.asarray(scores, float)
    rounds = np.zeros((*table.shape, 1, len(COMPONENTS)))
    rounds[..., 0, 0] = rounds[..., 0, COMPONENTS.index("revenue")] = table
    return Played(rounds, table)


def test_suspicion_weighs_the_two_worlds_and_turns_the_choice_where_lines_cross():
    table = np.array([[[0.9, 0.1]], [[0.6, 0.5]]])
    assert weighed(table, 0.25).ravel().tolist() == pytest.approx([0.7, 0.575])
    assert by_suspicion(["careless", "careful"], table) == ((0.0, 0.42, "careless"), (0.43, 1.0, "careful"))    # at 3 / 7


def test_the_best_that_the_brief_allows_is_chosen_and_one_of_the_search_stays():
    enquiry = market(brief=Brief.from_text(f"maximise welfare; {FIRST}"), suspect=0.5)
    one, two = Mechanism(auction_type="first_price"), Mechanism(auction_type="second_price")
    compared = Candidates({"usual": two, "search 1": one, "search 2": one.replace(reserve_price=0.2), "model": one}, {})
    first = synthetic([[0.9, 0.9]] * 2, [[0.5, 0.1]] * 2, [[0.2, 0.6]] * 2, [[0.1, 0.1]] * 2)
    rules, played = kept(enquiry, compared, first)
    assert [*rules] == [studied.SEARCH, "usual", "model"] and rules[studied.SEARCH].reserve_price == 0.2
    assert played.revenue[0].tolist() == [[0.2, 0.6]] * 2


def test_what_would_change_the_choice_is_decided_on_some_draws_and_measured_on_others():
    wanted = Objective.from_text("welfare")
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 0.01, (16, 2))
    chosen = synthetic(np.full((16, 2), 0.5), np.full((16, 2), 0.7))
    better = synthetic(np.full((16, 2), 0.5), 0.6 + noise)
    same = synthetic(np.full((16, 2), 0.5), 0.5 + noise - noise.mean(0))
    everything = 0.0, list(range(16)), wanted
    best, gain, p = change(everything, everything, [0, 1], chosen, better)
    assert best == 1 and gain.low > 0.08 and gain.high < 0.12 and p < 1e-6
    best, gain, p = change(everything, everything, [0, 1], chosen, same)
    assert best == 1 and gain.low < 0 < gain.high and p > 0.9    # what was good fortune is not told as a gain


@pytest.mark.parametrize("gain, faults, says", [
    ((0.1, 0.05, 0.15), (), "Better than today by +0.100"), ((0.1, -0.05, 0.25), (), "Not told apart from today"),
    ((-0.1, -0.2, -0.05), (), "yet worse than today"), ((0.1, 0.05, 0.15), ("x",), "The brief forbids today")])
def test_the_verdict_says_no_more_than_the_interval(gain, faults, says, small):
    best = small.row().replace(name="new", gain=Estimate(**dict(zip(("value", "low", "high"), gain))))
    assert says in verdict(best, best.replace(name="today", faults=faults))
    assert verdict(best, best) == "Keep new: nothing that was tried was chosen before it."


# The whole of it


SMALL = market(brief=brief_of(TENDER, f"maximise welfare x revenue; {FIRST}; ceiling price is at most 112 USD"), suspect=0.3,
               today=Mechanism(auction_type="first_price", reserve_price=0.3))


@pytest.fixture(scope="module")
def small():
    return recommend(SMALL, {"fixed": FixedDesigner(Mechanism(reserve_price=0.4))}, 16, 20)


@pytest.mark.slow
def test_the_same_seed_is_the_same_advice_to_the_bit(small):
    again = recommend(SMALL, {"fixed": FixedDesigner(Mechanism(reserve_price=0.4))}, 16, 20)
    assert again == small and again.to_json() == small.to_json() and advice_page(again) == advice_page(small)
    assert Advice.from_json(small.to_json()) == small


def test_what_is_recommended_obeys_and_gains_are_paired(small):
    best, today = small.row(), small.row("today")
    assert SMALL.brief.allows(best.rules) and not best.faults and small.yardstick == "today"
    assert today.gain == Estimate(value=0.0, low=0.0, high=0.0)
    for row in small.rows:
        assert row.gain.value == pytest.approx(row.score.value - today.score.value)
        assert row.price_gain.value == pytest.approx(row.price.value - today.price.value)
        assert row.gain.low <= row.gain.value <= row.gain.high and 80 <= row.price.value <= 120
        assert row.score.value == pytest.approx(0.7 * row.without_ring + 0.3 * row.with_ring)
        assert list(row.components) == list(COMPONENTS)
        assert bool(row.faults) != SMALL.brief.allows(row.rules)


def test_rules_that_do_as_well_are_named(small):
    row, rng = small.row(), np.random.default_rng(0)
    first, noise = np.full((16, 2), 0.5), rng.normal(0, 0.01, (16, 2))
    rows = [row, *(row.replace(name=name) for name in ("same", "worse")), row.replace(name="forbidden", faults=("x",))]
    scores = np.array([first, first + noise - noise.mean(0), first - 0.1 + noise, first])
    assert alike(rows, scores, 0.3) == ["same"]


def test_a_designer_that_breaks_the_brief_is_mended_and_that_is_said(small):
    """It plays a second price: a proposal is mended to the first price, and what it plays itself earns nothing."""
    assert small.obeyed == {"fixed": 0.0} and small.row("fixed").rules == Mechanism(auction_type="first_price", reserve_price=0.4)
    assert small.reacting["fixed"].value < -0.3


def test_threats_are_in_money_of_the_recommended_rules_and_the_yardstick(small):
    assert {each.name for each in small.threats} == {small.recommended, "today"}
    assert all(each.least <= each.gain <= each.most < 40 for each in small.threats)
    assert all(len(each.how) == studied.PROBED for each in small.threats)


def test_the_text_tells_money_and_what_is_left_out(small):
    text = advice_text(small)
    assert f"Recommended: {small.recommended}." in text and "ceiling price is at most 112.00 USD" in text
    assert "from 84.00 to 120.00 USD" in text and all(f"- {each}" in text for each in small.left_out)


def test_the_page_stands_alone_and_tells_its_figures(small):
    page = advice_page(small)
    assert not re.search(r"https?:|//[a-z]|<script|<link|@import|url\(", page)
    sources = re.findall(r"src=\"([^\"]{0,30})", page)
    assert len(sources) == 4 and all(source.startswith("data:image/svg+xml;base64,") for source in sources)
    assert all(len(words.split()) > 4 for words in re.findall(r"alt=\"([^\"]*)\"", page))
    assert all(title in page for title in ("The rules, in money", "Who could exploit them", "What the model leaves out"))


def test_words_of_an_owner_are_no_markup(small):
    enquiry = SMALL.replace(brief=SMALL.brief.replace(words="<script>alert(1)</script>"))
    assert "<script>" not in advice_page(small.replace(enquiry=enquiry))


# The command


def run(*words, cwd, **environment):
    return subprocess.run([*COMMAND, "design", *map(str, words)], capture_output=True, text=True, cwd=cwd,
                          env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"} | environment)


def test_help_tells_units_and_defaults(tmp_path):
    out = " ".join(run("--help", cwd=tmp_path).stdout.split())
    for text in ("2 to 64", "in money", "ISO 4217", "default: USD", "default: 64", "0 to 1", "--today JSON", "default: 2 to a half"):
        assert text in out


@pytest.mark.parametrize("words, says", [
    (["--bidders", "1"], "bidders must be a whole number from 2 to 64, not 1"),
    (["--bidders", "6", "--low", "9", "--high", "8"], "Trade: low must be below high (8), by one unit of USD at least, not 9"),
    (["--bidders", "6", "--currency", "usd"], "currency must be three capital letters, as in ISO 4217, not 'usd'"),
    (["--bidders", "6", "--draws", "2"], "--draws must be 16 or more, not 2"),
    (["--bidders", "6", "--seed", "-1"], "--seed must be 0 or more, not -1"),
    (["--bidders", "6", "--today", '{"format": 1}'], "Mechanism: 'format' is not a field; the fields are auction_type"),
    (["--bidders", "6", "--brief", "cheap"], "a brief is a text such as"),
    (["--bidders", "6", "--report", "missing/report.html"], "output 'missing/report.html' cannot be written"),
])
def test_a_mistake_is_one_sentence_before_anything_is_played(words, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["design", *words])
    assert done.exit_code == 2 and done.stderr.startswith(f"daedalus: {says}") and done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_command_advises_with_the_core_alone(tmp_path):
    """Without PyTorch the designer without language stands in, and the page says what was not asked."""
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise ModuleNotFoundError('no torch', name='torch')")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = run("--bidders", 4, "--units", 2, "--low", 10, "--high", 20, "--currency", "JPY", "--draws", 16,
               "--report", "report.html", "--output", "advice.json", cwd=tmp_path, PYTHONPATH=path)
    assert done.returncode == 0, done.stderr
    advice = Advice.from_json((tmp_path / "advice.json").read_text())
    assert f"Recommended: {advice.recommended}." in done.stdout and "written: report.html" in done.stdout
    assert "The trained designer was not asked" in advice.notes[0] and [*advice.obeyed] == ["designer without language"]
    page = (tmp_path / "report.html").read_text()
    assert "The trained designer was not asked" in page and "reserve price" in page and "http" not in page
