"""Convolution, pooling and batch norm pixel by pixel in NumPy, padded as "SAME" means."""

import numpy as np


def windows(x, size, stride, fill):
    """Yields (row, column, window [b, h, w, c], which of its pixels are inside the image [h, w])."""
    pads = [max((-(-n // s) - 1) * s + k - n, 0) for n, k, s in zip(x.shape[1:3], size, stride, strict=True)]
    low = [pad // 2 for pad in pads]
    padded = np.pad(
        x, ((0, 0), *((lo, pad - lo) for lo, pad in zip(low, pads, strict=True)), (0, 0)), constant_values=fill
    )
    inside = np.zeros(padded.shape[1:3], bool)
    inside[low[0] : low[0] + x.shape[1], low[1] : low[1] + x.shape[2]] = True
    for i in range(-(-x.shape[1] // stride[0])):
        for j in range(-(-x.shape[2] // stride[1])):
            at = slice(i * stride[0], i * stride[0] + size[0]), slice(j * stride[1], j * stride[1] + size[1])
            yield i, j, padded[:, at[0], at[1]], inside[at]


def pooled(x, size, stride, reduce, fill, channels=None):
    shape = x.shape[0], -(-x.shape[1] // stride[0]), -(-x.shape[2] // stride[1]), channels or x.shape[-1]
    out = np.zeros(shape)
    for i, j, window, inside in windows(x, size, stride, fill):
        out[:, i, j] = reduce(window, inside)
    return out


def conv(x, kernel, stride=(1, 1)):
    def product(window, _):
        return np.einsum("bhwc,hwcd->bd", window, kernel)

    return pooled(x, kernel.shape[:2], stride, product, 0.0, kernel.shape[3])


def dilated(kernel, by):
    """The kernel with zeros between its rows and columns, so that it reads pixels that far apart."""
    sides = [(n - 1) * by + 1 for n in kernel.shape[:2]]
    wide = np.zeros((*sides, *kernel.shape[2:]))
    wide[::by, ::by] = kernel
    return wide


def depthwise(x, kernel, stride=(1, 1)):
    return pooled(x, kernel.shape[:2], stride, lambda w, _: np.einsum("bhwc,hwc->bc", w, kernel[:, :, 0]), 0.0)


def max_pool(x, size, stride):
    return pooled(x, (size, size), (stride, stride), lambda w, _: w.max((1, 2)), -np.inf)


def avg_pool(x, size, stride):
    """Of the pixels that are inside the image."""
    return pooled(x, (size, size), (stride, stride), lambda w, inside: w.sum((1, 2)) / inside.sum(), 0.0)


def batch_norm(p, x, eps=1e-3):
    mean = x.mean((0, 1, 2))
    return (x - mean) / np.sqrt(((x - mean) ** 2).mean((0, 1, 2)) + eps) * p["scale"] + p["bias"]


def relu(x):
    return np.maximum(x, 0.0)
