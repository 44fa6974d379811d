"""Briefs and objectives: what they say, that everything that rewards follows them, and that one bank answers for any."""

import json
from functools import partial

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

import daedalus as dd
from daedalus.seeds import block_of
from daedalus.designers.search import (
    EPISODE_ROUNDS, Bank, _climb_job, choose, climb, fill_bank, part_again, score, search_record, search_suites, suite_bank)
from daedalus.env import SUITES, Episodes, observe, open_episodes, play_step
from daedalus.jobs import job_name
from daedalus.market.engine import scored_by, simulate_components
from daedalus.schema import BRIEF_KINDS, FIELDS, LEVERS, Brief, Objective
from daedalus.studies.evaluate import adaptation
from daedalus.studies.pareto import best_found, find_front, nondominated

PEOPLE = [dd.Population.stage(1), dd.Population.stage(4)]
SELLER = Objective.from_text("revenue")
MILD = Brief(objective=SELLER, fixed={"auction_type": "first_price"}, at_most={"collusion_penalty": 0.3}, words="Be kind.")
exponents = st.floats(0, 3) | st.integers(0, 3)
objectives = st.tuples(*[exponents] * 5).filter(any).map(lambda powers: Objective(**dict(zip(Objective.model_fields, powers))))
numbers = [lever for lever in LEVERS.values() if lever.step]


@st.composite
def briefs(draw):
    """Any brief: every lever free, fixed, or bounded from one side or both."""
    rules = {"fixed": {}, "at_most": {}, "at_least": {}}
    for lever in LEVERS.values():
        values = st.floats(0, lever.top) | st.sampled_from(lever.settings) if lever.step else st.sampled_from(lever.settings)
        low, high = sorted([draw(values), draw(values)])
        how = draw(st.sampled_from(["free", "free", "fixed", *(["at_most", "at_least", "both"] if lever.step else [])]))
        if how == "fixed": rules["fixed"][lever.name] = low
        if how in ("at_most", "both"): rules["at_most"][lever.name] = high
        if how in ("at_least", "both"): rules["at_least"][lever.name] = low
    return Brief(objective=draw(objectives), words=draw(st.none() | st.text()), **rules)


# What a brief says

@settings(max_examples=300)
@given(briefs(), st.integers(0, 2**32))
def test_a_brief_comes_back_from_its_text_and_its_json_and_says_what_it_allows(brief, seed):
    assert Brief.from_text(brief.text()) == brief == Brief.from_json(brief.to_json())
    assert "\n" not in brief.text() and hash(brief) == hash(Brief.from_text(brief.text()))
    rules = dd.Mechanism.random(seed)
    obeys = (all(getattr(rules, name) == value for name, value in brief.fixed.items())
             and all(getattr(rules, name) <= value for name, value in brief.at_most.items())
             and all(getattr(rules, name) >= value for name, value in brief.at_least.items()))
    assert brief.allows(rules) == obeys == (not brief.faults(rules))
    mended = brief.mended(rules)
    assert brief.allows(mended) and not brief.faults(mended) and brief.mended(mended) == mended
    named = brief.fixed.keys() | brief.at_most.keys() | brief.at_least.keys()
    assert all(getattr(mended, name) == getattr(rules, name) for name in FIELDS if name not in named)


@given(objectives)
def test_an_objective_comes_back_from_its_text(objective):
    assert Objective.from_text(objective.text()) == objective


def test_a_fault_names_the_lever_what_is_allowed_and_what_was_found():
    assert MILD.faults(dd.INFORMED_GREEDY) == ['auction_type must be "first_price", not "second_price"',
                                               "collusion_penalty must be at most 0.30, not 1.90"]
    assert MILD.text() == 'maximise revenue; auction_type is "first_price"; collusion_penalty is at most 0.30; words: "Be kind."'
    assert Brief().text() == "maximise welfare x fairness x participation x stability" and Brief().allows(dd.INFORMED_GREEDY)


@pytest.mark.parametrize("wrong, sentence", [
    ({"objective": 3}, "objective: Input should be a valid dictionary or instance of Objective, not 3"),
    ({"objective": dict.fromkeys(Objective.model_fields, 0)}, "at least one exponent must be above 0, not all 0"),
    ({"fixed": 3}, "fixed: Input should be a valid dictionary, not 3"),
    ({"fixed": {"entry_fee": 1}}, "fixed: 'entry_fee' is not a lever; the levers are auction_type, .*, coalition_policy"),
    ({"fixed": {"auction_type": "english"}}, "fixed: auction_type must be one of first_price, .*, not 'english'"),
    ({"fixed": {"reveal_reserve": 1}}, "fixed: reveal_reserve must be true or false, not 1"),
    ({"at_most": {"reserve_price": 2}}, "at_most: reserve_price must be a number from 0 to 0.9, not 2"),
    ({"at_least": {"shill_penalty": -0.1}}, "at_least: shill_penalty must be a number from 0 to 3, not -0.1"),
    ({"at_most": {"auction_type": "vcg"}}, "at_most: auction_type is not a number and can only be fixed; the numbers are reserve_"),
    ({"at_least": {"reveal_reserve": True}}, "at_least: reveal_reserve is not a number and can only be fixed"),
    ({"at_most": {"reserve_price": 0.2}, "at_least": {"reserve_price": 0.5}}, "no mechanism obeys it: reserve_price must be at most"),
    ({"fixed": {"reserve_price": 0.5}, "at_most": {"reserve_price": 0.2}}, "no mechanism obeys it: reserve_price must be at most"),
    ({"words": 3}, "words: Input should be a valid string, not 3"),
    ({"cheap": True}, "'cheap' is not a field; the fields are objective, fixed, at_most, at_least, words"),
])
def test_what_is_no_brief_is_refused_in_a_sentence(wrong, sentence):
    with pytest.raises(ValueError, match=sentence) as refused:
        Brief(**wrong)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("text", ["", "maximise", "maximise profit", "maximise welfare x welfare", "maximise welfare; cheap",
                                  "maximise welfare; reserve_price is at most", "maximise welfare; reserve_price is 0.2 0.3", 3,
                                  "maximise welfare; reserve_price is 0.2; reserve_price is 0.2", 'maximise welfare; words: "a" b'])
def test_a_text_that_is_no_brief_is_refused_in_a_sentence(text):
    with pytest.raises(ValueError) as refused:
        Brief.from_text(text)
    assert "\n" not in str(refused.value) and len(str(refused.value)) > 30


def test_drawn_briefs_are_of_ten_kinds_a_third_of_the_rules_are_two_and_all_can_be_obeyed():
    rng = np.random.default_rng(0)
    drawn = [[Brief.random(rng, kind) for _ in range(150)] for kind in range(len(BRIEF_KINDS))]
    assert len(BRIEF_KINDS) == 10 and len({wanted for wanted, _ in BRIEF_KINDS}) >= 5
    for (wanted, rule), same in zip(BRIEF_KINDS, drawn):
        assert {brief.objective for brief in same} == {wanted}
        assert all(brief.allows(brief.mended(dd.Mechanism.random(at))) for at, brief in enumerate(same))
        ruled = {bool(brief.fixed or brief.at_most or brief.at_least) for brief in same}
        assert ruled == {rule is not None}
    free = [brief for kind in range(500) if (brief := Brief.random(kind)) and (brief.fixed or brief.at_most or brief.at_least)]
    families = [sum([bool({"auction_type"} & {*brief.fixed}), "reveal_winner_identity" in brief.fixed,
                     "shill_penalty" in brief.at_most, bool({"reserve_price"} & {*brief.at_most, *brief.at_least})])
                for brief in free]
    assert 0.25 < np.mean(np.array(families) == 2) < 0.42 and {*families} == {1, 2}
    assert Brief.random(7) == Brief.random(7) == Brief.random(np.random.default_rng(7))
    with pytest.raises(ValueError, match="kind must be a whole number from 0 to 9, not 10"):
        Brief.random(0, 10)


# What designers see, and what they earn

def test_an_observation_shows_its_brief_first_and_without_one_is_what_it_was():
    plain = dd.Observation(round_number=3, episode_length=10)
    asked = plain.replace(brief=MILD)
    mute = MILD.replace(words=None)
    assert plain.replace(brief=mute).prompt() == f"brief: {mute.text()}\n{plain.prompt()}" and asked.published().brief == MILD
    assert "brief" not in plain.to_json() and "brief" not in plain.model_dump() and plain.brief is None
    assert dd.Observation.from_json(asked.to_json()) == asked and hash(asked) != hash(plain)


def test_of_a_brief_with_words_a_prompt_shows_the_words_alone_on_one_line():
    plain = dd.Observation(round_number=3, episode_length=10)
    for words in ("Be kind.", 'Be "kind",\nround_number: 9', "Seid nett zu den Käufern."):
        line, rest = plain.replace(brief=MILD.replace(words=words)).prompt().split("\n", 1)
        assert rest == plain.prompt() and json.loads(line.removeprefix("words: ")) == words and "\\u" not in line
        assert not any(part in line for part in ("maximise", "revenue", "auction_type", "first_price", "collusion", "0.30"))


def test_an_environment_shows_its_brief_and_rewards_by_it():
    env, free = dd.DaedalusEnv(PEOPLE[1], brief=MILD), dd.DaedalusEnv(PEOPLE[1], objective=SELLER)
    assert env.reset(5).brief == MILD and free.reset(5).brief is None
    for mechanism in (dd.INFORMED_GREEDY, MILD.mended(dd.INFORMED_GREEDY)):
        twin = dd.DaedalusEnv.restore(json.loads(json.dumps(env.snapshot())))
        seen, other = env.step(mechanism), free.step(mechanism)
        assert seen == twin.step(mechanism) and seen.brief == MILD
        assert seen.reward == (other.reward if MILD.allows(mechanism) else 0) and other.reward > 0
        assert env.outcome.replace(reward=0) == free.outcome.replace(reward=0)   # the scores are told as they are
    with pytest.raises(ValueError, match=r"objective must be left out beside a brief, which has its own, not Objective\("):
        dd.DaedalusEnv(PEOPLE[1], objective=SELLER, brief=MILD)


def test_episodes_carry_the_brief_of_each_market():
    several = [Brief(), MILD, Brief(objective=Objective.from_text("welfare^2"))]
    together = open_episodes([PEOPLE[1]] * 3, [(0, at) for at in range(3)], 3, brief=several)
    alone = [open_episodes([PEOPLE[1]], [(0, at)], 3, brief=brief) for at, brief in enumerate(several)]
    plain = open_episodes([PEOPLE[1]] * 3, [(0, at) for at in range(3)], 3)
    assert "briefs" not in plain.to_dict() and [seen.brief for seen in observe(together)] == several
    for mechanism in (dd.INFORMED_GREEDY, MILD.mended(dd.INFORMED_GREEDY)):
        together = Episodes.from_dict(json.loads(json.dumps(play_step(together, mechanism).to_dict())))
        alone, plain = [play_step(episodes, mechanism) for episodes in alone], play_step(plain, mechanism)
        assert together.recent[-1].reward.tolist() == [one.recent[-1].reward[0] for one in alone]
        assert together.recent[-1].reward[0] == plain.recent[-1].reward[0]
    assert together.select([2, 1]).briefs == (several[2], MILD)
    with pytest.raises(ValueError, match="must be one for all or one for each of the 3 markets, not 2"):
        open_episodes([PEOPLE[1]] * 3, 0, brief=several[:2])
    with pytest.raises(ValueError, match="brief must be a Brief or a sequence of them, not 3"):
        open_episodes([PEOPLE[1]] * 3, 0, brief=3)


def test_simulations_and_plays_take_briefs_one_for_all_or_one_for_each():
    keys, rules = [(0, 0), (0, 1)], [dd.INFORMED_GREEDY, MILD.mended(dd.INFORMED_GREEDY)]
    told, free = (partial(dd.simulate, rules, PEOPLE[1], keys, 2)(**wanted) for wanted in ({"brief": MILD}, {"objective": SELLER}))
    assert (told.reward[0] == 0).all() and (told.reward[1] == free.reward[1]).all() and (free.reward[0] > 0).all()
    both = dd.simulate(rules, PEOPLE[1], keys, 2, brief=[Brief(), MILD])
    assert (both.reward[0] == dd.simulate(rules, PEOPLE[1], keys, 2).reward[0]).all() and (both.reward[1] == told.reward[1]).all()
    played = dd.play(rules[1], PEOPLE[1], keys, 2, brief=[MILD, Brief()])
    assert played["reward"].to_list()[:2] == dd.simulate(rules[1], PEOPLE[1], keys, 2, brief=MILD).reward[0].tolist()


def test_a_suite_may_hold_pairs_of_a_brief_and_a_population(monkeypatch):
    pairs = [(MILD, PEOPLE[1]), (Brief(), PEOPLE[0])]
    players = {"greedy": dd.INFORMED_GREEDY, "obeys": lambda seen: seen.brief.mended(dd.INFORMED_GREEDY)}
    table = dd.evaluate(players, pairs, 4, steps=2)
    assert table["brief"].to_list() == [MILD.text(), Brief().text()] * 4
    rewards = table.set_index(["designer", "episode"])["reward"]
    assert rewards["greedy", 0] == 0 < rewards["obeys", 0] and rewards["greedy", 1] == rewards["obeys", 1] > 0
    monkeypatch.setitem(SUITES, "pairs", lambda: pairs)
    pd.testing.assert_frame_equal(dd.evaluate(players, "pairs", 4, steps=2), table)
    alike = dd.evaluate(players, PEOPLE[1], 2, steps=2, brief=MILD)
    assert alike["reward"][0] == 0 and alike["reward"][2] == rewards["obeys", 0]
    for wrong, sentence in (([pairs[0], PEOPLE[0]], "suite must have a brief for each of its 2 populations or for none of them"),
                            ([(PEOPLE[0], MILD)], r"suite must hold pairs \(Brief, Population\), not \("),
                            ([(MILD,)], r"suite must hold pairs \(Brief, Population\), not \(")):
        with pytest.raises(ValueError, match=sentence):
            dd.evaluate(players, wrong, 2)
    with pytest.raises(ValueError, match="brief must be left out where the suite has briefs of its own"):
        dd.evaluate(players, pairs, 2, brief=MILD)


# Weights

def test_weights_say_how_often_a_population_is_met():
    players = {"greedy": dd.INFORMED_GREEDY}
    for weights in ({PEOPLE[0]: 1, PEOPLE[1]: 3}, [1, 3], np.array([0.25, 0.75])):
        table = dd.evaluate(players, PEOPLE, 12, steps=1, weights=weights)
        assert table.groupby("at")["episode"].count().to_dict() == {0: 3, 1: 9}
    pd.testing.assert_frame_equal(dd.evaluate(players, {PEOPLE[0]: 1, PEOPLE[1]: 3}, 12, steps=1), table)
    assert set(dd.evaluate(players, PEOPLE, 4, steps=1, weights=[0, 2])["at"]) == {1}
    alike = dd.evaluate(players, "stages", 12, steps=1, weights=[2] * 5)
    pd.testing.assert_frame_equal(alike, dd.evaluate(players, "stages", 12, steps=1))


@pytest.mark.parametrize("weights, sentence", [
    ([1], "weights must be one number for each of the 2 populations, not"), (3, "weights must be one number for each of the 2"),
    ([1, -1], "weights must be numbers from 0 that are not all 0, not -1"), ([1, "x"], "weights must be numbers from 0 .*, not 'x'"),
    ([1, float("nan")], "weights must be numbers from 0 .*, not nan"), ([0, 0], "weights must be numbers from 0 that are not all 0"),
    ({PEOPLE[0]: 1}, "weights must have an entry for each of the suite's 2 populations and no other, which Population"),
    ({PEOPLE[0]: 1, PEOPLE[1]: 1, "x": 1}, "weights must have an entry .* which 'x' breaks"),
])
def test_weights_that_are_none_are_refused_in_a_sentence(weights, sentence):
    with pytest.raises(ValueError, match=sentence):
        dd.evaluate({"greedy": dd.INFORMED_GREEDY}, PEOPLE, 2, weights=weights)


# Searches

def test_a_climb_follows_the_objective_and_keeps_to_the_brief():
    start = climb(PEOPLE[1:], 40, 3)
    assert climb(PEOPLE[1:], 40, 3, objective=Objective()) == start == climb(PEOPLE[1:], 40, 3, brief=Brief())
    sold, kept = climb(PEOPLE[1:], 40, 3, objective=SELLER), climb(PEOPLE[1:], 40, 3, brief=MILD)
    assert sold != start and all(map(MILD.allows, kept)) and not all(map(MILD.allows, start))
    earned = [score([best], PEOPLE[1:], 40, 9, objective=SELLER).mean() for best in (sold[0], start[0])]
    assert earned[0] > earned[1]
    assert choose([start[0], sold[0]], PEOPLE[1:], 40, 9, 7, SELLER) == sold[0]
    assert MILD.allows(dd.Mechanism(**best_found("TPE", PEOPLE[1:], 110 * EPISODE_ROUNDS, 1, brief=MILD)))


def test_a_search_follows_the_objective_and_is_kept_apart(monkeypatch, tmp_path):
    monkeypatch.setitem(SUITES, "open", lambda: [PEOPLE[1]])
    monkeypatch.setitem(SUITES, "stages", lambda: [PEOPLE[0]])
    published, sold = (search_suites(4, 4, 4, 1, folder=str(tmp_path), objective=wanted) for wanted in (Objective(), SELLER))
    assert published._replace(seconds={}) == search_suites(4, 4, 4, 1)._replace(seconds={}) != sold._replace(seconds={})
    assert "objective" not in published.params and sold.params["objective"] == "revenue"
    record = json.loads(json.dumps(search_record(sold)))
    assert part_again(record, 0) == record["parts"][0]
    jobs = [_climb_job(PEOPLE[0], 4, 1, wanted) for wanted in (Objective(), SELLER)]
    assert job_name(jobs[0]) != job_name(jobs[1]) and all((tmp_path / f"{job_name(job)}.json").is_file() for job in jobs)


def test_a_front_has_the_components_of_the_objective_and_keeps_to_the_brief(tmp_path):
    held = {name: False for name in FIELDS if name.startswith("reveal")} | {"coalition_policy": "allow"}
    front = find_front(PEOPLE[1:], 6, 1, 8, 2, held, folder=str(tmp_path), brief=MILD)
    assert list(front)[-2:] == ["revenue", "reward"] and nondominated(front[["revenue"]]).all()
    assert all(MILD.allows(dd.Mechanism(**row)) for row in front[list(FIELDS)].to_dict("records"))
    sold = find_front(PEOPLE[1:], 6, 1, 8, 2, held, folder=str(tmp_path), objective=Objective.from_text("welfare x revenue"))
    assert list(sold)[-3:] == ["welfare", "revenue", "reward"] and nondominated(sold[["welfare", "revenue"]]).all()
    with pytest.raises(ValueError, match="held must agree with the brief, where auction_type is 'first_price', not 'vcg'"):
        find_front(PEOPLE, 6, 1, 8, 2, {"auction_type": "vcg"}, brief=MILD)


def test_how_fast_designers_adapt_is_told_by_the_objective():
    players = {"greedy": dd.INFORMED_GREEDY}
    sold = adaptation(players, PEOPLE[1:], 2, steps=2, resamples=10, objective=SELLER)
    assert sold["mean"][0] == pytest.approx(dd.simulate(dd.INFORMED_GREEDY, PEOPLE[1], [(0, 0), (0, 1)], 1, objective=SELLER).reward.mean())


# One bank for any brief

@pytest.fixture(scope="module")
def bank():
    """Twenty mechanisms held in four episodes of two populations."""
    return fill_bank([dd.Mechanism.random(at) for at in range(20)], PEOPLE, 4, 5)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(wanted=objectives)
def test_a_bank_gives_the_rewards_of_a_direct_simulation_to_the_bit(bank, wanted):
    direct = score(bank.mechanisms[:5], PEOPLE, 4, 5, block_of("banks"), objective=wanted)
    assert bank.rewards(wanted)[:5].tobytes() == direct.tobytes()


def test_a_bank_finds_what_is_best_for_a_brief_without_a_simulation(bank, counted_rounds):
    assert bank.components.shape == (20, 2, 4, 10, 3, 5) and bank.components.dtype == np.float64
    with counted_rounds() as spent:
        for wanted in (Objective(), SELLER, Brief(fixed={"auction_type": "vcg"}), MILD.replace(at_most={"collusion_penalty": 2})):
            brief = wanted if isinstance(wanted, Brief) else Brief(objective=wanted)
            fixed, each = bank.best(wanted)
            mean = {m: row for m, row in zip(bank.mechanisms, bank.rewards(wanted).mean(2)) if brief.allows(m)}
            assert mean[fixed].mean() == max(row.mean() for row in mean.values())
            assert [mean[m][at] for at, m in enumerate(each)] == np.max(list(mean.values()), 0).tolist()
            assert all(map(brief.allows, [fixed, *each]))
    assert sum(spent) == 0
    with pytest.raises(ValueError, match="bank must hold a mechanism that the brief allows, and none of 20 obeys 'maximise"):
        bank.best(Brief(fixed={"reserve_price": 0.123}))
    with pytest.raises(ValueError, match="objective: .*, not 'revenue'"):
        bank.best("revenue")


def test_components_are_those_of_the_scored_rounds():
    kept = simulate_components(dd.INFORMED_GREEDY, PEOPLE[1], [(0, 0)], 2)
    out = dd.simulate(dd.INFORMED_GREEDY, PEOPLE[1], [(0, 0)], 2)
    assert kept.shape == (1, 2, 3, 5) and (scored_by(Objective(), kept).mean(-1) == out.reward).all()
    assert (kept.mean(2) == np.stack([out.welfare, out.fairness, out.participation, out.stability, out.revenue_share], -1)).all()


def test_yardsticks_are_those_of_what_is_wanted(monkeypatch, bank):
    monkeypatch.setattr("daedalus.studies.evaluate.suite_bank", lambda name: Bank(*bank))
    known = dd.yardsticks("stages")
    assert known["oracle"] == dd.oracle("stages") and known["best fixed"].mechanism == dd.best_fixed("stages")
    assert dd.yardsticks("stages", Objective())["oracle"] == known["oracle"]
    sold = dd.yardsticks("stages", SELLER)
    assert list(sold) == list(known) and (sold["best fixed"].mechanism, sold["oracle"]) == bank.best(SELLER)
    ruled = dd.yardsticks("stages", brief=Brief(fixed={"auction_type": "vcg"}))
    assert {m.auction_type for m in ruled["oracle"]} == {"vcg"} and ruled["best fixed"].mechanism.auction_type == "vcg"
    with pytest.raises(ValueError, match="objective must be left out beside a brief"):
        dd.yardsticks("stages", SELLER, MILD)


@pytest.mark.slow
def test_the_bank_of_a_suite_has_something_for_every_kind_of_brief():
    stages = suite_bank("stages")
    for kind in range(10):
        for seed in range(5):
            assert stages.allowed(Brief.random(seed, kind)).sum() >= 1


# The service

openenv = pytest.importorskip("daedalus.serving.openenv", reason="the service needs openenv")


def act(mechanism):
    """A mechanism as the service's clients send it."""
    return openenv.DaedalusAction(**mechanism.model_dump())


def test_a_client_says_what_is_rewarded_and_the_rubric_follows_to_the_bit():
    env, market = openenv.DaedalusOpenEnv(), dd.DaedalusEnv(PEOPLE[1], brief=MILD)
    asked = env.reset(seed=5, population=PEOPLE[1], brief=MILD)
    assert asked.prompt == market.reset(5).prompt() and asked.prompt.startswith(f'words: "{MILD.words}"')
    for mechanism in (dd.INFORMED_GREEDY, MILD.mended(dd.INFORMED_GREEDY)):
        told, seen = env.step(act(mechanism)), market.step(mechanism)
        assert told.reward == seen.reward == env.rubric.last_score and told.prompt == seen.prompt()
        assert {*told.sessions[0]} == {*Objective.model_fields}
    assert {name for name, _ in env.rubric.named_rubrics()} == {"revenue"}
    sold = env.reset(seed=5, population=PEOPLE[1], objective={"stability": 0, "fairness": 2})
    assert sold.metadata["objective"] == "welfare x fairness^2 x participation"
    wanted = Objective(stability=0, fairness=2)
    assert env.step(act(dd.INFORMED_GREEDY)).reward == dd.simulate(dd.INFORMED_GREEDY, PEOPLE[1], 5, 1, objective=wanted).reward[0, 0]
    plain = env.reset(seed=5)
    assert {*plain.metadata} == {"seed", "episode"} and {*env.step(act(dd.INFORMED_GREEDY)).sessions[0]} == {*openenv.SESSION_SCORES}
    assert isinstance(env.rubric, openenv.ProductRubric)


@pytest.mark.parametrize("wrong, sentence", [
    ({"objective": {"profit": 1}}, "'profit' is not a field"), ({"objective": dict.fromkeys(Objective.model_fields, 0)}, "not all 0"),
    ({"brief": {"at_most": {"reserve_price": 2}}}, "reserve_price must be a number from 0 to 0.9, not 2"),
    ({"brief": {}, "objective": {"revenue": 1}}, "brief already says what is rewarded: leave out objective"),
])
def test_a_service_refuses_what_is_no_wish_in_a_sentence(wrong, sentence):
    with pytest.raises(ValueError, match=sentence):
        openenv.DaedalusOpenEnv().reset(**wrong)


def test_a_service_rewards_what_it_was_started_with_unless_a_client_says_otherwise():
    from fastapi.testclient import TestClient

    from daedalus.serving.serve import create_app

    client = TestClient(create_app(page=False, load=lambda: dd.INFORMED_GREEDY, objective=SELLER))
    rules, body = dd.INFORMED_GREEDY.model_dump(), {"session_id": "one", "seed": 5, "population": PEOPLE[1].model_dump()}
    sold = dd.simulate(dd.INFORMED_GREEDY, PEOPLE[1], 5, 1, objective=SELLER).reward[0, 0]
    published = dd.simulate(dd.INFORMED_GREEDY, PEOPLE[1], 5, 1).reward[0, 0]
    for asked, reward in (({}, sold), ({"objective": Objective().model_dump()}, published)):
        assert client.post("/reset", json=body | asked).status_code == 200
        assert client.post("/step", json={"session_id": "one", "action": rules}).json()["reward"] == reward
        entry = {"mechanism": rules, "population": PEOPLE[1].model_dump(), "seed": 5}
        scores = client.post("/api/simulate", json={"entries": [entry], "steps": 1} | asked).json()["scores"]
        assert scores["reward"] == [[reward]]
    with client.websocket_connect("/ws") as line:
        line.send_json({"type": "reset", "data": {"seed": 5, "population": PEOPLE[1].model_dump()}})
        assert line.receive_json()["data"]["metadata"]["objective"] == "revenue"
        line.send_json({"type": "step", "data": rules})
        assert line.receive_json()["data"]["reward"] == sold


def test_the_page_names_what_is_rewarded():
    from daedalus.serving.arena import _about, open_arena, render

    wanted = Objective.from_text("welfare x revenue^2")
    plain, sold = (open_arena(PEOPLE[1], ["greedy"], objective=each).step({"greedy": dd.FixedDesigner(dd.INFORMED_GREEDY)})
                   for each in (Objective(), wanted))
    assert "mean over rounds of welfare x revenue^2" in render(sold) and "mean over rounds of W F P S" in render(plain)
    assert sold.sides[0].mean_reward == dd.simulate(dd.INFORMED_GREEDY, PEOPLE[1], 0, 1, objective=wanted).reward[0, 0]
    assert "R = W × F × P × S, each" in _about({}) and "R = welfare x revenue^2, each" in _about({}, wanted)
    assert _about({}, wanted).count("<i>revenue</i>") == _about({}).count("<i>revenue</i>") + 1   # that a brief may ask for it, too


@pytest.mark.parametrize("command", ["inference", "search", "serve"])
def test_commands_tell_units_and_default_of_an_objective_and_refuse_what_is_none(command):
    from typer.testing import CliRunner

    from daedalus.cli import app

    told = " ".join(CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "300"}).output.split())
    assert "--objective" in told and "each from 0 to 1, to powers from 0 to 3." in told
    assert "[default: welfare x fairness x participation x stability]" in told
    refused = CliRunner().invoke(app, [command, "--objective", "profit"])
    assert refused.exit_code == 2 and "an objective is a product such as 'welfare x revenue^2'" in refused.output
