"""The ways to name a class."""

from __future__ import annotations

import pickle

import pytest

from cam_callbacks.data.class_names import ClassNames


def test_they_are_a_tuple_of_text() -> None:
    names = ClassNames(["cat", 7, "d\udce4chs"])
    assert names == ("cat", "7", "d?chs")
    assert list(names) == ["cat", "7", "d?chs"]
    assert len(names) == 3
    assert names == ClassNames(names) == pickle.loads(pickle.dumps(names))
    assert isinstance(pickle.loads(pickle.dumps(names)), ClassNames)


def test_without_names_they_are_empty() -> None:
    assert ClassNames() == ClassNames(None) == ClassNames([]) == ()
    assert not ClassNames()


@pytest.mark.parametrize("given", ["cat", 3])
def test_what_is_not_a_list_is_refused(given: object) -> None:
    with pytest.raises(TypeError, match=f"class_names={given!r} must be a list of names, or None"):
        ClassNames(given)  # type: ignore[arg-type]


def test_a_class_without_a_name_goes_by_its_index() -> None:
    names = ClassNames(("cat", "dog"))
    assert [names.name(index) for index in (0, 1, 2, -1)] == ["cat", "dog", "2", "-1"]
    assert ClassNames().name(3) == "3"


def test_unique_names_of_classes_that_share_one_end_in_the_index() -> None:
    names = ClassNames(("cat", "dog", "cat", "owl"))
    assert names.unique([0, 1, 2, 2]) == {0: "cat (0)", 1: "dog", 2: "cat (2)"}
    assert names.unique([3, 0]) == {0: "cat", 3: "owl"}
    assert names.unique([4]) == {4: "4"}


@pytest.mark.parametrize(
    ("names", "tags"),
    [
        (("cat", "dog", "owl"), ["cat", "dog", "owl"]),
        (("risk", "risk_low", "a"), ["risk", "risk_low_1", "a"]),
        (("a_2", "a", "a"), ["a_2_0", "a", "a_2"]),
        (("", "é", "?"), ["_0", "_", "__2"]),
        (("cat dog", "a/b", ".."), ["cat_dog", "a_b", "__"]),
        (("2",), ["2", "1", "2_2"]),
        ((), ["0", "1", "2"]),
    ],
)
def test_tags_are_ascii_and_no_two_are_the_same(names: tuple[str, ...], tags: list[str]) -> None:
    assert [ClassNames(names).tag(index) for index in range(3)] == tags
