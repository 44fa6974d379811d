"""What bidders' values are: the numbers of a population that the market reads, by name."""

import re

from daedalus import _runtime
from daedalus.market.bidders import LEARNING_RULES, TRAIT, TRAITS, Population
from daedalus.market.engine import new_market

OTHER = Population(truthful=3, shader=2, n_items=2, value_low=0.1, value_high=0.9, second_unit=0.4, return_rate=0.05)


def test_the_market_reads_the_numbers_of_a_population_by_name():
    traits = new_market([OTHER, Population.stage(4)], 0).traits
    for row, population in zip(traits, (OTHER, Population.stage(4)), strict=True):
        expected = {name: getattr(population, name) for name in TRAITS} | {"learning": LEARNING_RULES.index(population.learning)}
        assert {name: row[at] for name, at in TRAIT._asdict().items()} == expected


def test_nothing_reads_a_trait_by_its_place():
    """An index with a number in it names a row, and the trait by TRAIT."""
    found = [index for path in _runtime.PACKAGE.rglob("*.py") for index in re.findall(r"traits(\[[^\]]*\d[^\]]*\])", path.read_text())]
    assert found and all("TRAIT." in index for index in found)
