"""The table of random numbers: no two uses share any unless the table says why, and no number is allocated elsewhere."""

import ast
import json
import re
from itertools import combinations

import numpy as np
import pytest

from daedalus import seeds
from daedalus.pipeline.reproduce import notebooks
from daedalus.results import module_files
from daedalus.seeds import BLOCK, BLOCKS, EPISODES, GENERATORS, block_keys, block_of, episode_of, generator_of, part_seed

RUNS = [(path.stem, "".join(cell["source"])) for path in notebooks()
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
OUTSIDE = [(name, path.read_text(encoding="utf-8")) for name, path in module_files().items() if name != "seeds"] + [
    (name, source) for name, source in RUNS if name != "05_seeds"]


@pytest.mark.parametrize("table", [BLOCKS, EPISODES], ids=["blocks", "episodes"])
def test_no_two_uses_share_numbers_unless_the_table_says_why(table):
    for (one, a), (other, b) in combinations(table.items(), 2):
        if one != "evaluation" and max(a.first, b.first) < min(a.first + a.size, b.first + b.size):
            assert a.shared or b.shared, f"{one} and {other} share numbers"
            assert len((a.shared or b.shared).split()) > 8
    assert all(a.size > 0 and a.first >= 0 for a in table.values())
    assert not [use for use, a in table.items() if a.shared and not any(
        max(a.first, b.first) < min(a.first + a.size, b.first + b.size) for other, b in table.items() if other != use)]


def test_episodes_stay_in_block_0_and_blocks_below_the_last_seed():
    assert max(a.first + a.size for a in EPISODES.values()) <= BLOCK
    assert max(a.first + a.size for a in BLOCKS.values()) * BLOCK <= 2**64


def test_every_use_has_users_and_every_user_exists():
    known = {path.stem for path in notebooks()}
    texts = [a.users for a in (*BLOCKS.values(), *EPISODES.values())] + [users for _, users in GENERATORS.values()]
    assert {name for text in texts if text != "everything that is reported" for name in text.split(", ")} <= known


@pytest.mark.parametrize("use", [*BLOCKS, *EPISODES, *GENERATORS])
def test_every_use_is_used(use):
    if use != "evaluation":
        assert any(f'"{use}"' in source for _, source in OUTSIDE), use


def allocations(source):
    """Numbers in code that decide which random numbers are drawn: blocks, far episodes, and seeds of several words."""
    code = re.sub(r"^(#\|| *[%!]).*$", "", source, flags=re.M)
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Constant) and isinstance(node.value, int) and node.value % 10_000 == 1 and node.value > 10_000:
            yield str(node.value)
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("default_rng", "SeedSequence")) and node.args:
            words = node.args[0].elts[1:] if isinstance(node.args[0], ast.List) else []
            yield from (ast.unparse(node) for word in words if isinstance(word, ast.Constant))
        if isinstance(node, ast.Tuple) and node.elts and ast.unparse(node.elts[0]) == "seed" and "_of(" not in ast.unparse(node):
            numbers = [part.value for part in ast.walk(node) if isinstance(part, ast.Constant) and isinstance(part.value, int)]
            yield from (ast.unparse(node) for number in numbers if number >= 1000)
        if isinstance(node, ast.BinOp) and re.search(r"\d\*? \* \(?(self\.)?seed\b|\d+ \* BLOCK\b|\d \* 2 ?\*\* ?32", ast.unparse(node)):
            yield ast.unparse(node)


@pytest.mark.parametrize("source, seen", [
    ("FIRST = 500_001", 1), ("keys = [(seed, episode_of(use, 10_000 * at))]", 0), ("keys = [(seed, 240_000 + at)]", 1), ("lots = 500_000", 0),
    ("rng = np.random.default_rng([seed, 3])", 1), ("rng = np.random.default_rng([seed, block])", 0),
    ("rng = np.random.default_rng(seed)", 0), ("at = 34 * BLOCK", 1), ("of = 1000 * (seed + 1) + number", 1)])
def test_an_allocation_is_seen(source, seen):
    assert bool(list(allocations(source))) == bool(seen)


PLAIN = {"70_theory": "the grid of a best response has 10,001 points"}   # numbers of another kind


@pytest.mark.parametrize("name", sorted({name for name, _ in OUTSIDE}))
def test_nobody_allocates_random_numbers_outside_of_the_table(name):
    found = [number for where, source in OUTSIDE if where == name for number in allocations(source)]
    assert name in PLAIN or not found, found


def test_a_place_that_is_not_the_uses_own_is_refused():
    assert block_of("practice", 9999) == 810_000 and episode_of("validation", 3) == 10**9 + 3
    with pytest.raises(ValueError, match="'practice' has 10,000 numbers, and 10,000 is not among 0 to 9,999"):
        block_of("practice", 10_000)
    for ask in (block_of, episode_of, lambda use: generator_of(use, 0)):
        with pytest.raises(ValueError, match="use must be one of .*, not 'mine'"):
            ask("mine")


def test_keys_and_generators_are_those_of_the_committed_results():
    assert block_keys(2, 5, 3).tolist() == [[5, 3 * 2**32], [5, 3 * 2**32 + 1]] and block_keys(1, 0).dtype == np.uint64
    for use, (number, _) in GENERATORS.items():
        assert generator_of(use, 4, 2).random() == np.random.default_rng([4, number, 2]).random()
    assert part_seed(2, 7) == 3007 and seeds.VALUES == 0 and seeds.LEARNING == 8
    first = {use: a.first for use, a in BLOCKS.items()}
    assert (first["oracle climbs"], first["fixed search"], first["final choice"]) == (1, 10_001, 20_001)
    assert [first[use] for use in ("library", "lessons", "spells", "trials", "improvement", "deviations", "practice", "worst cases",
                                   "worst cases, chosen", "best of a library")] == [
        100_001, 200_001, 300_001, 400_001, 500_001, 700_001, 800_001, 810_001, 900_001, 900_002]
