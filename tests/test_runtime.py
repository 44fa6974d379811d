"""Machine code that is kept on disk: never older than its source, never damaged, never somebody else's."""

import os
import shutil
import subprocess
import sys
import textwrap

import pytest

import daedalus as dd
from daedalus import _runtime as runtime
from daedalus.market import engine as market

HERE = runtime.PACKAGE.parent

# A caller in one module, what it calls in another: the stake of a market of stage 0 is LOTS times the surplus.
STAKE = """
import numpy as np
from daedalus.market.bidders import Population, Rules
from daedalus.market.engine import read_market
from daedalus.schema import DEFAULT_MECHANISM

def stake():
    rules = Rules(*DEFAULT_MECHANISM.to_array())
    traits = Population(truthful=2, value_low=0.0).traits()
    return read_market(np.zeros(2, np.uint64), 0, np.zeros(2, np.int64), traits, rules).stake
"""


def run(code, folder=HERE, **environment):
    """Run code in a fresh process with the package in `folder`; the lines that it printed, and its standard error."""
    environment = {**os.environ, "PYTHONPATH": str(folder), **environment}
    environment.pop("NUMBA_DISABLE_JIT", None)
    done = subprocess.run([sys.executable, "-c", STAKE + textwrap.dedent(code)], capture_output=True, text=True,
                          cwd=folder, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines(), done.stderr


@pytest.fixture
def package(tmp_path):
    """A copy of the package, which a test may edit."""
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(runtime.PACKAGE, tmp_path / "daedalus", ignore=ignored)
    shutil.copytree(HERE / "data", tmp_path / "data", ignore=shutil.ignore_patterns("designer", "results"))
    return tmp_path


def edit(package, module, old, new):
    file = package / "daedalus" / module
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


def test_the_hash_of_the_sources_sees_nested_modules(tmp_path):
    nested = tmp_path / "market" / "engine.py"
    nested.parent.mkdir()
    (tmp_path / "noise.py").write_text("compiled = 1\n")
    hashes = [runtime.sources_hash(tmp_path)]
    for text in ("compiled = 2\n", "compiled = 3\n"):
        nested.write_text(text)
        hashes.append(runtime.sources_hash(tmp_path))
    nested.rename(tmp_path / "market" / "motor.py")
    hashes.append(runtime.sources_hash(tmp_path))
    assert len(set(hashes)) == 4
    (tmp_path / "market" / "words.py").write_text("nothing of that kind\n")
    assert runtime.sources_hash(tmp_path) == hashes[-1]


@pytest.mark.parametrize("places", [
    {"NUMBA_CACHE_DIR": "chosen"}, {"XDG_CACHE_HOME": "caches"}, {"XDG_CACHE_HOME": "file/below", "TMPDIR": "."},
])
def test_an_edit_of_a_called_function_in_another_file_is_seen_everywhere(package, tmp_path, places):
    (tmp_path / "file").write_text("")
    places = {"HOME": str(tmp_path / "file")} | {name: str((tmp_path / place).resolve()) for name, place in places.items()}
    os.chmod(tmp_path, 0o700)
    (before,), _ = run("print(stake())", package, **places)
    edit(package, "market/bidders.py", '(high - low) / (n * (n + 1.0))', '0.5')
    (after,), _ = run("print(stake())", package, **places)
    assert (float(before), float(after)) == (pytest.approx(16 / 6), 8.0)
    assert list(tmp_path.rglob("daedalus.market.engine.read_market-*.code"))


def test_importing_leaves_the_users_setting_alone(tmp_path):
    (shown,), _ = run("import os; print(os.environ.get('NUMBA_CACHE_DIR'))", NUMBA_CACHE_DIR=str(tmp_path))
    assert shown == str(tmp_path)
    environment = {name: value for name, value in os.environ.items() if name != "NUMBA_CACHE_DIR"}
    code = "import os, daedalus; print(os.environ.get('NUMBA_CACHE_DIR'))"
    assert subprocess.check_output([sys.executable, "-c", code], env=environment, cwd=HERE, text=True) == "None\n"


@pytest.fixture(scope="module")
def kept_code(tmp_path_factory):
    """A folder in which the code of one call is kept."""
    folder = tmp_path_factory.mktemp("kept")
    run("print(stake())", NUMBA_CACHE_DIR=str(folder))
    assert list(folder.rglob("*.code"))
    return folder


@pytest.mark.parametrize("damage", [
    lambda file: file.write_bytes(b""), lambda file: file.write_bytes(file.read_bytes()[:100]),
    lambda file: file.write_bytes(file.read_bytes()[:-1] + b"?"), lambda file: (file.unlink(), file.mkdir())])
def test_damaged_code_is_made_again(tmp_path, damage, kept_code):
    shutil.copytree(kept_code, tmp_path, dirs_exist_ok=True)
    files = list(tmp_path.rglob("*.code"))
    for file in files:
        damage(file)
    assert float(run("print(stake())", NUMBA_CACHE_DIR=str(tmp_path))[0][0]) == pytest.approx(16 / 6)
    kept = {file for file in files if file.is_file()}
    assert kept in (set(files), set())   # a folder that stands in a file's place stays there
    assert all(file.stat().st_size > 100 for file in kept)
    assert not list(tmp_path.rglob(".*-*.code"))


def test_a_full_disk_costs_one_warning(tmp_path):
    code = """
    import resource, signal
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50, 50))
    print(stake())
    """
    (shown,), warned = run(code, NUMBA_CACHE_DIR=str(tmp_path))
    assert float(shown) == pytest.approx(16 / 6)
    assert warned.count("compiled code cannot be kept") == 1
    assert not list(tmp_path.rglob("*.code"))


def test_nowhere_to_keep_code_costs_one_warning(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(runtime, "_cache_places", lambda: [tmp_path / "file" / name for name in "ab"])
    with pytest.warns(UserWarning, match="compiled code is not kept") as warned:
        assert runtime.cache_folder.__wrapped__() is None
    assert len(warned) == 1
    assert "file/a" in str(warned[0].message)


def test_only_a_folder_of_ones_own_is_used(tmp_path, monkeypatch):
    os.chmod(tmp_path, 0o700)
    made = tmp_path / "made" / "deep"
    assert runtime.own_folder(made)
    assert made.stat().st_mode & 0o777 == 0o700
    (tmp_path / "link").symlink_to(made)
    assert not runtime.own_folder(tmp_path / "link")
    for mode in (0o777, 0o702):
        os.chmod(made.parent, mode)
        assert not runtime.own_folder(made)
        assert not runtime.own_folder(made.parent)
    os.chmod(made.parent, 0o1777)   # as a system's temporary folder: open, but nobody replaces another's entries
    assert runtime.own_folder(made)
    os.chmod(made.parent, 0o700)
    monkeypatch.setattr(runtime, "_own_group", lambda group: False)
    os.chmod(made.parent, 0o770)
    assert not runtime.own_folder(made)
    monkeypatch.setattr(runtime, "_own_group", lambda group: True)
    assert runtime.own_folder(made)
    me = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: me + 1)
    assert not runtime.own_folder(made)


def test_code_planted_in_a_shared_temporary_folder_does_not_run(tmp_path):
    """What lies in a guessable folder that another user made is not read."""
    shared = tmp_path / "shared"
    shared.mkdir()
    os.chmod(shared, 0o1777)
    planted = shared / f"daedalus-{os.getuid()}"
    planted.mkdir()
    os.chmod(planted, 0o777)
    (tmp_path / "file").write_text("")
    nowhere = str(tmp_path / "file")
    (shown,), warned = run("print(stake())", HOME=nowhere, XDG_CACHE_HOME=nowhere + "/below", TMPDIR=str(shared),
                        NUMBA_CACHE_DIR="")
    assert float(shown) == pytest.approx(16 / 6)
    assert "compiled code is not kept" in warned
    assert not list(planted.iterdir())


PATCHED = """
import daedalus.market.engine, daedalus.market.rewards
from daedalus._runtime import ChangedCodeError
market = vars(daedalus.market.engine)
for name, other in [("competitive_surplus", lambda low, high, n: 0.5), ("LOTS", 3),
                    ("competitive_surplus", daedalus.market.rewards.stability), ("Market", tuple)]:
    kept, market[name] = market[name], other
    try: print("PLAYED", stake())
    except ChangedCodeError as error: print(error)
    market[name] = kept
print(stake())
"""


@pytest.mark.parametrize("state", ["cold", "warm"])
def test_a_patched_engine_is_refused_and_never_kept(tmp_path, state, kept_code):
    if state == "warm":
        shutil.copytree(kept_code, tmp_path, dirs_exist_ok=True)
    (*refused, value), _ = run(PATCHED, NUMBA_CACHE_DIR=str(tmp_path))
    assert len(refused) == 4
    assert all("was replaced while the program runs" in told and "behaviour" in told for told in refused)
    assert float(value) == pytest.approx(16 / 6)
    assert float(run("print(stake())", NUMBA_CACHE_DIR=str(tmp_path))[0][0]) == pytest.approx(16 / 6)


def test_a_patch_after_the_first_market_is_refused_at_the_next(monkeypatch):
    def play():
        return dd.simulate(dd.DEFAULT_MECHANISM, dd.Population.stage(0), [0]).reward

    before = play()
    with monkeypatch.context() as patch:
        patch.setattr(market, "write_scores", print)
        with pytest.raises(runtime.ChangedCodeError, match=r"daedalus\.market\.engine\.write_scores was replaced"):
            play()
        with pytest.raises(runtime.ChangedCodeError):
            dd.DaedalusEnv(dd.Population.stage(0)).reset(0)
    assert (play() == before).all()


def test_no_compiled_function_of_the_library_reads_what_changed_since_it_was_defined():
    import daedalus.studies.exploit
    import daedalus.market.learners
    import daedalus.studies.redteam
    import daedalus.market.record  # noqa: F401

    runtime.check_compiled()
    assert len(runtime._READ) > 100


def test_functions_of_users_and_functions_defined_again_are_not_kept(tmp_path):
    (tmp_path / "mine.py").write_text(textwrap.dedent("""
        from daedalus._runtime import compiled
        @compiled
        def twice(x): return 2 * x
    """))
    code = """
    import sys; sys.path.insert(0, {folder!r})
    import daedalus.market.rewards, mine
    from importlib import reload
    first = type(daedalus.market.rewards.stability._cache).__name__
    reload(daedalus.market.rewards)
    caches = [first, *(type(f._cache).__name__ for f in (daedalus.market.rewards.stability, mine.twice))]
    print(mine.twice(4), *caches)
    """
    (shown,), _ = run(code.format(folder=str(tmp_path)), NUMBA_CACHE_DIR=str(tmp_path / "kept"))
    assert shown == "8 KeptCode NullCache NullCache"


def test_a_reloaded_module_is_not_taken_for_a_patch():
    (shown,), _ = run("import daedalus.market.rewards\nfrom importlib import reload\nreload(daedalus.market.rewards)\nprint(stake())")
    assert float(shown) == pytest.approx(16 / 6)
