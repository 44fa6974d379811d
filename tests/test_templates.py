"""Chat templates of other models: one prompt for training and use, labels for the reply alone, replies that parse."""

import re
from datetime import date
from functools import cache
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")

import trl
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.models.llama4 import processing_llama4
from transformers.models.qwen2_audio import processing_qwen2_audio
from transformers.models.smolvlm import processing_smolvlm

from daedalus.training.grpo import GrpoSettings, reinforce
from daedalus.designers.language import (
    LanguageDesigner, chat_text, end_token, mechanism_matcher, messages, padding_token, reply_texts, sample_replies,
    stop_tokens)
from daedalus.schema import INFORMED_GREEDY, SYSTEM_PROMPT, Mechanism, Observation
from daedalus.training.sft import FineTuneSettings, _labelled, fine_tune

SHIPPED = {path.stem: path.read_text(encoding="utf-8")
           for path in sorted((Path(trl.__file__).parent / "chat_templates").glob("*.jinja"))}
TEMPLATES = SHIPPED | {
    "transformers llama4": processing_llama4.chat_template,
    "transformers smolvlm": processing_smolvlm.DEFAULT_CHAT_TEMPLATE,
    "transformers qwen2_audio": processing_qwen2_audio.Qwen2AudioProcessor.default_chat_template.fget(None),
    "alternating": "{{ bos_token }}{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
                   "{{ raise_exception('roles must alternate') }}{% endif %}{% if m.role == 'user' %}"
                   "[INST] {{ m.content | trim }} [/INST]{% else %} {{ m.content | trim }}{{ eos_token }}{% endif %}{% endfor %}",
    "no end token of its own": "{% for m in messages %}### {{ m.role }}:\n{{ m.content }}\n\n{% endfor %}"
                               "{% if add_generation_prompt %}### assistant:\n{% endif %}",
}
SPECIAL = re.compile(r"<[|｜][^<>{}'\"|｜]+[|｜]?>|<[a-z_]+[|]>|</?[a-z_:]+>|\[/?[A-Z_]+\]|\[gMASK\]")
SEEN = Observation(round_number=3, episode_length=10, mechanism=INFORMED_GREEDY,
                   market_outcomes=[dict(welfare=.7, fairness=.4, participation=1.)])


@cache
def trained():
    "A byte-level tokenizer as JSON."
    bare = Tokenizer(models.BPE())
    bare.pre_tokenizer, bare.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    bare.train_from_iterator([Mechanism.random(draw).to_text() for draw in range(50)], trainers.BpeTrainer(
        vocab_size=400, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    return bare.to_str()


def tokenizer_for(template, **special):
    "A tokenizer with the special tokens that a template writes, as tokenizers of other models are."
    wrapped = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(trained()), chat_template=template,
                                      name_or_path="owner/other", **special)
    wrapped.add_special_tokens({"additional_special_tokens": sorted(set(SPECIAL.findall(template or "")))})
    return wrapped


def model_for(tokenizer, **special):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return LlamaForCausalLM(LlamaConfig(
            vocab_size=len(tokenizer) + 8, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
            max_position_embeddings=8192, bos_token_id=None, **{"eos_token_id": None, **special}))


@pytest.fixture(params=TEMPLATES)
def tokenizer(request):
    return tokenizer_for(TEMPLATES[request.param], bos_token="<BOS>", eos_token="<EOS>")


def pair(reply=INFORMED_GREEDY):
    return {"prompt": messages(SEEN), "completion": [{"role": "assistant", "content": reply.to_text()}]}


def test_the_installed_libraries_ship_templates():
    assert len(SHIPPED) >= 70 and {"gemma", "gptoss", "qwen3_5_think", "deepseek_r1_distill", "llava_next"} <= set(SHIPPED)


def test_a_prompt_shows_the_task_once_and_ends_where_an_answer_begins(tokenizer):
    text = chat_text(tokenizer, messages(SEEN))
    assert text.count(SEEN.prompt()) == text.count(SYSTEM_PROMPT) == 1 and text.count("<BOS>") <= 1
    behind = text.split(SEEN.prompt())[1]
    assert Mechanism.from_text(behind + INFORMED_GREEDY.to_text()) == INFORMED_GREEDY   # no thinking is left open
    assert date.today().isoformat() not in text and date.today().strftime("%d %b %Y") not in text
    assert SEEN.mechanism.to_text() not in behind


def test_labels_are_the_reply_and_its_end_behind_the_prompt_of_use(tokenizer):
    for reply in (INFORMED_GREEDY, Mechanism.random(3)):   # the first also stands in the prompt
        found = _labelled(tokenizer, [pair(reply)])
        (ids,), (labels,) = found["input_ids"], found["labels"]
        head = tokenizer(chat_text(tokenizer, messages(SEEN)), add_special_tokens=False)["input_ids"]
        assert ids[:len(head)] == head and set(labels[:len(head)]) == {-100} and labels[len(head):] == ids[len(head):]
        assert tokenizer.decode(labels[len(head):-1]) == reply.to_text()
        assert labels[-1] == end_token(tokenizer) in tokenizer.added_tokens_decoder


def test_a_constrained_reply_parses_and_is_what_labels_look_like(tokenizer):
    model = model_for(tokenizer)
    designer = LanguageDesigner(model, tokenizer, temperature=1.0, complete=True)
    reply, = designer.replies([SEEN])
    assert reply.mechanism.to_text() == reply.text and (designer.invalid, designer.partial) == (0, 0)
    text = chat_text(tokenizer, messages(SEEN))
    found = sample_replies(model, tokenizer, [text], constraint=mechanism_matcher(tokenizer),
                           generator=torch.Generator().manual_seed(0))
    written = found.tokens[0, 0].tolist()
    assert written[written.index(end_token(tokenizer)):].count(padding_token(tokenizer)) >= 1
    matcher = mechanism_matcher(tokenizer)
    for token in (label for label in _labelled(tokenizer, [pair()])["labels"][0] if label != -100):
        assert matcher.consume_token(token)   # what is learned is what the constraint allows
    assert matcher.is_stopped() and not matcher.is_error()


# Tokenizers that lack something


def plain(**special):
    return tokenizer_for(SHIPPED["qwen3_5_think"], **special)


def test_a_tokenizer_without_padding_is_trained_and_asked(tmp_path):
    tokenizer = plain(eos_token="<|im_end|>")
    model = model_for(tokenizer, eos_token_id=tokenizer.eos_token_id)
    log = fine_tune(model, tokenizer, [pair(), pair(Mechanism.random(1))], FineTuneSettings(steps=2, batch_size=2), tmp_path)
    assert all(step["loss"] > 0 for step in log) and padding_token(tokenizer) == tokenizer.eos_token_id


def test_a_tokenizer_without_padding_and_end_is_trained_and_asked(tmp_path):
    tokenizer = plain()
    assert tokenizer.eos_token is None and tokenizer.decode(end_token(tokenizer)) == "<|im_end|>"
    model = model_for(tokenizer)
    fine_tune(model, tokenizer, [pair(), pair()], FineTuneSettings(steps=1, batch_size=2), tmp_path)
    assert LanguageDesigner(model, tokenizer).replies([SEEN])[0].mechanism
    settings = GrpoSettings(steps=1, batch_size=4, generations=4, horizon=1, futures=1, beta=0.0)
    assert len(reinforce(model, tokenizer, settings, 0, str(tmp_path)).history) == 1


def test_a_model_of_grpo_reads_the_prompt_of_use(tmp_path):
    from datasets import Dataset

    from daedalus.training.grpo import MarketRewards, shared_prompt_trainer, trl_config

    tokenizer = plain(bos_token="<BOS>", eos_token="<EOS>")
    trainer = shared_prompt_trainer()(
        model=model_for(tokenizer), reward_funcs=MarketRewards(1, 1).functions(), processing_class=tokenizer,
        args=trl_config(GrpoSettings(steps=1, batch_size=4, generations=4, beta=0.0), 8, str(tmp_path), 0),
        train_dataset=Dataset.from_list([{"prompt": messages(SEEN), "state": "", "future_seed": 0}]))
    ids, images, others = trainer._tokenize_prompts([messages(SEEN)])
    assert tokenizer.decode(ids[0]) == chat_text(tokenizer, messages(SEEN)) and (images, others) == (None, {})


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_side_of_padding_changes_nothing(side):
    tokenizer = plain(eos_token="<|im_end|>", pad_token="<PAD>", padding_side=side)
    model = model_for(tokenizer)
    short = Observation(round_number=0, episode_length=10)
    designer = LanguageDesigner(model, tokenizer)
    assert designer.design_batch([SEEN, short]) == [designer(SEEN), designer(short)]


def test_a_model_stops_at_every_token_that_ends_its_replies():
    tokenizer = plain(eos_token="<EOS>")
    model = model_for(tokenizer, eos_token_id=[5, 9])
    names = {tokenizer.convert_tokens_to_ids(name) for name in ("<EOS>", "<|im_end|>")}
    assert stop_tokens(model, tokenizer) == names | {5, 9}
    tokens = sample_replies(model, tokenizer, ["a"], 400, 5.0, 20, torch.Generator().manual_seed(0)).tokens[0].tolist()
    ends = [next((at for at, token in enumerate(row) if token in stop_tokens(model, tokenizer)), 20) for row in tokens]
    assert all(set(row[end + 1:]) <= {padding_token(tokenizer)} for row, end in zip(tokens, ends)) and min(ends) < 19
    assert {row[end] for row, end in zip(tokens, ends) if end < 20} == names | {5, 9}


def test_marks_of_thinking_stay_in_the_text_of_a_reply():
    tokenizer = tokenizer_for("{{ messages }}", eos_token="</s>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["[THINK]", "[/THINK]", "<image>"]})
    draft, answer = '{"reserve_price":0.90}', '{"reserve_price":0.18}'
    rows = tokenizer([f"[THINK]{draft}[/THINK]{answer}</s>", f"[THINK]{answer}", f"<image>{answer}</s>{draft}"])["input_ids"]
    texts = [reply_texts(tokenizer, [row], {tokenizer.eos_token_id})[0] for row in rows]
    assert texts == [f"[THINK]{draft}[/THINK]{answer}", f"[THINK]{answer}", answer]


# What cannot be used is refused in one sentence


@pytest.mark.parametrize("template, sentence", [
    (None, "tokenizer 'owner/other' has no chat template: choose an instruct model"),
    ("{{ raise_exception('no chats today') }}", "cannot write a question and its reply (no chats today): change it"),
    ("{% for m in messages %}{{ m.name.first }}{% endfor %}", "cannot write a question and its reply ('"),
    ("{% for m in messages %}{{ m.role }}{% endfor %}", "(it leaves out the question or the reply): change it"),
    ("{% for m in messages %}{% if m.role == 'assistant' %}{{ m.content }}{% endif %}{% endfor %}",
     "(it leaves out the question or the reply): change it"),
    ("{% for m in messages %}{{ m.content | upper }}{% endfor %}", "(it leaves out the question or the reply): change it"),
    ("{% for m in messages %", "cannot write a question and its reply ("),
])
def test_a_template_that_cannot_ask_is_refused(template, sentence):
    with pytest.raises(ValueError) as caught:
        chat_text(tokenizer_for(template, eos_token="<EOS>"), messages(SEEN))
    assert sentence in str(caught.value) and "\n" not in str(caught.value)


def test_a_reply_that_nothing_ends_is_refused():
    endless = tokenizer_for(TEMPLATES["no end token of its own"])
    with pytest.raises(ValueError, match="nothing ends a reply: tokenizer 'owner/other' has no end token"):
        end_token(endless)
    with pytest.raises(ValueError, match="nothing ends a reply"):
        LanguageDesigner(model_for(endless), endless).replies([SEEN])


def test_a_completion_is_one_message(tmp_path):
    tokenizer = plain(eos_token="<|im_end|>")
    row = pair() | {"completion": pair()["completion"] * 2}
    with pytest.raises(ValueError, match="a completion must be one message, not 2"):
        fine_tune(model_for(tokenizer), tokenizer, [row], FineTuneSettings(), tmp_path)


# Partial replies are counted


def test_partial_replies_are_counted_and_refused_on_demand(monkeypatch):
    tokenizer = plain(eos_token="<|im_end|>")
    said = ['{"reserve_price":0.2}', INFORMED_GREEDY.to_text(), "no", '{"reserve_price":2}']
    monkeypatch.setattr(tokenizer, "batch_decode", lambda rows, **_: [said[len(asked) % 4] for _ in rows
                                                                     if asked.append(0) is None])
    found = {}
    for complete in (False, True):
        asked = [0] * 3
        designer = LanguageDesigner(model_for(tokenizer), tokenizer, constrained=False, complete=complete)
        replies = designer.replies([SEEN] * 4)
        found[complete] = designer.asked, designer.invalid, designer.partial
        assert [reply.partial for reply in replies] == [not complete, False, False, False]
    assert found == {False: (4, 2, 1), True: (4, 3, 0)}
    assert "lacks auction_type, reveal_reserve" in replies[0].fault
