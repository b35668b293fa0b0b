"""`readout generate`, `drag` and `vary`: pictures through a running service."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.environment import DEFAULT_URL, OutOption, fail

if TYPE_CHECKING:
    from client.generate import Job


ControlOption = Annotated[
    list[str] | None,
    typer.Option(help="HEAD=IMAGE[:WEIGHT], such as pose=pose.png:0.8; repeatable."),
]
KeypointsOption = Annotated[
    list[str] | None, typer.Option(help="OpenPose JSON file[:WEIGHT] for the pose head.")
]
ModelOption = Annotated[str | None, typer.Option(help="See `readout models list`.")]
NegativeOption = Annotated[str | None, typer.Option(help="What to keep away from.")]
SeedOption = Annotated[int | None, typer.Option(min=0, help="Default: drawn.")]
ImagesOption = Annotated[int, typer.Option(min=1, help="With seeds seed, seed + 1, …")]
StepsOption = Annotated[int | None, typer.Option(min=1, help="Denoising steps.")]
ScaleOption = Annotated[float | None, typer.Option(help="Classifier-free guidance.")]
UrlOption = Annotated[str, typer.Option(envvar="READOUT_URL", help="The service.")]
KeyOption = Annotated[
    str | None,
    typer.Option(envvar="READOUT_API_KEY", show_envvar=True, help="Better in the environment."),
]
ReferenceArgument = Annotated[
    str, typer.Argument(help="An image file, or a generation's id (gen_…, or gen_…:INDEX).")
]


def generate(
    prompt: Annotated[str, typer.Argument(help="What to draw.")],
    control: ControlOption = None,
    keypoints: KeypointsOption = None,
    adapter: Annotated[
        list[str] | None,
        typer.Option(help="ADAPTER=IMAGE[:SCALE], see `readout adapters list`; repeatable."),
    ] = None,
    init_image: Annotated[
        str | None, typer.Option(help="Start from an image file or a generation (gen_…:INDEX).")
    ] = None,
    strength: Annotated[
        float | None, typer.Option(help="Of the init image: 0 keeps it, 1 keeps least.")
    ] = None,
    mask: Annotated[
        Path | None, typer.Option(help="Image of the init image's size; white is repainted.")
    ] = None,
    model: ModelOption = None,
    negative_prompt: NegativeOption = None,
    seed: SeedOption = None,
    num_images: ImagesOption = 1,
    steps: StepsOption = None,
    guidance_scale: ScaleOption = None,
    out: OutOption = Path("out/generate"),
    url: UrlOption = DEFAULT_URL,
    api_key: KeyOption = None,
) -> None:
    """Generate pictures through a running service; Ctrl-C cancels the generation."""
    from client.generate import Job

    parameters = {
        "strength": strength,
        "model": model,
        "negative_prompt": negative_prompt,
        "seed": seed,
        "num_images": num_images,
        "num_inference_steps": steps,
        "guidance_scale": guidance_scale,
    }
    controls = tuple(control or ()), tuple(keypoints or ())
    more = {"init_image": init_image, "mask": mask, "adapters": tuple(adapter or ())}
    _run(lambda: Job(prompt, url, out, *controls, parameters, api_key, **more))


def drag(
    reference: ReferenceArgument,
    point: Annotated[
        list[str],
        typer.Option(help="X,Y:X,Y from and to, as fractions of the picture; repeatable."),
    ],
    prompt: Annotated[
        str | None,
        typer.Option(help="What the picture shows.", show_default="the generation's own"),
    ] = None,
    px: Annotated[bool, typer.Option("--px", help="Points are pixels of the result.")] = False,
    mask: Annotated[
        Path | None, typer.Option(help="Image of the reference's size; only white may change.")
    ] = None,
    control: ControlOption = None,
    keypoints: KeypointsOption = None,
    weights: Annotated[
        str | None,
        typer.Option(help="A picture each, with the drag's weight times 0.5,1,2, say."),
    ] = None,
    animate: Annotated[
        int | None, typer.Option(min=2, help="So many frames on the way, as an animation.")
    ] = None,
    media: Annotated[
        str | None, typer.Option("--format", help="Of the animation: webp, gif or mp4.")
    ] = None,
    fps: Annotated[float | None, typer.Option(help="Frames of the animation in a second.")] = None,
    model: ModelOption = None,
    steps: StepsOption = None,
    guidance_scale: ScaleOption = None,
    out: OutOption = Path("out/drag"),
    url: UrlOption = DEFAULT_URL,
    api_key: KeyOption = None,
) -> None:
    """Move what is at some points of a picture to others, through a running service."""
    from client.edit import animation_of, points_of, weights_of
    from client.generate import Job

    def job() -> Job:
        parameters = {
            "task": "drag",
            "points": points_of(point),
            "unit": "px" if px else None,
            "weight_sweep": weights_of(weights),
            "output": animation_of(animate, media, fps),
            "model": model,
            "num_inference_steps": steps,
            "guidance_scale": guidance_scale,
        }
        controls = tuple(control or ()), tuple(keypoints or ())
        return Job(prompt, url, out, *controls, parameters, api_key, reference, mask=mask)

    _run(job)


def vary(
    reference: ReferenceArgument,
    prompt: Annotated[str, typer.Argument(help="What to draw with the reference's appearance.")],
    weights: Annotated[
        str | None, typer.Option(help="A picture each, of one seed, such as 0,0.5,1 (figure 6).")
    ] = None,
    model: ModelOption = None,
    negative_prompt: NegativeOption = None,
    seed: SeedOption = None,
    num_images: ImagesOption = 1,
    steps: StepsOption = None,
    guidance_scale: ScaleOption = None,
    out: OutOption = Path("out/vary"),
    url: UrlOption = DEFAULT_URL,
    api_key: KeyOption = None,
) -> None:
    """Draw variations of a picture that keep its appearance, through a running service."""
    from client.edit import weights_of
    from client.generate import Job

    def job() -> Job:
        parameters = {
            "task": "appearance",
            "weight_sweep": weights_of(weights),
            "model": model,
            "negative_prompt": negative_prompt,
            "seed": seed,
            "num_images": num_images,
            "num_inference_steps": steps,
            "guidance_scale": guidance_scale,
        }
        return Job(prompt, url, out, (), (), parameters, api_key, reference)

    _run(job)


def _run(job: Callable[[], Job]) -> None:
    """Make a job's pictures and print where they are."""
    from client.errors import BadArgument, ClientError, Refused, Unreachable
    from client.generate import generate

    exit_codes = {BadArgument: 2, Refused: 3, Unreachable: 4}
    try:
        for path in generate(job()):
            typer.echo(path)
    except ClientError as error:
        raise fail(error, exit_codes.get(type(error), 1)) from None
    except KeyboardInterrupt:
        raise fail("canceled", 130) from None
