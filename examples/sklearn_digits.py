"""A Forward-Forward network where scikit-learn expects a classifier: in a split, a pipeline and cross-validation.

pip install "ffkern[data]", then: python examples/sklearn_digits.py
"""

import time

from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.model_selection import cross_val_score, train_test_split
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ffkern import FFClassifier

# Pixels from 0 to 16 as they are: the length of the label inputs follows the data.
train_x, test_x, train_y, test_y = train_test_split(*load_digits(return_X_y=True), random_state=0)
for model in (FFClassifier(random_state=0), MLPClassifier((500, 500), random_state=0)):
    start = time.perf_counter()
    model.fit(train_x, train_y)
    seconds = time.perf_counter() - start
    print(f"digits, {type(model).__name__}: accuracy {model.score(test_x, test_y):.3f}, trained in {seconds:.1f} s")

# Columns of different units want to be standardised first, as for any network.
pipeline = make_pipeline(StandardScaler(), FFClassifier((100,), random_state=0))
scores = cross_val_score(pipeline, *load_breast_cancer(return_X_y=True), cv=5)
print(f"breast cancer, 5-fold: accuracy {scores.mean():.3f} +- {scores.std():.3f}")

# The labels may be anything, and the data may come in parts.
names = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
online = FFClassifier(random_state=0)
for start in range(0, len(train_x), 200):
    part = slice(start, start + 200)
    online.partial_fit(train_x[part], [names[digit] for digit in train_y[part]], classes=names)
accuracy = online.score(test_x, [names[digit] for digit in test_y])
print(f"digits, every image seen once: accuracy {accuracy:.3f}")
guess = online.predict(test_x[:1])[0]
print(f"first test image: {guess} with probability {online.predict_proba(test_x[:1]).max():.2f}")
