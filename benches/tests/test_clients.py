"""Real clients of the language model: transformers, llama.cpp, and libraries that quantize it."""

import numpy as np
import pytest

from lowbit_cts.benches.workloads import subjects
from lowbit_cts.benches.workloads.byte_llama import corpus, gguf_file, network

pytest.importorskip("safetensors")


@pytest.fixture(scope="module")
def tokens():
    return corpus.windows(2, 128, held_out=True, seed=5)


@pytest.fixture(scope="module")
def truth(tokens):
    return network.logits(tokens, network.plain(network.weights()), network.weights())


def test_transformers_gives_the_same_logits(tokens, truth):
    pytest.importorskip("transformers")
    pytest.importorskip("torch")
    from lowbit_cts.benches.workloads.byte_llama import clients

    model = clients.load()
    assert type(model).__name__ == "LlamaForCausalLM"
    np.testing.assert_allclose(clients.logits(model)(tokens), truth, rtol=0, atol=2e-4)


@pytest.mark.parametrize(
    ("client", "most"), [("bitsandbytes-nf4", 0.2), ("bitsandbytes-int8", 0.01), ("torchao-int8", 0.01),
                         ("torchao-int4", 0.2), ("torchao-w8a8", 0.01)],
)  # fmt: skip
def test_libraries_quantize_it(tokens, truth, client, most):
    """What is left of the answers, in nats; and something was quantized."""
    pytest.importorskip("transformers")
    from lowbit_cts.benches.workloads.byte_llama import clients

    chosen = clients.CLIENTS[client]
    pytest.importorskip(chosen.package)
    model = chosen.load()
    _, divergence = subjects.worth(clients.logits(model)(tokens), truth, tokens)
    assert 1e-7 < divergence.mean() < most
    count = sum(np.prod(network.shapes()[name]) for name in network.product_names())
    assert 0.5 <= clients.held_bytes(model) / count < 1.1  # at most a byte a weight, and its scales


def test_qlora_of_peft_goes_the_way_of_ours(monkeypatch):
    """The same adapters on the same text over NF4 of both: step by step the same losses."""
    pytest.importorskip("peft")
    pytest.importorskip("bitsandbytes")
    pytest.importorskip("transformers")
    from lowbit_cts.benches.workloads.algorithms import normal_float
    from lowbit_cts.benches.workloads.byte_llama import qlora
    from lowbit_cts.kernels.numpy import backend

    for name, value in {"STEPS": 8, "BATCH": 2, "LENGTH": 64, "RATE": 1e-2}.items():
        monkeypatch.setattr(qlora, name, value)
    ours, theirs = qlora.by_kernels(normal_float(backend, 4, None)), qlora.by_peft()
    np.testing.assert_allclose(ours.losses, theirs.losses, rtol=6e-3)
    assert np.ptp(ours.losses) > 0.1
    assert ours.adapter_bytes == theirs.adapter_bytes
    assert ours.base_bytes < theirs.base_bytes < 1.05 * ours.base_bytes  # theirs has tables of values in every layer


# llama.cpp


def llama_logits(path, tokens):
    """Return the logits of llama.cpp for one window, everything beside the weights in float32."""
    import ctypes

    llama = pytest.importorskip("llama_cpp")
    silent = llama.llama_log_callback(lambda level, text, user: None)
    llama.llama_log_set(silent, ctypes.c_void_p(0))
    llama.llama_backend_init()
    model = llama.llama_model_load_from_file(str(path).encode(), llama.llama_model_default_params())
    assert model, "llama.cpp does not load the file"
    count = len(tokens)
    options = llama.llama_context_default_params()
    options.n_ctx = options.n_batch = options.n_ubatch = 256
    options.n_threads = options.n_threads_batch = 1
    options.flash_attn_type = llama.LLAMA_FLASH_ATTN_TYPE_DISABLED
    options.type_k = options.type_v = 0  # float32
    context = llama.llama_init_from_model(model, options)
    batch = llama.llama_batch_init(count, 0, 1)
    batch.n_tokens = count
    for i, token in enumerate(tokens):
        batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = int(token), i, 1, 1
        batch.seq_id[i][0] = 0
    assert llama.llama_decode(context, batch) == 0
    found = np.ctypeslib.as_array(llama.llama_get_logits(context), shape=(count, network.CONFIG["vocab_size"])).copy()
    llama.llama_batch_free(batch)
    llama.llama_free(context)
    llama.llama_model_free(model)
    return found


def rms(x):
    return float(np.sqrt(np.mean(np.square(x, dtype=np.float64))))


@pytest.mark.parametrize("type", gguf_file.FILE_TYPES)
def test_llama_cpp_reads_the_file_and_gives_the_logits_of_its_weights(tmp_path, tokens, type):
    """Within half as much again of what quantizing the activations, as its products do, changes by itself.

    In a file of float32, where nothing is quantized, to float32's own rounding.
    """
    pytest.importorskip("llama_cpp")
    gguf_file.write_gguf(tmp_path / "model.gguf", network.weights(), type)
    weights = gguf_file.dequantized(network.weights(), type)
    window = tokens[:1]
    plain = network.logits(window, network.plain(weights), weights)[0]
    rounded = network.logits(window, gguf_file.product(weights, type), weights)[0]
    found = llama_logits(tmp_path / "model.gguf", window[0])
    assert rms(found - plain) <= 1.5 * rms(rounded - plain) + 1e-5 * rms(plain)
