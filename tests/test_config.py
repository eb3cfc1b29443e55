"""Settings: a file, the command line and code edit the same objects, and every mistake is named."""

from __future__ import annotations

import ast
import inspect
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sslim import config as config_module
from sslim.config import (
    SAFE_TO_CHANGE,
    SETTINGS,
    UNITS,
    AudioConfig,
    BudgetSpec,
    JointConfig,
    RecoveryConfig,
    RunConfig,
    apply_settings,
    budget_from_sparsity,
    difference,
    from_dict,
    load_config,
    parse_budget,
    to_dict,
    to_flat_dict,
)
from sslim.errors import BudgetError, ConfigError
from sslim.limits import LIMITS
from sslim.recipes import RECIPES, demo, fast, get_recipe, paper, resolve

rate = st.floats(1e-9, 1.0)
fraction = st.floats(0, 1)
counts = st.integers(1, 10**9)
budgets = st.one_of(
    st.floats(0.001, 99.999).map(lambda share: f"{share:.3f}%"),
    st.integers(1, 10**12).map(str),
    st.integers(1, 999).map(lambda millions: f"{millions}M"),
)
configs = st.builds(
    RunConfig,
    seed=st.integers(0, 2**63 - 1),
    seconds_per_update=st.floats(100, 1e5),
    seconds_per_batch=st.floats(0, 100),
    device=st.sampled_from(["auto", "cpu", "mps", "cuda", "cuda:3"]),
    precision=st.sampled_from(["auto", "float32", "bfloat16"]),
    workers=st.integers(0, 256),
    log_every=counts,
    check_every=st.integers(0, 1000),
    checkpoint_every=counts,
    keep_checkpoints=counts,
    clip_norm=st.floats(1e-6, 1e6),
    budget=budgets,
    budget_quantity=st.sampled_from(["parameters", "macs"]),
    units=st.lists(st.sampled_from(UNITS), min_size=1, unique=True).map(tuple),
    layers=st.one_of(
        st.just("all"), st.sets(st.integers(0, 48)).map(lambda layers: tuple(sorted(layers)))
    ),
    audio=st.builds(AudioConfig, min_seconds=st.floats(0, 5), max_seconds=st.floats(5.1, 60)),
    stage1=st.builds(
        JointConfig,
        updates=counts,
        learning_rate=rate,
        warmup_fraction=fraction,
        gate_learning_rate=rate,
        sparsity_warmup_fraction=fraction,
    ),
    stage2=st.builds(
        RecoveryConfig,
        updates=st.integers(0, 10**6),
        learning_rate=rate,
        warmup_fraction=fraction,
    ),
)


def typed(value: Any) -> str:
    """A value as a person types it after `--set key=`."""
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


@given(configs)
def test_every_way_of_writing_a_configuration_reads_back_the_same(config: RunConfig) -> None:
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config
    settings = [f"{name}={typed(value)}" for name, value in to_flat_dict(config).items()]
    assert apply_settings(RunConfig(), settings) == config
    assert (
        from_dict(to_dict(config), base=demo()) == config
    )  # every field is written, none inherited


@given(configs, configs)
def test_difference_names_exactly_what_changed(before: RunConfig, after: RunConfig) -> None:
    changed = difference(before, after)
    assert (changed == {}) == (before == after)
    edits = [f"{name}={typed(new)}" for name, (_, new) in changed.items()]
    assert apply_settings(before, edits) == after


def test_a_file_and_settings_edit_the_same_objects(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text(
        'seed = 7\nunits = ["conv", "ffn"]\nclip_norm = 5\n[stage1]\nupdates = 2_000\n'
        "[audio]\nmax_seconds = 9.5\n"
    )
    settings = ["seed=7", "units=conv,ffn", "clip_norm=5", "stage1.updates=2000"]
    config = load_config(file)
    assert config == apply_settings(RunConfig(), [*settings, "audio.max_seconds=9.5"])
    assert config.stage1.updates == 2000
    assert config.units == ("conv", "ffn")
    assert isinstance(config.clip_norm, float)
    assert config.stage2 == RunConfig().stage2
    assert load_config(file, base=demo()).stage2 == demo().stage2


def test_all_mistakes_are_reported_at_once_in_one_line() -> None:
    with pytest.raises(ConfigError) as raised:
        apply_settings(
            RunConfig(),
            ["stage1.update=3", "seed=x", "budget=120%", "clip_norm=0", "nonsense"],
        )
    line = str(raised.value)
    assert "\n" not in line
    for part in (
        "stage1.updates?",
        "seed must be a whole number",
        "120%",
        "clip_norm",
        "key=value",
    ):
        assert part in line


@pytest.mark.parametrize(
    ("unknown", "meant"),
    [
        ("stage1.update", "stage1.updates"),
        ("seconds_per_updates", "seconds_per_update"),
        ("sed", "seed"),
        ("gate_learning_rate", "stage1.gate_learning_rate"),
        ("updates", "stage1.updates or stage2.updates"),
        ("stage3.updates", "stage2.updates"),
        ("audio.max_second", "audio.max_seconds"),
    ],
)
def test_an_unknown_setting_names_the_nearest(unknown: str, meant: str) -> None:
    with pytest.raises(ConfigError, match=f"did you mean [^)]*{meant}"):
        apply_settings(RunConfig(), [f"{unknown}=1"])


def test_an_unknown_setting_far_from_all_names_none() -> None:
    with pytest.raises(ConfigError, match=r"^zzz is unknown\.$"):
        apply_settings(RunConfig(), ["zzz=1"])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"seed": 1.0}, "seed must be a whole number, got 1.0"),
        ({"seed": True}, "seed must be a whole number, got True"),
        ({"clip_norm": True}, "clip_norm must be a number, got True"),
        ({"clip_norm": math.nan}, "clip_norm must be a number, got nan"),
        ({"clip_norm": "10"}, "clip_norm must be a number, got '10'"),
        ({"clip_norm": 10**400}, "clip_norm must be a number"),
        ({"device": 0}, "device must be text, got 0"),
        ({"units": "conv"}, "units must be a list, each entry text, got 'conv'"),
        ({"layers": [0, 4.0]}, "layers must be a list, each entry a whole number"),
        ({"stage1": 3}, "stage1 is a section with settings of its own, got 3"),
        ({"stage1": {"updates": 2.5}}, "stage1.updates must be a whole number, got 2.5"),
        ({"stage1": {"steps": 2}}, "stage1.steps is unknown"),
    ],
)
def test_types_are_checked_without_conversion(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        from_dict(values)
    assert message in str(raised.value)


@pytest.mark.parametrize(
    "setting",
    [
        "seed=-1",
        "seconds_per_update=0",
        "seconds_per_update=inf",
        "seconds_per_batch=641",
        "device=gpu",
        "device=cuda:",
        "precision=float16",
        "workers=-1",
        "log_every=0",
        "checkpoint_every=0",
        "keep_checkpoints=0",
        "clip_norm=-1",
        "budget=quarter",
        "budget_quantity=bytes",
        "units=",
        "units=conv,conv",
        "units=convs",
        "layers=4,0",
        "layers=0,0",
        "layers=-1,3",
        "audio.min_seconds=-1",
        "audio.min_seconds=20",
        "stage1.updates=0",
        "stage1.updates=2e3",
        "stage1.learning_rate=0",
        "stage1.warmup_fraction=1.1",
        "stage1.gate_learning_rate=-0.1",
        "stage1.sparsity_warmup_fraction=-0.1",
        "stage2.updates=-1",
        "stage2.learning_rate=0",
        "stage2.warmup_fraction=2",
    ],
)
def test_what_is_out_of_range_is_refused_by_name(setting: str) -> None:
    with pytest.raises(ConfigError) as raised:
        apply_settings(RunConfig(), [setting])
    assert setting.partition("=")[0] in str(raised.value)
    assert ";" not in str(raised.value)  # one mistake gives one problem


def test_every_setting_that_is_a_number_has_limits_and_a_reason() -> None:
    numbers = {
        name
        for name, value in to_flat_dict(replace(RunConfig(), layers=(0,))).items()
        if isinstance(value[0] if value and isinstance(value, tuple) else value, int | float)
    }
    assert set(LIMITS) == numbers
    for name, limits in LIMITS.items():
        assert limits.least < limits.most, name
        assert len(limits.why) > 10, name


@pytest.mark.parametrize("name", LIMITS)
def test_what_lies_beyond_a_limit_is_refused_with_the_reason(name: str) -> None:
    limits = LIMITS[name]
    for value in (limits.most, limits.least if not limits.above else limits.most):
        assert limits.problem(name, value) == ""
    beyond = limits.most + 1 if isinstance(limits.most, int) else 1e308
    for text in (str(beyond), str(10**20), *(["1e308"] if isinstance(beyond, float) else [])):
        with pytest.raises(ConfigError) as raised:
            apply_settings(RunConfig(), [f"{name}={text}"])
        assert limits.why in str(raised.value)
        assert ";" not in str(raised.value)
    with pytest.raises(ConfigError, match=r"at least|above"):
        apply_settings(RunConfig(), [f"{name}=-1"])


@pytest.mark.parametrize(
    "text",
    ["nan", "inf", "-inf", "1e400", "²", "\uff12\uff15", "٣", "9" * 5000, "0x10", "1e", ""],
)
@pytest.mark.parametrize("name", ["seed", "seconds_per_update", "stage1.updates", "clip_norm"])
def test_what_is_no_number_is_refused_in_a_line(name: str, text: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} must be") as raised:
        apply_settings(RunConfig(), [f"{name}={text}"])
    assert len(str(raised.value)) < 300


def test_validate_checks_objects_made_in_code() -> None:
    RunConfig().validate()
    with pytest.raises(ConfigError, match=r"stage1\.updates must be a whole number"):
        RunConfig(stage1=JointConfig(updates=2.5)).validate()  # type: ignore[arg-type]


def test_files_that_cannot_be_read_say_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml' cannot be read"):
        load_config(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path)
    broken = tmp_path / "broken.toml"
    broken.write_bytes(b"seed = \n")
    with pytest.raises(ConfigError, match=r"not valid TOML.*line 1"):
        load_config(broken)
    broken.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not valid TOML"):
        load_config(broken)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("seed = " + "[" * 20_000 + "]" * 20_000, "not valid TOML"),
        ("seed = " + "[" * 300 + "]" * 300, "seed must be a whole number"),
        ("a = {" * 300 + "}" * 300, "a is unknown"),
        ("seed = " + "9" * 5000, "not valid TOML"),
        ("seed = 0x" + "f" * 5000, "seed must be at most"),
        ("clip_norm = 0x" + "f" * 5000, "clip_norm must be a number"),
        ("x" * 5000 + " = 1", "is unknown"),
        ("seed = nan", "seed must be a whole number"),
        ("clip_norm = nan", "clip_norm must be a number"),
        ("seed = 1979-05-27", "seed must be a whole number"),
        ("stage1 = []", "section with settings of its own"),
        ('device = "' + "x" * 5000 + '"', "device knows"),
        ("seed = 1\n" + "# more\n" * 20_000, "larger than 64 KiB"),
    ],
    ids=lambda value: value[:12],
)
def test_hostile_files_are_refused_in_a_line(content: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text(content)
    with pytest.raises(ConfigError, match=message) as raised:
        load_config(file)
    assert len(str(raised.value)) < 400 + len(str(tmp_path))
    assert "\n" not in str(raised.value)


def test_files_without_an_end_or_a_name_are_refused() -> None:
    with pytest.raises(ConfigError, match="larger than 64 KiB"):
        load_config("/dev/zero")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config("a\0b")


def test_a_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_bytes(b"\xef\xbb\xbfseed = 5\r\n")
    assert load_config(file).seed == 5


def test_settings_that_may_change_on_resume_exist() -> None:
    assert set(SETTINGS) >= SAFE_TO_CHANGE
    assert difference(RunConfig(), replace(RunConfig(), workers=4)).keys() <= SAFE_TO_CHANGE
    assert difference(paper(), fast()).keys() - SAFE_TO_CHANGE


# --- budget -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("25%", 23_592_960),
        (" 25 % ", 23_592_960),
        ("12.5%", 11_796_480),
        ("24M", 24_000_000),
        ("24m", 24_000_000),
        ("0.03G", 30_000_000),
        ("23600000", 23_600_000),
        ("23_600_000", 23_600_000),
        ("500k", 500_000),
    ],
)
def test_budgets_are_read(text: str, target: int) -> None:
    assert parse_budget(text, dense=94_371_840) == target


@pytest.mark.parametrize(
    "text",
    [
        *("", "0", "0%", "100%", "250%", "-5%", "0.25", "abc", "25 percent", "nan", "1e6", "5T"),
        *("0M", "1e400", "inf", "²", "2²%", "\uff12\uff15%", "\uff12\uff15\uff05", "25%%", "٢٥%"),
        *("9" * 5000, "0." + "0" * 5000 + "1", "%", "M", "25\0%", "_5%"),
    ],
    ids=lambda text: text[:12],
)
def test_what_is_no_budget_is_refused(text: str) -> None:
    with pytest.raises(ConfigError) as raised:
        BudgetSpec.parse(text)
    assert len(str(raised.value)) < 200


@pytest.mark.parametrize("text", ["1000", "1M"])
def test_a_budget_not_below_the_teacher_is_refused(text: str) -> None:
    with pytest.raises(BudgetError, match="1,000"):
        parse_budget(text, dense=1000)


def test_a_budget_that_leaves_nothing_is_refused() -> None:
    with pytest.raises(BudgetError):
        parse_budget("1%", dense=10)


@given(st.integers(1, 99_999), st.integers(1, 10**15))
def test_a_share_never_allows_more_than_it_says(thousandths: int, dense: int) -> None:
    """For every share and size: the exact count, or a refusal where that is none at all."""
    allowed = dense * thousandths // 100_000
    if allowed:
        assert parse_budget(f"{thousandths / 1000}%", dense) == allowed
    else:
        with pytest.raises(BudgetError, match="leaves nothing"):
            parse_budget(f"{thousandths / 1000}%", dense)


@pytest.mark.parametrize(
    ("sparsity", "budget"),
    [(0.75, "25%"), (0.9, "10%"), (0.5, "50%"), (0.999, "0.1%"), (1e-3, "99.9%")],
)
def test_sparsity_is_the_share_removed(sparsity: float, budget: str) -> None:
    assert budget_from_sparsity(sparsity) == budget


@given(st.floats(0, 1, exclude_min=True, exclude_max=True))
def test_every_sparsity_gives_a_budget(sparsity: float) -> None:
    """Or a refusal, where it would leave all or nothing."""
    dense = 10**9
    left = (1 - sparsity) * dense
    try:
        assert parse_budget(budget_from_sparsity(sparsity), dense) == pytest.approx(left, abs=2)
    except (ConfigError, BudgetError):
        assert left < 1 or left > dense - 1


@pytest.mark.parametrize("sparsity", [0.0, 1.0, -0.1, 75.0, math.nan, math.inf])
def test_what_is_no_sparsity_is_refused(sparsity: float) -> None:
    with pytest.raises(ConfigError, match="between 0 and 1"):
        budget_from_sparsity(sparsity)


# --- recipes ------------------------------------------------------------------


def test_recipes_are_valid_and_paper_is_the_default() -> None:
    for name, recipe in RECIPES.items():
        recipe().validate()
        assert name == recipe.__name__
        assert recipe.__doc__
    assert paper() == RunConfig()


def test_an_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean paper"):
        get_recipe("papr")


def test_each_argument_edits_what_those_before_it_say(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text('seed = 1\nworkers = 3\nbudget = "50%"\nbudget_quantity = "macs"\ndevice="cpu"')
    config = resolve("fast", config=file, settings=["seed=2"], device="auto")
    assert (config.seed, config.workers, config.budget) == (2, 3, "50%")
    assert (config.budget_quantity, config.device) == ("macs", "cpu")
    assert config.stage1 == fast().stage1
    config = resolve("fast", config=file, params="24M", device="cuda:1")
    assert (config.budget, config.budget_quantity) == ("24M", "macs")
    assert config.device == "cuda:1"
    assert resolve(sparsity=0.75).budget == "25%"


@pytest.mark.parametrize("option", [{"params": "40%"}, {"sparsity": 0.6}])
def test_a_budget_s_option_says_how_much_and_not_of_what(
    option: dict[str, Any], tmp_path: Path
) -> None:
    """The documented budget on operations: `--params 40% --set budget_quantity=macs`, or a file."""
    file = tmp_path / "run.toml"
    file.write_text('budget_quantity = "macs"\nbudget = "30%"\n')
    for config in (
        resolve("paper", settings=["budget_quantity=macs"], **option),
        resolve("paper", config=file, **option),
    ):
        assert (config.budget, config.budget_quantity) == ("40%", "macs")
    back = resolve("paper", config=file, settings=["budget_quantity=parameters"], **option)
    assert (back.budget, back.budget_quantity) == ("40%", "parameters")
    assert resolve("paper", **option).budget_quantity == "parameters"


def test_two_budgets_are_one_too_many() -> None:
    with pytest.raises(ConfigError, match=r"--params 25% and --sparsity 0\.75"):
        resolve(params="25%", sparsity=0.75)


# --- documentation ------------------------------------------------------------


def test_every_field_has_a_docstring_of_its_own() -> None:
    tree = ast.parse(inspect.getsource(config_module))
    documented = 0
    for node in (n for n in tree.body if isinstance(n, ast.ClassDef) and n.name.endswith("Config")):
        for item, following in zip(node.body, node.body[1:], strict=False):
            if isinstance(item, ast.AnnAssign):
                assert isinstance(following, ast.Expr), ast.unparse(item)
                assert isinstance(following.value, ast.Constant), ast.unparse(item)
                documented += 1
    assert documented == len(SETTINGS) + 3  # the three sections are fields as well


def test_every_type_is_one_that_reading_knows() -> None:
    for section in (RunConfig, AudioConfig, JointConfig, RecoveryConfig):
        for hint in get_type_hints(section).values():
            if hint == config_module._LAYERS:
                continue
            plain = get_args(hint)[0] if get_origin(hint) is tuple else hint
            assert plain in (int, float, str, AudioConfig, JointConfig, RecoveryConfig)
