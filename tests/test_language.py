"""A language model as a designer: chats, tokens, sampled and constrained replies, and what becomes of invalid ones."""

import hashlib
import json
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from daedalus.designers import language
from daedalus.market.bidders import Population
from daedalus.env import draw_training_population, observe, open_episodes, play_step
from daedalus.designers.language import (
    LONGEST_REPLY,
    REPLY_PATTERN,
    ChatDesigner,
    ChatModel,
    LanguageDesigner,
    LocalModel,
    Reply,
    chat_text,
    mechanism_matcher,
    messages,
    play_default,
    refuse_invalid,
    reply_pattern,
    sample_replies,
    small_model,
    small_tokenizer,
)
from daedalus.market.engine import COMPONENTS
from daedalus.schema import (
    DEFAULT_MECHANISM, INFORMED_GREEDY, LEVERS, SYSTEM_PROMPT, Brief, Mechanism, MechanismError, Objective, Observation)

TOKENIZER = small_tokenizer()
CHATML = ("{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
          "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")


@pytest.fixture(scope="module")
def observations():
    """Observations at four steps of 16 episodes, half of them as published."""
    rng = np.random.default_rng(0)
    episodes = open_episodes([draw_training_population(rng) for _ in range(16)], [(3, at) for at in range(16)])
    seen = []
    for _ in range(4):
        seen += [o.published() if at % 2 else o for at, o in enumerate(observe(episodes))]
        episodes = play_step(episodes, [Mechanism.random(rng) for _ in range(16)])
    return seen


@pytest.fixture(scope="module")
def small():
    return small_model(TOKENIZER, layers=1, width=32, heads=2), TOKENIZER


def byte_level(tokens):
    """A model with an ordinary byte-level tokenizer, no padding token, and more outputs than tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        [Mechanism.random(draw).to_text() for draw in range(50)], trainers.BpeTrainer(
            vocab_size=tokens, special_tokens=["<|im_start|>", "<|im_end|>"], show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", chat_template=CHATML)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = LlamaForCausalLM(LlamaConfig(
            vocab_size=400, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
            max_position_embeddings=2048, eos_token_id=wrapped.eos_token_id, bos_token_id=None))
    return model, wrapped


@pytest.fixture(scope="module")
def generic():
    return byte_level(350)


@pytest.fixture(scope="module")
def speller():
    """The same with a token for each byte and no others: a text can be cut in one way only."""
    return byte_level(258)


@pytest.fixture(params=["small", "generic"])
def any_model(request):
    return request.getfixturevalue(request.param)


def prompts_of(tokenizer, observations):
    return [chat_text(tokenizer, messages(observation)) for observation in observations]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


# Chats and tokens


def test_the_chat_says_who_the_model_is_and_asks_with_the_prompt(observations):
    system, user = messages(observations[0])
    assert system == {"role": "system", "content": SYSTEM_PROMPT}
    assert user == {"role": "user", "content": observations[0].prompt()}


def test_the_small_template_leaves_the_system_message_out_and_frames_the_rest():
    chat = [{"role": "system", "content": "S"}, {"role": "user", "content": "U"}]
    assert chat_text(TOKENIZER, chat) == "<|user|>U<|assistant|>"
    whole = TOKENIZER.apply_chat_template(chat + [{"role": "assistant", "content": "A"}], tokenize=False)
    assert whole == "<|user|>U<|assistant|>A<|end|>"


def test_a_model_without_a_chat_template_is_refused():
    bare = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), name_or_path="owner/base")
    with pytest.raises(ValueError, match="tokenizer 'owner/base' has no chat template: choose an instruct model"):
        chat_text(bare, [])


def test_every_piece_of_prompts_and_replies_is_one_token():
    rng = np.random.default_rng(5)
    episodes = open_episodes([Population.random(rng) for _ in range(50)], [(8, at) for at in range(50)])
    texts = []
    while not episodes.done:
        for o in observe(episodes):
            texts += [(o if rng.random() < .5 else o.published()).prompt(), Mechanism.random(rng).to_text()]
        episodes = play_step(episodes, [Mechanism.random(rng) for _ in range(50)])
    texts += [Observation(round_number=0, episode_length=10).prompt()]
    assert len(texts) == 1001
    split = TOKENIZER.backend_tokenizer.pre_tokenizer.pre_tokenize_str
    pieces = {piece for text in texts for piece, _ in split(text)}
    assert pieces <= set(TOKENIZER.get_vocab())
    assert all(len(TOKENIZER(text)["input_ids"]) == len(split(text)) for text in texts[:100])


def test_names_and_first_digits_are_one_token_and_replies_have_seventeen():
    tokens = TOKENIZER(INFORMED_GREEDY.to_text() + "<|end|>")["input_ids"]
    assert [TOKENIZER.decode(token) for token in tokens] == [
        '{"auction_type":"second_price"', ',"reserve_price":0.1', "8", ',"reveal_reserve":false',
        ',"reveal_competing_bids":false', ',"reveal_winner_identity":true', ',"reveal_clearing_price":true',
        ',"reveal_bid_distribution":false', ',"shill_penalty":1.2', "0", ',"withdrawal_penalty":0.6', "0",
        ',"collusion_penalty":1.9', "0", ',"coalition_policy":"penalize_suspected"', "}", "<|end|>"]


numbers = st.floats(-100, 1000)


@given(st.text(st.characters(exclude_categories=["Cs"])) | st.builds("\nprice: {:z.2f}\ngap: {:z.2f}".format, numbers,
                                                                    numbers))
def test_any_text_survives_the_tokenizer(text):
    assert TOKENIZER.decode(TOKENIZER(text)["input_ids"]) == text


def test_a_long_text_takes_little_time():
    text = "a" * 100_000 + "1" + "a" * 100_000
    assert TOKENIZER.decode(TOKENIZER(text)["input_ids"]) == text


def test_model_and_tokenizer_come_back_from_the_standard_loaders(tmp_path, observations, small):
    for part in small:
        part.save_pretrained(tmp_path)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    texts = prompts_of(TOKENIZER, observations) + [Mechanism.random(0).to_text(), "Zürich, 12.34 €"]
    assert prompts_of(tokenizer, observations) == texts[:-2]
    assert [tokenizer(text)["input_ids"] for text in texts] == [TOKENIZER(text)["input_ids"] for text in texts]
    assert sample_replies(model, tokenizer, texts[:2], 2, generator=generator()).texts == sample_replies(
        *small, texts[:2], 2, generator=generator()).texts


def test_the_tokenizer_is_the_same_in_another_process():
    code = "from daedalus.designers.language import small_tokenizer as t; print(t().backend_tokenizer.to_str())"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, encoding="utf-8")
    assert other.stdout.strip() == small_tokenizer().backend_tokenizer.to_str()


def test_weights_belong_to_the_seed_and_disturb_no_other_draw():
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    one, same, other = (small_model(TOKENIZER, 1, 32, 2, seed) for seed in (4, 4, 5))
    assert torch.equal(torch.rand(3), expected)
    pairs = list(zip(one.parameters(), same.parameters(), other.parameters()))
    assert all(torch.equal(a, b) for a, b, _ in pairs) and not all(torch.equal(a, c) for a, _, c in pairs)


# Replies


def test_greedy_replies_are_those_of_generate(any_model, observations):
    model, tokenizer = any_model
    prompts = prompts_of(tokenizer, observations[::7])
    found = sample_replies(model, tokenizer, prompts, samples=2, temperature=0, longest=12)
    for prompt, texts, tokens in zip(prompts, found.texts, found.tokens):
        read = torch.tensor([tokenizer(prompt, add_special_tokens=False)["input_ids"]])
        expected = model.generate(read, attention_mask=torch.ones_like(read), max_new_tokens=12, do_sample=False,
                                  pad_token_id=tokenizer.eos_token_id)[0, read.shape[1]:]
        assert torch.equal(tokens[0, :len(expected)], expected) and torch.equal(tokens[0], tokens[1])
        assert texts == [tokenizer.decode(expected, skip_special_tokens=True)] * 2


def test_first_tokens_are_drawn_with_the_probabilities_of_the_model(small, observations):
    model, tokenizer = small
    prompt, = prompts_of(tokenizer, observations[:1])
    with torch.no_grad():
        logits = model(torch.tensor([tokenizer(prompt)["input_ids"]])).logits[0, -1]
    for temperature in (1.0, 0.05):
        expected = (logits / temperature).softmax(-1)
        drawn = sample_replies(model, tokenizer, [prompt], 20_000, temperature, 1, generator()).tokens
        share = drawn.flatten().bincount(minlength=len(expected)) / 20_000
        error = (expected * (1 - expected) / 20_000).sqrt()
        assert ((share - expected).abs() < 5 * error + 2e-4).all()


def test_groups_and_batches_change_nothing(any_model, observations, monkeypatch):
    model, tokenizer = any_model
    prompts = prompts_of(tokenizer, observations[:12])
    together = sample_replies(model, tokenizer, prompts, 3, 1.0, 10, generator(2))
    monkeypatch.setitem(language.ROWS, "cpu", 7)
    apart = sample_replies(model, tokenizer, prompts, 3, 1.0, 10, generator(2))
    assert torch.equal(together.tokens, apart.tokens) and together.texts == apart.texts
    assert len(together.texts) == 12 and {len(texts) for texts in together.texts} == {3}
    assert len({text for texts in together.texts for text in texts}) > 12


def test_a_reply_ends_at_its_end_token(small):
    model, tokenizer = small
    tokens = sample_replies(model, tokenizer, ["<|user|>"], 64, 30.0, 400, generator()).tokens[0]
    ends = [(row == tokenizer.eos_token_id).int().argmax().item() for row in tokens]
    assert max(ends) > 0
    assert all((row[end:] == tokenizer.eos_token_id).all() for row, end in zip(tokens, ends) if end)


def log_probability(model, tokenizer, prompt, row, stops):
    """Of a reply, by reading prompt and reply at once, as a sum over its tokens with the one that ends it."""
    read = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    reply = language.until_stop(row, stops)
    with torch.no_grad():
        logits = model(torch.tensor([read + reply])).logits[0, len(read) - 1:-1]
    return logits.log_softmax(-1)[range(len(reply)), reply].sum().item()


@pytest.fixture
def hasty(small, monkeypatch):
    """The small model, with half of all tokens ending a reply."""
    stops = set(range(0, len(TOKENIZER), 2))
    monkeypatch.setattr(language, "stop_tokens", lambda *others: stops)
    return *small, stops


@pytest.mark.parametrize("temperature", [1.0, 0.7, 0.0])
def test_replies_come_with_the_log_probability_that_the_model_gives_them(hasty, observations, temperature):
    model, tokenizer, stops = hasty
    prompts = prompts_of(tokenizer, observations[:5])
    replies = sample_replies(model, tokenizer, prompts, 4, temperature, 6, generator())
    expected = [[log_probability(*hasty[:2], prompt, row, stops) for row in rows]
                for prompt, rows in zip(prompts, replies.tokens.tolist())]
    assert torch.allclose(replies.logprobs, torch.tensor(expected), atol=1e-3)
    lengths = {len(language.until_stop(row, stops)) for rows in replies.tokens.tolist() for row in rows}
    assert len(lengths) > 1 or not temperature


def test_of_several_replies_the_likeliest_is_said(hasty, observations):
    model, tokenizer, stops = hasty
    chats = [messages(observation) for observation in observations[:6]]
    one, several = (LocalModel(model, tokenizer, False, 1.0, seed=4, replies=replies) for replies in (1, 5))
    said, alone, longest = several.complete(chats), one.complete(chats), language._longest(tokenizer, None)
    for chat, text, single in zip(chats, said, alone):
        prompt = chat_text(tokenizer, chat)
        uniforms = torch.from_numpy(language._uniforms(prompt, 4, 5 * longest)).reshape(1, 5, longest)
        drawn = language._write_all(model, tokenizer, [prompt], uniforms, 1.0, [])
        by_hand = [log_probability(model, tokenizer, prompt, row, stops) for row in drawn.tokens[0].tolist()]
        assert text == drawn.texts[0][int(np.argmax(by_hand))] and single == drawn.texts[0][0]
    assert said != alone and several.complete(chats[::-1]) == said[::-1]
    with pytest.raises(ValueError, match="^replies must be a whole number of at least 1, not 0$"):
        LocalModel(model, tokenizer, replies=0).complete(chats)


def test_no_prompts_no_replies(small):
    assert sample_replies(*small, []).texts == [] == LocalModel(*small, replies=3).complete([])


@pytest.mark.parametrize("wrong, sentence", [
    (dict(temperature=-1.0), "temperature must be a number of at least 0, not -1.0"),
    (dict(temperature=float("nan")), "temperature must be a number of at least 0, not nan"),
    (dict(samples=0), "samples must be a whole number of at least 1, not 0"),
    (dict(longest=0), "longest must be a whole number of at least 1, not 0"),
])
def test_wrong_numbers_are_refused(small, wrong, sentence):
    with pytest.raises(ValueError, match=sentence):
        sample_replies(*small, ["<|user|>"], **wrong)


# The designer that comes along


def test_the_trained_designer_reads_and_says_what_it_always_did(observations):
    designer = LanguageDesigner.load()
    prompts = prompts_of(designer.tokenizer, observations)
    asked = hashlib.sha256(json.dumps([prompts, designer.tokenizer(prompts)["input_ids"]]).encode()).hexdigest()
    said = hashlib.sha256("".join(reply.text for reply in designer.replies(observations)).encode()).hexdigest()
    assert (asked[:16], said[:16]) == ("43c924ae78b61cee", "238f25fd8a158394")


# Constrained replies


@given(st.integers(0, 2**32))
def test_the_pattern_is_what_mechanisms_look_like(seed):
    text = Mechanism.random(seed).to_text()
    assert re.fullmatch(REPLY_PATTERN, text)
    assert not re.fullmatch(REPLY_PATTERN, text[:-1]) and not re.fullmatch(REPLY_PATTERN, text.replace(",", ", "))


@pytest.mark.parametrize("field, good, bad", [
    ("reserve_price", ["0.00", "0.89", "0.90"], ["0.91", "0.9", "1.00", "-0.10", "00.90"]),
    ("shill_penalty", ["0.00", "2.99", "3.00"], ["3.01", "3", "3.000", "1e0"]),
    ("auction_type", ['"vcg"'], ["vcg", '"VCG"', '"second-price"', "null"]),
    ("reveal_reserve", ["true", "false"], ["True", "1", '"true"']),
])
def test_the_pattern_knows_the_range_of_each_field(field, good, bad):
    text = re.sub(rf'(?<="{field}":)[^,]+', "{}", INFORMED_GREEDY.to_text().replace("{", "{{").replace("}", "}}"))
    assert all(re.fullmatch(REPLY_PATTERN, text.format(value)) for value in good)
    assert not any(re.fullmatch(REPLY_PATTERN, text.format(value)) for value in bad)


@pytest.mark.parametrize("temperature", [0.0, 1.0, 100.0])
def test_untrained_models_reply_with_mechanisms_under_the_constraint(any_model, observations, temperature):
    model, tokenizer = any_model
    matcher = mechanism_matcher(tokenizer)
    found = sample_replies(model, tokenizer, prompts_of(tokenizer, observations[:4]), 4, temperature,
                           generator=generator(), constraint=matcher)
    for texts in found.texts:
        assert [Mechanism.from_text(text).to_text() for text in texts] == texts
    free = sample_replies(model, tokenizer, prompts_of(tokenizer, observations[:4]), 4, temperature,
                          generator=generator())
    assert sum(Reply.read(text).mechanism is not None for texts in free.texts for text in texts) < 4


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("brief", [None, Brief(fixed={"auction_type": "vcg", "reserve_price": 0.25})])
def test_what_can_only_follow_is_read_at_once_and_changes_nothing(speller, observations, monkeypatch, temperature, brief):
    model, tokenizer = speller
    prompts, pattern, read = prompts_of(tokenizer, observations[:4]), reply_pattern(brief), []
    monkeypatch.setattr(language._Reader, "read", lambda self, *run, of=language._Reader.read: read.append(1) or of(self, *run))
    found = []
    for matcher in (language._matcher(language._tokens_of(tokenizer), False, pattern), language._reply_matchers(tokenizer)(pattern)):
        read.clear()
        found.append((sample_replies(model, tokenizer, prompts, 3, temperature, generator=generator(), constraint=matcher),
                      len(read)))
    (plain, one_by_one), (forced, in_runs) = found
    assert plain.texts == forced.texts and torch.equal(plain.tokens, forced.tokens)
    assert torch.allclose(plain.logprobs, forced.logprobs, rtol=1e-4)
    assert all(Mechanism.from_text(text).auction_type == "vcg" for texts in forced.texts for text in texts) or brief is None
    assert one_by_one > 200 and in_runs < one_by_one / 5


def test_texts_are_forced_only_where_the_tokenizer_cuts_them_so(small, generic, speller):
    for (_, tokenizer), forces in ((small, False), (speller, True)):
        matcher = mechanism_matcher(tokenizer)
        assert (matcher.compute_ff_tokens() == tokenizer('{"auction_type":"')["input_ids"]) is forces
        assert bool(matcher.compute_ff_tokens()) is forces
    own = [generic[1](text)["input_ids"] for text in (DEFAULT_MECHANISM.to_text(), LONGEST_REPLY)]
    assert all(row[:len(run)] == run for row in own for run in [mechanism_matcher(generic[1]).compute_ff_tokens()])


def test_the_constraint_leaves_the_model_its_own_tokens():
    matcher, upper = mechanism_matcher(TOKENIZER), Mechanism(**{
        name: lever.settings[-1] for name, lever in LEVERS.items()})
    for mechanism in [upper, DEFAULT_MECHANISM, *map(Mechanism.random, range(20))]:
        copy = matcher.deep_copy()
        for token in TOKENIZER(mechanism.to_text() + "<|end|>")["input_ids"]:
            allowed = np.unpackbits(np.frombuffer(copy.compute_bitmask(), np.uint8), bitorder="little")
            assert allowed[token] and copy.consume_token(token)
        assert copy.is_stopped() and not copy.is_error()


# The designer


def test_a_reply_is_a_mechanism_or_a_sentence():
    assert Reply.read("so: " + INFORMED_GREEDY.to_text()) == ("so: " + INFORMED_GREEDY.to_text(), INFORMED_GREEDY, None)
    assert Reply.read('{"reserve_price":0.95}') == (
        '{"reserve_price":0.95}', None, "reserve_price must be a number from 0 to 0.9, not 0.95")


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_an_answer_belongs_to_the_observation(small, observations, temperature):
    designer = LanguageDesigner(*small, temperature=temperature, seed=3)
    together = designer.design_batch(observations)
    assert designer.design_batch(observations[::-1]) == together[::-1]
    assert [designer(observation) for observation in observations[:3]] == together[:3]
    assert designer.design_batch([]) == []
    assert designer.invalid == 0 and designer.asked == 2 * len(observations) + 3


def test_a_designer_refuses_a_negative_temperature(small, observations):
    with pytest.raises(ValueError, match="temperature must be a number of at least 0, not -0.5"):
        LanguageDesigner(*small, temperature=-0.5).replies(observations[:1])


def test_seeds_differ_only_where_something_is_drawn(small, observations):
    def answers(**options):
        return LanguageDesigner(*small, **options).design_batch(observations)

    assert answers(temperature=1.0, seed=1) != answers(temperature=1.0, seed=2)
    assert answers(seed=1) == answers(seed=2)


def test_an_invalid_reply_leaves_the_last_mechanism_in_force_and_is_counted(small, observations):
    designer = LanguageDesigner(*small, constrained=False)
    replies = designer.replies(observations)
    assert all(reply.mechanism is None and reply.fault for reply in replies)
    assert (designer.asked, designer.invalid) == (64, 64)
    assert designer.design_batch(observations) == [o.mechanism or DEFAULT_MECHANISM for o in observations]
    assert (designer.asked, designer.invalid) == (128, 128)
    assert len({o.mechanism for o in observations}) > 10


def test_a_valid_free_reply_is_played(small, observations, monkeypatch):
    designer = LanguageDesigner(*small, constrained=False)
    monkeypatch.setattr(designer.tokenizer, "batch_decode", lambda rows, **_: [INFORMED_GREEDY.to_text()] * len(rows))
    assert designer.design_batch(observations[:3]) == [INFORMED_GREEDY] * 3 and designer.invalid == 0


def test_what_an_observation_does_not_show_does_not_matter(small, observations):
    full = next(o for o in observations if o.signals and o.round_number)
    designer = LanguageDesigner(*small, temperature=1.0)
    assert designer(full.published()) == designer(full.replace(signals=None, mechanism=None, reward=None))


# Asking, reading, and what follows an invalid reply


class Answers(ChatModel):
    "Gives prepared texts, and keeps what it was asked."

    def __init__(self, *texts):
        self.texts, self.chats = texts, []

    def complete(self, chats):
        self.chats += chats
        return list(self.texts[:len(chats)])


GOOD, PART, BAD = INFORMED_GREEDY.to_text(), '{"reserve_price":0.2}', '{"reserve_price":2}'


def test_whatever_completes_chats_is_a_designer(observations):
    model = Answers(GOOD, PART, BAD)
    designer = ChatDesigner(model)
    given = designer.design_batch(observations[:3])
    assert given == [INFORMED_GREEDY, DEFAULT_MECHANISM.replace(reserve_price=0.2),
                     observations[2].mechanism or DEFAULT_MECHANISM]
    assert (designer.asked, designer.invalid, designer.partial) == (3, 1, 1)
    assert model.chats == [messages(observation) for observation in observations[:3]]
    assert designer.design_batch([]) == [] and designer.asked == 3


def test_what_follows_an_invalid_reply_is_a_function(observations):
    played = next(o for o in observations if o.mechanism and o.mechanism != DEFAULT_MECHANISM)
    assert ChatDesigner(Answers(BAD))(played) == played.mechanism
    assert ChatDesigner(Answers(BAD))(played.replace(mechanism=None)) == DEFAULT_MECHANISM
    assert ChatDesigner(Answers(BAD), invalid_reply=play_default)(played) == DEFAULT_MECHANISM
    designer = ChatDesigner(Answers(PART), complete=True, invalid_reply=refuse_invalid)
    with pytest.raises(MechanismError, match="^the reply must name all 11 fields .*; the reply was '.\"reserve_price\":0.2.'$"):
        designer(played)
    assert (designer.asked, designer.invalid) == (1, 1)
    assert ChatDesigner(Answers(BAD), invalid_reply=lambda seen, reply: INFORMED_GREEDY)(played) == INFORMED_GREEDY


def test_a_model_that_answers_too_few_is_refused(observations):
    with pytest.raises(ValueError, match="^complete must return one text for each of the 2 chats, not 1$"):
        ChatDesigner(Answers(GOOD)).design_batch(observations[:2])


def test_a_language_designer_is_a_local_model_that_is_read(small, observations):
    designer = LanguageDesigner(*small, temperature=1.0, seed=4)
    known = LocalModel(*small, temperature=1.0, seed=4).complete([messages(o) for o in observations[:4]])
    assert [reply.text for reply in designer.replies(observations[:4])] == known
    designer.seed = 5
    assert (designer.chat_model.seed, designer.temperature, designer.constrained) == (5, 1.0, True)
    assert [reply.text for reply in designer.replies(observations[:4])] != known
    with pytest.raises(MechanismError):
        LanguageDesigner(*small, constrained=False, invalid_reply=refuse_invalid)(observations[0])


# Loading


@pytest.fixture
def folder(tmp_path, small):
    for part in small:
        part.save_pretrained(tmp_path / "designer")
    return tmp_path / "designer"


def test_a_folder_is_loaded(folder, small, observations):
    loaded = LanguageDesigner.load(folder, temperature=1.0, seed=5)
    known = LanguageDesigner(*small, temperature=1.0, seed=5)
    assert loaded.design_batch(observations) == known.design_batch(observations)
    assert not loaded.model.training and loaded.constrained


def test_the_designer_that_comes_along_is_the_default(folder, observations, monkeypatch):
    monkeypatch.setattr(language, "data_dir", lambda: folder.parent)
    assert LanguageDesigner.load()(observations[0]) == LanguageDesigner.load(str(folder))(observations[0])
    monkeypatch.setattr(language, "data_dir", lambda: folder)
    with pytest.raises(ValueError, match="no trained designer has come along: run `make train`"):
        LanguageDesigner.load()


def test_what_cannot_be_loaded_is_refused_in_one_sentence(folder, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="is no folder here and cannot be downloaded"):
        LanguageDesigner.load("owner/model")
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="holds adapter_config.json, left over from training"):
        LanguageDesigner.load(folder)
    (folder / "adapter_config.json").unlink()
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="lacks weights"):
        LanguageDesigner.load(folder)


def test_importing_the_module_is_light():
    heavy = "torch", "transformers", "llguidance"
    code = f"import sys, daedalus.designers.language; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_every_component_and_every_rule_of_a_brief_is_one_token():
    rng = np.random.default_rng(6)
    for number in range(200):
        brief = Brief.random(rng, number % 10)
        brief = brief.replace(objective=Objective(**dict(zip(COMPONENTS, rng.integers(0, 4, 5).tolist())) | {"welfare": 1}))
        line = f"brief: {brief.text()}\n"
        pieces = [piece for piece, _ in TOKENIZER.backend_tokenizer.pre_tokenizer.pre_tokenize_str(line)]
        tokens = TOKENIZER(line)["input_ids"]
        assert len(tokens) == len(pieces) and TOKENIZER.decode(tokens) == line
        amounts = [*brief.at_most, *brief.at_least, *(n for n in brief.fixed if LEVERS[n].step)]
        rules = len(brief.fixed) + len(brief.at_most) + len(brief.at_least)
        assert len(tokens) == 2 + len(brief.objective.text().split(" x ")) + rules + len(amounts)


@pytest.mark.parametrize("draw", range(30))
def test_a_constrained_reply_obeys_the_brief_that_is_shown(draw, small, observations):
    brief = Brief.random(draw)
    free = [Mechanism.random(other) for other in range(200)]
    for mechanism in free + [brief.mended(mechanism) for mechanism in free]:
        assert bool(re.fullmatch(reply_pattern(brief), mechanism.to_text())) == brief.allows(mechanism)
    asked = observations[0].replace(brief=brief)
    designer = LanguageDesigner(*small, temperature=1.0, seed=draw)
    assert brief.allows(designer(asked)) and not designer.invalid


def test_a_rule_between_hundredths_can_be_obeyed(small, observations):
    brief = Brief(at_least={"reserve_price": 0.123}, at_most={"reserve_price": 0.124, "withdrawal_penalty": 0.555})
    assert brief.settings("reserve_price") == (0.123,) and brief.settings("withdrawal_penalty")[-1] == 0.55
    assert brief.settings("coalition_policy") == LEVERS["coalition_policy"].settings
    assert LanguageDesigner(*small)(observations[0].replace(brief=brief)).reserve_price == 0.123


def test_rules_behind_words_are_not_told_by_the_constraint(small, observations):
    told = Brief(fixed={"auction_type": "vcg"}, at_most={"reserve_price": 0.0})
    asked = [observations[0].replace(brief=told), observations[0].replace(brief=told.replace(words="as you like"))]
    drawn = [[LanguageDesigner(*small, temperature=1.0, seed=seed)(one) for seed in range(20)] for one in asked]
    assert all(map(told.allows, drawn[0])) and not all(map(told.allows, drawn[1]))


@pytest.mark.parametrize("samples", [1, 3])
def test_a_long_beginning_that_prompts_share_is_read_once(samples, generic, monkeypatch):
    """The same replies and probabilities, and far fewer tokens read; a short one is read with each prompt, as ever."""
    model, tokenizer = generic
    begun = tokenizer("round_number: 1 / 10\n" * 60)["input_ids"][:language.SHARED + 20]
    prompts = [[*begun, *tokenizer(f"round_number: {n} / 10{' units' * n}")["input_ids"]] for n in range(1, 5)]
    read, forward = [], model.forward

    def counted(*words, **options):
        read.append(options["input_ids"].numel())
        return forward(*words, **options)

    monkeypatch.setattr(model, "forward", counted)
    replies, sizes = [], []
    for shared in (language.SHARED, 10**6):
        monkeypatch.setattr(language, "SHARED", shared)
        read.clear()
        replies.append(sample_replies(model, tokenizer, prompts, samples, 0.0 if samples == 1 else 1.0, 12, generator(3)))
        sizes.append(sum(read))
    assert replies[0].texts == replies[1].texts and torch.allclose(replies[0].logprobs, replies[1].logprobs, atol=1e-4)
    assert sizes[1] - sizes[0] > 2 * len(begun)
    monkeypatch.undo()
    assert [len(row) for row in language._rows(tokenizer, [begun, begun])[1]] == [1, 1]   # something is left to answer
    assert language._rows(tokenizer, [begun]) == ([], [begun])
    assert language._rows(tokenizer, [begun[:language.SHARED], begun[:language.SHARED]])[0] == []
