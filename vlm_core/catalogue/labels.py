"""Names of categories as people write them: variants of one name, texts that mean none, and matches between tables."""

from __future__ import annotations

import html
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Final

import pandas as pd

# What spreadsheets and exports write where there is nothing.
MISSING: Final = frozenset(
    (
        *("nan", "none", "null", "n/a", "na", "#n/a", "<na>", "nat", "nil", "undefined", "unknown", "-", "--", "?", ""),
        *(
            "n.a.",
            "n.a",
            "n/d",
            "k.a.",
            "k. a.",
            "\\n",
            "(null)",
            "[null]",
            "<null>",
            "(none)",
            "(blank)",
            "(empty)",
            "—",
            "–",
        ),
        *("#ref!", "#value!", "#name?", "#div/0!", "tbd", "tba", "uncategorized", "uncategorised", "no category"),
    )
)
_WHOLE_NUMBER: Final = re.compile(r"(\d+)\.0+")


def label_key(name: str) -> str:
    """Return what the variants of one name have in common.

    Neither case, kinds and numbers of blanks, forms of Unicode and invisible characters count, nor HTML's entities
    (&amp;) and the decimals of a whole number (1.0).
    """
    seen = "".join(character for character in html.unescape(name) if unicodedata.category(character) != "Cf")
    key = " ".join(unicodedata.normalize("NFKC", seen).casefold().split())
    return match[1] if (match := _WHOLE_NUMBER.fullmatch(key)) else key


def visible(name: str) -> str:
    """Return a name with codes for what cannot be seen: combined and invisible characters, and unusual blanks."""
    return "".join(
        character
        if character.isprintable() and not unicodedata.combining(character)
        else character.encode("unicode_escape").decode()
        for character in name
    )


def label_variants(column: pd.Series[str]) -> list[tuple[str, ...]]:
    """Return the sets of names that are one by their key, each with its most frequent name first."""
    variants = defaultdict(list)
    for name in _by_frequency(column):
        variants[label_key(name)].append(name)
    return [tuple(names) for key, names in variants.items() if len(names) > 1 and key not in MISSING]


def missing_texts(column: pd.Series[str]) -> tuple[str, ...]:
    """Return the names that say that there is none, such as nan or N/A, the most frequent first."""
    return tuple(name for name in _by_frequency(column) if name and label_key(name) in MISSING)


def misread_names(column: pd.Series[str]) -> dict[str, str]:
    """Return the names that were read in a wrong encoding before they came into the table, and what they seem to be.

    UTF-8 that was read as Windows' Latin letters can be told (MÃ¶bel: Möbel); a lost letter is a question mark.
    """
    found = {}
    for name in _by_frequency(column):
        if "\N{REPLACEMENT CHARACTER}" in name:
            found[name] = name.replace("\N{REPLACEMENT CHARACTER}", "?")
        elif not name.isascii():
            with suppress(UnicodeError):
                found[name] = name.encode("cp1252").decode()
    return found


def normalised(column: pd.Series[str]) -> pd.Series[str]:
    """Return the column with each variant under its most frequent name, and "" for what says that there is none."""
    renamed = {name: names[0] for names in label_variants(column) for name in names[1:]}
    renamed |= dict.fromkeys(missing_texts(column), "")
    return column.map(lambda name: renamed.get(name, name))


def match_labels(found: Iterable[str], wanted: Sequence[str]) -> dict[str, str]:
    """Return which wanted name each found one is: its equal, or the only one with its key."""
    keys = defaultdict(list)
    for name in wanted:
        keys[label_key(name)].append(name)
    matches = {name: keys[label_key(name)] for name in found}
    return {
        name: name if name in candidates else candidates[0]
        for name, candidates in matches.items()
        if name in candidates or len(candidates) == 1
    }


def counted(counts: Mapping[str, int], most: int = 20) -> str:
    """Return names with their numbers of products, the largest first; beyond `most` how many more there are."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    shown = [f"{name} ({count:,})" for name, count in ordered[:most]]
    return ", ".join([*shown, *([f"and {len(ordered) - most:,} more"] if len(ordered) > most else [])])


def _by_frequency(column: pd.Series[str]) -> list[str]:
    counts = column.value_counts()
    return sorted((str(name) for name in counts.index), key=lambda name: (-int(counts[name]), name))
