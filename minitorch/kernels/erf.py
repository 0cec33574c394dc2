"""erf and erfc on whole arrays, which NumPy lacks: Cody's rational minimax approximations.

With y = |x| and R a ratio of two polynomials, the coefficients of which are listed below:

    y <= 0.46875       erf(x)  = x R(y²)
    0.46875 < y <= 4   erfc(y) = exp(-y²) R(y)
    4 < y              erfc(y) = exp(-y²) / y (1/sqrt(pi) - R(1/y²) / y²)

and the rest by erf(x) = 1 - erfc(x), erfc(-x) = 2 - erfc(x). Computed in float64, where erf is
within a few units in the last place, and erfc too, down to where it underflows at x = 26.5.

Source: W. J. Cody, Rational Chebyshev approximations for the error function, Mathematics of
Computation 23 (1969), 631-637; the coefficients are those for 18 digits.
"""

import numpy as np

_NEAR_NUMERATOR = (
    1.85777706184603153e-1,
    3.16112374387056560e00,
    1.13864154151050156e02,
    3.77485237685302021e02,
    3.20937758913846947e03,
)
_NEAR_DENOMINATOR = (
    1.0,
    2.36012909523441209e01,
    2.44024637934444173e02,
    1.28261652607737228e03,
    2.84423683343917062e03,
)
_MIDDLE_NUMERATOR = (
    2.15311535474403846e-8,
    5.64188496988670089e-1,
    8.88314979438837594e00,
    6.61191906371416295e01,
    2.98635138197400131e02,
    8.81952221241769090e02,
    1.71204761263407058e03,
    2.05107837782607147e03,
    1.23033935479799725e03,
)
_MIDDLE_DENOMINATOR = (
    1.0,
    1.57449261107098347e01,
    1.17693950891312499e02,
    5.37181101862009858e02,
    1.62138957456669019e03,
    3.29079923573345963e03,
    4.36261909014324716e03,
    3.43936767414372164e03,
    1.23033935480374942e03,
)
_FAR_NUMERATOR = (
    1.63153871373020978e-2,
    3.05326634961232344e-1,
    3.60344899949804439e-1,
    1.25781726111229246e-1,
    1.60837851487422766e-2,
    6.58749161529837803e-4,
)
_FAR_DENOMINATOR = (
    1.0,
    2.56852019228982242e00,
    1.87295284992346725e00,
    5.27905102951428412e-1,
    6.05183413124413191e-2,
    2.33520497626869185e-3,
)


def erf(x: np.ndarray) -> np.ndarray:
    """2/sqrt(pi) ∫₀ˣ exp(-t²) dt, elementwise; the shape and dtype of x (float32 or float64)."""
    wide = np.asarray(x, np.float64)
    magnitude = np.abs(wide)
    near = magnitude <= 0.46875
    out = np.empty_like(wide)
    out[near] = _erf_near(wide[near])
    out[~near] = np.copysign(1.0 - _erfc_far(magnitude[~near]), wide[~near])
    return out.astype(x.dtype, copy=False)


def erfc(x: np.ndarray) -> np.ndarray:
    """1 - erf(x), elementwise and without cancellation for large x; the shape and dtype of x."""
    wide = np.asarray(x, np.float64)
    magnitude = np.abs(wide)
    near = magnitude <= 0.46875
    out = np.empty_like(wide)
    out[near] = 1.0 - _erf_near(wide[near])
    tail = _erfc_far(magnitude[~near])
    out[~near] = np.where(wide[~near] > 0, tail, 2.0 - tail)
    return out.astype(x.dtype, copy=False)


def _erf_near(x):
    square = x * x
    return x * _ratio(_NEAR_NUMERATOR, _NEAR_DENOMINATOR, square)


def _erfc_far(y):
    """erfc(y) for y > 0.46875, and NaN for NaN."""
    out = np.empty_like(y)
    far = y > 4.0
    middle = y[~far]
    out[~far] = _exp_minus_square(middle) * _ratio(_MIDDLE_NUMERATOR, _MIDDLE_DENOMINATOR, middle)
    distant = np.minimum(y[far], 30.0)  # where exp(-y²) is zero, and 1/y² not yet
    inverse_square = 1.0 / (distant * distant)
    series = inverse_square * _ratio(_FAR_NUMERATOR, _FAR_DENOMINATOR, inverse_square)
    out[far] = _exp_minus_square(distant) / distant * (1.0 / np.sqrt(np.pi) - series)
    return out


def _exp_minus_square(y):
    """exp(-y²), with y² split so that its rounding error, which exp would magnify, is kept."""
    head = np.trunc(y * 16.0) / 16.0
    return np.exp(-head * head) * np.exp(-(y - head) * (y + head))


def _ratio(numerator, denominator, x):
    """The quotient of two polynomials, coefficients from the highest power down (Horner)."""
    top = np.full_like(x, numerator[0])
    for coefficient in numerator[1:]:
        top *= x
        top += coefficient
    bottom = np.full_like(x, denominator[0])
    for coefficient in denominator[1:]:
        bottom *= x
        bottom += coefficient
    top /= bottom
    return top
