"Designers: the same answer alone and in a batch, draws that cover the space, and a learner that learns."
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from daedalus.market.bidders import Population
from daedalus.designers.base import (
    DESIGNERS, PUBLISHED_READINGS, READINGS, STRAY, ContextualDesigner, Designer, FixedDesigner, Kernel, KernelRidge,
    RandomDesigner, ask, check_designer, explore, holding_rewards, informed_greedy, play, playing_on_rewards, promising, readings,
    readings_table)
from daedalus.env import (
    FEATURES, DaedalusEnv, draw_training_population, features, observe, open_episodes, play_step, suite)
from daedalus.market.engine import SCORES, simulate
from daedalus.schema import DEFAULT_MECHANISM, INFORMED_GREEDY, LEVERS, AmountLever, Mechanism, Observation, RecentOutcome

STAGES = suite("stages")
MIXED = STAGES + suite("open")
KEYS = [(2, i) for i in range(len(MIXED))]
scores = st.floats(0, 1)
outcomes = st.builds(RecentOutcome, welfare=scores, fairness=scores, participation=scores)
observations = st.builds(Observation, round_number=st.integers(0, 9), episode_length=st.just(10),
                         market_outcomes=st.lists(outcomes, max_size=3))


@pytest.fixture(scope="module")
def learned():
    "A designer that learned from a few populations, and what it learned from."
    library = [INFORMED_GREEDY, *(Mechanism.random(seed) for seed in range(4))]
    rng = np.random.default_rng(0)
    populations = [draw_training_population(rng) for _ in range(60)]
    return ContextualDesigner.fit(library, *explore(library, populations, [(1, i) for i in range(60)], rng))


# Alone or in a batch

def test_a_designer_answers_alone_as_in_a_batch(learned):
    episodes = open_episodes(MIXED, KEYS)
    for _ in range(3):
        seen = observe(episodes)
        for designer in (*DESIGNERS.values(), learned):
            answers = designer.design_batch(seen)
            assert answers == [designer(observation) for observation in seen]
            assert answers == designer.design_batch(seen[::-1])[::-1]
        episodes = play_step(episodes, learned.design_batch(seen))


def test_a_designer_may_be_asked_for_nothing(learned):
    assert all(designer.design_batch([]) == [] for designer in (*DESIGNERS.values(), learned))


@pytest.mark.parametrize("name", DESIGNERS)
def test_playing_together_is_playing_one_by_one(name):
    together = play(DESIGNERS[name], MIXED, KEYS, steps=3)
    alone = [play(DESIGNERS[name], population, [key], steps=3) for population, key in zip(MIXED, KEYS, strict=True)]
    for column in ("seed", "episode", "population", "step", "mechanism", *SCORES):
        assert together[column].tolist() == [value for table in alone for value in table[column]]


def test_playing_is_stepping_the_environment(learned):
    table = play(learned, STAGES[3], 4)
    env = DaedalusEnv(STAGES[3])
    observation, rewards = env.reset(seed=4), []
    while not observation.done:
        observation = env.step(learned(observation))
        rewards.append(observation.reward)
    assert table["reward"].tolist() == rewards


def test_playing_a_held_mechanism_is_simulating_it():
    table = play(informed_greedy, MIXED, KEYS)
    outcomes = simulate(INFORMED_GREEDY, MIXED, KEYS)
    for name in SCORES:
        assert (table[name].to_numpy().reshape(-1, 10) == getattr(outcomes, name)).all()


# The table

def test_a_table_has_one_row_for_each_episode_and_step():
    table = play(informed_greedy, [STAGES[0], STAGES[4]], [(7, 1), (8, 2)], steps=2)
    assert list(table.columns) == ["index", "seed", "episode", "population", "step", *SCORES, "revenue_share", "mechanism"]
    assert table[["index", "seed", "episode", "step"]].to_numpy().tolist() == [
        [0, 7, 1, 1], [0, 7, 1, 2], [1, 8, 2, 1], [1, 8, 2, 2]]
    assert table["population"].tolist() == ["8 truthful"] * 2 + [str(STAGES[4])] * 2
    assert set(table["mechanism"]) == {INFORMED_GREEDY}


def test_one_seed_serves_all_and_one_population_serves_all():
    assert play(informed_greedy, STAGES, 3, steps=1)["seed"].tolist() == [3] * 5
    assert play(informed_greedy, STAGES[1], [3, 4], steps=1)["seed"].tolist() == [3, 4]


def test_a_plain_function_is_a_designer():
    played = play(lambda observation: DEFAULT_MECHANISM, STAGES, 0, steps=2)
    assert played.equals(play(FixedDesigner(DEFAULT_MECHANISM), STAGES, 0, steps=2))


def test_what_a_designer_must_return():
    with pytest.raises(ValueError, match="a designer must return a Mechanism, not 'vcg'"):
        play(lambda observation: "vcg", STAGES, 0)

    class Short(Designer):
        def design_batch(self, observations):
            return [DEFAULT_MECHANISM]

    with pytest.raises(ValueError, match="one mechanism for each of the 5 observations, not 1"):
        play(Short(), STAGES, 0)


def test_a_play_without_steps_is_refused():
    with pytest.raises(ValueError, match="episode_length must be a whole number of at least 1, not 0"):
        play(informed_greedy, STAGES, 0, steps=0)


# The random designer

def test_a_random_mechanism_is_held_for_the_episode():
    table = play(RandomDesigner(), MIXED, KEYS)
    assert (table.groupby("index")["mechanism"].nunique() == 1).all()
    assert table["mechanism"].nunique() == len(MIXED)


def test_random_draws_are_reproducible_and_differ_by_seed_episode_and_population():
    def drawn(seed, population, key):
        return RandomDesigner(seed)(DaedalusEnv(population).reset(*key))

    assert drawn(0, STAGES[2], (0, 0)) == drawn(0, STAGES[2], (0, 0))
    assert len({drawn(seed, population, key) for seed in (0, 1) for population in (STAGES[2], STAGES[4])
                for key in ((0, 0), (0, 1), (1, 0))}) == 12


def test_random_draws_cover_the_space():
    episodes = open_episodes(STAGES[2], [(0, i) for i in range(1000)])
    mechanisms = RandomDesigner().design_batch(observe(episodes))
    for name, lever in LEVERS.items():
        values = [getattr(mechanism, name) for mechanism in mechanisms]
        if isinstance(lever, AmountLever):
            counts = np.histogram(values, bins=4, range=(0, lever.top))[0]
        else:
            counts = np.array([values.count(choice) for choice in lever.settings])
        expected = 1000 / len(counts)
        assert abs(counts - expected).max() < 4.5 * np.sqrt(expected), name


def test_the_last_bits_of_a_score_do_not_change_the_draw():
    observation = DaedalusEnv(STAGES[3]).reset()
    nudged = [{name: np.nextafter(score, 0.5) for name, score in outcome} for outcome in observation.market_outcomes]
    again = observation.replace(market_outcomes=tuple(RecentOutcome(**outcome) for outcome in nudged))
    assert again != observation and RandomDesigner()(again) == RandomDesigner()(observation)


def test_the_published_observation_leaves_nothing_to_hold():
    env, designer = DaedalusEnv(STAGES[3]), RandomDesigner()
    first = designer(env.reset().published())
    assert first == designer(env.observe())
    observation = env.step(first)
    assert designer(observation) == first
    assert designer(observation.published()) != first


@given(observations)
def test_any_observation_gets_a_mechanism(observation):
    assert isinstance(RandomDesigner()(observation), Mechanism)
    assert informed_greedy(observation) == INFORMED_GREEDY


# What is read

def test_readings_by_hand():
    past = [RecentOutcome(welfare=0.5, fairness=0.6, participation=0.7),
            RecentOutcome(welfare=0.1, fairness=0.2, participation=0.3)]
    played = Mechanism(auction_type="vcg", reserve_price=0.45, shill_penalty=1.5, reveal_reserve=True)
    observation = Observation(round_number=2, episode_length=10, market_outcomes=past, mechanism=played)
    names = ["progress", "outcomes", "welfare", "fairness 1 ago", "participation 2 ago", "reserve_price",
             "shill_penalty", "auction_type=vcg", "auction_type=first_price",
             "reveal_reserve=True", "reveal_reserve=False"]
    assert readings(observation, names).tolist() == [0.2, 2, 0.1, 0.6, 0.7, 0.5, 0.5, 1, 0, 1, 0]


def test_readings_hold_the_features_and_tell_mechanisms_apart():
    episodes = play_step(open_episodes(MIXED, KEYS), [Mechanism.random(at) for at in range(len(MIXED))])
    for observation in observe(episodes):
        assert (readings(observation, FEATURES) == features(observation)).all()
    levers = [name for name in READINGS if name not in PUBLISHED_READINGS + FEATURES]
    assert len({tuple(readings(observation, levers)) for observation in observe(episodes)}) == len(MIXED)


def test_the_published_observation_has_the_published_readings_and_no_others():
    observation = DaedalusEnv(STAGES[3]).reset()
    assert (readings(observation.published(), PUBLISHED_READINGS) == readings(observation, PUBLISHED_READINGS)).all()
    missing = [name for name in READINGS if name not in PUBLISHED_READINGS]
    for name in missing:
        with pytest.raises(ValueError, match=f"readings: the observation has no {name}"):
            readings(observation.published(), [name])


# The contextual designer

def test_holding_rewards_are_what_holding_earns():
    mechanisms = [DEFAULT_MECHANISM, INFORMED_GREEDY]
    start = open_episodes(MIXED, KEYS)
    earned = holding_rewards(start, mechanisms, horizon=4)
    for column, mechanism in zip(earned.T, mechanisms, strict=True):
        assert column == pytest.approx(simulate(mechanism, MIXED, KEYS, steps=4).reward.mean(1), abs=1e-12)
    assert start.round_number == 0


def test_a_table_of_readings_is_the_readings_of_each_observation():
    for hidden in (False, True):
        episodes = open_episodes(MIXED, KEYS, hidden_horizon=hidden)
        for turn in range(5):
            for names in (READINGS, PUBLISHED_READINGS, ("gap", "progress", "fairness 2 ago")):
                expected = [readings(observation, names) for observation in observe(episodes)]
                assert np.array_equal(readings_table(episodes, names), expected)
            assert set(readings_table(episodes, ["progress"])[:, 0]) == {0.5 if hidden else turn / 10}
            episodes = play_step(episodes, [Mechanism.random(turn * 100 + at) for at in range(len(MIXED))])


def test_who_cannot_see_the_end_plays_the_last_step_like_any_other():
    def until_the_end(observation):
        last = observation.episode_length and observation.round_number == observation.episode_length - 1
        return DEFAULT_MECHANISM if last else INFORMED_GREEDY

    shown, hidden = (play(until_the_end, STAGES[4], KEYS[:2], 3, hidden_horizon=hidden) for hidden in (False, True))
    assert shown["mechanism"].tolist() == [INFORMED_GREEDY, INFORMED_GREEDY, DEFAULT_MECHANISM] * 2
    assert set(hidden["mechanism"]) == {INFORMED_GREEDY}
    before = shown["step"] < 3
    assert shown.loc[before, list(SCORES)].equals(hidden.loc[before, list(SCORES)])


class Always:
    "Plays one mechanism wherever episodes stand."
    def __init__(self, mechanism): self.mechanism = mechanism
    def on(self, episodes): return [self.mechanism] * len(episodes.mechanisms)


def test_playing_on_with_the_same_mechanism_is_holding_it():
    episodes = play_step(open_episodes(MIXED, KEYS), INFORMED_GREEDY)
    held = holding_rewards(episodes, [INFORMED_GREEDY, DEFAULT_MECHANISM], horizon=4)
    for at, mechanism in enumerate((INFORMED_GREEDY, DEFAULT_MECHANISM)):
        on = playing_on_rewards(episodes, [INFORMED_GREEDY, DEFAULT_MECHANISM], Always(mechanism), horizon=4)
        assert np.array_equal(on[:, at], held[:, at]) and not np.array_equal(on[:, 1 - at], held[:, 1 - at])


def test_what_is_tried_in_part_is_worth_the_same():
    episodes, library = open_episodes(MIXED, KEYS), [INFORMED_GREEDY, DEFAULT_MECHANISM, Mechanism.random(3)]
    every = playing_on_rewards(episodes, library, Always(DEFAULT_MECHANISM), horizon=2)
    tried = np.array([[2, at % 2] for at in range(len(every))])
    some = playing_on_rewards(episodes, library, Always(DEFAULT_MECHANISM), 2, tried)
    assert np.array_equal(np.sort(np.argwhere(~np.isnan(some))[:, 1].reshape(-1, 2)), np.sort(tried))
    assert np.array_equal(some[~np.isnan(some)], every[~np.isnan(some)])


def test_most_of_what_is_tried_seems_best_and_the_rest_is_chance():
    values = np.random.default_rng(0).random((500, 10))
    picks = promising(values, 6, np.random.default_rng(1))
    ranks = np.argsort(np.argsort(-values, 1), 1)[np.arange(500)[:, None], picks]
    assert (ranks[:, :4] == np.arange(4)).all()
    assert (np.bincount(ranks[:, 4:].ravel(), minlength=10)[4:] > 100).all()  # a third of 500 each
    assert all(len(set(row)) == 6 for row in picks)
    assert np.array_equal(np.sort(promising(values, 20, np.random.default_rng(1))), np.tile(np.arange(10), (500, 1)))


def test_playing_on_ends_with_the_episode():
    episodes = open_episodes(MIXED, KEYS, episode_length=2)
    one, two = (playing_on_rewards(episodes, [INFORMED_GREEDY], Always(DEFAULT_MECHANISM), horizon) for horizon in (1, 2))
    assert np.allclose(playing_on_rewards(episodes, [INFORMED_GREEDY], Always(DEFAULT_MECHANISM), 6) * 3, two)
    assert np.array_equal(one[:, 0], play_step(episodes, INFORMED_GREEDY).recent[-1].reward)


def test_a_contextual_designer_plays_on_a_batch_as_it_answers_observations(learned):
    episodes = play_step(open_episodes(MIXED, KEYS), DEFAULT_MECHANISM)
    assert learned.on(episodes) == learned.design_batch(observe(episodes))


def test_exploring_gives_examples_in_the_documented_columns():
    library = [DEFAULT_MECHANISM, INFORMED_GREEDY, Mechanism.random(0)]
    inputs, rewards = explore(library, STAGES, 0, rng=0, steps=2)
    assert inputs.shape == (10, len(READINGS)) and rewards.shape == (10, 3)
    assert inputs[:, READINGS.index("progress")].tolist() == [0.0] * 5 + [0.1] * 5
    assert (inputs[:, READINGS.index("bidders")] == 8).all()
    again = explore(library, STAGES, 0, rng=0, steps=2)
    assert (inputs == again[0]).all() and (rewards == again[1]).all()


def test_a_guide_leads_the_walk_except_for_strays():
    library = [DEFAULT_MECHANISM, *(Mechanism.random(at) for at in range(3))]
    inputs, _ = explore(library, STAGES * 40, [(0, at) for at in range(200)], rng=0, steps=3, horizon=1,
                        guide=FixedDesigner(INFORMED_GREEDY))
    later = inputs[inputs[:, READINGS.index("outcomes")] > 1]
    greedy = later[:, READINGS.index("collusion_penalty")] == INFORMED_GREEDY.collusion_penalty / 3
    assert len(later) == 400 and abs(greedy.mean() - (1 - STRAY)) < 4 * np.sqrt(STRAY * (1 - STRAY) / 400)


def test_kernel_features_have_the_kernel_as_inner_product():
    inputs = np.random.default_rng(0).normal(size=(30, 4))
    kernel = Kernel.fit(inputs)
    found = kernel(inputs) @ kernel.whitening()
    z = (inputs - inputs.mean(0)) / inputs.std(0)
    exact = np.exp(-((z[:, None] - z) ** 2).sum(2) / 8)
    assert kernel(inputs) == pytest.approx(exact, abs=1e-12)
    assert found @ found.T == pytest.approx(exact, abs=1e-6)


def test_ridge_is_the_closed_form_and_few_landmarks_come_close():
    rng = np.random.default_rng(0)
    inputs = rng.uniform(-2, 2, size=(400, 2))
    targets = np.sin(inputs[:, :1]) * inputs[:, 1:]
    kernel = Kernel.fit(inputs)
    closed = np.linalg.solve(kernel(inputs) + 0.3 * np.eye(400), targets - targets.mean())
    model, x = KernelRidge.fit(inputs, targets), np.array([0.3, -1.1])
    assert model(x) == pytest.approx(targets.mean() + kernel(x[None])[0] @ closed, abs=1e-6)
    few = Kernel.fit(inputs, 60)
    features_of_few = few(inputs) @ few.whitening()
    assert len(few.landmarks) == 60
    assert features_of_few @ features_of_few.T == pytest.approx(kernel(inputs), abs=0.02)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32))
def test_kernel_ridge_interpolates_and_forgets(seed):
    rng = np.random.default_rng(seed)
    inputs, targets = rng.normal(size=(12, 3)), rng.normal(size=(12, 2))
    exact, flat = KernelRidge.fit(inputs, targets, 1e-10), KernelRidge.fit(inputs, targets, 1e10)
    for x, y in zip(inputs, targets, strict=True):
        assert exact(x) == pytest.approx(y, abs=1e-4)
        assert flat(x) == pytest.approx(targets.mean(0), abs=1e-6)


def test_a_constant_feature_does_no_harm():
    model = KernelRidge.fit(np.array([[0.0, 5.0], [1.0, 5.0]]), np.array([[0.0], [1.0]]), 1e-9)
    assert model(np.array([1.0, 5.0])) == pytest.approx([1.0], abs=1e-6)


def test_a_contextual_designer_beats_every_single_mechanism_of_its_library(learned):
    rng = np.random.default_rng(1)
    populations = [draw_training_population(rng) for _ in range(40)]
    keys = [(5, i) for i in range(40)]
    single = max(simulate(mechanism, populations, keys).reward.mean() for mechanism in learned.library)
    assert play(learned, populations, keys)["reward"].mean() > single


def test_a_designer_reads_only_what_it_names():
    library = [DEFAULT_MECHANISM, INFORMED_GREEDY, Mechanism.random(0)]
    designer = ContextualDesigner.fit(library, *explore(library, MIXED, 0, rng=0, steps=2), names=PUBLISHED_READINGS)
    seen = observe(open_episodes(MIXED, KEYS))
    assert designer.design_batch(seen) == designer.design_batch([observation.published() for observation in seen])


def test_a_designer_that_needs_signals_says_so(learned):
    with pytest.raises(ValueError, match="readings: the observation has no bidders"):
        learned(DaedalusEnv(Population.stage(0)).reset().published())


def test_an_unknown_reading_is_refused():
    with pytest.raises(ValueError, match="names must be of progress, outcomes, .*, not 'wealth'"):
        ContextualDesigner.fit([DEFAULT_MECHANISM], *explore([DEFAULT_MECHANISM], STAGES, 0, 0, 1), names=["wealth"])


# Whatever plays is asked in the same way everywhere

def a_function(observation):
    return INFORMED_GREEDY if observation.round_number % 2 else DEFAULT_MECHANISM


class InBatches:
    "Answers many at once, and nothing else."

    def design_batch(self, observations):
        return map(a_function, observations)


class OnEpisodes:
    "Looks at episodes, and at nothing else."

    def on(self, episodes):
        return [INFORMED_GREEDY if episodes.round_number % 2 else DEFAULT_MECHANISM] * len(episodes.mechanisms)


class Remembering:
    "Counts the steps itself."

    def reset(self):
        self.step = 0

    def design_batch(self, observations):
        self.step += bool(observations)
        return [DEFAULT_MECHANISM if self.step % 2 else INFORMED_GREEDY for _ in observations]


EVERY_KIND = a_function, InBatches(), OnEpisodes(), Remembering()


@pytest.mark.parametrize("player", EVERY_KIND)
def test_every_kind_of_designer_plays(player):
    known = play(a_function, STAGES, 0, steps=3)
    for _ in range(2):
        assert play(player, STAGES, 0, steps=3).equals(known)


@pytest.mark.parametrize("player", EVERY_KIND)
def test_every_kind_of_designer_plays_in_the_arena(player):
    from daedalus.serving.arena import open_arena

    arena = open_arena(STAGES[4], ["it"], steps=3)
    while not arena.done:
        arena = arena.step({"it": player})
        assert not arena.trouble, arena.sides[0].trouble
    played = play(a_function, STAGES[4], 0, steps=3)
    assert [turn.outcome.reward for turn in arena.sides[0].turns[1:]] == played["reward"].tolist()


@pytest.mark.parametrize("player", [a_function, InBatches(), Remembering()])
def test_every_kind_of_designer_walks_is_shown_less_and_is_asked_by_a_service(player):
    from daedalus.serving.sessions import DesignerQueue, Limits
    from daedalus.designers.states import visits
    from daedalus.training.train import AsPublished, AskedOnce

    walks = [[visit.observations for visit in visits(who, STAGES, 0, 0.0, detour=0.0, steps=3)]
             for who in (player, a_function)]
    assert walks[0] == walks[1]
    for shown in (AsPublished, AskedOnce):
        assert play(shown(player), STAGES, 0, steps=3).equals(play(shown(a_function), STAGES, 0, steps=3))
    seen = observe(open_episodes(STAGES, 0))
    assert DesignerQueue(lambda: player, Limits()).ask(seen) == [DEFAULT_MECHANISM] * len(STAGES)
    library, two = [DEFAULT_MECHANISM, INFORMED_GREEDY], STAGES[:2]
    for guided, known in zip(*(explore(library, two, 0, 0, steps=3, horizon=1, guide=who) for who in (player, a_function))):
        assert np.array_equal(guided, known)


def test_who_looks_at_episodes_only_says_so():
    with pytest.raises(ValueError, match="^a OnEpisodes answers episodes, by its `on`, and no observations alone"):
        ask(OnEpisodes(), observe(open_episodes(STAGES, 0)))

    class Short:
        def on(self, episodes):
            return [DEFAULT_MECHANISM]

    with pytest.raises(ValueError, match="^on must return one mechanism for each of the 5 episodes, not 1$"):
        play(Short(), STAGES, 0)


# Does mine obey the contract?

class Forgetful(Remembering):
    "Counts its steps, and does not start again."

    step = 0
    reset = property()   # it has none


class Crowded:
    "Looks at who else asks."

    def design_batch(self, observations):
        return [INFORMED_GREEDY if len(observations) > 1 else DEFAULT_MECHANISM for _ in observations]


class First:
    "Treats the first of a batch as special."

    def design_batch(self, observations):
        return [INFORMED_GREEDY if at else DEFAULT_MECHANISM for at in range(len(observations))]


class Twofold(FixedDesigner):
    "Overwrites one of the ways in which it is asked."

    def __call__(self, observation):
        return DEFAULT_MECHANISM


class Learning:
    "Changes its mind about what it has seen three times."

    def __init__(self):
        self.seen = {}

    def __call__(self, observation):
        times = self.seen[observation.prompt()] = self.seen.get(observation.prompt(), 0) + 1
        return INFORMED_GREEDY if times <= 3 else DEFAULT_MECHANISM


def meddling(observation):
    observation.signals["bidders"] = 99.0
    return DEFAULT_MECHANISM


class Surplus:
    "Has something to say when nobody asks."

    def design_batch(self, observations):
        return [DEFAULT_MECHANISM] * max(1, len(observations))


class Chained:
    "Holds what no other process can have."

    def __init__(self):
        import threading

        self.lock = threading.Lock()

    def __call__(self, observation):
        return DEFAULT_MECHANISM


SOUND = *EVERY_KIND, *DESIGNERS.values(), INFORMED_GREEDY, lambda observation: DEFAULT_MECHANISM


@pytest.mark.parametrize("designer", SOUND)
def test_what_obeys_the_contract_passes(designer):
    check_designer(designer, workers=2)


def test_what_has_learned_obeys_the_contract(learned):
    check_designer(learned, MIXED[3:12], steps=4)


@pytest.mark.parametrize("designer, sentence", [
    (lambda observation: "vcg", "designer <lambda>: step 1: a designer must return a Mechanism, not 'vcg'"),
    (lambda observation: observation.signals["return"], "designer <lambda>: step 1: it raises KeyError: 'return'"),
    (lambda observation: {0: DEFAULT_MECHANISM}.get(observation.round_number),
     "designer <lambda>: step 2: a designer must return a Mechanism, not None"),
    (Surplus(), "designer Surplus: design_batch must return nothing for no observations, not "),
    (Forgetful(), "designer Forgetful: the same episodes played again bring other mechanisms .*: reserve_price in episode 0, "
                  "step 1, is "),
    (Crowded(), "designer Crowded: alone it plays otherwise than in a batch: reserve_price in episode 0, step 1, is 0.18 "),
    (First(), "designer First: alone it plays otherwise than in a batch: .* in episode 1, step 1, is "),
    (Learning(), "designer Learning: asked again, later, it answers otherwise: reserve_price in episode 0, step 3, is 0.18 "),
    (Twofold(INFORMED_GREEDY), "designer Twofold: to observations in another order it answers otherwise: reserve_price in "),
    (meddling, "designer meddling: it changes the observations that it is shown at step 3"),
    (Chained(), "designer Chained: it cannot be sent to another process: TypeError: "),
])
def test_each_broken_clause_is_named_with_its_place(designer, sentence):
    with pytest.raises(ValueError, match=f"^{sentence}") as caught:
        check_designer(designer, workers=2)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("arguments, sentence", [
    ((RandomDesigner,), r"designer must be a designer, not the class RandomDesigner"),
    (("greedy",), "designer must be a function from an Observation to a Mechanism, or a Mechanism, not 'greedy'"),
    ((a_function, STAGES, 0), "steps must be a whole number of at least 1, not 0"),
])
def test_what_cannot_be_checked_is_refused(arguments, sentence):
    with pytest.raises(ValueError, match=f"^{sentence}"):
        check_designer(*arguments)
