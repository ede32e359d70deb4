"""Token merging: of the most alike pairs of tokens one attends for both, at the highest resolution that attends.

    c_i    = max_j cos(x_i, x_j),   t_i = argmax_j cos(x_i, x_j),   i a source, j a destination
    x'_j   = mean({x_j} and {x_i : i among the R sources with the largest c_i, t_i = j})
    y      = attention(x');   y_i = y_{t_i} for each merged source i

Destinations are the first token of every 2x2 window of the picture, sources the others; R is a share of all tokens, at most
0.5. What is alike is measured before the block's norm. It is not exact: the picture changes.

Source: Bolya and Hoffman, "Token Merging for Fast Stable Diffusion", 2023, with the destinations of their `no_rand` and
merging before self-attention only, as they found best; the bipartite matching is of Bolya et al., "Token Merging: Your ViT
But Faster", 2023.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import Tensor, nn

from ingot.runtimes.errors import InputError

from ._forward import Forward, forward_replaced

EXACT = False
DEFAULT = 0.5
# Of a picture with an even number of tokens to a side 0.75 are sources, but of one row only half.
MOST = 0.5


def value(text: str | None) -> float:
    """The share of tokens that are merged away. Raises InputError."""
    if text is None:
        return DEFAULT
    try:
        ratio = float(text)
    except ValueError:
        ratio = -1.0
    if not 0 < ratio <= MOST:
        raise InputError(
            f"token_merging={text}: the share of tokens to merge away is needed, above 0 and at most {MOST}"
        )
    return ratio


def applies(module: nn.Module) -> bool:
    """Whether the module is a UNet that attends to pictures."""
    return bool(_highest(module))


@contextmanager
def applied(module: nn.Module, ratio: float = DEFAULT) -> Iterator[None]:
    """Merge tokens around the self-attentions of the highest resolution that has them. A module without any is left
    alone. Raises InputError naming those that also attend to the prompt."""
    both = [
        name
        for transformer in _highest(module)
        for name, part in transformer.named_modules()
        if isinstance(part, BasicTransformerBlock) and part.only_cross_attention
    ]
    if both:
        raise InputError(f"token_merging is for self-attention, and these attend to the prompt: {', '.join(both)}")
    with ExitStack() as stack:
        for transformer in _highest(module):
            stack.enter_context(_merging(transformer, ratio))
        yield


def _highest(module: Any) -> list[Transformer2DModel]:
    """The transformers of a UNet's outermost level that has some, on the way down and up. By the blocks' own numbers: of
    DeepCache's shallow UNet the way down may be missing."""
    kinds = getattr(getattr(module, "config", None), "down_block_types", ())
    level = next((number for number, kind in enumerate(kinds) if "CrossAttn" in kind), None)
    if level is None or not hasattr(module, "up_blocks"):
        return []
    down, up = dict(module.down_blocks.named_children()), dict(module.up_blocks.named_children())
    blocks = [
        blocks[name] for blocks, name in ((down, str(level)), (up, str(len(kinds) - 1 - level))) if name in blocks
    ]
    parts = [part for block in blocks for part in getattr(block, "attentions", None) or ()]
    return [part for part in parts if isinstance(part, Transformer2DModel)]


@contextmanager
def _merging(transformer: Transformer2DModel, ratio: float) -> Iterator[None]:
    """Merge in every block of a transformer, which alone knows the height and width of its tokens."""
    size: list[Any] = []  # (height, width) of the call that runs

    def note_size(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = args[0] if args else kwargs["hidden_states"]
        size[:] = x.shape[-2:]

    with ExitStack() as stack:
        stack.enter_context(_hooked(transformer, note_size))
        for block in (part for part in transformer.modules() if isinstance(part, BasicTransformerBlock)):
            tokens: list[Tensor] = []
            stack.enter_context(_hooked(block, _noting(tokens)))
            stack.enter_context(forward_replaced(block.attn1, _merging_around(tokens, size, ratio)))
        yield


@contextmanager
def _hooked(module: nn.Module, hook: Callable[..., None]) -> Iterator[None]:
    handle = module.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _noting(tokens: list[Tensor]) -> Callable[..., None]:
    def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tokens[:] = [args[0] if args else kwargs["hidden_states"]]

    return note


def _merging_around(tokens: list[Tensor], size: list[Any], ratio: float) -> Callable[[Forward], Forward]:
    def wrap(forward: Forward) -> Forward:
        def attend(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            height, width = size
            matching = match(tokens.pop(), height, width, ratio)
            return matching.unmerge(forward(matching.merge(hidden_states), *args, **kwargs))

        return attend

    return wrap


@dataclass(frozen=True)
class Matching:
    """Which tokens of a batch are merged into which.

    Sizes are those of all tokens and of the merged ones only: one for the windows would be a product of halves rounded up,
    over which torch.export takes minutes and then asks for even sizes.
    """

    merged: Any  # how many: the first of the order
    order: Tensor  # (batch, tokens): their numbers, the most alike sources first, destinations last
    target: Tensor  # (batch, tokens): the number of the destination most like each

    def merge(self, x: Tensor) -> Tensor:
        """Tokens (batch, tokens, channels) without the merged ones, in some order."""
        gone, kept = self.order[:, : self.merged], self.order[:, self.merged :]
        target = self.target.gather(1, gone)
        total = x.scatter_add(1, _wide(target, x), _rows(x, gone))
        ones = torch.ones_like(x[..., :1])
        count = ones.scatter_add(1, target[..., None], _rows(ones, gone))
        return _rows(total / count, kept)

    def unmerge(self, y: Tensor) -> Tensor:
        """What became of every token, merged ones too, at its own place: (batch, tokens, channels)."""
        rank = self.order.argsort(dim=1)  # of each token in the order
        its_own = torch.arange(rank.shape[1], device=y.device)
        return _rows(y, rank.gather(1, torch.where(rank < self.merged, self.target, its_own)) - self.merged)


def match(x: Tensor, height: Any, width: Any, ratio: float) -> Matching:
    """The matching of tokens (batch, height * width, channels)."""
    number = torch.arange(x.shape[1], device=x.device).reshape(height, width)
    # not number[::2, ::2]: flattening that asks torch.export for even sizes
    rows, columns = (torch.arange(0, side, 2, device=x.device) for side in (height, width))
    destinations = number.index_select(0, rows).index_select(1, columns).flatten()
    unit = x / x.norm(dim=-1, keepdim=True)
    likeness, window = unit.bmm(unit.index_select(1, destinations).transpose(1, 2)).max(dim=-1)
    target = destinations.expand(x.shape[0], -1).gather(1, window)
    down, across = (torch.arange(side, device=x.device) % 2 == 0 for side in (height, width))
    is_destination = torch.logical_and(down[:, None], across).flatten()
    last = torch.full_like(likeness, -2.0)  # no cosine is below -1
    order = torch.where(is_destination, last, likeness).argsort(dim=1, descending=True)
    share = Fraction(ratio).limit_denominator(1000)
    return Matching(x.shape[1] * share.numerator // share.denominator, order, target)


def _wide(index: Tensor, x: Tensor) -> Tensor:
    """An index of tokens (batch, n) for every channel of x."""
    return index[..., None].expand(-1, -1, x.shape[-1])


def _rows(x: Tensor, index: Tensor) -> Tensor:
    """The tokens of x by their index: (batch, n, channels)."""
    return x.gather(1, _wide(index, x))
