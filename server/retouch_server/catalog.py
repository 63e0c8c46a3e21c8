"""What can be served: the operator's list of models, from a setting or a YAML file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from . import card
from .pocket import MODEL_DIR
from .safety import NAME


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Defaults(_Strict):
    """What an unset field of a request means; None: the pipeline's own default."""

    strength: Annotated[float, Field(ge=0, le=1)] | None = None
    guidance_scale: Annotated[float, Field(ge=0, le=20)] | None = None
    num_inference_steps: Annotated[int, Field(ge=1, le=100)] | None = None


class Limits(_Strict):
    """Output sizes, in pixels; a request's width x height must be within them."""

    min_pixels: Annotated[int, Field(ge=64)] = 64 * 64
    max_pixels: Annotated[int, Field(ge=64, le=8192 * 8192)] = 1024 * 1024

    @model_validator(mode="after")
    def _ordered(self) -> Limits:
        if self.min_pixels > self.max_pixels:
            raise ValueError("min_pixels is above max_pixels")
        return self


class MaxProfile(_Strict):
    """What `kontext_max_mode` changes: other defaults, and how large the output may be."""

    guidance_scale: Annotated[float, Field(ge=0, le=20)] | None = None
    num_inference_steps: Annotated[int, Field(ge=1, le=100)] | None = None
    max_pixels: Annotated[int, Field(ge=64, le=8192 * 8192)] | None = None


class Lora(_Strict):
    """A LoRA adapter to load a model with. `source` is a safetensors file, a folder with one, or a hub id."""

    source: Annotated[str, Field(min_length=1)]
    weight_name: Annotated[str, Field(pattern=r"\.safetensors$")] | None = None
    """Which file of the folder or the hub's repository; None: the only one."""
    revision: str | None = None
    scale: Annotated[float, Field(allow_inf_nan=False)] = 1.0


def _instruction(text: str) -> str:
    line = card.instruction(text)
    if line is None:
        raise ValueError(f"an example has words, and {card.LONGEST} characters at most")
    return line


Instruction = Annotated[str, AfterValidator(_instruction)]


class ModelEntry(_Strict):
    """One model. `source` is a folder in diffusers format, a hub id, or the word `pocket`."""

    id: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,127}$")]
    source: Annotated[str, Field(min_length=1)]
    revision: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """None: bfloat16 on an accelerator, float32 on a CPU."""
    loras: list[Lora] = []
    """Adapters that are fused into the weights when the model is loaded, all of them at once."""
    attention: Annotated[str, Field(min_length=1)] | None = None
    """The denoiser's attention backend, as diffusers names it; None: torch's own."""
    compile: bool = False
    """Compile the denoiser (torch.compile), once for each shape that it is given."""
    defaults: Defaults = Defaults()
    limits: Limits = Limits()
    max: MaxProfile | None = None
    arguments: dict[str, bool | int | float | str] = {}
    """Passed to every call of the pipeline, such as `image_guidance_scale`."""
    slots: Annotated[int, Field(ge=1, le=256)] = 8
    """Edits under way at once."""
    max_rows: Annotated[int, Field(ge=1, le=1024)] = 24
    """Rows of the largest forward that is shared."""
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    """Tokens, rows x those of a row, of the largest forward that is shared; None: measured when the model is loaded."""
    batch_sizes: list[Annotated[int, Field(ge=1, le=1024)]] = []
    """Numbers of rows that forwards are filled up to, so that compiled code is used again; []: not filled."""
    deterministic: bool = False
    """Fill every forward up to `max_rows` and pad no text: to the bit, a result depends on its own request alone."""
    reuse: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Let an edit's last answer stand in for the next while it has drifted by less than this; 0: never."""
    warm_up: list[tuple[Annotated[int, Field(ge=8)], Annotated[int, Field(ge=8)]]] = []
    """Sizes (width, height) of the edits that are run before the model is ready; []: one small one."""
    cache_bytes: Annotated[int, Field(ge=0)] = 256 * 1024 * 1024
    """Of encoded prompts and images that are kept on the device for edits to come; 0 keeps none."""
    composite: bool = False
    """For a model without a masked pipeline: honour `mask` and `strength` by blending the result over the input."""
    mask_crop: Annotated[int, Field(ge=0, le=8192)] | None = None
    """Edit a small mask as a crop, with this many pixels of the input around it; None: edit the whole picture."""
    examples: Annotated[list[Instruction], Field(max_length=card.MOST)] | None = None
    """Instructions to try, which callers are shown; None: those of the model's card."""
    safety: list[Annotated[str, Field(pattern=NAME)]] = []
    """Checks of requests and results, `package.module:attribute`; see safety.py."""

    @property
    def fixed_sizes(self) -> tuple[int, ...]:
        """Numbers of rows that forwards are filled up to."""
        return (self.max_rows,) if self.deterministic else tuple(self.batch_sizes)

    @model_validator(mode="after")
    def _one_way_of_filling(self) -> ModelEntry:
        if self.deterministic and self.batch_sizes:
            raise ValueError("deterministic has one batch size, max_rows; leave batch_sizes out")
        return self

    @model_validator(mode="after")
    def _max_is_reachable(self) -> ModelEntry:
        if self.max and self.max.max_pixels and self.max.max_pixels < self.limits.min_pixels:
            raise ValueError("max.max_pixels is below limits.min_pixels")
        return self


POCKET = ModelEntry(
    id="pocket",
    source=str(MODEL_DIR),
    defaults=Defaults(num_inference_steps=6, guidance_scale=1.0, strength=1.0),
    # Only the text is amplified by guidance: with 1.0 the branch without the image cancels.
    arguments={"image_guidance_scale": 1.0},
    # Two edits of 256x256, eight of 128x128: on two cores more hardly gain (bench/LOG.md). null has it measured.
    max_tokens=32768,
    composite=True,
)


class CatalogError(ValueError):
    """The list of models has mistakes; the message says each, a line apiece."""


def read(models: str) -> list[ModelEntry]:
    """Read the setting `models`: `id=source,...`, the bare word `pocket` among them, or the path of a YAML file.

    The file is a mapping with one key, `models`: a list of `ModelEntry`s. Raises CatalogError.
    """
    if models.endswith((".yaml", ".yml")):
        entries = _read_file(Path(models))
    else:
        entries = [_entry(part.strip()) for part in models.split(",") if part.strip()]
    if not entries:
        raise CatalogError("no models are listed")
    ids = [entry.id for entry in entries]
    if twice := sorted({i for i in ids if ids.count(i) > 1}):
        raise CatalogError(f"model ids are listed twice: {', '.join(twice)}")
    return entries


def _entry(text: str) -> ModelEntry:
    if text == "pocket":
        return POCKET
    name, found, source = text.partition("=")
    if not found:
        raise CatalogError(f"{text!r} is neither id=source nor the word pocket")
    return _model({"id": name.strip(), "source": source.strip()})


def _read_file(path: Path) -> list[ModelEntry]:
    try:
        content = yaml.safe_load(path.read_text())
    except OSError as error:
        raise CatalogError(f"cannot read {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise CatalogError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if not (isinstance(content, dict) and content.keys() == {"models"}):
        raise CatalogError(f"{path} is not a mapping with the one key `models`")
    if not isinstance(content["models"], Sequence) or isinstance(content["models"], str):
        raise CatalogError(f"{path}: models is not a list")
    entries, mistakes = [], []
    for values in content["models"]:
        try:
            entries.append(_model(values))
        except CatalogError as error:
            mistakes.append(str(error))
    if mistakes:
        raise CatalogError("\n".join(mistakes))
    return entries


def _model(values: Any) -> ModelEntry:
    if isinstance(values, dict) and values.get("source") == "pocket":
        shipped = POCKET.model_dump(exclude_defaults=True)
        values = shipped | values | {"source": shipped["source"]}
    try:
        return ModelEntry.model_validate(values)
    except ValidationError as error:
        name = values.get("id", "?") if isinstance(values, dict) else "?"
        raise CatalogError("\n".join(_line(name, mistake) for mistake in error.errors())) from None


def _line(name: str, mistake: Any) -> str:
    field = ".".join(map(str, mistake["loc"]))
    return (
        f"model {name}: {field}: {mistake['msg']}" if field else f"model {name}: {mistake['msg']}"
    )
