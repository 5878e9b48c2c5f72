"""Names are drawn in letters that a font has, else the number of the class stands for them."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw, features

from cam_callbacks.data.class_names import ClassNames
from cam_callbacks.figures.text import font_for, shown_name


def drawn(text: str) -> np.ndarray:
    picture = Image.new("L", (200, 40))
    ImageDraw.Draw(picture).text((4, 4), text, fill=255, font=font_for(text))
    return np.asarray(picture)


@pytest.mark.parametrize("name", ["cat", "Käfer", "naïve owl", "Ωμέγα", "собака"])
def test_names_whose_letters_a_font_has_are_shown(name: str) -> None:
    """Greek and Cyrillic letters are in the font that Matplotlib brings, and in those of most systems."""
    assert shown_name(ClassNames([name]), 0) == name
    assert len({drawn(letter).tobytes() for letter in set(name) - {" "}}) == len(set(name) - {" "})


@pytest.mark.parametrize("name", ["\U0001f99c owl", "\U00012000", "cat\ue000"])
def test_the_number_stands_for_a_name_that_no_font_has(name: str) -> None:
    assert shown_name(ClassNames(["cat", name]), 1) == "class 1"
    assert shown_name(ClassNames(["cat", name]), 0) == "cat"


def test_names_from_right_to_left_are_shown_only_if_they_can_be_laid_out() -> None:
    assert shown_name(ClassNames(["\u05d7\u05ea\u05d5\u05dc"]), 0) in (
        ["\u05d7\u05ea\u05d5\u05dc", "class 0"] if features.check("raqm") else ["class 0"]
    )
