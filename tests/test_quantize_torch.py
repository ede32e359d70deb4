"""Quantized `.pt2` programs: torchao's integers and scales, computed with plain operators, and nothing else changed."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ingot.exporters import parity
from ingot.exporters.component import Call, Component, FlatModule, Slot
from ingot.exporters.graph_file import GraphFile
from ingot.exporters.targets.torch import export
from ingot.quantization import _torch_numbers as numbers
from ingot.quantization import torch as quantized
from ingot.quantization._torch_archive import times
from ingot.quantization.scheme import Source
from ingot.runtimes.engines._torch_archive import Archive
from ingot.runtimes.engines._torch_graph import integer_product, read_program
from ingot.runtimes.errors import ExportError, InputError
from ingot.runtimes.signature import Signature, TensorSpec

# Sums of up to 640 products in float32, in another order than here.
NEAR = {"rtol": 2e-5, "atol": 2e-5}
NAMES = ["words", "time", "conv", "shortcut", "blocks.0.to_q", "blocks.0.to_out"]


class Small(nn.Module):
    """An embedding, a layer on one row a sample, a convolution, a 1x1 convolution, and layers on pixels."""

    config: dict[str, Any] = {}  # noqa: RUF012 - as diffusers has it

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(70, 32)
        self.time = nn.Linear(32, 64)
        self.conv = nn.Conv2d(8, 64, 3, padding=1)
        self.shortcut = nn.Conv2d(64, 48, 1)
        self.blocks = nn.ModuleList(
            [nn.ModuleDict({"to_q": nn.Linear(48, 96, bias=False), "to_out": nn.Linear(96, 48)})]
        )
        self.out = nn.Linear(48, 4)

    def forward(self, x: Tensor, ids: Tensor) -> dict[str, Tensor]:
        """(batch, 8, height, width) and ids (batch,) to (batch, pixels, 4)."""
        seen = torch.nn.functional.silu(self.conv(x)) + self.time(self.words(ids))[:, :, None, None]
        flat = self.shortcut(seen).flatten(2).transpose(1, 2)
        block: Any = self.blocks[0]
        return {"y": self.out(flat + block["to_out"](torch.nn.functional.gelu(block["to_q"](flat))))}


def component() -> Component:
    """The component that a capture at two sizes would give."""
    torch.manual_seed(11)
    source = Small().eval()
    with torch.no_grad():  # rows of different sizes, and one of zeros
        source.blocks[0]["to_q"].weight *= torch.logspace(-2, 1, 96)[:, None]
        source.blocks[0]["to_q"].weight[5] = 0
    module = FlatModule(source, "forward", {"x": Slot("x"), "ids": Slot("ids")}, ("x", "ids"))
    signature = Signature(
        (TensorSpec("x", "float32", ("batch", 8, "height", "width")), TensorSpec("ids", "int64", ("batch",))),
        (TensorSpec("y", "float32", ("batch", "pixels", 4)),),
    )
    calls = []
    for size in ((2, 8, 6, 10), (3, 8, 8, 4)):
        inputs = {"x": torch.randn(size), "ids": torch.arange(size[0]) * 7}
        with torch.no_grad():
            calls.append(Call(inputs, source(**inputs)))
    return Component("unet", source, module, tuple(calls), signature)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Component, Source]:
    made = component()
    graph = export(made, tmp_path_factory.mktemp("graph"))
    return made, Source("unet", graph.path, graph.signature, graph.stored, graph.dtype, graph.static, {})


def answer(graph: GraphFile, inputs: dict[str, Tensor]) -> Tensor:
    """What the quantized program gives, opened as parity opens it."""
    opened = parity.open_exactly("torch", graph.path, graph.signature, graph.stored)
    return torch.from_numpy(opened.run({name: value.numpy() for name, value in inputs.items()})["y"])


def weight_of(module: Small, name: str) -> Tensor:
    return module.get_submodule(name).weight.detach()


def stored_floats(weight: Tensor, scheme: str) -> Tensor:
    """The weight as the scheme stores it, by torchao's formulas."""
    flat = weight.reshape(len(weight), -1)
    if scheme in ("int8-weights", "int8-dynamic"):
        scale = (flat.abs().amax(1, keepdim=True) / 127.5).clamp_min(torch.finfo(torch.float32).eps)
        made = torch.clamp(torch.round(flat * (1 / scale)), -128, 127) * scale
    elif scheme == "int4-weights":
        group = next(size for size in range(32, 0, -1) if flat.shape[1] % size == 0)
        parts = flat.reshape(len(flat), -1, group)
        scale = (parts.abs().amax(2, keepdim=True) / 7.5).clamp_min(torch.finfo(torch.float32).smallest_normal)
        made = torch.clamp(torch.round(parts * (1 / scale)), -8, 7) * scale
    elif scheme == "fp8":
        scale = flat.abs().amax(1, keepdim=True) / 448
        made = torch.where(scale == 0, torch.zeros(()), (flat / scale).to(torch.float8_e4m3fn).float() * scale)
    else:
        made = flat.to({"bf16": torch.bfloat16, "fp16": torch.float16}[scheme]).float()
    return made.reshape(weight.shape)


def with_weights(made: Component, scheme: str) -> Small:
    """The module with every layer's weight as the scheme stores it."""
    module = Small()
    module.load_state_dict(made.source.state_dict())
    with torch.no_grad():
        for name in NAMES:
            module.get_submodule(name).weight.copy_(stored_floats(weight_of(module, name), scheme))
    return module.eval()


def test_integers_and_scales_of_int8() -> None:
    made, scale = numbers.int8(torch.tensor([[127.5, -63.75, 0.4, 1.5, -127.5], [0, 0, 0, 0, 0]]))
    assert scale.dtype == torch.float32
    assert scale.tolist() == [[1.0], [torch.finfo(torch.float32).eps]]
    assert made.tolist() == [[127, -64, 0, 2, -128], [0, 0, 0, 0, 0]]  # 128 there is not


def test_integers_and_scales_of_int4() -> None:
    made, scale = numbers.int4(torch.tensor([[7.5, -3.0, 0.6, 15.0, -15.0, 2.9]]), 3)
    assert scale.tolist() == [[1.0, 2.0]]
    assert made.tolist() == [[7, -3, 1, 7, -8, 1]]  # 7.5 would be 8, of which there is none
    packed = numbers.pack(made)
    assert packed.tolist() == [15 | 5 << 4, 9 | 15 << 4, 0 | 9 << 4]


def test_numbers_and_scales_of_float8() -> None:
    made, scale = numbers.e4m3(torch.tensor([[448.0, -17.0, 0.3], [0, 0, 0], [4.48, 0.17, -0.01]]))
    torch.testing.assert_close(scale, torch.tensor([[1.0], [1.0], [0.01]]), rtol=1e-6, atol=0)
    # between 16 and 32 numbers are 2 apart (17 goes to the even one, 16), between 1/4 and 1/2 they are 1/32 apart
    assert made.float().tolist() == [[448, -16, 0.3125], [0, 0, 0], [448, 16 if made[2, 1].float() == 16 else 18, -1]]


@pytest.mark.parametrize("scheme", ["int8-weights", "int4-weights", "bf16", "fp16"])
def test_programs_compute_with_the_stored_weights(small: tuple[Component, Source], tmp_path: Path, scheme: str) -> None:
    made, source = small
    graph = quantized.quantize(source, tmp_path, scheme=scheme, name="model_q")
    assert graph.path == tmp_path / "model_q.pt2"
    assert graph.dtype == scheme
    expected = with_weights(made, scheme)
    for call in made.calls:
        with torch.no_grad():
            torch.testing.assert_close(answer(graph, call.inputs), expected(**call.inputs)["y"], **NEAR)
    far = (answer(graph, call.inputs) - call.outputs["y"]).norm() / call.outputs["y"].norm()
    assert 1e-5 < far < 0.2


def on_rows(layer: Any, x: Tensor, scheme: str) -> Tensor:
    """A layer as a product of rounded rows, in the order in which torchao multiplies."""
    weight, bias = layer.weight.flatten(1), layer.bias
    if scheme == "int8-dynamic":
        rows = (x.abs().amax(-1, keepdim=True) / 127.5).clamp_min(torch.finfo(torch.float32).eps)
        columns = (weight.abs().amax(1) / 127.5).clamp_min(torch.finfo(torch.float32).eps)
        whole = torch.clamp(torch.round(x * (1 / rows)), -128, 127)
        y = whole @ torch.clamp(torch.round(weight * (1 / columns[:, None])), -128, 127).T * rows * columns
    else:  # CUDA gives products of float8 rows in bfloat16 only, and so does the program
        rows = (x.abs().amax(-1, keepdim=True) / 448).clamp_min(1e-12)
        y = (
            (x / rows).clamp(-448, 448).to(torch.float8_e4m3fn).float() * rows @ stored_floats(weight, scheme).T
        ).bfloat16()
    return y.float() if bias is None else y.float() + bias


@pytest.mark.parametrize("scheme", ["int8-dynamic", "fp8"])
def test_activations_are_rounded_row_by_row(small: tuple[Component, Source], tmp_path: Path, scheme: str) -> None:
    made, source = small
    graph = quantized.quantize(source, tmp_path, scheme=scheme, name="q")
    module, plain = with_weights(made, scheme), made.source
    with torch.no_grad():
        inputs = made.calls[1].inputs
        added = module.time(module.words(inputs["ids"]))[:, :, None, None]
        seen = torch.nn.functional.silu(module.conv(inputs["x"])) + added
        flat = on_rows(plain.shortcut, seen.permute(0, 2, 3, 1), scheme).flatten(1, 2)
        block: Any = plain.blocks[0]
        wide = torch.nn.functional.gelu(on_rows(block["to_q"], flat, scheme))
        y = plain.out(flat + on_rows(block["to_out"], wide, scheme))
    found = answer(graph, inputs)
    # A product on the edge of two numbers of bfloat16 may go to the other one, 2^-8 away, where sums differ in their last
    # bit: float8 is compared as a whole. Integers have no such edge.
    limit = 2e-3 if scheme == "fp8" else 1e-5
    assert (found - y).norm() / y.norm() < limit
    assert 1e-3 < (found - made.calls[1].outputs["y"]).norm() / y.norm() < 0.1
    operators = {
        node["target"].split(".")[-2]
        for node in Archive(graph.path).json("models/model.json")["graph_module"]["graph"]["nodes"]
    }
    assert {"int8-dynamic": "_int_mm", "fp8": "_scaled_mm"}[scheme] in operators
    assert ("linear" in operators, "conv2d" in operators) == (True, True)  # one row a sample; 3x3


def test_linear_layers_compute_what_torchao_computes(small: tuple[Component, Source], tmp_path: Path) -> None:
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    made, source = small
    graph = quantized.quantize(
        source, tmp_path, scheme="int8-dynamic", name="q", keep=["words", "time", "conv", "shortcut"]
    )
    module = Small()
    module.load_state_dict(made.source.state_dict())
    quantize_(
        module,
        Int8DynamicActivationInt8WeightConfig(set_inductor_config=False),
        lambda _, name: name.startswith("blocks.0."),
    )
    inputs = made.calls[0].inputs
    with torch.no_grad():
        torch.testing.assert_close(answer(graph, inputs), module(**inputs)["y"], **NEAR)


def test_integer_products_in_floats_are_exact() -> None:
    generator = torch.Generator().manual_seed(3)
    first, second = (
        torch.randint(-128, 128, size, generator=generator, dtype=torch.int8) for size in ((5, 640), (640, 7))
    )
    assert torch.equal(integer_product(first, second), (first.int() @ second.int()).float())
    worst = torch.full((1, 1023), -128, dtype=torch.int8)
    assert integer_product(worst, worst.T).item() == 1023 * 128 * 128


@pytest.mark.parametrize("scheme", list(quantized.SCHEMES))
def test_torch_loads_the_program_too(small: tuple[Component, Source], tmp_path: Path, scheme: str) -> None:
    graph = quantized.quantize(small[1], tmp_path, scheme=scheme, name="q")
    module = torch.export.load(graph.path).module()
    inputs = {"x": torch.randn(4, 8, 5, 7, generator=torch.Generator().manual_seed(1)), "ids": torch.arange(4)}
    with torch.no_grad():
        (theirs,) = torch.utils._pytree.tree_leaves(module(inputs["x"], inputs["ids"]))
    far = (answer(graph, inputs) - theirs).norm() / theirs.norm()
    # sums in another order, 1e-7; with rounded activations one may go to the other side of an edge
    assert far < {"int8-dynamic": 1e-3, "fp8": 2e-3}.get(scheme, 1e-6)


def test_layers_and_what_is_kept(small: tuple[Component, Source], tmp_path: Path) -> None:
    made, source = small
    found = quantized.layers(source, "int8-weights")
    assert [(one.name, one.kind) for one in found] == list(
        zip(["conv", "words", "time", "shortcut", *NAMES[4:]], ["conv", "embedding", "linear", "conv", "linear", "linear"], strict=True)
    )  # fmt: skip
    assert [one.parameters for one in found] == [weight_of(made.source, one.name).numel() for one in found]
    graph = quantized.quantize(source, tmp_path, scheme="int8-weights", name="q", keep=["conv", "blocks.0.to_q"])
    before, after = (Archive(path).tensors() for path in (source.path, graph.path))
    kept = {name for name in after if name in before}
    assert {"source.conv.weight", "source.blocks.0.to_q.weight", "source.out.weight", "source.conv.bias"} <= kept
    assert all(torch.equal(before[name], after[name]) for name in kept)
    assert after["source.time.weight_numbers"].dtype == torch.int8
    assert "source.time.weight" not in after
    everything = quantized.quantize(source, tmp_path, scheme="fp8", name="same", keep=NAMES)
    inputs = made.calls[0].inputs
    torch.testing.assert_close(answer(everything, inputs), made.calls[0].outputs["y"], rtol=1e-6, atol=1e-6)


def test_files_are_small_and_the_old_one_is_left_alone(small: tuple[Component, Source], tmp_path: Path) -> None:
    _, source = small
    before = source.path.read_bytes()
    for _ in range(2):
        graph = quantized.quantize(source, source.path.parent, scheme="int8-weights", name="again")
    assert source.path.read_bytes() == before
    graph = quantized.quantize(source, tmp_path, scheme="int4-weights", name="q")
    weights = [one.parameters for one in quantized.layers(source, "int4-weights")]
    sizes = {}
    for path in (source.path, graph.path):
        with zipfile.ZipFile(path) as archive:
            sizes[path] = sum(info.file_size for info in archive.infolist() if "/weights/weight_" in info.filename)
    assert [path.name for path in tmp_path.iterdir()] == ["q.pt2"]
    # half a byte for four, and a scale for each 24 to 32 of them
    assert sum(weights) * 3.3 < sizes[source.path] - sizes[graph.path] < sum(weights) * 3.5


def test_a_thin_runtime_needs_no_torchao(small: tuple[Component, Source], tmp_path: Path) -> None:
    graph = quantized.quantize(small[1], tmp_path, scheme="int8-dynamic", name="q")
    program = (
        "import sys; sys.modules['torchao'] = None\n"
        "from pathlib import Path; from ingot.runtimes.engines._torch_archive import Archive\n"
        "from ingot.runtimes.engines._torch_graph import read_program; import torch\n"
        "m = read_program(Archive(Path(sys.argv[1])))\n"
        "print(m(torch.zeros(1, 8, 4, 4), torch.tensor([1]))[0].shape)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(graph.path)], capture_output=True, text=True, check=True)
    assert "[1, 16, 4]" in done.stdout


def test_products_of_integers_are_the_engines_own(small: tuple[Component, Source], tmp_path: Path) -> None:
    graph = quantized.quantize(small[1], tmp_path, scheme="int8-dynamic", name="q")
    nodes = read_program(Archive(graph.path)).graph.nodes
    assert sum(node.target is integer_product for node in nodes) == 3  # shortcut, to_q and to_out
    assert not any(node.target is torch.ops.aten._int_mm.default for node in nodes)


def test_products_of_sizes() -> None:
    batch = {"as_expr": {"expr_str": "Symbol('s26')", "hint": {"as_int": 4}}}
    assert times([{"as_int": 3}, {"as_int": 5}]) == {"as_int": 15}
    assert times([batch]) == batch
    assert times([batch, {"as_int": 3}, batch]) == {
        "as_expr": {"expr_str": "Mul(Integer(3), Symbol('s26'), Symbol('s26'))", "hint": {"as_int": 48}}
    }


@pytest.mark.parametrize(
    ("options", "changes", "said"),
    [
        ({"scheme": "palette-4"}, {}, r"unknown scheme for torch 'palette-4'.*int8-dynamic"),
        ({"scheme": "int8-weights"}, {"stored": {"format": "aoti"}}, "compiled code.*torch.format=exported"),
        ({"scheme": "bf16"}, {"dtype": "bfloat16"}, "bfloat16 already"),
        ({"scheme": "int8-weights", "keep": ["mid", "conv"]}, {}, "has no layers mid;"),
        ({"scheme": "int4-weights", "group_size": 0}, {}, "group_size=0"),
    ],
)
def test_refusals(
    small: tuple[Component, Source], tmp_path: Path, options: dict[str, Any], changes: dict[str, Any], said: str
) -> None:
    source = Source(**{**vars(small[1]), **changes})
    with pytest.raises(InputError, match=said):
        quantized.quantize(source, tmp_path, name="q", **options)
    assert not list(tmp_path.iterdir())


def test_weights_that_a_scheme_cannot_hold_are_refused_by_name(tmp_path: Path) -> None:
    made = component()
    with torch.no_grad():
        made.source.time.weight[3, 4] = 7e4
        made.source.shortcut.weight[0, 0] = -1e5
    graph = export(made, tmp_path / "wide")
    source = Source("unet", graph.path, graph.signature, graph.stored, graph.dtype, False, {})
    with pytest.raises(ExportError, match=r"fp16 holds numbers to 65504, .* larger in time, shortcut: bf16 holds them"):
        quantized.quantize(source, tmp_path, scheme="fp16", name="q")
    for scheme, keep in (("bf16", ()), ("fp16", ("time", "shortcut"))):
        quantized.quantize(source, tmp_path / scheme, scheme=scheme, name="q", keep=keep)
    with torch.no_grad():
        made.source.time.weight[3, 4] = float("nan")
        made.source.conv.weight[0] = float("inf")
    graph = export(made, tmp_path / "broken")
    source = Source("unet", graph.path, graph.signature, graph.stored, graph.dtype, False, {})
    for scheme in quantized.SCHEMES:
        with pytest.raises(
            ExportError, match="infinite or no number cannot be quantized: conv, time; is the model whole"
        ):
            quantized.quantize(source, tmp_path, scheme=scheme, name="q")
    assert not (tmp_path / "q.pt2").exists()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("scheme", ["int8-weights", "int8-dynamic", "int4-weights", "fp8"])
def test_programs_in_half_precision(tmp_path: Path, dtype: str, scheme: str) -> None:
    made = component()
    graph = export(made, tmp_path, dtype=dtype)
    source = Source("unet", graph.path, graph.signature, graph.stored, graph.dtype, False, {})
    float_answer = answer(graph, made.calls[0].inputs)
    found = answer(quantized.quantize(source, tmp_path, scheme=scheme, name="q"), made.calls[0].inputs)
    far = (found - float_answer).norm() / float_answer.norm()
    assert 1e-3 < far < {"int4-weights": 0.2, "fp8": 0.12}.get(scheme, 0.06)
