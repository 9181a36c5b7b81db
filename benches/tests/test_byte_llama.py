"""The language model: its files, its text, and that every way of running it gives the same logits."""

import csv
import json
from importlib.resources import files

import numpy as np
import pytest

from lowbit_cts.benches.workloads import subjects
from lowbit_cts.benches.workloads.byte_llama import corpus, gguf_file, network
from lowbit_cts.reference.gguf.reader import read

pytest.importorskip("safetensors")
FOLDER = files("lowbit_cts.benches.workloads.byte_llama")


def plain_logits(tokens, weights=None):
    weights = network.weights() if weights is None else weights
    return network.logits(tokens, network.plain(weights), weights)


@pytest.fixture(scope="module")
def tokens():
    return corpus.windows(2, 96, held_out=True, seed=5)


def test_the_files_are_those_of_the_configuration():
    assert json.loads((FOLDER / "config.json").read_text()) == network.CONFIG
    assert {name: w.shape for name, w in network.weights().items()} == network.shapes()
    assert len((FOLDER / "model.safetensors").read_bytes()) <= 4_000_000


def test_the_weights_are_those_of_the_loss_curve():
    """On windows like those of the curve the loss is its last; another Python has somewhat other text."""
    curve = list(csv.DictReader((FOLDER / "loss.csv").read_text().splitlines()))
    windows = corpus.windows(32, 257, held_out=True, seed=0)
    loss, divergence = subjects.worth(plain_logits(windows[:, :-1]), plain_logits(windows[:, :-1]), windows[:, 1:])
    assert loss.mean() == pytest.approx(float(curve[-1]["held_out_loss"]), rel=0.1)
    assert np.abs(divergence).max() < 1e-9
    assert float(curve[-1]["cpu_seconds"]) <= 20 * 60 * 2


def test_text_to_train_on_is_not_what_models_are_judged_by():
    assert not set(corpus.files(False)) & set(corpus.files(True))
    assert 0.02 < corpus.text(True).size / corpus.text(False).size < 0.2
    first = corpus.windows(3, 10, held_out=True, seed=1)
    assert np.array_equal(first, corpus.windows(3, 10, held_out=True, seed=1))
    assert bytes(first[0].astype(np.uint8)) in corpus.text(True).tobytes()
    with pytest.raises(ValueError, match="length: must be 1 to"):
        corpus.windows(1, 0, held_out=True, seed=0)


def test_no_place_sees_what_follows(tokens):
    changed = tokens.copy()
    changed[:, 60:] = 65
    first, second = plain_logits(tokens), plain_logits(changed)
    np.testing.assert_allclose(first[:, :60], second[:, :60], rtol=0, atol=1e-4)
    assert np.abs(first[:, 60:] - second[:, 60:]).max() > 1


def test_training_runs_the_same_network(tokens):
    torch = pytest.importorskip("torch")
    from lowbit_cts.benches.workloads.byte_llama import train

    weights = {name: torch.from_numpy(w.copy()) for name, w in network.weights().items()}
    with torch.inference_mode():
        found = train.logits(weights, torch.from_numpy(tokens)).numpy()
    np.testing.assert_allclose(found, plain_logits(tokens), rtol=0, atol=2e-4)


def test_training_learns(monkeypatch):
    pytest.importorskip("torch")
    from lowbit_cts.benches.workloads.byte_llama import train

    for name, value in {"STEPS": 12, "WARMUP": 4, "EVERY": 6, "JUDGED": 2, "LENGTH": 64}.items():
        monkeypatch.setattr(train, name, value)
    _, curve = train.train()
    assert [line["step"] for line in curve] == [6, 12]
    assert curve[1]["held_out_loss"] < curve[0]["held_out_loss"] < np.log(256)


def test_planted_outliers_change_no_logit(tokens):
    subject = subjects.byte_llama(64.0)
    loud = subject.calibration(0)["model.layers.0.self_attn.q_proj.weight"]
    quiet = subjects.byte_llama().calibration(0)["model.layers.0.self_attn.q_proj.weight"]
    ratio = np.abs(loud).max(axis=0) / np.abs(quiet).max(axis=0)
    assert sorted(ratio)[-5:] == [1, 64, 64, 64, 64]
    assert subject.judge(subject.product).divergence.max() < 1e-9


@pytest.mark.parametrize("type", gguf_file.FILE_TYPES)
def test_a_gguf_file_holds_the_dequantized_weights(tmp_path, type):
    from lowbit_cts.reference.gguf.blocks import dequantize

    weights = network.weights()
    gguf_file.write_gguf(tmp_path / "model.gguf", weights, type)
    stored = read(tmp_path / "model.gguf").tensors
    truth = gguf_file.dequantized(weights, type)
    name = "model.layers.1.mlp.down_proj.weight"
    tensor = stored["blk.1.ffn_down.weight"]
    values = tensor.data if type in {"F32", "F16"} else dequantize(tensor.data, type)
    assert np.array_equal(np.asarray(values, np.float32), truth[name])
    assert len(stored) == len(weights)
    with pytest.raises(ValueError, match="type: must be one of"):
        gguf_file.write_gguf(tmp_path / "model.gguf", weights, "Q9")


def test_interleaved_rows_turn_the_same_pairs():
    rows = np.arange(128.0)[:, None]  # two heads of 64
    found = gguf_file.interleaved(rows)[:, 0]
    assert found[:4].tolist() == [0, 32, 1, 33]
    assert found[64:66].tolist() == [64, 96]
    assert sorted(found) == list(range(128))
