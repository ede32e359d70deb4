"""What every family's loop needs: checked arguments, seeds, guidance, and the state that a step yields."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from ..engines import Engine
from ..errors import InputError
from ..loras import Loras, apply_loras
from ..loras.gate import Call, Gate
from ..noise import Generator
from ..signature import Dim

if TYPE_CHECKING:
    from PIL import Image

Array = NDArray[Any]
Seed = int | Sequence[int] | None
Generators = Generator | list[Generator]


@dataclass
class Output:
    """What a call returns: PIL images, an array (batch, height, width, 3) in 0..1, or latents, as `output_type` asked."""

    images: Any
    nsfw_content_detected: list[bool] | None = None  # by picture, where a safety checker looked at them


@dataclass
class State:
    """One finished step of the loop. What is assigned to `latents`, `guidance_scale`, `guidance_rescale`,
    `image_guidance_scale`, `prompt_embeds`, `negative_prompt_embeds`, `conditions` or `negative_conditions` holds from the
    next step on."""

    step: int
    num_steps: int
    timestep: float
    latents: Array  # (batch, channels, height / factor, width / factor)
    denoised: Array  # the step's prediction of the finished latents: what a preview decodes
    guidance_scale: float
    guidance_rescale: float
    prompt_embeds: Array  # (batch, tokens, width)
    negative_prompt_embeds: Array | None
    conditions: dict[str, Array] = field(default_factory=dict)  # what else the denoiser is given, by its inputs' names
    negative_conditions: dict[str, Array] = field(default_factory=dict)
    image_guidance_scale: float = 1.0  # of a picture that is edited: Brooks et al. 2023
    size: tuple[int, int] = (0, 0)  # (height, width) in pixels of the pictures that were asked for
    overlay: Callable[[Image.Image], Image.Image] | None = None  # puts a painted part back into its picture
    changed: bool = False  # whether the step that runs began from other latents than the last one ended with


class Condition(NamedTuple):
    """What the denoiser is given for each picture beside the latents: embeddings (batch, tokens, width), and the rest by the
    names of its inputs, (batch, ...) each."""

    embeds: Array
    others: dict[str, Array]


class Conditions(NamedTuple):
    """What makes a call's conditions, its arguments checked: of its prompts, and then of the negative ones, which may take
    after the first. Only these run graphs."""

    positive: Callable[[], Condition]
    negative: Callable[[Condition], Condition]


class Engines:
    """The engines of a pipeline by role, as one thing to close: `with ingot.load(path) as pipe: ...`."""

    choice: Any = None  # which engine and device `ingot.load` picked, and why
    quantized: Mapping[str, str] = MappingProxyType({})  # the schemes of the graphs that are quantized, by role

    def __init__(self, engines: Mapping[str, Engine]) -> None:
        self.engines = dict(engines)
        self.gate = Gate()
        self._with_loras: frozenset[str] = frozenset()  # roles whose weights are not the files' own

    def set_loras(self, loras: Loras) -> None:
        """Have these LoRAs, [(file, scale), ...], in the weights from now on, and none of those that were set before; `[]`
        takes them all off, and the pictures are what they were to the bit.

        Waits until the calls of other threads have ended, and calls that begin meanwhile wait for it: no call sees both. From
        within a call, in a callback or between two steps, it holds from the next step on. Raises InputError for a file or a
        scale that cannot be used, a LoRA for another base and a quantized graph, EngineError for an engine whose weights
        cannot be changed (Core ML, TensorRT) and for a change from within a call while other threads' calls run; all of
        them leave the weights as they were.
        """
        with self.gate.change():
            self._with_loras = apply_loras(self.engines, loras, before=self._with_loras, quantized=self.quantized)
            self._forget()
            denoising = getattr(self, "_denoising", None)
            if denoising is not None:  # what DeepCache keeps is of the old weights
                denoising.weights = object()

    def forget_prompts(self) -> None:
        """Drop the embeddings that are kept of earlier prompts: the next call encodes its own again."""
        self._forget()

    def _forget(self) -> None:
        """Drop what was kept of the engines' answers: their weights have changed."""

    def guarded(self, begin: Callable[[], Iterator[State]]) -> Iterator[State]:
        """The loop that `begin` starts, as one call during which no other thread changes the weights; it ends with the loop,
        or when nobody holds it any more."""
        call = self.gate.call()
        try:
            return _within(call, begin())
        except BaseException:
            call.close()
            raise

    def close(self) -> None:
        """Close every engine; the pipeline cannot be called afterwards."""
        for engine in self.engines.values():
            engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _within(call: Call, loop: Iterator[State]) -> Iterator[State]:
    with call:
        call.move()
        for state in loop:
            yield state
            call.move()


CHANGEABLE = (
    "latents",
    "guidance_scale",
    "guidance_rescale",
    "image_guidance_scale",
    "prompt_embeds",
    "negative_prompt_embeds",
    "conditions",
    "negative_conditions",
)


def as_list(prompt: object, name: str = "prompt") -> list[str]:
    """A prompt or several as a list. Raises InputError for anything that is not text."""
    if isinstance(prompt, str):
        return [prompt]
    if isinstance(prompt, Sequence) and prompt and all(isinstance(one, str) for one in prompt):
        return list(prompt)
    raise InputError(f"{name} must be a string or a list of strings, not {prompt!r}")


def as_negative(negative: object, count: int) -> list[str]:
    """One negative prompt for each prompt; none means the empty one. Raises InputError when the counts differ."""
    texts = as_list("" if negative is None else negative, "negative_prompt")
    if len(texts) not in (1, count):
        raise InputError(f"{len(texts)} negative prompts for {count} prompts; give one, or one for each")
    return texts * count if len(texts) == 1 else texts


def check_count(name: str, value: object) -> int:
    """A whole number of at least 1. Raises InputError otherwise."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise InputError(f"{name} must be a whole number of at least 1, not {value!r}")
    return int(value)


def check_number(name: str, value: object) -> float:
    """A finite number. Raises InputError otherwise."""
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float | np.integer | np.floating)
        or not np.isfinite(value)
    ):
        raise InputError(f"{name} must be a number, not {value!r}")
    return float(value)


def check_flag(name: str, value: object) -> bool:
    """True or False. Raises InputError otherwise."""
    if not isinstance(value, bool | np.bool_):
        raise InputError(f"{name} must be True or False, not {value!r}")
    return bool(value)


def check_array(name: str, value: object) -> Array:
    """An array of numbers. Raises InputError for what is none."""
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError):  # rows of several lengths; torch's tensors that NumPy has no kind for
        array = np.asarray(None)
    if array.dtype.kind not in "biuf":
        raise InputError(f"{name} must be an array of numbers, not {type(value).__name__}")
    return array


def check_changeable(names: Iterable[str]) -> None:
    """Raise InputError for a name that a step's callback can neither see nor change."""
    strange = [name for name in names if name not in CHANGEABLE]
    if strange:
        raise InputError(
            f"a callback cannot ask for or change {', '.join(strange)}; available: {', '.join(CHANGEABLE)}"
        )


def check_size(name: str, value: object, multiple: int) -> int:
    """A picture's height or width. Raises InputError naming the nearest sizes that would do."""
    size = check_count(name, value)
    if size % multiple:
        below = size // multiple * multiple
        near = [str(n) for n in (below, below + multiple) if n]
        raise InputError(
            f"{name}={size} is not a multiple of {multiple}, as this model needs; {' or '.join(near)} would do"
        )
    return size


def make_generators(seed: Seed, generator: Generators | None, images: int) -> Generators:
    """The generators of a call: what the caller gave, one for a seed, one each for a list of seeds.

    Raises InputError when both are given or a list does not have one entry for each picture.
    """
    if seed is not None and generator is not None:
        raise InputError("seed and generator were both given; give one of them")
    if generator is None:
        if seed is None:
            return Generator()
        if isinstance(seed, int | np.integer) and not isinstance(seed, bool):
            return Generator(int(seed))
        if (
            not isinstance(seed, Sequence)
            or isinstance(seed, str)
            or not all(isinstance(one, int | np.integer) for one in seed)
        ):
            raise InputError(f"seed must be a whole number or a list of them, not {seed!r}")
        generator = [Generator(int(one)) for one in seed]
    several = list(generator) if isinstance(generator, list | tuple) else [generator]
    if not all(isinstance(one, Generator) for one in several):
        kinds = ", ".join(sorted({type(one).__name__ for one in several}))
        raise InputError(f"generator must be ingot.Generator(seed) or a list of them, not {kinds}; or give seed=")
    if isinstance(generator, list | tuple) and len(generator) != images:
        raise InputError(
            f"{len(generator)} seeds or generators for {images} pictures; give one, or one for each picture"
        )
    return several if isinstance(generator, list | tuple) else generator


def guide(negative: Array, positive: Array, scale: float, rescale: float = 0.0) -> Array:
    """Classifier-free guidance (Ho & Salimans 2022), then the rescaling of Lin et al. 2023 (equation 16)."""
    return rescaled(negative + np.float32(scale) * (positive - negative), positive, rescale)


def rescaled(guided: Array, positive: Array, rescale: float) -> Array:
    """A guided prediction with a share of the deviation that the positive one has: Lin et al. 2023, equation 16."""
    if not rescale:
        return guided
    axes = tuple(range(1, guided.ndim))
    ratio = positive.std(axes, ddof=1, keepdims=True) / guided.std(axes, ddof=1, keepdims=True)
    return np.asarray(np.float32(rescale) * guided * ratio + np.float32(1 - rescale) * guided, dtype=guided.dtype)


def guidance_embedding(scale: float, width: int, batch: int) -> Array:
    """The sinusoidal embedding of w = guidance - 1 that LCM takes in place of a doubled batch: (batch, width)."""
    half = width // 2
    frequencies = np.exp(-np.log(np.float32(10000)) / (half - 1) * np.arange(half, dtype=np.float32))
    angles = np.float32((scale - 1) * 1000) * frequencies
    embedding = np.concatenate([np.sin(angles), np.cos(angles), np.zeros(width % 2, dtype=np.float32)])
    return np.tile(embedding.astype(np.float32), (batch, 1))


def timestep_input(engine: Engine, timestep: float, batch: int, name: str = "timestep") -> Array:
    """The timestep in the form that a graph takes it: a scalar, one number, or one for each of the batch."""
    spec = next(spec for spec in engine.signature.inputs if spec.name == name)
    shape = tuple(dim if isinstance(dim, int) else batch for dim in spec.shape)
    return np.full(shape, timestep, dtype=spec.dtype)


def input_shape(engine: Engine, name: str) -> tuple[Dim, ...]:
    """The shape that a graph's signature gives one of its inputs."""
    return next(spec for spec in engine.signature.inputs if spec.name == name).shape


def fixed_size(engine: Engine, name: str, axis: int) -> int | None:
    """The number that a static graph fixes for an input's axis; None where it is free."""
    dim = input_shape(engine, name)[axis]
    return dim if isinstance(dim, int) else None


def require_engines(engines: Mapping[str, Engine], roles: Sequence[str], family: str) -> None:
    """Raise InputError naming every role that a family needs and a bundle lacks."""
    missing = [role for role in roles if role not in engines]
    if missing:
        raise InputError(f"{family} needs the components {', '.join(roles)}; missing: {', '.join(missing)}")
