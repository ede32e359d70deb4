"""What `ingot bench` is asked for: the grid, recipes, and everything that is refused before anything runs."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

import ingot
from ingot.benchmarks.harness import grid, request, run
from ingot.cli import main
from ingot.runtimes.bundle import Bundle
from ingot.runtimes.errors import BundleError, EngineError, IngotError, InputError


@pytest.fixture(autouse=True)
def nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(run, "measure", refuse)


def test_the_grid_is_every_combination_in_order() -> None:
    jobs = grid.jobs([(64, 64), (64, 96)], [1, 2], [8], [1], guidance_scale=1.0, scheduler="S", seed=0, prompts=("a",))
    assert [(job.width, job.batch) for job in jobs] == [(64, 1), (64, 2), (96, 1), (96, 2)]


@pytest.mark.parametrize(
    ("text", "name", "said"),
    [
        ("mine=own/slow.py", "mine", {"kind": "own/slow.py"}),
        ("plain:", "plain", {}),
        ("fast: engine=onnx, cache_interval=3", "fast", {"engine": "onnx", "cache_interval": 3}),
        ("a b: vae=some folder/x, guidance_end=0.6", "a b", {"vae": "some folder/x", "guidance_end": 0.6}),
        ('m: precision={"unet": "int8-static", "vae": "x"}, device=cpu', "m",
         {"precision": {"unet": "int8-static", "vae": "x"}, "device": "cpu"}),
        ('l: loras=[["a.safetensors", 0.5], ["b", 1]]', "l", {"loras": [["a.safetensors", 0.5], ["b", 1]]}),
        ("t: threads=2 , verify=false", "t", {"threads": 2, "verify": False}),
        ("v: precision=3bit, form=", "v", {"precision": "3bit", "form": ""}),
    ],
)  # fmt: skip
def test_a_recipe_is_pairs_whose_values_are_json_or_text(text: str, name: str, said: dict[str, Any]) -> None:
    assert grid.recipe(text) == (name, said)


def test_each_engine_and_precision_is_a_contestant_by_default(tiny_bundle: Path) -> None:
    asked = request.make([tiny_bundle])
    assert [(one.name, one.options) for one in asked.contestants] == [
        ("onnx float32", {"engine": "onnx", "precision": "float32", "device": "cpu"})
    ]
    assert asked.reference == "onnx float32"
    assert asked.latents == (4, ingot.load(tiny_bundle).vae_scale_factor)


def test_the_jobs_defaults_are_the_models_own(tiny_bundle: Path) -> None:
    job = request.make([tiny_bundle], threads=[1]).jobs[0]
    pipe = ingot.load(tiny_bundle)
    assert (job.height, job.width) == pipe.default_size
    assert job.scheduler == pipe.scheduler.config["_class_name"]
    assert (job.batch, job.steps, job.guidance_scale, job.threads) == (1, 20, 7.5, 1)


def test_a_recipe_is_sorted_into_loading_and_calling(tiny_bundle: Path) -> None:
    recipes = ["r: precision=float32, arena=false, guidance_end=0.5, tile=32"]
    (one,) = request.make([tiny_bundle], contestant=recipes).contestants
    assert one.options == {"engine": "onnx", "precision": "float32", "arena": False, "tile": 32, "device": "cpu"}
    assert one.call == {"guidance_end": 0.5}


def test_recipes_run_alone_unless_engines_or_schemes_are_named(tiny_bundle: Path) -> None:
    names = [one.name for one in request.make([tiny_bundle], contestant=["r:"], engines=["onnx"]).contestants]
    assert names == ["onnx float32", "r"]


def test_bundles_of_one_report_are_told_apart(tiny_bundle: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(tiny_bundle, other)
    names = [one.name for one in request.make([tiny_bundle, other]).contestants]
    assert names == ["tiny onnx float32", "other onnx float32"]
    (one,) = request.make([tiny_bundle, other], contestant=[f"r: bundle={other}"]).contestants
    assert one.model == str(other)


def test_diffusers_is_the_reference_and_runs_what_the_bundle_was_made_from(tiny_bundle: Path) -> None:
    asked = request.make(
        [tiny_bundle], baseline=["diffusers"], contestant=["bf16: kind=diffusers, dtype=bfloat16", "r:"]
    )
    assert asked.reference == "diffusers"
    assert [one.kind for one in asked.contestants] == ["diffusers", "diffusers", "ingot"]
    assert asked.contestants[0].model == Bundle.open(tiny_bundle).manifest.provenance.source
    assert asked.contestants[1].options == {"dtype": "bfloat16"}


REFUSED: list[tuple[dict[str, Any], type[IngotError], str]] = [
    ({"engines": ["onyx"]}, InputError, "unknown engine 'onyx'; available: coreml, onnx, openvino"),
    ({"engines": ["openvino"]}, InputError, "has no graphs for openvino; it has: onnx float32.*ingot add .* --to openvino"),
    ({"schemes": ["int8-static"]}, InputError, "there is no int8-static; there is .* for onnx: float32"),
    ({"sizes": [(64, 71)]}, InputError, "--sizes 64x71: width 71 is not a multiple of 2; 70 would do"),
    ({"batch": [0]}, InputError, "--batch: 0 was given; whole numbers of at least 1 are needed"),
    ({"steps": [20, -1]}, InputError, "--steps: -1 was given"),
    ({"rounds": 0}, InputError, "--rounds 0: at least 1 is needed"),
    ({"timeout": 0}, InputError, "--timeout 0: seconds above 0 are needed"),
    ({"seed": -1}, InputError, "--seed -1"),
    ({"guidance_scale": float("nan")}, InputError, "--guidance-scale nan"),
    ({"scheduler": "Wonder"}, InputError, "unknown scheduler 'Wonder'; available: CMStochasticIterativeScheduler"),
    ({"prompts": "/nowhere/prompts.txt"}, InputError, "cannot read prompts from /nowhere/prompts.txt as UTF-8"),
    ({"prompts": ["", "  "]}, InputError, "prompts has no prompt: one on each line is needed"),
    ({"baseline": ["automatic"]}, InputError, "unknown baseline 'automatic'; available: diffusers, diffusers-compile"),
    ({"baseline": ["optimum-onnx"], "environments": "/nowhere"}, InputError, "optimum-onnx is not in /nowhere; to make it: "),
    ({"baseline": ["diffusers"], "model": "/nowhere/model"}, InputError, "/nowhere/model has no model_index.json.*--model CHECKPOINT"),
    ({"reference": "nobody"}, InputError, "unknown contestant for --reference 'nobody'; available: onnx float32"),
    ({"contestant": ["nonsense"]}, InputError, "'nonsense' is neither NAME=FILE.py nor 'NAME: key=value, ...'"),
    ({"contestant": ["x=/nowhere/x.py"]}, InputError, "there is no file /nowhere/x.py"),
    ({"contestant": ["x: what"]}, InputError, "'what' is not key=value"),
    ({"contestant": ["x: wonder=1"]}, InputError, "nothing takes wonder; loading takes bundle.* a call takes .*cache_interval"),
    ({"contestant": ["x: engine=onyx"]}, InputError, "unknown engine 'onyx'"),
    ({"contestant": ["x: precision=int4"]}, InputError, "has no graphs for int4; it has: onnx float32"),
    ({"contestant": ["x: arena=many"]}, InputError, "arena='many'"),
    ({"contestant": ["x: threads=2"]}, InputError, "threads: every contestant gets the same"),
    ({"contestant": ["x: kind=optimum-onnx, weights=fp16"]}, InputError, "weights 'fp16' for optimum-onnx; there are fp32"),
    ({"baseline": ["openvino-genai"], "environments": "/nowhere"}, InputError, "openvino-genai reads what optimum-intel exports, and"),
    ({"baseline": ["optimum-intel"], "device": "cuda"}, InputError, "--device cuda: the baseline optimum-intel is run on cpu only"),
    ({"device": "moon"}, EngineError, "onnx has no device moon here; it has .*cpu"),
    ({"contestant": ["x: device=moon"]}, EngineError, "onnx has no device moon here"),
    ({"contestant": ["x: height=64"]}, InputError, "height: every contestant gets the same"),
    ({"contestant": ["x: cache_interval=3"]}, InputError, "need DeepCache's unet_shallow, which .* does not have"),
    ({"contestant": ["x: vae=/nowhere"]}, BundleError, "/nowhere is no bundle"),
    ({"contestant": ["x: bundle=other"]}, InputError, "bundle=other is none of those that were given"),
    ({"contestant": ["x:", "x:"]}, InputError, "two contestants are named 'x'"),
    (
        {"contestant": ["x: kind=diffusers, wonder=1"]},
        InputError,
        "diffusers has no option wonder; it has attention, channels_last, device, dtype",
    ),
    ({"clip": "/nowhere"}, InputError, "--clip"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "kind", "message"), REFUSED, ids=lambda value: str(value)[:40])
def test_what_cannot_be_is_refused_before_anything_runs(
    tiny_bundle: Path, tmp_path: Path, options: dict[str, Any], kind: type[IngotError], message: str
) -> None:
    with pytest.raises(kind, match=message):
        ingot.bench(tiny_bundle, output=tmp_path / "report", progress=False, **options)
    assert not (tmp_path / "report").exists()


def test_an_engine_that_cannot_run_here_is_named_with_why(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grid, "absent", lambda name, _: f"the engine {name} needs a moon")
    with pytest.raises(EngineError, match=r"--engines onnx: the engine onnx needs a moon"):
        request.make([tiny_bundle], engines=["onnx"])
    with pytest.raises(EngineError, match=r"nothing here runs .*: onnx: the engine onnx needs a moon"):
        request.make([tiny_bundle])


def test_a_bundle_that_fails_verification_is_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_bundle, tmp_path / "bundle")
    file = next((tmp_path / "bundle" / "unet").glob("*.onnx*"))
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(BundleError, match=rf"unet/{file.name} has another sha256"):
        request.make([tmp_path / "bundle"])
    with pytest.raises(InputError, match="no bundle was given"):
        request.make([])


def test_a_static_bundles_size_is_its_only_one(tiny_bundle: Path, tmp_path: Path) -> None:
    """The bundle with the numbers of a static one in its manifest: what is read of it before anything runs."""
    path = tmp_path / "static"
    shutil.copytree(tiny_bundle, path)
    text = (path / "ingot.json").read_text()
    factor = ingot.load(tiny_bundle).vae_scale_factor
    for name, number in (("height", 16), ("width", 32)):
        text = text.replace(f'"{name}/{factor}"', str(number))
    (path / "ingot.json").write_text(text)
    own = (16 * factor, 32 * factor)
    assert [(job.height, job.width) for job in request.make([path]).jobs] == [own]
    with pytest.raises(InputError, match=rf"--sizes 64x64: .* with the static size {own[0]}x{own[1]}"):
        request.make([path], sizes=[(64, 64)])


def test_a_report_is_only_replaced_when_asked_and_nothing_else_ever(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "report.json").write_text("{}")
    with pytest.raises(InputError, match="--overwrite replaces the report in it"):
        request.make([tiny_bundle], output=tmp_path / "report")
    assert request.make([tiny_bundle], output=tmp_path / "report", overwrite=True).output == tmp_path / "report"
    with pytest.raises(InputError, match="is no report of `ingot bench`"):
        request.make([tiny_bundle], output=tiny_bundle, overwrite=True)
    with pytest.raises(InputError, match="-o must name a folder to make in one that does"):
        request.make([tiny_bundle], output=tmp_path / "no" / "report")


def test_the_command_line_hands_its_options_on(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def bench(*bundles: Any, **options: Any) -> None:
        seen.update(options, bundles=bundles)
        raise InputError("enough")

    monkeypatch.setattr(run, "bench", bench)
    options = [
        "--engines",
        "onnx,openvino",
        "--sizes",
        "64,64x96",
        "--batch",
        "1,2",
        "--steps",
        "4",
        "--baseline",
        "diffusers",
    ]
    assert (
        main(
            ["bench", *options, "--contestant", "a: engine=onnx", "--contestant", "b=f.py", "--quiet", str(tiny_bundle)]
        )
        == 1
    )
    assert seen["bundles"] == (str(tiny_bundle),)
    assert seen["engines"] == ["onnx", "openvino"]
    assert seen["sizes"] == [(64, 64), (64, 96)]
    assert (seen["batch"], seen["steps"], seen["baseline"]) == ([1, 2], [4], ["diffusers"])
    assert seen["contestant"] == ["a: engine=onnx", "b=f.py"]
    assert seen["progress"] is False
    assert set(seen) - {"bundles", "progress", "command"} == set(request.make.__kwdefaults__) - {"command"}


def test_a_bundle_may_stand_behind_the_options(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def bench(*bundles: Any, **_: Any) -> None:
        seen.extend(bundles)
        raise InputError("enough")

    monkeypatch.setattr(run, "bench", bench)
    assert main(["bench", "one", "--steps", "4", "two"]) == 1
    assert seen == ["one", "two"]


def test_a_comparison_measures_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "bundle", "--compare", "old.json", "new.json"]) == 2
    assert "leave the bundles out" in capsys.readouterr().err
