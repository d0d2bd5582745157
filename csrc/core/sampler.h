// Index maps: integers only, so every device draws the same sample bit for bit.
#pragma once
#include "core/permutation.h"
#include "kernels.h"

namespace rad {

// k = ceil(n * num / den): at least 1 and at most n for n >= 1, 0 for n = 0.
RAD_HD int64_t kept(int64_t n, int64_t num, int64_t den) { return (n * num + den - 1) / den; }

// [0, n) cut into k consecutive strata: the first n % k are one longer than the others.
struct Strata {
  int64_t n, k, size, longer;  // size = floor(n / k), longer = n % k

  RAD_HD Strata(int64_t n_, int64_t k_) : n(n_), k(k_), size(k_ ? n_ / k_ : 0), longer(k_ ? n_ % k_ : 0) {}
  RAD_HD int64_t begin(int64_t i) const { return i * size + (i < longer ? i : longer); }
  RAD_HD int64_t length(int64_t i) const { return size + (i < longer ? 1 : 0); }
  // The stratum that holds position p.
  RAD_HD int64_t find(int64_t p) const {
    const int64_t head = longer * (size + 1);
    return p < head ? p / (size + 1) : longer + (p - head) / size;
  }
};

// Number i of a sample of k out of n from its random word. The multiply-shift map is off uniform by at most
// n / 2^64, relatively (docs/maths.md, index map).
RAD_HD int64_t sampled_index(Draw draw, const Strata& strata, int64_t i, uint64_t word) {
  if (draw == Draw::kWithReplacement) return static_cast<int64_t>(mulhi64(word, strata.n));
  return strata.begin(i) + static_cast<int64_t>(mulhi64(word, strata.length(i)));
}

// 1 / (expected number of times that entry is kept): the factor that makes the estimate unbiased.
template <class Real>
RAD_HD Real sample_weight(Draw draw, const Strata& strata, int64_t i) {
  if (draw == Draw::kStratified) return static_cast<Real>(strata.length(i));
  return static_cast<Real>(strata.n) / static_cast<Real>(strata.k);
}

RAD_HD bool samples_rows(Sampling sampling) {
  return sampling == Sampling::kRows || sampling == Sampling::kTileRows;
}

// Everything needed to draw line `outer`: 0 for `rows` and `same`, the tile for `tile_rows`, the row number
// for `different`. Draws without replacement go through Permutation, draws by norm through norm_sample.
struct Sampler {
  uint64_t key, salt;
  Draw draw;
  Role role;
  Strata strata;

  RAD_HD Sampler(uint64_t key_, uint64_t salt_, const SketchSpec& spec, int64_t n)
      : key(key_),
        salt(salt_),
        draw(spec.draw),
        role(samples_rows(spec.sampling) ? Role::kRowSample : Role::kFeatureSample),
        strata(n, kept(n, spec.num, spec.den)) {}
  RAD_HD int64_t k() const { return strata.k; }
  RAD_HD Words call(int64_t outer, int64_t pair) const { return random_words(key, salt, role, outer, pair); }
  RAD_HD int64_t index(const Words& words, int64_t i) const {
    return sampled_index(draw, strata, i, word64(words, static_cast<int>(i & 1)));
  }
  RAD_HD int64_t index(int64_t outer, int64_t i) const { return index(call(outer, i >> 1), i); }
  template <class Real>
  RAD_HD Real weight(int64_t i) const {
    return sample_weight<Real>(draw, strata, i);
  }
};

// How a sum over a sample's rows is weighed: what came before row `split` times `ratio`, then all of it times
// `alpha`. The norm draw's weights are its rows' own.
struct RowWeights {
  int64_t split;
  float ratio, alpha;
};
RAD_HD RowWeights row_weights(const Sampler& sampler) {
  if (sampler.draw == Draw::kNorm) return {0, 1.f, 1.f};
  const int64_t k = sampler.k(), split = sampler.draw == Draw::kStratified ? sampler.strata.longer : 0;
  if (k == 0) return {0, 1.f, 1.f};
  const double first = sampler.weight<double>(0), last = sampler.weight<double>(k - 1);
  return {split, static_cast<float>(first / last), static_cast<float>(last)};
}

}  // namespace rad
