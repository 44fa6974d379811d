"Properties of the schema: what is accepted, what is refused and how, and that nothing a model says crashes the reader."
import copy
import json
import math
import pickle
import re
import time

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from pydantic import ValidationError

from daedalus.schema import (
    AUCTION_TYPES, COALITION_POLICIES, DEFAULT_MECHANISM, FIELDS, INFORMED_GREEDY, LEVERS, MAX_PENALTY, MAX_RESERVE,
    AmountLever, Mechanism, MechanismError, Observation, Outcome, RecentOutcome, mechanisms_to_array, one_of)

settings.register_profile('untimed', deadline=None)
settings.load_profile('untimed')

AMOUNTS = [name for name, lever in LEVERS.items() if isinstance(lever, AmountLever)]
SWITCHES = [name for name, lever in LEVERS.items() if lever.settings == (False, True)]
CHOICES = [name for name in FIELDS if name not in AMOUNTS + SWITCHES]

values = {name: st.floats(0, lever.top) if isinstance(lever, AmountLever) else st.sampled_from(lever.settings)
          for name, lever in LEVERS.items()}
mechanisms = st.builds(Mechanism, **values)
any_text = st.text(st.characters())          # with lone surrogates and control characters
json_bits = st.lists(st.sampled_from(
    ['{', '}', '[', ']', '"', ':', ',', '\\', '\n', ' ', '0.5', '-', '1e999', 'NaN', 'null', 'true', '"\\ud800"', '```json\n',
     '{"a":', '{"reserve_price":', '"auction_type":"vcg"', '"auction_type":"\\ud800"', *(f'"{name}"' for name in FIELDS)]),
    max_size=40).map(''.join)
scores = st.floats(0, 1)
outcomes = st.builds(RecentOutcome, welfare=scores, fairness=scores, participation=scores)
finite = st.floats(allow_nan=False, allow_infinity=False)
observations = st.builds(
    Observation, round_number=st.integers(0, 100), episode_length=st.integers(1, 100),
    market_outcomes=st.lists(outcomes, max_size=5), mechanism=st.none() | mechanisms, reward=st.none() | scores,
    done=st.booleans(), signals=st.none() | st.dictionaries(st.from_regex('[a-z][a-z0-9_]*', fullmatch=True), finite))

CARD_SECTION_1 = '''{ "auction_type": "second_price", "reserve_price": 0.18, "reveal_reserve": false,
"reveal_competing_bids": false, "reveal_winner_identity": true, "reveal_clearing_price": true,
"reveal_bid_distribution": false, "shill_penalty": 1.2, "withdrawal_penalty": 0.6, "collusion_penalty": 1.9,
"coalition_policy": "penalize_suspected" }'''
CARD_SECTION_4 = '''{ "auction_type": "second_price", "reserve_price": 0.18, "reveal_competing_bids": false,
"reveal_clearing_price": true, "reveal_winner_identity": true, "collusion_penalty": 1.9, "shill_penalty": 1.2,
"withdrawal_penalty": 0.6, "coalition_policy": "penalize_suspected" }'''


def refused(**fields):
    "The sentence with which a mechanism refuses these fields."
    with pytest.raises(MechanismError) as caught:
        Mechanism(**fields)
    return str(caught.value)


def unread(reply):
    "The sentence with which a reply is refused."
    with pytest.raises(MechanismError) as caught:
        Mechanism.from_text(reply)
    return str(caught.value)


# The fields

def test_published_fields_in_published_order():
    assert FIELDS == tuple(json.loads(CARD_SECTION_1))
    assert tuple(json.loads(DEFAULT_MECHANISM.to_json())) == FIELDS
    assert LEVERS['auction_type'].settings == AUCTION_TYPES
    assert LEVERS['coalition_policy'].settings == COALITION_POLICIES
    assert [LEVERS[name].top for name in AMOUNTS] == [MAX_RESERVE] + 3 * [MAX_PENALTY] == [0.9, 3, 3, 3]


def test_default_is_the_market_before_anybody_intervenes():
    assert Mechanism() == DEFAULT_MECHANISM == Mechanism(
        auction_type='second_price', reserve_price=0.10, reveal_reserve=False, reveal_competing_bids=False,
        reveal_winner_identity=False, reveal_clearing_price=True, reveal_bid_distribution=False, shill_penalty=0,
        withdrawal_penalty=0, collusion_penalty=0, coalition_policy='allow')


@pytest.mark.parametrize('published', [CARD_SECTION_1, CARD_SECTION_4])
def test_both_published_replies_are_the_informed_greedy_mechanism(published):
    assert Mechanism.from_text(published) == Mechanism.from_text(f'```json\n{published}\n```') == INFORMED_GREEDY


@given(st.sampled_from(AMOUNTS), st.floats() | st.integers())
def test_amounts_are_accepted_exactly_within_their_range(name, x):
    if 0 <= x <= LEVERS[name].top:
        assert getattr(Mechanism(**{name: x}), name) == x
    else:
        sentence = refused(**{name: x})
        assert sentence.startswith(f'{name} must be a number from 0 to {LEVERS[name].top:g}, not ') and '\n' not in sentence


@given(st.sampled_from(CHOICES), st.text() | st.integers() | st.none() | st.lists(st.text()))
def test_choices_are_accepted_exactly_from_their_list(name, choice):
    if choice not in LEVERS[name].settings:
        assert refused(**{name: choice}).startswith(f"{name} must be one of {', '.join(LEVERS[name].settings)}, not ")


@pytest.mark.parametrize('name', SWITCHES)
@pytest.mark.parametrize('wrong', [0, 1, 0.0, 'true', 'false', '', None, []])
def test_switches_are_true_or_false_and_nothing_else(name, wrong):
    assert refused(**{name: wrong}) == f'{name} must be true or false, not {wrong!r}'


@pytest.mark.parametrize('name', AMOUNTS)
@pytest.mark.parametrize('wrong', [True, False, '0.1', '', None, [0.1], {}, 0.1j])
def test_amounts_are_numbers_and_nothing_else(name, wrong):
    assert refused(**{name: wrong}).endswith(f', not {wrong!r}')


@pytest.mark.parametrize('key', ['reserve', 'RESERVE_PRICE', 'self', 'cls', '', 'n_agents'])
def test_an_unknown_field_is_named_with_the_known_ones(key):
    sentence = refused(**{key: 0.1})
    assert sentence == f"{key!r} is not a field; the fields are {', '.join(FIELDS)}"


def test_several_mistakes_are_counted():
    assert refused(reserve_price=2) == 'reserve_price must be a number from 0 to 0.9, not 2'
    assert refused(reserve_price=2, shill_penalty=math.nan, fee=1) == (
        'reserve_price must be a number from 0 to 0.9, not 2 (and 2 more wrong)')


def test_a_long_value_is_quoted_briefly():
    assert len(refused(auction_type='x' * 10_000)) < 120


def test_numpy_scalars_are_plain_numbers():
    m = Mechanism(reserve_price=np.float32(0.5), shill_penalty=np.int64(2), reveal_reserve=np.bool_(True))
    assert m == Mechanism(reserve_price=0.5, shill_penalty=2.0, reveal_reserve=True)
    assert [type(v) for v in (m.reserve_price, m.shill_penalty, m.reveal_reserve)] == [float, float, bool]


# Value semantics

@given(mechanisms)
def test_frozen_hashable_and_copied_without_loss(m):
    for name in FIELDS:
        with pytest.raises(ValidationError, match='frozen'):
            setattr(m, name, getattr(m, name))
    for twin in (Mechanism(**dict(m)), pickle.loads(pickle.dumps(m)), copy.deepcopy(m), m.replace()):
        assert twin == m and hash(twin) == hash(m) and twin.to_json() == m.to_json()


@given(mechanisms)
def test_display_is_code_that_makes_the_same_mechanism(m):
    assert eval(repr(m), {'Mechanism': Mechanism}) == m and Mechanism.from_json(str(m)) == m
    assert all(f'{name}=' in repr(m) for name in FIELDS if getattr(m, name) != getattr(DEFAULT_MECHANISM, name))


@given(mechanisms, st.data())
def test_replace_changes_one_field_and_checks_it(m, data):
    name = data.draw(st.sampled_from(FIELDS))
    value = data.draw(values[name])
    changed = m.replace(**{name: value})
    assert dict(changed) == {**dict(m), name: value}
    with pytest.raises(MechanismError, match=name):
        m.replace(**{name: 'wrong'})


def test_negative_zero_is_zero():
    assert Mechanism(reserve_price=-0.0).to_json() == Mechanism(reserve_price=0.0).to_json()


# JSON and arrays

@given(mechanisms)
def test_json_round_trip_is_exact_and_canonical(m):
    text = m.to_json()
    assert Mechanism.from_text(text) == Mechanism.from_json(text) == m
    assert ' ' not in text and Mechanism.from_text(text).to_json() == text
    assert json.loads(text) == dict(m)


@given(mechanisms)
def test_array_round_trip_is_exact(m):
    row = m.to_array()
    assert row.shape == (11,) and row.dtype == np.float64
    assert Mechanism.from_array(row) == m
    for x, name in zip(row, FIELDS):
        assert x == (LEVERS[name].settings.index(getattr(m, name)) if name not in AMOUNTS else getattr(m, name))


@given(st.lists(mechanisms, max_size=4))
def test_mechanisms_to_array_stacks_rows(ms):
    rows = mechanisms_to_array(ms)
    assert rows.shape == (len(ms), 11) and rows.dtype == np.float64
    assert [Mechanism.from_array(row) for row in rows] == ms


@pytest.mark.parametrize('name', FIELDS)
@pytest.mark.parametrize('wrong', [-1.0, 0.5, 7.0, math.nan, math.inf])
def test_an_array_entry_outside_the_domain_is_refused_by_name(name, wrong):
    if name in AMOUNTS and wrong == 0.5:
        return
    row = DEFAULT_MECHANISM.to_array()
    row[FIELDS.index(name)] = wrong
    with pytest.raises(MechanismError, match=f'^{name} must be'):
        Mechanism.from_array(row)


@pytest.mark.parametrize('shape', [(), (10,), (12,), (1, 11)])
def test_an_array_of_another_shape_is_refused(shape):
    with pytest.raises(MechanismError, match=r'shape \(11,\)'):
        Mechanism.from_array(np.zeros(shape))


@given(mechanisms)
def test_json_schema_accepts_every_mechanism(m):
    jsonschema = pytest.importorskip('jsonschema')
    jsonschema.validate(json.loads(m.to_json()), Mechanism.model_json_schema())


@pytest.mark.parametrize('wrong', [{'reserve_price': 1}, {'shill_penalty': -1}, {'auction_type': 'dutch'}, {'fee': 1},
                                   {'reveal_reserve': 'yes'}])
def test_json_schema_refuses_what_the_mechanism_refuses(wrong):
    jsonschema = pytest.importorskip('jsonschema')
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, Mechanism.model_json_schema())
    refused(**wrong)


def test_json_schema_states_ranges_and_choices():
    schema = Mechanism.model_json_schema()
    assert schema['additionalProperties'] is False and tuple(schema['properties']) == FIELDS
    for name in FIELDS:
        spec = schema['properties'][name]
        if name in AMOUNTS:
            assert (spec['type'], spec['minimum'], spec['maximum']) == ('number', 0, LEVERS[name].top)
        elif name in CHOICES:
            assert tuple(spec['enum']) == LEVERS[name].settings
        else:
            assert spec['type'] == 'boolean'


# Random mechanisms

def test_random_is_uniform_over_the_domain_and_short():
    n, rng = 4000, np.random.default_rng(1)
    draws = [Mechanism.random(rng) for _ in range(n)]
    for name, lever in LEVERS.items():
        x = [getattr(m, name) for m in draws]
        if name in AMOUNTS:
            assert min(x) < 0.01 * lever.top and max(x) > 0.99 * lever.top and all(round(v, 2) == v for v in x)
            assert abs(np.mean(x) / lever.top - 1 / 2) < 4 * np.sqrt(1 / 12 / n)
        else:
            p = 1 / len(lever.settings)
            assert all(abs(x.count(choice) / n - p) < 4 * np.sqrt(p * (1 - p) / n) for choice in lever.settings)


def test_random_depends_on_the_generator_only():
    assert Mechanism.random(np.random.default_rng(5)) == Mechanism.random(np.random.default_rng(5)) == Mechanism.random(5)
    rng = np.random.default_rng(5)
    assert Mechanism.random(rng) != Mechanism.random(rng)


# Reading replies

@given(any_text | json_bits)
def test_no_text_crashes_the_reader(reply):
    try:
        assert isinstance(Mechanism.from_text(reply), Mechanism)
    except MechanismError as error:
        sentence = str(error)
        assert sentence.encode() and '\n' not in sentence


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | any_text,
                    lambda inner: st.lists(inner) | st.dictionaries(any_text | st.sampled_from(FIELDS), inner)))
def test_no_json_crashes_the_reader(value):
    try:
        Mechanism.from_text(json.dumps(value))
    except MechanismError as error:
        assert str(error).encode()


@given(mechanisms, any_text, any_text, st.sampled_from(['{}', '```json\n{}\n```', '```{}', '{{"mechanism": {}}}', '[{}]',
                                                       '{{"a": 1}} {}', '<think>{{hm}}</think>\n{}', '{{"a": {{"b": {}']),
       st.sampled_from([None, 1, 4]))
def test_a_mechanism_is_found_in_any_prose(m, before, after, frame, indent):
    text = json.dumps(json.loads(m.to_json()), indent=indent)
    assert Mechanism.from_text(before + '\n' + frame.replace('{}', text).replace('{{', '{').replace('}}', '}') + after) == m


@given(mechanisms, st.integers(1))
def test_a_truncated_mechanism_is_refused_and_the_break_located(m, cut):
    text = m.to_json()
    cut %= len(text)
    sentence = unread(text[:cut])
    named = [name for name in FIELDS if f'"{name}"' in text[:cut]]
    assert f'near {named[-1]}:' in sentence if named else 'JSON' in sentence


@given(mechanisms, mechanisms, st.integers(1))
def test_the_last_valid_object_counts(first, second, cut):
    a, b = first.to_json(), second.to_json()
    assert Mechanism.from_text(f'{a} or {b}') == Mechanism.from_text(f'[{a},\n{b}]') == second
    assert Mechanism.from_text(f'{a[:cut % len(a)]}\n{b}') == second
    for passed_over in (b[:cut % len(b)], '{"reserve_price": 5}', '{"fee": 1}', '{}', '{"reserve_price": 0.1, "fee": 1}'):
        assert Mechanism.from_text(f'{a}\n{passed_over}') == first


THINKING = [
    '<think>{}</think>', '<THINK>{}</THINK>', '<thinking>{}</thinking>', '<thought>{}</thought>', '<reasoning>{}</reasoning>',
    '<scratchpad>{}</scratchpad>', '<seed:think>{}</seed:think>', '<longcat_think>{}</longcat_think>', '[THINK]{}[/THINK]',
    '◁think▷{}◁/think▷', '<|START_THINKING|>{}<|END_THINKING|><|START_RESPONSE|>', '<|thinking_start|>{}<|thinking_end|>',
    '<|begin_of_thought|>{}<|end_of_thought|>\n<|begin_of_solution|>', '<|inner_prefix|>{}<|inner_suffix|>',
    '<|think|>{}<|end|><|begin|>assistant<|content|>', 'Thinking...\n{}\n...done thinking.\n', '```thinking\n{}\n```\n',
    '<|channel|>analysis<|message|>{}<|end|><|start|>assistant<|channel|>final<|message|>',
    '<|channel|>analysis<|message|>{}<|end|><|start|>assistant<|channel|>final <|constrain|>json<|message|>',
    'analysisWe {}assistantfinal', '<|channel>thought\n{}<channel|>',
    ' to=self<|message|>{}<|eot|><|start|>assistant to=user<|message|>']
quiet = st.text(st.characters(exclude_characters='{}"<>[]`◁▷', exclude_categories=['Cs']))


@given(mechanisms, mechanisms, quiet, quiet, st.sampled_from(THINKING))
def test_drafts_in_thinking_are_not_played(draft, answer, before, after, thinking):
    thought = thinking.replace('{}', f' {before} {draft.to_json()} {after} ')
    wanted = f'{before}\n{answer.to_json()}\n{after}'
    assert Mechanism.from_text(thought + wanted) == Mechanism.from_text(thought + thought + wanted) == answer
    closed = thought[thought.index(draft.to_json()):]          # the prompt had opened the block
    assert thinking.startswith('```') or Mechanism.from_text(closed + wanted) == answer
    sentence = unread(wanted + '\n' + thought) if not thinking.startswith('analysis') else unread(thought)
    assert sentence.startswith('the reply holds no JSON object')


@given(mechanisms, quiet, st.sampled_from(THINKING))
def test_a_reply_that_ends_while_thinking_is_no_answer(draft, after, thinking):
    opened = thinking[:thinking.index('{}')]
    reply = f'{opened}{draft.to_json()}\n{after}'
    assert unread(reply).startswith("the reply ends while it is still thinking: '") and unread(reply).endswith('not closed')
    if not opened.startswith('analysis'):
        assert unread(f'<think></think>\n{draft.to_json()}\n{reply}').startswith('the reply ends while it is still thinking')


@pytest.mark.parametrize('prose', ['Analysis: ', 'analysis of the market\n', 'I was thinking... ', 'My reasoning: ', '[Thinking] ',
                                   '<thinker> ', 'assistant final: ', 'a < b and b > think '])
def test_ordinary_words_are_not_thinking(prose):
    assert Mechanism.from_text(prose + CARD_SECTION_1 + prose) == INFORMED_GREEDY


@given(mechanisms, mechanisms, st.sampled_from(['{}\nlast_mechanism: {}', 'last_mechanism: {1}\nRespond with the JSON only.\n{0}',
                                                '{}\n**last_mechanism**: `{}`', '{{"mechanism": {}, "last_mechanism": {}}}']))
def test_the_prompts_own_mechanism_is_no_answer(answer, last, echo):
    assert Mechanism.from_text(echo.format(answer.to_json(), last.to_text())) == answer
    assert unread(f'last_mechanism: {last.to_text()}').startswith('the reply holds no JSON object')


def test_a_prompt_echoed_whole_is_no_answer():
    seen = Observation(round_number=1, episode_length=10, mechanism=INFORMED_GREEDY)
    assert Mechanism.from_text(f'{seen.prompt()}\n{{"auction_type": "vcg"}}').auction_type == 'vcg'
    assert unread(seen.prompt()).startswith('the reply holds no JSON object')


@given(mechanisms, st.sampled_from(['arguments', 'parameters', 'input']), st.booleans())
def test_tool_calls_are_opened(m, key, quoted):
    rules = m.to_json() if quoted and key == 'arguments' else json.loads(m.to_json())
    call = {'name': 'set_mechanism', key: rules}
    for shown in (call, [call], {'type': 'function', 'function': call}, {'tool_calls': [{'function': call}]}):
        assert Mechanism.from_text(f'<tool_call>\n{json.dumps(shown)}\n</tool_call>') == m


@pytest.mark.parametrize('text, sentence', [
    ('{"reserve_price": "0.2"}', "reserve_price must be a number from 0 to 0.9, not '0.2'"),
    ('{"reserve_price": NaN}', 'reserve_price must be a number from 0 to 0.9, not nan'),
    ('{"reserve_price": -Infinity}', 'reserve_price must be a number from 0 to 0.9, not -inf'),
    ('{"reserve_price": 1e999}', 'reserve_price must be a number from 0 to 0.9, not inf'),
    ('{"arguments": "{\\"reserve_price\\": 2}"}', 'reserve_price must be a number from 0 to 0.9, not 2'),
])
def test_nothing_is_repaired(text, sentence):
    assert unread(text) == sentence


def test_a_trailing_comma_is_not_repaired_either():
    try:
        json.loads('{"reserve_price": 0.2,}')
    except json.JSONDecodeError as error:   # each Python says in its own words what it expected
        reason = error.msg[0].lower() + error.msg[1:]
    assert unread('{"reserve_price": 0.2,}') == f'the JSON breaks off near reserve_price: {reason}'


def test_the_last_of_two_equal_names_counts():
    assert Mechanism.from_text('{"reserve_price": 0.1, "reserve_price": 0.2}') == Mechanism(reserve_price=0.2)


@given(mechanisms, st.sets(st.sampled_from(FIELDS), min_size=1))
def test_a_complete_mechanism_names_every_field(m, left_out):
    fields = json.loads(m.to_json())
    partial = {name: value for name, value in fields.items() if name not in left_out}
    assert Mechanism.from_text(m.to_json(), complete=True) == m
    assert Mechanism.from_text(f'{m.to_json()} because {{"reserve_price": 0.5}}', complete=True) == m
    if partial:
        assert Mechanism.from_text(json.dumps(partial)).model_fields_set == set(partial)
        with pytest.raises(MechanismError) as caught:
            Mechanism.from_text(json.dumps(partial), complete=True)
        lacking = ', '.join(name for name in FIELDS if name in left_out)
        assert str(caught.value) == f'the reply must name all 11 fields and lacks {lacking}'


@pytest.mark.parametrize('junk', ['{', '{"', '{"a":', '<', '<think', '<think>', '</think>', '```', '```thinking ', 'analysis',
                                  '<|channel|>final ', 'last_mechanism', 'last_mechanism: {', '{"reserve_price":0.1}',
                                  '{"arguments":"{'])
def test_a_million_characters_of_junk_are_read_in_seconds(junk):
    start = time.process_time()
    try:
        Mechanism.from_text(junk * (1_000_000 // len(junk)))
    except MechanismError as error:
        assert str(error)
    assert time.process_time() - start < 10   # quadratic reading takes minutes


@given(st.sampled_from(FIELDS), st.sampled_from([-1, 9, 'x', None, {}, [], math.nan, math.inf]), any_text)
def test_a_wrong_field_in_a_reply_is_named(name, wrong, prose):
    assert unread(prose + '\n' + json.dumps({name: wrong})).startswith(f'{name} must be ')


@pytest.mark.parametrize('reply', ['', 'no', '{}', '[]', 'null', '{"mechanism": {}}', '{"a": [{"b": 1}]}', '{reserve_price: 1}'])
def test_a_reply_without_any_field_says_so(reply):
    assert unread(reply).startswith('the reply holds no JSON object with a field of a mechanism (auction_type, ')


def test_a_partial_object_keeps_the_defaults():
    assert Mechanism.from_text('{"auction_type": "vcg"}') == DEFAULT_MECHANISM.replace(auction_type='vcg')


@pytest.mark.parametrize('reply, found', [
    ('{"note": "braces } in { strings \\" {", "rules": {"auction_type": "vcg"}}', {'auction_type': 'vcg'}),
    ('{"a {"auction_type": "vcg"}', {'auction_type': 'vcg'}),
    ('{"mechanism": {"auction_type": "vcg"}, "why": {"text": "because', {'auction_type': 'vcg'}),
    ('{"é": "😀"} {"reserve_price": 1e-1, "shill_penalty": 2}', {'shill_penalty': 2.0}),
    ('{"options": [{"reserve_price": 3}, {"reserve_price": 0}]}', {'reserve_price': 0.0}),
])
def test_nesting_strings_and_truncation(reply, found):
    assert Mechanism.from_text(reply) == Mechanism(**found)


def test_a_foreign_object_inside_a_mechanism_is_not_taken_for_one():
    assert unread('{"auction_type": "vcg", "fee": {"reserve_price": 0.5}}').startswith("'fee' is not a field")
    assert unread('{"reserve_price": {"reserve_price": 0.5}}').startswith('reserve_price must be')


def test_the_error_is_about_the_object_that_names_most_fields():
    full = json.loads(CARD_SECTION_1)
    assert unread('{"reserve_price": 7} ' + json.dumps({**full, 'shill_penalty': 8})).startswith('shill_penalty')
    assert unread('{"reserve_price": 7} {"shill_penalty": 8}').startswith('reserve_price')


@pytest.mark.parametrize('wrong', [None, 3, b'{}', ['{}'], INFORMED_GREEDY])
def test_a_reply_must_be_text(wrong):
    with pytest.raises(MechanismError, match='a reply must be text'):
        Mechanism.from_text(wrong)


@pytest.mark.parametrize('junk', ['{', '{"', '{"a":', '{"":', '{"a":[', '[', '"', '{"a":{},"b":', '{"a":!', '{"\\"', '{ ', '\\',
                                  '{"auction_type":', '{"reserve_price":9}', '{"a":' + '[' * 2000, '{"a":1,'])
def test_a_mechanism_is_found_behind_a_long_run_of_junk(junk):
    assert Mechanism.from_text(junk * (100_000 // len(junk)) + '\n' + CARD_SECTION_1) == INFORMED_GREEDY


@pytest.mark.parametrize('junk', ['{', '{"', '{"a":', '{"":', '{"a":[', '{"a":{},"b":', '{"a":!', '{"reserve_price":9}'])
def test_reading_work_grows_with_the_length_of_the_reply(junk, monkeypatch):
    from daedalus import schema
    decode, reads = schema._decode, []
    monkeypatch.setattr(schema, '_decode', lambda window: reads.append(decode(window)) or reads[-1])

    def work(length):
        reads.clear()
        with pytest.raises(MechanismError):
            Mechanism.from_text(junk * (length // len(junk)))
        return sum(length for _, length, _ in reads)

    assert work(400_000) <= 11 * max(work(40_000), 1) and work(400_000) < 3 * 400_000


# Text for language models

def test_text_for_language_models_has_two_decimals():
    assert INFORMED_GREEDY.to_text() == (
        '{"auction_type":"second_price","reserve_price":0.18,"reveal_reserve":false,"reveal_competing_bids":false,'
        '"reveal_winner_identity":true,"reveal_clearing_price":true,"reveal_bid_distribution":false,'
        '"shill_penalty":1.20,"withdrawal_penalty":0.60,"collusion_penalty":1.90,'
        '"coalition_policy":"penalize_suspected"}')


@given(st.integers(0, 2**32))
def test_amounts_of_two_decimals_survive_the_text(seed):
    m = Mechanism.random(seed)
    assert Mechanism.from_text(m.to_text()) == m


@given(mechanisms)
def test_other_amounts_are_rounded_and_stay_in_their_range(m):
    again = Mechanism.from_text(m.to_text())
    assert again.to_text() == m.to_text() and np.abs(again.to_array() - m.to_array()).max() <= 0.005 + 1e-12


# Outcomes and observations

@given(observations)
def test_observation_json_round_trip_is_exact(obs):
    assert Observation.from_json(obs.to_json()) == obs


@given(observations)
def test_published_drops_signals_and_mechanism_only(obs):
    seen = obs.published()
    assert seen.signals is None and seen.mechanism is None
    assert seen.replace(signals=obs.signals, mechanism=obs.mechanism) == obs


@given(observations)
def test_prompt_hides_reward_and_shows_every_score_in_two_decimals(obs):
    prompt = obs.prompt()
    assert prompt == obs.replace(reward=None, done=False).prompt()
    lines = prompt.split('\n')
    assert lines[0] == f'round_number: {obs.round_number} / {obs.episode_length}'
    assert lines[1].count('welfare:') == len(obs.market_outcomes) and lines[-1] == 'Respond with the JSON only.'
    assert len(lines) == 3 + len(obs.signals or {}) + (obs.mechanism is not None)
    assert obs.mechanism is None or lines[-2] == f'last_mechanism: {obs.mechanism.to_text()}'
    assert '-0.00' not in prompt


def test_prompt_of_the_published_example():
    obs = Observation(round_number=3, episode_length=10,
                      market_outcomes=[{'welfare': 0.7, 'fairness': 0.4, 'participation': 1.0}])
    assert obs.prompt() == ('round_number: 3 / 10\n'
                            'recent_outcomes: [{welfare:0.70, fairness:0.40, participation:1.00}]\n'
                            'Respond with the JSON only.')


def test_a_hidden_horizon_shows_the_steps_played_alone():
    shown = Observation(round_number=3, episode_length=10, signals={'bidders': 8.0})
    hidden = shown.replace(episode_length=None)
    assert hidden.prompt() == shown.prompt().replace('round_number: 3 / 10', 'round_number: 3')
    assert Observation.from_json(hidden.to_json()) == hidden and hidden != shown
    assert [obs.progress for obs in (shown, hidden, hidden.replace(round_number=9))] == [0.3, 0.5, 0.5]


@pytest.mark.parametrize('wrong, sentence', [
    ({'round_number': -1}, 'round_number must be a whole number of at least 0, not -1'),
    ({'round_number': 1.0}, 'round_number must be a whole number of at least 0, not 1.0'),
    ({'episode_length': 0}, 'episode_length must be a whole number of at least 1, not 0'),
    ({'done': 1}, 'done must be true or false, not 1'),
    ({'mechanism': {'reserve_price': 2}}, 'mechanism: reserve_price must be a number from 0 to 0.9, not 2'),
    ({'market_outcomes': [{'welfare': 2, 'fairness': 0, 'participation': 0}]},
     'market_outcomes.0: welfare must be a number from 0 to 1, not 2'),
])
def test_a_wrong_observation_is_refused_in_one_sentence(wrong, sentence):
    with pytest.raises(ValueError) as caught:
        Observation(**{'round_number': 0, 'episode_length': 10, **wrong})
    assert str(caught.value) == sentence


@pytest.mark.parametrize('signals', [{'two words': 1.0}, {'line\nbreak': 1.0}, {'': 1.0}, {'x': math.nan}, {'x': True}, {'x': '1'}])
def test_signals_are_finite_numbers_under_plain_names(signals):
    with pytest.raises(ValueError, match='signals'):
        Observation(round_number=0, episode_length=1, signals=signals)


def test_a_missing_field_is_named():
    with pytest.raises(ValueError, match='^episode_length is missing$'):
        Observation(round_number=0)


@pytest.mark.parametrize('text', ['', '{', '[]', 'null', '{"round_number": 0, "episode_length": 1, "reward": NaN}'])
def test_a_wrong_json_text_is_refused(text):
    with pytest.raises(ValueError):
        Observation.from_json(text)


@pytest.mark.parametrize('name', ['welfare', 'fairness', 'participation', 'stability', 'reward'])
@pytest.mark.parametrize('wrong', [-0.1, 1.1, math.nan, math.inf, None, True])
def test_scores_lie_between_zero_and_one(name, wrong):
    fields = dict(welfare=1.0, fairness=1.0, participation=1.0, stability=1.0, reward=1.0, revenue=0.5)
    assert Outcome.from_json(Outcome(**fields).to_json()) == Outcome(**fields)
    with pytest.raises(ValueError, match=f'^{name} must be a number from 0 to 1, not '):
        Outcome(**{**fields, name: wrong})


@pytest.mark.parametrize("wrong", ["sarsa", ["a"], {}, None, 0], ids=repr)
def test_a_name_is_one_of_those_that_are_known(wrong):
    """What cannot be a key is refused like any other."""
    assert one_of("a", "rule", {"a": 1, "b": 2}) == "a"
    with pytest.raises(ValueError, match=re.escape(f"rule must be one of a, b, not {wrong!r}")):
        one_of(wrong, "rule", {"a": 1, "b": 2})
