"""Dragging key points: cases from held-out scenes, and measures of what became of them.

A case drags a wrist, an ankle or the nose around the joint that carries it. The judge says where
the point is afterwards; it has never seen a diffusion feature.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from evaluation.attributes import PEOPLE, agreement, load_recogniser
from evaluation.edits import Asked, EditStudio, plain
from evaluation.generate import SIZE
from evaluation.judge import MIRRORED, confidence, load_judge
from evaluation.measures import Pictures
from world.captions import caption
from world.parts import Scene
from world.render import render_rgb
from world.scene import sample_scene, stream

EQUIVALENT_PX = 512
"""Distances are in pixels of a picture of this size."""
FIRST_SEED = 5000
SURE = 0.6
"""The judge's confidence in a point that is dragged."""
MARGIN, SHORTEST, LONGEST = 0.05, 0.1, 0.4
"""Of a drag, as fractions of the picture: distance from its edge, and length."""
LIMB = 0.1
"""Half the width of what a drag may change, as a fraction of the picture."""
APART = 0.1
"""How far from the other wrist or ankle a drag ends at least, as a fraction of the picture: two at
one place cannot be told apart, by the judge or by anybody, and either would be there unmoved."""


@dataclass(frozen=True)
class Joint:
    """What can be dragged.

    Attributes:
        index: of the key point. pivots: it turns around their mean. angles: by how many degrees,
            to either side. carried: key points that go with it.
    """

    index: int
    pivots: tuple[int, ...]
    angles: tuple[float, float]
    carried: tuple[int, ...] = ()


JOINTS = (
    Joint(4, (3,), (40, 80)),
    Joint(7, (6,), (40, 80)),
    Joint(4, (2,), (25, 50), (3,)),
    Joint(7, (5,), (25, 50), (6,)),
    Joint(10, (8,), (15, 30), (9,)),
    Joint(13, (11,), (15, 30), (12,)),
    Joint(0, (8, 11), (10, 18), (1, 2, 5, 14, 15, 16, 17)),
)
"""Wrists around elbows and around shoulders, ankles around hips, the nose around the hips."""
OTHER_SIDE = {4: 7, 7: 4, 10: 13, 13: 10}
"""The other wrist of a wrist, the other ankle of an ankle."""


@dataclass(frozen=True)
class Case:
    """One drag; places are (x, y), fractions of the picture.

    Attributes:
        prompt, reference: of the request.
        picture: (3, size, size) what is dragged.
        points: (18, 2) where its key points are.
        joint: what is dragged.
        target: where to.
    """

    prompt: str
    reference: Asked
    picture: Float[Tensor, "3 size size"]
    points: Float[Tensor, "18 2"]
    joint: Joint
    target: Float[Tensor, " 2"]

    def asked(
        self,
        weight: float | None = None,
        span: tuple[float, float] | None = None,
        balance: float = 1.0,
        pose: dict[str, Any] | None = None,
        **fields: Any,
    ) -> Asked:
        """The request; what is None is left to the defaults.

        Args:
            balance: the appearance control's weight over the correspondence control's; needs
                a weight.
            pose: weight, maybe span, of a pose control that asks for `skeleton` too; None: none.
        """
        point = [{"x": float(x), "y": float(y)} for x, y in (self.source, self.target)]
        drag = {"type": "correspondence", "points": [{"from": point[0], "to": point[1]}]}
        controls = [{"type": "appearance"}, drag]
        for control, factor in zip(controls, (balance, 1.0), strict=True):
            control |= {} if weight is None else {"weight": weight * factor}
            control |= {} if span is None else {"span": list(span)}
        if pose is not None:
            controls.append(
                {"type": "spatial", "head": "pose", "keypoints": self.skeleton()} | pose
            )
        common = {"task": "drag", "prompt": self.prompt, "reference": self.reference}
        seed = {} if "seed" in self.reference else {"seed": 0}  # changes nothing; names the picture
        return common | seed | {"controls": controls} | fields

    @property
    def source(self) -> Float[Tensor, " 2"]:
        """Where the point is."""
        return self.points[self.joint.index]

    @property
    def pivot(self) -> Float[Tensor, " 2"]:
        """What it turns around."""
        return self.points[list(self.joint.pivots)].mean(dim=0)

    def wanted(self) -> Float[Tensor, "18 2"]:
        """Where the key points are to be: the dragged one at its target, those that it carries
        turned with it, the others where they are."""
        pivot = self.pivot
        before, after = self.source - pivot, self.target - pivot
        crossed = before[0] * after[1] - before[1] * after[0]
        degrees = math.degrees(math.atan2(float(crossed), float(before @ after)))
        points = self.points.clone()
        for index in self.joint.carried:
            points[index] = turned(points[index], pivot, degrees)
        points[self.joint.index] = self.target
        return points

    def skeleton(self) -> dict[str, Any]:
        """`wanted` as an OpenPose file."""
        numbers = [
            number for x, y in (EQUIVALENT_PX * self.wanted()).tolist() for number in (x, y, 1.0)
        ]
        canvas = {"canvas_width": EQUIVALENT_PX, "canvas_height": EQUIVALENT_PX}
        return canvas | {"people": [{"pose_keypoints_2d": numbers}]}

    @property
    def seed(self) -> int:
        """Of a sampled reference."""
        return int(self.reference["seed"])


def turned(point: Tensor, pivot: Tensor, degrees: float) -> Tensor:
    """A point (x, y) turned around another; y runs down, so positive is clockwise."""
    angle = math.radians(degrees)
    x, y = (point - pivot).tolist()
    across, down = (
        math.cos(angle) * x - math.sin(angle) * y,
        math.sin(angle) * x + math.cos(angle) * y,
    )
    return pivot + torch.tensor([across, down])


def choose_drag(
    seed: int, points: Float[Tensor, "18 2"], sure: Bool[Tensor, " 18"]
) -> tuple[Joint, Tensor] | None:
    """A joint that is surely seen and a place for it, inside the picture and `APART` from its like
    on the other side; None: there is none."""
    rng = stream(seed, "drag")
    for joint in rng.sample(JOINTS, len(JOINTS)):
        pivot = points[list(joint.pivots)].mean(dim=0)
        like = OTHER_SIDE.get(joint.index)
        degrees = rng.uniform(*joint.angles)
        for side in rng.sample((-1, 1), 2):
            target = turned(points[joint.index], pivot, side * degrees)
            inside = bool(((target > MARGIN) & (target < 1 - MARGIN)).all())
            length = float((target - points[joint.index]).norm())
            apart = like is None or float((target - points[like]).norm()) >= APART
            if inside and apart and sure[joint.index] and SHORTEST <= length <= LONGEST:
                return joint, target
    return None


def limb_mask(case: Case) -> Bool[Tensor, "size size"]:
    """Where a drag may change the picture: around the lines between pivot, source and target."""
    pivot = case.pivot
    lines = [(pivot, case.source), (pivot, case.target), (case.source, case.target)]
    return _around(lines, case.picture.shape[-1])


def painted(case: Case) -> Bool[Tensor, "size size"]:
    """What a user paints white for a drag: the limb where it is and where it is to be, with the
    joints between."""
    lines = []
    for points in (case.points, case.wanted()):
        for index in case.joint.carried:
            lines += [(case.pivot, points[index]), (points[index], points[case.joint.index])]
    return limb_mask(case) | _around(lines, case.picture.shape[-1])


def _around(lines: Sequence[tuple[Tensor, Tensor]], size: int) -> Bool[Tensor, "size size"]:
    """The pixels within `LIMB` of lines between two points (x, y) each."""
    centres = (torch.arange(size) + 0.5) / size
    places = torch.stack(torch.meshgrid(centres, centres, indexing="xy"), dim=-1)
    mask = torch.zeros(size, size, dtype=torch.bool)
    for start, end in lines:
        along = end - start
        share = ((places - start) @ along / along.square().sum().clamp(min=1e-9)).clamp(0, 1)
        nearest = start + share[..., None] * along
        mask |= (places - nearest).norm(dim=-1) <= LIMB
    return mask


def others_moved(points: Float[Tensor, "18 2"], case: Case) -> float:
    """The mean way of the key points that should stay, as a fraction of the picture."""
    stay = [i for i in range(len(points)) if i not in (case.joint.index, *case.joint.carried)]
    return float((points - case.points)[stay].norm(dim=1).mean())


def sides_as_before(points: Float[Tensor, "18 2"], case: Case) -> Float[Tensor, "18 2"]:
    """Key points with all left and right exchanged where that leaves those that should stay nearer:
    a person whose face is not drawn may be seen from behind, which exchanges all."""
    return min(points, points[MIRRORED], key=lambda seen: others_moved(seen, case))


class DragScorer:
    """The judge and the recogniser of people."""

    @cached_property
    def judge(self) -> torch.nn.Module:
        """Sees key points."""
        return load_judge()

    @cached_property
    def people(self) -> torch.nn.Module:
        """Sees clothes, skin, hair and hats."""
        return load_recogniser(PEOPLE)

    @torch.no_grad()
    def __call__(self, pictures: Pictures, cases: Sequence[Case]) -> dict[str, np.ndarray]:
        """One number a case.

        Of the dragged point to its target, px of 512: `distance`, `sides` with `sides_as_before`,
        and `either` of it or its like on the other side, whichever is nearer. `others`, the mean
        way of the key points that should stay; `halfway`, whether less than half of the way is
        left, %; `outside`, the mean absolute change of the pixels away from the limb, of 255;
        `attributes`, the share in which the picture agrees with the one that was dragged, %;
        `person`, the judge's mean confidence, %.
        """
        verdict = self.judge(pictures)
        before = torch.stack([case.picture for case in cases])
        names = ("distance", "sides", "either", "halfway", "others", "outside")
        scores: dict[str, list[float]] = {name: [] for name in names}
        for row, case in enumerate(cases):
            points, joint = verdict.keypoints[row], case.joint
            left = float((points[joint.index] - case.target).norm())
            like = points[OTHER_SIDE.get(joint.index, joint.index)]
            scores["distance"].append(left)
            scores["either"].append(min(left, float((like - case.target).norm())))
            way = float((case.source - case.target).norm())
            scores["halfway"].append(100.0 * (left < 0.5 * way))
            facing = sides_as_before(points, case)
            scores["sides"].append(float((facing[joint.index] - case.target).norm()))
            scores["others"].append(others_moved(points, case))
            change = (pictures[row] - case.picture).abs().mean(dim=0)
            scores["outside"].append(255 * float(change[~limb_mask(case)].mean()))
        found = {name: np.array(values) for name, values in scores.items()}
        for name in ("distance", "sides", "either", "others"):
            found[name] *= EQUIVALENT_PX
        agreed = agreement(self.people(pictures).named(), self.people(before).named())
        sure = confidence(verdict.heatmaps).mean(dim=1).numpy()
        return found | {"attributes": 100 * agreed["mean"], "person": 100 * sure}


class CaseMaker:
    """Cases from scenes: of pictures that the model generates, or of renders."""

    def __init__(self, studio: EditStudio, scorer: DragScorer) -> None:
        self.studio, self.scorer = studio, scorer

    def generated(self, seeds: Sequence[int], count: int) -> list[Case]:
        """`count` drags of generated pictures; points are where the judge surely sees them."""
        cases: list[Case] = []
        for start in range(0, len(seeds), 8):
            if len(cases) >= count:
                break
            part = seeds[start : start + 8]
            prompts = [caption(_scene(seed), pose=False) for seed in part]
            noises = range(FIRST_SEED + start, FIRST_SEED + start + len(part))
            asked = [plain(p, seed) for p, seed in zip(prompts, noises, strict=True)]
            pictures = self.studio.pictures(asked, "references").pictures
            with torch.no_grad():
                verdict = self.scorer.judge(pictures)
            sure = confidence(verdict.heatmaps) >= SURE
            for row, seed in enumerate(part):
                chosen = choose_drag(seed, verdict.keypoints[row], sure[row])
                if chosen is not None:
                    reference = {"prompt": prompts[row], "seed": noises[row]}
                    points = verdict.keypoints[row]
                    cases.append(Case(prompts[row], reference, pictures[row], points, *chosen))
        return cases[:count]

    def rendered(self, seeds: Sequence[int], count: int) -> list[Case]:
        """`count` drags of renders, by exact labels of what is visible."""
        cases: list[Case] = []
        for seed in seeds:
            if len(cases) >= count:
                break
            scene = _scene(seed)
            rgb, keypoints = render_rgb(scene, SIZE)
            picture = torch.from_numpy(rgb).permute(2, 0, 1).float() / 255
            points = torch.from_numpy(keypoints[0, :, :2]) / SIZE
            chosen = choose_drag(seed, points, torch.from_numpy(keypoints[0, :, 2] > 1))
            if chosen is not None:
                prompt = caption(scene, pose=False)
                reference = {"upload_id": self.studio.upload(picture), "prompt": prompt}
                cases.append(Case(prompt, reference, picture, points, *chosen))
        return cases


def _scene(seed: int) -> Scene:
    return sample_scene(seed, kind="figure")
