"""`readout up` with a real (tiny, random) model: the README's snippets, the command, the demo."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image, ImageChops

pytestmark = [pytest.mark.torch, pytest.mark.slow, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
README_URL = "http://127.0.0.1:8000"
JQ = """#!{python}
import json, re, sys
value = json.load(sys.stdin)
for name, index in re.findall(r"\\.(\\w+)|\\[(\\d+)\\]", sys.argv[2]):
    value = value[name or int(index)]
print(value)
"""


@pytest.fixture(scope="module")
def environment(tiny_registry: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Of processes that use the tiny model; without servers of the one who runs the tests."""
    from tests.tiny import add_relative_heads

    registry = tmp_path_factory.mktemp("relative") / "registry"
    shutil.copytree(tiny_registry, registry)
    add_relative_heads(registry)
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("READOUT_", "REDIS_"))}
    return kept | {
        "READOUT_REGISTRY_DIRS": str(registry),
        "READOUT_DEFAULT_MODEL": "tiny",
        "READOUT_WARM_MODELS": "tiny",
        "READOUT_DEVICE": "cpu",
        "OMP_NUM_THREADS": "1",
    }


@pytest.fixture(scope="module")
def url(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of a whole stack on free ports."""
    from demo.stack import running_stack

    directory = tmp_path_factory.mktemp("stack with a space")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        with running_stack(directory / "data", directory / "stack.log") as address:
            yield address


@pytest.fixture
def workplace(tmp_path: Path) -> Path:
    """A directory with control images."""
    for name in ("pose", "depth"):
        Image.effect_noise((80, 100), 90).convert("RGB").save(tmp_path / f"{name}.png")
    return tmp_path


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


def readout(*arguments: str) -> list[str]:
    return [sys.executable, "-P", "-m", "cli", *arguments]


def snippet(language: str) -> str:
    text = (ROOT / "README.md").read_text()
    found = re.search(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert found, language
    assert README_URL in found[1]
    return found[1]


def test_the_readme_in_curl(url: str, workplace: Path) -> None:
    tools = workplace / "tools"
    tools.mkdir()
    if shutil.which("jq") is None:
        (tools / "jq").write_text(JQ.replace("{python}", sys.executable))
        (tools / "jq").chmod(0o755)
    script = "set -eu\n" + snippet("bash").replace(README_URL, url)
    search = {"PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"}
    subprocess.run(["bash", "-c", script], cwd=workplace, check=True, env=os.environ | search)
    assert size_of(workplace / "image.png") == (64, 64)


def test_the_readme_in_python(url: str, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workplace)
    exec(compile(snippet("python").replace(README_URL, url), "README.md", "exec"), {})
    assert size_of(workplace / "image.png") == (64, 64)


def test_the_command_stores_pictures_readouts_and_the_manifest(url: str, workplace: Path) -> None:
    command = readout("generate", "a person", "--control", "pose=pose.png:0.8", "--url", url)
    options = ["--num-images", "2", "--steps", "3", "--seed", "5", "--out", "out"]
    done = subprocess.run(
        [*command, *options], cwd=workplace, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["out/image-000.png", "out/image-001.png"]
    manifest = json.loads((workplace / "out/manifest.json").read_text())
    assert manifest["request"]["controls"][0]["weight"] == 0.8
    assert (workplace / "out/image-001-readout-pose.png").exists()


def test_the_command_takes_key_points(url: str, workplace: Path) -> None:
    people = [{"pose_keypoints_2d": [10.0, 12.0, 1.0] * 18}]
    keypoints = {"people": people, "canvas_width": 64, "canvas_height": 64}
    (workplace / "pose.json").write_text(json.dumps(keypoints))
    command = readout("generate", "a person", "--keypoints", "pose.json", "--url", url)
    subprocess.run([*command, "--steps", "2", "--out", "out"], cwd=workplace, check=True)
    assert (workplace / "out/image-000.png").exists()


def test_the_command_repaints_inside_a_mask(url: str, workplace: Path) -> None:
    mask = Image.new("L", (64, 64))
    mask.paste(255, (16, 16, 48, 48))
    mask.save(workplace / "mask.png")
    photo = Image.effect_noise((64, 64), 90).convert("RGB")
    photo.save(workplace / "photo.png")
    command = readout("generate", "a person", "--init-image", "photo.png", "--url", url)
    options = ["--mask", "mask.png", "--strength", "0.5", "--steps", "4", "--out", "out"]
    subprocess.run([*command, *options], cwd=workplace, check=True)
    with Image.open(workplace / "out/image-000.png") as drawn:
        repainted = ImageChops.difference(drawn.convert("RGB"), photo)
    assert repainted.getbbox() == (16, 16, 48, 48)


def test_the_command_animates_a_drag(url: str, workplace: Path) -> None:
    command = readout("drag", "pose.png", "--point", "0.1,0.2:0.9,0.7", "--url", url)
    command += ["--control", "depth=depth.png:0.2"]
    options = ["--animate", "3", "--format", "gif", "--fps", "5", "--steps", "4", "--out", "out"]
    done = subprocess.run(
        [*command, *options], cwd=workplace, capture_output=True, text=True, check=True
    )
    assert done.stdout.split()[-1] == "out/animation.gif"
    assert (workplace / "out/image-002.png").exists()
    with Image.open(workplace / "out/animation.gif") as film:
        assert (film.n_frames, film.size) == (3, (64, 64))
        assert film.info["duration"] == 200
    depth, *_, points = json.loads((workplace / "out/manifest.json").read_text())["request"][
        "controls"
    ]
    assert (depth["type"], depth["weight"], depth["span"]) == ("spatial", 0.2, points["span"])


def test_what_the_service_refuses_is_said_with_its_field(url: str, workplace: Path) -> None:
    command = readout("generate", "a person", "--control", "nothing=pose.png", "--url", url)
    done = subprocess.run(command, cwd=workplace, capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert "controls/0/head" in done.stderr
    assert "Traceback" not in done.stderr


def _as_from_a_terminal() -> None:
    """A test run in the background of a shell ignores SIGINT, and its children would too."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_ctrl_c_cancels_the_generation(url: str, workplace: Path) -> None:
    from client import ReadoutClient

    command = readout("generate", "ctrl-c", "--steps", "900", "--url", url)
    with (
        ReadoutClient(url) as client,
        subprocess.Popen(command, cwd=workplace, preexec_fn=_as_from_a_terminal) as process,
    ):
        deadline = time.monotonic() + 60
        while not (mine := client.generations(state="running")):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        assert client.get(mine[0]["id"])["state"] == "canceled"


def test_the_demo_leaves_its_contact_sheet(environment: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "the demo"
    arguments = ["--rows", "1", "--images", "1", "--steps", "2", "--signals", "pose,depth"]
    command = [sys.executable, "-m", "demo", *arguments, "--no-measures", "--out", str(out)]
    subprocess.run(command, cwd=ROOT, env=environment, check=True)
    report = json.loads((out / "report.json").read_text())
    assert [row["signal"] for row in report["rows"]] == ["pose", "depth"]
    for row in report["rows"]:
        guided, unguided = row["guided"]["request"], row["unguided"]["request"]
        assert len(guided["controls"]) == 1
        same = ("prompt", "seed", "eta", "num_inference_steps", "guidance_scale", "model")
        assert {name: guided[name] for name in same} == {name: unguided[name] for name in same}
        assert (out / row["guided"]["images"][0]["readout"]).exists()
    assert size_of(out / "contact-sheet.png")[0] > 900
    tasks = ["spatial", "drag", "drag with pose and mask", "appearance", "identity"]
    assert [row["task"] for row in report["tasks"]] == tasks
    assert [len(one["request"]["controls"]) for one in report["tasks"][0]["generations"]] == [
        0,
        1,
        1,
    ]
    with_pose = report["tasks"].pop(2)["generations"]
    assert [one["request"]["controls"][0]["weight"] for one in with_pose] == [0, 0.25, 0.5]
    assert [one["request"]["weight_sweep"] for one in with_pose] == [[0], [0.5], [1]]
    for row in report["tasks"][1:]:
        ((sweep,),) = [row["generations"]]
        assert sweep["request"]["task"] == row["task"]
        assert len(sweep["images"]) == len(sweep["request"]["weight_sweep"]) == 3
    assert size_of(out / "tasks.png")[0] > 900
    assert not (out / "stack").exists()


def test_a_sweep_changes_one_thing_at_a_time() -> None:
    from demo.sweeps import variations

    control = {"type": "appearance", "weight": 0.5, "span": [0.05, 0.5]}
    echo = {"prompt": "a person", "eta": 0.0, "guidance_scale": 4.0, "controls": [control]}
    for row in variations(echo):
        names = {name.rsplit(" ", 1)[0] for name, _ in row}
        assert len(names) == 1
        changed = {key for _, one in row for key in one if one[key] != echo[key]}
        assert len(changed) == 1
        assert len({json.dumps(one, sort_keys=True) for _, one in row}) == len(row) == 5
    weights, spans = ([one["controls"][0] for _, one in row] for row in variations(echo)[:2])
    assert [one["weight"] for one in weights] == [0.0, 0.125, 0.25, 0.5, 1.0]
    assert all(one["span"][0] == 0.05 and one["weight"] == 0.5 for one in spans)


def test_the_demo_fails_loudly(environment: dict[str, str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "demo", "--out", str(tmp_path / "out")]
    broken = environment | {"READOUT_REGISTRY_DIRS": str(tmp_path / "nowhere")}
    done = subprocess.run(
        command, cwd=ROOT, env=broken, capture_output=True, text=True, check=False
    )
    said = " ".join(done.stdout.split())
    assert done.returncode == 1
    assert "the demo failed: the stack did not start: readout: " in said
    assert "nowhere: no such registry directory" in said
