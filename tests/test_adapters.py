"""Other people's interfaces: their own checks, theory for the bidders' auction, and TRL's loop with the tool."""

import copy
import subprocess
import sys
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daedalus.serving.adapters import (
    SILENT, TOOL_PROMPT, UNKNOWN, MarketTool, Sale, announce, bidder_env, flat_env, market_reward, mechanism_of_vector,
    private_values, read_bids, tool_rows, tool_tokenizer, vector_of_mechanism)
from daedalus.market.auction import clear
from daedalus.market.bidders import Population
from daedalus.env import FEATURES, DaedalusEnv, EpisodeError, gym_env
from daedalus.paths import install_hint
from daedalus.schema import (
    AUCTION_TYPES, COALITION_POLICIES, FIELDS, INFORMED_GREEDY, LEVERS, AmountLever, Mechanism, MechanismError, Objective)

POPULATIONS = [Population.stage(0), Population.stage(4), Population(truthful=2, shader=1, n_items=3)]
LARGE = 10_000  # lots, where a mean is compared with theory
seeds = st.integers(0, 2**32)
drawn_mechanisms = seeds.map(Mechanism.random)


# A vector of levers

@given(drawn_mechanisms)
def test_every_mechanism_has_a_vector(mechanism):
    vector = vector_of_mechanism(mechanism)
    assert (np.abs(vector) <= 1).all()
    assert mechanism_of_vector(vector).to_array() == pytest.approx(mechanism.to_array(), abs=1e-12)


def test_the_ends_and_the_middle_by_hand():
    lowest, highest, middle = (mechanism_of_vector(np.full(11, x)) for x in (-1, 1, 0))
    assert lowest == Mechanism(auction_type="first_price", reserve_price=0, reveal_clearing_price=False)
    assert highest.to_array().tolist() == [2, 0.9, 1, 1, 1, 1, 1, 3, 3, 3, 3]
    assert middle.to_array().tolist() == [1, 0.45, 1, 1, 1, 1, 1, 1.5, 1.5, 1.5, 2]


@pytest.mark.parametrize("at", range(len(FIELDS)))
def test_each_choice_has_an_equal_share_of_its_lever(at):
    found, lever = [], LEVERS[FIELDS[at]]
    for x in np.linspace(-1, 1, 1201)[:-1] + 1 / 1200:
        vector = np.zeros(11)
        vector[at] = x
        found.append(mechanism_of_vector(vector).to_array()[at])
    if isinstance(lever, AmountLever):
        assert np.diff(found) == pytest.approx(lever.top / 1200)
    else:
        assert np.bincount(np.array(found, int)).tolist() == [1200 // len(lever.settings)] * len(lever.settings)


@pytest.mark.parametrize("wrong", [np.zeros(10), np.zeros((1, 11)), 0.5, np.full(11, np.nan), np.full(11, 1.01)])
def test_what_is_no_vector_is_refused(wrong):
    with pytest.raises(MechanismError, match="a vector must hold 11 numbers from -1 to 1, not "):
        mechanism_of_vector(wrong)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("population", POPULATIONS)
def test_gymnasium_accepts_the_flat_environment(population):
    pytest.importorskip("gymnasium")
    from gymnasium.utils.env_checker import check_env

    check_env(flat_env(population), skip_render_check=True)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("make", [gym_env, flat_env])
def test_two_environments_with_one_seed_match(make):
    pytest.importorskip("gymnasium")
    from gymnasium.utils.env_match import check_environments_match

    check_environments_match(make(POPULATIONS[1], 4), make(POPULATIONS[1], 4), 25, seed=3, skip_render=True)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("population", POPULATIONS)
def test_stable_baselines_accepts_the_flat_environment(population):
    checker = pytest.importorskip("stable_baselines3.common.env_checker", reason="needs stable-baselines3")
    checker.check_env(flat_env(population))


def test_the_flat_environment_plays_the_episodes_of_gym_env():
    pytest.importorskip("gymnasium")
    flat, gym = flat_env(POPULATIONS[1], 3), gym_env(POPULATIONS[1], 3)
    for options in ({"seed": 9}, {}):
        (seen, info), (expected, expected_info) = flat.reset(**options), gym.reset(**options)
        assert seen.dtype == np.float32 and seen.shape == (len(FEATURES),)
        assert seen.tolist() == expected.astype(np.float32).tolist() and info == expected_info
        for _ in range(3):
            action = flat.action_space.sample()
            levers = dict(zip(FIELDS, mechanism_of_vector(action).to_array()))
            (seen, *others), (expected, *expected_others) = flat.step(action), gym.step(levers)
            assert seen.tolist() == expected.astype(np.float32).tolist() and others == expected_others


def test_the_flat_environment_rewards_what_is_wanted():
    wanted, action = Objective(fairness=0, revenue=1), np.zeros(len(FIELDS), np.float32)
    env, flat = DaedalusEnv(Population.stage(1), 2, wanted), flat_env(Population.stage(1), 2, wanted)
    env.reset(3), flat.reset(seed=3)
    assert flat.step(action)[1] == env.step(mechanism_of_vector(action)).reward


def test_ppo_trains_on_the_flat_environment():
    stable_baselines3 = pytest.importorskip("stable_baselines3", reason="needs stable-baselines3")
    env = flat_env(POPULATIONS[1])
    learner = stable_baselines3.PPO("MlpPolicy", env, n_steps=64, batch_size=32, seed=0, device="cpu")
    before = copy.deepcopy(learner.policy.state_dict())
    learner.learn(192)
    assert learner.num_timesteps == 192
    assert any((before[name] != value).any() for name, value in learner.policy.state_dict().items())
    action, _ = learner.predict(env.reset(seed=0)[0])
    _, reward, *_ = env.step(action)
    assert 0 <= reward <= 1


# The bidders as agents

def bid_all(env, factors=None, seed=None):
    """One episode in which bidders multiply their value by a factor: gains and payments, [lots, bidders]."""
    seen, _ = env.reset(seed=seed)
    factors, gains, paid = factors or [1.0] * len(env.agents), [], []
    while env.agents:
        bids = {agent: factor * seen[agent]["value"] for agent, factor in zip(env.agents, factors)}
        seen, rewards, *_ = env.step(bids)
        gains.append(list(rewards.values()))
        paid.append([view["paid"][0] for view in seen.values()])
    return np.array(gains), np.array(paid)


def free(auction_type):
    """Rules without a reserve price."""
    return Mechanism(auction_type=auction_type, reserve_price=0.0)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("sale", [Sale(), Sale(bidders=1, lots=1), Sale(bidders=9, lots=3, n_items=2, value_low=0.3)])
@pytest.mark.parametrize("mechanism", [SILENT, INFORMED_GREEDY, mechanism_of_vector(np.ones(11))])
def test_pettingzoo_accepts_the_bidders(sale, mechanism):
    tests = pytest.importorskip("pettingzoo.test", reason="needs pettingzoo")
    tests.parallel_api_test(bidder_env(sale, mechanism), num_cycles=50)
    tests.parallel_seed_test(lambda: bidder_env(sale, mechanism))


def test_same_seed_same_bits_and_the_next_reset_is_the_next_episode():
    pytest.importorskip("pettingzoo", reason="needs pettingzoo")
    sale, one, other = Sale(lots=20), bidder_env(Sale(lots=20)), bidder_env(Sale(lots=20))
    first, again = bid_all(one, seed=5), bid_all(other, seed=5)
    assert all((a == b).all() for a, b in zip(first, again))
    assert (bid_all(one)[0] == bid_all(other)[0]).all()
    seen, _ = one.reset()
    assert [view["value"][0] for view in seen.values()] == private_values(sale, (5, 2), 0).tolist()
    assert (bid_all(other, seed=6)[0] != first[0]).any()


def test_without_a_seed_two_sales_differ():
    pytest.importorskip("pettingzoo", reason="needs pettingzoo")
    assert bidder_env(Sale()).reset()[0]["bidder_0"]["value"] != bidder_env(Sale()).reset()[0]["bidder_0"]["value"]


def test_values_are_numpys_philox_on_the_range():
    """A word of the generator makes two values; lot 3 is block (0, 0, 0, 3), and NumPy counts up before it draws."""
    key, lot = (7, 2), 3
    before = np.array([2**64 - 1] * 3 + [lot - 1], np.uint64)
    words = np.random.Philox(key=np.array(key, np.uint64), counter=before).random_raw(2)
    halves = [(int(half) + 0.5) / 2**32 for word in words for half in (int(word) >> 32, int(word) & 0xFFFFFFFF)]
    sale = Sale(bidders=4, value_low=0.5, value_high=0.75)
    assert private_values(sale, key, lot).tolist() == [0.5 + 0.25 * u for u in halves]


def test_one_lot_by_hand():
    pytest.importorskip("pettingzoo", reason="needs pettingzoo")
    env = bidder_env(Sale(bidders=3, lots=2), Mechanism(reserve_price=0.2, reveal_competing_bids=True))
    before, infos = env.reset(seed=1)
    values = [view["value"][0] for view in before.values()]
    assert infos == {"bidder_0": {}, "bidder_1": {}, "bidder_2": {}}
    assert all((before["bidder_0"][name] == UNKNOWN).all() for name in ("units", "paid", "price", "winners", "bids"))
    seen, gains, ended, cut, _ = env.step({"bidder_0": np.array([0.1]), "bidder_1": 0.6, "bidder_2": [0.5]})
    assert gains == {"bidder_0": 0, "bidder_1": values[1] - 0.5, "bidder_2": 0}
    assert [view["units"][0] for view in seen.values()] == [0, 1, 0]
    assert [view["paid"][0] for view in seen.values()] == [0, 0.5, 0]
    assert seen["bidder_2"]["bids"].tolist() == [0.1, 0.6, 0.5] and seen["bidder_0"]["price"].tolist() == [0.5]
    assert not any(ended.values()) and env.agents == ["bidder_0", "bidder_1", "bidder_2"]
    _, gains, ended, cut, _ = env.step(dict.fromkeys(env.agents, 0.19))
    assert gains == dict.fromkeys(gains, 0) and all(ended.values()) and not any(cut.values()) and env.agents == []
    with pytest.raises(EpisodeError, match="nothing is for sale: reset starts an episode"):
        env.step({})


@settings(max_examples=30)
@given(seeds, st.sampled_from(AUCTION_TYPES), st.integers(1, 6), st.integers(1, 4), st.sampled_from([0.0, 0.3]))
def test_gains_are_those_of_the_auction(seed, auction_type, bidders, n_items, reserve):
    pytest.importorskip("pettingzoo", reason="needs pettingzoo")
    sale = Sale(bidders=bidders, n_items=n_items, lots=4)
    gains, paid = bid_all(bidder_env(sale, Mechanism(auction_type=auction_type, reserve_price=reserve)), seed=seed)
    values = np.array([private_values(sale, (seed, 0), lot) for lot in range(4)])
    expected = clear(values, auction_type, n_items, reserve)
    assert (gains == values * expected.units - expected.payments).all() and (paid == expected.payments).all()


def test_other_rules_hold_from_the_reset_that_brings_them():
    pytest.importorskip("pettingzoo", reason="needs pettingzoo")
    env = bidder_env(Sale(bidders=2, lots=1), free("second_price"))
    for options, price in ((None, 0.5), ({"mechanism": free("first_price")}, 0.8), (None, 0.8)):
        env.reset(seed=0, options=options)
        seen, *_ = env.step({"bidder_0": 0.8, "bidder_1": 0.5})
        assert seen["bidder_1"]["price"] == price


@given(drawn_mechanisms)
def test_only_what_the_rules_reveal_is_announced(mechanism):
    bids = np.array([0.95, 0.9, 0.98])
    said = announce(mechanism, bids, clear(bids[None], mechanism.auction_type, 2, mechanism.reserve_price))
    price = 0.965 if mechanism.auction_type == "first_price" else 0.9
    full = {"price": [price], "winners": [1, 0, 1], "bids": [0.95, 0.9, 0.98], "distribution": [0.98, 0.95, 0.9]}
    levers = {"price": "clearing_price", "winners": "winner_identity", "bids": "competing_bids",
              "distribution": "bid_distribution"}
    for name, values in said.items():
        revealed = getattr(mechanism, f"reveal_{levers[name]}")
        assert values.tolist() == pytest.approx(full[name] if revealed else [UNKNOWN] * len(values))


def test_the_reserve_price_is_seen_only_if_it_is_public():
    pytest.importorskip("pettingzoo", reason="needs pettingzoo")
    for public, seen_reserve in ((False, UNKNOWN), (True, 0.4)):
        rules = Mechanism(reserve_price=0.4, reveal_reserve=public)
        seen, _ = bidder_env(Sale(), rules).reset(seed=0)
        expected = rules.to_array()
        expected[1] = seen_reserve
        assert seen["bidder_3"]["rules"].tolist() == expected.tolist()


@pytest.mark.parametrize("actions, sentence", [
    ({"a": 0.4}, "actions must be a dict with a bid of each of a, b, not "),
    ({"a": 0.4, "b": 0.1, "c": 0.1}, "actions must be a dict with a bid of each of a, b, not "),
    ([0.4, 0.1], "actions must be a dict with a bid of each of a, b, not "),
    ({"a": 0.4, "b": float("nan")}, "the bid of b must be a number from 0 to 1, not nan"),
    ({"a": -0.1, "b": 0.1}, "the bid of a must be a number from 0 to 1, not -0.1"),
    ({"a": 1.1, "b": 0.1}, "the bid of a must be a number from 0 to 1, not 1.1"),
    ({"a": [0.1, 0.2], "b": 0.1}, "the bid of a must be a number from 0 to 1, not "),
    ({"a": "high", "b": 0.1}, "the bid of a must be a number from 0 to 1, not 'high'")])
def test_a_wrong_bid_is_refused_by_name(actions, sentence):
    with pytest.raises(ValueError, match=sentence):
        read_bids(actions, ["a", "b"])


@pytest.mark.parametrize("fields, sentence", [
    ({"bidders": 0}, "bidders must be a whole number from 1 to 64, not 0"),
    ({"lots": 0}, "lots must be a whole number of at least 1, not 0"),
    ({"value_low": 0.5, "value_high": 0.5}, "value_low must be below value_high"),
    ({"rounds": 3}, "'rounds' is not a field; the fields are bidders, lots")])
def test_a_wrong_sale_is_refused(fields, sentence):
    with pytest.raises(ValueError, match=sentence):
        Sale(**fields)


def test_a_wrong_seed_and_wrong_rules_are_refused():
    pytest.importorskip("pettingzoo", reason="needs pettingzoo")
    for seed in (-1, 0.5, True, "1"):
        with pytest.raises(ValueError, match="seed must be a whole number from 0 to 18446744073709551615, not "):
            bidder_env(Sale()).reset(seed=seed)
    with pytest.raises(ValueError, match="mechanism must be a Mechanism, not 'vcg'"):
        bidder_env(Sale()).reset(options={"mechanism": "vcg"})


@pytest.mark.parametrize("n", [2, 5])
def test_truth_and_equilibrium_bring_in_what_theory_says_and_the_same(n):
    pytest.importorskip("pettingzoo", reason="needs pettingzoo")
    sale, revenue = Sale(bidders=n, lots=LARGE), {}
    spread = {"second_price": 2 * (n - 1), "vcg": 2 * (n - 1), "first_price": (n - 1)**2 / n}
    for kind, numerator in spread.items():
        factor = (n - 1) / n if kind == "first_price" else 1.0
        revenue[kind] = bid_all(bidder_env(sale, free(kind)), [factor] * n, seed=1)[1].sum(1).mean()
        deviation = (numerator / ((n + 1)**2 * (n + 2)))**0.5  # of one lot's revenue
        assert abs(revenue[kind] - (n - 1) / (n + 1)) < 1.96 * deviation / LARGE**0.5
    assert revenue["vcg"] == revenue["second_price"]


def test_no_lone_deviation_gains():
    pytest.importorskip("pettingzoo", reason="needs pettingzoo")
    n, sale = 4, Sale(bidders=4, lots=2500)
    for kind, others in (("second_price", 1.0), ("first_price", 0.75)):
        env = bidder_env(sale, free(kind))
        best = bid_all(env, [others] * n, seed=2)[0][:, 0]
        for factor in (0.5, 0.65, 0.85, 0.95):
            change = bid_all(env, [factor] + [others] * (n - 1), seed=2)[0][:, 0] - best
            assert change.mean() + 1.96 * change.std() / sale.lots**0.5 < 0
            assert kind == "first_price" or (change <= 0).all()


# A tool that a model calls

ROWS = tool_rows([Population.stage(2), Population.stage(3)], seed=4, episode_length=2)


def test_the_tool_plays_the_episode_of_its_row():
    tool, env = MarketTool(), DaedalusEnv(Population.stage(3), 2)
    opening, observation = tool.reset(**ROWS[1]), env.reset(4, 1)
    assert opening == observation.prompt().removesuffix("\nRespond with the JSON only.")
    rewards = []
    for mechanism in (INFORMED_GREEDY, Mechanism.random(0)):
        answer, observation = tool.post_mechanism(**dict(mechanism)), env.step(mechanism)
        rewards.append(observation.reward)
        assert answer.startswith(f"reward: {observation.reward:.2f}\nround_number: ")
        assert answer.endswith("\nThe episode is over.") == observation.done and "Respond" not in answer
    assert market_reward([tool], prompts=None) == [sum(rewards) / 2]


def test_a_step_that_is_not_played_counts_as_zero_and_a_reset_forgets():
    tool = MarketTool()
    tool.reset(**ROWS[0])
    assert tool.mean_reward == 0
    tool.post_mechanism()
    once, env = tool.mean_reward, DaedalusEnv(Population.stage(2), 2)
    env.reset(4, 0)
    assert once == env.step(Mechanism()).reward / 2
    tool.reset(**ROWS[0])
    tool.post_mechanism()
    assert tool.mean_reward == once


def test_a_wrong_call_says_why_and_changes_nothing():
    tool = MarketTool()
    for attempt in (tool.post_mechanism, lambda: tool.mean_reward):
        with pytest.raises(EpisodeError, match="no episode has begun: reset starts one"):
            attempt()
    tool.reset(**ROWS[0])
    with pytest.raises(MechanismError, match="reserve_price must be a number from 0 to 0.9, not 2.0"):
        tool.post_mechanism(reserve_price=2.0)
    assert "round_number: 1 / 2" in tool.post_mechanism()
    tool.post_mechanism()
    with pytest.raises(EpisodeError, match="the episode is over at step 2"):
        tool.post_mechanism()


def test_the_rows_name_episodes():
    assert [row["episode"] for row in ROWS] == [0, 1] and {row["seed"] for row in ROWS} == {4}
    assert Population.from_json(ROWS[1]["population"]) == Population.stage(3)
    assert [message["role"] for message in ROWS[0]["prompt"]] == ["system", "user"]
    assert ROWS[0]["prompt"][0]["content"] == TOOL_PROMPT


def test_the_tool_is_described_as_the_schema_is():
    utils = pytest.importorskip("transformers.utils", reason="needs the train extra")
    parameters = utils.get_json_schema(MarketTool().post_mechanism)["function"]["parameters"]["properties"]
    assert tuple(parameters) == FIELDS
    assert parameters["auction_type"]["enum"] == list(AUCTION_TYPES)
    assert parameters["coalition_policy"]["enum"] == list(COALITION_POLICIES)
    for name, lever in LEVERS.items():
        amount = isinstance(lever, AmountLever)
        kind = "number" if amount else "boolean" if lever.settings == (False, True) else "string"
        assert parameters[name]["type"] == kind
        assert not amount or f"0 to {lever.top:g}." in parameters[name]["description"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Train a tiny model for two steps with TRL; words can be put into its mouth."""
    pytest.importorskip("trl", reason="needs the train extra")
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    from daedalus.designers.language import small_model

    def train(script=None, longest=1500):  # what to say, by conversation and what was said so far; tokens at most
        class Scripted(GRPOTrainer):
            def _generate_single_turn(self, prompt_ids, *args, **kwargs):
                if script is None:
                    return super()._generate_single_turn(prompt_ids, *args, **kwargs)
                said = [script(at, text) for at, text in enumerate(self.processing_class.batch_decode(prompt_ids))]
                return self.processing_class(said)["input_ids"], None

        def keep(completions, environments, **columns):
            kept.append((completions, market_reward(environments)))
            return kept[-1][1]

        kept, tokenizer = [], tool_tokenizer()
        model = small_model(tokenizer, layers=1, width=32, heads=2)
        model.config.max_position_embeddings = 8192
        config = GRPOConfig(
            output_dir=str(tmp_path_factory.mktemp("trl")), max_steps=2, per_device_train_batch_size=4,
            num_generations=4, max_completion_length=longest, use_cpu=True, bf16=False, activation_checkpointing=False,
            report_to="none", logging_steps=1, save_strategy="no", disable_tqdm=True, dataloader_pin_memory=False,
            shuffle_dataset=False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer = Scripted(model=model, reward_funcs=keep, args=config, processing_class=tokenizer,
                               train_dataset=Dataset.from_list(ROWS), environment_factory=MarketTool)
            trainer.train()
        return kept, [log for log in trainer.state.log_history if "reward" in log]

    return train


def call(arguments):
    return '<tool_call>\n{"name": "post_mechanism", "arguments": ' + arguments + "}\n</tool_call><|im_end|>"


def test_a_model_that_never_calls_earns_nothing(trained):
    kept, logs = trained(longest=8)
    assert [log["reward"] for log in logs] == [0, 0] and [log["tools/call_frequency"] for log in logs] == [0, 0]
    assert all(rewards == [0] * 4 and [len(said) for said in completions] == [1] * 4 for completions, rewards in kept)


def test_calls_reach_the_market_and_their_rewards_reach_the_trainer(trained):
    def script(at, text):
        return "Done.<|im_end|>" if "The episode is over." in text else call('{"reserve_price": ' + f"{at / 5}" + "}")

    kept, logs = trained(script)
    for row, (completions, _), log in zip(ROWS, kept, logs, strict=True):
        env, expected = DaedalusEnv(Population.from_json(row["population"]), 2), []
        for at in range(4):
            env.reset(row["seed"], row["episode"])
            expected.append(np.mean([env.step(Mechanism(reserve_price=at / 5)).reward for _ in range(2)]))
        assert [m["role"] for m in completions[0]] == ["assistant", "tool", "assistant", "tool", "assistant"]
        assert "The episode is over." in completions[0][3]["content"]
        assert log["reward"] == pytest.approx(np.mean(expected), abs=1e-6)
        assert log["reward_std"] == pytest.approx(np.std(expected, ddof=1), abs=1e-5) and log["grad_norm"] > 0
        assert log["tools/call_frequency"] == 2 and log["tools/failure_frequency"] == 0


def test_a_wrong_call_is_answered_and_the_conversation_goes_on(trained):
    def script(at, text):
        if "The episode is over." in text or at == 3:
            return "Done.<|im_end|>"
        return call('{}') if "error" in text else call('{"reserve_price": 7}')

    kept, logs = trained(script)
    completions, rewards = kept[0]
    assert "reserve_price must be a number from 0 to 0.9, not 7" in completions[0][1]["content"]
    assert [len(said) for said in completions] == [7, 7, 7, 1]
    assert rewards[0] == rewards[1] == rewards[2] > 0 == rewards[3]
    assert logs[0]["tools/failure_frequency"] == pytest.approx(1 / 3)


# What is optional

@pytest.mark.parametrize("missing, make, sentence", [
    ("gymnasium", "flat_env(Population.stage(0))", "flat_env needs gymnasium: pip install gymnasium"),
    ("pettingzoo", "bidder_env(Sale())", "bidder_env needs pettingzoo: pip install pettingzoo"),
    ("trl", "tool_tokenizer()", f"tool_tokenizer needs trl: {install_hint('trl')}")])
def test_heavy_libraries_are_imported_only_when_asked_for(missing, make, sentence):
    code = f"""
import sys
from daedalus.serving.adapters import *
from daedalus.market.bidders import Population
assert not {{"gymnasium", "pettingzoo", "torch", "transformers", "trl", "stable_baselines3"}} & sys.modules.keys()
sys.modules[{missing!r}] = None
try:
    {make}
except ModuleNotFoundError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == sentence + "\n"
