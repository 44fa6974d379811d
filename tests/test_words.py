"""Briefs in words: the grammar and its reader, the wordings by hand, what models are shown, and what they can answer."""

import os
import re
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

import daedalus as dd
from daedalus.designers.language import ChatDesigner, small_model, small_tokenizer
from daedalus.designers.models import load_model
from daedalus.paths import cache_dir
from daedalus.schema import BRIEF_KINDS, BRIEF_RULES, LEVERS, Brief, Objective
from daedalus.training import words
from daedalus.training.words import (
    BRIEF_PATTERN, LONGEST_BRIEF, Translator, Wording, WordsDesigner, draw_worded, occurs, phrases, read_words, shared, translate,
    words_of, wordings)
from test_brief import briefs

CACHED = cache_dir() / "models" / "smollm2-0.1.2"
DRAWN = [draw_worded(np.random.default_rng([7, at])) for at in range(1500)]


def leaves(part):
    """All texts in a part of the grammar."""
    return [part] if isinstance(part, str) else [text for each in (part.values() if isinstance(part, dict) else part)
                                                 for text in leaves(each)]


def without_words(brief):
    return brief.replace(words=None)


# The grammar


def test_the_grammar_is_as_large_as_it_should_be_and_says_nothing_twice():
    parts = {name: leaves(part) for name, part in phrases()}
    assert len(parts["templates"]) >= 40 and sum(map(len, parts.values())) - len(parts["templates"]) >= 400
    every = [text.lower() for name, texts in parts.items() for text in texts]
    assert [text for text, times in Counter(every).items() if times > 1] == []   # one phrase, one meaning


def test_sentences_say_nothing_but_what_is_put_into_them():
    """Else a template, or what a mayor says besides, would be read as a wish or a rule."""
    pattern, _ = words._phrase_pattern()
    neutral = [text for name in ("templates", "people", "lists") for text in leaves(getattr(phrases(), name))]
    assert not [text for text in neutral if pattern.search(re.sub(r"\{\w+\}", " ", text).lower()) or re.search(r"\d", text)]


def test_there_are_words_for_every_lever_every_value_and_every_component():
    for name, lever in LEVERS.items():
        rules = [{part: {name: 0.37}} for part in words.PARTS] if lever.step else [{"fixed": {name: v}} for v in lever.settings]
        for rule in rules:
            brief = Brief(**rule)
            assert all(read_words(words_of(brief, seed)) == brief for seed in range(12))
    for name in Objective.model_fields:
        for power in (0.5, 1.0, 1.37, 2.0, 3.0):
            brief = Brief(objective=Objective(**dict.fromkeys(Objective.model_fields, 0.0) | {name: power}))
            assert all(read_words(words_of(brief, seed)) == brief for seed in range(12))
    assert all(read_words(words_of(brief := Brief.random(seed), seed)) == brief for seed in range(200))


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(briefs(), st.integers(0, 2**32))
def test_any_brief_at_all_comes_back_from_its_words(brief, seed):
    assert read_words(words_of(brief, seed)) == without_words(brief)


def test_the_same_words_never_mean_two_briefs():
    assert all(read_words(brief.words) == without_words(brief) for brief in DRAWN)
    meant = {}
    for brief in DRAWN: assert meant.setdefault(brief.words, without_words(brief)) == without_words(brief)
    assert len(meant) > 0.99 * len(DRAWN)


def test_texts_are_sentences_of_many_kinds():
    assert all(re.fullmatch(r"[A-Z].*\.", brief.words) and "  " not in brief.words and "{" not in brief.words for brief in DRAWN)
    assert not any(re.search(r"\b1 hundredths|\ba [aeio]\w+|\.\.|,,", brief.words) for brief in DRAWN)
    said = "\n".join(brief.words for brief in DRAWN)
    literal = [text for name, part in phrases() for text in leaves(part) if name != "templates" and "{" not in text]
    assert np.mean([occurs(text, said) for text in literal]) > 0.99
    rare = [text for text in leaves(phrases().templates) if not occurs(text, said)]
    assert rare == []
    asked = Brief.random(3, 6)
    assert len({words_of(asked, seed) for seed in range(200)}) > 190


def test_words_are_a_function_of_brief_and_seed_in_any_process():
    code = ("import numpy as np; from daedalus.training.words import draw_worded; "
            "print([draw_worded(np.random.default_rng([7, at])).text() for at in range(40)])")
    said = {subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONHASHSEED": salt}, capture_output=True,
                           text=True, check=True).stdout for salt in ("1", "2")}
    assert said == {f"{[brief.text() for brief in DRAWN[:40]]}\n"}
    assert words_of(Brief(), 5) == words_of(Brief(), np.random.default_rng(5))


def test_vague_words_mean_one_bound():
    read = {text: without_words(read_words(f"Please maximise revenue. You must {text}."))
            for text in ("keep the reserve low", "set a high reserve", "keep fines mild")}
    assert [brief.text().partition("; ")[2].count("0.50") for brief in read.values()] == [0, 0, 3]
    assert read["keep the reserve low"].at_most == {"reserve_price": 0.1} and read["set a high reserve"].at_least == {"reserve_price": 0.15}
    for rule, (part, lever, end) in {"low reserve": ("at_most", "reserve_price", max), "high reserve": ("at_least", "reserve_price", min),
                                     "mild fines": ("at_most", "shill_penalty", max)}.items():
        drawn = [BRIEF_RULES[rule](np.random.default_rng(seed))[part][lever] for seed in range(400)]
        vague = next(iter(brief for brief in read.values() if lever in getattr(brief, part)))
        assert end(drawn) == getattr(vague, part)[lever]   # the outer end of what is drawn
    assert sum(bool(brief.at_most or brief.at_least) and not re.search(r"\d", brief.words) for brief in DRAWN) > 100


def test_what_there_are_no_words_for_and_what_says_nothing_is_refused(monkeypatch):
    with pytest.raises(ValueError, match="at least one exponent must be above 0"): read_words("Good morning.")
    monkeypatch.setattr(words, "_own_phrases", dict)
    with pytest.raises(ValueError, match="there are no words for auction_type = 'vcg'"):
        words_of(Brief(fixed={"auction_type": "vcg"}), 0)


# The wordings by hand


def kind_fits(kind, brief):
    """Whether a brief could be of a kind."""
    objective, rule = BRIEF_KINDS[kind]
    rules = [(part, name) for part in words.PARTS for name in getattr(brief, part)]
    drawn = BRIEF_RULES[rule](np.random.default_rng(0)) if rule else {}
    return brief.objective == objective and bool(rules) == bool(rule) and {
        (part, name) for part, values in drawn.items() for name in values} <= set(rules)


def test_the_wordings_by_hand_are_many_of_each_kind_and_mean_what_they_should_be_able_to():
    assert len(wordings()) >= 60 and len({each.words for each in wordings()}) == len(wordings())
    kinds = Counter(each.kind for each in wordings())
    assert set(range(len(BRIEF_KINDS))) <= kinds.keys() and all(kinds[kind] >= 5 for kind in range(len(BRIEF_KINDS)))
    assert all(each.kind is None or kind_fits(each.kind, each.meant) for each in wordings())
    numbers = [each for each in wordings() if re.search(r"\d\.\d", each.words)]
    assert len(numbers) >= 10
    said, meant = ([set(map(float, re.findall(r"\d\.\d+", text(each)))) for each in numbers]
                   for text in (lambda each: each.words, lambda each: each.brief))
    assert all(one <= other for one, other in zip(said, meant))
    assert {each.meant.words for each in wordings()} == {each.words for each in wordings()}


def test_they_are_of_other_patterns_and_phrases_than_the_grammar_s():
    hand, texts = [each.words for each in wordings()], [draw_worded(seed).words for seed in range(5000)]
    templates = [text for text in leaves(phrases().templates) if len(re.sub(r"\{\w+\}", "", text).split()) >= 2]
    sentences = [sentence for text in hand for sentence in re.split(r"(?<=[.!?:;]) ", text)]
    assert len(templates) > 55
    assert [(t, s) for t in templates for s in sentences if occurs(t.rstrip("."), s)] == []
    long = [text for name, part in phrases() if name != "templates" for text in leaves(part)
            if len(re.sub(r"\{\w+\}", "", text).split()) >= 3]
    assert len(long) > 200 and [text for text in long if occurs(text, "\n".join(hand))] == []
    assert shared(hand, texts) < 0.01 < 0.2 < shared(texts[::2], texts[1::2])


@pytest.mark.parametrize("change, sentence", [
    ({"kind": 10}, "kind must be a whole number from 0 to 9, not 10"), ({"words": ""}, "words: String should have at least 1 character"),
    ({"brief": "maximise revenue x welfare"}, "brief: must be written 'maximise welfare x revenue'"),
    ({"brief": "make money"}, "brief: a brief is a text such as"), ({"by": "me"}, "'by' is not a field")])
def test_a_wording_that_is_none_is_refused(change, sentence):
    with pytest.raises(ValueError, match=sentence): Wording(**dict(wordings()[0]) | change)


# What a model is shown, and what it is judged by


class Recorded:
    """A chat model that always says the same, and keeps what it was asked."""

    def __init__(self, reply): self.reply, self.asked = reply, []

    def complete(self, chats):
        self.asked += [message["content"] for chat in chats for message in chat]
        return [self.reply] * len(chats)


def test_a_designer_that_is_shown_words_alone_is_judged_by_the_brief():
    people, meant = dd.Population.stage(4), next(each.meant for each in wordings() if each.kind == 8)
    assert not meant.allows(dd.INFORMED_GREEDY)
    for mechanism in (dd.INFORMED_GREEDY, meant.mended(dd.INFORMED_GREEDY)):
        model = Recorded(mechanism.to_text())
        table = dd.play(ChatDesigner(model), people, [0, 1], 3, brief=meant)
        bare = dd.play(ChatDesigner(Recorded(mechanism.to_text())), people, [0, 1], 3, brief=without_words(meant))
        assert table["reward"].tolist() == bare["reward"].tolist() and (table["reward"] > 0).all() == meant.allows(mechanism)
        shown = [text for text in model.asked if "round_number" in text]
        assert len(shown) == 6 and all(meant.words in text for text in shown)
        assert not any("maximise" in text or "brief:" in text or " is false" in text for text in model.asked)
    env = dd.DaedalusEnv(people, brief=meant)
    assert meant.words in env.reset(0).prompt() and "maximise" not in env.step(dd.INFORMED_GREEDY).prompt()


# The translator


@settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much])
@given(st.from_regex(BRIEF_PATTERN, fullmatch=True))
def test_whatever_the_pattern_allows_is_the_text_of_a_brief(text):
    assert Brief.from_text(text).text() == text and len(text) <= len(LONGEST_BRIEF)


def test_the_pattern_allows_every_brief_that_is_drawn_and_nothing_that_is_none():
    assert all(re.fullmatch(BRIEF_PATTERN, without_words(brief).text()) for brief in [*DRAWN, *(each.meant for each in wordings())])
    for wrong in ("maximise", "maximise welfare^0", "maximise welfare^1", "maximise revenue x welfare", "maximise welfare x welfare",
                  "maximise welfare; reserve_price is at most 1.00", "maximise welfare; auction_type is at most \"vcg\"",
                  "maximise welfare; reserve_price is at most 0.20; reserve_price is at least 0.21",
                  "maximise welfare; reserve_price is 0.10; auction_type is \"vcg\"", "maximise welfare;", " maximise welfare"):
        assert not re.fullmatch(BRIEF_PATTERN, wrong)


def test_the_chat_names_every_component_and_its_example_is_a_brief():
    system, user = words.translation_chat("Be kind.")
    assert user == {"role": "user", "content": "Be kind."} and all(name in system["content"] for name in Objective.model_fields)
    assert re.fullmatch(BRIEF_PATTERN, system["content"].partition("For example: ")[2])


@pytest.mark.parametrize("seed", range(3))
def test_a_model_of_random_weights_writes_briefs_and_nothing_else_one_by_one_or_together(seed):
    tokenizer = small_tokenizer()
    translator = Translator(small_model(tokenizer, 1, 32, 2, seed), tokenizer)
    texts = [each.words for each in wordings()[::16]]
    together = translator(texts)
    assert all(type(brief) is Brief and re.fullmatch(BRIEF_PATTERN, brief.text()) for brief in together)
    assert translate(translator.model, tokenizer, texts[1]) == together[1] and translator([]) == []


@given(st.lists(st.text("01.x", max_size=4), min_size=1, unique=True))
def test_a_pattern_of_some_texts_is_of_these_and_no_other(texts):
    pattern = words._any_of(texts)
    assert all(re.fullmatch(pattern, text) for text in texts)
    assert not any(re.fullmatch(pattern, other) for text in texts for other in (text + "1", text[1:], "0" + text) if other not in texts)


@pytest.mark.skipif(not CACHED.is_dir(), reason="the pretrained base is not in the cache: `make pretrained` fetches it")
def test_the_pretrained_base_writes_briefs_too_and_its_many_tokens_are_no_obstacle():
    translator = Translator(*load_model("smollm2"))
    assert all(type(brief) is Brief for brief in translator([each.words for each in wordings()[:2]]))


def test_a_designer_that_reads_words_plays_what_was_understood_and_never_looks_at_the_brief():
    asked, shown = [], []
    vcg, first = (Brief(fixed={"auction_type": name}) for name in ("vcg", "first_price"))

    def understands(texts):
        asked.extend(texts)
        return [vcg] * len(texts)

    def obedient(observation):
        shown.append(observation)
        return (observation.brief or Brief()).mended(dd.DEFAULT_MECHANISM)

    reads = WordsDesigner(understands, obedient)
    plain = dd.Observation(round_number=0, episode_length=10)
    said = [plain.replace(brief=first.replace(words=text)) for text in ("One.", "Two.", "One.")]
    assert [m.auction_type for m in reads.design_batch([*said, plain])] == ["vcg"] * 3 + ["second_price"]
    assert reads(said[1]).auction_type == "vcg" and asked == ["One.", "Two."]   # the same words once
    assert [each.brief for each in shown] == [vcg] * 3 + [None, vcg]
    with pytest.raises(ValueError, match="a designer that reads words needs words in a brief: that of observation 1 has none"):
        reads.design_batch([plain, plain.replace(brief=first)])
    dd.check_designer(reads)
    table = dd.play(reads, dd.Population.stage(2), 0, 2, brief=vcg.replace(words="Three."))
    assert (table["reward"] > 0).all() and asked[-1] == "Three."


def test_with_a_perfect_reader_a_designer_obeys_every_brief_that_it_is_told_in_words():
    reads = WordsDesigner(lambda texts: list(map(read_words, texts)), lambda seen: seen.brief.mended(dd.INFORMED_GREEDY))
    for brief in DRAWN[:60]:
        assert brief.allows(reads(dd.Observation(round_number=0, episode_length=10, brief=brief)))
