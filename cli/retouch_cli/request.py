"""An edit as it is sent, and what comes of it."""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import httpx

from retouch_cli import photos
from retouch_cli.errors import Failure, Refused, WrongCommandLine
from retouch_cli.gateway import Gateway
from retouch_cli.models import MODELS
from retouch_cli.photos import Photo
from retouch_cli.progress import Watcher
from retouch_cli.session import NONSENSE, Session, session
from retouch_cli.stream import Picture, events

EDITS = "/v1/images/edits"
# What every gateway takes unless its operator says otherwise; above it, it is asked before the picture is sent.
USUAL_BYTES = 4 * 2**20


@dataclass(frozen=True)
class Edit:
    """What is sent: the photos in order, the mask, and the API's other fields by name, as a form has them.

    Raises WrongCommandLine where one of these is not text.
    """

    photos: Sequence[Photo]
    mask: Photo | None
    fields: Mapping[str, str]
    n: int

    def __post_init__(self) -> None:
        if any(not is_text(value) for value in self.fields.values()):
            raise WrongCommandLine("the prompt, or another word, is not text in UTF-8")

    @property
    def files(self) -> list[tuple[str, tuple[str, Any]]]:
        """The form's files. Names are left out: what a file is called here is nobody's business."""
        files = [("image[]", ("photo", photo.file)) for photo in self.photos]
        return [*files, ("mask", ("mask", self.mask.file))] if self.mask else files

    @property
    def pictures(self) -> list[Photo]:
        return [*self.photos, self.mask] if self.mask else [*self.photos]


def is_text(word: str) -> bool:
    """False where it came as bytes that are no UTF-8, which Python keeps as surrogates."""
    return not any("\ud800" <= character <= "\udfff" for character in word)


async def send(
    edit: Edit, gateway: Gateway, names: Mapping[str, str], watcher: Watcher, made: list[Picture]
) -> None:
    """Adds each image to `made` as it comes, in the order of their seeds, `edit.n` in all.

    `names` are what the command's user calls a field of the API. Raises Failure, and then fewer may have come.
    """
    async with session(gateway, names) as talk:
        await check_sizes(edit, talk)
        form = {"data": {**edit.fields, "stream": "true"}, "files": edit.files}
        async with (
            talk.answer("POST", EDITS, watcher.waiting, **form) as reply,
            contextlib.aclosing(events(talk, reply)) as coming,
        ):
            try:
                async for event in coming:
                    watcher.event(event)
                    if isinstance(event, Picture):
                        if len(made) == edit.n:
                            raise Failure(f"{gateway.url} sent more than {edit.n} images")
                        made.append(event)
            except httpx.HTTPError:
                if len(made) < edit.n:  # else only the end is missing
                    raise
    if len(made) < edit.n:
        raise Failure(f"{gateway.url} sent {len(made)} of {edit.n} images, and no word of why")


async def check_sizes(edit: Edit, talk: Session) -> None:
    """Raises Refused where a picture is larger than the model takes: sending it would only take long."""
    if all(picture.size <= USUAL_BYTES for picture in edit.pictures):
        return
    model = edit.fields.get("model")
    said = await talk.json(f"{MODELS}/{quote(model, safe='')}" if model else MODELS)
    try:
        most = int((said if model else said["data"][0])["limits"]["max_image_bytes"])
    except NONSENSE:
        return  # another kind of gateway: it will say so itself
    for picture in edit.pictures:
        if picture.size > most:
            fault = (
                f"{photos.shown(picture.name)} has {picture.size} bytes; at most {most} are allowed"
            )
            raise Refused(fault, option=picture.name)
