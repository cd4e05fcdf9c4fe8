"""Forward-Forward layers and networks as ordinary ``torch.nn`` modules.

Data flows one way: images and labels -> label variants -> layer -> local loss and update -> next layer. A layer
passes on its activities *before* normalisation together with their row norms; the next layer divides by them
inside its own kernel.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from . import ops as _ops  # noqa: F401  registers torch.ops.ffkern
from .optim import FusedOptimizer, Slot, slot_of

__all__ = ["FFHead", "FFLinear", "FFNet"]

NORMS = ("l2", "rms", "none")
GOODNESS = ("sum_sq", "mean_sq", "neg_sum_sq", "neg_mean_sq", "sum_abs")
STATISTICS = 9
SIGNS = ("both", "positive", "negative")
PADDED_ROWS = 4096  # images that prediction copies at once to put a label in front of them


@cache
def _count_fused_updates() -> None:
    """From now on torch's own fused optimisers count their changes in the version counters of the parameters.

    They do not by themselves, and nothing else tells whether a copy of the weights is still one.
    """

    def count(optimiser: torch.optim.Optimizer, *_: Any) -> None:
        groups = [group for group in optimiser.param_groups if group.get("fused")]
        changed = [p for group in groups for p in group["params"] if p.grad is not None]
        torch.autograd.graph.increment_version(changed)

    register_optimizer_step_post_hook(count)


def _choice(name: str, value: str, allowed: Sequence[str]) -> str:
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; expected one of {', '.join(map(repr, allowed))}")
    return value


def _stored(x: Tensor) -> torch.dtype:
    """dtype of the activities that follow from x: that of x, but the CPU computes all but bfloat16 in float32."""
    device = x.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
    return dtype if device != "cpu" or dtype == torch.bfloat16 else torch.float32


def _packed(weight: Tensor) -> bool:
    """Whether bfloat16 products read this weight packed, as the CPU's do, or as it is, as tensor cores do."""
    return weight.device.type == "cpu"


def _new_low(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Memory for the weights as products of rows of this 16-bit dtype read them."""
    units, inputs = weight.shape
    packed = (math.ceil(units / 16), math.ceil(inputs / 2), 16, 2)
    return weight.new_empty(packed if _packed(weight) else weight.shape, dtype=dtype)


def _write_low(weight: Tensor, low: Tensor) -> None:
    if _packed(weight):
        torch.ops.ffkern.pack_weight_(weight, low)
    else:
        low.copy_(weight)


class FFLinear(nn.Linear):
    """``relu(norm(x) W^T + b)`` that can learn by itself. Names, shapes and state_dict are those of ``nn.Linear``.

    Args:
        in_features, out_features, bias, device, dtype: as for ``nn.Linear``. Training in place needs float32.
        norm: length that every input row is divided by: "rms" ||x||/sqrt(K) (Hinton), "l2" ||x|| (needs far more steps
            at the same threshold), or "none".
        eps: added to that length (the public implementations use 1e-4 with "l2", 1e-8 with "rms").
        goodness: "mean_sq" or "sum_sq" of the activities, their negation "neg_...", or "sum_abs".
        threshold: goodness that separates positive from negative rows; "width" is the number of units (Hinton).
        temperature: divides goodness - threshold inside the logistic.
        peer_strength: lambda of peer normalisation, 0 for none; adds a buffer ``peer_mean`` (and only then).
        peer_momentum: momentum of the running mean activity.

    Source: Hinton, arXiv 2212.13345, section 2; peer normalisation from the accompanying program.
    """

    peer_mean: Tensor | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        norm: str = "rms",
        eps: float = 1e-8,
        goodness: str = "mean_sq",
        threshold: float | str = 2.0,
        temperature: float = 1.0,
        peer_strength: float = 0.0,
        peer_momentum: float = 0.9,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, device=device, dtype=dtype)
        self._configure(norm, eps, goodness, threshold, temperature, peer_strength, peer_momentum)

    def _configure(
        self,
        norm: str = "rms",
        eps: float = 1e-8,
        goodness: str = "mean_sq",
        threshold: float | str = 2.0,
        temperature: float = 1.0,
        peer_strength: float = 0.0,
        peer_momentum: float = 0.9,
    ) -> None:
        self.norm = _choice("norm", norm, NORMS)
        self.goodness = _choice("goodness", goodness, GOODNESS)
        if eps < 0:
            raise ValueError(f"eps is {eps}; expected a number >= 0")
        if not temperature > 0:
            raise ValueError(f"temperature is {temperature}; expected a number > 0")
        if peer_strength < 0:
            raise ValueError(f"peer_strength is {peer_strength}; expected a number >= 0")
        if not 0 <= peer_momentum < 1:
            raise ValueError(f"peer_momentum is {peer_momentum}; expected a number in [0, 1)")
        if isinstance(threshold, str):
            _choice("threshold", threshold, ("width",))
            threshold = float(self.out_features)
        if not math.isfinite(threshold):
            raise ValueError(f"threshold is {threshold}; expected a finite number or 'width'")
        self.eps, self.threshold, self.temperature = float(eps), float(threshold), float(temperature)
        self.peer_strength, self.peer_momentum = float(peer_strength), float(peer_momentum)
        mean = torch.zeros(self.out_features, device=self.weight.device) if peer_strength else None
        self.register_buffer("peer_mean", mean)
        self._forget()

    def _forget(self) -> None:
        """Drops what belongs to a run of training rather than to the layer."""
        self._slot: Slot | None = None
        self._workspace = torch.empty(0)
        self._low: Tensor | None = None  # weights in a 16-bit dtype, and of which version of which parameter
        self._low_of: tuple[Tensor, int, int] | None = None
        self._reserved: set[tuple[Any, ...]] = set()  # batch shapes that the workspace is known to serve
        self._statistics = torch.zeros(STATISTICS, dtype=torch.float64)

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        state["_slot"] = None  # a copy of the layer is not the layer that the optimiser trains
        state["_workspace"], state["_reserved"], state["_low"], state["_low_of"] = torch.empty(0), set(), None, None
        return state

    @classmethod
    def from_linear(cls, linear: nn.Linear, **options: Any) -> FFLinear:
        """An FFLinear on the same Parameters as ``linear``: training one trains the other."""
        layer = cls.__new__(cls)
        nn.Module.__init__(layer)
        layer.in_features, layer.out_features = linear.in_features, linear.out_features
        layer.weight, layer.bias = linear.weight, linear.bias
        layer._configure(**options)
        return layer

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, norm={self.norm!r}, goodness={self.goodness!r}, threshold={self.threshold:g}"

    # ------------------------------------------------------------ forward

    def activities(self, x: Tensor, x_norm: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Fused forward pass.

        Args:
            x: [R, K] raw rows; float32, bfloat16 or float16.
            x_norm: float32 [R], their L2 norms when already known (``h_norm`` of the layer before).

        Returns:
            h [R, M] in the dtype of x, and float32 [R]: goodness, row scale, L2 norm of h.
        """
        result: tuple[Tensor, Tensor, Tensor, Tensor] = torch.ops.ffkern.layer_forward(
            x, self.weight, self.bias, x_norm, self.norm, self.eps, self.goodness, self._operand(x)
        )
        return result

    def forward(self, x: Tensor) -> Tensor:
        """Activities of the last dimension of x, as ``nn.Linear`` followed by ReLU (after the norm)."""
        if x.dim() == 2:
            return self.activities(x)[0]
        return self.activities(x.reshape(-1, x.shape[-1]))[0].reshape(*x.shape[:-1], self.out_features)

    # ------------------------------------------------------------ learning

    def local_loss(
        self, x: Tensor, sign: Tensor, row_weight: Tensor | None = None, x_norm: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The layer's own loss, for ``backward()`` and any torch optimiser.

        Args:
            x: [R, K]. Give a detached tensor, as Forward-Forward does; its gradient is computed only if it asks.
            sign: float32 [R], +1 for a positive row, -1 for a negative one, 0 for a row that takes no part.
            row_weight: float32 [R], default 1 / R each.

        Returns:
            The loss (0-dim) and the detached activities for the next layer. Peer normalisation belongs to
            :meth:`step`; asking for it here raises.
        """
        if self.peer_mean is not None:
            raise RuntimeError("peer normalisation is part of FFLinear.step; local_loss has no term for it")
        h, goodness, _, _ = self.activities(x, x_norm)
        loss, _, stats = torch.ops.ffkern.local_loss(goodness, sign, row_weight, self.threshold, self.temperature)
        self._count(stats)
        return loss, h.detach()

    def step(
        self,
        x: Tensor,
        sign: Tensor,
        opt: FusedOptimizer,
        *,
        row_weight: Tensor | None = None,
        x_norm: Tensor | None = None,
        keep: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        """Forward, loss, gradient and update in one call; ``weight`` and ``bias`` change in place.

        Args:
            x, sign, row_weight, x_norm: as for :meth:`local_loss`. Nothing flows back into x.
            opt: an optimiser of :mod:`ffkern.optim` that holds this layer's parameters.
            keep: [R, M] and float32 [R] to write the activities and their norms into (those of the weights before the
                update), for the next layer. On CUDA the activities are float32 or the dtype of x; on the CPU bfloat16
                for bfloat16 x, else float32.
        """
        slot = self._bind(opt)
        workspace = self.reserve(x.shape[0], 0, 1, _stored(x) == torch.bfloat16)
        trained = self._trained(slot, x)
        torch.ops.ffkern.layer_step_(
            x,
            x_norm,
            *trained,
            *self._lesson(sign, row_weight, workspace, keep),
            *self._settings(slot),
        )
        self._low_is_new(trained[-1])

    def step_shared(
        self,
        x: Tensor,
        labels: Tensor,
        sign: Tensor,
        opt: FusedOptimizer,
        *,
        classes: int,
        overlay: Tensor,
        row_weight: Tensor | None = None,
        keep: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        """:meth:`step` on label variants of the same images, with one product for all of them.

        Args:
            x: [N, K] images; their first ``classes`` inputs are ignored, the label goes there.
            labels: int64 [V, N]; -1 is the neutral label. Row v * N + i is image i with labels[v, i].
            sign, row_weight: float32 [V * N].
            overlay: float32 [2]: value of the label's input, value of every label input of the neutral label.
            keep: as for :meth:`step`, with V * N rows.
        """
        slot = self._bind(opt)
        workspace = self.reserve(x.shape[0], classes, labels.shape[0], _stored(x) == torch.bfloat16)
        trained = self._trained(slot, x)
        torch.ops.ffkern.shared_step_(
            x,
            labels,
            overlay,
            classes,
            *trained,
            *self._lesson(sign, row_weight, workspace, keep),
            *self._settings(slot),
        )
        self._low_is_new(trained[-1])

    def learn(
        self,
        x: Tensor,
        activities: tuple[Tensor, Tensor, Tensor],
        sign: Tensor,
        opt: FusedOptimizer,
        *,
        row_weight: Tensor | None = None,
        labels: Tensor | None = None,
        classes: int = 0,
        overlay: Tensor | None = None,
    ) -> None:
        """Loss, gradient and update from activities computed before: (h, goodness, scale) of these weights.

        With ``labels`` x holds images and the rows are their variants, as in :meth:`step_shared`.
        """
        h, goodness, scale = activities
        slot = self._bind(opt)
        variants = 1 if labels is None else labels.shape[0]
        workspace = self.reserve(x.shape[0], classes, variants, _stored(x) == torch.bfloat16)
        _, coef, stats = torch.ops.ffkern.local_loss(goodness, sign, row_weight, self.threshold, self.temperature)
        self._count(stats)
        peer = None
        if self.peer_mean is not None:
            peer = torch.ops.ffkern.peer_update_(h, sign, self.peer_mean, self.peer_strength, self.peer_momentum)
        trained = self._trained(slot, x)
        rule = (self.goodness, slot.kind, slot.hyper)
        tail = (sign, peer, *trained, workspace, self.statistics(), *rule)
        if labels is None:
            torch.ops.ffkern.layer_update_(x, h, scale, coef, *tail)
        else:
            torch.ops.ffkern.shared_update_(x, h, scale, coef, labels, overlay, classes, *tail)
        self._low_is_new(trained[-1])

    def metrics(self, reset: bool = True) -> dict[str, float]:
        """Statistics of all steps since the last reset. The only call here that waits for the device.

        Returns:
            loss (the sum of the steps' weighted losses), goodness_pos and goodness_neg (means over rows), separation
            (share of rows on their side of the threshold), kept_pos and kept_neg (share of rows whose part of the
            gradient was added up: the others teach nothing more, docs/training.md), rows.
        """
        loss, g_pos, g_neg, right_pos, right_neg, n_pos, n_neg, kept_pos, kept_neg = self._statistics.tolist()
        if reset:
            self._statistics.zero_()
        rows = n_pos + n_neg
        return {
            "loss": loss,
            "goodness_pos": g_pos / n_pos if n_pos else float("nan"),
            "goodness_neg": g_neg / n_neg if n_neg else float("nan"),
            "separation": (right_pos + right_neg) / rows if rows else float("nan"),
            "kept_pos": kept_pos / n_pos if n_pos else float("nan"),
            "kept_neg": kept_neg / n_neg if n_neg else float("nan"),
            "rows": rows,
        }

    # ------------------------------------------------------------ pieces of a step

    @property
    def frozen(self) -> bool:
        """True when ``weight.requires_grad`` is False: the layer passes activities on and does not learn."""
        return not self.weight.requires_grad

    def _bind(self, opt: FusedOptimizer) -> Slot:
        if self.frozen or (self.bias is not None and not self.bias.requires_grad):
            raise RuntimeError(
                "the layer is frozen (requires_grad of its weight or bias is False), so it cannot take a fused step"
            )
        slot = self._slot
        if slot is None or not slot.fits(opt, self.weight, self.bias):
            slot = self._slot = slot_of(opt, self.weight, self.bias)
        return slot

    def reserve(self, images: int, classes: int = 0, variants: int = 1, low: bool = False) -> Tensor:
        """The workspace of a step on so many rows, grown when a larger batch comes: no allocation after the first.

        ``low`` says that the rows are bfloat16, which need more of it on the CPU.

        A compiled step cannot allocate it: take one eager step on the largest batch first, or call this. So too before
        a step is captured into a CUDA graph: a larger batch later would free the memory that the graph writes.
        """
        if torch.compiler.is_compiling():
            return self._workspace  # too small a one is refused by the operation
        optimiser = "sgd" if self._slot is None else self._slot.kind  # not known yet: one of those that want most
        asked = (images, classes, variants, low, torch.get_num_threads(), self.weight.device, optimiser)
        if asked in self._reserved:
            return self._workspace
        if len(self._reserved) >= 64:
            self._reserved.clear()
        size = (self.weight, images, classes, variants)
        need = max(
            torch.ops.ffkern.step_workspace(*size, self.peer_mean is not None, optimiser, low),
            torch.ops.ffkern.update_workspace(*size, optimiser, low),
        )
        if self._workspace.numel() < need or self._workspace.device != self.weight.device:
            self._workspace = torch.empty(need, dtype=torch.float32, device=self.weight.device)
            self._reserved.clear()  # what the new one serves is asked again; on another device it serves nothing yet
        self._reserved.add(asked)
        return self._workspace

    def _count(self, stats: Tensor) -> None:
        self.statistics().add_(stats)

    def statistics(self) -> Tensor:
        """What the steps count, float64 [9] on the layer's device, in the order of ``ffkern::local_loss``."""
        if self._statistics.device != self.weight.device:
            self._statistics = self._statistics.to(self.weight.device)
        return self._statistics

    def _trained(self, slot: Slot, x: Tensor) -> tuple[Tensor | None, ...]:
        state = (slot.weight_state, slot.bias_state, slot.step, slot.lr())
        return self.weight, self.bias, *state, self._weight_low(x)

    def _weight_low(self, x: Tensor) -> Tensor | None:
        """The weights as products of 16-bit x read them, which every fused update writes beside the float32 ones.

        None for float32 rows. A compiled step converts them every time. Changes through ``weight.data`` go unnoticed,
        as they do by autograd: change weights under ``no_grad()``.
        """
        dtype = _stored(x)
        if dtype == torch.float32 or torch.compiler.is_compiling():
            return None
        _count_fused_updates()
        low, weight = self._low, self.weight.detach()
        if low is None or low.dtype != dtype or low.device != weight.device:
            low = self._low = _new_low(weight, dtype)
            self._low_of = None
        if not self._low_is_current():
            _write_low(weight, low)  # in place: a captured step reads this memory
            self._low_is_new(low)
        return low

    def _counted(self) -> bool:
        """Whether the weight's version tells of every change; nothing is counted in inference mode."""
        return not torch.is_inference_mode_enabled() and not self.weight.is_inference()

    def _low_is_current(self) -> bool:
        of, weight = self._low_of, self.weight
        if self._low is None or of is None or not self._counted():
            return False
        return of[0] is weight and of[1:] == (weight._version, weight.data_ptr())

    def _operand(self, x: Tensor) -> Tensor | None:
        """:meth:`_weight_low` for a product alone: not made for this one, only used where it is current."""
        if torch.compiler.is_compiling():
            return None
        if self._low is not None and self._low.dtype == _stored(x) and self._low_is_current():
            return self._low
        return None

    def _low_is_new(self, low: Tensor | None) -> None:
        """A fused update has just written this copy beside the weights, or none; any other change outdates it."""
        if torch.compiler.is_compiling():
            return
        weight = self.weight
        new = low is not None and self._counted()
        self._low_of = (weight, weight._version, weight.data_ptr()) if new else None

    def _lesson(
        self,
        sign: Tensor,
        row_weight: Tensor | None,
        workspace: Tensor,
        keep: tuple[Tensor, Tensor] | None,
    ) -> tuple[Tensor | None, ...]:
        h, h_norm = keep if keep is not None else (None, None)
        return sign, row_weight, self.peer_mean, workspace, self.statistics(), h, h_norm

    def _settings(self, slot: Slot) -> tuple[Any, ...]:
        return (
            self.norm,
            self.eps,
            self.goodness,
            self.threshold,
            self.temperature,
            self.peer_strength,
            self.peer_momentum,
            slot.kind,
            slot.hyper,
        )


class FFHead(nn.Module):
    """Softmax classifier on the normalised activities of chosen layers; its gradient enters none of them.

    Args:
        widths: units of each chosen layer.
        classes: number of classes.
        norm, eps: how the activities are normalised.
    """

    def __init__(self, widths: Sequence[int], classes: int, *, norm: str = "rms", eps: float = 1e-4) -> None:
        super().__init__()
        self.norm, self.eps = _choice("norm", norm, NORMS), float(eps)
        self.weight = nn.Parameter(torch.zeros(classes, sum(widths)))
        self.bias = nn.Parameter(torch.zeros(classes))
        self._slot: Slot | None = None
        self._statistics = torch.zeros(3, dtype=torch.float64)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_slot": None}

    def forward(self, h: Sequence[Tensor], h_norm: Sequence[Tensor]) -> Tensor:
        """Logits, float32 [N, C], from the activities of the chosen layers and their norms."""
        logits: Tensor = torch.ops.ffkern.head_forward(
            list(h), list(h_norm), self.weight, self.bias, self.norm, self.eps
        )
        return logits

    @property
    def frozen(self) -> bool:
        """True when ``requires_grad`` of a parameter is False: the head answers and does not learn."""
        return not (self.weight.requires_grad and self.bias.requires_grad)

    def _bind(self, opt: FusedOptimizer) -> Slot:
        if self.frozen:
            raise RuntimeError("the head is frozen (requires_grad is False), so it cannot take a fused step")
        if self._slot is None or not self._slot.fits(opt, self.weight, self.bias):
            self._slot = slot_of(opt, self.weight, self.bias)
        return self._slot

    def step(self, h: Sequence[Tensor], h_norm: Sequence[Tensor], labels: Tensor, opt: FusedOptimizer) -> Tensor:
        """One update on the mean cross-entropy; returns the logits from before it."""
        slot = self._bind(opt)
        logits: Tensor = torch.ops.ffkern.head_step_(
            list(h),
            list(h_norm),
            labels,
            self.weight,
            self.bias,
            slot.weight_state,
            slot.bias_state,
            slot.step,
            slot.lr(),
            self.statistics(),
            self.norm,
            self.eps,
            slot.kind,
            slot.hyper,
        )
        return logits

    def statistics(self) -> Tensor:
        """What the steps count, float64 [3] on the head's device: cross-entropies, right answers, rows."""
        if self._statistics.device != self.weight.device:
            self._statistics = self._statistics.to(self.weight.device)
        return self._statistics

    def metrics(self, reset: bool = True) -> dict[str, float]:
        """Mean cross-entropy and accuracy since the last reset."""
        loss, right, rows = self._statistics.tolist()
        if reset:
            self._statistics.zero_()
        return {
            "loss": loss / rows if rows else float("nan"),
            "accuracy": right / rows if rows else float("nan"),
            "rows": rows,
        }


class FFNet(nn.Module):
    """A stack of :class:`FFLinear` layers that classifies by goodness.

    Args:
        layers: sizes [inputs, units, units, ...], or ready layers that agree in norm, eps and goodness. With
            label="concat" the inputs of the first size are those of the data: room for the label is added.
        classes: number of classes.
        label: "overlay" replaces the first ``classes`` inputs by the label, "concat" puts them in front; "none": images
            come without a label, the layers learn by :meth:`step_images`, and the softmax head answers.
        label_value: what a one-hot label puts into its input, or "max": the largest input of the batch.
        neutral_value: what the neutral label puts into every label input; default label_value / classes.
        head_layers: layers whose activities feed a softmax head: "all", "all_but_first", indices, or None.
        options: passed to every FFLinear built here.

    Source: Hinton, arXiv 2212.13345, section 3.3.
    """

    overlay: Tensor

    def __init__(
        self,
        layers: Sequence[int] | Sequence[FFLinear],
        classes: int = 10,
        *,
        label: str = "overlay",
        label_value: float | str = 1.0,
        neutral_value: float | None = None,
        head_layers: str | Sequence[int] | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        if operator.index(classes) < 1:
            raise ValueError(f"classes is {classes}; expected at least 1")
        self.classes = classes
        self.label = _choice("label", label, ("overlay", "concat", "none"))
        built: list[FFLinear] = []
        if layers and all(isinstance(layer, FFLinear) for layer in layers):
            if options:
                raise ValueError(f"{', '.join(options)}: give layer options to the ready layers themselves")
            built = [layer for layer in layers if isinstance(layer, FFLinear)]
        else:
            sizes = [operator.index(size) for size in layers if not isinstance(size, FFLinear)]
            if len(sizes) < 2 or len(sizes) != len(layers) or min(sizes) < 1:
                raise ValueError(f"layers is {layers!r}; expected sizes [inputs, units, ...] or FFLinear layers")
            if label == "concat":
                sizes[0] += classes
            built = [FFLinear(i, o, **options) for i, o in itertools.pairwise(sizes)]
        self.layers = nn.ModuleList(built)
        self._check_layers()
        if isinstance(label_value, str):
            _choice("label_value", label_value, ("max",))
        self.label_value, self.neutral_value = label_value, neutral_value
        on = 1.0 if isinstance(label_value, str) else float(label_value)
        neutral = on / classes if neutral_value is None else float(neutral_value)
        self.register_buffer("overlay", torch.tensor([on, neutral]), persistent=False)
        self.head_layers = self._head_indices(head_layers)
        self.head: FFHead | None = None
        if self.head_layers:
            first = built[0]
            widths = [built[i].out_features for i in self.head_layers]
            self.head = FFHead(widths, classes, norm=first.norm, eps=first.eps)
        self._forget()

    def _forget(self) -> None:
        """Drops the memory of steps: it belongs to a run of training rather than to the network."""
        self._signs: dict[tuple[int, int, str], tuple[Tensor, Tensor | None]] = {}
        self._kept: dict[int, Tensor] = {}  # activities, flat
        self._workspace = torch.empty(0)
        self._plan: tuple[list[Any], _Plan] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_signs": {}, "_kept": {}, "_workspace": torch.empty(0), "_plan": None}

    @classmethod
    def from_sequential(cls, model: nn.Sequential, classes: int, **options: Any) -> FFNet:
        """A Forward-Forward network on the parameters of ``nn.Sequential(Linear, ReLU, Linear, ReLU, ...)``.

        Flatten, Identity and Dropout are passed over; every Linear must be followed by a ReLU. The Parameters are
        shared: training the result trains ``model``.
        """
        net_options = {
            key: options.pop(key) for key in ("label", "label_value", "neutral_value", "head_layers") if key in options
        }
        ignored = (nn.Flatten, nn.Identity, nn.Dropout)
        modules = [m for m in model if not isinstance(m, ignored)]
        built = []
        for i in range(0, len(modules), 2):
            linear = modules[i]
            relu = modules[i + 1] if i + 1 < len(modules) else None
            if not isinstance(linear, nn.Linear) or not isinstance(relu, nn.ReLU):
                raise ValueError(
                    f"module {i} is {type(linear).__name__} followed by {type(relu).__name__}; expected Linear "
                    "followed by ReLU (a last classifying Linear is not needed: goodness classifies)"
                )
            built.append(FFLinear.from_linear(linear, **options))
        return cls(built, classes, **net_options)

    def _check_layers(self) -> None:
        first = self._layer(0)
        for i in range(1, len(self.layers)):
            layer, before = self._layer(i), self._layer(i - 1)
            if layer.in_features != before.out_features:
                raise ValueError(
                    f"layers[{i}] takes {layer.in_features} inputs; expected {before.out_features}, the units "
                    "of the layer before"
                )
            for name in ("norm", "eps", "goodness"):
                if getattr(layer, name) != getattr(first, name):
                    raise ValueError(
                        f"layers[{i}].{name} is {getattr(layer, name)!r}; expected "
                        f"{getattr(first, name)!r} as in the first layer"
                    )
        if self.label == "overlay" and self.classes >= first.in_features:
            raise ValueError(
                f"classes is {self.classes}; expected fewer than the {first.in_features} inputs, or "
                "label='concat' for data with no room for the label"
            )

    def _head_indices(self, head_layers: str | Sequence[int] | None) -> list[int]:
        depth = len(self.layers)
        if head_layers is None:
            return []
        if isinstance(head_layers, str):
            _choice("head_layers", head_layers, ("all", "all_but_first"))
            return list(range(1 if head_layers == "all_but_first" and depth > 1 else 0, depth))
        for i in head_layers:
            if not 0 <= i < depth:
                raise ValueError(f"head_layers holds {i}; expected 0 to {depth - 1}")
        return list(head_layers)

    def _layer(self, i: int) -> FFLinear:
        layer = self.layers[i]
        assert isinstance(layer, FFLinear)
        return layer

    def _all_layers(self) -> Iterable[FFLinear]:
        return (self._layer(i) for i in range(len(self.layers)))

    # ------------------------------------------------------------ inputs

    def _images(self, x: Tensor, name: str = "x") -> Tensor:
        """[N, K] rows with room for the label in front."""
        inputs = self._layer(0).in_features - (self.classes if self.label == "concat" else 0)
        if not isinstance(x, Tensor):
            raise TypeError(f"{name} is a {type(x).__name__}; expected a tensor [N, {inputs}]")
        if x.dim() < 2 or math.prod(x.shape[1:]) != inputs:
            raise ValueError(
                f"{name} has shape {list(x.shape)}; expected [N, {inputs}], or [N, ...] with as many inputs"
            )
        if not x.is_floating_point():
            raise TypeError(f"{name} is {str(x.dtype).removeprefix('torch.')}; expected float32, bfloat16 or float16")
        x = x.flatten(1)
        return nn.functional.pad(x, (self.classes, 0)) if self.label == "concat" else x

    def _labelled(self, action: str) -> None:
        if self.label == "none":
            raise RuntimeError(
                f"label is 'none': {action} needs a label among the inputs; such a network learns by step_images() and "
                "answers by predict_softmax()"
            )

    def _check_labels(self, labels: Tensor, images: int) -> None:
        if not isinstance(labels, Tensor):
            raise TypeError(f"labels is a {type(labels).__name__}; expected an int64 tensor [{images}]")
        if labels.dtype != torch.int64:
            raise TypeError(f"labels is {str(labels.dtype).removeprefix('torch.')}; expected int64")
        if list(labels.shape) != [images]:
            raise ValueError(f"labels has shape {list(labels.shape)}; expected [{images}], one label for each image")

    def _overlay(self, x: Tensor) -> Tensor:
        if self.label_value != "max" or x.numel() == 0:
            return self.overlay
        on = x.max().float()
        neutral = on / self.classes if self.neutral_value is None else torch.full_like(on, self.neutral_value)
        return torch.stack((on, neutral))

    def _rows(
        self, images: int, negatives: int, device: torch.device, signs: str = "both"
    ) -> tuple[Tensor, Tensor | None]:
        """sign and row weights of one positive and `negatives` negative variants of each image."""
        key = (images, negatives, signs)
        if key not in self._signs:
            if len(self._signs) >= 16:  # batches of ever new sizes must not pile up
                self._signs.clear()
            sign = torch.ones(images * (1 + negatives), device=device)
            sign[images:] = 0 if signs == "positive" else -1
            if signs == "negative":
                sign[:images] = 0
            weight = None
            if negatives > 1:  # the negatives of an image share the weight of its positive
                weight = torch.full_like(sign, 0.5 / max(images * negatives, 1))
                weight[:images] = 0.5 / max(images, 1)
            self._signs[key] = (sign, weight)
        sign, weight = self._signs[key]
        if sign.device != device:
            sign, weight = sign.to(device), weight.to(device) if weight is not None else None
            self._signs[key] = (sign, weight)
        return sign, weight

    def _contrast(self, positives: int, negatives: int, device: torch.device) -> tuple[Tensor, Tensor | None]:
        """The same for so many positive and then negative rows that are no variants of each other."""
        sign = torch.ones(positives + negatives, device=device)
        sign[positives:] = -1
        if positives == negatives:
            return sign, None
        weight = torch.full_like(sign, 0.5 / max(negatives, 1))
        weight[:positives] = 0.5 / max(positives, 1)
        return sign, weight

    def _room(
        self, layer: int, rows: int, units: int, dtype: torch.dtype, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """Reused memory for the activities of one layer, and their norms."""
        kept = self._kept.get(layer)
        if kept is None or kept.numel() < rows * units or kept.dtype != dtype or kept.device != device:
            kept = self._kept[layer] = torch.empty(rows * units, dtype=dtype, device=device)
        return kept[: rows * units].view(rows, units), torch.empty(rows, device=device)

    def _activity_buffers(self, plan: _Plan, rows: int, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
        """Reused flat memory for activities, grown when a larger batch comes."""
        for i, units in enumerate(plan.widths):
            kept = self._kept.get(i)
            if kept is None or kept.numel() < rows * units or kept.dtype != dtype or kept.device != device:
                self._kept[i] = torch.empty(rows * units, dtype=dtype, device=device)
        return [self._kept[i] for i in range(len(plan.widths))]

    def _memory(self, plan: _Plan, images: int, variants: int, low: bool) -> Tensor:
        """The workspace of such a step, grown as :meth:`FFLinear.reserve` grows that of a layer."""
        if torch.compiler.is_compiling():
            return self._workspace  # too small a one is refused by the operation
        asked = (images, variants, low, torch.get_num_threads())
        need = plan.needs.get(asked)
        if need is None:
            if len(plan.needs) >= 64:
                plan.needs.clear()
            sizes = (images, self.classes, variants, bool(plan.head_layers), plan.peer, plan.optimisers, low)
            need = plan.needs[asked] = torch.ops.ffkern.network_workspace(plan.weights, plan.weight_states, *sizes)
        device = plan.weights[0].device
        if self._workspace.numel() < need or self._workspace.device != device:
            self._workspace = torch.empty(need, device=device)
        return self._workspace

    def wrong_labels(self, labels: Tensor, negatives: str, generator: torch.Generator | None = None) -> Tensor:
        """int64 [V, N] labels that are never the true one: "uniform" draws one, "all" gives every one."""
        if negatives == "all":
            result: Tensor = torch.ops.ffkern.all_wrong_labels(labels, self.classes)
            return result
        u = torch.rand(labels.shape[0], generator=generator, device=labels.device)
        drawn: Tensor = torch.ops.ffkern.wrong_labels(labels, self.classes, u)
        return drawn[None]

    # ------------------------------------------------------------ learning

    def step(
        self,
        x: Tensor,
        labels: Tensor,
        opt: FusedOptimizer,
        *,
        negatives: str = "uniform",
        generator: torch.Generator | None = None,
        head_opt: FusedOptimizer | None = None,
        signs: str = "both",
    ) -> None:
        """Every layer learns from this batch; each sees the activities from before the layer below moved.

        Frozen layers (``weight.requires_grad`` False) pass their activities on and stay as they are. All of it is one
        operation, ``ffkern::network_step_``, that checks everything before it changes anything; a refused step has
        changed nothing.

        Args:
            x: [N, ...] images (flattened here). labels: int64 [N].
            opt: a fused optimiser over the layers' parameters.
            negatives: "uniform" wrong labels, "hard" ones drawn from the head's class probabilities, or "all".
            generator: source of the random numbers; default torch's global one.
            head_opt: optimiser of the softmax head, which then learns from the neutral label in the same pass.
            signs: "both", or the "positive" or "negative" rows alone teach the layers, each with the weight that it
                has among both.
        """
        _choice("negatives", negatives, ("uniform", "hard", "all"))
        _choice("signs", signs, SIGNS)
        self._labelled("step()")
        if negatives == "hard" and self.head is None:
            raise ValueError("negatives='hard' draws from the softmax head; build the network with head_layers")
        if head_opt is not None and self.head is None:
            raise ValueError("head_opt is given, but the network has no softmax head; build it with head_layers")
        with torch.no_grad():
            images = self._images(x)
            self._check_labels(labels, images.shape[0])
            overlay = self._overlay(x)
            head = self.head if negatives == "hard" or head_opt is not None else None
            plan = self._planned(opt, head, head_opt)  # refuses before anything is drawn or has moved
            u = None
            if negatives == "hard":  # the operation writes the row that it draws
                u, wrong = torch.rand(labels.shape[0], generator=generator, device=labels.device), labels[None]
            else:
                wrong = self.wrong_labels(labels, negatives, generator)
            rows = [labels[None], wrong]
            if head is not None:
                rows.append(torch.full_like(wrong[:1], -1))
            self._step(plan, images, torch.cat(rows), u, overlay, signs)

    def _step(self, plan: _Plan, images: Tensor, labels: Tensor, u: Tensor | None, overlay: Tensor, signs: str) -> None:
        """One call for all layers and the head."""
        n, variants = images.shape[0], labels.shape[0] - bool(plan.head_layers)
        sign, row_weight = self._rows(n, variants - 1, images.device, signs)
        dtype = _stored(images)
        low = [layer._weight_low(images) for layer in plan.layers]
        lows = [none if t is None else t for t, none in itertools.zip_longest(low, plan.nothing)]
        torch.ops.ffkern.network_step_(
            images,
            labels,
            u,
            overlay,
            self.classes,
            plan.weights,
            plan.biases,
            plan.weight_states,
            plan.bias_states,
            plan.steps,
            [slot.lr() if slot else none for slot, none in zip(plan.slots, plan.nothing, strict=True)],
            lows,
            plan.peer_means,
            plan.stats,
            plan.head_layers,
            sign,
            row_weight,
            self._activity_buffers(plan, n * variants, dtype, images.device),
            self._memory(plan, n, variants, dtype == torch.bfloat16),
            *plan.settings,
            plan.optimisers,
            plan.hyper(),
        )
        for layer, written in zip(plan.layers, low, strict=True):
            layer._low_is_new(written)

    def _planned(self, opt: FusedOptimizer, head: FFHead | None, head_opt: FusedOptimizer | None) -> _Plan:
        """What stays the same from step to step, made anew when anything that it was made from is another."""
        if torch.compiler.is_compiling():
            return _Plan(self, opt, head, head_opt)
        # Tensors by identity: the plan holds them, so no other can have theirs.
        made_of = [opt, getattr(opt, "generation", None), head_opt, getattr(head_opt, "generation", None)]
        for layer in self._all_layers():
            weight, bias = layer.weight, layer.bias
            made_of += (id(weight), weight.data_ptr(), weight.requires_grad, weight.device)
            if bias is not None:
                made_of += (id(bias), bias.data_ptr(), bias.requires_grad)
            made_of += (id(layer.peer_mean), id(layer._statistics), layer.norm, layer.eps, layer.goodness)
            made_of += (layer.threshold, layer.temperature, layer.peer_strength, layer.peer_momentum)
        if head is not None:
            weight, bias = head.weight, head.bias
            made_of += (id(weight), weight.data_ptr(), id(bias), bias.data_ptr(), head.frozen, weight.device)
            made_of += (id(head._statistics), head.norm, head.eps, *self.head_layers)
        if self._plan is None or self._plan[0] != made_of:
            self._plan = made_of, _Plan(self, opt, head, head_opt)
        return self._plan[1]

    def step_layer(
        self,
        index: int,
        x: Tensor,
        labels: Tensor,
        opt: FusedOptimizer,
        *,
        negatives: str = "uniform",
        generator: torch.Generator | None = None,
    ) -> None:
        """Only layer ``index`` learns; the layers below are frozen (greedy training).

        Arguments as for :meth:`step`; "hard" negatives need the whole network and are refused.
        """
        _choice("negatives", negatives, ("uniform", "all"))
        with torch.no_grad():
            self._check_labels(labels, x.shape[0])
            wrong = self.wrong_labels(labels, negatives, generator)
            self.lesson(index, x, torch.cat((labels[None], wrong)))(opt)

    def lesson(self, index: int, x: Tensor, variants: Tensor) -> Callable[[FusedOptimizer], None]:
        """What layer ``index`` learns from on one mini-batch, kept for many updates on the same rows.

        The activities of the layers below are computed once, here.

        Args:
            x: [N, ...] images. variants: int64 [1 + V, N] labels: the true ones, then V rows of wrong ones.

        Returns:
            A function of an optimiser of :mod:`ffkern.optim`; every call is one update of the layer.
        """
        self._labelled("a lesson")
        with torch.no_grad():
            images, overlay = self._images(x), self._overlay(x)
            sign, weight = self._rows(images.shape[0], variants.shape[0] - 1, images.device)
            layer = self._layer(index)
            if index == 0:
                return partial(
                    layer.step_shared, images, variants, sign,
                    classes=self.classes, overlay=overlay, row_weight=weight,
                )  # fmt: skip
            h, h_norm = self._activities(images, variants, overlay)[index - 1]
            return partial(layer.step, h, sign, row_weight=weight, x_norm=h_norm)

    def step_images(
        self,
        x: Tensor,
        negatives: Tensor,
        opt: FusedOptimizer,
        *,
        labels: Tensor | None = None,
        head_opt: FusedOptimizer | None = None,
    ) -> None:
        """Every layer learns to tell images from others that are none: learning without labels, for label="none".

        As in :meth:`step`, each layer sees the activities from before the one below moved, and frozen ones only pass
        them on.

        Args:
            x: [N, ...] images, the positive rows. negatives: [Q, ...], such as :func:`ffkern.negatives.hybrid` makes.
                Positives and negatives have half the loss each.
            opt: a fused optimiser over the layers' parameters.
            labels, head_opt: int64 [N] and an optimiser of the softmax head, which then learns from the activities of
                the images in the same pass.

        Source: Hinton, arXiv 2212.13345, section 3.2.
        """
        if self.label != "none":
            raise RuntimeError(f"label is {self.label!r}; expected 'none', a network whose images carry no label")
        if (labels is None) != (head_opt is None):
            raise ValueError("expected labels and head_opt together: the head learns from both")
        if head_opt is not None and self.head is None:
            raise ValueError("head_opt is given, but the network has no softmax head; build it with head_layers")
        with torch.no_grad():
            images, others = self._images(x), self._images(negatives, "negatives")
            if others.dtype != images.dtype or others.device != images.device:
                raise ValueError(
                    f"negatives is {others.dtype} on {others.device}; expected {images.dtype} on {images.device}, as x"
                )
            n, h, length = images.shape[0], torch.cat((images, others)), None
            head = None if self.head is None or head_opt is None or self.head.frozen else self.head
            if labels is not None:  # all that the head would refuse when the layers have moved
                self._check_labels(labels, n)
                if n == 0:
                    raise ValueError("x has no rows; expected at least one image for the head to learn from")
                if labels.device.type == "cpu" and not 0 <= int(labels.min()) <= int(labels.max()) < self.classes:
                    raise ValueError(
                        f"labels holds {int(labels.min())} to {int(labels.max())}; expected 0 to {self.classes - 1}"
                    )
            if head is not None and head_opt is not None:
                head._bind(head_opt)
            sign, weight = self._contrast(n, others.shape[0], images.device)
            bound = [None if layer.frozen else layer._bind(opt) for layer in self._all_layers()]  # refuses beforehand
            if not any(bound) and head is None:
                raise RuntimeError("every layer is frozen (requires_grad is False): there is nothing to learn")
            kept = []
            for i in range(len(self.layers)):
                h, length = self._learn(i, h, length, sign, weight, opt)
                kept.append((h[:n], length[:n]))
            if labels is not None and head_opt is not None and head is not None:
                seen = [kept[i] for i in self.head_layers]
                head.step([h for h, _ in seen], [length for _, length in seen], labels, head_opt)

    def _learn(
        self, index: int, x: Tensor, length: Tensor | None, sign: Tensor, weight: Tensor | None, opt: FusedOptimizer
    ) -> tuple[Tensor, Tensor]:
        """One layer's update on rows x [R, K] of these lengths, unless it is frozen; its h and h_norm from before."""
        layer = self._layer(index)
        if layer.frozen:
            h, _, _, h_norm = layer.activities(x, length)
            return h, h_norm
        keep = self._room(index, x.shape[0], layer.out_features, _stored(x), x.device)
        layer.step(x, sign, opt, row_weight=weight, x_norm=length, keep=keep)
        return keep

    def step_head(self, x: Tensor, labels: Tensor, head_opt: FusedOptimizer) -> None:
        """Only the softmax head learns, from the neutral label; the layers stay as they are."""
        if self.head is None:
            raise RuntimeError("this network has no softmax head; build it with head_layers")
        with torch.no_grad():
            self.head.step(*self._head_inputs(x), labels, head_opt)

    def _head_inputs(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """h and h_norm of the head's layers under the neutral label."""
        neutral = torch.full((1, x.shape[0]), -1, dtype=torch.int64, device=x.device)
        kept = self._activities(self._images(x), neutral, self._overlay(x))
        return [kept[i][0] for i in self.head_layers], [kept[i][1] for i in self.head_layers]

    # ------------------------------------------------------------ using

    def _activities(self, images: Tensor, variants: Tensor, overlay: Tensor) -> list[tuple[Tensor, Tensor]]:
        """(h, h_norm) of every layer for these label variants."""
        return [(h, h_norm) for h, _, _, h_norm in self._pass(images, variants, overlay)]

    def _pass(self, images: Tensor, variants: Tensor, overlay: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """h, goodness, row scale and h_norm of layer after layer for these label variants, V N rows each."""
        first = self._layer(0)
        if self.label == "none":
            h, length = images, None
            for layer in self._all_layers():
                h, goodness, scale, length = layer.activities(h, length)
                yield h, goodness, scale, length
            return
        base, rest_norm = torch.ops.ffkern.shared_base(images, first.weight, self.classes, first._operand(images))
        count, device = variants.numel(), images.device
        h = torch.empty(count, first.out_features, dtype=_stored(images), device=device)
        rows: tuple[Tensor, ...] = (h, *(torch.empty(count, device=device) for _ in range(3)))
        torch.ops.ffkern.shared_variants_(
            base, rest_norm, first.weight, first.bias, variants, overlay, *rows, self.classes, first.norm,
            first.eps, first.goodness,
        )  # fmt: skip
        yield rows
        for i in range(1, len(self.layers)):
            rows = self._layer(i).activities(rows[0], rows[3])
            yield rows

    @torch.no_grad()
    def features(self, x: Tensor, labels: Tensor | None = None) -> list[Tensor]:
        """Normalised activities of every layer, [N, M_l] each, under the given labels (default: neutral)."""
        images = self._images(x)
        if labels is not None:
            self._labelled("features under a label")
        else:
            labels = torch.full((x.shape[0],), -1, dtype=torch.int64, device=x.device)
        kept = self._activities(images, labels[None], self._overlay(x))
        result = []
        for layer, (h, h_norm) in zip(self._all_layers(), kept, strict=True):
            if layer.norm == "none":
                result.append(h)
                continue
            length = h_norm / h.shape[1] ** 0.5 if layer.norm == "rms" else h_norm
            result.append(h / (length + layer.eps)[:, None])
        return result

    @torch.no_grad()
    def goodness(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """Goodness of every layer and image.

        Args:
            x: [N, ...] images.
            labels: int64 [N], one label an image, -1 being the neutral one: how well the images fit them. Without it
                every label is tried.

        Returns:
            float32 [L, N, C], or [L, N] for given labels, and with label="none": how real the images look.
        """
        if self.label == "none":
            if labels is not None:
                self._labelled("goodness of labels")
            return torch.stack([rows[1] for rows in self._pass(self._images(x), x.new_empty(0), self.overlay)])
        if labels is not None:
            self._check_labels(labels, x.shape[0])
            return torch.stack([rows[1] for rows in self._pass(self._images(x), labels[None], self._overlay(x))])
        first, layers, overlay = self._layer(0), list(self._all_layers()), self._overlay(x)
        weights, biases = [layer.weight for layer in layers], [layer.bias for layer in layers]
        low = [layer._weight_low(x) for layer in layers]
        # Room for a label in front means a copy: of a block of images, not of all.
        blocks = x.split(PADDED_ROWS) if self.label == "concat" else (x,)
        found: list[Tensor] = [
            torch.ops.ffkern.predict_goodness(
                self._images(block), weights, biases, self.classes, overlay, first.norm, first.eps, first.goodness,
                None if low[0] is None else low,
            )
            for block in blocks
        ]  # fmt: skip
        return found[0] if len(found) == 1 else torch.cat(found, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Goodness of every label, summed over layers: float32 [N, C]. The largest is the answer."""
        self._labelled("goodness of labels")
        return self.goodness(x).sum(0)

    def predict(self, x: Tensor, layers: str = "all") -> Tensor:
        """Label with the highest goodness summed over "all" layers, or "all_but_first" (Hinton's choice)."""
        self._labelled("goodness of labels")
        return self.votes(self.goodness(x), layers).argmax(1)

    @staticmethod
    def votes(goodness: Tensor, layers: str = "all") -> Tensor:
        """Goodness [L, N, C] summed over "all" layers, or "all_but_first" (all, if there is one): [N, C]."""
        _choice("layers", layers, ("all", "all_but_first"))
        skip = 1 if layers == "all_but_first" and goodness.shape[0] > 1 else 0
        return goodness[skip:].sum(0)

    @torch.no_grad()
    def logits(self, x: Tensor) -> Tensor:
        """Logits of the softmax head from one pass with the neutral label: float32 [N, C]."""
        if self.head is None:
            raise RuntimeError("this network has no softmax head; build it with head_layers")
        result: Tensor = self.head(*self._head_inputs(x))
        return result

    def predict_softmax(self, x: Tensor) -> Tensor:
        """Label with the highest probability of the softmax head: one pass instead of one per label."""
        return self.logits(x).argmax(1)

    def metrics(self, reset: bool = True) -> list[dict[str, float]]:
        """:meth:`FFLinear.metrics` of every layer."""
        return [layer.metrics(reset) for layer in self._all_layers()]


class _Plan:
    """The arguments of a network step that stay the same from call to call, as ``ffkern::network_step_`` takes them:
    an entry for each layer, and one behind them for the head where it answers. It learns if it has an optimiser."""

    def __init__(self, net: FFNet, opt: FusedOptimizer, head: FFHead | None, head_opt: FusedOptimizer | None) -> None:
        self.opt, self.head_opt = opt, head_opt
        self.layers = layers = list(net._all_layers())
        self.slots: list[Slot | None] = [None if layer.frozen else layer._bind(opt) for layer in layers]
        learning = [i for i, slot in enumerate(self.slots) if slot]
        if not learning and head is None:
            raise RuntimeError("every layer is frozen (requires_grad is False): there is nothing to learn")
        modules: list[FFLinear | FFHead] = [*layers]
        if head is not None:
            modules.append(head)
            self.slots.append(None if head_opt is None or head.frozen else head._bind(head_opt))
        entries = list(zip(modules, self.slots, strict=True))
        device = layers[0].weight.device

        def listed(*tensors: Tensor | None) -> list[Tensor]:
            """As the operation takes them: an empty tensor for None."""
            return [torch.empty(0, device=device) if t is None else t for t in tensors]

        # What stays as it is must not count as written: .data has a version counter of its own.
        self.weights = [m.weight if slot else m.weight.data for m, slot in entries]
        self.biases = listed(*(m.bias if slot or m.bias is None else m.bias.data for m, slot in entries))
        self.weight_states = listed(*(slot.weight_state if slot else None for slot in self.slots))
        self.bias_states = listed(*(slot.bias_state if slot else None for slot in self.slots))
        self.steps = listed(*(slot.step if slot else None for slot in self.slots))
        peers = [m.peer_mean if slot and isinstance(m, FFLinear) else None for m, slot in entries]
        self.peer, self.peer_means = any(mean is not None for mean in peers), listed(*peers)
        self.stats = listed(*(m.statistics() if slot else None for m, slot in entries))
        self.nothing = listed(*[None] * len(entries))
        self.head_layers = net.head_layers if head is not None else []
        first, answer = layers[0], head or layers[0]
        self.settings = (
            first.norm,
            first.eps,
            first.goodness,
            [layer.threshold for layer in layers],
            [layer.temperature for layer in layers],
            [layer.peer_strength for layer in layers],
            [layer.peer_momentum for layer in layers],
            answer.norm,
            answer.eps,
        )
        self.optimisers = [slot.kind if slot else "" for slot in self.slots]
        # Widest layer of each buffer: one a layer if all have to be kept, else two that take turns below the last.
        units = [layer.out_features for layer in layers]
        kept = units if head is not None else units[: learning[-1]]
        turns = len(kept) if head is not None else min(2, len(kept))
        self.widths = [max(kept[i::turns]) for i in range(turns)]
        self.needs: dict[tuple[int, int, bool, int], int] = {}  # floats of workspace, by images, variants, threads

    def hyper(self) -> list[float]:
        """Settings of the optimisers now, 5 an entry."""
        rules: dict[int, list[float]] = {}  # one for each parameter group
        for slot in self.slots:
            if slot and id(slot.group) not in rules:
                rules[id(slot.group)] = slot.hyper
        return [value for slot in self.slots for value in (rules[id(slot.group)] if slot else (0.0,) * 5)]
