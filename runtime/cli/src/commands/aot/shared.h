#ifndef MOEC_AOT_H
#define MOEC_AOT_H
/* What all layers share. */

enum {
  MOEC_AOT_OK = 0,
  MOEC_AOT_NULL = 1,
  MOEC_AOT_TOO_MANY_TOKENS = 2,
  MOEC_AOT_WORKSPACE_TOO_SMALL = 3,
  /* This processor or GPU cannot run the code. */
  MOEC_AOT_PROCESSOR = 4,
  /* An address on the GPU is no multiple of 16; of weights, of 256. */
  MOEC_AOT_MISALIGNED = 5,
  /* And what is more is the driver's own result. */
  MOEC_AOT_CUDA = 1000
};

/* Does the items [begin, end) of `work`; `thread` is below n_threads, and of one thread at a time. */
typedef void (*moec_aot_items)(void *work, uint64_t begin, uint64_t end, uint32_t thread);

/* The host's threads: `run` calls `items` until every item below n_items was done once, in any order, on any thread, and
   returns when all are done. Neighbouring items are best done by one call. */
struct moec_aot_threads {
  uint32_t n_threads;
  void *pool;
  void (*run)(void *pool, moec_aot_items items, void *work, uint64_t n_items);
};

/* A number of blocks or items: mul * (ceil(per_token * T / div) + min(add, per_token * T)), at least min. */
struct moec_aot_extent {
  uint64_t mul, per_token, div, add, min;
};

enum {
  MOEC_AOT_INPUT = 0,
  MOEC_AOT_OUTPUT = 1,
  MOEC_AOT_WEIGHT = 2,
  MOEC_AOT_WORKSPACE = 3,
  /* One i32 that is 0 before the first launch, and is kept from launch to launch. */
  MOEC_AOT_COUNTER = 4
};

/* A buffer: `batch` matrices of `rows + rows_per_token * T` rows of `cols` elements, `pitch` elements from row to row. */
struct moec_aot_buffer {
  const char *name, *dtype;
  uint32_t role;
  /* Number of the input, output or weight. */
  uint32_t index;
  uint64_t batch, rows, rows_per_token, cols, pitch;
  uint32_t elem_bytes;
  /* The first and the last kernel that name it. */
  uint32_t first, last;
};

/* A tensor map of a GPU kernel, behind the token count among its parameters (cuTensorMapEncodeTiled). */
struct moec_aot_tensor_map {
  uint32_t operand;
  /* The driver's numbers: CUtensorMapDataType, CUtensorMapSwizzle. */
  uint32_t type, swizzle;
  uint32_t n_dims;
  /* Innermost first; a dimension has dims + dims_per_token * T elements, at least 1. Strides are bytes, from the second on. */
  uint64_t dims[5], dims_per_token[5], strides[5];
  uint32_t box[5];
};

struct moec_aot_kernel {
  const char *name, *entry;
  /* GPU: the file of the bundle that holds its PTX, and the number of its image; else null. */
  const char *file;
  uint32_t image;
  /* GPU: blocks along x, y, z. CPU: work items, in grid[0]. */
  struct moec_aot_extent grid[3];
  uint32_t block_threads, cluster, dynamic_smem_bytes;
  /* Any number of blocks will do, no more than run at once; may start before the kernel in front of it is done. */
  uint32_t persistent, programmatic;
  /* CPU: scratch memory of one call. */
  uint64_t scratch_bytes;
  /* Buffers in the order of the parameters; a GPU kernel then gets a pointer to the token count (u32) and its maps. */
  uint32_t n_operands;
  const uint32_t *operands;
  uint32_t n_tensor_maps;
  const struct moec_aot_tensor_map *tensor_maps;
};

/* A program for a range of token counts. Any count up to the last variant's largest is right in every variant. */
struct moec_aot_variant {
  uint64_t min_tokens, max_tokens;
  uint32_t n_buffers;
  const struct moec_aot_buffer *buffers;
  uint32_t n_kernels;
  const struct moec_aot_kernel *kernels;
  /* 1: workspace buffers that are not alive at the same time share memory. */
  uint32_t overlay;
};

struct moec_aot_target {
  const char *name;
  uint32_t n_variants;
  const struct moec_aot_variant *variants;
  /* GPU: PTX that ends with a zero, or cubins. */
  uint32_t n_images;
  const unsigned char *const *images;
};

/* The CUDA driver as the host has it: functions of <cuda.h>, or what dlsym finds in libcuda.so.1 under the names on the right.
   Addresses of device memory are numbers; handles, maps and lists are pointers. */
struct moec_cuda_attribute {
  uint32_t id;
  uint32_t padding[1];
  uint32_t value[16];
};

struct moec_cuda_config {
  uint32_t grid[3], block[3], shared_bytes;
  void *stream;
  struct moec_cuda_attribute *attributes;
  uint32_t n_attributes;
};

struct moec_cuda {
  int (*ctx_get_device)(int *device);                                                     /* cuCtxGetDevice */
  int (*device_get_attribute)(int *value, int attribute, int device);                     /* cuDeviceGetAttribute */
  int (*module_load_data)(void **module, const void *image);                              /* cuModuleLoadData */
  int (*module_unload)(void *module);                                                     /* cuModuleUnload */
  int (*module_get_function)(void **function, void *module, const char *name);            /* cuModuleGetFunction */
  int (*func_set_attribute)(void *function, int attribute, int value);                    /* cuFuncSetAttribute */
  int (*occupancy_max_active_clusters)(int *n, void *function, const struct moec_cuda_config *config); /* cuOccupancyMaxActiveClusters */
  int (*memset_d32_async)(uint64_t at, uint32_t value, size_t n, void *stream);           /* cuMemsetD32Async */
  int (*tensor_map_encode_tiled)(void *map, int type, uint32_t rank, uint64_t address, const uint64_t *dims,
      const uint64_t *strides, const uint32_t *box, const uint32_t *steps, int interleave, int swizzle, int l2_promotion,
      int fill);                                                                          /* cuTensorMapEncodeTiled */
  int (*launch_kernel_ex)(const struct moec_cuda_config *config, void *function, void **params, void **extra); /* cuLaunchKernelEx */
};
#endif
