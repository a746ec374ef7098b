// What the CUDA operators share: the device, its stream, its flag.
#pragma once

#include <cuda_runtime.h>  // in tests, CUDA's thread model on a host

#ifndef SPURMIX_HERE
#define SPURMIX_HERE(tensor) (tensor).is_cuda()
#define SPURMIX_WHERE "on a GPU"
#define SPURMIX_LIBRARY spurmix
#define SPURMIX_KEY CUDA
#endif

#include "../kernels/cuda/launch.h"
#include "ops_common.h"

#ifdef USE_CUDA
#include <torch/csrc/stable/accelerator.h>
#endif

namespace spurmix {

#ifdef USE_CUDA
using DeviceGuard = torch::stable::accelerator::DeviceGuard;
#else
struct DeviceGuard {  // of the one emulated device
  explicit DeviceGuard(int) {}
};
#endif

inline void cuda_check(int code, const char* op) {
  SPURMIX_CHECK(code == cudaSuccess, op, ": CUDA error ", code, ": ",
                cudaGetErrorString(static_cast<cudaError_t>(code)));
}

// The flag of a device, in its memory: bits of launch.h. Allocated once, zero.
uint32_t* device_flag(int device);

// Makes the device of a tensor current, and knows its stream and flag.
class OnDevice {
 public:
  OnDevice(const Tensor& tensor, const char* op);
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

  void* stream() const { return stream_; }
  uint32_t* flag() const { return flag_; }
  void launched(int code) const { cuda_check(code, op_); }

 private:
  const char* op_;
  int device_;
  DeviceGuard guard_;
  void* stream_ = nullptr;
  uint32_t* flag_ = nullptr;
};

}  // namespace spurmix
