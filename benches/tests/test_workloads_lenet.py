import sys
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from lowbit_cts.benches.workloads import lenet
from lowbit_cts.kernels import Backend
from lowbit_cts.kernels.numpy import backend

FIELDS = {
    "kind", "model", "variant", "backend", "accuracy", "correct", "total", "size_bytes", "bits_per_weight",
    "layer_mse", "layer_weight_mse",
}  # fmt: skip
NAMES = [layer.name for layer in lenet.LAYERS]
WEIGHTS = 54 + 864 + 7680 + 10080 + 840
SCALES = 6 + 16 + 120 + 84 + 10  # as many as outputs, and as biases


@pytest.fixture(scope="module")
def net():
    pytest.importorskip("torch")
    pytest.importorskip("sklearn")
    return lenet.train()


@pytest.fixture(scope="module")
def results(net):
    return {result["variant"]: result for result in lenet.evaluate(backend, net=net)}


def test_training_repeats(net):
    assert lenet.train().digest() == net.digest()


def test_accuracy_of_the_float_network(results, net):
    assert results["float32"]["accuracy"] >= 0.97
    assert results["float32"]["total"] == len(net.labels) == 450


def test_the_test_set_is_stratified_and_held_out(net):
    assert np.ptp(np.bincount(net.labels)) <= 3
    seen = {image.tobytes() for image in net.calibration}
    assert len(net.calibration) == lenet.RECIPE["calibration_images"]
    assert not seen & {image.tobytes() for image in net.images}


def test_numpy_runs_what_torch_trained(net):
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    x = torch.from_numpy(net.images)
    for layer in lenet.LAYERS:
        w, bias = (torch.from_numpy(values[layer.name]) for values in (net.weights, net.biases))
        if layer.convolution:
            y = functional.conv2d(x, w.reshape(layer.n, -1, 3, 3), bias, padding=1)
            x = functional.max_pool2d(y.relu(), 2)
        else:
            y = functional.linear(x.flatten(1), w, bias)
            x = y.relu()
    _, outputs = lenet.forward(net.images, lenet.float_product(net))
    assert outputs["linear3"] == pytest.approx(y.numpy(), abs=1e-4)


def test_results_have_the_fields_of_the_evidence(results):
    assert list(results) == [variant.name for variant in lenet.VARIANTS]
    for result in results.values():
        assert set(result) == FIELDS
        assert result["accuracy"] == result["correct"] / result["total"]
        assert set(result["layer_mse"]) == set(result["layer_weight_mse"]) == set(NAMES)


def test_sizes(results):
    assert results["float32"]["size_bytes"] == 4 * (WEIGHTS + SCALES)
    assert results["float32"]["bits_per_weight"] == 32
    # a scale a layer; the activations' scale and zero point, 5 bytes a layer
    assert results["int8 per tensor"]["size_bytes"] == WEIGHTS + 4 * SCALES + 5 * 4 + 5 * 5
    assert results["int8 per channel"]["size_bytes"] == WEIGHTS + 4 * SCALES + 4 * SCALES + 5 * 5
    four = results["int4 per channel, weights only"]
    assert four["size_bytes"] == WEIGHTS // 2 + 4 * SCALES + 4 * SCALES
    assert four["bits_per_weight"] == pytest.approx(4 + 32 * SCALES / WEIGHTS)


def test_a_scale_a_channel_is_never_worse_for_the_weights(results):
    whole, channels = (results[f"int8 per {kind}"]["layer_weight_mse"] for kind in ("tensor", "channel"))
    assert all(channels[name] <= whole[name] for name in whole)


def test_fewer_bits_cost_more(results):
    names = ["float32", "int8 per channel"]
    names += [f"int{bits} per channel, weights only" for bits in (4, 3, 2)]
    for better, worse in pairwise(names):
        assert results[better]["correct"] >= results[worse]["correct"]
        for kind in ("layer_mse", "layer_weight_mse"):
            assert all(results[better][kind][name] < results[worse][kind][name] for name in NAMES)
    assert results["int8 per channel"]["correct"] >= results["float32"]["correct"] - 4
    assert results["float32"]["layer_mse"]["linear3"] == 0


def test_im2col_is_a_convolution():
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((2, 3, 4, 4)), rng.standard_normal((5, 3, 3, 3))
    y = (lenet.im2col(x) @ w.reshape(5, -1).T).reshape(2, 4, 4, 5)
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    for row, column in np.ndindex(4, 4):
        expected = np.einsum("bchw,nchw->bn", padded[:, :, row : row + 3, column : column + 3], w)
        assert y[:, row, column] == pytest.approx(expected)


def test_a_backend_runs_the_variants_it_declares(net):
    """Kernels that write into `out`, and prepare their weights, run as well; what is not declared is named."""
    partial = Backend("partial")
    for each in backend.implementations:
        if each.operation.name in ("choose_qparams_affine", "quantize_affine", "matmul_w8a8"):
            partial.implementations.append(replace(each, backend=partial))

    quantize = next(i.run for i in backend.implementations if i.operation.name == "quantize_affine")
    writing = Backend("writing")
    writing.implementations += [i for i in partial.implementations if i.operation.name != "quantize_affine"]

    @writing.implements(
        "quantize_affine", supports={"granularity": {"tensor", "axis"}, "mapping": {"symmetric", "asymmetric"}}
    )
    def _(x, scale, zero_point, *, out, **parameters):
        parameters.pop("mapping")
        out[...] = quantize(x, scale, zero_point, **parameters)

    for each in (partial, writing):
        lacking = lenet.missing(each)
        assert list(lacking) == [v.name for v in lenet.VARIANTS if "weights only" in v.name]
        assert all("no implementation of dequantize_affine" in reason for reason in lacking.values())
    first, second = ([result["layer_mse"] for result in lenet.evaluate(each, net=net)] for each in (partial, writing))
    assert first == second
    assert len(first) == len(lenet.VARIANTS) - 3


def test_the_network_is_cached(net, tmp_path, monkeypatch):
    trained = []

    def train():
        trained.append(1)
        return net

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(lenet, "train", train)
    for _ in range(2):
        assert lenet.network().digest() == net.digest()
    assert len(trained) == 1
    (path,) = (tmp_path / "lowbit-cts").iterdir()
    assert path == lenet.cache_path()
    path.write_bytes(path.read_bytes()[:1000])  # as no writer leaves it
    assert lenet.network().digest() == net.digest()
    assert len(trained) == 2
    monkeypatch.setitem(lenet.RECIPE, "epochs", 1)
    assert lenet.cache_path() != path


def test_a_cache_that_cannot_be_written_does_no_harm(net, tmp_path, monkeypatch):
    (tmp_path / "lowbit-cts").write_text("a file where the folder should be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(lenet, "train", lambda: net)
    assert lenet.network() is net


@pytest.mark.parametrize(("library", "extra"), [("torch", "torch"), ("sklearn.datasets", "models")])
def test_missing_libraries_are_named_with_their_extra(library, extra, monkeypatch, tmp_path):
    pytest.importorskip("sklearn")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(lenet.MissingExtraError, match=rf"pip install 'lowbit-cts\[{extra}\]'"):
        lenet.network()
