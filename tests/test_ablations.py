"""Variants of a recipe: what each changes, how they are trained and resumed, and intervals over seeds and episodes."""

import functools
import json
import re
import shutil

import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")

from safetensors.torch import load_file

from daedalus.training import variants
from daedalus.training.policy import TARGETS
from daedalus.training.train import borrow_phases, one_thread, phase_folders, profile, run_phases
from daedalus.training.variants import (
    BASE, AblationPlan, Variant, ablation_plan, ablation_records, merged, read_records, record_key,
    rewards_of, run_ablations, vary)

PLAN = ablation_plan()


def leaves(value, path=()):
    """Every value in nested dictionaries and lists, by where it stands."""
    if isinstance(value, (dict, list, tuple)):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return {key: leaf for name, part in items for key, leaf in leaves(part, (*path, name)).items()}
    return {path: value}


# What a variant changes


@pytest.mark.parametrize(("old", "change", "new"), [
    ({"a": 1, "b": 2}, {"b": 3}, {"a": 1, "b": 3}),
    ({"a": {"x": 1, "y": 2}}, {"a": {"y": None}}, {"a": {"x": 1}}),
    ({"a": [1, 2]}, {"a": [3]}, {"a": [3]}),
    ({"a": None, "b": 1}, {"b": 2}, {"a": None, "b": 2}),
    ({"a": 1}, {"a": {"x": None, "y": 2}}, {"a": {"y": 2}}),
])
def test_merging_follows_the_standard(old, change, new):
    assert merged(old, change) == new


def test_the_plan_has_three_seeds_and_distinct_names():
    names = [variant.name for variant in PLAN.variants]
    assert len(PLAN.seeds) == len(set(PLAN.seeds)) == 3
    assert len(set(names)) == len(names) and BASE not in names
    assert list(PLAN.profiles()) == [BASE, *names]


@pytest.mark.parametrize("variant", PLAN.variants, ids=lambda variant: variant.name)
def test_a_variant_differs_from_the_base_in_what_it_states_and_in_nothing_else(variant):
    base, changed, stated = PLAN.base, vary(PLAN.base, variant.changes), variant.changes.get("phases", {})
    others = {name: value for name, value in variant.changes.items() if name != "phases"}
    assert changed != base and all(getattr(base, name) != value for name, value in others.items())
    assert changed.replace(phases=base.phases) == base.replace(**others)
    kept = [phase for phase in base.phases if stated.get(phase.kind, {}) is not None]
    assert len(kept) == len(changed.phases)
    for old, new in zip(kept, changed.phases):
        before, after = leaves(old.model_dump(mode="json")), leaves(new.model_dump(mode="json"))
        wanted = leaves(stated.get(old.kind, {}))
        assert {at for at in before if before[at] != after[at]} <= set(wanted)
        assert {at: after[at] for at in wanted} == wanted and before.keys() == after.keys()


@pytest.mark.parametrize("factor", sorted({variant.factor for variant in PLAN.variants} - {"phases"}))
def test_variants_of_a_factor_set_the_same_thing_to_other_values(factor):
    mine = [leaves(variant.changes) for variant in PLAN.variants if variant.factor == factor]
    assert len({tuple(changes) for changes in mine}) == 1 and len({tuple(c.values()) for c in mine}) == len(mine)


def test_groups_of_any_size_divide_the_replies_of_a_step():
    for changed in PLAN.profiles().values():
        for phase in changed.phases:
            assert phase.kind != "grpo" or phase.settings.batch_size % phase.settings.generations == 0


def test_a_list_of_phases_takes_the_place_of_all():
    sft, _, grpo = profile("smoke").phases
    changed = vary(profile("smoke"), {"ahead_rounds": 0, "phases": [json.loads(part.to_json()) for part in (sft, grpo, grpo)]})
    assert changed == profile("smoke").replace(ahead_rounds=0, phases=(sft, grpo, grpo))


def test_mistakes_in_a_variant_are_one_sentence():
    with pytest.raises(ValueError, match="^phases must be of sft, rft, grpo, not 'gpro'$"):
        vary(PLAN.base, {"phases": {"gpro": None}})
    with pytest.raises(ValueError, match="teacher_rounds must be"):
        vary(PLAN.base, {"teacher_rounds": -1})


    with pytest.raises(ValueError, match=r"seeds of variant 'no KL term' must be of \(3,\), not 4"):
        tiny(variants=(tiny().variants[0].replace(seeds=(3, 4)),))


# Training them


def tiny(**changes):
    """A plan whose two trainings take seconds."""
    variant = Variant(name="no KL term", factor="KL", changes={"phases": {"grpo": {"settings": {"beta": 0.0}}}})
    return AblationPlan(**{"about": "a test", "seeds": (3,), "episodes": 5, "base": profile("smoke"),
                           "variants": (variant,), **changes})


def untimed(records):
    """Records without what differs from run to run."""
    return [{name: value for name, value in record.items() if name != "seconds"} for record in records]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, smoke_training):
    """A folder in which the tiny plan has run, its base trained before, and the records."""
    folder = tmp_path_factory.mktemp("trained")
    shutil.copytree(smoke_training / "work", folder / "work" / "base-3")
    return folder, run_ablations(tiny(), folder / "records.json", folder / "work")


def test_a_variant_is_trained_with_its_own_seeds():
    other = Variant(name="other", factor="KL", changes={})
    plan = tiny(seeds=(3, 4, 5), variants=(tiny().variants[0].replace(seeds=(3, 5)), other))
    assert plan.runs() == [(BASE, 3), (BASE, 4), (BASE, 5), ("no KL term", 3), ("no KL term", 5),
                           ("other", 3), ("other", 4), ("other", 5)]


def test_how_grpo_went_is_kept_in_a_few_points(trained):
    _, records = trained
    for record in records:
        went = record["history"]
        assert went["rounds"] == sorted(went["rounds"]) and went["rounds"][-1] == pytest.approx(record["rounds"], rel=1e-4)
        assert {len(column) for column in went.values()} == {2} and {"composite", "entropy", "distinct"} <= set(went)
    first = {"kind": "sft", "rounds": 7, "history": [{"loss": 1.0}] * 3}
    steps = [{"composite": float(at), "entropy": 2.0} for at in range(40)]
    went = variants.thinned([first, *({"kind": "grpo", "rounds": 20, "history": part} for part in (steps[:20], steps[20:]))])
    assert went["composite"] == [0.5 + 2 * at for at in range(20)] and set(went) == {"rounds", "composite", "entropy"}
    assert went["rounds"] == [7 + 1.5 + 2 * at for at in range(20)] and variants.thinned([first]) == {}


def test_an_interrupted_run_goes_on_to_the_same_bits(trained, smoke_training, tmp_path, monkeypatch):
    _, whole = trained
    shutil.copytree(smoke_training / "work", tmp_path / "work" / "base-3")
    run, called = variants.run_variant, []

    @functools.wraps(run)   # records are of the code of its module
    def interrupted(*args):
        called.append(args)
        if len(called) == 2:
            raise KeyboardInterrupt
        return run(*args)

    monkeypatch.setattr(variants, "run_variant", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_ablations(tiny(), tmp_path / "records.json", tmp_path / "work")
    half = read_records(tmp_path / "records.json")
    assert [record["variant"] for record in half] == [BASE]
    again = run_ablations(tiny(), tmp_path / "records.json", tmp_path / "work")
    assert len(called) == 3 and again[0] == half[0]
    assert untimed(again) == untimed(whole) and read_records(tmp_path / "records.json") == again


def test_a_changed_variant_alone_is_trained_again(trained, monkeypatch):
    folder, before = trained
    called = []

    @functools.wraps(variants.run_variant)
    def untrained(profile, seed, work, *others):
        called.append(profile)
        work.mkdir()
        return {"held out": {}}

    monkeypatch.setattr(variants, "run_variant", untrained)
    (folder / "copy.json").write_text((folder / "records.json").read_text())
    variant = Variant(name="no KL term", factor="KL", changes={"phases": {"grpo": {"settings": {"beta": 0.1}}}})
    after = run_ablations(tiny(variants=(variant,)), folder / "copy.json", folder / "work")
    assert len(called) == 1 and after[0] == before[0] and after[1]["key"] != before[1]["key"]


@pytest.mark.parametrize("content, why", [
    (None, "1 of 2 records in .* are of other settings, other code or other versions of packages: they are made again"),
    ("", "the file of records '.*' is damaged: it holds no list of records: they are made again"),
    ('{"records": [{"variant": "base"}]}', "the file of records '.*' is damaged")])
def test_records_of_other_code_or_damaged_ones_are_made_again_and_kept_aside(trained, monkeypatch, capsys, tmp_path, content, why):
    folder, before = trained
    file, work = tmp_path / "records.json", tmp_path / "work"
    old = json.loads((folder / "records.json").read_text())
    old["records"][0]["code"] = "0123456789abcdef"
    file.write_text(json.dumps(old) if content is None else content)
    was, called = file.read_bytes(), []

    def untrained(profile, seed, work, *others):
        called.append(profile)
        work.mkdir(parents=True, exist_ok=True)
        return {"held out": {}}

    monkeypatch.setattr(variants, "run_variant", untrained)
    monkeypatch.setattr(variants, "training_code", lambda function: before[0]["code"])
    monkeypatch.setattr(variants, "run_phases", lambda *others: [])
    after = run_ablations(tiny(), file, work)
    assert len(called) == (1 if content is None else 2) and after[0]["code"] == before[0]["code"]
    aside, = work.glob("records.*.json")
    assert aside.read_bytes() == was and re.search(why, capsys.readouterr().err)
    assert run_ablations(tiny(), file, work) == after and not re.search(why, capsys.readouterr().err)


def test_a_teacher_and_phases_of_other_code_are_not_borrowed(trained, tmp_path, monkeypatch):
    from daedalus.training import train

    folder, _ = trained
    monkeypatch.setattr(train, "code_hash", lambda function: "0123456789abcdef")
    assert borrow_phases(profile("smoke"), 3, tmp_path, folder / "work" / "base-3") == 0
    assert not list(tmp_path.glob("teacher-*"))


def test_a_variant_without_a_lender_is_the_same_to_the_bit(trained, tmp_path):
    _, records = trained
    changed = tiny().profiles()["no KL term"]
    alone = variants.run_variant(changed, 3, tmp_path / "alone", tmp_path / "nobody", 5)
    lent = records[1]
    assert alone["held out"] == lent["held out"] and alone["rounds"] == lent["rounds"]
    assert lent["held out"] != records[0]["held out"] or lent["rounds"] == records[0]["rounds"]


def test_what_is_borrowed_is_what_both_have_in_common(trained, tmp_path):
    folder, _ = trained
    lender, changed = folder / "work" / "base-3", tiny().profiles()["no KL term"]
    assert borrow_phases(changed, 3, tmp_path / "mine", lender) == 2
    assert borrow_phases(changed, 3, tmp_path / "mine", lender) == 0
    assert borrow_phases(changed, 4, tmp_path / "other seed", lender) == 0
    for mine, theirs in list(zip(phase_folders(changed, tmp_path / "mine"), phase_folders(changed, lender)))[:2]:
        assert {file.name: file.read_bytes() for file in mine.iterdir()} == {
            file.name: file.read_bytes() for file in theirs.iterdir()}
    assert not (tmp_path / "mine" / "02-grpo").exists() and len(list((tmp_path / "mine").glob("teacher-*"))) == 2


def test_adapters_of_a_phase_and_of_the_model_exclude_each_other():
    with pytest.raises(ValueError, match="adapters of a phase need a policy without adapters"):
        vary(profile("smoke"), {"policy": {"lora_rank": 4}, "phases": {"grpo": {"adapters": 4}}})


def test_a_phase_with_adapters_leaves_merged_weights(trained, tmp_path):
    folder, _ = trained
    changed = vary(profile("smoke"), {"ahead_rounds": 0, "phases": {
        "sft": {"tuning": {"steps": 60, "learning_rate": 0.01}},   # so that some replies are mechanisms, and rewards differ
        "grpo": {"adapters": 4, "settings": {"learning_rate": 0.01, "steps": 4, "batch_size": 64}}}})
    with one_thread():
        borrow_phases(changed, 3, tmp_path, folder / "work" / "base-3")
        before, after = [place for place, _ in run_phases(changed, tmp_path, 3)][-2:]
    assert not list(after.glob("adapter*"))
    old, new = (load_file(place / "model.safetensors") for place in (before, after))
    moved = {name for name in old if not torch.equal(old[name], new[name])}
    assert old.keys() == new.keys()
    assert moved and all(name.split(".")[-2] in TARGETS for name in moved)


# The committed records


def test_the_committed_records_belong_to_the_committed_plan():
    profiles, records = PLAN.profiles(), ablation_records()
    assert [(r["variant"], r["seed"]) for r in records] == [(name, seed) for name in profiles for seed in PLAN.seeds]
    for record in records:
        assert record["key"] == record_key(profiles[record["variant"]], record["seed"], PLAN.episodes)
        for found in record["held out"].values():
            assert len(found["rewards"]) == PLAN.episodes and all(0 <= reward <= 1 for reward in found["rewards"])


def test_records_of_other_settings_have_other_keys():
    changed = PLAN.base.replace(teacher_rounds=0)
    keys = {record_key(PLAN.base, 0, 10), record_key(PLAN.base, 1, 10), record_key(PLAN.base, 0, 11),
            record_key(changed, 0, 10), record_key(PLAN.base, 0, 10, ("stages", "open", "briefs")),
            record_key(PLAN.base, 0, 10, best_of=8)}
    assert len(keys) == 6 and record_key(PLAN.base.replace(about="other words"), 0, 10) in keys


# Intervals


def test_rewards_are_ordered_by_seed():
    records = [{"variant": "a", "seed": seed, "held out": {"open, signals": {"rewards": [seed, 1.0]}}}
               for seed in (2, 0, 1)]
    assert rewards_of(records, "a", "open, signals").tolist() == [[0, 1], [1, 1], [2, 1]]
    assert rewards_of(records, "a", "open, signals", [2, 0]).tolist() == [[0, 1], [2, 1]]
    with pytest.raises(ValueError, match="variant must be one that was trained, not 'b'"):
        rewards_of(records, "b", "open, signals")


def test_the_record_file_is_json_with_one_record_in_a_line(trained):
    folder, records = trained
    text = (folder / "records.json").read_text()
    assert len(text.splitlines()) == len(records) + 2
    told = json.loads(text)
    assert told["records"] == records and told["provenance"]["parameters"]["episodes"] == 5
