// Test of races.cpp: kernels with one error each, and a valid one. Prints the error that is found in each kernel.
#include <cstdio>

#include "emulation.h"

namespace {

constexpr int kThreads = 64;

__global__ void valid(int* memory) {
  __shared__ int shared[kThreads];
  const int i = static_cast<int>(threadIdx.x), lane = i % 32;
  shared[i] = i;
  __syncwarp();
  const int reversed = shared[i - lane + 31 - lane];  // of the same warp
  __syncthreads();
  memory[blockIdx.x * kThreads + i] = reversed + shared[kThreads - 1 - i] + __ldg(memory + 4 * kThreads);
  atomicAdd(memory + 4 * kThreads + 1, 1);
}

__global__ void no_barrier(int* memory) {
  __shared__ int shared[kThreads];
  shared[threadIdx.x] = 1;
  memory[blockIdx.x * kThreads + threadIdx.x] = shared[threadIdx.x / 2];
}

__global__ void warp_barrier_instead_of_block_barrier(int* memory) {
  __shared__ int shared[kThreads];
  shared[threadIdx.x] = 1;
  __syncwarp();
  memory[blockIdx.x * kThreads + threadIdx.x] = shared[threadIdx.x / 2];
}

// A shuffle exchanges registers, but does not order memory accesses.
__global__ void shuffle_instead_of_barrier(int* memory) {
  __shared__ int shared[kThreads];
  shared[threadIdx.x] = 1;
  __shfl_xor_sync(0xffffffffu, 0, 1);
  memory[blockIdx.x * kThreads + threadIdx.x] = shared[threadIdx.x ^ 1];
}

__global__ void overwritten_while_read(int* memory) {
  __shared__ int shared[kThreads];
  for (int round = 0; round < 2; ++round) {
    shared[threadIdx.x] = round;
    __syncthreads();
    memory[blockIdx.x * kThreads + threadIdx.x] = shared[kThreads - 1 - threadIdx.x];
  }
}

__global__ void uninitialized(int* memory) {
  __shared__ int shared[kThreads];
  if (threadIdx.x > 0) shared[threadIdx.x] = 1;
  __syncthreads();
  memory[blockIdx.x * kThreads + threadIdx.x] = shared[threadIdx.x];
}

__global__ void blocks_write_one_address(int* memory) { memory[threadIdx.x] = 1; }

__global__ void counts_without_atomics(int* memory) { memory[0] += 1; }

__global__ void reads_a_counter(int* memory) {
  atomicAdd(memory, 1);
  memory[kThreads * (blockIdx.x + 1) + threadIdx.x] = memory[0];
}

__global__ void ldg_of_written_memory(int* memory) {
  const int i = static_cast<int>(blockIdx.x * kThreads + threadIdx.x);
  memory[i] = i;
  memory[i] = __ldg(memory + i) + 1;
}

__global__ void dynamic_without_barrier(int* memory) {
  int* shared = reinterpret_cast<int*>(spurmix::cuda::dynamic_shared());
  shared[threadIdx.x] = 1;
  memory[blockIdx.x * kThreads + threadIdx.x] = shared[threadIdx.x ^ 32];
}

__global__ void divergent_barrier(int* memory) {
  if (threadIdx.x < 32) __syncthreads();
  memory[blockIdx.x * kThreads + threadIdx.x] = 1;
}

void show(const char* name, void (*kernel)(int*)) {
  int memory[5 * kThreads] = {};
  const int code = spurmix::cuda::launch(kernel, 4, kThreads, kThreads * sizeof(int), nullptr, &memory[0]);
  std::printf("%s: %s\n", name, code == cudaSuccess ? "valid" : cudaGetErrorString(static_cast<cudaError_t>(code)));
}

}  // namespace

#define SHOW(kernel) show(#kernel, kernel)
int main() {
  SHOW(valid);
  SHOW(no_barrier);
  SHOW(warp_barrier_instead_of_block_barrier);
  SHOW(shuffle_instead_of_barrier);
  SHOW(overwritten_while_read);
  SHOW(uninitialized);
  SHOW(blocks_write_one_address);
  SHOW(counts_without_atomics);
  SHOW(reads_a_counter);
  SHOW(ldg_of_written_memory);
  SHOW(dynamic_without_barrier);
  SHOW(divergent_barrier);
}
