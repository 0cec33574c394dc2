"""Groups of ranks on one device, through tensors: values, bits, versions, errors."""

import numpy as np
import pytest

import minitorch as mt
from minitorch.distributed import device_group, peer_group
from minitorch.errors import ConfigError, DeviceError, DtypeError, GraphError, ShapeError
from minitorch.kernels.cuda.extension import checked, is_available


@pytest.fixture(params=["cpu", "simt"])
def device(request):
    if not is_available(request.param) and request.param == "simt":
        pytest.skip("minitorch._simt was not built: no C++20 compiler at installation")
    return request.param


def tensors(device, count, *shape, dtype=mt.float32):
    generator = mt.Generator(0)
    return [mt.randn(*shape, generator=generator).to(dtype).to(device) for _ in range(count)]


@pytest.mark.parametrize("op", ["sum", "avg"])
@pytest.mark.parametrize("dtype", [mt.float32, mt.bfloat16], ids=str)
def test_all_reduce_in_place(device, dtype, op):
    group = device_group(3, device=device)
    assert (group.size(), group.rank()) == (3, 0)
    given = tensors(device, 3, 4, 5, dtype=dtype)
    expected = sum(x.float().numpy() for x in given) / (3 if op == "avg" else 1)
    versions = [x.version for x in given]
    group.all_reduce(given, op)
    assert [x.version for x in given] == [version + 1 for version in versions]
    assert len({x.cpu().numpy().tobytes() for x in given}) == 1
    np.testing.assert_allclose(given[0].float().numpy(), expected, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("algorithm", ["one-shot", "two-shot", "ring"])
def test_the_cpu_and_the_emulator_agree_to_the_bit(algorithm):
    if not is_available("simt"):
        pytest.skip("minitorch._simt was not built: no C++20 compiler at installation")
    results = []
    for device in ("cpu", "simt"):
        given = tensors(device, 4, 33)
        with checked("random", 3):
            device_group(4, device=device).all_reduce(given, algorithm=algorithm)
        results.append(given[2].cpu().numpy())
    if algorithm == "ring":
        np.testing.assert_allclose(*results, atol=1e-6)
    else:
        np.testing.assert_array_equal(*results)


def test_parts_and_wholes(device):
    group = device_group(2, device=device, space_bytes=16384)
    given = tensors(device, 2, 4, 3)
    total = sum(x.numpy() for x in given)
    parts = group.reduce_scatter(given)
    wholes = group.all_gather(parts)
    for rank in range(2):
        np.testing.assert_array_equal(parts[rank].numpy(), total[2 * rank : 2 * rank + 2])
        np.testing.assert_array_equal(wholes[rank].numpy(), total)
        assert wholes[rank].device == device
    group.broadcast(given, src=1)
    np.testing.assert_array_equal(given[0].numpy(), given[1].numpy())
    counts = [mt.tensor(rank).to(device) for rank in range(2)]
    assert [x.tolist() for x in group.all_gather(counts)] == [[0, 1]] * 2


def test_gradients_of_shards_of_a_batch(device):
    """Data parallel: the mean of the ranks' gradients is the whole batch's."""
    x, w = tensors(device, 1, 6, 4)[0], tensors(device, 1, 4, 2)[0]
    copies = [w.clone().requires_grad_() for _ in range(3)]
    for part, copy in zip(x.split(2), copies, strict=True):
        ((part @ copy).tanh() ** 2).mean().backward()
    device_group(3, device=device).all_reduce([copy.grad for copy in copies], "avg")
    whole = w.clone().requires_grad_()
    ((x @ whole).tanh() ** 2).mean().backward()
    for copy in copies:
        np.testing.assert_allclose(copy.grad.numpy(), whole.grad.numpy(), atol=1e-6)


def test_errors(device):
    group = device_group(2, device=device)
    a, b = tensors(device, 2, 3, 2)
    with pytest.raises(ShapeError, match="all_reduce: expected 2 tensors"):
        group.all_reduce([a])
    with pytest.raises(ShapeError, match=r"one shape; got \(3, 2\) and \(2,\)"):
        group.all_gather([a, b[0]])
    with pytest.raises(ShapeError, match=r"2 ranks can share; got shape \(3, 2\)"):
        group.reduce_scatter([a, b])
    with pytest.raises(DtypeError, match="got float32 and float64"):
        group.broadcast([a, b.double()])
    with pytest.raises(DtypeError, match="one floating dtype"):
        group.all_reduce([a.long(), b.long()])
    with pytest.raises(ConfigError, match="the same memory"):
        group.all_reduce([a, a.view(3, 2)])
    with pytest.raises(ConfigError, match="an op among sum, avg; got 'max'"):
        group.all_reduce([a, b], "max")
    with pytest.raises(ConfigError, match=r"src in \[0, 2\); got 2"):
        group.broadcast([a, b], src=2)
    with pytest.raises(GraphError, match="gradients do not go through it"):
        group.all_reduce([a.requires_grad_(), b])
    with mt.no_grad():
        group.all_reduce([a, b])
    other = "simt" if device == "cpu" else "cpu"
    with pytest.raises(DeviceError, match=f"expected tensors on '{device}'"):
        group.all_reduce([b.to(other), a.detach().to(other)])


def test_groups_that_cannot_be():
    with pytest.raises(ConfigError, match="expected 1 to 8 ranks; got 9"):
        device_group(9, device="simt")
    with pytest.raises(ConfigError, match="got rank 2 of 2"):
        peer_group(2, 2, lambda data: [data, data])
