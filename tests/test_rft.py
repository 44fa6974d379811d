"""Rejection sampling: which replies are kept."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

pytest.importorskip("torch", reason="needs the train extra")

from daedalus.language import Reply, small_model, small_tokenizer
from daedalus.rft import RftSettings, acceptance, rejection_rows, tried_mechanisms
from daedalus.schema import DEFAULT_MECHANISM, INFORMED_GREEDY, Mechanism


@given(arrays(float, (3, 5), elements=st.floats(0, 1)), st.floats(0.01, 10))
def test_acceptance_is_a_distribution_that_rises_with_reward(rewards, temperature):
    chance = acceptance(rewards, temperature)
    assert np.allclose(chance.sum(1), 1)
    for reward, p in zip(rewards, chance):
        assert (np.diff(p[np.argsort(reward, kind="stable")]) >= -1e-12).all()


def test_a_difference_of_one_temperature_is_a_factor_of_e():
    low, high = acceptance(np.array([[0.4, 0.5]]), 0.1)[0]
    assert high / low == pytest.approx(np.e)


def test_tried_mechanisms_keep_their_places():
    rng = np.random.default_rng(0)
    own = [[Reply.read(INFORMED_GREEDY.to_text()), Reply.read("not a mechanism")]] * 3
    tried = tried_mechanisms(own, [DEFAULT_MECHANISM], RftSettings(own=2, archive=2, mutants=3), rng)
    assert all(len(row) == 7 and row[0] == INFORMED_GREEDY and row[2:4] == [DEFAULT_MECHANISM] * 2 for row in tried)
    assert len({row[1] for row in tried}) == 3   # a random mechanism stands for each invalid reply


@pytest.fixture(scope="module")
def model():
    tokenizer = small_tokenizer()
    return small_model(tokenizer, layers=1, width=32, heads=2), tokenizer


SETTINGS = RftSettings(populations=4, published_share=0.5, own=2, archive=3, mutants=1, kept=2, horizon=2)


def test_a_lesson_is_a_function_of_its_seed(model):
    archive = [Mechanism.random(seed) for seed in range(5)]
    first, second = (rejection_rows(*model, SETTINGS, 7, archive)._replace(seconds={}) for _ in range(2))
    assert first == second
    other = rejection_rows(*model, SETTINGS, 8, archive)
    assert other.rows != first.rows


def test_a_lesson_counts_its_rounds_and_keeps_valid_replies(model):
    lesson = rejection_rows(*model, SETTINGS, 7, [INFORMED_GREEDY])
    states, tried = 4 * 10, 2 + 3 + 1
    assert lesson.rounds == 4 * 53 + states * tried * 2 * 5
    assert len(lesson.rows) == 2 * states and lesson.invalid == 1.0   # an untrained model says nothing valid
    for row in lesson.rows:
        assert Mechanism.from_text(row["completion"][0]["content"]).to_text() == row["completion"][0]["content"]
    assert lesson.kept_reward > lesson.own_reward


def test_an_archive_that_is_asked_for_must_be_given(model):
    with pytest.raises(ValueError, match="archive must hold mechanisms, because settings.archive is 3"):
        rejection_rows(*model, SETTINGS, 7)
