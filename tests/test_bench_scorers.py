"""CLIP score and FID of a benchmark's pictures: against their equations, and what is refused."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ingot import InputError
from ingot.benchmarks.harness import quality as qualities
from ingot.benchmarks.harness.quality import judge
from ingot.benchmarks.harness.scorers import CLIP_MODULE, check_scorers, clip_scorer, fid_scorer

from .test_bench_quality import keep, noise, report

needs_torchmetrics = pytest.mark.skipif(
    importlib.util.find_spec("torchmetrics") is None, reason="torchmetrics is in the extra `bench`, which is optional"
)
BOS, EOS = "<|startoftext|>", "<|endoftext|>"


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random CLIP with its processor, as transformers saves them."""
    import torch
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    folder = tmp_path_factory.mktemp("clip")
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    vocabulary = [*letters, *(f"{letter}</w>" for letter in letters), BOS, EOS]
    (folder / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(vocabulary)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    words = {"bos_token": BOS, "eos_token": EOS, "pad_token": EOS, "unk_token": EOS, "tokenizer_class": "CLIPTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(words))
    CLIPTokenizer.from_pretrained(folder).save_pretrained(folder)
    small = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    ends = {"bos_token_id": len(vocabulary) - 2, "eos_token_id": len(vocabulary) - 1}
    text = {**small, **ends, "vocab_size": len(vocabulary), "max_position_embeddings": 77}
    torch.manual_seed(0)
    config = CLIPConfig(text_config=text, vision_config={**small, "image_size": 28, "patch_size": 14}, projection_dim=8)
    model = CLIPModel(config).eval()
    model.text_projection.weight.data.neg_()  # these weights' cosines are below 0, where every score is 0
    model.save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}).save_pretrained(folder)
    return folder


PROMPTS = ("a red cat", "a", "a cat " * 60)


def by_hand(folder: Path, pictures: Any, prompts: tuple[str, ...]) -> float:
    """max(100 cos(image, text), 0) of the means, from the model's own outputs."""
    import torch
    from transformers import CLIPModel, CLIPTokenizer
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    model, tokens = CLIPModel.from_pretrained(folder).eval(), CLIPTokenizer.from_pretrained(folder)
    pixels = CLIPImageProcessorPil.from_pretrained(folder)(
        [Image.fromarray(one) for one in pictures], return_tensors="pt"
    )
    cosines = []
    with torch.no_grad():
        for one, prompt in zip(pixels["pixel_values"], prompts, strict=True):
            words = tokens([prompt], truncation=True, max_length=77, return_tensors="pt")
            made = model(pixel_values=one[None], **words)
            cosines.append(float(torch.cosine_similarity(made.image_embeds, made.text_embeds)[0]))
    return max(100 * float(np.mean(cosines)), 0.0)


@needs_torchmetrics
def test_clip_score_is_its_equation(clip: Path, tmp_path: Path) -> None:
    pictures = noise(6)
    expected = by_hand(clip, pictures, PROMPTS)
    assert expected > 1  # below 0 every score would be 0
    scored = clip_scorer(clip)
    assert scored(pictures, PROMPTS) == pytest.approx(expected, abs=1e-3)  # of 100, in float32
    assert abs(scored(pictures[::-1], PROMPTS) - expected) > 0.1  # other pictures, another score
    assert scored(pictures, PROMPTS) == pytest.approx(expected, abs=1e-3)  # nothing is left of the last call
    keep(tmp_path, 0, pictures)
    row = judge(report("a", prompts=PROMPTS), tmp_path, clip=clip).rows[0]
    assert row.quality is not None
    assert row.quality.clip == pytest.approx(expected, abs=1e-3)


@needs_torchmetrics
def test_fid_is_its_equation(tmp_path: Path) -> None:
    """With a linear feature extractor in Inception's place: means and covariances in NumPy, the root by SciPy."""
    import torch
    from scipy.linalg import sqrtm

    class Features(torch.nn.Module):
        num_features = 6

        def forward(self, pictures: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.adaptive_avg_pool2d(pictures.double(), (1, 2)).flatten(1)

    for number, picture in enumerate(noise(7, (9, 30, 40, 3))):
        Image.fromarray(picture).save(tmp_path / f"{number}.png")
    files = sorted(tmp_path.glob("*.png"))
    scored = fid_scorer(Features(), files)
    for seed, shape in ((8, (8, 30, 40, 3)), (9, (8, 16, 20, 3))):
        made = noise(seed, shape) // 2

        def features(pictures: Any) -> Any:
            return Features()(torch.from_numpy(np.stack(pictures).transpose(0, 3, 1, 2))).numpy()

        a, b = features([np.asarray(Image.open(file)) for file in files]), features(made)
        covariances = np.cov(a.T), np.cov(b.T)
        root = np.trace(sqrtm(covariances[0] @ covariances[1]).real)
        expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + sum(map(np.trace, covariances)) - 2 * root
        assert scored(made) == pytest.approx(expected, rel=1e-6)  # float64, eigenvalues for the root


def test_without_torchmetrics_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    with pytest.raises(
        InputError, match=r"--clip needs torchmetrics, transformers, and torchmetrics .*'ingot\[bench\]'"
    ):
        judge(report("a"), tmp_path, clip=tmp_path)
    with pytest.raises(
        InputError, match="--fid needs torchmetrics, torchvision, torch-fidelity, and torchmetrics cannot"
    ):
        judge(report("a"), tmp_path, fid="real:weights.pth")


def test_bad_folders_say_what_to_give(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    imported = [
        "torchmetrics",
        "torchmetrics.multimodal",
        "torchmetrics.image.fid",
        "torchvision",
        "torch_fidelity",
        CLIP_MODULE,
    ]
    for name in [*imported, "transformers"]:
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    with pytest.raises(InputError, match=r"a folder is needed as transformers' CLIPModel and CLIPProcessor save it"):
        check_scorers(tmp_path, None)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(InputError, match="holds a model of the type 'bert'"):
        check_scorers(tmp_path, None)
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    with pytest.raises(InputError, match=r"lacks preprocessor_config.json, tokenizer_config.json"):
        check_scorers(tmp_path, None)
    for name in ("preprocessor_config.json", "tokenizer_config.json"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(InputError, match=r"has no weights: model\*.safetensors or pytorch_model\*.bin"):
        check_scorers(tmp_path, None)
    (tmp_path / "model.safetensors").touch()
    check_scorers(tmp_path, None)
    for given, said in (
        (f"{tmp_path}/nowhere:w.pth", "nowhere is no folder; FOLDER_OF_REAL_PICTURES:WEIGHTS is needed"),
        ("", "is no folder"),
        ("w.pth", "w.pth is no folder"),
        (str(tmp_path), "holds 0 pictures"),
    ):
        with pytest.raises(InputError, match=said):
            check_scorers(None, given)
    for name in ("a.png", "b.JPG"):
        Image.fromarray(noise()[0]).save(tmp_path / name)
    for given in (str(tmp_path), f"{tmp_path}:", f"{tmp_path}:{tmp_path}/none.pth"):
        with pytest.raises(InputError, match=r"needs Inception's weights as a local file.*pt_inception-2015-12-05"):
            check_scorers(None, given)
    (tmp_path / "w.pth").write_bytes(b"")
    with pytest.raises(InputError, match=r"w.pth holds no plain weights of pt_inception"):
        check_scorers(None, f"{tmp_path}:{tmp_path}/w.pth")
    torch.save({"weight": torch.zeros(1)}, tmp_path / "w.pth")
    check_scorers(None, f"{tmp_path}:{tmp_path}/w.pth")


@needs_torchmetrics
@pytest.mark.skipif(importlib.util.find_spec("torch_fidelity") is None, reason="torch-fidelity is in the extra `bench`")
def test_weights_that_would_run_code_or_do_not_fit_are_refused(tmp_path: Path) -> None:
    import torch

    for number in range(2):
        Image.fromarray(noise(number)[0]).save(tmp_path / f"{number}.png")
    file = tmp_path / "w.pth"
    torch.save({"object": qualities.Made(None, None, [])}, file)
    with pytest.raises(InputError, match=r"holds no plain weights of pt_inception"):
        judge(report("a"), tmp_path, fid=f"{tmp_path}:{file}")
    torch.save({"conv.weight": torch.zeros(2)}, file)
    with pytest.raises(InputError, match="does not fit torch-fidelity's Inception"):
        judge(report("a"), tmp_path, fid=f"{tmp_path}:{file}")
