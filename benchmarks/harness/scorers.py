"""CLIP score and FID by torchmetrics, with weights that the user has on disk: nothing is downloaded.

    clip   mean of max(100 cos(E_image, E_prompt), 0)                                   Hessel et al. 2021 (arXiv 2104.08718)
    fid    |m_r - m|^2 + tr(C_r + C - 2 (C_r C)^(1/2))                                   Heusel et al. 2017 (arXiv 1706.08500)

with E CLIP's embeddings, m and C the mean and covariance of Inception's features over real pictures (r) and over a
contestant's. FID is biased at few pictures: it compares contestants of one report, not reports with other counts.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ingot.runtimes.errors import InputError

Pictures = NDArray[np.uint8]  # (n, height, width, 3)
SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
WEIGHTS = "pt_inception-2015-12-05-6726825d.pth"  # what torch-fidelity itself would download
CLIP_MODULE = "transformers.models.clip.image_processing_pil_clip"
CLIP_WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")
EXTRA = "pip install 'ingot[bench]'"


@dataclass(frozen=True)
class Scorers:
    """What was asked for and can be measured; None: not asked for."""

    clip: Callable[[Pictures, Sequence[str]], float] | None = None
    fid: Callable[[Pictures], float] | None = None


def check_scorers(clip: str | Path | None, fid: str | None) -> None:
    """Raise InputError for what `open_scorers` would refuse: before hours of measuring. No model is made, but what it takes is
    imported, and Inception's weights are read."""
    if clip is not None:
        _need("--clip", "torchmetrics", "torchmetrics.multimodal", "transformers", CLIP_MODULE)
        _clip_folder(Path(clip))
    if fid is not None:
        _need("--fid", "torchmetrics", "torchmetrics.image.fid", "torchvision", "torch_fidelity")
        _, weights = _fid_source(fid)
        _require_plain(weights)


def open_scorers(clip: str | Path | None, fid: str | None) -> Scorers:
    """Load what was asked for: `clip` a folder as transformers' CLIPModel and CLIPProcessor save it, `fid` a folder of real
    pictures and a file of Inception's weights, `FOLDER:WEIGHTS`. Raises InputError for what is missing, and names it."""
    check_scorers(clip, fid)
    return Scorers(
        clip=None if clip is None else clip_scorer(Path(clip)),
        fid=None if fid is None else _inception_scorer(*_fid_source(fid)),
    )


def clip_scorer(folder: Path) -> Callable[[Pictures, Sequence[str]], float]:
    """CLIP score of pictures with their prompts, the mean over them, by the model in this folder."""
    import torch
    from torchmetrics.multimodal import CLIPScore

    metric = CLIPScore(lambda: _clip(folder))  # by its name torchmetrics would ask the hub

    @torch.no_grad()
    def scored(pictures: Pictures, prompts: Sequence[str]) -> float:
        metric.reset()
        for picture, prompt in zip(pictures, prompts, strict=True):
            metric.update([torch.from_numpy(picture.transpose(2, 0, 1).copy())], [prompt])
        return float(metric.compute())

    return scored


def fid_scorer(feature: Any, real: Sequence[Path], **options: Any) -> Callable[[Pictures], float]:
    """FID of pictures against the real ones in these files. `feature` is a layer of Inception's, or a module that maps
    pictures (n, 3, height, width), uint8, to features (n, d)."""
    import torch
    from torchmetrics.image.fid import FrechetInceptionDistance

    metric = FrechetInceptionDistance(feature, reset_real_features=False, **options)

    def update(picture: NDArray[np.uint8], of_real: bool) -> None:  # one at a time: real ones have many sizes
        metric.update(torch.from_numpy(picture.transpose(2, 0, 1)[None].copy()), real=of_real)

    with torch.no_grad():
        for file in real:
            update(_picture(file), True)

    @torch.no_grad()
    def scored(pictures: Pictures) -> float:
        metric.reset()
        for picture in pictures:
            update(picture, False)
        return float(metric.compute())

    return scored


def _inception_scorer(real: list[Path], weights: Path) -> Callable[[Pictures], float]:
    try:
        return fid_scorer(2048, real, feature_extractor_weights_path=str(weights))
    except RuntimeError as error:  # load_state_dict's
        raise InputError(f"{weights} does not fit torch-fidelity's Inception: {error}") from error


def _require_plain(weights: Path) -> None:
    """Raise InputError for a file of anything but tensors."""
    import torch

    try:
        found = torch.load(weights, weights_only=True)  # torch-fidelity itself would run whatever code is in it
    except Exception as error:  # pickle's, zipfile's and torch's own
        raise InputError(f"{weights} holds no plain weights of {WEIGHTS}'s kind: {error}") from error
    if not isinstance(found, dict):
        raise InputError(f"{weights} holds a {type(found).__name__}, not weights of {WEIGHTS}'s kind")


def _clip(folder: Path) -> tuple[Any, Any]:
    """CLIP from a folder as torchmetrics calls it: 1.9 takes features for tensors, and transformers 5 wraps them."""
    import torch
    from transformers import AutoTokenizer, CLIPModel
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    class Features(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.clip = CLIPModel.from_pretrained(folder, local_files_only=True, dtype=torch.float32).eval()
            self.config = self.clip.config

        def get_image_features(self, *given: Any) -> Any:
            found = self.clip.get_image_features(*given)
            return getattr(found, "pooler_output", found)

        def get_text_features(self, *given: Any) -> Any:
            found = self.clip.get_text_features(*given)
            return getattr(found, "pooler_output", found)

    model = Features()
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    prepare = CLIPImageProcessorPil.from_pretrained(folder, local_files_only=True)

    def processor(*, text: Any = None, images: Any = None, **options: Any) -> Any:
        if images is not None:
            return prepare([Image.fromarray(one.numpy().transpose(1, 2, 0)) for one in images], return_tensors="pt")
        # cut by the tokenizer, which keeps the token at the end that CLIP reads; torchmetrics would cut it off
        return tokenizer(text, truncation=True, max_length=model.config.text_config.max_position_embeddings, **options)

    return model, processor


def _clip_folder(folder: Path) -> None:
    try:
        config = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(
            f"--clip {folder}: a folder is needed as transformers' CLIPModel and CLIPProcessor save it, such as a copy of "
            f"openai/clip-vit-large-patch14; its config.json cannot be read: {error}"
        ) from error
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind != "clip":
        raise InputError(f"--clip {folder} holds a model of the type {kind!r}; CLIP score is by one of the type 'clip'")
    missing = [name for name in ("preprocessor_config.json", "tokenizer_config.json") if not (folder / name).exists()]
    if missing:
        raise InputError(f"--clip {folder} lacks {', '.join(missing)}: save CLIPProcessor beside the model")
    if not [file for name in CLIP_WEIGHTS for file in folder.glob(name)]:
        raise InputError(
            f"--clip {folder} has no weights: {' or '.join(CLIP_WEIGHTS)} beside its config.json is needed"
        )


def _fid_source(given: str) -> tuple[list[Path], Path]:
    """The real pictures' files, and the file of weights."""
    folder, _, weights = (given, "", "") if Path(given).is_dir() else given.rpartition(":")
    if not folder or not Path(folder).is_dir():
        raise InputError(f"--fid {given}: {folder or given} is no folder; FOLDER_OF_REAL_PICTURES:WEIGHTS is needed")
    real = sorted(file for file in Path(folder).rglob("*") if file.suffix.lower() in SUFFIXES)
    if len(real) < 2:
        raise InputError(f"--fid {folder} holds {len(real)} pictures ({', '.join(sorted(SUFFIXES))}); 2 are the least")
    if not weights or not Path(weights).is_file():
        raise InputError(
            f"--fid {given}: FID needs Inception's weights as a local file, and {weights or 'none'} was named: give "
            f"--fid {folder}:WEIGHTS with torch-fidelity's {WEIGHTS}, from its releases on GitHub"
        )
    return real, Path(weights)


def _need(option: str, *modules: str) -> None:
    for name in modules:
        try:
            importlib.import_module(name)
        except (ImportError, RuntimeError) as error:  # RuntimeError is torchvision's, for torch of another build
            wanted = ", ".join(dict.fromkeys(module.partition(".")[0] for module in modules)).replace("_", "-")
            raise InputError(f"{option} needs {wanted}, and {name} cannot be imported ({error}): {EXTRA}") from error


def _picture(file: Path) -> NDArray[np.uint8]:
    try:
        with Image.open(file) as opened:
            return np.asarray(opened.convert("RGB"), dtype=np.uint8)
    except OSError as error:
        raise InputError(f"--fid: {file} is no picture: {error}") from error
