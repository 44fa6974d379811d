"""What pandas, NumPy, pickle, vector environments and curious users do with the library's objects."""

import ast
import copy
import inspect
import io
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import daedalus as dd
from daedalus import env
from daedalus.designers import critic, base as designers, states
from daedalus.market import engine as market, record as watch
from daedalus.serving import adapters, arena
from daedalus.studies import exploit
from daedalus.studies.evaluate import adaptation, levers
from daedalus.schema import FIELDS, generator, seed_number, whole_number

PACKAGE = Path(dd.__file__).parent
PEOPLE, LARGEST = dd.Population.stage(4), 2**64 - 1
NUMPYS = [np.int8, np.int32, np.int64, np.uint8, np.uint32, np.uint64]


# Tables

@pytest.fixture(scope="module")
def table():
    """Three episodes with a mechanism each, two steps long."""
    return dd.play(dd.RandomDesigner(), PEOPLE, [0, 1, 2], 2)


def test_what_was_played_is_still_a_mechanism(table):
    assert all(isinstance(mechanism, dd.Mechanism) for mechanism in table["mechanism"])
    assert isinstance(table["mechanism"][0], dd.Mechanism) and table["mechanism"].dtype == "mechanism"
    assert dd.simulate(table["mechanism"], PEOPLE, 0, 1).reward.shape == (6, 1)


def test_a_table_groups_sorts_and_counts_by_mechanism(table):
    played = table["mechanism"].tolist()
    means = table.groupby("mechanism")["reward"].mean()
    assert means.index.tolist() == sorted(set(played))
    for mechanism in played:
        same = [reward for reward, other in zip(table["reward"], played) if other == mechanism]
        assert means[mechanism] == pytest.approx(np.mean(same))
    assert table["mechanism"].value_counts().tolist() == [2, 2, 2] and table["mechanism"].nunique() == 3
    assert table.sort_values("mechanism")["mechanism"].tolist() == sorted(played)
    assert len(table.drop_duplicates("mechanism")) == 3 and len(table.drop_duplicates()) == 6
    assert len(table.merge(table, on="mechanism")) == 12
    assert table.pivot_table(index="step", columns="mechanism", values="reward").shape == (2, 3)
    assert pd.crosstab(table["mechanism"], table["step"]).to_numpy().tolist() == [[1, 1]] * 3
    assert len(table["mechanism"].astype("category").cat.categories) == 3
    assert table.groupby("step").agg({"mechanism": "first"})["mechanism"].tolist() == [played[0]] * 2


def test_a_mechanism_is_one_value_to_pandas(table):
    one = table["mechanism"][0]
    assert len(table[table["mechanism"] == one]) == len(table.set_index("mechanism").loc[[one]]) == 2
    assert len(table.set_index("mechanism").loc[one]) == 2 and table["mechanism"].isin([one]).sum() == 2
    changed = table.assign(other=one)
    changed.loc[3, "mechanism"] = one
    assert set(changed["other"]) == {one} and changed["mechanism"][3] == one != table["mechanism"][3]
    with pytest.raises(dd.MechanismError, match="must hold mechanisms or their JSON, not 3"):
        changed.loc[0, "mechanism"] = 3
    joined = table.merge(pd.DataFrame({"index": [0, 7]}), on="index", how="right")
    assert joined["mechanism"].isna().tolist() == [False, False, True]


def through_parquet(table, folder):
    table.to_parquet(folder / "t.parquet")
    return pd.read_parquet(folder / "t.parquet")


def through_csv(table, folder):
    table.to_csv(folder / "t.csv", index=False)
    return pd.read_csv(folder / "t.csv", dtype={"seed": "uint64", "episode": "uint64"})


def through_json(table, folder):
    table.to_json(folder / "t.json", double_precision=15)
    return pd.read_json(folder / "t.json", dtype={"seed": "uint64", "episode": "uint64"})


@pytest.mark.parametrize("way", [through_parquet, through_csv, through_json])
@pytest.mark.parametrize("gap", [False, True])
def test_a_table_comes_back_from_a_file(table, way, gap, tmp_path):
    if gap:
        table = table.reindex(range(7)).fillna({"seed": 0, "episode": 0}).astype({"seed": "uint64", "episode": "uint64"})
    back = way(table, tmp_path)
    texts = [text for text in back["mechanism"] if isinstance(text, str)]
    assert list(map(dd.Mechanism.from_json, texts)) == table["mechanism"].dropna().tolist()
    assert list(map(dd.Mechanism.from_text, texts)) == table["mechanism"].dropna().tolist()
    back["mechanism"] = back["mechanism"].astype("mechanism")
    pd.testing.assert_frame_equal(back, table, check_dtype=False)


def test_a_type_reads_a_column_of_a_csv_file(table):
    back = pd.read_csv(io.StringIO(table.to_csv(index=False)), dtype={"mechanism": "mechanism"})
    assert back["mechanism"].tolist() == table["mechanism"].tolist()


def test_a_file_is_read_without_this_package(table, tmp_path):
    table.to_parquet(tmp_path / "t.parquet")
    code = "import sys, pandas as pd; t = pd.read_parquet(sys.argv[1]); print(t['mechanism'][0]); assert 'daedalus' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "t.parquet"], capture_output=True, text=True, check=True)
    assert dd.Mechanism.from_json(done.stdout) == table["mechanism"][0]


@pytest.mark.parametrize("make", [
    lambda table: table, lambda table: dd.evaluate({"a": dd.RandomDesigner(), "b": dd.INFORMED_GREEDY}, episodes=5, steps=1),
    lambda table: dd.summary(dd.evaluate({"a": dd.RandomDesigner()}, episodes=5, steps=1), 10),
    lambda table: dd.paired(dd.evaluate({"a": dd.RandomDesigner(), "b": dd.INFORMED_GREEDY}, episodes=5, steps=1), "a", 10),
    lambda table: levers(dd.RandomDesigner(), episodes=5, steps=1),
    lambda table: adaptation({"a": dd.RandomDesigner()}, episodes=5, steps=2, resamples=10),
    lambda table: watch.lots_table(watch.watch(market.new_market(PEOPLE, 0), dd.DEFAULT_MECHANISM)),
], ids=["play", "evaluate", "summary", "paired", "levers", "adaptation", "lots_table"])
def test_every_table_is_copied_shown_and_kept(make, table, tmp_path):
    made = make(table)
    for same in (pickle.loads(pickle.dumps(made)), copy.deepcopy(made)):
        pd.testing.assert_frame_equal(same, made)
    assert "<table" in made._repr_html_() and json.loads(made.to_json())
    made.to_parquet(tmp_path / "t.parquet")
    assert len(pd.read_parquet(tmp_path / "t.parquet")) == len(pd.read_csv(io.StringIO(made.to_csv()))) == len(made)
    by = list(made.columns[:2])
    assert made.groupby(by).size().sum() == made.value_counts(by).sum() == len(made)
    assert len(made.sort_values(by)) == len(made) >= len(made.drop_duplicates())


# Records

def test_records_have_an_order_and_compare_only_with_their_like():
    a, b = sorted([dd.INFORMED_GREEDY, dd.DEFAULT_MECHANISM])
    assert a < b and b > a and a <= b and not b <= a
    assert sorted(map(dd.Population.stage, (2, 0, 1))) == [dd.Population.stage(stage) for stage in (2, 1, 0)]
    for other in (1, "vcg", None, dict(a), PEOPLE):
        assert a != other and not a == other
        with pytest.raises(TypeError):
            sorted([a, other])


def test_observations_hash_and_sort_with_their_signals():
    market_env = dd.DaedalusEnv(PEOPLE)
    seen = [market_env.reset(1), market_env.step(dd.INFORMED_GREEDY)]
    again = dd.Observation.from_json(seen[0].to_json())
    turned = again.replace(signals=dict(reversed(again.signals.items())))
    assert turned == seen[0] and hash(turned) == hash(seen[0]) and len({*seen, again, turned}) == 2
    assert sorted([*seen, seen[0].published()])[0] == seen[0].published()


def test_arrays_dicts_and_sets_of_mechanisms():
    pair = [dd.INFORMED_GREEDY, dd.DEFAULT_MECHANISM]
    assert np.asarray(pair[0]).shape == () and np.asarray(pair).shape == (2,) and len({*pair, *pair}) == 2
    assert tuple(dict(pair[0])) == FIELDS and dd.Mechanism(**dict(pair[0])) == pair[0]
    assert dd.Mechanism.from_json(f"{pair[0]}") == pair[0]
    assert "reward" in dir(dd.simulate(pair[0], PEOPLE, 0, 1)) and "to_text" in dir(pair[0])


def test_a_copied_state_shares_nothing():
    state = market.new_market(PEOPLE, [1, 2])
    for other in (state.copy(), copy.deepcopy(state), state.select([0, 1]), state.reseed([1, 2])):
        assert not any(np.shares_memory(mine, its) for mine, its in zip(state, other))


# Whole numbers

def plays(**changed):
    return dd.simulate(dd.DEFAULT_MECHANISM, PEOPLE, **{"seeds": 0, "steps": 1, **changed}).revenue.tolist()


def flat(**changed):
    return adapters.flat_env(PEOPLE, 2).reset(**changed)[0].tolist()


def bids(**changed):
    seen = adapters.bidder_env(adapters.Sale(bidders=2)).reset(**changed)[0]
    return [seen[name]["value"].tolist() for name in sorted(seen)]


SEEDED = {
    "simulate": lambda seed: plays(seeds=seed), "list": lambda seed: plays(seeds=[seed]),
    "pair": lambda seed: plays(seeds=[(seed, seed)]), "array pair": lambda seed: plays(seeds=np.array([[seed, seed]])),
    "play": lambda seed: dd.play(dd.RandomDesigner(), PEOPLE, [(seed, 0)], 1)["reward"].tolist(),
    "evaluate": lambda seed: dd.evaluate({"x": dd.DEFAULT_MECHANISM}, episodes=1, seed=seed, steps=1)["reward"].tolist(),
    "reset": lambda seed: dd.DaedalusEnv(PEOPLE).reset(seed, seed).market_outcomes,
    "gym": lambda seed: env.gym_env(PEOPLE).reset(seed=seed)[0].tolist(), "flat": lambda seed: flat(seed=seed),
    "bidders": lambda seed: bids(seed=seed), "tool": lambda seed: adapters.MarketTool().reset(PEOPLE.to_json(), seed, 0, 2),
    "mechanism": dd.Mechanism.random, "population": dd.Population.random, "training": env.draw_training_population,
    "designer": lambda seed: dd.RandomDesigner(seed)(dd.Observation(round_number=0, episode_length=1)),
    "reseed": lambda seed: market.new_market(PEOPLE, 0).reseed(seed).key.tolist(),
    "arena": lambda seed: arena.open_arena(PEOPLE, ["greedy"], seed).sides[0].episodes.market.key.tolist(),
}


@pytest.mark.parametrize("name", SEEDED)
def test_every_seed_of_64_bits_is_a_seed(name):
    of = SEEDED[name]
    for seed in (0, 2**31, 2**53 + 1, 2**63, LARGEST):
        assert of(seed) == of(np.uint64(seed)) != of(seed ^ 1)
    assert all(of(kind(3)) == of(3) for kind in NUMPYS)


@pytest.mark.parametrize("wrong", [-1, np.int64(-1), 2**64, True, np.bool_(True), 1.0, np.float64(1), "1"])
@pytest.mark.parametrize("name", [name for name in SEEDED if name != "array pair"])
def test_what_is_no_seed_is_refused_in_one_sentence(name, wrong):
    with pytest.raises(ValueError, match=r"(seeds?|rng) must be (a )?whole numbers? from 0") as caught:
        SEEDED[name](wrong)
    assert "\n" not in str(caught.value)


def test_a_truth_value_among_seeds_is_refused():
    with pytest.raises(ValueError, match=r"seeds must be whole numbers from 0, not \[True, 2\]"):
        plays(seeds=[True, 2])


COUNTED = {
    "steps": lambda n: plays(steps=n), "play": lambda n: dd.play(dd.RandomDesigner(), PEOPLE, 0, n)["reward"].tolist(),
    "episode_length": lambda n: dd.DaedalusEnv(PEOPLE, n).reset().episode_length,
    "rounds": lambda n: market.advance(market.new_market(PEOPLE, 0), dd.DEFAULT_MECHANISM, n).tolist(),
    "watch": lambda n: watch.watch(market.new_market(PEOPLE, 0), dd.DEFAULT_MECHANISM, rounds=n).scores.tolist(),
    "episodes": lambda n: len(dd.evaluate({"x": dd.DEFAULT_MECHANISM}, episodes=n, steps=1)),
    "flat": lambda n: adapters.flat_env(PEOPLE, n).reset(seed=0)[0].tolist(),
    "truthful": lambda n: dd.Population(truthful=n), "lots": lambda n: adapters.Sale(lots=n),
    "count": lambda n: whole_number(n, "count"),
}


@pytest.mark.parametrize("name", COUNTED)
def test_whole_numbers_of_numpy_count_as_pythons(name):
    assert all(COUNTED[name](kind(3)) == COUNTED[name](3) for kind in NUMPYS)


@pytest.mark.parametrize("wrong", [-1, True, np.bool_(True), 2.0, np.float64(2), "2", None])
@pytest.mark.parametrize("name", COUNTED)
def test_what_is_no_whole_number_is_refused_in_one_sentence(name, wrong):
    with pytest.raises(ValueError, match="must be a whole number (of at least|from) ") as caught:
        COUNTED[name](wrong)
    assert "\n" not in str(caught.value)


def test_one_rule_for_numbers():
    assert type(whole_number(np.uint8(7), "x", 0, 7)) is int and seed_number(np.uint64(LARGEST)) == LARGEST
    drawn = np.random.default_rng(3)
    assert generator(drawn) is drawn and generator(np.int8(3)).integers(99) == np.random.default_rng(3).integers(99)
    with pytest.raises(ValueError, match="x must be a whole number from 0 to 7, not 8"):
        whole_number(8, "x", 0, 7)


def test_a_served_client_sends_numbers_of_numpy_as_numbers():
    openenv = pytest.importorskip("daedalus.serving.openenv", reason="needs openenv")
    sent = {name: openenv._plain(value) for name, value in {"seed": np.uint64(LARGEST), "signals": np.bool_(True)}.items()}
    assert openenv.ResetOptions.from_json(json.dumps(sent)).seed == LARGEST


# Copies and processes

def opened(made, **options):
    made.reset(**options)
    return made


LIBRARY = [dd.DEFAULT_MECHANISM, dd.INFORMED_GREEDY]


def learned(make):
    draws = np.random.default_rng(0)
    return make(draws.normal(size=(30, len(designers.READINGS))), draws.random((30, 2)))


OBJECTS = {
    "mechanism": lambda: dd.INFORMED_GREEDY, "population": lambda: PEOPLE, "behaviour": lambda: dd.BEHAVIOUR,
    "env": lambda: opened(dd.DaedalusEnv(PEOPLE)), "observation": lambda: dd.DaedalusEnv(PEOPLE).reset(1),
    "outcome": lambda: opened(dd.DaedalusEnv(PEOPLE)).outcome, "episodes": lambda: env.open_episodes(PEOPLE, [1, 2]),
    "state": lambda: market.new_market(PEOPLE, [1, 2]), "outcomes": lambda: dd.simulate(dd.DEFAULT_MECHANISM, PEOPLE, 0, 1),
    "session": lambda: watch.watch(market.new_market(PEOPLE, 0), dd.DEFAULT_MECHANISM),
    "gym": lambda: opened(env.gym_env(PEOPLE), seed=1), "flat": lambda: opened(adapters.flat_env(PEOPLE), seed=1),
    "new flat": lambda: adapters.flat_env(PEOPLE), "bidders": lambda: opened(adapters.bidder_env(adapters.Sale()), seed=1),
    "sale": adapters.Sale, "yardsticks": dd.yardsticks, "designers": lambda: dd.DESIGNERS, "plan": exploit.Plan,
    "contextual": lambda: learned(lambda x, y: designers.ContextualDesigner.fit(LIBRARY, x, y)),
    "critic": lambda: learned(critic.Critic.fit), "arena": lambda: arena.open_arena(PEOPLE, ["greedy", "random"]),
    "visits": lambda: list(states.visits(dd.RandomDesigner(), [PEOPLE], 0, 0.0, detour=0, steps=2)),
}
WAYS = {"pickle": lambda made: pickle.loads(pickle.dumps(made)), "deepcopy": copy.deepcopy, "copy": copy.copy,
        "cloudpickle": lambda made: pickle.loads(pytest.importorskip("cloudpickle").dumps(made))}


def same(one, other):
    """Equal types, and equal content as far as it can be compared."""
    assert type(one) is type(other)
    if isinstance(one, (tuple, list)):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, np.ndarray):
        return np.array_equal(one, other, equal_nan=one.dtype.kind == "f")
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    return same(vars(one), vars(other)) if hasattr(one, "__dict__") and not callable(getattr(one, "random", None)) else True


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", OBJECTS)
def test_every_object_is_copied_and_sent(name, way):
    made = OBJECTS[name]()
    assert same(WAYS[way](made), made)


@pytest.mark.parametrize("make, act", [
    (lambda: env.gym_env(PEOPLE, 3), lambda world: world.action_space.sample()),
    (lambda: adapters.flat_env(PEOPLE, 3), lambda world: world.action_space.sample())], ids=["gym", "flat"])
def test_a_sent_environment_goes_on_where_it_was(make, act):
    world = opened(make(), seed=5)
    world.action_space.seed(1)
    action = act(world)
    again = pickle.loads(pickle.dumps(world))
    one, other = world.step(action), again.step(action)
    assert one[0].tolist() == other[0].tolist() and one[1:] == other[1:]
    assert world.reset()[0].tolist() == again.reset()[0].tolist()


def test_a_sent_sale_goes_on_where_it_was():
    room = opened(adapters.bidder_env(adapters.Sale(bidders=2, lots=3)), seed=5)
    again = pickle.loads(pickle.dumps(room))
    bid = {agent: [0.4] for agent in room.agents}
    assert room.step(bid)[1] == again.step(bid)[1] and room.agents == again.agents


def test_an_environment_is_opened_in_a_fresh_process():
    pytest.importorskip("gymnasium", reason="needs gymnasium")
    sent = pickle.dumps([opened(adapters.flat_env(PEOPLE, 3), seed=5), adapters.bidder_env(adapters.Sale())])
    code = "import pickle, sys; world, room = pickle.loads(sys.stdin.buffer.read()); print(world.step(world.action_space.low)[1])"
    done = subprocess.run([sys.executable, "-c", code], input=sent, capture_output=True, check=True)
    world = opened(adapters.flat_env(PEOPLE, 3), seed=5)
    assert float(done.stdout) == world.step(world.action_space.low)[1]


def make_flat():
    return adapters.flat_env(PEOPLE, 3)


def test_vector_environments_of_gymnasium_play_the_same_in_other_processes():
    gymnasium = pytest.importorskip("gymnasium", reason="needs gymnasium")
    here = gymnasium.vector.SyncVectorEnv([make_flat] * 2)
    there = gymnasium.vector.AsyncVectorEnv([make_flat] * 2, context="spawn")
    try:
        assert here.reset(seed=4)[0].tolist() == there.reset(seed=4)[0].tolist()
        here.action_space.seed(0)
        for _ in range(4):
            action = here.action_space.sample()
            one, other = here.step(action), there.step(action)
            assert all((mine == its).all() for mine, its in zip(one[:4], other[:4]))
    finally:
        there.close()


def test_a_registered_environment_is_made_by_name():
    gymnasium = pytest.importorskip("gymnasium", reason="needs gymnasium")
    gymnasium.register("Daedalus-v0", entry_point="daedalus.serving.adapters:flat_env", kwargs={"population": PEOPLE})
    try:
        made = gymnasium.make_vec("Daedalus-v0", num_envs=2, vectorization_mode="async")
        observed, _ = made.reset(seed=[2, 3])
        made.close()
        assert observed.tolist() == [flat(seed=2), flat(seed=3)]
    finally:
        del gymnasium.registry["Daedalus-v0"]


def test_subprocess_environments_of_stable_baselines_play():
    vec_env = pytest.importorskip("stable_baselines3.common.vec_env", reason="needs stable-baselines3")
    made = vec_env.SubprocVecEnv([make_flat] * 2, start_method="spawn")
    try:
        made.seed(4)
        assert made.reset().tolist() == [flat(seed=4), flat(seed=5)]
        assert made.step(np.zeros((2, len(FIELDS)), np.float32))[1].shape == (2,)
    finally:
        made.close()


def test_a_language_designer_is_sent_and_answers_the_same():
    pytest.importorskip("transformers", reason="needs transformers")
    designer, observation = dd.LanguageDesigner.load(), dd.DaedalusEnv(PEOPLE).reset(1)
    answer = designer(observation)
    for other in (pickle.loads(pickle.dumps(designer)), copy.deepcopy(designer)):
        assert other(observation) == answer and (other.asked, designer.asked) == (2, 1)


# What plays

def fails(observation):
    raise KeyError("mine")


def one_by_one(observation):
    yield dd.INFORMED_GREEDY


class Batch:
    """Has a length, and designs batches."""

    def __len__(self):
        return 3

    def design_batch(self, observations):
        return (dd.INFORMED_GREEDY for _ in observations)


GREEDY = dd.FixedDesigner(dd.INFORMED_GREEDY)


def rewards(player, **options):
    return dd.evaluate({"x": player}, **{"episodes": 5, "steps": 2, **options})["reward"].tolist()


@pytest.mark.parametrize("player", [
    dd.INFORMED_GREEDY, Batch(), lambda observation: dd.INFORMED_GREEDY, [dd.INFORMED_GREEDY] * 5,
    (dd.INFORMED_GREEDY,) * 5, np.array([dd.INFORMED_GREEDY] * 5), pd.Series([dd.INFORMED_GREEDY] * 5),
    dd.play(GREEDY, PEOPLE, [0] * 5, 1)["mechanism"]])
def test_what_stands_for_a_designer_plays(player):
    assert rewards(player) == rewards(GREEDY)


@pytest.mark.parametrize("player, sentence", [
    (dd.RandomDesigner, r"designer 'x' must be a designer, not the class RandomDesigner: RandomDesigner\(\) makes one"),
    (None, "designer 'x' must be a function from an Observation to a Mechanism, or a Mechanism, not None"),
    ("greedy", "designer 'x' must be a function from .*, not 'greedy'"),
    ({"reserve_price": 0.1}, "designer 'x' must be a function from .*, not {'reserve_price': 0.1}"),
    (one_by_one(None), "designer 'x' must be a function from .*, not <generator"),
    ([dd.INFORMED_GREEDY], "designer 'x' must have a mechanism for each of the 5 populations, not 1"),
    ([None] * 5, "designer 'x' must hold mechanisms, not None"),
    (lambda observation: None, "a designer must return a Mechanism, not None"),
    (lambda observation: {"reserve_price": 0.1}, "a designer must return a Mechanism, not {'reserve_price': 0.1}"),
    (lambda observation: dd.INFORMED_GREEDY.to_json(), "a designer must return a Mechanism, not '{"),
    (lambda observation: dd.INFORMED_GREEDY.to_array(), "a designer must return a Mechanism, not array"),
    (one_by_one, "a designer must return a Mechanism, not <generator"),
])
def test_what_cannot_play_is_refused_in_one_sentence(player, sentence):
    with pytest.raises(ValueError, match=f"^{sentence}") as caught:
        rewards(player)
    assert "\n" not in str(caught.value)


def test_a_batch_of_another_size_is_refused():
    class Short(Batch):
        def design_batch(self, observations):
            return [dd.INFORMED_GREEDY] * 2

    with pytest.raises(ValueError, match="design_batch must return one mechanism for each of the 5 observations, not 2"):
        rewards(Short())


def test_what_a_designer_raises_comes_through_and_tells_who_it_was():
    with pytest.raises(KeyError, match="mine") as caught:
        rewards(fails)
    assert caught.value.__notes__ == ["raised while designer 'x' played"]


def test_nothing_is_played_before_everything_is_checked():
    asked = []
    with pytest.raises(ValueError, match="designer 'b' must be"):
        dd.evaluate({"a": asked.append, "b": None})
    assert asked == []


@pytest.mark.parametrize("players, sentence", [
    ({}, "designers must be a dict of at least one designer by name, not {}"),
    (GREEDY, "designers must be a dict of at least one designer by name, not FixedDesigner"),
    ([GREEDY], "designers must be a dict of at least one designer by name, not \\["),
    ({None: GREEDY}, "designers must have texts for names, not None"),
    ({("a", 1): GREEDY}, "designers must have texts for names, not \\('a', 1\\)"),
    ({0.5: GREEDY}, "designers must have texts for names, not 0.5"),
])
def test_wrong_designers_are_refused_in_one_sentence(players, sentence):
    with pytest.raises(ValueError, match=f"^{sentence}"):
        dd.evaluate(players)


def test_numbers_will_do_for_names():
    table = dd.evaluate({1: GREEDY, 2: dd.RandomDesigner()}, episodes=5, steps=1)
    assert dd.paired(table, 1, 10).index.tolist() == [2]
    with pytest.raises(ValueError, match="reference must be one of 1, 2, not 3"):
        dd.paired(table, 3, 10)
    with pytest.raises(ValueError, match="table must have one row for each designer and episode, not several"):
        dd.paired(pd.concat([table, table]), 1, 10)


@pytest.mark.parametrize("people", [
    PEOPLE, [PEOPLE], (PEOPLE,), (each for each in [PEOPLE]), pd.Series([PEOPLE]), np.array([PEOPLE])])
def test_populations_in_whatever_holds_them(people):
    assert rewards(GREEDY, suite=people) == rewards(GREEDY, suite=[PEOPLE])


@pytest.mark.parametrize("people, sentence", [
    ({PEOPLE: -0.5}, "weights must be numbers from 0 that are not all 0, not -0.5"),
    ([], "suite must hold at least one population"), (iter([]), "suite must hold at least one population"),
    (3, "suite must be a suite's name or a list of populations, not 3"),
    (["stages"], "suite must hold Population objects, not 'stages'"),
    ([PEOPLE, None], "suite must hold Population objects, not None"),
    ("nowhere", "suite must be one of stages, open, families, briefs, sealed, not 'nowhere'"),
])
def test_a_wrong_suite_is_refused_in_one_sentence(people, sentence):
    with pytest.raises(ValueError, match=f"^{sentence}"):
        rewards(GREEDY, suite=people)


@pytest.mark.parametrize("name", ["nowhere", ["stages"], {}, None, PEOPLE])
def test_what_is_no_suite_is_no_suite(name):
    for ask in (dd.suite, dd.best_fixed, dd.oracle, dd.yardsticks):
        with pytest.raises(ValueError, match="^suite must be one of stages, open, families, briefs, sealed, not "):
            ask(name)


def test_a_suite_of_ones_own_plays_and_has_no_yardsticks(monkeypatch):
    monkeypatch.setitem(env.SUITES, "mine", lambda: [PEOPLE])
    assert rewards(GREEDY, suite="mine") == rewards(GREEDY, suite=[PEOPLE])
    for ask in (dd.best_fixed, dd.oracle, dd.yardsticks):
        with pytest.raises(ValueError, match="suite must be one that was searched, stages or open, not 'mine'"):
            ask("mine")


class Crowd(dd.Population):
    """With a type of bidder that the market does not have."""

    sniper: int = 0


class Fee(dd.Mechanism):
    """With a lever that the market does not have."""

    entry_fee: float = 0.0


class Named(dd.Population):
    """With nothing that the market would have to read."""

    def label(self):
        return "mine"


def test_what_the_market_would_not_read_is_refused():
    crowd = Crowd(truthful=2, sniper=2)
    for ask in (lambda: dd.simulate(dd.DEFAULT_MECHANISM, crowd, 0), lambda: dd.DaedalusEnv(crowd).reset(),
                lambda: rewards(GREEDY, suite=[crowd])):
        with pytest.raises(ValueError, match="populations must hold .* does not know the field sniper of Crowd"):
            ask()
    with pytest.raises(ValueError, match="mechanisms must hold .* does not know the field entry_fee of Fee"):
        dd.simulate(Fee(entry_fee=0.5), PEOPLE, 0)
    one, other = (dd.simulate(dd.DEFAULT_MECHANISM, kind(truthful=2), 0).reward for kind in (Named, dd.Population))
    assert (one == other).all()


# Modules

MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "_modidx.py")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_no_module_checks_anything_when_it_is_imported(path):
    """An exported check fails for users whose data are other than those of the author."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inner = {part for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
             for part in ast.walk(node)}
    outer = [node for node in ast.walk(tree) if node not in inner]
    assert not [node.lineno for node in outer if isinstance(node, ast.Assert)]
    read = {"read_text", "read_bytes", "open", "read_result", "profile", "profiles", "data_dir", "data_file", "suite", "load"}
    called = {ast.unparse(node.func).split(".")[-1]: node.lineno for node in outer if isinstance(node, ast.Call)}
    assert not called.keys() & read or path.name in ("__init__.py", "_runtime.py")


def test_every_module_is_imported_where_no_data_is(tmp_path):
    shutil.copytree(PACKAGE, tmp_path / "daedalus", ignore=shutil.ignore_patterns("data", "__pycache__"))
    code = """
import importlib, pathlib
for path in sorted(pathlib.Path("daedalus").rglob("*.py")):
    name = ".".join(path.with_suffix("").parts)
    try:
        importlib.import_module(name.removesuffix(".__init__"))
    except ModuleNotFoundError as error:
        assert not (error.name or "").startswith("daedalus"), error
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(tmp_path)},
                          capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", dd.__all__)
def test_public_names_can_be_looked_at(name):
    made = getattr(dd, name)
    assert repr(made) and dir(made)
    assert not callable(made) or (isinstance(made, type) and issubclass(made, Exception)) or inspect.signature(made).parameters is not None
