// The kept entries of a convolution's input, in ascending order of position: where they lie and their values.
#pragma once
#include <algorithm>

#include "core/conv.h"
#include "cpu/codes.h"
#include "cpu/lanes.h"

namespace rad::cpu {

constexpr int64_t kEntries = kBlock;  // handled at a time

// A kept row of the matrix and the line where it is stored.
struct KeptRow {
  int64_t row, line;
};

// Entries that all channels share: kept rows of [images * positions, channels], or, by channel, the same
// positions of every image.
template <class T>
class SharedEntries {
  using Sum = Accumulate<T>;

 public:
  // `sorted` [kept] is scratch for lists that do not ascend.
  SharedEntries(const ConvWgradArgs& args, const SavedView& saved, KeptRow* sorted)
      : args_(args),
        saved_(saved),
        positions_(input_positions(args.axis)),
        sampler_(0, 0, args.spec, args.by_channel ? packed_cols(args) : packed_rows(args)),
        kept_(args.by_channel ? saved.layout.width : saved.layout.lines) {
    if (!needs_sorting(args)) return;
    for (int64_t i = 0; i < kept_; ++i) sorted[i] = {args.index[i], i};
    std::sort(sorted, sorted + kept_, [](const KeptRow& a, const KeptRow& b) {
      return a.row != b.row ? a.row < b.row : a.line < b.line;
    });
    sorted_ = sorted;
  }

  static bool needs_sorting(const ConvWgradArgs& args) {
    return args.index && !args.by_channel && args.spec.draw != Draw::kStratified;
  }

  int64_t count() const { return args_.by_channel ? args_.images * kept_ : kept_; }

  // The first entry at or after a position, counted over all images.
  int64_t first(int64_t position) const {
    int64_t low = 0, high = count();
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      if (position_of(middle) < position)
        low = middle + 1;
      else
        high = middle;
    }
    return low;
  }
  int64_t last(int64_t position) const { return first(position); }

  void places(int64_t, int64_t begin, int64_t size, int64_t* position) const {
    for (int64_t i = 0; i < size; ++i) position[i] = position_of(begin + i);
  }

  // out[i * pitch + c] = weight * value of channel `channel` + c of entry begin + i.
  void values(int64_t channel, int64_t channels, int64_t begin, int64_t size, int64_t pitch, Sum* out) const {
    if (args_.by_channel)
      by_channel(channel, channels, begin, size, pitch, out);
    else
      by_row(channel, channels, begin, size, pitch, out);
  }

 private:
  int64_t position_of(int64_t entry) const {
    if (!args_.by_channel) return sorted_ ? sorted_[entry].row : args_.index ? args_.index[entry] : entry;
    const int64_t image = entry / kept_, j = entry - image * kept_;
    return image * positions_ + (args_.index ? args_.index[j] : j);
  }
  Sum weight_of(int64_t number) const { return args_.index ? sampler_.template weight<Sum>(number) : Sum{1}; }

  void by_row(int64_t channel, int64_t channels, int64_t begin, int64_t size, int64_t pitch, Sum* out) const {
    const int64_t last = channel + channels;
    for (int64_t i = 0; i < size; ++i, out += pitch) {
      const int64_t line = sorted_ ? sorted_[begin + i].line : begin + i;
      const Sum weight = weight_of(line);
      for (int64_t c = channel / kBlock * kBlock; c < last; c += kBlock) {
        Sum block[kBlock];
        const int64_t stop = std::min(c + kBlock, last), from = std::max(c, channel);
        decode_block<T>(saved_, 0, line, c, stop - c, block);
        for (int64_t v = from; v < stop; ++v) out[v - channel] = block[v - c] * weight;
      }
    }
  }

  void by_channel(int64_t channel, int64_t channels, int64_t begin, int64_t size, int64_t pitch,
                  Sum* out) const {
    for (int64_t i = 0; i < size;) {  // runs of one image and one block of codes
      const int64_t image = (begin + i) / kept_, j = begin + i - image * kept_;
      const int64_t block_begin = j / kBlock * kBlock, stop = std::min(block_begin + kBlock, kept_);
      const int64_t run = std::min(stop - j, size - i);
      Sum weight[kBlock], block[kBlock];
      for (int64_t r = 0; r < run; ++r) weight[r] = weight_of(j + r);
      for (int64_t c = 0; c < channels; ++c) {
        decode_block<T>(saved_, 0, image * args_.channels + channel + c, block_begin, j + run - block_begin,
                        block);
        for (int64_t r = 0; r < run; ++r) out[(i + r) * pitch + c] = block[j - block_begin + r] * weight[r];
      }
      i += run;
    }
  }

  const ConvWgradArgs& args_;
  const SavedView& saved_;
  int64_t positions_;
  Sampler sampler_;
  int64_t kept_;
  const KeptRow* sorted_ = nullptr;
};

// Entries of `different`: every image and channel has positions of its own. Entry image * k + j of a channel
// is number j of that image's draw.
template <class T>
class OwnEntries {
  using Sum = Accumulate<T>;

 public:
  OwnEntries(const ConvWgradArgs& args, const SavedView& saved)
      : args_(args),
        saved_(saved),
        positions_(input_positions(args.axis)),
        sampler_(saved.key, saved.salt, args.spec, positions_) {}

  // Bounds of the entries of positions [first, last), counted over all images. Draws with replacement do not
  // ascend: there they are all of an image.
  int64_t first(int64_t position) const {
    const int64_t image = position / positions_, within = position - image * positions_;
    if (image == args_.images) return args_.images * sampler_.k();
    return image * sampler_.k() + (ascending() ? sampler_.strata.find(within) : 0);
  }
  int64_t last(int64_t position) const {
    return position > 0 && !ascending() ? ((position - 1) / positions_ + 1) * sampler_.k()
           : position > 0               ? first(position - 1) + 1
                                        : 0;
  }

  void places(int64_t channel, int64_t begin, int64_t size, int64_t* position) const {
    const int64_t k = sampler_.k();
    for (int64_t i = 0; i < size;) {
      const int64_t image = (begin + i) / k, j = begin + i - image * k, run = std::min(k - j, size - i);
      different_row(sampler_, image * args_.channels + channel, j, j + run, position + i);
      for (int64_t r = 0; r < run; ++r) position[i + r] += image * positions_;
      i += run;
    }
  }

  // One channel: out[i] = weight * value of entry begin + i.
  void values(int64_t channel, int64_t, int64_t begin, int64_t size, int64_t, Sum* out) const {
    const int64_t k = sampler_.k();
    for (int64_t i = 0; i < size;) {
      const int64_t image = (begin + i) / k, j = begin + i - image * k;
      const int64_t block_begin = j / kBlock * kBlock, stop = std::min(block_begin + kBlock, k);
      const int64_t run = std::min(stop - j, size - i);
      Sum block[kBlock];
      decode_block<T>(saved_, 0, image * args_.channels + channel, block_begin, j + run - block_begin, block);
      for (int64_t r = 0; r < run; ++r)
        out[i + r] = block[j - block_begin + r] * sampler_.template weight<Sum>(j + r);
      i += run;
    }
  }

 private:
  bool ascending() const { return sampler_.draw == Draw::kStratified; }

  const ConvWgradArgs& args_;
  const SavedView& saved_;
  int64_t positions_;
  Sampler sampler_;
};

}  // namespace rad::cpu
