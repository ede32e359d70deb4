"""What a measurement is made of: the clock, the calls, sizes, energy, the noise of a machine."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ingot.benchmarks.contestants import _installed as installed
from ingot.benchmarks.contestants import measure
from ingot.benchmarks.contestants._process import Energy
from ingot.benchmarks.contestants.measure import Clock, Task
from ingot.benchmarks.harness import machine


def task(**changed: Any) -> Task:
    values = {
        "kind": "ingot", "model": "m", "options": {}, "call": {}, "height": 16, "width": 24, "batch": 2, "steps": 3,
        "guidance_scale": 1.0, "scheduler": "DDIMScheduler", "threads": 1, "seed": 5, "prompts": ["a", "b", "c"], "noise": "n.npy",
        "calls": 2, "spawned": time.monotonic(),
    }  # fmt: skip
    return Task(**{**values, **changed})


def test_a_steps_host_time_is_what_lies_outside_the_denoiser() -> None:
    clock = Clock()
    clock.steps = [1.0, 2.0, 3.5, 4.5]
    clock.spans = [("text_encoder", 0.1, 0.2), ("unet", 0.2, 0.9), ("unet", 1.2, 1.9), ("scheduler", 1.9, 2.0),
                   ("unet", 2.1, 3.0), ("unet_shallow", 3.0, 3.2), ("unet", 3.6, 4.4), ("vae_decoder", 4.6, 4.9)]  # fmt: skip
    # outside: 0.3 in the second step, 0.4 in the third, 0.2 in the fourth; the first has the prompt in it
    assert clock.host_seconds() == pytest.approx(0.3, abs=1e-12)
    assert clock.step_seconds() == pytest.approx(3.5 / 3, abs=1e-12)
    assert clock.seconds()["unet"] == pytest.approx(0.7 + 0.7 + 0.9 + 0.8, abs=1e-12)


def test_a_step_of_pictures_that_are_made_in_turn_is_the_sum_over_them() -> None:
    """Two pictures of three steps: 1 s and 2 s, in which the denoiser takes all but 0.25 and 0.5 s of each."""
    clock = Clock()
    clock.turns = 2
    clock.steps = [1.0, 2.0, 3.0, 6.0, 8.0, 10.0]
    clock.spans = [("unet", 1.25, 2.0), ("unet", 2.25, 3.0), ("unet", 6.5, 8.0), ("unet", 8.5, 10.0)]
    assert clock.step_seconds() == pytest.approx(3.0, abs=1e-12)
    assert clock.host_seconds() == pytest.approx(0.75, abs=1e-12)
    clock.steps = [1.0, 2.0]  # where the second picture's only step began is not known
    assert clock.step_seconds() is None
    assert clock.host_seconds() is None
    clock.begin()
    assert clock.turns == 1


def test_a_contestant_without_steps_has_no_figure_for_them() -> None:
    clock = Clock()
    assert clock.host_seconds() is None
    assert clock.step_seconds() is None
    clock.steps = [0.5]
    assert clock.step_seconds() == 0.5


def test_the_clock_times_a_function_that_raises_too() -> None:
    def fails() -> None:
        raise KeyError("no")

    clock = Clock()
    with pytest.raises(KeyError):
        clock.wrap("unet", fails)()
    with clock.span("vae_decoder"):
        pass
    assert [role for role, _, _ in clock.spans] == ["unet", "vae_decoder"]
    clock.begin()
    assert not clock.spans


def test_prompts_are_taken_in_turn_and_every_picture_has_its_seed(tmp_path: Path) -> None:
    np.save(tmp_path / "n.npy", np.arange(6, dtype=np.float32).reshape(6, 1, 1, 1))
    asked = task(noise=str(tmp_path / "n.npy"))
    calls = [asked.of_call(number) for number in range(3)]
    assert [prompts for prompts, _ in calls] == [["a", "b"], ["c", "a"], ["b", "c"]]
    assert [seeds for _, seeds in calls] == [[5, 6], [7, 8], [9, 10]]
    assert asked.first_latents([7, 8]).ravel().tolist() == [2.0, 3.0]


class Fake:
    """A contestant of known pictures, whose second call is slow."""

    def __init__(self, seconds: float = 0.0, pictures: Any = None) -> None:
        self.notes: list[str] = []
        self.latents: Any = None
        self.files: list[str] = []
        self.seconds, self.pictures, self.calls = seconds, pictures, 0

    def __call__(self, prompts: list[str], seeds: list[int], on_step: Any) -> Any:  # noqa: ARG002  # the protocol's
        self.calls += 1
        if self.calls == 2:
            time.sleep(self.seconds)
        for _ in range(3):
            on_step()
        self.latents = np.full((len(seeds), 4, 2, 3), seeds[0], np.float32)
        if self.pictures is not None:
            return self.pictures
        return np.stack([np.full((16, 24, 3), seed, np.uint8) for seed in seeds])


def run(opened: Any, folder: Path, **changed: Any) -> dict[str, Any]:
    asked, clock = task(**changed), Clock()
    found = measure.measured(asked, clock, opened, folder, measure.Stage(folder))
    return found | ({"first_preview_s": measure.first_preview(asked, clock, opened)} if asked.calls else {})


def test_the_first_call_is_apart_and_every_picture_is_kept(tmp_path: Path) -> None:
    found = run(Fake(seconds=3.0), tmp_path)  # a busy machine may stop a process for a while
    assert len(found["call_s"]) == len(found["step_s"]) == 2
    assert found["call_s"][0] >= 3.0 > found["first_image_s"]
    assert found["cold_start_s"] >= found["first_image_s"]
    assert np.load(tmp_path / "pictures.npy")[:, 0, 0, 0].tolist() == [5, 6, 7, 8, 9, 10]
    assert np.load(tmp_path / "latents.npy")[:, 0, 0, 0].tolist() == [5, 5, 7, 7, 9, 9]


def test_a_call_that_is_alone_stands_for_later_ones(tmp_path: Path) -> None:
    found = run(Fake(), tmp_path, calls=0)
    assert found["call_s"] == [found["first_image_s"]]
    assert len(found["step_s"]) == 1
    assert "first_preview_s" not in found
    assert np.load(tmp_path / "pictures.npy")[:, 0, 0, 0].tolist() == [5, 6]


def test_a_preview_ends_its_call_after_the_first_step(tmp_path: Path) -> None:
    shown = []

    class WithPreview(Fake):
        def preview(self) -> None:
            shown.append(self.calls)
            time.sleep(0.1)

    opened = WithPreview()
    found = run(opened, tmp_path)
    assert shown == [4]  # a call of its own, behind those that are timed
    assert found["first_preview_s"] > 0.1
    assert not opened.notes


def test_a_preview_that_fails_costs_no_figure_but_its_own(tmp_path: Path) -> None:
    class Failing(Fake):
        def preview(self) -> None:
            raise ValueError("no map")

    opened = Failing()
    found = run(opened, tmp_path)
    assert found["first_preview_s"] is None
    assert opened.notes == ["no preview: no map"]
    assert len(found["call_s"]) == 2


def test_what_is_no_picture_is_refused(tmp_path: Path) -> None:
    wrong = np.zeros((2, 16, 16, 3), np.uint8)
    with pytest.raises(ValueError, match=r"gave uint8 \(2, 16, 16, 3\), not pictures: uint8 \(2, 16, 24, 3\)"):
        run(Fake(pictures=wrong), tmp_path)


def test_it_runs_by_an_interpreter_that_has_no_ingot(tmp_path: Path) -> None:
    """Isolated (-I -S): the standard library, NumPy's folder by its path, and nothing of ours installed."""
    folder = Path(measure.__file__).parents[1]
    code = f"""
        import sys; sys.path += [{str(folder)!r}, {str(Path(np.__file__).parents[1])!r}]
        from contestants import measure, _process, _installed, _clock
        assert 'numpy' not in sys.modules, 'imported before it is timed'
        assert not [name for name in sys.modules if name.split('.')[0] in ('ingot', 'msgspec')]
        print(measure.contestant.__name__, _process.peak_mib() > 1)
    """
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", textwrap.dedent(code)], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.stdout.split() == ["contestant", "True"], done.stderr


def test_installed_size_follows_what_a_distribution_requires() -> None:
    found = installed.installed_mb(["tqdm", "Ingot", "no-such-distribution"], {"ingot": [str(Path(__file__).parent)]})
    assert {"ingot", "tqdm", "numpy", "onnxruntime", "tokenizers"} <= set(found)
    assert "pytest" not in found  # of an extra
    assert found["total"] == pytest.approx(sum(size for name, size in found.items() if name != "total"), rel=1e-9)
    tests = sum(
        file.stat().st_size for file in Path(__file__).parent.rglob("*") if file.is_file() and file.suffix != ".pyc"
    )
    assert found["ingot"] >= tests / 1e6
    assert installed.versions(["numpy", "no-such-distribution"]) == {"numpy": np.__version__}


def test_energy_is_the_mean_of_the_calls_over_all_packages(tmp_path: Path) -> None:
    for name, start in (("intel-rapl:0", 1_000_000), ("intel-rapl:1", 9_000_000), ("intel-rapl:0:0", 5)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "energy_uj").write_text(str(start))
        (tmp_path / name / "max_energy_range_uj").write_text("10000000")
    energy = Energy(tmp_path)
    with energy:
        (tmp_path / "intel-rapl:0" / "energy_uj").write_text("3000000")
        (tmp_path / "intel-rapl:1" / "energy_uj").write_text("1000000")  # it went round: 2 J
        (tmp_path / "intel-rapl:0:0" / "energy_uj").write_text("7000000")  # a part of package 0
    with energy:
        pass
    assert energy.per_call() == pytest.approx((4.0 + 0.0) / 2, abs=1e-12)
    assert Energy(tmp_path / "nowhere").per_call() is None


def test_peak_memory_is_this_processs_own() -> None:
    """In a process of its own: one that has held more before reaches no new peak, and a parent's is not counted."""
    script = """
from ingot.benchmarks.contestants._process import peak_mib
before = peak_mib()
block = bytearray(b"1" * (64 * 2**20))
print(before, peak_mib())
"""
    held = np.ones(256 * 2**20, np.uint8)  # this process holds more than that one ever will
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    before, after = map(float, done.stdout.split())
    assert before < held.nbytes / 2**20
    assert before + 60 < after < before + 200


def test_a_machine_is_noisy_by_its_probe_or_by_what_others_use() -> None:
    quiet = machine.noise([10.0, 10.2, 10.1], busy=0.02)
    assert not quiet.noisy
    assert quiet.spread == pytest.approx(0.2 / 10.1, rel=1e-9)
    slowed, shared = machine.noise([10.0, 12.0], busy=0.0), machine.noise([10.0], busy=0.4)
    assert slowed.noisy
    assert "10.0 to 12.0 ms" in slowed.why
    assert shared.noisy
    assert "other processes used up to 40% of the machine" in shared.why


def test_own_work_is_not_counted_as_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processors for ten seconds, of which 14 seconds were used, 11 of them by us: 3 of 20 by others."""
    for name, values in {
        "_now": [0.0, 10.0],
        "_machine_seconds": [(100.0, 2), (114.0, 2)],
        "_own_seconds": [5.0, 16.0],
    }.items():
        monkeypatch.setattr(machine, name, partial(next, iter(values)))
    with machine.Busy() as busy:
        pass
    assert busy.share == pytest.approx(0.15, abs=1e-12)


def test_a_childs_processor_time_is_our_own() -> None:
    before = machine._own_seconds()
    code = "import time\nend = time.process_time() + 0.3\nwhile time.process_time() < end: pass"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert machine._own_seconds() - before >= 0.25


def test_the_machine_tells_what_it_is() -> None:
    here = machine.machine()
    assert here.cores >= 1
    assert here.memory_gib > 0
    assert here.processor
