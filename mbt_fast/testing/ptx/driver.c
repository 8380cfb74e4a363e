/* A CUDA driver without a device: libcuda.so.1, as far as Triton calls it.
 *
 * A device has the number of its architecture: device 90 is one of compute capability 9.0. It holds
 * modules and contexts for no purpose but to refuse what a true driver refuses: a launch without a
 * context, a grid or block beyond the limits, more shared memory than was asked for. A launch that
 * is in order goes to a callback, which gets the very array of pointers that the caller made.
 */

#include <stdlib.h>

#include "cuda.h"

enum { SHAPE_GRID = 0, SHAPE_BLOCK = 3, SHAPE_CLUSTER = 6, SHAPE_SHARED = 9, SHAPE_SIZE = 10 };

typedef CUresult (*launch_callback)(CUfunction, const unsigned *shape, void **parameters);
typedef CUresult (*tensor_map_callback)(
    CUtensorMap *, int type, unsigned rank, void *address, const cuuint64_t *dims,
    const cuuint64_t *strides, const cuuint32_t *box, const cuuint32_t *element_strides,
    int interleave, int swizzle, int promotion, int fill);

struct CUfunc_st {
  int most_shared; /* dynamic shared memory that a launch may ask for */
};

static launch_callback on_launch;
static tensor_map_callback on_tensor_map;
static _Thread_local CUcontext current;

/* The one symbol that no true driver has. */
void mbt_fast_set_callbacks(launch_callback launch, tensor_map_callback tensor_map) {
  on_launch = launch;
  on_tensor_map = tensor_map;
}

static int most_shared_memory(CUdevice arch) {
  switch (arch) {
    case 80: return 163 * 1024;
    case 90: case 100: case 103: return 227 * 1024;
    default: return 99 * 1024;
  }
}

CUresult cuInit(unsigned flags) { return CUDA_SUCCESS; }
CUresult cuDriverGetVersion(int *version) { *version = CUDA_VERSION; return CUDA_SUCCESS; }
CUresult cuDeviceGetCount(int *count) { *count = 1; return CUDA_SUCCESS; }
CUresult cuDeviceGet(CUdevice *device, int number) { *device = number; return CUDA_SUCCESS; }

CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute attribute, CUdevice arch) {
  switch (attribute) {
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: *value = arch / 10; break;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: *value = arch % 10; break;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN:
      *value = most_shared_memory(arch);
      break;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR:
      *value = most_shared_memory(arch) + 1024;
      break;
    case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK: *value = 65536; break;
    case CU_DEVICE_ATTRIBUTE_WARP_SIZE: *value = 32; break;
    default: *value = 1; /* clocks, widths and counts, which nothing depends on */
  }
  return CUDA_SUCCESS;
}

CUresult cuGetErrorString(CUresult error, const char **text) {
  switch (error) {
    case CUDA_ERROR_INVALID_VALUE: *text = "invalid argument"; break;
    case CUDA_ERROR_INVALID_CONTEXT: *text = "invalid device context"; break;
    case CUDA_ERROR_NOT_SUPPORTED: *text = "operation not supported"; break;
    default: *text = "launch failed";
  }
  return CUDA_SUCCESS;
}

/* A context stands for nothing but its device: its address is one more than the number. */
CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device) {
  *context = (CUcontext)((size_t)device + 1);
  return CUDA_SUCCESS;
}
CUresult cuCtxGetCurrent(CUcontext *context) { *context = current; return CUDA_SUCCESS; }
CUresult cuCtxSetCurrent(CUcontext context) { current = context; return CUDA_SUCCESS; }
CUresult cuCtxGetDevice(CUdevice *device) {
  *device = (int)(size_t)current - 1;
  return current ? CUDA_SUCCESS : CUDA_ERROR_INVALID_CONTEXT;
}
CUresult cuCtxGetLimit(size_t *value, CUlimit limit) { *value = 0; return CUDA_SUCCESS; }
CUresult cuCtxSetLimit(CUlimit limit, size_t value) { return CUDA_SUCCESS; }
CUresult cuStreamIsCapturing(CUstream stream, CUstreamCaptureStatus *status) {
  *status = CU_STREAM_CAPTURE_STATUS_NONE;
  return CUDA_SUCCESS;
}
CUresult cuPointerGetAttribute(void *value, CUpointer_attribute attribute, CUdeviceptr pointer) {
  if (attribute != CU_POINTER_ATTRIBUTE_DEVICE_POINTER) return CUDA_ERROR_NOT_SUPPORTED;
  *(CUdeviceptr *)value = pointer;
  return CUDA_SUCCESS;
}

/* Functions live as long as the process: a kernel that is loaded keeps its handle. */
CUresult cuModuleLoadData(CUmodule *module, const void *image) {
  *module = (CUmodule)image;
  return current ? CUDA_SUCCESS : CUDA_ERROR_INVALID_CONTEXT;
}
CUresult cuModuleUnload(CUmodule module) { return CUDA_SUCCESS; }
CUresult cuModuleGetFunction(CUfunction *function, CUmodule module, const char *name) {
  *function = malloc(sizeof **function);
  if (!*function) return CUDA_ERROR_OUT_OF_MEMORY;
  (*function)->most_shared = 48 * 1024;
  return CUDA_SUCCESS;
}
CUresult cuFuncGetAttribute(int *value, CUfunction_attribute attribute, CUfunction function) {
  *value = attribute == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? 1024 : 0;
  return CUDA_SUCCESS;
}
CUresult cuFuncSetAttribute(CUfunction function, CUfunction_attribute attribute, int value) {
  switch ((int)attribute) {
    case CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES: /* Triton has compared it */
      function->most_shared = value;
      return CUDA_SUCCESS;
    case CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED: return CUDA_SUCCESS;
    default: return CUDA_ERROR_INVALID_VALUE; /* as a driver older than the attribute */
  }
}
CUresult cuFuncSetCacheConfig(CUfunction function, CUfunc_cache config) { return CUDA_SUCCESS; }
CUresult cuOccupancyMaxActiveClusters(int *count, CUfunction function, const CUlaunchConfig *c) {
  *count = 1;
  return CUDA_SUCCESS;
}

CUresult cuTensorMapEncodeTiled(
    CUtensorMap *map, CUtensorMapDataType type, cuuint32_t rank, void *address,
    const cuuint64_t *dims, const cuuint64_t *strides, const cuuint32_t *box,
    const cuuint32_t *element_strides, CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle,
    CUtensorMapL2promotion promotion, CUtensorMapFloatOOBfill fill) {
  if (!current) return CUDA_ERROR_INVALID_CONTEXT;
  return on_tensor_map(map, type, rank, address, dims, strides, box, element_strides, interleave,
                       swizzle, promotion, fill);
}

static int is_launchable(const unsigned *shape, const struct CUfunc_st *function) {
  const unsigned *grid = shape + SHAPE_GRID, *block = shape + SHAPE_BLOCK;
  unsigned long long threads = (unsigned long long)block[0] * block[1] * block[2];
  return grid[0] <= 0x7fffffffu && grid[1] <= 65535 && grid[2] <= 65535 && threads >= 1 &&
         threads <= 1024 && (int)shape[SHAPE_SHARED] <= function->most_shared;
}

CUresult cuLaunchKernelEx(const CUlaunchConfig *config, CUfunction function, void **parameters,
                          void **extra) {
  unsigned shape[SHAPE_SIZE] = {
      config->gridDimX,  config->gridDimY,  config->gridDimZ, config->blockDimX, config->blockDimY,
      config->blockDimZ, 1,                 1,                1,                 config->sharedMemBytes};
  for (unsigned i = 0; i < config->numAttrs; ++i) {
    if (config->attrs[i].id == CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION) {
      shape[SHAPE_CLUSTER] = config->attrs[i].value.clusterDim.x;
      shape[SHAPE_CLUSTER + 1] = config->attrs[i].value.clusterDim.y;
      shape[SHAPE_CLUSTER + 2] = config->attrs[i].value.clusterDim.z;
    }
  }
  if (!current) return CUDA_ERROR_INVALID_CONTEXT;
  if (!is_launchable(shape, function)) return CUDA_ERROR_INVALID_VALUE;
  return on_launch(function, shape, parameters);
}
