"""Bidders that users register: by name in every population, shown what their seat may see, the same bits everywhere."""

import json
import pickle
import re
import subprocess
import sys
from pathlib import Path

import numba
import numpy as np
import pytest
from shared import additions

import daedalus as dd
from daedalus._runtime import ADDED
from daedalus.env import SUITES
from daedalus.jobs import Job, job_name
from daedalus.market.bidders import BIDDERS, KINDS, BidderError, bidder_number, bidder_type
from daedalus.market.engine import LOTS, MarketState, advance, look, new_market
from daedalus.market.record import bidder_names, watch
from daedalus.serving.openenv import DaedalusOpenEnv, ResetOptions
from daedalus.studies.exploit import exploit, typical_seats

OUTSIDE = Path(__file__).parent / "outside"
FIELDS = ("truthful, shader, dropout, colluder, exploiter, n_items, value_low, value_high, second_unit, return_rate")


def honest(view):
    return 0.0, 1.0


def half(view):
    return 0.0, 0.5


def sniper(view):
    shown = view.price[np.isfinite(view.price)]
    if len(shown):
        view.memory[0] = shown.mean()
    return 1.01 * (view.memory[0] or (view.value_low + view.value_high) / 2), 1e-6


@numba.njit
def compiled_honest(view):
    view.memory[0] += view.draws[0]
    return 0, 1.0, 1.0


@pytest.fixture(autouse=True)
def registry():
    """A registry of four types, put back after the test."""
    with additions():
        dd.register_bidder("honest", honest)
        dd.register_bidder("half", half)
        dd.register_bidder("sniper", sniper, memory=1)
        dd.register_bidder("compiled_honest", compiled_honest, memory=1)
        yield BIDDERS


def same(one, other):
    return all(np.array_equal(a, b, equal_nan=np.asarray(a).dtype.kind == "f") for a, b in zip(one, other, strict=True))


# Populations


def test_a_population_counts_registered_types_by_name():
    people = dd.Population(truthful=4, sniper=1, half=2)
    assert people.bidders == 7 and people.sniper == 1 and people.registered == {"half": 2, "sniper": 1}
    assert str(people) == "4 truthful, 2 half, 1 sniper" and repr(people) == "Population(truthful=4, half=2, sniper=1)"
    assert people.kinds().tolist() == [0] * 4 + [bidder_number("half")] * 2 + [bidder_number("sniper")]
    assert dd.Population(**people.model_dump()) == people == dd.Population.from_json(people.to_json())
    assert people == dd.Population(half=2, sniper=1, truthful=4) and hash(people) == hash(dd.Population(half=2, sniper=1, truthful=4))
    assert people != people.replace(sniper=2) and people.replace(sniper=2).bidders == 8


def test_a_count_of_zero_leaves_a_population_as_it_is():
    people, plain = dd.Population(truthful=4, sniper=0), dd.Population(truthful=4)
    assert people == plain and people.model_dump() == plain.model_dump() and "sniper" not in plain.to_json()
    assert list(plain.model_dump()) == FIELDS.split(", ")


@pytest.mark.parametrize("fields, told", [
    (dict(truthful=1, snipre=1), r"'snipre' is not a field; the fields are .*, half, honest, sniper; register_bidder makes"),
    (dict(sniper=-1), "sniper must be a whole number from 0 to 64, not -1"),
    (dict(sniper=65), "sniper must be a whole number from 0 to 64, not 65"),
    (dict(sniper=1.5), "sniper must be a whole number from 0 to 64, not 1.5"),
    (dict(truthful=60, sniper=5), "the counts must add up to 1 to 64 bidders, not 65"),
])
def test_a_wrong_count_is_refused(fields, told):
    with pytest.raises(dd.PopulationError, match=told):
        dd.Population(**fields)


def test_a_subclass_with_a_bidder_of_its_own_is_told_of_the_registry():
    class Crowd(dd.Population):
        mine: int = 0

    with pytest.raises(ValueError, match="does not know the field mine of Crowd; register_bidder makes a function a type"):
        dd.simulate(dd.DEFAULT_MECHANISM, Crowd(truthful=2, mine=1), 0)


def test_a_number_follows_from_the_name_and_is_told_by_it():
    assert [bidder_type(bidder_number(name)) for name in (*KINDS, "sniper", "half")] == [*KINDS, "sniper", "half"]
    with pytest.raises(dd.PopulationError, match="bidders of type number .* are not registered here: register_bidder first"):
        bidder_type(bidder_number("nobody"))


# Registering


@pytest.mark.parametrize("name, function, told", [
    ("2nd", half, "name must be a Python name"), (3, half, "name must be a Python name"), ("_x", half, "name must be a Python name"),
    ("class", half, "name must be a Python name"), ("truthful", half, "'truthful', which is a type of the package"),
    ("n_items", half, "'n_items', which a Population has already"), ("counts", half, "'counts', which a Population has already"),
    ("half", honest, "bidder 'half' is registered already, with other functions or numbers"), ("new", 3, "function must be a function of a view"),
    ("new", lambda: (0, 1), "function must take one argument, the view, not <lambda>()"),
    ("new", lambda view, more: (0, 1), "function must take one argument"), ("new", lambda view: 0.5, "it must return a line"),
    ("new", lambda view: (0.0, np.nan), "it must return a line"), ("new", lambda view: (1, 2, 3, 4), "it must return a line"),
    ("new", lambda view: ("0", "1"), "it must return a line"), ("new", lambda view: (0, 1e3), "from -100 to 100"),
    ("new", lambda view: None, "not None"), ("new", lambda view: (view.price.mean(), 1), "not .nan, 1"),
    ("new", lambda view: 1 / 0, "bidder new: it raises ZeroDivisionError: division by zero"),
])
def test_what_is_no_bidder_is_refused_in_one_sentence(name, function, told, registry):
    before = dict(registry)
    with pytest.raises(BidderError, match=told) as error:
        dd.register_bidder(name, function)
    assert "\n" not in str(error.value) and registry == before


def test_the_same_function_may_be_registered_again_and_another_size_of_memory_may_not():
    dd.register_bidder("half", half)
    namespace = {}
    exec("def half(view):\n    return 0.0, 0.5\n", namespace)   # a notebook's cell, run again
    dd.register_bidder("half", namespace["half"])
    with pytest.raises(BidderError, match="is registered already, with other functions or numbers"):
        dd.register_bidder("half", half, memory=3)
    for memory in -1, 5_000, 1.5:
        with pytest.raises(BidderError, match="memory must be a whole number from 0 to 4096"):
            dd.register_bidder("other", half, memory=memory)


# Playing


def test_a_registered_bidder_that_bids_its_value_is_a_truthful_one_to_the_bit():
    rules = [dd.Mechanism.random(seed) for seed in range(12)]
    for others in {}, dict(colluder=2, exploiter=1), dict(n_items=3, dropout=2):
        plain, *registered = (dd.simulate(rules, dd.Population(**{kind: 3}, **others), range(12), 2)
                              for kind in ("truthful", "honest", "compiled_honest"))
        if set(others) & set(KINDS):   # others sit behind truthful bidders and before registered ones: not the same seats
            assert same(*registered)
            continue
        assert all(same(plain, each) for each in registered)


def test_populations_of_the_package_play_the_same_beside_registered_ones():
    rules, people = [dd.Mechanism.random(seed) for seed in range(9)], [*dd.suite("stages"), *dd.suite("open")[:3]]
    alone = dd.simulate(rules[:8], people, range(8), 2)
    among = dd.simulate(rules, [*people, dd.Population(truthful=2, sniper=2)], range(9), 2)
    assert same(alone, [array[:8] for array in among])


def test_snipers_win_what_others_value_more():
    keys = [(0, episode) for episode in range(6)]
    plain, snipers = (dd.simulate(dd.DEFAULT_MECHANISM, people, keys).welfare.mean()
                      for people in (dd.Population(truthful=8), dd.Population(truthful=6, sniper=2)))
    assert snipers < plain - 0.01


def test_a_line_of_zeros_stays_out():
    dd.register_bidder("absent", lambda view: (0, 0))
    seen = watch(new_market([dd.Population(truthful=2, absent=2)], 0), dd.DEFAULT_MECHANISM)
    assert seen.present.tolist() == [True, True, False, False] and not seen.bid[:, 2:].any()
    assert bidder_names(seen.kind) == ["truthful 1", "truthful 2", "absent 1", "absent 2"]


# What a seat sees

OWN = ("value", "bid", "second_bid", "won", "paid")
SHOWN = ("price", "bids", "second_bids", "winners")


@pytest.mark.parametrize("shown, seen", [
    ({}, ()), (dict(reveal_clearing_price=True), ("price",)), (dict(reveal_winner_identity=True), ("winners",)),
    (dict(reveal_bid_distribution=True), ("bids", "second_bids")), (dict(reveal_competing_bids=True), ("bids", "second_bids")),
    (dict(reveal_reserve=True), ()),
], ids=str)
def test_a_bidder_sees_what_the_rules_disclose_and_nothing_else(shown, seen):
    hidden = dd.Mechanism(reveal_clearing_price=False, reserve_price=0.2)
    state = new_market([dd.Population(truthful=2, exploiter=1, sniper=2, n_items=2)], 5)
    advance(state, hidden, 3)
    seat, played = 4, watch(state, hidden.replace(**shown), rounds=1)
    advance(state, hidden.replace(**shown), 1)
    view = look(state, hidden.to_array(), 0, seat, 1)
    for name in OWN:
        assert np.isfinite(getattr(view, name)).all() and getattr(view, name).shape == (LOTS,)
    for name in SHOWN:
        assert np.isfinite(getattr(view, name)).any() == (name in seen), name
    assert np.array_equal(view.value, played.value[:, seat]) and np.array_equal(view.bid, played.bid[:, seat])
    assert view.net == pytest.approx(played.gain[seat] - played.fined[seat], abs=1e-12)
    if "price" in seen:
        sold = ~np.isnan(played.price)
        means = [row[at].mean() if at.any() else np.nan for row, at in zip(played.price, sold)]
        np.testing.assert_allclose(view.price, means, rtol=0, atol=1e-12)
    if "bids" in seen:
        bids = played.bid if "reveal_competing_bids" in shown else -np.sort(-played.bid, 1)
        assert np.array_equal(view.bids, bids)
    if "winners" in seen:
        won = [[(np.isfinite(prices) & (who == i)).sum() for i in range(5)] for who, prices in zip(played.winner, played.price)]
        assert view.winners.tolist() == won and view.won.tolist() == [row[seat] for row in won]
    assert view.rules.reserve_price != view.rules.reserve_price   # a secret reserve price is NaN
    assert look(state, hidden.replace(reveal_reserve=True).to_array(), 0, seat, 1).rules.reserve_price == 0.2


def test_what_others_know_alone_changes_nothing_that_a_bidder_sees():
    hidden = dd.Mechanism(reveal_clearing_price=False)
    state = new_market([dd.Population(truthful=2, sniper=2)], 5)
    advance(state, hidden, 3)
    other = state.copy()
    other.seen[:, :, :3, :6] = 7.0   # what is a seat's own
    other.log_weight[:], other.belief[:], other.memory[:, :3] = 7.0, 7.0, 7.0
    one, same_view = (look(each, hidden.to_array(), 0, 3, 1) for each in (state, other))
    assert same(one, same_view)


def test_before_the_first_session_nothing_has_been_seen_and_draws_are_a_seat_s_own():
    state = new_market([dd.Population(truthful=2, sniper=2)] * 2, [0, 1])
    views = [look(state, dd.DEFAULT_MECHANISM.to_array(), b, i, 1) for b in range(2) for i in (2, 3)]
    for view in views:
        assert all(np.isnan(getattr(view, name)).all() for name in (*OWN, *SHOWN)) and np.isnan(view.net) and view.memory == 0
        assert (view.bidders, view.units, view.round, view.second_unit) == (4, 1, 0, 0.0)
    draws = np.concatenate([view.draws for view in views])
    assert len(set(draws)) == len(draws) and 0 < draws.min() and draws.max() < 1


# The state


def test_a_state_with_registered_bidders_goes_on_after_json_and_selection():
    rules = dd.DEFAULT_MECHANISM
    state = new_market([dd.Population(truthful=2, sniper=2), dd.Population(compiled_honest=3, n_items=2)], [3, 4])
    advance(state, rules, 3)
    saved = json.loads(json.dumps(state.to_dict(), allow_nan=False))
    read, chosen, copied = MarketState.from_dict(saved), state.select([1]), state.copy()
    assert same(read, state)
    scores = advance(state, rules, 3)
    assert np.array_equal(advance(read, rules, 3), scores) and np.array_equal(advance(copied, rules, 3), scores)
    assert np.array_equal(advance(chosen, rules, 3)[0], scores[1]) and same(read, state)


def test_a_state_without_them_is_saved_as_before():
    state = new_market(dd.Population.stage(4), [0])
    assert list(state.to_dict()) == ["key", "kind", "traits", "round", "log_weight", "belief"]
    assert same(MarketState.from_dict(state.to_dict()), state)


def test_a_state_is_not_read_where_its_bidders_are_unknown(registry):
    saved = new_market(dd.Population(truthful=2, sniper=1), [0]).to_dict()
    del registry["sniper"]
    with pytest.raises(dd.PopulationError, match="are not registered here: register_bidder first"):
        MarketState.from_dict(saved)


# Keys and processes


def test_the_code_of_a_bidder_is_part_of_the_key_of_a_job(registry):
    job = Job(dd.simulate, (dd.DEFAULT_MECHANISM, dd.Population(truthful=2, half=1), 0))
    name = job_name(job)
    del registry["half"], ADDED["bidder", "half"]
    dd.register_bidder("half", lambda view: (0.0, 0.51))
    assert job_name(job) != name
    del registry["half"], ADDED["bidder", "half"]
    dd.register_bidder("half", half)
    assert job_name(job) == name


def test_a_population_takes_its_bidders_to_another_process(tmp_path):
    people = dd.Population(truthful=2, sniper=1)
    assert pickle.loads(pickle.dumps(people)) == people
    (tmp_path / "people").write_bytes(pickle.dumps(dd.Population(truthful=2, shade=1) if dd.register_bidder(
        "shade", lambda view: (0.0, 0.8)) is None else people))
    code = "import pickle, sys; print(pickle.load(open(sys.argv[1], 'rb')))"
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "people"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "2 truthful, 1 shade"


# The check


def test_the_check_passes_what_keeps_the_contract():
    for name in "half", "sniper", "compiled_honest":
        dd.check_bidder(name)
    with pytest.raises(BidderError, match="name must be a registered type, one of .*, not 'nobody'"):
        dd.check_bidder("nobody")


CALLS = []


def counting(view):
    CALLS.append(0)
    return 0.0, 1 / len(CALLS)


def writing(view):
    if view.round:
        view.value[:] = 0.0
    return 0.0, 1.0


def late(view):
    return (0.0, 1.0) if view.round < 3 else (np.nan, 1.0)


def endless(view):
    view.memory[0] = np.inf
    return 0.0, 1.0


def last_seen(view, kept={}):   # noqa: B006  a memory outside the state is what is tested
    known = kept.get(view.seat, 0.5)
    kept[view.seat] = float(np.nan_to_num(view.value[0], nan=0.5))
    return 0.0, known


@pytest.mark.parametrize("function, told", [
    (counting, "asked twice about the same view it returns"), (writing, "it raises ValueError: assignment destination is read-only"),
    (late, "it must return a line"), (endless, "what it keeps in its memory must be finite numbers"),
    (last_seen, "asked twice about the same view|plays otherwise"),
])
def test_the_check_says_what_is_broken(function, told):
    dd.register_bidder("broken", function, memory=1)
    with pytest.raises(BidderError, match=told) as error:
        dd.check_bidder("broken")
    assert str(error.value).startswith("bidder broken: ") and "\n" not in str(error.value)


def test_what_a_compiled_function_cannot_do_is_told():
    @numba.njit
    def wrong(view):
        return view.nothing, 1.0

    with pytest.raises(BidderError, match="bidder wrong: it raises AttributeError"):
        dd.register_bidder("wrong", wrong)

    @numba.njit
    def untyped(view):
        return (0.0, 1.0) if view.round < 0 else [0.0, 1.0]

    dd.register_bidder("untyped", untyped)
    with pytest.raises(BidderError, match="bidder untyped: Numba cannot compile it for a view"):
        dd.simulate(dd.DEFAULT_MECHANISM, dd.Population(untyped=2), 0, 1)


# Where they reach


def test_environments_evaluation_and_deviations_take_them():
    people = dd.Population(truthful=2, sniper=2)
    env = dd.DaedalusEnv(people, episode_length=2)
    env.reset(3)
    back = dd.DaedalusEnv.restore(json.loads(json.dumps(env.snapshot())))
    assert env.step(dd.DEFAULT_MECHANISM) == back.step(dd.DEFAULT_MECHANISM)
    known = dd.play(dd.FixedDesigner(dd.DEFAULT_MECHANISM), people, [3], steps=2)
    assert known["reward"][0] == env.outcome.reward
    assert typical_seats(people) == {"truthful": 0, "sniper": 2}
    assert set(exploit(dd.DESIGNERS["default"], people, 2, 2, steps=1).chosen) == {"truthful", "sniper", "honest", "misreport", "coalition"}


def test_a_suite_of_one_s_own_may_have_them(monkeypatch):
    monkeypatch.setitem(SUITES, "snipers", lambda: [dd.Population(truthful=3, sniper=at) for at in (1, 2)])
    table = dd.evaluate({"default": dd.DESIGNERS["default"]}, suite="snipers", episodes=2)
    assert set(table["population"].map(str)) >= {str(each) for each in dd.suite("snipers")} or len(table) == 2


def test_the_service_plays_them_and_refuses_what_it_does_not_know():
    people = dd.Population(truthful=2, sniper=2)
    assert ResetOptions(population=people.model_dump()).bidders() == people
    env = DaedalusOpenEnv()
    env.reset(seed=3, population=people.model_dump(), episode_length=1)
    assert "sniper" in json.dumps(env.state.model_dump(), default=str) or env.state is not None
    with pytest.raises(ValueError, match="'snipre' is not a field"):
        ResetOptions(population={"truthful": 2, "snipre": 2})


def test_the_arena_names_and_marks_them():
    from daedalus.serving import arena

    kinds = arena._kinds()
    assert [kind["name"] for kind in kinds] == [*KINDS, *sorted(BIDDERS)]
    assert len({kind["letter"] for kind in kinds}) == len(kinds)
    assert len({(kind["colour"], kind["outline"]) for kind in kinds}) == len(kinds)
    assert [arena._place(bidder_number(kind["name"])) for kind in kinds] == list(range(len(kinds)))


# Files that a user would write


def outside(name):
    """What a user's file prints."""
    done = subprocess.run([sys.executable, str(OUTSIDE / name)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_user_s_sniper_runs_alone():
    told = outside("sniper.py")
    assert told.count("welfare") == 4 and "6 truthful, 2 sniper" in told


def test_a_user_s_fictitious_play_comes_near_the_equilibrium():
    found = re.findall(r"n = (\d), among ([\w ]+): slope ([\d.]+) .*theory ([\d.]+)", outside("fictitious_play.py"))
    assert len(found) == 4
    for _, _, slope, theory in found:
        assert abs(float(slope) - float(theory)) < 0.02
