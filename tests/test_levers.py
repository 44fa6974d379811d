"""One object per lever says how it is written and read; every place that writes levers asks it."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from typing import Annotated

import numpy as np
import pytest
from pydantic import Field, create_model

from daedalus import env
from daedalus.designers import language, search
from daedalus.serving import adapters
from daedalus.studies import pareto
from daedalus.market.bidders import Population
from daedalus.designers.base import READINGS, readings
from daedalus.studies.evaluate import _settings
from daedalus.paths import CHECKOUT
from daedalus._runtime import sources_hash
from daedalus.schema import (
    LEVERS, Mechanism, MechanismError, MechanismFields, Observation, _lever, amount, mechanisms_to_array, whole)

RNG = np.random.default_rng(7)
MECHANISMS = [Mechanism.random(RNG) for _ in range(200)]
VECTORS = np.random.default_rng(8).uniform(-1, 1, (99, 11))


def read(mechanism):
    return readings(Observation(round_number=1, episode_length=2, mechanism=mechanism), READINGS[-20:])


def told(function):
    """What optuna is asked for, and what comes of it, by a sampler with a seed."""
    optuna = pytest.importorskip("optuna")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=3))
    trials = [study.ask() for _ in range(5)]
    return [function(trial) for trial in trials], [trial.distributions for trial in trials[:1]]


def tool():
    utils = pytest.importorskip("transformers.utils", reason="needs the train extra")
    schema = utils.get_json_schema(adapters.MarketTool().post_mechanism)
    return json.dumps(schema["function"]["parameters"]["properties"])


def actions():
    pytest.importorskip("gymnasium")
    made = env.gym_env(Population.stage(0)).action_space
    made.seed(5)
    seen, _ = adapters._bidder_spaces(3)
    return [sorted((name, float(x)) for name, x in made.sample().items()) for _ in range(20)], str(made), str(seen)


def settings():
    return [_settings(mechanism) for mechanism in MECHANISMS[:20]]


FORMS = {
    "random": lambda: [each.to_json() for each in MECHANISMS],
    "row": lambda: mechanisms_to_array(MECHANISMS).tobytes(),
    "text": lambda: [each.to_text() for each in MECHANISMS],
    "vector": lambda: [adapters.vector_of_mechanism(each).tobytes() for each in MECHANISMS],
    "of a vector": lambda: [adapters.mechanism_of_vector(x).to_json() for x in VECTORS],
    "readings": lambda: (READINGS, [read(each).tobytes() for each in MECHANISMS]),
    "neighbours": lambda: [search.mutate(m, np.random.default_rng(i)).to_json() for i, m in enumerate(MECHANISMS)],
    "optuna": lambda: [m.to_json() for m in told(search._suggest)[0]],
    "distributions": lambda: str(told(search._suggest)[1]),
    "combinations": lambda: [sorted(each.items()) for each in pareto.combinations()],
    "amounts": lambda: (pareto.AMOUNTS, pareto.CHOICES, pareto._amounts(np.array([-0.1, 0.123, 0.5, 1.2]))),
    "actions": actions,
    "grammar": lambda: language.REPLY_PATTERN,
    "longest": lambda: language.LONGEST_REPLY,
    "corpus": lambda: [text for text in language._corpus() if not text.startswith("brief: ")],
    "table": settings,
    "page": lambda: [[LEVERS[name].words(value) for name, value in each] for each in MECHANISMS],
    "tool": tool,
}


# What the forms of these mechanisms were when each place had an encoder of its own (no prompt held a brief then).
DIGESTS = {
    "random": "d4234b307aa79db7",
    "row": "13fa8249b5f6bccf",
    "text": "a6ab207d24d8f23b",
    "vector": "a2ab800444c9ca34",
    "of a vector": "f145070d192ef54f",
    "readings": "962a3d3838f29a4a",
    "neighbours": "6730dc51bd29e4fb",
    "optuna": "e6dc6a762f026da2",
    "distributions": "477fe8c8eb1c6a78",
    "combinations": "5590d45d7edb757c",
    "amounts": "66346f63aa4a7206",
    "actions": "2a5ba43a80722141",
    "grammar": "cc422ac787a98a13",
    "longest": "b0fdb97999a26d4b",
    "corpus": "ace8d376aad1a44f",
    "table": "bd162ef3a3b7ffaf",
    "page": "b4f89535c9725f58",
    "tool": "6695ea339a970ac0",
}


@pytest.mark.parametrize("form", FORMS)
def test_a_form_of_the_levers_is_what_it_was(form):
    value = FORMS[form]()
    found = hashlib.sha256(value if isinstance(value, bytes) else repr(value).encode()).hexdigest()[:16]
    assert found == DIGESTS[form]


@pytest.mark.parametrize("name", LEVERS)
def test_what_a_lever_writes_it_reads(name):
    lever = LEVERS[name]
    for value in lever.settings:
        assert lever.value(float(lever.entry(value))) == value and json.loads(lever.text(value)) == value
        assert 0 <= lever.share(value) <= 1 and lever.at(lever.share(value)) == pytest.approx(value)
        assert all(0 <= x <= 1 for x in lever.readings(value).values())
        assert lever.entry(value) <= lever.top and len(lever.text(value)) <= len(lever.text(lever.longest))
    for wrong in (-1, 0.5, len(lever.settings)):
        if not lever.step:
            with pytest.raises(MechanismError, match=f"{name} must be a whole number from 0 to {lever.top}"):
                lever.value(wrong)


# A lever of each kind, added as the recipe says: one field, and nothing else.
LAST = "    coalition_policy: CoalitionPolicy = Field('allow', description='what is done about rings')\n"
ADDED = """
    entry_fee: Share = Field(0.0, description='what taking part in a session costs a bidder')
    rounds_shown: Annotated[int, whole(2, 12)] = Field(3, description='rounds that bidders are told of')
    tie_rule: Literal['random', 'oldest', 'smallest_bidder'] = Field('random', description='who wins among equals')
    sealed: Switch = Field(True, description='bids are sealed')
"""
NEW = {"entry_fee": 0.25, "rounds_shown": 12, "tie_rule": "smallest_bidder", "sealed": False}
PLACES = """
import inspect, json, re
from types import SimpleNamespace
import numpy as np, optuna
import daedalus as dd
from daedalus import env
from daedalus.designers import language, search
from daedalus.market import bidders
from daedalus.serving import adapters, arena, openenv
from daedalus.studies import pareto
from daedalus.designers.base import READINGS, _levers
from daedalus.studies.evaluate import _settings
from daedalus.schema import MechanismError

NEW = json.loads(NEW_LEVERS)
m, rng = dd.INFORMED_GREEDY.replace(**NEW), np.random.default_rng(0)
own = lambda mechanism: {name: getattr(mechanism, name) for name in NEW}
draws = [dd.Mechanism.random(rng) for _ in range(400)]
mutants = [search.mutate(m, rng) for _ in range(400)]
seen = dd.Observation(round_number=1, episode_length=2, mechanism=m)
rules = bidders.read_rules(m.to_array())
made = env.gym_env(dd.Population.stage(0), 2)
samples = [made.action_space.sample() for _ in range(200)]
trial = optuna.create_study().ask()
search._suggest(trial)
gr = SimpleNamespace(**{kind: lambda *a, kind=kind, **k: kind for kind in ("Slider", "Checkbox", "Dropdown")})
tool = adapters.MarketTool()
tool.reset(dd.Population.stage(0).to_json(), 0, 0, 2)
try:
    refused = str(dd.Mechanism(rounds_shown=13))
except MechanismError as error:
    refused = str(error)

print(json.dumps({
    "reply": own(dd.Mechanism.from_text(m.to_text())) == NEW and '"entry_fee":0.25,"rounds_shown":12,' in m.to_text(),
    "prompt": m.to_text() in seen.prompt(),
    "refusal": refused == "rounds_shown must be a whole number from 2 to 12, not 13",
    "array": dd.Mechanism.from_array(m.to_array()) == m and m.to_array()[-4:].tolist() == [0.25, 12, 2, 0],
    "random draws": all(len({getattr(each, name) for each in draws}) == n
                        for name, n in {"rounds_shown": 11, "tie_rule": 3, "sealed": 2}.items()),
    "compiled rules": (rules.entry_fee, rules.rounds_shown, rules.tie_rule, rules.sealed) == (0.25, 12, 2, 0),
    "market": dd.simulate(m, dd.Population.stage(4), 0, 1).reward.shape == (1, 1),
    "vector": adapters.mechanism_of_vector(adapters.vector_of_mechanism(m)).to_text() == m.to_text(),
    "action space": all(len({getattr(env.mechanism_of_action(sample), name) for sample in samples}) > 1 for name in NEW),
    "bidders' rules": bool(adapters._bidder_spaces(2)[0]["rules"].contains(m.to_array())),
    "readings": _levers(m).keys() <= set(READINGS) and _levers(m).items() >= {
        "entry_fee": 0.25, "rounds_shown": 1.0, "tie_rule=smallest_bidder": 1.0, "sealed=False": 1.0}.items(),
    "neighbours": all({getattr(each, name) for each in mutants} != {getattr(m, name)} for name in NEW),
    "optuna": set(trial.params) >= set(NEW) and isinstance(trial.params["rounds_shown"], int),
    "front": "entry_fee" in pareto.AMOUNTS and set(NEW) - {"entry_fee"} <= set(pareto.CHOICES),
    "grammar": bool(re.fullmatch(language.REPLY_PATTERN, m.to_text())) and not re.fullmatch(
        language.REPLY_PATTERN, m.to_text().replace('"rounds_shown":12', '"rounds_shown":13')),
    "longest reply": '"rounds_shown":10,"tie_rule":"smallest_bidder"' in language.LONGEST_REPLY,
    "tokenizer's corpus": any('"rounds_shown":12' in text for text in language._corpus()),
    "table": _settings(m).items() >= {"entry_fee": 0.25, "rounds_shown": 12, "sealed": 0,
                                      "tie_rule: smallest_bidder": 1}.items(),
    "page": [arena._lever_control(gr, name) for name in NEW] == ["Slider", "Slider", "Dropdown", "Checkbox"],
    "tool": inspect.signature(adapters.MarketTool.post_mechanism).parameters.keys() >= NEW.keys()
            and "rounds_shown: Rounds that bidders are told of, 2 to 12." in adapters.MarketTool.post_mechanism.__doc__,
    "tool's call": "round_number: 1 / 2" in tool.post_mechanism(**NEW),
    "OpenEnv": openenv.mechanism_of(openenv.DaedalusAction(**dict(m))) == m,
}))
"""


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Which places know the levers of each kind that were added to a copy of the package, its engine interpreted."""
    folder = tmp_path_factory.mktemp("levers")
    shutil.copytree(CHECKOUT / "daedalus", folder / "daedalus", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(CHECKOUT / "data", folder / "data", ignore=shutil.ignore_patterns("designer"))
    schema = folder / "daedalus" / "schema.py"
    text = schema.read_text(encoding="utf-8")
    assert text.count(LAST) == 1
    schema.write_text(text.replace(LAST, LAST + ADDED.strip("\n") + "\n"), encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(folder), "NUMBA_DISABLE_JIT": "1", "MPLBACKEND": "agg"}
    done = subprocess.run([sys.executable, "-c", PLACES.replace("NEW_LEVERS", repr(json.dumps(NEW)))], cwd=folder,
                          env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("place", [line.split('"')[1] for line in PLACES.splitlines() if line.startswith('    "')])
def test_a_lever_that_is_added_reaches(place, places):
    assert places[place]


def test_a_lever_that_is_added_is_no_part_of_kept_machine_code(tmp_path):
    package = shutil.copytree(CHECKOUT / "daedalus", tmp_path / "daedalus", ignore=shutil.ignore_patterns("__pycache__"))
    before, schema = sources_hash(package), package / "schema.py"
    schema.write_text(schema.read_text(encoding="utf-8").replace(LAST, LAST + ADDED), encoding="utf-8")
    assert sources_hash(package) != before


@pytest.mark.parametrize("field, sentence", [
    (Annotated[int, whole(2)], "added must have a range: whole(low, high) or amount(high)"),
    (Annotated[float, amount(0.905)], "added must be from 0 to a number of two decimals, not 0 to 0.905"),
])
def test_a_field_without_a_lever_is_refused(field, sentence):
    more = create_model("More", __base__=MechanismFields, added=(field, Field(0, description="more")))
    with pytest.raises(TypeError) as error:
        _lever("added", more.model_json_schema()["properties"]["added"])
    assert str(error.value) == sentence
