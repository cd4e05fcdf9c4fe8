#include "rows.h"

#include <algorithm>

#include "lessons.h"

namespace ffkern::cuda {

void rows(const Queue& queue, const RowsParams& p) {
  if (p.rows > 0) launch(queue, kImageRows, "ffkern_rows", {rows_blocks(p.rows)}, kRowsThreads, 0, p);
}

void finish(const Queue& queue, const FinishParams& p) { launch(queue, kImageRows, "ffkern_finish", {}, 256, 0, p); }

void columns(const Queue& queue, const ColumnsParams& p) {
  launch(queue, kImageRows, "ffkern_columns", {parts(p.units, 128)}, 128, 0, p);
}

void variants(const Queue& queue, const VariantsParams& p) {
  const int64_t rows = int64_t{p.variants} * p.images;
  if (rows > 0) launch(queue, kImageRows, "ffkern_variants", {parts(rows, 8)}, 256, 0, p);
}

void sums(const Queue& queue, const SumsParams& p) {
  if (p.units == 0) return;
  const int64_t groups = p.classes > 0 ? parts(p.classes + 1, kSumsLabels) : 1;
  const int kept = p.classes > 0 ? std::min(p.classes + 1, kSumsLabels) : 0;
  launch(queue, kImageRows, "ffkern_sums", {parts(p.units, kSumsThreads), sums_slices(p.images), groups}, kSumsThreads,
         kept * kSumsThreads * static_cast<int>(sizeof(double)), p);
}

void peer_term(const Queue& queue, const PeerTermParams& p) {
  if (p.units > 0) launch(queue, kImageRows, "ffkern_peer", {}, 256, 0, p);
}

void count_positives(const Queue& queue, const float* sign, int64_t rows, float* positives, const float* p, int units,
                     float* largest) {
  PeerTermParams params;
  params.sign = sign;
  params.rows = rows;
  params.positives = positives;
  params.p = const_cast<float*>(p);  // read only: there are no sums
  params.units = units;
  params.largest = largest;
  peer_term(queue, params);
}

void update(const Queue& queue, const UpdateParams& p) {
  const GradientTarget& t = p.target;
  const bool summed = t.bias != nullptr || t.dbias != nullptr || t.classes > 0;
  const int64_t weight_blocks = p.partial != nullptr ? t.units : 0;
  const int64_t other_blocks = summed ? parts(t.units, kUpdateThreads) : 0;
  if (weight_blocks + other_blocks == 0) return;
  const int64_t columns = p.partial != nullptr ? parts(t.inputs, kUpdateThreads * (p.wide ? 4 : 1)) : 1;
  launch(queue, kImageRows, "ffkern_update", {weight_blocks + other_blocks, std::max<int64_t>(columns, 1 + t.classes)},
         kUpdateThreads, 0, p);
}

void leave_out(const Queue& queue, const LessonsParams& p) {
  constexpr int kWarps = kLessonsThreads / 32;
  launch(queue, kImageRows, "ffkern_masses", {parts(p.images, kWarps)}, kLessonsThreads, 0, p);
  launch(queue, kImageRows, "ffkern_choose", {}, kLessonsThreads, 0, p);
  launch(queue, kImageRows, "ffkern_gather", {p.images}, kLessonsThreads, 0, p);
  if (p.peer == nullptr) return;
  const int64_t columns = parts(std::max(p.inputs, p.units), kLessonsThreads);
  launch(queue, kImageRows, "ffkern_owed", {columns, kOwedRows}, kLessonsThreads, 0, p);
}

void convert(const Queue& queue, const ConvertParams& p) {
  if (p.rows > 0) launch(queue, kImageRows, "ffkern_convert", {p.rows, parts(p.columns, 256)}, 256, 0, p);
}

}  // namespace ffkern::cuda
