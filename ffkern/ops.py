"""The operations as torch's dispatcher knows them: schema, fake kernel, autograd and autocast.

Kernels are in ``csrc`` (``csrc/cpu`` and ``csrc/cuda`` through ``csrc/binding``); what each operation
computes is said once, in :mod:`ffkern.reference`, under the same name without trailing underscore.
Call them as ``ffkern.ops.layer_forward(...)``, which is ``torch.ops.ffkern.layer_forward``.

Names ending in ``_`` write their ``Tensor(a!)`` arguments in place and bump their version
counters, so that a later ``backward()`` that needs the old values raises.

Autocast casts ``x`` alone. Weights and optimiser state stay float32: a cast would hand the kernel
a copy, and the update would be lost.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from . import _ext

# ---------------------------------------------------------------- schemas

_KIND = "str norm, float eps, str goodness"
_OUTPUTS = "Tensor(a!) h, Tensor(b!) goodness, Tensor(c!) scale, Tensor(d!) h_norm"
_FOUR = "(Tensor h, Tensor goodness, Tensor scale, Tensor h_norm)"
_TRAINED = (
    "Tensor(a!) weight, Tensor(b!)? bias, Tensor(c!) weight_state, Tensor(d!) bias_state, Tensor(e!) step, Tensor lr"
)
# The weights as products of 16-bit x read them, written with every update: on CUDA a copy [M, K] in the dtype of x, on
# the CPU for bfloat16 what pack_weight_ makes.
_LOW = "Tensor(k!)? weight_low"
_READ_LOW = "Tensor? weight_low=None"
_LESSON = (
    "Tensor sign, Tensor? row_weight, Tensor(f!)? peer_mean, Tensor(g!) workspace, "
    "Tensor(h!) stats, Tensor(i!)? h, Tensor(j!)? h_norm"
)
_LOSS = "float threshold, float temperature, float peer_strength, float peer_momentum"
_RULE = "str optimiser, float[] hyper"
_COUNTED = "Tensor(f!) workspace, Tensor(g!)? stats"  # the rows left out are taken from the kept ones of stats
_KEPT = "Tensor x, Tensor h, Tensor scale, Tensor coef"
_LABELS = "Tensor labels, Tensor overlay, int classes"

SCHEMAS = {
    "layer_forward": f"(Tensor x, Tensor weight, Tensor? bias, Tensor? x_norm, {_KIND}, {_READ_LOW}) -> {_FOUR}",
    "layer_forward_": (
        f"(Tensor x, Tensor weight, Tensor? bias, Tensor? x_norm, {_OUTPUTS}, "
        f"str norm, float eps, str goodness_kind, {_READ_LOW}) -> ()"
    ),
    "shared_base": f"(Tensor x, Tensor weight, int classes, {_READ_LOW}) -> (Tensor base, Tensor rest_norm)",
    "shared_variants": (f"(Tensor base, Tensor rest_norm, Tensor weight, Tensor? bias, {_LABELS}, {_KIND}) -> {_FOUR}"),
    "shared_variants_": (
        "(Tensor base, Tensor rest_norm, Tensor weight, Tensor? bias, Tensor labels, "
        f"Tensor overlay, {_OUTPUTS}, int classes, str norm, float eps, str goodness_kind) -> ()"
    ),
    "local_loss": (
        "(Tensor goodness, Tensor sign, Tensor? row_weight, float threshold, float temperature) "
        "-> (Tensor loss, Tensor coef, Tensor stats)"
    ),
    "peer_update_": ("(Tensor h, Tensor sign, Tensor(a!) mean, float strength, float momentum) -> Tensor"),
    "layer_grad": (f"({_KEPT}, Tensor? sign, Tensor? peer, str goodness) -> (Tensor dweight, Tensor dbias)"),
    "shared_grad": (
        f"({_KEPT}, {_LABELS}, Tensor? sign, Tensor? peer, str goodness) -> (Tensor dweight, Tensor dbias)"
    ),
    "layer_update_": (
        f"({_KEPT}, Tensor? sign, Tensor? peer, {_TRAINED}, {_LOW}, {_COUNTED}, str goodness, {_RULE}) -> ()"
    ),
    "shared_update_": (
        f"({_KEPT}, {_LABELS}, Tensor? sign, Tensor? peer, {_TRAINED}, {_LOW}, {_COUNTED}, str goodness, {_RULE}) -> ()"
    ),
    "layer_step_": (f"(Tensor x, Tensor? x_norm, {_TRAINED}, {_LOW}, {_LESSON}, {_KIND}, {_LOSS}, {_RULE}) -> ()"),
    "shared_step_": (f"(Tensor x, {_LABELS}, {_TRAINED}, {_LOW}, {_LESSON}, {_KIND}, {_LOSS}, {_RULE}) -> ()"),
    # Lists: an entry for each layer, and a last one for the head where there is one; an empty tensor stands for none.
    "network_step_": (
        "(Tensor x, Tensor(a!) labels, Tensor? u, Tensor overlay, int classes, Tensor(b!)[] weights, "
        "Tensor(c!)[] biases, Tensor(d!)[] weight_states, Tensor(e!)[] bias_states, Tensor(f!)[] steps, "
        "Tensor[] lrs, Tensor(g!)[] weights_low, Tensor(h!)[] peer_means, Tensor(i!)[] stats, int[] head_layers, "
        f"Tensor sign, Tensor? row_weight, Tensor(j!)[] activities, Tensor(k!) workspace, {_KIND}, "
        "float[] thresholds, float[] temperatures, float[] peer_strengths, float[] peer_momenta, "
        "str head_norm, float head_eps, "
        "str[] optimisers, float[] hyper) -> ()"
    ),
    "predict_goodness": (
        f"(Tensor x, Tensor[] weights, Tensor?[] biases, int classes, Tensor overlay, {_KIND}, "
        "Tensor[]? weights_low=None) -> Tensor"
    ),
    "pack_weight_": "(Tensor weight, Tensor(a!) out) -> ()",
    "overlay_label": "(Tensor x, Tensor labels, int classes, Tensor overlay) -> Tensor",
    "concat_label": "(Tensor x, Tensor labels, int classes, Tensor overlay) -> Tensor",
    "wrong_labels": "(Tensor labels, int classes, Tensor u) -> Tensor",
    "hard_labels": "(Tensor logits, Tensor labels, Tensor u) -> Tensor",
    "all_wrong_labels": "(Tensor labels, int classes) -> Tensor",
    "hybrid_images_": (
        "(Tensor x, Tensor other, Tensor(a!) generator, int height, int width, int blurs) "
        "-> (Tensor images, Tensor mask)"
    ),
    "head_forward": ("(Tensor[] h, Tensor[] h_norm, Tensor weight, Tensor? bias, str norm, float eps) -> Tensor"),
    "head_step_": (
        f"(Tensor[] h, Tensor[] h_norm, Tensor labels, {_TRAINED}, Tensor(f!) stats, "
        f"str norm, float eps, {_RULE}) -> Tensor"
    ),
    "step_workspace": (
        "(Tensor weight, int images, int classes, int variants, bool peer, str optimiser, bool low=False) -> int"
    ),
    "update_workspace": (
        "(Tensor weight, int images, int classes, int variants, str optimiser, bool low=False) -> int"
    ),
    "network_workspace": (
        "(Tensor[] weights, Tensor[] weight_states, int images, int classes, int variants, bool head, bool peer, "
        "str[] optimisers, bool low=False) -> int"
    ),
    "cpu_path": "() -> str",
    "reset_cpu_path": "() -> str",
    "float32_precision": "() -> str",
}

_library = torch.library.Library("ffkern", "DEF")
for _name, _schema in SCHEMAS.items():
    _library.define(_name + _schema)
_ext.load()


def _float32_precision() -> str:
    """torch's setting for float32 products on CUDA, asked by the CUDA operations: "tf32", or anything else for full."""
    return str(torch.backends.cuda.matmul.fp32_precision)


_library.impl("float32_precision", _float32_precision, "CompositeExplicitAutograd")


__all__ = sorted(SCHEMAS)


def __getattr__(name: str) -> Any:
    if name in SCHEMAS:
        return getattr(torch.ops.ffkern, name)
    raise AttributeError(f"module 'ffkern.ops' has no attribute {name!r}")


# ---------------------------------------------------------------- fake kernels: shapes and dtypes


def _fake(name: str) -> Callable[[Callable[..., Any]], None]:
    """Registers a fake kernel. Real tensors mixed with ones on the meta device would silently end up here."""
    arguments = [a.name for a in getattr(torch.ops.ffkern, name).default._schema.arguments]

    def register(kernel: Callable[..., Any]) -> None:
        def checked(*args: Any) -> Any:
            given = [(n, a) for n, a in zip(arguments, args, strict=False)]
            given += [(n, part) for n, a in given if isinstance(a, list | tuple) for part in a]
            tensors = [(n, a) for n, a in given if isinstance(a, Tensor)]
            devices = {a.device.type for _, a in tensors}
            if "meta" in devices and len(devices) > 1:
                lost = next(n for n, a in tensors if a.device.type == "meta")
                other = next(a.device for _, a in tensors if a.device.type != "meta")
                raise RuntimeError(
                    f"ffkern::{name}: {lost} is on the meta device; expected {other}, as the other tensors"
                )
            return kernel(*args)

        torch.library.register_fake(f"ffkern::{name}", checked, lib=_library)

    return register


def _floats(like: Tensor, *shape: Any) -> Tensor:
    return like.new_empty(shape, dtype=torch.float32)


def _fake_activities(like: Tensor, rows: Any, units: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    row = [_floats(like, rows) for _ in range(3)]
    return like.new_empty((rows, units)), row[0], row[1], row[2]


@_fake("layer_forward")
def _(x: Tensor, weight: Tensor, *_: Any) -> tuple[Tensor, ...]:
    torch._check(x.dim() == 2 and weight.dim() == 2, lambda: "x and weight must be matrices")
    torch._check(
        x.shape[1] == weight.shape[1],
        lambda: (
            f"ffkern::layer_forward: x has shape {list(x.shape)}; expected "
            f"[*, {weight.shape[1]}] to match weight {list(weight.shape)}"
        ),
    )
    return _fake_activities(x, x.shape[0], weight.shape[0])


@_fake("shared_base")
def _(x: Tensor, weight: Tensor, classes: int, weight_low: Any = None) -> tuple[Tensor, Tensor]:
    return _floats(x, x.shape[0], weight.shape[0]), _floats(x, x.shape[0])


@_fake("shared_variants")
def _(base: Tensor, rest_norm: Tensor, weight: Tensor, bias: Any, labels: Tensor, *_: Any) -> tuple[Tensor, ...]:
    return _fake_activities(base, labels.shape[0] * base.shape[0], weight.shape[0])


@_fake("local_loss")
def _(goodness: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return (
        _floats(goodness),
        _floats(goodness, goodness.shape[0]),
        goodness.new_empty((9,), dtype=torch.float64),
    )


@_fake("peer_update_")
def _(h: Tensor, *_: Any) -> Tensor:
    return _floats(h, h.shape[1])


def _fake_gradient(x: Tensor, h: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return _floats(h, h.shape[1], x.shape[1]), _floats(h, h.shape[1])


_fake("layer_grad")(_fake_gradient)
_fake("shared_grad")(_fake_gradient)


def _fake_nothing(*_: Any) -> None:
    return None


for _name in (
    "layer_forward_",
    "shared_variants_",
    "layer_update_",
    "shared_update_",
    "layer_step_",
    "shared_step_",
    "pack_weight_",
    "network_step_",
):
    _fake(_name)(_fake_nothing)


@_fake("predict_goodness")
def _(x: Tensor, weights: Sequence[Tensor], biases: Any, classes: int, *_: Any) -> Tensor:
    return _floats(x, len(weights), x.shape[0], classes)


@_fake("overlay_label")
def _(x: Tensor, *_: Any) -> Tensor:
    return x.new_empty(x.shape)


@_fake("concat_label")
def _(x: Tensor, labels: Tensor, classes: int, overlay: Tensor) -> Tensor:
    return x.new_empty((x.shape[0], x.shape[1] + classes))


@_fake("wrong_labels")
def _(labels: Tensor, *_: Any) -> Tensor:
    return labels.new_empty(labels.shape)


@_fake("hard_labels")
def _(logits: Tensor, labels: Tensor, u: Tensor) -> Tensor:
    return labels.new_empty(labels.shape)


@_fake("all_wrong_labels")
def _(labels: Tensor, classes: int) -> Tensor:
    return labels.new_empty((classes - 1, labels.shape[0]))


@_fake("hybrid_images_")
def _(x: Tensor, other: Tensor, generator: Tensor, height: int, width: int, blurs: int) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty((x.shape[0], height * width), dtype=torch.bool)


@_fake("head_forward")
def _(h: Sequence[Tensor], h_norm: Any, weight: Tensor, *_: Any) -> Tensor:
    return _floats(weight, h[0].shape[0], weight.shape[0])


@_fake("head_step_")
def _(h: Sequence[Tensor], h_norm: Any, labels: Tensor, weight: Tensor, *_: Any) -> Tensor:
    return _floats(weight, h[0].shape[0], weight.shape[0])


# ---------------------------------------------------------------- autograd of the fused forward


class _FirstDerivative(torch.autograd.Function):
    """Passes a gradient on; differentiating it again raises instead of leaving terms out."""

    @staticmethod
    def forward(ctx: Any, name: str, gradient: Tensor, *sources: Tensor) -> Tensor:
        ctx.name = name
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        raise RuntimeError(f"ffkern::{ctx.name}: first derivatives only; it cannot be differentiated twice")


def _once(name: str, gradients: tuple[Any, ...], sources: Sequence[Tensor | None]) -> tuple[Any, ...]:
    if not torch.is_grad_enabled():  # no create_graph: nobody will ask
        return gradients
    kept = [s for s in sources if s is not None]
    once: Callable[..., Tensor] = _FirstDerivative.apply
    return tuple(once(name, g, *kept) if isinstance(g, Tensor) else g for g in gradients)


def _save_forward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, bias, _, norm, _, goodness, _ = inputs
    h, _, scale, h_norm = output
    ctx.mark_non_differentiable(scale)
    ctx.set_materialize_grads(False)
    # The weight is saved even when only dW is asked for: its version counter makes a backward()
    # after an in-place update raise instead of mixing two sets of weights.
    ctx.save_for_backward(x, weight, bias, h, scale, h_norm)
    ctx.norm, ctx.goodness = norm, goodness


def _goodness_slope(goodness: str, h: Tensor) -> Tensor | float:
    """dg/dh of one activity."""
    units = h.shape[1]
    if goodness == "sum_abs":
        return 1.0
    factor = 2.0 if goodness.endswith("sum_sq") else 2.0 / units
    return (-factor if goodness.startswith("neg") else factor) * h


def _forward_backward(ctx: Any, *douts: Tensor | None) -> tuple[Any, ...]:
    saved = ctx.saved_tensors
    with torch.no_grad():
        gradients = _forward_gradients(ctx, saved, *douts)
    return _once("layer_forward", gradients, (*saved, *douts))


def _forward_gradients(
    ctx: Any, saved: Sequence[Any], dh: Tensor | None, dg: Tensor | None, _: Tensor | None, dnorm: Tensor | None
) -> tuple[Any, ...]:
    """Gradients of h, goodness and h_norm with respect to x, weight and bias.

    With z = r u + b and u = x W^T:  dW = (r dz)^T x, db = sum dz, and for x both the product's
    dz r W and the scale's dr = sum_j dz_j u_j, where u_j = (h_j - b_j) / r wherever dz_j is not 0.
    """
    x, weight, bias, h, scale, h_norm = saved
    want_x, want_weight, want_bias = ctx.needs_input_grad[:3]
    empty: tuple[Any, ...] = (None,) * 8
    if dh is None and dg is None and dnorm is None:
        return empty
    dx = dweight = dbias = None
    if dh is None and dnorm is None and not want_x:  # Forward-Forward's own case: no dz is stored
        if want_weight or want_bias:
            dweight, dbias = torch.ops.ffkern.layer_grad(x, h, scale, dg, None, None, ctx.goodness)
    else:
        a = h.float()
        dz = torch.zeros_like(a) if dh is None else dh.float()
        if dg is not None:
            dz = dz + dg[:, None] * _goodness_slope(ctx.goodness, a)
        if dnorm is not None:
            length = h_norm[:, None]
            dz = dz + torch.where(length > 0, dnorm[:, None] * a / length, 0.0)
        dz = torch.where(a > 0, dz, 0.0)
        scaled = scale[:, None] * dz
        xf = x.float()
        if want_weight:
            dweight = scaled.T @ xf
        if want_bias:
            dbias = dz.sum(0)
        if want_x:
            dx = scaled @ weight.float()
            if ctx.norm != "none":
                u_r = a if bias is None else a - bias.float()
                dr_r = (dz * u_r).sum(1, keepdim=True)  # dr times r
                length = xf.norm(dim=1, keepdim=True)
                if ctx.norm == "rms":
                    length = length * x.shape[1] ** 0.5
                dx = dx - torch.where(length > 0, scale[:, None] * dr_r * xf / length, 0.0)
            dx = dx.to(x.dtype)
    if dweight is not None:
        dweight = dweight.to(weight.dtype) if want_weight else None
    if dbias is not None:
        dbias = dbias.to(bias.dtype) if want_bias else None
    return (dx, dweight, dbias, *empty[3:])


torch.library.register_autograd("ffkern::layer_forward", _forward_backward, setup_context=_save_forward, lib=_library)


def _save_loss(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, coef, stats = output
    ctx.mark_non_differentiable(coef, stats)
    ctx.save_for_backward(coef, inputs[0])


def _loss_backward(ctx: Any, dloss: Tensor, *_: Any) -> tuple[Any, ...]:
    coef, goodness = ctx.saved_tensors
    with torch.no_grad():
        gradient = dloss * coef
    return _once("local_loss", (gradient, None, None, None, None), (goodness, dloss))


torch.library.register_autograd("ffkern::local_loss", _loss_backward, setup_context=_save_loss, lib=_library)


def _refuse_gradient(name: str) -> None:
    """Operations without a derivative say so instead of returning a silent zero."""

    def backward(ctx: Any, *_: Any) -> Any:
        raise RuntimeError(
            f"ffkern::{name} has no derivative. Differentiate through ffkern::layer_forward and "
            "ffkern::local_loss (first derivatives only), or use torch.no_grad()."
        )

    torch.library.register_autograd(f"ffkern::{name}", backward, lib=_library)


for _name in (
    "shared_base",
    "shared_variants",
    "layer_grad",
    "shared_grad",
    "predict_goodness",
    "overlay_label",
    "concat_label",
    "head_forward",
):
    _refuse_gradient(_name)

# ---------------------------------------------------------------- operations that write in place


def _register_in_place(name: str) -> None:
    """No gradient flows through an update; the version counters of what it writes are bumped.

    torch does the second for its own in-place operations; a low-level operation has to ask.
    """
    op = getattr(torch.ops.ffkern, name).default
    written = [
        i
        for i, argument in enumerate(op._schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    ]

    def kernel(keyset: Any, *args: Any) -> Any:
        given = [args[i] for i in written]
        lists = [part for value in given if isinstance(value, list) for part in value]
        tensors = [value for value in (*given, *lists) if isinstance(value, Tensor)]
        torch.autograd.graph.increment_version(tensors)
        with torch._C._AutoDispatchBelowADInplaceOrView():
            return op.redispatch(keyset & torch._C._after_ADInplaceOrView_keyset, *args)

    _library.impl(name, kernel, "Autograd", with_keyset=True)


for _name, _schema in SCHEMAS.items():
    if "!" in _schema:
        _register_in_place(_name)

# ---------------------------------------------------------------- autocast


def _register_autocast(name: str, device: str) -> None:
    """Casts x, the first argument, and nothing else."""
    op = getattr(torch.ops.ffkern, name)
    key = {"cpu": "AutocastCPU", "cuda": "AutocastCUDA"}[device]
    off = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))

    def kernel(_: Any, x: Tensor, *args: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(off):
            if x.is_floating_point() and x.dtype != torch.float64:  # others reach the op's own refusal
                x = x.to(torch.get_autocast_dtype(device))
            return op(x, *args)

    _library.impl(name, kernel, key, with_keyset=True)


for _name in (
    "layer_forward",
    "layer_step_",
    "shared_step_",
    "network_step_",
    "layer_update_",
    "shared_update_",
    "shared_base",
    "predict_goodness",
):
    for _device in ("cpu", "cuda"):
        _register_autocast(_name, _device)
