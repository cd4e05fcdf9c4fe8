// Trains a Forward-Forward network of two layers on handwritten digits: `digits digits.csv [epochs] [seed] [threads]`.
//
// A row of the network's input is [label | image]. The first layer is a shared one: its label columns stay empty in
// memory, and one image serves for its right label, a wrong one, and, in prediction, all ten.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <numeric>
#include <random>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "cpu/kernels.h"
#include "cpu/threads.h"

namespace ff = ffkern::cpu;

constexpr int64_t kClasses = 10, kPixels = 64, kInputs = kClasses + kPixels;
constexpr int64_t kUnits = 500, kBatch = 50;
constexpr double kLearningRate = 0.003;
// Every row is divided by its root mean square; goodness is the mean of squared activities.
constexpr ffkern::LayerKind kKind{ffkern::Norm::kRms, 1e-8f, ffkern::Goodness::kMeanSq};

struct Digits {
  std::vector<float> x;         // [size, kInputs], the label columns zero
  std::vector<int64_t> labels;  // [size]

  int64_t size() const { return static_cast<int64_t>(labels.size()); }

  void add(const float* image, int64_t label) {
    x.insert(x.end(), kClasses, 0.0f);
    x.insert(x.end(), image, image + kPixels);
    labels.push_back(label);
  }
};

/// Lines of 64 pixels from 0 to 16 and a label, in random order; every fifth goes into the second set.
std::pair<Digits, Digits> read_digits(const std::string& path, std::mt19937& random) {
  std::ifstream file(path);
  if (!file) throw std::runtime_error("cannot read " + path);
  std::vector<std::string> lines;
  for (std::string line; std::getline(file, line);) lines.push_back(line);
  std::shuffle(lines.begin(), lines.end(), random);

  std::pair<Digits, Digits> sets;
  for (size_t n = 0; n < lines.size(); ++n) {
    std::replace(lines[n].begin(), lines[n].end(), ',', ' ');
    std::istringstream numbers(lines[n]);
    float image[kPixels];
    int64_t label = -1;
    for (float& pixel : image) numbers >> pixel;
    if (!(numbers >> label) || label < 0 || label >= kClasses) {
      throw std::runtime_error(path + ": expected 64 pixels and a label from 0 to 9, got: " + lines[n]);
    }
    (n % 5 == 4 ? sets.second : sets.first).add(image, label);
  }
  if (sets.second.size() == 0) throw std::runtime_error(path + ": expected at least five lines");
  return sets;
}

/// Subtracts the mean image of `train` from both sets and divides by the one standard deviation of what is left there.
void centre(Digits& train, Digits& test) {
  double square = 0;
  for (int64_t p = kClasses; p < kInputs; ++p) {
    double mean = 0;
    for (int64_t i = 0; i < train.size(); ++i) mean += train.x[i * kInputs + p] / static_cast<double>(train.size());
    for (Digits* set : {&train, &test}) {
      for (int64_t i = 0; i < set->size(); ++i) set->x[i * kInputs + p] -= static_cast<float>(mean);
    }
    for (int64_t i = 0; i < train.size(); ++i) square += std::pow(train.x[i * kInputs + p], 2);
  }
  const auto scale = static_cast<float>(1 / std::sqrt(square / static_cast<double>(train.size() * kPixels)));
  for (Digits* set : {&train, &test}) {
    for (float& v : set->x) v *= scale;
  }
}

/// Some rows of a set, with their labels and, behind these, wrong ones.
struct Batch {
  int64_t images;
  std::vector<float> x;         // [images, kInputs]
  std::vector<int64_t> labels;  // [2, images]

  Batch(const Digits& digits, const int64_t* rows, int64_t images, std::mt19937& random)
      : images(images), labels(2 * images) {
    std::vector<float> u(images);
    for (int64_t i = 0; i < images; ++i) {
      const float* row = &digits.x[rows[i] * kInputs];
      x.insert(x.end(), row, row + kInputs);
      labels[i] = digits.labels[rows[i]];
      u[i] = static_cast<float>(random() >> 8) * 0x1p-24f;  // in [0, 1), the same with every standard library
    }
    ff::wrong_labels(images, kClasses, labels.data(), u.data(), &labels[images]);
  }
};

/// Weights, biases and the two moments that Adam keeps of each.
struct Weights {
  int64_t inputs, units;
  std::vector<float> weight, bias, weight_state, bias_state;

  Weights(int64_t inputs, int64_t units, std::mt19937& random)
      : inputs(inputs),
        units(units),
        weight(units * inputs),
        bias(units),
        weight_state(2 * weight.size()),
        bias_state(2 * bias.size()) {
    const float bound = 1.0f / std::sqrt(static_cast<float>(inputs));
    std::uniform_real_distribution<float> uniform(-bound, bound);
    for (float& w : weight) w = uniform(random);
    for (float& b : bias) b = uniform(random);
  }
};

class Network {
 public:
  Network(ff::Provider provider, std::mt19937& random)
      : provider_(provider), first_(kInputs, kUnits, random), second_(kUnits, kUnits, random) {}

  /// One update of both layers. Rows of activities: every image with its right label, then with the wrong one.
  void learn(const Batch& batch) {
    const int64_t rows = 2 * batch.images;
    ++updates_;
    sign_.assign(rows, -1.0f);
    std::fill_n(sign_.begin(), batch.images, 1.0f);
    h_.resize(rows * kUnits);
    h_norm_.resize(rows);

    ff::Step step = step_of(first_);
    step.layer.x = batch.x.data();
    step.layer.ldx = kInputs;
    step.layer.images = batch.images;
    step.layer.classes = kClasses;
    step.layer.variants = 2;
    step.layer.labels = batch.labels.data();
    step.layer.on_value = 1.0f;
    step.keep_h = h_.data();
    step.keep_h_norm = h_norm_.data();
    run(step);

    step = step_of(second_);  // learns from the activities that the first layer had before its update
    step.layer.x = h_.data();
    step.layer.ldx = kUnits;
    step.layer.x_norm = h_norm_.data();
    step.layer.images = rows;
    run(step);
  }

  /// Share of images for which another label has a higher goodness, summed over both layers, than the right one.
  double error(const Digits& digits) {
    ff::Layer layer = step_of(first_).layer;
    layer.x = digits.x.data();
    layer.ldx = kInputs;
    layer.images = digits.size();
    layer.classes = kClasses;
    layer.on_value = 1.0f;
    const float* weights[] = {first_.weight.data(), second_.weight.data()};
    const float* biases[] = {first_.bias.data(), second_.bias.data()};
    const int64_t units[] = {kUnits, kUnits};
    const ff::Stack stack{2, weights, biases, units};

    goodness_.resize(2 * digits.size() * kClasses);
    scratch_.resize(std::max<size_t>(scratch_.size(), ff::predict_floats(provider_, layer, stack)));
    ff::predict_goodness(provider_, layer, stack, goodness_.data(), scratch_.data());

    int64_t wrong = 0;
    for (int64_t i = 0; i < digits.size(); ++i) {
      const float* one = &goodness_[i * kClasses];
      const float* two = one + digits.size() * kClasses;
      int64_t best = 0;
      for (int64_t c = 1; c < kClasses; ++c) best = one[c] + two[c] > one[best] + two[best] ? c : best;
      wrong += best != digits.labels[i];
    }
    return static_cast<double>(wrong) / static_cast<double>(digits.size());
  }

 private:
  /// What the steps of both layers have in common.
  ff::Step step_of(Weights& w) {
    ff::Step step;
    step.layer.weight = w.weight.data();
    step.layer.bias = w.bias.data();
    step.layer.inputs = w.inputs;
    step.layer.units = w.units;
    step.layer.kind = kKind;
    step.lesson.sign = sign_.data();
    step.optimiser.kind = ffkern::Optimiser::kAdam;
    step.optimiser.lr = kLearningRate;
    step.optimiser.step = updates_;
    step.trained = {w.weight.data(), w.bias.data(), w.weight_state.data(), w.bias_state.data()};
    step.stats = stats_;
    return step;
  }

  void run(const ff::Step& step) {
    scratch_.resize(
        std::max<size_t>(scratch_.size(), ff::step_floats(provider_, step.layer, /*peer=*/false, step.optimiser.kind)));
    ff::step(provider_, step, scratch_.data());
  }

  ff::Provider provider_;
  Weights first_, second_;
  int64_t updates_ = 0;
  std::vector<float> sign_, h_, h_norm_, goodness_, scratch_;
  double stats_[ffkern::kStatCount] = {};
};

int main(int argc, char** argv) try {
  if (argc < 2) throw std::invalid_argument("usage: digits digits.csv [epochs] [seed] [threads]");
  const int epochs = argc > 2 ? std::atoi(argv[2]) : 30;
  std::mt19937 random(argc > 3 ? std::atoi(argv[3]) : 0);
  const int threads = argc > 4 ? std::atoi(argv[4]) : ff::default_threads();

  auto [train, test] = read_digits(argv[1], random);
  centre(train, test);
  std::printf("%zu digits to learn, %zu to test\n", train.labels.size(), test.labels.size());
  Network network(ff::own_provider(threads), random);
  std::vector<int64_t> order(train.size());
  std::iota(order.begin(), order.end(), 0);
  for (int epoch = 1; epoch <= epochs; ++epoch) {
    std::shuffle(order.begin(), order.end(), random);
    for (int64_t begin = 0; begin < train.size(); begin += kBatch) {
      network.learn(Batch(train, &order[begin], std::min(kBatch, train.size() - begin), random));
    }
    if (epoch % 5 == 0) std::printf("epoch %2d: training error %.2f %%\n", epoch, 100 * network.error(train));
  }
  std::printf("test accuracy: %.4f\n", 1 - network.error(test));
} catch (const std::exception& e) {
  std::fprintf(stderr, "digits: %s\n", e.what());
  return 1;
}
