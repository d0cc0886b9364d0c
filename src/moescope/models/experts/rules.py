"""How each kind of mixture-of-experts layer tells which experts it uses.

Nearly all call one module with (hidden, ids, weights); a pre-hook there sees the dispatch itself. The others have a rule of
their own below. A rule says where it applies, how to listen, how many experts there are, what one expert computes, and what
the experts together gave, so that the dispatch can be checked against the layer.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

Emit = Callable[[Tensor, Tensor, Tensor], None]
"""``emit(hidden (N, D), ids (N, K), weights (N, K))``; an id of -1 is a slot without an expert."""


class Rule(Protocol):
    """One kind of layer."""

    weight_on: str
    """"output" where an expert's output is multiplied by the weight, "input" where its input is"""
    mixes_tokens: bool
    """the experts of one token depend on the other tokens of the batch, padding included"""

    def applies(self, module: nn.Module) -> bool:
        """Whether ``module`` is one that this rule listens to."""
        ...

    def n_experts(self, module: nn.Module) -> int: ...

    def listen(self, module: nn.Module, emit: Emit) -> list[RemovableHandle]:
        """Call ``emit`` at each forward pass."""
        ...

    def expert(self, module: nn.Module, number: int, x: Tensor) -> Tensor:
        """What expert ``number`` makes of x (n, D): (n, D), in plain torch, unweighted."""
        ...

    def watch(self, module: nn.Module, seen: Callable[[Tensor], None]) -> list[RemovableHandle]:
        """Call ``seen`` with what the routed experts gave together in a forward pass, (N, D)."""
        ...


class ExpertsCall:
    """A module of stacked experts that is called with (hidden, ids, weights): all but a few types."""

    weight_on = "output"
    mixes_tokens = False
    ids = ("top_k_index", "router_indices")
    factors = ("top_k_weights", "routing_weights")

    def applies(self, module: nn.Module) -> bool:
        names = list(inspect.signature(module.forward).parameters)
        return len(names) == 3 and names[1] in self.ids and names[2] in self.factors

    def n_experts(self, module: nn.Module) -> int:
        # LongCat's experts beyond the stacked ones return their input as it is; they are chosen like any other
        return int(getattr(module, "total_experts", 0) or module.num_experts)  # type: ignore[arg-type]

    def listen(self, module: nn.Module, emit: Emit) -> list[RemovableHandle]:
        names = list(inspect.signature(module.forward).parameters)

        def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            hidden, ids, weights = args if len(args) == 3 else (*args, *(kwargs[name] for name in names[len(args) :]))
            emit(hidden.reshape(-1, hidden.shape[-1]), ids, weights)

        return [module.register_forward_pre_hook(before, with_kwargs=True)]

    def expert(self, module: nn.Module, number: int, x: Tensor) -> Tensor:
        bank: Any = module
        if number >= getattr(bank, "num_routed_experts", number + 1):
            return x
        transposed = getattr(bank, "is_transposed", False)
        gated = hasattr(bank, "gate_up_proj")
        up = "gate_up_proj" if gated else "up_proj"
        inner = _linear(bank, up, number, x, transposed)
        if not gated:
            inner = bank.act_fn(inner)
        elif hasattr(bank, "_apply_gate"):
            inner = bank._apply_gate(inner)
        else:
            gate, value = inner.chunk(2, dim=-1)
            inner = bank.act_fn(gate) * value
        out = _linear(bank, "down_proj", number, inner, transposed)
        return bank.post_expert_norm(out) if hasattr(bank, "post_expert_norm") else out

    def watch(self, module: nn.Module, seen: Callable[[Tensor], None]) -> list[RemovableHandle]:
        return [module.register_forward_hook(lambda _, args, out: seen(out.reshape(-1, out.shape[-1])))]


def _linear(bank: Any, name: str, number: int, x: Tensor, transposed: bool) -> Tensor:
    weight = getattr(bank, name)[number]
    bias = getattr(bank, f"{name}_bias", None)
    return F.linear(x, weight.T if transposed else weight, None if bias is None else bias[number])


class DbrxCall(ExpertsCall):
    """DBRX keeps its experts one below the other in three matrices."""

    def applies(self, module: nn.Module) -> bool:
        return hasattr(getattr(module, "mlp", None), "v1") and super().applies(module)

    def expert(self, module: nn.Module, number: int, x: Tensor) -> Tensor:
        glu: Any = module.mlp
        w1, v1, w2 = (getattr(glu, n).view(-1, glu.ffn_hidden_size, glu.hidden_size)[number] for n in ("w1", "v1", "w2"))
        return torch.matmul(glu.activation_fn(F.linear(x, w1)) * F.linear(x, v1), w2)


class ZayaCall(ExpertsCall):
    """ZAYA's router may skip the experts, which it writes as expert 0 with weight 0."""

    def applies(self, module: nn.Module) -> bool:
        return hasattr(getattr(module, "gate", None), "num_router_classes") and hasattr(module, "experts")

    def n_experts(self, module: nn.Module) -> int:
        return super().n_experts(module.experts)  # type: ignore[arg-type]

    def listen(self, module: nn.Module, emit: Emit) -> list[RemovableHandle]:
        return super().listen(
            module.experts,  # type: ignore[arg-type]
            lambda hidden, ids, weights: emit(hidden, ids.masked_fill(weights == 0, -1), weights),
        )

    def expert(self, module: nn.Module, number: int, x: Tensor) -> Tensor:
        return super().expert(module.experts, number, x)  # type: ignore[arg-type]

    def watch(self, module: nn.Module, seen: Callable[[Tensor], None]) -> list[RemovableHandle]:
        return super().watch(module.experts, seen)  # type: ignore[arg-type]


class Llama4Block:
    """Llama 4 runs every expert on every token, scaled by a dense score that is nought for those not chosen."""

    weight_on = "input"
    mixes_tokens = False

    def applies(self, module: nn.Module) -> bool:
        experts = getattr(module, "experts", None)
        return (
            isinstance(experts, nn.Module)
            and hasattr(module, "router")
            and list(inspect.signature(experts.forward).parameters) == ["hidden_states"]
            and hasattr(experts, "gate_up_proj")
        )

    def n_experts(self, module: nn.Module) -> int:
        return int(module.num_experts)  # type: ignore[arg-type]

    def listen(self, module: nn.Module, emit: Emit) -> list[RemovableHandle]:
        block: Any = module

        def after(_: nn.Module, args: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
            weights, ids = output[0].topk(block.top_k, dim=-1)
            emit(args[0], ids.masked_fill(weights == 0, -1), weights)

        return [block.router.register_forward_hook(after)]

    def expert(self, module: nn.Module, number: int, x: Tensor) -> Tensor:
        bank: Any = module.experts
        gate, up = (x @ bank.gate_up_proj[number]).chunk(2, dim=-1)
        return torch.matmul(up * bank.act_fn(gate), bank.down_proj[number])

    def watch(self, module: nn.Module, seen: Callable[[Tensor], None]) -> list[RemovableHandle]:
        block: Any = module

        def after(_: nn.Module, args: Any, output: Tensor) -> None:
            seen(output.reshape(block.num_experts, -1, output.shape[-1]).sum(0))

        return [block.experts.register_forward_hook(after)]


class JetMoeBlock:
    """JetMoE's router returns its tokens sorted by expert. Its attention has experts too, which are not traced."""

    weight_on = "output"
    mixes_tokens = False

    def applies(self, module: nn.Module) -> bool:
        # the attention's mixture has the same parts, and a `kv_proj` between
        parts = ("router", "input_linear", "output_linear", "activation")
        return all(hasattr(module, part) for part in parts) and hasattr(module.input_linear, "num_experts")

    def n_experts(self, module: nn.Module) -> int:
        return int(module.router.num_experts)  # type: ignore[union-attr, arg-type]

    def listen(self, module: nn.Module, emit: Emit) -> list[RemovableHandle]:
        router: Any = module.router

        def after(_: nn.Module, args: tuple[Any, ...], output: tuple[Any, ...]) -> None:
            order, token, gates, sizes, _ = output
            counts = torch.as_tensor(sizes, device=order.device)
            expert = torch.repeat_interleave(torch.arange(len(counts), device=order.device), counts)
            shape = (len(args[0]), router.top_k)
            ids, weights = order.new_empty(shape), gates.new_empty(shape)
            slot = order % router.top_k
            ids[token, slot], weights[token, slot] = expert, gates
            emit(args[0], ids, weights)

        return [router.register_forward_hook(after)]

    def expert(self, module: nn.Module, number: int, x: Tensor) -> Tensor:
        block: Any = module
        gate, up = F.linear(x, block.input_linear.weight[number]).chunk(2, dim=-1)
        return F.linear(block.activation(gate) * up, block.output_linear.weight[number])

    def watch(self, module: nn.Module, seen: Callable[[Tensor], None]) -> list[RemovableHandle]:
        block: Any = module

        def after(_: nn.Module, args: Any, output: Tensor) -> None:
            seen(output.reshape(-1, output.shape[-1]) - block.bias)

        return [block.register_forward_hook(after)]


class DogeBlock:
    """Doge looks up single-neuron experts by product keys. It reshapes its router's output across the tokens of the batch,
    so which experts a token gets depends on what else is in it."""

    weight_on = "output"
    mixes_tokens = True

    def applies(self, module: nn.Module) -> bool:
        return all(hasattr(module, part) for part in ("router_gate", "down_embed", "up_embed", "num_keys"))

    def n_experts(self, module: nn.Module) -> int:
        return int(module.num_experts)  # type: ignore[arg-type]

    def listen(self, module: nn.Module, emit: Emit) -> list[RemovableHandle]:
        block: Any = module
        seen: dict[str, Tensor] = {}

        def routed(_: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
            seen["hidden"], seen["logits"] = args[0].reshape(-1, args[0].shape[-1]), output

        def looked_up(_: nn.Module, args: tuple[Tensor]) -> None:
            ids = args[0]
            by_key = seen["logits"].view(2, len(ids), -1)
            row, column = ids // block.num_keys, ids % block.num_keys
            scores = by_key[0].gather(1, row) + by_key[1].gather(1, column)
            emit(seen["hidden"], ids, torch.softmax(scores, dim=-1))

        return [block.router_gate.register_forward_hook(routed), block.down_embed.register_forward_pre_hook(looked_up)]

    def expert(self, module: nn.Module, number: int, x: Tensor) -> Tensor:
        block: Any = module
        key, value = block.down_embed.weight[number], block.up_embed.weight[number]
        return torch.outer(block.act_fn(x @ key), value)

    def watch(self, module: nn.Module, seen: Callable[[Tensor], None]) -> list[RemovableHandle]:
        block: Any = module

        def after(_: nn.Module, args: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
            x = args[0]
            shared = block.down_proj(block.act_fn(block.gate_proj(x)) * block.up_proj(x))
            seen((output[0] - shared).reshape(-1, x.shape[-1]))

        return [block.register_forward_hook(after)]


# The first that applies is taken, from the outermost module inwards.
RULES: tuple[Rule, ...] = (ZayaCall(), Llama4Block(), JetMoeBlock(), DogeBlock(), DbrxCall(), ExpertsCall())
