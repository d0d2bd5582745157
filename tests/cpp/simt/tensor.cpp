// ldmatrix, stmatrix and mma.sync with the fragment layouts of the PTX ISA. Sums are plain fp32: the
// hardware's order and truncation differ, so tests use inputs whose sums are exact.
#include <algorithm>

#include "checker.h"
#include "half.h"

namespace simt {

// ---- ldmatrix
// -------------------------------------------------------------------------------------------------

struct LdmatrixArg {
  uint32_t* out;
  int count;
  bool transposed;
  const void* row;
};

// Lane 8 m + i gives the address of row i of matrix m; lane l receives elements (l / 4, 2 (l % 4)) and its
// right neighbour.
static void complete_ldmatrix(Block& b, Warp&, Thread* threads, unsigned) {
  const auto& first = *static_cast<LdmatrixArg*>(threads[0].arg);
  ++worker->stats.ldmatrix;
  for (int m = 0; m < first.count; ++m) {
    uint16_t matrix[8][8];
    uint64_t bank_use[8] = {};
    for (int i = 0; i < 8; ++i) {
      Thread& t = threads[8 * m + i];
      const void* row = static_cast<LdmatrixArg*>(t.arg)->row;
      const auto address = reinterpret_cast<uintptr_t>(row);
      if (!in_shared(b, row) || address % 16)
        fail("ldmatrix row address not shared or not 16-byte aligned, " + at(t.site));
      checker::on_instruction(t, row, 16, false, checker::kPlain, t.site);
      ++bank_use[address >> 4 & 7];
      memcpy(matrix[i], row, 16);
    }
    worker->stats.ldmatrix_conflicts += *std::max_element(bank_use, bank_use + 8) - 1;
    for (int lane = 0; lane < 32; ++lane) {
      const int r = lane / 4, c = lane % 4 * 2;
      const uint32_t low = first.transposed ? matrix[c][r] : matrix[r][c];
      const uint32_t high = first.transposed ? matrix[c + 1][r] : matrix[r][c + 1];
      static_cast<LdmatrixArg*>(threads[lane].arg)->out[m] = low | high << 16;
    }
  }
}

static const Collective kLdmatrix{"ldmatrix", true, complete_ldmatrix};

void ldmatrix(uint32_t* out, int count, bool transposed, const void* row, Site site) {
  RuntimeScope scope;
  LdmatrixArg arg{out, count, transposed, row};
  collective(kLdmatrix, ~0u, &arg, site);
}

// ---- stmatrix
// -------------------------------------------------------------------------------------------------

struct StmatrixArg {
  const uint32_t* r;
  void* row;
};

// The way back of a transposed ldmatrix of four.
static void complete_stmatrix(Block& b, Warp&, Thread* threads, unsigned) {
  for (int m = 0; m < 4; ++m) {
    uint16_t matrix[8][8];
    for (int lane = 0; lane < 32; ++lane) {
      const uint32_t pair = static_cast<StmatrixArg*>(threads[lane].arg)->r[m];
      const int r = lane / 4, c = lane % 4 * 2;
      matrix[c][r] = static_cast<uint16_t>(pair);
      matrix[c + 1][r] = static_cast<uint16_t>(pair >> 16);
    }
    for (int i = 0; i < 8; ++i) {
      Thread& t = threads[8 * m + i];
      void* row = static_cast<StmatrixArg*>(t.arg)->row;
      if (!in_shared(b, row) || reinterpret_cast<uintptr_t>(row) % 16)
        fail("stmatrix row address not shared or not 16-byte aligned, " + at(t.site));
      checker::on_instruction(t, row, 16, true, checker::kPlain, t.site);
      memcpy(row, matrix[i], 16);
    }
  }
}

static const Collective kStmatrix{"stmatrix", true, complete_stmatrix};

void stmatrix_transposed(void* row, const uint32_t* r, Site site) {
  RuntimeScope scope;
  StmatrixArg arg{r, row};
  collective(kStmatrix, ~0u, &arg, site);
}

// ---- mma m16n8k16
// -----------------------------------------------------------------------------------------------

struct MmaArg {
  Half type;
  float* d;
  const uint32_t* a;
  const uint32_t* b;
  const float* c;
};

static void complete_mma(Block&, Warp&, Thread* threads, unsigned) {
  ++worker->stats.mma;
  float a[16][16], b[16][8], c[16][8];
  for (int lane = 0; lane < 32; ++lane) {
    const auto& arg = *static_cast<MmaArg*>(threads[lane].arg);
    const int g = lane / 4, q = lane % 4 * 2;
    for (int r = 0; r < 4; ++r)
      for (int h = 0; h < 2; ++h)
        a[g + r % 2 * 8][q + h + r / 2 * 8] = half_to_float(arg.type, arg.a[r] >> (16 * h));
    for (int r = 0; r < 2; ++r)
      for (int h = 0; h < 2; ++h) b[q + h + r * 8][g] = half_to_float(arg.type, arg.b[r] >> (16 * h));
    for (int r = 0; r < 4; ++r) c[g + r / 2 * 8][q + r % 2] = arg.c[r];
  }
  for (int i = 0; i < 16; ++i)
    for (int k = 0; k < 16; ++k)
      for (int j = 0; j < 8; ++j) c[i][j] += a[i][k] * b[k][j];
  for (int lane = 0; lane < 32; ++lane)
    for (int r = 0; r < 4; ++r)
      static_cast<MmaArg*>(threads[lane].arg)->d[r] = c[lane / 4 + r / 2 * 8][lane % 4 * 2 + r % 2];
}

static const Collective kMma{"mma", true, complete_mma};

void mma_m16n8k16(Half type, float* d, const uint32_t* a, const uint32_t* b, const float* c, Site site) {
  RuntimeScope scope;
  MmaArg arg{type, d, a, b, c};
  collective(kMma, ~0u, &arg, site);
}

}  // namespace simt
