"""Two processes that train one converted model together, for test_eco_distributed.py: eco_ranks.py DIR.

Each rank writes what it saw to DIR/RANK.json. torch is imported once, before the fork.
"""

from __future__ import annotations

import copy
import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from checks import CODES, revealed_sample
from torch import Tensor
from torch import nn as tnn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

from rad_kernels import Sketch, convert, nn, ops

QUARTER = Sketch(0.25)


def network() -> tnn.Sequential:
    torch.manual_seed(1)
    return tnn.Sequential(
        tnn.Linear(16, 32), tnn.GELU(), tnn.LayerNorm(32), tnn.Linear(32, 16), tnn.Linear(16, 4)
    )


def data(rank: int, steps: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(10 + rank)
    return [torch.randn(40, 16, generator=generator) for _ in range(steps)]


def own_sample(salt: int | None) -> list[float]:
    """The rows that a layer keeps: all ranks have one seed."""
    ops.salt.resolved = salt
    layer = nn.Linear(16, 16, bias=False, sketch=QUARTER)
    tnn.init.eye_(layer.weight)
    torch.manual_seed(5)
    layer(CODES).backward(torch.eye(16))
    ops.salt.resolved = None
    return revealed_sample(layer.weight.grad, QUARTER)[:, 0].tolist()


def gradients(net: tnn.Module) -> list[Tensor]:
    return [p.grad.full_tensor() if hasattr(p.grad, "full_tensor") else p.grad for p in net.parameters()]


def averaged(tensors: list[Tensor]) -> list[Tensor]:
    """The mean over ranks, as DDP takes it."""
    tensors = [t.clone() for t in tensors]
    for tensor in tensors:
        dist.all_reduce(tensor.div_(2))
    return tensors


def summed_steps(net: tnn.Module, batches: list[Tensor]) -> list[Tensor]:
    """Gradients of two micro-batches without any wrapper, each with a sample of its own."""
    torch.manual_seed(7)
    for x in batches:
        net(x).square().mean().backward()
    return averaged(gradients(net))


def error(a: list[Tensor], b: list[Tensor]) -> float:
    """Of the whole gradient, relative to b."""
    one, other = (torch.cat([t.detach().flatten().double() for t in tensors]) for tensors in (a, b))
    return ((one - other).norm() / other.norm()).item()


def with_ddp(rank: int) -> dict[str, float]:
    """Accumulation under no_sync gives what the plain model gives, averaged."""
    net, batches = convert(network(), QUARTER), data(rank, 2)
    expected = summed_steps(copy.deepcopy(net), batches)
    ddp = DistributedDataParallel(net)
    torch.manual_seed(7)
    with ddp.no_sync():
        ddp(batches[0]).square().mean().backward()
    ddp(batches[1]).square().mean().backward()
    return {"ddp accumulates": error(gradients(net), expected)}


def with_fsdp(rank: int) -> dict[str, float]:
    net, batches = convert(network(), QUARTER), data(rank, 2)
    expected = summed_steps(copy.deepcopy(net), batches)
    mesh, found = dist.init_device_mesh("cpu", (2,)), {}
    for name, dtype in (("fsdp2", None), ("fsdp2 in bfloat16", torch.bfloat16)):
        policy = MixedPrecisionPolicy(param_dtype=dtype)
        sharded = copy.deepcopy(net)
        for part in (sharded[0], sharded[3], sharded):
            fully_shard(part, mesh=mesh, mp_policy=policy)
        torch.manual_seed(7)
        for i, x in enumerate(batches):
            sharded.set_requires_gradient_sync(i == 1)
            sharded(x).square().mean().backward()
        found[name] = error(gradients(sharded), expected)
    return found


def resumed(rank: int, folder: Path) -> dict[str, float]:
    """Two steps, a checkpoint, two more: the last two again from the file end with the same bits."""
    net, batches = DistributedDataParallel(convert(network(), QUARTER)), data(rank, 4)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)

    def train(batches: list[Tensor]) -> list[Tensor]:
        for x in batches:
            optimizer.zero_grad()
            net(x).square().mean().backward()
            optimizer.step()
        return [p.detach().clone() for p in net.parameters()]

    torch.manual_seed(7)
    train(batches[:2])
    state = {"net": net.state_dict(), "optimizer": optimizer.state_dict(), "rng": torch.get_rng_state()}
    torch.save(state, folder / f"{rank}.pt")
    expected = train(batches[2:])
    torch.manual_seed(8)
    state = torch.load(folder / f"{rank}.pt")
    net.load_state_dict(state["net"])
    optimizer.load_state_dict(state["optimizer"])
    torch.set_rng_state(state["rng"])
    return {"resumes": error(train(batches[2:]), expected)}


def rank_main(rank: int, folder: Path) -> None:
    convert(
        network(), QUARTER, example_inputs=data(rank, 1)[0]
    )  # before there is a group: no rank is known yet
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    found = {"salt": ops.rank_salt(), "own": own_sample(None), "shared": own_sample(7)}
    found |= with_ddp(rank) | with_fsdp(rank) | resumed(rank, folder)
    (folder / f"{rank}.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


def main() -> None:
    folder = Path(sys.argv[1])
    for name in ("RANK", "RAD_KERNELS_SALT"):
        os.environ.pop(name, None)
    torch.set_num_threads(1)
    children = []
    for rank in range(2):
        if (child := os.fork()) == 0:
            rank_main(rank, folder)
            os._exit(0)
        children.append(child)
    sys.exit(any(os.waitpid(child, 0)[1] for child in children))


if __name__ == "__main__":
    main()
