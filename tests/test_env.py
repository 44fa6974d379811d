"The environment: the same bits however it is played, suites that stay apart, and wrong use that is answered clearly."
import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from daedalus import env as env_module
from daedalus.market.bidders import KINDS, LATER, Population, PopulationError
from daedalus.env import (
    FEATURES, PUBLISHED_FEATURES, RECENT, DaedalusEnv, EpisodeError, Episodes, curriculum, draw_open_suite,
    draw_training_population, features, gym_env, mechanism_of_action, observe, open_episodes, outcome_of, play_step,
    suite)
from daedalus.market.engine import SCORES, SIGNALS, open_market, simulate
from daedalus.schema import (
    DEFAULT_MECHANISM, FIELDS, INFORMED_GREEDY, Brief, Mechanism, MechanismError, Objective, Observation)

STAGES = [Population.stage(stage) for stage in range(5)]
MIXED = STAGES + suite("open")
seeds = st.integers(0, 2**32)
drawn_mechanisms = seeds.map(Mechanism.random)
drawn_populations = seeds.map(Population.random)


# The populations

def test_suites_have_the_documented_populations():
    assert suite("stages") == STAGES
    assert suite("open") == draw_open_suite()
    assert len(set(suite("open"))) == 20


def test_the_open_suite_says_every_parameter():
    rows = json.loads((env_module.data_dir() / "open_suite.json").read_text())
    assert all(set(row) == set(Population.model_fields) - {*LATER} for row in rows)   # what a row does not name is off


def test_a_suite_is_a_list_of_ones_own():
    suite("open").clear()
    assert len(suite("open")) == 20


@pytest.mark.parametrize("name", ["closed", "Open", "", None])
def test_an_unknown_suite_is_refused_with_the_names_allowed(name):
    with pytest.raises(ValueError, match="suite must be one of stages, open, families, briefs, sealed, not"):
        suite(name)


def test_training_populations_are_never_held_out(monkeypatch):
    monkeypatch.setattr(Population, "random", classmethod(lambda cls, rng: suite("open")[rng.integers(20)]
                                                          if rng.random() < 0.9 else STAGES[rng.integers(5)]))
    rng = np.random.default_rng(0)
    assert {draw_training_population(rng) for _ in range(100)} == set(STAGES)


def test_training_populations_come_from_a_seed_or_a_generator():
    assert draw_training_population(3) == draw_training_population(np.random.default_rng(3))
    rng = np.random.default_rng(3)
    drawn = [draw_training_population(rng) for _ in range(300)]
    assert not set(drawn) & set(suite("open"))
    assert len(set(drawn)) > 250 and all(any(getattr(p, kind) for p in drawn) for kind in KINDS)


def test_the_curriculum_goes_through_the_stages_in_order():
    stages = [curriculum(p) for p in np.linspace(0, 1, 1001)]
    assert stages == sorted(stages)
    assert all(abs(stages.count(stage) - 200) <= 1 for stage in range(5))


@pytest.mark.parametrize("progress", [-0.01, 1.01, float("nan")])
def test_no_progress_outside_the_training(progress):
    with pytest.raises(ValueError, match="progress must be a number from 0 to 1"):
        curriculum(progress)


# The same bits, however it is played

def test_an_episode_is_what_simulate_gives():
    env, mechanism = DaedalusEnv(STAGES[4]), Mechanism.random(1)
    env.reset(seed=5, episode=7)
    played = [(env.step(mechanism), env.outcome) for _ in range(10)]
    together = simulate(mechanism, STAGES[4], [(5, 7)])
    for name in SCORES:
        assert [getattr(outcome, name) for _, outcome in played] == getattr(together, name)[0].tolist()
    assert [list(observation.signals.values()) for observation, _ in played] == together.signals[0].tolist()
    assert [observation.reward for observation, _ in played] == together.reward[0].tolist()


def test_alone_or_in_any_batch_an_episode_is_the_same():
    rng = np.random.default_rng(0)
    keys = [(3, i) for i in range(len(MIXED))]
    played = [[Mechanism.random(rng) for _ in MIXED] for _ in range(4)]
    order = rng.permutation(len(MIXED)).tolist()
    batch = open_episodes([MIXED[i] for i in order], [keys[i] for i in order], 4)
    seen = [observe(batch)]
    for mechanisms in played:
        batch = play_step(batch, [mechanisms[i] for i in order])
        seen.append(observe(batch))
    for place, i in enumerate(order):
        env = DaedalusEnv(MIXED[i], 4)
        alone = [env.reset(*keys[i])] + [env.step(mechanisms[i]) for mechanisms in played]
        assert alone == [observations[place] for observations in seen]


@settings(max_examples=30, deadline=None)
@given(drawn_populations, drawn_mechanisms, drawn_mechanisms, seeds, st.integers(0, 4))
def test_reset_again_gives_the_same_episode(population, first, second, seed, episode):
    env, other = DaedalusEnv(population, 2), DaedalusEnv(population, 2)
    one = [env.reset(seed, episode), env.step(first), env.step(second)]
    other.reset(seed + 1, episode)
    other.step(second)
    assert [other.reset(seed, episode), other.step(first), other.step(second)] == one


def test_another_seed_or_episode_is_another_market():
    env = DaedalusEnv(STAGES[0])
    assert len({env.reset(seed, episode).to_json() for seed in range(3) for episode in range(3)}) == 9


def test_a_step_leaves_the_earlier_state_as_it_is():
    before = open_episodes(MIXED, 0)
    saved = json.dumps(before.to_dict())
    once, again = play_step(before, INFORMED_GREEDY), play_step(before, INFORMED_GREEDY)
    assert observe(once) == observe(again)
    assert json.dumps(before.to_dict()) == saved


@settings(max_examples=20, deadline=None)
@given(drawn_populations, st.lists(drawn_mechanisms, min_size=5, max_size=5), seeds, st.integers(0, 5))
def test_a_snapshot_goes_through_json_and_continues_to_the_bit(population, mechanisms, seed, when):
    env = DaedalusEnv(population, 5)
    env.reset(seed, 2)
    for mechanism in mechanisms[:when]:
        env.step(mechanism)
    twin = DaedalusEnv.restore(json.loads(json.dumps(env.snapshot(), allow_nan=False)))
    assert (twin.population, twin.episode_length) == (env.population, env.episode_length)
    assert (twin.observe(), twin.outcome) == (env.observe(), env.outcome)
    for mechanism in mechanisms[when:]:
        assert env.step(mechanism) == twin.step(mechanism)
    assert env.snapshot() == twin.snapshot()


def test_a_hidden_horizon_hides_the_length_and_changes_nothing_else():
    envs = {hidden: DaedalusEnv(STAGES[4], 3, hidden_horizon=hidden) for hidden in (False, True)}
    seen = {hidden: [env.reset(5), *(env.step(INFORMED_GREEDY) for _ in range(3))] for hidden, env in envs.items()}
    assert [observation.replace(episode_length=3) for observation in seen[True]] == seen[False]
    assert {observation.episode_length for observation in seen[True]} == {None}
    assert [features(observation, ["progress"])[0] for observation in seen[True]] == [0.5] * 4
    twin = DaedalusEnv.restore(json.loads(json.dumps(envs[True].snapshot())))
    assert twin.observe() == seen[True][-1] and twin.hidden_horizon
    assert "hidden_horizon" not in envs[False].snapshot()["episodes"]   # snapshots of shown horizons are as they were


def test_the_largest_seed_survives_a_snapshot():
    env = DaedalusEnv(STAGES[4])
    env.reset(2**63, 2**63)
    twin = DaedalusEnv.restore(json.loads(json.dumps(env.snapshot())))
    assert twin.step(INFORMED_GREEDY) == env.step(INFORMED_GREEDY)


def test_a_batch_goes_through_json():
    batch = play_step(open_episodes(MIXED, 1), INFORMED_GREEDY)
    saved = Episodes.from_dict(json.loads(json.dumps(batch.to_dict())))
    assert observe(play_step(saved, DEFAULT_MECHANISM)) == observe(play_step(batch, DEFAULT_MECHANISM))


# What is observed

def test_what_an_episode_shows_from_its_beginning_to_its_end():
    env = DaedalusEnv(STAGES[3], episode_length=5)
    observation = env.reset(seed=1)
    _, warm_up = open_market(STAGES[3], 1)
    assert (observation.round_number, observation.episode_length, observation.done) == (0, 5, False)
    assert (observation.reward, observation.mechanism) == (None, DEFAULT_MECHANISM)
    assert [dict(outcome) for outcome in observation.market_outcomes] == [
        {name: getattr(warm_up, name)[0] for name in ("welfare", "fairness", "participation")}]
    assert env.outcome.welfare == warm_up.welfare[0]
    shown = list(observation.market_outcomes)
    for number in range(1, 6):
        observation = env.step(INFORMED_GREEDY)
        shown.append(observation.market_outcomes[-1])
        assert observation == env.observe()
        assert observation.market_outcomes == tuple(shown[-RECENT:])
        assert (observation.round_number, observation.done) == (number, number == 5)
        assert (observation.reward, observation.mechanism) == (env.outcome.reward, INFORMED_GREEDY)
        assert tuple(observation.signals) == SIGNALS
        assert all(getattr(env.outcome, name) == value for name, value in observation.market_outcomes[-1])


@settings(max_examples=60, deadline=None)
@given(drawn_populations, drawn_mechanisms, seeds)
def test_every_observation_is_valid_and_fits_the_gym_box(population, mechanism, seed):
    env = DaedalusEnv(population, 1)
    for observation in (env.reset(seed), env.step(mechanism)):
        assert Observation.from_json(observation.to_json()) == observation
        numbers = features(observation)
        assert ((0 <= numbers) & (numbers <= 64)).all()


def test_every_number_of_bidders_can_be_observed():
    for bidders in range(1, 65):
        env = DaedalusEnv(Population(truthful=bidders), 1)
        env.reset()
        assert 0 <= env.step(DEFAULT_MECHANISM).market_outcomes[-1].participation <= 1


def test_features_are_named_numbers():
    env = DaedalusEnv(STAGES[4], 4)
    env.reset()
    observation = env.step(INFORMED_GREEDY)
    assert features(observation).shape == (len(FEATURES),)
    assert features(observation, ["unsold", "progress"]).tolist() == [observation.signals["unsold"], 0.25]
    published = features(observation.published(), PUBLISHED_FEATURES)
    assert features(observation, PUBLISHED_FEATURES).tolist() == published.tolist()
    with pytest.raises(ValueError, match="the observation has no bidders, units"):
        features(observation.published())
    with pytest.raises(ValueError, match="the observation has no welfare, fairness, participation; it has progress"):
        features(Observation(round_number=0, episode_length=1), PUBLISHED_FEATURES)


def test_outcome_of_any_episode_of_a_batch():
    batch = play_step(open_episodes(MIXED, 0), INFORMED_GREEDY)
    assert [outcome_of(batch, i).reward for i in range(len(MIXED))] == [o.reward for o in observe(batch)]


# Wrong use

def test_a_step_out_of_turn_is_refused():
    env = DaedalusEnv(STAGES[0], 1)
    for early in (env.observe, env.snapshot, lambda: env.outcome, lambda: env.step(INFORMED_GREEDY)):
        with pytest.raises(EpisodeError, match="no episode has begun: reset starts one"):
            early()
    env.reset()
    last = env.step(INFORMED_GREEDY)
    with pytest.raises(EpisodeError, match="the episode is over at step 1: reset starts another"):
        env.step(INFORMED_GREEDY)
    assert env.observe() == last
    assert not env.reset().done


@pytest.mark.parametrize("wrong", [None, {"reserve_price": 0.1}, "second_price", [INFORMED_GREEDY]])
def test_what_is_not_a_mechanism_is_refused_and_nothing_is_lost(wrong):
    env = DaedalusEnv(STAGES[0])
    observation = env.reset()
    with pytest.raises(ValueError, match="mechanisms must hold Mechanism objects, not"):
        env.step(wrong)
    assert env.observe() == observation
    assert env.step(INFORMED_GREEDY).round_number == 1


@pytest.mark.parametrize("length", [0, -1, 1.5, True, "10", None])
def test_a_wrong_episode_length_is_refused(length):
    with pytest.raises(ValueError, match="episode_length must be a whole number of at least 1, not"):
        DaedalusEnv(STAGES[0], length).reset()


@pytest.mark.parametrize("seed", [-1, 1.5, "x", None, 2**64])
def test_a_wrong_seed_is_refused(seed):
    with pytest.raises(ValueError, match="seeds must be"):
        DaedalusEnv(STAGES[0]).reset(seed)


def test_what_is_not_a_population_is_refused():
    with pytest.raises(ValueError, match="populations must hold Population objects, not 3"):
        DaedalusEnv(3).reset()


@pytest.mark.parametrize("wrong", [None, {}, {"population": {}}, []])
def test_what_is_not_a_snapshot_is_refused(wrong):
    with pytest.raises(ValueError, match="a snapshot is what DaedalusEnv.snapshot returned"):
        DaedalusEnv.restore(wrong)


def test_a_snapshot_with_impossible_bidders_is_refused():
    env = DaedalusEnv(STAGES[0])
    env.reset()
    snapshot = env.snapshot()
    snapshot["population"]["truthful"] = -1
    with pytest.raises(PopulationError, match="truthful"):
        DaedalusEnv.restore(snapshot)


# Gymnasium

@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("population", [STAGES[0], STAGES[4], suite("open")[2]])
def test_gymnasium_finds_nothing_to_complain_about(population):
    from gymnasium.utils.env_checker import check_env

    check_env(gym_env(population), skip_render_check=True)


def test_the_gym_environment_plays_the_same_episodes():
    gym, env = gym_env(STAGES[4], 3), DaedalusEnv(STAGES[4], 3)
    for episode, options in enumerate([{"seed": 9}, {}, {}]):
        observed, info = gym.reset(**options)
        observation = env.reset(9, episode)
        assert observed.tolist() == features(observation).tolist() and info == dict(env.outcome)
        for _ in range(3):
            action = gym.action_space.sample()
            observed, reward, terminated, truncated, info = gym.step(action)
            observation = env.step(mechanism_of_action(action))
            assert observed.tolist() == features(observation).tolist() and info == dict(env.outcome)
            assert (reward, terminated, truncated) == (observation.reward, observation.done, False)


@pytest.mark.parametrize("wanted", [{"objective": Objective(fairness=0, revenue=1)}, {"brief": Brief(at_most={"reserve_price": 0.2})}])
def test_the_gym_environment_rewards_what_is_wanted(wanted):
    high = dict(zip(FIELDS, Mechanism(reserve_price=0.9, auction_type="first_price").to_array()))
    env, gym = DaedalusEnv(Population.stage(1), 2, **wanted), gym_env(Population.stage(1), 2, **wanted)
    env.reset(3), gym.reset(seed=3)
    assert gym.step(high)[1] == env.step(mechanism_of_action(high)).reward
    assert (env.outcome.reward == 0) == ("brief" in wanted)


def test_without_a_seed_two_gym_environments_differ():
    assert gym_env(STAGES[0]).reset()[0].tolist() != gym_env(STAGES[0]).reset()[0].tolist()


@given(drawn_mechanisms)
def test_every_mechanism_is_an_action(mechanism):
    assert mechanism_of_action(dict(zip(FIELDS, mechanism.to_array(), strict=True))) == mechanism


@pytest.mark.parametrize("wrong", [None, np.zeros(11), {"reserve_price": 0.1}, dict.fromkeys(FIELDS, 0) | {"fee": 1}])
def test_a_wrong_action_is_refused_with_the_levers(wrong):
    with pytest.raises(MechanismError, match="an action must be a dict with the entries auction_type, reserve_price"):
        mechanism_of_action(wrong)


def test_an_action_out_of_range_is_refused_by_name():
    with pytest.raises(MechanismError, match="reserve_price"):
        mechanism_of_action(dict.fromkeys(FIELDS, 0) | {"reserve_price": 0.95})
    with pytest.raises(MechanismError, match="coalition_policy"):
        mechanism_of_action(dict.fromkeys(FIELDS, 0) | {"coalition_policy": 4})


def test_gymnasium_is_imported_only_when_asked_for():
    code = """
import sys
from daedalus.market.bidders import Population
from daedalus.env import gym_env
assert 'gymnasium' not in sys.modules
sys.modules['gymnasium'] = None
try:
    gym_env(Population.stage(0))
except ModuleNotFoundError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "gym_env needs gymnasium: pip install gymnasium\n"


# Objectives

def test_an_episode_keeps_its_objective_and_a_snapshot_too():
    aim = Objective(welfare=2, fairness=0, stability=0.5, revenue=1)
    env, published = (DaedalusEnv(Population.stage(4), objective=objective) for objective in (aim, Objective()))
    assert env.reset(3) == published.reset(3)   # nothing has been rewarded yet
    twin = DaedalusEnv.restore(json.loads(json.dumps(env.snapshot())))
    for mechanism in (INFORMED_GREEDY, DEFAULT_MECHANISM):
        seen = env.step(mechanism)
        assert seen == twin.step(mechanism) and seen.reward == env.outcome.reward
        assert seen.replace(reward=0.0) == published.step(mechanism).replace(reward=0.0)
    assert twin.objective == aim
    assert seen.reward != published.outcome.reward
    held = simulate(INFORMED_GREEDY, Population.stage(4), 3, 1, objective=aim)
    assert env.reset(3) and env.step(INFORMED_GREEDY).reward == held.reward[0, 0]
