"""Image to image and inpainting: the init image, its strength and the mask, checked."""

from __future__ import annotations

from jobs.request import InitImage, InvertedReference, Reference, StoredImage
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
        if asked.strength is not None:
            raise InvalidRequest.at(
                "#/strength", "there is no init_image that it could go with; give one"
            )
        if asked.mask is not None and asked.reference is None:
            raise InvalidRequest.at(
                "#/mask", "there is no init_image or reference that it could go with; give one"
            )
        return None
    if start == "reference":
        raise InvalidRequest.at(
            "#/init_image",
            "the picture begins with the reference's noise already, as a drag does unless told "
            'otherwise; leave this out (a mask alone keeps the reference), or let start be "seed"',
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
    return InitImage(image=image, fit=init.fit, strength=strength, origin=origin)


def take_mask(
    asked: schemas.GenerationParameters,
    init: InitImage | None,
    reference: Reference | None,
    size: tuple[int, int],
    take_image: TakeImage,
) -> StoredImage | None:
    """The effective mask, which lies on the init image, or else on the reference.

    Args:
        asked: the request, which has one of both where it has a mask.
        init: its effective init image.
        reference: its effective reference.
        size: (width, height) of the picture, which a sampled reference has too.
        take_image: keeps an image.

    Raises:
        InvalidRequest: the mask is of another size.
        UnknownUpload, InvalidImage, ImageTooLarge: see `ControlImages.take`.
    """
    if asked.mask is None:
        return None
    mask = take_image(asked.mask, "#/mask")
    name = "reference" if init is None else "init_image"
    under, images = init or reference, [mask]
    if isinstance(under, InitImage | InvertedReference):
        size = (under.image.width, under.image.height)
        images.append(under.image)
    is_known = all(image.key for image in images)  # an estimate keeps no images
    if is_known and (mask.width, mask.height) != size:
        raise InvalidRequest.at(
            "#/mask",
            f"it is {mask.width} by {mask.height} px, the {name} {size[0]} by {size[1]}; a mask "
            "lies on the image pixel by pixel: make it the same size",
        )
    return mask


def echo_init_image(init: InitImage) -> dict[str, object]:
    """The fields of the public form."""
    if init.origin is not None:
        source = {"generation": init.origin.generation, "index": init.origin.index}
    else:
        source = {"upload_id": init.image.upload_id}
    image = schemas.InitImage.model_validate(source | {"fit": init.fit})
    return {"init_image": image, "strength": init.strength}
