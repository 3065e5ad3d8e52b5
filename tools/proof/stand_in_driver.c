/* A stand-in for NVIDIA's driver (libcuda.so.1 and libnvidia-ml.so.1): the frameworks find a GPU and open their CUDA
   libraries; nothing can be computed. STAND_IN_GPUS and STAND_IN_ERROR change what it answers. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

static long context;
static int setting(const char *name, int otherwise) { return getenv(name) ? atoi(getenv(name)) : otherwise; }
static int gpus(void) { return setting("STAND_IN_GPUS", 1); }
static int unsupported(void) { return 801; }

int cuInit(unsigned flags) { return setting("STAND_IN_ERROR", gpus() ? 0 : 100); }
int cuGetErrorName(int error, const char **name) { *name = "CUDA_ERROR_OF_STAND_IN"; return 0; }
int cuGetErrorString(int error, const char **text) { *text = "as the stand-in was set"; return 0; }
int cuDriverGetVersion(int *version) { *version = 12090; return 0; }
int cuDeviceGetCount(int *count) { *count = gpus(); return 0; }
int cuDeviceGet(int *device, int index) { *device = index; return index < gpus() ? 0 : 101; }
int cuDeviceGetName(char *name, int size, int device) { strncpy(name, "Stand-in", size); return 0; }
int cuDeviceGetPCIBusId(char *id, int size, int device) { strncpy(id, "0000:01:00.0", size); return 0; }
int cuDeviceTotalMem_v2(size_t *bytes, int device) { *bytes = 1UL << 34; return 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) {
  switch (attribute) {
  case 10: *value = 32; break;  /* warp size */
  case 16: *value = 132; break; /* multiprocessors */
  case 75: *value = 9; break;   /* compute capability */
  default: *value = 0;
  }
  return 0;
}
int cuDevicePrimaryCtxRetain(void **c, int device) { *c = &context; return 0; }
int cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *active) { *flags = 0; *active = 0; return 0; }
int cuCtxGetCurrent(void **c) { *c = &context; return 0; }
int cuCtxGetDevice(int *device) { *device = 0; return 0; }
int cuGetExportTable(const void **table, const void *id) { return 500; }
int cuGetProcAddress_v2(const char *name, void **function, int version, unsigned long flags, int *status) {
  *function = dlsym(dlopen("libcuda.so.1", RTLD_NOLOAD | RTLD_LAZY), name);
  if (!*function) *function = (void *)unsupported;
  if (status) *status = 0;
  return 0;
}

int nvmlInit_v2(void) { return 0; }
int nvmlShutdown(void) { return 0; }
int nvmlSystemGetDriverVersion(char *version, unsigned size) { strncpy(version, "575.57.08", size); return 0; }
