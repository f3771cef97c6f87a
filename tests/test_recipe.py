import json
import math
from dataclasses import fields
from typing import Literal, get_args, get_origin, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convnet.errors import UsageError
from convnet.recipe import (
    EPOCH_LISTS,
    RANGES,
    TABLES,
    Recipe,
    from_dict,
    from_toml,
    list_recipes,
    load_recipe,
    to_dict,
    to_toml,
    with_settings,
)

HINTS = get_type_hints(Recipe)


def numbers(name):
    allowed = RANGES[name]
    if HINTS[name] is int:
        return st.integers(int(allowed.low), int(allowed.high))
    return st.floats(allowed.low, allowed.high, exclude_min=allowed.low_open, exclude_max=allowed.high_open)


def values_of(name):
    kind = HINTS[name]
    if get_origin(kind) is Literal:
        return st.sampled_from(get_args(kind))
    if kind is bool:
        return st.booleans()
    if kind is str:
        return st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", fullmatch=True)
    if name == "net_options":
        texts = st.text(max_size=20).filter(str.isprintable)
        options = st.booleans() | st.integers(-(2**63) + 1, 2**63 - 1) | st.floats(-1e300, 1e300) | texts
        return st.dictionaries(st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,20}", fullmatch=True), options, max_size=3)
    if name in TABLES:
        keys = r"[A-Za-z0-9_.*-]{1,20}" + (r"(@[1-9][0-9]{0,4})?" if name == "layer_lr" else "")
        return st.dictionaries(st.from_regex(keys, fullmatch=True), st.floats(0, RANGES[name].high), max_size=3)
    if name in EPOCH_LISTS:
        return st.sets(st.integers(2, 100000), max_size=4).map(lambda steps: tuple(sorted(steps)))
    return numbers(name)


def scaled(values):
    """Changes with which the crops are scaled."""
    values["crop"] = min(values["crop"], values["size"])
    changes = {"random_crop": True, "crop_at": "anywhere", "mean": "none", "pad": 0}
    if values["crop_area"] < 1:
        return changes | {"smallest_size": 0}
    return changes | {"smallest_size": values["size"], "crop_area": 1.0, "crop_aspect": 1.0}


@st.composite
def recipes(draw):
    values = {name: draw(values_of(name)) for name in HINTS}
    values["crop"] = min(values["crop"], values["size"] + 2 * values["pad"])
    if values["schedule"] == "plateau":
        values["lr_steps"], values["fold_epoch"] = (), 0
    elif values["schedule"] == "cosine":
        values["lr_steps"] = ()
    if values["channels"] == "grey":
        values["colour_std"] = 0.0
    values["scale"] = values["scale"] or 1.0
    if values["loss"] == "rbf":
        values |= {"label_smoothing": 0.0, "balance": "order"}
    values |= {"smallest_size": 0, "crop_area": 1.0, "crop_aspect": 1.0} if draw(st.booleans()) else scaled(values)
    return Recipe(**values)


@settings(max_examples=60, deadline=None)
@given(recipes())
def test_toml_and_json_give_an_equal_recipe_back(recipe):
    assert from_toml(to_toml(recipe)) == recipe
    assert from_dict(json.loads(json.dumps(to_dict(recipe), allow_nan=False))) == recipe
    assert from_toml(to_toml(recipe).encode()) == recipe


def test_every_field_says_what_it_decides():
    for each in fields(Recipe):
        assert each.metadata["text"], each.name


def test_every_number_has_a_range():
    assert set(RANGES) == {name for name, kind in HINTS.items() if kind in (int, float)} | {*EPOCH_LISTS, *TABLES} - {
        "net_options"
    }


def test_the_default_is_the_papers_alexnet():
    paper = load_recipe("alexnet")
    assert paper == Recipe()
    section_5 = {
        "batch": 128,
        "momentum": 0.9,
        "decay": 0.0005,
        "lr": 0.01,
        "lr_divisor": 10,
        "lr_drops": 3,
        "epochs": 90,
    }
    all_alike = {"bias_lr_factor": 1, "bias_schedule": "as weights", "decay_biases": True}
    section_4 = {"size": 256, "crop": 224, "random_crop": True, "mirror": True, "colour_std": 0.1}
    as_stored = {"pad": 0, "channels": "rgb", "mean": "picture", "scale": 1, "offset": 0}
    assert (section_5 | all_alike | section_4 | as_stored).items() <= to_dict(paper).items()


def test_lenet5_sees_the_papers_pixels():
    recipe = load_recipe("lenet5")
    assert recipe.size + 2 * recipe.pad == recipe.crop == 32
    assert 0 * recipe.scale + recipe.offset == pytest.approx(-0.1)
    assert 255 * recipe.scale + recipe.offset == pytest.approx(1.175)


def test_every_built_in_recipe_loads_under_its_own_name():
    assert {"alexnet", "alexnet_small", "lenet5"} <= set(list_recipes())
    for name in list_recipes():
        recipe = load_recipe(name)
        assert recipe.name == name
        assert from_toml(to_toml(recipe)) == recipe


def test_a_recipe_file_loads_by_its_path(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('name = "mine"\nlr = 1\nlr_steps = [3, 9]\nschedule = "steps"\n', encoding="utf-8")
    recipe = load_recipe(path)
    assert (recipe.name, recipe.lr, recipe.lr_steps, recipe.batch) == ("mine", 1.0, (3, 9), 128)
    assert type(recipe.lr) is float


def test_all_errors_are_listed_at_once():
    wrong = {"crop": 300, "bacth": 3, "lr": math.nan, "epochs": True, "mean": "rbg", "channels": "grey"}
    with pytest.raises(UsageError) as caught:
        from_dict(wrong, "mine.toml")
    assert str(caught.value).splitlines() == [
        "mine.toml has 6 errors:",
        "  unknown field 'bacth': did you mean 'batch'?",
        "  lr = nan: must be a number, above 0, at most 100",
        "  epochs = true: must be an integer, 1 to 100000",
        "  mean = \"rbg\": unknown choice 'rbg': did you mean 'rgb'?",
        "  crop = 300: exceeds size + 2 pad = 256; make size larger or crop smaller",
        '  colour_std = 0.1: must be 0 for grey pictures; set it, or channels = "rgb"',
    ]
    assert caught.value.exit_code == 2


WRONG_TYPES = (None, [], {}, [1], {"a": 1}, "", "\x1b[31m", "nan", -1, -0.5, 10**400, math.inf, -math.inf, math.nan, 1j)


@pytest.mark.parametrize("name", HINTS)
def test_every_field_refuses_wrong_types_and_ranges(name):
    """T20: each wrong value is refused by a line that begins with its field; right ones keep their exact type."""
    refused = 0
    for value in (*WRONG_TYPES, True, 1, 1.5, "x y"):
        try:
            recipe = from_dict({name: value})
        except UsageError as error:
            lines = str(error).splitlines()
            assert len(lines) == 2, lines
            assert lines[1].startswith((f"  {name} = ", "  crop = 224: exceeds", "  lr_steps = ")), lines
            assert lines[1].isprintable()
            refused += 1
        else:
            kind = HINTS[name] if isinstance(HINTS[name], type) else (str, dict, tuple)
            assert isinstance(getattr(recipe, name), kind)
    assert refused >= 12


NEEDED = {  # what goes with the end of a range
    "smallest_size": {"size": 4096, "mean": "none"},
    "crop_area": {"mean": "none"},
    "crop_aspect": {"mean": "none", "crop_area": 0.5},
}


def test_ranges_end_where_they_say():
    for name, allowed in RANGES.items():
        if name in (*EPOCH_LISTS, *TABLES, "fold_epoch", "size", "crop", "scale", "pad"):
            continue
        for end, is_open, outward in ((allowed.low, allowed.low_open, -1), (allowed.high, allowed.high_open, 1)):
            beyond = end + outward if HINTS[name] is int else math.nextafter(end, outward * math.inf)
            with pytest.raises(UsageError, match=name):
                from_dict({name: beyond})
            if is_open:
                with pytest.raises(UsageError, match=name):
                    from_dict({name: end})
            else:
                assert getattr(from_dict({name: end, **NEEDED.get(name, {})}), name) == end


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"lr_steps": [3]}, 'lr_steps = \\[3\\]: needs schedule = "steps"'),
        ({"lr_steps": [9, 3], "schedule": "steps"}, "each epoch must be later"),
        ({"lr_steps": [3, 3], "schedule": "steps"}, "each epoch must be later"),
        ({"lr_steps": [1], "schedule": "steps"}, "must be an integer, 2 to 100000"),
        ({"scale": 0}, "must not be 0"),
        ({"layer_lr": 3}, "layer_lr = 3: must be a table of layers and numbers"),
        ({"layer_lr": {"conv 1": 1}}, '"conv 1": a layer is a name or a pattern'),
        ({"layer_lr": {"conv1@0": 1}}, '"conv1@0": a layer is a name or a pattern'),
        ({"layer_lr": {"conv1": -1}}, "must be a number, 0 to 1000"),
        ({"layer_lr": {"conv1": "fast"}}, "must be a number, 0 to 1000"),
        ({"layer_decay": {"conv1@2": 0.1}}, "conv1@2: a decay holds for all epochs"),
        ({"schedule": "plateau", "fold_epoch": 9}, 'fold_epoch = 9: needs schedule = "steps" or "cosine"'),
        ({"net_options": {"a-b": 1}}, "option 'a-b'"),
        ({"net_options": {"a": [1]}}, "option a: must be true, false, a number or text"),
        ({"net_options": {"a": math.inf}}, "option a: must be finite"),
        ({"net_options": {"a": 2**63}}, "option a: must fit 64 bits"),
        ({"net_options": {"a": "\x00"}}, "option a: must be printable"),
        ({"name": "../up"}, 'name = "../up": must be text'),
        ({"zzzzzz": 1}, "unknown field 'zzzzzz': Known: average, "),
        ({"\x1b[31mlr": 1}, r"unknown field ''\\x1b\[31mlr''"),
    ],
)
def test_texts_of_errors(values, text):
    with pytest.raises(UsageError, match=text):
        from_dict(values)


def test_a_recipe_that_breaks_a_rule_cannot_be_made():
    with pytest.raises(UsageError, match=r"crop = 227: exceeds size \+ 2 pad = 224"):
        Recipe(size=224, crop=227)


@pytest.mark.parametrize(
    ("text", "where"),
    [
        (b"name = \n", "line 1"),
        (b"lr = 1\nlr = 2\n", "line 2"),
        (b'name = "a\n', "line 1"),
        (b"\xff\xfe", "utf-8"),
        (b"lr = " + b"[" * 100_000, "RecursionError|nest|Nest|recursion"),
        (b"seed = " + b"9" * 10_000, "digits"),
    ],
    ids=["no value", "twice", "open string", "not UTF-8", "deep", "long"],
)
def test_broken_toml(tmp_path, text, where):
    path = tmp_path / "broken.toml"
    path.write_bytes(text)
    with pytest.raises(UsageError, match=f"broken.toml is not valid TOML: .*({where})"):
        load_recipe(path)


def test_wrong_values_too_long_to_show_are_still_named():
    with pytest.raises(UsageError, match="seed = int too long to show: must be an integer"):
        from_toml("seed = 0x" + "f" * 10_000)
    with pytest.raises(UsageError, match=r"lr = 'aaa|lr = \"aaa") as caught:
        from_dict({"lr": "a" * 10_000})
    assert len(str(caught.value)) < 300


def test_unknown_recipes_and_files(tmp_path):
    with pytest.raises(UsageError, match="unknown recipe 'lenet': did you mean 'lenet5'"):
        load_recipe("lenet")
    with pytest.raises(UsageError, match=r"absent.toml: cannot be read: No such file"):
        load_recipe(tmp_path / "absent.toml")
    (tmp_path / "folder.toml").mkdir()
    with pytest.raises(UsageError, match=r"folder.toml: cannot be read: Is a directory"):
        load_recipe(tmp_path / "folder.toml")


def test_settings():
    changed = with_settings(
        Recipe(), ["lr=2e-2", "mirror=false", "init=fan-in", "schedule = steps", "lr_steps=[3, 5]", "net_options.k=1"]
    )
    assert changed == Recipe(
        lr=0.02, mirror=False, init="fan-in", schedule="steps", lr_steps=(3, 5), net_options={"k": 1}
    )
    assert with_settings(changed, []) == changed
    options = with_settings(changed, ["net_options.a=2", "net_options.b=three", "net_options.a=4"]).net_options
    assert options == {"k": 1, "a": 4, "b": "three"}


def test_a_crop_may_be_as_large_as_the_padded_picture_and_no_larger():
    assert Recipe(size=28, pad=2, crop=32).crop == 32
    with pytest.raises(UsageError, match=r"crop = 33: exceeds size \+ 2 pad = 32; make size larger or crop smaller"):
        Recipe(size=28, pad=2, crop=33)


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        ("lr", "setting 'lr' has no '='; write field=value"),
        ("lr=high", 'lr = "high": must be a number'),
        ("lr=1\nseed=2", "lr = .*must be a number"),
        ("epoch=3", "did you mean 'epochs'"),
        ("mirror=1", "mirror = 1: must be true or false"),
        ("=3", "unknown field ''"),
    ],
)
def test_wrong_settings(setting, text):
    with pytest.raises(UsageError, match=text):
        with_settings(Recipe(), [setting])


def test_an_option_of_what_was_set_to_no_table_is_refused():
    with pytest.raises(UsageError, match=r"setting 'net_options\.b=1': net_options was set to \"a\" before"):
        with_settings(Recipe(), ["net_options=a", "net_options.b=1"])
