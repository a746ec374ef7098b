// The Python module `_cuda`, and the devices of its operators. Importing it registers the CUDA operators.
#define Py_LIMITED_API 0x030b0000
#include <Python.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <mutex>

#include "device.h"

namespace spurmix {
namespace {

constexpr int kDevices = 64;
std::mutex mutex;
std::array<std::atomic<uint32_t*>, kDevices> flags = {};

// Allocates the flag of a device and sets it to 0, if it does not exist.
cudaError_t make_flag(int device) {
  const std::lock_guard<std::mutex> lock(mutex);
  if (flags[device] != nullptr) return cudaSuccess;
  void* memory = nullptr;
  cudaError_t code = cudaMalloc(&memory, sizeof(uint32_t));
  if (code == cudaSuccess) code = cudaMemset(memory, 0, sizeof(uint32_t));
  if (code == cudaSuccess) code = cudaDeviceSynchronize();  // other streams do not wait for the memset
  if (code == cudaSuccess) flags[device] = static_cast<uint32_t*>(memory);
  return code;
}

}  // namespace

OnDevice::OnDevice(const Tensor& tensor, const char* op)
    : op_(op), device_(std::max<int>(0, tensor.get_device_index())), guard_(device_) {
  SPURMIX_CHECK(device_ < kDevices, op, ": at most ", kDevices, " devices are supported");
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device_, &stream_));
  if (flags[device_] == nullptr) {  // the first call on this device
    int major = 0, minor = 0;
    cuda_check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device_), op);
    cuda_check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device_), op);
    SPURMIX_CHECK(major >= 8, op, ": the GPU has compute capability ", major, ".", minor,
                  ", but the CUDA kernels need 8.0 or higher; use backend=\"triton\" or \"reference\"");
    cudaStreamCaptureStatus captured = cudaStreamCaptureStatusNone;
    cuda_check(cudaStreamIsCapturing(static_cast<cudaStream_t>(stream_), &captured), op);
    SPURMIX_CHECK(captured == cudaStreamCaptureStatusNone, op, ": the first call on device ", device_,
                  " allocates memory, which a CUDA graph cannot capture; call an operator once before the capture");
    cuda_check(make_flag(device_), op);
  }
  flag_ = flags[device_];
}

}  // namespace spurmix

// Waits for a device, returns the bits of its error flag and clears them. Returns 0 if no operator ran there.
static PyObject* take_flag(PyObject*, PyObject* argument) {
  const long device = PyLong_AsLong(argument);
  if (device == -1 && PyErr_Occurred()) return nullptr;
  if (device < 0 || device >= spurmix::kDevices) {
    PyErr_SetString(PyExc_ValueError, "device must be in [0, 64)");
    return nullptr;
  }
  uint32_t* flag = spurmix::flags[device];
  uint32_t bits = 0;
  if (flag == nullptr) return PyLong_FromLong(0);
  cudaError_t code = cudaSuccess;
  Py_BEGIN_ALLOW_THREADS;
  int before = 0;
  code = cudaGetDevice(&before);
  if (code == cudaSuccess) code = cudaSetDevice(static_cast<int>(device));
  if (code == cudaSuccess) code = cudaDeviceSynchronize();
  if (code == cudaSuccess) code = cudaMemcpy(&bits, flag, sizeof bits, cudaMemcpyDeviceToHost);
  if (code == cudaSuccess && bits != 0) code = cudaMemset(flag, 0, sizeof bits);
  if (code == cudaSuccess && bits != 0) code = cudaDeviceSynchronize();
  if (before != device) cudaSetDevice(before);
  Py_END_ALLOW_THREADS;
  if (code != cudaSuccess) {
    PyErr_SetString(PyExc_RuntimeError, cudaGetErrorString(code));
    return nullptr;
  }
  return PyLong_FromUnsignedLong(bits);
}

static PyMethodDef methods[] = {
    {"take_flag", take_flag, METH_O, "Waits for a device, returns the bits of its error flag and clears them."},
    {nullptr, nullptr, 0, nullptr}};

#ifdef SPURMIX_EMULATED
#define SPURMIX_MODULE "_emulated"
#define SPURMIX_MODULE_INIT PyInit__emulated
#else
#define SPURMIX_MODULE "_cuda"
#define SPURMIX_MODULE_INIT PyInit__cuda
#endif

static PyModuleDef module = {
    PyModuleDef_HEAD_INIT, SPURMIX_MODULE, "Compiled CUDA operators.", -1, methods, nullptr, nullptr, nullptr, nullptr};

PyMODINIT_FUNC SPURMIX_MODULE_INIT() { return PyModule_Create(&module); }
