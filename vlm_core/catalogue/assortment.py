"""The assortment of the sample catalogue's fictional shop: article types, colours, patterns and brands."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from vlm_core.catalogue.drawing import accessories, care, footwear, garments
from vlm_core.catalogue.drawing.pen import Colour, Pen

APPAREL, ACCESSORIES, FOOTWEAR, CARE, GIFTS = "Apparel", "Accessories", "Footwear", "Personal Care", "Free Items"
SHARES: Final = {ACCESSORIES: 0.225, FOOTWEAR: 0.16, CARE: 0.12, GIFTS: 0.055}  # the rest is Apparel, 44 %

COLOURS: Final[dict[str, Colour]] = {
    "Black": (32, 32, 36),
    "White": (240, 240, 238),
    "Grey": (138, 140, 144),
    "Charcoal": (70, 74, 80),
    "Navy Blue": (30, 42, 88),
    "Blue": (52, 104, 190),
    "Turquoise Blue": (52, 176, 190),
    "Teal": (22, 110, 112),
    "Green": (52, 142, 74),
    "Olive": (112, 116, 54),
    "Khaki": (178, 164, 116),
    "Beige": (216, 196, 160),
    "Cream": (244, 234, 206),
    "Yellow": (242, 206, 64),
    "Mustard": (206, 152, 38),
    "Orange": (234, 122, 44),
    "Peach": (248, 186, 152),
    "Pink": (236, 128, 166),
    "Magenta": (196, 40, 120),
    "Red": (204, 40, 48),
    "Maroon": (114, 26, 42),
    "Purple": (110, 62, 142),
    "Lavender": (180, 160, 214),
    "Brown": (112, 70, 44),
    "Tan": (190, 128, 76),
    "Silver": (188, 192, 198),
    "Gold": (210, 170, 80),
}
DARK: Final = ("Black", "Grey", "Charcoal", "Navy Blue", "Brown")
BRIGHT: Final = ("Blue", "Green", "Red", "Pink", "Purple", "Yellow", "Orange", "Turquoise Blue", "White", "Magenta")
SOFT: Final = ("Teal", "Olive", "Beige", "Maroon", "Peach", "Lavender", "Mustard")
CLOTH: Final = (*DARK[:4], *BRIGHT, *SOFT, "Black", "White")  # twice: the most common colours
DENIM: Final = ("Blue", "Navy Blue", "Blue", "Navy Blue", "Black", "Grey", "Charcoal")
DULL: Final = (*DARK, "Khaki", "Beige", "Olive", "White")
LEATHER: Final = ("Black", "Brown", "Tan", "Black", "Brown", "Maroon", "Navy Blue", "Beige", "Red", "Grey")
METAL: Final = ("Gold", "Silver", "Gold", "Silver", "Black")
STRAP: Final = ("Black", "Silver", "Brown", "Gold", "Black", "White", "Blue", "Red", "Pink", "Tan")
MAKEUP: Final = ("Red", "Pink", "Maroon", "Magenta", "Peach", "Orange", "Brown", "Purple")
POWDER: Final = ("Beige", "Peach", "Pink", "Tan", "Cream")

PLAIN: Final = ("Solid",)
TEE: Final = ("Solid", "Solid", "Striped", "Printed", "Printed", "Colourblocked")
SHIRTING: Final = ("Solid", "Solid", "Checked", "Checked", "Pinstriped", "Printed")
FESTIVE: Final = ("Solid", "Floral", "Floral", "Polka Dot", "Striped")
BAG: Final = ("Solid", "Solid", "Solid", "Colourblocked", "Floral")

ALL: Final = ("Men", "Women", "Men", "Women", "Boys", "Girls")
ADULTS: Final = ("Men", "Women")
MEN: Final = ("Men", "Men", "Men", "Boys")
WOMEN: Final = ("Women", "Women", "Women", "Girls")
ANYONE: Final = ("Men", "Women", "Unisex")
LADIES: Final = ("Women",)

CASUAL: Final = ("Casual",)
OFFICE: Final = ("Casual", "Formal")
SPORT: Final = ("Sports", "Sports", "Casual")
ETHNIC: Final = ("Ethnic",)
PARTY: Final = ("Casual", "Party")
YEAR_ROUND: Final = ("Summer", "Summer", "Fall", "Winter", "Spring")
WARM: Final = ("Summer", "Summer", "Summer", "Spring")
COLD: Final = ("Winter", "Winter", "Fall")


@dataclass(frozen=True)
class Article:
    """One article type of the shop."""

    draw: Callable[[Pen], None]
    sub_category: str
    category: str
    usages: tuple[str, ...]
    genders: tuple[str, ...]
    noun: str
    weight: int  # relative frequency within its category
    colours: tuple[str, ...]
    patterns: tuple[str, ...] = PLAIN
    seasons: tuple[str, ...] = YEAR_ROUND


ARTICLES: Final[dict[str, Article]] = {
    "Tshirts": Article(garments.tshirt, "Topwear", APPAREL, SPORT, ALL, "T-shirt", 22, CLOTH, TEE),
    "Shirts": Article(garments.shirt, "Topwear", APPAREL, OFFICE, MEN, "Shirt", 15, CLOTH, SHIRTING),
    "Tops": Article(garments.blouse, "Topwear", APPAREL, PARTY, WOMEN, "Top", 9, CLOTH, FESTIVE),
    "Kurtas": Article(garments.kurta, "Topwear", APPAREL, ETHNIC, ADULTS, "Kurta", 10, CLOTH, FESTIVE),
    "Sweatshirts": Article(garments.sweatshirt, "Topwear", APPAREL, SPORT, ALL, "Sweatshirt", 5, CLOTH, TEE, COLD),
    "Jackets": Article(garments.jacket, "Topwear", APPAREL, CASUAL, ALL, "Jacket", 5, CLOTH, PLAIN, COLD),
    "Dresses": Article(garments.dress, "Dress", APPAREL, PARTY, WOMEN, "Dress", 8, CLOTH, FESTIVE),
    "Sarees": Article(garments.saree, "Saree", APPAREL, ETHNIC, LADIES, "Saree", 6, CLOTH, FESTIVE),
    "Jeans": Article(garments.jeans, "Bottomwear", APPAREL, CASUAL, ALL, "Jeans", 7, DENIM, ("Solid", "Washed")),
    "Trousers": Article(garments.trousers, "Bottomwear", APPAREL, OFFICE, ADULTS, "Trousers", 5, DULL, SHIRTING[:3]),
    "Track Pants": Article(garments.track_pants, "Bottomwear", APPAREL, SPORT, ALL, "Track Pants", 4, CLOTH),
    "Shorts": Article(garments.shorts, "Bottomwear", APPAREL, SPORT, ALL, "Shorts", 6, CLOTH, SHIRTING, WARM),
    "Skirts": Article(garments.skirt, "Bottomwear", APPAREL, PARTY, WOMEN, "Skirt", 4, CLOTH, FESTIVE),
    "Watches": Article(accessories.watch, "Watches", ACCESSORIES, OFFICE, ADULTS, "Watch", 22, STRAP),
    "Handbags": Article(accessories.handbag, "Bags", ACCESSORIES, PARTY, LADIES, "Handbag", 16, LEATHER, BAG),
    "Backpacks": Article(accessories.backpack, "Bags", ACCESSORIES, SPORT, ANYONE, "Backpack", 10, CLOTH, BAG),
    "Wallets": Article(accessories.wallet, "Wallets", ACCESSORIES, OFFICE, ADULTS, "Wallet", 9, LEATHER, BAG),
    "Belts": Article(accessories.belt, "Belts", ACCESSORIES, OFFICE, MEN, "Belt", 8, LEATHER),
    "Sunglasses": Article(accessories.sunglasses, "Eyewear", ACCESSORIES, CASUAL, ANYONE, "Sunglasses", 11, STRAP),
    "Ties": Article(accessories.tie, "Ties", ACCESSORIES, ("Formal",), ("Men",), "Tie", 4, CLOTH, SHIRTING),
    "Caps": Article(accessories.cap, "Headwear", ACCESSORIES, SPORT, ANYONE, "Cap", 5, CLOTH, PLAIN, WARM),
    "Socks": Article(accessories.socks, "Socks", ACCESSORIES, SPORT, ALL, "Socks", 6, CLOTH, TEE[:3]),
    "Scarves": Article(accessories.scarf, "Scarves", ACCESSORIES, CASUAL, ADULTS, "Scarf", 3, CLOTH, SHIRTING, COLD),
    "Earrings": Article(accessories.earrings, "Jewellery", ACCESSORIES, PARTY, WOMEN, "Earrings", 6, METAL),
    "Pendant": Article(accessories.pendant, "Jewellery", ACCESSORIES, PARTY, LADIES, "Pendant", 4, METAL),
    "Casual Shoes": Article(footwear.casual_shoe, "Shoes", FOOTWEAR, CASUAL, ALL, "Casual Shoes", 26, CLOTH, BAG),
    "Sports Shoes": Article(footwear.sports_shoe, "Shoes", FOOTWEAR, ("Sports",), ALL, "Sports Shoes", 22, CLOTH),
    "Formal Shoes": Article(footwear.formal_shoe, "Shoes", FOOTWEAR, ("Formal",), ("Men",), "Formal Shoes", 9, LEATHER),
    "Heels": Article(footwear.heel, "Shoes", FOOTWEAR, PARTY, LADIES, "Heels", 16, (*LEATHER, *BRIGHT), BAG),
    "Sandals": Article(footwear.sandal, "Sandal", FOOTWEAR, CASUAL, ALL, "Sandals", 13, LEATHER, PLAIN, WARM),
    "Flip Flops": Article(
        footwear.flip_flop, "Flip Flops", FOOTWEAR, CASUAL, ALL, "Flip Flops", 14, CLOTH, PLAIN, WARM
    ),
    "Perfume and Body Mist": Article(care.perfume, "Fragrance", CARE, PARTY, ADULTS, "Perfume", 28, CLOTH),
    "Deodorant": Article(care.deodorant, "Fragrance", CARE, SPORT, ADULTS, "Deodorant", 20, CLOTH),
    "Lipstick": Article(care.lipstick, "Lips", CARE, PARTY, LADIES, "Lipstick", 20, MAKEUP),
    "Nail Polish": Article(care.nail_polish, "Nails", CARE, PARTY, LADIES, "Nail Polish", 16, (*MAKEUP, *BRIGHT)),
    "Face Wash and Cleanser": Article(care.face_wash, "Skin Care", CARE, CASUAL, ANYONE, "Face Wash", 10, BRIGHT),
    "Compact": Article(care.compact, "Makeup", CARE, PARTY, LADIES, "Compact", 8, POWDER),
    "Cushion Covers": Article(
        accessories.cushion, "Home Furnishing", "Home", ("Home",), ("Unisex",), "Cushion Cover", 1, CLOTH, FESTIVE
    ),
}
GIVEN_AWAY: Final = {
    "Watches": 30,
    "Sarees": 16,
    "Handbags": 9,
    "Backpacks": 7,
    "Ties": 7,
    "Sunglasses": 8,
    "Wallets": 6,
    "Perfume and Body Mist": 7,
    "Deodorant": 5,
    "Lipstick": 3,
    "Scarves": 2,
}
BRANDS: Final[dict[str, tuple[str, ...]]] = {
    APPAREL: ("Larkhollow", "Fenwright", "Oddmere", "Velisca", "Tarn & Thistle", "Kestrane", "Palvora", "Jaipuri Loom"),
    ACCESSORIES: ("Brindlecraft", "Quillmark", "Meridoc", "Zumbrel", "Tannerby", "Ostrelle", "Hollin Reed"),
    FOOTWEAR: ("Strideloft", "Cobblewick", "Runaro", "Pavanti", "Solmere", "Tread & Tide"),
    CARE: ("Sorvani", "Petalune", "Mistwell", "Rosemarrow", "Oudessa"),
    "Home": ("Hearthlin",),
}
