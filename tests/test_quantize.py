"""`ingot.quantize`: graphs beside what a bundle has, their damage, the search for what holds a floor, and bad input."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest

import ingot
from ingot.quantization import recipe as recipes
from ingot.quantization.frontier import Point, fastest, frontier
from ingot.quantization.gate import Floor, choose
from ingot.quantization.scheme import Layer
from ingot.quantization.sensitivity import groups, rank
from ingot.quantization.trajectory import spread
from ingot.quantization.workbench import Damage, Work, in_parts, matching
from ingot.runtimes.bundle import Bundle
from ingot.runtimes.choice import pick
from ingot.runtimes.errors import InputError
from ingot.runtimes.metrics import image_ssim
from ingot.runtimes.signature import Signature, TensorSpec

PROMPTS = ["a red ring on a blue background", "a small star"]
QUICK: dict[str, Any] = {"prompts": PROMPTS, "num_inference_steps": 3, "progress": False}


@pytest.fixture(scope="module")
def quantized(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny bundle with int8-dynamic, for ONNX Runtime."""
    bundle = Path(shutil.copytree(tiny_bundle, tmp_path_factory.mktemp("quantized") / "bundle"))
    return ingot.quantize(bundle, "int8-dynamic", to="onnx", keep=["conv_in"], command="a test", **QUICK)


def test_graphs_are_added_beside_what_there_was(quantized: Path, tiny_bundle: Path) -> None:
    before, after = Bundle.open(tiny_bundle).manifest, Bundle.open(quantized).manifest
    for role, entry in before.components.items():
        assert after.components[role].graphs[: len(entry.graphs)] == entry.graphs, role
    graph = next(g for g in after.components["unet"].graphs if g.precision == "int8-dynamic")
    assert graph.quantization is not None
    assert graph.quantization.source == "float32"
    assert graph.quantization.sqnr_db is not None
    assert 10 < graph.quantization.sqnr_db < 80  # 8 bits: some 40 dB; equal graphs would be infinite
    sizes = [sum(after.files[file].size for file in g.files) for g in (graph, before.components["unet"].graphs[-1])]
    assert sizes[0] < sizes[1]
    quality = after.quality["onnx int8-dynamic"]
    assert quality.graphs["unet"] == "int8-dynamic"
    assert quality.prompts == 2
    assert quality.checker is None
    assert after.provenance.additions[-1].command == "a test"


def test_the_precision_picks_the_set_and_nothing_said_the_floats(quantized: Path) -> None:
    with (
        ingot.load(quantized, engine="onnx") as plain,
        ingot.load(quantized, engine="onnx", precision="int8-dynamic") as small,
    ):
        call = {"seed": 0, "num_inference_steps": 3, "output_type": "np", "progress": False}
        first, second = plain(PROMPTS[0], **call).images, small(PROMPTS[0], **call).images
    quality = Bundle.open(quantized).manifest.quality["onnx int8-dynamic"]
    assert not np.array_equal(first, second)
    assert quality.psnr_db is not None
    with ingot.load(quantized, engine="onnx", precision={"unet": "int8-dynamic"}) as mixed:
        assert not np.array_equal(mixed(PROMPTS[0], **call).images, first)
    with pytest.raises(InputError, match=r"no graphs for onnx int4-weights; it has: .*onnx int8-dynamic"):
        ingot.load(quantized, engine="onnx", precision="int4-weights")
    with pytest.raises(InputError, match=r"precision names denoiser, which .* has not; it has: text_encoder, unet"):
        ingot.load(quantized, engine="onnx", precision={"denoiser": "float32"})


def test_verify_runs_quantized_graphs_too(quantized: Path) -> None:
    lines = ingot.verify(quantized, deep=True)
    assert any(line.startswith("unet on onnx int8-dynamic") for line in lines)


def test_a_recipe_is_repeated(quantized: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    ingot.quantize(bundle, recipe=quantized, **QUICK)
    one, two = (
        {(r.engine, r.role): r.quantization.keep for r in recipes.recipes_of(Bundle.open(path))}
        for path in (quantized, bundle)
    )
    assert one == two
    name = next(g for g in Bundle.open(quantized).component("unet").graphs if g.quantization).files[0]
    assert (quantized / name).read_bytes() == (bundle / name).read_bytes()  # the same integers


def test_a_recipe_of_another_model_is_refused(quantized: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    found = json.loads(recipes.dump(recipes.recipes_of(Bundle.open(quantized))))
    for one in found:
        one["quantization"]["fingerprint"] = "0" * 16
    (tmp_path / "recipe.json").write_text(json.dumps(found))
    before = sorted(tiny_bundle.rglob("*"))
    with pytest.raises(InputError, match="of another model"):
        ingot.quantize(tiny_bundle, recipe=tmp_path / "recipe.json", **QUICK)
    assert sorted(tiny_bundle.rglob("*")) == before
    (tmp_path / "none.json").write_text("{}")
    with pytest.raises(InputError, match=r"holds no recipe.*ingot inspect BUNDLE --recipes"):
        ingot.quantize(tiny_bundle, recipe=tmp_path / "none.json", **QUICK)
    with pytest.raises(InputError, match="has no quantized graphs"):
        ingot.quantize(quantized, recipe=tiny_bundle, **QUICK)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scheme": "int9"}, r"unknown scheme 'int9'; available: .*int8-dynamic"),
        ({"scheme": "palette-4", "to": "onnx"}, r"onnx has no scheme 'palette-4'; it has: .*int8-dynamic.*; palette-4 is there for coreml"),
        ({"scheme": "int8-weights", "to": "openvino"}, r"no float graphs for openvino.*ingot add"),
        ({"scheme": "int8-weights", "to": "onyx"}, r"unknown (engine|target) 'onyx'"),
        ({"scheme": "int8-static"}, r"int8-static needs calibration prompts.*--calibrate FILE"),
        ({"scheme": "int8-static", "calibrate": []}, r"no calibration prompts"),
        ({"scheme": "int8-static", "calibrate": "/no/such/file"}, r"cannot be read from /no/such/file"),
        ({"scheme": "int8-weights", "components": ["unett"]}, r"no component 'unett'; it has: text_encoder, unet"),
        ({"scheme": "int8-weights", "keep": ["nothing.*"]}, r"keep='nothing\.\*' names no layer on onnx; layers are: "),
        ({"scheme": "int8-weights", "min_checker": 0.9}, r"min_checker needs a checker"),
        ({"scheme": "int8-weights", "min_checker": 2.0}, r"it is a share of the pictures"),
        ({"scheme": "int8-weights", "options": {"onnx": {"blocks": 3}}}, r"unknown option for quantizing with onnx 'blocks'"),
        ({"scheme": "int8-weights", "options": {"coreml": {}}}, r"options are given for coreml"),
        ({"scheme": "int8-weights", "num_inference_steps": 0}, r"num_inference_steps=0"),
        ({"scheme": "int8-weights", "prompts": []}, r"give at least one"),
        ({"scheme": "int8-weights", "auto": True}, r"give one of: a scheme, auto, a recipe"),
        ({}, r"give one of: a scheme, auto, a recipe"),
        ({"scheme": "int8-dynamic", "min_psnr": 200.0}, r"holds PSNR 200 dB: the best that was found is PSNR"),
    ],
)  # fmt: skip
def test_bad_input_says_what_would_do_and_changes_nothing(
    tiny_bundle: Path, arguments: dict[str, Any], message: str
) -> None:
    before = {file: file.stat().st_mtime_ns for file in tiny_bundle.rglob("*")}
    siblings = sorted(tiny_bundle.parent.iterdir())
    with pytest.raises(InputError, match=message):
        ingot.quantize(tiny_bundle, **{**QUICK, **arguments})
    assert {file: file.stat().st_mtime_ns for file in tiny_bundle.rglob("*")} == before
    assert sorted(tiny_bundle.parent.iterdir()) == siblings


def test_a_scheme_that_is_there_is_made_anew_only_when_told(quantized: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(quantized, tmp_path / "bundle"))
    with pytest.raises(InputError, match="has onnx int8-dynamic already; give --overwrite"):
        ingot.quantize(bundle, "int8-dynamic", **QUICK)
    ingot.quantize(bundle, "int8-dynamic", overwrite=True, **QUICK)
    graphs = [g for g in Bundle.open(bundle).component("unet").graphs if g.precision == "int8-dynamic"]
    assert len(graphs) == 1
    assert graphs[0].quantization is not None
    assert "conv_in" not in graphs[0].quantization.keep


def test_static_ranges_come_from_the_prompts_that_were_given(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    (tmp_path / "prompts.txt").write_text("a cat\n\na dog\n")
    ingot.quantize(
        bundle, "int8-static", to="onnx", components=["unet"], calibrate=tmp_path / "prompts.txt", calls=4, **QUICK
    )
    graph = next(g for g in Bundle.open(bundle).component("unet").graphs if g.quantization)
    assert graph.quantization is not None
    calibration = graph.quantization.calibration
    assert calibration is not None
    assert (calibration.prompts, calibration.calls, calibration.num_inference_steps) == (("a cat", "a dog"), 3, 3)


def pairs(bundle: Path, engine: str = "onnx") -> dict[str, list[str]]:
    """The quantized graphs of each component."""
    components = Bundle.open(bundle).manifest.components
    return {r: [g.precision for g in e.graphs if g.quantization and g.engine == engine] for r, e in components.items()}


def test_schemes_that_share_a_graph_of_a_component(tiny_bundle: Path, tmp_path: Path) -> None:
    """int8-static leaves text encoders at int8-weights: one that is there is taken as it is, whatever it keeps."""
    bundle = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    ingot.quantize(bundle, "int8-weights", components="text_encoder", keep="encoder.layers.0", **QUICK)
    first = (bundle / "text_encoder" / "model_int8-weights.onnx").read_bytes()
    ingot.quantize(bundle, ["int8-static", "int8-dynamic"], to="onnx", calibrate=["a", "b"], **QUICK)
    assert (bundle / "text_encoder" / "model_int8-weights.onnx").read_bytes() == first
    assert pairs(bundle)["unet"] == ["int8-static", "int8-dynamic"]
    assert pairs(bundle)["text_encoder"].count("int8-weights") == 1
    quality = Bundle.open(bundle).manifest.quality["onnx int8-static"]
    assert (quality.graphs["text_encoder"], quality.graphs["unet"]) == ("int8-weights", "int8-static")
    with ingot.load(bundle, engine="onnx", precision="int8-static") as pipe:
        assert pipe("a", num_inference_steps=1, progress=False, output_type="np").images.shape[-1] == 3


def test_making_one_component_anew_leaves_the_others(quantized: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(quantized, tmp_path / "bundle"))
    before = pairs(bundle)
    ingot.quantize(bundle, "int8-dynamic", components=["unet"], overwrite=True, **QUICK)
    assert pairs(bundle) == before


def test_a_recipe_keeps_options_calls_and_the_set(tiny_bundle: Path, tmp_path: Path) -> None:
    one, two = (Path(shutil.copytree(tiny_bundle, tmp_path / name)) for name in ("one", "two"))
    asked: dict[str, Any] = {"calibrate": ["a", "b", "c"], "calls": 3, "options": {"onnx": {"method": "percentile"}}}
    roles = ["text_encoder", "unet"]
    ingot.quantize(one, "int8-static", to="onnx", components=roles, **asked, **QUICK)
    ingot.quantize(two, recipe=one, components=roles, **QUICK)
    found = [recipes.recipes_of(Bundle.open(path)) for path in (one, two)]
    assert found[0] == found[1]
    assert {recipe.quantization.asked for recipe in found[0]} == {"int8-static"}
    assert list(Bundle.open(two).manifest.quality) == ["onnx int8-static"]
    with pytest.raises(InputError, match="a recipe says itself which layers stay floats"):
        ingot.quantize(two, recipe=one, keep=["conv_in"], **QUICK)


def test_a_set_is_loaded_as_it_was_measured(quantized: Path, tmp_path: Path) -> None:
    """Components without the precision run in floats, whatever their first graph is."""
    bundle = Path(shutil.copytree(quantized, tmp_path / "bundle"))
    ingot.quantize(bundle, "int8-weights", to="onnx", components=["vae_decoder"], **QUICK)
    opened = Bundle.open(bundle)
    entry = opened.manifest.components["unet"]
    first = sorted(entry.graphs, key=lambda graph: graph.quantization is None)
    changed = {**opened.manifest.components, "unet": msgspec.structs.replace(entry, graphs=tuple(first))}
    manifest = msgspec.structs.replace(opened.manifest, components=changed)
    found = pick(Bundle(bundle, manifest), ["unet", "vae_decoder"], "onnx", "int8-weights")
    assert {role: graph.precision for role, graph in found.items()} == {
        "unet": "float32",
        "vae_decoder": "int8-weights",
    }


def test_calls_are_cut_into_what_a_graph_fixes() -> None:
    spec = TensorSpec("x", "float32", (2, 3))
    signature = Signature((spec, TensorSpec("t", "float32", ())), (spec,))
    call = {"x": np.arange(15, dtype=np.float32).reshape(5, 3), "t": np.float32(7)}
    parts = in_parts(signature, call)
    assert [part["x"][:, 0].tolist() for part in parts] == [[0, 3], [6, 9], [12, 12]]
    assert all(part["t"] == 7 for part in parts)
    assert in_parts(signature, {**call, "x": np.zeros((5, 4), np.float32)}) == []


def test_auto_keeps_the_frontier_and_never_a_slower_default(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    ingot.quantize(bundle, "int4-weights", to="onnx", components=["text_encoder", "unet"], **QUICK)
    capsys.readouterr()
    ingot.quantize(bundle, auto=True, to="onnx", components=["unet"], **{**QUICK, "progress": True})
    told = capsys.readouterr()
    said = told.out + told.err
    assert pairs(bundle)["text_encoder"] == ["int4-weights"]
    assert "int4-weights on onnx is there already" in said
    graphs = Bundle.open(bundle).component("unet").graphs
    made = [graph for graph in graphs if graph.quantization and graph.precision != "int4-weights"]
    assert made
    for graph in made:
        assert graph.quantization is not None
        assert graph.quantization.timing is not None
        first = graph is graphs[0]
        assert not first or graph.quantization.timing.seconds < graph.quantization.timing.float_seconds
    assert "int8-static on onnx is not tried: it needs calibration prompts" in said


# --- the parts, on numbers made by hand -------------------------------------------------------------------------------


def layer(name: str, parameters: int = 10) -> Layer:
    return Layer(name, "linear", parameters)


def work(names: Collection[str], role: str = "unet") -> Work:
    return Work(role, "int8-weights", None, None, tuple(map(layer, names)), frozenset())  # type: ignore[arg-type]  # not asked


class Bench:
    """A workbench whose damage is a sum over the layers that are quantized: PSNR = 60 - sum."""

    engine = "made up"

    def __init__(self, costs: dict[str, float]) -> None:
        self.costs = costs
        self.asked = 0

    def cast(self, work: Work, keep: Collection[str] = ()) -> Any:
        return SimpleNamespace(dtype=work.scheme, quantized=[one.name for one in work.layers if one.name not in keep])

    def damage(self, files: dict[str, Any]) -> Damage:
        self.asked += 1
        cost = sum(self.costs[name] for file in files.values() for name in file.quantized)
        return Damage(60 - cost, 60 - cost, 1.0, None)

    def forget(self, *_: Any) -> None: ...

    def forget_others(self, *_: Any) -> None: ...


def test_groups_are_the_longest_common_beginnings_that_are_few_enough() -> None:
    names = ["a.0.x", "a.0.y", "a.1.x", "b.0.x", "c"]
    assert [group.name for group in groups(work(names), 2)] == ["a", "b", "c"]  # never fewer than the first names
    assert [group.name for group in groups(work(names), 4)] == ["a.0", "a.1", "b.0", "c"]
    assert [group.name for group in groups(work(names), 5)] == names


def test_the_ranking_is_by_damage_to_the_end() -> None:
    bench: Any = Bench({"a": 1.0, "b": 9.0, "c": 4.0})
    ranking = rank(bench, [work("abc")], lambda _: None)
    assert [(group.name, sqnr) for group, sqnr in ranking] == [("b", 51.0), ("c", 56.0), ("a", 59.0)]


def test_the_gate_keeps_as_little_as_the_floor_needs() -> None:
    bench: Any = Bench({"a": 1.0, "b": 9.0, "c": 4.0, "d": 0.5})
    for floor, kept in ((45.0, set()), (50.0, {"b"}), (56.0, {"b", "c"}), (59.0, {"a", "b", "c"})):
        chosen = choose(bench, [work("abcd")], Floor(floor), lambda _: None)
        assert chosen.kept["unet"] == kept, floor
        assert chosen.damage.psnr_db >= floor
    with pytest.raises(
        InputError, match=r"no set of layers in int8-weights on made up holds PSNR 59.9 dB: the best .* 59.5 dB"
    ):
        choose(bench, [work("abcd")], Floor(59.9), lambda _: None)


def test_the_gate_tries_again_what_the_rest_does_not_need() -> None:
    """Bisection keeps a prefix of the ranking; without the worst, the second worst may well be quantized."""
    bench: Any = Bench({"a": 10.0, "b": 9.0})
    bench.damage = lambda files: (
        Damage(0, 30.0 if "a" in next(iter(files.values())).quantized else 50.0, 1.0, None)
        if files
        else Damage(0, 60.0, 1.0, None)
    )
    chosen = choose(bench, [work("ab")], Floor(45.0), lambda _: None)
    assert chosen.kept["unet"] == {"a"}


def test_the_checker_is_a_floor_too() -> None:
    assert Floor(None, 0.9).holds(Damage(0, 0, 0, 0.9))
    assert not Floor(None, 0.9).holds(Damage(0, 99, 1, 0.89))
    assert not Floor(30, 0.9).holds(Damage(0, 29, 1, 1.0))


def test_the_frontier_throws_away_what_is_beaten_and_says_by_whom() -> None:
    points = [
        Point("float32", 1.0, 100, float("inf")),
        Point("int8-static", 0.6, 25, 38),
        Point("int8-dynamic", 0.9, 40, 37),  # slower, larger and worse
        Point("int8-weights", 1.1, 25, 50),  # slower, but better
        Point("int4-weights", 1.3, 13, 30),  # the smallest
    ]
    kept, why = frontier(points)
    assert [point.name for point in kept] == ["float32", "int8-static", "int8-weights", "int4-weights"]
    assert list(why) == ["int8-dynamic"]
    assert why["int8-dynamic"].startswith("int8-static is better")
    best = fastest(kept, 30)
    assert best is not None
    assert best.name == "int8-static"
    assert fastest(kept, 45) is None  # what is good enough is not faster


def test_noise_beats_nobody() -> None:
    points = [Point("a", 1.0, 100, 40), Point("b", 0.99, 100, 40.2)]
    assert frontier(points)[1] == {}


def test_patterns_are_names_or_their_beginnings() -> None:
    layers = [layer("conv_in"), layer("down.0.conv1"), layer("down.0.conv1.x"), layer("down.01.conv2")]
    assert matching(layers, ["conv_in"]) == {"conv_in"}
    assert matching(layers, ["down.0"]) == {"down.0.conv1", "down.0.conv1.x"}
    assert matching(layers, ["*.conv?"]) == {"down.0.conv1", "down.01.conv2"}


def test_calls_are_spread_over_all_of_a_trajectory() -> None:
    assert spread(range(10), 3) == [0, 4, 9]
    assert spread(range(3), 5) == [0, 1, 2]
    assert spread(range(10), 1) == [0]


def test_ssim_by_the_formula() -> None:
    """Against a direct computation of one window, and the values that follow from the definition."""
    generator = np.random.default_rng(0)
    x = generator.random((1, 11, 11, 1))
    y = np.clip(x + 0.1 * generator.standard_normal(x.shape), 0, 1)
    line = np.exp(-((np.arange(11) - 5) ** 2) / 4.5)
    weights = np.outer(line, line) / line.sum() ** 2
    a, b = x[0, :, :, 0], y[0, :, :, 0]
    mean_a, mean_b = (weights * a).sum(), (weights * b).sum()
    var_a, var_b = (weights * (a - mean_a) ** 2).sum(), (weights * (b - mean_b) ** 2).sum()
    both = (weights * (a - mean_a) * (b - mean_b)).sum()
    expected = (
        (2 * mean_a * mean_b + 1e-4) * (2 * both + 9e-4) / ((mean_a**2 + mean_b**2 + 1e-4) * (var_a + var_b + 9e-4))
    )
    assert image_ssim(x, y) == pytest.approx(expected, rel=1e-9)
    assert image_ssim(x, x) == pytest.approx(1, abs=1e-12)
    bytes_x = (x * 255).round().astype(np.uint8)
    assert image_ssim(bytes_x, bytes_x) == pytest.approx(1, abs=1e-12)
    assert image_ssim(np.zeros((1, 16, 16, 3)), np.ones((1, 16, 16, 3))) == pytest.approx(1e-4 / (1 + 1e-4), rel=1e-9)
    with pytest.raises(ValueError, match="different shapes"):
        image_ssim(x, y[:, :5])
