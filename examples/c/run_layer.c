/* Runs a compiled layer from C, on the CPU.
 *
 *   moec compile models/mixtral --target cpu -o layer.tar
 *   cc -std=c11 run_layer.c -I include -L lib -lmoec_c -Wl,-rpath,lib -o run_layer
 *   ./run_layer layer.tar models/mixtral 4096 2 < input.f32 > output.f32
 *
 * Standard input has rows of HIDDEN floats, one for each token; standard output gets as many. So the model has to be one of float32: a
 * layer of bfloat16 takes tensors of that type, and says so.
 */
#include <moec.h>
#include <stdio.h>
#include <stdlib.h>

/* Tells what went wrong, and ends. */
static void must(moec_status status, const char *what) {
  if (status == MOEC_OK) return;
  fprintf(stderr, "%s: [%s] %s\n%s\n", what, moec_last_error_code(), moec_last_error_message(), moec_last_error_help());
  exit(status);
}

static void *room(size_t bytes) {
  void *memory = malloc(bytes ? bytes : 1);
  if (memory == NULL) abort();
  return memory;
}

static void progress(void *user, const char *param, uint64_t done, uint64_t total) {
  fprintf((FILE *)user, "loading %s: %llu of %llu bytes\n", param, (unsigned long long)done, (unsigned long long)total);
}

/* A dense matrix in the host's memory: DLPack's device 1, `code` 2 for floats and 0 for integers. */
static moec_tensor matrix(void *data, int64_t shape[2], uint8_t code, uint8_t bits) {
  moec_tensor t = {0};
  t.data = data;
  t.device.device_type = 1;
  t.ndim = 2;
  t.dtype.code = code;
  t.dtype.bits = bits;
  t.dtype.lanes = 1;
  t.shape = shape;
  return t;
}

int main(int argc, char **argv) {
  if (argc != 5) {
    fprintf(stderr, "usage: %s BUNDLE CHECKPOINT HIDDEN TOP_K < input.f32 > output.f32\n", argv[0]);
    return 2;
  }
  if (moec_abi_version() != MOEC_ABI_VERSION) {
    fprintf(stderr, "the library moec %s has another interface\n", moec_version());
    return 2;
  }
  const size_t hidden = strtoul(argv[3], NULL, 10), top_k = strtoul(argv[4], NULL, 10);
  if (hidden == 0 || top_k == 0) return 2;

  /* The bundle is needed until the layer is created. */
  moec_bundle *bundle = NULL;
  const char *description = NULL;
  must(moec_bundle_open(argv[1], &bundle), "open");
  must(moec_bundle_describe(bundle, &description), "describe");
  fprintf(stderr, "%s\n", description);

  moec_layer_options options = {0};
  options.struct_size = sizeof options;
  options.max_tokens = 512;
  moec_layer *layer = NULL;
  must(moec_layer_create(bundle, &options, &layer), "create");
  must(moec_bundle_free(bundle), "free");

  moec_checkpoint_options checkpoint = {0};
  checkpoint.struct_size = sizeof checkpoint;
  checkpoint.path = argv[2];
  checkpoint.progress = progress;
  checkpoint.user = stderr;
  must(moec_layer_load_checkpoint(layer, &checkpoint), "load");
  must(moec_layer_finish(layer), "finish");

  /* All memory of a launch is the caller's; what the largest launch needs is enough for all. */
  const size_t most = 512;
  uint64_t workspace_bytes = 0;
  must(moec_layer_workspace_bytes(layer, most, &workspace_bytes), "workspace");
  void *workspace = room(workspace_bytes);
  float *input = room(most * hidden * sizeof *input), *output = room(most * hidden * sizeof *output);
  int32_t *ids = room(most * top_k * sizeof *ids);
  float *weights = room(most * top_k * sizeof *weights);

  size_t n_tokens;
  while ((n_tokens = fread(input, hidden * sizeof *input, most, stdin)) > 0) {
    int64_t rows[2] = {(int64_t)n_tokens, (int64_t)hidden}, slots[2] = {(int64_t)n_tokens, (int64_t)top_k};
    const moec_tensor in = matrix(input, rows, 2, 32), out = matrix(output, rows, 2, 32);
    const moec_tensor chosen = matrix(ids, slots, 0, 32), share = matrix(weights, slots, 2, 32);
    const moec_tensor *inputs[] = {&in}, *outputs[] = {&out, &chosen, &share};
    moec_launch launch = {0};
    launch.struct_size = sizeof launch;
    launch.inputs = inputs;
    launch.n_inputs = 1;
    launch.outputs = outputs;
    launch.n_outputs = 3;
    launch.workspace = workspace;
    launch.workspace_bytes = workspace_bytes;
    must(moec_layer_launch(layer, &launch), "launch");
    if (fwrite(output, hidden * sizeof *output, n_tokens, stdout) != n_tokens) return 1;
  }
  must(moec_layer_free(layer), "free");
  free(workspace);
  free(input);
  free(output);
  free(ids);
  free(weights);
  return 0;
}
