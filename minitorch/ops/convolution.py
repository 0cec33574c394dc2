r"""Convolution and pooling, as windows and a matrix product.

`unfold` sees every window of the input without a copy (im2col); the kernel is then a matrix, and
its product with the windows the convolution. Nothing here has a derivative of its own: the
transpose of `unfold` adds overlapping windows, which makes the gradient col2im.
"""

from collections.abc import Sequence

from minitorch.errors import ShapeError
from minitorch.ops.joining import pad
from minitorch.tensor import Tensor

Size = int | Sequence[int]


def _per_dim(operation: str, name: str, value: Size, count: int) -> tuple[int, ...]:
    values = (value,) * count if isinstance(value, int) else tuple(value)
    least = 0 if name == "padding" else 1
    if len(values) != count or any(v < least for v in values):
        raise ShapeError(
            f"{operation}: expected {name} as {count} whole numbers of at least {least}; got "
            f"{value!r}"
        )
    return values


def _pad_around(x: Tensor, margins: Sequence[int], value: float) -> Tensor:
    """As much padding before as behind, in each of the last dimensions."""
    if not any(margins):
        return x
    return pad(x, [margin for margin in reversed(margins) for _ in range(2)], value)


def _windows(
    x: Tensor, size: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> Tensor:
    """(batch, channels, *positions, *size): a view of every window of the last dimensions."""
    for i, (length, step, spread) in enumerate(zip(size, stride, dilation, strict=True)):
        x = x.unfold(2 + i, spread * (length - 1) + 1, step)
    if any(spread > 1 for spread in dilation):
        x = x[(..., *(slice(None, None, spread) for spread in dilation))]
    return x


def _convolve(
    operation: str,
    dims: int,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Size,
    padding: Size,
    dilation: Size,
    groups: int,
) -> Tensor:
    if (
        not x.ndim == weight.ndim == dims + 2
        or x.shape[1] != weight.shape[1] * groups
        or weight.shape[0] % groups
        or (bias is not None and bias.shape != weight.shape[:1])
    ):
        raise ShapeError(
            f"{operation}: expected input (batch, channels, ...), weight (out_channels, channels / "
            f"groups, ...) and bias (out_channels,) with groups={groups}; got {x.shape}, "
            f"{weight.shape} and {None if bias is None else bias.shape}"
        )
    steps = _per_dim(operation, "stride", stride, dims)
    margins = _per_dim(operation, "padding", padding, dims)
    spreads = _per_dim(operation, "dilation", dilation, dims)
    size = weight.shape[2:]
    padded = _pad_around(x, margins, 0.0)
    for length, kernel, spread in zip(padded.shape[2:], size, spreads, strict=True):
        if spread * (kernel - 1) + 1 > length:
            raise ShapeError(
                f"{operation}: the kernel {size}, dilated by {spreads}, is larger than the padded "
                f"input {padded.shape[2:]}"
            )
    windows = _windows(padded, size, steps, spreads)
    batch, positions = x.shape[0], windows.shape[2 : 2 + dims]
    out_channels = weight.shape[0]
    # (groups, batch * positions, channels * size) @ (groups, channels * size, out_channels)
    channels_last = (0, *range(2, 2 + dims), 1, *range(2 + dims, 2 + 2 * dims))
    columns = windows.permute(channels_last).reshape(
        (-1, groups, weight[0].numel() if out_channels else 0)
    )
    kernels = weight.reshape((groups, out_channels // groups, -1)).mT
    rows = (columns.transpose(0, 1) @ kernels).transpose(0, 1).reshape((batch, *positions, -1))
    out = rows.movedim(-1, 1)
    return out if bias is None else out + bias.reshape((-1, *(1,) * dims))


def conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Size = 0,
    dilation: Size = 1,
    groups: int = 1,
) -> Tensor:
    """Cross-correlation along one dimension, as torch.nn.functional.conv1d.

    x: (batch, channels, time); weight: (out_channels, channels / groups, size); bias:
    (out_channels,). Returns (batch, out_channels, positions).
    """
    return _convolve("conv1d", 1, x, weight, bias, stride, padding, dilation, groups)


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Size = 0,
    dilation: Size = 1,
    groups: int = 1,
) -> Tensor:
    """Cross-correlation of images, as torch.nn.functional.conv2d.

    x: (batch, channels, height, width); weight: (out_channels, channels / groups, kernel_height,
    kernel_width); bias: (out_channels,). Returns (batch, out_channels, rows, columns).
    """
    return _convolve("conv2d", 2, x, weight, bias, stride, padding, dilation, groups)


def max_pool2d(
    x: Tensor, kernel_size: Size, stride: Size | None = None, padding: Size = 0
) -> Tensor:
    """The largest of each window; x: (batch, channels, height, width). Ties share the gradient."""
    return _pool("max_pool2d", x, kernel_size, stride, padding, float("-inf")).amax((-2, -1))


def avg_pool2d(
    x: Tensor, kernel_size: Size, stride: Size | None = None, padding: Size = 0
) -> Tensor:
    """The mean of each window, padding zeros included; x: (batch, channels, height, width)."""
    return _pool("avg_pool2d", x, kernel_size, stride, padding, 0.0).mean((-2, -1))


def _pool(
    operation: str, x: Tensor, kernel_size: Size, stride: Size | None, padding: Size, fill: float
) -> Tensor:
    size = _per_dim(operation, "kernel_size", kernel_size, 2)
    steps = _per_dim(operation, "stride", kernel_size if stride is None else stride, 2)
    margins = _per_dim(operation, "padding", padding, 2)
    if x.ndim != 4 or any(
        n + 2 * m < k for n, m, k in zip(x.shape[2:], margins, size, strict=True)
    ):
        raise ShapeError(
            f"{operation}: expected (batch, channels, height, width) no smaller than the window "
            f"{size}; got {x.shape}"
        )
    return _windows(_pad_around(x, margins, fill), size, steps, (1, 1))
