"""Formats are objects of a registry: the three built in keep their rules, unknown ones are refused, users add their own."""

import importlib.util
import pickle
from pathlib import Path

import numba
import numpy as np
import pytest
from shared import additions

import daedalus as dd
from daedalus import _runtime, jobs, results, schema
from daedalus._runtime import ADDED
from daedalus.market import auction, bidders, engine, record
from daedalus.market.auction import FORMATS, clear, format_of, highest_bids, register_format, unit_price
from daedalus.market.learners import auction_game
from daedalus.schema import AUCTION_TYPES, LEVERS, Mechanism, MechanismError
from daedalus.serving import arena
from daedalus.studies import exploit


RNG = np.random.default_rng(0)


def own_bids(bids, won, n_items, reserve):
    """First-price payments, as a user would write them."""
    paid = np.zeros(len(won))
    for i in range(len(won)):
        for unit in range(won[i]):
            paid[i] += bids[i, unit]
    return paid


@pytest.fixture
def registry():
    """A registry that is put back after the test."""
    with additions():
        yield register_format


@pytest.mark.parametrize("name", AUCTION_TYPES)
def test_the_two_rules_of_a_built_in_format_are_what_the_market_plays(name):
    rng, kind = np.random.default_rng(3), format_of(name)
    for n_items in (1, 2, 3):
        for reserve in (0.0, 0.4):
            bids = -np.sort(-rng.random((40, 5, 2)), axis=2)
            for lot, units, payments in zip(bids, *clear(bids, name, n_items, reserve)):
                valid = np.where(lot >= reserve, lot, 0.0)
                won = kind.allocate(valid, n_items, reserve)
                assert (won == units).all() and (kind.pay(valid, won, n_items, reserve) == payments).all()


def test_an_unknown_format_is_refused_everywhere():
    values, bids = np.full((1, 2), 0.5), np.array([[0.5, 0.4]])
    for ask in (lambda: clear(bids, "dutch"), lambda: format_of("dutch"), lambda: format_of(["vcg"]),
                lambda: auction_game(np.full((1, 2, 2), 0.5), values, "dutch"),
                lambda: exploit.best_payoff(values[..., None], np.full((1, 1), 0.2), "dutch"),
                lambda: exploit.ex_post_regret(values, bids, "dutch")):
        with pytest.raises(ValueError, match="auction_type is .*; allowed: first_price, second_price, vcg"):
            ask()
    with pytest.raises(MechanismError, match="must be one of first_price, second_price, vcg, not 'dutch'"):
        Mechanism(auction_type="dutch")
    rows = np.array([Mechanism().to_array()])
    rows[0, 0] = 7
    with pytest.raises(ValueError, match="number 7"):
        engine._advance(engine.new_market(dd.Population.stage(0), 0), rows, 1, dd.BEHAVIOUR)


def test_compiled_rules_know_no_price_of_an_unknown_format():
    top, who, credit = np.array([0.9, 0.5, 0.3, 0.1]), np.arange(4), np.zeros((1, bidders.MOVES))
    assert np.isnan(unit_price(7, top, who, 2, 0.0, 0)) and unit_price(auction.VCG, top, who, 2, 0.0, 0) == 0.3
    rules = bidders.read_rules(np.array([7.0] + [0.0] * 10))
    bidders.credit_two_units(credit, 0, 0.9, 0.9, 0.7, 0.3, 0.2, rules)
    assert np.isnan(credit[0, bidders.ARMS - 1])


def test_a_registered_format_that_is_first_price_earns_what_first_price_does(registry):
    kind = registry("first_again", allocate=highest_bids, pay=own_bids)
    assert kind.compiled and not kind.losers_pay and not kind.closed_form
    crowd, keys = dd.Population.stage(4), [(0, episode) for episode in range(3)]
    outs = [dd.simulate(Mechanism(auction_type=name, reveal_bid_distribution=True), crowd, keys, steps=2)
            for name in ("first_price", "first_again")]
    assert all((a == b).all() for a, b in zip(*outs))


def test_markets_of_many_formats_play_as_they_do_alone(registry):
    registry("first_again", allocate=highest_bids, pay=own_bids)
    rules = [Mechanism(auction_type=name) for name in ("vcg", "first_again", "first_price", "first_again")]
    crowd = dd.Population(truthful=2, shader=2, exploiter=2, n_items=2)
    together = dd.simulate(rules, crowd, [(5, at) for at in range(4)], steps=2)
    for at, mechanism in enumerate(rules):
        alone = dd.simulate(mechanism, crowd, [(5, at)], steps=2)
        assert all((a[at] == b[0]).all() for a, b in zip(together, alone))


def test_a_registered_format_is_written_and_read_and_never_drawn(registry):
    before = {name: lever.settings for name, lever in LEVERS.items()}, Mechanism.model_json_schema()
    registry("first_again", allocate=highest_bids, pay=own_bids)
    mine = Mechanism(auction_type="first_again")
    assert Mechanism.from_json(mine.to_json()) == Mechanism.from_text(mine.to_text()) == Mechanism.from_array(mine.to_array()) == mine
    assert ({name: lever.settings for name, lever in LEVERS.items()}, Mechanism.model_json_schema()) == before
    lever = LEVERS["auction_type"]
    assert not any(lever.readings(mine.auction_type).values()) and lever.columns("first_again")["auction_type: first_again"] == 1
    with pytest.raises(MechanismError, match="must be one of first_price, second_price, vcg in a vector, not 'first_again'"):
        lever.share("first_again")
    with pytest.raises(ValueError, match="known in no closed form; allowed: first_price, second_price, vcg"):
        exploit.false_name_regret(np.full((1, 2), 0.5), np.full((1, 2), 0.5), 0, "first_again")


@pytest.mark.parametrize("name, changes, sentence", [
    ("vcg", {}, "format 'vcg' is built in"),
    ("Mine!", {}, "name must be up to 40 small letters, digits and _, a letter first, not 'Mine!'"),
    ("mine", {"pay": lambda bids: bids}, r"pay must be a function of \(bids, won, n_items, reserve\), not <lambda>\(bids\)"),
    ("mine", {"allocate": 3}, r"allocate must be a function of \(bids, n_items, reserve\), not 3"),
    ("mine", {"pay": lambda bids, won, n_items, reserve: won * np.inf}, "does not give one finite number of at least 0"),
    ("mine", {"pay": lambda bids, won, n_items, reserve: won[:1] * 0.5}, "does not give one finite number of at least 0"),
    ("mine", {"allocate": lambda bids, n_items, reserve: (bids > 0).sum(1)}, "hands out more units than there are in a lot of"),
    ("mine", {"allocate": lambda bids, n_items, reserve: np.ones(len(bids))}, "from 0 to the bids that it placed"),
    ("mine", {"pay": lambda bids, won, n_items, reserve: RNG.random(len(won))}, "answers differently when asked again"),
    ("mine", {"pay": lambda bids, won, n_items, reserve: [][1]}, "fails in a lot of 1 units .*IndexError"),
])
def test_a_format_that_cannot_be_played_is_refused(registry, name, changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        registry(name, **({"allocate": highest_bids, "pay": own_bids} | changes))
    assert list(FORMATS) == list(AUCTION_TYPES) == list(schema.known_auction_types())


def test_the_same_format_again_is_no_other(registry):
    def priced(share):
        return lambda bids, won, n_items, reserve: share * bids[:, 0] * won

    first = registry("part", allocate=highest_bids, pay=priced(0.5))
    assert registry("part", allocate=highest_bids, pay=priced(0.5)) is first
    with pytest.raises(ValueError, match="format 'part' is registered already, with other functions"):
        registry("part", allocate=highest_bids, pay=priced(0.4))


def test_what_does_not_compile_runs_in_python_and_says_so(registry):
    def by_text(bids, won, n_items, reserve):
        return [float(str(paid)) for paid in own_bids(bids, won, n_items, reserve)]

    with pytest.warns(UserWarning, match="format 'by_text' has no machine code .*: it runs in Python, and slower"):
        assert not registry("by_text", allocate=highest_bids, pay=by_text).compiled
    registry("first_again", allocate=highest_bids, pay=own_bids)
    outs = [dd.simulate(Mechanism(auction_type=name), dd.Population(shader=2, exploiter=1), 4, steps=1)
            for name in ("by_text", "first_again")]
    assert all((a == b).all() for a, b in zip(*outs))


def test_a_fault_in_the_market_is_one_sentence(registry):
    def fails_late(bids, won, n_items, reserve):
        return [float(str(x)) if len(won) != 5 else float("nan") for x in own_bids(bids, won, n_items, reserve)]

    with pytest.warns(UserWarning):
        registry("late", allocate=highest_bids, pay=fails_late)
    with pytest.raises(ValueError, match="format 'late': pay does not give one finite number .* in a lot of this market"):
        dd.simulate(Mechanism(auction_type="late"), dd.Population(truthful=5), 0, steps=1)


def outside(name):
    """A user's file, run as a module: it registers its format."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name("outside") / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["mix_format", "all_pay"])
def test_a_users_format_earns_what_theory_says(registry, name):
    mine = outside(name)
    for n in (2, 3, 5, 8):
        mean, error = mine.revenue(n, 200_000)
        assert abs(mean - (n - 1) / (n + 1)) < 4 * error


@pytest.mark.slow
def test_learners_find_the_equilibrium_of_a_users_format(registry):
    mix, all_pay = outside("mix_format"), outside("all_pay")
    assert abs(mix.learned(2) - 2 / 3) < 0.03 and abs(all_pay.learned(2) - 1 / 2) < 0.03
    assert abs(mix.market(3) - 4 / 5) < 0.03
    assert all_pay.regret(2) < 0.005


def test_losers_pay_where_the_format_makes_them(registry):
    outside("all_pay")
    sold = clear([[0.9, 0.7, 0.4]], "all_pay")
    assert FORMATS["all_pay"].losers_pay and sold.payments.tolist() == [[0.9, 0.7, 0.4]] and sold.units.tolist() == [[1, 0, 0]]
    honest, keys = dd.Population(truthful=4, return_rate=0.0), [(0, 0), (0, 1)]
    paid = {name: dd.simulate(Mechanism(auction_type=name, reserve_price=0.0), honest, keys, steps=1).revenue.mean()
            for name in ("first_price", "all_pay")}
    assert paid["all_pay"] == pytest.approx(4 * 0.65, abs=0.2) and paid["first_price"] < 1


def test_episodes_evaluation_and_records_take_a_registered_format(registry):
    registry("first_again", allocate=highest_bids, pay=own_bids)
    mine = Mechanism(auction_type="first_again")
    env = dd.DaedalusEnv(dd.Population.stage(1), episode_length=2)
    env.reset(seed=0)
    seen = env.step(mine)
    assert seen.mechanism == mine and '"auction_type":"first_again"' in seen.prompt()
    assert dd.Observation.from_json(seen.to_json()) == seen
    table = dd.evaluate({"mine": lambda observation: mine}, suite="stages", episodes=5, steps=1)
    assert len(table) == 5


@pytest.mark.slow
def test_a_registered_format_is_watched_lot_by_lot(registry):
    registry("first_again", allocate=highest_bids, pay=own_bids)
    state = engine.new_market(dd.Population.stage(1), 0)
    first, again = (record.watch(state, Mechanism(auction_type=name, reveal_bid_distribution=True))
                    for name in ("first_price", "first_again"))
    assert all(np.array_equal(a, b, equal_nan=True) for a, b in zip(first, again))


def test_kept_jobs_and_results_tell_what_was_added(registry):
    job = jobs.Job(auction.second_price_revenue, (2, 0.0))
    names, told = [jobs.job_name(job)], [results.provenance({"seed": 0})]
    registry("first_again", allocate=highest_bids, pay=own_bids)
    names.append(jobs.job_name(job))
    told.append(results.provenance({"seed": 0}))
    assert names[0] != names[1] and "added" not in told[0] and len(told[1]["added"]) == 16


def test_a_job_in_another_process_knows_the_format(registry):
    outside("all_pay")
    job = jobs.Job(auction.second_price_revenue, (2, 0.0))
    sent = pickle.dumps(job)
    ADDED.clear()
    FORMATS.pop("all_pay")
    assert pickle.loads(sent) == job
    assert clear([[0.9, 0.7]], "all_pay").payments.tolist() == [[0.9, 0.7]]


@pytest.mark.skipif(bool(numba.config.DISABLE_JIT), reason="nothing is compiled")
def test_replaced_code_is_answered_with_the_registry(monkeypatch):
    monkeypatch.setattr(auction, "FIRST_PRICE", 0.0)
    with pytest.raises(_runtime.ChangedCodeError, match="register what is new by name .*register_format"):
        _runtime.check_compiled()


def test_pages_offer_a_registered_format(registry):
    gradio = pytest.importorskip("gradio")
    registry("first_again", allocate=highest_bids, pay=own_bids)
    with gradio.Blocks():
        control = arena._lever_control(gradio, "auction_type")
    assert ("first again", "first_again") in control.choices
