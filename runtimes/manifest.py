"""The manifest, `ingot.json`: what a bundle holds, as data."""

from __future__ import annotations

from typing import Any

import msgspec

from .errors import BundleError
from .signature import Signature

SCHEMA = 4
# 2 added to a graph its engine's options and its parity at other computing precisions; 3 its form, rewrites and
# quantization, and to the manifest what quantization costs; 4 to a component what its
# graphs fold in and its extras, and the pipeline's options
READABLE = (1, 2, 3, 4)
FILE_NAME = "ingot.json"


class Certificate(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How far a graph is from the torch component on the recorded inputs: the worst over all calls and outputs.

    A quantized graph's limit is twice what was measured of it: it is held to what it was, its quality is judged elsewhere.
    """

    calls: int
    max_abs: float
    rel_l2: float
    sqnr_db: float | None  # None: not one bit differed
    limit: float  # on rel_l2


class ImageParity(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The whole pipeline against diffusers with the same seed. The prompt is empty for a model that takes none."""

    psnr_db: float | None  # None: equal pictures
    limit_db: float
    prompt: str
    seed: int
    num_inference_steps: int
    height: int
    width: int
    class_labels: tuple[int, ...] = ()


class Calibration(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The trajectories that ranges were found on: pictures of these prompts, the first with `seed`, the next with
    `seed` + 1; `calls` of the component were used."""

    prompts: tuple[str, ...]
    seed: int
    num_inference_steps: int
    guidance_scale: float
    height: int
    width: int
    calls: int


class Timing(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The median seconds of a call, beside the float graph's in the same run."""

    seconds: float
    float_seconds: float
    machine: str
    device: str = "cpu"


class Quantization(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The recipe of a quantized graph, and its own damage.

    `asked` is what was asked for the whole model, of which `scheme` is what this component got.
    `source` is the precision of the graph it was made from, `fingerprint` the hash of that graph's layers, by which a
    recipe knows its model; `keep` are the layers left in floats, of `layers` in all. `sqnr_db` is over all outputs of a
    trajectory, against the float graph given the same inputs; None where not one bit differed.
    """

    asked: str
    scheme: str
    source: str
    fingerprint: str
    layers: int
    keep: tuple[str, ...]
    options: dict[str, Any]
    calibration: Calibration | None
    sqnr_db: float | None
    timing: Timing | None = None


class Graph(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One compiled form of a component. `files[0]` is the one to open, the rest belong to it.

    `options` are what the engine must know to open it. `parity` is of the graph computed as exactly as its engine can,
    `computed` of the same at lower precisions that a machine may choose by itself. `form` is "" for the graph that every
    reader takes, else whom it is written for. `rewrites` changed the model before it was traced.
    """

    engine: str
    precision: str
    files: tuple[str, ...]
    signature: Signature
    nodes: int | None = None
    parity: Certificate | None = None
    options: dict[str, Any] = {}
    computed: dict[str, Certificate] = {}
    form: str = ""
    rewrites: tuple[str, ...] = ()
    quantization: Quantization | None = None


class ComponentEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A component by its role: the class and config it came with, and its graphs.

    `method` is what of the class the graphs compute, `arguments` what they fold in of its call, by dotted path. `extras` are
    files of what a pipeline needs beside the graphs, by what it is.
    """

    class_name: str
    config: dict[str, Any]
    graphs: tuple[Graph, ...]
    parameters: int
    parity_data: str | None = None
    method: str = "forward"
    arguments: dict[str, Any] = {}
    extras: dict[str, str] = {}


class Quality(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a set of graphs, a precision by role, does to the pictures: against the bundle's float graphs with equal seeds.

    `latents_sqnr_db`, `psnr_db`: None where nothing differed. `ssim` is the mean over pictures (Wang et al. 2004).
    `checker` is the share of pictures that the model's own checker finds right, `checker_float` that of the float
    graphs; None where there is no checker.
    """

    graphs: dict[str, str]
    latents_sqnr_db: float | None
    psnr_db: float | None
    ssim: float
    checker: float | None
    checker_float: float | None
    prompts: int
    seed: int
    num_inference_steps: int
    guidance_scale: float
    height: int
    width: int


class FileEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a file must be."""

    size: int
    sha256: str


class Addition(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Targets that were added later."""

    targets: tuple[str, ...]
    created: str
    command: str | None
    versions: dict[str, str]


class FusedLora(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A LoRA that was added to the checkpoint's weights before they were cast: its file as it was named, and its scale."""

    file: str
    sha256: str
    scale: float


class AddedToken(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A textual inversion that was added to the checkpoint before it was cast: its file, and its token in prompts."""

    file: str
    sha256: str
    token: str


class Provenance(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where a bundle comes from."""

    source: str
    revision: str | None
    licence: str | None
    created: str
    command: str | None
    versions: dict[str, str]
    additions: tuple[Addition, ...] = ()
    loras: tuple[FusedLora, ...] = ()
    textual_inversions: tuple[AddedToken, ...] = ()


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Everything that `ingot.json` says."""

    schema: int
    pipeline: str
    components: dict[str, ComponentEntry]
    tokenizers: dict[str, str]
    scheduler: dict[str, Any]
    files: dict[str, FileEntry]
    provenance: Provenance
    config: dict[str, Any] = {}  # the pipeline's own options, as in model_index.json
    schedulers: dict[str, dict[str, Any]] = {}  # configs of further ones, by role
    processors: dict[str, dict[str, Any]] = {}  # configs of what prepares pictures, by role
    parity: dict[str, ImageParity] = {}
    quality: dict[str, Quality] = {}  # by engine and precision: "openvino int8-static"


def decode(text: bytes) -> Manifest:
    """Read a manifest. Raises BundleError for anything that is not one of this schema."""
    try:
        schema = msgspec.json.decode(text).get("schema")
    except (msgspec.DecodeError, AttributeError) as error:
        raise BundleError(f"{FILE_NAME} is not a manifest: {error}") from error
    if schema not in READABLE:
        versions = f"{', '.join(map(str, READABLE[:-1]))} and {READABLE[-1]}"
        raise BundleError(
            f"{FILE_NAME} has schema version {schema!r}; this Ingot reads versions {versions}: export again, or use the Ingot that wrote it"
        )
    try:
        return msgspec.json.decode(text, type=Manifest)
    except msgspec.ValidationError as error:
        raise BundleError(f"{FILE_NAME} does not fit schema version {schema}: {error}") from error


def encode(manifest: Manifest) -> bytes:
    """The manifest as indented JSON."""
    return msgspec.json.format(msgspec.json.encode(manifest), indent=1) + b"\n"
