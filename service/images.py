"""Control images in object storage: ``uploads/{id}.png``, and ``uploads/{id}.json`` about it."""

from __future__ import annotations

import base64
import binascii
import re
import secrets
from contextlib import suppress

from pydantic import BaseModel, ConfigDict

from jobs.errors import ObjectNotFound
from jobs.request import StoredImage
from jobs.state import LOCAL_OWNER
from jobs.store import ObjectStore
from service.errors import ImageTooLarge, InvalidImage, UnknownUpload, UnsupportedMediaType
from service.schemas import ImageSource
from service.uploads import Decoder

_UPLOAD_ID = re.compile(r"upl_[0-9a-f]{32}")
_DATA_URL = re.compile(r"data:[a-z0-9.+/-]*(;[a-z0-9=.+-]+)*;base64,", re.IGNORECASE)


class Upload(BaseModel):
    """What is known of an upload; lives in object storage, since user metadata may not last."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    id: str
    key: str
    width: int
    height: int
    sha256: str
    size_bytes: int
    original_width: int
    original_height: int
    owner: str = LOCAL_OWNER

    def stored_image(self) -> StoredImage:
        """The part that a worker needs."""
        return StoredImage(
            upload_id=self.id,
            key=self.key,
            sha256=self.sha256,
            width=self.width,
            height=self.height,
        )


class ControlImages:
    """Keeps and finds control images. Its methods block: call them from threads."""

    def __init__(self, objects: ObjectStore, decoder: Decoder, max_inline_bytes: int) -> None:
        self._objects = objects
        self._decoder = decoder
        self._max_inline_bytes = max_inline_bytes

    def keep(self, data: bytes, owner: str) -> Upload:
        """Check, normalise and store an image file of the owner's.

        Raises:
            UnsupportedMediaType, InvalidImage, ImageTooLarge, DecoderBusy: see uploads.py.
            StorageUnavailable: nothing was stored that anybody could name.
        """
        decoded = self._decoder.decode(data)
        upload_id = f"upl_{secrets.token_hex(16)}"
        upload = Upload(
            id=upload_id,
            key=f"uploads/{upload_id}.png",
            width=decoded.width,
            height=decoded.height,
            sha256=decoded.sha256,
            size_bytes=len(decoded.png),
            original_width=decoded.original_width,
            original_height=decoded.original_height,
            owner=owner,
        )
        self._objects.put_bytes(upload.key, decoded.png, "image/png")
        self._objects.put_bytes(
            _metadata_key(upload_id), upload.model_dump_json().encode(), "application/json"
        )
        return upload

    def find(self, upload_id: str, pointer: str, owner: str) -> Upload:
        """The owner's upload of that id, for the request field at `pointer`.

        Raises:
            UnknownUpload: there is none, or it is another's.
        """
        if _UPLOAD_ID.fullmatch(upload_id):
            with suppress(ObjectNotFound):
                text = self._objects.get_bytes(_metadata_key(upload_id))
                upload = Upload.model_validate_json(text)
                if upload.owner == owner:
                    return upload
        raise UnknownUpload.at(
            pointer,
            "no upload has this id, or its time is over; send the image to POST /v1/uploads",
        )

    def take(self, source: ImageSource, pointer: str, owner: str) -> StoredImage:
        """The stored image that the owner's `image` means; an inline one becomes an upload.

        Raises:
            UnknownUpload, InvalidImage, ImageTooLarge: with the pointer of the field.
        """
        if source.upload_id is not None:
            return self.find(source.upload_id, f"{pointer}/upload_id", owner).stored_image()
        pointer = f"{pointer}/base64"
        data = decode_base64(source.base64 or "", self._max_inline_bytes, pointer)
        try:
            return self.keep(data, owner).stored_image()
        except UnsupportedMediaType as error:
            raise InvalidImage.at(pointer, error.detail) from error
        except (InvalidImage, ImageTooLarge) as error:
            raise type(error).at(pointer, error.detail) from error


def decode_base64(text: str, max_bytes: int, pointer: str) -> bytes:
    """The bytes of base64 text or of a data URL; line breaks in it are fine.

    Raises:
        ImageTooLarge: more than `max_bytes`.
        InvalidImage: not base64.
    """
    prefix = _DATA_URL.match(text[:200])
    encoded = "".join(text[prefix.end() if prefix else 0 :].split())
    if len(encoded) * 3 // 4 > max_bytes + 2:
        raise ImageTooLarge.at(
            pointer,
            f"images in a request are limited to {max_bytes:,} bytes; "
            "send larger ones to POST /v1/uploads",
        )
    try:
        return base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidImage.at(pointer, "not base64 (RFC 4648) nor a data URL with it") from error


def _metadata_key(upload_id: str) -> str:
    return f"uploads/{upload_id}.json"
