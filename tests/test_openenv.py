"""The market as an OpenEnv environment, in one process: options, actions, rubrics, and what a session gives away."""

import asyncio

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openenv.core.rubrics import Rubric
from pydantic import ValidationError

from daedalus.market.bidders import KINDS, Population
from daedalus.env import DaedalusEnv, EpisodeError
from daedalus.market.engine import SIGNALS, simulate
from daedalus.serving.openenv import (
    LARGEST_SEED, MOST_STEPS, DaedalusAction, DaedalusEnvClient, DaedalusOpenEnv, ProductRubric, ResetOptions,
    ScoreRubric, composite_rubric, mechanism_of)
from daedalus.schema import DEFAULT_MECHANISM, FIELDS, INFORMED_GREEDY, LEVERS, AmountLever, Mechanism

SCORES = ("welfare", "fairness", "participation", "stability")
seeds = st.integers(0, 2**32)
mechanisms, populations = seeds.map(Mechanism.random), seeds.map(Population.random)


def action(mechanism: Mechanism = DEFAULT_MECHANISM) -> DaedalusAction:
    """A mechanism as an action."""
    return DaedalusAction(**mechanism.model_dump())


def play(env: DaedalusOpenEnv, played: list[Mechanism], **options) -> list[float]:
    """The rewards of an episode."""
    env.reset(episode_length=len(played), **options)
    return [env.step(action(mechanism)).reward for mechanism in played]


# Options

def test_options_have_the_published_defaults():
    options = ResetOptions()
    assert (options.n_agents, options.episode_length) == (8, 10)
    assert options.bidders() == Population.stage(4)


@pytest.mark.parametrize("name, lowest, highest", [
    ("n_agents", 1, 64), ("episode_length", 1, MOST_STEPS), ("stage", 0, 4),
    ("seed", 0, LARGEST_SEED), ("episode", 0, LARGEST_SEED)])
def test_a_whole_number_has_a_range(name, lowest, highest):
    for value in (lowest, highest):
        assert getattr(ResetOptions(**{name: value}), name) == value
    for value in (lowest - 1, highest + 1, lowest + 0.5, str(lowest), True, float("nan"), float("inf"), [lowest]):
        with pytest.raises(ValueError, match=f"^{name} must be a whole number from {lowest} to {highest}, not "):
            ResetOptions(**{name: value})


@pytest.mark.parametrize("options, sentence", [
    ({"signals": 1}, "signals must be true or false, not 1"),
    ({"bidders": 8}, "'bidders' is not a field; the fields are n_agents, episode_length, "),
    ({"population": {"truthful": 64, "shader": 1}}, "the counts must add up to 1 to 64 bidders, not 65"),
    ({"population": {"honest": 1}}, "'honest' is not a field"),
    ({"population": Population(truthful=1), "stage": 0}, "population already says who bids"),
    ({"population": Population(truthful=1), "n_agents": 1}, "population already says who bids"),
    ({"stage": 5, "n_agents": 0}, r"\(and 1 more wrong\)")])
def test_what_is_no_option_is_refused_in_a_sentence(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        ResetOptions(**options)
    with pytest.raises(ValueError, match=sentence):
        DaedalusOpenEnv().reset(**options)


@pytest.mark.parametrize("stage", range(5))
def test_bidders_keep_the_proportions_of_the_stage(stage):
    shares = np.array(Population.stage(stage).counts) / 8
    for bidders in range(1, 65):
        counts = np.array(ResetOptions(stage=stage, n_agents=bidders).bidders().counts)
        assert counts.sum() == bidders
        assert (np.abs(counts - shares * bidders) < 1).all()


@pytest.mark.parametrize("name", [5, "x" * 256, ["x"]])
def test_the_name_of_an_episode_is_a_short_text(name):
    with pytest.raises(ValueError, match="episode_id must be a text of at most 255 characters"):
        DaedalusOpenEnv().reset(episode_id=name)


# Actions

@given(mechanisms)
def test_every_mechanism_is_an_action(mechanism):
    assert mechanism_of(action(mechanism)) == mechanism
    assert mechanism_of(DaedalusAction.model_validate_json(mechanism.to_json())) == mechanism


def test_an_action_has_the_fields_and_the_defaults_of_a_mechanism():
    assert [name for name in DaedalusAction.model_fields if name != "metadata"] == list(FIELDS)
    assert mechanism_of(DaedalusAction()) == Mechanism()


@pytest.mark.parametrize("name", FIELDS)
def test_an_action_refuses_what_a_mechanism_refuses(name):
    amounts = isinstance(LEVERS[name], AmountLever)
    for value in [-0.1, LEVERS[name].top + 0.1, float("nan"), float("inf"), "0.1", True] if amounts else [0, "x", None]:
        with pytest.raises(ValueError, match=name):
            DaedalusAction(**{name: value})
        with pytest.raises(ValueError, match=name):
            Mechanism(**{name: value})


def test_an_action_refuses_unknown_fields():
    with pytest.raises(ValidationError, match="rake"):
        DaedalusAction(rake=0.1)


# Rewards

@settings(max_examples=60)
@given(st.lists(mechanisms, min_size=1, max_size=3), populations, seeds)
def test_the_product_is_the_reward_of_the_engine_to_the_bit(played, population, seed):
    env = DaedalusEnv(population, len(played))
    env.reset(seed)
    expected = [env.step(mechanism).reward for mechanism in played]
    assert play(DaedalusOpenEnv(), played, seed=seed, population=population) == expected


@given(mechanisms, populations, seeds, st.integers(0, 1000))
def test_a_held_mechanism_earns_what_simulate_says(mechanism, population, seed, episode):
    expected = simulate([mechanism], [population], [(seed, episode)], 2).reward[0].tolist()
    assert play(DaedalusOpenEnv(), [mechanism] * 2, seed=seed, episode=episode, population=population) == expected


def test_the_rubric_shows_the_scores_of_the_step():
    env = DaedalusOpenEnv()
    play(env, [INFORMED_GREEDY], seed=5, stage=2)
    expected = simulate([INFORMED_GREEDY], [Population.stage(2)], [5], 1)
    scores = {name: rubric.last_score for name, rubric in env.rubric.named_rubrics()}
    assert scores == {name: getattr(expected, name)[0, 0] for name in SCORES}
    assert env.rubric.last_score == expected.reward[0, 0]


def test_another_product_makes_another_reward():
    env = DaedalusOpenEnv()
    env.rubric = ProductRubric(welfare=ScoreRubric("welfare"), fairness=ScoreRubric("fairness"))
    env.reset(seed=3)
    seen = env.step(action(INFORMED_GREEDY))
    by_hand = [session["welfare"] * session["fairness"] for session in seen.sessions]
    assert seen.reward == pytest.approx(sum(by_hand) / len(by_hand), abs=1e-15)
    assert seen.reward != simulate([INFORMED_GREEDY], [Population.stage(4)], [3], 1).reward[0, 0]


def test_a_rubric_of_ones_own_takes_part_in_the_product():
    class Cheap(Rubric):
        """Half the reward for a reserve price."""

        def forward(self, action, observation):
            return 0.5 if action.reserve_price else 1.0

    env = DaedalusOpenEnv()
    env.rubric = ProductRubric(all=composite_rubric(), cheap=Cheap())
    with_reserve, without = Mechanism(reserve_price=0.2), Mechanism(reserve_price=0.0)
    for mechanism, factor in ((with_reserve, 0.5), (without, 1.0)):
        reward, = play(env, [mechanism], seed=1)
        assert reward == pytest.approx(factor * simulate([mechanism], [Population.stage(4)], [1], 1).reward[0, 0])


def test_a_score_has_one_of_the_five_names():
    with pytest.raises(ValueError, match=f"name must be one of {', '.join(SCORES)}, revenue, not 'profit'"):
        ScoreRubric("profit")


# Episodes

def test_number_of_agents_and_length_of_the_episode_are_honoured():
    env = DaedalusOpenEnv()
    seen = env.reset(n_agents=5, episode_length=3, seed=0)
    assert (seen.round_number, seen.episode_length, seen.reward, seen.done) == (0, 3, None, False)
    assert seen.signals["bidders"] == 5 == env.state.n_agents
    assert [env.step(action()).done for _ in range(3)] == [False, False, True]
    with pytest.raises(EpisodeError, match="the episode is over at step 3: reset starts another"):
        env.step(action())


def test_there_is_no_step_before_a_reset():
    with pytest.raises(EpisodeError, match="no episode has begun: reset starts one"):
        DaedalusOpenEnv().step(action())


def test_a_closed_session_says_so():
    env = DaedalusOpenEnv()
    env.reset()
    env.close()
    for call in (env.reset, lambda: env.step(action()), lambda: env.state):
        with pytest.raises(EpisodeError, match="this session has ended: connect again"):
            call()
    env.close()


def test_a_refused_reset_leaves_the_episode_as_it_was():
    env = DaedalusOpenEnv()
    env.reset(seed=4, episode_length=2)
    first = env.step(action()).reward
    with pytest.raises(ValueError, match="n_agents"):
        env.reset(n_agents=65)
    assert [first, env.step(action()).reward] == play(env, [Mechanism()] * 2, seed=4)


def test_without_a_seed_each_episode_is_new_and_can_be_repeated():
    env = DaedalusOpenEnv()
    drawn = [env.reset().metadata["seed"] for _ in range(4)]
    assert len(set(drawn)) == 4
    rewards = env.step(action()).reward
    env.reset(seed=drawn[-1])
    assert env.step(action()).reward == rewards


def test_a_population_needs_no_seed():
    env, population = DaedalusOpenEnv(), Population(truthful=2, shader=1)
    seed = env.reset(population=population).metadata["seed"]
    expected = simulate([Mechanism()], [population], [seed], 1).reward[0, 0]
    assert env.step(action()).reward == expected


def test_sessions_side_by_side_do_not_touch():
    envs = [DaedalusOpenEnv() for _ in range(4)]
    for seed, env in enumerate(envs):
        env.reset(seed=seed, episode_length=3)
    rewards = [[env.step(action()).reward for env in envs] for _ in range(3)]
    expected = simulate([Mechanism()] * 4, [Population.stage(4)] * 4, list(range(4)), 3).reward
    assert np.transpose(rewards).tolist() == expected.tolist()


def test_the_asynchronous_calls_are_the_same():
    async def rewards(env):
        """An episode of one step."""
        await env.reset_async(seed=9, n_agents=6)
        return (await env.step_async(action(INFORMED_GREEDY))).reward

    assert [asyncio.run(rewards(DaedalusOpenEnv()))] == play(DaedalusOpenEnv(), [INFORMED_GREEDY], seed=9, n_agents=6)


# What is told

def test_who_bids_is_hidden_until_the_episode_is_over():
    env, population = DaedalusOpenEnv(), Population(truthful=3, colluder=2, n_items=2)
    assert env.state.episode_id is None
    env.reset(seed=1, population=population, episode_length=2, episode_id="mine")
    for step in range(2):
        told = env.state
        assert (told.step_count, told.done, told.population, told.episode_id) == (step, False, None, "mine")
        text = env.step(action()).model_dump_json()
        assert not any(kind in text for kind in KINDS)
    assert env.state.done and Population(**env.state.population) == population


def test_the_published_observation_has_no_signals_and_no_mechanism():
    env = DaedalusOpenEnv()
    for seen in (env.reset(seed=2), env.step(action(INFORMED_GREEDY))):
        assert set(seen.signals) == set(SIGNALS) and seen.mechanism is not None
    for seen in (env.reset(seed=2, signals=False), env.step(action(INFORMED_GREEDY))):
        assert seen.signals is None and seen.mechanism is None
        assert "last_mechanism" not in seen.prompt and "price" not in seen.prompt


def test_the_prompt_is_that_of_the_market():
    env, market = DaedalusOpenEnv(), DaedalusEnv(Population.stage(4))
    assert env.reset(seed=6).prompt == market.reset(6).prompt()
    assert env.step(action(INFORMED_GREEDY)).prompt == market.step(INFORMED_GREEDY).prompt()


# The client

def test_the_client_can_be_made_without_a_server():
    client = DaedalusEnvClient("http://127.0.0.1:1", n_agents=5, episode_length=3)
    assert client.base_url == "http://127.0.0.1:1"


@pytest.mark.parametrize("name, value", [("n_agents", 65), ("episode_length", 0)])
def test_the_client_refuses_what_the_server_would(name, value):
    with pytest.raises(ValueError, match=f"{name} must be a whole number from 1 to "):
        DaedalusEnvClient("http://127.0.0.1:1", **{name: value})
