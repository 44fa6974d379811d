"""The paths of training and use on the real pretrained base, at small size; skipped where it is not in the cache."""

import copy

import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")

from peft import PeftModel

from daedalus.designers.base import informed_greedy
from daedalus.designers.language import LocalModel, chat_text, mechanism_matcher, messages, sample_replies
from daedalus.designers.models import load_model
from daedalus.env import observe, open_episodes, suite
from daedalus.paths import cache_dir
from daedalus.schema import LEVERS, Brief, Mechanism
from daedalus.training.export import PROBE, export, merge, probe_logits
from daedalus.training.grpo import GrpoSettings, reinforce
from daedalus.training.policy import TARGETS, PolicySettings, load_policy, memory_needed
from daedalus.training.sft import FineTuneSettings, design_pairs, fine_tune
from daedalus.training.train import profile

BASE = cache_dir() / "models" / "smollm2-0.1.2"
pytestmark = pytest.mark.skipif(not BASE.is_dir(), reason="the pretrained base is not in the cache: `make pretrained` fetches it")
CARD = profile("card-smollm2").policy
PAIRS = FineTuneSettings(steps=3, batch_size=4, learning_rate=1e-3, warm_up=1)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """Adapters of the card's recipe after three steps of fine-tuning, the losses before each, and the tokenizer."""
    model, tokenizer = load_policy(CARD, 0)
    losses = [step["loss"] for step in fine_tune(model, tokenizer, design_pairs(12, 0), PAIRS, tmp_path_factory.mktemp("sft"))]
    return model, tokenizer, losses


@pytest.fixture(scope="module")
def base():
    model, tokenizer = load_model("smollm2")
    return model.eval(), tokenizer


@pytest.fixture(scope="module")
def prompts(base):
    return [chat_text(base[1], messages(observation)) for observation in observe(open_episodes(suite("stages")[:3], 0))]


def test_adapters_are_all_that_is_trained_and_fine_tuning_lowers_the_loss(tuned):
    model, _, losses = tuned
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert len(trained) == 2 * len(TARGETS) * 30 and all("lora_" in name for name in trained)
    assert losses[0] > losses[-1] > 0
    assert all(torch.isfinite(p).all() for name, p in model.named_parameters() if name in trained)


def test_adapters_of_the_upper_layers_cost_less():
    upper = profile("smollm2").policy
    model, _ = load_policy(upper, 0)
    layers = {int(name.split(".layers.")[1].split(".")[0]) for name, p in model.named_parameters() if p.requires_grad}
    assert layers == set(range(30 - upper.adapted_layers, 30)) and memory_needed(upper) < memory_needed(CARD)


def test_what_was_trained_is_merged_on_the_exact_base_and_loads_plainly(tuned, base, tmp_path):
    model, tokenizer, _ = tuned
    assert isinstance(model, PeftModel)
    tokens = tokenizer(PROBE).input_ids
    before, plain = probe_logits(model, tokens), probe_logits(base[0], tokens)
    layer = model.base_model.model.model.layers[7].mlp.up_proj
    a, b = (getattr(layer, which)["default"].weight.detach().float().clone() for which in ("lora_A", "lora_B"))
    merged = merge(copy.deepcopy(model), CARD)
    by_hand = base[0].model.layers[7].mlp.up_proj.weight + CARD.lora_alpha / CARD.lora_rank * b @ a
    assert torch.allclose(merged.model.layers[7].mlp.up_proj.weight, by_hand, atol=1e-6)
    after = probe_logits(merged, tokens)
    assert {parameter.dtype for parameter in merged.parameters()} == {torch.float32}
    rounding, change = (after - before).abs().mean(), (after - plain).abs().mean()
    assert rounding < change   # of a base in 16 bits; nothing where the processor keeps 32
    folder = export(merged, tokenizer, tmp_path / "made", "A model.\n", dtype="float32")
    again, read = load_model(folder)
    assert torch.equal(probe_logits(again, tokens), after) and read(PROBE).input_ids == tokens


def test_four_bits_load_train_and_merge_in_full(tmp_path):
    pytest.importorskip("bitsandbytes", reason="4-bit weights need bitsandbytes")
    settings = PolicySettings(base_model="smollm2", quantisation="nf4", lora_rank=4, adapted_layers=2)
    model, tokenizer = load_policy(settings, 0)
    assert memory_needed(settings) < memory_needed(settings.replace(quantisation="none"))
    history = fine_tune(model, tokenizer, design_pairs(4, 0), PAIRS.replace(steps=1, batch_size=2), tmp_path)
    assert 0 < history[0]["loss"] < 10
    merged = merge(model, settings)
    assert {parameter.dtype for parameter in merged.parameters()} == {torch.float32}


def test_a_step_of_grpo_runs_and_is_logged(tuned, tmp_path):
    model, tokenizer, _ = tuned
    settings = GrpoSettings(steps=1, batch_size=4, generations=2, futures=1, learning_rate=1e-5)
    result = reinforce(model, tokenizer, settings, 0, str(tmp_path))
    step, = result.history
    assert step["completions/mean_length"] > 0 and step["entropy"] > 0


def test_a_constraint_over_all_tokens_gives_mechanisms_and_obeys_a_brief(base):
    model, tokenizer = base
    assert len(tokenizer) == 49_152
    brief = Brief(fixed={"auction_type": "vcg"}, at_most={"reserve_price": 0.2})
    shown = [observation.replace(brief=brief) for observation in observe(open_episodes(suite("stages")[:2], 0))]
    said = LocalModel(model, tokenizer).complete_briefs([messages(observation) for observation in shown], [brief, None])
    first, second = map(Mechanism.from_text, said)
    assert brief.allows(first) and len(second.model_fields_set) == len(LEVERS)


def test_neighbours_in_a_batch_change_nothing_but_the_last_bits(base, prompts):
    model, tokenizer = base
    longer = [prompts[0], "Say yes.\n" + prompts[1], "Please, " * 30 + prompts[2]]   # padded on the left by different lengths
    together = sample_replies(model, tokenizer, longer, temperature=0, longest=12)
    apart = [sample_replies(model, tokenizer, [prompt], temperature=0, longest=12) for prompt in longer]
    assert together.texts == [each.texts[0] for each in apart]
    assert torch.allclose(together.logprobs, torch.cat([each.logprobs for each in apart]), atol=1e-2)


def test_forced_tokens_are_read_at_once(base, prompts):
    model, tokenizer = base
    matcher = mechanism_matcher(tokenizer)
    assert matcher.compute_ff_tokens() == tokenizer('{"auction_type":"', add_special_tokens=False)["input_ids"]
    own = informed_greedy(observe(open_episodes(suite("stages")[:1], 0))[0]).to_text()
    (told,), = sample_replies(model, tokenizer, prompts[:1], temperature=0, constraint=matcher).texts
    assert tokenizer(told, add_special_tokens=False)["input_ids"][:6] == tokenizer(own, add_special_tokens=False)["input_ids"][:6]
