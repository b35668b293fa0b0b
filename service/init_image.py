"""Image to image and inpainting: the request's init image, its strength and mask, checked."""

from __future__ import annotations

from jobs.request import InitImage, StoredImage
from service import schemas
from service.errors import InvalidRequest
from service.references import FindRecord, TakeImage, find_picture

STRENGTH = 0.8
"""diffusers' default for image to image."""
MASKED_STRENGTH = 1.0
"""diffusers' default for inpainting."""


def check_init_image(
    asked: schemas.GenerationParameters, start: str, num_inference_steps: int
) -> float | None:
    """The effective strength; None: there is no init image.

    Raises:
        InvalidRequest: a field goes without an init image, or something else begins the picture.
    """
    if asked.init_image is None:
        for name in ("strength", "mask"):
            if getattr(asked, name) is not None:
                raise InvalidRequest.at(
                    f"#/{name}", "there is no init_image that it could go with; give one"
                )
        return None
    if start == "reference":
        raise InvalidRequest.at(
            "#/init_image",
            "the picture begins with the reference's noise already, as a drag does unless told "
            'otherwise; leave this out, or let start be "seed"',
        )
    default = STRENGTH if asked.mask is None else MASKED_STRENGTH
    strength = default if asked.strength is None else asked.strength
    if int(num_inference_steps * strength) < 1:
        raise InvalidRequest.at(
            "#/strength",
            f"{strength:g} of {num_inference_steps} steps is less than one step; give at least "
            f"{1 / num_inference_steps:.3g}, or more steps",
        )
    return strength


def take_init_image(
    asked: schemas.GenerationParameters,
    strength: float,
    take_image: TakeImage,
    find_record: FindRecord,
) -> InitImage:
    """The effective init image.

    Raises:
        InvalidRequest: the mask is of another size.
        UnusableReference: the generation is not there or not done.
        UnknownUpload, InvalidImage, ImageTooLarge: see `ControlImages.take`.
    """
    init = asked.init_image
    assert init is not None
    origin = None
    if init.generation is not None:
        origin, image = find_picture(init.generation, init.index, "#/init_image", find_record)
    else:
        source = schemas.ImageSource(upload_id=init.upload_id, base64=init.base64)
        image = take_image(source, "#/init_image")
    mask = take_image(asked.mask, "#/mask") if asked.mask is not None else None
    if mask is not None:
        _check_size(mask, image)
    return InitImage(image=image, fit=init.fit, strength=strength, mask=mask, origin=origin)


def _check_size(mask: StoredImage, image: StoredImage) -> None:
    is_known = mask.key and image.key  # an estimate keeps no images
    if is_known and (mask.width, mask.height) != (image.width, image.height):
        raise InvalidRequest.at(
            "#/mask",
            f"it is {mask.width} by {mask.height} px, the init_image {image.width} by "
            f"{image.height}; a mask lies on the image pixel by pixel: make it the same size",
        )


def echo_init_image(init: InitImage) -> dict[str, object]:
    """The fields of the public form."""
    if init.origin is not None:
        source = {"generation": init.origin.generation, "index": init.origin.index}
    else:
        source = {"upload_id": init.image.upload_id}
    mask = schemas.ImageSource(upload_id=init.mask.upload_id) if init.mask else None
    image = schemas.InitImage.model_validate(source | {"fit": init.fit})
    return {"init_image": image, "strength": init.strength, "mask": mask}
