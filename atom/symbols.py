"""Whether images show written symbols, whose mirror images belong to no class, as far as class names tell."""

import re
from collections.abc import Sequence

_DIGIT_WORDS = frozenset(("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"))
_KINDS = frozenset(("digit", "letter", "character", "upper", "lower"))


def named_like_symbols(class_names: Sequence[str]) -> bool:
    """Whether every class is called by a single letter or digit, of any alphabet, or by a digit's word.

    Classes that are numbered 0 to 9 because nobody named them look the same: a wrong yes costs them the mirror
    images, a wrong no would teach a network that a mirrored 2 is a 2.

    Example:
        >>> named_like_symbols(["0 - zero", "1 - one"]), named_like_symbols(["a", "B", "é"])
        (True, True)
        >>> named_like_symbols(["0", "10"]), named_like_symbols(["cat", "dog"])
        (False, False)
    """
    return all(_is_symbol(name) for name in class_names)


def _is_symbol(name: str) -> bool:
    words = [word for word in re.split(r"[\W_]+", name.lower()) if word]
    marks = [word for word in words if word not in _KINDS]
    return bool(marks) and all(len(word) == 1 or word in _DIGIT_WORDS for word in marks)
