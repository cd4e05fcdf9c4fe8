"""Optimisers whose update is fused into the layer's step.

Each is a :class:`torch.optim.Optimizer`: it owns parameter groups and state, saves and loads them, and takes
torch's learning-rate schedulers. What it does not do is ``step()``: the update happens inside
:meth:`ffkern.nn.FFLinear.step`, where the gradient is produced, so no ``.grad`` ever exists. Any ordinary torch
optimiser works too, through :meth:`ffkern.nn.FFLinear.local_loss` and ``backward()``.

The learning rate is a 0-dim float64 tensor in ``param_groups``, so that changing it neither recompiles a
``torch.compile``d step nor is frozen into a captured one.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

__all__ = ["EMA", "SGD", "Adam", "AdamW", "FusedOptimizer", "linear_decay"]

ROW_TOLERANCE = 2.0**-24  # half a unit in the last place of float32


def _check(name: str, value: float, low: float, high: float | None = None) -> float:
    if not (value >= low and (high is None or value < high)):
        span = f">= {low}" if high is None else f"in [{low}, {high})"
        raise ValueError(f"{name} is {value}; expected a number {span}")
    return float(value)


class FusedOptimizer(torch.optim.Optimizer):
    """State and settings of a fused update.

    Args:
        params: parameters or parameter groups, as for any torch optimiser. All float32.
        defaults: learning rate (a number or a 0-dim tensor) and the settings of the rule under torch's names
            (momentum, betas, eps, weight_decay); any group may have its own.
    """

    kind: ClassVar[str]
    slots: ClassVar[int]
    # Bumped whenever state tensors are replaced, so that layers look them up again. The second tells torch's
    # schedulers that updates do happen, although not through step(). Class attributes: both survive copies.
    generation = 0
    _opt_called = True

    def __init__(self, params: Iterable[Any], defaults: dict[str, Any]) -> None:
        super().__init__(params, {**defaults, "lr": _lr_tensor(defaults["lr"])})

    @classmethod
    def hyper(cls, group: dict[str, Any]) -> list[float]:
        """beta1 (or momentum), beta2, eps, weight_decay, row_tolerance of a group, as the operations take them."""
        beta1, beta2 = group["betas"] if "betas" in group else (group["momentum"], 0.0)
        return [
            _check("momentum" if "momentum" in group else "betas[0]", beta1, 0.0, 1.0),
            _check("betas[1]", beta2, 0.0, 1.0),
            _check("eps", group.get("eps", 0.0), 0.0),
            _check("weight_decay", group["weight_decay"], 0.0),
            _check("row_tolerance", group.get("row_tolerance", 0.0), 0.0, 1.0),
        ]

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        self.hyper(group)  # refuses bad settings here, not at the first step
        group["lr"] = _lr_tensor(group["lr"]).clone()  # groups must not share one tensor

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for state in state_dict["state"].values():
            slots = state.get("slots")
            if slots is None or slots.shape[0] != self.slots:
                raise ValueError(
                    f"the state is not that of ffkern.optim.{type(self).__name__}; expected one that it saved itself"
                )
        super().load_state_dict(state_dict)
        for p, state in self.state.items():  # tensors of its own, where the parameter is: torch leaves "step" behind
            self.state[p] = {name: value.to(p.device, copy=True) for name, value in state.items()}
        self.generation += 1

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Raises RuntimeError: a fused update has no separate step."""
        raise RuntimeError(
            f"ffkern.optim.{type(self).__name__} updates inside FFLinear.step(x, sign, opt) or "
            "FFNet.step(x, labels, opt). For loss.backward() followed by opt.step(), use an "
            "optimiser from torch.optim."
        )

    def _group_of(self, name: str, parameter: Tensor) -> dict[str, Any]:
        for group in self.param_groups:
            if any(p is parameter for p in group["params"]):
                return group
        raise ValueError(
            f"the optimiser does not hold this layer's {name}: build it from the parameters of the network it trains"
        )

    def slot(self, weight: Tensor, bias: Tensor | None) -> Slot:
        """State of one layer's update, created on first use.

        Raises ValueError if the optimiser was not given these parameters.
        """
        group = self._group_of("weight", weight)
        if bias is not None and self._group_of("bias", bias) is not group:
            raise ValueError(
                "the layer's weight and bias are in different parameter groups; its fused update has one set of "
                "settings: put both into one group"
            )
        for p in (weight, bias):
            if p is not None and "slots" not in self.state[p]:
                self.state[p]["slots"] = torch.zeros((self.slots, *p.shape), dtype=torch.float32, device=p.device)
        state = self.state[weight]
        if "step" not in state:
            state["step"] = torch.zeros((), dtype=torch.int64, device=weight.device)
        self._opt_called = True  # else torch's LR schedulers warn that no update came before them
        bias_slots = self.state[bias]["slots"] if bias is not None else state["slots"].new_empty(0)
        return Slot(self, group, weight, bias, state["slots"], bias_slots, state["step"])


def slot_of(opt: Any, weight: Tensor, bias: Tensor | None) -> Slot:
    """:meth:`FusedOptimizer.slot`, refusing optimisers that cannot be fused."""
    if not isinstance(opt, FusedOptimizer):
        raise TypeError(
            f"opt is a {type(opt).__name__}; a fused step takes an optimiser of "
            "ffkern.optim. Use local_loss() and backward() with torch's optimisers"
        )
    return opt.slot(weight, bias)


class Slot:
    """The tensors that one layer's fused update reads and writes."""

    def __init__(
        self,
        owner: FusedOptimizer,
        group: dict[str, Any],
        weight: Tensor,
        bias: Tensor | None,
        weight_state: Tensor,
        bias_state: Tensor,
        step: Tensor,
    ) -> None:
        self.owner = owner
        self.generation = owner.generation
        self.group = group
        self.kind = owner.kind
        self.weight, self.bias = weight, bias
        self.weight_state = weight_state
        self.bias_state = bias_state
        self.step = step
        self._lr: Tensor | None = None  # on the device of the weights

    @property
    def hyper(self) -> list[float]:
        """beta1 (or momentum), beta2, eps, weight_decay, row_tolerance now."""
        return self.owner.hyper(self.group)

    def lr(self) -> Tensor:
        """Learning rate now. A plain number put into ``param_groups`` by hand works too."""
        value = self.group["lr"]
        if self._lr is not None and value is self._lr:
            return self._lr
        device = self.weight.device
        if isinstance(value, Tensor) and value.dtype == torch.float64 and value.device == device:
            self._lr = value
        elif self._lr is None:
            self._lr = self.group["lr"] = _lr_tensor(value).to(device)
        else:  # into the memory that kernels of a captured step read
            self.group["lr"] = self._lr.fill_(_check("lr", float(value), 0.0))
        return self._lr

    def fits(self, owner: FusedOptimizer, weight: Tensor, bias: Tensor | None) -> bool:
        """False when the layer has other parameters or another optimiser than this slot was made for."""
        return (
            self.owner is owner
            and self.generation == owner.generation
            and self.weight is weight
            and self.bias is bias
            and self.weight_state.device == weight.device
        )


def _lr_tensor(lr: float | Tensor) -> Tensor:
    _check("lr", float(lr), 0.0)
    if isinstance(lr, Tensor):
        return lr if lr.dtype == torch.float64 and lr.dim() == 0 else lr.double().reshape(())
    return torch.tensor(float(lr), dtype=torch.float64)


class SGD(FusedOptimizer):
    """torch.optim.SGD with momentum: g += weight_decay w; m = momentum m + g; w -= lr m.

    Rows far on their right side of the threshold teach next to nothing, and most rows soon are: those that amount to
    less than `row_tolerance` of the weight gradient in all, measured by norms, are left out of its product. The default
    is below the rounding of that product; 0 keeps every row. (Not in Adam, which rescales small gradients. On CUDA in
    large products only, docs/numerics.md.)
    """

    kind, slots = "sgd", 1

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-3,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        row_tolerance: float = ROW_TOLERANCE,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "row_tolerance": row_tolerance}
        super().__init__(params, defaults)


class EMA(FusedOptimizer):
    """Hinton's rule: m = momentum m + (1 - momentum) g; w -= lr (m + weight_decay w).

    The decay acts outside the average and on weights only, never on biases. Without it the rule equals SGD with
    the same momentum and lr times (1 - momentum). `row_tolerance` is that of :class:`SGD`.
    """

    kind, slots = "ema", 1

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-2,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        row_tolerance: float = ROW_TOLERANCE,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "row_tolerance": row_tolerance}
        super().__init__(params, defaults)


class Adam(FusedOptimizer):
    """torch.optim.Adam (weight decay, if any, added to the gradient)."""

    kind, slots = "adam", 2

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})


class AdamW(Adam):
    """torch.optim.AdamW: the decay shrinks the weights by lr * weight_decay, outside the moments."""

    kind = "adamw"

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay)


def linear_decay(opt: torch.optim.Optimizer, epochs: int) -> LambdaLR:
    """Hinton's schedule: the rate stays for the first half of the epochs, then falls linearly to 1 / epochs of it.

    Step it after every epoch. After `epochs` of them it begins anew, as every stage of greedy training does.

    Source: the program that accompanies arXiv 2212.13345; its gain in epoch e of n, from 1, is 1 for e <= n / 2, then
    (1 + 2 (n - e)) / n.
    """

    def gain(done: int) -> float:
        epoch = 1 + done % max(epochs, 1)
        return 1.0 if epoch <= epochs / 2 or epochs < 1 else (1 + 2 * (epochs - epoch)) / epochs

    return LambdaLR(opt, gain)
