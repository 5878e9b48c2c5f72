"""What a forward writes in place is put back, whatever it writes to, and by whatever alias."""

import multiprocessing
import random
from contextlib import nullcontext
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from cam_callbacks import ScoreCAM
from cam_callbacks.explain import written
from cam_callbacks.explain.isolation import isolated

CENTER, DRAWS = torch.zeros(2), np.random.default_rng(0)


class Writer(nn.Module):
    """Holds one of everything; its forward calls `write`."""

    def __init__(self, write):
        super().__init__()
        self.write = write
        self.net, self.ema = nn.Linear(2, 2), nn.Linear(2, 2).requires_grad_(False)
        self.book = nn.Parameter(torch.rand(4, 2))
        self.norm = nn.BatchNorm1d(2)
        self.center, self.alias, self.half = torch.ones(2), self.book.detach(), torch.ones(2, dtype=torch.half)
        self.number, self.empty, self.wide = torch.zeros((), dtype=torch.long), torch.zeros(0), torch.ones(1).expand(3)
        self.complex, self.not_finite = torch.ones(2, dtype=torch.cfloat), torch.tensor([torch.nan, -0.0, torch.inf])
        self.quantized = torch.quantize_per_tensor(torch.rand(4), 0.1, 0, torch.quint8)
        self.bank = {"a": [torch.zeros(3, 2)], "pair": (torch.zeros(2), np.zeros(2))}
        self.teachers = [nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.BatchNorm1d(2)))]
        self.array, self.names, self.fixed = np.arange(4.0), np.array([None, "a"]), np.zeros(2)
        self.fixed.flags.writeable = False
        self.torch_draws, self.draws = torch.Generator(), random.Random(0)
        self.numpy_draws, self.old_draws = np.random.default_rng(0), np.random.RandomState(0)
        closed_over = torch.zeros(2)
        self.add = lambda x: closed_over.add_(x.mean())
        self.closed_over = lambda: closed_over

    def forward(self, x):
        self.write(self, x)
        return x

    def state(self):
        """All that it holds, in values that compare with `==`."""
        teacher, draws = self.teachers[0], (self.draws.getstate(), str(self.numpy_draws.bit_generator.state))
        tensors = [*self.state_dict().values(), *teacher.state_dict().values(), self.center, self.half, self.number]
        tensors += [self.empty, self.wide, self.complex, self.not_finite, self.quantized.int_repr(), CENTER]
        tensors += [*self.bank["a"], self.bank["pair"][0], self.torch_draws.get_state(), self.closed_over()]
        arrays = [self.bank["pair"][1], self.array, self.old_draws.get_state()[1]]
        where = [parameter.data_ptr() for parameter in self.parameters()]
        shown = [(each.clone().numpy().tobytes(), each.shape, each.stride()) for each in tensors]
        numpy_state = str(DRAWS.bit_generator.state), self.names.tolist(), self.fixed.tolist()
        return shown, [each.tobytes() for each in arrays], draws, numpy_state, where


@torch.no_grad()
def ema(self, _x):
    for old, new in zip(self.ema.parameters(), self.net.parameters(), strict=True):
        old.mul_(0.9).add_(new, alpha=0.1)


def ema_by_data(self, _x):
    for old, new in zip(self.ema.parameters(), self.net.parameters(), strict=True):
        old.data = old.data * 0.9 + new.data * 0.1


def teacher_in_a_list(self, x):
    for parameter in self.teachers[0].parameters():
        parameter.data.mul_(0.9)
    self.teachers[0](x)  # it is in training, so that its batch norm counts


def weight_anew(self, _x):
    self.net.weight = nn.Parameter(self.net.weight / 2)


def many_at_once(self, _x):
    torch._foreach_mul_([self.center, self.book.data], 0.5)


def given_as_output(self, x):
    torch.add(self.center, x.mean(), out=self.center)
    torch.cat([x, x], out=self.empty)


def in_inference_mode(self, x):
    with torch.inference_mode():
        self.center.mul_(2)
        nn.functional.batch_norm(x, self.bank["pair"][0], self.center, training=True)


def generators(self, _x):
    torch.rand(1, generator=self.torch_draws)
    self.draws.random()
    self.numpy_draws.normal()
    self.old_draws.rand()
    DRAWS.normal()


def arrays(self, _x):
    self.array *= 2
    self.names[0] = "b"
    self.bank["pair"][1][0] = 1


def scripted(self, x):
    SCRIPTED(self.center, x)


@torch.jit.script
def SCRIPTED(center: torch.Tensor, x: torch.Tensor):  # noqa: N802
    center.add_(x.mean())


BY_OPERATIONS = {
    "EMA of parameters": ema,
    "EMA of parameters, with other memory": ema_by_data,
    "weights that are normalized": lambda self, _x: self.net.weight.data.div_(self.net.weight.data.norm()),
    "a codebook, one row": lambda self, x: self.book.data[1].copy_(x[0]),
    "a codebook, at indices": lambda self, x: self.book.data.index_add_(0, torch.tensor([0, 2]), x[:2]),
    "a codebook, by its alias": lambda self, _x: self.alias.zero_(),
    "a parameter anew": weight_anew,
    "a tensor": lambda self, x: self.center.mul_(0.9).add_(x.mean(), alpha=0.1),
    "a tensor, with other memory": lambda self, x: setattr(self.center, "data", x[0].clone()),
    "a tensor, by set_": lambda self, x: self.center.set_(x[0].clone()),
    "a tensor, transposed": lambda self, _x: self.bank["a"][0].t_(),
    "a tensor, its size": lambda self, _x: self.center.resize_(9).fill_(1),
    "a tensor of half precision": lambda self, _x: self.half.add_(1),
    "a number": lambda self, _x: self.number.add_(1),
    "an empty tensor": lambda self, x: self.empty.resize_(2).copy_(x[0]),
    "a repeated tensor": lambda self, _x: self.wide[:1].add_(1),
    "a complex tensor": lambda self, _x: self.complex.imag.add_(1),
    "values that are not finite": lambda self, _x: self.not_finite.zero_(),
    "a quantized tensor": lambda self, _x: self.quantized.copy_(torch.ones(4)),
    "in containers": lambda self, x: self.bank["a"][0].add_(1) + self.bank["pair"][0].add_(x[0]),
    "in a closure": lambda self, x: self.add(x),
    "in a global": lambda _self, x: CENTER.add_(x.mean()),
    "a module in a list": teacher_in_a_list,
    "many at once": many_at_once,
    "given as an output": given_as_output,
    "in inference mode": in_inference_mode,
    "by scripted code": scripted,
}
OTHERWISE = {
    "arrays": arrays,
    "generators": generators,
}


class Breaks(nn.Module):
    def forward(self, _x):
        raise KeyboardInterrupt


def look(module, fails=False):
    network = nn.Sequential(module, Breaks() if fails else nn.Identity())
    with pytest.raises(KeyboardInterrupt) if fails else nullcontext(), isolated(network):
        for _ in range(2):
            network(torch.rand(3, 2))


KINDS = [(write, at_once) for write in BY_OPERATIONS.values() for at_once in (2**27, 0)]
KINDS += [(write, 2**27) for write in OTHERWISE.values()]
IDS = [f"{name}{watched}" for name in BY_OPERATIONS for watched in ("", ", watched")] + list(OTHERWISE)


@pytest.mark.parametrize("happens", [[False], [True], [False, False]], ids=["a look", "one that fails", "two looks"])
@pytest.mark.parametrize(("write", "at_once"), KINDS, ids=IDS)
def test_what_is_written_in_place_is_put_back(write, at_once, happens, monkeypatch):
    monkeypatch.setattr(written, "_AT_ONCE", at_once)
    module = Writer(write)
    before, same = module.state(), (module.center, module.net.weight, module.book)
    for fails in happens:
        look(module, fails)
    assert module.state() == before
    assert all(map(lambda a, b: a is b, same, (module.center, module.net.weight, module.book)))
    write(module, torch.rand(3, 2))
    assert module.state() != before  # else it could not fail


def test_tensors_that_other_processes_write_to_keep_what_those_wrote():
    module = nn.Linear(2, 2)
    of_another = module.weight.data.share_memory_().numpy()
    with isolated(module):
        of_another.fill(0)
    assert not module.weight.any()


def in_a_file(folder):
    return np.memmap(folder / "bank", dtype=np.float32, mode="w+", shape=2)


def in_a_buffer(_folder):
    return np.frombuffer(multiprocessing.RawArray("f", 2), dtype=np.float32)


@pytest.mark.parametrize("lent", [in_a_file, in_a_buffer])
@pytest.mark.parametrize("held", [lambda array: array[:], torch.from_numpy], ids=["array", "tensor"])
def test_what_others_write_to_lent_memory_meanwhile_stays(lent, held, tmp_path):
    array = lent(tmp_path)
    writer = Writer(lambda self, x: None)
    writer.bank["lent"] = held(array)
    with isolated(writer):
        array[:] = 7  # as another process, or a thread, would
    assert array.tolist() == [7, 7]


def test_packed_parameters_stay_packed():
    """A library that packs weights at their first use knows that it has."""
    module = nn.Linear(2, 2).requires_grad_(False)
    with isolated(module):
        module.weight.data = torch.zeros(1, 4, dtype=torch.uint8)
    assert module.weight.dtype == torch.uint8


@pytest.mark.parametrize("at_once", [2**27, 0])
def test_nothing_is_written_where_nothing_was(at_once, monkeypatch):
    monkeypatch.setattr(written, "_AT_ONCE", at_once)
    module = Writer(lambda *_: None)
    versions = [each._version for each in (*module.parameters(), module.center)]
    look(module)
    assert [each._version for each in (*module.parameters(), module.center)] == versions


def test_tensors_without_plain_memory_are_tolerated(monkeypatch):
    monkeypatch.setattr(written, "_AT_ONCE", 0)
    module = nn.Sequential(nn.LazyLinear(2))
    module.odd = [torch.eye(3).to_sparse(), torch.zeros(2, device="meta"), torch.nested.nested_tensor([torch.ones(2)])]
    ragged = torch.nested.nested_tensor([torch.ones(2, 2), torch.ones(3, 2)], layout=torch.jagged)
    module.odd.append(ragged)
    with isolated(module):
        module(torch.rand(1, 3))
        module.odd[0].mul_(2)
        ragged.mul_(2)
    assert [part.unique().tolist() for part in ragged.unbind()] == [[1], [1]]


@pytest.mark.parametrize("at_once", [2**27, 0])
def test_a_compiled_copy_is_compiled_while_writing_is_watched(at_once, small_cnn, blobs, monkeypatch):
    monkeypatch.setattr(written, "_AT_ONCE", at_once)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))  # code in C++ takes seconds
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    ScoreCAM(compile=True)(small_cnn(), blobs(2, 24, 24))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    torch.compiler.reset()
