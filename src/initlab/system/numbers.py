"""How numbers are rounded where they are shown, as in `report/assets/data.js`; which numbers float32 computes with."""

import math
from decimal import ROUND_HALF_UP, Context, Decimal, localcontext

EXTRA_DIGITS = 3  # beyond those that are shown; they decide what is a half, and the page has no more of a mean
# Of what a user gives: with room for factors, so that weights and updates stay numbers of float32.
MIN_MAGNITUDE, MAX_MAGNITUDE = 1e-30, 1e30
MAX_SEED = 2**63 - 1


def fits_float32(value: float) -> bool:
    """Return whether a value is 0 or of a magnitude that float32 computes with.

    >>> fits_float32(0), fits_float32(0.1), fits_float32(1e-320), fits_float32(1e300), fits_float32(float("nan"))
    (True, True, False, False, False)
    """
    return value == 0 or (math.isfinite(value) and MIN_MAGNITUDE <= abs(value) <= MAX_MAGNITUDE)


def describe_float32_limit(value: float) -> str:
    """Return the end of a sentence: why float32 does not compute with a value, and the remedy.

    >>> describe_float32_limit(1e-320)
    'float32 would make it 0: give 0 if that is meant, or a magnitude from 1e-30 to 1e+30'
    """
    if not math.isfinite(value):
        return "give a finite number"
    allowed = f"a magnitude from {MIN_MAGNITUDE:g} to {MAX_MAGNITUDE:g}"
    if abs(value) < MIN_MAGNITUDE:
        return f"float32 would make it 0: give 0 if that is meant, or {allowed}"
    return f"float32 would make it infinite: give {allowed}"


def format_rounded(value: float, digits: int, kind: str = "f", sign: str = "") -> str:
    """Format a number as `format` does, but round halves away from zero.

    A mean of accuracies is often a half of the last digit that is shown. Whether its binary form is above or below that
    depends on the order of summation, so that one mean would be 75.8 in one table and 75.9 in another.

    Args:
        value: the number.
        digits: as `format` counts them.
        kind: of `format`: f, e or g.
        sign: of `format`: "" or "+".

    >>> format_rounded(75.85, 1), format_rounded(75.85000000000001, 1), f"{75.85:.1f}"
    ('75.9', '75.9', '75.8')
    >>> format_rounded(-84.25, 1), f"{-84.25:.1f}"
    ('-84.3', '-84.2')
    >>> format_rounded(1.2345e-7, 2, "e"), format_rounded(0.1275, 2, "g", sign="+"), format_rounded(float("nan"), 1)
    ('1.23e-07', '+0.13', 'nan')
    """
    with localcontext(Context(rounding=ROUND_HALF_UP)):
        halves = format(Decimal(format(value, f".{digits + EXTRA_DIGITS}{kind}")), f".{digits}{kind}")
    return format(float(halves), f"{sign}.{digits}{kind}")


def format_number(value: float | None, digits: int = 2) -> str:
    """Return a statistic as a short text, blank for None.

    >>> format_number(0.123456), format_number(3e-9), format_number(None), format_number(12.3456, digits=4)
    ('0.12', '3.0e-09', '', '12.35')
    """
    if value is None or math.isnan(value):
        return "" if value is None else "nan"
    size = abs(value)
    if value == 0 or 1e-2 <= size < 1e4:
        whole = int(math.log10(size)) + 1 if size >= 1 else 0
        return f"{value:.{max(digits, whole)}g}"
    return f"{value:.1e}" if math.isfinite(value) else str(value)


def format_percent(value: float | None) -> str:
    """Return a fraction as a whole percentage, blank for None.

    >>> format_percent(0.5), format_percent(0.0), format_percent(None)
    ('50%', '0%', '')
    """
    return "" if value is None else f"{value:.0%}"
