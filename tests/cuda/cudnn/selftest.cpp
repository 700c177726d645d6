// Exercises the stand-in of cuDNN's graph API: a convolution of each direction, run and captured, and what it has to
// refuse.
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <vector>

extern "C" {
int cuMemAlloc_v2(uint64_t *, size_t);
int cuMemFree_v2(uint64_t);
int cuMemcpyHtoDAsync_v2(uint64_t, const void *, size_t, void *);
int cuMemcpyDtoHAsync_v2(void *, uint64_t, size_t, void *);
int cuStreamCreate(void **, unsigned);
int cuStreamDestroy_v2(void *);
int cuStreamSynchronize(void *);
int cuStreamBeginCapture_v2(void *, int);
int cuStreamEndCapture(void *, void **);
int cuGraphInstantiateWithFlags(void **, void *, unsigned long long);
int cuGraphLaunch(void *, void *);
int cuGraphExecDestroy(void *);
int cuGraphDestroy(void *);
int cudnnCreate(void **);
int cudnnDestroy(void *);
int cudnnSetStream(void *, void *);
int cudnnBackendCreateDescriptor(int, void **);
int cudnnBackendDestroyDescriptor(void *);
int cudnnBackendSetAttribute(void *, int, int, int64_t, const void *);
int cudnnBackendGetAttribute(void *, int, int, int64_t, int64_t *, void *);
int cudnnBackendFinalize(void *);
int cudnnBackendExecute(void *, void *, void *);
}

namespace {

int failures = 0;

void expect(int line, long found, long wanted) {
  if (found == wanted) return;
  fprintf(stderr, "cudnn/selftest.cpp:%d: %ld and not %ld\n", line, found, wanted);
  failures++;
}

#define EXPECT(found, wanted) expect(__LINE__, (long)(found), (long)(wanted))
#define OK(call) EXPECT(call, 0)

// Numbers of cudnn_graph.h: descriptors, and types of attributes.
enum : int { CONVOLUTION = 1, ENGINE, CONFIG, HEURISTICS, PLAN, FORWARD = 10, FILTER, DATA, GRAPH = 15, PACK, TENSOR };
enum : int { HANDLE = 0, DATA_TYPE = 1, INT64 = 3, FLOAT32 = 4, ADDRESS = 6, MODE = 7, HEURISTIC = 8, NOTE = 11 };
enum : int { PART = 15 };

void *made(int kind) {
  void *descriptor = nullptr;
  OK(cudnnBackendCreateDescriptor(kind, &descriptor));
  return descriptor;
}

int set(void *descriptor, int name, int type, const void *value) {
  return cudnnBackendSetAttribute(descriptor, name, type, 1, value);
}

int set(void *descriptor, int name, const std::vector<int64_t> &values) {
  return cudnnBackendSetAttribute(descriptor, name, INT64, (int64_t)values.size(), values.data());
}

// n, c, h, w of f32, lying as NHWC. Not finalized.
void *tensor(int64_t id, int64_t n, int64_t c, int64_t h, int64_t w) {
  void *tensor = made(TENSOR);
  const int type = 0;
  OK(set(tensor, 906, {id}));
  OK(set(tensor, 901, DATA_TYPE, &type));
  OK(set(tensor, 900, {16}));
  OK(set(tensor, 902, {n, c, h, w}));
  OK(set(tensor, 903, {h * w * c, 1, w * c, c}));
  return tensor;
}

void *convolution() {
  void *convolution = made(CONVOLUTION);
  const int type = 0, mode = 1;
  OK(set(convolution, 100, DATA_TYPE, &type));
  OK(set(convolution, 101, MODE, &mode));
  OK(set(convolution, 106, {2}));
  for (int name : {102, 103, 104, 105}) OK(set(convolution, name, {1, 1}));
  return convolution;
}

// A 3x3 convolution of 1 x 4 x 4 x 2 to four channels, of ones: a plan of the engine for everybody.
struct Made {
  std::vector<void *> parts;
  void *operation = nullptr, *graph = nullptr, *config = nullptr, *plan = nullptr;
  int64_t workspace = 0;

  Made(void *handle, int kind, float beta) {
    parts = {convolution(), tensor(7, 4, 2, 3, 3), tensor(8, 1, 2, 4, 4), tensor(9, 1, 4, 4, 4)};
    for (void *part : parts) OK(cudnnBackendFinalize(part));
    operation = made(kind);
    const int first = kind == FORWARD ? 700 : kind == DATA ? 706 : 712;
    const float one = 1.0f;
    OK(set(operation, first, FLOAT32, &one));
    OK(set(operation, first + 1, FLOAT32, &beta));
    for (int i = 0; i < 4; i++) OK(set(operation, first + 2 + i, PART, &parts[(size_t)i]));
    OK(cudnnBackendFinalize(operation));
    graph = made(GRAPH);
    OK(set(graph, 800, HANDLE, &handle));
    OK(set(graph, 801, PART, &operation));
    OK(cudnnBackendFinalize(graph));
    config = engine_one();
    plan = made(PLAN);
    OK(set(plan, 400, HANDLE, &handle));
    OK(set(plan, 401, PART, &config));
    OK(cudnnBackendFinalize(plan));
    int64_t count = 0;
    OK(cudnnBackendGetAttribute(plan, 402, INT64, 1, &count, &workspace));
    EXPECT(count, 1);
    EXPECT(workspace > 0, 1);
  }

  // Among those that heuristics offer, the one without notes that is neither too large nor refused.
  void *engine_one() {
    const int mode = 3;
    void *heuristics = made(HEURISTICS);
    OK(set(heuristics, 200, HEURISTIC, &mode));
    OK(set(heuristics, 201, PART, &graph));
    OK(cudnnBackendFinalize(heuristics));
    int64_t count = 0;
    OK(cudnnBackendGetAttribute(heuristics, 202, PART, 0, &count, nullptr));
    EXPECT(count >= 4, 1);
    std::vector<void *> configs((size_t)count);
    for (void *&config : configs) config = made(CONFIG);
    OK(cudnnBackendGetAttribute(heuristics, 202, PART, count, &count, configs.data()));
    // They are full.
    EXPECT(cudnnBackendGetAttribute(heuristics, 202, PART, 1, &count, configs.data()), 2000);
    void *chosen = nullptr;
    for (void *config : configs) {
      void *engine = made(ENGINE);
      int64_t index = -1, notes = 0;
      int note[9] = {};
      OK(cudnnBackendGetAttribute(config, 300, PART, 1, &count, &engine));
      OK(cudnnBackendGetAttribute(engine, 1301, INT64, 1, &count, &index));
      OK(cudnnBackendGetAttribute(engine, 1303, NOTE, 9, &notes, note));
      EXPECT(notes > 0, index == 0 || index == 4);
      if (index == 1) chosen = config;
      OK(cudnnBackendDestroyDescriptor(engine));
      if (index != 1) OK(cudnnBackendDestroyDescriptor(config));
    }
    OK(cudnnBackendDestroyDescriptor(heuristics));
    EXPECT(chosen != nullptr, 1);
    return chosen;
  }

  void destroy() {
    for (void *one : {plan, config, graph, operation}) OK(cudnnBackendDestroyDescriptor(one));
    for (void *part : parts) OK(cudnnBackendDestroyDescriptor(part));
  }
};

// Addresses of w, x and y, and a workspace. Finalized.
void *pack(const std::vector<int64_t> &ids, uint64_t w, uint64_t x, uint64_t y, uint64_t workspace) {
  void *pack = made(PACK);
  const uint64_t addresses[3] = {w, x, y};
  OK(set(pack, 1000, ids));
  OK(cudnnBackendSetAttribute(pack, 1001, ADDRESS, 3, addresses));
  OK(set(pack, 1003, ADDRESS, &workspace));
  OK(cudnnBackendFinalize(pack));
  return pack;
}

struct Memory {
  uint64_t w = 0, x = 0, y = 0, workspace = 0;
  void *stream;

  Memory(void *stream) : stream(stream) {
    for (uint64_t *one : {&w, &x, &y, &workspace}) OK(cuMemAlloc_v2(one, 8192));
    fill();
  }
  void fill() {
    static const std::vector<float> ones(64, 1.0f);
    // Longer than what is read of it: w has 72 numbers.
    for (uint64_t at : {w, w + 32, x, y}) OK(cuMemcpyHtoDAsync_v2(at, ones.data(), 256, stream));
  }
  float first(uint64_t at) {
    float value = 0;
    OK(cuMemcpyDtoHAsync_v2(&value, at, 4, stream));
    OK(cuStreamSynchronize(stream));
    return value;
  }
  ~Memory() {
    for (uint64_t one : {w, x, y, workspace}) OK(cuMemFree_v2(one));
  }
};

void directions_are_computed(void *handle, void *stream) {
  Memory memory(stream);
  // At a corner four of nine taps are inside.
  const struct {
    int kind;
    uint64_t to;
    float sum;
  } all[] = {{FORWARD, memory.y, 4 * 2}, {DATA, memory.x, 4 * 4}, {FILTER, memory.w, 9}};
  for (const auto &one : all)
    for (float beta : {0.0f, 1.0f}) {
      memory.fill();
      Made made(handle, one.kind, beta);
      // The ids may come in any order.
      void *packed = pack({9, 7, 8}, memory.y, memory.w, memory.x, memory.workspace);
      OK(cudnnBackendExecute(handle, made.plan, packed));
      OK(cudnnBackendDestroyDescriptor(packed));
      EXPECT(memory.first(one.to), one.sum + beta);
      made.destroy();
    }
}

void plans_are_captured(void *handle, void *stream) {
  Memory memory(stream);
  void *graph = nullptr, *executable = nullptr;
  OK(cuStreamSynchronize(stream));
  Made made(handle, FORWARD, 1.0f);
  void *packed = pack({7, 8, 9}, memory.w, memory.x, memory.y, memory.workspace);
  OK(cuStreamBeginCapture_v2(stream, 1));
  OK(cudnnBackendExecute(handle, made.plan, packed));
  OK(cuStreamEndCapture(stream, &graph));
  OK(cudnnBackendDestroyDescriptor(packed));
  OK(cuGraphInstantiateWithFlags(&executable, graph, 0));
  OK(cuGraphDestroy(graph));
  for (int round = 0; round < 3; round++) OK(cuGraphLaunch(executable, stream));
  EXPECT(memory.first(memory.y), 1 + 3 * 8);
  OK(cuGraphExecDestroy(executable));
  made.destroy();
}

void attributes_are_checked() {
  void *one = nullptr;
  EXPECT(cudnnBackendCreateDescriptor(13, &one), 3000);
  void *some = tensor(1, 1, 2, 4, 4);
  int64_t count = 0, value = 0;
  // Not finalized: neither asked nor a part.
  EXPECT(cudnnBackendGetAttribute(some, 906, INT64, 1, &count, &value), 2004);
  void *operation = made(FORWARD);
  EXPECT(set(operation, 704, PART, &some), 2004);
  EXPECT(set(some, 907, {1}), 3000);           // no such attribute
  EXPECT(set(some, 902, {1, 2, 4}), 2006);     // another count
  EXPECT(set(some, 906, FLOAT32, &value), 2010);  // another type
  EXPECT(cudnnBackendSetAttribute(some, 906, INT64, 1, nullptr), 2002);
  OK(cudnnBackendFinalize(some));
  EXPECT(cudnnBackendFinalize(some), 2000);
  EXPECT(set(some, 906, {2}), 2000);
  EXPECT(cudnnBackendGetAttribute(some, 402, INT64, 1, &count, &value), 3000);
  OK(set(operation, 704, PART, &some));
  EXPECT(cudnnBackendFinalize(operation), 2000);  // the rest is missing
  OK(cudnnBackendDestroyDescriptor(some));
  EXPECT(cudnnBackendDestroyDescriptor(some), 2000);
  EXPECT(set(operation, 704, PART, &some), 2000);
  OK(cudnnBackendDestroyDescriptor(operation));
  // Other strides, alignment and sides are not what the loops know.
  const struct {
    int name;
    std::vector<int64_t> values;
    int error;
  } wrong[] = {{903, {32, 16, 4, 1}, 3000}, {900, {4}, 3000}, {902, {0, 2, 4, 4}, 2000}};
  for (const auto &one : wrong) {
    void *other = tensor(1, 1, 2, 4, 4);
    OK(set(other, one.name, one.values));
    EXPECT(cudnnBackendFinalize(other), one.error);
    OK(cudnnBackendDestroyDescriptor(other));
  }
}

void executions_are_checked(void *handle, void *stream) {
  Memory memory(stream);
  Made made(handle, FORWARD, 0.0f);
  const auto refused = [&](int line, int error, const std::vector<int64_t> &ids, uint64_t y, uint64_t workspace) {
    void *packed = pack(ids, memory.w, memory.x, y, workspace);
    expect(line, cudnnBackendExecute(handle, made.plan, packed), error);
    OK(cudnnBackendDestroyDescriptor(packed));
  };
  float host[64] = {};
  refused(__LINE__, 2000, {7, 8, 10}, memory.y, memory.workspace);              // nobody's id
  refused(__LINE__, 2002, {7, 8, 9}, 0, memory.workspace);                      // null
  refused(__LINE__, 2003, {7, 8, 9}, memory.y + 4, memory.workspace);           // misaligned
  refused(__LINE__, 2000, {7, 8, 9}, memory.y + 8192 - 128, memory.workspace);  // half outside
  refused(__LINE__, 2000, {7, 8, 9}, memory.y, (uint64_t)(uintptr_t)host);      // the host's
  refused(__LINE__, 2000, {7, 8, 9}, memory.y, memory.workspace + 8192 - 512);  // too short
  refused(__LINE__, 2000, {7, 8, 9}, memory.y, 0);
  void *packed = pack({7, 8, 9}, memory.w, memory.x, memory.y, memory.workspace);
  void *open = ::made(PACK);
  EXPECT(cudnnBackendExecute(handle, made.plan, open), 2004);
  EXPECT(cudnnBackendExecute(handle, packed, packed), 2010);
  EXPECT(cudnnBackendExecute(nullptr, made.plan, packed), 1001);
  void *other = nullptr;
  OK(cudnnCreate(&other));
  EXPECT(cudnnBackendExecute(other, made.plan, packed), 2000);
  OK(cudnnDestroy(other));
  OK(cudnnBackendExecute(handle, made.plan, packed));
  // What a plan is made of lives as long, the graph too.
  {
    Made other_made(handle, FORWARD, 0.0f);
    OK(cudnnBackendDestroyDescriptor(other_made.graph));
    EXPECT(cudnnBackendExecute(handle, other_made.plan, packed), 2000);
    other_made.graph = ::made(PACK);
    other_made.destroy();
  }
  OK(cudnnBackendDestroyDescriptor(made.parts.back()));
  EXPECT(cudnnBackendExecute(handle, made.plan, packed), 2000);
  made.parts.pop_back();
  void *plan = made.plan;
  made.destroy();
  EXPECT(cudnnBackendExecute(handle, plan, packed), 2000);
  OK(cudnnBackendDestroyDescriptor(packed));
  OK(cudnnBackendDestroyDescriptor(open));
  OK(cuStreamSynchronize(stream));
}

}  // namespace

int cudnn_graph_failures() {
  void *handle = nullptr, *stream = nullptr;
  OK(cudnnCreate(&handle));
  OK(cuStreamCreate(&stream, 1));
  OK(cudnnSetStream(handle, stream));
  directions_are_computed(handle, stream);
  plans_are_captured(handle, stream);
  attributes_are_checked();
  executions_are_checked(handle, stream);
  OK(cudnnDestroy(handle));
  OK(cuStreamDestroy_v2(stream));
  return failures;
}
