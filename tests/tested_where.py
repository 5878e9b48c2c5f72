"""What was tested where, from the tests that pytest collects; the source of `docs/tested.md`.

python tests/tested_where.py > docs/tested.md
"""

from __future__ import annotations

import os
import re
from contextlib import redirect_stdout
from dataclasses import dataclass

import pytest
from pages import ROOT, markdown_table

COMPLETE = ("test_everywhere.py", "test_precisions.py", "test_cuda.py", "test_cli.py", "test_hydra.py")
"""Each test of these files must stand in a row."""

ROWS: dict[str, dict[str, tuple[str, ...]]] = {
    "Lightning": {
        "`pytorch_lightning` and `lightning.pytorch`, the callback alone and in a list": (
            "test_monitor_explains.py::test_trainers_of_both",
        ),
        "`pytorch_lightning` installed, `lightning` not": (
            r"test_everywhere.py::test_it_works_where_only.*\[pytorch_lightning",
        ),
        "`lightning` installed, `pytorch_lightning` not": (
            r"test_everywhere.py::test_it_works_where_only.*\[lightning",
        ),
    },
    "Strategies": {
        "`ddp`, `ddp_spawn`": ("test_monitor_ddp.py::test_processes_share", "test_monitor_ddp.py::test_more_processes"),
        "`ModelParallelStrategy` with `fully_shard`": ("test_monitor_ddp.py::test_where_the_weights_are_spread",),
        "an error in one of several processes": (
            "test_monitor_ddp.py::test_an_error",
            "test_monitor_ddp.py::test_all_ranks",
        ),
        "`FSDPStrategy`, DeepSpeed stage 3: refused": ("test_monitor_ddp.py::test_strategies",),
    },
    "Precisions": {
        f"`{precision}`{note}": tuple(
            rf"{file}::.*[\[-]{precision}"
            for file in ("test_precisions.py", "test_cuda.py", "test_monitor_explains.py")
        )
        for precision, note in (
            ("32-true", ""),
            ("16-mixed", "; on a CPU Lightning takes `bf16-mixed` for it"),
            ("bf16-mixed", ""),
            ("bf16-true", ""),
            ("16-true", ""),
            ("64-true", ""),
        )
    },
    "Devices": {
        "maps equal to those of the CPU": ("test_cuda.py::test_maps", "test_cuda.py::test_masked_images"),
        "the weights of a run without the callback; its random numbers": (
            "test_cuda.py::test_the_weights",
            "test_cuda.py::test_an_explanation_leaves",
            "test_precisions.py::test_the_weights",
            "test_training_is_not_harmed.py::test_weights",
        ),
        "memory that runs out": (
            "test_cuda.py::.*(memory_runs_out|runs_out_of_memory)",
            "methods/test_compiled.py::test_out_of",
        ),
    },
    "torch.compile": {
        f"the {part}": tuple(rf"{file}::.*\[{part}[\]-]" for file in ("test_everywhere.py", "test_cuda.py"))
        for part in ("whole module", "inner network", "module in place", "inner network in place")
    }
    | {
        "as many graphs with looks as without": ("test_monitor_explains.py::test_a_compiled_model",),
        "maps equal to those of the model that is not compiled": ("methods/test_network.py::.*test_a_compiled_model",),
    },
    "Other callbacks": {
        "`EMAWeightAveraging`, `WeightAveraging`, before and after": (
            "test_everywhere.py::.*test_the_averaged_weights",
        ),
        "`StochasticWeightAveraging`, before and after": ("test_everywhere.py::.*test_with_stochastic",),
        "`ModelCheckpoint`, `EarlyStopping`, before and after": (
            "test_everywhere.py::.*test_a_checkpoint_of_the_best",
            "test_monitor_when.py::test_model_checkpoint",
        ),
        "several CAMMonitors": (
            "test_everywhere.py::.*test_two_monitors",
            "test_monitor_resume.py::test_each_of_two",
        ),
        "`configure_callbacks` in the module": (
            "test_everywhere.py::.*test_it_can_come_from_the_module",
            "test_everywhere.py::.*test_one_of_the_module",
        ),
    },
    "Loops": {
        "two validation loaders": (
            r"test_everywhere.py::.*\[two validation",
            "test_monitor_when.py::test_it_looks_once_after_the_last",
        ),
        "iterable data sets": (r"test_everywhere.py::.*\[data sets",),
        "`limit_val_batches`: 0, a number, a share": (
            r"test_everywhere.py::.*\[limit_val",
            "test_everywhere.py::test_without_validation",
            "test_monitor_when.py::.*limited",
        ),
        "`val_check_interval`, `check_val_every_n_epoch`, `every_n_epochs`": (
            r"test_everywhere.py::.*\[(val_check|check_val)",
            "test_monitor_when.py::test_it_looks_after_every",
        ),
        "`reload_dataloaders_every_n_epochs`": ("test_everywhere.py::test_where_loaders_are_made_anew",),
        "`overfit_batches`": (r"test_everywhere.py::.*\[overfit",),
        "`accumulate_grad_batches`, `gradient_clip_val`, `detect_anomaly`, `max_steps`": (
            r"test_everywhere.py::.*\[(accumulate|gradient|detect|max_steps)",
        ),
        "the sanity check, with and without": (
            r"test_everywhere.py::.*\[num_sanity",
            "test_monitor_when.py::.*sanity_check",
        ),
        "`fast_dev_run`": ("test_everywhere.py::.*fast_dev_run",),
        "`barebones`": ("test_everywhere.py::.*barebones",),
        "no logger": ("test_everywhere.py::test_without_a_logger", "test_monitor_outputs.py::test_without_a_logger"),
        "`validate()`, `test()`, with and without `inference_mode`": (
            "test_everywhere.py::test_validate_and_test",
            r"test_everywhere.py::.*\[inference_mode",
            "test_monitor_when.py::test_it_looks_in_(validate|test)",
        ),
        "manual optimisation, with one optimizer and with two": ("test_everywhere.py::test_with_manual",),
    },
    "Resume": {
        "probes, layer, history": (
            "test_monitor_resume.py::.*(resumed_run_goes|same_given_probes|same_images|named_by_the_user)",
        ),
        "what the checkpoint holds: tensors and primitives, 10 MB at most": (
            "test_monitor_resume.py::.*(weights_only|ten_megabytes|stays_small)",
        ),
        "the weights of a resumed run; a checkpoint with the callback loaded without it": (
            "test_monitor_resume.py::.*trains_the_weights",
        ),
        "other probes, a layer that is gone: said": ("test_monitor_resume.py::.*(other_probes|no_longer_has)",),
    },
    "Configuration": {
        "LightningCLI": ("test_cli.py::",),
        "Hydra": ("test_hydra.py::",),
    },
}

ABOVE = """# What was tested where

**All tests have been run on CPUs only, none on a GPU yet.** Each cell is the number of tests that cover the case. In
each a real Trainer trains, or a real model is explained; most compare each look with a direct call of the method on the
weights that were validated. Tests on a CPU run at every change; those for CUDA and MPS are there, and skipped where
there is no such device. `python tests/tested_where.py` makes this page from the tests.
"""

BELOW = """
MPS is meant to hold by construction: no device is named but where memory and random numbers are asked for, images go
where the weights are, and what needs double precision, which MPS has not, belongs on the CPU.
"""


@dataclass
class Collected:
    """A pytest plugin that keeps what was collected."""

    items: tuple[pytest.Item, ...] = ()

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.items = tuple(session.items)


def collect() -> tuple[pytest.Item, ...]:
    """The tests of all files that the rows name."""
    patterns = [pattern for rows in ROWS.values() for each in rows.values() for pattern in each]
    files = sorted({str(ROOT / "tests" / pattern.split("::")[0]) for pattern in patterns})
    collected = Collected()
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        code = pytest.main(
            ["--collect-only", "-q", "-p", "no:cacheprovider", "--rootdir", str(ROOT), *files], [collected]
        )
    if code != 0:
        raise SystemExit(f"pytest cannot collect the tests: {code!r}; see pytest --collect-only {' '.join(files)}")
    return collected.items


def device(item: pytest.Item) -> str:
    """What it says that it needs."""
    reasons = " ".join(str(mark.kwargs.get("reason")) for mark in item.iter_markers("skipif"))
    return next((name for name in ("CUDA", "MPS") if f"{name} device" in reasons), "CPU")


def row(what: str, items: list[pytest.Item]) -> list[str]:
    """A row of the table: how many tests on each device, where they stand, what is known to fail."""
    counts = [sum(device(item) == name for item in items) for name in ("CPU", "CUDA", "MPS")]
    files = sorted({f"`{item.path.relative_to(ROOT / 'tests').as_posix()}`" for item in items})
    faults = sorted({str(mark.kwargs["reason"]) for item in items for mark in item.iter_markers("xfail")})
    note = "".join(f"; **does not hold yet**: {fault}" for fault in faults)
    return [f"{what}{note}", *(str(count or "") for count in counts), ", ".join(files)]


def page() -> str:
    """The page as the tests are now."""
    items = collect()
    names = {item: item.nodeid.removeprefix("tests/") for item in items}
    told: set[pytest.Item] = set()
    lines = [ABOVE]
    for heading, rows in ROWS.items():
        cells = []
        for what, patterns in rows.items():
            of_row = [item for item in items if any(re.match(pattern, names[item]) for pattern in patterns)]
            if not of_row:
                raise SystemExit(f"{heading}, {what}: no test is like {patterns}")
            told.update(of_row)
            cells.append(row(what, of_row))
        lines += [
            f"## {heading}",
            "",
            *markdown_table(["", "CPU", "for CUDA, not run yet", "for MPS, not run yet", "in `tests/`"], cells),
            "",
        ]
    missing = [name for item, name in names.items() if name.startswith(COMPLETE) and item not in told]
    if missing:
        raise SystemExit("these tests stand in no row of tests/tested_where.py:\n" + "\n".join(missing))
    return "\n".join(lines).rstrip() + "\n" + BELOW


if __name__ == "__main__":
    print(page(), end="")
