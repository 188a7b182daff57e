// Two layers of one bundle, each with its own weights and a thread of its own, from C++17.
//
//   c++ -std=c++17 two_layers.cpp -I include -L lib -lmoec_c -Wl,-rpath,lib -pthread -o two_layers
//   ./two_layers layer.tar 64 2 < input.f32 > output.f32
//
// The bundle is read out of memory, as it would be by a program that embeds it. The weights lie in the program's own memory
// and are borrowed where kernels read them as they lie. Standard output gets the rows of both layers. They are float32: so has the
// layer to be.
#include <moec.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace {

void must(moec_status status) {
  if (status != MOEC_OK) {
    throw std::runtime_error(std::string("[") + moec_last_error_code() + "] " + moec_last_error_message());
  }
}

struct FreeBundle { void operator()(moec_bundle *b) const { moec_bundle_free(b); } };
struct FreeLayer { void operator()(moec_layer *l) const { moec_layer_free(l); } };
using Bundle = std::unique_ptr<moec_bundle, FreeBundle>;
using Layer = std::unique_ptr<moec_layer, FreeLayer>;

template <class T> struct Element;
template <> struct Element<float> { static constexpr moec_dtype dtype{2, 32, 1}; };
template <> struct Element<int32_t> { static constexpr moec_dtype dtype{0, 32, 1}; };

// A dense tensor and its memory.
template <class T> struct Tensor {
  std::vector<int64_t> shape;
  std::vector<T> data;

  explicit Tensor(std::vector<int64_t> lengths) : shape(std::move(lengths)) {
    size_t n = 1;
    for (int64_t length : shape) n *= static_cast<size_t>(length);
    data.resize(n);
  }
  moec_tensor view() {
    moec_tensor t{};
    t.data = data.data();
    t.device = {1, 0};
    t.ndim = static_cast<int32_t>(shape.size());
    t.dtype = Element<T>::dtype;
    t.shape = shape.data();
    return t;
  }
};

Bundle open(const char *path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error(std::string("cannot open ") + path);
  const std::vector<char> bytes{std::istreambuf_iterator<char>(file), {}};
  moec_bundle *bundle = nullptr;
  must(moec_bundle_open_memory(bytes.data(), bytes.size(), &bundle));
  return Bundle(bundle);
}

// A layer with weights that anybody can compute again: element i of parameter p is `sin(i + 10 p + seed) / 8`.
struct Model {
  std::vector<Tensor<float>> weights;  // before the layer, which reads them until it is freed
  Layer layer;

  Model(const moec_bundle *bundle, float seed) {
    moec_layer_options options{};
    options.struct_size = sizeof options;
    options.max_tokens = 64;
    moec_layer *made = nullptr;
    must(moec_layer_create(bundle, &options, &made));
    layer.reset(made);
    size_t n_params = 0;
    must(moec_layer_param_count(made, &n_params));
    weights.reserve(n_params);
    for (size_t p = 0; p < n_params; p++) {
      moec_param param{};
      param.struct_size = sizeof param;
      must(moec_layer_param(made, p, &param));
      Tensor<float> &weight = weights.emplace_back(std::vector<int64_t>(param.shape, param.shape + param.ndim));
      for (size_t i = 0; i < weight.data.size(); i++) {
        weight.data[i] = std::sin(static_cast<float>(i) + 10.0f * static_cast<float>(p) + seed) / 8.0f;
      }
      const moec_tensor view = weight.view();
      must(moec_layer_set_param(made, param.name, &view, MOEC_BORROW_IF_POSSIBLE));
    }
    must(moec_layer_finish(made));
  }

  std::vector<float> run(std::vector<float> rows, int64_t hidden, int64_t top_k) const {
    const int64_t n_tokens = static_cast<int64_t>(rows.size()) / hidden;
    Tensor<float> input({n_tokens, hidden}), output({n_tokens, hidden}), shares({n_tokens, top_k});
    Tensor<int32_t> ids({n_tokens, top_k});
    input.data = std::move(rows);
    uint64_t bytes = 0;
    must(moec_layer_workspace_bytes(layer.get(), static_cast<uint64_t>(n_tokens), &bytes));
    std::vector<unsigned char> workspace(bytes);
    const moec_tensor in = input.view(), out = output.view(), chosen = ids.view(), share = shares.view();
    const moec_tensor *inputs[] = {&in}, *outputs[] = {&out, &chosen, &share};
    moec_launch launch{};
    launch.struct_size = sizeof launch;
    launch.inputs = inputs;
    launch.n_inputs = 1;
    launch.outputs = outputs;
    launch.n_outputs = 3;
    launch.workspace = workspace.data();
    launch.workspace_bytes = workspace.size();
    must(moec_layer_launch(layer.get(), &launch));
    return output.data;
  }
};

}  // namespace

int main(int argc, char **argv) try {
  if (argc != 4) {
    std::fprintf(stderr, "usage: %s BUNDLE.tar HIDDEN TOP_K < input.f32 > output.f32\n", argv[0]);
    return 2;
  }
  const int64_t hidden = std::atoll(argv[2]), top_k = std::atoll(argv[3]);
  std::vector<float> rows(static_cast<size_t>(64 * hidden));
  rows.resize(std::fread(rows.data(), sizeof(float), rows.size(), stdin));

  const Bundle bundle = open(argv[1]);
  const Model models[] = {Model(bundle.get(), 1.0f), Model(bundle.get(), 2.0f)};
  std::vector<float> results[2];
  std::string errors[2];
  std::thread threads[2];
  for (size_t i = 0; i < 2; i++) {
    threads[i] = std::thread([&, i] {
      try {
        results[i] = models[i].run(rows, hidden, top_k);
        for (int again = 0; again < 50; again++) {
          if (models[i].run(rows, hidden, top_k) != results[i]) throw std::runtime_error("results differ from run to run");
        }
      } catch (const std::exception &e) {
        errors[i] = e.what();
      }
    });
  }
  for (std::thread &thread : threads) thread.join();
  for (size_t i = 0; i < 2; i++) {
    if (!errors[i].empty()) throw std::runtime_error(errors[i]);
    if (std::fwrite(results[i].data(), sizeof(float), results[i].size(), stdout) != results[i].size()) return 1;
  }
  return 0;
} catch (const std::exception &e) {
  std::fprintf(stderr, "%s\n", e.what());
  return 1;
}
