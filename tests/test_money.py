"""Money and procurement: round trips, mirrored prices, and refusals in one sentence."""

from decimal import Decimal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from daedalus.market.auction import clear
from daedalus.market.engine import LOTS
from daedalus.market.money import DIGITS, Trade, population_of, reserve_of, rules_in_money, to_engine, to_money
from daedalus.schema import Mechanism

AMOUNTS = st.integers(0, 10**9)


@given(low=AMOUNTS, width=st.integers(1, 10**9), part=st.floats(0, 1), procurement=st.booleans(),
       currency=st.sampled_from(["USD", "EUR", "JPY", "KWD"]))
def test_an_amount_comes_back_as_it_was_typed(low, width, part, procurement, currency):
    unit = Decimal(1).scaleb(-DIGITS.get(currency, 2))
    typed = (low + round(part * width)) * unit
    trade = Trade(low=float(low * unit), high=float((low + width) * unit), currency=currency, procurement=procurement)
    there = to_engine(trade, float(typed))
    assert to_money(trade, there) == typed
    assert -1e-9 <= there <= 1 + 1e-9


@pytest.mark.parametrize("n", [2, 3, 6])
def test_a_procurement_costs_what_the_lowest_ask_says(n):
    tender = Trade(low=80, high=120, currency="EUR", procurement=True)
    costs = np.random.default_rng(n).uniform(80, 120, (500, n))
    bids = (120 - costs) / 40 * (n - 1) / n
    sold = clear(bids, "first_price")
    asks = costs + (120 - costs) / n
    assert (sold.units.argmax(1) == asks.argmin(1)).all()
    for price, ask in zip(sold.payments.sum(1), asks.min(1)):
        assert abs(to_money(tender, price) - Decimal(ask)) <= Decimal("0.005000001")


def test_a_reserve_price_becomes_a_ceiling():
    tender = Trade(low=80, high=120, procurement=True)
    ceiling = reserve_of(tender, 110)
    assert ceiling == pytest.approx(0.25)
    asks = np.array([[105.0, 112.0], [111.0, 112.0]])
    sold = clear((120 - asks) / 40, "second_price", reserve=ceiling)
    assert sold.units.tolist() == [[1, 0], [0, 0]]     # who asks more than the ceiling is out
    assert to_money(tender, sold.payments[0, 0]) == Decimal("110.00")


def test_a_sale_keeps_the_ratio_of_values():
    market = population_of(Trade(low=30, high=120), truthful=3)
    assert (market.value_low, market.value_high) == (0.25, 1.0)
    assert population_of(Trade(low=30, high=120, procurement=True), truthful=3).value_low == 0


def test_fines_by_hand():
    """Six bidders, values from 60 to 120: the surplus of a bidder in a lot is 60 / 42."""
    rules = rules_in_money(Trade(low=60, high=120), Mechanism(withdrawal_penalty=1.0, collusion_penalty=2.0, shill_penalty=0.5,
                                                              reserve_price=0.5), 6)
    assert rules == {"reserve price": "60.00 USD", "fine for a false bid": f"{0.5 * LOTS * 60 / 42:.2f} USD",
                     "fine for handing back": f"{6 * 60 / 42:.2f} USD", "fine for bidding as a ring": f"{2 * LOTS * 60 / 42:.2f} USD"}
    assert "ceiling price" in rules_in_money(Trade(low=60, high=120, procurement=True), Mechanism(), 6)


@pytest.mark.parametrize(("wrong", "says"), [
    (dict(low=120, high=80), r"low must be below high \(80\), by one unit of USD at least, not 120"),
    (dict(low=120, high=80, procurement=True), r"low must be below high \(80\), by one unit of USD at least, not 120"),
    (dict(low=1, high=1.001), "low must be below high"),
    *[(dict(low=1, high=2, currency=wrong), f"^currency must be three capital letters, as in ISO 4217, not {wrong!r}$")
      for wrong in ("US", "usd", "", 3)],
    *[(dict(low=wrong, high=2), f"^low must be a number from 0 to 1000000000000, not {wrong!r}$") for wrong in (-1, float("nan"), "1")],
    (dict(low=1, high=1e13), "^high must be a number from 0 to 1000000000000, not 10000000000000.0$"),
    (dict(low=1, high=2, procurement=1), "procurement"), (dict(low=1, high=2, floor=1), "floor")])
def test_a_wrong_trade_gets_one_sentence(wrong, says):
    with pytest.raises(ValueError, match=says) as error:
        Trade(**wrong)
    assert "\n" not in str(error.value) and len(str(error.value)) < 200


@pytest.mark.parametrize(("procurement", "price", "allowed"), [
    (False, 110, "reserve price must be from 0.00 USD to 108.00 USD, not 110.00 USD"),
    (True, 83, "ceiling price must be from 84.00 USD to 120.00 USD, not 83.00 USD"),
    (True, 121, "ceiling price must be from 84.00 USD to 120.00 USD, not 121.00 USD")])
def test_a_price_beyond_the_lever_is_refused_in_money(procurement, price, allowed):
    with pytest.raises(ValueError) as error:
        reserve_of(Trade(low=80, high=120, procurement=procurement), price)
    assert allowed in str(error.value)
