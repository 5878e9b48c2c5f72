"""How strongly images were compressed: read from them, and exchanged."""

import pytest
import torch
from cues import as_jpeg, compressed_scenes

from cam_callbacks.audit import jpeg
from cam_callbacks.audit.compression import recompressed

QUALITIES = (15, 50, 75, 92)


def photo(height=48, width=64, channels=3, seed=0):
    draw = torch.Generator().manual_seed(seed)
    shade = torch.rand(1, channels, height // 8 + 1, width // 8 + 1, generator=draw)
    large = torch.nn.functional.interpolate(shade, (height, width), mode="bilinear")[0]
    return (30 + 180 * large + 6 * torch.randn(channels, height, width, generator=draw)).clamp(0, 255).round()


def normalized(image):
    mean, std = (torch.tensor(each[: len(image)]).view(-1, 1, 1) for each in ((0.4, 0.5, 0.3), (0.2, 0.3, 0.25)))
    return ((image / 255 - mean) / std).unsqueeze(0)


def about(wanted):
    return pytest.approx([wanted], abs=1)  # of which some have the same steps


def quality(images):
    images = images[:, :, : images.shape[2] // 8 * 8, : images.shape[3] // 8 * 8]
    return jpeg.quality_of(jpeg.to_blocks(jpeg.brightness(images, jpeg.level_of(images)))).tolist()


def given(images, donors):
    masks = torch.zeros(len(images), *images.shape[2:], dtype=torch.bool)
    return recompressed(images, masks, donors, masks)


class TestWhatIsRead:
    @pytest.mark.parametrize("channels", [1, 3])
    @pytest.mark.parametrize("wanted", QUALITIES)
    def test_the_quality_at_which_an_image_was_compressed(self, wanted, channels):
        assert quality(normalized(as_jpeg(photo(channels=channels), wanted))) == about(wanted)

    def test_it_needs_no_more_than_a_part_of_a_large_image_or_nine_blocks(self):
        for size in ((24, 24), (200, 328)):
            assert quality(normalized(as_jpeg(photo(*size), 60))) == [60]

    def test_what_is_drawn_over_an_image_does_not_hide_it(self):
        image = as_jpeg(photo(), 40)
        image[:, 10:30, 20:40] = 255
        assert quality(normalized(image)) == [40]

    @pytest.mark.parametrize(
        "change",
        [
            lambda image: image,
            lambda image: as_jpeg(image, 40)[:, 3:, 2:],
            lambda image: torch.nn.functional.interpolate(as_jpeg(image, 40)[None], scale_factor=0.8)[0],
            lambda image: torch.nn.functional.avg_pool2d(as_jpeg(image, 40), 3, 1, 1).round(),
            lambda image: torch.full_like(image, 80),
            lambda image: torch.zeros_like(image),
        ],
        ids=["uncompressed", "cropped", "resized", "blurred", "flat", "black"],
    )
    def test_an_image_without_whole_blocks_or_coefficients_has_no_traces(self, change):
        assert quality(normalized(change(photo(64, 80)))) == [jpeg.UNCOMPRESSED]

    @pytest.mark.parametrize("period", [6, 8, 12, 16])
    @pytest.mark.parametrize("drawn", ["stripes", "checks", "diagonals", "shades"])
    def test_regular_patterns_and_flat_drawings_have_no_traces(self, drawn, period):
        across, down = torch.arange(64), torch.arange(64).unsqueeze(1)
        half = period // 2
        share = {
            "stripes": (across % period < half).float().expand(64, 64),
            "checks": ((across // half + down // half) % 2).float(),
            "diagonals": ((across + down) % period < half).float(),
            "shades": (down / 64).expand(64, 64),
        }[drawn]
        colors = torch.rand(30, 2, 3, 1, 1, generator=torch.Generator().manual_seed(period)).mul(255).round()
        images = torch.lerp(colors[:, 0], colors[:, 1], share).round()
        images[10:, :, 20:44, 20:44] += torch.randint(-5, 6, (20, 1, 24, 24))
        assert quality(images) == [jpeg.UNCOMPRESSED] * 30

    def test_levels_are_those_of_the_normalization(self):
        expected = 1 / 255 / torch.tensor([[0.2, 0.3, 0.25]])
        torch.testing.assert_close(jpeg.level_of(normalized(photo())), expected, rtol=1e-3, atol=0)
        assert jpeg.level_of(torch.rand(2, 3, 32, 32)).isnan().all()
        assert jpeg.level_of(torch.tensor([0.0, 2, 5, 7]).view(1, 1, 2, 2)).isnan().all()
        assert jpeg.level_of(torch.full((1, 1, 2, 2), 3.0)).isnan().all()

    def test_blocks_and_back_are_the_same_image(self):
        values = torch.randn(2, 1, 24, 40)
        torch.testing.assert_close(jpeg.from_blocks(jpeg.to_blocks(values), (24, 40)), values)

    def test_the_first_coefficient_is_eight_times_the_mean(self):
        found = jpeg.to_blocks(torch.full((1, 1, 8, 16), 3.0))
        torch.testing.assert_close(found[..., 0, 0], torch.full((1, 2), 24.0))
        assert found.sum().item() == pytest.approx(48, abs=1e-4)


class TestWhatIsExchanged:
    @pytest.mark.parametrize("channels", [1, 3])
    @pytest.mark.parametrize(("before", "after"), [(92, 15), (15, 92), (75, 50)])
    def test_an_image_has_the_quality_of_its_donor_and_its_own_content(self, before, after, channels):
        own = normalized(as_jpeg(photo(channels=channels), before))
        found = given(own, normalized(as_jpeg(photo(channels=channels, seed=1), after)))
        assert quality(found) == about(after)
        assert torch.corrcoef(torch.stack([found.flatten(), own.flatten()]))[0, 1] > 0.95

    def test_it_is_that_of_a_file_of_this_quality(self):
        own = photo(channels=1)
        found = given(normalized(own), normalized(as_jpeg(photo(channels=1, seed=1), 20)))
        off = (found - normalized(as_jpeg(own, 20))).abs() / jpeg.level_of(normalized(own))
        assert off.mean() < 3  # the means of blocks are not rounded
        assert off.mean() < 0.5 * ((found - normalized(own)).abs() / jpeg.level_of(normalized(own))).mean()

    def test_blocks_of_a_coarse_image_are_smoothed_if_the_donor_is_finer(self):
        own = normalized(as_jpeg(photo(), 15))
        found = given(own, normalized(as_jpeg(photo(seed=1), 92)))
        steps, smoothed = (each.mean(dim=1).diff(dim=2).abs().mean(dim=(0, 1))[7::8].mean() for each in (own, found))
        assert smoothed < 0.6 * steps

    def test_done_again_it_changes_nothing(self):
        own, donor = (normalized(as_jpeg(photo(seed=seed), level)) for seed, level in enumerate((90, 30)))
        once = given(own, donor)
        assert not torch.equal(once, own)
        torch.testing.assert_close(given(once, donor), once)

    @pytest.mark.parametrize("near", [0, 1, 2])
    def test_an_image_of_nearly_the_same_quality_gives_nothing(self, near):
        own, donor = (normalized(as_jpeg(photo(seed=seed), 60 + near * seed)) for seed in (0, 1))
        assert torch.equal(given(own, donor), own)
        assert torch.equal(given(own, own), own)

    def test_without_traces_in_either_nothing_changes(self):
        own, donor = normalized(photo()), normalized(photo(seed=1))
        assert torch.equal(given(own, donor), own)
        floats = torch.rand(2, 3, 40, 40)
        assert torch.equal(given(floats, floats.flip(0)), floats)

    @pytest.mark.parametrize("size", [(30,), (16, 40), (6, 24, 24), (23, 24)])
    def test_signals_volumes_and_tiny_images_stay(self, size):
        images = torch.rand(2, 3, *size).mul(255).round()
        assert torch.equal(given(images, images.flip(0)), images)

    @pytest.mark.parametrize("channels", [2, 4])
    def test_images_of_other_channels_stay(self, channels):
        images = torch.rand(2, channels, 32, 32).mul(255).round()
        assert torch.equal(given(images, images.flip(0)), images)

    @pytest.mark.parametrize("channels", [1, 3])
    def test_sides_that_are_no_multiples_of_8_are_continued(self, channels):
        own, donor = (photo(45, 51, channels, seed) for seed in (0, 1))
        found = given(normalized(own), normalized(as_jpeg(donor, 20)))
        assert found.shape == (1, channels, 45, 51)
        assert quality(found) == [20]
        assert not torch.equal(found[..., 40:, 48:], normalized(own)[..., 40:, 48:])

    def test_flat_images_stay_flat(self):
        own = normalized(photo())
        own[:] = own[..., :1, :1]
        assert torch.equal(given(own, normalized(as_jpeg(photo(seed=1), 20))), own)

    @pytest.mark.parametrize("odd", [None, 0, 2])
    def test_each_image_alone_gives_what_it_gives_in_company(self, odd):
        images = torch.cat([normalized(as_jpeg(photo(seed=seed), 30 + 20 * seed)) for seed in range(4)])
        if odd is not None:  # not of 256 levels
            images[odd] = images[odd] + 0.01 * torch.rand(images.shape[1:])
        donors = images.roll(1, dims=0)
        alone = torch.cat([given(images[at : at + 1], donors[at : at + 1]) for at in range(4)])
        torch.testing.assert_close(given(images, donors), alone, atol=1e-3, rtol=0)
        stay = [torch.equal(now, before) for now, before in zip(alone, images, strict=True)]
        assert [at for at in range(4) if stay[at]] == ([] if odd is None else sorted({odd, (odd + 1) % 4}))

    def test_it_reads_no_less_under_autocast(self):
        probes = compressed_scenes(16)
        images, donors = probes.images, probes.images.roll(1, dims=0)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = given(images, donors)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, given(images, donors))
