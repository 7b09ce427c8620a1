"""Compares the parameter counts of presets of published families with the published counts."""

import importlib

import jax
import numpy as np
import pytest

from arch import Model, compute_cost
from configs import families
from errors import ConfigError
from settings.tree import freeze
from training.settings import Settings

# The counts of released weights (from model cards or the headers of the files), with tied tables
# counted once. Where only rounded counts are published (GPT-3 and OPT 175B, Falcon2 11.1B, CodeGen
# 2.7B and 16.1B, Bamba 9.78B, Vicuna), Hugging Face transformers 5.23 counted the published shape.
PUBLISHED = {
    "llama2": {"7b": 6_738_415_616, "13b": 13_015_864_320, "70b": 68_976_648_192},
    "llama3": {
        **{"1b": 1_235_814_400, "3b": 3_212_749_824, "8b": 8_030_261_248},
        **{"70b": 70_553_706_496, "405b": 405_853_388_800},
    },
    "vicuna": {"7b": 6_738_415_616, "13b": 13_015_864_320, "7b-16k": 6_738_415_616},
    "xgen": {"7b": 6_738_415_616 + 2 * 19_200 * 4096},  # LLaMA with 19,200 additional ids
    "mistral": {"7b": 7_241_732_096},
    "mixtral": {"8x7b": 46_702_792_704},
    "gpt2": {
        **{"124m": 124_439_808, "355m": 354_823_168, "774m": 774_030_080},
        **{"1.5b": 1_557_611_200, "175b": 174_604_259_328},
    },
    "bert": {"base": 110_106_428, "large": 336_226_108},
    "roberta": {"base": 124_697_433, "large": 355_412_057},
    "t5": {
        **{"small": 60_506_624, "base": 222_903_552, "large": 737_668_096},
        **{"3b": 2_851_598_336, "11b": 11_307_321_344},
        **{"1.1-small": 76_961_152, "1.1-base": 247_577_856, "1.1-large": 783_150_080},
        **{"1.1-xl": 2_849_757_184, "1.1-xxl": 11_135_332_352},
    },
    # T5-base with 8 or 128 experts and a router instead of 12 of its 24 MLPs
    "switch": {
        "base-8": 222_903_552 + 12 * (7 * 2 * 768 * 3072 + 768 * 8),
        "base-128": 222_903_552 + 12 * (127 * 2 * 768 * 3072 + 768 * 128),
    },
    "falcon": {
        **{"7b": 6_921_720_704, "40b": 41_303_293_952, "180b": 178_557_088_768},
        **{"11b": 11_102_822_400},
    },
    "bloom": {"560m": 559_214_592, "7b1": 7_069_016_064, "176b": 176_247_271_424},
    "opt": {
        **{"125m": 125_239_296, "350m": 331_196_416, "1.3b": 1_315_758_080},
        **{"6.7b": 6_658_473_984, "175b": 174_604_468_224},
    },
    "codegen": {
        **{"350m": 356_712_448, "2b": 2_779_356_160},
        **{"16b": 16_032_155_648, "gptj-6b": 6_050_882_784},
    },
    "mamba": {
        "130m": 129_135_360,
        "370m": 371_516_416,
        "1.4b": 1_372_178_432,
        "2.8b": 2_768_345_600,
    },
    "mamba2": {"130m": 128_989_632, "2.7b": 2_702_599_680, "codestral-7b": 7_285_403_648},
    "bamba": {"9b": 9_780_235_392},
    "recent.qwen3": {
        **{"0.6b": 596_049_920, "1.7b": 1_720_574_976, "4b": 4_022_468_096},
        **{"8b": 8_190_735_360, "14b": 14_768_307_200, "32b": 32_762_123_264},
    },
    "recent.olmo2": {
        **{"1b": 1_484_916_736, "7b": 7_298_617_344},
        **{"13b": 13_716_198_400, "32b": 32_234_279_936},
    },
    "recent.gemma3": {"270m": 268_098_176, "1b": 999_885_952},
    "recent.phi3": {"mini": 3_821_079_552, "medium": 13_960_238_080},
    "recent.gpt_oss": {"20b": 20_914_757_184, "120b": 116_829_156_672},
    "recent.deepseek_v2": {"lite": 15_706_484_224, "236b": 235_741_434_880},
    "recent.falcon_h1": {"0.5b": 521_411_104},
    "recent.qwen3_next": {"80b-a3b": 79_674_391_296},
    "recent.kimi_linear": {"48b-a3b": 49_122_681_728},
}
SIZES = [  # only the first size of each family is in the default tests
    pytest.param(name, size, count, marks=[] if i == 0 else pytest.mark.slow)
    for name, sizes in PUBLISHED.items()
    for i, (size, count) in enumerate(sizes.items())
]


def module(name):
    return importlib.import_module(f"configs.families.{name}")


@pytest.mark.parametrize(("name", "size", "count"), SIZES)
def test_a_published_size_has_its_published_parameters(name, size, count):
    """Counts parameters by shapes and by the cost of the parts."""
    config = module(name).model_config(size)
    shapes = jax.eval_shape(lambda: Model(config, key=jax.random.key(0)))
    assert sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes)) == count
    assert compute_cost(config, 128).params == count


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_tiny_size_is_a_config_that_trains(name):
    settings = freeze(Settings, module(name).get_config())
    assert settings.model.vocab_size == 0  # the tokenizer's
    assert settings.row_spec.text_length > 0


def test_an_unknown_size_names_the_nearest():
    with pytest.raises(ConfigError, match="'17b' is not known; did you mean '7b'"):
        module("llama2").get_config("17b")
    assert families.lookup_size({"a": 1}, "a") == 1
