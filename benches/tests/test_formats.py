"""The table of number formats: known figures come out, and every row says which measurements are its own."""

import numpy as np
import pytest

from lowbit_cts.benches import formats
from lowbit_cts.kernels import OPERATIONS

BY_NAME = {f.name: f for f in formats.NUMBER_FORMATS}
NORMAL = {"normal": np.random.default_rng(1).standard_normal((4096, 256)).astype(np.float32)}

#: SQNR, dB, of 2**20 normal numbers (PCG64, seed 1), computed with the libraries that the formats come from.
KNOWN = {
    "int8 symmetric, a scale a row of 256": 43.12,
    "int8 asymmetric, a scale a row of 256": 43.80,
    "int4 symmetric, a scale a row of 256": 17.94,
    "int4 asymmetric, a scale a row of 256": 19.20,
    "MX float8_e4m3fn, blocks of 32": 30.63,
    "MX int8, blocks of 32": 41.67,
    "NVFP4, levels: two": 20.42,
    "nf4, blocks of 64": 20.72,
    "nf4, blocks of 64, double quantization": 20.72,
    "fp4_bitsandbytes, blocks of 128": 17.80,
    "binary, a scale a row of 256": 4.40,
    "ggml Q4_K": 22.93,
    "ggml Q8_0": 45.43,
    "ggml TQ1_0": 1.85,
}


@pytest.mark.parametrize("name", KNOWN)
def test_known_figures_come_out(name):
    assert formats.accuracy(BY_NAME[name], NORMAL)["normal"] == pytest.approx(KNOWN[name], abs=0.005)


def test_bits_count_the_scales():
    assert BY_NAME["MX float4_e2m1fn, blocks of 32"].bits == 4.25
    assert BY_NAME["ggml Q6_K"].bits == 6.5625
    assert BY_NAME["nf4, blocks of 64, double quantization"].bits == pytest.approx(4.126953, abs=5e-7)


@pytest.mark.parametrize("number_format", formats.NUMBER_FORMATS, ids=lambda f: f.name)
def test_links_are_operations_and_their_parameters(number_format):
    assert BY_NAME[number_format.name] is number_format, "names are unique"
    for link in (number_format.encode, number_format.decode):
        if link:
            operation = OPERATIONS[link["operation"]]
            assert all(operation.parameters[name].admits(value) for name, value in link["parameters"].items())


def test_every_source_has_the_width_of_every_block():
    for x in formats.sources().values():
        assert x.dtype == np.float32
        assert x.shape[1] == formats.WIDTH
        assert np.isfinite(x).all()
