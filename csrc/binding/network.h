// One step of a whole network, composed of the operations on its layers: one order of events for all backends.
//
//   labels known      x ─► step 0 ─h─► step 1 ─h─► ...         two buffers of activities take turns
//
//   with a head       x ─► base ─► [true | neutral] rows through all layers ─► head ─► draw
//                          base ─► wrong rows, over the neutral ones ─► loss and update of every layer
//
// Every layer sees the activities that the one below had before its update. All arguments are checked before anything
// is written; what the layers' own operations would refuse comes too late here, when layers below have moved already.
#pragma once
#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <utility>
#include <vector>

#include "checks.h"

namespace ffkern::binding {

/// A list in which an empty tensor stands for none: None in a list that is written is more than torch.compile takes.
inline std::vector<MaybeTensor> given(const std::vector<Tensor>& list) {
  std::vector<MaybeTensor> entries;
  for (const Tensor& t : list) entries.push_back(t.numel() > 0 ? MaybeTensor(t) : std::nullopt);
  return entries;
}

/// Arguments of network_step_. Lists have an entry for each layer, and a last one for the head if there is one; a layer
/// (or head) without weight_state stays as it is.
struct Network {
  Tensor x, labels;
  MaybeTensor u;
  Tensor overlay;
  int64_t classes;
  std::vector<Tensor> weights;
  std::vector<MaybeTensor> biases, weight_states, bias_states, steps, lrs, weights_low, peer_means, stats;
  std::vector<int64_t> head_layers;
  Tensor sign;
  MaybeTensor row_weight;
  std::vector<Tensor> activities;
  Tensor workspace;
  std::string norm;
  double eps;
  std::string goodness;
  std::vector<double> thresholds, temperatures, peer_strengths, peer_momenta;
  std::string head_norm;
  double head_eps;
  std::vector<std::string> optimisers;
  std::vector<double> hyper;
};

inline void check_matrices(const char* op, const std::vector<Tensor>& weights) {
  for (size_t l = 0; l < weights.size(); ++l) {
    if (weights[l].dim() == 2) continue;
    refuse(op, "weights[", l, "] has shape ", shape_text(weights[l]), "; expected a matrix [rows, columns]");
  }
}

/// Sizes, and where the parts of the workspace begin, in floats: for each layer whose activities are kept goodness,
/// scale and norm of its rows; coefficients; the shared product of the first layer; the memory of one layer's update.
template <class Operations>
struct NetworkPlan {
  int64_t depth, images, variants, rows;
  int64_t last = -1;  // layer that learns
  int64_t slots;      // layers whose activities are kept at a time
  bool shared;        // the first layer's product is kept
  int64_t facts, coef, base, rest_norm, update, floats = 0;

  NetworkPlan(const std::vector<Tensor>& weights, const std::vector<MaybeTensor>& weight_states, int64_t images_,
              int64_t classes, int64_t variants_, bool head, bool peer, const std::vector<std::string>& optimisers,
              bool low)
      : depth(static_cast<int64_t>(weights.size()) - head),
        images(images_),
        variants(variants_),
        rows(images * variants),
        slots(head ? depth : 2),
        shared(head || !weight_states[0].has_value()) {
    int64_t largest = 0;
    for (int64_t l = 0; l < depth; ++l) {
      if (!weight_states[l].has_value()) continue;
      last = l;
      const int64_t n = l == 0 ? images : rows, c = l == 0 ? classes : 0, v = l == 0 ? variants : 1;
      largest = std::max(largest, head ? Operations::update_workspace(weights[l], n, c, v, optimisers[l], low)
                                       : Operations::step_workspace(weights[l], n, c, v, peer, optimisers[l], low));
    }
    facts = take(slots * 3 * rows);
    coef = take(head ? rows : 0);
    base = take(shared ? images * weights[0].size(0) : 0);
    rest_norm = take(shared ? images : 0);
    update = take(largest);
  }

 private:
  /// On boundaries that vector accesses like.
  int64_t take(int64_t count) {
    const int64_t begin = floats;
    floats += (count + 63) / 64 * 64;
    return begin;
  }
};

/// Floats that network_step_ wants as workspace; `head`, `peer`, `low`: whether there is one, whether any layer has a
/// running mean, and whether x is bfloat16.
template <class Operations>
int64_t network_memory(std::vector<Tensor> weights, std::vector<Tensor> weight_states, int64_t images, int64_t classes,
                       int64_t variants, bool head, bool peer, std::vector<std::string> optimisers, bool low) {
  const char* op = "network_workspace";
  if (weights.size() < 1u + head) refuse(op, "weights has ", weights.size(), " entries; expected one per layer");
  if (weight_states.size() != weights.size()) {
    refuse(op, "weight_states has ", weight_states.size(), " entries; expected ", weights.size(), ", as weights");
  }
  if (optimisers.size() != weights.size()) {
    refuse(op, "optimisers has ", optimisers.size(), " entries; expected ", weights.size(), ", as weights");
  }
  check_matrices(op, weights);
  return NetworkPlan<Operations>(weights, given(weight_states), images, classes, variants, head, peer, optimisers, low)
      .floats;
}

template <class Operations>
class NetworkStep {
 public:
  NetworkStep(const char* op, const Network& network) : op_(op), n_(network), plan_(checked()) {
    check_memory();
    update_memory_ = floats(plan_.update, plan_.floats - plan_.update);
    lesson_labels_ = labels(0, plan_.variants);
  }

  void run() {
    if (plan_.shared) {
      Operations::shared_base(op_, n_.x, n_.weights[0], n_.classes, n_.weights_low[0], base(),
                              floats(plan_.rest_norm, plan_.images));
    }
    if (head()) {
      answer();
      learn_from_kept();
    } else {
      for (int64_t l = 0; l <= plan_.last; ++l) {
        learns(l) ? step(l) : forward(l, lesson_labels_, 0, plan_.rows);
      }
    }
  }

 private:
  const char* op_;
  const Network& n_;
  NetworkPlan<Operations> plan_;
  Tensor update_memory_, lesson_labels_;

  bool head() const { return !n_.head_layers.empty(); }
  bool learns(int64_t l) const { return n_.weight_states[l].has_value(); }

  // ---- checks

  static std::string entry(const char* list, int64_t l) { return std::string(list) + "[" + std::to_string(l) + "]"; }

  template <class T>
  void check_length(const char* name, const std::vector<T>& list, size_t wanted, const char* of) const {
    if (list.size() != wanted) refuse(op_, name, " has ", list.size(), " entries; expected ", wanted, ", ", of);
  }

  void check_place(const char* name, const Tensor& t) const {
    const Tensor& x = n_.x;
    if (t.is_cpu() == x.is_cpu() && (t.is_cpu() || t.get_device_index() == x.get_device_index())) return;
    refuse(op_, name, " is on another device; expected that of x");
  }

  void check_readable(const char* name, const Tensor& t, std::initializer_list<int64_t> shape) const {
    check_place(name, t);
    check_float(op_, name, t);
    check_shape(op_, name, t, shape);
  }

  void check_written(const char* name, const Tensor& t, ScalarType type, std::initializer_list<int64_t> shape) const {
    check_place(name, t);
    check_dtype(op_, name, t, type);
    check_shape(op_, name, t, shape);
    check_in_place(op_, name, t);
  }

  /// Entry l of an optional list that a layer which learns has to have.
  const Tensor& needed(const char* list, const std::vector<MaybeTensor>& entries, int64_t l) const {
    if (!entries[l].has_value()) {
      refuse(op_, entry(list, l), " is empty; expected a tensor, as weight_states[", l, "] is one");
    }
    return *entries[l];
  }

  void check_scalar(const char* list, const std::vector<MaybeTensor>& entries, int64_t l, ScalarType type) const {
    const Tensor& t = needed(list, entries, l);
    const std::string name = entry(list, l);
    check_place(name.c_str(), t);
    check_dtype(op_, name.c_str(), t, type);
    if (t.numel() != 1) refuse(op_, name, " has shape ", shape_text(t), "; expected a 0-dim tensor");
  }

  void check_trained(int64_t l, int64_t units, int64_t inputs, int64_t statistics) const {
    const OptimiserParams rule = parse_hyper(op_, n_.optimisers[l], hyper(l));
    const int64_t slots = state_slots(rule.kind);
    const MaybeTensor& bias = n_.biases[l];
    check_written(entry("weights", l).c_str(), n_.weights[l], ScalarType::Float, {units, inputs});
    check_written(entry("weight_states", l).c_str(), *n_.weight_states[l], ScalarType::Float, {slots, units, inputs});
    if (bias.has_value()) {
      check_written(entry("biases", l).c_str(), *bias, ScalarType::Float, {units});
      check_written(entry("bias_states", l).c_str(), needed("bias_states", n_.bias_states, l), ScalarType::Float,
                    {slots, units});
    }
    check_scalar("steps", n_.steps, l, ScalarType::Long);
    check_scalar("lrs", n_.lrs, l, ScalarType::Double);
    check_written(entry("stats", l).c_str(), needed("stats", n_.stats, l), ScalarType::Double, {statistics});
  }

  void check_layer(int64_t l, ScalarType rows) const {
    const Tensor& weight = n_.weights[l];
    const std::string name = entry("weights", l);
    const int64_t inputs = l == 0 ? n_.x.size(1) : n_.weights[l - 1].size(0), units = weight.size(0);
    if (weight.size(1) != inputs || units < 1 || inputs < 1) {
      refuse(op_, name, " has shape ", shape_text(weight), "; expected [*, ", inputs, "] to match ",
             l == 0 ? "x" : "the layer before");
    }
    check_place(name.c_str(), weight);
    if (weight.scalar_type() != ScalarType::Float && weight.scalar_type() != rows) {
      refuse(op_, name, " is ", dtype_text(weight.scalar_type()), "; expected float32, or ", dtype_text(rows),
             " as the rows it meets");
    }
    if (n_.biases[l].has_value()) check_readable(entry("biases", l).c_str(), *n_.biases[l], {units});
    if (n_.weights_low[l].has_value()) {
      const std::string low = entry("weights_low", l);
      check_place(low.c_str(), *n_.weights_low[l]);
      Operations::check_low(op_, low.c_str(), *n_.weights_low[l], rows, units, inputs);
    }
    if (!learns(l)) return;
    check_trained(l, units, inputs, kStatCount);
    parse_loss(op_, n_.thresholds[l], n_.temperatures[l]);
    peer_params(op_, n_.peer_strengths[l], n_.peer_momenta[l]);
    check_peer_mean(op_, n_.peer_strengths[l], n_.peer_means[l]);
    if (n_.peer_means[l].has_value()) {
      check_written(entry("peer_means", l).c_str(), *n_.peer_means[l], ScalarType::Float, {units});
    }
  }

  void check_head(int64_t depth) const {
    int64_t width = 0;
    for (const int64_t l : n_.head_layers) {
      if (l < 0 || l >= depth) refuse(op_, "head_layers holds ", l, "; expected 0 to ", depth - 1);
      width += n_.weights[l].size(0);
    }
    check_readable(entry("weights", depth).c_str(), n_.weights[depth], {n_.classes, width});
    if (n_.biases[depth].has_value()) {
      check_readable(entry("biases", depth).c_str(), *n_.biases[depth], {n_.classes});
    }
    if (learns(depth)) check_trained(depth, n_.classes, width, 3);
  }

  /// Everything but the buffers, whose sizes follow from it.
  NetworkPlan<Operations> checked() const {
    const int64_t entries = static_cast<int64_t>(n_.weights.size()), depth = entries - head();
    if (depth < 1) refuse(op_, "weights is empty; expected one matrix per layer, and that of the head behind them");
    const std::pair<const char*, const std::vector<MaybeTensor>&> lists[] = {{"biases", n_.biases},
                                                                             {"weight_states", n_.weight_states},
                                                                             {"bias_states", n_.bias_states},
                                                                             {"steps", n_.steps},
                                                                             {"lrs", n_.lrs},
                                                                             {"weights_low", n_.weights_low},
                                                                             {"peer_means", n_.peer_means},
                                                                             {"stats", n_.stats}};
    for (const auto& [name, list] : lists)
      check_length(name, list, n_.weights.size(), "as weights (an empty tensor for none)");
    check_length("thresholds", n_.thresholds, depth, "one per layer");
    check_length("temperatures", n_.temperatures, depth, "one per layer");
    check_length("peer_strengths", n_.peer_strengths, depth, "one per layer");
    check_length("peer_momenta", n_.peer_momenta, depth, "one per layer");
    check_length("optimisers", n_.optimisers, n_.weights.size(), "as weights");
    check_length("hyper", n_.hyper, 5 * n_.weights.size(), "5 for each entry of weights");
    parse_kind(op_, n_.norm, n_.eps, n_.goodness);
    parse_norm(op_, n_.head_norm, "head_norm");
    if (!(n_.head_eps >= 0)) refuse(op_, "head_eps is ", n_.head_eps, "; expected a number >= 0");

    check_float(op_, "x", n_.x);
    if (n_.x.dim() != 2) refuse(op_, "x has shape ", shape_text(n_.x), "; expected a matrix [rows, columns]");
    const int64_t images = n_.x.size(0);
    check_rows(op_, "x", images);
    checked_classes(op_, n_.classes, n_.x.size(1));
    check_matrices(op_, n_.weights);
    const ScalarType kept = (n_.activities.empty() ? n_.x : n_.activities[0]).scalar_type();
    for (int64_t l = 0; l < depth; ++l) check_layer(l, l == 0 ? n_.x.scalar_type() : kept);
    if (head()) check_head(depth);

    check_place("labels", n_.labels);
    check_dtype(op_, "labels", n_.labels, ScalarType::Long);
    const int64_t least = 2 + head(), given = n_.labels.dim() == 2 ? n_.labels.size(0) : 0;
    if (given < least || n_.labels.size(1) != images) {
      refuse(op_, "labels has shape ", shape_text(n_.labels), "; expected [rows, ", images,
             "]: the true ones, then wrong ones", head() ? ", last what the head sees (-1)" : "");
    }
    check_in_place(op_, "labels", n_.labels);
    check_readable("overlay", n_.overlay, {2});
    const int64_t variants = given - head();
    if (n_.u.has_value()) {
      if (!head()) refuse(op_, "u is given without a head; expected None: the head's answer says what is drawn");
      if (variants != 2) refuse(op_, "labels has ", variants - 1, " rows of wrong labels; expected 1 to draw with u");
      check_wrong_exists(op_, n_.classes);
      check_readable("u", *n_.u, {images});
    }
    // On the CPU the values too: true labels, then the others.
    Operations::check_labels(op_, frontend::part(n_.labels, 0, {images}), n_.classes, 0);
    Operations::check_labels(op_, frontend::part(n_.labels, images, {given - 1, images}), n_.classes, -1);
    check_readable("sign", n_.sign, {variants * images});
    if (n_.row_weight.has_value()) check_readable("row_weight", *n_.row_weight, {variants * images});

    bool peer = false;
    for (const MaybeTensor& mean : n_.peer_means) peer = peer || mean.has_value();
    return NetworkPlan<Operations>(n_.weights, n_.weight_states, images, n_.classes, variants, head(), peer,
                                   n_.optimisers, n_.x.scalar_type() == ScalarType::BFloat16);
  }

  void check_memory() const {
    if (!head() && plan_.last < 0) refuse(op_, "weight_states holds no tensor; expected one of a layer that learns");
    const int64_t kept = head() ? plan_.depth : plan_.last;  // layers whose activities somebody reads
    const int64_t buffers = std::min(plan_.slots, kept);
    if (static_cast<int64_t>(n_.activities.size()) < buffers) {
      refuse(op_, "activities has ", n_.activities.size(), " entries; expected ", buffers,
             head() ? ", one per layer" : ", which take turns");
    }
    for (int64_t b = 0; b < buffers; ++b) {
      const Tensor& t = n_.activities[b];
      const std::string name = entry("activities", b);
      check_place(name.c_str(), t);
      const ScalarType type = t.scalar_type();
      if ((type != ScalarType::Float && type != n_.x.scalar_type()) || type != n_.activities[0].scalar_type()) {
        refuse(op_, name, " is ", dtype_text(type), "; expected float32, or as x, and all alike");
      }
      check_shape(op_, name.c_str(), t, {-1});
      check_in_place(op_, name.c_str(), t);
      int64_t wanted = 0;
      for (int64_t l = b; l < kept; l += plan_.slots) wanted = std::max(wanted, plan_.rows * n_.weights[l].size(0));
      if (t.numel() < wanted) refuse(op_, name, " has ", t.numel(), " elements; expected at least ", wanted);
      check_apart(op_, name.c_str(), t, "x", n_.x);
      for (int64_t other = 0; other < b; ++other) {
        check_apart(op_, name.c_str(), t, entry("activities", other).c_str(), n_.activities[other]);
      }
    }
    check_written("workspace", n_.workspace, ScalarType::Float, {-1});
    if (n_.workspace.numel() < plan_.floats) {
      refuse(op_, "workspace has ", n_.workspace.numel(), " floats; expected at least ", plan_.floats,
             " (ffkern.ops.network_workspace)");
    }
  }

  // ---- parts of the buffers

  Tensor floats(int64_t begin, int64_t count) const { return frontend::part(n_.workspace, begin, {count}); }
  Tensor labels(int64_t begin, int64_t count) const {
    return frontend::part(n_.labels, begin * plan_.images, {count, plan_.images});
  }
  Tensor base() const {
    const int64_t units = n_.weights[0].size(0);
    return frontend::part(n_.workspace, plan_.base, {plan_.images, units});
  }
  Tensor h(int64_t l, int64_t begin, int64_t count) const {
    const int64_t units = n_.weights[l].size(0);
    const Tensor& buffer = n_.activities[l % plan_.slots];
    return frontend::part(buffer, begin * units, {count, units});
  }
  Tensor fact(int64_t which, int64_t l, int64_t begin, int64_t count) const {
    return floats(plan_.facts + (l % plan_.slots * 3 + which) * plan_.rows + begin, count);
  }
  Tensor goodness(int64_t l, int64_t begin, int64_t count) const { return fact(0, l, begin, count); }
  Tensor scale(int64_t l, int64_t begin, int64_t count) const { return fact(1, l, begin, count); }
  Tensor h_norm(int64_t l, int64_t begin, int64_t count) const { return fact(2, l, begin, count); }

  std::vector<double> hyper(int64_t l) const { return {n_.hyper.begin() + 5 * l, n_.hyper.begin() + 5 * (l + 1)}; }

  /// Without a bias its state is not read, but has to be some tensor.
  const Tensor& bias_state(int64_t l) const {
    return n_.bias_states[l].has_value() ? *n_.bias_states[l] : *n_.weight_states[l];
  }

  // ---- events

  /// Activities of layer l for rows [begin, begin + count), which for the first are label variants of the images.
  void forward(int64_t l, const Tensor& variants, int64_t begin, int64_t count) const {
    const Tensor out = h(l, begin, count), g = goodness(l, begin, count), r = scale(l, begin, count);
    const Tensor norm = h_norm(l, begin, count);
    if (l == 0) {
      Operations::shared_variants(base(), floats(plan_.rest_norm, plan_.images), n_.weights[0], n_.biases[0], variants,
                                  n_.overlay, out, g, r, norm, n_.classes, n_.norm, n_.eps, n_.goodness);
    } else {
      Operations::layer_forward(h(l - 1, begin, count), n_.weights[l], n_.biases[l], h_norm(l - 1, begin, count), out,
                                g, r, norm, n_.norm, n_.eps, n_.goodness, n_.weights_low[l]);
    }
  }

  /// Forward, loss and update in one; the activities are kept if a layer above reads them.
  void step(int64_t l) const {
    MaybeTensor kept, kept_norm;
    if (l < plan_.last) kept = h(l, 0, plan_.rows), kept_norm = h_norm(l, 0, plan_.rows);
    const auto settled = [&](auto operation, const auto&... first) {
      operation(first..., n_.weights[l], n_.biases[l], *n_.weight_states[l], bias_state(l), *n_.steps[l], *n_.lrs[l],
                n_.weights_low[l], n_.sign, n_.row_weight, n_.peer_means[l], update_memory_, *n_.stats[l], kept,
                kept_norm, n_.norm, n_.eps, n_.goodness, n_.thresholds[l], n_.temperatures[l], n_.peer_strengths[l],
                n_.peer_momenta[l], n_.optimisers[l], hyper(l));
    };
    if (l == 0) {
      settled(Operations::shared_step, n_.x, lesson_labels_, n_.overlay, n_.classes);
    } else {
      settled(Operations::layer_step, h(l - 1, 0, plan_.rows), MaybeTensor(h_norm(l - 1, 0, plan_.rows)));
    }
  }

  /// The network's answer to the neutral label, and the wrong labels drawn from it. True rows go along.
  void answer() const {
    const int64_t images = plan_.images, depth = plan_.depth;
    forward(0, labels(0, 1), 0, images);
    forward(0, labels(plan_.variants, 1), images, images);
    for (int64_t l = 1; l < depth; ++l) forward(l, n_.labels, 0, 2 * images);
    std::vector<Tensor> states, norms;
    for (const int64_t l : n_.head_layers) {
      states.push_back(h(l, images, images));
      norms.push_back(h_norm(l, images, images));
    }
    const Tensor y = frontend::part(n_.labels, 0, {images});
    const Tensor logits =
        learns(depth)
            ? Operations::head_step(states, norms, y, n_.weights[depth], n_.biases[depth], *n_.weight_states[depth],
                                    bias_state(depth), *n_.steps[depth], *n_.lrs[depth], *n_.stats[depth], n_.head_norm,
                                    n_.head_eps, n_.optimisers[depth], hyper(depth))
            : Operations::head_forward(states, norms, n_.weights[depth], n_.biases[depth], n_.head_norm, n_.head_eps);
    if (!n_.u.has_value()) return;
    Operations::draw_hard(op_, logits, y, *n_.u, frontend::part(n_.labels, images, {images}));
  }

  /// The wrong rows through the layers up to the last that learns, then every layer's loss and update.
  void learn_from_kept() const {
    const int64_t images = plan_.images, rows = plan_.rows;
    const Tensor wrong = labels(1, plan_.variants - 1);
    for (int64_t l = 0; l <= plan_.last; ++l) forward(l, wrong, images, rows - images);
    const Tensor coef = floats(plan_.coef, rows);
    for (int64_t l = 0; l <= plan_.last; ++l) {
      if (!learns(l)) continue;
      const Tensor states = h(l, 0, rows);
      Operations::add_loss(op_, goodness(l, 0, rows), n_.sign, n_.row_weight, n_.thresholds[l], n_.temperatures[l],
                           coef, *n_.stats[l]);
      MaybeTensor peer;
      if (n_.peer_means[l].has_value()) {
        peer = Operations::peer_update(states, n_.sign, *n_.peer_means[l], n_.peer_strengths[l], n_.peer_momenta[l]);
      }
      const auto settled = [&](auto operation, const Tensor& below, const auto&... labels) {
        operation(below, states, scale(l, 0, rows), coef, labels..., n_.sign, peer, n_.weights[l], n_.biases[l],
                  *n_.weight_states[l], bias_state(l), *n_.steps[l], *n_.lrs[l], n_.weights_low[l], update_memory_,
                  n_.stats[l], n_.goodness, n_.optimisers[l], hyper(l));
      };
      if (l == 0) {
        settled(Operations::shared_update, n_.x, lesson_labels_, n_.overlay, n_.classes);
      } else {
        settled(Operations::layer_update, h(l - 1, 0, rows));
      }
    }
  }
};

template <class Operations>
void network_step(const Tensor& x, const Tensor& labels, const MaybeTensor& u, const Tensor& overlay, int64_t classes,
                  std::vector<Tensor> weights, std::vector<Tensor> biases, std::vector<Tensor> weight_states,
                  std::vector<Tensor> bias_states, std::vector<Tensor> steps, std::vector<Tensor> lrs,
                  std::vector<Tensor> weights_low, std::vector<Tensor> peer_means, std::vector<Tensor> stats,
                  std::vector<int64_t> head_layers, const Tensor& sign, const MaybeTensor& row_weight,
                  std::vector<Tensor> activities, const Tensor& workspace, std::string norm, double eps,
                  std::string goodness, std::vector<double> thresholds, std::vector<double> temperatures,
                  std::vector<double> peer_strengths, std::vector<double> peer_momenta, std::string head_norm,
                  double head_eps, std::vector<std::string> optimisers, std::vector<double> hyper) {
  const Network network{x,
                        labels,
                        u,
                        overlay,
                        classes,
                        weights,
                        given(biases),
                        given(weight_states),
                        given(bias_states),
                        given(steps),
                        given(lrs),
                        given(weights_low),
                        given(peer_means),
                        given(stats),
                        head_layers,
                        sign,
                        row_weight,
                        activities,
                        workspace,
                        norm,
                        eps,
                        goodness,
                        thresholds,
                        temperatures,
                        peer_strengths,
                        peer_momenta,
                        head_norm,
                        head_eps,
                        optimisers,
                        hyper};
  NetworkStep<Operations>("network_step_", network).run();
}

}  // namespace ffkern::binding
