/* CUDA. What cuda.h calls: CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, …_NON_PORTABLE_CLUSTER_SIZE_ALLOWED,
   CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION, …_PROGRAMMATIC_STREAM_SERIALIZATION,
   CU_TENSOR_MAP_L2_PROMOTION_L2_256B. */
enum {
  MOEC_SHARED_BYTES = 8,
  MOEC_LARGE_CLUSTERS = 14,
  MOEC_MULTIPROCESSORS = 16,
  MOEC_CLUSTER = 4,
  MOEC_EARLY = 6,
  MOEC_L2_256B = 3,
  /* Most parameters and tensor maps of a kernel. */
  MOEC_MOST_PARAMS = 64,
  MOEC_MOST_MAPS = 16
};

/* What the driver wants aligned to 64 bytes. */
struct moec_map {
  uint64_t words[16];
};

static int moec_failed(int result) { return result == 0 ? MOEC_AOT_OK : MOEC_AOT_CUDA + result; }

static void moec_attribute(struct moec_cuda_attribute *to, uint32_t id, uint32_t x, uint32_t y, uint32_t z) {
  const struct moec_cuda_attribute none = {0, {0}, {0}};
  *to = none;
  to->id = id;
  to->value[0] = x;
  to->value[1] = y;
  to->value[2] = z;
}

/* Loads what kernels need; `functions` and `clusters` have a place for each kernel of each variant, in order. */
static int moec_cuda_load(const struct moec_cuda *cuda, const struct moec_aot_target *t, uint32_t *n_sms, void **modules,
    void **functions, uint32_t *clusters) {
  int device = 0, value = 0, result;
  uint32_t at = 0;
  if ((result = cuda->ctx_get_device(&device)) != 0) return moec_failed(result);
  if ((result = cuda->device_get_attribute(&value, MOEC_MULTIPROCESSORS, device)) != 0) return moec_failed(result);
  *n_sms = (uint32_t)value;
  for (uint32_t i = 0; i < t->n_images; i++) {
    if ((result = cuda->module_load_data(&modules[i], t->images[i])) != 0) return moec_failed(result);
  }
  for (uint32_t v = 0; v < t->n_variants; v++) {
    for (uint32_t k = 0; k < t->variants[v].n_kernels; k++, at++) {
      const struct moec_aot_kernel *kernel = &t->variants[v].kernels[k];
      if ((result = cuda->module_get_function(&functions[at], modules[kernel->image], kernel->entry)) != 0) return moec_failed(result);
      if (kernel->dynamic_smem_bytes > 0) {
        result = cuda->func_set_attribute(functions[at], MOEC_SHARED_BYTES, (int)kernel->dynamic_smem_bytes);
        if (result != 0) return moec_failed(result);
      }
      if (kernel->cluster > 8) {
        if ((result = cuda->func_set_attribute(functions[at], MOEC_LARGE_CLUSTERS, 1)) != 0) return moec_failed(result);
      }
      clusters[at] = 0;
      if (kernel->persistent && kernel->cluster > 1) {
        /* A cluster lies in one group of multiprocessors, so that fewer run at once than there are blocks for. */
        struct moec_cuda_attribute attribute;
        struct moec_cuda_config config = {{kernel->cluster, 1, 1}, {kernel->block_threads, 1, 1}, kernel->dynamic_smem_bytes, 0, &attribute, 1};
        moec_attribute(&attribute, MOEC_CLUSTER, kernel->cluster, 1, 1);
        if ((result = cuda->occupancy_max_active_clusters(&value, functions[at], &config)) != 0) return moec_failed(result);
        if (value < 1) return MOEC_AOT_PROCESSOR;
        clusters[at] = (uint32_t)value;
      }
    }
  }
  return MOEC_AOT_OK;
}

static void moec_cuda_unload(const struct moec_cuda *cuda, const struct moec_aot_target *t, void **modules) {
  for (uint32_t i = 0; i < t->n_images; i++) {
    if (modules[i] != 0) cuda->module_unload(modules[i]);
    modules[i] = 0;
  }
}

/* The token count, counters, and what kernels hand to each other. */
static uint64_t moec_cuda_bytes(const struct moec_aot_variant *v, uint64_t n_tokens, uint64_t *offsets) {
  uint64_t counter_bytes = 0;
  for (uint32_t i = 0; i < v->n_buffers; i++) {
    if (v->buffers[i].role == MOEC_AOT_COUNTER) counter_bytes += moec_aligned(moec_bytes(&v->buffers[i], n_tokens));
  }
  return 256 + 256 + counter_bytes + moec_layout(v, n_tokens, offsets);
}

static int moec_cuda_map(const struct moec_cuda *cuda, const struct moec_aot_tensor_map *m, uint64_t address, uint64_t n_tokens,
    struct moec_map *to) {
  const uint32_t ones[5] = {1, 1, 1, 1, 1};
  uint64_t dims[5];
  for (uint32_t i = 0; i < 5; i++) {
    dims[i] = m->dims[i] + m->dims_per_token[i] * n_tokens;
    if (dims[i] == 0) dims[i] = 1;
  }
  return cuda->tensor_map_encode_tiled(to, m->type, m->n_dims, address, dims, m->strides, m->box, ones, 0, m->swizzle, MOEC_L2_256B, 0);
}

/* Launches a variant. `memory` has the addresses of inputs, outputs and weights. */
static int moec_cuda_run(const struct moec_cuda *cuda, uint32_t n_sms, const struct moec_aot_variant *v, void *const *functions,
    const uint32_t *clusters, const uint64_t *const *memory, uint64_t n_tokens, uint64_t workspace, uint64_t *offsets, void *stream) {
  const uint64_t count = moec_aligned(workspace);
  const uint64_t counters = count + 256;
  uint64_t counter_bytes = 0;
  int result;
  moec_layout(v, n_tokens, offsets);
  for (uint32_t i = 0; i < v->n_buffers; i++) {
    if (v->buffers[i].role != MOEC_AOT_COUNTER) continue;
    offsets[i] = counter_bytes;
    counter_bytes += moec_aligned(moec_bytes(&v->buffers[i], n_tokens));
  }
  if ((result = cuda->memset_d32_async(count, (uint32_t)n_tokens, 1, stream)) != 0) return moec_failed(result);
  if (counter_bytes > 0) {
    if ((result = cuda->memset_d32_async(counters, 0, counter_bytes / 4, stream)) != 0) return moec_failed(result);
  }
  for (uint32_t k = 0; k < v->n_kernels; k++) {
    const struct moec_aot_kernel *kernel = &v->kernels[k];
    uint64_t addresses[MOEC_MOST_PARAMS], blocks[3];
    void *params[MOEC_MOST_PARAMS];
    /* Room to begin at a multiple of 64. */
    struct moec_map room[MOEC_MOST_MAPS + 1];
    struct moec_map *maps = (struct moec_map *)(((uintptr_t)room + 63u) & ~(uintptr_t)63u);
    struct moec_cuda_attribute attributes[2];
    struct moec_cuda_config config = {{1, 1, 1}, {kernel->block_threads, 1, 1}, kernel->dynamic_smem_bytes, stream, attributes, 0};
    uint64_t at_once = n_sms;
    const uint32_t n = kernel->n_operands;
    for (uint32_t i = 0; i < 3; i++) blocks[i] = moec_extent_at(&kernel->grid[i], n_tokens);
    if (clusters[k] > 0 && (uint64_t)clusters[k] * kernel->cluster < at_once) at_once = (uint64_t)clusters[k] * kernel->cluster;
    if (kernel->persistent) {
      const uint64_t most = (at_once / kernel->cluster > 0 ? at_once / kernel->cluster : 1) * kernel->cluster;
      if (blocks[0] > most) blocks[0] = most;
    }
    blocks[0] = (blocks[0] + kernel->cluster - 1) / kernel->cluster * kernel->cluster;
    if (blocks[0] == 0 || blocks[1] == 0 || blocks[2] == 0) continue;
    for (uint32_t i = 0; i < 3; i++) config.grid[i] = (uint32_t)blocks[i];
    for (uint32_t i = 0; i < n; i++) {
      const struct moec_aot_buffer *b = &v->buffers[kernel->operands[i]];
      const uint64_t offset = offsets[kernel->operands[i]];
      if (b->role < MOEC_AOT_WORKSPACE) {
        addresses[i] = memory[b->role][b->index];
      } else {
        addresses[i] = b->role == MOEC_AOT_COUNTER ? counters + offset : counters + counter_bytes + offset;
      }
      params[i] = &addresses[i];
    }
    addresses[n] = count;
    params[n] = &addresses[n];
    for (uint32_t i = 0; i < kernel->n_tensor_maps; i++) {
      const struct moec_aot_tensor_map *m = &kernel->tensor_maps[i];
      if ((result = moec_cuda_map(cuda, m, addresses[m->operand], n_tokens, &maps[i])) != 0) return moec_failed(result);
      params[n + 1 + i] = &maps[i];
    }
    if (kernel->cluster > 1) moec_attribute(&attributes[config.n_attributes++], MOEC_CLUSTER, kernel->cluster, 1, 1);
    if (kernel->programmatic) moec_attribute(&attributes[config.n_attributes++], MOEC_EARLY, 1, 0, 0);
    if ((result = cuda->launch_kernel_ex(&config, functions[k], params, 0)) != 0) return moec_failed(result);
  }
  return MOEC_AOT_OK;
}
