/* As much of NVML as torch asks for: one device, without links and neighbours. */
#include <string.h>

enum { SUCCESS = 0, NOT_SUPPORTED = 3 };

int nvmlInit_v2(void) { return SUCCESS; }
int nvmlShutdown(void) { return SUCCESS; }
int nvmlDeviceGetCount_v2(unsigned *count) { return *count = 1, SUCCESS; }
int nvmlDeviceGetHandleByIndex_v2(int index, void **device) { return *device = (void *)1, SUCCESS; }
int nvmlDeviceGetHandleByPciBusId_v2(const char *id, void **device) { return *device = (void *)1, SUCCESS; }
int nvmlDeviceGetNvLinkRemoteDeviceType(void) { return NOT_SUPPORTED; }
int nvmlDeviceGetNvLinkRemotePciInfo_v2(void) { return NOT_SUPPORTED; }
int nvmlDeviceGetComputeRunningProcesses(void *device, unsigned *count, void *found) {
  return *count = 0, SUCCESS;
}
int nvmlSystemGetCudaDriverVersion_v2(int *version) { return *version = 13000, SUCCESS; }
int nvmlDeviceGetGpuFabricInfoV(void *device, unsigned char *info) {
  return memset(info + 4, 0, 24), SUCCESS;
}
