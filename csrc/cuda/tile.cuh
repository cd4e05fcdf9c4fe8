// Tiles of a matrix on their way from global to shared memory.
//
// A tile in shared memory has kRows rows of kRowBytes. Rows are cut into chunks of 16 bytes, and the chunks of a row
// are exchanged (swizzled) so that a warp's reads meet every bank once. A line of all 32 banks holds eight chunks:
//
//     rows of 128 bytes   row 0      0 1 2 3 4 5 6 7     chunk c of row i is kept in place c ^ key(i). For reads of
//     key = i % 8         row 1      1 0 3 2 5 4 7 6     one chunk of eight consecutive rows (ldmatrix, or 16 bytes a
//                         row 2      2 3 0 1 6 7 4 5     lane) these lie in eight different columns of the picture.
//                         ...                            Copies fill whole rows of it, whose chunks are only
//     rows of 64 bytes    rows 0, 1  0 1 2 3 | 0 1 2 3   permuted.
//     key = i / 2 % 4     rows 2, 3  1 0 3 2 | 1 0 3 2
//                         ...
//     words across rows   row 0      0 1 2 3 4 5 6 7     Where a quarter of a warp reads eight words of one row, and
//     key = 2 (i % 4)     row 1      2 3 0 1 6 7 4 5     the next quarter those of the next row (4-byte operands lying
//                         row 2      4 5 6 7 0 1 2 3     across the product), pairs of chunks move.
//                         row 3      6 7 4 5 2 3 0 1
#pragma once
#include "ptx.cuh"

namespace ffkern::cuda {

enum class Swizzle { kChunks, kWordsAcross };

/// Byte offset of byte `byte` of row `row` of a tile in shared memory.
template <int kRowBytes, Swizzle kSwizzle>
__device__ __forceinline__ int tile_offset(int row, int byte) {
  constexpr int kChunks = kRowBytes / 16;
  constexpr int kRowsPerLine = kChunks < 8 ? 8 / kChunks : 1;
  constexpr int kKeys = kChunks < 8 ? kChunks : 8;
  const int key = kSwizzle == Swizzle::kChunks ? row / kRowsPerLine % kKeys : row % 4 * 2;
  return row * kRowBytes + (byte / 16 ^ key) * 16 + byte % 16;
}

/// Up to `kBytes` at any address, as words: bytes [first, last), zeros around them.
template <int kBytes, int kElementBytes>
__device__ __forceinline__ auto gather(const char* source, int first, int last) {
  uint32_t word[4] = {};
#pragma unroll
  for (int i = 0; i < kBytes / 4; ++i) {
    if constexpr (kElementBytes == 4) {
      word[i] = 4 * i >= first && 4 * i < last ? reinterpret_cast<const uint32_t*>(source)[i] : 0;
    } else {
      const auto* element = reinterpret_cast<const uint16_t*>(source);
      const uint32_t low = 4 * i >= first && 4 * i < last ? element[2 * i] : 0;
      const uint32_t high = 4 * i + 2 >= first && 4 * i + 2 < last ? element[2 * i + 1] : 0;
      word[i] = low | high << 16;
    }
  }
  if constexpr (kBytes == 16) {
    return uint4{word[0], word[1], word[2], word[3]};
  } else if constexpr (kBytes == 8) {
    return uint2{word[0], word[1]};
  } else {
    return word[0];
  }
}

/// Copies tiles of `kRows` x `kRowBytes` of a matrix, all threads together. Neighbouring threads copy neighbouring
/// pieces of a row, so a warp reads whole sectors. What lies outside of the matrix is zero.
template <class Tile, int kRows, int kRowBytes, Swizzle kSwizzle>
class TileLoader {
 public:
  /// @param row, column  first element of the tile at offset (0, 0)
  /// @param skip         columns of the matrix that count as zero, from the left
  __device__ __forceinline__ TileLoader(const void* matrix, int64_t pitch, int row, int column, int rows, int columns,
                                        int skip)
      : row_(threadIdx.x / kPiecesPerRow),
        byte_(threadIdx.x % kPiecesPerRow * kPieceBytes),
        rows_(rows - row),
        columns_(columns - column),
        skip_(skip - column),
        pitch_(pitch * kElementBytes),
        source_(static_cast<const char*>(matrix) + (row + row_) * pitch_ + int64_t{column} * kElementBytes + byte_) {}

  /// Starts the copy of the tile at this offset.
  __device__ __forceinline__ void load(uint32_t stage, int row_offset, int column_offset) const {
    const int left = (columns_ - column_offset) * kElementBytes - byte_;  // bytes to the end; negative beyond it
    const int last = left < 0 ? 0 : left < kPieceBytes ? left : kPieceBytes;
    const int skip = (skip_ - column_offset) * kElementBytes - byte_;
    const char* source = source_ + row_offset * pitch_ + int64_t{column_offset} * kElementBytes;
    const auto each = [&](auto copy) {
#pragma unroll
      for (int i = 0; i < kPieces; ++i) {
        const int row = row_ + i * kRowStep;
        copy(stage + tile_offset<kRowBytes, kSwizzle>(row, byte_), source + i * kRowStep * pitch_,
             row + row_offset < rows_ ? last : 0);
      }
    };
    const auto gathered = [&](uint32_t destination, const char* piece, int valid) {
      store_shared(destination, gather<kPieceBytes, kElementBytes>(piece, skip, valid));
    };
    if (kThroughRegisters || column_offset < skip_) {  // the same for all threads
      each(gathered);
    } else if (kWholePiecesOnly) {
      each([&](uint32_t destination, const char* piece, int valid) {
        if (valid % kPieceBytes != 0) {
          gathered(destination, piece, valid);
        } else {
          copy_async<kPieceBytes>(destination, piece, valid);
        }
      });
    } else {
      each([](uint32_t destination, const char* piece, int valid) {
        copy_async<kPieceBytes>(destination, piece, valid);
      });
    }
  }

 private:
  static constexpr int kElementBytes = Tile::kElementBytes;
  static constexpr bool kThroughRegisters = Tile::kCopyBytes < 4;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
  static constexpr bool kWholePiecesOnly = true;
#else
  static constexpr bool kWholePiecesOnly = false;
#endif
  static constexpr int kPieceBytes = kThroughRegisters ? 16 : Tile::kCopyBytes;
  static constexpr int kPiecesPerRow = kRowBytes / kPieceBytes;
  static constexpr int kRowStep = Tile::kThreads / kPiecesPerRow;
  static constexpr int kPieces = kRows / kRowStep;
  static_assert(Tile::kThreads % kPiecesPerRow == 0 && kRows % kRowStep == 0, "threads must share a tile evenly");

  const int row_, byte_;  // this thread's first piece in the tile
  const int rows_, columns_, skip_;
  const int64_t pitch_;
  const char* const source_;
};

}  // namespace ffkern::cuda
