import pytest

from cam_callbacks import Figures


def test_by_default_blends_and_scales_each_image():
    assert Figures() == Figures(overlay_style="blend", heat_scale="image", channels=False)


@pytest.mark.parametrize("wrong", [{"overlay_style": "rainbow"}, {"heat_scale": "epoch"}, {"overlay_style": None}])
def test_an_unknown_choice_is_refused_with_the_choices(wrong):
    (argument,) = wrong
    with pytest.raises(ValueError, match=rf"Figures\(\.\.\.\): {argument}=.*choose one of"):
        Figures(**wrong)


def test_channels_must_be_a_bool():
    with pytest.raises(TypeError, match=r"Figures\(\.\.\.\): channels='yes' must be True or False"):
        Figures(channels="yes")
