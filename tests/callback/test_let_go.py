"""What is exchanged over gloo is gone when the exchange returns: no thread of it is left to delete it at the exit."""

import weakref

import pytest
import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cam_callbacks.callback import let_go


class Watched(TorchDispatchMode):
    """Knows all tensors of collectives."""

    def __init__(self):
        super().__init__()
        self.tensors = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "c10d":
            self.tensors += [weakref.ref(each) for each in tree_leaves(args) if isinstance(each, torch.Tensor)]
        return func(*args, **kwargs or {})


@pytest.fixture
def group(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_tensors_of_an_exchange_are_gone_when_it_returns(group):
    for _ in range(20):
        found = [None]
        with Watched() as watched, let_go.letting_go():
            dist.all_gather_object(found, {"a": [1, 2]})
        assert found == [{"a": [1, 2]}]
        assert watched.tensors
        assert all(each() is None for each in watched.tensors)


def test_where_they_are_kept_it_waits_once(group, monkeypatch):
    monkeypatch.setattr(let_go, "_PATIENCE", 0.01)
    monkeypatch.setattr(let_go._Exchanged, "waits", True)
    kept = torch.ones(2)
    with let_go.letting_go():
        dist.all_reduce(kept)
    assert not let_go._Exchanged.waits


def test_without_processes_nothing_happens():
    with let_go.letting_go():
        pass
    assert let_go._Exchanged.waits
