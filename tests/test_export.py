"""Export: a merge that changes what it should, a folder that strangers can load, and what is sent away."""

import inspect
import json
import re
import shlex
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import HfApi, JobHardware, ModelCard
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

from daedalus.training.export import PROBE, ExportError, export, hub_job, merge, model_card, probe_logits, push
from daedalus.designers.models import check_model_folder, load_model
from daedalus.training.policy import PolicySettings, load_policy

SMALL = PolicySettings(layers=1, width=64, heads=2)
ROWS = [{"stage": "SFT", "simulated rounds": 0, "mean R": 0.3311, "95 % interval": "0.320 to 0.341"},
        {"stage": "SFT + GRPO", "simulated rounds": 1_250_000, "mean R": 0.6, "95 % interval": "0.590 to 0.610"}]
PROJECT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """An exported base of random weights."""
    return export(*load_policy(SMALL, 0), tmp_path_factory.mktemp("models") / "base", "A base.\n")


@pytest.fixture
def settings(base):
    return PolicySettings(base_model=str(base), lora_rank=4)


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["32 bits", "16 bits"])
def kept(request, monkeypatch):
    """How a base is kept below its adapters, on this processor or on another one."""
    monkeypatch.setattr("daedalus.training.policy.frozen_dtype", lambda: request.param)
    return request.param


def trained(settings):
    """A policy whose adapters do something, and its tokenizer."""
    model, tokenizer = load_policy(settings, 0)
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    return model, tokenizer


def logits(model, tokenizer):
    return probe_logits(model, tokenizer(PROBE).input_ids)


def furthest(a, b):
    return (a - b).abs().max().item()


# Merging


def test_a_merged_model_speaks_as_with_adapters_and_unlike_its_base(settings, base, kept):
    model, tokenizer = trained(settings)
    adapted = logits(model, tokenizer)
    merged = merge(model, settings)
    assert not isinstance(merged, PeftModel)
    assert furthest(logits(merged, tokenizer), adapted) < (1e-4 if kept == torch.float32 else 0.02)
    assert furthest(adapted, logits(load_model(base)[0], tokenizer)) > 0.1


def test_a_merged_matrix_is_the_sum_by_hand(settings, base, kept):
    model, _ = trained(settings)
    projection = model.base_model.model.model.layers[0].mlp.up_proj
    a, b = (getattr(projection, which)["default"].weight.detach().clone() for which in ("lora_A", "lora_B"))
    weight = load_file(base / "model.safetensors")["model.layers.0.mlp.up_proj.weight"].to(a.device)
    merged = merge(model, settings).model.layers[0].mlp.up_proj.weight
    assert torch.allclose(merged, weight + settings.lora_alpha / settings.lora_rank * b @ a, atol=1e-6)


def test_without_adapters_the_model_itself_comes_back():
    model, _ = load_policy(SMALL, 0)
    assert merge(model, SMALL) is model


def test_a_base_in_four_bits_is_merged_in_full(settings, kept):
    pytest.importorskip("bitsandbytes", reason="4-bit weights need bitsandbytes")
    in_four = settings.replace(quantisation="nf4")
    model, tokenizer = trained(in_four)
    four_bits = logits(model, tokenizer)
    merged = merge(model, in_four)
    assert {p.dtype for p in merged.parameters()} == {torch.float32}
    exact = logits(merge(trained(settings)[0], settings), tokenizer)
    assert furthest(logits(merged, tokenizer), exact) < 1e-4 < furthest(four_bits, exact)


def test_a_merge_that_does_nothing_is_noticed(settings, monkeypatch):
    monkeypatch.setattr(PeftModel, "merge_and_unload", lambda self, **options: self.unload(), raising=False)
    with pytest.raises(ExportError, match="merged model's logits differ by"):
        merge(trained(settings)[0], settings)


# Exporting


@pytest.fixture
def merged(settings):
    model, tokenizer = trained(settings)
    return merge(model, settings), tokenizer


def test_a_stranger_loads_the_folder_without_a_warning(merged, tmp_path):
    model, tokenizer = merged
    folder = export(model, tokenizer, tmp_path / "designer", "A card.\n")
    code = ("import sys, torch; from transformers import AutoModelForCausalLM, AutoTokenizer\n"
            "model, tokenizer = AutoModelForCausalLM.from_pretrained('.'), AutoTokenizer.from_pretrained('.')\n"
            "tokens = tokenizer(sys.argv[1], return_tensors='pt').input_ids\n"
            "print(model(tokens).logits[0, -1].tolist())")
    run = subprocess.run([sys.executable, "-c", code, PROBE], cwd=folder, capture_output=True, text=True, check=True)
    assert furthest(torch.tensor(json.loads(run.stdout)), logits(model, tokenizer)[-1]) < 1e-4
    assert not re.search("newly initialized|not used|MISSING|UNEXPECTED|warn", run.stderr, re.IGNORECASE), run.stderr


def test_what_was_in_the_folder_is_gone(merged, tmp_path, settings):
    folder = tmp_path / "designer"
    trained(settings)[0].save_pretrained(folder)
    (folder / "config.json").write_text("{}")
    assert list(folder.glob("adapter_*"))
    export(*merged, folder, "A card.\n")
    assert check_model_folder(folder) == folder and not list(folder.glob("adapter_*"))
    assert (folder / "README.md").read_text() == "A card.\n"
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize("dtype, size, off", [("float32", 4, 1e-6), ("float16", 2, 0.01), ("bfloat16", 2, 0.1)])
def test_weights_are_stored_as_asked(merged, tmp_path, dtype, size, off):
    model, tokenizer = merged
    before = logits(model, tokenizer)
    folder = export(model, tokenizer, tmp_path / "designer", "", dtype)
    weights = load_file(folder / "model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {getattr(torch, dtype)}
    assert (folder / "model.safetensors").stat().st_size == pytest.approx(size * model.num_parameters(), rel=0.05)
    assert furthest(logits(AutoModelForCausalLM.from_pretrained(folder).float(), tokenizer), before) < off
    assert torch.equal(logits(model, tokenizer), before) and model.dtype == torch.float32


@pytest.mark.parametrize("when", ["daedalus.training.export._check_reload", "pathlib.Path.rename"])
def test_an_interrupted_export_leaves_the_old_folder(merged, tmp_path, monkeypatch, when):
    model, tokenizer = merged
    folder = export(model, tokenizer, tmp_path / "designer", "The old card.\n")
    rename = Path.rename

    def interrupted(path, *rest):
        if path.name == "new":
            raise KeyboardInterrupt
        return rename(path, *rest)

    monkeypatch.setattr(when, interrupted)
    with pytest.raises(KeyboardInterrupt):
        export(model, tokenizer, folder, "The new card.\n")
    assert (folder / "README.md").read_text() == "The old card.\n"
    assert list(tmp_path.iterdir()) == [folder]
    check_model_folder(folder)


def test_a_tokenizer_that_comes_back_as_another_is_refused(tmp_path):
    """With a configuration of type qwen2, loaders put Qwen2's own tokenizer in the place of the saved one."""
    _, tokenizer = load_policy(SMALL, 0)
    config = Qwen2Config(vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=1,
                         num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=True)
    with pytest.raises(ExportError, match="comes back as a Qwen2Tokenizer.* a model of type 'qwen2'"):
        export(Qwen2ForCausalLM(config), tokenizer, tmp_path / "designer", "")
    assert not list(tmp_path.iterdir())


def test_the_tokenizer_of_the_embedded_model_comes_back(base):
    _, tokenizer = load_policy(SMALL, 0)
    read = AutoTokenizer.from_pretrained(base)
    assert read.get_vocab() == tokenizer.get_vocab()
    assert read(PROBE).input_ids == tokenizer(PROBE).input_ids
    assert read.decode(read(PROBE).input_ids) == tokenizer.decode(tokenizer(PROBE).input_ids)


def test_what_cannot_be_exported_is_refused(merged, settings, tmp_path):
    model, tokenizer = merged
    (tmp_path / "diary.txt").write_text("Dear diary")
    for bad, folder, dtype, sentence in [
        (trained(settings)[0], tmp_path / "new", None, "still has adapters or 4-bit weights: export what `merge`"),
        (model, tmp_path, None, "holds other things than a model, which would be lost"),
        (model, tmp_path / "diary.txt", None, "is a file: name a folder"),
        (model, tmp_path / "new", "int8", "dtype must be one of float32, float16, bfloat16, not 'int8'"),
    ]:
        with pytest.raises(ValueError, match=sentence):
            export(bad, tokenizer, folder, "", dtype)
    assert [path.name for path in tmp_path.iterdir()] == ["diary.txt"]


# The card


def test_the_card_has_the_numbers_of_the_run_and_fields_that_the_hub_reads():
    card = model_card("designer", PolicySettings(base_model="Qwen/Qwen2.5-1.5B-Instruct", lora_rank=16), ROWS, "me/it")
    fields = ModelCard(card).data
    assert (fields.license, fields.base_model) == ("apache-2.0", "Qwen/Qwen2.5-1.5B-Instruct")
    assert "| SFT + GRPO | 1,250,000 | 0.600 | 0.590 to 0.610 |" in card.splitlines()
    assert "18,464,768 parameters (1.18% of all)" in card and "1,543,714,304 parameters" in card
    assert "Limitations" in card and "{" not in card


def test_the_card_of_a_model_from_scratch_names_no_base(base):
    card = model_card("designer", SMALL, ROWS, "data/designer")
    assert "trained from scratch" in card and ModelCard(card).data.base_model is None
    card = model_card("designer", PolicySettings(base_model=str(base)), ROWS, "data/designer")
    assert str(base.parent) not in card and "`base`" in card and ModelCard(card).data.base_model is None


def test_the_cards_own_code_loads_the_model(base):
    card = model_card("designer", SMALL, ROWS, str(base))
    names = {}
    exec(re.search("```python\n(.*?)```", card, re.DOTALL)[1], names)
    assert isinstance(names["model"], torch.nn.Module) and len(names["tokenizer"]) > 1


def test_yaml_of_a_card_is_plain():
    fields = yaml.safe_load(model_card("designer", SMALL, ROWS, "designer").split("---\n")[1])
    assert fields["pipeline_tag"] == "text-generation" and "base_model" not in fields


def test_rows_of_different_columns_are_refused():
    with pytest.raises(ValueError, match="rows must all have the columns stage, .* and one has stage$"):
        model_card("designer", SMALL, [ROWS[0], {"stage": "SFT"}], "designer")
    with pytest.raises(ValueError, match="at least one stage"):
        model_card("designer", SMALL, [], "designer")


# Away from home


class Recorder:
    """A hub that notes what it is asked, and refuses what the real one has no name for."""

    def __init__(self):
        self.calls = {}

    def __getattr__(self, name):
        real = getattr(HfApi, name)

        def noted(*args, **options):
            self.calls[name] = inspect.signature(real).bind(None, *args, **options).arguments
            return name

        return noted


def test_push_uploads_the_folder_and_clears_what_an_earlier_upload_left(base):
    hub = Recorder()
    assert push(base, "somebody/designer", api=hub) == "upload_folder"
    assert hub.calls["create_repo"]["repo_id"] == "somebody/designer" and hub.calls["create_repo"]["private"] is True
    sent = hub.calls["upload_folder"]
    assert (sent["repo_id"], sent["folder_path"]) == ("somebody/designer", base)
    assert "adapter_*" in sent["delete_patterns"]


def test_a_folder_with_a_leftover_adapter_is_not_pushed(merged, tmp_path):
    folder, hub = export(*merged, tmp_path / "designer", ""), Recorder()
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="left over from training"):
        push(folder, "somebody/designer", api=hub)
    assert not hub.calls


@pytest.fixture
def job():
    options = ["--seed", "1", "--note", "two words"]
    return hub_job("card", "somebody/daedalus-train:0.1.0", timeout="90m", options=options)


def test_the_dry_run_says_what_is_submitted(job, monkeypatch):
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "a token")
    hub = Recorder()
    job.submit(hub)
    asked = {name: value for name, value in hub.calls["run_job"].items() if name != "self"}
    assert asked == {**job.arguments(), "secrets": {"HF_TOKEN": "a token"}}
    line = shlex.split(job.describe())
    flags = ["--flavor", asked["flavor"], "--timeout", asked["timeout"], "--secrets", *asked["secrets"]]
    assert line == ["hf", "jobs", "run", *flags, asked["image"], *asked["command"]]
    assert asked["command"][:4] == ["daedalus", "train", "--profile", "card"]
    assert "a token" not in job.describe()


def test_the_described_line_makes_the_hubs_own_command_ask_for_the_same(job, monkeypatch):
    from huggingface_hub.cli.hf import app

    asked = {}

    def run_job(self, **options):
        asked.update(options)
        raise KeyError("enough was seen")

    monkeypatch.setenv("HF_TOKEN", "a token")
    monkeypatch.setattr(HfApi, "run_job", run_job)
    with pytest.raises(KeyError, match="enough was seen"):
        app(shlex.split(job.describe())[1:], standalone_mode=False)
    assert {name: asked[name] for name in job.arguments()} == job.arguments()
    assert asked["secrets"] == {"HF_TOKEN": "a token"}


def test_the_default_machine_is_the_published_one_and_exists():
    assert hub_job("card", "image:1").flavor == "l4x1" in [flavor.value for flavor in JobHardware]


def test_a_job_without_token_or_with_an_odd_time_is_refused(job, monkeypatch):
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    hub = Recorder()
    with pytest.raises(ValueError, match="needs a Hugging Face token: run `hf auth login`"):
        job.submit(hub)
    assert not hub.calls
    with pytest.raises(ValueError, match="timeout: it must be a whole number and a unit.*not 'soon'"):
        hub_job("card", "image:1", timeout="soon")


# The image


def instructions(file):
    """The instructions of a Dockerfile in order, continued lines joined, without comments."""
    text = (PROJECT / file).read_text()
    lines = re.sub(r"^#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ").splitlines()
    return [tuple(line.split(maxsplit=1)) for line in lines if line.strip()]


IMAGES = {"Dockerfile.train": ["daedalus", "train"], "Dockerfile": ["daedalus", "serve"]}   # what each runs


@pytest.mark.parametrize("file", IMAGES)
def test_the_image_is_pinned_and_does_not_run_as_root(file):
    image = instructions(file)
    known = {"FROM", "RUN", "USER", "WORKDIR", "ENV", "COPY", "ARG", "CMD", "EXPOSE", "HEALTHCHECK"}
    assert {word for word, _ in image} <= known
    assert [rest for word, rest in image if word == "FROM"] and image[0][0] == "FROM"
    for word, rest in image:
        assert word != "FROM" or re.fullmatch(r"[\w./-]+:\d[\w.-]+", rest)
        assert "latest" not in rest and ("://" not in rest or word == "HEALTHCHECK")
    assert [rest for word, rest in image if word == "USER"][-1] not in ("root", "0")


@pytest.mark.parametrize("file, runs", IMAGES.items())
def test_the_image_installs_what_the_project_offers_and_runs_it(file, runs):
    image = instructions(file)
    settings = ConfigParser(delimiters=["="])
    settings.read(PROJECT / "settings.ini")
    extras = re.findall(r"\.\[([\w,]+)\]", " ".join(rest for word, rest in image if word == "RUN"))
    assert extras and {name for some in extras for name in some.split(",")} <= set(settings["extras"])
    assert json.loads(dict(image)["CMD"])[:2] == runs   # a job's command replaces it whole
    for word, rest in image:
        if word == "COPY":
            assert all((PROJECT / name).exists() for name in rest.split()[1:-1])


def test_the_service_s_image_listens_where_it_is_looked_for():
    image = dict(instructions("Dockerfile"))
    port = image["EXPOSE"]
    assert f"port: {port}" in (PROJECT / "openenv.yaml").read_text().splitlines()
    assert json.loads(image["CMD"])[-1] == port and f":{port}/health" in image["HEALTHCHECK"]
