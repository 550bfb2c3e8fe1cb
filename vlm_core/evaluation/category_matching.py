"""Mapping of generated texts to categories: the original paper's "closest category, else Unknown Category"."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import pandas as pd

UNKNOWN_CATEGORY: Final = "Unknown Category"
SPELLING_CUTOFF: Final = 0.85  # difflib's ratio: one wrong letter passes in seven letters, not in five (0.8)
_SHORTEST_SPELLED: Final = 4  # letters of a word that may be misspelt
_MOST_WORDS: Final = 100  # words read of a text; captions have a dozen

LEVELS: Final = ("masterCategory", "subCategory", "articleType")
TERM_SHARE: Final = 0.95  # of a term's products that must be in one category
TERM_PRODUCTS: Final = 3  # minimum products of a term
_SHORTEST_TERM: Final = 3  # letters


def closest_category(text: str, categories: tuple[str, ...], terms: Mapping[str, str]) -> int:
    """Return the index of the category that a text names, -1 for Unknown Category.

    `terms` are known words and the category each points to (see `category_terms`); terms of other categories are
    ignored.
    Words are compared whole, without case, accents, punctuation and plural endings; phrases also match when written
    as one word ("t-shirt", "tshirt", "t shirt"). The first of these rules that matches decides:

    1. a category's own name anywhere in the text: the earliest, and of those the longest; the parts of a name around
       "and", "&", "/" or "," are names too, unless two categories share them;
    2. a known term: the earliest, and of those the longest;
    3. the name or term closest in spelling to a word or phrase, with a difflib ratio of at least 0.85; names before
       terms and earlier before later where the ratio is equal.
    """
    words = split_words(text)[:_MOST_WORDS]
    names, known = _vocabulary(tuple(categories), tuple(terms.items()))
    for vocabulary in (names, known):
        for phrase in _phrases(words, vocabulary.longest):
            if phrase in vocabulary.meaning:
                return vocabulary.meaning[phrase]
    return _closest_in_spelling(words, names, known)


class _Vocabulary:
    """Phrases, normalised by `phrase_key`, and the index of the category that each means."""

    def __init__(self, entries: list[tuple[str, int]]) -> None:
        self.meaning: dict[str, int] = {}
        self.longest = 0  # words, joined ones split
        for phrase, index in entries:
            words = split_words(phrase)
            if words:
                self.meaning.setdefault(phrase_key(words), index)
                self.longest = max(self.longest, len(words) + 1)
        self.phrases = tuple(self.meaning)


@lru_cache(maxsize=16)
def _vocabulary(categories: tuple[str, ...], terms: tuple[tuple[str, str], ...]) -> tuple[_Vocabulary, _Vocabulary]:
    places = {name: index for index, name in enumerate(categories)}
    parts = [(part, index) for name, index in places.items() for part in _parts(name)]
    owners = Counter(part for part, _ in parts)
    names = [*places.items(), *((part, index) for part, index in parts if owners[part] == 1)]
    known = [(term, places[category]) for term, category in terms if category in places]
    return _Vocabulary(names), _Vocabulary(known)


def split_words(text: str) -> list[str]:
    """Return lower-case words without accents, possessive endings and "and"."""
    plain = unicodedata.normalize("NFKD", text).casefold()
    plain = "".join(character for character in plain if not unicodedata.combining(character))
    return [word for word in re.findall(r"[^\W_]+", re.sub(r"['’]s\b", "", plain)) if word != "and"]


def phrase_key(words: list[str]) -> str:
    """Return a phrase as one word, without the last word's plural ending."""
    return _stem("".join(words))


def _stem(word: str) -> str:
    """Return a stem that singular and plural share: dresses, dress; purses, purse; watches, watch; hoodies, hoody."""
    if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us")):
        word = word[:-1]
    if word.endswith(("se", "xe", "ze", "che", "she")):
        return word[:-1]
    if word.endswith("ie"):
        return word[:-1]
    return word[:-1] + "i" if word.endswith("y") else word


def _phrases(words: list[str], longest: int) -> Iterator[str]:
    """Yield all phrases of up to `longest` words, earlier ones first, longer ones first at the same start."""
    for start in range(len(words)):
        for end in range(min(len(words), start + longest), start, -1):
            yield phrase_key(words[start:end])


def _closest_in_spelling(words: list[str], names: _Vocabulary, known: _Vocabulary) -> int:
    best, ratio = -1, 0.0
    for vocabulary in (names, known):
        for phrase in _phrases(words, vocabulary.longest):
            similar, closeness = _most_similar(phrase, vocabulary.phrases)
            if closeness > ratio:
                best, ratio = vocabulary.meaning[similar], closeness
    return best


@lru_cache(maxsize=50_000)
def _most_similar(phrase: str, candidates: tuple[str, ...]) -> tuple[str, float]:
    """Return the candidate closest in spelling and its ratio; ratio 0 when none reaches the cutoff."""
    if len(phrase) < _SHORTEST_SPELLED:
        return "", 0.0
    matches = difflib.get_close_matches(phrase, candidates, n=1, cutoff=SPELLING_CUTOFF)
    return (matches[0], difflib.SequenceMatcher(None, matches[0], phrase).ratio()) if matches else ("", 0.0)


def category_terms(products: pd.DataFrame, label: str) -> dict[str, str]:
    """Return lower-case terms from the catalogue's other label levels, and the category of `label` each points to.

    A term is a value of `masterCategory`, `subCategory` or `articleType` (where these columns exist and are not
    `label`), each part of it around "and", "&", "/" or ",", and the last word of each part, which in English is the
    noun: "Casual Shoes" gives "casual shoes" and "shoes" but not "casual". A term counts when at least three products
    have it and 95 % of them are in one category; singular and plural count as one. Pass training rows only.
    """
    levels = [level for level in LEVELS if level in products.columns and level != label]
    named: dict[str, str] = {}  # a term's key -> its first spelling
    counts: dict[str, Counter[str]] = defaultdict(Counter)  # a term's key -> products per category
    alike = products.groupby([label, *levels], sort=True).size().reset_index(name="products")
    for category, *values, number in alike.itertuples(index=False, name=None):
        terms = [term for value in values for term in _terms_in(str(value))]
        keys = {phrase_key(split_words(term)): term for term in reversed(terms)}
        for key, term in keys.items():  # once per product, though several levels may have it
            named.setdefault(key, term)
            counts[key][str(category)] += int(number)
    pointing: dict[str, str] = {}
    for key in sorted(counts):
        category, most = counts[key].most_common(1)[0]
        enough = counts[key].total() >= TERM_PRODUCTS and most >= TERM_SHARE * counts[key].total()
        if enough and category and len(named[key]) >= _SHORTEST_TERM:
            pointing[named[key]] = category
    return pointing


def _terms_in(value: str) -> list[str]:
    """Return the value, its coordinated parts and their last words, lower-case, each once."""
    parts = _parts(value)
    terms = [" ".join(split_words(value)), *parts, *(part.rsplit(" ", 1)[-1] for part in parts)]
    return [term for term in dict.fromkeys(terms) if term]


def _parts(name: str) -> list[str]:
    """Return the coordinated parts of a name, lower-case: "Ties and Cufflinks" gives "ties" and "cufflinks"."""
    parts = (" ".join(split_words(part)) for part in re.split(r"\band\b|[&/,]", name, flags=re.IGNORECASE))
    return [part for part in dict.fromkeys(parts) if part]
