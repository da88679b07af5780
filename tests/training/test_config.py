"""Configs: the paper's values by default, bases, overrides, and strict checks."""

import pytest
import yaml

from pneumothorax.errors import BadConfig
from pneumothorax.training import config, sampling
from tests.helpers.stages import ROOT


def loaded(tmp_path, text="", *overrides, **fixed):
    path = tmp_path / "experiment.yaml"
    path.write_text(text, encoding="utf-8")
    return config.load(path, list(overrides), **fixed)


def refusal(tmp_path, text="", *overrides):
    with pytest.raises(BadConfig) as caught:
        loaded(tmp_path, text, *overrides)
    return str(caught.value)


def test_an_empty_file_is_the_papers_experiment_but_for_equal_chances_of_augmentation(tmp_path):
    found = loaded(tmp_path)
    assert (found.model, found.image_size) == ("ica_resunet", 512)
    assert found.sampling == "paper"
    # positives to negatives 2:1 early, 1:1 in the middle and late stages
    assert [ratio for _, ratio in sampling.NAMED_STEPS["paper"]] == [2, 1]
    assert found.augment_positive == found.augment_negative == found.shift_scale_rotate == 0.5


def test_file_then_overrides_then_fixed_values(tmp_path):
    text = "epochs: 3\nbatch_size: 4\nseed: 1\nmodel_settings: {width: 8}\n"
    found = loaded(
        tmp_path,
        text,
        "batch_size=8",
        "model_settings.weights=none",
        "sampling=[[0, 1], [0.5, 2]]",
        seed=7,
        epochs=None,
    )
    assert (found.epochs, found.batch_size, found.seed) == (3, 8, 7)
    assert found.model_settings == {"width": 8, "weights": "none"}
    assert found.sampling == ((0, 1), (0.5, 2))


@pytest.mark.parametrize(
    ("text", "overrides"),
    [
        ("epoch: 3\n", []),
        ("", ["learning-rate=1"]),
        ("epochs: many\n", []),
        ("epochs: 0\n", []),
        ("image_size: 100\n", []),
        ("image_size: 0\n", []),
        ("batch_size: 1\n", []),
        ("learning_rate: -1\n", []),
        ("augment_positive: 1.5\n", []),
        ("loss: hinge\n", []),
        ("sampling: []\n", []),
        ("sampling: [[0.1, 2]]\n", []),
        ("sampling: [[0, 2], [0.5, 1], [0.3, 1]]\n", []),
        ("sampling: [[0, 0]]\n", []),
        ("sampling: [[0, 2], [1.0, 1]]\n", []),
        ("sampling: unknown\n", []),
        ("batch_size: 6\naccumulation_steps: 4\n", []),
        ("batch_size: 6\naccumulation_steps: 6\n", []),
        ("ema_decay: 1\n", []),
        ("init_from: ../elsewhere\n", []),
        ("patience: 0\n", []),
    ],
)
def test_unknown_keys_and_impossible_values_are_refused_and_the_known_keys_listed(
    tmp_path, text, overrides
):
    message = refusal(tmp_path, text, *overrides)
    assert "experiment.yaml" in message
    for known in ("learning_rate", "augment_positive", "sampling"):
        assert known in message


@pytest.mark.parametrize(
    ("text", "overrides"),
    [
        ("- a\n- b\n", []),
        ("[]\n", []),
        ("false\n", []),
        ("a: [\n", []),
        pytest.param("a: " + "[" * 1000, [], id="deep"),
        ("\0\n", []),
        ("!!python/object/apply:os.system ['true']\n", []),
        ("", ["epochs"]),
        ("", ["epochs=["]),
        ("", ["epochs.inner=1", "epochs.inner=2"]),
        ("epochs: 3\n", ["epochs.inner=1"]),
        ("1: 2\n", []),
        ("", ["=3"]),
    ],
)
def test_text_that_is_not_settings_is_refused(tmp_path, text, overrides):
    assert refusal(tmp_path, text, *overrides)


DECIMAL = [name for name, field in config.TrainConfig.model_fields.items() if "float" in str(field)]


@pytest.mark.parametrize("number", [".inf", "-.inf", ".nan"])
@pytest.mark.parametrize(
    "setting",
    [
        *(f"{name}={{}}" for name in DECIMAL if name not in ("model_settings", "sampling")),
        "sampling=[[0, {}]]",
        "sampling=[[0, 1], [{}, 2]]",
        "model_settings.decoder_dropout={}",
    ],
)
def test_numbers_that_are_not_finite_are_refused_for_every_setting(tmp_path, setting, number):
    assert {"weight_decay", "learning_rate", "clip_gradient_norm", "sampling"} <= set(DECIMAL)
    message = refusal(tmp_path, "", setting.format(number))
    assert message.splitlines()[1].strip().startswith(setting.partition("=")[0])
    assert "finite number" in message


def test_settings_are_never_executed(tmp_path):
    code = f"!!python/object/apply:os.mkdir ['{tmp_path / 'made'}']"
    for text, overrides in ((f"model: {code}\n", []), ("", [f"model={code}"])):
        assert refusal(tmp_path, text, *overrides)
        assert not (tmp_path / "made").exists()


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(BadConfig, match=r"none\.yaml"):
        config.load(tmp_path / "none.yaml", [])


def test_the_saved_config_alone_repeats_the_experiment(tmp_path):
    found = loaded(
        tmp_path,
        "epochs: 5\nfinal_learning_rate: 1.0e-7\n"
        "model_settings: {widths: [8, 16], deep: true, weights: null}\n",
    )
    config.save(tmp_path / "saved.yaml", found)
    assert config.load(tmp_path / "saved.yaml", []) == found
    assert set(yaml.safe_load((tmp_path / "saved.yaml").read_text())) == set(
        config.TrainConfig.model_fields
    )


def test_every_named_schedule_is_a_valid_setting(tmp_path):
    for name in (*sampling.NAMED_STEPS, sampling.LINEAR, sampling.NATURAL):
        assert loaded(tmp_path, f"sampling: {name}\n").sampling == name


def test_how_steps_are_computed_makes_no_other_experiment():
    first = config.as_dict(config.TrainConfig())
    second = config.as_dict(
        config.TrainConfig(accumulation_steps="auto", precision="fp16", compile=True)
    )
    assert config.differences(first, second) == []


def test_differences_are_listed_one_by_one(tmp_path):
    old, new = (
        config.as_dict(loaded(tmp_path)),
        config.as_dict(loaded(tmp_path, "epochs: 3\nseed: 1\n")),
    )
    assert config.differences(old, new) == ["epochs: 40 before, 3 now", "seed: 42 before, 1 now"]
    assert config.differences(old, old) == []
    assert config.differences({"gone": 1, "a": 2}, {"a": 2, "new": 3}) == [
        "new: None before, 3 now",
        "gone: 1 before, None now",
    ]


def test_a_config_cannot_be_changed_afterwards(tmp_path):
    with pytest.raises(ValueError, match="frozen"):
        loaded(tmp_path).epochs = 3


CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))


def test_the_repository_has_configs_in_every_folder():
    folders = {path.parent.relative_to(ROOT).as_posix() for path in CONFIGS}
    assert folders == {
        "configs",
        "configs/ablation",
        "configs/demo",
        "configs/recipes",
        "configs/small",
    }


# Stays the same when defaults change, so that it names settings that are defaults today.
PINNED = ROOT / "configs" / "recipes" / "paper.yaml"


@pytest.mark.parametrize(
    "path",
    [path for path in CONFIGS if path != PINNED],
    ids=lambda path: path.relative_to(ROOT).as_posix(),
)
def test_every_config_of_the_repository_holds_only_what_differs_from_its_base(path):
    config.load(path, [])
    written = yaml.safe_load(path.read_text("utf-8"))
    below = config.as_dict(config.TrainConfig())
    base = written.pop("base", None)
    if base is not None:
        below = config.as_dict(config.load(path.parent / base, []))
        inner = written.get("model_settings", {})
        assert [key for key in inner if below["model_settings"].get(key) == inner[key]] == []
    same = [key for key, value in written.items() if key != "model" and below[key] == value]
    assert same == []


def configs(tmp_path, **texts):
    """Write several files; the path of the first."""
    for name, text in texts.items():
        path = tmp_path / f"{name}.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return tmp_path / f"{next(iter(texts))}.yaml"


def test_a_config_overrides_its_base_and_the_base_of_its_base(tmp_path):
    (tmp_path / "inner").mkdir()
    lowest = "model: unet\nepochs: 3\nbatch_size: 4\nmodel_settings: {a: 1, b: 2, c: 3}\n"
    (tmp_path / "lowest.yaml").write_text(lowest)
    middle = "base: ../lowest.yaml\nbatch_size: 8\nmodel_settings: {b: 20, d: 40}\n"
    (tmp_path / "inner" / "middle.yaml").write_text(middle)
    text = "base: inner/middle.yaml\nseed: 5\nmodel_settings: {c: 300}\n"
    found = loaded(tmp_path, text, "model_settings.d=4000")
    assert (found.model, found.epochs, found.batch_size, found.seed) == ("unet", 3, 8, 5)
    assert found.model_settings == {"a": 1, "b": 20, "c": 300, "d": 4000}
    assert "base" not in config.as_dict(found)


def test_bases_that_form_a_loop_are_refused_with_the_chain(tmp_path):
    first = configs(tmp_path, a="base: b.yaml\n", b="base: ./c.yaml\n", c="base: b.yaml\n")
    with pytest.raises(
        BadConfig, match=r"loop: \S+a\.yaml -> \S+b\.yaml -> \S+c\.yaml -> \S+b\.yaml"
    ):
        config.load(first, [])
    with pytest.raises(BadConfig, match=r"loop: \S+own\.yaml -> \S+own\.yaml"):
        config.load(configs(tmp_path, own="base: own.yaml\n"), [])


@pytest.mark.parametrize(
    ("texts", "match"),
    [
        ({"a": "base: none.yaml\n"}, r"a\.yaml -> \S+none\.yaml cannot be read"),
        ({"a": "base: b.yaml\n", "b": "- 1\n"}, r"a\.yaml -> \S+b\.yaml must hold"),
        ({"a": "base: [b.yaml]\n"}, "base must be the path of another config"),
        ({"a": "base:\n"}, "base must be the path of another config"),
        ({"a": 'base: "b\\0"\n'}, "base must be the path of another config"),
        (
            {"a": "base: b.yaml\n", "b": "c: 1\nd: [\n"},
            r"b\.yaml cannot be read: line 3: expected[^\n]+$",
        ),
        ({"a": "base: .\n"}, r"cannot be read: Is a directory$"),
    ],
)
def test_a_base_that_is_not_a_config_is_named_with_the_file_that_names_it(tmp_path, texts, match):
    with pytest.raises(BadConfig, match=match):
        config.load(configs(tmp_path, **texts), [])


def test_a_base_cannot_be_set_on_the_command_line(tmp_path):
    assert "base" in refusal(tmp_path, "", "base=other.yaml")


@pytest.mark.parametrize(
    ("text", "overrides"),
    [
        ("model_settings: {presence_weight: 0.5}\n", []),
        ("", ["model_settings.presence_weight=0.5"]),
    ],
)
def test_the_old_name_of_a_setting_is_refused_with_the_new_one(tmp_path, text, overrides):
    message = refusal(tmp_path, text, *overrides)
    assert "model_settings.presence_weight is now model_settings.classification_weight" in message


def test_mixed_precision_is_refused_with_the_values_of_precision(tmp_path):
    message = refusal(tmp_path, "mixed_precision: true\n")
    assert "mixed_precision is now precision: auto, fp32, bf16 or fp16" in message


def test_the_papers_recipe_names_all_that_the_defaults_may_change():
    found = config.load(PINNED, [])
    assert (found.model, found.loss, found.learning_rate) == ("ica_resunet", "bce_dice", 1e-4)
    assert (found.augment_negative, found.augment_positive) == (0.3, 0.5)
    assert found.shift_scale_rotate == 0
    written = set(yaml.safe_load(PINNED.read_text("utf-8")))
    assert written >= {"loss", "learning_rate", "augment_negative", "augment_positive"}


def test_the_first_place_recipe_has_its_own_learning_rates_for_our_batches():
    """1e-4, then 1e-5, for batches of 2."""
    for part, rate in ((1, 1e-4), (2, 1e-5), (3, 1e-5)):
        found = config.load(PINNED.with_name(f"first_place_{part}.yaml"), [])
        assert found.learning_rate == pytest.approx(rate * found.batch_size / 2)
        assert found.warmup_steps > 0


def test_the_paper_networks_have_a_full_config_and_a_small_twin_of_the_same_network():
    for name in ("unet", "chexlocnet", "albunet", "ica_resunet"):
        full, small = (
            config.load(ROOT / "configs" / folder / f"{name}.yaml", []) for folder in (".", "demo")
        )
        assert full.model == small.model == name
        assert (full.image_size, small.image_size < 512) == (512, True)


def test_the_ablations_differ_from_the_full_block_only_in_its_switches():
    full = config.as_dict(config.load(ROOT / "configs" / "demo" / "ica_resunet.yaml", []))
    switches = {"attention", "pooling", "merge", "residual", "placement"}
    found = []
    for path in sorted((ROOT / "configs" / "ablation").glob("*.yaml")):
        other = config.as_dict(config.load(path, []))
        changed = {**other["model_settings"]}
        own = {key: changed.pop(key) for key in switches & changed.keys()}
        assert {**other, "model_settings": changed} == full
        found.append(tuple(sorted(own.items())))
    assert (
        len(set(found)) == len(found) == 8
    )  # none, published, three merges, residual, two other placements
