"""On a GPU: the maps of the CPU, every precision, compiled models, memory that runs out, and the same training.

All of it is skipped without such a device. What holds for every device is asked of CUDA and of Apple's MPS.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from direct_calls import assert_logged, recording
from lightning_runs import Squares, TinyModule, fit, loader, own_warnings
from setting import synchronizations
from torch import nn
from torch._dynamo.utils import counters
from torchvision.models import VisionTransformer

from cam_callbacks import (
    CAM,
    Audit,
    CAMMonitor,
    GradCAM,
    HiResCAM,
    LayerCAM,
    LeGrad,
    Method,
    ProbeSet,
    ReciproCAM,
    ScoreCAM,
    audit_model,
)
from cam_callbacks.explain.adaptive import AdaptiveSearch
from cam_callbacks.explain.surrogate import Scale
from cam_callbacks.explain.trust import correlation

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
needs_mps = pytest.mark.skipif(not torch.backends.mps.is_available(), reason="needs an MPS device")
DEVICES = [pytest.param("cuda", marks=needs_cuda), pytest.param("mps", marks=needs_mps)]
METHODS = [ScoreCAM(), ScoreCAM(tolerance=0), ScoreCAM(weighting="increase"), ScoreCAM("contrast", complement=True)]
METHODS += [GradCAM(), HiResCAM(), LayerCAM(), ReciproCAM(), ReciproCAM("evidence"), CAM()]
MIB = 2**20


@pytest.fixture(autouse=True)
def _full_precision() -> Iterator[None]:
    """Convolutions in all 32 bits, not in TF32, and by the same algorithm each time."""
    flags = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
    before = torch.get_float32_matmul_precision()
    with flags:
        torch.set_float32_matmul_precision("highest")
        yield
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("method", METHODS, ids=str)
def test_maps_are_those_of_the_cpu(small_cnn: Any, blobs: Any, method: Method, device: str) -> None:
    network, images = small_cnn(channels=40), blobs(5, 48, 48)
    on_cpu = method(network, images)
    on_device = method(network.to(device), images)
    assert on_device.heatmaps.device.type == device
    assert on_device.target_layer == on_cpu.target_layer
    torch.testing.assert_close(on_device.logits.cpu(), on_cpu.logits, atol=1e-3, rtol=1e-3)
    assert torch.equal(on_device.skipped.cpu(), on_cpu.skipped)
    if getattr(method, "tolerance", 0) == 0:
        torch.testing.assert_close(on_device.heatmaps.cpu(), on_cpu.heatmaps, atol=5e-3, rtol=1e-2)
        assert torch.equal(on_device.passes.cpu(), on_cpu.passes)
    else:  # rounding may choose other channels to forward
        assert correlation(on_device.layer_maps.cpu(), on_cpu.layer_maps).min() > 0.99


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_attention_is_read_as_on_the_cpu(blobs: Any, dtype: torch.dtype, device: str) -> None:
    torch.manual_seed(0)
    network, images = VisionTransformer(32, 8, 2, 2, 24, 32, num_classes=5), blobs(5, 32, 32)
    nn.init.normal_(network.heads.head.weight)
    on_cpu = LeGrad()(network, images, targets=3).layer_maps
    on_device = LeGrad()(network.to(device, dtype), images, targets=3).layer_maps.cpu()
    within = {torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 5e-2}[dtype]
    torch.testing.assert_close(on_device, on_cpu, atol=within * float(on_cpu.max()), rtol=0)


@pytest.mark.parametrize("device", DEVICES)
def test_an_explanation_leaves_the_generator_of_the_device_alone(small_cnn: Any, blobs: Any, device: str) -> None:
    network, images = small_cnn().to(device), blobs(2, 24, 24)
    backend = getattr(torch, device)
    torch.manual_seed(1)
    torch.rand(3, device=device)
    before = backend.get_rng_state()
    for method in METHODS:
        method(network, images, forward_fn=lambda model, x: model(x + 0 * torch.rand_like(x)))
    assert torch.equal(backend.get_rng_state(), before)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("with_masks", [True, False], ids=["masks given", "masks estimated"])
def test_the_audit_is_that_of_the_cpu(small_cnn: Any, blobs: Any, with_masks: bool, device: str) -> None:
    network, images = small_cnn(), blobs(24, 32, 32)
    masks = torch.zeros(24, 32, 32, dtype=torch.bool)
    masks[:, 8:20, 6:24] = True
    probes = ProbeSet(images, torch.arange(24) % 3, masks if with_masks else None)
    on_cpu = audit_model(network, probes)
    on_device = audit_model(network.to(device), probes)
    assert on_device.mask_source == on_cpu.mask_source
    assert on_device.measures.keys() == on_cpu.measures.keys()
    for name in on_cpu.measures:
        here, there = on_cpu[name].values, on_device[name].values
        assert torch.equal(here.isnan(), there.isnan()), name
        far = (here - there).abs() > 0.01  # rounding may turn an answer over
        assert far.sum() <= (0 if name.endswith("_probability") else 2), name


@pytest.mark.parametrize("device", DEVICES)
def test_the_weights_are_those_of_a_run_without_the_monitor(tmp_path: Path, device: str) -> None:
    finished = []
    for monitor in (None, CAMMonitor(num_probes=6, audit=Audit(num_images=12), on_error="raise")):
        module = TinyModule()
        fit(tmp_path / str(monitor is None), monitor, module, accelerator="gpu", devices=1, max_epochs=3)
        finished.append({key: value.cpu() for key, value in module.state_dict().items()})
    without, with_it = finished
    assert all(torch.equal(without[key], with_it[key]) for key in without)


class Plain(TinyModule):
    """Trained by SGD, since Adam's epsilon is 0 in half precision."""

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05)


@dataclass(frozen=True)
class Evidence(ReciproCAM):
    weighting: Literal["probability", "evidence"] = "evidence"


@needs_cuda
@pytest.mark.parametrize("precision", ["32-true", "16-mixed", "bf16-mixed", "bf16-true", "16-true", "64-true"])
@pytest.mark.parametrize("kind", [ScoreCAM, GradCAM, CAM, Evidence], ids=lambda kind: kind.__name__)
def test_looks_in_each_precision_are_nearly_those_of_the_cpu_in_32_bits(
    tmp_path: Path, precision: Any, kind: type[Method]
) -> None:
    method, module = recording(kind), Plain()
    monitor = CAMMonitor(method=method, num_probes=6, audit=Audit(num_images=12), on_error="raise")
    with own_warnings() as said:
        fit(tmp_path, monitor, module, accelerator="gpu", devices=1, precision=precision, max_epochs=2)
    assert said == []
    assert_logged(tmp_path, [2, 5], method.calls)
    for call, weights in zip(method.calls, module.validated, strict=True):
        model = TinyModule()
        model.load_state_dict(weights)
        on_cpu = kind()(model, call.images.float(), "features", call.targets)
        torch.testing.assert_close(call.explanation.logits.cpu().float(), on_cpu.logits, atol=0.02, rtol=0.02)
        alike = correlation(call.explanation.layer_maps.cpu(), on_cpu.layer_maps)
        rounding = call.explanation.estimated_error.cpu()
        assert (alike + rounding)[~on_cpu.blank].nanmean() > 0.98
    assert monitor.explanation is not None
    assert monitor.explanation.heatmaps.device.type == "cpu"
    assert monitor.explanation.heatmaps.dtype == torch.float32
    assert monitor.probes is not None
    assert monitor.probes.images.device.type == "cpu"
    assert not monitor.explanation.skipped.any()


class LogsOutsideTheGraph(TinyModule):
    log = torch.compiler.disable(TinyModule.log)


@needs_cuda
@pytest.mark.parametrize("part", ["whole module", "inner network", "module in place"])
def test_a_model_compiled_by_inductor_is_explained_without_compiling(tmp_path: Path, part: str) -> None:
    during = []

    class Watches(ScoreCAM):
        def __call__(self, *args: Any, **options: Any) -> Any:
            before = counters["stats"]["unique_graphs"]
            explanation = super().__call__(*args, **options)
            during.append((before, counters["stats"]["unique_graphs"]))
            return explanation

    torch.compiler.reset()
    counters.clear()
    module = LogsOutsideTheGraph()
    given: Any = module
    if part == "whole module":
        given = torch.compile(module)
    elif part == "inner network":
        module.features = torch.compile(module.features)
    else:
        module.compile()
    monitor = CAMMonitor("features.4", Watches(), num_probes=5, audit=Audit(num_images=6), on_error="raise")
    fit(tmp_path, monitor, given, accelerator="gpu", devices=1, max_epochs=2)
    assert len(during) == 2
    assert all(before == after > 0 for before, after in during)
    assert monitor.explanation is not None
    assert monitor.probes is not None
    plain = TinyModule()
    plain.load_state_dict({key.replace("_orig_mod.", ""): value for key, value in module.validated[-1].items()})
    on_cpu = ScoreCAM()(plain, monitor.probes.images, "features.4", monitor.probes.labels)
    torch.testing.assert_close(monitor.explanation.logits, on_cpu.logits, atol=1e-3, rtol=1e-3)
    assert correlation(monitor.explanation.layer_maps, on_cpu.layer_maps).nanmean() > 0.99


@needs_cuda
def test_masked_images_go_through_a_compiled_copy(small_cnn: Any, blobs: Any) -> None:
    torch.compiler.reset()
    network, images = small_cnn(channels=40).cuda(), blobs(3, 32, 32)
    compiled = ScoreCAM(tolerance=0, batch_size=16, compile=True)(network, images)
    plain = ScoreCAM(tolerance=0, batch_size=16)(network, images)
    torch.testing.assert_close(compiled.layer_maps, plain.layer_maps, rtol=1e-2, atol=1e-3)


@pytest.fixture
def half_a_gibibyte() -> Iterator[None]:
    """The process may take no more than 512 MiB of the device."""
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(512 * MIB / total)
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()


class Wide(nn.Module):
    """Keeps 64 channels at full resolution: 16 MiB an image of 256 x 256."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), nn.AvgPool2d(16))
        self.head = nn.Linear(64, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.head(self.features(images).mean(dim=(2, 3)))
        return scores


@needs_cuda
def test_where_memory_runs_out_the_chunk_is_halved_and_no_map_changes(blobs: Any, half_a_gibibyte: None) -> None:
    torch.manual_seed(0)
    network, images = Wide().cuda(), blobs(2, 256, 256)
    method = ScoreCAM(tolerance=0, batch_size=128)  # of 16 MiB and more each: four times what there is
    with pytest.warns(UserWarning, match=r"out of memory with \d+ images at once; continuing with"):
        explanation = method(network, images, "features", 1)
    with warnings.catch_warnings(record=True) as caught:
        small = ScoreCAM(tolerance=0, batch_size=4)(network, images, "features", 1)
    assert not [warning for warning in caught if "out of memory" in str(warning.message)]
    torch.testing.assert_close(explanation.layer_maps, small.layer_maps, atol=1e-4, rtol=1e-3)
    assert torch.equal(explanation.passes, small.passes)


@needs_cuda
def test_a_run_in_which_a_look_runs_out_of_memory_goes_on(tmp_path: Path, half_a_gibibyte: None) -> None:
    class Module(TinyModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = Wide()

        def forward(self, images: torch.Tensor) -> Any:
            return self.net(images)

    monitor = CAMMonitor("net.features", ScoreCAM(batch_size=128), num_probes=4, audit=None, on_error="raise")
    data = loader(Squares(8, size=256), batch_size=2)
    with pytest.warns(UserWarning, match="out of memory with"):
        trainer = fit(tmp_path, monitor, Module(), data, data, accelerator="gpu", devices=1)
    assert trainer.current_epoch == 1
    assert monitor.explanation is not None
    assert not monitor.explanation.skipped.any()


@needs_cuda
@pytest.mark.parametrize(("scale", "sides"), [("probability", 1), ("contrast", 2)])
def test_a_round_of_the_adaptive_search_waits_for_the_device_once(scale: Scale, sides: int) -> None:
    rounds, maps = [], torch.rand(24, 60, 5, 5, generator=torch.Generator().manual_seed(0)).cuda()

    def score(image: torch.Tensor, channel: torch.Tensor, turned: torch.Tensor | None) -> torch.Tensor:
        rounds.append(1)
        side = 0 if turned is None else turned.float()
        return (0.3 + 0.01 * channel + 0.001 * image + 0.02 * side).sin().unsqueeze(1)

    search = AdaptiveSearch(score, scale, sides, tolerance=1e-4, max_passes=60)
    live, offset = torch.ones(24, 60, dtype=torch.bool, device="cuda"), torch.zeros(24, 1, device="cuda")
    search.weights(maps, live, offset)
    rounds.clear()
    with synchronizations() as found:
        search.weights(maps, live, offset)
    assert len(found) <= len(rounds) + 12  # before the first


@needs_cuda
def test_positions_of_more_images_do_not_wait_for_the_device_more_often(small_cnn: Any, blobs: Any) -> None:
    network = small_cnn(channels=8).cuda()

    def waits_for(count: int) -> int:
        with synchronizations() as found:
            ReciproCAM("evidence", batch_size=512)(network, blobs(count, 24, 24))
        return len(found)

    waits_for(2)
    assert waits_for(8) <= waits_for(2) + 2
