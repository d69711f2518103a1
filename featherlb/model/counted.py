"""Numbers of things, as text for operators."""


def counted(number: int, noun: str, plural: str = "") -> str:
    """`1 flow`, `1,234 flows`; the plural is the noun with an s if it isn't given."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"
