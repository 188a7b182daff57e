/* What kernels on the CPU are called with. */
struct moec_math {
  float (*exp)(float);
  float (*softplus)(float);
  float (*tanh)(float);
  float (*erf)(float);
  float (*pow)(float, float);
};

/* Bytes from a matrix of an operand to the next, and from a row to the next. */
struct moec_strides {
  uint64_t matrix, row;
};

struct moec_context {
  void *const *buffers;
  uint64_t n_tokens;
  uint8_t *scratch;
  const struct moec_math *math;
  const void *kernels;
  const struct moec_strides *strides;
};

/* libmoec_kernels.a: the matrix products, for the processor that runs this. */
#ifdef __cplusplus
extern "C"
#endif
const void *moec_kernels(void);

typedef void (*moec_function)(const struct moec_context *context, uint64_t begin, uint64_t end);

/* One kernel's work, as threads get it. */
struct moec_work {
  moec_function function;
  struct moec_context context;
  uint64_t scratch_stride;
};

static uint64_t moec_scratch(const struct moec_aot_variant *v) {
  uint64_t most = 256;
  for (uint32_t k = 0; k < v->n_kernels; k++) {
    if (v->kernels[k].scratch_bytes > most) most = v->kernels[k].scratch_bytes;
  }
  return moec_aligned(most);
}

static void moec_run_items(void *work, uint64_t begin, uint64_t end, uint32_t thread) {
  const struct moec_work *w = (const struct moec_work *)work;
  struct moec_context context = w->context;
  context.scratch += thread * w->scratch_stride;
  w->function(&context, begin, end);
}

/* What generated code calls; computed in double and rounded once, as moec's own runtime does. */
static float moec_exp(float x) { return (float)exp((double)x); }
static float moec_softplus(float x) {
  const double d = (double)x;
  return x != x ? x : (float)((d > 0 ? d : 0) + log1p(exp(-fabs(d))));
}
static float moec_tanh(float x) { return (float)tanh((double)x); }
static float moec_erf(float x) { return (float)erf((double)x); }
static float moec_pow(float x, float y) { return (float)pow((double)x, (double)y); }

static const struct moec_math moec_functions = {moec_exp, moec_softplus, moec_tanh, moec_erf, moec_pow};
