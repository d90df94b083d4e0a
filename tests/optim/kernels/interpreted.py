"""Run under Triton's interpreter: the CUDA kernel against its pipeline, on small tiles."""

from __future__ import annotations

import warnings

import torch
from optim.kernels.twins import assert_close, both, gradients, start

from acmsao_cli.optim import build_pipeline
from acmsao_cli.optim.kernels import cuda
from acmsao_cli.optim.kernels.parts import recognise
from acmsao_cli.optim.tracing import StorageTracer

CASES = [
    ("adamw", {"storage": "factored"}, torch.bfloat16),
    ("adamw", {"storage": "factored", "ratio": "atan2", "rounding": "nearest"}, torch.bfloat16),
    ("adamw", {"storage": {"default": "factored", "momentum": "bf16"}}, torch.float32),
    ("adamw", {"storage": "bf16", "betas": (0.0, 0.99)}, torch.bfloat16),
    ("adamw", {"storage": "fp32"}, torch.float32),
    ("lion", {"storage": "factored"}, torch.bfloat16),
    ("lion", {"storage": "bf16"}, torch.float32),
]
ROWS_AND_A_REST, VECTORS, UNEVEN = (1, 18, 40), (2, 1, 41), (1, 5, 7)
PRIME_VECTOR, LARGE_UNEVEN = (1, 1, 65_537), (1, 400_001, 9)
ATOL = 1e-5  # nothing is contracted here: an average that cancels keeps its terms' errors


def main() -> None:
    torch.set_num_threads(1)
    cuda.BLOCK_ROWS, cuda.TILE_COLS = 16, 32  # several of each in a small parameter
    warnings.simplefilter("error")
    for rule, options, dtype in CASES:
        pipeline = build_pipeline(rule, **options)
        kernel = cuda.kernel(recognise(pipeline, dtype))
        for shape in (ROWS_AND_A_REST, VECTORS, UNEVEN):
            grads = gradients(shape, dtype, 2)
            grads[1][:, 0] = 0
            runs = both(pipeline, shape, dtype, grads, kernel, maximize=rule == "lion")
            assert_close(*runs, ATOL)
    a_long_vector_may_be_a_single_row()
    what_has_no_whole_bytes_is_stepped_in_blocks()


def a_long_vector_may_be_a_single_row() -> None:
    cuda.TILE_COLS = 4096
    pipeline = build_pipeline("adamw", storage="factored")
    kernel = cuda.kernel(recognise(pipeline, torch.bfloat16))
    assert_close(*both(pipeline, PRIME_VECTOR, torch.bfloat16, kernel=kernel), ATOL)


def what_has_no_whole_bytes_is_stepped_in_blocks() -> None:
    pipeline = build_pipeline("adamw", storage="factored")
    kernel = cuda.kernel(recognise(pipeline, torch.bfloat16))
    run = start(pipeline, LARGE_UNEVEN, torch.bfloat16)
    [grad] = gradients(LARGE_UNEVEN, torch.bfloat16, 1)
    with StorageTracer() as tracer:
        run.step(kernel, grad)
    assert tracer.peak_bytes < 12 * grad.numel()  # at once it takes 40 times the elements


if __name__ == "__main__":
    main()
