"""GRPO: the rewards, the prompts, and the trainer beside TRL's own."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")

from datasets import Dataset
from trl import GRPOTrainer

from daedalus.bidders import Population
from daedalus.env import suite
from daedalus.grpo import (
    REWARDS, GrpoSettings, MarketRewards, prompt_rows, reinforce, shared_logprobs, shared_prompt_trainer,
    spread_within, training_populations, trl_config)
from daedalus.language import LanguageDesigner, small_model, small_tokenizer
from daedalus.policy import load_model
from daedalus.schema import INFORMED_GREEDY, Mechanism
from daedalus.sft import FineTuneSettings, design_pairs, fine_tune
from daedalus.states import outlook, restore

SETTINGS = GrpoSettings(steps=2, batch_size=32, generations=8, horizon=2, futures=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "A tiny model that writes valid replies now and then."
    folder, tokenizer = tmp_path_factory.mktemp("model"), small_tokenizer()
    model = small_model(tokenizer, layers=1, width=32, heads=2)
    fine_tune(model, tokenizer, design_pairs(640, 0), FineTuneSettings(steps=60, learning_rate=0.01), folder)
    for part in (model, tokenizer):
        part.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def rows(folder):
    return prompt_rows(LanguageDesigner(*load_model(folder), constrained=False), SETTINGS, 0)


def test_rewards_are_the_markets(rows):
    rewards = MarketRewards(horizon=2, futures=3)
    mechanisms = [INFORMED_GREEDY, Mechanism.random(4)]
    state, luck = rows[0]["state"], rows[0]["luck"]
    found = rewards.scores([mechanisms[0].to_text(), "{}", mechanisms[1].to_text()], [state] * 3, [luck] * 3)
    expected = outlook(restore(state), [mechanisms], luck, 2, 3)
    assert found["composite"].tolist() == [*expected["reward"][0, :1].mean(1), 0.0, *expected["reward"][0, 1:].mean(1)]
    assert found["fairness"][2] == expected["fairness"][0, 1].mean() and found["format"].tolist() == [1, 0, 1]
    assert rewards.rounds == 2 * 2 * 3 * 5


def test_each_reward_is_a_function_of_its_own_and_logs_its_spread(rows):
    rewards, logged = MarketRewards(2, 1), {}
    states, luck = [rows[0]["state"]] * 2 + [rows[1]["state"]], [1, 1, 1]
    texts = [[{"role": "assistant", "content": text}] for text in (INFORMED_GREEDY.to_text(), "no", "no")]
    by_name = {f.__name__: f(texts, states, luck, log_metric=logged.__setitem__) for f in rewards.functions()}
    assert tuple(by_name) == REWARDS and by_name["format"] == [1, 0, 0]
    assert logged["within_group/format"] == pytest.approx(0.25)   # spreads .5 and 0
    assert rewards.rounds == 2 * 5   # the market was played once for all four


def test_spread_within_by_hand():
    assert spread_within(np.array([1.0, 3.0, 5.0, 5.0]), ["a", "a", "b", "b"]) == 0.5


def test_prompts_come_from_the_episodes_and_from_both_kinds(rows):
    assert len(rows) == 2 * 32 // 8
    kinds = ["bidders: " in row["prompt"][1]["content"] for row in rows]
    assert any(kinds) and not all(kinds)
    many = GrpoSettings(steps=20, batch_size=64, generations=8)
    everyone = training_populations(many, 500, 0.0, np.random.default_rng(0))
    assert not set(everyone) & set(suite("open")) and set(suite("stages")) <= set(everyone)


def test_the_curriculum_goes_from_truthful_bidders_to_all_adversaries():
    settings = GrpoSettings(populations="curriculum")
    met = [training_populations(settings, 1, p, np.random.default_rng(0))[0] for p in (0, 0.3, 0.5, 0.7, 1)]
    assert met == suite("stages")


def test_populations_are_drawn_as_asked(folder):
    people, crowded = Population(exploiter=16, n_items=4), GrpoSettings(steps=5, batch_size=64, generations=8)
    met = training_populations(crowded, 400, 0.0, np.random.default_rng(0), lambda rng: people)
    assert set(met) == {people, *suite("stages")} and met.count(people) == pytest.approx(300, abs=35)
    staged = crowded.replace(populations="curriculum")
    assert people not in training_populations(staged, 5, 0.5, np.random.default_rng(0), lambda rng: people)
    designer = LanguageDesigner(*load_model(folder), constrained=False)
    asked, usual = ({restore(row["state"]).market.traits[0, 0] for row in prompt_rows(designer, SETTINGS, 0, **draw)}
                    for draw in ({"draw": lambda rng: people}, {}))
    assert 16 in asked and 16 not in usual   # the usual draw has 12 bidders at most


def padded(tokenizer, rows, replies):
    prompts = [tokenizer.apply_chat_template(row["prompt"], tokenize=False, add_generation_prompt=True) for row in rows]
    heads = tokenizer(prompts, padding=True, return_tensors="pt", add_special_tokens=False)
    tails = tokenizer([reply + tokenizer.eos_token for reply in replies], padding=True, padding_side="right",
                      return_tensors="pt", add_special_tokens=False)
    return (torch.cat([heads.input_ids, tails.input_ids], 1), torch.cat([heads.attention_mask, tails.attention_mask], 1),
            tails.input_ids.shape[1])


def test_reading_prompts_once_gives_the_same_probabilities_and_gradients(folder, rows):
    model, tokenizer = load_model(folder)
    order = [0, 3, 0, 1, 3, 0]   # groups need not be in one piece
    replies = [Mechanism.random(seed).to_text() for seed in range(6)]
    tokens, mask, kept = padded(tokenizer, [rows[at] for at in order], replies)
    shared, entropy = shared_logprobs(model, tokens, mask, kept, 0.7)
    logits = model(input_ids=tokens, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0)).logits
    plain = (logits[:, -kept - 1:-1] / 0.7).log_softmax(-1)
    chosen = plain.gather(-1, tokens[:, -kept:, None])[..., 0]
    text = mask[:, -kept:].bool()
    assert torch.allclose(shared[text], chosen[text], atol=1e-5)
    assert torch.allclose(entropy[text], -(plain.exp() * plain).sum(-1)[text], atol=1e-5)
    gradients = []
    for loss in (shared[text].sum(), chosen[text].sum()):
        model.zero_grad()
        loss.backward(retain_graph=True)
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert torch.allclose(*gradients, atol=1e-3 * gradients[1].abs().max().item())


def test_the_trainer_agrees_with_trls(folder, rows, tmp_path):
    found = []
    for kind in (shared_prompt_trainer(), GRPOTrainer):
        model, tokenizer = load_model(folder)
        trainer = kind(model=model, reward_funcs=MarketRewards(2, 1).functions(), processing_class=tokenizer,
                       args=trl_config(SETTINGS, 24, str(tmp_path), 0), train_dataset=Dataset.from_list(rows))
        tokens, mask, kept = padded(tokenizer, [rows[at // 8] for at in range(32)],
                                    [Mechanism.random(seed).to_text() for seed in range(32)])
        logprobs, entropies, _ = trainer._get_per_token_logps_and_entropies(
            model, tokens, mask, kept, compute_entropy=True)
        text = mask[:, -kept:].bool()
        found.append((logprobs[text].detach(), entropies[text]))
    assert torch.allclose(found[0][0], found[1][0], atol=1e-4)
    assert torch.allclose(found[0][1], found[1][1], atol=1e-4)


def test_a_phase_is_deterministic_starts_at_its_reference_and_logs_what_is_promised(folder, tmp_path):
    phases, weights = [], []
    for _ in range(2):
        model, tokenizer = load_model(folder)
        phases.append(reinforce(model, tokenizer, SETTINGS, 5, str(tmp_path)))
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(*weights) and phases[0].history == phases[1].history
    assert len(phases[0].history) == 2 and phases[0].rounds > 0
    assert abs(phases[0].history[0]["kl"]) < 1e-6   # the first step is taken at the reference
    wanted = {"grad_norm", "reward", "reward_std", "entropy", "completions/mean_length", "invalid"}
    wanted |= {name for reward in REWARDS for name in (reward, f"{reward} within group")}
    assert wanted <= set(phases[0].history[0])
    assert set(phases[0].seconds) == {"states", "generation", "reward", "update"}
