"""What forwards and hooks collect, wherever the user's code reaches, is put back; all else is left alone."""

import collections
import functools
import sys
import threading
import types
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook
from torch.utils.data import Dataset

from cam_callbacks.explain import collected
from cam_callbacks.explain.isolation import isolated

FEATURES, BY_LAYER, COUNT, NAMED = [1], {"a": {"b": [1]}}, 0, types.SimpleNamespace(items=[1], last=None)
ELSEWHERE = types.ModuleType("elsewhere_in_a_project")
ELSEWHERE.items, ELSEWHERE.count = [1], 0


def to_global(_module, _inputs, output):
    FEATURES.append(output)


def to_global_of_globals(_module, _inputs, output):
    BY_LAYER["a"]["b"].append(output)
    BY_LAYER["c"] = [output]


def to_global_object(_module, _inputs, output):
    NAMED.items.append(output)
    NAMED.last = NAMED.new = output


def to_another_file(_module, _inputs, output):
    ELSEWHERE.items.append(output)
    ELSEWHERE.count += 1


def to_global_count(*_):
    global COUNT
    COUNT += 1


def to_default(_module, _inputs, output, store=[1]):  # noqa: B006 - it is the idiom that is meant
    store.append(output)


def to_named_default(_module, _inputs, output, *, store=(1, [1])):
    store[1].append(output)


def to_attribute(_module, _inputs, output):
    to_attribute.items.append(output)
    to_attribute.last = output


to_attribute.items, to_attribute.last = [1], None


def to_another_function(*arguments):
    return next(to_global(*arguments) for _ in range(1))


@torch.no_grad()
def to_global_without_gradients(*arguments):
    (lambda: to_global_of_globals(*arguments))()


class Recorder:
    shared, count = [1], 0

    def __init__(self):
        self.items, self.by_layer, self.last = [1], {"a": {"b": [1]}}, None

    def keep(self, _module, _inputs, output):
        self.items.append(output)
        self.by_layer["a"]["b"].append(output)
        self.last = self.new = output

    @classmethod
    def keep_for_all(cls, _module, _inputs, output):
        cls.shared.append(output)
        cls.count += 1

    @staticmethod
    def keep_elsewhere(*arguments):
        to_global(*arguments)


class WithSlots:
    __slots__ = ("__hidden", "items", "last", "never_set")

    def __init__(self):
        self.items, self.__hidden, self.last = [1], [1], None

    def keep(self, _module, _inputs, output):
        self.items.append(output)
        self.__hidden.append(output)
        self.last = output


class Store(collections.UserList):
    def __call__(self, _module, _inputs, output):
        self.append(output)


class Net(nn.Module):
    seen, how_many = {"a": [1]}, 0

    def __init__(self):
        super().__init__()
        self.recorder, self.slots, self.pair = Recorder(), WithSlots(), ([1], [1])
        self.deep = {"a": {"b": {"c": [1]}}}
        self.recorders = {"first": Recorder()}

    def forward(self, x):
        type(self).seen["a"].append(x)
        Net.how_many += 1
        for recorder in (self.recorder, self.slots, self.recorders["first"]):
            recorder.keep(self, x, x)
        self.pair[1].append(x)
        self.deep["a"]["b"]["c"].append(x)
        self._remember(x)
        return x

    def _remember(self, x):
        to_global(self, x, x)


def everything(*more):
    """All that could have been collected in, as text; tensors would show."""
    state = [FEATURES, BY_LAYER, COUNT, vars(NAMED), ELSEWHERE.items, ELSEWHERE.count]
    state += [to_default.__defaults__, to_named_default.__kwdefaults__, vars(to_attribute)]
    state += [Recorder.shared, Recorder.count, Net.seen, Net.how_many, *more]
    return repr(state)


def inside_of(value):
    """An object and all that hangs on it, as text."""
    if isinstance(value, (Recorder, Net)):
        own = {name: inside for name, inside in vars(value).items() if name != "training" and name[0] != "_"}
        return repr([(name, inside_of(inside)) for name, inside in own.items()])
    if isinstance(value, WithSlots):
        return repr([value.items, value._WithSlots__hidden, value.last])
    return repr({name: inside_of(inside) for name, inside in value.items()} if isinstance(value, dict) else value)


class Breaks(nn.Module):
    def forward(self, _x):
        raise KeyboardInterrupt


def run(module, fails):
    """Call a module inside, and let the forward of what it stands in break off behind it."""
    network = nn.Sequential(module, Breaks() if fails else nn.Identity())
    with pytest.raises(KeyboardInterrupt) if fails else nullcontext(), isolated(network):
        network(torch.ones(2))


@pytest.fixture
def in_another_file():
    """A module of a project, which hooks name."""
    sys.modules[ELSEWHERE.__name__] = ELSEWHERE
    yield
    del sys.modules[ELSEWHERE.__name__]


def bound_append(items):
    append = items.append
    return lambda _module, _inputs, output: append(output)


HOOKS = [
    *(to_global, to_global_of_globals, to_global_object, to_another_file, to_global_count, to_default),
    *(to_named_default, to_attribute, to_another_function, to_global_without_gradients, bound_append(FEATURES)),
    *(Recorder.keep_for_all, Recorder().keep_elsewhere, functools.partial(to_default, store=FEATURES)),
    lambda *arguments: Recorder.keep_for_all(*arguments),
    lambda *_: collections.deque(map(FEATURES.append, [2]), 0),
]


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.usefixtures("in_another_file")
class TestPutBack:
    @pytest.mark.parametrize("hook", HOOKS, ids=range(len(HOOKS)))
    @pytest.mark.parametrize("on_all", [False, True])
    def test_is_what_a_hook_collects_wherever_it_names(self, hook, on_all, fails):
        module, same = nn.Linear(2, 2), (FEATURES, BY_LAYER["a"]["b"], NAMED.items, Recorder.shared)
        handle = register_module_forward_hook(hook) if on_all else module.register_forward_hook(hook)
        before = everything()
        try:
            run(module, fails)
        finally:
            handle.remove()
        assert everything() == before
        assert all(
            a is b for a, b in zip(same, (FEATURES, BY_LAYER["a"]["b"], NAMED.items, Recorder.shared), strict=True)
        )

    @pytest.mark.parametrize("make", [Recorder, WithSlots, Store])
    def test_is_what_the_object_of_a_hook_collects(self, make, fails):
        module, owner = nn.Linear(2, 2), make()
        for hook in (owner.keep, lambda *arguments: owner.keep(*arguments)) if hasattr(owner, "keep") else (owner,):
            module.register_forward_hook(hook)
        before = inside_of(owner)
        run(module, fails)
        assert inside_of(owner) == before

    def test_is_what_a_forward_collects_in_classes_and_objects(self, fails):
        module = Net()
        before, kept = everything(inside_of(module)), module.recorders["first"].by_layer["a"]["b"]
        run(nn.Sequential(module), fails)
        assert everything(inside_of(module)) == before
        assert module.recorders["first"].by_layer["a"]["b"] is kept


def test_hooks_do_collect_outside():
    """Else the tests above could not fail."""
    for hook in HOOKS:
        before = everything()
        with containers_kept():
            hook(None, None, torch.ones(1))
            assert everything() != before
        assert everything() == before


def containers_kept():
    """Put all back that the hooks of this file collect."""
    module = nn.Identity()
    for hook in HOOKS:
        module.register_forward_hook(hook)
    return isolated(module)


class Stubborn(list):
    """A list that refuses whatever it is asked by its own methods."""

    def refuse(self, *_):
        raise RuntimeError("not now")

    clear = extend = copy = __iter__ = __len__ = __getitem__ = __eq__ = __bool__ = refuse


class StubbornDict(collections.OrderedDict):
    clear = update = items = keys = values = __iter__ = __len__ = __setitem__ = Stubborn.refuse


class Odd:
    """Whoever looks at its attributes by the usual way gets an error."""

    def __getattribute__(self, name):
        raise RuntimeError("not now")

    __class__ = property(Stubborn.refuse)
    __dict__ = property(Stubborn.refuse)
    __eq__ = __hash__ = Stubborn.refuse


class Images(Dataset):
    def __init__(self):
        self.read = []


class Worker(threading.Thread):
    def __init__(self):
        super().__init__()
        self.done = []


class Holds(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, x):
        return self.act(x)


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("make", [Stubborn, StubbornDict, Odd, lambda: [Odd()], lambda: {"a": Odd}, lambda: iter([])])
def test_odd_objects_cost_nothing(make, fails):
    module, held = Holds([make()]), make()
    module.act = lambda x: x
    module.register_forward_hook(lambda *arguments: [held, to_global(*arguments)][1])
    before = everything()
    run(module, fails)
    assert everything() == before


def test_containers_of_odd_classes_are_put_back():
    items, by_name = Stubborn(), StubbornDict()
    list.append(items, 1)
    collections.OrderedDict.__setitem__(by_name, "a", 1)
    module = Holds((items, by_name))
    module.act = lambda x: [list.append(items, x), collections.OrderedDict.__setitem__(by_name, "b", x)]
    run(module, False)
    assert list(list.__iter__(items)) == [1]
    assert list(collections.OrderedDict.items(by_name)) == [("a", 1)]


def test_the_order_of_an_ordered_dictionary_is_put_back():
    module = Holds(collections.OrderedDict(a=1, b=2))
    module.act = lambda x: module.value.move_to_end("a")
    run(module, False)
    assert list(module.value) == ["a", "b"]


def test_nothing_is_written_where_nothing_was_collected():
    class Watched(list):
        def __setattr__(self, name, value):
            raise AssertionError(name)

    space = types.SimpleNamespace(writes=[])

    class Meta(type):
        def __setattr__(cls, name, value):
            space.writes.append(name)
            super().__setattr__(name, value)

    class Plain(metaclass=Meta):
        items = [1]  # noqa: RUF012

    module = Holds([Watched([1]), Plain(), Plain])
    module.act = lambda x: x
    iterator = iter(module.value)  # goes on after a list that has not changed
    run(module, False)
    assert len(list(iterator)) == 3
    assert space.writes == []


@pytest.mark.parametrize(("owner", "name"), [(Images(), "read"), (Worker(), "done")], ids=["data set", "thread"])
def test_what_belongs_to_libraries_is_left_alone(owner, name):
    module = Holds(owner)
    module.act = lambda x: getattr(owner, name).append(1)
    run(module, False)
    assert getattr(owner, name) == [1]


def test_large_containers_are_kept_but_not_looked_into():
    entries = [[] for _ in range(collected._MANY + 1)]
    module = Holds(collections.deque(entries))
    module.act = lambda x: [module.value.popleft(), entries[-1].append(1)]
    run(module, False)
    assert list(map(id, module.value)) == list(map(id, entries))
    assert entries[-1] == [1]


def test_what_holds_itself_is_kept():
    around, recorder = [], Recorder()
    around.append(around)
    recorder.by_layer["self"], recorder.other = recorder, around
    module = Holds(recorder)
    module.act = lambda x: [around.append(x), recorder.items.append(x)]
    run(module, False)
    assert len(around) == 1
    assert recorder.items == [1]
