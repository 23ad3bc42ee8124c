// One sweep of an optimizer's rule over many parameters. The formulas: satcompile/optimizers/rules.py.
//
// Compiled once per rule and dtype, with these defined before this text:
//   SAT_BITS                  32, 64, 16 (bfloat16) or 15 (float16): the dtype of all tensors
//   SAT_ADAM, SAT_MOMENTS, SAT_DECOUPLED, SAT_NESTEROV, SAT_MAXIMIZE    the rule

#include <cmath>
#include <cstdint>
#include <cstring>

#if SAT_BITS == 64
using stored = double;
using number = double;
static inline number load(stored value) { return value; }
static inline stored store(number value) { return value; }
#elif SAT_BITS == 32
using stored = float;
using number = float;
static inline number load(stored value) { return value; }
static inline stored store(number value) { return value; }
#elif SAT_BITS == 16
using stored = uint16_t;
using number = float;
static inline number load(stored value) {
  const uint32_t bits = static_cast<uint32_t>(value) << 16;
  float result;
  std::memcpy(&result, &bits, sizeof result);
  return result;
}
static inline stored store(number value) {  // to the nearest, ties to even, NaN stays NaN
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const uint32_t nan = (bits >> 16) | 0x40;
  return static_cast<stored>((bits & 0x7fffffff) > 0x7f800000 ? nan : rounded);
}
#else
using stored = _Float16;
using number = float;
static inline number load(stored value) { return value; }
static inline stored store(number value) { return static_cast<stored>(value); }
#endif

// Both as numpy lays them out in sweep_cpu.py.
struct Parameter {
  stored* weight;
  const stored* gradient;
  stored* moments[3];
  float* step;
  double lr, weight_decay, beta1, beta2, eps;
  int64_t is_first;
};
struct Piece {  // rows of adjacent elements, `stride` apart
  int64_t parameter, begin, rows, columns, stride;
};

struct Coefficients {  // what the rule needs, at the dtype it computes in
  number scale, decay, keep1, take1, keep2, take2, step_size, root, eps;
  bool is_first;
};

static Coefficients coefficients(const Parameter& p, double scale) {
  const double t = p.step ? static_cast<double>(*p.step) + 1 : 1;
  Coefficients c;
  c.scale = static_cast<number>(SAT_MAXIMIZE ? -scale : scale);
  c.is_first = p.is_first != 0;
  c.eps = static_cast<number>(p.eps);
  c.keep1 = static_cast<number>(p.beta1);
  c.take1 = static_cast<number>(1 - p.beta1);
  c.keep2 = static_cast<number>(p.beta2);
  c.take2 = static_cast<number>(1 - p.beta2);
  c.decay = static_cast<number>(SAT_DECOUPLED ? 1 - p.lr * p.weight_decay : p.weight_decay);
  c.step_size = static_cast<number>(SAT_ADAM ? p.lr / (1 - std::pow(p.beta1, t)) : p.lr);
  c.root = static_cast<number>(SAT_ADAM ? std::sqrt(1 - std::pow(p.beta2, t)) : 1);
  return c;
}

static void update(const Parameter& p, const Coefficients& c, int64_t begin, int64_t count) {
  stored* __restrict w = p.weight + begin;
  const stored* __restrict gradient = p.gradient + begin;
#if SAT_MOMENTS > 0
  stored* __restrict m = p.moments[0] + begin;
#endif
#if SAT_MOMENTS > 1
  stored* __restrict v = p.moments[1] + begin;
#endif
#if SAT_MOMENTS > 2
  stored* __restrict largest = p.moments[2] + begin;
#endif
#pragma omp simd
  for (int64_t i = 0; i < count; i++) {
    number weight = load(w[i]);
    number g = load(gradient[i]) * c.scale;
#if SAT_DECOUPLED
    weight *= c.decay;
#else
    g += c.decay * weight;
#endif
#if SAT_ADAM
    const number first = load(m[i]) + c.take1 * (g - load(m[i]));
    const number second = c.keep2 * load(v[i]) + c.take2 * g * g;
    m[i] = store(first);
    v[i] = store(second);
#if SAT_MOMENTS > 2
    const number before = load(largest[i]);
    // As torch.maximum: NaN wins on either side.
    const number under = (before != before) | (before > second) ? before : second;
    largest[i] = store(under);
#else
    const number under = second;
#endif
    w[i] = store(weight - c.step_size * first / (std::sqrt(under) / c.root + c.eps));
#else
#if SAT_MOMENTS > 0
    const number momentum = c.is_first ? g : c.keep1 * load(m[i]) + c.take2 * g;
    m[i] = store(momentum);
    g = SAT_NESTEROV ? g + c.keep1 * momentum : momentum;
#endif
    w[i] = store(weight - c.step_size * g);
#endif
  }
}

extern "C" void sweep(Parameter* parameters, int64_t num_parameters, const Piece* pieces,
                      int64_t num_pieces, double scale, int threads) {
  Coefficients* all = new Coefficients[num_parameters];
  for (int64_t i = 0; i < num_parameters; i++) all[i] = coefficients(parameters[i], scale);
#pragma omp parallel for num_threads(threads) schedule(static) if (num_pieces > 1)
  for (int64_t i = 0; i < num_pieces; i++) {
    const Piece& piece = pieces[i];
    for (int64_t row = 0; row < piece.rows; row++)
      update(parameters[piece.parameter], all[piece.parameter], piece.begin + row * piece.stride,
             piece.columns);
  }
  // In the same call as the update, so that an interrupt finds weight, moments and step agreed.
  for (int64_t i = 0; i < num_parameters; i++)
    if (parameters[i].step) *parameters[i].step += 1;
  delete[] all;
}
