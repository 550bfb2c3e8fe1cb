"""The embedded sample catalogue: a small fictional shop, drawn by code, in the layout of Kaggle's fashion products.

It shares the real catalogue's traits: class imbalance, gifts that look like products on sale, and defects (`Defects`).
"""

import io
import json
import shutil
from dataclasses import dataclass, replace
from itertools import cycle
from pathlib import Path
from random import Random
from typing import Final

from vlm_core.catalogue.assortment import (
    ACCESSORIES,
    APPAREL,
    ARTICLES,
    BRANDS,
    CARE,
    COLOURS,
    FOOTWEAR,
    GIFTS,
    GIVEN_AWAY,
    SHARES,
)
from vlm_core.catalogue.drawing.camera import photograph
from vlm_core.catalogue.drawing.pen import Colour, DrawingStyle, Pen
from vlm_core.errors import UserError
from vlm_core.files.atomic import building
from vlm_core.progress import track

HEADER: Final = "id,gender,masterCategory,subCategory,articleType,baseColour,season,year,usage,productDisplayName"
STAMP: Final = "sample.json"  # the arguments that the folder was drawn with
DRAWING_VERSION: Final = 1
MINIMUM_PRODUCTS: Final = 40  # fewer would leave a category with a single product
RIBBON_SHARE: Final = 0.3  # of the gifts: most must look like products on sale, as in the real catalogue
WORN_SHARE: Final = 0.55


@dataclass(frozen=True)
class Defects:
    """The number of rows with each defect in a sample catalogue; no row has two."""

    unquoted_commas: int
    pictures_missing: int
    pictures_truncated: int
    copies: int  # rows with the same picture bytes as another row of the same category
    disagreeing_copies: int  # rows with the same picture bytes as another row of another category
    home_products: int


@dataclass(frozen=True)
class SampleRow:
    """One line of styles.csv, and how its picture is drawn."""

    id: int
    gender: str
    master_category: str
    sub_category: str
    article_type: str
    base_colour: str
    season: str
    year: int
    usage: str
    title: str
    looks_like: str  # the key of ARTICLES that is drawn: a gift's article type is just "Free Gifts"
    pattern: str
    picture_of: int  # the id of the product whose picture it has: its own unless it is a copy
    picture_share: float = 1.0  # of the picture's bytes that are written

    def line(self) -> str:
        """Return the row as in Kaggle's file, without any quotes."""
        kind = f"{self.gender},{self.master_category},{self.sub_category},{self.article_type},{self.base_colour}"
        return f"{self.id},{kind},{self.season},{self.year},{self.usage},{self.title}"


def count_defects(products: int) -> Defects:
    """Return the number of defects in a sample catalogue of so many products."""
    return Defects(
        unquoted_commas=max(2, products // 400),
        pictures_missing=1,
        pictures_truncated=1,
        copies=max(2, products // 80),
        disagreeing_copies=1,
        home_products=1,
    )


def draw_sample(folder: Path, products: int = 1600, seed: int = 7) -> Path:
    """Draw a sample catalogue into the folder, and return it: `styles.csv` and `images/<id>.jpg` of 60x80 px.

    The same arguments give the same bytes (on the same versions of Pillow and numpy). A complete catalogue with the
    same arguments is left unchanged, one with others is replaced. Raises UserError when the folder has any other
    content, and for fewer than 40 products.
    """
    if products < MINIMUM_PRODUCTS:
        raise UserError(f"a sample catalogue needs at least {MINIMUM_PRODUCTS} products, not {products}.")
    stamp = {"products": products, "seed": seed, "drawing_version": DRAWING_VERSION}
    if _is_complete(folder, stamp):
        return folder
    ours = (folder / STAMP).is_file() or not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
    if not ours:
        raise UserError(f"{folder} has content that is not a sample catalogue: remove it or choose another folder.")
    try:
        with building(folder) as partial:
            _write(partial, plan_rows(products, seed), seed)
            (partial / STAMP).write_text(json.dumps(stamp), encoding="utf-8")
            # Another process may have drawn the same catalogue meanwhile: its bytes are equal, and may be in use.
            if not _is_complete(folder, stamp):
                shutil.rmtree(folder, ignore_errors=True)
    except OSError:
        if not _is_complete(folder, stamp):
            raise
    return folder


def _is_complete(folder: Path, stamp: dict[str, int]) -> bool:
    try:
        existing = json.loads((folder / STAMP).read_text(encoding="utf-8"))
        pictures = sum(1 for _ in (folder / "images").glob("*.jpg"))
    except (OSError, ValueError):
        return False
    expected = stamp["products"] - count_defects(stamp["products"]).pictures_missing
    return bool(existing == stamp and (folder / "styles.csv").is_file() and pictures == expected)


def _write(folder: Path, rows: list[SampleRow], seed: int) -> None:
    (folder / "images").mkdir(parents=True)
    pictures: dict[int, bytes] = {}
    copied = {row.picture_of for row in rows if row.picture_of != row.id}
    for row in track(sorted(rows, key=lambda row: row.picture_of != row.id), "drawing the sample", len(rows)):
        data = pictures.get(row.picture_of) or draw_picture(row, seed)
        if row.id in copied:
            pictures[row.id] = data
        if row.picture_share:
            (folder / "images" / f"{row.id}.jpg").write_bytes(data[: round(len(data) * row.picture_share)])
    text = "\n".join([HEADER, *(row.line() for row in rows)]) + "\n"
    (folder / "styles.csv").write_text(text, encoding="utf-8", newline="\n")


def draw_picture(row: SampleRow, seed: int) -> bytes:
    """Return the product's picture as JPEG bytes."""
    rng = Random(f"{seed}/{row.picture_of}")
    main = COLOURS[row.base_colour]
    style = DrawingStyle(
        main=_varied(main, rng),
        accent=_varied(rng.choice([other for other in COLOURS.values() if _distance(other, main) > 150]), rng),
        pattern=row.pattern,
        gender=row.gender,
        worn=rng.random() < WORN_SHARE,
        ribbon=row.master_category == GIFTS and rng.random() < RIBBON_SHARE,
    )
    pen = Pen(style, rng)
    ARTICLES[row.looks_like].draw(pen)
    if style.ribbon:
        pen.ribbon()
    buffer = io.BytesIO()
    photograph(pen.layer, rng).save(buffer, "JPEG", quality=rng.randint(70, 94))
    return buffer.getvalue()


def _varied(colour: Colour, rng: Random) -> Colour:
    red, green, blue = (min(255, max(0, value + rng.randint(-10, 10))) for value in colour)
    return red, green, blue


def _distance(first: Colour, second: Colour) -> int:
    return sum(abs(a - b) for a, b in zip(first, second, strict=True))


def plan_rows(products: int, seed: int) -> list[SampleRow]:
    """Return the rows of a sample catalogue, defects included, in the order of the file."""
    rng = Random(seed)
    categories = ["Home", *(category for category, share in SHARES.items() for _ in range(int(share * products)))]
    categories += [APPAREL] * (products - len(categories))
    rng.shuffle(categories)
    ids = rng.sample(range(1000, 60000), products)
    rows = [_plan_row(product_id, category, rng) for product_id, category in zip(ids, categories, strict=True)]
    _add_defects(rows, rng)
    return rows


def _plan_row(product_id: int, category: str, rng: Random) -> SampleRow:
    gift = category == GIFTS
    sold = {name: article.weight for name, article in ARTICLES.items() if article.category == category}
    weights = GIVEN_AWAY if gift else sold
    name = rng.choices(list(weights), list(weights.values()))[0]
    article = ARTICLES[name]
    gender, colour, pattern = rng.choice(article.genders), rng.choice(article.colours), rng.choice(article.patterns)
    brand = rng.choice(BRANDS[article.category])
    words = [brand, gender, *([] if pattern == "Solid" else [pattern]), colour, article.noun]
    return SampleRow(
        id=product_id,
        gender=gender,
        master_category=category,
        sub_category="Free Gifts" if gift else article.sub_category,
        article_type="Free Gifts" if gift and rng.random() < 0.8 else name,
        base_colour=colour,
        season=rng.choice(article.seasons),
        year=rng.randint(2011, 2018),
        usage=rng.choice(article.usages),
        title=" ".join(words),
        looks_like=name,
        pattern=pattern,
        picture_of=product_id,
    )


def _add_defects(rows: list[SampleRow], rng: Random) -> None:
    """Give the rows the defects of `count_defects`, in place."""
    defects = count_defects(len(rows))
    clean = rng.sample(range(len(rows)), len(rows))

    def take(category: str) -> int:
        index = next(index for index in clean if rows[index].master_category == category)
        clean.remove(index)
        return index

    for number in range(defects.unquoted_commas):
        index = take(APPAREL)
        colour = rows[index].base_colour
        title = rows[index].title.replace(f" {colour} ", f" {colour}, " if number % 2 else f", {colour}, ")
        rows[index] = replace(rows[index], title=title)
    for share, count in ((0.0, defects.pictures_missing), (0.7, defects.pictures_truncated)):
        for _ in range(count):
            index = take(APPAREL)
            rows[index] = replace(rows[index], picture_share=share)
    for category, _ in zip(cycle((APPAREL, ACCESSORIES, FOOTWEAR, GIFTS, CARE)), range(defects.copies), strict=False):
        source, copy = take(category), take(category)
        rows[copy] = replace(rows[source], id=rows[copy].id)
    for _ in range(defects.disagreeing_copies):
        source, copy = take(ACCESSORIES), take(GIFTS)
        kind = replace(rows[copy], article_type="Free Gifts")
        rows[copy] = replace(
            rows[source],
            id=kind.id,
            master_category=kind.master_category,
            sub_category=kind.sub_category,
            article_type=kind.article_type,
        )
