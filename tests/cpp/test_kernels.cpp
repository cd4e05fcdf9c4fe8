// Every function of kernels.h at odd sizes, on every instruction set and every unit for bfloat16, with memory of
// exactly the size it asks for: on a pool of threads the bits of a loop over the same tasks. Built with
// AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer; `test_kernels BUG` makes a mistake that each has to
// report: "address", "undefined" or "thread".
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "cpu/kernels.h"
#include "cpu/pair_kernels.h"
#include "cpu/row_kernels.h"
#include "cpu/threads.h"

namespace {

using namespace ffkern;
using cpu::Provider;
using Floats = std::vector<float>;

uint32_t seed = 0;

float number() {
  seed = seed * 1664525u + 1013904223u;
  return static_cast<float>(seed >> 8) / 8388608.0f - 1.0f;
}

Floats numbers(int64_t n) {
  Floats out(static_cast<size_t>(n));
  for (float& v : out) v = number();
  return out;
}

Floats room(int64_t n) { return Floats(static_cast<size_t>(n)); }

/// The high halves: bfloat16 by truncation.
std::vector<uint16_t> low(const Floats& values) {
  std::vector<uint16_t> out(values.size());
  for (size_t i = 0; i < out.size(); ++i) {
    uint32_t bits;
    std::memcpy(&bits, &values[i], sizeof bits);
    out[i] = static_cast<uint16_t>(bits >> 16);
  }
  return out;
}

struct Sizes {
  int64_t images, inputs, units, classes, variants;
};

/// Everything that a run of kernels has written, byte for byte.
struct Record {
  std::string bytes;
  template <class T>
  void operator()(const std::vector<T>& values) {
    bytes.append(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T));
  }
};

/// A layer with its optimiser state; x in float32 or bfloat16, its inputs `pad` elements longer in memory.
struct Trainee {
  Floats x, weight, bias, weight_state, bias_state;
  std::vector<uint16_t> x_low;
  std::vector<uint32_t> packed;
  std::vector<int64_t> labels;
  cpu::Layer layer;
  cpu::Trained trained;
  OptimiserParams rule;

  Trainee(const Provider& provider, Sizes s, int kind, bool shared, bool use_low)
      : x(numbers(s.images * (s.inputs + 3))), weight(numbers(s.units * s.inputs)), bias(numbers(s.units)) {
    rule.kind = static_cast<Optimiser>(kind % 4);
    rule.lr = 0.1;
    if (is_linear(rule.kind)) rule.row_tolerance = 0x1p-24;
    const int64_t slots = state_slots(rule.kind);
    weight_state = room(slots * s.units * s.inputs);
    bias_state = room(slots * s.units);
    trained = {weight.data(), bias.data(), weight_state.data(), bias_state.data()};
    layer.x = x.data();
    layer.ldx = s.inputs + 3;
    layer.weight = weight.data();
    layer.bias = bias.data();
    layer.images = s.images;
    layer.inputs = s.inputs;
    layer.units = s.units;
    layer.kind = {static_cast<Norm>(kind % 3), 1e-4f, static_cast<Goodness>(kind % 5)};
    if (use_low) {
      x_low = low(x);
      packed.resize(static_cast<size_t>(cpu::packed_weight(s.units, s.inputs)));
      cpu::pack_weight(provider, s.units, s.inputs, weight.data(), packed.data());
      layer.x = nullptr;
      layer.x_low = x_low.data();
      layer.weight_low = trained.weight_low = packed.data();
    }
    if (!shared) return;
    layer.classes = s.classes;
    layer.variants = s.variants;
    layer.on_value = 1.3f;
    layer.neutral_value = 0.2f;
    for (int64_t i = 0; i < layer.rows(); ++i) labels.push_back(i % (s.classes + 1) - 1);
    layer.labels = labels.data();
  }

  void keep(Record& record) const {
    record(weight), record(bias), record(weight_state), record(bias_state), record(packed);
  }
};

/// Activities of `rows` rows, in float32 or bfloat16.
struct Rows {
  Floats h, goodness, scale, h_norm;
  std::vector<uint16_t> h_low;
  cpu::Activities out;

  Rows(int64_t rows, int64_t units, bool use_low) : goodness(room(rows)), scale(room(rows)), h_norm(room(rows)) {
    if (use_low) {
      h_low.resize(static_cast<size_t>(rows * units));
    } else {
      h = room(rows * units);
    }
    out = {use_low ? nullptr : h.data(), goodness.data(), scale.data(), h_norm.data(),
           use_low ? h_low.data() : nullptr};
  }

  void keep(Record& record) const { record(h), record(h_low), record(goodness), record(scale), record(h_norm); }
};

Floats signs(int64_t rows) {
  Floats sign = room(rows);
  for (int64_t i = 0; i < rows; ++i) sign[i] = static_cast<float>((i + 1) % 3 - 1);
  if (rows > 0) sign[0] = 1.0f;
  return sign;
}

/// Forward pass, loss, peer term, gradient and update of one layer, one call after the other, then in a step.
void layer(const Provider& provider, Sizes s, int kind, bool shared, bool use_low, Record& record) {
  Trainee t(provider, s, kind, shared, use_low);
  const int64_t rows = t.layer.rows();
  Rows kept(rows, s.units, use_low);
  Floats scratch;
  if (shared) {
    Floats base = room(s.images * s.units), rest_norm = room(s.images);
    cpu::base_product(provider, t.layer, base.data(), rest_norm.data());
    cpu::Layer with_norm = t.layer;
    with_norm.x_norm = rest_norm.data();
    scratch = room(cpu::variants_floats(provider, with_norm));
    cpu::variants(provider, with_norm, base.data(), kept.out, scratch.data());
    record(base), record(rest_norm);
  } else {
    scratch = room(cpu::forward_floats(t.layer));
    cpu::forward(provider, t.layer, kept.out, scratch.data());
  }
  kept.keep(record);

  const Floats sign = signs(rows);
  Floats row_weight = numbers(rows), coef = room(rows), mean = room(s.units), p = room(s.units);
  for (float& w : row_weight) w = w < 0 ? 0.0f : w;
  std::vector<double> stats(kStatCount);
  cpu::Lesson lesson;
  lesson.sign = sign.data();
  lesson.row_weight = kind % 2 ? row_weight.data() : nullptr;
  lesson.loss = {0.5f, 0.7f};
  cpu::local_loss(rows, kept.goodness.data(), lesson, coef.data(), stats.data());
  const float* h = kept.out.h;
  Floats widened;
  if (use_low) {
    widened = room(rows * s.units);
    cpu::pair_kernels().widen(kept.h_low.data(), widened.data(), rows * s.units);
    h = widened.data();
  }
  scratch = room(2 * provider.threads * s.units);
  cpu::peer_update(provider, rows, s.units, h, sign.data(), {0.1f, 0.9f}, mean.data(), p.data(), scratch.data());
  const float* peer = kind % 2 ? p.data() : nullptr;
  Floats dweight = room(s.units * s.inputs), dbias = room(s.units);
  scratch = room(cpu::update_floats(provider, t.layer, t.rule.kind));
  cpu::gradient(provider, t.layer, kept.out, coef.data(), sign.data(), peer, dweight.data(), dbias.data(),
                scratch.data());
  cpu::update(provider, t.layer, kept.out, coef.data(), sign.data(), peer, t.rule, t.trained, stats.data(),
              scratch.data());
  record(coef), record(mean), record(p), record(dweight), record(dbias), record(stats);
  t.keep(record);

  cpu::Step step;
  step.layer = t.layer;
  step.lesson = lesson;
  step.optimiser = t.rule;
  step.optimiser.step = 2;
  step.trained = t.trained;
  step.stats = stats.data();
  if (kind % 2) {
    step.peer = {0.1f, 0.9f};
    step.peer_mean = mean.data();
  }
  if (kind / 2 % 2) {
    step.keep_h = kept.out.h;
    step.keep_h_low = kept.out.h_low;
    step.keep_h_norm = kept.h_norm.data();
  }
  scratch = room(cpu::step_floats(provider, step.layer, kind % 2, step.optimiser.kind));
  cpu::step(provider, step, scratch.data());
  record(stats), record(mean);
  kept.keep(record), t.keep(record);
}

/// Two layers that answer for every label, a head that reads both and learns, labels drawn from its answer, and an
/// update of both layers: the parts of a step of a network.
void network(const Provider& provider, Sizes s, int kind, Record& record) {
  s.classes = s.classes < 2 ? 2 : s.classes;
  s.inputs = s.inputs <= s.classes ? s.classes + 1 : s.inputs;
  s.variants = 2;
  Trainee first(provider, s, kind, true, false);
  const int64_t n = s.images, rows = 2 * n, wide = s.units + 2;
  Trainee second(provider, {rows, s.units, wide, 0, 1}, kind, false, false);
  std::vector<int64_t> truth(static_cast<size_t>(n)), drawn(truth.size()), neutral(truth.size(), -1);
  for (int64_t i = 0; i < n; ++i) truth[i] = i % s.classes;
  const Floats u = room(n);
  Floats base = room(n * s.units), rest_norm = room(n), scratch;
  cpu::base_product(provider, first.layer, base.data(), rest_norm.data());

  Rows one(rows, s.units, false), two(rows, wide, false);
  const auto forward = [&](const std::vector<int64_t>& labels, int64_t begin) {
    cpu::Layer layer = first.layer;
    layer.variants = 1;
    layer.labels = labels.data();
    layer.x_norm = rest_norm.data();
    const cpu::Activities out{one.h.data() + begin * s.units, one.goodness.data() + begin, one.scale.data() + begin,
                              one.h_norm.data() + begin};
    scratch = room(cpu::variants_floats(provider, layer));
    cpu::variants(provider, layer, base.data(), out, scratch.data());
    layer = second.layer;
    layer.x = out.h;
    layer.ldx = s.units;
    layer.x_norm = out.h_norm;
    layer.images = n;
    const cpu::Activities above{two.h.data() + begin * wide, two.goodness.data() + begin, two.scale.data() + begin,
                                two.h_norm.data() + begin};
    scratch = room(cpu::forward_floats(layer));
    cpu::forward(provider, layer, above, scratch.data());
  };
  forward(truth, 0);
  forward(neutral, n);
  const cpu::HeadInput inputs[] = {{one.h.data() + n * s.units, one.h_norm.data() + n, s.units, s.units},
                                   {two.h.data() + n * wide, two.h_norm.data() + n, wide, wide}};
  Trainee top(provider, {1, s.units + wide, s.classes, 0, 1}, kind, false, false);
  cpu::Head head;
  head.inputs = inputs;
  head.count = 2;
  head.images = n;
  head.classes = s.classes;
  head.width = s.units + wide;
  head.weight = top.weight.data();
  head.bias = top.bias.data();
  head.kind = top.layer.kind;
  Floats logits = room(n * s.classes);
  std::vector<double> stats(3);
  scratch = room(cpu::head_floats(head));
  cpu::head_forward(provider, head, logits.data(), scratch.data());
  record(logits);
  cpu::head_step(provider, head, truth.data(), top.rule, top.trained, logits.data(), stats.data(), scratch.data());
  cpu::wrong_labels(n, s.classes, truth.data(), u.data(), drawn.data());
  record(drawn);
  cpu::hard_labels(n, s.classes, logits.data(), truth.data(), u.data(), drawn.data());
  forward(drawn, n);
  record(logits), record(stats), record(drawn);
  top.keep(record), one.keep(record), two.keep(record);

  Floats sign(static_cast<size_t>(rows), -1.0f), coef = room(rows);
  for (int64_t i = 0; i < n; ++i) sign[i] = 1.0f;
  cpu::Lesson lesson;
  lesson.sign = sign.data();
  std::vector<int64_t> both = truth;
  both.insert(both.end(), drawn.begin(), drawn.end());
  first.layer.labels = both.data();
  second.layer.x = one.h.data();
  second.layer.ldx = s.units;
  for (auto [trainee, kept] : {std::pair{&first, &one}, std::pair{&second, &two}}) {
    std::vector<double> counts(kStatCount);
    cpu::local_loss(rows, kept->goodness.data(), lesson, coef.data(), counts.data());
    scratch = room(cpu::update_floats(provider, trainee->layer, trainee->rule.kind));
    cpu::update(provider, trainee->layer, kept->out, coef.data(), sign.data(), nullptr, trainee->rule, trainee->trained,
                counts.data(), scratch.data());
    record(counts), trainee->keep(record);
  }
}

void predict(const Provider& provider, Sizes s, int kind, bool use_low, Record& record) {
  Trainee first(provider, s, kind, true, use_low);
  Trainee second(provider, {1, s.units, s.units + 2, 0, 1}, kind, false, use_low);
  const float* weights[] = {first.weight.data(), second.weight.data()};
  const float* biases[] = {first.bias.data(), nullptr};
  const uint32_t* packed[] = {first.packed.data(), second.packed.data()};
  const int64_t units[] = {s.units, s.units + 2};
  const cpu::Stack stack{2, weights, biases, units, use_low ? packed : nullptr};
  first.layer.labels = nullptr;
  first.layer.variants = s.classes;
  Floats goodness = room(2 * s.images * s.classes), scratch = room(cpu::predict_floats(provider, first.layer, stack));
  cpu::predict_goodness(provider, first.layer, stack, goodness.data(), scratch.data());
  record(goodness);
}

void labels_and_images(const Provider& provider, Sizes s, Record& record) {
  std::vector<int64_t> labels(static_cast<size_t>(s.images));
  for (int64_t i = 0; i < s.images; ++i) labels[i] = i % (s.classes + 1) - 1;
  Floats rows = room(s.images * (s.classes + 2));
  cpu::write_labels(s.images, s.classes, labels.data(), 1.3f, 0.2f, rows.data(), s.classes + 2);
  record(rows);
  if (s.classes > 1) {
    for (int64_t& y : labels) y = y < 0 ? 0 : y;
    std::vector<int64_t> wrong(static_cast<size_t>((s.classes - 1) * s.images));
    cpu::all_wrong_labels(s.images, s.classes, labels.data(), wrong.data());
    record(wrong);
  }
  const Floats x = numbers(s.images * 2 * s.inputs * s.units), other = numbers(s.images * 2 * s.inputs * s.units);
  const auto x_low = low(x), other_low = low(other);
  for (bool narrow : {false, true}) {
    cpu::Hybrid h;
    h.x = narrow ? static_cast<const void*>(x_low.data()) : x.data();
    h.other = narrow ? static_cast<const void*>(other_low.data()) : other.data();
    h.ldx = h.ld_other = 2 * s.inputs * s.units;
    h.element_bytes = narrow ? 2 : 4;
    h.images = s.images;
    h.channels = 2;
    h.height = s.inputs;
    h.width = s.units;
    h.blurs = 3;
    h.seed = 7;
    Floats out = room(s.images * 2 * s.inputs * s.units), scratch = room(cpu::hybrid_floats(provider, h));
    std::vector<uint8_t> mask(static_cast<size_t>(s.images * s.inputs * s.units));
    cpu::hybrid_images(provider, h, out.data(), reinterpret_cast<bool*>(mask.data()), scratch.data());
    record(out), record(mask);
  }
}

/// All of it; `use_low`: what there is for rows of bfloat16.
std::string everything(const Provider& provider, Sizes s, bool use_low) {
  seed = 1;
  Record record;
  const bool large = s.images > 100;  // slow with a sanitizer: fewer kinds
  for (int kind = large ? 1 : 0; kind < 5; kind += large ? 2 : 1) {
    for (bool shared : {false, true}) layer(provider, s, kind, shared, use_low, record);
    predict(provider, s, kind, use_low, record);
    if (!use_low) network(provider, s, kind, record);
  }
  if (!use_low) labels_and_images(provider, s, record);
  return record.bytes;
}

void in_order(int64_t tasks, void (*fn)(int64_t, void*), void* context) {
  for (int64_t t = 0; t < tasks; ++t) fn(t, context);
}

int failures = 0;

void compare(const std::string& where, bool use_low) {
  // One of everything; less than a vector; labels that fill a tile; rows enough for several tasks.
  const Sizes sizes[] = {{1, 2, 1, 1, 1}, {3, 9, 7, 2, 2}, {17, 33, 15, 10, 3}, {131, 65, 257, 3, 2}};
  for (const Sizes& s : sizes) {
    for (int threads : {1, 3}) {
      if (threads == 1 && s.images > 100) continue;
      const Provider pool = cpu::own_provider(threads);
      if (everything(pool, s, use_low) == everything({pool.gemm, in_order, threads}, s, use_low)) continue;
      ++failures;
      std::fprintf(stderr, "FAILED: %s: %d threads give other bits than a loop, %d images\n", where.c_str(), threads,
                   static_cast<int>(s.images));
    }
  }
}

/// Every task on two threads at once, although each task writes its own results.
void twice(int64_t tasks, void (*fn)(int64_t, void*), void* context) {
  std::thread other(in_order, tasks, fn, context);
  in_order(tasks, fn, context);
  other.join();
}

/// A forward pass with a row of goodness too few, with x between two floats, or with all tasks run twice.
void mistake(const std::string& bug) {
  const Sizes s{131, 65, 257, 3, 2};
  const Provider provider{cpu::own_gemm, bug == "thread" ? twice : in_order, 3};
  Trainee t(provider, s, 0, false, false);
  Rows rows(s.images, s.units, false);
  Floats few = room(s.images - 1), scratch = room(cpu::forward_floats(t.layer));
  if (bug == "address") rows.out.goodness = few.data();
  if (bug == "undefined") t.layer.x = reinterpret_cast<const float*>(reinterpret_cast<const char*>(t.layer.x) + 1);
  cpu::forward(provider, t.layer, rows.out, scratch.data());
}

/// Calls visit(name) for each name of a comma-separated list, with the variable set to it.
template <class F>
void each(const char* variable, const char* list, const F& visit) {
  std::istringstream names(list);
  for (std::string name; std::getline(names, name, ',');) {
    name.erase(0, name.find_first_not_of(' '));
    setenv(variable, name.c_str(), 1);
    cpu::reset_isa();
    visit(name);
  }
  unsetenv(variable);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc > 1) {
    setenv("FFKERN_CPU_ISA", "portable", 1);
    mistake(argv[1]);
    return 0;
  }
  each("FFKERN_CPU_ISA", cpu::supported_isas(), [](const std::string& isa) {
    compare(isa, false);
    each("FFKERN_BF16", cpu::supported_bf16(), [&](const std::string& unit) { compare(isa + ", " + unit, true); });
  });
  std::printf("every kernel, %d failures\n", failures);
  return failures == 0 ? 0 : 1;
}
