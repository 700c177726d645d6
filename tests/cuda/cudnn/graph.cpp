// The stand-in for cuDNN's graph API: descriptors with attributes, which become operations, engines and plans. It knows
// graphs of one convolution, and is as strict as can be: what it does not know, and what is not finished, of another
// count or type, or gone, is refused.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "calls.h"

using namespace cudnn_stand_in;

namespace {

// Numbers of cudnnBackendDescriptorType_t.
enum Kind : int {
  CONVOLUTION = 1,
  ENGINE = 2,
  ENGINE_CONFIG = 3,
  HEURISTICS = 4,
  PLAN = 5,
  FORWARD = 10,
  BACKWARD_FILTER = 11,
  BACKWARD_DATA = 12,
  GRAPH = 15,
  PACK = 16,
  TENSOR = 17,
};

// Numbers of cudnnBackendAttributeType_t, and bytes of each.
enum Type : int {
  HANDLE = 0,
  DATA_TYPE = 1,
  INT64 = 3,
  FLOAT32 = 4,
  ADDRESS = 6,
  CONVOLUTION_MODE = 7,
  HEURISTIC_MODE = 8,
  NUMERICAL_NOTE = 11,
  DESCRIPTOR = 15,
};

size_t bytes_of(int type) {
  switch (type) {
    case HANDLE:
    case INT64:
    case ADDRESS:
    case DESCRIPTOR:
      return 8;
    default:
      return 4;
  }
}

// Numbers of cudnnBackendAttributeName_t.
enum Name : int {
  COMP_TYPE = 100,
  CONV_MODE = 101,
  DILATIONS = 102,
  FILTER_STRIDES = 103,
  POST_PADDINGS = 104,
  PRE_PADDINGS = 105,
  SPATIAL_DIMS = 106,
  MODE = 200,
  OPERATION_GRAPH = 201,
  RESULTS = 202,
  CONFIG_ENGINE = 300,
  PLAN_HANDLE = 400,
  PLAN_CONFIG = 401,
  WORKSPACE_SIZE = 402,
  FORWARD_FIRST = 700,
  DATA_FIRST = 706,
  FILTER_FIRST = 712,
  GRAPH_HANDLE = 800,
  GRAPH_OPERATIONS = 801,
  BYTE_ALIGNMENT = 900,
  TENSOR_TYPE = 901,
  DIMENSIONS = 902,
  STRIDES = 903,
  UNIQUE_ID = 906,
  PACK_IDS = 1000,
  PACK_POINTERS = 1001,
  PACK_WORKSPACE = 1003,
  ENGINE_INDEX = 1301,
  ENGINE_NOTES = 1303,
};

// Of cudnnBackendHeurMode_t and cudnnBackendNumericalNote_t.
enum : int { FALLBACK = 2, MODE_A = 3 };
enum : int { TENSOR_CORE = 0, DOWN_CONVERT_INPUTS = 1, NONDETERMINISTIC = 4 };

// An attribute that has to be set: so many values of this type.
struct Rule {
  int name, type;
  int64_t count;
};

// The attributes of an operation follow one another: alpha, beta, the convolution, and three tensors.
std::vector<Rule> operation_rules(int first) {
  std::vector<Rule> rules;
  for (int i = 0; i < 6; i++) rules.push_back({first + i, i < 2 ? FLOAT32 : DESCRIPTOR, 1});
  return rules;
}

std::vector<Rule> rules_of(int kind) {
  switch (kind) {
    case TENSOR:
      return {{UNIQUE_ID, INT64, 1}, {TENSOR_TYPE, DATA_TYPE, 1}, {BYTE_ALIGNMENT, INT64, 1},
              {DIMENSIONS, INT64, 4}, {STRIDES, INT64, 4}};
    case CONVOLUTION:
      return {{COMP_TYPE, DATA_TYPE, 1}, {CONV_MODE, CONVOLUTION_MODE, 1}, {SPATIAL_DIMS, INT64, 1},
              {DILATIONS, INT64, 2}, {FILTER_STRIDES, INT64, 2}, {PRE_PADDINGS, INT64, 2}, {POST_PADDINGS, INT64, 2}};
    case FORWARD:
      return operation_rules(FORWARD_FIRST);
    case BACKWARD_DATA:
      return operation_rules(DATA_FIRST);
    case BACKWARD_FILTER:
      return operation_rules(FILTER_FIRST);
    case GRAPH:
      return {{GRAPH_HANDLE, HANDLE, 1}, {GRAPH_OPERATIONS, DESCRIPTOR, 1}};
    case HEURISTICS:
      return {{MODE, HEURISTIC_MODE, 1}, {OPERATION_GRAPH, DESCRIPTOR, 1}};
    case PLAN:
      return {{PLAN_HANDLE, HANDLE, 1}, {PLAN_CONFIG, DESCRIPTOR, 1}};
    case PACK:
      return {{PACK_IDS, INT64, 3}, {PACK_POINTERS, ADDRESS, 3}, {PACK_WORKSPACE, ADDRESS, 1}};
    default:
      return {};  // Engines and configurations are filled by heuristics.
  }
}

// What an engine is offered as.
struct Offer {
  int engine;
  std::vector<int> notes;
};

struct Descriptor {
  int kind = 0;
  bool finished = false;
  std::map<int, std::vector<char>> attributes;
  // What an operation comes to; which one, and in which graph, all others are about.
  Call call = {};
  int64_t ids[3] = {};
  uintptr_t operation = 0, graph = 0;
  std::vector<Offer> offers;  // of heuristics
  Offer offer = {-1, {}};     // of a configuration, an engine, a plan
  size_t workspace = 0;
};

// All that live, by the number that stands for their address, which no other one ever gets.
struct Registry {
  std::mutex lock;
  std::map<uintptr_t, Descriptor> live;
  uintptr_t next = 1;
};

Registry &registry() {
  static Registry *registry = new Registry();
  return *registry;
}

Descriptor *find(uintptr_t name) {
  const auto found = registry().live.find(name);
  return found == registry().live.end() ? nullptr : &found->second;
}

// A descriptor that lives, is finished and of this kind (or of any, -1).
int finished(uintptr_t name, int kind, Descriptor **found) {
  *found = find(name);
  if (*found == nullptr) return fail(BAD_PARAM, "a descriptor is none, or was destroyed");
  if (kind >= 0 && (*found)->kind != kind) return fail(BAD_PARAM_TYPE, "a descriptor of kind %d", (*found)->kind);
  if (!(*found)->finished)
    return fail(BAD_PARAM_NOT_FINALIZED, "a descriptor of kind %d is not finalized", (*found)->kind);
  return SUCCESS;
}

template <typename T>
T value(const Descriptor &of, int name, size_t index = 0) {
  T result;
  memcpy(&result, of.attributes.at(name).data() + index * sizeof(T), sizeof(T));
  return result;
}

// Whether all that it is made of lives still.
int whole(uintptr_t name) {
  Descriptor *one = nullptr;
  if (const int error = finished(name, -1, &one)) return error;
  for (const Rule &rule : rules_of(one->kind))
    if (rule.type == DESCRIPTOR)
      if (const int error = whole(value<uintptr_t>(*one, rule.name))) return error;
  if (one->kind == ENGINE_CONFIG || one->kind == ENGINE) return whole(one->graph);
  return SUCCESS;
}

int64_t positive(const Descriptor &of, int name, size_t index) {
  const int64_t side = value<int64_t>(of, name, index);
  return side > 0 && side < 1 << 30 ? side : 0;
}

// NHWC, though its sides are named in the order n, c, h, w.
int tensor_of(const Descriptor &of, Tensor *tensor) {
  const int type = value<int>(of, TENSOR_TYPE);
  if (type != FLOAT && type != BFLOAT16) return fail(NOT_SUPPORTED, "type %d", type);
  int64_t sides[4];
  for (size_t i = 0; i < 4; i++)
    if ((sides[i] = positive(of, DIMENSIONS, i)) == 0) return fail(BAD_PARAM, "side %zu is not positive", i);
  const auto [n, c, h, w] = sides;
  const int64_t strides[4] = {h * w * c, 1, w * c, c};
  for (size_t i = 0; i < 4; i++)
    if (value<int64_t>(of, STRIDES, i) != strides[i]) return fail(NOT_SUPPORTED, "strides are not those of NHWC");
  if (value<int64_t>(of, BYTE_ALIGNMENT) != 16) return fail(NOT_SUPPORTED, "alignment");
  *tensor = {type, (int)n, (int)c, (int)h, (int)w};
  return SUCCESS;
}

int convolution_of(const Descriptor &of, Convolution *convolution) {
  if (value<int>(of, COMP_TYPE) != FLOAT || value<int>(of, CONV_MODE) != 1 || value<int64_t>(of, SPATIAL_DIMS) != 2)
    return fail(NOT_SUPPORTED, "type of sums, mode or dimensions");
  int64_t padding[2], stride[2];
  for (size_t i = 0; i < 2; i++) {
    padding[i] = value<int64_t>(of, PRE_PADDINGS, i);
    stride[i] = positive(of, FILTER_STRIDES, i);
    if (stride[i] == 0 || padding[i] < 0 || padding[i] > 1 << 20) return fail(BAD_PARAM, "padding or stride");
    if (value<int64_t>(of, DILATIONS, i) != 1 || value<int64_t>(of, POST_PADDINGS, i) != padding[i])
      return fail(NOT_SUPPORTED, "dilation, or padding that differs");
  }
  *convolution = {(int)padding[0], (int)padding[1], (int)stride[0], (int)stride[1], FMA_MATH, true};
  return SUCCESS;
}

// The operation as a call of the loops. All three have their tensors in the order of w, x, y.
int operation_of(Descriptor *of) {
  const int first = rules_of(of->kind)[0].name, place[3] = {4, 3, 5};
  const bool is_filter = of->kind == BACKWARD_FILTER, is_data = of->kind == BACKWARD_DATA;
  Descriptor *at = nullptr;
  if (const int error = finished(value<uintptr_t>(*of, first + 2), CONVOLUTION, &at)) return error;
  if (const int error = convolution_of(*at, &of->call.convolution)) return error;
  Tensor *tensors[3] = {&of->call.x, &of->call.w, &of->call.y};
  for (size_t i = 0; i < 3; i++) {
    Descriptor *tensor = nullptr;
    if (const int error = finished(value<uintptr_t>(*of, first + place[i]), TENSOR, &tensor)) return error;
    if (const int error = tensor_of(*tensor, tensors[i])) return error;
    of->ids[i] = value<int64_t>(*tensor, UNIQUE_ID);
  }
  if (of->ids[0] == of->ids[1] || of->ids[1] == of->ids[2] || of->ids[0] == of->ids[2])
    return fail(BAD_PARAM, "two tensors have one id");
  of->call.pass = is_filter ? Pass::Filter : is_data ? Pass::Data : Pass::Forward;
  of->call.alpha = value<float>(*of, first);
  of->call.beta = value<float>(*of, first + 1);
  return check_shapes(of->call.x, of->call.w, of->call.y, of->call.convolution);
}

// Whether there is an engine of this number: SYNFIRE_STAND_IN_ENGINES lists them, else there are all.
bool is_there(int engine) {
  const char *listed = getenv("SYNFIRE_STAND_IN_ENGINES");
  if (listed == nullptr) return true;
  return ("," + std::string(listed) + ",").find("," + std::to_string(engine) + ",") != std::string::npos;
}

// The engines for an operation, the best first: one that is not deterministic (0), one that needs more memory than
// there is (9), one of which no plan can be made (7), one of tensor cores, which rounds f32 (4), and one for everybody
// (1). What has an odd number of outputs gets the last only where one falls back.
std::vector<Offer> offers_of(const Call &call, int mode) {
  std::vector<Offer> all;
  const bool is_odd = call.y.c % 2 == 1;
  if (mode == MODE_A) {
    if (call.pass != Pass::Forward) all.push_back({0, {NONDETERMINISTIC}});
    all.push_back({9, {}});
    all.push_back({7, {}});
    if (call.x.type == FLOAT) all.push_back({4, {TENSOR_CORE, DOWN_CONVERT_INPUTS}});
    if (call.x.type != FLOAT) all.push_back({4, {TENSOR_CORE}});
  }
  if (is_odd == (mode == FALLBACK)) all.push_back({1, {}});
  std::vector<Offer> there;
  for (const Offer &offer : all)
    if (is_there(offer.engine)) there.push_back(offer);
  return there;
}

// The descriptor that another one is about, all the way down to the operation.
int about(Descriptor *one, int name, int kind) {
  Descriptor *of = nullptr;
  const uintptr_t part = value<uintptr_t>(*one, name);
  if (const int error = finished(part, kind, &of)) return error;
  const bool is_operation = of->kind == FORWARD || of->kind == BACKWARD_DATA || of->kind == BACKWARD_FILTER;
  one->operation = is_operation ? part : of->operation;
  one->graph = of->kind == GRAPH ? part : of->graph;
  return SUCCESS;
}

int finish(Descriptor *one) {
  switch (one->kind) {
    case TENSOR: {
      Tensor tensor;
      return tensor_of(*one, &tensor);
    }
    case CONVOLUTION: {
      Convolution convolution;
      return convolution_of(*one, &convolution);
    }
    case FORWARD:
    case BACKWARD_DATA:
    case BACKWARD_FILTER:
      return operation_of(one);
    case GRAPH: {
      if (!is_handle(value<Handle *>(*one, GRAPH_HANDLE))) return fail(BAD_PARAM, "no such handle");
      if (const int error = about(one, GRAPH_OPERATIONS, -1)) return error;
      return find(one->operation) == nullptr ? fail(BAD_PARAM_TYPE, "that is no operation") : (int)SUCCESS;
    }
    case HEURISTICS: {
      if (const int error = about(one, OPERATION_GRAPH, GRAPH)) return error;
      const int mode = value<int>(*one, MODE);
      if (mode != MODE_A && mode != FALLBACK) return fail(NOT_SUPPORTED, "mode %d", mode);
      one->offers = offers_of(find(one->operation)->call, mode);
      return SUCCESS;
    }
    case PLAN: {
      if (!is_handle(value<Handle *>(*one, PLAN_HANDLE))) return fail(BAD_PARAM, "no such handle");
      if (const int error = about(one, PLAN_CONFIG, ENGINE_CONFIG)) return error;
      one->offer = find(value<uintptr_t>(*one, PLAN_CONFIG))->offer;
      if (one->offer.engine == 7) return fail(NOT_SUPPORTED, "engine 7 has no plan for this");
      const Call &call = find(one->operation)->call;
      if (call.beta != 0.0f && getenv("SYNFIRE_STAND_IN_SETS_ONLY") != nullptr)
        return fail(NOT_SUPPORTED, "nothing adds to what is there");
      one->workspace = workspace_bytes(call.pass, call.x, one->offer.engine) + 64;
      if (one->offer.engine == 9) one->workspace = (size_t)3 << 30;
      return SUCCESS;
    }
    case PACK:
      return SUCCESS;
    default:
      return fail(NOT_SUPPORTED, "a descriptor of kind %d is filled, not finalized", one->kind);
  }
}

// What is written for a finished descriptor's attribute.
int answer(const Descriptor &one, int name, int type, int64_t wanted, int64_t *count, void *values) {
  const auto give = [&](int of_type, const std::vector<char> &bytes) -> int {
    if (type != of_type) return fail(BAD_PARAM_TYPE, "attribute %d has type %d and not %d", name, of_type, type);
    *count = (int64_t)(bytes.size() / bytes_of(type));
    if (wanted > 0 && !bytes.empty())
      memcpy(values, bytes.data(), std::min<size_t>(bytes.size(), (size_t)wanted * bytes_of(type)));
    return SUCCESS;
  };
  const auto as_bytes = [](const auto &number) {
    const char *begin = reinterpret_cast<const char *>(&number);
    return std::vector<char>(begin, begin + sizeof number);
  };
  if (one.kind == PLAN && name == WORKSPACE_SIZE) return give(INT64, as_bytes((int64_t)one.workspace));
  if (one.kind == ENGINE && name == ENGINE_INDEX) return give(INT64, as_bytes((int64_t)one.offer.engine));
  if (one.kind == ENGINE && name == ENGINE_NOTES) {
    std::vector<char> bytes(one.offer.notes.size() * sizeof(int));
    if (!bytes.empty()) memcpy(bytes.data(), one.offer.notes.data(), bytes.size());
    return give(NUMERICAL_NOTE, bytes);
  }
  const bool has_results = one.kind == HEURISTICS && name == RESULTS;
  if (!has_results && !(one.kind == ENGINE_CONFIG && name == CONFIG_ENGINE))
    return fail(NOT_SUPPORTED, "a descriptor of kind %d is asked for attribute %d", one.kind, name);
  if (type != DESCRIPTOR) return fail(BAD_PARAM_TYPE, "attribute %d is no descriptor", name);
  const std::vector<Offer> offers = has_results ? one.offers : std::vector<Offer>{one.offer};
  *count = (int64_t)offers.size();
  // Descriptors that the caller has made are filled.
  for (int64_t i = 0; i < std::min(wanted, *count); i++) {
    Descriptor *to = find(static_cast<uintptr_t *>(values)[i]);
    if (to == nullptr || to->finished || to->kind != (has_results ? ENGINE_CONFIG : ENGINE))
      return fail(BAD_PARAM, "descriptor %d to be filled is none, of another kind, or full", (int)i);
    to->offer = offers[(size_t)i];
    to->operation = one.operation;
    to->graph = one.graph;
    to->finished = true;
  }
  return SUCCESS;
}

// An engine that is not deterministic gives something else every time.
float noise() {
  static unsigned calls = 0;
  return 1.0f + (float)(calls++ % 7) / 1024.0f;
}

int execute(Handle *handle, uintptr_t plan_name, uintptr_t pack_name) {
  Descriptor *plan = nullptr, *pack = nullptr;
  if (!is_handle(handle)) return fail(NOT_INITIALIZED, "no such handle");
  if (const int error = finished(plan_name, PLAN, &plan)) return error;
  if (const int error = finished(pack_name, PACK, &pack)) return error;
  if (const int error = whole(plan_name)) return error;
  if (value<Handle *>(*plan, PLAN_HANDLE) != handle) return fail(BAD_PARAM, "the plan is for another handle");
  const Descriptor &operation = *find(plan->operation);
  Call call = operation.call;
  const void **data[3] = {&call.x_data, &call.w_data, &call.y_data};
  for (size_t i = 0; i < 3; i++) {
    size_t at = 0;
    while (at < 3 && value<int64_t>(*pack, PACK_IDS, at) != operation.ids[i]) at++;
    if (at == 3) return fail(BAD_PARAM, "the tensor with id %lld has no address", (long long)operation.ids[i]);
    *data[i] = value<void *>(*pack, PACK_POINTERS, at);
  }
  call.workspace = value<void *>(*pack, PACK_WORKSPACE);
  call.workspace_bytes = plan->workspace;
  if (plan->offer.engine == 4) call.convolution.math = TENSOR_OP_MATH;
  if (plan->offer.engine == 0) call.alpha *= noise();
  return start(handle, call, plan->workspace);
}

}  // namespace

API int cudnnBackendCreateDescriptor(int kind, uintptr_t *descriptor) {
  if (descriptor == nullptr) return fail(BAD_PARAM_NULL, "nowhere to write to");
  if (rules_of(kind).empty() && kind != ENGINE && kind != ENGINE_CONFIG)
    return fail(NOT_SUPPORTED, "descriptors of kind %d", kind);
  std::lock_guard<std::mutex> held(registry().lock);
  // Nobody may look there.
  *descriptor = 16 * registry().next++;
  registry().live[*descriptor].kind = kind;
  return SUCCESS;
}

API int cudnnBackendDestroyDescriptor(uintptr_t descriptor) {
  std::lock_guard<std::mutex> held(registry().lock);
  return registry().live.erase(descriptor) == 1 ? (int)SUCCESS : fail(BAD_PARAM, "it was destroyed before");
}

API int cudnnBackendSetAttribute(uintptr_t descriptor, int name, int type, int64_t count, const void *values) {
  std::lock_guard<std::mutex> held(registry().lock);
  Descriptor *one = find(descriptor);
  if (one == nullptr) return fail(BAD_PARAM, "the descriptor is none, or was destroyed");
  if (one->finished) return fail(BAD_PARAM, "the descriptor is finalized");
  for (const Rule &rule : rules_of(one->kind)) {
    if (rule.name != name) continue;
    if (rule.type != type) return fail(BAD_PARAM_TYPE, "attribute %d has type %d and not %d", name, rule.type, type);
    if (rule.count != count) return fail(BAD_PARAM_SIZE, "attribute %d has %lld values", name, (long long)rule.count);
    if (values == nullptr) return fail(BAD_PARAM_NULL, "attribute %d is null", name);
    if (type == DESCRIPTOR) {
      Descriptor *part = nullptr;
      uintptr_t part_name = 0;
      memcpy(&part_name, values, sizeof part_name);
      if (const int error = finished(part_name, -1, &part)) return error;
    }
    const char *bytes = static_cast<const char *>(values);
    one->attributes[name].assign(bytes, bytes + (size_t)count * bytes_of(type));
    return SUCCESS;
  }
  return fail(NOT_SUPPORTED, "a descriptor of kind %d has no attribute %d", one->kind, name);
}

API int cudnnBackendFinalize(uintptr_t descriptor) {
  std::lock_guard<std::mutex> held(registry().lock);
  Descriptor *one = find(descriptor);
  if (one == nullptr) return fail(BAD_PARAM, "the descriptor is none, or was destroyed");
  if (one->finished) return fail(BAD_PARAM, "the descriptor is finalized");
  for (const Rule &rule : rules_of(one->kind))
    if (one->attributes.count(rule.name) == 0) return fail(BAD_PARAM, "attribute %d is not set", rule.name);
  if (const int error = finish(one)) return error;
  one->finished = true;
  return SUCCESS;
}

API int cudnnBackendGetAttribute(uintptr_t descriptor, int name, int type, int64_t wanted, int64_t *count,
                                 void *values) {
  std::lock_guard<std::mutex> held(registry().lock);
  if (count == nullptr || wanted < 0 || (wanted > 0 && values == nullptr))
    return fail(BAD_PARAM_NULL, "nowhere to write to");
  Descriptor *one = nullptr;
  if (const int error = finished(descriptor, -1, &one)) return error;
  if (const int error = whole(descriptor)) return error;
  return answer(*one, name, type, wanted, count, values);
}

API int cudnnBackendExecute(Handle *handle, uintptr_t plan, uintptr_t pack) {
  std::lock_guard<std::mutex> held(registry().lock);
  return execute(handle, plan, pack);
}
