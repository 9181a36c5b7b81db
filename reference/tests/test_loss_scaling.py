"""The loss scaler against torch.amp.GradScaler step by step, and what scaling rescues in float16."""

import numpy as np
import pytest

from lowbit_cts.reference.loss_scaling import Scaler, State, scaled, scaled_training, trace, unscaled

RNG = np.random.default_rng(21)
SCALERS = [
    Scaler(interval=3),
    Scaler(initial=3.0, growth=1.1, backoff=0.3, interval=2),
    Scaler(initial=2.0**126, interval=2),  # grows no further than float32
    Scaler(initial=2.0**-146, interval=5),  # backs off to 0
    Scaler(initial=0.1, growth=1.7, backoff=0.9, interval=1),
]


def test_the_defaults_are_torch_s():
    torch = pytest.importorskip("torch")
    scaler = torch.amp.GradScaler("cpu")
    assert Scaler() == Scaler(
        scaler.get_scale(), scaler.get_growth_factor(), scaler.get_backoff_factor(), scaler.get_growth_interval()
    )


def run_torch(scaler, gradients, optimizers=1):
    """Return scales, skipped steps, states and gradients of a GradScaler, and parameters of plain descent."""
    import torch

    amp = torch.amp.GradScaler(
        "cpu", init_scale=scaler.initial, growth_factor=scaler.growth, backoff_factor=scaler.backoff,
        growth_interval=scaler.interval,
    )  # fmt: skip
    parameters = [torch.nn.Parameter(torch.zeros(4)) for _ in range(optimizers)]
    descents = [torch.optim.SGD([parameter], lr=1.0) for parameter in parameters]
    found = []
    for step in gradients:
        amp.scale(torch.zeros(()))
        scale = amp.get_scale()
        before = [parameter.detach().clone() for parameter in parameters]
        for parameter, gradient in zip(parameters, step, strict=True):
            parameter.grad = torch.tensor(np.float32(gradient(scale)))
        for descent in descents:
            amp.step(descent)
        seen = [parameter.grad.numpy().copy() for parameter in parameters]
        moved = [not torch.equal(a, b) for a, b in zip(before, parameters, strict=True)]
        amp.update()
        found.append((scale, moved, State(amp.get_scale(), amp._get_growth_tracker()), seen))
    return found


@pytest.mark.parametrize("scaler", SCALERS, ids=range(len(SCALERS)))
@pytest.mark.parametrize("share", [0.0, 0.2, 0.6, 1.0])
def test_the_trace_is_grad_scaler_s(scaler, share):
    pytest.importorskip("torch")
    overflowed = [[bool(flag) for flag in row] for row in RNG.random((30, 2)) < share]
    bad = [np.inf, -np.inf, np.nan]
    gradients = [
        [lambda _, flag=flag, k=k: np.where(np.arange(4) == 1, bad[k % 3] if flag else 1.0, 1.0) for flag in flags]
        for k, flags in enumerate(overflowed)
    ]
    theirs = run_torch(scaler, gradients, optimizers=2)
    ours = trace(overflowed, scaler)
    for step, (scale, moved, state, _) in zip(ours, theirs, strict=True):
        assert (step.scale, step.after) == (scale, state)
        if scale > 2.0**-100 and scale < 2.0**100:  # elsewhere the unscaled gradients are 0 or infinite
            assert step.skipped == tuple(not flag for flag in moved)


def test_a_trace_by_hand():
    found = trace([True, False, False, True, False, False, False, False], Scaler(initial=16.0, interval=2))
    assert [step.scale for step in found] == [16, 8, 8, 16, 8, 8, 16, 16]
    assert [step.skipped for step in found] == [(flag,) for flag in (True, False, False, True, *[False] * 4)]
    assert [step.after.clean for step in found] == [0, 1, 0, 0, 1, 0, 1, 0]
    assert found[-1].after.scale == 32


def test_any_optimizer_backs_off_for_all_but_leaves_out_its_own_step_alone():
    found = trace([(False, True), (False, False)], Scaler(initial=4.0))
    assert found[0].skipped == (False, True)
    assert found[1].scale == 2


def test_it_grows_after_the_interval_and_not_before():
    found = trace([False] * 4001)
    grown = [number for number, step in enumerate(found) if step.after.scale != step.scale]
    assert grown == [1999, 3999]
    assert found[-1].after == State(2.0**18, 1)


def test_zero_is_for_ever():
    found = trace([True] * 5 + [False] * 20, Scaler(initial=2.0**-146, interval=2))
    assert [step.after.scale for step in found[:5]] == [2.0**-147, 2.0**-148, 2.0**-149, 0.0, 0.0]
    assert found[-1].after.scale == 0
    assert unscaled(scaled(np.array([1.0]), 0.0), 0.0)[1] is False
    assert np.isnan(unscaled(scaled(np.array([1.0]), 0.0), 0.0)[0]).all()


# float16 --------------------------------------------------------------------------------------------------------------


def test_scaling_rescues_what_float16_loses():
    tiny = np.array([2.0**-25, -(2.0**-25), 2.0**-40, 3 * 2.0**-27])
    assert not scaled(tiny, 1.0)[:3].any()  # 2^-25 is half of the least float16: a tie, to zero
    kept, overflowed = unscaled(scaled(tiny, 2.0**16), 2.0**16)
    assert not overflowed
    np.testing.assert_array_equal(kept, tiny)
    assert np.float16(2.0**-25) == 0
    assert np.float16(2.0**-25 * 2.0**16) == 2.0**-9


@pytest.mark.parametrize("exponent", range(-6, 14))
def test_powers_of_two_change_no_bit_of_normal_gradients(exponent):
    gradients = np.float16(RNG.choice([-1, 1], 50) * RNG.uniform(2.0**-8, 2.0, 50)).astype(float)
    kept, overflowed = unscaled(scaled(gradients, 2.0**exponent), 2.0**exponent)
    assert not overflowed
    np.testing.assert_array_equal(kept, gradients)


@pytest.mark.parametrize("scaler", [Scaler(), Scaler(initial=3e4, growth=1.9, backoff=0.3, interval=4)])
def test_training_is_torch_s(scaler):
    """Gradients of float16 that overflow until the scale has come down, and at an outlier."""
    pytest.importorskip("torch")
    real = [RNG.standard_normal(4) * size for size in (9.0, 9.0, 9.0, 1e-3, 1e-7, 1e-7, 500.0, 0.1, 0.1, 0.1, 0.1, 0.1)]
    theirs = run_torch(scaler, [[lambda scale, g=g: scaled(g, scale)] for g in real])
    ours = scaled_training(real, scaler)
    assert any(step.gradients is None for step in ours)
    assert any(step.gradients is not None for step in ours)
    for step, (scale, moved, state, seen) in zip(ours, theirs, strict=True):
        assert (step.scale, step.after) == (scale, state)
        assert (step.gradients is not None) == moved[0]
        if step.gradients is not None:
            np.testing.assert_array_equal(step.gradients, seen[0])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e9])
def test_a_step_with_one_bad_gradient_is_left_out(bad):
    pytest.importorskip("torch")
    real = [np.ones(4), np.array([1.0, bad, 1.0, 1.0]), np.ones(4)]
    ours = scaled_training(real, Scaler(initial=8.0))
    theirs = run_torch(Scaler(initial=8.0), [[lambda scale, g=g: scaled(g, scale)] for g in real])
    assert [step.gradients is None for step in ours] == [not moved[0] for _, moved, _, _ in theirs]
    assert [step.gradients is None for step in ours] == [False, True, False]
    assert [step.scale for step in ours] == [scale for scale, *_ in theirs] == [8, 8, 4]


def test_what_overflows_only_when_unscaled_is_not_noticed():
    found, overflowed = unscaled(np.array([2.0**127]), 0.25)
    assert not overflowed
    assert np.isinf(found).all()


@pytest.mark.parametrize(
    ("call", "argument", "rule"),
    [
        (lambda: Scaler(initial=0.0), "initial", "above 0"),
        (lambda: Scaler(initial=-2.0), "initial", "above 0"),
        (lambda: Scaler(initial=1e39), "initial", "finite in float32"),
        (lambda: Scaler(initial=1e-50), "initial", "above 0"),
        (lambda: Scaler(initial=float("nan")), "initial", "above 0"),
        (lambda: Scaler(growth=1.0), "growth", "above 1"),
        (lambda: Scaler(backoff=1.0), "backoff", "between 0 and 1"),
        (lambda: Scaler(backoff=0.0), "backoff", "between 0 and 1"),
        (lambda: Scaler(interval=0), "interval", "at least 1"),
        (lambda: trace([()]), r"overflowed\[0\]", "an optimizer or more"),
        (lambda: scaled_training([np.ones(2)], format="int8"), "format", "is not a float format"),
    ],
)
def test_bad_input_is_one_clear_error(call, argument, rule):
    with pytest.raises(ValueError, match=f"^{argument}: .*{rule}"):
        call()
