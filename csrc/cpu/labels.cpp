// Labels: into the inputs, and wrong ones to learn from. Integer work and one pass over the logits; serial, because
// a batch of labels is smaller than the cost of waking a thread.
#include <cmath>

#include "kernels.h"

namespace ffkern::cpu {

void write_labels(int64_t rows, int64_t classes, const int64_t* labels, float on_value, float neutral_value, float* out,
                  int64_t ldo) {
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t c = 0; c < classes; ++c) {
      out[i * ldo + c] = labels[i] < 0 ? neutral_value : (labels[i] == c ? on_value : 0.0f);
    }
  }
}

void wrong_labels(int64_t rows, int64_t classes, const int64_t* labels, const float* u, int64_t* out) {
  for (int64_t i = 0; i < rows; ++i) {
    // u (C - 1) can round up to C - 1 although u < 1: the true label again, so it is held back.
    const float drawn = std::floor(u[i] * static_cast<float>(classes - 1)), last = static_cast<float>(classes - 2);
    const int64_t offset = !(drawn > 0) ? 0 : drawn < last ? static_cast<int64_t>(drawn) : classes - 2;
    out[i] = (labels[i] + 1 + offset) % classes;
  }
}

void hard_labels(int64_t rows, int64_t classes, const float* logits, const int64_t* labels, const float* u,
                 int64_t* out) {
  for (int64_t i = 0; i < rows; ++i) {
    const float* row = logits + i * classes;
    // The maximum over the wrong classes only: one term of the sum is then exactly 1, so the sum cannot underflow
    // however sure the network is of the true class.
    double top = -INFINITY;
    for (int64_t c = 0; c < classes; ++c) {
      if (c != labels[i] && row[c] > top) top = row[c];
    }
    double total = 0;
    for (int64_t c = 0; c < classes; ++c) {
      if (c != labels[i]) total += std::exp(row[c] - top);
    }
    if (!(total < INFINITY)) {  // NaN or infinite logits give no distribution: the next class stands in
      out[i] = (labels[i] + 1) % classes;
      continue;
    }
    const double target = static_cast<double>(u[i]) * total;
    double sum = 0;
    int64_t last = labels[i] == 0 ? 1 : 0;
    for (int64_t c = 0; c < classes; ++c) {
      if (c == labels[i]) continue;
      const double p = std::exp(row[c] - top);
      if (p > 0) last = c;
      sum += p;
      if (sum > target) break;
    }
    out[i] = last;
  }
}

void all_wrong_labels(int64_t rows, int64_t classes, const int64_t* labels, int64_t* out) {
  for (int64_t k = 0; k + 1 < classes; ++k) {
    for (int64_t i = 0; i < rows; ++i) out[k * rows + i] = (labels[i] + 1 + k) % classes;
  }
}

}  // namespace ffkern::cpu
