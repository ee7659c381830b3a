// What is asked of the CUDA runtime beside launches.

#include "backend.hpp"
#include "device.cuh"

namespace invconv::detail::cuda {

void synchronize(const Cuda& execution) {
  // A stream may be waited for from any device, but the default ones are those of the present device.
  const DeviceGuard guard(execution.device);
  check(cudaStreamSynchronize(static_cast<cudaStream_t>(execution.stream)), "cudaStreamSynchronize");
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
