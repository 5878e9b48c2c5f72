"""Fonts that have the letters of a text, and names that can be drawn."""

from __future__ import annotations

import unicodedata
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TypeAlias

from PIL import ImageFont, features

from cam_callbacks.data.class_names import ClassNames

Font: TypeAlias = ImageFont.FreeTypeFont | ImageFont.ImageFont

# TensorBoard shows a picture about 350 pixels wide: what is drawn 480 wide shrinks, and this text stays readable.
FONT_SIZE = 18

_NO_LETTER = "\U0010ffff"  # of which fonts draw what they draw for letters that they lack
# Files that Pillow finds in the folders of the system, those with most scripts first.
_OF_THE_SYSTEM = (
    "DejaVuSans.ttf",
    "NotoSansCJK-Regular.ttc",
    "NotoSans-Regular.ttf",
    "wqy-microhei.ttc",
    "Arial Unicode.ttf",
    "PingFang.ttc",
    "msyh.ttc",
    "arial.ttf",
)


def font_for(text: str) -> Font:
    """Return the first font that has all letters of a text; Pillow's own if none has."""
    return _font_with(frozenset(text)) or _own_font()


def shown_name(names: ClassNames, index: int) -> str:
    """Return the name of a class for a picture: `class 3` if it has none, or if no font here has its letters."""
    name = names[index] if 0 <= index < len(names) else ""
    return name if name and _font_with(frozenset(name)) is not None and _can_be_laid_out(name) else f"class {index}"


@cache
def _own_font() -> Font:
    return ImageFont.load_default(FONT_SIZE)


@cache
def _font_with(letters: frozenset[str]) -> Font | None:
    if all(_has_letter(_own_font(), letter) for letter in letters):
        return _own_font()
    return next((font for font in _other_fonts() if all(_has_letter(font, each) for each in letters)), None)


@cache
def _other_fonts() -> tuple[Font, ...]:
    """Return the font that Matplotlib brings, if it is installed, and those that are found on this system."""
    spec = find_spec("matplotlib")
    folders = [] if spec is None else list(spec.submodule_search_locations or ())
    of_matplotlib = [str(Path(folder, "mpl-data", "fonts", "ttf", "DejaVuSans.ttf")) for folder in folders]
    fonts = []
    for name in (*of_matplotlib, *_OF_THE_SYSTEM):
        try:
            fonts.append(ImageFont.truetype(name, FONT_SIZE))
        except (OSError, ImportError):  # not there, or Pillow without FreeType
            continue
    return tuple(fonts)


@cache
def _has_letter(font: Font, letter: str) -> bool:
    """Return whether a font draws a letter as anything but the box that stands for those that it lacks."""
    if letter.isspace():
        return True
    try:
        drawn, missing = font.getmask(letter), font.getmask(_NO_LETTER)
    except (UnicodeError, ValueError):  # Pillow's font without FreeType has only Latin letters
        return False
    return drawn.size != missing.size or bytes(drawn) != bytes(missing)


def _can_be_laid_out(text: str) -> bool:
    """Return whether letters come in the right order and shape: from right to left, they do so by Raqm alone."""
    is_simple = all(unicodedata.bidirectional(letter) not in ("R", "AL") for letter in text)
    return is_simple or bool(features.check("raqm"))
