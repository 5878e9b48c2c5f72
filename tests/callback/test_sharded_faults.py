"""Two processes that share the weights of a model (`fully_shard`): what fails on one ends the look on both, no more."""

from __future__ import annotations

from pathlib import Path

import torch
from processes import run_script
from traces import assert_equal

SCRIPT = """
import sys, warnings
from datetime import timedelta
from pathlib import Path
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.fsdp import fully_shard
from fault_makers import Watches, in_epoch_1
from lightning_runs import Squares, TinyModule, loader, quiet
from cam_callbacks import Audit, CAMMonitor, GradCAM, ScoreCAM
from cam_callbacks.explain.sharding import full_tensor

folder = Path(sys.argv[1])
LUCK = "out of luck"


class FailsToGoBack(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values):
        return values.clone()

    @staticmethod
    def backward(ctx, gradient):
        raise RuntimeError(LUCK)


class Sharded(TinyModule):
    "Three parts are sharded, and the whole, unless said otherwise; after the first it may fail, in looks only."
    is_step = False

    def __init__(self, fails=None, fails_to_go_back=None, parts=("features.0", "features.3", "head", "")):
        super().__init__()
        self.fails, self.fails_to_go_back, self.parts = fails, fails_to_go_back, parts

    def configure_model(self):
        for name in self.parts:
            fully_shard(self.get_submodule(name), mesh=self.device_mesh["data_parallel"])

    def forward(self, images):
        maps = self.features[:3](images)
        if self.fails is not None and self.fails(self):
            raise torch.OutOfMemoryError(LUCK)
        maps = self.features[3:](maps)
        if self.fails_to_go_back is not None and torch.is_grad_enabled() and self.fails_to_go_back(self):
            maps = FailsToGoBack.apply(maps)
        return self.head(maps.mean(dim=(2, 3)))

    def _loss_of(self, batch):
        self.is_step = True
        try:
            return super()._loss_of(batch)
        finally:
            self.is_step = False


def in_look(module):
    return in_epoch_1(module) and not module.is_step


def on_one(module):
    return in_look(module) and module.global_rank == 1


def first_on_one(module):
    return not module.is_step and module.global_rank == 1 and module.current_epoch == 0


class ForwardFn:
    "Raises at the n-th call, before or after the model has run."

    def __init__(self, call, after=False, fails=on_one):
        self.call, self.after, self.fails, self.calls = call, after, fails, 0

    def __call__(self, module, images):
        fails = self.fails(module)
        self.calls += fails
        output = module(images) if self.after or not fails or self.calls != self.call else None
        if fails and self.calls == self.call:
            raise OSError(LUCK)
        return output


class Target:
    "A callable that fails in the second look, on one rank."
    calls = 0

    def __call__(self, output):
        if self.module is not None and on_one(self.module):
            raise OSError(LUCK)
        return output[:, 0]


def for_more_than(count):
    def forward(module, images):
        if on_one(module) and len(images) > count:
            raise OSError(LUCK)
        return module(images)
    return forward


def hooks_of(module):
    return [(len(each._forward_hooks), len(each._forward_pre_hooks)) for each in module.modules()]


class HooksAtStart(Callback):
    def on_fit_start(self, trainer, module):
        self.hooks = hooks_of(module)


reports = {}
PARTS = ["features.0", "features.1", "features.3", "head"]


def run(name, monitor=None, module=None, **options):
    module = module or Sharded()
    seed_everything(5)
    if isinstance(getattr(monitor, "settings", None) and monitor.settings.explain, Target):
        monitor.settings.explain.module = module
    strategy = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1, timeout=timedelta(seconds=90))
    watches = [] if monitor is None else [Watches(monitor)]
    settings = {"max_epochs": 3, "strategy": strategy, "devices": 2, "num_sanity_val_steps": 1} | options
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        callbacks = [start := HooksAtStart(), *([] if monitor is None else [monitor, *watches])]
        trainer = Trainer(callbacks=callbacks, **quiet(folder / name, **settings))
        trainer.fit(module, loader(Squares(4)), loader(Squares(8, seed=1)))
    reports[name] = {
        "epochs": trainer.current_epoch,
        "weights": [full_tensor(each) for each in module.parameters()],
        "gradients": [each.grad is not None for each in module.parameters()],
        "hooks_stay": hooks_of(module) == start.hooks,
        "looks": watches[0].looks if watches else [],
        "audits": watches[0].audits if watches else [],
        "said": [str(each.message) for each in caught if str(each.message).startswith("CAMMonitor")],
    }
    return trainer.global_rank


def monitor(**settings):
    return CAMMonitor(**({"num_probes": 3, "audit": None, "method": ScoreCAM(batch_size=4)} | settings))


RUNS = {
    "without": lambda: {},
    "before the model": lambda: {"monitor": monitor(forward_fn=ForwardFn(1))},
    "masked passes": lambda: {"monitor": monitor(forward_fn=ForwardFn(4))},
    "after the model": lambda: {"monitor": monitor(forward_fn=ForwardFn(2, after=True))},
    "target": lambda: {"monitor": monitor(explain=Target())},
    "inside the model": lambda: {"monitor": monitor(), "module": Sharded(fails=on_one)},
    "inside the model, on both": lambda: {"monitor": monitor(), "module": Sharded(fails=in_look)},
    "backward": lambda: {"monitor": monitor(method=GradCAM()), "module": Sharded(fails_to_go_back=on_one)},
    "backward, on both": lambda: {"monitor": monitor(method=GradCAM()), "module": Sharded(fails_to_go_back=in_look)},
    "backward, only the parts sharded": lambda: {
        "monitor": monitor(method=GradCAM()), "module": Sharded(fails_to_go_back=on_one, parts=PARTS)
    },
    "backward, only the whole sharded": lambda: {
        "monitor": monitor(method=GradCAM()), "module": Sharded(fails_to_go_back=on_one, parts=[""])
    },
    "audit": lambda: {"monitor": monitor(forward_fn=for_more_than(3), method=GradCAM(), audit=Audit(num_images=6))},
    "choice of the layer": lambda: {
        "monitor": monitor(),
        "module": Sharded(fails=lambda module: first_on_one(module) and torch.is_grad_enabled()),
        "num_sanity_val_steps": 0,
    },
}

if __name__ == "__main__":
    for name in sys.argv[2:] or RUNS:
        print("RUN", name, flush=True)
        rank = run(name, **RUNS[name]())
    torch.save(reports, folder / f"rank{rank}.pt")
"""


LOOKS = {"audit": [0, 1, 2], "choice of the layer": [1, 2]}
"""The epochs whose looks work, where that is not all but the second."""
ON_BOTH = ("inside the model, on both", "backward, on both")


def test_ranks_that_share_the_weights_fail_and_go_on_together(tmp_path: Path) -> None:
    ended = run_script(tmp_path, SCRIPT, str(tmp_path), ranks=2)
    assert ended.well, ended.printed[-4000:]
    ranks = [torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2)]
    for rank in ranks:
        without = rank.pop("without")
        for fault, ran in rank.items():
            assert ran["epochs"] == 3
            assert ran["hooks_stay"]
            for what in ("weights", "gradients"):
                assert_equal(ran[what], without[what])
            assert ran["looks"] == LOOKS.get(fault, [0, 2]), fault
            if fault == "audit":
                assert ran["audits"] == [0, 2]
    for fault in ranks[0]:
        said = [[text for text in rank[fault]["said"] if "failed" in text] for rank in ranks]
        assert [len(texts) for texts in said] == [1, 1], (fault, said)
        assert "out of luck" in said[1][0], fault
        assert ("out of luck" in said[0][0]) == (fault in ON_BOTH), fault
