"""DAEDALUS: train and judge designers of auction markets among adaptive, adversarial bidders."""

import os
import re
from importlib.metadata import version
from pathlib import Path

# One place: settings.ini in a checkout, also one that is not installed; elsewhere what was installed from it.
_settings = Path(__file__).parents[1] / "settings.ini"
_told = re.search(r"^lib_name = daedalus\nversion = (.+)$", _settings.read_text("utf-8"), re.M) if _settings.is_file() else None
__version__ = _told[1] if _told else version("daedalus-mechanisms")

from ._runtime import wide_registers

# PyTorch reads this when it first computes: with its code for AVX2, which is as fast for models as small as ours, a
# training is the same to the bit on both kinds of processor. What the user chose stays.
if wide_registers():
    os.environ.setdefault("ATEN_CPU_CAPABILITY", "avx2")

from .market.auction import register_format
from .market.bidders import BEHAVIOUR, HELD_OUT_RULES, LEARNING_RULES, Behaviour, Population, PopulationError
from .designers.base import DESIGNERS, FixedDesigner, RandomDesigner, check_designer, play
from .env import DaedalusEnv, suite
from .market.money import Trade
from .studies.advice import Advice, Enquiry, recommend
from .studies.calibration import ensemble
from .studies.evaluate import evaluate, paired, summary, yardsticks
from .market.engine import MarketState, Outcomes, simulate
from .market.register import check_bidder, register_bidder
from .schema import (
    DEFAULT_MECHANISM,
    INFORMED_GREEDY,
    Brief,
    Mechanism,
    MechanismError,
    Objective,
    Observation,
    Outcome,
)
from .designers.endpoint import EndpointDesigner
from .designers.models import find_model
from .designers.search import best_fixed, oracle
from .designers.specs import designer

__all__ = [
    "Advice", "BEHAVIOUR", "BEST_FIXED", "Behaviour", "Brief", "DEFAULT_MECHANISM", "DESIGNERS", "DaedalusEnv",
    "EndpointDesigner", "Enquiry", "FixedDesigner", "HELD_OUT_RULES", "INFORMED_GREEDY", "LEARNING_RULES", "LanguageDesigner", "MarketState",
    "Mechanism", "MechanismError", "Objective", "Observation", "Outcome", "Outcomes", "Population",
    "PopulationError", "RandomDesigner", "Trade", "best_fixed", "check_bidder", "check_designer", "designer", "ensemble",
    "evaluate", "find_model", "oracle", "paired", "play", "recommend", "register_bidder", "register_format", "simulate", "suite",
    "summary", "yardsticks",
]


def __getattr__(name: str) -> object:
    """What is made when it is first asked for: `BEST_FIXED` from the results, `LanguageDesigner` from its module."""
    if name == "BEST_FIXED":
        return best_fixed()
    if name == "LanguageDesigner":
        from .designers.language import LanguageDesigner

        return LanguageDesigner
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
