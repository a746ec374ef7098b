// The device of a CUDA operator: its stream and its error flag.
#pragma once

#include <cuda_runtime.h>  // tests/cuda has an emulation of this header

#include "../../../kernels/cuda/launch.h"
#include "../device.h"

#ifdef USE_CUDA
#include <torch/csrc/stable/accelerator.h>
#endif

namespace spurmix {

#ifdef USE_CUDA
using DeviceGuard = torch::stable::accelerator::DeviceGuard;
#else
struct DeviceGuard {  // there is one emulated device
  explicit DeviceGuard(int) {}
};
#endif

inline void cuda_check(int code, const char* op) {
  SPURMIX_CHECK(code == cudaSuccess, op, ": CUDA error ", code, ": ",
                cudaGetErrorString(static_cast<cudaError_t>(code)));
}

// Makes the device of a tensor current, and holds its stream and its error flag.
class OnDevice {
 public:
  OnDevice(const Tensor& tensor, const char* op);
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

  void* stream() const { return stream_; }
  // The flag in the device's memory, bits of kernels/cuda/launch.h.
  uint32_t* flag() const { return flag_; }
  // Raises an error if a launch returned one.
  void check_launch(int code) const { cuda_check(code, op_); }

 private:
  const char* op_;
  int device_;
  DeviceGuard guard_;
  void* stream_ = nullptr;
  uint32_t* flag_ = nullptr;
};

cuda::Sequence sequence_of(const SequenceArguments& args);
cuda::DrawOut draw_outputs(const DrawOutputs& out);

}  // namespace spurmix
