"""The critic: what networks learn from tried mechanisms."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")

from daedalus.designers.critic import Critic
from daedalus.designers.base import ContextualDesigner
from daedalus.market.bidders import Population
from daedalus.env import DaedalusEnv
from daedalus.schema import DEFAULT_MECHANISM, INFORMED_GREEDY


def examples(count, seed=0, noise=0.3):
    """Rewards whose advantage is known: what is common to both mechanisms is loud, what tells them apart bends."""
    rng = np.random.default_rng(seed)
    x = rng.random((count, 3))
    truth = np.sin(6 * x[:, 0]) * (x[:, 1] - 0.5)
    common = 5 * x[:, 2]
    return x, np.stack([common + truth, common - truth], 1) + noise * rng.normal(size=(count, 2)), truth


def test_it_learns_the_expected_advantage_and_not_the_noise():
    x, rewards, _ = examples(4000)
    new, _, truth = examples(500, seed=1)
    found = Critic.fit(x, rewards)(new)
    assert np.allclose(found.sum(1), 0, atol=0.1)
    error = np.sqrt(np.mean((found[:, 0] - truth) ** 2))
    assert error < 0.3 * truth.std()   # the noise of one example alone is larger than the whole truth


def test_what_all_mechanisms_have_in_common_changes_nothing():
    x, rewards, _ = examples(300)
    one, other = Critic.fit(x, rewards), Critic.fit(x, rewards + 2.0 ** np.arange(300)[:, None] % 8)
    assert np.allclose(one(x), other(x), atol=1e-3)


def test_same_examples_same_bits_on_any_number_of_threads():
    x, rewards, _ = examples(300)
    before = torch.get_num_threads()
    first = Critic.fit(x, rewards, seed=3)
    try:
        torch.set_num_threads(2)
        second = Critic.fit(x, rewards, seed=3)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert all(np.array_equal(a, b) for a, b in zip(first, second))
    assert not np.array_equal(first.into, Critic.fit(x, rewards, seed=4).into)


def test_one_state_is_a_row_of_many():
    x, rewards, _ = examples(300)
    critic = Critic.fit(x, rewards)
    assert critic(x[0]).shape == (2,) and np.allclose(critic(x)[0], critic(x[0]))


def test_a_prediction_is_what_torch_would_compute():
    x, rewards, _ = examples(300)
    c = Critic.fit(x, rewards)
    z = torch.tensor((x - c.center) / c.scale)
    outputs = []
    for n in range(len(c.into)):
        h = torch.nn.functional.silu(z @ torch.tensor(c.into[n]) + torch.tensor(c.into_bias[n]))
        h = torch.nn.functional.silu(h @ torch.tensor(c.across[n]) + torch.tensor(c.across_bias[n]))
        outputs.append(h @ torch.tensor(c.out[n]) + torch.tensor(c.out_bias[n]))
    found = c.level + torch.stack(outputs).mean(0).numpy()
    assert np.allclose(c(x), found - found.mean(1, keepdims=True))


def test_what_was_not_tried_is_learned_from_the_states_where_it_was():
    rng = np.random.default_rng(1)
    x = rng.random((3000, 2))
    worth = np.stack([x[:, 0], x[:, 1], 1 - x[:, 0]], 1)  # and luck that all mechanisms of a state share
    rewards = worth + rng.normal(size=(3000, 1))
    rewards[np.arange(3000), rng.integers(3, size=3000)] = np.nan
    error = Critic.fit(x, rewards)(x) - (worth - worth.mean(1, keepdims=True))
    assert np.abs(error).mean() < 0.02


def test_a_state_in_which_one_mechanism_was_tried_tells_nothing():
    with pytest.raises(ValueError, match="at least two mechanisms that were tried"):
        Critic.fit(np.zeros((3, 2)), np.array([[1.0, 2.0], [np.nan, 1.0], [2.0, 1.0]]))


def test_a_constant_reading_does_no_harm():
    x, rewards, _ = examples(300)
    x[:, 2] = 7.0
    critic = Critic.fit(x, rewards)
    assert critic.scale[2] == 1.0 and np.isfinite(critic(x)).all()
    far = critic(np.array([[1e6, -1e6, 7.0]]))
    assert np.isfinite(far).all()


def test_a_contextual_designer_chooses_by_it():
    x, rewards, _ = examples(600)
    designer = ContextualDesigner((DEFAULT_MECHANISM, INFORMED_GREEDY), Critic.fit(x, rewards),
                                  ("progress", "bidders", "units"))
    assert designer(DaedalusEnv(Population.stage(0)).reset(seed=0)) in (DEFAULT_MECHANISM, INFORMED_GREEDY)


@pytest.mark.parametrize("inputs, rewards", [
    (np.zeros((3, 2)), np.zeros((4, 2))), (np.zeros(3), np.zeros((3, 2))), (np.zeros((1, 2)), np.zeros((1, 2))),
    (np.zeros((0, 2)), np.zeros((0, 2)))])
def test_tables_that_do_not_fit_are_refused(inputs, rewards):
    with pytest.raises(ValueError, match="inputs and rewards must be tables with a row for each of at least two examples"):
        Critic.fit(inputs, rewards)
