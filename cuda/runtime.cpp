// What is asked of the CUDA runtime beside launches.

#include <cuda_runtime_api.h>

#include "backend.hpp"

namespace invconv::detail::cuda {

namespace {

void check(cudaError_t status, const char* call) {
  if (status != cudaSuccess) {
    cudaGetLastError();  // or the next call would be told of it
    throw DeviceError(std::string("[cuda] ") + call + ": " + cudaGetErrorString(status));
  }
}

}  // namespace

void synchronize(const Cuda& execution) {
  // A stream may be waited for from any device, but the default ones are those of the present device.
  int before = 0;
  check(cudaGetDevice(&before), "cudaGetDevice");
  check(cudaSetDevice(execution.device), "cudaSetDevice");
  const cudaError_t status = cudaStreamSynchronize(static_cast<cudaStream_t>(execution.stream));
  cudaSetDevice(before);
  check(status, "cudaStreamSynchronize");
}

CudaInfo info() {
  CudaInfo info;
  info.compiler = "nvcc " INVCONV_NVCC_VERSION;
  info.architectures = INVCONV_CUDA_ARCHITECTURES;
  cudaRuntimeGetVersion(&info.runtime);
  cudaDriverGetVersion(&info.driver);
  for (int index = 0; index < devices(); ++index) {
    cudaDeviceProp properties{};
    check(cudaGetDeviceProperties(&properties, index), "cudaGetDeviceProperties");
    info.devices.push_back({properties.name, properties.major, properties.minor, properties.totalGlobalMem,
                            properties.sharedMemPerBlockOptin});
  }
  return info;
}

}  // namespace invconv::detail::cuda
