// caloforge: a one-step student in C++17. This header and weights.bin are all it takes; no library is needed.
//
//     caloforge::OneStep model("weights.bin");
//     model.generate(n, noise, energy, theta, phi, x, y, pdg, out);
//
// noise (n, model.n_noise()) ~ N(0, 1); energy [MeV], theta, phi [rad], x, y [mm] and pdg, each (n,), pdg only where
// the model was made for several kinds of particles, else nullptr; out (n, model.n_voxels()) [MeV]. Row-major, all
// float. Or the model draws the noise itself, model.generate(n, seed, first, energy, ..., out): shower first + k of a
// seed is the same, whatever comes before it. An object is for one thread. Compile with -O3 -march=native -ffast-math;
// what it computes is said in caloforge/models/one_step.py, whose names are used here.
//
// Showers are made 16 at a time, one in each lane of a vector, and what is left one by one, over voxels.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <new>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>
#if defined(__AVX512F__) || defined(__F16C__)
#include <immintrin.h>
#endif

namespace caloforge {

constexpr int LANES = 16, TILE = 64;  // TILE: outputs of a layer that lie together
typedef float Lanes __attribute__((vector_size(4 * LANES)));
typedef int32_t IntLanes __attribute__((vector_size(4 * LANES)));

constexpr float REACH = 9.0f, LARGEST = 2.0f, LEAST = 1e-4f, LEAST_PART = 0.01f, LEAST_EXCESS = 1e-6f;
constexpr float SHARPNESS = 6.0f, SHARPER = 24.0f, LEAST_SLOPE = 0.25f, MOST = 0.3f, LEAST_REST = 0.01f;
enum Layers { FRACTIONS, LOGS, REST, RATIOS };
enum Activation { RELU, TANH, SILU };

template <class T> struct Aligned {
  using value_type = T;
  Aligned() = default;
  template <class U> Aligned(const Aligned<U>&) {}
  T* allocate(std::size_t n) { return static_cast<T*>(::operator new(n * sizeof(T), std::align_val_t(64))); }
  void deallocate(T* p, std::size_t) { ::operator delete(p, std::align_val_t(64)); }
  template <class U> bool operator==(const Aligned<U>&) const { return true; }
  template <class U> bool operator!=(const Aligned<U>&) const { return false; }
};
template <class T> using Array = std::vector<T, Aligned<T>>;

// Numbers of one shower, or of 16 in a vector.
template <class T> inline T all(float x) {
  if constexpr (std::is_same_v<T, float>) return x;
  else return Lanes{} + x;
}
template <class T> inline T least(T a, T b) { return a < b ? a : b; }
template <class T> inline T most(T a, T b) { return a > b ? a : b; }
template <class T> inline T clip(T x, float low, float high) { return least(most(x, all<T>(low)), all<T>(high)); }
inline int32_t whole(float x) { return static_cast<int32_t>(x); }
inline IntLanes whole(Lanes x) { return __builtin_convertvector(x, IntLanes); }
inline float number(int32_t x) { return static_cast<float>(x); }
inline Lanes number(IntLanes x) { return __builtin_convertvector(x, Lanes); }
template <class T, class I> inline T bits(I x) {
  T y;
  std::memcpy(&y, &x, sizeof y);
  return y;
}

// e^x within 2e-7, by 2^n times a polynomial of the rest.
template <class T> inline T exp_of(T x) {
  x = clip(x, -87.0f, 88.0f);
  T scaled = x * 1.44269504f;
  auto n = whole(scaled + (scaled < all<T>(0.0f) ? all<T>(-0.5f) : all<T>(0.5f)));
  T r = (x - number(n) * 0.693359375f) - number(n) * -2.12194440e-4f;
  T p = 4.1665796e-2f + r * (8.3334519e-3f + r * 1.3981999e-3f);
  p = 1.0f + r * (1.0f + r * (0.5f + r * (1.6666667e-1f + r * p)));
  return p * bits<T>((n + 127) << 23);
}
template <class T> inline T sigmoid(T x) { return 1.0f / (1.0f + exp_of(-x)); }
template <class F> inline float each(F f, float x) { return f(x); }
template <class F> inline Lanes each(F f, Lanes x) {
  Lanes y = x;
  for (int k = 0; k < LANES; ++k) y[k] = f(x[k]);
  return y;
}
template <class T> inline T log_of(T x) { return each([](float v) { return std::log(v); }, x); }
template <class T> inline T tanh_of(T x) { return 2.0f * sigmoid(2.0f * x) - 1.0f; }
template <class T> inline T asinh_of(T x) { return each([](float v) { return std::asinh(v); }, x); }
template <class T> inline T root_of(T x) { return each([](float v) { return std::sqrt(v); }, x); }
template <class T> inline T softplus(T x) {
  T size = x < all<T>(0.0f) ? -x : x;
  return most(x, all<T>(0.0f)) + log_of(1.0f + exp_of(-size));
}

// Random numbers that are a function of seed and counter: Philox 4x32 with ten rounds (Salmon et al., SC'11).
typedef uint32_t Words __attribute__((vector_size(4 * LANES)));
inline void multiply(Words a, uint32_t by, Words& high, Words& low) {
#ifdef __AVX512F__
  __m512i x = __m512i(a), m = _mm512_set1_epi64(by);
  __m512i even = _mm512_mul_epu32(x, m), odd = _mm512_mul_epu32(_mm512_srli_epi64(x, 32), m);
  high = Words(_mm512_mask_blend_epi32(0xAAAA, _mm512_srli_epi64(even, 32), odd));
#else
  for (int k = 0; k < LANES; ++k) high[k] = uint32_t((uint64_t(a[k]) * by) >> 32);
#endif
  low = a * by;
}
inline void philox(Words c[4], uint32_t key_0, uint32_t key_1) {
  for (int round = 0; round < 10; ++round, key_0 += 0x9E3779B9u, key_1 += 0xBB67AE85u) {
    Words high_0 = c[0], low_0 = c[0], high_1 = c[0], low_1 = c[0];
    multiply(c[0], 0xD2511F53u, high_0, low_0), multiply(c[2], 0xCD9E8D57u, high_1, low_1);
    c[0] = high_1 ^ c[1] ^ key_0, c[2] = high_0 ^ c[3] ^ key_1, c[1] = low_1, c[3] = low_0;
  }
}

// ln x of 0 < x < 1, within 2e-7.
inline Lanes log_below_1(Lanes x) {
  IntLanes i = bits<IntLanes>(x), n = ((i - 0x3f3504f3) >> 23);
  Lanes r = bits<Lanes>(i - (n << 23)) - 1.0f, e = number(n);
  Lanes p = 7.0376836292e-2f * r - 1.1514610310e-1f;
  for (float a : {1.1676998740e-1f, -1.2420140846e-1f, 1.4249322787e-1f, -1.6668057665e-1f, 2.0000714765e-1f,
                  -2.4999993993e-1f, 3.3333331174e-1f})
    p = p * r + a;
  return e * 0.693359375f + (r + (r * r * r * p - 0.5f * r * r + e * -2.12194440e-4f));
}

// Two normal numbers of two words (Box and Muller 1958): a radius, and a quarter with an angle in it.
inline void normal_pair(Words a, Words b, Lanes& x, Lanes& y) {
  Lanes u = number(IntLanes(a >> 8)) * 0x1p-24f + 0x1p-25f;
  Lanes r = root_of(-2.0f * log_below_1(u));
  Lanes t = (number(IntLanes((b & 0x3fffffff) >> 6)) * 0x1p-24f + (0x1p-25f - 0.5f)) * 1.57079633f, z = t * t;
  Lanes sine = t + t * z * (-1.6666654611e-1f + z * (8.3321608736e-3f - z * 1.9515295891e-4f));
  Lanes cosine = 1.0f - 0.5f * z + z * z * (4.1666645683e-2f + z * (-1.3887316255e-3f + z * 2.4433157118e-5f));
  IntLanes odd = IntLanes(b >> 30 & 1) != 0, turned = IntLanes(b >> 31) != 0;
  Lanes first = odd ? -sine : cosine, second = odd ? cosine : sine;
  x = r * (turned ? -first : first), y = r * (turned ? -second : second);
}

inline int padded(int n) { return (n + TILE - 1) / TILE * TILE; }

inline float from_half(uint16_t h) {
  float x = std::ldexp(float(h & 1023) + ((h >> 10) & 31 ? 1024.0f : 0.0f), std::max((h >> 10) & 31, 1) - 25);
  return h >> 15 ? -x : x;
}

inline Lanes load(const float* p) {
  Lanes v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
inline float at_rows(const float* table, int32_t row) { return table[row]; }
#if defined(__AVX512F__)
inline Lanes at_rows(const float* table, IntLanes row) { return Lanes(_mm512_i32gather_ps(__m512i(row), table, 4)); }
#else
inline Lanes at_rows(const float* table, IntLanes row) {
  Lanes x = number(row);
  for (int k = 0; k < LANES; ++k) x[k] = table[row[k]];
  return x;
}
#endif
#if defined(__AVX512F__)
constexpr bool HALVES = true;
inline Lanes load(const uint16_t* p) {
  return Lanes(_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))));
}
#elif defined(__F16C__)
constexpr bool HALVES = true;
inline Lanes load(const uint16_t* p) {
  float x[LANES];
  _mm256_storeu_ps(x, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
  _mm256_storeu_ps(x + 8, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 8))));
  return load(x);
}
#else
constexpr bool HALVES = false;
inline Lanes load(const uint16_t*) { return Lanes{}; }
#endif

// y = W x + b; weights lie in tiles of 64 outputs: (tile, input, 64). For one shower they are read as float16 where
// that loses nothing and the processor knows it: reading them is what takes the time.
struct Linear {
  int n_in = 0, n_out = 0;
  Array<float> w, b;
  Array<uint16_t> half;

  void operator()(const float* x, float* y) const {
    if (half.empty()) one(w.data(), x, y);
    else one(half.data(), x, y);
  }

  void operator()(const Lanes* x, Lanes* y) const {
#ifdef __AVX512F__
    constexpr int N = 16;
#else
    constexpr int N = 4;
#endif
    for (int o = 0; o < n_out; o += N) {
      const float* row = &w[std::size_t(o / TILE) * TILE * n_in + o % TILE];
      Lanes sum[N];
#pragma GCC unroll 16
      for (int k = 0; k < N; ++k) sum[k] = all<Lanes>(b[o + k]);
      for (int i = 0; i < n_in; ++i, row += TILE) {
        Lanes v = x[i];
#pragma GCC unroll 16
        for (int k = 0; k < N; ++k) sum[k] += row[k] * v;
      }
#pragma GCC unroll 16
      for (int k = 0; k < N; ++k) y[o + k] = sum[k];
    }
  }

 private:
  template <class W> void one(const W* weights, const float* x, float* y) const {
    int used[4096], n = 0;
    for (int i = 0; i < n_in; ++i) {
      used[n] = i;
      n += x[i] != 0.0f;
    }
    for (int tile = 0; tile < padded(n_out); tile += TILE) {
      const float* bias = &b[tile];
      Lanes a0 = load(bias), a1 = load(bias + 16), a2 = load(bias + 32), a3 = load(bias + 48);
      const W* rows = weights + std::size_t(tile) * n_in;
      for (int k = 0; k < n; ++k) {
        const W* row = rows + std::size_t(used[k]) * TILE;
        float v = x[used[k]];
        a0 += v * load(row), a1 += v * load(row + 16), a2 += v * load(row + 32), a3 += v * load(row + 48);
      }
      store(y + tile, a0), store(y + tile + 16, a1), store(y + tile + 32, a2), store(y + tile + 48, a3);
    }
  }
  static void store(float* p, Lanes v) { std::memcpy(p, &v, sizeof v); }
};

template <class T> struct Work {
  Array<T> c, g, raw, log_layers, hidden, other, given, noise, m, value, filled, made, e, tilted;
  Array<T> wanted, moments, there, means, layers, n, part, rho;
};

class OneStep {
 public:
  explicit OneStep(const std::string& path) {
    file_ = std::fopen(path.c_str(), "rb");
    if (!file_) throw std::runtime_error("got " + path + ", expected a readable file of weights");
    char magic[8] = {};
    if (std::fread(magic, 1, 8, file_) != 8 || std::memcmp(magic, "CALOFOR1", 8) != 0) fail();
    read();
    std::fclose(file_);
    prepare(one_);
    prepare(many_);
  }

  int n_noise() const { return n_globals + n_voxels_; }
  int n_voxels() const { return n_voxels_; }

  void generate(int n, const float* noise, const float* energy, const float* theta, const float* phi, const float* x,
                const float* y, const float* pdg, float* out) {
    const float* particle[6] = {energy, theta, phi, x, y, pdg};
    int k = 0;
    for (; k + LANES <= n; k += LANES) take_noise(many_, k, noise), block(many_, k, particle, out);
    for (; k < n; ++k) take_noise(one_, k, noise), block(one_, k, particle, out);
  }

  void generate(int n, uint64_t seed, uint64_t first, const float* energy, const float* theta, const float* phi,
                const float* x, const float* y, const float* pdg, float* out) {
    const float* particle[6] = {energy, theta, phi, x, y, pdg};
    int k = 0;
    for (; k + LANES <= n; k += LANES) draw(many_, seed, first + k), block(many_, k, particle, out);
    for (; k < n; ++k) draw(one_, seed, first + k), block(one_, k, particle, out);
  }

  // The noise of n showers that the latter draws, (n, n_noise).
  void draw_noise(int n, uint64_t seed, uint64_t first, float* out) {
    for (int k = 0; k < n; ++k, out += n_noise()) {
      draw(one_, seed, first + k);
      std::copy_n(one_.g.data(), n_globals, out);
      std::copy_n(one_.noise.data(), n_voxels_, out + n_globals);
    }
  }

 private:
  int n_layers, n_voxels_, n_conditions, per_layer, n_globals, n_moments, n_powers, brightest, centred, recount, kind;
  int n_rings, n_knots, n_nodes, n_read, full_root, largest, polar, n_classes, activation, n_row;
  float threshold, log_ceiling, half, middle, depth;
  std::vector<int> start, ring, active;
  std::vector<float> low, span, kinds, lowest, per_g, first, per_node;
  Array<float> knots, q, diagonal, basis, columns;
  Linear root;
  std::vector<Linear> layers_net, voxels_net, newton, newton_rest;
  Work<float> one_;
  Work<Lanes> many_;
  std::FILE* file_ = nullptr;

  [[noreturn]] void fail() {
    std::fclose(file_);
    throw std::runtime_error("got a damaged file of weights, expected one that caloforge export wrote for this header");
  }
  template <class T> void take(T* p, std::size_t n) {
    if (std::fread(p, sizeof(T), n, file_) != n) fail();
  }
  int integer() {
    int32_t v;
    take(&v, 1);
    return v;
  }
  template <class A> void take(A& values) {
    int n = integer();
    if (n < 0 || n > (1 << 28)) fail();
    values.resize(n);
    take(values.data(), n);
  }
  Linear linear() {
    Linear v;
    v.n_in = integer(), v.n_out = integer();
    if (integer()) {
      take(v.half);
      for (uint16_t h : v.half) v.w.push_back(from_half(h));
      if (!HALVES) v.half.clear();
    } else {
      take(v.w);
    }
    take(v.b);
    if (v.n_in < 1 || v.n_in > 4096 || int(v.b.size()) != padded(v.n_out) || v.w.size() != v.b.size() * v.n_in) fail();
    return v;
  }
  std::vector<Linear> network() {
    int n = integer();
    if (n < 0 || n > 64) fail();
    std::vector<Linear> v(n);
    for (auto& step : v) step = linear();
    return v;
  }

  void read() {
    for (int* v : {&n_layers, &n_voxels_, &n_conditions, &per_layer, &n_moments, &n_powers, &brightest, &centred,
                   &recount, &kind, &n_rings, &n_knots, &n_nodes, &n_read, &full_root, &largest, &polar,
                   &n_classes, &activation})
      *v = integer();
    n_globals = per_layer * n_layers, n_row = n_powers > 8 ? 16 : 8;
    for (float* v : {&threshold, &log_ceiling, &half, &middle, &depth}) take(v, 1);
    take(start), take(ring), take(active), take(low), take(span), take(kinds), take(lowest), take(per_g), take(first);
    take(per_node), take(knots), take(q), take(diagonal), take(basis), take(columns);
    if (full_root) root = linear();
    layers_net = network(), voxels_net = network(), newton = network(), newton_rest = network();
    if (int(start.size()) != n_layers + 1 || start.back() != n_voxels_ || int(ring.size()) != n_voxels_) fail();
  }

  template <class T> void prepare(Work<T>& w) {
    int wide = TILE + n_globals + n_conditions + n_layers * n_powers;
    for (auto* net : {&layers_net, &voxels_net, &newton, &newton_rest})
      for (auto& step : *net) wide = std::max(wide, padded(step.n_out));
    for (auto* v : {&w.c, &w.g, &w.raw, &w.log_layers, &w.hidden, &w.other, &w.given}) v->resize(wide + n_globals);
    for (auto* v : {&w.noise, &w.m, &w.value, &w.filled, &w.made, &w.e, &w.tilted}) v->resize(padded(n_voxels_));
    for (auto* v : {&w.wanted, &w.moments, &w.there, &w.means}) v->resize(n_layers * 16);
    for (auto* v : {&w.layers, &w.n, &w.part}) v->resize(n_layers);
    w.rho.resize(n_rings);
  }

  static float& lane(float& v, int) { return v; }
  static float& lane(Lanes& v, int k) { return reinterpret_cast<float*>(&v)[k]; }
  static float lane(const float& v, int) { return v; }
  static float lane(const Lanes& v, int k) { return v[k]; }
  template <class T> static constexpr int count() { return std::is_same_v<T, float> ? 1 : LANES; }

  template <class T> void take_noise(Work<T>& w, int k, const float* noise) {
    const std::size_t n_z = n_noise();
    noise += k * n_z;
    for (int j = 0; j < count<T>(); ++j)
      for (int i = 0; i < n_globals; ++i) lane(w.g[i], j) = noise[j * n_z + i];
    noise += n_globals;
    for (int v = 0; v < n_voxels_; v += LANES)  // so many of every shower at a time, which stay in the cache
      for (int j = 0; j < count<T>(); ++j)
        for (int i = v; i < std::min(v + LANES, n_voxels_); ++i) lane(w.noise[i], j) = noise[j * n_z + i];
  }

  // Four numbers of a counter: that of the four, then the shower's in two words.
  static void four(Words quad, Words low, Words high, uint64_t seed, Lanes out[4]) {
    Words c[4] = {quad, low, high, Words{}};
    philox(c, uint32_t(seed), uint32_t(seed >> 32));
    normal_pair(c[0], c[1], out[0], out[1]), normal_pair(c[2], c[3], out[2], out[3]);
  }
  void draw(Work<float>& w, uint64_t seed, uint64_t shower) {
    Words quad{}, step{};
    for (int k = 0; k < LANES; ++k) step[k] = k;
    Lanes z[4];
    for (int i = 0; i < n_noise(); i += 4 * LANES) {
      four(quad + step + uint32_t(i / 4), Words{} + uint32_t(shower), Words{} + uint32_t(shower >> 32), seed, z);
      for (int k = 0; k < 4 * LANES && i + k < n_noise(); ++k) noise_of(w, i + k) = z[k % 4][k / 4];
    }
  }
  void draw(Work<Lanes>& w, uint64_t seed, uint64_t shower) {
    Words low{}, high{};
    for (int k = 0; k < LANES; ++k) low[k] = uint32_t(shower + k), high[k] = uint32_t((shower + k) >> 32);
    Lanes z[4];
    for (int i = 0; i < n_noise(); i += 4) {
      four(Words{} + uint32_t(i / 4), low, high, seed, z);
      for (int k = 0; k < 4 && i + k < n_noise(); ++k) noise_of(w, i + k) = z[k];
    }
  }
  template <class T> T& noise_of(Work<T>& w, int i) { return i < n_globals ? w.g[i] : w.noise[i - n_globals]; }

  template <class T> void block(Work<T>& w, int k, const float* const* particle, float* out) {
    constexpr int N = count<T>();
    conditions(w, k, particle);
    decode(w);
    for (int v = 0; v < n_voxels_; v += LANES)
      for (int j = 0; j < N; ++j) {
        float* e = out + std::size_t(k + j) * n_voxels_;
        for (int i = v; i < std::min(v + LANES, n_voxels_); ++i) e[i] = lane(w.e[i], j);
      }
  }

  template <class T> void conditions(Work<T>& w, int k, const float* const* particle) {
    for (int j = 0; j < count<T>(); ++j) {
      float energy = particle[0][k + j], theta = particle[1][k + j], phi = particle[2][k + j];
      float value[5] = {float(std::log(double(energy))), theta, phi, particle[3][k + j], particle[4][k + j]};
      if (!polar && active.size() > 1) {
        float cosine = std::cos(phi), sine = std::sin(phi), reach = depth * std::tan(theta);
        value[1] = std::sin(theta) * cosine, value[2] = std::sin(theta) * sine;
        value[3] += reach * cosine, value[4] += reach * sine;
      }
      int n = int(active.size());
      for (int i = 0; i < n; ++i) lane(w.c[i], j) = value[active[i]] * (2 / span[i]) - (2 * low[i] / span[i] + 1);
      for (int i = 0; i < n_classes; ++i) lane(w.c[n + i], j) = particle[5][k + j] == kinds[i] ? 1.0f : 0.0f;
    }
  }

  template <class T> const T* run(Work<T>& w, const std::vector<Linear>& net, const T* x, int act) {
    for (std::size_t s = 0; s < net.size(); ++s) {
      T* y = s % 2 ? w.other.data() : w.hidden.data();
      net[s](x, y);
      if (s + 1 < net.size()) {
        if (act == RELU)
          for (int i = 0; i < net[s].n_out; ++i) y[i] = most(y[i], all<T>(0.0f));
        else if (act == TANH)
          for (int i = 0; i < net[s].n_out; ++i) y[i] = tanh_of(y[i]);
        else
          for (int i = 0; i < net[s].n_out; ++i) y[i] = y[i] * sigmoid(y[i]);
      }
      x = y;
    }
    return x;
  }

  template <class T, class F> T sum(int layer, F f) const {
    T s = all<T>(0.0f);
    for (int v = start[layer]; v < start[layer + 1]; ++v) s += f(v);
    return s;
  }
  template <class T> T top(int layer, const T* x) const {
    T s = x[start[layer]];
    for (int v = start[layer] + 1; v < start[layer + 1]; ++v) s = most(s, x[v]);
    return s;
  }

  template <class T> void decode(Work<T>& w) {
    const int L = n_layers, V = n_voxels_, G = n_globals;
    T* given = w.given.data();
    for (int i = 0; i < G; ++i) given[i] = w.g[i];
    for (int i = 0; i < n_conditions; ++i) given[G + i] = w.c[i];
    const T* moved = run(w, layers_net, given, activation);
    for (int i = 0; i < G; ++i) given[i] = w.g[i] + moved[i];
    features(w);
    margins(w);
    const T zero = all<T>(0.0f), one = all<T>(1.0f);
    T *filled = w.filled.data(), *made = w.made.data(), *e = w.e.data(), *m = w.m.data();
    for (int v = 0; v < V; ++v) filled[v] = m[v] >= zero ? one : zero;
    energies(w);
    if (n_moments) wanted(w);
    for (int l = 0; l < L; ++l) {
      w.layers[l] = exp_of(w.log_layers[l]);
      w.n[l] = sum<T>(l, [&](int v) { return filled[v]; });
    }
    if (!newton.empty()) tilt(w, newton, w.wanted.data());
    for (int v = 0; v < V; ++v) e[v] = zero;
    if (brightest) bright(w);
    for (int l = 0; l < L; ++l) {
      T n = most(w.n[l], one), base = least(w.layers[l] / n, all<T>(1.00001f * threshold));
      T share = (w.layers[l] - n * base) / most(sum<T>(l, [&](int v) { return made[v]; }), all<T>(1e-9f));
      for (int v = start[l]; v < start[l + 1]; ++v) {
        T x = e[v] + base * filled[v] + share * made[v];
        e[v] = x < all<T>(threshold) ? zero : x;
      }
    }
  }

  // Raw features of the layers and ln E_l, from g.
  template <class T> void features(Work<T>& w) {
    const int L = n_layers;
    const T *g = w.given.data(), *u = w.raw.data();
    for (int i = 0; i < n_globals; ++i) {
      T place = clip((g[i] - lowest[i]) * per_g[i], 0.0f, n_read - 1 - 1e-3f);
      for (int j = 0; j < count<T>(); ++j) {
        int left = whole(lane(place, j));
        const float* row = &knots[2 * (std::size_t(i) * (n_read - 1) + left)];
        lane(w.raw[i], j) = row[0] + (lane(place, j) - left) * row[1];
      }
    }
    T log_most = w.c[0] * half + (middle + log_ceiling), *out = w.log_layers.data(), zero = all<T>(0.0f);
    if (kind == LOGS) {
      T total = zero;
      for (int l = 0; l < L; ++l) total += exp_of(u[l]);
      T over = most(log_of(total) - log_most, zero);
      for (int l = 0; l < L; ++l) out[l] = u[l] - over;
    } else if (kind == RATIOS) {
      T total = zero;
      for (int l = 0; l < L; ++l) total += l == largest ? all<T>(1.0f) : exp_of(u[l]);
      T shift = log_most - softplus(-u[largest]) - log_of(total);
      for (int l = 0; l < L; ++l) out[l] = shift + (l == largest ? zero : u[l]);
    } else if (kind == REST) {
      T total = exp_of(log_most) * sigmoid(u[largest]), others = zero;
      for (int l = 0; l < L; ++l)
        if (l != largest) others += exp_of(u[l]);
      T scale = least((1 - LEAST_REST) * total / most(others, all<T>(1e-9f)), all<T>(1.0f));
      for (int l = 0; l < L; ++l) out[l] = log_of(l == largest ? total - scale * others : scale * exp_of(u[l]));
    } else {
      T left = log_most - softplus(-u[0]);
      for (int l = 0; l < L; ++l) {
        if (l) left -= softplus(u[l]);
        out[l] = l < L - 1 ? left - softplus(-u[l + 1]) : left;
      }
    }
  }

  template <class T> void margins(Work<T>& w) {
    const int L = n_layers, V = n_voxels_;
    const T* net = run(w, voxels_net, w.given.data(), RELU);
    const T *mu = net, *rate = net + 2 * n_rings, *asked = w.raw.data() + L, zero = all<T>(0.0f), one = all<T>(1.0f);
    T *m = w.m.data(), *own = w.value.data(), *rho = w.rho.data(), *noise = w.noise.data();
    for (int r = 0; r < n_rings; ++r) rho[r] = exp_of(clip(net[n_rings + r], -4.0f, 2.0f));
    if (full_root) {
      root(noise, w.tilted.data());
      noise = w.tilted.data();
    } else {
      for (int v = 0; v < V; ++v) noise[v] *= diagonal[v];
    }
    if (n_rings == V)
      for (int v = 0; v < V; ++v) own[v] = mu[v] + rho[v] * noise[v];
    else
      for (int v = 0; v < V; ++v) own[v] = mu[ring[v]] + rho[ring[v]] * noise[v];
    for (int l = 0; l < L; ++l) {
      T step = (asked[l] - sum<T>(l, [&](int v) { return sigmoid(SHARPNESS * own[v]); })) * rate[l];
      for (int v = start[l]; v < start[l + 1]; ++v) m[v] = own[v] + step;
      if (recount) {
        T there = zero, slope = zero;
        for (int v = start[l]; v < start[l + 1]; ++v) {
          T f = sigmoid(SHARPER * m[v]);
          there += f, slope += f * (1.0f - f);
        }
        T aim = most(number(whole(most(asked[l], zero))), one);
        step = clip((aim - there) / (SHARPER * most(slope, all<T>(LEAST_SLOPE))), -MOST, MOST);
        for (int v = start[l]; v < start[l + 1]; ++v) m[v] += step;
      }
      if (kind != FRACTIONS) {
        step = most(LEAST - top(l, m), zero);
        for (int v = start[l]; v < start[l + 1]; ++v) m[v] += step;
      }
    }
    for (int v = 0; v < V; ++v) own[v] = own[v] >= zero ? own[v] : m[v];
  }

  // Excess over the threshold, of filled voxels; tables q lie as (voxel, node, knot).
  template <class T> void energies(Work<T>& w) {
    const T *value = w.value.data(), *filled = w.filled.data();
    T *made = w.made.data(), scale = all<T>((n_knots - 1) / REACH);
    for (int l = 0; l < n_layers; ++l) {
      T at = clip((w.log_layers[l] - first[l]) * per_node[l], 0.0f, n_nodes - 1 - 1e-3f);
      auto node = whole(at);
      T f = at - number(node);
      for (int v = start[l]; v < start[l + 1]; ++v) {
        T place = clip(value[v] * scale, 0.0f, n_knots - 1 - 1e-3f);
        auto left = whole(place);
        T p = place - number(left);
        const float* table = &q[std::size_t(ring[v]) * n_nodes * n_knots];
        auto row = node * n_knots + left;
        T a = at_rows(table, row), b = at_rows(table + 1, row);
        T c = at_rows(table + n_knots, row), d = at_rows(table + n_knots + 1, row);
        T low_e = a + p * (b - a), high_e = c + p * (d - c);
        made[v] = low_e + f * (high_e - low_e);
      }
    }
    for (int v = 0; v < n_voxels_; ++v)
      made[v] = most(exp_of(made[v]) - threshold, all<T>(LEAST_EXCESS * threshold)) * filled[v];
  }

  // Means of the functions b that the features ask for: (K, L).
  template <class T> void wanted(Work<T>& w) {
    const int L = n_layers;
    const T* a = w.raw.data() + 2 * L;
    for (int l = 0; l < L; ++l) {
      T* out = &w.wanted[l];
      if (n_moments == 2) {
        out[0] = a[l], out[L] = a[L + l] + a[l] * a[l];
      } else {
        T x = a[l], y = a[L + l], xx = a[2 * L + l], yy = a[3 * L + l];
        out[0] = x, out[L] = y, out[2 * L] = xx + x * x, out[3 * L] = yy + y * y;
        out[4 * L] = a[4 * L + l] * root_of(xx * yy) + x * y;
      }
    }
  }

  // Means of all powers but 1 of voxels e: (P - 1, L).
  template <int P, class T> void powers(const T* e, T* means) const {
    for (int l = 0; l < n_layers; ++l) {
      T sums[P];
      for (int p = 0; p < P; ++p) sums[p] = all<T>(0.0f);
      for (int v = start[l]; v < start[l + 1]; ++v) {
        const float* b = &basis[std::size_t(v) * P];
        T x = e[v];
#pragma GCC unroll 16
        for (int p = 0; p < P; ++p) sums[p] += x * b[p];
      }
      T all_of = 1.0f / most(sums[0], all<T>(1e-9f));
      for (int p = 1; p < n_powers; ++p) means[(p - 1) * n_layers + l] = sums[p] * all_of;
    }
  }
  template <class T> void powers_of(const T* e, T* means) const {
    if (n_row == 8) powers<8>(e, means);
    else powers<16>(e, means);
  }

  // One Newton step of the excess towards the moments that are asked for.
  template <class T> void tilt(Work<T>& w, const std::vector<Linear>& net, const T* asked) {
    const int L = n_layers, K = n_moments;
    T *made = w.made.data(), *means = w.means.data(), *given = w.given.data() + n_globals + n_conditions;
    powers_of(made, means);
    for (int i = 0; i < (n_powers - 1) * L; ++i) given[i] = asinh_of(means[i]);
    const T* j = run(w, net, w.given.data(), RELU);
    for (int l = 0; l < L; ++l) {
      T missing[5], power[5], x = means[l], y = means[L + l];
      for (int k = 0; k < K; ++k) missing[k] = asked[k * L + l] - means[k * L + l];
      if (centred) {
        T dx = missing[0], dy = missing[1];
        missing[2] -= 2.0f * x * dx, missing[3] -= 2.0f * y * dy, missing[4] -= x * dy + y * dx;
      }
      for (int a = 0; a < K; ++a) {
        power[a] = all<T>(0.0f);
        for (int b = 0; b < K; ++b) power[a] += j[(a * K + b) * L + l] * missing[b];
      }
      if (centred) {
        power[0] -= 2.0f * power[2] * x + power[4] * y;
        power[1] -= 2.0f * power[3] * y + power[4] * x;
      }
      T constant = all<T>(0.0f);
      for (int k = 0; k < K; ++k) constant -= power[k] * means[k * L + l];
      if (K == 2) shift<2>(w, l, constant, power);
      else shift<5>(w, l, constant, power);
    }
  }
  template <int K, class T> void shift(Work<T>& w, int l, T constant, const T* power) {
    T* made = w.made.data();
    const float* b = columns.data();
    for (int v = start[l]; v < start[l + 1]; ++v) {
      T exponent = constant;
      for (int k = 0; k < K; ++k) exponent += power[k] * b[std::size_t(k) * n_voxels_ + v];
      made[v] *= exp_of(clip(exponent, -LARGEST, LARGEST));
    }
  }

  // The brightest voxel of every layer takes its share, and the others are tilted for what is left.
  template <class T> void bright(Work<T>& w) {
    const int L = n_layers, K = n_moments;
    T *made = w.made.data(), *filled = w.filled.data(), *e = w.e.data(), *chosen = w.tilted.data();
    const T zero = all<T>(0.0f), one = all<T>(1.0f);
    for (int l = 0; l < L; ++l) {
      T largest_e = top(l, made), number_of = zero;
      for (int v = start[l]; v < start[l + 1]; ++v) {
        chosen[v] = made[v] >= largest_e ? one : zero;
        if (kind == FRACTIONS) chosen[v] *= filled[v];
        number_of += chosen[v];
      }
      T part = w.n[l] > one ? w.raw[(per_layer - 1) * L + l] : one;
      T share = part * w.layers[l] / most(number_of, one);
      for (int v = start[l]; v < start[l + 1]; ++v) {
        e[v] = share * chosen[v];
        filled[v] -= chosen[v];
        made[v] *= filled[v];
      }
      w.part[l] = part;
      w.n[l] -= 1.0f;
      w.layers[l] *= 1.0f - part;
    }
    if (newton_rest.empty()) return;
    powers_of(chosen, w.there.data());
    for (int k = 0; k < K; ++k)
      for (int l = 0; l < L; ++l) {
        T part = w.part[l];
        w.moments[k * L + l] =
            (w.wanted[k * L + l] - part * w.there[k * L + l]) / most(1.0f - part, all<T>(LEAST_PART));
      }
    tilt(w, newton_rest, w.moments.data());
  }
};

}  // namespace caloforge
