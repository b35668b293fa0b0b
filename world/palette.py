"""Names and sRGB colours of everything in the world; knows no geometry and no randomness."""

from __future__ import annotations

Colour = tuple[float, float, float]


def _rgb(red: int, green: int, blue: int) -> Colour:
    return (red / 255.0, green / 255.0, blue / 255.0)


#: The eight named colours of shirts and trousers, far apart in Lab also in shade.
CLOTHING: dict[str, Colour] = {
    "red": _rgb(214, 26, 42),
    "orange": _rgb(255, 132, 8),
    "yellow": _rgb(255, 226, 34),
    "green": _rgb(26, 152, 58),
    "blue": _rgb(30, 78, 222),
    "purple": _rgb(132, 44, 172),
    "white": _rgb(246, 246, 246),
    "black": _rgb(34, 34, 40),
}
COLOUR_NAMES = tuple(CLOTHING)

HAIR_COLOURS: dict[str, Colour] = {
    "black": _rgb(32, 27, 28),
    "brown": _rgb(98, 58, 32),
    "blond": _rgb(226, 186, 96),
    "ginger": _rgb(190, 84, 28),
    "grey": _rgb(156, 156, 160),
}
HAIR_STYLES = ("bald", "short", "long", "curly", "bun")
HAT_KINDS = ("none", "cap", "beanie", "hat")
GLASSES_KINDS = ("none", "round", "square", "dark")
GLASSES_COLOURS: dict[str, Colour] = {"black": _rgb(20, 20, 22), "red": _rgb(160, 24, 30)}

SHOE_COLOURS: dict[str, Colour] = {
    "black": _rgb(30, 28, 30),
    "brown": _rgb(96, 56, 30),
    "white": _rgb(232, 232, 230),
    "grey": _rgb(112, 114, 120),
}
IRIS_COLOURS: dict[str, Colour] = {
    "brown": _rgb(62, 36, 18),
    "blue": _rgb(40, 84, 150),
    "green": _rgb(46, 96, 60),
}

GROUNDS: dict[str, Colour] = {
    "grass": _rgb(104, 164, 62),
    "sand": _rgb(230, 202, 142),
    "snow": _rgb(238, 242, 248),
    "asphalt": _rgb(100, 102, 108),
    "wood": _rgb(172, 116, 68),
}
GROUND_KINDS = tuple(GROUNDS)

#: Sky kind → (colour at the horizon, colour at the zenith, tint of the light).
SKIES: dict[str, tuple[Colour, Colour, Colour]] = {
    "blue": (_rgb(196, 226, 248), _rgb(84, 156, 232), (1.0, 1.0, 1.0)),
    "pink": (_rgb(255, 214, 206), _rgb(240, 142, 180), (1.0, 0.97, 0.97)),
    "grey": (_rgb(206, 210, 214), _rgb(146, 152, 160), (0.96, 0.96, 0.97)),
    "golden": (_rgb(255, 236, 176), _rgb(244, 184, 78), (1.0, 0.98, 0.94)),
    "dark": (_rgb(88, 82, 132), _rgb(28, 32, 78), (0.9, 0.91, 0.96)),
}
SKY_KINDS = tuple(SKIES)

PROP_COLOURS: dict[str, Colour] = {
    "brown": _rgb(146, 98, 58),
    "teal": _rgb(48, 146, 150),
    "pink": _rgb(232, 128, 160),
    "grey": _rgb(150, 150, 156),
    "cream": _rgb(228, 214, 182),
}
PROP_KINDS = ("box", "ball", "tree")

_SKIN_STOPS = (
    _rgb(250, 214, 190),
    _rgb(232, 182, 144),
    _rgb(190, 132, 92),
    _rgb(136, 88, 60),
    _rgb(92, 60, 44),
)


def skin_colour(tone: float) -> Colour:
    """sRGB colour of a skin tone between 0 (light) and 1 (dark), piecewise linear."""
    position = min(max(tone, 0.0), 1.0) * (len(_SKIN_STOPS) - 1)
    index = min(int(position), len(_SKIN_STOPS) - 2)
    weight = position - index
    low, high = _SKIN_STOPS[index], _SKIN_STOPS[index + 1]
    return (
        low[0] + (high[0] - low[0]) * weight,
        low[1] + (high[1] - low[1]) * weight,
        low[2] + (high[2] - low[2]) * weight,
    )
