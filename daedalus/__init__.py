"""DAEDALUS: train and judge designers of auction markets among adaptive, adversarial bidders."""

import hashlib
import os
import sys
import tempfile
from pathlib import Path

import numpy as np

__version__ = "0.1.0"


def _compiled_code_folder() -> Path:
    """Folder of the compiled market engine, named after the sources that mention compiled code.

    Numba keeps machine code on disk and recompiles a function when its own file changes, but not when a function
    it calls in another file does. With a folder for each version of the sources, no edit ever meets stale code.
    """
    modules = ((path.name.encode(), path.read_bytes()) for path in sorted(Path(__file__).parent.glob("*.py")))
    sources = b"".join(name + text for name, text in modules if b"compiled" in text and name != b"_modidx.py")
    caches = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    existing = next(folder for folder in (caches, *caches.parents) if folder.exists())
    if not caches.is_absolute() or not os.access(existing, os.W_OK):
        caches = Path(tempfile.gettempdir(), f"user-{os.getuid()}")
    return caches / "daedalus" / hashlib.sha256(sources).hexdigest()[:16]


# A folder that the user chose stays. One that a parent process of ours chose may be of an older version.
_folder, _chosen = _compiled_code_folder(), os.environ.get("NUMBA_CACHE_DIR")
if not _chosen or Path(_chosen).parent == _folder.parent:
    os.environ["NUMBA_CACHE_DIR"] = str(_folder)
    if "numba" in sys.modules:
        sys.modules["numba"].config.CACHE_DIR = str(_folder)


def wide_registers() -> list[str]:
    """The vector instructions of this processor beyond AVX2, as NumPy calls them: code that uses them rounds differently."""
    found = np.show_config(mode="dicts")["SIMD Extensions"].get("found", ())
    return [name for name in found if name == "X86_V4" or name.startswith("AVX512")]


# PyTorch reads this when it first computes: with its code for AVX2, which is as fast for models as small as ours, a
# training is the same to the bit on both kinds of processor. What the user chose stays.
if wide_registers():
    os.environ.setdefault("ATEN_CPU_CAPABILITY", "avx2")

from .bidders import BEHAVIOUR, Behaviour, Population, PopulationError  # noqa: E402
from .designers import DESIGNERS, FixedDesigner, RandomDesigner, play  # noqa: E402
from .env import DaedalusEnv, suite  # noqa: E402
from .evaluate import evaluate, paired, summary, yardsticks  # noqa: E402
from .market import MarketState, Outcomes, simulate  # noqa: E402
from .schema import (  # noqa: E402
    DEFAULT_MECHANISM,
    INFORMED_GREEDY,
    Mechanism,
    MechanismError,
    Observation,
    Outcome,
)
from .search import best_fixed, oracle  # noqa: E402

__all__ = [
    "BEHAVIOUR", "BEST_FIXED", "Behaviour", "DEFAULT_MECHANISM", "DESIGNERS", "DaedalusEnv", "FixedDesigner",
    "INFORMED_GREEDY", "LanguageDesigner", "MarketState", "Mechanism", "MechanismError", "Observation", "Outcome",
    "Outcomes", "Population", "PopulationError", "RandomDesigner", "best_fixed", "evaluate", "oracle", "paired", "play",
    "simulate", "suite", "summary", "yardsticks",
]


def __getattr__(name: str) -> object:
    """What is made when it is first asked for: `BEST_FIXED` from the results, `LanguageDesigner` from its module."""
    if name == "BEST_FIXED":
        return best_fixed()
    if name == "LanguageDesigner":
        from .language import LanguageDesigner

        return LanguageDesigner
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
