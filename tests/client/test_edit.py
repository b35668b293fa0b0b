from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from client.edit import points_of, prompt_of, reference_of, weights_of
from client.errors import BadArgument
from client.generate import Job, build_request


class Uploads:
    """The one call that references make."""

    def __init__(self) -> None:
        self.sent: list[tuple[bytes, str]] = []

    def upload(self, data: bytes, name: str) -> dict[str, Any]:
        self.sent.append((data, name))
        return {"id": "upl_1"}


def test_references_are_generations_or_files(tmp_path: Path) -> None:
    client: Any = Uploads()
    made = "gen_0123456789abcdef01234567"
    assert reference_of(made, client) == {"generation": made, "index": 0}
    assert reference_of(f"{made}:3", client) == {"generation": made, "index": 3}
    (tmp_path / "a b.png").write_bytes(b"png")
    assert reference_of(str(tmp_path / "a b.png"), client) == {"upload_id": "upl_1"}
    assert client.sent == [(b"png", "a b.png")]
    with pytest.raises(BadArgument, match="name an image file or a generation"):
        reference_of(str(tmp_path / "none.png"), client)


def test_controls_and_adapters_are_uploaded(tmp_path: Path) -> None:
    client: Any = Uploads()
    (tmp_path / "pose.png").write_bytes(b"png")
    shown = f"pose-net={tmp_path / 'pose.png'}"
    job = Job("a", "", tmp_path, (f"pose={tmp_path / 'pose.png'}:0.8",), adapters=(f"{shown}:0.5",))
    image = {"upload_id": "upl_1"}
    assert build_request(job, client) == {
        "prompt": "a",
        "controls": [{"type": "spatial", "head": "pose", "image": image, "weight": 0.8}],
        "adapters": [{"model": "pose-net", "image": image, "scale": 0.5}],
    }
    masked = Job("a", "", tmp_path, reference=f"gen_{'0' * 24}", mask=tmp_path / "pose.png")
    assert build_request(masked, client)["mask"] == image
    with pytest.raises(BadArgument, match="write ADAPTER=IMAGE"):
        build_request(Job("a", "", tmp_path, adapters=("pose.png",)), client)


def test_points_are_pairs() -> None:
    assert points_of(["0.3,.4:0.3, 0.2", "120,200:120,96"]) == [
        {"from": {"x": 0.3, "y": 0.4}, "to": {"x": 0.3, "y": 0.2}},
        {"from": {"x": 120.0, "y": 200.0}, "to": {"x": 120.0, "y": 96.0}},
    ]
    for wrong in ("", "1,2", "1,2:3", "a,b:c,d", "1,2:3,4:5,6", "-1,2:3,4"):
        with pytest.raises(BadArgument, match=r"write X,Y:X,Y"):
            points_of([wrong])


def test_weights_are_numbers() -> None:
    assert weights_of("0, 0.5,1") == [0, 0.5, 1]
    assert weights_of(None) is None
    with pytest.raises(BadArgument, match="--weights"):
        weights_of("0;1")


def test_an_edit_shows_what_its_generation_showed() -> None:
    class Service:
        def get(self, generation_id: str) -> dict[str, Any]:
            return {"id": generation_id, "request": {"prompt": "a person on sand"}}

    client: Any = Service()
    assert prompt_of({"generation": "gen_1", "index": 0}, client) == "a person on sand"
    assert prompt_of({"upload_id": "upl_1"}, client) == ""
