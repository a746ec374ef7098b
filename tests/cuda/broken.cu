// Kernels with one mistake each, and some without, for the test of races.cpp: prints what it finds in every one.
#include <cstdio>

#include "emulation.h"

namespace {

constexpr int kThreads = 64;

__global__ void sound(int* memory) {
  __shared__ int shared[kThreads];
  const int i = static_cast<int>(threadIdx.x), lane = i % 32;
  shared[i] = i;
  __syncwarp();
  const int near = shared[i - lane + 31 - lane];  // of the same warp
  __syncthreads();
  memory[blockIdx.x * kThreads + i] = near + shared[kThreads - 1 - i] + __ldg(memory + 4 * kThreads);
  atomicAdd(memory + 4 * kThreads + 1, 1);
}

__global__ void no_barrier(int* memory) {
  __shared__ int shared[kThreads];
  shared[threadIdx.x] = 1;
  memory[blockIdx.x * kThreads + threadIdx.x] = shared[threadIdx.x / 2];
}

__global__ void warp_barrier_for_a_block(int* memory) {
  __shared__ int shared[kThreads];
  shared[threadIdx.x] = 1;
  __syncwarp();
  memory[blockIdx.x * kThreads + threadIdx.x] = shared[threadIdx.x / 2];
}

// A shuffle exchanges registers, and orders no memory.
__global__ void shuffle_for_a_barrier(int* memory) {
  __shared__ int shared[kThreads];
  shared[threadIdx.x] = 1;
  __shfl_xor_sync(0xffffffffu, 0, 1);
  memory[blockIdx.x * kThreads + threadIdx.x] = shared[threadIdx.x ^ 1];
}

__global__ void written_while_read(int* memory) {
  __shared__ int shared[kThreads];
  for (int round = 0; round < 2; ++round) {
    shared[threadIdx.x] = round;
    __syncthreads();
    memory[blockIdx.x * kThreads + threadIdx.x] = shared[kThreads - 1 - threadIdx.x];
  }
}

__global__ void never_written(int* memory) {
  __shared__ int shared[kThreads];
  if (threadIdx.x > 0) shared[threadIdx.x] = 1;
  __syncthreads();
  memory[blockIdx.x * kThreads + threadIdx.x] = shared[threadIdx.x];
}

__global__ void blocks_write_one_place(int* memory) { memory[threadIdx.x] = 1; }

__global__ void counts_without_atomics(int* memory) { memory[0] += 1; }

__global__ void reads_a_counter(int* memory) {
  atomicAdd(memory, 1);
  memory[kThreads * (blockIdx.x + 1) + threadIdx.x] = memory[0];
}

__global__ void old_values(int* memory) {
  const int i = static_cast<int>(blockIdx.x * kThreads + threadIdx.x);
  memory[i] = i;
  memory[i] = __ldg(memory + i) + 1;
}

__global__ void dynamic_without_barrier(int* memory) {
  int* shared = reinterpret_cast<int*>(spurmix::cuda::dynamic_shared());
  shared[threadIdx.x] = 1;
  memory[blockIdx.x * kThreads + threadIdx.x] = shared[threadIdx.x ^ 32];
}

__global__ void barrier_of_some(int* memory) {
  if (threadIdx.x < 32) __syncthreads();
  memory[blockIdx.x * kThreads + threadIdx.x] = 1;
}

void show(const char* name, void (*kernel)(int*)) {
  int memory[5 * kThreads] = {};
  const int code = spurmix::cuda::launch(kernel, 4, kThreads, kThreads * sizeof(int), nullptr, &memory[0]);
  std::printf("%s: %s\n", name, code == cudaSuccess ? "sound" : cudaGetErrorString(static_cast<cudaError_t>(code)));
}

}  // namespace

#define SHOW(kernel) show(#kernel, kernel)
int main() {
  SHOW(sound);
  SHOW(no_barrier);
  SHOW(warp_barrier_for_a_block);
  SHOW(shuffle_for_a_barrier);
  SHOW(written_while_read);
  SHOW(never_written);
  SHOW(blocks_write_one_place);
  SHOW(counts_without_atomics);
  SHOW(reads_a_counter);
  SHOW(old_values);
  SHOW(dynamic_without_barrier);
  SHOW(barrier_of_some);
}
