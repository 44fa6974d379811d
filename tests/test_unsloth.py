"""Calls of Unsloth against its real signatures: as recorded anywhere, as they are where Unsloth is installed.

Only a machine with Unsloth compares the record with the package: `constraints-unsloth.txt` says how to get one.
"""

import importlib.util
import inspect
import re
from configparser import ConfigParser
from pathlib import Path

import pytest

from shared import UNSLOTH, recorded_loader

CHECKOUT = Path(__file__).resolve().parent.parent
PINS = dict(line.split("==") for line in (CHECKOUT / "constraints-unsloth.txt").read_text().splitlines() if "==" in line)
SETTINGS = ConfigParser(delimiters=["="])
SETTINGS.read(CHECKOUT / "settings.ini", encoding="utf-8")


def canonical(name):
    """A package's name as pip compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.skipif(not importlib.util.find_spec("unsloth"), reason="Unsloth is not installed: constraints-unsloth.txt says how")
def test_the_record_is_what_unsloth_takes():
    import unsloth

    stars = {inspect.Parameter.VAR_KEYWORD: "**", inspect.Parameter.VAR_POSITIONAL: "*"}
    for name, recorded in UNSLOTH["FastLanguageModel"].items():
        parameters = inspect.signature(getattr(unsloth.FastLanguageModel, name)).parameters
        assert [stars.get(part.kind, "") + name for name, part in parameters.items()] == recorded
    assert unsloth.__version__ == UNSLOTH["unsloth"] == PINS["unsloth"]


def test_the_record_is_of_the_version_that_is_installed_for_it():
    assert UNSLOTH["unsloth"] == PINS["unsloth"]
    wanted = dict(word.split("==") for word in SETTINGS["extras"]["unsloth"].split() if "==" in word)
    pins = {canonical(name): version for name, version in PINS.items()}
    assert {canonical(name): version for name, version in wanted.items()}.items() <= pins.items() and "unsloth" in wanted


def test_its_environment_has_all_that_training_has():
    names = {extra: {canonical(word.split("==")[0]) for word in SETTINGS["extras"][extra].split()} for extra in ("train", "unsloth")}
    core = {canonical(word) for word in SETTINGS["DEFAULT"]["requirements"].split()}
    assert names["train"] <= names["unsloth"]
    assert core | names["unsloth"] <= {canonical(name) for name in PINS}


def test_a_call_that_unsloth_does_not_know_is_refused_by_the_stub():
    loader = recorded_loader()
    with pytest.raises(TypeError, match="from_pretrained has no parameter rank"):
        loader.from_pretrained(model_name="x", rank=4)
    with pytest.raises(TypeError):
        loader.get_peft_model()
    assert loader.calls == []
