// Answers requests from a SavedModel as TensorFlow Serving does: its loader, its way of running a
// signature, and no XLA.
//
//     replay <folder of the version> <requests> <answers> [repeats]
//
// <requests> is a TFRecord file of PredictionLog messages, the form of
// `assets.extra/tf_serving_warmup_requests`. For each of them <answers> gets the records
//
//     "<status code> <message>", then for each output its name and its TensorProto, then "".
//
// With `repeats` each request is run so many times more, and their seconds are printed, a line each.
// The last line that is printed is the process's peak memory in KiB.

#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "tensorflow/cc/saved_model/loader.h"
#include "tensorflow/core/framework/tensor.h"
#include "tensorflow/core/lib/io/record_reader.h"
#include "tensorflow/core/lib/io/record_writer.h"
#include "tensorflow/core/platform/env.h"

namespace tensorflow {
// In tensorflow/compiler/jit/flags.h, which needs more headers than the wheel has. TensorFlow
// Serving calls it first of all, unless it is told otherwise.
void DisableXlaCompilation();
}  // namespace tensorflow

namespace {

using NamedTensors = std::vector<std::pair<std::string, tensorflow::Tensor>>;

void Require(const absl::Status& status) {
  if (!status.ok()) throw std::runtime_error(status.ToString());
}

// The protocol-buffer wire format, of which the wheel has no TensorFlow Serving messages.
class Message {
 public:
  explicit Message(const std::string& bytes) {
    size_t at = 0;
    while (at < bytes.size()) {
      const uint64_t tag = Varint(bytes, &at);
      if ((tag & 7) == 0) {
        Varint(bytes, &at);
      } else if ((tag & 7) == 2) {
        const uint64_t size = Varint(bytes, &at);
        if (size > bytes.size() - at) throw std::runtime_error("a field is cut short");
        fields_.emplace_back(tag >> 3, bytes.substr(at, size));
        at += size;
      } else {
        throw std::runtime_error("a field of an unexpected type");
      }
    }
  }

  std::vector<std::string> All(uint64_t number) const {
    std::vector<std::string> found;
    for (const auto& field : fields_) {
      if (field.first == number) found.push_back(field.second);
    }
    return found;
  }

  std::string Get(uint64_t number) const {
    const auto found = All(number);
    return found.empty() ? "" : found.back();
  }

 private:
  static uint64_t Varint(const std::string& bytes, size_t* at) {
    uint64_t value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      if (*at >= bytes.size()) throw std::runtime_error("a number is cut short");
      const uint64_t byte = static_cast<unsigned char>(bytes[(*at)++]);
      value |= (byte & 127) << shift;
      if (byte < 128) return value;
    }
    throw std::runtime_error("a number is too long");
  }

  std::vector<std::pair<uint64_t, std::string>> fields_;
};

struct Request {
  std::string signature = "serving_default";
  NamedTensors inputs;
};

Request Parse(const std::string& record) {
  // PredictionLog.predict_log, PredictLog.request
  const Message predict(Message(Message(record).Get(6)).Get(1));
  Request request;
  // PredictRequest.model_spec, ModelSpec.signature_name
  const std::string name = Message(predict.Get(1)).Get(3);
  if (!name.empty()) request.signature = name;
  for (const std::string& entry : predict.All(2)) {  // PredictRequest.inputs
    const Message pair(entry);
    tensorflow::TensorProto proto;
    tensorflow::Tensor tensor;
    if (!proto.ParseFromString(pair.Get(2)) || !tensor.FromProto(proto)) {
      throw std::runtime_error("an input is no tensor");
    }
    request.inputs.emplace_back(pair.Get(1), tensor);
  }
  return request;
}

// What TensorFlow Serving's `PreProcessPrediction` and `RunPredict` do.
absl::Status Run(const tensorflow::SavedModelBundle& bundle, const Request& request,
                 NamedTensors* answer) {
  const auto& signatures = bundle.GetSignatures();
  const auto found = signatures.find(request.signature);
  if (found == signatures.end()) {
    return absl::FailedPreconditionError("no signature " + request.signature);
  }
  const tensorflow::SignatureDef& signature = found->second;
  if (signature.method_name() != "tensorflow/serving/predict") {
    return absl::FailedPreconditionError("method " + signature.method_name());
  }
  if (static_cast<size_t>(signature.inputs().size()) != request.inputs.size()) {
    return absl::InvalidArgumentError("input size does not match signature");
  }
  NamedTensors feeds;
  for (const auto& input : request.inputs) {
    const auto info = signature.inputs().find(input.first);
    if (info == signature.inputs().end()) {
      return absl::InvalidArgumentError("no input " + input.first);
    }
    feeds.emplace_back(info->second.name(), input.second);
  }
  std::vector<std::string> names, fetches;
  for (const auto& output : signature.outputs()) {
    names.push_back(output.first);
    fetches.push_back(output.second.name());
  }
  std::vector<tensorflow::Tensor> tensors;
  const absl::Status status = bundle.GetSession()->Run(feeds, fetches, {}, &tensors);
  answer->clear();
  for (size_t i = 0; i < tensors.size(); ++i) answer->emplace_back(names[i], tensors[i]);
  return status;
}

void Write(tensorflow::io::RecordWriter* writer, const absl::Status& status,
           const NamedTensors& answer) {
  const int code = static_cast<int>(status.code());
  Require(writer->WriteRecord(std::to_string(code) + " " + std::string(status.message())));
  for (const auto& output : answer) {
    tensorflow::TensorProto proto;
    output.second.AsProtoTensorContent(&proto);
    Require(writer->WriteRecord(output.first));
    Require(writer->WriteRecord(proto.SerializeAsString()));
  }
  Require(writer->WriteRecord(""));
}

// (`getrusage` would tell of the parent process, where that is larger.)
std::string PeakMemory() {
  std::ifstream status("/proc/self/status");
  std::string word;
  while (status >> word) {
    if (word == "VmHWM:" && status >> word) return word;
  }
  return "0";
}

int Main(int argc, char** argv) {
  if (argc < 4) throw std::runtime_error("usage: replay MODEL REQUESTS ANSWERS [REPEATS]");
  const int repeats = argc > 4 ? std::atoi(argv[4]) : 0;
  tensorflow::DisableXlaCompilation();
  tensorflow::SavedModelBundle bundle;
  Require(tensorflow::LoadSavedModel(tensorflow::SessionOptions(), tensorflow::RunOptions(),
                                     argv[1], {"serve"}, &bundle));
  tensorflow::Env* env = tensorflow::Env::Default();
  std::unique_ptr<tensorflow::RandomAccessFile> input;
  Require(env->NewRandomAccessFile(argv[2], &input));
  std::unique_ptr<tensorflow::WritableFile> output;
  Require(env->NewWritableFile(argv[3], &output));
  tensorflow::io::RecordWriter writer(output.get());
  tensorflow::io::SequentialRecordReader reader(input.get());
  tensorflow::tstring record;
  absl::Status status;
  while ((status = reader.ReadRecord(&record)).ok()) {
    const Request request = Parse(record);
    NamedTensors answer;
    Write(&writer, Run(bundle, request, &answer), answer);
    for (int i = 0; i < repeats; ++i) {
      const auto start = std::chrono::steady_clock::now();
      Require(Run(bundle, request, &answer));
      const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
      std::cout << seconds.count() << (i + 1 < repeats ? ' ' : '\n');
    }
  }
  if (!absl::IsOutOfRange(status)) Require(status);
  Require(writer.Close());
  Require(output->Close());
  std::cout << PeakMemory() << std::endl;
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return Main(argc, argv);
  } catch (const std::exception& error) {
    std::cerr << error.what() << std::endl;
    return 1;
  }
}
