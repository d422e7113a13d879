"""Triton's kernels on machines where they cannot run, or run wrongly: training and prediction go on.

Without a GPU the kernels run in Triton's interpreter (see conftest), and a CPU takes the paths of a GPU.
"""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.data import DataLoader

from nnunet_deconver.networks import Deconver
from nnunet_deconver.ops import assume_device, device, explain_backend, nonnegative_deconvolution
from nnunet_deconver.ops.nonnegative_deconvolution import (
    backends,
    triton_check,
    triton_kernels,
    triton_machine,
    triton_update,
)

pytestmark = pytest.mark.skipif(triton_machine.TRITON_OBSTACLE is not None, reason=str(triton_machine.TRITON_OBSTACLE))


def forget():
    """Every device as in a new process."""
    for known in (backends._said, triton_check._tried, triton_check._failures):
        known.clear()
    triton_machine.machine_obstacle.cache_clear()
    triton_machine.use_writable_cache.cache_clear()


@pytest.fixture(
    params=[
        pytest.param("cpu", marks=pytest.mark.skipif(not triton_update.INTERPRETED, reason="Triton has a GPU here")),
        pytest.param("cuda", marks=pytest.mark.gpu),
    ]
)
def gpu(request, monkeypatch):
    """A device that is worked with as a GPU is, of a machine that has everything."""
    forget()
    if request.param == "cpu":
        monkeypatch.setitem(device._POLICIES, "cpu", device._POLICIES["cuda"])
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    yield request.param
    forget()


def raises(error):
    def run(*arguments, **keywords):
        raise error

    return run


def changed(name, change):
    """The function of that name of the kernels, with something done to what it returns."""
    right = getattr(triton_kernels, name)
    return lambda *arguments: change(right(*arguments))


def no_compiler(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CC", raising=False)


def no_such_compiler(monkeypatch, tmp_path):
    monkeypatch.setenv("CC", "no-such-compiler")


def no_headers(monkeypatch, tmp_path):
    monkeypatch.setattr(triton_machine, "_python_headers", lambda: tmp_path)


def old_gpu(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))


def rocm(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.version, "hip", "6.4")


def no_cache(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "file" / "cache"))
    monkeypatch.setattr(triton_machine.tempfile, "gettempdir", raises(FileNotFoundError("no usable folder")))


MACHINES = {
    "no compiler": (no_compiler, "Triton needs a C compiler, and there is no gcc or clang; install gcc"),
    "CC names none": (no_such_compiler, "a C compiler, and CC names no-such-compiler, which is none"),
    "no headers": (no_headers, "has no Python.h; install them"),
    "old GPU": (old_gpu, "compute capability 7.5, and Triton supports 8.0"),
    "ROCm": (rocm, "PyTorch is built for ROCm"),
    "nowhere to write": (no_cache, "set TRITON_CACHE_DIR to a folder that can"),
}

KERNELS = {
    "raise at launch": ("_launch", lambda: raises(RuntimeError("Failed to find C compiler.\nSee there"))),
    "raise when compiled": ("_launch", lambda: raises(ImportError("libcuda.so cannot found!"))),
    "wrong forward": ("update", lambda: changed("update", lambda out: out.mul_(1.001))),
    "wrong gradient": ("differentiate", lambda: changed("differentiate", lambda out: (out[0].neg_(), *out[1:]))),
    "NaN": ("update", lambda: changed("update", lambda out: out.index_fill_(-1, torch.tensor([0]), float("nan")))),
}


def train_and_predict(network: nn.Module, device: str):
    """A training step and a prediction; every parameter changes and everything is finite."""
    network.to(device)
    before = [parameter.clone() for parameter in network.parameters()]
    optimizer = torch.optim.AdamW(network.parameters(), 1e-2)
    x = torch.randn(1, 1, 8, generator=torch.Generator().manual_seed(0)).to(device)
    sum(output.square().mean() for output in network.train()(x)).backward()
    gradients = [parameter.grad.clone() for parameter in network.parameters()]
    optimizer.step()
    assert all((a != b).any() for a, b in zip(network.parameters(), before, strict=True))
    network.eval()
    network.decoder.deep_supervision = False
    with torch.no_grad():
        prediction = network(x)
    assert prediction.isfinite().all()
    return gradients, prediction


def network(**options) -> nn.Module:
    torch.manual_seed(0)
    return Deconver(1, 2, (2, 4), nn.Conv1d, 3, (1, 2), 2, deep_supervision=True, **options)


def assert_trains_as_the_plain_path_does(gpu, caplog, reason: str):
    with caplog.at_level(logging.INFO, "nnunet_deconver"):
        found = train_and_predict(network(), gpu)
    expected = train_and_predict(network(backend="plain"), gpu)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)
    (said,) = [record.getMessage() for record in caplog.records]
    assert "slower plain path" in said
    assert reason in said


@pytest.mark.parametrize("machine", MACHINES)
def test_a_network_trains_and_predicts_where_triton_cannot_run(gpu, machine, monkeypatch, tmp_path, caplog):
    prepare, reason = MACHINES[machine]
    prepare(monkeypatch, tmp_path)
    for name in ("update", "differentiate"):  # nothing may come to them
        monkeypatch.setattr(triton_kernels, name, raises(AssertionError("launched")))
    assert_trains_as_the_plain_path_does(gpu, caplog, reason)
    path, why = explain_backend(gpu)
    assert path == "plain"
    assert reason in why


@pytest.mark.parametrize("kind", KERNELS)
def test_a_network_trains_and_predicts_where_kernels_do_not_work(gpu, kind, monkeypatch, caplog):
    name, broken = KERNELS[kind]
    monkeypatch.setattr(triton_kernels, name, broken())
    reason = {
        "raise at launch": "RuntimeError: Failed to find C compiler.)",
        "raise when compiled": "ImportError: libcuda.so cannot found!)",
        "wrong forward": "the result differs by 1.0e-03 of its size",
        "wrong gradient": "the gradient of x differs by 2.0e+00",
        "NaN": "the result differs by nan",
    }[kind]
    assert_trains_as_the_plain_path_does(gpu, caplog, reason)
    path, why = explain_backend(gpu)
    assert path == "plain"
    assert "tried on" in why and reason.rstrip(")") in why


def test_a_network_trains_and_predicts_with_kernels_that_work(gpu, caplog):
    with caplog.at_level(logging.INFO, "nnunet_deconver"):
        found = train_and_predict(network(), gpu)
    assert not caplog.records and not triton_check._failures
    assert len(triton_check._tried) == 1  # of both stages: groups are alike
    torch.testing.assert_close(found, train_and_predict(network(backend="plain"), gpu), rtol=1e-3, atol=1e-5)


def test_a_kernel_that_fails_after_its_check_gives_way(gpu, monkeypatch, caplog):
    x, source, filter = problem(gpu)
    expected = nonnegative_deconvolution(x, source, filter, groups=2)
    assert len(triton_check._tried) == 1 and not caplog.records
    monkeypatch.setattr(triton_kernels, "update", raises(RuntimeError("out of resource: shared memory")))
    torch.testing.assert_close(nonnegative_deconvolution(x, source, filter, groups=2), expected)
    assert "RuntimeError: out of resource: shared memory" in caplog.text


def problem(device, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    shapes = (1, 2, 5), (1, 4, 5), (2, 2, 3)
    return [torch.rand(shape, generator=generator).to(device, dtype).requires_grad_() for shape in shapes]


@pytest.mark.parametrize("where", ["check", "launch"])
def test_a_lack_of_memory_is_no_defect(gpu, monkeypatch, caplog, where):
    """It is the caller's to handle, and the kernels are not given up for it."""
    x, source, filter = problem(gpu)
    if where == "launch":
        nonnegative_deconvolution(x, source, filter, groups=2)
    with monkeypatch.context() as patch:
        patch.setattr(triton_kernels, "update", raises(torch.cuda.OutOfMemoryError("CUDA out of memory")))
        with pytest.raises(torch.cuda.OutOfMemoryError):
            nonnegative_deconvolution(x, source, filter, groups=2)
    nonnegative_deconvolution(x, source, filter, groups=2)
    assert not caplog.records and not triton_check._failures


@pytest.mark.parametrize(
    "dtype, off", [(torch.float32, 1e-4), (torch.float16, 4e-3), (torch.bfloat16, 3e-2)], ids=lambda value: str(value)
)
@pytest.mark.parametrize("part", range(4), ids=["result", "x", "source", "filter"])
def test_the_check_notices_small_errors_of_every_result(gpu, monkeypatch, dtype, off, part):
    x, source, filter = problem(gpu, dtype)
    assert triton_check.failure(x, source, filter, groups=2) is None
    forget()
    if part == 0:
        wrong = changed("update", lambda out: out * (1 + off))
    else:
        wrong = changed("differentiate", lambda out: [t * (1 + off * (i + 1 == part)) for i, t in enumerate(out)])
    monkeypatch.setattr(triton_kernels, "differentiate" if part else "update", wrong)
    name = ("the result", "the gradient of x", "the gradient of the source", "the gradient of the filter")[part]
    assert f"{name} differs by" in triton_check.failure(x, source, filter, groups=2)


def test_each_kind_of_problem_is_tried_once(gpu, monkeypatch):
    tried = []
    monkeypatch.setattr(triton_check, "_what_is_wrong", lambda kind: tried.append(kind))
    x, source, filter = problem(gpu)
    for _ in range(2):
        nonnegative_deconvolution(x, source, filter, groups=2).sum().backward()
        nonnegative_deconvolution(x.half(), source.half(), filter, groups=2)
        nonnegative_deconvolution(x, source, filter.new_ones(2, 2, 1), groups=2)
        nonnegative_deconvolution(x, source, filter.new_ones(2, 4, 3), groups=1)
    assert [(kind.dtypes[0], kind.channels, kind.kernel, kind.sources) for kind in tried] == [
        (torch.float32, 1, (3,), 2),
        (torch.float16, 1, (3,), 2),
        (torch.float32, 1, (1,), 2),
        (torch.float32, 2, (3,), 4),
    ]


@pytest.mark.parametrize("by", ["argument", "variable"])
def test_kernels_that_are_asked_for_by_name_run_or_raise(gpu, monkeypatch, tmp_path, by):
    no_compiler(monkeypatch, tmp_path)
    monkeypatch.setattr(triton_kernels, "update", raises(RuntimeError("the whole error")))
    if by == "variable":
        monkeypatch.setattr(backends, "_named", "triton")
    with pytest.raises(RuntimeError, match="the whole error"):
        nonnegative_deconvolution(*problem(gpu), groups=2, backend="triton" if by == "argument" else None)
    assert not triton_check._tried


def test_plans_are_made_for_a_gpu_that_has_everything(gpu, monkeypatch, tmp_path, caplog):
    no_compiler(monkeypatch, tmp_path)
    old_gpu(monkeypatch, tmp_path)
    tensors = problem("cpu")
    with assume_device("cuda"):
        assert backends._choose(*tensors, 2, 1).name == "triton"
    with FakeTensorMode() as mode:
        assert backends._choose(*map(mode.from_tensor, tensors), 2, 1).name == "triton"
    assert not caplog.records


@pytest.mark.parametrize("broken", [False, True], ids=["works", "broken"])
def test_compiled_without_a_graph_break_and_without_a_check_while_tracing(gpu, monkeypatch, caplog, broken):
    tracing = []
    look = triton_check._what_is_wrong

    def recorded(kind):
        tracing.append(torch.compiler.is_compiling())
        return look(kind)

    monkeypatch.setattr(triton_check, "_what_is_wrong", recorded)
    tensors = problem(gpu)
    expected = nonnegative_deconvolution(*tensors, groups=2, backend="plain")
    wanted = torch.autograd.grad(expected.square().sum(), tensors)
    if broken:
        monkeypatch.setattr(triton_kernels, "_launch", raises(RuntimeError("no launch")))

    compiled = torch.compile(
        lambda x, source, filter: nonnegative_deconvolution(x, source, filter, groups=2),
        fullgraph=True,
        backend="inductor" if gpu == "cuda" else "aot_eager",
    )
    found = compiled(*tensors)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found.square().sum(), tensors), wanted)
    assert tracing == [False]
    assert caplog.text.count("no launch") == broken


def test_the_obstacle_is_found_while_compiling(gpu, monkeypatch, tmp_path, caplog):
    old_gpu(monkeypatch, tmp_path)
    tensors = problem(gpu)
    compiled = torch.compile(
        lambda x, source, filter: nonnegative_deconvolution(x, source, filter, groups=2),
        fullgraph=True,
        backend="inductor" if gpu == "cuda" else "aot_eager",
    )
    expected = nonnegative_deconvolution(*tensors, groups=2, backend="plain")
    torch.testing.assert_close(compiled(*tensors), expected)
    assert caplog.text.count("compute capability 7.5") == 1


class Updates(torch.utils.data.Dataset):
    """An update in a worker of a DataLoader."""

    def __len__(self):
        return 2

    def __getitem__(self, index):
        with torch.no_grad():
            return nonnegative_deconvolution(*problem("cpu"), groups=2)


@pytest.mark.skipif(not triton_update.INTERPRETED, reason="a worker that was forked has no GPU")
@pytest.mark.parametrize("broken", [False, True], ids=["works", "broken"])
def test_workers_that_were_forked_decide_for_themselves(monkeypatch, broken):
    forget()
    monkeypatch.setitem(device._POLICIES, "cpu", device._POLICIES["cuda"])
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    expected = nonnegative_deconvolution(*problem("cpu"), groups=2)
    forget()
    if broken:
        monkeypatch.setattr(triton_kernels, "_launch", raises(RuntimeError("no launch")))
    for found in DataLoader(Updates(), num_workers=2, multiprocessing_context="fork"):
        torch.testing.assert_close(found[0], expected.detach())
    assert not triton_check._tried and not triton_check._failures
    forget()


def test_a_cache_that_cannot_be_written_is_replaced(monkeypatch, tmp_path, caplog):
    from triton.runtime.cache import get_cache_manager

    forget()
    monkeypatch.setattr(triton_machine, "INTERPRETED", False)
    (tmp_path / "file").touch()
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "file" / "cache"))
    with pytest.raises(NotADirectoryError):
        get_cache_manager("ab").put(b"compiled", "kernel")
    for _ in range(2):
        triton_machine.use_writable_cache()
    replaced = os.environ["TRITON_CACHE_DIR"]
    assert get_cache_manager("ab").put(b"compiled", "kernel").startswith(replaced)
    (said,) = [record.getMessage() for record in caplog.records]
    assert f"{tmp_path / 'file' / 'cache'} cannot be written" in said and replaced in said
    forget()


def test_a_cache_that_can_be_written_stays(monkeypatch, tmp_path, caplog):
    forget()
    monkeypatch.setattr(triton_machine, "INTERPRETED", False)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "new" / "cache"))
    triton_machine.use_writable_cache()
    assert os.environ["TRITON_CACHE_DIR"] == str(tmp_path / "new" / "cache")
    monkeypatch.delenv("TRITON_CACHE_DIR")
    monkeypatch.setenv("TRITON_HOME", str(tmp_path))
    assert triton_machine._cache_folder() == tmp_path / ".triton" / "cache"
    assert not caplog.records
    forget()


@pytest.mark.skipif(torch.cuda.is_available(), reason="Triton has a GPU here")
def test_what_triton_itself_raises_is_no_end(tmp_path):
    """In a process of its own, since here Triton interprets."""
    script = """
import torch
from torch import nn

from nnunet_deconver.networks import Deconver
from nnunet_deconver.ops import device
from nnunet_deconver.ops.nonnegative_deconvolution import triton_update

device._POLICIES["cpu"] = device._POLICIES["cuda"]
torch.cuda.get_device_capability = lambda device: (9, 0)
triton_update.INTERPRETED = True  # which lets tensors on a CPU through, and nothing else
network = Deconver(1, 2, (2, 4), nn.Conv1d, 3, (1, 2), 2)
network(torch.randn(1, 1, 8)).sum().backward()
assert all(parameter.grad.isfinite().all() for parameter in network.decoder.stages.parameters())
"""
    environment = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("slower plain path") == 1, done.stderr
    assert "RuntimeError: " in done.stderr and "driver" in done.stderr


@pytest.mark.gpu
def test_this_gpu_runs_the_kernels():
    forget()
    assert triton_machine.machine_obstacle("cuda:0") is None
    assert explain_backend("cuda") == ("triton", None)


@pytest.mark.slow
def test_processes_of_a_distributed_training_may_take_different_paths(tmp_path: Path):
    """The kernels of one of two processes are broken: their gradients are averaged all the same."""
    worker = Path(__file__).with_name("distributed_check.py")
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    subprocess.run([sys.executable, str(worker), str(tmp_path)], check=True, env=environment)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert first["failures"] == 0 and second["failures"] == 1
    for name, gradient in first["gradients"].items():
        assert torch.equal(gradient, second["gradients"][name])
        torch.testing.assert_close(gradient, first["alone"][name], rtol=1e-3, atol=1e-6)
