"""From a scene's attributes to English captions and their closed vocabulary; knows no pixels."""

from __future__ import annotations

from collections.abc import Collection
from random import Random

from world.palette import COLOUR_NAMES, GROUND_KINDS, HAIR_COLOURS, SKY_KINDS
from world.poses import Pose
from world.scene import Person, Scene, stream

#: The clauses of a caption that can be left out.
CLAUSES = ("arms", "legs", "looks", "ground", "sky", "props", "view")
POSE_CLAUSES = ("arms", "legs")
DROP_PROBABILITY = 0.3
CLOTHES_DROP_PROBABILITY = 0.06
VARIANTS = 4
MAX_TOKENS = 30

#: Every word (and the comma) that a caption can hold; one token each.
VOCABULARY: tuple[str, ...] = tuple(
    dict.fromkeys(
        (
            ",",
            *(
                "a",
                "an",
                "and",
                "of",
                "in",
                "on",
                "under",
                "with",
                "from",
                "one",
                "two",
                "people",
                "person",
                "portrait",
            ),
            *(
                "shirt",
                "trousers",
            ),
            *COLOUR_NAMES,
            *(
                "arms",
                "arm",
                "hand",
                "hands",
                "raised",
                "down",
                "out",
                "forward",
                "hips",
                "waving",
                "pointing",
                "left",
                "right",
            ),
            *(
                "standing",
                "legs",
                "leg",
                "apart",
                "walking",
                "kneeling",
                "behind",
            ),
            *(
                "short",
                "long",
                "curly",
                "hair",
                "bald",
                "head",
                "bun",
            ),
            *HAIR_COLOURS,
            *(
                "cap",
                "beanie",
                "hat",
                "glasses",
                "round",
                "square",
                "dark",
            ),
            *GROUND_KINDS,
            *("sky",),
            *SKY_KINDS,
            *(
                "box",
                "ball",
                "tree",
                "next",
                "to",
            ),
        )
    )
)


def tokens(caption: str) -> list[str]:
    """The words and commas of a caption."""
    return caption.replace(",", " ,").split()


def arm_words(pose: Pose) -> str:
    """The words of an arm pose, sides as the person's own."""
    return {
        "down": "arms down",
        "raised": "arms raised",
        "out": "arms out",
        "one_raised": f"{pose.arm_side} arm raised",
        "hips": "hands on hips",
        "waving": f"waving {pose.arm_side} hand",
        "pointing": f"{pose.arm_side} arm pointing",
        "forward": "arms forward",
    }[pose.arms]


def leg_words(pose: Pose) -> str:
    """The words of a leg pose."""
    return {
        "standing": "standing",
        "wide": "legs apart",
        "walking": "walking",
        "kneeling": "kneeling",
        "one_leg_raised": f"{pose.leg_side} leg raised",
    }[pose.legs]


def hair_words(person: Person) -> str:
    """ "short brown hair", "a bald head" ..."""
    identity = person.identity
    if identity.hair_style == "bald":
        return "a bald head"
    if identity.hair_style == "bun":
        return f"a {identity.hair_colour} bun"
    return f"{identity.hair_style} {identity.hair_colour} hair"


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def _looks(person: Person, portrait: bool) -> list[str]:
    identity = person.identity
    words = []
    if portrait:
        words.append(hair_words(person))
    if identity.hat != "none":
        colour = identity.hat_colour
        words.append(
            f"{_article(colour)} {colour} {identity.hat}" if portrait else f"a {identity.hat}"
        )
    if identity.glasses != "none":
        words.append(f"{identity.glasses} glasses" if portrait else "glasses")
    if not portrait and not words:
        words.append(hair_words(person))
    return words


def _joined(words: list[str]) -> str:
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]


def _clothes(person: Person, portrait: bool, lead: str = "in ") -> str:
    shirt, trousers = person.outfit.shirt, person.outfit.trousers
    text = f"{lead}{_article(shirt)} {shirt} shirt"
    return text if portrait else f"{text} and {trousers} trousers"


def caption(scene: Scene, pose: bool = True, drop: Collection[str] = ()) -> str:
    """The caption of a scene: full unless clauses are dropped; at most 30 tokens.

    Args:
        pose: False leaves out every word about arms and legs.
        drop: names of CLAUSES to leave out; "clothes" leaves out shirt and trousers.
    """
    dropped = set(drop) | (set() if pose else set(POSE_CLAUSES))
    text = ""
    for looks in (2, 1, 0):  # the longest captions name fewer looks
        text = _compose(scene, dropped, looks)
        if len(tokens(text)) <= MAX_TOKENS:
            return text
    return _compose(scene, dropped | {"props", "view"}, 0)


def seen_from_behind(scene: Scene) -> bool:
    """Whether the scene's first camera looks at people's backs."""
    return abs(scene.camera.yaw) > 1.9


def _compose(scene: Scene, dropped: set[str], most_looks: int) -> str:
    portrait = scene.kind == "portrait"
    person = scene.people[0]
    clauses = []
    if scene.kind == "couple":
        text = "two people"
        if "clothes" not in dropped:
            clauses += [_clothes(person, False, "one in ") for person in scene.people]
    elif portrait:
        text = "a portrait of a person"
        looks = [] if "looks" in dropped else _looks(person, True)
        if looks:
            text += " with " + _joined(looks)
        if "clothes" not in dropped:
            text += (", " if looks else " ") + _clothes(person, True)
    else:
        text = "a person"
        looks = [] if "looks" in dropped else _looks(person, False)[:most_looks]
        if "clothes" not in dropped:
            text += " " + _clothes(person, False)
        if looks:
            text += " with " + _joined(looks)
        if "legs" not in dropped:
            clauses.append(leg_words(person.pose))
        if "arms" not in dropped:
            clauses.append(arm_words(person.pose))
    if seen_from_behind(scene) and "view" not in dropped:
        clauses.append("from behind")
    if "ground" not in dropped and not portrait:
        clauses.append(f"on {scene.background.ground}")
    if "sky" not in dropped:
        clauses.append(f"under a {scene.background.sky} sky")
    if scene.background.props and "props" not in dropped and scene.kind == "figure":
        clauses.append(f"next to a {scene.background.props[0].kind}")
    return ", ".join([text, *clauses])


def random_caption(scene: Scene, rng: Random, pose: bool = True) -> str:
    """A caption with each clause dropped with DROP_PROBABILITY (clothes:
    CLOTHES_DROP_PROBABILITY)."""
    drop = [
        clause
        for clause in CLAUSES
        if rng.random() < (0.6 if clause in ("looks", "props") else DROP_PROBABILITY)
    ]
    if scene.kind == "portrait" and "looks" in drop and rng.random() < 0.5:
        drop.remove("looks")
    if rng.random() < CLOTHES_DROP_PROBABILITY:
        drop.append("clothes")
    return caption(scene, pose, drop)


def caption_variants(scene: Scene, count: int = VARIANTS) -> list[str]:
    """`count` captions of a scene by its seed: the full one first, then random ones."""
    rng = stream(scene.seed, "caption")
    return [caption(scene)] + [random_caption(scene, rng) for _ in range(count - 1)]


def attributes(scene: Scene) -> dict[str, object]:
    """Everything a caption could say, as a JSON-able dictionary."""
    background = scene.background
    return {
        "kind": scene.kind,
        "ground": background.ground,
        "sky": background.sky,
        "from_behind": seen_from_behind(scene),
        "props": [{"kind": prop.kind, "colour": prop.colour} for prop in background.props],
        "people": [
            {
                "shirt": person.outfit.shirt,
                "trousers": person.outfit.trousers,
                "shoes": person.outfit.shoes,
                "long_sleeves": person.outfit.long_sleeves,
                "arms": person.pose.arms,
                "arm_side": person.pose.arm_side,
                "legs": person.pose.legs,
                "leg_side": person.pose.leg_side,
                "hair_style": person.identity.hair_style,
                "hair_colour": person.identity.hair_colour,
                "hat": person.identity.hat,
                "hat_colour": person.identity.hat_colour,
                "glasses": person.identity.glasses,
                "skin_tone": round(person.identity.skin_tone, 4),
            }
            for person in scene.people
        ],
    }
