"""Numbers as people read them."""

import math


def format_number(value: float | None, digits: int = 3) -> str:
    """A number for people: three significant digits, a dash where there is none."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:.{digits}g}" if value == 0 or 1e-3 <= abs(value) < 1e5 else f"{value:.{digits - 1}e}"


def format_pair(value: float, error: float) -> str:
    """value ± error, both with the decimals of the error's second digit: 0.5312 ± 0.0071."""
    if not (math.isfinite(value) and math.isfinite(error)):
        return "–"
    if not error > 0:
        return format_number(value)
    decimals = 1 - math.floor(math.log10(error))
    if not 0 <= decimals <= 6:
        return f"{value:.2e} ± {error:.0e}"
    return f"{value:.{decimals}f} ± {error:.{decimals}f}"


def unbroken_pair(value: float, error: float) -> str:
    """``format_pair`` for narrow pages: a line may end before the ±, not behind it."""
    return format_pair(value, error).replace("± ", "±\u00a0")


def format_signed(value: float, decimals: int = 2) -> str:
    """A number with its sign, and no sign on a zero that was rounded from below: +0.12, 0.00."""
    rounded = round(value, decimals)
    return f"{rounded:+.{decimals}f}" if rounded else f"{0:.{decimals}f}"
