"""One layer's features in, its Gram matrix (N, N) out.

Features are shifted near their mean and multiplied by blocks of columns, so no shifted copy of a
layer is ever made. This file knows numpy, and treats torch tensors by the verbs that both share;
torch itself is imported only where they share none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from analysis.batch_plan import SMALLEST_BATCH

FloatArray = npt.NDArray[np.floating[Any]]

PRECISIONS = ("fp32", "bf16")
# Kornblith et al. 2019 try 0.2, 0.4 and 0.8 of the median distance, the last with the best score.
DEFAULT_BANDWIDTH = 0.8
# Features are shifted and multiplied this many columns at a time: a minibatch's block stays in the
# cache, and the shifted copy never grows with the layer.
BLOCK_COLUMNS = 4096
# The mean of so many images is near enough to that of all: the rest goes when Grams are centred.
SHIFT_IMAGES = 16
# From this many images on, PyTorch's products leave out what symmetry gives, by runs of a quarter
# of the rows: at 256 images a third of the product in fp32, a tenth in bf16.
TALL = 256
# Fewer images are multiplied in fp32: their bf16 roundings would not average out, nor save time.
LEAST_BF16 = 128
# A centred Gram this small beside the Gram itself holds nothing but rounding.
ROUNDING = 8 * float(np.finfo(np.float32).eps)
SMALLEST_PRODUCT = 1e-30  # under it, fp32 products have lost digits


def flattened(parts: Sequence[Any], *, keep_tensor: bool = False) -> list[Any]:
    """Give features as (N, D) matrices of fp32 or float64, without a copy where there is a way.

    The order of the D features does not matter here, so tensors that lie channels last stay so
    where all parts do.

    Args:
        parts: (N, ...) arrays or tensors of one layer, of any real type; N is the images' axis.
        keep_tensor: leave a tensor of the CPU a tensor.

    Returns:
        (N, D) each; half precision is widened to fp32, whole numbers to float64 (tensors: fp32);
        tensors are detached, those of the CPU become arrays.

    Raises:
        ValueError: no axis but the images'.
    """
    last = all(_lies_channels_last(part) for part in parts)
    return [_flattened(part, last, keep_tensor) for part in parts]


def _lies_channels_last(features: Any) -> bool:
    return (
        hasattr(features, "detach")
        and features.dim() == 4
        and bool(features.permute(0, 2, 3, 1).is_contiguous())
    )


def _flattened(features: Any, channels_last: bool, keep_tensor: bool) -> Any:
    """Give the features of one part as a matrix."""
    if hasattr(features, "detach"):
        features = features.detach()
        if channels_last:
            features = features.permute(0, 2, 3, 1)
        if str(features.dtype) != "torch.float64":
            features = features.float()
        if features.device.type == "cpu" and not keep_tensor:
            features = features.numpy()
    else:
        features = np.asarray(features)
        if features.dtype == np.float16:
            features = features.astype(np.float32)
        elif features.dtype not in (np.float32, np.float64):
            features = features.astype(np.float64)
    if len(features.shape) < 2:
        raise ValueError(
            "CKA needs features of the shape (N, ...), one row an image, but they have the shape "
            f"{tuple(features.shape)}: add an axis of features"
        )
    return features.reshape(features.shape[0], -1)


def spatial_pool(features: Any, size: int) -> Any:
    """Average (N, C, H, W) features over an s x s grid; features without H and W stay.

    Args:
        features: array or tensor, (N, C, H, W), or (N, ...) of another number of axes.
        size: s; 1 is global average pooling. At most H and W are taken.

    Returns:
        (N, C, s, s), of cells as PyTorch's adaptive average pooling cuts them; half precision is
        widened to fp32.

    Raises:
        ValueError: s is below 1.
    """
    if size < 1:
        raise ValueError(f"features are pooled to s x s cells with s >= 1, not {size}")
    if len(features.shape) != 4:
        return features
    if hasattr(features, "detach"):
        features = features.detach()
        if str(features.dtype) != "torch.float64":
            features = features.float()
    elif features.dtype == np.float16:
        features = features.astype(np.float32)
    height, width = features.shape[2:]
    rows, columns = _cells(height, min(size, height)), _cells(width, min(size, width))
    shape = (*features.shape[:2], len(rows), len(columns))
    is_tensor = hasattr(features, "new_empty")
    pooled = features.new_empty(shape) if is_tensor else np.empty(shape, features.dtype)
    for row, inside in enumerate(rows):
        for column, across in enumerate(columns):
            pooled[:, :, row, column] = features[:, :, inside, across].mean((2, 3))
    return pooled


def _cells(length: int, count: int) -> list[slice]:
    """Cut a length into cells that may overlap by one, as PyTorch does."""
    return [slice(i * length // count, -(-(i + 1) * length // count)) for i in range(count)]


# ------------------------------------------------------------------------------------- kernels


def gram(
    parts: Sequence[Any],
    *,
    kernel: str = "linear",
    bandwidth: float = DEFAULT_BANDWIDTH,
    precision: str = "fp32",
) -> FloatArray:
    """Compare all images of one layer with each other.

    Linear: K = X X^T of features X less one vector near their mean, so that products stay small
    where features lie far from 0; centring K takes away what the vector leaves. RBF:
    K_ij = exp(-|x_i - x_j|^2 / (2 s^2)) - 1 with s = bandwidth * the median distance; the 1 is lost
    in centring, and without it no digits are.

    Args:
        parts: features of the same layer, (N_1, ...), (N_2, ...) and so on, which together are
            the N images.
        kernel: "linear" or "rbf".
        bandwidth: fraction of the median distance of all N (N - 1) / 2 pairs; of those that differ
            where the median is 0.
        precision: "fp32", or "bf16" to multiply the shifted features of 128 images or more in bf16.

    Returns:
        (N, N), symmetric, fp32 or float64 (RBF: float64); all NaN where features or products are
        not finite, all zero where every image has the same.

    Raises:
        ValueError: unknown kernel or precision, a bandwidth of 0 or less, or features without an
            axis of features.

    Source: Kornblith, Norouzi, Lee and Hinton 2019 (Similarity of neural network representations
    revisited), section 3.
    """
    check_kernel(kernel, bandwidth, precision)
    parts = [part for part in parts if len(part)]
    if sum(len(part) for part in parts) < LEAST_BF16:
        precision = "fp32"
    matrices = flattened(parts, keep_tensor=precision == "bf16" or _has_threads(parts))
    if precision == "bf16":
        matrices = [_as_tensor(matrix) for matrix in matrices]
    with np.errstate(all="ignore"):
        matrix = _linear(matrices, precision)
        if not _holds_digits(matrix):
            matrix = _linear([_doubled(part) for part in matrices], "fp32")
        if not _is_finite(matrix):
            return np.full_like(matrix, np.nan)
        return KERNELS[kernel](matrix, bandwidth)


def check_kernel(kernel: str, bandwidth: float, precision: str) -> None:
    """Refuse a kernel, a bandwidth or a precision that is none."""
    if kernel not in KERNELS:
        raise ValueError(f"the kernel must be one of {', '.join(KERNELS)}, not {kernel!r}")
    if not 0 < bandwidth < float("inf"):
        raise ValueError(
            f"the bandwidth must be above 0, not {bandwidth}: give a fraction of the median "
            f"distance, {DEFAULT_BANDWIDTH} say"
        )
    if precision not in PRECISIONS:
        raise ValueError(f"the precision must be one of {', '.join(PRECISIONS)}, not {precision!r}")


def has_fast_bf16() -> bool:
    """Tell whether this processor multiplies bf16 itself; emulated, it is slower than fp32."""
    import torch

    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def _has_threads(parts: Sequence[Any]) -> bool:
    """Tell whether these are tensors that PyTorch multiplies with more than one thread.

    With one, numpy's product of a matrix with itself is twice as fast: it makes one half only.
    """
    if not all(hasattr(part, "detach") for part in parts):
        return False
    import torch

    return torch.get_num_threads() > 1


def _as_tensor(features: Any) -> Any:
    """Give an array as a tensor that shares its memory."""
    import torch

    return features if hasattr(features, "detach") else torch.from_numpy(features)


def _holds_digits(matrix: FloatArray) -> bool:
    """Tell whether fp32 products neither overflowed nor vanished."""
    diagonal = np.diagonal(matrix)
    return _is_finite(matrix) and bool(diagonal.max() > SMALLEST_PRODUCT)


def _is_finite(matrix: FloatArray) -> bool:
    """Tell whether all entries are; one sum needs no memory, and any that is not spoils it."""
    return bool(np.isfinite(matrix.sum(dtype=np.float64)))


def _doubled(features: Any) -> Any:
    return features.double() if hasattr(features, "detach") else features.astype(np.float64)


def _linear(parts: Sequence[Any], precision: str) -> FloatArray:
    """Multiply (N, D) features, given in parts and shifted near their mean, into (N, N)."""
    size, width = sum(len(part) for part in parts), parts[0].shape[1]
    columns = min(BLOCK_COLUMNS, width)
    total = _zeros_like(parts[0], (size, size), "fp32" if precision == "bf16" else None)
    # New memory for each block would cost more.
    buffer = _zeros_like(parts[0], (size, columns), "bf16" if precision == "bf16" else None)
    for start in range(0, width, columns):
        block = buffer[:, : min(columns, width - start)]
        row = 0
        shift = _near_mean(parts[0][:SHIFT_IMAGES, start : start + columns])
        for part in parts:
            _subtract(part[:, start : start + columns], shift, block[row : row + len(part)])
            row += len(part)
        _add_product(total, block)
    return np.asarray(total.cpu().numpy() if hasattr(total, "cpu") else total)


def _near_mean(features: Any) -> Any:
    """Give the mean of some rows: exactly their value in columns where they agree."""
    return features[0] + (features - features[0]).mean(0)


def _subtract(features: Any, shift: Any, out: Any) -> None:
    """Write what is left of the features without the shift, rounded as `out` is."""
    if hasattr(features, "detach"):
        import torch

        torch.sub(features, shift, out=out)
    else:
        np.subtract(features, shift, out=out)


def _zeros_like(features: Any, shape: tuple[int, int], precision: str | None) -> Any:
    """Make zeros where the features lie, of their type or a tensor's of this precision."""
    if not hasattr(features, "new_zeros"):
        return np.zeros(shape, features.dtype)
    if precision is None:
        return features.new_zeros(shape)
    import torch

    return features.new_zeros(shape, dtype=torch.bfloat16 if precision == "bf16" else torch.float32)


def _add_product(total: Any, block: Any) -> None:
    """Add block @ block.T to a total; of many rows, what symmetry gives is copied.

    PyTorch rounds a bf16 product to bf16; the sum over blocks is kept in fp32.
    """
    size = len(block)
    if size < TALL or not hasattr(block, "detach"):  # numpy sees the symmetry itself
        total += block @ block.T
        return
    rows = size // 4
    for start in range(0, size, rows):
        stop = min(start + rows, size)
        total[start:, start:stop] += block[start:] @ block[start:stop].T
        total[start:stop, stop:] = total[stop:, start:stop].T


def _rbf(matrix: FloatArray, bandwidth: float) -> FloatArray:
    """Turn inner products into exp(-squared distance / (2 s^2)) - 1, in float64.

    In fp32, what tells images apart would drown beside the 1 of a narrow kernel.
    """
    norms = np.diagonal(matrix).astype(np.float64)
    squares = norms[:, None] + norms[None, :] - 2.0 * matrix
    np.maximum(squares, 0, out=squares)
    np.fill_diagonal(squares, 0)
    distances = squares.reshape(-1)[triangle(len(matrix))]
    median = np.median(distances)
    if not median > 0:
        positive = distances[distances > 0]
        median = np.median(positive) if len(positive) else 1.0
    squares /= -2 * bandwidth**2 * median
    return np.expm1(squares, out=squares)


KERNELS: dict[str, Callable[[FloatArray, float], FloatArray]] = {
    "linear": lambda matrix, _bandwidth: matrix,
    "rbf": _rbf,
}


# ------------------------------------------------------------------------------------- centring


def centred_gram(
    features: Any,
    *,
    kernel: str = "linear",
    bandwidth: float = DEFAULT_BANDWIDTH,
    precision: str = "fp32",
) -> FloatArray:
    """Reduce one layer's features of one batch to its U-centred Gram matrix.

    Of the Gram K, off the diagonal,
    U_ij = K_ij - sum_l K_il / (N - 2) - sum_l K_lj / (N - 2) + sum_kl K_kl / ((N - 1) (N - 2)),
    where all sums leave out the diagonal, and U_ii = 0. <U(K), U(L)> / (N (N - 3)) is the unbiased
    HSIC_1.

    Args:
        features: (N, ...) array or tensor of any real type, N >= 4; flattened to (N, D). Half
            precision is widened to fp32; float64 stays.
        kernel: "linear" or "rbf".
        bandwidth: of the RBF kernel, as a fraction of the batch's median distance.
        precision: "fp32", or "bf16": shifted features are multiplied in bf16, which moves CKA by
            less than 5e-5 and takes half the time where the processor has it.

    Returns:
        (N, N) in the precision of the product, fp32 or float64 (RBF: float64). Three marks tell of
        a layer without a value: all zero where the features are the same for every image, all NaN
        where they or their products are not finite, all infinite off the diagonal where all images
        are equally far apart (the true U is then 0).

    Raises:
        ValueError: fewer than 4 images, no axis but the images', or an unknown option.

    Source: Szekely and Rizzo 2014 (Partial distance correlation), equation 2.3; Song et al. 2012
    (Feature selection via dependence maximization), equation 5.
    """
    shape = np.shape(features) if not hasattr(features, "shape") else tuple(features.shape)
    if len(shape) < 2 or shape[0] < SMALLEST_BATCH:
        raise ValueError(
            f"CKA needs features of the shape (N, ...) with N >= {SMALLEST_BATCH} images a batch, "
            f"but they have the shape {tuple(shape)}: take larger batches"
        )
    matrix = gram([features], kernel=kernel, bandwidth=bandwidth, precision=precision)
    if not np.isfinite(matrix).all():
        return matrix
    centred = u_centred(matrix.astype(np.float64))
    if not matrix.any():
        return np.zeros_like(matrix)
    if np.abs(centred).max() <= ROUNDING * np.abs(matrix).max():
        centred = np.full_like(matrix, np.inf)
        np.fill_diagonal(centred, 0)
    return centred.astype(matrix.dtype)


def u_centred(matrix: FloatArray) -> FloatArray:
    """U-centre a symmetric (N, N) Gram in place; its diagonal does not matter."""
    size = len(matrix)
    np.fill_diagonal(matrix, 0)
    row_sums = matrix.sum(axis=1)
    shift = row_sums / (size - 2) - row_sums.sum() / (2 * (size - 1) * (size - 2))
    matrix -= shift[:, None]
    matrix -= shift[None, :]
    np.fill_diagonal(matrix, 0)
    return matrix


@lru_cache(maxsize=8)
def triangle(size: int) -> npt.NDArray[np.int64]:
    """Give the flat indices of the pairs i < j of a (size, size) matrix, in row order."""
    rows, columns = np.triu_indices(size, 1)
    indices: npt.NDArray[np.int64] = rows * size + columns
    indices.flags.writeable = False
    return indices


def packed(matrix: FloatArray) -> FloatArray:
    """Give the entries above the diagonal of a symmetric (N, N) matrix: (N (N - 1) / 2,)."""
    if matrix.ndim == 1:
        return matrix
    return matrix.reshape(-1)[triangle(len(matrix))]


def unpacked_size(entries: int) -> int:
    """Give the N whose (N, N) matrix has this many entries above the diagonal.

    Raises:
        ValueError: no N has.
    """
    size = (1 + math.isqrt(1 + 8 * entries)) // 2
    if size * (size - 1) // 2 != entries:
        raise ValueError(f"{entries} entries are not the upper triangle of a square matrix")
    return size
