"""Tensor parallelism: the processes of a group share every matrix, and between the matrices the positions.

Megatron's layout (Shoeybi et al. 2019, https://arxiv.org/abs/1909.08053) with sequence parallelism (Korthikanti et al.
2022, https://arxiv.org/abs/2205.05198), made of torch's own parallel styles. A process has

1. of the embedding a part of the vocabulary, and gives away the sums of all positions but its own;
2. of norms, residual sums and the loss its own positions: consecutive ones, equally many on each process;
3. of `qkv` and the feed-forward's first matrices a part of the rows, over all positions, which are gathered for them;
4. of both `proj` a part of the columns, whose sums are again given away by position;
5. of the head a part of the vocabulary, gathered for the loss.

Between 3 and 4 attention works on whole heads. litgpt keeps queries, keys and values in one matrix, so that the rows of
a process, consecutive as in every checkpoint, are not those of its heads: `HeadExchange` swaps their outputs.
"""

import torch
from litgpt.config import Config
from torch import Tensor, nn
from torch.distributed._functional_collectives import all_reduce, all_to_all_single_autograd
from torch.distributed.device_mesh import DeviceMesh


def sharing_problems(config: Config, processes: int, positions: int) -> list[str]:
    """Why `processes` cannot share a model of this config over forward passes of `positions`; empty if they can."""
    if config.mlp_class_name == "LLaMAMoE":
        return ["experts are not shared out"]
    if config.norm_qk:
        return ["norms of queries and keys are not shared out"]
    if config.rotary_percentage == 0:
        return ["learned positions are not shared out"]
    counts = {
        "attention heads": config.n_head,
        "key and value heads": config.n_query_groups,
        "hidden units of the feed-forward": config.intermediate_size,
        "entries of the vocabulary": config.padded_vocab_size,
        "positions of a micro-batch": positions,
    }
    return [f"{count} {name}" for name, count in counts.items() if count % processes]


class HeadExchange:
    """From a process's rows of the outputs of `qkv` to the queries, keys and values of its heads.

    A process sends another up to three runs of its consecutive rows (queries, keys, values); what it receives, in the
    order of the senders, is in the order of the whole matrix.
    """

    def __init__(self, config: Config, mesh: DeviceMesh) -> None:
        self._group, processes, own = mesh.get_group(), mesh.size(), mesh.get_local_rank()
        counts = (config.n_head, config.n_query_groups, config.n_query_groups)
        owners = torch.cat([torch.arange(count) // (count // processes) for count in counts])
        by_sender = owners.repeat_interleave(config.head_size).chunk(processes)
        self._order = _runs(by_sender[own].argsort(stable=True).tolist())
        self._sent = by_sender[own].bincount(minlength=processes).tolist()
        self._received = [int((receivers == own).sum()) for receivers in by_sender]

    def __call__(self, qkv: Tensor) -> Tensor:
        """[1, positions, rows] → the same shape: queries, keys and values of this process's heads."""
        rows = qkv.squeeze(0).T
        sent = torch.cat([rows[run] for run in self._order])
        return all_to_all_single_autograd(sent, self._received, self._sent, self._group).T.contiguous().unsqueeze(0)


def _runs(numbers: list[int]) -> list[slice]:
    """The longest slices that, one after the other, give `numbers`."""
    runs: list[slice] = []
    for number in numbers:
        if runs and number == runs[-1].stop:
            runs[-1] = slice(runs[-1].start, number + 1)
        else:
            runs.append(slice(number, number + 1))
    return runs


def share_model(model: nn.Module, mesh: DeviceMesh) -> None:
    """Makes the parameters of an `empty_model` DTensors of `mesh`, in place, with the same names and shapes."""
    # 519 modules and 0.7 s, where processes share a model alone
    from torch.distributed.tensor import Replicate, Shard, parallel

    rows = parallel.ColwiseParallel(input_layouts=Shard(1))
    columns = parallel.RowwiseParallel(output_layouts=Shard(1))
    between = parallel.SequenceParallel(use_local_output=True)
    for block in model.transformer.h:
        gathered_once = parallel.PrepareModuleInput(input_layouts=(Shard(1),), desired_input_layouts=(Replicate(),))
        plan = {"attn.qkv": rows, "attn.proj": columns, "mlp": gathered_once, "mlp.proj": columns}
        for name, _ in block.mlp.named_children():
            if name != "proj":
                plan[f"mlp.{name}"] = parallel.ColwiseParallel()
        for name, norm in block.named_children():
            if "norm" in name and list(norm.parameters()):
                plan[name] = between
        parallel.parallelize_module(block, mesh, plan)
        block.attn.exchange = HeadExchange(block.config, mesh)
    by_position = parallel.RowwiseParallel(input_layouts=Replicate(), output_layouts=Shard(1))
    outside = {"transformer.wte": by_position, "transformer.ln_f": between, "lm_head": rows}
    parallel.parallelize_module(model, mesh, outside)
    # a block that torch.compile has made loses the gradient of an input that is still on its way (torch 2.13)
    model.transformer.wte.register_forward_hook(lambda _module, _inputs, sums: sums.clone())
    model.sharing = (mesh.get_local_rank(), mesh.size())
    model.add_up = lambda tensor: all_reduce(tensor, "sum", mesh.get_group())


def gathered(parameter: Tensor) -> Tensor:
    """A shared parameter whole; its gradient is the sum of what the processes find on their positions."""
    if not hasattr(parameter, "placements"):  # not a DTensor
        return parameter
    from torch.distributed.tensor import Partial, Replicate  # 0.7 s, where processes share a model alone

    return parameter.redistribute(placements=[Replicate()]).to_local(grad_placements=[Partial()])
