"""The drag grammar against the published example."""

from __future__ import annotations

import pytest
from drag_reading import fit_motion, parse_drag_prompt
from pack.dit.dreamomni.drag import (
    VERBS,
    DragOperation,
    drag_prompt,
    moved_points,
    rotated_points,
    scaled_points,
)

PUBLISHED = (
    "(0.8607, 0.2977, 0.0000, 0.0000) (0.7800, 0.3930, 0.0912, 0.0734) (0.8719, 0.4188, 0.0556, -0.0813) "
    "(0.7659, 0.2745, 0.0385, 0.1579) (0.8348, 0.4124, 0.0720, -0.0210) (0.9030, 0.4536, 0.0567, -0.1476). "
    "Revolve the white speech bubble with a blue letter A and B."
)
SIZE = (1350, 776)
"""The only size up to 1500 pixels at which every published point is a whole pixel."""
CENTRE = (1162, 231)
HANDLES = [(1053, 305), (1177, 325), (1034, 213), (1127, 320), (1219, 352)]
SUBJECT = "the white speech bubble with a blue letter A and B"


def test_the_published_example_is_a_rotation_by_minus_62_degrees() -> None:
    drag = parse_drag_prompt(PUBLISHED)
    assert drag.operation is DragOperation.ROTATE
    assert drag.subject == SUBJECT
    assert len(drag.points) == 6
    assert drag.points[0] == (0.8607, 0.2977, 0.0, 0.0)
    motion = fit_motion(drag.points, SIZE)
    assert motion.angle == pytest.approx(-62.0, abs=0.05)
    assert motion.scale == pytest.approx(1.0, abs=1e-3)
    assert motion.centre_shift == pytest.approx((0.0, 0.0), abs=0.15)
    assert motion.error < 0.2


def test_the_writer_gives_the_published_example_to_the_last_decimal() -> None:
    assert drag_prompt(rotated_points(CENTRE, HANDLES, -62.0), "rotate", SIZE, SUBJECT) == PUBLISHED


def test_another_angle_does_not_give_the_published_example() -> None:
    for degrees in (-61.9, -62.1, 62.0):
        assert drag_prompt(rotated_points(CENTRE, HANDLES, degrees), "rotate", SIZE, SUBJECT) != PUBLISHED


@pytest.mark.parametrize("operation", DragOperation)
def test_what_is_written_is_read_back(operation: DragOperation) -> None:
    handles = [(40.0, 50.0), (90.0, 70.0), (60.0, 20.0)]
    points = {
        DragOperation.MOVE: moved_points(handles, 12.0, -8.0),
        DragOperation.SCALE: scaled_points((64.0, 48.0), handles, 1.5),
        DragOperation.ROTATE: rotated_points((64.0, 48.0), handles, 30.0),
    }[operation]
    for verb in VERBS[operation]:
        drag = parse_drag_prompt(drag_prompt(points, operation, (200, 100), "the red ball.", verb))
        assert (drag.operation, drag.verb, drag.subject) == (operation, verb, "the red ball")
        motion = fit_motion(drag.points, (200, 100))
        assert motion.angle == pytest.approx(30.0 if operation is DragOperation.ROTATE else 0.0, abs=0.05)
        assert motion.scale == pytest.approx(1.5 if operation is DragOperation.SCALE else 1.0, abs=1e-3)
        assert motion.centre_shift == pytest.approx(
            (12.0, -8.0) if operation is DragOperation.MOVE else (0.0, 0.0), abs=0.03
        )


def test_scaling_keeps_the_centre_and_multiplies_distances() -> None:
    points = scaled_points((10.0, 10.0), [(20.0, 10.0), (10.0, 40.0)], 2.0)
    assert points == [(10.0, 10.0, 0.0, 0.0), (20.0, 10.0, 10.0, 0.0), (10.0, 40.0, 0.0, 30.0)]


def test_negative_zero_is_written_as_zero() -> None:
    assert (
        drag_prompt([(5, 5, -1e-9, 0)], "move", (10, 10), "it")
        == "(0.5000, 0.5000, 0.0000, 0.0000). Move it."
    )


@pytest.mark.parametrize(
    ("points", "operation", "subject", "verb", "message"),
    [
        ([(5, 101, 0, 0)], "move", "it", None, r"point 1 at \(5, 101\) lies outside the 200 x 100 picture"),
        ([(-1, 5, 0, 0)], "move", "it", None, "point 1 at"),
        ([(5, float("nan"), 0, 0)], "move", "it", None, "not made of finite numbers"),
        ([], "move", "it", None, "move needs at least one point"),
        ([(5, 5, 0, 0)], "rotate", "it", None, "rotate needs its centre first"),
        ([(5, 5, 1, 0), (6, 6, 1, 0)], "scale", "it", None, "the first point of scale is the centre"),
        ([(5, 5, 0, 0)], "move", " . ", None, "the subject is empty"),
        ([(5, 5, 0, 0)], "move", "it", "Revolve", "'Revolve' is no verb of move"),
        ([(5, 5, 0, 0)], "bend", "it", None, "bend"),
    ],
)
def test_bad_drags_are_named(points, operation, subject, verb, message) -> None:
    with pytest.raises(ValueError, match=message):
        drag_prompt(points, operation, (200, 100), subject, verb)


def test_bad_size_and_factor_are_named() -> None:
    with pytest.raises(ValueError, match="picture size must be positive"):
        drag_prompt([(0, 0, 0, 0)], "move", (0, 100), "it")
    with pytest.raises(ValueError, match="scale factor must be positive"):
        scaled_points((0, 0), [(1, 1)], 0.0)
    with pytest.raises(ValueError, match="no drag points"):
        fit_motion([], (10, 10))


@pytest.mark.parametrize("text", ["Make it blue.", "(0.1, 0.2, 0.3). Move it.", "(0.1, 0.2, 0.3, 0.4)."])
def test_other_text_is_no_drag_prompt(text: str) -> None:
    with pytest.raises(ValueError, match="not a drag prompt"):
        parse_drag_prompt(text)


def test_an_unknown_verb_is_named() -> None:
    with pytest.raises(ValueError, match="unknown drag verb 'Bend'"):
        parse_drag_prompt("(0.1, 0.2, 0.3, 0.4). Bend the bow.")
