"""The one rounding of numbers that are shown: the page does the same in `report/assets/data.js`."""

from decimal import ROUND_HALF_UP, Context, Decimal, localcontext

SPARE = 3  # digits beyond those that are shown which decide what is a half; the page has no more of a mean


def rounded(value: float, digits: int, kind: str = "f", sign: str = "") -> str:
    """Write a number with so many digits as `format` does, halves away from zero.

    A mean of accuracies is often a half of the last digit that is shown. Its binary form is above or below by the order
    in which it was summed, so that one mean would be 75.8 in one table and 75.9 in the next. The kind is one of
    `format`: f, e or g.

    >>> rounded(75.85, 1), rounded(75.85000000000001, 1), rounded(-84.25, 1), f"{75.85:.1f}", f"{84.25:.1f}"
    ('75.9', '75.9', '-84.3', '75.8', '84.2')
    >>> rounded(1.2345e-7, 2, "e"), rounded(0.1275, 2, "g", sign="+"), rounded(float("nan"), 1)
    ('1.23e-07', '+0.13', 'nan')
    """
    with localcontext(Context(rounding=ROUND_HALF_UP)):
        halves = format(Decimal(format(value, f".{digits + SPARE}{kind}")), f".{digits}{kind}")
    return format(float(halves), f"{sign}.{digits}{kind}")
