"Settings and a fixture for every test."
from contextlib import contextmanager

import pytest
from hypothesis import settings

from daedalus import market

settings.register_profile("untimed", deadline=None)   # the first call of a compiled function takes seconds
settings.load_profile("untimed")


@contextmanager
def _counted_rounds():
    "A list that gets the rounds of every call of the engine."
    spent, play = [], market.play

    def counted(state, rows, behaviour, scratch, out):
        spent.append(out.shape[0] * out.shape[1])
        return play(state, rows, behaviour, scratch, out)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(market, "play", counted)
        yield spent


@pytest.fixture(scope="session")
def counted_rounds():
    "`with counted_rounds() as spent` counts what is simulated within."
    return _counted_rounds
