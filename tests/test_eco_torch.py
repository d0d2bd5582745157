"""Converted models in what torch offers around a model: compilers of whole models and of repeated blocks,
export, selective checkpointing, distributed tensors, averaged copies."""

import copy
import functools
import io
import sys
from pathlib import Path

import pytest
import torch
import torch._dynamo
from checks import rng_untouched, same_bits
from torch import nn as tnn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from rad_kernels import Sketch, convert, functional, nn, ops

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))

import gpt
import llama
import resnet
import vit

QUARTER = Sketch(0.25)
TOKENS = torch.randint(65, (4, 32), generator=torch.Generator().manual_seed(1))
IMAGES = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
MODELS = {
    "gpt": (functools.partial(gpt.GPT, width=32, depth=1), TOKENS),
    "llama": (functools.partial(llama.Llama, width=32, depth=1), TOKENS),
    "vit": (functools.partial(vit.ViT, width=32, depth=1), IMAGES),
    "resnet": (functools.partial(resnet.ResNet, width=16, depth=1), IMAGES),
}


def seeded_step(net, x, call=None, seed=5):
    """The output and all gradients of one step."""
    net.zero_grad()
    torch.manual_seed(seed)
    y = (net if call is None else call)(x)
    y.square().mean().backward()
    return [y.detach(), *(p.grad.clone() for p in net.parameters() if p.grad is not None)]


# ---- compilers and export


@pytest.mark.parametrize("make", [gpt.GPT, llama.Llama])
def test_a_converted_model_compiles_whole_for_all_batches(make):
    torch._dynamo.reset()
    net, counter = convert(make(width=32, depth=1), QUARTER), CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(net, backend=counter, fullgraph=True, dynamic=True)
    for batch in (TOKENS, TOKENS[:3], TOKENS.repeat(5, 1), TOKENS[:2]):
        for a, b in zip(seeded_step(net, batch), seeded_step(net, batch, compiled), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)  # a bias is summed in another order
    assert counter.frame_count <= 2


def test_repeated_blocks_compile_once():
    """Regional compilation: four blocks, one graph, as many as of torch's own layers."""
    torch._dynamo.reset()
    counter, net = CompileCounterWithBackend("aot_eager"), convert(gpt.GPT(width=32, depth=4), QUARTER)
    eager = copy.deepcopy(net)
    for block in net.blocks:
        block.compile(backend=counter, fullgraph=True)
    assert all(map(same_bits, seeded_step(net, TOKENS), seeded_step(eager, TOKENS)))
    assert counter.frame_count == 1


@pytest.mark.parametrize("name", MODELS)
def test_a_converted_model_in_eval_mode_exports_to_torchs_ops(name):
    make, x = MODELS[name]
    net = convert(make(), QUARTER, example_inputs=x).eval()
    dynamic = None if name == "vit" else ({0: torch.export.Dim("batch", min=2)},)  # vit.py fixes its batch
    with rng_untouched():
        program = torch.export.export(net, (x,), dynamic_shapes=dynamic)
        assert same_bits(program.module()(x), net(x))
    assert dynamic is None or program.module()(x[:3]).shape[0] == 3
    called = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert not [target for target in called if "rad_kernels" in target]


# ---- selective checkpointing


class Everything(tnn.Module):
    """Layers of every family, each followed by torch's dropout: what draws keys must not shift it."""

    def __init__(self):
        super().__init__()
        self.linear, self.q, self.k = (nn.Linear(16, 16, sketch=QUARTER) for _ in range(3))
        self.norm, self.rms, self.act = nn.LayerNorm(16), nn.RMSNorm(16), nn.GELU()
        self.gate, self.drop, self.rnn = nn.SwiGLU(bits=4), nn.Dropout(0.5), nn.GRU(16, 16, sketch=QUARTER)
        self.conv = nn.Conv1d(16, 16, 3, padding=1, sketch=QUARTER)
        self.batch, self.group = nn.BatchNorm1d(16), nn.GroupNorm(4, 16)

    def forward(self, x):
        for layer in (self.linear, self.norm, self.rms, self.act, self.drop):
            x = tnn.functional.dropout(layer(x), 0.1)
        q, k = functional.shared_linear(x, [self.q.weight, self.k.weight], [None, None], QUARTER)
        x = tnn.functional.dropout(self.gate(q, k), 0.1)
        x = tnn.functional.dropout(self.rnn(x)[0], 0.1).transpose(1, 2)
        for layer in (self.conv, self.batch, self.group):
            x = tnn.functional.dropout(layer(x), 0.1)
        return functional.cross_entropy(x, torch.zeros_like(x[:, 0]).long(), bits=8)


class Seen(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.ops = set()

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        self.ops.add(op)
        return op(*args, **(kwargs or {}))


def selectively(net, saved):
    """net, checkpointed but for the outputs of the given ops."""

    def policy(ctx, op, *args, **kwargs):
        return CheckpointPolicy.MUST_SAVE if op in saved else CheckpointPolicy.PREFER_RECOMPUTE

    contexts = functools.partial(create_selective_checkpoint_contexts, policy)
    return lambda x: checkpoint(net, x, use_reentrant=False, context_fn=contexts)


def test_selective_checkpointing_keeps_the_random_numbers():
    """Whichever op's output is kept, alone or with all others, gradients are those without checkpointing, bit
    for bit. An op that drew its key itself would shift every mask that is drawn again after it."""
    net, x = Everything(), torch.randn(10, 16, 16)
    with Seen() as seen:
        expected = seeded_step(net, x)
    ours = [op for op in seen.ops if op.namespace == "rad_kernels"]
    drawing = [op for op in ours if any(a.name in ("key", "keys") for a in op._schema.arguments)]
    assert len(drawing) >= 9
    for saved in ([], *([op] for op in ours), ours, [torch.ops.aten.native_dropout.default]):
        found = seeded_step(net, x, selectively(net, saved))
        assert all(map(same_bits, found, expected)), saved


# ---- tensors and processes of distributed programs


def test_tensor_parallel_layers_are_refused_by_name(tmp_path):
    dist = torch.distributed
    if not dist.is_available():
        pytest.skip("torch was built without distributed")
    from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        net, x = tnn.Sequential(tnn.Linear(16, 16), tnn.GELU(), tnn.Linear(16, 4)), torch.randn(40, 16)
        convert(net, QUARTER, include=tnn.Linear)
        parallelize_module(net, dist.init_device_mesh("cpu", (1,)), {"0": ColwiseParallel()})
        with pytest.raises(TypeError, match=r"got a DTensor: layers that tensor parallelism splits"):
            net(x)
        assert net.eval()(x).shape == (40, 4)
    finally:
        dist.destroy_process_group()


def test_the_salt_waits_for_the_rank(monkeypatch):
    """A process that runs layers before it joins its group has the rank as salt from then on."""
    for name in ("RANK", "RAD_KERNELS_SALT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(ops.salt, "resolved", None)
    ops.salt._of_environment.cache_clear()
    try:
        assert ops.rank_salt() == 0
        monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
        monkeypatch.setattr(torch.distributed, "get_rank", lambda: 3)
        assert ops.rank_salt() == 3
        monkeypatch.setattr(torch.distributed, "get_rank", lambda: 4)
        assert ops.rank_salt() == 3
        monkeypatch.setattr(ops.salt, "resolved", None)
        monkeypatch.setenv("RAD_KERNELS_SALT", "7")
        ops.salt._of_environment.cache_clear()
        assert ops.rank_salt() == 7
    finally:
        ops.salt._of_environment.cache_clear()


# ---- copies


def test_averaged_and_saved_models_train_as_the_original():
    net = convert(llama.Llama(width=32, depth=1), QUARTER, example_inputs=TOKENS)
    assert net.rad_report.shared
    expected = seeded_step(net, TOKENS)
    average = torch.optim.swa_utils.AveragedModel(
        net, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.5)
    )
    average.update_parameters(net)
    assert all(map(same_bits, seeded_step(average.module, TOKENS), expected))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(1)
    average.update_parameters(net)
    before = dict(copy.deepcopy(average.module).named_parameters())
    for name, parameter in net.named_parameters():
        torch.testing.assert_close(before[name], parameter - 0.5, rtol=1e-5, atol=1e-5)
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert all(map(same_bits, seeded_step(loaded, TOKENS), seeded_step(net, TOKENS)))
