"""The policy: what is counted, what is loaded and trained, and what is refused in one sentence."""

import importlib
import json
import sys
import types
import warnings

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from daedalus.designers import models as found_models
from daedalus.designers.models import check_model_folder, find_model, load_model
from daedalus.training import policy
from daedalus.training.policy import (
    TARGETS,
    PolicySettings,
    count_parameters,
    load_policy,
    memory_needed,
)
from shared import recorded_loader

PUBLISHED = PolicySettings(base_model="Qwen/Qwen2.5-1.5B-Instruct", lora_rank=16)
EMBEDDED = PolicySettings(layers=1, width=32, heads=2)


@pytest.fixture
def folder(tmp_path):
    """A saved model of random weights: 2 layers x 64, embedding and output tied, 95 printable characters."""
    torch.manual_seed(0)
    config = Qwen3Config(vocab_size=95, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
                         num_attention_heads=2, num_key_value_heads=1, head_dim=32, tie_word_embeddings=True)
    letters = Tokenizer(models.BPE({chr(code): code - 32 for code in range(32, 127)}, []))
    path = tmp_path / "tiny"
    for part in (Qwen3ForCausalLM(config), PreTrainedTokenizerFast(tokenizer_object=letters, eos_token="~")):
        part.save_pretrained(path)
    return path


@pytest.fixture
def settings(folder):
    return PolicySettings(base_model=str(folder), lora_rank=4, lora_alpha=8)


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


# Settings


@pytest.mark.parametrize("fields, sentence", [
    (dict(quantisation="int8"), "quantisation must be one of none, nf4, not 'int8'"),
    (dict(lora_rank=-1), "lora_rank must be a whole number of at least 0, not -1"),
    (dict(lora_rank=True), "lora_rank must be a whole number of at least 0, not True"),
    (dict(base_model=3), "base_model: it must be a folder, a hub id or None, not 3"),
    (dict(base_model=" "), "base_model: it must be a folder, a hub id or None, not ' '"),
    (dict(rank=4), "'rank' is not a field"),
    (dict(width=100, heads=4), "width must be a multiple of 8, twice the heads, not 100"),
    (dict(base_model="a/b", quantisation="nf4"), "needs a base_model to quantise and a lora_rank above 0"),
    (dict(quantisation="nf4", lora_rank=4), "needs a base_model to quantise and a lora_rank above 0"),
])
def test_wrong_settings_are_refused(fields, sentence):
    with pytest.raises(ValueError, match=sentence):
        PolicySettings(**fields)


def test_settings_travel_as_json():
    assert PolicySettings.from_json(PUBLISHED.to_json()) == PUBLISHED


# Counts and memory


def test_the_published_counts_come_out_without_weights_and_without_network(offline):
    count = count_parameters(PUBLISHED)
    assert (count.total, count.trainable) == (1_562_179_072, 18_464_768)
    assert f"{count.share:.2%}" == "1.18%"
    assert count_parameters(PUBLISHED.replace(quantisation="nf4")) == count
    base = PUBLISHED.replace(lora_rank=0)
    assert tuple(count_parameters(base)) == (1_543_714_304, 1_543_714_304)


def test_a_count_agrees_with_hand_and_with_the_real_model(settings):
    layer = [(64, 64), (32, 64), (32, 64), (64, 64), (128, 64), (128, 64), (64, 128)]
    norms = 2 * (2 * 64 + 2 * 32) + 64
    base = 95 * 64 + 2 * sum(m * n for m, n in layer) + norms
    adapters = 2 * sum(4 * (m + n) for m, n in layer)
    model, _ = load_policy(settings, 0)
    real = sum(p.numel() for p in model.parameters()), sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert tuple(count_parameters(settings)) == real == (base + adapters, adapters)


def test_the_embedded_model_is_counted_like_the_real_one():
    model, tokenizer = load_policy(EMBEDDED, 0)
    assert tuple(count_parameters(EMBEDDED)) == (model.num_parameters(), model.num_parameters())
    assert model.config.vocab_size >= len(tokenizer)


def test_a_config_is_enough_to_count(folder, settings):
    known = count_parameters(settings)
    (folder / "model.safetensors").unlink()
    assert count_parameters(settings) == known


@pytest.mark.parametrize("kept, size", [(torch.float32, 4), (torch.bfloat16, 2)])
def test_memory_by_hand(monkeypatch, kept, size):
    monkeypatch.setattr(policy, "frozen_dtype", lambda: kept)
    maps = 28 * (2 * 1536 * 1536 + 2 * 1536 * 256 + 3 * 1536 * 8960)
    rest, trained = 1_543_714_304 - maps, 18_464_768
    assert memory_needed(PUBLISHED) == size * (maps + rest) + 16 * trained
    packed = memory_needed(PUBLISHED.replace(quantisation="nf4"))
    assert packed == pytest.approx(4.127 / 8 * maps + size * rest + 16 * trained, abs=1)
    assert memory_needed(PUBLISHED.replace(lora_rank=0)) == 16 * (maps + rest)


def test_too_little_memory_is_said_with_both_numbers_before_anything_is_fetched(monkeypatch, offline):
    monkeypatch.setattr(policy, "frozen_dtype", lambda: torch.float32)
    monkeypatch.setattr(policy, "memory_free", lambda: 2**30)
    with pytest.raises(ValueError, match=r"at least 6\.0 GiB of memory and 1\.0 GiB are free: set lora_rank"):
        load_policy(PUBLISHED, 0)


def test_adapters_of_the_upper_layers_are_all_that_is_trained(settings):
    def trained(count):
        model, _ = load_policy(settings.replace(adapted_layers=count), 0)
        return {int(name.split(".layers.")[1].split(".")[0]) for name, p in model.named_parameters() if p.requires_grad}

    layers = load_policy(settings, 0)[0].config.num_hidden_layers
    assert trained(0) == set(range(layers)) and trained(1) == {layers - 1}
    assert count_parameters(settings.replace(adapted_layers=1)).trainable * layers == count_parameters(settings).trainable
    with pytest.raises(ValueError, match=f"adapted_layers must be at most the {layers} of the base, not {layers + 1}"):
        trained(layers + 1)
    with pytest.raises(ValueError, match="adapted_layers must be 0 without adapters, lora_rank 0, not 1"):
        PolicySettings(adapted_layers=1)


# Folders and names


def test_a_leftover_adapter_file_is_refused(folder):
    assert check_model_folder(folder) == folder
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "./sft-merged"}')
    load_base = lambda path: load_policy(PolicySettings(base_model=str(path)), 0)  # noqa: E731
    for load in (check_model_folder, find_model, load_model, load_base):
        with pytest.raises(ValueError, match="holds adapter_config.json, left over from training.*delete it"):
            load(folder)


def test_a_folder_with_nothing_but_an_adapter_is_refused(settings, tmp_path):
    load_policy(settings, 0)[0].save_pretrained(tmp_path / "adapter")
    with pytest.raises(ValueError, match="holds an adapter without its base"):
        check_model_folder(tmp_path / "adapter")


@pytest.mark.parametrize("name, sentence", [("model.safetensors", "lacks weights: model.safetensors is missing"),
                                            ("tokenizer.json", "has no tokenizer"),
                                            ("config.json", "has no config.json")])
def test_a_folder_that_lacks_a_file_is_refused(folder, name, sentence):
    (folder / name).unlink()
    with pytest.raises(ValueError, match=sentence):
        load_model(folder)


def test_a_lacking_shard_is_named(folder):
    weights = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(weights))
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    with pytest.raises(ValueError, match="model-00002-of-00002.safetensors is missing"):
        check_model_folder(folder)


@pytest.mark.parametrize("content", [b"version https://git-lfs.github.com/spec/v1\n", None])
def test_weights_cut_short_are_refused(folder, content):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100] if content is None else content)
    with pytest.raises(ValueError, match="does not hold whole weights"):
        check_model_folder(folder)


@pytest.mark.parametrize("config", ['{"model_type": ', '{"model_type": "qwen9"}', "{}"])
def test_a_config_that_cannot_be_read_is_refused(folder, config):
    (folder / "config.json").write_text(config)
    for load in (load_model, lambda path: count_parameters(PolicySettings(base_model=str(path)))):
        with pytest.raises(ValueError, match="model folder .* cannot be read .*: save or download it again"):
            load(folder)


def test_a_base_saved_with_its_adapters_on_is_refused(settings, tmp_path):
    model, tokenizer = load_policy(settings, 0)
    weights = {name: p for name, p in model.base_model.model.state_dict().items() if name != "lm_head.weight"}
    for part in (model.config, tokenizer):
        part.save_pretrained(tmp_path / "unmerged")
    save_file(weights, tmp_path / "unmerged" / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="lacks 14 of the model.s weights, model.layers.0.mlp.*its adapters merged"):
        load_model(tmp_path / "unmerged")


def test_a_name_that_is_neither_folder_nor_hub_id_is_refused(tmp_path):
    for load in (find_model, lambda name: load_policy(PolicySettings(base_model=name), 0)):
        with pytest.raises(ValueError, match="is neither a folder here nor a hub id"):
            load(str(tmp_path / "nowhere"))


def test_a_hub_id_without_network_is_refused(offline, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for load in (find_model, lambda name: load_policy(PolicySettings(base_model=name), 0)):
        with pytest.raises(ValueError, match="'somebody/model' is no folder here and cannot be downloaded.*connect"):
            load("somebody/model")


def test_a_download_leaves_adapter_files_behind(monkeypatch, folder):
    asked = {}

    def snapshot_download(name, **options):
        asked.update(options, name=name)
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert find_model("kabilesh-c/daedalus-designer-v2") == folder
    assert asked["ignore_patterns"] == ["adapter_*"]


# Policies


def test_without_adapters_everything_is_trained(settings, folder):
    model, _ = load_policy(settings.replace(lora_rank=0), 0)
    assert all(p.requires_grad and p.dtype == torch.float32 for p in model.parameters())
    plain = AutoModelForCausalLM.from_pretrained(folder)
    assert all(torch.equal(p.cpu(), q) for p, q in zip(model.parameters(), plain.parameters(), strict=True))


def test_adapters_are_on_all_seven_projections_and_are_all_that_is_trained(settings):
    model, _ = load_policy(settings, 0)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert all(".lora_A." in name or ".lora_B." in name for name in trained)
    assert {name.split(".lora_")[0].split(".")[-1] for name in trained} == set(TARGETS) and len(trained) == 2 * 7 * 2
    assert model.peft_config["default"].lora_alpha == 8


def test_a_policy_depends_on_its_seed_and_on_nothing_drawn_before(settings):
    def drawn(seed, settings):
        torch.rand(seed + 3)
        return torch.cat([p.flatten() for p in load_policy(settings, seed)[0].parameters() if p.requires_grad])

    for which in (settings, EMBEDDED):
        assert torch.equal(drawn(1, which), drawn(1, which))
        assert not torch.equal(drawn(1, which), drawn(2, which))


def test_loading_leaves_the_callers_random_numbers_alone(settings):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    load_policy(settings, 0)
    load_policy(EMBEDDED, 0)
    assert torch.equal(torch.rand(3), expected)


def test_a_base_in_four_bits_is_small_frozen_and_close(settings, folder):
    pytest.importorskip("bitsandbytes", reason="4-bit weights need bitsandbytes")
    model, tokenizer = load_policy(settings.replace(quantisation="nf4"), 0)
    packed = [p for name, p in model.named_parameters() if p.dtype == torch.uint8]
    assert len(packed) == 14 and not any(p.requires_grad for p in packed)
    assert sum(p.numel() for p in packed) * 2 == 2 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 128 * 64)
    tokens = torch.tensor([tokenizer("first price, second price").input_ids], device=model.device)
    exact = load_model(folder, torch.float32)[0](tokens).logits
    off = (model(tokens).logits.float() - exact).abs().max()
    assert 0 < off < 0.2 * exact.abs().max()


def test_four_bits_without_bitsandbytes_are_refused(settings, monkeypatch):
    find_spec = importlib.util.find_spec
    lacking = lambda name, *rest: None if name == "bitsandbytes" else find_spec(name, *rest)  # noqa: E731
    monkeypatch.setattr(importlib.util, "find_spec", lacking)
    with pytest.raises(ValueError, match="'nf4' needs the package bitsandbytes: install it, or choose"):
        load_policy(settings.replace(quantisation="nf4"), 0)


# Unsloth


@pytest.fixture
def card(monkeypatch):
    """A machine that believes to have a graphics card."""
    monkeypatch.setattr(policy, "model_device", lambda: "cuda")
    monkeypatch.setattr(found_models, "model_device", lambda: "cuda")
    monkeypatch.setattr(policy, "memory_free", lambda: 2**34)


def test_unsloth_loads_where_it_is_installed_and_a_card_is_there(settings, folder, card, monkeypatch):
    loader = recorded_loader()   # which knows the real parameters
    monkeypatch.setitem(sys.modules, "unsloth", types.SimpleNamespace(FastLanguageModel=loader))
    assert load_policy(settings.replace(quantisation="nf4"), 7) == ("policy", "tokenizer")
    base, adapters = loader.calls
    assert (base["model_name"], base["load_in_4bit"], base["dtype"]) == (str(folder), True, torch.bfloat16)
    assert (adapters["r"], adapters["lora_alpha"], adapters["random_state"]) == (4, 8, 7)
    assert adapters["target_modules"] == list(TARGETS)


def test_unsloth_is_not_asked_without_a_card(monkeypatch):
    monkeypatch.setattr(policy, "model_device", lambda: "cpu")
    monkeypatch.setitem(sys.modules, "unsloth", types.SimpleNamespace(FastLanguageModel=recorded_loader()))
    assert policy._unsloth() is None


@pytest.mark.parametrize("error", ["ImportError", "NotImplementedError"])
def test_an_unsloth_that_cannot_work_is_passed_over(error, card, tmp_path, monkeypatch):
    (tmp_path / "unsloth.py").write_text(f"raise {error}('no card that it knows')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "unsloth", raising=False)
    with pytest.warns(UserWarning, match="Unsloth cannot work here, plain loading is used: no card that it knows"):
        assert policy._unsloth() is None


def test_an_unsloth_that_is_not_installed_is_no_matter_for_a_warning(card, monkeypatch):
    monkeypatch.setitem(sys.modules, "unsloth", None)
    monkeypatch.setattr(policy.importlib.util, "find_spec", lambda name, *rest: None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert policy._unsloth() is None
