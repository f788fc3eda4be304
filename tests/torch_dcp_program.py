"""Saves distributed checkpoints with torch: ``python torch_dcp_program.py FOLDER RANKS``. Also makes what they should hold."""

import os
import sys
from typing import Any

import torch
import torch.distributed
import torch.distributed.checkpoint as dcp
import torch.multiprocessing
from torch.distributed.checkpoint.state_dict import get_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_tensor


def plain() -> dict[str, Any]:
    """Without any process group."""
    grid = torch.arange(24.0).reshape(4, 6)
    nested = [torch.zeros(2), {"x": 7, "raw": b"\xff"}]
    more = {"step": 12, "none": None, "zero": torch.zeros(0, 3)}
    return {"w": grid, "t": grid.t().contiguous(), "list": [1, "two", 3.0], "mixed": nested, **more}


def run(rank: int, size: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=size)
    mesh = init_device_mesh("cpu", (size,))
    torch.manual_seed(0)
    rows, columns = torch.randn(10, 7), torch.randn(6, 9).double()
    model: dict[str, Any] = {
        "rows": distribute_tensor(rows, mesh, [Shard(0)]),
        "columns": distribute_tensor(columns, mesh, [Shard(1)]),
        "same": distribute_tensor(torch.ones(4).bfloat16(), mesh, [Replicate()]),
        "short": distribute_tensor(torch.ones(1, 2), mesh, [Shard(0)]),  # some ranks have none of it
        "float8": torch.ones(3).to(torch.float8_e4m3fn),
    }
    dcp.save({"model": model, "step": 3}, checkpoint_id=f"{folder}/dtensor")
    if size == 4:
        grid = init_device_mesh("cpu", (2, 2))
        dcp.save({"rows": distribute_tensor(rows, grid, [Shard(0), Shard(1)])}, checkpoint_id=f"{folder}/grid")
    layers = torch.nn.Sequential(torch.nn.Linear(5, 6), torch.nn.Linear(6, 3))
    fully_shard(layers, mesh=mesh)
    optimizer = torch.optim.AdamW(layers.parameters())
    layers(torch.ones(2, 5)).sum().backward()
    optimizer.step()
    weights, state = get_state_dict(layers, optimizer)
    dcp.save({"model": weights, "optimizer": state}, checkpoint_id=f"{folder}/fsdp")
    whole = {name: value.full_tensor() for name, value in weights.items()}
    moments = {name: value["exp_avg"].full_tensor() for name, value in state["state"].items()}
    if rank == 0:
        torch.save({"rows": rows, "columns": columns, "weights": whole, "moments": moments}, f"{folder}/expected.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    target, ranks = sys.argv[1], int(sys.argv[2])
    os.makedirs(target, exist_ok=True)
    dcp.save(plain(), checkpoint_id=f"{target}/plain", no_dist=True)
    torch.multiprocessing.start_processes(run, (ranks, target), nprocs=ranks, start_method="fork")
