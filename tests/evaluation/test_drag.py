from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from evaluation.drag import (
    APART,
    JOINTS,
    LONGEST,
    MARGIN,
    OTHER_SIDE,
    SHORTEST,
    Case,
    DragScorer,
    choose_drag,
    limb_mask,
    others_moved,
    painted,
    sides_as_before,
    turned,
)
from evaluation.judge import MIRRORED, confidence
from world.render import render_rgb
from world.scene import sample_scene
from world.seeds import TEST


def case_of(seed: int) -> Case:
    rgb, keypoints = render_rgb(sample_scene(seed, kind="figure"))
    points = torch.from_numpy(keypoints[0, :, :2]) / 64
    chosen = choose_drag(seed, points, torch.ones(18, dtype=torch.bool))
    assert chosen is not None
    picture = torch.from_numpy(rgb).permute(2, 0, 1).float() / 255
    return Case("a person", {"prompt": "a person", "seed": 3}, picture, points, *chosen)


def test_a_point_turns_clockwise_around_its_pivot() -> None:
    found = turned(torch.tensor([0.7, 0.5]), torch.tensor([0.5, 0.5]), 90)
    torch.testing.assert_close(found, torch.tensor([0.5, 0.7]))


def test_drags_stay_inside_keep_the_limbs_length_and_move_what_is_seen() -> None:
    for seed in TEST[:20]:
        case = case_of(seed)
        pivot = case.points[list(case.joint.pivots)].mean(dim=0)
        before, after = (case.source - pivot).norm(), (case.target - pivot).norm()
        assert float(after) == pytest.approx(float(before), abs=1e-5)
        assert SHORTEST <= float((case.target - case.source).norm()) <= LONGEST
        assert MARGIN < float(case.target.min()) <= float(case.target.max()) < 1 - MARGIN
        assert choose_drag(seed, case.points, torch.zeros(18, dtype=torch.bool)) is None


def test_a_drag_does_not_end_where_the_other_wrist_or_ankle_is() -> None:
    seen = torch.zeros(18, dtype=torch.bool)
    for seed in TEST[:20]:
        case = case_of(seed)
        like = OTHER_SIDE.get(case.joint.index)
        if like is None:
            continue
        assert float((case.target - case.points[like]).norm()) >= APART
        only = seen.clone()
        only[case.joint.index] = True
        points = case.points.clone()
        points[like] = case.target
        again = choose_drag(seed, points, only)
        assert again is None or float((again[1] - points[like]).norm()) >= APART


def test_a_limbs_mask_holds_its_joints_and_not_the_rest() -> None:
    joint = next(joint for joint in JOINTS if joint.index == 4)
    points = torch.full((18, 2), 0.5)
    points[3], points[4] = torch.tensor([0.3, 0.5]), torch.tensor([0.3, 0.7])
    case = Case("", {}, torch.zeros(3, 64, 64), points, joint, torch.tensor([0.5, 0.5]))
    mask = limb_mask(case)
    assert all(mask[y, x] for x, y in ((19, 32), (19, 44), (32, 32), (26, 38)))
    assert not any(mask[y, x] for x, y in ((19, 60), (48, 20), (2, 2)))


def test_what_is_not_said_is_left_to_the_defaults() -> None:
    case = case_of(TEST[0])
    appearance, drag = case.asked()["controls"]
    assert set(appearance) == {"type"}
    assert set(drag) == {"type", "points"}
    appearance, drag = case.asked(weight=0.5, balance=0.5, span=(0, 0.3))["controls"]
    assert (appearance["weight"], drag["weight"]) == (0.25, 0.5)
    assert appearance["span"] == [0, 0.3]


def test_a_drags_skeleton_moves_the_dragged_point_and_what_it_carries_alone() -> None:
    joint = next(joint for joint in JOINTS if joint.carried == (3,))
    points = torch.full((18, 2), 0.5)
    points[2], points[3], points[4] = torch.tensor([[0.5, 0.3], [0.5, 0.4], [0.5, 0.5]])
    case = Case("", {}, torch.zeros(3, 64, 64), points, joint, torch.tensor([0.3, 0.3]))
    wanted = case.wanted()
    torch.testing.assert_close(wanted[4], case.target)
    torch.testing.assert_close(wanted[3], torch.tensor([0.4, 0.3]))
    white = painted(case)
    for x, y in (case.source, case.target, points[3], wanted[3], case.pivot):
        assert white[int(64 * y), int(64 * x)]
    assert not white[60, 32]
    assert white[limb_mask(case)].all()
    assert (wanted != points).any(dim=1).nonzero()[:, 0].tolist() == [3, 4]
    (person,) = case.skeleton()["people"]
    assert person["pose_keypoints_2d"][9:12] == pytest.approx([0.4 * 512, 0.3 * 512, 1])
    pose = case.asked(pose={"weight": 0.5, "span": [0.3, 0.9]})["controls"][-1]
    assert (pose["head"], pose["keypoints"]) == ("pose", case.skeleton())


def test_an_unchanged_picture_kept_everything_and_dragged_nothing() -> None:
    scorer, case = DragScorer(), case_of(TEST[0])
    pictures = case.picture[None]
    points = scorer.judge(pictures).keypoints[0]
    case = replace(case, points=points)
    scores = scorer(pictures, [case])
    assert scores["distance"][0] == pytest.approx(
        512 * float((case.target - case.source).norm()), rel=1e-4
    )
    assert scores["outside"][0] == scores["others"][0] == 0
    assert scores["attributes"][0] == 100
    assert scores["halfway"][0] == 0
    nearly = replace(case, target=points[case.joint.index] + 0.01, points=points - 0.2)
    assert scorer(pictures, [nearly])["halfway"][0] == 100
    wrist = JOINTS[0]
    swapped = replace(case, joint=wrist, target=points[OTHER_SIDE[wrist.index]])
    scores = scorer(pictures, [swapped])
    assert scores["either"][0] < 1e-3 < scores["distance"][0]
    changed = pictures.clone()
    changed[:, :, ~limb_mask(case)] = 1 - changed[:, :, ~limb_mask(case)]
    assert scorer(changed, [case])["outside"][0] > 30


def test_a_person_taken_for_one_seen_from_behind_keeps_the_sides_of_before() -> None:
    case = case_of(TEST[0])
    arrived = case.wanted()
    torch.testing.assert_close(sides_as_before(arrived, case), arrived)
    torch.testing.assert_close(sides_as_before(arrived[MIRRORED], case), arrived)
    assert others_moved(arrived, case) == 0 < others_moved(arrived[MIRRORED], case)


def test_the_wrong_limb_at_the_target_has_not_arrived() -> None:
    case = replace(case_of(TEST[0]), joint=JOINTS[0])
    other = OTHER_SIDE[case.joint.index]
    points = case.points.clone()
    points[other] = case.target
    seen = sides_as_before(points, case)
    torch.testing.assert_close(seen[case.joint.index], case.source)


def test_confidence_tells_a_peak_from_a_plain() -> None:
    heatmaps = torch.zeros(1, 2, 32, 32)
    heatmaps[0, 0, 10, 12] = 20
    sure, unsure = confidence(heatmaps)[0].tolist()
    assert sure > 0.99
    assert unsure < 0.03
