"""Whole numbers as English words, as the package num2words writes them."""

from __future__ import annotations

SMALL = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
    *("ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen"),
    *("eighteen", "nineteen"),
)
TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
LARGE = ((10**9, "billion"), (10**6, "million"), (10**3, "thousand"))


def in_words(number: int) -> str:
    """From 0 to below a trillion: "one thousand, two hundred and twelve"."""
    for size, name in LARGE:
        if number >= size:
            more, rest = divmod(number, size)
            front = f"{in_words(more)} {name}"
            if not rest:
                return front
            return f"{front}{' and' if rest < 100 else ','} {in_words(rest)}"
    if number >= 100:
        hundreds, rest = divmod(number, 100)
        front = f"{SMALL[hundreds]} hundred"
        return f"{front} and {in_words(rest)}" if rest else front
    if number < len(SMALL):
        return SMALL[number]
    tens, ones = divmod(number, 10)
    return f"{TENS[tens - 2]}-{SMALL[ones]}" if ones else TENS[tens - 2]
