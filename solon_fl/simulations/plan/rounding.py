"""Formats numbers for readers."""

__all__ = ["short", "short_probability"]


def short(value: float) -> str:
    """Format a number with about three digits, without an exponent unless the digits would be lost.

    Examples
    --------
    >>> short(71.04), short(1234.5), short(0.0012345), short(0.00001)
    ('71.0', '1,234', '0.001', '1e-05')
    """
    if value == 0 or value >= 0.0995:
        return f"{value:,.{0 if value >= 99.95 else 1 if value >= 9.995 else 2}f}"
    return f"{value:.3f}" if value >= 0.001 else f"{value:.0e}"


def short_probability(value: float) -> str:
    """Format a probability with two digits, and as 0 only if it is exactly 0.

    Examples
    --------
    >>> short_probability(0), short_probability(3.14e-7), short_probability(0.3)
    ('0', '3.1e-07', '0.30')
    """
    return "0" if value == 0 else f"{value:.1e}" if value < 0.01 else f"{value:.2f}"
