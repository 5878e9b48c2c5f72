"""Means come with intervals that hold them as often as they say, and with counts of what was left out."""

import math

import pytest
import torch

from cam_callbacks.audit.donors import Donors
from cam_callbacks.audit.statistics import (
    measure,
    standard_error,
    student_t_quantile,
    student_t_tail,
    wilson,
)


class TestMeasure:
    def test_nan_is_counted_not_averaged(self):
        found = measure(torch.tensor([1.0, torch.nan, 0.0, 1.0]), torch.tensor([0, 0, 1, 1]))
        assert (found.overall.value, found.overall.count, found.overall.skipped) == (pytest.approx(2 / 3), 3, 1)
        assert (found.per_class[0].value, found.per_class[0].count, found.per_class[0].skipped) == (1, 1, 1)
        assert found.values_of(1).tolist() == [0, 1]

    def test_without_any_value_all_is_nan_and_nothing_fails(self):
        found = measure(torch.full((2,), torch.nan), torch.tensor([0, 1])).overall
        assert all(math.isnan(each) for each in (found.value, found.low, found.high))
        assert (found.count, found.skipped) == (0, 2)

    def test_only_images_that_count_are_in_what_is_said_of_all(self):
        values, labels = torch.tensor([[1.0], [1.0], [0.0], [0.0]]), torch.tensor([0, 0, 1, 1])
        donors = Donors(torch.tensor([[1], [0], [3], [2]]), torch.tensor([[2], [3], [0], [1]]))
        for given, by in ((values, donors), (values[:, 0], None)):
            found = measure(given, labels, 0.5, by, counts=torch.tensor([False, False, True, True]))
            assert (found.overall.value, found.overall.count) == (0, 2)
            assert found.per_class[0].value == 1

    def test_one_image_has_no_interval(self):
        donors = Donors(torch.tensor([[1], [0]]), torch.tensor([[1], [0]]))
        for given, by in ((torch.tensor([[0.5], [0.2]]), donors), (torch.tensor([0.5, 0.2]), None)):
            found = measure(given, torch.tensor([0, 1]), None, by).per_class[0]
            assert found.value == 0.5
            assert math.isnan(found.low)
            assert math.isnan(found.high)

    def test_an_interval_ends_at_the_largest_value_that_there_can_be(self):
        values, labels = torch.tensor([1.6, 1.2, 1.8, 1.5]).unsqueeze(1), torch.zeros(4, dtype=torch.long)
        donors = Donors(torch.tensor([[1], [0], [3], [2]]), torch.tensor([[2], [3], [0], [1]]))
        found = measure(values, labels, None, donors, limit=2.0).overall
        assert found.low < found.value < found.high <= 2

    def test_the_chance_level_stands_on_the_same_images(self):
        found = measure(torch.tensor([1.0, torch.nan]), torch.tensor([0, 0]), torch.tensor([0.2, 1.0]))
        assert found.overall.chance == pytest.approx(0.2)


class TestIntervals:
    def test_wilsons_stays_within_0_and_1_and_is_that_of_the_textbook(self):
        assert wilson(0, 0) == (0, 1)
        assert wilson(10, 10)[1] == pytest.approx(1)
        assert wilson(8, 10) == (pytest.approx(0.4902, abs=1e-3), pytest.approx(0.9433, abs=1e-3))


class TestStandardError:
    def test_of_independent_numbers_is_that_of_the_textbook(self):
        values = torch.rand(50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        alone = torch.arange(50)
        found = standard_error((values - values.mean()) / 50, [alone, alone, alone])
        assert found == pytest.approx(float(values.std() / 50**0.5))

    def test_covers_what_shared_donors_do(self):
        """Means of values that are the sum of an effect of the image, and one of a donor that ten images share."""
        draw = torch.Generator().manual_seed(0)
        donors = torch.arange(100) // 10
        means, errors = [], []
        for _ in range(300):
            own, given = torch.randn(100, generator=draw).double(), torch.randn(10, generator=draw).double()
            values = own + given[donors]
            means.append(float(values.mean()))
            errors.append(standard_error((values - values.mean()) / 100, [torch.arange(100), donors]))
        assert sum(errors) / 300 == pytest.approx(float(torch.tensor(means).std()), rel=0.1)


class TestOfSeveralDonors:
    def test_values_are_means_over_donors_and_those_with_each_are_kept(self):
        by_donor, donors = (
            torch.tensor([[1.0, 0.0], [1.0, 1.0], [torch.nan, 1.0]]),
            torch.tensor([[1, 2], [2, 0], [0, 1]]),
        )
        found = measure(by_donor, torch.zeros(3, dtype=torch.long), donors=Donors(donors, donors))
        assert found.values[:2].tolist() == [0.5, 1]
        assert torch.equal(found.by_donor, by_donor) or found.by_donor[:2].tolist() == by_donor[:2].tolist()
        assert (found.overall.value, found.overall.count, found.overall.skipped) == (0.75, 2, 1)

    @pytest.mark.parametrize("times", [1, 3])
    def test_about_95_of_100_intervals_hold_the_mean_where_few_donors_decide(self, times):
        """What an image gets depends on its donors more than on itself, and each donor gives to some ten images."""
        draw = torch.Generator().manual_seed(0)
        labels, held = torch.zeros(80, dtype=torch.long), 0
        for _ in range(300):
            same, other = (torch.randint(8, (80, times), generator=draw) for _ in range(2))
            given = [(torch.rand(8, generator=draw) < share).float() for share in (0.8, 0.4)]
            values = given[0][same] - given[1][other]
            found = measure(values, labels, donors=Donors(same, other)).overall
            held += found.low <= 0.4 <= found.high
        assert 0.9 <= held / 300 <= 0.99


class TestStudentsT:
    @pytest.mark.parametrize(("value", "freedom"), [(0.0, 5), (2.0, 9), (-1.3, 3), (4.5, 500), (25.0, 2), (1.0, 1)])
    def test_its_tail_is_that_of_scipy(self, value, freedom):
        stats = pytest.importorskip("scipy.stats")
        assert student_t_tail(value, freedom) == pytest.approx(stats.t.sf(value, freedom), rel=1e-3)

    @pytest.mark.parametrize(("tail", "freedom"), [(0.025, 9), (1e-6, 60), (0.2, 400)])
    def test_its_quantile_has_that_tail(self, tail, freedom):
        assert student_t_tail(student_t_quantile(tail, freedom), freedom) == pytest.approx(tail, rel=1e-6)
