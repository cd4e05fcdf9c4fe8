"""For PyTorch users: layers of a plain nn.Sequential, trained by Forward-Forward on scikit-learn's digits.

    pip install "ffkern[data]"
    python examples/pytorch_digits.py

The parameters stay those of the Sequential; nothing is ever called backward on. After training, the same activities
serve as features for anything else in torch: here a linear probe, trained by backpropagation as usual.
"""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import ffkern


def main(epochs: int = 30) -> float:
    """Trains and tests; returns the test accuracy."""
    torch.manual_seed(0)
    pixels, labels = load_digits(return_X_y=True)
    split = train_test_split(pixels / 16, labels, test_size=0.2, random_state=0)
    x, x_test = (torch.tensor(part, dtype=torch.float32) for part in split[:2])
    y, y_test = (torch.tensor(part) for part in split[2:])

    # Ten inputs for the label before the 64 pixels: digits have no border that a label could be written into.
    model = torch.nn.Sequential(
        torch.nn.Linear(10 + 64, 500), torch.nn.ReLU(), torch.nn.Linear(500, 500), torch.nn.ReLU()
    )
    net = ffkern.FFNet.from_sequential(model, classes=10, label="concat")
    optimiser = ffkern.optim.Adam(net.parameters(), lr=0.003)
    for epoch in range(1, epochs + 1):
        for rows in torch.randperm(len(x)).split(64):
            net.step(x[rows], y[rows], optimiser)  # both layers learn from this batch, each by its own loss
        if epoch % 10 == 0:
            accuracy = float((net.predict(x_test) == y_test).float().mean())
            print(f"epoch {epoch}: test accuracy {accuracy:.1%}")

    accuracy = float((net.predict(x_test) == y_test).float().mean())
    features, features_test = (torch.cat(net.features(part), 1) for part in (x, x_test))  # under a neutral label
    probe = torch.nn.Linear(features.shape[1], 10)
    torch_optimiser = torch.optim.Adam(probe.parameters(), lr=0.01)
    for _ in range(100):
        torch_optimiser.zero_grad()
        torch.nn.functional.cross_entropy(probe(features), y).backward()
        torch_optimiser.step()
    probed = float((probe(features_test).argmax(1) == y_test).float().mean())
    print(f"label with the highest goodness: {accuracy:.1%}; linear probe on the activities: {probed:.1%}")
    return accuracy


if __name__ == "__main__":
    main()
