"""The specification of ffkern: every operation in plain PyTorch, in any floating dtype.

Each function is the twin of the operation of the same name (without the trailing underscore of
those that write in place: here the new values are returned, and caller-owned outputs, workspaces
and counters are left out).  It is written to be read, not to be fast, and imports only torch.

Letters: R rows, N images, V label variants, K inputs, M units, C classes, L layers, S state slots.

Dtypes: float64 in, float64 out.  bfloat16 and float16 inputs are computed in float32; the
activities h come back in the dtype of x, everything else in float32.  Goodness and norms are
those of the activities before that rounding.  Statistics are always float64.

Gradients: no function here contains a derivative written by hand.  All of them come from autograd.

"Hinton" is G. Hinton, The Forward-Forward Algorithm, arXiv 2212.13345 (2022), or the program
`ffnew.m` he published with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

NORMS = ("l2", "rms", "none")
GOODNESS = ("sum_sq", "mean_sq", "neg_sum_sq", "neg_mean_sq", "sum_abs")
STATE_SLOTS = {"sgd": 1, "ema": 1, "adam": 2, "adamw": 2}


class LayerStep(NamedTuple):
    """What one training step of a layer leaves behind."""

    weight: Tensor  # [M, K] after the update
    bias: Tensor | None  # [M] after the update
    weight_state: Tensor  # [S, M, K]
    bias_state: Tensor  # [S, M]
    step: Tensor  # int64 0-dim, one more than before
    peer_mean: Tensor | None  # [M]
    h: Tensor  # [R, M] activities, from the weights before the update
    h_norm: Tensor  # [R] their L2 norms
    stats: Tensor  # float64 [9] of this batch, see local_loss


class NetworkStep(NamedTuple):
    """What one training step of a network leaves behind: lists with an entry for each layer, and one for the head."""

    labels: Tensor  # with the wrong ones that were drawn
    weights: list[Tensor]
    biases: list[Tensor | None]
    weight_states: list[Tensor | None]
    bias_states: list[Tensor | None]
    steps: list[Tensor | None]
    peer_means: list[Tensor | None]
    stats: list[Tensor | None]  # of this batch; None where nothing learned


# ------------------------------------------------------------------------------- small helpers


def _check(argument: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ValueError(f"{argument} is {value!r}; it must be one of {', '.join(allowed)}")


def _check_labels(labels: Tensor, classes: int, lowest: int) -> None:
    if labels.numel() and (int(labels.min()) < lowest or int(labels.max()) >= classes):
        span = f"{int(labels.min())}..{int(labels.max())}"
        raise ValueError(f"labels are in {span}; they must be in {lowest}..{classes - 1}")


def _check_classes(classes: int, least: int = 1, most: int | None = None) -> None:
    if classes < least or (most is not None and classes > most):
        upper = "" if most is None else f" and at most {most}, the number of inputs"
        raise ValueError(f"classes is {classes}; it must be at least {least}{upper}")


def _compute_dtype(*tensors: Tensor | None) -> torch.dtype:
    """float32, or float64 as soon as one of the tensors is float64."""
    dtype = torch.float32
    for tensor in tensors:
        if tensor is not None:
            dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def _row_norm(x: Tensor) -> Tensor:
    """L2 norm of each row.  Its gradient at a zero row is 0, where sqrt alone would give NaN:
    there the square root is taken of a constant 1, and the result replaced by a constant 0."""
    square = (x * x).sum(1)
    zero = square == 0
    return torch.where(zero, 0.0, torch.where(zero, 1.0, square).sqrt())


def _row_scale(l2_norm: Tensor, inputs: int, norm: str, eps: float) -> Tensor:
    """r = 1 / (n + eps) with n the L2 norm, or the root mean square over the inputs; or 1."""
    _check("norm", norm, NORMS)
    if norm == "none":
        return torch.ones_like(l2_norm)
    return 1 / ((l2_norm / inputs**0.5 if norm == "rms" else l2_norm) + eps)


def _goodness(h: Tensor, kind: str) -> Tensor:
    """Goodness [R] of activities h [R, M]."""
    _check("goodness", kind, GOODNESS)
    if kind == "sum_abs":
        return h.abs().sum(1)
    square = h * h
    value = square.mean(1) if "mean" in kind else square.sum(1)
    return -value if kind.startswith("neg") else value


def _pre_activation(
    x: Tensor, weight: Tensor, bias: Tensor | None, x_norm: Tensor | None, norm: str, eps: float
) -> tuple[Tensor, Tensor]:
    """z = r * (x W^T) + b, and r."""
    dtype = _compute_dtype(x, weight, bias)
    x, weight = x.to(dtype), weight.to(dtype)
    length = _row_norm(x)
    if x_norm is not None:  # the value given, the gradient of ||x||
        given = x_norm.detach().to(dtype)
        length = given + (length - length.detach()) if x.requires_grad else given
    scale = _row_scale(length, x.shape[1], norm, eps)
    z = scale[:, None] * (x @ weight.T)
    return (z if bias is None else z + bias.to(dtype)), scale


def _label_inputs(labels: Tensor, classes: int, overlay: Tensor, dtype: torch.dtype) -> Tensor:
    """[..., C]: overlay[0] times the one-hot label; overlay[1] everywhere where the label is -1."""
    _check_labels(labels, classes, -1)
    on, neutral = overlay.to(dtype)
    label = labels[..., None]
    one_hot = label == torch.arange(classes, device=labels.device)
    return torch.where(label == -1, neutral, torch.where(one_hot, on, torch.zeros_like(on)))


def _variants(x: Tensor, labels: Tensor, classes: int, overlay: Tensor) -> Tensor:
    """[V*N, K]: x once for every row of labels [V, N], row v*N + i, in the computing dtype."""
    rows = x.to(_compute_dtype(x)).repeat(labels.shape[0], 1)
    return overlay_label(rows, labels.reshape(-1), classes, overlay)


# --------------------------------------------------------------------------------- one layer


def layer_forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    x_norm: Tensor | None,
    norm: str,
    eps: float,
    goodness: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """h = relu(r * (x W^T) + b), its goodness, r, and ||h||.

    x [R, K], weight [M, K], bias [M]; x_norm [R]: L2 norms of the rows of x where known, which
    then stand in for the computed ones.  norm: "l2" r = 1/(||x|| + eps), "rms"
    r = 1/(||x||/sqrt(K) + eps), "none" r = 1.  goodness: sum or mean over the M units of h^2, the
    negative of either, or the sum of |h|.
    Returns h [R, M] (dtype of x), goodness [R], scale r [R] (not differentiable), h_norm [R].
    Gradients flow from h, goodness and h_norm to x (through r too), weight and bias.  relu'(0) = 0,
    and the gradient of a norm at a zero row is 0, not NaN: there dx is (dh/dz W)/eps, which is 0
    unless a positive bias keeps the unit on.
    NaN is kept: a NaN in a row of x makes that row NaN, and no other.
    Source: Hinton section 2 (squares) and 2.1 (normalising the input); "rms": ffnew.m.
    """
    z, scale = _pre_activation(x, weight, bias, x_norm, norm, eps)
    h = torch.relu(z)
    return h.to(x.dtype), _goodness(h, goodness), scale.detach(), _row_norm(h)


def local_loss(
    goodness: Tensor, sign: Tensor, row_weight: Tensor | None, threshold: float, temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    """loss = sum_i w_i softplus(-l_i), l_i = sign_i (g_i - threshold) / temperature.

    goodness [R]; sign [R]: +1 positive, -1 negative, 0 no part in it; row_weight w [R], default
    1/R each with R all rows.
    Returns loss (0-dim, differentiable with respect to goodness), coef [R] = dloss/dgoodness
    (a constant), and stats, float64 [9]: loss; sum of g over positives; over negatives; number of
    positives with g > threshold; of negatives with g < threshold; of positives; of negatives; of both again, as those
    that no update has left out (here none ever is).
    Source: Hinton section 2, p = logistic(g - threshold); the temperature: ffnew.m.
    """
    dtype = _compute_dtype(goodness)
    rows = goodness.shape[0]
    active, positive, negative = sign != 0, sign > 0, sign < 0
    if row_weight is None:
        row_weight = torch.full_like(goodness, 1 / max(rows, 1), dtype=dtype)
    weight = torch.where(active, row_weight.detach().to(dtype), 0.0)

    def total(g: Tensor) -> Tensor:
        g = torch.where(active, g, 0.0)  # a NaN in a row that takes no part stays there
        logit = sign.to(dtype) * (g - threshold) / temperature
        return (weight * -functional.logsigmoid(logit)).sum()  # softplus(-l), at any l

    with torch.enable_grad():
        g = goodness.detach().to(dtype).requires_grad_()
        (coef,) = torch.autograd.grad(total(g), g)
    loss = total(goodness.to(dtype))
    g = g.detach()
    stats = torch.stack(
        [
            loss.detach().double(),
            g[positive].double().sum(),
            g[negative].double().sum(),
            (g[positive] > threshold).sum().double(),
            (g[negative] < threshold).sum().double(),
            *(2 * [positive.sum().double(), negative.sum().double()]),
        ]
    )
    return loss, coef, stats


def peer_update(h: Tensor, sign: Tensor, mean: Tensor, strength: float, momentum: float) -> tuple[Tensor, Tensor]:
    """Peer normalisation: the pull of each unit's mean activity to the mean over all units.

    h [R, M], sign [R], mean [M]: running mean activity m over positive rows (Hinton starts it at
    0.5).  m <- momentum m + (1 - momentum) mean over positive rows of h; then
    p = strength/B (m - mean_j m), B the number of positive rows.
    Returns p [M], to be added to dloss/dz of every positive row, and the new m.  Without a positive
    row m stays as it is and p is 0.
    Source: ffnew.m (strength 0.03, momentum 0.9); there it climbs, hence the other sign.
    """
    dtype = _compute_dtype(h, mean)
    active = h[sign > 0].to(dtype)
    if active.shape[0] == 0:
        return torch.zeros_like(mean, dtype=dtype), mean.to(dtype, copy=True)
    mean = momentum * mean.to(dtype) + (1 - momentum) * active.mean(0)
    return strength / active.shape[0] * (mean - mean.mean()), mean


def layer_grad(
    x: Tensor,
    h: Tensor,
    scale: Tensor,
    coef: Tensor,
    sign: Tensor | None,
    peer: Tensor | None,
    goodness: str,
) -> tuple[Tensor, Tensor]:
    """Gradient of sum_i coef_i goodness_i + sum over positive rows of sum_j p_j z_ij.

    x [R, K], h [R, M] and scale [R] as layer_forward left them, coef [R] of local_loss, sign [R]
    and p [M] of peer_update (both, or neither).  The second term does not see the ReLU.
    Returns dweight [M, K] and dbias [M].
    z is linear in weight and bias, so the layer is rebuilt around the h it produced: a change
    (dW, db) of the parameters gives relu(h + r (x dW^T) + db) near dW = 0, db = 0.
    """
    if peer is not None and sign is None:
        raise ValueError("sign is None; with peer it must say which rows are positive")
    dtype = _compute_dtype(x, h, scale, coef)
    x, h, scale, coef = (t.detach().to(dtype) for t in (x, h, scale, coef))
    with torch.enable_grad():
        weight = x.new_zeros((h.shape[1], x.shape[1]), requires_grad=True)
        bias = x.new_zeros(h.shape[1], requires_grad=True)
        change = scale[:, None] * (x @ weight.T) + bias
        objective = (coef * _goodness(torch.relu(h + change), goodness)).sum()
        if peer is not None and sign is not None:
            objective = objective + (peer.detach().to(dtype) * change[sign > 0]).sum()
        dweight, dbias = torch.autograd.grad(objective, (weight, bias))
    return dweight, dbias


def optimiser_update(
    kind: str,
    w: Tensor,
    g: Tensor,
    state: Tensor,
    step: Tensor | int,
    lr: Tensor | float,
    hyper: Sequence[float],
    is_bias: bool,
) -> tuple[Tensor, Tensor]:
    """One update of parameters w [...] by gradient g [...]; returns the new w and state [S, ...].

    step counts from 1 at the first update.  hyper = [momentum or beta1, beta2, eps, weight_decay, ...];
    row_tolerance, the fifth, is no part of the mathematics: here no row is left out.
    "sgd", "adam", "adamw": torch.optim.SGD, Adam, AdamW.  "ema" (ffnew.m): m = mu m + (1-mu) g,
    w -= lr (m + weight_decay w), without decay for a bias.  S = 1, 1 (m), 2, 2 (m and v).
    """
    _check("optimiser", kind, tuple(STATE_SLOTS))
    if state.shape != (STATE_SLOTS[kind], *w.shape):
        wanted = (STATE_SLOTS[kind], *w.shape)
        raise ValueError(f"state has shape {tuple(state.shape)}; {kind!r} needs {wanted}")
    beta1, beta2, eps, decay = hyper[:4]
    count, rate = int(step), float(lr)
    if kind == "sgd":
        m = beta1 * state[0] + (g + decay * w)
        return w - rate * m, torch.stack([m])
    if kind == "ema":
        m = beta1 * state[0] + (1 - beta1) * g
        return w - rate * (m if is_bias else m + decay * w), torch.stack([m])
    if kind == "adam":
        g = g + decay * w
    else:
        w = w - rate * decay * w
    m = beta1 * state[0] + (1 - beta1) * g
    v = beta2 * state[1] + (1 - beta2) * g * g
    m_hat, v_hat = m / (1 - beta1**count), v / (1 - beta2**count)
    return w - rate * m_hat / (v_hat.sqrt() + eps), torch.stack([m, v])


def _update(
    weight: Tensor,
    bias: Tensor | None,
    grads: Sequence[Tensor],
    weight_state: Tensor,
    bias_state: Tensor,
    step: Tensor,
    lr: Tensor | float,
    optimiser: str,
    hyper: Sequence[float],
) -> tuple[Tensor, Tensor | None, Tensor, Tensor, Tensor]:
    """Weight and, where there is one, bias by their gradients; one more step counted."""
    step = step + 1
    weight, weight_state = optimiser_update(optimiser, weight.detach(), grads[0], weight_state, step, lr, hyper, False)
    if bias is not None:
        bias, bias_state = optimiser_update(optimiser, bias.detach(), grads[1], bias_state, step, lr, hyper, True)
    return weight, bias, weight_state, bias_state, step


def layer_update(
    x: Tensor,
    h: Tensor,
    scale: Tensor,
    coef: Tensor,
    sign: Tensor | None,
    peer: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    weight_state: Tensor,
    bias_state: Tensor,
    step: Tensor,
    lr: Tensor | float,
    goodness: str,
    optimiser: str,
    hyper: Sequence[float],
) -> tuple[Tensor, Tensor | None, Tensor, Tensor, Tensor]:
    """layer_grad, then optimiser_update of weight and bias.

    weight_state [S, M, K], bias_state [S, M], step int64 0-dim (updates done before this one),
    lr 0-dim or a number.  Returns the new (weight, bias, weight_state, bias_state, step).
    """
    grads = layer_grad(x, h, scale, coef, sign, peer, goodness)
    return _update(weight, bias, grads, weight_state, bias_state, step, lr, optimiser, hyper)


def layer_step(
    x: Tensor,
    sign: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    weight_state: Tensor,
    bias_state: Tensor,
    step: Tensor,
    lr: Tensor | float,
    *,
    norm: str,
    eps: float,
    goodness: str,
    threshold: float,
    temperature: float,
    optimiser: str,
    hyper: Sequence[float],
    row_weight: Tensor | None = None,
    x_norm: Tensor | None = None,
    peer_mean: Tensor | None = None,
    peer_strength: float = 0.0,
    peer_momentum: float = 0.9,
) -> LayerStep:
    """One training step of one layer; the arguments are those of the functions above.

    In this order: forward with the weights as they are, loss and coef, the peer mean (only if
    given, from the h just computed), gradient, optimiser.  Nothing is differentiated
    with respect to x.  The gradient is that of the loss itself, through layer_forward.  With x in
    low precision, peer mean and gradient use h before it is rounded to the dtype of x.
    """
    dtype, h_dtype = _compute_dtype(x, weight, bias), x.dtype
    x = x.detach().to(dtype)
    w = weight.detach().to(dtype, copy=True).requires_grad_()
    b = None if bias is None else bias.detach().to(dtype, copy=True).requires_grad_()
    with torch.enable_grad():
        h, g, _, h_norm = layer_forward(x, w, b, x_norm, norm, eps, goodness)
        loss, _, stats = local_loss(g, sign, row_weight, threshold, temperature)
        if peer_strength > 0 and peer_mean is None:
            raise ValueError("peer_mean is None; with peer_strength > 0 it must be a tensor")
        if peer_mean is not None:
            p, peer_mean = peer_update(h.detach(), sign, peer_mean, peer_strength, peer_momentum)
            z, _ = _pre_activation(x, w, b, x_norm, norm, eps)
            loss = loss + (p * z[sign > 0]).sum()
        grads = torch.autograd.grad(loss, (w,) if b is None else (w, b))
    new = _update(weight, bias, grads, weight_state, bias_state, step, lr, optimiser, hyper)
    return LayerStep(*new, peer_mean, h.detach().to(h_dtype), h_norm.detach(), stats)


# -------------------------------------------------------------- first layer, shared by variants
# The first C inputs of x carry the label.  What x holds there is ignored (taken as zero), so one
# product with the rest of x serves all variants of an image.  Convention: ours.


def shared_base(x: Tensor, weight: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """base [N, M] = x_rest W^T (no scale, no bias) and rest_norm [N] = ||x_rest||.

    x [N, K], weight [M, K]; x_rest is x with its first C inputs set to zero.
    """
    _check_classes(classes, most=x.shape[1])
    dtype = _compute_dtype(x, weight)
    rest = x.to(dtype, copy=True)
    rest[:, :classes] = 0
    return rest @ weight.to(dtype).T, _row_norm(rest)


def shared_variants(
    base: Tensor,
    rest_norm: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    overlay: Tensor,
    classes: int,
    norm: str,
    eps: float,
    goodness: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """layer_forward of the overlaid images, from the shared product.

    base [N, M] and rest_norm [N] of shared_base, weight [M, K], bias [M], labels int64 [V, N] in
    -1..C-1, overlay [2].  Returns h [V*N, M] (dtype of base), goodness, scale, h_norm [V*N],
    variant-major: row v*N + i.  The label's columns are added to the product and its square to
    the squared norm.
    """
    _check_classes(classes, most=weight.shape[1])
    dtype = _compute_dtype(base, weight, bias)
    count = labels.shape[0]
    label = _label_inputs(labels.reshape(-1), classes, overlay, dtype)
    product = base.to(dtype).repeat(count, 1) + label @ weight[:, :classes].to(dtype).T
    length = _row_norm(torch.cat([rest_norm.to(dtype).repeat(count)[:, None], label], 1))
    scale = _row_scale(length, weight.shape[1], norm, eps)
    z = scale[:, None] * product
    h = torch.relu(z if bias is None else z + bias.to(dtype))
    return h.to(base.dtype), _goodness(h, goodness), scale.detach(), _row_norm(h)


def shared_grad(
    x: Tensor,
    h: Tensor,
    scale: Tensor,
    coef: Tensor,
    labels: Tensor,
    overlay: Tensor,
    classes: int,
    sign: Tensor | None,
    peer: Tensor | None,
    goodness: str,
) -> tuple[Tensor, Tensor]:
    """layer_grad on the overlaid images: x [N, K], labels [V, N], every other row input [V*N]."""
    rows = _variants(x, labels, classes, overlay)
    return layer_grad(rows, h, scale, coef, sign, peer, goodness)


def shared_update(
    x: Tensor,
    h: Tensor,
    scale: Tensor,
    coef: Tensor,
    labels: Tensor,
    overlay: Tensor,
    classes: int,
    sign: Tensor | None,
    peer: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    weight_state: Tensor,
    bias_state: Tensor,
    step: Tensor,
    lr: Tensor | float,
    goodness: str,
    optimiser: str,
    hyper: Sequence[float],
) -> tuple[Tensor, Tensor | None, Tensor, Tensor, Tensor]:
    """layer_update on the overlaid images; shapes as in shared_grad."""
    grads = shared_grad(x, h, scale, coef, labels, overlay, classes, sign, peer, goodness)
    return _update(weight, bias, grads, weight_state, bias_state, step, lr, optimiser, hyper)


def shared_step(
    x: Tensor,
    labels: Tensor,
    sign: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    weight_state: Tensor,
    bias_state: Tensor,
    step: Tensor,
    lr: Tensor | float,
    *,
    classes: int,
    overlay: Tensor,
    norm: str,
    eps: float,
    goodness: str,
    threshold: float,
    temperature: float,
    optimiser: str,
    hyper: Sequence[float],
    row_weight: Tensor | None = None,
    peer_mean: Tensor | None = None,
    peer_strength: float = 0.0,
    peer_momentum: float = 0.9,
) -> LayerStep:
    """layer_step on the overlaid images: x [N, K], labels [V, N], sign and row_weight [V*N]."""
    result = layer_step(
        _variants(x, labels, classes, overlay),
        sign,
        weight,
        bias,
        weight_state,
        bias_state,
        step,
        lr,
        norm=norm,
        eps=eps,
        goodness=goodness,
        threshold=threshold,
        temperature=temperature,
        optimiser=optimiser,
        hyper=hyper,
        row_weight=row_weight,
        peer_mean=peer_mean,
        peer_strength=peer_strength,
        peer_momentum=peer_momentum,
    )
    return result._replace(h=result.h.to(x.dtype))


# --------------------------------------------------------------------------- the whole network


def predict_goodness(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    classes: int,
    overlay: Tensor,
    norm: str,
    eps: float,
    goodness: str,
) -> Tensor:
    """[L, N, C]: goodness of every layer with every class laid over the image.

    x [N, K], its first C inputs ignored; weights [M_l, M_(l-1)], biases [M_l]; each layer takes
    the activities of the one before and their norms.
    Source: Hinton section 3.3: the label with the highest goodness, summed over layers, wins.
    """
    per_class = []
    for label in range(classes):
        labels = torch.full((1, x.shape[0]), label, device=x.device)
        h, h_norm = _variants(x, labels, classes, overlay), None
        layers = []
        for weight, bias in zip(weights, biases, strict=True):
            h, g, _, h_norm = layer_forward(h, weight, bias, h_norm, norm, eps, goodness)
            h = h.to(x.dtype)
            layers.append(g)
        per_class.append(torch.stack(layers))
    return torch.stack(per_class, 2)


# ------------------------------------------------------------------------- labels and negatives


def overlay_label(x: Tensor, labels: Tensor, classes: int, overlay: Tensor) -> Tensor:
    """Copy of x [N, K] with its first C inputs replaced by the label.

    labels int64 [N]: 0..C-1, or -1 neutral; overlay [2] = (on value, neutral value): the on value
    times the one-hot label, or the neutral value in all C inputs.
    Source: Hinton section 3.3; the neutral label: section 3.3 and ffnew.m (0.1 each of ten).
    """
    _check_classes(classes, most=x.shape[1])
    label = _label_inputs(labels, classes, overlay, _compute_dtype(x, overlay))
    return torch.cat([label.to(x.dtype), x[:, classes:]], 1)


def concat_label(x: Tensor, labels: Tensor, classes: int, overlay: Tensor) -> Tensor:
    """[N, C + K]: the label inputs of overlay_label in front of x [N, K], none of it replaced."""
    _check_classes(classes)
    label = _label_inputs(labels, classes, overlay, _compute_dtype(x, overlay))
    return torch.cat([label.to(x.dtype), x], 1)


def wrong_labels(labels: Tensor, classes: int, u: Tensor) -> Tensor:
    """A uniformly drawn wrong label: (y + 1 + min(floor(u (C-1)), C-2)) mod C.

    labels y int64 [N] in 0..C-1; u [N] uniform in [0, 1).  Never y, whatever u rounds to.
    """
    _check_classes(classes, least=2)
    _check_labels(labels, classes, 0)
    offset = (u * (classes - 1)).floor().long().clamp(max=classes - 2)
    return (labels + 1 + offset) % classes


def hard_labels(logits: Tensor, labels: Tensor, u: Tensor) -> Tensor:
    """A wrong label drawn in proportion to softmax(logits) without the true class.

    logits [N, C], labels y int64 [N] in 0..C-1, u [N] uniform in [0, 1).  Inverse of the cumulative
    distribution: the first wrong class whose cumulative sum of exp(logit - largest wrong logit)
    exceeds u times the total; computed in float64.  Should none (u rounded to 1), the last wrong
    class of non-zero mass; where the total is not finite (a wrong logit is NaN or +inf, or all are
    -inf), (y + 1) mod C.  Never y.
    Source: Hinton section 3.3 (hard negatives); ffnew.m.
    """
    classes = logits.shape[1]
    _check_classes(classes, least=2)
    _check_labels(labels, classes, 0)
    logits = logits.double()
    true = labels[:, None] == torch.arange(classes, device=labels.device)
    others = logits.masked_fill(true, -torch.inf)
    mass = (others - others.amax(1, keepdim=True)).exp()
    cumulative = mass.cumsum(1)
    total = cumulative[:, -1]
    hit = cumulative > (u.double() * total)[:, None]
    first = hit.int().argmax(1)
    last = classes - 1 - (mass > 0).int().flip(1).argmax(1)
    drawn = torch.where(hit.any(1), first, last)
    return torch.where(total.isfinite(), drawn, (labels + 1) % classes)


def all_wrong_labels(labels: Tensor, classes: int) -> Tensor:
    """[C-1, N]: every wrong label of each image, row k = (y + 1 + k) mod C; labels y int64 [N]."""
    _check_classes(classes, least=2)
    _check_labels(labels, classes, 0)
    return (labels + torch.arange(1, classes, device=labels.device)[:, None]) % classes


def _philox(counter: Sequence[Tensor], key: Sequence[Tensor]) -> list[Tensor]:
    """Philox4x32-10: four random 32-bit words from a counter of four words and a key of two.

    Words are int64 tensors of one shape (or scalars) holding 0..2^32 - 1.
    Source: J. Salmon, M. Moraes, R. Dror, D. Shaw, Parallel Random Numbers: As Easy as 1, 2, 3 (SC'11).
    """
    low = 0xFFFFFFFF

    def product(a: int, b: Tensor) -> tuple[Tensor, Tensor]:
        """High and low word of a * b, by halves of a: the whole product would not fit into int64."""
        first = (a & 0xFFFF) * b
        rest = (a >> 16) * b + (first >> 16)
        return rest >> 16, ((rest & 0xFFFF) << 16) | (first & 0xFFFF)

    c, k = list(counter), list(key)
    for _ in range(10):
        high0, low0 = product(0xD2511F53, c[0])
        high1, low1 = product(0xCD9E8D57, c[2])
        c = [high1 ^ c[1] ^ k[0], low1, high0 ^ c[3] ^ k[1], low0]
        k = [(k[0] + 0x9E3779B9) & low, (k[1] + 0xBB67AE85) & low]
    return c


def _random_bits(generator: Tensor, images: int, pixels: int) -> Tensor:
    """int64 [N, pixels] of 0 and 1; how they are numbered: hybrid_images."""
    low = 0xFFFFFFFF
    image = (generator[1] + torch.arange(images, device=generator.device))[:, None]
    block = torch.arange(-(-pixels // 128), device=generator.device)[None]
    image, block = torch.broadcast_tensors(image, block)
    counter = [image & low, (image >> 32) & low, block, torch.zeros_like(block)]
    words = torch.stack(_philox(counter, [generator[0] & low, (generator[0] >> 32) & low]), 2)
    bits = (words[..., None] >> torch.arange(32, device=generator.device)) & 1
    return bits.flatten(1)[:, :pixels]


def _blur(value: Tensor, dim: int) -> Tensor:
    """[1/4, 1/2, 1/4] along one direction; the neighbour of a border pixel beyond the border is itself."""
    size = value.shape[dim]
    wide = torch.cat([value.narrow(dim, 0, 1), value, value.narrow(dim, size - 1, 1)], dim)
    return 0.25 * (wide.narrow(dim, 0, size) + wide.narrow(dim, 2, size)) + 0.5 * value


def hybrid_images(
    x: Tensor, other: Tensor, generator: Tensor, height: int, width: int, blurs: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Negatives without labels: mask * x + (1 - mask) * other, with a mask of large random blobs.

    x, other [N, channels*height*width], of one dtype; generator int64 [2] = (seed, images drawn so
    far).  A random bit for each pixel, then `blurs` times a blur with [1/4, 1/2, 1/4] along the rows
    and one along the columns, then mask = value > 1/2.  Beyond the border lies the border pixel once
    more, which keeps the mean at 1/2.  A value of exactly 1/2 counts as 0: one pixel in nine after
    one blur, one in a hundred after two, practically none after six.
    Returns images (dtype of x), mask bool [N, height*width], the same for every channel, and the new
    generator, N images further: two calls of N draw the masks of one call of 2N.
    The mask chooses, it does not multiply: a NaN in the image not chosen leaves no trace.

    Bits: Philox4x32-10 with key (seed low, seed high 32 bits) and counter (image low, image high 32
    bits, b, 0), where image = generator[1] + i (modulo 2^64) and block b holds the pixels 128 b to
    128 b + 127 of the image: pixel p has bit p % 32 of word (p % 128) // 32.  The blur is float32
    whatever x is, as 0.25 * (before + after) + 0.5 * centre: both factors are powers of two, so a
    fused multiply-add gives the same bits, and every backend gives the same mask.
    Source: Hinton section 3.2 (masks); numbering of the bits and border: ours.
    """
    pixels = height * width
    if height < 1 or width < 1 or x.shape[1] < 1 or x.shape[1] % pixels:
        raise ValueError(f"height is {height} and width {width}; their product must divide the {x.shape[1]} inputs")
    if blurs < 0:
        raise ValueError(f"blurs is {blurs}; it must be at least 0")
    images = x.shape[0]
    value = _random_bits(generator, images, pixels).float().reshape(images, height, width)
    for _ in range(blurs):
        value = _blur(_blur(value, 2), 1)
    mask = value.flatten(1) > 0.5
    chosen = torch.where(mask.repeat(1, x.shape[1] // pixels), x, other)
    return chosen, mask, torch.stack([generator[0], generator[1] + images])


# --------------------------------------------------------------------------------- softmax head


def head_forward(
    h: Sequence[Tensor],
    h_norm: Sequence[Tensor],
    weight: Tensor,
    bias: Tensor | None,
    norm: str,
    eps: float,
) -> Tensor:
    """logits [N, C] = sum over layers of r_l (h_l W_l^T) + b.

    h: activities [N, M_l] of the layers used, h_norm [N] each: their L2 norms, from which
    r_l follows as in layer_forward (with K = M_l); weight [C, sum of M_l], bias [C].
    Source: Hinton section 3.3 (one pass with a neutral label, all layers but the first).
    """
    dtype = _compute_dtype(weight, bias, *h)
    logits = torch.zeros((), dtype=dtype, device=weight.device)
    parts = torch.split(weight.to(dtype), [part.shape[1] for part in h], 1)
    for states, length, part in zip(h, h_norm, parts, strict=True):
        scale = _row_scale(length.to(dtype), states.shape[1], norm, eps)
        logits = logits + scale[:, None] * (states.to(dtype) @ part.T)
    return logits if bias is None else logits + bias.to(dtype)


def head_step(
    h: Sequence[Tensor],
    h_norm: Sequence[Tensor],
    labels: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    weight_state: Tensor,
    bias_state: Tensor,
    step: Tensor,
    lr: Tensor | float,
    *,
    norm: str,
    eps: float,
    optimiser: str,
    hyper: Sequence[float],
) -> tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor, Tensor, Tensor]:
    """One step of the head on softmax cross-entropy, mean over rows.

    labels int64 [N] in 0..C-1; the rest as in head_forward and layer_update.  Returns logits [N, C]
    (from the weights before the update), the new weight, bias, weight_state, bias_state and step,
    and stats, float64 [3]: sum of the row losses, rows whose largest logit is the label's, rows.
    Source: Hinton section 3.3; ffnew.m ("ema", lr 0.1, weight_decay 0.003, no bias).
    """
    _check_labels(labels, weight.shape[0], 0)
    states = [part.detach() for part in h]
    dtype = _compute_dtype(weight, bias, *states)
    w = weight.detach().to(dtype, copy=True).requires_grad_()
    b = None if bias is None else bias.detach().to(dtype, copy=True).requires_grad_()
    with torch.enable_grad():
        logits = head_forward(states, h_norm, w, b, norm, eps)
        losses = functional.cross_entropy(logits, labels, reduction="none")
        mean = losses.sum() / max(losses.shape[0], 1)
        grads = torch.autograd.grad(mean, (w,) if b is None else (w, b))
    logits, losses = logits.detach(), losses.detach()
    new = _update(weight, bias, grads, weight_state, bias_state, step, lr, optimiser, hyper)
    stats = torch.stack(
        [
            losses.double().sum(),
            (logits.argmax(1) == labels).sum().double(),
            torch.tensor(losses.shape[0], dtype=torch.float64, device=logits.device),
        ]
    )
    return logits, *new, stats


# ---------------------------------------------------------------------------- a step of the whole network


def network_step(
    x: Tensor,
    labels: Tensor,
    u: Tensor | None,
    overlay: Tensor,
    classes: int,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    weight_states: Sequence[Tensor | None],
    bias_states: Sequence[Tensor | None],
    steps: Sequence[Tensor | None],
    lrs: Sequence[Tensor | None],
    peer_means: Sequence[Tensor | None],
    head_layers: Sequence[int],
    sign: Tensor,
    row_weight: Tensor | None,
    norm: str,
    eps: float,
    goodness: str,
    thresholds: Sequence[float],
    temperatures: Sequence[float],
    peer_strengths: Sequence[float],
    peer_momenta: Sequence[float],
    head_norm: str,
    head_eps: float,
    optimisers: Sequence[str],
    hyper: Sequence[float],
) -> NetworkStep:
    """One step of every layer, each on the activities that the one below had before its own update.

    x [N, K] images; labels int64 [V, N]: the true ones, then wrong ones; sign and row_weight [V*N] as in shared_step.
    Lists hold an entry for each layer; those of layer_step and head_step as there, hyper five numbers an entry.  A
    layer whose weight_state is None stays as it is and passes its activities on.
    With head_layers, indices, a softmax head reads those layers: its tensors come last in each list (but thresholds,
    temperatures and peer settings), and a last row of labels is what it sees, -1 for the neutral label.  It answers
    with all weights as they are, and learns in the same step if it has a state.  With u [N] row 1 of labels is drawn
    from its answer, see hard_labels.
    Source: Hinton section 3.3; ffnew.m.
    """
    depth, variants = len(weights) - bool(head_layers), labels.shape[0] - bool(head_layers)
    new = NetworkStep(labels.clone(), [], [], [], [], [], [], [])

    def keep(result: Sequence[Tensor | None], peer_mean: Tensor | None, stats: Tensor | None) -> None:
        lists: tuple[list[Any], ...] = new[1:]
        for one, value in zip(lists, (*result, peer_mean, stats), strict=True):
            one.append(value)

    def state(entry: int) -> tuple[Any, Any, Any, Any, Any, Any]:
        return weights[entry], biases[entry], weight_states[entry], bias_states[entry], steps[entry], lrs[entry]

    def rule(entry: int) -> tuple[str, Sequence[float]]:
        return optimisers[entry], hyper[5 * entry : 5 * entry + 5]

    answered: tuple[Sequence[Tensor | None], Tensor | None] | None = None
    if head_layers:
        h, length, seen = _variants(x, labels[variants:], classes, overlay), None, []
        for entry in range(depth):
            h, _, _, length = layer_forward(h, weights[entry], biases[entry], length, norm, eps, goodness)
            seen.append((h, length))
        read = [seen[entry][0] for entry in head_layers], [seen[entry][1] for entry in head_layers]
        if weight_states[depth] is None:
            logits = head_forward(*read, weights[depth], biases[depth], head_norm, head_eps)
            answered = state(depth)[:5], None
        else:
            optimiser, numbers = rule(depth)
            logits, *trained, stats = head_step(
                *read, labels[0], *state(depth), norm=head_norm, eps=head_eps, optimiser=optimiser,
                hyper=numbers,
            )  # fmt: skip
            answered = trained, stats
        if u is not None:
            new.labels[1] = hard_labels(logits, labels[0], u)

    h, length = _variants(x, new.labels[:variants], classes, overlay), None
    for entry in range(depth):
        if weight_states[entry] is None:
            keep(state(entry)[:5], peer_means[entry], None)
            h, _, _, length = layer_forward(h, weights[entry], biases[entry], length, norm, eps, goodness)
            continue
        optimiser, numbers = rule(entry)
        step = layer_step(
            h, sign, *state(entry), norm=norm, eps=eps, goodness=goodness, threshold=thresholds[entry],
            temperature=temperatures[entry], optimiser=optimiser, hyper=numbers, row_weight=row_weight, x_norm=length,
            peer_mean=peer_means[entry], peer_strength=peer_strengths[entry], peer_momentum=peer_momenta[entry],
        )  # fmt: skip
        keep(step[:5], step.peer_mean, step.stats)
        h, length = step.h, step.h_norm
    if answered is not None:
        keep(answered[0], None, answered[1])
    return new
