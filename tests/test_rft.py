"""Rejection sampling with a critic: which replies are kept, and in whose states."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

pytest.importorskip("torch", reason="needs the train extra")

from daedalus.market.bidders import Population
from daedalus.designers.base import PUBLISHED_READINGS, READINGS, ContextualDesigner, check_designer, explore
from daedalus.env import DaedalusEnv
from daedalus.designers.iterate import improve
from daedalus.designers.language import small_model, small_tokenizer
from daedalus.training.rft import RftSettings, Teacher, acceptance, rejection_rows
from daedalus.schema import DEFAULT_MECHANISM, INFORMED_GREEDY, Mechanism
from daedalus.designers.search import Examples


@given(arrays(float, (3, 5), elements=st.floats(0, 1)), st.floats(0.01, 10))
def test_acceptance_is_a_distribution_that_rises_with_reward(rewards, temperature):
    chance = acceptance(rewards, temperature)
    assert np.allclose(chance.sum(1), 1)
    for reward, p in zip(rewards, chance):
        assert (np.diff(p[np.argsort(reward, kind="stable")]) >= -1e-12).all()


def test_a_difference_of_one_temperature_is_a_factor_of_e():
    low, high = acceptance(np.array([[0.4, 0.5]]), 0.1)[0]
    assert high / low == pytest.approx(np.e)


LIBRARY = [DEFAULT_MECHANISM, INFORMED_GREEDY, Mechanism(reserve_price=0.5)]


@pytest.fixture(scope="module")
def teacher():
    """Taught that the first mechanism is right late in an episode and the second before, the third never."""
    rng = np.random.default_rng(0)
    inputs, _ = explore(LIBRARY, [Population.stage(at % 5) for at in range(100)], 0, rng, horizon=1)
    late = inputs[:, READINGS.index("progress")] > 0.45
    examples = Examples(LIBRARY, inputs, np.stack([late * 1.0, ~late * 1.0, 0 * late], 1))
    return Teacher(LIBRARY, examples.critic(READINGS), examples.critic(PUBLISHED_READINGS))


def test_a_teacher_tells_what_it_was_taught_with_signals_and_without(teacher):
    env = DaedalusEnv(Population.stage(3))
    seen = [env.reset(seed=0)]
    while not seen[-1].done:
        seen.append(env.step(DEFAULT_MECHANISM))
    for observations in (seen[1:-1], [observation.published() for observation in seen[1:-1]]):
        best = teacher.values(observations).argmax(1)
        assert (best[:4] == 1).all() and (best[4:] == 0).all()


def test_a_teacher_plays_what_it_values_most_and_sees_everything_in_seeing(teacher):
    seen = [DaedalusEnv(Population.stage(at)).reset(seed=at) for at in range(5)]
    assert teacher.design_batch(seen) == [LIBRARY[at] for at in teacher.values(seen).argmax(1)]
    assert teacher.seeing.design_batch(seen) == teacher.design_batch(seen)
    check_designer(teacher, steps=2)


def test_learning_ends_with_critics_that_look_ahead():
    rng = np.random.default_rng(1)
    inputs, rewards = explore(LIBRARY, [Population.stage(at % 5) for at in range(10)], 0, rng, horizon=1)
    examples = Examples(LIBRARY, inputs, rewards)
    learned = Teacher.learn(examples, 20_000, seed=1)
    for critic, names in ((learned.signals, READINGS), (learned.published, PUBLISHED_READINGS)):
        first = ContextualDesigner(LIBRARY, examples.critic(names, 1), names)
        expected = improve(first, 20_000, 1).model
        assert all(np.array_equal(mine, theirs) for mine, theirs in zip(critic, expected))
        assert not np.array_equal(critic.out, first.model.out)


def test_a_teacher_is_kept_to_the_bit(teacher, tmp_path):
    teacher.save(tmp_path / "teacher.npz")
    again = Teacher.load(tmp_path / "teacher.npz")
    assert again.library == teacher.library and [path.name for path in tmp_path.iterdir()] == ["teacher.npz"]
    for mine, theirs in zip((*teacher.signals, *teacher.published), (*again.signals, *again.published)):
        assert mine.dtype == theirs.dtype and np.array_equal(mine, theirs)


@pytest.fixture(scope="module")
def model():
    tokenizer = small_tokenizer()
    return small_model(tokenizer, layers=1, width=32, heads=2), tokenizer


SETTINGS = RftSettings(populations=2, published_share=0.5, kept=2, guided=0.5)


def test_a_lesson_is_a_function_of_its_seed(model, teacher):
    first, second = (rejection_rows(*model, teacher, SETTINGS, 7) for _ in range(2))
    assert first == second
    assert rejection_rows(*model, teacher, SETTINGS, 8).rows != first.rows


def test_a_lesson_holds_every_state_and_replies_of_the_library(model, teacher):
    lesson = rejection_rows(*model, teacher, SETTINGS, 7)
    assert lesson.rounds == 2 * 53 and 0.3 * 40 < len(lesson.rows) < 0.8 * 40 and len(lesson.rows) % 2 == 0
    replies = [row["completion"][0]["content"] for row in lesson.rows]
    assert set(replies) == {mechanism.to_text() for mechanism in LIBRARY[:2]}   # the third is never worth it
    prompts = [row["prompt"][-1]["content"] for row in lesson.rows]
    assert 0.2 < np.mean(["price:" in prompt for prompt in prompts]) < 0.8   # the published prompt has no signals
    early = [reply for prompt, reply in zip(prompts, replies) if "round_number: 0" in prompt]
    assert len(early) == 2 * 2 and set(early) == {LIBRARY[1].to_text()}   # all of the first step is learned from


def test_a_strict_selection_keeps_the_best_and_a_loose_one_anything(model, teacher):
    strict, loose = (rejection_rows(*model, teacher, SETTINGS.replace(temperature=t), 7) for t in (1e-6, 10.0))
    assert strict.kept_value == pytest.approx(strict.best_value)
    assert loose.kept_value < 0.5 * strict.kept_value
    assert len({row["completion"][0]["content"] for row in loose.rows}) == 3


def test_agreement_is_counted_whoever_plays(model, teacher):
    """An untrained model says nothing valid; the default stands for it, which is the teacher's choice late only."""
    lesson = rejection_rows(*model, teacher, SETTINGS.replace(guided=1.0), 7)
    assert 0.3 < lesson.agreement < 0.7
