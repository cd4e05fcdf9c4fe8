"""Could prediction by goodness do with fewer layers or labels? What rules of early exit leave out, and what they cost.

python -m bench.early_exit runs/hinton runs/supervised

Every label of an image goes through all layers, and the highest sum of goodness wins. After the first layer, whose
product the labels share, some are far behind. Counted here, on the test images of a trained network: the multiply-adds
that a rule leaves out, and the images for which another label wins. Nothing is timed.

    stop          no label goes further once none can pass the leader
    drop          a label goes no further once it cannot pass the leader
    leader first  the leader after the first layer goes through all layers; then label after label, each for as long as
                  it may pass the best whole sum so far

A rule is sound if what the layers to come can add is bounded. Inputs are divided by their length, so x' = r h is at
most k = sqrt(K) ("rms") or 1 ("l2") long. With s the largest singular value of W, ||relu(W x' + b)|| is at most

    norm          s k + ||b||
    distance      or the length of the leader's activities plus s ||x' - leader's x'||. Where h, g differ by d,
                  h/||h|| and g/||g|| differ by at most 2 d / ||g||, and by sqrt(2), as nothing is negative: so for the
                  layers above, before they are computed
    products      ||W x' + b||. It costs all the work; the limit of any bound that does not know where ReLU cuts

Other thresholds have no proof: the largest distance behind the leader from which a label has won, over other images
(learnt; learnt 99.9 %: all but one winner in a thousand) or over the test images (hindsight: nothing that depends on
this distance alone leaves out more without changing a winner).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ffkern import checkpoint
from ffkern.nn import FFNet

BLOCK = 200  # images whose activities are held at a time
CALIBRATED = 10_000  # images


@dataclass(frozen=True)
class Scores:
    """Goodness of every label, and for each bound what layers l and up can add at most; float64 [L, N, C] all."""

    goodness: Tensor
    rest: dict[str, Tensor]

    @classmethod
    def joined(cls, parts: Sequence[Scores]) -> Scores:
        rest = {name: torch.cat([part.rest[name] for part in parts], 1) for name in parts[0].rest}
        return cls(torch.cat([part.goodness for part in parts], 1), rest)


# ------------------------------------------------------------ goodness and bounds


class Judge:
    """Goodness and its bounds for a trained network, in plain torch.

    Raises:
        ValueError: rows are not normalised, or goodness is no sum or mean of squares: there is no bound.
    """

    def __init__(self, net: FFNet) -> None:
        first = net.layers[0]
        if first.norm not in ("rms", "l2") or first.goodness not in ("sum_sq", "mean_sq"):
            raise ValueError(
                f"norm is {first.norm!r} and goodness {first.goodness!r}; expected 'rms' or 'l2', and 'sum_sq' or "
                "'mean_sq'"
            )
        self.net, self.layers = net, list(net.layers)
        self.units = [1 if layer.goodness == "sum_sq" else layer.out_features for layer in self.layers]
        self.longest = [layer.in_features**0.5 if layer.norm == "rms" else 1.0 for layer in self.layers]
        self.stretch = [float(torch.linalg.matrix_norm(layer.weight.detach().double(), 2)) for layer in self.layers]
        biases = [float(layer.bias.detach().norm()) for layer in self.layers]
        self.most = [s * x + b for s, x, b in zip(self.stretch, self.longest, biases, strict=True)]

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Scores:
        """Args: images [N, K], with room for the label."""
        return Scores.joined([self._block(block) for block in images.split(BLOCK)])

    def _block(self, images: Tensor) -> Scores:
        inputs, products, active = zip(*self._passes(images), strict=True)
        norm = [torch.full_like(active[0], most) for most in self.most]
        rest = {
            "norm": self._coming(norm),
            "distance": self._by_distance(inputs, active),
            "products": self._coming(products),
        }
        return Scores(self._goodness(active), rest)

    def _passes(self, images: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Of layer after layer: inputs x' [n, C, K], lengths of W x' + b and of its positive part, [n, C]."""
        h = images[:, None].repeat(1, self.net.classes, 1)
        h[:, :, : self.net.classes] = self.net.overlay[0] * torch.eye(self.net.classes)
        for layer, longest in zip(self.layers, self.longest, strict=True):
            x = h / (h.norm(dim=2, keepdim=True) / longest + layer.eps)
            z = functional.linear(x, layer.weight, layer.bias)
            h = z.relu()
            yield x, z.norm(dim=2).double(), h.norm(dim=2).double()

    def _goodness(self, lengths: Sequence[Tensor]) -> Tensor:
        return torch.stack([length.square() / units for length, units in zip(lengths, self.units, strict=True)])

    def _coming(self, lengths: Sequence[Tensor]) -> Tensor:
        return self._goodness(lengths).flip(0).cumsum(0).flip(0)

    def _by_distance(self, inputs: Sequence[Tensor], active: Sequence[Tensor]) -> Tensor:
        leader = active[0].argmax(1, keepdim=True)
        rest = []
        for begin, x in enumerate(inputs):
            apart = (x - x.gather(1, leader[..., None].expand(-1, -1, x.shape[2]))).norm(dim=2).double()
            lengths = [torch.zeros_like(a) for a in active]
            for i in range(begin, len(self.layers)):
                known = active[i].gather(1, leader)
                lengths[i] = (known + self.stretch[i] * apart).clamp(max=self.most[i])
                if i + 1 < len(self.layers):
                    apart = (2 * self.stretch[i] * apart / known).clamp(max=2**0.5) * self.longest[i + 1]
            rest.append(self._goodness(lengths).sum(0))
        return torch.stack(rest)


# ------------------------------------------------------------ rules


@dataclass(frozen=True)
class Outcome:
    """Labels that a rule sends through each layer, bool [L, N, C], and who wins, int64 [N]."""

    sent: Tensor
    winner: Tensor


def stop(goodness: Tensor, reach: Tensor) -> Outcome:
    """Every label goes on as long as :func:`drop` has not settled the image."""
    sent = drop(goodness, reach).sent
    sent = (sent.sum(2, keepdim=True) > 0).expand_as(sent)
    return Outcome(sent, _winner(goodness, sent))


def drop(goodness: Tensor, reach: Tensor) -> Outcome:
    """Layer by layer, a label goes on while it is less than `reach` behind the leader.

    Args:
        goodness: [L, N, C].
        reach: what layer l and those above can add at most to what a label is behind, broadcast to [L, N, C].
    """
    reach = reach.expand_as(goodness)
    so_far = goodness[0].clone()
    sent = [torch.ones_like(so_far, dtype=torch.bool)]
    for layer in range(1, len(goodness)):
        alive = sent[-1] & (so_far + reach[layer] >= so_far.amax(1, keepdim=True))
        sent.append(alive & (alive.sum(1, keepdim=True) > 1))
        so_far = torch.where(alive, so_far + goodness[layer], -torch.inf)
    result = torch.stack(sent)
    return Outcome(result, _winner(goodness, result))


def leader_first(goodness: Tensor, rest: Tensor) -> Outcome:
    """Label by label, in the order after the first layer, while it may still reach the best whole sum."""
    order = goodness[0].argsort(dim=1, descending=True)
    best = torch.full_like(goodness[0, :, :1], -torch.inf)
    sent = torch.ones_like(goodness, dtype=torch.bool)
    for turn in range(order.shape[1]):
        label = order[:, turn : turn + 1]
        so_far = goodness[0].gather(1, label)
        alive = torch.ones_like(so_far, dtype=torch.bool)
        for layer in range(1, len(goodness)):
            alive = alive & (so_far + rest[layer].gather(1, label) >= best)
            sent[layer].scatter_(1, label, alive)
            so_far = so_far + goodness[layer].gather(1, label)
        best = torch.where(alive, torch.maximum(best, so_far), best)
    return Outcome(sent, _winner(goodness, sent))


def _winner(goodness: Tensor, sent: Tensor) -> Tensor:
    """Of the labels that went furthest, the one with the highest sum so far."""
    depth = sent.sum(0)
    furthest = depth == depth.amax(1, keepdim=True)
    return (goodness * sent).sum(0).masked_fill(~furthest, -torch.inf).argmax(1)


def behind(goodness: Tensor, share: float = 1.0) -> Tensor:
    """How far the winner is behind the leader before layer l, at most, in this share of the images: [L, 1, 1]."""
    so_far = goodness.cumsum(0)
    winner = so_far[-1].argmax(1, keepdim=True)
    gap = so_far.amax(2) - so_far.gather(2, winner.expand(len(so_far), -1, -1))[..., 0]
    most = gap.quantile(share, dim=1)
    return torch.cat((most.new_zeros(1), most[:-1]))[:, None, None]


# ------------------------------------------------------------ table


def left_out(net: FFNet, sent: Tensor) -> float:
    """Share of the multiply-adds of a prediction that labels which were not sent through a layer save."""
    shared, *work = [layer.weight.numel() for layer in net.layers]
    saved = sum(float((~sent[i + 1]).sum(1).double().mean()) * each for i, each in enumerate(work))
    return saved / (shared + net.classes * sum(work))


def table(run: str) -> list[str]:
    saved = checkpoint.load(run)
    data, net = saved.data(), saved.net
    judge = Judge(net)
    found = judge(net._images(data.test_x))
    kept_apart = data.valid_x is not None
    others = data.valid_x if kept_apart else data.train_x[:CALIBRATED]
    learnt = net.goodness(others).double()
    rules = [
        ("stop", "norm", stop(found.goodness, found.rest["norm"])),
        ("drop", "norm", drop(found.goodness, found.rest["norm"])),
        *(("leader first", name, leader_first(found.goodness, rest)) for name, rest in found.rest.items()),
        ("stop", "learnt", stop(found.goodness, behind(learnt))),
        ("drop", "learnt", drop(found.goodness, behind(learnt))),
        ("drop", "learnt, 99.9 %", drop(found.goodness, behind(learnt, 0.999))),
        ("drop", "hindsight", drop(found.goodness, behind(found.goodness))),
    ]
    winner = found.goodness.sum(0).argmax(1)
    to_come = found.goodness[1:].sum(0)
    above = ", ".join(f"{name} {float((rest[1] / to_come).median()):.3g}" for name, rest in found.rest.items())
    sizes = "-".join(str(n) for n in (net.layers[0].in_features, *(layer.out_features for layer in net.layers)))
    error = 100 * float((winner != data.test_y).double().mean())
    lines = [
        f"{sizes} ({saved.recipe.name}, {len(saved.history)} epochs), test error {error:.2f} %. Bounds after the first "
        f"layer, in units of what is to come, median: {above}. Learnt from {len(others)} images "
        + ("kept apart." if kept_apart else "of the training."),
        "",
        f"| rule | bound | work left out | winners changed of {len(winner)} |",
        "|---|---|---:|---:|",
    ]
    for rule, bound, outcome in rules:
        changed = int((outcome.winner != winner).sum())
        lines.append(f"| {rule} | {bound} | {100 * left_out(net, outcome.sent):.1f} % | {changed} |")
    return lines


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", help="folders that `ffkern train --out` wrote")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    for run in options.runs:
        print("\n".join(table(run)) + "\n", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
