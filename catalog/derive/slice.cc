#include "catalog/derive/slice.h"

#include <algorithm>
#include <cmath>
#include <map>

#include "catalog/derive/axes.h"
#include "catalog/derive/slice_layout.h"
#include "catalog/derive/spool.h"
#include "catalog/read/tensor_table.h"
#include "codec/decode/block_decoder.h"
#include "codec/encode/principal_axes.h"

namespace modelstore {
namespace {

// Axes are those of so many norms before and behind one, as a share of all. Measured on a model of 60 norms: its own
// alone lose far more, all together somewhat more (docs/derive.md).
constexpr double kWindowShare = 1.0 / 6;
// A norm that hardly lets a direction through tells nothing of it.
constexpr double kLeastNormShare = 1e-6;
// … nor one whose energy is this much smaller than that of what its bias adds.
constexpr double kLeastShareOfBias = 1e-5;

constexpr uint64_t kMaxHidden = 1 << 16;
constexpr uint64_t kPanelElems = 1536;  // of a thread that multiplies, in floats for each of the hidden size
// Axes cost 1.7 bytes an element, a matrix that they save 1.3.
constexpr double kAxesShare = 0.75;

// A tensor of the variant that is not one of the source.
struct Made {
  std::string dtype;
  std::vector<uint64_t> shape;
  uint64_t offset = 0, bytes = 0;  // in the spool
  std::optional<SourceContent::Projection> projection{};
};

class Slicer {
 public:
  Slicer(Catalog& catalog, const SourceCheckpoint& source, const DeriveOptions& options, const MomentsFile& moments,
         JobControl& job)
      : catalog_(catalog), source_(source), options_(options), moments_(moments), job_(job) {}

  Result<Variant> Run() {
    const Part* config = source_.Find(kConfigFile);
    if (config == nullptr) return Unsupported("'" + source_.model().name + "' has no config.json, which slicing needs");
    ASSIGN_OR_RETURN(const Bytes text, source_.ReadAll(*config));
    const std::vector<std::string> names = source_.TensorNames();
    ASSIGN_OR_RETURN(layout_, LayOutSlices(text, names));
    ASSIGN_OR_RETURN(size_, SlicedSize(layout_.hidden, layout_.heads, *options_.slice, options_.basis));
    for (const Part& part : source_.parts()) {
      for (const HeaderTensor& tensor : part.header.tensors) tensors_[tensor.name] = {&part, &tensor};
    }
    RETURN_IF_ERROR(CheckTensors());
    if (one_basis() && layout_.has_layer_norms)
      return Unsupported("a model of type " + layout_.model_type +
                         " has LayerNorms, which sliced in one basis for all it cannot have; take --basis block");
    if (!one_basis() && source_.Find(kModelingFile) != nullptr)
      return Unsupported("the model has a file " + std::string(kModelingFile) + " of its own");
    RETURN_IF_ERROR(TakeMemory());
    ASSIGN_OR_RETURN(spool_, Spool::Create(catalog_.dir()));
    RETURN_IF_ERROR(MakeTensors());
    memory_ = {};  // the push has its own
    ASSIGN_OR_RETURN(std::vector<SourceFile> files, MakeFiles());
    char share[32];
    std::snprintf(share, sizeof share, "%.3g",
                  100 * (1 - static_cast<double>(size_) / static_cast<double>(layout_.hidden)));
    return Variant{std::move(files), std::string(share) + " % sliced, " + std::to_string(size_) + " of " +
                                         std::to_string(layout_.hidden) +
                                         (one_basis() ? ", one basis" : ", a basis a block")};
  }

 private:
  using Part = SourceCheckpoint::Part;
  struct Tensor {
    const Part* part = nullptr;
    const HeaderTensor* header = nullptr;
  };
  using Matrix = std::vector<double>;

  bool one_basis() const { return options_.basis == DeriveOptions::Basis::kGlobal; }
  uint64_t hidden() const { return layout_.hidden; }
  ForAll for_all() {
    return [this](size_t n, const std::function<Status(size_t)>& task) {
      return catalog_.pool().ParallelFor(n, [&](size_t i) -> Status {
        RETURN_IF_ERROR(job_.Check());
        return task(i);
      });
    };
  }

  Status CheckShape(const std::string& name, const std::vector<uint64_t>& wanted) const {
    const HeaderTensor& tensor = *tensors_.at(name).header;
    if (!IsProjectable(DTypeFromName(tensor.dtype)))
      return Unsupported("'" + name + "' is " + tensor.dtype + "; BF16, F16 and F32 can be sliced");
    bool fits = tensor.shape.size() == wanted.size();
    for (size_t i = 0; fits && i < wanted.size(); ++i) fits = wanted[i] == 0 || tensor.shape[i] == wanted[i];
    if (fits) return OkStatus();
    return Unsupported("'" + name + "' has another shape than a model of hidden size " + std::to_string(hidden()) +
                       " has");
  }

  // Everything that may be wrong with the model or its moments, before the work.
  Status CheckTensors() const {
    for (const std::string& name : {layout_.embedding, layout_.head}) RETURN_IF_ERROR(CheckShape(name, {0, hidden()}));
    for (const std::string& name : layout_.added) RETURN_IF_ERROR(CheckShape(name, {0, hidden()}));
    RETURN_IF_ERROR(CheckShape(layout_.final_norm, {hidden()}));
    for (const SliceStep& step : layout_.steps) {
      RETURN_IF_ERROR(CheckShape(step.norm, {hidden()}));
      if (!step.norm_bias.empty()) RETURN_IF_ERROR(CheckShape(step.norm_bias, {hidden()}));
      for (const std::string& reader : step.readers) RETURN_IF_ERROR(CheckShape(reader, {0, hidden()}));
      for (size_t i = 0; i < step.readers_biases.size(); ++i)
        RETURN_IF_ERROR(CheckShape(step.readers_biases[i], {tensors_.at(step.readers[i]).header->shape[0]}));
      for (const std::string& writer : step.writers) {
        const bool is_bias = writer.ends_with(".bias");
        RETURN_IF_ERROR(
            CheckShape(writer, is_bias ? std::vector<uint64_t>{hidden()} : std::vector<uint64_t>{hidden(), 0}));
      }
      RETURN_IF_ERROR(CheckMoments(step.readers.front(), !step.norm_bias.empty()));
    }
    return one_basis() ? CheckMoments(layout_.head) : OkStatus();
  }
  Status CheckMoments(const std::string& name, bool needs_mean = false) const {
    ASSIGN_OR_RETURN(const bool present, moments_.HasMoments(name, hidden()));
    if (present && needs_mean) return moments_.CheckMean(name, hidden());
    if (present) return OkStatus();
    return InvalidArgument("the moments have nothing of '" + name + "': they are those of another model");
  }

  Result<Bytes> ReadTensor(const std::string& name) const {
    const Tensor& tensor = tensors_.at(name);
    Bytes out(tensor.header->bytes);
    ASSIGN_OR_RETURN(const size_t read, catalog_.reader().Read(tensor.part->stored->file, tensor.header->begin, out));
    return read == out.size() ? Result<Bytes>(std::move(out)) : Corruption("the stored file ends early");
  }
  Result<std::vector<float>> ReadFloats(const std::string& name) const {
    ASSIGN_OR_RETURN(const Bytes bytes, ReadTensor(name));
    const DType dtype = DTypeFromName(tensors_.at(name).header->dtype);
    std::vector<float> out(bytes.size() / DTypeBytes(dtype));
    ConvertElements(dtype, DType::kF32, bytes, std::as_writable_bytes(std::span(out)));
    for (const float x : out) {
      if (!std::isfinite(x)) return Unsupported("'" + name + "' has values that are not finite; it cannot be sliced");
    }
    return out;
  }

  // The second moments of a norm's output without its weights and its bias.
  Result<Matrix> MomentsOf(const std::string& norm, const std::string& norm_bias, const std::string& reader) const {
    ASSIGN_OR_RETURN(const std::vector<float> weights, ReadFloats(norm));
    std::vector<float> h, bias(hidden(), 0), mean(hidden(), 0);
    RETURN_IF_ERROR(moments_.Load(reader, &h));
    if (!norm_bias.empty()) {
      ASSIGN_OR_RETURN(bias, ReadFloats(norm_bias));
      RETURN_IF_ERROR(moments_.LoadMean(reader, hidden(), &mean));
    }
    // E[(y - b)(y - b)^T] of outputs y with mean m: H - b m^T - m b^T + b b^T.
    const auto centred = [&](uint64_t i, uint64_t j) {
      const double b[2] = {static_cast<double>(bias[i]), static_cast<double>(bias[j])};
      const double m[2] = {static_cast<double>(mean[i]), static_cast<double>(mean[j])};
      return (static_cast<double>(h[i * hidden() + j]) + static_cast<double>(h[j * hidden() + i])) / 2 - b[0] * m[1] -
             m[0] * b[1] + b[0] * b[1];
    };
    double largest = 0;
    for (const float w : weights) largest = std::max(largest, std::abs(static_cast<double>(w)));
    std::vector<double> inverse(hidden());
    for (uint64_t i = 0; i < hidden(); ++i) {
      const double w = static_cast<double>(weights[i]), b = static_cast<double>(bias[i]);
      // What is left when the bias is taken out is as exact as the moments, in float32, are for all.
      const double seen = norm_bias.empty() ? 0 : std::max(static_cast<double>(h[i * hidden() + i]), b * b);
      inverse[i] = std::abs(w) > kLeastNormShare * largest && w * w > kLeastShareOfBias * seen ? 1 / w : 0;
    }
    Matrix c(hidden() * hidden());
    for (uint64_t i = 0; i < hidden(); ++i) {
      for (uint64_t j = 0; j < hidden(); ++j) c[i * hidden() + j] = inverse[i] * inverse[j] * centred(i, j);
    }
    for (const double x : c) {
      if (!std::isfinite(x))
        return InvalidArgument("the moments of '" + reader + "' are not finite without the weights of '" + norm + "'");
    }
    return c;
  }
  Result<Matrix> MomentsOf(const SliceStep& step) const {
    return MomentsOf(step.norm, step.norm_bias, step.readers.front());
  }

  static void Add(const Matrix& more, double times, Matrix* sum) {
    if (sum->empty()) sum->assign(more.size(), 0);
    for (size_t e = 0; e < more.size(); ++e) (*sum)[e] += times * more[e];
  }

  // What slicing holds at once: matrices of hidden x hidden, and a tensor as it was and as it will be; for each norm
  // whose axes are found at the same time four more. Errors: ResourceExhausted.
  Status TakeMemory() {
    uint64_t largest = 0;
    for (const auto& [name, tensor] : tensors_) largest = std::max(largest, tensor.header->bytes);
    if (hidden() > kMaxHidden) return Unsupported("a hidden size of " + std::to_string(hidden()) + " is too large");
    const uint64_t matrix = hidden() * hidden() * sizeof(double);
    const uint64_t fixed = 8 * matrix + 3 * largest +
                           (catalog_.pool().threads() + 1) * kPanelElems * hidden() * sizeof(float),
                   each = 4 * matrix;
    const uint64_t budget = catalog_.push_memory().budget_bytes();
    if (fixed + each > budget)
      return ResourceExhausted("slicing '" + source_.model().name + "' takes " +
                               std::to_string((fixed + each) / 1'000'000) + " MB of memory, pushes have " +
                               std::to_string(budget / 1'000'000) + "; give a larger --memory-budget");
    ASSIGN_OR_RETURN(memory_, catalog_.push_memory().Take(job_, fixed + each));
    batch_ = std::clamp<uint64_t>((memory_.bytes() - fixed) / each, 1, catalog_.pool().threads() + 1);
    return OkStatus();
  }

  // The sum of the moments of steps [begin, end), from that of another range.
  Status MoveWindow(size_t begin, size_t end) {
    for (; window_begin_ < begin; ++window_begin_) {
      ASSIGN_OR_RETURN(const Matrix leaving, MomentsOf(layout_.steps[window_begin_]));
      Add(leaving, -1, &window_);
    }
    for (; window_end_ < end; ++window_end_) {
      ASSIGN_OR_RETURN(const Matrix coming, MomentsOf(layout_.steps[window_end_]));
      Add(coming, 1, &window_);
    }
    return OkStatus();
  }

  // The axes of the stream at steps [first, …), as many as fit a batch: finding them is what takes long.
  Status FindAxes(size_t first) {
    const size_t steps = layout_.steps.size();
    const auto reach = static_cast<size_t>(static_cast<double>(steps) * kWindowShare);
    std::vector<Matrix> sums;
    const size_t batch = std::min<size_t>(batch_, steps - first);
    for (size_t i = 0; i < batch; ++i) {
      const size_t at = first + i;
      RETURN_IF_ERROR(MoveWindow(at - std::min(at, reach), std::min(steps, at + reach + 1)));
      sums.push_back(window_);
    }
    axes_.resize(first + batch);
    return for_all()(batch, [&](size_t i) -> Status {
      ASSIGN_OR_RETURN(axes_[first + i], PrincipalAxes(sums[i], hidden(), size_));
      if (layout_.has_layer_norms) TakeMeans(&axes_[first + i]);
      return OkStatus();
    });
  }

  // A LayerNorm takes the mean over the stream away: axes without it give a stream that has none, and the norm becomes
  // an RMSNorm.
  void TakeMeans(Matrix* axes) const {
    for (uint64_t j = 0; j < size_; ++j) {
      double sum = 0;
      for (uint64_t i = 0; i < hidden(); ++i) sum += (*axes)[i * size_ + j];
      for (uint64_t i = 0; i < hidden(); ++i) (*axes)[i * size_ + j] -= sum / static_cast<double>(hidden());
    }
  }

  Status MakeTensors() {
    uint64_t bytes = 0;
    for (const auto& [name, tensor] : tensors_) bytes += tensor.header->bytes;
    // A tied head gets a tensor of its own, made of the embedding once more.
    if (one_basis() && layout_.head == layout_.embedding) bytes += tensors_.at(layout_.embedding).header->bytes;
    job_.Begin("slicing", bytes);
    const size_t steps = layout_.steps.size();
    if (one_basis()) {
      RETURN_IF_ERROR(MoveWindow(0, steps));
      ASSIGN_OR_RETURN(const Matrix last, MomentsOf(layout_.final_norm, "", layout_.head));
      Add(last, 1, &window_);
      axes_.resize(1);
      ASSIGN_OR_RETURN(axes_[0], PrincipalAxes(window_, hidden(), size_));
    } else {
      RETURN_IF_ERROR(FindAxes(0));
    }
    ASSIGN_OR_RETURN(std::shared_ptr<const Axes> axes, MakeAxes(axes_[0], hidden(), size_));
    RETURN_IF_ERROR(MakeInputs(layout_.embedding, layout_.embedding, "", axes, true));
    for (const std::string& added : layout_.added) RETURN_IF_ERROR(MakeInputs(added, added, "", axes, true));
    for (size_t i = 0; i < steps; ++i) {
      const SliceStep& step = layout_.steps[i];
      RETURN_IF_ERROR(job_.Check());
      const Matrix& here = one_basis() ? axes_[0] : axes_[i];
      ASSIGN_OR_RETURN(const Matrix moments, MomentsOf(step));
      ASSIGN_OR_RETURN(Matrix reader, LeastSquaresReader(moments, here, hidden(), size_));
      // What a LayerNorm gives has no mean; nothing may be inferred of one where its weights hide channels.
      if (layout_.has_layer_norms) TakeMeans(&reader);
      std::shared_ptr<const Axes> next = axes;
      if (!one_basis() && i + 1 < steps) {
        if (i + 1 == axes_.size()) RETURN_IF_ERROR(FindAxes(i + 1));
        ASSIGN_OR_RETURN(next, MakeAxes(axes_[i + 1], hidden(), size_));
      }
      const bool whole = !one_basis() && i + 1 == steps;  // behind it the stream is as it was
      if (one_basis()) Stretch(&reader);
      ASSIGN_OR_RETURN(const std::shared_ptr<const Axes> right, MakeAxes(reader, hidden(), size_));
      RETURN_IF_ERROR(MakeReaders(step, right));
      if (!whole) RETURN_IF_ERROR(MakeWriters(step, *next));
      if (one_basis()) {
        RETURN_IF_ERROR(MakeOnes(step.norm));
      } else {
        RETURN_IF_ERROR(MakeReadersBiases(step));
        dropped_.insert(step.norm);
        if (!step.norm_bias.empty()) dropped_.insert(step.norm_bias);
        RETURN_IF_ERROR(MakeShortcut(step, whole ? *IdentityAxes(hidden()) : *next, *right));
        axes_[i] = Matrix();
      }
      axes = std::move(next);
    }
    if (!one_basis()) return OkStatus();
    ASSIGN_OR_RETURN(const Matrix moments, MomentsOf(layout_.final_norm, "", layout_.head));
    ASSIGN_OR_RETURN(Matrix reader, LeastSquaresReader(moments, axes_[0], hidden(), size_));
    Stretch(&reader);
    ASSIGN_OR_RETURN(const std::shared_ptr<const Axes> right, MakeAxes(reader, hidden(), size_));
    RETURN_IF_ERROR(MakeInputs(layout_.head, kNewHead, layout_.final_norm, right, true));
    return MakeOnes(layout_.final_norm);
  }

  // A stock norm divides by the root of the mean over `size_` squares, not over all.
  void Stretch(Matrix* reader) const {
    const double by = std::sqrt(static_cast<double>(hidden()) / static_cast<double>(size_));
    for (double& x : *reader) x *= by;
  }

  Status MakeReaders(const SliceStep& step, const std::shared_ptr<const Axes>& right) {
    uint64_t elems = 0;
    for (const std::string& name : step.readers) elems += tensors_.at(name).header->shape[0] * size_;
    const bool pays = static_cast<double>(elems) * kAxesShare > static_cast<double>(hidden() * size_);
    for (const std::string& name : step.readers) RETURN_IF_ERROR(MakeInputs(name, name, step.norm, right, pays));
    return OkStatus();
  }

  // What a norm's bias b gives behind a reader W goes into its bias: W b, in float64 sums of one order.
  Status MakeReadersBiases(const SliceStep& step) {
    if (step.norm_bias.empty()) return OkStatus();
    ASSIGN_OR_RETURN(const std::vector<float> norm_bias, ReadFloats(step.norm_bias));
    for (size_t reader = 0; reader < step.readers_biases.size(); ++reader) {
      const std::string& name = step.readers_biases[reader];
      ASSIGN_OR_RETURN(const std::vector<float> weight, ReadFloats(step.readers[reader]));
      ASSIGN_OR_RETURN(std::vector<float> bias, ReadFloats(name));
      for (size_t row = 0; row < bias.size(); ++row) {
        double sum = static_cast<double>(bias[row]);
        for (uint64_t i = 0; i < hidden(); ++i)
          sum += static_cast<double>(weight[row * hidden() + i]) * static_cast<double>(norm_bias[i]);
        bias[row] = static_cast<float>(sum);
      }
      const HeaderTensor& header = *tensors_.at(name).header;
      Bytes out(header.bytes);
      const DType dtype = DTypeFromName(header.dtype);
      ConvertElements(DType::kF32, dtype, std::as_bytes(std::span(bias)), out);
      RETURN_IF_ERROR(CheckFinite(dtype, out).WithContext("'" + name + "'"));
      RETURN_IF_ERROR(Keep(name, {header.dtype, header.shape}, out, header.bytes));
    }
    return OkStatus();
  }

  // `pays`: whether axes cost less than what is computed with them.
  Status MakeInputs(const std::string& from, const std::string& to, const std::string& norm,
                    const std::shared_ptr<const Axes>& right, bool pays) {
    ASSIGN_OR_RETURN(const Bytes weight, ReadTensor(from));
    std::vector<float> norms;
    if (!norm.empty()) {
      ASSIGN_OR_RETURN(norms, ReadFloats(norm));
    }
    const HeaderTensor& header = *tensors_.at(from).header;
    const DType dtype = DTypeFromName(header.dtype);
    Bytes out(header.shape[0] * size_ * DTypeBytes(dtype));
    RETURN_IF_ERROR(ProjectInputs(dtype, weight, norms, *right, for_all(), out).WithContext("'" + from + "'"));
    Made made{header.dtype, {header.shape[0], size_}};
    if (pays) {
      ASSIGN_OR_RETURN(made.projection, ProjectionOf(from, norm, *right));
    }
    if (made.projection) {
      ASSIGN_OR_RETURN(made.projection->axes, Spooled(right));
    }
    return Keep(to, std::move(made), out, header.bytes);
  }

  // Axes in the spool, where they wait for the push: all norms' together are large.
  Result<std::shared_ptr<const SourceContent::Axes>> Spooled(const std::shared_ptr<const Axes>& axes) {
    if (spooled_of_ != axes) {
      ASSIGN_OR_RETURN(const uint64_t offset, spool_->Append(axes->patterns));
      const auto load = [spool = spool_, offset, bytes = axes->patterns.size()]() -> Result<Bytes> {
        Bytes patterns(bytes);
        RETURN_IF_ERROR(spool->Read(offset, patterns));
        return patterns;
      };
      spooled_ = std::make_shared<const SourceContent::Axes>(SourceContent::Axes{axes->rows, axes->columns, load});
      spooled_of_ = axes;
    }
    return spooled_;
  }

  // How a store computes it from its own tensors; nothing where it cannot.
  Result<std::optional<SourceContent::Projection>> ProjectionOf(const std::string& from, const std::string& norm,
                                                                const Axes& right) const {
    std::optional<SourceContent::Projection> none;
    if (right.rows * right.columns > kMaxAxesElems) return none;
    SourceContent::Projection projection;
    for (const std::string& name : {from, norm}) {
      if (name.empty()) continue;
      const Tensor& tensor = tensors_.at(name);
      if (tensor.header->dtype != tensors_.at(from).header->dtype) return none;
      const std::optional<SourceContent::Place> place =
          PlaceIn(*tensor.part->stored, tensor.header->begin, tensor.header->bytes);
      if (!place || place->is_part) return none;
      ASSIGN_OR_RETURN(const TensorRef stored, catalog_.reader().OpenTensorById(place->tensor));
      // Room for the projected one, a delta against it and one more.
      if (stored->record.depth + 3 > kMaxDepth) return none;
      if (name == norm)
        projection.norm = place->tensor;
      else
        projection.weight = place->tensor;
    }
    return std::optional(std::move(projection));
  }

  Status MakeWriters(const SliceStep& step, const Axes& left) {
    for (const std::string& name : step.writers) {
      ASSIGN_OR_RETURN(const Bytes weight, ReadTensor(name));
      const HeaderTensor& header = *tensors_.at(name).header;
      const DType dtype = DTypeFromName(header.dtype);
      std::vector<uint64_t> shape = header.shape;
      const uint64_t columns = shape.size() == 1 ? 1 : shape[1];
      shape[0] = size_;
      Bytes out(size_ * columns * DTypeBytes(dtype));
      RETURN_IF_ERROR(ProjectOutputs(dtype, weight, columns, left, for_all(), out).WithContext("'" + name + "'"));
      RETURN_IF_ERROR(Keep(name, {header.dtype, std::move(shape)}, out, header.bytes));
    }
    return OkStatus();
  }

  Status MakeShortcut(const SliceStep& step, const Axes& left, const Axes& right) {
    const HeaderTensor& like = *tensors_.at(step.norm).header;
    const DType dtype = DTypeFromName(like.dtype);
    Bytes out(left.columns * right.columns * DTypeBytes(dtype));
    RETURN_IF_ERROR(modelstore::Shortcut(dtype, left, right, for_all(), out));
    added_[step.norm] = step.shortcut;
    return Keep(step.shortcut, {like.dtype, {left.columns, right.columns}}, out, 0);
  }

  Status MakeOnes(const std::string& norm) {
    const HeaderTensor& header = *tensors_.at(norm).header;
    const DType dtype = DTypeFromName(header.dtype);
    const std::vector<float> ones(size_, 1.0f);
    Bytes out(size_ * DTypeBytes(dtype));
    ConvertElements(DType::kF32, dtype, std::as_bytes(std::span(ones)), out);
    return Keep(norm, {header.dtype, {size_}}, out, header.bytes);
  }

  Status Keep(const std::string& name, Made made, ByteSpan bytes, uint64_t done_bytes) {
    made.bytes = bytes.size();
    ASSIGN_OR_RETURN(made.offset, spool_->Append(bytes));
    made_[name] = std::move(made);
    job_.Advance(done_bytes);
    return OkStatus();
  }

  // Files as the source has them, with what was made in the place of what it was made of.
  Result<std::vector<SourceFile>> MakeFiles() {
    // An untied head, beside the embedding: where the last basis is the source's own, the embedding as it was.
    if (layout_.is_tied) added_[layout_.embedding] = kNewHead;
    const FileChanges changes = {
        .weights = [this](const auto& part, auto* index, auto* content) { return MakeWeights(part, index, content); },
        .config = [this](ByteSpan text) { return ConfigSliced(text, layout_, size_, one_basis()); }};
    ASSIGN_OR_RETURN(std::vector<SourceFile> files, MakeVariantFiles(catalog_, source_, options_.name, changes, job_));
    if (!one_basis()) {
      auto content = std::make_shared<DerivedContent>(catalog_.reader());
      const ByteSpan text = AsBytes(ModelingSource());
      content->Append(Bytes(text.begin(), text.end()));
      SourceFile file = SourceCheckpoint::FileLike(*source_.Find(kConfigFile), std::move(content), options_.name);
      file.path = source_.PathOf(kModelingFile);
      file.shown_as = options_.name + "/" + file.path;
      files.push_back(std::move(file));
    }
    return files;
  }

  Status MakeWeights(const Part& part, std::map<std::string, IndexEntry>* index, DerivedContent* content) const {
    SafetensorsHeader header{part.header.metadata, {}};
    std::vector<std::function<void()>> appends;
    const auto add = [&](const std::string& name) {
      HeaderTensor& tensor = header.tensors.emplace_back();
      tensor.name = name;
      if (const auto made = made_.find(name); made != made_.end()) {
        tensor.dtype = made->second.dtype;
        tensor.shape = made->second.shape;
        tensor.bytes = made->second.bytes;
        appends.push_back(
            [=, this] { content->Append(spool_, made->second.offset, made->second.bytes, made->second.projection); });
      } else {
        // As it is; an untied head is the embedding as it was.
        const Tensor& from = tensors_.at(tensors_.contains(name) ? name : layout_.embedding);
        tensor.dtype = from.header->dtype;
        tensor.shape = from.header->shape;
        tensor.bytes = from.header->bytes;
        appends.push_back([=] { content->Append(from.part->stored, from.header->begin, from.header->bytes); });
      }
      (*index)[name] = {source_.NameInFolder(part), tensor.bytes, tensor.elems()};
    };
    for (const HeaderTensor& tensor : part.header.tensors) {
      if (!dropped_.contains(tensor.name)) add(tensor.name);
      if (const auto more = added_.find(tensor.name); more != added_.end()) add(more->second);
    }
    if (header.tensors.empty()) return OkStatus();
    ASSIGN_OR_RETURN(Bytes bytes, WriteSafetensorsHeader(header));
    content->Append(std::move(bytes));
    for (const auto& append : appends) append();
    return OkStatus();
  }

  static constexpr const char* kNewHead = "lm_head.weight";

  Catalog& catalog_;
  const SourceCheckpoint& source_;
  const DeriveOptions& options_;
  const MomentsFile& moments_;
  JobControl& job_;
  SliceLayout layout_;
  uint64_t size_ = 0;
  MemoryShares::Share memory_;
  size_t batch_ = 1;
  std::map<std::string, Tensor> tensors_;  // of the source
  std::shared_ptr<Spool> spool_;
  Matrix window_;  // the sum of the moments of steps [window_begin_, window_end_)
  size_t window_begin_ = 0, window_end_ = 0;
  std::vector<Matrix> axes_;  // hidden x size_, of each step as far as they are known; those behind are given up
  std::map<std::string, Made> made_;
  std::shared_ptr<const Axes> spooled_of_;
  std::shared_ptr<const SourceContent::Axes> spooled_;
  std::set<std::string> dropped_;             // of the source
  std::map<std::string, std::string> added_;  // new tensors, by the one that they follow
};

}  // namespace

Result<uint64_t> SlicedSize(uint64_t hidden, uint64_t heads, double slice, DeriveOptions::Basis basis) {
  if (!(slice >= 0 && slice < 1)) return InvalidArgument("a slice is a share from 0 to below 1");
  constexpr uint64_t kMultiple = 8;
  const uint64_t multiple = basis == DeriveOptions::Basis::kGlobal ? heads : kMultiple;
  if (slice == 0) return hidden;
  const auto size = static_cast<uint64_t>(static_cast<double>(hidden) * (1 - slice) + 1e-6) / multiple * multiple;
  if (size == 0) return InvalidArgument("of a hidden size of " + std::to_string(hidden) + " nothing would be left");
  return size;
}

Result<Variant> Slice(Catalog& catalog, const SourceCheckpoint& source, const DeriveOptions& options,
                      const MomentsFile* moments, JobControl& job) {
  if (moments == nullptr) return InvalidArgument("slicing needs the model's moments: give --moments");
  return Slicer(catalog, source, options, *moments, job).Run();
}

}  // namespace modelstore
