"""Supervised fine-tuning: pairs without strategy, a repeatable trainer, and a model that knows the form."""

import copy
import math

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from daedalus.designers.base import RandomDesigner, play
from daedalus.env import suite
from daedalus.designers.language import LanguageDesigner, chat_text, small_model, small_tokenizer
from daedalus.schema import LEVERS, SYSTEM_PROMPT, AmountLever, Mechanism, Observation
from daedalus.training.sft import FineTuneSettings, dataset_card, design_pairs, fine_tune, valid_share

TOKENIZER = small_tokenizer()
SEEN = [Observation(round_number=1, episode_length=10,
                    market_outcomes=[dict(welfare=.8, fairness=at / 400, participation=1.)]) for at in range(400)]


@pytest.fixture(scope="module")
def rows():
    return design_pairs(6400, seed=1)


def tiny():
    return small_model(TOKENIZER, layers=1, width=32, heads=2)


def replies(rows):
    return [Mechanism.from_text(row["completion"][0]["content"]) for row in rows]


# Pairs


def test_pairs_are_chats_with_a_canonical_reply(rows):
    assert len(rows) == 6400 and len(design_pairs(7, 1)) == 7
    for row in rows:
        system, user = row["prompt"]
        reply, = row["completion"]
        assert (system["role"], user["role"], reply["role"]) == ("system", "user", "assistant")
        assert system["content"] == SYSTEM_PROMPT
        assert Mechanism.from_text(reply["content"]).to_text() == reply["content"]


def test_pairs_belong_to_the_seed():
    assert design_pairs(30, 4) == design_pairs(30, 4)
    assert not {str(row) for row in design_pairs(30, 4)} & {str(row) for row in design_pairs(30, 5)}


def test_prompts_come_from_every_step_and_of_both_kinds(rows):
    prompts = [row["prompt"][1]["content"] for row in rows]
    assert {prompt.split("\n")[0] for prompt in prompts} == {f"round_number: {step} / 10" for step in range(10)}
    full = [prompt for prompt in prompts if "\nbidders: " in prompt]
    assert len(full) == 0.6 * len(prompts) and all("\nlast_mechanism: " in prompt for prompt in full)
    assert {prompt.split("\nbidders: ")[1].split("\n")[0] for prompt in full} == {f"{n}.00" for n in range(4, 13)}


def test_replies_are_uniform_over_the_schema(rows):
    for name, lever in LEVERS.items():
        values = [getattr(mechanism, name) for mechanism in replies(rows)]
        if isinstance(lever, AmountLever):
            assert abs(np.mean(values) - lever.top / 2) < 4 * lever.top / math.sqrt(12 * len(values))
            assert (min(values), max(values)) == (0, lever.top)
        else:
            share = 1 / len(lever.settings)
            assert all(abs(values.count(choice) / len(values) - share) < 4 * math.sqrt(share / len(values))
                       for choice in lever.settings)


def test_replies_do_not_depend_on_the_prompt(rows):
    full = [(row["prompt"][1]["content"], reply) for row, reply in zip(rows, replies(rows))]
    seen = [(Mechanism.from_text(prompt.split("last_mechanism: ")[1]), reply) for prompt, reply in full
            if "last_mechanism: " in prompt]
    arrays = np.array([[m.to_array() for m in pair] for pair in seen])
    correlation = np.corrcoef(arrays[:, 0].T, arrays[:, 1].T)[:len(LEVERS), len(LEVERS):]
    assert np.abs(correlation).max() < 4.5 / math.sqrt(len(seen))


def test_the_card_says_how_to_make_the_same_rows(rows):
    card = dataset_card(rows[:20], 1)
    assert card.startswith("---\nlicense: ") and "20 rows" in card and "design_pairs(20, seed=1)" in card
    assert "independent of the prompts" in " ".join(card.split())
    assert rows[0]["prompt"][1]["content"].split("\n")[0] in card


# The trainer


def test_the_same_inputs_give_the_same_bits_and_leave_the_rest_alone(rows, tmp_path):
    settings = FineTuneSettings(steps=4, batch_size=8, seed=3)
    models, logs = [], []
    for run in range(2):
        model = tiny()
        torch.manual_seed(run)
        expected = torch.rand(3, generator=torch.Generator().manual_seed(run))
        logs.append(fine_tune(model, TOKENIZER, rows[:64], settings, tmp_path / str(run)))
        assert torch.equal(torch.rand(3), expected)
        models.append(model)
    assert logs[0] == logs[1]
    assert all(torch.equal(a, b) for a, b in zip(models[0].parameters(), models[1].parameters()))
    assert not all(torch.equal(a, b) for a, b in zip(models[0].parameters(), tiny().parameters()))
    other = tiny()
    assert fine_tune(other, TOKENIZER, rows[:64], settings.replace(seed=4), tmp_path / "other") != logs[0]
    assert not any(path.is_file() for path in tmp_path.rglob("*"))


def test_the_learning_rate_rises_and_falls_as_the_settings_say(rows, tmp_path):
    settings = FineTuneSettings(steps=6, batch_size=2, learning_rate=1e-3, warm_up=2, floor=0.2)
    log = fine_tune(tiny(), TOKENIZER, rows[:20], settings, tmp_path)
    wave = [0.2 + 0.8 * (1 + math.cos(math.pi * step / 4)) / 2 for step in range(4)]
    assert [step["learning_rate"] for step in log] == pytest.approx([0, 5e-4] + [1e-3 * part for part in wave])


def test_the_first_loss_is_that_of_the_replies_alone(rows, tmp_path):
    model, batch = tiny(), rows[:8]
    total, count = 0.0, 0
    for row in batch:
        prompt = TOKENIZER(chat_text(TOKENIZER, row["prompt"]))["input_ids"]
        reply = TOKENIZER(row["completion"][0]["content"] + "<|end|>")["input_ids"]
        with torch.no_grad():
            logs = model(torch.tensor([prompt + reply])).logits[0].log_softmax(-1)
        total -= sum(logs[len(prompt) - 1 + at, token].item() for at, token in enumerate(reply))
        count += len(reply)
    log = fine_tune(model, TOKENIZER, batch, FineTuneSettings(steps=1, batch_size=8), tmp_path)
    assert log[0]["loss"] == pytest.approx(total / count, rel=1e-5) and log[0]["grad_norm"] > 0


def test_replies_to_one_prompt_are_learned_like_any_others(rows, tmp_path):
    def twice(prompts):
        return [{"prompt": prompts[at]["prompt"], "completion": row["completion"]} for at, row in enumerate(rows[:8])]

    full = next(row for row in rows if "last_mechanism" in row["prompt"][1]["content"])
    short = next(row for row in rows if "last_mechanism" not in row["prompt"][1]["content"])
    batch, model, plain = twice([full, short, full, full, short, full, full, short]), tiny(), tiny()
    log = fine_tune(model, TOKENIZER, batch, FineTuneSettings(steps=1, batch_size=8), tmp_path)
    total, count = 0, 0
    for row in batch:
        prompt = TOKENIZER(chat_text(TOKENIZER, row["prompt"]))["input_ids"]
        reply = TOKENIZER(row["completion"][0]["content"] + "<|end|>")["input_ids"]
        logs = plain(torch.tensor([prompt + reply])).logits[0].log_softmax(-1)
        total = total - logs[len(prompt) - 1:-1].gather(1, torch.tensor(reply)[:, None]).sum()
        count += len(reply)
    (total / count).backward()
    length = torch.cat([parameter.grad.flatten() for parameter in plain.parameters()]).norm().item()
    assert (log[0]["loss"], log[0]["grad_norm"]) == pytest.approx(((total / count).item(), length), rel=1e-4)


def test_a_fine_tuned_model_is_copied_and_saved_like_any_other(rows, tmp_path):
    model = tiny()
    fine_tune(model, TOKENIZER, rows[:16], FineTuneSettings(steps=1, batch_size=8), tmp_path / "work")
    tokens = torch.tensor([[5, 6, 7]])
    twin = copy.deepcopy(model)
    with torch.no_grad():
        before = model(tokens).logits
        for parameter in twin.parameters():
            parameter.zero_()
        assert torch.equal(twin(tokens).logits, torch.zeros_like(before)) and torch.equal(model(tokens).logits, before)
    model.save_pretrained(tmp_path / "model")
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path / "model")(tokens).logits, before)
    assert not model.training


def test_wrong_input_is_refused(tmp_path):
    with pytest.raises(ValueError, match="rows must hold at least one pair"):
        fine_tune(tiny(), TOKENIZER, [], FineTuneSettings(), tmp_path)
    thinking = small_tokenizer()
    thinking.chat_template = "{% if add_generation_prompt %}think{% else %}reply{% endif %}"
    with pytest.raises(ValueError, match="it leaves out the question or the reply"):
        fine_tune(tiny(), thinking, design_pairs(2, 0), FineTuneSettings(), tmp_path)
    with pytest.raises(ValueError, match="steps must be a whole number of at least 1, not 0"):
        FineTuneSettings(steps=0)
    with pytest.raises(ValueError, match="count must be a whole number of at least 1, not 0"):
        design_pairs(0, 0)
    with pytest.raises(ValueError, match="valid_share needs at least one observation"):
        valid_share(tiny(), TOKENIZER, [])


# What fine-tuning teaches


class Held(LanguageDesigner):
    """Asks once in an episode and holds the answer, like the random designer."""

    def design_batch(self, observations):
        if observations[0].round_number:
            return [observation.mechanism for observation in observations]
        return super().design_batch(observations)


def test_it_teaches_the_form_and_no_strategy(rows, tmp_path):
    model = small_model(TOKENIZER)
    assert valid_share(model, TOKENIZER, SEEN) < 0.05
    fine_tune(model, TOKENIZER, rows, FineTuneSettings(steps=300, batch_size=16, learning_rate=4e-3), tmp_path)
    assert valid_share(model, TOKENIZER, SEEN) >= 0.95 and valid_share(model, TOKENIZER, SEEN, temperature=0) == 1

    stages = [population for population in suite("stages") for _ in range(80)]
    keys = [(2, episode) for episode in range(len(stages))]
    mean = {name: play(player, stages, keys).groupby("index")["reward"].mean() for name, player in {
        "random": RandomDesigner(2), "tuned": Held(model, TOKENIZER, temperature=1.0, seed=2)}.items()}
    gap = mean["tuned"] - mean["random"]
    assert abs(gap.mean()) < 1.96 * gap.std() / math.sqrt(len(gap))
