"""Truth values."""

import pytest

import minitorch as mt
from minitorch.errors import DtypeError


def test_an_operation_on_the_wrong_dtype_names_itself():
    with pytest.raises(DtypeError, match=r"bitwise_and: inputs of float32, float32"):
        mt.ones(2) & mt.ones(2)
