"""Nothing of a step, or of what evaluation asks of a model, leaves the device or waits for it; and
the next batch is made while a step runs. Held without a GPU: the device `meta` computes nothing,
but has no values to wait for and shares no memory with the CPU."""

import ast
import os
import subprocess
import sys
import textwrap
import threading
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim import optimizer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmark import check
from benchmark.api import Batch, joint_step
from benchmark.compose import CONFIGS
from benchmark.data.prefetch import Ahead
from benchmark.grid import Cell
from benchmark.noise import Noise
from benchmark.objectives import negative_elbo
from benchmark.record import RunDirectory
from benchmark.train import Trainer
from benchmark.trial import Subject, subject
from tests import cells
from tests.cells import differences
from tests.test_resume import STEPS, Bench, Sentences, everything

ROOT = CONFIGS.parent
METHODS = sorted(path.stem for path in (CONFIGS / "method").glob("*.yaml"))
DEVICES = ["meta", *["cuda"] * torch.cuda.is_available()]

READS = {  # functions that may wait for the device
    "benchmark/train.py:Trainer._report": "the log, each `log_every` steps",
    "methods/aggressive.py:AggressiveStep.catch_up": "the stopping rule, once a window of updates",
}
ELSEWHERE = {  # functions that read values which are never on the device, or run beside training
    "benchmark/train.py:Trainer._turn": "a permutation by numpy",
    "benchmark/train.py:Trainer.another": "a number from a generator on the CPU",
    "benchmark/train.py:Trainer._fetch": "lengths that the split holds as numpy's",
    "benchmark/train.py:Trainer._judge": "a report, whose values evaluation has fetched",
    "benchmark/models/spherical.py:scaled_bessel": "a constant, computed once by scipy",
    "benchmark/models/spherical.py:polar_angles": "a table, computed once by scipy",
    "benchmark/models/writing.py:Writing.draw": "writes sentences, until all have ended",
    "benchmark/models/writing.py:Writing.search": "writes sentences, until all have ended",
}
QUICKER = {  # stopping rules that look sooner
    "aggressive": ["method.window=2"],
    "stack": ["method.parts.aggressive.window=2"],
}
ON_THE_CPU = {  # functions that make a batch there, which is copied to the device without a wait
    *("benchmark/data/corpus.py:Split.batch", "benchmark/api.py:Batch.pin"),
}


class LeftTheDevice(AssertionError):
    """An operator made a tensor elsewhere, or waits for the device."""


class Watch(TorchDispatchMode):
    """Refuses every operator that makes a tensor off the device or waits for it. What a permitted
    read finds on `meta` grows from read to read, so that a rule that waits for a change ends."""

    def __init__(self, device: torch.device):
        super().__init__()
        self.device, self.reads = device, list[str]()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        on_device = any(self.holds(leaf) for leaf in tree_leaves((args, kwargs)))
        if func is torch.ops.aten._local_scalar_dense.default and on_device:
            if place() not in READS:
                raise LeftTheDevice(f"{func} in {place()} waits for the device")
            self.reads.append(place())
            if self.device.type == "meta":
                return float(len(self.reads))
            torch.cuda.set_sync_debug_mode("default")
            try:
                return func(*args, **(kwargs or {}))
            finally:
                torch.cuda.set_sync_debug_mode("error")
        if func.overloadpacket in INDEXING and self.index_waits(args):
            raise LeftTheDevice(f"{func} in {place()} waits for the device, to count a mask")
        if func.overloadpacket in COPYING and place() != "benchmark/api.py:Batch.to":
            source = args[func.overloadpacket is torch.ops.aten.copy_]
            if on_device != self.holds(source) or (not on_device and self.targeted(kwargs)):
                raise LeftTheDevice(f"{func} in {place()} copies to the device")
        try:
            made = func(*args, **(kwargs or {}))
        except (NotImplementedError, RuntimeError) as error:
            raise LeftTheDevice(f"{func} in {place()}: {error}") from error
        for tensor in tree_leaves(made):
            # a number wrapped as a tensor goes to any device as a kernel's argument
            stays = not isinstance(tensor, Tensor) or self.holds(tensor) or tensor.dim() == 0
            if not stays and place() not in ON_THE_CPU:
                shape = list(tensor.shape)
                raise LeftTheDevice(f"{func} in {place()} makes {shape} on {tensor.device}")
        return made

    def holds(self, value: Any) -> bool:
        return isinstance(value, Tensor) and value.device.type == self.device.type

    def targeted(self, kwargs: dict[str, Any] | None) -> bool:
        return getattr((kwargs or {}).get("device"), "type", None) == self.device.type

    def index_waits(self, args: tuple) -> bool:
        """Whether an index is a mask; one value for all of its places is filled in without."""
        filled = len(args) > 2 and args[2].numel() == 1
        masks = [index for index in args[1] if self.holds(index) and index.dtype == torch.bool]
        return bool(masks) and not filled


COPYING = {torch.ops.aten._to_copy, torch.ops.aten.copy_}
INDEXING = {torch.ops.aten.index, torch.ops.aten.index_put, torch.ops.aten.index_put_}


def place() -> str:
    """The function of this repository that calls an operator: file:Class.function."""
    frame = sys._getframe(1).f_back  # none in a thread of a GPU's backward pass
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if any(path.is_relative_to(ROOT / name) for name in ("benchmark", "methods", "tests")):
            name = frame.f_code.co_qualname.split(".<locals>")[0]
            return f"{path.relative_to(ROOT)}:{name}"
        frame = frame.f_back
    return "the backward pass"


@contextmanager
def watching(device: torch.device, watch: Watch | None = None) -> Iterator[Watch]:
    with ExitStack() as stack:
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("error")
            stack.callback(torch.cuda.set_sync_debug_mode, "default")
        yield stack.enter_context(watch or Watch(device))


@pytest.fixture(autouse=True)
def meta_as_a_gpu(monkeypatch):
    """torch refuses to be asked whether `meta` has autocast, and has its fused optimisers' kernels
    for it without knowing."""
    asked, fused = torch.is_autocast_enabled, optimizer._get_fused_kernels_supported_devices

    def is_enabled(*device: str) -> bool:
        return device != ("meta",) and asked(*device)

    monkeypatch.setattr(torch, "is_autocast_enabled", is_enabled)
    monkeypatch.setattr(
        optimizer, "_get_fused_kernels_supported_devices", lambda: [*fused(), "meta"]
    )


@contextmanager
def tried(method: str, device: str) -> Iterator[Subject]:
    (config,) = check.configure([f"method={method}", *QUICKER.get(method, ())])
    with subject(config) as found:
        found.device = torch.device(device)
        yield found


def step_watched(trainer: Trainer, steps: int = 2) -> Watch:
    """The first steps of each stage of training. How one stage becomes the next, by a checkpoint
    that is read from the disk, is not watched."""
    watch, begin = Watch(trainer.device), 0
    for end in trainer.ends:
        trainer.t = begin
        if begin:
            trainer._enter(trainer.stage + 1)
        if trainer.device.type == "cuda":
            trainer._advance()  # where libraries start, and wait
        with watching(trainer.device, watch):
            for _ in range(steps):
                trainer._advance()
        begin = end
    trainer._ahead.close()
    return watch


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", METHODS)
def test_neither_a_step_nor_an_evaluation_leaves_the_device(name, device):
    with tried(name, device) as found:
        trainer = found.trainer()
        trainer.placebo = trainer.model.latent != "none"
        watch = step_watched(trainer)
        assert trainer.stage == len(trainer.ends) - 1 and trainer.count["backwards"] >= 2
        reads = [where for where in READS if where.startswith("methods/aggressive")]
        read = {where for where in watch.reads if where.startswith("methods/")}
        assert read == (set(reads) if name in ("aggressive", "stack") else set())
        model = trainer.model.eval()
        batch = found.corpus.valid.batch(range(6)).to(found.device)
        rows = torch.arange(6, device=found.device)
        with torch.no_grad(), watching(found.device):
            noisy = batch.but(noise=Noise("valid", rows))
            draw = model.draw(noisy, 3)
            model.log_px(noisy, draw.z)
            model.posterior(noisy)
            if draw.z is not None:
                model.log_q(draw.z[:, 0], noisy)


@pytest.fixture(scope="module")
def plain():
    with tried("vae", "meta") as found:
        yield found


def from_the_cpu(draw, batch, t):
    return negative_elbo(draw, batch, t) + torch.zeros(3).to(batch.targets.device).sum()


def counted_by_numpy(draw, batch, t):
    lengths = torch.from_numpy(np.ones(len(batch)))
    return negative_elbo(draw, batch, t) + lengths.to(batch.targets.device).mean()


def number_copied(draw, batch, t):
    return negative_elbo(draw, batch, t) + torch.ones(()).to(batch.targets.device)


def by_mask(draw, batch, t):
    return negative_elbo(draw, batch, t) + draw.kl[draw.kl > 0.1].sum()


def if_large(draw, batch, t):
    loss = negative_elbo(draw, batch, t)
    return 2 * loss if loss > 1 else loss


def item_in_a_step(run):
    logs = joint_step(run)
    logs["loss"].item()
    return logs


def copied_in_a_step(run):
    logs = joint_step(run)
    return {name: value.cpu() for name, value in logs.items()}


class Noted(nn.Module):
    """A step that keeps its own number of steps on the CPU."""

    def forward(self, run):
        return joint_step(run) | {"share": torch.full((1,), run.t / run.steps)[0]}


@pytest.mark.parametrize(
    ("slot", "planted", "operator"),
    [
        ("objective", from_the_cpu, "aten.zeros.default in .*:from_the_cpu makes .3. on cpu"),
        ("objective", counted_by_numpy, "aten.lift_fresh.default in .*:counted_by_numpy makes"),
        ("objective", number_copied, "aten._to_copy.default in .*:number_copied copies"),
        ("objective", by_mask, "aten.index.Tensor in .*:by_mask waits"),
        ("objective", if_large, "aten._local_scalar_dense.default in .*:if_large waits"),
        ("step", item_in_a_step, "aten._local_scalar_dense.default in .*:item_in_a_step waits"),
        ("step", copied_in_a_step, "aten._to_copy.default in .*:copied_in_a_step"),
        ("step", Noted(), "aten.full.default in .*:Noted.forward makes .1. on cpu"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_what_leaves_the_device_is_named(slot, planted, operator, plain):
    trainer = plain.trainer()
    setattr(trainer, slot, planted)
    with pytest.raises(LeftTheDevice, match=operator), watching(plain.device):
        trainer._advance()


# -- the same in the source, where the device `meta` does not see it -------------------------------

FETCHES = {"item", "cpu", "tolist", "numpy", "nonzero"}
CONVERTS = {"float", "int", "bool"}
CREATES = {"tensor", "as_tensor", "from_numpy"}  # of torch: on the CPU first, and waited for


def waits(source: str) -> Iterator[tuple[str, str]]:
    """(function, expression) of all in a module that may wait for the device; a constructor may."""

    def visit(node: ast.AST, scope: tuple[str, ...]) -> Iterator[tuple[str, str]]:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            scope = (*scope, node.name)
        if scope[-1:] == ("__init__",):
            return
        if isinstance(node, ast.Call) and _may_wait(node):
            yield ".".join(scope), ast.unparse(node)
        if isinstance(node, ast.Subscript) and ast.unparse(node.value) != "Callable":
            parts = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
            if any(isinstance(part, ast.List) for part in parts):  # copied to the device
                yield ".".join(scope), ast.unparse(node)
        if isinstance(node, ast.If | ast.While | ast.IfExp | ast.Assert):
            for part in ast.walk(node.test):
                if isinstance(part, ast.Attribute) and part.attr in ("any", "all"):
                    yield ".".join(scope), ast.unparse(node.test)
        for child in ast.iter_child_nodes(node):
            yield from visit(child, scope)

    yield from visit(ast.parse(source), ())


def _may_wait(call: ast.Call) -> bool:
    match call.func:
        case ast.Attribute(ast.Name("torch"), name):
            return name in CREATES
        case ast.Attribute(_, name):
            return name in FETCHES or any(k.arg == "error_if_nonfinite" for k in call.keywords)
        case ast.Name(name):
            return name in CONVERTS and not all(isinstance(a, ast.Constant) for a in call.args)
    return False


def test_no_source_of_a_step_waits_for_the_device():
    files = [ROOT / "benchmark" / name for name in ("train.py", "objectives.py")]
    files += [*(ROOT / "benchmark/models").glob("*.py"), *(ROOT / "methods").glob("*.py")]
    found = {
        f"{file.relative_to(ROOT)}:{function}": expression
        for file in files
        for function, expression in waits(file.read_text())
    }
    permitted = READS.keys() | ELSEWHERE.keys()
    assert {place: why for place, why in found.items() if place not in permitted} == {}
    assert permitted - found.keys() == set(), "these need no permission any more"


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("x.item()", True),
        ("x.detach().cpu()", True),
        ("x.tolist()", True),
        ("x.numpy()", True),
        ("x.nonzero()", True),
        ("float(x.sum())", True),
        ("int(x)", True),
        ("bool(x > 0)", True),
        ("torch.tensor(alpha, device=x.device)", True),
        ("torch.from_numpy(x)", True),
        ("x[:, [0, 1]]", True),
        ("x[[0, 1]]", True),
        ("x[:, 0].view([3, 4])", False),
        ("3 if x.isnan().any() else 4", True),
        ("nn.utils.clip_grad_norm_(x, 5, error_if_nonfinite=True)", True),
        ("x.float() + float('inf')", False),
        ("torch.zeros(3, device=x.device).any()", False),
    ],
)
def test_what_waits_is_found_in_a_source(line, found):
    source = f"class A:\n    def f(self, x):\n        return [{line} for _ in x]"
    assert [function for function, _ in waits(source)] == ["A.f"] * found


# -- batches made ahead ----------------------------------------------------------------------------


class Observed(Sentences):
    """Notes which thread makes a batch; fails at one of them."""

    def __init__(self, fails_at: int | None = None):
        super().__init__()
        self.makers, self.fails_at = list[str](), fails_at

    def batch(self, rows: np.ndarray) -> Batch:
        self.makers.append(threading.current_thread().name.partition("_")[0])
        if len(self.makers) == self.fails_at:
            raise OSError("the data file is damaged")
        return super().batch(rows)


class Prefetching(Bench):
    """Trainers that make batches ahead, as they do for a GPU."""

    def trainer(self) -> Trainer:
        made = super().trainer()
        made.prefetch, made.split = True, Observed()
        return made


@pytest.fixture
def bench(tmp_path: Path, monkeypatch):
    """Makes benches; spares their small files the wait for the disk."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    with ExitStack() as leases, cells.one_thread():

        def make(kind: type[Bench], name: str) -> Bench:
            made = Cell("d", "m", "m", 0, f"{abs(hash(name)):012x}"[:12])
            directory = RunDirectory(made.path(tmp_path))
            directory.create(made, "")
            leases.enter_context(directory.lease())
            return kind(directory)

        yield make


def state(trainer: Trainer) -> dict[str, Any]:
    return {name: value for name, value in everything(trainer).items() if name != "prefetch"}


def threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("ahead")]


def test_training_is_the_same_with_batches_made_ahead(bench):
    """Counts, that are of batches taken, are part of what is compared."""
    usual = bench(Bench, "usual").go_on()
    ahead = bench(Prefetching, "ahead").go_on()
    assert differences(state(ahead), state(usual)) == []
    made = [maker == "ahead" for maker in ahead.split.makers]
    assert sum(made) == STEPS - 1, "all but the first are made ahead, and none beyond the last"
    assert len(made) == ahead.count["batches"], "none is made in vain"
    assert threads() == []


def test_a_stop_after_each_step_changes_nothing_with_batches_made_ahead(bench):
    usual, ahead = bench(Bench, "usual"), bench(Prefetching, "ahead")
    for stop in range(6, STEPS, 3):
        trainers = [b.go_on(lambda t, stop=stop: t == stop) for b in (usual, ahead)]
        assert differences(*map(state, trainers)) == [], f"stopped at step {stop}"
        assert threads() == []
    assert differences(state(ahead.go_on()), state(usual.go_on())) == []


def test_what_goes_wrong_in_the_thread_is_raised_by_the_step(bench):
    trainer = bench(Prefetching, "damaged").trainer()
    trainer.step = joint_step
    trainer.split = Observed(fails_at=4)
    with pytest.raises(OSError, match="damaged") as raised:
        trainer.train(STEPS, lambda: False, 1e9)
    assert trainer.t == 3 and trainer.split.makers[-1] == "ahead"
    assert traceback.extract_tb(raised.value.__traceback__)[-1].name == "batch"
    assert threads() == []


def test_a_wrong_guess_costs_no_more_than_the_work():
    made = list[int]()
    ahead = Ahead(lambda key: made.append(key) or -key)
    ahead.begin(1)
    assert ahead.take(1) == -1 and made == [1]
    ahead.begin(2)
    assert ahead.take(3) == -3 and ahead.take(2) == -2
    ahead.close()
    assert ahead.take(4) == -4 and threads() == []
    ahead.begin(5)
    assert ahead.take(5) == -5 and threads() != []
    del ahead  # a thread does not outlive who started it
    for thread in threading.enumerate():
        if thread.name.startswith("ahead"):
            thread.join(10)
    assert threads() == []


@pytest.mark.parametrize(("ending", "status"), [("pass", 0), ("sys.exit(3)", 3), ("1 / 0", 1)])
def test_a_batch_under_way_hinders_neither_a_fork_nor_an_exit(ending, status):
    script = f"""
        import os, sys, time
        from benchmark.data.prefetch import Ahead
        ahead = Ahead(lambda key: time.sleep(0.3))
        ahead.begin(0)
        child = os.fork()
        if not child:
            sys.exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        {ending}
    """
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], timeout=20, capture_output=True, cwd=ROOT
    )
    assert ended.returncode == status
    assert (b"Error" in ended.stderr) == (status == 1)
