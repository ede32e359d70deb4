"""Running needs none of what making needs: a process in which those packages cannot be imported makes a picture."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = """
import sys

class Wall:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Wall())
import ingot
from ingot.cli import main
pipe = ingot.load({bundle!r})
pipe("a cat", num_inference_steps=2, height=64, width=64, seed=0, progress=False)
assert main(["generate", {bundle!r}, "a cat", "--steps", "1", "--size", "64", "--quiet", "-o", {out!r}]) == 0
assert main(["inspect", {bundle!r}]) == 0
assert main(["verify", {bundle!r}, "--deep"]) == 0
assert main(["doctor"]) == 0
assert main(["export", "shapes", "-o", {out!r} + ".bundle"]) == 1
assert not {{name.split(".")[0] for name in sys.modules}} & set({blocked!r})
"""


def test_generating_imports_neither_torch_nor_diffusers_nor_transformers(tiny_bundle: Path, tmp_path: Path) -> None:
    blocked = ("torch", "diffusers", "transformers", "onnx", "onnxscript", "accelerate", "safetensors")
    script = SCRIPT.format(blocked=blocked, bundle=str(tiny_bundle), out=str(tmp_path / "cat.png"))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "pip install 'ingot[export]'" in done.stderr


def test_without_onnxruntime_doctor_tells_and_generate_refuses(tiny_bundle: Path, tmp_path: Path) -> None:
    script = SCRIPT[: SCRIPT.index("import ingot\n")].format(blocked=("onnxruntime",))
    script += f"""
from ingot.cli import main
assert main(["doctor"]) == 0
assert main(["generate", {str(tiny_bundle)!r}, "a cat"]) == 1
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "pip install onnxruntime" in done.stdout
    assert "ingot: the engine onnx needs onnxruntime, which is not installed: pip install onnxruntime" in done.stderr


def test_importing_ingot_loads_nothing_heavy() -> None:
    script = "import sys, ingot; print(sorted(set(sys.modules) & {'numpy', 'onnxruntime', 'torch', 'diffusers', 'tokenizers', 'PIL'}))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
