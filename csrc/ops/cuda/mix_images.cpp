#include "device.h"

namespace spurmix {
namespace {

// Images as the device reads them: in its own memory, or in pinned memory of the host.
const uint8_t* reachable(const Tensor& images, const char* op) {
  if (on_device(images) || images.numel() == 0) return data<uint8_t>(images);
  cudaPointerAttributes found = {};
  const bool pinned = cudaPointerGetAttributes(&found, images.const_data_ptr()) == cudaSuccess &&
                      found.type == cudaMemoryTypeHost && found.devicePointer != nullptr;
  if (!pinned) cudaGetLastError();  // clears the error, so that later calls do not report it
  SPURMIX_CHECK(pinned, op, ": images must be ", kOnDevice, " or in pinned memory of the host");
  return static_cast<const uint8_t*>(found.devicePointer);
}

// The kernel's arguments that do not depend on the pairs. `out` may be of any shape if there are no samples.
cuda::MixImages image_arguments(const ImageArguments& args, const Tensor& out, int64_t batch, const char* op) {
  constexpr int64_t kLimit = int64_t{1} << 30;
  const Tensor& images = args.images;
  SPURMIX_CHECK(images.size(1) * images.size(2) < kLimit / images.size(3), op,
                ": each image must be smaller than 2^30 bytes");
  SPURMIX_CHECK(batch == 0 || (out.size(2) < kLimit / out.size(3)), op,
                ": each image of out must have fewer than 2^30 pixels");
  cuda::MixImages m = {};
  m.images = reachable(images, op);
  m.image_stride = images.stride(0);
  m.total = images.size(0);
  m.height = static_cast<int32_t>(images.size(1));
  m.width = static_cast<int32_t>(images.size(2));
  m.channels = static_cast<int32_t>(images.size(3));
  m.mean = data<float>(args.mean);
  m.std = data<float>(args.std);
  m.batch = batch;
  if (batch == 0) return m;
  m.out_height = static_cast<int32_t>(out.size(2));
  m.out_width = static_cast<int32_t>(out.size(3));
  m.format = format_of(out, op, "out");
  m.channels_last = is_channels_last(out, op);
  m.out = out.mutable_data_ptr();
  return m;
}

cuda::Labels labels_of(const Tensor& labels, const BatchOutputs& out, const char* op) {
  cuda::Labels l = {labels.const_data_ptr(), 0, true, mutable_data<int64_t>(out.label),
                    mutable_data<int64_t>(out.partner_label)};
  switch (labels.scalar_type()) {
    case ScalarType::Byte: l.size = 1, l.is_signed = false; break;
    case ScalarType::Char: l.size = 1; break;
    case ScalarType::Short: l.size = 2; break;
    case ScalarType::Int: l.size = 4; break;
    case ScalarType::Long: l.size = 8; break;
    default: SPURMIX_CHECK(false, op, ": labels must be uint8, int8, int16, int32 or int64");
  }
  return l;
}

}  // namespace

void device::mix_images(const ImageArguments& images, const PairArguments& pairs, const CropArguments& crops,
                        const Tensor& out, const char* op) {
  const OnDevice device(pairs.index, op);
  cuda::MixImages m = image_arguments(images, out, pairs.batch(), op);
  m.index = data<int64_t>(pairs.index);
  m.partner = data<int64_t>(pairs.partner);
  m.lam = data<float>(pairs.lam);
  crops.set(&m);
  m.error_flag = device.flag();
  device.check_launch(cuda::mix_images(m, device.stream()));
}

void device::mix_image_batch(const ImageArguments& images, const Tensor& labels, const SequenceArguments& sequence,
                             const Crop& crop, const BatchOutputs& out, const char* op) {
  const OnDevice device(sequence.tables, op);
  cuda::MixImages m = image_arguments(images, out.input, out.drawn.count(), op);
  m.sequence = sequence_of(sequence);
  m.crop = crop;
  m.labels = labels_of(labels, out, op);
  m.drawn = draw_outputs(out.drawn);
  m.error_flag = device.flag();
  device.check_launch(cuda::mix_image_batch(m, device.stream()));
}

}  // namespace spurmix
