"""What our code calls of TensorRT and CUDA, held against their real Python packages on a machine without either's libraries.

TensorRT's bindings import when three libraries with the functions that they ask for stand in for its own; then they show
every class, method and argument that there is. CUDA's bindings import without a driver.
"""

from __future__ import annotations

import ast
import enum
import importlib.util
import inspect
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from . import cuda_fake, tensorrt_fake

ROOT = Path(__file__).parent.parent
ENGINES = ROOT / "runtimes" / "engines"
LIBRARIES = ("libnvinfer.so.11", "libnvinfer_plugin.so.11", "libnvonnxparser.so.11")
# Which of TensorRT's classes a variable or attribute of ours holds, by file.
HELD = {
    "_tensorrt_build.py": {
        "builder": "Builder",
        "network": "INetworkDefinition",
        "parser": "OnnxParser",
        "config": "IBuilderConfig",
        "cache": "ITimingCache",
        "ranges": "IOptimizationProfile",
        "error": "ParserError",
    },
    "tensorrt.py": {"runtime": "Runtime"},
    "_tensorrt_run.py": {"plan": "ICudaEngine", "_plan": "ICudaEngine", "_context": "IExecutionContext"},
}
# What the fake has besides, for tests.
FAKE_ONLY = {
    "IBuilderConfig": {"plain", "flags", "workspace", "profile", "cache"},
    "ICudaEngine": {"plan", "session", "inputs", "outputs"},
    "IExecutionContext": {"shapes", "addresses", "workspace", "found"},
    "IOptimizationProfile": {"shapes"},
    "ITimingCache": {"content"},
}
# Runs with the bindings: every class and enum as JSON.
DESCRIBE = """
import inspect, json, sys
import tensorrt_bindings as trt
sys.modules["tensorrt"] = trt
def member(owner, name):
    value = inspect.getattr_static(owner, name)
    if isinstance(value, property):
        return {"kind": "property", "settable": value.fset is not None}
    found = getattr(owner, name)
    return {"kind": "method" if callable(found) else "value", "doc": getattr(found, "__doc__", None) or ""}
def describe(item):
    names = [name for name in dir(item) if not name.startswith("_") or name == "__init__"]
    return {"enum": list(getattr(item, "__members__", ())), "members": {name: member(item, name) for name in names}}
classes = {name: describe(item) for name, item in vars(trt).items() if isinstance(item, type)}
classes["ILogger.Severity"] = describe(trt.ILogger.Severity)
from ingot.runtimes.engines import _tensorrt_build as ours
from ingot.runtimes.engines._tensorrt_run import DTYPES
log, monitor = ours.Log(), ours.Monitor(lambda *_: None)
assert isinstance(log, trt.ILogger) and isinstance(monitor, trt.IProgressMonitor)
log.log(trt.ILogger.Severity.ERROR, "out of memory")
log.log(trt.ILogger.Severity.WARNING, "slow")
assert str(log.error("cannot")) == "cannot: out of memory", log.error("cannot")
assert monitor.step_complete("none", 1) is True
numbers = {str(dtype): name for dtype, name in DTYPES.items()}
shape = tuple(trt.Dims([2, 3]))
json.dump({"version": trt.__version__, "names": sorted(vars(trt)), "classes": classes, "dtypes": numbers, "shape": shape}, sys.stdout)
"""


@cache
def real(folder: Path) -> dict[str, Any]:
    """The real bindings' description, made in a process of its own with the stand-in libraries."""
    for name in LIBRARIES:
        source = Path(__file__).with_name("tensorrt_stand_in.c")
        flags = ["-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", str(folder / name)]
        subprocess.run([str(shutil.which("gcc")), *flags, str(source)], check=True, capture_output=True)
    found = subprocess.run(
        [sys.executable, "-c", DESCRIBE],
        env={"LD_LIBRARY_PATH": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    description: dict[str, Any] = json.loads(found.stdout)
    return description


@pytest.fixture(scope="module")
def bindings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    if importlib.util.find_spec("tensorrt_bindings") is None:
        pytest.skip("TensorRT's bindings are not installed: pip install --no-deps tensorrt_cu13_bindings==11.4.0.106")
    if not sys.platform.startswith("linux") or shutil.which("gcc") is None:
        pytest.skip("gcc on Linux is needed to stand in for TensorRT's libraries")
    return real(tmp_path_factory.mktemp("libraries"))


def parsed(name: str) -> ast.Module:
    return ast.parse((ENGINES / name).read_text())


def chains(tree: ast.Module, root: str) -> Iterator[list[str]]:
    """`trt.ILogger.Severity.ERROR` as its parts behind `trt`, each once and at its longest."""
    inner = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and id(node) not in inner:
            parts: list[str] = []
            item: ast.expr = node
            while isinstance(item, ast.Attribute):
                parts.insert(0, item.attr)
                item = item.value
            if isinstance(item, ast.Name) and item.id == root:
                yield parts


def overloads(doc: str, name: str) -> list[list[str]]:
    """The arguments of each signature that pybind11 writes into a docstring, without self: `shape: tuple`."""
    found = re.findall(rf"^(?:\d+\. )?{name}\((.*)\) -> ", doc, re.MULTILINE)
    lists = []
    for text in found:
        depth, parts = 0, [""]
        for letter in text:
            depth += (letter in "[(<") - (letter in "])>")
            if letter == "," and depth == 0:
                parts.append("")
            else:
                parts[-1] += letter
        lists.append([part.strip() for part in parts if not part.strip().startswith("self")])
    return [[part for part in parts if part and not part.startswith("*")] for parts in lists]


def takes(signature: list[str], positional: int, keywords: list[str]) -> bool:
    names = [part.partition(":")[0].strip() for part in signature]
    needed = [name for name, part in zip(names, signature, strict=True) if "=" not in part]
    given = [*names[:positional], *keywords]
    return positional <= len(names) and set(keywords) <= set(names) and set(needed) <= set(given)


def uses() -> Iterator[tuple[str, str, str, ast.Call | None, bool]]:
    """(file, class, member, the call or None, whether it is assigned to) of everything on an object of TensorRT's."""
    for file, held in HELD.items():
        tree = parsed(file)
        calls = {id(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute):
                owner = node.value
                name = (
                    owner.id if isinstance(owner, ast.Name) else owner.attr if isinstance(owner, ast.Attribute) else ""
                )
                if name in held:
                    yield file, held[name], node.attr, calls.get(id(node)), isinstance(node.ctx, ast.Store)


def test_the_bindings_are_of_the_version_that_the_fake_claims(bindings: dict[str, Any]) -> None:
    assert bindings["version"] == tensorrt_fake.VERSION


def test_every_name_of_the_module_exists(bindings: dict[str, Any]) -> None:
    found = 0
    for file in HELD:
        for first, *rest in chains(parsed(file), "trt"):
            assert first in bindings["names"], f"{file}: tensorrt has no {first}"
            if rest == ["__init__"]:
                continue
            owner = first if len(rest) < 2 else f"{first}.{rest[0]}"
            for name in rest[-1:]:
                assert name in bindings["classes"][owner]["members"], f"{file}: {owner} has no {name}"
                found += 1
    assert found >= 22


def test_every_method_and_argument_exists(bindings: dict[str, Any]) -> None:
    seen = set()
    for file, owner, name, call, stored in uses():
        members = bindings["classes"][owner]["members"]
        assert name in members, f"{file}: {owner} has no {name}"
        what = members[name]
        if call is None:
            assert what["kind"] == "property", f"{file}: {owner}.{name} is not called"
            assert what["settable"] or not stored, f"{file}: {owner}.{name} cannot be set"
        else:
            given = len(call.args), [keyword.arg or "" for keyword in call.keywords]
            signatures = overloads(what.get("doc", ""), name)
            assert signatures, f"{file}: {owner}.{name} is no method"
            assert any(takes(signature, *given) for signature in signatures), (
                f"{file}: {owner}.{name}{given}: {signatures}"
            )
        seen.add((owner, name))
    assert len(seen) >= 38


@pytest.mark.parametrize(
    ("file", "right", "wrong", "message"),
    [
        ("_tensorrt_build.py", "BuilderFlag.REFIT", "BuilderFlag.FP16", "BuilderFlag has no FP16"),
        ("_tensorrt_build.py", "ignore_mismatch=", "ignore=", "set_timing_cache"),
        ("_tensorrt_build.py", "create_timing_cache(content)", "create_timing_cache()", "create_timing_cache"),
        ("_tensorrt_run.py", "set_tensor_address", "set_binding", "IExecutionContext has no set_binding"),
        ("_tensorrt_run.py", "weight_streaming_budget_v2 =", "streamable_weights_size =", "cannot be set"),
        ("_tensorrt_run.py", "streamable_weights_size)", "streamable_weights_size())", "is no method"),
    ],
)
def test_a_call_that_does_not_exist_is_found(
    bindings: dict[str, Any], monkeypatch: pytest.MonkeyPatch, file: str, right: str, wrong: str, message: str
) -> None:
    text = (ENGINES / file).read_text()
    assert right in text
    read = parsed
    monkeypatch.setattr(
        sys.modules[__name__],
        "parsed",
        lambda name: ast.parse(text.replace(right, wrong)) if name == file else read(name),
    )
    found = []
    for check in (test_every_name_of_the_module_exists, test_every_method_and_argument_exists):
        try:
            check(bindings)
        except AssertionError as error:
            found.append(str(error))
    assert message in " ".join(found)


def test_constructors_take_what_they_are_given(bindings: dict[str, Any]) -> None:
    for name, given in (("Builder", 1), ("OnnxParser", 2), ("Runtime", 1)):
        doc = bindings["classes"][name]["members"]["__init__"]["doc"]
        assert any(takes(signature, given, []) for signature in overloads(doc, "__init__")), doc


def test_our_subclasses_answer_what_tensorrt_calls(bindings: dict[str, Any]) -> None:
    classes = {node.name: node for node in parsed("_tensorrt_build.py").body if isinstance(node, ast.ClassDef)}
    for ours, theirs in (("Log", "ILogger"), ("Monitor", "IProgressMonitor")):
        members = bindings["classes"][theirs]["members"]
        methods = {node.name: node for node in classes[ours].body if isinstance(node, ast.FunctionDef)}
        wanted = {name: overloads(what.get("doc", ""), name) for name, what in members.items() if name != "__init__"}
        wanted = {name: signatures for name, signatures in wanted.items() if signatures}
        assert len(wanted) == {"Log": 1, "Monitor": 3}[ours]
        for name, (signature,) in wanted.items():
            names = [argument.arg for argument in methods[name].args.args[1:]]
            assert names == [part.partition(":")[0] for part in signature]


def test_types_are_numpys(bindings: dict[str, Any]) -> None:
    assert bindings["dtypes"]["DataType.HALF"] == "float16"
    assert len(bindings["dtypes"]) == 7
    assert bindings["shape"] == [2, 3]  # what a shape becomes on its way to NumPy


def test_the_fake_has_nothing_that_the_real_one_has_not(bindings: dict[str, Any]) -> None:
    fake = tensorrt_fake.TensorRT(cuda_fake.Cuda())
    for name, value in vars(fake).items():
        if isinstance(value, type) and issubclass(value, enum.IntEnum):
            assert set(value.__members__) <= set(bindings["classes"][name]["enum"]), name
    assert set(fake.ILogger.Severity.__members__) == set(bindings["classes"]["ILogger.Severity"]["enum"])
    for name in {name for held in HELD.values() for name in held.values()} - {"INetworkDefinition"}:
        members = bindings["classes"][name]["members"]
        ours = {key: value for key, value in vars(getattr(tensorrt_fake, name)).items() if not key.startswith("_")}
        assert set(ours) - FAKE_ONLY.get(name, set()) <= set(members), name
        for method, function in ours.items():
            if callable(function) and method in members:
                arguments = [p.name for p in list(inspect.signature(function).parameters.values())[1:]]
                known = [[part.partition(":")[0] for part in one] for one in overloads(members[method]["doc"], method)]
                assert any(arguments == one[: len(arguments)] for one in known), (name, method, arguments, known)


# --- CUDA ----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runtime() -> Any:
    if importlib.util.find_spec("cuda") is None or importlib.util.find_spec("cuda.bindings") is None:
        pytest.skip("CUDA's bindings are not installed: pip install cuda-bindings")
    return importlib.import_module("cuda.bindings.runtime")


def cuda_arguments(function: Any) -> list[str]:
    """`cudaMemcpyAsync(dst, src, size_t count, kind: cudaMemcpyKind, stream)` as its arguments' names."""
    text = function.__doc__.splitlines()[0].partition("(")[2].rpartition(")")[0]
    return [part.partition(":")[0].split()[-1] for part in text.split(",") if part.strip()]


def test_every_call_of_cuda_exists_with_its_arguments(runtime: Any) -> None:
    tree = parsed("_cuda.py")
    for parts in chains(tree, "rt"):
        value = runtime
        for name in parts:
            value = getattr(value, name)
    checked = 0
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            function, arguments = node.func, node.args
            if isinstance(function, ast.Name) and function.id == "call":
                function, *arguments = node.args
            if isinstance(function, ast.Attribute) and getattr(function.value, "id", "") == "rt":
                names = cuda_arguments(getattr(runtime, function.attr))
                assert len(arguments) == len(names), (function.attr, names)
                checked += 1
    assert checked >= 13


def test_the_fake_cuda_has_the_real_ones_calls(runtime: Any) -> None:
    fakes = {name: value for name, value in vars(cuda_fake.Cuda).items() if name.startswith("cuda")}
    for name, value in fakes.items():
        real_one = getattr(runtime, name)
        if isinstance(value, type):
            assert all(int(getattr(real_one, key)) == item for key, item in value.__members__.items()), name
        elif callable(value):
            assert list(inspect.signature(value).parameters)[1:] == cuda_arguments(real_one), name
        else:
            assert value == real_one


def test_a_machine_without_a_driver_has_no_gpus_and_says_why(runtime: Any) -> None:
    from ingot.runtimes.engines import _cuda
    from ingot.runtimes.errors import EngineError

    if _cuda.gpus():
        pytest.skip("this machine has a GPU")
    with pytest.raises(EngineError, match=r"CUDA: cudaMalloc: cudaError\w+: .+"):
        _cuda.call(runtime.cudaMalloc, 16)
    assert runtime.cudaDeviceProp().name == b""  # bytes, as gpus() takes it
