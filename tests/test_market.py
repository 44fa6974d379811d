"The market: reproducible to the bit, free of NaN, conserving value, with scores that mean what they say."
import json
import multiprocessing
import os
import re
import subprocess
import sys
import textwrap
import threading

import numba
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from shared import PATIENCE

from daedalus import _runtime as runtime
from daedalus.market import engine as market
from daedalus.market.auction import clear
from daedalus.market.bidders import BEHAVIOUR, FLIP, KINDS, MAX_BIDDERS, MOVES, SHILL, Population, PopulationError, read_rules
from daedalus.market.engine import (
    BID, KEEP, LOTS, METRICS, OUT, ROUNDS, SCORES, SIGNALS, MarketState, advance, new_market, open_market,
    outcomes_of, simulate, step)
from daedalus.market.noise import fill_uniforms
from daedalus.market.rewards import fairness, stability
from daedalus.schema import (
    AUCTION_TYPES, DEFAULT_MECHANISM, FIELDS, INFORMED_GREEDY, LEVERS, AmountLever, Mechanism, Objective)
from daedalus.studies.screens import suppression
from daedalus.market.record import watch

mechanisms = st.builds(Mechanism, **{
    name: st.floats(0, lever.top) if isinstance(lever, AmountLever) else st.sampled_from(lever.settings)
    for name, lever in LEVERS.items()})
share = st.floats(0, 1)


@st.composite
def populations(draw, most=6, **fixed):
    "A population of 1 to 12 bidders with any market parameters."
    who = draw(st.lists(st.sampled_from(KINDS), min_size=1, max_size=12).filter(lambda who: len(who) <= 2 * most))
    low, high = sorted(draw(st.lists(st.integers(0, 1000), min_size=2, max_size=2, unique=True)))
    traits = dict(n_items=draw(st.integers(1, 8)), second_unit=draw(share), return_rate=draw(share | st.sampled_from([0.0, 1.0])))
    return Population(value_low=low / 1000, value_high=high / 1000, **{kind: who.count(kind) for kind in KINDS}, **{**traits, **fixed})


def mixed(batch, seed=0):
    "A batch of random mechanisms and populations of many sizes, and their seeds."
    rng = np.random.default_rng(seed)
    return ([Mechanism.random(rng) for _ in range(batch)], [Population.random(rng) for _ in range(batch)], rng.integers(0, 2**63, (batch, 2)))


def same(one, other):
    "Do two tuples of arrays agree to the last bit?"
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def rows(outcomes, index):
    "Some episodes of a batch."
    return type(outcomes)(*(field[index] for field in outcomes))


# Same seed, same bits

def test_a_batch_of_1000_is_1000_batches_of_one_in_any_order():
    rules, who, seeds = mixed(1000)
    whole = simulate(rules, who, seeds, steps=2)
    order = np.random.default_rng(1).permutation(1000)
    shuffled = simulate([rules[i] for i in order], [who[i] for i in order], seeds[order], steps=2)
    assert same(rows(whole, order), shuffled)
    for i in [0, 1, 511, 512, 999, *order[:20]]:
        assert same(rows(whole, [i]), simulate(rules[i], who[i], seeds[[i]], steps=2))


def test_two_processes_give_the_bits_of_one():
    rules, who, seeds = mixed(40)
    half = slice(0, 20), slice(20, 40)
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        parts = pool.starmap(simulate, [(rules[part], who[part], seeds[part], 2) for part in half])
    whole = simulate(rules, who, seeds, steps=2)
    assert all(same(rows(whole, part), found) for part, found in zip(half, parts, strict=True))


INTERPRETED = """
import json, numpy as np
from daedalus.market.bidders import Population
from daedalus.market.engine import simulate
from daedalus.schema import Mechanism
rng = np.random.default_rng(5)
rules = [Mechanism.random(rng) for _ in range(12)]
who = [Population.random(rng) for _ in range(8)] + [Population.stage(stage) for stage in (0, 2, 3, 4)]
print(json.dumps([field.tolist() for field in simulate(rules, who, range(12), steps=3)]))
"""


def test_compiled_code_agrees_with_the_interpreter():
    def outcomes(**environment):
        run = subprocess.run([sys.executable, "-c", INTERPRETED], env={**os.environ, **environment}, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        return json.loads(run.stdout)

    compiled, interpreted = outcomes(NUMBA_DISABLE_JIT="0"), outcomes(NUMBA_DISABLE_JIT="1")
    for a, b in zip(compiled, interpreted, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-12)


def test_a_seed_is_a_seed_and_its_episode_0():
    alone = simulate(INFORMED_GREEDY, Population.stage(4), [7, 8], steps=1)
    assert same(alone, simulate(INFORMED_GREEDY, Population.stage(4), [[7, 0], [8, 0]], steps=1))
    for other in ([7, 1], [8, 0], [0, 7]):
        assert not same(rows(alone, [0]), simulate(INFORMED_GREEDY, Population.stage(4), [other], steps=1))


def test_one_value_for_all_is_the_same_value_for_each():
    who = Population.stage(3)
    each = simulate([INFORMED_GREEDY] * 5, [who] * 5, range(5), steps=2)
    assert same(each, simulate(INFORMED_GREEDY, who, range(5), steps=2))
    assert same(rows(each, [0] * 5), simulate([INFORMED_GREEDY] * 5, who, 0, steps=2))


def at_work(state, rules):
    "A market as its compiled functions see it: its numbers, its rules, and a floor whose bidders have chosen."
    rules, floor = read_rules(rules.to_array()), market.make_floor(state, market.open_accounts(state, 5))
    of = market.read_market(state.key[0], state.round[0], floor.kind, state.traits[0], rules)
    of = of._replace(key0=state.key[0, 0], key1=state.key[0, 1])   # compiled code hands uint64 back as int
    market.enter(of, rules, BEHAVIOUR, floor)
    market.choose(of, rules, BEHAVIOUR, floor)
    return of, rules, floor


def draws(who):
    "The values that the bidders of a population draw in the lots of a session, [LOTS, bidders]."
    of, rules, floor = at_work(new_market(who, 11), DEFAULT_MECHANISM)
    found = []
    for lot in range(LOTS):
        market.draw_bids(of, rules, lot, False, floor)
        found.append(floor.value[:of.n].copy())
    return np.array(found)


@pytest.mark.parametrize("n", [1, 7, 8, 15])
def test_one_bidder_more_does_not_change_what_the_others_draw(n):
    few, more = draws(Population(truthful=n)), draws(Population(truthful=n, exploiter=1))
    assert (few == more[:, :n]).all()
    assert len(np.unique(more)) == more.size


# The state

def test_a_state_continues_to_the_bit_after_a_copy_and_after_json():
    rules, who, seeds = mixed(30)
    state, _ = open_market(who, seeds)
    kept, written = state.copy(), json.dumps(state.to_dict())
    found = step(state, rules)
    assert not same(state, kept)
    assert same(found, step(kept, rules)) and same(state, kept)
    read = MarketState.from_dict(json.loads(written))
    assert [a.dtype for a in read] == [a.dtype for a in state]
    assert same(found, step(read, rules)) and same(state, read)


def test_an_episode_is_its_warm_up_and_its_steps():
    rules, who, seeds = mixed(30)
    state, _ = open_market(who, seeds)
    steps = [step(state, rules) for _ in range(3)]
    assert same(simulate(rules, who, seeds, steps=3), [np.stack(fields, 1) for fields in zip(*steps, strict=True)])


def test_a_state_depends_on_the_sessions_played_and_not_on_how_they_are_grouped():
    rules, who, seeds = mixed(30)
    state, other = new_market(who, seeds), new_market(who, seeds)
    advance(state, rules, 5)
    advance(other, rules, 2)
    advance(other, rules, 3)
    assert same(state, other) and (state.round == 5).all()


def test_reseeding_changes_only_the_future():
    state, _ = open_market(Population.stage(4), range(10))
    before, other = state.copy(), state.reseed(99)
    assert same(state, before) and same(tuple(state)[1:], tuple(other)[1:])
    assert same(state.reseed(range(10)), state)
    assert same(step(state.reseed(99), INFORMED_GREEDY), step(other, INFORMED_GREEDY))
    assert not same(step(before, INFORMED_GREEDY), step(state.reseed(99), INFORMED_GREEDY))


def test_rows_of_a_state_are_markets_of_their_own():
    rules, who, seeds = mixed(10)
    state, _ = open_market(who, seeds)
    taken = state.select([3, 3, 8])
    found, whole = step(taken, [rules[3], rules[3], rules[8]]), step(state, rules)
    assert same(found, rows(whole, [3, 3, 8])) and same(taken, state.select([3, 3, 8]))


# No NaN, and scores in their range

@settings(max_examples=150)
@given(mechanisms, populations(), st.integers(0, 2**64 - 1))
def test_every_market_has_defined_scores(rules, who, seed):
    state = new_market(who, seed)
    scores = advance(state, rules, 8)[0]
    assert np.isfinite(scores).all() and all(np.isfinite(array).all() for array in state)
    named = dict(zip(METRICS, scores.T, strict=True))
    for name in (*SCORES[:5], "silence", "returns", "unsold", "gap", "shading", "trust"):
        assert (0 <= named[name]).all() and (named[name] <= 1).all(), name
    assert (named["revenue"] >= 0).all() and (named["price"] >= 0).all() and (named["dispersion"] >= 0).all()
    factors = [named[name] for name in SCORES[:4]]
    assert (named["reward"] == factors[0] * factors[1] * factors[2] * factors[3]).all()
    assert (named["reward"] <= np.min(factors, 0)).all()
    assert (named["reward"][named["unsold"] == 1] == 0).all()


@given(mechanisms, populations(), st.integers(0, 2**63))
def test_every_episode_has_defined_outcomes(rules, who, seed):
    out = simulate(rules, who, seed, steps=2)
    assert all(np.isfinite(field).all() and field.shape[:2] == (1, 2) for field in out)
    for name in SCORES[:5]: assert (0 <= getattr(out, name)).all() and (getattr(out, name) <= 1).all(), name
    assert (out.signals[..., 0] == who.bidders).all() and (out.signals[..., 1] == who.n_items).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bidders", range(1, MAX_BIDDERS + 1))
def test_participation_is_a_share_whatever_the_number_of_bidders(kind, bidders):
    scores = advance(new_market(Population(**{kind: bidders}), 0), Mechanism(reserve_price=0.0), 1)[0, 0]
    assert 0 <= scores[SCORES.index("participation")] <= 1
    assert kind != "truthful" or scores[SCORES.index("participation")] == pytest.approx(1, abs=1e-14)


# Bid suppression

@settings(max_examples=150)
@given(mechanisms, populations(), st.integers(0, 2**32), st.integers(1, 3))
def test_suppression_is_the_screen_of_who_bid_where_in_the_whole_step(rules, who, seed, steps):
    state, _ = open_market(who, seed)
    for _ in range(steps - 1): advance(state, rules)
    bids = np.array([watch(state, rules, rounds=at + 1).bid for at in range(ROUNDS)])
    screened = suppression((bids > 0) & (bids >= rules.reserve_price))
    expected = 0.0 if np.isnan(screened) else max(0.0, -screened)
    assert step(state, rules).signals[0, -1] == pytest.approx(expected, abs=1e-12)


def test_a_silent_ring_of_two_by_hand():
    # The ring meets in all five sessions: with b bids of one member and 16 - b of the other the pair is never seen
    # together, against v = b (16 - b) / 16 times on average, with variance v^2 / 15.
    rules = Mechanism(reserve_price=0.0, coalition_policy="allow", reveal_competing_bids=True, reveal_winner_identity=True)
    state, _ = open_market(Population(colluder=2), range(200))
    for _ in range(4): advance(state, rules)
    leader = np.array([[watch(state, rules, at, r + 1).leader for r in range(ROUNDS)] for at in range(200)])
    met = (leader >= 0).all((1, 2))
    b = (leader[met] == 0).sum(-1)
    v = b * (16 - b) / 16
    assert met.all()
    assert step(state, rules).signals[met, -1] == pytest.approx(v.sum(1) / np.sqrt((v ** 2).sum(1) / 15))


def test_truthful_bidders_above_a_low_reserve_leave_nothing_to_suspect():
    out = simulate(Mechanism(reserve_price=0.0), Population(truthful=6), range(20), steps=2)
    assert (out.signals[..., -1] == 0).all()


# Markets in which nothing happens

def empty(out, but=()):
    "Is this a market without trade, scored 0?"
    names = {"welfare", "fairness", "participation", "reward", "revenue"} - set(but)
    return all((getattr(out, name) == 0).all() for name in names)


@given(mechanisms, populations())
def test_a_reserve_above_every_value_is_scored_zero(rules, who):
    who = who.replace(value_low=who.value_low / 4, value_high=who.value_high / 4)
    assert empty(simulate(rules.replace(reserve_price=0.9), who, 0, steps=2))


@given(mechanisms, st.integers(1, 5), st.integers(1, 3))
def test_a_market_that_everybody_stays_out_of_is_scored_zero(rules, bidders, n_items):
    who = Population(dropout=bidders, n_items=n_items)
    assert empty(simulate(rules, who, range(3), steps=2, behaviour=BEHAVIOUR._replace(entry_cost=1e3)))


@given(st.integers(1, 12), st.integers(1, 4))
def test_trade_without_surplus_is_scored_zero(bidders, n_items):
    who = Population(truthful=bidders, n_items=n_items, return_rate=0.0)
    out = simulate(Mechanism(auction_type="first_price", reserve_price=0.0), who, range(3), steps=2)
    assert (out.welfare == 1).all() and (out.participation > 0.99).all()
    assert (out.fairness == 0).all() and (out.reward == 0).all()


@pytest.mark.parametrize("auction_type", ["second_price", "vcg"])
def test_one_bidder_buys_everything_at_the_reserve(auction_type):
    who = Population(truthful=1, return_rate=0.0)
    out = simulate(Mechanism(auction_type=auction_type, reserve_price=0.2), who, range(3))
    for name in SCORES[:5]: assert (getattr(out, name) == 1).all()
    assert out.revenue == pytest.approx(0.2)


def test_a_unit_that_is_always_worthless_goes_back_unless_that_costs_more():
    who = Population(truthful=1, return_rate=1.0)
    free = simulate(Mechanism(reserve_price=0.2), who, range(3))
    fined = simulate(Mechanism(reserve_price=0.2, withdrawal_penalty=3.0), who, range(3))
    returns = SIGNALS.index("returns")
    assert empty(free, but=["participation"]) and (free.signals[..., returns] == 1).all()
    assert empty(fined, but=["participation", "revenue"]) and (fined.signals[..., returns] == 0).all()
    assert fined.revenue == pytest.approx(0.2)


def test_a_second_unit_that_is_worth_nothing_stays_unsold():
    who = Population(truthful=2, n_items=4, second_unit=0.0, return_rate=0.0)
    out = simulate(Mechanism(reserve_price=0.0), who, range(3))
    assert (out.signals[..., SIGNALS.index("unsold")] == 0.5).all() and (out.welfare == 1).all()


def test_an_empty_batch_plays_to_an_empty_array():
    state = new_market([Population.stage(0)] * 2, range(2)).select([])
    assert advance(state, DEFAULT_MECHANISM).shape == (0, 5, len(METRICS))


# What a round is made of

def replay(rules, who, seed, rounds):
    "The first four scores and the revenue of truthful bidders who keep what they buy, worked out lot by lot with `clear`."
    n, items, decay = who.bidders, who.n_items, who.second_unit if who.n_items > 1 else 0.0
    surplus, welfare, found = np.zeros(n), [], []
    for now in range(rounds):
        value = np.empty((LOTS, n + 8))
        for lot in range(LOTS): fill_uniforms(value[lot], n, np.uint64(seed), np.uint64(0), now, market.VALUES, lot)
        value = who.value_low + (who.value_high - who.value_low) * value[:, :n]
        bids = np.stack([value, decay * value], 2)
        units, payments = clear(bids, rules.auction_type, items, rules.reserve_price)
        worth = bids[:, :, 0] * (units > 0) + bids[:, :, 1] * (units > 1)
        best = np.sort(bids.reshape(LOTS, -1))[:, -items:].sum(1)
        surplus += (worth - payments).sum(0)
        welfare.append(np.mean(worth.sum(1) / best))
        spread = np.abs(surplus[:, None] - surplus).sum() / (2 * n * surplus.sum()) if surplus.sum() > 1e-9 else 1.0
        entered = np.mean((value >= rules.reserve_price).any(0))
        found.append([welfare[-1], 1 - spread, entered, max(0, 1 - 2 * np.std(welfare[-5:])), payments.sum() / LOTS])
    return np.array(found)


@given(mechanisms, populations(return_rate=0.0), st.integers(0, 2**64 - 1))
def test_a_market_of_truthful_bidders_can_be_replayed_by_hand(rules, who, seed):
    who = Population(**{**dict(who), **dict.fromkeys(KINDS, 0), "truthful": who.bidders})
    rules = rules.replace(coalition_policy="allow", shill_penalty=0.0)
    scores = advance(new_market(who, seed), rules, 7)[0]
    np.testing.assert_allclose(scores[:, [0, 1, 2, 3, 5]], replay(rules, who, seed, 7), rtol=0, atol=1e-9)


@given(mechanisms, populations(), st.integers(0, 2**63))
def test_trade_makes_and_loses_no_money(rules, who, seed):
    "On every lot, what buyers gain is the value they realise, less what the seller gets and less fines."
    state, _ = open_market(who, seed)
    of, rules, floor = at_work(state, rules)
    meets = market.ring_meets(of, rules, BEHAVIOUR, floor)
    for return_draws, stream in ((floor.return_draws, market.REMORSE), (floor.offers, market.RESALE)):
        fill_uniforms(return_draws, LOTS * of.items, of.key0, of.key1, of.now, stream, 0)
    for lot in range(LOTS):
        floor.net[:], floor.tally[:] = 0.0, 0.0
        market.draw_bids(of, rules, lot, meets, floor)
        market.list_bids(of, rules, floor)
        realised = market.trade(of, rules, BEHAVIOUR, lot, floor, None)
        seller, fines = floor.tally[market.REVENUE], of.withdrawal_fine * floor.tally[market.RETURNED]
        assert floor.net.sum() == pytest.approx(realised - seller - fines, abs=1e-9)
        assert 0 <= floor.tally[market.RETURNED] <= floor.tally[market.SOLD] <= of.items


@given(mechanisms, populations(), st.integers(0, 2**63), st.booleans())
def test_audits_fine_entrants_and_nobody_gains(rules, who, seed, meets):
    of, rules, floor = at_work(new_market(who, seed), rules)
    floor.present[::2] = 0
    market.audit(of, rules, BEHAVIOUR, meets, floor)
    assert (floor.net[::2] == 0).all() and (floor.net <= 0).all()
    idle = rules.coalition_policy == 0 and rules.shill_penalty == 0
    assert not idle or not floor.net.any()


# Scores

@pytest.mark.parametrize("surplus, score", [
    ([1, 1, 1, 1], 1), ([5], 1), ([1, 3], 0.75), ([1, 0, 0, 0], 0.25), ([0, 2, -7, -0.5], 0.25), ([1, 2, 3], 7 / 9),
    ([0, 0], 0), ([-1, -2], 0), ([-3], 0)])
def test_fairness_by_hand(surplus, score):
    assert fairness(np.array(surplus, float)) == pytest.approx(score, abs=1e-15)


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=20))
def test_fairness_is_one_less_the_gini_index(surplus):
    gains = np.maximum(surplus, 0)
    if gains.sum() <= 1e-9: assert fairness(np.array(surplus)) == 0
    else:
        rank, n = np.arange(1, len(gains) + 1), len(gains)
        gini = (2 * (rank * np.sort(gains)).sum() / gains.sum() - n - 1) / n   # from ranks, not from differences
        assert fairness(np.array(surplus)) == pytest.approx(1 - gini, abs=1e-12)
        assert 1 / n - 1e-12 <= fairness(np.array(surplus)) <= 1


@pytest.mark.parametrize("welfare, score", [
    ([0.4], 1), ([0.7, 0.7, 0.7], 1), ([0.5, 0.7], 0.8), ([0, 1], 0), ([0, 0, 1, 1, 1, 1, 1], 1), ([1, 0, 0, 0, 0], 0.2),
    ([9, 0.5, 0.5, 0.5, 0.5, 0.7], 0.84)])
def test_stability_by_hand(welfare, score):
    assert stability(np.array(welfare, float)) == pytest.approx(score, abs=1e-12)


@given(st.lists(share, min_size=1, max_size=12))
def test_stability_is_one_less_two_standard_deviations(welfare):
    assert stability(np.array(welfare)) == pytest.approx(max(0, 1 - 2 * np.std(welfare[-5:])), abs=1e-12)


# Objectives

exponents = st.floats(0, 3) | st.integers(0, 3)


@settings(max_examples=100)
@given(populations(), mechanisms, st.integers(0, 2**32), st.tuples(*[exponents] * 5).filter(any))
def test_the_reward_is_the_product_of_the_scores_to_the_powers_of_the_objective(who, rules, seed, powers):
    objective = Objective(**dict(zip(Objective.model_fields, powers)))
    one, other = (open_market([who], seed)[0] for _ in range(2))
    rounds = advance(one, rules)[:, -3:]
    found, published = outcomes_of(one, rounds, objective), outcomes_of(one, rounds)
    assert same(found._replace(reward=0), published._replace(reward=0))
    columns = [rounds[..., METRICS.index(name)] for name in ("welfare", "fairness", "participation", "stability")]
    share = np.minimum(1, rounds[..., METRICS.index("revenue")] / rounds[..., METRICS.index("best")])
    expected = np.prod([column ** power for column, power in zip([*columns, share], powers)], 0) * (columns[0] > 0)
    assert found.reward == pytest.approx(expected.mean(1), abs=1e-12)
    assert found.revenue_share == share.mean(1) and 0 <= found.reward[0] <= 1
    published_by_hand = (columns[0] * columns[1] * columns[2] * columns[3]).mean(1)
    assert published.reward == published_by_hand == step(other, rules, objective=Objective(revenue=0)).reward


@settings(max_examples=60)
@given(populations(), mechanisms, st.integers(0, 2**32))
def test_the_best_value_of_a_round_is_the_mean_over_its_lots(who, rules, seed):
    state, _ = open_market([who], seed)
    seen = watch(state, rules)
    assert seen.scores[METRICS.index("best")] == pytest.approx(seen.best.mean(), rel=1e-12)


@pytest.mark.parametrize("wanted", Objective.model_fields)
def test_an_empty_market_scores_0_under_every_objective(wanted):
    objective = Objective(**dict.fromkeys(Objective.model_fields, 0.0) | {wanted: 1.0})
    shut = simulate(Mechanism(reserve_price=0.9), Population(truthful=4, value_high=0.5), 0, 2, objective=objective)
    assert (shut.reward == 0).all() and (shut.revenue_share == 0).all()


@pytest.mark.parametrize("wrong, complaint", [
    ({"welfare": 4}, "welfare must be a number from 0 to 3, not 4"),
    ({"revenue": -1}, "revenue must be a number from 0 to 3, not -1"),
    (dict.fromkeys(Objective.model_fields, 0), "at least one exponent must be above 0, not all 0"),
    ({"profit": 1}, "profit"),
])
def test_exponents_that_are_none_are_refused(wrong, complaint):
    with pytest.raises(ValueError, match=complaint):
        Objective(**wrong)


def test_what_is_no_objective_is_refused():
    with pytest.raises(ValueError, match="objective must be an Objective, not 'revenue'"):
        simulate(DEFAULT_MECHANISM, Population.stage(0), 0, 1, objective="revenue")


# Rules matter, and equal rules are equal

@given(mechanisms, populations(n_items=1), st.integers(0, 2**63))
def test_vcg_is_second_price_bit_for_bit_at_one_item(rules, who, seed):
    vcg, second = (simulate(rules.replace(auction_type=kind), who, seed, steps=2) for kind in ("vcg", "second_price"))
    assert same(vcg, second)


CROWD = Population(truthful=2, shader=2, dropout=2, colluder=3, exploiter=3, n_items=2)
BASE = Mechanism(reserve_price=0.4, collusion_penalty=1.0, coalition_policy="penalize_suspected", reveal_clearing_price=False)


@pytest.mark.parametrize("lever", FIELDS)
def test_every_lever_changes_what_bidders_do_or_get(lever):
    every, top = LEVERS[lever].settings, LEVERS[lever].top
    settings_ = (0.0, top / 2, top) if isinstance(LEVERS[lever], AmountLever) else every
    rewards = [simulate(BASE.replace(**{lever: setting}), CROWD, range(50), steps=2).reward for setting in settings_]
    assert all(not np.array_equal(a, b) for i, a in enumerate(rewards) for b in rewards[:i])


@given(mechanisms, st.sampled_from(["allow", "restrict"]))
def test_the_collusion_penalty_is_idle_under_a_policy_that_does_not_fine(rules, policy):
    rules = rules.replace(coalition_policy=policy)
    assert same(*(simulate(rules.replace(collusion_penalty=x), CROWD, 0, steps=1) for x in (0.0, 3.0)))


# Bad input

ONE, TWO, STAGE = DEFAULT_MECHANISM, [DEFAULT_MECHANISM] * 2, Population.stage(0)


@pytest.mark.parametrize("arguments, sentence", [
    (dict(mechanisms=TWO, seeds=[1, 2, 3]), "mechanisms must be one for all or one for each of the 3 markets, not 2"),
    (dict(populations=[STAGE] * 2, seeds=[1, 2, 3]), "populations must be one for all or one for each of the 3 markets, not 2"),
    (dict(mechanisms=TWO * 2, seeds=[1, 2]), "seeds must be .* one for each of the 4 markets"),
    (dict(mechanisms=[]), "mechanisms must be one for all or one for each of the 1 markets, not 0"),
    (dict(populations=[]), "populations must be one for all or one for each of the 1 markets, not 0"),
    (dict(seeds=[]), "seeds must be "),
    (dict(seeds=-1), r"seeds must be whole numbers from 0, not \[-1\]"),
    (dict(seeds=[3, -1]), r"seeds must be whole numbers from 0, not \[3, -1\]"),
    (dict(seeds=1.0), "seeds must be "),
    (dict(seeds="1"), "seeds must be "),
    (dict(seeds=None), "seeds must be "),
    (dict(seeds=True), "seeds must be "),
    (dict(seeds=2**64), "seeds must be "),
    (dict(seeds=[[1, 2, 3]]), "seeds must be "),
    (dict(seeds=[[1, 2], [3]]), "seeds must be "),
    (dict(steps=0), "steps must be .*at least 1, not 0"),
    (dict(steps=-2), "steps must be .*at least 1, not -2"),
    (dict(steps=1.5), "steps must be .*not 1.5"),
    (dict(steps="2"), "steps must be .*not '2'"),
    (dict(steps=None), "steps must be .*not None"),
    (dict(mechanisms=None), "mechanisms must "),
    (dict(mechanisms="vcg"), "mechanisms must "),
    (dict(mechanisms=[None]), "mechanisms must "),
    (dict(mechanisms=[ONE.to_json()]), "mechanisms must "),
    (dict(mechanisms=STAGE), "mechanisms must "),
    (dict(populations=None), "populations must "),
    (dict(populations=8), "populations must "),
    (dict(populations=["stage 0"]), "populations must "),
    (dict(populations=ONE), "populations must "),
])
def test_wrong_arguments_are_refused_in_one_sentence(arguments, sentence):
    with pytest.raises((ValueError, TypeError), match=f"^{sentence}") as caught:
        simulate(**{"mechanisms": ONE, "populations": STAGE, "seeds": 0, "steps": 1, **arguments})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("wrong", [0, -1, 1.5, "2"])
def test_rounds_are_a_whole_number_from_1(wrong):
    with pytest.raises((ValueError, TypeError), match="^rounds must be .*at least 1, not "):
        advance(new_market(STAGE, 0), ONE, wrong)


@pytest.mark.parametrize("fields, sentence", [
    (dict(), "the counts must add up to 1 to 64 bidders, not 0"),
    (dict(truthful=40, shader=40), "the counts must add up to 1 to 64 bidders, not 80"),
    *((({kind: -1}), f"{kind} must be a whole number from 0 to 64, not -1") for kind in KINDS),
    (dict(truthful=65), "truthful must be a whole number from 0 to 64, not 65"),
    (dict(truthful=2.0), "truthful must be a whole number from 0 to 64, not 2.0"),
    (dict(truthful="2"), "truthful must be a whole number from 0 to 64, not '2'"),
    (dict(n_items=0), "n_items must be a whole number from 1 to 8, not 0"),
    (dict(n_items=9), "n_items must be a whole number from 1 to 8, not 9"),
    (dict(value_low=0.5, value_high=0.5), r"value_low must be below value_high \(0.5\), not 0.5"),
    (dict(value_low=0.9, value_high=0.5), r"value_low must be below value_high \(0.5\), not 0.9"),
    (dict(value_low=-0.1), "value_low must be a number from 0 to 1, not -0.1"),
    (dict(value_high=1.1), "value_high must be a number from 0 to 1, not 1.1"),
    (dict(value_low=float("nan")), "value_low must be a number from 0 to 1, not nan"),
    (dict(value_low="0.3"), "value_low must be a number from 0 to 1, not '0.3'"),
    (dict(second_unit=2), "second_unit must be a number from 0 to 1, not 2"),
    (dict(return_rate=float("inf")), "return_rate must be a number from 0 to 1, not inf"),
    (dict(return_rate=True), "return_rate must be a number from 0 to 1, not True"),
    (dict(bidders=3), "'bidders' is not a field; the fields are truthful, shader, "),
])
def test_a_wrong_population_is_refused_in_one_sentence(fields, sentence):
    with pytest.raises(PopulationError, match=sentence) as caught:
        Population(**{"truthful": 2} | fields if fields else {})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("wrong", [-1, 5, 1.5, "a", None, [1]])
def test_there_are_five_stages(wrong):
    with pytest.raises(PopulationError, match="^stage must be 0, 1, 2, 3 or 4, not "):
        Population.stage(wrong)


# Populations

@pytest.mark.parametrize("stage", range(5))
def test_a_stage_turns_two_more_truthful_bidders_into_the_next_type(stage):
    who = Population.stage(stage)
    assert who.counts == (8 - 2 * stage,) + (2,) * stage + (0,) * (4 - stage)
    assert who.bidders == 8 and np.bincount(who.kinds(), minlength=5).tolist() == list(who.counts)


@given(st.integers(0, 2**32))
def test_a_random_population_is_one_of_the_open_distribution(seed):
    who = Population.random(seed)
    assert 4 <= who.bidders <= 12 and 1 <= who.n_items <= 3
    assert who == Population.random(np.random.default_rng(seed)) == Population.from_json(who.to_json())


def test_a_new_market_has_learned_nothing():
    state = new_market([Population.stage(4), Population(truthful=3, n_items=2)], 5)
    assert state.log_weight.shape == (2, 8, MOVES) and not state.log_weight.any() and not state.round.any()
    assert state.kind[1].tolist() == [0, 0, 0, -1, -1, -1, -1, -1]
    assert (state.belief[:, market.TRUST] == 0).all() and (state.belief[:, market.OUTLOOK] == 1).all()


@pytest.mark.parametrize("auction_type", AUCTION_TYPES)
def test_a_ring_trusts_only_where_it_can_meet(auction_type):
    trust = METRICS.index("trust")
    open_rules = Mechanism(auction_type=auction_type, reserve_price=0.0, reveal_competing_bids=True, reveal_winner_identity=True)
    alone = advance(new_market(Population(truthful=3, colluder=1), range(5)), open_rules, 10)
    pair = advance(new_market(Population(truthful=1, colluder=3), range(5)), open_rules, 10)
    assert (alone[..., trust] == 0).all() and (pair[:, -1, trust] > 0).all()


# Agents

class Told:
    "Agents that do the same in every session, and note what they are shown."
    def __init__(self, acts): self.acts, self.rounds, self.nets = acts, [], []

    def act(self, state, rows): return self.acts

    def learn(self, state, rows, accounts):
        self.rounds.append(state.round.copy())
        self.nets.append(accounts.net.copy())
        self.surplus = accounts.surplus


def drawn_acts(state, seed):
    "Random acts for the seats of some markets."
    rng, shape = np.random.default_rng(seed), state.kind.shape
    return np.stack([rng.choice([KEEP, BID, OUT, FLIP, SHILL], shape), *rng.random((2, *shape)), 0.1 * rng.random(shape)], 2)


@settings(max_examples=50)
@given(populations(), mechanisms, st.integers(0, 2**32))
def test_agents_that_keep_leave_every_bit_as_it_is(who, rules, seed):
    alone, among = (new_market(who, [seed, seed + 1]) for _ in range(2))
    nobody = Told(np.zeros((*among.kind.shape, 4)))
    assert np.array_equal(advance(alone, rules, 4), advance(among, rules, 4, agents=nobody))
    assert same(alone, among)


@settings(max_examples=50)
@given(st.builds(Population, truthful=st.integers(1, 8), n_items=st.integers(1, 4)), mechanisms, st.integers(0, 2**32))
def test_the_truth_told_is_the_truth(who, rules, seed):
    alone, among = (new_market([who], seed) for _ in range(2))
    truth = Told(np.tile([BID, 1.0, 1.0, 0.0], (1, who.bidders, 1)))
    assert np.array_equal(advance(alone, rules, 4), advance(among, rules, 4, agents=truth))


@pytest.mark.parametrize("batch", [1, 70])
def test_agents_are_shown_every_session_and_any_number_of_threads_gives_the_same_bits(batch):
    rules, who, seeds = mixed(batch)
    played = []
    for threads in (1, 3):
        state = new_market(who, seeds)
        agents = Told(drawn_acts(state, 5))
        with runtime.use_threads(threads):
            scores = advance(state, rules, 4, agents=agents)
        assert [set(rounds.tolist()) for rounds in agents.rounds] == [{1}, {2}, {3}, {4}]
        assert agents.surplus == pytest.approx(sum(agents.nets), abs=1e-12)
        played.append((scores, *state, *agents.nets))
    assert same(*played)
    assert not np.array_equal(played[0][0], advance(new_market(who, seeds), rules, 4))


def test_a_seat_that_is_told_to_stay_out_earns_nothing_and_lowers_participation():
    who, rules = Population.stage(0), DEFAULT_MECHANISM.replace(reserve_price=0.0)
    away = Told(np.zeros((1, who.bidders, 4)))
    away.acts[0, 0, 0] = OUT
    scores = advance(new_market([who], 0), rules, 4, agents=away)
    assert not sum(away.nets)[0, 0] and (sum(away.nets)[0, 1:] > 0).all()
    assert (scores[0, :, METRICS.index("participation")] == 1 - 1 / who.bidders).all()


@pytest.mark.parametrize("acts, complaint", [
    (np.zeros((1, 7, 4)), r"acts must be an array of shape \(1, 8, 4\), not \(1, 7, 4\)"),
    (np.full((1, 8, 4), 3.0), "an act must be one of 0, 1, 2, 11, 12, not 3"),
    (np.full((1, 8, 4), np.nan), "acts must be finite numbers"),
])
def test_acts_that_are_none_are_refused(acts, complaint):
    with pytest.raises(ValueError, match=complaint):
        advance(new_market([Population.stage(0)], 0), DEFAULT_MECHANISM, agents=Told(acts))


STEPS_OF_A_SESSION = ("enter", "choose", "ring_meets", "draw_bids", "list_bids", "trade", "sell_again", "pay_shill", "best_welfare",
                      "ring_saving", "look_back", "trade_session", "audit", "learn_arms", "learn_beliefs", "write_scores", "session")


@pytest.mark.parametrize("name", STEPS_OF_A_SESSION)
def test_the_loop_of_the_engine_is_written_once(name):
    "No module but the engine calls a step of a session, and that in one place."
    called = [path.stem for path in runtime.PACKAGE.rglob("*.py")
              for _ in re.findall(rf"(?<!def )(?<![\w.]){name}\((?:market|rules|behaviour),? ", path.read_text(encoding="utf-8"))]
    assert called == ["engine"]


# Threads


@pytest.mark.parametrize("threads", [2, 3, 7, None])
@pytest.mark.parametrize("batch", [1, 70, 130])
def test_any_number_of_threads_gives_the_same_bits(threads, batch):
    one, other = (simulate(*mixed(batch), 3, threads=number) for number in (1, threads))
    assert all((a == b).all() for a, b in zip(one, other, strict=True))


def test_a_large_batch_is_shared_among_threads_and_each_share_keeps_to_its_own(monkeypatch):
    inside, play, meet = set(), market.play, threading.Barrier(3)

    def noted(*arguments):
        inside.add((threading.get_ident(), runtime.thread_count()))
        meet.wait(PATIENCE)   # three threads are in it at the same time
        play(*arguments)

    monkeypatch.setattr(market, "play", noted)
    simulate(*mixed(130), 1, threads=3)
    assert len(inside) == 3
    assert {count for _, count in inside} == {1}
    inside.clear()
    meet = threading.Barrier(1)
    simulate(*mixed(20), 1, threads=3)   # fewer than are worth a second thread
    assert len(inside) == 1


def test_threads_are_those_of_numba_unless_chosen():
    assert runtime.thread_count() == numba.config.NUMBA_NUM_THREADS
    with runtime.use_threads(2), runtime.use_threads(None):
        assert runtime.thread_count() == 2
    with runtime.use_threads(np.int64(2)):
        assert runtime.thread_count() == 2


@pytest.mark.parametrize("threads", [0, -1, 1.5, True, "2"])
def test_no_number_of_threads_is_refused_in_one_sentence(threads):
    with pytest.raises(ValueError, match=r"^threads must be a whole number of at least 1, or None .*, not"):
        simulate(DEFAULT_MECHANISM, Population.stage(0), 0, threads=threads)


@pytest.mark.parametrize("count, threads, least, most", [(0, 2, 1, None), (1, 4, 32, 512), (100, 2, 32, 512), (5000, 2, 32, 512), (63, 9, 32, None)])
def test_shares_cover_a_batch_in_order(count, threads, least, most):
    with runtime.use_threads(threads):
        parts = runtime.shares(count, least, most)
    assert [at for part in parts for at in range(count)[part]] == list(range(count))
    assert all(part.stop - part.start <= (most or count) for part in parts)
    assert sum(part.stop - part.start < least for part in parts) <= 1


def test_an_error_in_a_share_reaches_the_caller():
    def fails(part):
        raise ZeroDivisionError(part.start)

    with runtime.use_threads(2), pytest.raises(ZeroDivisionError):
        runtime.in_threads(fails, runtime.shares(100))


def test_a_forked_process_can_share_a_batch_too():
    """Threads do not survive a fork: none are kept from one call to the next."""
    code = """
    import os, warnings
    warnings.simplefilter("ignore", DeprecationWarning)
    import daedalus as dd
    def play(): return dd.simulate(dd.DEFAULT_MECHANISM, dd.Population.stage(0), list(range(70)), 1, threads=2).reward.sum()
    here, child = play(), os.fork()
    if not child: os._exit(0 if play() == here else 1)
    print(os.waitpid(child, 0)[1])
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=PATIENCE, check=True)
    assert done.stdout.strip() == "0"
